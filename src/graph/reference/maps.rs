//! Ops over maps `[rows, H, W, C]`.

use super::tokens::{activate, dot};
use crate::graph::{Act, Interpolation, Shape, Window};

/// A dense `[rows, H, W, C]` tensor.
pub(super) struct Map {
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub values: Vec<f32>,
}

impl Map {
    fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.h * self.w * self.c)
    }
}

/// The channels of position `(y, x)` of a row, or `None` in the padding.
pub(super) fn at<'a>(
    map: &Map,
    row: &'a [f32],
    y: Option<usize>,
    x: Option<usize>,
) -> Option<&'a [f32]> {
    let (y, x) = (y.filter(|&y| y < map.h)?, x.filter(|&x| x < map.w)?);
    Some(&row[(y * map.w + x) * map.c..][..map.c])
}

impl Window {
    /// The input coordinate of tap `tap` of output `o`, `None` left of the map.
    fn tap(&self, axis: usize, o: usize, tap: usize) -> Option<usize> {
        (o * self.stride[axis] + tap * self.dilation[axis]).checked_sub(self.pad[axis])
    }
}

pub(super) fn normalize(pixels: &[f32], mean: [f32; 3], std: [f32; 3]) -> Vec<f32> {
    let unit = |(i, &x): (usize, &f32)| (x / 255.0 - mean[i % 3]) / std[i % 3];
    pixels.iter().enumerate().map(unit).collect()
}

/// `y[p, q, k] = sum over r, s, c of x[p stride + r dilation - pad, .., c] w[k, r, s, c]`.
pub(super) fn conv2d(x: &Map, out: Shape, window: Window, weight: &[f32]) -> Vec<f64> {
    let Shape::Map { h, w, c: k } = out else { unreachable!("inferred as a map") };
    let taps = window.kernel[0] * window.kernel[1];
    let mut sums = Vec::new();
    for row in x.rows() {
        for (p, q) in grid(h, w) {
            let mut sum = vec![0f64; k];
            for (r, s) in grid(window.kernel[0], window.kernel[1]) {
                let pixel = at(x, row, window.tap(0, p, r), window.tap(1, q, s));
                let Some(pixel) = pixel else { continue };
                let tap = r * window.kernel[1] + s;
                for (sum, filter) in sum.iter_mut().zip(weight.chunks_exact(taps * x.c)) {
                    *sum += dot(pixel, &filter[tap * x.c..][..x.c]);
                }
            }
            sums.extend(sum);
        }
    }
    sums
}

pub(super) fn batch_norm(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, act: Act) -> Vec<f32> {
    let c = gamma.len();
    let n = (x.len() / c) as f64;
    let channel = |i: usize| x.iter().skip(i).step_by(c).map(|&x| x as f64);
    let moments: Vec<(f64, f64)> = (0..c)
        .map(|i| {
            let mean = channel(i).sum::<f64>() / n;
            (mean, channel(i).map(|x| (x - mean).powi(2)).sum::<f64>() / n)
        })
        .collect();
    (x.iter().enumerate())
        .map(|(i, &x)| {
            let (mean, variance) = moments[i % c];
            let unit = (x as f64 - mean) / (variance + eps as f64).sqrt();
            activate(act, unit * gamma[i % c] as f64 + beta[i % c] as f64)
        })
        .collect()
}

pub(super) fn max_pool(x: &Map, out: Shape, window: Window) -> Vec<f32> {
    windows(x, out, window, |taps, c| {
        let values = taps.iter().flatten().map(|pixel| pixel[c]);
        values.reduce(|a, b| if b > a || b.is_nan() { b } else { a }).unwrap_or(f32::NEG_INFINITY)
    })
}

pub(super) fn avg_pool(x: &Map, out: Shape, window: Window, count_include_pad: bool) -> Vec<f32> {
    windows(x, out, window, |taps, c| {
        let inside = taps.iter().flatten();
        let count = if count_include_pad { taps.len() } else { inside.clone().count() };
        (inside.map(|pixel| pixel[c] as f64).sum::<f64>() / count as f64) as f32
    })
}

