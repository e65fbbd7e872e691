//! Bit instructions, lane exchanges, named barriers and half arithmetic against the CPU.

#[macro_use]
mod common;

use common::{Device, line};
use half::f16;

fn words(count: usize, seed: u32) -> Vec<u32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            state ^ state >> 15
        })
        .collect()
}

#[test]
fn bit_instructions() {
    let device = Device::new("bits");
    let n = 200;
    let (x, y) = (words(n, 1), words(n, 2));
    let out = device.blank(13 * n * 4);
    let args = args![device.buffer(&x), device.buffer(&y), out, n as i32];
    device.launch("words", line(1, 224), args).unwrap();
    let got = device.read::<u32>(out, 13 * n);
    for i in 0..n {
        let (a, b) = (x[i], y[i]);
        let (p, len) = (b & 31, b >> 8 & 31);
        let joined = u64::from(b) << 32 | u64::from(a);
        let mask = ((1u64 << len) - 1) as u32;
        // Bits from p on, filled with the sign above the value.
        let signed = if len == 0 {
            0
        } else {
            let wide = i64::from(a as i32) >> p;
            (wide << (64 - len) >> (64 - len)) as u32
        };
        let bytes = joined.to_le_bytes();
        let permuted = (0..4).map(|k| {
            let pick = b >> (4 * k) & 15;
            let byte = bytes[(pick & 7) as usize];
            if pick & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte }
        });
        let c = a.wrapping_add(b);
        let dot: i32 = a
            .to_le_bytes()
            .iter()
            .zip(b.to_le_bytes())
            .map(|(a, b)| *a as i8 as i32 * (b as i8 as i32))
            .sum();
        let want = [
            (joined << (b & 31) >> 32) as u32,
            (u128::from(joined) >> (b & 63).min(32)) as u32,
            a >> p & mask,
            signed,
            (u64::from(b) & !(u64::from(mask) << p) | u64::from(a & mask) << p) as u32,
            u32::from_le_bytes(permuted.collect::<Vec<_>>().try_into().unwrap()),
            a & b | a & c | b & c,
            dot.wrapping_add(7) as u32,
            (a as i32).abs_diff(b as i32).wrapping_add(5),
            ((u64::from(a) * u64::from(b)) >> 32) as u32,
            (u64::from(a).wrapping_mul(u64::from(b)) % 1_000_003) as u32,
            (a as i32 >> p) as u32,
            (u64::from(a) << p).leading_zeros(),
        ];
        for (row, want) in want.into_iter().enumerate() {
            assert_eq!(got[row * n + i], want, "row {row} of {a:#x}, {b:#x}");
        }
    }
}

#[test]
fn lane_exchanges() {
    let device = Device::new("bits");
    let x: Vec<u32> = words(32, 9).iter().map(|v| v % 11).collect();
    let out = device.blank(7 * 32 * 4);
    device.launch("lanes", line(1, 32), args![device.buffer(&x), out]).unwrap();
    let got = device.read::<u32>(out, 7 * 32);
    let lanes_with =
        |f: &dyn Fn(u32) -> bool| (0..32).filter(|l| f(x[*l])).fold(0u32, |mask, l| mask | 1 << l);
    let odd: Vec<u32> = x.iter().copied().filter(|v| v & 1 == 1).collect();
    for t in 0..32 {
        let any = u32::from(x.contains(&3));
        let all = u32::from(x.iter().all(|v| *v < 8));
        let odd_sum = if x[t] & 1 == 1 { odd.iter().sum::<u32>() + odd[0] } else { 0 };
        let want = [
            any | all << 1 | 1 << 2,
            lanes_with(&|v| v == x[t]),
            x.iter().sum(),
            *x.iter().max().unwrap(),
            if t % 8 >= 3 { x[t - 3] } else { x[t] },
            x[t / 16 * 16 + t * 7 % 16],
            odd_sum,
        ];
        for (row, want) in want.into_iter().enumerate() {
            assert_eq!(got[row * 32 + t], want, "row {row} of lane {t}");
        }
    }
}

#[test]
fn named_barriers_order_producers_and_consumers() {
    let device = Device::new("bits");
    let rounds = 5;
    let x = common::integers(64 * rounds, -9, 9);
    let out = device.blank(64 * 4);
    device.launch("named", line(1, 128), args![device.buffer(&x), out, rounds as i32]).unwrap();
    let want: Vec<i32> =
        (0..64).map(|t| (0..rounds).fold(0, |sum, r| sum * 3 + x[r * 64 + 63 - t])).collect();
    assert_eq!(device.read::<i32>(out, 64), want);
}

#[test]
fn barriers_that_reduce() {
    let device = Device::new("bits");
    for x in [vec![5; 96], common::integers(96, -9, 8), common::integers(96, -9, 9)] {
        let out = device.blank(96 * 4);
        device.launch("counted", line(1, 96), args![device.buffer(&x), out]).unwrap();
        let count = x.iter().filter(|v| **v > 0).count() as i32;
        let any = i32::from(x.contains(&7));
        let all = i32::from(x.iter().all(|v| *v < 9));
        assert_eq!(device.read::<i32>(out, 96), [count * 10 + any * 2 + all; 96]);
    }
}

#[test]
fn half_arithmetic() {
    let device = Device::new("bits");
    let n = 100;
    // Exponents around 1, so that sums and products round.
    let half = |v: u32| (v & 0x83ff | (12 + v % 6) << 10) as u16;
    let pair = |v: u32| u32::from(half(v >> 16)) << 16 | u32::from(half(v));
    let x: Vec<u32> = words(n, 3).iter().map(|v| pair(*v)).collect();
    let y: Vec<u32> = words(n, 4).iter().map(|v| pair(*v)).collect();
    let out = device.blank(4 * n * 4);
    let args = args![device.buffer(&x), device.buffer(&y), out, n as i32];
    device.launch("halves", line(1, 128), args).unwrap();
    let got = device.read::<u32>(out, 4 * n);
    let value = |bits: u32| f64::from(f16::from_bits(bits as u16));
    let round = |v: f64| u32::from(f16::from_f64(v).to_bits());
    for i in 0..n {
        let both = |f: fn(f64, f64) -> f64| {
            let one = |shift: u32| round(f(value(x[i] >> shift), value(y[i] >> shift)));
            one(16) << 16 | one(0)
        };
        assert_eq!(got[i], both(|a, b| a * b + a), "fma {i}");
        assert_eq!(got[n + i], both(|a, b| a + b), "add {i}");
        assert_eq!(got[2 * n + i], both(f64::max), "max {i}");
        assert_eq!(got[3 * n + i], round(value(x[i]) * value(y[i])), "mul {i}");
    }
}
