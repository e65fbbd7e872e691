//! The arena, and views of the tensors in it that threads can share.
//!
//! All raw pointers of the session are here. A [`View`] only reads; the only way to write a
//! tensor is [`Sink::fill_tasks`], which gives each of its rectangles to one task.

use super::aligned::Line;
use super::cut::Cut;
use super::epilogue::{Finish, Finished};
use super::kernels::{C_PITCH, Kernels};
use super::layer::Scratch;
use super::stored::{Stored, StoredMut, stored_as};
use super::team::Team;
use crate::backend::Precision;
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Mutex;

/// The same channels of consecutive positions, to write.
pub(super) struct RowsMut<'a> {
    sink: &'a Sink,
    positions: Range<usize>,
    channels: Range<usize>,
}

impl RowsMut<'_> {
    /// Those of a position, which is counted from the first; `None` where nothing is stored.
    #[inline]
    pub fn row(&mut self, row: usize) -> Option<StoredMut<'_>> {
        let position = self.positions.start + row;
        assert!(position < self.positions.end);
        // SAFETY: inside a rectangle that `Part::finish` found to be its own.
        unsafe { self.sink.room(position, self.channels.start, self.channels.len()) }
    }

    /// All of them as numbers of a kind; `None` where nothing is stored, or numbers of another kind.
    #[inline]
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "see `epilogue`"))]
    pub fn of<T: bytemuck::Pod>(&mut self) -> Option<GridMut<'_, T>> {
        let (base, pitch) = self.sink.stored?;
        let start = self.positions.start * pitch + self.channels.start;
        (stored_as::<T>() == Some(self.sink.precision)).then(|| GridMut {
            base: base.cast::<T>().wrapping_add(start),
            pitch,
            rows: self.positions.len(),
            columns: self.channels.len(),
            kind: PhantomData,
        })
    }
}

/// Asks for a cache line that will be read or written soon, which any address allows.
#[inline(always)]
fn fetch<const WRITE: bool, T>(from: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, without effect on memory.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        match WRITE {
            true => _mm_prefetch::<_MM_HINT_ET0>(from.cast()),
            false => _mm_prefetch::<_MM_HINT_T0>(from.cast()),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

/// Rows of numbers of one kind, to write.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "see `epilogue`"))]
pub(super) struct GridMut<'a, T> {
    base: *mut T,
    pitch: usize,
    rows: usize,
    columns: usize,
    kind: PhantomData<&'a mut T>,
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "see `epilogue`"))]
impl<T> GridMut<'_, T> {
    /// The numbers of a row.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows);
        // SAFETY: inside a rectangle that `Part::finish` found to be its own; the rest is the promise
        // of `Sink::new`.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(row * self.pitch), self.columns) }
    }

    /// Has the cache fetch what lies at a column of a row, or beyond its last column.
    #[inline(always)]
    pub fn expect(&self, row: usize, column: usize) {
        fetch::<true, T>(self.base.wrapping_add(row * self.pitch + column));
    }
}

/// The same channels of consecutive positions, to read.
pub(super) struct Rows<'a> {
    pub view: &'a View,
    pub first: usize,
    pub channels: Range<usize>,
}

impl<'a> Rows<'a> {
    /// Those of a position, which is counted from the first.
    #[inline]
    pub fn row(&self, row: usize) -> Stored<'_> {
        self.view.at(self.first + row, self.channels.clone())
    }

    /// The first `rows` of them as numbers of a kind; `None` where they are of another kind.
    pub fn of<T: bytemuck::Pod>(&self, rows: usize) -> Option<Grid<'a, T>> {
        let (view, columns) = (self.view, self.channels.len());
        assert!(self.first + rows <= view.positions && self.channels.end <= view.channels);
        let start = self.first * view.pitch + self.channels.start;
        (stored_as::<T>() == Some(view.precision)).then(|| Grid {
            base: view.base.cast::<T>().wrapping_add(start),
            pitch: view.pitch,
            rows,
            columns,
            kind: PhantomData,
        })
    }
}

/// Rows of numbers of one kind, to read.
#[derive(Clone, Copy)]
pub(super) struct Grid<'a, T> {
    base: *const T,
    pitch: usize,
    rows: usize,
    columns: usize,
    kind: PhantomData<&'a T>,
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "see `epilogue`"))]
impl<T> Grid<'_, T> {
    /// The numbers of a row.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[T] {
        assert!(row < self.rows);
        // SAFETY: inside the view, as `Rows::of` found; the rest is the promise of `View::new`.
        unsafe { std::slice::from_raw_parts(self.base.add(row * self.pitch), self.columns) }
    }

    /// Where a row begins that is followed by `more` rows.
    #[inline]
    pub fn start(&self, row: usize, more: usize) -> *const T {
        assert!(row + more < self.rows);
        self.base.wrapping_add(row * self.pitch)
    }

    /// As [`GridMut::expect`].
    #[inline(always)]
    pub fn expect(&self, row: usize, column: usize) {
        fetch::<false, T>(self.base.wrapping_add(row * self.pitch + column));
    }
}

