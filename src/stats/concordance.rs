//! How well a risk score orders survival: concordance, time-dependent AUC, and the Brier score under
//! censoring. A larger score speaks for an earlier event.

use super::survival::{by_stratum, censoring_curve, check};
use super::{finite, mid_ranks, probabilities, same_length};
use crate::error::{Error, Result};
use serde::Serialize;

/// Pairs of rows by how the score orders them, and their summary.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Concordance {
    /// Concordant share of comparable pairs, ties in the score half; `None` without comparable pairs.
    pub c: Option<f64>,
    /// Standard error by the infinitesimal jackknife (Therneau and Watson 2015).
    pub se: Option<f64>,
    /// Pairs ordered rightly (a weighted sum for Uno's C).
    pub concordant: f64,
    /// Pairs ordered wrongly.
    pub discordant: f64,
    /// Comparable pairs tied in the score.
    pub tied_score: f64,
    /// Pairs of events at the same time with different scores; not comparable.
    pub tied_time: f64,
    /// Pairs tied in both.
    pub tied_both: f64,
}

/// Prefix sums under point updates (Fenwick 1994).
struct Fenwick(Vec<f64>);

impl Fenwick {
    fn add(&mut self, mut i: usize, w: f64) {
        while i < self.0.len() {
            self.0[i] += w;
            i |= i + 1;
        }
    }

    /// Sum of the entries before `i`.
    fn before(&self, mut i: usize) -> f64 {
        let mut sum = 0.0;
        while i > 0 {
            sum += self.0[i - 1];
            i &= i - 1;
        }
        sum
    }
}

/// Sums below, at and above `rank`.
fn split(tree: &Fenwick, rank: usize, total: f64) -> (f64, f64, f64) {
    let (below, with) = (tree.before(rank), tree.before(rank + 1));
    (below, with - below, total - with)
}

/// Harrell's C (1982): a pair is comparable when the earlier time is an event, or the times are equal
/// and exactly one is. With `strata` only pairs within a stratum count. O(N log N).
///
/// # Errors
/// Lengths differ, no rows, a score or time not finite (named by row).
pub fn harrell(
    score: &[f64],
    time: &[f64],
    event: &[bool],
    strata: Option<&[usize]>,
) -> Result<Concordance> {
    weighted(score, time, event, strata, &vec![1.0; time.len()])
}

/// Uno's C (2011): pairs weighted by 1 / G(t-)^2 of the earlier, event, time, G the Kaplan-Meier
/// estimate of remaining uncensored; only events before `tau` count when it is given.
///
/// # Errors
/// As [`harrell`].
pub fn uno(score: &[f64], time: &[f64], event: &[bool], tau: Option<f64>) -> Result<Concordance> {
    check(time, event)?;
    let censoring = censoring_curve(time, event)?;
    let weight = |t: &f64| {
        let g = censoring.survival_before(*t);
        if tau.is_some_and(|tau| *t >= tau) || g <= 0.0 { 0.0 } else { 1.0 / (g * g) }
    };
    let weights: Vec<f64> = time.iter().map(weight).collect();
    weighted(score, time, event, None, &weights)
}

fn weighted(
    score: &[f64],
    time: &[f64],
    event: &[bool],
    strata: Option<&[usize]>,
    weights: &[f64],
) -> Result<Concordance> {
    check(time, event)?;
    same_length(("scores", score.len()), ("times", time.len()))?;
    finite("score", score)?;
    let mut sum = Pairs { rows: vec![(0.0, 0.0); time.len()], ..Pairs::default() };
    for rows in by_stratum(time.len(), strata)? {
        sum.add_stratum(rows, score, time, event, weights);
    }
    let (good, bad, tied) = (sum.concordant, sum.discordant, sum.tied_score);
    let comparable = good + bad + tied;
    let c = (comparable > 0.0).then(|| (good + tied / 2.0) / comparable);
    let influence = |c: f64| {
        let part = |(n, d): &(f64, f64)| ((n - c * d) / comparable).powi(2);
        sum.rows.iter().map(part).sum::<f64>().sqrt()
    };
    Ok(Concordance {
        c,
        se: c.map(influence),
        concordant: good,
        discordant: bad,
        tied_score: tied,
        tied_time: sum.tied_time,
        tied_both: sum.tied_both,
    })
}

