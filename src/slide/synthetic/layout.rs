//! The three usual ways to lay a pyramid out: Aperio SVS, generic tiled TIFF and OME-TIFF.

use super::{
    Chunks, Compression, Directory, Endian, Picture, Pixels, Resolution, Samples, TiffFile,
};
use std::fmt::Write;

/// What the layouts have in common.
#[derive(Clone)]
pub struct Pyramid<'a> {
    /// Level 0.
    pub picture: &'a dyn Picture,
    /// How much smaller each further level is than the one before: `[4, 4]` gives 1, 4, 16.
    pub steps: Vec<u32>,
    /// Side of the square tiles, a multiple of 16.
    pub tile: u32,
    /// Compression of the tiles.
    pub compression: Compression,
    /// What their samples mean.
    pub samples: Samples,
    /// Micrometres per level-0 pixel; `None` leaves it out of the file.
    pub mpp: Option<f64>,
    /// BigTIFF.
    pub big: bool,
    /// Byte order.
    pub endian: Endian,
}

impl<'a> Pyramid<'a> {
    /// Lossless tiles of 64 px, two levels (1, 2), 0.5 um, classic little endian.
    pub fn new(picture: &'a dyn Picture) -> Self {
        Pyramid {
            picture,
            steps: vec![2],
            tile: 64,
            compression: Compression::Deflate { predictor: false },
            samples: Samples::Rgb,
            mpp: Some(0.5),
            big: false,
            endian: Endian::Little,
        }
    }

    fn level(&self, pixels: Pixels<'a>) -> Directory<'a> {
        let chunks = Chunks::Tiles { width: self.tile, height: self.tile };
        Directory { samples: self.samples, ..Directory::new(pixels, chunks, self.compression) }
    }

    fn file(&self, directories: Vec<Directory<'a>>) -> TiffFile<'a> {
        TiffFile { big: self.big, endian: self.endian, directories }
    }
}

/// The small pictures and keys that an Aperio file carries besides its levels.
#[derive(Clone, Default)]
pub struct Aperio<'a> {
    /// Picture of the slide's label.
    pub label: Option<&'a dyn Picture>,
    /// Photograph of the whole glass.
    pub overview: Option<&'a dyn Picture>,
    /// Whether directory 1 is a thumbnail: the smallest level again, in strips.
    pub thumbnail: bool,
    /// Objective power, the `AppMag` key.
    pub app_mag: Option<f64>,
    /// Further `Key = Value` pairs.
    pub keys: Vec<(String, String)>,
}

/// Aperio SVS: level 0, thumbnail, further levels, label, macro, all in the main chain. The pixel
/// size stands in the description alone.
pub fn aperio<'a>(pyramid: &Pyramid<'a>, extras: &Aperio<'a>) -> TiffFile<'a> {
    let [width, height] = pyramid.picture.size();
    let tile = pyramid.tile;
    let codec = codec_name(pyramid);
    let head = format!("Aperio Synthetic histokern v{} \r\n", env!("CARGO_PKG_VERSION"));
    let mut keys = String::new();
    if let Some(power) = extras.app_mag {
        _ = write!(keys, "|AppMag = {power}");
    }
    if let Some(mpp) = pyramid.mpp {
        _ = write!(keys, "|MPP = {mpp:.4}");
    }
    for (key, value) in &extras.keys {
        _ = write!(keys, "|{key} = {value}");
    }
    let area = format!("{width}x{height} [0,0 {width}x{height}]");

    let mut base = pyramid.level(Pixels::Picture(pyramid.picture));
    base.subfile_type = Some(0);
    base.description = Some(format!("{head}{area} ({tile}x{tile}) {codec}{keys}"));
    let mut directories = vec![base];
    let mut size = [width, height];
    let first_level = if extras.thumbnail { 2 } else { 1 };
    if extras.thumbnail {
        let of = if pyramid.steps.is_empty() { 0 } else { pyramid.steps.len() + 1 };
        let shape = pyramid.steps.iter().fold([width, height], |s, &step| s.map(|n| n / step));
        let mut thumbnail = strips(Pixels::Reduced { of, factor: 1 }, pyramid, 16);
        thumbnail.subfile_type = Some(0);
        thumbnail.description = Some(format!("{head}{area} -> {}x{} - {keys}", shape[0], shape[1]));
        directories.push(thumbnail);
    }
    for (k, &factor) in pyramid.steps.iter().enumerate() {
        let of = if k == 0 { 0 } else { first_level + k - 1 };
        size = size.map(|n| n / factor);
        let mut level = pyramid.level(Pixels::Reduced { of, factor });
        level.subfile_type = Some(0);
        level.description =
            Some(format!("{head}{area} ({tile}x{tile}) -> {}x{} {codec}{keys}", size[0], size[1]));
        directories.push(level);
    }
    for (name, kind, picture) in [("label", 1, extras.label), ("macro", 9, extras.overview)] {
        let Some(picture) = picture else { continue };
        let [w, h] = picture.size();
        let mut image = strips(Pixels::Picture(picture), pyramid, 16);
        if name == "label" {
            image.compression = Compression::Lzw { predictor: true };
            image.samples = Samples::Rgb;
        }
        image.subfile_type = Some(kind);
        image.description = Some(format!("{head}{name} {w}x{h}"));
        directories.push(image);
    }
    pyramid.file(directories)
}

/// Generic tiled TIFF: reduced levels marked by NewSubfileType 1, centimetre resolution tags.
pub fn generic<'a>(pyramid: &Pyramid<'a>) -> TiffFile<'a> {
    pyramid.file(levels(pyramid, None))
}

