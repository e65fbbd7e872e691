//! Any folder with tables and pictures, such as that of `histokern nuclei`.

use super::{add_csv, add_figures, files, name_of, read};
use crate::error::{Context, Error, Result};
use crate::image::RgbImage;
use crate::image::resample::Resampler;
use crate::recipe::Interpolation;
use crate::report::html::Page;
use std::path::Path;

/// Pictures of a folder that are taken into a page.
const MAX_PICTURES: usize = 60;
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Longest side of a picture within a page, in pixels: larger ones are shrunk and stored as JPEG.
const MAX_SIDE: usize = 1200;
/// JPEG quality of shrunk pictures.
const QUALITY: u8 = 88;

/// Adds figures, pictures and tables of a folder, if it has any.
pub fn add(folder: &Path, name: &str, page: &mut Page) -> Result<bool> {
    let (tables, pictures) = (files(folder, "csv")?, files(folder, "png")?);
    let figures = files(folder, "svg")?;
    if tables.is_empty() && pictures.is_empty() && figures.is_empty() {
        return Ok(false);
    }
    page.section(name);
    add_figures(folder, &[], page)?;
    // A figure is written as SVG and PNG; one of them is enough.
    let extra = pictures.iter().filter(|p| !p.with_extension("svg").is_file());
    let mut shown = Vec::new();
    for path in extra.take(MAX_PICTURES) {
        let file = name_of(path);
        shown.push((picture(path)?, format!("Picture {file}"), file));
    }
    if !shown.is_empty() {
        page.pictures(&shown);
    }
    for path in &tables {
        add_csv(path, &name_of(path), page)?;
    }
    Ok(true)
}

/// The bytes of a PNG file, or of a JPEG of it where the picture is too large for a page.
pub fn picture(path: &Path) -> Result<Vec<u8>> {
    let bytes = read(path)?;
    if !bytes.starts_with(PNG) {
        return Err(Error::malformed("not a PNG").context(path.display().to_string()));
    }
    let name = || path.display().to_string();
    let whole = crate::picture::open(path)?.image;
    let longest = whole.width.max(whole.height);
    if longest <= MAX_SIDE {
        return Ok(bytes);
    }
    let side = |s: usize| (s * MAX_SIDE / longest).max(1);
    let (w, h) = (side(whole.width), side(whole.height));
    let shrink = Resampler::new(whole.width, whole.height, w, h, Interpolation::Bilinear);
    let mut small = RgbImage::filled(w, h, [0; 3]);
    shrink.context(name)?.run(&whole.data, &mut small.data, &mut Vec::new());
    let mut jpeg = Vec::new();
    jpeg_encoder::Encoder::new(&mut jpeg, QUALITY)
        .encode(&small.data, w as u16, h as u16, jpeg_encoder::ColorType::Rgb)
        .map_err(|e| Error::unsupported(e.to_string()).context(name()))?;
    Ok(jpeg)
}
