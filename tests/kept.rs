//! Features that stay on the machine of their encoder until the heads have read them: the same results
//! as over the host, nothing brought to the host that nobody asked for, and no slide lost for want of
//! memory. The machine is the CPU behind a session that keeps, so that this needs no device.

#[path = "common/demo.rs"]
mod demo;
#[path = "common/slides.rs"]
mod synthetic_slides;

use demo::{package, slide};
use histokern::backend::{Backend, Batch, HostMemory, Input, Kept, Overlapped, Session};
use histokern::cpu::CpuBackend;
use histokern::graph::{Graph, Shape};
use histokern::pipeline::predict::{HeadResult, predict};
use histokern::pipeline::{self, Engine, Event, Finished, Job, Observer, Options, Parts, Sink};
use histokern::slide::OpenOptions;
use histokern::{Error, Result};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

/// What happened to features, and what is allowed.
#[derive(Debug)]
struct Log {
    /// Rows there is room for.
    room: usize,
    /// Whether a head finds no memory while features are kept.
    heads_want_it_all: bool,
    /// Times they were kept, and still are.
    kept: AtomicUsize,
    alive: AtomicUsize,
    /// Rows that were brought to the host.
    brought: AtomicUsize,
    /// Batches whose features went to the host.
    over_host: AtomicUsize,
}

#[derive(Debug)]
struct KeptRows {
    width: usize,
    rows: usize,
    numbers: Mutex<Vec<f32>>,
    log: Arc<Log>,
}

impl KeptRows {
    fn gather(&self, rows: &[usize]) -> Vec<f32> {
        let numbers = self.numbers.lock().unwrap();
        rows.iter().flat_map(|&row| &numbers[row * self.width..][..self.width]).copied().collect()
    }
}

impl Kept for KeptRows {
    fn rows(&self) -> usize {
        self.rows
    }

    fn width(&self) -> usize {
        self.width
    }

    fn read(&self, rows: &[usize], numbers: &mut [f32]) -> Result<()> {
        self.log.brought.fetch_add(rows.len(), Relaxed);
        numbers.copy_from_slice(&self.gather(rows));
        Ok(())
    }
}

impl Drop for KeptRows {
    fn drop(&mut self) {
        self.log.alive.fetch_sub(1, Relaxed);
    }
}

/// A CPU that keeps.
struct Keeping {
    cpu: CpuBackend,
    log: Arc<Log>,
}

struct KeepingSession {
    session: Box<dyn Session>,
    graph: Arc<Graph>,
    log: Arc<Log>,
    under_way: VecDeque<Batch>,
}

impl KeepingSession {
    fn sees_pixels(&self) -> bool {
        matches!(self.graph.shape(self.graph.inputs[0]), Shape::Pixels { .. })
    }

    fn width(&self) -> usize {
        self.graph.shape(self.graph.outputs[0]).len()
    }
}

impl Keeping {
    fn new(room: usize, heads_want_it_all: bool) -> Keeping {
        let log = Log {
            room,
            heads_want_it_all,
            kept: 0.into(),
            alive: 0.into(),
            brought: 0.into(),
            over_host: 0.into(),
        };
        Keeping { cpu: CpuBackend::new(2, None).unwrap(), log: Arc::new(log) }
    }

    /// Times features were kept, rows brought to the host, batches that went over it.
    fn counts(&self) -> [usize; 3] {
        assert_eq!(self.log.alive.load(Relaxed), 0, "features left behind");
        let log = &self.log;
        [&log.kept, &log.brought, &log.over_host].map(|count| count.load(Relaxed))
    }
}

impl Backend for Keeping {
    fn name(&self) -> String {
        self.cpu.name()
    }

    fn prepare(&self, graph: Arc<Graph>, max_rows: usize) -> Result<Box<dyn Session>> {
        let session = self.cpu.prepare(graph.clone(), max_rows)?;
        let log = self.log.clone();
        Ok(Box::new(KeepingSession { session, graph, log, under_way: VecDeque::new() }))
    }
}

impl Session for KeepingSession {
    fn max_rows(&self) -> usize {
        self.session.max_rows()
    }

    fn reserve(&mut self, rows: usize) -> Result<()> {
        let log = &self.log;
        if !self.sees_pixels() && log.heads_want_it_all && log.alive.load(Relaxed) > 0 {
            return Err(Error::limit("the features are in the way"));
        }
        self.session.reserve(rows)
    }

