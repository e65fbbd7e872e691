//! What a prediction is worth in use: net benefit, and reclassification against an older score.

use super::{mean, normal_two_sided, probabilities, same_length, variance};
use crate::error::{Error, Result};
use serde::Serialize;

/// Net benefit at one threshold probability (Vickers and Elkin 2006).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct NetBenefit {
    /// The threshold probability t; `probability >= t` is treated.
    pub threshold: f64,
    /// Of treating by the model: `TP/n - FP/n * t/(1-t)`.
    pub model: f64,
    /// Of treating everyone.
    pub all: f64,
    /// Interventions avoided per patient against treating everyone, without missing an event;
    /// `None` at t = 0.
    pub avoided: Option<f64>,
}

/// The decision curve of `probability` (N,) against `labels` (N,) at each of `thresholds`, all in
/// [0, 1). At t = 0 treating by the model is treating everyone; at t = 1 net benefit does not exist.
///
/// # Errors
/// Lengths differ, a probability is outside [0, 1] (named by row), a threshold outside [0, 1), or
/// no rows.
pub fn decision_curve(
    probability: &[f64],
    labels: &[bool],
    thresholds: &[f64],
) -> Result<Vec<NetBenefit>> {
    same_length(("probabilities", probability.len()), ("labels", labels.len()))?;
    probabilities("probability", probability)?;
    if labels.is_empty() {
        return Err(Error::malformed("no rows"));
    }
    if let Some(t) = thresholds.iter().find(|t| !(0.0..1.0).contains(*t)) {
        return Err(Error::usage(format!("net benefit does not exist at threshold {t}")));
    }
    let n = labels.len() as f64;
    let prevalence = labels.iter().filter(|l| **l).count() as f64 / n;
    let at = |&t: &f64| {
        let odds = t / (1.0 - t);
        let (mut tp, mut fp) = (0usize, 0usize);
        for (p, label) in probability.iter().zip(labels) {
            match (*p >= t, label) {
                (true, true) => tp += 1,
                (true, false) => fp += 1,
                _ => {}
            }
        }
        let model = tp as f64 / n - fp as f64 / n * odds;
        let all = prevalence - (1.0 - prevalence) * odds;
        let avoided = (t > 0.0).then(|| (model - all) / odds);
        NetBenefit { threshold: t, model, all, avoided }
    };
    Ok(thresholds.iter().map(at).collect())
}

/// An estimate with its standard error and test against 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tested {
    /// The estimate.
    pub estimate: f64,
    /// Its standard error.
    pub se: f64,
    /// Estimate over standard error, `None` when that is 0.
    pub z: Option<f64>,
    /// Two-sided p-value.
    pub p: Option<f64>,
}

impl Tested {
    fn new(estimate: f64, se: f64) -> Self {
        let z = (se > 0.0).then(|| estimate / se);
        Tested { estimate, se, z, p: z.map(normal_two_sided) }
    }
}

/// Continuous net reclassification and integrated discrimination of a new against an old
/// probability (Pencina et al. 2008, 2011).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Reclassification {
    /// Share moving up minus share moving down, among events.
    pub nri_events: f64,
    /// Share moving down minus share moving up, among non-events.
    pub nri_nonevents: f64,
    /// Sum of the two.
    pub nri: Tested,
    /// Gain in mean probability of events minus that of non-events.
    pub idi: Tested,
}

/// Reclassification from `old` to `new`, both (N,) probabilities. The NRI misleads when read alone
/// (Pepe et al. 2015): report it beside AUC and net benefit.
///
/// # Errors
/// Lengths differ, a probability outside [0, 1] (named by row), fewer than two rows of a class.
pub fn reclassification(old: &[f64], new: &[f64], labels: &[bool]) -> Result<Reclassification> {
    same_length(("old probabilities", old.len()), ("labels", labels.len()))?;
    same_length(("new probabilities", new.len()), ("labels", labels.len()))?;
    probabilities("old probability", old)?;
    probabilities("new probability", new)?;
    let moves = |class: bool| -> Vec<f64> {
        let rows = old.iter().zip(new).zip(labels).filter(|(_, l)| **l == class);
        rows.map(|((old, new), _)| new - old).collect()
    };
    let few = || Error::malformed("reclassification needs two rows of each class");
    let part = |moves: &[f64]| -> Result<(f64, f64, f64)> {
        let n = moves.len() as f64;
        let up = moves.iter().filter(|d| **d > 0.0).count() as f64 / n;
        let down = moves.iter().filter(|d| **d < 0.0).count() as f64 / n;
        let var = (up + down - (up - down).powi(2)) / n;
        Ok((up - down, var, variance(moves).ok_or_else(few)? / n))
    };
    let (events, nonevents) = (moves(true), moves(false));
    let (up_events, var_events, idi_events) = part(&events)?;
    let (up_nonevents, var_nonevents, idi_nonevents) = part(&nonevents)?;
    Ok(Reclassification {
        nri_events: up_events,
        nri_nonevents: -up_nonevents,
        nri: Tested::new(up_events - up_nonevents, (var_events + var_nonevents).sqrt()),
        idi: Tested::new(mean(&events) - mean(&nonevents), (idi_events + idi_nonevents).sqrt()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_the_threshold_range() {
        let (p, l) = ([0.2, 0.9], [false, true]);
        let zero = decision_curve(&p, &l, &[0.0]).unwrap()[0];
        assert_eq!((zero.model, zero.all, zero.avoided), (0.5, 0.5, None));
        assert!(decision_curve(&p, &l, &[1.0]).is_err());
        let error = decision_curve(&[0.2, 1.2], &l, &[0.5]).unwrap_err().to_string();
        assert!(error.starts_with("row 2"), "{error}");
    }
}
