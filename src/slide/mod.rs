//! Whole-slide images: parsing, decoding, reading.
//!
//! [`Slide::open`] finds the levels, associated images and metadata of a file (`format.rs` holds
//! the table of formats); nothing but flat pictures is decoded then. [`Slide::read_region`]
//! copies whole pixels of one level; [`TilePass`] reads many regions of one level and decodes
//! every native tile once.

mod aperio;
mod codec;
mod flat;
mod format;
mod generic;
mod ome;
mod pass;
mod raster;
mod read;
mod reduced;
mod source;
pub mod synthetic;
mod tags;
mod tiff;

use crate::error::{Context, Error, Result};
use crate::image::RgbImage;
use format::{Associated, Parts, Pixels, Probe};
use source::Source;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tiff::{MAX_ICC_BYTES, Tiff};

pub use codec::{Photometric, decode_jpeg_as, jpeg_picture_size};
pub use pass::TilePass;
pub use raster::MAX_PICTURE_PIXELS;
pub use read::Scratch;
use reduced::Reduced;

/// How the bytes of a slide are fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// `pread` into owned buffers: a file truncated while open is an error.
    #[default]
    Read,
    /// A memory map: for local files that nobody changes.
    Map,
}

/// How to open a slide.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// How bytes are fetched.
    pub access: Access,
    /// Micrometres per level-0 pixel, in place of what the file says.
    pub mpp_override: Option<f64>,
    /// Adds the lower resolutions that JPEG 2000 tiles hold to [`Slide::resolutions`].
    pub reduced: bool,
}

/// Where the pixel size came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MppSource {
    /// Given by the caller.
    Override,
    /// Aperio's `MPP` key.
    ImageDescription,
    /// TIFF XResolution and YResolution with a unit.
    Resolution,
    /// OME-XML PhysicalSizeX and PhysicalSizeY.
    OmeXml,
    /// A guess: 10 / objective power.
    ObjectivePower,
}

impl MppSource {
    /// The name users see.
    pub fn name(self) -> &'static str {
        match self {
            MppSource::Override => "Override",
            MppSource::ImageDescription => "ImageDescription",
            MppSource::Resolution => "Resolution",
            MppSource::OmeXml => "OmeXml",
            MppSource::ObjectivePower => "ObjectivePower",
        }
    }
}

/// Micrometres per level-0 pixel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mpp {
    /// Horizontal.
    pub x: f64,
    /// Vertical.
    pub y: f64,
    /// Where it came from.
    pub source: MppSource,
}

impl Mpp {
    /// Whether both values can be those of a microscope slide: 0.01 to 100 micrometres. Writers
    /// that confuse units leave this range.
    fn plausible(&self) -> bool {
        [self.x, self.y].iter().all(|v| (0.01..=100.0).contains(v))
    }
}

/// One resolution of the pyramid.
#[derive(Clone, Debug)]
pub struct Level {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Level-0 pixels per pixel of this level, the mean of both axes.
    pub downsample: f64,
    /// Native tile width in pixels (the whole width for a flat picture).
    pub tile_width: u32,
    /// Native tile height in pixels.
    pub tile_height: u32,
    /// `jpeg`, `jpeg2000`, `lzw`, `deflate`, `packbits`, `none`, `png`.
    pub compression: &'static str,
}

/// A rectangle to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Left edge in level-0 pixels; may lie outside the slide.
    pub x: i64,
    /// Top edge in level-0 pixels.
    pub y: i64,
    /// Level to read from, one of [`Slide::resolutions`].
    pub level: usize,
    /// Width in pixels of that level.
    pub width: u32,
    /// Height in pixels of that level.
    pub height: u32,
}

/// Pixels of a region and what is known about them.
#[derive(Clone, Debug)]
pub struct RegionImage {
    /// The pixels; white outside the slide.
    pub image: RgbImage,
    /// Whether each pixel lies inside the slide and was decoded.
    pub valid: Vec<bool>,
    /// Native tiles that hold no data in the file.
    pub missing: Vec<TileIndex>,
    /// Native tiles that could not be decoded, and why; only [`Slide::read_overview`] goes on
    /// without them.
    pub broken: Vec<(TileIndex, String)>,
}

/// A native tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TileIndex {
    /// Level.
    pub level: usize,
    /// Column.
    pub col: u32,
    /// Row.
    pub row: u32,
}

/// An open slide. One handle serves any number of threads without a lock.
#[derive(Debug)]
pub struct Slide {
    path: PathBuf,
    format: &'static str,
    /// Those of the file, then the reduced ones.
    levels: Vec<Level>,
    reduced: Vec<Reduced>,
    mpp: Option<Mpp>,
    objective_power: Option<f64>,
    properties: BTreeMap<String, String>,
    source: Source,
    tiff: Option<Tiff>,
    pixels: Vec<Pixels>,
    associated: Vec<Associated>,
}

