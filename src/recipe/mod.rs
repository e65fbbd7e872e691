//! `recipe.toml`: everything that decides a result besides the slide and the weights.
//!
//! A package folder holds one recipe and its `*.safetensors`. Unknown keys are errors, and every
//! message names the file and the line. A recipe describes a published system as data; no system
//! has code of its own.

mod check;
mod picture;

pub use picture::{Connectivity, EmptyMask, Fit, Fusion, FusionRule, Image};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A checked recipe.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Version of this file's own layout; 1.
    pub schema: u32,
    /// Short name, used in file names and results: `balnmp-dl-cnb`.
    pub name: String,
    /// One sentence: what is predicted from what.
    pub title: String,
    /// Licence of the weights.
    pub licence: String,
    /// Where the weights come from.
    pub source: String,
    /// The paper.
    #[serde(default)]
    pub citation: String,
    /// Printed with every result, for packages that must not be mistaken for more than they are.
    #[serde(default)]
    pub notice: String,
    /// Where tissue is.
    #[serde(default)]
    pub tissue: Tissue,
    /// Which squares are cut, in a package for slides; every package has this or `image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiles: Option<Tiles>,
    /// What is cut from a picture, in a package for pictures; [`Recipe::input`] tells the two apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// Whose colours tiles are given before they become the encoder's input.
    #[serde(default, skip_serializing_if = "Stain::is_none")]
    pub stain: Stain,
    /// How a square becomes the encoder's input.
    pub preprocess: Preprocess,
    /// From pixels to features.
    pub encoder: Encoder,
    /// How tiles are grouped before the heads; absent means all tiles of a slide are one bag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bag: Option<Bag>,
    /// Which tiles are what the heads are about; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// From pictures to maps, for systems that segment.
    #[serde(default, rename = "segmenter", skip_serializing_if = "Vec::is_empty")]
    pub segmenters: Vec<Segmenter>,
    /// How the maps of the segmenters become one mask.
    #[serde(default, skip_serializing_if = "Fusion::is_default")]
    pub fusion: Fusion,
    /// From features to predictions; none in a package that only encodes.
    #[serde(default, rename = "head", skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<Head>,
}

/// Where tissue is.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Tissue {
    /// HSV saturation, median, threshold, closing, contours and holes, as HistCode and CLAM do.
    Clam(ClamTissue),
    /// Annotated polygons (ASAP/BALNMP JSON or GeoJSON), everything else painted white.
    Regions {
        /// Without a polygon file: an error (`true`) or the whole picture as one region (`false`).
        #[serde(default)]
        required: bool,
    },
    /// The whole slide.
    None,
}

impl Default for Tissue {
    fn default() -> Self {
        Tissue::Clam(ClamTissue::default())
    }
}

/// Parameters of the CLAM segmentation (Lu et al. 2021), with HistCode's defaults.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct ClamTissue {
    /// The level nearest this downsample is segmented.
    pub downsample: f64,
    /// Side of the median filter on saturation, odd.
    pub median: usize,
    /// Fixed saturation threshold; absent means Otsu.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u8>,
    /// Side of the square closing; 0 for none.
    pub close: usize,
    /// Smallest tissue area, in 512 x 512 px squares of level 0.
    pub min_area: f64,
    /// Smallest hole area, in the same unit.
    pub min_hole: f64,
    /// Largest number of holes kept in a contour.
    pub max_holes: usize,
}

impl Default for ClamTissue {
    fn default() -> Self {
        ClamTissue {
            downsample: 64.0,
            median: 7,
            threshold: None,
            close: 4,
            min_area: 100.0,
            min_hole: 3.0,
            max_holes: 2048,
        }
    }
}

/// Which squares are cut.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tiles {
    /// Side of a tile in pixels at `mpp`.
    pub size_px: u32,
    /// Micrometres per pixel of the tile; absent means level-0 pixels whatever their size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mpp: Option<f64>,
    /// Step between tiles in pixels at `mpp`; absent means `size_px`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride_px: Option<u32>,
    /// Which grid positions count as tissue.
    #[serde(default)]
    pub select: Select,
    /// A tile is dropped when at least this fraction of its channel values is 255 (BALNMP: 0.3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_white: Option<f64>,
    /// A tile is dropped when the variance of its Laplacian is below this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_sharpness: Option<f64>,
}

/// Which grid positions count as tissue.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// Any of the four points half-way from the centre to the corners lies inside (CLAM `four_pt`).
    #[default]
    FourPoint,
    /// The centre lies inside.
    Center,
    /// At least half of the tile lies inside.
    Half,
    /// Every position that starts inside the region's bounding box.
    All,
}

/// Whose colours tiles are given: fitted once per slide on its tissue, then applied to every tile
/// that passed the filters, before it is resized for the encoder.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(tag = "method", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Stain {
    /// The slide's own.
    #[default]
    None,
    /// Macenko et al. 2009.
    Macenko(MacenkoStain),
    /// Reinhard et al. 2001, in CIELAB.
    Reinhard(ReinhardStain),
}

