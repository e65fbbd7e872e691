//! Encoders and heads against PyTorch: networks whose weights come from a formula that
//! `weights/export.py` shares, so that only PyTorch's outputs and batch-norm statistics are stored
//! in `tests/golden/models`.

#[path = "models/formula.rs"]
mod formula;

use formula::{F32, compare, listed, pictures, uniform};
use half::f16;
use histokern::backend::{Backend, Input};
use histokern::graph::Graph;
use histokern::recipe::{self, Recipe};
use histokern::weights::Tensors;
use histokern::{heads, models};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The backend the networks run on.
fn backend() -> Box<dyn Backend> {
    Box::new(histokern::cpu::CpuBackend::new(2, None).unwrap())
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

/// The weights of a golden network: its `.tsv` of names and shapes through the formula, and the
/// statistics of batch norm from its `.safetensors`.
fn weights(file: &str, stored: &Tensors, edit: impl Fn(&mut Vec<(String, F32)>)) -> Tensors {
    let text = std::fs::read_to_string(golden(&format!("{file}.tsv"))).unwrap();
    let mut tensors = listed(&text);
    for name in stored.names().filter(|name| name.contains("running_")) {
        let tensor = stored.require(name).unwrap();
        let value = F32 { shape: tensor.shape.to_vec(), data: tensor.to_f32().unwrap() };
        tensors.push((name.to_string(), value));
    }
    edit(&mut tensors);
    let bytes = safetensors::serialize(tensors, None).unwrap();
    Tensors::from_bytes(Path::new(file), bytes).unwrap()
}

fn recipe(family: &str, truncate: Option<&str>, side: usize, batch: bool) -> Recipe {
    let truncate = truncate.map_or(String::new(), |t| format!("truncate = \"{t}\"\n"));
    let bn = if batch { "bn_mode = \"batch\"\n[bag]\nsize = 10\n" } else { "" };
    Recipe::parse(&format!(
        "schema = 1\nname = \"t\"\ntitle = \"t\"\nlicence = \"t\"\nsource = \"t\"\n\
         [tiles]\nsize_px = {side}\n[preprocess]\nmean = [0.485, 0.456, 0.406]\n\
         std = [0.229, 0.224, 0.225]\n[encoder]\nfamily = \"{family}\"\n{truncate}{bn}"
    ))
    .unwrap()
}

fn run(graph: &Arc<Graph>, rows: usize, inputs: &[Input<'_>]) -> Vec<Vec<f32>> {
    let length = |id: &histokern::graph::TensorId| {
        let shape = graph.shape(*id);
        if shape.is_bag() { shape.len() } else { rows * shape.len() }
    };
    let mut outputs: Vec<Vec<f32>> = graph.outputs.iter().map(|id| vec![0.0; length(id)]).collect();
    let mut slices: Vec<&mut [f32]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
    let mut session = backend().prepare(graph.clone(), rows).unwrap();
    session.run(rows, inputs, &mut slices).unwrap();
    outputs
}

/// The error against PyTorch in f32 is at most 1.5 times what PyTorch makes of FP16 itself.
fn assert_features_match(file: &str, stored: &Tensors, got: &[f32], tiles: usize) {
    let want = stored.require("features").unwrap();
    let kept = want.shape[1];
    let width = got.len() / tiles;
    let step = width.div_ceil(kept);
    let got: Vec<f32> =
        got.chunks_exact(width).flat_map(|row| row.iter().copied().step_by(step)).collect();
    let allowed = stored.require("emulation_error").unwrap().to_f32().unwrap()[0];
    let (error, cosine) = compare(&got, &want.to_f32().unwrap());
    println!("{file}: error {error:.2e}, FP16 in PyTorch {allowed:.2e}, cosine {cosine:.7}");
    assert!(error <= 1.5 * f64::from(allowed), "{file}: {error:.2e}, allowed {allowed:.2e} x 1.5");
    assert!(cosine >= 0.9999, "{file}: cosine {cosine}");
}

struct Case {
    file: &'static str,
    family: &'static str,
    truncate: Option<&'static str>,
    side: usize,
    tiles: usize,
    feature_dim: usize,
}

fn check_running(case: &Case) {
    let stored = Tensors::open(&golden(&format!("{}.safetensors", case.file))).unwrap();
    let recipe = recipe(case.family, case.truncate, case.side, false);
    let encoder = models::build(&recipe, &weights(case.file, &stored, |_| {})).unwrap();
    assert_eq!(encoder.feature_dim, case.feature_dim);
    assert_eq!(encoder.input_px, [case.side; 2]);
    let pixels = pictures(&format!("{} tiles", case.family), case.tiles, case.side);
    let got = run(&encoder.graph, case.tiles, &[Input::Pixels(&pixels)]).remove(0);
    assert_features_match(case.file, &stored, &got, case.tiles);
}

#[test]
fn vgg16_bn_matches_pytorch() {
    check_running(&Case {
        file: "vgg16_bn",
        family: "vgg16_bn",
        truncate: None,
        side: 224,
        tiles: 2,
        feature_dim: 25088,
    });
}

#[test]
fn resnets_match_pytorch() {
    for (file, family, truncate, side, feature_dim) in [
        ("resnet18", "resnet18", None, 224, 512),
        ("resnet50", "resnet50", None, 224, 2048),
        ("resnet50_layer3", "resnet50", Some("layer3"), 256, 1024),
    ] {
        check_running(&Case { file, family, truncate, side, tiles: 2, feature_dim });
    }
}

#[test]
fn batch_norm_by_the_bag_matches_pytorch_in_training_mode() {
    let file = "vgg16_bn_batch";
    let stored = Tensors::open(&golden(&format!("{file}.safetensors"))).unwrap();
    let recipe = recipe("vgg16_bn", None, 224, true);
    let encoder = models::build(&recipe, &weights(file, &stored, |_| {})).unwrap();
    let pixels = pictures("vgg16_bn tiles", 10, 224);
    let got = run(&encoder.graph, 10, &[Input::Pixels(&pixels)]).remove(0);
    assert_features_match(file, &stored, &got, 10);
}

/// A package whose batch norm was folded into the weights before it was written.
#[test]
fn a_folded_package_gives_the_same_features() {
    let file = "resnet18";
    let stored = Tensors::open(&golden(&format!("{file}.safetensors"))).unwrap();
    let folded = weights(file, &stored, |tensors| {
        let convs: Vec<(usize, String, String)> = tensors
            .iter()
            .enumerate()
            .filter(|(_, (_, t))| t.shape.len() == 4)
            .map(|(i, (name, _))| {
                let conv = name.trim_end_matches(".weight");
                let norm = match conv.strip_suffix("downsample.0") {
                    Some(block) => format!("{block}downsample.1"),
                    None => conv.replace("conv", "bn"),
                };
                (i, conv.to_string(), norm)
            })
            .collect();
        let mut biases = Vec::new();
        for (i, conv, norm) in convs {
            let part = |p: &str| {
                let name = format!("{norm}.{p}");
                tensors.iter().find(|(n, _)| *n == name).unwrap().1.data.clone()
            };
            let (gamma, beta) = (part("weight"), part("bias"));
            let (mean, var) = (part("running_mean"), part("running_var"));
            let scale: Vec<f32> =
                gamma.iter().zip(&var).map(|(g, v)| g / (v + 1e-5).sqrt()).collect();
            let bias = (0..scale.len()).map(|k| beta[k] - mean[k] * scale[k]).collect();
            let filter: usize = tensors[i].1.shape[1..].iter().product();
            for (w, s) in tensors[i].1.data.chunks_exact_mut(filter).zip(&scale) {
                w.iter_mut().for_each(|w| *w *= s);
            }
            biases.push((format!("{conv}.bias"), F32 { shape: vec![scale.len()], data: bias }));
        }
        tensors.retain(|(name, _)| !name.contains("bn") && !name.contains("downsample.1."));
        tensors.extend(biases);
    });
    let encoder = models::build(&recipe("resnet18", None, 224, false), &folded).unwrap();
    let pixels = pictures("resnet18 tiles", 2, 224);
    let got = run(&encoder.graph, 2, &[Input::Pixels(&pixels)]).remove(0);
    assert_features_match("resnet18, folded", &stored, &got, 2);
}

fn head(family: &str, classes: usize, clinical: usize) -> recipe::Head {
    recipe::Head {
        name: "t".into(),
        family: family.into(),
        weights: "head.safetensors".into(),
        classes: (0..classes).map(|c| c.to_string()).collect(),
        transform: recipe::Transform::None,
        aggregate: None,
        clinical: (0..clinical)
            .map(|c| recipe::Clinical::Number { column: c.to_string(), mean: 0.0, sd: 1.0 })
            .collect(),
    }
}

#[test]
fn heads_match_pytorch() {
    for (file, family, classes, clinical, rows, width) in [
        ("balnmp", "balnmp", 2, 0, 10, 25088),
        ("balnmp_c", "balnmp", 2, 5, 10, 25088),
        ("clam_sb", "clam-sb", 2, 0, 157, 1024),
        ("clam_mb", "clam-mb", 3, 0, 157, 1024),
    ] {
        let stored = Tensors::open(&golden(&format!("{file}.safetensors"))).unwrap();
        let weights = weights(file, &stored, |_| {});
        let built = heads::build(&head(family, classes, clinical), Some(width), &weights).unwrap();
        let half = |x: f32| f16::from_f32(x).to_f32();
        let features: Vec<f32> = uniform(&format!("{file} features"), rows * width)
            .into_iter()
            .map(|u| half(u.max(0.0)))
            .collect();
        let values: Vec<f32> =
            uniform(&format!("{file} clinical"), clinical).into_iter().map(half).collect();
        let inputs = [Input::Values(&features), Input::Values(&values)];
        let used = if clinical > 0 { 2 } else { 1 };
        let outputs = run(&built.graph, rows, &inputs[..used]);
        for (name, got) in ["logits", "scores"].iter().zip(&outputs) {
            let (error, _) = compare(got, &stored.require(name).unwrap().to_f32().unwrap());
            println!("{file} {name}: error {error:.2e}");
            assert!(error <= 1e-3, "{file} {name}: {error:.2e}");
        }
        let prediction = heads::predict(&built, &outputs[0]).unwrap();
        assert!((prediction.probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(heads::predict(&built, &vec![f32::NAN; classes]).is_err());
        let attention = heads::attention(&outputs[1], built.branches);
        for branch in 0..built.branches {
            let sum: f32 = attention.iter().skip(branch).step_by(built.branches).sum();
            assert!((sum - 1.0).abs() < 1e-5, "{file} branch {branch}: {sum}");
        }
    }
}

/// A narrow network of the right depth, for what needs no numbers.
fn narrow(file: &str, keep: impl Fn(&str) -> bool) -> Tensors {
    let stored = Tensors::open(&golden(&format!("{file}.safetensors"))).unwrap();
    weights(file, &stored, |tensors| {
        tensors.retain(|(name, _)| keep(name));
        for (name, tensor) in tensors.iter_mut() {
            let input = if name == "conv1.weight" { 3 } else { 0 };
            for (axis, d) in tensor.shape.iter_mut().enumerate().take(2) {
                *d = if axis == 1 && input > 0 { input } else { *d / 16 };
            }
            tensor.data = vec![1.0; tensor.shape.iter().product()];
        }
    })
}

#[test]
fn widths_come_from_the_weights() {
    let encoder =
        models::build(&recipe("resnet50", None, 64, false), &narrow("resnet50", |_| true)).unwrap();
    assert_eq!(encoder.feature_dim, 128);
}

#[test]
fn weights_that_do_not_fit_the_family_are_named() {
    let all = |_: &str| true;
    let build = |family, stage, batch, keep: &dyn Fn(&str) -> bool| {
        models::build(&recipe(family, stage, 64, batch), &narrow("resnet18", keep))
            .unwrap_err()
            .to_string()
    };
    for (error, words) in [
        (build("resnet34", None, false, &all), "tensor layer1.2.conv1.weight is missing"),
        (build("resnet50", None, false, &all), "needed a 1 x 1 kernel"),
        (build("vgg11", None, false, &all), "tensor features.0.weight is missing"),
        (build("resnet18", Some("layer2"), false, &all), "50 tensors have no place"),
        (build("resnet18", Some("stage2"), false, &all), "layer1 to layer4"),
        (build("resnet18", None, true, &|n| !n.starts_with("bn1.")), "folded away"),
        (build("resnet18", None, false, &|n| n != "layer2.0.bn1.bias"), "layer2.0.bn1.bias"),
        (build("resnet18", None, false, &|n| !n.starts_with("bn1.")), "neither a batch norm nor"),
        (build("resnet9", None, false, &all), "no encoder family \"resnet9\""),
    ] {
        assert!(error.contains(words), "{error} lacks {words}");
    }
    let deeper = models::build(&recipe("resnet18", None, 64, false), &narrow("resnet50", all));
    assert!(deeper.is_err());
}

#[test]
fn a_negative_variance_is_refused() {
    let stored = Tensors::open(&golden("resnet18.safetensors")).unwrap();
    let broken = weights("resnet18", &stored, |tensors| {
        let variance = tensors.iter_mut().find(|(n, _)| n == "layer1.0.bn1.running_var").unwrap();
        variance.1.data[3] = -0.5;
    });
    let error = models::build(&recipe("resnet18", None, 64, false), &broken).unwrap_err();
    assert!(error.to_string().contains("layer1.0.bn1.running_var: variance -0.5"), "{error}");
}

#[test]
fn heads_that_disagree_with_their_recipe_are_refused() {
    let stored = |file: &str| Tensors::open(&golden(&format!("{file}.safetensors"))).unwrap();
    let build = |file: &str, head: recipe::Head| {
        heads::build(&head, None, &weights(file, &stored(file), |_| {})).unwrap_err().to_string()
    };
    for (error, words) in [
        (build("balnmp", head("balnmp", 2, 5)), "classifier.0.weight has room for 0 clinical"),
        (build("balnmp_c", head("balnmp", 2, 0)), "the recipe has 0 to repeat"),
        (build("balnmp_c", head("balnmp", 2, 4)), "the recipe has 4 to repeat"),
        (
            build("balnmp", head("balnmp", 3, 0)),
            "classifier.2.weight of shape [2, 64] has 2 outputs, the recipe's classes needs 3",
        ),
        (
            build("clam_sb", head("clam-sb", 0, 0)),
            "classifiers.weight of shape [2, 512] has 2 outputs, a regression needs 1",
        ),
        (build("clam_sb", head("clam-sb", 2, 1)), "no clinical values"),
        (build("clam_sb", head("clam-xl", 2, 0)), "no head family"),
    ] {
        assert!(error.contains(words), "{error} lacks {words}");
    }
}
