//! The reference against PyTorch, op by op: `tests/golden/ops/make.py` wrote the numbers.

use half::f16;
use histokern::backend::check::run_once;
use histokern::cpu::CpuBackend;
use histokern::graph::reference::{self, Rounding};
use histokern::graph::{Act, Dense, Epilogue, Graph, Input, Op, ParamId, Shape, TensorId, Window};
use safetensors::SafeTensors;
use serde_json::Value;
use std::sync::Arc;

const FILE: &[u8] = include_bytes!("../golden/ops/ops.safetensors");

/// A tensor with PyTorch's dimensions.
struct Golden {
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl Golden {
    /// Channels moved from second to last place: NCHW to NHWC, KCRS to KRSC.
    fn channels_last(&self) -> Vec<f32> {
        let [n, c, h, w] = self.shape[..] else { return self.data.clone() };
        let index = |i: usize| {
            let (c_at, rest) = (i % c, i / c);
            let (n_at, position) = (rest / (h * w), rest % (h * w));
            (n_at * c + c_at) * h * w + position
        };
        (0..n * c * h * w).map(|i| self.data[index(i)]).collect()
    }

    /// The shape of one row.
    fn row(&self) -> Shape {
        match self.shape[..] {
            [_, c, h, w] => Shape::Map { h, w, c },
            [_, c] => Shape::Tokens { t: 1, c },
            _ => panic!("a tensor of {:?}", self.shape),
        }
    }
}

/// A case and the graph it becomes.
struct Case<'a> {
    file: &'a SafeTensors<'a>,
    name: &'a str,
    args: Value,
    graph: Graph,
}

impl Case<'_> {
    fn golden(&self, key: &str) -> Option<Golden> {
        let view = self.file.tensor(&format!("{}.{key}", self.name)).ok()?;
        let bytes = view.data().chunks_exact(4);
        let data = bytes.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        Some(Golden { shape: view.shape().to_vec(), data })
    }

    fn weight(&mut self, key: &str) -> ParamId {
        let golden = self.golden(key).unwrap();
        let shape = match golden.shape[..] {
            [k, c, r, s] => vec![k, r, s, c],
            _ => golden.shape.clone(),
        };
        let data = golden.channels_last().into_iter().map(f16::from_f32).collect();
        self.graph.param_f16(key, &shape, data).unwrap()
    }

    fn vector(&mut self, key: &str) -> ParamId {
        let golden = self.golden(key).unwrap();
        self.graph.param_f32(key, &golden.shape, golden.data).unwrap()
    }

    fn dense(&mut self, weight: &str, bias: &str) -> Dense {
        Dense { weight: self.weight(weight), bias: Some(self.vector(bias)) }
    }

    fn floats<const N: usize>(&self, key: &str) -> [f32; N] {
        std::array::from_fn(|i| self.args[key][i].as_f64().unwrap() as f32)
    }

    fn pair(&self, key: &str) -> [usize; 2] {
        self.floats::<2>(key).map(|x| x as usize)
    }

    fn window(&self) -> Window {
        let [kernel, stride, pad, dilation] =
            ["kernel", "stride", "pad", "dilation"].map(|key| self.pair(key));
        Window { kernel, stride, pad, dilation }
    }

    fn op(&mut self) -> Op {
        match self.args["op"].as_str().unwrap() {
            "conv2d" => {
                let epilogue = Epilogue { bias: Some(self.vector("b")), ..Default::default() };
                Op::Conv2d { weight: self.weight("w"), window: self.window(), epilogue }
            }
            "linear" => {
                let act = match self.args["act"].as_str().unwrap() {
                    "none" => Act::None,
                    "relu" => Act::Relu,
                    "tanh" => Act::Tanh,
                    "sigmoid" => Act::Sigmoid,
                    other => panic!("activation {other}"),
                };
                let residual = Some(self.graph.input(self.golden("r").unwrap().row()));
                let bias = Some(self.vector("b"));
                let epilogue = Epilogue { scale: None, bias, residual, act };
                Op::Linear { weight: self.weight("w"), epilogue }
            }
            "max_pool2d" => Op::MaxPool { window: self.window() },
            "avg_pool2d" => {
                let count_include_pad = self.args["count_include_pad"].as_bool().unwrap();
                Op::AvgPool { window: self.window(), count_include_pad }
            }
            "adaptive_avg_pool2d" => {
                let [h, w] = self.pair("size");
                Op::AdaptiveAvgPool { h, w }
            }
            "batch_norm" => {
                let eps = self.args["eps"].as_f64().unwrap() as f32;
                let (gamma, beta) = (self.vector("w"), self.vector("b"));
                Op::BatchNorm { gamma, beta, eps, act: Act::None }
            }
            "flatten" => Op::Flatten,
            "attention_score" => Op::AttentionScore {
                v: self.dense("v", "bv"),
                u: Some(self.dense("u", "bu")),
                w: self.dense("w", "bw"),
            },
            "attention_pool" => Op::AttentionPool,
            "row_dot" => Op::RowDot { weight: self.weight("w"), bias: Some(self.vector("b")) },
            "normalize" => Op::Normalize { mean: self.floats("mean"), std: self.floats("std") },
            other => panic!("op {other}"),
        }
    }
}

#[test]
fn agrees_with_pytorch() {
    let (_, header) = SafeTensors::read_metadata(FILE).unwrap();
    let file = SafeTensors::deserialize(FILE).unwrap();
    let cases = header.metadata().as_ref().unwrap();
    assert!(cases.len() >= 20);
    let backend = CpuBackend::new(2, None).unwrap();
    for (name, args) in cases {
        let args = serde_json::from_str(args).unwrap();
        let mut case = Case { file: &file, name, args, graph: Graph::new(name.clone()) };
        let x = case.golden("x").unwrap();
        let (shape, rows) = match case.args["op"].as_str().unwrap() {
            "row_dot" => (Shape::Bag { r: x.shape[0], c: x.shape[1] }, 1),
            "normalize" => (Shape::Pixels { h: x.shape[2], w: x.shape[3] }, x.shape[0]),
            _ => (x.row(), x.shape[0]),
        };
        let mut inputs: Vec<TensorId> = vec![case.graph.input(shape)];
        let op = case.op();
        let mut given = vec![x.channels_last()];
        given.extend(["r", "values"].iter().filter_map(|k| Some(case.golden(k)?.data)));
        if let Some(values) = case.golden("values") {
            inputs.push(case.graph.input(values.row()));
        }
        let y = case.graph.push(op, &inputs).unwrap();
        case.graph.output(y);

        let pixels: Vec<u8> = given[0].iter().map(|&x| x as u8).collect();
        let mut views: Vec<Input<'_>> = given.iter().map(|v| Input::Values(v)).collect();
        if matches!(shape, Shape::Pixels { .. }) {
            views[0] = Input::Pixels(&pixels);
        }
        let want = case.golden("y").unwrap().channels_last();
        let graph = Arc::new(case.graph);
        let reference = reference::run(&graph, rows, &views, Rounding::None).unwrap();
        let computed = run_once(&backend, &graph, rows, &views).unwrap();
        for (got, who) in [(&reference[0], "reference"), (&computed[0], "cpu")] {
            assert_eq!(got.len(), want.len(), "{name}");
            for (got, want) in got.iter().zip(&want) {
                let close = (got - want).abs() <= 1e-5 * want.abs().max(1.0);
                assert!(close, "{name}: {who} {got}, PyTorch {want}");
            }
        }
    }
}
