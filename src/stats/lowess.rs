//! A locally weighted line through a scatter: how a calibration curve is drawn without bins.

use super::{finite, order, quantile_sorted, same_length};
use crate::error::{Error, Result};
use serde::Serialize;

/// Share of the rows each local line sees, the customary two thirds.
pub const SPAN: f64 = 2.0 / 3.0;

/// The smooth value at each row of `x` (N,), for responses `y` (N,): Cleveland's lowess (1979)
/// without robustness iterations. Rows closer than a hundredth of the range are interpolated, as in
/// his Fortran and in R's `lowess(x, y, f = span, iter = 0)`.
///
/// # Errors
/// Lengths differ, no rows, a value not finite (named by row), or a span outside (0, 1].
pub fn lowess(x: &[f64], y: &[f64], span: f64) -> Result<Vec<f64>> {
    same_length(("x", x.len()), ("y", y.len()))?;
    finite("x", x)?;
    finite("y", y)?;
    if x.is_empty() {
        return Err(Error::malformed("no rows"));
    }
    if !(span > 0.0 && span <= 1.0) {
        return Err(Error::usage(format!("a span of {span}: it lies in (0, 1]")));
    }
    let index = order(x);
    let sorted = |v: &[f64]| -> Vec<f64> { index.iter().map(|&i| v[i]).collect() };
    let local = Local { x: sorted(x), y: sorted(y) };
    let mut out = vec![0.0; x.len()];
    for (&i, value) in index.iter().zip(local.smooth(span)) {
        out[i] = value;
    }
    Ok(out)
}

/// Rows by ascending x.
struct Local {
    x: Vec<f64>,
    y: Vec<f64>,
}

impl Local {
    fn smooth(&self, span: f64) -> Vec<f64> {
        let n = self.x.len();
        let width = ((span * n as f64 + 1e-7) as usize).clamp(2.min(n), n);
        let delta = 0.01 * (self.x[n - 1] - self.x[0]);
        let mut out = vec![0.0; n];
        let mut left = 0;
        let mut done: Option<usize> = None;
        let mut i = 0;
        loop {
            // The window of `width` rows nearest to row i.
            while left + width < n && self.x[i] - self.x[left] > self.x[left + width] - self.x[i] {
                left += 1;
            }
            out[i] = self.at(self.x[i], left, left + width - 1).unwrap_or(self.y[i]);
            if let Some(last) = done {
                let gap = self.x[i] - self.x[last];
                for j in last + 1..i {
                    let share = (self.x[j] - self.x[last]) / gap;
                    out[j] = share * out[i] + (1.0 - share) * out[last];
                }
            }
            let mut last = i;
            let cut = self.x[last] + delta;
            let mut next = last + 1;
            while next < n && self.x[next] <= cut {
                if self.x[next] == self.x[last] {
                    out[next] = out[last];
                    last = next;
                }
                next += 1;
            }
            if last + 1 >= n {
                return out;
            }
            done = Some(last);
            i = (last + 1).max(next - 1);
        }
    }

    /// The local line at `at` with tricube weights over rows `left..=right` and their ties.
    fn at(&self, at: f64, left: usize, right: usize) -> Option<f64> {
        let n = self.x.len();
        let range = self.x[n - 1] - self.x[0];
        let h = (at - self.x[left]).max(self.x[right] - at);
        let mut weights = Vec::with_capacity(right - left + 1);
        for &x in &self.x[left..] {
            let r = (x - at).abs();
            if r <= 0.999 * h {
                let cube = |v: f64| v * v * v;
                weights.push(if r <= 0.001 * h { 1.0 } else { cube(1.0 - cube(r / h)) });
            } else if x > at {
                break;
            } else {
                weights.push(0.0);
            }
        }
        let rows = || weights.iter().zip(&self.x[left..]).zip(&self.y[left..]);
        let total: f64 = weights.iter().sum();
        if total <= 0.0 {
            return None;
        }
        let centre: f64 = rows().map(|((w, x), _)| w / total * x).sum();
        let spread: f64 = rows().map(|((w, x), _)| w / total * (x - centre).powi(2)).sum();
        let steep = h > 0.0 && spread.sqrt() > 0.001 * range;
        let slope = if steep { (at - centre) / spread } else { 0.0 };
        Some(rows().map(|((w, x), y)| w / total * (1.0 + slope * (x - centre)) * y).sum())
    }
}

/// Distance between predicted probabilities and the smooth calibration curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SmoothErrors {
    /// Mean distance: the integrated calibration index (Austin and Steyerberg 2019), `Eavg` of rms.
    pub ici: f64,
    /// Median distance.
    pub e50: f64,
    /// 90th percentile of the distance.
    pub e90: f64,
    /// Largest distance.
    pub emax: f64,
}

/// The distances of `p` (N,) from its lowess curve `smooth` (N,). `None` without rows.
pub fn smooth_errors(p: &[f64], smooth: &[f64]) -> Option<SmoothErrors> {
    let mut gaps: Vec<f64> = p.iter().zip(smooth).map(|(p, s)| (p - s).abs()).collect();
    gaps.sort_by(f64::total_cmp);
    Some(SmoothErrors {
        ici: super::mean(&gaps),
        e50: quantile_sorted(&gaps, 0.5)?,
        e90: quantile_sorted(&gaps, 0.9)?,
        emax: *gaps.last()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_a_line() {
        let x: Vec<f64> = (0..40).map(|i| f64::from(i * i % 41)).collect();
        let y: Vec<f64> = x.iter().map(|x| 3.0 - 0.5 * x).collect();
        for (got, want) in lowess(&x, &y, SPAN).unwrap().iter().zip(&y) {
            assert!((got - want).abs() < 1e-12, "{got} {want}");
        }
    }

    #[test]
    fn degenerate_scatters_have_an_answer() {
        assert_eq!(lowess(&[2.0; 4], &[0.0, 1.0, 1.0, 0.0], SPAN).unwrap(), [0.5; 4]);
        assert_eq!(lowess(&[2.0], &[7.0], SPAN).unwrap(), [7.0]);
        assert!(lowess(&[], &[], SPAN).is_err());
        assert!(lowess(&[1.0, f64::NAN], &[0.0, 1.0], SPAN).is_err());
    }
}
