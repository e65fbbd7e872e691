//! Blocks of `x w`: the part shared by convolutions and linear layers.

use super::kernels::{A_PITCH, C_PITCH, Kernels, MAX_COLUMNS, MAX_DEPTH, MAX_ROWS};
use super::memory::Aligned;
use half::f16;
use std::ops::Range;

/// Rows of a scratch block: a last tile may reach beyond the block.
const SCRATCH_ROWS: usize = MAX_ROWS + 16;

/// Packed activations and sums of one block; they stay in the second-level cache.
pub(super) struct Block {
    a: Aligned<f32>,
    c: Aligned<f32>,
}

impl Block {
    pub fn new() -> Block {
        let (a, c) = (SCRATCH_ROWS * A_PITCH, SCRATCH_ROWS * C_PITCH);
        Block { a: Aligned::zeros(a), c: Aligned::zeros(c) }
    }

    /// The sums of a row.
    pub fn row(&mut self, row: usize, columns: usize) -> &mut [f32] {
        &mut self.c[row * C_PITCH..][..columns]
    }
}

/// Weights `[K, depth]` packed for the tiles of an instruction set: panels of
/// `[depth][columns]` f32, the last one padded with zero filters.
pub(super) struct Weights {
    kernels: &'static Kernels,
    panels: Aligned<f32>,
    depth: usize,
    filters: usize,
}

impl Weights {
    pub fn pack(kernels: &'static Kernels, weight: &[f16], filters: usize) -> Weights {
        let depth = weight.len() / filters;
        let width = kernels.columns;
        let mut panels = Aligned::zeros(filters.next_multiple_of(width) * depth);
        let mut filter = vec![0.0; depth];
        for (k, row) in weight.chunks_exact(depth).enumerate() {
            kernels.widen(row, &mut filter);
            let panel = &mut panels[k / width * width * depth..];
            for (i, &w) in filter.iter().enumerate() {
                panel[i * width + k % width] = w;
            }
        }
        Weights { kernels, panels, depth, filters }
    }

    pub fn filters(&self) -> usize {
        self.filters
    }

    /// How to cut `[positions, K]` sums into blocks for a team: large ones for the cache, smaller
    /// ones when there would be too few to go round.
    pub fn blocks(&self, positions: usize, threads: usize) -> [usize; 2] {
        let count = |n: usize, block: usize| n.div_ceil(block);
        let whole = MAX_ROWS / self.kernels.rows() * self.kernels.rows();
        let even = positions.div_ceil(count(positions, whole).max(1));
        let rows = even.next_multiple_of(self.kernels.rows()).min(whole);
        let mut columns = MAX_COLUMNS;
        let enough = if threads == 1 { 1 } else { 2 * threads };
        while count(positions, rows) * count(self.filters, columns) < enough
            && columns > 2 * self.kernels.columns
        {
            columns /= 2;
        }
        [rows, columns]
    }

    /// Leaves in `block` the sums of some rows and columns. `pack(row, depths, to)` writes the
    /// activations of one row of the block for a part of the reduction.
    pub fn multiply(
        &self,
        block: &mut Block,
        rows: usize,
        columns: Range<usize>,
        pack: impl Fn(usize, Range<usize>, &mut [f32]),
    ) {
        let width = self.kernels.columns;
        assert!(rows <= MAX_ROWS && columns.len() <= MAX_COLUMNS);
        assert!(columns.start.is_multiple_of(width) && columns.end <= self.filters);
        // Parts of equal depth, so that none is left too shallow to be worth its loads and stores.
        let step = self.depth.div_ceil(self.depth.div_ceil(MAX_DEPTH));
        for start in (0..self.depth).step_by(step) {
            let depths = start..(start + step).min(self.depth);
            for row in 0..rows {
                pack(row, depths.clone(), &mut block.a[row * A_PITCH..][..depths.len()]);
            }
            for column in columns.clone().step_by(width) {
                let panel = &self.panels[column * self.depth..][..width * self.depth];
                let b = &panel[depths.start * width..depths.end * width];
                let c = &mut block.c[column - columns.start..];
                self.kernels.multiply(&block.a, b, rows, c, start == 0);
            }
        }
    }
}
