//! Layers over a bag of instances: attention scores, attention pooling, one classifier a branch.

use super::conv::weights;
use super::epilogue::Finish;
use super::kernels::{Kernels, MAX_COLUMNS, MAX_ROWS};
use super::layer::{self, Layer, Site, vector};
use super::math;
use super::matmul::{Block, Weights};
use super::memory::View;
use super::stored::StoredMut;
use crate::graph::{Act, Dense, Graph, ParamId};
use std::ops::Range;

/// A linear layer inside a larger step.
struct Linear {
    weights: Weights,
    scale: Vec<f32>,
    bias: Vec<f32>,
}

impl Linear {
    fn new(graph: &Graph, dense: Dense, weights: Weights) -> Linear {
        let k = weights.filters();
        Linear { weights, scale: vec![1.0; k], bias: vector(graph, dense.bias, k, 0.0) }
    }
}

/// `w(tanh(v x) [* sigmoid(u x)])`; the hidden layer stays in f32.
pub(super) struct AttentionScore {
    kernels: &'static Kernels,
    v: Linear,
    u: Option<Linear>,
    w: Linear,
}

impl AttentionScore {
    pub fn new(
        graph: &Graph,
        kernels: &'static Kernels,
        v: Dense,
        u: Option<Dense>,
        w: Dense,
    ) -> AttentionScore {
        let linear =
            |dense: Dense| Linear::new(graph, dense, weights(graph, dense.weight, kernels));
        let k = graph.param(w.weight).shape[0];
        let last = Weights::pack_singles(kernels, layer::halves(graph, w.weight), k);
        let w = Linear::new(graph, w, last);
        AttentionScore { kernels, v: linear(v), u: u.map(linear), w }
    }

    /// Calls `each(row, first column, values)` with `act(x w + b)` of consecutive rows of `x`.
    fn project(
        &self,
        layer: &Linear,
        act: Act,
        block: &mut Block,
        rows: usize,
        pack: impl Fn(usize, Range<usize>, StoredMut<'_>),
        mut each: impl FnMut(usize, usize, &[f32]),
    ) {
        let filters = layer.weights.filters();
        for start in (0..filters).step_by(MAX_COLUMNS) {
            let columns = start..(start + MAX_COLUMNS).min(filters);
            layer.weights.multiply(block, rows, columns.clone(), &pack);
            let (scale, bias) = (&layer.scale[columns.clone()], &layer.bias[columns.clone()]);
            for row in 0..rows {
                let sums = block.row(row, columns.len());
                self.kernels.finish(sums, &Finish { scale, bias, residual: None, act });
                each(row, start, sums);
            }
        }
    }
}

impl Layer for AttentionScore {
    fn scratch(&self) -> usize {
        self.v.weights.filters() * MAX_ROWS
    }

    fn run(&self, site: &Site<'_>) {
        let x = site.inputs[0];
        let width = self.v.weights.filters();
        let rows = self.v.weights.cut(x.positions(), 1).largest()[0];
        site.sink.fill(&site.on, [rows, site.sink.channels()], |part, scratch| {
            let (first, rows) = (part.positions.start, part.positions.len());
            let (block, hidden) = (&mut scratch.block, &mut scratch.hidden);
            let pack = |row: usize, depths: Range<usize>, to: StoredMut<'_>| {
                self.kernels.take(x.at(first + row, depths), to)
            };
            self.project(&self.v, Act::Tanh, block, rows, pack, |row, start, values| {
                hidden[row * width + start..][..values.len()].copy_from_slice(values);
            });
            if let Some(u) = &self.u {
                self.project(u, Act::Sigmoid, block, rows, pack, |row, start, values| {
                    let hidden = &mut hidden[row * width + start..][..values.len()];
                    hidden.iter_mut().zip(values).for_each(|(h, &g)| *h *= g);
                });
            }
            let pack = |row: usize, depths: Range<usize>, to: StoredMut<'_>| {
                self.kernels.narrow(&hidden[row * width..][depths], to)
            };
            self.project(&self.w, Act::None, block, rows, pack, |row, start, values| {
                part.put(first + row, start, values);
            });
        });
    }
}

