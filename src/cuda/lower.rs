//! From steps to launches: every address, grid and argument block, worked out once for a capacity.
//!
//! The arena is laid out for the capacity, so that nothing but the number of rows differs between
//! runs. A launch keeps its argument block; a run writes its rows into the first field and scales
//! the grid.

use super::device::Gpu;
use super::kernels::{Instance, Kernel};
use super::launch::{Grid, Launch};
use super::pack::{Packed, padded};
use super::params;
use super::product::Choice;
use crate::error::Result;
use crate::graph::plan::{Plan, extent};
use crate::graph::{Act, Graph, Op, Shape, Step, TensorId, Window};
use bytemuck::Pod;

/// Positions and instances whose sums are joined in one piece; as in `norm.cu` and `bag.cu`.
const RUN: usize = 512;
/// Instances of a block of the attention score kernel.
const SCORE_ROWS: u64 = 64;

/// Where everything lies on the device.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// Rows there is room for.
    pub capacity: usize,
    /// Packed parameters.
    pub parameters: u64,
    /// Activations of the rows.
    pub rows: u64,
    /// Bag tensors.
    pub bags: u64,
    /// Work space of one step at a time.
    pub scratch: u64,
    /// What the caller gives: u8 pixels or dense f32.
    pub inputs: Vec<u64>,
    /// What the caller gets: dense f32.
    pub outputs: Vec<u64>,
}

impl Memory {
    /// Where inputs and outputs start: at the first of them.
    pub fn start(&self) -> u64 {
        self.inputs.first().or(self.outputs.first()).copied().unwrap_or_default()
    }
}

/// Where a stored tensor lies.
#[derive(Clone, Copy)]
pub(super) struct View {
    pub address: u64,
    pub pitch: usize,
}

/// Turns the steps of one graph into launches.
pub(super) struct Lowering<'a> {
    pub gpu: &'a Gpu,
    pub choice: Choice,
    pub graph: &'a Graph,
    plan: &'a Plan,
    pub memory: &'a Memory,
    /// Whether addresses are not yet real: only sizes are asked for.
    pub measuring: bool,
    pub launches: Vec<Launch>,
    /// Most bytes of work space any step needs.
    pub scratch_bytes: usize,
    used: usize,
}

impl<'a> Lowering<'a> {
    pub fn new(
        gpu: &'a Gpu,
        choice: Choice,
        graph: &'a Graph,
        plan: &'a Plan,
        memory: &'a Memory,
        measuring: bool,
    ) -> Self {
        let (launches, scratch_bytes, used) = (Vec::new(), 0, 0);
        Lowering { gpu, choice, graph, plan, memory, measuring, launches, scratch_bytes, used }
    }

    /// Stores the f32 inputs as FP16.
    pub fn inputs(&mut self) -> Result<()> {
        for (&id, &given) in self.graph.inputs.iter().zip(&self.memory.inputs) {
            let Some(_) = self.plan.place(id) else { continue };
            let shape = self.graph.shape(id);
            let out = self.sink(id);
            let (positions, c) = (shape.pixels(), shape.channels());
            let block = params::Copy {
                positions: int(positions),
                c: int(c),
                pitch: int(c),
                x: given,
                out,
                ..Default::default()
            };
            self.groups("import", block, positions, c, shape.is_bag())?;
        }
        Ok(())
    }

    /// Adds the launches of one step.
    pub fn step(&mut self, step: &Step, packed: Packed) -> Result<()> {
        self.used = 0;
        match (step.op, packed) {
            (Op::Normalize { .. }, Packed::Table { table }) => self.normalize(step, table),
            (Op::Conv2d { weight, window, epilogue }, Packed::Product { .. }) => {
                self.conv2d(step, weight, window, &epilogue, packed)
            }
            (Op::Linear { epilogue, .. }, Packed::Product { .. }) => {
                self.linear(step, &epilogue, packed)
            }
            (Op::BatchNorm { eps, act, .. }, Packed::Norm { gamma, beta }) => {
                self.batch_norm(step, eps, act, [gamma, beta])
            }
            (Op::MaxPool { window }, _) => self.pool(step, "max_pool", Some(window), false),
            (Op::AvgPool { window, count_include_pad }, _) => {
                self.pool(step, "average_pool", Some(window), count_include_pad)
            }
            (Op::AdaptiveAvgPool { .. }, _) => self.pool(step, "adaptive_pool", None, false),
            (Op::Flatten, _) => self.flatten(step),
            (Op::AttentionScore { u, w, .. }, Packed::Score { .. }) => {
                let branches = self.graph.param(w.weight).shape[0];
                self.attention_score(step, u.is_some(), branches, packed)
            }
            (Op::AttentionPool, _) => self.attention_pool(step),
            (Op::RowDot { .. }, Packed::RowDot { weight, bias }) => {
                self.row_dot(step, weight, bias)
            }
            (Op::Copy, _) => self.copy(step),
            (op, packed) => unreachable!("{op:?} packed as {packed:?}"),
        }
    }

    // ---- Where things lie

    pub fn view(&self, id: TensorId) -> View {
        let Some(place) = self.plan.place(id) else {
            unreachable!("a step reads it, so it is stored")
        };
        let base = if place.bag { self.memory.bags } else { self.memory.rows };
        View { address: base + 2 * place.start(self.memory.capacity) as u64, pitch: place.pitch }
    }

