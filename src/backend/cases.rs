//! Every op in every shape that matters, as graphs of one step: the cases that tests and
//! `histokern check` run, the benchmarks time and the FLOP account counts.

mod fused;
mod vision;

use crate::error::Result;
use crate::graph::{
    Act, Dense, Epilogue, Graph, Input, Interpolation, Op, ParamId, Reduce, Shape, TensorId, Window,
};
use half::f16;
use std::sync::Arc;

/// What kind of numbers weights and inputs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Small integers (scales are powers of two): sums are exact in f32, whatever their order.
    Integer,
    /// Uniform in f16, weights scaled so that outputs stay near 1.
    General,
}

/// A graph of one step, or of the few that the step needs around it.
#[derive(Clone, Debug)]
pub struct Case {
    /// What tells it from the others.
    pub name: String,
    /// The graph; its steps read inputs of the graph.
    pub graph: Arc<Graph>,
    /// Rows to compare with the reference.
    pub rows: usize,
}

impl Case {
    /// Whether a row of the output depends on that row of the inputs alone.
    pub fn rows_are_independent(&self) -> bool {
        let bag = self.graph.tensors.iter().any(|t| t.shape.is_bag());
        !bag && !self.graph.steps.iter().any(|s| matches!(s.op, Op::BatchNorm { .. }))
    }

    /// Whether integers in give results exact in f32.
    pub fn is_exact(&self) -> bool {
        let act = |act: Act| matches!(act, Act::None | Act::Relu);
        self.graph.steps.iter().all(|s| match &s.op {
            Op::Conv2d { epilogue, .. }
            | Op::Linear { epilogue, .. }
            | Op::PreactConv1x1 { epilogue, .. }
            | Op::ConvTranspose2x2 { epilogue, .. } => act(epilogue.act),
            Op::GatedLinear { act: gate, .. } => act(*gate),
            Op::Affine { act: then, .. } => act(*then),
            Op::Upsample { mode, .. } => matches!(mode, Interpolation::Nearest),
            Op::BagReduce { reduce: Reduce::Percentile(q) } => {
                (Reduce::rank(*q, self.rows).1 * 4.0).fract() == 0.0
            }
            Op::BatchNorm { .. } | Op::LayerNorm { .. } | Op::RmsNorm { .. } => false,
            Op::AttentionScore { .. } | Op::AttentionPool => false,
            Op::Attention { .. } | Op::Softmax => false,
            Op::Normalize { .. } | Op::Patches { .. } | Op::Embed { .. } => true,
            Op::MaxPool { .. } | Op::AvgPool { .. } | Op::AdaptiveAvgPool { .. } => true,
            Op::TokenMean { .. } | Op::BagReduce { .. } | Op::RowDot { .. } => true,
            Op::Flatten | Op::Copy => true,
        })
    }

    /// Whether a convolution of it may be computed by Winograd's algorithm, which rounds.
    pub fn may_be_transformed(&self) -> bool {
        self.graph.steps.iter().any(|s| match s.op {
            Op::Conv2d { window: Window { kernel, stride, dilation, .. }, .. } => {
                kernel == [3, 3] && stride == [1, 1] && dilation == [1, 1]
            }
            _ => false,
        })
    }

    /// Relative L2 distance from the reference that is still right: none where integers are exact,
    /// the order of f32 sums and the exponentials of a library within one step, and the rounding of
    /// what is stored between steps or, in attention, between its two products.
    pub fn bound(&self, numbers: Numbers) -> f64 {
        let attention = self.graph.steps.iter().any(|s| matches!(s.op, Op::Attention { .. }));
        let rounded = if attention { 5e-4 } else { 0.0 };
        match numbers {
            Numbers::Integer if self.is_exact() => 0.0,
            _ if self.graph.steps.len() == 1 => 5e-6 + rounded,
            _ => 5e-4 + rounded,
        }
    }

