//! The statistics against R and Python: an oracle file, and the intervals printed for BALNMP.
//!
//! `HISTOKERN_ORACLES` names another oracle file of the same schema and `HISTOKERN_ORACLE_DATA` the
//! folder of its tables.

#[path = "stats/curves.rs"]
mod curves;
#[path = "stats/groups.rs"]
mod groups;
#[path = "stats/lrm.rs"]
mod lrm;
#[path = "stats/oracles.rs"]
mod oracle;
#[path = "stats/table.rs"]
mod table;

use histokern::stats::intervals::{Interval, clopper_pearson, mercaldo};
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stats")
}

fn given(variable: &str, otherwise: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| golden().join(otherwise), PathBuf::from)
}

fn compare(file: &Path, data: &Path) {
    let report = oracle::run(file, data);
    eprintln!("{} values compared with {}", report.compared, file.display());
    assert!(report.compared > 0, "nothing compared");
    assert!(
        report.failures.is_empty(),
        "{} failed:\n{}",
        report.failures.len(),
        report.failures.join("\n")
    );
}

#[test]
fn oracles() {
    let data = given("HISTOKERN_ORACLE_DATA", "data");
    compare(&given("HISTOKERN_ORACLES", "oracles.json"), &data);
}

#[test]
fn oracles_of_python_packages() {
    let golden = golden();
    compare(&golden.join("python.json"), &golden.join("data"));
}

/// An oracle of a function nobody answers, or with a list cut short, must fail.
#[test]
fn unknown_functions_and_short_lists_fail() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("o.json");
    let failures = |text: &str| {
        std::fs::write(&file, text).unwrap();
        oracle::run(&file, folder.path()).failures
    };
    let unknown =
        r#"{"oracles": {"x": {"fn": "augury", "data": {}, "args": {}, "expect": {"a": 1}}}}"#;
    assert!(failures(unknown)[0].contains("unknown oracle function augury"));
    let q = |q: &str| {
        let expect = format!(r#""expect": {{"q": {q}}}"#);
        let case =
            r#"{"oracles": {"x": {"fn": "false_discovery", "data": {}, "args": {"p": [0.5, 0.5]},"#;
        failures(&format!("{case} {expect}}}}}}}"))
    };
    assert!(q("[0.5, 0.5]").is_empty());
    assert_eq!(q("[0.5]").len(), 1);
    assert_eq!(q("[0.5, 0.4]").len(), 1);
}

/// Printed as a percentage or a proportion with some decimals: the ends may differ by `within`.
fn printed(name: &str, got: Option<Interval>, want: [f64; 2], within: f64) {
    let got = got.unwrap_or_else(|| panic!("{name}: no interval"));
    for (got, want) in [(got.lower, want[0]), (got.upper, want[1])] {
        assert!((got - want).abs() <= within, "{name}: {got} is printed as {want}");
    }
}

/// AUC, patients and interval as printed for BALNMP (Xu et al. 2021): Clopper-Pearson with the real
/// number AUC * n as count. AUCs are printed to three decimals, so ends may differ by 0.001.
#[test]
fn intervals_of_the_balnmp_aucs() {
    let rows = [
        (0.661, 630.0, [0.622, 0.698]),
        (0.709, 210.0, [0.643, 0.770]),
        (0.613, 218.0, [0.545, 0.678]),
        (0.901, 630.0, [0.875, 0.923]),
        (0.808, 210.0, [0.748, 0.859]),
        (0.816, 218.0, [0.758, 0.865]),
        (0.823, 210.0, [0.765, 0.872]),
        (0.831, 218.0, [0.775, 0.878]),
        (0.627, 172.0, [0.551, 0.700]),
        (0.845, 172.0, [0.782, 0.895]),
        (0.878, 172.0, [0.819, 0.923]),
        (0.629, 173.0, [0.553, 0.701]),
        (0.837, 173.0, [0.773, 0.888]),
        (0.838, 173.0, [0.774, 0.889]),
        // Patients of at most 50 years.
        (0.918, 67.0, [0.825, 0.971]),
    ];
    for (auc, n, want) in rows {
        printed(&format!("AUC {auc} of {n}"), clopper_pearson(auc * n, n, 0.95), want, 0.00101);
    }
}

/// The two tables printed with intervals, independent test cohort of 84 node-positive and 134
/// node-negative patients, Youden threshold; in percent to two decimals.
#[test]
fn intervals_of_the_balnmp_rates() {
    let tables = [
        (
            (68.0, 39.0, 16.0, 95.0),
            [[68.46, 80.39], [70.92, 88.70], [62.43, 78.42], [56.76, 69.84], [79.04, 90.34]],
        ),
        (
            (75.0, 44.0, 9.0, 90.0),
            [[69.44, 81.23], [80.63, 94.98], [58.53, 75.03], [56.96, 68.71], [84.21, 94.94]],
        ),
    ];
    for ((tp, fp, fn_, tn), want) in tables {
        let (ppv, npv) = mercaldo(tp, fp, fn_, tn, 0.95);
        let got = [
            clopper_pearson(tp + tn, tp + fp + fn_ + tn, 0.95),
            clopper_pearson(tp, tp + fn_, 0.95),
            clopper_pearson(tn, tn + fp, 0.95),
            ppv,
            npv,
        ];
        for ((name, got), want) in
            ["accuracy", "sensitivity", "specificity", "PPV", "NPV"].iter().zip(got).zip(want)
        {
            printed(name, got, want.map(|v| v / 100.0), 0.000051);
        }
    }
}
