//! Nuclei of tiles: read with a margin, segmented, measured, each given to the tile that holds its
//! centre, so that tiles side by side count no nucleus twice and none is cut.

use super::stain::is_ink;
use crate::error::{Error, Result};
use crate::image::RgbImage;
use crate::nuclei::outline::outline;
use crate::nuclei::shape::measure;
use crate::nuclei::{Parameters, Segmenter, Shape};
use crate::slide::{Region, Scratch, Slide};
use crate::stain::{Deconvolution, macenko};

/// Micrometres per pixel at which nuclei are looked at: the coarsest level not above it is read.
const MPP: f64 = 0.5;

/// Pixel size that lengths are converted by when a slide does not state its own.
pub const ASSUMED_MPP: f64 = 0.5;

/// Coarsest level that still shows nuclei.
const MAX_MPP: f64 = 1.1;

/// How far a nucleus reaches beyond the tile that holds its centre, in micrometres.
const NUCLEUS_UM: f64 = 16.0;

/// Largest side of a tile, margin included, in pixels of the level read.
const MAX_SIDE: f64 = 8192.0;

/// Reads and measures tiles of one slide, from any thread.
#[derive(Debug)]
pub struct NucleusReader<'a> {
    slide: &'a Slide,
    segmenter: Segmenter,
    /// Level that is read.
    pub level: usize,
    /// Level-0 pixels per pixel of it.
    pub downsample: f64,
    /// Micrometres per pixel of it, when the slide states it.
    pub mpp: Option<f64>,
    margin: i64,
}

/// A nucleus and where it lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Nucleus {
    /// Centre in level-0 pixels.
    pub center: [f64; 2],
    /// Corners in level-0 pixels.
    pub outline: Vec<[f64; 2]>,
    /// In pixels of the level that was read.
    pub shape: Shape,
}

/// A tile with its nuclei.
#[derive(Clone, Debug)]
pub struct TileNuclei {
    /// Those whose centre lies in it, row by row.
    pub nuclei: Vec<Nucleus>,
    /// Its area on the slide in level-0 pixels.
    pub area: f64,
    /// Share of its pixels that show a marker's ink, under which nuclei cannot be told.
    pub ink: f64,
    /// Whether native tiles under it hold no data.
    pub missing: bool,
    /// Its pixels, at the level that was read, and their top-left corner in level-0 pixels.
    pub picture: (RgbImage, [f64; 2]),
}

/// The haematoxylin of a slide: the separation, and its 99th percentile over tissue pixels.
///
/// # Errors
/// [`crate::Kind::Unsupported`] when the pixels hold none.
pub fn strength(stains: &Deconvolution, tissue: &[u8]) -> Result<f64> {
    let mut amounts: Vec<f64> = stains.channel(0, tissue).into_iter().map(f64::from).collect();
    let strong = macenko::percentile(&mut amounts, 99.0);
    if strong.is_nan() || strong <= 0.05 {
        return Err(Error::unsupported(format!(
            "the tissue holds no haematoxylin (99th percentile {strong:.3} over {} pixels)",
            amounts.len()
        )));
    }
    Ok(strong)
}

