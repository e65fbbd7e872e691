//! Pooling over windows and over adaptive regions: one rectangle of the input for each output.

use super::layer::{Layer, Site};
use crate::graph::{Graph, Op, Shape, Step, Window};

/// Channels reduced at a time.
const CHANNELS: usize = 256;

/// Coordinates `start, start + step, ..` along one axis, `count` of them.
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    step: usize,
    count: usize,
}

#[derive(Clone, Copy)]
enum Reduce {
    Max,
    /// The sum over this many values, or over those on the map.
    Mean(Option<usize>),
}

/// A pooling layer.
pub(super) struct Pool {
    reduce: Reduce,
    /// By output row and by output column.
    spans: [Vec<Span>; 2],
    /// Columns and positions of an input map.
    width: usize,
    area: usize,
}

impl Pool {
    pub fn new(graph: &Graph, step: &Step) -> Pool {
        let (Shape::Map { h, w, .. }, Shape::Map { h: oh, w: ow, .. }) =
            (graph.shape(step.inputs[0]), graph.shape(step.output))
        else {
            unreachable!("pooling maps to maps")
        };
        let windowed = |window: Window| [windows(window, 0, h, oh), windows(window, 1, w, ow)];
        let (reduce, spans) = match step.op {
            Op::MaxPool { window, .. } => (Reduce::Max, windowed(window)),
            Op::AvgPool { window, count_include_pad } => {
                let taps = window.kernel[0] * window.kernel[1];
                (Reduce::Mean(count_include_pad.then_some(taps)), windowed(window))
            }
            Op::AdaptiveAvgPool { .. } => (Reduce::Mean(None), [regions(h, oh), regions(w, ow)]),
            _ => unreachable!("only pooling comes here"),
        };
        Pool { reduce, spans, width: w, area: h * w }
    }
}

/// The taps of each window that lie on the map.
fn windows(window: Window, axis: usize, n: usize, outputs: usize) -> Vec<Span> {
    let (pad, step) = (window.pad[axis], window.dilation[axis]);
    let span = |o: usize| {
        let tap = |i: usize| (o * window.stride[axis] + i * step).checked_sub(pad);
        let mut inside = (0..window.kernel[axis]).filter_map(tap).filter(|&i| i < n);
        Span { start: inside.clone().next().unwrap_or(0), step, count: inside.by_ref().count() }
    };
    (0..outputs).map(span).collect()
}

/// Output `i` of `outputs` covers `floor(i n / outputs) .. ceil((i + 1) n / outputs)`.
fn regions(n: usize, outputs: usize) -> Vec<Span> {
    let span = |i: usize| {
        let start = i * n / outputs;
        Span { start, step: 1, count: ((i + 1) * n).div_ceil(outputs) - start }
    };
    (0..outputs).map(span).collect()
}

impl Layer for Pool {
    fn run(&self, site: &Site<'_>) {
        let x = site.inputs[0];
        let [rows, columns] = [self.spans[0].len(), self.spans[1].len()];
        site.sink.fill(&site.on, [columns.max(16), CHANNELS], |part, _| {
            let channels = part.channels.clone();
            let (mut tap, mut value) = ([0.0; CHANNELS], [0.0; CHANNELS]);
            let (tap, value) = (&mut tap[..channels.len()], &mut value[..channels.len()]);
            for position in part.positions.clone() {
                let (v, h) = (position / columns % rows, position % columns);
                let (v, h) = (self.spans[0][v], self.spans[1][h]);
                let image = position / (rows * columns) * self.area;
                value.fill(if matches!(self.reduce, Reduce::Max) {
                    f32::NEG_INFINITY
                } else {
                    0.0
                });
                for i in 0..v.count * h.count {
                    let (i, j) = (i / h.count, i % h.count);
                    let at = (v.start + i * v.step) * self.width + h.start + j * h.step;
                    site.on.kernels.widen(x.at(image + at, channels.clone()), tap);
                    match self.reduce {
                        Reduce::Max => maximum(value, tap),
                        Reduce::Mean(_) => value.iter_mut().zip(&*tap).for_each(|(v, t)| *v += t),
                    }
                }
                if let Reduce::Mean(taps) = self.reduce {
                    let count = taps.unwrap_or(v.count * h.count) as f32;
                    value.iter_mut().for_each(|v| *v /= count);
                }
                part.put(position, channels.start, value);
            }
        });
    }
}

/// `value = max(value, tap)`; a NaN stays.
pub(super) fn maximum(value: &mut [f32], tap: &[f32]) {
    for (v, &t) in value.iter_mut().zip(tap) {
        *v = if t > *v || t.is_nan() { t } else { *v };
    }
}
