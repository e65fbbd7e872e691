//! Floating-point arithmetic in f32, f64, f16 and f16x2 (PTX ISA, "Floating Point Instructions"
//! and "Half Precision Floating Point Instructions").
//!
//! Approximations are computed to nearest instead of with the
//! error of the hardware (at most 1 ulp for `rcp` and `sqrt`, 2 ulp for `ex2`, about 2^-21 absolute
//! for `sin`, `cos`, `lg2`), except `tanh.approx`, whose error of 2^-11 is large enough to matter:
//! its result is rounded to 11 significant bits.

use half::f16;

use super::Action;
use super::compute::{LaneFn, binary, compute, ternary, unary};
use crate::decode::Decoder;
use crate::isa::{Reg, Source, Type};

/// Whether the statement works on floating-point values.
pub fn is_float(d: &Decoder<'_>) -> bool {
    let mnemonic = d.mnemonic();
    mnemonic.split('.').filter_map(Type::parse).any(Type::is_float)
}

/// Decodes a floating-point instruction.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    let op = d.opcode();
    if matches!(op, "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "ex2" | "lg2" | "tanh" | "div") {
        d.ignore(&["approx", "full"]);
    }
    d.ignore(&["rn"]);
    let directed = d.choose(&DIRECTED);
    let flush = d.take("ftz");
    let saturate = d.take("sat");
    let relu = d.take("relu");
    let nan = d.take("NaN");
    if op == "testp" {
        return test(d);
    }
    let ty = d.ty()?;
    if directed.is_some() && ty != Type::F32 {
        return Err("directed rounding is not supported here".into());
    }
    match ty {
        Type::F32 => {
            let post = Post { flush, saturate, relu };
            if let Some(mode) = directed {
                return directed_f32(d, op, post, mode);
            }
            match d.operands() {
                2 => unary_f32(d, op, post),
                3 => binary_f32(d, op, post, nan),
                _ => ternary_f32(d, op, post),
            }
        }
        Type::F64 if !flush && !saturate && !relu => arithmetic_f64(d, op),
        Type::F16 => arithmetic_f16(d, op, Post { flush, saturate, relu }, nan),
        Type::F16x2 => arithmetic_f16x2(d, op, Post { flush, saturate, relu }, nan),
        other => Err(format!("type {other:?}")),
    }
}

/// What modifiers do to operands and results.
#[derive(Clone, Copy)]
struct Post {
    flush: bool,
    saturate: bool,
    relu: bool,
}

impl Post {
    #[inline(always)]
    fn result(self, value: f32) -> f32 {
        let value = if self.flush { flush_f32(value) } else { value };
        let value = if self.saturate { saturate_f32(value) } else { value };
        if self.relu && !value.is_nan() { max_f32(value, 0.0) } else { value }
    }

    fn plain(self) -> bool {
        !self.saturate && !self.relu
    }
}

/// Subnormals become zero of the same sign.
#[inline(always)]
fn flush_f32(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0f32.copysign(value) } else { value }
}

