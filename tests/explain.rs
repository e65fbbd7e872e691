//! `histokern explain`: what it shows agrees with what `predict` said.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

fn histokern(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_histokern")).args(args).output().unwrap()
}

fn done(args: &[&str]) -> String {
    let output = histokern(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(args: &[&str]) -> String {
    let output = histokern(args);
    assert!(!output.status.success(), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Columns of numbers by tile.
fn table(path: &Path, columns: &[&str]) -> BTreeMap<(i64, i64), Vec<f64>> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    let header = reader.headers().unwrap().clone();
    let at = |name: &str| header.iter().position(|h| h == name).unwrap();
    let row = |record: csv::StringRecord| {
        let number = |name: &str| record[at(name)].parse::<f64>().unwrap();
        let place = (number("x") as i64, number("y") as i64);
        (place, columns.iter().map(|name| number(name)).collect())
    };
    reader.records().map(|record| row(record.unwrap())).collect()
}

#[test]
fn maps_agree_with_the_prediction() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo").display().to_string();
    let (slide, out) = (path("s.svs"), path("out"));
    let size = ["--width", "3072", "--height", "3072", "--mpp", "0.5", "--seed", "5"];
    done(&[&["synth", "-o", &slide, "--quiet"], &size[..]].concat());
    done(&["predict", &slide, "--package", &package, "--out", &out, "--quiet"]);
    let predicted = table(&dir.path().join("out/s/attention.csv"), &["raw"]);

    let explain = |what: &str, more: &[&str], to: &str| {
        let given = ["explain", what, &slide, "--package", &package, "-o", to, "--quiet"];
        done(&[&given[..], more].concat());
    };
    explain("attention", &["--overlap", "0.5"], &path("fine"));
    let fine = table(&dir.path().join("fine/attention.csv"), &["raw", "percentile"]);
    assert!(dir.path().join("fine/attention.png").is_file());
    assert!(fine.len() > 3 * predicted.len(), "{} of {}", fine.len(), predicted.len());
    // A tile of the prediction's own grid has the same score, and its rank as percentile.
    let n = predicted.len() as f64;
    for (place, raw) in &predicted {
        let [score, percentile] = fine[place][..] else { panic!("two columns") };
        assert_eq!(score as f32, raw[0] as f32, "{place:?}");
        let score = score as f32;
        let below = predicted.values().filter(|r| (r[0] as f32) < score).count() as f64;
        let up_to = predicted.values().filter(|r| r[0] as f32 <= score).count() as f64;
        let want = (below + up_to + 1.0) * 50.0 / n;
        assert!((percentile - want).abs() < 1e-9, "{place:?}: {percentile}, not {want}");
    }
    assert!(fine.values().all(|row| (0.0..=100.0).contains(&row[1])));

    let head = ["--heads", "proliferating_share"];
    explain("tiles", &[&head[..], &["--raw-mean"]].concat(), &path("tiles"));
    let tiles = table(&dir.path().join("tiles/tiles.csv"), &["mean", "proliferating_share"]);
    assert!(dir.path().join("tiles/tiles.png").is_file());
    assert!(tiles.keys().eq(predicted.keys()));
    assert!(tiles.values().all(|row| row[0] == row[1] && (0.0..=1.0).contains(&row[0])));
    let spread = |i: usize| tiles.values().map(|row| row[i]).fold(0.0, f64::max);
    assert!(spread(1) > 0.0);

    let wrong = |args: &[&str]| {
        let given = ["explain", args[0], &slide, "--package", &package, "-o", &path("x")];
        refused(&[&given[..], &args[1..]].concat())
    };
    assert!(wrong(&["attention", "--overlap", "1"]).contains("--overlap 1: 0 to 0.95"));
    assert!(wrong(&["attention", "--head", "none"]).contains("no head none"));
    assert!(wrong(&["tiles", "--heads", "none"]).contains("has no head none"));
}

#[test]
fn weep_lists_what_keeps_a_slide_above_a_threshold() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (tiles, out) = (path("tiles.csv"), path("weep"));
    std::fs::write(
        &tiles,
        "x,y,prediction\n0,0,0.1\n8,0,0.9\n0,8,0.4\n8,8,0.8\n0,16,0.6\n8,16,0.2\n",
    )
    .unwrap();
    let args = |threshold| ["explain", "weep", &tiles, "--threshold", threshold, "-o", &out];
    let said = done(&[&args("0.44")[..], &["--json"]].concat());
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((said["selected"].as_u64(), said["tiles"].as_u64()), (Some(2), Some(6)));
    // numpy.quantile(rest, 0.75) after each removal: 0.6, 0.45, 0.3.
    let rows = table(&dir.path().join("weep/weep.csv"), &["prediction", "slide_score", "selected"]);
    for (place, want) in
        [((8, 0), [0.9, 0.6, 1.0]), ((8, 8), [0.8, 0.45, 1.0]), ((0, 16), [0.6, 0.3, 0.0])]
    {
        for (got, want) in rows[&place].iter().zip(want) {
            assert!((got - want).abs() < 1e-12, "{place:?}: {got}, not {want}");
        }
    }
    assert_eq!(rows.len(), 3);
    // numpy.quantile of all six is 0.75; two of six may go, and the next leaves 0.3.
    assert!((said["score"].as_f64().unwrap() - 0.75).abs() < 1e-12);
    let svg = std::fs::read_to_string(dir.path().join("weep/weep_curve.svg")).unwrap();
    for words in ["score 0.75", "2 tiles, 33.33 percent", "below 0.44", "One more leaves 0.3."] {
        assert!(svg.contains(words), "{words} is not in {svg}");
    }
    assert!(dir.path().join("weep/weep_curve.png").is_file());
    assert!(done(&args("0.9")).contains("below 0.9 from the start"));

    let more = |more: &[&str]| refused(&[&args("0.4")[..], more].concat());
    assert!(more(&["--column", "raw"]).contains("no column raw; there are x, y, prediction"));
    assert!(more(&["--percentile", "75"]).contains("a fraction from 0 to 1"));
    std::fs::write(&tiles, "x,y,prediction\n0,0,0.1\n8,0,NaN\n").unwrap();
    assert!(more(&[]).contains("row 3: \"NaN\" is not a number"));
    // Tiles that a gate left out have no prediction.
    std::fs::write(&tiles, "x,y,prediction\n0,0,0.7\n8,0,\n0,8,0.3\n").unwrap();
    let said: Value =
        serde_json::from_str(&done(&[&args("0.1")[..], &["--json"]].concat())).unwrap();
    assert_eq!(said["tiles"], 2);
    for empty in ["x,y,prediction\n", "x,y,prediction\n0,0,\n"] {
        std::fs::write(&tiles, empty).unwrap();
        assert!(more(&[]).contains("no row"));
    }
}
