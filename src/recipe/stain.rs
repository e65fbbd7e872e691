//! The colours tiles are brought to before they are looked at.

use serde::{Deserialize, Serialize};

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
