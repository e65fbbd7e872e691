//! ROC curve and AUC of a score against two classes: a larger score speaks for the positive class,
//! and the direction is never flipped. Ties count one half.

use super::intervals::{Interval, clopper_pearson, z_of};
use super::{finite, mid_ranks, normal_two_sided, order, same_length, variance};
use crate::error::{Error, Result};
use serde::Serialize;

mod resample;

pub use resample::{BandPoint, RocBootstrap};

/// How many of each class share one score.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Level {
    score: f64,
    positive: usize,
    negative: usize,
}

/// The ROC curve of N scores, with the placement values DeLong's variance needs.
#[derive(Clone, Debug)]
pub struct Roc {
    levels: Vec<Level>,
    positives: usize,
    negatives: usize,
    /// Share of negatives below each positive (ties half), in row order.
    v10: Vec<f64>,
    /// Share of positives above each negative (ties half), in row order.
    v01: Vec<f64>,
    tie_sum: f64,
}

/// One point of the curve: the rule `score >= threshold` calls positive.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Least score called positive; infinite at the origin of the curve.
    pub threshold: f64,
    /// True positives over positives.
    pub sensitivity: f64,
    /// True negatives over negatives.
    pub specificity: f64,
}

/// The cut with the largest Youden index J = sensitivity + specificity - 1 (Youden 1950).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Youden {
    /// The index.
    pub j: f64,
    /// Half-way between the neighbouring scores (the convention of pROC).
    pub midpoint: f64,
    /// The least score called positive by `>=` (the convention of scikit-learn).
    pub observed: f64,
    /// Sensitivity at the cut.
    pub sensitivity: f64,
    /// Specificity at the cut.
    pub specificity: f64,
}

/// Two correlated AUCs compared on the same rows (DeLong et al. 1988).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// First minus second AUC.
    pub difference: f64,
    /// Covariance of the two AUCs.
    pub covariance: f64,
    /// Standard error of the difference.
    pub se: f64,
    /// Difference over its standard error; `None` when that is 0 (the scores rank alike).
    pub z: Option<f64>,
    /// Two-sided p-value; 1 for scores that rank alike.
    pub p: Option<f64>,
    /// Normal interval of the difference.
    pub interval: Interval,
}

impl Roc {
    /// Ranks `scores` against `labels`, both (N,).
    ///
    /// # Errors
    /// Lengths differ, a score is not finite (named by row), or only one class occurs.
    pub fn new(scores: &[f64], labels: &[bool]) -> Result<Self> {
        same_length(("scores", scores.len()), ("labels", labels.len()))?;
        finite("score", scores)?;
        let positives = labels.iter().filter(|l| **l).count();
        let negatives = labels.len() - positives;
        if positives == 0 || negatives == 0 {
            return Err(Error::malformed(format!(
                "needs both classes: {positives} positive and {negatives} negative rows"
            )));
        }
        let of = |class: bool| -> Vec<f64> {
            scores.iter().zip(labels).filter(|(_, l)| **l == class).map(|(s, _)| *s).collect()
        };
        let (ranks, inner_pos, inner_neg) =
            (mid_ranks(scores), mid_ranks(&of(true)), mid_ranks(&of(false)));
        let ranks_of = |class: bool| {
            ranks.iter().zip(labels).filter(move |(_, l)| **l == class).map(|(r, _)| *r)
        };
        let v10 = ranks_of(true)
            .zip(&inner_pos)
            .map(|(all, inner)| (all - inner) / negatives as f64)
            .collect();
        let v01 = ranks_of(false)
            .zip(&inner_neg)
            .map(|(all, inner)| 1.0 - (all - inner) / positives as f64)
            .collect();
        let levels = levels(scores, labels);
        let tie_sum =
            levels.iter().map(|l| (l.positive + l.negative) as f64).map(|t| t * t * t - t).sum();
        Ok(Roc { levels, positives, negatives, v10, v01, tie_sum })
    }

    /// Positive rows.
    pub fn positives(&self) -> usize {
        self.positives
    }

    /// Negative rows.
    pub fn negatives(&self) -> usize {
        self.negatives
    }

    /// Mann-Whitney U: pairs in which the positive scores higher, ties half. Exact.
    pub fn u(&self) -> f64 {
        let mut below = 0usize;
        let mut twice = 0u128;
        for level in &self.levels {
            twice += level.positive as u128 * (2 * below as u128 + level.negative as u128);
            below += level.negative;
        }
        twice as f64 / 2.0
    }

