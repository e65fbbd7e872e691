//! BALNMP's attention MIL with clinical values (Xu et al. 2021, 10.3389/fonc.2021.759007), by the
//! keys of its state dict.

use super::Builder;
use crate::error::{Error, Result};
use crate::graph::{Act, Dense, Epilogue, Graph, Op, Shape, TensorId};

/// Most copies of the clinical values; BALNMP has 10.
const MAX_REPEATS: usize = 100;

/// `h = relu(fc1 f)`; plain attention over the bag; a classifier of two layers on the pooled `h`,
/// beside which the clinical values stand repeated.
pub fn build(builder: &mut Builder<'_>) -> Result<[TensorId; 2]> {
    const FC1: &str = "attention_aggregator.fc1.0";
    let features = builder.features(&format!("{FC1}.weight"))?;
    let Builder { graph, weights, clinical, single, .. } = builder;
    let fc1 = weights.dense(graph, FC1)?;
    let h = linear(graph, fc1, Act::Relu, features)?;

    let v = weights.dense(graph, "attention_aggregator.attention.0")?;
    let w = weights
        .first_of(&["attention_aggregator.attention.3", "attention_aggregator.attention.2"])?;
    let w = weights.dense(graph, w)?;
    let scores = graph.push(Op::AttentionScore { v, u: None, w }, &[h])?;

    let hidden = weights.dense(graph, "classifier.0")?;
    let output = weights.dense(graph, "classifier.2")?;
    let pooled = pool(graph, [scores, h], *clinical, *single, hidden)?;
    let x = linear(graph, hidden, Act::Relu, pooled)?;
    Ok([linear(graph, output, Act::None, x)?, scores])
}

fn linear(graph: &mut Graph, dense: Dense, act: Act, x: TensorId) -> Result<TensorId> {
    let epilogue = Epilogue { bias: dense.bias, act, ..Default::default() };
    graph.push(Op::Linear { weight: dense.weight, epilogue }, &[x])
}

/// The pooled features and as many copies of the clinical values as fill the classifier's input.
fn pool(
    graph: &mut Graph,
    [scores, h]: [TensorId; 2],
    clinical: usize,
    single: bool,
    classifier: Dense,
) -> Result<TensorId> {
    let width = graph.shape(h).channels();
    let weight = graph.param(classifier.weight);
    let (name, input) = (weight.name.clone(), weight.shape[1]);
    let Some(room) = input.checked_sub(width) else {
        return Err(Error::weights(format!("{name} reads {input} values, {width} are pooled")));
    };
    if clinical == 0 && room == 0 {
        return match single {
            true => Ok(h),
            false => graph.push(Op::AttentionPool, &[scores, h]),
        };
    }
    let fits = clinical > 0 && room.is_multiple_of(clinical);
    if !fits || !(1..=MAX_REPEATS).contains(&(room / clinical)) {
        return Err(Error::weights(format!(
            "{name} has room for {room} clinical values beside {width} features, \
             the recipe has {clinical} to repeat"
        )));
    }
    let values = graph.input(Shape::Bag { r: 1, c: clinical });
    let joined = graph.tensor(Shape::Bag { r: 1, c: input });
    graph.push_into(Op::AttentionPool, &[scores, h], joined, 0)?;
    for offset in (width..input).step_by(clinical) {
        graph.push_into(Op::Copy, &[values], joined, offset)?;
    }
    Ok(joined)
}
