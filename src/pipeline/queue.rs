//! The queue over a cohort: one producer that opens, segments and decodes, one consumer that keeps
//! the encoder fed, and a ring of batch slots between them.
//!
//! A slot is memory that the device copies from: tiles are decoded straight into it, it travels to
//! the encoder, and comes back when its features have. The encoder has as many batches under way as
//! it can overlap, also across the end of a slide, so that a device does not idle while the last
//! batch of one slide is waited for.

use super::decode::{self, Slot, Tally, TileState};
use super::gate::Verdict;
use super::{Engine, Event, Features, Job, Observer, Options, Prepared, bags};
use crate::error::{Error, Result};
use crate::recipe::{BnMode, Recipe};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::time::{Duration, Instant};

/// Slots in the ring besides those under way: one being filled, one waiting.
const SPARE_SLOTS: usize = 2;

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
    pub features: Features,
    /// Rows of `features` that make one bag each.
    pub bags: Vec<Vec<usize>>,
    /// What became of every grid position.
    pub tally: Tally,
    /// What the gate said, if there is one.
    pub verdict: Option<Verdict>,
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
    /// The part of it that is filtering and resampling.
    pub resample: f64,
    /// Running the encoder.
    pub encode: f64,
    /// Waiting for tiles to be decoded.
    pub wait: f64,
    /// From the first tile to the last feature.
    pub total: f64,
}

enum Message {
    Start {
        prepared: Box<Prepared>,
        /// The most bytes of decoded tiles held at a time.
        held: usize,
    },
    Batch(Slot),
    End {
        tally: Tally,
        decode: Duration,
        resample: f64,
    },
    Failed {
        job: usize,
        error: Error,
    },
    Skipped {
        job: usize,
    },
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
    let mut recipe = engine.recipe().clone();
    recipe.slide_tiles()?;
    if let Some(tiles) = &mut recipe.tiles {
        tiles.stride_px = options.stride_px.or(tiles.stride_px);
    }
    let (machine_pixels, rows) = (engine.tile_pixels(), engine.batch());
    let lanes = engine.lanes()?;
    let slots = lanes + SPARE_SLOTS;
    let (full, from_producer) = sync_channel(slots);
    let (free, free_slots) = channel();
    for _ in 0..slots {
        // The receiver is alive in this scope.
        let _ = free.send(engine.slot()?);
    }
    for note in engine.notes() {
        observer.event(Event::Remark(note));
    }
    std::thread::scope(|scope| {
        let producer = std::thread::Builder::new().name("decode".into());
        let recipe = &recipe;
        producer
            .spawn_scoped(scope, move || {
                let to = Consumers { machine_pixels, rows, full, free: free_slots };
                produce(recipe, jobs, options, done, &to);
            })
            .map_err(|e| Error::io("starting the decode thread", e))?;
        let (open, under_way) = (VecDeque::new(), VecDeque::new());
        let mut consumer = Consumer { engine, jobs, observer, sink, lanes, free, open, under_way };
        // Both ends are dropped here, also on an error, which is what stops the producer.
        let outcome = consumer.run(from_producer);
        drop(consumer);
        outcome
    })
}

/// Whom the tiles are for.
struct Consumers {
    /// Pixels of a picture that the machine prepares by itself.
    machine_pixels: usize,
    /// Rows of a slot.
    rows: usize,
    full: SyncSender<Message>,
    free: Receiver<Slot>,
}

