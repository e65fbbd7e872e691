//! CLAM's gated attention MIL (Lu et al. 2021, 10.1038/s41551-020-00682-w): one attention branch
//! for all classes, or one each. HistCode's classifiers and gene regressions are the former.

use super::Builder;
use crate::error::{Error, Result};
use crate::graph::{Act, Dense, Epilogue, Op, ParamData, ParamId, Reduce, TensorId};

/// `h = relu(W f)`, gated attention over the bag, one linear layer on the pooled `h`.
pub fn single(builder: &mut Builder<'_>) -> Result<[TensorId; 2]> {
    let [scores, pooled] = attention(builder)?;
    let classifier = builder.weights.first_of(&["classifiers", "classifiers.0"])?;
    Ok([builder.linear(classifier, Act::None, pooled)?, scores])
}

/// As [`single`], but the mean of all `h` is classified and attention only shown: HistCode's
/// CLAM_SB_Pool.
pub fn pooled(builder: &mut Builder<'_>) -> Result<[TensorId; 2]> {
    let [h, scores] = scores(builder)?;
    let mean = match builder.single {
        true => h,
        false => builder.graph.push(Op::BagReduce { reduce: Reduce::Mean }, &[h])?,
    };
    let classifier = builder.weights.first_of(&["classifiers", "classifiers.0"])?;
    Ok([builder.linear(classifier, Act::None, mean)?, scores])
}

/// As [`single`], but every class has its own attention and reads only what that pooled.
pub fn multiple(builder: &mut Builder<'_>) -> Result<[TensorId; 2]> {
    let [scores, pooled] = attention(builder)?;
    let branches = builder.graph.shape(scores).channels();
    let (weight, bias) = stacked_classifiers(builder, branches)?;
    let logits = builder.graph.push(Op::RowDot { weight, bias: Some(bias) }, &[pooled])?;
    Ok([logits, scores])
}

/// Scores per row and branch, and what they pool.
fn attention(builder: &mut Builder<'_>) -> Result<[TensorId; 2]> {
    let [h, scores] = scores(builder)?;
    Ok([scores, builder.attend(scores, h)?])
}

/// The hidden layer, and scores per row and branch.
fn scores(builder: &mut Builder<'_>) -> Result<[TensorId; 2]> {
    if builder.clinical > 0 {
        return Err(Error::usage("a CLAM head takes no clinical values"));
    }
    const FC: &str = "attention_net.0";
    let features = builder.features(&format!("{FC}.weight"))?;
    let Builder { graph, weights, .. } = builder;
    let Dense { weight, bias } = weights.dense(graph, FC)?;
    let epilogue = Epilogue { bias, act: Act::Relu, ..Default::default() };
    let h = graph.push(Op::Linear { weight, epilogue }, &[features])?;

    let names = ["attention_net.3.attention_a.0", "attention_net.2.attention_a.0"];
    let gate = weights.first_of(&names)?.trim_end_matches("attention_a.0");
    let v = weights.dense(graph, &format!("{gate}attention_a.0"))?;
    let u = Some(weights.dense(graph, &format!("{gate}attention_b.0"))?);
    let w = weights.dense(graph, &format!("{gate}attention_c"))?;
    let scores = graph.push(Op::AttentionScore { v, u, w }, &[h])?;
    Ok([h, scores])
}

/// `classifiers.<c>.{weight [1, C], bias [1]}` of every class, one below the other.
fn stacked_classifiers(builder: &mut Builder<'_>, classes: usize) -> Result<(ParamId, ParamId)> {
    let Builder { graph, weights, .. } = builder;
    let (mut rows, mut width, mut biases) = (Vec::new(), 0, Vec::new());
    for class in 0..classes {
        let name = format!("classifiers.{class}.weight");
        let row = weights.matrix(graph, &name)?;
        let param = graph.param(row);
        let ParamData::F16(data) = &param.data else {
            return Err(Error::weights(format!("{name} is not FP16")));
        };
        if param.shape[0] != 1 || (class > 0 && param.shape[1] != width) {
            return Err(Error::weights(format!("{name} has shape {:?}", param.shape)));
        }
        width = param.shape[1];
        rows.extend_from_slice(data);
        graph.params.truncate(row.0);
        biases.extend(weights.vector(&format!("classifiers.{class}.bias"))?);
    }
    let weight = graph.param_f16("classifiers.weight", &[classes, width], rows)?;
    Ok((weight, graph.param_f32("classifiers.bias", &[classes], biases)?))
}
