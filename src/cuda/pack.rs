//! Parameters as the kernels read them: one block of bytes, each part at a multiple of 256.
//!
//! Channels are padded to 8 with zeros, because copies move 16 bytes; absent scales are ones and
//! absent biases zeros, so that no kernel asks whether they are there.

use super::fuse::{Group, Joint};
use super::params;
use crate::graph::{Dense, Epilogue, Graph, Interpolation, Op, ParamData, ParamId, Shape, Step};
use bytemuck::NoUninit;
use half::f16;

/// Hidden units and gates in a group of the attention score kernel.
const GROUP: usize = 64;

/// Columns of a slice of a product's operands; as in `tile.cuh`.
const SLICE: usize = 32;

/// Bytes to be copied to the device.
#[derive(Default)]
pub(super) struct Packer {
    pub bytes: Vec<u8>,
}

/// The parameters of a step, as offsets into the packed bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Packed {
    None,
    /// Anything that multiplies: `[K, R S C']` FP16, `[K]` f32 twice, K being the filters of the
    /// product.
    Product {
        weight: u64,
        scale: u64,
        bias: u64,
    },
    /// Two products in a row: weight, scale and bias of each.
    Pair {
        first: [u64; 3],
        second: [u64; 3],
    },
    /// As `preact.cu` says.
    Preact {
        weight: u64,
        scale: u64,
        bias: u64,
        x_scale: u64,
        x_bias: u64,
    },
    /// `[C]` f32 twice: scale and bias, or gamma and beta.
    Norm {
        gamma: u64,
        beta: u64,
    },
    /// `[Q, C']` FP16.
    Queries {
        queries: u64,
    },
    /// `[P, C]` and `[H W, C]` f32, and P.
    Embed {
        prefix: u64,
        position: u64,
        prefix_tokens: usize,
    },
    /// Tables of `Taps`, one entry for each row and column of the output.
    Taps {
        rows: u64,
        columns: u64,
    },
    /// As `score.cu` says.
    Score {
        weight: u64,
        bias: u64,
        w: u64,
        w_bias: u64,
        groups: usize,
    },
    /// `[R, C]` FP16, `[R]` f32.
    RowDot {
        weight: u64,
        bias: u64,
    },
    /// `[3, 256]` f32.
    Table {
        table: u64,
    },
}

/// Channels rounded up to whole 16-byte chunks.
pub(super) fn padded(c: usize) -> usize {
    c.next_multiple_of(8)
}

fn halves(graph: &Graph, id: ParamId) -> &[f16] {
    match &graph.param(id).data {
        ParamData::F16(v) => v,
        ParamData::F32(_) => unreachable!("checked when the graph was built"),
    }
}

fn floats(graph: &Graph, id: ParamId) -> &[f32] {
    match &graph.param(id).data {
        ParamData::F32(v) => v,
        ParamData::F16(_) => unreachable!("checked when the graph was built"),
    }
}

impl Packer {
    /// Packs what the steps of a group need.
    pub fn group(&mut self, graph: &Graph, group: &Group) -> Packed {
        let first = self.step(graph, &graph.steps[group.first]);
        let Joint::Pair { second } = group.joint else { return first };
        let second = self.step(graph, &graph.steps[second]);
        let offsets = |packed| match packed {
            Packed::Product { weight, scale, bias } => [weight, scale, bias],
            packed => unreachable!("a convolution packed as {packed:?}"),
        };
        Packed::Pair { first: offsets(first), second: offsets(second) }
    }

