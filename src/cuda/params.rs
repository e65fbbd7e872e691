//! Argument blocks of the kernels: the same structures as in `kernels/`, field by field.
//!
//! `Pod` refuses a structure with hidden padding, and a test compares each size with the `.param`
//! the compiler wrote. A pointer is its 64-bit address on the device, 0 for none. The first field of
//! every block is the number of rows, which a launch fills in.

use bytemuck::{Pod, Zeroable};

/// `sink.cuh`: where a result goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Sink {
    /// `[positions, half_pitch]` FP16, or 0.
    pub half: u64,
    /// `[positions, full_pitch]` f32, or 0.
    pub full: u64,
    /// Elements from one position to the next.
    pub half_pitch: i32,
    /// Elements from one position to the next.
    pub full_pitch: i32,
}

/// `epilogue.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Epilogue {
    pub scale: u64,
    pub bias: u64,
    pub residual: u64,
    pub residual_pitch: u64,
    pub out: Sink,
}

/// `gemm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Gemm {
    pub rows: i32,
    pub positions: i32,
    pub c: i32,
    pub k: i32,
    pub pitch: i32,
    pub weight_pitch: i32,
    pub x: u64,
    pub weight: u64,
    pub epilogue: Epilogue,
}

/// `conv2d.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Conv2d {
    pub rows: i32,
    /// H, W, C.
    pub input: [i32; 3],
    /// P, Q, K.
    pub output: [i32; 3],
    pub window: Window,
    pub pitch: i32,
    pub c_padded: i32,
    pub unused: i32,
    pub x: u64,
    pub weight: u64,
    pub epilogue: Epilogue,
}

/// What `cuTensorMapEncodeTiled` fills.
pub type TensorMap = [u64; 16];

/// `sm90/gemm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct WideGemm {
    pub rows: i32,
    pub positions: i32,
    pub k: i32,
    pub columns: i32,
    pub unused: [i32; 12],
    pub x: TensorMap,
    pub weight: TensorMap,
    pub epilogue: Epilogue,
    pub unused_end: u64,
}

/// `sm90/conv2d.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct WideConv2d {
    pub rows: i32,
    /// H, W, C.
    pub input: [i32; 3],
    /// P, Q, K.
    pub output: [i32; 3],
    pub window: Window,
    pub pitch: i32,
    pub weight: TensorMap,
    pub x: u64,
    pub c_padded: i32,
    pub unused: i32,
    pub epilogue: Epilogue,
    pub unused_end: [u64; 7],
}

/// Window geometry, `[vertical, horizontal]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Window {
    pub kernel: [i32; 2],
    pub stride: [i32; 2],
    pub pad: [i32; 2],
    pub dilation: [i32; 2],
}

/// `pool.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Pool {
    pub rows: i32,
    /// H, W, C.
    pub input: [i32; 3],
    /// P, Q.
    pub output: [i32; 2],
    pub window: Window,
    pub count_pad: i32,
    pub pitch: i32,
    pub x: u64,
    pub out: Sink,
}

/// `norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct BatchNorm {
    pub rows: i32,
    pub positions: i32,
    pub c: i32,
    pub pitch: i32,
    pub eps: f32,
    pub unused: i32,
    pub x: u64,
    pub gamma: u64,
    pub beta: u64,
    pub partial: u64,
    pub moments: u64,
    pub out: Sink,
}

/// `score.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Score {
    pub rows: i32,
    pub c: i32,
    pub pitch: i32,
    pub c_padded: i32,
    pub groups: i32,
    pub branches: i32,
    pub x: u64,
    pub weight: u64,
    pub bias: u64,
    pub w: u64,
    pub w_bias: u64,
    pub out: Sink,
}

/// `bag.cu`, pooling.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Attention {
    pub rows: i32,
    pub branches: i32,
    pub c: i32,
    pub score_pitch: i32,
    pub value_pitch: i32,
    pub unused: i32,
    pub scores: u64,
    pub values: u64,
    pub part: u64,
    pub out: Sink,
}

/// `bag.cu`, classifier rows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct RowDot {
    pub rows: i32,
    pub c: i32,
    pub pitch: i32,
    pub unused: i32,
    pub x: u64,
    pub weight: u64,
    pub bias: u64,
    pub out: Sink,
}

/// `preprocess.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Normalize {
    pub rows: i32,
    pub pixels: i32,
    pub owns_pad: i32,
    pub unused: i32,
    pub x: u64,
    pub table: u64,
    pub out: Sink,
}

/// `layout.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Copy {
    pub rows: i32,
    pub positions: i32,
    pub c: i32,
    pub pitch: i32,
    pub x: u64,
    pub out: Sink,
}
