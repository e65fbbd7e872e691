//! `histokern bench`: how fast a network runs here, layer by layer beside what the machine can do at
//! most, and where the time of a slide goes.

use super::device::{Device, bytes};
use super::{Global, Outcome, print_json};
use crate::backend::measure::{self, Layer, Stopwatch, median};
use crate::backend::{Backend, Precision};
use crate::cpu::{CpuBackend, Isa, ceiling};
use crate::cuda::CudaBackend;
use crate::error::{Context, Error, Result};
use crate::graph::Graph;
use crate::models::{self, random};
use crate::pipeline::{self, Engine, Finished, Job, Options, Parts, Seconds, Sink};
use crate::slide::OpenOptions;
use crate::weights::Package;
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Most samples of one batch size.
const SAMPLES: usize = 30;
/// Batches in flight one after another when the rate of overlapped batches is measured.
const OVERLAPPED_BATCHES: usize = 12;
/// Relative L2 distance from the reference up to which a layer is right and may be timed.
const RIGHT: f64 = 5e-4;

/// Measure how fast a network runs on this machine
#[derive(clap::Args, Debug)]
#[command(
    group = clap::ArgGroup::new("network").required(true),
    after_help = "Every layer is held to the reference first; one that does not match is not timed. \
                  Layers are timed inside\ntheir network, and compared with the roofline: the larger \
                  of operations / peak rate and bytes / copy rate.\nBatch sizes take turns, so that \
                  what disturbs the machine disturbs all alike.\n\nExamples:\n  \
                  histokern bench --model resnet50 --batch 1,16\n  \
                  histokern bench --model vit_b16 --device cuda\n  \
                  histokern bench --package weights/demo --device cuda --batch 1,32,256 --json\n  \
                  histokern bench --package weights/demo --slide biopsy.svs"
)]
pub struct Args {
    /// Package folder
    #[arg(long, value_name = "PKG", group = "network")]
    package: Option<PathBuf>,
    /// Network with random weights: an encoder family, a segmenter, or a vision transformer by its
    /// size, such as resnet50, smp-unet-resnet34 or vit_l16 (a wrong name lists all)
    #[arg(long, visible_alias = "family", value_name = "NAME", group = "network")]
    model: Option<String>,
    /// Pixels of a side, with --model
    #[arg(long, value_name = "PX", default_value_t = 224, value_parser = clap::value_parser!(u32).range(1..=4096), conflicts_with = "package")]
    side: u32,
    /// Where networks run: auto, cpu, cuda, cuda:N, cuda:N,M or cuda:all
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Numbers of weights and activations, on a CPU: fp16, bf16 or f32
    #[arg(long, default_value = "fp16", value_name = "KIND")]
    precision: Precision,
    /// Batch sizes [default: 1,16 on a CPU; 1,32,256 on a GPU]
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: Vec<u16>,
    /// Seconds to spend on timing
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Run this slide through the package too and show where its time goes
    #[arg(long, value_name = "SLIDE")]
    slide: Option<PathBuf>,
    /// Most memory to use on each GPU, such as 6GiB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    gpu_memory: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print CSV: a row for each batch size and each of its layers
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// Runs the verb.
///
/// # Errors
/// What keeps the network from running; [`crate::Kind::Device`] when a layer is wrong.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    // The parser would drop this requirement where --model stands in for --package.
    if args.slide.is_some() && args.package.is_none() {
        return Err(Error::usage("--slide goes with --package, which says how to read its tiles"));
    }
    let backend = args.device.open_for(args.precision, global, args.gpu_memory)?;
    let (model, graph) = network(args)?;
    let say = |what: &str| global.say(&format!("{what} ..."));
    say("checking every layer against the reference");
    let layers = measure::layers(&graph);
    let deviations = measure::verify(&*backend, &graph, &layers)?;
    let right: Vec<bool> = deviations.iter().map(|d| d.within(RIGHT)).collect();
    say("measuring what the machine can do at most");
    let ceilings = Ceilings::measure(args, &*backend, global)?;
    let batches: Vec<usize> = match (&args.batch[..], &args.device) {
        ([], Device::Cuda(_)) => vec![1, 32, 256],
        ([], _) => vec![1, 16],
        (given, _) => given.iter().map(|&n| n.into()).collect(),
    };
    say("timing");
    let watches = time(&*backend, &graph, &batches, args.seconds.into())?;
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        device: backend.name(),
        model,
        threads: global.threads(),
        precision: args.precision.to_string(),
        ceilings,
        batches: Vec::new(),
        slide: None,
    };
    for (watch, overlapped) in watches {
        report.add(&watch, overlapped, &layers, &right);
    }
    if let (Some(slide), Some(package)) = (&args.slide, &args.package) {
        say("running the slide");
        let batch = batches.last().copied().unwrap_or(1);
        report.slide = Some(stages(package, slide, &*backend, batch, global)?);
    }
    if args.json {
        print_json(&json!(report));
    } else if args.csv {
        report.print_csv()?;
    } else {
        report.print(global.verbose);
    }
    let wrong: Vec<String> = (layers.iter().zip(&deviations).zip(&right))
        .filter(|(_, right)| !**right)
        .map(|((layer, deviation), _)| format!("{}: {deviation}", layer.name))
        .collect();
    match wrong.is_empty() {
        true => Ok(Outcome::Done),
        false => Err(Error::device(format!("wrong, so not timed: {}", wrong.join("; ")))),
    }
}