/// Clamped to [0, 1]; NaN becomes 0.
#[inline(always)]
fn saturate_f32(value: f32) -> f32 {
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

/// The larger value, the other one if one is NaN; +0 is larger than -0.
#[inline(always)]
pub fn max_f32(a: f32, b: f32) -> f32 {
    if a == b {
        return f32::from_bits(a.to_bits() & b.to_bits());
    }
    if a > b || b.is_nan() { a } else { b }
}

/// The smaller value, the other one if one is NaN; -0 is smaller than +0.
#[inline(always)]
pub fn min_f32(a: f32, b: f32) -> f32 {
    if a == b {
        return f32::from_bits(a.to_bits() | b.to_bits());
    }
    if a < b || b.is_nan() { a } else { b }
}

fn unary_f32(d: &Decoder<'_>, op: &str, post: Post) -> Result<Action, String> {
    let (dst, a) = (d.dest(0)?, d.source(1)?);
    let through_f64 = |f: fn(f64) -> f64| lift1(dst, a, post, move |v| f(f64::from(v)) as f32);
    Ok(match op {
        "abs" => lift1(dst, a, post, f32::abs),
        "neg" => lift1(dst, a, post, |v| -v),
        "rcp" => lift1(dst, a, post, |v| 1.0 / v),
        "sqrt" => lift1(dst, a, post, f32::sqrt),
        "rsqrt" => through_f64(|v| 1.0 / v.sqrt()),
        "ex2" => through_f64(f64::exp2),
        "lg2" => through_f64(f64::log2),
        "sin" => through_f64(f64::sin),
        "cos" => through_f64(f64::cos),
        "tanh" => lift1(dst, a, post, |v| round_to_11_bits(f64::from(v).tanh() as f32)),
        _ => return Err("instruction is not supported".into()),
    })
}

/// Rounds to 11 significant bits, half up in magnitude.
fn round_to_11_bits(value: f32) -> f32 {
    f32::from_bits((value.to_bits() + (1 << 12)) & !((1 << 13) - 1))
}

fn lift1(dst: Reg, a: Source, post: Post, f: impl Fn(f32) -> f32 + LaneFn) -> Action {
    match (post.flush, post.plain()) {
        (false, true) => unary(dst, a, f),
        (true, true) => unary(dst, a, move |a| flush_f32(f(flush_f32(a)))),
        (false, false) => unary(dst, a, move |a| post.result(f(a))),
        (true, false) => unary(dst, a, move |a| post.result(f(flush_f32(a)))),
    }
}

fn binary_f32(d: &Decoder<'_>, op: &str, post: Post, nan: bool) -> Result<Action, String> {
    let (dst, a, b) = (d.dest(0)?, d.source(1)?, d.source(2)?);
    let lift = Lift2 { dst, a, b, post };
    Ok(match (op, nan) {
        ("add", false) => lift.apply(|a, b| a + b),
        ("sub", false) => lift.apply(|a, b| a - b),
        ("mul", false) => lift.apply(|a, b| a * b),
        ("div", false) => lift.apply(|a, b| a / b),
        ("min", false) => lift.apply(min_f32),
        ("max", false) => lift.apply(max_f32),
        ("min", true) => lift.apply(min_or_nan),
        ("max", true) => lift.apply(max_or_nan),
        // The sign comes from the first operand, the magnitude from the second.
        ("copysign", false) => lift.apply(|sign, magnitude| magnitude.copysign(sign)),
        _ => return Err("instruction is not supported".into()),
    })
}

/// The larger value, NaN if one is.
fn max_or_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { max_f32(a, b) }
}

/// The smaller value, NaN if one is.
fn min_or_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { min_f32(a, b) }
}

struct Lift2 {
    dst: Reg,
    a: Source,
    b: Source,
    post: Post,
}

impl Lift2 {
    fn apply(self, f: impl Fn(f32, f32) -> f32 + LaneFn) -> Action {
        let Lift2 { dst, a, b, post } = self;
        match (post.flush, post.plain()) {
            (false, true) => binary(dst, a, b, f),
            (true, true) => binary(dst, a, b, move |a, b| flush_f32(f(flush_f32(a), flush_f32(b)))),
            (false, false) => binary(dst, a, b, move |a, b| post.result(f(a, b))),
            (true, false) => {
                binary(dst, a, b, move |a, b| post.result(f(flush_f32(a), flush_f32(b))))
            }
        }
    }
}

fn ternary_f32(d: &Decoder<'_>, op: &str, post: Post) -> Result<Action, String> {
    let (dst, srcs) = (d.dest(0)?, [d.source(1)?, d.source(2)?, d.source(3)?]);
    if !matches!(op, "fma" | "mad") {
        return Err("instruction is not supported".into());
    }
    Ok(match (post.flush, post.plain()) {
        (false, true) => ternary(dst, srcs, fma_f32),
        (true, true) => ternary(dst, srcs, |a, b, c| {
            flush_f32(fma_f32(flush_f32(a), flush_f32(b), flush_f32(c)))
        }),
        (flush, false) => ternary(dst, srcs, move |a, b, c| {
            let read = |v| if flush { flush_f32(v) } else { v };
            post.result(fma_f32(read(a), read(b), read(c)))
        }),
    })
}

/// `a b + c` in f64, rounded to odd: the last bit is set if the value is not exact, so that rounding
/// it once more to f32, in any direction, gives the correctly rounded result.
#[inline(always)]
fn fma_odd(a: f32, b: f32, c: f32) -> f64 {
    let product = f64::from(a) * f64::from(b);
    let c = f64::from(c);
    let sum = product + c;
    // Error of the sum (Knuth's two-sum); the product is exact.
    let back = sum - product;
    let error = (product - (sum - back)) + (c - back);
    let bits = sum.to_bits();
    if error != 0.0 && error.is_finite() && bits & 1 == 0 {
        let away = (error > 0.0) == (sum > 0.0);
        return f64::from_bits(if away { bits + 1 } else { bits - 1 });
    }
    sum
}

/// Fused multiply-add without the library call of `f32::mul_add` on a machine that lacks the
/// instruction.
#[inline(always)]
fn fma_f32(a: f32, b: f32, c: f32) -> f32 {
    fma_odd(a, b, c) as f32
}

/// Rounding other than to nearest.
#[derive(Clone, Copy)]
enum Directed {
    Zero,
    Down,
    Up,
}

