//! The program end to end, as a user runs it: synthetic slides, narrow packages in the layouts of
//! the published systems, every output read back.

#[path = "common/slides.rs"]
mod slides;

use histokern::slide::synthetic::SpecimenSpec;
use histokern::weights::{Array, ArrayData, PackageWriter};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

// ---- packages -------------------------------------------------------------------------------

/// Numbers that look random and are the same everywhere: SplitMix64 of the name and the index.
fn noise(name: &str, n: usize, scale: f32) -> Vec<f32> {
    let mut state = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    (0..n)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 * scale - scale
        })
        .collect()
}

#[derive(Default)]
struct Weights(Vec<Array>);

impl Weights {
    fn matrix(&mut self, name: &str, shape: &[usize]) -> &mut Self {
        let n: usize = shape.iter().product();
        let scale = (6.0 / (n / shape[0]) as f32).sqrt();
        let data = noise(name, n, scale).into_iter().map(half::f16::from_f32).collect();
        self.0.push(Array { name: name.into(), shape: shape.to_vec(), data: ArrayData::F16(data) });
        self
    }

    fn vector(&mut self, name: &str, n: usize, offset: f32) -> &mut Self {
        let data = noise(name, n, 0.1).into_iter().map(|v| v + offset).collect();
        self.0.push(Array { name: name.into(), shape: vec![n], data: ArrayData::F32(data) });
        self
    }

    fn linear(&mut self, name: &str, k: usize, c: usize) -> &mut Self {
        self.matrix(&format!("{name}.weight"), &[k, c]).vector(&format!("{name}.bias"), k, 0.0)
    }

    fn norm(&mut self, name: &str, n: usize) -> &mut Self {
        self.vector(&format!("{name}.weight"), n, 1.0)
            .vector(&format!("{name}.bias"), n, 0.0)
            .vector(&format!("{name}.running_mean"), n, 0.0)
            .vector(&format!("{name}.running_var"), n, 1.0)
    }
}

/// VGG-11 with batch norm and a few channels, torchvision's keys.
fn vgg11_bn() -> Weights {
    let mut w = Weights::default();
    let layers = [(0, 3, 8), (4, 8, 8), (8, 8, 16), (11, 16, 16), (15, 16, 16), (18, 16, 16)];
    for (at, c, k) in layers.into_iter().chain([(22, 16, 16), (25, 16, 16)]) {
        w.matrix(&format!("features.{at}.weight"), &[k, c, 3, 3]);
        w.vector(&format!("features.{at}.bias"), k, 0.0);
        w.norm(&format!("features.{}", at + 1), k);
    }
    w
}

/// ResNet-18 up to layer3 with a base width of 8, torchvision's keys.
fn resnet18_layer3() -> Weights {
    let mut w = Weights::default();
    w.matrix("conv1.weight", &[8, 3, 7, 7]).norm("bn1", 8);
    for (layer, width) in [(1, 8), (2, 16), (3, 32)] {
        for block in 0..2 {
            let at = format!("layer{layer}.{block}");
            let c = if block == 0 && layer > 1 { width / 2 } else { width };
            w.matrix(&format!("{at}.conv1.weight"), &[width, c, 3, 3]);
            w.norm(&format!("{at}.bn1"), width);
            w.matrix(&format!("{at}.conv2.weight"), &[width, width, 3, 3]);
            w.norm(&format!("{at}.bn2"), width);
            if c != width {
                w.matrix(&format!("{at}.downsample.0.weight"), &[width, c, 1, 1]);
                w.norm(&format!("{at}.downsample.1"), width);
            }
        }
    }
    w
}

const HEADER: &str = "schema = 1\ntitle = \"test\"\nlicence = \"MIT\"\nsource = \"formula\"\n";
const IMAGENET: &str = "mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n";

