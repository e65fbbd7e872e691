//! Every planted fault is found, at the right place; the fixed program passes.

#[macro_use]
mod common;

use common::{Device, line};
use gpu_sim::machine::LaunchError;

fn fails(
    device: &Device,
    kernel: &str,
    blocks: u32,
    threads: u32,
    args: &[Vec<u8>],
) -> LaunchError {
    let error = device.launch(kernel, line(blocks, threads), args).expect_err(kernel);
    assert_eq!(error.kernel, kernel);
    assert!(error.place.is_some_and(|p| p.line > 0), "{error}");
    error
}

#[test]
fn a_store_past_the_end() {
    let device = Device::new("faults");
    let error = fails(&device, "off_by_one", 3, 64, args![device.blank(150 * 4), 150]);
    assert_eq!((error.block, error.thread), (Some([2, 0, 0]), Some([22, 0, 0])));
    assert!(error.message.contains("offset 600 of an allocation of 600 bytes"), "{error}");
    // The line of the CUDA source comes along.
    let source =
        std::fs::read_to_string(format!("{}/tests/fixtures/faults.cu", env!("CARGO_MANIFEST_DIR")));
    let at = error.place.unwrap().source.1 as usize;
    assert!(source.unwrap().lines().nth(at - 1).unwrap().contains("if (i <= n) x[i]"));
}

#[test]
fn the_first_faulty_block_is_reported_whatever_the_workers() {
    for workers in [1, 2, 4] {
        let mut device = Device::new("faults");
        device.options.workers = workers;
        let error = fails(&device, "off_by_one", 64, 64, args![device.blank(1280), 4000]);
        assert_eq!(error.block, Some([5, 0, 0]));
    }
}

#[test]
fn a_misaligned_load() {
    let device = Device::new("faults");
    let x = device.buffer(&[0u8; 200]);
    let error = fails(&device, "misaligned", 1, 32, args![x, device.blank(128)]);
    assert!(error.message.contains("misaligned"), "{error}");
}

#[test]
fn a_read_of_unwritten_shared_memory() {
    let device = Device::new("faults");
    let error = fails(&device, "uninitialised_shared", 1, 64, args![device.blank(256)]);
    assert_eq!(error.thread, Some([46, 0, 0]));
    assert!(error.message.contains("never written"), "{error}");
}

#[test]
fn a_read_of_unwritten_global_memory() {
    let device = Device::new("faults");
    let args = args![device.blank(128), device.blank(128)];
    let error = fails(&device, "uninitialised_global", 1, 32, args);
    assert!(error.message.contains("never written"), "{error}");
    let args = args![device.buffer(&[1f32; 32]), device.blank(128)];
    device.launch("uninitialised_global", line(1, 32), args).unwrap();
}

#[test]
fn a_missing_barrier() {
    let device = Device::new("faults");
    let error = fails(&device, "missing_barrier", 1, 64, args![device.blank(256)]);
    assert!(error.message.contains("race") || error.message.contains("never written"), "{error}");
    // With the threads in the other order the write comes first and only the race check sees it.
    let error = fails(&device, "reuse_without_barrier", 1, 64, args![device.blank(256)]);
    assert!(error.message.contains("race"), "{error}");
    let fixed = Device::new("faults_fixed");
    let out = fixed.blank(256);
    fixed.launch("missing_barrier", line(1, 64), args![out]).unwrap();
    let want: Vec<f32> = (0..64).rev().map(|i| i as f32).collect();
    assert_eq!(fixed.read::<f32>(out, 64), want);
}

#[test]
fn a_missing_warp_barrier() {
    let device = Device::new("faults");
    let error = fails(&device, "missing_syncwarp", 1, 32, args![device.blank(128)]);
    assert!(error.message.contains("__syncwarp"), "{error}");
    let fixed = Device::new("faults_fixed");
    fixed.launch("missing_syncwarp", line(1, 32), args![fixed.blank(128)]).unwrap();
}

#[test]
fn a_barrier_that_some_threads_never_reach() {
    let device = Device::new("faults");
    for n in [40, 64] {
        let error = fails(&device, "exit_before_barrier", 1, 96, args![device.blank(384), n]);
        assert!(error.message.contains("deadlock"), "{error}");
    }
    device.launch("exit_before_barrier", line(1, 96), args![device.blank(384), 96]).unwrap();
}

#[test]
fn a_shuffle_with_lanes_that_are_elsewhere() {
    let device = Device::new("faults");
    let error = fails(&device, "shuffle_from_nobody", 1, 32, args![device.blank(128), 20]);
    assert!(error.message.contains("collective") || error.message.contains("deadlock"), "{error}");
    device.launch("shuffle_from_nobody", line(1, 32), args![device.blank(128), 32]).unwrap();
}

#[test]
fn a_division_by_zero() {
    let device = Device::new("faults");
    let x: Vec<i32> = (0..32).map(|i| i - 7).collect();
    let error = fails(&device, "divide", 1, 32, args![device.buffer(&x)]);
    assert_eq!(error.thread, Some([7, 0, 0]));
}

#[test]
fn an_endless_loop() {
    let mut device = Device::new("faults");
    device.options.limit = 100_000;
    let error = fails(&device, "endless", 1, 32, args![device.buffer(&[0i32])]);
    assert!(error.message.contains("no end"), "{error}");
}

#[test]
fn a_launch_of_the_wrong_shape() {
    let device = Device::new("faults");
    let x = device.buffer(&[1i32; 32]);
    assert!(device.launch("divide", line(1, 2048), args![x]).is_err());
    assert!(device.launch("divide", line(0, 32), args![x]).is_err());
    assert!(device.launch("divide", line(1, 32), args![x]).is_ok());
}
