//! The inner loops of the decoder for the processor at hand: portable code, or AVX2.
//!
//! Both give the same bytes. Loops that the compiler vectorises well are the portable ones
//! compiled once more with AVX2 and BMI2 allowed; the transform and the interleaving of pixels
//! are written out. `unsafe` is needed only to enter such functions.

use super::baseline::{Component, Entropy};
use super::rows::{self, Upsampling};
use super::{idct, rows::interleave};

/// Which instructions may be used.
#[derive(Clone, Copy, Debug)]
pub enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Proof),
}

/// Calls the portable or the AVX2 form of a function.
macro_rules! dispatch {
    ($isa:expr, $portable:expr, $avx2:expr) => {
        match $isa {
            Isa::Portable => $portable,
            // SAFETY: `Proof` exists only where the instructions were found.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => unsafe { $avx2 },
        }
    };
}

impl Isa {
    /// The fastest this processor has.
    pub fn best() -> Isa {
        #[cfg(target_arch = "x86_64")]
        if let Some(proof) = avx2::Proof::find() {
            return Isa::Avx2(proof);
        }
        Isa::Portable
    }

    /// Decodes the coefficients of a row of units.
    pub fn coefficients(
        self,
        entropy: &mut Entropy<'_>,
        components: &mut [Component],
        order: &[usize],
        units: usize,
    ) -> Result<(), &'static str> {
        dispatch!(
            self,
            entropy.row(components, order, units),
            avx2::coefficients(entropy, components, order, units)
        )
    }

    /// Turns the coefficients of a component into samples.
    pub fn samples(self, component: &mut Component, units: usize) {
        dispatch!(
            self,
            samples(component, units, |block, steps, _| idct::block(block, steps)),
            avx2::samples(component, units)
        )
    }

    /// See [`rows::upsample`].
    pub fn upsample(
        self,
        how: Upsampling,
        near: &[u8],
        far: &[u8],
        below: bool,
        sums: &mut [u16],
        out: &mut [u8],
    ) {
        dispatch!(
            self,
            rows::upsample(how, near, far, below, sums, out),
            avx2::upsample(how, near, far, below, sums, out)
        )
    }

    /// See [`rows::interleave`]; the rows must be padded to a multiple of 16.
    pub fn interleave(self, ycbcr: bool, rows: [&[u8]; 3], out: &mut [u8]) {
        dispatch!(self, interleave(ycbcr, rows, out), avx2::interleave(ycbcr, rows, out))
    }
}

