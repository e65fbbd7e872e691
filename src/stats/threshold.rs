//! Classes from scores: confusion matrices, what is computed from them, precision-recall.

use super::intervals::{Interval, clopper_pearson, mercaldo, wilson};
use super::{finite, order, same_length};
use crate::error::{Error, Result};
use serde::Serialize;

/// Counts of a binary decision `score >= threshold`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// Positives called positive.
    pub tp: usize,
    /// Negatives called positive.
    pub fp: usize,
    /// Positives called negative.
    #[serde(rename = "fn")]
    pub fn_: usize,
    /// Negatives called negative.
    pub tn: usize,
}

/// A share with its intervals; `None` where nothing was counted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Proportion {
    /// Numerator.
    pub count: usize,
    /// Denominator.
    pub of: usize,
    /// `count / of`.
    pub estimate: Option<f64>,
    /// Wilson's score interval.
    pub wilson: Option<Interval>,
    /// The exact interval.
    pub clopper_pearson: Option<Interval>,
}

impl Proportion {
    /// `count` of `of` at confidence `level`.
    pub fn new(count: usize, of: usize, level: f64) -> Self {
        let (k, n) = (count as f64, of as f64);
        Proportion {
            count,
            of,
            estimate: (of > 0).then(|| k / n),
            wilson: wilson(k, n, level),
            clopper_pearson: clopper_pearson(k, n, level),
        }
    }
}

/// Everything derived from one confusion matrix. `None` marks a quotient by zero.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// The counts.
    pub confusion: Confusion,
    /// Share called rightly.
    pub accuracy: Proportion,
    /// Share of positives called positive (recall).
    pub sensitivity: Proportion,
    /// Share of negatives called negative.
    pub specificity: Proportion,
    /// Share of called-positive that are (precision).
    pub ppv: Proportion,
    /// Share of called-negative that are.
    pub npv: Proportion,
    /// Logit interval of the PPV.
    pub ppv_mercaldo: Option<Interval>,
    /// Logit interval of the NPV.
    pub npv_mercaldo: Option<Interval>,
    /// Share of positives.
    pub prevalence: Proportion,
    /// Harmonic mean of precision and recall.
    pub f1: Option<f64>,
    /// Matthews correlation coefficient.
    pub mcc: Option<f64>,
    /// Cohen's kappa.
    pub kappa: Option<f64>,
    /// Mean of sensitivity and specificity.
    pub balanced_accuracy: Option<f64>,
    /// Positive likelihood ratio.
    pub lr_positive: Option<f64>,
    /// Negative likelihood ratio.
    pub lr_negative: Option<f64>,
}

fn ratio(a: f64, b: f64) -> Option<f64> {
    (b != 0.0).then(|| a / b)
}

impl Confusion {
    /// Counts `scores` (N,) against `labels` (N,) with the rule `score >= threshold`.
    ///
    /// # Errors
    /// Lengths differ or a score is not finite.
    pub fn at(scores: &[f64], labels: &[bool], threshold: f64) -> Result<Self> {
        same_length(("scores", scores.len()), ("labels", labels.len()))?;
        finite("score", scores)?;
        let mut out = Confusion::default();
        for (score, label) in scores.iter().zip(labels) {
            match (*score >= threshold, label) {
                (true, true) => out.tp += 1,
                (true, false) => out.fp += 1,
                (false, true) => out.fn_ += 1,
                (false, false) => out.tn += 1,
            }
        }
        Ok(out)
    }

    /// The metrics of these counts.
    pub fn metrics(self, level: f64) -> Metrics {
        let Confusion { tp, fp, fn_, tn } = self;
        let share = |count, of| Proportion::new(count, of, level);
        let (a, b, c, d) = (tp as f64, fp as f64, fn_ as f64, tn as f64);
        let n = a + b + c + d;
        let (sensitivity, specificity) = (share(tp, tp + fn_), share(tn, tn + fp));
        let both = sensitivity.estimate.zip(specificity.estimate);
        let (ppv_mercaldo, npv_mercaldo) = mercaldo(a, b, c, d, level);
        // Chance agreement times n^2.
        let chance = (a + b) * (a + c) + (c + d) * (b + d);
        Metrics {
            confusion: self,
            accuracy: share(tp + tn, tp + fp + fn_ + tn),
            sensitivity,
            specificity,
            ppv: share(tp, tp + fp),
            npv: share(tn, tn + fn_),
            ppv_mercaldo,
            npv_mercaldo,
            prevalence: share(tp + fn_, tp + fp + fn_ + tn),
            f1: ratio(2.0 * a, 2.0 * a + b + c),
            mcc: ratio(a * d - b * c, ((a + b) * (a + c) * (d + b) * (d + c)).sqrt()),
            kappa: ratio((a + d) * n - chance, n * n - chance),
            balanced_accuracy: both.map(|(se, sp)| (se + sp) / 2.0),
            lr_positive: both.and_then(|(se, sp)| ratio(se, 1.0 - sp)),
            lr_negative: both.and_then(|(se, sp)| ratio(1.0 - se, sp)),
        }
    }
}

/// One point of the precision-recall curve, with the rule `score >= threshold`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PrPoint {
    /// Least score called positive.
    pub threshold: f64,
    /// True positives over positives.
    pub recall: f64,
    /// True positives over all called positive.
    pub precision: f64,
}

