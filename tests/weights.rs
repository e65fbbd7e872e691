//! Checkpoints and packages: PyTorch's own files read as PyTorch reads them, hostile files refused,
//! and every known checkpoint layout imported by the command.

use histokern::heads;
use histokern::models;
use histokern::weights::{Dtype, Package, Tensor, Tensors};
use histokern::{Error, Kind};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/weights").join(name)
}

/// The checksum of make.py: each element times its place, counted from one.
fn checksum(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().enumerate().map(|(i, x)| x * (i + 1) as f64).sum()
}

/// What PyTorch read: key, shape and checksum of each tensor.
fn expected(name: &str) -> Vec<(String, Vec<usize>, f64)> {
    let text = std::fs::read_to_string(golden(&format!("{name}.txt"))).unwrap();
    text.lines()
        .map(|line| {
            let [key, shape, sum] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
            let shape =
                shape.split(',').filter(|s| !s.is_empty()).map(|s| s.parse().unwrap()).collect();
            (key.to_string(), shape, sum.parse().unwrap())
        })
        .collect()
}

#[test]
fn checkpoints_read_as_pytorch_reads_them() {
    for file in [
        "kinds-zip.pth",
        "kinds-legacy.pth",
        "wrapped.pth",
        "before-0.4.pth",
        "balnmp-new.pth",
        "balnmp-original-c.pth",
        "histcode-adco.pth.tar",
        "clam-sb.pth",
        "clam-sb-dataparallel.pth",
        "clam-sb-reg.pth",
        "clam-mb.pth",
    ] {
        let tensors = Tensors::open(&golden(file)).unwrap();
        let expected = expected(file.split(".pth").next().unwrap());
        assert_eq!(tensors.len(), expected.len(), "{file}");
        for (key, shape, sum) in expected {
            let tensor = tensors.require(&key).unwrap();
            assert_eq!(tensor.shape, shape, "{file} {key}");
            if tensor.dtype.is_float() {
                let got = checksum(tensor.to_f32().unwrap().into_iter().map(f64::from));
                assert_eq!(got, sum, "{file} {key}");
            }
        }
    }
}

