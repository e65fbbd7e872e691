//! Nuclei of H&E tissue: found by colour and shape, and measured.
//!
//! [`segment`] follows the classical chain: amount of haematoxylin, smoothing, a threshold above the
//! local background, distance transform, basins of its peaks. No weights are involved; the
//! result is repeatable and open to inspection, and not as good as a trained network's in
//! crowded or pale tissue. [`shape`] measures every region as `skimage.measure.regionprops` does.
//! All lengths here are pixels of the picture at hand.

pub mod basins;
pub mod filter;
pub mod outline;
pub mod segment;
pub mod shape;

pub use segment::{Parameters, Segmenter};
pub use shape::{Labels, Shape};

/// A channel of f32.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plane {
    /// W.
    pub width: usize,
    /// H.
    pub height: usize,
    /// `H * W` values, rows top to bottom.
    pub data: Vec<f32>,
}

/// A yes or no for every pixel, 1 or 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask {
    /// W.
    pub width: usize,
    /// H.
    pub height: usize,
    /// `H * W` values, rows top to bottom.
    pub data: Vec<u8>,
}
