//! `histokern fit`: a logistic or Cox model of a table, as a TOML file.

use super::table::Table;
use super::{Global, Outcome};
use crate::error::{Error, Result};
use crate::report::atomic;
use crate::stats::LEVEL;
use crate::stats::cox::{SurvivalData, Ties, cox, proportional_hazards};
use crate::stats::design::{Column, Design};
use crate::stats::logistic::{self, Options, Term, balanced_weights, logistic};
use crate::stats::nomogram::pretty;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The kind of model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// Log odds of a binary outcome.
    Logistic,
    /// Log hazard of an event.
    Cox,
}

/// Fit a clinical or combined model: logistic or Cox regression of table columns
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Rows in which a column in use is missing are left out, and counted. Columns with text \
                  are categories against their first\nlevel. Separation, collinear columns and monotone \
                  likelihoods are errors."
)]
pub struct Args {
    /// logistic or cox
    #[arg(value_enum)]
    kind: ModelKind,
    /// CSV with one row a patient
    #[arg(value_name = "DATA.csv")]
    data: PathBuf,
    /// Outcome: a column of 0 and 1; for cox TIME,EVENT
    #[arg(long, value_name = "COLUMN[,COLUMN]", value_delimiter = ',', required = true)]
    outcome: Vec<String>,
    /// Columns to use
    #[arg(long, value_name = "COLUMN,..", value_delimiter = ',', required = true)]
    features: Vec<String>,
    /// Of these, columns of numbers that are categories
    #[arg(long, value_name = "COLUMN,..", value_delimiter = ',')]
    categories: Vec<String>,
    /// Firth's penalty (logistic): finite answers under separation
    #[arg(long)]
    firth: bool,
    /// Weight classes to equal totals (logistic)
    #[arg(long)]
    balanced: bool,
    /// File to write
    #[arg(long, short, value_name = "MODEL.toml")]
    out: PathBuf,
}

/// A fitted model as it stands in the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// What it predicts.
    pub kind: ModelKind,
    /// Columns of the outcome.
    pub outcome: Vec<String>,
    /// Rows used.
    pub rows: usize,
    /// Rows left out because a column was missing.
    pub rows_left_out: usize,
    /// Positive rows or events.
    pub events: usize,
    /// Log odds with every column 0; for Cox minus the linear predictor of the mean row.
    pub intercept: f64,
    /// (Partial) log-likelihood.
    pub loglik: f64,
    /// Likelihood-ratio statistic against no columns.
    pub lr_chi2: f64,
    /// Its p-value.
    pub lr_p: f64,
    /// p-value of the global test of proportional hazards (Cox).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proportional_hazards_p: Option<f64>,
    /// One a column of the design.
    pub coefficient: Vec<Coefficient>,
    /// One a feature.
    pub variable: Vec<Variable>,
}

/// One row of the coefficient table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coefficient {
    /// `age`, or `grade=3` for a category.
    pub name: String,
    /// Log odds or hazard ratio.
    pub coef: f64,
    /// Standard error.
    pub se: f64,
    /// Odds or hazard ratio.
    pub ratio: f64,
    /// Wald interval of the ratio.
    pub ratio_lower: f64,
    /// Wald interval of the ratio.
    pub ratio_upper: f64,
    /// Wald p-value.
    pub p: f64,
    /// Ratio of the model with this feature alone; absent where it cannot be fitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub univariable_ratio: Option<f64>,
    /// p-value in that model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub univariable_p: Option<f64>,
}

/// How a feature was observed: what a nomogram's axis needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// Column.
    pub name: String,
    /// Levels of a category, the reference first; empty for numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<String>,
    /// Axis marks of a number: its values when at most 10 occur, else round numbers over its range.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<f64>,
}

/// A fit in the terms of [`Model`].
struct Fitted {
    intercept: f64,
    loglik: f64,
    likelihood_ratio: (f64, f64),
    proportional_hazards_p: Option<f64>,
    terms: Vec<Term>,
    events: usize,
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let wanted = if args.kind == ModelKind::Cox { 2 } else { 1 };
    if args.outcome.len() != wanted {
        return Err(Error::usage("--outcome: one column for logistic, TIME,EVENT for cox"));
    }
    if args.kind == ModelKind::Cox && (args.firth || args.balanced) {
        return Err(Error::usage("--firth and --balanced belong to logistic"));
    }
    let used: Vec<&str> = args.outcome.iter().chain(&args.features).map(String::as_str).collect();
    let (table, left_out) = Table::read(&args.data)?.complete(&used)?;
    let columns: Vec<(&str, Column)> = args
        .features
        .iter()
        .map(|name| Ok((name.as_str(), column(&table, name, args)?)))
        .collect::<Result<_>>()?;
    let refs: Vec<(&str, &Column)> = columns.iter().map(|(n, c)| (*n, c)).collect();
    let blame = |e: Error| table.blame(e);
    let fitted = fit(args, &table, &Design::new(&refs).map_err(blame)?).map_err(blame)?;
    let alone: Vec<Option<Term>> = refs
        .iter()
        .flat_map(|one| {
            let design = Design::new(&[*one]);
            let width = design.as_ref().map_or(1, Design::columns);
            match design.and_then(|d| fit(args, &table, &d)) {
                Ok(fit) => fit.terms.into_iter().map(Some).collect(),
                Err(_) => vec![None; width],
            }
        })
        .collect();
    let model = Model {
        kind: args.kind,
        outcome: args.outcome.clone(),
        rows: table.len(),
        rows_left_out: left_out,
        events: fitted.events,
        intercept: fitted.intercept,
        loglik: fitted.loglik,
        lr_chi2: fitted.likelihood_ratio.0,
        lr_p: fitted.likelihood_ratio.1,
        proportional_hazards_p: fitted.proportional_hazards_p,
        coefficient: fitted.terms.iter().zip(&alone).map(|(t, a)| row(t, a.as_ref())).collect(),
        variable: columns.iter().map(|(name, column)| variable(name, column)).collect(),
    };
    let text = toml::to_string(&model).map_err(|e| Error::malformed(e.to_string()))?;
    atomic::write_bytes(&args.out, text.as_bytes())?;
    if left_out > 0 {
        global.say(&format!("{left_out} rows left out: a column in use is missing"));
    }
    if !global.quiet {
        for c in &model.coefficient {
            let [low, high] = [c.ratio_lower, c.ratio_upper];
            let p = if c.p < 1e-4 { "< 0.0001".into() } else { format!("{:.4}", c.p) };
            println!("{:24} {:8.4} ({low:.4}-{high:.4})  p {p}", c.name, c.ratio);
        }
    }
    Ok(Outcome::Done)
}

