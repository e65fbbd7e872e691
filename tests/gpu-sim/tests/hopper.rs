//! TMA, mbarrier, wgmma and clusters: exact products of integer-valued inputs, and the faults of a
//! warp-specialised ring.

#[macro_use]
mod common;

use common::{Device, fixture, integers};
use gpu_sim::machine::{LaunchError, Shape};
use gpu_sim::tensor_map::{Swizzle, TensorMap};
use half::f16;

/// A map of a row-major (rows, k) matrix of halves in boxes of `tile` rows by 64.
fn map(base: u64, rows: usize, k: usize, tile: u16) -> Vec<u8> {
    let map = TensorMap {
        base,
        rank: 2,
        dims: [k as u32, rows as u32, 1, 1, 1],
        strides: [k as u64 * 2, 0, 0, 0],
        box_dims: [64, tile, 1, 1, 1],
        element_strides: [1; 5],
        element: 2,
        swizzle: Swizzle::B128,
        nan_fill: false,
        im2col: None,
    };
    map.to_bytes().to_vec()
}

/// Sums of a run and what they should be.
type Sums = (Vec<f32>, Vec<f32>);

fn run(name: &str, size: (usize, usize, usize)) -> Result<Sums, LaunchError> {
    run_on(&Device::new(name), size)
}

/// The fixture with one of its lines changed.
fn run_with(line: &str, other: &str) -> Result<Sums, LaunchError> {
    let text = fixture("hopper");
    assert!(text.contains(line), "{line}");
    run_on(&Device::from_text(&text.replacen(line, other, 1)).unwrap(), DEEP)
}

