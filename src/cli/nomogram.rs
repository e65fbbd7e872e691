//! `histokern nomogram`: a fitted model as a chart of points, and the points of patients.

use super::table::Table;
use super::{Global, Outcome, print_json};
use crate::error::{Context, Error, Result};
use crate::report::plot::nomogram::{mark_total, nomogram};
use crate::report::{atomic, png};
use crate::stats::model::Model;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Draw the nomogram of a fitted model, and read it for patients
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  histokern nomogram combined.toml --out nomogram.svg\n  \
                        histokern nomogram combined.toml --out patient.png --patient patient.csv")]
pub struct Args {
    /// Model of `histokern fit`
    #[arg(value_name = "MODEL.toml")]
    model: PathBuf,
    /// File to write: .svg or .png
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// CSV of patients: print the points, linear predictor and risk or survival of each row; a single
    /// patient is marked in the chart
    #[arg(long, value_name = "CLINICAL.csv")]
    patient: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let model = Model::read(&args.model)?;
    let name = || args.model.display().to_string();
    let mut figure = nomogram(&model).context(name)?;
    if let Some(path) = &args.patient {
        let table = Table::read(path)?;
        let patients =
            (0..table.len()).map(|row| patient(&model, &table, row)).collect::<Result<Vec<_>>>()?;
        if let [only] = &patients[..] {
            let label = only["id"].as_str().unwrap_or("patient").to_string();
            mark_total(&mut figure, &model, &label, only["points"].as_f64().unwrap_or(0.0))?;
        }
        print_json(&json!(patients));
    }
    match args.out.extension().and_then(|e| e.to_str()) {
        Some("svg") => atomic::write_bytes(&args.out, figure.svg().as_bytes())?,
        Some("png") => png::write_rgb(&args.out, &figure.picture()?)?,
        _ => return Err(Error::usage(format!("{}: .svg or .png", args.out.display()))),
    }
    global.say(&format!("{}: nomogram of {} rows", args.out.display(), model.rows));
    Ok(Outcome::Done)
}

fn patient(model: &Model, table: &Table, row: usize) -> Result<Value> {
    let chart = model.nomogram()?;
    let at = |e: Error| table.at_row(row, e);
    let lp = model.predict(|name| Ok(table.text(name)?[row])).map_err(at)?;
    let id = table.names().first().map(|name| table.text(name).map(|c| c[row].to_string()));
    Ok(json!({
        "id": id.transpose()?, "points": (lp - chart.lp_at_zero) * chart.points_per_lp,
        "linear_predictor": lp, "risk": model.risk(lp), "survival": model.survival(lp),
    }))
}
