//! The arena, and views of the tensors in it that threads can share.
//!
//! All raw pointers of the session are here. A [`View`] only reads; the only way to write a
//! tensor is [`Sink::fill`], which cuts it into rectangles and gives each to one task.

use super::kernels::Kernels;
use super::layer::Scratch;
use super::team::Team;
use crate::error::{Error, Result};
use bytemuck::Zeroable;
use half::f16;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Mutex;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Numbers that start at a cache line.
pub(super) struct Aligned<T> {
    lines: Vec<Line>,
    kind: PhantomData<T>,
}

impl<T: bytemuck::Pod> Aligned<T> {
    /// Nothing yet.
    pub const fn empty() -> Aligned<T> {
        Aligned { lines: Vec::new(), kind: PhantomData }
    }

    /// `elements` zeros.
    pub fn zeros(elements: usize) -> Aligned<T> {
        let lines = (elements * size_of::<T>()).div_ceil(64);
        Aligned { lines: vec![Line::zeroed(); lines], kind: PhantomData }
    }

    /// Makes room for at least `elements`; what was there is lost.
    ///
    /// # Errors
    /// [`crate::Kind::Limit`] when the memory cannot be had, or when `elements` is `None`.
    pub fn grow(&mut self, elements: Option<usize>) -> Result<()> {
        let refused = || Error::limit("the activations do not fit into memory");
        let bytes = elements.and_then(|n| n.checked_mul(size_of::<T>())).ok_or_else(refused)?;
        let lines = bytes.div_ceil(64);
        if lines > self.lines.len() {
            self.lines = Vec::new();
            self.lines.try_reserve_exact(lines).map_err(|e| refused().caused_by(e))?;
            self.lines.resize(lines, Line::zeroed());
        }
        Ok(())
    }
}

impl<T: bytemuck::Pod> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }
}

impl<T: bytemuck::Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

/// A tensor that is only read: `[positions, channels]` at a pitch.
#[derive(Clone, Copy)]
pub(super) struct View {
    base: *const f16,
    positions: usize,
    channels: usize,
    pitch: usize,
}

// SAFETY: a view only reads, and `View::new` demands that nobody writes meanwhile.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// No positions at all.
    pub const EMPTY: View =
        View { base: std::ptr::dangling(), positions: 0, channels: 1, pitch: 1 };

    /// A view of `[positions, channels]` elements from `base` on.
    ///
    /// # Safety
    /// While the view is in use its elements must be valid and must not be written.
    pub unsafe fn new(base: *const f16, positions: usize, channels: usize, pitch: usize) -> View {
        assert!(channels <= pitch);
        View { base, positions, channels, pitch }
    }

    pub fn positions(&self) -> usize {
        self.positions
    }

    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Whether a position follows the one before without a gap.
    pub fn is_dense(&self) -> bool {
        self.pitch == self.channels
    }

    /// Some channels of a position. In a dense view they may run on into the next positions.
    pub fn at(&self, position: usize, channels: Range<usize>) -> &[f16] {
        let inside = if self.is_dense() {
            position * self.pitch + channels.end <= self.positions * self.pitch
        } else {
            position < self.positions && channels.end <= self.channels
        };
        assert!(inside && channels.start <= channels.end);
        // SAFETY: inside the view, by the line above; the rest is the promise of `View::new`.
        unsafe {
            let start = self.base.add(position * self.pitch + channels.start);
            std::slice::from_raw_parts(start, channels.len())
        }
    }
}

/// A tensor that is written: to the arena in f16, to the caller in f32, or both.
#[derive(Clone, Copy)]
pub(super) struct Sink {
    positions: usize,
    channels: usize,
    /// First element and pitch.
    stored: Option<(*mut f16, usize)>,
    /// First element and pitch.
    returned: Option<(*mut f32, usize)>,
}

// SAFETY: a sink is written only through parts, which are disjoint.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

impl Sink {
    /// A sink of `[positions, channels]`; each destination is its first element and its pitch.
    ///
    /// # Safety
    /// While the sink is in use the elements of both destinations must be valid, and nothing but
    /// the sink may read or write them.
    pub unsafe fn new(
        positions: usize,
        channels: usize,
        stored: Option<(*mut f16, usize)>,
        returned: Option<(*mut f32, usize)>,
    ) -> Sink {
        assert!(stored.is_none_or(|(_, pitch)| channels <= pitch));
        assert!(returned.is_none_or(|(_, pitch)| channels <= pitch));
        Sink { positions, channels, stored, returned }
    }

