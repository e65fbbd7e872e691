//! Encoder families: graphs from pixels to features, and segmenters: from pixels to a map.
//!
//! A family fixes the depth and the names of the layers (torchvision's state-dict keys); widths are
//! read from the weights. Adding a family is one file and its rows in [`FAMILIES`].

mod alexnet;
mod deeplab;
mod densenet;
mod inception;
mod last_map;
mod layers;
mod position;
pub mod random;
mod resnet;
mod segmenters;
mod smp;
mod unet;
mod vgg;
mod vit;

pub use last_map::{LastMap, last_map};
pub use segmenters::{SEGMENTERS, Segmenter, SegmenterFamily, build_segmenter, segmenter_family};

use crate::error::{Context, Error, Result};
use crate::graph::{Act, Graph, Op, Shape, TensorId};
use crate::recipe::{BnMode, Recipe};
use crate::weights::{Reader, Tensors};
use layers::{Builder, EPS};
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
    /// Five convolutions.
    AlexNet,
    /// Layers in each of the four blocks, and the channels each adds in the published network.
    DenseNet { layers: [usize; 4], growth: usize },
    /// Inception V3; Keras's version or torchvision's.
    Inception { keras: bool },
    /// The first Inception, with batch norm.
    GoogLeNet,
    /// A vision transformer of any size, described by `[encoder.vit]`.
    Vit,
}

/// A row of [`FAMILIES`].
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// torchvision's name, where it has one.
    pub name: &'static str,
    layout: Layout,
}

const fn vgg(name: &'static str, convs: [usize; 5], bn: bool) -> Family {
    Family { name, layout: Layout::Vgg { convs, bn } }
}

const fn resnet(name: &'static str, blocks: [usize; 4], bottleneck: bool) -> Family {
    Family { name, layout: Layout::ResNet { blocks, bottleneck } }
}

const fn densenet(name: &'static str, layers: [usize; 4], growth: usize) -> Family {
    Family { name, layout: Layout::DenseNet { layers, growth } }
}

/// Every encoder family (Simonyan & Zisserman 2015, table 1; He et al. 2016, table 1; Huang
/// et al. 2017, table 1; Dosovitskiy et al. 2021).
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
    densenet("densenet121", [6, 12, 24, 16], 32),
    densenet("densenet161", [6, 12, 36, 24], 48),
    densenet("densenet169", [6, 12, 32, 32], 32),
    densenet("densenet201", [6, 12, 48, 32], 32),
    Family { name: "alexnet", layout: Layout::AlexNet },
    Family { name: "googlenet", layout: Layout::GoogLeNet },
    Family { name: "inception_v3", layout: Layout::Inception { keras: false } },
    Family { name: "inception_v3_keras", layout: Layout::Inception { keras: true } },
    Family { name: "vit", layout: Layout::Vit },
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
    let batch_statistics = encoder.bn_mode == BnMode::Batch;
    let weights = Reader::new(weights);
    let mut builder = Builder { graph, weights, batch_statistics, eps: EPS, unscaled: false };
    let features = features(&mut builder, family, pixels, recipe).context(|| name.clone())?;
    builder
        .weights
        .finish(|tensor| tensor.ends_with(".num_batches_tracked"))
        .context(|| name.clone())?;

    let mut graph = builder.graph;
    graph.output(features);
    let feature_dim = graph.shape(features).len();
    Ok(Encoder { name, graph: Arc::new(graph), input_px: [side; 2], feature_dim })
}

/// The steps of a family, from pixels to features.
fn features(
    builder: &mut Builder<'_>,
    family: &Family,
    pixels: TensorId,
    recipe: &Recipe,
) -> Result<TensorId> {
    let encoder = &recipe.encoder;
    let truncate = encoder.truncate.as_deref();
    let (mean, std) = normalisation(recipe);
    if encoder.vit.is_some() != matches!(family.layout, Layout::Vit) {
        return Err(Error::usage("[encoder.vit] goes with family = \"vit\", and only with it"));
    }
    if let (Layout::Vit, Some(vit)) = (family.layout, &encoder.vit) {
        if truncate.is_some() || builder.batch_statistics {
            return Err(Error::usage("a vision transformer has no truncate and no bn_mode"));
        }
        return vit::build(builder, pixels, vit, mean, std);
    }
    let input = builder.graph.push(Op::Normalize { mean, std }, &[pixels])?;
    match family.layout {
        Layout::Vgg { convs, bn } => vgg::build(builder, input, &convs, bn, truncate),
        Layout::ResNet { blocks, bottleneck } => {
            resnet::build(builder, input, blocks, bottleneck, truncate)
        }
        Layout::AlexNet => alexnet::build(builder, input, truncate),
        Layout::DenseNet { layers, .. } => densenet::build(builder, input, &layers, truncate),
        Layout::Inception { keras } => inception::v3(builder, input, keras, truncate),
        Layout::GoogLeNet => inception::googlenet(builder, input, truncate),
        Layout::Vit => unreachable!("built above"),
    }
}

/// The layout of an encoder inside another network.
fn encoder_layout(name: &str) -> Result<Layout> {
    Ok(family(name)?.layout)
}

/// Mean and standard deviation of the input, with torchvision's `transform_input` if the recipe
/// asks for it: pictures normalised by ImageNet's statistics are brought to mean and deviation 1/2
/// before the first convolution, `x (0.229 / 0.5) + (0.485 - 0.5) / 0.5` for red.
fn normalisation(recipe: &Recipe) -> ([f32; 3], [f32; 3]) {
    const MEAN: [f64; 3] = [0.485, 0.456, 0.406];
    const STD: [f64; 3] = [0.229, 0.224, 0.225];
    let (mut mean, mut std) = (recipe.preprocess.mean, recipe.preprocess.std);
    if recipe.encoder.transform_input {
        for c in 0..3 {
            let (factor, offset) = (STD[c] / 0.5, (MEAN[c] - 0.5) / 0.5);
            let deviation = f64::from(std[c]) / factor;
            mean[c] = (f64::from(mean[c]) - offset * deviation) as f32;
            std[c] = deviation as f32;
        }
    }
    (mean, std)
}

/// Mean over all positions, then a feature vector.
fn global_average(graph: &mut Graph, map: TensorId) -> Result<TensorId> {
    let pooled = graph.push(Op::AdaptiveAvgPool { h: 1, w: 1 }, &[map])?;
    graph.push(Op::Flatten, &[pooled])
}

/// A map averaged to `side x side`, then `C * side * side` features in channel-major order.
fn flat_pooled(graph: &mut Graph, map: TensorId, side: usize) -> Result<TensorId> {
    let there = matches!(graph.shape(map), Shape::Map { h, w, .. } if [h, w] == [side; 2]);
    let pooled = match there {
        true => map,
        false => graph.push(Op::AdaptiveAvgPool { h: side, w: side }, &[map])?,
    };
    graph.push(Op::Flatten, &[pooled])
}

/// Refuses a truncation where a family has none.
fn whole(truncate: Option<&str>, what: &str) -> Result<()> {
    match truncate {
        None => Ok(()),
        Some(stage) => Err(Error::usage(format!("truncate {stage:?}: {what} cannot be truncated"))),
    }
}

/// What a ReLU is called when it may be left out.
fn relu(yes: bool) -> Act {
    if yes { Act::Relu } else { Act::None }
}
