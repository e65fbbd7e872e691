//! Products on the tile registers of Intel's AMX: 16 rows by 16 columns of sums, 32 deep, in one
//! instruction. The assembly is here and nowhere else; what it must compute is the definition of TDPBF16PS
//! in Intel's SDM, volume 2:
//!
//! ```text
//! for every 32 elements of the reduction, ascending:
//!     even = 0; odd = 0
//!     for p in 0..16 { even = fma(x[2p], w[2p], even); odd = fma(x[2p + 1], w[2p + 1], odd) }
//!     sum = sum + (even + odd)
//! ```
//!
//! each operation in f32, rounded to nearest even, numbers below the smallest normal one taken for 0. That is
//! not the order of the vector units, so that the last bits of f32 sums differ from theirs.
//!
//! An FP16 number is exactly the sum of two bf16 numbers, its nearest one and a rest. Of the four products of
//! two such sums that of the rests, at most 2^-18 of the whole, is left out:
//!
//! ```text
//! for every 32 elements: sum of (rest x, near w), then (near x, near w), then (near x, rest w)
//! ```
//!
//! An infinite number has no rest, and times one that has none either it gives NaN.
#![cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux")),
    allow(dead_code, reason = "tile registers are had on Linux on x86-64 alone")
)]

#[cfg(target_arch = "x86_64")]
use super::kernels::{A_PITCH, C_PITCH};
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pairs of a row that one instruction multiplies.
pub(super) const STEP: usize = 16;
/// Columns of a panel: two tiles.
pub(super) const COLUMNS: usize = 32;

/// Whether somebody vouches for the instructions.
static ASSUMED: AtomicBool = AtomicBool::new(false);

/// Uses the instructions from now on whatever the processor says of itself.
///
/// # Safety
/// They must work in every thread.
pub(super) unsafe fn assume() {
    ASSUMED.store(true, Ordering::Relaxed);
}

/// Whether the processor has tile registers that multiply bf16, the system saves them, this process may
/// use them, and they count right.
pub(super) fn available() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    ASSUMED.load(Ordering::Relaxed)
        || *FOUND.get_or_init(|| {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: `counts` is called where the instructions were found.
            return x86::granted() && unsafe { x86::counts() };
            #[allow(unreachable_code, reason = "depends on the target")]
            false
        })
}

/// The tile registers of this thread, set up for the kernels below and given back when dropped.
pub(super) struct Tiles(PhantomData<*const ()>);

