//! Exponentials that give the same bits on every machine: nothing but IEEE additions,
//! multiplications, divisions, fused multiply-adds and selections, written so that loops over them
//! vectorise. What transformers compute for every number, GELU and the exponentials of softmax, is in
//! f32, twice as many to a register; the others are in f64.

/// Taylor coefficients of `exp`, the highest first: 1e-14 relative on `|r| <= ln 2 / 2`.
const TAYLOR: [f64; 12] = [
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

/// The polynomial of degree 6 of least relative error on `|r| <= ln 2 / 2`, 2^-29, by Remez'
/// algorithm: enough for an f32 result.
const MINIMAX: [f64; 7] = [
    0.0013836835567734578,
    0.008374824034098274,
    0.04166822619173265,
    0.1666642007241483,
    0.49999992075086586,
    1.0000000363446389,
    1.0000000005546086,
];

/// `exp(u^2 / 2) Phi(-u) = p P(p - 0.2)` with `p = 1 / (u + 3)` and `Phi` the normal distribution, the
/// highest coefficient first: least relative error on `0 <= u <= 14.5`, 2^-30, by Remez' algorithm.
/// Around the middle of what p can be, the terms do not cancel.
const TAIL: [f64; 11] = [
    3292.6866892471585,
    -225.17326481853942,
    -643.280135805834,
    141.1403579450408,
    99.20403687278942,
    -38.91079902789455,
    -21.461524423412275,
    7.845493512320863,
    9.192160944594752,
    3.639734647078941,
    0.8405100060555868,
];

/// Horner's rule.
#[inline(always)]
fn polynomial<const N: usize>(x: f64, coefficients: &[f64; N]) -> f64 {
    let mut sum = coefficients[0];
    for &c in &coefficients[1..] {
        sum = sum.mul_add(x, c);
    }
    sum
}

/// Horner's rule in f32.
#[inline(always)]
fn polynomial32<const N: usize>(x: f32, coefficients: &[f64; N]) -> f32 {
    let mut sum = coefficients[0] as f32;
    for &c in &coefficients[1..] {
        sum = sum.mul_add(x, c as f32);
    }
    sum
}

/// `exp(x + rest)` of `-88 <= x <= 0` and a `rest` of no more than a few units in the last place of it;
/// 0 at the lower end, where the result would be below the normal numbers.
#[inline(always)]
fn exp32_of(x: f32, rest: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    /// Few enough bits for exact multiples.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x)) + rest;
    // The least n, -127, gives 0.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    polynomial32(r, &MINIMAX) * power
}

/// `exp(x)` of `x <= 0`, in f32; 0 below the normal numbers.
#[inline(always)]
pub(super) fn exp32(x: f32) -> f32 {
    exp32_of(if x < -88.0 { -88.0 } else { x }, 0.0)
}

/// `exp(x)` as accurate as `series` on `|r| <= ln 2 / 2`, where `x = n ln 2 + r`; infinite from
/// about 709.4 on, and never smaller than `exp(-700)`.
#[inline(always)]
fn exp64<const N: usize>(x: f64, series: &[f64; N]) -> f64 {
    // Adding 1.5 * 2^52 rounds to an integer, which then stands in the low bits.
    const SHIFT: f64 = 6755399441055744.0;
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let x = x.clamp(-700.0, 710.0);
    let shifted = x.mul_add(std::f64::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let power = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1023 << 52));
    polynomial(r, series) * power
}

/// `exp(x)`.
#[inline(always)]
pub(super) fn exp(x: f64) -> f32 {
    exp64(x, &MINIMAX) as f32
}

/// `tanh(x) = (1 - exp(-2|x|)) / (1 + exp(-2|x|))` with the sign of `x`.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let wide = x as f64;
    let e = exp64(-2.0 * wide.abs(), &TAYLOR);
    let y = ((1.0 - e) / (1.0 + e)).copysign(wide);
    // Below this, x is the nearest f32 to tanh(x) and the difference above loses digits.
    if wide.abs() < 1.0 / 8192.0 { x } else { y as f32 }
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + exp64(-(x as f64), &MINIMAX))) as f32
}

