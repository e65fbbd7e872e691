//! What segmentation found in a picture, as results hold it.

use crate::image::mask::{area, bounding_box, dice};
use crate::image::{GrayImage, Rect};
use serde::{Deserialize, Serialize};

/// The masks of one picture.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Segmentation {
    /// How the maps became one mask: `mean`, `vote`, `union`, `intersection`.
    pub rule: String,
    /// Probability from which a pixel counts as inside.
    pub threshold: f64,
    /// The mask of all segmenters.
    pub fused: Mask,
    /// The mask of each alone, thresholded and cleaned likewise.
    pub segmenters: Vec<Mask>,
    /// What is cut from the picture: the box of the fused mask with its margin, or the whole
    /// picture; absent when nothing was found and the recipe takes nothing then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<Bounds>,
}

/// One mask.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Mask {
    /// `fused`, or the segmenter's name.
    pub name: String,
    /// Pixels inside.
    pub area_px: u64,
    /// Around the pixels inside; absent for an empty mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounds: Option<Bounds>,
    /// Pixels inside before it was cleaned.
    pub raw_area_px: u64,
    /// Overlap with the true mask, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dice: Option<f64>,
    /// The same before it was cleaned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_dice: Option<f64>,
}

/// A rectangle in pixels of the picture.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Bounds {
    /// First column.
    pub x: u64,
    /// First row.
    pub y: u64,
    /// Columns.
    pub width: u64,
    /// Rows.
    pub height: u64,
}

impl From<Rect> for Bounds {
    fn from(r: Rect) -> Bounds {
        let [x, y, width, height] = [r.x, r.y, r.width, r.height].map(|v| v as u64);
        Bounds { x, y, width, height }
    }
}

impl Mask {
    /// Measures a mask and what it was before it was cleaned.
    pub fn measure(
        name: &str,
        raw: &GrayImage,
        clean: &GrayImage,
        truth: Option<&GrayImage>,
    ) -> Mask {
        Mask {
            name: name.into(),
            area_px: area(clean) as u64,
            bounds: bounding_box(clean).map(Bounds::from),
            raw_area_px: area(raw) as u64,
            dice: truth.map(|truth| dice(clean, truth)),
            raw_dice: truth.map(|truth| dice(raw, truth)),
        }
    }
}
