//! Comparison and selection (`setp`, `set`, `selp`, `slct`).

use half::f16;

use super::Action;
use super::compute::{compute, lanes_where, pred_lanes, ternary};
use super::integer::with_integer;
use crate::decode::{Decoder, register};
use crate::isa::{Operand, Reg, Source, Type};
use crate::registers::{Registers, Scalar};

/// Decodes a comparison or selection.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    match d.opcode() {
        "setp" => set_predicate(d),
        "set" => set(d),
        "selp" => select(d),
        _ => {
            let (ty, by) = (d.ty()?, d.ty()?);
            let (dst, srcs) = (d.dest(0)?, [d.source(1)?, d.source(2)?, d.source(3)?]);
            match (ty.bytes(), by) {
                (4, Type::S32) => {
                    Ok(ternary(dst, srcs, |a: u32, b: u32, c: i32| if c >= 0 { a } else { b }))
                }
                (4, Type::F32) => {
                    Ok(ternary(dst, srcs, |a: u32, b: u32, c: f32| if c >= 0.0 { a } else { b }))
                }
                _ => Err("this form of slct is not supported".into()),
            }
        }
    }
}

/// Comparison operators. The unordered ones (`equ`, ...) hold if an operand is NaN.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Relation {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Num,
    Nan,
}

const RELATIONS: [(&str, (Relation, bool)); 18] = [
    ("eq", (Relation::Eq, false)),
    ("ne", (Relation::Ne, false)),
    ("lt", (Relation::Lt, false)),
    ("le", (Relation::Le, false)),
    ("gt", (Relation::Gt, false)),
    ("ge", (Relation::Ge, false)),
    ("lo", (Relation::Lt, false)),
    ("ls", (Relation::Le, false)),
    ("hi", (Relation::Gt, false)),
    ("hs", (Relation::Ge, false)),
    ("equ", (Relation::Eq, true)),
    ("neu", (Relation::Ne, true)),
    ("ltu", (Relation::Lt, true)),
    ("leu", (Relation::Le, true)),
    ("gtu", (Relation::Gt, true)),
    ("geu", (Relation::Ge, true)),
    ("num", (Relation::Num, false)),
    ("nan", (Relation::Nan, false)),
];

/// Finds the lanes where a comparison holds.
type Test = Box<dyn Fn(&Registers) -> u32 + Send + Sync>;

fn compare<T: Scalar + PartialOrd>(
    (relation, unordered): (Relation, bool),
    a: Source,
    b: Source,
) -> Test {
    // One closure per relation keeps the choice out of the lane loop.
    macro_rules! test {
        ($f:expr) => {
            Box::new(move |regs: &Registers| lanes_where::<T>(regs, a, b, $f))
        };
    }
    let nan = |a: T, b: T| a.partial_cmp(&b).is_none();
    match (relation, unordered) {
        (Relation::Eq, false) => test!(|a, b| a == b),
        (Relation::Ne, false) => test!(move |a, b| a != b && !nan(a, b)),
        (Relation::Lt, false) => test!(|a, b| a < b),
        (Relation::Le, false) => test!(|a, b| a <= b),
        (Relation::Gt, false) => test!(|a, b| a > b),
        (Relation::Ge, false) => test!(|a, b| a >= b),
        (Relation::Eq, true) => test!(move |a, b| a == b || nan(a, b)),
        (Relation::Ne, true) => test!(|a, b| a != b),
        (Relation::Lt, true) => test!(move |a, b| a < b || nan(a, b)),
        (Relation::Le, true) => test!(move |a, b| a <= b || nan(a, b)),
        (Relation::Gt, true) => test!(move |a, b| a > b || nan(a, b)),
        (Relation::Ge, true) => test!(move |a, b| a >= b || nan(a, b)),
        (Relation::Num, _) => test!(move |a, b| !nan(a, b)),
        (Relation::Nan, _) => test!(nan),
    }
}

