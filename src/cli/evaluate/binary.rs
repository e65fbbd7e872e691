//! A score against two classes.

use super::{Args, Cohort, CsvTable, Evaluation, cell, score_column};
use crate::cli::table::{Table, missing};
use crate::error::{Error, Result};
use crate::report::plot::{self, Figure, curves};
use crate::stats::LEVEL;
use crate::stats::calibration::{self, Bin, Bins};
use crate::stats::decision::{NetBenefit, decision_curve, reclassification};
use crate::stats::lowess::{SPAN, lowess, smooth_errors};
use crate::stats::roc::{Point, Roc, delong_paired};
use crate::stats::threshold::{Confusion, PrPoint, precision_recall};
use serde_json::{Value, json};

const SCORES: [&str; 3] = ["score", "p_1", "value"];

fn is_positive(args: &Args, labels: &Table, score: &str) -> Result<Vec<bool>> {
    let cells = labels.text(&args.label)?;
    let named = score.strip_prefix("p_").filter(|class| cells.contains(class));
    let Some(positive) = args.positive.as_deref().or(named) else {
        return labels.flags(&args.label);
    };
    if let Some(row) = cells.iter().position(|c| missing(c)) {
        return Err(labels.at(row, &args.label, "missing"));
    }
    Ok(cells.iter().map(|c| *c == positive).collect())
}

/// One score with its curves.
struct Scored {
    name: String,
    score: Vec<f64>,
    roc: Roc,
    curve: Vec<Point>,
    precision_recall: Vec<PrPoint>,
    average_precision: f64,
    /// Of probabilities only.
    net_benefit: Option<Vec<NetBenefit>>,
}

impl Scored {
    fn new(name: &str, score: Vec<f64>, y: &[bool]) -> Result<Scored> {
        let roc = Roc::new(&score, y)?;
        let (pr, average_precision) = precision_recall(&score, y)?;
        let probability = score.iter().all(|p| (0.0..=1.0).contains(p));
        let thresholds: Vec<f64> = (1..100).map(|i| f64::from(i) / 100.0).collect();
        let net_benefit =
            probability.then(|| decision_curve(&score, y, &thresholds)).transpose()?;
        Ok(Scored {
            name: name.into(),
            curve: roc.curve(),
            roc,
            precision_recall: pr,
            average_precision,
            net_benefit,
            score,
        })
    }
}

