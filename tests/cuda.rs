//! Every op on the CUDA backend: right against the reference, and the same bits however it is run.
//!
//! The tests run on whatever device the driver offers, a GPU or a stand-in driver that executes the
//! PTX on the CPU, and say so when there is none. One line per case goes to
//! `target/report/ops-<architecture>.txt`.

#[path = "common/demo.rs"]
mod demo;
#[path = "cuda/faults.rs"]
mod faults;
#[path = "cuda/fusions.rs"]
mod fusions;
#[path = "cuda/kept.rs"]
mod kept;
#[path = "cuda/record.rs"]
mod record;
#[path = "common/report.rs"]
mod report;
#[path = "cuda/runtime.rs"]
mod runtime;
#[path = "cuda/slides.rs"]
mod slides;
#[path = "cuda/stems.rs"]
mod stems;
#[path = "common/slides.rs"]
mod synthetic_slides;
#[path = "cuda/tiles.rs"]
mod tiles;

use histokern::backend::Backend;
use histokern::backend::cases::{self, Case, Numbers, Values};
use histokern::backend::check::{Deviation, run_once};
use histokern::cuda::kernels::{Arch, KERNELS};
use histokern::cuda::{self, CudaBackend};
use histokern::graph::Op;
use histokern::graph::reference::{self, Rounding};
use histokern::{Kind, Result};
use std::sync::Arc;

fn backend() -> Option<CudaBackend> {
    match CudaBackend::new(0) {
        Ok(backend) => Some(backend),
        Err(error) => {
            assert_eq!(error.kind(), Kind::Device, "{error}");
            eprintln!("no CUDA device, skipped: {error}");
            None
        }
    }
}

fn run(
    on: &dyn Backend,
    case: &Case,
    n: Numbers,
    first: usize,
    rows: usize,
) -> Result<Vec<Vec<f32>>> {
    run_once(on, &case.graph, rows, &Values::view(&case.inputs(n, first, rows)))
}

fn oracle(case: &Case, numbers: Numbers) -> Vec<Vec<f32>> {
    let inputs = case.inputs(numbers, 0, case.rows);
    reference::run(&case.graph, case.rows, &Values::view(&inputs), Rounding::F16).unwrap()
}

fn bits(outputs: &[Vec<f32>]) -> Vec<Vec<u32>> {
    outputs.iter().map(|o| o.iter().map(|x| x.to_bits()).collect()).collect()
}

