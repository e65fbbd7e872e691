//! Which tile multiplies: ranked by a model of the machine, and where a clock can be trusted, the best
//! few timed on the very product, in the very arena, when a network is readied.
//!
//! Tiles of one family add the products of a sum in the same order, so the choice never changes a
//! bit. A timed candidate is held to that: one whose result differs in any bit from the first's is
//! dropped. What was chosen is kept beside the compiled kernels, by GPU, driver and kernel sources.

use super::compile::SOURCES;
use super::kernels::{Arch, KERNELS, Kernel, Tile};
use crate::error::{Error, Result};
use crate::graph::{Act, Window};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Candidates of a product that are timed.
pub(super) const TIMED: usize = 3;
/// Seconds a network may spend on timing; products left over keep the first of the ranking.
pub(super) const BUDGET: f64 = 10.0;

/// Everything that decides how long a product takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProductShape {
    /// Entry point of the family of kernels.
    pub entry: &'static str,
    /// Of all rows.
    pub positions: u64,
    pub filters: u64,
    /// Products in a sum, padding included.
    pub depth: u64,
    pub window: Option<Window>,
    pub act: Act,
    pub residual: bool,
    /// Whether a 2 x 2 pool follows.
    pub pool: bool,
}

impl std::fmt::Display for ProductShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ProductShape { entry, positions, filters, depth, .. } = self;
        write!(f, "{entry} {positions} x {filters} x {depth}")?;
        if let Some(Window { kernel, stride, pad, dilation }) = self.window {
            write!(f, " kernel {kernel:?} stride {stride:?} pad {pad:?} dilation {dilation:?}")?;
        }
        let residual = if self.residual { " residual" } else { "" };
        write!(f, " {:?}{residual}{}", self.act, if self.pool { " pool" } else { "" })
    }
}

/// Kernels chosen by timing, by the product in words.
pub(super) type Picks = HashMap<String, &'static Kernel>;

/// What the ranking has to know of a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub arch: Arch,
    pub multiprocessors: u32,
    pub l2_bytes: u64,
}

/// The tiles of a product's family, the one that should take the fewest cycles first. Where the memory
/// decides, the one that keeps the multiprocessors least busy.
pub(super) fn rank(shape: &ProductShape, on: Machine) -> Vec<&'static Kernel> {
    let fits = |k: &&Kernel| k.entry == shape.entry && k.tile.is_some() && k.runs_on(on.arch);
    let mut ranked: Vec<([f64; 2], &'static Kernel)> =
        KERNELS.iter().filter(fits).map(|kernel| (cycles(shape, kernel, on), kernel)).collect();
    let all = |[busy, memory]: [f64; 2]| busy.max(memory);
    ranked
        .sort_by(|(a, _), (b, _)| all(*a).total_cmp(&all(*b)).then_with(|| a[0].total_cmp(&b[0])));
    ranked.into_iter().map(|(_, kernel)| kernel).collect()
}

/// FP16 multiply-adds a multiprocessor does in a cycle (CUDA C++ Programming Guide, throughput of
/// matrix instructions; half the full rate where f32 sums halve it).
fn multiply_rate(arch: Arch, warpgroups: bool) -> f64 {
    match arch.0 {
        75 | 86 | 89 | 120 => 512.0,
        80 => 1024.0,
        _ if warpgroups => 2048.0,
        _ => 1280.0,
    }
}

/// Bytes a multiprocessor moves in a cycle to and from its shared memory, and its share of the L2's
/// and of the memory's.
const SHARED_RATE: f64 = 128.0;
const L2_RATE: f64 = 24.0;
const MEMORY_RATE: f64 = 10.0;
/// Cycles before the first slice has arrived.
const START: f64 = 1000.0;
/// Columns of a slice.
const SLICE: u64 = 32;