    fn pairs(&self) -> f64 {
        self.positives as f64 * self.negatives as f64
    }

    /// Area under the curve.
    pub fn auc(&self) -> f64 {
        self.u() / self.pairs()
    }

    /// Two-sided p-value of the Mann-Whitney test: normal approximation with tie correction,
    /// without continuity correction. `None` when all scores are tied.
    pub fn mann_whitney_p(&self) -> Option<f64> {
        let n = (self.positives + self.negatives) as f64;
        let var = self.pairs() / 12.0 * (n + 1.0 - self.tie_sum / (n * (n - 1.0)));
        (var > 0.0).then(|| normal_two_sided((self.u() - self.pairs() / 2.0) / var.sqrt()))
    }

    /// Variance of the AUC after DeLong, DeLong and Clarke-Pearson (1988), from mid-ranks in
    /// O(N log N) (Sun and Xu 2014). `None` with fewer than two rows of a class.
    pub fn delong_variance(&self) -> Option<f64> {
        let (a, b) = (variance(&self.v10)?, variance(&self.v01)?);
        Some(a / self.positives as f64 + b / self.negatives as f64)
    }

    /// Normal interval from DeLong's variance, cut to [0, 1]. Of zero width when classes are
    /// perfectly separated or all scores tied: then it says nothing about uncertainty.
    pub fn delong(&self, level: f64) -> Option<Interval> {
        let se = self.delong_variance()?.sqrt();
        Some(Interval::around(self.auc(), z_of(level) * se).unit())
    }

    /// The same on the logit scale (Pepe 2003, 5.2.4). `None` for an AUC of 0 or 1.
    pub fn delong_logit(&self, level: f64) -> Option<Interval> {
        let auc = self.auc();
        let spread = auc * (1.0 - auc);
        let se = self.delong_variance()?.sqrt();
        (spread > 0.0).then(|| {
            Interval::around((auc / (1.0 - auc)).ln(), z_of(level) * se / spread)
                .map(|v| 1.0 / (1.0 + (-v).exp()))
        })
    }

    /// Standard error after Hanley and McNeil (1982).
    pub fn hanley_mcneil_se(&self) -> f64 {
        let (a, m, n) = (self.auc(), self.positives as f64, self.negatives as f64);
        let (q1, q2) = (a / (2.0 - a), 2.0 * a * a / (1.0 + a));
        let sum = a * (1.0 - a) + (m - 1.0) * (q1 - a * a) + (n - 1.0) * (q2 - a * a);
        (sum.max(0.0) / (m * n)).sqrt()
    }

    /// Clopper-Pearson interval of the AUC taken as a proportion of all N rows, with the real
    /// number `AUC * N` as count: the "binomial exact" interval of MedCalc.
    pub fn binomial_exact(&self, level: f64) -> Option<Interval> {
        let n = (self.positives + self.negatives) as f64;
        clopper_pearson(self.auc() * n, n, level)
    }

    /// The curve from (sensitivity 0, specificity 1) to (1, 0): one point a distinct score, after
    /// the origin.
    pub fn curve(&self) -> Vec<Point> {
        let (mut tp, mut fp) = (0, 0);
        let mut points =
            vec![Point { threshold: f64::INFINITY, sensitivity: 0.0, specificity: 1.0 }];
        for level in self.levels.iter().rev() {
            tp += level.positive;
            fp += level.negative;
            points.push(Point {
                threshold: level.score,
                sensitivity: tp as f64 / self.positives as f64,
                specificity: (self.negatives - fp) as f64 / self.negatives as f64,
            });
        }
        points
    }

