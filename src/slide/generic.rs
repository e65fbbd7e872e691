//! Generic tiled TIFF pyramids, as libvips, QuPath, VIPS-based converters and others write them.
//!
//! The first directory must be tiled. Others are levels when they say they are reductions, or,
//! as many writers leave that out, when they are smaller and of the same aspect.

use super::format::{
    Format, Parts, Probe, pyramid, resolution, same_aspect, tiff_properties, tiled_rasters,
};
use crate::error::{Error, Result};

/// The row of [`super::format::FORMATS`].
pub const FORMAT: Format =
    Format { name: "generic-tiff", detect: |probe| probe.is_tiled_tiff(), open };

fn open(probe: &Probe<'_>) -> Result<Parts> {
    let first = probe.first().ok_or_else(|| Error::malformed("no directory"))?;
    let mut rasters = tiled_rasters(probe, false)?;
    // The first of the largest, so in reverse: of equals `max_by_key` gives the last.
    let base = rasters.iter().rev().max_by_key(|raster| raster.width).cloned();
    let base = base.ok_or_else(|| Error::malformed("no tiled directory"))?;
    // Tiled pages that are no reduction of the largest are other pictures, not levels.
    rasters.retain(|raster| same_aspect(&base, raster));
    // The resolution is that of the first directory; elsewhere in the pyramid it says nothing.
    let is_first = base.name == first.directory.name;
    let mpp = if is_first { resolution(&first)? } else { None };
    Ok(Parts {
        levels: pyramid(rasters)?,
        mpp: mpp.into_iter().collect(),
        properties: tiff_properties(&first)?,
        ..Parts::default()
    })
}
