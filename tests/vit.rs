//! Vision transformers against timm, transformers and PyTorch, from the keys their publishers use to
//! features: `tests/golden/vit/make.py` wrote the numbers.

#[path = "models/formula.rs"]
mod formula;

use formula::{F32, compare, listed, pictures};
use histokern::backend::check::run_once;
use histokern::cpu::CpuBackend;
use histokern::graph::Input;
use histokern::graph::reference::{self, Rounding};
use histokern::models;
use histokern::recipe::{Interpolation, PositionResize, Recipe};
use histokern::weights::import::{Fate, Layout, sort};
use histokern::weights::{Package, Tensors};
use std::path::{Path, PathBuf};
use std::process::Command;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vit").join(name)
}

fn recipe(side: usize, vit: &str) -> Recipe {
    Recipe::parse(&format!(
        "schema = 1\nname = \"t\"\ntitle = \"t\"\nlicence = \"t\"\nsource = \"t\"\n\
         [tiles]\nsize_px = {side}\n[preprocess]\nmean = [0.485, 0.456, 0.406]\n\
         std = [0.229, 0.224, 0.225]\n[encoder]\nfamily = \"vit\"\n[encoder.vit]\n{vit}\n"
    ))
    .unwrap()
}

/// The checkpoint of a golden network after `edit`.
fn checkpoint(name: &str, edit: impl Fn(&mut Vec<(String, F32)>)) -> Tensors {
    let mut tensors = listed(&std::fs::read_to_string(golden(&format!("{name}.tsv"))).unwrap());
    edit(&mut tensors);
    let bytes = safetensors::serialize(tensors, None).unwrap();
    Tensors::from_bytes(Path::new(name), bytes).unwrap()
}

fn encoder(name: &str, side: usize, vit: &str) -> models::Encoder {
    let sorted = sort(&checkpoint(name, published), Layout::Vit).unwrap();
    let unknown: Vec<_> = sorted.fates.iter().filter(|(_, f)| *f == Fate::Unknown).collect();
    assert!(unknown.is_empty(), "{name}: {unknown:?}");
    models::build(&recipe(side, vit), &sorted.encoder).unwrap()
}

/// Older files of transformers hold both halves of SwiGLU as one matrix: here the first block's.
fn published(tensors: &mut Vec<(String, F32)>) {
    for part in ["weight", "bias"] {
        let at = |tensors: &[(String, F32)], kind: &str| {
            let name = format!("encoder.layer.0.mlp.{kind}_proj.{part}");
            tensors.iter().position(|(n, _)| *n == name)
        };
        let Some(gate) = at(tensors, "gate") else { return };
        let mut joined = tensors.remove(gate).1;
        let value = tensors.remove(at(tensors, "up").unwrap()).1;
        joined.shape[0] += value.shape[0];
        joined.data.extend(value.data);
        tensors.push((format!("encoder.layer.0.mlp.weights_in.{part}"), joined));
    }
}

#[test]
fn features_match_the_publishers_code() {
    let stored = Tensors::open(&golden("vit.safetensors")).unwrap();
    let cpu = CpuBackend::new(2, None).unwrap();
    for (name, side, width, vit) in [
        ("plain", 32, 96, "heads = 2"),
        ("registers", 44, 128, "heads = 2"),
        ("mean", 40, 160, "heads = 2\npool = \"mean\""),
        ("phikon", 40, 96, "heads = 2\neps = 1e-12\nposition = \"bicubic\""),
        ("dinov2", 24, 256, "heads = 1\npool = \"class-mean\""),
        ("conch", 32, 64, "heads = 2\npool = \"attention\"\npool_heads = 8"),
    ] {
        let encoder = encoder(name, side, vit);
        assert_eq!(encoder.feature_dim, width, "{name}");
        let numbers = |key: &str| stored.require(key).unwrap().to_f32().unwrap();
        let want = numbers(&format!("{name}.features"));
        let allowed = f64::from(numbers(&format!("{name}.error"))[0]);
        let pixels = pictures(&format!("{name} tiles"), 3, side);
        let inputs = [Input::Pixels(&pixels)];
        let exact = reference::run(&encoder.graph, 3, &inputs, Rounding::None).unwrap();
        let rounded = reference::run(&encoder.graph, 3, &inputs, Rounding::F16).unwrap();
        let computed = run_once(&cpu, &encoder.graph, 3, &inputs).unwrap();
        // Without rounding of activations only that of the weights is left.
        for (who, got) in [("f32", exact), ("reference", rounded), ("cpu", computed)] {
            let (error, cosine) = compare(&got[0], &want);
            println!("{name}, {who}: error {error:.2e}, FP16 in PyTorch {allowed:.2e}");
            assert!(error <= 1.5 * allowed, "{name}, {who}: {error:.2e} over 1.5 x {allowed:.2e}");
            assert!(cosine >= 0.9999, "{name}, {who}: cosine {cosine}");
        }
    }
}

type Edit = dyn Fn(&mut Vec<(String, F32)>);

