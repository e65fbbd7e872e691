//! Layers over tokens one at a time: embedding, normalisation, softmax, mean.

use super::kernels::Kernels;
use super::layer::{Layer, Site, numbers, vector};
use super::vector::Norm;
use crate::graph::{Graph, ParamId, Shape};

/// Positions to a task.
const POSITIONS: usize = 16;
/// Channels handled at a time.
const CHANNELS: usize = 256;

/// Prefix tokens, then the positions of a map with their embedding added.
pub(super) struct Embed {
    kernels: &'static Kernels,
    prefix: Vec<f32>,
    position: Option<Vec<f32>>,
    /// Positions of the map.
    area: usize,
}

impl Embed {
    pub fn new(
        graph: &Graph,
        kernels: &'static Kernels,
        input: Shape,
        [prefix, position]: [Option<ParamId>; 2],
    ) -> Embed {
        let table = |id: ParamId| numbers(graph, id).to_vec();
        let (prefix, position) = (prefix.map(table).unwrap_or_default(), position.map(table));
        Embed { kernels, prefix, position, area: input.pixels() }
    }
}

impl Layer for Embed {
    fn run(&self, site: &Site<'_>) {
        let x = site.inputs[0];
        let c = x.channels();
        let prefix = self.prefix.len() / c;
        let tokens = prefix + self.area;
        site.sink.fill(&site.on, [POSITIONS, CHANNELS], |part, _| {
            let channels = part.channels.clone();
            let mut value = [0f32; CHANNELS];
            let value = &mut value[..channels.len()];
            for to in part.positions.clone() {
                let (row, token) = (to / tokens, to % tokens);
                let Some(position) = token.checked_sub(prefix) else {
                    part.put(to, channels.start, &self.prefix[token * c..][channels.clone()]);
                    continue;
                };
                self.kernels.widen(x.at(row * self.area + position, channels.clone()), value);
                if let Some(table) = &self.position {
                    let added = &table[position * c..][channels.clone()];
                    value.iter_mut().zip(added).for_each(|(v, a)| *v += a);
                }
                part.put(to, channels.start, value);
            }
        });
    }
}

/// Layer norm and root-mean-square norm.
pub(super) struct GroupedNorm {
    kernels: &'static Kernels,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    eps: f32,
    centred: bool,
    /// Channels of a token.
    channels: usize,
}

impl GroupedNorm {
    pub fn layer(
        graph: &Graph,
        kernels: &'static Kernels,
        input: Shape,
        [gamma, beta]: [Option<ParamId>; 2],
        eps: f32,
    ) -> GroupedNorm {
        let channels = input.channels();
        let gamma = vector(graph, gamma, channels, 1.0);
        let beta = vector(graph, beta, gamma.len(), 0.0);
        GroupedNorm { kernels, gamma, beta, eps, centred: true, channels }
    }

    pub fn rms(
        graph: &Graph,
        kernels: &'static Kernels,
        input: Shape,
        gamma: ParamId,
        eps: f32,
    ) -> GroupedNorm {
        let uncentred = GroupedNorm::layer(graph, kernels, input, [Some(gamma), None], eps);
        GroupedNorm { centred: false, ..uncentred }
    }
}

impl Layer for GroupedNorm {
    fn scratch(&self) -> usize {
        self.channels
    }

    fn run(&self, site: &Site<'_>) {
        let (x, c) = (site.inputs[0], self.channels);
        let GroupedNorm { gamma, beta, eps, centred, .. } = self;
        let norm = Norm { gamma, beta, eps: *eps, centred: *centred };
        site.sink.fill(&site.on, [POSITIONS, c], |part, scratch| {
            let value = &mut scratch.hidden[..c];
            for position in part.positions.clone() {
                self.kernels.widen(x.at(position, 0..c), value);
                for group in value.chunks_exact_mut(gamma.len()) {
                    self.kernels.normalize(group, &norm);
                }
                part.put(position, 0, value);
            }
        });
    }
}

/// Softmax over the channels of each position.
pub(super) struct Softmax {
    pub kernels: &'static Kernels,
    pub channels: usize,
}

impl Layer for Softmax {
    fn scratch(&self) -> usize {
        self.channels
    }

    fn run(&self, site: &Site<'_>) {
        let (x, c) = (site.inputs[0], self.channels);
        site.sink.fill(&site.on, [POSITIONS, c], |part, scratch| {
            let value = &mut scratch.hidden[..c];
            for position in part.positions.clone() {
                self.kernels.widen(x.at(position, 0..c), value);
                let (_, total) = self.kernels.exponentials(value, f32::NEG_INFINITY, 1.0);
                value.iter_mut().for_each(|v| *v = (*v as f64 / total) as f32);
                part.put(position, 0, value);
            }
        });
    }
}

/// The mean of some tokens of each row.
pub(super) struct TokenMean {
    pub kernels: &'static Kernels,
    /// Tokens of a row of the input.
    pub tokens: usize,
    pub start: usize,
    pub count: usize,
}

impl Layer for TokenMean {
    fn run(&self, site: &Site<'_>) {
        let x = site.inputs[0];
        site.sink.fill(&site.on, [1, CHANNELS], |part, _| {
            let (row, channels) = (part.positions.start, part.channels.clone());
            let first = row * self.tokens + self.start;
            if self.count == 1 {
                return part.put_stored(row, channels.start, x.at(first, channels));
            }
            let (mut sums, mut value) = ([0f64; CHANNELS], [0f32; CHANNELS]);
            let value = &mut value[..channels.len()];
            for position in first..first + self.count {
                self.kernels.widen(x.at(position, channels.clone()), value);
                sums.iter_mut().zip(&*value).for_each(|(s, &v)| *s += v as f64);
            }
            value.iter_mut().zip(sums).for_each(|(v, s)| *v = (s / self.count as f64) as f32);
            part.put(row, channels.start, value);
        });
    }
}
