//! Filter weights in the form in which multiply-add instructions take them, without a bit lost.
//!
//! `vpdpbusd` and `vpmaddwd` multiply neighbouring pixels by neighbouring numbers of 8 or 16 bits and
//! sum the products in 32 bits. A weight has more bits than that, so it is written as a sum of signed
//! digits, `w = d0 + d1 * B + d2 * B^2 ..` with B of 2^8 or 2^16, and the sum of products is put together
//! likewise. This wraps where the exact sum may not: both are the same modulo 2^32, and the exact
//! one fits. Zero bits that all weights of a block end in are left out beforehand: the weights for a
//! factor of two, say, are whole 256ths and need one digit.
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only the instructions of x86-64 take weights in this form")
)]

use super::axis::{Axis, PRECISION_BITS};
use std::ops::Range;

/// What a multiply-add instruction takes.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    /// Sums in a register, or in the part of it that serves one row of a picture.
    pub lanes: usize,
    /// Products summed in a lane.
    pub taps: usize,
    /// Bits of a digit, and of a pixel once it is multiplied.
    pub bits: u32,
    /// Bytes of a row that one shuffle reaches. A shuffled register has as many.
    pub window: usize,
}

/// Neighbouring sums along one axis whose weights have the same form.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// First input sample.
    pub start: usize,
    /// Input samples.
    pub count: usize,
    /// Words along the taps of a sum.
    pub groups: usize,
    /// Digits of a weight.
    pub digits: usize,
    /// Fraction bits left.
    pub shift: u32,
    /// Output samples.
    pub samples: usize,
    /// Where its words begin.
    pub words: usize,
    /// Along rows, the first output byte.
    pub first_byte: usize,
}

impl Block {
    /// Bytes from the beginning of a row of 3 bytes a pixel to behind its last window.
    #[inline(always)]
    pub fn reach(&self, unit: Unit) -> usize {
        3 * (self.start + self.groups * unit.taps) + unit.window
    }
}

/// An axis in blocks.
#[derive(Clone, Debug)]
pub struct Plan {
    pub blocks: Vec<Block>,
    /// Of each block the digits of `[groups, digits, samples]` times [`Unit::taps`] weights; further
    /// words at the end, so that reading a register full stays inside.
    pub words: Vec<u32>,
    /// Along rows, [`Unit::window`] bytes a block: which byte of the window goes where, 128 for 0.
    pub shuffles: Vec<u8>,
    /// Along rows, [`Unit::lanes`] a block: which output sample of the block a lane sums.
    pub samples: Vec<u8>,
    /// Along rows, the furthest that a block reaches.
    pub reach: usize,
}

/// Words in the widest register.
pub const PADDING: usize = 16;

impl Plan {
    /// For sums of whole rows: each output sample is a block.
    pub fn of_rows(axis: &Axis, unit: Unit) -> Plan {
        let mut plan = Plan::empty();
        for i in 0..axis.bounds.len() {
            plan.push(axis, i..i + 1, 0, unit);
        }
        plan.finished()
    }

    /// For sums along rows of 3 bytes a pixel: a block is as many output bytes as there are lanes, or
    /// fewer, where their pixels lie too far apart for a shuffle.
    pub fn along_rows(axis: &Axis, unit: Unit) -> Plan {
        let mut plan = Plan::empty();
        let (mut byte, bytes) = (0, axis.bounds.len() * 3);
        while byte < bytes {
            let first = byte / 3;
            let origin = axis.bounds[first].0;
            let offset = |byte: usize| (axis.bounds[byte / 3].0 - origin) * 3 + byte % 3;
            let reached = |&byte: &usize| offset(byte) + 3 * (unit.taps - 1) < unit.window;
            let count = (byte..bytes).take(unit.lanes).take_while(reached).count();
            let end = byte + count;
            for lane in 0..unit.lanes {
                // Lanes without a sum repeat the last one.
                let byte = (byte + lane).min(end - 1);
                plan.samples.push((byte / 3 - first) as u8);
                for tap in 0..unit.taps {
                    plan.shuffles.push((offset(byte) + 3 * tap) as u8);
                    plan.shuffles.extend((8..unit.bits).step_by(8).map(|_| 128));
                }
            }
            plan.push(axis, first..end.div_ceil(3), byte, unit);
            byte = end;
        }
        plan.reach = plan.blocks.iter().map(|block| block.reach(unit)).max().unwrap_or(0);
        plan.finished()
    }

