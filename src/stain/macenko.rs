//! Macenko's stain normalisation.
//!
//! Macenko et al., "A method for normalizing histology slides for quantitative analysis" (2009):
//! the optical densities of stained pixels lie near a plane, on which robust extreme angles are
//! the colours of the two stains and robust maxima their amounts. With the defaults of
//! [`MacenkoStain`], fit and result are those of torchstain's numpy backend up to the last digit
//! of rounding; there every image is fitted by itself, here a slide is.
//!
//! Density is `-ln((I + 1) / light)`.

use super::{dot, matmul, norm, pixels};
use crate::error::{Error, Result};
use crate::recipe::{MacenkoStain, StainTarget};
use serde::{Deserialize, Serialize};

/// Smallest variance of density across the main direction, in square units of density.
const MIN_VARIANCE: f64 = 1e-6;

/// Smallest angle between two stains, in radians.
const MIN_ANGLE: f64 = 1e-3;

/// Pixels whose exponentials are taken together.
const RUN: usize = 32;

/// A fitted normalisation.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Macenko {
    /// Channel value of an empty place.
    pub light: f64,
    /// Stains of the slide.
    pub source: StainTarget,
    /// Stains it is given.
    pub target: StainTarget,
    /// `[channel out][channel in]`: density of the result from that of the pixel.
    pub matrix: [[f64; 3]; 3],
}

impl Macenko {
    /// Fits on `[N, 3]` RGB pixels.
    ///
    /// # Errors
    /// [`crate::Kind::Unsupported`] when fewer than [`super::MIN_PIXELS`] pixels absorb `beta` in every
    /// channel, when they show one colour only, or when the target's two stains have one colour.
    pub fn fit(rule: &MacenkoStain, rgb: &[u8]) -> Result<Macenko> {
        let source = stains(rule, rgb)?;
        let target = rule.target;
        let unmix = unmix(&source).ok_or_else(one_colour)?;
        let [h, e] = [0, 1].map(|s| target.max[s] / source.max[s]);
        let mix: [[f64; 2]; 3] =
            std::array::from_fn(|c| [target.haematoxylin[c] * h, target.eosin[c] * e]);
        let matrix = matmul(&mix, &unmix);
        if matrix.as_flattened().iter().any(|v| !v.is_finite()) {
            return Err(Error::unsupported("stain: the fit is not a finite number"));
        }
        Ok(Macenko { light: rule.light, source, target, matrix })
    }

    /// Normalises `[N, 3]` RGB pixels in place: `light * exp(-matrix * density)`, at most 255,
    /// fractions dropped.
    pub fn apply(&self, rgb: &mut [u8]) {
        let table = self.table();
        for run in rgb.as_chunks_mut::<3>().0.chunks_mut(RUN) {
            let mut exponents = [[0f32; 3]; RUN];
            for (out, &[r, g, b]) in exponents.iter_mut().zip(run.iter()) {
                let rows =
                    [table[0][usize::from(r)], table[1][usize::from(g)], table[2][usize::from(b)]];
                *out = std::array::from_fn(|c| rows[0][c] + rows[1][c] + rows[2][c]);
            }
            let values = exponents.as_flattened_mut();
            values.iter_mut().for_each(|v| *v = exp2(*v).min(255.0));
            for (pixel, value) in run.iter_mut().zip(&exponents) {
                *pixel = value.map(|v| v as u8);
            }
        }
    }

    /// `[channel in][value][channel out]`: what a channel adds to the result's base-2 logarithm.
    pub fn table(&self) -> [[[f32; 3]; 256]; 3] {
        let light = self.light;
        let density: [f64; 256] = std::array::from_fn(|v| -((v as f64 + 1.0) / light).ln());
        let log2e = std::f64::consts::LOG2_E;
        std::array::from_fn(|from| {
            let constant = if from == 0 { light.log2() } else { 0.0 };
            density.map(|d| {
                std::array::from_fn(|to| (constant - log2e * self.matrix[to][from] * d) as f32)
            })
        })
    }
}

