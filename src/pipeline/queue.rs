//! The queue over a cohort: one producer that opens, segments and decodes, one consumer that
//! encodes, and a ring of batch slots between them.

use super::decode::{self, Slot, Tally};
use super::{Engine, Event, Job, Observer, Options, Prepared, bags};
use crate::error::{Error, Result};
use crate::recipe::{BnMode, Recipe};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

/// Slots in the ring: one being filled, one being computed, one waiting.
const SLOTS: usize = 3;

/// Most bytes of tiles held for a network whose batch norm looks at whole bags: 28,000 tiles of
/// 224 pixels.
const MAX_HELD_BYTES: usize = 4 << 30;

/// A slide whose tiles are encoded.
pub struct Finished {
    /// The slide, its tissue and its grid.
    pub prepared: Prepared,
    /// Grid indices of the encoded tiles, in the order of the rows of `features`.
    pub tiles: Vec<usize>,
    /// `[tiles, D]`.
    pub features: Vec<f32>,
    /// Rows of `features` that make one bag each.
    pub bags: Vec<Vec<usize>>,
    /// What became of every grid position.
    pub tally: Tally,
    /// Where the time went.
    pub seconds: Seconds,
}

/// Seconds spent on one slide, by stage. Decoding runs beside encoding.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seconds {
    /// Hashing the file.
    pub hash: f64,
    /// Opening the slide and deciding its tiles.
    pub prepare: f64,
    /// Reading, decoding, filtering and resampling tiles.
    pub decode: f64,
    /// Running the encoder.
    pub encode: f64,
    /// Waiting for tiles to be decoded.
    pub wait: f64,
    /// From the first tile to the last feature.
    pub total: f64,
}

enum Message {
    Start(Box<Prepared>),
    Batch(Slot),
    End { tally: Tally, decode: Duration },
    Failed { job: usize, error: Error },
    Skipped { job: usize },
}

/// What the caller does with each slide.
pub trait Sink {
    /// Called with each encoded slide; the engine is free for the heads.
    ///
    /// # Errors
    /// An error is a failure of this slide only.
    fn finished(&mut self, engine: &mut Engine, job: &Job, slide: Finished) -> Result<()>;

    /// Called for a slide that failed.
    ///
    /// # Errors
    /// An error ends the run.
    fn failed(&mut self, job: &Job, error: Error) -> Result<()>;

    /// Called for a slide that was done already.
    fn skipped(&mut self, job: &Job);
}

/// Runs every job in order. Before a slide is opened, `done` is asked on the producer's thread
/// whether it is finished already, given the SHA-256 of its file; `sink` is called on this thread.
///
/// # Errors
/// What `sink.failed` returns, or a device that failed: slides finished so far are kept.
pub fn run(
    engine: &mut Engine,
    jobs: &[Job],
    options: &Options,
    observer: &dyn Observer,
    done: &(dyn Fn(&Job, &str) -> bool + Sync),
    sink: &mut dyn Sink,
) -> Result<()> {
    let recipe = engine.recipe().clone();
    let row_bytes = 3 * (recipe.input_px() as usize).pow(2);
    let (full, from_producer) = sync_channel(SLOTS);
    let (free, free_slots) = channel();
    for _ in 0..SLOTS {
        // The receiver is alive in this scope.
        let _ = free.send(Slot::new(engine.batch(), row_bytes));
    }
    std::thread::scope(|scope| {
        let producer = std::thread::Builder::new().name("decode".into());
        let recipe = &recipe;
        producer
            .spawn_scoped(scope, move || {
                produce(recipe, jobs, options, done, &full, &free_slots);
            })
            .map_err(|e| Error::io("starting the decode thread", e))?;
        let mut consumer = Consumer { engine, jobs, observer, sink, current: None };
        // Both ends are dropped here, also on an error, which is what stops the producer.
        consumer.run(from_producer, free)
    })
}

