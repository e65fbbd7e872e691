//! Cox's proportional-hazards regression (1972), its tests and predictions.

use super::design::Design;
use super::linalg::Symmetric;
use super::logistic::Term;
use super::newton::{Failure, Likelihood, maximise};
use super::survival::{KaplanMeier, by_stratum, check};
use super::{chi2_upper, same_length};
use crate::error::{Error, Result};
use serde::Serialize;

/// How events at the same time share a risk set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Ties {
    /// Averaged risk sets (Efron 1977): the default of R.
    Efron,
    /// One risk set for all (Breslow 1974).
    Breslow,
    /// The conditional logistic likelihood over all subsets; O(N) a tied event and time.
    Exact,
}

/// Times, events and covariates of N rows.
#[derive(Clone, Debug)]
pub struct SurvivalData<'a> {
    /// Covariates.
    pub design: &'a Design,
    /// Times, (N,).
    pub time: &'a [f64],
    /// Whether the event happened at that time, (N,).
    pub event: &'a [bool],
    /// Stratum of each row, each with its own baseline hazard.
    pub strata: Option<&'a [usize]>,
}

/// A fitted model.
#[derive(Clone, Debug)]
pub struct Cox {
    /// Log hazard ratios with their tests.
    pub terms: Vec<Term>,
    /// Covariance of the coefficients, row-major (P, P).
    pub covariance: Vec<f64>,
    /// Partial log-likelihood with all coefficients 0.
    pub null_loglik: f64,
    /// Partial log-likelihood at the maximum.
    pub loglik: f64,
    /// Score test of all coefficients.
    pub score_chi2: f64,
    /// Wald test of all coefficients.
    pub wald_chi2: f64,
    /// Means of the columns, (P,).
    pub means: Vec<f64>,
    /// Rows.
    pub n: usize,
    /// Events.
    pub events: usize,
    ties: Ties,
}

impl Cox {
    /// Coefficients, (P,).
    pub fn coef(&self) -> Vec<f64> {
        self.terms.iter().map(|t| t.coef).collect()
    }

    /// Likelihood-ratio statistic and p-value, P degrees of freedom.
    pub fn likelihood_ratio(&self) -> (f64, f64) {
        let chi2 = 2.0 * (self.loglik - self.null_loglik);
        (chi2, chi2_upper(chi2, self.terms.len() as f64))
    }

    /// Linear predictor of each row of `design`, relative to the mean row of the fit, (N,).
    pub fn predict(&self, design: &Design) -> Vec<f64> {
        (0..design.rows())
            .map(|i| {
                let row = design.row(i).iter().zip(&self.means).zip(&self.terms);
                row.map(|((x, m), t)| (x - m) * t.coef).sum()
            })
            .collect()
    }
}

/// One averaged risk set of one event time: sum of risks, mean and variance of the covariates.
struct RiskSet {
    total: f64,
    mean: Vec<f64>,
    variance: Symmetric,
}

/// The events of one stratum at one time.
struct EventTime<'a> {
    time: f64,
    deaths: &'a [usize],
    sets: Vec<RiskSet>,
    /// Log of the denominator of the partial likelihood.
    log_denominator: f64,
}

struct Problem<'a> {
    p: usize,
    /// Centred covariates, (N, P).
    x: Vec<f64>,
    event: &'a [bool],
    /// Per stratum: rows by descending time, cut into equal times.
    strata: Vec<Vec<(f64, Vec<usize>)>>,
    means: Vec<f64>,
    scale: Vec<f64>,
    ties: Ties,
}