    /// The inputs of rows `first..first + rows` of an endless deterministic batch.
    pub fn inputs(&self, numbers: Numbers, first: usize, rows: usize) -> Vec<Values> {
        let row = |seed: usize, shape: Shape, row: usize| {
            let mut random = Random((seed as u64) << 32 | row as u64);
            let pixels = matches!(shape, Shape::Pixels { .. });
            match pixels {
                true => Values::Pixels((0..shape.len()).map(|_| random.next() as u8).collect()),
                false => Values::F32((0..shape.len()).map(|_| random.value(numbers)).collect()),
            }
        };
        let whole = |(seed, &id): (usize, &TensorId)| {
            let shape = self.graph.shape(id);
            let rows = if shape.is_bag() { 0..1 } else { first..first + rows };
            rows.map(|r| row(seed, shape, r)).reduce(Values::append).expect("at least one row")
        };
        self.graph.inputs.iter().enumerate().map(whole).collect()
    }
}

/// Owned numbers of an input.
#[derive(Clone, Debug)]
pub enum Values {
    /// For pixels.
    Pixels(Vec<u8>),
    /// For everything else.
    F32(Vec<f32>),
}

impl Values {
    fn append(self, other: Values) -> Values {
        match (self, other) {
            (Values::Pixels(a), Values::Pixels(b)) => Values::Pixels([a, b].concat()),
            (Values::F32(a), Values::F32(b)) => Values::F32([a, b].concat()),
            _ => unreachable!("rows of one input are alike"),
        }
    }

    /// As a session takes them.
    pub fn view(values: &[Values]) -> Vec<Input<'_>> {
        let mut views = Vec::new();
        for value in values {
            views.push(match value {
                Values::Pixels(v) => Input::Pixels(v),
                Values::F32(v) => Input::Values(v),
            });
        }
        views
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn value(&mut self, numbers: Numbers) -> f32 {
        match numbers {
            Numbers::Integer => (self.next() >> 33) as f32 % 7.0 - 3.0,
            Numbers::General => f16::from_f32(self.uniform()).to_f32(),
        }
    }
}

/// Builds one case.
struct Builder {
    graph: Graph,
    numbers: Numbers,
    random: Random,
}

impl Builder {
    fn new(name: &str, numbers: Numbers) -> Builder {
        let seed = name.bytes().fold(7, |h: u64, b| h.wrapping_mul(31).wrapping_add(b as u64));
        Builder { graph: Graph::new(name), numbers, random: Random(seed) }
    }

    fn weight(&mut self, shape: &[usize]) -> Result<ParamId> {
        let depth: usize = shape[1..].iter().product();
        let gain = match self.numbers {
            Numbers::Integer => 1.0,
            Numbers::General => (3.0 / depth as f32).sqrt() * 1.7,
        };
        let n = depth * shape[0];
        let data = (0..n).map(|_| f16::from_f32(self.random.value(self.numbers) * gain)).collect();
        self.graph.param_f16("weight", shape, data)
    }

    fn vector(&mut self, n: usize) -> Result<ParamId> {
        let data = (0..n).map(|_| self.random.value(self.numbers)).collect();
        self.graph.param_f32("vector", &[n], data)
    }

    /// Powers of two between 1/2 and 4 for integers.
    fn scale(&mut self, n: usize) -> Result<ParamId> {
        let data = (0..n)
            .map(|_| match self.numbers {
                Numbers::Integer => [0.5, 1.0, 2.0, 4.0][(self.random.next() >> 62) as usize],
                Numbers::General => self.random.uniform() + 1.5,
            })
            .collect();
        self.graph.param_f32("scale", &[n], data)
    }

    fn dense(&mut self, k: usize, c: usize) -> Result<Dense> {
        Ok(Dense { weight: self.weight(&[k, c])?, bias: Some(self.vector(k)?) })
    }

    fn done(mut self, output: TensorId, rows: usize) -> Case {
        self.graph.output(output);
        Case { name: self.graph.name.clone(), graph: Arc::new(self.graph), rows }
    }
}

/// Which parts of an epilogue a case has.
#[derive(Clone, Copy, Debug)]
struct Parts {
    scale: bool,
    bias: bool,
    residual: bool,
    act: Act,
}

