//! The state that the warps of a block, or of a cluster of blocks, share, and the view that an
//! instruction gets of it.

use std::collections::BTreeMap;

use crate::decode::Kernel;
use crate::exec::async_copy::Copies;
use crate::exec::mbarrier::Mbarrier;
use crate::exec::tensor::Stores;
use crate::exec::wgmma::{Queue, Warpgroup};
use crate::exec::{ReduceOp, Reduction};
use crate::fault::{Fault, Outcome};
use crate::global::View;
use crate::isa::Source;
use crate::registers::Registers;
use crate::shared::{Accessor, Clocks, Shared, Snapshot, Via};

/// Added to a shared address to make it generic.
pub const SHARED_WINDOW: u64 = 1 << 60;
/// Added to a local address to make it generic.
pub const LOCAL_WINDOW: u64 = 1 << 61;
/// Added to a parameter address to make it generic.
pub const PARAM_WINDOW: u64 = 1 << 62;

/// Shared addresses of other blocks of the cluster carry the block's rank + 1 above this bit.
pub const RANK_SHIFT: u32 = 24;

/// State spaces of memory instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Space {
    Global,
    Shared,
    Local,
    Param,
    Generic,
}

/// Which checks run; all of them unless switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Races on shared memory.
    pub races: bool,
    /// Reads of global memory that nothing has written.
    pub unwritten: bool,
}

impl Default for Checks {
    fn default() -> Self {
        Checks { races: true, unwritten: true }
    }
}

/// What is the same for all blocks of a launch.
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Parameter block.
    pub params: &'a [u8],
    /// Device memory.
    pub memory: &'a View,
    /// Blocks in the grid.
    pub grid: [u32; 3],
    /// Threads in a block.
    pub block: [u32; 3],
    /// Blocks in a cluster.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
    /// Checks to run.
    pub checks: Checks,
}

/// A named barrier of a block.
#[derive(Default)]
pub struct NamedBarrier {
    arrived: u32,
    expected: u32,
    generation: u32,
    gathering: Snapshot,
    released: Snapshot,
    votes: [u32; 2],
    result: [u32; 2],
}

impl NamedBarrier {
    /// `threads` of a warp arrive, `votes` of them with a true predicate.
    /// Returns the generation to wait for.
    pub fn arrive(
        &mut self,
        clocks: &mut Clocks,
        warp: usize,
        threads: u32,
        expected: u32,
        votes: u32,
    ) -> Result<u32, String> {
        if self.arrived > 0 && self.expected != expected {
            return Err(format!("barrier expects {} threads, not {expected}", self.expected));
        }
        self.expected = expected;
        self.arrived += threads;
        self.votes[0] += votes;
        self.votes[1] += threads;
        clocks.release(warp, &mut self.gathering);
        let waits_for = self.generation + 1;
        if self.arrived > expected {
            return Err(format!("{} threads arrived at a barrier of {expected}", self.arrived));
        }
        if self.arrived == expected {
            self.arrived = 0;
            self.generation += 1;
            self.result = std::mem::take(&mut self.votes);
            self.released = std::mem::take(&mut self.gathering);
        }
        Ok(waits_for)
    }

    /// Whether the generation is complete; if so the warp is ordered after all that arrived.
    pub fn passed(&self, clocks: &mut Clocks, warp: usize, generation: u32) -> bool {
        let passed = self.generation >= generation;
        if passed {
            clocks.acquire(warp, &self.released);
        }
        passed
    }

    /// Result of a reduction over the last generation.
    pub fn reduced(&self, reduction: &Reduction) -> u32 {
        let [votes, threads] = self.result;
        match reduction.op {
            ReduceOp::Popc => votes,
            ReduceOp::And => u32::from(votes == threads),
            ReduceOp::Or => u32::from(votes > 0),
        }
    }

    /// Threads that have arrived and that are expected, when some wait.
    pub fn missing(&self) -> Option<(u32, u32)> {
        (self.arrived > 0).then_some((self.arrived, self.expected))
    }
}

/// `barrier.cluster`.
#[derive(Default)]
pub struct ClusterBarrier {
    /// Threads that have arrived in this phase.
    pub arrived: u32,
    /// Completed phases.
    pub phase: u32,
    /// What arriving warps have done.
    pub gathering: Snapshot,
    /// What the warps of the last phase had done.
    pub released: Snapshot,
}

/// One block.
pub struct BlockState {
    /// Block index in the grid.
    pub ctaid: [u32; 3],
    /// Shared memory.
    pub shared: Shared,
    /// mbarrier objects by shared address.
    pub mbarriers: BTreeMap<u32, Mbarrier>,
    /// Named barriers 0..16.
    pub barriers: [NamedBarrier; 16],
    /// Products in flight, per warpgroup.
    pub warpgroups: Vec<Warpgroup>,
    /// Registers that no warp holds.
    pub free_registers: u32,
    /// For each agent, when it last reached into this block from another of the cluster.
    pub reached: Vec<u32>,
    /// What the warps that have exited had seen.
    pub left: Snapshot,
}