/// `2^x` for -126 <= x <= 126 and the nearest of these bounds beyond, within 3e-7; additions and
/// multiplications only, so that every machine gives the same bits.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    // ln(2)^k / k!
    const C: [f32; 6] = [
        std::f32::consts::LN_2,
        0.240_226_5,
        0.055_504_11,
        0.009_618_129,
        0.001_333_355_8,
        0.000_154_035_3,
    ];
    // Adding this leaves the nearest whole number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-126.0, 126.0);
    let shifted = x + ROUND;
    let f = x - (shifted - ROUND);
    let p = 1.0 + f * (C[0] + f * (C[1] + f * (C[2] + f * (C[3] + f * (C[4] + f * C[5])))));
    let whole = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    p * f32::from_bits(((whole + 127) << 23) as u32)
}

fn one_colour() -> Error {
    Error::unsupported("stain: the pixels show one colour, not two stains")
}

/// The stains of `[N, 3]` pixels and their robust maxima.
///
/// # Errors
/// As [`Macenko::fit`].
pub fn stains(rule: &MacenkoStain, rgb: &[u8]) -> Result<StainTarget> {
    let table: [f64; 256] = std::array::from_fn(|v| -((v as f64 + 1.0) / rule.light).ln());
    let densities: Vec<[f64; 3]> =
        pixels(rgb)?.iter().map(|p| p.map(|v| table[usize::from(v)])).collect();
    let stained: Vec<[f64; 3]> =
        densities.iter().copied().filter(|d| d.iter().all(|&d| d >= rule.beta)).collect();
    if stained.len() < super::MIN_PIXELS {
        return Err(Error::unsupported(format!(
            "stain: {} of {} pixels absorb light in every channel (beta = {}), at least {} are needed",
            stained.len(),
            densities.len(),
            rule.beta,
            super::MIN_PIXELS
        )));
    }
    let [first, second] = plane(&stained)?;
    let mut angles: Vec<f64> =
        stained.iter().map(|&d| dot(d, first).atan2(dot(d, second))).collect();
    let ends = [rule.alpha, 100.0 - rule.alpha].map(|q| percentile(&mut angles, q));
    if ends[1] - ends[0] < MIN_ANGLE {
        return Err(one_colour());
    }
    let [low, high] = ends.map(|a| {
        let (sin, cos) = a.sin_cos();
        std::array::from_fn(|c| second[c] * cos + first[c] * sin)
    });
    // Haematoxylin absorbs more red.
    let (haematoxylin, eosin) = if low[0] > high[0] { (low, high) } else { (high, low) };
    let mut found = StainTarget { haematoxylin, eosin, max: [0.0; 2] };
    let unmix = unmix(&found).ok_or_else(one_colour)?;
    for (max, row) in found.max.iter_mut().zip(unmix) {
        let mut amounts: Vec<f64> = densities.iter().map(|&d| dot(d, row)).collect();
        *max = percentile(&mut amounts, 99.0);
        if max.is_nan() || *max <= 1e-3 {
            return Err(Error::unsupported("stain: one of the two stains is absent"));
        }
    }
    Ok(found)
}

/// Amounts of the two stains from density, least squares: `(S' S)^-1 S'`.
fn unmix(stains: &StainTarget) -> Option<[[f64; 3]; 2]> {
    let (h, e) = (stains.haematoxylin, stains.eosin);
    let (hh, he, ee) = (dot(h, h), dot(h, e), dot(e, e));
    let determinant = hh * ee - he * he;
    (determinant > 1e-9 * hh * ee).then(|| {
        let row = |a: f64, b: f64| std::array::from_fn(|c| (a * h[c] + b * e[c]) / determinant);
        [row(ee, -he), row(-he, hh)]
    })
}