const PLAIN: Parts = Parts { scale: false, bias: false, residual: false, act: Act::None };
const BIAS_RELU: Parts = Parts { scale: false, bias: true, residual: false, act: Act::Relu };
const FULL: Parts = Parts { scale: true, bias: true, residual: true, act: Act::Relu };

/// A convolution of an `h x w x c` map to `k` channels.
fn conv(
    numbers: Numbers,
    rows: usize,
    [h, w, c, k]: [usize; 4],
    window: Window,
    parts: Parts,
) -> Result<Case> {
    let Window { kernel: [r, s], stride, pad, dilation } = window;
    let name = format!(
        "conv {r}x{s} stride {stride:?} pad {pad:?} dilation {dilation:?} {h}x{w}x{c} to {k}, {parts:?}"
    );
    let mut b = Builder::new(&name, numbers);
    let x = b.graph.input(Shape::Map { h, w, c });
    let size = |axis, n| window.output(axis, n).expect("the window fits");
    let out = Shape::Map { h: size(0, h), w: size(1, w), c: k };
    let epilogue = b.epilogue(parts, out, k)?;
    let weight = b.weight(&[k, r, s, c])?;
    let y = b.graph.push(Op::Conv2d { weight, window, epilogue }, &[x])?;
    Ok(b.done(y, rows))
}

impl Builder {
    fn epilogue(&mut self, parts: Parts, out: Shape, k: usize) -> Result<Epilogue> {
        Ok(Epilogue {
            scale: if parts.scale { Some(self.scale(k)?) } else { None },
            bias: if parts.bias { Some(self.vector(k)?) } else { None },
            residual: parts.residual.then(|| self.graph.input(out)),
            act: parts.act,
        })
    }
}

fn linear(n: Numbers, rows: usize, [t, c, k]: [usize; 3], parts: Parts) -> Result<Case> {
    let mut b = Builder::new(&format!("linear {t} x {c} to {k}, {parts:?}"), n);
    let x = b.graph.input(Shape::Tokens { t, c });
    let epilogue = b.epilogue(parts, Shape::Tokens { t, c: k }, k)?;
    let weight = b.weight(&[k, c])?;
    let y = b.graph.push(Op::Linear { weight, epilogue }, &[x])?;
    Ok(b.done(y, rows))
}

/// A step without parameters on a map.
fn mapped(n: Numbers, [h, w, c]: [usize; 3], op: Op) -> Result<Case> {
    let mut b = Builder::new(&format!("{op:?} of {h}x{w}x{c}"), n);
    let x = b.graph.input(Shape::Map { h, w, c });
    let y = b.graph.push(op, &[x])?;
    Ok(b.done(y, 2))
}

fn batch_norm(n: Numbers, rows: usize, [h, w, c]: [usize; 3], act: Act) -> Result<Case> {
    let mut b = Builder::new(&format!("batch norm of {rows} x {h}x{w}x{c}, {act:?}"), n);
    let x = b.graph.input(Shape::Map { h, w, c });
    let (gamma, beta) = (b.scale(c)?, b.vector(c)?);
    let y = b.graph.push(Op::BatchNorm { gamma, beta, eps: 1e-5, act }, &[x])?;
    Ok(b.done(y, rows))
}

fn score(n: Numbers, rows: usize, [c, d, a]: [usize; 3], gated: bool) -> Result<Case> {
    let mut b = Builder::new(&format!("scores of {rows} x {c} by {d} to {a}, gated {gated}"), n);
    let x = b.graph.input(Shape::Tokens { t: 1, c });
    let v = b.dense(d, c)?;
    let u = if gated { Some(b.dense(d, c)?) } else { None };
    let w = b.dense(a, d)?;
    let y = b.graph.push(Op::AttentionScore { v, u, w }, &[x])?;
    Ok(b.done(y, rows))
}

