//! This program's side of `scripts/bench-peers`: readies one piece of work, then does it as often as
//! it is told to and says how long that took, so that its turns alternate with those of its peers.
//!
//! ```text
//! peer-worker network PACKAGE BATCH,BATCH THREADS PRECISION PIXELS   an encoder or a segmenter
//! peer-worker tiles SLIDE THREADS                              every level-0 tile
//! peer-worker reduced SLIDE THREADS HALVINGS                   the same of JPEG 2000, halved
//! peer-worker regions SLIDE THREADS SIDE CORNERS               squares at the corners in a text file
//! peer-worker resample IN OUT FILTER PIXELS                    a picture of raw RGB bytes
//! peer-worker tissue SLIDE                                     opens the slide, finds the tissue
//! ```
//!
//! It prints `ready` and then answers lines: `KEY N`, N runs (of batch KEY), with seconds a run;
//! `dump FILE`, with what one run puts out as raw bytes.

use histokern::backend::{Backend, Input, Session};
use histokern::cpu::CpuBackend;
use histokern::error::{Context, Error, Result};
use histokern::graph::Graph;
use histokern::image::Resampler;
use histokern::image::resample::Isa;
use histokern::models;
use histokern::recipe::{ClamTissue, Interpolation};
use histokern::slide::{OpenOptions, Region, Scratch, Slide, TileIndex};
use histokern::tissue;
use histokern::weights::Package;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A piece of work.
trait Work {
    /// Does it once.
    fn run(&mut self, key: &str) -> Result<()>;

    /// What it puts out.
    fn dump(&mut self) -> Result<Vec<u8>>;
}

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match serve(&args.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peer-worker: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn serve(args: &[&str]) -> Result<()> {
    let mut work: Box<dyn Work> = match *args {
        ["network", package, batches, threads, precision, pixels] => {
            let backend = CpuBackend::new(number(threads)?, None)?;
            let backend = backend.with_precision(precision.parse()?)?;
            Box::new(Network::new(Path::new(package), batches, &backend, &bytes(pixels)?)?)
        }
        ["tiles", slide, threads] => {
            Box::new(Tiles { slide: open(slide)?, level: 0, threads: number(threads)? })
        }
        ["reduced", slide, threads, halvings] => {
            let options = OpenOptions { reduced: true, ..OpenOptions::default() };
            let slide = Slide::open(Path::new(slide), &options)?;
            let wanted = f64::from(1 << number(halvings)?);
            let level = slide.resolutions().iter().position(|level| level.downsample == wanted);
            let level = level.ok_or_else(|| Error::usage("the slide holds no such resolution"))?;
            Box::new(Tiles { slide, level, threads: number(threads)? })
        }
        ["regions", slide, threads, side, corners] => {
            let side = number(side)? as u32;
            let text = std::fs::read_to_string(corners).map_err(|e| Error::io(corners, e))?;
            let regions = text.lines().map(|line| region(line, side)).collect::<Result<_>>()?;
            Box::new(Regions { slide: open(slide)?, threads: number(threads)?, regions })
        }
        ["resample", from, to, filter, pixels] => {
            let (from, to) = (number(from)?, number(to)?);
            let filter = match filter {
                "bicubic" => Interpolation::Bicubic,
                _ => Interpolation::Bilinear,
            };
            let named = std::env::var("HISTOKERN_CPU").unwrap_or_default();
            let isa = Isa::ALL.into_iter().find(|isa| isa.to_string() == named);
            let resampler = Resampler::new(from, from, to, to, filter)?;
            let resampler = resampler.with_isa(isa.unwrap_or(Isa::detect()))?;
            let (source, out) = (bytes(pixels)?, vec![0; to * to * 3]);
            Box::new(Resample { resampler, source, out, scratch: Vec::new() })
        }
        ["tissue", slide] => Box::new(Tissue { path: slide.into() }),
        _ => return Err(Error::usage("see the head of benches/peers/worker.rs")),
    };
    let mut out = std::io::stdout().lock();
    let told = |e| Error::io("standard output", e);
    writeln!(out, "ready").and_then(|()| out.flush()).map_err(told)?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::io("standard input", e))?;
        let answer = match line.split_once(' ') {
            Some(("dump", file)) => {
                std::fs::write(file, work.dump()?).map_err(|e| Error::io(file, e))?;
                "done".to_string()
            }
            Some((key, runs)) => {
                let runs = number(runs)?.max(1);
                let start = Instant::now();
                for _ in 0..runs {
                    work.run(key)?;
                }
                (start.elapsed().as_secs_f64() / runs as f64).to_string()
            }
            None => return Err(Error::usage(format!("{line:?} is not KEY N"))),
        };
        writeln!(out, "{answer}").and_then(|()| out.flush()).map_err(told)?;
    }
    Ok(())
}

fn number(text: &str) -> Result<usize> {
    text.parse().map_err(|_| Error::usage(format!("{text:?} is not a number")))
}

fn bytes(path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(path, e))
}

fn open(path: &str) -> Result<Slide> {
    Slide::open(Path::new(path), &OpenOptions::default())
}

fn region(line: &str, side: u32) -> Result<Region> {
    let (x, y) = line.split_once(' ').ok_or_else(|| Error::usage("a corner is X Y"))?;
    let [x, y] = [number(x)? as i64, number(y)? as i64];
    Ok(Region { x, y, level: 0, width: side, height: side })
}

/// A network readied for a number of rows, and what it puts out.
type Ready = (usize, Box<dyn Session>, Vec<f32>);

