//! 100,000 rows with 1,000 bootstrap rounds, through the statistics alone and through the verb with
//! its tables and figures.

use criterion::{Criterion, criterion_group, criterion_main};
use histokern::stats::LEVEL;
use histokern::stats::bootstrap::{Plan, Rng};
use histokern::stats::correlation::spearman_bootstrap;
use histokern::stats::roc::Roc;
use std::fmt::Write;
use std::process::Command;

const ROWS: usize = 100_000;
const PLAN: Plan = Plan { rounds: 1000, seed: 1 };

/// Probabilities, and outcomes that follow them.
fn rows() -> (Vec<f64>, Vec<bool>) {
    let mut rng = Rng::new(5, 0);
    (0..ROWS)
        .map(|_| {
            let p = (rng.uniform() + rng.uniform()) / 2.0;
            (p, rng.uniform() < p)
        })
        .unzip()
}

fn statistics(c: &mut Criterion) {
    let (p, y) = rows();
    let value: Vec<f64> = y.iter().map(|y| f64::from(u8::from(*y))).collect();
    let grid: Vec<f64> = (0..=100).map(|i| f64::from(i) / 100.0).collect();
    let mut group = c.benchmark_group("100k rows, 1000 rounds");
    group.sample_size(10);
    group.bench_function("ROC with band", |b| {
        b.iter(|| Roc::new(&p, &y).unwrap().bootstrap(PLAN, &grid, LEVEL));
    });
    group.bench_function("Spearman", |b| {
        b.iter(|| spearman_bootstrap(&p, &value, PLAN).unwrap());
    });
    group.finish();
}

fn verb(c: &mut Criterion) {
    let (p, y) = rows();
    let dir = tempfile::tempdir().unwrap();
    let (mut scores, mut labels) = ("id,score\n".to_string(), "id,label\n".to_string());
    for (i, (p, y)) in p.iter().zip(&y).enumerate() {
        writeln!(scores, "r{i},{p}").unwrap();
        writeln!(labels, "r{i},{}", u8::from(*y)).unwrap();
    }
    let [s, l] = [("s.csv", scores), ("l.csv", labels)].map(|(name, text)| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    });
    let mut group = c.benchmark_group("100k rows, 1000 rounds");
    group.sample_size(10);
    for task in ["binary", "regression"] {
        group.bench_function(format!("evaluate --task {task}"), |b| {
            b.iter(|| {
                let mut command = Command::new(env!("CARGO_BIN_EXE_histokern"));
                command.arg("evaluate").arg(&s).arg("--labels").arg(&l).args(["--task", task]);
                command.args(["--rounds", "1000", "--quiet", "--out"]).arg(dir.path().join(task));
                assert!(command.status().unwrap().success());
            });
        });
    }
    group.finish();
}

criterion_group!(benches, statistics, verb);
criterion_main!(benches);
