//! U-Net (Ronneberger et al. 2015, arXiv:1505.04597) and U-Net++ (Zhou et al. 2018,
//! arXiv:1807.10165) of plain double convolutions.
//!
//! `unet`, the layout of the common PyTorch version (github.com/milesial/Pytorch-UNet): padded
//! convolutions with batch norm, `inc`, `down1` ... `down4`, `up1` ... `up4`, each with
//! `double_conv.{0,3}` and norms `double_conv.{1,4}` (behind `maxpool_conv.1.` on the way down,
//! `conv.` on the way up), `outc.conv`. Upward by `up<i>.up`, a transposed convolution, or, where
//! the weights have none, bilinearly with aligned corners.
//!
//! `nested-unet`, the layout of the authors' Keras version (github.com/MrGiovanni/UNetPlusPlus):
//! node j of level i, both from 1, is `conv<ij>_1`, `conv<ij>_2` with biases and without norms,
//! fed by the transposed convolution `up<ij>` and all nodes of its level before it; `output_<k>`
//! reads node k + 1 of level 1.

use super::layers::{Builder, Pending, Then, concat, same};
use super::segmenters::{Output, enlarged};
use crate::error::{Context, Error, Result};
use crate::graph::{Act, Epilogue, Interpolation, Op, TensorId, Window};
use crate::recipe::MapOutput;
use half::f16;

/// Poolings of both networks.
const DEPTH: usize = 4;

const HALVING: Op = Op::MaxPool {
    window: Window { kernel: [2; 2], stride: [2; 2], pad: [0; 2], dilation: [1; 2] },
    ceil_mode: false,
};

/// Down, across and up; `outc` at the end.
pub fn classic(builder: &mut Builder<'_>, input: TensorId, output: Output) -> Result<TensorId> {
    let mut x = double_conv(builder, input, "inc.double_conv")?;
    let mut skips = Vec::new();
    for i in 1..=DEPTH {
        skips.push(x);
        x = builder.graph.push(HALVING, &[x])?;
        x = double_conv(builder, x, &format!("down{i}.maxpool_conv.1.double_conv"))?;
    }
    let transposed = builder.weights.has("up1.up.weight");
    for (i, &skip) in (1..=DEPTH).zip(skips.iter().rev()) {
        let name = format!("up{i}");
        let up: Pending = if transposed {
            builder.double_step(x, &format!("{name}.up"))?
        } else {
            enlarged(builder, x, skip, Interpolation::Bilinear { align_corners: true })
        };
        x = concat(&mut builder.graph, &[(Op::Copy, skip), up]).context(|| name.clone())?;
        x = double_conv(builder, x, &format!("{name}.conv.double_conv"))?;
    }
    output.head(builder, x, "outc.conv", same(1), None)
}

fn double_conv(builder: &mut Builder<'_>, x: TensorId, name: &str) -> Result<TensorId> {
    [(0, 1), (3, 4)].into_iter().try_fold(x, |x, (conv, norm)| {
        let norm = format!("{name}.{norm}");
        let then = Then::norm(&norm, Act::Relu);
        builder.conv(x, &format!("{name}.{conv}"), same(3), then)
    })
}

/// The columns that the chosen outputs need, and the mean of these outputs.
pub fn nested(
    builder: &mut Builder<'_>,
    input: TensorId,
    heads: &[u8],
    output: Output,
) -> Result<TensorId> {
    let heads = chosen(heads);
    let columns = deepest(&heads);
    let mut levels: Vec<Vec<TensorId>> = Vec::new();
    let mut x = input;
    for i in 0..=columns {
        if i > 0 {
            x = builder.graph.push(HALVING, &[x])?;
        }
        x = node(builder, x, i, 0)?;
        levels.push(vec![x]);
    }
    for j in 1..=columns {
        for i in 0..=columns - j {
            let below = levels[i + 1][j - 1];
            let name = format!("up{}{}", i + 1, j + 1);
            let mut parts = vec![builder.double_step(below, &name)?];
            parts.extend(levels[i].iter().map(|&x| (Op::Copy, x)));
            let x = concat(&mut builder.graph, &parts).context(|| name)?;
            let x = node(builder, x, i, j)?;
            levels[i].push(x);
        }
    }
    let head = |k: u8| (levels[0][usize::from(k)], format!("output_{k}"));
    if let [only] = heads[..] {
        let (x, name) = head(only);
        return output.head(builder, x, &name, same(1), None);
    }
    if output.kind != MapOutput::Sigmoid {
        return Err(Error::usage("the mean of several heads is one of probabilities: sigmoid"));
    }
    let mut parts = Vec::new();
    for &k in &heads {
        let (x, name) = head(k);
        let then = Then::bias(Act::Sigmoid);
        parts.push(builder.conv_step(x, &name, same(1), then)?);
    }
    let side_by_side = concat(&mut builder.graph, &parts)?;
    mean(builder, side_by_side, heads.len())
}

/// Two 3 x 3 convolutions; `level` and `column` count from 0.
fn node(builder: &mut Builder<'_>, x: TensorId, level: usize, column: usize) -> Result<TensorId> {
    (1..=2).try_fold(x, |x, part| {
        let then = Then::bias(Act::Relu);
        let name = format!("conv{}{}_{part}", level + 1, column + 1);
        builder.conv(x, &name, same(3), then)
    })
}

/// The mean of `count` maps that lie side by side, as a convolution.
fn mean(builder: &mut Builder<'_>, x: TensorId, count: usize) -> Result<TensorId> {
    let c = builder.graph.shape(x).channels();
    let k = c / count;
    if k * count != c {
        return Err(Error::weights("the heads have different numbers of channels"));
    }
    let ones = (0..k * c).map(|i| if i % c % k == i / c { f16::ONE } else { f16::ZERO }).collect();
    let weight = builder.graph.param_f16("ones", &[k, 1, 1, c], ones)?;
    let share = vec![1.0 / count as f32; k];
    let scale = Some(builder.graph.param_f32("share", &[k], share)?);
    let epilogue = Epilogue { scale, ..Default::default() };
    builder.graph.push(Op::Conv2d { weight, window: same(1), epilogue }, &[x])
}

/// The outputs whose mean is taken; the deepest when the recipe names none.
fn chosen(heads: &[u8]) -> Vec<u8> {
    if heads.is_empty() { vec![DEPTH as u8] } else { heads.to_vec() }
}

fn deepest(heads: &[u8]) -> usize {
    heads.iter().copied().max().map_or(DEPTH, usize::from)
}

/// Whether a tensor belongs to an output that was not chosen or to a node behind the last that
/// was.
pub fn behind(tensor: &str, heads: &[u8]) -> bool {
    let heads = chosen(heads);
    let name = tensor.split('.').next().unwrap_or_default();
    if let Some(k) = name.strip_prefix("output_") {
        return k.parse().is_ok_and(|k: u8| (1..=DEPTH as u8).contains(&k) && !heads.contains(&k));
    }
    let digits = name.strip_prefix("conv").and_then(|n| n.split('_').next());
    let digits = digits.or_else(|| name.strip_prefix("up")).unwrap_or_default();
    match digits.as_bytes() {
        [i @ b'1'..=b'5', j @ b'1'..=b'5'] => {
            let sum = usize::from(i - b'0') + usize::from(j - b'0');
            sum > deepest(&heads) + 2 && sum <= DEPTH + 2
        }
        _ => false,
    }
}
