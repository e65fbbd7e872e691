//! The table of kernels: it drives loading, listing, the compile test and the choice of tiles.

use super::compile::{Compiled, Compiler, Request};
use super::params;
use crate::error::{Error, Result};
use crate::graph::Act;
use std::mem::size_of;

/// Architectures every kernel is compiled and checked for, oldest first.
pub const ARCHITECTURES: [Arch; 7] =
    [Arch(75), Arch(80), Arch(86), Arch(89), Arch(90), Arch(100), Arch(120)];

/// A GPU architecture by its compute capability: `Arch(90)` is `sm_90`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch(pub u32);

impl Arch {
    /// The architecture whose machine code runs on a device: the newest in the table of the same
    /// generation that is not newer than the device.
    pub fn of_device(capability: (i32, i32)) -> Option<Arch> {
        let device = u32::try_from(capability.0 * 10 + capability.1).ok()?;
        let fits = |a: &&Arch| a.0 / 10 == device / 10 && a.0 <= device;
        ARCHITECTURES.iter().filter(fits).max().copied()
    }

    /// Reads `sm_90`, `90` or `9.0`.
    pub fn parse(text: &str) -> Result<Arch> {
        let digits = text.trim_start_matches("sm_").replace('.', "");
        let known = ARCHITECTURES.iter().find(|a| a.0.to_string() == digits);
        known.copied().ok_or_else(|| {
            let names = ARCHITECTURES.map(|a| a.name()).join(", ");
            Error::usage(format!("no kernels for architecture {text:?}; there are {names}"))
        })
    }

    /// `sm_90`.
    pub fn name(self) -> String {
        format!("sm_{}", self.0)
    }
}

/// Shape of the block of sums a kernel on tensor cores owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Positions.
    pub m: u32,
    /// Filters.
    pub n: u32,
    warps: [u32; 2],
    stages: u32,
    blocks: u32,
}

impl Tile {
    /// Depth of the ring. Without asynchronous copies a deeper ring would only cost occupancy.
    fn stages(self, arch: Arch) -> u32 {
        if arch.0 >= 80 { self.stages } else { 2 }
    }

    /// Blocks that should fit one multiprocessor at once, which bounds the registers.
    fn blocks(self, arch: Arch) -> u32 {
        if arch.0 >= 80 { self.blocks } else { 1 }
    }

    /// Bytes of dynamic shared memory: the ring, or the staged result where that is larger.
    fn shared_bytes(self, arch: Arch) -> u32 {
        let ring = self.stages(arch) * (self.m + self.n) * 64;
        ring.max(self.m * (self.n * 2 + 16))
    }
}

/// How a result is finished at compile time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    /// As it is.
    Fixed,
    /// An activation.
    Act,
    /// An activation, with or without a residual.
    ActResidual,
}

/// One row of the table.
#[derive(Debug)]
pub struct Kernel {
    /// Unique name.
    pub name: &'static str,
    /// Key in [`super::compile::SOURCES`].
    pub file: &'static str,
    /// Entry point.
    pub entry: &'static str,
    /// Threads of a block.
    pub block: [u32; 3],
    /// Oldest architecture it fits.
    pub since: Arch,
    /// Most registers a thread may take on any architecture.
    pub registers: u32,
    /// Bytes of the argument block.
    pub argument_bytes: usize,
    /// Whether it must use tensor cores.
    pub tensor_cores: bool,
    /// Its tile, for products.
    pub tile: Option<Tile>,
    /// Whether it uses the warpgroup products of sm_90a, which run nowhere else.
    pub warpgroups: bool,
    gated: Option<bool>,
    finish: Finish,
}

const fn plain(
    name: &'static str,
    file: &'static str,
    block: [u32; 3],
    registers: u32,
    argument_bytes: usize,
) -> Kernel {
    Kernel {
        name,
        file,
        entry: name,
        block,
        since: Arch(75),
        registers,
        argument_bytes,
        tensor_cores: false,
        tile: None,
        warpgroups: false,
        gated: None,
        finish: Finish::Fixed,
    }
}