impl<'a> NucleusReader<'a> {
    /// Readies a slide. `strong` is what [`strength`] returns.
    ///
    /// # Errors
    /// [`crate::Kind::Unsupported`] when its pixels are too coarse to show nuclei or not square.
    pub fn new(
        slide: &'a Slide,
        stains: Deconvolution,
        strong: f64,
        parameters: Parameters,
    ) -> Result<NucleusReader<'a>> {
        let base = match slide.mpp() {
            Some(m) if (m.x - m.y).abs() > 0.01 * m.x.max(m.y) => {
                let what = format!("pixels of {} x {} micrometres are not square", m.x, m.y);
                return Err(Error::unsupported(what));
            }
            mpp => mpp.map(|m| f64::midpoint(m.x, m.y)),
        };
        let level = base.map_or(0, |mpp| slide.best_level(MPP / mpp));
        let downsample = slide.nominal_downsample(level)?;
        let mpp = base.map(|mpp| mpp * downsample);
        if let Some(mpp) = mpp.filter(|&mpp| mpp > MAX_MPP) {
            return Err(Error::unsupported(format!(
                "pixels of {mpp:.2} micrometres do not show nuclei, at most {MAX_MPP} are needed"
            )));
        }
        let um_per_px = mpp.unwrap_or(ASSUMED_MPP);
        let margin = ((parameters.reach_um() + NUCLEUS_UM) / um_per_px).ceil() as i64;
        let segmenter = Segmenter { stains, strong, um_per_px, parameters };
        Ok(NucleusReader { slide, segmenter, level, downsample, mpp, margin })
    }

    /// Nuclei of the square of side `side` at `origin`, in level-0 pixels.
    ///
    /// # Errors
    /// What reading the slide returns; [`crate::Kind::Limit`] for a tile that is too large.
    pub fn tile(&self, origin: [i64; 2], side: f64, scratch: &mut Scratch) -> Result<TileNuclei> {
        let span = side / self.downsample + 2.0 * self.margin as f64 + 1.0;
        // Written so that what is not a number is refused.
        if !(side >= 1.0 && span <= MAX_SIDE) {
            return Err(Error::limit(format!(
                "a tile of {side} level-0 px; at least 1 and, with its margin, at most {MAX_SIDE} \
                 px of level {}",
                self.level
            )));
        }
        // Corners on whole pixels of the level: neighbouring tiles see the same pixels.
        let corner = origin.map(|c| (c as f64 / self.downsample).floor() as i64 - self.margin);
        let level0 = corner.map(|c| (c as f64 * self.downsample).round() as i64);
        let size = span.ceil() as u32;
        let region =
            Region { x: level0[0], y: level0[1], level: self.level, width: size, height: size };
        let read = self.slide.read_region_with(&region, scratch)?;
        let found = self.segmenter.run(&read.image);
        let place = |axis: usize, v: f64| (corner[axis] as f64 + v) * self.downsample;
        let inside = |center: [f64; 2]| {
            (0..2).all(|k| (0.0..side).contains(&(center[k] - origin[k] as f64)))
        };
        let mut nuclei = Vec::new();
        for shape in measure(&found.labels, &found.haematoxylin.data) {
            let center = [0, 1].map(|k| place(k, shape.centroid[k] + 0.5));
            if inside(center) {
                let corners = outline(&found.labels, &shape);
                let outline =
                    corners.iter().map(|c| [0, 1].map(|k| place(k, c[k].into()))).collect();
                nuclei.push(Nucleus { center, outline, shape });
            }
        }
        let picture = self.inner(&read.image, side);
        let pixels = picture.data.as_chunks::<3>().0;
        let ink = pixels.iter().filter(|&&rgb| is_ink(rgb)).count() as f64;
        let at = [0, 1].map(|k| place(k, self.margin as f64));
        Ok(TileNuclei {
            nuclei,
            area: self.on_slide(origin, side),
            ink: ink / pixels.len().max(1) as f64,
            missing: !read.missing.is_empty(),
            picture: (picture, at),
        })
    }

    /// The picture without its margin.
    fn inner(&self, image: &RgbImage, side: f64) -> RgbImage {
        let side = ((side / self.downsample).round() as usize).max(1);
        let margin = self.margin as usize;
        let rows = image.data.chunks(image.width * 3).skip(margin).take(side);
        let data: Vec<u8> =
            rows.flat_map(|row| &row[margin * 3..(margin + side) * 3]).copied().collect();
        RgbImage { width: side, height: side, data }
    }

    /// Area of the part of a tile that lies on the slide, in level-0 pixels.
    fn on_slide(&self, origin: [i64; 2], side: f64) -> f64 {
        let base = &self.slide.levels()[0];
        let length = |k: usize, size: u32| {
            let start = origin[k] as f64;
            ((start + side).min(f64::from(size)) - start.max(0.0)).max(0.0)
        };
        length(0, base.width) * length(1, base.height)
    }
}
