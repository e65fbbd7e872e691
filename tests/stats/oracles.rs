//! Answers every oracle function of an oracle file with this crate and compares field by field.

use super::table::{Formula, Table};
use super::{curves, groups, lrm};
use histokern::stats::bootstrap::Plan;
use histokern::stats::calibration::{self, Bins};
use histokern::stats::chi2_upper;
use histokern::stats::compare::false_discovery;
use histokern::stats::concordance::{auc_at, brier_at, harrell, uno};
use histokern::stats::correlation::{self as corr, SpearmanSe};
use histokern::stats::cox::{SurvivalData, Ties, cox, predict_survival, proportional_hazards};
use histokern::stats::decision::{decision_curve, reclassification};
use histokern::stats::design::Design;
use histokern::stats::intervals::{Interval, clopper_pearson, wilson};
use histokern::stats::logistic::{self, Logistic, Options, logistic};
use histokern::stats::lowess::{SPAN, lowess, smooth_errors};
use histokern::stats::nomogram::{Nomogram, Variable, display_limits};
use histokern::stats::roc::{Roc, delong_paired};
use histokern::stats::survival::{CurveInterval, KaplanMeier, log_rank};
use histokern::stats::threshold::{Confusion, Proportion};
use serde_json::{Map, Value, json};
use std::path::Path;

pub(crate) const LEVEL: f64 = 0.95;

/// Fields that are no statement about the data.
const NOT_ANSWERED: &[(&str, &str)] = &[
    ("/stats/Max Deriv", "how far R's optimiser went"),
    ("/r_", "what R prints where this crate must refuse, which is checked instead"),
    ("/r/", "what R prints where this crate must refuse, which is checked instead"),
];

/// Fields compared more coarsely than the oracle asks, with why.
const COARSER: &[(&str, f64, &str)] = &[
    ("/val_prob/C (ROC)", 2e-3, "lrm of rms puts probabilities into bins of 0.002 before ranking"),
    ("/stats/C", 2e-3, "lrm of rms puts probabilities into bins of 0.002 before ranking"),
    ("/stats/Dxy", 2e-3, "lrm of rms puts probabilities into bins of 0.002 before ranking"),
    ("/stats/Gamma", 2e-3, "lrm of rms puts probabilities into bins of 0.002 before ranking"),
    ("/stats/Tau-a", 2e-3, "lrm of rms puts probabilities into bins of 0.002 before ranking"),
    ("/val_prob/Dxy", 2e-3, "lrm of rms puts probabilities into bins of 0.002 before ranking"),
];

pub struct Report {
    pub compared: usize,
    pub failures: Vec<String>,
}

/// Runs all oracles of `file` on the tables in `data`.
pub fn run(file: &Path, data: &Path) -> Report {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let root: Value = serde_json::from_str(&text).unwrap();
    let mut report = Report { compared: 0, failures: Vec::new() };
    for (id, oracle) in root["oracles"].as_object().expect("an object `oracles`") {
        let before = report.compared;
        match answer(oracle, data) {
            Ok(answer) => compare(id, oracle, &answer, &mut report),
            Err(message) => report.failures.push(format!("{id}: {message}")),
        }
        if report.compared == before && oracle["expect"].get("must").is_none() {
            report.failures.push(format!("{id}: nothing was compared"));
        }
    }
    report
}

fn leaves(value: &Value, path: String, out: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(k, v)| leaves(v, format!("{path}/{k}"), out));
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, v)| leaves(v, format!("{path}/{i}"), out));
        }
        leaf => out.push((path, leaf.clone())),
    }
}

/// Lists must be as long as wanted: comparing entry by entry would not see what is left over.
fn lengths(id: &str, want: &Value, got: &Value, path: String, report: &mut Report) {
    match want {
        Value::Object(map) => {
            for (k, v) in map {
                lengths(id, v, got.get(k).unwrap_or(&Value::Null), format!("{path}/{k}"), report);
            }
        }
        Value::Array(list) => {
            let Some(found) = got.as_array() else { return };
            if found.len() != list.len() {
                let (found, wanted) = (found.len(), list.len());
                report.failures.push(format!("{id}{path}: {found} entries, wanted {wanted}"));
            }
            for (i, (v, g)) in list.iter().zip(found).enumerate() {
                lengths(id, v, g, format!("{path}/{i}"), report);
            }
        }
        _ => {}
    }
}

/// `|got - want| <= tol max(1, |want|)`; a missing number must be missing on both sides.
fn compare(id: &str, oracle: &Value, answer: &Value, report: &mut Report) {
    let tolerance = oracle["tol"].as_f64().unwrap_or(1e-6).max(1e-12);
    let mut wanted = Vec::new();
    leaves(&oracle["expect"], String::new(), &mut wanted);
    lengths(id, &oracle["expect"], answer, String::new(), report);
    for (path, want) in wanted {
        if want.is_string() || NOT_ANSWERED.iter().any(|(p, _)| path.starts_with(p)) {
            continue;
        }
        let coarser = COARSER.iter().find(|(p, ..)| *p == path);
        let tolerance = coarser.map_or(tolerance, |(_, t, _)| *t);
        let mut got = answer.pointer(&path);
        if let Some(Value::Array(list)) = got
            && list.len() == 1
        {
            got = list.first();
        }
        let Some(got) = got else {
            if !want.is_null() {
                report.failures.push(format!("{id}{path}: not answered, wanted {want}"));
            }
            continue;
        };
        report.compared += 1;
        let good = match (want.as_f64(), got.as_f64()) {
            (Some(want), Some(got)) => (got - want).abs() <= tolerance * want.abs().max(1.0),
            (None, None) => want == *got || (want.is_null() && got.is_null()),
            _ => false,
        };
        if !good {
            report.failures.push(format!("{id}{path}: got {got}, wanted {want}, tol {tolerance}"));
        }
    }
}

