//! The table of slide formats and what each must find in a file.

use super::raster::{Raster, is_tiled};
use super::source::Source;
use super::tags;
use super::tiff::{Directory, Tiff, View};
use super::{Mpp, MppSource, aperio, flat, generic, ome};
use crate::error::{Context, Error, Result};
use crate::image::RgbImage;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A slide format: one file and one row of [`FORMATS`].
pub struct Format {
    /// The name users see.
    pub name: &'static str,
    /// Whether a file is of this format; the first row that says yes opens it.
    pub detect: fn(&Probe<'_>) -> bool,
    /// Finds levels, associated images and metadata.
    pub open: fn(&Probe<'_>) -> Result<Parts>,
}

/// All formats, the most specific first.
pub const FORMATS: &[Format] =
    &[aperio::FORMAT, ome::FORMAT, generic::FORMAT, flat::TIFF, flat::JPEG, flat::PNG];

/// What the formats look at.
pub struct Probe<'a> {
    /// The file.
    pub source: &'a Source,
    /// Its first bytes.
    pub head: &'a [u8],
    /// Its directories, if it is a TIFF.
    pub tiff: Option<&'a Tiff>,
    /// ImageDescription of the first directory.
    pub description: &'a str,
}

/// The pixels of a level.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one per level")]
pub enum Pixels {
    /// Tiles in the file.
    Tiles(Raster),
    /// A picture that was decoded when the slide was opened.
    Flat {
        /// The picture.
        image: Arc<RgbImage>,
        /// How it was compressed.
        compression: &'static str,
    },
}

/// An associated image: a directory that is decoded when asked for.
#[derive(Clone, Debug)]
pub struct Associated {
    /// `label`, `macro` or `thumbnail`.
    pub name: &'static str,
    /// Its directory.
    pub directory: Directory,
}

/// What a format finds.
#[derive(Debug, Default)]
pub struct Parts {
    /// Level 0 first.
    pub levels: Vec<Pixels>,
    /// Associated images.
    pub associated: Vec<Associated>,
    /// Candidates for the pixel size, the most trusted first; implausible ones are passed over.
    pub mpp: Vec<Mpp>,
    /// Objective power, if stated.
    pub objective_power: Option<f64>,
    /// Properties under OpenSlide's names where it has one.
    pub properties: BTreeMap<String, String>,
}

impl Probe<'_> {
    /// The directories of a TIFF.
    pub fn tiff(&self) -> Result<&Tiff> {
        self.tiff.ok_or_else(|| Error::malformed("not a TIFF"))
    }

    /// The first directory of a TIFF, if it is one.
    pub fn first(&self) -> Option<View<'_>> {
        let tiff = self.tiff?;
        tiff.directories.first().map(|directory| tiff.view(self.source, directory))
    }

    /// Whether this is a TIFF whose first directory is tiled.
    pub fn is_tiled_tiff(&self) -> bool {
        self.first().is_some_and(|view| is_tiled(&view))
    }
}

/// Sorts tiled directories into a pyramid, largest first.
///
/// A directory of the size of one before it is another focal plane and is left out. One that is
/// no reduction of the first is refused: the file is not the pyramid it is taken for.
pub fn pyramid(rasters: Vec<Raster>) -> Result<Vec<Pixels>> {
    let mut levels: Vec<Raster> = Vec::new();
    for raster in rasters {
        let size = |r: &Raster| (r.width, r.height);
        if levels.iter().all(|level| size(level) != size(&raster)) {
            levels.push(raster);
        }
    }
    levels.sort_by_key(|level| std::cmp::Reverse(level.width));
    if let [base, rest @ ..] = &levels[..]
        && let Some(odd) = rest.iter().find(|level| !same_aspect(base, level))
    {
        return Err(Error::malformed(format!(
            "{}x{} pixels are no reduction of {}x{}",
            odd.width, odd.height, base.width, base.height
        ))
        .context(odd.name.clone()));
    }
    Ok(levels.into_iter().map(Pixels::Tiles).collect())
}

/// Whether `level` is `base` made smaller by one factor, up to rounding to whole pixels.
pub fn same_aspect(base: &Raster, level: &Raster) -> bool {
    let [w0, h0, w, h] = [base.width, base.height, level.width, level.height].map(f64::from);
    w <= w0 && h <= h0 && w0 * (h - 1.0) / h0 - 1.0 <= w && w <= w0 * (h + 1.0) / h0 + 1.0
}

/// Parses the tiled directories among `directories`, and the tiled sub-directories of the first.
pub fn tiled_rasters(probe: &Probe<'_>, aperio: bool) -> Result<Vec<Raster>> {
    let tiff = probe.tiff()?;
    let subs = tiff.directories.first().into_iter().flat_map(|first| &first.subs);
    let views = tiff.directories.iter().chain(subs).map(|d| tiff.view(probe.source, d));
    views.filter(is_tiled).map(|view| Raster::parse(&view, aperio)).collect()
}

/// The TIFF tags that become properties, under OpenSlide's names.
pub fn tiff_properties(view: &View<'_>) -> Result<BTreeMap<String, String>> {
    let mut properties = BTreeMap::new();
    let texts = [
        tags::IMAGE_DESCRIPTION,
        tags::DOCUMENT_NAME,
        tags::MAKE,
        tags::MODEL,
        tags::SOFTWARE,
        tags::DATE_TIME,
        tags::ARTIST,
        tags::HOST_COMPUTER,
        tags::COPYRIGHT,
    ];
    for tag in texts {
        if let Some(text) = view.text(tag)? {
            properties.insert(format!("tiff.{}", tags::name(tag)), text);
        }
    }
    for tag in [tags::X_RESOLUTION, tags::Y_RESOLUTION] {
        if let Some(value) = view.real(tag)? {
            properties.insert(format!("tiff.{}", tags::name(tag)), value.to_string());
        }
    }
    let unit = match view.integer(tags::RESOLUTION_UNIT)? {
        None | Some(2) => "inch",
        Some(1) => "none",
        Some(3) => "centimeter",
        Some(_) => "unknown",
    };
    properties.insert("tiff.ResolutionUnit".into(), unit.into());
    Ok(properties)
}

/// The pixel size by XResolution and YResolution, when they carry a unit of length.
pub fn resolution(view: &View<'_>) -> Result<Option<Mpp>> {
    let micrometres = match view.integer(tags::RESOLUTION_UNIT)?.unwrap_or(2) {
        2 => 25_400.0,
        3 => 10_000.0,
        _ => return Ok(None),
    };
    let (x, y) = (view.real(tags::X_RESOLUTION)?, view.real(tags::Y_RESOLUTION)?);
    let (Some(x), Some(y)) = (x, y) else { return Ok(None) };
    Ok(Some(Mpp { x: micrometres / x, y: micrometres / y, source: MppSource::Resolution }))
}

/// Reads a number as scanners write it: a decimal comma is a point. `None` unless finite.
pub fn number(text: &str) -> Option<f64> {
    text.trim().replace(',', ".").parse::<f64>().ok().filter(|value| value.is_finite())
}

/// The first row of [`FORMATS`] that recognises the file opens it.
pub fn open(probe: &Probe<'_>) -> Result<(&'static str, Parts)> {
    let format = FORMATS.iter().find(|format| (format.detect)(probe)).ok_or_else(|| {
        Error::unsupported(
            "neither a TIFF (SVS, OME-TIFF, tiled or flat) nor a JPEG or PNG picture",
        )
    })?;
    let parts = (format.open)(probe).context(|| format.name.into())?;
    Ok((format.name, parts))
}
