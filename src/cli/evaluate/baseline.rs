//! The first table of a study: every further column of the labels, compared between the outcomes.

use super::{Args, Cohort, CsvTable, Task, cell, score_column, survival};
use crate::cli::table::missing;
use crate::error::Result;
use crate::stats::compare::{chi_square, fisher_exact, kruskal_wallis, mann_whitney, welch};
use crate::stats::survival::groups_by;
use crate::stats::{LEVEL, quantile_sorted};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Numbers with at most this many values are counted as categories.
const FEW: usize = 5;
/// A column with more categories than this is a name, not a characteristic.
const MANY: usize = 12;

/// Rows of each group with their cell, in the order of the groups.
type Grouped<'a> = Vec<Vec<&'a str>>;

/// The comparison of all columns that are neither id nor outcome; `None` when there is no such column
/// or no grouping (regression).
pub fn compare(args: &Args, cohort: &Cohort) -> Result<Option<(Value, CsvTable)>> {
    let Some((names, group)) = groups(args, cohort)? else { return Ok(None) };
    let outcome = [args.label.as_str(), "time", "event", cohort.id.as_str()];
    let strata = args.strata.as_deref();
    let mut json = Vec::new();
    let mut rows = Vec::new();
    for column in cohort.labels.names() {
        if outcome.contains(&column.as_str()) || strata == Some(column.as_str()) {
            continue;
        }
        let cells = cohort.labels.text(column)?;
        let mut grouped: Grouped<'_> = vec![Vec::new(); names.len()];
        for (cell, g) in cells.iter().zip(&group).filter(|(c, _)| !missing(c)) {
            grouped[*g].push(cell);
        }
        let absent = cells.iter().filter(|c| missing(c)).count();
        if let Some(numbers) = numeric(&grouped) {
            json.push(numeric_row(column, &names, &numbers, absent, &mut rows));
        } else if let Some(value) = counted(column, &names, &grouped, absent, &mut rows) {
            json.push(value);
        }
    }
    if json.is_empty() {
        return Ok(None);
    }
    let header = vec!["variable", "level", "group", "rows", "summary", "p", "test"];
    Ok(Some((json!(json), CsvTable { name: "baseline", header, rows })))
}

/// Names of the groups and the group of each row.
fn groups(args: &Args, cohort: &Cohort) -> Result<Option<(Vec<String>, Vec<usize>)>> {
    match args.task {
        Task::Regression | Task::Genes => Ok(None),
        Task::Survival => {
            let column = score_column(args, &cohort.predictions, &["score", "value"])?;
            let score = cohort.predictions.numbers(&column)?;
            let cuts = survival::cuts(args, &score)?;
            Ok(Some((survival::group_names(&cuts), groups_by(&score, &cuts))))
        }
        Task::Binary | Task::Multiclass => {
            let cells = cohort.labels.text(&args.label)?;
            let mut names: Vec<String> = cells.iter().map(|c| c.to_string()).collect();
            names.sort();
            names.dedup();
            let place = |c: &&str| names.iter().position(|n| n == c).unwrap_or(0);
            let group = cells.iter().map(place).collect();
            let names = names.iter().map(|n| format!("{} {n}", args.label)).collect();
            Ok(Some((names, group)))
        }
    }
}

fn numeric(grouped: &Grouped<'_>) -> Option<Vec<Vec<f64>>> {
    let parse = |c: &&str| c.parse::<f64>().ok().filter(|v| v.is_finite());
    let numbers: Option<Vec<Vec<f64>>> =
        grouped.iter().map(|g| g.iter().map(parse).collect()).collect();
    let numbers = numbers?;
    let mut all = numbers.concat();
    all.sort_by(f64::total_cmp);
    all.dedup();
    (all.len() > FEW).then_some(numbers)
}

fn numeric_row(
    column: &str,
    names: &[String],
    numbers: &[Vec<f64>],
    absent: usize,
    rows: &mut Vec<Vec<String>>,
) -> Value {
    let (mut groups, mut p_welch) = (Vec::new(), None);
    let p_rank = match numbers {
        [a, b] => {
            p_welch = welch(a, b, LEVEL).ok().map(|t| t.p);
            mann_whitney(a, b).ok().and_then(|t| t.p)
        }
        many => {
            let slices: Vec<&[f64]> = many.iter().map(Vec::as_slice).collect();
            kruskal_wallis(&slices).ok().flatten().map(|t| t.2)
        }
    };
    let rank_test = if numbers.len() == 2 { "Mann-Whitney" } else { "Kruskal-Wallis" };
    for (name, values) in names.iter().zip(numbers) {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let q = |q| quantile_sorted(&sorted, q);
        let mean = (!values.is_empty()).then(|| crate::stats::mean(values));
        let sd = crate::stats::variance(values).map(f64::sqrt);
        groups.push(json!({ "group": name, "rows": values.len(), "mean": mean, "sd": sd,
                            "median": q(0.5), "q1": q(0.25), "q3": q(0.75) }));
        let show = |v: Option<f64>| v.map_or("-".to_string(), |v| format!("{v:.2}"));
        let n = values.len().to_string();
        let line = |level: &str, text: String, p: Option<f64>, test: &str| {
            vec![column.into(), level.into(), name.clone(), n.clone(), text, cell(p), test.into()]
        };
        if p_welch.is_some() {
            let text = format!("{} \u{b1} {}", show(mean), show(sd));
            rows.push(line("mean \u{b1} SD", text, p_welch, "Welch"));
        }
        let text = format!("{} ({} to {})", show(q(0.5)), show(q(0.25)), show(q(0.75)));
        rows.push(line("median (quartiles)", text, p_rank, rank_test));
    }
    json!({ "variable": column, "kind": "number", "missing": absent, "groups": groups,
            "welch_p": p_welch, "rank_p": p_rank, "rank_test": rank_test })
}

fn counted(
    column: &str,
    names: &[String],
    grouped: &Grouped<'_>,
    absent: usize,
    rows: &mut Vec<Vec<String>>,
) -> Option<Value> {
    let mut levels: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (g, cells) in grouped.iter().enumerate() {
        for cell in cells {
            levels.entry(cell).or_insert_with(|| vec![0; grouped.len()])[g] += 1;
        }
    }
    if levels.is_empty() || levels.len() > MANY {
        return None;
    }
    let counts: Vec<Vec<usize>> = levels.values().cloned().collect();
    let (p, test) = independence(&counts);
    for (level, of_level) in &levels {
        for ((name, n), cells) in names.iter().zip(of_level).zip(grouped) {
            let share = 100.0 * *n as f64 / cells.len().max(1) as f64;
            let text = format!("{n} ({share:.1} %)");
            let all = cells.len().to_string();
            let row = [column, *level, name, &all, &text, &cell(p), test].map(String::from);
            rows.push(row.to_vec());
        }
    }
    let levels: Vec<Value> =
        levels.iter().map(|(level, n)| json!({ "level": level, "rows": n })).collect();
    Some(json!({ "variable": column, "kind": "category", "missing": absent, "groups": names,
                 "levels": levels, "p": p, "test": test }))
}

/// Fisher's exact test of two by two with an expected count below 5, else chi-square.
fn independence(counts: &[Vec<usize>]) -> (Option<f64>, &'static str) {
    let Ok(plain) = chi_square(counts, false) else { return (None, "") };
    match counts {
        [a, b] if a.len() == 2 && plain.least_expected < 5.0 => {
            (Some(fisher_exact([[a[0], a[1]], [b[0], b[1]]])), "Fisher")
        }
        _ => (Some(plain.p), "chi-square"),
    }
}
