//! One pass over many regions of one level that decodes every native tile once.
//!
//! Regions that overlap, or that cross native tiles, share the decoded tiles whatever thread
//! reads them. A tile is decoded by the first region that needs it and dropped after the last,
//! so in row-major order about one row of native tiles is held. The only locks are those of
//! single tiles: two threads wait for each other only when they need the very same tile.

use super::read::{Scratch, Target, Tile, Window, blit_flat};
use super::{Region, Slide, TileIndex};
use crate::error::{Context, Error, Kind, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A decoded tile, or why it could not be decoded.
type Outcome = Arc<Result<Tile, (Kind, String)>>;

/// A native tile that regions share.
#[derive(Default)]
struct Shared {
    /// Regions that have yet to use it.
    uses: u32,
    /// The first and the last region that needs it.
    span: [usize; 2],
    outcome: Option<Outcome>,
}

/// A pass over regions of one level. Each region is read once, from any thread, in any order.
pub struct TilePass<'a> {
    slide: &'a Slide,
    windows: Vec<Window>,
    done: Vec<AtomicBool>,
    tiles: HashMap<TileIndex, Mutex<Shared>>,
    decoded: AtomicUsize,
    outside: u8,
}

impl<'a> TilePass<'a> {
    /// Plans a pass over `regions`, which must all be of `level`.
    pub fn new(slide: &'a Slide, level: usize, regions: &[Region]) -> Result<TilePass<'a>> {
        let mut windows = Vec::with_capacity(regions.len());
        let mut tiles: HashMap<TileIndex, Shared> = HashMap::new();
        for (i, region) in regions.iter().enumerate() {
            if region.level != level {
                let message =
                    format!("a region of level {} in a pass over level {level}", region.level);
                return Err(Error::usage(message));
            }
            let window = slide.window(region).context(|| slide.path().display().to_string())?;
            for index in slide.tiles(&window) {
                let shared =
                    tiles.entry(index).or_insert(Shared { span: [i; 2], ..Shared::default() });
                shared.uses += 1;
                shared.span[1] = i;
            }
            windows.push(window);
        }
        Ok(TilePass {
            slide,
            done: windows.iter().map(|_| AtomicBool::new(false)).collect(),
            windows,
            tiles: tiles.into_iter().map(|(index, shared)| (index, Mutex::new(shared))).collect(),
            decoded: AtomicUsize::new(0),
            outside: 255,
        })
    }

    /// With this value in every channel, in place of 255, beyond the edges of the slide.
    #[must_use]
    pub fn with_outside(self, outside: u8) -> TilePass<'a> {
        TilePass { outside, ..self }
    }

    /// Number of regions.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Whether there is no region.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// Number of native tiles the regions touch.
    pub fn native_tiles(&self) -> usize {
        self.tiles.len()
    }

    /// Number of native tiles decoded so far, those that failed included.
    pub fn decoded_tiles(&self) -> usize {
        self.decoded.load(Ordering::Relaxed)
    }

    /// The most bytes of decoded native tiles that are held when the regions are read in order, `together`
    /// of them at a time.
    pub fn most_held(&self, together: usize) -> usize {
        let together = together.max(1);
        let mut comes_or_goes = vec![0isize; self.windows.len() / together + 2];
        for shared in self.tiles.values() {
            let span = shared.lock().unwrap_or_else(PoisonError::into_inner).span;
            let [first, last] = span.map(|region| region / together);
            comes_or_goes[first] += 1;
            comes_or_goes[last + 1] -= 1;
        }
        let held = comes_or_goes.into_iter().scan(0, |held, change| {
            *held += change;
            Some(*held)
        });
        let level = self.windows.first().map_or(0, |window| window.level);
        held.max().map_or(0, isize::unsigned_abs) * self.slide.native_tile_bytes(level)
    }

