//! `recipe.toml`: everything that decides a result besides the slide and the weights.
//!
//! A package folder holds one recipe and its `*.safetensors`. Unknown keys are errors, and every
//! message names the file and the line. A recipe describes a published system as data; no system
//! has code of its own.

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
    /// Which squares are cut.
    pub tiles: Tiles,
    /// How a square becomes the encoder's input.
    pub preprocess: Preprocess,
    /// From pixels to features.
    pub encoder: Encoder,
    /// How tiles are grouped before the heads; absent means all tiles of a slide are one bag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bag: Option<Bag>,
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
}

/// From pixels to features.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// A row of `models::FAMILIES`: `vgg16_bn`, `resnet50`.
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
}

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
    /// A row of `heads::FAMILIES`: `balnmp`, `clam-sb`, `clam-mb`.
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
    /// Clinical inputs in network order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clinical: Vec<Clinical>,
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

    /// What types cannot say. The error names the key at fault.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let file = |key, name: &str| {
            let plain = Path::new(name).components().count() == 1 && !name.starts_with('.');
            if plain && name.ends_with(".safetensors") {
                return Ok(());
            }
            Err((
                key,
                format!("weights {name:?} must be a .safetensors file in the package folder"),
            ))
        };
        if self.schema != 1 {
            return Err(("schema", format!("schema {}: this program reads schema 1", self.schema)));
        }
        if self.name.is_empty()
            || !self.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        {
            return Err(("name", format!("name {:?}: letters, digits, - _ . only", self.name)));
        }
        if !(1..=16_384).contains(&self.tiles.size_px) {
            return Err(("size_px", format!("size_px {}: 1 to 16384", self.tiles.size_px)));
        }
        if self.tiles.stride_px == Some(0) {
            return Err(("stride_px", "stride_px 0: tiles must advance".into()));
        }
        if self.tiles.mpp.is_some_and(|m| !(m.is_finite() && m > 0.0)) {
            return Err(("mpp", "mpp must be a positive number of micrometres".into()));
        }
        if self.preprocess.std.iter().any(|&s| !(s.is_finite() && s > 0.0)) {
            return Err(("std", "std must be positive".into()));
        }
        if self.preprocess.mean.iter().any(|m| !m.is_finite()) {
            return Err(("mean", "mean must be finite".into()));
        }
        let side = self.preprocess.resize.unwrap_or(self.tiles.size_px);
        if !(1..=4096).contains(&side) {
            return Err(("resize", format!("encoder input of {side} px: 1 to 4096")));
        }
        if self.preprocess.crop.is_some_and(|c| c == 0 || c > side) {
            return Err(("crop", format!("crop must lie between 1 and {side}")));
        }
        file("weights", &self.encoder.weights)?;
        if let Tissue::Clam(clam) = &self.tissue
            && (clam.median % 2 == 0 || clam.median > 255)
        {
            return Err(("median", format!("median {}: odd, at most 255", clam.median)));
        }
        match &self.bag {
            Some(bag) if bag.size == 0 => return Err(("size", "bag size 0".into())),
            None if self.encoder.bn_mode == BnMode::Batch => {
                return Err(("bn_mode", "bn_mode = \"batch\" needs a [bag]".into()));
            }
            _ => {}
        }
        for (i, head) in self.heads.iter().enumerate() {
            file("weights", &head.weights)?;
            if self.heads[..i].iter().any(|h| h.name == head.name) {
                return Err(("name", format!("head {:?} is named twice", head.name)));
            }
            for clinical in &head.clinical {
                if let Clinical::Number { column, sd, mean } = clinical
                    && !(sd.is_finite() && *sd > 0.0 && mean.is_finite())
                {
                    return Err((
                        "clinical",
                        format!("{column}: mean and sd must be finite, sd > 0"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Side of the encoder's square input in pixels.
    pub fn input_px(&self) -> u32 {
        let resized = self.preprocess.resize.unwrap_or(self.tiles.size_px);
        self.preprocess.crop.unwrap_or(resized)
    }
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
    fn messages_name_the_line() {
        for (from, to, line, word) in [
            ("size_px = 256", "size_px = 256\nsize = 3", 8, "unknown field"),
            ("size_px = 256", "size_px = 0", 7, "size_px 0"),
            ("family = \"vgg16_bn\"", "family = \"vgg16_bn\"\nbn_mode = \"batch\"", 14, "[bag]"),
            ("schema = 1", "schema = 2", 1, "schema 2"),
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
