//! For each instruction set and precision a table of inner loops.
//!
//! A [`Kernels`] can only be had from [`Kernels::of`], which asks the processor first: holding one
//! is the proof that its functions may be called.

use super::amx;
use super::epilogue::{self, Finish, Finished};
use super::isa::Isa;
use super::memory::Grid;
use super::pairs::{self, Pairing};
use super::pool;
use super::stored::{Stored, StoredMut};
use super::vector::{self, Norm, narrow_half, tile, widen_half};
use crate::backend::Precision;
use crate::error::{Error, Result};
use half::{bf16, f16};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};

/// The largest depth of a tile: links of a chain computed between two stores of its partial sum.
pub(super) const MAX_DEPTH: usize = 384;
/// The most columns of a block of a layer's sums.
pub(super) const MAX_COLUMNS: usize = 256;
/// The most columns of sums there is room for: the 257 to 265 tokens of many transformers in one go.
pub(super) const MAX_SLOTS: usize = 288;
/// Elements between rows of packed activations. The odd cache line keeps rows in different sets.
pub(super) const A_PITCH: usize = MAX_DEPTH + 16;
/// Elements between rows of a block of sums.
pub(super) const C_PITCH: usize = MAX_SLOTS + 16;
/// The most rows of a block.
pub(super) const MAX_ROWS: usize = 112;

/// See [`tile`].
type Tile = unsafe fn(*const f32, *const f32, usize, *mut f32, bool);

/// See [`pairs::tile`].
pub(super) type PairTile =
    unsafe fn((*const [bf16; 2], usize), *const [bf16; 2], usize, *mut f32, bool);

/// The right to multiply pairs in this thread.
pub(super) struct PairProducts {
    kernels: &'static Kernels,
    /// Its tile registers, where it has such.
    _tiles: Option<amx::Tiles>,
}

