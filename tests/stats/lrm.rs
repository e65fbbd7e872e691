//! The summary that `lrm` of rms prints of a logistic model, from this crate's numbers.

use histokern::stats::calibration::brier;
use histokern::stats::design::Design;
use histokern::stats::logistic::Logistic;
use histokern::stats::roc::Roc;
use serde_json::{Value, json};

/// Gini's mean difference.
fn gini(x: &[f64]) -> f64 {
    let n = x.len();
    let sum: f64 =
        (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| (x[i] - x[j]).abs()).sum();
    sum / (n * (n - 1) / 2) as f64
}

pub fn stats(fit: &Logistic, design: &Design, y: &[bool]) -> histokern::Result<Value> {
    let p = fit.predict(design);
    let lp: Vec<f64> = p.iter().map(|p| (p / (1.0 - p)).ln()).collect();
    let (lr, df, lr_p) = fit.likelihood_ratio();
    let auc = Roc::new(&p, y)?;
    let (m, k) = (auc.positives() as f64, auc.negatives() as f64);
    let n = m + k;
    let dxy = 2.0 * auc.auc() - 1.0;
    let effective = 3.0 * n * (m / n) * (k / n);
    let mut out = json!({
        "Obs": n, "Model L.R.": lr, "d.f.": df, "P": lr_p, "C": auc.auc(), "Dxy": dxy, "Gamma": dxy,
        "Tau-a": dxy * m * k / (n * (n - 1.0) / 2.0), "R2": fit.nagelkerke_r2(),
        "Brier": brier(&p, y)?, "g": gini(&lp), "gr": gini(&lp).exp(), "gp": gini(&p),
    });
    // Cox and Snell's R2 for the number of rows and for the effective number, plain and adjusted.
    for size in [n, effective] {
        let shown = ((size * 10.0).round() / 10.0).to_string();
        out[format!("R2({shown})")] = json!(1.0 - (-lr / size).exp());
        out[format!("R2({df},{shown})")] = json!(1.0 - (-(lr - df as f64) / size).exp());
    }
    Ok(out)
}