/// Softmax of each score column over the rows, then the weighted sum of the values.
pub(super) struct AttentionPool {
    pub kernels: &'static Kernels,
}

/// Rows added in f32 before the sum is carried over to f64.
const RUN: usize = 1024;
/// Channels to a task.
const CHANNELS: usize = 64;

impl Layer for AttentionPool {
    fn row_scratch(&self, branches: usize) -> usize {
        branches
    }

    fn run(&self, site: &Site<'_>) {
        let [scores, values] = site.inputs;
        let (n, branches) = (scores.positions(), scores.channels());
        let mut weights = site.row_scratch.lock().unwrap_or_else(|p| p.into_inner());
        let weights = &mut weights[..n * branches];
        for (branch, column) in weights.chunks_exact_mut(n).enumerate() {
            softmax(self.kernels, &scores, branch, column);
        }
        let weights = &*weights;
        site.sink.fill(&site.on, [1, CHANNELS], |part, _| {
            let branch = part.positions.start;
            let channels = part.channels.clone();
            let column = &weights[branch * n..][..n];
            let mut total = [0f64; CHANNELS];
            let mut value = [0f32; CHANNELS];
            let value = &mut value[..channels.len()];
            for (run, weights) in column.chunks(RUN).enumerate() {
                let mut sum = [0f32; CHANNELS];
                for (i, &weight) in weights.iter().enumerate() {
                    self.kernels.widen(values.at(run * RUN + i, channels.clone()), value);
                    sum.iter_mut().zip(&*value).for_each(|(s, &v)| *s += weight * v);
                }
                total.iter_mut().zip(sum).for_each(|(t, s)| *t += s as f64);
            }
            let pooled = total.map(|t| t as f32);
            part.put(branch, channels.start, &pooled[..channels.len()]);
        });
    }
}

/// Writes the softmax over the rows of one score column.
fn softmax(kernels: &Kernels, scores: &View, branch: usize, weights: &mut [f32]) {
    for (row, weight) in weights.iter_mut().enumerate() {
        kernels.widen(scores.at(row, branch..branch + 1), std::slice::from_mut(weight));
    }
    let largest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0f64;
    for weight in weights.iter_mut() {
        *weight = math::exp(*weight as f64 - largest as f64);
        total += *weight as f64;
    }
    weights.iter_mut().for_each(|w| *w = (*w as f64 / total) as f32);
}

/// Row r of the bag against row r of the weight, a chain of fused multiply-adds each.
pub(super) struct RowDot {
    kernels: &'static Kernels,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl RowDot {
    pub fn new(
        graph: &Graph,
        kernels: &'static Kernels,
        weight: ParamId,
        bias: Option<ParamId>,
    ) -> RowDot {
        let bias = vector(graph, bias, graph.param(weight).shape[0], 0.0);
        let weight = layer::weights(graph, weight, kernels);
        RowDot { kernels, weight, bias }
    }
}

impl Layer for RowDot {
    fn run(&self, site: &Site<'_>) {
        let x = site.inputs[0];
        let c = x.channels();
        site.sink.fill(&site.on, [1, site.sink.channels()], |part, _| {
            for r in part.channels.clone() {
                let mut sum = 0f32;
                let mut value = [0f32; 256];
                for (run, weights) in self.weight[r * c..][..c].chunks(256).enumerate() {
                    let value = &mut value[..weights.len()];
                    self.kernels.widen(x.at(r, run * 256..run * 256 + weights.len()), value);
                    for (&v, &w) in value.iter().zip(weights) {
                        sum = v.mul_add(w, sum);
                    }
                }
                part.put(0, r, &[sum + self.bias[r]]);
            }
        });
    }
}
