//! `histokern check`: is what this machine computes right? Every op, every family, a slide from file
//! to prediction.

use super::device::{Device, bytes};
use super::{Global, Outcome, demo, print_json, synth};
use crate::backend::check::Deviation;
use crate::backend::suite::{self, Bound, Finding, Outcome as Found};
use crate::backend::{Backend, Oracle};
use crate::cpu::CpuBackend;
use crate::error::{Context, Error, Result};
use crate::graph::reference::Rounding;
use crate::heads;
use crate::models::{self, random};
use crate::pipeline::predict::{HeadResult, predict};
use crate::pipeline::{self, Engine, Finished, Job, Options, Parts, Sink};
use crate::slide::OpenOptions;
use crate::slide::synthetic::SpecimenSpec;
use crate::weights::Package;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Side of the demonstration slide in pixels.
const SLIDE_SIDE: u32 = 1024;
/// Largest difference of a probability or a share that still counts as the same answer.
const ANSWER: f64 = 2e-3;

/// Check that a device computes what it should
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Every op case is held to the reference (plain f32 loops), small networks of every \
                  family and a synthetic slide\nfrom file to prediction to --against. Exit code 1 \
                  when any output lies outside its bound.\n\nExamples:\n  histokern check\n  \
                  histokern check --device cuda --against cpu --package weights/demo --json"
)]
pub struct Args {
    /// What to check: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: Device,
    /// What whole networks are held to
    #[arg(long, value_enum, default_value = "reference")]
    against: Against,
    /// Check the networks of this package too, on two rows of noise; may be repeated
    #[arg(long, value_name = "PKG")]
    package: Vec<PathBuf>,
    /// Most memory to use on each GPU, such as 6GiB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    gpu_memory: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What networks are held to.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Against {
    /// Plain f32 loops with activations stored as FP16
    Reference,
    /// The CPU backend
    Cpu,
}

/// Runs the verb.
///
/// # Errors
/// [`crate::Kind::Device`] when the device fails or an output lies outside its bound.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let device = args.device.open(global, args.gpu_memory)?;
    let reference = Oracle(Rounding::F16);
    let against: Box<dyn Backend> = match args.against {
        Against::Reference => Box::new(Oracle(Rounding::F16)),
        Against::Cpu => Box::new(CpuBackend::new(global.threads(), None)?),
    };
    let mut report = Report::new(args, global)?;
    let each = &mut |finding| report.add(finding);
    suite::ops(&*device, &reference, each)?;
    // A small network of every family.
    for name in random::names() {
        suite::network("families", &*device, &*against, &random::small(name, 1)?, 2, each)?;
    }
    for folder in &args.package {
        package(folder, &*device, &*against, each).context(|| folder.display().to_string())?;
    }
    slide(&*device, &*against, global, each)?;
    report.finish(&device.name(), &against.name())
}

/// The encoder and the heads of a package, on noise.
fn package(
    folder: &Path,
    on: &dyn Backend,
    against: &dyn Backend,
    each: &mut dyn FnMut(Finding),
) -> Result<()> {
    let package = Package::open(folder)?;
    let mut dim = None;
    // Features made elsewhere come without an encoder.
    if let Ok(weights) = package.encoder() {
        let encoder = models::build(&package.recipe, &weights)?;
        dim = Some(encoder.feature_dim);
        suite::network("package", on, against, &encoder.graph, 2, each)?;
    }
    for spec in &package.recipe.heads {
        let head = heads::build(spec, dim, &package.head(spec)?)?;
        suite::network("package", on, against, &head.graph, 40, each)?;
    }
    Ok(())
}

/// A synthetic slide from file to prediction.
fn slide(
    on: &dyn Backend,
    against: &dyn Backend,
    global: &Global,
    each: &mut dyn FnMut(Finding),
) -> Result<()> {
    let folder = tempfile::tempdir().map_err(|e| Error::io("a temporary folder", e))?;
    let package = demo::write_package(folder.path())?;
    let path = folder.path().join("slide.svs");
    let side = SLIDE_SIDE;
    let spec = SpecimenSpec { seed: 3, fraction: Some(0.5), width: side, height: side, mpp: 0.5 };
    synth::write(&synth::Args::slide(path.clone(), &spec), global)?;
    let job = Job { name: "slide".into(), path, regions: None, mask: None };
    let answer = |backend: &dyn Backend| -> Result<Answer> {
        let mut engine = Engine::open(&package, backend, Parts::All, 8)?;
        let options = Options {
            open: OpenOptions::default(),
            decode_threads: global.threads(),
            stride_px: None,
        };
        let mut answer = Answer::default();
        let jobs = std::slice::from_ref(&job);
        pipeline::run(&mut engine, jobs, &options, &(), &|_, _| false, &mut answer)?;
        Ok(answer)
    };
    let (got, want) = (answer(on)?, answer(against)?);
    let mut add = |name: String, got: &[f32], want: &[f32], bound: Bound| -> Result<()> {
        let outcome = match Deviation::between(got, want) {
            Ok(deviation) => Found::Deviation(deviation),
            Err(error) => Found::Error(error.to_string()),
        };
        each(Finding { section: "slide", name, outcome, bound });
        Ok(())
    };
    let network = Bound::Network(suite::NETWORK);
    add(format!("features of {} tiles", got.tiles), &got.features, &want.features, network)?;
    for (got, want) in got.heads.iter().zip(&want.heads) {
        add(format!("{}: attention scores", got.head), &got.scores, &want.scores, network)?;
        let numbers = |head: &HeadResult| -> Vec<f32> {
            head.probabilities.iter().chain(&head.value).map(|&x| x as f32).collect()
        };
        let name = format!("{}: answer", got.head);
        add(name, &numbers(got), &numbers(want), Bound::Largest(ANSWER))?;
    }
    Ok(())
}

