//! Slide-level heads: graphs over a bag of features, and what their outputs mean.
//!
//! A head reads the features of N tiles (and clinical values, if it has any) and writes logits and
//! raw attention scores. Widths are read from the weights. Adding a head is one function and its
//! row in [`FAMILIES`].

mod abmil;
mod balnmp;
mod clam;
pub mod clinical;
mod linear;
mod predict;
pub mod weep;

pub use predict::{Prediction, attention, predict, tile_values};

use crate::error::{Context, Error, Result};
use crate::graph::{Act, Dense, Epilogue, Graph, Op, Reduce, Shape, TensorId};
use crate::recipe::{self, Aggregate, Transform};
use crate::weights::{Reader, Tensors};
use std::sync::Arc;

/// A head, ready for a backend.
///
/// Inputs: features `Tokens { t: 1, c: feature_dim }`, and `Bag { r: 1, c: clinical }` when
/// `clinical > 0`. Outputs: logits `Bag { 1, outputs }`, then scores of the tiles `Tokens { t: 1, c:
/// branches }`: attention before the softmax, or predictions of single tiles.
#[derive(Clone, Debug)]
pub struct Head {
    /// Name in results.
    pub name: String,
    /// A row of [`FAMILIES`].
    pub family: &'static str,
    /// The network.
    pub graph: Arc<Graph>,
    /// D.
    pub feature_dim: usize,
    /// What the scores of tiles are.
    pub scores: Scores,
    /// Score columns, A: one per class in `clam-mb` and for predictions of tiles, otherwise one.
    pub branches: usize,
    /// Number of clinical inputs; 0 when there is none.
    pub clinical: usize,
    /// Number of logits: as many as classes, 1 for a regression.
    pub outputs: usize,
    /// Class names in the order of the logits; empty for a regression.
    pub classes: Vec<String>,
    /// What is done to the output of a regression.
    pub transform: Transform,
}

/// What a head says of single tiles beside its prediction of the bag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// Attention before the softmax.
    Attention,
    /// A prediction, in the unit of the head's logits.
    Prediction,
}

/// A graph under construction.
struct Builder<'a> {
    graph: Graph,
    weights: Reader<'a>,
    clinical: usize,
    aggregate: Option<Aggregate>,
    /// Every tile is a bag of its own, so that there is nothing to pool.
    single: bool,
}

impl Builder<'_> {
    /// The features input, as wide as the second dimension of the matrix that reads it.
    fn features(&mut self, first_weight: &str) -> Result<TensorId> {
        let tensor = self.weights.take(first_weight)?;
        let &[_, c] = tensor.shape else {
            return Err(self.weights.misfit(&tensor, "[K, C]"));
        };
        Ok(self.graph.input(Shape::Tokens { t: 1, c }))
    }

    /// `act(W x + b)`.
    fn linear(&mut self, name: &str, act: Act, x: TensorId) -> Result<TensorId> {
        let Dense { weight, bias } = self.weights.dense(&mut self.graph, name)?;
        let epilogue = Epilogue { bias, act, ..Default::default() };
        self.graph.push(Op::Linear { weight, epilogue }, &[x])
    }

    /// The values weighted by attention; of a bag of one, that one.
    fn attend(&mut self, scores: TensorId, values: TensorId) -> Result<TensorId> {
        match self.single {
            true => Ok(values),
            false => self.graph.push(Op::AttentionPool, &[scores, values]),
        }
    }

    /// The values aggregated as the recipe says; of a bag of one, that one.
    fn aggregate(&mut self, values: TensorId) -> Result<TensorId> {
        let reduce = match self.aggregate {
            _ if self.single => return Ok(values),
            Some(Aggregate::Mean) => Reduce::Mean,
            Some(Aggregate::Max) => Reduce::Max,
            Some(Aggregate::Percentile(q)) => Reduce::Percentile(q),
            None => {
                let what = "aggregate = \"mean\", \"max\" or { percentile = 0.75 } is missing";
                return Err(Error::usage(what));
            }
        };
        self.graph.push(Op::BagReduce { reduce }, &[values])
    }
}

