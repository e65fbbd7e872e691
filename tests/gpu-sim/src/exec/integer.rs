//! Integer arithmetic, logic and bit instructions (PTX ISA, "Integer Arithmetic Instructions" and
//! "Logic and Shift Instructions").

use super::compute::{binary, compute, pred_lanes, ternary, unary};
use super::{Action, Compute};
use crate::decode::Decoder;
use crate::fault::{Fault, LANES, lanes};
use crate::isa::{Reg, Source, Type};
use crate::registers::Scalar;

/// Runs `$body` with `$T` bound to the Rust integer of a PTX type.
macro_rules! with_integer {
    ($ty:expr, $T:ident => $body:expr) => {
        match $ty {
            Type::U8 | Type::B8 => {
                type $T = u8;
                $body
            }
            Type::U16 | Type::B16 => {
                type $T = u16;
                $body
            }
            Type::U32 | Type::B32 => {
                type $T = u32;
                $body
            }
            Type::U64 | Type::B64 => {
                type $T = u64;
                $body
            }
            Type::S8 => {
                type $T = i8;
                $body
            }
            Type::S16 => {
                type $T = i16;
                $body
            }
            Type::S32 => {
                type $T = i32;
                $body
            }
            Type::S64 => {
                type $T = i64;
                $body
            }
            other => Err(format!("type {other:?}")),
        }
    };
}
pub(crate) use with_integer;

/// Decodes an integer instruction.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    match d.opcode() {
        "add" | "sub" | "min" | "max" | "div" | "rem" => two_operands(d),
        "abs" | "neg" | "not" | "cnot" | "popc" | "clz" | "brev" | "bfind" => one_operand(d),
        "mul" | "mul24" => multiply(d),
        "mad" | "mad24" => multiply_add(d),
        "and" | "or" | "xor" => logic(d),
        "shl" | "shr" => shift(d),
        "shf" => funnel_shift(d),
        "bfe" | "bfi" => bit_field(d),
        "prmt" => permute(d),
        "lop3" => lop3(d),
        "sad" => {
            let ty = d.ty()?;
            let (dst, srcs) = (d.dest(0)?, [d.source(1)?, d.source(2)?, d.source(3)?]);
            with_integer!(ty, T => Ok(ternary(dst, srcs, |a: T, b: T, c: T| {
                c.wrapping_add(if a < b { b.wrapping_sub(a) } else { a.wrapping_sub(b) })
            })))
        }
        "dp4a" => dp4a(d),
        _ => Err("instruction is not supported".into()),
    }
}

fn two_operands(d: &mut Decoder<'_>) -> Result<Action, String> {
    let op = d.opcode();
    let saturate = d.take("sat");
    let ty = d.ty()?;
    let (dst, a, b) = (d.dest(0)?, d.source(1)?, d.source(2)?);
    if saturate {
        return match (op, ty) {
            ("add", Type::S32) => Ok(binary(dst, a, b, i32::saturating_add)),
            ("sub", Type::S32) => Ok(binary(dst, a, b, i32::saturating_sub)),
            _ => Err("modifier .sat is not supported".into()),
        };
    }
    if matches!(ty, Type::B8 | Type::B16 | Type::B32 | Type::B64) {
        return Err(format!("type {ty:?}"));
    }
    with_integer!(ty, T => Ok(match op {
        "add" => binary(dst, a, b, T::wrapping_add),
        "sub" => binary(dst, a, b, T::wrapping_sub),
        "min" => binary(dst, a, b, <T as Ord>::min),
        "max" => binary(dst, a, b, <T as Ord>::max),
        "div" => division(dst, a, b, |a: T, b: T| if b == 0 { 0 } else { a.wrapping_div(b) }),
        _ => division(dst, a, b, |a: T, b: T| if b == 0 { 0 } else { a.wrapping_rem(b) }),
    }))
}

