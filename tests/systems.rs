//! The published systems from slide to answer, as a user runs them: ensembles of packages, the gate of
//! tile classifiers, masks, many heads, and the imports that make such packages. Synthetic slides and
//! narrow networks; every output is read back.

#[path = "models/formula.rs"]
#[allow(dead_code)]
mod formula;
#[path = "common/slides.rs"]
mod slides;

use formula::{F32, formula};
use histokern::slide::synthetic::SpecimenSpec;
use histokern::weights::{Array, ArrayData, Package, PackageWriter};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

// ---- packages -------------------------------------------------------------------------------

/// Names and shapes of a ResNet-18 of width 8 up to a stage.
fn resnet18(stages: usize) -> Vec<(String, Vec<usize>)> {
    let mut list = vec![("conv1.weight".to_string(), vec![8, 3, 7, 7])];
    let norm = |list: &mut Vec<(String, Vec<usize>)>, at: &str, k: usize| {
        for part in ["weight", "bias", "running_mean", "running_var"] {
            list.push((format!("{at}.{part}"), vec![k]));
        }
    };
    norm(&mut list, "bn1", 8);
    for stage in 1..=stages {
        let width = 4 << stage;
        for block in 0..2 {
            let at = format!("layer{stage}.{block}");
            let c = if block == 0 && stage > 1 { width / 2 } else { width };
            for (conv, c) in [(1, c), (2, width)] {
                list.push((format!("{at}.conv{conv}.weight"), vec![width, c, 3, 3]));
                norm(&mut list, &format!("{at}.bn{conv}"), width);
            }
            if c != width {
                list.push((format!("{at}.downsample.0.weight"), vec![width, c, 1, 1]));
                norm(&mut list, &format!("{at}.downsample.1"), width);
            }
        }
    }
    list
}

/// A linear layer.
fn linear(name: &str, k: usize, c: usize) -> Vec<(String, Vec<usize>)> {
    vec![(format!("{name}.weight"), vec![k, c]), (format!("{name}.bias"), vec![k])]
}

/// A gated-attention head on 32 features.
fn clam(classes: usize) -> Vec<(String, Vec<usize>)> {
    [
        linear("attention_net.0", 16, 32),
        linear("attention_net.2.attention_a.0", 8, 16),
        linear("attention_net.2.attention_b.0", 8, 16),
        linear("attention_net.2.attention_c", 1, 8),
        linear("classifiers", classes, 16),
    ]
    .concat()
}

/// Weights by the formula under a name of their own.
fn arrays(own: &str, list: &[(String, Vec<usize>)]) -> Vec<Array> {
    let array = |(name, shape): &(String, Vec<usize>)| {
        let mut data = formula(&format!("{own} {name}"), shape);
        if name == "classifiers.weight" {
            // Small enough for a power of ten.
            data.iter_mut().for_each(|x| *x /= 128.0);
        }
        let data = match shape.len() {
            1 => ArrayData::F32(data),
            _ => ArrayData::F16(data.into_iter().map(half::f16::from_f32).collect()),
        };
        Array { name: name.clone(), shape: shape.clone(), data }
    };
    list.iter().map(array).collect()
}

