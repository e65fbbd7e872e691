//! A figure as a list of marks, in pixels from the top-left corner.

use super::{lettering, raster, svg};
use crate::error::Result;
use crate::image::RgbImage;
use crate::report::{atomic, png};
use std::path::Path;

/// A colour.
pub type Rgb = [u8; 3];

/// Text and frames.
pub const INK: Rgb = [34, 34, 34];
/// Second-rank text.
pub const GREY: Rgb = [95, 95, 95];
/// Grid lines.
pub const FAINT: Rgb = [225, 225, 225];

/// Colours of Okabe and Ito (2008) that stand out on white.
const PALETTE: [Rgb; 6] =
    [[0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [150, 110, 0], [60, 60, 60]];
/// Dash and gap, in line widths; none for a solid line.
const DASHES: [&[f64]; 4] = [&[], &[5.0, 2.5], &[1.5, 1.5], &[6.0, 2.0, 1.5, 2.0]];

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stroke {
    /// Colour.
    pub rgb: Rgb,
    /// Width in pixels.
    pub width: f64,
    /// Lengths of dash and gap in line widths; solid when empty.
    pub dash: &'static [f64],
}

impl Stroke {
    /// A solid line.
    pub fn solid(rgb: Rgb, width: f64) -> Stroke {
        Stroke { rgb, width, dash: &[] }
    }

    /// A dashed line.
    pub fn dashed(rgb: Rgb, width: f64) -> Stroke {
        Stroke { rgb, width, dash: DASHES[1] }
    }

    /// The line of the `i`-th thing compared: its own colour and dash.
    pub fn of(i: usize) -> Stroke {
        Stroke { rgb: colour(i), width: 2.0, dash: DASHES[i % DASHES.len()] }
    }
}

/// The colour of the `i`-th thing compared.
pub fn colour(i: usize) -> Rgb {
    PALETTE[i % PALETTE.len()]
}

/// Which point of a text stands at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// Its left end.
    Start,
    /// Its middle.
    Middle,
    /// Its right end.
    End,
}

/// One thing drawn.
#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    /// A line through points.
    Line {
        /// (N, 2).
        points: Vec<[f64; 2]>,
        /// How.
        stroke: Stroke,
    },
    /// A filled polygon.
    Area {
        /// Corners.
        points: Vec<[f64; 2]>,
        /// Colour.
        rgb: Rgb,
        /// 0 to 1.
        opacity: f64,
    },
    /// Discs of one size and colour.
    Dots {
        /// Centres.
        points: Vec<[f64; 2]>,
        /// Radius.
        radius: f64,
        /// Colour.
        rgb: Rgb,
        /// 0 to 1.
        opacity: f64,
    },
    /// A line of text; the place is on its base line.
    Text {
        /// Where.
        at: [f64; 2],
        /// What.
        text: String,
        /// Height of the font in pixels.
        size: f64,
        /// Which point of the text stands there.
        anchor: Anchor,
        /// Colour.
        rgb: Rgb,
        /// Turned to read upwards.
        upwards: bool,
    },
}

/// A figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Name of its files, without extension.
    pub name: String,
    /// Heading.
    pub title: String,
    /// What it shows, in words, for those who do not see it.
    pub desc: String,
    /// Width in pixels.
    pub width: f64,
    /// Height in pixels.
    pub height: f64,
    /// What is drawn, from back to front.
    pub marks: Vec<Mark>,
}

/// Ordinary text.
pub const TEXT: f64 = 13.0;
/// Headings.
const TITLE: f64 = 16.0;
/// PNG pixels per unit.
const PNG_SCALE: f64 = 2.0;

impl Figure {
    /// An empty figure with its title at the top.
    pub fn new(name: &str, title: &str, width: f64, height: f64) -> Figure {
        let mut figure = Figure {
            name: name.into(),
            title: title.into(),
            desc: String::new(),
            width,
            height,
            marks: Vec::new(),
        };
        figure.write_text([16.0, 26.0], title, TITLE, Anchor::Start, INK);
        figure
    }

