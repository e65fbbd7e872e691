//! Correct programs give the values that the CPU computes.

#[macro_use]
mod common;

use common::{Device, integers, line};

#[test]
fn vector_add() {
    let device = Device::new("basic");
    let n = 1000;
    let a: Vec<f32> = (0..n).map(|i| i as f32 * 0.25).collect();
    let b: Vec<f32> = (0..n).map(|i| 1.0 / (i + 1) as f32).collect();
    let (pa, pb, pc) = (device.buffer(&a), device.buffer(&b), device.blank(n * 4));
    device.launch("vector_add", line(8, 128), args![pa, pb, pc, n as i32]).unwrap();
    let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    assert_eq!(device.read::<f32>(pc, n), want);
}

#[test]
fn block_sum_by_shuffles_and_a_barrier() {
    let device = Device::new("basic");
    let x: Vec<f32> = integers(5000, -50, 50).iter().map(|v| *v as f32).collect();
    for threads in [64u32, 256] {
        let (px, out) = (device.buffer(&x), device.blank(7 * 4));
        device.launch("block_sum", line(7, threads), args![px, out, 5000]).unwrap();
        let sums = device.read::<f32>(out, 7);
        for (block, sum) in sums.iter().enumerate() {
            let mine = |i: &usize| i / threads as usize % 7 == block;
            let want: f32 = (0..5000).filter(mine).map(|i| x[i]).sum();
            assert_eq!(*sum, want, "block {block} of {threads} threads");
        }
    }
}

#[test]
fn lanes_loop_for_their_own_number_of_steps() {
    let device = Device::new("basic");
    let start: Vec<u32> = (1..=200).chain([837_799, 113_383]).collect();
    let n = start.len();
    let ps = device.buffer(&start);
    let (steps, peak) = (device.blank(n * 4), device.blank(n * 8));
    device.launch("collatz", line(4, 64), args![ps, steps, peak, n as i32]).unwrap();
    let want = |start: u32| {
        let (mut v, mut steps, mut top) = (u64::from(start), 0u32, u64::from(start));
        while v != 1 {
            v = if v % 2 == 1 { 3 * v + 1 } else { v / 2 };
            top = top.max(v);
            steps += 1;
        }
        (steps, top)
    };
    let got: Vec<_> =
        device.read::<u32>(steps, n).into_iter().zip(device.read::<u64>(peak, n)).collect();
    assert_eq!(got, start.iter().map(|s| want(*s)).collect::<Vec<_>>());
}

#[test]
fn many_ways_reconverge_at_a_vote() {
    let device = Device::new("basic");
    let x = integers(64, 0, 7);
    let (px, out) = (device.buffer(&x), device.blank(64 * 4));
    device.launch("ways", line(1, 64), args![px, out]).unwrap();
    let value = |t: i32, v: i32| match v {
        0 => 100,
        1 => t * 3,
        2 => (0..t).fold(-t, |v, i| v + i * i % 7),
        3 => (t as u32).wrapping_mul(2_654_435_761).count_ones() as i32,
        4 => (t + 1).leading_zeros() as i32,
        5 => ((t as u32).reverse_bits() >> 20) as i32,
        _ => ((i64::from(t) << 30) >> 32) as i32,
    };
    let values: Vec<i32> = (0..64).map(|t| value(t, x[t as usize])).collect();
    let want: Vec<i32> = (0..64)
        .map(|t: usize| {
            let warp = &values[t / 32 * 32..t / 32 * 32 + 32];
            values[t] * 1000 + warp.iter().filter(|v| **v > 0).count() as i32
        })
        .collect();
    assert_eq!(device.read::<i32>(out, 64), want);
}

