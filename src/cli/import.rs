//! `histokern import`: a reference checkpoint becomes a package.

mod gate;

use super::recipes::recipe;
use super::{Global, Outcome};
use crate::error::{Context, Error, Result};
use crate::recipe::{BnMode, Head, Recipe, Segmenter};
use crate::weights::import::{Fate, Layout, Sorted, sort};
use crate::weights::snapshot::Snapshot;
use crate::weights::{Array, Package, PackageWriter, Tensors};
use crate::{heads, models};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Turn a PyTorch or safetensors checkpoint into a package
///
/// FAMILY is a torchvision encoder (vgg16_bn, resnet50, ...), inception_v3_keras, vit, a segmenter
/// (unet, nested-unet, smp-unet-resnet34, deeplabv3_resnet50, ...), balnmp, histcode-encoder, or a head:
/// clam-sb, clam-mb, clam-sb-pool, clam-sb-nn-pool, abmil, tile-linear, pool-linear. Every tensor of the checkpoint must have its place in the model or be one that
/// inference does not need. Pickles are read as data; nothing in them is executed.
///
/// A folder is taken for a local Hugging Face snapshot of a vision transformer: config.json beside
/// model.safetensors or pytorch_model.bin. What its configuration does not say (pooling, tile size,
/// micrometres per pixel) a recipe does: --recipe uni, virchow2, phikon-v2, ...
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  histokern import resnet50.pth --family resnet50 -o resnet50
  histokern import UNI/ --recipe uni -o uni
  histokern import best.pth --family balnmp --recipe balnmp-dl-cnb -o dl-cnb
  histokern import MKI67_fold1.pt --family clam-sb --head MKI67 --package genes -o genes
  histokern import cancer_1.pth --family inception_v3 --gate cancer --gate-classes benign,cancer \
      --package score -o score")]
pub struct Args {
    /// .pth, .pt, .pth.tar, .bin, .safetensors or Keras's .h5, or the folder of a snapshot
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// How its tensors are named and what they are [default: vit, for a folder]
    #[arg(long)]
    family: Option<String>,
    /// A recipe of this program for the package to have
    #[arg(long, value_name = "NAME", conflicts_with = "package")]
    recipe: Option<String>,
    /// Package whose recipe and other weights are kept [default: the family's own recipe]
    #[arg(long, value_name = "DIR")]
    package: Option<PathBuf>,
    /// The recipe's head to import; a new name adds a head like the one there is
    #[arg(long, value_name = "NAME")]
    head: Option<String>,
    /// Take the checkpoint for a tile classifier and put it into the gate of the package, which lets
    /// tiles of this class pass; each further import adds one more, their mean decides
    #[arg(long, value_name = "CLASS", requires = "package", conflicts_with = "head")]
    gate: Option<String>,
    /// Classes of the gate in the order of the classifier's outputs [default: one output, the logit
    /// of the class]
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', requires = "gate")]
    gate_classes: Vec<String>,
    /// Smallest probability that passes the gate [default: 0.5]
    #[arg(long, value_name = "P", requires = "gate")]
    gate_threshold: Option<f64>,
    /// Backbone of a BALNMP checkpoint, by torchvision's name [default: the recipe's, vgg16_bn]
    #[arg(long, value_name = "NAME")]
    backbone: Option<String>,
    /// Folder to write; may exist only if it is the folder of --package
    #[arg(long, short, value_name = "PKG")]
    output: PathBuf,
}

/// What is imported, and as what.
struct Source<'a> {
    args: &'a Args,
    /// The weights file.
    file: PathBuf,
    family: String,
    /// The configuration beside the weights.
    snapshot: Option<Snapshot>,
}

impl Source<'_> {
    fn new(args: &Args) -> Result<Source<'_>> {
        let snapshot =
            args.checkpoint.is_dir().then(|| Snapshot::open(&args.checkpoint)).transpose()?;
        let file = snapshot.as_ref().map_or(&args.checkpoint, |s| &s.weights).clone();
        let named = args.recipe.as_deref().map(recipe).transpose()?;
        let vit = snapshot.is_some()
            || named.is_some_and(|text| {
                Recipe::parse(text).is_ok_and(|recipe| recipe.encoder.family == "vit")
            });
        let family = match &args.family {
            Some(family) => family.clone(),
            None if vit => "vit".into(),
            None => return Err(Error::usage("what is in the checkpoint? say --family")),
        };
        Ok(Source { args, file, family, snapshot })
    }
}

