//! One register of f32 lanes of each instruction set, and the loops written once over it.

use super::kernels::{A_PITCH, C_PITCH};
use super::math;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// A register of f32 lanes.
///
/// # Safety
/// Every method needs a processor that has the instruction set, and code compiled for it around
/// the call; pointers must be good for `LANES` elements (`splat`: one).
pub(super) trait Vector: Copy {
    const LANES: usize;
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn splat(from: *const f32) -> Self;
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "see `epilogue`"))]
    unsafe fn add(self, other: Self) -> Self;
    /// 0 where it is below; a NaN stays one.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "see `epilogue`"))]
    unsafe fn relu(self) -> Self;
    /// `self * by + plus`, rounded once.
    unsafe fn fma(self, by: Self, plus: Self) -> Self;
}

/// `C[i][j] (+)= sum over k of A[i][k] B[k][j]` for a tile of `MR` rows and `NV` vectors of
/// columns, each element a chain of fused multiply-adds in order of k. A has rows of [`A_PITCH`],
/// C of [`C_PITCH`] elements, B of exactly the tile's width. `first` starts from 0, not from C.
///
/// # Safety
/// As [`Vector`]; `a`, `b`, `c` must be good for the elements named above.
#[inline(always)]
pub(super) unsafe fn tile<V: Vector, const MR: usize, const NV: usize>(
    a: *const f32,
    b: *const f32,
    depth: usize,
    c: *mut f32,
    first: bool,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [[V::zero(); NV]; MR];
        if !first {
            for (i, row) in acc.iter_mut().enumerate() {
                for (j, lane) in row.iter_mut().enumerate() {
                    *lane = V::load(c.add(i * C_PITCH + j * V::LANES));
                }
            }
        }
        for k in 0..depth {
            let mut columns = [V::zero(); NV];
            for (j, column) in columns.iter_mut().enumerate() {
                *column = V::load(b.add((k * NV + j) * V::LANES));
            }
            for (i, row) in acc.iter_mut().enumerate() {
                let x = V::splat(a.add(i * A_PITCH + k));
                for (lane, &column) in row.iter_mut().zip(&columns) {
                    *lane = x.fma(column, *lane);
                }
            }
        }
        for (i, row) in acc.iter().enumerate() {
            for (j, lane) in row.iter().enumerate() {
                lane.store(c.add(i * C_PITCH + j * V::LANES));
            }
        }
    }
}

/// What is done to a group of channels of one position.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub eps: f32,
    /// Whether the mean is taken off first.
    pub centred: bool,
}

/// `(x - mean) / sqrt(mean of (x - mean)^2 + eps) * gamma + beta` in place, statistics in f64; a
/// mean of 0 where it is not `centred`. Plain code: compiled once for each
/// instruction set.
#[inline(always)]
pub(super) fn normalize(values: &mut [f32], with: &Norm<'_>) {
    let n = values.len() as f64;
    let mean = if with.centred { sum(values, |x| x) / n } else { 0.0 };
    let variance = sum(values, |x| (x - mean) * (x - mean)) / n;
    let factor = 1.0 / (variance + with.eps as f64).sqrt();
    for ((x, &gamma), &beta) in values.iter_mut().zip(with.gamma).zip(with.beta) {
        let unit = ((*x as f64 - mean) * factor) as f32;
        *x = unit.mul_add(gamma, beta);
    }
}

/// `exp((x - largest) * scale)` in place, where `largest` is the largest of the values and `least`;
/// that, and the sum of the results. Plain code: compiled once for each instruction set.
#[inline(always)]
pub(super) fn exponentials(values: &mut [f32], least: f32, scale: f32) -> (f32, f64) {
    let lanes = fold(values, least, |m, x| if x > m { x } else { m });
    let largest = lanes.into_iter().fold(least, f32::max);
    values.iter_mut().for_each(|x| *x = math::exp32((*x - largest) * scale));
    (largest, sum(values, |x| x))
}

/// Partial sums, the same number for every instruction set so that their order is, too.
const LANES: usize = 16;

/// Folds every [`LANES`]th value into one result.
#[inline(always)]
fn fold<T: Copy>(values: &[f32], start: T, step: impl Fn(T, f32) -> T) -> [T; LANES] {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut lanes = [start; LANES];
    for chunk in whole {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = step(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = step(*lane, x);
    }
    lanes
}

/// The sum of `f(x)`.
#[inline(always)]
fn sum(values: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    fold(values, 0.0, |sum, x| sum + f(x as f64)).iter().sum()
}

/// f16 to f32, exactly, without instructions of its own.
pub(super) fn widen_half(from: &[f16], to: &mut [f32]) {
    from.convert_to_f32_slice(to);
}

/// f32 to f16, to nearest even, without instructions of its own.
pub(super) fn narrow_half(from: &[f32], to: &mut [f16]) {
    to.convert_from_f32_slice(from);
}

impl Vector for f32 {
    const LANES: usize = 1;
    #[inline(always)]
    unsafe fn zero() -> Self {
        0.0
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe { *from }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { *to = self }
    }
    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe { *from }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self + other
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        if self < 0.0 { 0.0 } else { self }
    }
    #[inline(always)]
    unsafe fn fma(self, by: Self, plus: Self) -> Self {
        self.mul_add(by, plus)
    }
}

