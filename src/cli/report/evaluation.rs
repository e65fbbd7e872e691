//! The folder of `histokern evaluate`.

use super::{add_csv, add_figures, read_text};
use crate::error::{Context, Error, Result};
use crate::report::html::{Cell, Page};
use crate::report::plot::number;
use serde_json::Value;
use std::path::Path;

/// The order of figures: the question before its details.
const FIGURES: [&str; 12] = [
    "roc",
    "precision_recall",
    "calibration",
    "decision_curve",
    "confusion",
    "kaplan_meier",
    "hazard_ratios",
    "scatter",
    "bland_altman",
    "gene_correlations",
    "fold_change",
    "nomogram",
];
/// Tables that are read rather than plotted.
const TABLES: [(&str, &str); 2] =
    [("baseline.csv", "Characteristics by outcome"), ("genes.csv", "Genes")];

/// Adds the folder as a section.
pub fn add(folder: &Path, name: &str, page: &mut Page) -> Result<()> {
    let path = folder.join("metrics.json");
    let metrics: Value = serde_json::from_str(&read_text(&path)?)
        .map_err(|e| Error::malformed(e.to_string()).context(path.display().to_string()))?;
    let task = metrics["input"]["task"].as_str().unwrap_or("predictions");
    page.section(&format!("Evaluation: {name} ({task})"));
    page.list(&summary(&metrics));
    if metrics["auc"]["degenerate"] == Value::Bool(true) {
        page.note("The variance of the AUC is zero: its DeLong interval says nothing.");
    }
    if let Some(table) = rates(&metrics["at_threshold"]) {
        let at = metrics["summary"]["threshold"].as_f64().map_or(String::new(), number);
        let header = ["rate", "count", "of", "estimate", "Wilson interval", "exact interval"];
        let header: Vec<String> = header.map(String::from).into();
        page.table(&format!("Rates at threshold {at}"), &header, &table);
    }
    add_figures(folder, &FIGURES, page)?;
    for (file, caption) in TABLES {
        let path = folder.join(file);
        if path.is_file() {
            add_csv(&path, caption, page).context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// A JSON value in a word; an interval as its two ends.
fn word(value: &Value) -> String {
    match value {
        Value::Null => "does not exist".into(),
        Value::Number(n) if n.is_f64() => number(n.as_f64().unwrap_or_default()),
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(word).collect::<Vec<_>>().join(", "),
        Value::Object(map) => match (map.get("lower"), map.get("upper")) {
            (Some(low), Some(high)) => format!("{} to {}", word(low), word(high)),
            _ => value.to_string(),
        },
        other => other.to_string(),
    }
}

fn summary(metrics: &Value) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for part in ["input", "summary"] {
        let Some(map) = metrics[part].as_object() else { continue };
        for (key, value) in map {
            let files = ["predictions", "labels", "compare", "subgroup"];
            let wanted = part == "summary" || (files.contains(&key.as_str()) && !value.is_null());
            if wanted {
                out.push((key.replace('_', " "), word(value)));
            }
        }
    }
    if let Some(delong) = metrics["comparison"]["delong"].as_object() {
        let at = |key: &str| delong.get(key).map_or(String::new(), word);
        out.push(("AUC difference".into(), format!("{} ({})", at("difference"), at("interval"))));
        out.push(("p of the difference (DeLong)".into(), at("p")));
    }
    out
}

/// The proportions of a confusion matrix with their intervals.
fn rates(metrics: &Value) -> Option<Vec<Vec<Cell>>> {
    let mut rows = Vec::new();
    for (name, value) in metrics.as_object()? {
        if value.get("wilson").is_none() {
            continue;
        }
        let cell = |key: &str| Cell::of(&word(&value[key]));
        let mut row = vec![Cell::Text(name.replace('_', " "))];
        row.extend(["count", "of", "estimate", "wilson", "clopper_pearson"].map(cell));
        rows.push(row);
    }
    (!rows.is_empty()).then_some(rows)
}
