//! Device memory: allocations that never overlap or reuse addresses, with one flag per byte that
//! says whether it was ever written. Blocks on several threads share it, so every access is a
//! relaxed atomic; a kernel with a race between blocks gets some value, never undefined behaviour.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, RwLock};

/// Address bits of one allocation; the bits above select it.
const SLOT_BITS: u32 = 36;
/// Allocations a device may make in all; those of the next device are numbered on from there, so
/// that an address tells its device and another device does not know it.
const SLOTS: usize = 1 << 20;

/// Bytes that start at an 8-byte boundary and may be accessed from several threads.
struct Bytes {
    words: Box<[AtomicU64]>,
    len: usize,
}

impl Bytes {
    fn zeroed(len: usize) -> Bytes {
        // A zeroed `Vec<u64>` comes from the system without touching its pages.
        let mut words = std::mem::ManuallyDrop::new(vec![0u64; len.div_ceil(8).max(1)]);
        let (start, count) = (words.as_mut_ptr(), words.len());
        assert_eq!(count, words.capacity());
        // SAFETY: the allocation holds exactly `count` u64, is not owned by anything else, and
        // AtomicU64 has the size and alignment of u64.
        let words = unsafe {
            Box::from_raw(std::ptr::slice_from_raw_parts_mut(start.cast::<AtomicU64>(), count))
        };
        Bytes { words, len }
    }

    /// Little-endian value of `size` (1, 2, 4 or 8) bytes at `offset`, a multiple of `size`.
    #[inline]
    fn load(&self, offset: usize, size: usize) -> u64 {
        assert!(offset + size <= self.len && offset.is_multiple_of(size));
        let at = self.words.as_ptr().cast::<u8>().wrapping_add(offset).cast_mut();
        // SAFETY: in bounds and aligned by the assertion above (the base is 8-byte aligned); all
        // accesses to this memory are atomic.
        unsafe {
            match size {
                1 => u64::from(AtomicU8::from_ptr(at).load(Relaxed)),
                2 => u64::from(AtomicU16::from_ptr(at.cast()).load(Relaxed)),
                4 => u64::from(AtomicU32::from_ptr(at.cast()).load(Relaxed)),
                _ => AtomicU64::from_ptr(at.cast()).load(Relaxed),
            }
        }
    }

    /// Writes `size` (1, 2, 4 or 8) bytes at `offset`, a multiple of `size`.
    #[inline]
    fn store(&self, offset: usize, size: usize, value: u64) {
        assert!(offset + size <= self.len && offset.is_multiple_of(size));
        let at = self.words.as_ptr().cast::<u8>().wrapping_add(offset).cast_mut();
        // SAFETY: as in `load`.
        unsafe {
            match size {
                1 => AtomicU8::from_ptr(at).store(value as u8, Relaxed),
                2 => AtomicU16::from_ptr(at.cast()).store(value as u16, Relaxed),
                4 => AtomicU32::from_ptr(at.cast()).store(value as u32, Relaxed),
                _ => AtomicU64::from_ptr(at.cast()).store(value, Relaxed),
            }
        }
    }

    /// Splits a range into the largest aligned pieces.
    fn pieces(start: usize, len: usize) -> impl Iterator<Item = (usize, usize)> {
        let (mut at, end) = (start, start + len);
        std::iter::from_fn(move || {
            let size = [8, 4, 2, 1].into_iter().find(|s| at.is_multiple_of(*s) && at + s <= end)?;
            at += size;
            Some((at - size, size))
        })
    }

    fn fill(&self, start: usize, len: usize, byte: u8) {
        for (at, size) in Bytes::pieces(start, len) {
            self.store(at, size, u64::from_le_bytes([byte; 8]));
        }
    }
}

/// One allocation.
pub struct Allocation {
    data: Bytes,
    written: Bytes,
}

const ONES: u64 = 0x0101_0101_0101_0101;

impl Allocation {
    /// Bytes.
    pub fn size(&self) -> usize {
        self.data.len
    }

