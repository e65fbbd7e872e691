//! Answers to the oracles about two or more groups.

use super::oracle::{LEVEL, numbers, pair};
use histokern::stats::compare::{
    TTest, chi_square, cohen_d, fisher_exact, kruskal_wallis, mann_whitney, student, welch,
};
use serde_json::{Value, json};

pub fn two(args: &Value) -> histokern::Result<Value> {
    let (a, b) = (numbers(&args["a"]), numbers(&args["b"]));
    let t = |t: TTest| json!({ "t": t.t, "df": t.df, "p": t.p, "ci95": pair(Some(t.interval)) });
    let u = mann_whitney(&a, &b)?;
    let k = kruskal_wallis(&[&a, &b])?;
    Ok(json!({
        "welch": t(welch(&a, &b, LEVEL)?), "student": t(student(&a, &b, LEVEL)?),
        "mann_whitney": { "u": u.u, "p": u.p, "exact": u.exact, "rank_biserial": u.rank_biserial },
        "kruskal_wallis": { "h": k.map(|k| k.0), "df": k.map(|k| k.1), "p": k.map(|k| k.2) },
        "cohen_d": cohen_d(&a, &b),
    }))
}

pub fn kruskal(args: &Value) -> histokern::Result<Value> {
    let groups: Vec<Vec<f64>> = args["groups"].as_array().unwrap().iter().map(numbers).collect();
    let slices: Vec<&[f64]> = groups.iter().map(Vec::as_slice).collect();
    let k = kruskal_wallis(&slices)?;
    Ok(json!({ "h": k.map(|k| k.0), "df": k.map(|k| k.1), "p": k.map(|k| k.2) }))
}

pub fn counted(args: &Value) -> histokern::Result<Value> {
    let rows = args["counts"].as_array().unwrap().iter();
    let counts: Vec<Vec<usize>> =
        rows.map(|r| numbers(r).iter().map(|v| *v as usize).collect()).collect();
    let of = |yates| -> histokern::Result<Value> {
        let c = chi_square(&counts, yates)?;
        Ok(json!({ "chi2": c.chi2, "df": c.df, "p": c.p, "least_expected": c.least_expected }))
    };
    let mut out = json!({ "pearson": of(false)?, "yates": of(true)? });
    if counts.len() == 2 && counts[0].len() == 2 {
        let c = &counts;
        out["fisher_p"] = json!(fisher_exact([[c[0][0], c[0][1]], [c[1][0], c[1][1]]]));
    }
    Ok(out)
}