/// BALNMP's layout: 256 px at level 0, white rule, resize, VGG, bags of ten, clinical data.
fn balnmp(dir: &Path, bn_mode: &str) -> PathBuf {
    let target = dir.join(format!("balnmp-{bn_mode}"));
    let mut head = Weights::default();
    head.linear("attention_aggregator.fc1.0", 12, 16 * 49)
        .linear("attention_aggregator.attention.0", 1, 12)
        .linear("attention_aggregator.attention.3", 1, 1)
        .linear("classifier.0", 8, 12 + 20)
        .linear("classifier.2", 2, 8);
    let recipe = format!(
        "{HEADER}name = \"balnmp-{bn_mode}\"\n[tissue]\nmethod = \"regions\"\n[tiles]\nsize_px = 128\n\
         max_white = 0.3\n[preprocess]\nresize = 64\n{IMAGENET}[encoder]\nfamily = \"vgg11_bn\"\n\
         bn_mode = \"{bn_mode}\"\n[bag]\nsize = 10\nshuffle_seed = 8888\n[[head]]\n\
         name = \"metastasis\"\nfamily = \"balnmp\"\nclasses = [\"N0\", \"N+\"]\nclinical = [\n\
         {{ column = \"Age(years)\", mean = 57.8, sd = 12.4 }},\n\
         {{ column = \"ER\", equals = \"Negative\", otherwise = [\"Positive\"] }},\n]\n"
    );
    let mut writer = PackageWriter::create(&target, None).unwrap();
    writer.weights("encoder.safetensors", &vgg11_bn().0).unwrap();
    writer.weights("head.safetensors", &head.0).unwrap();
    writer.finish(&recipe).unwrap();
    target
}

/// HistCode's layout: CLAM tissue, level-0 tiles without resize, truncated ResNet, two heads.
fn histcode(dir: &Path) -> PathBuf {
    let target = dir.join("histcode");
    let head = |classes: usize, branches: usize| {
        let mut w = Weights::default();
        w.linear("attention_net.0", 16, 32)
            .linear("attention_net.2.attention_a.0", 8, 16)
            .linear("attention_net.2.attention_b.0", 8, 16)
            .linear("attention_net.2.attention_c", branches, 8);
        if branches == 1 {
            w.linear("classifiers", classes, 16);
        } else {
            for class in 0..classes {
                w.linear(&format!("classifiers.{class}"), 1, 16);
            }
        }
        w
    };
    let recipe = format!(
        "{HEADER}name = \"histcode\"\n[tissue]\nmethod = \"clam\"\ndownsample = 16.0\nmin_area = 0.2\n\
         [tiles]\nsize_px = 128\n[preprocess]\n{IMAGENET}[encoder]\nfamily = \"resnet18\"\n\
         truncate = \"layer3\"\n[[head]]\nname = \"gene\"\nfamily = \"clam-sb\"\n\
         weights = \"gene.safetensors\"\ntransform = \"pow10-minus-one\"\n[[head]]\n\
         name = \"diagnosis\"\nfamily = \"clam-mb\"\nweights = \"diagnosis.safetensors\"\n\
         classes = [\"normal\", \"tumour\"]\n"
    );
    let mut writer = PackageWriter::create(&target, None).unwrap();
    writer.weights("encoder.safetensors", &resnet18_layer3().0).unwrap();
    writer.weights("gene.safetensors", &head(1, 1).0).unwrap();
    writer.weights("diagnosis.safetensors", &head(2, 2).0).unwrap();
    writer.finish(&recipe).unwrap();
    target
}

// ---- slides and the program -----------------------------------------------------------------

fn slide(path: &Path, seed: u64) {
    slides::write(
        path,
        &SpecimenSpec { seed, fraction: None, width: 1536, height: 1280, mpp: 0.5 },
    );
}

fn histokern(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_histokern")).args(args).output().unwrap()
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(path.as_os_str().as_encoded_bytes()).into_owned()
}

fn check(output: &Output, code: i32) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{err}");
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn clinical(&self, rows: &str) -> PathBuf {
        let path = self.path("clinical.csv");
        fs::write(&path, format!("Patient ID,Age(years),ER\n{rows}")).unwrap();
        path
    }
}

/// The parts of a result that must not depend on how the program was run.
fn answer(dir: &Path) -> (Value, Vec<u8>, Vec<u8>) {
    let result = json(&dir.join("result.json"));
    (
        result["predictions"].clone(),
        fs::read(dir.join("attention.csv")).unwrap(),
        fs::read(dir.join("heatmap.png")).unwrap(),
    )
}

