//! A scale and a bias for each channel: given ones, and batch norm with the statistics of the run.

use super::epilogue::Finish;
use super::kernels::Kernels;
use super::layer::{Layer, Site, numbers, vector};
use crate::graph::{Act, Graph, ParamId};

/// Channels to a task: a cache line of f16.
const CHANNELS: usize = 32;

/// Batch norm: mean, then biased variance, then the scaled values, channel by channel over all
/// positions of the run, in order and in f64.
pub(super) struct BatchNorm {
    kernels: &'static Kernels,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    eps: f32,
    act: Act,
}

impl BatchNorm {
    pub fn new(
        graph: &Graph,
        kernels: &'static Kernels,
        [gamma, beta]: [ParamId; 2],
        eps: f32,
        act: Act,
    ) -> BatchNorm {
        let (gamma, beta) = (numbers(graph, gamma).to_vec(), numbers(graph, beta).to_vec());
        BatchNorm { kernels, gamma, beta, eps, act }
    }
}

impl Layer for BatchNorm {
    fn run(&self, site: &Site<'_>) {
        let x = site.inputs[0];
        let count = x.positions() as f64;
        site.sink.fill(&site.on, [x.positions(), CHANNELS], |part, _| {
            let channels = part.channels.clone();
            let mut value = [0f32; CHANNELS];
            let value = &mut value[..channels.len()];
            let mut mean = [0f64; CHANNELS];
            for position in part.positions.clone() {
                self.kernels.widen(x.at(position, channels.clone()), value);
                mean.iter_mut().zip(&*value).for_each(|(m, &v)| *m += v as f64);
            }
            mean.iter_mut().for_each(|m| *m /= count);
            let mut variance = [0f64; CHANNELS];
            for position in part.positions.clone() {
                self.kernels.widen(x.at(position, channels.clone()), value);
                for ((s, m), &v) in variance.iter_mut().zip(&mean).zip(&*value) {
                    *s += (v as f64 - m) * (v as f64 - m);
                }
            }
            let (mut scale, mut bias) = ([0f32; CHANNELS], [0f32; CHANNELS]);
            for (i, channel) in channels.clone().enumerate() {
                let deviation = (variance[i] / count + self.eps as f64).sqrt();
                let factor = self.gamma[channel] as f64 / deviation;
                scale[i] = factor as f32;
                bias[i] = (self.beta[channel] as f64 - mean[i] * factor) as f32;
            }
            let (scale, bias) = (&scale[..channels.len()], &bias[..channels.len()]);
            for position in part.positions.clone() {
                self.kernels.widen(x.at(position, channels.clone()), value);
                self.kernels.finish(value, &Finish { scale, bias, residual: None, act: self.act });
                part.put(position, channels.start, value);
            }
        });
    }
}

/// `act(x * scale[c] + bias[c])`.
pub(super) struct Affine {
    kernels: &'static Kernels,
    scale: Vec<f32>,
    bias: Vec<f32>,
    act: Act,
}

impl Affine {
    pub fn new(
        graph: &Graph,
        kernels: &'static Kernels,
        channels: usize,
        [scale, bias]: [Option<ParamId>; 2],
        act: Act,
    ) -> Affine {
        let (scale, bias) =
            (vector(graph, scale, channels, 1.0), vector(graph, bias, channels, 0.0));
        Affine { kernels, scale, bias, act }
    }
}

impl Layer for Affine {
    fn run(&self, site: &Site<'_>) {
        let x = site.inputs[0];
        site.sink.fill(&site.on, [64, 256], |part, _| {
            let channels = part.channels.clone();
            let mut value = [0f32; 256];
            let value = &mut value[..channels.len()];
            let (scale, bias) = (&self.scale[channels.clone()], &self.bias[channels.clone()]);
            for position in part.positions.clone() {
                self.kernels.widen(x.at(position, channels.clone()), value);
                self.kernels.finish(value, &Finish { scale, bias, residual: None, act: self.act });
                part.put(position, channels.start, value);
            }
        });
    }
}
