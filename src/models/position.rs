//! Position embeddings learnt on one grid, sampled on another.
//!
//! Encoders were published with code that does this in three ways, and features depend on it, so a
//! recipe names the way ([`PositionResize`]).

use crate::recipe::PositionResize;

/// Weights of the inputs that an output is made of: first input, then one weight for each.
struct Taps {
    first: usize,
    weights: Vec<f64>,
}

/// A `[n, n, C]` grid of embeddings sampled at `m x m` positions.
pub fn resize(grid: &[f32], n: usize, m: usize, how: PositionResize) -> Vec<f32> {
    if n == m {
        return grid.to_vec();
    }
    let c = grid.len() / (n * n);
    let taps: Vec<Taps> = (0..m).map(|o| taps(o, n, m, how)).collect();
    // Along y, then along x.
    let tall: Vec<f64> = (taps.iter())
        .flat_map(|t| mix(t, n * c, |row, i| f64::from(grid[row * n * c + i])))
        .collect();
    (0..m)
        .flat_map(|y| {
            let row = &tall[y * n * c..][..n * c];
            taps.iter().flat_map(|t| mix(t, c, |x, i| row[x * c + i])).collect::<Vec<_>>()
        })
        .map(|x| x as f32)
        .collect()
}

fn mix(taps: &Taps, len: usize, value: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let term = |i: usize, (j, w): (usize, &f64)| w * value(taps.first + j, i);
    (0..len).map(|i| taps.weights.iter().enumerate().map(|t| term(i, t)).sum()).collect()
}

fn taps(o: usize, n: usize, m: usize, how: PositionResize) -> Taps {
    match how {
        PositionResize::Antialias => antialiased(o, n, m),
        PositionResize::Bicubic => bicubic(o, n, n as f64 / m as f64),
        PositionResize::Dinov2 => bicubic(o, n, n as f64 / (m as f64 + 0.1)),
    }
}

/// Keys' cubic convolution kernel (1981), zero from 2 on.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// Four inputs around the output's centre, those beyond the edge replaced by the edge: PyTorch's
/// `bicubic` with a = -0.75.
fn bicubic(o: usize, n: usize, scale: f64) -> Taps {
    let at = (o as f64 + 0.5) * scale - 0.5;
    let mut weights = vec![0.0; n];
    for j in -1..=2 {
        let tap = at.floor() as isize + j;
        weights[tap.clamp(0, n as isize - 1) as usize] += cubic(at - tap as f64, -0.75);
    }
    Taps { first: 0, weights }
}

/// A kernel widened by the reduction and normalised at the edges: PyTorch's `antialias = True`,
/// Pillow's resampling, with a = -0.5.
fn antialiased(o: usize, n: usize, m: usize) -> Taps {
    let scale = n as f64 / m as f64;
    let widening = scale.max(1.0);
    let centre = (o as f64 + 0.5) * scale;
    let first = (centre - 2.0 * widening + 0.5).max(0.0) as usize;
    let end = ((centre + 2.0 * widening + 0.5) as usize).min(n);
    let weight = |j: usize| cubic((j as f64 - centre + 0.5) / widening, -0.5);
    let mut weights: Vec<f64> = (first..end).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= sum);
    Taps { first, weights }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PyTorch's `interpolate(arange(16.).view(1, 1, 4, 4) ** 2, mode = "bicubic", ..)`, of which
    /// the first two rows; `Dinov2` with `scale_factor = 3.1 / 4`.
    #[test]
    fn agrees_with_pytorch() {
        let grid: Vec<f32> = (0..16).map(|i| (i * i) as f32).collect();
        for (how, m, want) in [
            (PositionResize::Bicubic, 3, [1.6817, 5.1019, 12.6979, 35.6053, 54.125, 76.8206]),
            (PositionResize::Bicubic, 6, [-1.4154, -1.4523, -0.8007, 0.5229, 3.5911, 5.9015]),
            (PositionResize::Antialias, 3, [1.5723, 5.8466, 13.4139, 40.1018, 58.1063, 79.4039]),
            (PositionResize::Antialias, 6, [-1.0838, -0.9752, -0.3056, 1.3436, 4.4087, 6.6627]),
            (PositionResize::Dinov2, 3, [1.5006, 4.5801, 11.6324, 33.12, 50.6009, 72.0133]),
        ] {
            let got = resize(&grid, 4, m, how);
            assert_eq!(got.len(), m * m);
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() < 1e-3, "{how:?}: {got}, PyTorch {want}");
            }
        }
    }
}