// ---- tests ----------------------------------------------------------------------------------

#[test]
fn the_same_bits_however_the_program_is_run() {
    let bench = Bench::new();
    slide(&bench.path("a.svs"), 3);
    let clinical = bench.clinical("a,61,Negative\n");
    let packages = [
        histcode(bench.dir.path()),
        balnmp(bench.dir.path(), "batch"),
        balnmp(bench.dir.path(), "running"),
    ];
    for package in &packages {
        let mut first = None;
        for (run, (threads, batch)) in
            [("1", "1"), ("2", "7"), ("2", "32"), ("2", "32"), ("1", "7")].into_iter().enumerate()
        {
            let out = bench.path(&format!("{}-{run}", package.file_name().unwrap().display()));
            let output = histokern(&[
                "predict",
                &text(&bench.path("a.svs")),
                "--package",
                &text(package),
                "--clinical",
                &text(&clinical),
                "--out",
                &text(&out),
                "--threads",
                threads,
                "--batch",
                batch,
                "--quiet",
            ]);
            check(&output, 0);
            let now = answer(&out.join("a"));
            let rows = now.1.iter().filter(|&&b| b == b'\n').count();
            assert!(rows > 20, "only {rows} tiles: the test says nothing");
            let first = first.get_or_insert_with(|| now.clone());
            assert!(
                *first == now,
                "{} differs with {threads} threads, batch {batch}",
                package.display()
            );
        }
    }
}

#[test]
fn a_finished_slide_is_done_again_only_when_something_changed() {
    let bench = Bench::new();
    slide(&bench.path("a.svs"), 3);
    let package = histcode(bench.dir.path());
    let out = bench.path("out");
    let args = [
        "predict",
        &text(&bench.path("a.svs")),
        "--package",
        &text(&package),
        "--out",
        &text(&out),
    ];
    let status = || fs::read_to_string(out.join("status.csv")).unwrap();
    check(&histokern(&args), 0);
    let first = answer(&out.join("a"));
    assert!(status().contains("a.svs,done,"), "{}", status());
    let stamp = fs::metadata(out.join("a/result.json")).unwrap().modified().unwrap();

    check(&histokern(&args), 0);
    assert!(status().contains("a.svs,skipped,"), "{}", status());
    assert_eq!(fs::metadata(out.join("a/result.json")).unwrap().modified().unwrap(), stamp);
    assert!(fs::read_to_string(out.join("predictions.csv")).unwrap().lines().count() == 3);

    // An interrupted run leaves no result.json: the slide is done again, with the same bits.
    fs::remove_file(out.join("a/result.json")).unwrap();
    check(&histokern(&args), 0);
    assert!(status().contains("a.svs,done,"), "{}", status());
    assert!(answer(&out.join("a")) == first);

    // Another recipe, another slide under the same name, another pixel size: each is a new run.
    let recipe = package.join("recipe.toml");
    let changed = fs::read_to_string(&recipe).unwrap().replace("pow10-minus-one", "none");
    fs::write(&recipe, changed).unwrap();
    check(&histokern(&args), 0);
    assert!(status().contains("a.svs,done,"), "{}", status());
    slide(&bench.path("a.svs"), 4);
    check(&histokern(&args), 0);
    assert!(status().contains("a.svs,done,"), "{}", status());
    check(&histokern(&[&args[..], &["--mpp-override", "0.25"]].concat()), 0);
    assert!(status().contains("a.svs,done,"), "{}", status());
}

