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

    /// Warps along positions and filters.
    pub(super) fn warps(self) -> [u32; 2] {
        self.warps
    }

    /// Blocks that should fit one multiprocessor at once, which bounds the registers.
    pub(super) fn blocks(self, arch: Arch) -> u32 {
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
    /// As `ActResidual`, or ReLU or none and the largest of each 2 x 2 square.
    ActResidualPool,
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
    /// Bytes of dynamic shared memory where they are a matter of nothing else.
    shared: u32,
    gated: Option<bool>,
    /// What it has room for, for self-attention.
    pub head: Option<Head>,
    finish: Finish,
}

/// What a self-attention kernel has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Most channels of a head.
    pub d: u32,
    /// Most keys of a row, or the keys of one block when they pass by in blocks.
    pub keys: u32,
    /// Whether keys pass by in blocks, so that there may be any number.
    pub online: bool,
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
        shared: 0,
        gated: None,
        head: None,
        finish: Finish::Fixed,
    }
}

/// What a product on tensor cores computes.
#[derive(Clone, Copy)]
enum Product {
    Gemm,
    Conv2d,
    Gated,
    Preact,
    Transposed,
}

const fn product(name: &'static str, registers: u32, what: Product, tile: Tile) -> Kernel {
    let residual = Finish::ActResidual;
    let (file, entry, argument_bytes, finish) = match what {
        Product::Gemm => ("gemm.cu", "gemm", size_of::<params::Gemm>(), residual),
        Product::Conv2d => {
            ("conv2d.cu", "conv2d", size_of::<params::Conv2d>(), Finish::ActResidualPool)
        }
        Product::Gated => ("gated.cu", "gated_linear", size_of::<params::Gemm>(), Finish::Act),
        Product::Preact => ("preact.cu", "preact_conv1x1", size_of::<params::Preact>(), residual),
        Product::Transposed => {
            ("transposed.cu", "conv_transpose", size_of::<params::Transposed>(), residual)
        }
    };
    let block = [32 * tile.warps[0] * tile.warps[1], 1, 1];
    Kernel {
        entry,
        since: if tile.m * tile.n > 128 * 128 { Arch(80) } else { Arch(75) },
        tensor_cores: true,
        tile: Some(tile),
        finish,
        ..plain(name, file, block, registers, argument_bytes)
    }
}

const fn attention(name: &'static str, registers: u32, d: u32, keys: u32, online: bool) -> Kernel {
    let (file, entry) = if online {
        ("attention_online.cu", "attention_online")
    } else {
        ("attention.cu", "attention_whole")
    };
    Kernel {
        entry,
        tensor_cores: true,
        head: Some(Head { d, keys, online }),
        ..plain(name, file, [128, 1, 1], registers, size_of::<params::SelfAttention>())
    }
}