/// The network and what to call it.
fn network(args: &Args) -> Result<(String, Arc<Graph>)> {
    if let Some(folder) = &args.package {
        let package = Package::open(folder)?;
        let weights = package.encoder()?;
        let encoder = models::build(&package.recipe, &weights)
            .context(|| weights.path().display().to_string())?;
        return Ok((format!("{} ({})", package.recipe.name, encoder.name), encoder.graph));
    }
    let name = args.model.as_deref().unwrap_or_default();
    let graph = random::graph(name, args.side as usize, 1)?;
    Ok((format!("{name} at {} px, random weights", args.side), graph))
}

/// Times every batch size in turn until the time is up, then the rate of overlapped batches.
fn time(
    on: &dyn Backend,
    graph: &Arc<Graph>,
    batches: &[usize],
    seconds: f64,
) -> Result<Vec<(Stopwatch, Option<f64>)>> {
    let start = Instant::now();
    let mut watches = Vec::new();
    for &rows in batches {
        watches.push(Stopwatch::new(on, graph, rows)?);
    }
    for round in 0..SAMPLES {
        for watch in &mut watches {
            if round == 0 || start.elapsed().as_secs_f64() < seconds {
                watch.sample()?;
            }
        }
    }
    let rated = watches.into_iter().map(|mut watch| {
        let rate = watch.overlapped_rate(OVERLAPPED_BATCHES)?;
        Ok((watch, rate))
    });
    rated.collect()
}

/// What the machine can do at most.
#[derive(Debug, Serialize)]
struct Ceilings {
    /// Operations per second, a multiplication and an addition counting as two.
    flops_per_second: f64,
    /// How that was measured.
    flops_by: String,
    /// Bytes read and written per second by a copy.
    bytes_per_second: f64,
}

impl Ceilings {
    fn measure(args: &Args, on: &dyn Backend, global: &Global) -> Result<Ceilings> {
        if let Device::Cuda(gpus) = &args.device {
            let first = gpus.ordinals()?.first().copied().unwrap_or(0);
            let (flops_per_second, n) = measure::gemm_rate(on)?;
            return Ok(Ceilings {
                flops_per_second,
                flops_by: format!("own GEMM of {n} x {n} x {n}"),
                bytes_per_second: CudaBackend::new(first)?.copy_rate()?,
            });
        }
        let threads = global.threads();
        let isa = CpuBackend::new(1, None)?.isa();
        let pairs = args.precision == Precision::Bf16 && ceiling::pairs_available(isa);
        let what = match (isa, args.precision) {
            (Isa::Amx, Precision::F16) => "a third of the products of bf16 tiles",
            (Isa::Amx, Precision::Bf16) => "products of bf16 tiles",
            _ if pairs => "products of bf16 pairs",
            _ => "fused multiply-adds",
        };
        Ok(Ceilings {
            flops_per_second: ceiling::flops_per_second(isa, args.precision, threads),
            flops_by: format!("{what} in registers, {isa}, {threads} threads"),
            bytes_per_second: ceiling::bytes_per_second(threads),
        })
    }

