//! The two passes with AVX2, and with AVX-512 and its byte instructions (VBMI, VNNI).
//!
//! Along rows a block of output bytes is summed at once, for four rows of the picture: one shuffle
//! brings the pixels of all sums beside each other. Sums of rows interleave as many rows as an
//! instruction takes. Weights come in words, see [`super::plan`]. `unsafe` is needed only to enter
//! the functions and to load and store registers.

use super::plan::{Plan, Unit};

/// Instructions that were found.
#[derive(Clone, Copy, Debug)]
pub enum Simd {
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Proof),
    #[cfg(target_arch = "x86_64")]
    Avx512(x86::Proof),
}

impl Simd {
    /// AVX2, if this processor has it.
    pub fn avx2() -> Option<Simd> {
        #[cfg(target_arch = "x86_64")]
        return is_x86_feature_detected!("avx2").then_some(Simd::Avx2(x86::Proof(())));
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// AVX-512 with what is needed of it, if this processor has it.
    pub fn avx512() -> Option<Simd> {
        #[cfg(target_arch = "x86_64")]
        {
            let found = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vbmi")
                && is_x86_feature_detected!("avx512vnni");
            found.then_some(Simd::Avx512(x86::Proof(())))
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// For which plans are made.
    pub fn unit(self) -> Unit {
        match self {
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(_) => x86::avx2::UNIT,
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512(_) => x86::avx512::UNIT,
        }
    }

    /// Sums along the rows of a picture of `in_len` bytes a row; `out_len` bytes a row come out.
    #[allow(unused_variables, reason = "where there is none")]
    pub fn along_rows(
        self,
        plan: &Plan,
        src: &[u8],
        in_len: usize,
        dst: &mut [u8],
        out_len: usize,
    ) {
        match self {
            // SAFETY: `Proof` exists only where the instructions were found.
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(_) => unsafe { x86::avx2::along_rows(plan, src, in_len, dst, out_len) },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512(_) => unsafe { x86::avx512::along_rows(plan, src, in_len, dst, out_len) },
        }
    }

    /// Sums of the rows of `src`, each `len` bytes, the first of which is input sample `first`.
    #[allow(unused_variables, reason = "where there is none")]
    pub fn of_rows(self, plan: &Plan, src: &[u8], first: usize, len: usize, dst: &mut [u8]) {
        match self {
            // SAFETY: `Proof` exists only where the instructions were found.
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(_) => unsafe { x86::avx2::of_rows(plan, src, first, len, dst) },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512(_) => unsafe { x86::avx512::of_rows(plan, src, first, len, dst) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! What both sets share, and the sets.

    use super::super::plan::{Block, Plan, Unit};
    use std::arch::x86_64::*;

    /// That this processor has the instructions.
    #[derive(Clone, Copy, Debug)]
    pub struct Proof(pub(super) ());

    /// Rows of a picture that are summed along at once: weights and shuffles are loaded once for all.
    const ROWS: usize = 4;

    struct Rows<'a> {
        src: &'a [u8],
        /// Where each row begins; where there are fewer, the last once more.
        starts: [usize; ROWS],
        dst: &'a mut [u8],
        /// Where each row begins and ends.
        outs: [(usize, usize); ROWS],
    }

    impl<'a> Rows<'a> {
        /// The rows of `dst`, from the beginning of `src`.
        fn new(src: &'a [u8], in_len: usize, dst: &'a mut [u8], out_len: usize) -> Rows<'a> {
            let last = dst.len() / out_len - 1;
            let rows = [0, 1, 2, 3].map(|row: usize| row.min(last));
            let outs = rows.map(|row| (row * out_len, (row + 1) * out_len));
            Rows { src, starts: rows.map(|row| row * in_len), dst, outs }
        }

        /// Stores sums of a row, also those behind the block: the next one overwrites them.
        #[inline(always)]
        fn put<const N: usize>(&mut self, row: usize, block: &Block, sums: [u8; N]) {
            let (start, end) = self.outs[row];
            put(&mut self.dst[start + block.first_byte..end], sums);
        }
    }

    /// Stores as many bytes as there is room for.
    #[inline(always)]
    fn put<const N: usize>(out: &mut [u8], bytes: [u8; N]) {
        match out.first_chunk_mut() {
            Some(whole) => *whole = bytes,
            None => out.copy_from_slice(&bytes[..out.len()]),
        }
    }

    /// What is left of a picture, and zeros. A call to copy memory, which keeps no register, would make
    /// the loops around it hold their sums in memory.
    #[inline(always)]
    fn cut_off<const N: usize>(src: &[u8], at: usize) -> [u8; N] {
        std::array::from_fn(|i| src.get(at + i).copied().unwrap_or(0))
    }

    /// Calls a function for the number of digits of a block.
    macro_rules! by_digits {
        ($block:expr, $function:ident $arguments:tt) => {
            match $block.digits {
                1 => $function::<1> $arguments,
                2 => $function::<2> $arguments,
                3 => $function::<3> $arguments,
                _ => $function::<4> $arguments,
            }
        };
    }

    /// The two passes, of functions that a set defines: `sums_along` for a block of [`Rows`], `sums_of`
    /// for a row of sums.
    macro_rules! passes {
        ($features:literal) => {
            #[target_feature(enable = $features)]
            pub fn along_rows(
                plan: &Plan,
                src: &[u8],
                in_len: usize,
                dst: &mut [u8],
                out_len: usize,
            ) {
                // A window may reach into the row below: what it finds there has weight 0.
                for (i, dst) in dst.chunks_mut(ROWS * out_len).enumerate() {
                    let rows = &mut Rows::new(&src[i * ROWS * in_len..], in_len, dst, out_len);
                    for (i, block) in plan.blocks.iter().enumerate() {
                        by_digits!(block, sums_along(plan, i, block, rows));
                    }
                }
            }

            #[target_feature(enable = $features)]
            pub fn of_rows(plan: &Plan, src: &[u8], first: usize, len: usize, dst: &mut [u8]) {
                for (block, out) in plan.blocks.iter().zip(dst.chunks_exact_mut(len)) {
                    let rows = &src[(block.start - first) * len..];
                    by_digits!(block, sums_of(plan, block, rows, out));
                }
            }
        };
    }

    pub mod avx512 {
        //! 16 sums of four products of 8 bits.

        use super::*;

        pub const UNIT: Unit = Unit { lanes: 16, taps: 4, bits: 8, window: 64 };

        passes!("avx512f,avx512bw,avx512vbmi,avx512vnni");

        #[target_feature(enable = "avx512f")]
        fn load(bytes: &[u8; 64]) -> __m512i {
            // SAFETY: the array is as long as the register; no alignment is asked for.
            unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
        }

        /// 64 bytes from `at`; zeros where there are none.
        #[target_feature(enable = "avx512f,avx512bw")]
        fn window(src: &[u8], at: usize) -> __m512i {
            let rest = src.get(at..).unwrap_or_default();
            match rest.first_chunk() {
                Some(whole) => load(whole),
                // SAFETY: bytes behind `rest` are masked out, and such are not touched.
                None => unsafe {
                    _mm512_maskz_loadu_epi8((1 << rest.len()) - 1, rest.as_ptr().cast())
                },
            }
        }

        /// Adds the products of one group of taps to the sums of each digit.
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn add<const D: usize>(sums: &mut [__m512i; D], pixels: __m512i, words: &[__m512i; D]) {
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = _mm512_dpbusd_epi32(*sum, pixels, *word);
            }
        }

        /// Whole numbers from the sums of digits.
        #[target_feature(enable = "avx512f")]
        fn rounded<const D: usize>(sums: &[__m512i; D], shift: u32) -> __m512i {
            let mut sum = _mm512_set1_epi32(1 << (shift - 1));
            for (place, digit) in sums.iter().enumerate() {
                let shifted = _mm512_sll_epi32(*digit, _mm_cvtsi32_si128(8 * place as i32));
                sum = _mm512_add_epi32(sum, shifted);
            }
            _mm512_sra_epi32(sum, _mm_cvtsi32_si128(shift as i32))
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
        fn sums_along<const D: usize>(plan: &Plan, i: usize, block: &Block, rows: &mut Rows<'_>) {
            let shuffle = window(&plan.shuffles, i * UNIT.window);
            let (samples, _) = plan.samples[i * UNIT.lanes..].as_chunks::<16>();
            // SAFETY: the array is as long as the register; no alignment is asked for.
            let samples = unsafe { _mm_loadu_si128(samples[0].as_ptr().cast()) };
            let samples = _mm512_cvtepu8_epi32(samples);
            let mut sums = [[_mm512_setzero_si512(); D]; ROWS];
            for group in 0..block.groups {
                let mut words = [_mm512_setzero_si512(); D];
                for (digit, word) in words.iter_mut().enumerate() {
                    let at = block.word(group, digit);
                    let near: &[u32; 16] = plan.words[at..].first_chunk().unwrap();
                    // SAFETY: the array is as long as the register; no alignment is asked for.
                    let near = unsafe { _mm512_loadu_si512(near.as_ptr().cast()) };
                    *word = _mm512_permutexvar_epi32(samples, near);
                }
                let at = (block.start + group * UNIT.taps) * 3;
                for (start, sums) in rows.starts.iter().zip(&mut sums) {
                    let pixels = window(rows.src, start + at);
                    add(sums, _mm512_permutexvar_epi8(shuffle, pixels), &words);
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                let sums = _mm512_max_epi32(rounded(sums, block.shift), _mm512_setzero_si512());
                let mut bytes = [0; 16];
                // SAFETY: the array is as long as the register; no alignment is asked for.
                unsafe {
                    _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtusepi32_epi8(sums))
                };
                rows.put(row, block, bytes);
            }
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        fn sums_of<const D: usize>(plan: &Plan, block: &Block, rows: &[u8], out: &mut [u8]) {
            let len = out.len();
            for (i, out) in out.chunks_mut(64).enumerate() {
                let mut sums = [[_mm512_setzero_si512(); D]; 4];
                for group in 0..block.groups {
                    let row = |tap: usize| {
                        let row = (group * UNIT.taps + tap).min(block.count - 1);
                        window(rows, row * len + i * 64)
                    };
                    let (a, b, c, d) = (row(0), row(1), row(2), row(3));
                    let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
                    let (ef, gh) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
                    let fours = [
                        _mm512_unpacklo_epi16(ab, cd),
                        _mm512_unpackhi_epi16(ab, cd),
                        _mm512_unpacklo_epi16(ef, gh),
                        _mm512_unpackhi_epi16(ef, gh),
                    ];
                    let mut words = [_mm512_setzero_si512(); D];
                    for (digit, word) in words.iter_mut().enumerate() {
                        *word = _mm512_set1_epi32(plan.words[block.word(group, digit)] as i32);
                    }
                    for (sums, four) in sums.iter_mut().zip(fours) {
                        add(sums, four, &words);
                    }
                }
                let [a, b, c, d] = &sums;
                let packed = _mm512_packus_epi16(
                    _mm512_packs_epi32(rounded(a, block.shift), rounded(b, block.shift)),
                    _mm512_packs_epi32(rounded(c, block.shift), rounded(d, block.shift)),
                );
                let mut bytes = [0; 64];
                // SAFETY: the array is as long as the register; no alignment is asked for.
                unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), packed) };
                put(out, bytes);
            }
        }
    }

    pub mod avx2 {
        //! Eight sums of two products of 16 bits: along rows four of each of two rows.

        use super::*;

        pub const UNIT: Unit = Unit { lanes: 4, taps: 2, bits: 16, window: 16 };

        passes!("avx2");

        #[target_feature(enable = "avx2")]
        fn load(bytes: &[u8; 16]) -> __m128i {
            // SAFETY: the array is as long as the register; no alignment is asked for.
            unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
        }

        /// 16 bytes from `at`.
        #[target_feature(enable = "avx2")]
        fn window(src: &[u8], at: usize) -> __m128i {
            match src.get(at..).and_then(|rest| rest.first_chunk()) {
                Some(whole) => load(whole),
                None => load(&cut_off(src, at)),
            }
        }

        /// 32 bytes from `at`.
        #[target_feature(enable = "avx2")]
        fn wide(src: &[u8], at: usize) -> __m256i {
            let load = |bytes: &[u8; 32]| {
                // SAFETY: the array is as long as the register; no alignment is asked for.
                unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
            };
            match src.get(at..).and_then(|rest| rest.first_chunk()) {
                Some(whole) => load(whole),
                None => load(&cut_off(src, at)),
            }
        }

        /// Adds the products of one group of taps to the sums of each digit.
        #[target_feature(enable = "avx2")]
        fn add<const D: usize>(sums: &mut [__m256i; D], pixels: __m256i, words: &[__m256i; D]) {
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pixels, *word));
            }
        }

