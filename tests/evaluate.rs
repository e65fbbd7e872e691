//! The verbs `evaluate`, `fit` and `nomogram` as a user runs them, on tables whose answers R gives
//! (pROC 1.18: AUC and DeLong interval of aSAH's s100b; glm: its logistic regression).

use serde_json::Value;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn histokern(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_histokern")).args(args).output().unwrap()
}

fn asah() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stats/data/aSAH.csv")
}

/// The rows of aSAH as a table of scores and one of labels, joined by an id.
fn tables(dir: &Path) -> [String; 2] {
    let text = fs::read_to_string(asah()).unwrap();
    let (mut scores, mut labels) = ("id,score\n".to_string(), "id,label\n".to_string());
    for (i, line) in text.lines().skip(1).enumerate() {
        let cells: Vec<&str> = line.split(',').collect();
        writeln!(scores, "p{i},{}", cells[1]).unwrap();
        writeln!(labels, "p{i},{}", cells[3]).unwrap();
    }
    [("scores.csv", scores), ("labels.csv", labels)].map(|(name, text)| {
        fs::write(dir.join(name), text).unwrap();
        dir.join(name).display().to_string()
    })
}

#[test]
fn evaluate_gives_the_auc_and_interval_of_proc() {
    let dir = tempfile::tempdir().unwrap();
    let [scores, labels] = tables(dir.path());
    let out = dir.path().join("out");
    let args = ["evaluate", &scores, "--labels", &labels, "--task", "binary", "--rounds", "200"];
    let done = histokern(&[&args[..], &["--out", &out.display().to_string()]].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let metrics: Value =
        serde_json::from_str(&fs::read_to_string(out.join("metrics.json")).unwrap()).unwrap();
    let near = |path: &str, wanted: f64| {
        let value = metrics.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
        assert!((value - wanted).abs() < 5e-5, "{path}: {value}, R gives {wanted}");
    };
    near("/auc/estimate", 0.7314);
    near("/auc/delong/lower", 0.6301);
    near("/auc/delong/upper", 0.8326);
    near("/youden/midpoint", 0.205);
    let table = fs::read_to_string(out.join("metrics.csv")).unwrap();
    assert!(
        table.starts_with("metric,value\n") && table.contains("auc.estimate,0.7313"),
        "{table}"
    );
}

#[test]
fn rows_that_do_not_match_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let [scores, labels] = tables(dir.path());
    let text = fs::read_to_string(&labels).unwrap().replace("p7,", "p700,");
    fs::write(&labels, text).unwrap();
    let out = dir.path().join("out").display().to_string();
    let done =
        histokern(&["evaluate", &scores, "--labels", &labels, "--task", "binary", "--out", &out]);
    assert!(!done.status.success());
    let err = String::from_utf8_lossy(&done.stderr);
    assert!(err.contains("p7") && err.contains(".csv"), "{err}");
}

#[test]
fn a_fitted_model_becomes_a_nomogram() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model.toml").display().to_string();
    let data = asah().display().to_string();
    let args =
        ["fit", "logistic", &data, "--outcome", "y", "--features", "s100b,ndka", "-o", &model];
    let done = histokern(&args);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let fitted: toml::Table = fs::read_to_string(&model).unwrap().parse().unwrap();
    let first = &fitted["coefficient"][0];
    assert_eq!(first["name"].as_str(), Some("s100b"));
    let svg = dir.path().join("nomogram.svg");
    let done = histokern(&["nomogram", &model, "--out", &svg.display().to_string()]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let drawn = fs::read_to_string(svg).unwrap();
    for word in ["<svg", "s100b", "ndka", "</svg>"] {
        assert!(drawn.contains(word), "no {word} in the nomogram");
    }
}
