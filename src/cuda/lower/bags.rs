//! Bags: attention pooling, reductions over all rows and the classifier rows behind them.

use super::{Lowering, RUN, int};
use crate::cuda::kernels::Kernel;
use crate::cuda::launch::Grid;
use crate::cuda::pack::{Packed, padded};
use crate::cuda::params;
use crate::error::Result;
use crate::graph::{Reduce, Step};

/// Instances of a block of the attention score kernel.
const SCORE_ROWS: u64 = 64;

impl Lowering<'_> {
    pub(super) fn attention_score(
        &mut self,
        step: &Step,
        gated: bool,
        branches: usize,
        packed: Packed,
    ) -> Result<()> {
        let Packed::Score { weight, bias, w, w_bias, groups } = packed else { unreachable!() };
        let x = self.aligned(step.inputs[0])?;
        let c = self.graph.shape(step.inputs[0]).channels();
        let block = params::Score {
            c: int(c),
            pitch: int(x.pitch),
            c_padded: int(padded(c)),
            groups: int(groups),
            branches: int(branches),
            x: x.address,
            weight: self.parameter(weight),
            bias: self.parameter(bias),
            w: self.parameter(w),
            w_bias: self.parameter(w_bias),
            out: self.sink(step.output),
            ..Default::default()
        };
        let name = if gated { "attention_score gated" } else { "attention_score plain" };
        let grid = Grid::Rows { per_row: 1, per_block: SCORE_ROWS, strips: 1, yz: [1, 1] };
        self.push(Kernel::named(name).instance(), branches, block, grid, None)
    }

    pub(super) fn attention_pool(&mut self, step: &Step) -> Result<()> {
        let (scores, values) = (self.view(step.inputs[0]), self.view(step.inputs[1]));
        let shape = self.graph.shape(step.output);
        let (branches, c) = (shape.pixels(), shape.channels());
        let runs = self.memory.capacity.div_ceil(RUN);
        let block = params::Attention {
            branches: int(branches),
            c: int(c),
            score_pitch: int(scores.pitch),
            value_pitch: int(values.pitch),
            scores: scores.address,
            values: values.address,
            part: self.scratch(runs * branches * (c + 2) * 4),
            out: self.sink(step.output),
            ..Default::default()
        };
        let yz = [branches as u32, c.div_ceil(256) as u32];
        let part = Grid::Rows { per_row: 1, per_block: RUN as u64, strips: 1, yz };
        self.push(Kernel::named("attention_part").instance(), 0, block, part, None)?;
        let join = Grid::Fixed([c.div_ceil(128) as u32, branches as u32, 1]);
        self.push(Kernel::named("attention_join").instance(), 0, block, join, None)
    }

    pub(super) fn bag_reduce(&mut self, step: &Step, reduce: Reduce) -> Result<()> {
        let x = self.view(step.inputs[0]);
        let c = self.graph.shape(step.output).channels();
        let strips = c.div_ceil(32) as u32;
        let block = params::Reduce {
            c: int(c),
            pitch: int(x.pitch),
            largest: (reduce == Reduce::Max).into(),
            x: x.address,
            out: self.sink(step.output),
            ..Default::default()
        };
        if let Reduce::Percentile(fraction) = reduce {
            let block = params::Reduce { fraction: fraction.into(), ..block };
            let grid = Grid::Fixed([strips, 1, 1]);
            return self.push(Kernel::named("percentile").instance(), 0, block, grid, None);
        }
        let runs = self.memory.capacity.div_ceil(RUN);
        let block = params::Reduce { part: self.scratch(runs * c * 8), ..block };
        let part = Grid::Rows { per_row: 1, per_block: RUN as u64, strips: 1, yz: [strips, 1] };
        self.push(Kernel::named("reduce_part").instance(), 0, block, part, None)?;
        let join = Grid::Fixed([c.div_ceil(256) as u32, 1, 1]);
        self.push(Kernel::named("reduce_join").instance(), 0, block, join, None)
    }

    pub(super) fn row_dot(&mut self, step: &Step, weight: u64, bias: u64) -> Result<()> {
        let x = self.view(step.inputs[0]);
        let shape = self.graph.shape(step.inputs[0]);
        let block = params::RowDot {
            c: int(shape.channels()),
            pitch: int(x.pitch),
            x: x.address,
            weight: self.parameter(weight),
            bias: self.parameter(bias),
            out: self.sink(step.output),
            ..Default::default()
        };
        let rows = shape.pixels();
        let grid = Grid::Fixed([rows as u32, 1, 1]);
        self.push(Kernel::named("row_dot").instance(), 0, block, grid, Some(rows))
    }
}
