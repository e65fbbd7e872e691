//! `histokern import --gate`: a tile classifier becomes part of the gate of a package.

use super::{Outcome, Source, serialise, write_part};
use crate::cli::Global;
use crate::error::{Context, Error, Result};
use crate::pipeline::gate;
use crate::recipe::{Classifier, Gate, Recipe};
use crate::weights::import::{Fate, Layout, sort_classifier};
use crate::weights::{Package, PackageWriter, Tensors};
use std::fmt::Write as _;
use std::io::Write as _;

/// Adds the classifier to the package that is named, whose gate it may begin.
///
/// # Errors
/// [`crate::Kind::Usage`] when the arguments contradict the gate there is, [`crate::Kind::Weights`]
/// naming file and tensor when the checkpoint does not fit, and what writing can give.
pub fn import(
    source: &Source<'_>,
    checkpoint: &Tensors,
    layout: Layout,
    class: &str,
    global: &Global,
) -> Result<Outcome> {
    let args = source.args;
    let Some(dir) = &args.package else { return Err(Error::usage("--gate needs --package")) };
    if !matches!(layout, Layout::Torchvision | Layout::KerasInception) {
        let what = format!("--gate: {} is no classifier of pictures", source.family);
        return Err(Error::usage(what));
    }
    let path = dir.join("recipe.toml");
    let mut recipe = Recipe::read(&path)?;
    let sorted = sort_classifier(checkpoint, layout)?;
    let mut spec = begun(recipe.gate.take(), source, class)?;
    let weights = (1..).map(|n| format!("gate-{n}.safetensors"));
    let taken = |name: &String| spec.classifiers.iter().any(|c| c.weights == *name);
    let Some(weights) = weights.into_iter().find(|name| !taken(name)) else {
        return Err(Error::usage("no name is left for a classifier of the gate"));
    };
    let transform_input = matches!(source.family.as_str(), "inception_v3" | "googlenet")
        && recipe.encoder.transform_input;
    let classifier =
        Classifier { family: source.family.clone(), weights: weights.clone(), transform_input };
    gate::build(&recipe, &spec, &classifier, &sorted.encoder)
        .context(|| source.file.display().to_string())?;
    spec.classifiers.push(classifier);
    recipe.gate = Some(spec);

    let mut writer = PackageWriter::create(&args.output, Some(dir))?;
    let mut report = String::new();
    write_part(&mut writer, &weights, &sorted.encoder, &mut report)?;
    writer.finish(&serialise(&recipe)?)?;
    let dropped = sorted.fates.iter().filter(|(_, fate)| matches!(fate, Fate::Drop(_))).count();
    if dropped > 0 {
        let _ = writeln!(report, "dropped {dropped} tensors that are for training only");
    }
    let count = recipe.gate.as_ref().map_or(0, |gate| gate.classifiers.len());
    let _ = writeln!(report, "the gate lets {class} pass by the mean of {count} classifiers");
    let package = Package::open(&args.output)?;
    let _ = writeln!(report, "{}: recipe id {}", args.output.display(), package.recipe_id);
    if !global.quiet {
        std::io::stdout().write_all(report.as_bytes()).map_err(|e| Error::io("stdout", e))?;
    }
    Ok(Outcome::Done)
}

/// The gate there is, or a new one of what the arguments say.
fn begun(there: Option<Gate>, source: &Source<'_>, class: &str) -> Result<Gate> {
    let args = source.args;
    let Some(gate) = there else {
        return Ok(Gate {
            class: class.into(),
            classes: args.gate_classes.clone(),
            threshold: args.gate_threshold.unwrap_or(0.5),
            mean: None,
            std: None,
            classifiers: Vec::new(),
        });
    };
    let other_classes = !args.gate_classes.is_empty() && args.gate_classes != gate.classes;
    if gate.class != class || other_classes {
        return Err(Error::usage(format!(
            "--gate: the gate of the package lets {} of {:?} pass",
            gate.class, gate.classes
        )));
    }
    if args.gate_threshold.is_some_and(|p| p != gate.threshold) {
        let what = format!("--gate-threshold: the gate of the package has {}", gate.threshold);
        return Err(Error::usage(what));
    }
    Ok(gate)
}
