//! Maps: from pixels, pooling, norms, sampling and layout.

use super::{Lowering, RUN, int, map, window_params};
use crate::cuda::kernels::{Instance, Kernel};
use crate::cuda::launch::Grid;
use crate::cuda::params;
use crate::error::Result;
use crate::graph::plan::extent;
use crate::graph::{Act, Step, TensorId, Window};

impl Lowering<'_> {
    pub(super) fn normalize(&mut self, step: &Step, table: u64) -> Result<()> {
        let pixels = self.graph.shape(step.output).pixels();
        let block = params::Normalize {
            pixels: int(pixels),
            owns_pad: (extent(self.graph, step.output).0 == step.output).into(),
            x: self.pixels(step.inputs[0]),
            table: self.parameter(table),
            out: self.sink(step.output),
            ..Default::default()
        };
        self.groups("normalize", block, pixels, 3, false)
    }

    pub(super) fn patches(&mut self, step: &Step, side: usize, table: u64) -> Result<()> {
        let [h, w, c] = map(self.graph.shape(step.output));
        let block = params::Patches {
            output: [int(h), int(w)],
            side: int(side),
            x: self.pixels(step.inputs[0]),
            table: self.parameter(table),
            out: self.sink(step.output),
            ..Default::default()
        };
        self.groups("patches", block, h * w, c, false)
    }

    /// Where pixels lie: they stay as they were given.
    fn pixels(&self, id: TensorId) -> u64 {
        let input = self.graph.inputs.iter().position(|&i| i == id);
        let Some(input) = input else { unreachable!("pixels are only ever an input") };
        self.memory.inputs[input]
    }

    pub(super) fn pool(
        &mut self,
        step: &Step,
        name: &str,
        window: Option<Window>,
        count_pad: bool,
    ) -> Result<()> {
        let x = self.view(step.inputs[0]);
        let from = map(self.graph.shape(step.inputs[0]));
        let to = map(self.graph.shape(step.output));
        let block = params::Pool {
            input: from.map(int),
            output: [int(to[0]), int(to[1])],
            window: window.map(window_params).unwrap_or_default(),
            count_pad: count_pad.into(),
            pitch: int(x.pitch),
            x: x.address,
            out: self.sink(step.output),
            ..Default::default()
        };
        self.groups(name, block, to[0] * to[1], to[2], false)
    }

    pub(super) fn batch_norm(
        &mut self,
        step: &Step,
        eps: f32,
        act: Act,
        offsets: [u64; 2],
    ) -> Result<()> {
        let x = self.view(step.inputs[0]);
        let shape = self.graph.shape(step.output);
        let (positions, c) = (shape.pixels(), shape.channels());
        let runs = (self.memory.capacity * positions).div_ceil(RUN);
        let block = params::BatchNorm {
            positions: int(positions),
            c: int(c),
            pitch: int(x.pitch),
            eps,
            x: x.address,
            gamma: self.parameter(offsets[0]),
            beta: self.parameter(offsets[1]),
            partial: self.scratch(runs * 2 * c * 4),
            moments: self.scratch(2 * c * 4),
            out: self.sink(step.output),
            ..Default::default()
        };
        let with = |name| Instance { act, ..Kernel::named(name).instance() };
        let moments = Grid::Rows {
            per_row: positions as u64,
            per_block: RUN as u64,
            strips: 1,
            yz: [c.div_ceil(32) as u32, 1],
        };
        self.push(with("batch_moments"), 0, block, moments, None)?;
        let join = Grid::Fixed([c.div_ceil(256) as u32, 1, 1]);
        self.push(with("batch_join"), 0, block, join, None)?;
        let per_row = (positions * c.div_ceil(8)) as u64;
        let apply = Grid::Rows { per_row, per_block: 256, strips: 1, yz: [1, 1] };
        self.push(with("batch_apply"), 0, block, apply, None)
    }

    pub(super) fn affine(&mut self, step: &Step, act: Act, offsets: [u64; 2]) -> Result<()> {
        let x = self.view(step.inputs[0]);
        let shape = self.graph.shape(step.output);
        let block = params::Affine {
            positions: int(shape.pixels()),
            c: int(shape.channels()),
            pitch: int(x.pitch),
            x: x.address,
            scale: self.parameter(offsets[0]),
            bias: self.parameter(offsets[1]),
            out: self.sink(step.output),
            ..Default::default()
        };
        let instance = Instance { act, ..Kernel::named("affine_map").instance() };
        self.groups_of(instance, block, shape.pixels(), shape.channels(), false)
    }

    pub(super) fn upsample(&mut self, step: &Step, offsets: [u64; 2]) -> Result<()> {
        let x = self.view(step.inputs[0]);
        let to = map(self.graph.shape(step.output));
        let block = params::Upsample {
            input: map(self.graph.shape(step.inputs[0])).map(int),
            output: [int(to[0]), int(to[1])],
            pitch: int(x.pitch),
            x: x.address,
            row_taps: self.parameter(offsets[0]),
            column_taps: self.parameter(offsets[1]),
            out: self.sink(step.output),
            ..Default::default()
        };
        self.groups("upsample", block, to[0] * to[1], to[2], false)
    }

    pub(super) fn flatten(&mut self, step: &Step) -> Result<()> {
        let x = self.view(step.inputs[0]);
        let from = self.graph.shape(step.inputs[0]);
        let (positions, c) = (from.pixels(), from.channels());
        let block = params::Copy {
            positions: int(positions),
            c: int(c),
            pitch: int(x.pitch),
            x: x.address,
            out: self.sink(step.output),
            ..Default::default()
        };
        let yz = [c.div_ceil(32) as u32, 1];
        let grid =
            Grid::Rows { per_row: positions.div_ceil(32) as u64, per_block: 1, strips: 1, yz };
        self.push(Kernel::named("flatten").instance(), 0, block, grid, None)
    }
}
