//! `histokern segment`: pictures to masks, by every segmenter of a package and by all together.

use super::cohort::{Cohort, failed_row, file_name, jobs};
use super::common::{DeviceArgs, make_folder, picture_bar};
use super::{Global, Outcome, print_json};
use crate::error::{Error, Kind, Result};
use crate::picture;
use crate::pipeline::images::{Segmenters, read_mask};
use crate::pipeline::{Job, image_outputs};
use crate::report::csv::{self, Status};
use crate::report::result::{Program, sha256_file};
use crate::report::segmentation::{Mask, Segmentation};
use crate::report::{atomic, csv::SlideStatus};
use crate::weights::Package;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Find structures in pictures: masks, their boxes and areas
///
/// Pictures are PNG, JPEG, TIFF or single-frame DICOM. Every [[segmenter]] of the package makes a map
/// of probabilities; [fusion] makes one mask of them, keeps its largest component and fills its holes.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Per picture, in DIR/<picture>/: mask.png, mask-<segmenter>.png, overlay.png (fused mask green, true mask
yellow, crop red), segmentation.json. For all: DIR/segmentation.csv and DIR/status.csv.
A picture in which nothing was found has an empty mask and is listed as empty, unless the recipe says
[image] empty_mask = \"whole-image\". Two empty masks have a Dice coefficient of 1.

