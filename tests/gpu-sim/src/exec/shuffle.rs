//! Instructions that exchange values between the lanes of a warp (`shfl.sync`, `vote.sync`, ...).

use super::compute::pred_lanes;
use super::{Action, Effect, Members};
use crate::decode::{Decoder, register};
use crate::fault::{Fault, LANES, lanes};
use crate::isa::{Operand, Reg, Source, Type};

/// Decodes an exchange between lanes.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    if d.opcode() == "activemask" {
        d.ty()?;
        let dst = d.dest(0)?;
        return Ok(Action::Access(Box::new(move |ctx, mask| {
            ctx.warp.registers.write(dst, mask, [mask; LANES]);
            Ok(())
        })));
    }
    if !d.take("sync") {
        return Err("only the .sync form is supported".into());
    }
    let members = Members::Mask(d.source(d.operands() - 1)?);
    let effect = match d.opcode() {
        "shfl" => shuffle(d)?,
        "vote" => vote(d)?,
        "match" => matching(d)?,
        "redux" => reduce(d)?,
        _ => elect(d)?,
    };
    Ok(Action::Collective { members, effect })
}

#[derive(Clone, Copy)]
enum Mode {
    Up,
    Down,
    Bfly,
    Idx,
}

/// The one or two destinations of an instruction that may also set a predicate.
fn destinations(d: &Decoder<'_>) -> Result<(Option<Reg>, Option<Reg>), String> {
    match d.operand(0)? {
        Operand::Pair(value, pred) => Ok((*value, *pred)),
        operand => Ok((Some(register(operand)?), None)),
    }
}

fn shuffle(d: &mut Decoder<'_>) -> Result<Effect, String> {
    let modes = [("up", Mode::Up), ("down", Mode::Down), ("bfly", Mode::Bfly), ("idx", Mode::Idx)];
    let mode = d.require("mode", &modes)?;
    d.ty()?;
    let (dst, pred) = destinations(d)?;
    let (a, b, c) = (d.source(1)?, d.source(2)?, d.source(3)?);
    Ok(Box::new(move |ctx, mask| {
        let regs = &mut ctx.warp.registers;
        let values = regs.read::<u32>(a);
        let (offsets, clamps) = (regs.read::<u32>(b), regs.read::<u32>(c));
        let (mut out, mut in_range) = ([0; LANES], 0);
        for lane in lanes(mask) {
            let (from, inside) = source_lane(mode, lane as u32, offsets[lane], clamps[lane]);
            if mask >> from & 1 == 0 {
                return Err(Fault::lane(
                    lane,
                    format!("shfl reads lane {from}, which is not there"),
                ));
            }
            out[lane] = values[from as usize];
            in_range |= u32::from(inside) << lane;
        }
        if let Some(dst) = dst {
            regs.write(dst, mask, out);
        }
        if let Some(pred) = pred {
            regs.write_pred(pred, mask, in_range);
        }
        Ok(())
    }))
}

/// The lane that `shfl` reads and whether it lies in the segment.
fn source_lane(mode: Mode, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (b, clamp, segment) = (b & 31, c & 31, c >> 8 & 31);
    let last = lane & segment | clamp & !segment;
    let first = lane & segment;
    let (from, inside) = match mode {
        Mode::Up => (lane.wrapping_sub(b), lane >= b && lane - b >= last),
        Mode::Down => (lane + b, lane + b <= last),
        Mode::Bfly => (lane ^ b, lane ^ b <= last),
        Mode::Idx => {
            let from = first | b & !segment;
            (from, from <= last)
        }
    };
    if inside { (from, true) } else { (lane, false) }
}

fn vote(d: &mut Decoder<'_>) -> Result<Effect, String> {
    #[derive(Clone, Copy)]
    enum Kind {
        All,
        Any,
        Uni,
        Ballot,
    }
    let kinds =
        [("all", Kind::All), ("any", Kind::Any), ("uni", Kind::Uni), ("ballot", Kind::Ballot)];
    let kind = d.require("kind of vote", &kinds)?;
    d.ty()?;
    let dst = d.dest(0)?;
    let (source, negate) = match d.operand(1)? {
        Operand::Not(reg) => (Source::Reg(*reg), true),
        _ => (d.source(1)?, false),
    };
    Ok(Box::new(move |ctx, mask| {
        let regs = &mut ctx.warp.registers;
        let votes = (pred_lanes(regs, source) ^ if negate { u32::MAX } else { 0 }) & mask;
        let truth = match kind {
            Kind::All => votes == mask,
            Kind::Any => votes != 0,
            Kind::Uni => votes == mask || votes == 0,
            Kind::Ballot => {
                regs.write(dst, mask, [votes; LANES]);
                return Ok(());
            }
        };
        regs.write_pred(dst, mask, if truth { u32::MAX } else { 0 });
        Ok(())
    }))
}

