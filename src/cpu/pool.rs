//! Pooling over windows and over adaptive regions: one rectangle of the input for each output.

use super::layer::{Layer, Site};
use super::memory::View;
use super::stored::Stored;
use super::{pairs, vector};
use crate::graph::{self, Graph, Op, Shape, Step};

/// Channels to a task.
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
        let windowed =
            |window: graph::Window| [windows(window, 0, h, oh), windows(window, 1, w, ow)];
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
fn windows(window: graph::Window, axis: usize, n: usize, outputs: usize) -> Vec<Span> {
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

impl Pool {
    /// The taps of the window of an output position, in order of their positions.
    fn taps(&self, position: usize) -> Taps {
        let [rows, columns] = [self.spans[0].len(), self.spans[1].len()];
        let down = self.spans[0][position / columns % rows];
        let image = position / (rows * columns) * self.area;
        Taps { down, across: self.spans[1][position % columns], image, width: self.width }
    }
}

impl Layer for Pool {
    fn run(&self, site: &Site<'_>) {
        let (x, kernels) = (site.inputs[0], site.on.kernels);
        let columns = self.spans[1].len();
        site.sink.fill(&site.on, [columns.max(16), CHANNELS], |part, _| {
            let channels = part.channels.clone();
            let mut value = [0.0; CHANNELS];
            let value = &mut value[..channels.len()];
            for position in part.positions.clone() {
                let taps = self.taps(position);
                let window = Window { x: &x, taps, first: channels.start, reduce: self.reduce };
                kernels.reduce(&window, value);
                if let Reduce::Mean(taps) = self.reduce {
                    let count = taps.unwrap_or(window.taps.count()) as f32;
                    value.iter_mut().for_each(|v| *v /= count);
                }
                part.put(position, channels.start, value);
            }
        });
    }
}

/// Positions of the input that become one of the output.
#[derive(Clone, Copy)]
struct Taps {
    down: Span,
    across: Span,
    /// The first position of the map.
    image: usize,
    width: usize,
}

impl Taps {
    fn count(&self) -> usize {
        self.down.count * self.across.count
    }
}

/// What is reduced to some channels, from `first` on, of an output position.
pub(super) struct Window<'a> {
    x: &'a View,
    taps: Taps,
    first: usize,
    reduce: Reduce,
}

/// Channels that stay in registers while all taps pass by.
const RUN: usize = 64;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn reduce_avx512(window: &Window<'_>, to: &mut [f32]) {
    reduce_all(window, to, &|from, to| match from {
        Stored::F16(from) => vector::x86::widen_avx512(from, to),
        Stored::Bf16(from) => pairs::widen(from, to),
        Stored::F32(from) => to.copy_from_slice(from),
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn reduce_avx2(window: &Window<'_>, to: &mut [f32]) {
    reduce_all(window, to, &|from, to| match from {
        Stored::F16(from) => vector::x86::widen_avx2(from, to),
        Stored::Bf16(from) => pairs::widen(from, to),
        Stored::F32(from) => to.copy_from_slice(from),
    });
}

pub(super) fn reduce_portable(window: &Window<'_>, to: &mut [f32]) {
    reduce_all(window, to, &|from, to| match from {
        Stored::F16(from) => vector::widen_half(from, to),
        Stored::Bf16(from) => pairs::widen(from, to),
        Stored::F32(from) => to.copy_from_slice(from),
    });
}

/// Largest numbers, or sums, of each channel over all taps in order. Plain code: compiled once for each
/// instruction set.
#[inline(always)]
fn reduce_all(window: &Window<'_>, to: &mut [f32], widen: &impl Fn(Stored<'_>, &mut [f32])) {
    let (whole, rest) = to.as_chunks_mut::<RUN>();
    let first_of_rest = window.first + whole.len() * RUN;
    for (first, to) in (window.first..).step_by(RUN).zip(whole) {
        reduce_run(window, first, to, widen);
    }
    if !rest.is_empty() {
        reduce_run(window, first_of_rest, rest, widen);
    }
}

/// Some channels, at most [`RUN`].
#[inline(always)]
fn reduce_run(
    window: &Window<'_>,
    first: usize,
    to: &mut [f32],
    widen: &impl Fn(Stored<'_>, &mut [f32]),
) {
    let Taps { down, across, image, width } = window.taps;
    let is_max = matches!(window.reduce, Reduce::Max);
    let mut values = [if is_max { f32::NEG_INFINITY } else { 0.0 }; RUN];
    for i in 0..down.count {
        let line = image + (down.start + i * down.step) * width + across.start;
        for j in 0..across.count {
            let mut tap = [0.0; RUN];
            let from = window.x.at(line + j * across.step, first..first + to.len());
            widen(from, &mut tap[..to.len()]);
            match is_max {
                true => maximum(&mut values, &tap),
                false => values.iter_mut().zip(&tap).for_each(|(v, t)| *v += t),
            }
        }
    }
    to.copy_from_slice(&values[..to.len()]);
}

/// `value = max(value, tap)`; a NaN stays.
#[inline(always)]
pub(super) fn maximum(value: &mut [f32], tap: &[f32]) {
    for (v, &t) in value.iter_mut().zip(tap) {
        *v = if t > *v || t.is_nan() { t } else { *v };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::check::run_once;
    use crate::backend::{Input, Precision};
    use crate::cpu::{CpuBackend, Isa};
    use std::sync::Arc;

    /// More channels than registers hold and a rest; one position is not a number.
    #[test]
    fn the_largest_of_a_window_and_what_is_not_a_number() {
        let (h, w, c) = (7, 6, 150);
        let mut g = Graph::new("pool");
        let x = g.input(Shape::Map { h, w, c });
        let window = graph::Window::square(3, 2, 1);
        let y = g.push(Op::MaxPool { window, ceil_mode: false }, &[x]).unwrap();
        g.output(y);
        let mut numbers: Vec<f32> = (0..h * w * c).map(|i| (i * 37 % 101) as f32 - 70.0).collect();
        numbers[(2 * w + 3) * c..][..c].fill(f32::NAN);
        let (g, columns) = (Arc::new(g), 3);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for precision in Precision::ALL {
                let on = CpuBackend::new(2, Some(isa)).unwrap().with_precision(precision).unwrap();
                let got = run_once(&on, &g, 1, &[Input::Values(&numbers)]).unwrap().remove(0);
                for (i, got) in got.into_iter().enumerate() {
                    let (p, q, channel) = (i / c / columns, i / c % columns, i % c);
                    let taps = (0..9).filter_map(|tap| {
                        let y = (2 * p + tap / 3).checked_sub(1).filter(|&y| y < h)?;
                        let x = (2 * q + tap % 3).checked_sub(1).filter(|&x| x < w)?;
                        Some(numbers[(y * w + x) * c + channel])
                    });
                    let want =
                        taps.reduce(|a, b| if a.is_nan() || a >= b { a } else { b }).unwrap();
                    let same = got == want || got.is_nan() && want.is_nan();
                    assert!(same, "{isa} {precision}: {got} at {i} is not {want}");
                }
            }
        }
    }
}
