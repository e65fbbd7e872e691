//! Confidence intervals of a proportion and of predictive values.

use super::dist::{beta_quantile, normal_quantile};
use serde::{Deserialize, Serialize};

/// A two-sided confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub lower: f64,
    /// Upper end.
    pub upper: f64,
}

impl Interval {
    /// `estimate` minus and plus `half`.
    pub(crate) fn around(estimate: f64, half: f64) -> Self {
        Interval { lower: estimate - half, upper: estimate + half }
    }

    /// Each end through a monotone increasing `f`.
    pub(crate) fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Interval { lower: f(self.lower), upper: f(self.upper) }
    }

    /// Cut to [0, 1].
    pub(crate) fn unit(self) -> Self {
        self.map(|v| v.clamp(0.0, 1.0))
    }
}

/// The normal quantile of a two-sided interval: 1.96 for 0.95.
pub(crate) fn z_of(level: f64) -> f64 {
    normal_quantile(0.5 + level / 2.0)
}

/// Score interval without continuity correction (Wilson 1927). `None` when `n` is 0 or `k` is
/// outside [0, n]. At `k = 0` and `k = n` the outer end is exactly 0 or 1.
pub fn wilson(k: f64, n: f64, level: f64) -> Option<Interval> {
    if !(n > 0.0 && (0.0..=n).contains(&k)) {
        return None;
    }
    let (p, z2) = (k / n, z_of(level).powi(2));
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = (z2 * (p * (1.0 - p) / n + z2 / (4.0 * n * n))).sqrt() / (1.0 + z2 / n);
    let mut out = Interval::around(centre, half).unit();
    if k == 0.0 {
        out.lower = 0.0;
    }
    if k == n {
        out.upper = 1.0;
    }
    Some(out)
}

/// Exact interval from the beta distribution (Clopper and Pearson 1934): between the `a/2` quantile
/// of Beta(k, n - k + 1) and the `1 - a/2` quantile of Beta(k + 1, n - k). `k` may be any real
/// number in [0, n]: with `k = AUC * n` and `n` all patients this is the "binomial exact" interval
/// that some programs print for an AUC. `None` when `n` is 0 or `k` is outside.
pub fn clopper_pearson(k: f64, n: f64, level: f64) -> Option<Interval> {
    if !(n > 0.0 && (0.0..=n).contains(&k)) {
        return None;
    }
    let a = (1.0 - level) / 2.0;
    Some(Interval {
        lower: if k > 0.0 { beta_quantile(a, k, n - k + 1.0) } else { 0.0 },
        upper: if k < n { beta_quantile(1.0 - a, k + 1.0, n - k) } else { 1.0 },
    })
}

/// Wald interval `p -+ z sqrt(p (1 - p) / n)`, cut to [0, 1]. Poor for small n or extreme p; here
/// because published tables use it.
pub fn wald(k: f64, n: f64, level: f64) -> Option<Interval> {
    if !(n > 0.0 && (0.0..=n).contains(&k)) {
        return None;
    }
    let p = k / n;
    Some(Interval::around(p, z_of(level) * (p * (1.0 - p) / n).sqrt()).unit())
}

/// Logit intervals of the positive and the negative predictive value (Mercaldo, Lau and Zhou 2007),
/// with the prevalence of the sample, from the four cells of the confusion matrix:
/// `var logit PPV = (1 - se) / (se n1) + sp / ((1 - sp) n0)`,
/// `var logit NPV = se / ((1 - se) n1) + (1 - sp) / (sp n0)`.
/// An interval is `None` where a cell it needs is 0.
pub fn mercaldo(
    tp: f64,
    fp: f64,
    fn_: f64,
    tn: f64,
    level: f64,
) -> (Option<Interval>, Option<Interval>) {
    let (n1, n0) = (tp + fn_, fp + tn);
    let (se, sp) = (tp / n1, tn / n0);
    let logit = |p: f64, var: f64| {
        Interval::around((p / (1.0 - p)).ln(), z_of(level) * var.sqrt())
            .map(|v| 1.0 / (1.0 + (-v).exp()))
    };
    let ppv = (tp > 0.0 && fp > 0.0)
        .then(|| logit(tp / (tp + fp), (1.0 - se) / (se * n1) + sp / ((1.0 - sp) * n0)));
    let npv = (tn > 0.0 && fn_ > 0.0)
        .then(|| logit(tn / (tn + fn_), se / ((1.0 - se) * n1) + (1.0 - sp) / (sp * n0)));
    (ppv, npv)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_exact_at_none_and_all() {
        for f in [wilson, clopper_pearson, wald] {
            assert_eq!(f(0.0, 7.0, 0.95).unwrap().lower, 0.0);
            assert_eq!(f(7.0, 7.0, 0.95).unwrap().upper, 1.0);
            assert!(f(0.0, 0.0, 0.95).is_none());
            assert!(f(8.0, 7.0, 0.95).is_none());
            assert!(f(f64::NAN, 7.0, 0.95).is_none());
        }
    }

    #[test]
    fn predictive_values_need_their_cells() {
        let (ppv, npv) = mercaldo(5.0, 0.0, 2.0, 9.0, 0.95);
        assert!(ppv.is_none() && npv.is_some());
    }
}
