//! ResNet (He et al. 2016) without its classifier, by torchvision's keys; the stride of a
//! bottleneck is on its 3 x 3 convolution.

use super::layers::{Builder, Then};
use super::{global_average, relu};
use crate::error::{Error, Result};
use crate::graph::{Op, TensorId, Window};

/// What a ResNet is made of.
#[derive(Clone, Copy, Debug)]
pub struct ResNet<'n> {
    /// Before every key: `encoder.`.
    pub prefix: &'n str,
    /// Blocks in each of the four stages.
    pub blocks: [usize; 4],
    /// Blocks of three convolutions, not of two.
    pub bottleneck: bool,
    /// Strides of the last stages.
    pub atrous: Atrous,
}

/// Whether the last two stages halve the map or dilate their kernels instead, by 2 and by 4
/// (Chen et al. 2017, arXiv:1706.05587).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atrous {
    /// They halve it.
    No,
    /// The first block of a stage keeps the dilation of the stage before, as in torchvision.
    Torchvision,
    /// Every block of a stage is dilated, as in segmentation_models_pytorch.
    Smp,
}

impl Atrous {
    /// Stride and dilation of block `block` of stage `stage`, both counted from 0.
    fn of(self, stage: usize, block: usize) -> (usize, usize) {
        match (self, stage, block) {
            (Atrous::Torchvision, 2.., 0) => (1, 1 << (stage - 2)),
            (Atrous::Torchvision | Atrous::Smp, 2.., _) => (1, 2 << (stage - 2)),
            (_, 1.., 0) => (2, 1),
            _ => (1, 1),
        }
    }
}

/// The stem, up to four stages of blocks, and global average pooling.
pub fn build(
    builder: &mut Builder<'_>,
    input: TensorId,
    blocks: [usize; 4],
    bottleneck: bool,
    truncate: Option<&str>,
) -> Result<TensorId> {
    let count = match truncate {
        None => 4,
        Some(name) => {
            1 + (0..4).find(|i| name == format!("layer{}", i + 1)).ok_or_else(|| {
                Error::usage(format!("truncate {name:?}: a ResNet has layer1 to layer4"))
            })?
        }
    };
    let net = ResNet { prefix: "", blocks, bottleneck, atrous: Atrous::No };
    let [.., last] = stages(builder, input, net, count)?[..] else {
        return Err(Error::usage("a ResNet without stages"));
    };
    global_average(&mut builder.graph, last)
}

/// What the stem (before its pooling) and each of the first `count` stages put out.
pub fn stages(
    builder: &mut Builder<'_>,
    input: TensorId,
    net: ResNet<'_>,
    count: usize,
) -> Result<Vec<TensorId>> {
    let prefix = net.prefix;
    let norm = format!("{prefix}bn1");
    let stem = Then::norm(&norm, relu(true));
    let stem = builder.conv(input, &format!("{prefix}conv1"), Window::square(7, 2, 3), stem)?;
    let mut x = builder
        .graph
        .push(Op::MaxPool { window: Window::square(3, 2, 1), ceil_mode: false }, &[stem])?;
    let mut outputs = vec![stem];
    for (i, &blocks) in net.blocks.iter().enumerate().take(count) {
        for j in 0..blocks {
            let geometry = net.atrous.of(i, j);
            let name = format!("{prefix}layer{}.{j}", i + 1);
            x = block(builder, x, &name, geometry, net.bottleneck)?;
        }
        outputs.push(x);
    }
    Ok(outputs)
}

/// `relu(convs(x) + shortcut(x))`, the shortcut a 1 x 1 convolution where there is one.
fn block(
    builder: &mut Builder<'_>,
    x: TensorId,
    name: &str,
    (stride, dilation): (usize, usize),
    bottleneck: bool,
) -> Result<TensorId> {
    let downsample = format!("{name}.downsample.0");
    let shortcut = if builder.weights.has(&format!("{downsample}.weight")) {
        let norm = format!("{name}.downsample.1");
        let then = Then::norm(&norm, relu(false));
        builder.conv(x, &downsample, Window::square(1, stride, 0), then)?
    } else {
        x
    };
    let wide = |stride| Window { dilation: [dilation; 2], ..Window::square(3, stride, dilation) };
    let windows: &[Window] = if bottleneck {
        &[Window::square(1, 1, 0), wide(stride), Window::square(1, 1, 0)]
    } else {
        &[wide(stride), wide(1)]
    };
    let mut y = x;
    for (i, &window) in windows.iter().enumerate() {
        let norm = format!("{name}.bn{}", i + 1);
        let last = i + 1 == windows.len();
        let residual = last.then_some(shortcut);
        let then = Then { residual, ..Then::norm(&norm, relu(true)) };
        y = builder.conv(y, &format!("{name}.conv{}", i + 1), window, then)?;
    }
    Ok(y)
}
