//! Warp matrix instructions: `ldmatrix`, `stmatrix`, `movmatrix` and `mma.sync` (PTX ISA, "Warp
//! Level Matrix Instructions").
//!
//! `mma` computes each element as `((c + a0 b0) + a1 b1) + ...` with k ascending, rounding to f32
//! after every addition (products of halves are exact in f32). Tensor cores add in another order
//! and with other intermediate precision, so results may differ from theirs in the last bits;
//! integer-valued inputs whose sums stay below 2^24 give the same bits everywhere.

use half::{bf16, f16};

use super::convert::f16_to_f32;
use super::{Action, Effect, Members};
use crate::block::{Lanes, at_lane};
use crate::decode::Decoder;
use crate::fault::{FULL, Fault, LANES, Outcome};
use crate::isa::{Reg, Source, Type};
use crate::shared::{Accessor, Via};

/// Decodes a warp matrix instruction.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    let effect = match d.opcode() {
        "ldmatrix" => load_matrix(d)?,
        "stmatrix" => store_matrix(d)?,
        "movmatrix" => transpose(d)?,
        _ => multiply(d)?,
    };
    Ok(Action::Collective { members: Members::All, effect })
}

/// Eight rows of eight 16-bit elements.
type Tile = [[u16; 8]; 8];

fn matrix_modifiers(d: &mut Decoder<'_>) -> Result<(usize, bool), String> {
    d.ignore(&["sync", "aligned", "shared", "shared::cta"]);
    if !d.take("m8n8") || !d.take("b16") {
        return Err("only .m8n8 and .b16 are supported".into());
    }
    let count = d.require("number of matrices", &[("x1", 1), ("x2", 2), ("x4", 4)])?;
    Ok((count, d.take("trans")))
}

/// Where lane `lane` holds its two elements of a tile: row and first column.
fn fragment(lane: usize) -> (usize, usize) {
    (lane >> 2, (lane & 3) * 2)
}

fn load_matrix(d: &mut Decoder<'_>) -> Result<Effect, String> {
    let (count, transposed) = matrix_modifiers(d)?;
    let (dst, address) = (d.registers(0)?, d.address(1)?);
    if dst.len() != count {
        return Err(format!("{} registers for {count} matrices", dst.len()));
    }
    Ok(Box::new(move |ctx, _| {
        for (i, reg) in dst.iter().enumerate() {
            let mut tile: Tile = [[0; 8]; 8];
            for (row, out) in tile.iter_mut().enumerate() {
                let (lane, at) = (i * 8 + row, ctx.shared_address(address, i * 8 + row));
                *out = read_row(ctx, lane, at, Via::Thread)?;
            }
            let values = std::array::from_fn(|lane| {
                let (row, col) = fragment(lane);
                let (low, high) = match transposed {
                    false => (tile[row][col], tile[row][col + 1]),
                    true => (tile[col][row], tile[col + 1][row]),
                };
                u32::from(high) << 16 | u32::from(low)
            });
            ctx.warp.registers.write(*reg, FULL, values);
        }
        Ok(())
    }))
}

fn store_matrix(d: &mut Decoder<'_>) -> Result<Effect, String> {
    let (count, transposed) = matrix_modifiers(d)?;
    let (address, src) = (d.address(0)?, d.sources(1)?);
    if src.len() != count {
        return Err(format!("{} registers for {count} matrices", src.len()));
    }
    Ok(Box::new(move |ctx, _| {
        for (i, source) in src.iter().enumerate() {
            let tile = gather(ctx.warp.registers.read(*source), transposed);
            for (row, values) in tile.iter().enumerate() {
                let lane = i * 8 + row;
                let (who, at) = (ctx.accessor(lane), ctx.shared_address(address, lane));
                let mut bytes = [0; 16];
                for (chunk, value) in bytes.chunks_exact_mut(2).zip(values) {
                    chunk.copy_from_slice(&value.to_le_bytes());
                }
                let (rank, offset) = at_lane(lane, ctx.locate(at))?;
                let shared = &mut ctx.cluster.blocks[rank].shared;
                at_lane(lane, shared.write(&ctx.cluster.clocks, who, offset, &bytes))?;
            }
        }
        Ok(())
    }))
}

