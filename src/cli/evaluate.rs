//! `histokern evaluate`: predictions against what happened, as `metrics.json` and `metrics.csv`.

use super::common::make_folder;
use super::table::{Table, missing};
use super::{Global, Outcome, print_json};
use crate::error::{Context, Error, Result};
use crate::report::atomic;
use crate::stats::bootstrap::Plan;
use crate::stats::calibration::{self, Bins};
use crate::stats::concordance::{auc_at, harrell, uno};
use crate::stats::correlation::{self as corr, SpearmanSe};
use crate::stats::cox::{SurvivalData, Ties, cox, proportional_hazards};
use crate::stats::decision::{decision_curve, reclassification};
use crate::stats::design::Design;
use crate::stats::roc::{Roc, delong_paired, one_vs_rest};
use crate::stats::survival::{CurveInterval, KaplanMeier, groups_by, log_rank};
use crate::stats::threshold::{Confusion, multi_confusion, precision_recall};
use crate::stats::{LEVEL, quantile_sorted};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// What the predictions are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Task {
    Binary,
    Multiclass,
    Regression,
    Survival,
}

/// Judge predictions against labels: discrimination, calibration, utility, with intervals
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Rows of the two files are joined by the id column (the first one unless --id names it). \
                  A larger score speaks for the\npositive class or an earlier event; the direction is \
                  never flipped. Writes metrics.json and metrics.csv."
)]
pub struct Args {
    /// CSV of predictions: an id, and `score`, `value` or `p_<class>` columns
    #[arg(value_name = "PREDICTIONS.csv")]
    predictions: PathBuf,
    /// CSV of labels: the id, and `label`, or `time` and `event`
    #[arg(long, value_name = "LABELS.csv")]
    labels: PathBuf,
    /// What is predicted
    #[arg(long, value_enum)]
    task: Task,
    /// A second set of predictions for the same rows, to compare with
    #[arg(long, value_name = "OTHER.csv")]
    compare: Option<PathBuf>,
    /// Only rows whose column of the labels has this value: COLUMN=VALUE, COLUMN<=VALUE, COLUMN>VALUE
    #[arg(long, value_name = "COLUMN<=VALUE")]
    subgroup: Option<String>,
    /// Decision rule `score >= t`: youden (chosen on these rows) or a number; for survival the
    /// cut between low and high risk: median, tertiles or a number
    #[arg(long, value_name = "youden|V")]
    threshold: Option<String>,
    /// Id column of all files
    #[arg(long, value_name = "COLUMN")]
    id: Option<String>,
    /// Column of the score
    #[arg(long, value_name = "COLUMN")]
    score: Option<String>,
    /// Label that counts as positive [default: 1]
    #[arg(long, value_name = "LABEL")]
    positive: Option<String>,
    /// Bootstrap rounds
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    rounds: u32,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// The rows of all files, joined.
struct Cohort {
    predictions: Table,
    labels: Table,
    other: Option<Table>,
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let cohort = join(args)?;
    let mut metrics = match args.task {
        Task::Binary => binary(args, &cohort),
        Task::Multiclass => multiclass(&cohort),
        Task::Regression => regression(args, &cohort),
        Task::Survival => survival(args, &cohort),
    }
    .context(|| args.predictions.display().to_string())?;
    metrics["input"] = json!({
        "predictions": args.predictions, "labels": args.labels, "compare": args.compare,
        "subgroup": args.subgroup, "rows": cohort.labels.len(), "level": LEVEL,
        "bootstrap": { "rounds": args.rounds, "seed": args.seed },
    });
    make_folder(&args.out)?;
    let text = format!("{metrics:#}\n");
    atomic::write_bytes(&args.out.join("metrics.json"), text.as_bytes())?;
    let mut flat = csv::Writer::from_writer(Vec::new());
    let unwritten = |e: csv::Error| Error::malformed(e.to_string());
    flat.write_record(["metric", "value"]).map_err(unwritten)?;
    for (name, value) in leaves(&metrics) {
        flat.write_record([name, value]).map_err(unwritten)?;
    }
    let bytes = flat.into_inner().map_err(|e| Error::malformed(e.to_string()))?;
    atomic::write_bytes(&args.out.join("metrics.csv"), &bytes)?;
    if !global.quiet {
        print_json(&metrics["summary"]);
    }
    Ok(Outcome::Done)
}

/// Every number, flag and text of `value` with its path; missing ones as empty text.
fn leaves(value: &Value) -> Vec<(String, String)> {
    fn walk(value: &Value, path: String, out: &mut Vec<(String, String)>) {
        let under = |key: &str| if path.is_empty() { key.into() } else { format!("{path}.{key}") };
        match value {
            Value::Object(map) => map.iter().for_each(|(k, v)| walk(v, under(k), out)),
            Value::Array(list) => {
                list.iter().enumerate().for_each(|(i, v)| walk(v, under(&i.to_string()), out));
            }
            Value::Null => out.push((path, String::new())),
            Value::String(text) => out.push((path, text.clone())),
            other => out.push((path, other.to_string())),
        }
    }
    let mut out = Vec::new();
    walk(value, String::new(), &mut out);
    out
}

fn join(args: &Args) -> Result<Cohort> {
    let predictions = Table::read(&args.predictions)?;
    let labels = Table::read(&args.labels)?;
    let id = args.id.clone().unwrap_or_else(|| predictions.names()[0].clone());
    let label_id = args
        .id
        .clone()
        .unwrap_or_else(|| if labels.has(&id) { id.clone() } else { labels.names()[0].clone() });
    predictions.unique(&id)?;
    let mut labels = labels.aligned(&label_id, &predictions.text(&id)?)?;
    let mut predictions = predictions;
    if let Some(rule) = &args.subgroup {
        let keep = subgroup(rule, &labels)?;
        (predictions, labels) = (predictions.select(&keep), labels.select(&keep));
    }
    let other = match &args.compare {
        None => None,
        Some(path) => {
            let other = Table::read(path)?;
            let column = if other.has(&id) { id.clone() } else { other.names()[0].clone() };
            Some(other.aligned(&column, &predictions.text(&id)?)?)
        }
    };
    Ok(Cohort { predictions, labels, other })
}

/// Rows that `rule` keeps. A missing cell is in no subgroup.
fn subgroup(rule: &str, labels: &Table) -> Result<Vec<usize>> {
    let operators = ["<=", ">=", "<", ">", "="];
    let found = operators.iter().find_map(|op| Some((*op, rule.split_once(op)?)));
    let Some((operator, (column, value))) = found else {
        return Err(Error::usage(format!("--subgroup {rule}: COLUMN=VALUE or COLUMN<=VALUE")));
    };
    let (column, value) = (column.trim(), value.trim());
    let cells = labels.text(column)?;
    let mut keep = Vec::new();
    for (row, cell) in cells.into_iter().enumerate().filter(|(_, cell)| !missing(cell)) {
        let inside = if operator == "=" {
            cell == value
        } else {
            let limit: f64 = value
                .parse()
                .map_err(|_| Error::usage(format!("--subgroup {rule}: `{value}` is no number")))?;
            let cell: f64 = cell
                .parse()
                .map_err(|_| labels.at(row, column, &format!("`{cell}` is no number")))?;
            match operator {
                "<=" => cell <= limit,
                ">=" => cell >= limit,
                "<" => cell < limit,
                _ => cell > limit,
            }
        };
        if inside {
            keep.push(row);
        }
    }
    if keep.is_empty() {
        return Err(labels.blame(Error::malformed(format!("no row has {rule}"))));
    }
    Ok(keep)
}

/// The column to read a score from: as asked, or the first of `usual` that there is, or the last
/// class probability.
fn score_column(args: &Args, table: &Table, usual: &[&str]) -> Result<String> {
    if let Some(column) = &args.score {
        return Ok(column.clone());
    }
    let classes = || table.names().iter().rev().find(|n| n.starts_with("p_"));
    usual
        .iter()
        .find(|n| table.has(n))
        .map(|n| n.to_string())
        .or_else(|| classes().cloned())
        .ok_or_else(|| {
            table.blame(Error::usage(format!("no column {}: use --score", usual.join(", "))))
        })
}

fn is_positive(args: &Args, labels: &Table, score: &str) -> Result<Vec<bool>> {
    let cells = labels.text("label")?;
    let named = score.strip_prefix("p_").filter(|class| cells.contains(class));
    let Some(positive) = args.positive.as_deref().or(named) else {
        return labels.flags("label");
    };
    if let Some(row) = cells.iter().position(|c| missing(c)) {
        return Err(labels.at(row, "label", "missing"));
    }
    Ok(cells.iter().map(|c| *c == positive).collect())
}

fn plan(args: &Args) -> Plan {
    Plan { rounds: args.rounds as usize, seed: args.seed }
}

fn binary(args: &Args, cohort: &Cohort) -> Result<Value> {
    let column = score_column(args, &cohort.predictions, &["score", "p_1", "value"])?;
    let score = cohort.predictions.numbers(&column)?;
    let y = is_positive(args, &cohort.labels, &column)?;
    let roc = Roc::new(&score, &y)?;
    let boot = roc.bootstrap(plan(args));
    let jackknife = roc.jackknife();
    let youden = roc.youden();
    let threshold = match args.threshold.as_deref().unwrap_or("youden") {
        "youden" => youden.map(|b| b.midpoint).ok_or_else(|| {
            Error::malformed("all scores are equal: there is no Youden threshold")
        })?,
        text => text
            .parse()
            .ok()
            .filter(|t: &f64| t.is_finite())
            .ok_or_else(|| Error::usage(format!("--threshold {text}: youden or a number")))?,
    };
    let (pr, average_precision) = precision_recall(&score, &y)?;
    let bca = (!jackknife.is_empty()).then(|| boot.bca(roc.auc(), &jackknife, LEVEL)).flatten();
    let chosen = Confusion::at(&score, &y, threshold)?.metrics(LEVEL);
    let mut out = json!({
        "summary": {
            "rows": y.len(), "positives": roc.positives(), "score": column, "auc": roc.auc(),
            "auc_delong": roc.delong(LEVEL), "average_precision": average_precision,
            "threshold": threshold, "accuracy": chosen.accuracy.estimate,
            "sensitivity": chosen.sensitivity.estimate, "specificity": chosen.specificity.estimate,
        },
        "auc": {
            "estimate": roc.auc(), "delong_se": roc.delong_variance().map(f64::sqrt),
            "delong": roc.delong(LEVEL), "delong_logit": roc.delong_logit(LEVEL),
            "hanley_mcneil_se": roc.hanley_mcneil_se(),
            "binomial_exact": roc.binomial_exact(LEVEL),
            "bootstrap_percentile": boot.percentile(LEVEL), "bootstrap_bca": bca,
            "partial_specificity_90": roc.partial_auc_mcclish(0.1),
            "mann_whitney_p": roc.mann_whitney_p(),
            "degenerate": roc.delong_variance().is_none_or(|v| v == 0.0),
        },
        "youden": youden,
        "at_threshold": chosen,
        "at_half": Confusion::at(&score, &y, 0.5)?.metrics(LEVEL),
        "average_precision": average_precision,
        "roc": roc.curve().iter().map(|p| json!({
            "threshold": p.threshold.is_finite().then_some(p.threshold),
            "sensitivity": p.sensitivity, "specificity": p.specificity })).collect::<Vec<_>>(),
        "precision_recall": pr,
    });
    if score.iter().all(|p| (0.0..=1.0).contains(p)) {
        out["calibration"] = calibrated(&score, &y)?;
        let thresholds: Vec<f64> = (1..100).map(|i| f64::from(i) / 100.0).collect();
        out["decision_curve"] = json!(decision_curve(&score, &y, &thresholds)?);
    }
    if let Some(table) = &cohort.other {
        let other = table.numbers(&score_column(args, table, &["score", "p_1", "value"])?)?;
        let test = delong_paired(&score, &other, &y, LEVEL).map_err(|e| table.blame(e))?;
        out["comparison"] = json!({ "other_auc": Roc::new(&other, &y)?.auc(), "delong": test });
        if score.iter().chain(&other).all(|p| (0.0..=1.0).contains(p)) {
            out["comparison"]["reclassification"] = json!(reclassification(&other, &score, &y)?);
        }
    }
    Ok(out)
}

/// Calibration of probabilities; the recalibration is left out, with its reason, where it does not
/// exist.
fn calibrated(p: &[f64], y: &[bool]) -> Result<Value> {
    Ok(json!({
        "brier": calibration::brier(p, y)?, "log_loss": calibration::log_loss(p, y)?,
        "recalibration": match calibration::calibration(p, y, LEVEL) {
            Ok(fit) => json!(fit),
            Err(error) => json!({ "not_possible": error.to_string() }),
        },
        "hosmer_lemeshow_10": calibration::hosmer_lemeshow(p, y, 10)?,
        "ece_10_equal_width": calibration::expected_error(p, y, Bins::EqualWidth(10))?,
        "curve_5_quantiles": calibration::curve(p, y, Bins::Quantile(5))?,
    }))
}

fn multiclass(cohort: &Cohort) -> Result<Value> {
    let table = &cohort.predictions;
    let classes: Vec<&str> = table.names().iter().filter_map(|n| n.strip_prefix("p_")).collect();
    if classes.len() < 2 {
        return Err(Error::usage("needs a column p_<class> for each of two or more classes"));
    }
    let columns =
        classes.iter().map(|c| table.numbers(&format!("p_{c}"))).collect::<Result<Vec<_>>>()?;
    let cells = cohort.labels.text("label")?;
    let truth = cells
        .iter()
        .enumerate()
        .map(|(row, cell)| {
            classes.iter().position(|c| c == cell).ok_or_else(|| {
                let what = format!("`{cell}` is none of {}", classes.join(", "));
                cohort.labels.at(row, "label", &what)
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
    Ok(json!({
        "summary": {
            "rows": truth.len(), "classes": classes, "macro_auc": auc.macro_mean,
            "accuracy": confusion.accuracy.estimate, "macro_f1": confusion.macro_f1,
            "kappa": confusion.kappa,
        },
        "classes": classes, "auc_one_vs_rest": auc, "confusion": confusion,
    }))
}

fn regression(args: &Args, cohort: &Cohort) -> Result<Value> {
    let column = score_column(args, &cohort.predictions, &["value", "score"])?;
    let x = cohort.predictions.numbers(&column)?;
    let y = cohort.labels.numbers("label")?;
    let n = x.len();
    let (rho, r) = (corr::spearman(&x, &y)?, corr::pearson(&x, &y)?);
    let agreement = corr::agreement(&x, &y)?;
    let boot = corr::spearman_bootstrap(&x, &y, plan(args))?;
    let interval = |se| rho.and_then(|rho| corr::spearman_interval(rho, n, se, LEVEL));
    let mut out = json!({
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
        "line": corr::line(&x, &y)?,
    });
    if let Some(table) = &cohort.other {
        let other = table.numbers(&score_column(args, table, &["value", "score"])?)?;
        out["comparison"] = json!({
            "spearman": corr::spearman(&other, &y)?, "agreement": corr::agreement(&other, &y)?,
        });
    }
    Ok(out)
}

fn survival(args: &Args, cohort: &Cohort) -> Result<Value> {
    let column = score_column(args, &cohort.predictions, &["score", "value"])?;
    let score = cohort.predictions.numbers(&column)?;
    let (time, event) = (cohort.labels.numbers("time")?, cohort.labels.flags("event")?);
    let c = harrell(&score, &time, &event, None)?;
    let whole = KaplanMeier::new(&time, &event)?;
    let mut sorted = score.clone();
    sorted.sort_by(f64::total_cmp);
    let at = |q| quantile_sorted(&sorted, q);
    let cuts: Vec<f64> = match args.threshold.as_deref().unwrap_or("median") {
        "median" => at(0.5).into_iter().collect(),
        "tertiles" => [at(1.0 / 3.0), at(2.0 / 3.0)].into_iter().flatten().collect(),
        text => vec![text.parse().ok().filter(|t: &f64| t.is_finite()).ok_or_else(|| {
            Error::usage(format!("--threshold {text}: median, tertiles or a number"))
        })?],
    };
    let group = groups_by(&score, &cuts);
    let mut curves = Vec::new();
    for g in 0..=cuts.len() {
        let rows: Vec<usize> = (0..group.len()).filter(|&i| group[i] == g).collect();
        if rows.is_empty() {
            return Err(Error::malformed(format!("no row in risk group {g} (cuts {cuts:?})")));
        }
        let t: Vec<f64> = rows.iter().map(|&i| time[i]).collect();
        let e: Vec<bool> = rows.iter().map(|&i| event[i]).collect();
        let km = KaplanMeier::new(&t, &e)?;
        let (median, lower, upper) = km.quantile(0.5, CurveInterval::LogLog, LEVEL);
        let points: Vec<Value> = km
            .steps
            .iter()
            .map(|s| json!({ "at": km.at(s.time, CurveInterval::LogLog, LEVEL), "step": s }))
            .collect();
        curves.push(json!({ "group": g, "rows": km.n, "events": km.events, "median": median,
                            "median_lower": lower, "median_upper": upper, "curve": points }));
    }
    let test = log_rank(&time, &event, &group, cuts.len() + 1, None, 0.0)?;
    let per_unit = hazard(&score, &time, &event, "score");
    let high: Vec<f64> = group.iter().map(|g| f64::from(u8::from(*g == cuts.len()))).collect();
    let between = hazard(&high, &time, &event, "highest group");
    let mut event_times: Vec<f64> =
        time.iter().zip(&event).filter(|(_, e)| **e).map(|(t, _)| *t).collect();
    event_times.sort_by(f64::total_cmp);
    let mut auc = Map::new();
    for q in [0.25, 0.5, 0.75] {
        if let Some(t) = quantile_sorted(&event_times, q) {
            auc.insert(t.to_string(), json!(auc_at(&score, &time, &event, t)?));
        }
    }
    let mut out = json!({
        "summary": {
            "rows": time.len(), "events": whole.events, "score": column, "harrell_c": c.c,
            "harrell_c_se": c.se, "log_rank_p": test.p,
            "hazard_ratio_highest_group": between["hazard_ratio"],
        },
        "harrell": c, "uno": uno(&score, &time, &event, None)?, "auc_at_time": auc,
        "cuts": cuts, "groups": curves, "log_rank": test,
        "cox_score": per_unit, "cox_highest_group": between,
    });
    if let Some(table) = &cohort.other {
        let other = table.numbers(&score_column(args, table, &["score", "value"])?)?;
        out["comparison"] = json!({ "harrell": harrell(&other, &time, &event, None)? });
    }
    Ok(out)
}

/// Univariable Cox regression, or why there is none.
fn hazard(x: &[f64], time: &[f64], event: &[bool], name: &str) -> Value {
    let fit = || -> Result<Value> {
        let design = Design::single(name, x)?;
        let data = SurvivalData { design: &design, time, event, strata: None };
        let fit = cox(&data, Ties::Efron, LEVEL)?;
        let term = &fit.terms[0];
        let proportional = proportional_hazards(&data, &fit).map(|t| t[0].p).ok();
        Ok(json!({
            "hazard_ratio": term.coef.exp(), "lower": term.wald.lower.exp(),
            "upper": term.wald.upper.exp(), "coef": term.coef, "se": term.se, "p": term.p,
            "proportional_hazards_p": proportional,
        }))
    };
    fit().unwrap_or_else(|error| json!({ "not_possible": error.to_string() }))
}
