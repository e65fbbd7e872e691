//! Op cases of vision transformers, dense blocks, segmentation networks and reductions over a bag.

use super::{BIAS_RELU, Builder, Case, FULL, Numbers, PLAIN, Parts, conv, linear};
use crate::error::Result;
use crate::graph::{Act, Epilogue, Interpolation, Op, ParamId, Reduce, Shape, TensorId, Window};
use half::f16;

/// Where a step's input and output lie: tensors of their own, or channels of wider ones from these
/// offsets on.
type Place = Option<[usize; 2]>;

const ALONE: Place = None;
/// Slices that start at a multiple of 16 bytes, and slices that do not.
const ALIGNED: Place = Some([8, 16]);
const ODD: Place = Some([7, 3]);

/// A step on an input of `shape`.
fn step(
    n: Numbers,
    rows: usize,
    name: &str,
    shape: Shape,
    place: Place,
    op: impl FnOnce(&mut Builder) -> Result<Op>,
) -> Result<Case> {
    let name = place.map_or(name.into(), |at| format!("{name}, slices from {at:?}"));
    let mut b = Builder::new(&name, n);
    let mut x = b.graph.input(shape);
    let Some([from, to]) = place else {
        let op = op(&mut b)?;
        let y = b.graph.push(op, &[x])?;
        return Ok(b.done(y, rows));
    };
    if !matches!(shape, Shape::Pixels { .. }) {
        let wide = b.graph.tensor(shape.with_channels(from + shape.channels() + 8));
        x = b.graph.push_into(Op::Copy, &[x], wide, from)?;
    }
    let op = op(&mut b)?;
    let mut trial = b.graph.clone();
    let out = trial.push(op, &[x])?;
    let out = trial.shape(out);
    let wide = b.graph.tensor(out.with_channels(to + out.channels() + 8));
    let y = b.graph.push_into(op, &[x], wide, to)?;
    b.graph.output(y);
    // Somebody reads the slice, so it is stored as well as handed back.
    let z = b.graph.push(Op::Copy, &[y])?;
    Ok(b.done(z, rows))
}

/// A step on what `x * scale` or `x + bias` leaves of its input.
fn step_after(
    n: Numbers,
    rows: usize,
    name: &str,
    shape: Shape,
    [scale, bias]: [f32; 2],
    op: impl FnOnce(&mut Builder) -> Result<Op>,
) -> Result<Case> {
    let mut b = Builder::new(&format!("{name} of inputs * {scale} + {bias}"), n);
    let c = shape.channels();
    let x = b.graph.input(shape);
    let scale = Some(b.graph.param_f32("scale", &[c], vec![scale; c])?);
    let bias = Some(b.graph.param_f32("bias", &[c], vec![bias; c])?);
    let x = b.graph.push(Op::Affine { scale, bias, act: Act::None }, &[x])?;
    let op = op(&mut b)?;
    let y = b.graph.push(op, &[x])?;
    Ok(b.done(y, rows))
}

impl Builder {
    /// An f32 table of numbers like those of activations.
    fn table(&mut self, shape: &[usize]) -> Result<ParamId> {
        let data = (0..shape.iter().product()).map(|_| self.random.value(self.numbers)).collect();
        self.graph.param_f32("table", shape, data)
    }

    /// The same in FP16.
    fn halves(&mut self, shape: &[usize]) -> Result<ParamId> {
        let values = (0..shape.iter().product()).map(|_| self.random.value(self.numbers));
        let data = values.map(f16::from_f32).collect();
        self.graph.param_f16("halves", shape, data)
    }
}

/// Every case of this file.
pub fn vision(n: Numbers) -> Result<Vec<Case>> {
    Ok([products(n)?, patches(n)?, maps(n)?, norms(n)?, attention(n)?, tokens(n)?, bags(n)?]
        .into_iter()
        .flatten()
        .chain([block(n)?])
        .collect())
}