    /// A line through `points`; those closer than a fifth of a pixel to the one before are left out.
    pub fn line(&mut self, points: &[[f64; 2]], stroke: Stroke) {
        let mut kept: Vec<[f64; 2]> = Vec::new();
        for (i, p) in points.iter().enumerate() {
            let far = kept.last().is_none_or(|q| (p[0] - q[0]).hypot(p[1] - q[1]) >= 0.2);
            if far || i + 1 == points.len() {
                kept.push(*p);
            }
        }
        self.marks.push(Mark::Line { points: kept, stroke });
    }

    /// A filled polygon.
    pub fn area(&mut self, points: Vec<[f64; 2]>, rgb: Rgb, opacity: f64) {
        self.marks.push(Mark::Area { points, rgb, opacity });
    }

    /// A filled rectangle.
    pub fn rectangle(&mut self, [x, y, w, h]: [f64; 4], rgb: Rgb, opacity: f64) {
        self.area(vec![[x, y], [x + w, y], [x + w, y + h], [x, y + h]], rgb, opacity);
    }

    /// Discs; of those within the same half pixel one is kept.
    pub fn dots(&mut self, points: &[[f64; 2]], radius: f64, rgb: Rgb, opacity: f64) {
        let mut seen = std::collections::HashSet::new();
        let cell = |p: &[f64; 2]| p.map(|v| (v * 2.0).round() as i64);
        let points = points.iter().copied().filter(|p| seen.insert(cell(p))).collect();
        self.marks.push(Mark::Dots { points, radius, rgb, opacity });
    }

    /// Text of the ordinary size.
    pub fn text(&mut self, at: [f64; 2], text: &str, anchor: Anchor) {
        self.write_text(at, text, TEXT, anchor, INK);
    }

    /// Text of any size and colour.
    pub fn write_text(&mut self, at: [f64; 2], text: &str, size: f64, anchor: Anchor, rgb: Rgb) {
        let text = text.to_string();
        self.marks.push(Mark::Text { at, text, size, anchor, rgb, upwards: false });
    }

    /// Text that reads upwards, centred at `at`.
    pub fn text_upwards(&mut self, at: [f64; 2], text: &str) {
        let (text, anchor) = (text.to_string(), Anchor::Middle);
        self.marks.push(Mark::Text { at, text, size: TEXT, anchor, rgb: INK, upwards: true });
    }

    /// A legend: a sample of each line and its label, one a row, from `top` down.
    pub fn legend(&mut self, [left, top]: [f64; 2], entries: &[(Stroke, String)]) {
        for (i, (stroke, label)) in entries.iter().enumerate() {
            let y = top + i as f64 * LEGEND_ROW;
            self.line(&[[left, y - 4.5], [left + 30.0, y - 4.5]], *stroke);
            self.text([left + 38.0, y], label, Anchor::Start);
        }
    }

    /// The figure as an SVG document.
    pub fn svg(&self) -> String {
        svg::write(self)
    }

    /// The figure as a picture, two pixels per unit.
    ///
    /// # Errors
    /// [`crate::Kind::Limit`] for a figure too large to paint.
    pub fn picture(&self) -> Result<RgbImage> {
        raster::paint(self, PNG_SCALE)
    }

    /// Writes `<name>.svg` and `<name>.png` into `folder`.
    ///
    /// # Errors
    /// Naming the file.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = |extension: &str| folder.join(format!("{}.{extension}", self.name));
        atomic::write_bytes(&path("svg"), self.svg().as_bytes())?;
        png::write_rgb(&path("png"), &self.picture()?)
    }
}

/// From one row of a legend to the next.
pub const LEGEND_ROW: f64 = 19.0;

/// Cuts `text` so that it is at most `width` pixels wide, with an ellipsis.
pub fn fitted(text: &str, size: f64, width: f64) -> String {
    if lettering::width(text, size) <= width {
        return text.into();
    }
    let mut cut: String = text.into();
    while !cut.is_empty() && lettering::width(&format!("{cut}\u{2026}"), size) > width {
        cut.pop();
    }
    format!("{cut}\u{2026}")
}
