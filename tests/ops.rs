//! Every op on the CPU backend: right against the reference, and the same bits however it is run.

#[path = "ops/golden.rs"]
mod golden;

use histokern::Result;
use histokern::backend::cases::{self, Case, Numbers, Values};
use histokern::backend::check::{Deviation, run_once};
use histokern::backend::{Backend, Input, Precision};
use histokern::cpu::{CpuBackend, Isa};
use histokern::graph::reference::{self, Rounding};
use histokern::graph::{Graph, Op, Shape, Step};
use std::sync::Arc;

fn available() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
}

fn backend(threads: usize, isa: Isa) -> CpuBackend {
    CpuBackend::new(threads, Some(isa)).unwrap()
}

fn with(threads: usize, isa: Isa, precision: Precision) -> CpuBackend {
    backend(threads, isa).with_precision(precision).unwrap()
}

fn run(on: &CpuBackend, case: &Case, numbers: Numbers, first: usize, rows: usize) -> Vec<Vec<f32>> {
    let inputs = case.inputs(numbers, first, rows);
    run_once(on, &case.graph, rows, &Values::view(&inputs)).unwrap()
}

fn oracle(case: &Case, numbers: Numbers, rounding: Rounding) -> Vec<Vec<f32>> {
    let inputs = case.inputs(numbers, 0, case.rows);
    reference::run(&case.graph, case.rows, &Values::view(&inputs), rounding).unwrap()
}

fn bits(outputs: &[Vec<f32>]) -> Vec<Vec<u32>> {
    outputs.iter().map(|o| o.iter().map(|x| x.to_bits()).collect()).collect()
}

fn every_precision() -> impl Iterator<Item = (Case, Precision)> {
    let all = cases::all(Numbers::General).unwrap().into_iter();
    all.flat_map(|case| Precision::ALL.map(|precision| (case.clone(), precision)))
}

#[test]
fn integers_are_exact() {
    let backends: Vec<_> = available().into_iter().map(|isa| backend(2, isa)).collect();
    let direct: Vec<_> = available().into_iter().map(|isa| backend(2, isa).direct()).collect();
    for case in cases::all(Numbers::Integer).unwrap().iter().filter(|c| c.is_exact()) {
        let want = oracle(case, Numbers::Integer, Rounding::F16);
        // Winograd's algorithm divides and multiplies by roots.
        let exact = if case.may_be_transformed() { &direct } else { &backends };
        for backend in exact {
            let got = run(backend, case, Numbers::Integer, 0, case.rows);
            assert!(got == want, "{} on {}", case.name, backend.name());
        }
    }
}

/// The outputs are f32 and the inputs FP16 on both sides, so for one step only the rounding of the
/// sums is left. Where a second step follows, a sum near a tie may be stored as another FP16.
#[test]
fn general_numbers_agree_with_the_reference() {
    // A rounding that falls the other way moves a number by a last place of what is stored.
    let bounds = [(Precision::F16, 5e-4), (Precision::Bf16, 4e-3), (Precision::F32, 2e-6)];
    for ((precision, several), case) in bounds
        .into_iter()
        .flat_map(|b| cases::all(Numbers::General).unwrap().into_iter().map(move |c| (b, c)))
    {
        let want = oracle(&case, Numbers::General, precision.rounding());
        let on = with(2, Isa::detect(), precision);
        let got = run(&on, &case, Numbers::General, 0, case.rows);
        for (got, want) in got.iter().zip(&want) {
            let deviation = Deviation::between(got, want).unwrap();
            let bound = match &case.graph.steps[..] {
                [Step { op: Op::Attention { .. }, inputs, .. }] if precision == Precision::Bf16 => {
                    rounded_weights(case.graph.shape(inputs[0]))
                }
                [_] => 2e-6,
                _ => several,
            };
            let bound = bound + 2.0 * on.product_error();
            assert!(deviation.within(bound), "{} in {precision}: {deviation}", case.name);
        }
    }
}

/// How far attention in bf16 may be off, whose weights are rounded, too: some to the other side, and all
/// of them beside another largest logit where a query does not meet all keys at once.
fn rounded_weights(input: Shape) -> f64 {
    if input.pixels() > 288 { 2e-3 } else { 1e-4 }
}

