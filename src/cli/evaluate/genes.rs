//! Many values a row, gene expression: one regression a column, and whether genes that change more
//! between tissues are predicted better (HistCode).

use super::{Args, Cohort, CsvTable, Evaluation, cell};
use crate::cli::table::{Table, missing};
use crate::error::{Error, Result};
use crate::report::plot::{self, measured};
use crate::stats::compare::false_discovery;
use crate::stats::correlation::{self as corr};
use crate::stats::{LEVEL, quantile_sorted};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// One gene.
struct Gene {
    name: String,
    rows: usize,
    spearman: Option<f64>,
    spearman_p: Option<f64>,
    pearson: Option<f64>,
    pearson_p: Option<f64>,
    /// Pearson's r of the ratios themselves.
    pearson_ratio: Option<f64>,
    r2_determination: Option<f64>,
    mae: f64,
    log2_fold_change: Option<f64>,
}

/// The evaluation of every column the two tables share, but the id.
pub fn evaluate(args: &Args, cohort: &Cohort) -> Result<Evaluation> {
    let changes = args.fold_change.as_deref().map(fold_changes).transpose()?.unwrap_or_default();
    let shared: Vec<&String> = cohort.predictions.names()[1..]
        .iter()
        .filter(|n| **n != cohort.id && cohort.labels.has(n))
        .collect();
    if shared.is_empty() {
        return Err(Error::usage("predictions and labels share no column besides the id"));
    }
    let genes = shared
        .into_iter()
        .map(|name| gene(args, cohort, name, changes.get(name).copied()))
        .collect::<Result<Vec<_>>>()?;
    let p: Vec<f64> = genes.iter().map(|g| g.pearson_p.unwrap_or(1.0)).collect();
    let q = false_discovery(&p);
    let mut sorted: Vec<f64> = genes.iter().filter_map(|g| g.pearson).collect();
    sorted.sort_by(f64::total_cmp);
    let significant = genes
        .iter()
        .zip(&q)
        .filter(|(g, q)| **q < 0.05 && g.pearson.is_some_and(|r| r > 0.0))
        .count();
    let mut metrics = json!({
        "summary": {
            "genes": genes.len(), "rows": cohort.labels.len(),
            "median_pearson": quantile_sorted(&sorted, 0.5),
            "genes_predicted": significant,
            "rule": "Pearson's r above 0 with a false discovery rate (Benjamini-Hochberg) below 0.05",
        },
        "genes": genes.iter().zip(&q).map(|(g, q)| gene_json(g, *q)).collect::<Vec<_>>(),
    });
    let mut figures = vec![measured::histogram(
        &measured::Labels {
            name: "gene_correlations",
            title: "Correlation of prediction and measurement, by gene",
            x: "Pearson's r",
            y: "Genes",
        },
        &sorted,
    )];
    let both: Vec<(f64, f64)> =
        genes.iter().filter_map(|g| Some((g.log2_fold_change?.abs(), g.pearson?))).collect();
    if !both.is_empty() {
        let (x, y): (Vec<f64>, Vec<f64>) = both.into_iter().unzip();
        let (rho, r) = (corr::spearman(&x, &y)?, corr::pearson(&x, &y)?);
        let p = rho.and_then(|v| corr::correlation_p(v, x.len()));
        metrics["fold_change"] = json!({
            "genes": x.len(), "spearman": rho, "spearman_p": p, "pearson": r,
            "pearson_p": r.and_then(|v| corr::correlation_p(v, x.len())),
            "pearson_interval": r.and_then(|v| corr::pearson_interval(v, x.len(), LEVEL)),
        });
        let remark = rho.map(|rho| {
            let p = p.map_or(String::new(), |p| format!(", {}", plot::p_value(p)));
            format!("\u{3c1} = {rho:.3}{p}")
        });
        let labels = measured::Labels {
            name: "fold_change",
            title: "Do genes that change more predict better?",
            x: "|log\u{2082} fold change|",
            y: "Pearson's r of prediction and measurement",
        };
        let line = corr::line(&x, &y)?;
        let remark: Vec<String> = remark.into_iter().collect();
        figures.push(measured::scatter(&labels, &x, &y, line, false, &remark));
    }
    Ok(Evaluation { metrics, figures, tables: vec![gene_table(&genes, &q)] })
}

