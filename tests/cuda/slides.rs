//! Slides from file to features with their tiles made into the network's input on the device: the bits
//! of the same device fed by the host, and the CPU's within the tolerance of networks.

use super::backend;
use super::demo::{package, slide};
use histokern::backend::check::Deviation;
use histokern::backend::suite::NETWORK;
use histokern::backend::{Backend, Input, Session};
use histokern::cpu::CpuBackend;
use histokern::graph::Graph;
use histokern::pipeline::way::Way;
use histokern::pipeline::{self, Engine, Finished, Job, Options, Parts, Prepared, Sink};
use histokern::slide::OpenOptions;
use histokern::{Error, Result};
use std::path::Path;
use std::sync::Arc;

/// Runs one batch at a time on the network's own input.
struct FedByHost(Box<dyn Backend>);

struct FedSession(Box<dyn Session>);

impl Backend for FedByHost {
    fn name(&self) -> String {
        self.0.name()
    }

    fn prepare(&self, graph: Arc<Graph>, max_rows: usize) -> Result<Box<dyn Session>> {
        Ok(Box::new(FedSession(self.0.prepare(graph, max_rows)?)))
    }
}

impl Session for FedSession {
    fn max_rows(&self) -> usize {
        self.0.max_rows()
    }

    fn reserve(&mut self, rows: usize) -> Result<()> {
        self.0.reserve(rows)
    }

    fn run(&mut self, rows: usize, inputs: &[Input<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
        self.0.run(rows, inputs, outputs)
    }
}

#[derive(Default)]
struct Features(Vec<(Vec<usize>, Vec<f32>)>);

impl Sink for Features {
    fn finished(&mut self, _: &mut Engine, _: &Job, slide: Finished) -> Result<()> {
        self.0.push((slide.tiles, slide.features.read()?.into_owned()));
        Ok(())
    }

    fn failed(&mut self, _: &Job, error: Error) -> Result<()> {
        Err(error)
    }

    fn skipped(&mut self, _: &Job) {}
}

/// The features of all slides, and of the way of the first one's tiles how many steps the host and how
/// many the machine does.
fn features(on: &dyn Backend, package: &Path, jobs: &[Job]) -> (Features, [usize; 2]) {
    let mut engine = Engine::open(package, on, Parts::Encoder, 3).unwrap();
    let open = OpenOptions::default();
    let options = Options { open, decode_threads: 2, stride_px: None };
    let mut found = Features::default();
    pipeline::run(&mut engine, jobs, &options, &(), &|_, _| false, &mut found).unwrap();
    let prepared = Prepared::new(&jobs[0], 0, engine.recipe(), &open).unwrap();
    let way = Way::new(&prepared, engine.recipe(), engine.tile_pixels()).unwrap();
    (found, [way.host.len(), way.machine.map_or(0, |how| how.steps().len())])
}

#[test]
fn tiles_made_on_the_device_give_the_same_bits() {
    let Some(cuda) = backend() else { return };
    let host = FedByHost(Box::new(backend().unwrap()));
    let dir = tempfile::tempdir().unwrap();
    // Two slides of different pixels, so that their tiles are made in two ways; batches of both are
    // under way at once. The second's are read too large for the device.
    let jobs = [slide(dir.path(), 3, 0.5), slide(dir.path(), 5, 0.4)];
    let resize = ("[preprocess]\n", "resize = 112\ncrop = 96\n");
    let white = ("select = \"four-point\"\n", "max_white = 0.9\n");
    let macenko = ("[preprocess]\n", "[stain]\nmethod = \"macenko\"\n");
    let reinhard = ("[preprocess]\n", "[stain]\nmethod = \"reinhard\"\n");
    for (name, edits, steps) in [
        ("resize", &[resize][..], [0, 2]),
        ("macenko", &[resize, macenko], [0, 3]),
        // What the host has to see first.
        ("white", &[resize, macenko, white], [2, 2]),
        ("white alone", &[white], [2, 0]),
        // What the device cannot repeat.
        ("reinhard", &[resize, reinhard], [2, 1]),
    ] {
        let package = package(dir.path(), name, edits);
        let (got, shared) = features(&cuda, &package, &jobs);
        let (want, alone) = features(&host, &package, &jobs);
        let (cpu, _) = features(&CpuBackend::new(2, None).unwrap(), &package, &jobs);
        assert_eq!((shared, alone), (steps, [steps[0] + steps[1], 0]), "{name}");
        assert_eq!([got.0.len(), want.0.len(), cpu.0.len()], [2; 3]);
        for (((tiles, got), (_, want)), (_, cpu)) in got.0.iter().zip(&want.0).zip(&cpu.0) {
            assert!(tiles.len() > 5, "{name}: {} tiles", tiles.len());
            let same = got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && got.len() == want.len(), "{name}: other bits");
            let deviation = Deviation::between(got, cpu).unwrap();
            assert!(deviation.within(NETWORK), "{name}: {deviation}");
        }
    }
}