/// Cycles of the multiprocessor that has most to do, and of the memory.
///
/// A slice of a block costs the slowest of: its multiply-adds; writing both operands to shared memory
/// once and reading each as often as warps share it; fetching both operands from L2. Blocks come in
/// waves, of which only the last is not full.
fn cycles(shape: &ProductShape, kernel: &Kernel, on: Machine) -> [f64; 2] {
    let Some(tile) = kernel.tile else { return [f64::INFINITY; 2] };
    let Tile { m, n, .. } = tile;
    let (warps_m, warps_n) = (f64::from(tile.warps()[0]), f64::from(tile.warps()[1]));
    let multiply = f64::from(m * n) * SLICE as f64 / multiply_rate(on.arch, kernel.warpgroups);
    let slice_bytes = f64::from(m + n) * (2 * SLICE) as f64;
    // A warpgroup's products read shared memory once for all of its warps.
    let reads = if kernel.warpgroups {
        slice_bytes
    } else {
        (f64::from(m) * warps_n + f64::from(n) * warps_m) * (2 * SLICE) as f64
    };
    let shared = (slice_bytes + reads) / SHARED_RATE;
    let fetch = slice_bytes / L2_RATE;
    let store = f64::from(m * n) * if shape.residual { 4.0 } else { 2.0 } / L2_RATE;
    let slices = shape.depth.div_ceil(SLICE) as f64;
    let block = slices * multiply.max(shared).max(fetch) + store;

    let multiprocessors = u64::from(on.multiprocessors.max(1));
    let (tall, wide) = (shape.positions.div_ceil(m.into()), shape.filters.div_ceil(n.into()));
    let most = (tall * wide).div_ceil(multiprocessors);
    let at_once = u64::from(tile.blocks(on.arch));
    let busy = most as f64 * block + most.div_ceil(at_once) as f64 * START;

    // The left operand is read once, because the tiles of one strip run next to each other; the right
    // one again for every strip that is under way at another time, where the L2 cannot hold it.
    let right = shape.filters * shape.depth * 2;
    let strips_at_once = (multiprocessors * at_once / wide.max(1)).max(1);
    let rereads = if right > on.l2_bytes / 2 { tall.div_ceil(strips_at_once) } else { 1 };
    let left = shape.positions * shape.depth * 2 / window_reuse(shape);
    let results = shape.positions * shape.filters * if shape.residual { 4 } else { 2 };
    let memory = (left + right * rereads + results) as f64;
    [busy, memory / (MEMORY_RATE * multiprocessors as f64)]
}

/// How often a pixel enters the sums of neighbouring positions.
fn window_reuse(shape: &ProductShape) -> u64 {
    let taps = |w: Window| (w.kernel[0] * w.kernel[1]).div_ceil(w.stride[0] * w.stride[1]);
    shape.window.map_or(1, taps).max(1) as u64
}

/// How candidates are timed.
#[derive(Clone, Copy, Debug, Default)]
pub enum Tuning {
    /// Not: the ranking decides.
    #[default]
    Off,
    /// By the device's own clock.
    On,
    /// By a function of the kernel's name in place of a clock, for tests where there is none.
    Pretended(fn(&str) -> f64),
}

impl Tuning {
    /// On, unless `HISTOKERN_TUNE` is `off` or `0`, as where a device has no clock worth the name.
    pub fn from_env() -> Tuning {
        match std::env::var("HISTOKERN_TUNE").as_deref() {
            Ok("off" | "0") => Tuning::Off,
            _ => Tuning::On,
        }
    }
}

/// What was chosen on a device before.
pub(super) struct Memo {
    file: Option<PathBuf>,
    stored: Stored,
    changed: bool,
}

/// The file of a device.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    gpu: String,
    driver: String,
    /// Kernel by product.
    tiles: BTreeMap<String, String>,
    /// Kernels that gave other bits, by product: none, unless something is wrong.
    dropped: BTreeMap<String, Vec<String>>,
}

impl Memo {
    /// The choices of a GPU with a driver, in the folder of compiled kernels; empty when there are
    /// none or they cannot be read.
    pub fn open(folder: Option<&Path>, gpu: &str, driver: (i32, i32), arch: Arch) -> Memo {
        let driver = format!("{}.{}", driver.0, driver.1);
        let mut hash = Sha256::new();
        for part in [gpu, &driver, &arch.name()] {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        for (name, text) in SOURCES {
            hash.update(name);
            hash.update(text);
        }
        let name: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
        let file = folder.map(|folder| folder.join(format!("tiles-{name}.json")));
        let read = |file: &PathBuf| serde_json::from_slice(&std::fs::read(file).ok()?).ok();
        let stored = file.as_ref().and_then(read).unwrap_or_default();
        let stored = Stored { gpu: gpu.into(), driver, ..stored };
        Memo { file, stored, changed: false }
    }

    /// The kernel chosen for a product, if there still is one.
    pub fn get(&self, shape: &ProductShape, arch: Arch) -> Option<&'static Kernel> {
        let name = self.stored.tiles.get(&shape.to_string())?;
        KERNELS.iter().find(|k| k.name == name && k.entry == shape.entry && k.runs_on(arch))
    }

