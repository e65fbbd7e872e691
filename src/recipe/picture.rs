//! The parts of a recipe that only packages for pictures have: what is cut out, and how the maps of
//! several segmenters become one mask.

use super::Interpolation;
use super::check::Fault;
use serde::{Deserialize, Serialize};

/// What is cut from a picture and becomes the encoder's input: the bounding box of the mask with a
/// margin, or in a package without segmenters the whole picture.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Image {
    /// Added on each side of the box, in pixels of the picture.
    pub margin_px: u32,
    /// Added on each side of the box, as a part of its width and height.
    pub margin_fraction: f64,
    /// How the cut-out becomes a square.
    pub fit: Fit,
    /// What is done with a picture in which nothing was found.
    pub empty_mask: EmptyMask,
}

/// How a cut-out becomes a square of side `resize`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// Both sides are resized to it, whatever their ratio.
    #[default]
    Squash,
    /// The short side is resized to it and the middle is taken (torchvision's `Resize(int)` and
    /// `CenterCrop`).
    ShortSide,
}

/// What is done with a picture whose mask is empty.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum EmptyMask {
    /// It has no prediction, and is listed as empty.
    #[default]
    Error,
    /// The whole picture is taken, and the result says so.
    WholeImage,
}

/// How the probability maps of the segmenters become one mask.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Fusion {
    /// How several maps become one mask.
    pub rule: FusionRule,
    /// Probability from which a pixel counts as inside.
    pub threshold: f64,
    /// How a map of another size is brought to that of the picture: bilinear or nearest.
    pub enlarge: Interpolation,
    /// Which pixels touch.
    pub connectivity: Connectivity,
    /// Only the component with the most pixels is kept, of equals the first from the top.
    pub largest: bool,
    /// Background that the mask encloses becomes part of it.
    pub fill_holes: bool,
}

impl Default for Fusion {
    fn default() -> Self {
        Fusion {
            rule: FusionRule::Mean,
            threshold: 0.5,
            enlarge: Interpolation::Bilinear,
            connectivity: Connectivity::Eight,
            largest: true,
            fill_holes: true,
        }
    }
}

/// How several maps become one mask.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum FusionRule {
    /// The mean of the probabilities reaches the threshold.
    #[default]
    Mean,
    /// More than half of the maps reach it.
    Vote,
    /// Any map reaches it.
    Union,
    /// Every map reaches it.
    Intersection,
}

impl FusionRule {
    /// As the recipe spells it.
    pub fn name(self) -> &'static str {
        match self {
            FusionRule::Mean => "mean",
            FusionRule::Vote => "vote",
            FusionRule::Union => "union",
            FusionRule::Intersection => "intersection",
        }
    }
}

/// Which neighbours of a pixel touch it. The background is always 4-connected.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(try_from = "u8", into = "u8")]
pub enum Connectivity {
    /// Those that share an edge.
    Four,
    /// Those that share an edge or a corner.
    #[default]
    Eight,
}

impl TryFrom<u8> for Connectivity {
    type Error = String;

    fn try_from(neighbours: u8) -> Result<Self, String> {
        match neighbours {
            4 => Ok(Connectivity::Four),
            8 => Ok(Connectivity::Eight),
            other => Err(format!("connectivity {other}: 4 or 8")),
        }
    }
}

impl From<Connectivity> for u8 {
    fn from(connectivity: Connectivity) -> u8 {
        match connectivity {
            Connectivity::Four => 4,
            Connectivity::Eight => 8,
        }
    }
}

impl Image {
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.margin_px > 1 << 16 {
            return Err(("margin_px", format!("margin_px {}: at most 65536", self.margin_px)));
        }
        if !(0.0..=16.0).contains(&self.margin_fraction) {
            let what = format!("margin_fraction {}: 0 to 16", self.margin_fraction);
            return Err(("margin_fraction", what));
        }
        Ok(())
    }
}

impl Fusion {
    /// Whether nothing but the defaults is asked for.
    pub fn is_default(&self) -> bool {
        *self == Fusion::default()
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        if !(0.0..=1.0).contains(&self.threshold) {
            return Err(("threshold", format!("threshold {}: 0 to 1", self.threshold)));
        }
        if self.enlarge == Interpolation::Bicubic {
            return Err(("enlarge", "enlarge: bilinear or nearest".into()));
        }
        Ok(())
    }
}
