//! Results that stay on the device: the rows and the bits of those that go over the host.

use super::backend;
use super::runtime::{WIDTH, network, pixels};
use histokern::Kind;
use histokern::backend::check::run_once;
use histokern::backend::{Backend, Batch, Input, Kept, Overlapped, Session};
use histokern::cuda::CudaBackend;
use histokern::graph::{Epilogue, Graph, Op, Reduce, Shape};
use std::sync::Arc;

/// A bag of features to a number of every row and their mean.
fn head() -> Arc<Graph> {
    let mut g = Graph::new("head");
    let features = g.input(Shape::Tokens { t: 1, c: WIDTH });
    let data = (0..3 * WIDTH).map(|i| half::f16::from_f32((i * 5 % 17) as f32 / 20.0 - 0.4));
    let weight = g.param_f16("w", &[3, WIDTH], data.collect()).unwrap();
    let op = Op::Linear { weight, epilogue: Epilogue::default() };
    let scores = g.push(op, &[features]).unwrap();
    let mean = g.push(Op::BagReduce { reduce: Reduce::Mean }, &[scores]).unwrap();
    g.output(mean);
    g.output(scores);
    Arc::new(g)
}

/// What the head says of a bag, as bits.
fn said(head: &mut dyn Session, rows: usize, bag: Input<'_>) -> Vec<u32> {
    let (mut mean, mut scores) = (vec![f32::NAN; 3], vec![f32::NAN; 3 * rows]);
    head.run(rows, &[bag], &mut [&mut mean, &mut scores]).unwrap();
    mean.iter().chain(&scores).map(|x| x.to_bits()).collect()
}

fn submit(on: &mut dyn Overlapped, into: &Arc<dyn Kept>, first: usize, rows: usize) {
    let pixels = Box::new(pixels(&network(), first, rows));
    let into = Some((Arc::clone(into), first));
    on.submit(Batch { into, ..Batch::new(rows, pixels) }).unwrap();
}

#[test]
fn rows_that_stay_have_the_bits_of_those_that_leave() {
    let Some(backend) = backend() else { return };
    let case = network();
    let all = pixels(&case, 0, 16);
    let want = run_once(&backend, &case.graph, 16, &[Input::Pixels(&all)]).unwrap().remove(0);
    let row = |row: usize| &want[row * WIDTH..][..WIDTH];
    let mut encoder = backend.prepare(case.graph.clone(), 4).unwrap();
    let mut heads = backend.prepare(head(), 16).unwrap();
    let on = encoder.overlapped().unwrap();
    let [kept, next] = [16, 4].map(|rows| on.keep(rows).unwrap().unwrap());
    assert_eq!((kept.rows(), kept.width()), (16, WIDTH));
    // Two batches under way, in any order of rows.
    let batches = [(0, 4), (9, 3), (12, 4), (4, 1), (5, 4)];
    for (i, &(first, rows)) in batches.iter().enumerate() {
        submit(on, &kept, first, rows);
        if i > 0 {
            on.collect(&mut []).unwrap();
        }
    }
    on.collect(&mut []).unwrap();
    // A batch that goes to the host between those that stay, and one of the next slide under way
    // while the heads read.
    on.submit(Batch::new(2, Box::new(pixels(&case, 6, 2)))).unwrap();
    submit(on, &next, 0, 4);
    let mut host = vec![f32::NAN; 2 * WIDTH];
    on.collect(&mut [&mut host]).unwrap();
    assert!(host == want[6 * WIDTH..][..2 * WIDTH]);

    let order = [7, 8, 9, 1, 0, 15, 15];
    let mut read = vec![f32::NAN; order.len() * WIDTH];
    kept.read(&order, &mut read).unwrap();
    let gathered = order.map(row).concat();
    assert!(read.iter().zip(&gathered).all(|(a, b)| a.to_bits() == b.to_bits()), "other rows");
    // The second time from a captured graph.
    let whole: Vec<usize> = (0..16).collect();
    for bag in [&whole[..], &[3], &order, &whole, &order] {
        let host: Vec<f32> = bag.iter().flat_map(|&r| row(r)).copied().collect();
        let got = said(&mut *heads, bag.len(), Input::Kept(&*kept, bag));
        assert!(got == said(&mut *heads, bag.len(), Input::Values(&host)), "other bits of {bag:?}");
    }
    // They outlive their encoder, even one that is dropped with a batch under way.
    drop(encoder);
    assert_eq!(
        said(&mut *heads, 2, Input::Kept(&*kept, &[5, 2])),
        said(&mut *heads, 2, Input::Values(&[row(5), row(2)].concat()))
    );
}