    pub fn positions(&self) -> usize {
        self.positions
    }

    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Cuts the tensor into rectangles of at most `block` positions and channels and has the team
    /// fill them, each by one call that also gets its worker's scratch.
    pub fn fill(
        &self,
        on: &Machine<'_>,
        block: [usize; 2],
        work: impl Fn(&mut Part<'_>, &mut Scratch) + Sync,
    ) {
        self.fill_rows(on, self.positions, block, work);
    }

    /// As [`Sink::fill`], with rectangles that do not reach from one row of `row` positions into
    /// the next.
    pub fn fill_rows(
        &self,
        on: &Machine<'_>,
        row: usize,
        block: [usize; 2],
        work: impl Fn(&mut Part<'_>, &mut Scratch) + Sync,
    ) {
        assert!(row > 0 && self.positions.is_multiple_of(row));
        let (across, down) = (self.channels.div_ceil(block[1]), row.div_ceil(block[0]));
        on.team.each(self.positions / row * down * across, |worker, task| {
            let (task, c) = (task / across, task % across * block[1]);
            let (start, p) = (task / down * row, task % down * block[0]);
            let mut part = Part {
                sink: self,
                kernels: on.kernels,
                positions: start + p..start + (p + block[0]).min(row),
                channels: c..(c + block[1]).min(self.channels),
            };
            let scratch = on.scratch[worker].lock();
            work(&mut part, &mut scratch.unwrap_or_else(|poisoned| poisoned.into_inner()));
        });
    }
}

/// A rectangle of a sink that belongs to one task.
pub(super) struct Part<'a> {
    sink: &'a Sink,
    kernels: &'static Kernels,
    /// Its positions.
    pub positions: Range<usize>,
    /// Its channels.
    pub channels: Range<usize>,
}

impl Part<'_> {
    /// Writes consecutive channels of a position, from `channel` on.
    pub fn put(&mut self, position: usize, channel: usize, values: &[f32]) {
        self.check(position, channel, values.len());
        if let Some((base, pitch)) = self.sink.stored {
            // SAFETY: inside this part's rectangle, which no other part shares, hence inside the
            // sink; the rest is the promise of `Sink::new`.
            let to = unsafe {
                std::slice::from_raw_parts_mut(base.add(position * pitch + channel), values.len())
            };
            self.kernels.narrow(values, to);
        }
        if let Some((base, pitch)) = self.sink.returned {
            // SAFETY: as above.
            let to = unsafe {
                std::slice::from_raw_parts_mut(base.add(position * pitch + channel), values.len())
            };
            to.copy_from_slice(values);
        }
    }

    /// Writes all channels of consecutive positions, in one run of memory where they are one.
    pub fn put_positions(&mut self, first: usize, values: &[f32]) {
        let Sink { channels, stored, returned, .. } = *self.sink;
        let dense = |pitch: usize| pitch == channels;
        let together = stored.is_none_or(|s| dense(s.1)) && returned.is_none_or(|r| dense(r.1));
        let count = values.len() / channels;
        assert!(values.len() == count * channels && self.channels == (0..channels));
        assert!(self.positions.start <= first && first + count <= self.positions.end);
        if !together || count == 0 {
            let rows = values.chunks_exact(channels).zip(first..);
            return rows.for_each(|(values, position)| self.put(position, 0, values));
        }
        if let Some((base, pitch)) = stored {
            // SAFETY: all channels of positions of this part, which no other part shares and which
            // follow each other without a gap; the rest is the promise of `Sink::new`.
            let to =
                unsafe { std::slice::from_raw_parts_mut(base.add(first * pitch), values.len()) };
            self.kernels.narrow(values, to);
        }
        if let Some((base, pitch)) = returned {
            // SAFETY: as above.
            let to =
                unsafe { std::slice::from_raw_parts_mut(base.add(first * pitch), values.len()) };
            to.copy_from_slice(values);
        }
    }

    /// Writes values that are f16 already.
    pub fn put_f16(&mut self, position: usize, channel: usize, values: &[f16]) {
        self.check(position, channel, values.len());
        if let Some((base, pitch)) = self.sink.stored {
            // SAFETY: as in `put`.
            let to = unsafe {
                std::slice::from_raw_parts_mut(base.add(position * pitch + channel), values.len())
            };
            to.copy_from_slice(values);
        }
        if let Some((base, pitch)) = self.sink.returned {
            // SAFETY: as in `put`.
            let to = unsafe {
                std::slice::from_raw_parts_mut(base.add(position * pitch + channel), values.len())
            };
            self.kernels.widen(values, to);
        }
    }

    fn check(&self, position: usize, channel: usize, n: usize) {
        let inside = self.channels.start <= channel && channel + n <= self.channels.end;
        assert!(self.positions.contains(&position) && inside);
    }
}

/// What a step runs on.
#[derive(Clone, Copy)]
pub(super) struct Machine<'a> {
    pub kernels: &'static Kernels,
    pub team: &'a Team,
    /// One for each worker.
    pub scratch: &'a [Mutex<Scratch>],
}
