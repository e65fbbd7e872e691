//! Products of pairs of bf16 numbers, as `vdpbf16ps` computes them, with that instruction and without.
//!
//! A pair `(x0, x1)` and a pair `(w0, w1)` add two links to a chain, the second number first. A link is
//! a fused multiply-add rounded once to nearest even; a result below the smallest normal f32, as if
//! its exponent had no end, becomes 0 of its sign (Intel SDM, VDPBF16PS; AMD's processors compute the
//! same). Numbers below the smallest normal one are taken for 0 as well: here they do not occur, for
//! what is rounded to bf16 or comes out of a link is never one.

use super::kernels::C_PITCH;
use half::{bf16, f16};

/// See [`Pairing`].
type Split = unsafe fn(&[f16], &mut [bf16]);

/// How numbers are multiplied as pairs of bf16.
#[derive(Clone, Copy)]
pub(super) struct Pairing {
    /// Pairs of a row that are multiplied together: depths are filled up to whole steps.
    pub step: usize,
    /// For numbers that are sums of two bf16 ones, what takes whole steps of FP16 numbers apart: of each
    /// step first the near numbers, then the rests.
    pub split: Option<Split>,
}

impl Pairing {
    /// bf16 numbers for each number.
    pub fn terms(&self) -> usize {
        1 + usize::from(self.split.is_some())
    }

    /// Pairs of a reduction, those it is filled up with included.
    pub fn pairs(&self, depth: usize) -> usize {
        depth.div_ceil(2).next_multiple_of(self.step)
    }

    /// Where an element of a reduction is stored: the pair of its near number, and that of the rest.
    pub fn place(&self, element: usize) -> [usize; 2] {
        let (step, pair) = (element / 2 / self.step, element / 2 % self.step);
        let near = step * self.step * self.terms() + pair;
        [near, near + self.step]
    }
}

/// The numbers that round to the smallest normal one are at least this large.
const LEAST: f64 = f32::MIN_POSITIVE as f64 * (1.0 - 1.0 / (1u64 << 25) as f64);

/// f32 to bf16, to nearest even; what is smaller than the smallest normal number becomes 0. A NaN stays
/// one. `vcvtneps2bf16` does the same.
#[inline(always)]
fn rounded(x: f32) -> bf16 {
    let bits = x.to_bits();
    let high = bits >> 16;
    let nearest = (bits.wrapping_add(0x7fff + (high & 1))) >> 16;
    let zero = high & 0x8000;
    let is_small = bits & 0x7f80_0000 == 0;
    let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
    let number = if is_small { zero } else { nearest };
    bf16::from_bits(if is_nan { high | 0x40 } else { number } as u16)
}

/// f32 to bf16 for equally long slices. Plain code: compiled once for each instruction set.
#[inline(always)]
pub(super) fn narrow(from: &[f32], to: &mut [bf16]) {
    assert_eq!(from.len(), to.len());
    to.iter_mut().zip(from).for_each(|(to, &x)| *to = rounded(x));
}

/// bf16 to f32, exactly, for equally long slices.
#[inline(always)]
pub(super) fn widen(from: &[bf16], to: &mut [f32]) {
    assert_eq!(from.len(), to.len());
    to.iter_mut().zip(from).for_each(|(to, x)| *to = f32::from_bits(u32::from(x.to_bits()) << 16));
}

/// One link.
#[inline(always)]
fn link(x: f32, w: f32, sum: f32) -> f32 {
    let next = x.mul_add(w, sum);
    let size = next.abs();
    // Exact: where the result is the smallest normal number, no operand has bits that f64 would lose.
    let lost = size == f32::MIN_POSITIVE && (x as f64 * w as f64 + sum as f64).abs() < LEAST;
    if size < f32::MIN_POSITIVE || lost { 0f32.copysign(next) } else { next }
}

