//! What is done to tiles between their decoding and the network's input: plain data, so that a machine
//! can do it by itself and give the bytes that the host would have given.

use crate::error::{Error, Result};
use std::ops::Range;

/// Filter weights along one axis of a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Samples there are.
    pub length: usize,
    /// First sample and number of samples of each result.
    pub bounds: Vec<(usize, usize)>,
    /// As many weights for each result as the widest has samples, with 22 fraction bits.
    pub weights: Vec<i32>,
}

impl Axis {
    /// Weights of one result.
    pub fn taps(&self) -> usize {
        self.weights.len() / self.bounds.len().max(1)
    }

    /// The samples that some results need.
    pub fn span(&self, kept: &Range<usize>) -> Range<usize> {
        let bounds = &self.bounds[kept.clone()];
        let first = bounds.iter().map(|b| b.0).min().unwrap_or(0);
        first..bounds.iter().map(|b| b.0 + b.1).max().unwrap_or(first)
    }

    fn check(&self, kept: &Range<usize>) -> Result<()> {
        let (taps, results) = (self.taps(), self.bounds.len());
        let whole = taps > 0 && self.weights.len() == taps * results;
        let inside = |b: &(usize, usize)| {
            b.1 <= taps && b.0.checked_add(b.1).is_some_and(|end| end <= self.length)
        };
        if !whole || !self.bounds.iter().all(inside) {
            return Err(Error::usage("resize: the weights do not fit the samples"));
        }
        if kept.is_empty() || kept.end > results {
            return Err(Error::usage(format!("resize: no results {kept:?} of {results}")));
        }
        Ok(())
    }
}

/// What a channel value adds to the base-2 logarithm of each channel of the result:
/// `[channel in][value][channel out]`.
pub type Exponents = [[[f32; 3]; 256]; 3];

/// One step on `[rows, H, W, 3]` u8 tiles.
#[derive(Clone, Debug, PartialEq)]
pub enum TileStep {
    /// A weighted sum along the rows, rounded to u8, then one along the columns, likewise; of the
    /// result only the kept rows and columns are made. Both `[vertical, horizontal]`.
    Resample {
        /// The filters.
        axes: [Axis; 2],
        /// Results that are kept.
        kept: [Range<usize>; 2],
    },
    /// Every pixel on its own: `2^(sum over channels in)`, at most 255, fractions dropped; the sum in
    /// the order of the channels, `2^x` as [`crate::backend::Preparation`] says.
    Recolour {
        /// The summands.
        exponents: Box<Exponents>,
    },
}

/// Tiles as they are given and the steps that make them the network's input.
///
/// `2^x` of [`TileStep::Recolour`] is made of f32 additions and multiplications alone, each rounded to
/// nearest: x within -126..=126, the nearest whole number by adding and subtracting 12582912, and a
/// polynomial of degree 6 with coefficients `ln(2)^k / k!` for the rest.
#[derive(Clone, Debug, PartialEq)]
pub struct Preparation {
    given: [usize; 2],
    made: [usize; 2],
    most: usize,
    steps: Vec<TileStep>,
}

impl Preparation {
    /// Steps on tiles of `[H, W]` pixels.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when there is no step or one does not fit what the one before leaves.
    pub fn new(given: [usize; 2], steps: Vec<TileStep>) -> Result<Preparation> {
        let area = |[h, w]: [usize; 2]| h.saturating_mul(w);
        let (mut size, mut most) = (given, area(given));
        for step in &steps {
            let TileStep::Resample { axes, kept } = step else { continue };
            for ((axis, kept), length) in axes.iter().zip(kept).zip(size) {
                axis.check(kept)?;
                if axis.length != length {
                    let n = axis.length;
                    return Err(Error::usage(format!("resize of {n} px, given {length} px")));
                }
            }
            let between = [axes[0].span(&kept[0]).len(), kept[1].len()];
            size = [kept[0].len(), kept[1].len()];
            most = most.max(area(between)).max(area(size));
        }
        match steps.is_empty() {
            true => Err(Error::usage("tiles: nothing to prepare")),
            false => Ok(Preparation { given, made: size, most, steps }),
        }
    }

    /// H and W of the tiles as given.
    pub fn given(&self) -> [usize; 2] {
        self.given
    }

    /// H and W of what is made of them.
    pub fn made(&self) -> [usize; 2] {
        self.made
    }

    /// Pixels of the largest picture on the way, the first and the last included.
    pub fn most_pixels(&self) -> usize {
        self.most
    }

    /// The steps in order.
    pub fn steps(&self) -> &[TileStep] {
        &self.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn halving(length: usize) -> Axis {
        let results = length / 2;
        let bounds = (0..results).map(|i| (2 * i, 2)).collect();
        Axis { length, bounds, weights: vec![1 << 21; 2 * results] }
    }

    fn resample(axes: [Axis; 2], kept: [Range<usize>; 2]) -> TileStep {
        TileStep::Resample { axes, kept }
    }

    #[test]
    fn sizes_follow_the_steps() {
        let first = resample([halving(8), halving(12)], [1..3, 0..6]);
        let second = resample([halving(2), halving(6)], [0..1, 0..3]);
        let how = Preparation::new([8, 12], vec![first, second]).unwrap();
        assert_eq!((how.given(), how.made(), how.most_pixels()), ([8, 12], [1, 3], 96));
    }

    #[test]
    fn steps_that_do_not_fit_are_refused() {
        let refused = |given: [usize; 2], steps: Vec<TileStep>| {
            let error = Preparation::new(given, steps).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{error}");
        };
        let whole = || [halving(8), halving(8)];
        refused([8, 8], Vec::new());
        refused([8, 10], vec![resample(whole(), [0..4, 0..4])]);
        refused([8, 8], vec![resample(whole(), [0..5, 0..4])]);
        refused([8, 8], vec![resample(whole(), [2..2, 0..4])]);
        let second = resample(whole(), [0..4, 0..4]);
        refused([8, 8], vec![resample(whole(), [0..4, 0..4]), second]);
        let beyond = Axis { length: 7, ..halving(8) };
        refused([7, 8], vec![resample([beyond, halving(8)], [0..4, 0..4])]);
        let fewer = Axis { weights: vec![1; 7], ..halving(8) };
        refused([8, 8], vec![resample([fewer, halving(8)], [0..4, 0..4])]);
    }
}
