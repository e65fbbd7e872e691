//! DenseNet (Huang et al. 2017, arXiv:1608.06993) without its classifier, by torchvision's keys.
//!
//! A dense block is one tensor: each layer reads the channels written so far and writes the next.

use super::layers::{Builder, Concat, Pending, Then, same};
use super::{global_average, relu};
use crate::error::{Context, Error, Result};
use crate::graph::{Act, Op, TensorId, Window};

/// `relu(norm5)` averaged over all positions. Truncated at `features`: `norm5` itself, flattened
/// in channel-major order, as BALNMP takes it.
pub fn build(
    builder: &mut Builder<'_>,
    input: TensorId,
    layers: &[usize; 4],
    truncate: Option<&str>,
) -> Result<TensorId> {
    let raw = match truncate {
        None => false,
        Some("features") => true,
        Some(other) => {
            let what = format!("truncate {other:?}: a DenseNet can be cut at \"features\" only");
            return Err(Error::usage(what));
        }
    };
    let net = DenseNet { prefix: "", layers: *layers, skips: false, act: relu(!raw) };
    let [.., last] = stages(builder, input, net)?[..] else {
        return Err(Error::usage("a DenseNet without blocks"));
    };
    if raw {
        return builder.graph.push(Op::Flatten, &[last]);
    }
    global_average(&mut builder.graph, last)
}

/// What a DenseNet is made of.
#[derive(Clone, Copy, Debug)]
pub struct DenseNet<'n> {
    /// Before every key: `encoder.`.
    pub prefix: &'n str,
    /// Layers in each of the four blocks.
    pub layers: [usize; 4],
    /// Whether what the transitions' activations put out is wanted, which then exists.
    pub skips: bool,
    /// What follows the last norm.
    pub act: Act,
}

/// What the stem (before its pooling) puts out, then the activations of the three transitions if
/// they are wanted, then the last norm with its activation.
pub fn stages(
    builder: &mut Builder<'_>,
    input: TensorId,
    net: DenseNet<'_>,
) -> Result<Vec<TensorId>> {
    let features = format!("{}features", net.prefix);
    let norm = format!("{features}.norm0");
    let then = Then::norm(&norm, Act::Relu);
    let stem = builder.conv(input, &format!("{features}.conv0"), Window::square(7, 2, 3), then)?;
    let mut outputs = vec![stem];
    let pool = Op::MaxPool { window: Window::square(3, 2, 1), ceil_mode: false };
    let mut start: Pending = (pool, stem);
    for (i, &layers) in net.layers.iter().enumerate() {
        let x = block(builder, start, &format!("{features}.denseblock{}", i + 1), layers)?;
        if i + 1 == net.layers.len() {
            outputs.push(builder.norm(x, &format!("{features}.norm5"), net.act)?);
            break;
        }
        let name = format!("{features}.transition{}", i + 1);
        let (norm, conv) = (format!("{name}.norm"), format!("{name}.conv"));
        let y = if net.skips {
            let skip = builder.norm(x, &norm, Act::Relu)?;
            outputs.push(skip);
            builder.conv(skip, &conv, same(1), Then::default())?
        } else {
            builder.preact_conv(x, &norm, &conv, Then::default())?
        };
        let window = Window::square(2, 2, 0);
        start = (Op::AvgPool { window, count_include_pad: false }, y);
    }
    Ok(outputs)
}

/// Layers `conv2(relu(norm2(conv1(relu(norm1(x))))))`, x being all that lies before.
fn block(builder: &mut Builder<'_>, start: Pending, name: &str, layers: usize) -> Result<TensorId> {
    let names: Vec<String> = (1..=layers).map(|j| format!("{name}.denselayer{j}")).collect();
    let mut growth = 0;
    for layer in &names {
        growth += builder.weights.filters(&format!("{layer}.conv2.weight"))?;
    }
    let mut whole = Concat::begin(&mut builder.graph, start, growth).context(|| name.into())?;
    for layer in &names {
        let x = whole.so_far(&mut builder.graph)?;
        let norm2 = format!("{layer}.norm2");
        let then = Then::norm(&norm2, Act::Relu);
        let y =
            builder.preact_conv(x, &format!("{layer}.norm1"), &format!("{layer}.conv1"), then)?;
        let conv2 = format!("{layer}.conv2");
        let step = builder.conv_step(y, &conv2, same(3), Then::default())?;
        whole.push(&mut builder.graph, step).context(|| conv2)?;
    }
    whole.so_far(&mut builder.graph)
}