const fn product(name: &'static str, registers: u32, conv: bool, tile: Tile) -> Kernel {
    let (file, entry, argument_bytes) = if conv {
        ("conv2d.cu", "conv2d", size_of::<params::Conv2d>())
    } else {
        ("gemm.cu", "gemm", size_of::<params::Gemm>())
    };
    let block = [32 * tile.warps[0] * tile.warps[1], 1, 1];
    Kernel {
        entry,
        since: if tile.m * tile.n > 128 * 128 { Arch(80) } else { Arch(75) },
        tensor_cores: true,
        tile: Some(tile),
        finish: Finish::ActResidual,
        ..plain(name, file, block, registers, argument_bytes)
    }
}

const fn wide(name: &'static str, conv: bool, tile: Tile) -> Kernel {
    let (file, entry, argument_bytes) = if conv {
        ("sm90/conv2d.cu", "conv2d_sm90", size_of::<params::WideConv2d>())
    } else {
        ("sm90/gemm.cu", "gemm_sm90", size_of::<params::WideGemm>())
    };
    Kernel {
        file,
        entry,
        block: [384, 1, 1],
        since: Arch(90),
        registers: 168,
        argument_bytes,
        warpgroups: true,
        ..product(name, 168, conv, tile)
    }
}

const fn score(name: &'static str, registers: u32, gated: bool) -> Kernel {
    let bytes = size_of::<params::Score>();
    Kernel {
        entry: "attention_score",
        tensor_cores: true,
        gated: Some(gated),
        ..plain(name, "score.cu", [128, 1, 1], registers, bytes)
    }
}

const fn batch(name: &'static str, block: [u32; 3], finish: Finish) -> Kernel {
    Kernel { finish, ..plain(name, "norm.cu", block, 64, size_of::<params::BatchNorm>()) }
}

const fn tile(m: u32, n: u32, warps: [u32; 2], stages: u32, blocks: u32) -> Tile {
    Tile { m, n, warps, stages, blocks }
}

const WIDE: Tile = tile(128, 256, [2, 4], 3, 1);
const LARGE: Tile = tile(128, 128, [2, 4], 3, 2);
const TALL: Tile = tile(128, 64, [4, 2], 4, 2);
const SMALL: Tile = tile(64, 64, [2, 2], 4, 3);
const THIN: Tile = tile(128, 32, [4, 1], 4, 3);
const WIDE_64: Tile = tile(128, 64, [8, 1], 4, 1);
const WIDE_128: Tile = tile(128, 128, [8, 1], 4, 1);
const WIDE_256: Tile = tile(128, 256, [8, 1], 3, 1);

/// Slices in the ring of the attention score kernel.
const SCORE_STAGES: u32 = 3;

/// Every kernel.
pub static KERNELS: &[Kernel] = &[
    product("gemm 128x256", 255, false, WIDE),
    product("gemm 128x128", 160, false, LARGE),
    product("gemm 128x64", 128, false, TALL),
    product("gemm 64x64", 168, false, SMALL),
    product("gemm 128x32", 168, false, THIN),
    product("conv2d 128x256", 255, true, WIDE),
    product("conv2d 128x128", 160, true, LARGE),
    product("conv2d 128x64", 128, true, TALL),
    product("conv2d 64x64", 168, true, SMALL),
    product("conv2d 128x32", 168, true, THIN),
    wide("gemm wgmma 128x256", false, WIDE_256),
    wide("gemm wgmma 128x128", false, WIDE_128),
    wide("gemm wgmma 128x64", false, WIDE_64),
    wide("conv2d wgmma 128x256", true, WIDE_256),
    wide("conv2d wgmma 128x128", true, WIDE_128),
    wide("conv2d wgmma 128x64", true, WIDE_64),
    score("attention_score plain", 168, false),
    score("attention_score gated", 168, true),
    plain("attention_part", "bag.cu", [128, 1, 1], 64, size_of::<params::Attention>()),
    plain("attention_join", "bag.cu", [128, 1, 1], 64, size_of::<params::Attention>()),
    plain("row_dot", "bag.cu", [32, 1, 1], 72, size_of::<params::RowDot>()),
    batch("batch_moments", [32, 8, 1], Finish::Act),
    batch("batch_join", [256, 1, 1], Finish::Act),
    batch("batch_apply", [256, 1, 1], Finish::Act),
    plain("max_pool", "pool.cu", [256, 1, 1], 56, size_of::<params::Pool>()),
    plain("average_pool", "pool.cu", [256, 1, 1], 56, size_of::<params::Pool>()),
    plain("adaptive_pool", "pool.cu", [256, 1, 1], 56, size_of::<params::Pool>()),
    plain("normalize", "preprocess.cu", [256, 1, 1], 40, size_of::<params::Normalize>()),
    plain("import", "layout.cu", [256, 1, 1], 40, size_of::<params::Copy>()),
    plain("copy", "layout.cu", [256, 1, 1], 40, size_of::<params::Copy>()),
    plain("flatten", "layout.cu", [32, 8, 1], 40, size_of::<params::Copy>()),
];