#[test]
fn a_bad_slide_is_reported_and_the_others_are_done() {
    let bench = Bench::new();
    slide(&bench.path("good.svs"), 3);
    let bytes = fs::read(bench.path("good.svs")).unwrap();
    fs::write(bench.path("short.svs"), &bytes[..bytes.len() / 2]).unwrap();
    fs::write(bench.path("text.svs"), "not a slide").unwrap();
    let package = histcode(bench.dir.path());
    let out = bench.path("out");
    let paths = ["text.svs", "short.svs", "missing.svs", "good.svs"].map(|n| text(&bench.path(n)));
    let mut args = vec!["predict"];
    args.extend(paths.iter().map(String::as_str));
    let (package, out_text) = (text(&package), text(&out));
    args.extend(["--package", &package, "--out", &out_text]);
    let output = histokern(&args);
    check(&output, 3);
    let err = String::from_utf8_lossy(&output.stderr);
    for name in ["text.svs", "short.svs", "missing.svs"] {
        assert!(err.contains(name), "{name} is not named in: {err}");
    }
    let status = fs::read_to_string(out.join("status.csv")).unwrap();
    assert_eq!(status.matches(",failed,").count(), 3, "{status}");
    assert!(status.contains("good.svs,done,"), "{status}");
    assert!(out.join("good/result.json").exists());
    assert!(!out.join("text").exists());

    args.push("--fail-fast");
    check(&histokern(&args), 1);
    let status = fs::read_to_string(out.join("status.csv")).unwrap();
    assert_eq!(status.lines().count(), 2, "{status}");
}

#[test]
fn a_tile_that_cannot_be_decoded_is_listed_and_left_out() {
    let bench = Bench::new();
    slide(&bench.path("a.svs"), 3);
    let mut bytes = fs::read(bench.path("a.svs")).unwrap();
    // Level-0 tiles come first in the file: spoil the entropy-coded data of one in the middle.
    let start = bytes.windows(2).enumerate().filter(|(_, w)| w == b"\xff\xd8").nth(65).unwrap().0;
    bytes[start + 40..start + 400].fill(0xff);
    fs::write(bench.path("a.svs"), bytes).unwrap();
    let package = histcode(bench.dir.path());
    let out = bench.path("out");
    let slide = text(&bench.path("a.svs"));
    check(&histokern(&["predict", &slide, "--package", &text(&package), "--out", &text(&out)]), 0);
    let result = json(&out.join("a/result.json"));
    let unread = result["tiles"]["unread"].as_array().unwrap();
    assert!(!unread.is_empty(), "{result:#}");
    assert!(unread[0]["reason"].as_str().unwrap().contains("tile"), "{unread:?}");
    let kept = result["tiles"]["kept"].as_u64().unwrap() as usize;
    assert_eq!(kept + unread.len(), result["tiles"]["grid"].as_u64().unwrap() as usize);
    assert!(result["warnings"].to_string().contains("could not be read"));
}

#[test]
fn features_of_every_layout_predict_as_the_slide_does() {
    let bench = Bench::new();
    slide(&bench.path("a.svs"), 3);
    let package = histcode(bench.dir.path());
    let (slide, package) = (text(&bench.path("a.svs")), text(&package));
    let out = bench.path("slide");
    check(&histokern(&["predict", &slide, "--package", &package, "--out", &text(&out)]), 0);
    let wanted = json(&out.join("a/result.json"))["predictions"].clone();
    for (format, file) in
        [("trident", "features_resnet18_layer3/a.h5"), ("clam", "h5_files/a.h5"), ("stamp", "")]
    {
        let folder = bench.path(format);
        let args = ["features", &slide, "--package", &package, "--format", format, "--out"];
        check(&histokern(&[&args[..], &[&text(&folder)]].concat()), 0);
        let file = if file.is_empty() {
            let found = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path());
            let name = |p: &PathBuf| p.file_name().unwrap().to_string_lossy().into_owned();
            found.into_iter().find(|p| name(p).starts_with("resnet18")).unwrap().join("a.h5")
        } else {
            folder.join(file)
        };
        let out = bench.path(&format!("{format}-out"));
        let args = ["predict", "--features", &text(&file), "--package", &package, "--out"];
        check(&histokern(&[&args[..], &[&text(&out)]].concat()), 0);
        let got = json(&out.join("a/result.json"))["predictions"].clone();
        if format == "stamp" {
            // STAMP's files hold FP16.
            let value = |v: &Value| v[0]["value"].as_f64().unwrap();
            assert!((value(&got) - value(&wanted)).abs() < 1e-2 * value(&wanted).abs().max(1.0));
        } else {
            assert_eq!(got, wanted, "{format}");
        }
    }
    // Features of another recipe are refused unless the user insists.
    let recipe = Path::new(&package).join("recipe.toml");
    let changed = fs::read_to_string(&recipe).unwrap().replace("size_px = 128", "size_px = 256");
    fs::write(&recipe, changed).unwrap();
    let file = text(&bench.path("trident").join("features_resnet18_layer3/a.h5"));
    let out = text(&bench.path("other"));
    let args = ["predict", "--features", &file, "--package", &package, "--out", &out];
    let output = histokern(&args);
    check(&output, 3);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--any-encoder"));
    check(&histokern(&[&args[..], &["--any-encoder"]].concat()), 0);
}

