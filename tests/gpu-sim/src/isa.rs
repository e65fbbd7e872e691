//! What a parsed PTX program consists of: types, registers, operands, statements and kernels.
//! Names follow the PTX ISA manual; nothing here executes.

use std::fmt;

/// A PTX fundamental type (`.u32`, `.f16x2`, ...).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Type {
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    B8,
    B16,
    B32,
    B64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
    Pred,
}

impl Type {
    /// The type a modifier names (without its dot), if it is one.
    pub fn parse(word: &str) -> Option<Type> {
        use Type::*;
        Some(match word {
            "u8" => U8,
            "u16" => U16,
            "u32" => U32,
            "u64" => U64,
            "s8" => S8,
            "s16" => S16,
            "s32" => S32,
            "s64" => S64,
            "b8" => B8,
            "b16" => B16,
            "b32" => B32,
            "b64" => B64,
            "f16" => F16,
            "f16x2" => F16x2,
            "bf16" => Bf16,
            "bf16x2" => Bf16x2,
            "f32" => F32,
            "f64" => F64,
            "pred" => Pred,
            _ => return None,
        })
    }

    /// Bytes in memory.
    pub fn bytes(self) -> usize {
        use Type::*;
        match self {
            U8 | S8 | B8 | Pred => 1,
            U16 | S16 | B16 | F16 | Bf16 => 2,
            U32 | S32 | B32 | F32 | F16x2 | Bf16x2 => 4,
            U64 | S64 | B64 | F64 => 8,
        }
    }

    /// Whether values are sign-extended when widened.
    pub fn is_signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }

    /// Whether values are floating point.
    pub fn is_float(self) -> bool {
        use Type::*;
        matches!(self, F16 | F16x2 | Bf16 | Bf16x2 | F32 | F64)
    }
}

/// Which register file a register lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// One bit a lane.
    Pred,
    /// Up to 32 bits a lane.
    Narrow,
    /// 64 bits a lane.
    Wide,
}

/// A virtual register of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg {
    /// Register file.
    pub class: Class,
    /// Index in its file.
    pub index: u32,
}

/// Special registers a kernel can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Laneid,
    Warpid,
    LanemaskEq,
    LanemaskLt,
    LanemaskLe,
    LanemaskGt,
    LanemaskGe,
    Clusterid(u8),
    Nclusterid(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
    Smid,
    Nsmid,
    DynamicSmemSize,
    TotalSmemSize,
    Clock,
}

impl Special {
    /// Slots in a warp's table of special values.
    pub const COUNT: usize = 40;

    /// The special register of that name.
    pub fn parse(word: &str) -> Option<Special> {
        use Special::*;
        let axis = |s: &str| ["x", "y", "z"].iter().position(|a| *a == s).map(|a| a as u8);
        if let Some((name, dimension)) = word.split_once('.') {
            let axis = axis(dimension)?;
            return Some(match name {
                "%tid" => Tid(axis),
                "%ntid" => Ntid(axis),
                "%ctaid" => Ctaid(axis),
                "%nctaid" => Nctaid(axis),
                "%clusterid" => Clusterid(axis),
                "%nclusterid" => Nclusterid(axis),
                "%cluster_ctaid" => ClusterCtaid(axis),
                "%cluster_nctaid" => ClusterNctaid(axis),
                _ => return None,
            });
        }
        Some(match word {
            "%laneid" => Laneid,
            "%warpid" => Warpid,
            "%lanemask_eq" => LanemaskEq,
            "%lanemask_lt" => LanemaskLt,
            "%lanemask_le" => LanemaskLe,
            "%lanemask_gt" => LanemaskGt,
            "%lanemask_ge" => LanemaskGe,
            "%cluster_ctarank" => ClusterCtarank,
            "%cluster_nctarank" => ClusterNctarank,
            "%smid" => Smid,
            "%nsmid" => Nsmid,
            "%dynamic_smem_size" => DynamicSmemSize,
            "%total_smem_size" => TotalSmemSize,
            "%clock" | "%clock64" | "%globaltimer" => Clock,
            _ => return None,
        })
    }