#[test]
fn places_that_do_not_fit_are_refused() {
    let (Some(backend), Some(other)) = (backend(), backend()) else { return };
    let case = network();
    let mut session = backend.prepare(case.graph.clone(), 4).unwrap();
    let mut elsewhere = other.prepare(case.graph.clone(), 4).unwrap();
    let elsewhere = elsewhere.overlapped().unwrap().keep(4).unwrap().unwrap();
    let on = session.overlapped().unwrap();
    let kept = on.keep(4).unwrap().unwrap();
    let usage = |error: histokern::Error, says: &str| {
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        assert!(error.to_string().contains(says), "{error} lacks {says}");
    };
    for (place, first, says) in [
        (&kept, 3, "2 x 80 from row 3"),
        (&kept, usize::MAX, "from row"),
        (&elsewhere, 0, "another device"),
    ] {
        let into = Some((Arc::clone(place), first));
        let batch = Batch { into, ..Batch::new(2, Box::new(vec![0; 2 * 189])) };
        usage(on.submit(batch).unwrap_err(), says);
    }
    // What was refused took no lane, and what stays is not handed over.
    submit(on, &kept, 2, 2);
    submit(on, &kept, 0, 2);
    usage(on.collect(&mut [&mut [0.0; 2 * WIDTH]]).err().unwrap(), "another size");
    on.collect(&mut []).unwrap();
    on.collect(&mut []).unwrap();
    usage(kept.read(&[4], &mut [0.0; WIDTH]).unwrap_err(), "1 rows");
    usage(kept.read(&[3], &mut [0.0; 2]).unwrap_err(), "into 2 numbers");
    let mut heads = backend.prepare(head(), 4).unwrap();
    let mut run = |from: &dyn Kept, rows: &[usize]| {
        let inputs = [Input::Kept(from, rows)];
        heads.run(2, &inputs, &mut [&mut [0.0; 3], &mut [0.0; 6]])
    };
    usage(run(&*kept, &[1, 4]).unwrap_err(), "row 4 of 4");
    usage(run(&*kept, &[1]).unwrap_err(), "80 numbers for 2 rows");
    usage(run(&*elsewhere, &[0, 1]).unwrap_err(), "another device");
    run(&*kept, &[1, 0]).unwrap();
}

/// The heads need more memory than the features they read.
#[test]
fn features_take_a_share_of_the_memory() {
    if backend().is_none() {
        return;
    }
    let limited = CudaBackend::new(0).unwrap().with_memory_limit(1 << 20).unwrap();
    let mut session = limited.prepare(network().graph, 4).unwrap();
    let on = session.overlapped().unwrap();
    let rows = (200 << 10) / (4 * WIDTH);
    let first = on.keep(rows).unwrap();
    let error = on.keep(rows).unwrap_err();
    assert_eq!(error.kind(), Kind::Limit);
    assert!(error.to_string().contains("features of 640 tiles"), "{error}");
    assert!(error.to_string().contains("of a limit of 1.0 MiB"), "{error}");
    assert_eq!(on.keep(usize::MAX).unwrap_err().kind(), Kind::Limit);
    // What was given back counts as free again.
    drop(first);
    assert!(on.keep(rows).unwrap().is_some());
}