/// Runs every case that `applies` and fails with a line for each that `verdict` finds wrong.
fn each_case(
    numbers: Numbers,
    applies: impl Fn(&Case) -> bool,
    verdict: impl Fn(&Case) -> Result<Option<String>>,
) {
    let cases = cases::all(numbers).unwrap();
    let judge = |case: &Case| {
        let found = verdict(case).unwrap_or_else(|e| Some(e.to_string()))?;
        Some(format!("{}: {found}", case.name))
    };
    let wrong: Vec<String> = cases.iter().filter(|c| applies(c)).filter_map(judge).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn without_a_driver_the_error_says_what_is_missing() {
    if let Err(missing) = cuda::driver() {
        let error = CudaBackend::new(0).err().unwrap();
        assert_eq!((error.kind(), error.to_string()), (Kind::Device, missing));
    }
}

#[test]
fn integers_are_exact() {
    let Some(backend) = backend() else { return };
    each_case(Numbers::Integer, Case::is_exact, |case| {
        disagreement(&backend, case, Numbers::Integer)
    });
}

#[test]
fn general_numbers_agree_with_the_reference() {
    let Some(backend) = backend() else { return };
    each_case(Numbers::General, |_| true, |case| disagreement(&backend, case, Numbers::General));
}

/// The case with its first output stored as FP16 and copied out, as a step inside a network is.
fn stored(case: &Case) -> Case {
    let mut graph = (*case.graph).clone();
    let output = graph.push(Op::Copy, &[case.graph.outputs[0]]).unwrap();
    graph.outputs = vec![output];
    Case {
        name: format!("{}{}", case.name, record::STORED),
        graph: Arc::new(graph),
        rows: case.rows,
    }
}

/// The distance of a run from the reference where it is too far, in words.
fn disagreement(on: &dyn Backend, case: &Case, numbers: Numbers) -> Result<Option<String>> {
    let got = run(on, case, numbers, 0, case.rows)?;
    let bound = case.bound(numbers);
    for (got, want) in got.iter().zip(&oracle(case, numbers)) {
        let deviation = Deviation::between(got, want)?;
        record::case(on, case, numbers, &deviation, bound);
        if !deviation.within(bound) {
            return Ok(Some(deviation.to_string()));
        }
    }
    Ok(None)
}

#[test]
fn results_inside_a_network_are_right_too() {
    let Some(backend) = backend() else { return };
    each_case(Numbers::Integer, Case::is_exact, |case| {
        disagreement(&backend, &stored(case), Numbers::Integer)
    });
    each_case(
        Numbers::General,
        |_| true,
        |case| disagreement(&backend, &stored(case), Numbers::General),
    );
}

/// Whatever tile a product is given, a sum runs over k in the same order.
#[test]
fn every_tile_gives_the_same_bits() {
    let Some(default) = backend() else { return };
    let products = |case: &Case| case.graph.flops_per_row() > 0 && case.rows_are_independent();
    let tiles = KERNELS.iter().filter(|k| k.entry == "conv2d").filter_map(|k| k.tile);
    for tile in tiles.filter(|t| t.m * t.n <= 128 * 128 || default.architecture() > Arch(75)) {
        let forced = CudaBackend::new(0).unwrap().with_tile(tile);
        each_case(Numbers::General, products, |case| {
            let want = run(&default, case, Numbers::General, 0, case.rows)?;
            let got = run(&forced, case, Numbers::General, 0, case.rows)?;
            Ok((bits(&want) != bits(&got))
                .then(|| format!("other bits with {} x {}", tile.m, tile.n)))
        });
    }
}

/// The default kernels, and those of sm_90a where the device runs them.
fn backends() -> Vec<CudaBackend> {
    let Some(default) = backend() else { return Vec::new() };
    let open = || CudaBackend::new(0).unwrap().with_warpgroups().unwrap();
    if default.has_warpgroups() { vec![default, open()] } else { vec![default] }
}

/// The warpgroup kernels of sm_90a: exact, close to the reference, and the same bits for every tile,
/// for clusters, and for a persistent block that takes several tiles in turn.
#[test]
fn warpgroup_products_agree_too() {
    let Some(default) = backend() else { return };
    if !default.has_warpgroups() {
        eprintln!("not sm_90, skipped: {}", default.name());
        return;
    }
    let products = |case: &Case| case.graph.flops_per_row() > 0 && case.rows_are_independent();
    let tiles = KERNELS.iter().filter(|k| k.entry == "conv2d_sm90").filter_map(|k| k.tile);
    let open = || CudaBackend::new(0).unwrap().with_warpgroups().unwrap();
    let first = open();
    for (tile, cluster) in tiles.flat_map(|tile| [(tile, 1), (tile, 2)]) {
        let forced = open().with_tile(tile).with_cluster(cluster).unwrap();
        let exact = |case: &Case| products(case) && case.is_exact();
        each_case(Numbers::Integer, exact, |case| {
            disagreement(&forced, &stored(case), Numbers::Integer)
        });
        each_case(Numbers::General, products, |case| {
            let got = run(&forced, case, Numbers::General, 0, case.rows)?;
            let want = run(&first, case, Numbers::General, 0, case.rows)?;
            if bits(&want) != bits(&got) {
                let text = format!("other bits with {} x {} by {cluster}", tile.m, tile.n);
                return Ok(Some(text));
            }
            disagreement(&forced, case, Numbers::General)
        });
    }
}

#[test]
fn the_same_bits_for_every_batch_and_place_in_it() {
    for backend in backends() {
        each_case(Numbers::General, Case::rows_are_independent, |case| {
            let whole = bits(&run(&backend, case, Numbers::General, 0, 6)?);
            for (first, rows) in [(0, 1), (5, 1), (2, 3)] {
                let some = bits(&run(&backend, case, Numbers::General, first, rows)?);
                for (whole, some) in whole.iter().zip(&some) {
                    let row = some.len() / rows;
                    if whole[first * row..][..some.len()] != some[..] {
                        return Ok(Some(format!("{rows} rows from {first} on differ")));
                    }
                }
            }
            Ok(None)
        });
    }
}

/// One session, growing and shrinking, queued first and then from a captured graph: what an earlier
/// run left behind must not show.
#[test]
fn a_session_can_be_used_again() {
    for backend in backends() {
        each_case(Numbers::General, Case::rows_are_independent, |case| {
            let mut session = backend.prepare(case.graph.clone(), 1)?;
            for rows in [1, 3, 2, 3, 3] {
                session.reserve(rows)?;
                let inputs = case.inputs(Numbers::General, 9, rows);
                let length = |&id| case.graph.shape(id).len() * rows;
                let mut got: Vec<Vec<f32>> =
                    case.graph.outputs.iter().map(|o| vec![f32::NAN; length(o)]).collect();
                let mut views: Vec<&mut [f32]> = got.iter_mut().map(Vec::as_mut_slice).collect();
                session.run(rows, &Values::view(&inputs), &mut views)?;
                if bits(&got) != bits(&run(&backend, case, Numbers::General, 9, rows)?) {
                    return Ok(Some(format!("other bits with {rows} rows")));
                }
            }
            Ok(None)
        });
    }
}

#[test]
fn wrong_arguments_are_usage_errors() {
    let Some(backend) = backend() else { return };
    let case = &cases::all(Numbers::General).unwrap()[0];
    let inputs = case.inputs(Numbers::General, 0, 2);
    let mut session = backend.prepare(case.graph.clone(), 1).unwrap();
    let mut out = vec![0f32; 2 * case.graph.shape(case.graph.outputs[0]).len()];
    let error = session.run(2, &Values::view(&inputs), &mut [&mut out]).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage, "{error}");
    let error = session.run(1, &Values::view(&inputs), &mut [&mut out]).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage, "{error}");
    session.reserve(2).unwrap();
    session.run(2, &Values::view(&inputs), &mut [&mut out]).unwrap();
}
