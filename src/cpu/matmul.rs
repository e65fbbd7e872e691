//! Blocks of `x w`: the part shared by convolutions, linear layers and attention.

use super::aligned::Aligned;
use super::cut::{Cut, Limits};
use super::kernels::{A_PITCH, C_PITCH, Kernels, MAX_COLUMNS, MAX_DEPTH, MAX_ROWS, MAX_SLOTS};
use super::memory::{Grid, Rows};
use super::pairs::Pairing;
use super::stored::{Stored, StoredMut};
use half::{bf16, f16};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Rows of a scratch block: a last tile may reach beyond the block.
pub(super) const SCRATCH_ROWS: usize = MAX_ROWS + 16;

/// Pairs after which a first-level cache begins anew: rows so far apart would drive each other out.
const AROUND: usize = 1024;

/// The left-hand side of a product.
pub(super) struct Left<'a, P> {
    /// `pack(row, depths, to)` writes one row of a block, for a part of the reduction, as it is multiplied.
    pub pack: P,
    /// The rows where they are stored, if they are stored as [`Left::pack`] would write them.
    pub stored: Option<Rows<'a>>,
}

impl<P> Left<'_, P> {
    pub fn packed(pack: P) -> Self {
        Left { pack, stored: None }
    }
}

/// The most columns of a block whose panels are finished one by one.
const WIDEST: usize = 1024;

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

    /// The sums of a row, and room for what [`Panels::multiply_part`] multiplies next.
    pub fn turn(&mut self, row: usize) -> [&mut [f32]; 2] {
        [&mut self.c[row * C_PITCH..][..C_PITCH], &mut self.a[row * A_PITCH..][..A_PITCH]]
    }
}

/// The right-hand side of a product, packed for the tiles of an instruction set: panels at cache
/// lines, the last one padded with zeros. A slot is a column of all panels together.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub kernels: &'static Kernels,
    pub data: Columns<'a>,
    pub depth: usize,
}

