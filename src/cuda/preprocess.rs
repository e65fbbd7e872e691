//! Tiles made into the network's input on the device, byte for byte as the host does it: filters and
//! colours come as tables, so that nothing is left to the device's arithmetic.

use super::device::{Buffer, Gpu, failed};
use super::kernels::Kernel;
use super::launch::{Grid, Launch, MAX_INDEX};
use super::lower::int;
use super::params;
use crate::backend::{Axis, Preparation, TileStep};
use crate::error::{Error, Result};
use bytemuck::Pod;
use cudarc::driver::{CudaStream, result};
use std::ops::Range;
use std::sync::Arc;

/// Tiles get at most one part in so many of the free memory.
const MOST_SHARE: usize = 8;

/// Device memory for tiles on their way, for batches of any make up to a size.
pub(super) struct Room {
    /// Pixels of a picture there is room for.
    pub pixels: usize,
    /// Of each lane: where its tiles are copied to.
    tiles: Vec<u64>,
    /// Work space, used by one lane at a time.
    between: [u64; 2],
    _device: Buffer,
}

impl Room {
    /// For `lanes` batches of `rows` pictures of up to `pixels` pixels.
    pub fn new(gpu: &Arc<Gpu>, lanes: usize, rows: usize, pixels: usize) -> Result<Room> {
        let what = format!("{rows} tiles of {pixels} pixels");
        let bytes = pixels.checked_mul(3).and_then(|n| n.checked_mul(rows));
        let part = bytes.filter(|&n| n as u64 <= 3 * MAX_INDEX).map(|n| n.next_multiple_of(256));
        let all = part.and_then(|part| Some((part, part.checked_mul(lanes + 2)?)));
        let (part, all) = all.ok_or_else(|| Error::limit(format!("{what} are too many")))?;
        // Not all there is: the heads of a package need memory later.
        gpu.check_room(all.saturating_mul(MOST_SHARE), &what)?;
        let device = Buffer::new(gpu, all, &what)?;
        let mut places = (0..).map(|i| device.address + (i * part) as u64);
        let between = std::array::from_fn(|_| places.next().unwrap_or_default());
        let tiles = places.take(lanes).collect();
        Ok(Room { pixels, tiles, between, _device: device })
    }

    /// Where a lane's tiles are copied to.
    pub fn tiles(&self, lane: usize) -> u64 {
        self.tiles.get(lane).copied().unwrap_or_default()
    }
}

/// A preparation readied for one lane.
pub(super) struct Readied {
    how: Arc<Preparation>,
    launches: Vec<Launch>,
    /// What was copied to the device, kept until the copy is surely over.
    _tables: Vec<i32>,
    _device: Buffer,
}

impl Readied {
    /// Lays the steps out between `tiles` and `input`, and queues the copy of their tables.
    pub fn new(
        gpu: &Arc<Gpu>,
        stream: &CudaStream,
        how: &Arc<Preparation>,
        [tiles, input]: [u64; 2],
        room: &Room,
    ) -> Result<Readied> {
        let mut tables: Vec<i32> = Vec::new();
        let starts: Vec<[usize; 2]> = how.steps().iter().map(|s| write(s, &mut tables)).collect();
        let device = Buffer::new(gpu, tables.len() * 4, "tables for tiles")?;
        // SAFETY: the buffer has at least this length, and the tables live as long as it does.
        unsafe { result::memcpy_htod_async(device.address, &tables, stream.cu_stream()) }
            .map_err(|e| failed("tables for tiles", e))?;
        let last = how.steps().len().saturating_sub(1);
        let (mut size, mut at, mut launches) = (how.given(), tiles, Vec::new());
        for (i, (step, starts)) in how.steps().iter().zip(starts).enumerate() {
            let [first, second] = starts.map(|n| device.address + 4 * n as u64);
            let [middle, other] = room.between;
            let result = if i == last { input } else { other };
            match step {
                TileStep::Resample { axes, kept } => {
                    let pass = Passes { axes, kept, from: size, places: [at, middle, result] };
                    launches.extend(pass.launches(gpu, [first, second])?);
                    size = [kept[0].len(), kept[1].len()];
                }
                TileStep::Recolour { .. } => {
                    let pixels = size[0] * size[1];
                    let (rows, count) = (0, int(pixels));
                    let block =
                        params::Recolour { rows, pixels: count, x: at, y: result, table: first };
                    launches.push(launch(gpu, "recolour", block, pixels)?);
                }
            }
            at = result;
        }
        Ok(Readied { how: how.clone(), launches, _tables: tables, _device: device })
    }

