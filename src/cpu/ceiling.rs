//! What this processor can do at most: fused multiply-adds that never leave registers, and a copy
//! too large for any cache. No layer can exceed the first, none that streams its data the second.

use super::Isa;
use crate::backend::Precision;
use std::hint::black_box;
use std::time::Instant;

/// Fused multiply-adds per chain in one measurement.
const ROUNDS: usize = 1 << 21;
/// Bytes each thread copies in one measurement, larger than its share of any cache.
const STREAM_BYTES: usize = 64 << 20;
/// The best of this many measurements counts: what disturbs one only makes it slower.
const REPEATS: usize = 5;

/// Operations per second of `threads` threads that only multiply and add numbers of a precision, with
/// an instruction set this processor has. An addition and a multiplication count as two.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "one rate for all"))]
pub fn flops_per_second(isa: Isa, precision: Precision, threads: usize) -> f64 {
    let run = || -> usize {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx if precision != Precision::F32 && isa.is_available() => {
                // Three products make one of FP16 numbers.
                let products = if precision == Precision::F16 { 3 } else { 1 };
                // SAFETY: the instructions were found on this processor.
                unsafe { super::amx::x86::products(ROUNDS / 8) / products }
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if precision == Precision::Bf16 && pairs_available(isa) => {
                // SAFETY: the instructions were found on this processor.
                unsafe { x86::pairs_avx512(ROUNDS) }
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the instruction set was found on this processor.
            Isa::Avx512 | Isa::Amx if isa.is_available() => unsafe { x86::fma_avx512(ROUNDS) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 if isa.is_available() => unsafe { x86::fma_avx2(ROUNDS) },
            _ => portable(ROUNDS),
        }
    };
    best(threads, |_| 2 * run())
}

/// Whether an instruction set of this processor multiplies pairs of bf16 numbers.
pub fn pairs_available(isa: Isa) -> bool {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => isa.is_available() && is_x86_feature_detected!("avx512bf16"),
        Isa::Amx => isa.is_available(),
        _ => false,
    }
}

/// Bytes per second that `threads` threads read and write when they copy memory.
pub fn bytes_per_second(threads: usize) -> f64 {
    let mut buffers: Vec<(Vec<u8>, Vec<u8>)> =
        (0..threads).map(|_| (vec![1; STREAM_BYTES], vec![0; STREAM_BYTES])).collect();
    let mut most = 0f64;
    for _ in 0..REPEATS {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in &mut buffers {
                scope.spawn(|| black_box(&mut *to).copy_from_slice(black_box(from)));
            }
        });
        let bytes = (2 * threads * STREAM_BYTES) as f64;
        most = most.max(bytes / start.elapsed().as_secs_f64());
    }
    most
}

/// The most work per second that `threads` threads get done together.
fn best(threads: usize, work: impl Fn(usize) -> usize + Sync) -> f64 {
    let mut most = 0f64;
    for _ in 0..REPEATS {
        let start = Instant::now();
        let done: usize = std::thread::scope(|scope| {
            let started: Vec<_> = (0..threads)
                .map(|i| {
                    scope.spawn({
                        let work = &work;
                        move || work(i)
                    })
                })
                .collect();
            started.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
        });
        most = most.max(done as f64 / start.elapsed().as_secs_f64());
    }
    most
}

/// Chains of lanes the compiler vectorises as it likes; returns the fused operations.
fn portable(rounds: usize) -> usize {
    const LANES: usize = 64;
    let x = black_box(0.5f32);
    let mut sums = [x; LANES];
    for _ in 0..rounds / 8 {
        for sum in &mut sums {
            *sum = *sum * x + x;
        }
    }
    black_box(sums);
    rounds / 8 * LANES
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Enough to hide the latency of every known core, and few enough for 16 registers.
    const CHAINS: usize = 12;

    #[target_feature(enable = "avx512f")]
    pub fn fma_avx512(rounds: usize) -> usize {
        let x = _mm512_set1_ps(black_box(0.5));
        let mut sums = [x; CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, x, x);
            }
        }
        let total: f32 = sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum();
        black_box(total);
        rounds * CHAINS * 16
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn pairs_avx512(rounds: usize) -> usize {
        let x = _mm512_set1_ps(black_box(0.5));
        let halves = _mm512_cvtne2ps_pbh(x, x);
        let mut sums = [x; CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, halves, halves);
            }
        }
        let total: f32 = sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum();
        black_box(total);
        rounds * CHAINS * 32
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn fma_avx2(rounds: usize) -> usize {
        let x = _mm256_set1_ps(black_box(0.5));
        let mut sums = [x; CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, x, x);
            }
        }
        let total: f32 = sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum();
        black_box(total);
        rounds * CHAINS * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_vectors_do_more() {
        let f32s = |isa| flops_per_second(isa, Precision::F32, 1);
        let portable = f32s(Isa::Portable);
        assert!(portable > 1e8, "{portable:e} operations per second");
        if Isa::Avx512.is_available() {
            let wide = f32s(Isa::Avx512);
            assert!(wide > 1e9, "{wide:e} operations per second");
        }
        if pairs_available(Isa::Avx512) {
            let pairs = flops_per_second(Isa::Avx512, Precision::Bf16, 1);
            assert!(pairs > 1e9, "{pairs:e} operations per second");
        }
        assert!(bytes_per_second(1) > 1e8);
    }
}
