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

mod account;
mod infer;
mod op;
pub mod plan;
pub mod reference;
mod run;

pub use op::{Act, Dense, Epilogue, Interpolation, Op, Reduce, Step, Taps, Window};
pub use run::{Input, Kept, check_run};

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

    /// The same positions with another number of channels; pixels become a map.
    pub fn with_channels(&self, c: usize) -> Shape {
        match *self {
            Shape::Pixels { h, w } | Shape::Map { h, w, .. } => Shape::Map { h, w, c },
            Shape::Tokens { t, .. } => Shape::Tokens { t, c },
            Shape::Bag { r, .. } => Shape::Bag { r, c },
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

    /// Channels `offset..offset + channels` of a tensor, as a tensor that steps can read.
    ///
    /// # Errors
    /// [`crate::Kind::Weights`] when the parent has fewer channels.
    pub fn slice(&mut self, parent: TensorId, offset: usize, channels: usize) -> Result<TensorId> {
        let whole = self.shape(parent);
        let fits = offset.checked_add(channels).is_some_and(|end| end <= whole.channels());
        if !fits || channels == 0 || matches!(whole, Shape::Pixels { .. }) {
            let what = format!("no channels {offset} + {channels} in {whole:?}");
            return Err(Error::weights(format!("{}: {what}", self.name)));
        }
        let shape = whole.with_channels(channels);
        self.tensors.push(Tensor { shape, slice: Some((parent, offset)) });
        Ok(TensorId(self.tensors.len() - 1))
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

    /// The shape the output of a step would have.
    ///
    /// # Errors
    /// As [`Graph::push`].
    pub fn shape_of(&self, op: &Op, inputs: &[TensorId]) -> Result<Shape> {
        self.infer(op, inputs)
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
}
