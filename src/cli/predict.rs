//! `histokern predict`: slides, pictures, features made elsewhere or bags of tile images to
//! predictions.

mod pictures;

use super::cohort::{Cohort, beside, failed_row, file_name, jobs};
use super::combined::Combined;
use super::common::{Progress, RunArgs, SlideArgs, make_folder};
use super::{Global, Outcome, print_json};
use crate::error::{Context, Error, Result};
use crate::heads::clinical::Table;
use crate::pipeline::mask::Mask;
use crate::pipeline::predict::{HeadResult, clinical, predict};
use crate::pipeline::{self, Engine, Features, Finished, Job, Options, Parts, Sink};
use crate::pipeline::{bag_list, bags, outputs};
use crate::recipe::Clinical;
use crate::report::csv::Status;
use crate::report::features::{FeatureFile, Unit, read_features};
use crate::report::result::{self, SlideResult};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Predict from slides or pictures, or from features made elsewhere
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Per slide, in DIR/<slide>/: result.json, attention.csv, heatmap.png, overlay.png, \
                  mask.png, tiles.geojson (QuPath).\nFor all: DIR/predictions.csv and DIR/status.csv. \
                  A finished slide is not done again unless slide, recipe,\noptions or version \
                  changed. A package for pictures takes PNG, JPEG and DICOM files in place of slides\n\
                  and writes result.json, mask.png, overlay.png and crop.png.\n\nExamples:\n  histokern predict slides/*.svs --package weights/demo --out out\n  \
                  histokern predict biopsy.jpg --package weights/balnmp-dl-cnb-c --regions biopsy.json \
                  \\\n      --clinical clinical.csv --out out\n  \
                  histokern predict --features uni/*.h5 --package my-head --out out\n  \
                  histokern predict slides/*.svs --package pkg --model combined.toml --clinical clinical.csv --out out\n  \
                  histokern predict slides/*.svs --package fold1 --package fold2 --package fold3 --out out\n  \
                  histokern predict slides/*.svs --package score --mask masks --out out\n  \
                  histokern predict patients/*.dcm --package us-sln --out out"
)]
pub struct Args {
    /// Slides, or pictures for a package that looks at pictures
    #[arg(value_name = "SLIDE", required_unless_present_any = ["features", "bags"])]
    slides: Vec<PathBuf>,
    /// Feature files (.h5 as TRIDENT, CLAM or STAMP write them) instead of slides
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "slides")]
    features: Vec<PathBuf>,
    /// Bags of tile images per patient (JSON as BALNMP published it) instead of slides
    #[arg(long, value_name = "FILE", conflicts_with_all = ["slides", "features"], requires = "images")]
    bags: Option<PathBuf>,
    /// Folder the paths in the bag list start from
    #[arg(long, value_name = "DIR", requires = "bags")]
    images: Option<PathBuf>,
    /// Package folder; several make an ensemble over the same tiles, whose mean is the result
    #[arg(long, value_name = "PKG", required = true)]
    package: Vec<PathBuf>,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Annotated polygons: a JSON or GeoJSON file for one slide, or a folder of <slide>.json
    #[arg(long, value_name = "PATH", conflicts_with = "features")]
    regions: Option<PathBuf>,
    /// Binary mask of where to look (not black: look): a PNG for one slide, or a folder of <slide>.png.
    /// Tiles of the recipe's grid of which less than half lies on it are left out
    #[arg(long, value_name = "PATH", conflicts_with_all = ["features", "bags"])]
    mask: Option<PathBuf>,
    /// Level-0 pixels along the side of a mask pixel
    #[arg(long, value_name = "N", default_value_t = 512.0, requires = "mask")]
    mask_downsample: f64,
    /// Rows of the mask run along x and its columns along y, as WEEP's authors store theirs
    #[arg(long, requires = "mask")]
    mask_transposed: bool,
    /// Heads whose tables and heatmaps are written: names, `all` or `none` [default: all of up to 8
    /// heads, none of more]
    #[arg(long, value_name = "A,B,..", value_delimiter = ',')]
    maps: Vec<String>,
    /// Table of raw clinical values, one row per patient; the patient is the slide's name
    #[arg(long, value_name = "CSV")]
    clinical: Option<PathBuf>,
    /// Column of the clinical table that names the patient [default: the first]
    #[arg(long, value_name = "COLUMN", requires = "clinical")]
    clinical_id: Option<String>,
    /// Model of `histokern fit` to apply last, to what the head says (features `value` or `p_<class>`)
    /// and to columns of the clinical table: one more prediction a slide
    #[arg(long, value_name = "MODEL.toml")]
    model: Option<PathBuf>,
    /// Accept feature files that name another encoder recipe than the package's
    #[arg(long, requires = "features")]
    any_encoder: bool,
    /// Stop at the first slide that fails
    #[arg(long)]
    fail_fast: bool,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    slide: SlideArgs,
}

impl Args {
    /// The plainest run over slides.
    pub fn slides(
        slides: Vec<PathBuf>,
        package: PathBuf,
        out: PathBuf,
        run: RunArgs,
        slide: SlideArgs,
    ) -> Args {
        Args {
            slides,
            features: Vec::new(),
            bags: None,
            images: None,
            package: vec![package],
            out,
            regions: None,
            mask: None,
            mask_downsample: 512.0,
            mask_transposed: false,
            maps: Vec::new(),
            clinical: None,
            clinical_id: None,
            model: None,
            any_encoder: false,
            fail_fast: false,
            json: false,
            run,
            slide,
        }
    }
}

/// Most heads whose tables and heatmaps are written without being asked for.
const MAPPED: usize = 8;

impl Args {
    /// The slides with their regions and masks.
    fn slide_jobs(&self) -> Result<Vec<Job>> {
        let downsample = self.mask_downsample;
        if !(downsample.is_finite() && downsample >= 1.0) {
            return Err(Error::usage(format!("--mask-downsample {downsample}: 1 or more")));
        }
        let mut jobs = jobs(&self.slides, self.regions.as_deref())?;
        let slides = jobs.len();
        for job in &mut jobs {
            let Some(mask) = &self.mask else { continue };
            let path = beside(mask, &job.name, slides, &["png"], "mask")?;
            job.mask = Some(Mask { path, downsample, transposed: self.mask_transposed });
        }
        Ok(jobs)
    }

    /// The heads whose tables and heatmaps are written.
    fn mapped(&self, heads: &[String], global: &Global) -> Result<BTreeSet<String>> {
        let all = || heads.iter().cloned().collect();
        match self.maps.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["all"] => Ok(all()),
            ["none"] => Ok(BTreeSet::new()),
            [] if heads.len() <= MAPPED => Ok(all()),
            [] => {
                let n = heads.len();
                global.say(&format!("{n} heads: predictions only, --maps writes their maps"));
                Ok(BTreeSet::new())
            }
            _ => match self.maps.iter().find(|name| !heads.contains(name)) {
                Some(name) => Err(Error::usage(format!("--maps: no head {name}"))),
                None => Ok(self.maps.iter().cloned().collect()),
            },
        }
    }
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let (outcome, results) = predict_slides(args, global)?;
    if args.json {
        print_json(&json!(results));
    } else {
        results.iter().for_each(|result| print(result, global.verbose));
    }
    Ok(outcome)
}

/// Predicts and writes everything; returns the results of this and of unchanged earlier runs.
///
/// # Errors
/// What keeps the run from starting, or with `--fail-fast` the first slide that failed.
pub fn predict_slides(args: &Args, global: &Global) -> Result<(Outcome, Vec<SlideResult>)> {
    let backend = args.run.open(global)?;
    let parts = if args.features.is_empty() { Parts::All } else { Parts::Heads };
    let packages: Vec<&Path> = args.package.iter().map(PathBuf::as_path).collect();
    let mut engine = Engine::open_all(&packages, &*backend, parts, args.run.batch.into())?;
    let table = args
        .clinical
        .as_deref()
        .map(|path| Table::read(path, args.clinical_id.as_deref()))
        .transpose()?;
    let heads: Vec<String> = engine.recipe().heads.iter().map(|h| h.name.clone()).collect();
    let combined = args.model.as_deref().map(|path| Combined::read(path, &heads)).transpose()?;
    let bag_lists = args.bags.as_deref().map(bag_list::read).transpose()?.unwrap_or_default();
    let jobs = match &args.bags {
        Some(path) => bag_lists
            .iter()
            .map(|p| Job { name: p.id.clone(), path: path.clone(), regions: None, mask: None })
            .collect(),
        None if args.features.is_empty() => args.slide_jobs()?,
        None => jobs(&args.features, None)?,
    };
    make_folder(&args.out)?;
    if !engine.recipe().notice.is_empty() {
        global.say(&engine.recipe().notice);
    }
    let mapped = args.mapped(&heads, global)?;
    let mut cohort = Cohort::new(&args.out, args.fail_fast);
    // A patient whose clinical values are missing is known before any tile is decoded.
    let mut patients = BTreeMap::new();
    let mut ready = Vec::with_capacity(jobs.len());
    for job in jobs {
        match Patient::new(&engine, table.as_ref(), combined.as_ref(), &job, args) {
            Ok(patient) => {
                patients.insert(job.name.clone(), patient);
                ready.push(job);
            }
            Err(error) => cohort.failed(&job, error)?,
        }
    }
    let progress = Progress::new(ready.len(), global);
    let mut predictor = Predictor {
        cohort,
        patients,
        combined,
        results: Vec::new(),
        args,
        mapped,
        progress: &progress,
    };
    let ran = match &args.images {
        Some(images) => predictor.bag_lists(&mut engine, &ready, &bag_lists, images),
        None if !args.features.is_empty() => predictor.feature_files(&mut engine, &ready),
        None if engine.recipe().image.is_some() => {
            predictor.pictures(&mut engine, &*backend, &ready, global)
        }
        None => predictor.slides(&mut engine, &ready, global),
    };
    progress.finish();
    // The tables are written also when the run was cut short: what is finished stays known.
    let outcome = predictor.cohort.outcome(global)?;
    ran?;
    Ok((outcome, predictor.results))
}

/// One line per head, where the time went if asked, and what should be known about it.
fn print(result: &SlideResult, verbose: bool) {
    for prediction in &result.predictions {
        let answer = match &prediction.outcome {
            result::Outcome::Value { value } => format!("{value:.4}"),
            result::Outcome::Classes { classes, probabilities } => classes
                .iter()
                .zip(probabilities)
                .map(|(class, p)| format!("{class} {p:.4}"))
                .collect::<Vec<_>>()
                .join("  "),
        };
        let agreement = prediction.ensemble.as_ref().map_or(String::new(), |e| {
            let sd: Vec<String> = e.sd.iter().map(|sd| format!("{sd:.4}")).collect();
            format!(", SD of {} packages {}", e.members.len(), sd.join(" "))
        });
        let of = match &result.segmentation {
            Some(_) => result.regions.clone(),
            None => format!("{} tiles", result.tiles.kept),
        };
        println!(
            "{}  {}  {answer}  ({of}{agreement}, {:.1} s)",
            result.slide.name, prediction.head, result.seconds.total
        );
    }
    if verbose {
        let s = &result.seconds;
        println!(
            "  seconds: hash {:.2}, prepare {:.2}, decode {:.2}, encode {:.2}, head {:.2}, write {:.2}",
            s.hash, s.prepare, s.decode, s.encode, s.head, s.write
        );
    }
    for warning in &result.warnings {
        println!("  note: {warning}");
    }
}

/// What decides the result of a slide besides the slide and the package.
struct Patient {
    vectors: Vec<Vec<f32>>,
    options: BTreeMap<String, Value>,
    cells: BTreeMap<String, String>,
    /// Raw clinical cells of the model that is applied last.
    model: BTreeMap<String, String>,
}

impl Patient {
    fn new(
        engine: &Engine,
        table: Option<&Table>,
        combined: Option<&Combined>,
        job: &Job,
        args: &Args,
    ) -> Result<Patient> {
        let vectors = clinical(engine, table, &job.name)?;
        let mut options = BTreeMap::new();
        let mut cells = BTreeMap::new();
        if let Some(mpp) = args.slide.mpp_override {
            options.insert("mpp-override".to_string(), json!(mpp));
        }
        if let Some(regions) = &job.regions {
            options.insert("regions".to_string(), json!(result::sha256_file(regions)?));
        }
        if let Some(mask) = &job.mask {
            let pixels = result::sha256_file(&mask.path)?;
            options.insert("mask".to_string(), json!(pixels));
            options.insert("mask-downsample".to_string(), json!(mask.downsample));
            options.insert("mask-transposed".to_string(), json!(mask.transposed));
        }
        if !args.maps.is_empty() {
            options.insert("maps".to_string(), json!(args.maps));
        }
        let heads = engine.packages().enumerate().flat_map(|(member, package)| {
            package.recipe.heads.iter().map(move |head| (member, head))
        });
        for ((member, head), values) in heads.zip(&vectors) {
            for (input, value) in head.clinical.iter().zip(values) {
                let (Clinical::Number { column, .. } | Clinical::Flag { column, .. }) = input;
                let value = value.to_string();
                // Packages of other patients standardise by other constants.
                let column = match cells.get(column) {
                    Some(other) if *other != value => format!("{column} (package {})", member + 1),
                    _ => column.clone(),
                };
                cells.insert(column, value);
            }
        }
        let mut model = BTreeMap::new();
        if let Some(combined) = combined {
            model = combined.cells(table, &job.name)?;
            options.insert("model".to_string(), json!(combined.sha256));
            let named = |(column, cell): (&String, &String)| {
                (format!("{}: {column}", combined.name), cell.clone())
            };
            cells.extend(model.iter().map(named));
        }
        if !cells.is_empty() {
            options.insert("clinical".to_string(), json!(cells));
        }
        Ok(Patient { vectors, options, cells, model })
    }
}

struct Predictor<'a> {
    cohort: Cohort,
    patients: BTreeMap<String, Patient>,
    combined: Option<Combined>,
    results: Vec<SlideResult>,
    args: &'a Args,
    /// Heads whose tables and heatmaps are written.
    mapped: BTreeSet<String>,
    progress: &'a Progress,
}

impl Predictor<'_> {
    fn slides(&mut self, engine: &mut Engine, jobs: &[Job], global: &Global) -> Result<()> {
        let options = Options {
            open: self.args.slide.options()?,
            decode_threads: global.threads(),
            stride_px: None,
        };
        let progress = self.progress;
        let blanks: BTreeMap<&str, SlideResult> =
            jobs.iter().map(|job| (job.name.as_str(), self.blank(engine, job, ""))).collect();
        let out = self.args.out.clone();
        let done = |job: &Job, sha256: &str| {
            let Some(mut blank) = blanks.get(job.name.as_str()).cloned() else { return false };
            blank.slide.sha256 = sha256.into();
            let earlier = SlideResult::read(&result_path(&out, job));
            earlier.is_ok_and(|earlier| earlier.same_run(&blank))
        };
        pipeline::run(engine, jobs, &options, progress, &done, self)
    }

    fn blank(&self, engine: &Engine, job: &Job, sha256: &str) -> SlideResult {
        let patient = &self.patients[&job.name];
        let id = engine.recipe_id();
        let options = patient.options.clone();
        let mut blank = outputs::blank_result(engine, &id, &file_name(&job.path), sha256, options);
        blank.clinical.clone_from(&patient.cells);
        blank
    }

    fn feature_files(&mut self, engine: &mut Engine, jobs: &[Job]) -> Result<()> {
        for job in jobs {
            let path = result_path(&self.args.out, job);
            let blank = match result::sha256_file(&job.path) {
                Ok(sha256) => self.blank(engine, job, &sha256),
                Err(error) => {
                    self.cohort.failed(job, error)?;
                    continue;
                }
            };
            if SlideResult::read(&path).is_ok_and(|earlier| earlier.same_run(&blank)) {
                self.skipped(job);
                continue;
            }
            let one = self.feature_file(engine, job, blank);
            if let Err(error) = one.context(|| job.path.display().to_string()) {
                self.cohort.failed(job, error)?;
            }
        }
        Ok(())
    }

    fn feature_file(
        &mut self,
        engine: &mut Engine,
        job: &Job,
        mut result: SlideResult,
    ) -> Result<()> {
        let start = Instant::now();
        let file = read_features(&job.path)?;
        self.check_encoder(engine, &file)?;
        if file.n == 0 {
            self.cohort.empty(job, "the file holds no tile", 0.0);
            return Ok(());
        }
        let bags = bags::groups(file.n, engine.recipe().bag.as_ref());
        let vectors = self.patients[&job.name].vectors.clone();
        let head_start = Instant::now();
        let progress = self.progress;
        let mut features = Features::host(file.d, file.features);
        let heads = predict(engine, &mut features, &bags, &vectors, progress)?;
        result.seconds.head = head_start.elapsed().as_secs_f64();
        result.seconds.hash = (head_start - start).as_secs_f64();
        result.slide.format = format!("features ({:?})", file.layout).to_lowercase();
        result.tiles.grid = file.n as u64;
        result.tiles.kept = bags.iter().map(|b| b.len() as u64).sum();
        result.regions = "as in the feature file".into();
        if file.coords.is_some() && file.coords_unit == Unit::Micrometre {
            result.warnings.push("x and y in attention.csv are micrometres".into());
        }
        if file.recipe_id.is_none() {
            result.warnings.push(
                "the feature file does not say by which recipe its features were made".into(),
            );
        }
        let dir = self.args.out.join(&job.name);
        make_folder(&dir)?;
        let mapped = |head: &str| self.mapped.contains(head);
        outputs::write_feature_attention(&dir, file.coords.as_deref(), &bags, &heads, &mapped)?;
        result.seconds.total = start.elapsed().as_secs_f64();
        self.keep(job, result, &heads, &bags)
    }

    fn bag_lists(
        &mut self,
        engine: &mut Engine,
        jobs: &[Job],
        patients: &[bag_list::Patient],
        images: &Path,
    ) -> Result<()> {
        for job in jobs {
            let Some(patient) = patients.iter().find(|p| p.id == job.name) else { continue };
            let one = self.bag_list(engine, job, patient, images);
            if let Err(error) = one.context(|| format!("patient {}", patient.id)) {
                self.cohort.failed(job, error)?;
            }
        }
        Ok(())
    }

    fn bag_list(
        &mut self,
        engine: &mut Engine,
        job: &Job,
        patient: &bag_list::Patient,
        images: &Path,
    ) -> Result<()> {
        let start = Instant::now();
        let vectors = self.patients[&job.name].vectors.clone();
        let (encoded, heads) =
            bag_list::predict_patient(engine, patient, images, &vectors, self.progress)?;
        let mut result = self.blank(engine, job, "");
        result.slide.name.clone_from(&patient.id);
        result.slide.format = "bags of images".into();
        result.tiles.kept = encoded.bags.iter().map(|b| b.len() as u64).sum();
        result.tiles.grid = result.tiles.kept;
        result.regions = "as in the bag list".into();
        let dir = self.args.out.join(&job.name);
        make_folder(&dir)?;
        outputs::write_image_attention(&dir, &patient.bags, &heads)?;
        result.seconds.total = start.elapsed().as_secs_f64();
        self.keep(job, result, &heads, &encoded.bags)
    }

    /// Features of another encoder have no meaning to a head, however well their width fits.
    fn check_encoder(&self, engine: &Engine, file: &FeatureFile) -> Result<()> {
        let other = |id: &String| engine.packages().map(|p| &p.encoder_id).find(|w| *w != id);
        match file.recipe_id.as_ref().and_then(|id| Some((id, other(id)?))) {
            Some((id, wanted)) if !self.args.any_encoder => Err(Error::usage(format!(
                "features of encoder recipe {id}, the package's is {wanted}; --any-encoder uses \
                 them all the same"
            ))),
            _ => Ok(()),
        }
    }

    fn keep(
        &mut self,
        job: &Job,
        mut result: SlideResult,
        heads: &[HeadResult],
        bags: &[Vec<usize>],
    ) -> Result<()> {
        result.predictions = outputs::predictions(heads, bags);
        if let Some(combined) = &self.combined {
            let cells = &self.patients[&job.name].model;
            let last = combined.predict(&result.predictions, cells)?;
            result.predictions.push(last);
        }
        result.write(&result_path(&self.args.out, job))?;
        self.cohort.done(job, &result);
        self.results.push(result);
        Ok(())
    }
}

impl Sink for Predictor<'_> {
    fn finished(&mut self, engine: &mut Engine, job: &Job, mut slide: Finished) -> Result<()> {
        let mut result = self.blank(engine, job, &slide.prepared.sha256);
        outputs::describe(&mut result, &slide);
        if slide.bags.is_empty() {
            let why = outputs::why_empty(&result, engine.recipe().bag.as_ref());
            self.cohort.empty(job, &why, result.seconds.total);
            return Ok(());
        }
        let start = Instant::now();
        let vectors = &self.patients[&job.name].vectors;
        let features = &mut slide.features;
        let heads = predict(engine, features, &slide.bags, vectors, self.progress)?;
        result.seconds.head = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let dir = self.args.out.join(&job.name);
        make_folder(&dir)?;
        let mapped = |head: &str| self.mapped.contains(head);
        outputs::write_predictions(&dir, &slide, &heads, &mapped)?;
        result.seconds.write = start.elapsed().as_secs_f64();
        result.seconds.total += result.seconds.head + result.seconds.write;
        self.keep(job, result, &heads, &slide.bags)
    }

    fn failed(&mut self, job: &Job, error: Error) -> Result<()> {
        self.cohort.failed(job, error)
    }

    fn skipped(&mut self, job: &Job) {
        match SlideResult::read(&result_path(&self.args.out, job)) {
            Ok(earlier) => {
                self.cohort.skipped(job, &earlier);
                self.results.push(earlier);
            }
            Err(error) => self.cohort.rows.push(failed_row(job, Status::Failed, &error)),
        }
    }
}

fn result_path(out: &Path, job: &Job) -> PathBuf {
    out.join(&job.name).join("result.json")
}