/// The tile that the lanes' fragments make up.
fn gather(values: [u32; LANES], transposed: bool) -> Tile {
    let mut tile: Tile = [[0; 8]; 8];
    for (lane, value) in values.into_iter().enumerate() {
        let (row, col) = fragment(lane);
        for (i, half) in [value as u16, (value >> 16) as u16].into_iter().enumerate() {
            match transposed {
                false => tile[row][col + i] = half,
                true => tile[col + i][row] = half,
            }
        }
    }
    tile
}

fn transpose(d: &mut Decoder<'_>) -> Result<Effect, String> {
    d.ignore(&["sync", "aligned", "trans"]);
    if !d.take("m8n8") || !d.take("b16") {
        return Err("only .m8n8 and .b16 are supported".into());
    }
    let (dst, source) = (d.dest(0)?, d.source(1)?);
    Ok(Box::new(move |ctx, _| {
        let tile = gather(ctx.warp.registers.read(source), true);
        let values = std::array::from_fn(|lane| {
            let (row, col) = fragment(lane);
            u32::from(tile[row][col + 1]) << 16 | u32::from(tile[row][col])
        });
        ctx.warp.registers.write(dst, FULL, values);
        Ok(())
    }))
}

/// Eight 16-bit elements at a 16-byte aligned shared address.
pub fn read_row(ctx: &mut Lanes<'_>, lane: usize, address: u32, via: Via) -> Outcome<[u16; 8]> {
    let who = Accessor { via, ..ctx.accessor(lane) };
    let (rank, offset) = at_lane(lane, ctx.locate(address))?;
    let shared = &mut ctx.cluster.blocks[rank].shared;
    let bytes = at_lane(lane, shared.read(&ctx.cluster.clocks, who, offset, 16))?;
    Ok(std::array::from_fn(|i| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])))
}

/// A 16-bit floating-point format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl Half {
    /// The format of a PTX type.
    pub fn of(ty: Type) -> Result<Half, String> {
        match ty {
            Type::F16 => Ok(Half::F16),
            Type::Bf16 => Ok(Half::Bf16),
            other => Err(format!("type {other:?}")),
        }
    }

    /// The value of some bits.
    #[inline(always)]
    pub fn widen(self, bits: u16) -> f32 {
        match self {
            Half::F16 => f16_to_f32(f16::from_bits(bits)),
            Half::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }
}

/// Sixteen rows of A for up to sixteen k.
pub type RowsA = [[f32; 16]; 16];

/// The A fragment: four registers for k = 16, two for k = 8.
pub fn gather_a(registers: &[[u32; LANES]], format: Half) -> RowsA {
    let mut a = [[0.0; 16]; 16];
    for (i, values) in registers.iter().enumerate() {
        let (down, right) = ((i & 1) * 8, (i >> 1) * 8);
        for (lane, value) in values.iter().enumerate() {
            let (row, col) = fragment(lane);
            a[row + down][col + right] = format.widen(*value as u16);
            a[row + down][col + right + 1] = format.widen((*value >> 16) as u16);
        }
    }
    a
}

