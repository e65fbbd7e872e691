//! Runs a grid: blocks (clusters of them) over worker threads, warps of a cluster in turn.
//!
//! Blocks are handed out in order, and when several fail the first in grid order is reported, so a
//! launch gives the same result and the same error whatever the number of workers. Kernels with
//! atomics on global memory run on one worker, block after block.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::block::{BlockState, Checks, ClusterBarrier, ClusterState, Launch, WarpState};
use crate::decode::Kernel;
use crate::exec::budget;
use crate::exec::mbarrier::Mbarrier;
use crate::fault::{Fault, LANES};
use crate::global::View;
use crate::isa::{Place, Special};
use crate::registers::Registers;
use crate::shared::{Clocks, Shared};
use crate::warp::{Turn, Warp};

/// Most threads of a block.
pub const MAX_THREADS: u32 = 1024;

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Worker threads.
    pub workers: usize,
    /// Checks to run.
    pub checks: Checks,
    /// Warp instructions of one cluster after which it counts as hung.
    pub limit: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { workers: 2, checks: Checks::default(), limit: 2_000_000_000 }
    }
}

/// Shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks in the grid.
    pub grid: [u32; 3],
    /// Threads in a block.
    pub block: [u32; 3],
    /// Blocks in a cluster.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
}

impl Shape {
    /// A shape without clusters.
    pub fn new(grid: [u32; 3], block: [u32; 3], dynamic_shared: usize) -> Shape {
        Shape { grid, block, cluster: [1; 3], dynamic_shared }
    }
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Instructions executed, each counted once a warp.
    pub warp_instructions: u64,
}

