//! Speed of the CPU backend, layer by layer, in FLOP/s ("elements" are floating-point operations),
//! beside the most this processor can do; where nothing is multiplied, in bytes of f32 in and out.
//!
//! No layer is timed before it has matched the reference on the very same shape.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use histokern::backend::Backend;
use histokern::backend::cases::{self, Case, Numbers, Values};
use histokern::backend::check::compare_reference;
use histokern::cpu::CpuBackend;
use histokern::graph::reference::Rounding;
use std::hint::black_box;
use std::time::Duration;

fn thread_counts() -> Vec<usize> {
    let all = std::thread::available_parallelism().map_or(1, |n| n.get());
    if all == 1 { vec![1] } else { vec![1, all] }
}

fn layers(c: &mut Criterion) {
    for case in cases::layers().expect("the cases build") {
        let mut group = c.benchmark_group(case.name.split(", Parts").next().unwrap_or_default());
        let shape = |&id| case.graph.shape(id).len() as u64;
        let values: u64 = case.graph.inputs.iter().chain(&case.graph.outputs).map(shape).sum();
        group.throughput(match case.graph.flops_per_row() * case.rows as u64 {
            0 => Throughput::Bytes(4 * values * case.rows as u64),
            flops => Throughput::Elements(flops),
        });
        let on = |threads| CpuBackend::new(threads, None).expect("a backend");
        for (threads, direct) in thread_counts().into_iter().flat_map(|n| [(n, false), (n, true)]) {
            let backend = match direct {
                true if !case.may_be_transformed() => continue,
                true => on(threads).direct(),
                false => on(threads),
            };
            group.bench_function(backend.name(), |b| {
                check(&backend, &case);
                let inputs = case.inputs(Numbers::General, 0, case.rows);
                let inputs = Values::view(&inputs);
                let mut session = backend.prepare(case.graph.clone(), case.rows).expect("it fits");
                let length = case.graph.shape(case.graph.outputs[0]).len() * case.rows;
                let mut output = vec![0f32; length];
                b.iter(|| session.run(case.rows, &inputs, &mut [&mut output]).expect("it runs"));
            });
        }
    }
}

fn check(backend: &CpuBackend, case: &Case) {
    let inputs = case.inputs(Numbers::General, 0, case.rows);
    let inputs = Values::view(&inputs);
    let deviations = compare_reference(backend, &case.graph, case.rows, &inputs, Rounding::F16)
        .expect("it runs");
    for deviation in deviations {
        assert!(deviation.within(5e-6), "{}: {deviation}", case.name);
    }
}

/// Independent fused multiply-adds on registers alone: what no layer can exceed.
fn ceiling(c: &mut Criterion) {
    const ROUNDS: usize = 1 << 20;
    let mut group = c.benchmark_group("ceiling");
    #[cfg(target_arch = "x86_64")]
    for isa in [histokern::cpu::Isa::Avx512, histokern::cpu::Isa::Avx2] {
        let (lanes, run): (usize, unsafe fn(usize) -> f32) = match isa {
            histokern::cpu::Isa::Avx512 => (16, x86::fma_avx512),
            _ => (8, x86::fma_avx2),
        };
        if !isa.is_available() {
            continue;
        }
        group.throughput(Throughput::Elements((2 * x86::CHAINS * lanes * ROUNDS) as u64));
        // SAFETY: the instruction set was just found to be available.
        group.bench_function(isa.to_string(), |b| b.iter(|| unsafe { run(black_box(ROUNDS)) }));
    }
    group.finish();
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Enough to hide the latency of every known core, and few enough for 16 registers.
    pub const CHAINS: usize = 12;

    #[target_feature(enable = "avx512f")]
    pub fn fma_avx512(rounds: usize) -> f32 {
        let x = _mm512_set1_ps(std::hint::black_box(0.5));
        let mut acc = [x; CHAINS];
        for _ in 0..rounds {
            for a in &mut acc {
                *a = _mm512_fmadd_ps(*a, x, x);
            }
        }
        acc.into_iter().map(|a| _mm512_reduce_add_ps(a)).sum()
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn fma_avx2(rounds: usize) -> f32 {
        let x = _mm256_set1_ps(std::hint::black_box(0.5));
        let mut acc = [x; CHAINS];
        for _ in 0..rounds {
            for a in &mut acc {
                *a = _mm256_fmadd_ps(*a, x, x);
            }
        }
        acc.into_iter().map(|a| _mm256_cvtss_f32(a)).sum()
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    targets = ceiling, layers
}
criterion_main!(benches);
