//! ROC, precision-recall, calibration and decision curves.

use super::axes::{Axes, Scale};
use super::figure::{Anchor, Figure, GREY, Stroke, colour};
use super::number;
use crate::stats::Interval;
use crate::stats::calibration::Bin;
use crate::stats::decision::NetBenefit;
use crate::stats::intervals::wilson;
use crate::stats::roc::{BandPoint, Point};
use crate::stats::threshold::PrPoint;

/// One ROC curve.
pub struct RocCurve<'a> {
    /// What gave the score.
    pub name: String,
    /// Its curve.
    pub points: &'a [Point],
    /// Its area.
    pub auc: f64,
    /// Interval of the area.
    pub interval: Option<Interval>,
}

fn percent(level: f64) -> String {
    format!("{} % CI", number(level * 100.0))
}

fn area(auc: f64, interval: Option<Interval>, level: f64) -> String {
    let around =
        interval.map(|i| format!(" ({} {:.3}\u{2013}{:.3})", percent(level), i.lower, i.upper));
    format!("AUC {auc:.3}{}", around.unwrap_or_default())
}

/// ROC curves with the band of the first and its chosen cut `(sensitivity, specificity, label)`.
pub fn roc(
    curves: &[RocCurve<'_>],
    band: &[BandPoint],
    chosen: Option<(f64, f64, String)>,
    level: f64,
) -> Figure {
    let rows = curves.len() + usize::from(!band.is_empty()) + usize::from(chosen.is_some());
    let (x, y) = (Scale::unit("1 \u{2212} specificity"), Scale::unit("Sensitivity"));
    let (mut figure, axes) = Axes::figure("roc", "ROC curve", x, y, rows);
    axes.line(&mut figure, &[[0.0, 0.0], [1.0, 1.0]], Stroke::dashed(GREY, 1.0));
    let ribbon: Vec<[f64; 3]> =
        band.iter().map(|b| [1.0 - b.specificity, b.interval.lower, b.interval.upper]).collect();
    axes.band(&mut figure, &ribbon, colour(0));
    let mut legend = Vec::new();
    for (i, curve) in curves.iter().enumerate() {
        let points: Vec<[f64; 2]> =
            curve.points.iter().map(|p| [1.0 - p.specificity, p.sensitivity]).collect();
        axes.line(&mut figure, &points, Stroke::of(i));
        let label = format!("{}: {}", curve.name, area(curve.auc, curve.interval, level));
        legend.push((Stroke::of(i), label));
    }
    figure.desc = legend.iter().map(|(_, l)| format!("{l}. ")).collect();
    let [left, mut top] = axes.legend_at();
    figure.legend([left, top], &legend);
    top += legend.len() as f64 * 19.0;
    if !band.is_empty() {
        figure.rectangle([left, top - 10.0, 30.0, 11.0], colour(0), 0.18);
        let label = format!("{} of the sensitivity, bootstrap, pointwise", percent(level));
        figure.text([left + 38.0, top], &label, Anchor::Start);
        top += 19.0;
    }
    if let Some((sensitivity, specificity, label)) = chosen {
        figure.dots(&[axes.at(1.0 - specificity, sensitivity)], 5.0, colour(1), 1.0);
        figure.dots(&[[left + 15.0, top - 4.5]], 5.0, colour(1), 1.0);
        let label = format!("{label}: sensitivity {sensitivity:.3}, specificity {specificity:.3}");
        figure.text([left + 38.0, top], &label, Anchor::Start);
        figure.desc.push_str(&label);
    }
    figure
}

/// Precision-recall curves `(name, points, average precision)`; `prevalence` is the precision of
/// chance.
pub fn precision_recall(curves: &[(String, &[PrPoint], f64)], prevalence: f64) -> Figure {
    let (x, y) = (Scale::unit("Recall (sensitivity)"), Scale::unit("Precision (PPV)"));
    let (mut figure, axes) =
        Axes::figure("precision_recall", "Precision-recall curve", x, y, curves.len() + 1);
    axes.line(&mut figure, &[[0.0, prevalence], [1.0, prevalence]], Stroke::dashed(GREY, 1.0));
    let mut legend = Vec::new();
    for (i, (name, points, average)) in curves.iter().enumerate() {
        // Precision holds back to the recall before: the steps average precision sums.
        let mut line: Vec<[f64; 2]> = Vec::new();
        let mut before = 0.0;
        for p in *points {
            line.extend([[before, p.precision], [p.recall, p.precision]]);
            before = p.recall;
        }
        axes.line(&mut figure, &line, Stroke::of(i));
        legend.push((Stroke::of(i), format!("{name}: average precision {average:.3}")));
    }
    legend.push((Stroke::dashed(GREY, 1.0), format!("prevalence {prevalence:.3}")));
    figure.legend(axes.legend_at(), &legend);
    figure.desc = legend.iter().map(|(_, l)| format!("{l}. ")).collect();
    figure
}

/// Observed against predicted probability: bins with Wilson intervals, the smooth curve
/// `(probability, smooth)` in any order, and a remark. Below, how many rows have each probability.
pub fn calibration(bins: &[Bin], smooth: &[[f64; 2]], remark: &[String], level: f64) -> Figure {
    let (x, y) = (Scale::unit("Predicted probability"), Scale::unit("Observed share"));
    let (mut figure, axes) = Axes::figure("calibration", "Calibration", x, y, 3);
    axes.line(&mut figure, &[[0.0, 0.0], [1.0, 1.0]], Stroke::dashed(GREY, 1.0));
    let mut shares = [0.0f64; 50];
    for [p, _] in smooth {
        shares[((p * 50.0) as usize).min(49)] += 1.0;
    }
    let most = shares.iter().copied().fold(1.0, f64::max);
    for (i, share) in shares.iter().enumerate().filter(|(_, s)| **s > 0.0) {
        let x = axes.at((i as f64 + 0.5) / 50.0, 0.0);
        let height = 36.0 * share / most;
        figure.rectangle([x[0] - 3.5, x[1] - height, 7.0, height], GREY, 0.35);
    }
    let mut curve = smooth.to_vec();
    curve.sort_by(|a, b| a[0].total_cmp(&b[0]));
    axes.line(&mut figure, &curve, Stroke::of(1));
    let mut desc = String::new();
    for bin in bins {
        let (n, observed) = (bin.n as f64, bin.observed as f64);
        let at = bin.expected / n;
        if let Some(i) = wilson(observed, n, level) {
            axes.line(&mut figure, &[[at, i.lower], [at, i.upper]], Stroke::solid(colour(0), 1.5));
        }
        figure.dots(&[axes.at(at, observed / n)], 4.5, colour(0), 1.0);
        desc.push_str(&format!(
            "Of {} rows predicted {at:.3} on average, {:.3} had the outcome. ",
            bin.n,
            observed / n
        ));
    }
    let [left, top] = axes.legend_at();
    let labels = [
        (Stroke::solid(colour(0), 1.5), format!("bins of equal size, {} (Wilson)", percent(level))),
        (Stroke::of(1), "smooth curve (lowess)".to_string()),
        (Stroke::dashed(GREY, 1.0), "ideal; bars: rows at each probability".to_string()),
    ];
    figure.legend([left, top], &labels);
    figure.dots(&[[left + 15.0, top - 4.5]], 4.5, colour(0), 1.0);
    axes.remark(&mut figure, remark);
    figure.desc = format!("{}. {desc}", remark.join(", "));
    figure
}

/// Net benefit over the threshold probability, of models `(name, curve)` over the same thresholds,
/// of treating all and of treating none.
pub fn decision(models: &[(String, &[NetBenefit])]) -> Figure {
    let curve = models.first().map_or(&[][..], |(_, c)| c);
    let most = models.iter().flat_map(|(_, c)| c.iter()).map(|p| p.model);
    let top = most.chain(curve.iter().map(|p| p.all)).fold(0.05, f64::max);
    let bottom = -0.25 * top;
    let x = Scale::unit("Threshold probability");
    let y = Scale::between(bottom, 1.08 * top, 6, "Net benefit");
    let (mut figure, axes) =
        Axes::figure("decision_curve", "Decision curve", x, y, models.len() + 2);
    let mut legend = Vec::new();
    let visible = |points: Vec<[f64; 2]>| -> Vec<[f64; 2]> {
        // Below the frame a curve is left out, but for the point at which it leaves.
        let end = points.iter().position(|p| p[1] < bottom).map_or(points.len(), |i| i + 1);
        points[..end].to_vec()
    };
    for (i, (name, points)) in models.iter().enumerate() {
        let line = visible(points.iter().map(|p| [p.threshold, p.model]).collect());
        axes.line(&mut figure, &line, Stroke::of(i));
        legend.push((Stroke::of(i), name.clone()));
    }
    let (all, none) = (Stroke::solid(GREY, 1.2), Stroke::dashed(GREY, 1.2));
    let line = visible(curve.iter().map(|p| [p.threshold, p.all]).collect());
    axes.line(&mut figure, &line, all);
    axes.line(&mut figure, &[[0.0, 0.0], [1.0, 0.0]], none);
    legend.push((all, "treat all".into()));
    legend.push((none, "treat none".into()));
    figure.legend(axes.legend_at(), &legend);
    let at = |t: f64| {
        curve.iter().min_by(|a, b| (a.threshold - t).abs().total_cmp(&(b.threshold - t).abs()))
    };
    figure.desc = [0.1, 0.2, 0.3, 0.5]
        .iter()
        .filter_map(|t| at(*t))
        .map(|p| {
            format!(
                "At threshold {} net benefit is {:.3}, of treating all {:.3}. ",
                number(p.threshold),
                p.model,
                p.all
            )
        })
        .collect();
    figure
}