    fn run(&mut self, rows: usize, inputs: &[Input<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
        let gather = |input: &Input<'_>| match *input {
            Input::Kept(from, rows) => {
                let own: &dyn std::any::Any = from;
                Some(own.downcast_ref::<KeptRows>().unwrap().gather(rows))
            }
            _ => None,
        };
        let gathered: Vec<Option<Vec<f32>>> = inputs.iter().map(gather).collect();
        let given = |(&input, own)| Option::map_or(Option::as_deref(own), input, Input::Values);
        let inputs: Vec<Input<'_>> = inputs.iter().zip(&gathered).map(given).collect();
        self.session.run(rows, &inputs, outputs)
    }

    fn overlapped(&mut self) -> Option<&mut dyn Overlapped> {
        if self.sees_pixels() { Some(self) } else { None }
    }
}

impl Overlapped for KeepingSession {
    fn lanes(&mut self) -> usize {
        2
    }

    fn lend(&mut self, bytes: usize) -> Result<HostMemory> {
        Ok(Box::new(vec![0; bytes]))
    }

    fn submit(&mut self, batch: Batch) -> Result<()> {
        self.under_way.push_back(batch);
        Ok(())
    }

    fn keep(&mut self, rows: usize) -> Result<Option<Arc<dyn Kept>>> {
        if rows > self.log.room {
            return Err(Error::limit(format!("{rows} tiles, room for {}", self.log.room)));
        }
        self.log.kept.fetch_add(1, Relaxed);
        self.log.alive.fetch_add(1, Relaxed);
        let (width, log) = (self.width(), self.log.clone());
        let numbers = Mutex::new(vec![f32::NAN; rows * width]);
        Ok(Some(Arc::new(KeptRows { width, rows, numbers, log })))
    }

    fn collect(&mut self, outputs: &mut [&mut [f32]]) -> Result<HostMemory> {
        let Batch { rows, pixels, into, .. } = self.under_way.pop_front().unwrap();
        let bytes = rows * self.graph.shape(self.graph.inputs[0]).len();
        let inputs = [Input::Pixels(&pixels[..bytes])];
        let Some((kept, first)) = into else {
            self.log.over_host.fetch_add(1, Relaxed);
            self.session.run(rows, &inputs, outputs)?;
            return Ok(pixels);
        };
        assert!(outputs.is_empty());
        let mut features = vec![0.0; rows * self.width()];
        self.session.run(rows, &inputs, &mut [&mut features])?;
        let own: &dyn std::any::Any = &*kept;
        let own = own.downcast_ref::<KeptRows>().unwrap();
        own.numbers.lock().unwrap()[first * own.width..][..features.len()]
            .copy_from_slice(&features);
        Ok(pixels)
    }
}

/// What heads say of every slide, and what people are told.
#[derive(Default)]
struct Said {
    slides: Vec<(Vec<usize>, Vec<HeadResult>)>,
    reads: bool,
    features: Vec<Vec<f32>>,
    remarks: Remarks,
}

#[derive(Default)]
struct Remarks(Arc<Mutex<Vec<String>>>);

impl Observer for Remarks {
    fn event(&self, event: Event<'_>) {
        if let Event::Remark(text) = event {
            self.0.lock().unwrap().push(text.into());
        }
    }
}

impl Sink for Said {
    fn finished(&mut self, engine: &mut Engine, _: &Job, mut slide: Finished) -> Result<()> {
        if engine.heads().next().is_some() {
            let features = &mut slide.features;
            let heads = predict(engine, features, &slide.bags, &[], &self.remarks)?;
            self.slides.push((slide.tiles, heads));
        }
        if self.reads {
            self.features.push(slide.features.read()?.into_owned());
        }
        Ok(())
    }

    fn failed(&mut self, _: &Job, error: Error) -> Result<()> {
        Err(error)
    }

    fn skipped(&mut self, _: &Job) {}
}

impl Said {
    /// Every number, as bits.
    fn bits(&self) -> Vec<u32> {
        let of = |heads: &[HeadResult]| -> Vec<u32> {
            let numbers = |h: &HeadResult| [&h.logits[..], &h.scores, &h.attention].concat();
            heads.iter().flat_map(numbers).map(f32::to_bits).collect()
        };
        self.slides.iter().flat_map(|(_, heads)| of(heads)).collect()
    }

    fn remarks(&self) -> Vec<String> {
        self.remarks.0.lock().unwrap().clone()
    }
}

fn run(on: &dyn Backend, packages: &[&Path], parts: Parts, batch: usize, jobs: &[Job]) -> Said {
    let mut engine = Engine::open_all(packages, on, parts, batch).unwrap();
    let options = Options { open: OpenOptions::default(), decode_threads: 2, stride_px: None };
    let mut said = Said { reads: parts == Parts::Encoder, ..Said::default() };
    let remarks = Remarks(said.remarks.0.clone());
    pipeline::run(&mut engine, jobs, &options, &remarks, &|_, _| false, &mut said).unwrap();
    said
}

