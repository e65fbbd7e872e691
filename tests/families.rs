//! Encoder and segmentation families against PyTorch (and Keras, for its own Inception V3), on the
//! reference and on the CPU: networks of full depth and a fraction of the channels, whose weights
//! come from a formula. `golden/families/make.py` stored what the originals put out.

#[path = "models/formula.rs"]
mod formula;

use formula::{F32, compare, listed, pictures};
use histokern::backend::{Backend, Oracle, check};
use histokern::cpu::CpuBackend;
use histokern::graph::reference::Rounding;
use histokern::graph::{Graph, Input};
use histokern::models;
use histokern::recipe::{MapOutput, Preprocess, Recipe, Segmenter};
use histokern::weights::Tensors;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families").join(name)
}

/// A golden network's weights by the formula, after `edit` has changed them.
fn weights(file: &str, edit: impl Fn(&mut Vec<(String, F32)>)) -> Tensors {
    let packed = std::fs::File::open(golden(&format!("{file}.tsv.gz"))).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    let mut tensors = listed(&text);
    edit(&mut tensors);
    let bytes = safetensors::serialize(tensors, None).unwrap();
    Tensors::from_bytes(Path::new(file), bytes).unwrap()
}

fn cpu() -> Box<dyn Backend> {
    Box::new(CpuBackend::new(2, None).unwrap())
}

/// Runs a network and holds it to its golden outputs: the error against PyTorch in f32 is at most
/// 1.5 times that of PyTorch with weights and activations rounded to FP16, and so is one minus the
/// cosine unless it is below 0.0001.
fn check(backend: &dyn Backend, file: &str, graph: &Arc<Graph>, rows: usize, pixels: &[u8]) {
    let got = check::run_once(backend, graph, rows, &[Input::Pixels(pixels)]).unwrap().remove(0);
    let stored = Tensors::open(&golden(&format!("{file}.safetensors"))).unwrap();
    let want = stored.require("features").unwrap();
    let width = got.len() / rows;
    let read = |name: &str| f64::from(stored.require(name).unwrap().to_f32().unwrap()[0]);
    let step = read("step") as usize;
    let got: Vec<f32> =
        got.chunks_exact(width).flat_map(|row| row.iter().copied().step_by(step)).collect();
    let allowed = 1.5 * read("emulation_error");
    let least = f64::min(0.9999, 1.0 - 1.5 * 1.5 * (1.0 - read("emulation_cosine")));
    let (error, cosine) = compare(&got, &want.to_f32().unwrap());
    let name = backend.name();
    println!("{file} on {name}: error {error:.2e}, allowed {allowed:.2e}, cosine {cosine:.7}");
    assert!(error <= allowed, "{file} on {name}: {error:.2e}, allowed {allowed:.2e}");
    assert!(cosine >= least, "{file} on {name}: cosine {cosine}, needed {least}");
}

