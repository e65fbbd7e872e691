//! Tiles into batch slots: read, filter, normalise, resample, each straight into its row.

use super::Prepared;
use super::way::{Step, Way};
use crate::backend::{HostMemory, Preparation};
use crate::error::{Error, Result};
use crate::image::{Resampler, RgbImage, colour, filter};
use crate::recipe::{Recipe, Tiles};
use crate::slide::{Region, Scratch as SlideScratch, TilePass};
use rayon::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Room for one batch of encoder inputs.
pub struct Slot {
    pixels: HostMemory,
    rows: usize,
    row_bytes: usize,
    /// What the machine has yet to do to the tiles, if anything.
    pub how: Option<Arc<Preparation>>,
    /// Grid indices of the rows that hold a tile, first to last.
    pub tiles: Vec<usize>,
    /// Grid positions that were read to fill it, dropped ones included.
    pub read: usize,
}

impl Slot {
    /// A slot of up to `rows` rows.
    pub fn new(pixels: HostMemory, rows: usize) -> Slot {
        Slot { pixels, rows, row_bytes: 0, how: None, tiles: Vec::new(), read: 0 }
    }

    /// The memory, for a session that takes it.
    pub fn into_pixels(self) -> HostMemory {
        self.pixels
    }

    /// `[rows, H, W, 3]` of the first rows.
    pub fn pixels(&self, rows: usize) -> &[u8] {
        &self.pixels[..rows * self.row_bytes]
    }

    /// Moves the rows that are kept to the front, in their order.
    pub fn retain(&mut self, kept: &[bool]) {
        let mut to = 0;
        for row in (0..self.tiles.len()).filter(|&row| kept[row]) {
            if to != row {
                let from = row * self.row_bytes;
                self.pixels.copy_within(from..from + self.row_bytes, to * self.row_bytes);
            }
            self.tiles[to] = self.tiles[row];
            to += 1;
        }
        self.tiles.truncate(to);
    }

    /// Takes the rows from grid position `first` on, those that hold a tile.
    fn compact(&mut self, first: usize, kept: &[bool]) {
        self.tiles = (first..first + kept.len()).collect();
        self.read = kept.len();
        self.retain(kept);
    }
}

/// What became of a grid position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TileState {
    /// Not looked at.
    #[default]
    Pending,
    /// Encoded.
    Kept,
    /// Too white.
    White,
    /// Too blurred.
    Blurred,
    /// Not let pass by the gate.
    Gated,
    /// Its pixels could not be read, and why.
    Unread(String),
}

/// What became of every grid position of a slide.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// One state per grid position.
    pub states: Vec<TileState>,
    /// Kept tiles that touch native tiles without data in the file.
    pub on_missing: usize,
}

impl Tally {
    /// Nothing looked at yet.
    pub fn new(tiles: usize) -> Tally {
        Tally { states: vec![TileState::Pending; tiles], on_missing: 0 }
    }

    /// Positions in a state.
    pub fn count(&self, state: impl Fn(&TileState) -> bool) -> usize {
        self.states.iter().filter(|s| state(s)).count()
    }
}

/// Buffers of one decode worker.
#[derive(Default)]
struct Scratch {
    slide: SlideScratch,
    /// The tile as read, then as each resample leaves it.
    images: Vec<RgbImage>,
    rows: Vec<u8>,
}

/// Reads the tiles of one slide in any order from any thread; each once.
pub struct TileReader<'a> {
    prepared: &'a Prepared,
    rules: &'a Tiles,
    pass: TilePass<'a>,
    way: Way,
    pool: rayon::ThreadPool,
    /// Nanoseconds of all threads: on tiles, and on reading and decoding them.
    spent: [AtomicU64; 2],
}

