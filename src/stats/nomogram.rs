//! Nomograms: a linear predictor as points to add up, 100 for the widest axis.

use super::quantile_sorted;
use crate::error::{Error, Result};
use serde::Serialize;

/// One variable of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Axis marks: label and contribution to the linear predictor (`coef * value`).
    pub marks: Vec<(String, f64)>,
}

impl Variable {
    /// A number with coefficient `coef`, observed as `values`: marks at its distinct values when
    /// there are at most 10, else at round numbers over its range.
    ///
    /// # Errors
    /// No values, or one that is not finite (named by row).
    pub fn numeric(name: &str, coef: f64, values: &[f64]) -> Result<Self> {
        super::finite(name, values)?;
        let mut distinct = values.to_vec();
        distinct.sort_by(f64::total_cmp);
        distinct.dedup();
        let (Some(low), Some(high)) = (distinct.first(), distinct.last()) else {
            return Err(Error::malformed(format!("{name} has no values")));
        };
        let at = if distinct.len() > 10 { pretty(*low, *high, 10) } else { distinct };
        let marks = at.iter().map(|v| (label(*v), coef * v)).collect();
        Ok(Variable { name: name.into(), marks })
    }

    /// A category with the coefficient of each level (0 for the reference).
    pub fn factor(name: &str, levels: &[(String, f64)]) -> Self {
        Variable { name: name.into(), marks: levels.to_vec() }
    }
}

fn label(v: f64) -> String {
    let text = format!("{v:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// One axis of the nomogram.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Axis {
    /// The variable.
    pub name: String,
    /// Label and points of each mark.
    pub marks: Vec<(String, f64)>,
}

/// Points of every variable and how their total becomes a linear predictor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Nomogram {
    /// One axis a variable, in the order of the model.
    pub axes: Vec<Axis>,
    /// Points for one unit of the linear predictor.
    pub points_per_lp: f64,
    /// Linear predictor at 0 points.
    pub lp_at_zero: f64,
    /// Marks of the axis of total points.
    pub total: Vec<f64>,
}

impl Nomogram {
    /// Points as `100 (c - min c) / R`: c the contribution of a value to the linear predictor, R the
    /// widest range of contributions of any variable (Harrell, rms). `observed` holds the least and
    /// the largest linear predictor of the data: the axis of totals ends where round numbers cover
    /// the largest, not where every variable is at its worst.
    ///
    /// # Errors
    /// No variable, a contribution or end of `observed` that is not finite, or none that varies.
    pub fn new(variables: &[Variable], intercept: f64, observed: [f64; 2]) -> Result<Self> {
        let range = |v: &Variable| {
            let ends = (f64::INFINITY, f64::NEG_INFINITY);
            v.marks.iter().fold(ends, |(low, high), (_, c)| (low.min(*c), high.max(*c)))
        };
        let ranges: Vec<(f64, f64)> = variables.iter().map(range).collect();
        if let Some(i) = ranges.iter().position(|(low, high)| !(high - low).is_finite()) {
            return Err(Error::malformed(format!("{} has no finite axis", variables[i].name)));
        }
        let widest = ranges.iter().map(|(low, high)| high - low).fold(0.0, f64::max);
        if widest <= 0.0 {
            return Err(Error::usage("no variable of the model varies: nothing to draw"));
        }
        let scale = 100.0 / widest;
        super::finite("linear predictor", &observed)?;
        let axis = |(v, (low, _)): (&Variable, &(f64, f64))| Axis {
            name: v.name.clone(),
            marks: v.marks.iter().map(|(l, c)| (l.clone(), (c - low) * scale)).collect(),
        };
        let lp_at_zero = intercept + ranges.iter().map(|(low, _)| low).sum::<f64>();
        let highest = pretty(observed[0], observed[1], 10).last().copied().unwrap_or(observed[1]);
        let most = ((highest - lp_at_zero) * scale).max(0.0);
        Ok(Nomogram {
            axes: variables.iter().zip(&ranges).map(axis).collect(),
            points_per_lp: scale,
            lp_at_zero,
            total: pretty(0.0, most, 10),
        })
    }

    /// Linear predictor of a total of points.
    pub fn linear_predictor(&self, points: f64) -> f64 {
        self.lp_at_zero + points / self.points_per_lp
    }
}

/// The display limits of a variable: its type-7 quantiles at `10 / max(n, 200)` from either end, or
/// its ends when it has at most 10 distinct values (datadist of rms). `None` without values.
pub fn display_limits(values: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let distinct = sorted.chunk_by(|a, b| a == b).count();
    let q = if distinct <= 10 { 0.0 } else { 10.0 / (sorted.len().max(200) as f64) };
    Some((quantile_sorted(&sorted, q)?, quantile_sorted(&sorted, 1.0 - q)?))
}

/// About `n` + 1 round numbers, 1, 2 or 5 times a power of ten apart, that cover `[low, high]`
/// (Becker, Chambers and Wilks 1988, with R's default biases).
pub fn pretty(low: f64, high: f64, n: usize) -> Vec<f64> {
    const BIAS: f64 = 1.5;
    const BIAS_5: f64 = 0.5 + 1.5 * BIAS;
    let span = high - low;
    if !(span > 0.0 && span.is_finite()) || n == 0 {
        return vec![low];
    }
    let cell = span / n as f64;
    let base = 10f64.powf(cell.log10().floor());
    let mut unit = base;
    for (factor, bias) in [(2.0, BIAS), (5.0, BIAS_5), (10.0, BIAS)] {
        if factor * base - cell < bias * (cell - unit) {
            unit = factor * base;
        } else {
            break;
        }
    }
    let first = (low / unit + 1e-7).floor();
    let last = (high / unit - 1e-7).ceil();
    // Units below 1 have no exact binary form: dividing by their inverse gives the nearest number.
    let inverse = (1.0 / unit).round();
    let exact = unit < 1.0 && (inverse * unit - 1.0).abs() < 1e-12;
    (0..=(last - first) as usize)
        .map(|i| first + i as f64)
        .map(|n| if exact { n / inverse } else { n * unit })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_the_nearest_numbers() {
        let marks: Vec<String> = pretty(0.0, 2.1, 10).iter().map(f64::to_string).collect();
        assert_eq!(marks[..8], ["0", "0.2", "0.4", "0.6", "0.8", "1", "1.2", "1.4"]);
    }

    /// Values of R 4.2: pretty(c(lo, hi), n).
    #[test]
    fn round_numbers_as_r_has_them() {
        assert_eq!(pretty(21.0, 80.0, 10).len(), 13);
        assert_eq!(pretty(0.0, 1.0, 5), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(pretty(1.0, 206.0, 10)[1], 20.0);
        assert_eq!(pretty(3.0, 3.0, 10), [3.0]);
    }

    #[test]
    fn points_add_up_to_the_predictor() {
        let variables = [
            Variable { name: "a".into(), marks: vec![("0".into(), 0.0), ("1".into(), -2.0)] },
            Variable { name: "b".into(), marks: vec![("0".into(), 1.0), ("9".into(), 5.0)] },
        ];
        let n = Nomogram::new(&variables, 0.5, [-1.0, 4.0]).unwrap();
        assert_eq!(n.axes[0].marks[0].1, 50.0);
        assert_eq!(n.axes[1].marks[1].1, 100.0);
        assert_eq!(n.linear_predictor(150.0), 0.5 + 0.0 + 5.0);
        assert!(Nomogram::new(&[], 0.0, [0.0, 1.0]).is_err());
    }
}
