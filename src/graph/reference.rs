//! Every op from its definition, in plain loops: the oracle of all backends.
//!
//! Written to be read, not to be fast: each function is the textbook formula over dense tensors
//! `[rows, positions, channels]`. Values are f32; sums, statistics and exponentials are taken in
//! f64, so that the oracle's own rounding stays far below that of what it judges.

use super::plan::root;
use super::{Act, Dense, Epilogue, Graph, Op, ParamData, ParamId, Shape, Step, TensorId, Window};
use super::{Input, check_run};
use crate::error::Result;
use half::f16;

/// What is done to an activation before the next step reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Rounded to FP16, as backends store it.
    F16,
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
            Input::Values(v) => store.write(id, v),
        }
    }
    for step in &graph.steps {
        let value = store.evaluate(step);
        store.write(step.output, &value);
    }
    Ok(store)
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
                *s = match self.rounding {
                    Rounding::F16 => f16::from_f32(x).to_f32(),
                    Rounding::None => x,
                };
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
        let out = self.graph.shape(step.output);
        match step.op {
            Op::Normalize { mean, std } => normalize(&self.dense(input), mean, std),
            Op::Conv2d { weight, window, ref epilogue } => {
                let sums = conv2d(&self.map(input), out, window, &self.numbers(weight));
                self.finish(&sums, out.channels(), epilogue)
            }
            Op::Linear { weight, ref epilogue } => {
                let c = self.graph.shape(input).channels();
                let sums = linear(&self.dense(input), c, &self.numbers(weight));
                self.finish(&sums, out.channels(), epilogue)
            }
            Op::BatchNorm { gamma, beta, eps, act } => {
                batch_norm(&self.dense(input), &self.numbers(gamma), &self.numbers(beta), eps, act)
            }
            Op::MaxPool { window } => max_pool(&self.map(input), out, window),
            Op::AvgPool { window, count_include_pad } => {
                avg_pool(&self.map(input), out, window, count_include_pad)
            }
            Op::AdaptiveAvgPool { h, w } => adaptive_avg_pool(&self.map(input), h, w),
            Op::Flatten => flatten(&self.map(input)),
            Op::AttentionScore { v, u, w } => self.attention_score(&self.dense(input), v, u, w),
            Op::AttentionPool => {
                let (a, c) = (out.pixels(), out.channels());
                attention_pool(&self.dense(input), a, &self.dense(step.inputs[1]), c)
            }
            Op::RowDot { weight, bias } => {
                let c = self.graph.shape(input).channels();
                let bias = self.vector(bias, out.channels(), 0.0);
                row_dot(&self.dense(input), c, &self.numbers(weight), &bias)
            }
            Op::Copy => self.dense(input),
        }
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
            self.finish(&linear(x, c, &self.numbers(layer.weight)), k, &epilogue)
        };
        let mut hidden = dense(x, c, v, Act::Tanh);
        if let Some(u) = u {
            let gate = dense(x, c, u, Act::Sigmoid);
            hidden.iter_mut().zip(gate).for_each(|(h, g)| *h *= g);
        }
        dense(&hidden, self.graph.param(w.weight).shape[1], w, Act::None)
    }
}

/// A dense `[rows, H, W, C]` tensor.
struct Map {
    h: usize,
    w: usize,
    c: usize,
    values: Vec<f32>,
}

impl Map {
    fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.h * self.w * self.c)
    }
}

/// The channels of position `(y, x)` of a row, or `None` in the padding.
fn at<'a>(map: &Map, row: &'a [f32], y: Option<usize>, x: Option<usize>) -> Option<&'a [f32]> {
    let (y, x) = (y.filter(|&y| y < map.h)?, x.filter(|&x| x < map.w)?);
    Some(&row[(y * map.w + x) * map.c..][..map.c])
}

impl Window {
    /// The input coordinate of tap `tap` of output `o`, `None` left of the map.
    fn tap(&self, axis: usize, o: usize, tap: usize) -> Option<usize> {
        (o * self.stride[axis] + tap * self.dilation[axis]).checked_sub(self.pad[axis])
    }
}

/// An activation function by its definition.
pub fn activate(act: Act, x: f64) -> f32 {
    let y = match act {
        Act::None => x,
        Act::Relu if x < 0.0 => 0.0,
        Act::Relu => x,
        Act::Tanh => x.tanh(),
        Act::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    };
    y as f32
}

fn normalize(pixels: &[f32], mean: [f32; 3], std: [f32; 3]) -> Vec<f32> {
    let unit = |(i, &x): (usize, &f32)| (x / 255.0 - mean[i % 3]) / std[i % 3];
    pixels.iter().enumerate().map(unit).collect()
}

/// `y[p, q, k] = sum over r, s, c of x[p stride + r dilation - pad, .., c] w[k, r, s, c]`.
fn conv2d(x: &Map, out: Shape, window: Window, weight: &[f32]) -> Vec<f64> {
    let Shape::Map { h, w, c: k } = out else { unreachable!("inferred as a map") };
    let taps = window.kernel[0] * window.kernel[1];
    let mut sums = Vec::new();
    for row in x.rows() {
        for (p, q) in grid(h, w) {
            let mut sum = vec![0f64; k];
            for (r, s) in grid(window.kernel[0], window.kernel[1]) {
                let pixel = at(x, row, window.tap(0, p, r), window.tap(1, q, s));
                let Some(pixel) = pixel else { continue };
                let tap = r * window.kernel[1] + s;
                for (sum, filter) in sum.iter_mut().zip(weight.chunks_exact(taps * x.c)) {
                    *sum += dot(pixel, &filter[tap * x.c..][..x.c]);
                }
            }
            sums.extend(sum);
        }
    }
    sums
}