/// Opens, segments and decodes slide after slide until done or nobody listens any more.
fn produce(
    recipe: &Recipe,
    jobs: &[Job],
    options: &Options,
    done: &(dyn Fn(&Job, &str) -> bool + Sync),
    full: &SyncSender<Message>,
    free: &Receiver<Slot>,
) {
    for (index, job) in jobs.iter().enumerate() {
        let sent = match produce_one(recipe, (index, job), options, done, full, free) {
            Ok(()) => Ok(()),
            Err(Stop::Failed(error)) => full.send(Message::Failed { job: index, error }),
            Err(Stop::NobodyListens) => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Why the producer leaves a slide.
enum Stop {
    Failed(Error),
    NobodyListens,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

fn produce_one(
    recipe: &Recipe,
    (index, job): (usize, &Job),
    options: &Options,
    done: &(dyn Fn(&Job, &str) -> bool + Sync),
    full: &SyncSender<Message>,
    free: &Receiver<Slot>,
) -> Result<(), Stop> {
    let send = |message| full.send(message).map_err(|_| Stop::NobodyListens);
    let start = Instant::now();
    let sha256 = crate::report::result::sha256_file(&job.path)?;
    let hash = start.elapsed().as_secs_f64();
    if done(job, &sha256) {
        return send(Message::Skipped { job: index });
    }
    let mut prepared = Prepared::new(job, index, recipe, &options.open)?;
    prepared.sha256 = sha256;
    prepared.hash_seconds = hash;
    let reader = decode::TileReader::new(&prepared, recipe, options.decode_threads)?;
    send(Message::Start(Box::new(prepared.clone())))?;
    let mut tally = Tally::new(prepared.grid.origins.len());
    let mut busy = Duration::ZERO;
    let mut next = 0;
    while next < prepared.grid.origins.len() {
        let Ok(mut slot) = free.recv() else { return Err(Stop::NobodyListens) };
        let start = Instant::now();
        next = reader.fill(next, &mut slot, &mut tally);
        busy += start.elapsed();
        send(Message::Batch(slot))?;
    }
    prepared.slide.check_unchanged()?;
    send(Message::End { tally, decode: busy })
}

/// The slide whose batches are coming in.
struct Current {
    prepared: Prepared,
    tiles: Vec<usize>,
    features: Vec<f32>,
    /// Pixels of the kept tiles, only while batch norm needs whole bags.
    pixels: Vec<u8>,
    /// Why the slide cannot be finished.
    failure: Option<Error>,
    read: usize,
    seconds: Seconds,
    start: Instant,
}

struct Consumer<'a> {
    engine: &'a mut Engine,
    jobs: &'a [Job],
    observer: &'a dyn Observer,
    sink: &'a mut dyn Sink,
    current: Option<Current>,
}

impl Consumer<'_> {
    fn run(&mut self, messages: Receiver<Message>, free: Sender<Slot>) -> Result<()> {
        loop {
            let start = Instant::now();
            let Ok(message) = messages.recv() else { return Ok(()) };
            if let Some(current) = &mut self.current {
                current.seconds.wait += start.elapsed().as_secs_f64();
            }
            match message {
                Message::Start(prepared) => self.start(*prepared),
                Message::Batch(slot) => {
                    let encoded = self.batch(&slot);
                    // The producer may have gone; then nobody needs the slot.
                    let _ = free.send(slot);
                    encoded?;
                }
                Message::End { tally, decode } => self.end(tally, decode)?,
                Message::Failed { job, error } => {
                    self.current = None;
                    self.sink.failed(&self.jobs[job], error)?;
                    self.observer.event(Event::SlideDone);
                }
                Message::Skipped { job } => {
                    self.sink.skipped(&self.jobs[job]);
                    self.observer.event(Event::SlideDone);
                }
            }
        }
    }

    fn start(&mut self, prepared: Prepared) {
        let tiles = prepared.grid.origins.len();
        self.observer.event(Event::SlideStarted { name: &self.jobs[prepared.job].name, tiles });
        let seconds = Seconds {
            hash: prepared.hash_seconds,
            prepare: prepared.seconds,
            ..Seconds::default()
        };
        self.current = Some(Current {
            prepared,
            tiles: Vec::new(),
            features: Vec::new(),
            pixels: Vec::new(),
            failure: None,
            read: 0,
            seconds,
            start: Instant::now(),
        });
    }

    fn batch(&mut self, slot: &Slot) -> Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let rows = slot.tiles.len();
        current.read += slot.read;
        if self.engine.recipe().encoder.bn_mode == BnMode::Batch {
            if current.pixels.len() + slot.pixels(rows).len() > MAX_HELD_BYTES {
                current.failure.get_or_insert_with(|| {
                    Error::limit(
                        "batch norm over shuffled bags holds all tiles at once, and these take more \
                         than 4 GiB; bn_mode = \"running\" does not",
                    )
                });
                return Ok(());
            }
            current.pixels.extend_from_slice(slot.pixels(rows));
        } else if rows > 0 {
            let start = Instant::now();
            let old = current.features.len();
            let width = self.engine.encoder().map_or(0, |e| e.feature_dim);
            current.features.resize(old + rows * width, 0.0);
            self.engine.encode(rows, slot.pixels(rows), &mut current.features[old..])?;
            current.seconds.encode += start.elapsed().as_secs_f64();
        }
        current.tiles.extend_from_slice(&slot.tiles);
        let elapsed = current.start.elapsed().as_secs_f64().max(1e-9);
        self.observer.event(Event::Tiles {
            done: current.read,
            tiles_per_second: current.read as f64 / elapsed,
            decode_share: current.seconds.wait / elapsed,
        });
        Ok(())
    }

    fn end(&mut self, tally: Tally, decode: Duration) -> Result<()> {
        let Some(mut current) = self.current.take() else { return Ok(()) };
        let job = &self.jobs[current.prepared.job];
        if let Some(error) = current.failure {
            self.observer.event(Event::SlideDone);
            return self.sink.failed(job, error);
        }
        let mut bags = bags::groups(current.tiles.len(), self.engine.recipe().bag.as_ref());
        if self.engine.recipe().encoder.bn_mode == BnMode::Batch {
            bags = encode_bags(self.engine, &mut current, &bags)?;
        }
        current.seconds.decode = decode.as_secs_f64();
        current.seconds.total = current.start.elapsed().as_secs_f64();
        let finished = Finished {
            prepared: current.prepared,
            tiles: current.tiles,
            features: current.features,
            bags,
            tally,
            seconds: current.seconds,
        };
        if let Err(error) = self.sink.finished(self.engine, job, finished) {
            self.sink.failed(job, error)?;
        }
        self.observer.event(Event::SlideDone);
        Ok(())
    }
}

/// Encodes whole bags, for networks whose batch norm looks at the bag; afterwards tiles and
/// features are in bag order and tiles of an incomplete bag are gone.
fn encode_bags(
    engine: &mut Engine,
    current: &mut Current,
    bags: &[Vec<usize>],
) -> Result<Vec<Vec<usize>>> {
    let start = Instant::now();
    let width = engine.encoder().map_or(0, |e| e.feature_dim);
    let row = current.pixels.len() / current.tiles.len().max(1);
    let used: usize = bags.iter().map(Vec::len).sum();
    current.features = vec![0.0; used * width];
    let mut tiles = Vec::with_capacity(used);
    let mut renumbered = Vec::with_capacity(bags.len());
    let mut pixels = Vec::new();
    for bag in bags {
        pixels.clear();
        for &i in bag {
            pixels.extend_from_slice(&current.pixels[i * row..][..row]);
        }
        let first = tiles.len();
        let features = &mut current.features[first * width..][..bag.len() * width];
        engine.encode(bag.len(), &pixels, features)?;
        tiles.extend(bag.iter().map(|&i| current.tiles[i]));
        renumbered.push((first..tiles.len()).collect());
    }
    current.tiles = tiles;
    current.pixels = Vec::new();
    current.seconds.encode += start.elapsed().as_secs_f64();
    Ok(renumbered)
}
