//! The verbs `evaluate`, `fit`, `nomogram` and the last stage of `predict` as a user runs them, on
//! tables whose answers R and Python packages give (`tests/golden/stats`).

use serde_json::Value;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn histokern(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_histokern")).args(args).output().unwrap()
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stats").join(name)
}

fn asah() -> PathBuf {
    golden("data/aSAH.csv")
}

/// Runs and expects success; standard output as text.
fn run(args: &[&str]) -> String {
    let done = histokern(args);
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// An oracle of the committed files.
fn oracle(id: &str) -> Value {
    ["oracles.json", "python.json"]
        .iter()
        .map(|file| json(&golden(file))["oracles"][id].clone())
        .find(|o| !o.is_null())
        .unwrap_or_else(|| panic!("no oracle {id}"))
}

fn near(metrics: &Value, path: &str, wanted: &Value, tolerance: f64) {
    let value = metrics.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let wanted = wanted.as_f64().unwrap();
    let good = (value - wanted).abs() <= tolerance * wanted.abs().max(1.0);
    assert!(good, "{path}: {value}, wanted {wanted}");
}

/// Two tables of a CSV: its first column of `score` columns, and all others as labels.
fn split(csv: &Path, score: &str, rename: &[(&str, &str)], dir: &Path) -> [String; 2] {
    let text = fs::read_to_string(csv).unwrap();
    let header: Vec<&str> = text.lines().next().unwrap().split(',').collect();
    let place = header.iter().position(|c| *c == score).unwrap();
    let named = |c: &&str| rename.iter().find(|(a, _)| a == c).map_or(*c, |(_, b)| *b).to_string();
    let names: Vec<String> = header.iter().map(named).collect();
    let (mut scores, mut labels) = ("id,score\n".to_string(), format!("id,{}\n", names.join(",")));
    for (i, line) in text.lines().skip(1).enumerate() {
        writeln!(scores, "r{i},{}", line.split(',').nth(place).unwrap()).unwrap();
        writeln!(labels, "r{i},{line}").unwrap();
    }
    [("scores.csv", scores), ("labels.csv", labels)].map(|(name, text)| {
        fs::write(dir.join(name), text).unwrap();
        dir.join(name).display().to_string()
    })
}

/// Every figure stands there as SVG with words for screen readers, and as a PNG of twice its size.
fn figures(folder: &Path, names: &[&str]) {
    for name in names {
        let svg = fs::read_to_string(folder.join(format!("{name}.svg"))).unwrap();
        let (title, desc) = histokern::report::plot::svg::check(&svg).unwrap();
        assert!(title.len() > 2 && desc.len() > 20, "{name}: {title}: {desc}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
        let file = fs::File::open(folder.join(format!("{name}.png"))).unwrap();
        let mut decoder = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
        let width: f64 =
            svg.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
        assert_eq!(f64::from(decoder.info().width), (2.0 * width).ceil(), "{name}");
        let mut pixels = vec![0; decoder.output_buffer_size().unwrap()];
        decoder.next_frame(&mut pixels).unwrap();
        let inked = pixels.chunks(3).filter(|p| *p != [255; 3]).count();
        assert!(inked > pixels.len() / 3 / 200, "{name}: {inked} pixels of ink");
    }
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
    let bootstrap = metrics.pointer("/auc/bootstrap_percentile/lower").unwrap().as_f64().unwrap();
    assert!((bootstrap - 0.63).abs() < 0.03, "{bootstrap}");
    figures(&out, &["roc", "precision_recall", "confusion"]);
    let roc = fs::read_to_string(out.join("roc.csv")).unwrap();
    assert_eq!(roc.lines().count(), 52, "50 distinct scores, the origin and the header");
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
fn probabilities_are_calibrated_compared_and_described() {
    let dir = tempfile::tempdir().unwrap();
    let [a, labels] = split(&golden("data/wdbc_pred.csv"), "p_a", &[("y", "label")], dir.path());
    let out = dir.path().join("out").display().to_string();
    let other = dir.path().join("other.csv");
    let b: String = fs::read_to_string(golden("data/wdbc_pred.csv"))
        .unwrap()
        .lines()
        .enumerate()
        .map(|(i, line)| {
            let cells: Vec<&str> = line.split(',').collect();
            let header: Vec<&str> = "y,p_a,p_b".split(',').collect();
            assert_eq!(header.len(), cells.len());
            if i == 0 { "id,score\n".into() } else { format!("r{},{}\n", i - 1, cells[2]) }
        })
        .collect();
    fs::write(&other, b).unwrap();
    let other = other.display().to_string();
    let args = ["evaluate", &a, "--labels", &labels, "--task", "binary", "--threshold", "0.5"];
    run(&[&args[..], &["--compare", &other, "--rounds", "100", "--out", &out]].concat());
    let metrics = json(&Path::new(&out).join("metrics.json"));
    let want = oracle("cal_wdbc_a");
    near(&metrics, "/calibration/brier", &want["expect"]["brier"], 1e-9);
    near(&metrics, "/calibration/recalibration/slope/coef", &want["expect"]["slope"], 1e-6);
    near(&metrics, "/calibration/smooth_lowess/emax", &want["expect"]["val_prob"]["Emax"], 1e-7);
    assert!(metrics["comparison"]["delong"]["p"].as_f64().unwrap() < 0.001);
    // Paths as they were given, and nothing made absolute behind the user's back.
    assert_eq!(metrics["input"]["predictions"].as_str(), Some(a.as_str()));
    figures(Path::new(&out), &["roc", "precision_recall", "calibration", "decision_curve"]);
    let baseline = fs::read_to_string(Path::new(&out).join("baseline.csv")).unwrap();
    assert!(baseline.contains("p_a,") && !baseline.contains("\nlabel,"), "{baseline}");
}

#[test]
fn the_baseline_table_gives_the_p_values_of_scipy() {
    let dir = tempfile::tempdir().unwrap();
    let [scores, labels] =
        split(&golden("data/birthwt.csv"), "age", &[("low", "label")], dir.path());
    let out = dir.path().join("out");
    let args = ["evaluate", &scores, "--labels", &labels, "--task", "binary", "--rounds", "100"];
    run(&[&args[..], &["--out", &out.display().to_string()]].concat());
    let metrics = json(&out.join("metrics.json"));
    let rows = metrics["baseline"].as_array().unwrap();
    let row = |name: &str| rows.iter().find(|r| r["variable"] == name).unwrap();
    let want = oracle("two_groups_birthwt_lwt");
    near(row("lwt"), "/welch_p", &want["expect"]["welch"]["p"], 1e-9);
    near(row("lwt"), "/rank_p", &want["expect"]["mann_whitney"]["p"], 1e-9);
    // R 4.2: chisq.test(table(low, smoke), correct = FALSE); fisher.test(table(low, ht)) has an
    // expected count below 5.
    near(row("smoke"), "/p", &serde_json::json!(0.02649064), 1e-6);
    assert_eq!(row("ht")["test"], "Fisher");
}

#[test]
fn survival_groups_are_compared_as_r_does() {
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(golden("data/aml.csv")).unwrap();
    let (mut scores, mut labels) = ("id,score\n".to_string(), "id,time,event,half\n".to_string());
    for (i, line) in text.lines().skip(1).enumerate() {
        let cells: Vec<&str> = line.split(',').collect();
        writeln!(scores, "r{i},{}", u8::from(cells[2] != "Maintained")).unwrap();
        writeln!(labels, "r{i},{},{},{}", cells[0], cells[1], i % 2).unwrap();
    }
    let [s, l] = [("s.csv", scores), ("l.csv", labels)].map(|(name, text)| {
        fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).display().to_string()
    });
    let evaluate = |name: &str, extra: &[&str]| {
        let out = dir.path().join(name);
        let args = ["evaluate", &s, "--labels", &l, "--task", "survival", "--threshold", "0.5"];
        run(&[&args[..], &["--out", &out.display().to_string()], extra].concat());
        (json(&out.join("metrics.json")), out)
    };
    let (plain, out) = evaluate("plain", &["--unit", "weeks"]);
    // R 4.2, survdiff(Surv(time, status) ~ x, aml) and survfit: medians 31 and 23.
    near(&plain, "/log_rank/chi2", &serde_json::json!(3.396389), 1e-6);
    near(&plain, "/groups/0/median", &serde_json::json!(31.0), 1e-12);
    near(&plain, "/groups/1/median", &serde_json::json!(23.0), 1e-12);
    figures(&out, &["kaplan_meier", "hazard_ratios"]);
    let svg = fs::read_to_string(out.join("kaplan_meier.svg")).unwrap();
    assert!(svg.contains("Number at risk") && svg.contains("Time (weeks)"), "{svg}");
    let (peto, _) = evaluate("peto", &["--rho", "1"]);
    assert!(peto["log_rank"]["chi2"] != plain["log_rank"]["chi2"]);
    let (strata, _) = evaluate("strata", &["--strata", "half"]);
    assert!(strata["log_rank"]["chi2"] != plain["log_rank"]["chi2"]);
}

#[test]
fn genes_that_change_more_are_predicted_better() {
    let dir = tempfile::tempdir().unwrap();
    let fat = fs::read_to_string(golden("data/bodyfat.csv")).unwrap();
    let rows: Vec<Vec<f64>> =
        fat.lines().skip(1).map(|l| l.split(',').map(|c| c.parse().unwrap()).collect()).collect();
    let (mut predicted, mut measured) =
        ("id,A,B,C,D\n".to_string(), "id,A,B,C,D,other\n".to_string());
    for (i, row) in rows.iter().enumerate() {
        let noise = |k: usize| (((i + 1) * (7919 + 104_729 * k)) % 1000) as f64 / 1000.0;
        let (x, y) = (row[1], row[0]);
        writeln!(
            predicted,
            "r{i},{x},{},{},{}",
            x + 30.0 * noise(1),
            x + 90.0 * noise(2),
            noise(3)
        )
        .unwrap();
        let last = if i == 0 { "NA".to_string() } else { y.to_string() };
        writeln!(measured, "r{i},{y},{y},{y},{last},1").unwrap();
    }
    let files = [
        ("p.csv", predicted),
        ("m.csv", measured),
        ("fc.csv", "gene,fold_change\nA,8\nB,0.25\nC,2\nD,1\n".into()),
    ];
    let [p, m, fc] = files.map(|(name, text)| {
        fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).display().to_string()
    });
    let out = dir.path().join("out");
    let args = ["evaluate", &p, "--labels", &m, "--task", "genes", "--fold-change", &fc];
    run(&[&args[..], &["--out", &out.display().to_string()]].concat());
    let metrics = json(&out.join("metrics.json"));
    let genes = metrics["genes"].as_array().unwrap();
    assert_eq!(genes.len(), 4);
    let id = json(&golden("oracles.json"))["oracles"]
        .as_object()
        .unwrap()
        .values()
        .find(|o| o["fn"] == "correlation" && o["data"]["file"] == "bodyfat.csv")
        .unwrap()
        .clone();
    near(&genes[0], "/pearson", &id["expect"]["pearson"], 1e-9);
    near(&genes[0], "/spearman", &id["expect"]["spearman"], 1e-9);
    assert_eq!(genes[3]["rows"], rows.len() - 1);
    // |log2| is 3, 2, 1, 0: the order in which noise was added.
    near(&metrics, "/fold_change/spearman", &serde_json::json!(1.0), 1e-12);
    figures(&out, &["gene_correlations", "fold_change"]);
    fs::write(&fc, "gene,fold_change\nA,-1\n").unwrap();
    let done = histokern(&[&args[..], &["--out", &out.display().to_string()]].concat());
    let err = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && err.contains("fc.csv: line 2: fold_change"), "{err}");
}

