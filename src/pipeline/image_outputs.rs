//! The files that show what was found in a picture.

use super::images::{Found, Segmented};
use crate::error::Result;
use crate::image::{GrayImage, Rect, RgbImage};
use crate::report::{draw, png};
use crate::tissue::contours::find_contours;
use std::path::Path;

/// Colour of the fused mask's outline.
const FUSED: [u8; 3] = [0, 220, 0];
/// Colour of the true mask's outline.
const TRUTH: [u8; 3] = [255, 200, 0];
/// Colour of the rectangle that is cut out.
const CROP: [u8; 3] = [230, 40, 40];

/// Writes `mask.png`, `mask-<segmenter>.png` and `overlay.png`: the outline of the fused mask
/// (green), of the true one (yellow) and what is cut out (red) on the picture.
///
/// # Errors
/// Naming the file.
pub fn write(
    dir: &Path,
    image: &RgbImage,
    segmented: &Segmented,
    truth: Option<&GrayImage>,
) -> Result<()> {
    write_mask(&dir.join("mask.png"), &segmented.fused)?;
    for found in &segmented.each {
        write_mask(&dir.join(format!("mask-{}.png", found.name)), found)?;
    }
    let mut overlay = image.clone();
    if let Some(truth) = truth {
        outline(&mut overlay, truth, TRUTH);
    }
    if let Some(crop) = segmented.crop {
        rectangle(&mut overlay, crop, CROP);
    }
    outline(&mut overlay, &segmented.fused.mask, FUSED);
    png::write_rgb(&dir.join("overlay.png"), &overlay)
}

fn write_mask(path: &Path, found: &Found) -> Result<()> {
    let bits: Vec<bool> = found.mask.data.iter().map(|&value| value != 0).collect();
    png::write_mask(path, found.mask.width, found.mask.height, &bits)
}

/// Lines that can be seen on large pictures too.
fn thickness(image: &RgbImage) -> usize {
    (image.width.max(image.height) / 500).max(1)
}

fn outline(image: &mut RgbImage, mask: &GrayImage, rgb: [u8; 3]) {
    let thickness = thickness(image);
    for component in find_contours(mask) {
        for ring in std::iter::once(&component.outer).chain(&component.holes) {
            let corners: Vec<[f64; 2]> = ring.iter().map(|v| v.map(f64::from)).collect();
            draw::polygon(image, &corners, thickness, rgb);
        }
    }
}

/// The pixels of a rectangle's edge.
pub fn rectangle(image: &mut RgbImage, rect: Rect, rgb: [u8; 3]) {
    let (left, top) = (rect.x as f64, rect.y as f64);
    let right = left + rect.width as f64 - 1.0;
    let bottom = top + rect.height as f64 - 1.0;
    let corners = [[left, top], [right, top], [right, bottom], [left, bottom]];
    draw::polygon(image, &corners, thickness(image), rgb);
}
