//! A fitted model as a TOML file, and what it says of a new patient.

use super::logistic::sigmoid;
use super::nomogram::{self, Nomogram};
use crate::error::{Context, Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Largest model file read.
const MAX_BYTES: u64 = 16 << 20;

/// The kind of model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// Log odds of a binary outcome.
    Logistic,
    /// Log hazard of an event.
    Cox,
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
    /// Least and largest linear predictor of the rows used.
    pub linear_predictor: [f64; 2],
    /// (Partial) log-likelihood.
    pub loglik: f64,
    /// Likelihood-ratio statistic against no columns.
    pub lr_chi2: f64,
    /// Its p-value.
    pub lr_p: f64,
    /// p-value of the global test of proportional hazards (Cox).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proportional_hazards_p: Option<f64>,
    /// p-value below which a feature alone entered the model, where features were selected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selected_below: Option<f64>,
    /// Survival with a linear predictor of 0 at some times (Cox).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub baseline: Vec<Baseline>,
    /// One a column of the design.
    pub coefficient: Vec<Coefficient>,
    /// One a feature of the model.
    pub variable: Vec<Variable>,
    /// One a column of every feature considered, each feature in a model of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub univariable: Vec<Univariable>,
}

/// Survival with a linear predictor of 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// Time, in the unit of the data.
    pub time: f64,
    /// Survival probability.
    pub survival: f64,
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
    /// Profile-likelihood interval of the ratio (logistic); absent where the profile has no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile_lower: Option<f64>,
    /// Profile-likelihood interval of the ratio (logistic); absent where the profile has no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile_upper: Option<f64>,
    /// Wald p-value.
    pub p: f64,
}

/// One column of a feature in a model of that feature alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Univariable {
    /// Column of the design.
    pub name: String,
    /// Odds or hazard ratio; absent where the model cannot be fitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Wald interval of the ratio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_lower: Option<f64>,
    /// Wald interval of the ratio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio_upper: Option<f64>,
    /// Wald p-value of the column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p: Option<f64>,
    /// Likelihood-ratio p-value of the whole feature: what selection looks at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_p: Option<f64>,
    /// Why there is no such model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_possible: Option<String>,
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

impl Model {
    /// Reads a model file.
    ///
    /// # Errors
    /// Naming the file: unreadable, too large, not such a model, a number not finite, or a feature
    /// without coefficient.
    pub fn read(path: &Path) -> Result<Model> {
        let name = || path.display().to_string();
        let size = std::fs::metadata(path).map_err(|e| Error::io("read", e)).context(name)?;
        if size.len() > MAX_BYTES {
            return Err(Error::limit(format!("{} bytes for a model", size.len())).context(name()));
        }
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", e)).context(name)?;
        let model: Model =
            toml::from_str(&text).map_err(|e| Error::malformed(e.to_string())).context(name)?;
        model.check().context(name)?;
        Ok(model)
    }

    fn check(&self) -> Result<()> {
        if let Some(c) = self.coefficient.iter().find(|c| !c.coef.is_finite()) {
            return Err(Error::malformed(format!("coefficient {} is {}", c.name, c.coef)));
        }
        let [low, high] = self.linear_predictor;
        if !(self.intercept.is_finite() && low.is_finite() && low <= high && high.is_finite()) {
            return Err(Error::malformed("the intercept or the range of linear predictors"));
        }
        let outside = |b: &&Baseline| !((0.0..=1.0).contains(&b.survival) && b.time >= 0.0);
        if let Some(b) = self.baseline.iter().find(outside) {
            return Err(Error::malformed(format!(
                "baseline survival {} at {}",
                b.survival, b.time
            )));
        }
        self.variable.iter().try_for_each(|v| self.contributions(v).map(|_| ()))
    }

    fn coef(&self, name: &str) -> Result<f64> {
        let found = self.coefficient.iter().find(|c| c.name == name);
        found.map(|c| c.coef).ok_or_else(|| Error::malformed(format!("no coefficient {name}")))
    }

    /// Label and contribution to the linear predictor of each mark or level of a feature.
    fn contributions(&self, variable: &Variable) -> Result<Vec<(String, f64)>> {
        if variable.levels.is_empty() {
            let coef = self.coef(&variable.name)?;
            return Ok(variable.marks.iter().map(|m| (m.to_string(), coef * m)).collect());
        }
        let of_level = |(i, level): (usize, &String)| {
            let name = format!("{}={level}", variable.name);
            Ok((level.clone(), if i == 0 { 0.0 } else { self.coef(&name)? }))
        };
        variable.levels.iter().enumerate().map(of_level).collect()
    }

