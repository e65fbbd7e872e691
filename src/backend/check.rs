//! How far two executions of a graph lie apart: one backend against another, or against the
//! reference.

use super::{Backend, Input};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::graph::reference::{self, Rounding};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;

/// The distance of some numbers from those they are measured against.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Deviation {
    /// How many numbers were compared.
    pub count: usize,
    /// `||a - b|| / ||b||`; 0 when both vanish.
    pub relative_l2: f64,
    /// Cosine of the angle between the two; 1 when both vanish.
    pub cosine: f64,
    /// Median of `|a - b|`.
    pub p50: f64,
    /// 90th percentile of `|a - b|`.
    pub p90: f64,
    /// 99th percentile of `|a - b|`.
    pub p99: f64,
    /// Largest `|a - b|`.
    pub max: f64,
    /// Numbers that are not finite on one side and differ from the other side.
    pub non_finite: usize,
}

impl Deviation {
    /// Measures `a` against `b`. Pairs that are not both finite are left out of the sums and, when
    /// they differ, counted.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the lengths differ.
    pub fn between(a: &[f32], b: &[f32]) -> Result<Deviation> {
        if a.len() != b.len() {
            return Err(Error::usage(format!("{} numbers against {}", a.len(), b.len())));
        }
        let (mut aa, mut bb, mut ab, mut dd) = (0f64, 0f64, 0f64, 0f64);
        let mut errors = Vec::with_capacity(a.len());
        let mut non_finite = 0;
        for (&a, &b) in a.iter().zip(b) {
            if !a.is_finite() || !b.is_finite() {
                let same = a == b || (a.is_nan() && b.is_nan());
                non_finite += usize::from(!same);
                continue;
            }
            let (a, b) = (a as f64, b as f64);
            (aa, bb, ab) = (aa + a * a, bb + b * b, ab + a * b);
            dd += (a - b) * (a - b);
            errors.push((a - b).abs());
        }
        errors.sort_by(f64::total_cmp);
        // Nearest rank: the smallest error that at least `percent` of the errors do not exceed.
        let percentile = |percent: usize| {
            let rank = (errors.len() * percent).div_ceil(100).max(1);
            errors.get(rank - 1).copied().unwrap_or(0.0)
        };
        let ratio = |part: f64, whole: f64, both_zero: f64| match (part == 0.0, whole == 0.0) {
            (true, true) => both_zero,
            _ => part / whole,
        };
        Ok(Deviation {
            count: a.len(),
            relative_l2: ratio(dd.sqrt(), bb.sqrt(), 0.0),
            cosine: if aa == 0.0 && bb == 0.0 { 1.0 } else { ratio(ab, (aa * bb).sqrt(), 0.0) },
            p50: percentile(50),
            p90: percentile(90),
            p99: percentile(99),
            max: percentile(100),
            non_finite,
        })
    }

    /// Whether everything is finite (or equal) and the relative L2 distance within `bound`.
    pub fn within(&self, bound: f64) -> bool {
        self.non_finite == 0 && self.relative_l2 <= bound
    }
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "relative L2 {:.2e}, cosine {:.8}, |error| 50% {:.2e} 90% {:.2e} 99% {:.2e} max {:.2e}",
            self.relative_l2, self.cosine, self.p50, self.p90, self.p99, self.max
        )?;
        match self.non_finite {
            0 => Ok(()),
            n => write!(f, ", {n} of {} not finite", self.count),
        }
    }
}

/// Prepares `graph` on a backend, runs it once and returns its outputs.
///
/// # Errors
/// As [`Backend::prepare`] and [`super::Session::run`].
pub fn run_once(
    backend: &dyn Backend,
    graph: &Arc<Graph>,
    rows: usize,
    inputs: &[Input<'_>],
) -> Result<Vec<Vec<f32>>> {
    let mut session = backend.prepare(graph.clone(), rows)?;
    let length = |&id| {
        let shape = graph.shape(id);
        shape.len() * if shape.is_bag() { 1 } else { rows }
    };
    let mut outputs: Vec<Vec<f32>> = graph.outputs.iter().map(|o| vec![0.0; length(o)]).collect();
    let mut views: Vec<&mut [f32]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
    session.run(rows, inputs, &mut views)?;
    Ok(outputs)
}

/// Runs a graph on two backends and measures each output of the first against the second.
///
/// # Errors
/// As [`run_once`].
pub fn compare(
    backend: &dyn Backend,
    against: &dyn Backend,
    graph: &Arc<Graph>,
    rows: usize,
    inputs: &[Input<'_>],
) -> Result<Vec<Deviation>> {
    let a = run_once(backend, graph, rows, inputs)?;
    let b = run_once(against, graph, rows, inputs)?;
    a.iter().zip(&b).map(|(a, b)| Deviation::between(a, b)).collect()
}

/// Runs a graph on a backend and measures each output against [`reference::run`].
///
/// # Errors
/// As [`run_once`].
pub fn compare_reference(
    backend: &dyn Backend,
    graph: &Arc<Graph>,
    rows: usize,
    inputs: &[Input<'_>],
    rounding: Rounding,
) -> Result<Vec<Deviation>> {
    let a = run_once(backend, graph, rows, inputs)?;
    let b = reference::run(graph, rows, inputs, rounding)?;
    a.iter().zip(&b).map(|(a, b)| Deviation::between(a, b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_distances() {
        let d = Deviation::between(&[3.0, 4.0, 0.0, 1.0], &[0.0, 4.0, 3.0, 1.0]).unwrap();
        assert!((d.relative_l2 - (18f64 / 26.0).sqrt()).abs() < 1e-15);
        assert!((d.cosine - 17.0 / 26.0).abs() < 1e-15);
        assert_eq!((d.p50, d.p90, d.max), (0.0, 3.0, 3.0));
        assert!(d.within(0.9) && !d.within(0.8));
    }

    #[test]
    fn zeros_and_infinities() {
        let zero = Deviation::between(&[0.0; 3], &[0.0; 3]).unwrap();
        assert_eq!((zero.relative_l2, zero.cosine), (0.0, 1.0));
        let against_zero = Deviation::between(&[1.0], &[0.0]).unwrap();
        assert_eq!(against_zero.relative_l2, f64::INFINITY);
        let nan = Deviation::between(&[f32::NAN, 1.0], &[2.0, 1.0]).unwrap();
        assert!(nan.non_finite == 1 && !nan.within(1.0));
        let both = Deviation::between(&[f32::NAN, 1.0], &[f32::NAN, 1.0]).unwrap();
        assert!(both.within(0.0));
        assert!(Deviation::between(&[1.0], &[]).is_err());
    }
}
