//! AlexNet (Krizhevsky 2014, arXiv:1404.5997) without its classifier, by torchvision's
//! `features.<k>` keys.

use super::layers::{Builder, Then, same};
use super::{flat_pooled, whole};
use crate::error::{Error, Result};
use crate::graph::{Act, Op, TensorId, Window};

/// Side of the map the features are pooled to before they are flattened.
const POOLED: usize = 6;

/// Five convolutions and three poolings, then `C * 6 * 6` features in channel-major order.
pub fn build(
    builder: &mut Builder<'_>,
    input: TensorId,
    truncate: Option<&str>,
) -> Result<TensorId> {
    whole(truncate, "an AlexNet")?;
    if builder.batch_statistics {
        return Err(Error::usage("bn_mode \"batch\": AlexNet has no batch norm"));
    }
    let mut x = input;
    // Index of each convolution, its window, and whether a pooling follows.
    for (index, window, pooled) in [
        (0, Window::square(11, 4, 2), true),
        (3, same(5), true),
        (6, same(3), false),
        (8, same(3), false),
        (10, same(3), true),
    ] {
        let then = Then::bias(Act::Relu);
        x = builder.conv(x, &format!("features.{index}"), window, then)?;
        if pooled {
            let window = Window::square(3, 2, 0);
            x = builder.graph.push(Op::MaxPool { window, ceil_mode: false }, &[x])?;
        }
    }
    flat_pooled(&mut builder.graph, x, POOLED)
}