/// Two slides, and packages: as it is, with tiles that are dropped and bags that are shuffled, and two
/// that make an ensemble with the first, of the same encoder and of another.
struct Setting {
    _dir: tempfile::TempDir,
    jobs: [Job; 2],
    plain: std::path::PathBuf,
    bags: std::path::PathBuf,
    same: std::path::PathBuf,
    other: std::path::PathBuf,
}

/// Made once for all tests, with what the CPU alone says of the plain package.
fn setting() -> &'static (Setting, Said) {
    static MADE: OnceLock<(Setting, Said)> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let white = ("select = \"four-point\"\n", "max_white = 0.9\n");
        let bags = ("[preprocess]\n", "[bag]\nsize = 4\nshuffle_seed = 3\n\n");
        let jobs = [slide(dir.path(), 3, 0.5), slide(dir.path(), 5, 0.5)];
        let plain = package(dir.path(), "plain", &[]);
        let bags = package(dir.path(), "bags", &[white, bags]);
        let same = package(dir.path(), "same", &[]);
        let other = package(dir.path(), "other", &[]);
        let recipe = other.join("recipe.toml");
        let text = std::fs::read_to_string(&recipe).unwrap();
        let text = text.replace("mean = [0.5, 0.5, 0.5]", "mean = [0.4, 0.5, 0.5]");
        std::fs::write(&recipe, text).unwrap();
        let want = run(&cpu(), &[&plain], Parts::All, 4, &jobs);
        assert!(want.bits().len() > 20 && want.slides.len() == 2, "{:?}", want.bits());
        (Setting { _dir: dir, jobs, plain, bags, same, other }, want)
    })
}

fn cpu() -> CpuBackend {
    CpuBackend::new(2, None).unwrap()
}

#[test]
fn features_that_stay_change_no_bit_and_are_not_brought() {
    let (Setting { jobs, plain, bags, same, other, .. }, said) = setting();
    let both = |on: &dyn Backend, packages: &[&Path]| run(on, packages, Parts::All, 3, jobs).bits();
    for (packages, batch, stays, want) in [
        (&[&**plain][..], 1, true, said.bits()),
        (&[plain], 64, true, said.bits()),
        (&[bags], 3, true, both(&cpu(), &[bags])),
        (&[plain, same], 3, true, both(&cpu(), &[plain, same])),
        (&[plain, other], 3, false, both(&cpu(), &[plain, other])),
    ] {
        let keeping = Keeping::new(1000, false);
        let got = run(&keeping, packages, Parts::All, batch, jobs);
        assert!(got.bits() == want, "{packages:?}: other bits in batches of {batch}");
        let [kept, brought, over_host] = keeping.counts();
        assert_eq!((kept, brought, over_host == 0), (2 * usize::from(stays), 0, stays));
        assert_eq!(got.remarks(), [""; 0]);
    }
}

/// Nothing reads them there, and who asks gets them without the detour.
#[test]
fn features_that_no_head_reads_go_to_the_host() {
    let (Setting { jobs, plain, .. }, _) = setting();
    let keeping = Keeping::new(1000, false);
    let got = run(&keeping, &[plain], Parts::Encoder, 5, &jobs[..1]);
    let want = run(&cpu(), &[plain], Parts::Encoder, 5, &jobs[..1]);
    assert!(got.features == want.features && got.features[0].len() > 100);
    assert_eq!(keeping.counts()[..2], [0, 0]);
}

#[test]
fn without_room_features_go_over_the_host() {
    let (Setting { jobs, plain, .. }, want) = setting();
    let keeping = Keeping::new(2, false);
    let got = run(&keeping, &[plain], Parts::All, 4, jobs);
    assert!(got.bits() == want.bits(), "other bits");
    assert_eq!(keeping.counts()[..2], [0, 0]);
    // Said once.
    let [remark] = &got.remarks()[..] else { panic!("{:?}", got.remarks()) };
    assert!(remark.contains("over the host") && remark.contains("room for 2"), "{remark}");
}

#[test]
fn heads_come_before_features_where_memory_is_short() {
    let (Setting { jobs, plain, .. }, want) = setting();
    let keeping = Keeping::new(1000, true);
    let got = run(&keeping, &[plain], Parts::All, 64, &jobs[..1]);
    assert!(want.bits().starts_with(&got.bits()) && got.slides.len() == 1, "other bits");
    assert_eq!(keeping.counts(), [1, want.slides[0].0.len(), 0]);
    let [remark] = &got.remarks()[..] else { panic!("{:?}", got.remarks()) };
    assert!(remark.contains("over the host from now on: the features are in the way"), "{remark}");
}
