//! The font of the figures: widths for the layout, outlines for the PNG.

use super::raster::Letters;
use std::sync::LazyLock;
use tiny_skia::PathBuilder;
use ttf_parser::{Face, GlyphId};

/// DejaVu Sans without the characters no figure needs; `scripts/plot-font` makes it.
const BYTES: &[u8] = include_bytes!("font/DejaVuSans.ttf");

static FACE: LazyLock<Option<Face<'static>>> = LazyLock::new(|| Face::parse(BYTES, 0).ok());

/// Fonts of the same width first, for readers of the SVG.
pub const FAMILY: &str = "DejaVu Sans, Verdana, Geneva, sans-serif";

fn glyph(face: &Face<'_>, c: char) -> GlyphId {
    // What the font lacks is drawn as its box.
    face.glyph_index(c).unwrap_or(GlyphId(0))
}

fn advance(face: &Face<'_>, c: char) -> f64 {
    f64::from(face.glyph_hor_advance(glyph(face, c)).unwrap_or(0)) / f64::from(face.units_per_em())
}

/// Width of `text` at a font height of `size`, in the same unit.
pub fn width(text: &str, size: f64) -> f64 {
    FACE.as_ref().map_or(0.0, |face| text.chars().map(|c| advance(face, c)).sum::<f64>() * size)
}

/// Adds the outlines of `text` at font height 1 to `path`, from the origin of its base line with y
/// pointing up, and returns its width.
pub(super) fn outline(text: &str, path: &mut PathBuilder) -> f64 {
    let Some(face) = FACE.as_ref() else { return 0.0 };
    let unit = 1.0 / f32::from(face.units_per_em());
    let mut x = 0.0;
    for c in text.chars() {
        let mut letters = Letters { path, x: x as f32, unit };
        face.outline_glyph(glyph(face, c), &mut letters);
        x += advance(face, c);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_has_what_figures_write() {
        let face = FACE.as_ref().unwrap();
        for c in "Az09 é ß Ł ρ κ χ ² ½ ≤ ≥ − – — × ± √ ’ …".chars() {
            assert!(face.glyph_index(c).is_some(), "no {c}");
        }
        assert!(face.glyph_index('漢').is_none());
    }

    #[test]
    fn widths_add_up() {
        let (a, b) = (width("mm", 10.0), width("m", 20.0));
        assert!((a - b).abs() < 1e-9 && a > 15.0, "{a} {b}");
        assert_eq!(width("", 10.0), 0.0);
    }
}
