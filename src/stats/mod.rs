//! From predictions to evidence: the statistics of diagnostic, regression and survival studies.
//!
//! Everything is `f64` and deterministic. One file a topic, each formula with its source:
//! [`roc`] and [`bootstrap`] (discrimination), [`intervals`] (proportions), [`threshold`] (confusion
//! matrices, precision-recall), [`calibration`], [`decision`] (net benefit, reclassification),
//! [`lowess`] (smooth curves), [`compare`] (two groups), [`correlation`], [`logistic`], [`survival`]
//! (Kaplan-Meier, log-rank), [`cox`], [`concordance`] (survival discrimination and IPCW scores),
//! [`nomogram`]; [`design`] turns tables into design matrices, [`model`] is a fitted model as a file.
//!
//! Degenerate input has one of two answers: an error naming the row (counted from 1), or `None`
//! where the quantity does not exist. No function returns NaN.

pub mod bootstrap;
pub mod calibration;
pub mod compare;
pub mod concordance;
pub mod correlation;
pub mod cox;
pub mod decision;
pub mod design;
mod dist;
pub mod intervals;
mod linalg;
pub mod logistic;
pub mod lowess;
pub mod model;
mod newton;
pub mod nomogram;
pub mod roc;
pub mod survival;
pub mod threshold;

pub use dist::{chi2_upper, normal_quantile, normal_two_sided, student_two_sided};
pub use intervals::Interval;

use crate::error::{Error, Result};

/// The confidence level used throughout unless a caller says otherwise.
pub const LEVEL: f64 = 0.95;

/// Refuses NaN and infinities, naming the first row.
pub(crate) fn finite(what: &str, values: &[f64]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(row) => Err(Error::malformed(format!("row {}: {what} is {}", row + 1, values[row]))),
        None => Ok(()),
    }
}

/// Refuses anything but finite values in [0, 1], naming the first row.
pub(crate) fn probabilities(what: &str, values: &[f64]) -> Result<()> {
    match values.iter().position(|v| !(0.0..=1.0).contains(v)) {
        Some(row) => Err(Error::malformed(format!(
            "row {}: {what} is {}, not a probability",
            row + 1,
            values[row]
        ))),
        None => Ok(()),
    }
}

pub(crate) fn same_length(a: (&str, usize), b: (&str, usize)) -> Result<()> {
    if a.1 == b.1 {
        return Ok(());
    }
    Err(Error::usage(format!("{} {} but {} {}", a.1, a.0, b.1, b.0)))
}

/// Arithmetic mean; 0 of nothing.
pub(crate) fn mean(x: &[f64]) -> f64 {
    if x.is_empty() { 0.0 } else { x.iter().sum::<f64>() / x.len() as f64 }
}

/// Sample variance (n - 1), `None` below two values.
pub(crate) fn variance(x: &[f64]) -> Option<f64> {
    let m = mean(x);
    (x.len() > 1).then(|| x.iter().map(|v| (v - m).powi(2)).sum::<f64>() / (x.len() - 1) as f64)
}

/// Indices that sort `x` ascending; equal values keep their order.
pub(crate) fn order(x: &[f64]) -> Vec<usize> {
    let mut index: Vec<usize> = (0..x.len()).collect();
    index.sort_by(|&a, &b| x[a].total_cmp(&x[b]));
    index
}

/// Mid-ranks from 1: tied values share the mean of their positions.
pub fn mid_ranks(x: &[f64]) -> Vec<f64> {
    let mut ranks = vec![0.0; x.len()];
    let mut below = 0;
    for run in order(x).chunk_by(|&a, &b| x[a] == x[b]) {
        for &i in run {
            ranks[i] = below as f64 + (run.len() as f64 + 1.0) / 2.0;
        }
        below += run.len();
    }
    ranks
}

/// Quantile of ascending `sorted` by linear interpolation between order statistics (Hyndman and
/// Fan 1996, type 7: the default of R and NumPy). `None` of nothing.
pub fn quantile_sorted(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let h = q.clamp(0.0, 1.0) * last as f64;
    let low = (h.floor() as usize).min(last);
    let high = (low + 1).min(last);
    Some(sorted[low] + (h - low as f64) * (sorted[high] - sorted[low]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tied_values_share_their_mean_rank() {
        assert_eq!(mid_ranks(&[3.0, 1.0, 3.0, 2.0, 3.0]), [4.0, 1.0, 4.0, 2.0, 4.0]);
        assert!(mid_ranks(&[]).is_empty());
    }

    #[test]
    fn type_7_quantiles() {
        let x = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(quantile_sorted(&x, 0.5), Some(3.0));
        assert_eq!(quantile_sorted(&x, 0.1), Some(1.3));
        assert_eq!(quantile_sorted(&x, 1.0), Some(8.0));
        assert_eq!(quantile_sorted(&[], 0.5), None);
    }

    #[test]
    fn the_first_bad_row_is_named() {
        let error = finite("score", &[0.1, f64::NAN, f64::INFINITY]).unwrap_err().to_string();
        assert_eq!(error, "row 2: score is NaN");
        let error = probabilities("p", &[0.0, 1.0, 1.5]).unwrap_err().to_string();
        assert_eq!(error, "row 3: p is 1.5, not a probability");
    }
}
