//! Ratios with their intervals, one a row.

use super::axes::{Axes, Scale};
use super::figure::{Anchor, Figure, GREY, INK, Stroke, TEXT, colour, fitted};
use super::{lettering, p_value};

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What the ratio is of.
    pub name: String,
    /// Odds or hazard ratio.
    pub ratio: f64,
    /// Lower end of its interval.
    pub lower: f64,
    /// Upper end.
    pub upper: f64,
    /// p-value.
    pub p: f64,
}

const ROW: f64 = 30.0;
const WIDE: f64 = 340.0;

/// The rows on a logarithmic axis with a line at 1; `ratio` is `odds ratio` or `hazard ratio`.
pub fn forest(name: &str, title: &str, ratio: &str, rows: &[Row]) -> Figure {
    let names: Vec<String> = rows.iter().map(|r| fitted(&r.name, TEXT, 220.0)).collect();
    let widest = names.iter().map(|n| lettering::width(n, TEXT)).fold(60.0, f64::max);
    let (left, top) = (widest + 34.0, 74.0);
    let numbers: Vec<String> = rows
        .iter()
        .map(|r| {
            let [a, b, c] = [r.ratio, r.lower, r.upper].map(super::ratio);
            format!("{a} ({b}\u{2013}{c})")
        })
        .collect();
    let width_of = |t: &String| lettering::width(t, 12.0);
    let text = numbers.iter().map(width_of).fold(120.0, f64::max);
    let (right, bottom) = (left + WIDE, top + ROW * rows.len() as f64);
    let mut figure = Figure::new(name, title, right + 24.0 + text + 90.0, bottom + 56.0);
    // One huge interval must not flatten the others: the axis shows ratios from 1/1000 to 1000, and
    // an arrow leads to what lies beyond.
    let positive = |v: f64| if v > 0.0 && v.is_finite() { v.clamp(0.001, 1000.0) } else { 1.0 };
    let low = rows.iter().map(|r| positive(r.lower)).fold(1.0, f64::min);
    let high = rows.iter().map(|r| positive(r.upper)).fold(1.0, f64::max);
    let unused = Scale::unit("");
    let axes = Axes::new([left, top, right, bottom], Scale::log(low, high, ratio), unused);
    axes.draw_x(&mut figure);
    let one = axes.at(1.0, 0.0)[0];
    figure.line(&[[one, top], [one, bottom]], Stroke::dashed(GREY, 1.2));
    let head = |f: &mut Figure, x: f64, t: &str| {
        f.write_text([x, top - 14.0], t, 12.0, Anchor::Start, GREY)
    };
    head(&mut figure, right + 24.0, &format!("{ratio} (95 % CI)"));
    let p_at = right + 40.0 + text;
    let mut desc = String::new();
    for (i, (row, (name, numbers))) in rows.iter().zip(names.iter().zip(&numbers)).enumerate() {
        let y = top + ROW * (i as f64 + 0.5);
        figure.text([16.0, y + 4.5], name, Anchor::Start);
        let [x0, x, x1] = [row.lower, row.ratio, row.upper].map(|v| axes.at(v.max(1e-12), 0.0)[0]);
        figure.line(&[[x0, y], [x1, y]], Stroke::solid(colour(0), 1.8));
        for (value, end, inwards) in [(row.lower, x0, 7.0), (row.upper, x1, -7.0)] {
            let at = if axes.holds(value, 0.0) { end } else { end + inwards };
            let mark = [[at, y - 4.0], [end, y], [at, y + 4.0]];
            figure.line(&mark, Stroke::solid(colour(0), 1.8));
        }
        if axes.holds(row.ratio, 0.0) {
            figure.rectangle([x - 4.5, y - 4.5, 9.0, 9.0], colour(0), 1.0);
        }
        figure.write_text([right + 24.0, y + 4.5], numbers, 12.0, Anchor::Start, INK);
        figure.write_text([p_at, y + 4.5], &p_value(row.p), 12.0, Anchor::Start, INK);
        desc.push_str(&format!("{}: {ratio} {numbers}, {}. ", row.name, p_value(row.p)));
    }
    figure.desc = desc;
    figure
}
