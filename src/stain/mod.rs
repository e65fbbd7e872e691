//! Stains of H&E slides: how much of each a pixel holds, and colours made alike between slides.
//!
//! [`deconvolution`] separates stains of known colour (Ruifrok and Johnston 2001). [`macenko`] finds
//! the colours of a slide's stains and replaces them by a target's (Macenko et al. 2009);
//! [`reinhard`] gives the slide the target's mean and spread of CIELAB (Reinhard et al. 2001).
//! A [`StainNormalizer`] is fitted once on pixels of a slide and then changes pixels one by one:
//! no pixel depends on another, any colour gives a colour, and the bits do not depend on threads.

pub mod deconvolution;
pub mod macenko;
pub mod reinhard;

pub use deconvolution::Deconvolution;
pub use macenko::Macenko;
pub use reinhard::Reinhard;

use crate::error::{Error, Result};
use crate::recipe::Stain;
use serde::{Deserialize, Serialize};

/// Fewest pixels anything is fitted on.
pub const MIN_PIXELS: usize = 100;

/// What turns a slide's colours into the target's; plain numbers, as written into results.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
pub enum StainNormalizer {
    /// Colours and amounts of haematoxylin and eosin.
    Macenko(Macenko),
    /// Mean and standard deviation of CIELAB.
    Reinhard(Reinhard),
}

impl StainNormalizer {
    /// Fits on `[N, 3]` RGB pixels of tissue; `None` when the recipe asks for no normalisation.
    ///
    /// # Errors
    /// [`crate::Kind::Unsupported`] when the pixels do not determine it: too few, too pale, or of
    /// one colour. There is no silent answer for such a slide.
    pub fn fit(rule: &Stain, rgb: &[u8]) -> Result<Option<StainNormalizer>> {
        Ok(match rule {
            Stain::None => None,
            Stain::Macenko(rule) => Some(StainNormalizer::Macenko(Macenko::fit(rule, rgb)?)),
            Stain::Reinhard(rule) => Some(StainNormalizer::Reinhard(Reinhard::fit(rule, rgb)?)),
        })
    }

    /// What each channel value adds to the base-2 logarithm of each channel of the result,
    /// `[channel in][value][channel out]`, where that and no more is what is done to a pixel.
    pub fn exponents(&self) -> Option<Box<[[[f32; 3]; 256]; 3]>> {
        match self {
            StainNormalizer::Macenko(macenko) => Some(Box::new(macenko.table())),
            StainNormalizer::Reinhard(_) => None,
        }
    }

    /// Normalises `[N, 3]` RGB pixels in place. Light of an empty place stays light.
    pub fn apply(&self, rgb: &mut [u8]) {
        match self {
            StainNormalizer::Macenko(macenko) => macenko.apply(rgb),
            StainNormalizer::Reinhard(reinhard) => reinhard.apply(rgb),
        }
    }
}

/// Pixels of `[N, 3]` bytes.
fn pixels(rgb: &[u8]) -> Result<&[[u8; 3]]> {
    let pixels = rgb.as_chunks::<3>().0;
    if pixels.len() < MIN_PIXELS {
        return Err(Error::unsupported(format!(
            "stain: {} pixels of tissue, at least {MIN_PIXELS} are needed",
            pixels.len()
        )));
    }
    Ok(pixels)
}

/// Rows times columns.
fn matmul<const N: usize, const K: usize, const M: usize>(
    a: &[[f64; K]; N],
    b: &[[f64; M]; K],
) -> [[f64; M]; N] {
    std::array::from_fn(|i| {
        std::array::from_fn(|j| a[i].iter().zip(b).map(|(a, row)| a * row[j]).sum())
    })
}

/// The inverse by cofactors; none of a matrix that is singular to working precision.
fn inverse(m: &[[f64; 3]; 3]) -> Option<[[f64; 3]; 3]> {
    let cross = [cross(m[1], m[2]), cross(m[2], m[0]), cross(m[0], m[1])];
    let determinant = dot(m[0], cross[0]);
    let scale: f64 = m.iter().map(|row| norm(*row)).product();
    // Written so that what is not a number has no inverse.
    (determinant.abs() > 1e-9 * scale)
        .then(|| std::array::from_fn(|i| std::array::from_fn(|j| cross[j][i] / determinant)))
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: [f64; 3]) -> f64 {
    dot(a, a).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inverse_undoes_its_matrix() {
        let m = [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]];
        let one = matmul(&m, &inverse(&m).unwrap());
        for (i, row) in one.iter().enumerate() {
            for (j, v) in row.iter().enumerate() {
                assert!((v - f64::from(u8::from(i == j))).abs() < 1e-12, "{one:?}");
            }
        }
        assert!(inverse(&[[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.0, 1.0, 0.0]]).is_none());
        assert!(inverse(&[[f64::NAN; 3]; 3]).is_none());
    }
}