/// Division by zero gives an unspecified value on hardware; here it is an error.
fn division<T: Scalar>(
    dst: Reg,
    a: Source,
    b: Source,
    f: impl Fn(T, T) -> T + Copy + Send + Sync + 'static,
) -> Action {
    let boxed: Compute = Box::new(move |regs, mask| {
        let (x, y) = (regs.read::<T>(a), regs.read::<T>(b));
        if let Some(lane) = lanes(mask).find(|l| y[*l].bits() == 0) {
            return Err(Fault::lane(lane, "integer division by zero"));
        }
        regs.write(dst, mask, std::array::from_fn::<T, LANES, _>(|l| f(x[l], y[l])));
        Ok(())
    });
    Action::Compute(boxed)
}

fn one_operand(d: &mut Decoder<'_>) -> Result<Action, String> {
    let op = d.opcode();
    let shift_amount = d.take("shiftamt");
    let ty = d.ty()?;
    let (dst, a) = (d.dest(0)?, d.source(1)?);
    if ty == Type::Pred {
        let Source::Reg(reg) = a else { return Err("a predicate is needed".into()) };
        return match op {
            "not" => Ok(compute(move |regs, mask| {
                let bits = !regs.pred(reg);
                regs.write_pred(dst, mask, bits);
            })),
            _ => Err("type Pred".into()),
        };
    }
    Ok(match (op, ty) {
        ("abs", Type::S16) => unary(dst, a, i16::wrapping_abs),
        ("abs", Type::S32) => unary(dst, a, i32::wrapping_abs),
        ("abs", Type::S64) => unary(dst, a, i64::wrapping_abs),
        ("neg", Type::S16) => unary(dst, a, i16::wrapping_neg),
        ("neg", Type::S32) => unary(dst, a, i32::wrapping_neg),
        ("neg", Type::S64) => unary(dst, a, i64::wrapping_neg),
        ("not", Type::B16) => unary(dst, a, |v: u16| !v),
        ("not", Type::B32) => unary(dst, a, |v: u32| !v),
        ("not", Type::B64) => unary(dst, a, |v: u64| !v),
        ("cnot", Type::B16) => unary(dst, a, |v: u16| u16::from(v == 0)),
        ("cnot", Type::B32) => unary(dst, a, |v: u32| u32::from(v == 0)),
        ("cnot", Type::B64) => unary(dst, a, |v: u64| u64::from(v == 0)),
        ("popc", Type::B32) => unary(dst, a, u32::count_ones),
        ("popc", Type::B64) => unary(dst, a, u64::count_ones),
        ("clz", Type::B32) => unary(dst, a, u32::leading_zeros),
        ("clz", Type::B64) => unary(dst, a, u64::leading_zeros),
        ("brev", Type::B32) => unary(dst, a, u32::reverse_bits),
        ("brev", Type::B64) => unary(dst, a, u64::reverse_bits),
        ("bfind", _) => return bfind(dst, a, ty, shift_amount),
        _ => return Err(format!("type {ty:?}")),
    })
}

/// Position of the most significant non-sign bit; all ones when there is none.
fn bfind(dst: Reg, a: Source, ty: Type, shift_amount: bool) -> Result<Action, String> {
    let bits = ty.bytes() as u32 * 8;
    let find = move |value: u64| match value {
        0 => u32::MAX,
        v if shift_amount => bits - 1 - (63 - v.leading_zeros()),
        v => 63 - v.leading_zeros(),
    };
    Ok(match ty {
        Type::U32 => unary(dst, a, move |v: u32| find(u64::from(v))),
        Type::U64 => unary(dst, a, find),
        Type::S32 => unary(dst, a, move |v: i32| find(u64::from((v ^ (v >> 31)) as u32))),
        Type::S64 => unary(dst, a, move |v: i64| find((v ^ (v >> 63)) as u64)),
        _ => return Err(format!("type {ty:?}")),
    })
}

/// Which half of a product is kept.
#[derive(Clone, Copy)]
enum Part {
    Low,
    High,
    Wide,
}

const PARTS: [(&str, Part); 3] = [("lo", Part::Low), ("hi", Part::High), ("wide", Part::Wide)];

