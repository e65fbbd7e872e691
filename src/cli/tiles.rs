//! `histokern tiles`: tissue and tile grid of a slide, to look at and for other tools.

use super::cohort::file_name;
use super::common::{SlideArgs, make_folder};
use super::{Global, Outcome, print_json};
use crate::error::{Error, Result};
use crate::pipeline::{Job, Prepared, outputs};
use crate::recipe::{ClamTissue, Tiles, Tissue};
use crate::report::h5::write_clam_patches;
use crate::report::{csv, result};
use crate::tiling::stride_for_overlap;
use serde_json::json;
use std::path::PathBuf;

/// Find the tissue of a slide and lay a grid of tiles over it
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Writes mask.png, overlay.png, tiles.geojson (QuPath), coords.csv and, when tiles are \
                  pixels of one level, coords.h5\n(CLAM). Coordinates are top-left corners in level-0 \
                  pixels.\n\nExample:\n  histokern tiles slide.svs --tile-px 256 --mpp 0.5 --out tiles"
)]
pub struct Args {
    /// Slide
    slide: PathBuf,
    /// Side of a tile in pixels
    #[arg(long, default_value_t = 256, value_name = "PX", value_parser = clap::value_parser!(u32).range(1..=16384))]
    tile_px: u32,
    /// Micrometres per pixel of the tile [default: level-0 pixels, whatever their size]
    #[arg(long, value_name = "UM")]
    mpp: Option<f64>,
    /// Pixels that neighbouring tiles share
    #[arg(long, default_value_t = 0, value_name = "PX")]
    overlap: u32,
    /// Smallest piece of tissue, in squares of 512 x 512 level-0 pixels
    #[arg(long, default_value_t = 1.0, value_name = "N")]
    min_area: f64,
    /// Annotated polygons to use instead of tissue
    #[arg(long, value_name = "FILE", conflicts_with = "min_area")]
    regions: Option<PathBuf>,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: SlideArgs,
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    if args.mpp.is_some_and(|m| !(m.is_finite() && m > 0.0)) {
        return Err(Error::usage("--mpp must be a positive number of micrometres"));
    }
    let tiles = Tiles {
        mpp: args.mpp,
        stride_px: Some(stride_for_overlap(args.tile_px, args.overlap)?),
        ..Tiles::of(args.tile_px)
    };
    let tissue = Tissue::Clam(ClamTissue { min_area: args.min_area, ..ClamTissue::default() });
    let name = args.slide.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let job = Job { name, path: args.slide.clone(), regions: args.regions.clone(), mask: None };
    let mut prepared = Prepared::with_rules(&job, 0, &tissue, &tiles, &args.open.options()?)?;
    prepared.sha256 = result::sha256_file(&args.slide)?;
    make_folder(&args.out)?;
    outputs::write_area(&args.out, &prepared)?;
    let grid = &prepared.grid;
    let all: Vec<usize> = (0..grid.origins.len()).collect();
    outputs::write_geojson(&args.out.join("tiles.geojson"), &prepared, &all, &[])?;
    csv::write_attention(&args.out.join("coords.csv"), &grid.origins, &[])?;
    let clam = outputs::clam_patches(&prepared, &job.name, &grid.origins);
    if let Some(patches) = &clam {
        write_clam_patches(&args.out.join("coords.h5"), patches)?;
    }
    for warning in &prepared.warnings {
        global.say(&format!("note: {warning}"));
    }
    if args.json {
        print_json(&json!({
            "slide": file_name(&args.slide),
            "area": prepared.area,
            "tiles": grid.origins.len(),
            "duplicates": grid.duplicates,
            "tile_px": grid.size_px,
            "stride_px": grid.stride_px,
            "mpp": grid.mpp,
            "size_level0": grid.size_level0,
            "level": grid.level,
            "read_px": grid.read_px,
            "coords_h5": clam.is_some(),
        }));
    } else {
        println!(
            "{}: {} tiles on {}, each {:.1} level-0 px, read as {} px of level {}",
            args.slide.display(),
            grid.origins.len(),
            prepared.area,
            grid.size_level0,
            grid.read_px,
            grid.level
        );
    }
    Ok(Outcome::Done)
}