    /// Seconds that so much work takes at least.
    fn least(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops_per_second).max(bytes / self.bytes_per_second)
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    device: String,
    model: String,
    threads: usize,
    precision: String,
    ceilings: Ceilings,
    batches: Vec<Batch>,
    slide: Option<Stages>,
}

/// One batch size. Figures of a wrong network are absent.
#[derive(Debug, Serialize)]
struct Batch {
    rows: usize,
    samples: usize,
    ms: Option<Spread>,
    images_per_second: Option<f64>,
    /// With batches overlapped, copies included.
    overlapped_images_per_second: Option<f64>,
    tflops: Option<f64>,
    roofline_fraction: Option<f64>,
    layers: Vec<LayerRow>,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(seconds: &[f64]) -> Option<Spread> {
        let least = seconds.iter().copied().min_by(f64::total_cmp)?;
        let most = seconds.iter().copied().max_by(f64::total_cmp)?;
        Some(Spread { median: 1e3 * median(seconds), min: 1e3 * least, max: 1e3 * most })
    }
}

/// One layer at one batch size.
#[derive(Debug, Serialize)]
struct LayerRow {
    name: String,
    /// Steps of the network that are this layer.
    steps: usize,
    matches_reference: bool,
    ms: Option<Spread>,
    tflops: Option<f64>,
    gigabytes_per_second: Option<f64>,
    roofline_fraction: Option<f64>,
    /// How it is computed, where that is not by its definition, by which operations are counted.
    algorithm: Option<&'static str>,
}

impl Report {
    /// Adds a batch size; the network as a whole has figures when all of it is right.
    fn add(
        &mut self,
        watch: &Stopwatch,
        overlapped: Option<f64>,
        layers: &[Layer],
        right: &[bool],
    ) {
        let rows = watch.rows;
        let all_right = right.iter().all(|&right| right);
        let row = |(layer, &right): (&Layer, &bool)| {
            let ms = Spread::of(&watch.layer(layer)).filter(|_| right);
            let (flops, bytes) = (layer.total_flops(rows), layer.total_bytes(rows));
            let per_second = |amount: f64| ms.map(|ms| amount / (ms.median * 1e-3).max(1e-9));
            LayerRow {
                name: layer.name.clone(),
                steps: layer.steps.len(),
                matches_reference: right,
                ms,
                tflops: per_second(flops * 1e-12),
                gigabytes_per_second: per_second(bytes * 1e-9),
                roofline_fraction: per_second(self.ceilings.least(flops, bytes)),
                algorithm: watch.algorithm(layer),
            }
        };
        let rows_of_layers: Vec<LayerRow> = layers.iter().zip(right).map(row).collect();
        let sum = |part: &dyn Fn(&Layer) -> f64| layers.iter().map(part).sum::<f64>();
        let least = sum(&|l| self.ceilings.least(l.total_flops(rows), l.total_bytes(rows)));
        let ms = Spread::of(&watch.runs).filter(|_| all_right);
        let per_second = |amount: f64| ms.map(|ms| amount / (ms.median * 1e-3).max(1e-9));
        self.batches.push(Batch {
            rows,
            samples: watch.runs.len(),
            ms,
            images_per_second: per_second(rows as f64),
            overlapped_images_per_second: overlapped
                .filter(|_| all_right)
                .map(|batches| batches * rows as f64),
            tflops: per_second(1e-12 * sum(&|l| l.total_flops(rows))),
            roofline_fraction: per_second(least),
            layers: rows_of_layers,
        });
    }

