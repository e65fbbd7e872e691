//! Linear layers and convolutions: which kernel, which tile, which argument block.

use super::device::Matrix;
use super::kernels::{Instance, Kernel, Tile, choose_tile, tiled};
use super::launch::{Grid, MAX_INDEX};
use super::lower::{Lowering, int, map, window_params};
use super::pack::{Packed, padded};
use super::params;
use crate::error::{Error, Result};
use crate::graph::{Epilogue, ParamId, Step, Window};
use bytemuck::Pod;

/// What decides which kernel multiplies.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Choice {
    /// The tile of every product, when it is not chosen by shape.
    pub tile: Option<Tile>,
    /// Whether products run on the warpgroup kernels of sm_90a.
    pub warpgroups: bool,
}

/// The shape of a product and how it ends.
#[derive(Clone, Copy)]
struct Product<'e> {
    epilogue: &'e Epilogue,
    /// Of one row.
    positions: usize,
    filters: usize,
    bag: bool,
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
        let shape = Product { epilogue, positions, filters: k, bag: from.is_bag() };
        let kernel = self.kernel_for(["gemm", "gemm_sm90"], &shape)?;
        let (weight, ending) = (self.parameter(weight), self.ending(step, epilogue, packed));
        if kernel.warpgroups {
            let rows = if shape.bag { positions } else { self.memory.capacity * positions };
            let left = Matrix { address: x.address, rows, columns: c, pitch: x.pitch };
            let block = params::WideGemm {
                positions: int(positions),
                k: int(k),
                columns: int(padded(c)),
                x: self.map_of(left, kernel, false)?,
                weight: self.map_of(filters(weight, k, padded(c)), kernel, true)?,
                epilogue: ending,
                ..Default::default()
            };
            return self.product(kernel, &shape, block);
        }
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
        let shape = Product { epilogue, positions: to[0] * to[1], filters: to[2], bag: false };
        let kernel = self.kernel_for(["conv2d", "conv2d_sm90"], &shape)?;
        let (weight, ending) = (self.parameter(weight), self.ending(step, epilogue, packed));
        let (input, output) = (from.map(int), to.map(int));
        let (window, pitch) = (window_params(window), int(x.pitch));
        if kernel.warpgroups {
            let block = params::WideConv2d {
                input,
                output,
                window,
                pitch,
                weight: self.map_of(filters(weight, to[2], taps * c_padded), kernel, true)?,
                x: x.address,
                c_padded: int(c_padded),
                epilogue: ending,
                ..Default::default()
            };
            return self.product(kernel, &shape, block);
        }
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

    fn ending(&self, step: &Step, epilogue: &Epilogue, packed: Packed) -> params::Epilogue {
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

    /// The tensor map of an operand: boxes of as many rows as the tile has positions or filters.
    fn map_of(&self, matrix: Matrix, kernel: &Kernel, right: bool) -> Result<params::TensorMap> {
        if self.measuring {
            return Ok([0; 16]);
        }
        let Some(tile) = kernel.tile else { unreachable!("a product has a tile") };
        self.gpu.tensor_map(matrix, if right { tile.n } else { tile.m })
    }

    fn kernel_for(&self, [portable, wide]: [&str; 2], shape: &Product) -> Result<&'static Kernel> {
        let entry = if self.choice.warpgroups { wide } else { portable };
        if let Some(tile) = self.choice.tile {
            return tiled(entry, tile);
        }
        let rows = if shape.bag { 1 } else { self.memory.capacity };
        let (positions, filters) = ((rows * shape.positions) as u64, shape.filters as u64);
        Ok(choose_tile(entry, self.gpu.arch, positions, filters, self.gpu.multiprocessors))
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
        let blocks = if kernel.warpgroups { u64::from(self.gpu.multiprocessors) } else { u64::MAX };
        let grid = if shape.bag {
            Grid::Fixed([(per_row.div_ceil(per_block) * strips).min(blocks) as u32, 1, 1])
        } else if kernel.warpgroups {
            Grid::Persistent { per_row, per_block, strips, blocks }
        } else {
            Grid::Rows { per_row, per_block, strips, yz: [1, 1] }
        };
        let Epilogue { act, residual, .. } = *shape.epilogue;
        let instance = Instance { kernel, act, residual: residual.is_some() };
        self.push(instance, 0, block, grid, shape.bag.then_some(1))
    }
}

/// Packed weights: `[K, columns]`.
fn filters(address: u64, k: usize, columns: usize) -> Matrix {
    Matrix { address, rows: k, columns, pitch: columns }
}