fn run_on(device: &Device, (m, n, k): (usize, usize, usize)) -> Result<Sums, LaunchError> {
    let all = integers((m + n) * k, -8, 8);
    let (a, b) = all.split_at(m * k);
    let halves = |v: &[i32]| v.iter().map(|v| f16::from_f32(*v as f32)).collect::<Vec<_>>();
    let (pa, pb) = (device.buffer(&halves(a)), device.buffer(&halves(b)));
    let pc = device.blank(m * n * 4);
    let args = [
        map(pa, m, k, 128),
        map(pb, n, k, 64),
        pc.to_le_bytes().to_vec(),
        (n as i32).to_le_bytes().to_vec(),
        (k as i32).to_le_bytes().to_vec(),
    ];
    let shape = Shape::new([m as u32 / 128, n as u32 / 64, 1], [384, 1, 1], 3 * 24576 + 64);
    device.launch("hopper_gemm", shape, &args)?;
    let dot = |x: &[i32], y: &[i32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<i32>() as f32;
    let want = a.chunks(k).flat_map(|x| b.chunks(k).map(move |y| dot(x, y))).collect();
    Ok((device.read(pc, m * n), want))
}

/// K longer than the ring, and not a multiple of the depth of a stage.
const DEEP: (usize, usize, usize) = (128, 128, 64 * 7 + 24);

#[test]
fn tensor_copies_and_warpgroup_products() {
    for size in [(128, 64, 64), (256, 64, 40), DEEP] {
        let (got, want) = run("hopper", size).unwrap();
        assert_eq!(got, want, "{size:?}");
    }
}

#[test]
fn a_missing_wait_for_a_full_stage_is_found() {
    let error = run("hopper_no_full_wait", DEEP).unwrap_err();
    let known = ["race", "never written"];
    assert!(known.iter().any(|k| error.message.contains(k)), "{error}");
}

#[test]
fn a_missing_wait_for_an_empty_stage_is_found() {
    let error = run("hopper_no_empty_wait", DEEP).unwrap_err();
    assert!(error.message.contains("race"), "{error}");
}

#[test]
fn a_wrong_transaction_count_is_found() {
    let error = run("hopper_wrong_bytes", DEEP).unwrap_err();
    assert!(error.message.contains("deadlock"), "{error}");
}

#[test]
fn a_missing_wait_for_products_is_found() {
    // The stage is handed back before it has been read, or the sums are never formed.
    match run("hopper_no_product_wait", DEEP) {
        Ok((got, want)) => assert_ne!(got, want),
        Err(error) => {
            let known = ["race", "in flight"];
            assert!(known.iter().any(|k| error.message.contains(k)), "{error}");
        }
    }
}

#[test]
fn a_missing_fence_before_products_is_found() {
    let error = run_with("wgmma.fence.sync.aligned;", "").unwrap_err();
    assert!(error.message.contains("wgmma.fence"), "{error}");
}

#[test]
fn registers_are_passed_on_within_what_a_block_has() {
    // 128 threads give up 168 - 48, 256 want 232 - 168 more: 1024 too many.
    let dec = "setmaxnreg.dec.sync.aligned.u32";
    let error = run_with(&format!("{dec} 40;"), &format!("{dec} 48;")).unwrap_err();
    assert!(error.message.contains("deadlock"), "{error}");
    let error = run_with(&format!("{dec} 40;"), &format!("{dec} 176;")).unwrap_err();
    assert!(error.message.contains("shrinks from 168 to 176"), "{error}");
    // The compiler ignores it where a block has no guaranteed share.
    let error = run_with(".minnctapersm 1", "").unwrap_err();
    assert!(error.message.contains("launch_bounds"), "{error}");
}

#[test]
fn a_wrong_descriptor_stride_gives_another_matrix() {
    let (got, want) = run("hopper_wrong_stride", (128, 64, 64)).unwrap();
    assert_ne!(got, want);
}

#[test]
fn blocks_of_a_cluster_read_each_other() {
    let device = Device::new("hopper");
    let x = integers(6 * 32, 0, 1000);
    let (px, out) = (device.buffer(&x), device.blank(6 * 32 * 4));
    let shape = Shape { cluster: [2, 1, 1], ..Shape::new([6, 1, 1], [32, 1, 1], 0) };
    device.launch("exchange", shape, args![px, out]).unwrap();
    let want: Vec<i32> =
        (0..6 * 32).map(|i| x[((i / 32) ^ 1) * 32 + 31 - i % 32] * 100 + i as i32 / 64).collect();
    assert_eq!(device.read::<i32>(out, 6 * 32), want);
    // Without its cluster the kernel may not be launched.
    let alone = Shape::new([6, 1, 1], [32, 1, 1], 0);
    assert!(device.launch("exchange", alone, args![px, out]).is_err());
}

#[test]
fn a_block_that_may_end_while_another_reads_it_is_found() {
    let text = fixture("hopper");
    let (before, after) = text.rsplit_once("barrier.cluster.arrive").unwrap();
    let line = after.find('\n').unwrap();
    let after = after[line..].replacen("barrier.cluster.wait", "// barrier.cluster.wait", 1);
    let device = Device::from_text(&format!("{before}// {after}")).unwrap();
    let (x, out) = (device.buffer(&integers(6 * 32, 0, 1000)), device.blank(6 * 32 * 4));
    let shape = Shape { cluster: [2, 1, 1], ..Shape::new([6, 1, 1], [32, 1, 1], 0) };
    let error = device.launch("exchange", shape, args![x, out]).unwrap_err();
    assert!(error.message.contains("kept that block from ending"), "{error}");
}

#[test]
fn a_barrier_that_miscounts_its_arrivals_is_found() {
    // Both warpgroups arrive where a stage becomes empty, and the loading thread where it becomes full.
    for (right, wrong) in [("[%r23], 2;", "[%r23], 1;"), ("[%r22], 1;", "[%r22], 2;")] {
        let error = run_with(right, wrong).unwrap_err();
        let known = ["race", "deadlock", "in the middle of a phase"];
        assert!(known.iter().any(|k| error.message.contains(k)), "{error}");
    }
}