/// Blocks that run together and what orders their warps.
pub struct ClusterState {
    /// Blocks by rank.
    pub blocks: Vec<BlockState>,
    /// Vector clocks of all warps of the cluster.
    pub clocks: Clocks,
    /// Warps in each block.
    pub warps_per_block: usize,
    /// `barrier.cluster`.
    pub barrier: ClusterBarrier,
    /// Threads of the cluster that have not exited.
    pub live_threads: u32,
}

impl ClusterState {
    /// Completes the cluster barrier when every live thread has arrived.
    pub fn settle_barrier(&mut self) {
        let barrier = &mut self.barrier;
        if barrier.arrived > 0 && barrier.arrived >= self.live_threads {
            barrier.arrived = 0;
            barrier.phase += 1;
            barrier.released = std::mem::take(&mut barrier.gathering);
        }
    }
}

/// What belongs to one warp alone.
pub struct WarpState {
    /// Registers.
    pub registers: Registers,
    /// Local memory, lane after lane.
    pub local: Vec<u8>,
    /// `cp.async` operations in flight.
    pub copies: Copies,
    /// `wgmma` operations in flight.
    pub products: Queue,
    /// Warp in its block.
    pub index: usize,
    /// Block in its cluster.
    pub rank: usize,
    /// Bulk copies from shared to global memory in flight.
    pub stores: Stores,
    /// Registers of each thread, where `setmaxnreg` may change them.
    pub register_count: Option<u32>,
    /// Phase of the cluster barrier the warp has arrived for.
    pub cluster_phase: u32,
}

/// What an instruction works on: the warp, its cluster and the launch.
pub struct Lanes<'a> {
    /// The warp.
    pub warp: &'a mut WarpState,
    /// The cluster.
    pub cluster: &'a mut ClusterState,
    /// The launch.
    pub launch: &'a Launch<'a>,
}

/// Names the lane of an error.
pub fn at_lane<T>(lane: usize, result: Result<T, String>) -> Outcome<T> {
    result.map_err(|message| Fault::lane(lane, message))
}

