//! Survival curves of right-censored times and tests between them.
//!
//! A row is a time and whether the event happened then; otherwise it is censored then, and counts
//! as at risk up to and including that time.

use super::intervals::{Interval, z_of};
use super::linalg::Symmetric;
use super::{chi2_upper, finite, order, same_length};
use crate::error::{Error, Result};
use serde::Serialize;

/// The scale on which the interval of a survival probability is symmetric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum CurveInterval {
    /// `log(-log S)` (Kalbfleisch and Prentice 1980): stays in [0, 1].
    LogLog,
    /// `log S`, cut at 1: the default of R.
    Log,
    /// `S` itself, cut to [0, 1].
    Plain,
}

/// The curve from one observed time to the next.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Observed time.
    pub time: f64,
    /// Rows with at least this time.
    pub at_risk: usize,
    /// Events at this time.
    pub events: usize,
    /// Rows censored at this time.
    pub censored: usize,
    /// Survival from this time on.
    pub survival: f64,
    /// Greenwood's sum `d / (n (n - d))` so far; infinite once survival is 0.
    #[serde(skip)]
    pub greenwood: f64,
}

/// The Kaplan-Meier estimate (1958).
#[derive(Clone, Debug, Serialize)]
pub struct KaplanMeier {
    /// One step a distinct time, ascending.
    pub steps: Vec<Step>,
    /// Rows.
    pub n: usize,
    /// Events.
    pub events: usize,
}

/// The estimate at one time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct At {
    /// The time asked for.
    pub time: f64,
    /// Rows with at least this time.
    pub at_risk: usize,
    /// Survival.
    pub survival: f64,
    /// Greenwood's standard error of it; `None` where survival is 0.
    pub se: Option<f64>,
    /// Its interval; `None` where survival is 0, and on the log-log scale also where it is 1 after
    /// the first observed time.
    pub interval: Option<Interval>,
}

pub(crate) fn check(time: &[f64], event: &[bool]) -> Result<()> {
    same_length(("times", time.len()), ("event flags", event.len()))?;
    finite("time", time)?;
    if let Some(row) = time.iter().position(|t| *t < 0.0) {
        return Err(Error::malformed(format!("row {}: time {} is below 0", row + 1, time[row])));
    }
    if time.is_empty() {
        return Err(Error::malformed("no rows"));
    }
    Ok(())
}

fn interval(s: f64, greenwood: f64, kind: CurveInterval, z: f64) -> Option<Interval> {
    if s <= 0.0 {
        return None;
    }
    let se = greenwood.sqrt();
    match kind {
        CurveInterval::LogLog if s >= 1.0 => None,
        CurveInterval::LogLog => {
            let half = z * se / s.ln().abs();
            let loglog = (-s.ln()).ln();
            let at = |v: f64| (-v.exp()).exp();
            Some(Interval { lower: at(loglog + half), upper: at(loglog - half) })
        }
        CurveInterval::Log => Some(Interval {
            lower: (s.ln() - z * se).exp(),
            upper: (s.ln() + z * se).exp().min(1.0),
        }),
        CurveInterval::Plain => Some(Interval::around(s, z * se * s).unit()),
    }
}

/// The time at which a falling curve reaches `level`: the first value below it, or, when the curve
/// rests exactly on it, half-way to the next fall.
fn crossing(points: &[(f64, f64)], level: f64) -> Option<f64> {
    const SAME: f64 = 1e-9;
    let first = points.iter().position(|(_, s)| *s < level + SAME)?;
    let (time, value) = points[first];
    if (value - level).abs() < SAME
        && let Some((next, _)) = points[first..].iter().find(|(_, s)| *s < value - SAME)
    {
        return Some((time + next) / 2.0);
    }
    Some(time)
}