    /// Loads a value whose alignment has been checked.
    #[inline]
    pub fn load(&self, offset: usize, size: usize) -> u64 {
        self.data.load(offset, size)
    }

    /// Stores a value whose alignment has been checked.
    #[inline]
    pub fn store(&self, offset: usize, size: usize, value: u64) {
        self.data.store(offset, size, value);
        self.written.store(offset, size, ONES);
    }

    /// Whether all bytes of an aligned value have been written.
    #[inline]
    pub fn is_written(&self, offset: usize, size: usize) -> bool {
        self.written.load(offset, size) == ONES >> (64 - 8 * size)
    }

    /// Reads a range as the host sees it, written or not.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        for (at, size) in Bytes::pieces(offset, out.len()) {
            let value = self.data.load(at, size).to_le_bytes();
            out[at - offset..at - offset + size].copy_from_slice(&value[..size]);
        }
    }

    /// Writes a range from the host.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        for (at, size) in Bytes::pieces(offset, bytes.len()) {
            let mut value = [0; 8];
            value[..size].copy_from_slice(&bytes[at - offset..at - offset + size]);
            self.data.store(at, size, u64::from_le_bytes(value));
        }
        self.written.fill(offset, bytes.len(), 1);
    }

    /// Fills a range.
    pub fn fill(&self, offset: usize, len: usize, byte: u8) {
        self.data.fill(offset, len, byte);
        self.written.fill(offset, len, 1);
    }

    /// Copies a range together with its "never written" flags.
    pub fn copy_from(&self, to: usize, source: &Allocation, from: usize, len: usize) {
        let mut bytes = vec![0; len];
        source.read(from, &mut bytes);
        self.write(to, &bytes);
        for i in 0..len {
            self.written.store(to + i, 1, source.written.load(from + i, 1));
        }
    }
}

/// The allocations of a device at one moment.
#[derive(Clone, Default)]
pub struct View {
    first: usize,
    slots: Vec<Option<Arc<Allocation>>>,
}

impl View {
    /// The allocation that holds `[address, address + size)` and the offset in it.
    ///
    /// # Errors
    /// Says what the address is instead.
    #[inline]
    pub fn find(&self, address: u64, size: usize) -> Result<(&Arc<Allocation>, usize), String> {
        let slot = (address >> SLOT_BITS) as usize;
        let offset = (address & ((1 << SLOT_BITS) - 1)) as usize;
        match self.slots.get(slot.wrapping_sub(self.first)) {
            Some(Some(allocation)) if offset + size <= allocation.size() => {
                Ok((allocation, offset))
            }
            other => Err(self.describe(address, size, other)),
        }
    }

    fn describe(
        &self,
        address: u64,
        size: usize,
        slot: Option<&Option<Arc<Allocation>>>,
    ) -> String {
        let offset = address & ((1 << SLOT_BITS) - 1);
        match slot {
            Some(Some(a)) => format!(
                "{size} bytes at offset {offset} of an allocation of {} bytes (address {address:#x})",
                a.size()
            ),
            Some(None) if address >> SLOT_BITS != 0 => {
                // The page below a buffer is where an index of -1 lands.
                format!("{size} bytes at {address:#x}: memory that was freed")
            }
            _ => format!("{size} bytes at {address:#x}: not device memory"),
        }
    }
}

/// The memory of a device.
pub struct DeviceMemory {
    view: RwLock<View>,
    used: AtomicU64,
    capacity: u64,
}

impl DeviceMemory {
    /// Memory of `capacity` bytes of a device.
    pub fn new(capacity: u64, device: usize) -> DeviceMemory {
        let view = View { first: device * SLOTS, slots: vec![None] };
        DeviceMemory { view: RwLock::new(view), used: AtomicU64::new(0), capacity }
    }

