//! Attention MIL as its authors publish it (Ilse et al. 2018, arXiv:1802.04712), on features: plain
//! (`attention.0`, `attention.2`) or gated (`attention_V.0`, `attention_U.0`, `attention_w`).

use super::Builder;
use crate::error::{Error, Result};
use crate::graph::{Act, Op, TensorId};

/// An optional hidden layer, attention over the bag, and a linear classifier on what it pools.
pub fn build(builder: &mut Builder<'_>) -> Result<[TensorId; 2]> {
    const HIDDEN: &str = "feature_extractor_part2.0";
    if builder.clinical > 0 {
        return Err(Error::usage("an abmil head takes no clinical values"));
    }
    let gated = builder.weights.has("attention_V.0.weight");
    let [v, u, w] = match gated {
        true => ["attention_V.0", "attention_U.0", "attention_w"],
        false => ["attention.0", "", "attention.2"],
    };
    let h = if builder.weights.has(&format!("{HIDDEN}.weight")) {
        let features = builder.features(&format!("{HIDDEN}.weight"))?;
        builder.linear(HIDDEN, Act::Relu, features)?
    } else {
        builder.features(&format!("{v}.weight"))?
    };
    let Builder { graph, weights, .. } = builder;
    let v = weights.dense(graph, v)?;
    let u = if gated { Some(weights.dense(graph, u)?) } else { None };
    let w = weights.dense(graph, w)?;
    let scores = graph.push(Op::AttentionScore { v, u, w }, &[h])?;
    if graph.shape(scores).channels() != 1 {
        return Err(Error::unsupported("several attention branches in one abmil head"));
    }
    let pooled = builder.attend(scores, h)?;
    let classifier = builder.weights.first_of(&["classifier.0", "classifier"])?;
    Ok([builder.linear(classifier, Act::None, pooled)?, scores])
}