fn comparison(relation: (Relation, bool), ty: Type, a: Source, b: Source) -> Result<Test, String> {
    match ty {
        Type::F32 => Ok(compare::<f32>(relation, a, b)),
        Type::F64 => Ok(compare::<f64>(relation, a, b)),
        Type::F16 => Ok(compare::<f16>(relation, a, b)),
        _ => with_integer!(ty, T => Ok(compare::<T>(relation, a, b))),
    }
}

fn set_predicate(d: &mut Decoder<'_>) -> Result<Action, String> {
    // Subnormal operands: flushing them changes a comparison only against zero; `.ftz` is applied
    // by the arithmetic that made them.
    d.ignore(&["ftz"]);
    let relation = d.require("relation", &RELATIONS)?;
    let combine: Option<fn(u32, u32) -> u32> =
        d.choose(&[("and", and as fn(u32, u32) -> u32), ("or", or), ("xor", xor)]);
    let ty = d.ty()?;
    let test = comparison(relation, ty, d.source(1)?, d.source(2)?)?;
    let (first, second) = match d.operand(0)? {
        Operand::Pair(p, q) => (*p, *q),
        operand => (Some(register(operand)?), None),
    };
    let third = match combine {
        None => None,
        Some(_) => Some(match d.operand(3)? {
            Operand::Not(reg) => (Source::Reg(*reg), true),
            _ => (d.source(3)?, false),
        }),
    };
    Ok(compute(move |regs, mask| {
        let holds = test(regs);
        let (mut p, mut q) = (holds, !holds);
        if let (Some(combine), Some((source, negate))) = (combine, third) {
            let third = pred_lanes(regs, source) ^ if negate { u32::MAX } else { 0 };
            (p, q) = (combine(p, third), combine(q, third));
        }
        for (dst, bits) in [(first, p), (second, q)] {
            if let Some(dst) = dst {
                regs.write_pred(dst, mask, bits);
            }
        }
    }))
}

fn and(a: u32, b: u32) -> u32 {
    a & b
}

fn or(a: u32, b: u32) -> u32 {
    a | b
}

fn xor(a: u32, b: u32) -> u32 {
    a ^ b
}

fn set(d: &mut Decoder<'_>) -> Result<Action, String> {
    d.ignore(&["ftz"]);
    let relation = d.require("relation", &RELATIONS)?;
    let (result, ty) = (d.ty()?, d.ty()?);
    let test = comparison(relation, ty, d.source(1)?, d.source(2)?)?;
    let dst: Reg = d.dest(0)?;
    let truth = match result {
        Type::U32 | Type::S32 => u32::MAX,
        Type::F32 => 1f32.to_bits(),
        _ => return Err(format!("type {result:?}")),
    };
    Ok(compute(move |regs, mask| {
        let holds = test(regs);
        regs.write(dst, mask, std::array::from_fn(|l| if holds >> l & 1 == 1 { truth } else { 0 }));
    }))
}

fn select(d: &mut Decoder<'_>) -> Result<Action, String> {
    let wide = d.ty()?.bytes() == 8;
    let (dst, a, b) = (d.dest(0)?, d.source(1)?, d.source(2)?);
    let by = d.source(3)?;
    Ok(compute(move |regs, mask| {
        let first = pred_lanes(regs, by);
        if wide {
            let (a, b) = (regs.read::<u64>(a), regs.read::<u64>(b));
            regs.write(dst, mask, pick(first, a, b));
        } else {
            let (a, b) = (regs.read::<u32>(a), regs.read::<u32>(b));
            regs.write(dst, mask, pick(first, a, b));
        }
    }))
}

#[inline(always)]
fn pick<T: Scalar>(first: u32, a: [T; 32], b: [T; 32]) -> [T; 32] {
    std::array::from_fn(|l| if first >> l & 1 == 1 { a[l] } else { b[l] })
}
