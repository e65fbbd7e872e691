//! Two groups compared: means, ranks and counts, as the first table of a study compares them.

use super::dist::{chi2_upper, normal_two_sided, student_quantile, student_two_sided};
use super::{Interval, finite, mean, mid_ranks, variance};
use crate::error::{Error, Result};
use serde::Serialize;

/// A difference of two means with its t-test.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TTest {
    /// Mean of the first group minus that of the second.
    pub difference: f64,
    /// Statistic.
    pub t: f64,
    /// Degrees of freedom.
    pub df: f64,
    /// Two-sided p-value.
    pub p: f64,
    /// Interval of the difference.
    pub interval: Interval,
}

/// Means and variances of two groups of at least two rows that vary.
fn moments(a: &[f64], b: &[f64]) -> Result<[(f64, f64, f64); 2]> {
    finite("value of the first group", a)?;
    finite("value of the second group", b)?;
    let of = |x: &[f64]| -> Result<(f64, f64, f64)> {
        let var =
            variance(x).ok_or_else(|| Error::malformed("a t-test needs two rows of each group"))?;
        Ok((x.len() as f64, mean(x), var))
    };
    let out = [of(a)?, of(b)?];
    if out.iter().all(|g| g.2 == 0.0) {
        return Err(Error::malformed("no value varies within its group: there is no t-test"));
    }
    Ok(out)
}

fn t_test(difference: f64, se: f64, df: f64, level: f64) -> TTest {
    let t = difference / se;
    let interval = Interval::around(difference, student_quantile(0.5 + level / 2.0, df) * se);
    TTest { difference, t, df, p: student_two_sided(t, df), interval }
}

/// Welch's t-test (1947): variances may differ.
///
/// # Errors
/// A value not finite (named by row), fewer than two rows of a group, no variation at all.
pub fn welch(a: &[f64], b: &[f64], level: f64) -> Result<TTest> {
    let [(m, mean_a, var_a), (n, mean_b, var_b)] = moments(a, b)?;
    let (u, v) = (var_a / m, var_b / n);
    let df = (u + v).powi(2) / (u * u / (m - 1.0) + v * v / (n - 1.0));
    Ok(t_test(mean_a - mean_b, (u + v).sqrt(), df, level))
}

/// Student's t-test (1908), one variance for both groups.
///
/// # Errors
/// As [`welch`].
pub fn student(a: &[f64], b: &[f64], level: f64) -> Result<TTest> {
    let [(m, mean_a, var_a), (n, mean_b, var_b)] = moments(a, b)?;
    let df = m + n - 2.0;
    let pooled = ((m - 1.0) * var_a + (n - 1.0) * var_b) / df;
    Ok(t_test(mean_a - mean_b, (pooled * (1.0 / m + 1.0 / n)).sqrt(), df, level))
}

/// Cohen's d: difference of means over the pooled standard deviation. `None` below two rows of a
/// group or without variation.
pub fn cohen_d(a: &[f64], b: &[f64]) -> Option<f64> {
    let (m, n) = (a.len() as f64, b.len() as f64);
    let pooled = ((m - 1.0) * variance(a)? + (n - 1.0) * variance(b)?) / (m + n - 2.0);
    (pooled > 0.0).then(|| (mean(a) - mean(b)) / pooled.sqrt())
}

/// Hedges' g (1981): Cohen's d with the usual approximation `1 - 3 / (4 df - 1)` of the correction for
/// small groups. `None` as [`cohen_d`].
pub fn hedges_g(a: &[f64], b: &[f64]) -> Option<f64> {
    let df = (a.len() + b.len()) as f64 - 2.0;
    cohen_d(a, b).map(|d| d * (1.0 - 3.0 / (4.0 * df - 1.0)))
}

/// The Mann-Whitney test of two groups.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MannWhitney {
    /// Pairs in which the first group's row is larger, ties half.
    pub u: f64,
    /// `2 U / (m n) - 1`: 1 when the first group always is larger, -1 when never.
    pub rank_biserial: f64,
    /// Two-sided p-value; `None` when all values are tied.
    pub p: Option<f64>,
    /// Whether `p` is exact.
    pub exact: bool,
}

/// The exact distribution costs `m n` steps for each of up to `m n` values.
const EXACT_BELOW: usize = 50;