    /// Area between false-positive rates 0 and `fpr` (trapezoids, the last one cut).
    pub fn partial_auc(&self, fpr: f64) -> f64 {
        let points: Vec<(f64, f64)> =
            self.curve().iter().map(|p| (1.0 - p.specificity, p.sensitivity)).collect();
        let mut area = 0.0;
        for pair in points.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            if x0 >= fpr {
                break;
            }
            let end = x1.min(fpr);
            let y_end = if x1 > x0 { y0 + (y1 - y0) * (end - x0) / (x1 - x0) } else { y1 };
            area += (end - x0) * (y0 + y_end) / 2.0;
        }
        area
    }

    /// Partial AUC rescaled so that chance is 0.5 and perfect 1 (McClish 1989).
    pub fn partial_auc_mcclish(&self, fpr: f64) -> f64 {
        let (least, most) = (fpr * fpr / 2.0, fpr);
        0.5 * (1.0 + (self.partial_auc(fpr) - least) / (most - least))
    }

    /// The cut with the largest J; of several the lowest threshold. `None` when all scores are
    /// tied. J is compared in whole numbers, so ties are exact.
    pub fn youden(&self) -> Option<Youden> {
        let (m, n) = (self.positives as i128, self.negatives as i128);
        let (mut tp, mut fp) = (m, n);
        let mut best: Option<(i128, usize, i128, i128)> = None;
        for (i, level) in self.levels.iter().enumerate() {
            if i > 0 {
                let j = tp * n - fp * m;
                if best.is_none_or(|b| j > b.0) {
                    best = Some((j, i, tp, fp));
                }
            }
            tp -= level.positive as i128;
            fp -= level.negative as i128;
        }
        best.map(|(j, i, tp, fp)| Youden {
            j: j as f64 / (m * n) as f64,
            midpoint: (self.levels[i - 1].score + self.levels[i].score) / 2.0,
            observed: self.levels[i].score,
            sensitivity: tp as f64 / m as f64,
            specificity: (n - fp) as f64 / n as f64,
        })
    }

    /// Leave-one-out AUCs, for the acceleration of BCa; empty with fewer than two of a class.
    pub fn jackknife(&self) -> Vec<f64> {
        let (auc, m, n) = (self.auc(), self.positives as f64, self.negatives as f64);
        if self.positives < 2 || self.negatives < 2 {
            return Vec::new();
        }
        let without = |v: &f64, k: f64| (auc * k - v) / (k - 1.0);
        let positive = self.v10.iter().map(|v| without(v, m));
        positive.chain(self.v01.iter().map(|v| without(v, n))).collect()
    }
}

/// Distinct scores, ascending, with their counts.
fn levels(scores: &[f64], labels: &[bool]) -> Vec<Level> {
    order(scores)
        .chunk_by(|&a, &b| scores[a] == scores[b])
        .map(|run| {
            let positive = run.iter().filter(|&&i| labels[i]).count();
            Level { score: scores[run[0]], positive, negative: run.len() - positive }
        })
        .collect()
}

fn covariance(a: &[f64], b: &[f64]) -> Option<f64> {
    let (ma, mb) = (super::mean(a), super::mean(b));
    let sum: f64 = a.iter().zip(b).map(|(x, y)| (x - ma) * (y - mb)).sum();
    (a.len() > 1).then(|| sum / (a.len() - 1) as f64)
}

/// Paired DeLong test of two scores on the same rows and labels.
///
/// # Errors
/// As [`Roc::new`]; fewer than two rows of a class.
pub fn delong_paired(a: &[f64], b: &[f64], labels: &[bool], level: f64) -> Result<Paired> {
    let (a, b) = (Roc::new(a, labels)?, Roc::new(b, labels)?);
    let few = || Error::malformed("the paired test needs two rows of each class");
    let (m, n) = (a.positives as f64, a.negatives as f64);
    let covariance = covariance(&a.v10, &b.v10).ok_or_else(few)? / m
        + covariance(&a.v01, &b.v01).ok_or_else(few)? / n;
    let differences =
        |x: &[f64], y: &[f64]| -> Vec<f64> { x.iter().zip(y).map(|(x, y)| x - y).collect() };
    // The variance of the differences themselves: no cancellation when the scores almost agree.
    let var = variance(&differences(&a.v10, &b.v10)).ok_or_else(few)? / m
        + variance(&differences(&a.v01, &b.v01)).ok_or_else(few)? / n;
    let (difference, se) = (a.auc() - b.auc(), var.sqrt());
    let z = (se > 0.0).then(|| difference / se);
    let alike = se == 0.0 && difference == 0.0;
    Ok(Paired {
        difference,
        covariance,
        se,
        z,
        p: z.map(normal_two_sided).or(alike.then_some(1.0)),
        interval: Interval::around(difference, z_of(level) * se),
    })
}

/// One-vs-rest AUC of each of K classes and their unweighted mean.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OneVsRest {
    /// AUC of class k against all others, `None` for a class that does not occur.
    pub classes: Vec<Option<f64>>,
    /// Mean over the classes that occur.
    pub macro_mean: f64,
}