impl Slide {
    /// Opens a slide and checks its structure; the pixels of tiles are not touched.
    ///
    /// Errors name the file and, where it applies, the directory and the tag.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Slide> {
        Self::open_inner(path, options).context(|| path.display().to_string())
    }

    fn open_inner(path: &Path, options: &OpenOptions) -> Result<Slide> {
        let source = Source::open(path, options.access)?;
        let head = source.read(0, source.size().min(16))?;
        let tiff = Tiff::detect(&head).then(|| Tiff::read(&source)).transpose()?;
        let description = match &tiff {
            Some(tiff) => {
                let first = tiff.view(&source, &tiff.directories[0]);
                first.text(tags::IMAGE_DESCRIPTION)?.unwrap_or_default()
            }
            None => String::new(),
        };
        let probe =
            Probe { source: &source, head: &head, tiff: tiff.as_ref(), description: &description };
        let (format, parts) = format::open(&probe)?;
        let objective_power = parts.objective_power.filter(|p| (0.1..=400.0).contains(p));
        let mpp = choose_mpp(options.mpp_override, &parts, objective_power)?;
        let mut slide = Slide {
            path: path.to_path_buf(),
            format,
            levels: describe_levels(&parts.levels)?,
            reduced: Vec::new(),
            mpp,
            objective_power,
            properties: parts.properties,
            source,
            tiff,
            pixels: parts.levels,
            associated: parts.associated,
        };
        if options.reduced {
            slide.add_reduced();
        }
        Ok(slide)
    }

    /// The path it was opened under.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `aperio-svs`, `ome-tiff`, `generic-tiff`, `tiff` (in strips), `jpeg`, `png`.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// The levels of the file, largest first; there is at least one.
    pub fn levels(&self) -> &[Level] {
        &self.levels[..self.levels.len() - self.reduced.len()]
    }

    /// The pixel size, if the file states a plausible one or the caller gave one.
    pub fn mpp(&self) -> Option<Mpp> {
        self.mpp
    }

    /// The magnification of the objective, if stated.
    pub fn objective_power(&self) -> Option<f64> {
        self.objective_power
    }

    /// Metadata under OpenSlide's names (`aperio.AppMag`, `tiff.ImageDescription`).
    pub fn properties(&self) -> &BTreeMap<String, String> {
        &self.properties
    }

    /// Names of associated images, sorted: `label`, `macro`, `thumbnail`.
    pub fn associated_names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.associated.iter().map(|image| image.name).collect();
        names.sort_unstable();
        names
    }

    /// Decodes an associated image.
    pub fn associated(&self, name: &str) -> Result<RgbImage> {
        let read = || {
            let found =
                self.associated.iter().find(|image| image.name == name).zip(self.tiff.as_ref());
            let (image, tiff) = found.ok_or_else(|| {
                let names = self.associated_names().join(", ");
                let names = if names.is_empty() { "none".into() } else { names };
                Error::usage(format!("no associated image {name:?} (there is: {names})"))
            })?;
            let view = tiff.view(&self.source, &image.directory);
            let aperio = self.format == aperio::FORMAT.name;
            raster::Raster::parse(&view, aperio)?.picture(&self.source)
        };
        read().context(|| self.path.display().to_string())
    }

    /// Bytes of the ICC profile, if any; read when asked for.
    pub fn icc_profile(&self) -> Result<Option<Vec<u8>>> {
        let Some(tiff) = &self.tiff else { return Ok(None) };
        let view = tiff.view(&self.source, &tiff.directories[0]);
        let profile = view.bytes(tags::ICC_PROFILE, MAX_ICC_BYTES);
        profile.context(|| self.path.display().to_string())
    }

    /// Size of the ICC profile in bytes, without reading it.
    pub fn icc_profile_bytes(&self) -> Result<Option<u64>> {
        let Some(tiff) = &self.tiff else { return Ok(None) };
        let view = tiff.view(&self.source, &tiff.directories[0]);
        view.byte_count(tags::ICC_PROFILE).context(|| self.path.display().to_string())
    }

    /// The coarsest level of the file whose downsample is at most `downsample`.
    ///
    /// A level 1 % coarser still counts: sizes are rounded down to whole pixels, so a level of
    /// nominal downsample 4 reports 4.0001.
    pub fn best_level(&self, downsample: f64) -> usize {
        let fits = |level: &Level| level.downsample <= downsample * 1.01;
        self.levels().iter().rposition(fits).unwrap_or(0)
    }

    /// Error when the file changed since it was opened (size, modification time, inode).
    pub fn check_unchanged(&self) -> Result<()> {
        self.source.check_unchanged().context(|| self.path.display().to_string())
    }
}

/// The first plausible pixel size: the caller's, the file's, or a guess from the objective.
fn choose_mpp(given: Option<f64>, parts: &Parts, power: Option<f64>) -> Result<Option<Mpp>> {
    if let Some(value) = given {
        let mpp = Mpp { x: value, y: value, source: MppSource::Override };
        if !mpp.plausible() {
            return Err(Error::usage(format!("{value} micrometres a pixel; 0.01 to 100 can be")));
        }
        return Ok(Some(mpp));
    }
    let guess = power.map(|p| Mpp { x: 10.0 / p, y: 10.0 / p, source: MppSource::ObjectivePower });
    Ok(parts.mpp.iter().copied().chain(guess).find(Mpp::plausible))
}

fn describe_levels(pixels: &[Pixels]) -> Result<Vec<Level>> {
    let describe = |pixels: &Pixels| match pixels {
        Pixels::Tiles(raster) => Level {
            width: raster.width,
            height: raster.height,
            downsample: 1.0,
            tile_width: raster.chunk_width,
            tile_height: raster.chunk_height,
            compression: raster.layout.compression.name(),
        },
        Pixels::Flat { image, compression } => Level {
            width: image.width as u32,
            height: image.height as u32,
            downsample: 1.0,
            tile_width: image.width as u32,
            tile_height: image.height as u32,
            compression,
        },
    };
    let mut levels: Vec<Level> = pixels.iter().map(describe).collect();
    let base = levels.first().ok_or_else(|| Error::malformed("no level"))?;
    let (w0, h0) = (f64::from(base.width), f64::from(base.height));
    for level in &mut levels {
        level.downsample = (w0 / f64::from(level.width) + h0 / f64::from(level.height)) / 2.0;
    }
    Ok(levels)
}
