//! `histokern features`: slides to tile features, in the layouts other tools read.

use super::cohort::{Cohort, failed_row, jobs};
use super::common::{Progress, RunArgs, SlideArgs, make_folder};
use super::{Global, Outcome, print_json};
use crate::error::{Error, Result};
use crate::pipeline::{self, Engine, Finished, Job, Options, Parts, Sink, outputs};
use crate::report::csv::Status;
use crate::report::h5::{self, Features, Geometry};
use crate::report::pt;
use crate::report::result::{self, SlideResult};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// The layout of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// features_<encoder>/<slide>.h5
    Trident,
    /// h5_files/<slide>.h5, pt_files/<slide>.pt and patches/<slide>.h5
    Clam,
    /// <encoder>-<recipe>/<slide>.h5, coordinates in micrometres
    Stamp,
}

/// Encode the tiles of slides into feature files
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Every file names the recipe that made it; DIR/receipts/<slide>.json says the rest. A slide \
                  is not done again unless\nslide, recipe, options or version changed.\n\nExample:\n  \
                  histokern features slides/*.svs --package my-uni --out features --format clam"
)]
pub struct Args {
    /// Slides
    #[arg(required = true, value_name = "SLIDE")]
    slides: Vec<PathBuf>,
    /// Package folder
    #[arg(long, value_name = "PKG")]
    package: PathBuf,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Layout of the files
    #[arg(long, value_enum, default_value_t = Format::Trident)]
    format: Format,
    /// Annotated polygons: a JSON or GeoJSON file for one slide, or a folder of <slide>.json
    #[arg(long, value_name = "PATH")]
    regions: Option<PathBuf>,
    /// Stop at the first slide that fails
    #[arg(long)]
    fail_fast: bool,
    /// Print the receipts as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    slide: SlideArgs,
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let backend = args.run.open(global)?;
    let mut engine = Engine::open(&args.package, &*backend, Parts::Encoder, args.run.batch.into())?;
    let jobs = jobs(&args.slides, args.regions.as_deref())?;
    make_folder(&args.out.join("receipts"))?;
    let options =
        Options { open: args.slide.options()?, decode_threads: global.threads(), stride_px: None };
    let progress = Progress::new(jobs.len(), global);
    let mut blanks = BTreeMap::new();
    for job in &jobs {
        blanks.insert(job.name.clone(), blank(&engine, job, args)?);
    }
    let mut writer = Writer {
        cohort: Cohort::new(&args.out, args.fail_fast),
        receipts: Vec::new(),
        blanks: blanks.clone(),
        args,
    };
    let files = args.files(&engine);
    let done = |job: &Job, sha256: &str| {
        let Some(mut blank) = blanks.get(&job.name).cloned() else { return false };
        blank.slide.sha256 = sha256.into();
        let there = |file: PathBuf| file.exists();
        SlideResult::read(&receipt(args, job)).is_ok_and(|earlier| earlier.same_run(&blank))
            && files(&job.name).into_iter().all(there)
    };
    let ran = pipeline::run(&mut engine, &jobs, &options, &progress, &done, &mut writer);
    progress.finish();
    // The table is written also when the run was cut short: what is finished stays known.
    let outcome = writer.cohort.outcome(global)?;
    ran?;
    if args.json {
        print_json(&json!(writer.receipts));
    }
    Ok(outcome)
}

impl Args {
    /// The files of a slide by its name.
    fn files(&self, engine: &Engine) -> impl Fn(&str) -> Vec<PathBuf> + use<> {
        let (out, format) = (self.out.clone(), self.format);
        let encoder = encoder_name(engine);
        let (hash, precision) = engine.package().encoder_id.split_at(8);
        let precision = precision.find('-').map_or("", |at| &precision[at..]);
        let id = format!("{hash}{precision}");
        move |slide| match format {
            Format::Trident => {
                vec![out.join(format!("features_{encoder}")).join(format!("{slide}.h5"))]
            }
            Format::Clam => vec![
                out.join("h5_files").join(format!("{slide}.h5")),
                out.join("pt_files").join(format!("{slide}.pt")),
            ],
            Format::Stamp => vec![out.join(format!("{encoder}-{id}")).join(format!("{slide}.h5"))],
        }
    }
}

fn encoder_name(engine: &Engine) -> String {
    let encoder = &engine.recipe().encoder;
    match &encoder.truncate {
        Some(stage) => format!("{}_{stage}", encoder.family),
        None => encoder.family.clone(),
    }
}

fn receipt(args: &Args, job: &Job) -> PathBuf {
    args.out.join("receipts").join(format!("{}.json", job.name))
}

fn blank(engine: &Engine, job: &Job, args: &Args) -> Result<SlideResult> {
    let mut options = BTreeMap::new();
    if let Some(mpp) = args.slide.mpp_override {
        options.insert("mpp-override".to_string(), json!(mpp));
    }
    if let Some(regions) = &job.regions {
        options.insert("regions".to_string(), json!(result::sha256_file(regions)?));
    }
    let name = super::cohort::file_name(&job.path);
    Ok(outputs::blank_result(engine, &engine.package().encoder_id, &name, "", options))
}

struct Writer<'a> {
    cohort: Cohort,
    receipts: Vec<SlideResult>,
    blanks: BTreeMap<String, SlideResult>,
    args: &'a Args,
}

impl Writer<'_> {
    fn write(&self, engine: &Engine, job: &Job, slide: &Finished) -> Result<()> {
        let grid = &slide.prepared.grid;
        let level0 = &slide.prepared.slide.levels()[0];
        let geometry = Geometry {
            tile_px: grid.size_px,
            overlap_px: grid.size_px.saturating_sub(grid.stride_px),
            tile_level0: grid.size_level0,
            mpp: slide.prepared.slide.mpp().map(|m| (m.x + m.y) / 2.0),
            level0_width: level0.width.into(),
            level0_height: level0.height.into(),
        };
        let coords: Vec<[i64; 2]> = slide.tiles.iter().map(|&i| grid.origins[i]).collect();
        let numbers = slide.features.read()?;
        let features = Features {
            slide: &job.name,
            encoder: &encoder_name(engine),
            recipe_id: &engine.package().encoder_id,
            features: &numbers,
            dim: engine.encoder().map_or(0, |e| e.feature_dim),
            coords: &coords,
            geometry: &geometry,
        };
        let files = self.args.files(engine)(&job.name);
        for folder in files.iter().filter_map(|f| f.parent()) {
            make_folder(&folder.to_path_buf())?;
        }
        match self.args.format {
            Format::Trident => h5::write_trident(&files[0], &features),
            Format::Clam => {
                h5::write_clam(&files[0], &features)?;
                pt::write(&files[1], &numbers, features.dim)?;
                self.write_clam_coords(job, slide, &coords)
            }
            Format::Stamp => h5::write_stamp(&files[0], &features).map(drop),
        }
    }

    /// CLAM's own coordinates file, when its unit (pixels of one level) can say them.
    fn write_clam_coords(&self, job: &Job, slide: &Finished, coords: &[[i64; 2]]) -> Result<()> {
        let Some(patches) = outputs::clam_patches(&slide.prepared, &job.name, coords) else {
            return Ok(());
        };
        let folder = self.args.out.join("patches");
        make_folder(&folder)?;
        h5::write_clam_patches(&folder.join(format!("{}.h5", job.name)), &patches)
    }
}

impl Sink for Writer<'_> {
    fn finished(&mut self, engine: &mut Engine, job: &Job, slide: Finished) -> Result<()> {
        let mut result = self.blanks[&job.name].clone();
        result.slide.sha256.clone_from(&slide.prepared.sha256);
        outputs::describe(&mut result, &slide);
        let start = Instant::now();
        // A slide without tiles still has a valid, empty file where the layout knows one.
        self.write(engine, job, &slide)?;
        result.seconds.write = start.elapsed().as_secs_f64();
        result.seconds.total += result.seconds.write;
        if slide.tiles.is_empty() {
            let why = outputs::why_empty(&result, None);
            self.cohort.empty(job, &why, result.seconds.total);
        } else {
            self.cohort.done(job, &result);
        }
        result.write(&receipt(self.args, job))?;
        self.receipts.push(result);
        Ok(())
    }

    fn failed(&mut self, job: &Job, error: Error) -> Result<()> {
        self.cohort.failed(job, error)
    }

    fn skipped(&mut self, job: &Job) {
        match SlideResult::read(&receipt(self.args, job)) {
            Ok(earlier) => {
                self.cohort.skipped(job, &earlier);
                self.receipts.push(earlier);
            }
            Err(error) => self.cohort.rows.push(failed_row(job, Status::Failed, &error)),
        }
    }
}