impl KaplanMeier {
    /// Estimates the curve of `time` and `event`, both (N,).
    ///
    /// # Errors
    /// Lengths differ, no rows, a time not finite or below 0 (named by row).
    pub fn new(time: &[f64], event: &[bool]) -> Result<Self> {
        check(time, event)?;
        let (mut at_risk, mut survival, mut greenwood) = (time.len(), 1.0, 0.0);
        let mut steps = Vec::new();
        for run in order(time).chunk_by(|&a, &b| time[a] == time[b]) {
            let events = run.iter().filter(|&&i| event[i]).count();
            let (n, d) = (at_risk as f64, events as f64);
            if events > 0 {
                survival *= (n - d) / n;
                greenwood += d / (n * (n - d));
            }
            let (time, censored) = (time[run[0]], run.len() - events);
            steps.push(Step { time, at_risk, events, censored, survival, greenwood });
            at_risk -= run.len();
        }
        let events = steps.iter().map(|s| s.events).sum();
        Ok(KaplanMeier { steps, n: time.len(), events })
    }

    /// Survival at `t`: 1 before the first time, the last value after the last.
    pub fn survival(&self, t: f64) -> f64 {
        let i = self.steps.partition_point(|s| s.time <= t);
        i.checked_sub(1).map_or(1.0, |i| self.steps[i].survival)
    }

    /// Survival just before `t`.
    pub fn survival_before(&self, t: f64) -> f64 {
        let i = self.steps.partition_point(|s| s.time < t);
        i.checked_sub(1).map_or(1.0, |i| self.steps[i].survival)
    }

    /// The estimate at `t` with its interval.
    pub fn at(&self, t: f64, kind: CurveInterval, level: f64) -> At {
        let next = self.steps.partition_point(|s| s.time < t);
        let at_risk = self.steps.get(next).map_or(0, |s| s.at_risk);
        let i = self.steps.partition_point(|s| s.time <= t);
        let Some(step) = i.checked_sub(1).map(|i| self.steps[i]) else {
            let interval = Some(Interval { lower: 1.0, upper: 1.0 });
            return At { time: t, at_risk, survival: 1.0, se: Some(0.0), interval };
        };
        let s = step.survival;
        At {
            time: t,
            at_risk,
            survival: s,
            se: (s > 0.0).then(|| s * step.greenwood.sqrt()),
            interval: interval(s, step.greenwood, kind, z_of(level)),
        }
    }

    /// Time by which a share `q` has had the event (0.5: the median), with the times at which the
    /// ends of the curve's interval get there (Brookmeyer and Crowley 1982). `None` where a curve
    /// never falls that far. A curve resting exactly on the level gives the middle of the rest.
    pub fn quantile(
        &self,
        q: f64,
        kind: CurveInterval,
        level: f64,
    ) -> (Option<f64>, Option<f64>, Option<f64>) {
        let z = z_of(level);
        let limits: Vec<(f64, Interval)> = self
            .steps
            .iter()
            .filter_map(|s| Some((s.time, interval(s.survival, s.greenwood, kind, z)?)))
            .collect();
        let curve: Vec<_> = self.steps.iter().map(|s| (s.time, s.survival)).collect();
        let lower: Vec<_> = limits.iter().map(|(t, i)| (*t, i.lower)).collect();
        let upper: Vec<_> = limits.iter().map(|(t, i)| (*t, i.upper)).collect();
        let at = |points: &[(f64, f64)]| crossing(points, 1.0 - q);
        (at(&curve), at(&lower), at(&upper))
    }

    /// Mean survival time restricted to `tau`: the area under the curve up to there, and its standard
    /// error (Greenwood). `None` when the curve ends above 0 before `tau`.
    pub fn restricted_mean(&self, tau: f64) -> Option<(f64, f64)> {
        let last = self.steps.last()?;
        if last.time < tau && last.survival > 0.0 {
            return None;
        }
        let before: Vec<&Step> = self.steps.iter().take_while(|s| s.time < tau).collect();
        let (mut area, mut variance, mut end) = (0.0, 0.0, tau);
        for step in before.into_iter().rev() {
            area += step.survival * (end - step.time);
            end = step.time;
            let (n, d) = (step.at_risk as f64, step.events as f64);
            if n > d {
                variance += area * area * d / (n * (n - d));
            }
        }
        Some((area + end, variance.sqrt()))
    }
}

