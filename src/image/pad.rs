//! Pictures whose sides are multiples of what a network needs, and maps cropped back to them.

use super::RgbImage;
use crate::error::{Error, Result};

/// A picture with a border below and to the right, and the size it had before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Padded {
    /// Its sides are multiples.
    pub image: RgbImage,
    /// W before.
    pub width: usize,
    /// H before.
    pub height: usize,
}

/// Brings both sides of a picture up to the next multiple of `multiple`. The border is below and to
/// the right, so that pixels keep their coordinates, and of one colour: a convolution sees it as it
/// sees any pixel, unlike the zeros a network pads its own maps with, which stand for the mean.
///
/// # Errors
/// [`crate::Kind::Usage`] for an empty picture or a multiple of 0.
pub fn pad(image: &RgbImage, multiple: usize, colour: [u8; 3]) -> Result<Padded> {
    let (width, height) = (image.width, image.height);
    if width == 0 || height == 0 || multiple == 0 {
        let what = format!("cannot pad {width} x {height} px to multiples of {multiple}");
        return Err(Error::usage(what));
    }
    let [w, h] = [width, height].map(|side| side.next_multiple_of(multiple));
    let mut data = Vec::with_capacity(w * h * 3);
    for row in image.data.chunks_exact(width * 3) {
        data.extend_from_slice(row);
        data.extend_from_slice(&colour.repeat(w - width));
    }
    data.extend_from_slice(&colour.repeat(w * (h - height)));
    Ok(Padded { image: RgbImage { width: w, height: h, data }, width, height })
}

impl Padded {
    /// The part of a map `[H, W, K]` of the padded picture that lies over the picture itself.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the map has another size.
    pub fn crop<T: Copy>(&self, map: &[T], channels: usize) -> Result<Vec<T>> {
        let (w, h) = (self.image.width, self.image.height);
        if channels == 0 || map.len() != w * h * channels {
            let n = map.len();
            return Err(Error::usage(format!("{n} numbers for {w} x {h} px of {channels}")));
        }
        let rows = map.chunks_exact(w * channels).take(self.height);
        Ok(rows.flat_map(|row| &row[..self.width * channels]).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cropping_undoes_padding() {
        let data: Vec<u8> = (0..5 * 3 * 3).collect();
        let image = RgbImage { width: 5, height: 3, data };
        let padded = pad(&image, 4, [7, 8, 9]).unwrap();
        assert_eq!((padded.image.width, padded.image.height), (8, 4));
        assert_eq!(padded.image.data.len(), 8 * 4 * 3);
        assert_eq!(padded.image.data[5 * 3..8 * 3], [7, 8, 9, 7, 8, 9, 7, 8, 9]);
        assert_eq!(padded.image.data[8 * 3..8 * 3 + 3], image.data[5 * 3..5 * 3 + 3]);
        assert_eq!(padded.image.data[8 * 3 * 3..][..3], [7, 8, 9]);
        assert_eq!(padded.crop(&padded.image.data, 3).unwrap(), image.data);
        assert!(padded.crop(&padded.image.data, 2).is_err());
    }

    #[test]
    fn whole_multiples_stay_as_they_are() {
        let image = RgbImage::filled(8, 4, [1, 2, 3]);
        assert_eq!(pad(&image, 4, [0; 3]).unwrap().image, image);
        assert!(pad(&RgbImage::default(), 4, [0; 3]).is_err());
    }
}
