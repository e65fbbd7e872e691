//! Ops over a bag of instances `[N, C]`.

use super::tokens::{dot, weights};
use crate::graph::Reduce;

/// `sum over n of softmax(score[.., a])[n] value[n, c]`.
pub(super) fn attention_pool(
    scores: &[f32],
    branches: usize,
    values: &[f32],
    c: usize,
) -> Vec<f32> {
    let mut bag = Vec::new();
    for branch in 0..branches {
        let column = scores.iter().skip(branch).step_by(branches).map(|&s| s as f64);
        let mut sum = vec![0f64; c];
        for (weight, row) in weights(column).into_iter().zip(values.chunks_exact(c)) {
            sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += weight * x as f64);
        }
        bag.extend(sum.iter().map(|&s| s as f32));
    }
    bag
}

pub(super) fn row_dot(x: &[f32], c: usize, weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let rows = x.chunks_exact(c).zip(weight.chunks_exact(c));
    rows.zip(bias).map(|((x, w), &b)| (dot(x, w) + b as f64) as f32).collect()
}

/// One number for each channel over all rows.
pub(super) fn reduce(x: &[f32], c: usize, reduce: Reduce) -> Vec<f32> {
    let n = x.len() / c;
    let column = |i: usize| x.iter().skip(i).step_by(c).copied();
    let channel = |i: usize| match reduce {
        Reduce::Mean => (column(i).map(|x| x as f64).sum::<f64>() / n as f64) as f32,
        Reduce::Max => {
            column(i).fold(f32::NEG_INFINITY, |a, b| if b > a || b.is_nan() { b } else { a })
        }
        Reduce::Percentile(q) => {
            let mut sorted: Vec<f32> = column(i).collect();
            sorted.sort_by(f32::total_cmp);
            let (at, fraction) = Reduce::rank(q, n);
            let (below, above) = (sorted[at] as f64, sorted[(at + 1).min(n - 1)] as f64);
            (below + (above - below) * fraction) as f32
        }
    };
    (0..c).map(channel).collect()
}