/// Kaplan-Meier estimate of remaining uncensored, G(t): events and censorings change roles, and rows
/// with an event at a time have left before those censored at it.
pub(crate) fn censoring_curve(time: &[f64], event: &[bool]) -> Result<KaplanMeier> {
    let mut curve = KaplanMeier::new(time, event)?;
    let mut survival = 1.0;
    for step in &mut curve.steps {
        let left = (step.at_risk - step.events) as f64;
        if step.censored > 0 {
            survival *= (left - step.censored as f64) / left;
        }
        step.survival = survival;
    }
    Ok(curve)
}

/// The log-rank test, or its G-rho generalisation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogRank {
    /// Statistic.
    pub chi2: f64,
    /// Groups minus one.
    pub df: usize,
    /// p-value.
    pub p: f64,
    /// Rows of each group.
    pub n: Vec<usize>,
    /// Events of each group, weighted by S(t-)^rho.
    pub observed: Vec<f64>,
    /// Events expected were hazards equal, weighted alike.
    pub expected: Vec<f64>,
}

/// Compares the survival of `groups` groups, `group` (N,) in 0..groups; with `strata` (N,) within
/// strata. `rho` 0 is the log-rank test (Mantel 1966), 1 the Peto-Peto Wilcoxon test (Harrington and
/// Fleming 1982).
///
/// # Errors
/// As [`KaplanMeier::new`]; a group out of range or without rows, fewer than two groups, no events,
/// or a group never at risk together with another.
pub fn log_rank(
    time: &[f64],
    event: &[bool],
    group: &[usize],
    groups: usize,
    strata: Option<&[usize]>,
    rho: f64,
) -> Result<LogRank> {
    check(time, event)?;
    same_length(("times", time.len()), ("groups", group.len()))?;
    if let Some(row) = group.iter().position(|g| *g >= groups) {
        return Err(Error::malformed(format!("row {}: group {} of {groups}", row + 1, group[row])));
    }
    let n: Vec<usize> = (0..groups).map(|g| group.iter().filter(|&&x| x == g).count()).collect();
    if groups < 2 || n.contains(&0) {
        return Err(Error::malformed(format!("needs two groups with rows: sizes {n:?}")));
    }
    if !event.contains(&true) {
        return Err(Error::malformed("no events: the log-rank test does not exist"));
    }
    let (mut observed, mut expected) = (vec![0.0; groups], vec![0.0; groups]);
    let mut variance = Symmetric::zeros(groups);
    for rows in by_stratum(time.len(), strata)? {
        let data = Stratum { time, event, group, rho };
        data.accumulate(rows, &mut observed, &mut expected, &mut variance);
    }
    // One group is redundant; the last is left out.
    let keep: Vec<usize> = (0..groups - 1).collect();
    let factor = variance.select(&keep).cholesky().map_err(|g| {
        Error::malformed(format!("group {} is never at risk beside another at an event", g + 1))
    })?;
    let gap: Vec<f64> = keep.iter().map(|&g| observed[g] - expected[g]).collect();
    let chi2: f64 = factor.solve(&gap).iter().zip(&gap).map(|(a, b)| a * b).sum();
    let df = groups - 1;
    Ok(LogRank { chi2, df, p: chi2_upper(chi2, df as f64), n, observed, expected })
}

/// Row indices of each stratum; all rows when there are none.
pub(crate) fn by_stratum(n: usize, strata: Option<&[usize]>) -> Result<Vec<Vec<usize>>> {
    let Some(strata) = strata else {
        return Ok(vec![(0..n).collect()]);
    };
    same_length(("rows", n), ("strata", strata.len()))?;
    let mut map = std::collections::BTreeMap::<usize, Vec<usize>>::new();
    for (i, s) in strata.iter().enumerate() {
        map.entry(*s).or_default().push(i);
    }
    Ok(map.into_values().collect())
}

struct Stratum<'a> {
    time: &'a [f64],
    event: &'a [bool],
    group: &'a [usize],
    rho: f64,
}

