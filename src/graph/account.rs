//! What a step costs at least: the bytes that have to move. With [`Graph::step_flops`] it gives the
//! roofline of a layer.

use super::{Graph, Op, ParamId, Shape, Step, TensorId};

impl Graph {
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
    match step.op {
        Op::Conv2d { weight, epilogue, .. } | Op::Linear { weight, epilogue } => {
            [Some(weight), epilogue.scale, epilogue.bias].into_iter().flatten().collect()
        }
        Op::BatchNorm { gamma, beta, .. } => vec![gamma, beta],
        Op::AttentionScore { v, u, w } => [Some(v), u, Some(w)]
            .into_iter()
            .flatten()
            .flat_map(|dense| [Some(dense.weight), dense.bias])
            .flatten()
            .collect(),
        Op::RowDot { weight, bias } => [Some(weight), bias].into_iter().flatten().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Epilogue, Window};
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