/// The inner loops of one instruction set, for one precision.
pub(super) struct Kernels {
    pub isa: Isa,
    pub precision: Precision,
    /// Whether products of bf16 are put together from f32 ones.
    emulated: bool,
    /// Columns of every tile: filters computed together.
    pub columns: usize,
    /// Tiles by their number of rows, ascending.
    tiles: &'static [(usize, Tile)],
    /// How pairs are multiplied, where numbers are.
    pub pairs: Option<Pairing>,
    /// Tiles of pairs by their number of rows, ascending.
    pair_tiles: &'static [(usize, PairTile)],
    widen: unsafe fn(&[f16], &mut [f32]),
    narrow: unsafe fn(&[f32], &mut [f16]),
    widen_bf16: unsafe fn(&[bf16], &mut [f32]),
    narrow_bf16: unsafe fn(&[f32], &mut [bf16]),
    finish: unsafe fn(&mut [f32], &Finish<'_>),
    emit: unsafe fn(Finished<'_>),
    activate: unsafe fn(Stored<'_>, [&[f32]; 2], StoredMut<'_>),
    reduce: unsafe fn(&pool::Window<'_>, &mut [f32]),
    normalize: unsafe fn(&mut [f32], &Norm<'_>),
    exponentials: unsafe fn(&mut [f32], f32, f32) -> (f32, f64),
}

impl Kernels {
    /// The kernels of an instruction set for a precision.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when this processor does not have it.
    pub fn of(isa: Isa, precision: Precision) -> Result<&'static Kernels> {
        if !isa.is_available() {
            return Err(Error::usage(format!("this processor does not have {isa}")));
        }
        let each: &'static [Kernels; 3] = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if precision == Precision::F16 => return Ok(&AMX),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if precision == Precision::Bf16 => return Ok(&AMX_BF16),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if precision == Precision::Bf16 && super::ceiling::pairs_available(isa) => {
                return Ok(&AVX512_BF16);
            }
            // Tile registers do not multiply f32.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => &AVX512,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &AVX2,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &NEON,
            _ => &PORTABLE,
        };
        Ok(&each[precision as usize])
    }

    /// The kernels for bf16 without the instruction that multiplies it.
    #[cfg(test)]
    pub fn emulated(isa: Isa) -> &'static Kernels {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if isa.is_available() => &AVX512[Precision::Bf16 as usize],
            other => Kernels::of(other, Precision::Bf16).expect("this processor has it"),
        }
    }

    /// The same loops for each precision, in the order of [`Precision::ALL`].
    const fn each(self) -> [Kernels; 3] {
        [
            Kernels { precision: Precision::F16, ..self },
            Kernels { precision: Precision::Bf16, emulated: true, pairs: PAIRS, ..self },
            Kernels { precision: Precision::F32, ..self },
        ]
    }

    /// What it is, as written into results: `avx512`, `avx2 bf16 emulated`.
    pub fn name(&self) -> String {
        match self.precision {
            Precision::F16 => self.isa.to_string(),
            Precision::Bf16 if self.emulated => format!("{} bf16 emulated", self.isa),
            other => format!("{} {other}", self.isa),
        }
    }

    /// See [`crate::backend::Backend::product_error`]: FP16 numbers as sums of two leave out the products of
    /// their rests, each at most 2^-18 of the whole; a sixteenth of it may be left of a sum that cancels.
    pub fn product_error(&self) -> f64 {
        let splits = self.pairs.is_some_and(|pairs| pairs.split.is_some());
        if splits { 1.0 / (1 << 14) as f64 } else { 0.0 }
    }

    /// Rows of the largest tile: blocks are cut into multiples of it.
    pub fn rows(&self) -> usize {
        let last = match self.pairs {
            None => self.tiles.last().map(|t| t.0),
            Some(_) => self.pair_tiles.last().map(|t| t.0),
        };
        last.unwrap_or(1)
    }

    /// What multiplies pairs in this thread until it is dropped.
    pub fn pair_products(&'static self) -> PairProducts {
        let has_tiles = self.isa == Isa::Amx;
        // SAFETY: the processor has the instruction set (see the module).
        let _tiles = has_tiles.then(|| unsafe { amx::Tiles::open() });
        PairProducts { kernels: self, _tiles }
    }

    /// Takes FP16 numbers apart, whole steps of them: see [`Pairing`].
    pub fn split(&self, from: &[f16], to: &mut [bf16]) {
        let split = self.pairs.and_then(|pairs| pairs.split);
        // SAFETY: the processor has the instruction set (see the module).
        unsafe { split.expect("numbers are sums of two")(from, to) }
    }

    /// `c (+)= a b` for `rows` rows of `a` and one panel of `b` (`[depth][columns]`), through the
    /// tiles that fit best. Rows of `a` and `c` up to the next whole tile are touched as well. `b` and
    /// `c` must be aligned to the tile's columns.
    pub fn multiply(&self, a: &[f32], b: &[f32], rows: usize, c: &mut [f32], first: bool) {
        let depth = b.len() / self.columns;
        let aligned = |x: &[f32]| (x.as_ptr() as usize).is_multiple_of(4 * self.columns.min(16));
        assert!(depth <= MAX_DEPTH && aligned(b) && aligned(c));
        for (row, height, tile) in cut(rows, self.tiles) {
            let a = &a[row * A_PITCH..(row + height) * A_PITCH];
            let c = &mut c[row * C_PITCH..][..(height - 1) * C_PITCH + self.columns];
            // SAFETY: the processor has the instruction set (see the module), the slices just taken
            // and `depth` bound what a tile of this height touches, and all pitches keep the
            // alignment.
            unsafe { tile(a.as_ptr(), b.as_ptr(), depth, c.as_mut_ptr(), first) };
        }
    }

    /// Stored numbers to f32, exactly, for equally long slices.
    pub fn widen(&self, from: Stored<'_>, to: &mut [f32]) {
        // SAFETY: the processor has the instruction set (see the module).
        unsafe {
            match from {
                Stored::F16(from) => (self.widen)(from, to),
                Stored::Bf16(from) => (self.widen_bf16)(from, to),
                Stored::F32(from) => to.copy_from_slice(from),
            }
        }
    }

    /// Stored numbers to where they are multiplied: as f32, or as they are.
    pub fn take(&self, from: Stored<'_>, to: StoredMut<'_>) {
        match to {
            StoredMut::F32(to) => self.widen(from, to),
            to => to.copy_from(from),
        }
    }

    /// f32 to stored numbers, to nearest even, for equally long slices.
    pub fn narrow(&self, from: &[f32], to: StoredMut<'_>) {
        // SAFETY: the processor has the instruction set (see the module).
        unsafe {
            match to {
                StoredMut::F16(to) => (self.narrow)(from, to),
                StoredMut::Bf16(to) => (self.narrow_bf16)(from, to),
                StoredMut::F32(to) => to.copy_from_slice(from),
            }
        }
    }

    /// What is left of numbers that are stored: rounds them in place.
    pub fn round(&self, values: &mut [f32]) {
        let (mut half, mut brain) = ([f16::ZERO; MAX_DEPTH], [bf16::ZERO; MAX_DEPTH]);
        for values in values.chunks_mut(MAX_DEPTH) {
            let n = values.len();
            match self.precision {
                Precision::F16 => {
                    self.narrow(values, StoredMut::F16(&mut half[..n]));
                    self.widen(Stored::F16(&half[..n]), values);
                }
                Precision::Bf16 => {
                    self.narrow(values, StoredMut::Bf16(&mut brain[..n]));
                    self.widen(Stored::Bf16(&brain[..n]), values);
                }
                Precision::F32 => {}
            }
        }
    }

    /// `act(fma(sum, scale, bias) + residual)` in place.
    pub fn finish(&self, sums: &mut [f32], with: &Finish<'_>) {
        // SAFETY: the processor has the instruction set (see the module).
        unsafe { (self.finish)(sums, with) }
    }

    /// Finishes the sums of a panel and stores them: see [`epilogue::emit`].
    pub fn emit(&self, sums: Finished<'_>) {
        // SAFETY: the processor has the instruction set (see the module).
        unsafe { (self.emit)(sums) }
    }

    /// `relu(fma(x, scale, bias))` of stored numbers, rounded as they are stored, to where it is
    /// multiplied.
    pub fn activate(&self, from: Stored<'_>, with: [&[f32]; 2], to: StoredMut<'_>) {
        // SAFETY: the processor has the instruction set (see the module).
        unsafe { (self.activate)(from, with, to) }
    }

    /// The largest numbers, or the sums, of a window: see [`pool`].
    pub fn reduce(&self, window: &pool::Window<'_>, to: &mut [f32]) {
        // SAFETY: the processor has the instruction set (see the module).
        unsafe { (self.reduce)(window, to) }
    }

    /// Normalises a group of channels in place: see [`vector::normalize`].
    pub fn normalize(&self, values: &mut [f32], with: &Norm<'_>) {
        // SAFETY: the processor has the instruction set (see the module).
        unsafe { (self.normalize)(values, with) }
    }

    /// `exp((x - largest) * scale)` in place, where no value and not `least` is above `largest`; that, and
    /// the sum of the results: a softmax before its division.
    pub fn exponentials(&self, values: &mut [f32], least: f32, scale: f32) -> (f32, f64) {
        // SAFETY: the processor has the instruction set (see the module).
        unsafe { (self.exponentials)(values, least, scale) }
    }
}

