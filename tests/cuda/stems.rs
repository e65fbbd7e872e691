//! First convolutions and what follows them in one launch: the same bits as apart, and those of the
//! reference within the bound. Maps that a block covers in part, whole and several times, with odd
//! sides; fewer channels and filters than a tile has room for.

use super::cases::{Case, Numbers, Values};
use super::fusions::apart;
use super::{backend, bits, disagreement, run, stored};
use half::f16;
use histokern::Result;
use histokern::backend::Backend;
use histokern::backend::check::run_once;
use histokern::graph::{Act, Epilogue, Graph, Input, Op, ParamId, Shape, TensorId, Window};
use std::sync::Arc;

/// A graph in the making, with seeded parameters.
struct Maker {
    graph: Graph,
    numbers: Numbers,
    state: u64,
}

impl Maker {
    fn new(name: &str, numbers: Numbers) -> Maker {
        let state = name.bytes().fold(11, |h: u64, b| h.wrapping_mul(131).wrapping_add(b.into()));
        Maker { graph: Graph::new(name), numbers, state }
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

    fn vector(&mut self, n: usize, value: impl Fn(&mut Maker) -> f32) -> ParamId {
        let data = (0..n).map(|_| value(self)).collect();
        self.graph.param_f32("vector", &[n], data).unwrap()
    }

    /// A convolution to `k` channels with scale, bias and ReLU. Whole numbers stay small enough for
    /// the sums of a second one to be exact.
    fn conv(&mut self, x: TensorId, k: usize, window: Window) -> TensorId {
        let c = self.graph.shape(x).channels();
        let [r, s] = window.kernel;
        let depth = r * s * c;
        let gain = match self.numbers {
            Numbers::Integer => 1.0,
            Numbers::General => 2.0 / (depth as f32).sqrt(),
        };
        let data = (0..k * depth).map(|_| f16::from_f32(self.value(2.0) * gain)).collect();
        let weight = self.graph.param_f16("weight", &[k, r, s, c], data).unwrap();
        let whole = self.numbers == Numbers::Integer;
        let power = if depth > 100 { 1.0 / 32.0 } else { 0.5 };
        let scale = |m: &mut Maker| if whole { power } else { m.uniform() * 0.5 + 1.0 };
        let epilogue = Epilogue {
            scale: Some(self.vector(k, scale)),
            bias: Some(self.vector(k, |m| m.value(3.0))),
            residual: None,
            act: Act::Relu,
        };
        self.graph.push(Op::Conv2d { weight, window, epilogue }, &[x]).unwrap()
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
fn stem(n: Numbers, [h, w, c, k]: [usize; 4], pad: usize, ceil_mode: bool, rows: usize) -> Case {
    let name = format!("stem of {h}x{w}x{c} to {k}, pool pad {pad}, ceil {ceil_mode}");
    let mut m = Maker::new(&name, n);
    let x = m.graph.input(Shape::Map { h, w, c });
    let between = m.conv(x, k, Window::square(7, 2, 3));
    let y = m.pool(between, Window::square(3, 2, pad), ceil_mode);
    m.done(y, rows)
}

/// Two 3 x 3 convolutions and a 2 x 2 max pool, or a copy of what nobody rounds.
fn pair(n: Numbers, [h, w, c, j, k]: [usize; 5], pool: bool, rows: usize) -> Case {
    let name = format!("stem pair of {h}x{w}x{c} to {j} to {k}, pool {pool}");
    let mut m = Maker::new(&name, n);
    let x = m.graph.input(Shape::Map { h, w, c });
    let first = m.conv(x, j, Window::square(3, 1, 1));
    let second = m.conv(first, k, Window::square(3, 1, 1));
    let y = match pool {
        true => m.pool(second, Window::square(2, 2, 0), false),
        false => m.graph.push(Op::Copy, &[second]).unwrap(),
    };
    m.done(y, rows)
}

/// Every case of the 7 x 7 kernel.
pub fn stems(n: Numbers) -> Vec<Case> {
    vec![
        stem(n, [5, 35, 4, 20], 1, true, 1),
        stem(n, [33, 35, 3, 64], 1, false, 1),
        stem(n, [17, 6, 8, 3], 0, true, 2),
    ]
}

/// Every case of the kernel of two 3 x 3 convolutions.
pub fn pairs(n: Numbers) -> Vec<Case> {
    vec![
        pair(n, [5, 18, 3, 20, 33], false, 1),
        pair(n, [19, 18, 3, 64, 64], true, 1),
        pair(n, [7, 9, 1, 8, 64], true, 2),
    ]
}

fn all(n: Numbers) -> Vec<Case> {
    [stems(n), pairs(n)].concat()
}

#[test]
fn stems_agree_with_the_reference() {
    let Some(backend) = backend() else { return };
    for numbers in [Numbers::Integer, Numbers::General] {
        for case in all(numbers) {
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
    for case in all(Numbers::General) {
        let inputs = case.inputs(Numbers::General, 0, case.rows);
        let joined = run(&backend, &case, Numbers::General, 0, case.rows).unwrap();
        let whole = on_its_own(&backend, &case, &Values::view(&inputs)).unwrap();
        assert!(bits(&joined) == bits(&whole), "{}: other bits than apart", case.name);
        // A row alone.
        let last = run(&backend, &case, Numbers::General, case.rows - 1, 1).unwrap();
        let rows = &bits(&joined)[0];
        assert!(rows.ends_with(&bits(&last)[0]), "{}: other bits alone", case.name);
    }
}

/// Infinity, what overflows FP16, NaN and its neighbours: nothing of a neighbour's window, of padding or
/// of channels there are not may come in.
#[test]
fn stems_keep_what_is_no_number() {
    let Some(backend) = backend() else { return };
    for case in
        [stem(Numbers::General, [18, 20, 3, 8], 1, false, 1), pairs(Numbers::General).remove(0)]
    {
        let length = case.graph.shape(case.graph.inputs[0]).len();
        let mut values: Vec<f32> = (0..length * case.rows).map(|i| (i % 7) as f32 - 3.0).collect();
        for (at, value) in [(2, f32::INFINITY), (length / 2, f32::NAN), (length - 1, 60000.0)] {
            values[at] = value;
        }
        let inputs = [Input::Values(&values)];
        let joined = run_once(&backend, &case.graph, case.rows, &inputs).unwrap();
        let whole = on_its_own(&backend, &case, &inputs).unwrap();
        let nans = joined[0].iter().filter(|v| v.is_nan()).count();
        assert!(nans > 0 && nans < joined[0].len(), "{}: {nans} are no number", case.name);
        assert!(bits(&joined) == bits(&whole), "{}: other bits than apart", case.name);
    }
}

/// The result of a case whose steps are launches of their own.
fn on_its_own(on: &dyn Backend, case: &Case, inputs: &[Input<'_>]) -> Result<Vec<Vec<f32>>> {
    let mut outputs = run_once(on, &apart(case).graph, case.rows, inputs)?;
    outputs.truncate(1);
    Ok(outputs)
}
