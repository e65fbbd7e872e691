//! `histokern explain`: where in a slide or picture a prediction comes from.

mod attention;
mod gradcam;
mod tiles;
mod weep;

use super::common::{Progress, RunArgs, SlideArgs, make_folder};
use super::{Global, Outcome, cohort};
use crate::backend::Backend;
use crate::error::Result;
use crate::pipeline::{Engine, Job, Options, Parts};
use crate::recipe::Recipe;
use std::path::{Path, PathBuf};

/// Show where in a slide or picture a prediction comes from
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  histokern explain attention slide.svs --package diagnosis --overlap 0.5 -o out
  histokern explain tiles slide.svs --package genes --heads CD8A,CD3E,CD19 -o lymphocytes
  histokern explain gradcam image.png --package us-sln -o out
  histokern explain weep out/slide/tiles.csv --threshold 6.2 -o weep")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Attention(attention::Args),
    Gradcam(gradcam::Args),
    Tiles(tiles::Args),
    Weep(weep::Args),
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    match &args.what {
        What::Attention(args) => attention::run(args, global),
        What::Gradcam(args) => gradcam::run(args, global),
        What::Tiles(args) => tiles::run(args, global),
        What::Weep(args) => weep::run(args, global),
    }
}

/// A slide, the package that looks at it, and where pictures go.
#[derive(Debug, clap::Args)]
pub struct Look {
    /// The slide
    slide: PathBuf,
    /// Package folder
    #[arg(long, value_name = "PKG")]
    package: PathBuf,
    /// Annotated polygons of the slide
    #[arg(long, value_name = "FILE")]
    regions: Option<PathBuf>,
    /// Folder to write
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    open: SlideArgs,
}

/// What running a [`Look`] needs.
struct Ready {
    backend: Box<dyn Backend>,
    engine: Engine,
    job: Job,
    options: Options,
    progress: Progress,
}

impl Look {
    /// Opens everything for looking at the slide `passes` times.
    fn ready(&self, parts: Parts, passes: usize, global: &Global) -> Result<Ready> {
        let backend = self.run.open(global)?;
        let engine = Engine::open(&self.package, &*backend, parts, self.run.batch.into())?;
        let job =
            cohort::jobs(std::slice::from_ref(&self.slide), self.regions.as_deref())?.remove(0);
        make_folder(&self.out)?;
        let options = Options {
            open: self.open.options()?,
            decode_threads: global.threads(),
            stride_px: None,
        };
        Ok(Ready { backend, engine, job, options, progress: Progress::new(passes, global) })
    }
}

/// The step between tiles that overlap by a fraction of their side, at least 1 px.
///
/// # Errors
/// As [`Recipe::slide_tiles`].
fn stride(recipe: &Recipe, overlap: f64) -> Result<u32> {
    let side = f64::from(recipe.slide_tiles()?.size_px);
    Ok(((side * (1.0 - overlap)).round() as u32).max(1))
}

fn said(global: &Global, path: &Path) {
    global.say(&format!("wrote {}", path.display()));
}
