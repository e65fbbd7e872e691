//! Loads, stores and address instructions. Cache hints and memory orders change nothing here:
//! every access takes effect at once.

use super::Action;
use super::compute::{binary, compute};
use crate::block::{LOCAL_WINDOW, Lanes, PARAM_WINDOW, RANK_SHIFT, SHARED_WINDOW, Space};
use crate::decode::Decoder;
use crate::fault::lanes;
use crate::isa::Type;

/// Modifiers without an effect.
pub const HINTS: [&str; 34] = [
    "weak",
    "volatile",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "mmio",
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "L1::no_allocate",
    "L1::evict_first",
    "L1::evict_last",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L2::evict_first",
    "L2::evict_last",
    "L2::evict_normal",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "L2::cache_hint",
    "unified",
    "noftz",
    "no_allocate",
];

const SPACES: [(&str, Space); 8] = [
    ("global", Space::Global),
    ("const", Space::Global),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    ("shared::cluster", Space::Shared),
    ("local", Space::Local),
    ("param", Space::Param),
    ("param::entry", Space::Param),
];

/// Consumes the state space modifier; generic without one.
pub fn space(d: &mut Decoder<'_>) -> Space {
    d.choose(&SPACES).unwrap_or(Space::Generic)
}

/// Decodes a memory instruction.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    match d.opcode() {
        "ld" | "ldu" => load(d),
        "st" => store(d),
        "isspacep" => is_space(d),
        "mapa" => map_address(d),
        _ => {
            d.ignore(&["global", "local", "L1", "L2", "L2::evict_last", "L2::evict_normal"]);
            d.ignore(&["tensormap", "param", "const"]);
            Ok(Action::Nop)
        }
    }
}

fn vector(d: &mut Decoder<'_>) -> usize {
    d.choose(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1)
}

fn load(d: &mut Decoder<'_>) -> Result<Action, String> {
    let space = space(d);
    d.ignore(&HINTS);
    let count = vector(d);
    let ty = d.ty()?;
    let (dst, address) = (d.registers_or_sinks(0)?, d.address(1)?);
    if dst.len() != count {
        return Err(format!("{} registers for {count} elements", dst.len()));
    }
    let element = ty.bytes();
    let unused_bits = 64 - 8 * element as u32;
    let extend = move |v: u64| match ty.is_signed() {
        true => ((v << unused_bits) as i64 >> unused_bits) as u64,
        false => v,
    };
    Ok(Action::Access(Box::new(move |ctx, mask| {
        let mut out = [0; 8];
        for lane in lanes(mask) {
            let at = lane_address(ctx, space, address, lane);
            ctx.load(lane, space, at, element, &mut out[..count])?;
            for (reg, value) in dst.iter().zip(out) {
                if let Some(reg) = reg {
                    ctx.warp.registers.write_lane(*reg, lane, extend(value));
                }
            }
        }
        Ok(())
    })))
}

fn store(d: &mut Decoder<'_>) -> Result<Action, String> {
    let space = space(d);
    d.ignore(&HINTS);
    let count = vector(d);
    let element = d.ty()?.bytes();
    let (address, values) = (d.address(0)?, d.sources(1)?);
    if values.len() != count {
        return Err(format!("{} values for {count} elements", values.len()));
    }
    Ok(Action::Access(Box::new(move |ctx, mask| {
        let mut out = [0; 8];
        for lane in lanes(mask) {
            let at = lane_address(ctx, space, address, lane);
            for (slot, value) in out.iter_mut().zip(&values) {
                *slot = ctx.value(*value, lane);
            }
            ctx.store(lane, space, at, element, &out[..count])?;
        }
        Ok(())
    })))
}

#[inline]
fn lane_address(
    ctx: &Lanes<'_>,
    space: Space,
    address: (crate::isa::Source, i64),
    lane: usize,
) -> u64 {
    match space {
        Space::Shared => u64::from(ctx.shared_address(address, lane)),
        _ => ctx.address(address, lane),
    }
}

fn is_space(d: &mut Decoder<'_>) -> Result<Action, String> {
    let space = space(d);
    let (dst, a) = (d.dest(0)?, d.source(1)?);
    let window = match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        _ => 0,
    };
    let windows = SHARED_WINDOW | LOCAL_WINDOW | PARAM_WINDOW;
    Ok(compute(move |regs, mask| {
        let addresses = regs.read::<u64>(a);
        regs.write(dst, mask, addresses.map(|v| u32::from(v & windows == window)));
    }))
}

/// `mapa`: the address of the same place in another block of the cluster.
fn map_address(d: &mut Decoder<'_>) -> Result<Action, String> {
    let generic = space(d) == Space::Generic;
    let ty = d.ty()?;
    let (dst, a, rank) = (d.dest(0)?, d.source(1)?, d.source(2)?);
    if !generic && ty == Type::U32 {
        return Ok(binary(dst, a, rank, |a: u32, rank: u32| {
            a & ((1 << RANK_SHIFT) - 1) | (rank + 1) << RANK_SHIFT
        }));
    }
    if ty != Type::U64 {
        return Err(format!("type {ty:?}"));
    }
    Ok(binary(dst, a, rank, move |a: u64, rank: u32| {
        let window = a & SHARED_WINDOW;
        window | a & ((1 << RANK_SHIFT) - 1) | u64::from(rank + 1) << RANK_SHIFT
    }))
}
