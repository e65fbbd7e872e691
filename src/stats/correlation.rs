//! Agreement of two measurements of the same rows: rank and linear correlation, concordance,
//! errors and limits of agreement.

use super::bootstrap::{Bootstrap, Plan, bootstrap};
use super::dist::student_quantile;
use super::intervals::{Interval, z_of};
use super::{finite, mean, mid_ranks, order, same_length, student_two_sided};
use crate::error::{Error, Result};
use serde::Serialize;

/// How the standard error of Spearman's rho on Fisher's z scale is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpearmanSe {
    /// `1 / sqrt(n - 3)`, as for Pearson's r (Fisher 1921).
    Fisher,
    /// `1.03 / sqrt(n - 3)`: variance 1.06 / (n - 3) (Fieller, Hartley and Pearson 1957).
    Fieller,
    /// `sqrt((1 + rho^2 / 2) / (n - 3))` (Bonett and Wright 2000).
    BonettWright,
}

/// Errors of predictions against observations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Rows.
    pub n: usize,
    /// `1 - SSE / SST`: share of the observed variance explained by the predictions as they stand;
    /// may be far below 0. Not the squared correlation. `None` when all observations are equal.
    pub r2_determination: Option<f64>,
    /// Lin's concordance correlation coefficient (1989), with variances over n.
    pub ccc: Option<f64>,
    /// Root of the mean squared error.
    pub rmse: f64,
    /// Mean absolute error.
    pub mae: f64,
    /// Mean of prediction minus observation (Bland and Altman 1986).
    pub bias: f64,
    /// Bias -+ 1.96 standard deviations of the differences; `None` below two rows.
    pub limits: Option<Interval>,
}

/// The least-squares line of observations on predictions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Line {
    /// Value at 0.
    pub intercept: f64,
    /// Slope.
    pub slope: f64,
}

fn check(x: &[f64], y: &[f64]) -> Result<()> {
    same_length(("predictions", x.len()), ("observations", y.len()))?;
    finite("prediction", x)?;
    finite("observation", y)
}

/// Sums of squares and products about the means: (xx, yy, xy).
fn moments(x: &[f64], y: &[f64]) -> (f64, f64, f64) {
    let (mx, my) = (mean(x), mean(y));
    x.iter().zip(y).fold((0.0, 0.0, 0.0), |(xx, yy, xy), (a, b)| {
        let (a, b) = (a - mx, b - my);
        (xx + a * a, yy + b * b, xy + a * b)
    })
}

fn product_moment(x: &[f64], y: &[f64]) -> Option<f64> {
    let (xx, yy, xy) = moments(x, y);
    let product = xx * yy;
    // The root of the product rounds once; the product of roots cannot overflow.
    let scale = if product.is_normal() { product.sqrt() } else { xx.sqrt() * yy.sqrt() };
    (scale > 0.0).then(|| (xy / scale).clamp(-1.0, 1.0))
}

/// Pearson's r of `x` and `y`, both (N,); `None` when one of them does not vary.
///
/// # Errors
/// Lengths differ or a value is not finite (named by row).
pub fn pearson(x: &[f64], y: &[f64]) -> Result<Option<f64>> {
    check(x, y)?;
    Ok(product_moment(x, y))
}

/// Spearman's rho: Pearson's r of mid-ranks. `None` when one side does not vary.
///
/// # Errors
/// As [`pearson`].
pub fn spearman(x: &[f64], y: &[f64]) -> Result<Option<f64>> {
    check(x, y)?;
    Ok(product_moment(&mid_ranks(x), &mid_ranks(y)))
}

/// Two-sided p-value of a correlation by Student's t with n - 2 degrees of freedom: exact for r of
/// normal data, the usual approximation for rho. `None` below 4 rows.
pub fn correlation_p(r: f64, n: usize) -> Option<f64> {
    let df = n.checked_sub(2).filter(|_| n >= 4)? as f64;
    Some(student_two_sided(r * (df / ((1.0 - r) * (1.0 + r))).sqrt(), df))
}

/// Interval of Pearson's r through Fisher's z. `None` below 4 rows.
pub fn pearson_interval(r: f64, n: usize, level: f64) -> Option<Interval> {
    spearman_interval(r, n, SpearmanSe::Fisher, level)
}

/// Interval of Spearman's rho through Fisher's z with the named standard error. `None` below 4 rows;
/// of zero width for a perfect correlation.
pub fn spearman_interval(rho: f64, n: usize, se: SpearmanSe, level: f64) -> Option<Interval> {
    let df = n.checked_sub(3).filter(|df| *df > 0)? as f64;
    if rho.abs() >= 1.0 {
        return Some(Interval { lower: rho, upper: rho });
    }
    let se = match se {
        SpearmanSe::Fisher => (1.0 / df).sqrt(),
        SpearmanSe::Fieller => (1.06 / df).sqrt(),
        SpearmanSe::BonettWright => ((1.0 + rho * rho / 2.0) / df).sqrt(),
    };
    Some(Interval::around(rho.atanh(), z_of(level) * se).map(f64::tanh))
}