#[test]
fn clinical_values_are_asked_for_by_patient_and_column() {
    let bench = Bench::new();
    slide(&bench.path("a.svs"), 3);
    slide(&bench.path("b.svs"), 4);
    let package = text(&balnmp(bench.dir.path(), "running"));
    let slides = ["a.svs", "b.svs"].map(|n| text(&bench.path(n)));
    let out = bench.path("out");
    let run = |clinical: Option<&Path>| {
        let clinical = clinical.map(text);
        let mut args = vec!["predict", &slides[0], &slides[1], "--package", &package, "--out"];
        let out = text(&out);
        args.push(&out);
        args.extend(clinical.iter().flat_map(|c| ["--clinical", c.as_str()]));
        histokern(&args)
    };
    let output = run(None);
    check(&output, 3);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--clinical"));
    let output = run(Some(&bench.clinical("a,61,Negative\nb,,Positive\n")));
    check(&output, 3);
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(err.contains("\"b\"") && err.contains("Age(years)"), "{err}");
    let young = json(&out.join("a/result.json"))["predictions"].clone();
    check(&run(Some(&bench.clinical("a,95,Positive\nb,40,Positive\n"))), 0);
    let old = json(&out.join("a/result.json"));
    assert_ne!(young, old["predictions"], "clinical values change nothing");
    assert_eq!(old["clinical"]["ER"], "0");
}

