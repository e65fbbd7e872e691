//! Heads without CLAM's attention, and heads on single tiles, against PyTorch and NumPy:
//! `tests/golden/heads/make.py` wrote the numbers.

#[path = "models/formula.rs"]
#[allow(dead_code)]
mod formula;

use formula::{F32, compare};
use histokern::backend::check::run_once;
use histokern::cpu::CpuBackend;
use histokern::graph::{Input, Kept};
use histokern::heads::{self, Scores};
use histokern::pipeline::features::Rows;
use histokern::pipeline::head::HeadSession;
use histokern::recipe::Head;
use histokern::weights::Tensors;
use std::path::Path;

fn golden() -> Tensors {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/heads/heads.safetensors");
    Tensors::open(&path).unwrap()
}

fn numbers(stored: &Tensors, name: &str) -> Vec<f32> {
    stored.require(name).unwrap().to_f32().unwrap()
}

/// The weights of one case under the names of its checkpoint.
fn weights(stored: &Tensors, case: &str) -> Tensors {
    let prefix = format!("{case}/");
    let of_case = stored.names().filter_map(|name| Some((name, name.strip_prefix(&prefix)?)));
    let tensors: Vec<(String, F32)> = of_case
        .map(|(name, key)| {
            let shape = stored.require(name).unwrap().shape.to_vec();
            (key.to_string(), F32 { shape, data: numbers(stored, name) })
        })
        .collect();
    Tensors::from_bytes(Path::new(case), safetensors::serialize(tensors, None).unwrap()).unwrap()
}

fn head(family: &str, more: &str) -> Head {
    toml::from_str(&format!("name = \"t\"\nfamily = \"{family}\"\n{more}")).unwrap()
}

#[test]
fn heads_match_pytorch() {
    let stored = golden();
    let cpu = CpuBackend::new(2, None).unwrap();
    for (case, family, more, kind) in [
        ("percentile", "tile-linear", "aggregate = { percentile = 0.75 }", Scores::Prediction),
        ("mean", "tile-linear", "aggregate = \"mean\"", Scores::Prediction),
        (
            "max",
            "pool-linear",
            "aggregate = \"max\"\nclasses = [\"a\", \"b\", \"c\"]",
            Scores::Prediction,
        ),
        ("plain", "abmil", "transform = \"sigmoid\"", Scores::Attention),
        ("gated", "abmil", "", Scores::Attention),
        ("pooled", "clam-sb-pool", "", Scores::Attention),
        ("single", "clam-sb-pool", "", Scores::Attention),
        ("unattended", "clam-sb-pool", "", Scores::Prediction),
    ] {
        let spec = head(family, more);
        let weights = weights(&stored, case);
        let built = match case {
            "single" => heads::build_single(&spec, Some(24), &weights).unwrap(),
            _ => heads::build(&spec, Some(24), &weights).unwrap(),
        };
        assert_eq!(built.scores, kind, "{case}");
        let features = numbers(&stored, &format!("{case}:features"));
        let rows = features.len() / 24;
        let got = run_once(&cpu, &built.graph, rows, &[Input::Values(&features)]).unwrap();
        for (name, got) in ["logits", "scores"].iter().zip(&got) {
            let (error, _) = compare(got, &numbers(&stored, &format!("{case}:{name}")));
            assert!(error <= 1e-3, "{case} {name}: {error:.2e}");
        }
    }
}

/// A machine that holds features of 24 numbers.
#[derive(Debug)]
struct Held(Vec<f32>);

impl Kept for Held {
    fn rows(&self) -> usize {
        self.0.len() / 24
    }

    fn width(&self) -> usize {
        24
    }

    fn read(&self, rows: &[usize], numbers: &mut [f32]) -> histokern::Result<()> {
        for (to, row) in numbers.chunks_mut(24).zip(rows) {
            to.copy_from_slice(&self.0[24 * row..][..24]);
        }
        Ok(())
    }
}