/// Mann-Whitney U (1947): exact when both groups have fewer than 50 rows and no value is tied, else
/// the normal approximation with corrections for ties and continuity (as R's `wilcox.test`).
///
/// # Errors
/// A value not finite (named by row) or an empty group.
pub fn mann_whitney(a: &[f64], b: &[f64]) -> Result<MannWhitney> {
    finite("value of the first group", a)?;
    finite("value of the second group", b)?;
    if a.is_empty() || b.is_empty() {
        return Err(Error::malformed("the Mann-Whitney test needs rows of both groups"));
    }
    let (m, n) = (a.len() as f64, b.len() as f64);
    let mut all = [a, b].concat();
    let ranks: f64 = mid_ranks(&all)[..a.len()].iter().sum();
    let u = ranks - m * (m + 1.0) / 2.0;
    all.sort_by(f64::total_cmp);
    let ties: f64 =
        all.chunk_by(|x, y| x == y).map(|run| run.len() as f64).map(|t| t * t * t - t).sum();
    let exact = ties == 0.0 && a.len() < EXACT_BELOW && b.len() < EXACT_BELOW;
    let p = if exact {
        Some(exact_p(u as usize, a.len(), b.len()))
    } else {
        let total = m + n;
        let var = m * n / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
        let gap = ((u - m * n / 2.0).abs() - 0.5).max(0.0);
        (var > 0.0).then(|| normal_two_sided(gap / var.sqrt()))
    };
    Ok(MannWhitney { u, rank_biserial: 2.0 * u / (m * n) - 1.0, p, exact })
}

/// Twice the smaller tail of U under equal distributions, from the number of orders of `m` and `n`
/// rows with each U (Mann and Whitney's recursion, as a product of polynomials).
fn exact_p(u: usize, m: usize, n: usize) -> f64 {
    let most = m * n;
    // Coefficients of the Gaussian binomial: prod (1 - q^(n + i)) / (1 - q^i).
    let mut counts = vec![0.0; most + 1];
    counts[0] = 1.0f64;
    for i in 1..=m {
        for k in (n + i..=most).rev() {
            counts[k] -= counts[k - n - i];
        }
        for k in i..=most {
            counts[k] += counts[k - i];
        }
    }
    let total: f64 = counts.iter().sum();
    let low: f64 = counts[..=u.min(most - u)].iter().sum();
    (2.0 * low / total).min(1.0)
}

/// Kruskal and Wallis' test (1952) that several groups have one distribution: the statistic with its
/// tie correction, degrees of freedom and p-value. `None` when all values are tied.
///
/// # Errors
/// A value not finite, or fewer than two groups with rows.
pub fn kruskal_wallis(groups: &[&[f64]]) -> Result<Option<(f64, usize, f64)>> {
    let used: Vec<&[f64]> = groups.iter().copied().filter(|g| !g.is_empty()).collect();
    if used.len() < 2 {
        return Err(Error::malformed("needs rows of two groups"));
    }
    let mut all = used.concat();
    finite("value", &all)?;
    let (ranks, n) = (mid_ranks(&all), all.len() as f64);
    let mut start = 0;
    let mut sum = 0.0;
    for group in &used {
        let own: f64 = ranks[start..start + group.len()].iter().sum();
        sum += own * own / group.len() as f64;
        start += group.len();
    }
    all.sort_by(f64::total_cmp);
    let runs = all.chunk_by(|x, y| x == y).map(|run| run.len() as f64);
    let ties: f64 = runs.map(|t| t * t * t - t).sum();
    let correction = 1.0 - ties / (n * n * n - n);
    let h = 12.0 / (n * (n + 1.0)) * sum - 3.0 * (n + 1.0);
    let df = used.len() - 1;
    Ok((correction > 0.0).then(|| (h / correction, df, chi2_upper(h / correction, df as f64))))
}

/// Benjamini and Hochberg's adjusted p-values (1995), in the order of `p`.
pub fn false_discovery(p: &[f64]) -> Vec<f64> {
    let n = p.len() as f64;
    let mut out = vec![1.0; p.len()];
    let mut least = 1.0f64;
    for (rank, i) in super::order(p).into_iter().enumerate().rev() {
        least = least.min(p[i] * n / (rank + 1) as f64);
        out[i] = least;
    }
    out
}

/// A test of independence of the rows and columns of a table of counts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ChiSquare {
    /// Pearson's statistic.
    pub chi2: f64,
    /// (rows - 1) (columns - 1).
    pub df: usize,
    /// p-value.
    pub p: f64,
    /// Least expected count; the approximation is poor below 5.
    pub least_expected: f64,
}

