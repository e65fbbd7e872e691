//! Moves and conversions (`mov`, `cvt`, `cvta`).

use half::{bf16, f16};

use super::Action;
use super::compute::{LaneFn, binary, compute, pred_lanes, unary};
use super::integer::with_integer;
use crate::block::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::decode::Decoder;
use crate::isa::{Operand, Reg, Source, Type};

/// Decodes a move or conversion.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    match d.opcode() {
        "mov" => mov(d),
        "cvt" => cvt(d),
        _ => address(d),
    }
}

fn mov(d: &mut Decoder<'_>) -> Result<Action, String> {
    let ty = d.ty()?;
    match (d.operand(0)?, d.operand(1)?) {
        (Operand::Vector(_), _) => unpack(d.registers_or_sinks(0)?, d.source(1)?, ty),
        (_, Operand::Vector(_)) => pack(d.dest(0)?, d.sources(1)?, ty),
        _ => {
            let (dst, a) = (d.dest(0)?, d.source(1)?);
            Ok(match ty {
                Type::Pred => compute(move |regs, mask| {
                    let bits = pred_lanes(regs, a);
                    regs.write_pred(dst, mask, bits);
                }),
                _ if ty.bytes() == 8 => unary(dst, a, |v: u64| v),
                _ => unary(dst, a, |v: u32| v),
            })
        }
    }
}

/// Splits a register into equal parts, low part first.
fn unpack(parts: Vec<Option<Reg>>, source: Source, ty: Type) -> Result<Action, String> {
    let bits = part_bits(ty, parts.len())?;
    Ok(compute(move |regs, mask| {
        let values = regs.read::<u64>(source);
        for (i, part) in parts.iter().enumerate() {
            if let Some(part) = part {
                let keep = u64::MAX >> (64 - bits);
                regs.write(*part, mask, values.map(|v| v >> (i as u32 * bits) & keep));
            }
        }
    }))
}

/// Joins equal parts into a register, low part first.
fn pack(dst: Reg, parts: Vec<Source>, ty: Type) -> Result<Action, String> {
    let bits = part_bits(ty, parts.len())?;
    Ok(compute(move |regs, mask| {
        let keep = u64::MAX >> (64 - bits);
        let mut joined = [0u64; 32];
        for (i, part) in parts.iter().enumerate() {
            let values = regs.read::<u64>(*part);
            for (out, value) in joined.iter_mut().zip(values) {
                *out |= (value & keep) << (i as u32 * bits);
            }
        }
        regs.write(dst, mask, joined);
    }))
}

fn part_bits(ty: Type, parts: usize) -> Result<u32, String> {
    match (ty.bytes() * 8, parts) {
        (whole @ (16 | 32 | 64), 2 | 4) => Ok((whole / parts) as u32),
        (_, n) => Err(format!("{n} parts of {ty:?}")),
    }
}

/// Rounding to an integral value.
type ToIntegral = fn(f64) -> f64;

const INTEGRAL: [(&str, ToIntegral); 4] =
    [("rzi", f64::trunc), ("rni", f64::round_ties_even), ("rmi", f64::floor), ("rpi", f64::ceil)];

fn cvt(d: &mut Decoder<'_>) -> Result<Action, String> {
    let integral = d.choose(&INTEGRAL);
    let toward_zero = d.take("rz");
    d.ignore(&["rn", "ftz"]);
    let saturate = d.take("sat");
    let satfinite = d.take("satfinite");
    let relu = d.take("relu");
    let (to, from) = (d.ty()?, d.ty()?);
    if toward_zero && (to != Type::F16 || from != Type::F32) {
        return Err("modifier .rz is not supported here".into());
    }
    let shape = Narrowing { toward_zero, satfinite, relu };
    let (dst, a) = (d.dest(0)?, d.source(1)?);
    match (to, from) {
        (Type::F16x2, Type::F32) => return Ok(pair(dst, a, d.source(2)?, shape, narrow_f16)),
        (Type::Bf16x2, Type::F32) => return Ok(pair(dst, a, d.source(2)?, shape, narrow_bf16)),
        _ => {}
    }
    match (to.is_float(), from.is_float()) {
        (false, false) if saturate => saturate_integer(dst, a, to, from),
        (false, false) => with_integer!(to, T => with_integer!(from, F => {
            Ok(unary(dst, a, |v: F| v as T))
        })),
        (true, false) => integer_to_float(dst, a, to, from),
        (false, true) => {
            let round = integral.ok_or("no rounding to an integer")?;
            float_to_integer(dst, a, to, from, round)
        }
        (true, true) => float_to_float(dst, a, (to, from), integral, saturate, shape),
    }
}

