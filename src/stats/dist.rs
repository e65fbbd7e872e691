//! Tail probabilities and quantiles of the four distributions that tests and intervals need.

use statrs::function::{beta::beta_reg, erf::erfc_inv, gamma::gamma_ur};
use std::f64::consts::{PI, SQRT_2};

/// Upper tail of the standard normal distribution.
fn normal_upper(z: f64) -> f64 {
    0.5 * libm::erfc(z / SQRT_2)
}

/// Two-sided p-value of a standard normal statistic.
pub fn normal_two_sided(z: f64) -> f64 {
    (2.0 * normal_upper(z.abs())).min(1.0)
}

/// Probability below `z` of a standard normal variable.
pub(crate) fn normal_cdf(z: f64) -> f64 {
    normal_upper(-z)
}

/// Quantile of the standard normal distribution, `0 < p < 1` (infinite at the ends).
pub fn normal_quantile(p: f64) -> f64 {
    let z = -SQRT_2 * erfc_inv(2.0 * p);
    // One Newton step: the library's inverse is good to about 1e-10 only.
    let density = (-0.5 * z * z).exp() / (2.0 * PI).sqrt();
    if z.is_finite() && density > 0.0 { z - (normal_cdf(z) - p) / density } else { z }
}

/// Upper tail of chi-square with `df` degrees of freedom.
pub fn chi2_upper(x: f64, df: f64) -> f64 {
    if x <= 0.0 { 1.0 } else { gamma_ur(df / 2.0, x / 2.0) }
}

/// Two-sided p-value of Student's t with `df` degrees of freedom.
pub fn student_two_sided(t: f64, df: f64) -> f64 {
    if t.is_infinite() {
        return 0.0;
    }
    beta_reg(df / 2.0, 0.5, df / (df + t * t))
}

/// Quantile of Student's t by bisection on its tail, `0.5 <= p < 1`.
pub(crate) fn student_quantile(p: f64, df: f64) -> f64 {
    let tail = 2.0 * (1.0 - p);
    let mut high = 1.0;
    while student_two_sided(high, df) > tail && high < 1e300 {
        high *= 2.0;
    }
    bisect(0.0, high, |t| student_two_sided(t, df) > tail)
}

/// Quantile of Beta(a, b) by bisection on the regularised incomplete beta function.
pub(crate) fn beta_quantile(p: f64, a: f64, b: f64) -> f64 {
    bisect(0.0, 1.0, |x| beta_reg(a, b, x) < p)
}

/// The point in `[low, high]` where `below` turns from true to false.
pub(crate) fn bisect(mut low: f64, mut high: f64, below: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if below(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-12 * b.abs().max(1e-300) + 1e-15, "{a} is not {b}");
    }

    /// Values of R 4.2: qnorm, pchisq, pt, qt, qbeta.
    #[test]
    fn agree_with_r() {
        close(normal_quantile(0.975), 1.959963984540054);
        close(normal_quantile(0.5), 0.0);
        close(chi2_upper(3.841458820694124, 1.0), 0.05);
        close(student_quantile(0.975, 5.0), 2.570581835636314);
        close(student_two_sided(2.570581835636314, 5.0), 0.05);
        close(beta_quantile(0.5, 1.0, 1.0), 0.5);
        close(beta_quantile(0.025, 10.0, 1.0), 0.691502892181239);
    }
}
