//! What a backend has to pass: every op case, then whole networks, each output held to another
//! backend or to the reference within a bound.

use super::Backend;
use super::cases::{self, Case, Numbers, Values};
use super::check::{Deviation, run_once};
use crate::error::{Kind, Result};
use crate::graph::Graph;
use serde::Serialize;
use std::sync::Arc;

/// Relative L2 distance allowed to whole networks, whose activations are stored as FP16 on both
/// sides: a sum near a tie may be stored as another number, and layer after layer builds on it.
pub const NETWORK: f64 = 5e-3;
/// Cosine that whole networks must reach.
pub const COSINE: f64 = 0.9999;

/// How far an output may lie from what it is held to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// `||a - b|| / ||b||`; 0 is equality.
    RelativeL2(f64),
    /// `||a - b|| / ||b||`, and the cosine at least [`COSINE`].
    Network(f64),
    /// Largest `|a - b|`, in the unit of the output.
    Largest(f64),
}

/// One output and its distance from what it is held to.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// `ops`, `families`, `package`, `slide`.
    pub section: &'static str,
    /// What ran.
    pub name: String,
    /// The distance, or why there is none.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The distance allowed.
    pub bound: Bound,
}

/// The distance of an output, or why there is none.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ran on both sides.
    Deviation(Deviation),
    /// It did not run.
    Error(String),
}

impl Finding {
    /// Whether the output is within its bound.
    pub fn passed(&self) -> bool {
        let Outcome::Deviation(deviation) = &self.outcome else { return false };
        match self.bound {
            Bound::RelativeL2(bound) => deviation.within(bound),
            Bound::Network(bound) => deviation.within(bound) && deviation.cosine >= COSINE,
            Bound::Largest(bound) => deviation.non_finite == 0 && deviation.max <= bound,
        }
    }
}

/// Runs every op case with integers and with general numbers; `each` sees a finding as it is made.
///
/// # Errors
/// [`Kind::Device`]: a device that failed cannot go on. Anything else is a finding.
pub fn ops(on: &dyn Backend, against: &dyn Backend, each: &mut dyn FnMut(Finding)) -> Result<()> {
    for numbers in [Numbers::Integer, Numbers::General] {
        for case in cases::all(numbers)? {
            let rounded = on.transforms_convolutions() && case.may_be_transformed();
            let like = if rounded { Numbers::General } else { numbers };
            // Small integers have exact products everywhere.
            let bound = match case.bound(like) {
                0.0 => 0.0,
                bound => bound + on.product_error(),
            };
            let bound = Bound::RelativeL2(bound);
            compare("ops", on, against, &case, numbers, bound, each)?;
        }
    }
    Ok(())
}

/// How many outputs [`ops`] compares at least.
///
/// # Errors
/// As [`cases::all`].
pub fn op_count() -> Result<usize> {
    Ok(cases::all(Numbers::Integer)?.len() + cases::all(Numbers::General)?.len())
}

/// Runs a network on `rows` seeded rows.
///
/// # Errors
/// As [`ops`].
pub fn network(
    section: &'static str,
    on: &dyn Backend,
    against: &dyn Backend,
    graph: &Arc<Graph>,
    rows: usize,
    each: &mut dyn FnMut(Finding),
) -> Result<()> {
    let case = Case { name: graph.name.clone(), graph: graph.clone(), rows };
    let bound = Bound::Network(NETWORK);
    compare(section, on, against, &case, Numbers::General, bound, each)
}

fn compare(
    section: &'static str,
    on: &dyn Backend,
    against: &dyn Backend,
    case: &Case,
    numbers: Numbers,
    bound: Bound,
    each: &mut dyn FnMut(Finding),
) -> Result<()> {
    let inputs = case.inputs(numbers, 0, case.rows);
    let inputs = Values::view(&inputs);
    let run = |on: &dyn Backend| run_once(on, &case.graph, case.rows, &inputs);
    let name = match numbers {
        Numbers::Integer => format!("{} (integers)", case.name),
        Numbers::General => case.name.clone(),
    };
    match run(on).and_then(|got| Ok((got, run(against)?))) {
        Ok((got, want)) => {
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let name = if i == 0 { name.clone() } else { format!("{name}, output {}", i + 1) };
                let outcome = Outcome::Deviation(Deviation::between(got, want)?);
                each(Finding { section, name, outcome, bound });
            }
            Ok(())
        }
        Err(error) if error.kind() == Kind::Device => Err(error.context(name)),
        Err(error) => {
            each(Finding { section, name, outcome: Outcome::Error(error.to_string()), bound });
            Ok(())
        }
    }
}
