//! The transforms of Winograd convolutions: tiles of the input, sums on their way back, weights.
//!
//! `F(M x M, 3 x 3)` takes `A x A` inputs, `A = M + 2`, to `M x M` outputs with `A * A` products
//! instead of `9 * M * M`: `y = At [(G g Gt) * (Bt d B)] A` (Lavin and Gray, Fast Algorithms for
//! Convolutional Neural Networks, CVPR 2016; Winograd, Arithmetic Complexity of Computations, 1980).
//! Every instruction set does the operations written here, in this order and each rounded once.

use super::isa::Isa;
use super::kernels::Kernels;
use super::vector::Vector;
use half::{bf16, f16};

/// Channels that are transformed together: every row of numbers is padded to a multiple.
pub(super) const LANES: usize = 16;

/// A register that does more than multiply and add at once.
///
/// # Safety
/// As [`Vector`]; pointers to stored numbers need no alignment of a register.
pub(super) trait Register: Vector {
    unsafe fn widen(from: *const f16) -> Self;
    unsafe fn widen_bf16(from: *const bf16) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
}

/// A number as activations are stored.
pub(super) trait Number: Copy + Default {
    /// Numbers from `from` on, exactly.
    ///
    /// # Safety
    /// As [`Register`].
    unsafe fn widen<V: Register>(from: *const Self) -> V;

    /// `Bt d B` of equally many channels of `A x A` positions. Number `c` of element `[i][j]` goes to
    /// `to[at[i][j] + c]`, padded with zeros to whole [`LANES`]. `to` must start at a cache line, and
    /// `at` be multiples of [`LANES`].
    fn transform<const A: usize>(
        by: &Transforms<A>,
        d: &[[&[Self]; A]; A],
        to: &mut [f32],
        at: &[[usize; A]; A],
    );
}

impl Number for f16 {
    #[inline(always)]
    unsafe fn widen<V: Register>(from: *const f16) -> V {
        // SAFETY: the caller's.
        unsafe { V::widen(from) }
    }

    fn transform<const A: usize>(
        by: &Transforms<A>,
        d: &[[&[f16]; A]; A],
        to: &mut [f32],
        at: &[[usize; A]; A],
    ) {
        by.input(by.input, d, to, at);
    }
}

impl Number for bf16 {
    #[inline(always)]
    unsafe fn widen<V: Register>(from: *const bf16) -> V {
        // SAFETY: the caller's.
        unsafe { V::widen_bf16(from) }
    }

    fn transform<const A: usize>(
        by: &Transforms<A>,
        d: &[[&[bf16]; A]; A],
        to: &mut [f32],
        at: &[[usize; A]; A],
    ) {
        by.input(by.input_bf16, d, to, at);
    }
}

/// See [`Number::transform`].
type Input<T, const A: usize> = unsafe fn(&[[&[T]; A]; A], &mut [f32], &[[usize; A]; A]);
/// See [`Transforms::output`].
type Output<const A: usize> = unsafe fn(&[f32], &[[usize; A]; A], &mut [f32], [usize; 2]);

/// The matrices of one `F(M x M, 3 x 3)`, as operations on vectors of `A` and `M` numbers.
pub(super) trait Scheme<const A: usize, const M: usize> {
    const NAME: &'static str;
    /// `G g`.
    fn weights(g: [f64; 3]) -> [f64; A];
    /// `Bt d`.
    ///
    /// # Safety
    /// As [`Vector`].
    unsafe fn input<V: Register>(d: [V; A]) -> [V; A];
    /// `At m`.
    ///
    /// # Safety
    /// As [`Vector`].
    unsafe fn output<V: Register>(m: [V; A]) -> [V; M];
}

/// `F(4 x 4, 3 x 3)` by the points 0, `±sqrt(1/2)`, `±sqrt(2)` and infinity: their powers stay closer to 1
/// than those of 0, ±1, ±2, and so do what is added up and what is rounded.
pub(super) struct Four;

impl Scheme<6, 4> for Four {
    const NAME: &'static str = "F(4x4, 3x3)";

    fn weights([g0, g1, g2]: [f64; 3]) -> [f64; 6] {
        let (near, far) = (f64::from(NEAR), f64::from(FAR));
        let (even_near, odd_near) = (g0 + 0.5 * g2, near * g1);
        let (even_far, odd_far) = (g0 + 2.0 * g2, far * g1);
        [
            g0,
            (even_near + odd_near) / -1.5,
            (even_near - odd_near) / -1.5,
            (even_far + odd_far) / 6.0,
            (even_far - odd_far) / 6.0,
            g2,
        ]
    }

