//! How fast a network runs, layer by layer. A layer is timed inside its network, where its inputs
//! are as warm as they will be in use, and only after it has matched the reference alone.

use super::cases::{Case, Numbers, Values};
use super::check::{Deviation, run_once};
use super::{Backend, Batch, Session};
use crate::error::Result;
use crate::graph::reference::{self, Rounding};
use crate::graph::{Epilogue, Graph, Op, Shape};
use half::f16;
use std::sync::Arc;
use std::time::Instant;

/// Steps of a network that compute the same thing on the same shapes.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What it does: op, weight, input, output.
    pub name: String,
    /// Indices of the steps.
    pub steps: Vec<usize>,
    /// Of one step and one row.
    pub flops: u64,
    /// Activations read and written by one step for one row.
    pub row_bytes: u64,
    /// Weights read by one step.
    pub weight_bytes: u64,
}

impl Layer {
    /// Operations of all its steps for `rows` rows.
    pub fn total_flops(&self, rows: usize) -> f64 {
        self.flops as f64 * (rows * self.steps.len()) as f64
    }

    /// Bytes all its steps have to move for `rows` rows.
    pub fn total_bytes(&self, rows: usize) -> f64 {
        (self.row_bytes as f64 * rows as f64 + self.weight_bytes as f64) * self.steps.len() as f64
    }
}

/// The layers of a network in order of first use.
pub fn layers(graph: &Graph) -> Vec<Layer> {
    let mut layers: Vec<(String, Layer)> = Vec::new();
    for (i, step) in graph.steps.iter().enumerate() {
        let key = signature(graph, i);
        if let Some((_, layer)) = layers.iter_mut().find(|(known, _)| *known == key) {
            layer.steps.push(i);
            continue;
        }
        let layer = Layer {
            name: name(graph, i),
            steps: vec![i],
            flops: graph.step_flops(step),
            row_bytes: graph.step_row_bytes(step),
            weight_bytes: graph.step_weight_bytes(step),
        };
        layers.push((key, layer));
    }
    layers.into_iter().map(|(_, layer)| layer).collect()
}

/// Everything that decides what a step computes but the numbers: its op with shapes in place of ids.
fn signature(graph: &Graph, index: usize) -> String {
    let step = &graph.steps[index];
    let mut text = String::new();
    let op = format!("{:?}", step.op);
    let mut rest = op.as_str();
    while let Some(at) = rest.find("Id(") {
        let (before, id) = rest.split_at(at + 3);
        let digits = id.find(')').unwrap_or(id.len());
        text.push_str(before);
        if before.ends_with("ParamId(") {
            let param = id[..digits].parse().ok().and_then(|n: usize| graph.params.get(n));
            text.push_str(&param.map_or(String::new(), |p| format!("{:?}", p.shape)));
        }
        rest = &id[digits..];
    }
    text.push_str(rest);
    let shapes: Vec<Shape> = step.reads().chain([step.output]).map(|id| graph.shape(id)).collect();
    format!("{text} {shapes:?} {}", graph.outputs.contains(&step.output))
}

fn name(graph: &Graph, index: usize) -> String {
    let step = &graph.steps[index];
    let op = format!("{:?}", step.op);
    let op = op.split([' ', '(']).next().unwrap_or_default();
    let shape = |shape: Shape| match shape {
        Shape::Pixels { h, w } => format!("{h}x{w}x3 u8"),
        Shape::Map { h, w, c } => format!("{h}x{w}x{c}"),
        Shape::Tokens { t, c } | Shape::Bag { r: t, c } => format!("{t}x{c}"),
    };
    let window = match step.op {
        Op::Conv2d { window, .. } | Op::MaxPool { window, .. } | Op::AvgPool { window, .. } => {
            let [r, s] = window.kernel;
            let stride = if window.stride == [1, 1] {
                String::new()
            } else {
                format!("/{}", window.stride[0])
            };
            format!(" {r}x{s}{stride}")
        }
        _ => String::new(),
    };
    let residual = if step.reads().count() > step.inputs.len() { " + residual" } else { "" };
    let from = step.inputs.first().map(|&id| shape(graph.shape(id))).unwrap_or_default();
    format!("{op}{window} {from} to {}{residual}", shape(graph.shape(step.output)))
}

/// One step as a network of its own: what it reads are the inputs, dense, and what it writes is the
/// output.
pub fn alone(graph: &Graph, index: usize) -> Case {
    let step = graph.steps[index].clone();
    let mut one = Graph { steps: vec![step.clone()], ..graph.clone() };
    one.inputs.clear();
    for id in step.reads() {
        if !one.inputs.contains(&id) {
            one.inputs.push(id);
        }
        one.tensors[id.0].slice = None;
    }
    one.tensors[step.output.0].slice = None;
    one.outputs = vec![step.output];
    one.name = name(graph, index);
    Case { name: one.name.clone(), graph: Arc::new(one), rows: 1 }
}