/// Pearson's chi-square of `counts`, rows of equal length; `yates` takes 1/2 off each distance (but
/// no more than there is), customary for two by two. Rows and columns without a count are left out.
///
/// # Errors
/// Rows of unlike length, or fewer than two rows or columns with counts.
pub fn chi_square(counts: &[Vec<usize>], yates: bool) -> Result<ChiSquare> {
    let width = counts.first().map_or(0, Vec::len);
    if counts.iter().any(|row| row.len() != width) {
        return Err(Error::usage("rows of a table of counts differ in length"));
    }
    let row_sums: Vec<f64> = counts.iter().map(|r| r.iter().sum::<usize>() as f64).collect();
    let column_sums: Vec<f64> =
        (0..width).map(|j| counts.iter().map(|r| r[j]).sum::<usize>() as f64).collect();
    let used = |sums: &[f64]| sums.iter().filter(|s| **s > 0.0).count();
    let (rows, columns) = (used(&row_sums), used(&column_sums));
    if rows < 2 || columns < 2 {
        return Err(Error::malformed("a test of independence needs two rows and two columns"));
    }
    let n: f64 = row_sums.iter().sum();
    let cells = || {
        counts.iter().zip(&row_sums).flat_map(|(row, r)| {
            row.iter().zip(&column_sums).map(move |(o, c)| (*o as f64, r * c / n))
        })
    };
    let expected = || cells().filter(|(_, e)| *e > 0.0);
    let least = |f: &dyn Fn((f64, f64)) -> f64| expected().map(f).fold(f64::INFINITY, f64::min);
    let slack = if yates { least(&|(o, e)| (o - e).abs()).min(0.5) } else { 0.0 };
    let chi2: f64 = expected().map(|(o, e)| ((o - e).abs() - slack).powi(2) / e).sum();
    let df = (rows - 1) * (columns - 1);
    let least_expected = least(&|(_, e)| e);
    Ok(ChiSquare { chi2, df, p: chi2_upper(chi2, df as f64), least_expected })
}

/// Fisher's exact test (1935) of a two by two table: the two-sided p-value as the sum of all tables
/// with the same margins that are no more probable (with R's tolerance of 1e-7). 1 when a margin
/// is empty.
pub fn fisher_exact([[a, b], [c, d]]: [[usize; 2]; 2]) -> f64 {
    let (row, other, column) = (a + b, c + d, a + c);
    let log_choose = |n: usize, k: usize| {
        let f = |v: usize| libm::lgamma(v as f64 + 1.0);
        f(n) - f(k) - f(n - k)
    };
    let log_p = |x: usize| log_choose(row, x) + log_choose(other, column - x);
    let values = column.saturating_sub(other)..=row.min(column);
    let top = values.clone().map(log_p).fold(f64::NEG_INFINITY, f64::max);
    let here = (log_p(a) - top).exp();
    let (mut inside, mut all) = (0.0, 0.0);
    for p in values.map(|x| (log_p(x) - top).exp()) {
        all += p;
        if p <= here * (1.0 + 1e-7) {
            inside += p;
        }
    }
    (inside / all).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_that_cannot_be_compared_are_errors() {
        assert!(welch(&[1.0], &[1.0, 2.0], 0.95).is_err());
        assert!(student(&[1.0, 1.0], &[2.0, 2.0], 0.95).is_err());
        assert!(mann_whitney(&[], &[1.0]).is_err());
        let tied = mann_whitney(&[1.0; 3], &[1.0; 2]).unwrap();
        assert_eq!((tied.rank_biserial, tied.p), (0.0, None));
        assert!(chi_square(&[vec![1, 0], vec![3, 0]], false).is_err());
        assert_eq!(fisher_exact([[0, 0], [3, 4]]), 1.0);
    }

    /// All 20 orders of three and three rows, counted one by one.
    #[test]
    fn the_exact_distribution_counts_orders() {
        let want = [0.1, 0.2, 0.4, 0.7, 1.0];
        for (u, want) in want.into_iter().enumerate() {
            assert!((exact_p(u, 3, 3) - want).abs() < 1e-15);
            assert!((exact_p(9 - u, 3, 3) - want).abs() < 1e-15);
        }
    }

    /// pingouin 0.7: `compute_effsize(x, y, eftype = "hedges")`.
    #[test]
    fn hedges_g_is_pingouins() {
        let x = [0.8, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91];
        let y = [1.15, 0.88, 0.90, 0.74, 1.21];
        assert!((hedges_g(&x, &y).unwrap() - 0.858_351_388_294_244_6).abs() < 1e-12);
        assert_eq!(hedges_g(&[1.0, 1.0], &[2.0, 2.0]), None);
        assert_eq!(hedges_g(&[1.0], &[2.0]), None);
    }
}
