//! `histokern explain tiles`: a regression of the slide as a map, by asking it of every tile alone.

use super::attention::Colours;
use super::{Global, Look, Outcome, Ready, said, stride};
use crate::error::{Error, Result};
use crate::pipeline::{Parts, explain, outputs};
use crate::recipe::Recipe;
use crate::report::csv;
use std::path::PathBuf;

/// What regression heads say of every tile alone, averaged over the heads
///
/// With one head per gene this is a map of a set of genes, such as those of lymphocytes: each head
/// sees each tile as a bag of one, whose attention is 1 (HistCode). Values are standardised per head
/// before they are averaged, so that no gene outweighs the others; tiles.csv has them as they are.
/// weights/histcode-gene/lymphocyte-genes.txt is such a set.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    look: Look,
    /// Heads to average, by name
    #[arg(
        long,
        value_name = "A,B,..",
        value_delimiter = ',',
        required_unless_present = "heads_from"
    )]
    heads: Vec<String>,
    /// File with one name of a head a line; what follows # is a remark
    #[arg(long, value_name = "FILE", conflicts_with = "heads")]
    heads_from: Option<PathBuf>,
    /// Leave out names that the package has no head for, and say which
    #[arg(long)]
    skip_missing: bool,
    /// Average values as they are
    #[arg(long)]
    raw_mean: bool,
    /// Part of a tile shared with its neighbour, 0 to 0.95
    #[arg(long, default_value_t = 0.0, value_name = "FRACTION")]
    overlap: f64,
    #[command(flatten)]
    colours: Colours,
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    if !(0.0..=0.95).contains(&args.overlap) {
        return Err(Error::usage(format!("--overlap {}: 0 to 0.95", args.overlap)));
    }
    let names = names(args)?;
    let Ready { backend, mut engine, job, mut options, progress } =
        args.look.ready(Parts::Encoder, 1, global)?;
    let names = there(names, engine.recipe(), args.skip_missing, global)?;
    options.stride_px = Some(stride(engine.recipe(), args.overlap)?).filter(|_| args.overlap > 0.0);
    let slide = explain::encode(&mut engine, &job, &options, &progress)?;
    let n = slide.tiles.len();
    let values = explain::tile_by_tile(&engine, &*backend, &names, &slide.features.read()?, n)?;
    progress.finish();

    let mean = mean_of(&values, args.raw_mean);
    let coords: Vec<[i64; 2]> =
        slide.tiles.iter().map(|&i| slide.prepared.grid.origins[i]).collect();
    let path = args.look.out.join("tiles.png");
    let low = mean.iter().copied().fold(f64::INFINITY, f64::min);
    let high = mean.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let range = if high > low { high - low } else { 1.0 };
    let shares: Vec<f64> = mean.iter().map(|v| (v - low) / range * 100.0).collect();
    let ends = [low, low + range / 2.0, low + range].map(|v| format!("{v:.2}"));
    let shown = outputs::Shown {
        coords: &coords,
        side: slide.prepared.grid.size_level0,
        scores: &shares,
        ends: [&ends[0], &ends[1], &ends[2]],
        caption: "mean over heads",
    };
    let picture = outputs::Picture::new(&slide.prepared)?;
    outputs::draw(&path, &picture, &shown, &args.colours.options(false, args.overlap))?;
    said(global, &path);

    let mut columns: Vec<(String, Vec<f64>)> = names.into_iter().zip(values).collect();
    columns.insert(0, ("mean".into(), mean));
    let path = args.look.out.join("tiles.csv");
    csv::write_tiles(&path, &coords, &columns)?;
    said(global, &path);
    Ok(Outcome::Done)
}

fn names(args: &Args) -> Result<Vec<String>> {
    let Some(path) = &args.heads_from else { return Ok(args.heads.clone()) };
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(name(), e))?;
    let name_of = |line: &str| line.split('#').next().unwrap_or_default().trim().to_string();
    let names: Vec<String> = text.lines().map(name_of).filter(|name| !name.is_empty()).collect();
    if names.is_empty() {
        return Err(Error::usage(format!("{}: no name of a head", name())));
    }
    Ok(names)
}

/// The names that the package has heads for; others are an error before any tile is read, or are
/// skipped aloud.
fn there(names: Vec<String>, recipe: &Recipe, skip: bool, global: &Global) -> Result<Vec<String>> {
    if let Some(twice) = (1..names.len()).find(|&i| names[..i].contains(&names[i])) {
        return Err(Error::usage(format!("the head {} is named twice", names[twice])));
    }
    let has = |name: &String| recipe.heads.iter().any(|h| h.name == *name);
    let (known, missing): (Vec<String>, Vec<String>) = names.into_iter().partition(has);
    if missing.is_empty() {
        return Ok(known);
    }
    let list = missing.join(", ");
    if !skip || known.is_empty() {
        let what = format!("the package {} has no head {list}", recipe.name);
        return Err(Error::usage(if skip { what } else { format!("{what} (--skip-missing)") }));
    }
    global.say(&format!("averaged over {} heads; the package has no {list}", known.len()));
    Ok(known)
}

/// The mean over heads for each tile, of values or of values in standard deviations of their head.
fn mean_of(values: &[Vec<f64>], raw: bool) -> Vec<f64> {
    let scaled = |values: &Vec<f64>| -> Vec<f64> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let sd = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
        values.iter().map(|v| if sd > 0.0 { (v - mean) / sd } else { 0.0 }).collect()
    };
    let used: Vec<Vec<f64>> = match raw {
        true => values.to_vec(),
        false => values.iter().map(scaled).collect(),
    };
    let tiles = used.first().map_or(0, Vec::len);
    (0..tiles).map(|t| used.iter().map(|v| v[t]).sum::<f64>() / used.len() as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_weigh_the_same_unless_asked_otherwise() {
        let values = [vec![0.0, 2.0], vec![30.0, 10.0]];
        assert_eq!(mean_of(&values, true), [15.0, 6.0]);
        assert_eq!(mean_of(&values, false), [0.0, 0.0]);
        assert_eq!(mean_of(&[vec![3.0, 3.0]], false), [0.0, 0.0]);
    }
}
