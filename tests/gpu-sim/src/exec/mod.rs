//! Executable instructions. An instruction that only touches registers is a closure over
//! [`Registers`]; one that touches memory is a closure over [`Lanes`]; the rest (branches,
//! barriers) is data for the scheduler in `warp.rs`.

pub mod async_copy;
pub mod atomic;
pub mod budget;
pub mod compare;
pub mod compute;
pub mod control;
pub mod convert;
pub mod float;
pub mod integer;
pub mod matrix;
pub mod mbarrier;
pub mod memory;
pub mod shuffle;
pub mod tensor;
pub mod wgmma;

use crate::block::Lanes;
use crate::decode::Decoder;
use crate::fault::Outcome;
use crate::isa::{Guard, Place, Reg, Source};
use crate::registers::Registers;

/// Runs in the lanes of the mask and touches registers only.
pub type Compute = Box<dyn Fn(&mut Registers, u32) -> Outcome + Send + Sync>;

/// Runs in the lanes of the mask and may touch any memory.
pub type Effect = Box<dyn Fn(&mut Lanes<'_>, u32) -> Outcome + Send + Sync>;

/// Answers whether lanes may go on; `false` parks them until memory of the block has changed.
pub type Wait = Box<dyn Fn(&mut Lanes<'_>, u32) -> Outcome<bool> + Send + Sync>;

/// One decoded instruction.
pub struct Instruction {
    /// What it does.
    pub action: Action,
    /// Predicate in front of it.
    pub guard: Option<Guard>,
    /// Where it stands in the text.
    pub place: Place,
}

/// What an instruction does.
pub enum Action {
    /// Nothing that can be observed here.
    Nop,
    /// Register arithmetic.
    Compute(Compute),
    /// Memory access of each lane on its own.
    Access(Effect),
    /// All named lanes must arrive together.
    Collective {
        /// Which lanes meet.
        members: Members,
        /// What they do.
        effect: Effect,
    },
    /// Goes on only when the closure says so.
    Wait(Wait),
    /// Jump to an instruction.
    Branch(usize),
    /// Jump to the instruction that the source selects.
    BranchIndexed(Source, Vec<usize>),
    /// The lanes are done.
    Exit,
    /// A block barrier.
    Barrier(Barrier),
    /// `trap`: the kernel reports failure.
    Trap,
}

/// Lanes that a collective instruction needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    /// All 32, none exited (`.aligned` matrix instructions).
    All,
    /// All that have not exited (`barrier.cluster` and the like).
    Live,
    /// A `membermask` operand.
    Mask(Source),
}

/// `bar`/`barrier.cta` instructions.
#[derive(Clone, Copy, Debug)]
pub struct Barrier {
    /// Barrier number.
    pub id: Source,
    /// Threads that take part; all of the block when absent.
    pub threads: Option<Source>,
    /// Whether the arriving lanes wait.
    pub wait: bool,
    /// Reduction over a predicate.
    pub reduce: Option<Reduction>,
}

/// The reduction of a `bar.red`.
#[derive(Clone, Copy, Debug)]
pub struct Reduction {
    /// Operation.
    pub op: ReduceOp,
    /// Destination: a count for `Popc`, else a predicate.
    pub dest: Reg,
    /// Predicate to reduce.
    pub pred: Reg,
    /// Whether the predicate is negated.
    pub negate: bool,
}

/// Predicate reductions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ReduceOp {
    Popc,
    And,
    Or,
}

/// Decodes one statement.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    match d.opcode() {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs" | "neg" => {
            if float::is_float(d) {
                float::decode(d)
            } else {
                integer::decode(d)
            }
        }
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "bfe" | "bfi" | "bfind"
        | "popc" | "clz" | "brev" | "prmt" | "lop3" | "mad24" | "mul24" | "sad" | "dp4a" => {
            integer::decode(d)
        }
        "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "ex2" | "lg2" | "tanh" | "copysign"
        | "testp" => float::decode(d),
        "setp" | "set" | "selp" | "slct" => compare::decode(d),
        "mov" | "cvt" | "cvta" => convert::decode(d),
        "ld" | "ldu" | "st" | "prefetch" | "prefetchu" | "isspacep" | "mapa" => memory::decode(d),
        "atom" | "red" => atomic::decode(d),
        "shfl" | "vote" | "match" | "activemask" | "redux" | "elect" => shuffle::decode(d),
        "ldmatrix" | "stmatrix" | "movmatrix" | "mma" => matrix::decode(d),
        "cp" => async_copy::decode(d),
        "mbarrier" => mbarrier::decode(d),
        "wgmma" => wgmma::decode(d),
        "setmaxnreg" => budget::decode(d),
        "bar" | "barrier" | "bra" | "brx" | "ret" | "exit" | "trap" | "membar" | "fence"
        | "griddepcontrol" | "nanosleep" | "discard" | "applypriority" | "pmevent" => {
            control::decode(d)
        }
        _ => Err("instruction is not supported".into()),
    }
}