/// Runs each layer alone, on seeded inputs of one row, and measures it against the reference.
///
/// # Errors
/// As [`Backend::prepare`] and [`Session::run`].
pub fn verify(on: &dyn Backend, graph: &Graph, layers: &[Layer]) -> Result<Vec<Deviation>> {
    let cases: Vec<(Case, Vec<Values>)> = layers
        .iter()
        .map(|layer| {
            let case = alone(graph, layer.steps[0]);
            let inputs = case.inputs(Numbers::General, 0, case.rows);
            (case, inputs)
        })
        .collect();
    // The reference is slow, and its layers do not depend on each other.
    let rounding = on.precision().rounding();
    let want: Vec<Result<Vec<Vec<f32>>>> = std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(cases.len());
        let share = |thread: usize| {
            let cases = &cases;
            scope.spawn(move || {
                let own = (thread..cases.len()).step_by(threads);
                own.map(|i| (i, oracle(&cases[i].0, &cases[i].1, rounding))).collect::<Vec<_>>()
            })
        };
        let running: Vec<_> = (0..threads).map(share).collect();
        let mut all: Vec<_> = running.into_iter().filter_map(|t| t.join().ok()).flatten().collect();
        all.sort_by_key(|(i, _)| *i);
        all.into_iter().map(|(_, outputs)| outputs).collect()
    });
    let mut deviations = Vec::with_capacity(cases.len());
    for ((case, inputs), want) in cases.iter().zip(want) {
        let got = run_once(on, &case.graph, case.rows, &Values::view(inputs))?;
        deviations.push(Deviation::between(&got[0], &want?[0])?);
    }
    Ok(deviations)
}

fn oracle(case: &Case, inputs: &[Values], rounding: Rounding) -> Result<Vec<Vec<f32>>> {
    reference::run(&case.graph, case.rows, &Values::view(inputs), rounding)
}

/// A network readied for one number of rows, to be timed again and again.
pub struct Stopwatch {
    /// Rows of a run.
    pub rows: usize,
    case: Case,
    session: Box<dyn Session>,
    inputs: Vec<Values>,
    outputs: Vec<Vec<f32>>,
    /// Seconds of each run.
    pub runs: Vec<f64>,
    /// Seconds of each step, of each timed run; empty where the machine cannot tell.
    pub steps: Vec<Vec<f64>>,
}

impl Stopwatch {
    /// Readies a network and warms it up.
    ///
    /// # Errors
    /// As [`Backend::prepare`] and [`Session::run`].
    pub fn new(on: &dyn Backend, graph: &Arc<Graph>, rows: usize) -> Result<Stopwatch> {
        let case = Case { name: graph.name.clone(), graph: graph.clone(), rows };
        // One row repeated: the time of a run does not depend on what it is run on.
        let inputs = case.inputs(Numbers::General, 0, 1).into_iter().zip(&graph.inputs);
        let inputs = inputs.map(|(values, &id)| {
            let times = if graph.shape(id).is_bag() { 1 } else { rows };
            match values {
                Values::Pixels(v) => Values::Pixels(v.repeat(times)),
                Values::F32(v) => Values::F32(v.repeat(times)),
            }
        });
        let inputs = inputs.collect();
        let length = |&id| {
            let shape = graph.shape(id);
            shape.len() * if shape.is_bag() { 1 } else { rows }
        };
        let outputs = graph.outputs.iter().map(|id| vec![0.0; length(id)]).collect();
        let session = on.prepare(graph.clone(), rows)?;
        let (runs, steps) = (Vec::new(), Vec::new());
        let mut watch = Stopwatch { rows, case, session, inputs, outputs, runs, steps };
        watch.sample()?;
        watch.runs.clear();
        watch.steps.clear();
        Ok(watch)
    }