    /// Packs what a step needs.
    fn step(&mut self, graph: &Graph, step: &Step) -> Packed {
        match step.op {
            Op::Conv2d { weight, ref epilogue, .. } | Op::Linear { weight, ref epilogue } => {
                self.product(graph, weight, epilogue)
            }
            Op::PreactConv1x1 { scale, bias, weight, ref epilogue } => {
                self.preact(graph, [scale, bias], weight, epilogue)
            }
            Op::ConvTranspose2x2 { weight, ref epilogue } => {
                self.transposed(graph, weight, epilogue)
            }
            Op::GatedLinear { weight, bias, .. } => self.gated(graph, weight, bias),
            Op::BatchNorm { gamma, beta, .. } => self.norm(graph, Some(gamma), Some(beta), 0),
            Op::Affine { scale, bias, .. } => {
                self.norm(graph, scale, bias, graph.shape(step.output).channels())
            }
            Op::LayerNorm { gamma, beta, groups, .. } => {
                let c = graph.shape(step.output).channels() / groups;
                self.norm(graph, Some(gamma), beta, c)
            }
            Op::RmsNorm { gamma, .. } => self.norm(graph, Some(gamma), None, 0),
            Op::Attention { queries: Some(queries), .. } => {
                let rows = padded_rows(halves(graph, queries), graph.param(queries).shape[1]);
                Packed::Queries { queries: self.add(&rows) }
            }
            Op::Embed { prefix, position } => {
                let shape = graph.shape(step.inputs[0]);
                Packed::Embed {
                    prefix: self.vector(graph, prefix, 0, 0.0),
                    position: self.vector(graph, position, shape.len(), 0.0),
                    prefix_tokens: graph.shape(step.output).pixels() - shape.pixels(),
                }
            }
            Op::Upsample { h, w, mode } => {
                let [from_h, from_w, _] = super::lower::map(graph.shape(step.inputs[0]));
                let rows = self.taps(mode, from_h, h);
                Packed::Taps { rows, columns: self.taps(mode, from_w, w) }
            }
            Op::AttentionScore { v, u, w } => self.score(graph, v, u, w),
            Op::RowDot { weight, bias } => {
                let rows = graph.param(weight).shape[0];
                let weight = self.add(halves(graph, weight));
                Packed::RowDot { weight, bias: self.vector(graph, bias, rows, 0.0) }
            }
            Op::Normalize { mean, std } | Op::Patches { mean, std, .. } => {
                let value = |i: usize| ((i % 256) as f32 / 255.0 - mean[i / 256]) / std[i / 256];
                let table: Vec<f32> = (0..3 * 256).map(value).collect();
                Packed::Table { table: self.add(&table) }
            }
            Op::MaxPool { .. }
            | Op::AvgPool { .. }
            | Op::AdaptiveAvgPool { .. }
            | Op::Flatten
            | Op::Attention { queries: None, .. }
            | Op::TokenMean { .. }
            | Op::Softmax
            | Op::AttentionPool
            | Op::BagReduce { .. }
            | Op::Copy => Packed::None,
        }
    }

    fn add<T: NoUninit>(&mut self, values: &[T]) -> u64 {
        let start = self.bytes.len().next_multiple_of(256);
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(bytemuck::cast_slice(values));
        start as u64
    }

    fn vector(&mut self, graph: &Graph, id: Option<ParamId>, n: usize, absent: f32) -> u64 {
        match id {
            Some(id) => self.add(floats(graph, id)),
            None => self.add(&vec![absent; n]),
        }
    }

    /// `[K, .., C]` with each run of C padded.
    fn product(&mut self, graph: &Graph, weight: ParamId, epilogue: &Epilogue) -> Packed {
        let shape = &graph.param(weight).shape;
        let (k, c) = (shape[0], shape[shape.len() - 1]);
        let rows = padded_rows(halves(graph, weight), c);
        Packed::Product {
            weight: self.add(&rows),
            scale: self.vector(graph, epilogue.scale, k, 1.0),
            bias: self.vector(graph, epilogue.bias, k, 0.0),
        }
    }

    /// Scale and bias, or gamma and beta, of `n` channels where one is absent.
    fn norm(
        &mut self,
        graph: &Graph,
        gamma: Option<ParamId>,
        beta: Option<ParamId>,
        n: usize,
    ) -> Packed {
        let gamma = self.vector(graph, gamma, n, 1.0);
        Packed::Norm { gamma, beta: self.vector(graph, beta, n, 0.0) }
    }

    /// A product and the scale and bias of its input, zero-filled to whole slices.
    fn preact(
        &mut self,
        graph: &Graph,
        input: [ParamId; 2],
        weight: ParamId,
        epilogue: &Epilogue,
    ) -> Packed {
        let Packed::Product { weight, scale, bias } = self.product(graph, weight, epilogue) else {
            unreachable!("packed as a product")
        };
        let [x_scale, x_bias] = input.map(|id| {
            let mut values = floats(graph, id).to_vec();
            values.resize(values.len().next_multiple_of(SLICE), 0.0);
            self.add(&values)
        });
        Packed::Preact { weight, scale, bias, x_scale, x_bias }
    }

    /// Rows in order (tap, filter), filters padded; scale and bias once for each tap.
    fn transposed(&mut self, graph: &Graph, weight: ParamId, epilogue: &Epilogue) -> Packed {
        let shape = &graph.param(weight).shape;
        let (k, c) = (shape[0], shape[3]);
        let (k_padded, pitch) = (padded(k), padded(c));
        let mut rows = vec![f16::ZERO; 4 * k_padded * pitch];
        for (i, row) in halves(graph, weight).chunks_exact(c).enumerate() {
            let (filter, tap) = (i / 4, i % 4);
            rows[(tap * k_padded + filter) * pitch..][..c].copy_from_slice(row);
        }
        let mut repeated = |id: Option<ParamId>, absent: f32| {
            let mut once = id.map_or_else(|| vec![absent; k], |id| floats(graph, id).to_vec());
            once.resize(k_padded, absent);
            self.add(&once.repeat(4))
        };
        let (scale, bias) = (repeated(epilogue.scale, 1.0), repeated(epilogue.bias, 0.0));
        Packed::Product { weight: self.add(&rows), scale, bias }
    }

