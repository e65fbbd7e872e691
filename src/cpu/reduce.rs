//! One number for each channel over all rows of a bag: mean, maximum, percentile.

use super::kernels::Kernels;
use super::layer::{Layer, Site};
use super::memory::View;
use super::pool::maximum;
use crate::graph::Reduce;
use half::f16;
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

/// An integer with the order of `f32::total_cmp`.
fn key(x: f16) -> usize {
    let bits = x.to_bits();
    usize::from(if bits >> 15 == 1 { !bits } else { bits | 1 << 15 })
}

/// The number of a key.
fn number(key: usize) -> f64 {
    let key = key as u16;
    f16::from_bits(if key >> 15 == 1 { key & 0x7fff } else { !key }).to_f64()
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

/// Between the two rows of the sorted channel around fraction `q`. Activations are FP16, so that
/// counting their high bytes and then the low bytes below the right one finds any rank.
fn percentile(x: &View, channels: &Range<usize>, q: f32, to: &mut [f32]) {
    let rows = x.positions();
    let (at, fraction) = Reduce::rank(q, rows);
    let mut high: Counts = [[0; 256]; CHANNELS];
    for row in 0..rows {
        for (counts, &x) in high.iter_mut().zip(x.at(row, channels.clone())) {
            counts[key(x) >> 8] += 1;
        }
    }
    let ranks = [at, (at + 1).min(rows - 1)];
    let bins = high.map(|counts| {
        if counts.iter().all(|&n| n == 0) { [(0, 0); 2] } else { ranks.map(|r| find(&counts, r)) }
    });
    let mut low: [Counts; 2] = [[[0; 256]; CHANNELS]; 2];
    for row in 0..rows {
        for (channel, &x) in x.at(row, channels.clone()).iter().enumerate() {
            let key = key(x);
            for (low, bin) in low.iter_mut().zip(bins[channel]) {
                low[channel][key & 255] += u32::from(key >> 8 == bin.0);
            }
        }
    }
    for (channel, to) in to.iter_mut().enumerate() {
        let [below, above] = [0, 1].map(|i| {
            let (bin, rank) = bins[channel][i];
            number(bin << 8 | find(&low[i][channel], rank).0)
        });
        *to = (below + (above - below) * fraction) as f32;
    }
}
