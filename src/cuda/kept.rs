//! Results that stay on the device between the session that made them and those that read them: the
//! features of a slide, from its encoder to its heads.

use super::device::{Buffer, Gpu, failed};
use crate::error::{Error, Result};
use crate::graph::Kept;
use cudarc::driver::result;
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// The part of the free memory, one in so many, that results may take: what reads them needs more for
/// as many rows.
const SHARE: usize = 4;

/// Rows of dense f32 on one GPU.
pub(super) struct KeptRows {
    buffer: Buffer,
    rows: usize,
    width: usize,
}

impl KeptRows {
    /// Room for `rows` rows of `width` numbers.
    ///
    /// # Errors
    /// [`crate::Kind::Limit`] when they would take more than their share of the free memory.
    pub fn new(gpu: &Arc<Gpu>, rows: usize, width: usize) -> Result<KeptRows> {
        gpu.bind()?;
        let what = format!("features of {rows} tiles");
        let bytes = rows.checked_mul(width).and_then(|n| n.checked_mul(4)).unwrap_or(usize::MAX);
        if bytes > gpu.free_bytes() / SHARE {
            let what = format!("{what}, which may take 1/{SHARE} of what is free,");
            return Err(gpu.no_room(bytes, &what));
        }
        Ok(KeptRows { buffer: Buffer::new(gpu, bytes, &what)?, rows, width })
    }

    /// These rows as what they are, on that GPU.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when something else holds them.
    pub fn of<'k>(kept: &'k dyn Kept, gpu: &Arc<Gpu>) -> Result<&'k KeptRows> {
        let kept = (kept as &dyn Any).downcast_ref::<KeptRows>();
        let here = kept.filter(|kept| Arc::ptr_eq(kept.buffer.gpu(), gpu));
        here.ok_or_else(|| Error::usage("the rows are kept on another device"))
    }

    fn address(&self, row: usize) -> u64 {
        self.buffer.address + 4 * (row * self.width) as u64
    }

    /// Address and bytes of rows one after another: one piece for those that follow each other there
    /// as well.
    pub fn pieces(&self, rows: &[usize]) -> impl Iterator<Item = (u64, usize)> {
        let following = rows.chunk_by(|&row, &next| row + 1 == next);
        following.map(|rows| (self.address(rows[0]), 4 * rows.len() * self.width))
    }
}

/// Some rows that follow each other, for a batch to fill.
pub(super) struct Place {
    pub address: u64,
    pub bytes: usize,
    /// Has the memory.
    _kept: Arc<dyn Kept>,
}

impl Place {
    /// `rows` rows of `width` numbers from row `first` on.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when they are not there.
    pub fn new(
        gpu: &Arc<Gpu>,
        (kept, first): (Arc<dyn Kept>, usize),
        rows: usize,
        width: usize,
    ) -> Result<Place> {
        let own = KeptRows::of(&*kept, gpu)?;
        let room = own.rows.checked_sub(first).is_some_and(|room| room >= rows);
        if !room || own.width != width {
            return Err(Error::usage(format!("{rows} x {width} from row {first} on in {own:?}")));
        }
        let (address, bytes) = (own.address(first), 4 * rows * width);
        Ok(Place { address, bytes, _kept: kept })
    }
}

impl fmt::Debug for KeptRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptRows {{ {} x {} }}", self.rows, self.width)
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
        if rows.iter().any(|&row| row >= self.rows) || numbers.len() != rows.len() * self.width {
            let (n, room) = (rows.len(), numbers.len());
            return Err(Error::usage(format!("{n} rows of {self:?} into {room} numbers")));
        }
        let gpu = self.buffer.gpu();
        let fail = |e| failed("kept rows", e);
        gpu.bind()?;
        // A stream of its own: the others are busy with the next batches.
        let stream = gpu.context.new_stream().map_err(fail)?;
        let mut left: &mut [u8] = bytemuck::cast_slice_mut(numbers);
        let mut copied = Ok(());
        for (address, bytes) in self.pieces(rows) {
            let (to, rest) = left.split_at_mut(bytes);
            left = rest;
            // SAFETY: the rows lie in the buffer, and the host's memory stays until the stream has
            // been waited for.
            copied = unsafe { result::memcpy_dtoh_async(to, address, stream.cu_stream()) };
            if copied.is_err() {
                break;
            }
        }
        let done = stream.synchronize();
        copied.and(done).map_err(fail)
    }
}
