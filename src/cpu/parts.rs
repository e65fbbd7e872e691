//! Products that need several filters for one output channel: gated linear layers and transposed
//! convolutions. The rows of the input are gathered once for all of them.

use super::conv::After;
use super::kernels::{Kernels, MAX_COLUMNS, MAX_ROWS};
use super::layer::{Layer, Site, halves, vector};
use super::matmul::Weights;
use crate::graph::{Act, Epilogue, Graph, ParamId, Shape, Step};

/// `act(x w[..K] + b[..K]) * (x w[K..] + b[K..])`.
pub(super) struct GatedLinear {
    kernels: &'static Kernels,
    weights: Weights,
    gate: After,
    value: After,
}

impl GatedLinear {
    pub fn new(
        graph: &Graph,
        kernels: &'static Kernels,
        weight: ParamId,
        bias: Option<ParamId>,
        act: Act,
    ) -> GatedLinear {
        let k = graph.param(weight).shape[0] / 2;
        let row = |filter, part| part * k + filter;
        let weights = Weights::pack_parts(kernels, halves(graph, weight), [k, 2], row);
        let bias = vector(graph, bias, 2 * k, 0.0);
        let after = |bias: &[f32], act| After { scale: vec![1.0; k], bias: bias.to_vec(), act };
        let (gate, value) = (after(&bias[..k], act), after(&bias[k..], Act::None));
        GatedLinear { kernels, weights, gate, value }
    }
}

impl Layer for GatedLinear {
    fn run(&self, site: &Site<'_>) {
        let x = site.inputs[0];
        let cut = self.weights.cut(site.sink.positions(), site.on.team.threads());
        site.sink.fill_tasks(&site.on, &cut, |part, scratch| {
            let (first, columns) = (part.positions.start, part.channels.clone());
            let (block, rows) = (&mut scratch.block, part.positions.len());
            self.weights.multiply(block, rows, columns.clone(), |row, depths, to| {
                self.kernels.take(x.at(first + row, depths), to)
            });
            let (mut gate, mut value) = ([0.0; MAX_COLUMNS], [0.0; MAX_COLUMNS]);
            let (gate, value) = (&mut gate[..columns.len()], &mut value[..columns.len()]);
            for row in 0..rows {
                self.weights.part(block, row, 0, gate);
                self.weights.part(block, row, 1, value);
                self.kernels.finish(gate, &self.gate.finish(&columns, None));
                self.kernels.finish(value, &self.value.finish(&columns, None));
                value.iter_mut().zip(&*gate).for_each(|(v, g)| *v *= g);
                part.put(first + row, columns.start, value);
            }
        });
    }
}

/// A transposed convolution of a `2 x 2` kernel at stride 2: each input position becomes four
/// output positions, each by a product of its own.
pub(super) struct ConvTranspose2x2 {
    kernels: &'static Kernels,
    weights: Weights,
    after: After,
    /// Columns of the input map.
    width: usize,
}

impl ConvTranspose2x2 {
    pub fn new(
        graph: &Graph,
        step: &Step,
        kernels: &'static Kernels,
        weight: ParamId,
        epilogue: &Epilogue,
    ) -> ConvTranspose2x2 {
        let Shape::Map { w: width, .. } = graph.shape(step.inputs[0]) else {
            unreachable!("inferred as a map")
        };
        let k = graph.param(weight).shape[0];
        let row = |filter, tap| filter * 4 + tap;
        let weights = Weights::pack_parts(kernels, halves(graph, weight), [k, 4], row);
        ConvTranspose2x2 { kernels, weights, after: After::new(graph, epilogue, k), width }
    }
}

impl Layer for ConvTranspose2x2 {
    fn run(&self, site: &Site<'_>) {
        let (x, w) = (site.inputs[0], self.width);
        let [rows, columns] = self.weights.cut(x.positions(), site.on.team.threads()).largest();
        // Whole lines of the input, for a line of it fills two lines of the output.
        let lines = (MAX_ROWS / w).max(1);
        site.sink.fill(&site.on, [4 * w * lines, columns], |part, scratch| {
            let columns = part.channels.clone();
            let block = &mut scratch.block;
            let (mut value, mut added) = ([0.0; MAX_COLUMNS], [0.0; MAX_COLUMNS]);
            let (value, added) = (&mut value[..columns.len()], &mut added[..columns.len()]);
            let positions = part.positions.start / 4..part.positions.end / 4;
            for first in positions.clone().step_by(rows) {
                let rows = rows.min(positions.end - first);
                self.weights.multiply(block, rows, columns.clone(), |row, depths, to| {
                    self.kernels.take(x.at(first + row, depths), to)
                });
                for (row, tap) in (0..rows).flat_map(|row| (0..4).map(move |tap| (row, tap))) {
                    // Lines are counted through all maps.
                    let (line, column) = ((first + row) / w, (first + row) % w);
                    let to = (2 * line + tap / 2) * 2 * w + 2 * column + tap % 2;
                    self.weights.part(block, row, tap, value);
                    let residual = site.residual.map(|r| {
                        self.kernels.widen(r.at(to, columns.clone()), added);
                        &*added
                    });
                    self.kernels.finish(value, &self.after.finish(&columns, residual));
                    part.put(to, columns.start, value);
                }
            }
        });
    }
}
