//! Heads without attention: a linear layer and an aggregate over tiles, in either order.

use super::Builder;
use crate::error::{Error, Result};
use crate::graph::{Act, Dense, Epilogue, Op, TensorId};

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
