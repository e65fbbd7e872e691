//! Slide-level heads: graphs over a bag of features, and what their outputs mean.
//!
//! A head reads the features of N tiles (and clinical values, if it has any) and writes logits and
//! raw attention scores. Widths are read from the weights. Adding a head is one function and its
//! row in [`FAMILIES`].

mod balnmp;
mod clam;
pub mod clinical;
mod predict;

pub use predict::{Prediction, attention, predict};

use crate::error::{Context, Error, Result};
use crate::graph::{Graph, Shape, TensorId};
use crate::recipe::{self, Transform};
use crate::weights::{Reader, Tensors};
use std::sync::Arc;

/// A head, ready for a backend.
///
/// Inputs: features `Tokens { t: 1, c: feature_dim }`, and `Bag { r: 1, c: clinical }` when
/// `clinical > 0`. Outputs: logits `Bag { 1, outputs }`, then attention scores before the softmax,
/// `Tokens { t: 1, c: branches }`.
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
    /// Attention columns, A: one per class in `clam-mb`, otherwise one.
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

/// A graph under construction.
struct Builder<'a> {
    graph: Graph,
    weights: Reader<'a>,
    clinical: usize,
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
}

/// Writes a head's steps and returns `[logits, scores]`.
type BuildFn = fn(&mut Builder<'_>) -> Result<[TensorId; 2]>;

/// A row of [`FAMILIES`].
pub struct Family {
    /// As recipes name it.
    pub name: &'static str,
    build: BuildFn,
}

/// Every head family.
pub const FAMILIES: &[Family] = &[
    Family { name: "balnmp", build: balnmp::build },
    Family { name: "clam-sb", build: clam::single },
    Family { name: "clam-mb", build: clam::multiple },
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
    build_family(family, head, feature_dim, weights).context(|| format!("head {}", head.name))
}

fn build_family(
    family: &'static Family,
    head: &recipe::Head,
    feature_dim: Option<usize>,
    weights: &Tensors,
) -> Result<Head> {
    let clinical = head.clinical.len();
    let graph = Graph::new(&head.name);
    let mut builder = Builder { graph, weights: Reader::new(weights), clinical };
    let [logits, scores] = (family.build)(&mut builder)?;
    builder.weights.finish(|_| false)?;
    let mut graph = builder.graph;
    graph.output(logits);
    graph.output(scores);

    let outputs = graph.shape(logits).channels();
    let expected = head.classes.len().max(1);
    if outputs != expected {
        let kind = if head.classes.is_empty() { "a regression" } else { "the recipe's classes" };
        return Err(Error::weights(format!("{outputs} outputs, {kind} needs {expected}")));
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
        feature_dim: width,
        branches: graph.shape(scores).channels(),
        graph: Arc::new(graph),
        clinical,
        outputs,
        classes: head.classes.clone(),
        transform: head.transform,
    })
}
