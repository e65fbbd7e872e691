//! Tokens: norms, self-attention, embedding and what is taken of them.

use super::{Lowering, View, int};
use crate::cuda::kernels::{Kernel, choose_attention};
use crate::cuda::launch::Grid;
use crate::cuda::pack::{Packed, padded};
use crate::cuda::params;
use crate::error::Result;
use crate::graph::Step;
use bytemuck::Pod;

/// Warps of a block that own a part of a row each.
const WARPS: u64 = 8;
/// Queries that a block of self-attention holds at once.
const QUERIES: usize = 64;

impl Lowering<'_> {
    pub(super) fn token_norm(
        &mut self,
        step: &Step,
        name: &str,
        (eps, groups): (f32, usize),
        offsets: [u64; 2],
    ) -> Result<()> {
        let x = self.view(step.inputs[0]);
        let shape = self.graph.shape(step.output);
        let block = params::TokenNorm {
            positions: int(shape.pixels()),
            groups: int(groups),
            c: int(shape.channels() / groups),
            pitch: int(x.pitch),
            eps,
            x: x.address,
            gamma: self.parameter(offsets[0]),
            beta: self.parameter(offsets[1]),
            out: self.sink(step.output),
            ..Default::default()
        };
        self.warps(name, block, shape.pixels() * groups, false)
    }

    /// Self-attention, with queries beside the keys or the same for every row.
    pub(super) fn attention(&mut self, step: &Step, heads: usize, packed: Packed) -> Result<()> {
        let x = self.view(step.inputs[0]);
        let (from, to) = (self.graph.shape(step.inputs[0]), self.graph.shape(step.output));
        let (keys, queries, c) = (from.pixels(), to.pixels(), to.channels());
        let d = c / heads;
        let (q, query_row, first) = match packed {
            Packed::Queries { queries } => {
                (View { address: self.parameter(queries), pitch: padded(c) }, 0, 0)
            }
            _ => (x, keys * x.pitch, c),
        };
        let half = |channel: usize| x.address + 2 * channel as u64;
        let block = params::SelfAttention {
            queries: int(queries),
            keys: int(keys),
            d: int(d),
            query_pitch: int(q.pitch),
            pitch: int(x.pitch),
            query_row: query_row as u64,
            q: q.address,
            k: half(first),
            v: half(first + c),
            scale: (std::f64::consts::LOG2_E / (d as f64).sqrt()) as f32,
            out: self.sink(step.output),
            ..Default::default()
        };
        let kernel = choose_attention(self.gpu.arch, d, keys, self.gpu.shared_limit)?;
        let tiles = queries.div_ceil(QUERIES);
        // Blocks with whole heads take several tiles each, as long as there is a block for
        // every multiprocessor twice.
        let online = kernel.head.is_some_and(|head| head.online);
        let enough = 2 * self.gpu.multiprocessors as usize;
        let parts = if online {
            tiles
        } else {
            enough.div_ceil(self.memory.capacity.max(1) * heads).clamp(1, tiles)
        };
        let yz = [heads as u32, parts as u32];
        let grid = Grid::Rows { per_row: 1, per_block: 1, strips: 1, yz };
        self.push(kernel.instance(), keys, block, grid, None)
    }

    pub(super) fn embed(&mut self, step: &Step, packed: Packed) -> Result<()> {
        let Packed::Embed { prefix, position, prefix_tokens } = packed else { unreachable!() };
        let x = self.view(step.inputs[0]);
        let shape = self.graph.shape(step.output);
        let (tokens, c) = (shape.pixels(), shape.channels());
        let block = params::Embed {
            prefix_tokens: int(prefix_tokens),
            tokens: int(tokens),
            c: int(c),
            pitch: int(x.pitch),
            x: x.address,
            prefix: self.parameter(prefix),
            position: self.parameter(position),
            out: self.sink(step.output),
            ..Default::default()
        };
        self.groups("embed", block, tokens, c, false)
    }

    pub(super) fn token_mean(&mut self, step: &Step, start: usize, count: usize) -> Result<()> {
        let x = self.view(step.inputs[0]);
        let shape = self.graph.shape(step.inputs[0]);
        let block = params::TokenMean {
            tokens: int(shape.pixels()),
            start: int(start),
            count: int(count),
            c: int(shape.channels()),
            pitch: int(x.pitch),
            x: x.address,
            out: self.sink(step.output),
            ..Default::default()
        };
        self.groups("token_mean", block, 1, shape.channels(), false)
    }

    pub(super) fn softmax(&mut self, step: &Step) -> Result<()> {
        let x = self.view(step.inputs[0]);
        let shape = self.graph.shape(step.output);
        let block = params::Softmax {
            positions: int(shape.pixels()),
            c: int(shape.channels()),
            pitch: int(x.pitch),
            x: x.address,
            out: self.sink(step.output),
            ..Default::default()
        };
        self.warps("softmax", block, shape.pixels(), shape.is_bag())
    }

    /// A kernel whose warps own a part of a row each.
    fn warps<P: Pod>(&mut self, name: &str, block: P, parts: usize, bag: bool) -> Result<()> {
        let (per_row, per_block) = (parts as u64, WARPS);
        let grid = if bag {
            Grid::Fixed([per_row.div_ceil(per_block) as u32, 1, 1])
        } else {
            Grid::Rows { per_row, per_block, strips: 1, yz: [1, 1] }
        };
        self.push(Kernel::named(name).instance(), 0, block, grid, bag.then_some(1))
    }
}