fn preact(n: Numbers, [h, w, c, k]: [usize; 4], place: Place, parts: Parts) -> Result<Case> {
    let name = format!("preact conv of {h}x{w}x{c} to {k}, {parts:?}");
    step(n, 2, &name, Shape::Map { h, w, c }, place, |b| {
        let (scale, bias) = (b.scale(c)?, b.vector(c)?);
        let epilogue = b.epilogue(parts, Shape::Map { h, w, c: k }, k)?;
        Ok(Op::PreactConv1x1 { scale, bias, weight: b.weight(&[k, c])?, epilogue })
    })
}

fn transposed(n: Numbers, [h, w, c, k]: [usize; 4], place: Place, parts: Parts) -> Result<Case> {
    let name = format!("transposed conv of {h}x{w}x{c} to {k}, {parts:?}");
    step(n, 2, &name, Shape::Map { h, w, c }, place, |b| {
        let epilogue = b.epilogue(parts, Shape::Map { h: 2 * h, w: 2 * w, c: k }, k)?;
        Ok(Op::ConvTranspose2x2 { weight: b.weight(&[k, 2, 2, c])?, epilogue })
    })
}

fn gated(n: Numbers, [t, c, k]: [usize; 3], place: Place, bias: bool, act: Act) -> Result<Case> {
    let name = format!("gated linear of {t} x {c} to {k}, bias {bias}, {act:?}");
    step(n, 2, &name, Shape::Tokens { t, c }, place, |b| {
        let weight = b.weight(&[2 * k, c])?;
        let bias = if bias { Some(b.vector(2 * k)?) } else { None };
        Ok(Op::GatedLinear { weight, bias, act })
    })
}

fn products(n: Numbers) -> Result<Vec<Case>> {
    let mut cases = vec![
        preact(n, [7, 9, 40, 33], ALONE, PLAIN)?,
        preact(n, [5, 6, 300, 70], ALONE, BIAS_RELU)?,
        preact(n, [6, 5, 64, 128], ALONE, FULL)?,
        preact(n, [9, 8, 1, 8], ALONE, FULL)?,
        preact(n, [1, 1, 65, 1], ALONE, PLAIN)?,
        preact(n, [6, 7, 96, 32], ALIGNED, PLAIN)?,
        preact(n, [6, 7, 37, 32], ODD, FULL)?,
        transposed(n, [5, 6, 16, 33], ALONE, PLAIN)?,
        transposed(n, [8, 7, 128, 64], ALONE, BIAS_RELU)?,
        transposed(n, [4, 3, 65, 24], ALONE, BIAS_RELU)?,
        transposed(n, [1, 1, 300, 70], ALONE, FULL)?,
        transposed(n, [3, 4, 1, 8], ALONE, PLAIN)?,
        transposed(n, [7, 5, 8, 1], ALONE, PLAIN)?,
        transposed(n, [6, 5, 48, 40], ALIGNED, BIAS_RELU)?,
        transposed(n, [6, 5, 21, 10], ODD, FULL)?,
        gated(n, [5, 65, 33], ALONE, true, Act::Silu)?,
        gated(n, [17, 96, 128], ALONE, true, Act::Silu)?,
        gated(n, [3, 300, 70], ALONE, false, Act::Gelu)?,
        gated(n, [1, 64, 257], ALONE, true, Act::None)?,
        gated(n, [1, 1, 1], ALONE, true, Act::Relu)?,
        gated(n, [6, 40, 24], ALIGNED, true, Act::Sigmoid)?,
        gated(n, [6, 41, 25], ODD, true, Act::Tanh)?,
    ];
    // Few channels, lines apart but not columns, more than one block of them.
    let window = Window { dilation: [2, 1], pad: [2, 1], ..Window::square(3, 1, 1) };
    cases.push(conv(n, 2, [12, 11, 3, 24], window, PLAIN)?);
    let window = Window { stride: [1, 2], pad: [1, 3], ..Window::square(5, 1, 0) };
    cases.push(conv(n, 2, [4, 260, 3, 8], window, BIAS_RELU)?);
    for act in [Act::Gelu, Act::Silu] {
        for residual in [false, true] {
            let parts = Parts { scale: residual, bias: true, residual, act };
            cases.push(linear(n, 2, [5, 65, 257], parts)?);
            cases.push(conv(n, 2, [5, 6, 12, 35], Window::square(3, 1, 1), parts)?);
        }
    }
    Ok(cases)
}