    fn print(&self, verbose: bool) {
        let c = &self.ceilings;
        println!("{}", self.device);
        println!("{}, {} weights and activations", self.model, self.precision);
        println!(
            "at most {:.3} TFLOP/s ({}) and {:.1} GB/s (a copy)\n",
            c.flops_per_second * 1e-12,
            c.flops_by,
            c.bytes_per_second * 1e-9
        );
        println!(
            "  batch   images/s  overlapped        ms      min      max    n   TFLOP/s  of roofline"
        );
        for b in &self.batches {
            let Some(ms) = b.ms else {
                println!("  {:>5}  not timed: a layer is wrong", b.rows);
                continue;
            };
            let number = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.1}"));
            println!(
                "  {:>5} {:>10} {:>11} {:>9.2} {:>8.2} {:>8.2} {:>4}  {:>8.3}  {:>9.0} %",
                b.rows,
                number(b.images_per_second),
                number(b.overlapped_images_per_second),
                ms.median,
                ms.min,
                ms.max,
                b.samples,
                b.tflops.unwrap_or(0.0),
                100.0 * b.roofline_fraction.unwrap_or(0.0)
            );
        }
        let shown = if verbose { 0 } else { self.batches.len().saturating_sub(1) };
        self.batches[shown..].iter().for_each(print_layers);
        if self.batches.iter().flat_map(|b| &b.layers).any(|l| l.algorithm.is_some()) {
            println!(
                "\n  * by Winograd's algorithm, which needs a quarter of the products. Operations are \
                 those of the definition,\n    so that more than 100 % of the roofline is possible; \
                 HISTOKERN_CONV=direct computes by the definition."
            );
        }
        if let Some(slide) = &self.slide {
            slide.print();
        }
    }

    fn print_csv(&self) -> Result<()> {
        let bad = |e: csv::Error| Error::io("standard output", e.into());
        let mut out = csv::Writer::from_writer(std::io::stdout().lock());
        out.write_record([
            "version",
            "device",
            "model",
            "precision",
            "threads",
            "batch",
            "layer",
            "steps",
            "samples",
            "ms_median",
            "ms_min",
            "ms_max",
            "images_per_second",
            "overlapped_images_per_second",
            "tflops",
            "gigabytes_per_second",
            "roofline_fraction",
            "ceiling_tflops",
            "ceiling_gigabytes_per_second",
            "algorithm",
        ])
        .map_err(bad)?;
        let number = |x: Option<f64>| x.map_or(String::new(), |x| x.to_string());
        for b in &self.batches {
            let mut write = |(layer, how): (&str, Option<&str>),
                             steps: usize,
                             ms: Option<Spread>,
                             rest: [Option<f64>; 5]| {
                let head = [self.version, &self.device, &self.model, &self.precision];
                let mut row: Vec<String> = head.iter().map(|s| s.to_string()).collect();
                row.extend([self.threads, b.rows].map(|n| n.to_string()));
                row.extend([layer.to_string(), steps.to_string(), b.samples.to_string()]);
                row.extend(
                    [ms.map(|m| m.median), ms.map(|m| m.min), ms.map(|m| m.max)].map(number),
                );
                row.extend(rest.map(number));
                let c = &self.ceilings;
                row.push((c.flops_per_second * 1e-12).to_string());
                row.push((c.bytes_per_second * 1e-9).to_string());
                row.push(how.unwrap_or_default().to_string());
                out.write_record(&row).map_err(bad)
            };
            let rates = [b.images_per_second, b.overlapped_images_per_second];
            let all: usize = b.layers.iter().map(|l| l.steps).sum();
            write(
                ("", None),
                all,
                b.ms,
                [rates[0], rates[1], b.tflops, None, b.roofline_fraction],
            )?;
            for l in &b.layers {
                let rest = [None, None, l.tflops, l.gigabytes_per_second, l.roofline_fraction];
                write((&l.name, l.algorithm), l.steps, l.ms, rest)?;
            }
        }
        out.flush().map_err(|e| Error::io("standard output", e))
    }
}

