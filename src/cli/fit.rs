//! `histokern fit`: a logistic or Cox model of a table, as a TOML file.

use super::table::Table;
use super::{Global, Outcome, print_json};
use crate::error::{Error, Result};
use crate::report::atomic;
use crate::stats::LEVEL;
use crate::stats::cox::{SurvivalData, Ties, cox, predict_survival, proportional_hazards};
use crate::stats::design::{Column, Design};
use crate::stats::logistic::{Options, Term, balanced_weights, logistic, profile_interval};
use crate::stats::model::{Baseline, Coefficient, Model, ModelKind, Univariable, Variable};
use crate::stats::nomogram::pretty;
use std::path::PathBuf;

/// The kind of model, as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Log odds of a binary outcome
    Logistic,
    /// Log hazard of an event
    Cox,
}

/// Fit a clinical or combined model: logistic or Cox regression of table columns
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Rows in which a column in use is missing are left out, and counted. Columns with text \
                  are categories against their first\nlevel. Separation, collinear columns and monotone \
                  likelihoods are errors. `histokern predict --model` applies the\nmodel to new \
                  patients, `histokern nomogram` draws it.\n\nExamples:\n  \
                  histokern fit logistic cohort.csv --outcome label --features p_1,age,size_cm -o combined.toml\n  \
                  histokern fit cox cohort.csv --outcome time,event --features value,age,grade --categories grade \\\n      \
                  --select 0.1 -o prognosis.toml"
)]
pub struct Args {
    /// logistic or cox
    #[arg(value_enum)]
    kind: Kind,
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
    /// Keep only features that alone have a likelihood-ratio p-value below P
    #[arg(long, value_name = "P")]
    select: Option<f64>,
    /// Firth's penalty (logistic): finite answers under separation
    #[arg(long)]
    firth: bool,
    /// Weight classes to equal totals (logistic)
    #[arg(long)]
    balanced: bool,
    /// File to write
    #[arg(long, short, value_name = "MODEL.toml")]
    out: PathBuf,
    /// Print the model as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// The plainest fit.
    pub fn of(cox: bool, data: PathBuf, outcome: &[&str], features: &[&str], out: PathBuf) -> Args {
        let own = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        Args {
            kind: if cox { Kind::Cox } else { Kind::Logistic },
            data,
            outcome: own(outcome),
            features: own(features),
            categories: Vec::new(),
            select: None,
            firth: false,
            balanced: false,
            out,
            json: false,
        }
    }

    /// The same with Firth's penalty.
    pub fn penalised(self) -> Args {
        Args { firth: true, ..self }
    }
}

/// A fit in the terms of [`Model`].
struct Fitted {
    intercept: f64,
    loglik: f64,
    likelihood_ratio: (f64, f64),
    proportional_hazards_p: Option<f64>,
    baseline: Vec<Baseline>,
    terms: Vec<Term>,
    /// Profile intervals of the terms; empty for Cox.
    profiles: Vec<(Option<f64>, Option<f64>)>,
    events: usize,
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let model = fit(args)?;
    if model.rows_left_out > 0 {
        global.say(&format!("{} rows left out: a column in use is missing", model.rows_left_out));
    }
    if args.json {
        print_json(&serde_json::json!(model));
    } else if !global.quiet {
        print(&model);
    }
    Ok(Outcome::Done)
}

/// Fits the model, writes it and returns it.
///
/// # Errors
/// Naming the file and, where it applies, line and column.
pub fn fit(args: &Args) -> Result<Model> {
    let model = fit_table(args)?;
    let text = toml::to_string(&model).map_err(|e| Error::malformed(e.to_string()))?;
    atomic::write_bytes(&args.out, text.as_bytes())?;
    Ok(model)
}

fn print(model: &Model) {
    let ratio = if model.kind == ModelKind::Logistic { "odds ratio" } else { "hazard ratio" };
    println!("{:24} {ratio}", format!("{} rows, {} events", model.rows, model.events));
    let p_text = |p: f64| if p < 1e-4 { "< 0.0001".into() } else { format!("{p:.4}") };
    for u in &model.univariable {
        match (u.ratio, u.ratio_lower, u.ratio_upper, u.p) {
            (Some(r), Some(low), Some(high), Some(p)) => {
                println!("  alone {:16} {r:8.4} ({low:.4}-{high:.4})  p {}", u.name, p_text(p));
            }
            _ => {
                let why = u.not_possible.as_deref().unwrap_or_default();
                println!("  alone {:16} not possible: {why}", u.name);
            }
        }
    }
    for c in &model.coefficient {
        let [low, high] = [c.ratio_lower, c.ratio_upper];
        println!("{:24} {:8.4} ({low:.4}-{high:.4})  p {}", c.name, c.ratio, p_text(c.p));
    }
}

