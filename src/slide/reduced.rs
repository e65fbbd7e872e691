//! Lower resolutions that a slide does not store as levels of their own but holds in its JPEG 2000 tiles.
//!
//! A tile decoded without its r highest wavelet decompositions is the slide at 1 / 2^r for a fraction
//! of the work. Both wavelets of the standard have low-pass filters of odd length: sample i of the low
//! band lies on pixel 2^r i, not in the middle of 2^r pixels as a pixel of a stored level does. A reduced
//! picture is therefore displaced by (2^r - 1) / 2 pixels of its level, always less than half a pixel
//! of its own. [`Slide::to_level`] takes the sample nearest to where the first pixel of a region would
//! have its middle, which is at most as far away.

use super::codec::reduced;
use super::format::Pixels;
use super::{Level, Slide};

/// What a reduced level is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reduced {
    /// The level of the file.
    stored: usize,
    /// How often its sides are halved.
    halvings: u32,
}

impl Slide {
    /// The levels of the file, then those that are only there as lower resolutions of JPEG 2000
    /// tiles: none unless the slide was [opened with them](super::OpenOptions::reduced), none that is as
    /// coarse as the next level of the file. Regions and tiles count levels in this order.
    ///
    /// Pixels of a reduced level are samples of the low band of a wavelet, which lie on every 2^r-th
    /// pixel of a level of the file, beginning with its first.
    pub fn resolutions(&self) -> &[Level] {
        &self.levels
    }

    /// Whether a level is not one of the file.
    pub fn is_reduced(&self, level: usize) -> bool {
        level >= self.levels().len()
    }

    /// The level as users know it: `level 1`, or `level 0 at 1/4` for a reduced one.
    pub fn level_name(&self, level: usize) -> String {
        match self.stored(level) {
            (stored, 0) => format!("level {stored}"),
            (stored, halvings) => format!("level {stored} at 1/{}", 1u64 << halvings),
        }
    }

    /// The level of the file that a level is made from, and how often that is halved.
    pub(super) fn stored(&self, level: usize) -> (usize, u32) {
        let beyond = level.checked_sub(self.levels().len());
        let found = beyond.and_then(|at| self.reduced.get(at));
        found.map_or((level, 0), |reduced| (reduced.stored, reduced.halvings))
    }

    /// Adds what [`Slide::resolutions`] has beside the levels of the file.
    pub(super) fn add_reduced(&mut self) {
        for stored in 0..self.levels().len() {
            let Some(Pixels::Tiles(raster)) = self.pixels.get(stored) else { continue };
            let raster = raster.clone();
            let level = self.levels[stored].clone();
            let next = self.levels().get(stored + 1).map_or(f64::INFINITY, |next| next.downsample);
            for halvings in 1..=raster.halvings(&self.source) {
                let downsample = level.downsample * (1u64 << halvings) as f64;
                // Sizes are rounded to whole pixels: a stored level of 4 may say 3.999.
                if downsample >= next * 0.99 {
                    break;
                }
                self.levels.push(Level {
                    width: reduced(level.width, halvings),
                    height: reduced(level.height, halvings),
                    downsample,
                    tile_width: level.tile_width >> halvings,
                    tile_height: level.tile_height >> halvings,
                    compression: level.compression,
                });
                self.reduced.push(Reduced { stored, halvings });
                self.pixels.push(Pixels::Tiles(raster.halved(halvings)));
            }
        }
    }
}
