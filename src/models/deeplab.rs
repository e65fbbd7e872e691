//! DeepLabV3 (Chen et al. 2017, arXiv:1706.05587) on a ResNet whose last two stages are dilated,
//! in two versions that differ in the dilation of the first block of these stages ([`Atrous`]) and
//! in what follows the pyramid of atrous convolutions.

use super::layers::{Builder, Then, concat, same};
use super::resnet::Atrous;
use super::segmenters::{Output, enlarged, pyramid};
use crate::error::{Context, Error, Result};
use crate::graph::{Act, Interpolation, Op, TensorId, Window};

/// Dilations of the parallel 3 x 3 convolutions at 1/8 of the picture's sides.
const RATES: [usize; 3] = [12, 24, 36];

/// torchvision's: `backbone.*`, `classifier.0.*` (the pyramid), `classifier.{1,2,4}`; enlarged
/// without aligned corners.
pub fn torchvision(
    builder: &mut Builder<'_>,
    input: TensorId,
    encoder: &str,
    output: Output,
) -> Result<TensorId> {
    let x = trunk(builder, input, encoder, "backbone.", Atrous::Torchvision)?;
    let x = pooling_pyramid(builder, x, "classifier.0")?;
    let x = normed(builder, x, "classifier.1", "classifier.2", same(3))?;
    let enlarge = Interpolation::Bilinear { align_corners: false };
    output.head(builder, x, "classifier.4", same(1), Some(enlarge))
}

/// That of segmentation_models_pytorch: `encoder.*`, `decoder.aspp.*` (the pyramid),
/// `decoder.conv`, `decoder.bn`, `segmentation_head.0`; enlarged with aligned corners.
pub fn smp(
    builder: &mut Builder<'_>,
    input: TensorId,
    encoder: &str,
    output: Output,
) -> Result<TensorId> {
    let x = trunk(builder, input, encoder, "encoder.", Atrous::Smp)?;
    let x = pooling_pyramid(builder, x, "decoder.aspp")?;
    let x = normed(builder, x, "decoder.conv", "decoder.bn", same(3))?;
    let enlarge = Interpolation::Bilinear { align_corners: true };
    output.head(builder, x, "segmentation_head.0", same(1), Some(enlarge))
}

fn trunk(
    builder: &mut Builder<'_>,
    input: TensorId,
    encoder: &str,
    prefix: &str,
    atrous: Atrous,
) -> Result<TensorId> {
    let stages = pyramid(builder, input, encoder, prefix, atrous)?;
    stages.last().copied().ok_or_else(|| Error::usage(format!("{encoder} has no stages")))
}

/// `relu(norm(conv(x)))`.
fn normed(
    builder: &mut Builder<'_>,
    x: TensorId,
    conv: &str,
    norm: &str,
    window: Window,
) -> Result<TensorId> {
    builder.conv(x, conv, window, Then::norm(norm, Act::Relu))
}

/// A 1 x 1 convolution, three dilated ones and the mean of the whole map side by side, projected.
fn pooling_pyramid(builder: &mut Builder<'_>, x: TensorId, name: &str) -> Result<TensorId> {
    let mut parts = Vec::new();
    for (i, rate) in std::iter::once(None).chain(RATES.map(Some)).enumerate() {
        let window = rate
            .map_or(same(1), |rate| Window { dilation: [rate; 2], ..Window::square(3, 1, rate) });
        let norm = format!("{name}.convs.{i}.1");
        let then = Then::norm(&norm, Act::Relu);
        parts.push(builder.conv_step(x, &format!("{name}.convs.{i}.0"), window, then)?);
    }
    let mean = builder.graph.push(Op::AdaptiveAvgPool { h: 1, w: 1 }, &[x])?;
    let (conv, norm) = (format!("{name}.convs.4.1"), format!("{name}.convs.4.2"));
    let mean = normed(builder, mean, &conv, &norm, same(1))?;
    parts.push(enlarged(builder, mean, x, Interpolation::Nearest));
    let all = concat(&mut builder.graph, &parts).context(|| name.into())?;
    normed(builder, all, &format!("{name}.project.0"), &format!("{name}.project.1"), same(1))
}