/// Runs the verb.
///
/// # Errors
/// [`crate::Kind::Weights`] when the checkpoint does not fit the model, and whatever reading it and
/// writing the package can give.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let source = Source::new(args)?;
    let layout = Layout::of_family(&source.family);
    if layout == Layout::Torchvision {
        models::family(&source.family).map_err(|e| {
            Error::usage(format!("{e}, balnmp, histcode-encoder, clam-sb, clam-mb"))
        })?;
    }
    if layout == Layout::Segmenter {
        models::segmenter_family(&source.family)?;
    }
    let checkpoint = Tensors::open(&source.file)?;
    if let Some(class) = &args.gate {
        return gate::import(&source, &checkpoint, layout, class, global);
    }
    let sorted = sort(&checkpoint, layout)?;
    refuse_unknown(&sorted, &source)?;

    if args.head.is_some() && sorted.head.is_empty() {
        return Err(Error::usage(format!("--head: a {} checkpoint has no head", source.family)));
    }

    let mut plan = Plan::new(&source, &sorted)?;
    let mut writer = PackageWriter::create(&args.output, args.package.as_deref())?;
    let mut report = String::new();
    if !sorted.encoder.is_empty() {
        let tensors = plan.encoder(&sorted.encoder)?;
        write_part(&mut writer, &plan.recipe.encoder.weights, &tensors, &mut report)?;
    }
    if !sorted.head.is_empty() {
        let head = plan.head(&source, &sorted.head)?;
        write_part(&mut writer, &head.weights, &sorted.head, &mut report)?;
    }
    if !sorted.segmenter.is_empty() {
        let file = plan.segmenter(&source.family, &sorted.segmenter)?;
        write_part(&mut writer, &file, &sorted.segmenter, &mut report)?;
    }
    writer.finish(&plan.text()?)?;

    describe_rest(&sorted, &checkpoint, &plan, global.verbose, &mut report);
    let package = Package::open(&args.output)?;
    let _ = writeln!(report, "{}: recipe id {}", args.output.display(), package.recipe_id);
    if !global.quiet {
        std::io::stdout().write_all(report.as_bytes()).map_err(|e| Error::io("stdout", e))?;
    }
    Ok(Outcome::Done)
}

fn refuse_unknown(sorted: &Sorted, source: &Source<'_>) -> Result<()> {
    let unknown: Vec<&str> = sorted
        .fates
        .iter()
        .filter(|(_, fate)| *fate == Fate::Unknown)
        .map(|(key, _)| key.as_str())
        .collect();
    if !unknown.is_empty() {
        let more = if unknown.len() > 6 { ", ..." } else { "" };
        return Err(Error::weights(format!(
            "{}: {} tensors are not of a {} checkpoint: {}{more}",
            source.file.display(),
            unknown.len(),
            source.family,
            unknown[..unknown.len().min(6)].join(", ")
        )));
    }
    if [&sorted.encoder, &sorted.head, &sorted.segmenter].iter().all(|part| part.is_empty()) {
        return Err(Error::weights(format!(
            "{}: no tensor of a {} checkpoint",
            source.file.display(),
            source.family
        )));
    }
    Ok(())
}

/// The recipe the package will have.
struct Plan {
    recipe: Recipe,
    /// Its text as it was written, as long as nothing in it has to change.
    verbatim: Option<String>,
    /// Tensors left out because they lie behind the recipe's truncation.
    truncated: Vec<String>,
}

