//! U-Net and U-Net++ on an encoder, by the keys of segmentation_models_pytorch: `encoder.*` as
//! torchvision names them, `decoder.blocks.*` of two 3 x 3 convolutions each (`conv1.0`, norm
//! `conv1.1`, then `conv2`), `segmentation_head.0`.

use super::layers::{Builder, Then, concat, same};
use super::resnet::Atrous;
use super::segmenters::{Output, enlarged, pyramid};
use crate::error::{Context, Error, Result};
use crate::graph::{Act, Interpolation, Op, TensorId};

/// Five blocks, each enlarging the map to the next skip, the last to the picture.
pub fn unet(
    builder: &mut Builder<'_>,
    input: TensorId,
    encoder: &str,
    output: Output,
) -> Result<TensorId> {
    let features = pyramid(builder, input, encoder, "encoder.", Atrous::No)?;
    let Some((&deepest, skips)) = features.split_last() else {
        return Err(Error::usage(format!("{encoder} has no stages")));
    };
    let mut x = deepest;
    for (i, &skip) in skips.iter().rev().enumerate() {
        x = block(builder, x, &[skip], skip, &i.to_string())?;
    }
    x = block(builder, x, &[], input, &skips.len().to_string())?;
    output.head(builder, x, "segmentation_head.0", same(3), None)
}

/// Node `x_<d>_<l>` enlarges node `x_<d>_<l - 1>` (the encoder's map where d = l) and reads beside
/// it the nodes `x_<d + 1>_<l>` ... `x_<l>_<l>` and the encoder's map of level l + 1, the deepest
/// being level 0.
pub fn unet_plus_plus(
    builder: &mut Builder<'_>,
    input: TensorId,
    encoder: &str,
    output: Output,
) -> Result<TensorId> {
    let mut features = pyramid(builder, input, encoder, "encoder.", Atrous::No)?;
    features.reverse();
    let depth = features.len() - 1;
    // Column l holds the nodes x_<l>_<l>, x_<l - 1>_<l>, ... as they are made.
    let mut columns: Vec<Vec<TensorId>> = vec![Vec::new(); depth];
    for steps in 0..depth {
        for d in 0..depth - steps {
            let l = d + steps;
            let from = if steps == 0 { features[d] } else { columns[l - 1][steps - 1] };
            let mut beside: Vec<TensorId> = columns[l].iter().rev().copied().collect();
            beside.push(features[l + 1]);
            let x = block(builder, from, &beside, features[l + 1], &format!("x_{d}_{l}"))?;
            columns[l].push(x);
        }
    }
    let last = columns[depth - 1][depth - 1];
    let x = block(builder, last, &[], input, &format!("x_0_{depth}"))?;
    output.head(builder, x, "segmentation_head.0", same(3), None)
}

/// `x` enlarged to the size of `like` with other maps beside it, through two convolutions.
fn block(
    builder: &mut Builder<'_>,
    x: TensorId,
    beside: &[TensorId],
    like: TensorId,
    name: &str,
) -> Result<TensorId> {
    let name = format!("decoder.blocks.{name}");
    let mut parts = vec![enlarged(builder, x, like, Interpolation::Nearest)];
    parts.extend(beside.iter().map(|&skip| (Op::Copy, skip)));
    let x = concat(&mut builder.graph, &parts).context(|| name.clone())?;
    (1..=2).try_fold(x, |x, part| {
        let norm = format!("{name}.conv{part}.1");
        let then = Then::norm(&norm, Act::Relu);
        builder.conv(x, &format!("{name}.conv{part}.0"), same(3), then)
    })
}
