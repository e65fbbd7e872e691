//! `recipe.toml`: everything that decides a result besides the slide and the weights.
//!
//! A package folder holds one recipe and its `*.safetensors`. Unknown keys are errors, and every
//! message names the file and the line. A recipe describes a published system as data; no system
//! has code of its own.

mod check;
mod head;
mod network;
mod picture;
mod slide;
mod stain;

pub use head::{Aggregate, Clinical, Head, Transform};
pub use network::{
    BnMode, Classifier, Encoder, Gate, Interpolation, MapOutput, NO_ENCODER, PositionResize,
    Preprocess, Segmenter, TokenPool, Vit,
};
pub use picture::{Connectivity, EmptyMask, Fit, Fusion, FusionRule, Image};
pub use slide::{ClamTissue, Jpeg2000, Outside, Select, Tiles, Tissue};
pub use stain::{LabTarget, MacenkoStain, ReinhardStain, Stain, StainTarget};

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