/// The two directions of largest variance, the first one towards darkness.
fn plane(points: &[[f64; 3]]) -> Result<[[f64; 3]; 2]> {
    let n = points.len() as f64;
    let mean: [f64; 3] = std::array::from_fn(|c| points.iter().map(|p| p[c]).sum::<f64>() / n);
    let mut covariance = [[0.0; 3]; 3];
    for point in points {
        let d: [f64; 3] = std::array::from_fn(|c| point[c] - mean[c]);
        for (row, a) in covariance.iter_mut().zip(d) {
            row.iter_mut().zip(d).for_each(|(sum, b)| *sum += a * b);
        }
    }
    let covariance = covariance.map(|row| row.map(|v| v / (n - 1.0)));
    let [(_, first), (second_value, second), _] = eigen(covariance);
    if second_value.is_nan() || second_value <= MIN_VARIANCE {
        return Err(one_colour());
    }
    let sign = if first.iter().sum::<f64>() < 0.0 { -1.0 } else { 1.0 };
    Ok([first.map(|v| v * sign), second])
}

/// Eigenvalues, largest first, and unit eigenvectors of a symmetric matrix by Jacobi's rotations.
fn eigen(mut a: [[f64; 3]; 3]) -> [(f64, [f64; 3]); 3] {
    let mut vectors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    for _ in 0..32 {
        for (p, q) in [(0, 1), (0, 2), (1, 2)] {
            if a[p][q] == 0.0 {
                continue;
            }
            let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
            let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
            let c = 1.0 / (t * t + 1.0).sqrt();
            let s = t * c;
            let mut rotation = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
            (rotation[p][p], rotation[q][q]) = (c, c);
            (rotation[p][q], rotation[q][p]) = (s, -s);
            let transposed = std::array::from_fn(|i| std::array::from_fn(|j| rotation[j][i]));
            a = matmul(&matmul(&transposed, &a), &rotation);
            vectors = matmul(&vectors, &rotation);
        }
    }
    let mut pairs = std::array::from_fn(|k| (a[k][k], std::array::from_fn(|c| vectors[c][k])));
    pairs.sort_by(|x: &(f64, [f64; 3]), y| y.0.total_cmp(&x.0));
    pairs.map(|(value, v): (f64, [f64; 3])| (value, v.map(|x| x / norm(v))))
}

/// Percentile by linear interpolation between order statistics, `q` in 0..=100; 0 of nothing.
pub fn percentile(values: &mut [f64], q: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let at = (q / 100.0).clamp(0.0, 1.0) * last as f64;
    let k = (at as usize).min(last);
    let (_, &mut low, above) = values.select_nth_unstable_by(k, f64::total_cmp);
    let high = above.iter().copied().fold(f64::INFINITY, f64::min);
    if above.is_empty() { low } else { low + (at - k as f64) * (high - low) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_close_everywhere() {
        for i in -12_600..=12_600 {
            let x = i as f32 / 100.0;
            let (got, want) = (f64::from(exp2(x)), f64::from(x).exp2());
            assert!((got - want).abs() <= 4e-7 * want, "2^{x}: {got}, {want}");
        }
        assert!(exp2(1e9).is_finite() && exp2(-1e9) > 0.0 && exp2(f32::NEG_INFINITY) > 0.0);
    }

    #[test]
    fn eigenvectors_belong_to_their_values() {
        let m = [[2.0, -0.3, 0.4], [-0.3, 1.0, 0.7], [0.4, 0.7, 0.5]];
        let pairs = eigen(m);
        assert!(pairs[0].0 > pairs[1].0 && pairs[1].0 > pairs[2].0);
        for (value, v) in pairs {
            for (row, x) in m.iter().zip(v) {
                assert!((dot(*row, v) - value * x).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn percentiles_interpolate() {
        let mut x = [3.0, 1.0, 2.0, 10.0];
        assert_eq!(percentile(&mut x, 50.0), 2.5);
        assert_eq!(percentile(&mut x, 0.0), 1.0);
        assert_eq!(percentile(&mut x, 100.0), 10.0);
        assert_eq!(percentile(&mut [], 50.0), 0.0);
    }
}
