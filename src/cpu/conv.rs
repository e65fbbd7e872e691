//! Convolutions and linear layers as an implicit matrix product: one row for each output position,
//! its taps gathered straight from the input, zeros where the window hangs over the edge.

use super::epilogue::Finish;
use super::kernels::{Kernels, MAX_ROWS};
use super::layer::{Layer, Scratch, Site, halves, numbers, vector};
use super::matmul::{Block, Left, Weights};
use super::memory::{Part, Rows, View};
use super::stored::{Stored, StoredMut};
use super::strips::Strips;
use crate::backend::Precision;
use crate::graph::{Act, Epilogue, Graph, Op, ParamId, Shape, Step, Window};
use half::{bf16, f16};
use std::ops::Range;

/// A convolution; a linear layer is one of a `1 x 1` kernel over `1 x 1` maps.
pub(super) struct Conv {
    kernels: &'static Kernels,
    weights: Weights,
    after: After,
    /// Scale and bias of the input's channels, then ReLU and rounding.
    before: Option<[Vec<f32>; 2]>,
    taps: Taps,
    strips: Option<Strips>,
}

/// An epilogue but for the residual.
pub(super) struct After {
    pub scale: Vec<f32>,
    pub bias: Vec<f32>,
    pub act: Act,
}

impl After {
    pub fn new(graph: &Graph, epilogue: &Epilogue, filters: usize) -> After {
        let Epilogue { scale, bias, act, residual: _ } = *epilogue;
        let scale = vector(graph, scale, filters, 1.0);
        After { scale, bias: vector(graph, bias, filters, 0.0), act }
    }

    /// What turns the sums of some columns into values.
    pub fn finish<'a>(&'a self, columns: &Range<usize>, residual: Option<&'a [f32]>) -> Finish<'a> {
        let (scale, bias) = (&self.scale[columns.clone()], &self.bias[columns.clone()]);
        Finish { scale, bias, residual, act: self.act }
    }
}

impl Conv {
    pub fn new(graph: &Graph, step: &Step, kernels: &'static Kernels) -> Conv {
        let point = Window::square(1, 1, 0);
        let (weight, window, epilogue, before) = match step.op {
            Op::Conv2d { weight, window, epilogue } => (weight, window, epilogue, None),
            Op::Linear { weight, epilogue } => (weight, point, epilogue, None),
            Op::PreactConv1x1 { scale, bias, weight, epilogue } => {
                let before = [scale, bias].map(|id| numbers(graph, id).to_vec());
                (weight, point, epilogue, Some(before))
            }
            _ => unreachable!("only convolutions and linear layers come here"),
        };
        let size = |shape: Shape| match shape {
            Shape::Map { h, w, .. } => [h, w],
            _ => [1, 1],
        };
        let input = graph.shape(step.inputs[0]);
        let (from, to, channels) = (size(input), size(graph.shape(step.output)), input.channels());
        let taps = Taps { window, input: from, output: to, channels };
        let strips = Strips::new(window, from, to, channels);
        let weights = weights(graph, weight, kernels);
        let after = After::new(graph, &epilogue, weights.filters());
        Conv { kernels, weights, after, before, taps, strips }
    }

    /// Writes what one output position multiplies with the weights, for a part of the reduction.
    fn gather(&self, x: &View, place: Place, depths: Range<usize>, to: StoredMut<'_>) {
        match &self.before {
            None => self.taps.gather(self.kernels, x, place, depths, to),
            Some([scale, bias]) => {
                let with = [&scale[depths.clone()], &bias[depths.clone()]];
                let position = place.image + place.p * self.taps.input[1] + place.q;
                self.kernels.activate(x.at(position, depths), with, to)
            }
        }
    }

    /// Multiplies the rows of a block and finishes their sums, each panel at once.
    fn multiply(
        &self,
        site: &Site<'_>,
        part: &mut Part<'_>,
        block: &mut Block,
        left: Left<'_, impl Fn(usize, Range<usize>, StoredMut<'_>)>,
    ) {
        let (all, positions) = (part.channels.clone(), part.positions.clone());
        self.weights.multiply_each(block, positions.len(), all, left, |columns, sums| {
            let with = self.after.finish(&columns, None);
            part.finish(positions.clone(), columns, sums, with, site.residual.as_ref());
        });
    }

    /// As [`Conv::multiply`], the rows from strips of numbers as they are multiplied, which `take`
    /// makes of stored ones.
    fn multiply_strips<T: bytemuck::Pod>(
        &self,
        strips: &Strips,
        site: &Site<'_>,
        part: &mut Part<'_>,
        scratch: &mut Scratch,
        take: impl Fn(Stored<'_>, &mut [T]),
    ) {
        let Scratch { block, hidden } = scratch;
        let lines: &mut [T] = bytemuck::cast_slice_mut(hidden);
        let lines = &mut lines[..strips.len()];
        let starts = strips.fill(&site.inputs[0], part.positions.clone(), lines, take);
        let pack = |row: usize, _: Range<usize>, to: StoredMut<'_>| {
            strips.gather(lines, starts[row], to.of())
        };
        self.multiply(site, part, block, Left::packed(pack));
    }
}

/// Packs an f16 weight.
pub(super) fn weights(graph: &Graph, id: ParamId, kernels: &'static Kernels) -> Weights {
    Weights::pack(kernels, halves(graph, id), graph.param(id).shape[0])
}

