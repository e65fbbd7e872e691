//! The networks that look at tiles and pictures: preprocessing, encoder, segmenters, gate.

use serde::{Deserialize, Serialize};

/// How a square becomes the encoder's input.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// Side to resize the tile to; absent means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<u32>,
    /// Filter of the resize, antialiased as PIL does.
    #[serde(default)]
    pub interpolation: Interpolation,
    /// Side of the centre crop after the resize; absent means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<u32>,
    /// Per channel, on values in 0..1.
    pub mean: [f32; 3],
    /// Per channel, on values in 0..1.
    pub std: [f32; 3],
}

/// A PIL resampling filter.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// Triangle.
    #[default]
    Bilinear,
    /// Catmull-Rom, a = -0.5.
    Bicubic,
    /// The nearest pixel, whatever the factor.
    Nearest,
}

/// From pixels to features.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// A row of `models::FAMILIES`: `vgg16_bn`, `resnet50`; `none` in a package that segments only.
    pub family: String,
    /// Weights file in the package folder.
    #[serde(default = "encoder_file")]
    pub weights: String,
    /// Last stage kept: `layer3` for HistCode's ResNet-50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<String>,
    /// Whose statistics batch norm uses.
    #[serde(default)]
    pub bn_mode: BnMode,
    /// Whether the input, normalised by ImageNet's statistics, is brought to mean and deviation
    /// 1/2, as torchvision's pretrained `inception_v3` and `googlenet` do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transform_input: bool,
    /// Of a vision transformer: what its weights do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vit: Option<Vit>,
}

/// What the weights of a vision transformer do not say about it. Patch size, width, depth, kind of
/// MLP, register tokens, LayerScale and the norms are read from the weights.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Vit {
    /// Attention heads.
    pub heads: usize,
    /// What becomes the feature vector.
    #[serde(default)]
    pub pool: TokenPool,
    /// Heads of the attention pooling of `pool = "attention"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_heads: Option<usize>,
    /// Added to variances in layer norms.
    #[serde(default = "layer_norm_eps")]
    pub eps: f32,
    /// How position embeddings are sampled when the input is not as large as in training.
    #[serde(default)]
    pub position: PositionResize,
}

fn layer_norm_eps() -> f32 {
    1e-6
}

/// What becomes the feature vector of a vision transformer.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum TokenPool {
    /// The class token.
    #[default]
    Class,
    /// The mean of the patch tokens.
    Mean,
    /// The class token, then the mean of the patch tokens: twice as wide.
    ClassMean,
    /// Attention of one learnt query over all tokens, as in CONCH (Lu et al. 2024).
    Attention,
}

/// How position embeddings learnt on one grid are sampled on another.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum PositionResize {
    /// Bicubic with antialiasing, as timm does, and transformers for DINOv2 with registers.
    #[default]
    Antialias,
    /// Bicubic, as transformers does otherwise.
    Bicubic,
    /// Bicubic with the offset of 0.1 that DINOv2's own code adds to the output size.
    Dinov2,
}

/// The family of a package without an encoder.
pub const NO_ENCODER: &str = "none";

fn encoder_file() -> String {
    "encoder.safetensors".into()
}

/// Whose statistics batch norm uses.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum BnMode {
    /// The stored running statistics, folded into the convolution.
    #[default]
    Running,
    /// Those of the tiles in the bag, as BALNMP's evaluation did.
    Batch,
}

/// From a picture to a map of the same size.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Segmenter {
    /// Name in results: `unet`.
    pub name: String,
    /// A row of `models::SEGMENTERS`: `smp-unet-resnet34`.
    pub family: String,
    /// Weights file in the package folder.
    pub weights: String,
    /// What the map holds.
    pub output: MapOutput,
    /// Outputs of a deeply supervised network whose mean is taken, 1 the shallowest; none means
    /// the deepest alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<u8>,
    /// Channel of the map that is the foreground [default: 0 of one channel, 1 of several].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreground: Option<usize>,
    /// Colour of the border that brings sides to a multiple of what the network needs, below and
    /// to the right; the map is cropped back.
    #[serde(default)]
    pub border: [u8; 3],
    /// How a picture becomes the network's input. Without `resize` it keeps its size.
    pub preprocess: Preprocess,
}

/// What a segmenter's map holds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum MapOutput {
    /// What the last convolution puts out.
    Logits,
    /// A probability for each channel on its own.
    Sigmoid,
    /// Probabilities that add up to 1 over the channels.
    Softmax,
}

/// Classifiers of tiles that decide which tiles enter encoder and heads. They see what the encoder
/// sees: the tile in the slide's stain normalisation, resized and cropped.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// What is let pass: `cancer`.
    pub class: String,
    /// Class names in the order of the classifiers' outputs, `class` among them; empty when each
    /// has one output, the logit of `class`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Smallest probability that passes, of the mean over the classifiers.
    #[serde(default = "half")]
    pub threshold: f64,
    /// Normalisation in place of the encoder's, per channel, on values in 0..1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<[f32; 3]>,
    /// As `mean`, and only with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std: Option<[f32; 3]>,
    /// The classifiers whose mean is taken.
    #[serde(rename = "classifier")]
    pub classifiers: Vec<Classifier>,
}

fn half() -> f64 {
    0.5
}

/// A tile classifier: an encoder and a linear layer on its features, in one weights file.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Classifier {
    /// A row of `models::FAMILIES`: `inception_v3`.
    pub family: String,
    /// Weights file in the package folder; the last layer is `fc`, `head` or `classifier`.
    pub weights: String,
    /// As in the encoder.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transform_input: bool,
}
