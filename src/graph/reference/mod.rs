//! Every op from its definition, in plain loops: the oracle of all backends.
//!
//! Written to be read, not to be fast: each function is the textbook formula over dense tensors
//! `[rows, positions, channels]`. Values are f32; sums, statistics and exponentials are taken in
//! f64, so that the oracle's own rounding stays far below that of what it judges.

mod bags;
mod maps;
mod tokens;

pub use tokens::activate;

use super::plan::root;
use super::{Act, Dense, Epilogue, Graph, Op, ParamData, ParamId, Shape, Step, TensorId};
use super::{Input, check_run};
use crate::error::Result;
use half::{bf16, f16};
use maps::Map;

/// What is done to an activation before the next step reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Rounded to FP16, as backends store it.
    F16,
    /// Rounded to bf16, with 0 for what is smaller than the smallest normal number; so are FP16
    /// weights and, before they meet the values, the exponentials of attention.
    Bf16,
    /// Kept in f32: what a network computes before any FP16 storage (its weights excepted).
    None,
}

/// Runs a graph and returns its outputs, unrounded, in order.
///
/// # Errors
/// As [`check_run`].
///
/// # Panics
/// If the graph reads tensors before they are written; [`super::plan::Plan::new`] refuses those.
pub fn run(
    graph: &Graph,
    rows: usize,
    inputs: &[Input<'_>],
    rounding: Rounding,
) -> Result<Vec<Vec<f32>>> {
    Ok(execute(graph, rows, inputs, rounding)?.outputs)
}

/// Runs a graph and returns every tensor as the steps that read it see it, indexed by
/// [`TensorId`]: for finding the step where two executions part.
///
/// # Errors
/// As [`check_run`].
pub fn trace(
    graph: &Graph,
    rows: usize,
    inputs: &[Input<'_>],
    rounding: Rounding,
) -> Result<Vec<Vec<f32>>> {
    let store = execute(graph, rows, inputs, rounding)?;
    Ok((0..graph.tensors.len()).map(|t| store.dense(TensorId(t))).collect())
}

fn execute<'a>(
    graph: &'a Graph,
    rows: usize,
    inputs: &[Input<'_>],
    rounding: Rounding,
) -> Result<Store<'a>> {
    let mut store = Store::new(graph, rows, rounding);
    let outputs: Vec<&mut [f32]> = store.outputs.iter_mut().map(Vec::as_mut_slice).collect();
    check_run(graph, rows, inputs, &outputs)?;
    for (&id, input) in graph.inputs.iter().zip(inputs) {
        match input {
            Input::Pixels(v) => store.write(id, &v.iter().map(|&x| x as f32).collect::<Vec<_>>()),
            other => other.values()?.iter().for_each(|v| store.write(id, v)),
        }
    }
    for step in &graph.steps {
        let value = store.evaluate(step);
        store.write(step.output, &value);
    }
    Ok(store)
}

/// What the next step reads of a value.
fn rounded(rounding: Rounding, x: f32) -> f32 {
    match rounding {
        Rounding::F16 => f16::from_f32(x).to_f32(),
        Rounding::Bf16 if x.is_subnormal() => 0f32.copysign(x),
        Rounding::Bf16 => bf16::from_f32(x).to_f32(),
        Rounding::None => x,
    }
}

/// Every tensor of a run. Slices have no storage of their own: they are channels of their root.
struct Store<'a> {
    graph: &'a Graph,
    rows: usize,
    rounding: Rounding,
    roots: Vec<Vec<f32>>,
    outputs: Vec<Vec<f32>>,
}

impl<'a> Store<'a> {
    fn new(graph: &'a Graph, rows: usize, rounding: Rounding) -> Self {
        let mut store = Store { graph, rows, rounding, roots: Vec::new(), outputs: Vec::new() };
        store.roots = (0..graph.tensors.len())
            .map(|t| match graph.tensors[t].slice {
                None => store.zeros(TensorId(t)),
                Some(_) => Vec::new(),
            })
            .collect();
        store.outputs = graph.outputs.iter().map(|&o| store.zeros(o)).collect();
        store
    }

    fn zeros(&self, id: TensorId) -> Vec<f32> {
        vec![0.0; self.positions(id) * self.graph.shape(id).channels()]
    }

    /// Positions of all rows together.
    fn positions(&self, id: TensorId) -> usize {
        let shape = self.graph.shape(id);
        if shape.is_bag() { shape.pixels() } else { self.rows * shape.pixels() }
    }

