//! A network as data: a list of fused steps over tensors whose shapes are known when it is built.
//!
//! Builders in [`crate::models`] and [`crate::heads`] write a [`Graph`] once, [`plan`] lays its
//! activations out in one arena, and every backend executes the same steps. [`mod@reference`] is the
//! oracle: each op written from its definition in plain f32 loops.
//!
//! **Rows.** Every run has a number of rows: tiles in a batch (B) for encoders, instances in a bag
//! (N) for heads. A row is implicit and outermost in all shapes but [`Shape::Bag`], of which there
//! is one per run.
//!
//! **Numbers.** Activations are stored as FP16, products are accumulated and epilogues computed in
//! f32, and a graph output is f32 and not rounded to FP16 (a step that also reads it sees it
//! rounded).

pub mod plan;
pub mod reference;
mod run;

pub use run::{Input, check_run};

use crate::error::{Error, Result};
use half::f16;
use std::sync::Arc;

/// Index of a tensor in [`Graph::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub usize);

/// Index of a parameter in [`Graph::params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamId(pub usize);

/// The shape of one row of a tensor (or, for `Bag`, of the whole tensor).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each variant's text names its fields")]
pub enum Shape {
    /// `[H, W, 3]` u8 RGB pixels: only ever a graph input.
    Pixels { h: usize, w: usize },
    /// `[H, W, C]`, channels fastest.
    Map { h: usize, w: usize, c: usize },
    /// `[T, C]`; a feature vector is `T = 1`.
    Tokens { t: usize, c: usize },
    /// `[R, C]` once per run, whatever the number of rows: what pooling over a bag leaves.
    Bag { r: usize, c: usize },
}

impl Shape {
    /// Elements in one row (in the whole tensor for `Bag`).
    pub fn len(&self) -> usize {
        self.pixels() * self.channels()
    }

    /// Whether the shape holds no element; never true in a graph that was built.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The fastest axis.
    pub fn channels(&self) -> usize {
        match *self {
            Shape::Pixels { .. } => 3,
            Shape::Map { c, .. } | Shape::Tokens { c, .. } | Shape::Bag { c, .. } => c,
        }
    }

    /// Positions in one row: `H * W`, `T` or `R`.
    pub fn pixels(&self) -> usize {
        match *self {
            Shape::Pixels { h, w } | Shape::Map { h, w, .. } => h * w,
            Shape::Tokens { t, .. } => t,
            Shape::Bag { r, .. } => r,
        }
    }

    /// Whether there is one of these per run rather than per row.
    pub fn is_bag(&self) -> bool {
        matches!(self, Shape::Bag { .. })
    }
}

/// A tensor of a graph. A slice lives inside its parent's channels: writing it is concatenation,
/// and its row pitch is the parent's channel count.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its own shape.
    pub shape: Shape,
    /// `(parent, first channel)` when the tensor is a channel slice of a larger one.
    pub slice: Option<(TensorId, usize)>,
}

/// The numbers of a parameter.
#[derive(Clone, Debug)]
pub enum ParamData {
    /// Convolution and linear weights.
    F16(Arc<[f16]>),
    /// Scales, biases and normalisation parameters.
    F32(Arc<[f32]>),
}

impl ParamData {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            ParamData::F16(v) => v.len(),
            ParamData::F32(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A weight or bias with its name in the checkpoint it came from.
#[derive(Clone, Debug)]
pub struct Param {
    /// State-dict key, for messages.
    pub name: String,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
    /// The numbers.
    pub data: ParamData,
}

/// An activation function, applied in f32 before the result is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Act {
    /// The identity.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
}

/// What follows a convolution or linear layer before its result is stored:
/// `act(acc * scale[k] + bias[k] + residual)`. A folded batch norm is a scale and a bias.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue {
    /// `[K]` f32, absent means 1.
    pub scale: Option<ParamId>,
    /// `[K]` f32, absent means 0.
    pub bias: Option<ParamId>,
    /// Added before the activation; same shape as the output.
    pub residual: Option<TensorId>,
    /// The activation.
    pub act: Act,
}

/// A weight matrix and its bias.
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    /// `[K, C]` f16.
    pub weight: ParamId,
    /// `[K]` f32.
    pub bias: Option<ParamId>,
}

/// Window geometry `[vertical, horizontal]` of a convolution or pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Kernel size R, S.
    pub kernel: [usize; 2],
    /// Step between outputs.
    pub stride: [usize; 2],
    /// Border on each side.
    pub pad: [usize; 2],
    /// Step between kernel taps.
    pub dilation: [usize; 2],
}

