//! A picture of a whole slide, small enough to look at.

use crate::error::Result;
use crate::image::RgbImage;
use crate::slide::{Region, Slide};

/// Most pixels of an overview.
const MAX_PIXELS: u64 = 40_000_000;

/// The last level whose downsample is at most `downsample`, with its level-0 pixels per pixel, x
/// and y. A level of more than 40 million pixels is averaged down by a whole factor, read in
/// bands, so that a flat slide of any size has an overview.
///
/// Tiles that cannot be decoded are white.
///
/// # Errors
/// What reading the slide returns.
pub fn overview(slide: &Slide, downsample: f64) -> Result<(RgbImage, [f64; 2])> {
    let levels = slide.levels();
    let level = levels.iter().skip(1).take_while(|l| l.downsample <= downsample).count();
    let (width, height) = (levels[level].width, levels[level].height);
    let pixels = u64::from(width) * u64::from(height);
    let factor = (1u32..).find(|&f| pixels / u64::from(f).pow(2) <= MAX_PIXELS).unwrap_or(1);
    let (out_w, out_h) = ((width / factor).max(1), (height / factor).max(1));
    let mut out = RgbImage::filled(out_w as usize, out_h as usize, [255; 3]);
    // Bands hold whole native tile rows as nearly as the factor allows.
    let rows = (levels[level].tile_height.clamp(factor, 1024) / factor).max(1);
    for first in (0..out_h).step_by(rows as usize) {
        let rows = rows.min(out_h - first);
        let y = f64::from(first * factor) * f64::from(levels[0].height) / f64::from(height);
        let region = Region {
            x: 0,
            y: y.round() as i64,
            level,
            width: (out_w * factor).min(width),
            height: (rows * factor).min(height),
        };
        let band = slide.read_overview(&region)?.image;
        let start = (first * out_w) as usize * 3;
        let end = start + (rows * out_w) as usize * 3;
        average(&band, factor as usize, out_w as usize, &mut out.data[start..end]);
    }
    let scale = |whole: u32, part: u32| f64::from(whole) / f64::from(part);
    Ok((out, [scale(levels[0].width, out_w), scale(levels[0].height, out_h)]))
}

/// The mean of `factor x factor` blocks, rounded to nearest.
fn average(band: &RgbImage, factor: usize, out_w: usize, out: &mut [u8]) {
    if factor == 1 {
        out.copy_from_slice(&band.data[..out.len()]);
        return;
    }
    for (i, pixel) in out.chunks_exact_mut(3).enumerate() {
        let (x, y) = (i % out_w * factor, i / out_w * factor);
        let mut sums = [0u32; 3];
        for row in y..y + factor {
            let from = (row * band.width + x) * 3;
            for rgb in band.data[from..from + factor * 3].chunks_exact(3) {
                sums.iter_mut().zip(rgb).for_each(|(sum, &v)| *sum += u32::from(v));
            }
        }
        let n = (factor * factor) as u32;
        pixel.iter_mut().zip(sums).for_each(|(p, sum)| *p = ((sum + n / 2) / n) as u8);
    }
}
