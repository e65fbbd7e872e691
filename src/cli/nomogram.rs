//! `histokern nomogram`: a fitted model as a chart of points, and the points of patients.

use super::fit::{Model, ModelKind};
use super::table::Table;
use super::{Global, Outcome, print_json};
use crate::error::{Context, Result};
use crate::report::atomic;
use crate::stats::nomogram::{Nomogram, Variable};
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;

/// Draw the nomogram of a fitted model
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Model of `histokern fit`
    #[arg(value_name = "MODEL.toml")]
    model: PathBuf,
    /// SVG file to write
    #[arg(long, value_name = "FILE.svg")]
    out: PathBuf,
    /// CSV of patients: print the points, linear predictor and, for logistic, risk of each row
    #[arg(long, value_name = "CLINICAL.csv")]
    patient: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(args: &Args, _: &Global) -> Result<Outcome> {
    let model = Model::read(&args.model)?;
    let chart = chart(&model).context(|| args.model.display().to_string())?;
    atomic::write_bytes(&args.out, draw(&chart, &model).as_bytes())?;
    if let Some(path) = &args.patient {
        let table = Table::read(path)?;
        for row in 0..table.len() {
            print_json(&patient(&model, &chart, &table, row)?);
        }
    }
    Ok(Outcome::Done)
}

fn chart(model: &Model) -> Result<Nomogram> {
    let variables = model
        .variable
        .iter()
        .map(|v| {
            if v.levels.is_empty() {
                let coef = model.coef(&v.name)?;
                let marks = v.marks.iter().map(|m| (m.to_string(), coef * m)).collect();
                return Ok(Variable { name: v.name.clone(), marks });
            }
            let levels = v.levels.iter().enumerate().map(|(i, level)| {
                let coef = if i == 0 { 0.0 } else { model.coef(&format!("{}={level}", v.name))? };
                Ok((level.clone(), coef))
            });
            Ok(Variable::factor(&v.name, &levels.collect::<Result<Vec<_>>>()?))
        })
        .collect::<Result<Vec<_>>>()?;
    Nomogram::new(&variables, model.intercept)
}

fn risk(lp: f64) -> f64 {
    1.0 / (1.0 + (-lp).exp())
}

fn patient(
    model: &Model,
    chart: &Nomogram,
    table: &Table,
    row: usize,
) -> Result<serde_json::Value> {
    let mut lp = model.intercept;
    for v in &model.variable {
        let cell = table.text(&v.name)?[row];
        lp += if v.levels.is_empty() {
            let value: f64 =
                cell.parse().ok().filter(|v: &f64| v.is_finite()).ok_or_else(|| {
                    table.at(row, &v.name, &format!("`{cell}` is no finite number"))
                })?;
            value * model.coef(&v.name)?
        } else {
            match v.levels.iter().position(|l| l == cell) {
                Some(0) => 0.0,
                Some(_) => model.coef(&format!("{}={cell}", v.name))?,
                None => {
                    let what = format!("`{cell}` is none of {}", v.levels.join(", "));
                    return Err(table.at(row, &v.name, &what));
                }
            }
        };
    }
    let id = table.names().first().map(|name| table.text(name).map(|c| c[row].to_string()));
    let probability = (model.kind == ModelKind::Logistic).then(|| risk(lp));
    Ok(json!({
        "id": id.transpose()?, "points": (lp - chart.lp_at_zero) * chart.points_per_lp,
        "linear_predictor": lp, "risk": probability,
    }))
}

const LEFT: f64 = 170.0;
const WIDTH: f64 = 700.0;
const ROW: f64 = 52.0;

/// One axis as SVG: a line with ticks at `marks` (label, x in 0..=1 of the width). Labels that would
/// touch the one before are left out; their tick stays.
fn axis(svg: &mut String, y: f64, name: &str, marks: &[(String, f64)]) {
    let x = |share: f64| LEFT + share * WIDTH;
    let ends = marks.iter().fold((1.0f64, 0.0f64), |(a, b), (_, s)| (a.min(*s), b.max(*s)));
    let _ = write!(
        svg,
        "<text x=\"10\" y=\"{:.1}\" font-weight=\"bold\">{}</text>\n<path d=\"M{:.1} {y:.1}H{:.1}",
        y + 4.0,
        escape(name),
        x(ends.0),
        x(ends.1)
    );
    let mut sorted: Vec<&(String, f64)> = marks.iter().collect();
    sorted.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut labels = String::new();
    let mut free = f64::NEG_INFINITY;
    for (label, share) in sorted {
        let at = x(*share);
        let _ = write!(svg, "M{at:.1} {y:.1}v6");
        let half = 3.5 * label.chars().count() as f64;
        if at - half > free {
            let text = escape(label);
            let _ = writeln!(
                labels,
                "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                y + 20.0
            );
            free = at + half + 4.0;
        }
    }
    let _ = write!(svg, "\" stroke=\"black\" fill=\"none\"/>\n{labels}");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn draw(chart: &Nomogram, model: &Model) -> String {
    let logistic = model.kind == ModelKind::Logistic;
    let rows = chart.axes.len() + 3;
    let height = ROW * rows as f64 + 30.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 {:.0} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<title>Nomogram of {}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        LEFT + WIDTH + 30.0,
        escape(&model.outcome.join(", "))
    );
    let mut y = 30.0;
    let points: Vec<(String, f64)> =
        (0..=10).map(|i| (format!("{}", 10 * i), f64::from(i) / 10.0)).collect();
    axis(&mut svg, y, "Points", &points);
    for a in &chart.axes {
        y += ROW;
        let marks: Vec<_> = a.marks.iter().map(|(l, p)| (l.clone(), p / 100.0)).collect();
        axis(&mut svg, y, &a.name, &marks);
    }
    y += ROW;
    let most = chart.total.last().copied().unwrap_or(1.0).max(f64::MIN_POSITIVE);
    let totals: Vec<_> = chart.total.iter().map(|t| (t.to_string(), t / most)).collect();
    axis(&mut svg, y, "Total points", &totals);
    y += ROW;
    let (low, high) = (chart.lp_at_zero, chart.linear_predictor(most));
    let place = |lp: f64| (lp - low) / (high - low);
    if logistic {
        let at = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99];
        let marks: Vec<_> = at
            .iter()
            .map(|p: &f64| (p.to_string(), place((p / (1.0 - p)).ln())))
            .filter(|(_, s)| (0.0..=1.0).contains(s))
            .collect();
        axis(&mut svg, y, "Risk", &marks);
    } else {
        let marks: Vec<_> = crate::stats::nomogram::pretty(low, high, 10)
            .into_iter()
            .map(|lp| (format!("{lp:.2}"), place(lp)))
            .filter(|(_, s)| (0.0..=1.0).contains(s))
            .collect();
        axis(&mut svg, y, "Linear predictor", &marks);
    }
    svg.push_str("</svg>\n");
    svg
}