fn patches(n: Numbers) -> Result<Vec<Case>> {
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    let sizes = [
        ([5, 7], 1, ALONE),
        ([6, 10], 2, ALONE),
        ([8, 20], 4, ALONE),
        ([14, 21], 7, ODD),
        ([28, 42], 14, ALONE),
        ([48, 32], 16, ALONE),
        ([32, 48], 16, ALIGNED),
    ];
    let case = |([h, w], side, place): ([usize; 2], usize, Place)| {
        let name = format!("patches of {side} of {h}x{w}");
        let op = Op::Patches { mean, std, side };
        step(n, 2, &name, Shape::Pixels { h, w }, place, |_| Ok(op))
    };
    let mut cases: Vec<Case> = sizes.into_iter().map(case).collect::<Result<_>>()?;
    let (pixels, op) = (Shape::Pixels { h: 9, w: 7 }, Op::Normalize { mean, std });
    cases.push(step(n, 2, "normalize 9x7", pixels, ODD, |_| Ok(op))?);
    Ok(cases)
}

/// A step without parameters.
fn plain(n: Numbers, shape: Shape, place: Place, op: Op) -> Result<Case> {
    step(n, 2, &format!("{op:?} of {shape:?}"), shape, place, |_| Ok(op))
}

fn maps(n: Numbers) -> Result<Vec<Case>> {
    let map = |[h, w, c]: [usize; 3]| Shape::Map { h, w, c };
    let mut cases = Vec::new();
    let bilinear = |align_corners| Interpolation::Bilinear { align_corners };
    for mode in [Interpolation::Nearest, bilinear(false), bilinear(true)] {
        for (from, [h, w], place) in [
            ([7, 5, 24], [14, 10], ALONE),
            ([8, 9, 5], [3, 4], ALONE),
            ([7, 9, 300], [16, 13], ALONE),
            ([1, 1, 40], [6, 7], ALONE),
            ([6, 4, 8], [1, 1], ALONE),
            ([5, 6, 33], [5, 6], ALONE),
            ([4, 4, 16], [16, 16], ALIGNED),
            ([5, 3, 10], [7, 11], ODD),
        ] {
            cases.push(plain(n, map(from), place, Op::Upsample { h, w, mode })?);
        }
    }
    let square = Window::square;
    let dilated = Window { dilation: [2, 2], ..square(3, 2, 1) };
    for (from, window, place) in [
        ([9, 7, 21], square(2, 2, 0), ALONE),
        ([8, 9, 64], square(3, 2, 0), ALONE),
        ([8, 9, 64], square(3, 2, 1), ALONE),
        // A last window that would start in the far padding, or beyond the map, is left out.
        ([5, 7, 8], square(2, 2, 1), ALONE),
        ([4, 6, 8], square(1, 2, 0), ALONE),
        ([7, 6, 5], square(2, 3, 1), ALONE),
        ([10, 12, 5], dilated, ALONE),
        ([6, 9, 16], square(3, 2, 0), ALIGNED),
        ([6, 9, 10], square(2, 2, 0), ODD),
    ] {
        cases.push(plain(n, map(from), place, Op::MaxPool { window, ceil_mode: true })?);
    }
    for (shape, place) in [
        (map([5, 6, 40]), ALONE),
        (map([4, 3, 5]), ODD),
        (Shape::Tokens { t: 3, c: 65 }, ALONE),
        (Shape::Tokens { t: 9, c: 24 }, ALIGNED),
    ] {
        let acts = [Act::None, Act::Relu, Act::Tanh, Act::Sigmoid, Act::Gelu, Act::Silu];
        for (bits, act) in acts.into_iter().enumerate() {
            let [scale, bias] = [1, 2].map(|bit| bits & bit == 0);
            let name = format!("affine of {shape:?}, scale {scale}, bias {bias}, {act:?}");
            let c = shape.channels();
            cases.push(step(n, 2, &name, shape, place, |b| {
                let scale = if scale { Some(b.scale(c)?) } else { None };
                let bias = if bias { Some(b.vector(c)?) } else { None };
                Ok(Op::Affine { scale, bias, act })
            })?);
        }
    }
    Ok(cases)
}

