//! Resampling that equals Pillow's `Image.resize` bit for bit.
//!
//! Pillow convolves along the rows and then along the columns, with filter weights in fixed point
//! and a rounding to u8 between the two passes; when shrinking, the filter's support grows with
//! the factor (antialias). Results therefore depend on the order of the passes and on the
//! rounding of every weight, both of which are kept here. (Pillow 13 swaps the passes for some
//! pictures whose axes are scaled differently; the order kept is that of all releases before it,
//! and of every release when both axes have the same factor, as for tiles.)
//!
//! One loop serves both passes: a weighted sum of rows. For the first pass a strip of the picture
//! is transposed, so that its columns become rows and neighbouring lanes are independent.

use crate::error::{Error, Result};
use crate::recipe::Interpolation;

/// Fraction bits of a weight: 32 less 8 for the pixel and 2 for overshoot and sign.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// A weight is split here so that both parts fit 16 bits and multiply in one instruction.
const SPLIT_BITS: u32 = 11;

/// Rows of the picture that the first pass transposes at once.
const STRIP: usize = 16;

/// Lanes summed in registers at once.
const LANES: usize = 16;

/// Largest side of an input or output, in pixels.
const MAX_SIDE: usize = 1 << 20;

/// A resize between two fixed sizes: weights computed once, run many times from any thread.
#[derive(Clone, Debug)]
pub struct Resampler {
    in_size: [usize; 2],
    out_size: [usize; 2],
    /// Absent when the pass would copy.
    horizontal: Option<Axis>,
    vertical: Option<Axis>,
}

/// The filter of one axis: of each output sample the first input sample and their number, and as
/// many weights with 22 fraction bits as the widest has samples.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the type's text names its fields")]
pub struct FilterTable {
    /// Input samples there are.
    pub length: usize,
    pub bounds: Vec<(usize, usize)>,
    pub weights: Vec<i32>,
}

/// Filter weights along one axis.
#[derive(Clone, Debug)]
struct Axis {
    /// First input sample and number of weights, one pair an output sample.
    bounds: Vec<(usize, usize)>,
    /// `taps` weights an output sample, as (high, low) halves.
    weights: Vec<[i16; 2]>,
    taps: usize,
}

impl Resampler {
    /// A resize of a whole `in_w x in_h` picture to `out_w x out_h` pixels.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when a side is zero or above 2^20.
    pub fn new(
        in_w: usize,
        in_h: usize,
        out_w: usize,
        out_h: usize,
        filter: Interpolation,
    ) -> Result<Resampler> {
        let whole = [0.0, 0.0, in_w as f32, in_h as f32];
        Resampler::with_box(in_w, in_h, whole, out_w, out_h, filter)
    }

    /// A resize of the part `[left, top, right, bottom]` of a picture, in pixels and fractions of
    /// them: Pillow's `box` argument.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when a side is zero or above 2^20, or the box is empty or overruns.
    pub fn with_box(
        in_w: usize,
        in_h: usize,
        part: [f32; 4],
        out_w: usize,
        out_h: usize,
        filter: Interpolation,
    ) -> Result<Resampler> {
        if [in_w, in_h, out_w, out_h].iter().any(|&n| n == 0 || n > MAX_SIDE) {
            return Err(Error::usage(format!(
                "resize {in_w} x {in_h} to {out_w} x {out_h}: sides must lie between 1 and {MAX_SIDE}"
            )));
        }
        let [left, top, right, bottom] = part;
        let inside = 0.0 <= left && left < right && right <= in_w as f32;
        if !(inside && 0.0 <= top && top < bottom && bottom <= in_h as f32) {
            return Err(Error::usage(format!(
                "resize: box {part:?} is not inside {in_w} x {in_h}"
            )));
        }
        let axis = |length: usize, from: f32, to: f32, out: usize| {
            let copies = length == out && from == 0.0 && to == out as f32;
            (!copies).then(|| Axis::new(length, from, to, out, filter))
        };
        Ok(Resampler {
            in_size: [in_w, in_h],
            out_size: [out_w, out_h],
            horizontal: axis(in_w, left, right, out_w),
            vertical: axis(in_h, top, bottom, out_h),
        })
    }

