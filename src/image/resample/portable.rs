//! The two passes for any processor.
//!
//! One loop serves both: a weighted sum of rows. For the first pass a strip of the picture is
//! transposed, so that its columns become rows and neighbouring lanes are independent.

use super::axis::{Axis, PRECISION_BITS};

/// Rows of the picture that the first pass transposes at once.
const STRIP: usize = 16;

/// Lanes summed in registers at once.
const LANES: usize = 16;

/// Bytes of scratch that [`along_rows`] needs: two transposed strips.
pub fn strip_bytes(in_w: usize, out_w: usize) -> usize {
    (in_w + out_w) * 3 * STRIP
}

/// Weighted sums along the rows of a picture `in_w` pixels wide, through transposed strips.
pub fn along_rows(axis: &Axis, src: &[u8], in_w: usize, dst: &mut [u8], strip: &mut [u8]) {
    let out_w = axis.bounds.len();
    let (columns, sums) = strip.split_at_mut(in_w * 3 * STRIP);
    let sums = &mut sums[..out_w * 3 * STRIP];
    let pictures = src.chunks(STRIP * in_w * 3).zip(dst.chunks_mut(STRIP * out_w * 3));
    for (src, dst) in pictures {
        for (r, row) in src.chunks_exact(in_w * 3).enumerate() {
            for (lanes, &byte) in columns.chunks_exact_mut(STRIP).zip(row) {
                lanes[r] = byte;
            }
        }
        of_rows(axis, columns, 0, 3 * STRIP, sums);
        for (r, row) in dst.chunks_exact_mut(out_w * 3).enumerate() {
            for (byte, lanes) in row.iter_mut().zip(sums.chunks_exact(STRIP)) {
                *byte = lanes[r];
            }
        }
    }
}

/// Weighted sums of the rows of `src`, each `len` bytes, the first of which is input sample
/// `first`; one row of `dst` an output sample.
pub fn of_rows(axis: &Axis, src: &[u8], first: usize, len: usize, dst: &mut [u8]) {
    for (i, out) in dst.chunks_exact_mut(len).enumerate() {
        let (start, weights) = axis.sample(i);
        let rows = &src[(start - first) * len..][..weights.len() * len];
        let (whole, rest) = out.as_chunks_mut::<LANES>();
        for (i, sums) in whole.iter_mut().enumerate() {
            sum_lanes(&rows[i * LANES..], len, weights, sums);
        }
        let done = len - rest.len();
        for (i, sum) in rest.iter_mut().enumerate() {
            sum_lanes(&rows[done + i..], len, weights, std::array::from_mut(sum));
        }
    }
}

/// `out[lane] = clamp(sum over k of weight k * rows[k * stride + lane])`, rounded half up. Weights
/// sum to one and Pillow's bits leave room, so nothing overflows; wrapping operations keep the loops
/// free of checks in every build.
#[inline(always)]
fn sum_lanes<const N: usize>(rows: &[u8], stride: usize, weights: &[i32], out: &mut [u8; N]) {
    let mut sums = [1i32 << (PRECISION_BITS - 1); N];
    let pixels = rows.chunks(stride).filter_map(|row| row.first_chunk::<N>());
    for (pixels, &weight) in pixels.zip(weights) {
        for lane in 0..N {
            sums[lane] = sums[lane].wrapping_add(i32::from(pixels[lane]).wrapping_mul(weight));
        }
    }
    for lane in 0..N {
        out[lane] = (sums[lane] >> PRECISION_BITS).clamp(0, 255) as u8;
    }
}