fn matching(d: &mut Decoder<'_>) -> Result<Effect, String> {
    let all = d.require("kind of match", &[("all", true), ("any", false)])?;
    let wide = d.ty()?.bytes() == 8;
    let (dst, pred) = destinations(d)?;
    let a = d.source(1)?;
    Ok(Box::new(move |ctx, mask| {
        let regs = &mut ctx.warp.registers;
        let keep = if wide { u64::MAX } else { u64::from(u32::MAX) };
        let values = regs.read::<u64>(a).map(|v| v & keep);
        let equal_to = |lane: usize| {
            lanes(mask).filter(|l| values[*l] == values[lane]).fold(0u32, |m, l| m | 1 << l)
        };
        let mut found: [u32; LANES] = std::array::from_fn(equal_to);
        if all {
            let every = lanes(mask).all(|l| found[l] == mask);
            found = [if every { mask } else { 0 }; LANES];
            if let Some(pred) = pred {
                regs.write_pred(pred, mask, if every { u32::MAX } else { 0 });
            }
        }
        if let Some(dst) = dst {
            regs.write(dst, mask, found);
        }
        Ok(())
    }))
}

fn reduce(d: &mut Decoder<'_>) -> Result<Effect, String> {
    const OPS: [&str; 6] = ["add", "min", "max", "and", "or", "xor"];
    let op = OPS.iter().find(|op| d.take(op)).ok_or("operation is not supported")?;
    let combine: fn(u32, u32) -> u32 = match (*op, d.ty()?) {
        ("add", Type::U32 | Type::S32) => u32::wrapping_add,
        ("min", Type::U32) => u32::min,
        ("max", Type::U32) => u32::max,
        ("min", Type::S32) => |a, b| (a as i32).min(b as i32) as u32,
        ("max", Type::S32) => |a, b| (a as i32).max(b as i32) as u32,
        ("and", Type::B32) => |a, b| a & b,
        ("or", Type::B32) => |a, b| a | b,
        ("xor", Type::B32) => |a, b| a ^ b,
        (op, ty) => return Err(format!("{op} of type {ty:?}")),
    };
    let (dst, a) = (d.dest(0)?, d.source(1)?);
    Ok(Box::new(move |ctx, mask| {
        let values = ctx.warp.registers.read::<u32>(a);
        if let Some(all) = lanes(mask).map(|l| values[l]).reduce(combine) {
            ctx.warp.registers.write(dst, mask, [all; LANES]);
        }
        Ok(())
    }))
}

/// `elect.sync`: the lowest lane leads.
fn elect(d: &mut Decoder<'_>) -> Result<Effect, String> {
    let (dst, pred) = destinations(d)?;
    Ok(Box::new(move |ctx, mask| {
        let leader = mask.trailing_zeros();
        if let Some(dst) = dst {
            ctx.warp.registers.write(dst, mask, [leader; LANES]);
        }
        if let Some(pred) = pred {
            ctx.warp.registers.write_pred(pred, mask, 1 << leader);
        }
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `c` as the CUDA intrinsics build it for a segment of `width` lanes.
    fn clamp(width: u32, up: bool) -> u32 {
        (32 - width) << 8 | if up { 0 } else { 31 }
    }

    #[test]
    fn shuffles_stay_in_their_segment() {
        for lane in 0..32 {
            assert_eq!(source_lane(Mode::Bfly, lane, 16, clamp(32, false)), (lane ^ 16, true));
            let up = source_lane(Mode::Up, lane, 3, clamp(8, true));
            let want = if lane % 8 >= 3 { (lane - 3, true) } else { (lane, false) };
            assert_eq!(up, want);
            let down = source_lane(Mode::Down, lane, 3, clamp(8, false));
            let want = if lane % 8 < 5 { (lane + 3, true) } else { (lane, false) };
            assert_eq!(down, want);
            let index = source_lane(Mode::Idx, lane, 5, clamp(16, false));
            assert_eq!(index, (lane / 16 * 16 + 5, true));
        }
    }
}
