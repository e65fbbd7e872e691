//! Dequantisation and the inverse DCT, bit for bit that of libjpeg-turbo's accurate integer
//! transform in its vector form.
//!
//! The algorithm is that of Loeffler, Ligtenberg and Moschytz (ICASSP 1989) with 12
//! multiplications in fixed point. Sound streams give the same samples in any exact evaluation;
//! for coefficients out of range the places where 16 bits wrap or saturate are part of the result
//! and follow the vector form.

/// Bits of the fraction of the constants.
const FRACTION: u32 = 13;
/// Bits kept by the first pass.
const KEPT: u32 = 2;

/// A constant in fixed point.
const fn fixed(value: f64) -> i32 {
    let scaled = value * (1 << FRACTION) as f64;
    (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

/// Factors of pairs of inputs: each output term is `a * factor.0 + b * factor.1`.
pub mod factors {
    use super::fixed;
    const F0_298: i32 = fixed(0.298631336);
    const F0_390: i32 = fixed(0.390180644);
    const F0_541: i32 = fixed(0.541196100);
    const F0_765: i32 = fixed(0.765366865);
    const F0_899: i32 = fixed(0.899976223);
    const F1_175: i32 = fixed(1.175875602);
    const F1_501: i32 = fixed(1.501321110);
    const F1_847: i32 = fixed(1.847759065);
    const F1_961: i32 = fixed(1.961570560);
    const F2_053: i32 = fixed(2.053119869);
    const F2_562: i32 = fixed(2.562915447);
    const F3_072: i32 = fixed(3.072711026);

    /// Of inputs 2 and 6.
    pub const EVEN_2: (i32, i32) = (F0_541, F0_541 - F1_847);
    pub const EVEN_3: (i32, i32) = (F0_541 + F0_765, F0_541);
    /// Of the sums 7 + 3 and 5 + 1.
    pub const SUM_3: (i32, i32) = (F1_175 - F1_961, F1_175);
    pub const SUM_4: (i32, i32) = (F1_175, F1_175 - F0_390);
    /// Of inputs 7 and 1.
    pub const ODD_0: (i32, i32) = (F0_298 - F0_899, -F0_899);
    pub const ODD_3: (i32, i32) = (-F0_899, F1_501 - F0_899);
    /// Of inputs 5 and 3.
    pub const ODD_1: (i32, i32) = (F2_053 - F2_562, -F2_562);
    pub const ODD_2: (i32, i32) = (-F2_562, F3_072 - F2_562);
}

/// Right shifts of the two passes: to `KEPT` bits of fraction, then to whole samples.
pub const SHIFT: [u32; 2] = [FRACTION - KEPT, FRACTION + KEPT + 3];
/// The same for a column of which only the first coefficient is not 0.
pub const FLAT_SHIFT: u32 = KEPT;
/// Bits of the fraction of a term that is not multiplied.
pub const UNIT_SHIFT: u32 = FRACTION;

/// The sample of a block of which only the first coefficient is not 0.
#[inline(always)]
pub fn flat(coefficient: i16, step: i16) -> u8 {
    let value = i32::from(coefficient.wrapping_mul(step) << FLAT_SHIFT);
    (((value + 16) >> 5).clamp(-128, 127) + 128) as u8
}

/// The samples of one block.
#[inline(always)]
pub fn block(coefficients: &[i16; 64], steps: &[i16; 64]) -> [[u8; 8]; 8] {
    let mut rows = [[0i16; 8]; 8];
    for (y, row) in rows.iter_mut().enumerate() {
        for (x, value) in row.iter_mut().enumerate() {
            *value = coefficients[8 * y + x].wrapping_mul(steps[8 * y + x]);
        }
    }
    let middle = if coefficients[8..].iter().all(|&c| c == 0) {
        [rows[0].map(|value| value << FLAT_SHIFT); 8]
    } else {
        pass(&rows, SHIFT[0])
    };
    let out = transposed(&pass(&transposed(&middle), SHIFT[1]));
    out.map(|row| row.map(|value| (value.clamp(-128, 127) + 128) as u8))
}

fn transposed(rows: &[[i16; 8]; 8]) -> [[i16; 8]; 8] {
    std::array::from_fn(|y| std::array::from_fn(|x| rows[x][y]))
}

/// The transform of each of the 8 columns.
#[inline(always)]
fn pass(rows: &[[i16; 8]; 8], shift: u32) -> [[i16; 8]; 8] {
    let mut out = [[0; 8]; 8];
    for x in 0..8 {
        let column: [i16; 8] = std::array::from_fn(|y| rows[y][x]);
        for (y, value) in transform(column, shift).into_iter().enumerate() {
            out[y][x] = value;
        }
    }
    out
}

#[inline(always)]
fn transform(input: [i16; 8], shift: u32) -> [i16; 8] {
    use factors::*;
    let pair =
        |a: i16, b: i16, (fa, fb): (i32, i32)| (i32::from(a) * fa).wrapping_add(i32::from(b) * fb);
    let sum = |a: i32, b: i32| a.wrapping_add(b);
    let difference = |a: i32, b: i32| a.wrapping_sub(b);
    let [i0, i1, i2, i3, i4, i5, i6, i7] = input;
    let even0 = i32::from(i0.wrapping_add(i4)) << UNIT_SHIFT;
    let even1 = i32::from(i0.wrapping_sub(i4)) << UNIT_SHIFT;
    let (even2, even3) = (pair(i2, i6, EVEN_2), pair(i2, i6, EVEN_3));
    let even =
        [sum(even0, even3), sum(even1, even2), difference(even1, even2), difference(even0, even3)];
    let (sum3, sum4) = (i7.wrapping_add(i3), i5.wrapping_add(i1));
    let (z3, z4) = (pair(sum3, sum4, SUM_3), pair(sum3, sum4, SUM_4));
    let odd = [
        sum(pair(i7, i1, ODD_3), z4),
        sum(pair(i5, i3, ODD_2), z3),
        sum(pair(i5, i3, ODD_1), z4),
        sum(pair(i7, i1, ODD_0), z3),
    ];
    let round = 1 << (shift - 1);
    let scaled = |v: i32| (sum(v, round) >> shift).clamp(-32768, 32767) as i16;
    std::array::from_fn(|y| match y {
        0..4 => scaled(sum(even[y], odd[y])),
        _ => scaled(difference(even[7 - y], odd[7 - y])),
    })
}
