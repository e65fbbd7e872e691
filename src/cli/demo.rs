//! `histokern demo`: the whole path on slides made on the spot, with the package that is built in.

mod cohort;

use super::common::{Device, RunArgs, SlideArgs, make_folder};
use super::{Global, Outcome, predict, print_json, synth};
use crate::error::Result;
use crate::report::atomic;
use crate::report::result::{Outcome as Answer, SlideResult};
use crate::slide::synthetic::{SpecimenSpec, Truth};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The files of `weights/demo`.
const PACKAGE: [(&str, &[u8]); 3] = [
    ("recipe.toml", include_bytes!("../../weights/demo/recipe.toml")),
    ("encoder.safetensors", include_bytes!("../../weights/demo/encoder.safetensors")),
    ("head.safetensors", include_bytes!("../../weights/demo/head.safetensors")),
];

/// Planted shares of the two slides.
const SHARES: [(&str, f64); 2] = [("low", 0.15), ("high", 0.75)];

/// Try everything on synthetic slides: nothing to download, under a minute
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Writes two synthetic H&E-like slides whose share of proliferating tumour nuclei is \
                  known, predicts it with the\nbuilt-in demonstration package and draws attention \
                  heatmaps. With --cohort a study of N patients follows: clinical values and survival with \
                  planted effects, predictions,\nevaluations, a combined model and report.html. Nothing it \
                  says is about a real slide.\n\nExamples:\n  histokern demo\n  histokern demo --cohort 60 --out study"
)]
pub struct Args {
    /// Folder for slides and results
    #[arg(long, default_value = "demo-out", value_name = "DIR")]
    out: PathBuf,
    /// Seed of the slides
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Side of the slides in pixels [default: 6144, in a cohort 2048]
    #[arg(long, value_name = "PX", value_parser = clap::value_parser!(u32).range(2048..=100_000))]
    side: Option<u32>,
    /// Make a study of N patients, one slide each
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(20..=2000))]
    cohort: Option<u16>,
    /// Where networks run: auto, cpu, cuda, cuda:N, cuda:N,M or cuda:all
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let start = Instant::now();
    make_folder(&args.out)?;
    let package = write_package(&args.out)?;
    if let Some(patients) = args.cohort {
        return cohort::run(args, patients.into(), package, global);
    }
    let side = args.side.unwrap_or(6144);
    let mut slides = Vec::new();
    for (i, (name, share)) in SHARES.into_iter().enumerate() {
        let path = args.out.join(format!("{name}.svs"));
        let spec = SpecimenSpec {
            seed: args.seed.wrapping_add(i as u64),
            fraction: Some(share),
            width: side,
            height: side,
            mpp: 0.5,
        };
        let truth = synth::write(&synth::Args::slide(path.clone(), &spec), global)?;
        global.say(&format!(
            "{}: synthetic slide, {} x {} px, {} nuclei of the tumour",
            path.display(),
            side,
            side,
            truth.nuclei.tumour + truth.nuclei.proliferating
        ));
        slides.push((name, path, truth));
    }
    let written = start.elapsed().as_secs_f64();
    let results = args.out.join("results");
    let paths: Vec<PathBuf> = slides.iter().map(|(_, path, _)| path.clone()).collect();
    let run = RunArgs::on(args.device.clone());
    let predict = predict::Args::slides(paths, package, results.clone(), run, SlideArgs::default());
    let (outcome, answers) = predict::predict_slides(&predict, global)?;
    report(args, &results, &slides, &answers, [written, start.elapsed().as_secs_f64()]);
    Ok(outcome)
}

/// Writes the built-in package into a folder of its own below `out`.
pub fn write_package(out: &Path) -> Result<PathBuf> {
    let folder = out.join("package");
    make_folder(&folder)?;
    for (name, bytes) in PACKAGE {
        atomic::write_bytes(&folder.join(name), bytes)?;
    }
    Ok(folder)
}

fn report(
    args: &Args,
    results: &Path,
    slides: &[(&str, PathBuf, Truth)],
    answers: &[SlideResult],
    [written, total]: [f64; 2],
) {
    let value = |name: &str| {
        let of_slide = |r: &&SlideResult| r.slide.name == format!("{name}.svs");
        let result = answers.iter().find(of_slide)?;
        match result.predictions.first()?.outcome {
            Answer::Value { value } => Some((value, result)),
            Answer::Classes { .. } => None,
        }
    };
    if args.json {
        let rows: Vec<_> = slides
            .iter()
            .map(|(name, path, truth)| {
                json!({
                    "slide": path,
                    "counted_share": truth.counted_fraction,
                    "predicted_share": value(name).map(|(v, _)| v),
                    "heatmap": results.join(name).join("heatmap.png"),
                    "seconds": value(name).map(|(_, r)| r.seconds),
                })
            })
            .collect();
        return print_json(&json!({ "synthetic": true, "slides": rows, "seconds": total }));
    }
    println!();
    println!("Share of proliferating tumour nuclei (a demonstration on synthetic tissue)");
    println!("  slide   counted  predicted  tiles  decode s  encode s  total s   heatmap");
    for (name, _, truth) in slides {
        let Some((predicted, result)) = value(name) else { continue };
        let s = &result.seconds;
        println!(
            "  {name:<6}  {:>7.3}  {predicted:>9.3}  {:>5}  {:>8.2}  {:>8.2}  {:>7.2}   {}",
            truth.counted_fraction.unwrap_or(f64::NAN),
            result.tiles.kept,
            s.decode,
            s.encode,
            s.total,
            results.join(name).join("heatmap.png").display()
        );
    }
    let tiles: u64 = answers.iter().map(|r| r.tiles.kept).sum();
    println!(
        "{tiles} tiles in {:.1} s after {written:.1} s of drawing slides; everything is in {}",
        total - written,
        args.out.display()
    );
}