impl<'a> Problem<'a> {
    fn new(data: &SurvivalData<'a>, ties: Ties) -> Result<Self> {
        let (design, time) = (data.design, data.time);
        check(time, data.event)?;
        same_length(("times", time.len()), ("covariate rows", design.rows()))?;
        if !data.event.contains(&true) {
            return Err(Error::malformed("no events: the partial likelihood does not exist"));
        }
        let p = design.columns();
        if p == 0 {
            return Err(Error::usage("no covariates"));
        }
        let columns: Vec<Vec<f64>> = (0..p).map(|j| design.column(j)).collect();
        let means: Vec<f64> = columns.iter().map(|c| super::mean(c)).collect();
        let scale = columns.iter().map(|c| super::variance(c).unwrap_or(0.0).sqrt()).collect();
        let x = (0..time.len())
            .flat_map(|i| design.row(i).iter().zip(&means).map(|(x, m)| x - m))
            .collect();
        let mut strata = Vec::new();
        for mut rows in by_stratum(time.len(), data.strata)? {
            rows.sort_by(|&a, &b| time[b].total_cmp(&time[a]));
            let runs = rows.chunk_by(|&a, &b| time[a] == time[b]);
            strata.push(runs.map(|run| (time[run[0]], run.to_vec())).collect());
        }
        Ok(Problem { p, x, event: data.event, strata, means, scale, ties })
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.x[i * self.p..(i + 1) * self.p]
    }

    fn dot(&self, i: usize, beta: &[f64]) -> f64 {
        self.row(i).iter().zip(beta).map(|(x, b)| x * b).sum()
    }

    /// Calls `visit(stratum, events)` at each event time, latest first. Risks are `exp(eta - shift)`.
    fn visit(&self, beta: &[f64], shift: f64, mut visit: impl FnMut(usize, &EventTime)) {
        let p = self.p;
        for (s, times) in self.strata.iter().enumerate() {
            let mut risk = Sums::new(p);
            let mut seen: Vec<usize> = Vec::new();
            for (time, rows) in times {
                let mut tied = Sums::new(p);
                let mut deaths = Vec::new();
                for &i in rows {
                    let r = (self.dot(i, beta) - shift).exp();
                    risk.add(r, self.row(i));
                    if self.event[i] {
                        tied.add(r, self.row(i));
                        deaths.push(i);
                    }
                }
                if self.ties == Ties::Exact {
                    seen.extend(rows);
                }
                if deaths.is_empty() {
                    continue;
                }
                let (sets, log_denominator) = match self.ties {
                    Ties::Exact => self.exact(&seen, deaths.len(), beta, shift),
                    Ties::Breslow => {
                        let log = deaths.len() as f64 * risk.total.ln();
                        (deaths.iter().map(|_| risk.less(0.0, &tied)).collect(), log)
                    }
                    Ties::Efron => {
                        let d = deaths.len();
                        let sets: Vec<RiskSet> =
                            (0..d).map(|l| risk.less(l as f64 / d as f64, &tied)).collect();
                        let log = sets.iter().map(|set| set.total.ln()).sum();
                        (sets, log)
                    }
                };
                visit(s, &EventTime { time: *time, deaths: &deaths, sets, log_denominator });
            }
        }
    }

    /// Mean and variance of the covariate sum over all subsets of `d` of the rows at risk, weighted
    /// by their risk products: elementary symmetric functions by recursion (Gail, Lubin and
    /// Rubinstein 1981) with first and second derivatives.
    fn exact(&self, at_risk: &[usize], d: usize, beta: &[f64], shift: f64) -> (Vec<RiskSet>, f64) {
        let p = self.p;
        let mut b = vec![0.0; d + 1];
        b[0] = 1.0;
        let mut g = vec![0.0; (d + 1) * p];
        let mut h = vec![Symmetric::zeros(p); d + 1];
        for &i in at_risk {
            let (x, r) = (self.row(i), (self.dot(i, beta) - shift).exp());
            for k in (1..=d).rev() {
                let (low, high) = h.split_at_mut(k);
                let before = &g[(k - 1) * p..k * p];
                for u in 0..p {
                    for v in 0..p {
                        high[0].a[u * p + v] += r
                            * (low[k - 1].a[u * p + v]
                                + x[u] * before[v]
                                + before[u] * x[v]
                                + x[u] * x[v] * b[k - 1]);
                    }
                }
                for u in 0..p {
                    g[k * p + u] += r * (g[(k - 1) * p + u] + x[u] * b[k - 1]);
                }
                b[k] += r * b[k - 1];
            }
        }
        let total = b[d];
        let mean: Vec<f64> = g[d * p..].iter().map(|v| v / total).collect();
        let mut variance = h.swap_remove(d);
        variance.a.iter_mut().for_each(|v| *v /= total);
        variance.add_outer(-1.0, &mean);
        (vec![RiskSet { total, mean, variance }], total.ln())
    }

