//! Heads without CLAM's attention, and heads on single tiles, against PyTorch and NumPy:
//! `tests/golden/heads/make.py` wrote the numbers.

#[path = "models/formula.rs"]
#[allow(dead_code)]
mod formula;

use formula::{F32, compare};
use histokern::backend::check::run_once;
use histokern::cpu::CpuBackend;
use histokern::graph::Input;
use histokern::heads::{self, Scores};
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
    ] {
        assert!(error.contains(words), "{error} lacks {words}");
    }
}
