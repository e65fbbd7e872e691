//! What is looked at on a slide: where tissue is and which squares are cut from it.

use serde::{Deserialize, Serialize};

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
    /// What tiles show beyond the edges of the slide.
    #[serde(default, skip_serializing_if = "Outside::is_white")]
    pub outside: Outside,
    /// How much of JPEG 2000 tiles is decoded.
    #[serde(default, skip_serializing_if = "Jpeg2000::is_full")]
    pub jpeg2000: Jpeg2000,
    /// A tile is dropped when at least this fraction of its channel values is 255 (BALNMP: 0.3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_white: Option<f64>,
    /// A tile is dropped when the variance of its Laplacian is below this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_sharpness: Option<f64>,
}

impl Tiles {
    /// Squares of `size_px` level-0 pixels side by side, none of which is dropped.
    pub fn of(size_px: u32) -> Tiles {
        Tiles {
            size_px,
            mpp: None,
            stride_px: None,
            select: Select::default(),
            outside: Outside::default(),
            jpeg2000: Jpeg2000::default(),
            max_white: None,
            min_sharpness: None,
        }
    }
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

/// What tiles show beyond the edges of the slide.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Outside {
    /// Like glass.
    #[default]
    White,
    /// What Pillow makes of OpenSlide's transparent pixels, and so what CLAM's networks see.
    Black,
}

impl Outside {
    fn is_white(&self) -> bool {
        *self == Outside::White
    }

    /// The value of every channel.
    pub fn channel(self) -> u8 {
        match self {
            Outside::White => 255,
            Outside::Black => 0,
        }
    }
}

/// How much of JPEG 2000 tiles is decoded where `mpp` asks for less than a level holds. Slides of
/// other codecs are read alike under both.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Jpeg2000 {
    /// Everything; Pillow's filter makes it smaller.
    #[default]
    Full,
    /// Only what the coarsest resolution needs that is not coarser than `mpp`: 1/2, 1/4, ... of a
    /// level by the wavelet of the file; Pillow's filter does the rest. Several times as fast, with
    /// other pixels.
    Reduced,
}

impl Jpeg2000 {
    fn is_full(&self) -> bool {
        *self == Jpeg2000::Full
    }
}