/// HistCode's CLAM_SB_Reg_NN_Pool: bags of 200 tiles are pooled by attention, larger ones by their
/// extremes.
#[test]
fn the_extremes_of_attention_are_pooled_as_in_pytorch() {
    let stored = golden();
    let cpu = CpuBackend::new(2, None).unwrap();
    for case in ["nn_200", "nn_201", "nn_260"] {
        let built =
            heads::build(&head("clam-sb-nn-pool", ""), Some(24), &weights(&stored, case)).unwrap();
        let mut session = HeadSession::new(built, &cpu).unwrap();
        let features = numbers(&stored, &format!("{case}:features"));
        let n = features.len() / 24;
        let said = session.run(n, &features[..].into(), &[]).unwrap();
        // From a machine that holds them in another order.
        let rows: Vec<usize> = (0..n).rev().collect();
        let held = features.chunks(24).rev().collect::<Vec<_>>().concat();
        let kept = session.run(n, &Rows::Machine(&Held(held), rows.into()), &[]).unwrap();
        assert_eq!((&kept.prediction, &kept.scores), (&said.prediction, &said.scores), "{case}");
        for (name, got) in [("logits", &said.prediction.logits), ("scores", &said.scores)] {
            let (error, _) = compare(got, &numbers(&stored, &format!("{case}:{name}")));
            assert!(error <= 1e-3, "{case} {name}: {error:.2e}");
        }
    }
    // A tile alone is its own extreme.
    let single =
        heads::build_single(&head("clam-sb-nn-pool", ""), Some(24), &weights(&stored, "nn_200"));
    let features = numbers(&stored, "nn_200:features");
    let alone = run_once(&cpu, &single.unwrap().graph, 1, &[Input::Values(&features[..24])]);
    let whole =
        heads::build(&head("clam-sb-nn-pool", ""), Some(24), &weights(&stored, "nn_200")).unwrap();
    let said = HeadSession::new(whole, &cpu).unwrap().run(1, &features[..24].into(), &[]).unwrap();
    let (error, _) = compare(&alone.unwrap()[0], &said.prediction.logits);
    assert!(error <= 1e-3, "{error:.2e}");
}

/// WEEP by pandas.
#[test]
fn weep_takes_the_tiles_that_pandas_takes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/heads/weep.json");
    let cases: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for case in cases.as_array().unwrap() {
        let number = |value: &serde_json::Value| value.as_f64().unwrap();
        let predictions: Vec<f64> =
            case["predictions"].as_array().unwrap().iter().map(number).collect();
        let q = number(&case["percentile"]) as f32;
        let score = heads::weep::score(&predictions, q);
        assert!((score - number(&case["score"])).abs() < 1e-12, "{score}");
        let got = heads::weep::explain(&predictions, q, number(&case["threshold"]));
        let want = case["steps"].as_array().unwrap();
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert_eq!(got.tile as u64, want["tile"].as_u64().unwrap());
            assert_eq!(got.selected, want["selected"].as_bool().unwrap());
            assert!((got.score - number(&want["score"])).abs() < 1e-12, "{got:?}");
        }
    }
}

#[test]
fn heads_that_make_no_sense_are_refused() {
    let stored = golden();
    let build = |case: &str, family: &str, more: &str| {
        heads::build(&head(family, more), None, &weights(&stored, case)).unwrap_err().to_string()
    };
    let single = |case: &str, family: &str| {
        heads::build_single(&head(family, ""), None, &weights(&stored, case))
            .unwrap_err()
            .to_string()
    };
    let clinical = "aggregate = \"mean\"\n[[clinical]]\ncolumn = \"age\"\nmean = 0.0\nsd = 1.0";
    for (error, words) in [
        (build("percentile", "tile-linear", ""), "aggregate = "),
        (build("percentile", "tile-linear", clinical), "takes no clinical values"),
        (build("gated", "abmil", "aggregate = \"mean\""), "this head pools by attention"),
        (build("gated", "tile-linear", "aggregate = \"mean\""), "have no place in the model"),
        (single("single", "clam-mb"), "tile by tile"),
        // A classifier in place of a regression, and the head of another encoder.
        (
            build("max", "pool-linear", "aggregate = \"max\""),
            "tensor classifier.weight of shape [3, 24] has 3 outputs, a regression needs 1",
        ),
        (
            heads::build(&head("abmil", ""), Some(1024), &weights(&stored, "gated"))
                .unwrap_err()
                .to_string(),
            "tensor attention_V.0.weight of shape [8, 24] reads features of width 24, the encoder \
             makes 1024",
        ),
        (build("nn_200", "clam-sb", ""), "classifiers.weight has shape [1, 32], needed [_, [16]]"),
        (build("pooled", "clam-sb-nn-pool", ""), "classifiers.weight has shape [1, 16]"),
        (build("unattended", "clam-sb", ""), "tensor attention_net.0.weight is missing"),
    ] {
        assert!(error.contains(words), "{error} lacks {words}");
    }
}