    fn shift(&self, beta: &[f64]) -> f64 {
        (0..self.event.len()).map(|i| self.dot(i, beta)).fold(f64::NEG_INFINITY, f64::max)
    }

    fn evaluate(&self, beta: &[f64]) -> Likelihood {
        let shift = self.shift(beta);
        let mut value = 0.0;
        let mut score = vec![0.0; self.p];
        let mut information = Symmetric::zeros(self.p);
        self.visit(beta, shift, |_, at| {
            value -= at.log_denominator;
            for &i in at.deaths {
                value += self.dot(i, beta) - shift;
                score.iter_mut().zip(self.row(i)).for_each(|(s, x)| *s += x);
            }
            for set in &at.sets {
                score.iter_mut().zip(&set.mean).for_each(|(s, m)| *s -= m);
                information.a.iter_mut().zip(&set.variance.a).for_each(|(a, v)| *a += v);
            }
        });
        Likelihood { value, score, information }
    }
}

/// Sums of risk, risk times covariate and risk times covariate products.
struct Sums {
    total: f64,
    first: Vec<f64>,
    second: Symmetric,
}

impl Sums {
    fn new(p: usize) -> Self {
        Sums { total: 0.0, first: vec![0.0; p], second: Symmetric::zeros(p) }
    }

    fn add(&mut self, r: f64, x: &[f64]) {
        self.total += r;
        self.first.iter_mut().zip(x).for_each(|(f, x)| *f += r * x);
        self.second.add_outer(r, x);
    }

    /// These sums less `share` of `tied`, as a risk set.
    fn less(&self, share: f64, tied: &Sums) -> RiskSet {
        let total = self.total - share * tied.total;
        let mix = |a: &[f64], b: &[f64]| -> Vec<f64> {
            a.iter().zip(b).map(|(a, b)| (a - share * b) / total).collect()
        };
        let mean = mix(&self.first, &tied.first);
        let mut variance = Symmetric { n: mean.len(), a: mix(&self.second.a, &tied.second.a) };
        variance.add_outer(-1.0, &mean);
        RiskSet { total, mean, variance }
    }
}

fn explain(failure: Failure, names: &[String]) -> Error {
    match failure {
        Failure::Dependent(j) => Error::malformed(format!(
            "column {} is a linear combination of the others (within risk sets)",
            names[j]
        )),
        Failure::Diverges(j) => Error::malformed(format!(
            "monotone likelihood: it has no maximum, the coefficient of {} grows without bound",
            names[j]
        )),
    }
}

/// Fits the model; Wald intervals at `level`.
///
/// # Errors
/// Shapes disagree, a time not finite or below 0 (named by row), no events, a column that depends
/// on the others, or a monotone likelihood (named by column).
pub fn cox(data: &SurvivalData, ties: Ties, level: f64) -> Result<Cox> {
    let problem = Problem::new(data, ties)?;
    let names = &data.design.names;
    let optimum = maximise(vec![0.0; problem.p], &problem.scale, |b| problem.evaluate(b))
        .map_err(|f| explain(f, names))?;
    let factor = |information: &Symmetric| {
        information.cholesky().map_err(|j| explain(Failure::Diverges(j), names))
    };
    let covariance = factor(&optimum.at.information)?.inverse();
    let start = &optimum.start;
    let solved = factor(&start.information)?.solve(&start.score);
    let terms = names
        .iter()
        .enumerate()
        .map(|(j, name)| Term::new(name, optimum.beta[j], covariance.at(j, j).sqrt(), level));
    Ok(Cox {
        terms: terms.collect(),
        null_loglik: start.value,
        loglik: optimum.at.value,
        score_chi2: solved.iter().zip(&start.score).map(|(a, b)| a * b).sum(),
        wald_chi2: optimum.at.information.form(&optimum.beta, &optimum.beta),
        covariance: covariance.a,
        means: problem.means.clone(),
        n: data.time.len(),
        events: data.event.iter().filter(|e| **e).count(),
        ties,
    })
}