/// On warpgroups: two that multiply, one that loads and moves, and one that gathers where copies cannot.
const fn wide(
    name: &'static str,
    [file, entry]: [&'static str; 2],
    bytes: usize,
    tile: Tile,
) -> Kernel {
    Kernel {
        file,
        entry,
        block: [384, 1, 1],
        since: Arch(90),
        argument_bytes: bytes,
        warpgroups: true,
        finish: Finish::ActResidual,
        ..product(name, 168, Product::Gemm, tile)
    }
}

const fn wide_gemm(name: &'static str, tile: Tile) -> Kernel {
    wide(name, ["sm90/gemm.cu", "gemm_sm90"], size_of::<params::WideGemm>(), tile)
}

const fn wide_conv2d(name: &'static str, tile: Tile) -> Kernel {
    wide(name, ["sm90/conv2d.cu", "conv2d_sm90"], size_of::<params::WideConv2d>(), tile)
}

const fn wide_gather(name: &'static str, tile: Tile) -> Kernel {
    let source = ["sm90/gather.cu", "gather_sm90"];
    let bytes = size_of::<params::WideGather>();
    Kernel { block: [512, 1, 1], registers: 128, ..wide(name, source, bytes, tile) }
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

/// Two first steps in one, on tensor cores.
const fn stem(
    name: &'static str,
    file: &'static str,
    registers: u32,
    argument_bytes: usize,
    shared: u32,
) -> Kernel {
    let plain = plain(name, file, [256, 1, 1], registers, argument_bytes);
    Kernel { tensor_cores: true, shared, ..plain }
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
const WIDE_64: Tile = tile(128, 64, [8, 1], 8, 1);
const WIDE_128: Tile = tile(128, 128, [8, 1], 5, 1);
const WIDE_256: Tile = tile(128, 256, [8, 1], 3, 1);

/// Slices in the ring of the attention score kernel.
const SCORE_STAGES: u32 = 3;

/// Every kernel.
pub static KERNELS: &[Kernel] = &[
    product("gemm 128x256", 255, Product::Gemm, WIDE),
    product("gemm 128x128", 160, Product::Gemm, LARGE),
    product("gemm 128x64", 128, Product::Gemm, TALL),
    product("gemm 64x64", 168, Product::Gemm, SMALL),
    product("gemm 128x32", 168, Product::Gemm, THIN),
    product("conv2d 128x256", 255, Product::Conv2d, WIDE),
    product("conv2d 128x128", 160, Product::Conv2d, LARGE),
    product("conv2d 128x64", 128, Product::Conv2d, TALL),
    product("conv2d 64x64", 168, Product::Conv2d, SMALL),
    product("conv2d 128x32", 168, Product::Conv2d, THIN),
    product("gated_linear 128x256", 255, Product::Gated, WIDE),
    product("gated_linear 128x128", 160, Product::Gated, LARGE),
    product("gated_linear 128x64", 128, Product::Gated, TALL),
    product("gated_linear 64x64", 168, Product::Gated, SMALL),
    product("gated_linear 128x32", 168, Product::Gated, THIN),
    product("preact_conv1x1 128x256", 255, Product::Preact, WIDE),
    product("preact_conv1x1 128x128", 160, Product::Preact, LARGE),
    product("preact_conv1x1 128x64", 128, Product::Preact, TALL),
    product("preact_conv1x1 64x64", 168, Product::Preact, SMALL),
    product("preact_conv1x1 128x32", 168, Product::Preact, THIN),
    product("conv_transpose 128x256", 255, Product::Transposed, WIDE),
    product("conv_transpose 128x128", 160, Product::Transposed, LARGE),
    product("conv_transpose 128x64", 128, Product::Transposed, TALL),
    product("conv_transpose 64x64", 168, Product::Transposed, SMALL),
    product("conv_transpose 128x32", 168, Product::Transposed, THIN),
    wide_gemm("gemm wgmma 128x256", WIDE_256),
    wide_gemm("gemm wgmma 128x128", WIDE_128),
    wide_gemm("gemm wgmma 128x64", WIDE_64),
    wide_conv2d("conv2d wgmma 128x256", WIDE_256),
    wide_conv2d("conv2d wgmma 128x128", WIDE_128),
    wide_conv2d("conv2d wgmma 128x64", WIDE_64),
    wide_gather("gather wgmma 128x128", WIDE_128),
    wide_gather("gather wgmma 128x64", WIDE_64),
    attention("attention 32 of 208", 255, 32, 208, false),
    attention("attention 32 of 272", 255, 32, 272, false),
    attention("attention 48 of 208", 255, 48, 208, false),
    attention("attention 48 of 272", 255, 48, 272, false),
    attention("attention 64 of 208", 255, 64, 208, false),
    attention("attention 64 of 272", 255, 64, 272, false),
    attention("attention 80 of 208", 255, 80, 208, false),
    attention("attention 80 of 272", 255, 80, 272, false),
    attention("attention 128 of 208", 255, 128, 208, false),
    attention("attention_online 32 by 64", 255, 32, 64, true),
    attention("attention_online 48 by 64", 255, 48, 64, true),
    attention("attention_online 64 by 64", 255, 64, 64, true),
    attention("attention_online 80 by 64", 255, 80, 64, true),
    attention("attention_online 128 by 48", 255, 128, 48, true),
    score("attention_score plain", 168, false),
    score("attention_score gated", 168, true),
    plain("attention_part", "bag.cu", [128, 1, 1], 64, size_of::<params::Attention>()),
    plain("attention_join", "bag.cu", [128, 1, 1], 64, size_of::<params::Attention>()),
    plain("row_dot", "bag.cu", [32, 1, 1], 72, size_of::<params::RowDot>()),
    plain("reduce_part", "bag_reduce.cu", [32, 8, 1], 64, size_of::<params::Reduce>()),
    plain("reduce_join", "bag_reduce.cu", [256, 1, 1], 64, size_of::<params::Reduce>()),
    plain("percentile", "bag_reduce.cu", [32, 8, 1], 64, size_of::<params::Reduce>()),
    batch("batch_moments", [32, 8, 1], Finish::Act),
    batch("batch_join", [256, 1, 1], Finish::Act),
    batch("batch_apply", [256, 1, 1], Finish::Act),
    stem("stem", "stem.cu", 136, size_of::<params::Stem>(), 36_864),
    stem("stem_pair", "stem_pair.cu", 128, size_of::<params::StemPair>(), 60_480),
    plain("max_pool", "pool.cu", [256, 1, 1], 56, size_of::<params::Pool>()),
    plain("average_pool", "pool.cu", [256, 1, 1], 56, size_of::<params::Pool>()),
    plain("adaptive_pool", "pool.cu", [256, 1, 1], 56, size_of::<params::Pool>()),
    plain("normalize", "preprocess.cu", [256, 1, 1], 40, size_of::<params::Normalize>()),
    plain("layer_norm", "token_norm.cu", [32, 8, 1], 64, size_of::<params::TokenNorm>()),
    plain("rms_norm", "token_norm.cu", [32, 8, 1], 64, size_of::<params::TokenNorm>()),
    plain("embed", "tokens.cu", [256, 1, 1], 56, size_of::<params::Embed>()),
    plain("token_mean", "tokens.cu", [256, 1, 1], 56, size_of::<params::TokenMean>()),
    plain("softmax", "tokens.cu", [32, 8, 1], 40, size_of::<params::Softmax>()),
    Kernel {
        finish: Finish::Act,
        ..plain("affine_map", "affine.cu", [256, 1, 1], 64, size_of::<params::Affine>())
    },
    plain("upsample", "upsample.cu", [256, 1, 1], 64, size_of::<params::Upsample>()),
    plain("patches", "preprocess.cu", [256, 1, 1], 40, size_of::<params::Patches>()),
    plain("resize_rows", "resize.cu", [256, 1, 1], 48, size_of::<params::Resize>()),
    plain("resize_columns", "resize.cu", [256, 1, 1], 48, size_of::<params::Resize>()),
    plain("recolour", "recolour.cu", [256, 1, 1], 40, size_of::<params::Recolour>()),
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
    /// Whether the largest of each 2 x 2 square is all that is stored.
    pub pool: bool,
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
        Instance { kernel: self, act: Act::None, residual: false, pool: false }
    }

    /// Every combination of compile-time choices.
    pub fn instances(&'static self) -> Vec<Instance> {
        let acts: &[Act] = match self.finish {
            Finish::Fixed => &[Act::None],
            _ => &[Act::None, Act::Relu, Act::Tanh, Act::Sigmoid, Act::Silu, Act::Gelu],
        };
        let ends: &[(bool, bool)] = match self.finish {
            Finish::Fixed | Finish::Act => &[(false, false)],
            Finish::ActResidual => &[(false, false), (true, false)],
            Finish::ActResidualPool => &[(false, true), (false, false), (true, false)],
        };
        let with = |&act: &Act| {
            let instance = move |&(residual, pool)| Instance { kernel: self, act, residual, pool };
            ends.iter().map(instance)
        };
        let few = |i: &Instance| !i.pool || matches!(i.act, Act::None | Act::Relu);
        acts.iter().flat_map(with).filter(few).collect()
    }

    /// Bytes of dynamic shared memory of a block. `count` is that of the branches of an attention
    /// score, of the keys of a self-attention, and without meaning elsewhere.
    pub fn shared_bytes(&self, arch: Arch, count: u32) -> u32 {
        if let Some(head) = self.head {
            let rows = if head.online { 2 * head.keys } else { count.next_multiple_of(16) };
            return 2 * rows * (2 * head.d + 16);
        }
        match (self.tile, self.gated) {
            (Some(tile), _) if self.warpgroups => {
                // Stages, a staged tile for each team, barriers; see `sm90/ring.cuh`.
                let Tile { m, n, stages, .. } = tile;
                let teams = if n > 128 { 1 } else { 2 };
                stages * (m + n) * 128 + teams * m * n * 2 + stages * 16 + teams * 24
            }
            (Some(tile), _) => tile.shared_bytes(arch),
            (None, Some(_)) => SCORE_STAGES * 128 * 64 + 64 * 4 * count,
            (None, None) => self.shared,
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
        if let Some(head) = self.kernel.head {
            define("D", head.d);
            define("KEYS", head.keys);
        }
        if self.kernel.finish != Finish::Fixed {
            let act = match self.act {
                Act::None => 0,
                Act::Relu => 1,
                Act::Tanh => 2,
                Act::Sigmoid => 3,
                Act::Gelu => 4,
                Act::Silu => 5,
            };
            define("ACT", act);
        }
        if matches!(self.kernel.finish, Finish::ActResidual | Finish::ActResidualPool) {
            define("RESIDUAL", self.residual.into());
        }
        if self.kernel.finish == Finish::ActResidualPool {
            define("POOL", self.pool.into());
        }
        let feature = if self.kernel.warpgroups { "a" } else { "" };
        Request { file: self.kernel.file.into(), arch: arch.name() + feature, defines }
    }

    /// The oldest architecture with the same launch bounds: what its PTX says runs on `arch` and on
    /// every newer device, except that warpgroup products run on their own architecture alone.
    pub fn oldest_alike(&self, arch: Arch) -> Arch {
        let oldest = if arch.0 >= 80 { Arch(80) } else { Arch(75) };
        if self.kernel.warpgroups { arch } else { oldest.max(self.kernel.since) }
    }

    /// Compiles it or takes it from the archive or the cache.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub fn compile(&self, compiler: &Compiler, arch: Arch) -> Result<Compiled> {
        compiler.compile(&self.request(arch))
    }
}

/// The self-attention kernel for heads of `d` channels over `keys` keys, and the bytes of shared
/// memory it takes: with whole heads in shared memory where they fit `shared_limit`, else in blocks.
/// Never a matter of the number of rows.
///
/// # Errors
/// [`crate::Kind::Unsupported`] when the heads are too wide.
pub fn choose_attention(
    arch: Arch,
    d: usize,
    keys: usize,
    shared_limit: u32,
) -> Result<&'static Kernel> {
    let fits = |k: &&Kernel| {
        k.head.is_some_and(|head| {
            let shared = || k.shared_bytes(arch, keys as u32);
            let whole = || keys <= head.keys as usize && shared() <= shared_limit;
            d <= head.d as usize && (head.online || whole())
        })
    };
    // Rows stand in the order of preference: whole heads first, narrow before wide.
    KERNELS.iter().find(fits).ok_or_else(|| {
        let most = KERNELS.iter().filter_map(|k| Some(k.head?.d)).max().unwrap_or_default();
        Error::unsupported(format!("attention with heads of {d} channels: at most {most}"))
    })
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
    fn attention_follows_the_shape_and_the_shared_memory() {
        let name = |d, keys, shared_limit| {
            choose_attention(Arch(80), d, keys, shared_limit).map(|k| k.name)
        };
        let large = 163 << 10;
        assert_eq!(name(64, 197, large).unwrap(), "attention 64 of 208");
        assert_eq!(name(64, 261, large).unwrap(), "attention 64 of 272");
        assert_eq!(name(5, 1, large).unwrap(), "attention 32 of 208");
        assert_eq!(name(72, 300, large).unwrap(), "attention_online 80 by 64");
        // Whole heads do not fit there.
        assert_eq!(name(80, 261, 64 << 10).unwrap(), "attention_online 80 by 64");
        assert!(name(129, 5, large).unwrap_err().to_string().contains("at most 128"));
    }
}
