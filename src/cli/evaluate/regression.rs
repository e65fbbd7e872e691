//! A value against a measurement.

use super::{Args, Cohort, Evaluation, score_column};
use crate::error::Result;
use crate::report::plot::{self, measured};
use crate::stats::LEVEL;
use crate::stats::correlation::{self as corr, SpearmanSe};
use serde_json::json;

const SCORES: [&str; 2] = ["value", "score"];

/// The evaluation of one value, and of another beside it.
pub fn evaluate(args: &Args, cohort: &Cohort) -> Result<Evaluation> {
    let column = score_column(args, &cohort.predictions, &SCORES)?;
    let x = cohort.predictions.numbers(&column)?;
    let y = cohort.labels.numbers(&args.label)?;
    let n = x.len();
    let (rho, r) = (corr::spearman(&x, &y)?, corr::pearson(&x, &y)?);
    let agreement = corr::agreement(&x, &y)?;
    let boot = corr::spearman_bootstrap(&x, &y, args.plan())?;
    let interval = |se| rho.and_then(|rho| corr::spearman_interval(rho, n, se, LEVEL));
    let line = corr::line(&x, &y)?;
    let mut metrics = json!({
        "summary": {
            "rows": n, "score": column, "spearman": rho, "spearman_bootstrap": boot.percentile(LEVEL),
            "pearson": r, "r2_of_correlation": r.map(|r| r * r),
            "r2_determination": agreement.r2_determination, "mae": agreement.mae,
        },
        "spearman": {
            "estimate": rho, "p": rho.and_then(|v| corr::correlation_p(v, n)),
            "bonett_wright": interval(SpearmanSe::BonettWright),
            "fisher": interval(SpearmanSe::Fisher),
            "bootstrap_percentile": boot.percentile(LEVEL), "bootstrap_undefined": boot.undefined,
        },
        "pearson": {
            "estimate": r, "p": r.and_then(|v| corr::correlation_p(v, n)),
            "fisher": r.and_then(|v| corr::pearson_interval(v, n, LEVEL)),
            "r2_of_correlation": r.map(|r| r * r),
        },
        "kendall_tau_b": corr::kendall(&x, &y)?,
        "agreement": agreement,
        "line": line,
    });
    if let Some(table) = &cohort.other {
        let other = table.numbers(&score_column(args, table, &SCORES)?)?;
        metrics["comparison"] = json!({
            "spearman": corr::spearman(&other, &y)?, "agreement": corr::agreement(&other, &y)?,
        });
    }
    let mut remark = Vec::new();
    if let Some(rho) = rho {
        let p = corr::correlation_p(rho, n)
            .map_or(String::new(), |p| format!(", {}", plot::p_value(p)));
        remark.push(format!("\u{3c1} = {rho:.3}{p}"));
    }
    if let Some(r) = r {
        remark.push(format!("R\u{b2} = {:.3} (squared correlation)", r * r));
    }
    if let Some(share) = agreement.r2_determination {
        let share = format!("{share:.3}").replace('-', "\u{2212}");
        remark.push(format!("1 \u{2212} SSE/SST = {share}"));
    }
    let y_label = if args.label == "label" { "Measured" } else { &args.label };
    let labels = measured::Labels {
        name: "scatter",
        title: "Prediction against measurement",
        x: &format!("Predicted ({column})"),
        y: y_label,
    };
    let figures = vec![
        measured::scatter(&labels, &x, &y, line, true, &remark),
        measured::bland_altman(&x, &y, &agreement),
    ];
    Ok(Evaluation { metrics, figures, tables: Vec::new() })
}
