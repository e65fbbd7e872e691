//! Tensor maps. Functions are documented by the CUDA driver API manual, and so are the limits that
//! are checked here.
#![allow(missing_docs, non_snake_case)]

use std::ffi::{c_int, c_uint};

use super::{Driven, In, Out, Status, call, report, status};
use crate::tensor_map::{BYTES, Im2col, MAX_RANK, Swizzle, TensorMap};

/// Bytes of a `CUtensorMapDataType`.
fn element_bytes(kind: c_int) -> Option<u8> {
    Some(match kind {
        0 => 1,
        1 | 6 | 9 => 2,
        2 | 3 | 7 | 10 | 11 | 12 => 4,
        4 | 5 | 8 => 8,
        _ => return None,
    })
}

/// What both modes have in common.
struct Common {
    kind: c_int,
    rank: c_uint,
    base: u64,
    dims: In<u64>,
    strides: In<u64>,
    element_strides: In<u32>,
    interleave: c_int,
    swizzle: c_int,
    promotion: c_int,
    fill: c_int,
}

fn refuse(why: impl std::fmt::Display) -> Status {
    report(format_args!("tensor map refused: {why}"));
    status::INVALID_VALUE
}

/// Stores a map where the copy engine can read it.
fn deliver(out: &Out<[u8; BYTES]>, map: &TensorMap) -> Driven {
    if !out.is_aligned(64) {
        return Err(refuse("it would lie at no multiple of 64"));
    }
    out.set(map.to_bytes())
}

impl Common {
    fn map(&self) -> Driven<TensorMap> {
        let rank = self.rank as usize;
        if !(1..=MAX_RANK).contains(&rank) || self.interleave != 0 {
            return Err(refuse("rank 1 to 5 and no interleaving are supported"));
        }
        let element = element_bytes(self.kind).ok_or_else(|| refuse("unknown data type"))?;
        if !(0..=3).contains(&self.promotion) || !(0..=1).contains(&self.fill) {
            return Err(refuse("unknown L2 promotion or fill"));
        }
        if self.fill == 1 && !(6..=12).contains(&self.kind) {
            return Err(refuse("NaN fills floating-point tensors only"));
        }
        let swizzle = Swizzle::from_driver(self.swizzle as u32);
        let mut map = TensorMap {
            base: self.base,
            rank,
            dims: [1; MAX_RANK],
            strides: [0; MAX_RANK - 1],
            box_dims: [1; MAX_RANK],
            element_strides: [1; MAX_RANK],
            element,
            swizzle: swizzle.ok_or_else(|| refuse("unknown swizzle"))?,
            nan_fill: self.fill == 1,
            im2col: None,
        };
        if !self.base.is_multiple_of(16) {
            return Err(refuse("the address is not a multiple of 16"));
        }
        for axis in 0..rank {
            let dim = self.dims.get(axis)?;
            map.dims[axis] = u32::try_from(dim)
                .ok()
                .filter(|d| *d > 0)
                .ok_or_else(|| refuse("a dimension is 0 or does not fit 32 bits"))?;
            // Without interleaving the innermost step is not looked at.
            let step = if axis == 0 { 1 } else { self.element_strides.get(axis)? };
            if !(1..=8).contains(&step) {
                return Err(refuse("an element stride is not 1 to 8"));
            }
            map.element_strides[axis] = step as u8;
        }
        for axis in 0..rank - 1 {
            map.strides[axis] = self.strides.get(axis)?;
            if !map.strides[axis].is_multiple_of(16) || map.strides[axis] >= 1 << 40 {
                return Err(refuse("a stride is not a multiple of 16 below 2^40"));
            }
        }
        Ok(map)
    }
}

/// The innermost run of a box must fit a swizzled row and be whole 16-byte units.
fn check_row(map: &TensorMap, elements: u32) -> Driven {
    let bytes = elements * u32::from(map.element);
    let fits = map.swizzle == Swizzle::None || bytes <= map.swizzle.row();
    if fits && bytes.is_multiple_of(16) {
        return Ok(());
    }
    Err(refuse(format_args!("a row of {bytes} bytes")))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuTensorMapEncodeTiled(
    out: Out<[u8; BYTES]>,
    kind: c_int,
    rank: c_uint,
    base: u64,
    dims: In<u64>,
    strides: In<u64>,
    box_dims: In<u32>,
    element_strides: In<u32>,
    interleave: c_int,
    swizzle: c_int,
    promotion: c_int,
    fill: c_int,
) -> Status {
    let common = Common {
        kind,
        rank,
        base,
        dims,
        strides,
        element_strides,
        interleave,
        swizzle,
        promotion,
        fill,
    };
    call(|| {
        let mut map = common.map()?;
        for axis in 0..map.rank {
            let extent = box_dims.get(axis)?;
            if !(1..=256).contains(&extent) {
                return Err(refuse(format_args!("a box extent of {extent}")));
            }
            map.box_dims[axis] = extent as u16;
        }
        check_row(&map, u32::from(map.box_dims[0]))?;
        deliver(&out, &map)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuTensorMapEncodeIm2col(
    out: Out<[u8; BYTES]>,
    kind: c_int,
    rank: c_uint,
    base: u64,
    dims: In<u64>,
    strides: In<u64>,
    lower: In<c_int>,
    upper: In<c_int>,
    channels: c_uint,
    pixels: c_uint,
    element_strides: In<u32>,
    interleave: c_int,
    swizzle: c_int,
    promotion: c_int,
    fill: c_int,
) -> Status {
    let common = Common {
        kind,
        rank,
        base,
        dims,
        strides,
        element_strides,
        interleave,
        swizzle,
        promotion,
        fill,
    };
    call(|| {
        let mut map = common.map()?;
        if map.rank < 3 {
            return Err(refuse("an image has three dimensions or more"));
        }
        if !(1..=256).contains(&channels) || !(1..=1024).contains(&pixels) {
            return Err(refuse(format_args!("{channels} channels of {pixels} pixels")));
        }
        // Sixteen bits are shared by the axes.
        let limit = 1 << (16 / (map.rank - 2) - 1);
        let mut conv = Im2col {
            lower: [0; 3],
            upper: [0; 3],
            channels: channels as u16,
            pixels: pixels as u16,
        };
        for axis in 0..map.rank - 2 {
            let corners = [lower.get(axis)?, upper.get(axis)?];
            let extent = i64::from(map.dims[axis + 1]) + i64::from(corners[1]);
            if corners.iter().any(|c| !(-limit..limit).contains(c)) || extent <= corners[0].into() {
                return Err(refuse(format_args!("bounding box corners {corners:?}")));
            }
            [conv.lower[axis], conv.upper[axis]] = corners.map(|c| c as i16);
        }
        check_row(&map, channels)?;
        map.im2col = Some(conv);
        deliver(&out, &map)
    })
}
