//! Exponentials that give the same bits on every machine: nothing but IEEE additions,
//! multiplications, divisions, fused multiply-adds and selections, in f64, written so that loops over
//! them vectorise.

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

/// `exp(u^2 / 2) Phi(-u) = p P(p)` with `p = 1 / (u + 3)` and `Phi` the normal distribution, the
/// highest coefficient first: least relative error on `0 <= u <= 14.5`, 2^-30, by Remez' algorithm.
const TAIL: [f64; 11] = [
    3292.6866892471585,
    -6810.546643312857,
    5688.867781512423,
    -2314.840147781594,
    438.7929451923021,
    -62.12542656870237,
    18.737716434256413,
    6.741089392461283,
    3.2097159210367256,
    1.1963963476453552,
    0.3989467073955535,
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

/// `x Phi(x) = x / 2 (1 + erf(x / sqrt(2)))`.
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    let wide = x as f64;
    // Beyond this, Phi(-u) u is below half the smallest f32.
    let u = wide.abs().min(14.5);
    let p = 1.0 / (u + 3.0);
    let tail = exp64(-0.5 * u * u, &MINIMAX) * p * polynomial(p, &TAIL);
    let tail = if u < 14.5 { tail } else { 0.0 };
    (wide * if wide > 0.0 { 1.0 - tail } else { tail }) as f32
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

    #[test]
    fn within_one_ulp_of_the_f64_functions() {
        for x in sample() {
            let wide = x as f64;
            assert!(ulps(exp(wide), wide.exp() as f32) <= 1, "exp({x})");
            assert!(ulps(tanh(x), wide.tanh() as f32) <= 1, "tanh({x})");
            let y = (1.0 / (1.0 + (-wide).exp())) as f32;
            assert!(ulps(sigmoid(x), y) <= 1, "sigmoid({x})");
            for (act, y) in [(Act::Silu, silu(x)), (Act::Gelu, gelu(x))] {
                assert!(ulps(y, activate(act, wide)) <= 1, "{act:?}({x}) is not {y}");
            }
        }
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
        assert_eq!(tanh(-0.0).to_bits(), (-0.0f32).to_bits());
    }
}