/// |log2 fold change| by gene.
fn fold_changes(path: &Path) -> Result<BTreeMap<String, f64>> {
    let table = Table::read(path)?;
    let log = table.has("log2_fold_change");
    let column = if log { "log2_fold_change" } else { "fold_change" };
    let (genes, values) = (table.text("gene")?, table.numbers(column)?);
    let mut out = BTreeMap::new();
    for (row, (gene, value)) in genes.into_iter().zip(values).enumerate() {
        if !log && value <= 0.0 {
            return Err(table.at(row, column, &format!("{value}: a ratio is above 0")));
        }
        let value = if log { value } else { value.log2() };
        if out.insert(gene.to_string(), value).is_some() {
            return Err(table.at(row, "gene", &format!("`{gene}` stands twice")));
        }
    }
    Ok(out)
}

/// Rows in which the measurement is missing are left out.
fn gene(args: &Args, cohort: &Cohort, name: &str, change: Option<f64>) -> Result<Gene> {
    let cells = cohort.labels.text(name)?;
    let keep: Vec<usize> = (0..cells.len()).filter(|&i| !missing(cells[i])).collect();
    if keep.is_empty() {
        return Err(cohort.labels.blame(Error::malformed(format!("{name}: no measurement"))));
    }
    let predicted = cohort.predictions.select(&keep).numbers(name)?;
    let observed = cohort.labels.select(&keep).numbers(name)?;
    let n = keep.len();
    let (rho, r) = (corr::spearman(&predicted, &observed)?, corr::pearson(&predicted, &observed)?);
    let ratio =
        |values: &[f64]| -> Vec<f64> { values.iter().map(|v| 10f64.powf(*v) - 1.0).collect() };
    let pearson_ratio = if args.log10 {
        corr::pearson(&ratio(&predicted), &ratio(&observed))
            .map_err(|e| e.context(format!("{name}, as a ratio")))?
    } else {
        None
    };
    let agreement = corr::agreement(&predicted, &observed)?;
    Ok(Gene {
        name: name.into(),
        rows: n,
        spearman: rho,
        spearman_p: rho.and_then(|v| corr::correlation_p(v, n)),
        pearson: r,
        pearson_p: r.and_then(|v| corr::correlation_p(v, n)),
        pearson_ratio,
        r2_determination: agreement.r2_determination,
        mae: agreement.mae,
        log2_fold_change: change,
    })
}

fn gene_json(g: &Gene, q: f64) -> Value {
    json!({
        "gene": g.name, "rows": g.rows, "spearman": g.spearman, "spearman_p": g.spearman_p,
        "pearson": g.pearson, "pearson_p": g.pearson_p, "pearson_q": q,
        "pearson_of_ratios": g.pearson_ratio, "r2_determination": g.r2_determination,
        "mae": g.mae, "log2_fold_change": g.log2_fold_change,
    })
}

fn gene_table(genes: &[Gene], q: &[f64]) -> CsvTable {
    let rows = genes.iter().zip(q).map(|(g, q)| {
        let mut row = vec![g.name.clone(), g.rows.to_string()];
        let numbers = [
            g.spearman,
            g.spearman_p,
            g.pearson,
            g.pearson_p,
            Some(*q),
            g.pearson_ratio,
            g.r2_determination,
            Some(g.mae),
            g.log2_fold_change,
        ];
        row.extend(numbers.map(cell));
        row
    });
    CsvTable {
        name: "genes",
        header: vec![
            "gene",
            "rows",
            "spearman",
            "spearman_p",
            "pearson",
            "pearson_p",
            "pearson_q",
            "pearson_of_ratios",
            "r2_determination",
            "mae",
            "log2_fold_change",
        ],
        rows: rows.collect(),
    }
}