/// A test that the hazard ratio of one term does not change with time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Proportionality {
    /// Term of the design, or `GLOBAL`.
    pub term: String,
    /// Score statistic.
    pub chi2: f64,
    /// Columns of the term.
    pub df: usize,
    /// p-value.
    pub p: f64,
}

/// Score tests of adding each term times g(t) to the model, g(t) = 1 - S(t-) of the pooled
/// Kaplan-Meier curve (Grambsch and Therneau 1994, in the exact form of R's survival 3.0); the last
/// is for all terms together.
///
/// # Errors
/// As [`cox`]; ties handled as [`Ties::Exact`], for which the test is not defined here.
pub fn proportional_hazards(data: &SurvivalData, fit: &Cox) -> Result<Vec<Proportionality>> {
    if fit.ties == Ties::Exact {
        return Err(Error::unsupported("the proportional-hazards test with exact ties"));
    }
    let problem = Problem::new(data, fit.ties)?;
    let (p, beta) = (problem.p, fit.coef());
    same_length(("coefficients", beta.len()), ("columns", p))?;
    let curve = KaplanMeier::new(data.time, data.event)?;
    let clock: Vec<f64> = data.time.iter().map(|t| 1.0 - curve.survival_before(*t)).collect();
    let at_events: Vec<f64> =
        clock.iter().zip(data.event).filter(|(_, e)| **e).map(|(g, _)| *g).collect();
    let centre = super::mean(&at_events);
    let mut score = vec![0.0; 2 * p];
    let mut information = Symmetric::zeros(2 * p);
    problem.visit(&beta, problem.shift(&beta), |_, at| {
        let g = 1.0 - curve.survival_before(at.time) - centre;
        for &i in at.deaths {
            score[p..].iter_mut().zip(problem.row(i)).for_each(|(s, x)| *s += g * x);
        }
        for set in &at.sets {
            score[p..].iter_mut().zip(&set.mean).for_each(|(s, m)| *s -= g * m);
            for u in 0..p {
                for v in 0..p {
                    let value = set.variance.at(u, v);
                    information.a[u * 2 * p + v] += value;
                    information.a[u * 2 * p + p + v] += g * value;
                    information.a[(p + u) * 2 * p + v] += g * value;
                    information.a[(p + u) * 2 * p + p + v] += g * g * value;
                }
            }
        }
    });
    let test = |term: &str, columns: &[usize]| -> Result<Proportionality> {
        let keep: Vec<usize> = (0..p).chain(columns.iter().map(|j| p + j)).collect();
        let u: Vec<f64> = keep.iter().map(|&k| score[k]).collect();
        let factor = information.select(&keep).cholesky().map_err(|_| {
            Error::malformed(format!("too few event times to test the hazards of {term}"))
        })?;
        let chi2 = factor.solve(&u).iter().zip(&u).map(|(a, b)| a * b).sum();
        let df = columns.len();
        Ok(Proportionality { term: term.into(), chi2, df, p: chi2_upper(chi2, df as f64) })
    };
    let mut out = Vec::new();
    for (term, name) in data.design.terms.iter().enumerate() {
        let columns: Vec<usize> = (0..p).filter(|&j| data.design.term_of[j] == term).collect();
        out.push(test(name, &columns)?);
    }
    out.push(test("GLOBAL", &(0..p).collect::<Vec<_>>())?);
    Ok(out)
}

/// Predicted survival of one covariate row at one time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Predicted {
    /// Time.
    pub time: f64,
    /// Survival probability.
    pub survival: f64,
    /// Its standard error (Tsiatis 1981).
    pub se: f64,
}

