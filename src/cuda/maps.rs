//! Tensor maps: how the copy engine of sm_90 is told where an operand lies.
//!
//! A map is encoded for the rows of one run, so that what an earlier run left behind them counts as
//! outside the tensor: it is read as zeros and never written.

use super::device::failed;
use super::params::TensorMap;
use crate::error::Result;
use crate::graph::Window;
use cudarc::driver::sys;
use std::ffi::c_void;

/// Elements of the inner extent of every box: 128 bytes, one row of the swizzle.
const SLICE: u32 = 64;
/// Pixels of a box in im2col mode, the rows of a tile.
const PIXELS: u32 = 128;

/// An FP16 tensor on the device. Addresses and pitches are multiples of 16 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tensor {
    /// `[rows * positions, columns]`, in boxes of 128 rows.
    Matrix { address: u64, positions: usize, columns: usize, pitch: usize },
    /// `[k, taps, columns]`, dense, in boxes of `filters` x 1.
    Filters { address: u64, k: usize, taps: usize, columns: usize, filters: u32 },
    /// `[rows, h, w, c]` under a convolution window.
    Image { address: u64, size: [usize; 3], pitch: usize, window: Window },
}

impl Tensor {
    /// The map for a run of `rows` rows.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when the driver refuses it.
    pub fn encode(&self, rows: usize) -> Result<TensorMap> {
        match *self {
            Tensor::Matrix { address, positions, columns, pitch } => {
                tiled(address, &[columns, rows * positions], &[pitch], &[SLICE, PIXELS])
            }
            Tensor::Filters { address, k, taps, columns, filters } => tiled(
                address,
                &[columns, taps, k],
                &[columns, taps * columns],
                &[SLICE, 1, filters],
            ),
            Tensor::Image { address, size: [h, w, c], pitch, window } => {
                im2col(address, [c, w, h, rows], pitch, &window)
            }
        }
    }
}

/// Whether the copy engine can cut out the pixels under a window: the corners of its bounding box and
/// the offsets of its taps fit 8 bits, its strides 8 steps (CUDA driver API,
/// `cuTensorMapEncodeIm2col`; PTX ISA, im2col mode).
pub(super) fn is_expressible(window: &Window) -> bool {
    let axis = |i: usize| {
        let reach = (window.kernel[i] - 1) * window.dilation[i];
        let (lower, upper) = corners(window, i);
        let corner = -128..=127;
        window.stride[i] <= 8 && reach <= 255 && corner.contains(&lower) && corner.contains(&upper)
    };
    axis(0) && axis(1)
}

/// First position of the bounding box, and its last relative to the last pixel.
fn corners(window: &Window, axis: usize) -> (i64, i64) {
    let pad = window.pad[axis] as i64;
    let reach = (window.kernel[axis] - 1) as i64 * window.dilation[axis] as i64;
    (-pad, pad - reach)
}

const TYPE: sys::CUtensorMapDataType = sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
const INTERLEAVE: sys::CUtensorMapInterleave =
    sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
const SWIZZLE: sys::CUtensorMapSwizzle = sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B;
const PROMOTION: sys::CUtensorMapL2promotion =
    sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
const FILL: sys::CUtensorMapFloatOOBfill =
    sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;

/// `sizes` and `boxes` innermost first, `pitches` in elements for all but the innermost.
fn tiled(address: u64, sizes: &[usize], pitches: &[usize], boxes: &[u32]) -> Result<TensorMap> {
    let sizes: Vec<u64> = sizes.iter().map(|&n| n as u64).collect();
    let strides: Vec<u64> = pitches.iter().map(|&n| n as u64 * 2).collect();
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: every array has the rank's length, less one for the strides, and outlives the call,
    // which only writes `map`.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            TYPE,
            sizes.len() as u32,
            address as *mut c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            boxes.as_ptr(),
            [1; 5].as_ptr(),
            INTERLEAVE,
            SWIZZLE,
            PROMOTION,
            FILL,
        )
    };
    encoded.result().map_err(|e| failed("tensor map", e))?;
    Ok(map.opaque)
}

/// `sizes` are C, W, H, N.
fn im2col(address: u64, sizes: [usize; 4], pitch: usize, window: &Window) -> Result<TensorMap> {
    let [_, w, h, _] = sizes;
    let strides = [pitch, w * pitch, h * w * pitch].map(|n| n as u64 * 2);
    let [(top, bottom), (left, right)] = [corners(window, 0), corners(window, 1)];
    let steps = [1, window.stride[1] as u32, window.stride[0] as u32, 1];
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: sizes and steps have length 4, strides 3, corners 2, as rank 4 asks; all outlive the
    // call, which only writes `map`.
    let encoded = unsafe {
        sys::cuTensorMapEncodeIm2col(
            &mut map,
            TYPE,
            4,
            address as *mut c_void,
            sizes.map(|n| n as u64).as_ptr(),
            strides.as_ptr(),
            [left as i32, top as i32].as_ptr(),
            [right as i32, bottom as i32].as_ptr(),
            SLICE,
            PIXELS,
            steps.as_ptr(),
            INTERLEAVE,
            SWIZZLE,
            PROMOTION,
            FILL,
        )
    };
    encoded.result().map_err(|e| failed("tensor map of an image", e))?;
    Ok(map.opaque)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_beyond_eight_bits_are_not_expressible() {
        let square = Window::square;
        assert!(is_expressible(&square(3, 1, 1)) && is_expressible(&square(7, 2, 3)));
        assert!(is_expressible(&Window { dilation: [36; 2], ..square(3, 1, 36) }));
        // DeepLab's widest rate at stride 8, then what passes each limit.
        assert!(!is_expressible(&square(1, 9, 0)));
        assert!(!is_expressible(&Window { dilation: [128; 2], ..square(3, 1, 128) }));
        assert!(!is_expressible(&square(260, 1, 130)));
        assert!(!is_expressible(&Window { pad: [0, 129], ..square(200, 1, 0) }));
    }
}
