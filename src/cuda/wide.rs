//! Products on the warpgroup kernels of sm_90a: which of them, its tensor maps, its clusters.

use super::kernels::{Instance, Kernel, tiled};
use super::launch::{Grid, Map};
use super::lower::{Lowering, View, int, map, window_params};
use super::maps::{Tensor, is_expressible};
use super::pack::{Packed, padded};
use super::params::{WideConv2d, WideGather, WideGemm, WideProduct};
use super::product::Product;
use crate::error::Result;
use crate::graph::{Epilogue, Step, Window};
use bytemuck::Pod;
use std::mem::offset_of;

/// Columns of a slice; as in `sm90/ring.cuh`.
const SLICE: usize = 64;
/// Bits of [`WideProduct::by_map`]; as in `sm90/ring.cuh`.
const RESIDUAL_BY_MAP: i32 = 1;
const RESULT_BY_MAP: i32 = 2;

/// How the left operand of a product reaches shared memory.
enum Left {
    /// Boxes of a matrix.
    Matrix { columns: usize },
    /// Boxes in im2col mode.
    Image { size: [usize; 3], window: Window, taps: usize },
    /// Threads gather it, for want of a map that describes it or because a map would bring mostly
    /// zeros.
    Gathered { size: [usize; 3], window: Window, taps: usize },
}

impl Left {
    /// For a convolution. The choice follows from the layer alone, so that every batch gives the same
    /// bits.
    fn of_window(size: [usize; 3], window: Window, taps: usize) -> Left {
        let c = size[2];
        if taps == 1 && window.stride == [1, 1] && window.pad == [0, 0] {
            return Left::Matrix { columns: c };
        }
        // A map fills each tap up to whole slices; a gathered slice holds columns of several.
        let (mapped, gathered) =
            (taps * padded(c).div_ceil(SLICE), (taps * padded(c)).div_ceil(SLICE));
        if is_expressible(&window) && 2 * mapped <= 3 * gathered {
            Left::Image { size, window, taps }
        } else {
            Left::Gathered { size, window, taps }
        }
    }

    fn entry(&self) -> &'static str {
        match self {
            Left::Matrix { .. } => "gemm_sm90",
            Left::Image { .. } => "conv2d_sm90",
            Left::Gathered { .. } => "gather_sm90",
        }
    }

    /// Taps and columns of a tap, as the packed weights hold them.
    fn depth(&self) -> (usize, usize) {
        match *self {
            Left::Matrix { columns } => (1, padded(columns)),
            Left::Image { size, taps, .. } => (taps, padded(size[2])),
            Left::Gathered { size, taps, .. } => (1, taps * padded(size[2])),
        }
    }
}

