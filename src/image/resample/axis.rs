//! Pillow's filter weights along one axis.

use crate::recipe::Interpolation;

/// Fraction bits of a weight: 32 less 8 for the pixel and 2 for overshoot and sign.
pub const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Filter weights along one axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// First input sample and number of weights, one pair an output sample.
    pub bounds: Vec<(usize, usize)>,
    /// `taps` weights an output sample, with [`PRECISION_BITS`] fraction bits.
    pub weights: Vec<i32>,
    pub taps: usize,
}

impl Axis {
    /// Pillow's weights for `out` samples from the interval `from..to` of `length` samples.
    pub fn new(length: usize, from: f32, to: f32, out: usize, filter: Interpolation) -> Axis {
        if filter == Interpolation::Nearest {
            return Axis::nearest(length, from, to, out);
        }
        // Pillow subtracts in f32 before it widens.
        let scale = f64::from(to - from) / out as f64;
        let filter_scale = scale.max(1.0);
        let support = radius(filter) * filter_scale;
        let taps = support.ceil() as usize * 2 + 1;
        let step = 1.0 / filter_scale;
        let mut axis = Axis { bounds: Vec::with_capacity(out), weights: vec![0; out * taps], taps };
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
            for (weight, whole) in exact[..count].iter_mut().zip(weights) {
                if total != 0.0 {
                    *weight /= total;
                }
                *whole = fixed(*weight);
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
        Axis { bounds, weights: vec![fixed(1.0); out], taps: 1 }
    }

    /// First input sample and weights of an output sample.
    pub fn sample(&self, i: usize) -> (usize, &[i32]) {
        let (first, count) = self.bounds[i];
        (first, &self.weights[i * self.taps..][..count])
    }

    /// First input sample used and one past the last.
    pub fn span(&self) -> (usize, usize) {
        let first = self.bounds.first().map_or(0, |b| b.0);
        (first, self.bounds.last().map_or(first, |b| b.0 + b.1))
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

/// A weight in fixed point, rounded half away from zero.
fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1u32 << PRECISION_BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}