Examples:
  histokern segment patients/*.dcm --package us-sln --out masks
  histokern segment images/*.png --package us-sln --truth drawn --out masks --json")]
pub struct Args {
    /// Pictures
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// Package folder
    #[arg(long, value_name = "PKG")]
    package: PathBuf,
    /// Folder for the results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Folder of true masks <picture>.png, black outside, to compare with
    #[arg(long, value_name = "DIR")]
    truth: Option<PathBuf>,
    /// Stop at the first picture that fails
    #[arg(long)]
    fail_fast: bool,
    /// Print the results as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: DeviceArgs,
}

/// Runs the verb.
///
/// # Errors
/// What keeps the run from starting, or with `--fail-fast` the first picture that failed.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let backend = args.machine.open(global)?;
    let package = Package::open(&args.package)?;
    let segmenters = Segmenters::open(&package, &*backend)?;
    if segmenters.is_empty() {
        let what = format!("{}: the package has no [[segmenter]]", args.package.display());
        return Err(Error::usage(what));
    }
    let jobs = jobs(&args.images, None)?;
    make_folder(&args.out)?;
    let (device, precision) = (backend.name(), backend.precision().to_string());
    let mut run = Run { args, package, device, precision, segmenters, done: Vec::new() };
    let mut cohort = Cohort::new(&args.out, args.fail_fast);
    let bar = picture_bar(jobs.len(), global);
    let mut ran = Ok(());
    for job in &jobs {
        bar.set_message(job.name.clone());
        let start = Instant::now();
        let one = run.picture(job);
        let seconds = start.elapsed().as_secs_f64();
        ran = bar.suspend(|| match one {
            Ok(true) => {
                cohort.rows.push(SlideStatus { seconds, ..failed_row(job, Status::Done, &"") });
                Ok(())
            }
            Ok(false) => {
                cohort.empty(job, "the fused mask is empty", seconds);
                Ok(())
            }
            Err(error) => cohort.failed(job, error),
        });
        bar.inc(1);
        if ran.is_err() {
            break;
        }
    }
    bar.finish_and_clear();
    // What is finished stays known, also when the run was cut short.
    run.write_table()?;
    let outcome = cohort.outcome(global)?;
    ran?;
    if args.json {
        print_json(&Value::Array(run.done.iter().map(|(_, json)| json.clone()).collect()));
    } else {
        run.print();
    }
    Ok(outcome)
}

struct Run<'a> {
    args: &'a Args,
    package: Package,
    device: String,
    precision: String,
    segmenters: Segmenters<'a>,
    /// Name of the picture, masks, and what `segmentation.json` holds.
    done: Vec<((String, Segmentation), Value)>,
}

impl Run<'_> {
    /// Segments one picture and writes its files. `false` when nothing was found and the recipe
    /// takes nothing then.
    fn picture(&mut self, job: &Job) -> Result<bool> {
        let start = Instant::now();
        let sha256 = sha256_file(&job.path)?;
        let picture = picture::open(&job.path)?;
        let image = picture.image;
        let truth = match &self.args.truth {
            None => None,
            Some(folder) => {
                let path = folder.join(format!("{}.png", job.name));
                Some(read_mask(&path, image.width, image.height)?)
            }
        };
        let segmented = self.segmenters.segment(&image)?;
        let recipe = &self.package.recipe;
        let masks = segmented.describe(&recipe.fusion, truth.as_ref());
        let dir = self.args.out.join(&job.name);
        make_folder(&dir)?;
        image_outputs::write(&dir, &image, &segmented, truth.as_ref())?;
        let record = json!({
            "schema": 1,
            "program": Program::this(),
            "image": {
                "name": file_name(&job.path), "sha256": sha256, "format": picture.format,
                "width": image.width, "height": image.height,
            },
            "package": { "name": recipe.name, "recipe_id": self.package.recipe_id },
            "device": self.device,
            "precision": self.precision,
            "segmentation": masks,
            "seconds": start.elapsed().as_secs_f64(),
        });
        write_json(&dir.join("segmentation.json"), &record)?;
        let found = masks.crop.is_some();
        self.done.push(((job.name.clone(), masks), record));
        Ok(found)
    }

    /// One row a picture and mask.
    fn write_table(&self) -> Result<()> {
        let header = [
            "image",
            "mask",
            "area_px",
            "x",
            "y",
            "width",
            "height",
            "raw_area_px",
            "dice",
            "raw_dice",
        ];
        let row = |image: &String, mask: &Mask| {
            let bounds = mask.bounds.map(|b| [b.x, b.y, b.width, b.height]);
            let bounds = (0..4).map(|i| bounds.map_or(String::new(), |b| b[i].to_string()));
            let dice =
                [mask.dice, mask.raw_dice].map(|d| d.map_or(String::new(), |d| d.to_string()));
            let mut cells = vec![image.clone(), mask.name.clone(), mask.area_px.to_string()];
            cells.extend(bounds);
            cells.push(mask.raw_area_px.to_string());
            cells.extend(dice);
            cells
        };
        let rows = self.done.iter().flat_map(|((image, masks), _)| {
            let all = std::iter::once(&masks.fused).chain(&masks.segmenters);
            all.map(move |mask| row(image, mask))
        });
        csv::write(&self.args.out.join("segmentation.csv"), &header, rows)
    }

    fn print(&self) {
        for ((image, masks), _) in &self.done {
            let found = match masks.fused.bounds {
                Some(b) => format!(
                    "{} px in {} x {} at ({}, {})",
                    masks.fused.area_px, b.width, b.height, b.x, b.y
                ),
                None => "nothing found".into(),
            };
            let dice = masks.fused.dice.map_or(String::new(), |d| format!("  Dice {d:.4}"));
            println!("{image}  {found}{dice}");
        }
        let Some(((_, first), _)) = self.done.first() else { return };
        let names = std::iter::once(&first.fused).chain(&first.segmenters).map(|m| &m.name);
        for (i, name) in names.enumerate() {
            let dice: Vec<f64> = (self.done.iter())
                .filter_map(|((_, masks), _)| match i {
                    0 => masks.fused.dice,
                    _ => masks.segmenters.get(i - 1).and_then(|mask| mask.dice),
                })
                .collect();
            if !dice.is_empty() {
                let mean = dice.iter().sum::<f64>() / dice.len() as f64;
                println!("mean Dice of {name}: {mean:.4} ({} pictures)", dice.len());
            }
        }
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    atomic::write(path, |w| {
        serde_json::to_writer_pretty(&mut *w, value)
            .map_err(|e| Error::new(Kind::Io, "cannot write").caused_by(e))?;
        std::io::Write::write_all(w, b"\n").map_err(|e| Error::io("cannot write", e))
    })
}