const DIRECTED: [(&str, Directed); 3] =
    [("rz", Directed::Zero), ("rm", Directed::Down), ("rp", Directed::Up)];

impl Directed {
    fn round(self, value: f64) -> f32 {
        let near = value as f32;
        let down = match self {
            Directed::Zero => value > 0.0,
            Directed::Down => true,
            Directed::Up => false,
        };
        match down {
            true if f64::from(near) > value => near.next_down(),
            false if f64::from(near) < value => near.next_up(),
            _ => near,
        }
    }
}

/// Sums, products and fused ones with directed rounding.
fn directed_f32(d: &Decoder<'_>, op: &str, post: Post, mode: Directed) -> Result<Action, String> {
    let (dst, a, b) = (d.dest(0)?, d.source(1)?, d.source(2)?);
    let one = Source::Imm(u64::from(1f32.to_bits()));
    let zero = Source::Imm(u64::from((-0f32).to_bits()));
    let (sources, sign) = match op {
        "add" => ([a, one, b], 1.0),
        "sub" => ([a, one, b], -1.0),
        "mul" => ([a, b, zero], 1.0),
        "fma" | "mad" => ([a, b, d.source(3)?], 1.0),
        _ => return Err("directed rounding is not supported here".into()),
    };
    let read = move |v: f32| if post.flush { flush_f32(v) } else { v };
    Ok(ternary(dst, sources, move |a: f32, b: f32, c: f32| {
        post.result(mode.round(fma_odd(read(a), read(b), read(c) * sign)))
    }))
}

fn arithmetic_f64(d: &Decoder<'_>, op: &str) -> Result<Action, String> {
    let dst = d.dest(0)?;
    if d.operands() == 2 {
        let a = d.source(1)?;
        return Ok(match op {
            "abs" => unary(dst, a, f64::abs),
            "neg" => unary(dst, a, |v: f64| -v),
            "rcp" => unary(dst, a, |v: f64| 1.0 / v),
            "sqrt" => unary(dst, a, f64::sqrt),
            "rsqrt" => unary(dst, a, |v: f64| 1.0 / v.sqrt()),
            _ => return Err("instruction is not supported".into()),
        });
    }
    if d.operands() == 4 && matches!(op, "fma" | "mad") {
        return Ok(ternary(dst, [d.source(1)?, d.source(2)?, d.source(3)?], f64::mul_add));
    }
    let (a, b) = (d.source(1)?, d.source(2)?);
    Ok(match op {
        "add" => binary(dst, a, b, |a: f64, b: f64| a + b),
        "sub" => binary(dst, a, b, |a: f64, b: f64| a - b),
        "mul" => binary(dst, a, b, |a: f64, b: f64| a * b),
        "div" => binary(dst, a, b, |a: f64, b: f64| a / b),
        "min" => binary(dst, a, b, f64::min),
        "max" => binary(dst, a, b, f64::max),
        "copysign" => binary(dst, a, b, |sign: f64, m: f64| m.copysign(sign)),
        _ => return Err("instruction is not supported".into()),
    })
}

/// A function of three halves; unused operands are zero.
type HalfFn = fn(f16, f16, f16) -> f16;

/// The lane function of a half instruction. A sum, product or quotient of halves computed in f32
/// and rounded once more is the correctly rounded one; `fma` goes through f64.
fn half_function(op: &str, nan: bool) -> Result<HalfFn, String> {
    Ok(match (op, nan) {
        ("add", false) => |a, b, _| f16::from_f32(a.to_f32() + b.to_f32()),
        ("sub", false) => |a, b, _| f16::from_f32(a.to_f32() - b.to_f32()),
        ("mul", false) => |a, b, _| f16::from_f32(a.to_f32() * b.to_f32()),
        ("fma", false) => |a, b, c| f16::from_f64(a.to_f64() * b.to_f64() + c.to_f64()),
        ("min", false) => |a, b, _| f16::from_f32(min_f32(a.to_f32(), b.to_f32())),
        ("max", false) => |a, b, _| f16::from_f32(max_f32(a.to_f32(), b.to_f32())),
        ("min", true) => |a, b, _| f16::from_f32(min_or_nan(a.to_f32(), b.to_f32())),
        ("max", true) => |a, b, _| f16::from_f32(max_or_nan(a.to_f32(), b.to_f32())),
        ("abs", false) => |a, _, _| f16::from_bits(a.to_bits() & 0x7fff),
        ("neg", false) => |a, _, _| f16::from_bits(a.to_bits() ^ 0x8000),
        ("ex2", false) => |a, _, _| f16::from_f64(a.to_f64().exp2()),
        ("tanh", false) => |a, _, _| f16::from_f64(a.to_f64().tanh()),
        _ => return Err("instruction is not supported".into()),
    })
}