    /// The linear predictor of a patient whose cells `cell` gives by feature.
    ///
    /// # Errors
    /// What `cell` returns, or naming the feature: no finite number, or none of its levels.
    pub fn predict<'a>(&self, mut cell: impl FnMut(&str) -> Result<&'a str>) -> Result<f64> {
        let mut lp = self.intercept;
        for v in &self.variable {
            let text = cell(&v.name)?;
            lp += if v.levels.is_empty() {
                let value = text.parse().ok().filter(|v: &f64| v.is_finite()).ok_or_else(|| {
                    Error::malformed(format!("{}: `{text}` is no finite number", v.name))
                })?;
                value * self.coef(&v.name)?
            } else {
                let found = self.contributions(v)?.into_iter().find(|(level, _)| level == text);
                found.map(|(_, c)| c).ok_or_else(|| {
                    let levels = v.levels.join(", ");
                    Error::malformed(format!("{}: `{text}` is none of {levels}", v.name))
                })?
            };
        }
        Ok(lp)
    }

    /// Probability of the positive class of a logistic model; `None` for Cox.
    pub fn risk(&self, lp: f64) -> Option<f64> {
        (self.kind == ModelKind::Logistic).then(|| sigmoid(lp))
    }

    /// Survival of a patient at each time of [`Model::baseline`].
    pub fn survival(&self, lp: f64) -> Vec<Baseline> {
        let at = |b: &Baseline| Baseline { time: b.time, survival: b.survival.powf(lp.exp()) };
        self.baseline.iter().map(at).collect()
    }

    /// The points of the model.
    ///
    /// # Errors
    /// As [`Nomogram::new`].
    pub fn nomogram(&self) -> Result<Nomogram> {
        let variables = self
            .variable
            .iter()
            .map(|v| Ok(nomogram::Variable { name: v.name.clone(), marks: self.contributions(v)? }))
            .collect::<Result<Vec<_>>>()?;
        Nomogram::new(&variables, self.intercept, self.linear_predictor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        let term = |name: &str, coef: f64| Coefficient {
            name: name.into(),
            coef,
            se: 1.0,
            ratio: coef.exp(),
            ratio_lower: 0.1,
            ratio_upper: 9.0,
            profile_lower: None,
            profile_upper: None,
            p: 0.5,
        };
        let levels = ["1", "2"].map(String::from).to_vec();
        Model {
            kind: ModelKind::Logistic,
            outcome: vec!["y".into()],
            rows: 9,
            rows_left_out: 0,
            events: 4,
            intercept: -1.0,
            linear_predictor: [-1.0, 5.0],
            loglik: -3.0,
            lr_chi2: 1.0,
            lr_p: 0.3,
            proportional_hazards_p: None,
            selected_below: None,
            baseline: Vec::new(),
            coefficient: vec![term("age", 0.5), term("grade=2", 2.0)],
            variable: vec![
                Variable { name: "age".into(), levels: Vec::new(), marks: vec![0.0, 10.0] },
                Variable { name: "grade".into(), levels, marks: Vec::new() },
            ],
            univariable: Vec::new(),
        }
    }

    #[test]
    fn cells_become_a_linear_predictor() {
        let m = model();
        let patient = |grade: &'static str| {
            m.predict(move |name| Ok(if name == "age" { "4" } else { grade }))
        };
        assert_eq!((patient("1").unwrap(), patient("2").unwrap()), (1.0, 3.0));
        let error = patient("3").unwrap_err().to_string();
        assert_eq!(error, "grade: `3` is none of 1, 2");
        assert!(m.predict(|_| Ok("inf")).unwrap_err().to_string().contains("no finite number"));
    }

    #[test]
    fn files_read_back_and_broken_ones_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.toml");
        let text = toml::to_string(&model()).unwrap();
        std::fs::write(&path, &text).unwrap();
        assert_eq!(Model::read(&path).unwrap().coefficient[1].coef, 2.0);
        std::fs::write(&path, text.replace("grade=2", "grade=7")).unwrap();
        let error = Model::read(&path).unwrap_err().to_string();
        assert!(error.contains("m.toml") && error.contains("no coefficient grade=2"), "{error}");
    }
}
