//! Pictures against pydicom and Pillow, masks against `scipy.ndimage`, fusion against numpy, Grad-CAM
//! against PyTorch's autograd (`golden/pictures/make.py`), and the verbs on pictures end to end.

#[path = "models/formula.rs"]
mod formula;

use formula::{F32, compare, listed, pictures};
use histokern::backend::{Input, check};
use histokern::cpu::CpuBackend;
use histokern::image::mask::{
    area, bounding_box, clean, dice, fill_holes, fuse, largest_component,
};
use histokern::image::pad::pad;
use histokern::image::{GrayImage, Rect, RgbImage};
use histokern::models;
use histokern::picture;
use histokern::pipeline::gradcam;
use histokern::pipeline::images::Segmenters;
use histokern::recipe::{Connectivity, Fusion, FusionRule};
use histokern::weights::Package;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pictures").join(name)
}

fn values() -> Value {
    serde_json::from_str(&fs::read_to_string(golden("values.json")).unwrap()).unwrap()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

#[test]
fn dicom_files_have_the_pixels_that_pydicom_reads() {
    let values = values();
    let files = values["dicom"]["files"].as_object().unwrap();
    assert!(files.len() > 20);
    for (name, want) in files.iter().filter(|(name, _)| !name.starts_with("bad_")) {
        let picture = picture::open(&golden(&format!("{name}.dcm"))).unwrap();
        assert_eq!(picture.format, "dicom");
        let image = picture.image;
        assert_eq!((image.width, image.height), (26, 20), "{name}");
        let first: Vec<u64> = list(&want["first"]).iter().map(|v| v.as_u64().unwrap()).collect();
        let got: Vec<u64> = image.data[..24].iter().map(|&v| v.into()).collect();
        assert_eq!(got, first, "{name}");
        let sha: String = Sha256::digest(&image.data).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(sha, want["sha256"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn dicom_files_that_cannot_be_read_name_the_tag() {
    let values = values();
    let files = values["dicom"]["files"].as_object().unwrap();
    let mut bad = 0;
    for (name, want) in files.iter().filter(|(name, _)| name.starts_with("bad_")) {
        let path = golden(&format!("{name}.dcm"));
        let error = picture::open(&path).unwrap_err().to_string();
        let wanted = format!("{}: {}", path.display(), want["error"].as_str().unwrap());
        assert!(error.starts_with(&wanted), "{error}\n{wanted}");
        bad += 1;
    }
    assert!(bad >= 10);
}

/// Every prefix of a file, and files with bytes changed: an error or a picture, never a panic.
#[test]
fn damaged_dicom_files_are_errors_or_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.dcm");
    let mut state = 7u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let (mut read, mut refused) = (0, 0);
    for name in ["rgb_sequences", "jpeg_422", "mono2_12_window", "mono1_8_implicit"] {
        let bytes = fs::read(golden(&format!("{name}.dcm"))).unwrap();
        for end in (132..bytes.len() - 1).step_by(7) {
            fs::write(&path, &bytes[..end]).unwrap();
            assert!(picture::open(&path).is_err(), "{name} cut at {end}");
        }
        for _ in 0..300 {
            let mut damaged = bytes.clone();
            for _ in 0..1 + random(3) {
                let at = 132 + random(bytes.len() - 132);
                damaged[at] = random(256) as u8;
            }
            fs::write(&path, &damaged).unwrap();
            match picture::open(&path) {
                Ok(_) => read += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(read > 100 && refused > 100, "{read} read, {refused} refused");
}

fn mask(rows: &Value) -> GrayImage {
    let rows: Vec<&str> = list(rows).iter().map(|row| row.as_str().unwrap()).collect();
    let data = rows.iter().flat_map(|row| row.bytes().map(|b| if b == b'#' { 255 } else { 0 }));
    GrayImage { width: rows[0].len(), height: rows.len(), data: data.collect() }
}

#[test]
fn components_and_holes_are_those_of_scipy() {
    let values = values();
    for case in list(&values["masks"]) {
        let input = mask(&case["mask"]);
        assert_eq!(fill_holes(&input), mask(&case["filled"]), "{case}");
        for (key, connectivity) in [("4", Connectivity::Four), ("8", Connectivity::Eight)] {
            let want = &case[key];
            assert_eq!(largest_component(&input, connectivity), mask(&want["largest"]), "{case}");
            let cleaned = clean(&input, &Fusion { connectivity, ..Fusion::default() });
            assert_eq!(cleaned, mask(&want["clean"]), "{case}");
            let [x, y, width, height] =
                [0, 1, 2, 3].map(|i| want["box"][i].as_u64().unwrap() as usize);
            assert_eq!(bounding_box(&cleaned), Some(Rect { x, y, width, height }));
            assert_eq!(area(&cleaned) as u64, want["area"].as_u64().unwrap());
            let got = dice(&cleaned, &mask(&case["other"]));
            assert!((got - want["dice"].as_f64().unwrap()).abs() < 1e-12, "{got}");
        }
    }
}

#[test]
fn fused_masks_are_those_of_numpy() {
    let values = values();
    for case in list(&values["fusions"]) {
        let maps: Vec<Vec<f32>> = list(&case["maps"])
            .iter()
            .map(|map| list(map).iter().map(|v| v.as_f64().unwrap() as f32).collect())
            .collect();
        let maps: Vec<&[f32]> = maps.iter().map(Vec::as_slice).collect();
        let width = case["width"].as_u64().unwrap() as usize;
        let threshold = case["threshold"].as_f64().unwrap();
        for rule in
            [FusionRule::Mean, FusionRule::Vote, FusionRule::Union, FusionRule::Intersection]
        {
            let fusion = Fusion { rule, threshold, ..Fusion::default() };
            assert_eq!(fuse(&maps, width, &fusion), mask(&case[rule.name()]), "{rule:?} {case}");
        }
    }
}

/// A package of a golden classifier: the encoder, and its last layer as the head.
fn classifier(folder: &Path, case: &Value) -> Package {
    let (family, last) = (case["family"].as_str().unwrap(), case["last"].as_str().unwrap());
    let file = case["file"].as_str().unwrap();
    let packed = fs::File::open(golden(&format!("{file}.tsv.gz"))).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    let (head, encoder): (Vec<(String, F32)>, Vec<_>) =
        listed(&text).into_iter().partition(|(name, _)| name.starts_with(last));
    let write = |name: &str, tensors: Vec<(String, F32)>| {
        fs::write(folder.join(name), safetensors::serialize(tensors, None).unwrap()).unwrap();
    };
    write("encoder.safetensors", encoder);
    write("head.safetensors", head);
    let recipe = format!(
        "schema = 1\nname = \"t\"\ntitle = \"t\"\nlicence = \"t\"\nsource = \"t\"\n[image]\n\
         [preprocess]\nresize = {}\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n\
         [encoder]\nfamily = \"{family}\"\n[[head]]\nname = \"sln\"\nfamily = \"tile-linear\"\n\
         classes = [\"0\", \"1\"]\naggregate = \"mean\"\n",
        case["side"]
    );
    fs::write(folder.join("recipe.toml"), recipe).unwrap();
    Package::open(folder).unwrap()
}

#[test]
fn gradcam_is_that_of_autograd() {
    let values = values();
    let backend = CpuBackend::new(2, None).unwrap();
    for case in list(&values["gradcam"]) {
        let folder = tempfile::tempdir().unwrap();
        let package = classifier(folder.path(), case);
        let side = case["side"].as_u64().unwrap() as usize;
        let file = case["file"].as_str().unwrap();
        let pixels = pictures(&format!("{file} picture"), 1, side);
        for (class, want) in list(&case["classes"]).iter().enumerate() {
            let got = gradcam::activation(&package, &backend, [0, class], &pixels).unwrap();
            assert!(got.layer.starts_with(case["layer"].as_str().unwrap()), "{}", got.layer);
            let shape = [got.signed.height, got.signed.width].map(|n| n as u64);
            assert_eq!([0, 1].map(|i| case["shape"][i].as_u64().unwrap()), shape);
            let signed: Vec<f32> =
                list(&want["signed"]).iter().map(|v| v.as_f64().unwrap() as f32).collect();
            let (error, cosine) = compare(&got.signed.data, &signed);
            println!("{file} class {class}: error {error:.2e}, cosine {cosine:.7}");
            assert!(error < 4e-3 && cosine > 0.9999, "{file}: {:?} {signed:?}", got.signed.data);
            let (logit, size) = (want["logit"].as_f64().unwrap(), signed.iter().map(|v| v.abs()));
            assert!((got.logit - logit).abs() < 4e-3 * f64::from(size.sum::<f32>()), "{logit}");
            let normalised = got.normalised();
            assert!(normalised.data.iter().all(|v| (0.0..=1.0).contains(v)));
        }
    }
}

#[test]
fn gradcam_of_other_networks_is_refused() {
    let values = values();
    let case = &values["gradcam"][0];
    let backend = CpuBackend::new(2, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    classifier(folder.path(), case);
    let path = folder.path().join("recipe.toml");
    let text = fs::read_to_string(&path).unwrap().replace("tile-linear", "abmil");
    fs::write(&path, text.replace("aggregate = \"mean\"\n", "")).unwrap();
    let package = Package::open(folder.path()).unwrap();
    let pixels = vec![0; 96 * 96 * 3];
    let error = gradcam::activation(&package, &backend, [0, 1], &pixels).unwrap_err().to_string();
    assert!(error.contains("abmil is not one linear layer"), "{error}");
}

/// A golden network of tests/families.rs: its weights by the formula.
fn segmenter(folder: &Path, file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families");
    let packed = fs::File::open(path.join(format!("{file}.tsv.gz"))).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    let bytes = safetensors::serialize(listed(&text), None).unwrap();
    fs::write(folder.join(format!("{file}.safetensors")), bytes).unwrap();
}

/// A package with two segmenters, one of which resizes, and a classifier; `fusion` are lines of its
/// `[fusion]` and `image` of its `[image]`.
fn package(folder: &Path, fusion: &str, image: &str) -> PathBuf {
    let dir = folder.join("package");
    fs::create_dir_all(&dir).unwrap();
    classifier(&dir, &values()["gradcam"][0]);
    segmenter(&dir, "unet");
    segmenter(&dir, "smp_unet_resnet50");
    let one = |name: &str, family: &str, file: &str, resize: &str| {
        format!(
            "[[segmenter]]\nname = \"{name}\"\nfamily = \"{family}\"\n\
             weights = \"{file}.safetensors\"\noutput = \"sigmoid\"\n[segmenter.preprocess]\n\
             {resize}mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"
        )
    };
    let path = dir.join("recipe.toml");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace("[image]\n", &format!("[image]\n{image}[fusion]\n{fusion}"));
    let text = text
        + &one("own-size", "unet", "unet", "")
        + &one("resized", "smp-unet-resnet50", "smp_unet_resnet50", "resize = 64\n");
    fs::write(&path, text).unwrap();
    dir
}

/// The channel of a map that the recipe calls foreground, of a picture whose sides are no multiples
/// of what the network needs.
#[test]
fn the_foreground_of_several_channels_is_the_one_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = "deeplabv3_resnet50";
    segmenter(folder.path(), file);
    let backend = CpuBackend::new(2, None).unwrap();
    let [width, height] = [70, 45];
    let square = pictures("foreground", 1, 96);
    let rows = |w: usize, h: usize| -> Vec<u8> {
        square.chunks_exact(96 * 3).take(h).flat_map(|row| &row[..w * 3]).copied().collect()
    };
    let image = RgbImage { width, height, data: rows(width, height) };
    let mut masks = Vec::new();
    for foreground in 0..3 {
        let recipe = format!(
            "schema = 1\nname = \"t\"\ntitle = \"t\"\nlicence = \"t\"\nsource = \"t\"\n[image]\n\
             [fusion]\nthreshold = 0.3\nlargest = false\nfill_holes = false\n\
             [preprocess]\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n\
             [encoder]\nfamily = \"none\"\n[[segmenter]]\nname = \"a\"\nfamily = \"{file}\"\n\
             weights = \"{file}.safetensors\"\noutput = \"softmax\"\nforeground = {foreground}\n\
             [segmenter.preprocess]\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"
        );
        fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
        let package = Package::open(folder.path()).unwrap();
        let spec = &package.recipe.segmenters[0];
        let padded = pad(&image, 32, [0; 3]).unwrap();
        let size = [padded.image.height, padded.image.width];
        let weights = package.weights(&spec.weights).unwrap();
        let network = models::build_segmenter(spec, size, &weights).unwrap();
        let pixels = [Input::Pixels(&padded.image.data)];
        let map = check::run_once(&backend, &network.graph, 1, &pixels).unwrap().remove(0);
        let map = padded.crop(&map, 3).unwrap();
        let want = map.chunks_exact(3).map(|p| if p[foreground] >= 0.3 { 255 } else { 0 });
        let want = GrayImage { width, height, data: want.collect() };
        let mut segmenters = Segmenters::open(&package, &backend).unwrap();
        let got = segmenters.segment(&image).unwrap();
        assert_eq!(got.fused.mask, want);
        assert_eq!(got.each[0].raw, want);
        masks.push(area(&want));
    }
    assert!(masks[0] != masks[1] && masks[1] != masks[2], "{masks:?}");
    let path = folder.path().join("recipe.toml");
    let text = fs::read_to_string(&path).unwrap().replace("foreground = 2", "foreground = 3");
    fs::write(&path, text).unwrap();
    let package = Package::open(folder.path()).unwrap();
    let error = Segmenters::open(&package, &backend).err().unwrap().to_string();
    assert!(error.contains("foreground 3, its map has 3 channels"), "{error}");
}

fn run(args: &[&str]) -> (i32, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_histokern"))
        .args(args)
        .args(["--threads", "2"])
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Writes a PNG of coloured blocks.
fn write_png(path: &Path, name: &str, width: usize, height: usize) {
    let square = pictures(name, 1, width.max(height));
    let rows = square.chunks_exact(width.max(height) * 3).take(height);
    let data = rows.flat_map(|row| &row[..width * 3]).copied().collect();
    let image = RgbImage { width, height, data };
    histokern::report::png::write_rgb(path, &image).unwrap();
}

fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn pictures_are_segmented_and_predicted_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let package = package(folder.path(), "", "margin_px = 2\n");
    let first = folder.path().join("first.png");
    write_png(&first, "first", 52, 40);
    let (dicom, bad) = (golden("rgb_planes.dcm"), golden("bad_short.dcm"));
    let truths = folder.path().join("truths");
    fs::create_dir(&truths).unwrap();
    write_png(&truths.join("first.png"), "truth", 52, 40);
    write_png(&truths.join("rgb_planes.png"), "truth", 25, 20);

    let out = folder.path().join("masks");
    let images = [str(&first), str(&bad), str(&dicom)];
    let rest = ["--package", str(&package), "--out", str(&out), "--device", "cpu"];
    let (code, stdout, stderr) = run(&[&["segment", "--json"], &images[..], &rest].concat());
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("bad_short.dcm: tag (7fe0,0010) PixelData"), "{stderr}");
    let records: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(list(&records).len(), 2);
    for (record, name) in list(&records).iter().zip(["first", "rgb_planes"]) {
        let masks = &record["segmentation"];
        let fused = picture::open(&out.join(name).join("mask.png")).unwrap().image;
        let data = fused.data.as_chunks::<3>().0.iter().map(|p| p[0]).collect();
        let fused = GrayImage { width: fused.width, height: fused.height, data };
        assert_eq!(masks["fused"]["area_px"].as_u64().unwrap() as usize, area(&fused));
        let bounds = bounding_box(&fused).unwrap();
        let said = ["x", "y", "width", "height"]
            .map(|key| masks["fused"]["bounds"][key].as_u64().unwrap() as usize);
        assert_eq!(said, [bounds.x, bounds.y, bounds.width, bounds.height]);
        assert_eq!(list(&masks["segmenters"]).len(), 2);
        assert!(masks["fused"].get("dice").is_none());
    }
    // A true mask of another size is an error of that picture alone.
    let truth = ["--truth", str(&truths)];
    let (code, _, stderr) = run(&[&["segment"], &images[..], &rest, &truth].concat());
    assert_eq!(code, 3);
    assert!(stderr.contains("rgb_planes.png: a mask of 25 x 20 px for a picture of 26 x 20"));
    let table = fs::read_to_string(out.join("segmentation.csv")).unwrap();
    assert_eq!(table.lines().count(), 1 + 3, "{table}");

    let out = folder.path().join("results");
    let rest = ["--package", str(&package), "--out", str(&out), "--device", "cpu"];
    let (code, _, stderr) = run(&[&["predict"], &images[..], &rest].concat());
    assert_eq!(code, 3, "{stderr}");
    let predictions = fs::read_to_string(out.join("predictions.csv")).unwrap();
    assert!(predictions.starts_with("slide,head,prediction,p_0,p_1\n"), "{predictions}");
    assert_eq!(predictions.lines().count(), 3, "{predictions}");
    let result = fs::read_to_string(out.join("first/result.json")).unwrap();
    let result: Value = serde_json::from_str(&result).unwrap();
    let crop = &result["segmentation"]["crop"];
    let cut = picture::open(&out.join("first/crop.png")).unwrap().image;
    assert_eq!(
        [&crop["width"], &crop["height"]].map(|v| v.as_u64().unwrap() as usize),
        [cut.width, cut.height]
    );
    let again = run(&[&["predict"], &images[..], &rest].concat());
    assert!(again.2.contains("2 unchanged since an earlier run"), "{}", again.2);
    assert_eq!(fs::read_to_string(out.join("predictions.csv")).unwrap(), predictions);

    let out = folder.path().join("gradcam");
    let (code, stdout, stderr) = run(&[
        "explain",
        "gradcam",
        str(&first),
        "--package",
        str(&package),
        "-o",
        str(&out),
        "--json",
    ]);
    assert_eq!(code, 0, "{stderr}");
    let said: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((said["layer"].as_str(), said["class"].as_str()), (Some("layer4"), Some("1")));
    let p = list(&result["predictions"])[0]["probabilities"][1].as_f64().unwrap();
    assert_eq!(said["probability"].as_f64(), Some(p));
    let logit = list(&result["predictions"])[0]["logits"][1].as_f64().unwrap();
    assert!((said["logit"].as_f64().unwrap() - logit).abs() < 0.02, "{said} {logit}");
    let table = fs::read_to_string(out.join("gradcam.csv")).unwrap();
    assert_eq!(table.lines().count(), 1 + 3 * 3);
}

#[test]
fn a_picture_with_nothing_in_it_follows_the_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.png");
    write_png(&image, "image", 30, 20);
    for (rule, code, status) in [("error", 3, "empty"), ("whole-image", 0, "done")] {
        let image_lines = format!("empty_mask = \"{rule}\"\n");
        let package = package(folder.path(), "threshold = 1.0\n", &image_lines);
        let out = folder.path().join(rule);
        let args = ["--package", str(&package), "--out", str(&out), "--device", "cpu", str(&image)];
        for verb in ["segment", "predict"] {
            let (got, _, stderr) = run(&[&[verb], &args[..]].concat());
            assert_eq!(got, code, "{verb} {rule}: {stderr}");
            let table = fs::read_to_string(out.join("status.csv")).unwrap();
            assert!(table.contains(&format!("image.png,{status},")), "{table}");
            if rule == "error" {
                assert!(stderr.contains("image.png: empty: the fused mask is empty"), "{stderr}");
            }
        }
        assert_eq!(out.join("image/result.json").exists(), rule == "whole-image");
        if rule == "whole-image" {
            let result = fs::read_to_string(out.join("image/result.json")).unwrap();
            assert!(result.contains("the whole picture was taken"), "{result}");
            assert!(result.contains("30 x 20 px at (0, 0)"), "{result}");
        }
    }
}

#[test]
fn slides_and_pictures_are_not_taken_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let package = package(folder.path(), "", "");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo");
    let image = folder.path().join("image.png");
    write_png(&image, "image", 30, 20);
    let out = folder.path().join("out");
    let (code, _, stderr) =
        run(&["segment", str(&image), "--package", str(&demo), "--out", str(&out)]);
    assert_eq!(code, 2);
    assert!(stderr.contains("[image] in place of [tiles]"), "{stderr}");
    let (code, _, stderr) =
        run(&["features", str(&image), "--package", str(&package), "--out", str(&out)]);
    assert_ne!(code, 0);
    assert!(stderr.contains("looks at pictures, not at slides"), "{stderr}");
}

/// The recipe that `import` writes for a segmenter is one for pictures.
#[test]
fn an_imported_segmenter_segments() {
    let folder = tempfile::tempdir().unwrap();
    segmenter(folder.path(), "unet");
    let image = folder.path().join("image.png");
    write_png(&image, "image", 33, 20);
    let (package, out) = (folder.path().join("package"), folder.path().join("out"));
    let weights = folder.path().join("unet.safetensors");
    let (code, _, stderr) =
        run(&["import", str(&weights), "--family", "unet", "-o", str(&package)]);
    assert_eq!(code, 0, "{stderr}");
    let (code, stdout, stderr) =
        run(&["segment", str(&image), "--package", str(&package), "--out", str(&out)]);
    assert!(code == 0 || code == 3, "{stderr}");
    assert!(stdout.starts_with("image  "), "{stdout}");
    let mask = picture::open(&out.join("image/mask-unet.png")).unwrap().image;
    assert_eq!((mask.width, mask.height), (33, 20));
}
