//! A kernel with its argument block, ready to be queued for any number of rows.

use super::device::Function;
use super::maps::Tensor;
use crate::error::{Error, Result};
use cudarc::driver::CudaStream;

/// Most positions, or threads, a launch may index with 32 bits, with room for the last block.
pub(super) const MAX_INDEX: u64 = (1 << 31) - (1 << 16);

/// Blocks of a launch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Grid {
    /// The same for every run.
    Fixed([u32; 3]),
    /// `ceil(rows * per_row / per_block) * strips` along x.
    Rows { per_row: u64, per_block: u64, strips: u64, yz: [u32; 2] },
    /// As many tiles shared by at most `blocks` blocks that each take several in turn, in clusters of
    /// `cluster` blocks with tiles one above the other.
    Persistent { per_row: u64, per_block: u64, strips: u64, blocks: u64, cluster: u32 },
}

/// A tensor map in an argument block.
pub(super) struct Map {
    /// Where it stands.
    pub byte: usize,
    pub tensor: Tensor,
}

/// A kernel with its argument block.
pub(super) struct Launch {
    pub function: Function,
    pub arguments: Vec<u64>,
    pub grid: Grid,
    /// What a bag step writes as its rows, whatever the rows of the run.
    pub fixed_rows: Option<usize>,
    /// Encoded for the rows of each run.
    pub maps: Vec<Map>,
}

impl Launch {
    /// Queues the launch for a run of `rows` rows.
    ///
    /// # Safety
    /// The addresses in the argument block are valid and large enough for `rows` rows.
    pub unsafe fn queue(&mut self, stream: &CudaStream, rows: usize) -> Result<()> {
        let rows_of_kernel = self.fixed_rows.unwrap_or(rows);
        bytemuck::cast_slice_mut::<u64, i32>(&mut self.arguments)[0] = rows_of_kernel as i32;
        for Map { byte, tensor } in &self.maps {
            let map = tensor.encode(rows_of_kernel)?;
            self.arguments[byte / 8..][..map.len()].copy_from_slice(&map);
        }
        let grid = self.grid_for(rows)?;
        let cluster = match self.grid {
            Grid::Persistent { cluster, .. } => cluster,
            _ => 1,
        };
        // SAFETY: the caller's promise.
        unsafe { self.function.launch(stream, grid, cluster, &mut self.arguments) }
    }

    /// The grid of a run; an error when it needs more than 32-bit indices.
    pub fn grid_for(&self, rows: usize) -> Result<[u32; 3]> {
        let rows = self.fixed_rows.unwrap_or(rows);
        let count = |per_row: u64, per_block: u64, strips: u64| {
            let items = per_row.checked_mul(rows as u64).filter(|&n| n <= MAX_INDEX);
            let blocks = items.map(|n| n.div_ceil(per_block) * strips).filter(|&n| n <= MAX_INDEX);
            blocks.ok_or_else(|| {
                let name = self.function.name;
                Error::limit(format!("{name}: {rows} rows are more than one launch indexes"))
            })
        };
        match self.grid {
            Grid::Fixed(grid) => Ok(grid),
            Grid::Rows { per_row, per_block, strips, yz } => {
                Ok([count(per_row, per_block, strips)? as u32, yz[0], yz[1]])
            }
            Grid::Persistent { per_row, per_block, strips, blocks, cluster } => {
                let cluster = u64::from(cluster);
                let clusters = count(per_row, per_block * cluster, strips)?;
                Ok([(clusters.min(blocks / cluster).max(1) * cluster) as u32, 1, 1])
            }
        }
    }
}