impl Window {
    /// A square window.
    pub fn square(kernel: usize, stride: usize, pad: usize) -> Self {
        Window { kernel: [kernel; 2], stride: [stride; 2], pad: [pad; 2], dilation: [1; 2] }
    }

    /// Output size along `axis` for an input of `n`, or `None` when the window does not fit.
    pub fn output(&self, axis: usize, n: usize) -> Option<usize> {
        let extent = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
        (n + 2 * self.pad[axis]).checked_sub(extent).map(|free| free / self.stride[axis] + 1)
    }
}

/// Every operation a backend must execute.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "each variant's text names its fields")]
pub enum Op {
    /// `Pixels -> Map { c: 3 }`: `(x / 255 - mean) / std`.
    Normalize { mean: [f32; 3], std: [f32; 3] },
    /// `Map -> Map`, weight `[K, R, S, C]` f16, zero padding.
    Conv2d { weight: ParamId, window: Window, epilogue: Epilogue },
    /// Over the channel axis of `Tokens` or `Bag`, weight `[K, C]` f16.
    Linear { weight: ParamId, epilogue: Epilogue },
    /// Batch norm of a `Map` with the statistics of this run: mean and biased variance per channel
    /// over all rows and positions, then `act((x - mean) / sqrt(var + eps) * gamma + beta)`.
    BatchNorm { gamma: ParamId, beta: ParamId, eps: f32, act: Act },
    /// Maximum over a window; padding never wins.
    MaxPool { window: Window },
    /// Mean over a window, padding counted as zeros or left out.
    AvgPool { window: Window, count_include_pad: bool },
    /// `Map -> Map { h, w }` as PyTorch's AdaptiveAvgPool2d; `1 x 1` is global average pooling.
    AdaptiveAvgPool { h: usize, w: usize },
    /// `Map -> Tokens { t: 1 }` in PyTorch's channel-major order `c * H * W + h * W + w`.
    Flatten,
    /// `Tokens -> Tokens`: attention logits `w(tanh(v x) [* sigmoid(u x)])`, one column per branch
    /// (Ilse et al. 2018, arXiv:1802.04712).
    AttentionScore { v: Dense, u: Option<Dense>, w: Dense },
    /// `[scores Tokens { 1, A }, values Tokens { 1, C }] -> Bag { A, C }`: softmax of each score
    /// column over the rows of the run, then the weighted sum of the values.
    AttentionPool,
    /// `Bag { R, C } -> Bag { 1, R }`: row r against row r of a `[R, C]` weight.
    RowDot { weight: ParamId, bias: Option<ParamId> },
    /// Writes its input to its output, which is a slice: the way an input enters a concatenation.
    Copy,
}

/// One fused operation. `inputs` excludes an epilogue's residual; see [`Step::reads`].
#[derive(Clone, Debug)]
pub struct Step {
    /// What to do.
    pub op: Op,
    /// What it works on.
    pub inputs: Vec<TensorId>,
    /// What it writes.
    pub output: TensorId,
}

impl Step {
    /// Every tensor the step reads, the residual included.
    pub fn reads(&self) -> impl Iterator<Item = TensorId> + '_ {
        let residual = match self.op {
            Op::Conv2d { epilogue, .. } | Op::Linear { epilogue, .. } => epilogue.residual,
            _ => None,
        };
        self.inputs.iter().copied().chain(residual)
    }
}

