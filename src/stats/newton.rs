//! Newton's method for a concave log-likelihood, which either converges in the coefficients or says
//! which of them runs away.

use super::linalg::Symmetric;

/// A log-likelihood with its gradient and its information (minus the Hessian).
#[derive(Clone, Debug)]
pub(crate) struct Likelihood {
    pub value: f64,
    pub score: Vec<f64>,
    pub information: Symmetric,
}

/// Where Newton's method ended, and what it saw at the start.
#[derive(Clone, Debug)]
pub(crate) struct Optimum {
    pub beta: Vec<f64>,
    pub at: Likelihood,
    pub start: Likelihood,
}

/// Why there is no maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// This column is a linear combination of those before it.
    Dependent(usize),
    /// The likelihood keeps rising as this coefficient grows.
    Diverges(usize),
}

const ITERATIONS: usize = 200;
/// A coefficient per standard deviation beyond which the likelihood is called monotone: odds or
/// hazard ratios of e^100.
const RUNAWAY: f64 = 100.0;
/// Share of the information at the start below which a coefficient counts as unidentified.
const FLAT: f64 = 1e-9;

/// Maximises `likelihood` from `start`. `scale` (P,) is the size of a unit change of each column:
/// steps are judged by `|step| * scale`, never by the likelihood, which also levels off when a
/// coefficient goes to infinity.
pub(crate) fn maximise(
    start: Vec<f64>,
    scale: &[f64],
    likelihood: impl Fn(&[f64]) -> Likelihood,
) -> Result<Optimum, Failure> {
    let first = likelihood(&start);
    first.information.cholesky().map_err(Failure::Dependent)?;
    let (mut beta, mut at) = (start, first.clone());
    let largest = |beta: &[f64]| {
        let size = |j: &usize| (beta[*j] * scale[*j]).abs();
        (0..beta.len()).max_by(|a, b| size(a).total_cmp(&size(b))).unwrap_or(0)
    };
    for _ in 0..ITERATIONS {
        let Ok(factor) = at.information.cholesky() else {
            return Err(Failure::Diverges(largest(&beta)));
        };
        let step = factor.solve(&at.score);
        let small = step
            .iter()
            .zip(&beta)
            .zip(scale)
            .all(|((d, b), s)| (d * s).abs() <= 1e-9 * (1.0 + (b * s).abs()));
        let mut share = 1.0;
        let (next, value) = loop {
            let next: Vec<f64> = beta.iter().zip(&step).map(|(b, d)| b + share * d).collect();
            let value = likelihood(&next);
            let enough = value.value >= at.value - 1e-10 * (1.0 + at.value.abs());
            if enough || share < 1e-6 {
                break (next, value);
            }
            share /= 2.0;
        };
        (beta, at) = (next, value);
        if small {
            // A score that is 0 only because the likelihood has gone flat is no maximum.
            let flat = |j: &usize| at.information.at(*j, *j) < FLAT * first.information.at(*j, *j);
            if let Some(j) = (0..beta.len()).find(flat) {
                return Err(Failure::Diverges(j));
            }
            return Ok(Optimum { beta, at, start: first });
        }
        let worst = largest(&beta);
        if beta.get(worst).is_some_and(|b| b.is_nan() || (b * scale[worst]).abs() > RUNAWAY) {
            return Err(Failure::Diverges(worst));
        }
    }
    Err(Failure::Diverges(largest(&beta)))
}