/// rms 6.5: nomogram(lrm(y ~ Age + Number + Start, kyphosis)): totals end at 220.
#[test]
fn a_fitted_model_becomes_a_nomogram() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let data = golden("data/kyphosis.csv").display().to_string();
    let model = at("model.toml");
    run(&[
        "fit",
        "logistic",
        &data,
        "--outcome",
        "y",
        "--features",
        "Age,Number,Start",
        "-o",
        &model,
    ]);
    let fitted: toml::Table = fs::read_to_string(&model).unwrap().parse().unwrap();
    let want = oracle("nomogram_lrm_kyphosis");
    for (i, c) in fitted["coefficient"].as_array().unwrap().iter().enumerate() {
        let gap = c["coef"].as_float().unwrap() - want["expect"]["coef"][i + 1].as_f64().unwrap();
        assert!(gap.abs() < 1e-6, "{c:?}");
        let inside = c["profile_lower"].as_float() < c["ratio"].as_float()
            && c["ratio"].as_float() < c["profile_upper"].as_float();
        assert!(inside, "{c:?}");
    }
    let svg = at("nomogram.svg");
    run(&["nomogram", &model, "--out", &svg]);
    let drawn = fs::read_to_string(&svg).unwrap();
    // Text elements as (y, text), in the order they are drawn.
    let texts: Vec<(f64, &str)> = drawn
        .split("<text ")
        .skip(1)
        .map(|t| {
            let y = t.split("y=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
            (y, t.split('>').nth(1).unwrap().split('<').next().unwrap())
        })
        .collect();
    let row = |name: &str| -> Vec<&str> {
        let (y, _) = texts.iter().find(|(_, t)| *t == name).unwrap();
        // A mark's label stands 20 under its axis, the axis 4.5 above the base line of its name.
        texts.iter().filter(|(v, _)| (v - y - 15.5).abs() < 0.01).map(|(_, t)| *t).collect()
    };
    let totals: Vec<String> = (0..=11).map(|i| (20 * i).to_string()).collect();
    assert_eq!(row("Total points"), totals);
    assert_eq!(row("Start"), ["18", "16", "14", "12", "10", "8", "6", "4", "2", "0"]);
    assert_eq!(row("Risk").first(), Some(&"0.01"));
    let patient = at("patient.csv");
    fs::write(&patient, "id,Age,Number,Start\nP1,100,5,4\n").unwrap();
    let out = run(&["nomogram", &model, "--out", &at("n.png"), "--patient", &patient]);
    let rows: Value = serde_json::from_str(&out).unwrap();
    let b: Vec<f64> = (0..4).map(|i| want["expect"]["coef"][i].as_f64().unwrap()).collect();
    let lp = b[0] + 100.0 * b[1] + 5.0 * b[2] + 4.0 * b[3];
    near(&rows[0], "/linear_predictor", &serde_json::json!(lp), 1e-5);
    near(&rows[0], "/risk", &serde_json::json!(1.0 / (1.0 + (-lp).exp())), 1e-5);
    // Points add up: those of the axes in rms for these marks.
    let points = &want["expect"]["points"];
    let of = |name: &str, mark: usize| points[name]["points"][mark].as_f64().unwrap();
    let total = of("Age", 5) + of("Number", 3) + of("Start", 2);
    near(&rows[0], "/points", &serde_json::json!(total), 1e-5);
    fs::write(&patient, "id,Age,Number,Start\nP1,100,five,4\n").unwrap();
    let done = histokern(&["nomogram", &model, "--out", &at("n.png"), "--patient", &patient]);
    let err = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(err.contains("patient.csv: line 2: Number: `five` is no finite number"), "{err}");
}

