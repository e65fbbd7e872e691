//! Nomograms: one axis a variable, points above, total and outcome below.

use super::figure::{Anchor, Figure, GREY, INK, Stroke, TEXT, colour, fitted};
use super::lettering;
use crate::error::Result;
use crate::stats::model::{Model, ModelKind};
use crate::stats::nomogram::{Nomogram, pretty};

const ROW: f64 = 52.0;
const WIDE: f64 = 640.0;

struct Sheet {
    figure: Figure,
    left: f64,
    y: f64,
}

impl Sheet {
    /// One axis: marks `(label, share of the width)`. Labels that would touch the one before are left
    /// out; their tick stays.
    fn axis(&mut self, name: &str, marks: &[(String, f64)]) {
        let x = |share: f64| self.left + share * WIDE;
        let name = fitted(name, TEXT, self.left - 30.0);
        self.figure.text([16.0, self.y + 4.5], &name, Anchor::Start);
        let ends = marks.iter().fold([1.0f64, 0.0f64], |[a, b], (_, s)| [a.min(*s), b.max(*s)]);
        if ends[0] <= ends[1] {
            let line = ends.map(|s| [x(s), self.y]);
            self.figure.line(&line, Stroke::solid(INK, 1.2));
        }
        let mut sorted: Vec<&(String, f64)> = marks.iter().collect();
        sorted.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut free = f64::NEG_INFINITY;
        for (label, share) in sorted {
            let at = x(*share);
            self.figure.line(&[[at, self.y], [at, self.y + 6.0]], Stroke::solid(INK, 1.0));
            let half = lettering::width(label, 12.0) / 2.0;
            if at - half > free {
                self.figure.write_text([at, self.y + 20.0], label, 12.0, Anchor::Middle, INK);
                free = at + half + 5.0;
            }
        }
        self.y += ROW;
    }
}

/// The chart of `model`.
///
/// # Errors
/// As [`Model::nomogram`].
pub fn nomogram(model: &Model) -> Result<Figure> {
    let chart = model.nomogram()?;
    let names = chart.axes.iter().map(|a| lettering::width(&a.name, TEXT)).fold(150.0, f64::max);
    let left = names.min(240.0) + 40.0;
    let outcomes = if model.kind == ModelKind::Cox { 1 + model.baseline.len() } else { 1 };
    let rows = chart.axes.len() + 2 + outcomes;
    let title = format!("Nomogram of {}", model.outcome.join(", "));
    let mut sheet = Sheet {
        figure: Figure::new("nomogram", &title, left + WIDE + 40.0, 44.0 + ROW * rows as f64),
        left,
        y: 58.0,
    };
    let points: Vec<(String, f64)> =
        (0..=10).map(|i| ((10 * i).to_string(), f64::from(i) / 10.0)).collect();
    for (_, share) in &points {
        let x = left + share * WIDE;
        let end = 58.0 + ROW * (chart.axes.len() as f64 + 0.4);
        sheet.figure.line(&[[x, 58.0], [x, end]], Stroke::solid([235; 3], 1.0));
    }
    sheet.axis("Points", &points);
    for a in &chart.axes {
        let marks: Vec<_> = a.marks.iter().map(|(l, p)| (l.clone(), p / 100.0)).collect();
        sheet.axis(&a.name, &marks);
    }
    let most = chart.total.last().copied().unwrap_or(1.0).max(f64::MIN_POSITIVE);
    let totals: Vec<_> = chart.total.iter().map(|t| (t.to_string(), t / most)).collect();
    sheet.axis("Total points", &totals);
    outcome_axes(&mut sheet, model, &chart, most);
    sheet.figure.desc = description(model, &chart);
    Ok(sheet.figure)
}

/// What a total of points means.
fn outcome_axes(sheet: &mut Sheet, model: &Model, chart: &Nomogram, most: f64) {
    const SHARES: [f64; 15] =
        [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 0.001];
    let (low, high) = (chart.lp_at_zero, chart.linear_predictor(most));
    let place = |lp: f64| (lp - low) / (high - low);
    let inside = |marks: &mut Vec<(String, f64)>| marks.retain(|(_, s)| (0.0..=1.0).contains(s));
    if model.kind == ModelKind::Logistic {
        let logit = |p: f64| (p / (1.0 - p)).ln();
        let mut marks: Vec<_> = SHARES.iter().map(|p| (p.to_string(), place(logit(*p)))).collect();
        inside(&mut marks);
        return sheet.axis("Risk", &marks);
    }
    let mut marks: Vec<_> =
        pretty(low, high, 10).iter().map(|lp| (super::number(*lp), place(*lp))).collect();
    inside(&mut marks);
    sheet.axis("Linear predictor", &marks);
    for base in &model.baseline {
        // S(t) = S0(t)^exp(lp)
        let at = |s: f64| (s.ln() / base.survival.ln()).ln();
        let mut marks: Vec<_> = SHARES.iter().map(|s| (s.to_string(), place(at(*s)))).collect();
        inside(&mut marks);
        sheet.axis(&format!("Survival at {}", super::number(base.time)), &marks);
    }
}

fn description(model: &Model, chart: &Nomogram) -> String {
    let mut out = String::new();
    for axis in &chart.axes {
        let ends = axis.marks.first().zip(axis.marks.last());
        if let Some(((first, a), (last, b))) = ends {
            out.push_str(&format!("{}: {first} gives {a:.0} points, {last} {b:.0}. ", axis.name));
        }
    }
    let per = 100.0 / chart.points_per_lp;
    out + &format!("{per:.3} of the linear predictor per 100 points; {} rows.", model.rows)
}

/// Marks a patient's total in the chart of [`nomogram`].
pub fn mark_total(figure: &mut Figure, model: &Model, label: &str, points: f64) -> Result<()> {
    let chart = model.nomogram()?;
    let names = chart.axes.iter().map(|a| lettering::width(&a.name, TEXT)).fold(150.0, f64::max);
    let left = names.min(240.0) + 40.0;
    let most = chart.total.last().copied().unwrap_or(1.0).max(f64::MIN_POSITIVE);
    let x = left + (points / most).clamp(0.0, 1.0) * WIDE;
    let y = 58.0 + ROW * (chart.axes.len() as f64 + 1.0);
    figure.dots(&[[x, y]], 5.0, colour(1), 1.0);
    let text = format!("{label}: {points:.0} points");
    let anchor = if x > left + WIDE / 2.0 { Anchor::End } else { Anchor::Start };
    figure.write_text([x, y - 10.0], &text, 12.0, anchor, GREY);
    figure.desc.push_str(&format!(" {text}."));
    Ok(())
}