/// A network: its steps in execution order, its tensors and its parameters.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// For messages and plans.
    pub name: String,
    /// Steps in execution order.
    pub steps: Vec<Step>,
    /// Every tensor, inputs and slices included.
    pub tensors: Vec<Tensor>,
    /// Every parameter.
    pub params: Vec<Param>,
    /// Tensors given to each run, in order.
    pub inputs: Vec<TensorId>,
    /// Tensors handed back by each run as f32, in order.
    pub outputs: Vec<TensorId>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Self {
        Graph { name: name.into(), ..Default::default() }
    }

    /// The shape of a tensor.
    pub fn shape(&self, id: TensorId) -> Shape {
        self.tensors[id.0].shape
    }

    /// A parameter.
    pub fn param(&self, id: ParamId) -> &Param {
        &self.params[id.0]
    }

    /// Adds a graph input.
    pub fn input(&mut self, shape: Shape) -> TensorId {
        let id = self.tensor(shape);
        self.inputs.push(id);
        id
    }

    /// Declares a tensor, for use as the destination of slices.
    pub fn tensor(&mut self, shape: Shape) -> TensorId {
        self.tensors.push(Tensor { shape, slice: None });
        TensorId(self.tensors.len() - 1)
    }

    /// Marks a tensor as an output of the graph.
    pub fn output(&mut self, id: TensorId) {
        self.outputs.push(id);
    }

    /// Adds an FP16 parameter.
    ///
    /// # Errors
    /// [`crate::Kind::Weights`] when the element count is not the product of the shape.
    pub fn param_f16(&mut self, name: &str, shape: &[usize], data: Vec<f16>) -> Result<ParamId> {
        self.add_param(name, shape, ParamData::F16(data.into()))
    }

    /// Adds an f32 parameter.
    ///
    /// # Errors
    /// As [`Graph::param_f16`].
    pub fn param_f32(&mut self, name: &str, shape: &[usize], data: Vec<f32>) -> Result<ParamId> {
        self.add_param(name, shape, ParamData::F32(data.into()))
    }

    fn add_param(&mut self, name: &str, shape: &[usize], data: ParamData) -> Result<ParamId> {
        let want = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if want != Some(data.len()) || data.is_empty() {
            return Err(Error::weights(format!(
                "{name}: {} elements for shape {shape:?}",
                data.len()
            )));
        }
        self.params.push(Param { name: name.into(), shape: shape.to_vec(), data });
        Ok(ParamId(self.params.len() - 1))
    }

    /// Appends a step, inferring the shape of its output.
    ///
    /// # Errors
    /// [`crate::Kind::Weights`] when shapes or parameters do not fit together.
    pub fn push(&mut self, op: Op, inputs: &[TensorId]) -> Result<TensorId> {
        let shape = self.infer(&op, inputs)?;
        let output = self.tensor(shape);
        self.steps.push(Step { op, inputs: inputs.to_vec(), output });
        Ok(output)
    }

    /// Appends a step that writes channels `offset..` of `parent`.
    ///
    /// # Errors
    /// As [`Graph::push`], and when the result does not fit inside the parent.
    pub fn push_into(
        &mut self,
        op: Op,
        inputs: &[TensorId],
        parent: TensorId,
        offset: usize,
    ) -> Result<TensorId> {
        let shape = self.infer(&op, inputs)?;
        let into = self.shape(parent);
        let fits = into.pixels() == shape.pixels()
            && into.is_bag() == shape.is_bag()
            && offset + shape.channels() <= into.channels();
        if !fits {
            return Err(Error::weights(format!(
                "{}: {shape:?} at channel {offset} does not fit {into:?}",
                self.name
            )));
        }
        self.tensors.push(Tensor { shape, slice: Some((parent, offset)) });
        let output = TensorId(self.tensors.len() - 1);
        self.steps.push(Step { op, inputs: inputs.to_vec(), output });
        Ok(output)
    }

    /// Multiply-accumulates times two, for one row.
    pub fn flops_per_row(&self) -> u64 {
        self.steps.iter().map(|s| self.step_flops(s)).sum()
    }

    /// Multiply-accumulates of one step times two, for one row.
    pub fn step_flops(&self, step: &Step) -> u64 {
        let positions = self.shape(step.output).pixels() as u64;
        let size = |p: ParamId| self.param(p).data.len() as u64;
        match step.op {
            Op::Conv2d { weight, .. } | Op::Linear { weight, .. } => 2 * positions * size(weight),
            Op::AttentionScore { v, u, w } => {
                2 * (size(v.weight) + u.map_or(0, |u| size(u.weight)) + size(w.weight))
            }
            Op::AttentionPool => 2 * self.shape(step.output).len() as u64,
            _ => 0,
        }
    }
}

