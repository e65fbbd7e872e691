//! Lines and rectangles on a picture, and tiles and tissue drawn over a thumbnail.

use super::geojson::Contour;
use crate::image::RgbImage;

/// Fills `[x, y, w, h]`, cut off at the edges of the picture.
pub fn fill(image: &mut RgbImage, [x, y, w, h]: [usize; 4], rgb: [u8; 3]) {
    let (right, bottom) =
        (x.saturating_add(w).min(image.width), y.saturating_add(h).min(image.height));
    for row in y..bottom {
        let (pixels, _) = image.data.as_chunks_mut::<3>();
        if let Some(run) = pixels.get_mut(row * image.width + x..row * image.width + right) {
            run.fill(rgb);
        }
    }
}

/// A square dot of `thickness` pixels around a point, cut off at the edges.
fn dot(image: &mut RgbImage, [x, y]: [f64; 2], thickness: usize, rgb: [u8; 3]) {
    let axis = |v: f64, size: usize| {
        let start = (v - (thickness as f64 - 1.0) / 2.0).round();
        let cut = |v: f64| v.clamp(0.0, size as f64) as usize;
        (cut(start), cut(start + thickness as f64))
    };
    let ((left, right), (top, bottom)) = (axis(x, image.width), axis(y, image.height));
    fill(image, [left, top, right - left, bottom - top], rgb);
}

/// A straight line between two points in pixels, cut off at the edges of the picture.
pub fn line(image: &mut RgbImage, from: [f64; 2], to: [f64; 2], thickness: usize, rgb: [u8; 3]) {
    let margin = thickness as f64;
    let Some([a, b]) = clip(from, to, margin, [image.width as f64, image.height as f64]) else {
        return;
    };
    let steps = (b[0] - a[0]).abs().max((b[1] - a[1]).abs()).ceil();
    for i in 0..=steps as usize {
        let t = if steps > 0.0 { i as f64 / steps } else { 0.0 };
        dot(image, [a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])], thickness, rgb);
    }
}

/// The part of a segment inside the picture and `margin` around it (Liang and Barsky 1984), so
/// that a far-away corner costs nothing.
fn clip(from: [f64; 2], to: [f64; 2], margin: f64, size: [f64; 2]) -> Option<[[f64; 2]; 2]> {
    let (mut first, mut last) = (0.0f64, 1.0f64);
    for axis in 0..2 {
        let delta = to[axis] - from[axis];
        for (p, q) in [(-delta, from[axis] + margin), (delta, size[axis] + margin - from[axis])] {
            if !p.is_finite() || !q.is_finite() || (p == 0.0 && q < 0.0) {
                return None;
            }
            if p < 0.0 {
                first = first.max(q / p);
            } else if p > 0.0 {
                last = last.min(q / p);
            }
        }
    }
    let at = |t: f64| [0, 1].map(|axis| from[axis] + t * (to[axis] - from[axis]));
    (first <= last).then(|| [at(first), at(last)])
}

/// A closed line through `corners`.
pub fn polygon(image: &mut RgbImage, corners: &[[f64; 2]], thickness: usize, rgb: [u8; 3]) {
    for (from, to) in corners.iter().zip(corners.iter().cycle().skip(1)) {
        line(image, *from, *to, thickness, rgb);
    }
}

/// Colour of tissue outlines, as in CLAM's pictures.
pub const TISSUE: [u8; 3] = [0, 200, 0];
/// Colour of hole outlines.
pub const HOLE: [u8; 3] = [0, 0, 255];
/// Colour of tile edges.
pub const TILE: [u8; 3] = [30, 30, 30];

/// Draws tissue and square tiles, both in level-0 pixels, over a thumbnail of `downsample`
/// level-0 pixels per pixel.
pub fn overlay(
    image: &mut RgbImage,
    downsample: [f64; 2],
    tissue: &[Contour],
    coords: &[[f64; 2]],
    side: f64,
) {
    let place = |p: &[f64; 2]| [p[0] / downsample[0], p[1] / downsample[1]];
    for &[x, y] in coords {
        let corners = [[x, y], [x + side, y], [x + side, y + side], [x, y + side]];
        polygon(image, &corners.map(|c| place(&c)), 1, TILE);
    }
    let thickness = (image.width.max(image.height) / 500).clamp(1, 16);
    for contour in tissue {
        for hole in &contour.holes {
            polygon(image, &hole.iter().map(place).collect::<Vec<_>>(), thickness, HOLE);
        }
        polygon(image, &contour.outline.iter().map(place).collect::<Vec<_>>(), thickness, TISSUE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coloured(image: &RgbImage) -> Vec<(usize, usize)> {
        let pixels = image.data.chunks_exact(3).enumerate();
        let on = pixels.filter(|(_, p)| *p != [255; 3]);
        on.map(|(i, _)| (i % image.width, i / image.width)).collect()
    }

    #[test]
    fn a_rectangle_is_its_border() {
        let mut image = RgbImage::filled(8, 6, [255; 3]);
        polygon(&mut image, &[[1.0, 1.0], [5.0, 1.0], [5.0, 4.0], [1.0, 4.0]], 1, [0; 3]);
        let border = |&(x, y): &(usize, usize)| {
            (1..=5).contains(&x) && (1..=4).contains(&y) && (x == 1 || x == 5 || y == 1 || y == 4)
        };
        assert_eq!(coloured(&image).len(), 14);
        assert!(coloured(&image).iter().all(border));
    }

    #[test]
    fn what_lies_outside_is_cut_off() {
        let mut image = RgbImage::filled(8, 6, [255; 3]);
        line(&mut image, [-1e15, 2.0], [1e15, 2.0], 1, [0; 3]);
        assert_eq!(coloured(&image), (0..8).map(|x| (x, 2)).collect::<Vec<_>>());
        let mut image = RgbImage::filled(8, 6, [255; 3]);
        line(&mut image, [-50.0, -9.0], [90.0, -9.0], 3, [0; 3]);
        line(&mut image, [f64::NAN, 0.0], [5.0, f64::INFINITY], 3, [0; 3]);
        fill(&mut image, [9, 9, 5, 5], [0; 3]);
        assert!(coloured(&image).is_empty());
        fill(&mut image, [6, 4, usize::MAX, 9], [0; 3]);
        assert_eq!(coloured(&image), [(6, 4), (7, 4), (6, 5), (7, 5)]);
    }

    #[test]
    fn overlays_scale_level_0_pixels() {
        let mut image = RgbImage::filled(20, 20, [255; 3]);
        let outline = vec![[32.0, 32.0], [512.0, 32.0], [512.0, 512.0], [32.0, 512.0]];
        let tissue = [Contour { outline, holes: Vec::new() }];
        overlay(&mut image, [32.0, 32.0], &tissue, &[[96.0, 128.0]], 64.0);
        let at = |x: usize, y: usize| &image.data[(y * 20 + x) * 3..][..3];
        assert_eq!(at(1, 7), TISSUE);
        assert_eq!(at(16, 16), TISSUE);
        assert_eq!(at(3, 4), TILE);
        assert_eq!(at(5, 6), TILE);
        assert_eq!(at(4, 5), [255; 3]);
    }
}
