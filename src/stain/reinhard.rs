//! Reinhard's colour transfer.
//!
//! Reinhard et al., "Color transfer between images" (2001): every channel of a colour space that
//! separates lightness gets the target's mean and standard deviation. As torchstain, tiatoolbox
//! and StainTools do, the space is CIELAB under D65, with the constants of OpenCV's conversion,
//! in place of the paper's l-alpha-beta. Fit and result are those of torchstain's numpy backend
//! up to the last digit of rounding.

use super::{inverse, pixels};
use crate::error::{Error, Result};
use crate::recipe::{LabTarget, ReinhardStain};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// Linear sRGB to XYZ, ITU-R BT.709 primaries.
const XYZ: [[f64; 3]; 3] = [
    [0.412453, 0.357580, 0.180423],
    [0.212671, 0.715160, 0.072169],
    [0.019334, 0.119193, 0.950227],
];

/// XYZ of white under D65.
const WHITE: [f64; 3] = [0.95047, 1.0, 1.08883];

/// Smallest standard deviation that can be scaled.
const MIN_SD: f64 = 1e-3;

/// Steps in which the search for a channel value starts.
const STEPS: usize = 4096;

/// A fitted transfer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Reinhard {
    /// Of the slide.
    pub source: LabTarget,
    /// What it is given.
    pub target: LabTarget,
}

/// Linear light of every channel value, and the channel value at or below every step of light.
struct Gamma {
    linear: [f32; 256],
    start: [u8; STEPS + 1],
}

static GAMMA: LazyLock<Gamma> = LazyLock::new(|| {
    let linear: [f32; 256] = std::array::from_fn(|v| linear(v as f64 / 255.0) as f32);
    let start = std::array::from_fn(|i| {
        let at = i as f32 / STEPS as f32;
        linear.iter().take(255).skip(1).take_while(|&&l| l <= at).count() as u8
    });
    Gamma { linear, start }
});

/// The inverse of the sRGB transfer function.
fn linear(v: f64) -> f64 {
    if v > 0.04045 { ((v + 0.055) / 1.055).powf(2.4) } else { v / 12.92 }
}

impl Gamma {
    /// The largest channel value whose light is not above `light`: fractions are dropped.
    #[inline]
    fn value(&self, light: f32) -> u8 {
        let light = light.clamp(0.0, 1.0);
        let mut value = self.start[(light * STEPS as f32) as usize];
        while value < 255 && self.linear[usize::from(value) + 1] <= light {
            value += 1;
        }
        value
    }
}

impl Reinhard {
    /// Fits on `[N, 3]` RGB pixels.
    ///
    /// # Errors
    /// [`crate::Kind::Unsupported`] for fewer than [`super::MIN_PIXELS`] pixels or a channel that does not
    /// vary.
    pub fn fit(rule: &ReinhardStain, rgb: &[u8]) -> Result<Reinhard> {
        let pixels = pixels(rgb)?;
        let n = pixels.len() as f64;
        let table: [f64; 256] = std::array::from_fn(|v| linear(v as f64 / 255.0));
        let lab: Vec<[f64; 3]> =
            pixels.iter().map(|p| lab(p.map(|v| table[usize::from(v)]))).collect();
        let mean: [f64; 3] = std::array::from_fn(|c| lab.iter().map(|p| p[c]).sum::<f64>() / n);
        let sd: [f64; 3] = std::array::from_fn(|c| {
            (lab.iter().map(|p| (p[c] - mean[c]).powi(2)).sum::<f64>() / n).sqrt()
        });
        if let Some(c) = sd.iter().position(|&sd| sd < MIN_SD) {
            let channel = ["L", "a", "b"][c];
            return Err(Error::unsupported(format!(
                "stain: the pixels do not vary in {channel} of CIELAB, which cannot be scaled"
            )));
        }
        Ok(Reinhard { source: LabTarget { mean, sd }, target: rule.target })
    }

    /// Transfers `[N, 3]` RGB pixels in place.
    pub fn apply(&self, rgb: &mut [u8]) {
        let gamma = &*GAMMA;
        let to_xyz: [[f32; 3]; 3] = std::array::from_fn(|i| XYZ[i].map(|v| (v / WHITE[i]) as f32));
        // XYZ to RGB exists: the constants above are invertible.
        let back = inverse(&XYZ).unwrap_or_default();
        let to_rgb: [[f32; 3]; 3] =
            back.map(|row| std::array::from_fn(|j| (row[j] * WHITE[j]) as f32));
        let scale: [f32; 3] =
            std::array::from_fn(|c| (self.target.sd[c] / self.source.sd[c]) as f32);
        let shift: [f32; 3] = std::array::from_fn(|c| {
            (self.target.mean[c] - self.source.mean[c] * self.target.sd[c] / self.source.sd[c])
                as f32
        });
        for pixel in rgb.as_chunks_mut::<3>().0 {
            let light = pixel.map(|v| gamma.linear[usize::from(v)]);
            let [x, y, z] = mul(&to_xyz, light).map(cube_root);
            let lab = [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)];
            let [l, a, b]: [f32; 3] = std::array::from_fn(|c| lab[c] * scale[c] + shift[c]);
            let y = (l + 16.0) * (1.0 / 116.0);
            let xyz = [y + a * (1.0 / 500.0), y, y - b * (1.0 / 200.0)].map(cube);
            *pixel = mul(&to_rgb, xyz).map(|light| gamma.value(light));
        }
    }
}

#[inline]
fn mul(m: &[[f32; 3]; 3], v: [f32; 3]) -> [f32; 3] {
    m.map(|row| row[0] * v[0] + row[1] * v[1] + row[2] * v[2])
}

/// CIE's cube root with a straight piece near 0; `libm`'s gives the same bits everywhere.
#[inline]
fn cube_root(t: f32) -> f32 {
    if t > 0.008856 { libm::cbrtf(t) } else { 7.787 * t + 16.0 / 116.0 }
}

#[inline]
fn cube(f: f32) -> f32 {
    if f > 0.2068966 { f * f * f } else { (f - 16.0 / 116.0) / 7.787 }
}

/// CIELAB of linear sRGB.
fn lab(light: [f64; 3]) -> [f64; 3] {
    let root = |t: f64| if t > 0.008856 { libm::cbrt(t) } else { 7.787 * t + 16.0 / 116.0 };
    let [x, y, z] =
        std::array::from_fn(|i| root((0..3).map(|c| XYZ[i][c] * light[c]).sum::<f64>() / WHITE[i]));
    [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_value_is_found_again() {
        for v in 0..=255u8 {
            let light = GAMMA.linear[usize::from(v)];
            assert_eq!(GAMMA.value(light), v);
            if v > 0 {
                assert_eq!(GAMMA.value(light.next_down()), v - 1);
            }
        }
        assert_eq!([-1.0, 2.0, f32::INFINITY].map(|l| GAMMA.value(l)), [0, 255, 255]);
    }
}