fn multiply(d: &mut Decoder<'_>) -> Result<Action, String> {
    let part = d.require("part of the product", &PARTS)?;
    let narrow = d.opcode() == "mul24";
    let ty = d.ty()?;
    let (dst, a, b) = (d.dest(0)?, d.source(1)?, d.source(2)?);
    Ok(match (part, ty) {
        (Part::Low, Type::U32) if narrow => {
            binary(dst, a, b, |a: u32, b: u32| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff))
        }
        (Part::Low, Type::S32) if narrow => {
            binary(dst, a, b, |a: i32, b: i32| (a << 8 >> 8).wrapping_mul(b << 8 >> 8))
        }
        _ if narrow => return Err("this form of mul24 is not supported".into()),
        (Part::Low, Type::U16 | Type::S16) => binary(dst, a, b, u16::wrapping_mul),
        (Part::Low, Type::U32 | Type::S32) => binary(dst, a, b, u32::wrapping_mul),
        (Part::Low, Type::U64 | Type::S64) => binary(dst, a, b, u64::wrapping_mul),
        (Part::High, Type::U16) => {
            binary(dst, a, b, |a: u16, b: u16| ((u32::from(a) * u32::from(b)) >> 16) as u16)
        }
        (Part::High, Type::S16) => {
            binary(dst, a, b, |a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16)
        }
        (Part::High, Type::U32) => {
            binary(dst, a, b, |a: u32, b: u32| ((u64::from(a) * u64::from(b)) >> 32) as u32)
        }
        (Part::High, Type::S32) => {
            binary(dst, a, b, |a: i32, b: i32| ((i64::from(a) * i64::from(b)) >> 32) as i32)
        }
        (Part::High, Type::U64) => {
            binary(dst, a, b, |a: u64, b: u64| ((u128::from(a) * u128::from(b)) >> 64) as u64)
        }
        (Part::High, Type::S64) => {
            binary(dst, a, b, |a: i64, b: i64| ((i128::from(a) * i128::from(b)) >> 64) as i64)
        }
        (Part::Wide, Type::U16) => binary(dst, a, b, |a: u16, b: u16| u32::from(a) * u32::from(b)),
        (Part::Wide, Type::S16) => binary(dst, a, b, |a: i16, b: i16| i32::from(a) * i32::from(b)),
        (Part::Wide, Type::U32) => binary(dst, a, b, |a: u32, b: u32| u64::from(a) * u64::from(b)),
        (Part::Wide, Type::S32) => binary(dst, a, b, |a: i32, b: i32| i64::from(a) * i64::from(b)),
        _ => return Err(format!("type {ty:?}")),
    })
}

fn multiply_add(d: &mut Decoder<'_>) -> Result<Action, String> {
    let part = d.require("part of the product", &PARTS)?;
    let ty = d.ty()?;
    let (dst, srcs) = (d.dest(0)?, [d.source(1)?, d.source(2)?, d.source(3)?]);
    if d.opcode() == "mad24" {
        return Err("instruction is not supported".into());
    }
    Ok(match (part, ty) {
        (Part::Low, Type::U16 | Type::S16) => {
            ternary(dst, srcs, |a: u16, b: u16, c: u16| a.wrapping_mul(b).wrapping_add(c))
        }
        (Part::Low, Type::U32 | Type::S32) => {
            ternary(dst, srcs, |a: u32, b: u32, c: u32| a.wrapping_mul(b).wrapping_add(c))
        }
        (Part::Low, Type::U64 | Type::S64) => {
            ternary(dst, srcs, |a: u64, b: u64, c: u64| a.wrapping_mul(b).wrapping_add(c))
        }
        (Part::High, Type::U32) => ternary(dst, srcs, |a: u32, b: u32, c: u32| {
            (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c)
        }),
        (Part::High, Type::S32) => ternary(dst, srcs, |a: i32, b: i32, c: i32| {
            (((i64::from(a) * i64::from(b)) >> 32) as i32).wrapping_add(c)
        }),
        (Part::Wide, Type::U16) => ternary(dst, srcs, |a: u16, b: u16, c: u32| {
            (u32::from(a) * u32::from(b)).wrapping_add(c)
        }),
        (Part::Wide, Type::S16) => ternary(dst, srcs, |a: i16, b: i16, c: i32| {
            (i32::from(a) * i32::from(b)).wrapping_add(c)
        }),
        (Part::Wide, Type::U32) => ternary(dst, srcs, |a: u32, b: u32, c: u64| {
            (u64::from(a) * u64::from(b)).wrapping_add(c)
        }),
        (Part::Wide, Type::S32) => ternary(dst, srcs, |a: i32, b: i32, c: i64| {
            (i64::from(a) * i64::from(b)).wrapping_add(c)
        }),
        _ => return Err(format!("type {ty:?}")),
    })
}

