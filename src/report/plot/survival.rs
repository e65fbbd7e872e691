//! Kaplan-Meier curves with their intervals and the numbers at risk.

use super::axes::{Axes, Scale, steps};
use super::figure::{Anchor, Figure, GREY, INK, Stroke, colour, fitted};
use super::lettering;
use crate::stats::survival::{CurveInterval, KaplanMeier};

/// One group.
pub struct Group<'a> {
    /// Its name.
    pub name: String,
    /// Its curve.
    pub curve: &'a KaplanMeier,
}

const ROW: f64 = 18.0;

/// The curves of `groups`, with pointwise intervals of `kind`, ticks where rows are censored, and
/// below the axis how many are still at risk. `remark` holds the test between the groups.
pub fn kaplan_meier(
    groups: &[Group<'_>],
    kind: CurveInterval,
    level: f64,
    unit: &str,
    remark: &[String],
) -> Figure {
    let last = |g: &Group<'_>| g.curve.steps.last().map_or(0.0, |s| s.time);
    let longest = groups.iter().map(last).fold(0.0, f64::max);
    let label = if unit.is_empty() { "Time".to_string() } else { format!("Time ({unit})") };
    let x = Scale::nice(0.0, longest.max(f64::MIN_POSITIVE), &label);
    let times: Vec<f64> = crate::stats::nomogram::pretty(0.0, x.ends()[1], 5);
    let names: Vec<String> = groups.iter().map(|g| fitted(&g.name, 13.0, 130.0)).collect();
    let widest = names.iter().map(|n| lettering::width(n, 13.0)).fold(0.0, f64::max);
    let left = (widest + 84.0).max(96.0);
    let (rows, told) = (groups.len() as f64, remark.len() as f64);
    let mut figure = Figure::new(
        "kaplan_meier",
        "Kaplan-Meier curves",
        left + 530.0,
        464.0 + 90.0 + ROW * (rows + told),
    );
    let axes = Axes::new([left, 44.0, left + 500.0, 464.0], x, Scale::unit("Survival probability"));
    axes.draw(&mut figure);
    for (i, group) in groups.iter().enumerate() {
        draw(&mut figure, &axes, group, i, kind, level);
    }
    let top = 464.0 + 64.0;
    figure.write_text([16.0, top], "Number at risk", 12.0, Anchor::Start, GREY);
    for (i, (group, name)) in groups.iter().zip(&names).enumerate() {
        let y = top + ROW * (i + 1) as f64;
        figure.line(&[[16.0, y - 4.5], [40.0, y - 4.5]], Stroke::of(i));
        figure.text([46.0, y], name, Anchor::Start);
        for t in &times {
            let at = [axes.at(*t, 0.0)[0], y];
            let n = group.curve.at(*t, kind, level).at_risk.to_string();
            figure.write_text(at, &n, 12.0, Anchor::Middle, INK);
        }
    }
    for (i, line) in remark.iter().enumerate() {
        let y = top + ROW * (rows + 1.0 + i as f64) + 6.0;
        figure.write_text([axes.frame[0], y], line, 13.0, Anchor::Start, GREY);
    }
    figure.desc = description(groups, kind, level, remark);
    figure
}

fn draw(
    figure: &mut Figure,
    axes: &Axes,
    group: &Group<'_>,
    i: usize,
    kind: CurveInterval,
    level: f64,
) {
    let mut points = vec![[0.0, 1.0]];
    let mut limits: Vec<[f64; 3]> = vec![[0.0, 1.0, 1.0]];
    for step in &group.curve.steps {
        points.push([step.time, step.survival]);
        if let Some(interval) = group.curve.at(step.time, kind, level).interval {
            let before = limits[limits.len() - 1];
            limits.push([step.time, before[1], before[2]]);
            limits.push([step.time, interval.lower, interval.upper]);
        }
    }
    axes.band(figure, &limits, colour(i));
    axes.line(figure, &steps(&points), Stroke::of(i));
    for step in group.curve.steps.iter().filter(|s| s.censored > 0) {
        let [x, y] = axes.at(step.time, step.survival);
        figure.line(&[[x, y - 4.0], [x, y + 4.0]], Stroke::solid(colour(i), 1.0));
    }
}

fn description(groups: &[Group<'_>], kind: CurveInterval, level: f64, remark: &[String]) -> String {
    let mut out = String::new();
    for g in groups {
        let (median, low, high) = g.curve.quantile(0.5, kind, level);
        let text = |v: Option<f64>| v.map_or("not reached".to_string(), super::number);
        out.push_str(&format!(
            "{}: {} rows, {} events, median survival {} (interval {} to {}). ",
            g.name,
            g.curve.n,
            g.curve.events,
            text(median),
            text(low),
            text(high)
        ));
    }
    out + &remark.join(", ")
}
