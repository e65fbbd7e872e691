//! Whether two groups differ in location: Mann-Whitney and Welch tests, and how much.

use super::intervals::Interval;
use super::{finite, mean, mid_ranks, normal_two_sided, student_two_sided, variance};
use crate::error::Result;
use serde::Serialize;

/// Larger of the smaller group for which p-values without ties are exact.
const EXACT: usize = 8;

/// The Mann-Whitney U test (Mann and Whitney 1947) of two groups.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MannWhitney {
    /// U of the first group: pairs in which its value is larger, ties counted half.
    pub u: f64,
    /// U over the number of pairs: the probability that a value of the first group is larger.
    pub auc: f64,
    /// `2 * auc - 1`, the rank-biserial correlation (Cliff's delta).
    pub rank_biserial: f64,
    /// Two-sided p-value; `None` when all values are equal.
    pub p: Option<f64>,
    /// Whether `p` comes from the exact distribution.
    pub exact: bool,
}

/// Welch's t test (1947) of two groups.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Welch {
    /// Statistic.
    pub t: f64,
    /// Degrees of freedom by Welch and Satterthwaite.
    pub df: f64,
    /// Two-sided p-value.
    pub p: f64,
    /// Mean of the first group minus that of the second.
    pub difference: f64,
    /// 95 % interval of the difference.
    pub interval: Interval,
}

/// Mann-Whitney test; `None` when a group is empty.
///
/// Without ties and with at most 8 values in one group the p-value is exact (as long as the number
/// of arrangements is below 2^53), otherwise normal with the variance corrected for ties and a
/// continuity correction of 1/2.
///
/// # Errors
/// A value that is not finite, named by group and row.
pub fn mann_whitney(x: &[f64], y: &[f64]) -> Result<Option<MannWhitney>> {
    finite("value of the first group", x)?;
    finite("value of the second group", y)?;
    if x.is_empty() || y.is_empty() {
        return Ok(None);
    }
    let all = [x, y].concat();
    let ranks = mid_ranks(&all);
    let (m, n) = (x.len() as f64, y.len() as f64);
    let u = ranks[..x.len()].iter().sum::<f64>() - m * (m + 1.0) / 2.0;
    let larger = u.max(m * n - u);
    let ties = tie_sum(&ranks);
    let few = x.len().min(y.len()) <= EXACT && ties == 0.0;
    let exact = few.then(|| exact_tail(larger, x.len(), y.len())).flatten();
    let p = exact.map(|tail| (2.0 * tail).min(1.0)).or_else(|| {
        let total = m + n;
        let variance = m * n / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
        let z = (larger - m * n / 2.0 - 0.5) / variance.sqrt();
        (variance > 0.0).then(|| if z > 0.0 { normal_two_sided(z) } else { 1.0 })
    });
    let auc = u / (m * n);
    Ok(Some(MannWhitney { u, auc, rank_biserial: 2.0 * auc - 1.0, p, exact: exact.is_some() }))
}

/// Sum of `t^3 - t` over runs of `t` equal ranks.
fn tie_sum(ranks: &[f64]) -> f64 {
    let mut sorted = ranks.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.chunk_by(|a, b| a == b).map(|run| (run.len() as f64).powi(3) - run.len() as f64).sum()
}

/// P(U >= u) under no difference; `None` when there are too many arrangements to count exactly.
fn exact_tail(u: f64, m: usize, n: usize) -> Option<f64> {
    let (m, n) = (m.min(n), m.max(n));
    let total = (1..=m).try_fold(1.0f64, |c, i| {
        let next = c * (n + i) as f64 / i as f64;
        (next < (1u64 << 53) as f64).then_some(next.round())
    })?;
    // Arrangements by U: the coefficients of prod (1 - q^(n + i)) / (1 - q^i).
    let size = m * n + 1;
    let mut count = vec![0i64; size];
    count[0] = 1;
    for i in 1..=m {
        for k in (n + i..size).rev() {
            count[k] -= count[k - n - i];
        }
        for k in i..size {
            count[k] += count[k - i];
        }
    }
    let tail: i64 = count.iter().skip(u as usize).sum();
    Some(tail as f64 / total)
}