    #[inline(always)]
    unsafe fn input<V: Register>([d0, d1, d2, d3, d4, d5]: [V; 6]) -> [V; 6] {
        // SAFETY: the caller's.
        unsafe {
            let c = |x: &'static f32| V::splat(x);
            let (even_near, odd_near) = (d2.fma(c(&-2.0), d4), d1.fma(c(&-2.0), d3));
            let (even_far, odd_far) = (d2.fma(c(&-0.5), d4), d1.fma(c(&-0.5), d3));
            [
                d2.fma(c(&-2.5), d0).add(d4),
                odd_near.fma(c(&NEAR), even_near),
                odd_near.fma(c(&-NEAR), even_near),
                odd_far.fma(c(&FAR), even_far),
                odd_far.fma(c(&-FAR), even_far),
                d3.fma(c(&-2.5), d1).add(d5),
            ]
        }
    }

    #[inline(always)]
    unsafe fn output<V: Register>([m0, m1, m2, m3, m4, m5]: [V; 6]) -> [V; 4] {
        // SAFETY: the caller's.
        unsafe {
            let c = |x: &'static f32| V::splat(x);
            let (even_near, odd_near) = (m1.add(m2), m1.sub(m2));
            let (even_far, odd_far) = (m3.add(m4), m3.sub(m4));
            let zero = V::zero();
            [
                m0.add(even_near).add(even_far),
                odd_far.fma(c(&FAR), odd_near.fma(c(&NEAR), zero)),
                even_far.fma(c(&2.0), even_near.fma(c(&0.5), zero)),
                odd_far.fma(c(&(2.0 * FAR)), odd_near.fma(c(&(0.5 * NEAR)), m5)),
            ]
        }
    }
}

const NEAR: f32 = std::f32::consts::FRAC_1_SQRT_2;
const FAR: f32 = std::f32::consts::SQRT_2;

/// `G g Gt` of one filter and channel, `[R, S]` to `[A, A]`.
pub(super) fn weights<S: Scheme<A, M>, const A: usize, const M: usize>(
    g: [[f64; 3]; 3],
) -> [[f64; A]; A] {
    let columns: [[f64; A]; 3] =
        std::array::from_fn(|s| S::weights(std::array::from_fn(|r| g[r][s])));
    std::array::from_fn(|i| S::weights(std::array::from_fn(|s| columns[s][i])))
}

/// The transforms of one scheme, compiled for one instruction set.
pub(super) struct Transforms<const A: usize> {
    input: Input<f16, A>,
    input_bf16: Input<bf16, A>,
    output: Output<A>,
}

impl<const A: usize> Transforms<A> {
    /// See [`Number::transform`].
    fn input<T: Number>(
        &self,
        by: Input<T, A>,
        d: &[[&[T]; A]; A],
        to: &mut [f32],
        at: &[[usize; A]; A],
    ) {
        let n = d[0][0].len();
        assert!(d.as_flattened().iter().all(|d| d.len() == n));
        check(to, at, n);
        // SAFETY: the processor has the instruction set (`Kernels`), and `check` saw to the rest.
        unsafe { by(d, to, at) }
    }

    /// `At m A` for `n` channels, of which number `c` of element `[i][j]` is at `m[at[i][j] + c]`, to
    /// `[M, M]` rows at a pitch, where `shape` is `[n, pitch]`. Both slices must start at a cache
    /// line, and `at` and the pitch be multiples of [`LANES`], to which `n` is rounded up.
    pub fn output(&self, m: &[f32], at: &[[usize; A]; A], to: &mut [f32], shape: [usize; 2]) {
        let [n, pitch] = shape;
        check(m, at, n);
        let rows = (A - 2) * (A - 2);
        assert!(n.next_multiple_of(LANES) <= pitch && rows * pitch <= to.len());
        assert!(pitch.is_multiple_of(LANES) && (to.as_ptr() as usize).is_multiple_of(4 * LANES));
        // SAFETY: as in `input`.
        unsafe { (self.output)(m, at, to, shape) }
    }
}

