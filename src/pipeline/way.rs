//! What happens to a tile between its decoding and the network's input, and who does it: threads of the
//! host up to some step, the machine that runs the network from there on. The bytes are the same
//! wherever that is.

use super::Prepared;
use crate::backend::{Axis, Preparation, TileStep};
use crate::error::{Error, Result};
use crate::image::{FilterTable, Resampler, crop_corner};
use crate::recipe::Recipe;
use crate::stain::StainNormalizer;
use std::sync::Arc;

/// One step on a square tile.
#[derive(Clone, Debug)]
pub enum Step {
    /// To another side, of which the middle square of `kept` pixels is kept.
    Resample {
        /// The resize.
        resampler: Resampler,
        /// Side of what is kept.
        kept: usize,
    },
    /// Drops the tile if it is too white or too blurred.
    Filter,
    /// Gives the tile the recipe's stain. Filters have seen the slide's own colours.
    Recolour(Arc<StainNormalizer>),
}

/// The way of the tiles of one slide.
#[derive(Clone, Debug)]
pub struct Way {
    /// Side of a tile as it is read.
    pub read_px: usize,
    /// Side of a tile as the host hands it over.
    pub given_px: usize,
    /// What the host does, in order.
    pub host: Vec<Step>,
    /// What is left to the machine, if anything is.
    pub machine: Option<Arc<Preparation>>,
}

impl Way {
    /// The way of the tiles of a slide, for a machine that takes pictures of up to `machine_pixels`
    /// pixels, none if 0. It gets as many of the last steps as it can do.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the recipe's sizes do not fit each other.
    pub fn new(prepared: &Prepared, recipe: &Recipe, machine_pixels: usize) -> Result<Way> {
        let read_px = prepared.grid.read_px as usize;
        let mut host = steps(prepared, recipe)?;
        let (mut first, mut given_px) = (0, read_px);
        for (i, step) in host.iter().enumerate() {
            let rest: Option<Vec<TileStep>> = host[i..].iter().map(on_machine).collect();
            let how = rest.and_then(|rest| Preparation::new([given_px; 2], rest).ok());
            if let Some(how) = how.filter(|how| how.most_pixels() <= machine_pixels) {
                host.truncate(first);
                return Ok(Way { read_px, given_px, host, machine: Some(Arc::new(how)) });
            }
            first = i + 1;
            if let Step::Resample { kept, .. } = step {
                given_px = *kept;
            }
        }
        Ok(Way { read_px, given_px, host, machine: None })
    }

    /// Bytes of a tile as the host hands it over.
    pub fn row_bytes(&self) -> usize {
        3 * self.given_px * self.given_px
    }

    /// Whether the host leaves every tile the size it was read with.
    pub fn keeps_size(&self) -> bool {
        !self.host.iter().any(|step| matches!(step, Step::Resample { .. }))
    }
}

/// Every step that changes anything.
fn steps(prepared: &Prepared, recipe: &Recipe) -> Result<Vec<Step>> {
    let grid = &prepared.grid;
    let (read, tile) = (grid.read_px as usize, grid.size_px as usize);
    let resized = recipe.preprocess.resize.map_or(tile, |px| px as usize);
    let input = recipe.input_px() as usize;
    if input > resized {
        return Err(Error::usage(format!(
            "centre crop of {input} px from {resized} x {resized} px"
        )));
    }
    let filter = recipe.preprocess.interpolation;
    let resample = |from: usize, to: usize, kept: usize| -> Result<Option<Step>> {
        let resampler = Resampler::new(from, from, to, to, filter)?;
        Ok((from != to || to != kept).then_some(Step::Resample { resampler, kept }))
    };
    let rules = recipe.slide_tiles()?;
    let filtered = rules.max_white.is_some() || rules.min_sharpness.is_some();
    Ok(resample(read, tile, tile)?
        .into_iter()
        .chain(filtered.then_some(Step::Filter))
        .chain(prepared.stain.clone().map(Step::Recolour))
        .chain(resample(tile, resized, input)?)
        .collect())
}

/// A step as a machine can do it, if it can.
fn on_machine(step: &Step) -> Option<TileStep> {
    match step {
        Step::Resample { resampler, kept } => {
            let axes = resampler.filters().map(|table| {
                let FilterTable { length, bounds, weights } = table;
                Axis { length, bounds, weights }
            });
            let corner = axes.each_ref().map(|axis| crop_corner(axis.bounds.len(), *kept));
            Some(TileStep::Resample { axes, kept: corner.map(|at| at..at + kept) })
        }
        Step::Recolour(stain) => {
            stain.exponents().map(|exponents| TileStep::Recolour { exponents })
        }
        Step::Filter => None,
    }
}
