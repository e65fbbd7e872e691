//! The closed set of operations a network is made of.

use super::{ParamId, TensorId};

/// An activation function, applied in f32 before the result is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Act {
    /// The identity.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `x / 2 (1 + erf(x / sqrt(2)))` (Hendrycks and Gimpel 2016, arXiv:1606.08415), not its
    /// approximation by tanh.
    Gelu,
    /// `x / (1 + exp(-x))`, also called swish.
    Silu,
}

/// What follows a convolution or linear layer before its result is stored:
/// `act(acc * scale[k] + bias[k] + residual)`. A folded batch norm is a scale and a bias.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue {
    /// `[K]` f32, absent means 1.
    pub scale: Option<ParamId>,
    /// `[K]` f32, absent means 0.
    pub bias: Option<ParamId>,
    /// Added before the activation; same shape as the output.
    pub residual: Option<TensorId>,
    /// The activation.
    pub act: Act,
}

/// A weight matrix and its bias.
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    /// `[K, C]` f16.
    pub weight: ParamId,
    /// `[K]` f32.
    pub bias: Option<ParamId>,
}

/// Window geometry `[vertical, horizontal]` of a convolution or pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Kernel size R, S.
    pub kernel: [usize; 2],
    /// Step between outputs.
    pub stride: [usize; 2],
    /// Border on each side.
    pub pad: [usize; 2],
    /// Step between kernel taps.
    pub dilation: [usize; 2],
}

impl Window {
    /// A square window.
    pub fn square(kernel: usize, stride: usize, pad: usize) -> Self {
        Window { kernel: [kernel; 2], stride: [stride; 2], pad: [pad; 2], dilation: [1; 2] }
    }

    /// Output size along `axis` for an input of `n`, or `None` when the window does not fit.
    pub fn output(&self, axis: usize, n: usize) -> Option<usize> {
        let extent = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
        (n + 2 * self.pad[axis]).checked_sub(extent).map(|free| free / self.stride[axis] + 1)
    }

    /// As [`Window::output`] with a last window that may hang over the far edge but starts before
    /// it: PyTorch's `ceil_mode`.
    pub fn output_ceil(&self, axis: usize, n: usize) -> Option<usize> {
        let (pad, stride) = (self.pad[axis], self.stride[axis]);
        let extent = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
        let count = (n + 2 * pad).checked_sub(extent)?.div_ceil(stride) + 1;
        Some(if (count - 1) * stride >= n + pad { count - 1 } else { count })
    }
}

/// How a map is sampled at another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// Output `o` of `m` takes input `floor(o n / m)`.
    Nearest,
    /// Between the two nearest inputs on each axis, without antialiasing.
    Bilinear {
        /// Whether the centres of the corner pixels coincide (output `o` lies at
        /// `o (n - 1) / (m - 1)`) or their outer corners (`(o + 1/2) n / m - 1/2`).
        align_corners: bool,
    },
}

/// The two inputs along one axis that an output of [`Op::Upsample`] lies between:
/// `first + (second - first) * fraction`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "the type's text names its fields")]
pub struct Taps {
    pub first: usize,
    pub second: usize,
    pub fraction: f32,
}

impl Interpolation {
    /// The taps of output `o` of `m` along an axis of `n` inputs.
    pub fn taps(self, o: usize, n: usize, m: usize) -> Taps {
        let at = match self {
            Interpolation::Nearest => {
                return Taps { first: o * n / m, second: o * n / m, fraction: 0.0 };
            }
            Interpolation::Bilinear { align_corners: true } => {
                o as f64 * (n - 1) as f64 / (m.max(2) - 1) as f64
            }
            Interpolation::Bilinear { align_corners: false } => {
                ((o as f64 + 0.5) * n as f64 / m as f64 - 0.5).max(0.0)
            }
        };
        let first = (at as usize).min(n - 1);
        Taps { first, second: (first + 1).min(n - 1), fraction: (at - first as f64) as f32 }
    }
}

/// What is taken of a channel over all rows of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reduce {
    /// The arithmetic mean.
    Mean,
    /// The largest value.
    Max,
    /// The value at this fraction of the sorted rows, between two of them in proportion: the
    /// default (`linear`) of NumPy's and pandas' quantiles. In `[0, 1]`.
    Percentile(f32),
}

impl Reduce {
    /// Index of the sorted row at or below fraction `q` of `n` rows, and how far towards the next.
    pub fn rank(q: f32, n: usize) -> (usize, f64) {
        let at = q as f64 * (n - 1) as f64;
        (at as usize, at - at.floor())
    }
}