/// Distinct values of `x`, ascending: the position of each row's value among them, and how many
/// there are.
fn dense(x: &[f64]) -> (Vec<u32>, usize) {
    let mut place = vec![0; x.len()];
    let mut distinct = 0;
    for run in order(x).chunk_by(|&a, &b| x[a] == x[b]) {
        run.iter().for_each(|&i| place[i] = distinct);
        distinct += 1;
    }
    (place, distinct as usize)
}

/// Mid-ranks of the distinct values in a sample that holds each as often as `counts` says, less the
/// mean rank; `counts` of length D becomes ranks of length D.
fn centred_ranks(counts: &[u32], n: usize, out: &mut [f64]) {
    let (mut below, centre) = (0u64, (n as f64 + 1.0) / 2.0);
    for (count, rank) in counts.iter().zip(out) {
        *rank = below as f64 + (f64::from(*count) + 1.0) / 2.0 - centre;
        below += u64::from(*count);
    }
}

/// Bootstrap of Spearman's rho over rows, O(N) a round: values are put in order once, a round only
/// counts how often each was drawn.
///
/// # Errors
/// As [`pearson`].
pub fn spearman_bootstrap(x: &[f64], y: &[f64], plan: Plan) -> Result<Bootstrap> {
    check(x, y)?;
    let n = x.len();
    let ((px, dx), (py, dy)) = (dense(x), dense(y));
    Ok(bootstrap(plan, |rng| {
        let mut drawn = vec![0u32; n];
        let (mut cx, mut cy) = (vec![0u32; dx], vec![0u32; dy]);
        for _ in 0..n {
            let i = rng.below(n);
            drawn[i] += 1;
            cx[px[i] as usize] += 1;
            cy[py[i] as usize] += 1;
        }
        let (mut rx, mut ry) = (vec![0.0; dx], vec![0.0; dy]);
        centred_ranks(&cx, n, &mut rx);
        centred_ranks(&cy, n, &mut ry);
        let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
        for ((w, a), b) in drawn.iter().zip(&px).zip(&py) {
            let (w, a, b) = (f64::from(*w), rx[*a as usize], ry[*b as usize]);
            xx += w * a * a;
            yy += w * b * b;
            xy += w * a * b;
        }
        let scale = xx.sqrt() * yy.sqrt();
        (scale > 0.0).then(|| (xy / scale).clamp(-1.0, 1.0))
    }))
}

/// Kendall's tau-b in O(N log N) (Knight 1966); `None` when one side does not vary.
///
/// # Errors
/// As [`pearson`].
pub fn kendall(x: &[f64], y: &[f64]) -> Result<Option<f64>> {
    check(x, y)?;
    let mut rows: Vec<usize> = (0..x.len()).collect();
    rows.sort_by(|&a, &b| x[a].total_cmp(&x[b]).then(y[a].total_cmp(&y[b])));
    let pairs = |run: usize| run as u128 * (run as u128).saturating_sub(1) / 2;
    let tied = |index: &[usize], same: &dyn Fn(usize, usize) -> bool| -> u128 {
        index.chunk_by(|&a, &b| same(a, b)).map(|run| pairs(run.len())).sum()
    };
    let tied_x = tied(&rows, &|a, b| x[a] == x[b]);
    let tied_both = tied(&rows, &|a, b| x[a] == x[b] && y[a] == y[b]);
    let tied_y = tied(&order(y), &|a, b| y[a] == y[b]);
    let mut sequence: Vec<f64> = rows.iter().map(|&i| y[i]).collect();
    let mut buffer = sequence.clone();
    let swaps = inversions(&mut sequence, &mut buffer);
    let all = pairs(x.len());
    let score = (all + tied_both) as f64 - (tied_x + tied_y) as f64 - 2.0 * swaps as f64;
    let scale = ((all - tied_x) as f64).sqrt() * ((all - tied_y) as f64).sqrt();
    Ok((scale > 0.0).then(|| score / scale))
}

/// Sorts `v` by merging and counts the pairs that stood in the wrong order.
fn inversions(v: &mut [f64], buffer: &mut [f64]) -> u128 {
    if v.len() < 2 {
        return 0;
    }
    let middle = v.len() / 2;
    let (low, high) = v.split_at_mut(middle);
    let (low_buffer, high_buffer) = buffer.split_at_mut(middle);
    let mut count = inversions(low, low_buffer) + inversions(high, high_buffer);
    let (mut i, mut j) = (0, 0);
    for slot in buffer.iter_mut() {
        if j == high.len() || (i < low.len() && low[i] <= high[j]) {
            *slot = low[i];
            i += 1;
        } else {
            *slot = high[j];
            j += 1;
            count += (low.len() - i) as u128;
        }
    }
    v.copy_from_slice(buffer);
    count
}

