//! Seeded bootstrap intervals whose bits do not depend on the number of threads.

use super::dist::normal_cdf;
use super::intervals::Interval;
use super::{mean, normal_quantile, quantile_sorted, variance};
use rayon::prelude::*;
use serde::Serialize;

/// The generator of one bootstrap round: SplitMix64 (Steele, Lea and Flood 2014), whose output
/// mixing makes consecutive seeds independent streams.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of round `round` under `seed`.
    pub fn new(seed: u64, round: u64) -> Self {
        let mut rng = Rng(seed);
        let base = rng.next_u64();
        Rng(base ^ Rng(round).next_u64())
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A uniform number in (0, 1), on a grid of 2^-53 shifted by half a step.
    pub fn uniform(&mut self) -> f64 {
        ((self.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// A uniform index below `n` (multiply-shift; the bias is below n / 2^64).
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }
}

/// How often to resample, from which seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Rounds.
    pub rounds: usize,
    /// Seed; the same seed gives the same bits.
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Plan { rounds: 2000, seed: 1 }
    }
}

/// The bootstrap distribution of one statistic.
#[derive(Clone, Debug, Serialize)]
pub struct Bootstrap {
    /// Values of the rounds in which the statistic exists, ascending.
    #[serde(skip)]
    pub values: Vec<f64>,
    /// Rounds in which it does not exist (no variation, one class).
    pub undefined: usize,
    /// Mean of the values.
    pub mean: f64,
    /// Standard deviation of the values, `None` below two.
    pub sd: Option<f64>,
}

/// Runs `statistic` once a round, in parallel; it gets the round's generator and says `None` where
/// the statistic does not exist on that resample.
pub fn bootstrap(plan: Plan, statistic: impl Fn(&mut Rng) -> Option<f64> + Sync) -> Bootstrap {
    let all: Vec<Option<f64>> = (0..plan.rounds)
        .into_par_iter()
        .map(|round| statistic(&mut Rng::new(plan.seed, round as u64)).filter(|v| v.is_finite()))
        .collect();
    Bootstrap::new(all)
}

impl Bootstrap {
    /// The distribution of `rounds`, `None` where the statistic does not exist.
    pub(crate) fn new(rounds: Vec<Option<f64>>) -> Self {
        let mut values: Vec<f64> = rounds.iter().flatten().copied().collect();
        values.sort_by(f64::total_cmp);
        let undefined = rounds.len() - values.len();
        Bootstrap { mean: mean(&values), sd: variance(&values).map(f64::sqrt), undefined, values }
    }

    /// Percentile interval (Efron 1979), type-7 quantiles.
    pub fn percentile(&self, level: f64) -> Option<Interval> {
        let a = (1.0 - level) / 2.0;
        Some(Interval {
            lower: quantile_sorted(&self.values, a)?,
            upper: quantile_sorted(&self.values, 1.0 - a)?,
        })
    }

    /// Bias-corrected and accelerated interval (Efron 1987) of `estimate`, with acceleration from
    /// the leave-one-out values `jackknife`. `None` when every round lies on one side.
    pub fn bca(&self, estimate: f64, jackknife: &[f64], level: f64) -> Option<Interval> {
        let n = self.values.len() as f64;
        let below = self.values.iter().filter(|&&v| v < estimate).count() as f64;
        let tied = self.values.iter().filter(|&&v| v == estimate).count() as f64;
        let share = (below + tied / 2.0) / n;
        if !(share > 0.0 && share < 1.0) {
            return None;
        }
        let z0 = normal_quantile(share);
        let centre = mean(jackknife);
        let cubes: f64 = jackknife.iter().map(|v| (centre - v).powi(3)).sum();
        let squares: f64 = jackknife.iter().map(|v| (centre - v).powi(2)).sum();
        let a = if squares > 0.0 { cubes / (6.0 * squares.powf(1.5)) } else { 0.0 };
        let at = |p: f64| {
            let z = z0 + normal_quantile(p);
            quantile_sorted(&self.values, normal_cdf(z0 + z / (1.0 - a * z)))
        };
        Some(Interval { lower: at((1.0 - level) / 2.0)?, upper: at((1.0 + level) / 2.0)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resampled_mean(x: &[f64]) -> Bootstrap {
        bootstrap(Plan { rounds: 4000, seed: 3 }, |rng| {
            Some((0..x.len()).map(|_| x[rng.below(x.len())]).sum::<f64>() / x.len() as f64)
        })
    }

    #[test]
    fn the_spread_of_a_mean_is_its_standard_error() {
        let x: Vec<f64> = (0..50).map(f64::from).collect();
        let b = resampled_mean(&x);
        // sqrt((n^2 - 1) / 12 / n) for 0..n
        assert!((b.sd.unwrap() - 2.0408).abs() < 0.1, "{:?}", b.sd);
        assert!((b.mean - 24.5).abs() < 0.1);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let x: Vec<f64> = (0..20).map(|i| f64::from(i).sin()).collect();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| resampled_mean(&x).values)
        };
        assert_eq!(run(1), run(2));
    }

    /// For the mean of a skewed sample BCa must move towards the long tail.
    #[test]
    fn bca_leans_towards_the_long_tail() {
        let x: Vec<f64> = (0..40).map(|i| (f64::from(i) / 8.0).exp()).collect();
        let b = resampled_mean(&x);
        let total: f64 = x.iter().sum();
        let jackknife: Vec<f64> = x.iter().map(|v| (total - v) / 39.0).collect();
        let bca = b.bca(total / 40.0, &jackknife, 0.95).unwrap();
        let plain = b.percentile(0.95).unwrap();
        assert!(bca.lower > plain.lower && bca.upper > plain.upper);
        assert!(b.bca(1e9, &jackknife, 0.95).is_none());
    }
}