/// A network, readied once for each batch size.
struct Network {
    sessions: BTreeMap<String, Ready>,
    pixels: Vec<u8>,
    picture: usize,
}

impl Network {
    fn new(folder: &Path, batches: &str, on: &dyn Backend, pixels: &[u8]) -> Result<Network> {
        let graph = network(folder)?;
        let picture = graph.shape(graph.inputs[0]).len();
        let width = graph.shape(graph.outputs[0]).len();
        let mut sessions = BTreeMap::new();
        let mut most = 0;
        for batch in batches.split(',') {
            let rows = number(batch)?;
            most = most.max(rows);
            let session = on.prepare(graph.clone(), rows)?;
            sessions.insert(batch.to_string(), (rows, session, vec![0.0; rows * width]));
        }
        let pixels = pixels.iter().copied().cycle().take(most * picture).collect();
        let mut network = Network { sessions, pixels, picture };
        for batch in batches.split(',') {
            network.run(batch)?;
        }
        Ok(network)
    }
}

/// The encoder of a package, or its segmenter at the size of its tiles.
fn network(folder: &Path) -> Result<Arc<Graph>> {
    let package = Package::open(folder)?;
    let Some(spec) = package.recipe.segmenters.first() else {
        return Ok(models::build(&package.recipe, &package.encoder()?)?.graph);
    };
    let side = package.recipe.slide_tiles()?.size_px as usize;
    let weights = package.weights(&spec.weights)?;
    Ok(models::build_segmenter(spec, [side; 2], &weights)?.graph)
}

impl Work for Network {
    fn run(&mut self, key: &str) -> Result<()> {
        let known = self.sessions.get_mut(key);
        let (rows, session, out) =
            known.ok_or_else(|| Error::usage(format!("no batch of {key}")))?;
        let pixels = &self.pixels[..*rows * self.picture];
        session.run(*rows, &[Input::Pixels(pixels)], &mut [out])
    }

    fn dump(&mut self) -> Result<Vec<u8>> {
        let first = self
            .sessions
            .values()
            .next()
            .map(|s| s.2.iter().flat_map(|v| v.to_le_bytes()).collect());
        first.ok_or_else(|| Error::usage("no batch"))
    }
}

/// Calls `work(item, scratch)` for every item, on so many threads.
fn share(
    threads: usize,
    items: usize,
    work: impl Fn(usize, &mut Scratch) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let each = || {
            let mut scratch = Scratch::default();
            loop {
                match next.fetch_add(1, Ordering::Relaxed) {
                    item if item < items => work(item, &mut scratch)?,
                    _ => return Ok(()),
                }
            }
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(each)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|_| Err(Error::device("a thread died")))
        };
        running.into_iter().try_for_each(join)
    })
}

/// Every native tile of a level.
struct Tiles {
    slide: Slide,
    level: usize,
    threads: usize,
}

impl Tiles {
    fn index(&self, item: usize) -> TileIndex {
        let level = &self.slide.resolutions()[self.level];
        let columns = level.width.div_ceil(level.tile_width);
        let item = item as u32;
        TileIndex { level: self.level, col: item % columns, row: item / columns }
    }
}

impl Work for Tiles {
    fn run(&mut self, _key: &str) -> Result<()> {
        let level = &self.slide.resolutions()[self.level];
        let tiles =
            level.width.div_ceil(level.tile_width) * level.height.div_ceil(level.tile_height);
        share(self.threads, tiles as usize, |item, scratch| {
            black_box(self.slide.read_tile(self.index(item), scratch)?);
            Ok(())
        })
    }

    fn dump(&mut self) -> Result<Vec<u8>> {
        let tile = self.slide.read_tile(self.index(0), &mut Scratch::default())?;
        Ok(tile.image.data)
    }
}

/// Squares anywhere.
struct Regions {
    slide: Slide,
    threads: usize,
    regions: Vec<Region>,
}

impl Work for Regions {
    fn run(&mut self, _key: &str) -> Result<()> {
        share(self.threads, self.regions.len(), |item, scratch| {
            black_box(self.slide.read_region_with(&self.regions[item], scratch)?);
            Ok(())
        })
    }

    fn dump(&mut self) -> Result<Vec<u8>> {
        Ok(self.slide.read_region(&self.regions[0])?.image.data)
    }
}

/// One picture to another size, on one thread.
struct Resample {
    resampler: Resampler,
    source: Vec<u8>,
    out: Vec<u8>,
    scratch: Vec<u8>,
}

impl Work for Resample {
    fn run(&mut self, _key: &str) -> Result<()> {
        self.resampler.run(black_box(&self.source), &mut self.out, &mut self.scratch);
        Ok(())
    }

    fn dump(&mut self) -> Result<Vec<u8>> {
        self.run("")?;
        Ok(self.out.clone())
    }
}

/// Tissue contours of a slide from file.
struct Tissue {
    path: String,
}

impl Tissue {
    fn contours(&self) -> Result<usize> {
        // The published smallest area leaves nothing of small slides.
        let clam = ClamTissue { min_area: 1.0, ..ClamTissue::default() };
        let found = tissue::segment(&open(&self.path)?, &clam);
        Ok(found.context(|| self.path.clone())?.contours.len())
    }
}

impl Work for Tissue {
    fn run(&mut self, _key: &str) -> Result<()> {
        black_box(self.contours()?);
        Ok(())
    }

    fn dump(&mut self) -> Result<Vec<u8>> {
        Ok(self.contours()?.to_string().into_bytes())
    }
}