fn linear(x: &[f32], c: usize, weight: &[f32]) -> Vec<f64> {
    let position = |x| weight.chunks_exact(c).map(move |w| dot(x, w));
    x.chunks_exact(c).flat_map(position).collect()
}

/// In eight interleaved partial sums, for speed; all of them in f64.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    let mut sums = [0f64; 8];
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            sums[i] += a[i] as f64 * b[i] as f64;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&a, &b)| a as f64 * b as f64).sum();
    sums.iter().sum::<f64>() + rest
}

fn grid(h: usize, w: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..h).flat_map(move |y| (0..w).map(move |x| (y, x)))
}

fn batch_norm(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, act: Act) -> Vec<f32> {
    let c = gamma.len();
    let n = (x.len() / c) as f64;
    let channel = |i: usize| x.iter().skip(i).step_by(c).map(|&x| x as f64);
    let moments: Vec<(f64, f64)> = (0..c)
        .map(|i| {
            let mean = channel(i).sum::<f64>() / n;
            (mean, channel(i).map(|x| (x - mean).powi(2)).sum::<f64>() / n)
        })
        .collect();
    (x.iter().enumerate())
        .map(|(i, &x)| {
            let (mean, variance) = moments[i % c];
            let unit = (x as f64 - mean) / (variance + eps as f64).sqrt();
            activate(act, unit * gamma[i % c] as f64 + beta[i % c] as f64)
        })
        .collect()
}

fn max_pool(x: &Map, out: Shape, window: Window) -> Vec<f32> {
    windows(x, out, window, |taps, c| {
        let values = taps.iter().flatten().map(|pixel| pixel[c]);
        values.reduce(|a, b| if b > a || b.is_nan() { b } else { a }).unwrap_or(f32::NEG_INFINITY)
    })
}

fn avg_pool(x: &Map, out: Shape, window: Window, count_include_pad: bool) -> Vec<f32> {
    windows(x, out, window, |taps, c| {
        let inside = taps.iter().flatten();
        let count = if count_include_pad { taps.len() } else { inside.clone().count() };
        (inside.map(|pixel| pixel[c] as f64).sum::<f64>() / count as f64) as f32
    })
}

/// One value for each output position and channel from its taps, `None` where they are padding.
fn windows(
    x: &Map,
    out: Shape,
    window: Window,
    pool: impl Fn(&[Option<&[f32]>], usize) -> f32,
) -> Vec<f32> {
    let Shape::Map { h, w, c } = out else { unreachable!("inferred as a map") };
    let mut values = Vec::new();
    for row in x.rows() {
        for (p, q) in grid(h, w) {
            let taps: Vec<Option<&[f32]>> = grid(window.kernel[0], window.kernel[1])
                .map(|(r, s)| at(x, row, window.tap(0, p, r), window.tap(1, q, s)))
                .collect();
            values.extend((0..c).map(|c| pool(&taps, c)));
        }
    }
    values
}

/// Output `i` of `n` averages inputs `floor(i len / n) .. ceil((i + 1) len / n)`.
fn adaptive_avg_pool(x: &Map, h: usize, w: usize) -> Vec<f32> {
    let range = |i: usize, n: usize, len: usize| i * len / n..((i + 1) * len).div_ceil(n);
    let mut values = Vec::new();
    for row in x.rows() {
        for (p, q) in grid(h, w) {
            let (ys, xs) = (range(p, h, x.h), range(q, w, x.w));
            let count = (ys.len() * xs.len()) as f64;
            for c in 0..x.c {
                let pixels = ys.clone().flat_map(|y| xs.clone().map(move |x| (y, x)));
                let sum: f64 = pixels.map(|(i, j)| row[(i * x.w + j) * x.c + c] as f64).sum();
                values.push((sum / count) as f32);
            }
        }
    }
    values
}

fn flatten(x: &Map) -> Vec<f32> {
    let channel = |row: &[f32], c: usize| row.iter().skip(c).step_by(x.c).copied().collect();
    x.rows().flat_map(|row| (0..x.c).flat_map(move |c| -> Vec<f32> { channel(row, c) })).collect()
}

/// `sum over n of softmax(score[.., a])[n] value[n, c]`.
fn attention_pool(scores: &[f32], branches: usize, values: &[f32], c: usize) -> Vec<f32> {
    let mut bag = Vec::new();
    for branch in 0..branches {
        let column = scores.iter().skip(branch).step_by(branches).map(|&s| s as f64);
        let largest = column.clone().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = column.map(|s| (s - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut sum = vec![0f64; c];
        for (weight, row) in weights.iter().zip(values.chunks_exact(c)) {
            sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += weight * x as f64);
        }
        bag.extend(sum.iter().map(|s| (s / total) as f32));
    }
    bag
}

fn row_dot(x: &[f32], c: usize, weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let rows = x.chunks_exact(c).zip(weight.chunks_exact(c));
    rows.zip(bias).map(|((x, w), &b)| (dot(x, w) + b as f64) as f32).collect()
}
