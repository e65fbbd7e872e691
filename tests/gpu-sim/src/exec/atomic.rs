//! Atomic operations (`atom`, `red`). Lanes take effect in lane order, blocks in grid order.

use half::f16;

use super::memory::{HINTS, space};
use super::{Action, Effect};
use crate::block::{Lanes, Space, at_lane};
use crate::decode::Decoder;
use crate::fault::{Outcome, lanes};
use crate::isa::{Reg, Source, Type};

/// New value from the old one and the operands.
type Update = fn(old: u64, b: u64, c: u64) -> u64;

/// Decodes an atomic operation.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    let space = space(d);
    d.ignore(&HINTS);
    const OPS: [&str; 10] = ["add", "min", "max", "and", "or", "xor", "inc", "dec", "exch", "cas"];
    let op = OPS.iter().find(|op| d.take(op)).ok_or("operation is not supported")?;
    let ty = d.ty()?;
    let update = update(op, ty)?;
    let returns = d.opcode() == "atom";
    let dst = if returns { d.optional_dest(0)? } else { None };
    let first = usize::from(returns);
    let address = d.address(first)?;
    let b = d.source(first + 1)?;
    let c = if *op == "cas" { d.source(first + 2)? } else { Source::Imm(0) };
    let atomic = Atomic { space, address, size: ty.bytes(), b, c, dst, update };
    let effect: Effect = Box::new(move |ctx, mask| {
        for lane in lanes(mask) {
            atomic.run(ctx, lane)?;
        }
        Ok(())
    });
    Ok(Action::Access(effect))
}

struct Atomic {
    space: Space,
    address: (Source, i64),
    size: usize,
    b: Source,
    c: Source,
    dst: Option<Reg>,
    update: Update,
}

impl Atomic {
    fn run(&self, ctx: &mut Lanes<'_>, lane: usize) -> Outcome {
        let (space, address) = Lanes::resolve(self.space, ctx.address(self.address, lane));
        let (b, c) = (ctx.value(self.b, lane), ctx.value(self.c, lane));
        let old = match space {
            Space::Shared => {
                let who = ctx.accessor(lane);
                let (rank, offset) = at_lane(lane, ctx.locate(address as u32))?;
                let shared = &mut ctx.cluster.blocks[rank].shared;
                let change = |old| (self.update)(old, b, c);
                let done = shared.atomic(&ctx.cluster.clocks, who, offset, self.size, change);
                at_lane(lane, done)?
            }
            _ => {
                let mut old = [0];
                ctx.load(lane, space, address, self.size, &mut old)?;
                let new = (self.update)(old[0], b, c);
                ctx.store(lane, space, address, self.size, &[new])?;
                old[0]
            }
        };
        if let Some(dst) = self.dst {
            ctx.warp.registers.write_lane(dst, lane, old);
        }
        Ok(())
    }
}

fn update(op: &str, ty: Type) -> Result<Update, String> {
    Ok(match (op, ty) {
        ("add", Type::U32 | Type::S32) => |a, b, _| u64::from((a as u32).wrapping_add(b as u32)),
        ("add", Type::U64 | Type::S64) => |a, b, _| a.wrapping_add(b),
        ("add", Type::F32) => {
            |a, b, _| u64::from((f32::from_bits(a as u32) + f32::from_bits(b as u32)).to_bits())
        }
        ("add", Type::F64) => |a, b, _| (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
        ("add", Type::F16) => |a, b, _| add_half(a, b),
        ("add", Type::F16x2) => |a, b, _| add_half(a >> 16, b >> 16) << 16 | add_half(a, b),
        ("min", Type::U32) => |a, b, _| u64::from((a as u32).min(b as u32)),
        ("max", Type::U32) => |a, b, _| u64::from((a as u32).max(b as u32)),
        ("min", Type::S32) => |a, b, _| (a as i32).min(b as i32) as u32 as u64,
        ("max", Type::S32) => |a, b, _| (a as i32).max(b as i32) as u32 as u64,
        ("min", Type::U64) => |a, b, _| a.min(b),
        ("max", Type::U64) => |a, b, _| a.max(b),
        ("min", Type::S64) => |a, b, _| (a as i64).min(b as i64) as u64,
        ("max", Type::S64) => |a, b, _| (a as i64).max(b as i64) as u64,
        ("and", Type::B32 | Type::B64) => |a, b, _| a & b,
        ("or", Type::B32 | Type::B64) => |a, b, _| a | b,
        ("xor", Type::B32 | Type::B64) => |a, b, _| a ^ b,
        ("exch", Type::B32 | Type::B64) => |_, b, _| b,
        ("cas", Type::B16) => |a, b, c| if a as u16 == b as u16 { c } else { a },
        ("cas", Type::B32) => |a, b, c| if a as u32 == b as u32 { c } else { a },
        ("cas", Type::B64) => |a, b, c| if a == b { c } else { a },
        ("inc", Type::U32) => |a, b, _| if a >= b { 0 } else { a + 1 },
        ("dec", Type::U32) => |a, b, _| if a == 0 || a > b { b } else { a - 1 },
        _ => return Err(format!("{op} of type {ty:?}")),
    })
}

fn add_half(a: u64, b: u64) -> u64 {
    let sum = f16::from_bits(a as u16).to_f32() + f16::from_bits(b as u16).to_f32();
    u64::from(f16::from_f32(sum).to_bits())
}
