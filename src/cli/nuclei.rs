//! `histokern nuclei`: the nuclei of chosen tiles, measured and compared.

use super::cohort::file_name;
use super::common::{SlideArgs, make_folder};
use super::nuclei_report::{Measured, Report};
use super::tile_list::{Choice, TileList};
use super::{Global, Outcome, print_json};
use crate::error::{Context, Error, Result};
use crate::nuclei::Parameters;
use crate::pipeline::nuclei::{NucleusReader, strength};
use crate::pipeline::{Job, Prepared, stain};
use crate::recipe::{ClamTissue, MacenkoStain, Tiles, Tissue};
use crate::report::result;
use crate::slide::Scratch;
use crate::stain::deconvolution::RUIFROK;
use crate::stain::{Deconvolution, macenko};
use indicatif::{ProgressBar, ProgressDrawTarget};
use rayon::prelude::*;
use std::path::PathBuf;

/// Side of a sampled tile in micrometres, and in level-0 pixels when their size is not known.
const SAMPLE_UM: f64 = 256.0;
const SAMPLE_PX: f64 = 512.0;

/// Measure the nuclei of the tiles a model looked at most, and of the others
#[derive(clap::Args, Debug)]
#[command(
    after_help = "With --tiles, the tiles of highest attention are compared with others spread evenly \
                  over the remaining ranks;\nwithout, tiles are sampled evenly over the tissue. Writes \
                  nuclei.csv (one row a nucleus), tiles.csv, comparison.json,\nnuclei.geojson (QuPath) \
                  and overlay.png (some tiles with the outlines found).\n\nClassical image analysis, no \
                  network: look at overlay.png before you trust the numbers. Research use only.\n\n\
                  Examples:\n  histokern predict slide.svs --package weights/demo --out out\n  \
                  histokern nuclei slide.svs --tiles out/slide/attention.csv --top 100 --out nuclei\n  \
                  histokern nuclei slide.svs --sample 50 --out nuclei"
)]
pub struct Args {
    /// Slide
    slide: PathBuf,
    /// Table with columns x, y and a score, as `predict` writes it
    #[arg(long, value_name = "CSV")]
    tiles: Option<PathBuf>,
    /// Column of the scores [default: raw, if there is one such column]
    #[arg(long, value_name = "NAME", requires = "tiles")]
    column: Option<String>,
    /// Tiles of highest score
    #[arg(long, default_value_t = 100, value_name = "N", requires = "tiles", value_parser = clap::value_parser!(u16).range(1..=2000))]
    top: u16,
    /// Tiles out of the others to compare them with [default: as many as --top]
    #[arg(long, value_name = "N", requires = "tiles", value_parser = clap::value_parser!(u16).range(0..=2000))]
    rest: Option<u16>,
    /// Tiles to sample when no list is given
    #[arg(long, default_value_t = 100, value_name = "N", conflicts_with = "tiles", value_parser = clap::value_parser!(u16).range(1..=2000))]
    sample: u16,
    /// Side of a tile in level-0 pixels [default: what result.json beside the list says; 256 um
    /// for a sample]
    #[arg(long, value_name = "PX", value_parser = clap::value_parser!(u32).range(16..=16384))]
    tile_px: Option<u32>,
    /// Where the colour of haematoxylin comes from
    #[arg(long, value_enum, default_value_t = StainSource::Macenko)]
    stain: StainSource,
    /// Haematoxylin above the local background that makes a nucleus, as a share of the slide's 99th
    /// percentile
    #[arg(long, default_value_t = Parameters::default().threshold, value_name = "F", value_parser = threshold)]
    threshold: f64,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print comparison.json
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: SlideArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum StainSource {
    /// Fitted on the slide's tissue
    Macenko,
    /// The colours published by Ruifrok and Johnston
    Ruifrok,
}

fn threshold(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value < 1.0 => Ok(value),
        _ => Err("a number between 0 and 1".into()),
    }
}

