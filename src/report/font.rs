//! Capital letters, digits and a few signs, 5 x 7 dots, for the legend of a heatmap.

use super::draw;
use crate::image::RgbImage;

/// Dots from one line's top to its bottom.
pub const HEIGHT: usize = 7;
/// Dots from one character to the next.
const ADVANCE: usize = 6;

/// Character and its seven rows of five dots, the leftmost in bit 4.
#[rustfmt::skip]
const GLYPHS: [(u8, [u8; HEIGHT]); 47] = [
    (b'0', [14, 17, 19, 21, 25, 17, 14]),
    (b'1', [4, 12, 4, 4, 4, 4, 14]),
    (b'2', [14, 17, 1, 2, 4, 8, 31]),
    (b'3', [14, 17, 1, 6, 1, 17, 14]),
    (b'4', [2, 6, 10, 18, 31, 2, 2]),
    (b'5', [31, 16, 30, 1, 1, 17, 14]),
    (b'6', [6, 8, 16, 30, 17, 17, 14]),
    (b'7', [31, 1, 2, 4, 8, 8, 8]),
    (b'8', [14, 17, 17, 14, 17, 17, 14]),
    (b'9', [14, 17, 17, 15, 1, 2, 12]),
    (b'A', [14, 17, 17, 31, 17, 17, 17]),
    (b'B', [30, 17, 17, 30, 17, 17, 30]),
    (b'C', [14, 17, 16, 16, 16, 17, 14]),
    (b'D', [30, 17, 17, 17, 17, 17, 30]),
    (b'E', [31, 16, 16, 30, 16, 16, 31]),
    (b'F', [31, 16, 16, 30, 16, 16, 16]),
    (b'G', [14, 17, 16, 23, 17, 17, 15]),
    (b'H', [17, 17, 17, 31, 17, 17, 17]),
    (b'I', [14, 4, 4, 4, 4, 4, 14]),
    (b'J', [7, 2, 2, 2, 2, 18, 12]),
    (b'K', [17, 18, 20, 24, 20, 18, 17]),
    (b'L', [16, 16, 16, 16, 16, 16, 31]),
    (b'M', [17, 27, 21, 21, 17, 17, 17]),
    (b'N', [17, 25, 25, 21, 19, 19, 17]),
    (b'O', [14, 17, 17, 17, 17, 17, 14]),
    (b'P', [30, 17, 17, 30, 16, 16, 16]),
    (b'Q', [14, 17, 17, 17, 21, 18, 13]),
    (b'R', [30, 17, 17, 30, 20, 18, 17]),
    (b'S', [15, 16, 16, 14, 1, 1, 30]),
    (b'T', [31, 4, 4, 4, 4, 4, 4]),
    (b'U', [17, 17, 17, 17, 17, 17, 14]),
    (b'V', [17, 17, 17, 17, 17, 10, 4]),
    (b'W', [17, 17, 17, 21, 21, 27, 17]),
    (b'X', [17, 17, 10, 4, 10, 17, 17]),
    (b'Y', [17, 17, 10, 4, 4, 4, 4]),
    (b'Z', [31, 1, 2, 4, 8, 16, 31]),
    (b'.', [0, 0, 0, 0, 0, 12, 12]),
    (b',', [0, 0, 0, 0, 12, 4, 8]),
    (b':', [0, 12, 12, 0, 12, 12, 0]),
    (b'-', [0, 0, 0, 31, 0, 0, 0]),
    (b'_', [0, 0, 0, 0, 0, 0, 31]),
    (b'+', [0, 4, 4, 31, 4, 4, 0]),
    (b'=', [0, 0, 31, 0, 31, 0, 0]),
    (b'/', [0, 1, 2, 4, 8, 16, 0]),
    (b'(', [2, 4, 8, 8, 8, 4, 2]),
    (b')', [8, 4, 2, 2, 2, 4, 8]),
    (b'%', [24, 25, 2, 4, 8, 19, 3]),
];

/// Dots a line of text is wide.
pub fn width(text: &str) -> usize {
    (text.chars().count() * ADVANCE).saturating_sub(1)
}

/// Draws black text with its top-left corner at `[x, y]`, each dot `zoom` pixels. Small letters
/// become capitals; characters without a picture leave a gap.
pub fn text(image: &mut RgbImage, [x, y]: [usize; 2], zoom: usize, text: &str) {
    for (i, c) in text.chars().enumerate() {
        let Some((_, rows)) = GLYPHS.iter().find(|g| char::from(g.0) == c.to_ascii_uppercase())
        else {
            continue;
        };
        for (row, bits) in rows.iter().enumerate() {
            for column in (0..5).filter(|column| bits & (16 >> column) != 0) {
                let left = x + (i * ADVANCE + column) * zoom;
                draw::fill(image, [left, y + row * zoom, zoom, zoom], [0; 3]);
            }
        }
    }
}
