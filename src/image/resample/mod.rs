//! Resampling that equals Pillow's `Image.resize` bit for bit.
//!
//! Pillow convolves along the rows and then along the columns, with filter weights in fixed point
//! and a rounding to u8 between the two passes; when shrinking, the filter's support grows with
//! the factor (antialias). Results therefore depend on the order of the passes and on the
//! rounding of every weight, both of which are kept here. (Pillow 13 swaps the passes for some
//! pictures whose axes are scaled differently; the order kept is that of all releases before it,
//! and of every release when both axes have the same factor, as for tiles.)
//!
//! Weights are exact on every instruction set, so all give the same bytes: see [`plan`].

mod axis;
mod plan;
mod portable;
mod simd;

use crate::error::{Error, Result};
use crate::recipe::Interpolation;
use axis::{Axis, PRECISION_BITS};
use plan::Plan;
use simd::Simd;
use std::fmt;

/// Largest side of an input or output, in pixels.
const MAX_SIDE: usize = 1 << 20;

/// Instructions that sums are computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// x86-64 with AVX-512 F, BW, VBMI and VNNI.
    Avx512,
    /// x86-64 with AVX2.
    Avx2,
    /// Any processor.
    Portable,
}

impl Isa {
    /// Every instruction set, the fastest first.
    pub const ALL: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Portable];

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        self == Isa::Portable || self.simd().is_some()
    }

    /// The fastest of this processor.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Portable)
    }

    fn simd(self) -> Option<Simd> {
        match self {
            Isa::Avx512 => Simd::avx512(),
            Isa::Avx2 => Simd::avx2(),
            Isa::Portable => None,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        })
    }
}

/// A resize between two fixed sizes: weights computed once, run many times from any thread.
#[derive(Clone, Debug)]
pub struct Resampler {
    in_size: [usize; 2],
    out_size: [usize; 2],
    /// Absent when the pass would copy.
    horizontal: Option<Box<Pass>>,
    vertical: Option<Box<Pass>>,
}

/// The filter of one axis: of each output sample the first input sample and their number, and as
/// many weights with 22 fraction bits as the widest has samples.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the type's text names its fields")]
pub struct FilterTable {
    /// Input samples there are.
    pub length: usize,
    pub bounds: Vec<(usize, usize)>,
    pub weights: Vec<i32>,
}

/// The weights of one axis, and how they are multiplied.
#[derive(Clone, Debug)]
struct Pass {
    axis: Axis,
    /// Absent when the portable loops run.
    plan: Option<(Simd, Plan)>,
}

impl Resampler {
    /// A resize of a whole `in_w x in_h` picture to `out_w x out_h` pixels.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when a side is zero or above 2^20.
    pub fn new(
        in_w: usize,
        in_h: usize,
        out_w: usize,
        out_h: usize,
        filter: Interpolation,
    ) -> Result<Resampler> {
        let whole = [0.0, 0.0, in_w as f32, in_h as f32];
        Resampler::with_box(in_w, in_h, whole, out_w, out_h, filter)
    }

    /// A resize of the part `[left, top, right, bottom]` of a picture, in pixels and fractions of
    /// them: Pillow's `box` argument.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when a side is zero or above 2^20, or the box is empty or overruns.
    pub fn with_box(
        in_w: usize,
        in_h: usize,
        part: [f32; 4],
        out_w: usize,
        out_h: usize,
        filter: Interpolation,
    ) -> Result<Resampler> {
        if [in_w, in_h, out_w, out_h].iter().any(|&n| n == 0 || n > MAX_SIDE) {
            return Err(Error::usage(format!(
                "resize {in_w} x {in_h} to {out_w} x {out_h}: sides must lie between 1 and {MAX_SIDE}"
            )));
        }
        let [left, top, right, bottom] = part;
        let inside = 0.0 <= left && left < right && right <= in_w as f32;
        if !(inside && 0.0 <= top && top < bottom && bottom <= in_h as f32) {
            return Err(Error::usage(format!(
                "resize: box {part:?} is not inside {in_w} x {in_h}"
            )));
        }
        let axis = |length: usize, from: f32, to: f32, out: usize| {
            let copies = length == out && from == 0.0 && to == out as f32;
            if copies {
                return None;
            }
            let axis = Axis::new(length, from, to, out, filter);
            Some(Box::new(Pass { axis, plan: None }))
        };
        let resampler = Resampler {
            in_size: [in_w, in_h],
            out_size: [out_w, out_h],
            horizontal: axis(in_w, left, right, out_w),
            vertical: axis(in_h, top, bottom, out_h),
        };
        resampler.with_isa(Isa::detect())
    }