fn saturate_integer(dst: Reg, a: Source, to: Type, from: Type) -> Result<Action, String> {
    with_integer!(to, T => with_integer!(from, F => Ok(unary(dst, a, |v: F| {
        (v as i128).clamp(T::MIN as i128, T::MAX as i128) as T
    }))))
}

fn integer_to_float(dst: Reg, a: Source, to: Type, from: Type) -> Result<Action, String> {
    with_integer!(from, F => match to {
        Type::F32 => Ok(unary(dst, a, |v: F| v as f32)),
        Type::F64 => Ok(unary(dst, a, |v: F| v as f64)),
        Type::F16 => Ok(unary(dst, a, |v: F| f16::from_f64(v as f64))),
        Type::Bf16 => Ok(unary(dst, a, |v: F| bf16::from_f64(v as f64))),
        _ => Err(format!("type {to:?}")),
    })
}

/// Out-of-range values saturate and NaN becomes 0, as the hardware does for 32-bit results.
fn float_to_integer(
    dst: Reg,
    a: Source,
    to: Type,
    from: Type,
    round: ToIntegral,
) -> Result<Action, String> {
    with_integer!(to, T => match from {
        Type::F32 => Ok(unary(dst, a, move |v: f32| round(f64::from(v)) as T)),
        Type::F64 => Ok(unary(dst, a, move |v: f64| round(v) as T)),
        Type::F16 => Ok(unary(dst, a, move |v: f16| round(v.to_f64()) as T)),
        _ => Err(format!("type {from:?}")),
    })
}

/// How a float is made narrower.
#[derive(Clone, Copy)]
struct Narrowing {
    toward_zero: bool,
    satfinite: bool,
    relu: bool,
}

fn float_to_float(
    dst: Reg,
    a: Source,
    types: (Type, Type),
    integral: Option<ToIntegral>,
    saturate: bool,
    shape: Narrowing,
) -> Result<Action, String> {
    let clamp = move |v: f64| {
        if !saturate {
            v
        } else if v > 0.0 {
            v.min(1.0)
        } else {
            0.0
        }
    };
    let round = integral.unwrap_or(|v| v);
    let exact = move |v: f64| clamp(round(v));
    Ok(match types {
        (Type::F32, Type::F16) if !saturate => unary(dst, a, f16_to_f32),
        (Type::F32, Type::Bf16) if !saturate => unary(dst, a, |v: bf16| v.to_f32()),
        (Type::F32, Type::F32) => unary(dst, a, move |v: f32| exact(f64::from(v)) as f32),
        (Type::F32, Type::F64) => unary(dst, a, move |v: f64| exact(v) as f32),
        (Type::F64, Type::F32) => unary(dst, a, move |v: f32| exact(f64::from(v))),
        (Type::F64, Type::F64) => unary(dst, a, exact),
        (Type::F64, Type::F16) => unary(dst, a, |v: f16| v.to_f64()),
        (Type::F16, Type::F16) => unary(dst, a, move |v: f16| f16::from_f64(exact(v.to_f64()))),
        (Type::F16, Type::F32) if saturate => {
            unary(dst, a, move |v: f32| f16::from_f64(clamp(f64::from(v))))
        }
        (Type::F16, Type::F32) => unary(dst, a, move |v: f32| narrow_f16(v, shape)),
        (Type::F16, Type::F64) => unary(dst, a, |v: f64| f16::from_f64(v)),
        (Type::Bf16, Type::F32) => unary(dst, a, move |v: f32| narrow_bf16(v, shape)),
        (to, from) => return Err(format!("{from:?} to {to:?}")),
    })
}