impl<'a, T> Grid<'a, T> {
    /// Rows of a pitch, as many as there are.
    pub fn of(numbers: &'a [T], pitch: usize) -> Grid<'a, T> {
        let (base, rows) = (numbers.as_ptr(), numbers.len() / pitch);
        Grid { base, pitch, rows, columns: pitch, kind: PhantomData }
    }

    /// All rows from one on, and all columns from one on.
    pub fn from(&self, row: usize, column: usize) -> Grid<'a, T> {
        assert!(row <= self.rows && column <= self.columns);
        Grid {
            base: self.base.wrapping_add(row * self.pitch + column),
            rows: self.rows - row,
            columns: self.columns - column,
            ..*self
        }
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Numbers from one row to the next.
    pub fn pitch(&self) -> usize {
        self.pitch
    }
}

impl<'a> Grid<'a, bf16> {
    /// The same numbers as pairs; `None` where a row has one left.
    pub fn pairs(&self) -> Option<Grid<'a, [bf16; 2]>> {
        (self.pitch.is_multiple_of(2) && self.columns.is_multiple_of(2)).then(|| Grid {
            base: self.base.cast(),
            pitch: self.pitch / 2,
            rows: self.rows,
            columns: self.columns / 2,
            kind: PhantomData,
        })
    }
}

/// A tensor that is only read: `[positions, channels]` at a pitch, in elements.
#[derive(Clone, Copy)]
pub(super) struct View {
    base: *const u8,
    precision: Precision,
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
    pub const EMPTY: View = View {
        base: std::ptr::dangling(),
        precision: Precision::F16,
        positions: 0,
        channels: 1,
        pitch: 1,
    };

    /// A view of `[positions, channels]` elements from `base` on.
    ///
    /// # Safety
    /// While the view is in use its elements must be valid, aligned numbers of that precision and
    /// must not be written.
    pub unsafe fn new(
        (base, pitch): (*const u8, usize),
        precision: Precision,
        [positions, channels]: [usize; 2],
    ) -> View {
        assert!(channels <= pitch);
        View { base, precision, positions, channels, pitch }
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

    /// Has the cache fetch some channels of a position.
    pub fn expect(&self, position: usize, channels: Range<usize>) {
        let element = self.precision.bytes();
        let from = self.base.wrapping_add((position * self.pitch + channels.start) * element);
        let lines = (0..channels.len() * element).step_by(size_of::<Line>());
        lines.for_each(|line| fetch::<false, u8>(from.wrapping_add(line)));
    }

    /// Some channels of a position. In a dense view they may run on into the next positions.
    #[inline]
    pub fn at(&self, position: usize, channels: Range<usize>) -> Stored<'_> {
        let inside = if self.is_dense() {
            position * self.pitch + channels.end <= self.positions * self.pitch
        } else {
            position < self.positions && channels.end <= self.channels
        };
        assert!(inside && channels.start <= channels.end);
        let (start, n) = (position * self.pitch + channels.start, channels.len());
        // SAFETY: inside the view, by the line above; the rest is the promise of `View::new`.
        unsafe {
            let base = self.base.add(start * self.precision.bytes());
            match self.precision {
                Precision::F16 => Stored::F16(std::slice::from_raw_parts(base.cast(), n)),
                Precision::Bf16 => Stored::Bf16(std::slice::from_raw_parts(base.cast(), n)),
                Precision::F32 => Stored::F32(std::slice::from_raw_parts(base.cast(), n)),
            }
        }
    }
}

/// A tensor that is written: to the arena as activations are stored, to the caller in f32, or both.
#[derive(Clone, Copy)]
pub(super) struct Sink {
    precision: Precision,
    positions: usize,
    channels: usize,
    /// First element and pitch.
    stored: Option<(*mut u8, usize)>,
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
    /// the sink may read or write them; those that are stored are aligned numbers of that precision.
    pub unsafe fn new(
        [positions, channels]: [usize; 2],
        precision: Precision,
        stored: Option<(*mut u8, usize)>,
        returned: Option<(*mut f32, usize)>,
    ) -> Sink {
        assert!(stored.is_none_or(|(_, pitch)| channels <= pitch));
        assert!(returned.is_none_or(|(_, pitch)| channels <= pitch));
        Sink { precision, positions, channels, stored, returned }
    }

