//! `histokern import`: a reference checkpoint becomes a package.

use super::{Global, Outcome};
use crate::error::{Context, Error, Result};
use crate::recipe::{Head, Recipe};
use crate::weights::import::{Fate, Layout, Sorted, sort};
use crate::weights::{Array, Package, PackageWriter, Tensors};
use crate::{heads, models};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Turn a PyTorch or safetensors checkpoint into a package
///
/// FAMILY is a torchvision encoder (vgg16_bn, resnet50, ...), balnmp, histcode-encoder, clam-sb or
/// clam-mb. Every tensor of the checkpoint must have its place in the model or be one that
/// inference does not need. Pickles are read as data; nothing in them is executed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// .pth, .pt, .pth.tar or .safetensors
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// How its tensors are named and what they are
    #[arg(long)]
    family: String,
    /// Package whose recipe and other weights are kept [default: the family's own recipe]
    #[arg(long, value_name = "DIR")]
    package: Option<PathBuf>,
    /// The recipe's head to import; a new name adds a head like the one there is
    #[arg(long, value_name = "NAME")]
    head: Option<String>,
    /// Folder to write; may exist only if it is the folder of --package
    #[arg(long, short, value_name = "PKG")]
    output: PathBuf,
}

/// Runs the verb.
///
/// # Errors
/// [`crate::Kind::Weights`] when the checkpoint does not fit the model, and whatever reading it and
/// writing the package can give.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let layout = Layout::of_family(&args.family);
    if layout == Layout::Torchvision {
        models::family(&args.family).map_err(|e| {
            Error::usage(format!("{e}, balnmp, histcode-encoder, clam-sb, clam-mb"))
        })?;
    }
    let checkpoint = Tensors::open(&args.checkpoint)?;
    let sorted = sort(&checkpoint, layout)?;
    refuse_unknown(&sorted, args)?;

    if args.head.is_some() && sorted.head.is_empty() {
        return Err(Error::usage(format!("--head: a {} checkpoint has no head", args.family)));
    }

    let mut plan = Plan::new(args, &sorted)?;
    let mut writer = PackageWriter::create(&args.output, args.package.as_deref())?;
    let mut report = String::new();
    if !sorted.encoder.is_empty() {
        let tensors = plan.encoder(&sorted.encoder)?;
        write_part(&mut writer, &plan.recipe.encoder.weights, &tensors, &mut report)?;
    }
    if !sorted.head.is_empty() {
        let head = plan.head(args, &sorted.head)?;
        write_part(&mut writer, &head.weights, &sorted.head, &mut report)?;
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

fn refuse_unknown(sorted: &Sorted, args: &Args) -> Result<()> {
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
            args.checkpoint.display(),
            unknown.len(),
            args.family,
            unknown[..unknown.len().min(6)].join(", ")
        )));
    }
    if sorted.encoder.is_empty() && sorted.head.is_empty() {
        return Err(Error::weights(format!(
            "{}: no tensor of a {} checkpoint",
            args.checkpoint.display(),
            args.family
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
    fn new(args: &Args, sorted: &Sorted) -> Result<Plan> {
        let text = match &args.package {
            Some(dir) => {
                let path = dir.join("recipe.toml");
                std::fs::read_to_string(&path)
                    .map_err(|e| Error::io(path.display().to_string(), e))?
            }
            None => default_recipe(args, sorted)?,
        };
        let recipe = Recipe::parse(&text).context(|| match &args.package {
            Some(dir) => dir.join("recipe.toml").display().to_string(),
            None => "default recipe".into(),
        })?;
        let known = models::FAMILIES.iter().any(|f| f.name == args.family);
        if known && recipe.encoder.family != args.family {
            return Err(Error::usage(format!(
                "--family {}, but the recipe's encoder is {}",
                args.family, recipe.encoder.family
            )));
        }
        Ok(Plan { recipe, verbatim: Some(text), truncated: Vec::new() })
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

    /// The head to write, checked by building it.
    fn head(&mut self, args: &Args, tensors: &Tensors) -> Result<Head> {
        let head = self.choose_head(args)?;
        heads::build(&head, None, tensors)?;
        Ok(head)
    }

    /// The named head, the only one there is, or a new one like the first.
    fn choose_head(&mut self, args: &Args) -> Result<Head> {
        let same: Vec<Head> =
            self.recipe.heads.iter().filter(|h| h.family == args.family).cloned().collect();
        let Some(first) = same.first() else {
            return Err(Error::usage(format!("the recipe has no {} head", args.family)));
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

fn stage_number(name: &str) -> Option<u32> {
    name.strip_prefix("layer")?.parse().ok()
}

fn serialise(recipe: &Recipe) -> Result<String> {
    toml::to_string(recipe).map_err(|e| Error::malformed(format!("recipe: {e}")))
}

/// The recipe of a family whose checkpoint comes without one.
fn default_recipe(args: &Args, sorted: &Sorted) -> Result<String> {
    const DL_CNB: &str = include_str!("../../weights/balnmp-dl-cnb/recipe.toml");
    const DL_CNB_C: &str = include_str!("../../weights/balnmp-dl-cnb-c/recipe.toml");
    const DIAGNOSIS: &str = include_str!("../../weights/histcode-diagnosis/recipe.toml");
    match Layout::of_family(&args.family) {
        Layout::Balnmp => {
            let width = |name: &str, axis: usize| {
                sorted.head.get(name).and_then(|t| t.shape.get(axis).copied())
            };
            let clinical =
                width("classifier.0.weight", 1) > width("attention_aggregator.fc1.0.weight", 0);
            Ok(if clinical { DL_CNB_C } else { DL_CNB }.into())
        }
        Layout::HistcodeEncoder => {
            serialise(&Recipe { heads: Vec::new(), ..Recipe::parse(DIAGNOSIS)? })
        }
        Layout::Clam if args.family == "clam-sb" => Ok(DIAGNOSIS.into()),
        Layout::Clam => {
            let mut recipe = Recipe::parse(DIAGNOSIS)?;
            for head in &mut recipe.heads {
                head.family.clone_from(&args.family);
            }
            serialise(&recipe)
        }
        Layout::Torchvision => Ok(torchvision_recipe(&args.family, &args.checkpoint)),
    }
}

/// Tiles of 224 px at 0.5 um/px with ImageNet's normalisation: where most begin; edit to suit.
fn torchvision_recipe(family: &str, checkpoint: &Path) -> String {
    let file = checkpoint.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "schema = 1\nname = \"{family}\"\ntitle = \"Features of {family}\"\n\
         licence = \"of the checkpoint\"\nsource = {}\n\n\
         [tiles]\nsize_px = 224\nmpp = 0.5\n\n\
         [preprocess]\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n\n\
         [encoder]\nfamily = \"{family}\"\n",
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
            Fate::Encoder(name) | Fate::Head(name) if verbose => {
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