/// The evaluation of one score, and of another beside it.
pub fn evaluate(args: &Args, cohort: &Cohort) -> Result<Evaluation> {
    let column = score_column(args, &cohort.predictions, &SCORES)?;
    let y = is_positive(args, &cohort.labels, &column)?;
    let one = Scored::new(&column, cohort.predictions.numbers(&column)?, &y)?;
    let grid: Vec<f64> = (0..=100).map(|i| f64::from(i) / 100.0).collect();
    let boot = one.roc.bootstrap(args.plan(), &grid, LEVEL);
    let jackknife = one.roc.jackknife();
    let auc = one.roc.auc();
    let bca = (!jackknife.is_empty()).then(|| boot.auc.bca(auc, &jackknife, LEVEL)).flatten();
    let youden = one.roc.youden();
    let threshold = threshold(args, youden.map(|b| b.midpoint))?;
    let chosen = Confusion::at(&one.score, &y, threshold)?.metrics(LEVEL);
    let mut metrics = json!({
        "summary": {
            "rows": y.len(), "positives": one.roc.positives(), "score": column, "auc": auc,
            "auc_delong": one.roc.delong(LEVEL), "average_precision": one.average_precision,
            "threshold": threshold, "accuracy": chosen.accuracy.estimate,
            "sensitivity": chosen.sensitivity.estimate, "specificity": chosen.specificity.estimate,
        },
        "auc": {
            "estimate": auc, "delong_se": one.roc.delong_variance().map(f64::sqrt),
            "delong": one.roc.delong(LEVEL), "delong_logit": one.roc.delong_logit(LEVEL),
            "hanley_mcneil_se": one.roc.hanley_mcneil_se(),
            "binomial_exact": one.roc.binomial_exact(LEVEL),
            "bootstrap_percentile": boot.auc.percentile(LEVEL), "bootstrap_bca": bca,
            "partial_specificity_90": one.roc.partial_auc_mcclish(0.1),
            "mann_whitney_p": one.roc.mann_whitney_p(),
            "degenerate": one.roc.delong_variance().is_none_or(|v| v == 0.0),
        },
        "youden": youden,
        "at_threshold": chosen,
        "at_half": Confusion::at(&one.score, &y, 0.5)?.metrics(LEVEL),
        "average_precision": one.average_precision,
    });
    let mut tables = curve_tables(&one, &boot.band);
    let other = match &cohort.other {
        None => None,
        Some(table) => {
            let column = score_column(args, table, &SCORES)?;
            let name =
                if column == one.name { format!("{column} (compared)") } else { column.clone() };
            let other =
                Scored::new(&name, table.numbers(&column)?, &y).map_err(|e| table.blame(e))?;
            metrics["comparison"] = compare(&one, &other, &y)?;
            Some(other)
        }
    };
    let at = format!("threshold {}", plot::number(threshold));
    let cut = chosen.sensitivity.estimate.zip(chosen.specificity.estimate);
    let mut figures =
        discrimination(&one, other.as_ref(), &boot.band, cut.map(|(a, b)| (a, b, at.clone())), &y);
    let c = chosen.confusion;
    let positive = args.positive.as_deref().or(column.strip_prefix("p_")).unwrap_or("1");
    let classes = [format!("not {positive}"), positive.to_string()];
    let counts = [vec![c.tn, c.fp], vec![c.fn_, c.tp]];
    figures.push(plot::classes::confusion(&format!("Confusion at {at}"), &classes, &counts));
    if one.net_benefit.is_some() {
        let (json, bins, figure) = calibrated(&one.score, &y)?;
        metrics["calibration"] = json;
        tables.push(bins);
        figures.insert(2, figure);
    }
    Ok(Evaluation { metrics, figures, tables })
}

fn threshold(args: &Args, youden: Option<f64>) -> Result<f64> {
    match args.threshold.as_deref().unwrap_or("youden") {
        "youden" => youden
            .ok_or_else(|| Error::malformed("all scores are equal: there is no Youden threshold")),
        text => text
            .parse()
            .ok()
            .filter(|t: &f64| t.is_finite())
            .ok_or_else(|| Error::usage(format!("--threshold {text}: youden or a number"))),
    }
}

fn compare(one: &Scored, other: &Scored, y: &[bool]) -> Result<Value> {
    let mut out = json!({
        "score": other.name, "other_auc": other.roc.auc(), "other_auc_delong": other.roc.delong(LEVEL),
        "other_average_precision": other.average_precision,
        "delong": delong_paired(&one.score, &other.score, y, LEVEL)?,
    });
    if one.net_benefit.is_some() && other.net_benefit.is_some() {
        out["reclassification"] = json!(reclassification(&other.score, &one.score, y)?);
    }
    Ok(out)
}

fn curve_tables(one: &Scored, band: &[crate::stats::roc::BandPoint]) -> Vec<CsvTable> {
    let mut tables = vec![
        CsvTable {
            name: "roc",
            header: vec!["threshold", "sensitivity", "specificity"],
            rows: one
                .curve
                .iter()
                .map(|p| {
                    let threshold = cell(Some(p.threshold).filter(|t| t.is_finite()));
                    vec![threshold, cell(p.sensitivity), cell(p.specificity)]
                })
                .collect(),
        },
        CsvTable {
            name: "roc_band",
            header: vec!["specificity", "sensitivity", "lower", "upper"],
            rows: band
                .iter()
                .map(|b| [b.specificity, b.sensitivity, b.interval.lower, b.interval.upper])
                .map(|row| row.map(cell).to_vec())
                .collect(),
        },
        CsvTable {
            name: "precision_recall",
            header: vec!["threshold", "recall", "precision"],
            rows: one
                .precision_recall
                .iter()
                .map(|p| [p.threshold, p.recall, p.precision].map(cell).to_vec())
                .collect(),
        },
    ];
    if let Some(curve) = &one.net_benefit {
        tables.push(CsvTable {
            name: "decision_curve",
            header: vec!["threshold", "net_benefit", "treat_all", "interventions_avoided"],
            rows: curve
                .iter()
                .map(|b| vec![cell(b.threshold), cell(b.model), cell(b.all), cell(b.avoided)])
                .collect(),
        });
    }
    tables
}