/// Branch-free widening: the exponent is moved by a multiplication that is exact for normal and
/// subnormal halves, infinities and NaNs get the full exponent.
#[inline(always)]
pub fn f16_to_f32(value: f16) -> f32 {
    let bits = u32::from(value.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if magnitude >= 0x7c00 << 13 { magnitude | 0x7f80_0000 } else { scaled };
    f32::from_bits(special | (bits & 0x8000) << 16)
}

/// The half nearest to a value (or next towards zero), as bits.
fn narrow_f16(value: f32, shape: Narrowing) -> u16 {
    let mut half = f16::from_f32(value);
    let overshot = shape.toward_zero && f16_to_f32(half).abs() > value.abs();
    if overshot || shape.satfinite && half.is_infinite() {
        half = f16::from_bits(half.to_bits() - 1);
    }
    if shape.relu && value <= 0.0 { 0 } else { half.to_bits() }
}

/// The bfloat16 nearest to a value, as bits.
fn narrow_bf16(value: f32, shape: Narrowing) -> u16 {
    let nearest = bf16::from_f32(value);
    let overflow = shape.satfinite && nearest.is_infinite();
    let nearest = if overflow { bf16::from_bits(nearest.to_bits() - 1) } else { nearest };
    if shape.relu && value <= 0.0 { 0 } else { nearest.to_bits() }
}

/// Two f32 to one register, the first operand in the upper half.
fn pair(
    dst: Reg,
    high: Source,
    low: Source,
    shape: Narrowing,
    narrow: impl Fn(f32, Narrowing) -> u16 + LaneFn,
) -> Action {
    binary(dst, high, low, move |high: f32, low: f32| {
        u32::from(narrow(high, shape)) << 16 | u32::from(narrow(low, shape))
    })
}

fn address(d: &mut Decoder<'_>) -> Result<Action, String> {
    let to = d.take("to");
    let spaces = [
        ("global", 0),
        ("const", 0),
        ("shared", SHARED_WINDOW),
        ("shared::cta", SHARED_WINDOW),
        ("shared::cluster", SHARED_WINDOW),
        ("local", LOCAL_WINDOW),
        ("param", PARAM_WINDOW),
    ];
    let window = d.require("state space", &spaces)?;
    d.ty()?;
    let (dst, a) = (d.dest(0)?, d.source(1)?);
    Ok(if to {
        unary(dst, a, move |v: u64| if window == 0 { v } else { v ^ window })
    } else {
        unary(dst, a, move |v: u64| v | window)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_is_exact_for_every_half() {
        for bits in 0..=u16::MAX {
            let (got, want) = (f16_to_f32(f16::from_bits(bits)), f16::from_bits(bits).to_f32());
            assert!(got == want || got.is_nan() && want.is_nan(), "{bits:#x}");
            assert_eq!(got.is_sign_negative(), want.is_sign_negative());
        }
    }

    #[test]
    fn narrowing_modes() {
        let plain = Narrowing { toward_zero: false, satfinite: false, relu: false };
        let value = 1.0 + 1.5 / 1024.0;
        assert_eq!(narrow_f16(value, plain), 0x3c02);
        assert_eq!(narrow_f16(value, Narrowing { toward_zero: true, ..plain }), 0x3c01);
        assert_eq!(narrow_f16(1e6, plain), 0x7c00);
        assert_eq!(narrow_f16(-1e6, Narrowing { satfinite: true, ..plain }), 0xfbff);
        assert_eq!(narrow_f16(-1.0, Narrowing { relu: true, ..plain }), 0);
    }
}