    fn empty() -> Plan {
        Plan { blocks: vec![], words: vec![], shuffles: vec![], samples: vec![], reach: 0 }
    }

    fn finished(mut self) -> Plan {
        self.words.extend([0; PADDING]);
        self
    }

    /// Appends the words of some output samples, and a block of them.
    fn push(&mut self, axis: &Axis, samples: Range<usize>, first_byte: usize, unit: Unit) {
        let (start, _) = axis.sample(samples.start);
        let weights: Vec<&[i32]> = samples.map(|i| axis.sample(i).1).collect();
        let all = || weights.iter().copied().flatten();
        let zeros = all().map(|w| w.trailing_zeros()).min().unwrap_or(0).min(PRECISION_BITS - 1);
        let digits = all().map(|w| digits(w >> zeros, unit.bits)).max().unwrap_or(1);
        let count = weights.iter().map(|w| w.len()).max().unwrap_or(0);
        let block = Block {
            start,
            count,
            groups: count.div_ceil(unit.taps),
            digits,
            shift: PRECISION_BITS - zeros,
            samples: weights.len(),
            words: self.words.len(),
            first_byte,
        };
        for (group, place) in (0..block.groups).flat_map(|g| (0..digits).map(move |d| (g, d))) {
            self.words.extend(weights.iter().map(|weights| {
                let taps = weights.iter().skip(group * unit.taps).take(unit.taps);
                taps.rev().fold(0, |word, w| {
                    // A word of one tap does not exist, so the shift stays below 32 bits.
                    word << unit.bits | digit(w >> zeros, place, unit.bits)
                })
            }));
        }
        self.blocks.push(block);
    }
}

/// What is left of `weight` above its last signed digit.
fn above(weight: i32, bits: u32) -> i32 {
    ((i64::from(weight) + (1 << (bits - 1))) >> bits) as i32
}

/// Signed digits of a weight, at least one.
fn digits(weight: i32, bits: u32) -> usize {
    let mut count = 1;
    let mut rest = above(weight, bits);
    while rest != 0 {
        count += 1;
        rest = above(rest, bits);
    }
    count
}

/// The digit of a place, as the lowest bits of a word.
fn digit(weight: i32, place: usize, bits: u32) -> u32 {
    let rest = (0..place).fold(weight, |rest, _| above(rest, bits));
    rest as u32 & ((1 << bits) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_add_up_to_the_weight() {
        let near = |w: i32| w - 70_000..w + 70_000;
        let weights = near(0).chain(near(1 << 22)).chain(near(-(1 << 20))).chain(near(1 << 24));
        for weight in weights {
            for bits in [8, 16] {
                let count = digits(weight, bits);
                let signed = |k| (digit(weight, k, bits) << (32 - bits)) as i32 >> (32 - bits);
                let sum: i64 = (0..count).map(|k| i64::from(signed(k)) << (bits * k as u32)).sum();
                assert_eq!(sum, i64::from(weight), "{count} digits of {bits} bits");
            }
        }
    }

    #[test]
    fn a_factor_of_two_needs_one_digit() {
        use crate::recipe::Interpolation::{Bicubic, Bilinear};
        let unit = Unit { lanes: 16, taps: 4, bits: 8, window: 64 };
        for (filter, groups) in [(Bilinear, 1), (Bicubic, 2)] {
            let plan = Plan::of_rows(&Axis::new(512, 0.0, 512.0, 256, filter), unit);
            let middle = plan.blocks[128];
            assert_eq!((middle.digits, middle.groups), (1, groups), "{filter:?}");
            // At the edge weights are scaled to what is left of the filter.
            assert_eq!(plan.blocks[0].digits, 3, "{filter:?}");
        }
    }
}