    /// Slot in a warp's table of special values.
    pub fn slot(self) -> usize {
        use Special::*;
        match self {
            Tid(a) => a as usize,
            Ntid(a) => 3 + a as usize,
            Ctaid(a) => 6 + a as usize,
            Nctaid(a) => 9 + a as usize,
            Clusterid(a) => 12 + a as usize,
            Nclusterid(a) => 15 + a as usize,
            ClusterCtaid(a) => 18 + a as usize,
            ClusterNctaid(a) => 21 + a as usize,
            Laneid => 24,
            Warpid => 25,
            LanemaskEq => 26,
            LanemaskLt => 27,
            LanemaskLe => 28,
            LanemaskGt => 29,
            LanemaskGe => 30,
            ClusterCtarank => 31,
            ClusterNctarank => 32,
            Smid => 33,
            Nsmid => 34,
            DynamicSmemSize => 35,
            TotalSmemSize => 36,
            Clock => 37,
        }
    }
}

/// A value a lane can read: a register, an immediate or a special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A register.
    Reg(Reg),
    /// The bits of a literal, or a resolved symbol.
    Imm(u64),
    /// A special register.
    Special(Special),
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A readable value.
    Value(Source),
    /// `!%p`.
    Not(Reg),
    /// `%p|%q`; `_` for either.
    Pair(Option<Reg>, Option<Reg>),
    /// `[base+offset]`, or `[base, {coordinates}]` for tensor instructions.
    Address {
        /// Base register or symbol.
        base: Source,
        /// Constant byte offset.
        offset: i64,
        /// Further items inside the brackets.
        items: Vec<Operand>,
    },
    /// `{a, b, ..}`.
    Vector(Vec<Operand>),
    /// `_`: the result is not wanted.
    Sink,
    /// A name that is neither register nor variable: a branch target.
    Label(String),
}

/// The predicate in front of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Predicate register.
    pub reg: Reg,
    /// `@!%p`.
    pub negate: bool,
}

/// One instruction as written.
#[derive(Clone, Debug)]
pub struct Statement {
    /// First part of the mnemonic: `ld`, `mma`.
    pub opcode: String,
    /// The other parts, in order: `["global", "v4", "u32"]`.
    pub modifiers: Vec<String>,
    /// Operands, the destination first.
    pub operands: Vec<Operand>,
    /// Guard predicate.
    pub guard: Option<Guard>,
    /// Where it stands.
    pub place: Place,
}

/// Where an instruction stands: in the PTX text and, with `-lineinfo`, in the CUDA source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// `.loc` file number and line, 0 when absent.
    pub source: (u32, u32),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX line {}", self.line)?;
        match self.source {
            (_, 0) => Ok(()),
            (file, line) => write!(f, " (source file {file} line {line})"),
        }
    }
}

/// A kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Byte offset in the parameter block.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// A kernel as written.
#[derive(Clone, Debug, Default)]
pub struct KernelText {
    /// Entry name.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// Instructions in order.
    pub statements: Vec<Statement>,
    /// Label name and the index of the statement it stands before.
    pub labels: Vec<(String, usize)>,
    /// `.branchtargets` lists by label.
    pub targets: Vec<(String, Vec<String>)>,
    /// Registers in each file: predicates, narrow, wide.
    pub registers: [u32; 3],
    /// Bytes of statically declared shared memory.
    pub static_shared: usize,
    /// Bytes of local memory a thread.
    pub local: usize,
    /// `.maxntid` or `.reqntid`, as a thread count.
    pub max_threads: Option<u32>,
    /// `.minnctapersm`.
    pub min_blocks: Option<u32>,
    /// `.reqnctapercluster`.
    pub cluster: Option<[u32; 3]>,
}

/// A module-scope variable in global or constant memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Name.
    pub name: String,
    /// Initial bytes (zeros when none were given).
    pub bytes: Vec<u8>,
    /// Device address, assigned by the loader.
    pub address: u64,
}

/// A parsed PTX module.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// `.version`, for example `(8, 8)`.
    pub version: (u32, u32),
    /// `.target`, for example `sm_90a`.
    pub target: String,
    /// Kernels in order.
    pub kernels: Vec<KernelText>,
    /// `.global` and `.const` variables.
    pub variables: Vec<Variable>,
}