/// Multiclass AUC: `scores` (N, K) row-major, `labels` (N,) in 0..K.
///
/// # Errors
/// Shapes disagree, a label or score is out of range (named by row), or one class alone occurs.
pub fn one_vs_rest(scores: &[f64], labels: &[usize], classes: usize) -> Result<OneVsRest> {
    same_length(("scores", scores.len()), ("scores expected", labels.len() * classes))?;
    if let Some(row) = labels.iter().position(|&l| l >= classes) {
        return Err(Error::malformed(format!(
            "row {}: class {} of {classes}",
            row + 1,
            labels[row]
        )));
    }
    let mut out = Vec::with_capacity(classes);
    for k in 0..classes {
        let column: Vec<f64> = scores.iter().skip(k).step_by(classes.max(1)).copied().collect();
        let is: Vec<bool> = labels.iter().map(|&l| l == k).collect();
        finite(&format!("score of class {k}"), &column)?;
        out.push(if is.contains(&true) { Some(Roc::new(&column, &is)?.auc()) } else { None });
    }
    let known: Vec<f64> = out.iter().flatten().copied().collect();
    if known.is_empty() {
        return Err(Error::malformed("no rows"));
    }
    Ok(OneVsRest { macro_mean: super::mean(&known), classes: out })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_class_and_nan_are_errors() {
        let error = Roc::new(&[0.1, 0.2], &[true, true]).unwrap_err().to_string();
        assert!(error.contains("needs both classes"), "{error}");
        let error = Roc::new(&[0.1, f64::NAN], &[true, false]).unwrap_err().to_string();
        assert_eq!(error, "row 2: score is NaN");
        assert!(Roc::new(&[0.1], &[true, false]).is_err());
    }

    #[test]
    fn all_tied_is_chance_without_variance() {
        let roc = Roc::new(&[0.5; 4], &[false, true, false, true]).unwrap();
        assert_eq!((roc.auc(), roc.delong_variance()), (0.5, Some(0.0)));
        assert_eq!((roc.youden(), roc.mann_whitney_p()), (None, None));
    }

    #[test]
    fn one_row_of_a_class_has_no_interval() {
        let roc = Roc::new(&[0.2, 0.8], &[false, true]).unwrap();
        assert_eq!(roc.auc(), 1.0);
        assert!(roc.delong(0.95).is_none() && roc.jackknife().is_empty());
    }

    #[test]
    fn several_best_cuts_give_the_lowest() {
        let roc = Roc::new(&[1.0, 2.0, 3.0, 4.0], &[false, true, false, true]).unwrap();
        let best = roc.youden().unwrap();
        assert_eq!((best.observed, best.midpoint, best.j), (2.0, 1.5, 0.5));
    }

    #[test]
    fn leave_one_out_matches_recomputation() {
        let scores = [0.1, 0.4, 0.35, 0.8, 0.8, 0.2, 0.7];
        let labels = [false, false, true, true, false, true, true];
        let jackknife = Roc::new(&scores, &labels).unwrap().jackknife();
        let mut direct = Vec::new();
        for class in [true, false] {
            for out in (0..7).filter(|&i| labels[i] == class) {
                let keep: Vec<usize> = (0..7).filter(|&i| i != out).collect();
                let s: Vec<f64> = keep.iter().map(|&i| scores[i]).collect();
                let l: Vec<bool> = keep.iter().map(|&i| labels[i]).collect();
                direct.push(Roc::new(&s, &l).unwrap().auc());
            }
        }
        for (a, b) in jackknife.iter().zip(&direct) {
            assert!((a - b).abs() < 1e-15);
        }
    }

    #[test]
    fn a_score_against_itself_is_no_difference() {
        let (s, l) = ([0.1, 0.4, 0.3, 0.9], [false, true, false, true]);
        let test = delong_paired(&s, &s, &l, 0.95).unwrap();
        assert_eq!((test.difference, test.z, test.p), (0.0, None, Some(1.0)));
    }

    #[test]
    fn one_vs_rest_of_two_classes_is_the_auc() {
        let p = [0.1, 0.4, 0.35, 0.8];
        let scores: Vec<f64> = p.iter().flat_map(|p| [1.0 - p, *p]).collect();
        let out = one_vs_rest(&scores, &[0, 0, 1, 1], 2).unwrap();
        assert_eq!(out.classes, [Some(0.75), Some(0.75)]);
        let error = one_vs_rest(&scores, &[0, 0, 1, 2], 2).unwrap_err().to_string();
        assert!(error.contains("row 4"), "{error}");
    }
}
