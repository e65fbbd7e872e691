//! Colour deconvolution: amounts of three stains of known colour.
//!
//! Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution" (2001):
//! optical densities add up, so the amounts are the density times the inverse of the matrix whose
//! rows are the stains' densities. Densities are natural logarithms, `-ln(max(I, 1) / 255)`.

use super::{cross, inverse, norm};
use crate::error::{Error, Result};

/// Optical densities of haematoxylin, eosin and DAB as published by Ruifrok and Johnston.
pub const RUIFROK: [[f64; 3]; 3] = [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]];

/// Optical density of every channel value.
pub fn optical_densities() -> [f64; 256] {
    std::array::from_fn(|v| -(v.max(1) as f64 / 255.0).ln())
}

/// A separation into three stains.
#[derive(Clone, Debug, PartialEq)]
pub struct Deconvolution {
    /// `[channel][stain]`: amount per unit of density.
    inverse: [[f64; 3]; 3],
}

impl Deconvolution {
    /// From the optical densities `[stain][channel]` of one unit of each stain.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when they do not span the three channels.
    pub fn new(stains: [[f64; 3]; 3]) -> Result<Deconvolution> {
        let inverse = inverse(&stains).ok_or_else(|| {
            Error::usage(format!("stain: the three colours {stains:?} cannot be told apart"))
        })?;
        Ok(Deconvolution { inverse })
    }

    /// From two stains, scaled to length 1, and the direction perpendicular to both, which takes
    /// what neither explains.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when they have one colour.
    pub fn of_two(first: [f64; 3], second: [f64; 3]) -> Result<Deconvolution> {
        let unit = |v: [f64; 3]| v.map(|x| x / norm(v));
        let (first, second) = (unit(first), unit(second));
        Deconvolution::new([first, second, unit(cross(first, second))])
    }

    /// Amounts of the three stains in one pixel.
    pub fn amounts(&self, rgb: [u8; 3]) -> [f64; 3] {
        let density = rgb.map(|v| -(f64::from(v.max(1)) / 255.0).ln());
        std::array::from_fn(|s| (0..3).map(|c| density[c] * self.inverse[c][s]).sum())
    }

    /// Amounts of stain `stain` (0, 1 or 2) in `[N, 3]` pixels.
    ///
    /// # Panics
    /// When `stain` is above 2.
    pub fn channel(&self, stain: usize, rgb: &[u8]) -> Vec<f32> {
        let density = optical_densities();
        let table: [[f32; 256]; 3] =
            self.inverse.map(|row| density.map(|d| (d * row[stain]) as f32));
        let pixels = rgb.as_chunks::<3>().0.iter();
        pixels
            .map(|&[r, g, b]| {
                table[0][usize::from(r)] + table[1][usize::from(g)] + table[2][usize::from(b)]
            })
            .collect()
    }
}