impl Lanes<'_> {
    /// One lane of a source.
    #[inline]
    pub fn value(&self, source: Source, lane: usize) -> u64 {
        self.warp.registers.lane(source, lane)
    }

    /// `base + offset` in a lane.
    #[inline]
    pub fn address(&self, (base, offset): (Source, i64), lane: usize) -> u64 {
        self.value(base, lane).wrapping_add(offset as u64)
    }

    /// As [`Lanes::address`], in shared memory: 32 bits, a generic address reduced to them.
    #[inline]
    pub fn shared_address(&self, address: (Source, i64), lane: usize) -> u32 {
        (self.address(address, lane) & !SHARED_WINDOW) as u32
    }

    /// Number of the warp in the cluster.
    pub fn agent(&self) -> usize {
        self.warp.rank * self.cluster.warps_per_block + self.warp.index
    }

    /// A lane as accessor of shared memory.
    pub fn accessor(&self, lane: usize) -> Accessor {
        Accessor { warp: self.agent(), lane, via: Via::Thread }
    }

    /// Notes that this warp, or its engine, reaches into another block: that block must outlive it.
    pub fn reach(&mut self, rank: usize, via: Via) {
        if rank == self.warp.rank {
            return;
        }
        let agent = Accessor { warp: self.agent(), lane: 0, via }.agent(&self.cluster.clocks);
        let clock = self.cluster.clocks.now(agent);
        let reached = &mut self.cluster.blocks[rank].reached;
        reached.resize(reached.len().max(agent + 1), 0);
        reached[agent] = clock;
    }

    /// The block and the offset that a shared address means.
    pub fn locate(&self, address: u32) -> Result<(usize, u32), String> {
        match (address >> RANK_SHIFT) as usize {
            0 => Ok((self.warp.rank, address)),
            n if n <= self.cluster.blocks.len() => Ok((n - 1, address & ((1 << RANK_SHIFT) - 1))),
            _ => Err(format!("shared address {address:#x} is in no block of the cluster")),
        }
    }

    /// Space and address behind a generic address.
    pub fn resolve(space: Space, address: u64) -> (Space, u64) {
        match space {
            Space::Generic if address & SHARED_WINDOW != 0 => {
                (Space::Shared, address & !SHARED_WINDOW)
            }
            Space::Generic if address & LOCAL_WINDOW != 0 => {
                (Space::Local, address & !LOCAL_WINDOW)
            }
            Space::Generic if address & PARAM_WINDOW != 0 => {
                (Space::Param, address & !PARAM_WINDOW)
            }
            Space::Generic => (Space::Global, address),
            Space::Param => (Space::Param, address & !PARAM_WINDOW),
            other => (other, address),
        }
    }

    /// Loads `size` bytes (1 to 16) as `out.len()` equal elements.
    #[inline]
    pub fn load(
        &mut self,
        lane: usize,
        space: Space,
        address: u64,
        element: usize,
        out: &mut [u64],
    ) -> Outcome {
        let size = element * out.len();
        let (space, address) = Lanes::resolve(space, address);
        match space {
            Space::Global => at_lane(lane, self.load_global(address, element, out)),
            Space::Shared => {
                let who = self.accessor(lane);
                let (rank, offset) = at_lane(lane, self.locate(address as u32))?;
                self.reach(rank, Via::Thread);
                let shared = &mut self.cluster.blocks[rank].shared;
                let bytes = at_lane(lane, shared.read(&self.cluster.clocks, who, offset, size))?;
                unpack(bytes, element, out);
                Ok(())
            }
            Space::Local => {
                let range = at_lane(lane, self.local_range(lane, address, size))?;
                unpack(&self.warp.local[range], element, out);
                Ok(())
            }
            _ => {
                let at = address as usize;
                let bytes = self.launch.params.get(at..at.saturating_add(size));
                let bytes = bytes.filter(|_| at.is_multiple_of(size)).ok_or_else(|| {
                    Fault::lane(lane, format!("{size} bytes at parameter offset {at}"))
                })?;
                unpack(bytes, element, out);
                Ok(())
            }
        }
    }

    fn load_global(&self, address: u64, element: usize, out: &mut [u64]) -> Result<(), String> {
        let size = element * out.len();
        if !address.is_multiple_of(size as u64) {
            return Err(format!("misaligned: address {address:#x} is not a multiple of {size}"));
        }
        let (allocation, offset) = self.launch.memory.find(address, size)?;
        for (i, slot) in out.iter_mut().enumerate() {
            let at = offset + i * element;
            if self.launch.checks.unwritten && !allocation.is_written(at, element) {
                let total = allocation.size();
                return Err(format!(
                    "read of global memory that was never written: offset {at} of an allocation \
                     of {total} bytes"
                ));
            }
            *slot = allocation.load(at, element);
        }
        Ok(())
    }

    /// Stores equal elements, 1 to 16 bytes in all.
    #[inline]
    pub fn store(
        &mut self,
        lane: usize,
        space: Space,
        address: u64,
        element: usize,
        values: &[u64],
    ) -> Outcome {
        let size = element * values.len();
        let (space, address) = Lanes::resolve(space, address);
        match space {
            Space::Global => at_lane(lane, self.store_global(address, element, values)),
            Space::Shared => {
                let who = self.accessor(lane);
                let (rank, offset) = at_lane(lane, self.locate(address as u32))?;
                self.reach(rank, Via::Thread);
                let mut bytes = [0; 32];
                pack(values, element, &mut bytes);
                let shared = &mut self.cluster.blocks[rank].shared;
                at_lane(lane, shared.write(&self.cluster.clocks, who, offset, &bytes[..size]))
            }
            Space::Local => {
                let range = at_lane(lane, self.local_range(lane, address, size))?;
                let mut bytes = [0; 32];
                pack(values, element, &mut bytes);
                self.warp.local[range].copy_from_slice(&bytes[..size]);
                Ok(())
            }
            _ => Err(Fault::lane(lane, "store to a kernel parameter")),
        }
    }

    fn store_global(&self, address: u64, element: usize, values: &[u64]) -> Result<(), String> {
        let size = element * values.len();
        if !address.is_multiple_of(size as u64) {
            return Err(format!("misaligned: address {address:#x} is not a multiple of {size}"));
        }
        let (allocation, offset) = self.launch.memory.find(address, size)?;
        for (i, value) in values.iter().enumerate() {
            allocation.store(offset + i * element, element, *value);
        }
        Ok(())
    }

    fn local_range(
        &self,
        lane: usize,
        address: u64,
        size: usize,
    ) -> Result<std::ops::Range<usize>, String> {
        let (at, have) = (address as usize, self.launch.kernel.local);
        if at.checked_add(size).is_none_or(|end| end > have) || !at.is_multiple_of(size) {
            return Err(format!("{size} bytes at local address {at} of {have} bytes"));
        }
        let start = lane * have + at;
        Ok(start..start + size)
    }
}

#[inline]
fn unpack(bytes: &[u8], element: usize, out: &mut [u64]) {
    for (slot, chunk) in out.iter_mut().zip(bytes.chunks_exact(element)) {
        *slot = match *chunk {
            [a] => u64::from(a),
            [a, b] => u64::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => 0,
        };
    }
}

#[inline]
fn pack(values: &[u64], element: usize, out: &mut [u8; 32]) {
    for (chunk, value) in out.chunks_exact_mut(element).zip(values) {
        chunk.copy_from_slice(&value.to_le_bytes()[..element]);
    }
}