fn layer_norm(b: &mut Builder, c: usize, groups: usize, beta: bool) -> Result<Op> {
    let gamma = b.scale(c / groups)?;
    let beta = if beta { Some(b.vector(c / groups)?) } else { None };
    Ok(Op::LayerNorm { gamma, beta, eps: 1e-6, groups })
}

fn norms(n: Numbers) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (t, c, groups, place) in [
        (5, 384, 1, ALONE),
        (17, 65, 1, ALONE),
        (2, 1280, 1, ALONE),
        (261, 64, 1, ALONE),
        (9, 768, 12, ALONE),
        (4, 30, 5, ALONE),
        (3, 1, 1, ALONE),
        (6, 96, 1, ALIGNED),
        (6, 45, 3, ODD),
    ] {
        let (shape, what) = (Shape::Tokens { t, c }, format!("norm of {t} x {c} in {groups}"));
        for beta in [false, true] {
            let name = format!("layer {what}, beta {beta}");
            cases.push(step(n, 2, &name, shape, place, |b| layer_norm(b, c, groups, beta))?);
        }
        cases.push(step(n, 2, &format!("rms {what}"), shape, place, |b| {
            Ok(Op::RmsNorm { gamma: b.scale(c / groups)?, eps: 1e-5, groups })
        })?);
    }
    // A variance far below the squared mean.
    let shape = Shape::Tokens { t: 5, c: 100 };
    cases.push(step_after(n, 2, "layer norm", shape, [1.0, 500.0], |b| {
        layer_norm(b, 100, 1, true)
    })?);
    for (shape, place) in [
        (Shape::Map { h: 5, w: 6, c: 2 }, ALONE),
        (Shape::Map { h: 3, w: 4, c: 1 }, ALONE),
        (Shape::Tokens { t: 3, c: 300 }, ALONE),
        (Shape::Tokens { t: 3, c: 7 }, ODD),
        (Shape::Map { h: 5, w: 6, c: 8 }, ALIGNED),
        (Shape::Bag { r: 2, c: 7 }, ALONE),
    ] {
        cases.push(plain(n, shape, place, Op::Softmax)?);
    }
    let shape = Shape::Tokens { t: 9, c: 40 };
    cases.push(step_after(n, 2, "softmax", shape, [300.0, 0.0], |_| Ok(Op::Softmax))?);
    Ok(cases)
}