#[derive(Default)]
struct Pairs {
    concordant: f64,
    discordant: f64,
    tied_score: f64,
    tied_time: f64,
    tied_both: f64,
    /// Of each row, in either role: concordant plus half the tied pairs, and all comparable pairs.
    rows: Vec<(f64, f64)>,
}

impl Pairs {
    fn add_stratum(
        &mut self,
        mut rows: Vec<usize>,
        score: &[f64],
        time: &[f64],
        event: &[bool],
        weights: &[f64],
    ) {
        let values: Vec<f64> = rows.iter().map(|&i| score[i]).collect();
        // Doubled mid-ranks are whole numbers in 2..=2N: equal exactly when the scores are.
        let mut rank = vec![0usize; time.len()];
        for (&i, r) in rows.iter().zip(mid_ranks(&values)) {
            rank[i] = (2.0 * r) as usize;
        }
        rows.sort_by(|&a, &b| time[a].total_cmp(&time[b]));
        let size = 2 * rows.len() + 2;
        let runs: Vec<&[usize]> = rows.chunk_by(|&a, &b| time[a] == time[b]).collect();

        // As the earlier row: count the later ones, from the end of time.
        let (mut later, mut total) = (Fenwick(vec![0.0; size]), 0.0);
        for run in runs.iter().rev() {
            for censored in [true, false] {
                let of_kind = run.iter().filter(|&&i| event[i] != censored);
                if !censored {
                    for &i in of_kind.clone() {
                        let (below, equal, above) = split(&later, rank[i], total);
                        let w = weights[i];
                        self.concordant += w * below;
                        self.tied_score += w * equal;
                        self.discordant += w * above;
                        self.rows[i].0 += w * (below + equal / 2.0);
                        self.rows[i].1 += w * total;
                    }
                    self.tied_events(of_kind.clone().map(|&i| rank[i]).collect());
                }
                for &i in of_kind {
                    later.add(rank[i], 1.0);
                    total += 1.0;
                }
            }
        }
        // As the later row: count the weights of earlier events.
        let (mut earlier, mut total) = (Fenwick(vec![0.0; size]), 0.0);
        for run in &runs {
            for censored in [false, true] {
                let of_kind = run.iter().filter(|&&i| event[i] != censored);
                for &i in of_kind.clone() {
                    let (_, equal, above) = split(&earlier, rank[i], total);
                    self.rows[i].0 += above + equal / 2.0;
                    self.rows[i].1 += total;
                }
                if !censored {
                    for &i in of_kind {
                        earlier.add(rank[i], weights[i]);
                        total += weights[i];
                    }
                }
            }
        }
    }

    fn tied_events(&mut self, mut ranks: Vec<usize>) {
        let pairs = |n: usize| n as f64 * (n as f64 - 1.0) / 2.0;
        ranks.sort_unstable();
        let both: f64 = ranks.chunk_by(|a, b| a == b).map(|run| pairs(run.len())).sum();
        self.tied_both += both;
        self.tied_time += pairs(ranks.len()) - both;
    }
}

