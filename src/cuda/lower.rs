//! From steps to launches: every address, grid and argument block, worked out once for a capacity.
//!
//! The arena is laid out for the capacity, so that nothing but the number of rows differs between
//! runs. A launch keeps its argument block; a run writes its rows into the first field and scales
//! the grid.

mod bags;
mod maps;
mod stems;
mod tokens;

use super::device::Gpu;
use super::fuse::{Group, Joint};
use super::kernels::{Instance, Kernel};
use super::launch::{Grid, Launch};
use super::pack::{Packed, padded};
use super::params;
use super::product::Choice;
use super::tune::ProductShape;
use crate::error::Result;
use crate::graph::plan::{Plan, extent};
use crate::graph::{Graph, Op, Shape, Step, TensorId, Window};
use bytemuck::Pod;

/// Positions and instances whose sums are joined in one piece; as in `norm.cu` and `bag.cu`.
const RUN: usize = 512;

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

/// Where a stored tensor lies.
#[derive(Clone, Copy)]
pub(super) struct View {
    pub address: u64,
    pub pitch: usize,
}

/// Turns the steps of one graph into launches.
pub(super) struct Lowering<'a> {
    pub gpu: &'a Gpu,
    pub choice: &'a Choice,
    pub graph: &'a Graph,
    plan: &'a Plan,
    pub memory: &'a Memory,
    pub launches: Vec<Launch>,
    /// The products so far whose tile was chosen by shape.
    pub products: Vec<ProductShape>,
    /// Most bytes of work space any step needs.
    pub scratch_bytes: usize,
    used: usize,
}

impl<'a> Lowering<'a> {
    pub fn new(
        gpu: &'a Gpu,
        choice: &'a Choice,
        graph: &'a Graph,
        plan: &'a Plan,
        memory: &'a Memory,
    ) -> Self {
        Lowering {
            gpu,
            choice,
            graph,
            plan,
            memory,
            launches: Vec::new(),
            products: Vec::new(),
            scratch_bytes: 0,
            used: 0,
        }
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

    /// Adds the launches of the steps of one group.
    pub fn group(&mut self, group: &Group, packed: Packed) -> Result<()> {
        self.used = 0;
        let step = |i: usize| &self.graph.steps[i];
        let (first, last) = (step(group.first), step(group.last));
        match group.joint {
            Joint::Alone => self.step(first, packed),
            Joint::Pool => self.conv_and_pool(first, last, packed),
            Joint::Stem => self.stem(first, last, packed),
            Joint::Pair { second } => self.stem_pair(first, step(second), last, packed),
        }
    }

    /// Adds the launches of one step.
    fn step(&mut self, step: &Step, packed: Packed) -> Result<()> {
        match (step.op, packed) {
            (Op::Normalize { .. }, Packed::Table { table }) => self.normalize(step, table),
            (Op::Patches { side, .. }, Packed::Table { table }) => self.patches(step, side, table),
            (Op::Conv2d { weight, window, epilogue }, Packed::Product { .. }) => {
                self.conv2d(step, weight, window, &epilogue, None, packed)
            }
            (Op::PreactConv1x1 { epilogue, .. }, Packed::Preact { .. }) => {
                self.preact(step, &epilogue, packed)
            }
            (Op::ConvTranspose2x2 { epilogue, .. }, Packed::Product { .. }) => {
                self.conv_transpose(step, &epilogue, packed)
            }
            (Op::Linear { epilogue, .. }, Packed::Product { .. }) => {
                self.linear(step, &epilogue, packed)
            }
            (Op::GatedLinear { act, .. }, Packed::Product { .. }) => {
                self.gated_linear(step, act, packed)
            }
            (Op::Affine { act, .. }, Packed::Norm { gamma, beta }) => {
                self.affine(step, act, [gamma, beta])
            }
            (Op::BatchNorm { eps, act, .. }, Packed::Norm { gamma, beta }) => {
                self.batch_norm(step, eps, act, [gamma, beta])
            }
            (Op::MaxPool { window, .. }, _) => self.pool(step, "max_pool", Some(window), false),
            (Op::AvgPool { window, count_include_pad }, _) => {
                self.pool(step, "average_pool", Some(window), count_include_pad)
            }
            (Op::AdaptiveAvgPool { .. }, _) => self.pool(step, "adaptive_pool", None, false),
            (Op::Upsample { .. }, Packed::Taps { rows, columns }) => {
                self.upsample(step, [rows, columns])
            }
            (Op::Embed { .. }, Packed::Embed { .. }) => self.embed(step, packed),
            (Op::LayerNorm { eps, groups, .. }, Packed::Norm { gamma, beta }) => {
                self.token_norm(step, "layer_norm", (eps, groups), [gamma, beta])
            }
            (Op::RmsNorm { eps, groups, .. }, Packed::Norm { gamma, beta }) => {
                self.token_norm(step, "rms_norm", (eps, groups), [gamma, beta])
            }
            (Op::Attention { heads, .. }, _) => self.attention(step, heads, packed),
            (Op::TokenMean { start, count }, _) => self.token_mean(step, start, count),
            (Op::Softmax, _) => self.softmax(step),
            (Op::Flatten, _) => self.flatten(step),
            (Op::AttentionScore { u, w, .. }, Packed::Score { .. }) => {
                let branches = self.graph.param(w.weight).shape[0];
                self.attention_score(step, u.is_some(), branches, packed)
            }
            (Op::AttentionPool, _) => self.attention_pool(step),
            (Op::BagReduce { reduce }, _) => self.bag_reduce(step, reduce),
            (Op::RowDot { .. }, Packed::RowDot { weight, bias }) => {
                self.row_dot(step, weight, bias)
            }
            (Op::Copy, _) => self.copy(step),
            (op, packed) => unreachable!("{op:?} packed as {packed:?}"),
        }
    }

    /// Adds the launch of a convolution of which `pool` stores the largest of each 2 x 2 square.
    fn conv_and_pool(&mut self, conv: &Step, pool: &Step, packed: Packed) -> Result<()> {
        let Op::Conv2d { weight, window, epilogue } = conv.op else {
            unreachable!("grouped as a convolution and a pool")
        };
        self.conv2d(conv, weight, window, &epilogue, Some(pool.output), packed)
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

    /// `count` is what [`Kernel::shared_bytes`] asks for.
    pub fn push<P: Pod>(
        &mut self,
        instance: Instance,
        count: usize,
        block: P,
        grid: Grid,
        fixed_rows: Option<usize>,
    ) -> Result<()> {
        debug_assert_eq!(size_of::<P>(), instance.kernel.argument_bytes);
        let function = self.gpu.function(&instance, count as u32)?;
        let arguments = bytemuck::pod_collect_to_vec(bytemuck::bytes_of(&block));
        let launch = Launch { function, arguments, grid, fixed_rows, maps: Vec::new() };
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
        self.groups_of(Kernel::named(name).instance(), block, positions, c, bag)
    }

    fn groups_of<P: Pod>(
        &mut self,
        instance: Instance,
        block: P,
        positions: usize,
        c: usize,
        bag: bool,
    ) -> Result<()> {
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