#[test]
fn atomics_and_constant_memory() {
    let device = Device::new("basic");
    let x: Vec<u8> = integers(3000, 0, 255).iter().map(|v| *v as u8).collect();
    let (px, bins, total) = (device.buffer(&x), device.buffer(&[0u32; 8]), device.buffer(&[0f32]));
    device.launch("histogram", line(5, 96), args![px, bins, total, 3000]).unwrap();
    let mut want = [0u32; 8];
    x.iter().for_each(|v| want[usize::from(v & 7)] += 1);
    assert_eq!(device.read::<u32>(bins, 8), want);
    let table = [3, 1, 4, 1, 5, 9, 2, 6];
    let sum: u32 = want.iter().zip(table).map(|(n, v)| n * v).sum();
    assert_eq!(device.read::<f32>(total, 1), [sum as f32]);
}

#[test]
fn elementary_functions() {
    let device = Device::new("basic");
    let x: Vec<f32> = vec![-3.5, -1.0, -0.3, -0.01, 0.02, 0.5, 0.9, 1.0, 2.25, 6.0];
    let n = x.len();
    let (px, out) = (device.buffer(&x), device.blank(10 * n * 4));
    device.launch("functions", line(1, 32), args![px, out, n as i32]).unwrap();
    let got = device.read::<f32>(out, 10 * n);
    // Published values of erf, 7 digits.
    let erf = [
        -0.999_999_3,
        -0.842_700_8,
        -0.328_626_8,
        -0.011_283_4,
        0.022_564_57,
        0.520_499_9,
        0.796_908_2,
        0.842_700_8,
        0.998_537_3,
        1.0,
    ];
    for (i, v) in x.iter().copied().enumerate() {
        let near = |row: usize, want: f32, tolerance: f32| {
            let got = got[row * n + i];
            assert!(
                (got - want).abs() <= tolerance * want.abs(),
                "{row}: f({v}) = {got}, not {want}"
            );
        };
        near(0, v.exp(), 1e-6);
        near(1, 1.0 / v, 0.0);
        near(2, v.abs().sqrt(), 0.0);
        near(3, v.tanh(), 1.0 / 2048.0);
        near(4, erf[i], 3e-6);
        near(5, v.mul_add(v, -v), 0.0);
        near(6, half::f16::from_f32(v).to_f32(), 0.0);
        near(7, (v * 3.0).round_ties_even(), 0.0);
        near(8, (v.abs() + 1.0).ln(), 2e-6);
        near(9, v.clamp(-0.5, 0.5), 0.0);
    }
}

#[test]
fn local_memory() {
    let device = Device::new("basic");
    let x = integers(40 * 8, -1000, 1000);
    let (px, out) = (device.buffer(&x), device.blank(40 * 8 * 4));
    device.launch("local_sort", line(1, 40), args![px, out]).unwrap();
    let want: Vec<i32> = x
        .chunks(8)
        .flat_map(|row| {
            let mut row = row.to_vec();
            row.sort_unstable();
            row
        })
        .collect();
    assert_eq!(device.read::<i32>(out, 40 * 8), want);
}

#[test]
fn an_unknown_instruction_names_its_line() {
    let text = common::fixture("basic");
    let line = 1 + text.lines().position(|l| l.contains("add.f32")).unwrap();
    let broken = text.replacen("add.f32", "frobnicate.f32", 1);
    let error = Device::from_text(&broken).err().unwrap();
    assert!(error.contains(&format!("PTX line {line}")) && error.contains("frobnicate"), "{error}");
    let broken = text.replacen("add.f32", "add.odd.f32", 1);
    let error = Device::from_text(&broken).err().unwrap();
    assert!(error.contains(&format!("PTX line {line}")) && error.contains(".odd"), "{error}");
}

#[test]
fn results_do_not_depend_on_the_number_of_workers() {
    let sums = |workers| {
        let mut device = Device::new("basic");
        device.options.workers = workers;
        let x: Vec<f32> = (0..5000).map(|i| (i as f32).sin()).collect();
        let (px, out) = (device.buffer(&x), device.blank(32 * 4));
        let stats = device.launch("block_sum", line(32, 64), args![px, out, 5000]).unwrap();
        (stats, device.read::<u32>(out, 32))
    };
    assert_eq!(sums(1), sums(2));
}