#[test]
fn features_are_selected_alone_before_they_are_joined() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m.toml").display().to_string();
    let data = golden("data/GBSG2.csv").display().to_string();
    let args =
        ["fit", "cox", &data, "--outcome", "time,cens", "--features", "age,tsize,pnodes,menostat"];
    run(&[&args[..], &["--select", "0.05", "-o", &model]].concat());
    let fitted: toml::Table = fs::read_to_string(&model).unwrap().parse().unwrap();
    let names = |key: &str| -> Vec<String> {
        let list = fitted[key].as_array().unwrap();
        list.iter().map(|c| c["name"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(names("univariable"), ["age", "tsize", "pnodes", "menostat"]);
    assert_eq!(names("coefficient"), ["tsize", "pnodes"]);
    // The last event is at day 2456.
    let times =
        fitted["baseline"].as_array().unwrap().iter().map(|b| b["time"].as_float().unwrap());
    assert_eq!(times.collect::<Vec<_>>(), [500.0, 1000.0, 1500.0, 2000.0]);
    let done = histokern(&[&args[..], &["--select", "1e-300", "-o", &model]].concat());
    assert!(String::from_utf8_lossy(&done.stderr).contains("nothing to fit"));
}

/// The last stage: what a head said and clinical values through a fitted model, as one more
/// prediction.
#[test]
fn predict_applies_a_model_last() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let data: String = (0..40)
        .map(|i| {
            let (v, age) = (f64::from(i) / 40.0, 40 + (i * 17) % 40);
            format!("{v},{age},{}\n", u8::from((i * 7) % 40 > 39 - i))
        })
        .collect();
    fs::write(at("data.csv"), format!("value,age,y\n{data}")).unwrap();
    let model = at("combined.toml");
    run(&[
        "fit",
        "logistic",
        &at("data.csv"),
        "--outcome",
        "y",
        "--features",
        "value,age",
        "-o",
        &model,
    ]);
    let slide = at("s1.svs");
    run(&["synth", "-o", &slide, "--quiet", "--seed", "3", "--width", "2048", "--height", "2048"]);
    fs::write(at("clinical.csv"), "slide,age\ns1,61\n").unwrap();
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo").display().to_string();
    let (out, clinical) = (at("out"), at("clinical.csv"));
    let args = ["predict", &slide, "--package", &package, "--out", &out, "--model", &model];
    let done = histokern(&args);
    let err = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && err.contains("needs the clinical value age"), "{err}");
    run(&[&args[..], &["--clinical", &clinical]].concat());
    let result = json(&dir.path().join("out/s1/result.json"));
    let said = result["predictions"][0]["value"].as_f64().unwrap();
    let fitted: toml::Table = fs::read_to_string(&model).unwrap().parse().unwrap();
    let coef = |i: usize| fitted["coefficient"][i]["coef"].as_float().unwrap();
    let lp = fitted["intercept"].as_float().unwrap() + coef(0) * said + coef(1) * 61.0;
    assert_eq!(result["predictions"][1]["head"], "combined");
    near(
        &result,
        "/predictions/1/probabilities/1",
        &serde_json::json!(1.0 / (1.0 + (-lp).exp())),
        1e-6,
    );
    let table = fs::read_to_string(dir.path().join("out/predictions.csv")).unwrap();
    assert!(table.starts_with("slide,head,value,prediction,p_0,p_1\n"), "{table}");
    // Another age is another result, not the one that lies there.
    fs::write(&clinical, "slide,age\ns1,30\n").unwrap();
    run(&[&args[..], &["--clinical", &clinical]].concat());
    let again = json(&dir.path().join("out/s1/result.json"));
    assert!(again["predictions"][1] != result["predictions"][1]);
}

/// `evaluate` recovers what `demo --cohort` plants; fewer patients than the 60 of the verb's help.
#[test]
fn a_study_gives_back_what_was_planted() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("study");
    let text =
        run(&["demo", "--cohort", "24", "--json", "--quiet", "--out", &out.display().to_string()]);
    let study: Value = serde_json::from_str(&text).unwrap();
    assert!(study["share"]["spearman"].as_f64().unwrap() > 0.85, "{study:#}");
    for key in ["log_hazard_ratio_of_share", "log_odds_ratio_of_share"] {
        assert_eq!(study[key]["interval_holds_planted"], true, "{key}: {study:#}");
    }
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("Tiles with the highest attention") && page.contains("tiles.geojson"));
    for name in ["share/scatter.svg", "nodes/roc.svg", "survival/kaplan_meier.png", "combined.toml"]
    {
        assert!(out.join(name).is_file(), "{name}");
    }
}