fn print_layers(batch: &Batch) {
    let total: f64 = batch.layers.iter().filter_map(|l| l.ms).map(|ms| ms.median).sum();
    println!("\n  layers at batch {}", batch.rows);
    println!("  share        ms  TFLOP/s     GB/s  of roofline");
    for layer in &batch.layers {
        let times = if layer.steps > 1 { format!(" x {}", layer.steps) } else { String::new() };
        let (Some(ms), true) = (layer.ms, layer.matches_reference) else {
            let why = if layer.matches_reference { "not timed here" } else { "WRONG, not timed" };
            println!("  {why:<47}  {}{times}", layer.name);
            continue;
        };
        println!(
            "  {:>4.0} % {:>9.3} {:>8.3} {:>8.1}  {:>9.0} %  {}{times}",
            100.0 * ms.median / total.max(1e-12),
            ms.median,
            layer.tflops.unwrap_or(0.0),
            layer.gigabytes_per_second.unwrap_or(0.0),
            100.0 * layer.roofline_fraction.unwrap_or(0.0),
            match layer.algorithm {
                Some(algorithm) => format!("{} * {algorithm}", layer.name),
                None => layer.name.clone(),
            }
        );
    }
}

/// Where the time of a slide goes, in seconds. Decoding and resampling run beside inference.
#[derive(Debug, Serialize)]
struct Stages {
    tiles: usize,
    tiles_per_second: f64,
    hash: f64,
    prepare: f64,
    /// Of the threads that read: reading and decoding.
    decode: f64,
    /// Of the threads that read: filtering and resampling.
    resample: f64,
    inference: f64,
    /// The device waiting for tiles.
    wait: f64,
    total: f64,
}

impl Stages {
    fn print(&self) {
        println!("\n  slide: {} tiles, {:.1} tiles/s", self.tiles, self.tiles_per_second);
        let share = |seconds: f64| 100.0 * seconds / self.total.max(1e-9);
        for (name, seconds) in [
            ("decode", self.decode),
            ("resample", self.resample),
            ("inference", self.inference),
            ("wait for tiles", self.wait),
        ] {
            println!("  {name:<15} {seconds:>8.2} s {:>4.0} %", share(seconds));
        }
        println!("  {:<15} {:>8.2} s (stages overlap)", "total", self.total);
        println!("  {:<15} {:>8.2} s", "before", self.hash + self.prepare);
    }
}

/// Runs the slide through the encoder of the package.
fn stages(
    package: &std::path::Path,
    slide: &std::path::Path,
    on: &dyn Backend,
    batch: usize,
    global: &Global,
) -> Result<Stages> {
    let mut engine = Engine::open(package, on, Parts::Encoder, batch)?;
    let options =
        Options { open: OpenOptions::default(), decode_threads: global.threads(), stride_px: None };
    let job = Job { name: "slide".into(), path: slide.into(), regions: None, mask: None };
    let mut timed = Timed(None);
    pipeline::run(&mut engine, &[job], &options, &(), &|_, _| false, &mut timed)?;
    let Some((tiles, s)) = timed.0 else { return Err(Error::usage("the slide was not run")) };
    Ok(Stages {
        tiles,
        tiles_per_second: tiles as f64 / s.total.max(1e-9),
        hash: s.hash,
        prepare: s.prepare,
        decode: s.decode - s.resample,
        resample: s.resample,
        inference: s.encode,
        wait: s.wait,
        total: s.total,
    })
}

/// Keeps the time of the slide.
struct Timed(Option<(usize, Seconds)>);

impl Sink for Timed {
    fn finished(&mut self, _engine: &mut Engine, _job: &Job, slide: Finished) -> Result<()> {
        self.0 = Some((slide.tiles.len(), slide.seconds));
        Ok(())
    }

    fn failed(&mut self, _job: &Job, error: Error) -> Result<()> {
        Err(error)
    }

    fn skipped(&mut self, _job: &Job) {}
}
