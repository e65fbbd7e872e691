//! Numbers that start at a cache line, on large pages where there are many.
//!
//! Weights and activations are read from end to end. With pages of 4 KiB a processor looks up an address
//! for every 64 lines of them, in a virtual machine in two tables after each other.

use crate::error::{Error, Result};
#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::MmapMut;
use std::alloc::{Layout, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, Weak};

/// A cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([u8; 64]);

/// A large page, in bytes, of x86-64, and of aarch64 with small ones of 4 KiB.
const LARGE: usize = 2 << 20;

/// Bytes of addresses for numbers of at most a quarter of it each; what is not written takes no memory.
const REGION: usize = 64 << 20;

/// Numbers that start at a cache line.
pub(super) struct Aligned<T> {
    lines: Lines,
    kind: PhantomData<T>,
}

impl<T: bytemuck::Pod> Aligned<T> {
    /// Nothing yet.
    pub const fn empty() -> Aligned<T> {
        Aligned { lines: Lines::NONE, kind: PhantomData }
    }

    /// `elements` zeros, to be kept about as long as those made before and after: they stand on the same
    /// pages, which are given back together.
    pub fn zeros(elements: usize) -> Aligned<T> {
        let wanted = Layout::array::<T>(elements).expect("no more than a slice may have");
        let lines = Lines::beside_others(wanted.size().div_ceil(size_of::<Line>()));
        let lines = lines.unwrap_or_else(|| handle_alloc_error(wanted));
        Aligned { lines, kind: PhantomData }
    }

    /// Makes room for at least `elements`; what was there is lost.
    ///
    /// # Errors
    /// [`crate::Kind::Limit`] when the memory cannot be had, or when `elements` is `None`.
    pub fn grow(&mut self, elements: Option<usize>) -> Result<()> {
        let refused = || Error::limit("the activations do not fit into memory");
        let bytes = elements.and_then(|n| n.checked_mul(size_of::<T>())).ok_or_else(refused)?;
        let lines = bytes.div_ceil(size_of::<Line>());
        if lines > self.lines.count {
            self.lines = Lines::NONE;
            self.lines = Lines::alone(lines).ok_or_else(refused)?;
        }
        Ok(())
    }
}

impl<T: bytemuck::Pod> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let Lines { first, count, .. } = self.lines;
        // SAFETY: as many lines as were had, of zeros at first; see `Lines`.
        bytemuck::cast_slice(unsafe { std::slice::from_raw_parts(first.as_ptr(), count) })
    }
}

impl<T: bytemuck::Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let Lines { first, count, .. } = self.lines;
        // SAFETY: as above, and borrowed alone.
        bytemuck::cast_slice_mut(unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), count) })
    }
}

/// Cache lines of a region that nobody else has.
struct Lines {
    first: NonNull<Line>,
    count: usize,
    _region: Option<Arc<Region>>,
}

// SAFETY: plain memory that belongs to its owner.
unsafe impl Send for Lines {}
// SAFETY: as above.
unsafe impl Sync for Lines {}

impl Lines {
    const NONE: Lines = Lines { first: NonNull::dangling(), count: 0, _region: None };

    /// Lines of zeros in a region of their own; `None` where the memory cannot be had.
    fn alone(count: usize) -> Option<Lines> {
        if count == 0 {
            return Some(Lines::NONE);
        }
        let region = Arc::new(Region::new(count.checked_mul(size_of::<Line>())?)?);
        // SAFETY: all of a region that nobody else knows.
        Some(unsafe { Lines::of(region, 0, count) })
    }

    /// As [`Lines::alone`], in one region with those had before, unless they are very many.
    fn beside_others(count: usize) -> Option<Lines> {
        /// The region that was had last, and its lines that are taken.
        static LAST: Mutex<(Weak<Region>, usize)> = Mutex::new((Weak::new(), 0));
        const ALL: usize = REGION / size_of::<Line>();

        if count == 0 || count > ALL / 4 {
            return Lines::alone(count);
        }
        let mut last = LAST.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (region, first) = match last.0.upgrade().filter(|_| last.1 + count <= ALL) {
            Some(region) => (region, last.1),
            None => {
                let region = Arc::new(Region::new(REGION)?);
                last.0 = Arc::downgrade(&region);
                (region, 0)
            }
        };
        last.1 = first + count;
        // SAFETY: behind all lines that were taken, and not too many for the region.
        Some(unsafe { Lines::of(region, first, count) })
    }

    /// Lines of a region.
    ///
    /// # Safety
    /// The region has them, and nobody else ever gets them.
    unsafe fn of(region: Arc<Region>, first: usize, count: usize) -> Lines {
        // SAFETY: the caller's.
        let first = unsafe { region.start.add(first) };
        Lines { first, count, _region: Some(region) }
    }
}

/// Zeros on large pages, if the system has them and there are many.
struct Region {
    /// The first line, at a large page where there are many; for [`Lines`] to read and write.
    start: NonNull<Line>,
    _map: MmapMut,
}

// SAFETY: an address; the memory behind it belongs to `Lines`.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// At least `bytes`; memory that is not written is not taken.
    fn new(bytes: usize) -> Option<Region> {
        let spare = if bytes < LARGE { 0 } else { LARGE };
        let mut map = MmapMut::map_anon(bytes.checked_add(spare)?).ok()?;
        let skip = if spare == 0 { 0 } else { map.as_ptr().align_offset(LARGE) };
        #[cfg(target_os = "linux")]
        if spare > 0 {
            // A system that has none refuses, and small ones serve.
            let _ = map.advise_range(Advice::HugePage, skip, bytes / LARGE * LARGE);
        }
        let start = NonNull::new(map.as_mut_ptr().wrapping_add(skip).cast())?;
        Some(Region { start, _map: map })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_count_are_zeros_at_cache_lines_and_share_none() {
        let counts = [0, 1, 16, 17, LARGE / 4 - 1, LARGE / 4, LARGE + 5, REGION / 4, REGION];
        let mut all: Vec<_> = counts.iter().map(|&count| Aligned::<f32>::zeros(count)).collect();
        for (i, (numbers, &count)) in all.iter_mut().zip(&counts).enumerate() {
            assert!(numbers.len() >= count && numbers.iter().all(|&x| x == 0.0));
            assert!((numbers.as_ptr() as usize).is_multiple_of(64));
            numbers.fill(i as f32);
        }
        for (i, numbers) in all.iter().enumerate() {
            assert!(numbers.iter().all(|&x| x == i as f32));
        }
    }

    #[test]
    fn what_cannot_be_had_is_refused_and_the_rest_is_had_later() {
        let mut numbers = Aligned::<f32>::zeros(100);
        for elements in [None, Some(usize::MAX), Some(usize::MAX / 8), Some(1 << 60)] {
            assert_eq!(numbers.grow(elements).unwrap_err().kind(), crate::Kind::Limit);
        }
        numbers.grow(Some(LARGE)).unwrap();
        assert!(numbers.len() >= LARGE && numbers.iter().all(|&x| x == 0.0));
    }
}