impl PairProducts {
    /// As [`Kernels::multiply`] on pairs of bf16 numbers, `b` of `[pairs][columns]`.
    pub fn multiply(
        &self,
        a: &Grid<'_, [bf16; 2]>,
        b: &[[bf16; 2]],
        rows: usize,
        c: &mut [f32],
        first: bool,
    ) {
        let Kernels { columns, pair_tiles, pairs: how, .. } = self.kernels;
        let pairs = b.len() / columns;
        let whole = how.map_or(1, |how| how.step * how.terms());
        let aligned = |address: usize| address.is_multiple_of(4 * columns.min(&16));
        assert!(0 < pairs && pairs <= MAX_DEPTH && pairs.is_multiple_of(whole));
        assert!(pairs <= a.columns());
        assert!(aligned(b.as_ptr() as usize) && aligned(c.as_ptr() as usize));
        for (row, height, tile) in cut(rows, pair_tiles) {
            let a = (a.start(row, height - 1), a.pitch());
            let c = &mut c[row * C_PITCH..][..(height - 1) * C_PITCH + columns];
            // SAFETY: as in `Kernels::multiply`; tile registers are set up for as long as `self` lives.
            unsafe { tile(a, b.as_ptr(), pairs, c.as_mut_ptr(), first) };
        }
    }
}