fn logic(d: &mut Decoder<'_>) -> Result<Action, String> {
    let op = d.opcode();
    let ty = d.ty()?;
    let (dst, a, b) = (d.dest(0)?, d.source(1)?, d.source(2)?);
    if ty == Type::Pred {
        let combine: fn(u32, u32) -> u32 = match op {
            "and" => |a, b| a & b,
            "or" => |a, b| a | b,
            _ => |a, b| a ^ b,
        };
        return Ok(compute(move |regs, mask| {
            let bits = combine(pred_lanes(regs, a), pred_lanes(regs, b));
            regs.write_pred(dst, mask, bits);
        }));
    }
    with_integer!(ty, T => Ok(match op {
        "and" => binary(dst, a, b, |a: T, b: T| a & b),
        "or" => binary(dst, a, b, |a: T, b: T| a | b),
        _ => binary(dst, a, b, |a: T, b: T| a ^ b),
    }))
}

fn shift(d: &mut Decoder<'_>) -> Result<Action, String> {
    let left = d.opcode() == "shl";
    let ty = d.ty()?;
    let (dst, a, b) = (d.dest(0)?, d.source(1)?, d.source(2)?);
    with_integer!(ty, T => Ok(if left {
        binary(dst, a, b, |a: T, n: u32| a.checked_shl(n).unwrap_or(0))
    } else {
        // A signed value shifted out entirely leaves its sign.
        binary(dst, a, b, |a: T, n: u32| {
            a.checked_shr(n).unwrap_or(a >> (T::BITS - 1) >> 1)
        })
    }))
}

fn funnel_shift(d: &mut Decoder<'_>) -> Result<Action, String> {
    let left = d.require("direction", &[("l", true), ("r", false)])?;
    let wrap = d.require("mode", &[("wrap", true), ("clamp", false)])?;
    if d.ty()? != Type::B32 {
        return Err("the type must be .b32".into());
    }
    let (dst, srcs) = (d.dest(0)?, [d.source(1)?, d.source(2)?, d.source(3)?]);
    let amount = move |n: u32| if wrap { n & 31 } else { n.min(32) };
    let joined = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    Ok(if left {
        ternary(dst, srcs, move |a: u32, b: u32, n: u32| (joined(a, b) << amount(n) >> 32) as u32)
    } else {
        ternary(dst, srcs, move |a: u32, b: u32, n: u32| (joined(a, b) >> amount(n)) as u32)
    })
}