    /// The filter of each axis, `[vertical, horizontal]`, as whole numbers: for a device that must
    /// give the same bytes. Where a pass would copy, its filter is one weight of 1.
    pub fn filters(&self) -> [FilterTable; 2] {
        let [in_w, in_h] = self.in_size;
        let table = |axis: &Option<Axis>, length: usize| match axis {
            Some(axis) => {
                let whole = |w: &[i16; 2]| (i32::from(w[0]) << SPLIT_BITS) + i32::from(w[1]);
                let weights = axis.weights.iter().map(whole).collect();
                FilterTable { length, bounds: axis.bounds.clone(), weights }
            }
            None => FilterTable {
                length,
                bounds: (0..length).map(|i| (i, 1)).collect(),
                weights: vec![1 << PRECISION_BITS; length],
            },
        };
        [table(&self.vertical, in_h), table(&self.horizontal, in_w)]
    }

    /// `[W, H]` of the output.
    pub fn out_size(&self) -> [usize; 2] {
        self.out_size
    }

    /// Resizes `src`, `[H, W, 3]` u8, into `dst`. `scratch` grows to what is needed and can be
    /// kept for the next call.
    ///
    /// # Panics
    /// When `src` or `dst` does not have the length of the sizes given at construction.
    pub fn run(&self, src: &[u8], dst: &mut [u8], scratch: &mut Vec<u8>) {
        let ([in_w, in_h], [out_w, out_h]) = (self.in_size, self.out_size);
        assert_eq!(src.len(), in_w * in_h * 3, "source of a resize");
        assert_eq!(dst.len(), out_w * out_h * 3, "destination of a resize");
        match (&self.horizontal, &self.vertical) {
            (None, None) => dst.copy_from_slice(src),
            (None, Some(vertical)) => vertical.run(src, 0, in_w * 3, dst),
            (Some(horizontal), None) => {
                grow(scratch, strip_bytes(in_w, out_w));
                horizontal.run_rows(src, in_w, dst, out_w, scratch);
            }
            (Some(horizontal), Some(vertical)) => {
                // Only rows that the second pass reads.
                let (first, end) = vertical.span();
                let between_bytes = (end - first) * out_w * 3;
                grow(scratch, between_bytes + strip_bytes(in_w, out_w));
                let (between, strip) = scratch.split_at_mut(between_bytes);
                let rows = &src[first * in_w * 3..end * in_w * 3];
                horizontal.run_rows(rows, in_w, between, out_w, strip);
                vertical.run(between, first, out_w * 3, dst);
            }
        }
    }
}

/// Bytes of the two transposed strips of the first pass.
fn strip_bytes(in_w: usize, out_w: usize) -> usize {
    (in_w + out_w) * 3 * STRIP
}

fn grow(scratch: &mut Vec<u8>, bytes: usize) {
    if scratch.len() < bytes {
        scratch.resize(bytes, 0);
    }
}

impl Axis {
    /// Pillow's weights for `out` samples from the interval `from..to` of `length` samples.
    fn new(length: usize, from: f32, to: f32, out: usize, filter: Interpolation) -> Axis {
        if filter == Interpolation::Nearest {
            return Axis::nearest(length, from, to, out);
        }
        // Pillow subtracts in f32 before it widens.
        let scale = f64::from(to - from) / out as f64;
        let filter_scale = scale.max(1.0);
        let support = radius(filter) * filter_scale;
        let taps = support.ceil() as usize * 2 + 1;
        let step = 1.0 / filter_scale;
        let mut axis =
            Axis { bounds: Vec::with_capacity(out), weights: vec![[0; 2]; out * taps], taps };
        let mut exact = vec![0f64; taps];
        for (i, weights) in axis.weights.chunks_exact_mut(taps).enumerate() {
            let center = f64::from(from) + (i as f64 + 0.5) * scale;
            // `as` truncates towards zero and saturates, as Pillow's cast and clamp do together.
            let first = (center - support + 0.5) as usize;
            let count = ((center + support + 0.5) as usize).min(length) - first;
            let mut total = 0.0;
            for (k, weight) in exact[..count].iter_mut().enumerate() {
                *weight = value(filter, ((k + first) as f64 - center + 0.5) * step);
                total += *weight;
            }
            for (weight, fixed) in exact[..count].iter_mut().zip(weights) {
                if total != 0.0 {
                    *weight /= total;
                }
                *fixed = split(*weight);
            }
            axis.bounds.push((first, count));
        }
        axis
    }

    /// The input sample under the middle of each output sample, one of weight 1. Pillow walks from
    /// middle to middle in f64, so that far ones differ from a product by its rounding.
    fn nearest(length: usize, from: f32, to: f32, out: usize) -> Axis {
        let scale = f64::from(to - from) / out as f64;
        let mut center = f64::from(from) + scale * 0.5;
        let mut bounds = Vec::with_capacity(out);
        for _ in 0..out {
            bounds.push(((center as usize).min(length - 1), 1));
            center += scale;
        }
        Axis { bounds, weights: vec![split(1.0); out], taps: 1 }
    }

