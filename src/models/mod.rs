//! Encoder families: graphs from pixels to features.
//!
//! A family fixes the depth and the names of the layers (torchvision's state-dict keys); widths are
//! read from the weights. Adding a family is one file and its rows in [`FAMILIES`].

mod layers;
mod resnet;
mod vgg;

use crate::error::{Context, Error, Result};
use crate::graph::{Act, Graph, Op, Shape, TensorId};
use crate::recipe::{BnMode, Recipe};
use crate::weights::{Reader, Tensors};
use layers::Builder;
use std::sync::Arc;

/// An encoder, ready for a backend: `Pixels -> Tokens { t: 1, c: feature_dim }`.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// Family and truncation: `resnet50/layer3`.
    pub name: String,
    /// One input, one output.
    pub graph: Arc<Graph>,
    /// H and W of the input in pixels.
    pub input_px: [usize; 2],
    /// D.
    pub feature_dim: usize,
}

/// What a family is built of.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// Convolutions in each of the five stages; with batch norm or without.
    Vgg { convs: [usize; 5], bn: bool },
    /// Blocks in each of the four stages; blocks of three convolutions or of two.
    ResNet { blocks: [usize; 4], bottleneck: bool },
}

/// A row of [`FAMILIES`].
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// torchvision's name.
    pub name: &'static str,
    layout: Layout,
}

const fn vgg(name: &'static str, convs: [usize; 5], bn: bool) -> Family {
    Family { name, layout: Layout::Vgg { convs, bn } }
}

const fn resnet(name: &'static str, blocks: [usize; 4], bottleneck: bool) -> Family {
    Family { name, layout: Layout::ResNet { blocks, bottleneck } }
}

/// Every encoder family (Simonyan & Zisserman 2015, table 1; He et al. 2016, table 1).
pub const FAMILIES: &[Family] = &[
    vgg("vgg11", [1, 1, 2, 2, 2], false),
    vgg("vgg13", [2, 2, 2, 2, 2], false),
    vgg("vgg16", [2, 2, 3, 3, 3], false),
    vgg("vgg19", [2, 2, 4, 4, 4], false),
    vgg("vgg11_bn", [1, 1, 2, 2, 2], true),
    vgg("vgg13_bn", [2, 2, 2, 2, 2], true),
    vgg("vgg16_bn", [2, 2, 3, 3, 3], true),
    vgg("vgg19_bn", [2, 2, 4, 4, 4], true),
    resnet("resnet18", [2, 2, 2, 2], false),
    resnet("resnet34", [3, 4, 6, 3], false),
    resnet("resnet50", [3, 4, 6, 3], true),
    resnet("resnet101", [3, 4, 23, 3], true),
    resnet("resnet152", [3, 8, 36, 3], true),
];

/// Finds a family by its name.
///
/// # Errors
/// [`crate::Kind::Usage`] listing the names there are.
pub fn family(name: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|f| f.name == name).ok_or_else(|| {
        let names: Vec<&str> = FAMILIES.iter().map(|f| f.name).collect();
        Error::usage(format!("no encoder family {name:?}; there are {}", names.join(", ")))
    })
}

/// Builds the encoder a recipe describes.
///
/// # Errors
/// [`crate::Kind::Usage`] for an unknown family or truncation, [`crate::Kind::Weights`] when a
/// tensor is missing, left over or of the wrong shape, [`crate::Kind::Unsupported`] for batch
/// statistics in a family that cannot have them.
pub fn build(recipe: &Recipe, weights: &Tensors) -> Result<Encoder> {
    let encoder = &recipe.encoder;
    let family = family(&encoder.family)?;
    let name = match &encoder.truncate {
        Some(stage) => format!("{}/{stage}", family.name),
        None => family.name.to_string(),
    };
    let side = recipe.input_px() as usize;
    let mut graph = Graph::new(&name);
    let pixels = graph.input(Shape::Pixels { h: side, w: side });
    let (mean, std) = (recipe.preprocess.mean, recipe.preprocess.std);
    let input = graph.push(Op::Normalize { mean, std }, &[pixels])?;

    let batch_statistics = encoder.bn_mode == BnMode::Batch;
    let mut builder = Builder { graph, weights: Reader::new(weights), batch_statistics };
    let truncate = encoder.truncate.as_deref();
    let features = match family.layout {
        Layout::Vgg { convs, bn } => vgg::build(&mut builder, input, &convs, bn, truncate),
        Layout::ResNet { blocks, bottleneck } => {
            resnet::build(&mut builder, input, &blocks, bottleneck, truncate)
        }
    }
    .context(|| name.clone())?;
    builder
        .weights
        .finish(|tensor| tensor.ends_with(".num_batches_tracked"))
        .context(|| name.clone())?;

    let mut graph = builder.graph;
    graph.output(features);
    let feature_dim = graph.shape(features).len();
    Ok(Encoder { name, graph: Arc::new(graph), input_px: [side; 2], feature_dim })
}

/// Mean over all positions, then a feature vector.
fn global_average(graph: &mut Graph, map: TensorId) -> Result<TensorId> {
    let pooled = graph.push(Op::AdaptiveAvgPool { h: 1, w: 1 }, &[map])?;
    graph.push(Op::Flatten, &[pooled])
}

/// What a ReLU is called when it may be left out.
fn relu(yes: bool) -> Act {
    if yes { Act::Relu } else { Act::None }
}
