//! The small pictures of a scanned glass slide: its label and a photograph of the whole.

use super::noise::{Rng, hash};
use super::specimen::Specimen;
use crate::image::RgbImage;

/// Five columns a glyph, the lowest bit on top.
const GLYPHS: &[(char, [u8; 5])] = &[
    ('0', [0x3e, 0x51, 0x49, 0x45, 0x3e]),
    ('1', [0x00, 0x42, 0x7f, 0x40, 0x00]),
    ('2', [0x62, 0x51, 0x49, 0x49, 0x46]),
    ('3', [0x22, 0x41, 0x49, 0x49, 0x36]),
    ('4', [0x18, 0x14, 0x12, 0x7f, 0x10]),
    ('5', [0x27, 0x45, 0x45, 0x45, 0x39]),
    ('6', [0x3c, 0x4a, 0x49, 0x49, 0x30]),
    ('7', [0x01, 0x71, 0x09, 0x05, 0x03]),
    ('8', [0x36, 0x49, 0x49, 0x49, 0x36]),
    ('9', [0x06, 0x49, 0x49, 0x29, 0x1e]),
    ('&', [0x36, 0x49, 0x55, 0x22, 0x50]),
    ('C', [0x3e, 0x41, 0x41, 0x41, 0x22]),
    ('D', [0x7f, 0x41, 0x41, 0x22, 0x1c]),
    ('E', [0x7f, 0x49, 0x49, 0x49, 0x41]),
    ('H', [0x7f, 0x08, 0x08, 0x08, 0x7f]),
    ('I', [0x00, 0x41, 0x7f, 0x41, 0x00]),
    ('K', [0x7f, 0x08, 0x14, 0x22, 0x41]),
    ('N', [0x7f, 0x04, 0x08, 0x10, 0x7f]),
    ('O', [0x3e, 0x41, 0x41, 0x41, 0x3e]),
    ('R', [0x7f, 0x09, 0x19, 0x29, 0x46]),
    ('S', [0x46, 0x49, 0x49, 0x49, 0x31]),
    ('T', [0x01, 0x01, 0x7f, 0x01, 0x01]),
    ('Y', [0x07, 0x08, 0x70, 0x08, 0x07]),
];

/// The printed label: what it is, its seed and bars that encode nothing.
pub fn label(seed: u64) -> RgbImage {
    let mut image = RgbImage::filled(400, 380, [236, 234, 226]);
    write(&mut image, "SYNTHETIC", [38, 40], 6);
    write(&mut image, "H&E", [38, 110], 6);
    // Long seeds continue on a second line.
    let digits = seed.to_string();
    let (first, second) = digits.split_at(digits.len().min(10));
    write(&mut image, first, [38, 180], 5);
    write(&mut image, second, [38, 226], 5);
    let mut rng = Rng::new(seed, 9);
    let mut x = 40;
    while x < 350 {
        let bar = 2 + (rng.bits() % 3) as usize * 2;
        fill(&mut image, [x, 280], [bar, 60], [24, 24, 28]);
        x += bar + 2 + (rng.bits() % 3) as usize * 2;
    }
    image
}

/// The whole glass with its label on the left and the specimen's outline on the right.
pub fn overview(specimen: &Specimen) -> RgbImage {
    const SIZE: [usize; 2] = [1280, 440];
    let mut image = RgbImage::filled(SIZE[0], SIZE[1], [226, 231, 233]);
    fill(&mut image, [0, 0], [6, SIZE[1]], [120, 128, 132]);
    fill(&mut image, [SIZE[0] - 6, 0], [6, SIZE[1]], [120, 128, 132]);
    let label = label(specimen.spec.seed);
    for (y, row) in label.data.chunks(label.width * 3).enumerate() {
        let at = ((y + 30) * SIZE[0] + 24) * 3;
        image.data[at..at + row.len()].copy_from_slice(row);
    }
    let (width, height) = (specimen.spec.width as f32, specimen.spec.height as f32);
    let scale = (width / 760.0).max(height / 400.0);
    let [w, h] = [(width / scale) as usize, (height / scale) as usize];
    let [left, top] = [460 + (760 - w) / 2, 20 + (400 - h) / 2];
    for y in 0..h {
        for x in 0..w {
            let color = specimen.mean_color([x as f32 * scale, y as f32 * scale]);
            let at = ((top + y) * SIZE[0] + left + x) * 3;
            let grain = (hash(x as u32, y as u32, 77) & 3) as u8;
            let seen = color.map(|v| v.saturating_sub(12 + grain));
            image.data[at..at + 3].copy_from_slice(&seen);
        }
    }
    image
}

fn write(image: &mut RgbImage, text: &str, [left, top]: [usize; 2], scale: usize) {
    for (i, letter) in text.chars().enumerate() {
        let Some((_, columns)) = GLYPHS.iter().find(|(c, _)| *c == letter) else { continue };
        for (x, column) in columns.iter().enumerate() {
            for y in (0..7).filter(|y| column >> y & 1 == 1) {
                let at = [left + (i * 6 + x) * scale, top + y * scale];
                fill(image, at, [scale; 2], [30, 32, 40]);
            }
        }
    }
}

fn fill(image: &mut RgbImage, [left, top]: [usize; 2], size: [usize; 2], rgb: [u8; 3]) {
    for y in top..(top + size[1]).min(image.height) {
        for x in left..(left + size[0]).min(image.width) {
            let at = (y * image.width + x) * 3;
            image.data[at..at + 3].copy_from_slice(&rgb);
        }
    }
}
