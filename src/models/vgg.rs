//! VGG (Simonyan & Zisserman 2015) without its classifier, by torchvision's `features.<k>` keys.

use super::layers::{Builder, Then};
use crate::error::{Error, Result};
use crate::graph::{Act, Op, Shape, TensorId, Window};

/// Side of the map the features are pooled to before they are flattened.
const POOLED: usize = 7;

/// Five stages of 3 x 3 convolutions, each ended by a 2 x 2 max pool, then `C * 7 * 7` features in
/// channel-major order.
pub fn build(
    builder: &mut Builder<'_>,
    input: TensorId,
    convs: &[usize; 5],
    bn: bool,
    truncate: Option<&str>,
) -> Result<TensorId> {
    if let Some(stage) = truncate {
        return Err(Error::usage(format!("truncate {stage:?}: a VGG cannot be truncated")));
    }
    if builder.batch_statistics && !bn {
        return Err(Error::usage("bn_mode \"batch\": this VGG has no batch norm"));
    }
    let mut x = input;
    let mut index = 0;
    for &count in convs {
        for _ in 0..count {
            let norm = format!("features.{}", index + 1);
            let then = Then { norm: bn.then_some(norm.as_str()), residual: None, act: Act::Relu };
            x = builder.conv(x, &format!("features.{index}"), Window::square(3, 1, 1), then)?;
            index += if bn { 3 } else { 2 };
        }
        x = builder.graph.push(Op::MaxPool { window: Window::square(2, 2, 0) }, &[x])?;
        index += 1;
    }
    if !matches!(builder.graph.shape(x), Shape::Map { h: POOLED, w: POOLED, .. }) {
        x = builder.graph.push(Op::AdaptiveAvgPool { h: POOLED, w: POOLED }, &[x])?;
    }
    builder.graph.push(Op::Flatten, &[x])
}