/// OME-TIFF: one plane in the chain, its smaller levels in SubIFDs, OME-XML as description.
pub fn ome<'a>(pyramid: &Pyramid<'a>) -> TiffFile<'a> {
    let mut directories = levels(pyramid, Some(0));
    for directory in &mut directories {
        directory.resolution = None;
    }
    directories[0].description = Some(ome_xml(pyramid));
    pyramid.file(directories)
}

fn levels<'a>(pyramid: &Pyramid<'a>, parent: Option<usize>) -> Vec<Directory<'a>> {
    let mut base = pyramid.level(Pixels::Picture(pyramid.picture));
    base.resolution = pyramid.mpp.map(Resolution::from_mpp);
    let mut directories = vec![base];
    let mut downsample = 1.0;
    for (of, &factor) in pyramid.steps.iter().enumerate() {
        let mut level = pyramid.level(Pixels::Reduced { of, factor });
        downsample *= f64::from(factor);
        level.subfile_type = Some(1);
        level.resolution = pyramid.mpp.map(|mpp| Resolution::from_mpp(mpp * downsample));
        level.parent = parent;
        directories.push(level);
    }
    directories
}

fn strips<'a>(pixels: Pixels<'a>, pyramid: &Pyramid<'a>, rows: u32) -> Directory<'a> {
    let chunks = Chunks::Strips { rows };
    Directory { samples: pyramid.samples, ..Directory::new(pixels, chunks, pyramid.compression) }
}

fn codec_name(pyramid: &Pyramid) -> String {
    match (pyramid.compression, pyramid.samples) {
        (Compression::Jpeg(jpeg), Samples::YCbCr) => format!("JPEG/YCC Q={}", jpeg.quality),
        (Compression::Jpeg(jpeg), _) => format!("JPEG/RGB Q={}", jpeg.quality),
        (Compression::Lzw { .. }, _) => "LZW".into(),
        (Compression::Deflate { .. }, _) => "ZIP".into(),
        (Compression::PackBits, _) => "PackBits".into(),
        (Compression::None, _) => "RAW".into(),
    }
}

fn ome_xml(pyramid: &Pyramid) -> String {
    let [width, height] = pyramid.picture.size();
    let channels = pyramid.samples.count();
    let size = pyramid.mpp.map_or(String::new(), |mpp| {
        ["X", "Y"].map(|a| format!(r#" PhysicalSize{a}="{mpp}" PhysicalSize{a}Unit="µm""#)).concat()
    });
    let big_endian = pyramid.endian == Endian::Big;
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="http://www.openmicroscopy.org/Schemas/OME/2016-06 http://www.openmicroscopy.org/Schemas/OME/2016-06/ome.xsd"><Image ID="Image:0" Name="synthetic"><Pixels ID="Pixels:0" BigEndian="{big_endian}" DimensionOrder="XYCZT" Interleaved="true" SizeX="{width}" SizeY="{height}" SizeC="{channels}" SizeZ="1" SizeT="1" SignificantBits="8" Type="uint8"{size}><Channel ID="Channel:0:0" SamplesPerPixel="{channels}"/><TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>"#
    )
}
