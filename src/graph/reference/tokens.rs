//! Ops over positions `[positions, C]`: linear layers, norms and attention.

use crate::graph::{Act, Shape};
use std::ops::Range;

/// An activation function by its definition.
pub fn activate(act: Act, x: f64) -> f32 {
    let y = match act {
        Act::None => x,
        Act::Relu if x < 0.0 => 0.0,
        Act::Relu => x,
        Act::Tanh => x.tanh(),
        Act::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Act::Gelu => 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
        Act::Silu => x / (1.0 + (-x).exp()),
    };
    y as f32
}

pub(super) fn linear(x: &[f32], c: usize, weight: &[f32]) -> Vec<f64> {
    let position = |x| weight.chunks_exact(c).map(move |w| dot(x, w));
    x.chunks_exact(c).flat_map(position).collect()
}

/// In eight interleaved partial sums, for speed; all of them in f64.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    let mut sums = [0f64; 8];
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            sums[i] += a[i] as f64 * b[i] as f64;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&a, &b)| a as f64 * b as f64).sum();
    sums.iter().sum::<f64>() + rest
}

/// `act(sum[k] + bias[k]) * (sum[K + k] + bias[K + k])`.
pub(super) fn gate(sums: &[f64], bias: &[f32], k: usize, act: Act) -> Vec<f32> {
    let position = |sums: &[f64]| -> Vec<f32> {
        let biased = |i: usize| sums[i] + bias[i] as f64;
        (0..k).map(|i| (activate(act, biased(i)) as f64 * biased(k + i)) as f32).collect()
    };
    sums.chunks_exact(2 * k).flat_map(position).collect()
}

/// The prefix, then the positions of the map with their embedding added; `row` elements a row.
pub(super) fn embed(x: &[f32], row: usize, prefix: &[f32], position: &[f32]) -> Vec<f32> {
    let mut tokens = Vec::new();
    for x in x.chunks_exact(row) {
        tokens.extend(prefix);
        tokens.extend(x.iter().zip(position).map(|(x, p)| x + p));
    }
    tokens
}

/// `(x - mean) / sqrt(var + eps) * gamma + beta` of each group of channels, variance biased.
pub(super) fn layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32) -> Vec<f32> {
    let group = |x: &[f32]| -> Vec<f32> {
        let n = x.len() as f64;
        let mean = x.iter().map(|&x| x as f64).sum::<f64>() / n;
        let variance = x.iter().map(|&x| (x as f64 - mean).powi(2)).sum::<f64>() / n;
        let unit = |x: f32| (x as f64 - mean) / (variance + eps as f64).sqrt();
        let scaled = |((&x, &g), &b): ((&f32, &f32), &f32)| (unit(x) * g as f64 + b as f64) as f32;
        x.iter().zip(gamma).zip(beta).map(scaled).collect()
    };
    x.chunks_exact(gamma.len()).flat_map(group).collect()
}

/// `x / sqrt(mean(x^2) + eps) * gamma` of each group of channels.
pub(super) fn rms_norm(x: &[f32], gamma: &[f32], eps: f32) -> Vec<f32> {
    let group = |x: &[f32]| -> Vec<f32> {
        let mean = x.iter().map(|&x| (x as f64).powi(2)).sum::<f64>() / x.len() as f64;
        let norm = (mean + eps as f64).sqrt();
        x.iter().zip(gamma).map(|(&x, &g)| (x as f64 / norm * g as f64) as f32).collect()
    };
    x.chunks_exact(gamma.len()).flat_map(group).collect()
}

/// `softmax(q k^T / sqrt(d)) v` for each head of each row of `t` tokens; `out` is the shape of a
/// row of the result. The softmax's exponentials are multiplied with values as `kept` leaves them and
/// divided by their sum afterwards.
pub(super) fn attention(
    x: &[f32],
    t: usize,
    out: Shape,
    heads: usize,
    queries: Option<&[f32]>,
    kept: impl Fn(f64) -> f64,
) -> Vec<f32> {
    let (q, c) = (out.pixels(), out.channels());
    let d = c / heads;
    let pitch = if queries.is_some() { 2 * c } else { 3 * c };
    let mut values = Vec::new();
    for row in x.chunks_exact(t * pitch) {
        for (i, head) in (0..q).flat_map(|i| (0..heads).map(move |h| (i, h))) {
            let query = match queries {
                Some(queries) => &queries[i * c + head * d..][..d],
                None => &row[i * pitch + head * d..][..d],
            };
            let key = |j: usize| &row[j * pitch + pitch - 2 * c + head * d..][..d];
            let value = |j: usize| &row[j * pitch + pitch - c + head * d..][..d];
            let logits = (0..t).map(|j| dot(query, key(j)) / (d as f64).sqrt());
            let mut sum = vec![0f64; d];
            let powers = exponentials(logits);
            for (j, &power) in powers.iter().enumerate() {
                let weight = kept(power);
                sum.iter_mut().zip(value(j)).for_each(|(s, &v)| *s += weight * v as f64);
            }
            let total: f64 = powers.iter().sum();
            values.extend(sum.iter().map(|&s| (s / total) as f32));
        }
    }
    values
}

/// `exp(x_i) / sum exp(x_j)`.
pub(super) fn weights(logits: impl Iterator<Item = f64>) -> Vec<f64> {
    let powers = exponentials(logits);
    let total: f64 = powers.iter().sum();
    powers.iter().map(|p| p / total).collect()
}

/// `exp(x_i - max x_j)`.
fn exponentials(logits: impl Iterator<Item = f64>) -> Vec<f64> {
    let logits: Vec<f64> = logits.collect();
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logits.iter().map(|x| (x - largest).exp()).collect()
}

/// The mean of some tokens of each row of `t`.
pub(super) fn token_mean(x: &[f32], t: usize, c: usize, tokens: Range<usize>) -> Vec<f32> {
    let row = |row: &[f32]| -> Vec<f32> {
        let sum = |i: usize| tokens.clone().map(|t| row[t * c + i] as f64).sum::<f64>();
        (0..c).map(|i| (sum(i) / tokens.len() as f64) as f32).collect()
    };
    x.chunks_exact(t * c).flat_map(row).collect()
}

/// Softmax over the channels of each position.
pub(super) fn softmax(x: &[f32], c: usize) -> Vec<f32> {
    let position = |x: &[f32]| weights(x.iter().map(|&x| x as f64));
    x.chunks_exact(c).flat_map(position).map(|w| w as f32).collect()
}
