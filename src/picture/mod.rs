//! A picture from a file, whole in memory: PNG, JPEG, flat TIFF or single-frame DICOM.
//!
//! Flat pictures are what [`Slide`] opens as slides of one level; [`dicom`] reads the elements of a
//! DICOM file and `pixels` turns its samples into RGB.

pub mod dicom;
mod pixels;

use crate::error::{Context, Error, Result};
use crate::image::RgbImage;
use crate::slide::{OpenOptions, Region, Slide};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of a file that is read whole.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// A decoded picture.
#[derive(Clone, Debug)]
pub struct Picture {
    /// `[H, W, 3]`; grey pictures have three equal channels.
    pub image: RgbImage,
    /// `png`, `jpeg`, `tiff`, `dicom`.
    pub format: &'static str,
}

/// Reads a picture; what it is, is told by its bytes.
///
/// # Errors
/// Naming the file, and for DICOM the tag: whatever keeps it from being read. A file of many
/// frames, a pyramid and a transfer syntax that is not read are [`crate::Kind::Unsupported`].
pub fn open(path: &Path) -> Result<Picture> {
    let named = || path.display().to_string();
    if is_dicom(path)? {
        let image = read_whole(path).and_then(|bytes| pixels::decode(&dicom::parse(&bytes)?));
        return Ok(Picture { image: image.context(named)?, format: "dicom" });
    }
    let slide = Slide::open(path, &OpenOptions::default())?;
    let [level] = slide.levels() else {
        let what = "a pyramid of several levels: a slide, not a picture";
        return Err(Error::unsupported(what).context(named()));
    };
    let region = Region { x: 0, y: 0, level: 0, width: level.width, height: level.height };
    let image = slide.read_region(&region).context(named)?.image;
    Ok(Picture { image, format: slide.format() })
}

fn is_dicom(path: &Path) -> Result<bool> {
    let io = |e| Error::io(path.display().to_string(), e);
    let mut head = Vec::new();
    File::open(path).map_err(io)?.take(dicom::HEAD as u64).read_to_end(&mut head).map_err(io)?;
    Ok(dicom::detect(&head))
}

fn read_whole(path: &Path) -> Result<Vec<u8>> {
    let io = |e| Error::io("cannot read", e);
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    match bytes.len() as u64 > MAX_FILE_BYTES {
        true => Err(Error::limit(format!("more than {MAX_FILE_BYTES} bytes in a picture"))),
        false => Ok(bytes),
    }
}
