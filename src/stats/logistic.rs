//! Logistic regression by maximum likelihood: Newton's method (the same as iteratively reweighted
//! least squares, McCullagh and Nelder 1989), with Firth's penalty on request.

use super::design::Design;
use super::dist::bisect;
use super::intervals::{Interval, z_of};
use super::linalg::Symmetric;
use super::newton::{Failure, Likelihood, maximise};
use super::{chi2_upper, finite, normal_two_sided, same_length};
use crate::error::{Error, Result};
use serde::Serialize;

/// What to fit besides the plain model.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Weight of each row, (N,); 1 when absent.
    pub weights: Option<Vec<f64>>,
    /// Known part of the linear predictor, (N,); 0 when absent.
    pub offset: Option<Vec<f64>>,
    /// Penalise by half the log-determinant of the information (Firth 1993): finite estimates under
    /// separation, less bias in small samples.
    pub firth: bool,
}

/// One row of a coefficient table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Term {
    /// Column of the design, `(Intercept)` first.
    pub name: String,
    /// Estimate.
    pub coef: f64,
    /// Standard error from the inverse information.
    pub se: f64,
    /// Estimate over standard error.
    pub z: f64,
    /// Two-sided Wald p-value.
    pub p: f64,
    /// Wald interval of the coefficient.
    pub wald: Interval,
}

impl Term {
    pub(crate) fn new(name: &str, coef: f64, se: f64, level: f64) -> Self {
        let z = coef / se;
        let wald = Interval::around(coef, z_of(level) * se);
        Term { name: name.to_string(), coef, se, z, p: normal_two_sided(z), wald }
    }
}

/// A fitted model, `(Intercept)` first.
#[derive(Clone, Debug)]
pub struct Logistic {
    /// Coefficients with their tests.
    pub terms: Vec<Term>,
    /// Covariance of the coefficients, row-major (P + 1, P + 1).
    pub covariance: Vec<f64>,
    /// Log-likelihood (without Firth's penalty).
    pub loglik: f64,
    /// Log-likelihood of the model with intercept (and offset) only.
    pub null_loglik: f64,
    /// Rows.
    pub n: usize,
}

impl Logistic {
    /// Coefficients, intercept first.
    pub fn coef(&self) -> Vec<f64> {
        self.terms.iter().map(|t| t.coef).collect()
    }

    /// Likelihood-ratio statistic against the intercept, its degrees of freedom and p-value.
    pub fn likelihood_ratio(&self) -> (f64, usize, f64) {
        let (chi2, df) = (2.0 * (self.loglik - self.null_loglik), self.terms.len() - 1);
        (chi2, df, if df == 0 { 1.0 } else { chi2_upper(chi2, df as f64) })
    }

    /// Akaike's information criterion.
    pub fn aic(&self) -> f64 {
        2.0 * self.terms.len() as f64 - 2.0 * self.loglik
    }

    /// Nagelkerke's R2 (1991).
    pub fn nagelkerke_r2(&self) -> f64 {
        let n = self.n as f64;
        (1.0 - (2.0 * (self.null_loglik - self.loglik) / n).exp())
            / (1.0 - (2.0 * self.null_loglik / n).exp())
    }

    /// Probability of each row of `design`, (N,).
    pub fn predict(&self, design: &Design) -> Vec<f64> {
        let coef = self.coef();
        (0..design.rows())
            .map(|i| {
                let eta: f64 = design.row(i).iter().zip(&coef[1..]).map(|(x, b)| x * b).sum();
                sigmoid(coef[0] + eta)
            })
            .collect()
    }
}

pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln(1 + e^x)` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Weights that give both classes the same total, `n / (2 n_class)` (scikit-learn's "balanced").
pub fn balanced_weights(labels: &[bool]) -> Vec<f64> {
    let n = labels.len() as f64;
    let positives = labels.iter().filter(|l| **l).count() as f64;
    labels.iter().map(|l| n / (2.0 * if *l { positives } else { n - positives })).collect()
}

/// A regression with all columns explicit: rows (N, P) with the intercept among them.
struct Problem<'a> {
    x: Vec<f64>,
    p: usize,
    y: &'a [bool],
    weights: Vec<f64>,
    offset: Vec<f64>,
    firth: bool,
}

impl<'a> Problem<'a> {
    fn new(design: &Design, y: &'a [bool], options: &Options) -> Result<Self> {
        let n = design.rows();
        same_length(("labels", y.len()), ("rows", n))?;
        let or = |given: &Option<Vec<f64>>, what: &str, otherwise: f64| -> Result<Vec<f64>> {
            let values = given.clone().unwrap_or_else(|| vec![otherwise; n]);
            same_length((what, values.len()), ("rows", n))?;
            finite(what, &values)?;
            Ok(values)
        };
        let weights = or(&options.weights, "weights", 1.0)?;
        if let Some(row) = weights.iter().position(|w| *w < 0.0) {
            return Err(Error::malformed(format!("row {}: weight below 0", row + 1)));
        }
        let positives = y.iter().filter(|l| **l).count();
        if positives == 0 || positives == n {
            return Err(Error::malformed(format!(
                "needs both classes: {positives} positive of {n} rows"
            )));
        }
        let with_intercept = |i| std::iter::once(1.0).chain(design.row(i).iter().copied());
        Ok(Problem {
            x: (0..n).flat_map(with_intercept).collect(),
            p: design.columns() + 1,
            y,
            weights,
            offset: or(&options.offset, "offset", 0.0)?,
            firth: options.firth,
        })
    }

    /// The same problem with coefficient `j` held at `value`.
    fn fix(&self, j: usize, value: f64) -> Self {
        let rows = self.x.chunks_exact(self.p);
        let offset = rows.clone().zip(&self.offset).map(|(x, o)| o + value * x[j]).collect();
        let x = rows
            .flat_map(|x| x.iter().enumerate().filter(move |(k, _)| *k != j).map(|(_, v)| *v))
            .collect();
        let (y, weights) = (self.y, self.weights.clone());
        Problem { x, p: self.p - 1, y, weights, offset, firth: self.firth }
    }

    /// The intercept-only problem.
    fn null(&self) -> Self {
        let (x, y) = (vec![1.0; self.y.len()], self.y);
        let (weights, offset) = (self.weights.clone(), self.offset.clone());
        Problem { x, p: 1, y, weights, offset, firth: false }
    }

    fn eta(&self, beta: &[f64]) -> Vec<f64> {
        if self.p == 0 {
            return self.offset.clone();
        }
        let dot = |x: &[f64]| x.iter().zip(beta).map(|(x, b)| x * b).sum::<f64>();
        self.x.chunks_exact(self.p).zip(&self.offset).map(|(x, o)| o + dot(x)).collect()
    }

    fn loglik(&self, beta: &[f64]) -> f64 {
        let eta = self.eta(beta).into_iter();
        let term = |((eta, y), w): ((f64, &bool), &f64)| -w * softplus(if *y { -eta } else { eta });
        eta.zip(self.y).zip(&self.weights).map(term).sum()
    }

    fn evaluate(&self, beta: &[f64]) -> Likelihood {
        let eta = self.eta(beta);
        let mut information = Symmetric::zeros(self.p);
        for ((x, eta), w) in self.x.chunks_exact(self.p).zip(&eta).zip(&self.weights) {
            information.add_outer(w * sigmoid(*eta) * sigmoid(-eta), x);
        }
        let mut value = self.loglik(beta);
        let mut inverse = None;
        if self.firth {
            if let Ok(factor) = information.cholesky() {
                value += 0.5 * factor.log_det();
                inverse = Some(factor.inverse());
            } else {
                value = f64::NEG_INFINITY;
            }
        }
        let mut score = vec![0.0; self.p];
        for (i, x) in self.x.chunks_exact(self.p).enumerate() {
            let (up, down) = (sigmoid(eta[i]), sigmoid(-eta[i]));
            // Written with the small one of p and 1 - p, so that it never vanishes by rounding.
            let mut residual = self.weights[i] * if self.y[i] { down } else { -up };
            if let Some(inverse) = &inverse {
                let hat = self.weights[i] * up * down * inverse.form(x, x);
                residual += hat * (0.5 - up);
            }
            for (s, x) in score.iter_mut().zip(x) {
                *s += residual * x;
            }
        }
        Likelihood { value, score, information }
    }

    fn solve(&self) -> Result<super::newton::Optimum, Failure> {
        let n = self.y.len() as f64;
        let scale: Vec<f64> = (0..self.p)
            .map(|j| {
                let squares = self.x.chunks_exact(self.p).map(|x| x[j] * x[j]);
                (squares.sum::<f64>() / n).sqrt()
            })
            .collect();
        maximise(vec![0.0; self.p], &scale, |beta| self.evaluate(beta))
    }
}

fn explain(failure: Failure, names: &[String]) -> Error {
    match failure {
        Failure::Dependent(j) => {
            Error::malformed(format!("column {} is a linear combination of the others", names[j]))
        }
        Failure::Diverges(j) => Error::malformed(format!(
            "separation: the likelihood has no maximum, the coefficient of {} grows without bound; \
             drop a column or use Firth's penalty",
            names[j]
        )),
    }
}

fn names(design: &Design) -> Vec<String> {
    std::iter::once("(Intercept)".to_string()).chain(design.names.iter().cloned()).collect()
}

/// Fits `y` (N,) on the columns of `design` (N, P) and an intercept; Wald intervals at `level`.
///
/// # Errors
/// Shapes disagree, one class only, a weight or offset that is not finite (named by row), a column
/// that depends on the others, or separation (named by column).
pub fn logistic(design: &Design, y: &[bool], options: &Options, level: f64) -> Result<Logistic> {
    let problem = Problem::new(design, y, options)?;
    let names = names(design);
    let optimum = problem.solve().map_err(|f| explain(f, &names))?;
    let factor =
        optimum.at.information.cholesky().map_err(|j| explain(Failure::Diverges(j), &names))?;
    let covariance = factor.inverse();
    let null = problem.null().solve().map_err(|f| explain(f, &names))?;
    Ok(Logistic {
        terms: names
            .iter()
            .enumerate()
            .map(|(j, name)| Term::new(name, optimum.beta[j], covariance.at(j, j).sqrt(), level))
            .collect(),
        covariance: covariance.a,
        loglik: problem.loglik(&optimum.beta),
        null_loglik: null.at.value,
        n: y.len(),
    })
}

/// Deviance of the model with coefficient `j` (0 the intercept) held at each of `values`; `None`
/// where that model has no maximum.
///
/// # Errors
/// As [`logistic`].
pub fn profile_deviance(
    design: &Design,
    y: &[bool],
    options: &Options,
    j: usize,
    values: &[f64],
) -> Result<Vec<Option<f64>>> {
    let problem = Problem::new(design, y, options)?;
    Ok(values.iter().map(|&v| deviance_at(&problem, j, v)).collect())
}

fn deviance_at(problem: &Problem, j: usize, value: f64) -> Option<f64> {
    let fixed = problem.fix(j, value);
    if fixed.p == 0 {
        return Some(-2.0 * fixed.loglik(&[]));
    }
    fixed.solve().ok().map(|o| -2.0 * o.at.value)
}

/// Profile-likelihood interval of coefficient `j` of `fit`: where the deviance of the model with
/// the coefficient held fixed exceeds the minimum by the chi-square quantile (Venzon and Moolgavkar
/// 1988), found by bisection. An end is `None` where the profile never rises that far.
///
/// # Errors
/// As [`logistic`].
pub fn profile_interval(
    design: &Design,
    y: &[bool],
    options: &Options,
    fit: &Logistic,
    j: usize,
    level: f64,
) -> Result<(Option<f64>, Option<f64>)> {
    let problem = Problem::new(design, y, options)?;
    let best = deviance_at(&problem, j, fit.terms[j].coef);
    let limit = best.map(|d| d + z_of(level).powi(2));
    let (centre, se) = (fit.terms[j].coef, fit.terms[j].se);
    let end = |sign: f64| {
        let limit = limit?;
        let within =
            |steps: f64| deviance_at(&problem, j, centre + sign * steps * se).map(|d| d < limit);
        let mut far = 1.0;
        while within(far)? {
            far *= 1.5;
            if far > 1000.0 {
                return None;
            }
        }
        let steps = bisect(0.0, far, |steps| within(steps).unwrap_or(false));
        Some(centre + sign * steps * se)
    };
    Ok((end(-1.0), end(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const Y: [bool; 8] = [false, false, true, false, true, true, false, true];
    const X: [f64; 8] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];

    #[test]
    fn separation_is_an_error_and_firth_is_not() {
        let d = Design::single("x", &X).unwrap();
        let y = X.map(|x| x > 4.5);
        let error = logistic(&d, &y, &Options::default(), 0.95).unwrap_err().to_string();
        assert!(error.starts_with("separation"), "{error}");
        let firth = Options { firth: true, ..Options::default() };
        assert!(logistic(&d, &y, &firth, 0.95).unwrap().coef()[1].is_finite());
        // Quasi-separation: one tied value in both classes.
        let x = [1.0, 2.0, 3.0, 4.0, 4.0, 6.0, 7.0, 8.0];
        let d = Design::single("x", &x).unwrap();
        assert!(logistic(&d, &y, &Options::default(), 0.95).is_err());
    }

    #[test]
    fn dependent_columns_and_one_class_are_errors() {
        use super::super::design::Column;
        let (a, b) =
            (Column::Numeric(X.to_vec()), Column::Numeric(X.map(|v| 2.0 - 3.0 * v).into()));
        let d = Design::new(&[("a", &a), ("b", &b)]).unwrap();
        let error = logistic(&d, &Y, &Options::default(), 0.95).unwrap_err().to_string();
        assert!(error.contains("column b is a linear combination"), "{error}");
        let d = Design::single("x", &X).unwrap();
        assert!(logistic(&d, &[true; 8], &Options::default(), 0.95).is_err());
    }

    #[test]
    fn a_weight_of_two_is_a_row_twice() {
        let twice: Vec<f64> = X.iter().flat_map(|x| [*x, *x]).collect();
        let y2: Vec<bool> = Y.iter().flat_map(|y| [*y, *y]).collect();
        let doubled =
            logistic(&Design::single("x", &twice).unwrap(), &y2, &Options::default(), 0.95);
        let options = Options { weights: Some(vec![2.0; 8]), ..Options::default() };
        let weighted = logistic(&Design::single("x", &X).unwrap(), &Y, &options, 0.95).unwrap();
        for (a, b) in doubled.unwrap().terms.iter().zip(&weighted.terms) {
            assert!((a.coef - b.coef).abs() < 1e-12 && (a.se - b.se).abs() < 1e-12);
        }
    }

    #[test]
    fn the_profile_meets_its_quantile() {
        let d = Design::single("x", &X).unwrap();
        let none = Options::default();
        let fit = logistic(&d, &Y, &none, 0.95).unwrap();
        let (low, high) = profile_interval(&d, &Y, &none, &fit, 1, 0.95).unwrap();
        for end in [low.unwrap(), high.unwrap()] {
            let d = profile_deviance(&d, &Y, &none, 1, &[end]).unwrap()[0].unwrap();
            assert!((d + 2.0 * fit.loglik - 3.841458820694124).abs() < 1e-9);
        }
    }

    #[test]
    fn balanced_weights_even_out_the_classes() {
        let w = balanced_weights(&[true, false, false, false]);
        assert_eq!(w[0], 2.0);
        assert!((w[1] * 3.0 - 2.0).abs() < 1e-15);
    }
}
