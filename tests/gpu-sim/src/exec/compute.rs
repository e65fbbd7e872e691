//! Builders of register instructions: a lane function becomes a loop over the warp.

use super::{Action, Compute};
use crate::fault::{FULL, LANES};
use crate::isa::{Reg, Source};
use crate::registers::{Registers, Scalar};

/// A lane function that a closure may carry.
pub trait LaneFn: Copy + Send + Sync + 'static {}
impl<F: Copy + Send + Sync + 'static> LaneFn for F {}

/// `d = f(a)` in every lane.
pub fn unary<A: Scalar, R: Scalar>(d: Reg, a: Source, f: impl Fn(A) -> R + LaneFn) -> Action {
    compute(move |regs, mask| {
        let a = regs.read::<A>(a);
        regs.write(d, mask, a.map(f));
    })
}

/// `d = f(a, b)` in every lane.
pub fn binary<A: Scalar, B: Scalar, R: Scalar>(
    d: Reg,
    a: Source,
    b: Source,
    f: impl Fn(A, B) -> R + LaneFn,
) -> Action {
    compute(move |regs, mask| {
        let (a, b) = (regs.read::<A>(a), regs.read::<B>(b));
        regs.write(d, mask, std::array::from_fn::<R, LANES, _>(|l| f(a[l], b[l])));
    })
}

/// `d = f(a, b, c)` in every lane.
pub fn ternary<A: Scalar, B: Scalar, C: Scalar, R: Scalar>(
    d: Reg,
    [a, b, c]: [Source; 3],
    f: impl Fn(A, B, C) -> R + LaneFn,
) -> Action {
    compute(move |regs, mask| {
        let (a, b, c) = (regs.read::<A>(a), regs.read::<B>(b), regs.read::<C>(c));
        regs.write(d, mask, std::array::from_fn::<R, LANES, _>(|l| f(a[l], b[l], c[l])));
    })
}

/// The lanes where `f(a, b)` holds.
#[inline(always)]
pub fn lanes_where<A: Scalar>(
    regs: &Registers,
    a: Source,
    b: Source,
    f: impl Fn(A, A) -> bool,
) -> u32 {
    let (a, b) = (regs.read::<A>(a), regs.read::<A>(b));
    (0..LANES).fold(0, |bits, l| bits | u32::from(f(a[l], b[l])) << l)
}

/// The lanes where predicate `source` (a predicate register or a literal) is true.
pub fn pred_lanes(regs: &Registers, source: Source) -> u32 {
    match source {
        Source::Reg(reg) => regs.pred(reg),
        Source::Imm(0) => 0,
        _ => FULL,
    }
}

/// An instruction that cannot fail.
pub fn compute(f: impl Fn(&mut Registers, u32) + Send + Sync + 'static) -> Action {
    let boxed: Compute = Box::new(move |regs, mask| {
        f(regs, mask);
        Ok(())
    });
    Action::Compute(boxed)
}