/// Welch's test; `None` below two values a group or when neither varies.
///
/// # Errors
/// A value that is not finite, named by group and row.
pub fn welch(x: &[f64], y: &[f64]) -> Result<Option<Welch>> {
    finite("value of the first group", x)?;
    finite("value of the second group", y)?;
    let (Some(vx), Some(vy)) = (variance(x), variance(y)) else { return Ok(None) };
    let (m, n) = (x.len() as f64, y.len() as f64);
    let (a, b) = (vx / m, vy / n);
    if a + b == 0.0 {
        return Ok(None);
    }
    let difference = mean(x) - mean(y);
    let se = (a + b).sqrt();
    let df = (a + b).powi(2) / (a * a / (m - 1.0) + b * b / (n - 1.0));
    let t = difference / se;
    let half = super::dist::student_quantile(0.5 + super::LEVEL / 2.0, df) * se;
    Ok(Some(Welch {
        t,
        df,
        p: student_two_sided(t, df),
        difference,
        interval: Interval::around(difference, half),
    }))
}

/// Hedges' g (1981): the difference of means in pooled standard deviations, with the usual
/// approximation `1 - 3 / (4 df - 1)` of the correction for small groups. `None` below two values a
/// group or without variation.
pub fn hedges_g(x: &[f64], y: &[f64]) -> Option<f64> {
    let (vx, vy) = (variance(x)?, variance(y)?);
    let (m, n) = (x.len() as f64, y.len() as f64);
    let df = m + n - 2.0;
    let pooled = (((m - 1.0) * vx + (n - 1.0) * vy) / df).sqrt();
    (pooled > 0.0).then(|| (mean(x) - mean(y)) / pooled * (1.0 - 3.0 / (4.0 * df - 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "{a} is not {b}");
    }

    const X: [f64; 7] = [0.8, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91];
    const Y: [f64; 5] = [1.15, 0.88, 0.90, 0.74, 1.21];

    /// Values of scipy 1.17: mannwhitneyu, ttest_ind(equal_var=False); pingouin 0.7:
    /// compute_effsize(eftype="hedges").
    #[test]
    fn agree_with_scipy() {
        let exact = mann_whitney(&X, &Y).unwrap().unwrap();
        close(exact.u, 25.0);
        close(exact.p.unwrap(), 0.26767676767676774);
        assert!(exact.exact);
        let (x, y) = ([1.0, 2.0, 2.0, 3.0, 5.0], [2.0, 4.0, 4.0, 6.0, 7.0, 2.0]);
        let tied = mann_whitney(&x, &y).unwrap().unwrap();
        close(tied.u, 8.0);
        close(tied.p.unwrap(), 0.22339063142499604);
        assert!(!tied.exact);
        let many: Vec<f64> = (0..40).map(|i| f64::from(i * 37 % 101)).collect();
        let more: Vec<f64> = (0..35).map(|i| f64::from(i * 53 % 103) + 20.5).collect();
        close(mann_whitney(&many, &more).unwrap().unwrap().p.unwrap(), 0.0058538024001306465);
        let w = welch(&X, &Y).unwrap().unwrap();
        close(w.t, 1.8013891524694392);
        close(w.df, 8.611110512143691);
        assert!((w.p - 0.10666412635077484).abs() < 1e-10);
        assert!((w.interval.lower - -0.09324925421100849).abs() < 1e-10);
        close(hedges_g(&X, &Y).unwrap(), 0.8583513882942446);
    }

    #[test]
    fn what_does_not_exist_is_none() {
        assert_eq!(mann_whitney(&[], &Y).unwrap(), None);
        assert_eq!(mann_whitney(&[1.0; 4], &[1.0; 3]).unwrap().unwrap().p, None);
        assert_eq!(welch(&[1.0], &Y).unwrap(), None);
        assert_eq!(welch(&[1.0, 1.0], &[2.0, 2.0]).unwrap(), None);
        assert_eq!(hedges_g(&[1.0, 1.0], &[2.0, 2.0]), None);
        assert!(welch(&[1.0, f64::NAN], &Y).unwrap_err().to_string().contains("row 2"));
    }
}
