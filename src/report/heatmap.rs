//! Attention over the slide, as CLAM's `visHeatmap` draws it (Lu et al. 2021).
//!
//! Scores become percentiles (average rank / N), tiles are laid on the picture of a low level with
//! corners and sides rounded up, overlapping tiles are averaged, and the colour is blended over
//! the slide where there is tissue.

use super::colormap::Colormap;
use super::{draw, font};
use crate::error::{Error, Result};
use crate::image::{Map, RgbImage};
use serde::{Deserialize, Serialize};

/// How a heatmap is drawn.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Turn scores into percentiles first; otherwise they must lie in 0..=100 already.
    pub percentile: bool,
    /// Colours.
    pub colormap: Colormap,
    /// Weight of the colour against the slide, 0..=1.
    pub alpha: f64,
    /// Smooth with a Gaussian about as wide as a tile's step.
    pub blur: bool,
    /// Part of a tile shared with its neighbour, 0..1; sets the width of the blur.
    pub overlap: f64,
    /// Draw on white instead of the slide.
    pub blank_canvas: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            percentile: true,
            colormap: Colormap::Coolwarm,
            alpha: 0.4,
            blur: false,
            overlap: 0.0,
            blank_canvas: false,
        }
    }
}

/// The picture under the colours.
#[derive(Clone, Copy, Debug)]
pub struct Canvas<'a> {
    /// `[H, W]` pixels of one level.
    pub image: &'a RgbImage,
    /// Level-0 pixels per pixel of the picture, x and y.
    pub downsample: [f64; 2],
    /// `[H, W]`, true where there is tissue.
    pub tissue: &'a [bool],
}

/// Draws `scores` (`[N]`) of square tiles at `coords` (`[N]` top-left corners, level-0 pixels) of
/// `side` level-0 pixels.
///
/// # Errors
/// [`crate::Kind::Usage`] for sizes that do not fit together, a score that is not finite (naming
/// its tile) or an option out of range.
pub fn render(
    canvas: &Canvas,
    coords: &[[f64; 2]],
    side: f64,
    scores: &[f64],
    options: &Options,
) -> Result<RgbImage> {
    check(canvas, coords, side, scores, options)?;
    let (width, height) = (canvas.image.width, canvas.image.height);
    let scale = canvas.downsample.map(|d| 1.0 / d);
    let patch = scale.map(|s| (side * s).ceil() as usize);
    let blocks: Vec<Block> =
        coords.iter().map(|&corner| Block::new(corner, scale, patch, [width, height])).collect();
    let percentiles = options.percentile.then(|| percentiles(scores));
    let scores = percentiles.as_deref().unwrap_or(scores);

    let (mut overlay, painted) = average(&blocks, scores, width, height);
    if options.blur {
        let kernel = patch.map(|p| (p as f64 * (1.0 - options.overlap)) as usize * 2 + 1);
        overlay = gaussian_blur(&overlay, [width, height], kernel);
    }
    let mut out = if options.blank_canvas {
        RgbImage::filled(width, height, [255; 3])
    } else {
        canvas.image.clone()
    };
    let (pixels, _) = out.data.as_chunks_mut::<3>();
    for (i, pixel) in pixels.iter_mut().enumerate() {
        if painted[i] && canvas.tissue[i] {
            let color = options.colormap.color(overlay[i]);
            for (under, over) in pixel.iter_mut().zip(color) {
                *under = blend(over, *under, options.alpha);
            }
        }
    }
    Ok(out)
}

fn check(
    canvas: &Canvas,
    coords: &[[f64; 2]],
    side: f64,
    scores: &[f64],
    options: &Options,
) -> Result<()> {
    let (image, n) = (canvas.image, coords.len());
    let pixels = image.width.checked_mul(image.height);
    if pixels != Some(canvas.tissue.len())
        || pixels.and_then(|p| p.checked_mul(3)) != Some(image.data.len())
    {
        return Err(Error::usage(format!(
            "heatmap: {} x {} pixels, {} bytes, tissue mask of {}",
            image.width,
            image.height,
            image.data.len(),
            canvas.tissue.len()
        )));
    }
    if scores.len() != n {
        return Err(Error::usage(format!("heatmap: {} scores for {n} tiles", scores.len())));
    }
    let bad = (0..n).find(|&i| !scores[i].is_finite() || !coords[i].iter().all(|v| v.is_finite()));
    if let Some(i) = bad {
        let what = format!("heatmap: tile {i} at {:?} has score {}", coords[i], scores[i]);
        return Err(Error::usage(what));
    }
    let positive = |v: f64| v.is_finite() && v > 0.0;
    if !canvas.downsample.into_iter().chain([side]).all(positive) {
        return Err(Error::usage("heatmap: tile side and downsample must be positive"));
    }
    if !(0.0..=1.0).contains(&options.alpha) || !(0.0..1.0).contains(&options.overlap) {
        return Err(Error::usage("heatmap: alpha must lie in 0..=1 and overlap in 0..1"));
    }
    Ok(())
}