fn column(table: &Table, name: &str, args: &Args) -> Result<Column> {
    let cells = table.text(name)?;
    let numeric = cells.iter().all(|c| c.parse::<f64>().is_ok_and(f64::is_finite));
    if numeric && !args.categories.iter().any(|c| c == name) {
        return Ok(Column::Numeric(table.numbers(name)?));
    }
    Ok(Column::factor(&cells.iter().map(|c| c.to_string()).collect::<Vec<_>>()))
}

fn fit(args: &Args, table: &Table, design: &Design) -> Result<Fitted> {
    match args.kind {
        ModelKind::Logistic => {
            let y = table.flags(&args.outcome[0])?;
            let weights = args.balanced.then(|| balanced_weights(&y));
            let options = Options { weights, offset: None, firth: args.firth };
            let fit: logistic::Logistic = logistic(design, &y, &options, LEVEL)?;
            let (chi2, _, p) = fit.likelihood_ratio();
            Ok(Fitted {
                intercept: fit.terms[0].coef,
                loglik: fit.loglik,
                likelihood_ratio: (chi2, p),
                proportional_hazards_p: None,
                terms: fit.terms[1..].to_vec(),
                events: y.iter().filter(|y| **y).count(),
            })
        }
        ModelKind::Cox => {
            let time = table.numbers(&args.outcome[0])?;
            let event = table.flags(&args.outcome[1])?;
            let data = SurvivalData { design, time: &time, event: &event, strata: None };
            let fit = cox(&data, Ties::Efron, LEVEL)?;
            let tests = proportional_hazards(&data, &fit).ok();
            Ok(Fitted {
                intercept: -fit.means.iter().zip(fit.coef()).map(|(m, b)| m * b).sum::<f64>(),
                loglik: fit.loglik,
                likelihood_ratio: fit.likelihood_ratio(),
                proportional_hazards_p: tests.and_then(|t| t.last().map(|t| t.p)),
                terms: fit.terms,
                events: fit.events,
            })
        }
    }
}

fn row(term: &Term, alone: Option<&Term>) -> Coefficient {
    Coefficient {
        name: term.name.clone(),
        coef: term.coef,
        se: term.se,
        ratio: term.coef.exp(),
        ratio_lower: term.wald.lower.exp(),
        ratio_upper: term.wald.upper.exp(),
        p: term.p,
        univariable_ratio: alone.map(|t| t.coef.exp()),
        univariable_p: alone.map(|t| t.p),
    }
}

fn variable(name: &str, column: &Column) -> Variable {
    match column {
        Column::Factor { levels, .. } => {
            Variable { name: name.into(), levels: levels.clone(), marks: Vec::new() }
        }
        Column::Numeric(values) => {
            let mut marks = values.clone();
            marks.sort_by(f64::total_cmp);
            marks.dedup();
            if let (true, Some(&low), Some(&high)) = (marks.len() > 10, marks.first(), marks.last())
            {
                marks = pretty(low, high, 10);
            }
            Variable { name: name.into(), levels: Vec::new(), marks }
        }
    }
}

impl Model {
    /// Reads a model file.
    ///
    /// # Errors
    /// Naming the file: unreadable, not such a model, a coefficient missing or not finite.
    pub fn read(path: &Path) -> Result<Model> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io("read", e).context(name.clone()))?;
        let wrong = |what: String| Error::malformed(what).context(name.clone());
        let model: Model = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        if let Some(c) = model.coefficient.iter().find(|c| !c.coef.is_finite()) {
            return Err(wrong(format!("coefficient {} is {}", c.name, c.coef)));
        }
        Ok(model)
    }

    /// The coefficient of a column of the design.
    ///
    /// # Errors
    /// There is none.
    pub fn coef(&self, name: &str) -> Result<f64> {
        let found = self.coefficient.iter().find(|c| c.name == name);
        found.map(|c| c.coef).ok_or_else(|| Error::malformed(format!("no coefficient {name}")))
    }
}