/// A golden encoder: file, family, more lines of the recipe's `[encoder]`, side, tiles, D.
type EncoderCase = (&'static str, &'static str, &'static str, usize, usize, usize);

const BATCH: &str = "bn_mode = \"batch\"\n[bag]\nsize = 8\n";

const ENCODERS: &[EncoderCase] = &[
    ("alexnet", "alexnet", "", 95, 2, 2304),
    ("densenet121", "densenet121", "", 64, 2, 256),
    ("densenet121_features", "densenet121", "truncate = \"features\"", 96, 1, 1152),
    ("densenet121_batch", "densenet121", BATCH, 64, 4, 128),
    ("densenet161", "densenet161", "", 64, 1, 276),
    ("googlenet", "googlenet", "transform_input = true", 87, 2, 256),
    ("googlenet_batch", "googlenet", BATCH, 96, 8, 128),
    ("inception_v3", "inception_v3", "", 107, 2, 512),
    ("inception_v3_transform", "inception_v3", "transform_input = true", 75, 1, 256),
    ("inception_v3_batch", "inception_v3", BATCH, 139, 8, 256),
    ("resnet18_batch", "resnet18", BATCH, 64, 4, 128),
    ("resnet50_batch", "resnet50", BATCH, 64, 4, 256),
];

fn recipe(family: &str, more: &str, side: usize) -> Recipe {
    let (mean, std) = match family {
        "inception_v3_keras" => ("[0.5, 0.5, 0.5]", "[0.5, 0.5, 0.5]"),
        _ => ("[0.485, 0.456, 0.406]", "[0.229, 0.224, 0.225]"),
    };
    Recipe::parse(&format!(
        "schema = 1\nname = \"t\"\ntitle = \"t\"\nlicence = \"t\"\nsource = \"t\"\n\
         [tiles]\nsize_px = {side}\n[preprocess]\nmean = {mean}\nstd = {std}\n\
         [encoder]\nfamily = \"{family}\"\n{more}"
    ))
    .unwrap()
}

fn check_encoders(backend: &dyn Backend, wanted: impl Fn(&str) -> bool) {
    for &(file, family, more, side, tiles, feature_dim) in ENCODERS {
        if wanted(file) {
            let recipe = recipe(family, more, side);
            let encoder = models::build(&recipe, &weights(file, |_| {})).unwrap();
            assert_eq!(encoder.feature_dim, feature_dim, "{file}");
            let pixels = pictures(&format!("{file} tiles"), tiles, side);
            check(backend, file, &encoder.graph, tiles, &pixels);
        }
    }
}

#[test]
fn densenets_match_pytorch_on_the_reference() {
    check_encoders(&Oracle(Rounding::F16), |file| file.starts_with("densenet"));
}

#[test]
fn other_encoders_match_pytorch_on_the_reference() {
    check_encoders(&Oracle(Rounding::F16), |file| !file.starts_with("densenet"));
}

#[test]
fn encoders_match_pytorch_on_the_cpu() {
    check_encoders(&*cpu(), |_| true);
}

fn check_keras(backend: &dyn Backend) {
    let file = "inception_v3_keras";
    let encoder = models::build(&recipe(file, "", 75), &weights(file, |_| {})).unwrap();
    check(backend, file, &encoder.graph, 1, &pictures(&format!("{file} tiles"), 1, 75));
}

#[test]
fn inception_v3_matches_keras_on_the_reference() {
    check_keras(&Oracle(Rounding::F16));
}

#[test]
fn inception_v3_matches_keras_on_the_cpu() {
    check_keras(&*cpu());
}

/// A golden segmenter: file, family, output, heads, side, channels.
type SegmenterCase = (&'static str, &'static str, MapOutput, &'static [u8], usize, usize);

use MapOutput::{Logits, Sigmoid, Softmax};

const SEGMENTERS: &[SegmenterCase] = &[
    ("unet", "unet", Sigmoid, &[], 64, 1),
    ("unet_bilinear", "unet", Logits, &[], 64, 3),
    ("nested_unet", "nested-unet", Logits, &[], 48, 1),
    ("nested_unet_head2", "nested-unet", Softmax, &[2], 48, 2),
    ("nested_unet_mean", "nested-unet", Sigmoid, &[1, 2, 3, 4], 48, 2),
    ("smp_unet_resnet34", "smp-unet-resnet34", Logits, &[], 64, 1),
    ("smp_unet_resnet50", "smp-unet-resnet50", Sigmoid, &[], 64, 1),
    ("smp_unet_densenet121", "smp-unet-densenet121", Logits, &[], 64, 1),
    ("smp_unetplusplus_resnet18", "smp-unetplusplus-resnet18", Softmax, &[], 64, 2),
    ("smp_unetplusplus_densenet121", "smp-unetplusplus-densenet121", Logits, &[], 64, 1),
    ("smp_deeplabv3_resnet18", "smp-deeplabv3-resnet18", Logits, &[], 160, 1),
    ("smp_deeplabv3_resnet50", "smp-deeplabv3-resnet50", Logits, &[], 160, 1),
    ("deeplabv3_resnet50", "deeplabv3_resnet50", Softmax, &[], 160, 3),
    ("deeplabv3_resnet101", "deeplabv3_resnet101", Logits, &[], 160, 2),
];

fn spec(family: &str, output: MapOutput, heads: &[u8]) -> Segmenter {
    Segmenter {
        name: "t".into(),
        family: family.into(),
        weights: "t.safetensors".into(),
        output,
        foreground: None,
        heads: heads.to_vec(),
        border: [0; 3],
        preprocess: Preprocess {
            resize: None,
            interpolation: Default::default(),
            crop: None,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        },
    }
}

fn check_segmenters(backend: &dyn Backend, wanted: impl Fn(&str) -> bool) {
    for &(file, family, output, heads, side, channels) in SEGMENTERS {
        if wanted(file) {
            let spec = spec(family, output, heads);
            let weights = weights(file, |_| {});
            let built = models::build_segmenter(&spec, [side; 2], &weights).unwrap();
            assert_eq!(built.channels, channels, "{file}");
            let pixels = pictures(&format!("{file} pictures"), 1, side);
            check(backend, file, &built.graph, 1, &pixels);
        }
    }
}

#[test]
fn unets_match_pytorch_on_the_reference() {
    check_segmenters(&Oracle(Rounding::F16), |file| !file.contains("deeplab"));
}

#[test]
fn deeplabs_match_pytorch_on_the_reference() {
    check_segmenters(&Oracle(Rounding::F16), |file| file.contains("deeplab"));
}

#[test]
fn segmenters_match_pytorch_on_the_cpu() {
    check_segmenters(&*cpu(), |_| true);
}

// ---------------------------------------------------------------------------------------------
// What does not fit

/// Builds the network of a golden file from edited weights.
fn rebuild(file: &str, edit: impl Fn(&mut Vec<(String, F32)>)) -> Result<(), String> {
    let weights = weights(file, edit);
    let encoder = ENCODERS.iter().find(|case| case.0 == file);
    let built = match (encoder, SEGMENTERS.iter().find(|case| case.0 == file)) {
        (Some(&(_, family, more, side, ..)), _) => {
            models::build(&recipe(family, more, side), &weights).map(|_| ())
        }
        (_, Some(&(_, family, output, heads, side, _))) => {
            let spec = spec(family, output, heads);
            models::build_segmenter(&spec, [side; 2], &weights).map(|_| ())
        }
        _ => panic!("{file} is not a golden network"),
    };
    built.map_err(|e| e.to_string())
}

/// One network of each family, and a matrix and a vector in its middle.
const MIDDLES: &[(&str, &str, &str)] = &[
    ("alexnet", "features.6.weight", "features.8.bias"),
    (
        "densenet121",
        "features.denseblock2.denselayer5.conv1.weight",
        "features.denseblock3.denselayer9.norm1.running_mean",
    ),
    ("googlenet", "inception4b.branch3.1.conv.weight", "inception4b.branch3.1.bn.bias"),
    ("inception_v3", "Mixed_6c.branch7x7_2.conv.weight", "Mixed_7b.branch_pool.bn.weight"),
    ("unet", "up2.up.weight", "down3.maxpool_conv.1.double_conv.4.running_var"),
    ("nested_unet", "up23.weight", "conv22_1.bias"),
    ("smp_unet_resnet34", "decoder.blocks.1.conv1.0.weight", "encoder.layer3.2.bn1.weight"),
    (
        "smp_unet_densenet121",
        "encoder.features.transition2.conv.weight",
        "encoder.features.norm5.running_var",
    ),
    (
        "smp_unetplusplus_resnet18",
        "decoder.blocks.x_1_2.conv2.0.weight",
        "decoder.blocks.x_0_4.conv1.1.bias",
    ),
    ("smp_deeplabv3_resnet50", "decoder.aspp.convs.2.0.weight", "decoder.bn.running_mean"),
    ("deeplabv3_resnet50", "classifier.0.project.0.weight", "classifier.0.convs.4.2.weight"),
];

#[test]
fn a_missing_tensor_is_named() {
    for &(file, matrix, vector) in MIDDLES {
        for name in [matrix, vector] {
            let error = rebuild(file, |all| all.retain(|(n, _)| n != name)).unwrap_err();
            let words = format!("tensor {name} is missing");
            assert!(error.contains(&words), "{file}: {error}");
        }
    }
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    for &(file, matrix, vector) in MIDDLES {
        for name in [matrix, vector] {
            let error = rebuild(file, |all| {
                let (_, tensor) = all.iter_mut().find(|(n, _)| n == name).unwrap();
                // The axis that other tensors decide: the filters are the weight's own.
                let axis = usize::from(tensor.shape.len() > 1 && !name.starts_with("up"));
                tensor.shape[axis] += 1;
                tensor.data = vec![1.0; tensor.shape.iter().product()];
            })
            .unwrap_err();
            assert!(error.contains(name), "{file}, {name}: {error}");
        }
    }
}

#[test]
fn swapped_tensors_are_named() {
    for (file, a, b) in [
        (
            "densenet121",
            "features.denseblock1.denselayer1.conv1.weight",
            "features.transition1.conv.weight",
        ),
        ("inception_v3", "Mixed_6b.branch7x7_2.conv.weight", "Mixed_6b.branch7x7_3.conv.weight"),
        ("googlenet", "inception3a.branch2.1.bn.weight", "inception3a.branch3.1.bn.weight"),
        (
            "smp_unetplusplus_resnet18",
            "decoder.blocks.x_0_1.conv1.0.weight",
            "decoder.blocks.x_0_2.conv1.0.weight",
        ),
        ("deeplabv3_resnet50", "classifier.0.convs.0.0.weight", "classifier.0.convs.1.0.weight"),
        ("nested_unet", "conv12_1.weight", "conv13_1.weight"),
    ] {
        let error = rebuild(file, |all| {
            let [i, j] = [a, b].map(|name| all.iter().position(|(n, _)| n == name).unwrap());
            let names = [all[i].0.clone(), all[j].0.clone()];
            (all[i].0, all[j].0) = (names[1].clone(), names[0].clone());
        })
        .unwrap_err();
        let [a, b] = [a, b].map(|name| name.rsplit_once('.').unwrap().0);
        assert!(error.contains(a) || error.contains(b), "{file}: {error}");
    }
}

#[test]
fn what_a_family_does_not_have_is_refused() {
    let build = |file: &str, family: &str, more: &str, side: usize| {
        let weights = weights(file, |_| {});
        models::build(&recipe(family, more, side), &weights).unwrap_err().to_string()
    };
    let segment = |family: &str, heads: &[u8], output: MapOutput, size: [usize; 2]| {
        let weights = weights("unet", |_| {});
        let spec = spec(family, output, heads);
        models::build_segmenter(&spec, size, &weights).unwrap_err().to_string()
    };
    for (error, words) in [
        (build("alexnet", "alexnet", BATCH, 95), "no batch norm"),
        (build("alexnet", "alexnet", "truncate = \"layer3\"", 95), "cannot be truncated"),
        (build("densenet121", "densenet121", "truncate = \"layer3\"", 64), "\"features\" only"),
        (build("densenet121", "densenet169", "", 64), "denselayer25.conv2.weight is missing"),
        (build("densenet161", "densenet121", "", 64), "has 264 numbers for 192 channels"),
        (build("alexnet", "alexnet", "", 31), "does not fit a"),
        (segment("unet", &[], Sigmoid, [64, 40]), "multiples of 16"),
        (segment("unet", &[], Sigmoid, [0, 64]), "multiples of 16"),
        (segment("unet", &[1], Sigmoid, [64, 64]), "has only one"),
        (segment("unet", &[], Softmax, [64, 64]), "always 1"),
        (segment("u-net", &[], Sigmoid, [64, 64]), "no segmentation family \"u-net\""),
        (segment("nested-unet", &[1, 2], Logits, [64, 64]), "tensor conv11_1.weight is missing"),
        (segment("smp-unet-resnet34", &[], Logits, [64, 64]), "tensor encoder.conv1.weight"),
    ] {
        assert!(error.contains(words), "{error} lacks {words}");
    }
    let mean = rebuild("nested_unet_mean", |_| {});
    assert_eq!(mean, Ok(()));
    let weights = weights("nested_unet_mean", |_| {});
    let error = models::build_segmenter(&spec("nested-unet", Logits, &[1, 2]), [48; 2], &weights);
    assert!(error.unwrap_err().to_string().contains("probabilities"));
}

// ---------------------------------------------------------------------------------------------
// Import

fn command(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_histokern")).args(arguments).output().unwrap()
}

/// Runs the command, which must succeed, and returns what it printed.
fn done(arguments: &[&str]) -> String {
    let output = command(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn written(folder: &Path, name: &str, tensors: Vec<(String, F32)>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    path
}

fn tensor(name: &str, shape: &[usize]) -> (String, F32) {
    let data = formula::formula(name, shape);
    (name.into(), F32 { shape: shape.to_vec(), data })
}

/// The tensors of a golden network.
fn checkpoint(file: &str) -> Vec<(String, F32)> {
    let all = weights(file, |_| {});
    let of = |name: &str| {
        let t = all.require(name).unwrap();
        (name.to_string(), F32 { shape: t.shape.to_vec(), data: t.to_f32().unwrap() })
    };
    all.names().map(of).collect()
}

/// Every tensor of `file` is in the package under the same name.
fn assert_imported(package: &Path, weights_file: &str, file: &str, but: &[&str]) {
    let got = Tensors::open(&package.join(weights_file)).unwrap();
    let want = weights(file, |all| all.retain(|(name, _)| !but.contains(&name.as_str())));
    assert_eq!(got.names().collect::<Vec<_>>(), want.names().collect::<Vec<_>>(), "{file}");
    for name in want.names() {
        let (got, want) = (got.require(name).unwrap(), want.require(name).unwrap());
        assert_eq!(got.shape, want.shape, "{name}");
        let rounded = if want.shape.len() > 1 {
            want.to_f16().unwrap().data.iter().map(|x| x.to_f32()).collect()
        } else {
            want.to_f32().unwrap()
        };
        assert_eq!(got.to_f32().unwrap(), rounded, "{name}");
    }
}

/// Checkpoints as torchvision and segmentation_models_pytorch write them, with classifiers, counters
/// and the names of older versions.
#[test]
fn checkpoints_of_every_family_become_packages() {
    let folder = tempfile::tempdir().unwrap();
    let old_dense = |name: &str| {
        let (head, tail) = name.rsplit_once(".denselayer").unwrap_or(("", name));
        let tail = ["norm1", "norm2", "conv1", "conv2"].iter().fold(tail.to_string(), |t, part| {
            t.replace(part, &format!("{}.{}", &part[..4], &part[4..]))
        });
        if head.is_empty() { name.into() } else { format!("{head}.denselayer{tail}") }
    };
    let old_aspp = |name: &str| {
        name.replace("decoder.aspp.", "decoder.0.")
            .replace("decoder.conv.", "decoder.1.")
            .replace("decoder.bn.", "decoder.2.")
    };
    let same = |name: &str| name.to_string();
    type Rename<'r> = &'r dyn Fn(&str) -> String;
    let cases: [(&str, &str, &[&str], Rename<'_>); 12] = [
        ("alexnet", "alexnet", &["classifier.6.bias"], &same),
        ("densenet121", "densenet121", &["classifier.bias"], &old_dense),
        ("densenet161", "densenet161", &["classifier.bias"], &same),
        ("googlenet", "googlenet", &["fc.bias", "aux1.fc1.bias", "aux2.conv.bn.bias"], &same),
        ("inception_v3", "inception_v3", &["fc.bias", "AuxLogits.fc.bias"], &same),
        ("unet", "unet", &[], &same),
        ("nested_unet", "nested-unet", &[], &same),
        ("smp_unet_densenet121", "smp-unet-densenet121", &[], &old_dense),
        (
            "smp_unetplusplus_resnet18",
            "smp-unetplusplus-resnet18",
            &["classification_head.3.bias"],
            &same,
        ),
        ("smp_deeplabv3_resnet50", "smp-deeplabv3-resnet50", &[], &old_aspp),
        ("deeplabv3_resnet50", "deeplabv3_resnet50", &["aux_classifier.4.bias"], &same),
        ("deeplabv3_resnet101", "deeplabv3_resnet101", &[], &same),
    ];
    for (file, family, dropped, rename) in cases {
        let mut tensors: Vec<_> = checkpoint(file)
            .into_iter()
            .map(|(name, tensor)| (format!("module.{}", rename(&name)), tensor))
            .collect();
        let count = |name: &str| {
            name.strip_suffix("running_var").map(|n| format!("{n}num_batches_tracked"))
        };
        let counters: Vec<String> = tensors.iter().filter_map(|(name, _)| count(name)).collect();
        tensors.extend(
            counters.into_iter().map(|name| (name, F32 { shape: vec![1], data: vec![5.0] })),
        );
        tensors.extend(dropped.iter().map(|name| tensor(name, &[3])));
        let path = written(folder.path(), &format!("{file}.safetensors"), tensors);
        let package = folder.path().join(file);
        let (path, out) = (path.to_str().unwrap(), package.to_str().unwrap());
        let report = done(&["import", path, "--family", family, "-o", out, "--verbose"]);
        for name in dropped {
            assert!(report.contains(name), "{file}: {report}");
        }
        let segmenter = SEGMENTERS.iter().any(|case| case.0 == file);
        let weights_file =
            if segmenter { format!("{family}.safetensors") } else { "encoder.safetensors".into() };
        // The import keeps all outputs of a deeply supervised network.
        assert_imported(&package, &weights_file, file, &[]);
    }
}

/// Keras's own layout: names by number, kernels `[R, S, C, K]`, no gamma.
#[test]
fn an_inception_v3_of_keras_becomes_a_package() {
    let gamma = |name: &str| name.ends_with(".bn.weight");
    let all = weights("inception_v3", |all| all.retain(|(name, _)| !gamma(name)));
    let convs: Vec<String> = {
        let packed = std::fs::File::open(golden("inception_v3.tsv.gz")).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
        let names = text.lines().filter_map(|l| l.split('\t').next()?.strip_suffix(".conv.weight"));
        names.map(str::to_string).collect()
    };
    assert_eq!(convs.len(), 94);
    let mut builder = hdf5_pure::FileBuilder::new();
    for (i, conv) in convs.iter().enumerate() {
        // The network is the second of its session.
        let kernel = all.require(&format!("{conv}.conv.weight")).unwrap();
        let &[k, c, r, s] = kernel.shape else { panic!("{conv}") };
        let data = kernel.to_f32().unwrap();
        let mut hwio = vec![0.0; data.len()];
        for (from, x) in data.into_iter().enumerate() {
            let (ki, ci, tap) = (from / (c * r * s), from / (r * s) % c, from % (r * s));
            hwio[(tap * c + ci) * k + ki] = x;
        }
        let layer = format!("conv2d_{}", i + 94);
        let mut group = builder.create_group(&layer);
        let shape = [r, s, c, k].map(|d| d as u64);
        group.create_dataset("kernel:0").with_f32_data(&hwio).with_shape(&shape);
        builder.add_group(group.finish());
        let layer = format!("batch_normalization_{}", i + 94);
        let mut group = builder.create_group(&layer);
        for (ours, theirs) in
            [("bias", "beta"), ("running_mean", "moving_mean"), ("running_var", "moving_variance")]
        {
            let data = all.require(&format!("{conv}.bn.{ours}")).unwrap().to_f32().unwrap();
            let shape = [data.len() as u64];
            group.create_dataset(&format!("{theirs}:0")).with_f32_data(&data).with_shape(&shape);
        }
        builder.add_group(group.finish());
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keras.h5");
    std::fs::write(&file, builder.finish().unwrap()).unwrap();
    let package = folder.path().join("package");
    let (path, out) = (file.to_str().unwrap(), package.to_str().unwrap());
    done(&["import", path, "--family", "inception_v3_keras", "-o", out]);
    let gammas: Vec<String> = convs.iter().map(|conv| format!("{conv}.bn.weight")).collect();
    let gammas: Vec<&str> = gammas.iter().map(String::as_str).collect();
    assert_imported(&package, "encoder.safetensors", "inception_v3", &gammas);
}

#[test]
fn a_file_keras_wrote_reads_as_keras_reads_it() {
    let tensors = Tensors::open(&golden("keras.h5")).unwrap();
    let text = std::fs::read_to_string(golden("keras.txt")).unwrap();
    assert_eq!(tensors.len(), text.lines().count());
    for line in text.lines() {
        let [name, shape, sum] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let tensor = tensors.require(name).unwrap();
        let shape: Vec<usize> = shape.split(',').map(|s| s.parse().unwrap()).collect();
        assert_eq!(tensor.shape, shape, "{name}");
        let values = tensor.to_f32().unwrap();
        let got: f64 = values.iter().enumerate().map(|(i, &x)| f64::from(x) * (i + 1) as f64).sum();
        let sum: f64 = sum.parse().unwrap();
        assert!((got - sum).abs() < 1e-9, "{name}: {got}, needed {sum}");
    }
}

#[test]
fn damaged_keras_files_never_panic() {
    let whole = std::fs::read(golden("keras.h5")).unwrap();
    let read = |bytes: Vec<u8>| {
        if let Ok(tensors) = Tensors::from_bytes(Path::new("keras.h5"), bytes) {
            for name in tensors.names() {
                let _ = tensors.require(name).and_then(|t| t.to_f16());
            }
        }
    };
    for cut in (0..whole.len()).step_by(499) {
        read(whole[..cut].to_vec());
    }
    for at in (0..whole.len()).step_by(37) {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            read(bytes);
        }
    }
}

/// Pictures whose sides are no multiples of 32 are padded, and the map is cropped back.
#[test]
fn a_package_runs_on_given_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let file = "smp_unetplusplus_resnet18";
    let family = "smp-unetplusplus-resnet18";
    let path = written(folder.path(), "w.safetensors", checkpoint(file));
    done(&["import", path.to_str().unwrap(), "--family", family, "-o", &at("package")]);

    let pixels = pictures("a", 1, 64);
    let cut: Vec<u8> =
        pixels.chunks(64 * 3).take(50).flat_map(|row| &row[..41 * 3]).copied().collect();
    let view = |shape: Vec<usize>, data: &[u8]| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, shape, data);
        safetensors::serialize([("pixels", view.unwrap())], None).unwrap()
    };
    std::fs::write(at("cut"), view(vec![1, 50, 41, 3], &cut)).unwrap();
    let part = format!("segmenter:{family}");
    let arguments =
        ["run", &at("package"), "--part", &part, "--input", &at("cut"), "-o", &at("map")];
    let printed = done(&[&arguments[..], &["--device", "reference", "--json"]].concat());
    assert!(printed.contains("\"reference (FP16") && printed.contains("41"), "{printed}");
    let map = Tensors::open(Path::new(&at("map"))).unwrap();
    let map = map.require("map").unwrap();
    assert_eq!(map.shape, [1, 50, 41, 2]);

    let mut black = vec![0; 64 * 64 * 3];
    for (row, from) in black.chunks_mut(64 * 3).zip(cut.chunks(41 * 3)) {
        row[..41 * 3].copy_from_slice(from);
    }
    let weights = weights(file, |_| {});
    let built = models::build_segmenter(&spec(family, Sigmoid, &[]), [64; 2], &weights).unwrap();
    let inputs = [Input::Pixels(&black)];
    let whole =
        check::run_once(&Oracle(Rounding::F16), &built.graph, 1, &inputs).unwrap().remove(0);
    let want: Vec<f32> =
        whole.chunks(64 * 2).take(50).flat_map(|row| &row[..41 * 2]).copied().collect();
    assert_eq!(map.to_f32().unwrap(), want);

    for (more, words) in [
        (vec!["--part", "segmenter:other"], "no segmenter \"other\""),
        (vec!["--part", "encoder"], "has no encoder"),
        (vec!["--part", "head:x"], "no head \"x\""),
    ] {
        let arguments = ["run", &at("package"), "--input", &at("cut"), "-o", &at("other")];
        let output = command(&[&arguments[..], &more, &["--device", "reference"]].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(words), "{error}");
        assert!(!Path::new(&at("other")).exists());
    }
}
