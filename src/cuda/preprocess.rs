//! Resizing tiles on the device, byte for byte as Pillow does: the filter comes as tables of whole
//! numbers, so that nothing is left to the device's arithmetic.

use super::device::{Buffer, Gpu, failed};
use super::kernels::Kernel;
use super::launch::{Grid, Launch, MAX_INDEX};
use super::lower::int;
use super::{CudaBackend, params};
use crate::error::{Error, Result};
use cudarc::driver::{CudaStream, result};
use std::ops::Range;
use std::sync::Arc;

/// Filter weights along one axis of a picture.
#[derive(Clone, Debug)]
pub struct Axis {
    /// Samples there are.
    pub length: usize,
    /// First sample and number of samples of each result.
    pub bounds: Vec<(usize, usize)>,
    /// As many weights for each result as the widest has samples, with 22 fraction bits.
    pub weights: Vec<i32>,
}

impl Axis {
    fn taps(&self) -> usize {
        self.weights.len() / self.bounds.len().max(1)
    }

    /// Bounds, then weights of some results, as `resize.cu` reads them.
    fn table(&self, kept: &Range<usize>) -> Vec<i32> {
        let bounds = &self.bounds[kept.clone()];
        let weights = &self.weights[kept.start * self.taps()..kept.end * self.taps()];
        bounds
            .iter()
            .flat_map(|&(first, n)| [int(first), int(n)])
            .chain(weights.iter().copied())
            .collect()
    }

    /// The samples that some results need.
    fn span(&self, kept: &Range<usize>) -> Range<usize> {
        let bounds = &self.bounds[kept.clone()];
        let first = bounds.iter().map(|b| b.0).min().unwrap_or(0);
        first..bounds.iter().map(|b| b.0 + b.1).max().unwrap_or(first)
    }

    fn check(&self, kept: &Range<usize>) -> Result<()> {
        let (taps, results) = (self.taps(), self.bounds.len());
        let whole = taps > 0 && self.weights.len() == taps * results;
        let inside = |b: &(usize, usize)| {
            b.1 <= taps && b.0.checked_add(b.1).is_some_and(|end| end <= self.length)
        };
        if !whole || !self.bounds.iter().all(inside) {
            return Err(Error::usage("resize: the weights do not fit the samples"));
        }
        if kept.is_empty() || kept.end > results {
            return Err(Error::usage(format!("resize: no results {kept:?} of {results}")));
        }
        Ok(())
    }
}

/// A resize and a crop of `[H, W, 3]` u8 tiles, readied on a GPU for a number of them.
pub struct Resize {
    gpu: Arc<Gpu>,
    stream: Arc<CudaStream>,
    launches: Vec<Launch>,
    source: u64,
    result: u64,
    capacity: usize,
    in_bytes: usize,
    out_bytes: usize,
    _device: Buffer,
}

impl CudaBackend {
    /// Readies a resize of up to `capacity` tiles at once, along `[vertical, horizontal]` axes; of
    /// its result only the `kept` rows and columns are made.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when tables or ranges do not fit each other, [`crate::Kind::Limit`]
    /// or [`crate::Kind::Device`] when it does not fit the GPU.
    pub fn resize(
        &self,
        [down, across]: [&Axis; 2],
        kept: [Range<usize>; 2],
        capacity: usize,
    ) -> Result<Resize> {
        down.check(&kept[0])?;
        across.check(&kept[1])?;
        let read = down.span(&kept[0]);
        let from = [down.length, across.length];
        let between = [read.len(), kept[1].len()];
        let to = [kept[0].len(), kept[1].len()];
        let tables = [across.table(&kept[1]), down.table(&kept[0])];
        let lengths = tables.each_ref().map(|t| Some(t.len() * 4));
        let pictures = [from, between, to].map(|size| picture_bytes(size)?.checked_mul(capacity));
        let [a, b] = lengths;
        let [c, d, e] = pictures;
        let (starts, end) = lay_out([a, b, c, d, e])
            .filter(|_| pictures.iter().flatten().all(|&n| n as u64 <= 3 * MAX_INDEX))
            .ok_or_else(|| Error::limit(format!("resize: {capacity} tiles are too many")))?;

        let gpu = self.gpu.clone();
        gpu.bind()?;
        let device = Buffer::new(&gpu, end, &format!("a resize of {capacity} tiles"))?;
        let stream = gpu.context.new_stream().map_err(|e| failed("no stream", e))?;
        let [rows_table, columns_table, source, middle, result] =
            starts.map(|start| device.address + start as u64);
        for (table, address) in tables.iter().zip([rows_table, columns_table]) {
            // SAFETY: the layout gives the table this many bytes, and it lives until the copy is
            // done.
            unsafe { result::memcpy_htod_async(address, table, stream.cu_stream()) }
                .and_then(|()| stream.synchronize())
                .map_err(|e| failed("resize tables", e))?;
        }
        let block = |from: [usize; 2], to: [usize; 2], axis: &Axis| params::Resize {
            from: from.map(int),
            to: to.map(int),
            top: int(read.start),
            taps: int(axis.taps()),
            ..Default::default()
        };
        let rows = params::Resize { x: source, y: middle, ..block(from, between, across) };
        let columns = params::Resize { x: middle, y: result, ..block(between, to, down) };
        let launches = vec![
            launch(&gpu, "resize_rows", rows, rows_table)?,
            launch(&gpu, "resize_columns", columns, columns_table)?,
        ];
        let [in_bytes, out_bytes] = [from, to].map(|[h, w]| h * w * 3);
        let _device = device;
        Ok(Resize { gpu, stream, launches, source, result, capacity, in_bytes, out_bytes, _device })
    }
}