    /// First input sample used and one past the last.
    fn span(&self) -> (usize, usize) {
        let first = self.bounds.first().map_or(0, |b| b.0);
        (first, self.bounds.last().map_or(first, |b| b.0 + b.1))
    }

    /// Weighted sums of the rows of `src`, each `len` bytes, the first of which is input sample
    /// `first`; one row of `dst` an output sample.
    fn run(&self, src: &[u8], first: usize, len: usize, dst: &mut [u8]) {
        let outputs = self.bounds.iter().zip(self.weights.chunks_exact(self.taps));
        for ((&(start, count), weights), out) in outputs.zip(dst.chunks_exact_mut(len)) {
            let rows = &src[(start - first) * len..][..count * len];
            weighted_sum(rows, len, &weights[..count], out);
        }
    }

    /// The same along the rows of a picture `in_w` pixels wide, through transposed strips.
    fn run_rows(&self, src: &[u8], in_w: usize, dst: &mut [u8], out_w: usize, strip: &mut [u8]) {
        let (columns, sums) = strip.split_at_mut(in_w * 3 * STRIP);
        let sums = &mut sums[..out_w * 3 * STRIP];
        let pictures = src.chunks(STRIP * in_w * 3).zip(dst.chunks_mut(STRIP * out_w * 3));
        for (src, dst) in pictures {
            for (r, row) in src.chunks_exact(in_w * 3).enumerate() {
                for (lanes, &byte) in columns.chunks_exact_mut(STRIP).zip(row) {
                    lanes[r] = byte;
                }
            }
            self.run(columns, 0, 3 * STRIP, sums);
            for (r, row) in dst.chunks_exact_mut(out_w * 3).enumerate() {
                for (byte, lanes) in row.iter_mut().zip(sums.chunks_exact(STRIP)) {
                    *byte = lanes[r];
                }
            }
        }
    }
}

/// Half-width of a filter in input samples, when not shrinking.
fn radius(filter: Interpolation) -> f64 {
    match filter {
        Interpolation::Bilinear => 1.0,
        Interpolation::Bicubic => 2.0,
        Interpolation::Nearest => 0.0,
    }
}

/// The filter at `x`; the order of operations is Pillow's, because weights are rounded.
fn value(filter: Interpolation, x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    match filter {
        Interpolation::Bilinear if x < 1.0 => 1.0 - x,
        Interpolation::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        Interpolation::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

/// A weight in fixed point, rounded half away from zero, as `high * 2^SPLIT_BITS + low`.
fn split(weight: f64) -> [i16; 2] {
    let fixed = weight * f64::from(1u32 << PRECISION_BITS);
    let fixed = (if weight < 0.0 { fixed - 0.5 } else { fixed + 0.5 }) as i32;
    [(fixed >> SPLIT_BITS) as i16, (fixed & ((1 << SPLIT_BITS) - 1)) as i16]
}

/// `out[lane] = clamp(sum over k of weight k * rows[k * len + lane])`, rounded half up.
fn weighted_sum(rows: &[u8], len: usize, weights: &[[i16; 2]], out: &mut [u8]) {
    let (whole, rest) = out.as_chunks_mut::<LANES>();
    for (i, sums) in whole.iter_mut().enumerate() {
        sum_lanes(&rows[i * LANES..], len, weights, sums);
    }
    let done = len - rest.len();
    for (i, sum) in rest.iter_mut().enumerate() {
        sum_lanes(&rows[done + i..], len, weights, std::array::from_mut(sum));
    }
}

/// Sums of neighbouring lanes. Weights sum to one and Pillow's bits leave room, so nothing
/// overflows; wrapping operations keep the loops free of checks in every build.
#[inline(always)]
fn sum_lanes<const N: usize>(rows: &[u8], stride: usize, weights: &[[i16; 2]], out: &mut [u8; N]) {
    let mut high = [0i32; N];
    let mut low = [1i32 << (PRECISION_BITS - 1); N];
    let pixels = rows.chunks(stride).filter_map(|row| row.first_chunk::<N>());
    for (pixels, &[h, l]) in pixels.zip(weights) {
        for lane in 0..N {
            let pixel = i32::from(pixels[lane]);
            high[lane] = high[lane].wrapping_add(pixel.wrapping_mul(i32::from(h)));
            low[lane] = low[lane].wrapping_add(pixel.wrapping_mul(i32::from(l)));
        }
    }
    for lane in 0..N {
        let sum = (high[lane] << SPLIT_BITS).wrapping_add(low[lane]);
        out[lane] = (sum >> PRECISION_BITS).clamp(0, 255) as u8;
    }
}