/// The tiles of some rows, of the heights there are, ascending: first row, height, tile. The last one may
/// reach beyond the rows.
fn cut<T: Copy>(rows: usize, tiles: &[(usize, T)]) -> impl Iterator<Item = (usize, usize, T)> {
    let mut row = 0;
    std::iter::from_fn(move || {
        let left = rows.checked_sub(row).filter(|&left| left > 0)?;
        let fits = tiles.iter().find(|(height, _)| *height >= left);
        let &(height, tile) = fits.or(tiles.last())?;
        row += height;
        Some((row - height, height, tile))
    })
}

/// Pairs as vector units multiply them, one after another.
const PAIRS: Option<Pairing> = Some(Pairing { step: 1, split: None });

/// Compiles the loops of [`vector`] for an instruction set.
macro_rules! compiled {
    ($features:literal, [$tile:ident, $finish:ident, $normalize:ident, $exponentials:ident],
        [$pair_tile:ident, $widen_bf16:ident, $narrow_bf16:ident],
        $register:ty, $vectors:literal, $columns:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn $tile<const MR: usize>(
            a: *const f32,
            b: *const f32,
            depth: usize,
            c: *mut f32,
            first: bool,
        ) {
            // SAFETY: the caller's; the features are enabled here.
            unsafe { tile::<$register, MR, $vectors>(a, b, depth, c, first) }
        }

        #[target_feature(enable = $features)]
        unsafe fn $pair_tile<const MR: usize>(
            a: (*const [bf16; 2], usize),
            b: *const [bf16; 2],
            pairs: usize,
            c: *mut f32,
            first: bool,
        ) {
            // SAFETY: the caller's.
            unsafe { pairs::tile::<MR, $columns>(a, b, pairs, c, first) }
        }

        #[target_feature(enable = $features)]
        fn $widen_bf16(from: &[bf16], to: &mut [f32]) {
            pairs::widen(from, to);
        }

        #[target_feature(enable = $features)]
        fn $narrow_bf16(from: &[f32], to: &mut [bf16]) {
            pairs::narrow(from, to);
        }

        #[target_feature(enable = $features)]
        pub(super) fn $finish(sums: &mut [f32], with: &Finish<'_>) {
            epilogue::finish(sums, with);
        }

        #[target_feature(enable = $features)]
        fn $normalize(values: &mut [f32], with: &Norm<'_>) {
            vector::normalize(values, with);
        }

        #[target_feature(enable = $features)]
        fn $exponentials(values: &mut [f32], least: f32, scale: f32) -> (f32, f64) {
            vector::exponentials(values, least, scale)
        }
    };
}