    pub fn positions(&self) -> usize {
        self.positions
    }

    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Where `n` numbers are stored from a channel of a position on, if they are.
    ///
    /// # Safety
    /// They lie inside the sink, and nobody else holds them.
    #[inline]
    unsafe fn room(&self, position: usize, channel: usize, n: usize) -> Option<StoredMut<'_>> {
        use std::slice::from_raw_parts_mut;
        let (base, pitch) = self.stored?;
        // SAFETY: the caller's; the rest is the promise of `Sink::new`.
        Some(unsafe {
            let base = base.add((position * pitch + channel) * self.precision.bytes());
            match self.precision {
                Precision::F16 => StoredMut::F16(from_raw_parts_mut(base.cast(), n)),
                Precision::Bf16 => StoredMut::Bf16(from_raw_parts_mut(base.cast(), n)),
                Precision::F32 => StoredMut::F32(from_raw_parts_mut(base.cast(), n)),
            }
        })
    }

    /// Cuts the tensor into rectangles of `block` positions and channels and has the team fill them: see
    /// [`Sink::fill_tasks`].
    pub fn fill(
        &self,
        on: &Machine<'_>,
        block: [usize; 2],
        work: impl Fn(&mut Part<'_>, &mut Scratch) + Sync,
    ) {
        self.fill_tasks(on, &Cut::blocks([self.positions, self.channels], block), work);
    }

    /// Has the team fill rectangles, each by one call that also gets its worker's scratch. If the cut is that
    /// of fewer positions, all those that follow are cut alike.
    pub fn fill_tasks(
        &self,
        on: &Machine<'_>,
        cut: &Cut,
        work: impl Fn(&mut Part<'_>, &mut Scratch) + Sync,
    ) {
        let [row, channels] = cut.size();
        assert!(row > 0 && self.positions.is_multiple_of(row) && channels == self.channels);
        on.team.each(self.positions / row * cut.tasks(), |worker, task| {
            let start = task / cut.tasks() * row;
            let [positions, channels] = cut.task(task % cut.tasks());
            let positions = start + positions.start..start + positions.end;
            let mut part = Part { sink: self, kernels: on.kernels, positions, channels };
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
        // SAFETY: inside this part's rectangle, which no other part shares.
        if let Some(to) = unsafe { self.sink.room(position, channel, values.len()) } {
            self.kernels.narrow(values, to);
        }
        if let Some((base, pitch)) = self.sink.returned {
            // SAFETY: as above; the rest is the promise of `Sink::new`.
            let to = unsafe {
                std::slice::from_raw_parts_mut(base.add(position * pitch + channel), values.len())
            };
            to.copy_from_slice(values);
        }
    }

    /// Finishes the sums of consecutive positions, in rows of [`C_PITCH`], and writes them.
    pub fn finish(
        &mut self,
        positions: Range<usize>,
        channels: Range<usize>,
        sums: &mut [f32],
        with: Finish<'_>,
        residual: Option<&View>,
    ) {
        let (first, channel, columns) = (positions.start, channels.start, channels.len());
        self.check(first, channel, columns);
        assert!(first < positions.end && positions.end <= self.positions.end);
        let sums = &mut sums[..(positions.len() - 1) * C_PITCH + columns];
        let rows = |view| Rows { view, first, channels: channels.clone() };
        let residual = residual.map(rows);
        let to =
            RowsMut { sink: self.sink, positions: positions.clone(), channels: channels.clone() };
        let returned = self.sink.returned.is_some();
        self.kernels.emit(Finished { sums: &mut *sums, columns, with, residual, to, returned });
        if let Some((base, pitch)) = self.sink.returned {
            for (position, sums) in positions.zip(sums.chunks(C_PITCH)) {
                // SAFETY: inside this part's rectangle, by the lines above; the rest is the promise
                // of `Sink::new`.
                let to = unsafe {
                    std::slice::from_raw_parts_mut(base.add(position * pitch + channel), columns)
                };
                to.copy_from_slice(&sums[..columns]);
            }
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
        // SAFETY: all channels of positions of this part, which no other part shares and which
        // follow each other without a gap.
        if let Some(to) = unsafe { self.sink.room(first, 0, values.len()) } {
            self.kernels.narrow(values, to);
        }
        if let Some((base, pitch)) = returned {
            // SAFETY: as above.
            let to =
                unsafe { std::slice::from_raw_parts_mut(base.add(first * pitch), values.len()) };
            to.copy_from_slice(values);
        }
    }

    /// Writes values that are stored already.
    pub fn put_stored(&mut self, position: usize, channel: usize, values: Stored<'_>) {
        self.check(position, channel, values.len());
        // SAFETY: as in `put`.
        if let Some(to) = unsafe { self.sink.room(position, channel, values.len()) } {
            to.copy_from(values);
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
