//! Weights and pictures from a formula, the same bits here and in `weights/export.py`, so that golden
//! networks need no stored weights.

use std::borrow::Cow;

fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB);
    z ^ (z >> 31)
}

fn at(seed: u64, index: u64) -> u64 {
    mix(seed.wrapping_add(index.wrapping_mul(0x9E3779B97F4A7C15)))
}

fn fnv1a(text: &str) -> u64 {
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100000001B3);
    text.bytes().fold(0xCBF29CE484222325, step)
}

pub fn uniform(name: &str, n: usize) -> Vec<f32> {
    let seed = fnv1a(name);
    (1..=n as u64).map(|i| (at(seed, i) >> 40) as f32 * 2f32.powi(-23) - 1.0).collect()
}

pub fn formula(name: &str, shape: &[usize]) -> Vec<f32> {
    let n: usize = shape.iter().product();
    let (offset, factor) = match shape {
        [k, _, ..] => (0.0, (6.0 / (n / k) as f64).sqrt() as f32),
        _ if name.ends_with("bn3.weight") => (0.25, 0.0625),
        _ if name.ends_with(".weight") => (1.0, 0.25),
        _ if name.ends_with("running_var") => (1.0, 0.75),
        _ => (0.0, 0.1),
    };
    uniform(name, n).into_iter().map(|u| offset + factor * u).collect()
}

pub fn pictures(name: &str, count: usize, side: usize) -> Vec<u8> {
    let seed = fnv1a(name);
    let mut data = Vec::with_capacity(count * side * side * 3);
    for t in 0..count as u64 {
        for y in 0..side as u64 {
            for x in 0..side as u64 {
                for c in 0..3 {
                    let block = |s: u64| {
                        let index = (((t * 3 + c) * 8 + s) * 1024 + (y >> s)) * 1024 + (x >> s);
                        at(seed, index) >> 56
                    };
                    data.push(((3 * block(5) + 2 * block(3) + block(1)) / 6) as u8);
                }
            }
        }
    }
    data
}

/// One tensor for the safetensors crate's writer.
pub struct F32 {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl safetensors::tensor::View for F32 {
    fn dtype(&self) -> safetensors::Dtype {
        safetensors::Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        self.data.iter().flat_map(|x| x.to_le_bytes()).collect()
    }
    fn data_len(&self) -> usize {
        self.data.len() * 4
    }
}

/// The tensors a `.tsv` of names and shapes lists, through the formula.
pub fn listed(tsv: &str) -> Vec<(String, F32)> {
    tsv.lines()
        .map(|line| {
            let (name, shape) = line.split_once('\t').unwrap();
            let shape: Vec<usize> = shape.split(',').map(|s| s.parse().unwrap()).collect();
            (name.to_string(), F32 { data: formula(name, &shape), shape })
        })
        .collect()
}

/// Relative L2 error and cosine of `got` to `want`.
pub fn compare(got: &[f32], want: &[f32]) -> (f64, f64) {
    assert_eq!(got.len(), want.len());
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
    };
    let difference: Vec<f32> = got.iter().zip(want).map(|(x, y)| x - y).collect();
    let error = (dot(&difference, &difference) / dot(want, want)).sqrt();
    (error, dot(got, want) / (dot(got, got) * dot(want, want)).sqrt())
}
