//! A risk score against times and events.

use super::{Args, Cohort, CsvTable, Evaluation, cell, score_column};
use crate::error::{Error, Result};
use crate::report::plot::survival::Group;
use crate::report::plot::{self, forest};
use crate::stats::concordance::{auc_at, brier_at, harrell, uno};
use crate::stats::cox::{SurvivalData, Ties, cox, proportional_hazards};
use crate::stats::design::{Column, Design};
use crate::stats::survival::{CurveInterval, KaplanMeier, groups_by, log_rank};
use crate::stats::{LEVEL, quantile_sorted};
use serde_json::{Map, Value, json};

const SCORES: [&str; 2] = ["score", "value"];
const KIND: CurveInterval = CurveInterval::LogLog;

/// Follow-up of the cohort.
struct Follow {
    time: Vec<f64>,
    event: Vec<bool>,
    strata: Option<Vec<usize>>,
}

/// Quantiles of the score that divide the rows, or the value asked for.
pub fn cuts(args: &Args, score: &[f64]) -> Result<Vec<f64>> {
    let mut sorted = score.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |q| quantile_sorted(&sorted, q);
    Ok(match args.threshold.as_deref().unwrap_or("median") {
        "median" => at(0.5).into_iter().collect(),
        "tertiles" => [at(1.0 / 3.0), at(2.0 / 3.0)].into_iter().flatten().collect(),
        text => vec![text.parse().ok().filter(|t: &f64| t.is_finite()).ok_or_else(|| {
            Error::usage(format!("--threshold {text}: median, tertiles or a number"))
        })?],
    })
}

/// Names of the risk groups, the lowest first.
pub fn group_names(cuts: &[f64]) -> Vec<String> {
    match cuts {
        [_] => vec!["low risk".into(), "high risk".into()],
        [_, _] => vec!["low risk".into(), "middle".into(), "high risk".into()],
        _ => (0..=cuts.len()).map(|g| format!("group {g}")).collect(),
    }
}

/// The evaluation of one risk score, and of another beside it.
pub fn evaluate(args: &Args, cohort: &Cohort) -> Result<Evaluation> {
    let column = score_column(args, &cohort.predictions, &SCORES)?;
    let score = cohort.predictions.numbers(&column)?;
    let follow = Follow {
        time: cohort.labels.numbers("time")?,
        event: cohort.labels.flags("event")?,
        strata: strata(args, cohort)?,
    };
    let (time, event) = (&follow.time, &follow.event);
    let c = harrell(&score, time, event, follow.strata.as_deref())?;
    let cuts = cuts(args, &score)?;
    let group = groups_by(&score, &cuts);
    let names = group_names(&cuts);
    let curves = curves(&follow, &group, &names)?;
    let test = log_rank(time, event, &group, names.len(), follow.strata.as_deref(), args.rho)?;
    let per_unit = hazard(&score, &follow, "score");
    let top: Vec<f64> = group.iter().map(|g| f64::from(u8::from(*g == cuts.len()))).collect();
    let between = hazard(&top, &follow, "highest group");
    let tau =
        curves.iter().filter_map(|k| k.steps.last()).map(|s| s.time).fold(f64::INFINITY, f64::min);
    let groups: Vec<Value> = curves
        .iter()
        .zip(&names)
        .map(|(km, name)| {
            let (median, lower, upper) = km.quantile(0.5, KIND, LEVEL);
            let restricted = km.restricted_mean(tau);
            json!({ "group": name, "rows": km.n, "events": km.events, "median": median,
                    "median_lower": lower, "median_upper": upper,
                    "restricted_mean": restricted.map(|r| r.0),
                    "restricted_mean_se": restricted.map(|r| r.1) })
        })
        .collect();
    let mut metrics = json!({
        "summary": {
            "rows": time.len(), "events": event.iter().filter(|e| **e).count(), "score": column,
            "harrell_c": c.c, "harrell_c_se": c.se, "log_rank_p": test.p,
            "hazard_ratio_highest_group": between["hazard_ratio"],
        },
        "harrell": c, "uno": uno(&score, time, event, None)?,
        "auc_at_time": auc_at_times(&score, &follow)?,
        "cuts": cuts, "groups": groups, "restricted_to": tau, "log_rank": test,
        "log_rank_rho": args.rho, "strata": args.strata,
        "cox_score": per_unit, "cox_highest_group": between,
    });
    let brier = brier_scores(cohort, &follow)?;
    if !brier.is_empty() {
        metrics["brier_at_time"] = json!(brier);
    }
    if let Some(table) = &cohort.other {
        let other = table.numbers(&score_column(args, table, &SCORES)?)?;
        metrics["comparison"] =
            json!({ "harrell": harrell(&other, time, event, follow.strata.as_deref())? });
    }
    let figures = figures(args, &column, &curves, &names, &metrics);
    Ok(Evaluation { metrics, figures, tables: vec![curve_table(&curves, &names)] })
}