#[cfg(target_arch = "x86_64")]
compiled!(
    "avx512f,avx512bw,avx512vl,avx2,fma,f16c",
    [tile_avx512, finish_avx512, normalize_avx512, exponentials_avx512],
    [pair_tile_avx512, widen_bf16_avx512, narrow_bf16_avx512],
    __m512,
    2,
    32
);
#[cfg(target_arch = "x86_64")]
static AVX512: [Kernels; 3] = AVX512_BASE.each();
#[cfg(target_arch = "x86_64")]
const AVX512_BASE: Kernels = Kernels {
    precision: Precision::F16,
    emulated: false,
    pairs: None,
    pair_tiles: &[
        (1, pair_tile_avx512::<1>),
        (4, pair_tile_avx512::<4>),
        (8, pair_tile_avx512::<8>),
        (14, pair_tile_avx512::<14>),
    ],
    widen_bf16: widen_bf16_avx512,
    narrow_bf16: narrow_bf16_avx512,
    isa: Isa::Avx512,
    columns: 32,
    tiles: &[
        (1, tile_avx512::<1>),
        (4, tile_avx512::<4>),
        (8, tile_avx512::<8>),
        (14, tile_avx512::<14>),
    ],
    widen: vector::x86::widen_avx512,
    narrow: vector::x86::narrow_avx512,
    finish: finish_avx512,
    emit: epilogue::emit_avx512,
    activate: epilogue::activate_avx512,
    reduce: pool::reduce_avx512,
    normalize: normalize_avx512,
    exponentials: exponentials_avx512,
};

/// With the instruction that multiplies pairs.
#[cfg(target_arch = "x86_64")]
static AVX512_BF16: Kernels = AVX512_BF16_BASE;
#[cfg(target_arch = "x86_64")]
const AVX512_BF16_BASE: Kernels = Kernels {
    precision: Precision::Bf16,
    pairs: PAIRS,
    pair_tiles: &[
        (1, pairs::x86::tile::<1>),
        (4, pairs::x86::tile::<4>),
        (8, pairs::x86::tile::<8>),
        (14, pairs::x86::tile::<14>),
    ],
    narrow_bf16: pairs::x86::narrow,
    emit: epilogue::emit_avx512_bf16,
    activate: epilogue::activate_avx512_bf16,
    ..AVX512_BASE
};

/// With tile registers: bf16 as it is, FP16 in two terms.
#[cfg(target_arch = "x86_64")]
static AMX_BF16: Kernels = Kernels {
    isa: Isa::Amx,
    columns: amx::COLUMNS,
    pairs: Some(Pairing { step: amx::STEP, split: None }),
    pair_tiles: &[(16, amx::x86::tile16), (32, amx::x86::tile32)],
    ..AVX512_BF16_BASE
};
#[cfg(target_arch = "x86_64")]
static AMX: Kernels = Kernels {
    isa: Isa::Amx,
    columns: amx::COLUMNS,
    pairs: Some(Pairing { step: amx::STEP, split: Some(amx::x86::split) }),
    pair_tiles: &[(16, amx::x86::split_tile16), (32, amx::x86::split_tile32)],
    ..AVX512_BASE
};

#[cfg(target_arch = "x86_64")]
compiled!(
    "avx2,fma,f16c",
    [tile_avx2, finish_avx2, normalize_avx2, exponentials_avx2],
    [pair_tile_avx2, widen_bf16_avx2, narrow_bf16_avx2],
    __m256,
    2,
    16
);
#[cfg(target_arch = "x86_64")]
static AVX2: [Kernels; 3] = AVX2_BASE.each();
#[cfg(target_arch = "x86_64")]
const AVX2_BASE: Kernels = Kernels {
    precision: Precision::F16,
    emulated: false,
    pairs: None,
    pair_tiles: &[(1, pair_tile_avx2::<1>), (3, pair_tile_avx2::<3>), (6, pair_tile_avx2::<6>)],
    widen_bf16: widen_bf16_avx2,
    narrow_bf16: narrow_bf16_avx2,
    isa: Isa::Avx2,
    columns: 16,
    tiles: &[(1, tile_avx2::<1>), (3, tile_avx2::<3>), (6, tile_avx2::<6>)],
    widen: vector::x86::widen_avx2,
    narrow: vector::x86::narrow_avx2,
    finish: finish_avx2,
    emit: epilogue::emit_avx2,
    activate: epilogue::activate_avx2,
    reduce: pool::reduce_avx2,
    normalize: normalize_avx2,
    exponentials: exponentials_avx2,
};

