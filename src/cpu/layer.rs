//! What the session and its layers agree on: a layer is a step with its weights packed, and a site
//! is where it runs.

use super::aligned::Aligned;
use super::kernels::Kernels;
use super::matmul::Block;
use super::memory::{Machine, Sink, View};
use crate::graph::{Graph, ParamData, ParamId};
use half::f16;
use std::sync::Mutex;

/// A step with its weights packed.
pub(super) trait Layer: Send + Sync {
    /// Executes the step.
    fn run(&self, site: &Site<'_>);

    /// How it computes, where that is not by the definition of its op.
    fn algorithm(&self) -> Option<&'static str> {
        None
    }

    /// f32 elements of [`Scratch::hidden`] it needs.
    fn scratch(&self) -> usize {
        0
    }

    /// f32 elements of [`Site::row_scratch`] it needs for each row of a run, when its first input
    /// has `channels`.
    fn row_scratch(&self, channels: usize) -> usize {
        let _ = channels;
        0
    }
}

/// Where a layer runs: its inputs, its output and the machine.
pub(super) struct Site<'a> {
    pub on: Machine<'a>,
    /// The pixels of an `Op::Normalize` or `Op::Patches`.
    pub pixels: &'a [u8],
    /// Its inputs; a single one stands twice.
    pub inputs: [View; 2],
    pub residual: Option<View>,
    pub sink: Sink,
    pub row_scratch: &'a Mutex<Aligned<f32>>,
}

/// The private memory of a worker.
pub(super) struct Scratch {
    pub block: Block,
    /// Room for what a layer keeps between two steps of its own, at a cache line.
    pub hidden: Aligned<f32>,
}

/// The numbers of an f32 parameter.
pub(super) fn numbers(graph: &Graph, id: ParamId) -> &[f32] {
    match &graph.param(id).data {
        ParamData::F32(v) => v,
        ParamData::F16(_) => unreachable!("checked when the graph was built"),
    }
}

/// The numbers of an f32 vector, or `absent` for each of `n` channels.
pub(super) fn vector(graph: &Graph, id: Option<ParamId>, n: usize, absent: f32) -> Vec<f32> {
    id.map_or_else(|| vec![absent; n], |id| numbers(graph, id).to_vec())
}

/// The numbers of an f16 parameter as they are multiplied.
pub(super) fn weights(graph: &Graph, id: ParamId, kernels: &Kernels) -> Vec<f32> {
    let mut numbers: Vec<f32> = halves(graph, id).iter().map(|w| w.to_f32()).collect();
    kernels.round(&mut numbers);
    numbers
}

/// The numbers of an f16 parameter.
pub(super) fn halves(graph: &Graph, id: ParamId) -> &[f16] {
    match &graph.param(id).data {
        ParamData::F16(v) => v,
        ParamData::F32(_) => unreachable!("checked when the graph was built"),
    }
}