pub(crate) fn pair(i: Option<Interval>) -> Value {
    i.map_or(json!([null, null]), |i| json!([i.lower, i.upper]))
}

pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no text `{key}` in {value}"))
}

pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().map(|v| v.as_f64().unwrap()).collect(),
        single => single.as_f64().into_iter().collect(),
    }
}

fn answer(oracle: &Value, folder: &Path) -> Result<Value, String> {
    let (data, args) = (&oracle["data"], &oracle["args"]);
    let table = || {
        let name = text(data, "file");
        let places = [folder.join(name), folder.join("data").join(name)];
        Table::read(places.iter().find(|p| p.exists()).unwrap_or(&places[0]))
    };
    let formula = || Formula::parse(text(args, "formula"));
    let refuse = oracle["expect"].get("must").is_some();
    let say = |e: histokern::Error| e.to_string();
    match text(oracle, "fn") {
        "roc_auc" => roc_auc(&table(), data).map_err(say),
        "roc_auc_bootstrap" => roc_bootstrap(&table(), data, args).map_err(say),
        "delong_paired" => paired(&table(), data).map_err(say),
        "threshold_metrics" => threshold(&table(), data, args).map_err(say),
        "proportion_ci" => {
            let (x, n) = (args["x"].as_f64().unwrap(), args["n"].as_f64().unwrap());
            Ok(json!({ "wilson": pair(wilson(x, n, LEVEL)),
                       "clopper_pearson": pair(clopper_pearson(x, n, LEVEL)) }))
        }
        "calibration" => calibrated(&table(), data).map_err(say),
        "decision_curve" => net_benefit(&table(), data, args).map_err(say),
        "nri_idi" => nri(&table(), data).map_err(say),
        "correlation" => correlated(table(), data).map_err(say),
        "logistic_regression" | "logistic_regression_firth" => {
            let firth = text(oracle, "fn").ends_with("firth");
            regression(table(), &formula(), firth, refuse)
        }
        "cox_ph" if data.get("file").is_none() => {
            let status: Vec<bool> = numbers(&args["status"]).iter().map(|s| *s == 1.0).collect();
            let design = Design::single("x", &numbers(&args["x"]));
            let time = numbers(&args["time"]);
            let fit = design.and_then(|design| {
                let data =
                    SurvivalData { design: &design, time: &time, event: &status, strata: None };
                cox(&data, Ties::Efron, LEVEL)
            });
            refused(fit.map(|f| json!({ "coef": f.coef() })), refuse)
        }
        "cox_ph" => refused(hazards(table(), &formula(), args), refuse),
        "cox_survival_prediction" => predicted(table(), &formula(), args).map_err(say),
        "kaplan_meier" => kaplan_meier(table(), &formula(), args).map_err(say),
        "rmst" => restricted(&table(), data, args).map_err(say),
        "logrank" => refused(ranks(table(), &formula(), args), refuse),
        "concordance" | "uno_c" | "time_dependent_auc" => {
            ordering(&table(), data, args).map_err(say)
        }
        "ipcw_brier" => graf(&table(), data, args).map_err(say),
        "nomogram" => points(table(), &formula(), &numbers(&oracle["expect"]["coef"])).map_err(say),
        "two_groups" => groups::two(args).map_err(say),
        "kruskal_wallis" => groups::kruskal(args).map_err(say),
        "false_discovery" => Ok(json!({ "q": false_discovery(&numbers(&args["p"])) })),
        "contingency" => groups::counted(args).map_err(say),
        "lowess" => curves::smooth(&table(), data).map_err(say),
        "roc_band" => curves::band(&table(), data, args).map_err(say),
        "precision_recall" => curves::precision(&table(), data).map_err(say),
        "multiclass" => curves::multiclass(args).map_err(say),
        "uno_listed" => curves::uno_listed(args).map_err(say),
        "bca" => Ok(curves::bca(args)),
        "spearman_bootstrap" => curves::spearman(&table(), data, args).map_err(say),
        "degenerate" => degenerate(text(args, "code"), &oracle["expect"]["r"]),
        other => Err(format!("unknown oracle function {other}")),
    }
}

/// Where the oracle says a result must be refused, an error is the right answer.
fn refused(result: histokern::Result<Value>, refuse: bool) -> Result<Value, String> {
    match (result, refuse) {
        (Ok(_), true) => Err("an answer where there must be none".into()),
        (Err(_), true) => Ok(json!({})),
        (result, false) => result.map_err(|e| e.to_string()),
    }
}