impl Plan {
    fn new(source: &Source<'_>, sorted: &Sorted) -> Result<Plan> {
        let args = source.args;
        let text = match &args.package {
            Some(dir) => {
                let path = dir.join("recipe.toml");
                std::fs::read_to_string(&path)
                    .map_err(|e| Error::io(path.display().to_string(), e))?
            }
            None => default_recipe(source, sorted)?,
        };
        let mut recipe = Recipe::parse(&text).context(|| match &args.package {
            Some(dir) => dir.join("recipe.toml").display().to_string(),
            None => "default recipe".into(),
        })?;
        let mut verbatim = Some(text);
        if let Some(name) = &args.backbone {
            set_backbone(&mut recipe, name, &source.family)?;
            verbatim = None;
        }
        let known = models::FAMILIES.iter().any(|f| f.name == source.family);
        if known && recipe.encoder.family != source.family {
            return Err(Error::usage(format!(
                "--family {}, but the recipe's encoder is {}",
                source.family, recipe.encoder.family
            )));
        }
        if let Some(snapshot) = &source.snapshot {
            agree(snapshot, &recipe)?;
        }
        Ok(Plan { recipe, verbatim, truncated: Vec::new() })
    }

    /// The encoder's tensors without those behind the truncation, checked by building the model.
    fn encoder(&mut self, tensors: &Tensors) -> Result<Tensors> {
        let stage = self.recipe.encoder.truncate.as_deref().and_then(stage_number);
        let behind = |name: &str| {
            let own = name.split('.').next().and_then(stage_number);
            matches!((stage, own), (Some(last), Some(own)) if own > last)
        };
        self.truncated = tensors.names().filter(|n| behind(n)).map(str::to_string).collect();
        let kept = tensors.renamed(|name| (!behind(name)).then(|| name.to_string()))?;
        models::build(&self.recipe, &kept)?;
        Ok(kept)
    }

    /// The weights file of the segmenter of this family, checked by building it: the recipe's, or
    /// one the recipe gets.
    fn segmenter(&mut self, family: &str, tensors: &Tensors) -> Result<String> {
        let of_family = |s: &&Segmenter| s.family == family;
        let known = self.recipe.segmenters.iter().find(of_family).cloned();
        let segmenter = match known {
            Some(segmenter) => segmenter,
            None => {
                let recipe = Recipe::parse(&segmenter_recipe(family, Path::new("")))?;
                let Some(new) = recipe.segmenters.into_iter().next() else {
                    return Err(Error::usage(format!("the recipe has no {family} segmenter")));
                };
                self.recipe.segmenters.push(new.clone());
                self.verbatim = None;
                new
            }
        };
        let multiple = models::segmenter_family(family)?.multiple;
        models::build_segmenter(&segmenter, [2 * multiple; 2], tensors)
            .context(|| tensors.path().display().to_string())?;
        Ok(segmenter.weights)
    }

    /// The head to write, checked by building it.
    fn head(&mut self, source: &Source<'_>, tensors: &Tensors) -> Result<Head> {
        let head = self.choose_head(source)?;
        heads::build(&head, self.feature_dim(source)?, tensors)?;
        Ok(head)
    }

    /// What the encoder of the package that is added to makes, where it is there already.
    fn feature_dim(&self, source: &Source<'_>) -> Result<Option<usize>> {
        let Some(dir) = &source.args.package else { return Ok(None) };
        if !dir.join(&self.recipe.encoder.weights).is_file() {
            return Ok(None);
        }
        let encoder = models::build(&self.recipe, &Package::open(dir)?.encoder()?)?;
        Ok(Some(encoder.feature_dim))
    }

    /// The named head, the only one there is, or a new one like the first.
    fn choose_head(&mut self, source: &Source<'_>) -> Result<Head> {
        let (args, family) = (source.args, &source.family);
        let same: Vec<Head> =
            self.recipe.heads.iter().filter(|h| h.family == *family).cloned().collect();
        let Some(first) = same.first() else {
            return Err(Error::usage(format!("the recipe has no {family} head")));
        };
        let Some(name) = &args.head else {
            if same.len() > 1 {
                return Err(Error::usage("the recipe has several such heads; say which: --head"));
            }
            return Ok(first.clone());
        };
        if let Some(head) = same.iter().find(|h| h.name == *name) {
            return Ok(head.clone());
        }
        let weights = format!("{name}.safetensors");
        let head = Head { name: name.clone(), weights, ..first.clone() };
        self.recipe.heads.push(head.clone());
        self.verbatim = None;
        Ok(head)
    }