impl Tiles {
    /// # Safety
    /// The instructions are available.
    pub unsafe fn open() -> Tiles {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's.
        unsafe {
            x86::configure()
        };
        Tiles(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: by `open` the instructions are available.
        unsafe {
            x86::release()
        };
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::{A_PITCH, C_PITCH, COLUMNS, STEP, Tiles};
    use crate::cpu::aligned::Aligned;
    use crate::cpu::kernels::PairTile;
    use half::{bf16, f16};
    use std::arch::asm;
    use std::arch::x86_64::*;

    /// What LDTILECFG loads: palette 1, eight registers of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    static CONFIGURATION: Configuration = {
        let mut all = Configuration {
            palette: 1,
            start: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        let mut i = 0;
        while i < 8 {
            (all.row_bytes[i], all.rows[i]) = (64, 16);
            i += 1;
        }
        all
    };

    /// # Safety
    /// The instructions are available.
    pub unsafe fn configure() {
        // SAFETY: the caller's; the configuration is one that the manual allows.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly))
        };
    }

    /// # Safety
    /// As [`configure`].
    pub unsafe fn release() {
        // SAFETY: the caller's.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    /// Whether the processor has what is needed and the system grants it to this process.
    #[cfg(target_os = "linux")]
    pub fn granted() -> bool {
        /// AMX-BF16 and AMX-TILE in EDX of leaf 7 of CPUID.
        const FOUND: u32 = 1 << 22 | 1 << 24;
        /// TILECFG and TILEDATA in XCR0.
        const SAVED: u64 = 1 << 17 | 1 << 18;
        /// OSXSAVE in ECX of leaf 1.
        const XGETBV: u32 = 1 << 27;
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const TILEDATA: libc::c_long = 18;

        #[target_feature(enable = "xsave")]
        fn saved() -> u64 {
            // SAFETY: register 0 exists wherever the instruction does.
            unsafe { _xgetbv(0) }
        }

        #[allow(unused_unsafe, reason = "safe in newer standard libraries")]
        // SAFETY: every x86-64 processor has CPUID.
        let (most, first) = unsafe { (__cpuid(0).eax, __cpuid(1).ecx) };
        if most < 7 || first & XGETBV == 0 {
            return false;
        }
        #[allow(unused_unsafe, reason = "safe in newer standard libraries")]
        // SAFETY: as above.
        let seventh = unsafe { __cpuid_count(7, 0).edx };
        // SAFETY: OSXSAVE says that the instruction may be used.
        if seventh & FOUND != FOUND || unsafe { saved() } & SAVED != SAVED {
            return false;
        }
        // SAFETY: asks the kernel for room for the tile registers of this process (Linux, "Using
        // XSTATE features in user space applications"), and does nothing else.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILEDATA) == 0 }
    }

    /// Whether a product of small integers is what it must be, in every kernel.
    ///
    /// # Safety
    /// The instructions are available.
    pub unsafe fn counts() -> bool {
        const PAIRS: usize = 4 * STEP;
        let (mut a, mut b) = (Aligned::zeros(32 * A_PITCH), Aligned::zeros(PAIRS * COLUMNS));
        let small = |i: usize| bf16::from_f32((i % 17) as f32 - 8.0);
        let fill = |to: &mut [[bf16; 2]], by: usize| {
            let numbers = to.iter_mut().enumerate();
            numbers.for_each(|(i, pair)| *pair = [small(by * i), small(by * i + i / 3)])
        };
        fill(&mut a, 5);
        fill(&mut b, 7);
        let sum = |i: usize, j: usize, pairs: [usize; 2]| -> f32 {
            let (x, w) = (a[i * A_PITCH + pairs[0]], b[pairs[1] * COLUMNS + j]);
            x[0].to_f32() * w[0].to_f32() + x[1].to_f32() * w[1].to_f32()
        };
        let plain = |i, j| (0..PAIRS).map(|p| sum(i, j, [p, p])).sum::<f32>();
        // Near and rest of two steps, without that of rest and rest.
        let split = |i, j| {
            let of = |x: usize, w: usize| sum(i, j, [x, w]);
            let steps = (0..PAIRS).filter(|p| p % (2 * STEP) < STEP);
            steps.map(|p| of(p, p) + of(p, p + STEP) + of(p + STEP, p)).sum::<f32>()
        };
        // SAFETY: the caller's.
        let _tiles = unsafe { Tiles::open() };
        let mut right = true;
        let mut check = |tile: PairTile, rows: usize, want: &dyn Fn(usize, usize) -> f32| {
            let mut c = Aligned::zeros(rows * C_PITCH);
            for first in [true, false] {
                // SAFETY: the tiles are set up, and all of a kernel's rows are there.
                unsafe { tile((a.as_ptr(), A_PITCH), b.as_ptr(), PAIRS, c.as_mut_ptr(), first) };
            }
            let all = (0..rows).flat_map(|i| (0..COLUMNS).map(move |j| (i, j)));
            right &= all.into_iter().all(|(i, j)| c[i * C_PITCH + j] == 2.0 * want(i, j));
        };
        check(tile16, 16, &plain);
        check(tile32, 32, &plain);
        check(split_tile16, 16, &split);
        check(split_tile32, 32, &split);
        right
    }

    /// Bytes from a row of C to the one 16 rows below.
    const C_DOWN: usize = 16 * 4 * C_PITCH;
    /// Bytes from the near numbers of a step to the rests.
    const A_REST: usize = 4 * STEP;
    const B_REST: usize = 4 * STEP * COLUMNS;

    /// What is done to the sums, registers 0 and 1 or, of 32 rows, 0 to 3.
    macro_rules! sums {
        (zero 16) => {
            "tilezero tmm0
            tilezero tmm1"
        };
        (load 16) => {
            "tileloadd tmm0, [{c} + {c_pitch}*1]
            tileloadd tmm1, [{c} + {c_pitch}*1 + 64]"
        };
        (store 16) => {
            "tilestored [{c} + {c_pitch}*1], tmm0
            tilestored [{c} + {c_pitch}*1 + 64], tmm1"
        };
        (zero 32) => {
            "tilezero tmm0
            tilezero tmm1
            tilezero tmm2
            tilezero tmm3"
        };
        (load 32) => {
            "tileloadd tmm0, [{c} + {c_pitch}*1]
            tileloadd tmm1, [{c} + {c_pitch}*1 + 64]
            tileloadd tmm2, [{c} + {c_pitch}*1 + {c_down}]
            tileloadd tmm3, [{c} + {c_pitch}*1 + {c_down} + 64]"
        };
        (store 32) => {
            "tilestored [{c} + {c_pitch}*1], tmm0
            tilestored [{c} + {c_pitch}*1 + 64], tmm1
            tilestored [{c} + {c_pitch}*1 + {c_down}], tmm2
            tilestored [{c} + {c_pitch}*1 + {c_down} + 64], tmm3"
        };
    }

    /// Defines a kernel of so many rows: what is done for every step of the reduction. Of 32 rows `low` are
    /// the last 16.
    macro_rules! tile {
        ($(#[$doc:meta])* $name:ident, rows $rows:tt, terms $terms:literal,
            bytes [$($bytes:ident $by:expr),*], $(low $low:ident,)? step $step:literal) => {
            $(#[$doc])*
            ///
            /// # Safety
            /// [`Tiles`] are open in this thread; `a`, `b`, `c` are good for the elements of the tile.
            pub unsafe fn $name(
                (a, pitch): (*const [bf16; 2], usize),
                b: *const [bf16; 2],
                pairs: usize,
                c: *mut f32,
                first: bool,
            ) {
                debug_assert!(pairs > 0 && pairs.is_multiple_of($terms * STEP));
                // SAFETY: the caller's: registers hold 16 rows of 64 bytes, rows of A, B and C are their
                // pitches apart, and there are `pairs` of each row and column.
                unsafe {
                    asm!(
                        "test {first:e}, {first:e}",
                        "jz 3f",
                        sums!(zero $rows),
                        "jmp 2f",
                        "3:",
                        sums!(load $rows),
                        "2:",
                        $step,
                        "add {a}, {a_step}",
                        "add {b}, {b_step}",
                        "dec {steps}",
                        "jnz 2b",
                        sums!(store $rows),
                        first = in(reg) u32::from(first),
                        steps = inout(reg) pairs / ($terms * STEP) => _,
                        a = inout(reg) a => _,
                        $($low = inout(reg) a.add(16 * pitch) => _,)?
                        b = inout(reg) b => _,
                        c = in(reg) c,
                        a_pitch = in(reg) 4 * pitch,
                        b_pitch = in(reg) 4 * COLUMNS,
                        c_pitch = in(reg) 4 * C_PITCH,
                        a_step = const 4 * STEP * $terms,
                        b_step = const 4 * STEP * COLUMNS * $terms,
                        $($bytes = const $by,)*
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    )
                }
            }
        };
    }

    tile! {
        /// 16 rows of bf16.
        tile16, rows 16, terms 1, bytes [],
        step "tileloadd tmm6, [{b} + {b_pitch}*1]
            tileloadd tmm4, [{a} + {a_pitch}*1]
            tdpbf16ps tmm0, tmm4, tmm6
            tileloadd tmm7, [{b} + {b_pitch}*1 + 64]
            tdpbf16ps tmm1, tmm4, tmm7"
    }

    tile! {
        /// 32 rows of bf16.
        tile32, rows 32, terms 1, bytes [c_down C_DOWN], low low,
        step "tileloadd tmm6, [{b} + {b_pitch}*1]
            tileloadd tmm4, [{a} + {a_pitch}*1]
            tdpbf16ps tmm0, tmm4, tmm6
            tileloadd tmm7, [{b} + {b_pitch}*1 + 64]
            tdpbf16ps tmm1, tmm4, tmm7
            tileloadd tmm5, [{low} + {a_pitch}*1]
            tdpbf16ps tmm2, tmm5, tmm6
            tdpbf16ps tmm3, tmm5, tmm7
            add {low}, {a_step}"
    }

    tile! {
        /// 16 rows of FP16 as sums: of each step the near numbers, then the rests.
        split_tile16, rows 16, terms 2, bytes [a_rest A_REST, b_rest B_REST],
        step "tileloadd tmm6, [{b} + {b_pitch}*1]
            tileloadd tmm5, [{a} + {a_pitch}*1 + {a_rest}]
            tdpbf16ps tmm0, tmm5, tmm6
            tileloadd tmm7, [{b} + {b_pitch}*1 + 64]
            tdpbf16ps tmm1, tmm5, tmm7
            tileloadd tmm4, [{a} + {a_pitch}*1]
            tdpbf16ps tmm0, tmm4, tmm6
            tdpbf16ps tmm1, tmm4, tmm7
            tileloadd tmm6, [{b} + {b_pitch}*1 + {b_rest}]
            tdpbf16ps tmm0, tmm4, tmm6
            tileloadd tmm7, [{b} + {b_pitch}*1 + {b_rest} + 64]
            tdpbf16ps tmm1, tmm4, tmm7"
    }

    tile! {
        /// 32 rows of FP16 as sums.
        split_tile32, rows 32, terms 2,
        bytes [c_down C_DOWN, a_rest A_REST, b_rest B_REST], low low,
        step "tileloadd tmm6, [{b} + {b_pitch}*1]
            tileloadd tmm4, [{a} + {a_pitch}*1 + {a_rest}]
            tdpbf16ps tmm0, tmm4, tmm6
            tileloadd tmm7, [{b} + {b_pitch}*1 + 64]
            tdpbf16ps tmm1, tmm4, tmm7
            tileloadd tmm5, [{low} + {a_pitch}*1 + {a_rest}]
            tdpbf16ps tmm2, tmm5, tmm6
            tileloadd tmm4, [{a} + {a_pitch}*1]
            tdpbf16ps tmm3, tmm5, tmm7
            tileloadd tmm5, [{low} + {a_pitch}*1]
            tdpbf16ps tmm0, tmm4, tmm6
            tdpbf16ps tmm2, tmm5, tmm6
            tileloadd tmm6, [{b} + {b_pitch}*1 + {b_rest}]
            tdpbf16ps tmm1, tmm4, tmm7
            tdpbf16ps tmm3, tmm5, tmm7
            tileloadd tmm7, [{b} + {b_pitch}*1 + {b_rest} + 64]
            tdpbf16ps tmm0, tmm4, tmm6
            tdpbf16ps tmm2, tmm5, tmm6
            tdpbf16ps tmm1, tmm4, tmm7
            tdpbf16ps tmm3, tmm5, tmm7
            add {low}, {a_step}"
    }

    /// FP16 numbers, whole steps of 32, each as near number and rest: of every step first the near ones.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")]
    pub fn split(from: &[f16], to: &mut [bf16]) {
        let (from, rest) = from.as_chunks::<32>();
        let (to, room) = to.as_chunks_mut::<64>();
        assert!(rest.is_empty() && room.is_empty() && from.len() == to.len());
        // SAFETY: any bits are a register of integers.
        let bits = |x: __m512bh| unsafe { std::mem::transmute::<__m512bh, __m512i>(x) };
        for (from, to) in from.iter().zip(to) {
            // SAFETY: 32 and 64 numbers of 2 bytes are one register and two.
            unsafe {
                let halves = _mm512_loadu_si512(from.as_ptr().cast());
                let wide = |lane: __m256i| _mm512_cvtph_ps(lane);
                let x0 = wide(_mm512_castsi512_si256(halves));
                let x1 = wide(_mm512_extracti64x4_epi64::<1>(halves));
                let near = bits(_mm512_cvtne2ps_pbh(x1, x0));
                let widened = |lane: __m256i| {
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(lane)))
                };
                // Exact, but for infinities, which have no rest.
                let rest = |x: __m512, lane: __m256i| {
                    let rest = _mm512_sub_ps(x, widened(lane));
                    let ordered = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(rest, rest);
                    _mm512_maskz_mov_ps(ordered, rest)
                };
                let low = rest(x0, _mm512_castsi512_si256(near));
                let high = rest(x1, _mm512_extracti64x4_epi64::<1>(near));
                _mm512_storeu_si512(to.as_mut_ptr().cast(), near);
                let rests = bits(_mm512_cvtne2ps_pbh(high, low));
                _mm512_storeu_si512(to.as_mut_ptr().add(32).cast(), rests);
            }
        }
    }

    /// Products in registers, for [`super::super::ceiling`]; returns multiply-adds of bf16 numbers.
    ///
    /// # Safety
    /// The instructions are available.
    pub unsafe fn products(rounds: usize) -> usize {
        // SAFETY: the caller's; tiles of zeros are as fast as any.
        unsafe {
            let _tiles = Tiles::open();
            asm!(
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                rounds = inout(reg) rounds => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem),
            );
        }
        4 * rounds * 16 * 16 * 32
    }
}