#[test]
fn every_element_type_is_told_apart() {
    for file in ["kinds-zip.pth", "kinds-legacy.pth"] {
        let tensors = Tensors::open(&golden(file)).unwrap();
        for (key, dtype) in [
            ("f16", Dtype::F16),
            ("bf16", Dtype::Bf16),
            ("f32", Dtype::F32),
            ("f64", Dtype::F64),
            ("i64", Dtype::I64),
            ("i32", Dtype::I32),
            ("i16", Dtype::I16),
            ("i8", Dtype::I8),
            ("u8", Dtype::U8),
            ("flag", Dtype::Bool),
        ] {
            assert_eq!(tensors.require(key).unwrap().dtype, dtype, "{file} {key}");
        }
        let refused = tensors.require("i64").and_then(|t: Tensor<'_>| t.to_f32()).unwrap_err();
        assert!(refused.to_string().contains("floating-point"), "{refused}");
    }
}

#[test]
fn what_is_no_weight_is_reported() {
    let ignored = Tensors::open(&golden("wrapped.pth")).unwrap().ignored().join("; ");
    for word in ["epoch: a number", "arch: text", "optimizer: a dictionary"] {
        assert!(ignored.contains(word), "{ignored}");
    }
}

#[test]
fn hostile_files_are_refused_and_say_why() {
    let mut archive =
        zip::ZipArchive::new(std::fs::File::open(golden("hostile.zip")).unwrap()).unwrap();
    let names: Vec<String> = archive.file_names().map(|n| n.unwrap().into_owned()).collect();
    let mut read = |name: &str| {
        let mut bytes = Vec::new();
        archive.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    let (mut count, mut wrong) = (0, Vec::new());
    for name in names.iter().filter(|n| !n.ends_with(".expect")) {
        let words = String::from_utf8(read(&format!("{name}.expect"))).unwrap();
        count += 1;
        let Err(error) = Tensors::from_bytes(Path::new(name), read(name)) else {
            wrong.push(format!("{name}: accepted"));
            continue;
        };
        let text = error.to_string();
        let kind = matches!(error.kind(), Kind::Malformed | Kind::Unsupported | Kind::Limit);
        if !kind || !text.starts_with(&format!("{name}: ")) || !text.contains(&words) {
            wrong.push(format!("{error:?} lacks {words:?}"));
        }
    }
    assert!(count >= 28, "{count}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Cutting a valid file anywhere, or changing any byte of it, may fail but never panics.
#[test]
fn damaged_checkpoints_never_panic() {
    for file in ["clam-sb.pth", "kinds-legacy.pth"] {
        let whole = std::fs::read(golden(file)).unwrap();
        let read = |bytes: Vec<u8>| {
            if let Ok(tensors) = Tensors::from_bytes(Path::new(file), bytes) {
                for name in tensors.names() {
                    let _ = tensors.require(name).and_then(|t| t.to_f16());
                }
            }
        };
        for cut in 0..whole.len() {
            assert!(
                Tensors::from_bytes(Path::new(file), whole[..cut].to_vec()).is_err(),
                "{file} cut at {cut}"
            );
        }
        for at in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                read(bytes);
            }
        }
    }
}

/// A folder of malformed model files with a `MANIFEST.tsv` of `name<TAB>expectation` lines.
#[test]
fn a_corpus_of_malformed_files_is_judged_as_its_manifest_says() {
    let Some(dir) = std::env::var_os("HISTOKERN_BAD_MODELS").map(PathBuf::from) else {
        eprintln!("skipped: HISTOKERN_BAD_MODELS names no folder of malformed model files");
        return;
    };
    let manifest = std::fs::read_to_string(dir.join("MANIFEST.tsv")).unwrap();
    let mut wrong = Vec::new();
    for line in manifest.lines().skip(1) {
        let mut fields = line.split('\t');
        let (name, expect) = (fields.next().unwrap(), fields.next().unwrap());
        let result = Tensors::open(&dir.join(name));
        if matches!((expect, &result), ("accept", Err(_)) | ("reject", Ok(_))) {
            wrong.push(format!("{name}: expected {expect}, got {result:?}"));
        }
        if let Ok(tensors) = result {
            for name in tensors.names() {
                let _ = tensors.require(name).and_then(|t| t.to_f32());
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let missing = Tensors::open(Path::new("/no/such.pth")).unwrap_err();
    assert_eq!(missing.kind(), Kind::Io);
    assert!(missing.to_string().contains("/no/such.pth"));
    let folder = Tensors::open(&golden("")).unwrap_err();
    assert!(folder.to_string().contains("not a regular file"), "{folder}");
}

fn import(arguments: &[&str], output: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_histokern"))
        .arg("import")
        .args(arguments)
        .arg("-o")
        .arg(output)
        .output()
        .unwrap()
}

fn imported(checkpoint: &str, arguments: &[&str], output: &Path) -> (Package, String) {
    let checkpoint = golden(checkpoint);
    let all = [&[checkpoint.to_str().unwrap()], arguments].concat();
    let done = import(&all, output);
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{err}");
    (Package::open(output).unwrap(), out.into_owned())
}

/// Every tensor of the package has the numbers of the checkpoint's, which FP16 holds exactly.
fn assert_same_numbers(package: &Tensors, checkpoint: &str, key: impl Fn(&str) -> String) {
    let expected = expected(checkpoint);
    for name in package.names() {
        let tensor = package.require(name).unwrap();
        let wanted = key(name);
        let (_, shape, sum) =
            expected.iter().find(|(k, ..)| *k == wanted).unwrap_or_else(|| panic!("{wanted}"));
        assert_eq!(tensor.shape, shape, "{name}");
        let dtype = if shape.len() >= 2 { Dtype::F16 } else { Dtype::F32 };
        assert_eq!(tensor.dtype, dtype, "{name}");
        let got = checksum(tensor.to_f32().unwrap().into_iter().map(f64::from));
        assert_eq!(got, *sum, "{name}");
    }
}

#[test]
fn both_balnmp_layouts_become_packages() {
    let dir = tempfile::tempdir().unwrap();
    for (file, prefix, clinical) in [
        ("balnmp-new", "image_feature_extractor.extractor.0.", 0),
        ("balnmp-original-c", "image_feature_extractor.0.", 5),
    ] {
        let output = dir.path().join(file);
        let (package, _) = imported(&format!("{file}.pth"), &["--family", "balnmp"], &output);
        let tensors = package.encoder().unwrap();
        assert_eq!(tensors.len(), 13 * 6);
        assert_same_numbers(&tensors, file, |name| name.replace("features.", prefix));
        let encoder = models::build(&package.recipe, &tensors).unwrap();
        assert_eq!((encoder.input_px, encoder.feature_dim), ([224, 224], 3 * 49));

        let head = &package.recipe.heads[0];
        let tensors = package.head(head).unwrap();
        assert_same_numbers(&tensors, file, str::to_string);
        let built = heads::build(head, Some(encoder.feature_dim), &tensors).unwrap();
        assert_eq!((built.clinical, built.outputs, built.branches), (clinical, 2, 1));
        assert_eq!(built.graph.inputs.len(), if clinical > 0 { 2 } else { 1 });
    }
}

#[test]
fn the_histcode_encoder_loses_its_training_parts_and_takes_a_head() {
    let dir = tempfile::tempdir().unwrap();
    let encoder_only = dir.path().join("encoder");
    let (package, report) =
        imported("histcode-adco.pth.tar", &["--family", "histcode-encoder"], &encoder_only);
    for reason in ["the momentum encoder", "the projection head", "ignored arch: text"] {
        assert!(report.contains(reason), "{report}");
    }
    let tensors = package.encoder().unwrap();
    assert_same_numbers(&tensors, "histcode-adco", |n| format!("module.encoder_q.{n}"));
    let encoder = models::build(&package.recipe, &tensors).unwrap();
    assert_eq!((encoder.name.as_str(), encoder.feature_dim), ("resnet50/layer3", 16));

    // A head is added in place, to a recipe that waits for its encoder: the package's id changes.
    let recipe = dir.path().join("gene");
    std::fs::create_dir(&recipe).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/histcode-gene/recipe.toml");
    std::fs::copy(from, recipe.join("recipe.toml")).unwrap();
    let before = Package::open(&recipe).unwrap();
    let missing = before.head(&before.recipe.heads[0]).unwrap_err();
    assert!(missing.to_string().contains("no ERBB2.safetensors"), "{missing}");
    let arguments =
        ["--family", "clam-sb", "--head", "MKI67", "--package", recipe.to_str().unwrap()];
    let (after, _) = imported("clam-sb-reg.pth", &arguments, &recipe);
    assert_eq!(after.recipe.heads.len(), 2);
    assert_eq!(after.encoder_id, before.encoder_id);
    assert_ne!(after.recipe_id, before.recipe_id);
    let gene = &after.recipe.heads[1];
    let built = heads::build(gene, None, &after.head(gene).unwrap()).unwrap();
    assert_eq!((built.name.as_str(), built.outputs), ("MKI67", 1));
}

/// One f32 tensor for the safetensors crate's writer.
struct F32(Vec<usize>, Vec<f32>);

impl safetensors::tensor::View for F32 {
    fn dtype(&self) -> safetensors::Dtype {
        safetensors::Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.0
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.1.iter().flat_map(|x| x.to_le_bytes()).collect()
    }
    fn data_len(&self) -> usize {
        self.1.len() * 4
    }
}

/// A whole ResNet-50 in safetensors, imported for a recipe that stops after layer3.
#[test]
fn a_torchvision_checkpoint_is_cut_where_the_recipe_says() {
    let dir = tempfile::tempdir().unwrap();
    let trained = Tensors::open(&golden("histcode-adco.pth.tar")).unwrap();
    let write = |extra: &[(&str, F32)]| {
        let mut tensors: Vec<(String, F32)> = trained
            .names()
            .filter_map(|name| Some((name, name.strip_prefix("module.encoder_q.")?)))
            .filter(|(_, name)| !name.starts_with("fc.") && !name.ends_with("tracked"))
            .map(|(name, new)| {
                let tensor = trained.require(name).unwrap();
                (new.to_string(), F32(tensor.shape.to_vec(), tensor.to_f32().unwrap()))
            })
            .collect();
        for (name, F32(shape, data)) in extra {
            tensors.push((name.to_string(), F32(shape.clone(), data.clone())));
        }
        let path = dir.path().join("resnet50.safetensors");
        std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        path
    };
    let tail = ("layer4.0.conv1.weight", F32(vec![8, 16, 1, 1], vec![0.5; 128]));
    let checkpoint = write(&[tail, ("fc.bias", F32(vec![10], vec![0.0; 10]))]);
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/histcode-diagnosis");
    let arguments = |checkpoint: &Path| {
        ["--family", "resnet50", "--package", recipe.to_str().unwrap()]
            .map(str::to_string)
            .into_iter()
            .chain([checkpoint.to_str().unwrap().to_string()])
            .collect::<Vec<_>>()
    };
    let run = |checkpoint: &Path, name: &str| {
        let arguments = arguments(checkpoint);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        import(&arguments, &dir.path().join(name))
    };
    let done = run(&checkpoint, "cut");
    let report = String::from_utf8_lossy(&done.stdout);
    assert!(report.contains("dropped 1 tensors, behind the recipe's truncation"), "{report}");
    assert!(report.contains("dropped 1 tensors, the classifier"), "{report}");
    let package = Package::open(&dir.path().join("cut")).unwrap();
    let encoder = models::build(&package.recipe, &package.encoder().unwrap()).unwrap();
    assert_eq!(encoder.feature_dim, 16);

    let checkpoint = write(&[("layer3.6.conv1.weight", F32(vec![1, 1, 1, 1], vec![0.5]))]);
    let error = run(&checkpoint, "deeper");
    let text = String::from_utf8_lossy(&error.stderr);
    assert!(text.contains("1 tensors have no place in the model: layer3.6.conv1.weight"), "{text}");
    let checkpoint = write(&[("fc.weight", F32(vec![2, 2], vec![1e6; 4]))]);
    assert!(run(&checkpoint, "unused").status.success(), "what is dropped is not judged");
    let checkpoint = write(&[("conv1.bias", F32(vec![1], vec![f32::NAN]))]);
    let error = run(&checkpoint, "nan");
    let text = String::from_utf8_lossy(&error.stderr);
    assert!(text.contains("tensor conv1.bias: 1 of 1 numbers are infinite"), "{text}");
}

#[test]
fn clam_heads_become_packages() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["clam-sb", "clam-sb-dataparallel"] {
        let (package, report) =
            imported(&format!("{file}.pth"), &["--family", "clam-sb"], &dir.path().join(file));
        assert!(report.contains("instance clustering"), "{report}");
        let head = &package.recipe.heads[0];
        let tensors = package.head(head).unwrap();
        assert_same_numbers(&tensors, file, |name| {
            if file == "clam-sb" || !name.starts_with("attention_net.") {
                return name.into();
            }
            name.replacen("attention_net.", "attention_net.module.", 1)
        });
        let built = heads::build(head, Some(5), &tensors).unwrap();
        assert_eq!((built.branches, built.outputs), (1, 2));
        let wrong = heads::build(head, Some(1024), &tensors).unwrap_err().to_string();
        assert!(wrong.contains("width 5, the encoder makes 1024"), "{wrong}");
    }
    let recipe = dir.path().join("three");
    std::fs::create_dir(&recipe).unwrap();
    let text = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/histcode-diagnosis/recipe.toml"),
    )
    .unwrap()
    .replace("\"clam-sb\"", "\"clam-mb\"")
    .replace("[\"normal_tissue\", \"tumor_tissue\"]", "[\"a\", \"b\", \"c\"]");
    std::fs::write(recipe.join("recipe.toml"), text).unwrap();
    let arguments = ["--family", "clam-mb", "--package", recipe.to_str().unwrap()];
    let (package, _) = imported("clam-mb.pth", &arguments, &dir.path().join("mb"));
    let head = &package.recipe.heads[0];
    let built = heads::build(head, None, &package.head(head).unwrap()).unwrap();
    assert_eq!((built.branches, built.outputs), (3, 3));
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("pkg");
    let checkpoint = |name: &str| golden(name).to_str().unwrap().to_string();
    for (file, family, words) in [
        ("clam-sb.pth", "balnmp", "not of a balnmp checkpoint"),
        ("clam-sb.pth", "vgg16_bn", "tensor features.0.weight is missing"),
        ("clam-mb.pth", "clam-sb", "tensors have no place in the model: classifiers.1.bias"),
        ("clam-sb.pth", "clam-mb", "tensor classifiers.0.weight is missing"),
        ("histcode-adco.pth.tar", "clam-sb", "not of a clam-sb checkpoint"),
        ("clam-sb.pth", "resnet7", "histcode-encoder, clam-sb, clam-mb"),
        ("kinds-zip.pth", "clam-sb", "not of a clam-sb checkpoint"),
    ] {
        let done = import(&[&checkpoint(file), "--family", family], &output);
        let err = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && err.contains(words), "{file} as {family}: {err}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{file} as {family}");
    }
    std::fs::create_dir(&output).unwrap();
    let done = import(&[&checkpoint("clam-sb.pth"), "--family", "clam-sb"], &output);
    assert_eq!(done.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&done.stderr).contains("already exists"));
}

#[test]
fn package_ids_follow_what_decides_a_result() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pkg");
    let (first, _) = imported("balnmp-new.pth", &["--family", "balnmp"], &path);
    let recipe = path.join("recipe.toml");
    let text = std::fs::read_to_string(&recipe).unwrap();
    let with = |text: String| -> Result<Package, Error> {
        std::fs::write(&recipe, text).unwrap();
        Package::open(&path)
    };
    let comment = with(format!("# a remark\n{text}")).unwrap();
    assert_eq!(comment.recipe_id, first.recipe_id);
    let bag = with(text.replace("size = 10", "size = 12")).unwrap();
    assert_ne!(bag.recipe_id, first.recipe_id);
    // Batch norm over the bag makes the bag part of what a feature is.
    assert_ne!(bag.encoder_id, first.encoder_id);
    let running = text.replace("bn_mode = \"batch\"", "bn_mode = \"running\"");
    let ten = with(running.clone()).unwrap();
    let twelve = with(running.replace("size = 10", "size = 12")).unwrap();
    assert_ne!(ten.recipe_id, twelve.recipe_id);
    assert_eq!(ten.encoder_id, twelve.encoder_id);
    let resized = with(text.replace("resize = 224", "resize = 232")).unwrap();
    assert_ne!(resized.encoder_id, first.encoder_id);
    with(text).unwrap();
    let weights = path.join("encoder.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    assert_ne!(Package::open(&path).unwrap().encoder_id, first.encoder_id);
}

#[test]
fn the_recipes_of_this_repository_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights");
    for name in ["balnmp-dl-cnb", "balnmp-dl-cnb-c", "histcode-diagnosis", "histcode-gene"] {
        let package = Package::open(&folder.join(name)).unwrap();
        assert_eq!(package.recipe.name, name);
        models::family(&package.recipe.encoder.family).unwrap();
        for head in &package.recipe.heads {
            heads::family(&head.family).unwrap();
        }
    }
}