/// That whole registers can be read or written at all places.
fn check<const A: usize>(numbers: &[f32], at: &[[usize; A]; A], n: usize) {
    let n = n.next_multiple_of(LANES);
    let inside = |&at: &usize| at.is_multiple_of(LANES) && at + n <= numbers.len();
    assert!(at.as_flattened().iter().all(inside));
    assert!((numbers.as_ptr() as usize).is_multiple_of(4 * LANES));
}

/// See [`Number::transform`].
///
/// # Safety
/// The processor has the instruction set of `V`, for which the code around is compiled; the slices
/// are as demanded there.
#[inline(always)]
unsafe fn input<V: Register, T: Number, S: Scheme<A, M>, const A: usize, const M: usize>(
    d: &[[&[T]; A]; A],
    to: &mut [f32],
    at: &[[usize; A]; A],
) {
    let n = d[0][0].len();
    let whole = n / LANES * LANES;
    let starts = d.map(|row| row.map(|d| d.as_ptr()));
    let to = to.as_mut_ptr();
    // SAFETY: `c` and the lanes after it lie inside every slice of `d`, and in `last`.
    unsafe {
        for c in (0..whole).step_by(V::LANES) {
            input_lanes::<V, T, S, A, M>(&starts, c, to.add(c), at);
        }
        if whole < n {
            let mut last = [[[T::default(); LANES]; A]; A];
            for (last, d) in last.as_flattened_mut().iter_mut().zip(d.as_flattened()) {
                last[..n - whole].copy_from_slice(&d[whole..]);
            }
            let starts = last.each_ref().map(|row| row.each_ref().map(|d| d.as_ptr()));
            for c in (0..LANES).step_by(V::LANES) {
                input_lanes::<V, T, S, A, M>(&starts, c, to.add(whole + c), at);
            }
        }
    }
}

/// The input transform of one register of channels.
///
/// # Safety
/// As [`input`].
#[inline(always)]
unsafe fn input_lanes<V: Register, T: Number, S: Scheme<A, M>, const A: usize, const M: usize>(
    starts: &[[*const T; A]; A],
    c: usize,
    to: *mut f32,
    at: &[[usize; A]; A],
) {
    // SAFETY: the caller's.
    unsafe {
        let mut half = [[V::zero(); A]; A];
        for j in 0..A {
            let mut d = [V::zero(); A];
            for (d, row) in d.iter_mut().zip(starts) {
                *d = T::widen(row[j].add(c));
            }
            for (half, x) in half.iter_mut().zip(S::input(d)) {
                half[j] = x;
            }
        }
        for (half, at) in half.into_iter().zip(at) {
            for (x, &at) in S::input(half).into_iter().zip(at) {
                x.store(to.add(at));
            }
        }
    }
}

/// See [`Transforms::output`].
///
/// # Safety
/// As [`input`].
#[inline(always)]
unsafe fn output<V: Register, S: Scheme<A, M>, const A: usize, const M: usize>(
    m: &[f32],
    at: &[[usize; A]; A],
    to: &mut [f32],
    [n, pitch]: [usize; 2],
) {
    // SAFETY: `c` and the lanes after it lie inside every row, by the caller's promise.
    unsafe {
        for c in (0..n).step_by(V::LANES) {
            let m = m.as_ptr().add(c);
            let mut half = [[V::zero(); A]; M];
            for j in 0..A {
                let mut sums = [V::zero(); A];
                for (sum, at) in sums.iter_mut().zip(at) {
                    *sum = V::load(m.add(at[j]));
                }
                for (half, x) in half.iter_mut().zip(S::output(sums)) {
                    half[j] = x;
                }
            }
            for (i, half) in half.into_iter().enumerate() {
                for (j, y) in S::output(half).into_iter().enumerate() {
                    y.store(to.as_mut_ptr().add((i * M + j) * pitch + c));
                }
            }
        }
    }
}