fn fit_table(args: &Args) -> Result<Model> {
    let wanted = if args.kind == Kind::Cox { 2 } else { 1 };
    if args.outcome.len() != wanted {
        return Err(Error::usage("--outcome: one column for logistic, TIME,EVENT for cox"));
    }
    if args.kind == Kind::Cox && (args.firth || args.balanced) {
        return Err(Error::usage("--firth and --balanced belong to logistic"));
    }
    if let Some(p) = args.select.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
        return Err(Error::usage(format!("--select {p}: a p-value above 0 and up to 1")));
    }
    let used: Vec<&str> = args.outcome.iter().chain(&args.features).map(String::as_str).collect();
    let (table, left_out) = Table::read(&args.data)?.complete(&used)?;
    let columns: Vec<(&str, Column)> = args
        .features
        .iter()
        .map(|name| Ok((name.as_str(), column(&table, name, args)?)))
        .collect::<Result<_>>()?;
    let (univariable, chosen) = alone(args, &table, &columns)?;
    let refs: Vec<(&str, &Column)> =
        chosen.iter().map(|&i| (columns[i].0, &columns[i].1)).collect();
    let blame = |e: Error| table.blame(e);
    let design = Design::new(&refs).map_err(blame)?;
    let fitted = fit_design(args, &table, &design, true).map_err(blame)?;
    let coef: Vec<f64> = fitted.terms.iter().map(|t| t.coef).collect();
    let predictors = (0..design.rows())
        .map(|i| {
            fitted.intercept + design.row(i).iter().zip(&coef).map(|(x, b)| x * b).sum::<f64>()
        })
        .fold([f64::INFINITY, f64::NEG_INFINITY], |[a, b], lp| [a.min(lp), b.max(lp)]);
    Ok(Model {
        kind: if args.kind == Kind::Cox { ModelKind::Cox } else { ModelKind::Logistic },
        outcome: args.outcome.clone(),
        rows: table.len(),
        rows_left_out: left_out,
        events: fitted.events,
        intercept: fitted.intercept,
        linear_predictor: predictors,
        loglik: fitted.loglik,
        lr_chi2: fitted.likelihood_ratio.0,
        lr_p: fitted.likelihood_ratio.1,
        proportional_hazards_p: fitted.proportional_hazards_p,
        selected_below: args.select,
        baseline: fitted.baseline,
        coefficient: fitted
            .terms
            .iter()
            .enumerate()
            .map(|(j, term)| row(term, fitted.profiles.get(j).copied().unwrap_or_default()))
            .collect(),
        variable: refs.iter().map(|(name, column)| variable(name, column)).collect(),
        univariable,
    })
}

/// Each feature in a model of its own, and which features go on to the joint model.
fn alone(
    args: &Args,
    table: &Table,
    columns: &[(&str, Column)],
) -> Result<(Vec<Univariable>, Vec<usize>)> {
    let (mut rows, mut chosen) = (Vec::new(), Vec::new());
    for (i, (name, column)) in columns.iter().enumerate() {
        let design = Design::new(&[(*name, column)]);
        match design.and_then(|design| fit_design(args, table, &design, false)) {
            Ok(fit) => {
                let p = fit.likelihood_ratio.1;
                if args.select.is_none_or(|limit| p < limit) {
                    chosen.push(i);
                }
                rows.extend(fit.terms.iter().map(|t| Univariable {
                    name: t.name.clone(),
                    ratio: Some(t.coef.exp()),
                    ratio_lower: Some(t.wald.lower.exp()),
                    ratio_upper: Some(t.wald.upper.exp()),
                    p: Some(t.p),
                    feature_p: Some(p),
                    not_possible: None,
                }));
            }
            Err(error) => {
                // Selection cannot judge it; asked for by name, the joint fit says what is wrong.
                if args.select.is_none() {
                    chosen.push(i);
                }
                rows.push(Univariable {
                    name: name.to_string(),
                    ratio: None,
                    ratio_lower: None,
                    ratio_upper: None,
                    p: None,
                    feature_p: None,
                    not_possible: Some(error.to_string()),
                });
            }
        }
    }
    match args.select {
        Some(limit) if chosen.is_empty() => Err(table.blame(Error::malformed(format!(
            "no feature alone has p below {limit}: nothing to fit"
        )))),
        _ => Ok((rows, chosen)),
    }
}