/// Implements [`Vector`] by intrinsics; the maximum is its second operand where one is a NaN.
macro_rules! vector {
    ($register:ty, $lanes:expr, $zero:expr, $load:path, $store:path, $splat:expr, $fma:expr,
        $add:expr, $max:expr) => {
        impl super::Vector for $register {
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: the caller has the instruction set.
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: as above, and the caller's pointer.
                unsafe { $load(from) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: as above, and the caller's pointer.
                unsafe { $store(to, self) }
            }
            #[inline(always)]
            unsafe fn splat(from: *const f32) -> Self {
                // SAFETY: as above, and the caller's pointer.
                unsafe { $splat(*from) }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                // SAFETY: the caller has the instruction set.
                unsafe { $add(self, other) }
            }
            #[inline(always)]
            unsafe fn relu(self) -> Self {
                // SAFETY: the caller has the instruction set.
                unsafe { $max($zero(), self) }
            }
            #[inline(always)]
            unsafe fn fma(self, by: Self, plus: Self) -> Self {
                // SAFETY: the caller has the instruction set.
                unsafe { $fma(self, by, plus) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use crate::cpu::epilogue::keep_row;
    use crate::cpu::stored::{Stored, StoredMut};
    use half::{bf16, f16};
    use std::arch::x86_64::*;

    vector!(
        __m512,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps,
        _mm512_fmadd_ps,
        _mm512_add_ps,
        _mm512_max_ps
    );
    vector!(
        __m256,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps,
        _mm256_fmadd_ps,
        _mm256_add_ps,
        _mm256_max_ps
    );

    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;

    /// How an instruction set makes registers of stored numbers and stored numbers of registers.
    macro_rules! converted {
        ($features:literal, $register:ty, $lanes:literal, $load:ident, $keep:ident,
            [$loadu:path, $load_half:path, $widen_half:path, $narrow_half:ident, $keep_half:path],
            [$widen_u16:path, $shift:ident, $cast:path]) => {
            /// A register of stored numbers.
            #[inline]
            #[target_feature(enable = $features)]
            pub(in super::super) fn $load(from: Stored<'_>) -> $register {
                match from {
                    Stored::F16(from) => {
                        let from: &[f16; $lanes] = from.try_into().expect("as long as a register");
                        // SAFETY: as many elements as lanes.
                        unsafe { $widen_half($load_half(from.as_ptr().cast())) }
                    }
                    Stored::Bf16(from) => {
                        let from: &[bf16; $lanes] = from.try_into().expect("as long as a register");
                        // SAFETY: as above.
                        let bits = unsafe { $load_half(from.as_ptr().cast()) };
                        $cast($shift::<16>($widen_u16(bits)))
                    }
                    Stored::F32(from) => {
                        let from: &[f32; $lanes] = from.try_into().expect("as long as a register");
                        // SAFETY: as above.
                        unsafe { $loadu(from.as_ptr()) }
                    }
                }
            }

            /// A register as stored numbers.
            #[inline]
            #[target_feature(enable = $features)]
            pub(in super::super) fn $keep(
                x: $register,
                to: StoredMut<'_>,
                narrow: impl Fn(&[f32], StoredMut<'_>),
            ) {
                match to {
                    StoredMut::F16(to) => {
                        let to: &mut [f16; $lanes] = to.try_into().expect("as long as a register");
                        let halves = $narrow_half::<NEAREST>(x);
                        // SAFETY: as many elements as lanes.
                        unsafe { $keep_half(to.as_mut_ptr().cast(), halves) };
                    }
                    // SAFETY: the instruction set is enabled here.
                    to => unsafe { keep_row(x, to, narrow) },
                }
            }
        };
    }
    converted!(
        "avx512f,avx512bw,avx512vl,avx2,fma,f16c",
        __m512,
        16,
        load_avx512,
        keep_avx512,
        [
            _mm512_loadu_ps,
            _mm256_loadu_si256,
            _mm512_cvtph_ps,
            _mm512_cvtps_ph,
            _mm256_storeu_si256
        ],
        [_mm512_cvtepu16_epi32, _mm512_slli_epi32, _mm512_castsi512_ps]
    );
    converted!(
        "avx2,fma,f16c",
        __m256,
        8,
        load_avx2,
        keep_avx2,
        [_mm256_loadu_ps, _mm_loadu_si128, _mm256_cvtph_ps, _mm256_cvtps_ph, _mm_storeu_si128],
        [_mm256_cvtepu16_epi32, _mm256_slli_epi32, _mm256_castsi256_ps]
    );

    /// f16 to f32, exactly. The slices are equally long.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    pub(in super::super) fn widen_avx512(from: &[f16], to: &mut [f32]) {
        assert_eq!(from.len(), to.len());
        let (from16, from) = from.as_chunks::<16>();
        let (to16, to) = to.as_chunks_mut::<16>();
        for (from, to) in from16.iter().zip(to16) {
            // SAFETY: both arrays hold sixteen elements.
            unsafe {
                let halves = _mm256_loadu_si256(from.as_ptr().cast());
                _mm512_storeu_ps(to.as_mut_ptr(), _mm512_cvtph_ps(halves));
            }
        }
        if !from.is_empty() {
            let lanes = (u32::MAX >> (32 - from.len())) as __mmask16;
            // SAFETY: masked loads and stores touch only the elements of the slices.
            unsafe {
                let halves = _mm256_maskz_loadu_epi16(lanes, from.as_ptr().cast());
                _mm512_mask_storeu_ps(to.as_mut_ptr(), lanes, _mm512_cvtph_ps(halves));
            }
        }
    }

    /// f32 to f16, to nearest even. The slices are equally long.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    pub(in super::super) fn narrow_avx512(from: &[f32], to: &mut [f16]) {
        assert_eq!(from.len(), to.len());
        let (from16, from) = from.as_chunks::<16>();
        let (to16, to) = to.as_chunks_mut::<16>();
        for (from, to) in from16.iter().zip(to16) {
            // SAFETY: both arrays hold sixteen elements.
            unsafe {
                let halves = _mm512_cvtps_ph::<NEAREST>(_mm512_loadu_ps(from.as_ptr()));
                _mm256_storeu_si256(to.as_mut_ptr().cast(), halves);
            }
        }
        if !from.is_empty() {
            let lanes = (u32::MAX >> (32 - from.len())) as __mmask16;
            // SAFETY: masked loads and stores touch only the elements of the slices.
            unsafe {
                let wide = _mm512_maskz_loadu_ps(lanes, from.as_ptr());
                let halves = _mm512_cvtps_ph::<NEAREST>(wide);
                _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), lanes, halves);
            }
        }
    }

    /// f16 to f32, exactly. The slices are equally long.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in super::super) fn widen_avx2(from: &[f16], to: &mut [f32]) {
        assert_eq!(from.len(), to.len());
        let (from8, from_rest) = from.as_chunks::<8>();
        let (to8, to_rest) = to.as_chunks_mut::<8>();
        for (from, to) in from8.iter().zip(to8) {
            *to = widen8(from);
        }
        let mut last = [f16::ZERO; 8];
        last[..from_rest.len()].copy_from_slice(from_rest);
        to_rest.copy_from_slice(&widen8(&last)[..from_rest.len()]);
    }

    /// f32 to f16, to nearest even. The slices are equally long.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in super::super) fn narrow_avx2(from: &[f32], to: &mut [f16]) {
        assert_eq!(from.len(), to.len());
        let (from8, from_rest) = from.as_chunks::<8>();
        let (to8, to_rest) = to.as_chunks_mut::<8>();
        for (from, to) in from8.iter().zip(to8) {
            *to = narrow8(from);
        }
        let mut last = [0.0; 8];
        last[..from_rest.len()].copy_from_slice(from_rest);
        to_rest.copy_from_slice(&narrow8(&last)[..from_rest.len()]);
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn widen8(from: &[f16; 8]) -> [f32; 8] {
        let mut to = [0.0; 8];
        // SAFETY: both arrays hold eight elements.
        unsafe {
            let halves = _mm_loadu_si128(from.as_ptr().cast());
            _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(halves));
        }
        to
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn narrow8(from: &[f32; 8]) -> [f16; 8] {
        let mut to = [f16::ZERO; 8];
        // SAFETY: both arrays hold eight elements.
        unsafe {
            let halves = _mm256_cvtps_ph::<NEAREST>(_mm256_loadu_ps(from.as_ptr()));
            _mm_storeu_si128(to.as_mut_ptr().cast(), halves);
        }
        to
    }
}

#[cfg(target_arch = "aarch64")]
pub(super) mod arm {
    use std::arch::aarch64::*;

    /// `vfmaq_f32` takes the addend first.
    #[inline]
    #[target_feature(enable = "neon")]
    fn fma(x: float32x4_t, by: float32x4_t, plus: float32x4_t) -> float32x4_t {
        vfmaq_f32(plus, x, by)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn zero() -> float32x4_t {
        vdupq_n_f32(0.0)
    }

    /// `x` where that is a NaN or a zero of either sign.
    #[inline]
    #[target_feature(enable = "neon")]
    fn max(zero: float32x4_t, x: float32x4_t) -> float32x4_t {
        vbslq_f32(vcltq_f32(x, zero), zero, x)
    }

    vector!(float32x4_t, 4, zero, vld1q_f32, vst1q_f32, vdupq_n_f32, fma, vaddq_f32, max);
}