#[test]
fn the_same_bits_on_every_instruction_set_and_number_of_threads() {
    for (case, precision) in every_precision() {
        let rows = if case.rows_are_independent() { 3 } else { case.rows };
        let on = with(1, Isa::Portable, precision);
        let want = bits(&run(&on, &case, Numbers::General, 4, rows));
        for isa in available().into_iter().filter(|isa| isa.sums_as_others()) {
            // Rows and columns are cut in the same way whatever the numbers.
            let counts: &[usize] = if precision == Precision::F16 { &[1, 2, 5] } else { &[3] };
            for &threads in counts {
                let on = with(threads, isa, precision);
                let got = bits(&run(&on, &case, Numbers::General, 4, rows));
                assert!(got == want, "{} on {}", case.name, on.name());
            }
        }
    }
}

#[test]
fn the_same_bits_for_every_batch_and_place_in_it() {
    for (case, precision) in every_precision().filter(|(c, _)| c.rows_are_independent()) {
        let backend = with(2, Isa::detect(), precision);
        let whole = bits(&run(&backend, &case, Numbers::General, 0, 32));
        for (first, rows) in [(0, 1), (31, 1), (0, 7), (13, 7), (25, 7)] {
            let some = bits(&run(&backend, &case, Numbers::General, first, rows));
            for (whole, some) in whole.iter().zip(&some) {
                let row = some.len() / rows;
                let same = whole[first * row..][..some.len()] == some[..];
                let name = &case.name;
                assert!(same, "{name} in {precision}: rows {first} and {} on", rows - 1);
            }
        }
    }
}

/// One session, growing and shrinking: what an earlier run left behind must not show.
#[test]
fn a_session_can_be_used_again() -> Result<()> {
    for case in cases::all(Numbers::General)?.iter().filter(|c| c.rows_are_independent()) {
        let backend = backend(2, Isa::detect());
        let mut session = backend.prepare(case.graph.clone(), 1)?;
        for rows in [1, 5, 2, 0] {
            session.reserve(rows)?;
            let inputs =
                if rows == 0 { Vec::new() } else { case.inputs(Numbers::General, 9, rows) };
            let mut inputs = Values::view(&inputs);
            if rows == 0 {
                let empty = |&id| match case.graph.shape(id) {
                    Shape::Pixels { .. } => Input::Pixels(&[]),
                    _ => Input::Values(&[]),
                };
                inputs = case.graph.inputs.iter().map(empty).collect();
            }
            let length = |&id| case.graph.shape(id).len() * rows;
            let mut got: Vec<Vec<f32>> =
                case.graph.outputs.iter().map(|o| vec![f32::NAN; length(o)]).collect();
            let mut views: Vec<&mut [f32]> = got.iter_mut().map(Vec::as_mut_slice).collect();
            session.run(rows, &inputs, &mut views)?;
            if rows > 0 {
                let want = run(&backend, case, Numbers::General, 9, rows);
                assert!(bits(&got) == bits(&want), "{} with {rows} rows", case.name);
            }
        }
        assert_eq!(session.max_rows(), 5);
    }
    Ok(())
}

#[test]
fn wrong_arguments_are_usage_errors() {
    let mut graph = Graph::new("g");
    let x = graph.input(Shape::Map { h: 2, w: 2, c: 3 });
    let y = graph.push(Op::Flatten, &[x]).unwrap();
    graph.output(y);
    let mut session = backend(1, Isa::detect()).prepare(Arc::new(graph), 2).unwrap();
    let mut fails = |rows: usize, inputs: &[Input<'_>], room: usize, says: &str| {
        let mut output = vec![0.0; room];
        let error = session.run(rows, inputs, &mut [&mut output]).unwrap_err();
        assert_eq!(error.kind(), histokern::Kind::Usage);
        assert!(error.to_string().contains(says), "{error}");
    };
    let values = [0.0; 36];
    fails(1, &[Input::Values(&values[..11])], 12, "input 0 has 11 numbers");
    fails(1, &[Input::Values(&values[..12])], 13, "output 0 has room for 13");
    fails(1, &[Input::Pixels(&[0; 12])], 12, "other kind");
    fails(1, &[], 12, "takes 1 inputs");
    fails(3, &[Input::Values(&values)], 36, "room for 2");
    fails(usize::MAX, &[Input::Values(&values)], 36, "input 0");
    assert!(CpuBackend::new(0, None).is_err());

    let bag = &cases::all(Numbers::General).unwrap();
    let bag = bag.iter().find(|c| c.name.starts_with("attention pool")).unwrap();
    let mut session = backend(1, Isa::detect()).prepare(bag.graph.clone(), 2).unwrap();
    let mut output = vec![0.0; 5];
    let none: [Input<'_>; 2] = [Input::Values(&[]); 2];
    let error = session.run(0, &none, &mut [&mut output]).unwrap_err();
    assert!(error.to_string().contains("at least one row"), "{error}");
}