/// A kernel with its compile-time choices made.
#[derive(Clone, Copy, Debug)]
pub struct Instance {
    /// The row of the table.
    pub kernel: &'static Kernel,
    /// Applied before the result is stored.
    pub act: Act,
    /// Whether a residual is added.
    pub residual: bool,
}

impl Kernel {
    /// The row with a name.
    ///
    /// # Panics
    /// When there is none: names are constants of this module's callers.
    pub fn named(name: &str) -> &'static Kernel {
        KERNELS.iter().find(|k| k.name == name).unwrap_or_else(|| panic!("no kernel {name}"))
    }

    /// Whether its machine code can be made for an architecture.
    pub fn runs_on(&self, arch: Arch) -> bool {
        self.since <= arch && (!self.warpgroups || arch == Arch(90))
    }

    /// As it is, without activation or residual.
    pub fn instance(&'static self) -> Instance {
        Instance { kernel: self, act: Act::None, residual: false }
    }

    /// Every combination of compile-time choices.
    pub fn instances(&'static self) -> Vec<Instance> {
        let acts: &[Act] = match self.finish {
            Finish::Fixed => &[Act::None],
            _ => &[Act::None, Act::Relu, Act::Tanh, Act::Sigmoid],
        };
        let residuals: &[bool] =
            if self.finish == Finish::ActResidual { &[false, true] } else { &[false] };
        let with = |&act: &Act| {
            residuals.iter().map(move |&r| Instance { kernel: self, act, residual: r })
        };
        acts.iter().flat_map(with).collect()
    }

    /// Bytes of dynamic shared memory of a block; `branches` counts only for attention scores.
    pub fn shared_bytes(&self, arch: Arch, branches: u32) -> u32 {
        match (self.tile, self.gated) {
            (Some(tile), _) if self.warpgroups => {
                let Tile { m, n, stages, .. } = tile;
                stages * (m + n) * 128 + m * (n * 2 + 16) + stages * 16
            }
            (Some(tile), _) => tile.shared_bytes(arch),
            (None, Some(_)) => SCORE_STAGES * 128 * 64 + 64 * 4 * branches,
            (None, None) => 0,
        }
    }
}

impl Instance {
    /// What has to be compiled for it.
    pub fn request(&self, arch: Arch) -> Request {
        let mut defines = Vec::new();
        let mut define = |name: &str, value: u32| defines.push(format!("-DCFG_{name}={value}"));
        if let Some(tile) = self.kernel.tile.filter(|_| self.kernel.warpgroups) {
            define("TILE_N", tile.n);
            define("STAGES", tile.stages);
        } else if let Some(tile) = self.kernel.tile {
            define("TILE_M", tile.m);
            define("TILE_N", tile.n);
            define("WARPS_M", tile.warps[0]);
            define("WARPS_N", tile.warps[1]);
            define("STAGES", tile.stages(arch));
            define("BLOCKS", tile.blocks(arch));
        }
        if let Some(gated) = self.kernel.gated {
            define("GATED", gated.into());
            define("STAGES", SCORE_STAGES);
        }
        if self.kernel.finish != Finish::Fixed {
            let act = match self.act {
                Act::None => 0,
                Act::Relu => 1,
                Act::Tanh => 2,
                Act::Sigmoid => 3,
            };
            define("ACT", act);
        }
        if self.kernel.finish == Finish::ActResidual {
            define("RESIDUAL", self.residual.into());
        }
        let feature = if self.kernel.warpgroups { "a" } else { "" };
        Request { file: self.kernel.file.into(), arch: arch.name() + feature, defines }
    }

    /// Compiles it or takes it from the cache.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub fn compile(&self, compiler: &Compiler, arch: Arch) -> Result<Compiled> {
        compiler.compile(&self.request(arch))
    }
}