impl Stratum<'_> {
    /// Adds the stratum's observed, expected and hypergeometric (co)variance.
    fn accumulate(
        &self,
        mut rows: Vec<usize>,
        observed: &mut [f64],
        expected: &mut [f64],
        variance: &mut Symmetric,
    ) {
        rows.sort_by(|&a, &b| self.time[a].total_cmp(&self.time[b]));
        let groups = observed.len();
        let mut at_risk = vec![0.0; groups];
        for &i in &rows {
            at_risk[self.group[i]] += 1.0;
        }
        let mut survival = 1.0f64;
        for run in rows.chunk_by(|&a, &b| self.time[a] == self.time[b]) {
            let deaths: Vec<usize> = run.iter().copied().filter(|&i| self.event[i]).collect();
            let (n, d) = (at_risk.iter().sum::<f64>(), deaths.len() as f64);
            if d > 0.0 {
                let weight = survival.powf(self.rho);
                survival *= (n - d) / n;
                for &i in &deaths {
                    observed[self.group[i]] += weight;
                }
                let spread = if n > 1.0 { d * (n - d) / (n - 1.0) } else { 0.0 };
                let scale = weight * weight * spread / n;
                for (g, ng) in at_risk.iter().enumerate() {
                    expected[g] += weight * d * ng / n;
                    variance.a[g * groups + g] += scale * ng;
                    for (h, nh) in at_risk.iter().enumerate() {
                        variance.a[g * groups + h] -= scale * ng * nh / n;
                    }
                }
            }
            for &i in run {
                at_risk[self.group[i]] -= 1.0;
            }
        }
    }
}

/// Groups of rows by cut points of a score: 0 for `score < cuts[0]`, up to `cuts.len()`.
pub fn groups_by(score: &[f64], cuts: &[f64]) -> Vec<usize> {
    score.iter().map(|s| cuts.iter().filter(|c| *s >= **c).count()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_that_rests_on_a_half_gives_the_middle() {
        let km = KaplanMeier::new(&[1.0, 2.0, 3.0, 4.0], &[true; 4]).unwrap();
        assert_eq!(km.quantile(0.5, CurveInterval::Log, 0.95).0, Some(2.5));
        let km = KaplanMeier::new(&[1.0, 2.0, 3.0], &[false; 3]).unwrap();
        assert_eq!(km.quantile(0.5, CurveInterval::Log, 0.95), (None, None, None));
        assert_eq!(km.at(9.0, CurveInterval::Plain, 0.95).at_risk, 0);
    }

    #[test]
    fn degenerate_tests_are_errors() {
        let t = [1.0, 2.0, 3.0, 4.0];
        let none = log_rank(&t, &[false; 4], &[0, 0, 1, 1], 2, None, 0.0).unwrap_err();
        assert!(none.to_string().contains("no events"));
        assert!(log_rank(&t, &[true; 4], &[0; 4], 1, None, 0.0).is_err());
        let error = KaplanMeier::new(&[1.0, -2.0], &[true; 2]).unwrap_err().to_string();
        assert!(error.contains("row 2"), "{error}");
    }

    /// By hand: risk sets 6, 5, 4, 2 with one event each.
    #[test]
    fn stratifying_by_nothing_changes_nothing() {
        let t = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let e = [true, true, true, false, true, false];
        let g = [0, 1, 0, 1, 0, 1];
        let plain = log_rank(&t, &e, &g, 2, None, 0.0).unwrap();
        let strata = log_rank(&t, &e, &g, 2, Some(&[7; 6]), 0.0).unwrap();
        assert_eq!(plain, strata);
        let expected = 3.0 / 6.0 + 2.0 / 5.0 + 2.0 / 4.0 + 1.0 / 2.0;
        assert!((plain.expected[0] - expected).abs() < 1e-15);
    }

    #[test]
    fn the_mean_beyond_the_data_does_not_exist() {
        let km = KaplanMeier::new(&[1.0, 2.0], &[true, false]).unwrap();
        assert_eq!(km.restricted_mean(3.0), None);
        assert_eq!(km.restricted_mean(2.0).map(|m| m.0), Some(1.5));
    }
}
