//! `histokern evaluate`: predictions against what happened, as numbers (JSON, CSV) and figures.

mod baseline;
mod binary;
mod genes;
mod multiclass;
mod regression;
mod survival;

use super::common::make_folder;
use super::table::{Table, missing};
use super::{Global, Outcome, print_json};
use crate::error::{Context, Error, Result};
use crate::report::plot::Figure;
use crate::report::{atomic, csv};
use crate::stats::LEVEL;
use crate::stats::bootstrap::Plan;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What the predictions are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Task {
    /// A score against two classes
    Binary,
    /// Probabilities of several classes
    Multiclass,
    /// A value against a measurement
    Regression,
    /// A risk score against times and events
    Survival,
    /// Many values a row: one regression a column
    Genes,
}

/// Judge predictions against labels: discrimination, calibration, utility, with intervals
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Rows of the two files are joined by the id column (the first one unless --id names it). \
                  A larger score speaks for the\npositive class or an earlier event; the direction is \
                  never flipped. Writes metrics.json, metrics.csv, tables as CSV and\nfigures as SVG \
                  and PNG; `histokern report DIR` puts them on one page. Further columns of the labels \
                  are compared between\nthe outcomes in baseline.csv.\n\nExamples:\n  \
                  histokern evaluate out/predictions.csv --labels labels.csv --task binary --out eval\n  \
                  histokern evaluate new.csv --labels labels.csv --task binary --compare old.csv \\\n      \
                  --subgroup 'age<=50' --threshold 0.5 --out eval-young\n  \
                  histokern evaluate risk.csv --labels follow-up.csv --task survival --threshold tertiles --out km"
)]
pub struct Args {
    /// CSV of predictions: an id, and `score`, `value` or `p_<class>` columns; for genes one a gene
    #[arg(value_name = "PREDICTIONS.csv")]
    predictions: PathBuf,
    /// CSV of labels: the id, and `label`, or `time` and `event`; for genes one column a gene
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
    /// Column of the labels, in place of `label`
    #[arg(long, value_name = "COLUMN", default_value = "label")]
    label: String,
    /// Label that counts as positive [default: 1]
    #[arg(long, value_name = "LABEL")]
    positive: Option<String>,
    /// Column of the labels whose values are strata of log-rank test and Cox regression (survival)
    #[arg(long, value_name = "COLUMN")]
    strata: Option<String>,
    /// Weight of early events in the log-rank test: S(t)^RHO (survival)
    #[arg(long, value_name = "RHO", default_value_t = 0.0)]
    rho: f64,
    /// Unit of the times, for figures (survival)
    #[arg(long, value_name = "UNIT", default_value = "")]
    unit: String,
    /// CSV of genes: `gene` and `log2_fold_change` or `fold_change` (genes)
    #[arg(long, value_name = "CSV")]
    fold_change: Option<PathBuf>,
    /// Values are log10(1 + ratio): Pearson's r also of the ratios (genes)
    #[arg(long)]
    log10: bool,
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

impl Args {
    /// The plainest evaluation of the column `score` of `predictions` against `label`.
    pub fn of(
        task: Task,
        predictions: &Path,
        score: &str,
        labels: &Path,
        label: &str,
        out: PathBuf,
    ) -> Args {
        Args {
            predictions: predictions.into(),
            labels: labels.into(),
            task,
            compare: None,
            subgroup: None,
            threshold: None,
            id: None,
            score: Some(score.into()),
            label: label.into(),
            positive: None,
            strata: None,
            rho: 0.0,
            unit: String::new(),
            fold_change: None,
            log10: false,
            rounds: 2000,
            seed: 1,
            out,
        }
    }

    fn plan(&self) -> Plan {
        Plan { rounds: self.rounds as usize, seed: self.seed }
    }
}

/// The rows of all files, joined.
struct Cohort {
    predictions: Table,
    labels: Table,
    other: Option<Table>,
    /// Id column of the labels.
    id: String,
}

/// What an evaluation found.
struct Evaluation {
    metrics: Value,
    figures: Vec<Figure>,
    tables: Vec<CsvTable>,
}

/// A table to write as `<name>.csv`.
struct CsvTable {
    name: &'static str,
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// A cell: empty where there is no number.
fn cell(value: impl Into<Option<f64>>) -> String {
    value.into().map_or(String::new(), |v| v.to_string())
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let metrics = evaluate(args)?;
    if !global.quiet {
        print_json(&metrics["summary"]);
    }
    Ok(Outcome::Done)
}

/// Evaluates, writes everything and returns the metrics.
///
/// # Errors
/// Naming the file and, where it applies, the line and column.
pub fn evaluate(args: &Args) -> Result<Value> {
    let cohort = join(args)?;
    let Evaluation { mut metrics, figures, mut tables } = match args.task {
        Task::Binary => binary::evaluate(args, &cohort),
        Task::Multiclass => multiclass::evaluate(args, &cohort),
        Task::Regression => regression::evaluate(args, &cohort),
        Task::Survival => survival::evaluate(args, &cohort),
        Task::Genes => genes::evaluate(args, &cohort),
    }
    .context(|| args.predictions.display().to_string())?;
    if let Some((json, table)) = baseline::compare(args, &cohort)? {
        metrics["baseline"] = json;
        tables.push(table);
    }
    let shown = |path: &Path| path.display().to_string();
    metrics["input"] = json!({
        "task": format!("{:?}", args.task).to_lowercase(),
        "predictions": shown(&args.predictions), "labels": shown(&args.labels),
        "compare": args.compare.as_deref().map(shown), "subgroup": args.subgroup,
        "rows": cohort.labels.len(), "level": LEVEL,
        "bootstrap": { "rounds": args.rounds, "seed": args.seed },
    });
    write(&args.out, &metrics, &figures, &tables)?;
    Ok(metrics)
}

fn write(out: &PathBuf, metrics: &Value, figures: &[Figure], tables: &[CsvTable]) -> Result<()> {
    make_folder(out)?;
    for figure in figures {
        figure.write(out)?;
    }
    for table in tables {
        let path = out.join(format!("{}.csv", table.name));
        csv::write(&path, &table.header, table.rows.iter().cloned())?;
    }
    let rows = leaves(metrics).into_iter().map(|(name, value)| vec![name, value]);
    csv::write(&out.join("metrics.csv"), &["metric", "value"], rows)?;
    // Last, so that a folder with metrics.json is complete.
    atomic::write_bytes(&out.join("metrics.json"), format!("{metrics:#}\n").as_bytes())
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
    Ok(Cohort { predictions, labels, other, id: label_id })
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
