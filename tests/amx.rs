//! Products on tile registers: their own bits, every op, and a network. Without a processor that has them
//! `amx/sim.rs` carries out the instructions one by one, so that the program's own machine code runs.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

#[path = "amx/sim.rs"]
mod sim;

use half::{bf16, f16};
use histokern::backend::cases::{self, Case, Numbers, Values};
use histokern::backend::check::{Deviation, run_once};
use histokern::backend::{Backend, Input, Precision};
use histokern::cpu::{CpuBackend, Isa};
use histokern::graph::{Epilogue, Graph, Op, Shape, Step, reference};
use std::sync::{Arc, Once};

/// A backend on tile registers, real or not; `None` where the vector unit lacks what goes with them.
fn amx(threads: usize, precision: Precision) -> Option<CpuBackend> {
    static READY: Once = Once::new();
    READY.call_once(|| {
        if !Isa::Amx.is_available() {
            sim::install();
            // SAFETY: the handler carries them out, in every thread.
            unsafe { Isa::assume_amx() };
        }
    });
    if !Isa::Amx.is_available() {
        eprintln!("skipped: this processor has no AVX512-BF16");
        return None;
    }
    let backend = CpuBackend::new(threads, Some(Isa::Amx)).unwrap();
    Some(backend.with_precision(precision).unwrap())
}

fn run(on: &CpuBackend, case: &Case, numbers: Numbers, first: usize, rows: usize) -> Vec<Vec<f32>> {
    let inputs = case.inputs(numbers, first, rows);
    run_once(on, &case.graph, rows, &Values::view(&inputs)).unwrap()
}

fn bits(outputs: &[Vec<f32>]) -> Vec<Vec<u32>> {
    outputs.iter().map(|o| o.iter().map(|x| x.to_bits()).collect()).collect()
}

const PRECISIONS: [Precision; 2] = [Precision::F16, Precision::Bf16];

/// TDPBF16PS for one sum: its 32 products in two chains.
fn product(sum: f32, x: &[f32], w: &[f32]) -> f32 {
    let chain = |odd: usize| {
        let links = x.iter().zip(w).skip(odd).step_by(2);
        links.fold(0f32, |sum, (&x, &w)| x.mul_add(w, sum))
    };
    sum + (chain(0) + chain(1))
}