    /// Whether it is of this preparation.
    pub fn is_of(&self, how: &Arc<Preparation>) -> bool {
        Arc::ptr_eq(&self.how, how)
    }

    /// Queues its launches.
    ///
    /// # Safety
    /// Tiles, input and work space have room for `rows` rows.
    pub unsafe fn queue(&mut self, stream: &CudaStream, rows: usize) -> Result<()> {
        for launch in &mut self.launches {
            // SAFETY: the caller's promise.
            unsafe { launch.queue(stream, rows) }?;
        }
        Ok(())
    }
}

/// Appends the tables of a step and returns where they start: of a resample those of its columns'
/// and its rows' filter, of a recolouring its summands.
fn write(step: &TileStep, tables: &mut Vec<i32>) -> [usize; 2] {
    let first = tables.len();
    match step {
        TileStep::Resample { axes: [down, across], kept } => {
            tables.extend(table(across, &kept[1]));
            let second = tables.len();
            tables.extend(table(down, &kept[0]));
            [first, second]
        }
        TileStep::Recolour { exponents } => {
            let numbers = exponents.as_flattened().as_flattened();
            tables.extend(numbers.iter().map(|x| x.to_bits().cast_signed()));
            [first, first]
        }
    }
}

/// Bounds, then weights of some results, as `resize.cu` reads them.
fn table(axis: &Axis, kept: &Range<usize>) -> Vec<i32> {
    let weights = &axis.weights[kept.start * axis.taps()..kept.end * axis.taps()];
    let bounds = axis.bounds[kept.clone()].iter().flat_map(|&(first, n)| [int(first), int(n)]);
    bounds.chain(weights.iter().copied()).collect()
}

/// The two passes of a resize.
struct Passes<'a> {
    axes: &'a [Axis; 2],
    kept: &'a [Range<usize>; 2],
    from: [usize; 2],
    /// Of the source, of what the first pass makes, of the result.
    places: [u64; 3],
}

impl Passes<'_> {
    /// Along the rows, then along the columns; `tables` are those of each.
    fn launches(&self, gpu: &Arc<Gpu>, tables: [u64; 2]) -> Result<[Launch; 2]> {
        let [down, across] = self.axes;
        let read = down.span(&self.kept[0]);
        let between = [read.len(), self.kept[1].len()];
        let to = [self.kept[0].len(), self.kept[1].len()];
        let pass = |from: [usize; 2], to: [usize; 2], axis: &Axis, table: u64, results: usize| {
            params::Resize {
                from: from.map(int),
                to: to.map(int),
                top: int(read.start),
                taps: int(axis.taps()),
                bounds: table,
                weights: table + 8 * results as u64,
                ..Default::default()
            }
        };
        let [source, middle, result] = self.places;
        let rows = pass(self.from, between, across, tables[0], between[1]);
        let columns = pass(between, to, down, tables[1], to[0]);
        let rows = params::Resize { x: source, y: middle, ..rows };
        let columns = params::Resize { x: middle, y: result, ..columns };
        Ok([
            launch(gpu, "resize_rows", rows, between[0] * between[1])?,
            launch(gpu, "resize_columns", columns, to[0] * to[1])?,
        ])
    }
}

/// A launch with a thread a pixel.
fn launch<P: Pod>(gpu: &Gpu, name: &str, block: P, pixels: usize) -> Result<Launch> {
    Ok(Launch {
        function: gpu.function(&Kernel::named(name).instance(), 0)?,
        arguments: bytemuck::pod_collect_to_vec(bytemuck::bytes_of(&block)),
        grid: Grid::Rows { per_row: pixels as u64, per_block: 256, strips: 1, yz: [1, 1] },
        fixed_rows: None,
        maps: Vec::new(),
    })
}