#[cfg(target_arch = "aarch64")]
compiled!(
    "neon",
    [tile_neon, finish_neon, normalize_neon, exponentials_neon],
    [pair_tile_neon, widen_bf16_neon, narrow_bf16_neon],
    std::arch::aarch64::float32x4_t,
    4,
    16
);
#[cfg(target_arch = "aarch64")]
static NEON: [Kernels; 3] = NEON_BASE.each();
#[cfg(target_arch = "aarch64")]
const NEON_BASE: Kernels = Kernels {
    precision: Precision::F16,
    emulated: false,
    pairs: None,
    pair_tiles: &[(1, pair_tile_neon::<1>), (3, pair_tile_neon::<3>), (6, pair_tile_neon::<6>)],
    widen_bf16: widen_bf16_neon,
    narrow_bf16: narrow_bf16_neon,
    isa: Isa::Neon,
    columns: 16,
    tiles: &[(1, tile_neon::<1>), (3, tile_neon::<3>), (6, tile_neon::<6>)],
    widen: widen_half,
    narrow: narrow_half,
    finish: finish_neon,
    emit: epilogue::emit_neon,
    activate: epilogue::activate_neon,
    reduce: pool::reduce_portable,
    normalize: normalize_neon,
    exponentials: exponentials_neon,
};

static PORTABLE: [Kernels; 3] = PORTABLE_BASE.each();
const PORTABLE_BASE: Kernels = Kernels {
    precision: Precision::F16,
    emulated: false,
    pairs: None,
    pair_tiles: &[(1, pairs::tile::<1, 8>), (4, pairs::tile::<4, 8>)],
    widen_bf16: pairs::widen,
    narrow_bf16: pairs::narrow,
    isa: Isa::Portable,
    columns: 8,
    tiles: &[(1, tile::<f32, 1, 8>), (4, tile::<f32, 4, 8>)],
    widen: widen_half,
    narrow: narrow_half,
    finish: epilogue::finish,
    emit: epilogue::emit_portable,
    activate: epilogue::activate_portable,
    reduce: pool::reduce_portable,
    normalize: vector::normalize,
    exponentials: vector::exponentials,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_this_processor_lacks_is_refused() {
        let missing = if cfg!(target_arch = "x86_64") { Isa::Neon } else { Isa::Avx2 };
        assert!(Kernels::of(missing, Precision::F16).is_err());
    }

    #[test]
    fn conversions_agree_with_half_on_every_length() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|h| !h.is_nan()).collect();
        // Ties, subnormals, overflow and their neighbours.
        let steps = |h: &f16| {
            [-4096i32, -4095, 0, 4095, 4096].map(|d| h.to_f32().to_bits().wrapping_add_signed(d))
        };
        let floats: Vec<f32> =
            (halves.iter().flat_map(steps).map(f32::from_bits)).filter(|x| !x.is_nan()).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let kernels = Kernels::of(isa, Precision::F16).unwrap();
            let mut wide = vec![0f32; halves.len()];
            kernels.widen(Stored::F16(&halves), &mut wide);
            assert!(wide.iter().zip(&halves).all(|(w, h)| w.to_bits() == h.to_f32().to_bits()));
            let mut narrow = vec![f16::ZERO; floats.len()];
            kernels.narrow(&floats, StoredMut::F16(&mut narrow));
            for (n, x) in narrow.iter().zip(&floats) {
                assert_eq!(n.to_bits(), f16::from_f32_const(*x).to_bits(), "{isa} {x:e}");
            }
            for length in 0..40 {
                let mut to = vec![7f32; length + 1];
                kernels.widen(Stored::F16(&halves[100..100 + length]), &mut to[..length]);
                assert_eq!(to[..length], wide[100..100 + length], "{isa} {length}");
                assert_eq!(to[length], 7.0);
                let mut to = vec![f16::ONE; length + 1];
                let room = StoredMut::F16(&mut to[..length]);
                kernels.narrow(&floats[900..900 + length], room);
                assert_eq!(to[..length], narrow[900..900 + length], "{isa} {length}");
                assert_eq!(to[length], f16::ONE);
            }
        }
    }
}
