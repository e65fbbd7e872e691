//! Blocks of `x w`: the part shared by convolutions, linear layers and attention.

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

/// The right-hand side of a product, packed for the tiles of an instruction set: panels of
/// `[depth][columns]` f32 at cache lines, the last one padded with zeros. A slot is a column of
/// all panels together.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub kernels: &'static Kernels,
    pub data: &'a [f32],
    pub depth: usize,
}

impl Panels<'_> {
    /// Leaves in `block` the sums of some rows and slots. `pack(row, depths, to)` writes the
    /// left-hand side of one row of the block for a part of the reduction.
    pub fn multiply(
        &self,
        block: &mut Block,
        rows: usize,
        slots: Range<usize>,
        pack: impl Fn(usize, Range<usize>, &mut [f32]),
    ) {
        let width = self.kernels.columns;
        assert!(rows <= MAX_ROWS && slots.len() <= MAX_COLUMNS);
        assert!(slots.start.is_multiple_of(width));
        // Parts of equal depth, so that none is left too shallow to be worth its loads and stores.
        let step = self.depth.div_ceil(self.depth.div_ceil(MAX_DEPTH));
        for start in (0..self.depth).step_by(step) {
            let depths = start..(start + step).min(self.depth);
            for row in 0..rows {
                pack(row, depths.clone(), &mut block.a[row * A_PITCH..][..depths.len()]);
            }
            for slot in slots.clone().step_by(width) {
                let panel = &self.data[slot * self.depth..][..width * self.depth];
                let b = &panel[depths.start * width..depths.end * width];
                let c = &mut block.c[slot - slots.start..];
                self.kernels.multiply(&block.a, b, rows, c, start == 0);
            }
        }
    }
}

/// Packed weights `[K, depth]`, or several such parts whose sums are wanted together: then panels
/// of the parts take turns.
pub(super) struct Weights {
    kernels: &'static Kernels,
    panels: Aligned<f32>,
    depth: usize,
    filters: usize,
    parts: usize,
}

impl Weights {
    pub fn pack(kernels: &'static Kernels, weight: &[f16], filters: usize) -> Weights {
        Weights::pack_parts(kernels, weight, [filters, 1], |filter, _| filter)
    }

    /// Packs `[filters, parts]` rows of a weight, of which `row` gives the index.
    pub fn pack_parts(
        kernels: &'static Kernels,
        weight: &[f16],
        [filters, parts]: [usize; 2],
        row: impl Fn(usize, usize) -> usize,
    ) -> Weights {
        let depth = weight.len() / (filters * parts);
        let width = kernels.columns;
        let mut panels = Aligned::zeros(filters.next_multiple_of(width) * parts * depth);
        let mut numbers = vec![0.0; depth];
        for (k, part) in (0..filters).flat_map(|k| (0..parts).map(move |part| (k, part))) {
            kernels.widen(&weight[row(k, part) * depth..][..depth], &mut numbers);
            let panel = &mut panels[(k / width * parts + part) * width * depth..];
            for (i, &w) in numbers.iter().enumerate() {
                panel[i * width + k % width] = w;
            }
        }
        Weights { kernels, panels, depth, filters, parts }
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
        let mut columns = MAX_COLUMNS / self.parts;
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
        assert!(columns.end <= self.filters);
        let end = columns.end.next_multiple_of(self.kernels.columns);
        let slots = columns.start * self.parts..end * self.parts;
        let panels = Panels { kernels: self.kernels, data: &self.panels, depth: self.depth };
        panels.multiply(block, rows, slots, pack);
    }

    /// Copies the sums of one part of a row, from the first column that was multiplied on.
    pub fn part(&self, block: &Block, row: usize, part: usize, to: &mut [f32]) {
        let width = self.kernels.columns;
        for (i, to) in to.chunks_mut(width).enumerate() {
            let slot = (i * self.parts + part) * width;
            to.copy_from_slice(&block.c[row * C_PITCH + slot..][..to.len()]);
        }
    }
}
