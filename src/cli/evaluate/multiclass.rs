//! Probabilities of several classes against the class.

use super::{Args, Cohort, Evaluation};
use crate::error::{Error, Result};
use crate::report::plot;
use crate::stats::LEVEL;
use crate::stats::roc::one_vs_rest;
use crate::stats::threshold::multi_confusion;
use serde_json::json;

/// The evaluation of `p_<class>` columns.
pub fn evaluate(args: &Args, cohort: &Cohort) -> Result<Evaluation> {
    let table = &cohort.predictions;
    let classes: Vec<&str> = table.names().iter().filter_map(|n| n.strip_prefix("p_")).collect();
    if classes.len() < 2 {
        return Err(Error::usage("needs a column p_<class> for each of two or more classes"));
    }
    let columns =
        classes.iter().map(|c| table.numbers(&format!("p_{c}"))).collect::<Result<Vec<_>>>()?;
    let cells = cohort.labels.text(&args.label)?;
    let truth = cells
        .iter()
        .enumerate()
        .map(|(row, cell)| {
            classes.iter().position(|c| c == cell).ok_or_else(|| {
                let what = format!("`{cell}` is none of {}", classes.join(", "));
                cohort.labels.at(row, &args.label, &what)
            })
        })
        .collect::<Result<Vec<usize>>>()?;
    let scores: Vec<f64> =
        (0..truth.len()).flat_map(|i| columns.iter().map(move |c| c[i])).collect();
    let k = classes.len();
    // The first of equal probabilities wins.
    let predicted: Vec<usize> = scores
        .chunks_exact(k)
        .map(|row| (0..k).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0))
        .collect();
    let auc = one_vs_rest(&scores, &truth, k)?;
    let confusion = multi_confusion(&predicted, &truth, k, LEVEL)?;
    let names: Vec<String> = classes.iter().map(|c| c.to_string()).collect();
    let figures = vec![plot::classes::confusion("Confusion matrix", &names, &confusion.counts)];
    let metrics = json!({
        "summary": {
            "rows": truth.len(), "classes": classes, "macro_auc": auc.macro_mean,
            "accuracy": confusion.accuracy.estimate, "macro_f1": confusion.macro_f1,
            "kappa": confusion.kappa,
        },
        "classes": classes, "auc_one_vs_rest": auc, "confusion": confusion,
    });
    Ok(Evaluation { metrics, figures, tables: Vec::new() })
}
