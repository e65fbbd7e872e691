//! Do predicted probabilities mean what they say? Scores, recalibration, binned comparisons.

use super::design::Design;
use super::intervals::{Interval, z_of};
use super::logistic::{Options, Term, logistic};
use super::{chi2_upper, mean, normal_two_sided, probabilities, quantile_sorted, same_length};
use crate::error::{Error, Result};
use serde::Serialize;

/// Probabilities are kept this far from 0 and 1 where a logarithm is taken.
pub const CLIP: f64 = 1e-15;

/// Probability-scale scores and the logistic recalibration of one set of predictions.
#[derive(Clone, Debug, Serialize)]
pub struct Calibration {
    /// Rows.
    pub n: usize,
    /// Mean squared error of the probabilities (Brier 1950).
    pub brier: f64,
    /// `1 - brier / (prevalence (1 - prevalence))`.
    pub brier_scaled: f64,
    /// Mean negative log-likelihood, probabilities clipped by [`CLIP`].
    pub log_loss: f64,
    /// Calibration in the large: intercept with the logit as offset; 0 is ideal.
    pub in_the_large: Term,
    /// Intercept of the model on the logit (Cox 1958).
    pub intercept: Term,
    /// Its slope; 1 is ideal, below 1 predictions are too extreme.
    pub slope: Term,
    /// Twice the log-likelihood the predictions, as they stand, gain over the prevalence; negative
    /// when they are worse.
    pub lr_chi2: f64,
    /// Nagelkerke's R2 (1991) from that gain.
    pub nagelkerke_r2: f64,
    /// Likelihood-ratio statistic of intercept 0 and slope 1, two degrees of freedom.
    pub unreliability_chi2: f64,
    /// Observed over expected events.
    pub oe_ratio: f64,
    /// Its interval, normal on the log scale with variance `(1 - O/n) / O`.
    pub oe_interval: Interval,
    /// Spiegelhalter's z (1986), `None` when every probability is 0, 1/2 or 1.
    pub spiegelhalter_z: Option<f64>,
    /// Its two-sided p-value.
    pub spiegelhalter_p: Option<f64>,
}

fn check(p: &[f64], y: &[bool]) -> Result<()> {
    same_length(("probabilities", p.len()), ("labels", y.len()))?;
    if y.is_empty() {
        return Err(Error::malformed("no rows"));
    }
    probabilities("probability", p)
}

fn number(label: bool) -> f64 {
    f64::from(u8::from(label))
}

/// Mean squared error of probabilities `p` (N,) against `y` (N,) (Brier 1950).
///
/// # Errors
/// Lengths differ, no rows, or a probability outside [0, 1] (named by row).
pub fn brier(p: &[f64], y: &[bool]) -> Result<f64> {
    check(p, y)?;
    Ok(p.iter().zip(y).map(|(p, y)| (p - number(*y)).powi(2)).sum::<f64>() / p.len() as f64)
}

/// Mean negative log-likelihood, with probabilities clipped to `[CLIP, 1 - CLIP]`: never infinite.
///
/// # Errors
/// As [`brier`].
pub fn log_loss(p: &[f64], y: &[bool]) -> Result<f64> {
    check(p, y)?;
    let loss = |(p, y): (&f64, &bool)| {
        let p = p.clamp(CLIP, 1.0 - CLIP);
        if *y { -p.ln() } else { -(-p).ln_1p() }
    };
    Ok(p.iter().zip(y).map(loss).sum::<f64>() / p.len() as f64)
}

/// Calibration of probabilities `p` (N,) against `y` (N,).
///
/// # Errors
/// As [`brier`]; one class only; probabilities that separate the classes or do not vary.
pub fn calibration(p: &[f64], y: &[bool], level: f64) -> Result<Calibration> {
    let (brier, log_loss) = (brier(p, y)?, log_loss(p, y)?);
    let n = p.len() as f64;
    let events = y.iter().filter(|y| **y).count() as f64;
    let prevalence = events / n;
    let logit: Vec<f64> =
        p.iter().map(|p| p.clamp(CLIP, 1.0 - CLIP)).map(|p| p.ln() - (-p).ln_1p()).collect();
    let offset = Options { offset: Some(logit.clone()), ..Options::default() };
    let large = logistic(&Design::empty(p.len()), y, &offset, level)?;
    let joint = logistic(&Design::single("logit", &logit)?, y, &Options::default(), level)?;
    let expected: f64 = p.iter().sum();
    let oe_ratio = events / expected;
    let half = z_of(level) * ((1.0 - prevalence) / events).sqrt();
    let deviation: f64 = p.iter().zip(y).map(|(p, y)| (number(*y) - p) * (1.0 - 2.0 * p)).sum();
    let spread: f64 = p.iter().map(|p| (1.0 - 2.0 * p).powi(2) * p * (1.0 - p)).sum();
    let spiegelhalter_z = (spread > 0.0).then(|| deviation / spread.sqrt());
    let null = -2.0 * joint.null_loglik;
    let lr_chi2 = null - 2.0 * log_loss * n;
    Ok(Calibration {
        n: p.len(),
        brier,
        brier_scaled: 1.0 - brier / (prevalence * (1.0 - prevalence)),
        log_loss,
        in_the_large: large.terms[0].clone(),
        intercept: joint.terms[0].clone(),
        slope: joint.terms[1].clone(),
        lr_chi2,
        nagelkerke_r2: (-lr_chi2 / n).exp_m1() / (-null / n).exp_m1(),
        unreliability_chi2: (2.0 * (joint.loglik + log_loss * n)).max(0.0),
        oe_ratio,
        oe_interval: Interval { lower: oe_ratio * (-half).exp(), upper: oe_ratio * half.exp() },
        spiegelhalter_z,
        spiegelhalter_p: spiegelhalter_z.map(normal_two_sided),
    })
}