/// Opens, segments and decodes slide after slide until done or nobody listens any more.
fn produce(
    recipe: &Recipe,
    jobs: &[Job],
    options: &Options,
    done: &(dyn Fn(&Job, &str) -> bool + Sync),
    to: &Consumers,
) {
    for (index, job) in jobs.iter().enumerate() {
        let sent = match produce_one(recipe, (index, job), options, done, to) {
            Ok(()) => Ok(()),
            Err(Stop::Failed(error)) => to.full.send(Message::Failed { job: index, error }),
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
    to: &Consumers,
) -> Result<(), Stop> {
    let send = |message| to.full.send(message).map_err(|_| Stop::NobodyListens);
    let start = Instant::now();
    let sha256 = crate::report::result::sha256_file(&job.path)?;
    let hash = start.elapsed().as_secs_f64();
    if done(job, &sha256) {
        return send(Message::Skipped { job: index });
    }
    let mut prepared = Prepared::new(job, index, recipe, &options.open)?;
    prepared.sha256 = sha256;
    prepared.hash_seconds = hash;
    let reader =
        decode::TileReader::new(&prepared, recipe, options.decode_threads, to.machine_pixels)?;
    let held = reader.most_held(to.rows);
    send(Message::Start { prepared: Box::new(prepared.clone()), held })?;
    let mut tally = Tally::new(prepared.grid.origins.len());
    let mut busy = Duration::ZERO;
    let mut next = 0;
    while next < prepared.grid.origins.len() {
        let Ok(mut slot) = to.free.recv() else { return Err(Stop::NobodyListens) };
        let start = Instant::now();
        next = reader.fill(next, &mut slot, &mut tally);
        busy += start.elapsed();
        send(Message::Batch(slot))?;
    }
    prepared.slide.check_unchanged()?;
    let resample = busy.as_secs_f64() * reader.resample_share();
    send(Message::End { tally, decode: busy, resample })
}

/// A slide whose batches are coming in or under way.
struct Current {
    prepared: Prepared,
    tiles: Vec<usize>,
    features: Features,
    /// Pixels of the kept tiles, only while batch norm needs whole bags.
    pixels: Vec<u8>,
    /// What the gate said so far.
    verdict: Option<Verdict>,
    /// Why the slide cannot be finished.
    failure: Option<Error>,
    read: usize,
    under_way: usize,
    /// Set when its last batch has come.
    end: Option<Tally>,
    seconds: Seconds,
    start: Instant,
}

/// A batch at the encoder.
struct Batch {
    /// First row of the slide's features.
    first: usize,
    tiles: Vec<usize>,
    read: usize,
}

struct Consumer<'a> {
    engine: &'a mut Engine,
    jobs: &'a [Job],
    observer: &'a dyn Observer,
    sink: &'a mut dyn Sink,
    lanes: usize,
    free: Sender<Slot>,
    /// Slides that are not finished, oldest first. Only the last may still grow, and the batches
    /// under way belong to them in order.
    open: VecDeque<Current>,
    under_way: VecDeque<Batch>,
}

impl Consumer<'_> {
    fn run(&mut self, messages: Receiver<Message>) -> Result<()> {
        loop {
            let message = match messages.try_recv() {
                Ok(message) => message,
                Err(TryRecvError::Empty) if !self.under_way.is_empty() => {
                    self.collect()?;
                    continue;
                }
                Err(_) => {
                    let start = Instant::now();
                    let received = messages.recv();
                    if let Some(current) = self.open.back_mut() {
                        current.seconds.wait += start.elapsed().as_secs_f64();
                    }
                    match received {
                        Ok(message) => message,
                        Err(_) => return self.drain(),
                    }
                }
            };
            match message {
                Message::Start { prepared, held } => self.start(*prepared, held)?,
                Message::Batch(slot) => self.batch(slot)?,
                Message::End { tally, decode, resample } => {
                    if let Some(current) = self.open.back_mut() {
                        current.seconds.decode = decode.as_secs_f64();
                        current.seconds.resample = resample;
                        current.end = Some(tally);
                    }
                    self.finish_ended()?;
                }
                Message::Failed { job, error } => {
                    self.drain()?;
                    self.open.clear();
                    self.sink.failed(&self.jobs[job], error)?;
                    self.observer.event(Event::SlideDone);
                }
                Message::Skipped { job } => {
                    self.drain()?;
                    self.sink.skipped(&self.jobs[job]);
                    self.observer.event(Event::SlideDone);
                }
            }
        }
    }

    fn start(&mut self, prepared: Prepared, held: usize) -> Result<()> {
        let tiles = prepared.grid.origins.len();
        let (name, bytes) = (&self.jobs[prepared.job].name, held + self.engine.slide_bytes(tiles));
        self.observer.event(Event::SlideStarted { name, tiles, bytes });
        let seconds = Seconds {
            hash: prepared.hash_seconds,
            prepare: prepared.seconds,
            ..Seconds::default()
        };
        self.open.push_back(Current {
            prepared,
            tiles: Vec::new(),
            features: Features::host(self.engine.feature_dim(), Vec::new()),
            pixels: Vec::new(),
            verdict: self.engine.gate().map(|gate| gate.verdict()),
            failure: None,
            read: 0,
            under_way: 0,
            end: None,
            seconds,
            start: Instant::now(),
        });
        let (features, note) = match self.engine.features(tiles) {
            Ok(place) => place,
            Err(error) => return self.device_failed(error),
        };
        note.iter().for_each(|note| self.observer.event(Event::Remark(note)));
        if let Some(current) = self.open.back_mut() {
            current.features = features;
        }
        Ok(())
    }

    /// Drops the tiles of a batch that the gate does not let pass.
    fn gate(&mut self, slot: &mut Slot) -> Result<()> {
        let (Some(gate), Some(current)) = (self.engine.gate(), self.open.back_mut()) else {
            return Ok(());
        };
        let (Some(verdict), rows) = (&mut current.verdict, slot.tiles.len()) else { return Ok(()) };
        let start = Instant::now();
        let said = match gate.probabilities(rows, slot.pixels(rows)) {
            Ok(said) => said,
            Err(error) => return self.device_failed(error),
        };
        let passed: Vec<bool> = said.iter().map(|&p| verdict.passes(p)).collect();
        verdict.tiles.extend(slot.tiles.iter().copied().zip(said));
        slot.retain(&passed);
        current.seconds.encode += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// Gives a batch to the encoder, after the oldest one if every lane is taken.
    fn batch(&mut self, mut slot: Slot) -> Result<()> {
        self.gate(&mut slot)?;
        let rows = slot.tiles.len();
        let whole_bags = self.engine.recipe().encoder.bn_mode == BnMode::Batch;
        if rows > 0 && !whole_bags && self.under_way.len() == self.lanes {
            self.collect()?;
        }
        let Some(current) = self.open.back_mut() else { return Ok(()) };
        if rows == 0 || whole_bags {
            if current.pixels.len() + slot.pixels(rows).len() > MAX_HELD_BYTES {
                current.failure.get_or_insert_with(|| {
                    Error::limit(
                        "batch norm over shuffled bags holds all tiles at once, and these take more \
                         than 4 GiB; bn_mode = \"running\" does not",
                    )
                });
            } else {
                current.pixels.extend_from_slice(slot.pixels(rows));
                current.tiles.extend_from_slice(&slot.tiles);
            }
            current.read += slot.read;
            // The producer may have gone; then nobody needs the slot.
            let _ = self.free.send(slot);
            progress(self.observer, current);
            return Ok(());
        }
        let start = Instant::now();
        let first = current.tiles.len();
        current.tiles.extend_from_slice(&slot.tiles);
        let into = current.features.grow(rows);
        current.under_way += 1;
        let (tiles, read) = (slot.tiles.clone(), slot.read);
        self.under_way.push_back(Batch { first, tiles, read });
        let submitted = self.engine.submit(slot, into);
        current.seconds.encode += start.elapsed().as_secs_f64();
        submitted.or_else(|error| self.device_failed(error))
    }

    /// Waits for the oldest batch under way.
    fn collect(&mut self) -> Result<()> {
        let (Some(batch), Some(current)) = (self.under_way.pop_front(), self.open.front_mut())
        else {
            return Ok(());
        };
        let start = Instant::now();
        let features = current.features.rows_mut(batch.first, batch.tiles.len());
        let slot = match self.engine.collect(features) {
            Ok(slot) => slot,
            Err(error) => return self.device_failed(error),
        };
        // The producer may have gone; then nobody needs the slot.
        let _ = self.free.send(slot);
        current.seconds.encode += start.elapsed().as_secs_f64();
        current.read += batch.read;
        current.under_way -= 1;
        // Of two open slides the observer was told of the second.
        if self.open.len() == 1 {
            self.open.iter().for_each(|current| progress(self.observer, current));
        }
        self.finish_ended()
    }

    /// Waits for every batch under way.
    fn drain(&mut self) -> Result<()> {
        while !self.under_way.is_empty() {
            self.collect()?;
        }
        Ok(())
    }

    /// A device that failed does not come back: the slide is reported and the run ends.
    fn device_failed(&mut self, error: Error) -> Result<()> {
        let again = Error::new(error.kind(), error.to_string());
        if let Some(current) = self.open.front() {
            self.sink.failed(&self.jobs[current.prepared.job], error)?;
        }
        Err(again)
    }

    /// Hands slides on whose batches are all in, oldest first.
    fn finish_ended(&mut self) -> Result<()> {
        while self.open.front().is_some_and(|c| c.end.is_some() && c.under_way == 0) {
            let Some(current) = self.open.pop_front() else { break };
            self.end(current)?;
        }
        Ok(())
    }

    fn end(&mut self, mut current: Current) -> Result<()> {
        let job = &self.jobs[current.prepared.job];
        if let Some(error) = current.failure {
            self.observer.event(Event::SlideDone);
            return self.sink.failed(job, error);
        }
        let Some(mut tally) = current.end.take() else { return Ok(()) };
        for &(tile, p) in current.verdict.iter().flat_map(|v| &v.tiles) {
            if current.verdict.as_ref().is_some_and(|v| !v.passes(p)) {
                tally.states[tile] = TileState::Gated;
            }
        }
        let mut bags = bags::groups(current.tiles.len(), self.engine.recipe().bag.as_ref());
        if self.engine.recipe().encoder.bn_mode == BnMode::Batch {
            bags = encode_bags(self.engine, &mut current, &bags)?;
        }
        current.seconds.total = current.start.elapsed().as_secs_f64();
        let finished = Finished {
            prepared: current.prepared,
            tiles: current.tiles,
            features: current.features,
            bags,
            tally,
            verdict: current.verdict,
            seconds: current.seconds,
        };
        if let Err(error) = self.sink.finished(self.engine, job, finished) {
            self.sink.failed(job, error)?;
        }
        self.observer.event(Event::SlideDone);
        Ok(())
    }
}

fn progress(observer: &dyn Observer, current: &Current) {
    let elapsed = current.start.elapsed().as_secs_f64().max(1e-9);
    observer.event(Event::Tiles {
        done: current.read,
        tiles_per_second: current.read as f64 / elapsed,
        decode_share: current.seconds.wait / elapsed,
    });
}

/// Encodes whole bags, for networks whose batch norm looks at the bag; afterwards tiles and
/// features are in bag order and tiles of an incomplete bag are gone.
fn encode_bags(
    engine: &mut Engine,
    current: &mut Current,
    bags: &[Vec<usize>],
) -> Result<Vec<Vec<usize>>> {
    let start = Instant::now();
    let width = engine.feature_dim();
    let row = current.pixels.len() / current.tiles.len().max(1);
    let used: usize = bags.iter().map(Vec::len).sum();
    let mut features = vec![0.0; used * width];
    let mut tiles = Vec::with_capacity(used);
    let mut renumbered = Vec::with_capacity(bags.len());
    let mut pixels = Vec::new();
    for bag in bags {
        pixels.clear();
        for &i in bag {
            pixels.extend_from_slice(&current.pixels[i * row..][..row]);
        }
        let first = tiles.len();
        engine.encode(bag.len(), &pixels, &mut features[first * width..][..bag.len() * width])?;
        tiles.extend(bag.iter().map(|&i| current.tiles[i]));
        renumbered.push((first..tiles.len()).collect());
    }
    current.tiles = tiles;
    current.features = Features::host(width, features);
    current.pixels = Vec::new();
    current.seconds.encode += start.elapsed().as_secs_f64();
    Ok(renumbered)
}