    /// Allocates `size` bytes; the address is a multiple of 2^36. `None`: out of memory.
    pub fn allocate(&self, size: usize) -> Option<u64> {
        let mut view = self.view.write().unwrap_or_else(|e| e.into_inner());
        let full = size as u64 > self.capacity - self.used.load(Relaxed);
        if full || size >= 1 << SLOT_BITS || view.slots.len() == SLOTS {
            return None;
        }
        self.used.fetch_add(size as u64, Relaxed);
        let allocation = Allocation { data: Bytes::zeroed(size), written: Bytes::zeroed(size) };
        view.slots.push(Some(Arc::new(allocation)));
        Some(((view.first + view.slots.len()) as u64 - 1) << SLOT_BITS)
    }

    /// Frees an allocation by its first address; `false` if there is none.
    pub fn free(&self, address: u64) -> bool {
        let mut view = self.view.write().unwrap_or_else(|e| e.into_inner());
        let slot = ((address >> SLOT_BITS) as usize).wrapping_sub(view.first);
        let at_start = address & ((1 << SLOT_BITS) - 1) == 0;
        match view.slots.get_mut(slot).filter(|_| at_start).and_then(Option::take) {
            Some(allocation) => {
                self.used.fetch_sub(allocation.size() as u64, Relaxed);
                true
            }
            None => false,
        }
    }

    /// The allocations now.
    pub fn view(&self) -> View {
        self.view.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// The allocation that holds a range.
    ///
    /// # Errors
    /// Says what the address is instead.
    pub fn find(&self, address: u64, size: usize) -> Result<(Arc<Allocation>, usize), String> {
        let view = self.view.read().unwrap_or_else(|e| e.into_inner());
        view.find(address, size).map(|(a, offset)| (Arc::clone(a), offset))
    }

    /// Free and total bytes.
    pub fn info(&self) -> (u64, u64) {
        (self.capacity - self.used.load(Relaxed), self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_flags_and_bounds() {
        let memory = DeviceMemory::new(1 << 20, 0);
        let address = memory.allocate(21).unwrap();
        let (a, _) = memory.find(address, 21).unwrap();
        a.write(3, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(a.load(4, 4), u64::from(u32::from_le_bytes([2, 3, 4, 5])));
        assert!(a.is_written(4, 4) && !a.is_written(0, 4) && !a.is_written(2, 2));
        let mut back = [0; 5];
        a.read(2, &mut back);
        assert_eq!(back, [0, 1, 2, 3, 4]);
        assert!(memory.find(address + 20, 2).is_err());
        assert!(memory.find(address - 1, 1).is_err());
        assert!(memory.allocate(1 << 20).is_none());
        assert!(memory.free(address) && !memory.free(address));
        assert!(memory.find(address, 1).err().unwrap().contains("freed"));
        assert_eq!(memory.info(), (1 << 20, 1 << 20));
    }

    #[test]
    fn devices_do_not_know_each_others_addresses() {
        let [a, b] = [0, 1].map(|device| DeviceMemory::new(1 << 20, device));
        let (of_a, of_b) = (a.allocate(16).unwrap(), b.allocate(16).unwrap());
        assert!(a.find(of_a, 16).is_ok() && b.find(of_b, 16).is_ok());
        assert!(a.find(of_b, 16).is_err() && b.find(of_a, 16).is_err());
        assert!(!a.free(of_b) && a.free(of_a) && b.free(of_b));
    }

    #[test]
    fn copies_keep_the_flags() {
        let memory = DeviceMemory::new(1 << 20, 0);
        let (a, b) = (memory.allocate(16).unwrap(), memory.allocate(16).unwrap());
        let (a, b) = (memory.find(a, 16).unwrap().0, memory.find(b, 16).unwrap().0);
        a.write(0, &[7; 4]);
        b.fill(0, 16, 1);
        b.copy_from(4, &a, 0, 8);
        assert!(b.is_written(4, 4) && !b.is_written(8, 4) && b.is_written(12, 4));
        assert_eq!(b.load(4, 4), 0x0707_0707);
    }
}