fn pool(n: Numbers, rows: usize, [a, c]: [usize; 2]) -> Result<Case> {
    let mut b = Builder::new(&format!("attention pool of {rows} x {c} in {a} branches"), n);
    let scores = b.graph.input(Shape::Tokens { t: 1, c: a });
    let values = b.graph.input(Shape::Tokens { t: 1, c });
    let y = b.graph.push(Op::AttentionPool, &[scores, values])?;
    Ok(b.done(y, rows))
}

/// Scores that are an output and pooled with as well, then one classifier for each branch.
fn attention(n: Numbers, rows: usize, [c, a]: [usize; 2]) -> Result<Case> {
    let mut b = Builder::new(&format!("attention head of {rows} x {c} in {a} branches"), n);
    let x = b.graph.input(Shape::Tokens { t: 1, c });
    let v = b.dense(24, c)?;
    let u = Some(b.dense(24, c)?);
    let w = b.dense(a, 24)?;
    let scores = b.graph.push(Op::AttentionScore { v, u, w }, &[x])?;
    let bag = b.graph.push(Op::AttentionPool, &[scores, x])?;
    let weight = b.weight(&[a, c])?;
    let logits = b.graph.push(Op::RowDot { weight, bias: None }, &[bag])?;
    b.graph.output(scores);
    Ok(b.done(logits, rows))
}

fn row_dot(n: Numbers, [r, c]: [usize; 2], bias: bool) -> Result<Case> {
    let mut b = Builder::new(&format!("row dot {r} x {c}, bias {bias}"), n);
    let x = b.graph.input(Shape::Bag { r, c });
    let weight = b.weight(&[r, c])?;
    let bias = if bias { Some(b.vector(r)?) } else { None };
    let y = b.graph.push(Op::RowDot { weight, bias }, &[x])?;
    Ok(b.done(y, 1))
}

/// Two convolutions and a copy into one concatenation, itself an output, of which a third reads a
/// slice of the middle: pitches wider than channels on both sides.
fn slices(n: Numbers) -> Result<Case> {
    let mut b = Builder::new("slices", n);
    let x = b.graph.input(Shape::Map { h: 5, w: 6, c: 11 });
    let all = b.graph.tensor(Shape::Map { h: 5, w: 6, c: 11 + 20 + 9 });
    b.graph.push_into(Op::Copy, &[x], all, 0)?;
    let window = Window::square(3, 1, 1);
    for (k, at) in [(20, 11), (9, 31)] {
        let weight = b.weight(&[k, 3, 3, 11])?;
        let epilogue = Epilogue::default();
        b.graph.push_into(Op::Conv2d { weight, window, epilogue }, &[x], all, at)?;
    }
    let middle = TensorId(b.graph.tensors.len());
    let shape = Shape::Map { h: 5, w: 6, c: 24 };
    b.graph.tensors.push(crate::graph::Tensor { shape, slice: Some((all, 7)) });
    // Keeps sums of sums of integers small enough to be exact in f16.
    let y = b
        .graph
        .push(Op::MaxPool { window: Window::square(2, 2, 0), ceil_mode: false }, &[middle])?;
    let weight = b.weight(&[17, 3, 2, 24])?;
    let window = Window { kernel: [3, 2], stride: [1, 2], pad: [1, 1], dilation: [1, 1] };
    let direct = Op::Conv2d { weight, window, epilogue: Epilogue::default() };
    let z = b.graph.push(direct, &[middle])?;
    b.graph.output(y);
    b.graph.output(all);
    Ok(b.done(z, 2))
}

/// A residual that starts between two chunks of 16 bytes.
fn slice_as_residual(n: Numbers) -> Result<Case> {
    let mut b = Builder::new("slice as residual", n);
    let x = b.graph.input(Shape::Map { h: 5, w: 6, c: 40 });
    let middle = TensorId(b.graph.tensors.len());
    let shape = Shape::Map { h: 5, w: 6, c: 24 };
    b.graph.tensors.push(crate::graph::Tensor { shape, slice: Some((x, 7)) });
    let weight = b.weight(&[24, 3, 3, 40])?;
    let epilogue = Epilogue { residual: Some(middle), act: Act::Relu, ..Epilogue::default() };
    let window = Window::square(3, 1, 1);
    let y = b.graph.push(Op::Conv2d { weight, window, epilogue }, &[x])?;
    Ok(b.done(y, 2))
}