/// The numbers of panels.
#[derive(Clone, Copy)]
pub(super) enum Columns<'a> {
    /// `[depth][columns]`.
    Singles(&'a [f32]),
    /// `[depth / 2][columns]`, filled up with zeros to whole steps; see [`Pairing`].
    Pairs(Pairing, &'a [[bf16; 2]]),
}

impl Panels<'_> {
    /// Leaves in `block` the sums of some rows and slots. `done(slot, sums)` is told of each panel whose sums
    /// are complete, while they are in the first-level cache: its first slot and its sums, in rows of
    /// [`C_PITCH`]. A block has room for [`MAX_SLOTS`]; of more, where the reduction has but one part, the last
    /// ones are left.
    pub fn multiply(
        &self,
        block: &mut Block,
        rows: usize,
        slots: Range<usize>,
        left: Left<'_, impl Fn(usize, Range<usize>, StoredMut<'_>)>,
        done: impl FnMut(usize, &mut [f32]),
    ) {
        assert!(rows <= MAX_ROWS);
        match self.data {
            Columns::Singles(data) => {
                self.multiply_singles(data, block, rows, slots, left.pack, done)
            }
            Columns::Pairs(how, data) => {
                self.multiply_pairs((how, data), block, rows, slots, left, done)
            }
        }
    }

    fn multiply_singles(
        &self,
        data: &[f32],
        Block { a, c }: &mut Block,
        rows: usize,
        slots: Range<usize>,
        pack: impl Fn(usize, Range<usize>, StoredMut<'_>),
        mut done: impl FnMut(usize, &mut [f32]),
    ) {
        // Parts of equal depth, so that none is left too shallow to be worth its loads and stores.
        let parts = parts_of(None, self.depth);
        let step = self.depth.div_ceil(parts);
        assert!(parts == 1 || slots.len() <= MAX_SLOTS);
        for start in (0..self.depth).step_by(step) {
            let depths = start..(start + step).min(self.depth);
            for row in 0..rows {
                let to = &mut a[row * A_PITCH..][..depths.len()];
                pack(row, depths.clone(), StoredMut::F32(to));
            }
            for slots in runs(slots.clone()) {
                let piece = Piece { rows, slots, depths: depths.clone() };
                self.multiply_piece(data, a, piece, c, &mut done);
            }
        }
    }

    fn multiply_pairs(
        &self,
        (how, data): (Pairing, &[[bf16; 2]]),
        Block { a, c }: &mut Block,
        rows: usize,
        slots: Range<usize>,
        Left { pack, stored }: Left<'_, impl Fn(usize, Range<usize>, StoredMut<'_>)>,
        mut done: impl FnMut(usize, &mut [f32]),
    ) {
        let (all, terms) = (how.pairs(self.depth), how.terms());
        let parts = parts_of(Some(how), self.depth);
        let step = all.div_ceil(parts).next_multiple_of(how.step);
        assert!(parts == 1 || slots.len() <= MAX_SLOTS);
        let a: &mut [[bf16; 2]] = bytemuck::cast_slice_mut(a);
        let (stored, straight) = self.straight(how, stored, rows);
        let mut halves = [f16::ZERO; MAX_DEPTH];
        for start in (0..all).step_by(step) {
            let pairs = start..(start + step).min(all);
            let depths = 2 * start..(2 * pairs.end).min(self.depth);
            if terms == 2 {
                halves[depths.len()..].fill(f16::ZERO);
            }
            for row in straight..rows {
                let to = a[row * A_PITCH..][..pairs.len() * terms].as_flattened_mut();
                if terms == 2 {
                    let numbers = StoredMut::F16(&mut halves[..depths.len()]);
                    pack(row, depths.clone(), numbers);
                    self.kernels.split(&halves[..2 * pairs.len()], to);
                } else {
                    let (to, rest) = to.split_at_mut(depths.len());
                    pack(row, depths.clone(), StoredMut::Bf16(to));
                    rest.fill(bf16::ZERO);
                }
            }
            let packed = Grid::of(a, A_PITCH).from(straight, 0);
            let stored = stored.as_ref().map_or(packed, |stored| stored.from(0, start));
            let left = [(stored, 0..straight), (packed, straight..rows)];
            for slots in runs(slots.clone()) {
                let piece = Piece { rows, slots, depths: pairs.clone() };
                self.multiply_piece_of_pairs((how, data), &left, piece, c, &mut done);
            }
        }
    }

    /// The rows that are multiplied where they are stored, and how many: whole tiles, as others would reach
    /// beyond the last row.
    fn straight<'a>(
        &self,
        how: Pairing,
        stored: Option<Rows<'a>>,
        rows: usize,
    ) -> (Option<Grid<'a, [bf16; 2]>>, usize) {
        let is_whole = how.terms() == 1 && 2 * how.pairs(self.depth) == self.depth;
        let grid = stored.filter(|_| is_whole).and_then(|stored| stored.of(rows)?.pairs());
        let grid = grid.filter(|grid| !grid.pitch().is_multiple_of(AROUND));
        let height = self.kernels.rows();
        let count = if grid.is_some() { rows / height * height } else { 0 };
        (grid, count)
    }

    /// Adds to `sums`, in rows of [`C_PITCH`], what rows that stand in `block` as they are multiplied
    /// (see [`Block::turn`]) make with the part `depths` of the reduction; the first part begins
    /// them. Pairs are of one term.
    pub fn multiply_part(
        &self,
        block: &Block,
        rows: usize,
        slots: Range<usize>,
        depths: Range<usize>,
        sums: &mut [f32],
    ) {
        assert!(rows <= MAX_ROWS && slots.len() <= MAX_SLOTS);
        match self.data {
            Columns::Singles(data) => {
                let piece = Piece { rows, slots, depths };
                self.multiply_piece(data, &block.a, piece, sums, |_, _| {});
            }
            Columns::Pairs(how, data) => {
                assert!(how.terms() == 1);
                let depths = how.pairs(depths.start)..how.pairs(depths.end);
                let left = [(Grid::of(bytemuck::cast_slice(&block.a), A_PITCH), 0..rows)];
                let piece = Piece { rows, slots, depths };
                self.multiply_piece_of_pairs((how, data), &left, piece, sums, |_, _| {});
            }
        }
    }

    fn multiply_piece(
        &self,
        data: &[f32],
        a: &[f32],
        Piece { rows, slots, depths }: Piece,
        c: &mut [f32],
        mut done: impl FnMut(usize, &mut [f32]),
    ) {
        let width = self.kernels.columns;
        for (slot, b) in panels(data, width, [self.depth, width], slots.clone(), depths.clone()) {
            let c = &mut c[slot - slots.start..];
            self.kernels.multiply(a, b, rows, c, depths.start == 0);
            if depths.end == self.depth {
                done(slot, c);
            }
        }
    }

    fn multiply_piece_of_pairs(
        &self,
        (how, data): (Pairing, &[[bf16; 2]]),
        left: &[(Grid<'_, [bf16; 2]>, Range<usize>)],
        Piece { slots, depths, .. }: Piece,
        c: &mut [f32],
        mut done: impl FnMut(usize, &mut [f32]),
    ) {
        let (width, all) = (self.kernels.columns, how.pairs(self.depth));
        let (room, products) = ([all, width * how.terms()], self.kernels.pair_products());
        for (slot, b) in panels(data, width, room, slots.clone(), depths.clone()) {
            let c = &mut c[slot - slots.start..];
            for (a, rows) in left.iter().filter(|(_, rows)| !rows.is_empty()) {
                let c = &mut c[rows.start * C_PITCH..];
                products.multiply(a, b, rows.len(), c, depths.start == 0);
            }
            if depths.end == all {
                done(slot, c);
            }
        }
    }
}

/// The panels of some slots, each `width` of them: its first slot and its part `depths` of `[depth][row]`
/// numbers.
fn panels<T>(
    data: &[T],
    width: usize,
    [depth, row]: [usize; 2],
    slots: Range<usize>,
    depths: Range<usize>,
) -> impl Iterator<Item = (usize, &[T])> {
    assert!(slots.start.is_multiple_of(width));
    let panel = move |slot: usize| &data[slot / width * depth * row..][..depth * row];
    let part = depths.start * row..depths.end * row;
    slots.step_by(width).map(move |slot| (slot, &panel(slot)[part.clone()]))
}

/// Parts of a reduction that are multiplied one after another.
fn parts_of(pairs: Option<Pairing>, depth: usize) -> usize {
    match pairs {
        None => depth.div_ceil(MAX_DEPTH),
        Some(how) => how.pairs(depth).div_ceil(MAX_DEPTH / how.terms()),
    }
}

/// Slots there is room for together, in turns.
pub(super) fn runs(slots: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let run = move |start: usize| start..(start + MAX_SLOTS).min(slots.end);
    slots.clone().step_by(MAX_SLOTS).map(run)
}

/// What of a product is multiplied together: rows, slots, and a part of the reduction, in pairs where
/// numbers are.
struct Piece {
    rows: usize,
    slots: Range<usize>,
    depths: Range<usize>,
}

/// Packed weights `[K, depth]`, or several such parts whose sums are wanted together: then panels
/// of the parts take turns.
pub(super) struct Weights {
    kernels: &'static Kernels,
    panels: Packed,
    depth: usize,
    filters: usize,
    parts: usize,
    /// Positions and threads of the last [`Weights::cut`], and how it was.
    last: Mutex<Option<([usize; 2], Cut)>>,
}

/// Panels of weights: see [`Columns`].
enum Packed {
    Singles(Aligned<f32>),
    Pairs(Pairing, Aligned<[bf16; 2]>),
}

impl Weights {
    pub fn pack(kernels: &'static Kernels, weight: &[f16], filters: usize) -> Weights {
        Weights::pack_parts(kernels, weight, [filters, 1], |filter, _| filter)
    }

    /// As [`Weights::pack`] for a left-hand side that stays in f32.
    pub fn pack_singles(kernels: &'static Kernels, weight: &[f16], filters: usize) -> Weights {
        let depth = weight.len() / filters;
        let slots = filters.next_multiple_of(kernels.columns);
        let mut weights = Weights {
            kernels,
            panels: Packed::Singles(Aligned::zeros(slots * depth)),
            depth,
            filters,
            parts: 1,
            last: Mutex::default(),
        };
        weights.write(weight, |filter, _| filter);
        weights
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
        let slots = filters.next_multiple_of(width) * parts;
        let panels = match kernels.pairs {
            Some(how) => Packed::Pairs(how, Aligned::zeros(slots * how.pairs(depth) * how.terms())),
            None => Packed::Singles(Aligned::zeros(slots * depth)),
        };
        let last = Mutex::default();
        let mut weights = Weights { kernels, panels, depth, filters, parts, last };
        weights.write(weight, row);
        weights
    }

    fn write(&mut self, weight: &[f16], row: impl Fn(usize, usize) -> usize) {
        let Weights { kernels, ref mut panels, depth, filters, parts, .. } = *self;
        let width = kernels.columns;
        let mut numbers = vec![0.0; depth];
        for (k, part) in (0..filters).flat_map(|k| (0..parts).map(move |part| (k, part))) {
            kernels.widen(Stored::F16(&weight[row(k, part) * depth..][..depth]), &mut numbers);
            let (panel, column) = ((k / width * parts + part) * width, k % width);
            match panels {
                Packed::Singles(panels) => {
                    kernels.round(&mut numbers);
                    for (i, &w) in numbers.iter().enumerate() {
                        panels[panel * depth + i * width + column] = w;
                    }
                }
                Packed::Pairs(how, panels) => {
                    let panel = &mut panels[panel * how.pairs(depth) * how.terms()..];
                    for (i, &w) in numbers.iter().enumerate() {
                        let near = bf16::from_f32(w);
                        let terms = [near, bf16::from_f32(w - near.to_f32())];
                        for (pair, term) in how.place(i).into_iter().zip(terms).take(how.terms()) {
                            panel[pair * width + column][i % 2] = term;
                        }
                    }
                }
            }
        }
    }

    pub fn filters(&self) -> usize {
        self.filters
    }

    /// How `[positions, K]` sums are cut into the tasks of a team. Of activations and weights the larger
    /// ones are to be read but once.
    pub fn cut(&self, positions: usize, threads: usize) -> Cut {
        let key = [positions, threads];
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((of, cut)) if of == key => cut,
            _ => last.insert((key, self.best_cut(positions, threads))).1,
        }
    }

    fn best_cut(&self, positions: usize, threads: usize) -> Cut {
        let height = self.kernels.rows();
        // Rows that are multiplied whole and finished panel by panel are packed for many columns at once.
        let pairs = match self.panels {
            Packed::Singles(_) => None,
            Packed::Pairs(how, _) => Some(how),
        };
        let is_whole = self.parts == 1 && parts_of(pairs, self.depth) == 1;
        let widest = if is_whole { WIDEST } else { MAX_COLUMNS / self.parts };
        let limits = Limits {
            tile: [height, self.kernels.columns],
            most: [MAX_ROWS / height * height, widest],
            downwards: positions < self.filters * self.parts,
        };
        Cut::product([positions, self.filters], &limits, threads)
    }

    /// Leaves in `block` the sums of some rows and columns. `pack(row, depths, to)` writes the
    /// activations of one row of the block for a part of the reduction.
    pub fn multiply(
        &self,
        block: &mut Block,
        rows: usize,
        columns: Range<usize>,
        pack: impl Fn(usize, Range<usize>, StoredMut<'_>),
    ) {
        assert!(columns.len() * self.parts <= MAX_COLUMNS);
        self.multiply_slots(block, rows, columns, Left::packed(pack), |_, _| {});
    }

    /// As [`Weights::multiply`]; `done(columns, sums)` is given each panel of sums as soon as they are
    /// complete. For weights of one part.
    pub fn multiply_each(
        &self,
        block: &mut Block,
        rows: usize,
        columns: Range<usize>,
        left: Left<'_, impl Fn(usize, Range<usize>, StoredMut<'_>)>,
        mut done: impl FnMut(Range<usize>, &mut [f32]),
    ) {
        assert!(self.parts == 1);
        let (width, end) = (self.kernels.columns, columns.end);
        let done = |slot: usize, sums: &mut [f32]| done(slot..(slot + width).min(end), sums);
        self.multiply_slots(block, rows, columns, left, done);
    }

    fn multiply_slots(
        &self,
        block: &mut Block,
        rows: usize,
        columns: Range<usize>,
        left: Left<'_, impl Fn(usize, Range<usize>, StoredMut<'_>)>,
        done: impl FnMut(usize, &mut [f32]),
    ) {
        assert!(columns.end <= self.filters);
        let end = columns.end.next_multiple_of(self.kernels.columns);
        let slots = columns.start * self.parts..end * self.parts;
        let data = match &self.panels {
            Packed::Singles(panels) => Columns::Singles(panels),
            Packed::Pairs(how, panels) => Columns::Pairs(*how, panels),
        };
        let panels = Panels { kernels: self.kernels, data, depth: self.depth };
        panels.multiply(block, rows, slots, left, done);
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