fn discrimination(
    one: &Scored,
    other: Option<&Scored>,
    band: &[crate::stats::roc::BandPoint],
    chosen: Option<(f64, f64, String)>,
    y: &[bool],
) -> Vec<Figure> {
    let all = || std::iter::once(one).chain(other);
    let rocs: Vec<curves::RocCurve<'_>> = all()
        .map(|s| curves::RocCurve {
            name: s.name.clone(),
            points: &s.curve,
            auc: s.roc.auc(),
            interval: s.roc.delong(LEVEL),
        })
        .collect();
    let prs: Vec<(String, &[PrPoint], f64)> = all()
        .map(|s| (s.name.clone(), s.precision_recall.as_slice(), s.average_precision))
        .collect();
    let prevalence = one.roc.positives() as f64 / y.len() as f64;
    let mut figures =
        vec![curves::roc(&rocs, band, chosen, LEVEL), curves::precision_recall(&prs, prevalence)];
    let benefits: Vec<(String, &[NetBenefit])> =
        all().filter_map(|s| Some((s.name.clone(), s.net_benefit.as_deref()?))).collect();
    if !benefits.is_empty() {
        figures.push(curves::decision(&benefits));
    }
    figures
}

/// Calibration of probabilities; the recalibration is left out, with its reason, where it does not
/// exist.
fn calibrated(p: &[f64], y: &[bool]) -> Result<(Value, CsvTable, Figure)> {
    let outcome: Vec<f64> = y.iter().map(|y| f64::from(u8::from(*y))).collect();
    let smooth = lowess(p, &outcome, SPAN)?;
    let bins = calibration::curve(p, y, Bins::Quantile(10))?;
    let fit = calibration::calibration(p, y, LEVEL);
    let brier = calibration::brier(p, y)?;
    let mut remark = vec![format!("Brier score {}", plot::number(brier))];
    if let Ok(c) = &fit {
        let (slope, intercept) = (plot::number(c.slope.coef), plot::number(c.in_the_large.coef));
        remark.push(format!("slope {slope}, in the large {intercept}"));
        remark.push(format!("O:E {}", plot::number(c.oe_ratio)));
    }
    let curve: Vec<[f64; 2]> = p.iter().zip(&smooth).map(|(p, s)| [*p, *s]).collect();
    let figure = curves::calibration(&bins, &curve, &remark, LEVEL);
    let table = CsvTable {
        name: "calibration",
        header: vec!["rows", "mean_predicted", "observed_share"],
        rows: bins.iter().map(bin_row).collect(),
    };
    let json = json!({
        "brier": brier, "log_loss": calibration::log_loss(p, y)?,
        "recalibration": match fit {
            Ok(fit) => json!(fit),
            Err(error) => json!({ "not_possible": error.to_string() }),
        },
        "hosmer_lemeshow_10": calibration::hosmer_lemeshow(p, y, 10)?,
        "ece_10_equal_width": calibration::expected_error(p, y, Bins::EqualWidth(10))?,
        "smooth_lowess": smooth_errors(p, &smooth),
        "curve_5_quantiles": calibration::curve(p, y, Bins::Quantile(5))?,
        "curve_10_quantiles": bins,
    });
    Ok((json, table, figure))
}

fn bin_row(bin: &Bin) -> Vec<String> {
    let n = bin.n as f64;
    vec![bin.n.to_string(), cell(bin.expected / n), cell(bin.observed as f64 / n)]
}
