//! The map an encoder averages into its features, for maps of what a prediction comes from.

use super::{Encoder, Layout, family};
use crate::error::{Error, Result};
use crate::graph::{Graph, Op, Shape};
use crate::recipe::Recipe;
use std::sync::Arc;

/// An encoder without its global average pooling.
#[derive(Clone, Debug)]
pub struct LastMap {
    /// `Pixels -> Map { h, w, c }`.
    pub graph: Arc<Graph>,
    /// H, W and C of the map.
    pub shape: [usize; 3],
    /// The layer that puts the map out, by torchvision's name.
    pub layer: &'static str,
}

/// Takes the last two steps, global average pooling and a flattening, from an encoder.
///
/// # Errors
/// [`crate::Kind::Unsupported`] when it does not end in these.
pub fn last_map(encoder: &Encoder, recipe: &Recipe) -> Result<LastMap> {
    let unsupported = || {
        Error::unsupported(format!(
            "{}: its features are not the mean over the positions of one map, which a closed form \
             of Grad-CAM needs (ResNet, DenseNet, Inception and GoogLeNet have it)",
            encoder.name
        ))
    };
    let mut graph = (*encoder.graph).clone();
    let (flatten, pool) = (graph.steps.pop(), graph.steps.pop());
    let (Some(flatten), Some(pool)) = (flatten, pool) else { return Err(unsupported()) };
    let ends = matches!(flatten.op, Op::Flatten)
        && matches!(pool.op, Op::AdaptiveAvgPool { h: 1, w: 1 })
        && flatten.inputs == [pool.output];
    let map = pool.inputs.first().copied().filter(|_| ends).ok_or_else(unsupported)?;
    let Shape::Map { h, w, c } = graph.shape(map) else { return Err(unsupported()) };
    graph.outputs = vec![map];
    Ok(LastMap { graph: Arc::new(graph), shape: [h, w, c], layer: layer(recipe)? })
}

fn layer(recipe: &Recipe) -> Result<&'static str> {
    const STAGES: [&str; 3] = ["layer1", "layer2", "layer3"];
    let truncate = recipe.encoder.truncate.as_deref();
    Ok(match family(&recipe.encoder.family)?.layout {
        Layout::ResNet { .. } => {
            STAGES.into_iter().find(|&stage| Some(stage) == truncate).unwrap_or("layer4")
        }
        Layout::DenseNet { .. } => "features (after norm5 and its ReLU)",
        Layout::Inception { .. } => "Mixed_7c",
        Layout::GoogLeNet => "inception5b",
        Layout::Vgg { .. } | Layout::AlexNet | Layout::Vit => "the last map",
    })
}