impl Lowering<'_> {
    /// A linear layer over `x`, whose positions have `columns` channels.
    pub(super) fn wide_linear(
        &mut self,
        step: &Step,
        x: View,
        columns: usize,
        shape: &Product,
        packed: Packed,
    ) -> Result<()> {
        self.wide(step, x, &Left::Matrix { columns }, shape, packed)
    }

    /// A convolution of `x`.
    pub(super) fn wide_conv2d(
        &mut self,
        step: &Step,
        x: View,
        window: Window,
        taps: usize,
        shape: &Product,
        packed: Packed,
    ) -> Result<()> {
        let size = map(self.graph.shape(step.inputs[0]));
        self.wide(step, x, &Left::of_window(size, window, taps), shape, packed)
    }

    fn wide(
        &mut self,
        step: &Step,
        x: View,
        left: &Left,
        shape: &Product,
        packed: Packed,
    ) -> Result<()> {
        let Packed::Product { weight, .. } = packed else { unreachable!("packed for a product") };
        let kernel = self.wide_kernel(left.entry(), shape)?;
        let Some(tile) = kernel.tile else { unreachable!("a product has a tile") };
        let cluster = self.cluster(u64::from(tile.m), u64::from(tile.n), shape);
        let (taps, columns) = left.depth();
        let (address, filters) = (self.parameter(weight), tile.n / cluster);
        let k = shape.filters;
        let weight = Tensor::Filters { address, k, taps, columns, filters };
        let mut maps = vec![Map { byte: offset_of!(WideProduct, weight), tensor: weight }];
        let product = self.wide_product(step, left, shape, packed, &mut maps);
        let View { address, pitch } = x;
        match *left {
            Left::Matrix { columns } => {
                let x = Tensor::Matrix { address, positions: shape.positions, columns, pitch };
                maps.push(Map { byte: offset_of!(WideGemm, x), tensor: x });
                self.push_wide(kernel, shape, cluster, WideGemm { product, x: [0; 16] }, maps)
            }
            Left::Image { size, window, .. } => {
                let x = Tensor::Image { address, size, pitch, window };
                maps.push(Map { byte: offset_of!(WideConv2d, x), tensor: x });
                let [p, q, _] = map(self.graph.shape(step.output)).map(int);
                let window = window_params(window);
                let block = WideConv2d { product, output: [p, q], window, ..Default::default() };
                self.push_wide(kernel, shape, cluster, block, maps)
            }
            Left::Gathered { size, window, .. } => {
                let [p, q, _] = map(self.graph.shape(step.output)).map(int);
                let block = WideGather {
                    product,
                    x: address,
                    input: size.map(int),
                    output: [p, q],
                    pitch: int(pitch),
                    c_padded: int(padded(size[2])),
                    window: window_params(window),
                    ..Default::default()
                };
                self.push_wide(kernel, shape, cluster, block, maps)
            }
        }
    }

    /// The part of the argument block that all of these kernels share. Residual and result go through
    /// maps where they start at whole chunks.
    fn wide_product(
        &self,
        step: &Step,
        left: &Left,
        shape: &Product,
        packed: Packed,
        maps: &mut Vec<Map>,
    ) -> WideProduct {
        let (taps, columns) = left.depth();
        let epilogue = self.ending(step, shape.epilogue, packed);
        let mut block = WideProduct {
            positions: int(shape.positions),
            k: int(shape.filters),
            taps: int(taps),
            columns: int(columns),
            epilogue,
            ..Default::default()
        };
        let out = epilogue.out;
        for (address, pitch, byte, bit) in [
            (
                epilogue.residual,
                epilogue.residual_pitch as usize,
                offset_of!(WideProduct, residual),
                RESIDUAL_BY_MAP,
            ),
            (out.half, out.half_pitch as usize, offset_of!(WideProduct, result), RESULT_BY_MAP),
        ] {
            // An address counts from 0 while sizes are measured; what is absent has no pitch.
            if pitch > 0 && address.is_multiple_of(16) && pitch.is_multiple_of(8) {
                let (positions, columns) = (shape.positions, shape.filters);
                let tensor = Tensor::Matrix { address, positions, columns, pitch };
                maps.push(Map { byte, tensor });
                block.by_map |= bit;
            }
        }
        block
    }

    /// The forced tile where the kernel comes in it, else as other products.
    fn wide_kernel(&mut self, entry: &'static str, shape: &Product) -> Result<&'static Kernel> {
        match self.choice.tile.and_then(|tile| tiled(entry, tile).ok()) {
            Some(forced) => Ok(forced),
            None => self.best_kernel(entry, shape),
        }
    }

    /// Blocks of a cluster. Two share the traffic of the filters, but start and end together: that
    /// pays from two waves on, where the multiprocessors divide.
    fn cluster(&self, m: u64, n: u64, shape: &Product) -> u32 {
        let blocks = u64::from(self.gpu.multiprocessors);
        let rows = if shape.bag { 1 } else { self.memory.capacity };
        let positions = (rows * shape.positions) as u64;
        let tiles = positions.div_ceil(m) * (shape.filters as u64).div_ceil(n);
        let pays = blocks.is_multiple_of(2) && tiles >= 2 * blocks;
        self.choice.cluster.unwrap_or(if pays { 2 } else { 1 })
    }

    fn push_wide<P: Pod>(
        &mut self,
        kernel: &'static Kernel,
        shape: &Product,
        cluster: u32,
        block: P,
        maps: Vec<Map>,
    ) -> Result<()> {
        let Some(tile) = kernel.tile else { unreachable!("a product has a tile") };
        let grid = Grid::Persistent {
            per_row: shape.positions as u64,
            per_block: u64::from(tile.m),
            strips: (shape.filters as u64).div_ceil(u64::from(tile.n)),
            blocks: u64::from(self.gpu.multiprocessors),
            cluster,
        };
        let Epilogue { act, residual, .. } = *shape.epilogue;
        let instance = Instance { kernel, act, residual: residual.is_some(), pool: false };
        self.push(instance, 0, block, grid, shape.bag.then_some(1))?;
        if let Some(launch) = self.launches.last_mut() {
            launch.maps = maps;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layer_decides_how_its_input_is_read() {
        let entry = |c, window: Window| {
            let taps = window.kernel[0] * window.kernel[1];
            Left::of_window([56, 56, c], window, taps).entry()
        };
        let square = Window::square;
        assert_eq!(entry(256, square(1, 1, 0)), "gemm_sm90");
        assert_eq!(entry(256, square(1, 2, 0)), "conv2d_sm90");
        assert_eq!(entry(64, square(3, 1, 1)), "conv2d_sm90");
        assert_eq!(entry(48, square(3, 2, 1)), "conv2d_sm90");
        assert_eq!(entry(3, square(7, 2, 3)), "gather_sm90");
        assert_eq!(entry(64, Window { dilation: [200; 2], ..square(3, 1, 200) }), "gather_sm90");
    }
}