#[test]
fn annotated_regions_decide_where_to_look() {
    let bench = Bench::new();
    slide(&bench.path("a.svs"), 3);
    let package = text(&balnmp(bench.dir.path(), "running"));
    let clinical = text(&bench.clinical("a,61,Negative\n"));
    let regions = bench.path("a.json");
    let polygon = "[[100,100],[1400,120],[1380,1200],[90,1180]]";
    fs::write(
        &regions,
        format!("{{\"positive\":[{{\"name\":\"r\",\"vertices\":{polygon}}}],\"negative\":[]}}"),
    )
    .unwrap();
    let out = bench.path("out");
    let args = [
        "predict",
        &text(&bench.path("a.svs")),
        "--package",
        &package,
        "--clinical",
        &clinical,
        "--regions",
        &text(&regions),
        "--out",
        &text(&out),
    ];
    check(&histokern(&args), 0);
    let result = json(&out.join("a/result.json"));
    assert_eq!(result["regions"], "1 annotated regions");
    let attention = fs::read_to_string(out.join("a/attention.csv")).unwrap();
    for line in attention.lines().skip(1) {
        let xy: Vec<i64> = line.split(',').take(2).map(|v| v.parse().unwrap()).collect();
        // The grid starts at the corner of the polygon's box.
        assert_eq!([(xy[0] - 90) % 128, (xy[1] - 100) % 128], [0, 0], "{line}");
    }
    // Bags of ten: a multiple of ten tiles, softmax summing to one per bag.
    let bags = result["predictions"][0]["bags"].as_array().unwrap().len();
    let sum: f64 = attention
        .lines()
        .skip(1)
        .map(|l| l.split(',').nth(3).unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(attention.lines().count() - 1, bags * 10);
    assert!((sum - bags as f64).abs() < 1e-4, "{sum} over {bags} bags");
}

#[test]
fn a_bag_list_predicts_patients_from_their_images() {
    let bench = Bench::new();
    slide(&bench.path("a.svs"), 3);
    let slide = text(&bench.path("a.svs"));
    let mut bags = Vec::new();
    for bag in 0..3 {
        let mut paths = Vec::new();
        for tile in 0..10 {
            let name = format!("{bag}_{tile}.png");
            let (x, y) = ((200 + 90 * tile).to_string(), (300 + 200 * bag).to_string());
            let at = ["--level", "0", "--x", &x, "--y", &y, "--width", "128", "--height", "128"];
            let image = text(&bench.path(&name));
            check(&histokern(&[&["region", &slide][..], &at, &["-o", &image]].concat()), 0);
            paths.push(format!("\"{name}\""));
        }
        let id = if bag == 1 { "q" } else { "p" };
        bags.push(format!(
            "{{\"id\":\"{id}\",\"label\":\"0\",\"patch_paths\":[{}]}}",
            paths.join(",")
        ));
    }
    let list = bench.path("bags.json");
    fs::write(&list, format!("[{}]", bags.join(","))).unwrap();
    let clinical = text(&bench.clinical("p,61,Negative\nq,50,Positive\n"));
    let images = text(bench.dir.path());
    let mut answers = Vec::new();
    for mode in ["batch", "running"] {
        let package = text(&balnmp(bench.dir.path(), mode));
        let out = bench.path(&format!("out-{mode}"));
        let args = [
            "predict",
            "--bags",
            &text(&list),
            "--images",
            &images,
            "--package",
            &package,
            "--clinical",
            &clinical,
            "--out",
            &text(&out),
            "--batch",
            "4",
        ];
        check(&histokern(&args), 0);
        let p = json(&out.join("p/result.json"))["predictions"][0].clone();
        let bags: Vec<f64> = p["bags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|b| b["probabilities"][1].as_f64().unwrap())
            .collect();
        assert_eq!(bags.len(), 2);
        // The patient's score is the mean over bags.
        let mean = (bags[0] + bags[1]) / 2.0;
        assert!((p["probabilities"][1].as_f64().unwrap() - mean).abs() < 1e-12);
        let attention = fs::read_to_string(out.join("q/attention.csv")).unwrap();
        assert_eq!(attention.lines().count(), 11);
        assert!(attention.contains("1_3.png,0,"), "{attention}");
        answers.push(p);
    }
    assert_ne!(answers[0], answers[1], "the statistics of the bag change nothing");
}

#[test]
fn a_slide_without_tissue_says_why_it_is_empty() {
    let bench = Bench::new();
    slide(&bench.path("a.svs"), 3);
    let package = histcode(bench.dir.path());
    let recipe = package.join("recipe.toml");
    let changed =
        fs::read_to_string(&recipe).unwrap().replace("min_area = 0.2", "min_area = 500.0");
    fs::write(&recipe, changed).unwrap();
    let out = bench.path("out");
    let slide = text(&bench.path("a.svs"));
    let output =
        histokern(&["predict", &slide, "--package", &text(&package), "--out", &text(&out)]);
    check(&output, 3);
    let status = fs::read_to_string(out.join("status.csv")).unwrap();
    assert!(status.contains("a.svs,empty,") && status.contains("min_area"), "{status}");
}

#[test]
fn wrong_usage_is_told_from_failure() {
    let bench = Bench::new();
    check(&histokern(&["predict"]), 2);
    check(&histokern(&["info"]), 2);
    let nowhere = text(&bench.path("nowhere"));
    let out = text(&bench.path("out"));
    let output = histokern(&["predict", "a.svs", "--package", &nowhere, "--out", &out]);
    check(&output, 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere"));
    let package = text(&histcode(bench.dir.path()));
    let args = ["predict", "a.svs", "--package", &package, "--out", &out, "--device", "cuda:9"];
    let output = histokern(&args);
    check(&output, 1);
    assert!(String::from_utf8_lossy(&output.stderr).contains("cuda:9"));
    let args = ["predict", "x/a.svs", "y/a.svs", "--package", &package, "--out", &out];
    let output = histokern(&args);
    check(&output, 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("named a"));
}
