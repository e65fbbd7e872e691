//! Exponentials that give the same bits on every machine: nothing but IEEE additions,
//! multiplications, divisions and selections, in f64, written so that loops over them vectorise.

/// `exp(x)` to about 1e-14 relative, for any `x` that came from an f32.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `exp(r)` is its Taylor polynomial of degree 11.
#[inline(always)]
fn exp64(x: f64) -> f64 {
    // Adding 1.5 * 2^52 rounds to an integer, which then stands in the low bits.
    const SHIFT: f64 = 6755399441055744.0;
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let x = x.clamp(-700.0, 700.0);
    let shifted = x * std::f64::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 39_916_800.0;
    for c in [
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
    ] {
        p = p * r + c;
    }
    let power = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1023 << 52));
    p * power
}

/// `exp(x)`, correctly rounded but for the rarest ties.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    exp64(x as f64) as f32
}

/// `tanh(x) = (1 - exp(-2|x|)) / (1 + exp(-2|x|))` with the sign of `x`.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let wide = x as f64;
    let e = exp64(-2.0 * wide.abs());
    let y = ((1.0 - e) / (1.0 + e)).copysign(wide);
    // Below this, x is the nearest f32 to tanh(x) and the difference above loses digits.
    if wide.abs() < 1.0 / 8192.0 { x } else { y as f32 }
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + exp64(-(x as f64)))) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(ulps(exp(x), wide.exp() as f32) <= 1, "exp({x})");
            assert!(ulps(tanh(x), wide.tanh() as f32) <= 1, "tanh({x})");
            let y = (1.0 / (1.0 + (-wide).exp())) as f32;
            assert!(ulps(sigmoid(x), y) <= 1, "sigmoid({x})");
        }
    }

    #[test]
    fn limits() {
        assert_eq!((exp(f32::NEG_INFINITY), exp(f32::INFINITY)), (0.0, f32::INFINITY));
        assert_eq!((tanh(f32::NEG_INFINITY), tanh(f32::INFINITY)), (-1.0, 1.0));
        assert_eq!((sigmoid(f32::NEG_INFINITY), sigmoid(f32::INFINITY)), (0.0, 1.0));
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
        assert_eq!(tanh(-0.0).to_bits(), (-0.0f32).to_bits());
    }
}