/// Windows over enough channels for copies in whole slices, and products of many tiles: the last of
/// them begin or end outside, and one block takes several.
fn windows(n: Numbers) -> Result<Vec<Case>> {
    let square = Window::square;
    let flat = Window { kernel: [1, 7], pad: [0, 3], ..square(1, 1, 0) };
    let uneven = Window { kernel: [3, 2], stride: [1, 2], pad: [1, 1], dilation: [2, 1] };
    Ok(vec![
        conv(n, 2, [11, 12, 40, 24], Window { dilation: [2; 2], ..square(3, 1, 2) }, BIAS_RELU)?,
        conv(n, 3, [13, 11, 64, 72], square(3, 2, 1), FULL)?,
        conv(n, 2, [9, 10, 64, 33], square(5, 1, 2), PLAIN)?,
        conv(n, 2, [10, 9, 48, 18], flat, BIAS_RELU)?,
        conv(n, 2, [8, 9, 56, 16], uneven, PLAIN)?,
        conv(n, 4, [12, 12, 48, 136], square(3, 1, 1), FULL)?,
        conv(n, 4, [12, 12, 3, 136], square(3, 1, 1), BIAS_RELU)?,
        // Longer than any ring goes twice round.
        linear(n, 600, [1, 1100, 72], FULL)?,
    ])
}

fn normalize(n: Numbers) -> Result<Case> {
    let mut b = Builder::new("normalize 9x7", n);
    let x = b.graph.input(Shape::Pixels { h: 9, w: 7 });
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    let y = b.graph.push(Op::Normalize { mean, std }, &[x])?;
    Ok(b.done(y, 2))
}