/// Runs the verb.
///
/// # Errors
/// What keeps the slide, the list or a file from being read or written; tiles that cannot be read
/// are reported and left out.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let name = || args.slide.display().to_string();
    let prepared = prepare(args)?;
    let list = choose(args, &prepared)?;
    if list.tiles.is_empty() {
        return Err(Error::usage(format!("{}: no tile on {}", name(), prepared.area)));
    }
    let (stains, colours) = separation(args, &prepared).context(name)?;
    let tissue = stain::tissue_pixels(&prepared)?;
    let strong = strength(&stains, &tissue).context(name)?;
    let parameters = Parameters { threshold: args.threshold, ..Parameters::default() };
    let reader = NucleusReader::new(&prepared.slide, stains, strong, parameters).context(name)?;
    make_folder(&args.out)?;
    let tiles = measure(&reader, &list, global)?;
    prepared.slide.check_unchanged()?;
    let report = Report {
        slide: file_name(&args.slide),
        sha256: prepared.sha256.clone(),
        mpp: reader.mpp,
        level: reader.level,
        downsample: reader.downsample,
        stain: colours,
        strong,
        parameters,
        list: &list,
        tiles: &tiles,
        warnings: prepared.warnings.clone(),
    };
    let summary = report.write(&args.out)?;
    if args.json {
        print_json(&summary);
    } else {
        report.print(&summary);
    }
    let unread = tiles.iter().any(Result::is_err);
    Ok(if unread { Outcome::Partial } else { Outcome::Done })
}

/// The slide, its tissue, and a grid of tiles on it.
fn prepare(args: &Args) -> Result<Prepared> {
    let tissue = Tissue::Clam(ClamTissue { min_area: 0.1, ..ClamTissue::default() });
    let mut tiles = Tiles::of(args.tile_px.unwrap_or(SAMPLE_PX as u32));
    let open = args.open.options()?;
    let slide = crate::slide::Slide::open(&args.slide, &open)?;
    if let (None, Some(mpp)) = (args.tile_px, slide.mpp()) {
        tiles.size_px =
            (SAMPLE_UM / f64::midpoint(mpp.x, mpp.y)).round().clamp(16.0, 16_384.0) as u32;
    }
    drop(slide);
    let name = args.slide.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let job = Job { name, path: args.slide.clone(), regions: None, mask: None };
    let mut prepared = Prepared::with_rules(&job, 0, &tissue, &tiles, &open)?;
    prepared.sha256 = result::sha256_file(&args.slide)?;
    Ok(prepared)
}

fn choose(args: &Args, prepared: &Prepared) -> Result<TileList> {
    let Some(path) = &args.tiles else {
        let grid = &prepared.grid;
        return Ok(TileList::sample(&grid.origins, grid.size_level0, args.sample.into()));
    };
    let choice = Choice {
        path,
        column: args.column.as_deref(),
        top: args.top.into(),
        rest: args.rest.unwrap_or(args.top).into(),
        side: args.tile_px.map(f64::from),
    };
    TileList::read(&choice, &prepared.slide, &prepared.sha256)
}

/// The separation of stains, and its colours as they are reported.
fn separation(args: &Args, prepared: &Prepared) -> Result<(Deconvolution, serde_json::Value)> {
    let (method, [h, e]) = match args.stain {
        StainSource::Ruifrok => ("ruifrok", [RUIFROK[0], RUIFROK[1]]),
        StainSource::Macenko => {
            let pixels = stain::tissue_pixels(prepared)?;
            let found = macenko::stains(&MacenkoStain::default(), &pixels)
                .context(|| "--stain ruifrok needs no fit, but".into())?;
            ("macenko", [found.haematoxylin, found.eosin])
        }
    };
    let colours = serde_json::json!({ "method": method, "haematoxylin": h, "eosin": e });
    Ok((Deconvolution::of_two(h, e)?, colours))
}

/// Measures all tiles on the threads given, in the order of the list.
fn measure(reader: &NucleusReader<'_>, list: &TileList, global: &Global) -> Result<Vec<Measured>> {
    let bar = ProgressBar::new(list.tiles.len() as u64);
    if global.quiet {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(global.threads())
        .build()
        .map_err(|e| Error::usage("threads").caused_by(e))?;
    let pictured = super::nuclei_report::pictured(list);
    let tiles = pool.install(|| {
        let tiles = list.tiles.par_iter().enumerate();
        let one = |scratch: &mut Scratch, (i, tile): (usize, &super::tile_list::Tile)| {
            let mut measured = reader.tile(tile.origin, list.side, scratch);
            // Pictures are kept of the few tiles that are shown.
            if let (Ok(tile), false) = (&mut measured, pictured.contains(&i)) {
                tile.picture.0 = crate::image::RgbImage::default();
            }
            bar.inc(1);
            measured
        };
        tiles.map_init(Scratch::default, one).collect()
    });
    bar.finish_and_clear();
    Ok(tiles)
}
