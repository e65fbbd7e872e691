//! Linear layers and convolutions: which kernel, which tile, which argument block.

use super::kernels::{Instance, Kernel, Tile, tiled};
use super::launch::{Grid, MAX_INDEX};
use super::lower::{Lowering, int, map, window_params};
use super::pack::{Packed, padded};
use super::params;
use super::tune::{self, Picks, ProductShape};
use crate::error::{Error, Result};
use crate::graph::{Act, Epilogue, ParamId, Step, TensorId, Window};
use bytemuck::Pod;

/// What decides which kernel multiplies.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    /// The tile of every product, when it is not chosen by shape.
    pub tile: Option<Tile>,
    /// Whether products run on the warpgroup kernels of sm_90a.
    pub warpgroups: bool,
    /// Blocks of a cluster of these kernels, when it is not chosen by shape.
    pub cluster: Option<u32>,
    /// What timing chose, ahead of the ranking.
    pub picks: Picks,
}

/// The shape of a product and how it ends.
#[derive(Clone, Copy)]
pub(super) struct Product<'e> {
    pub epilogue: &'e Epilogue,
    /// Of one row.
    pub positions: usize,
    pub filters: usize,
    /// Products in a sum, padding included.
    pub depth: usize,
    pub window: Option<Window>,
    pub bag: bool,
    /// Whether only the largest of each 2 x 2 square is stored.
    pub pool: bool,
}

impl<'e> Product<'e> {
    /// Of rows, without a window.
    fn plain(epilogue: &'e Epilogue, positions: usize, filters: usize, depth: usize) -> Self {
        Product { epilogue, positions, filters, depth, window: None, bag: false, pool: false }
    }
}