/// A failed launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchError {
    /// Kernel name.
    pub kernel: String,
    /// Block index, when a block failed.
    pub block: Option<[u32; 3]>,
    /// Thread index in the block, when one thread is to blame.
    pub thread: Option<[u32; 3]>,
    /// Where in the program.
    pub place: Option<Place>,
    /// What happened.
    pub message: String,
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {}", self.kernel)?;
        if let Some([x, y, z]) = self.block {
            write!(f, ", block ({x}, {y}, {z})")?;
        }
        if let Some([x, y, z]) = self.thread {
            write!(f, ", thread ({x}, {y}, {z})")?;
        }
        if let Some(place) = self.place {
            write!(f, ", {place}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for LaunchError {}

/// Runs a kernel to its end.
///
/// # Errors
/// The first misuse in grid order.
pub fn launch(
    kernel: &Kernel,
    params: &[u8],
    memory: &View,
    shape: Shape,
    options: Options,
) -> Result<Stats, LaunchError> {
    let general = |message: String| LaunchError {
        kernel: kernel.name.clone(),
        block: None,
        thread: None,
        place: None,
        message,
    };
    check_shape(kernel, params, shape).map_err(general)?;
    let launch = Launch {
        kernel,
        params,
        memory,
        grid: shape.grid,
        block: shape.block,
        cluster: shape.cluster,
        dynamic_shared: shape.dynamic_shared,
        checks: options.checks,
    };
    let clusters: u64 = (0..3).map(|i| u64::from(shape.grid[i] / shape.cluster[i])).product();
    let workers = if kernel.ordered_blocks { 1 } else { options.workers.max(1) as u64 };
    let queue = Queue {
        next: AtomicU64::new(0),
        end: AtomicU64::new(clusters),
        executed: AtomicU64::new(0),
        failure: Mutex::new(None),
    };
    std::thread::scope(|scope| {
        for _ in 1..workers.min(clusters) {
            scope.spawn(|| queue.work(&launch, options.limit));
        }
        queue.work(&launch, options.limit);
    });
    match queue.failure.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some((_, error)) => Err(error),
        None => Ok(Stats { warp_instructions: queue.executed.into_inner() }),
    }
}

fn check_shape(kernel: &Kernel, params: &[u8], shape: Shape) -> Result<(), String> {
    let threads: u64 = shape.block.iter().map(|n| u64::from(*n)).product();
    let limit = kernel.max_threads.unwrap_or(MAX_THREADS).min(MAX_THREADS);
    if shape.grid.contains(&0) || threads == 0 || threads > u64::from(limit) {
        return Err(format!(
            "grid {:?} of blocks {:?}: a block may have 1 to {limit} threads",
            shape.grid, shape.block
        ));
    }
    if params.len() != kernel.param_bytes() {
        let wants = kernel.param_bytes();
        return Err(format!("{} parameter bytes, the kernel takes {wants}", params.len()));
    }
    let divides =
        (0..3).all(|i| shape.cluster[i] > 0 && shape.grid[i].is_multiple_of(shape.cluster[i]));
    let blocks: u32 = shape.cluster.iter().product();
    if !divides || blocks > 16 {
        return Err(format!("cluster {:?} in grid {:?}", shape.cluster, shape.grid));
    }
    match kernel.cluster {
        Some(required) if required != shape.cluster => {
            Err(format!("the kernel requires clusters of {required:?}, not {:?}", shape.cluster))
        }
        _ => Ok(()),
    }
}

/// Clusters still to run and what came of those that did.
struct Queue {
    next: AtomicU64,
    /// One past the last cluster worth running; moves down to a cluster that failed.
    end: AtomicU64,
    executed: AtomicU64,
    failure: Mutex<Option<(u64, LaunchError)>>,
}

impl Queue {
    fn work(&self, launch: &Launch<'_>, limit: u64) {
        let mut cluster = None;
        loop {
            let index = self.next.fetch_add(1, Relaxed);
            if index >= self.end.load(Relaxed) {
                return;
            }
            let cluster = cluster.get_or_insert_with(|| Cluster::new(launch));
            match cluster.run(index, launch, limit) {
                Ok(executed) => {
                    self.executed.fetch_add(executed, Relaxed);
                }
                Err(error) => {
                    self.end.fetch_min(index, Relaxed);
                    let mut failure = self.failure.lock().unwrap_or_else(|e| e.into_inner());
                    if failure.as_ref().is_none_or(|(first, _)| index < *first) {
                        *failure = Some((index, error));
                    }
                    return;
                }
            }
        }
    }
}

/// A cluster's state, reused from one cluster to the next.
struct Cluster {
    state: ClusterState,
    warps: Vec<Warp>,
}

/// Race stamps restart at a new block before clocks overflow.
const LAST_CLOCK: u32 = 1 << 31;

impl Cluster {
    fn new(launch: &Launch<'_>) -> Cluster {
        let ranks = launch.cluster.iter().product::<u32>() as usize;
        let threads = launch.block.iter().product::<u32>() as usize;
        let warps_per_block = threads.div_ceil(LANES);
        let shared_bytes = launch.kernel.static_shared + launch.dynamic_shared;
        let warps_in_all = ranks * warps_per_block;
        let block = |_| BlockState {
            ctaid: [0; 3],
            shared: Shared::new(shared_bytes, warps_in_all, launch.checks.races),
            mbarriers: Default::default(),
            barriers: Default::default(),
            warpgroups: Vec::new(),
            free_registers: 0,
            reached: Vec::new(),
            left: Vec::new(),
        };
        let warp = |n: usize| {
            let (rank, index) = (n / warps_per_block, n % warps_per_block);
            let state = WarpState {
                registers: Registers::new(launch.kernel.registers),
                local: vec![0xff; launch.kernel.local * LANES],
                copies: Default::default(),
                products: Default::default(),
                index,
                rank,
                stores: Default::default(),
                register_count: None,
                cluster_phase: 0,
            };
            Warp::new(state, threads - index * LANES)
        };
        Cluster {
            state: ClusterState {
                blocks: (0..ranks).map(block).collect(),
                clocks: Clocks::new(warps_in_all, 0),
                warps_per_block,
                barrier: ClusterBarrier::default(),
                live_threads: 0,
            },
            warps: (0..warps_in_all).map(warp).collect(),
        }
    }

    fn reset(&mut self, index: u64, launch: &Launch<'_>) {
        let latest = self.state.clocks.latest();
        let restart = latest > LAST_CLOCK;
        self.state.clocks = Clocks::new(self.warps.len(), if restart { 0 } else { latest });
        self.state.barrier = ClusterBarrier::default();
        self.state.live_threads = self.warps.iter().map(Warp::threads).sum();
        let clusters = std::array::from_fn(|i| launch.grid[i] / launch.cluster[i]);
        let cluster = position(index, clusters);
        for (rank, block) in self.state.blocks.iter_mut().enumerate() {
            let inner = position(rank as u64, launch.cluster);
            block.ctaid = std::array::from_fn(|i| cluster[i] * launch.cluster[i] + inner[i]);
            block.shared.reset(restart);
            block.mbarriers.clear();
            block.barriers = Default::default();
            block.warpgroups.clear();
            let groups = self.state.warps_per_block.div_ceil(4);
            block.warpgroups.resize_with(groups, Default::default);
            block.free_registers = 0;
            block.reached.clear();
            block.left.clear();
        }
        for warp in &mut self.warps {
            warp.restart();
            let state = &mut warp.state;
            state.registers.reset();
            state.local.fill(0xff);
            state.copies = Default::default();
            state.products = Default::default();
            state.stores = Default::default();
            state.register_count = budget::at_launch(launch.kernel);
            state.cluster_phase = 0;
            let ctaid = self.state.blocks[state.rank].ctaid;
            set_specials(state, launch, ctaid, cluster);
        }
    }

    fn run(&mut self, index: u64, launch: &Launch<'_>, limit: u64) -> Result<u64, LaunchError> {
        self.reset(index, launch);
        loop {
            let (mut running, mut progress) = (false, false);
            for w in 0..self.warps.len() {
                match self.warps[w].turn(&mut self.state, launch) {
                    Ok(Turn::Done) => {}
                    Ok(Turn::Progress) => (running, progress) = (true, true),
                    Ok(Turn::Stuck) => running = true,
                    Err((pc, fault)) => return Err(self.error(launch, w, pc, &fault)),
                }
            }
            let executed: u64 = self.warps.iter().map(|w| w.executed).sum();
            if !running {
                return self.finish(launch).map(|()| executed);
            }
            if !progress {
                return Err(self.deadlock(launch));
            }
            if executed > limit {
                let w = self.warps.iter().position(|w| w.positions().next().is_some()).unwrap_or(0);
                let pc = self.warps[w].positions().next().map_or(0, |(pc, _)| pc);
                let fault = Fault::warp(format!("no end after {executed} instructions"));
                return Err(self.error(launch, w, pc, &fault));
            }
        }
    }

    /// The warps of a warpgroup must have issued the same `wgmma` operations and hold as many registers,
    /// and a block must have outlived all that others of the cluster did to it.
    fn finish(&self, launch: &Launch<'_>) -> Result<(), LaunchError> {
        let per_block = self.state.warps_per_block;
        let fail = |w: usize, message: String| {
            Err(self.error(launch, w, launch.kernel.code.len() - 1, &Fault::warp(message)))
        };
        for (w, warp) in self.warps.iter().enumerate() {
            let first = w / per_block * per_block + w % per_block / 4 * 4;
            let (own, other) = (&warp.state, &self.warps[first].state);
            if own.products.issued() != other.products.issued() {
                return fail(w, "the warps of a warpgroup issued different wgmma".into());
            }
            if own.register_count != other.register_count {
                return fail(w, "the warps of a warpgroup changed setmaxnreg differently".into());
            }
        }
        for (rank, block) in self.state.blocks.iter().enumerate() {
            let partial = |(at, b): (&u32, &Mbarrier)| b.partial().map(|(n, of)| (*at, n, of));
            if let Some((at, arrived, of)) = block.mbarriers.iter().find_map(partial) {
                let message = format!(
                    "mbarrier at shared address {at} of block {rank} ends in the middle of a phase: \
                     {arrived} of {of} arrivals"
                );
                return fail(rank * per_block, message);
            }
            let late = |agent: &usize| {
                block.reached[*agent] > block.left.get(*agent).copied().unwrap_or(0)
            };
            if let Some(agent) = (0..block.reached.len()).find(late) {
                let (by, warps) = (agent % self.warps.len(), self.warps.len());
                let what = if agent < warps { "reached" } else { "copied" };
                let message = format!(
                    "warp {by} of the cluster {what} into block {rank} with nothing that kept that \
                     block from ending before (barrier.cluster)"
                );
                return fail(by, message);
            }
        }
        Ok(())
    }

    fn error(&self, launch: &Launch<'_>, w: usize, pc: usize, fault: &Fault) -> LaunchError {
        let state = &self.warps[w].state;
        let thread = fault.lane_index().map(|lane| {
            let block = launch.block.map(|n| n.max(1));
            position((state.index * LANES + lane) as u64, block)
        });
        let code = &launch.kernel.code;
        let warp = if thread.is_none() { format!("warp {}: ", state.index) } else { String::new() };
        LaunchError {
            kernel: launch.kernel.name.clone(),
            block: Some(self.state.blocks[state.rank].ctaid),
            thread,
            place: code.get(pc.min(code.len() - 1)).map(|i| i.place),
            message: format!("{warp}{fault}"),
        }
    }

    fn deadlock(&self, launch: &Launch<'_>) -> LaunchError {
        let mut waits = Vec::new();
        for warp in &self.warps {
            for (pc, mask) in warp.positions() {
                let place = launch.kernel.code[pc.min(launch.kernel.code.len() - 1)].place;
                waits.push(format!("warp {} lanes {mask:#010x} at {place}", warp.state.index));
            }
        }
        for block in &self.state.blocks {
            for (id, barrier) in block.barriers.iter().enumerate() {
                if let Some((arrived, expected)) = barrier.missing() {
                    waits.push(format!("barrier {id} has {arrived} of {expected} threads"));
                }
            }
        }
        let stuck = |w: &Warp| w.positions().next().is_some();
        let w = self.warps.iter().position(stuck).unwrap_or(0);
        let pc = self.warps[w].positions().next().map_or(0, |(pc, _)| pc);
        waits.truncate(12);
        let fault = Fault::warp(format!("deadlock: {}", waits.join("; ")));
        self.error(launch, w, pc, &fault)
    }
}

/// Coordinates of element `index` in a box, first axis fastest.
fn position(index: u64, extent: [u32; 3]) -> [u32; 3] {
    let [x, y] = [u64::from(extent[0]), u64::from(extent[1])];
    [(index % x) as u32, (index / x % y) as u32, (index / (x * y)) as u32]
}

fn set_specials(state: &mut WarpState, launch: &Launch<'_>, ctaid: [u32; 3], cluster: [u32; 3]) {
    let first = state.index * LANES;
    let rank = state.rank as u32;
    let inner = position(u64::from(rank), launch.cluster);
    let shared = (launch.kernel.static_shared + launch.dynamic_shared) as u32;
    let regs = &mut state.registers;
    for axis in 0..3u8 {
        let i = usize::from(axis);
        let tid = |lane: usize| position((first + lane) as u64, launch.block)[i];
        regs.set_special(Special::Tid(axis), std::array::from_fn(tid));
        let uniform = [
            (Special::Ntid(axis), launch.block[i]),
            (Special::Ctaid(axis), ctaid[i]),
            (Special::Nctaid(axis), launch.grid[i]),
            (Special::Clusterid(axis), cluster[i]),
            (Special::Nclusterid(axis), launch.grid[i] / launch.cluster[i]),
            (Special::ClusterCtaid(axis), inner[i]),
            (Special::ClusterNctaid(axis), launch.cluster[i]),
        ];
        for (which, value) in uniform {
            regs.set_special(which, [value; LANES]);
        }
    }
    let lanes: [u32; LANES] = std::array::from_fn(|lane| lane as u32);
    regs.set_special(Special::Laneid, lanes);
    regs.set_special(Special::LanemaskEq, lanes.map(|l| 1 << l));
    regs.set_special(Special::LanemaskLt, lanes.map(|l| (1 << l) - 1));
    regs.set_special(Special::LanemaskLe, lanes.map(|l| u32::MAX >> (31 - l)));
    regs.set_special(Special::LanemaskGt, lanes.map(|l| !(u32::MAX >> (31 - l))));
    regs.set_special(Special::LanemaskGe, lanes.map(|l| u32::MAX << l));
    let uniform = [
        (Special::Warpid, state.index as u32),
        (Special::ClusterCtarank, rank),
        (Special::ClusterNctarank, launch.cluster.iter().product()),
        (Special::Smid, 0),
        (Special::Nsmid, 1),
        (Special::DynamicSmemSize, launch.dynamic_shared as u32),
        (Special::TotalSmemSize, shared),
        (Special::Clock, 0),
    ];
    for (which, value) in uniform {
        regs.set_special(which, [value; LANES]);
    }
}
