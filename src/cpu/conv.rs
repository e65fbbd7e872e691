//! Convolutions and linear layers as an implicit matrix product: one row for each output position,
//! its taps gathered straight from the input, zeros where the window hangs over the edge.

use super::kernels::{Kernels, MAX_COLUMNS};
use super::layer::{Layer, Site, numbers};
use super::matmul::Weights;
use super::memory::View;
use super::vector::Finish;
use crate::graph::{Act, Epilogue, Graph, Op, ParamData, ParamId, Shape, Step, Window};
use std::ops::Range;

/// A convolution; a linear layer is one of a `1 x 1` kernel over `1 x 1` maps.
pub(super) struct Conv {
    kernels: &'static Kernels,
    weights: Weights,
    scale: Vec<f32>,
    bias: Vec<f32>,
    act: Act,
    taps: Taps,
}

impl Conv {
    pub fn new(graph: &Graph, step: &Step, kernels: &'static Kernels) -> Conv {
        let (weight, window, epilogue) = match step.op {
            Op::Conv2d { weight, window, epilogue } => (weight, window, epilogue),
            Op::Linear { weight, epilogue } => (weight, Window::square(1, 1, 0), epilogue),
            _ => unreachable!("only convolutions and linear layers come here"),
        };
        let size = |shape: Shape| match shape {
            Shape::Map { h, w, .. } => [h, w],
            _ => [1, 1],
        };
        let input = graph.shape(step.inputs[0]);
        let taps = Taps {
            window,
            input: size(input),
            output: size(graph.shape(step.output)),
            channels: input.channels(),
        };
        let k = graph.param(weight).shape[0];
        let vector = |id: Option<ParamId>, absent: f32| {
            id.map_or_else(|| vec![absent; k], |id| numbers(graph, id).to_vec())
        };
        let Epilogue { scale, bias, act, .. } = epilogue;
        Conv {
            kernels,
            weights: weights(graph, weight, kernels),
            scale: vector(scale, 1.0),
            bias: vector(bias, 0.0),
            act,
            taps,
        }
    }
}

/// Packs an f16 weight.
pub(super) fn weights(graph: &Graph, id: ParamId, kernels: &'static Kernels) -> Weights {
    let param = graph.param(id);
    let ParamData::F16(data) = &param.data else {
        unreachable!("checked when the graph was built")
    };
    Weights::pack(kernels, data, param.shape[0])
}

impl Layer for Conv {
    fn run(&self, site: &Site<'_>) {
        let x = site.inputs[0];
        let sizes = self.weights.blocks(site.sink.positions(), site.on.team.threads());
        site.sink.fill(&site.on, sizes, |part, scratch| {
            let (first, columns) = (part.positions.start, part.channels.clone());
            let block = &mut scratch.block;
            self.weights.multiply(
                block,
                part.positions.len(),
                columns.clone(),
                |row, depths, to| self.taps.gather(self.kernels, &x, first + row, depths, to),
            );
            let mut added = [0.0; MAX_COLUMNS];
            let added = &mut added[..columns.len()];
            for (row, position) in part.positions.clone().enumerate() {
                let sums = block.row(row, columns.len());
                let residual = site.residual.map(|r| {
                    self.kernels.widen(r.at(position, columns.clone()), added);
                    &*added
                });
                let (scale, bias) = (&self.scale[columns.clone()], &self.bias[columns.clone()]);
                let act = self.act;
                self.kernels.finish(sums, &Finish { scale, bias, residual, act });
                part.put(position, columns.start, sums);
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

impl Taps {
    /// Writes the part `depths` of the reduction, in order (r, s, c), of one output position of
    /// all rows together.
    fn gather(
        &self,
        kernels: &Kernels,
        x: &View,
        position: usize,
        depths: Range<usize>,
        mut to: &mut [f32],
    ) {
        let [h, w] = self.input;
        let (Window { kernel, stride, pad, dilation }, c) = (self.window, self.channels);
        let [p, q] = [position / self.output[1] % self.output[0], position % self.output[1]];
        let image = position / (self.output[0] * self.output[1]) * h * w;
        // Neighbouring taps of a dense row are one run of memory; otherwise each is its own.
        let together = if dilation[1] == 1 && x.is_dense() { kernel[1] } else { 1 };
        let run = together * c;
        let tap = depths.start / run * together;
        let (mut r, mut s) = (tap / kernel[1], tap % kernel[1]);
        let mut skip = depths.start % run;
        while !to.is_empty() {
            let now;
            (now, to) = to.split_at_mut((run - skip).min(to.len()));
            // Above the map this wraps around, to below it.
            let y = (p * stride[0] + r * dilation[0]).wrapping_sub(pad[0]);
            // Taps `inside` of the run lie on the map; the first of them at column `left`.
            let column = q * stride[1] + s * dilation[1];
            let on_map = if y < h { (w + pad[1]).saturating_sub(column) } else { 0 };
            let inside = pad[1].saturating_sub(column).min(together)..on_map.min(together);
            let start = (inside.start * c).clamp(skip, skip + now.len());
            let end = (inside.end * c).clamp(start, skip + now.len());
            let (before, rest) = now.split_at_mut(start - skip);
            let (middle, after) = rest.split_at_mut(end - start);
            before.fill(0.0);
            after.fill(0.0);
            if !middle.is_empty() {
                let left = column + inside.start - pad[1];
                let first = start - inside.start * c;
                let from = x.at(image + y * w + left, first..first + middle.len());
                kernels.widen(from, middle);
            }
            skip = 0;
            s += together;
            if s == kernel[1] {
                (r, s) = (r + 1, 0);
            }
        }
    }
}
