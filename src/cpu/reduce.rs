//! One number for each channel over all rows of a bag: mean, maximum, percentile.

use super::kernels::Kernels;
use super::layer::{Layer, Site};
use super::memory::View;
use super::pool::maximum;
use super::stored::Stored;
use crate::graph::Reduce;
use half::{bf16, f16};
use std::ops::Range;

/// Channels to a task; tables of [`percentile`] stay in the first-level cache.
const CHANNELS: usize = 16;

/// Reduces each channel.
pub(super) struct BagReduce {
    pub kernels: &'static Kernels,
    pub reduce: Reduce,
}

impl Layer for BagReduce {
    fn run(&self, site: &Site<'_>) {
        let x = site.inputs[0];
        site.sink.fill(&site.on, [1, CHANNELS], |part, _| {
            let channels = part.channels.clone();
            let mut value = [0f32; CHANNELS];
            let value = &mut value[..channels.len()];
            match self.reduce {
                Reduce::Mean => self.mean(&x, &channels, value),
                Reduce::Max => self.max(&x, &channels, value),
                Reduce::Percentile(q) => percentile(&x, &channels, q, value),
            }
            part.put(0, channels.start, value);
        });
    }
}

impl BagReduce {
    fn mean(&self, x: &View, channels: &Range<usize>, to: &mut [f32]) {
        let mut sums = [0f64; CHANNELS];
        for row in 0..x.positions() {
            self.kernels.widen(x.at(row, channels.clone()), to);
            sums.iter_mut().zip(&*to).for_each(|(s, &v)| *s += v as f64);
        }
        to.iter_mut().zip(sums).for_each(|(v, s)| *v = (s / x.positions() as f64) as f32);
    }

    fn max(&self, x: &View, channels: &Range<usize>, to: &mut [f32]) {
        let mut value = [0f32; CHANNELS];
        let value = &mut value[..to.len()];
        to.fill(f32::NEG_INFINITY);
        for row in 0..x.positions() {
            self.kernels.widen(x.at(row, channels.clone()), value);
            maximum(to, value);
        }
    }
}

/// An integer with the order that `total_cmp` gives a number of these 16 bits.
fn key(bits: u16) -> usize {
    usize::from(if bits >> 15 == 1 { !bits } else { bits | 1 << 15 })
}

/// The bits of a key.
fn unkey(key: usize) -> u16 {
    let key = key as u16;
    if key >> 15 == 1 { key & 0x7fff } else { !key }
}

/// The bits of numbers of 16 bits.
fn bits(stored: Stored<'_>) -> &[u16] {
    match stored {
        Stored::F16(x) => bytemuck::cast_slice(x),
        Stored::Bf16(x) => bytemuck::cast_slice(x),
        Stored::F32(_) => unreachable!("sorted, not counted"),
    }
}

/// How often each of 256 values occurs in each channel.
type Counts = [[u32; 256]; CHANNELS];

/// The value whose occurrences hold `rank`, and the rank among these.
fn find(counts: &[u32; 256], mut rank: usize) -> (usize, usize) {
    for (value, &count) in counts.iter().enumerate() {
        if rank < count as usize {
            return (value, rank);
        }
        rank -= count as usize;
    }
    unreachable!("ranks are below the number of rows")
}

/// Between the two rows of the sorted channel around fraction `q`.
fn percentile(x: &View, channels: &Range<usize>, q: f32, to: &mut [f32]) {
    let rank = Reduce::rank(q, x.positions());
    match x.at(0, channels.clone()) {
        Stored::F16(_) => counted(x, channels, rank, |b| f16::from_bits(b).to_f64(), to),
        Stored::Bf16(_) => counted(x, channels, rank, |b| bf16::from_bits(b).to_f64(), to),
        Stored::F32(_) => sorted(x, channels, rank, to),
    }
}

/// A percentile of f32 numbers.
fn sorted(x: &View, channels: &Range<usize>, (at, fraction): (usize, f64), to: &mut [f32]) {
    let rows = x.positions();
    for (channel, to) in channels.clone().zip(to) {
        let value = |row| match x.at(row, channel..channel + 1) {
            Stored::F32(x) => x[0],
            _ => unreachable!("of f32 numbers"),
        };
        let mut column: Vec<f32> = (0..rows).map(value).collect();
        let (_, &mut below, rest) = column.select_nth_unstable_by(at, f32::total_cmp);
        let above = rest.iter().copied().min_by(f32::total_cmp).unwrap_or(below);
        *to = (below as f64 + (above as f64 - below as f64) * fraction) as f32;
    }
}

/// A percentile of numbers of 16 bits: counting their high bytes and then the low bytes below the
/// right one finds any rank.
fn counted(
    x: &View,
    channels: &Range<usize>,
    (at, fraction): (usize, f64),
    number: impl Fn(u16) -> f64,
    to: &mut [f32],
) {
    let rows = x.positions();
    let mut high: Counts = [[0; 256]; CHANNELS];
    for row in 0..rows {
        for (counts, &x) in high.iter_mut().zip(bits(x.at(row, channels.clone()))) {
            counts[key(x) >> 8] += 1;
        }
    }
    let ranks = [at, (at + 1).min(rows - 1)];
    let bins = high.map(|counts| {
        if counts.iter().all(|&n| n == 0) { [(0, 0); 2] } else { ranks.map(|r| find(&counts, r)) }
    });
    let mut low: [Counts; 2] = [[[0; 256]; CHANNELS]; 2];
    for row in 0..rows {
        for (channel, &x) in bits(x.at(row, channels.clone())).iter().enumerate() {
            let key = key(x);
            for (low, bin) in low.iter_mut().zip(bins[channel]) {
                low[channel][key & 255] += u32::from(key >> 8 == bin.0);
            }
        }
    }
    for (channel, to) in to.iter_mut().enumerate() {
        let [below, above] = [0, 1].map(|i| {
            let (bin, rank) = bins[channel][i];
            number(unkey(bin << 8 | find(&low[i][channel], rank).0))
        });
        *to = (below + (above - below) * fraction) as f32;
    }
}