fn column(table: &Table, name: &str, args: &Args) -> Result<Column> {
    let cells = table.text(name)?;
    let numeric = cells.iter().all(|c| c.parse::<f64>().is_ok_and(f64::is_finite));
    if numeric && !args.categories.iter().any(|c| c == name) {
        return Ok(Column::Numeric(table.numbers(name)?));
    }
    Ok(Column::factor(&cells.iter().map(|c| c.to_string()).collect::<Vec<_>>()))
}

/// `whole`: also what only the joint model shows, profile intervals and baseline survival.
fn fit_design(args: &Args, table: &Table, design: &Design, whole: bool) -> Result<Fitted> {
    match args.kind {
        Kind::Logistic => fit_logistic(args, table, design, whole),
        Kind::Cox => fit_cox(args, table, design, whole),
    }
}

fn fit_logistic(args: &Args, table: &Table, design: &Design, whole: bool) -> Result<Fitted> {
    let y = table.flags(&args.outcome[0])?;
    let weights = args.balanced.then(|| balanced_weights(&y));
    let options = Options { weights, offset: None, firth: args.firth };
    let fit = logistic(design, &y, &options, LEVEL)?;
    let (chi2, _, p) = fit.likelihood_ratio();
    let profiles = if whole {
        (1..fit.terms.len())
            .map(|j| profile_interval(design, &y, &options, &fit, j, LEVEL))
            .collect::<Result<_>>()?
    } else {
        Vec::new()
    };
    Ok(Fitted {
        intercept: fit.terms[0].coef,
        loglik: fit.loglik,
        likelihood_ratio: (chi2, p),
        proportional_hazards_p: None,
        baseline: Vec::new(),
        terms: fit.terms[1..].to_vec(),
        profiles,
        events: y.iter().filter(|y| **y).count(),
    })
}

fn fit_cox(args: &Args, table: &Table, design: &Design, whole: bool) -> Result<Fitted> {
    let time = table.numbers(&args.outcome[0])?;
    let event = table.flags(&args.outcome[1])?;
    let data = SurvivalData { design, time: &time, event: &event, strata: None };
    let fit = cox(&data, Ties::Efron, LEVEL)?;
    let (mut tests, mut baseline) = (None, Vec::new());
    if whole {
        tests = proportional_hazards(&data, &fit).ok();
        let mut events: Vec<f64> =
            time.iter().zip(&event).filter(|(_, e)| **e).map(|(t, _)| *t).collect();
        events.sort_by(f64::total_cmp);
        // Round times up to the last event: what a reader of the nomogram asks for.
        let last = events.last().copied().unwrap_or_default();
        let mut times = pretty(0.0, last, 4);
        times.retain(|t| *t > 0.0 && *t <= last);
        let mean = predict_survival(&data, &fit, &fit.means, 0, &times)?;
        baseline.extend(mean.iter().map(|p| Baseline { time: p.time, survival: p.survival }));
    }
    Ok(Fitted {
        intercept: -fit.means.iter().zip(fit.coef()).map(|(m, b)| m * b).sum::<f64>(),
        loglik: fit.loglik,
        likelihood_ratio: fit.likelihood_ratio(),
        proportional_hazards_p: tests.and_then(|t| t.last().map(|t| t.p)),
        baseline,
        terms: fit.terms,
        profiles: Vec::new(),
        events: fit.events,
    })
}

fn row(term: &Term, profile: (Option<f64>, Option<f64>)) -> Coefficient {
    Coefficient {
        name: term.name.clone(),
        coef: term.coef,
        se: term.se,
        ratio: term.coef.exp(),
        ratio_lower: term.wald.lower.exp(),
        ratio_upper: term.wald.upper.exp(),
        profile_lower: profile.0.map(f64::exp),
        profile_upper: profile.1.map(f64::exp),
        p: term.p,
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
