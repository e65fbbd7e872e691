//! A frame with two scales: where data stand in a figure.

use super::figure::{Anchor, FAINT, Figure, GREY, INK, LEGEND_ROW, Stroke};
use super::{lettering, number};
use crate::stats::nomogram::pretty;

/// Marks of one direction.
#[derive(Clone, Debug)]
pub struct Scale {
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<(f64, String)>,
    label: String,
}

impl Scale {
    /// From 0 to 1 in fifths.
    pub fn unit(label: &str) -> Scale {
        Scale::between(0.0, 1.0, 5, label)
    }

    /// Round numbers that cover `[low, high]`; a little around the value when that is one.
    pub fn nice(low: f64, high: f64, label: &str) -> Scale {
        let pad = if high > low { 0.0 } else { low.abs().max(1.0) / 2.0 };
        let marks = pretty(low - pad, high + pad, 5);
        let (low, high) = (marks[0], marks[marks.len() - 1]);
        let ticks = marks.into_iter().map(|m| (m, number(m))).collect();
        Scale { low, high, log: false, ticks, label: label.into() }
    }

    /// Exactly `[low, high]`, with about `n` marks.
    pub fn between(low: f64, high: f64, n: usize, label: &str) -> Scale {
        let inside = |m: &f64| (low - 1e-9..=high + 1e-9).contains(m);
        let ticks = pretty(low, high, n).into_iter().filter(inside).map(|m| (m, number(m)));
        Scale { low, high, log: false, ticks: ticks.collect(), label: label.into() }
    }

    /// Logarithmic, covering `[low, high]`, both above 0, with marks at 1, 2 and 5 times powers of
    /// ten, or at powers alone where those would crowd.
    pub fn log(low: f64, high: f64, label: &str) -> Scale {
        let (low, high) = (low.clamp(1e-9, 0.9), high.clamp(1.1, 1e9));
        let steps: &[f64] = if high / low > 200.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let marks: Vec<f64> =
            (-9..=9).flat_map(|e| steps.iter().map(move |s| s * 10f64.powi(e))).collect();
        let from = marks.iter().rposition(|m| *m <= low).unwrap_or(0);
        let to = marks.iter().position(|m| *m >= high).unwrap_or(marks.len() - 1);
        let ticks = marks[from..=to].iter().map(|m| (*m, number(*m))).collect();
        Scale { low: marks[from], high: marks[to], log: true, ticks, label: label.into() }
    }

    /// Share of the way from one end to the other.
    fn share(&self, v: f64) -> f64 {
        let (v, low, high) = if self.log {
            (v.ln(), self.low.ln(), self.high.ln())
        } else {
            (v, self.low, self.high)
        };
        (v - low) / (high - low)
    }

    /// The ends.
    pub fn ends(&self) -> [f64; 2] {
        [self.low, self.high]
    }
}

/// The frame `[left, top, right, bottom]` in pixels, and its scales.
#[derive(Clone, Debug)]
pub struct Axes {
    /// In pixels.
    pub frame: [f64; 4],
    x: Scale,
    y: Scale,
}

/// Width of an ordinary figure.
pub const WIDTH: f64 = 600.0;
/// Frame of an ordinary figure.
const FRAME: [f64; 4] = [74.0, 44.0, 574.0, 464.0];
/// From the frame down to the first row under the labels of x.
const BELOW: f64 = 66.0;

impl Axes {
    /// An ordinary figure with its axes and `rows` rows of legend below.
    pub fn figure(name: &str, title: &str, x: Scale, y: Scale, rows: usize) -> (Figure, Axes) {
        let height = FRAME[3] + BELOW + rows as f64 * LEGEND_ROW;
        let mut figure = Figure::new(name, title, WIDTH, height);
        let axes = Axes { frame: FRAME, x, y };
        axes.draw(&mut figure);
        (figure, axes)
    }

    /// Axes in any frame; nothing is drawn yet.
    pub fn new(frame: [f64; 4], x: Scale, y: Scale) -> Axes {
        Axes { frame, x, y }
    }

    /// Where legends start.
    pub fn legend_at(&self) -> [f64; 2] {
        [self.frame[0], self.frame[3] + BELOW - 4.0]
    }

    /// Where `(x, y)` stands, held inside the frame.
    pub fn at(&self, x: f64, y: f64) -> [f64; 2] {
        let [left, top, right, bottom] = self.frame;
        let (u, v) = (self.x.share(x).clamp(0.0, 1.0), self.y.share(y).clamp(0.0, 1.0));
        [left + u * (right - left), bottom - v * (bottom - top)]
    }

    /// Whether `(x, y)` lies within the scales.
    pub fn holds(&self, x: f64, y: f64) -> bool {
        let inside = |s: &Scale, v: f64| (-1e-9..=1.0 + 1e-9).contains(&s.share(v));
        inside(&self.x, x) && inside(&self.y, y)
    }

    /// The ends of the scale of y.
    pub fn y_ends(&self) -> [f64; 2] {
        self.y.ends()
    }