    fn text(&self) -> Result<String> {
        match &self.verbatim {
            Some(text) => Ok(text.clone()),
            None => serialise(&self.recipe),
        }
    }
}

/// Gives a BALNMP recipe another backbone, as the original selects them: the two Inceptions normalise
/// their input once more, a DenseNet ends before its activation.
fn set_backbone(recipe: &mut Recipe, name: &str, family: &str) -> Result<()> {
    if family != "balnmp" {
        return Err(Error::usage(format!("--backbone goes with --family balnmp, not {family}")));
    }
    models::family(name)?;
    recipe.encoder.family = name.into();
    recipe.encoder.transform_input = matches!(name, "googlenet" | "inception_v3");
    let without_norm = name == "alexnet" || name.starts_with("vgg") && !name.ends_with("_bn");
    if without_norm {
        recipe.encoder.bn_mode = BnMode::Running;
    }
    recipe.encoder.truncate = name.starts_with("densenet").then(|| "features".to_string());
    Ok(())
}

fn stage_number(name: &str) -> Option<u32> {
    name.strip_prefix("layer")?.parse().ok()
}

fn serialise(recipe: &Recipe) -> Result<String> {
    toml::to_string(recipe).map_err(|e| Error::malformed(format!("recipe: {e}")))
}

/// What the configuration of a snapshot says must not contradict the recipe.
fn agree(snapshot: &Snapshot, recipe: &Recipe) -> Result<()> {
    let heads = |recipe: &Recipe| recipe.encoder.vit.as_ref().map(|vit| vit.heads);
    match (heads(&snapshot.recipe), heads(recipe)) {
        (Some(theirs), Some(ours)) if theirs != ours => Err(Error::usage(format!(
            "config.json says {} with {theirs} attention heads, the recipe {} has {ours}",
            snapshot.architecture, recipe.name
        ))),
        _ => Ok(()),
    }
}

/// The recipe of a checkpoint that comes without one.
fn default_recipe(source: &Source<'_>, sorted: &Sorted) -> Result<String> {
    if let Some(name) = &source.args.recipe {
        return Ok(recipe(name)?.into());
    }
    match Layout::of_family(&source.family) {
        Layout::Balnmp => {
            let width = |name: &str, axis: usize| {
                sorted.head.get(name).and_then(|t| t.shape.get(axis).copied())
            };
            let clinical =
                width("classifier.0.weight", 1) > width("attention_aggregator.fc1.0.weight", 0);
            Ok(recipe(if clinical { "balnmp-dl-cnb-c" } else { "balnmp-dl-cnb" })?.into())
        }
        Layout::HistcodeEncoder => {
            let recipe = Recipe::parse(recipe("histcode-diagnosis")?)?;
            serialise(&Recipe { heads: Vec::new(), ..recipe })
        }
        Layout::Abmil | Layout::LastLayer => {
            Err(Error::usage("this head needs the package of its encoder: --package DIR"))
        }
        Layout::Clam => {
            let mut recipe = Recipe::parse(recipe("histcode-diagnosis")?)?;
            for head in &mut recipe.heads {
                head.family.clone_from(&source.family);
            }
            serialise(&recipe)
        }
        Layout::Vit => match &source.snapshot {
            Some(snapshot) => serialise(&snapshot.recipe),
            None => Err(Error::usage(
                "a vision transformer needs a recipe: --recipe NAME, --package DIR, or the folder \
                 of the checkpoint with its config.json",
            )),
        },
        Layout::Torchvision | Layout::KerasInception => {
            Ok(encoder_recipe(&source.family, &source.file))
        }
        Layout::Segmenter => Ok(segmenter_recipe(&source.family, &source.file)),
    }
}