/// One link of each of some chains.
#[inline(always)]
fn links<const N: usize>(x: f32, w: &[f32; N], sums: &mut [f32; N]) {
    let mut next = [0f32; N];
    let mut doubtful = false;
    for ((next, &w), &sum) in next.iter_mut().zip(w).zip(&*sums) {
        let value = x.mul_add(w, sum);
        let size = value.abs();
        doubtful |= size == f32::MIN_POSITIVE;
        *next = if size < f32::MIN_POSITIVE { 0f32.copysign(value) } else { value };
    }
    if doubtful {
        for ((next, &w), &sum) in next.iter_mut().zip(w).zip(&*sums) {
            *next = link(x, w, sum);
        }
    }
    *sums = next;
}

/// `C[i][j] (+)= sum over p of the links of A[i][p] and B[p][j]` for a tile of `MR` rows and `N`
/// columns of pairs, in order of p; the first number of a pair is the one at the lower address. A has
/// rows of `pitch` pairs, C of [`C_PITCH`] numbers, B of exactly the tile's width. `first` starts
/// from 0, not from C. Plain code: compiled once for each instruction set.
///
/// # Safety
/// `a`, `b`, `c` must be good for the elements named above.
#[inline(always)]
pub(super) unsafe fn tile<const MR: usize, const N: usize>(
    (a, pitch): (*const [bf16; 2], usize),
    b: *const [bf16; 2],
    pairs: usize,
    c: *mut f32,
    first: bool,
) {
    let wide = |x: bf16| f32::from_bits(u32::from(x.to_bits()) << 16);
    let mut sums = [[0f32; N]; MR];
    if !first {
        for (i, row) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's.
            *row = unsafe { *c.add(i * C_PITCH).cast::<[f32; N]>() };
        }
    }
    for p in 0..pairs {
        // SAFETY: the caller's.
        let w = unsafe { &*b.add(p * N).cast::<[[bf16; 2]; N]>() };
        let (w0, w1) = (w.map(|w| wide(w[0])), w.map(|w| wide(w[1])));
        for (i, row) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's.
            let [x0, x1] = unsafe { *a.add(i * pitch + p) };
            links(wide(x1), &w1, row);
            links(wide(x0), &w0, row);
        }
    }
    for (i, row) in sums.iter().enumerate() {
        // SAFETY: the caller's.
        unsafe { *c.add(i * C_PITCH).cast::<[f32; N]>() = *row };
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::C_PITCH;
    use crate::cpu::stored::StoredMut;
    use crate::cpu::vector::x86::keep_avx512;
    use half::bf16;
    use std::arch::x86_64::*;

    /// [`super::narrow`] with the instruction.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub fn narrow(from: &[f32], to: &mut [bf16]) {
        assert_eq!(from.len(), to.len());
        let (from16, from) = from.as_chunks::<16>();
        let (to16, to) = to.as_chunks_mut::<16>();
        for (from, to) in from16.iter().zip(to16) {
            // SAFETY: both arrays hold sixteen elements; any bits are a register of integers.
            unsafe {
                let narrow: __m256i =
                    std::mem::transmute(_mm512_cvtneps_pbh(_mm512_loadu_ps(from.as_ptr())));
                _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow);
            }
        }
        if !from.is_empty() {
            let lanes = (u32::MAX >> (32 - from.len())) as __mmask16;
            // SAFETY: masked loads and stores touch only the elements of the slices.
            unsafe {
                let wide = _mm512_maskz_loadu_ps(lanes, from.as_ptr());
                let narrow: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(wide));
                _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), lanes, narrow);
            }
        }
    }

    /// A register as it is stored: in bf16 with the instruction.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")]
    pub fn keep(x: __m512, to: StoredMut<'_>, narrow: impl Fn(&[f32], StoredMut<'_>)) {
        match to {
            StoredMut::Bf16(to) => {
                let to: &mut [bf16; 16] = to.try_into().expect("as long as a register");
                // SAFETY: sixteen elements; any bits are a register of integers.
                unsafe {
                    let narrow: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(x));
                    _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow);
                }
            }
            to => keep_avx512(x, to, narrow),
        }
    }

    /// Two registers of columns.
    const VECTORS: usize = 2;

    /// [`super::tile`] of 32 columns with the instruction.
    ///
    /// # Safety
    /// As there; `b` and `c` aligned to cache lines.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn tile<const MR: usize>(
        (a, pitch): (*const [bf16; 2], usize),
        b: *const [bf16; 2],
        pairs: usize,
        c: *mut f32,
        first: bool,
    ) {
        // SAFETY: any bits are a register of bf16.
        let bf16s = |x: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
        // SAFETY: the caller's.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); VECTORS]; MR];
            if !first {
                for (i, row) in sums.iter_mut().enumerate() {
                    for (j, sum) in row.iter_mut().enumerate() {
                        *sum = _mm512_load_ps(c.add(i * C_PITCH + j * 16));
                    }
                }
            }
            for p in 0..pairs {
                let mut columns = [bf16s(_mm512_setzero_si512()); VECTORS];
                for (j, column) in columns.iter_mut().enumerate() {
                    *column = bf16s(_mm512_load_si512(b.add((p * VECTORS + j) * 16).cast()));
                }
                for (i, row) in sums.iter_mut().enumerate() {
                    let pair = a.add(i * pitch + p).cast::<i32>().read_unaligned();
                    let x = bf16s(_mm512_set1_epi32(pair));
                    for (sum, &column) in row.iter_mut().zip(&columns) {
                        *sum = _mm512_dpbf16_ps(*sum, x, column);
                    }
                }
            }
            for (i, row) in sums.iter().enumerate() {
                for (j, &sum) in row.iter().enumerate() {
                    _mm512_store_ps(c.add(i * C_PITCH + j * 16), sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Precision;
    use crate::cpu::Isa;
    use crate::cpu::aligned::Aligned;
    use crate::cpu::kernels::{A_PITCH, Kernels};
    use crate::cpu::memory::Grid;
    use crate::cpu::stored::StoredMut;

    /// SplitMix64.
    struct Draw(u64);

    impl Draw {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }

        /// A number whose exponent lies in a range, which may hold those of zeros and infinities.
        fn number(&mut self, exponents: &std::ops::Range<u32>) -> f32 {
            let bits = self.next();
            let exponent = exponents.start + (bits >> 32) as u32 % exponents.len() as u32;
            let number = f32::from_bits(bits as u32 & 0x807f_ffff | exponent << 23);
            if number.is_subnormal() { 0f32.copysign(number) } else { number }
        }
    }

    fn available() -> impl Iterator<Item = &'static Kernels> {
        let isas = Isa::ALL.into_iter().filter(|isa| isa.sums_as_others() && isa.is_available());
        let usual = isas.clone().map(|isa| Kernels::of(isa, Precision::Bf16).unwrap());
        usual.chain(isas.map(Kernels::emulated))
    }

    /// Two links as the instruction is described, second number first.
    fn expected(x: [bf16; 2], w: [bf16; 2], sum: f32) -> f32 {
        let sum = link(x[1].to_f32(), w[1].to_f32(), sum);
        link(x[0].to_f32(), w[0].to_f32(), sum)
    }

    /// The instruction, where there is one, and every replacement give the bits of the definition:
    /// for numbers of all sizes, infinities, and sums near the smallest normal number.
    #[test]
    fn every_tile_computes_the_links_of_the_definition() {
        const ROWS: usize = 15;
        let ranges = [(110..144, 90..160), (0..256, 0..256), (50..75, 0..30), (120..130, 115..135)];
        for kernels in available() {
            let mut draw = Draw(7);
            for (numbers, sums) in ranges.iter().cycle().take(120) {
                let mut a = vec![[bf16::ZERO; 2]; 40 * A_PITCH];
                let mut b = Aligned::<[bf16; 2]>::zeros(3 * kernels.columns);
                let mut c = Aligned::<f32>::zeros(40 * C_PITCH);
                for x in a.iter_mut().chain(b.iter_mut()) {
                    *x = [draw.number(numbers), draw.number(numbers)].map(rounded);
                }
                c.iter_mut().for_each(|c| *c = draw.number(sums));
                let before = c.to_vec();
                kernels.pair_products().multiply(
                    &Grid::of(&a, A_PITCH),
                    &b[..3 * kernels.columns],
                    ROWS,
                    &mut c,
                    false,
                );
                for (i, j) in (0..ROWS).flat_map(|i| (0..kernels.columns).map(move |j| (i, j))) {
                    let want = (0..3).fold(before[i * C_PITCH + j], |sum, p| {
                        expected(a[i * A_PITCH + p], b[p * kernels.columns + j], sum)
                    });
                    let got = c[i * C_PITCH + j];
                    let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                    assert!(same, "{}: {got:e} is not {want:e}", kernels.name());
                }
            }
        }
    }

    /// `2^-126 - 2^-150` is half way to the number below: as an f32 of any exponent it needs no
    /// rounding and is too small.
    #[test]
    fn what_rounds_up_to_the_smallest_normal_number_is_lost() {
        let number = |e: i32| bf16::from_f32(2f32.powi(e));
        for (e, want) in [(-75, 0.0), (-76, f32::MIN_POSITIVE)] {
            let got = link(number(-75).to_f32(), -number(e).to_f32(), f32::MIN_POSITIVE);
            assert_eq!(got.to_bits(), f32::to_bits(want), "2^{e}");
            for kernels in available() {
                let mut a = vec![[bf16::ZERO; 2]; A_PITCH];
                a[0] = [number(-75), bf16::ZERO];
                let mut b = Aligned::<[bf16; 2]>::zeros(kernels.columns);
                let mut c = Aligned::<f32>::zeros(C_PITCH);
                b.iter_mut().for_each(|b| b[0] = -number(e));
                c.iter_mut().for_each(|c| *c = f32::MIN_POSITIVE);
                let a = Grid::of(&a, A_PITCH);
                kernels.pair_products().multiply(&a, &b[..kernels.columns], 1, &mut c, false);
                assert_eq!(c[0].to_bits(), f32::to_bits(want), "2^{e} by {}", kernels.name());
            }
        }
    }

    #[test]
    fn rounding_is_that_of_half_and_loses_what_is_too_small() {
        // Every 257th f32 and the ties.
        let some =
            (0..u32::MAX).step_by(257).chain((0..=u32::from(u16::MAX)).map(|h| h << 16 | 0x8000));
        let numbers: Vec<f32> = some.map(f32::from_bits).collect();
        let want = |x: f32| match x {
            x if x.is_subnormal() => bf16::from_f32(0f32.copysign(x)),
            x => bf16::from_f32(x),
        };
        for kernels in available() {
            let (mut to, mut back) = (vec![bf16::ZERO; 4096], vec![0f32; 4096]);
            for numbers in
                numbers.chunks(4096).step_by(if kernels.isa == Isa::Portable { 7 } else { 1 })
            {
                let (to, back) = (&mut to[..numbers.len()], &mut back[..numbers.len()]);
                kernels.narrow(numbers, StoredMut::Bf16(to));
                kernels.widen(crate::cpu::stored::Stored::Bf16(to), back);
                for ((&x, &y), &z) in numbers.iter().zip(&*to).zip(&*back) {
                    assert!(
                        y.to_bits() == want(x).to_bits() || x.is_nan() && y.is_nan(),
                        "{x:e}: {y}"
                    );
                    assert!(z.to_bits() == y.to_f32().to_bits() || z.is_nan(), "{y}: {z}");
                }
            }
        }
    }
}