/// The tile for `filters` outputs at `positions` positions on a device with `multiprocessors`.
///
/// The tile that needs the fewest cycles if every block ran at the same rate: waves of blocks times
/// the sums of a block, where a block that is too small to reuse its operands is charged for the
/// slices it has to fetch. The choice never changes a bit of the result.
pub fn choose_tile(
    product: &str,
    arch: Arch,
    positions: u64,
    filters: u64,
    multiprocessors: u32,
) -> &'static Kernel {
    let cost = |kernel: &&'static Kernel| {
        let tile = kernel.tile.unwrap_or(SMALL);
        let (m, n) = (u64::from(tile.m), u64::from(tile.n));
        let blocks = positions.div_ceil(m) * filters.div_ceil(n);
        let at_once = u64::from(tile.blocks(arch) * multiprocessors.max(1));
        let waves = blocks.div_ceil(at_once) * u64::from(tile.blocks(arch));
        // A slice of the tile costs m n products and m + n rows of copies; 64 balances the two at
        // the ratio of tensor-core to shared-memory rates common to these architectures.
        waves * (m * n + 64 * (m + n))
    };
    let fits = |k: &&Kernel| k.entry == product && k.tile.is_some() && k.runs_on(arch);
    KERNELS.iter().filter(fits).min_by_key(cost).unwrap_or_else(|| panic!("no product {product}"))
}

/// The kernel of a product with a given tile.
///
/// # Errors
/// [`crate::Kind::Usage`] when there is none.
pub fn tiled(product: &str, tile: Tile) -> Result<&'static Kernel> {
    let found = KERNELS.iter().find(|k| k.entry == product && k.tile == Some(tile));
    found.ok_or_else(|| Error::usage(format!("no {product} with tile {tile:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_files_exist() {
        for (i, kernel) in KERNELS.iter().enumerate() {
            assert!(KERNELS[..i].iter().all(|k| k.name != kernel.name), "{}", kernel.name);
            let text =
                super::super::compile::SOURCES.iter().find(|s| s.0 == kernel.file).unwrap().1;
            assert!(text.contains(&format!(" {}(PARAM", kernel.entry)), "{}", kernel.name);
        }
    }

    #[test]
    fn a_device_runs_code_of_its_own_generation() {
        assert_eq!(Arch::of_device((9, 0)), Some(Arch(90)));
        assert_eq!(Arch::of_device((8, 7)), Some(Arch(86)));
        assert_eq!(Arch::of_device((10, 3)), Some(Arch(100)));
        assert_eq!(Arch::of_device((12, 1)), Some(Arch(120)));
        assert_eq!(Arch::of_device((7, 0)), None);
        assert_eq!(Arch::of_device((11, 0)), None);
        assert_eq!(Arch::parse("8.6").unwrap(), Arch(86));
        assert!(Arch::parse("sm_70").unwrap_err().to_string().contains("sm_75"));
    }

    #[test]
    fn shared_memory_fits_every_architecture() {
        // Bytes a block may have: CUDA C++ Programming Guide, compute capabilities.
        let limit = |arch: Arch| match arch.0 {
            75 => 64 << 10,
            80 => 163 << 10,
            86 | 89 | 120 => 99 << 10,
            _ => 227 << 10,
        };
        for kernel in KERNELS {
            for arch in ARCHITECTURES.into_iter().filter(|&a| kernel.runs_on(a)) {
                let bytes = kernel.shared_bytes(arch, 20);
                assert!(bytes <= limit(arch), "{} {}: {bytes}", kernel.name, arch.name());
            }
        }
    }

    #[test]
    fn tiles_follow_the_shape() {
        let name =
            |positions, filters| choose_tile("conv2d", Arch(80), positions, filters, 108).name;
        assert_eq!(name(256 * 56 * 56, 256), "conv2d 128x256");
        assert_eq!(name(256 * 56 * 56, 32), "conv2d 128x32");
        assert_eq!(name(256 * 56 * 56, 64), "conv2d 128x64");
        assert_eq!(name(49, 512), "conv2d 64x64");
        assert_ne!(choose_tile("gemm", Arch(75), 1 << 20, 1024, 40).name, "gemm 128x256");
    }
}