/// Writes a head's steps and returns `[logits, scores]`.
type BuildFn = fn(&mut Builder<'_>) -> Result<[TensorId; 2]>;

/// A row of [`FAMILIES`].
pub struct Family {
    /// As recipes name it.
    pub name: &'static str,
    build: BuildFn,
    scores: Scores,
}

const fn attention_family(name: &'static str, build: BuildFn) -> Family {
    Family { name, build, scores: Scores::Attention }
}

const fn tile_family(name: &'static str, build: BuildFn) -> Family {
    Family { name, build, scores: Scores::Prediction }
}

/// Every head family.
pub const FAMILIES: &[Family] = &[
    attention_family("balnmp", balnmp::build),
    attention_family("clam-sb", clam::single),
    attention_family("clam-mb", clam::multiple),
    attention_family("clam-sb-pool", clam::pooled),
    attention_family("abmil", abmil::build),
    tile_family("tile-linear", linear::of_tiles),
    tile_family("pool-linear", linear::of_pooled),
];

/// Finds a family by its name.
///
/// # Errors
/// [`crate::Kind::Usage`] listing the names there are.
pub fn family(name: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|f| f.name == name).ok_or_else(|| {
        let names: Vec<&str> = FAMILIES.iter().map(|f| f.name).collect();
        Error::usage(format!("no head family {name:?}; there are {}", names.join(", ")))
    })
}

/// Builds a head of a recipe. `feature_dim`, when given, is what its encoder makes.
///
/// # Errors
/// [`crate::Kind::Usage`] for an unknown family, [`crate::Kind::Weights`] when a tensor is missing,
/// left over or of the wrong shape, or when widths disagree with the recipe or the encoder.
pub fn build(head: &recipe::Head, feature_dim: Option<usize>, weights: &Tensors) -> Result<Head> {
    let family = family(&head.family)?;
    build_family(family, head, feature_dim, weights, false)
        .context(|| format!("head {}", head.name))
}

/// Builds a head that takes every tile for a bag of its own: its logits are `Tokens { t: 1, c:
/// outputs }`, one row for each tile, which is how a regression of the slide becomes a map.
///
/// # Errors
/// As [`build`]; [`crate::Kind::Unsupported`] for a head whose steps cannot be taken tile by tile.
pub fn build_single(
    head: &recipe::Head,
    feature_dim: Option<usize>,
    weights: &Tensors,
) -> Result<Head> {
    let family = family(&head.family)?;
    if family.name == "clam-mb" || !head.clinical.is_empty() {
        let what = "a head with an attention for each class or with clinical values";
        return Err(Error::unsupported(format!("head {}: tile by tile, {what}", head.name)));
    }
    build_family(family, head, feature_dim, weights, true).context(|| format!("head {}", head.name))
}

fn build_family(
    family: &'static Family,
    head: &recipe::Head,
    feature_dim: Option<usize>,
    weights: &Tensors,
    single: bool,
) -> Result<Head> {
    let clinical = head.clinical.len();
    let graph = Graph::new(&head.name);
    let aggregate = head.aggregate;
    let weights = Reader::new(weights);
    let mut builder = Builder { graph, weights, clinical, aggregate, single };
    if aggregate.is_some() && family.scores == Scores::Attention {
        return Err(Error::usage("aggregate: this head pools by attention"));
    }
    let [logits, scores] = (family.build)(&mut builder)?;
    builder.weights.finish(|_| false)?;
    let mut graph = builder.graph;
    graph.output(logits);
    // A head may say of each tile just what it says of a bag of one.
    if scores != logits {
        graph.output(scores);
    }

    let outputs = graph.shape(logits).channels();
    let expected = head.classes.len().max(1);
    if outputs != expected {
        let kind = if head.classes.is_empty() { "a regression" } else { "the recipe's classes" };
        let tensor = last_weight(&graph);
        return Err(Error::weights(format!(
            "{tensor} has {outputs} outputs, {kind} needs {expected}"
        )));
    }
    if !head.classes.is_empty() && head.transform != Transform::None {
        return Err(Error::usage("a transform is for a regression; this head has classes"));
    }
    let width = graph.shape(graph.inputs[0]).channels();
    if let Some(encoder) = feature_dim.filter(|&d| d != width) {
        return Err(Error::weights(format!(
            "reads features of width {width}, the encoder makes {encoder}"
        )));
    }
    Ok(Head {
        name: head.name.clone(),
        family: family.name,
        scores: family.scores,
        feature_dim: width,
        branches: graph.shape(scores).channels(),
        graph: Arc::new(graph),
        clinical,
        outputs,
        classes: head.classes.clone(),
        transform: head.transform,
    })
}

/// The matrix that makes the logits, for messages.
fn last_weight(graph: &Graph) -> &str {
    let weight = graph.steps.iter().rev().find_map(|step| match step.op {
        Op::Linear { weight, .. } | Op::RowDot { weight, .. } => Some(weight),
        _ => None,
    });
    weight.map_or("the last layer", |weight| &graph.param(weight).name)
}