    /// Number of decoded native tiles held for regions to come.
    pub fn held_tiles(&self) -> usize {
        let held = |shared: &&Mutex<Shared>| {
            shared.lock().unwrap_or_else(PoisonError::into_inner).outcome.is_some()
        };
        self.tiles.values().filter(held).count()
    }

    /// Writes region `i` to `out` (`[height, width, 3]` RGB, white outside the slide unless
    /// [told otherwise](Self::with_outside)) and returns the native tiles it touches that hold no data in the file.
    ///
    /// The pixels are those of [`Slide::read_region`]. A native tile that cannot be decoded fails
    /// every region that touches it, and only those: what `out` holds then means nothing. Reading a
    /// region twice is an error.
    pub fn read(&self, i: usize, out: &mut [u8], scratch: &mut Scratch) -> Result<Vec<TileIndex>> {
        let read = self.read_inner(i, out, scratch);
        read.context(|| self.slide.path().display().to_string())
    }

    /// Gives up region `i`: tiles that only it still needs are dropped.
    pub fn skip(&self, i: usize) -> Result<()> {
        let window = self.take(i)?;
        self.slide.tiles(&window).for_each(|index| self.release(index));
        Ok(())
    }

    fn take(&self, i: usize) -> Result<Window> {
        let (Some(window), Some(done)) = (self.windows.get(i), self.done.get(i)) else {
            return Err(Error::usage(format!("region {i} of {}", self.windows.len())));
        };
        if done.swap(true, Ordering::Relaxed) {
            return Err(Error::usage(format!("region {i} was read before")));
        }
        Ok(*window)
    }

    fn read_inner(
        &self,
        i: usize,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<Vec<TileIndex>> {
        let window = self.windows.get(i).ok_or_else(|| Error::usage(format!("no region {i}")))?;
        let bytes = window.width as usize * window.height as usize * 3;
        if out.len() != bytes {
            return Err(Error::usage(format!("{} bytes for a region of {bytes}", out.len())));
        }
        let window = self.take(i)?;
        if self.slide.overruns(&window) {
            out.fill(self.outside);
        }
        let mut target = Target { rgb: out, valid: None };
        if let Some(image) = self.slide.flat(window.level) {
            blit_flat(image, &window, &mut target);
            return Ok(Vec::new());
        }
        let mut missing = Vec::new();
        let mut failed = None;
        for index in self.slide.tiles(&window) {
            if failed.is_some() {
                self.release(index);
                continue;
            }
            match &*self.fetch(index, scratch) {
                Ok(tile) => {
                    self.slide.blit(tile, index, &window, &mut target);
                    if tile.missing {
                        missing.push(index);
                    }
                }
                Err((kind, message)) => failed = Some(Error::new(*kind, message.clone())),
            }
        }
        failed.map_or(Ok(missing), Err)
    }

    /// The decoded tile; counts as one of its uses.
    fn fetch(&self, index: TileIndex, scratch: &mut Scratch) -> Outcome {
        let Some(shared) = self.tiles.get(&index) else {
            return Arc::new(Err((Kind::Usage, format!("{index:?} is not part of this pass"))));
        };
        // A poisoned lock holds no half-made state: the outcome is stored whole or not at all.
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = match shared.outcome.take() {
            Some(outcome) => outcome,
            None => {
                self.decoded.fetch_add(1, Ordering::Relaxed);
                let mut tile = Tile::default();
                let decoded = self.slide.decode_tile(index, &mut scratch.buffers, &mut tile);
                Arc::new(decoded.map(|()| tile).map_err(|e| (e.kind(), e.to_string())))
            }
        };
        shared.uses = shared.uses.saturating_sub(1);
        if shared.uses > 0 {
            shared.outcome = Some(Arc::clone(&outcome));
        }
        outcome
    }

    fn release(&self, index: TileIndex) {
        if let Some(shared) = self.tiles.get(&index) {
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.uses = shared.uses.saturating_sub(1);
            if shared.uses == 0 {
                shared.outcome = None;
            }
        }
    }
}