    /// Rows that alternate between gates and values.
    fn gated(&mut self, graph: &Graph, weight: ParamId, bias: Option<ParamId>) -> Packed {
        let shape = &graph.param(weight).shape;
        let (both, c) = (shape[0], shape[1]);
        let alternate = |i: usize| i / 2 + i % 2 * (both / 2);
        let all = halves(graph, weight);
        let rows: Vec<f16> =
            (0..both).flat_map(|i| all[alternate(i) * c..][..c].iter().copied()).collect();
        let bias = bias.map(|id| floats(graph, id));
        let biases: Vec<f32> = (0..both).map(|i| bias.map_or(0.0, |b| b[alternate(i)])).collect();
        Packed::Product {
            weight: self.add(&padded_rows(&rows, c)),
            scale: self.add(&vec![1f32; both]),
            bias: self.add(&biases),
        }
    }

    fn taps(&mut self, mode: Interpolation, n: usize, m: usize) -> u64 {
        let entry = |o: usize| {
            let taps = mode.taps(o, n, m);
            let [first, second] = [taps.first, taps.second].map(super::lower::int);
            params::Taps { first, second, fraction: taps.fraction }
        };
        self.add(&(0..m).map(entry).collect::<Vec<_>>())
    }

    /// Groups of 64 rows: 64 of `v`, or 32 of `v` and the same 32 of `u`.
    fn score(&mut self, graph: &Graph, v: Dense, u: Option<Dense>, w: Dense) -> Packed {
        let (d, c) = (graph.param(v.weight).shape[0], graph.param(v.weight).shape[1]);
        let width = if u.is_some() { GROUP / 2 } else { GROUP };
        let groups = d.div_ceil(width);
        let pitch = padded(c);
        let mut weight = vec![f16::ZERO; groups * GROUP * pitch];
        let mut bias = vec![0f32; groups * GROUP];
        for (part, layer) in [Some(v), u].into_iter().enumerate() {
            let Some(layer) = layer else { continue };
            for (unit, row) in halves(graph, layer.weight).chunks_exact(c).enumerate() {
                let place = unit / width * GROUP + part * width + unit % width;
                weight[place * pitch..][..c].copy_from_slice(row);
                bias[place] = layer.bias.map_or(0.0, |id| floats(graph, id)[unit]);
            }
        }
        let branches = graph.param(w.weight).shape[0];
        let mut last = vec![0f32; branches * groups * width];
        for (to, from) in
            last.chunks_exact_mut(groups * width).zip(halves(graph, w.weight).chunks_exact(d))
        {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32());
        }
        Packed::Score {
            weight: self.add(&weight),
            bias: self.add(&bias),
            w: self.add(&last),
            w_bias: self.vector(graph, w.bias, branches, 0.0),
            groups,
        }
    }
}

fn padded_rows(values: &[f16], c: usize) -> Vec<f16> {
    let mut rows = Vec::with_capacity(values.len() / c * padded(c));
    for row in values.chunks_exact(c) {
        rows.extend_from_slice(row);
        rows.resize(rows.len().next_multiple_of(8), f16::ZERO);
    }
    rows
}

/// The graph with the channels of every stored tensor padded: what the arena is planned from, so
/// that every pitch is whole chunks.
pub(super) fn with_padded_tensors(graph: &Graph) -> Graph {
    let mut wide = Graph { params: Vec::new(), ..graph.clone() };
    for tensor in wide.tensors.iter_mut().filter(|t| t.slice.is_none()) {
        match &mut tensor.shape {
            Shape::Pixels { .. } => {}
            Shape::Map { c, .. } | Shape::Tokens { c, .. } | Shape::Bag { c, .. } => {
                *c = padded(*c)
            }
        }
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_with_zeros() {
        let values: Vec<f16> = (1..=6).map(|x| f16::from_f32(x as f32)).collect();
        let rows: Vec<f32> = padded_rows(&values, 3).iter().map(|x| x.to_f32()).collect();
        assert_eq!(rows[..8], [1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(rows[8..11], [4.0, 5.0, 6.0]);
        assert_eq!(rows.len(), 16);
    }

    #[test]
    fn parts_start_at_whole_lines() {
        let mut packer = Packer::default();
        assert_eq!(packer.add(&[1u8]), 0);
        assert_eq!(packer.add(&[1f32, 2.0]), 256);
        assert_eq!(packer.bytes.len(), 264);
    }
}