pub(crate) fn scores(table: &Table, data: &Value) -> (Vec<f64>, Vec<bool>) {
    (table.numbers(text(data, "score")), table.labels(text(data, "y")))
}

fn roc_auc(table: &Table, data: &Value) -> histokern::Result<Value> {
    let (score, y) = scores(table, data);
    let roc = Roc::new(&score, &y)?;
    let youden = roc.youden();
    Ok(json!({
        "n": y.len(), "n_pos": roc.positives(), "n_neg": roc.negatives(), "auc": roc.auc(),
        "delong_var": roc.delong_variance(),
        "delong_se": roc.delong_variance().map(f64::sqrt),
        "ci95_delong": pair(roc.delong(LEVEL)),
        "ci95_delong_logit": pair(roc.delong_logit(LEVEL)),
        "hanley_mcneil_se": roc.hanley_mcneil_se(),
        "mannwhitney_u": roc.u(), "mannwhitney_p_asymp_nocorrect": roc.mann_whitney_p(),
        "youden": youden.map(|b| json!({
            "j": b.j, "threshold_midpoint": b.midpoint, "threshold_observed": b.observed,
            "sensitivity": b.sensitivity, "specificity": b.specificity })),
        "partial_auc_spec_1_0.9": roc.partial_auc(0.1),
        "partial_auc_spec_1_0.9_mcclish": roc.partial_auc_mcclish(0.1),
        "n_roc_points": roc.curve().len(),
    }))
}

fn roc_bootstrap(table: &Table, data: &Value, args: &Value) -> histokern::Result<Value> {
    let (score, y) = scores(table, data);
    let rounds = args["reps"].as_u64().unwrap_or(4000) as usize;
    let b = Roc::new(&score, &y)?.bootstrap(Plan { rounds, seed: 20 }, &[], LEVEL).auc;
    Ok(json!({ "mean": b.mean, "sd": b.sd, "ci95": pair(b.percentile(LEVEL)) }))
}

fn paired(table: &Table, data: &Value) -> histokern::Result<Value> {
    let (a, b) = (table.numbers(text(data, "score1")), table.numbers(text(data, "score2")));
    let y = table.labels(text(data, "y"));
    let test = delong_paired(&a, &b, &y, LEVEL)?;
    Ok(json!({ "auc1": Roc::new(&a, &y)?.auc(), "auc2": Roc::new(&b, &y)?.auc(), "z": test.z,
               "p": test.p, "diff_ci95": pair(Some(test.interval)), "cov": test.covariance }))
}

fn threshold(table: &Table, data: &Value, args: &Value) -> histokern::Result<Value> {
    let (score, y) = scores(table, data);
    let confusion = Confusion::at(&score, &y, args["threshold"].as_f64().unwrap())?;
    let m = confusion.metrics(LEVEL);
    let share = |p: Proportion| {
        json!({ "est": p.estimate, "wilson": pair(p.wilson),
                "clopper_pearson": pair(p.clopper_pearson), "num": p.count, "den": p.of })
    };
    Ok(json!({
        "TP": confusion.tp, "FP": confusion.fp, "FN": confusion.fn_, "TN": confusion.tn,
        "accuracy": share(m.accuracy), "sensitivity": share(m.sensitivity),
        "specificity": share(m.specificity), "ppv": share(m.ppv), "npv": share(m.npv),
        "prevalence": share(m.prevalence), "f1": m.f1, "mcc": m.mcc, "kappa": m.kappa,
        "balanced_accuracy": m.balanced_accuracy, "lr_pos": m.lr_positive,
        "lr_neg": m.lr_negative,
    }))
}

fn calibrated(table: &Table, data: &Value) -> histokern::Result<Value> {
    let (p, y) = scores(table, data);
    let c = calibration::calibration(&p, &y, LEVEL)?;
    let hl = calibration::hosmer_lemeshow(&p, &y, 10)?;
    let n = c.n as f64;
    let of = |f: &dyn Fn(&calibration::Bin) -> f64| hl.groups.iter().map(f).collect::<Vec<_>>();
    let outcome: Vec<f64> = y.iter().map(|y| f64::from(u8::from(*y))).collect();
    let smooth = smooth_errors(&p, &lowess(&p, &outcome, SPAN)?);
    let auc = Roc::new(&p, &y)?.auc();
    let (d, u) = ((c.lr_chi2 - 1.0) / n, (c.unreliability_chi2 - 2.0) / n);
    Ok(json!({
        "brier": c.brier, "brier_scaled": c.brier_scaled, "log_loss": c.log_loss,
        "citl": c.in_the_large.coef, "citl_se": c.in_the_large.se,
        "slope": c.slope.coef, "slope_se": c.slope.se, "slope_ci95_wald": pair(Some(c.slope.wald)),
        "intercept_joint": c.intercept.coef, "intercept_joint_se": c.intercept.se,
        "oe_ratio": c.oe_ratio, "oe_ci95_log": pair(Some(c.oe_interval)),
        "hosmer_lemeshow": {
            "g": 10, "groups": hl.groups.len(), "chi2": hl.chi2,
            "df_internal": hl.groups.len() - 2, "p_internal": hl.p_internal,
            "df_external": hl.groups.len(), "p_external": hl.p_external,
            "observed": of(&|b| b.observed as f64), "expected": of(&|b| b.expected),
            "n": of(&|b| b.n as f64),
        },
        "ece_10_equal_width": calibration::expected_error(&p, &y, Bins::EqualWidth(10))?,
        "val_prob": {
            "R2": c.nagelkerke_r2, "D": d, "D:Chi-sq": c.lr_chi2, "U": u,
            "U:Chi-sq": c.unreliability_chi2, "U:p": chi2_upper(c.unreliability_chi2, 2.0),
            "Q": d - u, "Brier": c.brier, "Intercept": c.intercept.coef, "Slope": c.slope.coef,
            "S:z": c.spiegelhalter_z, "S:p": c.spiegelhalter_p,
            "Emax": smooth.map(|s| s.emax), "E90": smooth.map(|s| s.e90),
            "Eavg": smooth.map(|s| s.ici), "C (ROC)": auc, "Dxy": 2.0 * auc - 1.0,
        },
    }))
}