    /// Keeps a choice and the candidates that gave other bits.
    pub fn set(&mut self, shape: &ProductShape, kernel: &Kernel, dropped: &[&'static Kernel]) {
        self.changed = true;
        self.stored.tiles.insert(shape.to_string(), kernel.name.into());
        if !dropped.is_empty() {
            let names = dropped.iter().map(|k| k.name.to_string()).collect();
            self.stored.dropped.insert(shape.to_string(), names);
        }
    }

    /// Writes the choices, whole or not at all. A folder that cannot be written costs the next run its
    /// time, nothing else.
    pub fn save(&mut self) {
        let Some(file) = self.file.as_ref().filter(|_| self.changed) else { return };
        // Another process may have timed other products meanwhile.
        let newer: Option<Stored> =
            std::fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        for (shape, kernel) in newer.into_iter().flat_map(|stored| stored.tiles) {
            self.stored.tiles.entry(shape).or_insert(kernel);
        }
        let write = || -> Result<()> {
            let io = |e| Error::io(file.display().to_string(), e);
            let folder = file.parent().ok_or_else(|| Error::usage("no folder"))?;
            std::fs::create_dir_all(folder).map_err(io)?;
            let mut new = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
            let text = serde_json::to_vec_pretty(&self.stored);
            new.write_all(&text.map_err(|e| Error::usage(e.to_string()))?).map_err(io)?;
            new.persist(file).map_err(|e| io(e.error))?;
            Ok(())
        };
        if write().is_ok() {
            self.changed = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A100: Machine = Machine { arch: Arch(80), multiprocessors: 108, l2_bytes: 40 << 20 };

    fn shape(entry: &'static str, positions: u64, filters: u64) -> ProductShape {
        let (depth, window, act) = (576, None, Act::Relu);
        ProductShape { entry, positions, filters, depth, window, act, residual: false, pool: false }
    }

    #[test]
    fn tiles_follow_the_shape() {
        let name = |positions, filters| rank(&shape("conv2d", positions, filters), A100)[0].name;
        assert_eq!(name(256 * 56 * 56, 256), "conv2d 128x256");
        assert_eq!(name(256 * 56 * 56, 32), "conv2d 128x32");
        assert_eq!(name(256 * 56 * 56, 64), "conv2d 128x64");
        assert_eq!(name(49, 512), "conv2d 64x64");
    }

    #[test]
    fn only_kernels_of_the_family_that_run_there() {
        let t4 = Machine { arch: Arch(75), multiprocessors: 40, l2_bytes: 4 << 20 };
        let ranked = rank(&shape("gemm", 1 << 20, 1024), t4);
        assert!(ranked.len() >= 4);
        assert!(ranked.iter().all(|k| k.entry == "gemm" && k.runs_on(Arch(75))));
        assert!(rank(&shape("gemm_sm90", 1 << 20, 1024), A100).is_empty());
    }

    #[test]
    fn choices_are_kept_by_gpu_and_driver() {
        let folder = tempfile::tempdir().unwrap();
        let open = |gpu: &str, driver| Memo::open(Some(folder.path()), gpu, driver, Arch(80));
        let (a, b) = (shape("gemm", 100, 64), shape("gemm", 200, 64));
        let mut memo = open("A", (12, 9));
        assert!(memo.get(&a, Arch(80)).is_none());
        memo.set(&a, Kernel::named("gemm 64x64"), &[]);
        // Two processes at once: neither loses what the other found.
        let mut other = open("A", (12, 9));
        other.set(&b, Kernel::named("gemm 128x64"), &[Kernel::named("gemm 128x128")]);
        other.save();
        memo.save();
        let memo = open("A", (12, 9));
        assert_eq!(memo.get(&a, Arch(80)).unwrap().name, "gemm 64x64");
        assert_eq!(memo.get(&b, Arch(80)).unwrap().name, "gemm 128x64");
        assert!(open("B", (12, 9)).get(&a, Arch(80)).is_none());
        assert!(open("A", (13, 0)).get(&a, Arch(80)).is_none());
        let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        std::fs::write(&file, "{").unwrap();
        assert!(open("A", (12, 9)).get(&a, Arch(80)).is_none());
    }
}
