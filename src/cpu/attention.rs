//! Attention: for each head of each row two products with a softmax between, through the tiles of
//! all products. Keys and values of a head are packed once and stay in the cache while its queries
//! pass by. Keys come in runs: what a query has gathered from earlier ones shrinks as a larger logit
//! turns up (Milakov and Gimelshein, arXiv:1805.02867), so that no matrix of logits is kept. Logits and
//! their softmax are f32, and in bf16 what comes of that is rounded to be multiplied with the values.

use super::cut::Cut;
use super::kernels::{C_PITCH, Kernels, MAX_ROWS, MAX_SLOTS};
use super::layer::{Layer, Scratch, Site, weights};
use super::matmul::{Block, Columns, Left, Panels, SCRATCH_ROWS, runs};
use super::memory::{Part, View};
use super::pairs::Pairing;
use super::stored::StoredMut;
use crate::backend::Precision;
use crate::graph::{Graph, ParamId, TensorId};
use half::bf16;
use std::ops::Range;

/// Logits of a query are filled up to a multiple of this: to registers and to steps of pairs.
const WHOLE: usize = 32;

/// `softmax(q k^T / sqrt(d)) v`.
pub(super) struct Attention {
    kernels: &'static Kernels,
    /// T and d.
    tokens: usize,
    width: usize,
    heads: usize,
    /// Queries to a row, and their numbers where they are not in the input.
    count: usize,
    queries: Option<Vec<f32>>,
    /// Queries to a block.
    rows: usize,
}

impl Attention {
    pub fn new(
        graph: &Graph,
        kernels: &'static Kernels,
        input: TensorId,
        heads: usize,
        queries: Option<ParamId>,
    ) -> Attention {
        let shape = graph.shape(input);
        let (tokens, parts) = (shape.pixels(), if queries.is_some() { 2 } else { 3 });
        let count = queries.map_or(tokens, |id| graph.param(id).shape[0]);
        let whole = kernels.rows();
        let rows = MAX_ROWS.min(count.next_multiple_of(whole));
        Attention {
            kernels,
            tokens,
            width: shape.channels() / parts / heads,
            heads,
            count,
            queries: queries.map(|id| weights(graph, id, kernels)),
            rows: rows / whole * whole,
        }
    }

    /// f32 elements of packed keys, packed values and the sums of a block.
    fn sizes(&self) -> [usize; 3] {
        let columns = self.kernels.columns;
        // A pair takes the room of an f32.
        let depth = |n: usize| self.pairing().map_or(n, |how| how.pairs(n));
        [
            self.tokens.next_multiple_of(columns) * depth(self.width),
            self.width.next_multiple_of(columns) * depth(self.tokens),
            self.width.div_ceil(MAX_SLOTS) * SCRATCH_ROWS * C_PITCH,
        ]
    }

    /// How keys and values are multiplied as pairs of bf16, if they are.
    fn pairing(&self) -> Option<Pairing> {
        self.kernels.pairs.filter(|_| self.kernels.precision == Precision::Bf16)
    }

    /// Packs the keys of a head, each a column; `read` gives a part of a token's.
    fn pack_keys<T: Copy + bytemuck::Zeroable>(
        &self,
        depth: usize,
        to: &mut [T],
        read: impl Fn(usize, Range<usize>, &mut [T]),
    ) {
        /// Numbers of each key that are turned together: a cache line.
        const RUN: usize = 16;
        const MOST_COLUMNS: usize = 32;
        let columns = self.kernels.columns;
        let panels = to.chunks_exact_mut(columns * depth).zip((0..self.tokens).step_by(columns));
        for (panel, first) in panels {
            let tokens = first..(first + columns).min(self.tokens);
            let mut rows = [[T::zeroed(); RUN]; MOST_COLUMNS];
            for (start, to) in (0..).step_by(RUN).zip(panel.chunks_mut(RUN * columns)) {
                let depths = start..(start + RUN).min(depth);
                for (token, row) in tokens.clone().zip(&mut rows) {
                    read(token, depths.clone(), &mut row[..depths.len()]);
                }
                for (i, to) in to.chunks_exact_mut(columns).enumerate() {
                    to.iter_mut().zip(&rows).for_each(|(to, row)| *to = row[i]);
                }
            }
        }
    }

