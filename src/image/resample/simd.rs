//! The two passes with AVX2, and with AVX-512 and its byte instructions (VBMI, VNNI).
//!
//! Along rows a block of output bytes is summed at once, for four rows of the picture: one shuffle
//! brings the pixels of all sums beside each other. Sums of rows interleave as many rows as an
//! instruction takes. Weights come in words, see [`super::plan`]. `unsafe` is needed only to enter
//! the functions and to load and store registers.

use super::plan::{Plan, Unit};

/// Bytes of the shortest row that comes out: those of a register.
pub const MIN_ROW: usize = 64;

/// Rows of a picture that are summed along at once: weights and shuffles are loaded once for all.
const ROWS: usize = 4;

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

    /// What [`Simd::along_rows`] needs of scratch.
    pub fn scratch_bytes(plan: &Plan, in_len: usize) -> usize {
        (ROWS - 1) * in_len + plan.reach
    }

    /// Sums along the rows of a picture of `in_len` bytes a row; `out_len` bytes a row come out, at least
    /// [`MIN_ROW`].
    #[allow(unused_variables, reason = "where there is none")]
    pub fn along_rows(
        self,
        plan: &Plan,
        (src, in_len): (&[u8], usize),
        (dst, out_len): (&mut [u8], usize),
        scratch: &mut [u8],
    ) {
        match self {
            // SAFETY: `Proof` exists only where the instructions were found.
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(_) => unsafe {
                x86::avx2::along_rows(plan, (src, in_len), (dst, out_len), scratch)
            },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512(_) => unsafe {
                x86::avx512::along_rows(plan, (src, in_len), (dst, out_len), scratch)
            },
        }
    }

    /// Sums of the rows of `src`, each `len` bytes, at least [`MIN_ROW`], the first of which is input
    /// sample `first`.
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
    //! What both sets share, and the sets. A check for each block of sums, not for each load, sees to it
    //! that all loads are inside.

    use super::super::plan::{Block, PADDING, Plan, Unit};
    use super::{MIN_ROW, ROWS};
    use std::arch::x86_64::*;

    /// That this processor has the instructions.
    #[derive(Clone, Copy, Debug)]
    pub struct Proof(pub(super) ());

    /// Rows of a picture, and of the sums along them.
    struct Rows<'a> {
        src: &'a [u8],
        /// Where each row begins; where there are fewer, the last once more.
        starts: [usize; ROWS],
        /// Bytes of `src` from the beginning of each row on that may be read.
        reach: usize,
        dst: &'a mut [u8],
        /// Where each row of sums begins.
        outs: [usize; ROWS],
        out_len: usize,
    }

    impl<'a> Rows<'a> {
        /// The rows of `dst`, from the beginning of `src`.
        fn new(
            (src, in_len): (&'a [u8], usize),
            reach: usize,
            (dst, out_len): (&'a mut [u8], usize),
        ) -> Rows<'a> {
            let count = dst.len() / out_len;
            assert!(count <= ROWS && (count - 1) * in_len + reach <= src.len());
            let starts = |len| std::array::from_fn(|row| row.min(count - 1) * len);
            Rows { src, starts: starts(in_len), reach, dst, outs: starts(out_len), out_len }
        }

        /// Where the windows of a block begin in each row: those of all its groups may be read.
        #[inline(always)]
        fn windows(&self, block: &Block, unit: Unit) -> [*const u8; ROWS] {
            assert!(block.reach(unit) <= self.reach);
            self.starts.map(|start| self.src.as_ptr().wrapping_add(start + 3 * block.start))
        }

        /// Stores sums of each row, also those behind the block: the next one overwrites them.
        #[inline(always)]
        fn put<const N: usize>(&mut self, block: &Block, sums: [[u8; N]; ROWS]) {
            assert!(block.first_byte <= self.out_len);
            let room = self.out_len - block.first_byte;
            for (start, sums) in self.outs.iter().zip(&sums) {
                let at = start + block.first_byte;
                if room < N {
                    self.dst[at..at + room].copy_from_slice(&sums[..room]);
                } else {
                    // SAFETY: `new` took only whole rows, and this one has room for so many.
                    unsafe { self.dst.as_mut_ptr().add(at).cast::<[u8; N]>().write(*sums) };
                }
            }
        }
    }

    /// The words of `D` digits of a block, of which a register may be read from the beginning of each on.
    #[inline(always)]
    fn words<const D: usize>(plan: &Plan, block: &Block) -> *const u32 {
        let count = block.groups * D * block.samples + PADDING;
        plan.words[block.words..][..count].as_ptr()
    }

    /// The end of a picture with zeros behind it.
    fn padded<'a>(src: &[u8], to: &'a mut [u8]) -> &'a [u8] {
        to[..src.len()].copy_from_slice(src);
        to[src.len()..].fill(0);
        to
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
                (src, in_len): (&[u8], usize),
                (dst, out_len): (&mut [u8], usize),
                scratch: &mut [u8],
            ) {
                for (i, dst) in dst.chunks_mut(ROWS * out_len).enumerate() {
                    // A window may reach into the row below: what it finds there has weight 0.
                    let needed = (dst.len() / out_len - 1) * in_len + plan.reach;
                    let mut src = &src[i * ROWS * in_len..];
                    if src.len() < needed {
                        src = padded(src, &mut scratch[..needed]);
                    }
                    let rows = &mut Rows::new((src, in_len), plan.reach, (dst, out_len));
                    for (i, block) in plan.blocks.iter().enumerate() {
                        by_digits!(block, sums_along(plan, i, block, rows));
                    }
                }
            }

            #[target_feature(enable = $features)]
            pub fn of_rows(plan: &Plan, src: &[u8], first: usize, len: usize, dst: &mut [u8]) {
                for (block, out) in plan.blocks.iter().zip(dst.chunks_exact_mut(len)) {
                    let rows = &src[(block.start - first) * len..][..block.count * len];
                    by_digits!(block, sums_of(plan, block, rows, out));
                }
            }

            /// Sums of rows of as many bytes as `out` has.
            #[target_feature(enable = $features)]
            fn sums_of<const D: usize>(plan: &Plan, block: &Block, rows: &[u8], out: &mut [u8]) {
                const BYTES: usize = size_of::<Bytes>();
                const { assert!(BYTES <= MIN_ROW) };
                let len = out.len();
                assert!(BYTES <= len && 0 < block.count && block.count * len <= rows.len());
                let (words, _) = plan.words[block.words..].as_chunks::<D>();
                let words = &words[..block.groups];
                // The last ones begin earlier, so that they end with the row.
                for at in (0..len).step_by(BYTES).map(|at| at.min(len - BYTES)) {
                    let mut sums = [[zero(); D]; 4];
                    for (group, words) in words.iter().enumerate() {
                        let rows = std::array::from_fn(|tap| {
                            // A tap behind the last has weight 0.
                            let row = (group * UNIT.taps + tap).min(block.count - 1);
                            // SAFETY: the row is inside, and so many bytes of it from `at` on.
                            unsafe { load(rows.as_ptr().add(row * len + at)) }
                        });
                        let words = words.map(|word| all(word));
                        for (sums, pixels) in sums.iter_mut().zip(interleaved(rows)) {
                            add(sums, pixels, &words);
                        }
                    }
                    let bytes = packed(sums.each_ref().map(|sums| rounded(sums, block.shift)));
                    // SAFETY: so many bytes of `out` are left from `at` on.
                    unsafe { store(out.as_mut_ptr().add(at), bytes) };
                }
            }
        };
    }

    pub mod avx512 {
        //! 16 sums of four products of 8 bits.

        use super::*;

        pub const UNIT: Unit = Unit { lanes: 16, taps: 4, bits: 8, window: 64 };

        /// A register of pixels, or of sums.
        type Bytes = __m512i;

        passes!("avx512f,avx512bw,avx512vbmi,avx512vnni");

        /// # Safety
        /// 64 bytes from there on can be read.
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn load(from: *const u8) -> Bytes {
            // SAFETY: the caller's; no alignment is asked for.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }

        /// # Safety
        /// 64 bytes from there on can be written.
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn store(to: *mut u8, bytes: Bytes) {
            // SAFETY: the caller's; no alignment is asked for.
            unsafe { _mm512_storeu_si512(to.cast(), bytes) }
        }

        #[inline]
        #[target_feature(enable = "avx512f")]
        fn zero() -> Bytes {
            _mm512_setzero_si512()
        }

        #[inline]
        #[target_feature(enable = "avx512f")]
        fn all(word: u32) -> Bytes {
            _mm512_set1_epi32(word as i32)
        }

        /// Adds the products of one group of taps to the sums of each digit.
        #[inline]
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn add<const D: usize>(sums: &mut [Bytes; D], pixels: Bytes, words: &[Bytes; D]) {
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = _mm512_dpbusd_epi32(*sum, pixels, *word);
            }
        }

        /// Whole numbers from the sums of digits.
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn rounded<const D: usize>(sums: &[Bytes; D], shift: u32) -> Bytes {
            let mut sum = _mm512_set1_epi32(1 << (shift - 1));
            for (place, digit) in sums.iter().enumerate() {
                let shifted = _mm512_sll_epi32(*digit, _mm_cvtsi32_si128(8 * place as i32));
                sum = _mm512_add_epi32(sum, shifted);
            }
            _mm512_sra_epi32(sum, _mm_cvtsi32_si128(shift as i32))
        }

        /// The pixels of four rows beside each other, a quarter of the row in each register.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw")]
        fn interleaved([a, b, c, d]: [Bytes; 4]) -> [Bytes; 4] {
            let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
            let (ef, gh) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
            [
                _mm512_unpacklo_epi16(ab, cd),
                _mm512_unpackhi_epi16(ab, cd),
                _mm512_unpacklo_epi16(ef, gh),
                _mm512_unpackhi_epi16(ef, gh),
            ]
        }

        /// The bytes of sums in the order of [`interleaved`].
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw")]
        fn packed([a, b, c, d]: [Bytes; 4]) -> Bytes {
            _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d))
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
        fn sums_along<const D: usize>(plan: &Plan, i: usize, block: &Block, rows: &mut Rows<'_>) {
            let shuffle: &[u8; 64] = plan.shuffles[i * UNIT.window..].first_chunk().unwrap();
            let samples: &[u8; 16] = plan.samples[i * UNIT.lanes..].first_chunk().unwrap();
            // SAFETY: the arrays are as long as the registers; no alignment is asked for.
            let (shuffle, samples) =
                unsafe { (load(shuffle.as_ptr()), _mm_loadu_si128(samples.as_ptr().cast())) };
            let samples = _mm512_cvtepu8_epi32(samples);
            let words = words::<D>(plan, block);
            let windows = rows.windows(block, UNIT);
            let mut sums = [[zero(); D]; ROWS];
            for group in 0..block.groups {
                let words: [Bytes; D] = std::array::from_fn(|digit| {
                    let at = (group * D + digit) * block.samples;
                    // SAFETY: `words` saw to it.
                    let near = unsafe { load(words.add(at).cast()) };
                    _mm512_permutexvar_epi32(samples, near)
                });
                for (window, sums) in windows.iter().zip(&mut sums) {
                    // SAFETY: `windows` saw to it.
                    let pixels = unsafe { load(window.add(group * UNIT.taps * 3)) };
                    add(sums, _mm512_permutexvar_epi8(shuffle, pixels), &words);
                }
            }
            let bytes = sums.each_ref().map(|sums| {
                let sums = _mm512_max_epi32(rounded(sums, block.shift), zero());
                let mut bytes = [0; 16];
                // SAFETY: the array is as long as the register; no alignment is asked for.
                unsafe {
                    _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtusepi32_epi8(sums))
                };
                bytes
            });
            rows.put(block, bytes);
        }
    }

    pub mod avx2 {
        //! Eight sums of two products of 16 bits: along rows four of each of two rows.

        use super::*;

        pub const UNIT: Unit = Unit { lanes: 4, taps: 2, bits: 16, window: 16 };

        /// A register of pixels, or of sums.
        type Bytes = __m256i;

        passes!("avx2");

        /// # Safety
        /// 32 bytes from there on can be read.
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn load(from: *const u8) -> Bytes {
            // SAFETY: the caller's; no alignment is asked for.
            unsafe { _mm256_loadu_si256(from.cast()) }
        }

        /// # Safety
        /// 16 bytes from there on can be read.
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn load_half(from: *const u8) -> __m128i {
            // SAFETY: the caller's; no alignment is asked for.
            unsafe { _mm_loadu_si128(from.cast()) }
        }

        /// # Safety
        /// 32 bytes from there on can be written.
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn store(to: *mut u8, bytes: Bytes) {
            // SAFETY: the caller's; no alignment is asked for.
            unsafe { _mm256_storeu_si256(to.cast(), bytes) }
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        fn zero() -> Bytes {
            _mm256_setzero_si256()
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        fn all(word: u32) -> Bytes {
            _mm256_set1_epi32(word as i32)
        }

        /// Adds the products of one group of taps to the sums of each digit.
        #[inline]
        #[target_feature(enable = "avx2")]
        fn add<const D: usize>(sums: &mut [Bytes; D], pixels: Bytes, words: &[Bytes; D]) {
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pixels, *word));
            }
        }

        /// Whole numbers from the sums of digits.
        #[inline]
        #[target_feature(enable = "avx2")]
        fn rounded<const D: usize>(sums: &[Bytes; D], shift: u32) -> Bytes {
            let mut sum = _mm256_set1_epi32(1 << (shift - 1));
            for (place, digit) in sums.iter().enumerate() {
                let shifted = _mm256_sll_epi32(*digit, _mm_cvtsi32_si128(16 * place as i32));
                sum = _mm256_add_epi32(sum, shifted);
            }
            _mm256_sra_epi32(sum, _mm_cvtsi32_si128(shift as i32))
        }

        /// The pixels of two rows beside each other, widened, a quarter of the row in each register.
        #[inline]
        #[target_feature(enable = "avx2")]
        fn interleaved([a, b]: [Bytes; 2]) -> [Bytes; 4] {
            let (low, high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            [
                _mm256_unpacklo_epi8(low, zero()),
                _mm256_unpackhi_epi8(low, zero()),
                _mm256_unpacklo_epi8(high, zero()),
                _mm256_unpackhi_epi8(high, zero()),
            ]
        }

        /// The bytes of sums in the order of [`interleaved`].
        #[inline]
        #[target_feature(enable = "avx2")]
        fn packed([a, b, c, d]: [Bytes; 4]) -> Bytes {
            _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d))
        }

        #[target_feature(enable = "avx2")]
        fn sums_along<const D: usize>(plan: &Plan, i: usize, block: &Block, rows: &mut Rows<'_>) {
            let shuffle: &[u8; 16] = plan.shuffles[i * UNIT.window..].first_chunk().unwrap();
            // SAFETY: the array is as long as the register.
            let shuffle = _mm256_broadcastsi128_si256(unsafe { load_half(shuffle.as_ptr()) });
            let samples: &[u8; 4] = plan.samples[i * UNIT.lanes..].first_chunk().unwrap();
            let samples = _mm256_cvtepu8_epi32(_mm_set1_epi32(i32::from_le_bytes(*samples)));
            let words = words::<D>(plan, block);
            let windows = rows.windows(block, UNIT);
            let (pairs, _) = windows.as_chunks::<2>();
            let mut sums = [[zero(); D]; ROWS / 2];
            for group in 0..block.groups {
                let words: [Bytes; D] = std::array::from_fn(|digit| {
                    let at = (group * D + digit) * block.samples;
                    // SAFETY: `words` saw to it.
                    let near = unsafe { load(words.add(at).cast()) };
                    _mm256_permutevar8x32_epi32(near, samples)
                });
                for (pair, sums) in pairs.iter().zip(&mut sums) {
                    // SAFETY: `windows` saw to it.
                    let load = |at: *const u8| unsafe { load_half(at.add(group * UNIT.taps * 3)) };
                    let pixels = _mm256_set_m128i(load(pair[1]), load(pair[0]));
                    add(sums, _mm256_shuffle_epi8(pixels, shuffle), &words);
                }
            }
            // Rows 0 and 2 in the lower half, 1 and 3 in the upper.
            let [low, high] = sums.each_ref().map(|sums| rounded(sums, block.shift));
            let packed = _mm256_packs_epi32(low, high);
            let packed = _mm256_packus_epi16(packed, packed);
            let even = _mm256_castsi256_si128(packed);
            let odd = _mm256_extracti128_si256::<1>(packed);
            let sums = [
                _mm_cvtsi128_si32(even),
                _mm_cvtsi128_si32(odd),
                _mm_extract_epi32::<1>(even),
                _mm_extract_epi32::<1>(odd),
            ];
            rows.put(block, sums.map(i32::to_le_bytes));
        }
    }
}
