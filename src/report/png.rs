//! PNG files.

use super::atomic;
use crate::error::{Error, Result};
use crate::image::RgbImage;
use png::{BitDepth, ColorType, Compression};
use std::io::Write;
use std::path::Path;

/// Encodes a picture.
///
/// # Errors
/// [`crate::Kind::Usage`] for an empty picture or one whose bytes do not fit its size.
pub fn encode_rgb(w: impl Write, image: &RgbImage) -> Result<()> {
    let size = [image.width, image.height, 3];
    encode(w, size, &image.data, ColorType::Rgb, BitDepth::Eight)
}

/// Writes a picture to `path`.
///
/// # Errors
/// Naming the file.
pub fn write_rgb(path: &Path, image: &RgbImage) -> Result<()> {
    atomic::write(path, |w| encode_rgb(w, image))
}

/// Writes an `[H, W]` mask to `path`, white where true, one bit a pixel.
///
/// # Errors
/// Naming the file.
pub fn write_mask(path: &Path, width: usize, height: usize, mask: &[bool]) -> Result<()> {
    if width == 0 || width.checked_mul(height) != Some(mask.len()) {
        let what = format!("{} mask values for {width} x {height} pixels", mask.len());
        return Err(Error::usage(what).context(path.display().to_string()));
    }
    let row_bytes = width.div_ceil(8);
    let mut bits = vec![0; row_bytes * height];
    for (row, out) in mask.chunks_exact(width).zip(bits.chunks_exact_mut(row_bytes)) {
        for (x, _) in row.iter().enumerate().filter(|(_, on)| **on) {
            out[x / 8] |= 0x80 >> (x % 8);
        }
    }
    let write =
        |w: &mut _| encode_bytes(w, [width, height], &bits, ColorType::Grayscale, BitDepth::One);
    atomic::write(path, write)
}

/// `size` is `[W, H, C]`.
fn encode(
    w: impl Write,
    size: [usize; 3],
    data: &[u8],
    color: ColorType,
    depth: BitDepth,
) -> Result<()> {
    let [width, height, channels] = size;
    let expected = width.checked_mul(height).and_then(|n| n.checked_mul(channels));
    if expected != Some(data.len()) {
        let what = format!("{} bytes for {width} x {height} x {channels}", data.len());
        return Err(Error::usage(what));
    }
    encode_bytes(w, [width, height], data, color, depth)
}

fn encode_bytes(
    w: impl Write,
    [width, height]: [usize; 2],
    data: &[u8],
    color: ColorType,
    depth: BitDepth,
) -> Result<()> {
    let side = |n: usize| match u32::try_from(n) {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(Error::usage(format!("a PNG cannot be {width} x {height}"))),
    };
    let mut encoder = png::Encoder::new(w, side(width)?, side(height)?);
    encoder.set_color(color);
    encoder.set_depth(depth);
    encoder.set_compression(Compression::Balanced);
    let failed = |e: png::EncodingError| match e {
        png::EncodingError::IoError(e) => Error::io("cannot write", e),
        other => Error::usage(other.to_string()).caused_by(other),
    };
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(data).map_err(failed)?;
    writer.finish().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> (png::OutputInfo, Vec<u8>) {
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut decoder = png::Decoder::new(file);
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut data = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut data).unwrap();
        (info, data)
    }

    #[test]
    fn pictures_and_masks_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let image = RgbImage { width: 5, height: 3, data: (0..45).map(|i| i * 5).collect() };
        write_rgb(&path, &image).unwrap();
        let (info, data) = read(&path);
        assert_eq!((info.width, info.height, data), (5, 3, image.data));

        let mask: Vec<bool> = (0..11 * 4).map(|i| i % 3 == 0).collect();
        write_mask(&path, 11, 4, &mask).unwrap();
        let expected: Vec<u8> = mask.iter().map(|&on| if on { 255 } else { 0 }).collect();
        assert_eq!(read(&path).1, expected);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let short = RgbImage { width: 5, height: 3, data: vec![0; 44] };
        let error = write_rgb(&path, &short).unwrap_err().to_string();
        assert!(error.ends_with("a.png: 44 bytes for 5 x 3 x 3"), "{error}");
        assert!(write_rgb(&path, &RgbImage::default()).is_err());
        assert!(write_mask(&path, 0, 7, &[]).is_err());
        assert!(!path.exists());
    }
}