    /// Packs the values `[T, d]` of a head, each a row.
    fn pack_values(&self, x: &View, first: usize, channels: Range<usize>, to: &mut [f32]) {
        let columns = self.kernels.columns;
        for (panel, start) in
            to.chunks_exact_mut(columns * self.tokens).zip(channels.clone().step_by(columns))
        {
            let from = start..(start + columns).min(channels.end);
            for (position, row) in (first..).zip(panel.chunks_exact_mut(columns)) {
                let (row, rest) = row.split_at_mut(from.len());
                self.kernels.widen(x.at(position, from.clone()), row);
                rest.fill(0.0);
            }
        }
    }

    /// As [`Attention::pack_values`], two tokens to a row of pairs.
    fn pack_value_pairs(
        &self,
        how: Pairing,
        x: &View,
        first: usize,
        channels: Range<usize>,
        to: &mut [[bf16; 2]],
    ) {
        let (columns, depth) = (self.kernels.columns, how.pairs(self.tokens));
        for (panel, start) in
            to.chunks_exact_mut(columns * depth).zip(channels.clone().step_by(columns))
        {
            let from = start..(start + columns).min(channels.end);
            let row_of = |token: usize| -> &[bf16] { x.at(first + token, from.clone()).of() };
            for (pair, row) in panel.chunks_exact_mut(columns).enumerate() {
                let (row, rest) = row.split_at_mut(from.len());
                rest.fill([bf16::ZERO; 2]);
                if 2 * pair >= self.tokens {
                    row.fill([bf16::ZERO; 2]);
                    continue;
                }
                let (even, token) = (row_of(2 * pair), 2 * pair + 1);
                if token < self.tokens {
                    let both = even.iter().zip(row_of(token));
                    row.iter_mut().zip(both).for_each(|(to, (&a, &b))| *to = [a, b]);
                } else {
                    row.iter_mut().zip(even).for_each(|(to, &a)| *to = [a, bf16::ZERO]);
                }
            }
        }
    }

    /// The keys and values of a head as right-hand sides.
    fn pack<'a>(
        &self,
        x: &View,
        first: usize,
        [key, value]: [Range<usize>; 2],
        [keys, values]: [&'a mut [f32]; 2],
    ) -> [Panels<'a>; 2] {
        let panels = |data, depth| Panels { kernels: self.kernels, data, depth };
        if let Some(how) = self.pairing() {
            let keys: &mut [[bf16; 2]] = bytemuck::cast_slice_mut(keys);
            let values: &mut [[bf16; 2]] = bytemuck::cast_slice_mut(values);
            self.pack_keys(how.pairs(self.width), keys, |token, pairs, to| {
                let to = to.as_flattened_mut();
                let channels = 2 * pairs.start..(2 * pairs.end).min(self.width);
                let (to, rest) = to.split_at_mut(channels.len());
                let channels = key.start + channels.start..key.start + channels.end;
                to.copy_from_slice(x.at(first + token, channels).of());
                rest.fill(bf16::ZERO);
            });
            self.pack_value_pairs(how, x, first, value, values);
            let (keys, values) = (Columns::Pairs(how, keys), Columns::Pairs(how, values));
            return [panels(keys, self.width), panels(values, self.tokens)];
        }
        self.pack_keys(self.width, keys, |token, depths, to| {
            let channels = key.start + depths.start..key.start + depths.end;
            self.kernels.widen(x.at(first + token, channels), to);
        });
        self.pack_values(x, first, value, values);
        let (keys, values) = (Columns::Singles(keys), Columns::Singles(values));
        [panels(keys, self.width), panels(values, self.tokens)]
    }

