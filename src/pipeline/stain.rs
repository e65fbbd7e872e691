//! The stain of a slide, fitted on its overview.

use super::Prepared;
use super::outputs::Picture;
use crate::error::Result;
use crate::recipe::Stain;
use crate::stain::StainNormalizer;
use std::sync::Arc;

/// Most pixels looked at; more are thinned evenly.
const MAX_PIXELS: usize = 1 << 20;

/// A pixel whose darkest channel is above this shows the light of the microscope.
const LIGHT: u8 = 220;

/// How much more red than green a marker's ink absorbs, in optical density. Haematoxylin and eosin
/// absorb green at least about as much as red; strokes of green, blue or black ink are common and
/// would be taken for a stain.
const INK: f64 = 0.3;

/// Fits the normalisation that a recipe asks for on the tissue of a slide. Nothing is fitted when
/// none of its tiles will be read.
///
/// # Errors
/// What reading the slide returns, and as [`StainNormalizer::fit`].
pub fn fit(prepared: &Prepared, rule: &Stain) -> Result<Option<Arc<StainNormalizer>>> {
    if rule.is_none() || prepared.grid.origins.is_empty() {
        return Ok(None);
    }
    Ok(StainNormalizer::fit(rule, &tissue_pixels(prepared)?)?.map(Arc::new))
}

/// `[N, 3]` RGB pixels of the overview that lie on tissue (or anywhere, without contours) and show
/// neither light nor a marker's ink; at most about a million.
///
/// # Errors
/// What reading the slide returns.
pub fn tissue_pixels(prepared: &Prepared) -> Result<Vec<u8>> {
    let picture = Picture::new(prepared)?;
    let kept = picture.tissue().filter(|&rgb| !is_light(rgb) && !is_ink(rgb));
    let step = kept.clone().count().div_ceil(MAX_PIXELS).max(1);
    Ok(kept.step_by(step).flatten().collect())
}

fn is_light(rgb: [u8; 3]) -> bool {
    rgb.iter().all(|&v| v > LIGHT)
}

/// Whether a pixel shows a marker's ink.
pub fn is_ink([red, green, _]: [u8; 3]) -> bool {
    (f64::from(green.max(1)) / f64::from(red.max(1))).ln() > INK
}