fn attention(n: Numbers) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (rows, t, heads, d, queries, place) in [
        (3, 1, 2, 6, None, ALONE),
        (2, 1, 1, 64, None, ALONE),
        (3, 17, 3, 6, None, ALONE),
        (2, 17, 2, 64, None, ALONE),
        (2, 9, 2, 5, None, ALONE),
        (1, 30, 3, 1, None, ALONE),
        (1, 64, 1, 64, None, ALONE),
        (1, 65, 1, 128, None, ALONE),
        (1, 50, 2, 80, None, ALONE),
        (1, 197, 2, 48, None, ALONE),
        (1, 197, 1, 64, None, ALONE),
        (1, 261, 1, 64, None, ALONE),
        (1, 261, 1, 128, None, ALONE),
        (1, 300, 1, 80, None, ALONE),
        (2, 40, 2, 32, None, ALIGNED),
        (2, 19, 2, 6, None, ODD),
        (3, 1, 2, 6, Some(3), ALONE),
        (3, 17, 2, 6, Some(1), ALONE),
        (1, 197, 2, 48, Some(7), ALONE),
        (1, 261, 1, 64, Some(1), ALONE),
        (1, 300, 1, 80, Some(70), ALONE),
        (2, 40, 1, 32, Some(5), ALIGNED),
        (2, 21, 3, 5, Some(2), ODD),
    ] {
        let parts = if queries.is_some() { 2 } else { 3 };
        let c = heads * d;
        let name = format!("attention of {t} in {heads} x {d}, queries {queries:?}");
        cases.push(step(n, rows, &name, Shape::Tokens { t, c: parts * c }, place, |b| {
            let queries = match queries {
                Some(q) => Some(b.halves(&[q, c])?),
                None => None,
            };
            Ok(Op::Attention { heads, queries })
        })?);
    }
    // Logits whose exponentials overflow unless the largest is taken off first.
    let shape = Shape::Tokens { t: 70, c: 3 * 64 };
    let op = Op::Attention { heads: 1, queries: None };
    cases.push(step_after(n, 2, "attention", shape, [12.0, 0.0], |_| Ok(op))?);
    // More keys than a query meets at once, so that larger logits turn up later.
    let shape = Shape::Tokens { t: 590, c: 3 * 16 };
    let op = Op::Attention { heads: 1, queries: None };
    cases.push(step_after(n, 1, "attention of many", shape, [12.0, 0.0], |_| Ok(op))?);
    Ok(cases)
}

fn tokens(n: Numbers) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (h, w, c, prefix, position, place) in [
        (4, 4, 24, None, false, ALONE),
        (3, 5, 33, None, true, ALONE),
        (4, 3, 64, Some(1), false, ALONE),
        (14, 14, 48, Some(1), true, ALONE),
        (16, 16, 20, Some(5), true, ALONE),
        (1, 1, 7, Some(1), true, ALONE),
        (3, 4, 32, Some(4), true, ALIGNED),
        (3, 4, 13, Some(2), true, ODD),
    ] {
        let name = format!("embed {h}x{w}x{c} after {prefix:?}, position {position}");
        cases.push(step(n, 2, &name, Shape::Map { h, w, c }, place, |b| {
            let prefix = match prefix {
                Some(p) => Some(b.table(&[p, c])?),
                None => None,
            };
            let position = if position { Some(b.table(&[h * w, c])?) } else { None };
            Ok(Op::Embed { prefix, position })
        })?);
    }
    for (t, c, start, count, place) in [
        (17, 40, 0, 1, ALONE),
        (17, 41, 16, 1, ALONE),
        (17, 300, 1, 16, ALONE),
        (261, 70, 5, 256, ALONE),
        (1, 5, 0, 1, ALONE),
        (12, 24, 1, 9, ALIGNED),
        (12, 11, 1, 9, ODD),
    ] {
        cases.push(plain(n, Shape::Tokens { t, c }, place, Op::TokenMean { start, count })?);
    }
    Ok(cases)
}

fn bags(n: Numbers) -> Result<Vec<Case>> {
    let fractions = [0.0, 0.25, 0.5, 0.9, 1.0].map(Reduce::Percentile);
    let mut cases = Vec::new();
    for reduce in [Reduce::Mean, Reduce::Max].into_iter().chain(fractions) {
        for (rows, c, place) in
            [(1, 7, ALONE), (2, 70, ALONE), (5000, 40, ALONE), (37, 300, ALONE), (101, 9, ODD)]
        {
            let name = format!("{reduce:?} of {rows} x {c}");
            let op = Op::BagReduce { reduce };
            cases.push(step(n, rows, &name, Shape::Tokens { t: 1, c }, place, |_| Ok(op))?);
        }
    }
    Ok(cases)
}