/// Precision-recall curve, one point a distinct score from the highest, and average precision
/// `sum (R_k - R_{k-1}) P_k` without interpolation (the definition of scikit-learn).
///
/// # Errors
/// Lengths differ, a score is not finite, or no row is positive.
pub fn precision_recall(scores: &[f64], labels: &[bool]) -> Result<(Vec<PrPoint>, f64)> {
    same_length(("scores", scores.len()), ("labels", labels.len()))?;
    finite("score", scores)?;
    let positives = labels.iter().filter(|l| **l).count();
    if positives == 0 {
        return Err(Error::malformed("no positive row: recall does not exist"));
    }
    let mut descending = order(scores);
    descending.reverse();
    let (mut points, mut average) = (Vec::new(), 0.0);
    let (mut tp, mut called) = (0usize, 0usize);
    for run in descending.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let gained = run.iter().filter(|&&i| labels[i]).count();
        tp += gained;
        called += run.len();
        let precision = tp as f64 / called as f64;
        average += gained as f64 / positives as f64 * precision;
        let recall = tp as f64 / positives as f64;
        points.push(PrPoint { threshold: scores[run[0]], recall, precision });
    }
    Ok((points, average))
}

/// Confusion matrix of K classes: `counts[truth][predicted]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MultiConfusion {
    /// (K, K) counts, rows the truth.
    pub counts: Vec<Vec<usize>>,
    /// Share on the diagonal.
    pub accuracy: Proportion,
    /// Mean recall over the classes that occur.
    pub balanced_accuracy: f64,
    /// Mean F1 over the classes that occur or are predicted.
    pub macro_f1: f64,
    /// Cohen's kappa.
    pub kappa: Option<f64>,
}

/// Counts `predicted` (N,) against `truth` (N,), both in 0..`classes`.
///
/// # Errors
/// Lengths differ, nothing to count, or a class is out of range (named by row).
pub fn multi_confusion(
    predicted: &[usize],
    truth: &[usize],
    classes: usize,
    level: f64,
) -> Result<MultiConfusion> {
    same_length(("predictions", predicted.len()), ("labels", truth.len()))?;
    if truth.is_empty() {
        return Err(Error::malformed("no rows"));
    }
    let mut counts = vec![vec![0usize; classes]; classes];
    for (row, (&p, &t)) in predicted.iter().zip(truth).enumerate() {
        match counts.get_mut(t).and_then(|line| line.get_mut(p)) {
            Some(cell) => *cell += 1,
            None => {
                return Err(Error::malformed(format!(
                    "row {}: class {t} predicted as {p}, of {classes}",
                    row + 1
                )));
            }
        }
    }
    let truths: Vec<f64> = counts.iter().map(|r| r.iter().sum::<usize>() as f64).collect();
    let calls: Vec<f64> =
        (0..classes).map(|k| counts.iter().map(|r| r[k]).sum::<usize>() as f64).collect();
    let hits = |k: usize| counts[k][k] as f64;
    let recalls: Vec<f64> =
        (0..classes).filter(|&k| truths[k] > 0.0).map(|k| hits(k) / truths[k]).collect();
    let f1: Vec<f64> = (0..classes)
        .filter(|&k| truths[k] + calls[k] > 0.0)
        .map(|k| 2.0 * hits(k) / (truths[k] + calls[k]))
        .collect();
    let right: usize = (0..classes).map(|k| counts[k][k]).sum();
    let n = truth.len() as f64;
    let chance: f64 = truths.iter().zip(&calls).map(|(a, b)| a * b).sum();
    Ok(MultiConfusion {
        accuracy: Proportion::new(right, truth.len(), level),
        balanced_accuracy: super::mean(&recalls),
        macro_f1: super::mean(&f1),
        kappa: ratio(right as f64 * n - chance, n * n - chance),
        counts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_by_zero_do_not_exist() {
        let m = Confusion::at(&[0.1, 0.2], &[true, false], 0.5).unwrap().metrics(0.95);
        assert_eq!((m.ppv.estimate, m.mcc, m.f1), (None, None, Some(0.0)));
        assert_eq!((m.kappa, m.lr_positive), (Some(0.0), None));
    }

    /// scikit-learn's documentation example: y 0 0 1 1, scores .1 .4 .35 .8 give 0.8333.
    #[test]
    fn average_precision() {
        let (points, ap) =
            precision_recall(&[0.1, 0.4, 0.35, 0.8], &[false, false, true, true]).unwrap();
        assert!((ap - 5.0 / 6.0).abs() < 1e-15);
        assert_eq!(points[2].threshold, 0.35);
        assert!(precision_recall(&[0.1], &[false]).is_err());
    }

    #[test]
    fn three_classes() {
        let m = multi_confusion(&[0, 2, 2, 1], &[0, 1, 2, 1], 3, 0.95).unwrap();
        assert_eq!(m.counts, [[1, 0, 0], [0, 1, 1], [0, 0, 1]]);
        assert_eq!(m.accuracy.estimate, Some(0.75));
        assert!((m.kappa.unwrap() - 7.0 / 11.0).abs() < 1e-15);
        assert!(multi_confusion(&[3], &[0], 3, 0.95).unwrap_err().to_string().contains("row 1"));
    }
}
