//! Answers to the oracles about curves, classes and the bootstrap.

use super::oracle::{LEVEL, numbers, pair, scores, text};
use super::table::Table;
use histokern::stats::bootstrap::{Bootstrap, Plan};
use histokern::stats::concordance::uno;
use histokern::stats::correlation::spearman_bootstrap;
use histokern::stats::lowess::{SPAN, lowess};
use histokern::stats::roc::{Roc, one_vs_rest};
use histokern::stats::threshold::{multi_confusion, precision_recall};
use serde_json::{Value, json};

pub fn smooth(table: &Table, data: &Value) -> histokern::Result<Value> {
    let rows = data["rows"].as_u64().unwrap() as usize;
    let (x, y) = (table.numbers(text(data, "x")), table.numbers(text(data, "y")));
    Ok(json!({ "smooth": lowess(&x[..rows], &y[..rows], SPAN)? }))
}

fn plan(args: &Value) -> Plan {
    Plan { rounds: args["reps"].as_u64().unwrap() as usize, seed: 3 }
}

pub fn band(table: &Table, data: &Value, args: &Value) -> histokern::Result<Value> {
    let (score, y) = scores(table, data);
    let at = numbers(&args["specificities"]);
    let mut band = Roc::new(&score, &y)?.bootstrap(plan(args), &at, LEVEL).band;
    band.sort_by(|a, b| a.specificity.total_cmp(&b.specificity));
    Ok(json!({
        "sensitivity": band.iter().map(|b| b.sensitivity).collect::<Vec<_>>(),
        "lower": band.iter().map(|b| b.interval.lower).collect::<Vec<_>>(),
        "upper": band.iter().map(|b| b.interval.upper).collect::<Vec<_>>(),
    }))
}

pub fn precision(table: &Table, data: &Value) -> histokern::Result<Value> {
    let (score, y) = scores(table, data);
    let (points, average) = precision_recall(&score, &y)?;
    Ok(json!({
        "average_precision": average,
        "precision": points.iter().map(|p| p.precision).collect::<Vec<_>>(),
        "recall": points.iter().map(|p| p.recall).collect::<Vec<_>>(),
    }))
}

pub fn multiclass(args: &Value) -> histokern::Result<Value> {
    let scores = numbers(&args["scores"]);
    let k = args["classes"].as_u64().unwrap() as usize;
    let truth: Vec<usize> = numbers(&args["truth"]).iter().map(|v| *v as usize).collect();
    let called: Vec<usize> = scores
        .chunks_exact(k)
        .map(|row| (0..k).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap())
        .collect();
    let auc = one_vs_rest(&scores, &truth, k)?;
    let m = multi_confusion(&called, &truth, k, LEVEL)?;
    Ok(json!({
        "auc": auc.classes, "macro_auc": auc.macro_mean, "accuracy": m.accuracy.estimate,
        "balanced_accuracy": m.balanced_accuracy, "macro_f1": m.macro_f1, "kappa": m.kappa,
    }))
}

pub fn bca(args: &Value) -> Value {
    let mut values = numbers(&args["values"]);
    values.sort_by(f64::total_cmp);
    let b = Bootstrap { values, undefined: 0, mean: 0.0, sd: None };
    let estimate = args["estimate"].as_f64().unwrap();
    json!({ "ci95": pair(b.bca(estimate, &numbers(&args["jackknife"]), LEVEL)) })
}

pub fn spearman(table: &Table, data: &Value, args: &Value) -> histokern::Result<Value> {
    let (x, y) = (table.numbers(text(data, "x")), table.numbers(text(data, "y")));
    let b = spearman_bootstrap(&x, &y, plan(args))?;
    Ok(json!({ "mean": b.mean, "sd": b.sd, "ci95": pair(b.percentile(LEVEL)) }))
}

pub fn uno_listed(args: &Value) -> histokern::Result<Value> {
    let event: Vec<bool> = numbers(&args["event"]).iter().map(|v| *v == 1.0).collect();
    let (risk, time) = (numbers(&args["risk"]), numbers(&args["time"]));
    Ok(json!({ "uno": uno(&risk, &time, &event, args["tau"].as_f64())?.c }))
}