fn checkpoint(path: &Path, own: &str, list: &[(String, Vec<usize>)]) {
    let tensors = list.iter().map(|(name, shape)| {
        let data = formula(&format!("{own} {name}"), shape);
        (name.clone(), F32 { shape: shape.clone(), data })
    });
    fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

fn recipe(name: &str, heads: &str) -> String {
    format!(
        "schema = 1\nname = \"{name}\"\ntitle = \"test\"\nlicence = \"MIT\"\nsource = \"formula\"\n\
         [tissue]\nmethod = \"clam\"\ndownsample = 16.0\nmin_area = 0.05\n[tiles]\nsize_px = 128\n\
         [preprocess]\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n\
         [encoder]\nfamily = \"resnet18\"\ntruncate = \"layer3\"\n{heads}"
    )
}

const SCORE: &str = "[[head]]\nname = \"score\"\nfamily = \"tile-linear\"\n\
                     aggregate = { percentile = 0.75 }\n";

/// A regression of tiles and its percentile, as Ekholm et al. do.
fn score(dir: &Path, name: &str, encoder: &str) -> PathBuf {
    let target = dir.join(name);
    let mut writer = PackageWriter::create(&target, None).unwrap();
    writer.weights("encoder.safetensors", &arrays(encoder, &resnet18(3))).unwrap();
    writer.weights("head.safetensors", &arrays(name, &linear("fc", 1, 32))).unwrap();
    writer.finish(&recipe(name, SCORE)).unwrap();
    target
}

/// A diagnosis by gated attention.
fn diagnosis(dir: &Path, name: &str) -> PathBuf {
    let target = dir.join(name);
    let mut writer = PackageWriter::create(&target, None).unwrap();
    writer.weights("encoder.safetensors", &arrays("shared", &resnet18(3))).unwrap();
    writer.weights("head.safetensors", &arrays(name, &clam(2))).unwrap();
    let head = "[[head]]\nname = \"diagnosis\"\nfamily = \"clam-sb\"\n\
                classes = [\"normal\", \"tumour\"]\n";
    writer.finish(&recipe(name, head)).unwrap();
    target
}

// ---- slides and the program -----------------------------------------------------------------

fn slide(path: &Path, seed: u64) {
    slides::write(path, &SpecimenSpec { seed, fraction: None, width: 768, height: 640, mpp: 0.5 });
}

fn histokern(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_histokern")).args(args).output().unwrap()
}

fn ran(args: &[&str], code: i32) -> String {
    let output = histokern(args);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {err}");
    err + &String::from_utf8_lossy(&output.stdout)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Predicts one slide with these packages.
fn predict(slide: &Path, packages: &[&Path], out: &Path, more: &[&str], code: i32) -> String {
    let (slide, out) = (text(slide), text(out));
    let packages: Vec<String> = packages.iter().map(|p| text(p)).collect();
    let mut args = vec!["predict", &slide, "--out", &out];
    args.extend(packages.iter().flat_map(|p| ["--package", p.as_str()]));
    ran(&[&args[..], more].concat(), code)
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// A table by column.
fn table(path: &Path) -> BTreeMap<String, Vec<String>> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    let header: Vec<String> = reader.headers().unwrap().iter().map(String::from).collect();
    let mut columns: BTreeMap<String, Vec<String>> =
        header.iter().map(|name| (name.clone(), Vec::new())).collect();
    for record in reader.records() {
        for (name, cell) in header.iter().zip(record.unwrap().iter()) {
            columns.get_mut(name).unwrap().push(cell.into());
        }
    }
    columns
}

fn numbers(cells: &[String]) -> Vec<f64> {
    cells.iter().map(|cell| cell.parse().unwrap_or(f64::NAN)).collect()
}

fn close(got: f64, want: f64, bound: f64) {
    assert!((got - want).abs() <= bound * want.abs().max(1.0), "{got}, not {want}");
}

/// `numpy.quantile` by its definition.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q * (sorted.len() - 1) as f64;
    let (low, part) = (at as usize, at.fract());
    sorted[low] + (sorted[(low + 1).min(sorted.len() - 1)] - sorted[low]) * part
}

// ---- tests ----------------------------------------------------------------------------------

#[test]
fn an_ensemble_is_the_mean_of_its_packages_with_their_spread() {
    let dir = tempfile::tempdir().unwrap();
    let a = dir.path().join("a.svs");
    slide(&a, 3);
    // The last two share an encoder.
    let packages = [("one", "x"), ("two", "y"), ("three", "y")]
        .map(|(name, encoder)| score(dir.path(), name, encoder));
    let mut values = Vec::new();
    let mut tiles = Vec::new();
    for (i, package) in packages.iter().enumerate() {
        let out = dir.path().join(format!("alone-{i}"));
        predict(&a, &[package], &out, &[], 0);
        values.push(number(&json(&out.join("a/result.json"))["predictions"][0]["value"]));
        tiles.push(numbers(&table(&out.join("a/tiles.csv"))["prediction"]));
    }
    let mean = values.iter().sum::<f64>() / 3.0;
    let sd = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
    assert!(sd > 1e-3, "members that agree show nothing: {values:?}");

    let all: Vec<&Path> = packages.iter().map(PathBuf::as_path).collect();
    let out = dir.path().join("all");
    let said = predict(&a, &all, &out, &["--batch", "7"], 0);
    assert!(said.contains("SD of 3 packages"), "{said}");
    let result = json(&out.join("a/result.json"));
    let prediction = &result["predictions"][0];
    close(number(&prediction["value"]), mean, 1e-12);
    let spread = &prediction["ensemble"];
    close(number(&spread["sd"][0]), sd, 1e-12);
    assert_eq!(number(&spread["min"][0]), values.iter().copied().fold(f64::MAX, f64::min));
    assert_eq!(number(&spread["max"][0]), values.iter().copied().fold(f64::MIN, f64::max));
    for (i, value) in values.iter().enumerate() {
        assert_eq!(number(&spread["members"][i]["value"]), *value, "member {i}");
        let id = Package::open(&packages[i]).unwrap().recipe_id;
        assert_eq!(result["package"]["members"][i]["recipe_id"], id.as_str());
    }
    let cohort = table(&out.join("predictions.csv"));
    close(numbers(&cohort["value"])[0], mean, 1e-12);
    close(numbers(&cohort["sd"])[0], sd, 1e-12);
    assert_eq!(numbers(&cohort["member_3"]), [values[2]]);
    for (i, got) in numbers(&table(&out.join("a/tiles.csv"))["prediction"]).iter().enumerate() {
        close(*got, tiles.iter().map(|t| t[i]).sum::<f64>() / 3.0, 1e-6);
    }
    // The run is known by all its packages.
    assert!(predict(&a, &all, &out, &[], 0).contains("1 unchanged"));
    assert!(!predict(&a, &all[..2], &out, &[], 0).contains("unchanged"));
}

#[test]
fn an_ensemble_of_classifiers_has_a_spread_for_each_class() {
    let dir = tempfile::tempdir().unwrap();
    let a = dir.path().join("a.svs");
    slide(&a, 3);
    let packages = ["fold1", "fold2"].map(|name| diagnosis(dir.path(), name));
    let mut p = Vec::new();
    let mut weights = Vec::new();
    for (i, package) in packages.iter().enumerate() {
        let out = dir.path().join(format!("alone-{i}"));
        predict(&a, &[package], &out, &[], 0);
        let result = json(&out.join("a/result.json"));
        p.push(number(&result["predictions"][0]["probabilities"][1]));
        weights.push(numbers(&table(&out.join("a/attention.csv"))["softmax"]));
    }
    let out = dir.path().join("both");
    predict(&a, &[&packages[0], &packages[1]], &out, &[], 0);
    let cohort = table(&out.join("predictions.csv"));
    close(numbers(&cohort["p_tumour"])[0], (p[0] + p[1]) / 2.0, 1e-12);
    close(numbers(&cohort["sd_normal"])[0], (p[0] - p[1]).abs() / 2f64.sqrt(), 1e-12);
    assert_eq!(numbers(&cohort["member_2_tumour"]), [p[1]]);
    // The weight of a tile is the mean of its weights, its raw score their logarithm.
    let attention = table(&out.join("a/attention.csv"));
    let (raw, softmax) = (numbers(&attention["raw"]), numbers(&attention["softmax"]));
    for i in 0..softmax.len() {
        let mean = (weights[0][i] + weights[1][i]) / 2.0;
        close(softmax[i], mean, 1e-7);
        close(raw[i], mean.ln(), 1e-5);
    }
}

#[test]
fn packages_that_do_not_look_at_the_same_tiles_are_no_ensemble() {
    let dir = tempfile::tempdir().unwrap();
    let a = dir.path().join("a.svs");
    slide(&a, 3);
    let (one, two) = (score(dir.path(), "one", "x"), score(dir.path(), "two", "y"));
    let path = two.join("recipe.toml");
    let whole = fs::read_to_string(&path).unwrap();
    let out = dir.path().join("out");
    for (from, to, words) in [
        ("size_px = 128", "size_px = 256", "tiles.size_px (128, 256)"),
        ("min_area = 0.05", "min_area = 0.3", "tissue.min_area (0.05, 0.3)"),
        ("[encoder]", "resize = 96\n[encoder]", "preprocess.resize (absent, 96)"),
        ("name = \"score\"", "name = \"other\"", "differ in head."),
        ("[[head]]", "[stain]\nmethod = \"macenko\"\n[[head]]", "stain (absent, present)"),
        ("aggregate =", "transform = \"sigmoid\"\naggregate =", "head.score.transform"),
    ] {
        fs::write(&path, whole.replace(from, to)).unwrap();
        let error = predict(&a, &[&one, &two], &out, &[], 2);
        assert!(error.contains(words) && error.contains("one and "), "{error} lacks {words}");
    }
    // The normalisation is each network's own.
    fs::write(&path, whole.replace("0.485, 0.456, 0.406", "0.5, 0.5, 0.5")).unwrap();
    predict(&a, &[&one, &two], &out, &[], 0);
}

#[test]
fn a_gate_lets_only_its_tiles_into_the_score() {
    let dir = tempfile::tempdir().unwrap();
    let a = dir.path().join("a.svs");
    slide(&a, 3);
    let package = score(dir.path(), "score", "x");
    let before = Package::open(&package).unwrap();
    predict(&a, &[&package], &dir.path().join("open"), &[], 0);
    let ungated = table(&dir.path().join("open/a/tiles.csv"));

    let gate = |own: &str, more: &[&str], code: i32| {
        let path = dir.path().join(format!("{own}.safetensors"));
        checkpoint(&path, own, &[resnet18(4), linear("fc", 2, 64)].concat());
        let (path, package) = (text(&path), text(&package));
        let args = ["import", &path, "--family", "resnet18", "--gate", "cancer", "--package"];
        let rest = ["-o", &package, "--gate-classes", "benign,cancer"];
        ran(&[&args[..], &[&package], &rest, more].concat(), code)
    };
    assert!(gate("first", &[], 0).contains("by the mean of 1 classifiers"));
    assert!(gate("second", &[], 0).contains("by the mean of 2 classifiers"));
    assert!(gate("third", &["--gate-threshold", "0.9"], 2).contains("has 0.5"));
    let after = Package::open(&package).unwrap();
    assert_ne!(before.recipe_id, after.recipe_id);
    assert_ne!(before.encoder_id, after.encoder_id);
    let recipe_path = package.join("recipe.toml");
    let whole = fs::read_to_string(&recipe_path).unwrap();
    let threshold = |p: f64| {
        let edited = whole.replace("threshold = 0.5", &format!("threshold = {p:?}"));
        assert!(edited.contains(&format!("threshold = {p:?}")));
        fs::write(&recipe_path, edited).unwrap();
    };

    // Everything passes: the score of before.
    threshold(0.0);
    predict(&a, &[&package], &dir.path().join("all"), &[], 0);
    let all = table(&dir.path().join("all/a/tiles.csv"));
    assert_eq!(all["prediction"], ungated["prediction"]);
    let p = numbers(&all["p_cancer"]);
    assert!(p.iter().all(|p| (0.0..=1.0).contains(p)));

    // A threshold in the middle, on the nose of one tile, which passes.
    let mut sorted = p.clone();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted[sorted.len() / 2];
    assert!(sorted[0] < middle && middle < sorted[sorted.len() - 1]);
    threshold(middle);
    let mut first = None;
    for (threads, batch) in [("1", "1"), ("2", "7"), ("2", "64")] {
        let out = dir.path().join(format!("half-{batch}"));
        predict(&a, &[&package], &out, &["--threads", threads, "--batch", batch], 0);
        let bytes = fs::read(out.join("a/tiles.csv")).unwrap();
        assert!(*first.get_or_insert_with(|| bytes.clone()) == bytes, "batch {batch}");
    }
    let out = dir.path().join("half-7");
    let half = table(&out.join("a/tiles.csv"));
    assert_eq!(half["p_cancer"], all["p_cancer"]);
    let mut passing = Vec::new();
    for i in 0..p.len() {
        let passes = p[i] >= middle;
        assert_eq!(half["passed"][i], if passes { "1" } else { "0" });
        assert_eq!(half["prediction"][i], if passes { &all["prediction"][i] } else { "" });
        passing.extend(passes.then(|| numbers(&all["prediction"])[i]));
    }
    let result = json(&out.join("a/result.json"));
    // The aggregate reads what the head stored, FP16.
    close(number(&result["predictions"][0]["value"]), quantile(&passing, 0.75), 1e-3);
    let gated = (p.len() - passing.len()) as u64;
    assert!(gated > 0);
    assert_eq!(result["tiles"]["dropped"]["gated"], gated);
    assert_eq!(result["tiles"]["kept"], passing.len());
    assert_eq!(result["gate"]["looked_at"], p.len());
    assert_eq!(result["gate"]["passed"], passing.len());
    assert_eq!(result["gate"]["classifiers"], 2);

    // WEEP looks at those that have a prediction.
    let (tiles, weep) = (text(&out.join("a/tiles.csv")), text(&dir.path().join("weep")));
    let low = quantile(&passing, 0.3).to_string();
    let said = ran(&["explain", "weep", &tiles, "--threshold", &low, "-o", &weep, "--json"], 0);
    assert!(said.contains(&format!("\"tiles\": {}", passing.len())), "{said}");

    // Features are those of the tiles that passed, and predict the same.
    let folder = dir.path().join("features");
    let (slide_path, package_path) = (text(&a), text(&package));
    ran(&["features", &slide_path, "--package", &package_path, "--out", &text(&folder)], 0);
    let file = text(&folder.join("features_resnet18_layer3/a.h5"));
    let again = dir.path().join("again");
    let args = ["predict", "--features", &file, "--package", &package_path, "--out"];
    ran(&[&args[..], &[&text(&again)]].concat(), 0);
    let again = json(&again.join("a/result.json"));
    assert_eq!(again["predictions"], result["predictions"]);

    // Nothing passes: a row that says so, and no result.
    threshold(1.0);
    let out = dir.path().join("none");
    let said = predict(&a, &[&package], &out, &[], 3);
    assert!(said.contains("passed the gate: the highest probability of cancer is"), "{said}");
    let status = table(&out.join("status.csv"));
    assert_eq!(status["status"], ["empty"]);
    assert!(status["reason"][0].contains("needed 1"), "{status:?}");
    assert!(!out.join("a/result.json").exists());

    // One gate serves an ensemble; a second one is an error.
    threshold(middle);
    let other = score(dir.path(), "other", "y");
    let out = dir.path().join("ensemble");
    predict(&a, &[&other, &package], &out, &[], 0);
    let both = json(&out.join("a/result.json"));
    assert_eq!(both["tiles"]["kept"], passing.len());
    let members = &both["predictions"][0]["ensemble"]["members"];
    assert_eq!(members[1]["value"], result["predictions"][0]["value"]);
    fs::write(other.join("gate-1.safetensors"), "").unwrap();
    let gate = whole.split("[gate]").nth(1).unwrap().split("[[head]]").next().unwrap();
    let changed = format!("{}[gate]{gate}", recipe("other", SCORE));
    fs::write(other.join("recipe.toml"), changed).unwrap();
    let error = predict(&a, &[&other, &package], &out, &[], 2);
    assert!(error.contains("differ in gate"), "{error}");
}

#[test]
fn a_mask_says_where_to_look() {
    let dir = tempfile::tempdir().unwrap();
    let a = dir.path().join("a.svs");
    slide(&a, 3);
    let package = score(dir.path(), "score", "x");
    let run = |name: &str, more: &[&str], code: i32| {
        predict(&a, &[&package], &dir.path().join(name), more, code)
    };
    let tiles = |name: &str| table(&dir.path().join(name).join("a/tiles.csv"));
    let mask = |name: &str, [width, height]: [u32; 2], on: &dyn Fn(u32, u32) -> bool| {
        let path = dir.path().join(name);
        let mut encoder = png::Encoder::new(fs::File::create(&path).unwrap(), width, height);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::Eight);
        let pixel = |i: u32| if on(i % width, i / width) { 255u8 } else { 0 };
        let data: Vec<u8> = (0..width * height).map(pixel).collect();
        encoder.write_header().unwrap().write_image_data(&data).unwrap();
        text(&path)
    };
    run("open", &[], 0);
    let open = tiles("open");
    // At 1/64, what lies left of the middle of the tissue.
    let xs: Vec<i64> = open["x"].iter().map(|x| x.parse().unwrap()).collect();
    let cut = (xs.iter().min().unwrap() + xs.iter().max().unwrap() + 128) / 128;
    let left = |x: u32, _: u32| i64::from(x) < cut;
    let path = mask("left.png", [12, 10], &left);
    run("left", &["--mask", &path, "--mask-downsample", "64"], 0);
    let got = tiles("left");
    let wanted: Vec<usize> = (0..open["x"].len()).filter(|&i| xs[i] + 64 <= cut * 64).collect();
    assert!(!wanted.is_empty() && wanted.len() < open["x"].len());
    for column in ["x", "y", "prediction"] {
        let wanted: Vec<&String> = wanted.iter().map(|&i| &open[column][i]).collect();
        assert_eq!(got[column].iter().collect::<Vec<_>>(), wanted, "{column}");
    }
    let result = json(&dir.path().join("left/a/result.json"));
    let off = (open["x"].len() - wanted.len()) as u64;
    assert_eq!(result["tiles"]["dropped"]["off the mask"], off);
    assert!(result["regions"].as_str().unwrap().ends_with("within the mask"));
    assert_eq!(result["options"]["mask-downsample"], 64.0);

    // The same with rows along x, from a folder, as WEEP's authors store theirs.
    fs::create_dir(dir.path().join("masks")).unwrap();
    mask("masks/a.png", [10, 12], &|x, y| left(y, x));
    let masks = text(&dir.path().join("masks"));
    let transposed = ["--mask", &masks, "--mask-downsample", "64", "--mask-transposed"];
    run("transposed", &transposed, 0);
    assert_eq!(tiles("transposed"), got);

    let error = run("x", &transposed[..4], 3);
    assert!(error.contains("a mask of 10 x 12 px, but the slide of 768 x 640 px"), "{error}");
    assert!(error.contains("--mask-transposed"), "{error}");
    let none = mask("none.png", [12, 10], &|_, _| false);
    let error = run("none", &["--mask", &none, "--mask-downsample", "64"], 3);
    assert!(error.contains("empty: none of") && error.contains("lies on the mask"), "{error}");
    assert!(run("y", &["--mask", &none, "--mask-downsample", "0"], 2).contains("1 or more"));
}

