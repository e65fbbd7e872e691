//! ldmatrix, mma.sync and cp.async: the fragment layouts against a plain matrix product, and the
//! faults of a pipelined kernel.

#[macro_use]
mod common;

use common::{Device, integers};
use gpu_sim::machine::{LaunchError, Shape};
use half::f16;

/// A (M, K) and B (N, K), row after row.
fn inputs(m: usize, n: usize, k: usize) -> (Vec<i32>, Vec<i32>) {
    let all = integers((m + n) * k, -8, 8);
    (all[..m * k].to_vec(), all[m * k..].to_vec())
}

fn product(a: &[i32], b: &[i32], n: usize, k: usize) -> Vec<f32> {
    let dot = |x: &[i32], y: &[i32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<i32>() as f32;
    let rows = a.chunks(k).flat_map(|row| b.chunks(k).map(move |column| dot(row, column)));
    rows.take(a.len() / k * n).collect()
}

fn halves(values: &[i32]) -> Vec<f16> {
    values.iter().map(|v| f16::from_f32(*v as f32)).collect()
}

fn run(name: &str, m: usize, n: usize, k: usize) -> Result<(Vec<f32>, Vec<f32>), LaunchError> {
    let device = Device::new(name);
    let (a, b) = inputs(m, n, k);
    let (pa, pb) = (device.buffer(&halves(&a)), device.buffer(&halves(&b)));
    let pc = device.blank(m * n * 4);
    let shape = Shape::new([m as u32 / 32, n as u32 / 32, 1], [128, 1, 1], 0);
    device.launch("tile_gemm", shape, args![pa, pb, pc, m as i32, n as i32, k as i32])?;
    Ok((device.read(pc, m * n), product(&a, &b, n, k)))
}

#[test]
fn fragments_make_the_matrix_product() {
    for name in ["tile", "tile_turing_mma"] {
        // The last one has more steps than the ring has stages.
        for (m, n, k) in [(32, 32, 16), (64, 96, 32), (96, 64, 208)] {
            let (got, want) = run(name, m, n, k).unwrap();
            assert_eq!(got, want, "{name} {m}x{n}x{k}");
        }
    }
}

#[test]
fn swapped_fragment_registers_give_another_matrix() {
    let (got, want) = run("tile_swapped", 32, 32, 64).unwrap();
    assert_ne!(got, want);
}

#[test]
fn a_missing_wait_for_copies_is_found() {
    let error = run("tile_no_wait", 32, 32, 64).unwrap_err();
    assert!(error.message.contains("cp.async has not been waited for"), "{error}");
}

#[test]
fn a_missing_barrier_in_the_ring_is_found() {
    let error = run("tile_no_barrier", 32, 32, 208).unwrap_err();
    let known = ["race", "cp.async", "never written"];
    assert!(known.iter().any(|k| error.message.contains(k)), "{error}");
}

#[test]
fn transposed_tiles() {
    let device = Device::new("tile");
    let x: Vec<u16> = (0..64).collect();
    let px = device.buffer(&x);
    let (out, back) = (device.blank(128), device.blank(128));
    device.launch("transpose8", common::line(1, 32), args![px, out, back]).unwrap();
    let want: Vec<u16> = (0..64).map(|i| i % 8 * 8 + i / 8).collect();
    assert_eq!(device.read::<u16>(out, 64), want);
    assert_eq!(device.read::<u16>(back, 64), x);
}
