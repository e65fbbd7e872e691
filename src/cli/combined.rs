//! The last stage of a prediction: a model of `histokern fit` over what the heads said and clinical
//! values (a deep-learning signature with clinical factors).
//!
//! A feature of the model named `value` or `p_<class>`, as the columns of `predictions.csv` are, is
//! what the package's head said; with several heads it is `<head>.value` or `<head>.p_<class>`. Every
//! other feature is a column of the clinical table.

use crate::error::{Context, Error, Result};
use crate::heads::clinical::Table;
use crate::report::result::{Outcome, Prediction, sha256_file};
use crate::stats::model::Model;
use std::collections::BTreeMap;
use std::path::Path;

/// A model to apply after the heads.
pub struct Combined {
    /// File name without extension: the name of its prediction.
    pub name: String,
    /// Hash of the file.
    pub sha256: String,
    model: Model,
}

/// Whether a feature is something a head says.
fn of_head(feature: &str) -> bool {
    let last = feature.rsplit_once('.').map_or(feature, |(_, last)| last);
    last == "value" || last.starts_with("p_") || feature.starts_with("p_")
}

impl Combined {
    /// Reads a model for a package with these heads.
    ///
    /// # Errors
    /// As [`Model::read`]; [`crate::Kind::Usage`] when a head has the model's name.
    pub fn read(path: &Path, heads: &[String]) -> Result<Combined> {
        let model = Model::read(path)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if heads.contains(&name) {
            let what = format!("{}: a head of the package is named {name} too", path.display());
            return Err(Error::usage(what));
        }
        Ok(Combined { name, sha256: sha256_file(path)?, model })
    }

    /// The clinical cells of one patient that the model needs.
    ///
    /// # Errors
    /// Naming patient and column: there is no table, no such column or patient, or a cell that the
    /// model cannot read.
    pub fn cells(&self, table: Option<&Table>, patient: &str) -> Result<BTreeMap<String, String>> {
        let mut cells = BTreeMap::new();
        for v in self.model.variable.iter().filter(|v| !of_head(&v.name)) {
            let table = table.ok_or_else(|| {
                Error::usage(format!(
                    "model {} needs the clinical value {}: --clinical FILE.csv",
                    self.name, v.name
                ))
            })?;
            cells.insert(v.name.clone(), table.cell(patient, &v.name)?.to_string());
        }
        // A cell the model cannot read is known before any tile is decoded.
        let stand_in = |name: &str| Ok(cells.get(name).map_or("0", String::as_str));
        self.model.predict(stand_in).context(|| format!("patient {patient:?}"))?;
        Ok(cells)
    }

    /// What the model says after the heads: the probability of the outcome (classes `0` and `1`), or
    /// for Cox the linear predictor.
    ///
    /// # Errors
    /// Naming the feature: a head does not say it, or several do.
    pub fn predict(
        &self,
        heads: &[Prediction],
        cells: &BTreeMap<String, String>,
    ) -> Result<Prediction> {
        let said: BTreeMap<String, String> = self
            .model
            .variable
            .iter()
            .filter(|v| of_head(&v.name))
            .map(|v| Ok((v.name.clone(), said(heads, &v.name)?.to_string())))
            .collect::<Result<_>>()?;
        let cell = |name: &str| {
            let found = said.get(name).or_else(|| cells.get(name));
            found.map(String::as_str).ok_or_else(|| Error::usage(format!("no value of {name}")))
        };
        let lp = self.model.predict(cell).context(|| format!("model {}", self.name))?;
        let outcome = match self.model.risk(lp) {
            Some(risk) => Outcome::Classes {
                classes: vec!["0".into(), "1".into()],
                probabilities: vec![1.0 - risk, risk],
            },
            None => Outcome::Value { value: lp },
        };
        Ok(Prediction {
            head: self.name.clone(),
            logits: vec![lp as f32],
            outcome,
            bags: Vec::new(),
            ensemble: None,
        })
    }
}

/// The number a feature stands for among what the heads said.
fn said(heads: &[Prediction], feature: &str) -> Result<f64> {
    let value = |head: &Prediction, name: &str| match &head.outcome {
        Outcome::Value { value } => (name == "value").then_some(*value),
        Outcome::Classes { classes, probabilities } => {
            let class = name.strip_prefix("p_")?;
            classes.iter().position(|c| c == class).and_then(|i| probabilities.get(i).copied())
        }
    };
    let mut found = Vec::new();
    for head in heads {
        let own = feature.strip_prefix(&head.head).and_then(|rest| rest.strip_prefix('.'));
        found.extend(value(head, feature).or_else(|| own.and_then(|name| value(head, name))));
    }
    match found[..] {
        [one] => Ok(one),
        [] => Err(Error::usage(format!("no head of the package says {feature}"))),
        _ => Err(Error::usage(format!("several heads say {feature}: name one as HEAD.{feature}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(head: &str, p: f64) -> Prediction {
        let outcome = Outcome::Classes {
            classes: vec!["N0".into(), "N+".into()],
            probabilities: vec![1.0 - p, p],
        };
        let (logits, bags) = (Vec::new(), Vec::new());
        Prediction { head: head.into(), logits, outcome, bags, ensemble: None }
    }

    #[test]
    fn features_find_what_heads_said() {
        let outcome = Outcome::Value { value: 2.5 };
        let score = Prediction { head: "ki67".into(), outcome, ..classes("ki67", 0.0) };
        let heads = [classes("a", 0.25), score, classes("b", 0.5)];
        assert_eq!(said(&heads, "value").unwrap(), 2.5);
        assert_eq!(said(&heads, "ki67.value").unwrap(), 2.5);
        assert_eq!(said(&heads, "b.p_N+").unwrap(), 0.5);
        assert!(said(&heads, "p_N+").unwrap_err().to_string().contains("HEAD.p_N+"));
        assert!(said(&heads, "p_N2").unwrap_err().to_string().contains("no head"));
        assert!(of_head("p_N.2") && of_head("a.value") && !of_head("age") && !of_head("size.cm"));
    }
}