impl<'a> TileReader<'a> {
    /// Plans one pass over the tiles of a slide, on `threads` workers, for a machine that prepares
    /// pictures of up to `machine_pixels` pixels by itself.
    ///
    /// # Errors
    /// [`crate::Kind::Limit`] when the pass is too large, [`crate::Kind::Usage`] when threads
    /// cannot be started.
    pub fn new(
        prepared: &'a Prepared,
        recipe: &'a Recipe,
        threads: usize,
        machine_pixels: usize,
    ) -> Result<TileReader<'a>> {
        let grid = &prepared.grid;
        let regions: Vec<Region> = grid
            .origins
            .iter()
            .map(|&[x, y]| Region {
                x,
                y,
                level: grid.level,
                width: grid.read_px,
                height: grid.read_px,
            })
            .collect();
        let rules = recipe.slide_tiles()?;
        let pass = TilePass::new(&prepared.slide, grid.level, &regions)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|n| format!("decode-{n}"))
            .build()
            .map_err(|e| Error::usage(format!("{threads} decode threads: {e}")))?;
        Ok(TileReader {
            prepared,
            rules,
            pass: pass.with_outside(rules.outside.channel()),
            way: Way::new(prepared, recipe, machine_pixels)?,
            pool,
            spent: [AtomicU64::new(0), AtomicU64::new(0)],
        })
    }

    /// The most bytes of decoded tiles held while slots of `rows` rows are filled one after the other.
    pub fn most_held(&self, rows: usize) -> usize {
        self.pass.most_held(rows)
    }

    /// The part of the time so far that went into filtering and resampling.
    pub fn resample_share(&self) -> f64 {
        let [all, read] = self.spent.each_ref().map(|spent| spent.load(Ordering::Relaxed) as f64);
        if all > 0.0 { (1.0 - read / all).max(0.0) } else { 0.0 }
    }

    /// Counts the time since `start`.
    fn spend(&self, what: usize, start: Instant) {
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.spent[what].fetch_add(nanos, Ordering::Relaxed);
    }

    /// Fills a slot with the tiles from grid position `first` on and returns the position after
    /// the last one read. Tiles that are dropped or unreadable leave no gap.
    pub fn fill(&self, first: usize, slot: &mut Slot, tally: &mut Tally) -> usize {
        slot.row_bytes = self.way.row_bytes();
        slot.how.clone_from(&self.way.machine);
        let room = slot.rows.min(slot.pixels.len() / slot.row_bytes.max(1));
        let rows = room.min(tally.states.len() - first);
        let mut results = vec![(TileState::Pending, false); rows];
        self.pool.install(|| {
            slot.pixels
                .par_chunks_mut(slot.row_bytes)
                .zip(results.par_iter_mut())
                .enumerate()
                .for_each_init(Scratch::default, |scratch, (row, (out, result))| {
                    let start = Instant::now();
                    *result = self.tile(first + row, out, scratch);
                    self.spend(0, start);
                });
        });
        let kept: Vec<bool> = results.iter().map(|(state, _)| *state == TileState::Kept).collect();
        slot.compact(first, &kept);
        for (row, (state, missing)) in results.into_iter().enumerate() {
            tally.on_missing += usize::from(missing && state == TileState::Kept);
            tally.states[first + row] = state;
        }
        first + rows
    }

    /// One tile into `out` as it is handed over; whether it touches native tiles without data.
    fn tile(&self, index: usize, out: &mut [u8], scratch: &mut Scratch) -> (TileState, bool) {
        let painted = !self.prepared.regions.is_empty();
        if self.way.keeps_size() && !painted && self.rules.min_sharpness.is_none() {
            return self.read_straight(index, out, scratch);
        }
        scratch.images.resize_with(self.way.host.len() + 1, RgbImage::default);
        shape(&mut scratch.images[0], self.way.read_px);
        let start = Instant::now();
        let read = self.pass.read(index, &mut scratch.images[0].data, &mut scratch.slide);
        self.spend(1, start);
        let missing = match read {
            Ok(missing) => !missing.is_empty(),
            Err(error) => return (TileState::Unread(error.to_string()), false),
        };
        self.paint(index, &mut scratch.images[0]);
        let state = self.follow(out, scratch).unwrap_or_else(|e| TileState::Unread(e.to_string()));
        (state, missing)
    }

    /// A tile that keeps its size and that no step needs as a picture.
    fn read_straight(
        &self,
        index: usize,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> (TileState, bool) {
        let start = Instant::now();
        let read = self.pass.read(index, out, &mut scratch.slide);
        self.spend(1, start);
        let missing = match read {
            Ok(missing) => !missing.is_empty(),
            Err(error) => return (TileState::Unread(error.to_string()), false),
        };
        let state = self.white(out);
        for step in &self.way.host {
            if let Step::Recolour(stain) = step {
                stain.apply(out);
            }
        }
        (state, missing)
    }

    /// The host's steps on the tile that was read, from picture to picture.
    fn follow(&self, out: &mut [u8], scratch: &mut Scratch) -> Result<TileState> {
        let Scratch { images, rows, .. } = scratch;
        let mut images = images.iter_mut();
        let Some(mut image) = images.next() else { return Ok(TileState::Pending) };
        for step in &self.way.host {
            match step {
                Step::Filter => match self.filter(image) {
                    TileState::Kept => {}
                    dropped => return Ok(dropped),
                },
                Step::Recolour(stain) => stain.apply(&mut image.data),
                Step::Resample { resampler, kept } => {
                    let Some(next) = images.next() else { break };
                    let [side, _] = resampler.out_size();
                    shape(next, side);
                    resampler.run(&image.data, &mut next.data, rows);
                    if side != *kept {
                        *next = next.center_crop(*kept)?;
                    }
                    image = next;
                }
            }
        }
        out.copy_from_slice(&image.data);
        Ok(TileState::Kept)
    }

    /// Makes white what lies outside the annotated region the tile belongs to.
    fn paint(&self, index: usize, read: &mut RgbImage) {
        let grid = &self.prepared.grid;
        let region = grid.sources.get(index).and_then(|&r| self.prepared.regions.get(r as usize));
        if let Some(region) = region {
            let scale = grid.size_level0 / f64::from(grid.read_px);
            region.paint_outside(read, grid.origins[index], scale);
        }
    }

    fn filter(&self, tile: &RgbImage) -> TileState {
        let blurred = |min| filter::laplacian_variance(&colour::gray(tile)) < min;
        match self.white(&tile.data) {
            TileState::Kept if self.rules.min_sharpness.is_some_and(blurred) => TileState::Blurred,
            state => state,
        }
    }

    fn white(&self, rgb: &[u8]) -> TileState {
        let white = |max: f64| colour::white_fraction(rgb) >= max;
        if self.rules.max_white.is_some_and(white) { TileState::White } else { TileState::Kept }
    }
}

