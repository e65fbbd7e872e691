//! From pixels to one region per nucleus.

use super::basins::basins;
use super::filter::{distance, fill_holes, gaussian, mean, open, open_mask};
use super::{Labels, Mask, Plane};
use crate::image::RgbImage;
use crate::stain::Deconvolution;
use serde::Serialize;

/// What decides a segmentation, in micrometres where a length or an area.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Parameters {
    /// Standard deviation of the smoothing before the threshold.
    pub smoothing_um: f64,
    /// Half the side of the square that nuclei must be smaller than: the background is the opening
    /// of the haematoxylin by it.
    pub background_um: f64,
    /// How much more haematoxylin than the background a nucleus holds, as a share of the slide's
    /// 99th percentile.
    pub threshold: f64,
    /// Radius of the disc that must fit into a nucleus.
    pub opening_um: f64,
    /// Pale places inside nuclei up to this size are filled.
    pub hole_um2: f64,
    /// Standard deviation of the smoothing of the distance to the border.
    pub seed_smoothing_um: f64,
    /// How much deeper than the neck between them two nuclei must be to be taken apart.
    pub seed_depth_um: f64,
    /// Smallest and largest nucleus.
    pub area_um2: [f64; 2],
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            smoothing_um: 0.4,
            background_um: 8.0,
            threshold: 0.12,
            opening_um: 0.75,
            hole_um2: 15.0,
            seed_smoothing_um: 0.4,
            seed_depth_um: 0.125,
            area_um2: [8.0, 400.0],
        }
    }
}

impl Parameters {
    /// How far from a pixel others decide whether it is nuclear, in micrometres: the background is
    /// smoothed, opened and averaged. A nucleus is certain where all of it is farther than this
    /// from the edge of the picture.
    pub fn reach_um(&self) -> f64 {
        4.0 * BACKGROUND_SMOOTHING_UM + 3.0 * self.background_um
    }
}

/// Standard deviation of the smoothing before the background is taken, in micrometres, so that a
/// single pale pixel does not decide it.
const BACKGROUND_SMOOTHING_UM: f64 = 1.0;

/// A segmentation readied for the pictures of one slide.
#[derive(Clone, Debug)]
pub struct Segmenter {
    /// Its first stain is haematoxylin.
    pub stains: Deconvolution,
    /// 99th percentile of haematoxylin in the slide's tissue.
    pub strong: f64,
    /// Micrometres per pixel.
    pub um_per_px: f64,
    /// Everything else.
    pub parameters: Parameters,
}

/// Nuclei of a picture.
#[derive(Clone, Debug, Default)]
pub struct Segmented {
    /// One number per nucleus.
    pub labels: Labels,
    /// Amount of haematoxylin in optical density.
    pub haematoxylin: Plane,
}

impl Segmenter {
    /// Finds the nuclei of a picture. A nucleus nearer to the edge than
    /// [`Parameters::reach_um`] may be cut or missed.
    pub fn run(&self, image: &RgbImage) -> Segmented {
        let (width, height) = (image.width, image.height);
        let px = |um: f64| um / self.um_per_px;
        let p = &self.parameters;
        let haematoxylin = Plane { width, height, data: self.stains.channel(0, &image.data) };
        if haematoxylin.data.is_empty() {
            return Segmented::default();
        }
        let smooth = gaussian(&haematoxylin, px(p.smoothing_um));
        let radius = px(p.background_um) as usize;
        let background = open(&gaussian(&haematoxylin, px(BACKGROUND_SMOOTHING_UM)), radius);
        let background = mean(&background, radius);
        let least = (p.threshold * self.strong) as f32;
        let nuclear = smooth.data.iter().zip(&background.data);
        let data = nuclear.map(|(v, b)| u8::from(v - b > least)).collect();
        let mut mask = open_mask(&Mask { width, height, data }, px(p.opening_um));
        let px2 = |um2: f64| um2 / (self.um_per_px * self.um_per_px);
        fill_holes(&mut mask, px2(p.hole_um2));
        let depth = gaussian(&distance(&mask), px(p.seed_smoothing_um));
        let mut labels = basins(&depth, &mask, px(p.seed_depth_um) as f32);
        keep_sizes(&mut labels, p.area_um2.map(px2));
        Segmented { labels, haematoxylin }
    }
}

/// Removes regions outside the range of sizes and renumbers the others in order.
fn keep_sizes(labels: &mut Labels, [least, most]: [f64; 2]) {
    let count = labels.data.iter().copied().max().unwrap_or(0) as usize;
    let mut sizes = vec![0usize; count + 1];
    labels.data.iter().for_each(|&l| sizes[l as usize] += 1);
    let mut next = 0;
    let mut number = vec![0; count + 1];
    for (number, &size) in number.iter_mut().zip(&sizes).skip(1) {
        if (least..=most).contains(&(size as f64)) {
            next += 1;
            *number = next;
        }
    }
    labels.data.iter_mut().for_each(|l| *l = number[*l as usize]);
}