    /// Times one run as a whole and one step by step.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn sample(&mut self) -> Result<()> {
        let inputs = Values::view(&self.inputs);
        let mut outputs: Vec<&mut [f32]> = self.outputs.iter_mut().map(Vec::as_mut_slice).collect();
        let start = Instant::now();
        self.session.run(self.rows, &inputs, &mut outputs)?;
        self.runs.push(start.elapsed().as_secs_f64());
        let mut steps = vec![0.0; self.case.graph.steps.len()];
        if self.session.run_timed(self.rows, &inputs, &mut outputs, &mut steps)? {
            self.steps.push(steps);
        }
        Ok(())
    }

    /// Batches a second with as many under way as the session overlaps; `None` where it does not.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn overlapped_rate(&mut self, batches: usize) -> Result<Option<f64>> {
        let [Values::Pixels(pixels)] = &self.inputs[..] else { return Ok(None) };
        let Some(session) = self.session.overlapped() else { return Ok(None) };
        let mut outputs: Vec<&mut [f32]> = self.outputs.iter_mut().map(Vec::as_mut_slice).collect();
        let mut free = Vec::new();
        for _ in 0..session.lanes() {
            let mut memory = session.lend(pixels.len())?;
            memory.copy_from_slice(pixels);
            free.push(memory);
        }
        let start = Instant::now();
        let (mut given, mut back) = (0, 0);
        while back < batches {
            match free.pop().filter(|_| given < batches) {
                Some(memory) => {
                    session.submit(Batch::new(self.rows, memory))?;
                    given += 1;
                }
                None => {
                    free.push(session.collect(&mut outputs)?);
                    back += 1;
                }
            }
        }
        Ok(Some(batches as f64 / start.elapsed().as_secs_f64()))
    }

    /// How a layer is computed, where that is not by its definition.
    pub fn algorithm(&self, layer: &Layer) -> Option<&'static str> {
        self.session.algorithm(*layer.steps.first()?)
    }

    /// Seconds of a layer in each timed run.
    pub fn layer(&self, layer: &Layer) -> Vec<f64> {
        let sum = |steps: &Vec<f64>| layer.steps.iter().filter_map(|&i| steps.get(i)).sum();
        self.steps.iter().map(sum).collect()
    }
}

/// Operations per second of a large matrix product on a machine, and its side. The matrices grow until
/// a product takes long enough to be timed well.
///
/// # Errors
/// As [`Backend::prepare`] and [`Session::run`].
pub fn gemm_rate(on: &dyn Backend) -> Result<(f64, usize)> {
    let mut n = 128;
    loop {
        let mut graph = Graph::new("product");
        let x = graph.input(Shape::Tokens { t: 1, c: n });
        let weight = graph.param_f16("w", &[n, n], vec![f16::from_f32(0.01); n * n])?;
        let y = graph.push(Op::Linear { weight, epilogue: Epilogue::default() }, &[x])?;
        graph.output(y);
        let mut watch = Stopwatch::new(on, &Arc::new(graph), n)?;
        for _ in 0..3 {
            watch.sample()?;
        }
        let seconds = watch.steps.iter().map(|s| s[0]).fold(f64::INFINITY, f64::min);
        // A product of 8192 fills every GPU there is.
        if seconds > 1e-2 || n == 8192 || !seconds.is_finite() {
            return Ok((2.0 * (n as f64).powi(3) / seconds.max(1e-9), n));
        }
        n *= 2;
    }
}

/// The middle of some numbers, or the mean of the two in the middle; 0 for none.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n => (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Window;

    fn two_convolutions(same: bool) -> Graph {
        let mut g = Graph::new("g");
        let mut x = g.input(Shape::Map { h: 6, w: 6, c: 8 });
        for i in 0..2 {
            let dilation = if same || i == 0 { 1 } else { 2 };
            let weight = g.param_f16("w", &[8, 3, 3, 8], vec![f16::ONE; 576]).unwrap();
            let window = Window { dilation: [dilation; 2], ..Window::square(3, 1, dilation) };
            x = g.push(Op::Conv2d { weight, window, epilogue: Epilogue::default() }, &[x]).unwrap();
        }
        let y = g.push(Op::Flatten, &[x]).unwrap();
        g.output(y);
        g
    }

    #[test]
    fn equal_steps_are_one_layer() {
        let found = layers(&two_convolutions(true));
        assert_eq!(
            found.iter().map(|l| l.steps.clone()).collect::<Vec<_>>(),
            [vec![0, 1], vec![2]]
        );
        assert_eq!(found[0].flops, 2 * 36 * 576);
        assert_eq!(found[0].total_flops(3), (2 * 36 * 576 * 3 * 2) as f64);
        assert!(found[0].name.starts_with("Conv2d 3x3 6x6x8 to 6x6x8"), "{}", found[0].name);
        // Another dilation is another computation, though every shape is the same.
        assert_eq!(layers(&two_convolutions(false)).len(), 3);
    }

    #[test]
    fn a_step_alone_reads_dense_inputs() {
        let mut g = Graph::new("concat");
        let x = g.input(Shape::Map { h: 2, w: 2, c: 3 });
        let parent = g.tensor(Shape::Map { h: 2, w: 2, c: 6 });
        let left = g.push_into(Op::Copy, &[x], parent, 0).unwrap();
        g.push_into(Op::Copy, &[left], parent, 3).unwrap();
        g.output(parent);
        let case = alone(&g, 1);
        assert!(crate::graph::plan::Plan::new(&case.graph).is_ok());
        let inputs = case.inputs(Numbers::Integer, 0, 1);
        let out = oracle(&case, &inputs, Rounding::F16).unwrap();
        let [Values::F32(values)] = &inputs[..] else { unreachable!() };
        assert_eq!(out[0], *values);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }
}