/// How probabilities are put into bins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Bins {
    /// Equal-width bins of [0, 1], left-closed, 1 in the last.
    EqualWidth(usize),
    /// Between type-7 quantiles, right-closed, the least value in the first; equal quantiles merge.
    Quantile(usize),
}

/// One bin of a calibration curve. Empty bins are left out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// Rows.
    pub n: usize,
    /// Events.
    pub observed: usize,
    /// Sum of probabilities.
    pub expected: f64,
}

/// The calibration curve: events and mean probability per bin.
///
/// # Errors
/// As [`brier`]; fewer than two bins asked for.
pub fn curve(p: &[f64], y: &[bool], bins: Bins) -> Result<Vec<Bin>> {
    check(p, y)?;
    let (count, edges) = match bins {
        Bins::EqualWidth(k) => (k, Vec::new()),
        Bins::Quantile(k) => {
            let mut sorted = p.to_vec();
            sorted.sort_by(f64::total_cmp);
            let at = |i| quantile_sorted(&sorted, i as f64 / k as f64);
            let mut edges: Vec<f64> = (0..=k).filter_map(at).collect();
            edges.dedup();
            (k, edges)
        }
    };
    if !(2..=10_000).contains(&count) {
        return Err(Error::usage(format!("{count} bins: 2 to 10000 are possible")));
    }
    let bin_of = |p: f64| match bins {
        Bins::EqualWidth(k) => ((p * k as f64) as usize).min(k - 1),
        Bins::Quantile(_) => edges.partition_point(|e| *e < p).saturating_sub(1),
    };
    let mut out = vec![Bin { n: 0, observed: 0, expected: 0.0 }; count];
    for (p, y) in p.iter().zip(y) {
        let bin = &mut out[bin_of(*p).min(count - 1)];
        bin.n += 1;
        bin.observed += usize::from(*y);
        bin.expected += p;
    }
    out.retain(|bin| bin.n > 0);
    Ok(out)
}

/// Expected calibration error: mean over rows of |observed - expected| of their bin (Naeini et al.
/// 2015), 10 equal-width bins by custom.
///
/// # Errors
/// As [`curve`].
pub fn expected_error(p: &[f64], y: &[bool], bins: Bins) -> Result<f64> {
    let gaps = curve(p, y, bins)?.into_iter().map(|b| (b.observed as f64 - b.expected).abs());
    Ok(gaps.sum::<f64>() / p.len() as f64)
}

/// The Hosmer-Lemeshow test (1980).
#[derive(Clone, Debug, Serialize)]
pub struct HosmerLemeshow {
    /// The groups it compares.
    pub groups: Vec<Bin>,
    /// `sum (O - E)^2 / (E (1 - E / n))`; `None` when a group expects none or only events.
    pub chi2: Option<f64>,
    /// p-value for the data the model was fitted on: groups - 2 degrees of freedom.
    pub p_internal: Option<f64>,
    /// p-value for other data: as many degrees of freedom as groups.
    pub p_external: Option<f64>,
}

/// Hosmer-Lemeshow over `groups` quantile groups ([`Bins::Quantile`]).
///
/// # Errors
/// As [`curve`].
pub fn hosmer_lemeshow(p: &[f64], y: &[bool], groups: usize) -> Result<HosmerLemeshow> {
    let groups = curve(p, y, Bins::Quantile(groups))?;
    let term = |b: &Bin| {
        let spread = b.expected * (1.0 - b.expected / b.n as f64);
        (spread > 0.0).then(|| (b.observed as f64 - b.expected).powi(2) / spread)
    };
    let chi2: Option<f64> = groups.iter().map(term).sum();
    let p_at = |df: usize| chi2.filter(|_| df > 0).map(|c| chi2_upper(c, df as f64));
    Ok(HosmerLemeshow {
        p_internal: p_at(groups.len().saturating_sub(2)),
        p_external: p_at(groups.len()),
        chi2,
        groups,
    })
}

/// Mean probability minus observed share: the signed miscalibration in the large.
pub fn mean_error(p: &[f64], y: &[bool]) -> f64 {
    mean(p) - y.iter().filter(|y| **y).count() as f64 / y.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certain_and_wrong_is_finite() {
        let loss = log_loss(&[0.0, 1.0], &[true, true]).unwrap();
        assert!((loss - 0.5 * -CLIP.ln()).abs() < 1e-9, "{loss}");
        assert!(brier(&[0.2, 1.2], &[true, false]).unwrap_err().to_string().contains("row 2"));
        assert!(brier(&[f64::NAN], &[true]).unwrap_err().to_string().contains("row 1"));
    }

    #[test]
    fn bins_close_as_documented() {
        let p = [0.0, 0.1, 0.5, 1.0];
        let y = [false, true, false, true];
        let wide = curve(&p, &y, Bins::EqualWidth(2)).unwrap();
        assert_eq!(wide.iter().map(|b| b.n).collect::<Vec<_>>(), [2, 2]);
        let quantile = curve(&p, &y, Bins::Quantile(2)).unwrap();
        assert_eq!(quantile.iter().map(|b| b.n).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(curve(&[0.5; 4], &y, Bins::Quantile(4)).unwrap().len(), 1);
    }
}
