//! What the session and its layers agree on: a layer is a step with its weights packed, and a site
//! is where it runs.

use super::matmul::Block;
use super::memory::{Aligned, Machine, Sink, View};
use crate::graph::{Graph, ParamData, ParamId};
use std::sync::Mutex;

/// A step with its weights packed.
pub(super) trait Layer: Send + Sync {
    /// Executes the step.
    fn run(&self, site: &Site<'_>);

    /// f32 elements of [`Scratch::hidden`] it needs for each row of a block.
    fn hidden(&self) -> usize {
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
    /// The pixels of a [`Op::Normalize`].
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
    pub hidden: Vec<f32>,
}

/// The numbers of an f32 parameter.
pub(super) fn numbers(graph: &Graph, id: ParamId) -> &[f32] {
    match &graph.param(id).data {
        ParamData::F32(v) => v,
        ParamData::F16(_) => unreachable!("checked when the graph was built"),
    }
}