fn near(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// A linear layer whose output is given in f32, of numbers that leave something to round.
#[test]
fn sums_have_the_bits_of_the_definition() {
    // Depths and widths beyond a step, a panel, a part of the reduction, and short of them.
    for (depth, filters, rows) in
        [(1, 1, 1), (33, 40, 17), (64, 32, 50), (900, 300, 130), (27, 64, 40)]
    {
        let number = |i: usize| f16::from_f32(((i * 7919 % 2003) as f32 - 1000.0) / 777.0);
        let weights: Vec<f16> = (0..filters * depth).map(|i| number(3 * i + 1)).collect();
        let inputs: Vec<f32> = (0..rows * depth).map(|i| number(5 * i + 2).to_f32()).collect();
        let mut graph = Graph::new("linear");
        let x = graph.input(Shape::Tokens { t: 1, c: depth });
        let weight = graph.param_f16("w", &[filters, depth], weights.clone()).unwrap();
        let y = graph.push(Op::Linear { weight, epilogue: Epilogue::default() }, &[x]).unwrap();
        graph.output(y);
        let graph = Arc::new(graph);
        for precision in PRECISIONS {
            let Some(on) = amx(2, precision) else { return };
            let got = run_once(&on, &graph, rows, &[Input::Values(&inputs)]).unwrap().remove(0);
            let step = |sum: f32, x: &[f32], w: &[f32]| {
                let apart = |v: &[f32]| -> [Vec<f32>; 2] {
                    [v.iter().map(|&v| near(v)).collect(), v.iter().map(|&v| v - near(v)).collect()]
                };
                let ([x, rest_x], [w, rest_w]) = (apart(x), apart(w));
                match precision {
                    Precision::Bf16 => product(sum, &x, &w),
                    _ => product(product(product(sum, &rest_x, &w), &x, &w), &x, &rest_w),
                }
            };
            for (i, x) in inputs.chunks(depth).enumerate() {
                for (j, w) in weights.chunks(depth).enumerate() {
                    let w: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
                    let steps = x.chunks(32).zip(w.chunks(32));
                    let want = steps.fold(0f32, |sum, (x, w)| step(sum, x, w));
                    let got = got[i * filters + j];
                    let what = format!("{depth} x {filters} in {precision}: row {i}, column {j}");
                    assert_eq!(got.to_bits(), want.to_bits(), "{what}: {got} for {want}");
                }
            }
        }
    }
}

#[test]
fn integers_are_exact() {
    for case in cases::all(Numbers::Integer).unwrap().iter().filter(|c| c.is_exact()) {
        let Some(on) = amx(2, Precision::F16) else { return };
        let inputs = case.inputs(Numbers::Integer, 0, case.rows);
        let want = reference::run(
            &case.graph,
            case.rows,
            &Values::view(&inputs),
            reference::Rounding::F16,
        );
        let got = run(&on, case, Numbers::Integer, 0, case.rows);
        assert!(got == want.unwrap(), "{} on {}", case.name, on.name());
    }
}

#[test]
fn general_numbers_agree_with_the_reference() {
    let mut worst = [0f64; 2];
    for case in cases::all(Numbers::General).unwrap() {
        for (precision, worst) in PRECISIONS.into_iter().zip(&mut worst) {
            let Some(on) = amx(2, precision) else { return };
            let inputs = case.inputs(Numbers::General, 0, case.rows);
            let inputs = Values::view(&inputs);
            let want =
                reference::run(&case.graph, case.rows, &inputs, precision.rounding()).unwrap();
            let got = run(&on, &case, Numbers::General, 0, case.rows);
            let bound = match (precision, &case.graph.steps[..]) {
                // As in `ops`.
                (Precision::Bf16, [Step { op: Op::Attention { .. }, inputs, .. }]) => {
                    if case.graph.shape(inputs[0]).pixels() > 288 { 2e-3 } else { 1e-4 }
                }
                (_, [_]) => 2e-6,
                (Precision::F16, _) => 5e-4,
                _ => 4e-3,
            };
            let bound = bound + 2.0 * on.product_error();
            for (got, want) in got.iter().zip(&want) {
                let deviation = Deviation::between(got, want).unwrap();
                assert!(deviation.within(bound), "{} in {precision}: {deviation}", case.name);
                if case.graph.steps.len() == 1 {
                    *worst = worst.max(deviation.relative_l2);
                }
            }
        }
    }
    eprintln!("single steps are at most {:.1e} apart in fp16, {:.1e} in bf16", worst[0], worst[1]);
}

#[test]
fn the_same_bits_for_every_batch_and_number_of_threads() {
    for case in cases::all(Numbers::General).unwrap() {
        for precision in PRECISIONS {
            let Some(on) = amx(1, precision) else { return };
            let independent = case.rows_are_independent();
            let rows = if independent { 9 } else { case.rows };
            let whole = bits(&run(&on, &case, Numbers::General, 0, rows));
            let some = if independent { vec![(0, rows), (3, 1), (2, 5)] } else { vec![(0, rows)] };
            for (threads, (first, count)) in [2, 3].into_iter().zip(some) {
                let Some(on) = amx(threads, precision) else { return };
                let part = bits(&run(&on, &case, Numbers::General, first, count));
                for (whole, part) in whole.iter().zip(&part) {
                    let row = part.len() / count;
                    let at = if independent { first * row } else { 0 };
                    assert!(whole[at..][..part.len()] == part[..], "{} in {precision}", case.name);
                }
            }
        }
    }
}

/// What overflowed FP16 does not become a number again.
#[test]
fn infinities_stay_what_is_not_a_number() {
    let mut graph = Graph::new("linear");
    let x = graph.input(Shape::Tokens { t: 1, c: 40 });
    let weight = graph.param_f16("w", &[33, 40], vec![f16::ONE; 33 * 40]).unwrap();
    let y = graph.push(Op::Linear { weight, epilogue: Epilogue::default() }, &[x]).unwrap();
    graph.output(y);
    let mut input = [1.0; 40];
    input[37] = f32::INFINITY;
    for precision in PRECISIONS {
        let Some(on) = amx(1, precision) else { return };
        let graph = Arc::new(graph.clone());
        let got = run_once(&on, &graph, 1, &[Input::Values(&input)]).unwrap().remove(0);
        assert!(got.iter().all(|y| !y.is_finite()), "{precision}: {got:?}");
    }
}

#[test]
fn names_say_what_multiplies() {
    let Some(on) = amx(1, Precision::F16) else { return };
    assert_eq!(on.name(), "cpu (amx, 1 thread)");
    assert!(!on.transforms_convolutions());
    assert_eq!(amx(1, Precision::Bf16).unwrap().name(), "cpu (amx bf16, 1 thread)");
    // Tile registers do not multiply f32.
    assert_eq!(amx(1, Precision::F32).unwrap().name(), "cpu (avx512 f32, 1 thread)");
}