/// Every op and every shape of it, small enough for the slowest instruction set.
pub fn all(n: Numbers) -> Result<Vec<Case>> {
    let square = Window::square;
    let tall = |kernel, pad| Window { kernel, pad, ..square(1, 1, 0) };
    let dilated = |by, pad| Window { dilation: [by; 2], ..square(3, 1, pad) };
    let mut cases = vec![
        conv(n, 2, [7, 9, 16, 33], square(1, 1, 0), PLAIN)?,
        conv(n, 2, [7, 9, 40, 24], square(1, 2, 0), BIAS_RELU)?,
        conv(n, 2, [8, 10, 64, 40], square(3, 1, 1), BIAS_RELU)?,
        conv(n, 2, [13, 11, 20, 33], square(3, 2, 1), BIAS_RELU)?,
        conv(n, 2, [9, 9, 37, 1], square(3, 1, 1), PLAIN)?,
        conv(n, 2, [9, 8, 3, 16], square(3, 1, 1), BIAS_RELU)?,
        conv(n, 2, [9, 8, 1, 8], square(3, 1, 1), PLAIN)?,
        conv(n, 1, [9, 9, 300, 70], square(3, 1, 1), BIAS_RELU)?,
        conv(n, 2, [11, 12, 18, 20], square(5, 1, 2), BIAS_RELU)?,
        conv(n, 2, [23, 21, 3, 64], square(7, 2, 3), BIAS_RELU)?,
        conv(n, 2, [10, 9, 24, 18], tall([1, 7], [0, 3]), PLAIN)?,
        conv(n, 2, [10, 9, 24, 18], tall([7, 1], [3, 0]), PLAIN)?,
        conv(n, 2, [12, 11, 16, 24], dilated(2, 2), BIAS_RELU)?,
        conv(n, 2, [12, 11, 3, 24], dilated(4, 4), PLAIN)?,
        conv(n, 2, [12, 11, 8, 8], square(3, 1, 0), PLAIN)?,
        conv(n, 2, [3, 3, 8, 8], square(3, 1, 0), PLAIN)?,
        conv(n, 2, [2, 2, 8, 8], square(3, 1, 2), PLAIN)?,
        conv(n, 2, [1, 1, 512, 300], square(1, 1, 0), PLAIN)?,
        linear(n, 9, [1, 300, 70], FULL)?,
        linear(n, 2, [5, 65, 257], BIAS_RELU)?,
        linear(n, 1, [1, 1025, 1], PLAIN)?,
        mapped(n, [9, 9, 19], Op::Flatten)?,
        mapped(n, [4, 5, 3], Op::Copy)?,
        batch_norm(n, 3, [6, 5, 70], Act::Relu)?,
        batch_norm(n, 1, [1, 2, 3], Act::None)?,
        score(n, 1, [64, 32, 1], true)?,
        score(n, 150, [70, 33, 3], true)?,
        score(n, 12, [300, 300, 1], false)?,
        score(n, 5000, [20, 16, 1], true)?,
        pool(n, 1, [1, 5])?,
        pool(n, 13, [3, 130])?,
        pool(n, 5000, [2, 40])?,
        attention(n, 37, [48, 2])?,
        row_dot(n, [3, 300], true)?,
        row_dot(n, [1, 8], false)?,
        slices(n)?,
        slice_as_residual(n)?,
        normalize(n)?,
    ];
    cases.extend(windows(n)?);
    for act in [Act::None, Act::Relu, Act::Tanh, Act::Sigmoid] {
        for bits in 0..8 {
            let [scale, bias, residual] = [1, 2, 4].map(|bit| bits & bit != 0);
            let parts = Parts { scale, bias, residual, act };
            cases.push(conv(n, 2, [5, 6, 12, 35], square(3, 1, 1), parts)?);
        }
    }
    for window in [square(2, 2, 0), square(3, 2, 1), square(3, 1, 1), tall([3, 2], [1, 1])] {
        cases.push(mapped(n, [9, 8, 21], Op::MaxPool { window, ceil_mode: false })?);
        for count_include_pad in [false, true] {
            cases.push(mapped(n, [9, 8, 300], Op::AvgPool { window, count_include_pad })?);
        }
    }
    cases.push(mapped(n, [12, 11, 5], Op::MaxPool { window: dilated(2, 2), ceil_mode: false })?);
    for [h, w] in [[1, 1], [7, 7], [3, 5], [13, 20]] {
        cases.push(mapped(n, [10, 13, 24], Op::AdaptiveAvgPool { h, w })?);
    }
    cases.extend(vision::vision(n)?);
    cases.extend(fused::fused(n)?);
    Ok(cases)
}

/// Layers of the networks this program runs, for benchmarks.
pub fn layers() -> Result<Vec<Case>> {
    let mut layers = convolutions()?;
    layers.extend(vision::layers()?);
    Ok(layers)
}

fn convolutions() -> Result<Vec<Case>> {
    let n = Numbers::General;
    let same = |k| Window::square(k, 1, k / 2);
    let conv = |shape, window| conv(n, 1, shape, window, BIAS_RELU);
    Ok(vec![
        // VGG16 at 224 pixels.
        conv([224, 224, 3, 64], same(3))?,
        conv([224, 224, 64, 64], same(3))?,
        conv([112, 112, 64, 128], same(3))?,
        conv([56, 56, 256, 256], same(3))?,
        conv([28, 28, 512, 512], same(3))?,
        conv([14, 14, 512, 512], same(3))?,
        // ResNet-50 at 224 pixels.
        conv([224, 224, 3, 64], Window::square(7, 2, 3))?,
        conv([56, 56, 64, 256], same(1))?,
        conv([56, 56, 256, 64], same(1))?,
        conv([28, 28, 128, 128], same(3))?,
        conv([14, 14, 1024, 256], same(1))?,
        conv([14, 14, 256, 256], same(3))?,
        conv([7, 7, 512, 2048], same(1))?,
        // A head over a bag of 5,000 instances.
        score(n, 5000, [512, 256, 1], true)?,
    ])
}