fn bit_field(d: &mut Decoder<'_>) -> Result<Action, String> {
    let ty = d.ty()?;
    let dst = d.dest(0)?;
    if d.opcode() == "bfe" {
        let srcs = [d.source(1)?, d.source(2)?, d.source(3)?];
        return Ok(match ty {
            Type::U32 => ternary(dst, srcs, |a: u32, p: u32, n: u32| {
                extract(u64::from(a), 32, p, n, false) as u32
            }),
            Type::S32 => ternary(dst, srcs, |a: u32, p: u32, n: u32| {
                extract(u64::from(a), 32, p, n, true) as u32
            }),
            Type::U64 => ternary(dst, srcs, |a: u64, p: u32, n: u32| extract(a, 64, p, n, false)),
            Type::S64 => ternary(dst, srcs, |a: u64, p: u32, n: u32| extract(a, 64, p, n, true)),
            _ => return Err(format!("type {ty:?}")),
        });
    }
    let [a, b, p, n] = [d.source(1)?, d.source(2)?, d.source(3)?, d.source(4)?];
    let width = match ty {
        Type::B32 => 32,
        Type::B64 => 64,
        _ => return Err(format!("type {ty:?}")),
    };
    Ok(compute(move |regs, mask| {
        let (a, b) = (regs.read::<u64>(a), regs.read::<u64>(b));
        let (p, n) = (regs.read::<u32>(p), regs.read::<u32>(n));
        let inserted = std::array::from_fn::<u64, LANES, _>(|l| {
            let (p, n) = (p[l] & 255, (n[l] & 255).min(width));
            if p >= width || n == 0 {
                return b[l];
            }
            let field = (u64::MAX >> (64 - n)) << p;
            b[l] & !field | a[l] << p & field
        });
        regs.write(dst, mask, inserted);
    }))
}

/// `bfe` of a `width`-bit value: bits above the value read as its sign (or zero).
fn extract(value: u64, width: u32, position: u32, length: u32, signed: bool) -> u64 {
    let (position, length) = (position & 255, length & 255);
    let fill = signed && value >> (width - 1) & 1 == 1;
    let extended = if fill && width < 64 { value | u64::MAX << width } else { value };
    let shifted = match position {
        0..64 if signed => (extended as i64 >> position) as u64,
        0..64 => extended >> position,
        _ if fill => u64::MAX,
        _ => 0,
    };
    match length {
        0 => 0,
        64.. => shifted,
        n if signed => ((shifted << (64 - n)) as i64 >> (64 - n)) as u64,
        n => shifted & (u64::MAX >> (64 - n)),
    }
}

fn permute(d: &mut Decoder<'_>) -> Result<Action, String> {
    if d.ty()? != Type::B32 {
        return Err("the type must be .b32".into());
    }
    let (dst, srcs) = (d.dest(0)?, [d.source(1)?, d.source(2)?, d.source(3)?]);
    Ok(ternary(dst, srcs, |a: u32, b: u32, selector: u32| {
        let bytes = u64::from(b) << 32 | u64::from(a);
        (0..4).fold(0, |out, i| {
            let pick = selector >> (4 * i) & 0xf;
            let byte = (bytes >> (8 * (pick & 7))) as u8;
            let byte = if pick & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte };
            out | u32::from(byte) << (8 * i)
        })
    }))
}

fn lop3(d: &mut Decoder<'_>) -> Result<Action, String> {
    if d.ty()? != Type::B32 {
        return Err("the type must be .b32".into());
    }
    let (dst, srcs) = (d.dest(0)?, [d.source(1)?, d.source(2)?, d.source(3)?]);
    let table = d.immediate(4)?;
    Ok(ternary(dst, srcs, move |a: u32, b: u32, c: u32| {
        (0..8u32).filter(|i| table >> i & 1 == 1).fold(0, |out, i| {
            let pick = |value: u32, bit: u32| if i >> bit & 1 == 1 { value } else { !value };
            out | pick(a, 2) & pick(b, 1) & pick(c, 0)
        })
    }))
}

fn dp4a(d: &mut Decoder<'_>) -> Result<Action, String> {
    let (a_type, b_type) = (d.ty()?, d.ty()?);
    let (dst, srcs) = (d.dest(0)?, [d.source(1)?, d.source(2)?, d.source(3)?]);
    let part = |word: u32, i: u32, ty: Type| {
        let byte = (word >> (8 * i)) as u8;
        if ty.is_signed() { i32::from(byte as i8) } else { i32::from(byte) }
    };
    Ok(ternary(dst, srcs, move |a: u32, b: u32, c: i32| {
        (0..4).fold(c, |sum, i| sum.wrapping_add(part(a, i, a_type) * part(b, i, b_type)))
    }))
}
