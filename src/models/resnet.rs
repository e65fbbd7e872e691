//! ResNet (He et al. 2016) without its classifier, by torchvision's keys; the stride of a
//! bottleneck is on its 3 x 3 convolution.

use super::layers::{Builder, Then};
use super::{global_average, relu};
use crate::error::{Error, Result};
use crate::graph::{Op, TensorId, Window};

/// The stem, up to four stages of blocks, and global average pooling.
pub fn build(
    builder: &mut Builder<'_>,
    input: TensorId,
    blocks: &[usize; 4],
    bottleneck: bool,
    truncate: Option<&str>,
) -> Result<TensorId> {
    let stages = match truncate {
        None => 4,
        Some(name) => {
            1 + (0..4).find(|i| name == format!("layer{}", i + 1)).ok_or_else(|| {
                Error::usage(format!("truncate {name:?}: a ResNet has layer1 to layer4"))
            })?
        }
    };
    let stem = Then { norm: Some("bn1"), residual: None, act: relu(true) };
    let x = builder.conv(input, "conv1", Window::square(7, 2, 3), stem)?;
    let mut x = builder.graph.push(Op::MaxPool { window: Window::square(3, 2, 1) }, &[x])?;
    for (i, &count) in blocks.iter().enumerate().take(stages) {
        for j in 0..count {
            let stride = if i > 0 && j == 0 { 2 } else { 1 };
            x = block(builder, x, &format!("layer{}.{j}", i + 1), stride, bottleneck)?;
        }
    }
    global_average(&mut builder.graph, x)
}

/// `relu(convs(x) + shortcut(x))`, the shortcut a 1 x 1 convolution where there is one.
fn block(
    builder: &mut Builder<'_>,
    x: TensorId,
    name: &str,
    stride: usize,
    bottleneck: bool,
) -> Result<TensorId> {
    let downsample = format!("{name}.downsample.0");
    let shortcut = if builder.weights.has(&format!("{downsample}.weight")) {
        let norm = format!("{name}.downsample.1");
        let then = Then { norm: Some(&norm), residual: None, act: relu(false) };
        builder.conv(x, &downsample, Window::square(1, stride, 0), then)?
    } else {
        x
    };
    let windows: &[Window] = if bottleneck {
        &[Window::square(1, 1, 0), Window::square(3, stride, 1), Window::square(1, 1, 0)]
    } else {
        &[Window::square(3, stride, 1), Window::square(3, 1, 1)]
    };
    let mut y = x;
    for (i, &window) in windows.iter().enumerate() {
        let norm = format!("{name}.bn{}", i + 1);
        let last = i + 1 == windows.len();
        let then = Then { norm: Some(&norm), residual: last.then_some(shortcut), act: relu(true) };
        y = builder.conv(y, &format!("{name}.conv{}", i + 1), window, then)?;
    }
    Ok(y)
}