/// Tensors by name.
type Named = Vec<(String, F32)>;

/// Every backbone that BALNMP's authors select, by the keys of their own module.
#[test]
fn every_balnmp_backbone_becomes_a_package() {
    let dir = tempfile::tempdir().unwrap();
    let packed = std::fs::File::open(golden("balnmp-backbones.tsv.gz")).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    let mut backbones: Vec<(&str, usize, Named)> = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let shape: Vec<usize> = fields[2].split(',').map(|n| n.parse().unwrap()).collect();
        let data = vec![0.25; shape.iter().product()];
        if backbones.last().is_none_or(|(name, ..)| *name != fields[0]) {
            backbones.push((fields[0], fields[3].parse().unwrap(), Vec::new()));
        }
        let tensors = &mut backbones.last_mut().unwrap().2;
        tensors.push((fields[1].to_string(), F32(shape, data)));
    }
    assert_eq!(backbones.len(), 20);
    for (name, width, mut tensors) in backbones {
        for (layer, k, c) in [
            ("attention_aggregator.fc1.0", 8, width),
            ("attention_aggregator.attention.0", 1, 8),
            ("attention_aggregator.attention.3", 1, 1),
            ("classifier.0", 4, 8),
            ("classifier.2", 2, 4),
        ] {
            tensors.push((format!("{layer}.weight"), F32(vec![k, c], vec![0.5; k * c])));
            tensors.push((format!("{layer}.bias"), F32(vec![k], vec![0.5; k])));
        }
        let path = dir.path().join(format!("{name}.safetensors"));
        std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        let output = dir.path().join(name);
        let recipe = ["--family", "balnmp", "--recipe", "balnmp-dl-cnb", "--backbone", name];
        let done = import(&[&[path.to_str().unwrap()], &recipe[..]].concat(), &output);
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
        let package = Package::open(&output).unwrap();
        let encoder = models::build(&package.recipe, &package.encoder().unwrap()).unwrap();
        // The width PyTorch found for pictures of 224 px, which the head was made for.
        assert_eq!(encoder.feature_dim, width, "{name}");
        let head = &package.recipe.heads[0];
        heads::build(head, Some(width), &package.head(head).unwrap()).unwrap();
        let inception = matches!(name, "googlenet" | "inception_v3");
        assert_eq!(package.recipe.encoder.transform_input, inception, "{name}");
    }
    let vgg = dir.path().join("vgg11.safetensors");
    let wrong = |more: &[&str]| {
        let done = import(&[&[vgg.to_str().unwrap()], more].concat(), &dir.path().join("x"));
        assert!(!done.status.success(), "{more:?}");
        String::from_utf8_lossy(&done.stderr).into_owned()
    };
    let error = wrong(&["--family", "balnmp", "--backbone", "resnet18"]);
    assert!(error.contains("tensor conv1.weight is missing"), "{error}");
    let error = wrong(&["--family", "balnmp", "--backbone", "vgg99"]);
    assert!(error.contains("no encoder family \"vgg99\""), "{error}");
    let error = wrong(&["--family", "vgg11", "--backbone", "vgg11"]);
    assert!(error.contains("goes with --family balnmp"), "{error}");
}

