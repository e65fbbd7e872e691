//! Predictions against measurements, and how values are spread.

use super::axes::{Axes, Scale};
use super::figure::{Figure, GREY, Stroke, colour};
use super::number;
use crate::stats::correlation::{Agreement, Line};
use crate::stats::nomogram::pretty;

fn ends(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)))
}

/// What a scatter is called and about.
pub struct Labels<'a> {
    /// Name of the files.
    pub name: &'a str,
    /// Heading.
    pub title: &'a str,
    /// Label of x.
    pub x: &'a str,
    /// Label of y.
    pub y: &'a str,
}

/// `y` against `x`, both (N,), with the least-squares line and, where both are in one unit
/// (`identity`), the line of equality.
pub fn scatter(
    labels: &Labels<'_>,
    x: &[f64],
    y: &[f64],
    line: Option<Line>,
    identity: bool,
    remark: &[String],
) -> Figure {
    let ((x0, x1), (y0, y1)) = (ends(x), ends(y));
    let sx = Scale::nice(x0, x1, labels.x);
    let sy = Scale::nice(y0, y1, labels.y);
    let rows = usize::from(line.is_some()) + usize::from(identity);
    let (mut figure, axes) = Axes::figure(labels.name, labels.title, sx, sy, rows);
    let points: Vec<[f64; 2]> = x.iter().zip(y).map(|(x, y)| axes.at(*x, *y)).collect();
    let (radius, opacity) = if x.len() > 2000 { (1.5, 0.45) } else { (3.2, 0.65) };
    figure.dots(&points, radius, colour(0), opacity);
    let mut legend = Vec::new();
    if let Some(Line { intercept, slope }) = line {
        axes.straight(&mut figure, intercept, slope, Stroke::solid(colour(1), 2.0));
        let sign = if intercept < 0.0 { '\u{2212}' } else { '+' };
        let label =
            format!("least-squares line: {} x {sign} {}", number(slope), number(intercept.abs()));
        legend.push((Stroke::solid(colour(1), 2.0), label));
    }
    if identity {
        axes.straight(&mut figure, 0.0, 1.0, Stroke::dashed(GREY, 1.2));
        legend.push((Stroke::dashed(GREY, 1.2), "equality".into()));
    }
    figure.legend(axes.legend_at(), &legend);
    axes.remark(&mut figure, remark);
    let told = legend.iter().map(|(_, l)| l.as_str()).collect::<Vec<_>>().join(", ");
    figure.desc = format!(
        "{} points of {} against {}. {}. {told}.",
        x.len(),
        labels.y,
        labels.x,
        remark.join(", ")
    );
    figure
}

/// Difference of prediction and observation against their mean, with bias and limits of agreement
/// (Bland and Altman 1986).
pub fn bland_altman(predicted: &[f64], observed: &[f64], agreement: &Agreement) -> Figure {
    let pairs = || predicted.iter().zip(observed);
    let means: Vec<f64> = pairs().map(|(p, o)| (p + o) / 2.0).collect();
    let gaps: Vec<f64> = pairs().map(|(p, o)| p - o).collect();
    let ((x0, x1), (mut y0, mut y1)) = (ends(&means), ends(&gaps));
    if let Some(limits) = agreement.limits {
        (y0, y1) = (y0.min(limits.lower), y1.max(limits.upper));
    }
    let sx = Scale::nice(x0, x1, "Mean of prediction and observation");
    let sy = Scale::nice(y0, y1, "Prediction \u{2212} observation");
    let (mut figure, axes) = Axes::figure("bland_altman", "Bland-Altman", sx, sy, 2);
    let points: Vec<[f64; 2]> = means.iter().zip(&gaps).map(|(x, y)| axes.at(*x, *y)).collect();
    let (radius, opacity) = if points.len() > 2000 { (1.5, 0.45) } else { (3.2, 0.65) };
    figure.dots(&points, radius, colour(0), opacity);
    axes.straight(&mut figure, agreement.bias, 0.0, Stroke::solid(colour(1), 2.0));
    let mut legend =
        vec![(Stroke::solid(colour(1), 2.0), format!("bias {}", number(agreement.bias)))];
    if let Some(limits) = agreement.limits {
        for at in [limits.lower, limits.upper] {
            axes.straight(&mut figure, at, 0.0, Stroke::dashed(colour(1), 1.5));
        }
        let label = format!(
            "limits of agreement {} to {} (bias \u{b1} 1.96 SD)",
            number(limits.lower),
            number(limits.upper)
        );
        legend.push((Stroke::dashed(colour(1), 1.5), label));
    }
    figure.legend(axes.legend_at(), &legend);
    figure.desc = legend.iter().map(|(_, l)| format!("{l}. ")).collect();
    figure
}

/// How `values` (N,) are spread, over about 30 bins of equal width.
pub fn histogram(labels: &Labels<'_>, values: &[f64]) -> Figure {
    let (low, high) = if values.is_empty() { (0.0, 1.0) } else { ends(values) };
    let mut edges = pretty(low, high, 30);
    if edges.len() < 2 {
        edges = vec![low - 0.5, low + 0.5];
    }
    let bins = edges.len() - 1;
    let (first, width) = (edges[0], edges[1] - edges[0]);
    let mut counts = vec![0usize; bins];
    for v in values {
        counts[(((v - first) / width) as usize).min(bins - 1)] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let sx = Scale::between(first, edges[bins], 6, labels.x);
    let sy = Scale::nice(0.0, most as f64, labels.y);
    let (mut figure, axes) = Axes::figure(labels.name, labels.title, sx, sy, 0);
    for (i, n) in counts.iter().enumerate().filter(|(_, n)| **n > 0) {
        let [x0, y] = axes.at(first + i as f64 * width, *n as f64);
        let [x1, base] = axes.at(first + (i + 1) as f64 * width, 0.0);
        figure.rectangle([x0 + 0.5, y, (x1 - x0 - 1.0).max(0.5), base - y], colour(0), 0.85);
    }
    figure.desc = format!(
        "{} values from {} to {}; the fullest of {bins} bins holds {most}.",
        values.len(),
        number(low),
        number(high)
    );
    figure
}
