//! What a step costs at least: its arithmetic and the bytes that have to move. Together they give the
//! roofline of a layer.

use super::{Dense, Epilogue, Graph, Op, ParamId, Shape, Step, TensorId};

impl Graph {
    /// Multiply-accumulates times two, for one row.
    pub fn flops_per_row(&self) -> u64 {
        self.steps.iter().map(|s| self.step_flops(s)).sum()
    }

    /// Multiply-accumulates of one step times two, for one row.
    pub fn step_flops(&self, step: &Step) -> u64 {
        let input = self.shape(step.inputs[0]);
        let (from, to) = (input.pixels() as u64, self.shape(step.output).pixels() as u64);
        let size = |p: ParamId| self.param(p).data.len() as u64;
        match step.op {
            Op::Conv2d { weight, .. } | Op::Linear { weight, .. } => 2 * to * size(weight),
            Op::GatedLinear { weight, .. }
            | Op::PreactConv1x1 { weight, .. }
            | Op::ConvTranspose2x2 { weight, .. } => 2 * from * size(weight),
            Op::Attention { .. } => 4 * to * from * self.shape(step.output).channels() as u64,
            Op::AttentionScore { v, u, w } => {
                2 * (size(v.weight) + u.map_or(0, |u| size(u.weight)) + size(w.weight))
            }
            Op::AttentionPool => 2 * self.shape(step.output).len() as u64,
            _ => 0,
        }
    }

    /// Bytes of activations a step reads and writes for one row, each once: FP16, but u8 pixels and
    /// f32 outputs of the graph.
    pub fn step_row_bytes(&self, step: &Step) -> u64 {
        let bytes = |id: TensorId, full: bool| {
            let shape = self.shape(id);
            let number = match shape {
                Shape::Pixels { .. } => 1,
                _ if full => 4,
                _ => 2,
            };
            (number * shape.len()) as u64
        };
        let read: u64 = step.reads().map(|id| bytes(id, false)).sum();
        read + bytes(step.output, self.outputs.contains(&step.output))
    }

    /// Bytes of weights a step reads, once a run: FP16 weights, f32 scales and biases.
    pub fn step_weight_bytes(&self, step: &Step) -> u64 {
        let size = |id: ParamId| {
            let data = &self.param(id).data;
            data.len() as u64 * if matches!(data, super::ParamData::F16(_)) { 2 } else { 4 }
        };
        step_params(step).into_iter().map(size).sum()
    }
}

/// The parameters of a step.
fn step_params(step: &Step) -> Vec<ParamId> {
    let product = |weight: ParamId, e: Epilogue| vec![Some(weight), e.scale, e.bias];
    let dense = |d: Dense| [Some(d.weight), d.bias];
    let all = match step.op {
        Op::Conv2d { weight, epilogue, .. }
        | Op::ConvTranspose2x2 { weight, epilogue }
        | Op::Linear { weight, epilogue } => product(weight, epilogue),
        Op::PreactConv1x1 { scale, bias, weight, epilogue } => {
            [product(weight, epilogue), vec![Some(scale), Some(bias)]].concat()
        }
        Op::GatedLinear { weight, bias, .. } | Op::RowDot { weight, bias } => {
            vec![Some(weight), bias]
        }
        Op::Affine { scale, bias, .. } => vec![scale, bias],
        Op::BatchNorm { gamma, beta, .. } => vec![Some(gamma), Some(beta)],
        Op::LayerNorm { gamma, beta, .. } => vec![Some(gamma), beta],
        Op::RmsNorm { gamma, .. } => vec![Some(gamma)],
        Op::Embed { prefix, position } => vec![prefix, position],
        Op::Attention { queries, .. } => vec![queries],
        Op::AttentionScore { v, u, w } => {
            [Some(v), u, Some(w)].into_iter().flatten().flat_map(dense).collect()
        }
        Op::Normalize { .. }
        | Op::Patches { .. }
        | Op::MaxPool { .. }
        | Op::AvgPool { .. }
        | Op::AdaptiveAvgPool { .. }
        | Op::Upsample { .. }
        | Op::TokenMean { .. }
        | Op::Softmax
        | Op::Flatten
        | Op::AttentionPool
        | Op::BagReduce { .. }
        | Op::Copy => Vec::new(),
    };
    all.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Window;
    use half::f16;

    #[test]
    fn bytes_of_a_convolution() {
        let mut g = Graph::new("g");
        let x = g.input(Shape::Map { h: 8, w: 8, c: 4 });
        let residual = g.input(Shape::Map { h: 8, w: 8, c: 6 });
        let weight = g.param_f16("w", &[6, 3, 3, 4], vec![f16::ONE; 216]).unwrap();
        let bias = Some(g.param_f32("b", &[6], vec![0.0; 6]).unwrap());
        let epilogue = Epilogue { bias, residual: Some(residual), ..Default::default() };
        let op = Op::Conv2d { weight, window: Window::square(3, 1, 1), epilogue };
        let y = g.push(op, &[x]).unwrap();
        assert_eq!(g.step_row_bytes(&g.steps[0]), 2 * 64 * (4 + 6 + 6));
        assert_eq!(g.step_weight_bytes(&g.steps[0]), 2 * 216 + 4 * 6);
        g.output(y);
        assert_eq!(g.step_row_bytes(&g.steps[0]), 2 * 64 * (4 + 6) + 4 * 64 * 6);
    }
}
