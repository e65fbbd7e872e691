//! First convolutions and what follows them, in one launch: `stem.cu` and `stem_pair.cu`.

use super::{Lowering, int, map};
use crate::cuda::kernels::Kernel;
use crate::cuda::launch::Grid;
use crate::cuda::pack::Packed;
use crate::cuda::params;
use crate::error::Result;
use crate::graph::{Op, Step};
use bytemuck::Pod;

/// Positions of the result that a block of `stem.cu` stores.
const POOLED: [usize; 2] = [7, 8];
/// Positions of the second map that a block of `stem_pair.cu` computes, along each side.
const SIDE: usize = 16;

impl Lowering<'_> {
    /// Adds the launch of a 7 x 7 convolution and the overlapping max pool behind it.
    pub(super) fn stem(&mut self, conv: &Step, pool: &Step, packed: Packed) -> Result<()> {
        let Packed::Product { weight, scale, bias } = packed else {
            unreachable!("packed for a product")
        };
        let Op::MaxPool { window, .. } = pool.op else {
            unreachable!("grouped as a convolution and a pool")
        };
        let x = self.aligned(conv.inputs[0])?;
        let [h, w, _] = map(self.graph.shape(conv.output));
        let to = map(self.graph.shape(pool.output));
        let block = params::Stem {
            input: map(self.graph.shape(conv.inputs[0])).map(int),
            map: [int(h), int(w)],
            output: to.map(int),
            pad: int(window.pad[0]),
            pitch: int(x.pitch),
            x: x.address,
            weight: self.parameter(weight),
            epilogue: self.stem_ending([scale, bias], pool),
            ..Default::default()
        };
        self.tiles("stem", block, to[0].div_ceil(POOLED[0]) * to[1].div_ceil(POOLED[1]))
    }

    /// Adds the launch of two 3 x 3 convolutions, and of the max pool that is `last` where it is
    /// another step.
    pub(super) fn stem_pair(
        &mut self,
        first: &Step,
        second: &Step,
        last: &Step,
        packed: Packed,
    ) -> Result<()> {
        let Packed::Pair { first: [first_weight, first_scale, first_bias], second: packed } =
            packed
        else {
            unreachable!("packed for two products")
        };
        let x = self.aligned(first.inputs[0])?;
        let [h, w, c] = map(self.graph.shape(first.inputs[0]));
        let pool = matches!(last.op, Op::MaxPool { .. });
        let filters = [first, second].map(|s| int(self.graph.shape(s.output).channels()));
        let block = params::StemPair {
            input: [h, w, c].map(int),
            filters,
            pitch: int(x.pitch),
            pool: pool.into(),
            x: x.address,
            first_weight: self.parameter(first_weight),
            first_scale: self.parameter(first_scale),
            first_bias: self.parameter(first_bias),
            weight: self.parameter(packed[0]),
            epilogue: self.stem_ending([packed[1], packed[2]], last),
            ..Default::default()
        };
        // A last odd row or column that no window covers takes no block.
        let computed = |n: usize| if pool { n / 2 * 2 } else { n };
        let [down, across] = [h, w].map(|n| computed(n).div_ceil(SIDE));
        self.tiles("stem_pair", block, down * across)
    }

    fn stem_ending(&self, [scale, bias]: [u64; 2], last: &Step) -> params::Epilogue {
        params::Epilogue {
            scale: self.parameter(scale),
            bias: self.parameter(bias),
            out: self.sink(last.output),
            ..Default::default()
        }
    }

    /// A kernel whose blocks own a tile of the result each, `per_row` of them.
    fn tiles<P: Pod>(&mut self, name: &str, block: P, per_row: usize) -> Result<()> {
        let grid = Grid::Rows { per_row: per_row as u64, per_block: 1, strips: 1, yz: [1, 1] };
        self.push(Kernel::named(name).instance(), 0, block, grid, None)
    }
}