impl Layer for Conv {
    fn scratch(&self) -> usize {
        self.strips.as_ref().map_or(0, Strips::len)
    }

    fn run(&self, site: &Site<'_>) {
        let x = site.inputs[0];
        let cut = self.weights.cut(site.sink.positions(), site.on.team.threads());
        let strips = self.strips.as_ref().filter(|_| x.is_dense());
        let precision = self.kernels.pairs.map(|_| self.kernels.precision);
        site.sink.fill_tasks(&site.on, &cut, |part, scratch| match (strips, precision) {
            (Some(strips), Some(Precision::Bf16)) => {
                let take = |from: Stored<'_>, to: &mut [bf16]| to.copy_from_slice(from.of());
                self.multiply_strips(strips, site, part, scratch, take);
            }
            (Some(strips), Some(Precision::F16)) => {
                let take = |from: Stored<'_>, to: &mut [f16]| to.copy_from_slice(from.of());
                self.multiply_strips(strips, site, part, scratch, take);
            }
            (Some(strips), _) => {
                let take = |from: Stored<'_>, to: &mut [f32]| self.kernels.widen(from, to);
                self.multiply_strips(strips, site, part, scratch, take);
            }
            (None, _) => {
                let places = self.taps.places(part.positions.clone());
                let pack = |row: usize, depths: Range<usize>, to: StoredMut<'_>| {
                    self.gather(&x, places[row], depths, to)
                };
                let (first, channels) = (part.positions.start, 0..x.channels());
                let is_point = self.before.is_none() && self.taps.are_points();
                let stored = is_point.then_some(Rows { view: &x, first, channels });
                self.multiply(site, part, &mut scratch.block, Left { pack, stored });
            }
        });
    }
}

/// Where the taps of an output position lie in the input.
struct Taps {
    window: Window,
    input: [usize; 2],
    output: [usize; 2],
    channels: usize,
}

/// Where an output position lies.
#[derive(Clone, Copy, Default)]
struct Place {
    /// The first position of its picture in the input.
    image: usize,
    /// Row and column of the output.
    p: usize,
    q: usize,
}

impl Taps {
    /// Whether an output position needs the input of its own position alone.
    fn are_points(&self) -> bool {
        let Window { kernel, stride, pad, .. } = self.window;
        kernel == [1, 1] && stride == [1, 1] && pad == [0, 0]
    }

    /// Of the positions of a block, in order.
    fn places(&self, positions: Range<usize>) -> [Place; MAX_ROWS] {
        let ([h, w], [rows, columns]) = (self.input, self.output);
        let line = positions.start / columns;
        let (image, p, q) = (line / rows * h * w, line % rows, positions.start % columns);
        let (mut places, mut place) = ([Place::default(); MAX_ROWS], Place { image, p, q });
        for to in &mut places[..positions.len()] {
            *to = place;
            place.q += 1;
            if place.q == columns {
                (place.q, place.p) = (0, place.p + 1);
            }
            if place.p == rows {
                (place.p, place.image) = (0, place.image + h * w);
            }
        }
        places
    }

    /// Writes the part `depths` of the reduction, in order (r, s, c), of one output position of
    /// all rows together.
    fn gather(
        &self,
        kernels: &Kernels,
        x: &View,
        place: Place,
        depths: Range<usize>,
        mut to: StoredMut<'_>,
    ) {
        let [h, w] = self.input;
        let (Window { kernel, stride, pad, dilation }, c) = (self.window, self.channels);
        let Place { image, p, q } = place;
        if kernel == [1, 1] && pad == [0, 0] {
            let position = image + p * stride[0] * w + q * stride[1];
            return kernels.take(x.at(position, depths), to);
        }
        // Neighbouring taps of a dense row are one run of memory; otherwise each is its own.
        let together = if dilation[1] == 1 && x.is_dense() { kernel[1] } else { 1 };
        let run = together * c;
        let tap = depths.start / run * together;
        let (mut r, mut s) = (tap / kernel[1], tap % kernel[1]);
        let mut skip = depths.start % run;
        while !to.is_empty() {
            let now;
            let length = (run - skip).min(to.len());
            (now, to) = to.split_at(length);
            // Above the map this wraps around, to below it.
            let y = (p * stride[0] + r * dilation[0]).wrapping_sub(pad[0]);
            // Taps `inside` of the run lie on the map; the first of them at column `left`.
            let column = q * stride[1] + s * dilation[1];
            let on_map = if y < h { (w + pad[1]).saturating_sub(column) } else { 0 };
            let inside = pad[1].saturating_sub(column).min(together)..on_map.min(together);
            let start = (inside.start * c).clamp(skip, skip + length);
            let end = (inside.end * c).clamp(start, skip + length);
            let (before, rest) = now.split_at(start - skip);
            let (middle, after) = rest.split_at(end - start);
            before.fill_zero();
            after.fill_zero();
            if start < end {
                let left = column + inside.start - pad[1];
                let first = start - inside.start * c;
                let from = x.at(image + y * w + left, first..first + middle.len());
                kernels.take(from, middle);
            }
            skip = 0;
            s += together;
            if s == kernel[1] {
                (r, s) = (r + 1, 0);
            }
        }
    }
}