/// `x / (1 + exp(-x))`.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    (x as f64 / (1.0 + exp64(-(x as f64), &MINIMAX))) as f32
}

/// `x Phi(x) = x / 2 (1 + erf(x / sqrt(2)))`, in f32; 0 where it is below the normal numbers.
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    let size = x.abs();
    // There the exponential is 0. A NaN stays one.
    let u = if size > 13.26 { 13.26 } else { size };
    let p = 1.0 / (u + 3.0);
    // The square to twice the digits, for its error is multiplied by the square.
    let square = u * u;
    let rest = u.mul_add(u, -square);
    let exp = exp32_of(-0.5 * square, -0.5 * rest);
    let tail = p * polynomial32(p - 0.2, &TAIL);
    // Left of 0 the number comes first, so that only the result may be below the normal numbers.
    if x > 0.0 { x * (1.0 - exp * tail) } else { x * exp * tail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Act, reference::activate};

    /// Every 1021st finite f32, so that all exponents and both signs are met.
    fn sample() -> impl Iterator<Item = f32> {
        (0..u32::MAX).step_by(1021).map(f32::from_bits).filter(|x| x.is_finite())
    }

    fn ulps(a: f32, b: f32) -> u32 {
        if a == b { 0 } else { a.to_bits().abs_diff(b.to_bits()) }
    }

    /// As [`ulps`], where numbers below the normal ones may be any of them.
    fn normal_ulps(a: f32, b: f32) -> u32 {
        let tiny = |x: f32| x.abs() < 1.1 * f32::MIN_POSITIVE;
        if tiny(a) && tiny(b) { 0 } else { ulps(a, b) }
    }

    #[test]
    fn within_one_ulp_of_the_f64_functions() {
        for x in sample() {
            let wide = x as f64;
            assert!(ulps(exp(wide), wide.exp() as f32) <= 1, "exp({x})");
            assert!(ulps(tanh(x), wide.tanh() as f32) <= 1, "tanh({x})");
            let y = (1.0 / (1.0 + (-wide).exp())) as f32;
            assert!(ulps(sigmoid(x), y) <= 1, "sigmoid({x})");
            assert!(ulps(silu(x), activate(Act::Silu, wide)) <= 1, "silu({x})");
        }
    }

    #[test]
    fn within_some_ulps_in_f32() {
        let (mut most_exp, mut most_gelu) = (0, 0);
        for x in sample() {
            let wide = x as f64;
            most_exp = most_exp.max(normal_ulps(exp32(-x.abs()), (-wide.abs()).exp() as f32));
            most_gelu = most_gelu.max(normal_ulps(gelu(x), activate(Act::Gelu, wide)));
        }
        assert!(most_exp <= 1 && most_gelu <= 6, "{most_exp} and {most_gelu}");
    }

    #[test]
    fn limits() {
        assert_eq!((exp(f64::NEG_INFINITY), exp(f64::INFINITY)), (0.0, f32::INFINITY));
        assert_eq!((tanh(f32::NEG_INFINITY), tanh(f32::INFINITY)), (-1.0, 1.0));
        assert_eq!((sigmoid(f32::NEG_INFINITY), sigmoid(f32::INFINITY)), (0.0, 1.0));
        assert_eq!((silu(f32::INFINITY), gelu(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert_eq!((silu(f32::MIN).to_bits(), gelu(f32::MIN).to_bits()), (1 << 31, 1 << 31));
        assert!(exp(f64::NAN).is_nan() && tanh(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
        for x in [f32::NAN, f32::NEG_INFINITY] {
            assert!(silu(x).is_nan() && gelu(x).is_nan(), "as PyTorch for {x}");
        }
        assert_eq!((exp32(f32::NEG_INFINITY), exp32(0.0)), (0.0, 1.0));
        assert!(exp32(f32::NAN).is_nan());
        assert_eq!(tanh(-0.0).to_bits(), (-0.0f32).to_bits());
    }
}
