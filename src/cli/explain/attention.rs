//! `histokern explain attention`: a fine heatmap from overlapping tiles.

use super::{Global, Look, Outcome, Ready, said, stride};
use crate::error::{Error, Result};
use crate::pipeline::{Parts, explain, outputs};
use crate::report::colormap::Colormap;
use crate::report::{csv, heatmap};

/// Attention over overlapping tiles, each ranked among the tiles of the prediction
///
/// The tiles of the recipe's own grid give the reference scores; tiles closer together are scored
/// by the same head and take the percentile of their score among the reference (CLAM's fine map).
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    look: Look,
    /// Head whose attention is shown [default: the first]
    #[arg(long, value_name = "NAME")]
    head: Option<String>,
    /// Part of a tile shared with its neighbour, 0 to 0.95
    #[arg(long, default_value_t = 0.5, value_name = "FRACTION")]
    overlap: f64,
    #[command(flatten)]
    colours: Colours,
}

/// How a heatmap looks.
#[derive(Debug, clap::Args)]
pub struct Colours {
    /// Colours of the map
    #[arg(long, value_enum, default_value_t = Colormap::Coolwarm)]
    colormap: Colormap,
    /// Weight of the colours against the slide, 0 to 1
    #[arg(long, default_value_t = 0.4)]
    alpha: f64,
    /// Smooth with a Gaussian about as wide as the step between tiles
    #[arg(long)]
    blur: bool,
    /// Draw on white instead of the slide
    #[arg(long)]
    blank_canvas: bool,
}

impl Colours {
    /// As the heatmap takes them.
    pub fn options(&self, percentile: bool, overlap: f64) -> heatmap::Options {
        heatmap::Options {
            percentile,
            colormap: self.colormap,
            alpha: self.alpha,
            blur: self.blur,
            overlap,
            blank_canvas: self.blank_canvas,
        }
    }
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    if !(0.0..=0.95).contains(&args.overlap) {
        return Err(Error::usage(format!("--overlap {}: 0 to 0.95", args.overlap)));
    }
    let Ready { mut engine, job, mut options, progress, .. } =
        args.look.ready(Parts::All, 2, global)?;
    let head = match &args.head {
        None => 0,
        Some(name) => engine
            .heads()
            .position(|h| h.name == *name)
            .ok_or_else(|| Error::usage(format!("the package has no head {name}")))?,
    };
    let coarse = explain::encode(&mut engine, &job, &options, &progress)?;
    let branches = engine.heads().nth(head).map_or(1, |h| h.branches);
    let reference = explain::attention(&mut engine, head, coarse.features, &progress)?;
    options.stride_px = Some(stride(engine.recipe(), args.overlap)?);
    let fine = explain::encode(&mut engine, &job, &options, &progress)?;
    let scores = explain::attention(&mut engine, head, fine.features, &progress)?;
    progress.finish();

    let coords: Vec<[i64; 2]> = fine.tiles.iter().map(|&i| fine.prepared.grid.origins[i]).collect();
    let picture = outputs::Picture::new(&fine.prepared)?;
    let classes = engine.heads().nth(head).map(|h| h.classes.clone()).unwrap_or_default();
    let mut columns = Vec::new();
    for branch in 0..branches {
        let column = |all: &[f32]| -> Vec<f64> {
            all.iter().skip(branch).step_by(branches).map(|&v| v.into()).collect()
        };
        let raw = column(&scores);
        let percentiles = heatmap::percentiles_against(&raw, &column(&reference));
        let class = classes.get(branch).filter(|_| branches > 1);
        let of = class.map_or(String::new(), |class| format!("-{class}"));
        let path = args.look.out.join(format!("attention{of}.png"));
        let options = args.colours.options(false, args.overlap);
        let shown = outputs::Shown {
            coords: &coords,
            side: fine.prepared.grid.size_level0,
            scores: &percentiles,
            ends: ["0", "50", "100"],
            caption: "attention percentile",
        };
        outputs::draw(&path, &picture, &shown, &options)?;
        said(global, &path);
        columns.push((format!("raw{of}"), raw));
        columns.push((format!("percentile{of}"), percentiles));
    }
    let path = args.look.out.join("attention.csv");
    csv::write_tiles(&path, &coords, &columns)?;
    said(global, &path);
    Ok(Outcome::Done)
}