/// A tile on the picture, cut off at its edges; ends exclusive.
struct Block {
    x: std::ops::Range<usize>,
    y: std::ops::Range<usize>,
}

impl Block {
    fn new(corner: [f64; 2], scale: [f64; 2], patch: [usize; 2], size: [usize; 2]) -> Self {
        let range = |axis: usize| {
            let start = (corner[axis] * scale[axis]).ceil();
            let end = start + patch[axis] as f64;
            let cut = |v: f64| v.clamp(0.0, size[axis] as f64) as usize;
            cut(start)..cut(end)
        };
        Block { x: range(0), y: range(1) }
    }
}

/// `[H, W]` mean of the tiles over a pixel, 1 for a score of 100, and whether a pixel is coloured.
/// Scores below 0 count as 0 and colour nothing themselves.
fn average(blocks: &[Block], scores: &[f64], width: usize, height: usize) -> (Vec<f64>, Vec<bool>) {
    let mut sum = vec![0.0; width * height];
    let mut count = vec![0u32; width * height];
    let mut painted = vec![false; width * height];
    for (block, score) in blocks.iter().zip(scores) {
        let value = score.max(0.0) / 100.0;
        for y in block.y.clone() {
            for i in y * width + block.x.start..y * width + block.x.end {
                sum[i] += value;
                count[i] += 1;
                painted[i] |= *score >= 0.0;
            }
        }
    }
    for (sum, count) in sum.iter_mut().zip(count) {
        if count > 0 {
            *sum /= f64::from(count);
        }
    }
    (sum, painted)
}

/// As OpenCV's `addWeighted`: f32, one fused multiply-add, half to even.
fn blend(over: u8, under: u8, alpha: f64) -> u8 {
    let (alpha, beta) = (alpha as f32, (1.0 - alpha) as f32);
    f32::from(over).mul_add(alpha, f32::from(under) * beta).round_ties_even() as u8
}

/// Average rank over N, times 100, as `scipy.stats.rankdata(scores, "average") / N * 100`.
pub fn percentiles(scores: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let mut out = vec![0.0; scores.len()];
    let mut below = 0;
    for ties in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let rank = below as f64 + (ties.len() as f64 + 1.0) / 2.0;
        for &i in ties {
            out[i] = rank / scores.len() as f64 * 100.0;
        }
        below += ties.len();
    }
    out
}

/// Percentile of each score among `reference`, as `scipy.stats.percentileofscore(.., "rank")`: for
/// a fine map of overlapping tiles judged against the tiles without overlap. 0 without a reference.
pub fn percentiles_against(scores: &[f64], reference: &[f64]) -> Vec<f64> {
    let mut sorted = reference.to_vec();
    sorted.sort_by(f64::total_cmp);
    let percentile = |score: &f64| {
        let below = sorted.partition_point(|r| r < score);
        let not_above = sorted.partition_point(|r| r <= score);
        let tied = usize::from(not_above > below);
        (below + not_above + tied) as f64 * (50.0 / sorted.len().max(1) as f64)
    };
    scores.iter().map(percentile).collect()
}

/// As OpenCV's `GaussianBlur` with sigma 0: borders mirrored without repeating the edge pixel.
/// `size` is `[W, H]`, `kernel` the odd widths along x and y.
fn gaussian_blur(values: &[f64], [width, height]: [usize; 2], kernel: [usize; 2]) -> Vec<f64> {
    let mut rows = vec![0.0; values.len()];
    let kernel_x = gaussian_kernel(kernel[0]);
    let columns = reflections(width, kernel_x.len());
    for (row, out) in values.chunks_exact(width.max(1)).zip(rows.chunks_exact_mut(width.max(1))) {
        for (x, out) in out.iter_mut().enumerate() {
            *out = kernel_x.iter().zip(&columns[x..]).map(|(k, &from)| k * row[from]).sum();
        }
    }
    let mut out = vec![0.0; values.len()];
    let kernel_y = gaussian_kernel(kernel[1]);
    let lines = reflections(height, kernel_y.len());
    for (y, out) in out.chunks_exact_mut(width.max(1)).enumerate() {
        for (k, &from) in kernel_y.iter().zip(&lines[y..]) {
            for (out, value) in out.iter_mut().zip(&rows[from * width..]) {
                *out += k * value;
            }
        }
    }
    out
}

/// Index read at each position of an axis of `n` extended by half a kernel on both sides.
fn reflections(n: usize, kernel: usize) -> Vec<usize> {
    let (half, period) = ((kernel / 2) as i64, 2 * n as i64 - 2);
    let mirrored = |i: i64| match n {
        0 | 1 => 0,
        _ => {
            let i = i.rem_euclid(period);
            i.min(period - i) as usize
        }
    };
    (-half..n as i64 + half).map(mirrored).collect()
}

