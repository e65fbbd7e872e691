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

/// `stem.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Stem {
    pub rows: i32,
    /// H, W, C.
    pub input: [i32; 3],
    /// H', W'.
    pub map: [i32; 2],
    /// P, Q, K.
    pub output: [i32; 3],
    pub pad: i32,
    pub pitch: i32,
    pub unused: i32,
    pub x: u64,
    pub weight: u64,
    pub epilogue: Epilogue,
}

/// `stem_pair.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct StemPair {
    pub rows: i32,
    /// H, W, C.
    pub input: [i32; 3],
    /// J, K.
    pub filters: [i32; 2],
    pub pitch: i32,
    pub pool: i32,
    pub x: u64,
    pub first_weight: u64,
    pub first_scale: u64,
    pub first_bias: u64,
    pub weight: u64,
    pub epilogue: Epilogue,
}

/// What `cuTensorMapEncodeTiled` and `cuTensorMapEncodeIm2col` fill.
pub type TensorMap = [u64; 16];

/// `sm90/ring.cuh`: what the warpgroup kernels have in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct WideProduct {
    pub rows: i32,
    pub positions: i32,
    pub k: i32,
    pub taps: i32,
    pub columns: i32,
    pub by_map: i32,
    pub unused: [i32; 10],
    pub weight: TensorMap,
    pub residual: TensorMap,
    pub result: TensorMap,
    pub epilogue: Epilogue,
    pub unused_end: u64,
}

/// `sm90/gemm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct WideGemm {
    pub product: WideProduct,
    pub x: TensorMap,
}

/// `sm90/conv2d.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct WideConv2d {
    pub product: WideProduct,
    pub x: TensorMap,
    /// P, Q.
    pub output: [i32; 2],
    pub window: Window,
    pub unused: [i32; 6],
}

/// `sm90/gather.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct WideGather {
    pub product: WideProduct,
    pub x: u64,
    /// H, W, C.
    pub input: [i32; 3],
    /// P, Q.
    pub output: [i32; 2],
    pub pitch: i32,
    pub c_padded: i32,
    pub window: Window,
    pub unused: [i32; 15],
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

/// `preact.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Preact {
    pub rows: i32,
    pub positions: i32,
    pub c: i32,
    pub k: i32,
    pub pitch: i32,
    pub weight_pitch: i32,
    pub x: u64,
    pub weight: u64,
    pub x_scale: u64,
    pub x_bias: u64,
    pub epilogue: Epilogue,
}

/// `transposed.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Transposed {
    pub rows: i32,
    /// H, W, C.
    pub input: [i32; 3],
    pub k: i32,
    pub k_padded: i32,
    pub pitch: i32,
    pub weight_pitch: i32,
    pub x: u64,
    pub weight: u64,
    pub epilogue: Epilogue,
}

/// `attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct SelfAttention {
    pub rows: i32,
    pub queries: i32,
    pub keys: i32,
    pub d: i32,
    pub query_pitch: i32,
    pub pitch: i32,
    pub query_row: u64,
    pub q: u64,
    pub k: u64,
    pub v: u64,
    pub scale: f32,
    pub unused: i32,
    pub out: Sink,
}

/// `token_norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct TokenNorm {
    pub rows: i32,
    pub positions: i32,
    pub groups: i32,
    pub c: i32,
    pub pitch: i32,
    pub eps: f32,
    pub x: u64,
    pub gamma: u64,
    pub beta: u64,
    pub out: Sink,
}

/// `tokens.cu`, from a map to tokens.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Embed {
    pub rows: i32,
    pub prefix_tokens: i32,
    pub tokens: i32,
    pub c: i32,
    pub pitch: i32,
    pub unused: i32,
    pub x: u64,
    pub prefix: u64,
    pub position: u64,
    pub out: Sink,
}

/// `tokens.cu`, from tokens to one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct TokenMean {
    pub rows: i32,
    pub tokens: i32,
    pub start: i32,
    pub count: i32,
    pub c: i32,
    pub pitch: i32,
    pub x: u64,
    pub out: Sink,
}

/// `tokens.cu`, over channels.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Softmax {
    pub rows: i32,
    pub positions: i32,
    pub c: i32,
    pub pitch: i32,
    pub x: u64,
    pub out: Sink,
}

/// `affine.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Affine {
    pub rows: i32,
    pub positions: i32,
    pub c: i32,
    pub pitch: i32,
    pub x: u64,
    pub scale: u64,
    pub bias: u64,
    pub out: Sink,
}

/// `upsample.cu`: one entry of a table of taps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Taps {
    pub first: i32,
    pub second: i32,
    pub fraction: f32,
}

/// `upsample.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Upsample {
    pub rows: i32,
    /// H, W, C.
    pub input: [i32; 3],
    /// P, Q.
    pub output: [i32; 2],
    pub pitch: i32,
    pub unused: i32,
    pub x: u64,
    pub row_taps: u64,
    pub column_taps: u64,
    pub out: Sink,
}

/// `bag_reduce.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Reduce {
    pub rows: i32,
    pub c: i32,
    pub pitch: i32,
    pub largest: i32,
    pub fraction: f64,
    pub x: u64,
    pub part: u64,
    pub out: Sink,
}

/// `preprocess.cu`, patches.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Patches {
    pub rows: i32,
    /// H / side, W / side.
    pub output: [i32; 2],
    pub side: i32,
    pub x: u64,
    pub table: u64,
    pub out: Sink,
}

/// `resize.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Resize {
    pub rows: i32,
    pub from: [i32; 2],
    pub to: [i32; 2],
    pub top: i32,
    pub taps: i32,
    pub unused: i32,
    pub x: u64,
    pub bounds: u64,
    pub weights: u64,
    pub y: u64,
}

/// Argument block of `recolour.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Recolour {
    pub rows: i32,
    pub pixels: i32,
    pub x: u64,
    pub y: u64,
    pub table: u64,
}