/// Tiles at 0.5 um/px of the side and with the normalisation the family was published with: where
/// most begin; edit to suit.
fn encoder_recipe(family: &str, checkpoint: &Path) -> String {
    let side = if family.starts_with("inception") { 299 } else { 224 };
    let normalisation = if family == "inception_v3_keras" { HALVES } else { IMAGENET };
    let transform = match family {
        "inception_v3" | "googlenet" => "transform_input = true\n",
        _ => "",
    };
    format!(
        "{}[tiles]\nsize_px = {side}\nmpp = 0.5\n\n[preprocess]\n{normalisation}\n\
         [encoder]\nfamily = \"{family}\"\n{transform}",
        recipe_head(family, "Features of", checkpoint)
    )
}

/// Pictures in their own size with ImageNet's normalisation; no encoder.
fn segmenter_recipe(family: &str, checkpoint: &Path) -> String {
    let output = if family.starts_with("deeplabv3_") { "softmax" } else { "sigmoid" };
    format!(
        "{}[image]\n\n[preprocess]\n{IMAGENET}\n[encoder]\nfamily = \"none\"\n\n\
         [[segmenter]]\nname = \"{family}\"\nfamily = \"{family}\"\n\
         weights = \"{family}.safetensors\"\noutput = \"{output}\"\n\n\
         [segmenter.preprocess]\n{IMAGENET}",
        recipe_head(family, "Segmentation by", checkpoint)
    )
}

const IMAGENET: &str = "mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n";
const HALVES: &str = "mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n";

fn recipe_head(family: &str, what: &str, checkpoint: &Path) -> String {
    let file = checkpoint.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "schema = 1\nname = \"{family}\"\ntitle = \"{what} {family}\"\n\
         licence = \"of the checkpoint\"\nsource = {}\n\n",
        toml::Value::String(file.into_owned())
    )
}

/// Converts and writes one weights file and says so.
fn write_part(
    writer: &mut PackageWriter,
    file: &str,
    tensors: &Tensors,
    report: &mut String,
) -> Result<()> {
    let (mut arrays, mut numbers, mut flushed) = (Vec::new(), 0, 0);
    for tensor in tensors.names().filter_map(|name| tensors.get(name)) {
        let (array, zeroed) =
            Array::from_tensor(&tensor).context(|| tensors.path().display().to_string())?;
        numbers += tensor.len();
        flushed += zeroed;
        arrays.push(array);
    }
    writer.weights(file, &arrays)?;
    let _ = writeln!(report, "{file}: {} tensors, {numbers} numbers", arrays.len());
    if flushed > 0 {
        let _ = writeln!(report, "  {flushed} numbers were too small for FP16 and became 0");
    }
    Ok(())
}

/// What was mapped (tensor by tensor when asked), dropped and ignored.
fn describe_rest(
    sorted: &Sorted,
    checkpoint: &Tensors,
    plan: &Plan,
    verbose: bool,
    report: &mut String,
) {
    let mut dropped: Vec<(&str, &'static str)> = Vec::new();
    for (key, fate) in &sorted.fates {
        match fate {
            Fate::Encoder(name) if plan.truncated.contains(name) => {
                dropped.push((key, "behind the recipe's truncation"));
            }
            Fate::Encoder(name) | Fate::Head(name) | Fate::Segmenter(name) if verbose => {
                let shape = checkpoint.get(key).map(|t| t.shape.to_vec()).unwrap_or_default();
                let _ = writeln!(report, "  {name} {shape:?} <- {key}");
            }
            Fate::Drop(reason) => dropped.push((key, reason)),
            _ => {}
        }
    }
    let mut reasons: Vec<&str> = dropped.iter().map(|(_, reason)| *reason).collect();
    reasons.sort_unstable();
    reasons.dedup();
    for reason in reasons {
        let keys: Vec<&str> =
            dropped.iter().filter(|(_, r)| *r == reason).map(|(key, _)| *key).collect();
        let shown = if verbose { keys.len() } else { keys.len().min(3) };
        let more = if shown < keys.len() { ", ..." } else { "" };
        let list = keys[..shown].join(", ");
        let _ = writeln!(report, "dropped {} tensors, {reason}: {list}{more}", keys.len());
    }
    for ignored in checkpoint.ignored() {
        let _ = writeln!(report, "ignored {ignored}");
    }
}