impl Lowering<'_> {
    pub(super) fn linear(
        &mut self,
        step: &Step,
        epilogue: &Epilogue,
        packed: Packed,
    ) -> Result<()> {
        let Packed::Product { weight, .. } = packed else { unreachable!("packed for a product") };
        let x = self.aligned(step.inputs[0])?;
        let (from, to) = (self.graph.shape(step.inputs[0]), self.graph.shape(step.output));
        let (positions, c, k) = (from.pixels(), from.channels(), to.channels());
        let (depth, bag) = (padded(c), from.is_bag());
        let shape =
            Product { epilogue, positions, filters: k, depth, window: None, bag, pool: false };
        if self.choice.warpgroups {
            return self.wide_linear(step, x, c, &shape, packed);
        }
        let kernel = self.kernel_for("gemm", &shape)?;
        let (weight, ending) = (self.parameter(weight), self.ending(step, epilogue, packed));
        let block = params::Gemm {
            positions: int(positions),
            c: int(c),
            k: int(k),
            pitch: int(x.pitch),
            weight_pitch: int(padded(c)),
            x: x.address,
            weight,
            epilogue: ending,
            ..Default::default()
        };
        self.product(kernel, &shape, block)
    }

    pub(super) fn conv2d(
        &mut self,
        step: &Step,
        weight_id: ParamId,
        window: Window,
        epilogue: &Epilogue,
        pooled: Option<TensorId>,
        packed: Packed,
    ) -> Result<()> {
        let Packed::Product { weight, .. } = packed else { unreachable!("packed for a product") };
        let x = self.aligned(step.inputs[0])?;
        let from = map(self.graph.shape(step.inputs[0]));
        let to = map(self.graph.shape(step.output));
        let taps = self.graph.param(weight_id).shape[1..3].iter().product::<usize>();
        let (rows, c_padded) = (self.memory.capacity, padded(from[2]));
        if [taps * c_padded, rows * from[0] * from[1]].iter().any(|&n| n as u64 > MAX_INDEX) {
            let what = format!("conv2d: {rows} rows are more than one launch indexes");
            return Err(Error::limit(what));
        }
        let positions = if pooled.is_some() { to[0] / 2 * (to[1] / 2) * 4 } else { to[0] * to[1] };
        let shape = Product {
            epilogue,
            positions,
            filters: to[2],
            depth: taps * c_padded,
            window: Some(window),
            bag: false,
            pool: pooled.is_some(),
        };
        if self.choice.warpgroups {
            return self.wide_conv2d(step, x, window, taps, &shape, packed);
        }
        let kernel = self.kernel_for("conv2d", &shape)?;
        let (weight, mut ending) = (self.parameter(weight), self.ending(step, epilogue, packed));
        if let Some(pooled) = pooled {
            ending.out = self.sink(pooled);
        }
        let (input, output) = (from.map(int), to.map(int));
        let (window, pitch) = (window_params(window), int(x.pitch));
        let block = params::Conv2d {
            input,
            output,
            window,
            pitch,
            c_padded: int(c_padded),
            x: x.address,
            weight,
            epilogue: ending,
            ..Default::default()
        };
        self.product(kernel, &shape, block)
    }

    pub(super) fn gated_linear(&mut self, step: &Step, act: Act, packed: Packed) -> Result<()> {
        let Packed::Product { weight, .. } = packed else { unreachable!("packed for a product") };
        let x = self.aligned(step.inputs[0])?;
        let (from, to) = (self.graph.shape(step.inputs[0]), self.graph.shape(step.output));
        let (positions, c, k) = (from.pixels(), from.channels(), 2 * to.channels());
        let epilogue = Epilogue { act, ..Default::default() };
        let block = params::Gemm {
            positions: int(positions),
            c: int(c),
            k: int(k),
            pitch: int(x.pitch),
            weight_pitch: int(padded(c)),
            x: x.address,
            weight: self.parameter(weight),
            epilogue: self.ending(step, &epilogue, packed),
            ..Default::default()
        };
        self.portable("gated_linear", &Product::plain(&epilogue, positions, k, padded(c)), block)
    }

    pub(super) fn preact(
        &mut self,
        step: &Step,
        epilogue: &Epilogue,
        packed: Packed,
    ) -> Result<()> {
        let Packed::Preact { weight, scale, bias, x_scale, x_bias } = packed else {
            unreachable!("packed for a pre-activated product")
        };
        let x = self.aligned(step.inputs[0])?;
        let (from, to) = (self.graph.shape(step.inputs[0]), self.graph.shape(step.output));
        let (positions, c, k) = (from.pixels(), from.channels(), to.channels());
        let block = params::Preact {
            positions: int(positions),
            c: int(c),
            k: int(k),
            pitch: int(x.pitch),
            weight_pitch: int(padded(c)),
            x: x.address,
            weight: self.parameter(weight),
            x_scale: self.parameter(x_scale),
            x_bias: self.parameter(x_bias),
            epilogue: self.ending(step, epilogue, Packed::Product { weight, scale, bias }),
            ..Default::default()
        };
        self.portable("preact_conv1x1", &Product::plain(epilogue, positions, k, padded(c)), block)
    }

    pub(super) fn conv_transpose(
        &mut self,
        step: &Step,
        epilogue: &Epilogue,
        packed: Packed,
    ) -> Result<()> {
        let Packed::Product { weight, .. } = packed else { unreachable!("packed for a product") };
        let x = self.aligned(step.inputs[0])?;
        let from = map(self.graph.shape(step.inputs[0]));
        let k = self.graph.shape(step.output).channels();
        let block = params::Transposed {
            input: from.map(int),
            k: int(k),
            k_padded: int(padded(k)),
            pitch: int(x.pitch),
            weight_pitch: int(padded(from[2])),
            x: x.address,
            weight: self.parameter(weight),
            epilogue: self.ending(step, epilogue, packed),
            ..Default::default()
        };
        let positions = from[0] * from[1];
        self.portable(
            "conv_transpose",
            &Product::plain(epilogue, positions, 4 * padded(k), padded(from[2])),
            block,
        )
    }

    /// A product that there is no warpgroup kernel for.
    fn portable<P: Pod>(&mut self, entry: &'static str, shape: &Product, block: P) -> Result<()> {
        let kernel = match self.choice.tile.filter(|_| !self.choice.warpgroups) {
            Some(tile) => tiled(entry, tile)?,
            None => self.best_kernel(entry, shape)?,
        };
        self.product(kernel, shape, block)
    }

    pub(super) fn ending(
        &self,
        step: &Step,
        epilogue: &Epilogue,
        packed: Packed,
    ) -> params::Epilogue {
        let Packed::Product { scale, bias, .. } = packed else {
            unreachable!("packed for a product")
        };
        let residual = epilogue.residual.map(|id| self.view(id));
        params::Epilogue {
            scale: self.parameter(scale),
            bias: self.parameter(bias),
            residual: residual.map_or(0, |r| r.address),
            residual_pitch: residual.map_or(0, |r| r.pitch as u64),
            out: self.sink(step.output),
        }
    }

    /// The forced tile, else the best.
    fn kernel_for(&mut self, entry: &'static str, shape: &Product) -> Result<&'static Kernel> {
        match self.choice.tile {
            Some(tile) => tiled(entry, tile),
            None => self.best_kernel(entry, shape),
        }
    }

    /// The kernel that timing chose, or the first of the ranking.
    pub(super) fn best_kernel(
        &mut self,
        entry: &'static str,
        shape: &Product,
    ) -> Result<&'static Kernel> {
        let rows = if shape.bag { 1 } else { self.memory.capacity };
        let Epilogue { act, residual, .. } = *shape.epilogue;
        let shape = ProductShape {
            entry,
            positions: (rows * shape.positions) as u64,
            filters: shape.filters as u64,
            depth: shape.depth as u64,
            window: shape.window,
            act,
            residual: residual.is_some(),
            pool: shape.pool,
        };
        self.products.push(shape);
        let picked = self.choice.picks.get(&shape.to_string()).copied();
        let best = || tune::rank(&shape, self.gpu.machine()).first().copied();
        picked.or_else(best).ok_or_else(|| Error::unsupported(format!("no kernel for {shape}")))
    }

    fn product<P: Pod>(
        &mut self,
        kernel: &'static Kernel,
        shape: &Product,
        block: P,
    ) -> Result<()> {
        let Some(tile) = kernel.tile else { unreachable!("a product has a tile") };
        let (per_row, per_block) = (shape.positions as u64, u64::from(tile.m));
        let strips = (shape.filters as u64).div_ceil(u64::from(tile.n));
        let grid = if shape.bag {
            Grid::Fixed([(per_row.div_ceil(per_block) * strips) as u32, 1, 1])
        } else {
            Grid::Rows { per_row, per_block, strips, yz: [1, 1] }
        };
        let Epilogue { act, residual, .. } = *shape.epilogue;
        let instance = Instance { kernel, act, residual: residual.is_some(), pool: shape.pool };
        self.push(instance, 0, block, grid, shape.bag.then_some(1))
    }
}