    /// A copy of a tensor without the channels around it.
    fn dense(&self, id: TensorId) -> Vec<f32> {
        let (root, first) = root(self.graph, id);
        let (pitch, c) = (self.graph.shape(root).channels(), self.graph.shape(id).channels());
        let positions = self.roots[root.0].chunks_exact(pitch);
        positions.flat_map(|p| &p[first..first + c]).copied().collect()
    }

    /// Stores a dense value, rounded, and hands it to the outputs it belongs to, unrounded.
    fn write(&mut self, id: TensorId, value: &[f32]) {
        let (to, first) = root(self.graph, id);
        let (pitch, c) = (self.graph.shape(to).channels(), self.graph.shape(id).channels());
        for (p, x) in value.chunks_exact(c).enumerate() {
            let stored = &mut self.roots[to.0][p * pitch + first..][..c];
            for (s, &x) in stored.iter_mut().zip(x) {
                *s = rounded(self.rounding, x);
            }
        }
        for (space, &output) in self.outputs.iter_mut().zip(&self.graph.outputs) {
            let (root, start) = root(self.graph, output);
            let width = self.graph.shape(output).channels();
            if root == to && first >= start && first + c <= start + width {
                for (p, x) in value.chunks_exact(c).enumerate() {
                    space[p * width + first - start..][..c].copy_from_slice(x);
                }
            }
        }
    }

    /// A parameter as f32.
    fn numbers(&self, id: ParamId) -> Vec<f32> {
        match &self.graph.param(id).data {
            ParamData::F16(v) if self.rounding == Rounding::Bf16 => {
                v.iter().map(|x| rounded(self.rounding, x.to_f32())).collect()
            }
            ParamData::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            ParamData::F32(v) => v.to_vec(),
        }
    }

    /// A vector parameter, or `absent` for each of `n` channels.
    fn vector(&self, id: Option<ParamId>, n: usize, absent: f32) -> Vec<f32> {
        id.map_or_else(|| vec![absent; n], |id| self.numbers(id))
    }

    fn map(&self, id: TensorId) -> Map {
        let Shape::Map { h, w, c } = self.graph.shape(id) else {
            unreachable!("inferred as a map")
        };
        Map { h, w, c, values: self.dense(id) }
    }

