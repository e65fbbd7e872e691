//! Colour to one channel, with OpenCV's and Pillow's integer arithmetic, and the white rule.

use super::{GrayImage, RgbImage};

/// Fraction bits of the saturation's reciprocal table (OpenCV `hsv_shift`).
const HSV_SHIFT: u32 = 12;

/// The S channel of OpenCV's u8 `COLOR_RGB2HSV`, 0..=255.
pub fn saturation(image: &RgbImage) -> GrayImage {
    // 255 / v in fixed point; OpenCV multiplies by this instead of dividing.
    let reciprocal: [u32; 256] = std::array::from_fn(|v| match v {
        0 => 0,
        v => (f64::from(255u32 << HSV_SHIFT) / v as f64).round_ties_even() as u32,
    });
    let pixels = image.data.as_chunks::<3>().0.iter();
    let data = pixels.map(|&[r, g, b]| {
        let (max, min) = (r.max(g).max(b), r.min(g).min(b));
        let scaled = u32::from(max - min) * reciprocal[usize::from(max)];
        ((scaled + (1 << (HSV_SHIFT - 1))) >> HSV_SHIFT) as u8
    });
    GrayImage { width: image.width, height: image.height, data: data.collect() }
}

/// OpenCV's u8 `COLOR_RGB2GRAY`: Rec. 601 luma in 15-bit fixed point.
pub fn gray(image: &RgbImage) -> GrayImage {
    luma(image, [9798, 19235, 3735], 15)
}

/// Pillow's `convert("L")`: Rec. 601 luma in 16-bit fixed point.
pub fn gray_pil(image: &RgbImage) -> GrayImage {
    luma(image, [19595, 38470, 7471], 16)
}

fn luma(image: &RgbImage, [wr, wg, wb]: [u32; 3], shift: u32) -> GrayImage {
    let pixels = image.data.as_chunks::<3>().0.iter();
    let data = pixels.map(|&[r, g, b]| {
        let sum = u32::from(r) * wr + u32::from(g) * wg + u32::from(b) * wb;
        ((sum + (1 << (shift - 1))) >> shift) as u8
    });
    GrayImage { width: image.width, height: image.height, data: data.collect() }
}

/// BALNMP's blank ratio of `[H, W, 3]` u8 pixels: channel values that are 255, over `3 * H * W`.
///
/// Channels are counted separately, so a saturated red counts for a third of a white pixel.
/// A tile is dropped when this is at least the recipe's `max_white`. 1 for no pixels.
pub fn white_fraction(rgb: &[u8]) -> f64 {
    if rgb.is_empty() {
        return 1.0;
    }
    let white = rgb.iter().filter(|&&value| value == 255).count();
    // The original divides by 3 first; the comparison is on that quotient.
    white as f64 / 3.0 / (rgb.len() / 3) as f64
}