/// Pixels through a small transformer of one block to one number a tile, then over the bag.
fn block(n: Numbers) -> Result<Case> {
    let (mean, std) = ([0.5; 3], [0.5; 3]);
    let c = 24;
    let mut b = Builder::new("transformer block", n);
    let x = b.graph.input(Shape::Pixels { h: 12, w: 16 });
    let x = b.graph.push(Op::Patches { mean, std, side: 4 }, &[x])?;
    let (weight, epilogue) = (b.weight(&[c, 1, 1, 48])?, Epilogue::default());
    let window = Window::square(1, 1, 0);
    let x = b.graph.push(Op::Conv2d { weight, window, epilogue }, &[x])?;
    let (prefix, position) = (Some(b.table(&[1, c])?), Some(b.table(&[12, c])?));
    let x = b.graph.push(Op::Embed { prefix, position }, &[x])?;
    let dense = |b: &mut Builder, x: TensorId, k: usize, residual| -> Result<TensorId> {
        let width = b.graph.shape(x).channels();
        let (weight, bias) = (b.weight(&[k, width])?, Some(b.vector(k)?));
        let epilogue = Epilogue { bias, residual, ..Default::default() };
        b.graph.push(Op::Linear { weight, epilogue }, &[x])
    };
    let op = layer_norm(&mut b, c, 1, true)?;
    let y = b.graph.push(op, &[x])?;
    let y = dense(&mut b, y, 3 * c, None)?;
    let y = b.graph.push(Op::Attention { heads: 4, queries: None }, &[y])?;
    let x = dense(&mut b, y, c, Some(x))?;
    let op = layer_norm(&mut b, c, 1, true)?;
    let y = b.graph.push(op, &[x])?;
    let (weight, bias) = (b.weight(&[2 * 31, c])?, Some(b.vector(2 * 31)?));
    let y = b.graph.push(Op::GatedLinear { weight, bias, act: Act::Silu }, &[y])?;
    let x = dense(&mut b, y, c, Some(x))?;
    let x = b.graph.push(Op::TokenMean { start: 0, count: 1 }, &[x])?;
    b.graph.output(x);
    let bag = b.graph.push(Op::BagReduce { reduce: Reduce::Percentile(0.9) }, &[x])?;
    Ok(b.done(bag, 3))
}

/// Layers of the networks this program runs, for benchmarks.
#[allow(dead_code, reason = "tests and benchmarks share this file")]
pub fn layers() -> Result<Vec<Case>> {
    let n = Numbers::General;
    let (t, rows) = (197, 4);
    let gelu = Parts { act: Act::Gelu, ..BIAS_RELU };
    let bias = Parts { act: Act::None, ..BIAS_RELU };
    let residual = Parts { residual: true, ..bias };
    let attention = |heads: usize| {
        let shape = Shape::Tokens { t, c: 3 * 64 * heads };
        let op = Op::Attention { heads, queries: None };
        step(n, rows, &format!("attention of {t} in {heads} x 64"), shape, ALONE, |_| Ok(op))
    };
    let norm = |c: usize| {
        let shape = Shape::Tokens { t, c };
        let name = format!("layer norm of {t} x {c}");
        step(n, rows, &name, shape, ALONE, |b| layer_norm(b, c, 1, true))
    };
    Ok(vec![
        // ViT-S/16 at 224 pixels.
        linear(n, rows, [t, 384, 1152], bias)?,
        linear(n, rows, [t, 384, 1536], gelu)?,
        attention(6)?,
        norm(384)?,
        // ViT-B/16 at 224 pixels.
        linear(n, rows, [t, 768, 2304], bias)?,
        linear(n, rows, [t, 768, 768], residual)?,
        linear(n, rows, [t, 768, 3072], gelu)?,
        linear(n, rows, [t, 3072, 768], residual)?,
        attention(12)?,
        norm(768)?,
        // A SwiGLU block of 1280 channels with four register tokens.
        gated(n, [261, 1280, 3416], ALONE, true, Act::Silu)?,
        // DenseNet-121 and U-Net.
        preact(n, [28, 28, 512, 128], ALONE, PLAIN)?,
        transposed(n, [64, 64, 128, 64], ALONE, BIAS_RELU)?,
    ])
}