#[test]
fn weights_that_do_not_fit_are_named() {
    let build = |vit: &str, edit: &Edit| {
        let sorted = sort(&checkpoint("plain", edit), Layout::Vit).unwrap();
        models::build(&recipe(32, vit), &sorted.encoder).unwrap_err().to_string()
    };
    let keep = |_: &mut Vec<(String, F32)>| {};
    let without = |name: &'static str| {
        move |tensors: &mut Vec<(String, F32)>| tensors.retain(|(n, _)| n != name)
    };
    let cut = |name: &'static str, shape: [usize; 2]| {
        move |tensors: &mut Vec<(String, F32)>| {
            let (_, tensor) = tensors.iter_mut().find(|(n, _)| n == name).unwrap();
            tensor.shape = shape.to_vec();
            tensor.data.truncate(shape[0] * shape[1]);
        }
    };
    for (error, words) in [
        (build("heads = 5", &keep), "cannot cut 96 channels into 5"),
        (build("heads = 0", &keep), "cannot cut 96 channels into 0"),
        (build("heads = 2", &without("blocks.1.attn.proj.weight")), "blocks.1.attn.proj.weight"),
        (build("heads = 2", &without("blocks.0.norm1.weight")), "blocks.0.norm1.weight is missing"),
        (build("heads = 2", &without("blocks.1.norm1.weight")), "have no place in the model"),
        (build("heads = 2", &without("cls_token")), "there is no cls_token"),
        (build("heads = 2", &cut("pos_embed", [11, 96])), "pos_embed covers 11 tokens"),
        (build("heads = 2", &cut("blocks.0.mlp.fc1.weight", [384, 90])), "fc1.weight has shape"),
        (build("heads = 2\npool = \"mean\"", &cut("norm.bias", [1, 96])), "norm.bias"),
    ] {
        assert!(error.contains(words), "{error} lacks {words}");
    }
    let other = models::build(&recipe(33, "heads = 2"), &checkpoint("plain", keep)).unwrap_err();
    assert!(other.to_string().contains("33 x 33 pixels are not whole patches of 8"), "{other}");
}

/// A folder as `huggingface-cli download` leaves it, with weights from the formula.
fn snapshot(dir: &Path, golden_dir: &str, tsv: &str) {
    std::fs::create_dir_all(dir).unwrap();
    for entry in std::fs::read_dir(golden(golden_dir)).unwrap() {
        let from = entry.unwrap().path();
        if from.extension().is_some_and(|e| e == "json") {
            std::fs::copy(&from, dir.join(from.file_name().unwrap())).unwrap();
        }
    }
    let tensors = listed(&std::fs::read_to_string(golden(tsv)).unwrap());
    safetensors::serialize_to_file(tensors, None, &dir.join("model.safetensors")).unwrap();
}

fn import(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(env!("CARGO_BIN_EXE_histokern"))
        .arg("import")
        .args(arguments)
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

#[test]
fn a_snapshot_becomes_a_package() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    snapshot(&dir.path().join("timm"), "timm-snapshot", "timm-snapshot/model.tsv");
    import(&[&path("timm"), "-o", &path("a")]).unwrap();
    let package = Package::open(&dir.path().join("a")).unwrap();
    let recipe = &package.recipe;
    assert_eq!((recipe.slide_tiles().unwrap().size_px, recipe.preprocess.crop), (53, Some(48)));
    assert_eq!((recipe.name.as_str(), recipe.licence.as_str()), ("timm", "apache-2.0"));
    assert_eq!(recipe.preprocess.interpolation, Interpolation::Bicubic);
    assert_eq!(recipe.preprocess.std, [0.5; 3]);
    assert_eq!(recipe.encoder.vit.as_ref().unwrap().heads, 3);
    assert_eq!(models::build(recipe, &package.encoder().unwrap()).unwrap().feature_dim, 192);

    snapshot(&dir.path().join("hf"), "transformers-snapshot", "dinov2.tsv");
    import(&[&path("hf"), "-o", &path("b")]).unwrap();
    let package = Package::open(&dir.path().join("b")).unwrap();
    let recipe = &package.recipe;
    assert_eq!((recipe.slide_tiles().unwrap().size_px, recipe.preprocess.crop), (36, Some(24)));
    let vit = recipe.encoder.vit.clone().unwrap();
    assert_eq!((vit.heads, vit.position), (1, PositionResize::Antialias));
    assert_eq!((recipe.preprocess.mean, recipe.preprocess.std), ([0.5; 3], [0.25; 3]));
    assert_eq!(models::build(recipe, &package.encoder().unwrap()).unwrap().feature_dim, 128);
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let made = dir.path().join("s");
    let tried = |edit: &dyn Fn(&mut serde_json::Value), more: &[&str]| {
        snapshot(&made, "timm-snapshot", "timm-snapshot/model.tsv");
        let file = made.join("config.json");
        let mut config = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        edit(&mut config);
        std::fs::write(&file, config.to_string()).unwrap();
        import(&[&[path("s").as_str(), "-o", &path("p")], more].concat()).unwrap_err()
    };
    for (message, words) in [
        (tried(&|c| c["architecture"] = "swin_tiny".into(), &[]), "swin_tiny: not a vision"),
        (tried(&|c| c["model_args"]["global_pool"] = "map".into(), &[]), "global_pool \"map\""),
        (tried(&|c| c["model_args"]["act_layer"] = "quick_gelu".into(), &[]), "quick_gelu"),
        (tried(&|c| c["pretrained_cfg"]["mean"] = "x".into(), &[]), "not three numbers"),
        (tried(&|c| c["model_args"]["num_heads"] = 5.into(), &[]), "192 channels into 5"),
        (tried(&|_| (), &["--recipe", "uni"]), "3 attention heads, the recipe uni has 16"),
        (tried(&|_| (), &["--recipe", "uno"]), "no recipe \"uno\""),
        (tried(&|_| (), &["--family", "resnet50"]), "conv1.weight is missing"),
    ] {
        assert!(message.contains(words), "{message} lacks {words}");
        assert!(!dir.path().join("p").exists());
    }
    std::fs::remove_file(made.join("model.safetensors")).unwrap();
    let message = import(&[&path("s"), "-o", &path("p")]).unwrap_err();
    assert!(message.contains("no model.safetensors"), "{message}");
}
