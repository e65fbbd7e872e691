//! Runs CUDA programs on a machine with no GPU.
//!
//! PTX text is parsed ([`parse`]), decoded into executable instructions ([`decode`], [`exec`]) and
//! run warp by warp over a grid ([`machine`]), with checks on every memory access: bounds, alignment,
//! bytes never written, races, copies not waited for. [`driver`] exports the CUDA driver API on top,
//! so that an unmodified program that opens `libcuda.so.1` runs on it.

pub mod block;
pub mod decode;
pub mod driver;
pub mod exec;
pub mod fault;
pub mod global;
pub mod isa;
pub mod lex;
pub mod machine;
pub mod parse;
pub mod registers;
pub mod shared;
pub mod tensor_map;
pub mod warp;