/// AUC at time `t`: rows with an event up to `t` against rows still under observation after it, cases
/// weighted by 1 / G(time) (Uno et al. 2007; Hung and Chiang 2010). `None` without cases or controls.
///
/// # Errors
/// As [`harrell`].
pub fn auc_at(score: &[f64], time: &[f64], event: &[bool], t: f64) -> Result<Option<f64>> {
    check(time, event)?;
    same_length(("scores", score.len()), ("times", time.len()))?;
    finite("score", score)?;
    let censoring = censoring_curve(time, event)?;
    let ranks = mid_ranks(score);
    let mut tree = Fenwick(vec![0.0; 2 * time.len() + 2]);
    let place = |i: usize| (2.0 * ranks[i]) as usize;
    let mut controls = 0.0;
    for i in (0..time.len()).filter(|&i| time[i] > t) {
        tree.add(place(i), 1.0);
        controls += 1.0;
    }
    let (mut sum, mut cases) = (0.0, 0.0);
    for i in (0..time.len()).filter(|&i| event[i] && time[i] <= t) {
        let g = censoring.survival(time[i]);
        if g <= 0.0 {
            return Ok(None);
        }
        let (below, equal, _) = split(&tree, place(i), controls);
        sum += (below + equal / 2.0) / g;
        cases += 1.0 / g;
    }
    Ok((cases > 0.0 && controls > 0.0).then(|| sum / (cases * controls)))
}

/// Brier score at time `t` of predicted survival probabilities `survival` (N,) (Graf et al. 1999):
/// squared errors weighted by the inverse probability of remaining uncensored.
///
/// # Errors
/// As [`harrell`]; a probability outside [0, 1] (named by row); nobody uncensored at `t`.
pub fn brier_at(survival: &[f64], time: &[f64], event: &[bool], t: f64) -> Result<f64> {
    check(time, event)?;
    same_length(("probabilities", survival.len()), ("times", time.len()))?;
    probabilities("survival probability", survival)?;
    let censoring = censoring_curve(time, event)?;
    let here = censoring.survival(t);
    let mut sum = 0.0;
    for (i, s) in survival.iter().enumerate() {
        let (error, g) = if time[i] > t {
            ((1.0 - s).powi(2), here)
        } else if event[i] {
            (s.powi(2), censoring.survival(time[i]))
        } else {
            continue;
        };
        if g <= 0.0 {
            return Err(Error::malformed(format!("all rows are censored by time {t}")));
        }
        sum += error / g;
    }
    Ok(sum / time.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_comparable_pairs_is_no_number() {
        let c = harrell(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0], &[false; 3], None).unwrap();
        assert_eq!((c.c, c.se), (None, None));
    }

    /// Against the definition, pair by pair.
    #[test]
    fn counts_match_all_pairs() {
        let time = [3.0, 1.0, 3.0, 2.0, 5.0, 3.0, 2.0, 4.0, 3.0];
        let event = [true, true, false, true, false, true, false, true, true];
        let score: [f64; 9] = [0.2, 0.9, 0.2, 0.5, 0.1, 0.4, 0.5, 0.7, 0.2];
        let (mut good, mut bad, mut tied) = (0.0, 0.0, 0.0);
        for i in 0..9 {
            for j in 0..9 {
                let first = time[i] < time[j] || (time[i] == time[j] && !event[j]);
                if i != j && event[i] && first {
                    match score[i].total_cmp(&score[j]) {
                        std::cmp::Ordering::Greater => good += 1.0,
                        std::cmp::Ordering::Less => bad += 1.0,
                        std::cmp::Ordering::Equal => tied += 1.0,
                    }
                }
            }
        }
        let c = harrell(&score, &time, &event, None).unwrap();
        assert_eq!((c.concordant, c.discordant, c.tied_score), (good, bad, tied));
        assert_eq!((c.tied_time, c.tied_both), (2.0, 1.0));
    }

    #[test]
    fn without_censoring_the_weights_are_one() {
        let (s, t, e) = ([0.9, 0.1, 0.5, 0.3], [1.0, 4.0, 3.0, 2.0], [true; 4]);
        assert_eq!(uno(&s, &t, &e, None).unwrap(), harrell(&s, &t, &e, None).unwrap());
        assert_eq!(auc_at(&s, &t, &e, 2.0).unwrap(), Some(0.75));
        let brier = brier_at(&[0.0, 1.0, 1.0, 0.5], &t, &e, 2.0).unwrap();
        assert_eq!(brier, 0.25 / 4.0);
    }
}
