//! VGG (Simonyan & Zisserman 2015) without its classifier, by torchvision's `features.<k>` keys.

use super::layers::{Builder, Then, same};
use super::{flat_pooled, whole};
use crate::error::{Error, Result};
use crate::graph::{Act, Op, TensorId, Window};

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
    whole(truncate, "a VGG")?;
    if builder.batch_statistics && !bn {
        return Err(Error::usage("bn_mode \"batch\": this VGG has no batch norm"));
    }
    let mut x = input;
    let mut index = 0;
    for &count in convs {
        for _ in 0..count {
            let norm = format!("features.{}", index + 1);
            let then = Then { norm: bn.then_some(norm.as_str()), ..Then::bias(Act::Relu) };
            x = builder.conv(x, &format!("features.{index}"), same(3), then)?;
            index += if bn { 3 } else { 2 };
        }
        x = builder
            .graph
            .push(Op::MaxPool { window: Window::square(2, 2, 0), ceil_mode: false }, &[x])?;
        index += 1;
    }
    flat_pooled(&mut builder.graph, x, POOLED)
}