    /// The ends of the scale of x.
    pub fn x_ends(&self) -> [f64; 2] {
        self.x.ends()
    }

    /// Grid, frame, marks and labels.
    pub fn draw(&self, figure: &mut Figure) {
        let [left, top, right, bottom] = self.frame;
        for (v, label) in &self.y.ticks {
            let y = self.at(self.x.low, *v)[1];
            figure.line(&[[left, y], [right, y]], Stroke::solid(FAINT, 1.0));
            figure.write_text([left - 8.0, y + 4.5], label, 12.0, Anchor::End, INK);
        }
        self.draw_x(figure);
        figure.line(&[[left, top], [left, bottom]], Stroke::solid(INK, 1.2));
        let widest = self.y.ticks.iter().map(|(_, l)| lettering::width(l, 12.0));
        let gap = widest.fold(0.0, f64::max) + 20.0;
        figure.text_upwards([left - gap.max(42.0), (top + bottom) / 2.0], &self.y.label);
    }

    /// The scale of x alone.
    pub fn draw_x(&self, figure: &mut Figure) {
        let [left, top, right, bottom] = self.frame;
        for (v, label) in &self.x.ticks {
            let x = self.at(*v, self.y.low)[0];
            figure.line(&[[x, top], [x, bottom]], Stroke::solid(FAINT, 1.0));
            figure.line(&[[x, bottom], [x, bottom + 5.0]], Stroke::solid(INK, 1.0));
            figure.write_text([x, bottom + 19.0], label, 12.0, Anchor::Middle, INK);
        }
        figure.line(&[[left, bottom], [right, bottom]], Stroke::solid(INK, 1.2));
        figure.text([(left + right) / 2.0, bottom + 40.0], &self.x.label, Anchor::Middle);
    }

    /// A line through data, held inside the frame.
    pub fn line(&self, figure: &mut Figure, points: &[[f64; 2]], stroke: Stroke) {
        let points: Vec<[f64; 2]> = points.iter().map(|p| self.at(p[0], p[1])).collect();
        figure.line(&points, stroke);
    }

    /// The part of the straight line `y = intercept + slope x` inside the frame.
    pub fn straight(&self, figure: &mut Figure, intercept: f64, slope: f64, stroke: Stroke) {
        let [x0, x1] = self.x.ends();
        let [y0, y1] = self.y.ends();
        let (mut from, mut to) = (x0, x1);
        if slope != 0.0 {
            let at = |y: f64| (y - intercept) / slope;
            let (a, b) = (at(y0).min(at(y1)), at(y0).max(at(y1)));
            (from, to) = (from.max(a), to.min(b));
        } else if !(y0..=y1).contains(&intercept) {
            return;
        }
        if from < to {
            let ends = [from, to].map(|x| [x, intercept + slope * x]);
            self.line(figure, &ends, stroke);
        }
    }

    /// The area between two curves over the same x: `(x, lower, upper)`.
    pub fn band(&self, figure: &mut Figure, points: &[[f64; 3]], rgb: [u8; 3]) {
        let upper = points.iter().map(|p| self.at(p[0], p[2]));
        let lower = points.iter().rev().map(|p| self.at(p[0], p[1]));
        figure.area(upper.chain(lower).collect(), rgb, 0.18);
    }

    /// A remark in grey at the upper left of the frame, one line a text.
    pub fn remark(&self, figure: &mut Figure, lines: &[String]) {
        let [left, top, ..] = self.frame;
        for (i, line) in lines.iter().enumerate() {
            let [x, y] = [left + 12.0, top + 20.0 + 18.0 * i as f64];
            // A pale ground keeps the text legible over data.
            let width = lettering::width(line, 13.0);
            figure.rectangle([x - 4.0, y - 13.0, width + 8.0, 18.0], [255; 3], 0.8);
            figure.write_text([x, y], line, 13.0, Anchor::Start, GREY);
        }
    }
}

/// A step curve: from each point horizontally to the x of the next, then to its y.
pub fn steps(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let mut out: Vec<[f64; 2]> = Vec::with_capacity(2 * points.len());
    for p in points {
        if let Some(q) = out.last() {
            out.push([p[0], q[1]]);
        }
        out.push(*p);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_stand_where_the_scales_say() {
        let axes = Axes::new([0.0, 0.0, 100.0, 50.0], Scale::unit("x"), Scale::log(0.5, 3.0, "y"));
        assert_eq!(axes.at(0.5, 0.5), [50.0, 50.0]);
        assert_eq!(axes.at(2.0, 5.0), [100.0, 0.0]);
        assert!(axes.holds(1.0, 0.6) && !axes.holds(1.1, 0.6));
        let one = Scale::nice(3.0, 3.0, "");
        assert!(one.low < 3.0 && one.high > 3.0);
    }

    #[test]
    fn steps_keep_the_value_until_the_next() {
        assert_eq!(steps(&[[0.0, 1.0], [2.0, 0.5]]), [[0.0, 1.0], [2.0, 1.0], [2.0, 0.5]]);
    }
}