/// One pass, with its table of bounds and weights at an address.
fn launch(gpu: &Gpu, name: &str, block: params::Resize, table: u64) -> Result<Launch> {
    let [h, w] = block.to.map(|n| n as u64);
    let results = if name == "resize_rows" { w } else { h };
    let block = params::Resize { bounds: table, weights: table + 8 * results, ..block };
    Ok(Launch {
        function: gpu.function(&Kernel::named(name).instance(), 0)?,
        arguments: bytemuck::pod_collect_to_vec(bytemuck::bytes_of(&block)),
        grid: Grid::Rows { per_row: h * w, per_block: 256, strips: 1, yz: [1, 1] },
        fixed_rows: None,
        maps: Vec::new(),
    })
}

fn picture_bytes([h, w]: [usize; 2]) -> Option<usize> {
    h.checked_mul(w)?.checked_mul(3)
}

/// Where parts of given sizes start, and where the last ends.
fn lay_out<const N: usize>(sizes: [Option<usize>; N]) -> Option<([usize; N], usize)> {
    let (mut starts, mut end) = ([0; N], 0usize);
    for (start, size) in starts.iter_mut().zip(sizes) {
        *start = end;
        end = end.checked_add(size?)?.checked_next_multiple_of(256)?;
    }
    Some((starts, end))
}

impl Resize {
    /// Resizes `rows` tiles.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when a length or the number of tiles is wrong,
    /// [`crate::Kind::Device`] when the GPU fails.
    pub fn run(&mut self, rows: usize, tiles: &[u8], out: &mut [u8]) -> Result<()> {
        let fits = rows <= self.capacity
            && rows.checked_mul(self.in_bytes) == Some(tiles.len())
            && rows.checked_mul(self.out_bytes) == Some(out.len());
        if !fits {
            let (given, room) = (tiles.len(), out.len());
            let what = format!("resize of {rows} tiles: given {given} bytes and {room} for them");
            return Err(Error::usage(what));
        }
        if rows == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        let queued = self.queue(rows, tiles, out);
        // Whatever was queued is over before the slices are given back.
        let done = self.stream.synchronize().map_err(|e| failed("the resize failed", e));
        queued.and(done)
    }

    fn queue(&mut self, rows: usize, tiles: &[u8], out: &mut [u8]) -> Result<()> {
        let stream = self.stream.cu_stream();
        // SAFETY: the layout gives the source this many bytes, and the caller waits for the stream
        // while `tiles` lives.
        unsafe { result::memcpy_htod_async(self.source, tiles, stream) }
            .map_err(|e| failed("tiles", e))?;
        for launch in &mut self.launches {
            // SAFETY: `rows` is within the capacity that everything was laid out for.
            unsafe { launch.queue(&self.stream, rows) }?;
        }
        // SAFETY: as for the source.
        unsafe { result::memcpy_dtoh_async(out, self.result, stream) }
            .map_err(|e| failed("resized tiles", e))
    }
}