/// One value for each output position and channel from its taps, `None` where they are padding.
pub(super) fn windows(
    x: &Map,
    out: Shape,
    window: Window,
    pool: impl Fn(&[Option<&[f32]>], usize) -> f32,
) -> Vec<f32> {
    let Shape::Map { h, w, c } = out else { unreachable!("inferred as a map") };
    let mut values = Vec::new();
    for row in x.rows() {
        for (p, q) in grid(h, w) {
            let taps: Vec<Option<&[f32]>> = grid(window.kernel[0], window.kernel[1])
                .map(|(r, s)| at(x, row, window.tap(0, p, r), window.tap(1, q, s)))
                .collect();
            values.extend((0..c).map(|c| pool(&taps, c)));
        }
    }
    values
}

/// Output `i` of `n` averages inputs `floor(i len / n) .. ceil((i + 1) len / n)`.
pub(super) fn adaptive_avg_pool(x: &Map, h: usize, w: usize) -> Vec<f32> {
    let range = |i: usize, n: usize, len: usize| i * len / n..((i + 1) * len).div_ceil(n);
    let mut values = Vec::new();
    for row in x.rows() {
        for (p, q) in grid(h, w) {
            let (ys, xs) = (range(p, h, x.h), range(q, w, x.w));
            let count = (ys.len() * xs.len()) as f64;
            for c in 0..x.c {
                let pixels = ys.clone().flat_map(|y| xs.clone().map(move |x| (y, x)));
                let sum: f64 = pixels.map(|(i, j)| row[(i * x.w + j) * x.c + c] as f64).sum();
                values.push((sum / count) as f32);
            }
        }
    }
    values
}

pub(super) fn flatten(x: &Map) -> Vec<f32> {
    let channel = |row: &[f32], c: usize| row.iter().skip(c).step_by(x.c).copied().collect();
    x.rows().flat_map(|row| (0..x.c).flat_map(move |c| -> Vec<f32> { channel(row, c) })).collect()
}

pub(super) fn grid(h: usize, w: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..h).flat_map(move |y| (0..w).map(move |x| (y, x)))
}

/// The pixels of each `side x side` square, in order (r, s, c), as the channels of one position.
pub(super) fn patches(values: &[f32], pixels: Shape, side: usize) -> Vec<f32> {
    let Shape::Pixels { h, w } = pixels else { unreachable!("inferred as pixels") };
    let mut out = Vec::new();
    for image in values.chunks_exact(h * w * 3) {
        for (p, q) in grid(h / side, w / side) {
            for (r, s) in grid(side, side) {
                let at = (p * side + r) * w + q * side + s;
                out.extend(&image[at * 3..][..3]);
            }
        }
    }
    out
}

/// `y[2 i + r, 2 j + s, k] = sum over c of x[i, j, c] w[k, r, s, c]`.
pub(super) fn conv_transpose_2x2(x: &Map, weight: &[f32]) -> Vec<f64> {
    let mut sums = Vec::new();
    for row in x.rows() {
        for (p, q) in grid(2 * x.h, 2 * x.w) {
            let pixel = &row[(p / 2 * x.w + q / 2) * x.c..][..x.c];
            let tap = p % 2 * 2 + q % 2;
            let filters = weight.chunks_exact(4 * x.c);
            sums.extend(filters.map(|filter| dot(pixel, &filter[tap * x.c..][..x.c])));
        }
    }
    sums
}

/// As PyTorch's `interpolate(size = (h, w))`.
pub(super) fn upsample(x: &Map, h: usize, w: usize, mode: Interpolation) -> Vec<f32> {
    let mut values = Vec::new();
    for row in x.rows() {
        for (p, q) in grid(h, w) {
            let (ys, xs) = (mode.taps(p, x.h, h), mode.taps(q, x.w, w));
            for c in 0..x.c {
                let value = |y: usize, x_at: usize| row[(y * x.w + x_at) * x.c + c] as f64;
                let line = |y: usize| {
                    let (left, right) = (value(y, xs.first), value(y, xs.second));
                    left + (right - left) * xs.fraction as f64
                };
                let (top, bottom) = (line(ys.first), line(ys.second));
                values.push((top + (bottom - top) * ys.fraction as f64) as f32);
            }
        }
    }
    values
}