/// Curves of the groups, and the hazard ratios of the score.
fn figures(
    args: &Args,
    column: &str,
    curves: &[KaplanMeier],
    names: &[String],
    metrics: &Value,
) -> Vec<plot::Figure> {
    let top = names.last().map_or("", String::as_str);
    let (per_unit, between) = (&metrics["cox_score"], &metrics["cox_highest_group"]);
    let mut remark = Vec::new();
    remark.extend(
        metrics["log_rank"]["p"].as_f64().map(|p| format!("log-rank {}", plot::p_value(p))),
    );
    if let Some(row) = forest_row("", between) {
        let [hr, low, high] = [row.ratio, row.lower, row.upper].map(plot::ratio);
        remark.push(format!("HR of {top} {hr} ({low}\u{2013}{high})"));
    }
    let drawn: Vec<Group<'_>> =
        curves.iter().zip(names).map(|(curve, name)| Group { name: name.clone(), curve }).collect();
    let mut out = vec![plot::survival::kaplan_meier(&drawn, KIND, LEVEL, &args.unit, &remark)];
    let rows: Vec<forest::Row> = [
        forest_row(&format!("{column}, per unit"), per_unit),
        forest_row(&format!("{top} against the rest"), between),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !rows.is_empty() {
        out.push(forest::forest("hazard_ratios", "Hazard ratios", "hazard ratio", &rows));
    }
    out
}

fn strata(args: &Args, cohort: &Cohort) -> Result<Option<Vec<usize>>> {
    let Some(column) = &args.strata else { return Ok(None) };
    let cells: Vec<String> = cohort.labels.text(column)?.into_iter().map(String::from).collect();
    match Column::factor(&cells) {
        Column::Factor { codes, .. } => Ok(Some(codes)),
        Column::Numeric(_) => Ok(None),
    }
}

fn curves(follow: &Follow, group: &[usize], names: &[String]) -> Result<Vec<KaplanMeier>> {
    (0..names.len())
        .map(|g| {
            let rows: Vec<usize> = (0..group.len()).filter(|&i| group[i] == g).collect();
            if rows.is_empty() {
                return Err(Error::malformed(format!("no row in the group `{}`", names[g])));
            }
            let t: Vec<f64> = rows.iter().map(|&i| follow.time[i]).collect();
            let e: Vec<bool> = rows.iter().map(|&i| follow.event[i]).collect();
            KaplanMeier::new(&t, &e)
        })
        .collect()
}

fn curve_table(curves: &[KaplanMeier], names: &[String]) -> CsvTable {
    let mut rows = Vec::new();
    for (km, name) in curves.iter().zip(names) {
        for step in &km.steps {
            let at = km.at(step.time, KIND, LEVEL);
            let mut row = vec![name.clone(), cell(step.time)];
            row.extend([step.at_risk, step.events, step.censored].map(|n| n.to_string()));
            row.extend([Some(step.survival), at.se].map(cell));
            row.extend([at.interval.map(|i| i.lower), at.interval.map(|i| i.upper)].map(cell));
            rows.push(row);
        }
    }
    CsvTable {
        name: "kaplan_meier",
        header: vec![
            "group", "time", "at_risk", "events", "censored", "survival", "se", "lower", "upper",
        ],
        rows,
    }
}

/// AUC at the quartiles of the event times.
fn auc_at_times(score: &[f64], follow: &Follow) -> Result<Value> {
    let Follow { time, event, .. } = follow;
    let mut times: Vec<f64> =
        time.iter().zip(event).filter(|(_, e)| **e).map(|(t, _)| *t).collect();
    times.sort_by(f64::total_cmp);
    let mut out = Map::new();
    for q in [0.25, 0.5, 0.75] {
        if let Some(t) = quantile_sorted(&times, q) {
            out.insert(t.to_string(), json!(auc_at(score, time, event, t)?));
        }
    }
    Ok(Value::Object(out))
}

/// IPCW Brier scores of predicted survival probabilities in columns `survival_<time>`.
fn brier_scores(cohort: &Cohort, follow: &Follow) -> Result<Map<String, Value>> {
    let mut out = Map::new();
    let table = &cohort.predictions;
    for name in table.names() {
        let at = name.strip_prefix("survival_").and_then(|t| t.parse::<f64>().ok());
        if let Some(t) = at.filter(|t| t.is_finite()) {
            let survival = table.numbers(name)?;
            let score = brier_at(&survival, &follow.time, &follow.event, t)
                .map_err(|e| table.blame(e.context(name.clone())))?;
            out.insert(t.to_string(), json!(score));
        }
    }
    Ok(out)
}

/// Univariable Cox regression, or why there is none.
fn hazard(x: &[f64], follow: &Follow, name: &str) -> Value {
    let fit = || -> Result<Value> {
        let design = Design::single(name, x)?;
        let strata = follow.strata.as_deref();
        let data =
            SurvivalData { design: &design, time: &follow.time, event: &follow.event, strata };
        let fit = cox(&data, Ties::Efron, LEVEL)?;
        let term = &fit.terms[0];
        let proportional = proportional_hazards(&data, &fit).map(|t| t[0].p).ok();
        let (chi2, lr_p) = fit.likelihood_ratio();
        Ok(json!({
            "hazard_ratio": term.coef.exp(), "lower": term.wald.lower.exp(),
            "upper": term.wald.upper.exp(), "coef": term.coef, "se": term.se, "p": term.p,
            "wald_chi2": fit.wald_chi2, "score_chi2": fit.score_chi2, "lr_chi2": chi2, "lr_p": lr_p,
            "proportional_hazards_p": proportional,
        }))
    };
    fit().unwrap_or_else(|error| json!({ "not_possible": error.to_string() }))
}

fn forest_row(name: &str, hazard: &Value) -> Option<forest::Row> {
    let at = |key: &str| hazard[key].as_f64();
    Some(forest::Row {
        name: name.into(),
        ratio: at("hazard_ratio")?,
        lower: at("lower")?,
        upper: at("upper")?,
        p: at("p")?,
    })
}
