//! Pictures against pydicom and Pillow, masks against `scipy.ndimage`, fusion against numpy, Grad-CAM
//! against PyTorch's autograd (`golden/pictures/make.py`), and the verbs on pictures end to end.

#[path = "models/formula.rs"]
mod formula;

use formula::{F32, listed, pictures};
use histokern::cpu::CpuBackend;
use histokern::image::mask::{area, bounding_box, clean, dice, fill_holes, fuse, largest_component};
use histokern::image::{GrayImage, Rect};
use histokern::picture;
use histokern::pipeline::gradcam;
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
            let signed: Vec<f64> =
                list(&want["signed"]).iter().map(|v| v.as_f64().unwrap()).collect();
            let scale = signed.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let worst = signed.iter().zip(&got.signed.data).map(|(w, &g)| (w - f64::from(g)).abs());
            let worst = worst.fold(0.0, f64::max) / scale;
            println!("{file} class {class}: largest error {worst:.2e} of the largest value");
            assert!(worst < 5e-3, "{file}: {worst:.2e} {:?} {signed:?}", got.signed.data);
            let logit = want["logit"].as_f64().unwrap();
            assert!((got.logit - logit).abs() < 5e-3 * scale * 9.0, "{} {logit}", got.logit);
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