fn net_benefit(table: &Table, data: &Value, args: &Value) -> histokern::Result<Value> {
    let (p, y) = scores(table, data);
    let points = decision_curve(&p, &y, &numbers(&args["thresholds"]))?;
    let of = |f: &dyn Fn(&histokern::stats::decision::NetBenefit) -> Option<f64>| {
        points.iter().map(f).collect::<Vec<_>>()
    };
    Ok(json!({
        "net_benefit_model": of(&|b| Some(b.model)), "net_benefit_all": of(&|b| Some(b.all)),
        "net_benefit_none": of(&|_| Some(0.0)),
        "net_intervention_avoided_per_patient": of(&|b| b.avoided),
    }))
}

fn nri(table: &Table, data: &Value) -> histokern::Result<Value> {
    let (old, new) =
        (table.numbers(text(data, "score_old")), table.numbers(text(data, "score_new")));
    let r = reclassification(&old, &new, &table.labels(text(data, "y")))?;
    Ok(json!({
        "nri_continuous": r.nri.estimate, "nri_se": r.nri.se, "nri_z": r.nri.z,
        "nri_events": r.nri_events, "nri_nonevents": r.nri_nonevents,
        "idi": r.idi.estimate, "idi_se": r.idi.se, "idi_z": r.idi.z,
    }))
}

fn correlated(table: Table, data: &Value) -> histokern::Result<Value> {
    let (x, y) = (text(data, "x"), text(data, "y"));
    let table = table.complete(&[x, y]);
    let (x, y) = (table.numbers(x), table.numbers(y));
    let n = x.len();
    let rho = corr::spearman(&x, &y)?;
    let r = corr::pearson(&x, &y)?;
    let interval = |se| pair(rho.and_then(|rho| corr::spearman_interval(rho, n, se, LEVEL)));
    let agreement = corr::agreement(&x, &y)?;
    let line = corr::line(&x, &y)?;
    Ok(json!({
        "n": n, "spearman": rho, "spearman_p_t": rho.and_then(|v| corr::correlation_p(v, n)),
        "spearman_ci95_fieller": interval(SpearmanSe::Fieller),
        "spearman_ci95_bonett_wright": interval(SpearmanSe::BonettWright),
        "spearman_ci95_fisher": interval(SpearmanSe::Fisher),
        "pearson": r, "pearson_p": r.and_then(|v| corr::correlation_p(v, n)),
        "pearson_ci95": pair(r.and_then(|v| corr::pearson_interval(v, n, LEVEL))),
        "pearson_r2": r.map(|r| r * r),
        "ols_intercept": line.map(|l| l.intercept), "ols_slope": line.map(|l| l.slope),
        "r2_coefficient_of_determination_x_predicts_y": agreement.r2_determination,
        "kendall_tau_b": corr::kendall(&x, &y)?, "lin_ccc": agreement.ccc,
        "rmse": agreement.rmse, "mae": agreement.mae, "bias": agreement.bias,
        "loa95": pair(agreement.limits),
    }))
}

fn regression(table: Table, formula: &Formula, firth: bool, refuse: bool) -> Result<Value, String> {
    let table = table.for_formula(formula);
    let design = table.design(formula).map_err(|e| e.to_string())?;
    let y = table.labels(&formula.response[0]);
    let plain = Options::default();
    let penalised = Options { firth: true, ..Options::default() };
    let table_of =
        |f: &Logistic| -> (Vec<f64>, Vec<f64>) { f.terms.iter().map(|t| (t.coef, t.se)).unzip() };
    if refuse {
        refused(logistic(&design, &y, &plain, LEVEL).map(|_| json!({})), true)?;
        let fit = logistic(&design, &y, &penalised, LEVEL).map_err(|e| e.to_string())?;
        let (coef, se) = table_of(&fit);
        return Ok(json!({ "firth_coef": coef, "firth_se": se }));
    }
    let options = if firth { penalised } else { plain };
    let fit = logistic(&design, &y, &options, LEVEL).map_err(|e| e.to_string())?;
    let (coef, se) = table_of(&fit);
    let mut out = json!({ "coef": coef, "se": se });
    if !firth {
        full_table(&fit, &mut out);
        let profile: Vec<Value> =
            (0..coef.len()).map(|j| mass_profile(&design, &y, &fit, j)).collect();
        out["profile_ci95"] = json!(profile);
    }
    Ok(out)
}

