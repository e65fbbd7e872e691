//! 3x3 convolutions by Winograd's algorithm beside the same by definition, in turns: milliseconds of
//! both, their ratio, and how far their results are apart.
//!
//! `cargo bench --bench winograd [-- WORD]` runs the rows whose name contains a word.

use half::f16;
use histokern::Result;
use histokern::backend::{Backend, Input, Precision, Session};
use histokern::cpu::CpuBackend;
use histokern::graph::{Act, Epilogue, Graph, Op, Shape, Window};
use std::sync::Arc;
use std::time::Instant;

/// Name, side of the map, channels in and out.
const LAYERS: [(&str, usize, usize, usize); 22] = [
    ("vgg16", 224, 64, 64),
    ("vgg16", 112, 64, 128),
    ("vgg16", 112, 128, 128),
    ("vgg16", 56, 128, 256),
    ("vgg16", 56, 256, 256),
    ("vgg16", 28, 256, 512),
    ("vgg16", 28, 512, 512),
    ("vgg16", 14, 512, 512),
    ("resnet", 56, 64, 64),
    ("resnet", 28, 128, 128),
    ("resnet", 14, 256, 256),
    ("resnet", 7, 512, 512),
    ("densenet", 56, 128, 32),
    ("densenet", 28, 128, 32),
    ("densenet", 14, 128, 32),
    ("densenet", 7, 128, 32),
    ("unet", 256, 64, 64),
    ("unet", 128, 128, 128),
    ("unet", 64, 256, 256),
    ("unet", 32, 512, 512),
    ("unet", 16, 1024, 1024),
    ("small", 28, 32, 32),
];

/// Seconds to spend on a row.
const SECONDS: f64 = 1.2;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let all = std::thread::available_parallelism().map_or(1, |n| n.get());
    println!(
        "network  numbers  side     C     K  batch threads   direct ms  winograd ms  ratio  \
         GFLOP/s  relative L2"
    );
    let threads = if all == 1 { vec![1] } else { vec![1, all] };
    for precision in [Precision::F16, Precision::Bf16] {
        for (network, side, c, k) in LAYERS {
            for (rows, &threads) in
                [1, 16].iter().flat_map(|n| threads.iter().map(move |t| (*n, t)))
            {
                let name = format!(
                    "{network:8} {:>7} {side:>5} {c:>5} {k:>5} {rows:>6} {threads:>7}",
                    precision.to_string()
                );
                if !words.iter().all(|w| name.split_whitespace().any(|n| n == w)) {
                    continue;
                }
                let graph = Arc::new(convolution(side, c, k)?);
                let flops = graph.flops_per_row() * rows as u64;
                let [direct, fast, distance] = race(&graph, rows, threads, precision)?;
                println!(
                    "{name} {:>11.3} {:>12.3} {:>6.2} {:>8.0}  {distance:.1e}",
                    1e3 * direct,
                    1e3 * fast,
                    direct / fast,
                    1e-9 * flops as f64 / fast
                );
            }
        }
    }
    Ok(())
}

/// Uniform numbers by a linear congruential generator.
fn numbers(n: usize, gain: f32) -> impl Iterator<Item = f32> {
    let mut state = 1u32;
    (0..n).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * gain
    })
}

fn convolution(side: usize, c: usize, k: usize) -> Result<Graph> {
    let mut graph = Graph::new("convolution");
    let x = graph.input(Shape::Map { h: side, w: side, c });
    let gain = (1.0 / (3 * c) as f32).sqrt();
    let weight = numbers(k * 9 * c, gain).map(f16::from_f32).collect();
    let weight = graph.param_f16("weight", &[k, 3, 3, c], weight)?;
    let bias = Some(graph.param_f32("bias", &[k], numbers(k, 0.1).collect())?);
    let epilogue = Epilogue { bias, act: Act::Relu, ..Epilogue::default() };
    let window = Window::square(3, 1, 1);
    let y = graph.push(Op::Conv2d { weight, window, epilogue }, &[x])?;
    // Stored as between two layers, and the least work after that.
    let small = graph.push(Op::AdaptiveAvgPool { h: 1, w: 1 }, &[y])?;
    graph.output(small);
    Ok(graph)
}

/// The best times of the convolution both ways, and how far the results are apart.
fn race(graph: &Arc<Graph>, rows: usize, threads: usize, precision: Precision) -> Result<[f64; 3]> {
    let length = graph.shape(graph.inputs[0]).len();
    let backend = || CpuBackend::new(threads, None)?.with_precision(precision);
    let input: Vec<f32> = numbers(rows * length, 1.0).map(|x| x.max(0.0)).collect();
    let mut sessions: Vec<(Box<dyn Session>, f64, Vec<f32>)> = Vec::new();
    for backend in [backend()?.direct(), backend()?] {
        let outputs = vec![0.0; rows * graph.shape(graph.outputs[0]).len()];
        sessions.push((backend.prepare(graph.clone(), rows)?, f64::INFINITY, outputs));
    }
    let start = Instant::now();
    for round in 0.. {
        for (session, best, output) in &mut sessions {
            let mut seconds = vec![0.0; graph.steps.len()];
            let input = [Input::Values(&input)];
            session.run_timed(rows, &input, &mut [output], &mut seconds)?;
            *best = best.min(seconds[0]);
        }
        if round >= 2 && start.elapsed().as_secs_f64() > SECONDS {
            break;
        }
    }
    let [(_, direct, want), (_, fast, got)] = &sessions[..] else { unreachable!("two sessions") };
    let square = |x: f64| x * x;
    let error: f64 = want.iter().zip(got).map(|(a, b)| square(f64::from(a - b))).sum();
    let norm: f64 = want.iter().map(|&a| square(f64::from(a))).sum();
    Ok([*direct, *fast, (error / norm).sqrt()])
}