/// What a backend makes of the slide.
#[derive(Default)]
struct Answer {
    tiles: usize,
    features: Vec<f32>,
    heads: Vec<HeadResult>,
}

impl Sink for Answer {
    fn finished(&mut self, engine: &mut Engine, _job: &Job, mut slide: Finished) -> Result<()> {
        self.tiles = slide.tiles.len();
        self.heads = predict(engine, &mut slide.features, &slide.bags, &[], &())?;
        self.features = slide.features.read()?.into_owned();
        Ok(())
    }

    fn failed(&mut self, _job: &Job, error: Error) -> Result<()> {
        Err(error)
    }

    fn skipped(&mut self, _job: &Job) {}
}

/// Findings as they come, and what to say of them.
struct Report {
    findings: Vec<Finding>,
    bar: ProgressBar,
    json: bool,
    verbose: bool,
}

impl Report {
    fn new(args: &Args, global: &Global) -> Result<Report> {
        let bar = ProgressBar::new(suite::op_count()? as u64);
        if global.quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template("[{bar:30}] {pos}/{len} ops  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Ok(Report { findings: Vec::new(), bar, json: args.json, verbose: global.verbose })
    }

    fn add(&mut self, finding: Finding) {
        match finding.section {
            "ops" => self.bar.inc(1),
            section => self.bar.set_message(format!("{section}: {}", finding.name)),
        }
        self.findings.push(finding);
    }

    fn finish(self, device: &str, against: &str) -> Result<Outcome> {
        self.bar.finish_and_clear();
        let failed = self.findings.iter().filter(|f| !f.passed()).count();
        if self.json {
            let row = |finding: &Finding| {
                let mut row = json!(finding);
                row["passed"] = finding.passed().into();
                row
            };
            print_json(&json!({
                "device": device,
                "against": against,
                "passed": failed == 0,
                "findings": self.findings.iter().map(row).collect::<Vec<_>>(),
            }));
        } else {
            self.print(device, against);
        }
        match failed {
            0 => Ok(Outcome::Done),
            n => Err(Error::device(format!(
                "{n} of {} outputs of {device} lie outside their bounds",
                self.findings.len()
            ))),
        }
    }

    /// A line per kind of op and per network, the worst of each; all of them when verbose.
    fn print(&self, device: &str, against: &str) {
        println!("{device}: ops against the reference, networks against {against}");
        println!(
            "  {:<58} {:>5}  {:>8} {:>8} {:>8} {:>8}  {:>8}",
            "", "cases", "p50", "p90", "p99", "max", "rel. L2"
        );
        let mut groups: BTreeMap<(usize, String), Vec<&Finding>> = BTreeMap::new();
        let sections = ["ops", "families", "package", "slide"];
        for finding in &self.findings {
            let section = sections.iter().position(|s| *s == finding.section).unwrap_or(0);
            let kind = match finding.section {
                "ops" if !self.verbose && finding.passed() => {
                    finding.name.split([' ', ',']).next().unwrap_or_default().to_string()
                }
                _ => finding.name.clone(),
            };
            groups.entry((section, kind)).or_default().push(finding);
        }
        for ((section, kind), group) in &groups {
            let worst = group.iter().max_by(|a, b| excess(a).total_cmp(&excess(b)));
            let Some(worst) = worst else { continue };
            let mark = if group.iter().all(|f| f.passed()) { " " } else { "!" };
            let name = format!("{} {kind}", sections[*section]);
            let name: String = name.chars().take(58).collect();
            match &worst.outcome {
                Found::Error(error) => println!("{mark} {name:<58} {:>5}  {error}", group.len()),
                Found::Deviation(d) => println!(
                    "{mark} {name:<58} {:>5}  {:>8.1e} {:>8.1e} {:>8.1e} {:>8.1e}  {:>8.1e}",
                    group.len(),
                    d.p50,
                    d.p90,
                    d.p99,
                    d.max,
                    d.relative_l2
                ),
            }
        }
        if self.findings.iter().all(Finding::passed) {
            println!("{} outputs, all within their bounds", self.findings.len());
        }
    }
}

/// How bad a finding is, for picking the worst.
fn excess(finding: &Finding) -> f64 {
    match (&finding.outcome, finding.bound) {
        (Found::Error(_), _) => f64::INFINITY,
        (Found::Deviation(d), Bound::Largest(bound)) => d.max / bound,
        (Found::Deviation(d), Bound::RelativeL2(bound) | Bound::Network(bound)) => {
            d.relative_l2 / bound.max(f64::MIN_POSITIVE)
        }
    }
}