/// Heads of other encoders, and tensors missing, of another shape or swapped: each is named before
/// anything is written.
#[test]
fn heads_that_do_not_fit_the_package_are_told_by_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let encoder = dir.path().join("encoder");
    imported("histcode-adco.pth.tar", &["--family", "histcode-encoder"], &encoder);
    let path = encoder.join("recipe.toml");
    let head = "\n[[head]]\nname = \"gene\"\nfamily = \"clam-sb\"\n";
    std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + head).unwrap();
    let package = encoder.to_str().unwrap();
    let gene = |edit: &dyn Fn(&mut Named)| {
        let mut tensors: Vec<(String, F32)> = [
            ("attention_net.0", 12, 16),
            ("attention_net.2.attention_a.0", 6, 12),
            ("attention_net.2.attention_b.0", 6, 12),
            ("attention_net.2.attention_c", 1, 6),
            ("classifiers", 1, 12),
        ]
        .into_iter()
        .flat_map(|(name, k, c)| {
            let weight = (format!("{name}.weight"), F32(vec![k, c], vec![0.5; k * c]));
            [weight, (format!("{name}.bias"), F32(vec![k], vec![0.5; k]))]
        })
        .collect();
        edit(&mut tensors);
        let path = dir.path().join("gene.safetensors");
        std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        let arguments = [path.to_str().unwrap(), "--family", "clam-sb", "--package", package];
        let done = import(&arguments, &encoder);
        (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let with = |name: &'static str, shape: &'static [usize]| {
        gene(&move |tensors: &mut Named| {
            tensors.retain(|(n, _)| n != name);
            let n = shape.iter().product();
            tensors.push((name.into(), F32(shape.to_vec(), vec![0.5; n])));
        })
    };
    let without =
        |name: &'static str| gene(&move |tensors: &mut Named| tensors.retain(|(n, _)| n != name));
    for ((ok, error), words) in [
        (
            without("attention_net.2.attention_b.0.weight"),
            "attention_net.2.attention_b.0.weight is missing",
        ),
        (without("classifiers.weight"), "tensor classifiers.weight is missing"),
        (
            with("attention_net.2.attention_c.weight", &[1, 7]),
            "attention_net.2.attention_c.weight has shape [1, 7]",
        ),
        (
            with("attention_net.2.attention_a.0.weight", &[6]),
            "tensor attention_net.2.attention_a.0.weight has shape [6]",
        ),
        (with("stray.weight", &[1]), "not of a clam-sb checkpoint: stray.weight"),
        // The head of an encoder of 20 features.
        (
            with("attention_net.0.weight", &[12, 20]),
            "tensor attention_net.0.weight of shape [12, 20] reads features of width 20, the encoder makes 16",
        ),
    ] {
        assert!(!ok && error.contains(words), "{error} lacks {words}");
        assert!(!encoder.join("head.safetensors").exists());
    }
    let before = Package::open(&encoder).unwrap();
    assert!(gene(&|_| ()).0);
    let after = Package::open(&encoder).unwrap();
    assert_eq!(after.encoder_id, before.encoder_id);
    assert_ne!(after.recipe_id, before.recipe_id);
    // A classifier where the recipe has a regression.
    let done = import(
        &[golden("clam-sb.pth").to_str().unwrap(), "--family", "clam-sb", "--package", package],
        &encoder,
    );
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(error.contains("tensor classifiers.weight") && error.contains("2 outputs"), "{error}");
}

/// The same for segmenters: one tensor taken away, cut, or put into another's place.
#[test]
fn a_segmenter_that_does_not_fit_is_told_by_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families/unet.tsv.gz");
    let mut text = String::new();
    let packed = std::fs::File::open(list).unwrap();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    let names: Vec<(&str, Vec<usize>)> = text
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(name, shape)| (name, shape.split(',').map(|n| n.parse().unwrap()).collect()))
        .collect();
    let run = |edit: &dyn Fn(&str, &mut Vec<usize>) -> bool| {
        let tensors = names.iter().filter_map(|(name, shape)| {
            let mut shape = shape.clone();
            let kept = edit(name, &mut shape);
            let n = shape.iter().product();
            kept.then(|| (name.to_string(), F32(shape, vec![0.5; n])))
        });
        let path = dir.path().join("unet.safetensors");
        std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        let output = dir.path().join("pkg");
        let done = import(&[path.to_str().unwrap(), "--family", "unet"], &output);
        assert_eq!(done.status.success(), output.exists());
        String::from_utf8_lossy(&done.stderr).into_owned()
    };
    let of = |wanted: &'static str| names.iter().find(|(n, _)| *n == wanted).unwrap().1.clone();
    let (up, conv) = ("up1.up.weight", "down4.maxpool_conv.1.double_conv.3.weight");
    assert_ne!(of(up), of(conv));
    for (error, words) in [
        (
            run(&|name, _| name != conv),
            "tensor down4.maxpool_conv.1.double_conv.3.weight is missing",
        ),
        (
            run(&|name, shape| {
                shape[0] -= usize::from(name == "outc.conv.bias" && shape[0] > 1);
                name != "inc.double_conv.1.running_var"
            }),
            "inc.double_conv.1.running_var is missing",
        ),
        (
            run(&|name, shape| {
                if name == conv {
                    shape[1] += 1;
                }
                true
            }),
            "down4.maxpool_conv.1.double_conv.3.weight has shape",
        ),
        (
            run(&|name, shape| {
                if name == up {
                    *shape = of(conv);
                }
                true
            }),
            "tensor up1.up.weight has shape",
        ),
    ] {
        assert!(error.contains(words), "{error} lacks {words}");
    }
    assert!(run(&|_, _| true).is_empty());
}