fn full_table(fit: &Logistic, out: &mut Value) {
    let of = |f: &dyn Fn(&logistic::Term) -> Value| -> Value {
        fit.terms.iter().map(f).collect::<Vec<_>>().into()
    };
    let (chi2, df, p) = fit.likelihood_ratio();
    let more = json!({
        "z": of(&|t| json!(t.z)), "p": of(&|t| json!(t.p)),
        "wald_ci95": of(&|t| pair(Some(t.wald))), "odds_ratio": of(&|t| json!(t.coef.exp())),
        "deviance": -2.0 * fit.loglik, "null_deviance": -2.0 * fit.null_loglik,
        "df_resid": fit.n - fit.terms.len(), "aic": fit.aic(), "loglik": fit.loglik,
        "lr_chi2": chi2, "lr_df": df, "lr_p": p, "n": fit.n,
        "nagelkerke_r2": fit.nagelkerke_r2(),
    });
    merge(out, more);
}

fn merge(out: &mut Value, more: Value) {
    let (Value::Object(out), Value::Object(more)) = (out, more) else { unreachable!() };
    out.extend(more);
}

/// The profile interval as MASS 7.3 approximates it: the signed root of the deviance difference on a
/// grid of steps, a cubic spline through it sampled at three times as many places, linear
/// interpolation between those. The exact interval must lie close by.
fn mass_profile(design: &Design, y: &[bool], fit: &Logistic, j: usize) -> Value {
    let plain = Options::default();
    let exact = logistic::profile_interval(design, y, &plain, fit, j, LEVEL).unwrap();
    let (centre, se) = (fit.terms[j].coef, fit.terms[j].se);
    // qnorm(1 - 0.0125 / 2): MASS profiles at a quarter of 1 - level.
    let z_max = 2.497705474412374;
    let mut points = vec![(centre, 0.0)];
    for sign in [-1.0, 1.0] {
        for step in 1..10 {
            let value = centre + sign * f64::from(step) * z_max / 5.0 * se;
            let deviance =
                logistic::profile_deviance(design, y, &plain, j, &[value]).unwrap()[0].unwrap();
            let z = sign * (deviance + 2.0 * fit.loglik).max(0.0).sqrt();
            points.push((value, z));
            if z.abs() >= z_max {
                break;
            }
        }
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let curve = spline(&points, 3 * points.len());
    let at = |z: f64| {
        let i = curve.partition_point(|(_, v)| *v < z);
        let ((x0, z0), (x1, z1)) = (curve[i - 1], curve[i]);
        x0 + (x1 - x0) * (z - z0) / (z1 - z0)
    };
    let quantile = 1.959963984540054;
    let (low, high) = (at(-quantile), at(quantile));
    for (exact, approximate) in [(exact.0, low), (exact.1, high)] {
        let gap = (exact.unwrap() - approximate).abs();
        assert!(gap < 1e-3 * se, "exact {exact:?}, MASS {approximate}");
    }
    json!([low, high])
}

/// `n` equidistant samples of the cubic spline through `points` whose end cubics continue those
/// through the four outermost points (Forsythe, Malcolm and Moler 1977; R's method "fmm").
fn spline(points: &[(f64, f64)], n: usize) -> Vec<(f64, f64)> {
    let m = points.len();
    let h: Vec<f64> = points.windows(2).map(|w| w[1].0 - w[0].0).collect();
    let slope: Vec<f64> = points.windows(2).zip(&h).map(|(w, h)| (w[1].1 - w[0].1) / h).collect();
    // Third divided difference of four points: a sixth of the cubic's third derivative.
    let third = |i: usize| {
        let second = |k: usize| (slope[k + 1] - slope[k]) / (points[k + 2].0 - points[k].0);
        (second(i + 1) - second(i)) / (points[i + 3].0 - points[i].0)
    };
    // Unknown s[i] = half the second derivative over three; tridiagonal system.
    let (mut diagonal, mut s) = (vec![0.0; m], vec![0.0; m]);
    diagonal[0] = -h[0];
    s[0] = h[0] * h[0] * third(0);
    for i in 1..m - 1 {
        diagonal[i] = 2.0 * (h[i - 1] + h[i]);
        s[i] = slope[i] - slope[i - 1];
    }
    diagonal[m - 1] = -h[m - 2];
    s[m - 1] = -h[m - 2] * h[m - 2] * third(m - 4);
    for i in 1..m {
        let factor = h[i - 1] / diagonal[i - 1];
        diagonal[i] -= factor * h[i - 1];
        s[i] -= factor * s[i - 1];
    }
    s[m - 1] /= diagonal[m - 1];
    for i in (0..m - 1).rev() {
        s[i] = (s[i] - h[i] * s[i + 1]) / diagonal[i];
    }
    let (first, last) = (points[0].0, points[m - 1].0);
    let sample = |k: usize| {
        let x = first + (last - first) * k as f64 / (n - 1) as f64;
        let i = points.partition_point(|p| p.0 <= x).clamp(1, m - 1) - 1;
        let d = x - points[i].0;
        let b = slope[i] - h[i] * (s[i + 1] + 2.0 * s[i]);
        (x, points[i].1 + d * (b + d * (3.0 * s[i] + d * (s[i + 1] - s[i]) / h[i])))
    };
    (0..n).map(sample).collect()
}

fn ties(args: &Value) -> Ties {
    match args["ties"].as_str() {
        Some("breslow") => Ties::Breslow,
        Some("exact") => Ties::Exact,
        _ => Ties::Efron,
    }
}

fn hazards(table: Table, formula: &Formula, args: &Value) -> histokern::Result<Value> {
    let table = table.for_formula(formula);
    let design = table.design(formula)?;
    let (time, event) = table.survival(formula);
    let strata = table.strata(formula);
    let strata = strata.as_deref();
    let data = SurvivalData { design: &design, time: &time, event: &event, strata };
    let fit = cox(&data, ties(args), LEVEL)?;
    let p = fit.terms.len() as f64;
    let (lr, lr_p) = fit.likelihood_ratio();
    let c = harrell(&fit.predict(&design), &time, &event, strata)?;
    let of = |f: &dyn Fn(&logistic::Term) -> Value| -> Value {
        fit.terms.iter().map(f).collect::<Vec<_>>().into()
    };
    let mut out = json!({
        "n": fit.n, "events": fit.events, "coef": fit.coef(),
        "se": of(&|t| json!(t.se)), "z": of(&|t| json!(t.z)), "p": of(&|t| json!(t.p)),
        "hr": of(&|t| json!(t.coef.exp())),
        "hr_ci95": fit.terms.iter()
            .map(|t| json!([t.wald.lower.exp(), t.wald.upper.exp()])).collect::<Vec<_>>(),
        "loglik": [fit.null_loglik, fit.loglik],
        "lr_chi2": lr, "lr_df": p, "lr_p": lr_p,
        // R prints it to two decimals.
        "wald_chi2": (fit.wald_chi2 * 100.0).round() / 100.0,
        "score_chi2": fit.score_chi2, "score_p": chi2_upper(fit.score_chi2, p),
        "concordance": c.c, "concordance_se": c.se,
    });
    if ties(args) != Ties::Exact {
        let tests = proportional_hazards(&data, &fit)?;
        out["ph_test_rank_or_km_default"] = json!({
            "chisq": tests.iter().map(|t| t.chi2).collect::<Vec<_>>(),
            "df": tests.iter().map(|t| t.df).collect::<Vec<_>>(),
            "p": tests.iter().map(|t| t.p).collect::<Vec<_>>(),
        });
    }
    Ok(out)
}

fn predicted(table: Table, formula: &Formula, args: &Value) -> histokern::Result<Value> {
    let table = table.for_formula(formula);
    let design = table.design(formula)?;
    let (time, event) = table.survival(formula);
    let data = SurvivalData { design: &design, time: &time, event: &event, strata: None };
    let fit = cox(&data, ties(args), LEVEL)?;
    let times = numbers(&args["times"]);
    let rows = args["newdata"].as_array().unwrap();
    let curves = rows
        .iter()
        .map(|row| predict_survival(&data, &fit, &numbers(row), 0, &times))
        .collect::<histokern::Result<Vec<_>>>()?;
    let by_time = |f: &dyn Fn(&histokern::stats::cox::Predicted) -> f64| -> Vec<Vec<f64>> {
        (0..times.len()).map(|t| curves.iter().map(|c| f(&c[t])).collect()).collect()
    };
    Ok(json!({ "surv": by_time(&|p| p.survival), "std_err": by_time(&|p| p.se) }))
}

/// Row indices of each group of the formula's one term, or all rows.
fn grouped(table: &Table, formula: &Formula) -> Vec<Vec<usize>> {
    let n = table.text(&formula.response[0]).len();
    match formula.terms.first() {
        None => vec![(0..n).collect()],
        Some(term) => {
            let (levels, codes) = table.groups(&term.column);
            let rows = |g| (0..n).filter(|&i| codes[i] == g).collect();
            (0..levels.len()).map(rows).collect()
        }
    }
}

fn kaplan_meier(table: Table, formula: &Formula, args: &Value) -> histokern::Result<Value> {
    let table = table.for_formula(formula);
    let kind = match text(args, "conf") {
        "log-log" => CurveInterval::LogLog,
        "log" => CurveInterval::Log,
        _ => CurveInterval::Plain,
    };
    let (time, event) = table.survival(formula);
    let mut out: Map<String, Value> = Map::new();
    let mut push = |key: &str, value: Value| match out.entry(key).or_insert(json!([])) {
        Value::Array(list) => list.push(value),
        _ => unreachable!(),
    };
    for rows in grouped(&table, formula) {
        let time: Vec<f64> = rows.iter().map(|&i| time[i]).collect();
        let event: Vec<bool> = rows.iter().map(|&i| event[i]).collect();
        let km = KaplanMeier::new(&time, &event)?;
        for t in numbers(&args["times"]) {
            let at = km.at(t, kind, LEVEL);
            push("time", json!(t));
            push("n_risk", json!(at.at_risk));
            push("surv", json!(at.survival));
            push("std_err_greenwood", json!(at.se));
            push("lower", json!(at.interval.map(|i| i.lower)));
            push("upper", json!(at.interval.map(|i| i.upper)));
        }
        let (median, lower, upper) = km.quantile(0.5, kind, LEVEL);
        push("median", json!(median));
        push("median_lower", json!(lower));
        push("median_upper", json!(upper));
        push("events", json!(km.events));
        push("n", json!(km.n));
    }
    Ok(Value::Object(out))
}

/// Time and event columns as the oracle names them, or by their usual names.
fn times(table: &Table, data: &Value) -> (Vec<f64>, Vec<bool>) {
    let usual = |names: &[&str]| names.iter().find(|n| table.has(n)).unwrap().to_string();
    let time = data["time"].as_str().map_or_else(|| usual(&["time"]), String::from);
    let event = data["event"].as_str().map_or_else(|| usual(&["cens", "status"]), String::from);
    (table.numbers(&time), table.labels(&event))
}

fn restricted(table: &Table, data: &Value, args: &Value) -> histokern::Result<Value> {
    let (time, event) = times(table, data);
    let (levels, codes) = match data["group"].as_str() {
        Some(group) => table.groups(group),
        None => (vec!["all".into()], vec![0; time.len()]),
    };
    let (mut means, mut errors) = (Vec::new(), Vec::new());
    for g in 0..levels.len() {
        let rows: Vec<usize> = (0..time.len()).filter(|&i| codes[i] == g).collect();
        let time: Vec<f64> = rows.iter().map(|&i| time[i]).collect();
        let event: Vec<bool> = rows.iter().map(|&i| event[i]).collect();
        let mean = KaplanMeier::new(&time, &event)?.restricted_mean(args["tau"].as_f64().unwrap());
        means.push(mean.map(|m| m.0));
        errors.push(mean.map(|m| m.1));
    }
    Ok(json!({ "rmst": means, "se": errors }))
}

fn ranks(table: Table, formula: &Formula, args: &Value) -> histokern::Result<Value> {
    let table = table.for_formula(formula);
    let (time, event) = table.survival(formula);
    let term = formula.terms.iter().find(|t| !t.strata).expect("a group");
    let (levels, codes) = table.groups(&term.column);
    let strata = table.strata(formula);
    let rho = args["rho"].as_f64().unwrap_or(0.0);
    let test = log_rank(&time, &event, &codes, levels.len(), strata.as_deref(), rho)?;
    Ok(serde_json::to_value(test).unwrap())
}

fn ordering(table: &Table, data: &Value, args: &Value) -> histokern::Result<Value> {
    let (time, event) = times(table, data);
    let risk = ["risk", "score", "lp", "marker"].iter().find_map(|k| data[*k].as_str());
    let risk = table.numbers(risk.expect("a risk column"));
    let c = harrell(&risk, &time, &event, None)?;
    let tau = args["tau"].as_f64();
    let uno = uno(&risk, &time, &event, tau)?;
    let auc = numbers(&args["times"])
        .into_iter()
        .map(|t| auc_at(&risk, &time, &event, t))
        .collect::<histokern::Result<Vec<_>>>()?;
    Ok(json!({
        "n": time.len(), "harrell": c.c, "concordance": c.c, "harrell_se": c.se, "se": c.se,
        "concordant": c.concordant, "discordant": c.discordant, "tied_x": c.tied_score,
        "tied_y": c.tied_time, "tied_xy": c.tied_both, "uno": uno.c, "uno_c": uno.c, "auc": auc,
    }))
}

fn graf(table: &Table, data: &Value, args: &Value) -> histokern::Result<Value> {
    let (time, event) = times(table, data);
    let pairs = args["pairs"].as_array().unwrap().iter();
    let scores = pairs
        .map(|p| {
            let survival = table.numbers(p[0].as_str().unwrap());
            brier_at(&survival, &time, &event, p[1].as_f64().unwrap())
        })
        .collect::<histokern::Result<Vec<_>>>()?;
    Ok(json!({ "brier": scores }))
}

/// Axes and totals. A Cox model's are computed from the coefficients the oracle prints, which must be
/// within 1e-3 standard errors of the maximum: cph of rms stops Newton's method early.
fn points(table: Table, formula: &Formula, printed: &[f64]) -> histokern::Result<Value> {
    let table = table.for_formula(formula);
    let design = table.design(formula)?;
    let mut out = json!({});
    let (slopes, intercept) = if formula.response.len() == 2 {
        let (time, event) = table.survival(formula);
        let data = SurvivalData { design: &design, time: &time, event: &event, strata: None };
        let fit = cox(&data, Ties::Efron, LEVEL)?;
        let coef = printed.to_vec();
        assert_eq!(coef.len(), fit.terms.len());
        for (early, term) in coef.iter().zip(&fit.terms) {
            assert!((early - term.coef).abs() < 1e-3 * term.se, "{early} and {}", term.coef);
        }
        let centre: f64 = fit.means.iter().zip(&coef).map(|(m, b)| m * b).sum();
        out["coef"] = json!(coef);
        out["center"] = json!(centre);
        (coef, -centre)
    } else {
        let y = table.labels(&formula.response[0]);
        let fit = logistic(&design, &y, &Options::default(), LEVEL)?;
        out["coef"] = json!(fit.coef());
        out["stats"] = lrm::stats(&fit, &design, &y)?;
        (fit.coef()[1..].to_vec(), fit.coef()[0])
    };
    let columns: Vec<Vec<f64>> = (0..design.columns()).map(|j| design.column(j)).collect();
    let named = || design.names.iter().zip(&columns);
    let variables = named()
        .zip(&slopes)
        .map(|((name, values), b)| Variable::numeric(name, *b, values))
        .collect::<histokern::Result<Vec<_>>>()?;
    let observed = (0..design.rows())
        .map(|i| intercept + design.row(i).iter().zip(&slopes).map(|(x, b)| x * b).sum::<f64>())
        .fold([f64::INFINITY, f64::NEG_INFINITY], |[a, b], lp| [a.min(lp), b.max(lp)]);
    let n = Nomogram::new(&variables, intercept, observed)?;
    for axis in &n.axes {
        let values: Vec<f64> = axis.marks.iter().map(|(l, _)| l.parse().unwrap()).collect();
        let points: Vec<f64> = axis.marks.iter().map(|(_, p)| *p).collect();
        out["points"][&axis.name] = json!({ "value": values, "points": points });
    }
    for (name, values) in named() {
        let (low, high) = display_limits(values).unwrap();
        out["limits"]["low"][name] = json!(low);
        out["limits"]["high"][name] = json!(high);
    }
    out["total_points"] = json!(n.total);
    out["total_points_range"] = json!([n.total.first(), n.total.last()]);
    out["points_per_lp"] = json!(n.points_per_lp);
    out["lp_intercept"] = json!(n.lp_at_zero);
    Ok(out)
}

/// The vectors `c(...)` of numbers in a line of R, in order.
fn vectors(code: &str) -> Vec<Vec<f64>> {
    let inner = code.split("c(").skip(1).filter_map(|part| part.split(')').next());
    inner.filter_map(|t| t.split(',').map(|v| v.trim().parse().ok()).collect()).collect()
}

/// What R computes on degenerate input must be computed, refused or undefined here alike.
fn degenerate(code: &str, r: &Value) -> Result<Value, String> {
    let v = vectors(code);
    let flags = |i: usize| -> Vec<bool> { v[i].iter().map(|x| *x == 1.0).collect() };
    let got: histokern::Result<Value> = if code.contains("roc(") {
        Roc::new(&v[1], &flags(0)).map(|roc| {
            if !code.contains("ci.auc(") {
                return json!(roc.auc());
            }
            roc.delong(LEVEL).map_or(Value::Null, |i| json!([i.lower, roc.auc(), i.upper]))
        })
    } else if code.contains("cor(") && code.contains("\"spearman\"") {
        corr::spearman(&v[0], &v[1]).map(|r| json!(r))
    } else if code.contains("cor(") && code.contains("\"kendall\"") {
        corr::kendall(&v[0], &v[1]).map(|r| json!(r))
    } else if code.contains("cor(") {
        corr::pearson(&v[0], &v[1]).map(|r| json!(r))
    } else if code.contains("concordance(") {
        // R's concordance expects a score that grows with survival.
        let risk: Vec<f64> = v[2].iter().map(|x| -x).collect();
        harrell(&risk, &v[0], &flags(1), None).map(|c| json!(c.c))
    } else if code.contains("survdiff(") {
        let group: Vec<usize> = v[2].iter().map(|g| *g as usize).collect();
        let groups = group.iter().max().map_or(0, |g| g + 1);
        log_rank(&v[0], &flags(1), &group, groups, None, 0.0).map(|t| json!(t.chi2))
    } else if code.contains("log(0)") {
        // Infinite in R; here the documented clip keeps it finite.
        let loss = calibration::log_loss(&[0.0], &[true]).map_err(|e| e.to_string())?;
        return if loss.is_finite() { Ok(json!({})) } else { Err(format!("log loss {loss}")) };
    } else if code == "NA" {
        for bad in [1.5, -0.1, f64::NAN] {
            let error = calibration::brier(&[0.5, bad], &[true, false]).err();
            if error.is_none_or(|e| !e.to_string().contains("row 2")) {
                return Err(format!("probability {bad} is not refused by row"));
            }
        }
        return Ok(json!({}));
    } else {
        return Err(format!("unknown degenerate case {code}"));
    };
    let undefined = got.as_ref().map_or(true, Value::is_null);
    if r.get("error").is_some() {
        return if got.is_err() { Ok(json!({})) } else { Err(format!("not refused: {got:?}")) };
    }
    match (&r["value"], undefined) {
        (Value::Null, true) => Ok(json!({})),
        (Value::Null, false) => Err(format!("defined: {got:?}")),
        (want, _) => {
            let (want, got) = (numbers(want), got.map(|g| numbers(&g)).unwrap_or_default());
            if want == got { Ok(json!({})) } else { Err(format!("got {got:?}, wanted {want:?}")) }
        }
    }
}