/// Every operation a backend must execute.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "each variant's text names its fields")]
pub enum Op {
    /// `Pixels -> Map { c: 3 }`: `(x / 255 - mean) / std`.
    Normalize { mean: [f32; 3], std: [f32; 3] },
    /// `Pixels -> Map { h / side, w / side, c: 3 side^2 }`: normalised as above, the pixels of a
    /// square in order (r, s, c) becoming its channels, so that a 1x1 convolution embeds patches.
    Patches { mean: [f32; 3], std: [f32; 3], side: usize },
    /// `Map -> Map`, weight `[K, R, S, C]` f16, zero padding.
    Conv2d { weight: ParamId, window: Window, epilogue: Epilogue },
    /// A 1x1 convolution, weight `[K, C]` f16, of `relu(x * scale[c] + bias[c])` rounded to FP16:
    /// the pre-activated layer of DenseNet (Huang et al. 2017, arXiv:1608.06993).
    PreactConv1x1 { scale: ParamId, bias: ParamId, weight: ParamId, epilogue: Epilogue },
    /// `Map { h, w } -> Map { 2 h, 2 w }`, weight `[K, 2, 2, C]` f16, stride 2:
    /// `y[2 i + r, 2 j + s, k] = sum over c of x[i, j, c] w[k, r, s, c]`.
    ConvTranspose2x2 { weight: ParamId, epilogue: Epilogue },
    /// Over the channel axis of `Tokens` or `Bag`, weight `[K, C]` f16.
    Linear { weight: ParamId, epilogue: Epilogue },
    /// Over the channel axis of `Tokens`, weight `[2 K, C]` f16, bias `[2 K]` f32:
    /// `act(x w[..K] + b[..K]) * (x w[K..] + b[K..])`; with SiLU it is SwiGLU (Shazeer 2020,
    /// arXiv:2002.05202).
    GatedLinear { weight: ParamId, bias: Option<ParamId>, act: Act },
    /// `act(x * scale[c] + bias[c])`, absent parameters meaning 1 and 0.
    Affine { scale: Option<ParamId>, bias: Option<ParamId>, act: Act },
    /// Batch norm of a `Map` with the statistics of this run: mean and biased variance per channel
    /// over all rows and positions, then `act((x - mean) / sqrt(var + eps) * gamma + beta)`.
    BatchNorm { gamma: ParamId, beta: ParamId, eps: f32, act: Act },
    /// Maximum over a window; padding never wins. With `ceil_mode` the output has
    /// [`Window::output_ceil`] positions.
    MaxPool { window: Window, ceil_mode: bool },
    /// Mean over a window, padding counted as zeros or left out.
    AvgPool { window: Window, count_include_pad: bool },
    /// `Map -> Map { h, w }` as PyTorch's AdaptiveAvgPool2d; `1 x 1` is global average pooling.
    AdaptiveAvgPool { h: usize, w: usize },
    /// `Map -> Map { h, w }`, as PyTorch's `interpolate`.
    Upsample { h: usize, w: usize, mode: Interpolation },
    /// `Map { h, w, c } -> Tokens { t: P + h w, c }`: the prefix `[P, C]` f32 (class and register
    /// tokens), then the positions in order with `position` `[h w, C]` f32 added.
    Embed { prefix: Option<ParamId>, position: Option<ParamId> },
    /// Over the channels of `Tokens`, cut into equal groups (1 normalises whole tokens):
    /// `(x - mean) / sqrt(var + eps) * gamma + beta` with biased variance and `[C / groups]` f32
    /// parameters shared by the groups (Ba et al. 2016, arXiv:1607.06450).
    LayerNorm { gamma: ParamId, beta: Option<ParamId>, eps: f32, groups: usize },
    /// As `LayerNorm` with `x / sqrt(mean(x^2) + eps) * gamma` (Zhang and Sennrich 2019,
    /// arXiv:1910.07467).
    RmsNorm { gamma: ParamId, eps: f32, groups: usize },
    /// Self-attention, not causal, within each row: `Tokens { t, 3 C } -> Tokens { t, C }`, the
    /// input being queries, keys and values side by side, each `heads` runs of `d = C / heads`:
    /// `softmax(q k^T / sqrt(d)) v`. With `queries`, `[Q, C]` f16, the input is keys and values
    /// alone: `Tokens { t, 2 C } -> Tokens { Q, C }` (Vaswani et al. 2017, arXiv:1706.03762).
    Attention { heads: usize, queries: Option<ParamId> },
    /// `Tokens { t, c } -> Tokens { 1, c }`: the mean of tokens `start..start + count`; one token
    /// is itself.
    TokenMean { start: usize, count: usize },
    /// Softmax over the channels of each position.
    Softmax,
    /// `Map -> Tokens { t: 1 }` in PyTorch's channel-major order `c * H * W + h * W + w`.
    Flatten,
    /// `Tokens -> Tokens`: attention logits `w(tanh(v x) [* sigmoid(u x)])`, one column per branch
    /// (Ilse et al. 2018, arXiv:1802.04712).
    AttentionScore { v: Dense, u: Option<Dense>, w: Dense },
    /// `[scores Tokens { 1, A }, values Tokens { 1, C }] -> Bag { A, C }`: softmax of each score
    /// column over the rows of the run, then the weighted sum of the values.
    AttentionPool,
    /// `Tokens { 1, C } -> Bag { 1, C }`: one number for each channel over the rows of the run.
    BagReduce { reduce: Reduce },
    /// `Bag { R, C } -> Bag { 1, R }`: row r against row r of a `[R, C]` weight.
    RowDot { weight: ParamId, bias: Option<ParamId> },
    /// Writes its input to its output, which is a slice: the way an input enters a concatenation.
    Copy,
}

/// One fused operation. `inputs` excludes an epilogue's residual; see [`Step::reads`].
#[derive(Clone, Debug)]
pub struct Step {
    /// What to do.
    pub op: Op,
    /// What it works on.
    pub inputs: Vec<TensorId>,
    /// What it writes.
    pub output: TensorId,
}

impl Step {
    /// Every tensor the step reads, the residual included.
    pub fn reads(&self) -> impl Iterator<Item = TensorId> + '_ {
        let residual = match self.op {
            Op::Conv2d { epilogue, .. }
            | Op::PreactConv1x1 { epilogue, .. }
            | Op::ConvTranspose2x2 { epilogue, .. }
            | Op::Linear { epilogue, .. } => epilogue.residual,
            _ => None,
        };
        self.inputs.iter().copied().chain(residual)
    }
}