    /// The dense value of a step's output.
    fn evaluate(&self, step: &Step) -> Vec<f32> {
        let input = step.inputs[0];
        let (from, out) = (self.graph.shape(input), self.graph.shape(step.output));
        let c = from.channels();
        match step.op {
            Op::Normalize { mean, std } => maps::normalize(&self.dense(input), mean, std),
            Op::Patches { mean, std, side } => {
                let values = maps::normalize(&self.dense(input), mean, std);
                maps::patches(&values, from, side)
            }
            Op::Conv2d { weight, window, ref epilogue } => {
                let sums = maps::conv2d(&self.map(input), out, window, &self.numbers(weight));
                self.finish(&sums, out.channels(), epilogue)
            }
            Op::PreactConv1x1 { scale, bias, weight, ref epilogue } => {
                let x = self.dense(input);
                let x = self.affine(&x, c, Some(scale), Some(bias), Act::Relu);
                let x: Vec<f32> = x.into_iter().map(|x| rounded(self.rounding, x)).collect();
                let sums = tokens::linear(&x, c, &self.numbers(weight));
                self.finish(&sums, out.channels(), epilogue)
            }
            Op::ConvTranspose2x2 { weight, ref epilogue } => {
                let sums = maps::conv_transpose_2x2(&self.map(input), &self.numbers(weight));
                self.finish(&sums, out.channels(), epilogue)
            }
            Op::Linear { weight, ref epilogue } => {
                let sums = tokens::linear(&self.dense(input), c, &self.numbers(weight));
                self.finish(&sums, out.channels(), epilogue)
            }
            Op::GatedLinear { weight, bias, act } => {
                let sums = tokens::linear(&self.dense(input), c, &self.numbers(weight));
                let k = out.channels();
                tokens::gate(&sums, &self.vector(bias, 2 * k, 0.0), k, act)
            }
            Op::Affine { scale, bias, act } => self.affine(&self.dense(input), c, scale, bias, act),
            Op::BatchNorm { gamma, beta, eps, act } => {
                let (gamma, beta) = (self.numbers(gamma), self.numbers(beta));
                maps::batch_norm(&self.dense(input), &gamma, &beta, eps, act)
            }
            Op::MaxPool { window, .. } => maps::max_pool(&self.map(input), out, window),
            Op::AvgPool { window, count_include_pad } => {
                maps::avg_pool(&self.map(input), out, window, count_include_pad)
            }
            Op::AdaptiveAvgPool { h, w } => maps::adaptive_avg_pool(&self.map(input), h, w),
            Op::Upsample { h, w, mode } => maps::upsample(&self.map(input), h, w, mode),
            Op::Flatten => maps::flatten(&self.map(input)),
            Op::Embed { prefix, position } => {
                let position = self.vector(position, from.len(), 0.0);
                let prefix = prefix.map_or_else(Vec::new, |id| self.numbers(id));
                tokens::embed(&self.dense(input), from.len(), &prefix, &position)
            }
            Op::LayerNorm { gamma, beta, eps, groups } => {
                let (gamma, beta) = (self.numbers(gamma), self.vector(beta, c / groups, 0.0));
                tokens::layer_norm(&self.dense(input), &gamma, &beta, eps)
            }
            Op::RmsNorm { gamma, eps, groups: _ } => {
                tokens::rms_norm(&self.dense(input), &self.numbers(gamma), eps)
            }
            Op::Attention { heads, queries } => {
                let queries = queries.map(|id| self.numbers(id));
                let (x, t) = (self.dense(input), from.pixels());
                let kept = |weight: f64| match self.rounding {
                    Rounding::Bf16 => f64::from(rounded(self.rounding, weight as f32)),
                    Rounding::F16 | Rounding::None => weight,
                };
                tokens::attention(&x, t, out, heads, queries.as_deref(), kept)
            }
            Op::TokenMean { start, count } => {
                tokens::token_mean(&self.dense(input), from.pixels(), c, start..start + count)
            }
            Op::Softmax => tokens::softmax(&self.dense(input), c),
            Op::AttentionScore { v, u, w } => self.attention_score(&self.dense(input), v, u, w),
            Op::AttentionPool => {
                let (a, c) = (out.pixels(), out.channels());
                bags::attention_pool(&self.dense(input), a, &self.dense(step.inputs[1]), c)
            }
            Op::BagReduce { reduce } => bags::reduce(&self.dense(input), c, reduce),
            Op::RowDot { weight, bias } => {
                let bias = self.vector(bias, out.channels(), 0.0);
                bags::row_dot(&self.dense(input), c, &self.numbers(weight), &bias)
            }
            Op::Copy => self.dense(input),
        }
    }

    /// `act(x * scale[c] + bias[c])`.
    fn affine(
        &self,
        x: &[f32],
        c: usize,
        scale: Option<ParamId>,
        bias: Option<ParamId>,
        act: Act,
    ) -> Vec<f32> {
        let sums: Vec<f64> = x.iter().map(|&x| x as f64).collect();
        self.finish(&sums, c, &Epilogue { scale, bias, residual: None, act })
    }

    /// `act(sum * scale[k] + bias[k] + residual)`.
    fn finish(&self, sums: &[f64], k: usize, epilogue: &Epilogue) -> Vec<f32> {
        let scale = self.vector(epilogue.scale, k, 1.0);
        let bias = self.vector(epilogue.bias, k, 0.0);
        let residual = epilogue.residual.map(|id| self.dense(id));
        (sums.iter().enumerate())
            .map(|(i, &sum)| {
                let added = residual.as_ref().map_or(0.0, |r| r[i]);
                let linear = sum * scale[i % k] as f64 + bias[i % k] as f64 + added as f64;
                activate(epilogue.act, linear)
            })
            .collect()
    }

    /// `w(tanh(v x) * sigmoid(u x))`; the hidden layer is not rounded.
    fn attention_score(&self, x: &[f32], v: Dense, u: Option<Dense>, w: Dense) -> Vec<f32> {
        let c = self.graph.param(v.weight).shape[1];
        let dense = |x: &[f32], c: usize, layer: Dense, act: Act| {
            let k = self.graph.param(layer.weight).shape[0];
            let epilogue = Epilogue { bias: layer.bias, act, ..Default::default() };
            self.finish(&tokens::linear(x, c, &self.numbers(layer.weight)), k, &epilogue)
        };
        let mut hidden = dense(x, c, v, Act::Tanh);
        if let Some(u) = u {
            let gate = dense(x, c, u, Act::Sigmoid);
            hidden.iter_mut().zip(gate).for_each(|(h, g)| *h *= g);
        }
        dense(&hidden, self.graph.param(w.weight).shape[1], w, Act::None)
    }
}