fn multiply(d: &mut Decoder<'_>) -> Result<Effect, String> {
    d.ignore(&["sync", "aligned"]);
    let k: usize = d.require("shape", &[("m16n8k16", 16), ("m16n8k8", 8)])?;
    if !d.take("row") || !d.take("col") {
        return Err("the layouts must be .row.col".into());
    }
    let (accumulate, a_type, b_type, c_type) = (d.ty()?, d.ty()?, d.ty()?, d.ty()?);
    let format = Half::of(a_type)?;
    if a_type != b_type || accumulate != c_type {
        return Err("mixed types are not supported".into());
    }
    let half_result = match accumulate {
        Type::F32 => false,
        Type::F16 => true,
        other => return Err(format!("type {other:?}")),
    };
    let shape = Mma { k, format, half_result };
    let (dst, a, b, c) = (d.registers(0)?, d.sources(1)?, d.sources(2)?, d.sources(3)?);
    let results = if half_result { 2 } else { 4 };
    if (dst.len(), a.len(), b.len(), c.len()) != (results, k / 4, k / 8, results) {
        return Err("wrong number of registers".into());
    }
    Ok(Box::new(move |ctx, _| {
        shape.run(&mut ctx.warp.registers, &dst, &a, &b, &c);
        Ok(())
    }))
}

struct Mma {
    k: usize,
    format: Half,
    half_result: bool,
}

impl Mma {
    fn run(
        &self,
        regs: &mut crate::registers::Registers,
        dst: &[Reg],
        a: &[Source],
        b: &[Source],
        c: &[Source],
    ) {
        let mut fragments = [[0; LANES]; 4];
        for (out, source) in fragments.iter_mut().zip(a) {
            *out = regs.read(*source);
        }
        let a = gather_a(&fragments[..a.len()], self.format);
        let mut columns = [[0.0; 8]; 16];
        for (i, source) in b.iter().enumerate() {
            for (lane, value) in regs.read::<u32>(*source).into_iter().enumerate() {
                let (n, k) = fragment(lane);
                columns[k + 8 * i][n] = self.format.widen(value as u16);
                columns[k + 8 * i + 1][n] = self.format.widen((value >> 16) as u16);
            }
        }
        let mut tile = self.read_accumulators(regs, c);
        for (row, sums) in tile.iter_mut().enumerate() {
            accumulate(sums, &a[row][..self.k], &columns);
        }
        self.write_accumulators(regs, dst, &tile);
    }

    fn read_accumulators(
        &self,
        regs: &crate::registers::Registers,
        c: &[Source],
    ) -> [[f32; 8]; 16] {
        let mut tile = [[0.0; 8]; 16];
        for (i, source) in c.iter().enumerate() {
            for (lane, value) in regs.read::<u32>(*source).into_iter().enumerate() {
                let (row, col) = fragment(lane);
                if self.half_result {
                    tile[row + 8 * i][col] = Half::F16.widen(value as u16);
                    tile[row + 8 * i][col + 1] = Half::F16.widen((value >> 16) as u16);
                } else {
                    tile[row + 8 * (i >> 1)][col + (i & 1)] = f32::from_bits(value);
                }
            }
        }
        tile
    }

    fn write_accumulators(
        &self,
        regs: &mut crate::registers::Registers,
        dst: &[Reg],
        tile: &[[f32; 8]; 16],
    ) {
        for (i, reg) in dst.iter().enumerate() {
            let values: [u32; LANES] = std::array::from_fn(|lane| {
                let (row, col) = fragment(lane);
                if self.half_result {
                    let half =
                        |c: usize| u32::from(f16::from_f32(tile[row + 8 * i][col + c]).to_bits());
                    half(1) << 16 | half(0)
                } else {
                    tile[row + 8 * (i >> 1)][col + (i & 1)].to_bits()
                }
            });
            regs.write(*reg, FULL, values);
        }
    }
}

/// Adds `a[k] * b[k][n]` to `sums[n]`, k ascending.
#[inline]
pub fn accumulate<const N: usize>(sums: &mut [f32; N], a: &[f32], b: &[[f32; N]]) {
    for (a, row) in a.iter().zip(b) {
        for (sum, b) in sums.iter_mut().zip(row) {
            *sum += a * b;
        }
    }
}

/// Reports a value that must be the same in all lanes and is not.
pub fn uniform(values: [u64; LANES], what: &str) -> Outcome<u64> {
    match values.iter().position(|v| *v != values[0]) {
        None => Ok(values[0]),
        Some(lane) => Err(Fault::lane(lane, format!("{what} differs from that of lane 0"))),
    }
}