/// Gives a square buffer its side, keeping its memory.
fn shape(image: &mut RgbImage, side: usize) {
    image.width = side;
    image.height = side;
    image.data.resize(side * side * 3, 255);
}

/// A single picture as the encoder takes it, `[H, W, 3]`.
///
/// # Errors
/// [`crate::Kind::Usage`] when its size does not suit the recipe, or when the recipe normalises the
/// stain of slides, which a picture of one tile does not determine.
pub fn encoder_input(image: &RgbImage, recipe: &Recipe) -> Result<Vec<u8>> {
    if !recipe.stain.is_none() {
        return Err(Error::usage(
            "this recipe fits the stain of a whole slide, which tile images do not show: run it \
             on slides, or normalise the images and set [stain] method = \"none\"",
        ));
    }
    let side = recipe.input_px() as usize;
    let Some(resize) = recipe.preprocess.resize.map(|px| px as usize) else {
        if recipe.preprocess.crop.is_none() && (image.width, image.height) != (side, side) {
            return Err(Error::usage(format!(
                "{} x {} px: this recipe takes tiles of {side} x {side} px and does not resize",
                image.width, image.height
            )));
        }
        return Ok(image.center_crop(side)?.data);
    };
    let filter = recipe.preprocess.interpolation;
    let resampler = Resampler::new(image.width, image.height, resize, resize, filter)?;
    let mut resized = RgbImage::default();
    shape(&mut resized, resize);
    resampler.run(&image.data, &mut resized.data, &mut Vec::new());
    Ok(resized.center_crop(side)?.data)
}
