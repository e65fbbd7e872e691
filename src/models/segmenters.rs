//! Segmentation families: graphs from pixels to a map of logits or probabilities.
//!
//! As with encoders, a family fixes depth and key names, and widths are read from the weights.
//! Adding a family is one file and its rows in [`SEGMENTERS`].

use super::layers::{Builder, EPS, Pending, Then};
use super::{deeplab, densenet, encoder_layout, resnet, smp, unet};
use crate::error::{Context, Error, Result};
use crate::graph::{Act, Graph, Interpolation, Op, Shape, TensorId, Window};
use crate::recipe::{self, MapOutput};
use crate::weights::{Reader, Tensors};
use std::sync::Arc;

/// A segmenter, ready for a backend: `Pixels -> Map { h, w, c: channels }`, the sides those of the
/// pixels.
#[derive(Clone, Debug)]
pub struct Segmenter {
    /// Name in the recipe.
    pub name: String,
    /// One input, one output.
    pub graph: Arc<Graph>,
    /// H and W of input and output in pixels.
    pub input_px: [usize; 2],
    /// K: one for a foreground, otherwise one per class.
    pub channels: usize,
}

/// What a segmentation family is built of. An encoder is named by its row in
/// [`super::FAMILIES`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Layout {
    /// U-Net of double convolutions.
    Unet,
    /// U-Net++ with a node for every level and column.
    Nested,
    /// U-Net of segmentation_models_pytorch.
    SmpUnet(&'static str),
    /// U-Net++ of segmentation_models_pytorch.
    SmpUnetPlusPlus(&'static str),
    /// DeepLabV3 of segmentation_models_pytorch.
    SmpDeepLab(&'static str),
    /// DeepLabV3 of torchvision.
    DeepLab(&'static str),
}

/// A row of [`SEGMENTERS`].
#[derive(Clone, Copy, Debug)]
pub struct SegmenterFamily {
    /// As recipes name it.
    pub name: &'static str,
    /// Sides of a picture must be multiples of this; [`crate::image::pad`] makes them so.
    pub multiple: usize,
    pub(super) layout: Layout,
}

const fn row(name: &'static str, multiple: usize, layout: Layout) -> SegmenterFamily {
    SegmenterFamily { name, multiple, layout }
}

/// Every segmentation family (Ronneberger et al. 2015, arXiv:1505.04597; Zhou et al. 2018,
/// arXiv:1807.10165; Chen et al. 2017, arXiv:1706.05587).
pub const SEGMENTERS: &[SegmenterFamily] = &[
    row("unet", 16, Layout::Unet),
    row("nested-unet", 16, Layout::Nested),
    row("smp-unet-resnet18", 32, Layout::SmpUnet("resnet18")),
    row("smp-unet-resnet34", 32, Layout::SmpUnet("resnet34")),
    row("smp-unet-resnet50", 32, Layout::SmpUnet("resnet50")),
    row("smp-unet-resnet101", 32, Layout::SmpUnet("resnet101")),
    row("smp-unet-densenet121", 32, Layout::SmpUnet("densenet121")),
    row("smp-unetplusplus-resnet18", 32, Layout::SmpUnetPlusPlus("resnet18")),
    row("smp-unetplusplus-resnet34", 32, Layout::SmpUnetPlusPlus("resnet34")),
    row("smp-unetplusplus-resnet50", 32, Layout::SmpUnetPlusPlus("resnet50")),
    row("smp-unetplusplus-resnet101", 32, Layout::SmpUnetPlusPlus("resnet101")),
    row("smp-unetplusplus-densenet121", 32, Layout::SmpUnetPlusPlus("densenet121")),
    row("smp-deeplabv3-resnet18", 32, Layout::SmpDeepLab("resnet18")),
    row("smp-deeplabv3-resnet34", 32, Layout::SmpDeepLab("resnet34")),
    row("smp-deeplabv3-resnet50", 32, Layout::SmpDeepLab("resnet50")),
    row("smp-deeplabv3-resnet101", 32, Layout::SmpDeepLab("resnet101")),
    row("deeplabv3_resnet50", 32, Layout::DeepLab("resnet50")),
    row("deeplabv3_resnet101", 32, Layout::DeepLab("resnet101")),
];

/// Finds a segmentation family by its name.
///
/// # Errors
/// [`crate::Kind::Usage`] listing the names there are.
pub fn segmenter_family(name: &str) -> Result<&'static SegmenterFamily> {
    SEGMENTERS.iter().find(|f| f.name == name).ok_or_else(|| {
        let names: Vec<&str> = SEGMENTERS.iter().map(|f| f.name).collect();
        Error::usage(format!("no segmentation family {name:?}; there are {}", names.join(", ")))
    })
}

/// Builds the segmenter a recipe describes for pictures of `input_px`, H and W.
///
/// # Errors
/// [`crate::Kind::Usage`] for an unknown family, sides that are no multiples of the family's, or
/// an output it does not have; [`crate::Kind::Weights`] when a tensor is missing, left over or of
/// the wrong shape.
pub fn build_segmenter(
    spec: &recipe::Segmenter,
    input_px: [usize; 2],
    weights: &Tensors,
) -> Result<Segmenter> {
    let family = segmenter_family(&spec.family)?;
    build_family(family, spec, input_px, weights).context(|| format!("segmenter {}", spec.name))
}

fn build_family(
    family: &SegmenterFamily,
    spec: &recipe::Segmenter,
    input_px: [usize; 2],
    weights: &Tensors,
) -> Result<Segmenter> {
    let [h, w] = input_px;
    if h == 0 || w == 0 || [h, w].iter().any(|side| !side.is_multiple_of(family.multiple)) {
        let (name, n) = (family.name, family.multiple);
        return Err(Error::usage(format!("{h} x {w} px: {name} needs sides of multiples of {n}")));
    }
    if !spec.heads.is_empty() && !matches!(family.layout, Layout::Nested) {
        return Err(Error::usage(format!("heads: {} has only one", family.name)));
    }
    let mut graph = Graph::new(family.name);
    let pixels = graph.input(Shape::Pixels { h, w });
    let (mean, std) = (spec.preprocess.mean, spec.preprocess.std);
    let input = graph.push(Op::Normalize { mean, std }, &[pixels])?;
    let weights = Reader::new(weights);
    let mut builder =
        Builder { graph, weights, batch_statistics: false, eps: EPS, unscaled: false };
    let output = Output { size: [h, w], kind: spec.output };
    let map = match family.layout {
        Layout::Unet => unet::classic(&mut builder, input, output),
        Layout::Nested => unet::nested(&mut builder, input, &spec.heads, output),
        Layout::SmpUnet(encoder) => smp::unet(&mut builder, input, encoder, output),
        Layout::SmpUnetPlusPlus(encoder) => {
            smp::unet_plus_plus(&mut builder, input, encoder, output)
        }
        Layout::SmpDeepLab(encoder) => deeplab::smp(&mut builder, input, encoder, output),
        Layout::DeepLab(encoder) => deeplab::torchvision(&mut builder, input, encoder, output),
    }?;
    builder.weights.finish(|tensor| {
        tensor.ends_with(".num_batches_tracked")
            || (matches!(family.layout, Layout::Nested) && unet::behind(tensor, &spec.heads))
    })?;
    let mut graph = builder.graph;
    graph.output(map);
    let channels = graph.shape(map).channels();
    if spec.output == MapOutput::Softmax && channels < 2 {
        return Err(Error::usage("output = \"softmax\" of one channel is always 1; use sigmoid"));
    }
    Ok(Segmenter { name: spec.name.clone(), graph: Arc::new(graph), input_px, channels })
}

/// What the recipe wants of the last convolution.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// H and W of the picture.
    pub size: [usize; 2],
    /// Logits or probabilities.
    pub kind: MapOutput,
}

impl Output {
    /// The last convolution (with a bias), brought to the size of the picture if `enlarge` says
    /// how, and what the recipe wants of it.
    pub fn head(
        self,
        builder: &mut Builder<'_>,
        x: TensorId,
        name: &str,
        window: Window,
        enlarge: Option<Interpolation>,
    ) -> Result<TensorId> {
        let sigmoid = if self.kind == MapOutput::Sigmoid { Act::Sigmoid } else { Act::None };
        let act = if enlarge.is_none() { sigmoid } else { Act::None };
        let then = Then::bias(act);
        let mut y = builder.conv(x, name, window, then)?;
        if let Some(mode) = enlarge {
            let [h, w] = self.size;
            y = builder.graph.push(Op::Upsample { h, w, mode }, &[y])?;
            if sigmoid != Act::None {
                let op = Op::Affine { scale: None, bias: None, act: sigmoid };
                y = builder.graph.push(op, &[y])?;
            }
        }
        match self.kind {
            MapOutput::Softmax => builder.graph.push(Op::Softmax, &[y]),
            MapOutput::Logits | MapOutput::Sigmoid => Ok(y),
        }
    }
}

/// What an encoder inside a segmenter puts out at 1/2, 1/4, ... of the picture's sides, its keys
/// beginning with `prefix`.
pub fn pyramid(
    builder: &mut Builder<'_>,
    input: TensorId,
    encoder: &str,
    prefix: &str,
    atrous: resnet::Atrous,
) -> Result<Vec<TensorId>> {
    match encoder_layout(encoder)? {
        super::Layout::ResNet { blocks, bottleneck } => {
            let net = resnet::ResNet { prefix, blocks, bottleneck, atrous };
            resnet::stages(builder, input, net, 4)
        }
        super::Layout::DenseNet { layers, .. } => {
            let net = densenet::DenseNet { prefix, layers, skips: true, act: Act::None };
            densenet::stages(builder, input, net)
        }
        _ => Err(Error::usage(format!("{encoder} is no encoder of a segmenter"))),
    }
}

/// A map enlarged to the size of another, for a concatenation.
pub fn enlarged(
    builder: &Builder<'_>,
    x: TensorId,
    like: TensorId,
    mode: Interpolation,
) -> Pending {
    match builder.graph.shape(like) {
        Shape::Map { h, w, .. } | Shape::Pixels { h, w } => (Op::Upsample { h, w, mode }, x),
        // Not reached: the tensors of a segmenter are maps.
        Shape::Tokens { .. } | Shape::Bag { .. } => (Op::Copy, x),
    }
}
