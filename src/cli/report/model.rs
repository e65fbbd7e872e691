//! A model of `histokern fit`.

use crate::error::Result;
use crate::report::html::{Cell, Page};
use crate::report::plot::{forest, nomogram, number, p_value, ratio as shown};
use crate::stats::model::{Model, ModelKind};
use std::path::Path;

/// Adds the model as a section: coefficients alone and together, forest plot, nomogram.
pub fn add(path: &Path, name: &str, page: &mut Page) -> Result<()> {
    let model = Model::read(path)?;
    let logistic = model.kind == ModelKind::Logistic;
    let (kind, ratio) = if logistic {
        ("logistic regression", "odds ratio")
    } else {
        ("Cox regression", "hazard ratio")
    };
    page.section(&format!("Model: {name}"));
    let mut facts = vec![
        ("kind".to_string(), kind.to_string()),
        ("outcome".into(), model.outcome.join(", ")),
        ("rows".into(), model.rows.to_string()),
        ("rows left out (missing values)".into(), model.rows_left_out.to_string()),
        ("events".into(), model.events.to_string()),
        (
            "likelihood-ratio test".into(),
            format!("{}, {}", number(model.lr_chi2), p_value(model.lr_p)),
        ),
    ];
    if let Some(p) = model.proportional_hazards_p {
        facts.push(("proportional hazards (global test)".into(), p_value(p)));
    }
    if let Some(p) = model.selected_below {
        facts.push(("features selected with p below".into(), number(p)));
    }
    page.list(&facts);
    page.table("Coefficients", &header(ratio, logistic), &coefficients(&model, logistic));
    let rows: Vec<forest::Row> = model
        .coefficient
        .iter()
        .map(|c| forest::Row {
            name: c.name.clone(),
            ratio: c.ratio,
            lower: c.ratio_lower,
            upper: c.ratio_upper,
            p: c.p,
        })
        .collect();
    let title = format!("Multivariable {kind}");
    let figure = forest::forest("forest", &title, ratio, &rows);
    page.figure(&figure.svg(), &figure.desc);
    let chart = nomogram::nomogram(&model)?;
    page.figure(&chart.svg(), &chart.desc);
    Ok(())
}

fn header(ratio: &str, logistic: bool) -> Vec<String> {
    let mut out = vec!["term".to_string(), format!("alone: {ratio}"), "p".into()];
    out.extend([format!("together: {ratio}"), "Wald interval".into()]);
    if logistic {
        out.push("profile interval".into());
    }
    out.push("p".into());
    out
}

fn coefficients(model: &Model, logistic: bool) -> Vec<Vec<Cell>> {
    let text = |v: Option<f64>| v.map_or("\u{2013}".to_string(), shown);
    let p = |v: Option<f64>| v.map_or("\u{2013}".to_string(), p_value);
    let ends = |a: Option<f64>, b: Option<f64>| format!("{} to {}", text(a), text(b));
    let considered = model.univariable.iter().map(|u| u.name.as_str());
    let fitted = model.coefficient.iter().map(|c| c.name.as_str());
    let mut names: Vec<&str> = considered.collect();
    names.extend(fitted.filter(|n| !model.univariable.iter().any(|u| u.name == **n)));
    names
        .into_iter()
        .map(|name| {
            let alone = model.univariable.iter().find(|u| u.name == name);
            let joint = model.coefficient.iter().find(|c| c.name == name);
            let mut row = vec![name.to_string(), text(alone.and_then(|u| u.ratio))];
            row.push(p(alone.and_then(|u| u.p)));
            row.push(text(joint.map(|c| c.ratio)));
            row.push(joint.map_or("not in the model".into(), |c| {
                ends(Some(c.ratio_lower), Some(c.ratio_upper))
            }));
            if logistic {
                row.push(joint.map_or(String::new(), |c| ends(c.profile_lower, c.profile_upper)));
            }
            row.push(p(joint.map(|c| c.p)));
            row.iter().map(|t| Cell::of(t)).collect()
        })
        .collect()
}
