//! `histokern explain weep`: the tiles that keep a slide above a threshold.

use super::{Global, Outcome, said};
use crate::cli::common::{SlideArgs, make_folder};
use crate::cli::{cohort, print_json};
use crate::error::{Error, Result};
use crate::heads::weep;
use crate::pipeline::{Prepared, outputs};
use crate::recipe::{Aggregate, Recipe};
use crate::report::{csv, heatmap, plot};
use serde_json::json;
use std::path::PathBuf;

/// Which tiles keep a slide above a threshold (WEEP)
///
/// Tiles are taken away from the highest prediction down, until the percentile of those left falls
/// below the threshold; what was taken away before is the explanation. Reads tiles.csv as `predict`
/// writes it for heads that predict tiles; tiles that a gate left out have no prediction and take no
/// part. Writes weep.csv, the running score as weep_curve.svg and .png, and with --slide weep.png.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Predictions of tiles: x, y and a column of predictions
    tiles: PathBuf,
    /// Score below which the slide counts as low
    #[arg(long, allow_negative_numbers = true)]
    threshold: f64,
    /// Fraction of sorted tiles whose value is the slide's score [default: the package's, else 0.75]
    #[arg(long)]
    percentile: Option<f32>,
    /// Column of predictions
    #[arg(long, default_value = "prediction")]
    column: String,
    /// The slide, to draw the tiles on; needs --package
    #[arg(long, requires = "package")]
    slide: Option<PathBuf>,
    /// Package the predictions were made with
    #[arg(long, value_name = "PKG")]
    package: Option<PathBuf>,
    /// Annotated polygons the predictions were made with
    #[arg(long, value_name = "FILE")]
    regions: Option<PathBuf>,
    /// Folder to write
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: SlideArgs,
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let recipe = match &args.package {
        Some(dir) => Some(Recipe::read(&dir.join("recipe.toml"))?),
        None => None,
    };
    let q = percentile(args, recipe.as_ref())?;
    if !args.threshold.is_finite() {
        return Err(Error::usage("--threshold: a finite number is needed"));
    }
    let (coords, predictions) = csv::read_tiles(&args.tiles, &args.column)?;
    let removals = weep::explain(&predictions, q, args.threshold);
    let selected: Vec<usize> = removals.iter().filter(|r| r.selected).map(|r| r.tile).collect();

    make_folder(&args.out)?;
    let path = args.out.join("weep.csv");
    let at: Vec<[i64; 2]> = removals.iter().map(|r| coords[r.tile]).collect();
    let column = |f: &dyn Fn(&weep::Removal) -> f64| removals.iter().map(f).collect::<Vec<f64>>();
    let columns = [
        (args.column.clone(), column(&|r| predictions[r.tile])),
        ("removed".into(), column(&|r| r.removed)),
        ("slide_score".into(), column(&|r| r.score)),
        ("selected".into(), column(&|r| f64::from(u8::from(r.selected)))),
    ];
    csv::write_tiles(&path, &at, &columns)?;
    said(global, &path);
    let mut points = vec![[0.0, weep::score(&predictions, q)]];
    points.extend(removals.iter().map(|r| [100.0 * r.removed, r.score]));
    plot::weep::weep(&points, selected.len(), args.threshold).write(&args.out)?;
    said(global, &args.out.join("weep_curve.svg"));
    if let (Some(slide), Some(recipe)) = (&args.slide, &recipe) {
        let job = cohort::jobs(std::slice::from_ref(slide), args.regions.as_deref())?.remove(0);
        let prepared = Prepared::new(&job, 0, recipe, &args.open.options()?)?;
        let picture = outputs::Picture::new(&prepared)?;
        let path = args.out.join("weep.png");
        let scores: Vec<f64> =
            (0..coords.len()).map(|i| if selected.contains(&i) { 100.0 } else { 0.0 }).collect();
        let shown = outputs::Shown {
            coords: &coords,
            side: prepared.grid.size_level0,
            scores: &scores,
            ends: ["rest", "", "selected"],
            caption: "tiles that keep the slide above the threshold",
        };
        let options = heatmap::Options { percentile: false, ..heatmap::Options::default() };
        outputs::draw(&path, &picture, &shown, &options)?;
        said(global, &path);
    }
    tell(args, q, &predictions, &removals, selected.len());
    Ok(Outcome::Done)
}

/// The fraction asked for, the package's, or WEEP's own.
fn percentile(args: &Args, recipe: Option<&Recipe>) -> Result<f32> {
    let of_package = recipe.and_then(|recipe| {
        recipe.heads.iter().find_map(|head| match head.aggregate {
            Some(Aggregate::Percentile(q)) => Some(q),
            _ => None,
        })
    });
    let q = args.percentile.or(of_package).unwrap_or(0.75);
    if !(0.0..=1.0).contains(&q) {
        return Err(Error::usage(format!("--percentile {q}: a fraction from 0 to 1")));
    }
    Ok(q)
}

fn tell(args: &Args, q: f32, predictions: &[f64], removals: &[weep::Removal], selected: usize) {
    let share = selected as f64 / predictions.len().max(1) as f64;
    if args.json {
        print_json(&json!({
            "tiles": predictions.len(), "percentile": q, "threshold": args.threshold,
            "score": weep::score(predictions, q), "above": !removals.is_empty(), "selected": selected, "selected_share": share,
        }));
    } else if removals.is_empty() {
        println!("the slide is below {} from the start: nothing to explain", args.threshold);
    } else {
        let n = predictions.len();
        println!(
            "{selected} of {n} tiles ({:.1} %) keep the slide at {} or above",
            100.0 * share,
            args.threshold
        );
    }
}