        /// Whole numbers from the sums of digits.
        #[target_feature(enable = "avx2")]
        fn rounded<const D: usize>(sums: &[__m256i; D], shift: u32) -> __m256i {
            let mut sum = _mm256_set1_epi32(1 << (shift - 1));
            for (place, digit) in sums.iter().enumerate() {
                let shifted = _mm256_sll_epi32(*digit, _mm_cvtsi32_si128(16 * place as i32));
                sum = _mm256_add_epi32(sum, shifted);
            }
            _mm256_sra_epi32(sum, _mm_cvtsi32_si128(shift as i32))
        }

        #[target_feature(enable = "avx2")]
        fn sums_along<const D: usize>(plan: &Plan, i: usize, block: &Block, rows: &mut Rows<'_>) {
            let shuffle = window(&plan.shuffles, i * UNIT.window);
            let shuffle = _mm256_broadcastsi128_si256(shuffle);
            let [a, b, c, d] = *plan.samples[i * UNIT.lanes..].first_chunk().unwrap();
            let samples = u32::from_le_bytes([a, b, c, d]) as i32;
            let samples = _mm256_cvtepu8_epi32(_mm_set1_epi32(samples));
            let mut sums = [[_mm256_setzero_si256(); D]; ROWS / 2];
            for group in 0..block.groups {
                let mut words = [_mm256_setzero_si256(); D];
                for (digit, word) in words.iter_mut().enumerate() {
                    let at = block.word(group, digit);
                    let near: &[u32; 8] = plan.words[at..].first_chunk().unwrap();
                    // SAFETY: the array is as long as the register; no alignment is asked for.
                    let near = unsafe { _mm256_loadu_si256(near.as_ptr().cast()) };
                    *word = _mm256_permutevar8x32_epi32(near, samples);
                }
                let at = (block.start + group * UNIT.taps) * 3;
                let [e, f, g, h] = rows.starts.map(|start| window(rows.src, start + at));
                for (pixels, sums) in [(e, f), (g, h)].into_iter().zip(&mut sums) {
                    let pixels = _mm256_set_m128i(pixels.1, pixels.0);
                    add(sums, _mm256_shuffle_epi8(pixels, shuffle), &words);
                }
            }
            // Rows 0 and 2 in the lower half, 1 and 3 in the upper.
            let [low, high] = &sums;
            let packed = _mm256_packs_epi32(rounded(low, block.shift), rounded(high, block.shift));
            let packed = _mm256_packus_epi16(packed, packed);
            let even = _mm_cvtsi128_si64(_mm256_castsi256_si128(packed)).to_le_bytes();
            let odd = _mm_cvtsi128_si64(_mm256_extracti128_si256::<1>(packed)).to_le_bytes();
            let (even, _) = even.as_chunks::<4>();
            let (odd, _) = odd.as_chunks::<4>();
            for (row, bytes) in [even[0], odd[0], even[1], odd[1]].into_iter().enumerate() {
                rows.put(row, block, bytes);
            }
        }