    /// The same on other instructions than the fastest there are: the bytes stay the same. Rows shorter
    /// than a register stay portable.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when this processor does not have them.
    pub fn with_isa(mut self, isa: Isa) -> Result<Resampler> {
        if !isa.is_available() {
            return Err(Error::usage(format!("this processor has no {isa}")));
        }
        let simd = isa.simd().filter(|_| 3 * self.out_size[0] >= simd::MIN_ROW);
        let plan = |pass: &mut Pass, of: fn(&Axis, plan::Unit) -> Plan| {
            pass.plan = simd.map(|simd| (simd, of(&pass.axis, simd.unit())));
        };
        self.horizontal.iter_mut().for_each(|pass| plan(pass, Plan::along_rows));
        self.vertical.iter_mut().for_each(|pass| plan(pass, Plan::of_rows));
        Ok(self)
    }

    /// The filter of each axis, `[vertical, horizontal]`, as whole numbers: for a device that must
    /// give the same bytes. Where a pass would copy, its filter is one weight of 1.
    pub fn filters(&self) -> [FilterTable; 2] {
        let [in_w, in_h] = self.in_size;
        let table = |pass: &Option<Box<Pass>>, length: usize| match pass {
            Some(pass) => {
                let Axis { bounds, weights, .. } = pass.axis.clone();
                FilterTable { length, bounds, weights }
            }
            None => FilterTable {
                length,
                bounds: (0..length).map(|i| (i, 1)).collect(),
                weights: vec![1 << PRECISION_BITS; length],
            },
        };
        [table(&self.vertical, in_h), table(&self.horizontal, in_w)]
    }

    /// `[W, H]` of the output.
    pub fn out_size(&self) -> [usize; 2] {
        self.out_size
    }

    /// Resizes `src`, `[H, W, 3]` u8, into `dst`. `scratch` grows to what is needed and can be
    /// kept for the next call.
    ///
    /// # Panics
    /// When `src` or `dst` does not have the length of the sizes given at construction.
    pub fn run(&self, src: &[u8], dst: &mut [u8], scratch: &mut Vec<u8>) {
        let ([in_w, in_h], [out_w, out_h]) = (self.in_size, self.out_size);
        assert_eq!(src.len(), in_w * in_h * 3, "source of a resize");
        assert_eq!(dst.len(), out_w * out_h * 3, "destination of a resize");
        match (&self.horizontal, &self.vertical) {
            (None, None) => dst.copy_from_slice(src),
            (None, Some(vertical)) => vertical.of_rows(src, 0, in_w * 3, dst),
            (Some(horizontal), None) => {
                grow(scratch, horizontal.scratch_bytes(in_w, out_w));
                horizontal.along_rows(src, in_w, dst, out_w, scratch);
            }
            (Some(horizontal), Some(vertical)) => {
                // Only rows that the second pass reads.
                let (first, end) = vertical.axis.span();
                let between_bytes = (end - first) * out_w * 3;
                grow(scratch, between_bytes + horizontal.scratch_bytes(in_w, out_w));
                let (between, rest) = scratch.split_at_mut(between_bytes);
                let rows = &src[first * in_w * 3..end * in_w * 3];
                horizontal.along_rows(rows, in_w, between, out_w, rest);
                vertical.of_rows(between, first, out_w * 3, dst);
            }
        }
    }
}

impl Pass {
    /// Weighted sums along the rows of a picture `in_w` pixels wide.
    fn along_rows(
        &self,
        src: &[u8],
        in_w: usize,
        dst: &mut [u8],
        out_w: usize,
        scratch: &mut [u8],
    ) {
        match &self.plan {
            Some((simd, plan)) => {
                simd.along_rows(plan, (src, in_w * 3), (dst, out_w * 3), scratch);
            }
            None => portable::along_rows(&self.axis, src, in_w, dst, scratch),
        }
    }

    /// What [`Pass::along_rows`] needs of scratch.
    fn scratch_bytes(&self, in_w: usize, out_w: usize) -> usize {
        match &self.plan {
            Some((_, plan)) => Simd::scratch_bytes(plan, in_w * 3),
            None => portable::strip_bytes(in_w, out_w),
        }
    }

    /// Weighted sums of the rows of `src`, each `len` bytes, the first of which is input sample
    /// `first`; one row of `dst` an output sample.
    fn of_rows(&self, src: &[u8], first: usize, len: usize, dst: &mut [u8]) {
        match &self.plan {
            Some((simd, plan)) => simd.of_rows(plan, src, first, len, dst),
            None => portable::of_rows(&self.axis, src, first, len, dst),
        }
    }
}

fn grow(scratch: &mut Vec<u8>, bytes: usize) {
    if scratch.len() < bytes {
        scratch.resize(bytes, 0);
    }
}
