//! First convolutions and what follows them in one launch: the same bits as apart, and those of the
//! reference within the bound. Maps that a block covers in part, whole and several times, with odd
//! sides; fewer channels and filters than a tile has room for.

use super::cases::{Case, Numbers, Values};
use super::fusions::apart;
use super::{backend, bits, disagreement, stored};
use half::f16;
use histokern::Result;
use histokern::backend::Backend;
use histokern::backend::check::run_once;
use histokern::graph::{Act, Epilogue, Graph, Input, Op, Shape, TensorId, Window};
use std::sync::Arc;

/// A graph in the making, with seeded parameters.
struct Maker {
    graph: Graph,
    numbers: Numbers,
    /// What every input is offset by, which the first bias takes back: sums are long and their
    /// results short, so that another order of a sum shows through the rounding to FP16.
    offset: f32,
    state: u64,
}

impl Maker {
    fn new(name: &str, numbers: Numbers, offset: f32) -> Maker {
        let state = name.bytes().fold(11, |h: u64, b| h.wrapping_mul(131).wrapping_add(b.into()));
        Maker { graph: Graph::new(name), numbers, offset, state }
    }

    /// Within [-1, 1).
    fn uniform(&mut self) -> f32 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// A whole number from -`most` to `most`, or one within [-1, 1).
    fn value(&mut self, most: f32) -> f32 {
        let uniform = self.uniform();
        match self.numbers {
            Numbers::Integer => (uniform * (most + 1.0)).trunc(),
            Numbers::General => uniform,
        }
    }