    /// Some queries of one head of one row.
    fn head(&self, x: &View, part: &mut Part<'_>, scratch: &mut Scratch) {
        let (width, tokens, all) = (self.width, self.tokens, self.width * self.heads);
        let (row, channels) = (part.positions.start / self.count, part.channels.clone());
        let first = row * tokens;
        let side = |part: usize| {
            let start = x.channels() - part * all + channels.start;
            start..start + width
        };
        // A few cache lines of each token, far apart, which nothing else foresees.
        for position in first..first + tokens {
            (1..=x.channels() / all).for_each(|part| x.expect(position, side(part)));
        }
        let [k, v, c] = self.sizes();
        let (keys, rest) = scratch.hidden[..k + v + c].split_at_mut(k);
        let (values, sums) = rest.split_at_mut(v);
        let [keys, values] = self.pack(x, first, [side(2), side(1)], [keys, values]);
        for start in part.positions.clone().step_by(self.rows) {
            let rows = self.rows.min(part.positions.end - start);
            let query = |i: usize, depths: Range<usize>, to: StoredMut<'_>| match &self.queries {
                None => {
                    let from = side(3).start + depths.start;
                    let position = first + (start + i) % self.count;
                    self.kernels.take(x.at(position, from..from + depths.len()), to)
                }
                Some(queries) => {
                    let from = (start + i) % self.count * all + channels.start + depths.start;
                    self.kernels.narrow(&queries[from..from + depths.len()], to)
                }
            };
            let totals = self.gather([keys, values], rows, query, &mut scratch.block, sums);
            for (i, total) in totals[..rows].iter().enumerate() {
                let factor = (1.0 / total) as f32;
                for (part_of, channels) in
                    sums.chunks_mut(SCRATCH_ROWS * C_PITCH).zip(runs(0..width))
                {
                    let sums = &mut part_of[i * C_PITCH..][..channels.len()];
                    sums.iter_mut().for_each(|s| *s *= factor);
                    part.put(start + i, part.channels.start + channels.start, sums);
                }
            }
        }
    }

    /// Leaves in `sums` the values weighted by the exponentials of their logits, for some queries;
    /// returns the sums of these exponentials.
    fn gather(
        &self,
        [keys, values]: [Panels<'_>; 2],
        rows: usize,
        query: impl Fn(usize, Range<usize>, StoredMut<'_>) + Copy,
        block: &mut Block,
        sums: &mut [f32],
    ) -> [f64; MAX_ROWS] {
        let scale = (1.0 / (self.width as f64).sqrt()) as f32;
        // Not minus infinity: a logit that is weighs nothing beside those of later runs.
        let (mut largest, mut totals) = ([f32::MIN; MAX_ROWS], [0f64; MAX_ROWS]);
        for tokens in runs(0..self.tokens) {
            keys.multiply(block, rows, tokens.clone(), Left::packed(query), |_, _| {});
            let (mut shrink, mut added) = ([0f32; MAX_ROWS], [0f64; MAX_ROWS]);
            for i in 0..rows {
                let [logits, weights] = block.turn(i);
                let whole = tokens.len().next_multiple_of(WHOLE);
                logits[tokens.len()..whole].fill(f32::NEG_INFINITY);
                let (logits, before) = (&mut logits[..whole], largest[i]);
                (largest[i], added[i]) = self.kernels.exponentials(logits, before, scale);
                shrink[i] = before - largest[i];
                let weights = match self.pairing() {
                    None => StoredMut::F32(&mut weights[..whole]),
                    Some(_) => StoredMut::Bf16(&mut bytemuck::cast_slice_mut(weights)[..whole]),
                };
                self.kernels.narrow(logits, weights);
            }
            self.kernels.exponentials(&mut shrink[..rows], 0.0, scale);
            for ((total, &shrink), added) in totals.iter_mut().zip(&shrink).zip(added) {
                *total = *total * shrink as f64 + added;
            }
            for (sums, channels) in sums.chunks_mut(SCRATCH_ROWS * C_PITCH).zip(runs(0..self.width))
            {
                if tokens.start > 0 {
                    let rows = sums.chunks_mut(C_PITCH).zip(&shrink[..rows]);
                    rows.for_each(|(row, s)| {
                        row[..channels.len()].iter_mut().for_each(|x| *x *= s)
                    });
                }
                values.multiply_part(block, rows, channels, tokens.clone(), sums);
            }
        }
        totals
    }
}

impl Layer for Attention {
    fn scratch(&self) -> usize {
        self.sizes().iter().sum()
    }

    fn run(&self, site: &Site<'_>) {
        let x = site.inputs[0];
        let heads = x.positions() / self.tokens * self.heads;
        // Queries that share packed keys and values, or fewer where heads would not go round.
        let threads = site.on.team.threads();
        let span = if threads == 1 || heads >= 2 * threads { self.count } else { self.rows };
        let cut = Cut::blocks([self.count, site.sink.channels()], [span, self.width]);
        site.sink.fill_tasks(&site.on, &cut, |part, scratch| self.head(&x, part, scratch));
    }
}
