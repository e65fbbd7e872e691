//! The stratified bootstrap of a ROC curve: its area, and a band around it, from the same rounds.

use super::{Level, Roc};
use crate::stats::bootstrap::{Bootstrap, Plan, Rng};
use crate::stats::{Interval, quantile_sorted};
use rayon::prelude::*;
use serde::Serialize;

/// The bootstrap of a ROC curve.
#[derive(Clone, Debug)]
pub struct RocBootstrap {
    /// Of the area.
    pub auc: Bootstrap,
    /// Pointwise band of the sensitivity.
    pub band: Vec<BandPoint>,
}

/// The sensitivity at one specificity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BandPoint {
    /// The specificity.
    pub specificity: f64,
    /// The curve there: linear between its points, the upper end of a vertical step.
    pub sensitivity: f64,
    /// Percentile interval over the rounds.
    pub interval: Interval,
}

/// A curve by how many rows of each class lie at each distinct score.
struct Counts<'a> {
    levels: &'a [(u32, u32)],
    positives: f64,
    negatives: f64,
}

impl Counts<'_> {
    fn auc(&self) -> f64 {
        let (mut below, mut twice) = (0u64, 0u128);
        for (pos, neg) in self.levels {
            twice += u128::from(*pos) * u128::from(2 * below + u64::from(*neg));
            below += u64::from(*neg);
        }
        twice as f64 / 2.0 / (self.positives * self.negatives)
    }

    /// Sensitivity at each of the ascending false-positive rates `fpr`.
    fn sensitivities(&self, fpr: &[f64]) -> Vec<f64> {
        let mut out = Vec::with_capacity(fpr.len());
        let (mut tp, mut fp) = (0u64, 0u64);
        for (pos, neg) in self.levels.iter().rev() {
            let (tp_next, fp_next) = (tp + u64::from(*pos), fp + u64::from(*neg));
            let (x0, x1) = (fp as f64 / self.negatives, fp_next as f64 / self.negatives);
            let (y0, y1) = (tp as f64 / self.positives, tp_next as f64 / self.positives);
            // A rate at the end of this piece may lie on the vertical step that follows.
            while let Some(&x) = fpr.get(out.len()).filter(|x| **x < x1) {
                out.push(y0 + (y1 - y0) * (x - x0) / (x1 - x0));
            }
            (tp, fp) = (tp_next, fp_next);
        }
        out.resize(fpr.len(), 1.0);
        out
    }
}

impl Roc {
    /// Bootstrap of the curve, stratified: each round draws as many positives and negatives as there
    /// are. The band is taken at each of `specificities`, in any order. O(N) a round.
    pub fn bootstrap(&self, plan: Plan, specificities: &[f64], level: f64) -> RocBootstrap {
        let spread = |count: fn(&Level) -> usize| -> Vec<u32> {
            let rows = self.levels.iter().enumerate();
            rows.flat_map(|(i, l)| std::iter::repeat_n(i as u32, count(l))).collect()
        };
        let (positive, negative) = (spread(|l| l.positive), spread(|l| l.negative));
        let mut fpr: Vec<f64> = specificities.iter().map(|s| 1.0 - s).collect();
        fpr.sort_by(f64::total_cmp);
        let rounds: Vec<(f64, Vec<f64>)> = (0..plan.rounds)
            .into_par_iter()
            .map_init(
                || vec![(0u32, 0u32); self.levels.len()],
                |counts, round| {
                    let mut rng = Rng::new(plan.seed, round as u64);
                    counts.fill((0, 0));
                    for _ in 0..positive.len() {
                        counts[positive[rng.below(positive.len())] as usize].0 += 1;
                    }
                    for _ in 0..negative.len() {
                        counts[negative[rng.below(negative.len())] as usize].1 += 1;
                    }
                    let drawn = self.counted(counts);
                    (drawn.auc(), drawn.sensitivities(&fpr))
                },
            )
            .collect();
        let observed: Vec<(u32, u32)> =
            self.levels.iter().map(|l| (l.positive as u32, l.negative as u32)).collect();
        let here = self.counted(&observed).sensitivities(&fpr);
        let a = (1.0 - level) / 2.0;
        let band = fpr.iter().zip(here).enumerate().filter_map(|(k, (fpr, sensitivity))| {
            let mut at: Vec<f64> = rounds.iter().map(|(_, s)| s[k]).collect();
            at.sort_by(f64::total_cmp);
            let (lower, upper) = (quantile_sorted(&at, a)?, quantile_sorted(&at, 1.0 - a)?);
            let interval = Interval { lower, upper };
            Some(BandPoint { specificity: 1.0 - fpr, sensitivity, interval })
        });
        let areas = rounds.iter().map(|(auc, _)| Some(*auc)).collect();
        RocBootstrap { band: band.collect(), auc: Bootstrap::new(areas) }
    }

    fn counted<'a>(&self, levels: &'a [(u32, u32)]) -> Counts<'a> {
        Counts { levels, positives: self.positives as f64, negatives: self.negatives as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_band_lies_around_the_curve_and_threads_do_not_move_it() {
        let scores: Vec<f64> = (0..60).map(|i| f64::from(i * 37 % 60)).collect();
        let labels: Vec<bool> = scores.iter().map(|s| (*s as u32 * 7) % 60 > 25).collect();
        let roc = Roc::new(&scores, &labels).unwrap();
        let grid: Vec<f64> = (0..=20).map(|i| f64::from(i) / 20.0).collect();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| roc.bootstrap(Plan { rounds: 300, seed: 5 }, &grid, 0.95))
        };
        let (one, two) = (run(1), run(2));
        assert_eq!(one.band, two.band);
        assert_eq!(one.auc.values, two.auc.values);
        assert_eq!(one.band.len(), grid.len());
        for p in &one.band {
            assert!(
                p.interval.lower <= p.sensitivity && p.sensitivity <= p.interval.upper,
                "{p:?}"
            );
        }
    }

    /// Two negatives, two positives: (0, 1/2), then (1/2, 1/2), then up, then across.
    #[test]
    fn sensitivity_is_read_at_the_upper_end_of_a_step() {
        let roc = Roc::new(&[4.0, 3.0, 2.0, 1.0], &[true, false, true, false]).unwrap();
        let levels = [(0, 1), (1, 0), (0, 1), (1, 0)];
        let at = roc.counted(&levels).sensitivities(&[0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(at, [0.5, 0.5, 1.0, 1.0, 1.0]);
    }
}