/// OpenCV's `getGaussianKernel(n, 0)`: fixed values up to 9, then sigma 0.3 ((n - 1) / 2 - 1) + 0.8.
fn gaussian_kernel(n: usize) -> Vec<f64> {
    let fixed: &[f64] = match n {
        1 => &[256.0],
        3 => &[64.0, 128.0, 64.0],
        5 => &[16.0, 64.0, 96.0, 64.0, 16.0],
        7 => &[8.0, 28.0, 56.0, 72.0, 56.0, 28.0, 8.0],
        9 => &[4.0, 13.0, 30.0, 51.0, 60.0, 51.0, 30.0, 13.0, 4.0],
        _ => &[],
    };
    if !fixed.is_empty() {
        return fixed.iter().map(|k| k / 256.0).collect();
    }
    let middle = (n as f64 - 1.0) / 2.0;
    let sigma = 0.3 * (middle - 1.0) + 0.8;
    let weight = |i: usize| (-(i as f64 - middle).powi(2) / (2.0 * sigma * sigma)).exp();
    let total: f64 = (0..n).map(weight).sum();
    (0..n).map(|i| weight(i) / total).collect()
}

/// Colours over the part of a picture at `[x, y]`: `values` is `[H, W]`, 0 to 1, of that part's size.
/// What leaves the picture is cut off.
pub fn shade(image: &mut RgbImage, [x, y]: [usize; 2], values: &Map, map: Colormap, alpha: f64) {
    let width = image.width;
    let (pixels, _) = image.data.as_chunks_mut::<3>();
    let rows = values.data.chunks_exact(values.width.max(1));
    for (row, values) in pixels.chunks_exact_mut(width.max(1)).skip(y).zip(rows) {
        for (pixel, &value) in row.iter_mut().skip(x).zip(values) {
            for (under, over) in pixel.iter_mut().zip(map.color(value.into())) {
                *under = blend(over, *under, alpha);
            }
        }
    }
}

/// The picture with a colour bar below it: `labels` under its left end, middle and right end,
/// `caption` above it. Only characters of the small built-in font are drawn.
pub fn with_legend(
    image: &RgbImage,
    colormap: Colormap,
    labels: [&str; 3],
    caption: &str,
) -> RgbImage {
    // Large pictures are looked at from afar: the legend grows with them.
    let zoom = (image.width / 500).clamp(1, 16);
    let (margin, bar, line) = (6 * zoom, 10 * zoom, font::HEIGHT * zoom);
    let strip = margin * 5 / 2 + 2 * line + bar + margin;
    let mut out = RgbImage::filled(image.width, image.height + strip, [255; 3]);
    out.data[..image.data.len()].copy_from_slice(&image.data);
    let mut top = image.height + margin;
    font::text(&mut out, [margin, top], zoom, caption);
    top += line + margin / 2;
    let length = image.width.saturating_sub(2 * margin);
    for x in 0..length {
        let value = (x as f64 + 0.5) / length as f64;
        draw::fill(&mut out, [margin + x, top, 1, bar], colormap.color(value));
    }
    top += bar + margin / 2;
    for (i, label) in labels.into_iter().enumerate() {
        let slack = length.saturating_sub(font::width(label) * zoom);
        font::text(&mut out, [margin + slack * i / 2, top], zoom, label);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_and_sizes_that_do_not_fit_are_refused() {
        let image = RgbImage::filled(4, 4, [9; 3]);
        let canvas = Canvas { image: &image, downsample: [32.0; 2], tissue: &[true; 16] };
        let draw = |scores: &[f64], side, options: &Options| {
            render(&canvas, &[[0.0, 0.0], [32.0, 0.0]], side, scores, options)
        };
        let ok = Options::default();
        let error = draw(&[1.0, f64::NAN], 32.0, &ok).unwrap_err().to_string();
        assert!(error.contains("tile 1") && error.contains("NaN"), "{error}");
        assert!(draw(&[1.0], 32.0, &ok).is_err());
        assert!(draw(&[1.0, 2.0], 0.0, &ok).is_err());
        assert!(draw(&[1.0, 2.0], 32.0, &Options { alpha: 1.5, ..ok.clone() }).is_err());
        let short = Canvas { tissue: &[true; 15], ..canvas };
        assert!(render(&short, &[], 32.0, &[], &ok).is_err());
        let far = render(&canvas, &[[-1e9, 1e300]], 32.0, &[1.0], &ok).unwrap();
        assert_eq!(far, image);
    }

    #[test]
    fn a_kernel_wider_than_the_picture_keeps_the_mean_of_a_flat_one() {
        for kernel in [1, 3, 9, 11, 41] {
            let out = gaussian_blur(&[0.25; 6], [3, 2], [kernel, kernel]);
            assert!(out.iter().all(|v| (v - 0.25).abs() < 1e-12), "{kernel}: {out:?}");
        }
    }
}