/// Compiles the transforms for an instruction set: its `Transforms` of each scheme.
macro_rules! compiled {
    ($name:ident, $features:literal, $register:ty) => {
        mod $name {
            use super::{Four, Number, Transforms, bf16, f16};

            /// See [`super::input`].
            #[target_feature(enable = $features)]
            unsafe fn input<T: Number, S: super::Scheme<A, M>, const A: usize, const M: usize>(
                d: &[[&[T]; A]; A],
                to: &mut [f32],
                at: &[[usize; A]; A],
            ) {
                // SAFETY: the caller's; the features are enabled here.
                unsafe { super::input::<$register, T, S, A, M>(d, to, at) }
            }

            /// See [`super::output`].
            #[target_feature(enable = $features)]
            unsafe fn output<S: super::Scheme<A, M>, const A: usize, const M: usize>(
                m: &[f32],
                at: &[[usize; A]; A],
                to: &mut [f32],
                shape: [usize; 2],
            ) {
                // SAFETY: the caller's; the features are enabled here.
                unsafe { super::output::<$register, S, A, M>(m, at, to, shape) }
            }

            pub(super) static FOUR: Transforms<6> = Transforms {
                input: input::<f16, Four, 6, 4>,
                input_bf16: input::<bf16, Four, 6, 4>,
                output: output::<Four, 6, 4>,
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
compiled!(avx512, "avx512f,avx512bw,avx512vl,avx2,fma,f16c", std::arch::x86_64::__m512);
#[cfg(target_arch = "x86_64")]
compiled!(avx2, "avx2,fma,f16c", std::arch::x86_64::__m256);
#[cfg(target_arch = "aarch64")]
compiled!(neon, "neon", std::arch::aarch64::float32x4_t);

static PORTABLE_FOUR: Transforms<6> = Transforms {
    input: input::<f32, f16, Four, 6, 4>,
    input_bf16: input::<f32, bf16, Four, 6, 4>,
    output: output::<f32, Four, 6, 4>,
};

impl Transforms<6> {
    /// Of [`Four`], for the instruction set of these kernels.
    pub fn four(kernels: &Kernels) -> &'static Transforms<6> {
        match kernels.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::FOUR,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::FOUR,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &neon::FOUR,
            _ => &PORTABLE_FOUR,
        }
    }
}

impl Register for f32 {
    #[inline(always)]
    unsafe fn widen(from: *const f16) -> Self {
        // SAFETY: the caller's.
        unsafe { from.read().to_f32() }
    }
    #[inline(always)]
    unsafe fn widen_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's.
        unsafe { from.read().to_f32() }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self - other
    }
}

/// Implements [`Register`] by three functions.
macro_rules! register {
    ($register:ty, $widen:path, $widen_bf16:path, $sub:path) => {
        impl Register for $register {
            #[inline(always)]
            unsafe fn widen(from: *const f16) -> Self {
                // SAFETY: the caller has the instruction set; the pointer is good for all lanes.
                unsafe { $widen(from) }
            }
            #[inline(always)]
            unsafe fn widen_bf16(from: *const bf16) -> Self {
                // SAFETY: as above.
                unsafe { $widen_bf16(from) }
            }
            #[inline(always)]
            unsafe fn sub(self, other: Self) -> Self {
                // SAFETY: the caller has the instruction set.
                unsafe { $sub(self, other) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Register, bf16, f16};
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn widen16(from: *const f16) -> __m512 {
        // SAFETY: the caller's pointer is good for sixteen numbers.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx,f16c")]
    unsafe fn widen8(from: *const f16) -> __m256 {
        // SAFETY: the caller's pointer is good for eight numbers.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.cast()) })
    }

    /// A bf16 number is the upper half of an f32 one.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn widen16_bf16(from: *const bf16) -> __m512 {
        // SAFETY: the caller's pointer is good for sixteen numbers.
        let halves = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(from.cast()) });
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn widen8_bf16(from: *const bf16) -> __m256 {
        // SAFETY: the caller's pointer is good for eight numbers.
        let halves = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(from.cast()) });
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
    }

    register!(__m512, widen16, widen16_bf16, _mm512_sub_ps);
    register!(__m256, widen8, widen8_bf16, _mm256_sub_ps);
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::{Register, bf16, f16};
    use std::arch::aarch64::*;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn widen4(from: *const f16) -> float32x4_t {
        let mut wide = [0.0; 4];
        for (i, wide) in wide.iter_mut().enumerate() {
            // SAFETY: the caller's pointer is good for four numbers.
            *wide = unsafe { from.add(i).read() }.to_f32();
        }
        // SAFETY: four numbers.
        unsafe { vld1q_f32(wide.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn widen4_bf16(from: *const bf16) -> float32x4_t {
        // SAFETY: the caller's pointer is good for four numbers.
        let halves = unsafe { vld1_u16(from.cast()) };
        vreinterpretq_f32_u32(vshll_n_u16::<16>(halves))
    }

    register!(float32x4_t, widen4, widen4_bf16, vsubq_f32);
}