/// Errors of `predicted` against `observed`, both (N,).
///
/// # Errors
/// Lengths differ, no rows, or a value is not finite (named by row).
pub fn agreement(predicted: &[f64], observed: &[f64]) -> Result<Agreement> {
    check(predicted, observed)?;
    if predicted.is_empty() {
        return Err(Error::malformed("no rows"));
    }
    let n = predicted.len() as f64;
    let difference: Vec<f64> = predicted.iter().zip(observed).map(|(p, o)| p - o).collect();
    let squares: f64 = difference.iter().map(|d| d * d).sum();
    let (xx, yy, xy) = moments(predicted, observed);
    let bias = mean(&difference);
    let spread = xx / n + yy / n + bias * bias;
    Ok(Agreement {
        n: predicted.len(),
        r2_determination: (yy > 0.0).then(|| 1.0 - squares / yy),
        ccc: (spread > 0.0).then(|| 2.0 * xy / n / spread),
        rmse: (squares / n).sqrt(),
        mae: difference.iter().map(|d| d.abs()).sum::<f64>() / n,
        bias,
        limits: super::variance(&difference).map(|v| Interval::around(bias, 1.96 * v.sqrt())),
    })
}

/// Least-squares line of `y` on `x`, both (N,); `None` when x does not vary.
///
/// # Errors
/// As [`pearson`].
pub fn line(x: &[f64], y: &[f64]) -> Result<Option<Line>> {
    check(x, y)?;
    let (xx, _, xy) = moments(x, y);
    Ok((xx > 0.0).then(|| {
        let slope = xy / xx;
        Line { intercept: mean(y) - slope * mean(x), slope }
    }))
}

/// Interval of a mean by Student's t. `None` below two rows.
pub fn mean_interval(x: &[f64], level: f64) -> Option<Interval> {
    let n = x.len() as f64;
    let se = (super::variance(x)? / n).sqrt();
    Some(Interval::around(mean(x), student_quantile(0.5 + level / 2.0, n - 1.0) * se))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_have_no_correlation() {
        let (c, x) = ([1.0; 3], [1.0, 2.0, 3.0]);
        assert_eq!(spearman(&c, &x).unwrap(), None);
        assert_eq!(pearson(&x, &c).unwrap(), None);
        assert_eq!(kendall(&x, &c).unwrap(), None);
        assert!(pearson(&[1.0, f64::NAN], &[1.0, 2.0]).unwrap_err().to_string().contains("row 2"));
    }

    /// A round counted by value equals the correlation of the rows it drew.
    #[test]
    fn bootstrap_rounds_are_correlations_of_drawn_rows() {
        use super::super::bootstrap::Rng;
        let x = [3.0, 1.0, 2.0, 2.0, 5.0, 5.0, 5.0, 0.5];
        let y = [1.0, 1.0, 4.0, 4.0, 2.0, 3.0, 2.0, 9.0];
        let plan = Plan { rounds: 40, seed: 9 };
        let got = spearman_bootstrap(&x, &y, plan).unwrap();
        let mut want: Vec<f64> = (0..40)
            .filter_map(|round| {
                let mut rng = Rng::new(9, round);
                let rows: Vec<usize> = (0..8).map(|_| rng.below(8)).collect();
                let of = |v: &[f64]| -> Vec<f64> { rows.iter().map(|&i| v[i]).collect() };
                spearman(&of(&x), &of(&y)).unwrap()
            })
            .collect();
        want.sort_by(f64::total_cmp);
        assert_eq!(got.values.len(), want.len());
        for (got, want) in got.values.iter().zip(&want) {
            assert!((got - want).abs() < 1e-12, "{got} {want}");
        }
    }

    #[test]
    fn two_rows_correlate_without_a_test() {
        assert_eq!(spearman(&[1.0, 2.0], &[3.0, 1.0]).unwrap(), Some(-1.0));
        assert_eq!(correlation_p(-1.0, 2), None);
        assert_eq!(spearman_interval(-1.0, 3, SpearmanSe::BonettWright, 0.95), None);
        assert_eq!(correlation_p(1.0, 5), Some(0.0));
    }

    #[test]
    fn tau_counts_pairs_as_the_definition_does() {
        let x = [3.0, 1.0, 2.0, 2.0, 5.0, 5.0, 5.0, 0.5];
        let y = [1.0, 1.0, 4.0, 4.0, 2.0, 3.0, 2.0, 9.0];
        let (mut score, mut nx, mut ny) = (0.0, 0.0, 0.0);
        for i in 0..8 {
            for j in 0..i {
                let sign = |a: f64, b: f64| if a == b { 0.0 } else { (a - b).signum() };
                let (a, b) = (sign(x[i], x[j]), sign(y[i], y[j]));
                score += a * b;
                nx += a.abs();
                ny += b.abs();
            }
        }
        let tau = kendall(&x, &y).unwrap().unwrap();
        assert!((tau - score / f64::sqrt(nx * ny)).abs() < 1e-15);
    }
}
