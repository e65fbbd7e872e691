//! Figures as pixels.

use super::figure::{Anchor, Figure, Mark, Rgb, Stroke};
use super::lettering;
use crate::error::{Error, Result};
use crate::image::RgbImage;
use tiny_skia::{FillRule, LineJoin, Paint, Path, PathBuilder, Pixmap, StrokeDash, Transform};
use ttf_parser::OutlineBuilder;

/// Widest and highest picture painted.
const MAX_SIDE: f64 = 16_384.0;

/// Paints `figure` at `scale` pixels per unit on white.
pub fn paint(figure: &Figure, scale: f64) -> Result<RgbImage> {
    let side = |v: f64| {
        let pixels = (v * scale).ceil();
        if (1.0..=MAX_SIDE).contains(&pixels) { Some(pixels as u32) } else { None }
    };
    let sides = side(figure.width).zip(side(figure.height));
    let mut pixels = sides.and_then(|(w, h)| Pixmap::new(w, h)).ok_or_else(|| {
        Error::limit(format!("a figure of {} x {} units", figure.width, figure.height))
    })?;
    pixels.fill(tiny_skia::Color::WHITE);
    let base = Transform::from_scale(scale as f32, scale as f32);
    for mark in &figure.marks {
        draw(&mut pixels, mark, base);
    }
    Ok(RgbImage {
        width: pixels.width() as usize,
        height: pixels.height() as usize,
        data: pixels.pixels().iter().flat_map(|p| [p.red(), p.green(), p.blue()]).collect(),
    })
}

fn ink(rgb: Rgb, opacity: f64) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(rgb[0], rgb[1], rgb[2], (opacity.clamp(0.0, 1.0) * 255.0).round() as u8);
    paint
}

fn through(points: &[[f64; 2]], closed: bool) -> Option<Path> {
    let mut path = PathBuilder::new();
    for (i, [x, y]) in points.iter().map(|p| p.map(|v| v as f32)).enumerate() {
        if i == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
    }
    if closed {
        path.close();
    }
    path.finish()
}

fn pen(stroke: &Stroke) -> tiny_skia::Stroke {
    let lengths: Vec<f32> = stroke.dash.iter().map(|v| (v * stroke.width) as f32).collect();
    tiny_skia::Stroke {
        width: stroke.width as f32,
        line_join: LineJoin::Round,
        dash: if lengths.is_empty() { None } else { StrokeDash::new(lengths, 0.0) },
        ..tiny_skia::Stroke::default()
    }
}

fn draw(pixels: &mut Pixmap, mark: &Mark, base: Transform) {
    match mark {
        Mark::Line { points, stroke } => {
            if let Some(path) = through(points, false) {
                pixels.stroke_path(&path, &ink(stroke.rgb, 1.0), &pen(stroke), base, None);
            }
        }
        Mark::Area { points, rgb, opacity } => {
            if let Some(path) = through(points, true) {
                pixels.fill_path(&path, &ink(*rgb, *opacity), FillRule::Winding, base, None);
            }
        }
        Mark::Dots { points, radius, rgb, opacity } => {
            let mut path = PathBuilder::new();
            for [x, y] in points.iter().map(|p| p.map(|v| v as f32)) {
                path.push_circle(x, y, *radius as f32);
            }
            if let Some(path) = path.finish() {
                pixels.fill_path(&path, &ink(*rgb, *opacity), FillRule::Winding, base, None);
            }
        }
        Mark::Text { at, text, size, anchor, rgb, upwards } => {
            let mut path = PathBuilder::new();
            let width = lettering::outline(text, &mut path);
            let back = match anchor {
                Anchor::Start => 0.0,
                Anchor::Middle => width / 2.0,
                Anchor::End => width,
            };
            let Some(path) = path.finish() else { return };
            let mut place = base.pre_translate(at[0] as f32, at[1] as f32);
            if *upwards {
                place = place.pre_rotate(-90.0);
            }
            let place =
                place.pre_scale(*size as f32, -*size as f32).pre_translate(-back as f32, 0.0);
            pixels.fill_path(&path, &ink(*rgb, 1.0), FillRule::Winding, place, None);
        }
    }
}

/// Collects outlines in font units from the place of each character, as a path of font height 1.
pub(super) struct Letters<'a> {
    pub path: &'a mut PathBuilder,
    pub x: f32,
    pub unit: f32,
}

impl Letters<'_> {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + x * self.unit, y * self.unit)
    }
}

impl OutlineBuilder for Letters<'_> {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_dashes_leave_ink_where_they_stand() {
        let mut figure = Figure::new("a", "", 100.0, 60.0);
        figure.write_text([50.0, 40.0], "HHH", 20.0, Anchor::Middle, [0; 3]);
        figure.line(&[[0.0, 50.0], [100.0, 50.0]], Stroke::dashed([0; 3], 2.0));
        let image = paint(&figure, 2.0).unwrap();
        assert_eq!((image.width, image.height), (200, 120));
        let dark = |x: usize, y: usize| image.data[(y * 200 + x) * 3] < 128;
        let columns = |rows: std::ops::Range<usize>| -> Vec<usize> {
            (0..200).filter(|&x| rows.clone().any(|y| dark(x, y))).collect()
        };
        let letters = columns(40..81);
        let middle = (letters[0] + letters[letters.len() - 1]) as f64 / 2.0;
        assert!((middle - 100.0).abs() < 2.0, "{letters:?}");
        let line = columns(99..101);
        assert!(line.len() > 100 && line.len() < 190, "{} columns of the dashes", line.len());
        assert!(paint(&Figure::new("a", "", 1e9, 10.0), 2.0).is_err());
    }
}
