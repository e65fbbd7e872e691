//! Rows of samples: chroma upsampled by libjpeg's triangle filter, YCbCr turned into RGB.
//!
//! The filter weighs the nearer sample 3/4 and the farther 1/4 in each direction; its rounding
//! alternates between the two outputs of a sample, so that no bias builds up. At an edge the
//! outermost sample stands for its missing neighbour.

/// Doubles a row of `N = samples.len()` values, `near` and `far` being `3 * value + neighbour`
/// rounded by `round` to `shift` bits less.
#[inline(always)]
fn double(samples: &[u16], round: [u16; 2], shift: u32, out: &mut [u8]) {
    let n = samples.len();
    let mix = |near: u16, far: u16, round: u16| ((3 * near + far + round) >> shift) as u8;
    let (out, _) = out[..2 * n].as_chunks_mut::<2>();
    let inner = samples.iter().zip(&samples[1..]).zip(&samples[2..]);
    for (pair, ((&left, &here), &right)) in out[1..].iter_mut().zip(inner) {
        *pair = [mix(here, left, round[0]), mix(here, right, round[1])];
    }
    let (first, last) = (samples[0], samples[n - 1]);
    out[0] = [mix(first, first, round[0]), mix(first, samples[1], round[1])];
    out[n - 1] = [mix(last, samples[n - 2], round[0]), mix(last, last, round[1])];
}

/// How a component is brought to full size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upsampling {
    pub across: bool,
    pub down: bool,
    /// The triangle filter; components at most 2 wide that are doubled across are repeated.
    pub smooth: bool,
}

impl Upsampling {
    pub fn none(self) -> bool {
        !self.across && !self.down
    }
}

/// Upsamples one row. `near` is the row of the component that holds the output row, `far` the
/// neighbour it is nearer to and `below` whether that one lies below. `sums` is scratch of at
/// least the length of `near`, `out` of twice that.
#[inline(always)]
pub fn upsample(
    how: Upsampling,
    near: &[u8],
    far: &[u8],
    below: bool,
    sums: &mut [u16],
    out: &mut [u8],
) {
    let n = near.len();
    let sums = &mut sums[..n];
    match how {
        Upsampling { across: true, smooth: false, .. } => {
            for (pair, &value) in out[..2 * n].as_chunks_mut::<2>().0.iter_mut().zip(near) {
                *pair = [value; 2];
            }
        }
        Upsampling { across: true, down: false, .. } => {
            for (sum, &value) in sums.iter_mut().zip(near) {
                *sum = u16::from(value);
            }
            double(sums, [1, 2], 2, out);
        }
        Upsampling { across: true, down: true, .. } => {
            for ((sum, &near), &far) in sums.iter_mut().zip(near).zip(&far[..n]) {
                *sum = 3 * u16::from(near) + u16::from(far);
            }
            double(sums, [8, 7], 4, out);
        }
        Upsampling { down: true, smooth: true, .. } => {
            let round = if below { 2 } else { 1 };
            for ((out, &near), &far) in out[..n].iter_mut().zip(near).zip(&far[..n]) {
                *out = ((3 * u16::from(near) + u16::from(far) + round) >> 2) as u8;
            }
        }
        _ => out[..n].copy_from_slice(near),
    }
}

/// Factors of the conversion of ITU-T T.871 (JFIF) with a fraction of 16 bits, less the whole
/// part that the vector form adds without multiplying.
pub mod conversion {
    /// Red: 1.402 Cr, less 1.
    pub const RED_CR: i32 = 91881 - (1 << 16);
    /// Green: -0.34414 Cb.
    pub const GREEN_CB: i32 = -22554;
    /// Green: -0.71414 Cr, plus 1.
    pub const GREEN_CR: i32 = (1 << 16) - 46802;
    /// Blue: 1.772 Cb, less 2.
    pub const BLUE_CB: i32 = 116130 - (2 << 16);
}

/// One pixel of YCbCr as RGB.
#[inline(always)]
pub fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    use conversion::*;
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + cr + ((cr * RED_CR + HALF) >> 16);
    let green = y - cr + ((cb * GREEN_CB + cr * GREEN_CR + HALF) >> 16);
    let blue = y + 2 * cb + ((cb * BLUE_CB + HALF) >> 16);
    [red, green, blue].map(|value| value.clamp(0, 255) as u8)
}

/// Writes pixels of three rows of samples, converted from YCbCr or as they are.
#[inline(always)]
pub fn interleave(ycbcr: bool, rows: [&[u8]; 3], out: &mut [u8]) {
    let [a, b, c] = rows;
    let (out, _) = out.as_chunks_mut::<3>();
    for (((pixel, &a), &b), &c) in out.iter_mut().zip(a).zip(b).zip(c) {
        *pixel = if ycbcr { rgb(a, b, c) } else { [a, b, c] };
    }
}