/// Survival at `times` of a new covariate row `x` (P,) in `stratum` (position among the sorted
/// strata), from the cumulative baseline hazard that belongs to the tie handling.
///
/// # Errors
/// As [`cox`]; a stratum out of range; exact ties.
pub fn predict_survival(
    data: &SurvivalData,
    fit: &Cox,
    x: &[f64],
    stratum: usize,
    times: &[f64],
) -> Result<Vec<Predicted>> {
    if fit.ties == Ties::Exact {
        return Err(Error::unsupported("survival predictions with exact ties"));
    }
    let problem = Problem::new(data, fit.ties)?;
    same_length(("new values", x.len()), ("columns", problem.p))?;
    super::finite("new value", x)?;
    if stratum >= problem.strata.len() {
        return Err(Error::usage(format!("stratum {stratum} of {}", problem.strata.len())));
    }
    let beta = fit.coef();
    let shift = problem.shift(&beta);
    let z: Vec<f64> = x.iter().zip(&problem.means).map(|(x, m)| x - m).collect();
    let risk = (z.iter().zip(&beta).map(|(z, b)| z * b).sum::<f64>() - shift).exp();
    // Per event time: hazard increment, its squared parts, and (z - mean) times the increment.
    let mut increments: Vec<(f64, f64, f64, Vec<f64>)> = Vec::new();
    problem.visit(&beta, shift, |s, at| {
        if s != stratum {
            return;
        }
        let mut q = vec![0.0; z.len()];
        let (mut hazard, mut square) = (0.0, 0.0);
        for set in &at.sets {
            hazard += 1.0 / set.total;
            square += 1.0 / set.total.powi(2);
            for (q, (z, m)) in q.iter_mut().zip(z.iter().zip(&set.mean)) {
                *q += (z - m) / set.total;
            }
        }
        increments.push((at.time, hazard, square, q));
    });
    let covariance = Symmetric { n: problem.p, a: fit.covariance.clone() };
    let at = |&time: &f64| {
        let (mut hazard, mut square, mut q) = (0.0, 0.0, vec![0.0; z.len()]);
        for (_, h, s, part) in increments.iter().filter(|i| i.0 <= time) {
            hazard += h;
            square += s;
            q.iter_mut().zip(part).for_each(|(q, v)| *q += v);
        }
        let survival = (-risk * hazard).exp();
        let se = survival * risk * (square + covariance.form(&q, &q)).sqrt();
        Predicted { time, survival, se }
    };
    Ok(times.iter().map(at).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(x: &[f64], time: &[f64], event: &[bool], ties: Ties) -> Result<Cox> {
        let design = Design::single("x", x)?;
        cox(&SurvivalData { design: &design, time, event, strata: None }, ties, 0.95)
    }

    #[test]
    fn no_events_and_monotone_likelihood_are_errors() {
        let t = [1.0, 2.0, 3.0, 4.0];
        let error = fit(&[1.0, 0.0, 1.0, 0.0], &t, &[false; 4], Ties::Efron).unwrap_err();
        assert!(error.to_string().contains("no events"), "{error}");
        let error = fit(&[1.0, 1.0, 0.0, 0.0], &t, &[true; 4], Ties::Efron).unwrap_err();
        assert!(error.to_string().contains("monotone likelihood"), "{error}");
    }

    /// Without ties the three conventions are one.
    #[test]
    fn conventions_agree_without_ties() {
        let (x, t) = ([0.3, 1.2, -0.4, 2.0, 0.9, 0.1], [5.0, 1.0, 4.0, 3.0, 2.0, 6.0]);
        let e = [true, true, false, true, true, true];
        let a = fit(&x, &t, &e, Ties::Efron).unwrap();
        for ties in [Ties::Breslow, Ties::Exact] {
            let b = fit(&x, &t, &e, ties).unwrap();
            assert!((a.terms[0].coef - b.terms[0].coef).abs() < 1e-12);
            assert!((a.terms[0].se - b.terms[0].se).abs() < 1e-12);
            assert!((a.loglik - b.loglik).abs() < 1e-12);
        }
    }

    /// Two events tied among three rows: the exact likelihood is exp(sum of the two) over the sum
    /// over all three pairs.
    #[test]
    fn exact_is_the_sum_over_subsets() {
        let design = Design::single("x", &[0.0, 1.0, 3.0]).unwrap();
        let (time, event) = ([1.0, 1.0, 2.0], [true, true, false]);
        let data = SurvivalData { design: &design, time: &time, event: &event, strata: None };
        let b = 0.4f64;
        let value = Problem::new(&data, Ties::Exact).unwrap().evaluate(&[b]).value;
        let pairs = [1.0, 3.0, 4.0].map(|s| (s * b).exp());
        assert!((value - (pairs[0] / pairs.iter().sum::<f64>()).ln()).abs() < 1e-14);
    }
}
