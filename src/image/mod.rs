//! Pictures in memory, and what is done to their pixels before a network sees them.
//!
//! [`resample`] equals Pillow bit for bit; [`colour`], [`filter`] and [`draw`] equal OpenCV's u8
//! functions, because the published preprocessing was written with those two libraries and a
//! threshold or an area that differs by one pixel selects other tiles. [`mask`] equals
//! `scipy.ndimage` and [`map`] PyTorch's `interpolate`.

pub mod colour;
pub mod draw;
pub mod filter;
pub mod map;
pub mod mask;
pub mod pad;
pub mod resample;

pub use map::Map;
pub use mask::Rect;
pub use resample::{FilterTable, Resampler};

use crate::error::{Error, Result};

/// `[H, W, 3]` u8 RGB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RgbImage {
    /// W.
    pub width: usize,
    /// H.
    pub height: usize,
    /// `H * W * 3` bytes, rows top to bottom.
    pub data: Vec<u8>,
}

impl RgbImage {
    /// A picture of one colour.
    pub fn filled(width: usize, height: usize, rgb: [u8; 3]) -> Self {
        RgbImage { width, height, data: rgb.repeat(width * height) }
    }

    /// The middle square of side `side`, where torchvision's `CenterCrop` cuts it: the corner is
    /// `round((H - side) / 2)` with halves to even.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the picture is smaller than the square.
    pub fn center_crop(&self, side: usize) -> Result<RgbImage> {
        if side > self.width || side > self.height {
            let (w, h) = (self.width, self.height);
            return Err(Error::usage(format!("centre crop of {side} px from {w} x {h} px")));
        }
        let (left, top) = (crop_corner(self.width, side), crop_corner(self.height, side));
        let rows = self.data.chunks_exact(self.width.max(1) * 3).skip(top).take(side);
        let data = rows.flat_map(|row| &row[left * 3..(left + side) * 3]).copied().collect();
        Ok(RgbImage { width: side, height: side, data })
    }
}

impl RgbImage {
    /// The part of the picture inside `rect`.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the rectangle is empty or leaves the picture.
    pub fn cut(&self, rect: Rect) -> Result<RgbImage> {
        let Rect { x, y, width, height } = rect;
        let fits = |start: usize, length: usize, limit: usize| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= limit)
        };
        if !fits(x, width, self.width) || !fits(y, height, self.height) {
            let (w, h) = (self.width, self.height);
            return Err(Error::usage(format!("no {rect:?} in a picture of {w} x {h} px")));
        }
        let rows = self.data.chunks_exact(self.width * 3).skip(y).take(height);
        let data = rows.flat_map(|row| &row[x * 3..(x + width) * 3]).copied().collect();
        Ok(RgbImage { width, height, data })
    }
}

/// First row or column of a centre crop.
pub fn crop_corner(length: usize, side: usize) -> usize {
    ((length - side) as f64 / 2.0).round_ties_even() as usize
}

/// `[H, W]` u8: a channel, or a mask in which 0 is outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrayImage {
    /// W.
    pub width: usize,
    /// H.
    pub height: usize,
    /// `H * W` bytes, rows top to bottom.
    pub data: Vec<u8>,
}

impl GrayImage {
    /// A picture of one value.
    pub fn filled(width: usize, height: usize, value: u8) -> Self {
        GrayImage { width, height, data: vec![value; width * height] }
    }

    /// The rows, top to bottom; none when the picture has no columns.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.data.chunks_exact(self.width.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crop_corner_rounds_halves_to_even_as_python_does() {
        // int(round((256 - 224) / 2.0)), int(round(0.5)), int(round(1.5)), int(round(2.5))
        assert_eq!(crop_corner(256, 224), 16);
        assert_eq!([1, 3, 5].map(|d| crop_corner(10 + d, 10)), [0, 2, 2]);
    }

    #[test]
    fn center_crop_copies_the_middle() {
        let image = RgbImage { width: 5, height: 3, data: (0..45).collect() };
        // Rows from round(0.5) = 0, columns from round(1.5) = 2.
        let out = image.center_crop(2).unwrap();
        assert_eq!(out.data, [6, 7, 8, 9, 10, 11, 21, 22, 23, 24, 25, 26]);
        assert!(image.center_crop(4).is_err());
    }
}