    /// A convolution to `k` channels with scale, bias and ReLU. Whole numbers stay small enough for
    /// the sums of a second one to be exact.
    fn conv(&mut self, x: TensorId, k: usize, window: Window) -> TensorId {
        let c = self.graph.shape(x).channels();
        let [r, s] = window.kernel;
        let depth = r * s * c;
        let whole = self.numbers == Numbers::Integer;
        let gain = if whole { 1.0 } else { 2.0 / (depth as f32).sqrt() };
        let power = if depth > 100 { 1.0 / 32.0 } else { 0.5 };
        let offset = if self.graph.inputs.contains(&x) { self.offset } else { 0.0 };
        let (mut weights, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..k {
            let filter: Vec<f16> =
                (0..depth).map(|_| f16::from_f32(self.value(2.0) * gain)).collect();
            let scale = if whole { power } else { self.uniform() * 0.5 + 1.0 };
            let total: f32 = filter.iter().map(|w| w.to_f32()).sum();
            biases.push(self.value(3.0) - offset * scale * total);
            scales.push(scale);
            weights.extend(filter);
        }
        let graph = &mut self.graph;
        let weight = graph.param_f16("weight", &[k, r, s, c], weights).unwrap();
        let epilogue = Epilogue {
            scale: Some(graph.param_f32("scale", &[k], scales).unwrap()),
            bias: Some(graph.param_f32("bias", &[k], biases).unwrap()),
            residual: None,
            act: Act::Relu,
        };
        graph.push(Op::Conv2d { weight, window, epilogue }, &[x]).unwrap()
    }

    fn pool(&mut self, x: TensorId, window: Window, ceil_mode: bool) -> TensorId {
        self.graph.push(Op::MaxPool { window, ceil_mode }, &[x]).unwrap()
    }

    fn done(mut self, output: TensorId, rows: usize) -> Case {
        self.graph.output(output);
        Case { name: self.graph.name.clone(), graph: Arc::new(self.graph), rows }
    }
}

/// A 7 x 7 convolution and an overlapping max pool.
fn stem(mut m: Maker, [h, w, c, k]: [usize; 4], pad: usize, ceil_mode: bool, rows: usize) -> Case {
    let x = m.graph.input(Shape::Map { h, w, c });
    let between = m.conv(x, k, Window::square(7, 2, 3));
    let y = m.pool(between, Window::square(3, 2, pad), ceil_mode);
    m.done(y, rows)
}

/// Two 3 x 3 convolutions and a 2 x 2 max pool, or a copy of what nobody rounds.
fn pair(mut m: Maker, [h, w, c, j, k]: [usize; 5], pool: bool, rows: usize) -> Case {
    let x = m.graph.input(Shape::Map { h, w, c });
    let first = m.conv(x, j, Window::square(3, 1, 1));
    let second = m.conv(first, k, Window::square(3, 1, 1));
    let y = match pool {
        true => m.pool(second, Window::square(2, 2, 0), false),
        false => m.graph.push(Op::Copy, &[second]).unwrap(),
    };
    m.done(y, rows)
}

/// Every case of the 7 x 7 kernel, of inputs around `offset`.
pub fn stems(n: Numbers, offset: f32) -> Vec<Case> {
    let make = |name: &str| Maker::new(&format!("stem, {name}"), n, offset);
    vec![
        stem(make("windows over the edge"), [5, 35, 4, 20], 1, true, 1),
        stem(make("four blocks"), [33, 35, 3, 64], 1, false, 1),
        stem(make("a pool without padding"), [17, 6, 8, 3], 0, true, 2),
    ]
}

/// Every case of the kernel of two 3 x 3 convolutions, likewise.
pub fn pairs(n: Numbers, offset: f32) -> Vec<Case> {
    let make = |name: &str| Maker::new(&format!("stem pair, {name}"), n, offset);
    vec![
        pair(make("without a pool"), [5, 18, 3, 20, 33], false, 1),
        pair(make("four blocks"), [19, 18, 3, 64, 64], true, 1),
        pair(make("one channel"), [7, 9, 1, 8, 64], true, 2),
    ]
}

fn all(n: Numbers, offset: f32) -> Vec<Case> {
    [stems(n, offset), pairs(n, offset)].concat()
}

#[test]
fn stems_agree_with_the_reference() {
    let Some(backend) = backend() else { return };
    for numbers in [Numbers::Integer, Numbers::General] {
        for case in all(numbers, 0.0) {
            for case in [stored(&case), case] {
                let found = disagreement(&backend, &case, numbers).unwrap();
                assert_eq!(found, None, "{}", case.name);
            }
        }
    }
}

#[test]
fn stems_keep_every_bit() {
    let Some(backend) = backend() else { return };
    let offset = 100.0;
    for case in all(Numbers::General, offset) {
        let mut inputs = case.inputs(Numbers::General, 0, case.rows);
        let Values::F32(values) = &mut inputs[0] else { unreachable!("a map") };
        values.iter_mut().for_each(|v| *v += offset);
        let row = values.len() / case.rows;
        let last = [Input::Values(&values[values.len() - row..])];
        let last = run_once(&backend, &case.graph, 1, &last).unwrap();
        let inputs = Values::view(&inputs);
        let joined = run_once(&backend, &case.graph, case.rows, &inputs).unwrap();
        let whole = on_its_own(&backend, &case, &inputs).unwrap();
        assert!(bits(&joined) == bits(&whole), "{}: other bits than apart", case.name);
        assert!(bits(&joined)[0].ends_with(&bits(&last)[0]), "{}: other bits alone", case.name);
    }
}

/// Infinities, what overflows FP16 in a sum, NaN: nothing of padding or of columns that fill a slice may
/// come in, where zero times infinity is no number.
#[test]
fn stems_keep_what_is_no_number() {
    let Some(backend) = backend() else { return };
    let numbers = Numbers::General;
    for case in [stems(numbers, 0.0).remove(1), pairs(numbers, 0.0).remove(0)] {
        let Shape::Map { h, w, c } = case.graph.shape(case.graph.inputs[0]) else { continue };
        let mut values: Vec<f32> = (0..h * w * c).map(|i| (i % 7) as f32 - 3.0).collect();
        for ([y, x], value) in [
            ([1, 1], f32::INFINITY),
            ([1, 7], 60000.0),
            ([2, 13], f32::NEG_INFINITY),
            ([h - 2, 3], f32::NAN),
        ] {
            values[(y * w + x) * c] = value;
        }
        let inputs = [Input::Values(&values)];
        let joined = run_once(&backend, &case.graph, 1, &inputs).unwrap();
        let whole = on_its_own(&backend, &case, &inputs).unwrap();
        let count = |is: fn(f32) -> bool| joined[0].iter().filter(|&&v| is(v)).count();
        for kind in [f32::is_nan, f32::is_finite] {
            assert!(count(kind) > 0, "{}: too few kinds of numbers", case.name);
        }
        assert!(bits(&joined) == bits(&whole), "{}: other bits than apart", case.name);
    }
}

/// The result of a case whose steps are launches of their own.
fn on_its_own(on: &dyn Backend, case: &Case, inputs: &[Input<'_>]) -> Result<Vec<Vec<f32>>> {
    let mut outputs = run_once(on, &apart(case).graph, case.rows, inputs)?;
    outputs.truncate(1);
    Ok(outputs)
}