/// Shape inference: what each op accepts and what comes out.
impl Graph {
    fn infer(&self, op: &Op, inputs: &[TensorId]) -> Result<Shape> {
        let arity = if matches!(op, Op::AttentionPool) { 2 } else { 1 };
        if inputs.len() != arity {
            return Err(self.misfit(op, &format!("takes {arity} inputs, given {}", inputs.len())));
        }
        let input = self.shape(inputs[0]);
        match (*op, input) {
            (Op::Normalize { .. }, Shape::Pixels { h, w }) => Ok(Shape::Map { h, w, c: 3 }),
            (Op::Conv2d { weight, window, epilogue }, Shape::Map { h, w, c }) => {
                let k = self.check_weight(op, weight, &[window.kernel[0], window.kernel[1], c])?;
                let out = self.windowed(op, window, h, w, k)?;
                self.check_epilogue(op, &epilogue, out, k)?;
                Ok(out)
            }
            (Op::Linear { weight, epilogue }, Shape::Tokens { .. } | Shape::Bag { .. }) => {
                let k = self.check_weight(op, weight, &[input.channels()])?;
                let out = match input {
                    Shape::Bag { r, .. } => Shape::Bag { r, c: k },
                    _ => Shape::Tokens { t: input.pixels(), c: k },
                };
                self.check_epilogue(op, &epilogue, out, k)?;
                Ok(out)
            }
            (Op::BatchNorm { gamma, beta, .. }, Shape::Map { c, .. }) => {
                self.check_vector(op, gamma, c)?;
                self.check_vector(op, beta, c)?;
                Ok(input)
            }
            (Op::MaxPool { window } | Op::AvgPool { window, .. }, Shape::Map { h, w, c }) => {
                let extent = |axis: usize| window.dilation[axis] * (window.kernel[axis].max(1) - 1);
                if (0..2).any(|axis| 2 * window.pad[axis] > extent(axis) + 1) {
                    return Err(self.misfit(op, "pads more than half its window"));
                }
                self.windowed(op, window, h, w, c)
            }
            (Op::AdaptiveAvgPool { h, w }, Shape::Map { c, .. }) if h > 0 && w > 0 => {
                Ok(Shape::Map { h, w, c })
            }
            (Op::Flatten, Shape::Map { .. }) => Ok(Shape::Tokens { t: 1, c: input.len() }),
            (Op::AttentionScore { v, u, w }, Shape::Tokens { t: 1, c }) => {
                let d = self.check_dense(op, v, c)?;
                if let Some(u) = u
                    && self.check_dense(op, u, c)? != d
                {
                    return Err(self.misfit(op, "the gate is not as wide as the attention"));
                }
                Ok(Shape::Tokens { t: 1, c: self.check_dense(op, w, d)? })
            }
            (Op::AttentionPool, Shape::Tokens { t: 1, c: r }) => match self.shape(inputs[1]) {
                Shape::Tokens { t: 1, c } => Ok(Shape::Bag { r, c }),
                other => Err(self.misfit(op, &format!("cannot pool {other:?}"))),
            },
            (Op::RowDot { weight, bias }, Shape::Bag { r, c }) => {
                if self.check_weight(op, weight, &[c])? != r {
                    return Err(self.misfit(op, "needs one weight row per bag row"));
                }
                if let Some(bias) = bias {
                    self.check_vector(op, bias, r)?;
                }
                Ok(Shape::Bag { r: 1, c: r })
            }
            (Op::Copy, _) if !matches!(input, Shape::Pixels { .. }) => Ok(input),
            _ => Err(self.misfit(op, &format!("does not take {input:?}"))),
        }
    }

    fn windowed(&self, op: &Op, window: Window, h: usize, w: usize, c: usize) -> Result<Shape> {
        let zero =
            window.kernel.iter().chain(&window.stride).chain(&window.dilation).any(|&n| n == 0);
        match (zero, window.output(0, h), window.output(1, w)) {
            (false, Some(h), Some(w)) => Ok(Shape::Map { h, w, c }),
            _ => Err(self.misfit(op, &format!("window does not fit a {h} x {w} map"))),
        }
    }

    /// The leading dimension of an f16 weight whose other dimensions must be `rest`.
    fn check_weight(&self, op: &Op, id: ParamId, rest: &[usize]) -> Result<usize> {
        let param = self.param(id);
        if param.shape.get(1..) != Some(rest) || !matches!(param.data, ParamData::F16(_)) {
            return Err(self.misfit(
                op,
                &format!("{} has shape {:?}, needed [_, {rest:?}] in f16", param.name, param.shape),
            ));
        }
        Ok(param.shape[0])
    }

    fn check_vector(&self, op: &Op, id: ParamId, n: usize) -> Result<()> {
        let param = self.param(id);
        if param.shape != [n] || !matches!(param.data, ParamData::F32(_)) {
            return Err(self.misfit(
                op,
                &format!("{} has shape {:?}, needed [{n}] in f32", param.name, param.shape),
            ));
        }
        Ok(())
    }

    fn check_dense(&self, op: &Op, dense: Dense, c: usize) -> Result<usize> {
        let k = self.check_weight(op, dense.weight, &[c])?;
        if let Some(bias) = dense.bias {
            self.check_vector(op, bias, k)?;
        }
        Ok(k)
    }

    fn check_epilogue(&self, op: &Op, epilogue: &Epilogue, out: Shape, k: usize) -> Result<()> {
        for id in [epilogue.scale, epilogue.bias].into_iter().flatten() {
            self.check_vector(op, id, k)?;
        }
        match epilogue.residual.map(|r| self.shape(r)) {
            Some(shape) if shape != out => {
                Err(self.misfit(op, &format!("residual {shape:?} added to {out:?}")))
            }
            _ => Ok(()),
        }
    }

    fn misfit(&self, op: &Op, what: &str) -> Error {
        let text = format!("{op:?}");
        let name = text.split([' ', '{']).next().unwrap_or_default();
        Error::weights(format!("{}: step {} {name}: {what}", self.name, self.steps.len()))
    }
}
