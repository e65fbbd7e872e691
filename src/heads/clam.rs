//! CLAM's gated attention MIL (Lu et al. 2021, 10.1038/s41551-020-00682-w): one attention branch
//! for all classes, or one each. HistCode's classifiers and gene regressions are the former.

use super::{Builder, Scores};
use crate::error::{Error, Result};
use crate::graph::{Act, Dense, Epilogue, Op, ParamData, ParamId, Reduce, Shape, TensorId};

/// The hidden layer.
const FC: &str = "attention_net.0";
/// The last layer.
const CLASSIFIERS: &str = "classifiers";

/// `h = relu(W f)`, gated attention over the bag, one linear layer on the pooled `h`.
pub fn single(builder: &mut Builder<'_>) -> Result<[TensorId; 2]> {
    let [scores, pooled] = attention(builder)?;
    let classifier = builder.weights.first_of(&["classifiers", "classifiers.0"])?;
    Ok([builder.linear(classifier, Act::None, pooled)?, scores])
}

/// The mean of all `h` is classified: HistCode's CLAM_SB_Pool, whose hidden layer is `fc.0` and which
/// has no attention, so that the scores are the predictions of single tiles. With CLAM's own keys the
/// attention is there and only shown.
pub fn pooled(builder: &mut Builder<'_>) -> Result<[TensorId; 2]> {
    let classifier = builder.weights.first_of(&[CLASSIFIERS, "classifiers.0"])?;
    let attention = !builder.weights.has("fc.0.weight");
    let [h, scores] = match attention {
        true => scores(builder)?,
        false => {
            refuse_clinical(builder)?;
            builder.scores = Scores::Prediction;
            let features = builder.features("fc.0.weight")?;
            let h = builder.linear("fc.0", Act::Relu, features)?;
            [h, builder.linear(classifier, Act::None, h)?]
        }
    };
    if builder.single && !attention {
        return Ok([scores, scores]);
    }
    let mean = match builder.single {
        true => h,
        false => builder.graph.push(Op::BagReduce { reduce: Reduce::Mean }, &[h])?,
    };
    Ok([builder.linear(classifier, Act::None, mean)?, scores])
}

/// Tiles from either end of the attention that HistCode's CLAM_SB_Reg_NN_Pool looks at.
pub const EXTREMES: usize = 100;

/// HistCode's CLAM_SB_Reg_NN_Pool as it treats a bag of at most [`EXTREMES`] tiles twice: what
/// attention pools stands twice before the classifier.
pub fn nn_pooled(builder: &mut Builder<'_>) -> Result<[TensorId; 2]> {
    let [scores, pooled] = attention(builder)?;
    let graph = &mut builder.graph;
    let shape = graph.shape(pooled);
    let width = shape.channels();
    let both = graph.tensor(shape.with_channels(2 * width));
    graph.push_into(Op::Copy, &[pooled], both, 0)?;
    graph.push_into(Op::Copy, &[pooled], both, width)?;
    Ok([builder.linear(CLASSIFIERS, Act::None, both)?, scores])
}

/// And a larger bag: the mean `h` of the tiles of least attention beside that of those of most.
pub fn extremes(builder: &mut Builder<'_>) -> Result<TensorId> {
    let low = builder.features(&format!("{FC}.weight"))?;
    let shape = builder.graph.shape(low);
    let high = builder.graph.input(shape);
    let Builder { graph, weights, .. } = builder;
    let Dense { weight, bias } = weights.dense(graph, FC)?;
    let width = graph.param(weight).shape[0];
    let both = graph.tensor(Shape::Bag { r: 1, c: 2 * width });
    for (at, features) in [(0, low), (width, high)] {
        let epilogue = Epilogue { bias, act: Act::Relu, ..Default::default() };
        let h = graph.push(Op::Linear { weight, epilogue }, &[features])?;
        graph.push_into(Op::BagReduce { reduce: Reduce::Mean }, &[h], both, at)?;
    }
    builder.linear(CLASSIFIERS, Act::None, both)
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
    refuse_clinical(builder)?;
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

fn refuse_clinical(builder: &Builder<'_>) -> Result<()> {
    match builder.clinical {
        0 => Ok(()),
        _ => Err(Error::usage("a CLAM head takes no clinical values")),
    }
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