    pub fn sink(&self, id: TensorId) -> params::Sink {
        let (root, channels) = extent(self.graph, id);
        let mut sink = params::Sink::default();
        if self.plan.place(id).is_some() {
            let view = self.view(id);
            (sink.half, sink.half_pitch) = (view.address, int(view.pitch));
        }
        for (&output, &base) in self.graph.outputs.iter().zip(&self.memory.outputs) {
            let (of, range) = extent(self.graph, output);
            if of == root && range.start <= channels.start && channels.end <= range.end {
                sink.full = base + 4 * (channels.start - range.start) as u64;
                sink.full_pitch = int(range.len());
            }
        }
        sink
    }

    pub fn parameter(&self, offset: u64) -> u64 {
        self.memory.parameters + offset
    }

    /// Work space for this step.
    fn scratch(&mut self, bytes: usize) -> u64 {
        let start = self.used;
        self.used = (start + bytes).next_multiple_of(256);
        self.scratch_bytes = self.scratch_bytes.max(self.used);
        self.memory.scratch + start as u64
    }

    /// The tensor where 16-byte copies can read it: itself, or a copy when it is a slice that
    /// starts between two chunks.
    pub fn aligned(&mut self, id: TensorId) -> Result<View> {
        let view = self.view(id);
        if view.address.is_multiple_of(16) && view.pitch.is_multiple_of(8) {
            return Ok(view);
        }
        let shape = self.graph.shape(id);
        let (positions, c) = (shape.pixels(), shape.channels());
        let rows = if shape.is_bag() { 1 } else { self.memory.capacity };
        let pitch = padded(c);
        let address = self.scratch(rows * positions * pitch * 2);
        let out = params::Sink { half: address, half_pitch: int(pitch), ..Default::default() };
        self.copy_to(view, out, shape)?;
        Ok(View { address, pitch })
    }

    // ---- Launches

    pub fn push<P: Pod>(
        &mut self,
        instance: Instance,
        branches: usize,
        block: P,
        grid: Grid,
        fixed_rows: Option<usize>,
    ) -> Result<()> {
        debug_assert_eq!(size_of::<P>(), instance.kernel.argument_bytes);
        let function = self.gpu.function(&instance, branches as u32)?;
        let arguments = bytemuck::pod_collect_to_vec(bytemuck::bytes_of(&block));
        let launch = Launch { function, arguments, grid, fixed_rows };
        launch.grid_for(self.memory.capacity)?;
        self.launches.push(launch);
        Ok(())
    }

    /// A kernel whose threads own 8 channels of a position each.
    fn groups<P: Pod>(
        &mut self,
        name: &str,
        block: P,
        positions: usize,
        c: usize,
        bag: bool,
    ) -> Result<()> {
        let instance = Kernel::named(name).instance();
        let per_row = (positions * c.div_ceil(8)) as u64;
        let grid = if bag {
            Grid::Fixed([per_row.div_ceil(256) as u32, 1, 1])
        } else {
            Grid::Rows { per_row, per_block: 256, strips: 1, yz: [1, 1] }
        };
        self.push(instance, 0, block, grid, bag.then_some(1))
    }

    fn copy_to(&mut self, from: View, out: params::Sink, shape: Shape) -> Result<()> {
        let (positions, c) = (shape.pixels(), shape.channels());
        let block = params::Copy {
            positions: int(positions),
            c: int(c),
            pitch: int(from.pitch),
            x: from.address,
            out,
            ..Default::default()
        };
        self.groups("copy", block, positions, c, shape.is_bag())
    }

    fn copy(&mut self, step: &Step) -> Result<()> {
        let from = self.view(step.inputs[0]);
        let out = self.sink(step.output);
        self.copy_to(from, out, self.graph.shape(step.output))
    }

    fn normalize(&mut self, step: &Step, table: u64) -> Result<()> {
        let input = self.graph.inputs.iter().position(|&i| i == step.inputs[0]);
        let Some(input) = input else { unreachable!("pixels are only ever an input") };
        let pixels = self.graph.shape(step.output).pixels();
        let block = params::Normalize {
            pixels: int(pixels),
            owns_pad: (extent(self.graph, step.output).0 == step.output).into(),
            x: self.memory.inputs[input],
            table: self.parameter(table),
            out: self.sink(step.output),
            ..Default::default()
        };
        self.groups("normalize", block, pixels, 3, false)
    }

    fn pool(
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

    fn batch_norm(&mut self, step: &Step, eps: f32, act: Act, offsets: [u64; 2]) -> Result<()> {
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

    fn flatten(&mut self, step: &Step) -> Result<()> {
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

    fn attention_score(
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

    fn attention_pool(&mut self, step: &Step) -> Result<()> {
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

    fn row_dot(&mut self, step: &Step, weight: u64, bias: u64) -> Result<()> {
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

/// A size as the kernels hold it. Sizes of a graph are bounded by its weights and its arena, both of
/// which would not fit a device long before this saturates.
pub(super) fn int(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

pub(super) fn map(shape: Shape) -> [usize; 3] {
    match shape {
        Shape::Map { h, w, c } => [h, w, c],
        _ => unreachable!("inferred as a map"),
    }
}

pub(super) fn window_params(w: Window) -> params::Window {
    let pair = |p: [usize; 2]| p.map(int);
    params::Window {
        kernel: pair(w.kernel),
        stride: pair(w.stride),
        pad: pair(w.pad),
        dilation: pair(w.dilation),
    }
}
