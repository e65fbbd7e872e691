//! A binary mask of where to look, drawn or computed elsewhere, at a fixed fraction of level 0.

use crate::error::{Error, Result};
use crate::slide::{OpenOptions, Region, Slide};
use std::path::{Path, PathBuf};

/// Part of a tile that must lie on the mask.
const SHARE: f64 = 0.5;

/// A mask file and how its pixels lie on level 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    /// A picture; pixels that are not black are looked at.
    pub path: PathBuf,
    /// Level-0 pixels along the side of a mask pixel.
    pub downsample: f64,
    /// Whether rows of the picture run along x and columns along y, as in the masks of WEEP.
    pub transposed: bool,
}

/// The pixels of a [`Mask`], rows along y.
pub struct Bitmap {
    width: usize,
    height: usize,
    downsample: f64,
    set: Vec<bool>,
}

impl Mask {
    /// Reads the mask for a slide of `width` x `height` level-0 pixels.
    ///
    /// # Errors
    /// What opening the picture returns; [`crate::Kind::Usage`] when its size does not suit the slide
    /// by more than a mask pixel, naming both.
    pub fn read(&self, width: u32, height: u32) -> Result<Bitmap> {
        let picture = Slide::open(&self.path, &OpenOptions::default())?;
        let level = &picture.levels()[0];
        let region = Region { x: 0, y: 0, level: 0, width: level.width, height: level.height };
        let image = picture.read_region(&region)?.image;
        let set = image.data.as_chunks::<3>().0.iter().map(|rgb| *rgb != [0; 3]).collect();
        let mut bitmap =
            Bitmap { width: image.width, height: image.height, downsample: self.downsample, set };
        if self.transposed {
            bitmap = bitmap.transposed();
        }
        bitmap.check(&self.path, [width, height], self.transposed)?;
        Ok(bitmap)
    }
}

impl Bitmap {
    fn transposed(&self) -> Bitmap {
        let at = |i: usize| self.set[i % self.height * self.width + i / self.height];
        let set = (0..self.set.len()).map(at).collect();
        Bitmap { width: self.height, height: self.width, downsample: self.downsample, set }
    }

    fn check(&self, path: &Path, slide: [u32; 2], transposed: bool) -> Result<()> {
        let expected = slide.map(|side| f64::from(side) / self.downsample);
        let off = |mask: usize, expected: f64| (mask as f64 - expected).abs() > 1.0;
        if off(self.width, expected[0]) || off(self.height, expected[1]) {
            let hint = if transposed { "" } else { "; --mask-transposed takes rows for x" };
            return Err(Error::usage(format!(
                "{}: a mask of {} x {} px, but the slide of {} x {} px is {:.1} x {:.1} at 1/{} \
                 (--mask-downsample){hint}",
                path.display(),
                self.width,
                self.height,
                slide[0],
                slide[1],
                expected[0],
                expected[1],
                self.downsample
            )));
        }
        Ok(())
    }

    /// Whether at least half of the square of `side` level-0 pixels at `corner` lies on the mask.
    pub fn holds(&self, corner: [i64; 2], side: f64) -> bool {
        let span = |from: i64, n: usize| {
            let [from, to] = [from as f64, from as f64 + side].map(|v| v / self.downsample);
            let cells = (from.floor().max(0.0) as usize)..(to.ceil().max(0.0) as usize).min(n);
            // The part of each mask pixel that the square covers along this axis.
            cells.map(move |i| (i, (to.min(i as f64 + 1.0) - from.max(i as f64)).max(0.0)))
        };
        let mut covered = 0.0;
        for (y, high) in span(corner[1], self.height) {
            for (x, wide) in span(corner[0], self.width) {
                if self.set[y * self.width + x] {
                    covered += wide * high;
                }
            }
        }
        covered >= SHARE * (side / self.downsample).powi(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap(rows: &[&str]) -> Bitmap {
        let set = rows.iter().flat_map(|r| r.bytes().map(|b| b == b'#')).collect();
        Bitmap { width: rows[0].len(), height: rows.len(), downsample: 8.0, set }
    }

    #[test]
    fn a_tile_needs_half_of_its_area() {
        let mask = bitmap(&["##..", "##..", "...."]);
        assert!(mask.holds([0, 0], 16.0));
        // Half in, then a pixel less.
        assert!(mask.holds([8, 0], 16.0) && !mask.holds([9, 0], 16.0));
        assert!(mask.holds([0, 8], 16.0) && !mask.holds([0, 9], 16.0));
        // Within one mask pixel, and hanging over the edge of the slide.
        assert!(mask.holds([9, 9], 4.0) && !mask.holds([17, 1], 4.0));
        assert!(mask.holds([-8, 0], 16.0) && !mask.holds([-9, 0], 16.0));
        assert!(!mask.holds([64, 64], 16.0));
    }

    #[test]
    fn rows_of_a_transposed_mask_run_along_x() {
        let mask = bitmap(&["#...", "....", "...#"]).transposed();
        assert_eq!((mask.width, mask.height), (3, 4));
        assert!(mask.holds([0, 0], 8.0) && mask.holds([16, 24], 8.0) && !mask.holds([16, 0], 8.0));
        let slide = [24, 32];
        mask.check(Path::new("m.png"), slide, true).unwrap();
        let error = mask.check(Path::new("m.png"), [48, 24], false).unwrap_err().to_string();
        assert!(
            error.starts_with("m.png: a mask of 3 x 4 px, but the slide of 48 x 24"),
            "{error}"
        );
        assert!(error.contains("--mask-transposed"), "{error}");
    }
}
