//! The gate of a recipe against PyTorch (`tests/golden/gate/make.py` wrote the numbers): narrow
//! Inception V3 classifiers, and what a checkpoint that does not fit is told.

#[path = "models/formula.rs"]
#[allow(dead_code)]
mod formula;

use formula::{F32, compare, formula, pictures};
use histokern::cpu::CpuBackend;
use histokern::pipeline::gate::{Gate, build};
use histokern::recipe::Recipe;
use histokern::weights::{Array, ArrayData, Package, PackageWriter, Tensors};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Tensors by name.
type Named = Vec<(String, F32)>;

const SIDE: usize = 75;
const TILES: usize = 6;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The weights of a classifier by the formula, its name in front of the key.
fn weights(name: &str, outputs: usize) -> Named {
    let packed = std::fs::File::open(golden("families/inception_v3_transform.tsv.gz")).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    text.push_str(&format!("fc.weight\t{outputs},256\nfc.bias\t{outputs}\n"));
    text.lines()
        .map(|line| {
            let (key, shape) = line.split_once('\t').unwrap();
            let shape: Vec<usize> = shape.split(',').map(|s| s.parse().unwrap()).collect();
            let data = formula(&format!("{name} {key}"), &shape);
            (key.to_string(), F32 { shape, data })
        })
        .collect()
}

fn arrays(tensors: &[(String, F32)]) -> Vec<Array> {
    let array = |(name, F32 { shape, data }): &(String, F32)| Array {
        name: name.clone(),
        shape: shape.clone(),
        data: match shape.len() {
            1 => ArrayData::F32(data.clone()),
            _ => ArrayData::F16(data.iter().map(|&x| half::f16::from_f32(x)).collect()),
        },
    };
    tensors.iter().map(array).collect()
}

fn recipe(gate: &str) -> String {
    format!(
        "schema = 1\nname = \"gated\"\ntitle = \"t\"\nlicence = \"t\"\nsource = \"t\"\n\
         [tiles]\nsize_px = {SIDE}\n[preprocess]\nmean = [0.485, 0.456, 0.406]\n\
         std = [0.229, 0.224, 0.225]\n[encoder]\nfamily = \"inception_v3\"\n[gate]\n{gate}"
    )
}

fn classifiers(names: &[&str]) -> String {
    let one = |n| format!("[[gate.classifier]]\nfamily = \"inception_v3\"\nweights = \"{n}\"\n");
    names.iter().map(|n| one(format!("{n}.safetensors"))).collect()
}

fn package(dir: &Path, gate: &str, names: &[&str], outputs: usize) -> Package {
    let target = dir.join(names.join("-"));
    let mut writer = PackageWriter::create(&target, None).unwrap();
    for name in names {
        let file = format!("{name}.safetensors");
        writer.weights(&file, &arrays(&weights(name, outputs))).unwrap();
    }
    writer.finish(&recipe(&format!("{gate}{}", classifiers(names)))).unwrap();
    Package::open(&target).unwrap()
}

#[test]
fn probabilities_are_those_of_pytorch_whatever_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    let stored = Tensors::open(&golden("gate/gate.safetensors")).unwrap();
    let pixels = pictures("gate tiles", TILES, SIDE);
    let cpu = CpuBackend::new(2, None).unwrap();
    let two = "class = \"cancer\"\nclasses = [\"benign\", \"cancer\"]\n";
    for (names, gate, outputs, want) in [
        (&["first"][..], two, 2, "first"),
        (&["first", "second"], two, 2, "mean"),
        (&["third"], "class = \"cancer\"\nthreshold = 0.3\n", 1, "sigmoid"),
    ] {
        let package = package(dir.path(), gate, names, outputs);
        let want = stored.require(want).unwrap().to_f32().unwrap();
        let mut first = None;
        for batch in [8, 4, 1] {
            let mut gate = Gate::open(&package, &cpu, batch, &mut Vec::new()).unwrap().unwrap();
            let got = gate.probabilities(TILES, &pixels).unwrap();
            for (got, want) in got.iter().zip(&want) {
                assert!((got - f64::from(*want)).abs() < 2e-3, "{names:?}: {got}, not {want}");
            }
            assert_eq!(*first.get_or_insert_with(|| got.clone()), got, "batch {batch}");
        }
        let single: Vec<f32> = first.unwrap().iter().map(|&p| p as f32).collect();
        assert!(compare(&single, &want).1 > 0.99999);
    }
}

/// A tensor taken away, of another shape, too many, or of another network.
#[test]
fn a_classifier_that_does_not_fit_is_told_by_tensor() {
    let two = "class = \"cancer\"\nclasses = [\"benign\", \"cancer\"]\n";
    let recipe = Recipe::parse(&recipe(&format!("{two}{}", classifiers(&["first"])))).unwrap();
    let gate = recipe.gate.clone().unwrap();
    let error = |edit: &dyn Fn(&mut Named)| {
        let mut tensors = weights("first", 2);
        edit(&mut tensors);
        let bytes = safetensors::serialize(tensors, None).unwrap();
        let tensors = Tensors::from_bytes(Path::new("c.pth"), bytes).unwrap();
        build(&recipe, &gate, &gate.classifiers[0], &tensors).unwrap_err().to_string()
    };
    let without =
        |name: &'static str| error(&move |tensors: &mut Named| tensors.retain(|(n, _)| n != name));
    let with = |name: &'static str, shape: &'static [usize]| {
        error(&move |tensors: &mut Named| {
            tensors.retain(|(n, _)| n != name);
            let data = formula(name, shape);
            tensors.push((name.into(), F32 { shape: shape.to_vec(), data }));
        })
    };
    for (error, words) in [
        (without("Mixed_5b.branch1x1.conv.weight"), "Mixed_5b.branch1x1.conv.weight is missing"),
        (without("fc.weight"), "fc.weight is missing"),
        (
            with("Mixed_7c.branch1x1.conv.weight", &[40, 256, 3, 3]),
            "Mixed_7c.branch1x1.conv.weight",
        ),
        (with("Mixed_7c.branch1x1.bn.bias", &[3]), "Mixed_7c.branch1x1.bn"),
        (with("stray.weight", &[2, 2]), "no place in the model: stray.weight"),
        // A regression in place of the classifier, and the last layer of another network.
        (with("fc.weight", &[1, 256]), "fc.bias has shape [2], needed [1]"),
        (with("fc.weight", &[2, 2048]), "tensor fc.weight of shape [2, 2048] reads features"),
    ] {
        assert!(error.contains(words), "{error} lacks {words}");
    }
}

#[test]
fn gates_that_make_no_sense_are_refused_with_their_line() {
    let whole = "class = \"cancer\"\nclasses = [\"benign\", \"cancer\"]\n";
    for (gate, words) in [
        (whole.to_string(), "missing field `classifier`"),
        (format!("{whole}classifier = []\n"), "no [[gate.classifier]]"),
        (format!("{whole}threshold = 1.5\n{}", classifiers(&["a"])), "threshold 1.5: 0 to 1"),
        (format!("class = \"x\"\nclasses = [\"y\"]\n{}", classifiers(&["a"])), "not one of its"),
        (format!("{whole}mean = [0.5, 0.5, 0.5]\n{}", classifiers(&["a"])), "go together"),
        (format!("{whole}{}", classifiers(&["a", "a"])), "\"a.safetensors\" is named twice"),
        (format!("{whole}{}", classifiers(&["../a"])), "in the package folder"),
    ] {
        let error = Recipe::parse(&recipe(&gate)).unwrap_err().to_string();
        assert!(error.starts_with("line ") && error.contains(words), "{error} lacks {words}");
    }
}