        #[target_feature(enable = "avx2")]
        fn sums_of<const D: usize>(plan: &Plan, block: &Block, rows: &[u8], out: &mut [u8]) {
            let (len, zero) = (out.len(), _mm256_setzero_si256());
            for (i, out) in out.chunks_mut(32).enumerate() {
                let mut sums = [[zero; D]; 4];
                for group in 0..block.groups {
                    let row = |tap: usize| {
                        let row = (group * UNIT.taps + tap).min(block.count - 1);
                        wide(rows, row * len + i * 32)
                    };
                    let (a, b) = (row(0), row(1));
                    let (low, high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
                    let twos = [
                        _mm256_unpacklo_epi8(low, zero),
                        _mm256_unpackhi_epi8(low, zero),
                        _mm256_unpacklo_epi8(high, zero),
                        _mm256_unpackhi_epi8(high, zero),
                    ];
                    let mut words = [zero; D];
                    for (digit, word) in words.iter_mut().enumerate() {
                        *word = _mm256_set1_epi32(plan.words[block.word(group, digit)] as i32);
                    }
                    for (sums, two) in sums.iter_mut().zip(twos) {
                        add(sums, two, &words);
                    }
                }
                let [a, b, c, d] = &sums;
                let packed = _mm256_packus_epi16(
                    _mm256_packs_epi32(rounded(a, block.shift), rounded(b, block.shift)),
                    _mm256_packs_epi32(rounded(c, block.shift), rounded(d, block.shift)),
                );
                let mut bytes = [0; 32];
                // SAFETY: the array is as long as the register; no alignment is asked for.
                unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), packed) };
                put(out, bytes);
            }
        }
    }
}
