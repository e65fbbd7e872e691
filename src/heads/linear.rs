//! Heads without attention: a linear layer and an aggregate over tiles, in either order.

use super::Builder;
use crate::error::{Context, Error, Result};
use crate::graph::{Act, Dense, Epilogue, Op, TensorId};
use crate::recipe;
use crate::weights::{Reader, Tensors};

/// What classifiers call their last layer: torchvision, timm, MIL code.
const NAMES: [&str; 4] = ["fc", "head", "classifier", "classifier.0"];

/// Every tile is predicted on its own and the predictions are aggregated, as Ekholm et al. 2024
/// (10.1186/s12885-024-13248-9) take the 75th percentile of tiles.
pub fn of_tiles(builder: &mut Builder<'_>) -> Result<[TensorId; 2]> {
    let (name, features) = input(builder)?;
    let scores = builder.linear(name, Act::None, features)?;
    Ok([builder.aggregate(scores)?, scores])
}

/// The features are aggregated and the result is predicted; a tile's score is the prediction of that
/// tile alone.
pub fn of_pooled(builder: &mut Builder<'_>) -> Result<[TensorId; 2]> {
    let (name, features) = input(builder)?;
    let Dense { weight, bias } = builder.weights.dense(&mut builder.graph, name)?;
    let op = Op::Linear { weight, epilogue: Epilogue { bias, ..Default::default() } };
    let scores = builder.graph.push(op, &[features])?;
    if builder.single {
        return Ok([scores, scores]);
    }
    let pooled = builder.aggregate(features)?;
    Ok([builder.graph.push(op, &[pooled])?, scores])
}

fn input(builder: &mut Builder<'_>) -> Result<(&'static str, TensorId)> {
    if builder.clinical > 0 {
        return Err(Error::usage("a head without attention takes no clinical values"));
    }
    let name = builder.weights.first_of(&NAMES)?;
    Ok((name, builder.features(&format!("{name}.weight"))?))
}

/// The numbers of a head that is one linear layer.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[outputs, features]`, row-major.
    pub weight: Vec<f32>,
    /// `[outputs]`; zeros where the layer has none.
    pub bias: Vec<f32>,
    /// Width of the features.
    pub features: usize,
}

/// Reads the layer of a head that is nothing else.
///
/// # Errors
/// [`crate::Kind::Unsupported`] for another head, [`crate::Kind::Weights`] naming the tensor.
pub fn layer(head: &recipe::Head, weights: &Tensors) -> Result<Linear> {
    let named = || format!("head {}", head.name);
    if !["tile-linear", "pool-linear"].contains(&head.family.as_str()) {
        let what = format!("{} is not one linear layer", head.family);
        return Err(Error::unsupported(what).context(named()));
    }
    let mut reader = Reader::new(weights);
    let read = |reader: &mut Reader<'_>| -> Result<Linear> {
        let name = reader.first_of(&NAMES)?;
        let tensor = reader.take(&format!("{name}.weight"))?;
        let &[outputs, features] = tensor.shape else {
            return Err(reader.misfit(&tensor, "[K, C]"));
        };
        let bias = format!("{name}.bias");
        let bias = if reader.has(&bias) { reader.vector(&bias)? } else { vec![0.0; outputs] };
        if bias.len() != outputs || features == 0 {
            return Err(reader.misfit(&tensor, "as many rows as the bias has numbers"));
        }
        Ok(Linear { weight: tensor.to_f32()?, bias, features })
    };
    read(&mut reader).context(named)
}