impl Stain {
    /// Whether colours stay as they are.
    pub fn is_none(&self) -> bool {
        *self == Stain::None
    }
}

/// Parameters of Macenko's normalisation; the defaults are those of torchstain and of the
/// authors' Matlab code.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct MacenkoStain {
    /// Channel value of an empty place.
    pub light: f64,
    /// Percentile of the angles taken as the extremes, from both ends.
    pub alpha: f64,
    /// Optical density that a pixel must reach in every channel to be fitted on.
    pub beta: f64,
    /// The stains every slide is given.
    pub target: StainTarget,
}

impl Default for MacenkoStain {
    fn default() -> Self {
        let target = StainTarget {
            haematoxylin: [0.5626, 0.7201, 0.4062],
            eosin: [0.2159, 0.8012, 0.5581],
            max: [1.9705, 1.0308],
        };
        MacenkoStain { light: 240.0, alpha: 1.0, beta: 0.15, target }
    }
}

/// Haematoxylin and eosin of a slide.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct StainTarget {
    /// Optical density of one unit, red, green, blue.
    pub haematoxylin: [f64; 3],
    /// Optical density of one unit, red, green, blue.
    pub eosin: [f64; 3],
    /// 99th percentiles of the amounts of both.
    pub max: [f64; 2],
}

/// Parameters of Reinhard's transfer. The default target is the mean over some 50,000 tiles of 450
/// TCGA slides that Slideflow publishes as its preset `v3`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct ReinhardStain {
    /// What every slide is given.
    pub target: LabTarget,
}

impl Default for ReinhardStain {
    fn default() -> Self {
        let (mean, sd) = ([65.22132, 28.934267, -14.142519], [15.800227, 9.263783, 6.0213304]);
        ReinhardStain { target: LabTarget { mean, sd } }
    }
}

/// Mean and standard deviation of L (0 to 100), a and b of CIELAB.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct LabTarget {
    /// Of the pixels.
    pub mean: [f64; 3],
    /// Of the pixels.
    pub sd: [f64; 3],
}

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

/// How tiles are grouped before the heads.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Bag {
    /// Tiles in a bag; a remainder smaller than this is dropped, as BALNMP did.
    pub size: usize,
    /// Seed of the shuffle before the split; absent keeps tile order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shuffle_seed: Option<u64>,
}

/// From features to one prediction.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Name in results: `metastasis`, a gene.
    pub name: String,
    /// A row of `heads::FAMILIES`: `balnmp`, `clam-sb`, `clam-mb`, `tile-linear`.
    pub family: String,
    /// Weights file in the package folder.
    #[serde(default = "head_file")]
    pub weights: String,
    /// Class names in the order of the logits; empty for a regression.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// What is done to the output of a regression.
    #[serde(default)]
    pub transform: Transform,
    /// How tiles become one prediction in a head without attention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregate: Option<Aggregate>,
    /// Clinical inputs in network order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clinical: Vec<Clinical>,
}

/// How the numbers of tiles become one number of the slide.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregate {
    /// The arithmetic mean.
    Mean,
    /// The largest.
    Max,
    /// The value at this fraction of the sorted tiles, interpolated as pandas does; Ekholm et al.
    /// 2024 take 0.75.
    Percentile(f32),
}

fn head_file() -> String {
    "head.safetensors".into()
}

/// What is done to the output of a regression.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Transform {
    /// Nothing.
    #[default]
    None,
    /// `10^y - 1`, HistCode's de-logged expression.
    Pow10MinusOne,
    /// `1 / (1 + exp(-y))`.
    Sigmoid,
}

/// One clinical input: a number to standardise, or a flag.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Clinical {
    /// `(value - mean) / sd`.
    Number {
        /// Column of the clinical table.
        column: String,
        /// Of the training patients.
        mean: f64,
        /// Of the training patients, population (ddof 0).
        sd: f64,
    },
    /// 1 when the cell equals `equals`, 0 when it is one of `otherwise`, an error for anything else.
    Flag {
        /// Column of the clinical table.
        column: String,
        /// The value that means 1.
        equals: String,
        /// The values that mean 0.
        otherwise: Vec<String>,
    },
}