fn half_post(value: f16, post: Post) -> f16 {
    let subnormal = value.to_bits() & 0x7c00 == 0;
    let value =
        if post.flush && subnormal { f16::from_bits(value.to_bits() & 0x8000) } else { value };
    if post.plain() {
        value
    } else {
        f16::from_f32(Post { flush: false, ..post }.result(value.to_f32()))
    }
}

fn half_sources(d: &Decoder<'_>) -> Result<[Source; 3], String> {
    let source = |i| Ok::<_, String>(d.optional_source(i)?.unwrap_or(Source::Imm(0)));
    Ok([source(1)?, source(2)?, source(3)?])
}

fn arithmetic_f16(d: &Decoder<'_>, op: &str, post: Post, nan: bool) -> Result<Action, String> {
    let f = half_function(op, nan)?;
    Ok(ternary(d.dest(0)?, half_sources(d)?, move |a, b, c| half_post(f(a, b, c), post)))
}

fn arithmetic_f16x2(d: &Decoder<'_>, op: &str, post: Post, nan: bool) -> Result<Action, String> {
    let f = half_function(op, nan)?;
    let part = |word: u32, high: bool| f16::from_bits((word >> if high { 16 } else { 0 }) as u16);
    Ok(ternary(d.dest(0)?, half_sources(d)?, move |a: u32, b: u32, c: u32| {
        let half = |h| u32::from(half_post(f(part(a, h), part(b, h), part(c, h)), post).to_bits());
        half(true) << 16 | half(false)
    }))
}

fn test(d: &mut Decoder<'_>) -> Result<Action, String> {
    type Property = fn(f32) -> bool;
    let table: [(&str, Property); 6] = [
        ("finite", |v| v.is_finite()),
        ("infinite", |v| v.is_infinite()),
        ("number", |v| !v.is_nan()),
        ("notanumber", |v| v.is_nan()),
        ("normal", |v| v.is_normal()),
        ("subnormal", |v| v.is_subnormal()),
    ];
    let f = d.require("property", &table)?;
    if d.ty()? != Type::F32 {
        return Err("the type must be .f32".into());
    }
    let (dst, a) = (d.dest(0)?, d.source(1)?);
    Ok(compute(move |regs, mask| {
        let bits = super::compute::lanes_where::<f32>(regs, a, a, |v, _| f(v));
        regs.write_pred(dst, mask, bits);
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fma_equals_the_library() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            f32::from_bits((state >> 32) as u32)
        };
        for _ in 0..200_000 {
            let (a, b, c) = (next(), next(), next());
            let (got, want) = (fma_f32(a, b, c), a.mul_add(b, c));
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{a} {b} {c}"
            );
        }
        // A tie of f32 broken by a bit far below.
        let (a, b, c) = (1.0 + f32::EPSILON, 1.0 + f32::EPSILON, 2f32.powi(-80));
        assert_eq!(fma_f32(a, b, c), a.mul_add(b, c));
        let (a, b, c) = (f32::from_bits(0x3f80_0001), 0.5, 2f32.powi(30));
        assert_eq!(fma_f32(a, b, -c), a.mul_add(b, -c));
    }

    #[test]
    fn directed_rounding_brackets_the_exact_value() {
        let tiny = 2f32.powi(-40);
        for (a, c, down, up) in [
            (1.0, tiny, 1.0, 1.0f32.next_up()),
            (1.0, -tiny, 1.0f32.next_down(), 1.0),
            (-1.0, tiny, -1.0, (-1.0f32).next_up()),
            (2.5, 1.0, 3.5, 3.5),
        ] {
            let exact = fma_odd(a, 1.0, c);
            assert_eq!((Directed::Down.round(exact), Directed::Up.round(exact)), (down, up));
            let zero = if exact > 0.0 { down } else { up };
            assert_eq!(Directed::Zero.round(exact), zero);
        }
    }

    #[test]
    fn extremes_order_zeros_and_drop_nan() {
        assert_eq!(max_f32(-0.0, 0.0).to_bits(), 0);
        assert_eq!(min_f32(0.0, -0.0).to_bits(), 0x8000_0000);
        assert_eq!(max_f32(f32::NAN, 1.0), 1.0);
        assert_eq!(min_f32(2.0, f32::NAN), 2.0);
        assert!(max_or_nan(1.0, f32::NAN).is_nan() && min_or_nan(f32::NAN, 1.0).is_nan());
    }

    #[test]
    fn tanh_keeps_eleven_bits() {
        let exact = 0.3f32.tanh();
        let coarse = round_to_11_bits(exact);
        assert!(coarse != exact && (coarse / exact - 1.0).abs() < 1.0 / 2048.0);
    }
}
