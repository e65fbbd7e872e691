//! Flat pictures as slides of one level: JPEG, PNG, and TIFF in strips.
//!
//! The picture is decoded once, when the slide is opened, and kept: its streams cannot be
//! entered in the middle. Of a TIFF with several pages the first is taken.

use super::codec;
use super::format::{Format, Parts, Pixels, Probe, resolution, tiff_properties};
use super::raster::{MAX_PICTURE_PIXELS, Raster};
use super::source::Source;
use super::tiff::Tiff;
use crate::error::{Error, Result};
use crate::image::RgbImage;
use std::sync::Arc;

/// Bytes of a compressed picture.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// The row for TIFF in strips.
pub const TIFF: Format = Format { name: "tiff", detect: |p| p.tiff.is_some(), open: open_tiff };
/// The row for JPEG.
pub const JPEG: Format =
    Format { name: "jpeg", detect: |p| p.head.starts_with(&[0xff, 0xd8, 0xff]), open: open_jpeg };
/// The row for PNG.
pub const PNG: Format =
    Format { name: "png", detect: |p| p.head.starts_with(b"\x89PNG\r\n\x1a\n"), open: open_png };

fn open_tiff(probe: &Probe<'_>) -> Result<Parts> {
    let first = probe.first().ok_or_else(|| Error::malformed("no directory"))?;
    let raster = Raster::parse(&first, false)?;
    let image = Arc::new(raster.picture(probe.source)?);
    let compression = raster.layout.compression.name();
    Ok(Parts {
        levels: vec![Pixels::Flat { image, compression }],
        mpp: resolution(&first)?.into_iter().collect(),
        properties: tiff_properties(&first)?,
        ..Parts::default()
    })
}

fn open_jpeg(probe: &Probe<'_>) -> Result<Parts> {
    let bytes = whole_file(probe)?;
    let (width, height) = codec::jpeg_picture_size(&bytes)?;
    check_size(width, height)?;
    one_level(codec::decode_jpeg_picture(&bytes)?, "jpeg")
}

fn open_png(probe: &Probe<'_>) -> Result<Parts> {
    let bytes = whole_file(probe)?;
    let failed = |e: png::DecodingError| Error::malformed(format!("PNG: {e}")).caused_by(e);
    let mut decoder = png::Decoder::new(std::io::Cursor::new(&bytes));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(failed)?;
    let info = reader.info();
    check_size(info.width, info.height)?;
    let size = reader.output_buffer_size().ok_or_else(|| Error::limit("PNG size"))?;
    let mut samples = vec![0; size];
    let frame = reader.next_frame(&mut samples).map_err(failed)?;
    samples.truncate(frame.buffer_size());
    // Alpha is dropped, as for TIFF.
    let data = match frame.color_type {
        png::ColorType::Rgb => samples,
        png::ColorType::Rgba => samples.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        png::ColorType::Grayscale => samples.iter().flat_map(|&v| [v; 3]).collect(),
        png::ColorType::GrayscaleAlpha => samples.chunks_exact(2).flat_map(|p| [p[0]; 3]).collect(),
        png::ColorType::Indexed => return Err(Error::unsupported("PNG with a palette")),
    };
    let (width, height) = (frame.width as usize, frame.height as usize);
    one_level(RgbImage { width, height, data }, "png")
}

fn one_level(image: RgbImage, compression: &'static str) -> Result<Parts> {
    let levels = vec![Pixels::Flat { image: Arc::new(image), compression }];
    Ok(Parts { levels, ..Parts::default() })
}

fn check_size(width: u32, height: u32) -> Result<()> {
    if u64::from(width) * u64::from(height) > MAX_PICTURE_PIXELS {
        let message =
            format!("{width}x{height} pixels, a flat picture may have {MAX_PICTURE_PIXELS}");
        return Err(Error::limit(message));
    }
    Ok(())
}

/// The bytes of a picture file; refuses one that claims by its name to be a TIFF.
fn whole_file(probe: &Probe<'_>) -> Result<Vec<u8>> {
    let source: &Source = probe.source;
    let extension = source.path().extension().and_then(|e| e.to_str()).unwrap_or_default();
    let tiff_names = ["svs", "tif", "tiff", "btf", "tf8", "tf2"];
    if tiff_names.iter().any(|name| extension.eq_ignore_ascii_case(name)) {
        let message =
            format!("a JPEG or PNG picture, but named .{extension}; rename it to open it");
        return Err(Error::malformed(message));
    }
    debug_assert!(!Tiff::detect(probe.head));
    if source.size() > MAX_FILE_BYTES {
        return Err(Error::limit(format!("{} bytes in a flat picture", source.size())));
    }
    source.read(0, source.size())
}