#[test]
fn many_heads_are_asked_in_one_pass() {
    const HEADS: usize = 40;
    let dir = tempfile::tempdir().unwrap();
    let a = dir.path().join("a.svs");
    slide(&a, 3);
    let target = dir.path().join("genes");
    let mut writer = PackageWriter::create(&target, None).unwrap();
    writer.weights("encoder.safetensors", &arrays("shared", &resnet18(3))).unwrap();
    let mut heads = String::new();
    for i in 0..HEADS {
        let (name, file) = (format!("G{i}"), format!("G{i}.safetensors"));
        writer.weights(&file, &arrays(&name, &clam(1))).unwrap();
        heads.push_str(&format!(
            "[[head]]\nname = \"{name}\"\nfamily = \"clam-sb\"\nweights = \"{file}\"\n\
             transform = \"pow10-minus-one\"\n"
        ));
    }
    writer.finish(&recipe("genes", &heads)).unwrap();
    let (out, few) = (dir.path().join("out"), dir.path().join("few"));
    let said = predict(&a, &[&target], &out, &[], 0);
    assert!(said.contains("40 heads: predictions only, --maps writes their maps"), "{said}");
    let result = json(&out.join("a/result.json"));
    let predictions = result["predictions"].as_array().unwrap();
    assert_eq!(predictions.len(), HEADS);
    for p in predictions {
        // log10(1 + r) comes back as r.
        let logit = f64::from(number(&p["logits"][0]) as f32);
        close(number(&p["value"]), 10f64.powf(logit) - 1.0, 1e-12);
    }
    let values = numbers(&table(&out.join("predictions.csv"))["value"]);
    assert_eq!(values.len(), HEADS);
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder.join("a")).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    assert!(!names(&out).iter().any(|n| n.starts_with("attention") || n.starts_with("heatmap")));
    predict(&a, &[&target], &few, &["--maps", "G3,G7"], 0);
    let there = names(&few);
    for name in ["attention-G3.csv", "attention-G7.csv", "heatmap-G3.png", "heatmap-G7.png"] {
        assert!(there.contains(&name.to_string()), "{there:?}");
    }
    assert_eq!(there.iter().filter(|n| n.starts_with("attention")).count(), 2);
    assert_eq!(json(&few.join("a/result.json"))["predictions"], result["predictions"]);
    assert!(predict(&a, &[&target], &few, &["--maps", "G99"], 2).contains("no head G99"));

    // A gene set from a file: every head on every tile alone, averaged.
    let list = dir.path().join("set.txt");
    fs::write(&list, "# a set\nG1\nG2  # second\n\nABSENT\n").unwrap();
    let (slide_path, package, set) = (text(&a), text(&target), text(&list));
    let maps = dir.path().join("maps");
    let maps_path = text(&maps);
    let args = ["explain", "tiles", &slide_path, "--package", &package, "--heads-from", &set, "-o"];
    let args = [&args[..], &[&maps_path, "--raw-mean"]].concat();
    let error = ran(&args, 2);
    assert!(error.contains("has no head ABSENT (--skip-missing)"), "{error}");
    let said = ran(&[&args[..], &["--skip-missing"]].concat(), 0);
    assert!(said.contains("averaged over 2 heads; the package has no ABSENT"), "{said}");
    let tiles = table(&maps.join("tiles.csv"));
    let [mean, one, two] = ["mean", "G1", "G2"].map(|name| numbers(&tiles[name]));
    for i in 0..mean.len() {
        close(mean[i], (one[i] + two[i]) / 2.0, 1e-6);
    }
}