impl Recipe {
    /// Reads and checks `recipe.toml`.
    ///
    /// # Errors
    /// [`crate::Kind::Io`] when it cannot be read, [`crate::Kind::Malformed`] naming the line when
    /// it is not valid.
    pub fn read(path: &Path) -> Result<Recipe> {
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::io(path.display().to_string(), e))?;
        Recipe::parse(&text).map_err(|e| e.context(path.display().to_string()))
    }

    /// Parses and checks the text of a recipe.
    ///
    /// # Errors
    /// [`crate::Kind::Malformed`] naming the line.
    pub fn parse(text: &str) -> Result<Recipe> {
        let recipe: Recipe = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            Error::malformed(format!("line {line}: {}", e.message())).caused_by(e)
        })?;
        recipe.check().map_err(|(key, what)| {
            let line = text.lines().position(|l| l.trim_start().starts_with(key));
            Error::malformed(format!("line {}: {what}", line.map_or(1, |n| n + 1)))
        })?;
        Ok(recipe)
    }

    /// What the package looks at.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] for a recipe with neither part, which reading one refuses.
    pub fn input(&self) -> Result<Input<'_>> {
        match (&self.tiles, &self.image) {
            (Some(tiles), _) => Ok(Input::Slide(tiles)),
            (None, Some(image)) => Ok(Input::Picture(image)),
            (None, None) => Err(Error::usage("the recipe has neither [tiles] nor [image]")),
        }
    }

    /// The squares to cut from a slide.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the package is for pictures.
    pub fn slide_tiles(&self) -> Result<&Tiles> {
        match self.input()? {
            Input::Slide(tiles) => Ok(tiles),
            Input::Picture(_) => Err(Error::usage(format!(
                "the package {} looks at pictures, not at slides: `segment`, `predict` and \
                 `explain gradcam` take it",
                self.name
            ))),
        }
    }

    /// What to cut from a picture.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the package is for slides.
    pub fn picture(&self) -> Result<&Image> {
        match self.input()? {
            Input::Picture(image) => Ok(image),
            Input::Slide(_) => {
                let what = "looks at slides: a recipe for pictures has [image] in place of [tiles]";
                Err(Error::usage(format!("the package {} {what}", self.name)))
            }
        }
    }

    /// Side of the encoder's square input in pixels; 0 in a package without an encoder that says
    /// nowhere what its input would be.
    pub fn input_px(&self) -> u32 {
        let tile = self.tiles.as_ref().map_or(0, |tiles| tiles.size_px);
        self.preprocess.crop.unwrap_or(self.preprocess.resize.unwrap_or(tile))
    }
}

/// What a package looks at.
#[derive(Clone, Copy, Debug)]
pub enum Input<'r> {
    /// Squares of a slide.
    Slide(&'r Tiles),
    /// A picture, or the part of it that is segmented.
    Picture(&'r Image),
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"schema = 1
name = "t"
title = "t"
licence = "MIT"
source = "here"
[tiles]
size_px = 256
[preprocess]
resize = 224
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
[encoder]
family = "vgg16_bn"
"#;

    #[test]
    fn minimal_recipe_has_the_stated_defaults() {
        let recipe = Recipe::parse(MINIMAL).unwrap();
        assert_eq!(recipe.input_px(), 224);
        assert_eq!(recipe.encoder.weights, "encoder.safetensors");
        assert!(matches!(recipe.tissue, Tissue::Clam(ref c) if c.median == 7));
    }

    #[test]
    fn a_recipe_is_for_slides_or_for_pictures() {
        let picture = MINIMAL.replace("[tiles]\nsize_px = 256", "[image]\nmargin_px = 3");
        let recipe = Recipe::parse(&picture).unwrap();
        assert_eq!(recipe.picture().unwrap().margin_px, 3);
        assert!(recipe.slide_tiles().unwrap_err().to_string().contains("looks at pictures"));
        assert!(Recipe::parse(MINIMAL).unwrap().picture().is_err());
        // What is not asked for does not change the identity of older packages.
        let text = toml::to_string(&Recipe::parse(MINIMAL).unwrap()).unwrap();
        assert!(!text.contains("fusion") && !text.contains("image"), "{text}");
        for (from, to, line, word) in [
            ("margin_px = 3", "margin_px = 3\n[tiles]\nsize_px = 9", 6, "not both"),
            ("[image]\nmargin_px = 3", "", 1, "no [tiles]"),
            ("resize = 224\n", "", 8, "resize is missing"),
            ("margin_px = 3", "margin_fraction = -0.1", 7, "0 to 16"),
            ("margin_px = 3", "[fusion]\nconnectivity = 6", 8, "4 or 8"),
            ("margin_px = 3", "[fusion]\nthreshold = 1.5", 8, "0 to 1"),
            ("margin_px = 3", "[bag]\nsize = 10", 7, "a picture is one"),
        ] {
            let error = Recipe::parse(&picture.replace(from, to)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("line {line}: ")), "{error}");
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn messages_name_the_line() {
        for (from, to, line, word) in [
            ("size_px = 256", "size_px = 256\nsize = 3", 8, "unknown field"),
            ("size_px = 256", "size_px = 0", 7, "size_px 0"),
            ("family = \"vgg16_bn\"", "family = \"vgg16_bn\"\nbn_mode = \"batch\"", 14, "[bag]"),
            ("schema = 1", "schema = 2", 1, "schema 2"),
            ("[encoder]", "[stain]\nmethod = \"macenko\"\nalpha = 50\n[encoder]", 14, "below 50"),
            (
                "family = \"vgg16_bn\"",
                "family = \"vgg16_bn\"\nweights = \"../x.safetensors\"",
                14,
                "package folder",
            ),
        ] {
            let error = Recipe::parse(&MINIMAL.replace(from, to)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("line {line}: ")), "{error}");
            assert!(error.contains(word), "{error}");
        }
    }
}