/// Puts each block of a row of units in its place.
#[inline(always)]
fn samples(
    component: &mut Component,
    units: usize,
    idct: impl Fn(&[i16; 64], &[i16; 64], bool) -> [[u8; 8]; 8],
) {
    let Component { h, v, quant, stride, plane, .. } = component;
    let (h, v, stride) = (*h, *v, *stride);
    let mut blocks = plane.blocks.iter().zip(&plane.last);
    for unit in 0..units {
        for (y, x) in (0..v).flat_map(|y| (0..h).map(move |x| (y, unit * h + x))) {
            let Some((block, &last)) = blocks.next() else { return };
            let lines = &mut plane.samples[(1 + 8 * y) * stride + 8 * x..][..7 * stride + 8];
            let block = match last {
                0 => [[idct::flat(block[0], quant[0]); 8]; 8],
                // The first ten in the order of the stream lie in the corner of 4 by 4.
                _ => idct(block, quant, last < 10),
            };
            for (y, values) in block.iter().enumerate() {
                lines[y * stride..][..8].copy_from_slice(values);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    //! The forms for AVX2 with BMI1, BMI2 and LZCNT.

    use super::super::baseline::{Component, Entropy, PAD};
    use super::super::idct::{FLAT_SHIFT, SHIFT, UNIT_SHIFT, factors::*};
    use super::super::rows::{self, Upsampling, conversion::*};
    use bytemuck::{cast, cast_ref};
    use std::arch::x86_64::*;

    /// That this processor has the instructions.
    #[derive(Clone, Copy, Debug)]
    pub struct Proof(());

    impl Proof {
        pub fn find() -> Option<Proof> {
            let found = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt");
            found.then_some(Proof(()))
        }
    }

    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    pub fn coefficients(
        entropy: &mut Entropy<'_>,
        components: &mut [Component],
        order: &[usize],
        units: usize,
    ) -> Result<(), &'static str> {
        entropy.row(components, order, units)
    }

    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    pub fn samples(component: &mut Component, units: usize) {
        super::samples(component, units, |block, steps, corner| idct(block, steps, corner));
    }

    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    pub fn upsample(
        how: Upsampling,
        near: &[u8],
        far: &[u8],
        below: bool,
        sums: &mut [u16],
        out: &mut [u8],
    ) {
        rows::upsample(how, near, far, below, sums, out);
    }

    /// See [`idct::block`](super::idct::block). With `corner` all coefficients outside the first
    /// four rows and columns must be 0.
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    pub fn idct(block: &[i16; 64], steps: &[i16; 64], corner: bool) -> [[u8; 8]; 8] {
        let coefficients: &[[i16; 8]; 8] = cast_ref(block);
        let steps: &[[i16; 8]; 8] = cast_ref(steps);
        let row = |y: usize| cast::<_, __m128i>(coefficients[y]);
        let scaled = |y: usize| _mm_mullo_epi16(row(y), cast(steps[y]));
        let either = |a, b| _mm_or_si128(a, b);
        let low = either(either(row(1), row(2)), row(3));
        let rows = if corner {
            let rows = if _mm_testz_si128(low, low) == 1 {
                repeated(scaled(0))
            } else {
                pass_corner::<{ SHIFT[0] as i32 }>([scaled(0), scaled(1), scaled(2), scaled(3)])
            };
            let [a, b, c, d, ..] = transposed(rows);
            pass_corner::<{ SHIFT[1] as i32 }>([a, b, c, d])
        } else {
            let high = either(either(row(4), row(5)), either(row(6), row(7)));
            let rest = either(low, high);
            let rows = if _mm_testz_si128(rest, rest) == 1 {
                repeated(scaled(0))
            } else {
                pass::<{ SHIFT[0] as i32 }>([
                    scaled(0),
                    scaled(1),
                    scaled(2),
                    scaled(3),
                    scaled(4),
                    scaled(5),
                    scaled(6),
                    scaled(7),
                ])
            };
            pass::<{ SHIFT[1] as i32 }>(transposed(rows))
        };
        let rows = transposed(rows);
        let centre = _mm_set1_epi8(-128);
        let pair = |y: usize| {
            let bytes = _mm_add_epi8(_mm_packs_epi16(rows[y], rows[y + 1]), centre);
            cast::<__m128i, [[u8; 8]; 2]>(bytes)
        };
        cast([pair(0), pair(2), pair(4), pair(6)])
    }

    /// The first pass over columns of which only the first coefficient is not 0.
    #[target_feature(enable = "avx2")]
    fn repeated(row: __m128i) -> [__m128i; 8] {
        [_mm_slli_epi16::<{ FLAT_SHIFT as i32 }>(row); 8]
    }

    /// The pairs `(a, b)` of 8 columns.
    #[target_feature(enable = "avx2")]
    fn pairs(a: __m128i, b: __m128i) -> __m256i {
        _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b))
    }

    /// `a * factors.0 + b * factors.1` of each pair.
    #[target_feature(enable = "avx2")]
    fn weigh(pairs: __m256i, factors: (i32, i32)) -> __m256i {
        let factors = factors.0 & 0xffff | factors.1 << 16;
        _mm256_madd_epi16(pairs, _mm256_set1_epi32(factors))
    }

    /// The inputs before multiplication, in 32 bits.
    #[target_feature(enable = "avx2")]
    fn unit(row: __m128i) -> __m256i {
        _mm256_slli_epi32::<{ UNIT_SHIFT as i32 }>(_mm256_cvtepi16_epi32(row))
    }

    /// The transform of each of the 8 columns.
    #[target_feature(enable = "avx2")]
    fn pass<const SHIFT: i32>(rows: [__m128i; 8]) -> [__m128i; 8] {
        let [i0, i1, i2, i3, i4, i5, i6, i7] = rows;
        let sum = |a, b| _mm256_add_epi32(a, b);
        let even0 = unit(_mm_add_epi16(i0, i4));
        let even1 = unit(_mm_sub_epi16(i0, i4));
        let p26 = pairs(i2, i6);
        let even = [even0, even1, weigh(p26, EVEN_2), weigh(p26, EVEN_3)];
        let sums = pairs(_mm_add_epi16(i7, i3), _mm_add_epi16(i5, i1));
        let (z3, z4) = (weigh(sums, SUM_3), weigh(sums, SUM_4));
        let (p71, p53) = (pairs(i7, i1), pairs(i5, i3));
        let odd = [
            sum(weigh(p71, ODD_3), z4),
            sum(weigh(p53, ODD_2), z3),
            sum(weigh(p53, ODD_1), z4),
            sum(weigh(p71, ODD_0), z3),
        ];
        finish::<SHIFT>(even, odd)
    }

    /// The same where inputs 4 to 7 are 0: what the others are multiplied by adds up beforehand.
    #[target_feature(enable = "avx2")]
    fn pass_corner<const SHIFT: i32>(rows: [__m128i; 4]) -> [__m128i; 8] {
        let [i0, i1, i2, i3] = rows;
        let p2 = pairs(i2, _mm_setzero_si128());
        let even = [unit(i0), unit(i0), weigh(p2, EVEN_2), weigh(p2, EVEN_3)];
        let p31 = pairs(i3, i1);
        let odd = [
            weigh(p31, (SUM_4.0, SUM_4.1 + ODD_3.1)),
            weigh(p31, (SUM_3.0 + ODD_2.1, SUM_3.1)),
            weigh(p31, (SUM_4.0 + ODD_1.1, SUM_4.1)),
            weigh(p31, (SUM_3.0, SUM_3.1 + ODD_0.1)),
        ];
        finish::<SHIFT>(even, odd)
    }

    /// The last stage of a pass, from the four terms of the even part and those of the odd part.
    #[target_feature(enable = "avx2")]
    fn finish<const SHIFT: i32>(even: [__m256i; 4], odd: [__m256i; 4]) -> [__m128i; 8] {
        let sum = |a, b| _mm256_add_epi32(a, b);
        let difference = |a, b| _mm256_sub_epi32(a, b);
        let [e0, e1, e2, e3] = even;
        let round = _mm256_set1_epi32(1 << (SHIFT - 1));
        let (e0, e1) = (sum(e0, round), sum(e1, round));
        let even = [sum(e0, e3), sum(e1, e2), difference(e1, e2), difference(e0, e3)];
        let scaled = |v| _mm256_srai_epi32::<SHIFT>(v);
        // Packing works within halves; the permutation brings the columns into order.
        let both = |a, b| {
            let packed = _mm256_permute4x64_epi64::<0xd8>(_mm256_packs_epi32(a, b));
            (_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed))
        };
        let out = |k: usize| {
            let (a, b) = (even[k], odd[k]);
            both(scaled(sum(a, b)), scaled(difference(a, b)))
        };
        let ((o0, o7), (o1, o6), (o2, o5), (o3, o4)) = (out(0), out(1), out(2), out(3));
        [o0, o1, o2, o3, o4, o5, o6, o7]
    }

    #[target_feature(enable = "avx2")]
    fn transposed(r: [__m128i; 8]) -> [__m128i; 8] {
        let narrow = |a, b| (_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b));
        let ((a0, a1), (a2, a3)) = (narrow(r[0], r[1]), narrow(r[2], r[3]));
        let ((a4, a5), (a6, a7)) = (narrow(r[4], r[5]), narrow(r[6], r[7]));
        let middle = |a, b| (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
        let ((b0, b1), (b2, b3)) = (middle(a0, a2), middle(a1, a3));
        let ((b4, b5), (b6, b7)) = (middle(a4, a6), middle(a5, a7));
        let wide = |a, b| (_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b));
        let ((c0, c1), (c2, c3)) = (wide(b0, b4), wide(b1, b5));
        let ((c4, c5), (c6, c7)) = (wide(b2, b6), wide(b3, b7));
        [c0, c1, c2, c3, c4, c5, c6, c7]
    }

    /// See [`rows::interleave`].
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    pub fn interleave(ycbcr: bool, rows: [&[u8]; 3], out: &mut [u8]) {
        let [a, b, c] = rows.map(|row| row.as_chunks::<PAD>().0);
        let (whole, rest) = out.as_chunks_mut::<{ 3 * PAD }>();
        let pixels = |i: usize| {
            let (a, b, c) = (cast(a[i]), cast(b[i]), cast(c[i]));
            let planes = if ycbcr { rgb(a, b, c) } else { [a, b, c] };
            cast::<[__m128i; 3], [u8; 3 * PAD]>(shuffled(planes))
        };
        let count = whole.len();
        for (i, out) in whole.iter_mut().enumerate() {
            *out = pixels(i);
        }
        if !rest.is_empty() {
            rest.copy_from_slice(&pixels(count)[..rest.len()]);
        }
    }

    /// See [`rows::rgb`].
    #[target_feature(enable = "avx2")]
    fn rgb(y: __m128i, cb: __m128i, cr: __m128i) -> [__m128i; 3] {
        let centre = _mm256_set1_epi16(128);
        let y = _mm256_cvtepu8_epi16(y);
        let cb = _mm256_sub_epi16(_mm256_cvtepu8_epi16(cb), centre);
        let cr = _mm256_sub_epi16(_mm256_cvtepu8_epi16(cr), centre);
        let double = |v| _mm256_add_epi16(v, v);
        // (2 * value * factor / 2^16 + 1) / 2, each rounded down, is the rounded product.
        let rounded = |v, factor: i32| {
            let high = _mm256_mulhi_epi16(double(v), _mm256_set1_epi16(factor as i16));
            _mm256_srai_epi16::<1>(_mm256_add_epi16(high, _mm256_set1_epi16(1)))
        };
        let red = _mm256_add_epi16(_mm256_add_epi16(y, cr), rounded(cr, RED_CR));
        let blue = _mm256_add_epi16(_mm256_add_epi16(y, double(cb)), rounded(cb, BLUE_CB));
        let half = _mm256_set1_epi32(1 << 15);
        let mixed = |pairs| {
            let sum = _mm256_add_epi32(weigh(pairs, (GREEN_CB, GREEN_CR)), half);
            _mm256_srai_epi32::<16>(sum)
        };
        let low = mixed(_mm256_unpacklo_epi16(cb, cr));
        let high = mixed(_mm256_unpackhi_epi16(cb, cr));
        let green = _mm256_add_epi16(_mm256_sub_epi16(y, cr), _mm256_packs_epi32(low, high));
        [red, green, blue]
            .map(|v| _mm_packus_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v)))
    }

    /// For output bytes `16 * part` and following: which byte of `plane` goes there, -1 for none.
    const fn places(part: usize, plane: usize) -> [i8; 16] {
        let mut out = [-1; 16];
        let mut i = 0;
        while i < 16 {
            let at = 16 * part + i;
            if at % 3 == plane {
                out[i] = (at / 3) as i8;
            }
            i += 1;
        }
        out
    }

    const PLACES: [[[i8; 16]; 3]; 3] = [
        [places(0, 0), places(0, 1), places(0, 2)],
        [places(1, 0), places(1, 1), places(1, 2)],
        [places(2, 0), places(2, 1), places(2, 2)],
    ];

    /// Three planes of 16 samples as 16 pixels.
    #[target_feature(enable = "avx2")]
    fn shuffled(planes: [__m128i; 3]) -> [__m128i; 3] {
        PLACES.map(|places| {
            let part = |i: usize| _mm_shuffle_epi8(planes[i], cast(places[i]));
            _mm_or_si128(_mm_or_si128(part(0), part(1)), part(2))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_written_out_transform_gives_the_bytes_of_the_portable_one() {
        if avx2::Proof::find().is_none() {
            return;
        }
        let mut state = 3u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32
        };
        for round in 0..20_000 {
            // From small coefficients, as in pictures, to such as make all sums wrap.
            let bits = round % 16 + 1;
            let mut block = [0i16; 64];
            for value in &mut block {
                if random() % 4 < 1 + round % 4 {
                    *value = (random() as i16) >> (16 - bits);
                }
            }
            if round % 5 == 0 {
                block[8..].fill(0);
            }
            let corner = round % 7 == 0;
            if corner {
                for (i, value) in block.iter_mut().enumerate() {
                    *value *= i16::from(i % 8 < 4 && i < 32);
                }
            }
            let steps: [i16; 64] = std::array::from_fn(|_| match round % 3 {
                0 => 1,
                1 => (random() % 256) as i16,
                _ => random() as i16,
            });
            let portable = idct::block(&block, &steps);
            // SAFETY: the instructions were found above.
            assert_eq!(
                // SAFETY: the test ends above where there is no AVX2.
                unsafe { avx2::idct(&block, &steps, corner) },
                portable,
                "{block:?} {steps:?}"
            );
            let mut flat = [0; 64];
            flat[0] = block[0];
            let wanted = [[idct::flat(block[0], steps[0]); 8]; 8];
            assert_eq!(idct::block(&flat, &steps), wanted, "{} {}", block[0], steps[0]);
        }
    }

    #[test]
    fn every_colour_is_converted_as_by_the_tables_of_libjpeg() {
        let cb: Vec<u8> = (0..=255).collect();
        let mut out = vec![0; 256 * 3];
        // Its tables, in 16 bits of fraction: 1.402, 0.71414, 0.34414, 1.772.
        let tables = |y: u8, cb: u8, cr: u8| {
            let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
            let red = y + ((91881 * cr + 32768) >> 16);
            let green = y + ((-22554 * cb - 46802 * cr + 32768) >> 16);
            let blue = y + ((116130 * cb + 32768) >> 16);
            [red, green, blue].map(|v| v.clamp(0, 255) as u8)
        };
        for cr in 0..=255 {
            for y in (0..=255).step_by(5) {
                for isa in [Isa::Portable, Isa::best()] {
                    isa.interleave(true, [&[y; 256], &cb, &[cr; 256]], &mut out);
                    for (pixel, &cb) in out.chunks(3).zip(&cb) {
                        assert_eq!(pixel, tables(y, cb, cr), "{y} {cb} {cr} {isa:?}");
                    }
                }
            }
        }
    }
}
