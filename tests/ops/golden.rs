//! The reference against PyTorch, op by op: `tests/golden/ops/make.py` wrote the numbers.

use half::f16;
use histokern::backend::Backend;
use histokern::backend::check::run_once;
use histokern::cpu::CpuBackend;
use histokern::graph::reference::{self, Rounding};
use histokern::graph::{Act, Dense, Epilogue, Graph, Input, Interpolation, Op};
use histokern::graph::{ParamId, Reduce, Shape, TensorId, Window};
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
            [_, t, c] => Shape::Tokens { t, c },
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

    fn float(&self, key: &str) -> f32 {
        self.args[key].as_f64().unwrap() as f32
    }

    fn int(&self, key: &str) -> usize {
        self.args[key].as_u64().unwrap() as usize
    }

    fn act(&self) -> Act {
        match self.args["act"].as_str().unwrap() {
            "none" => Act::None,
            "relu" => Act::Relu,
            "tanh" => Act::Tanh,
            "sigmoid" => Act::Sigmoid,
            "gelu" => Act::Gelu,
            "silu" => Act::Silu,
            other => panic!("activation {other}"),
        }
    }

    fn op(&mut self) -> Op {
        match self.args["op"].as_str().unwrap() {
            "conv2d" => {
                let epilogue = Epilogue { bias: Some(self.vector("b")), ..Default::default() };
                Op::Conv2d { weight: self.weight("w"), window: self.window(), epilogue }
            }
            "linear" => {
                let residual = Some(self.graph.input(self.golden("r").unwrap().row()));
                let bias = Some(self.vector("b"));
                let epilogue = Epilogue { scale: None, bias, residual, act: self.act() };
                Op::Linear { weight: self.weight("w"), epilogue }
            }
            "preact_conv1x1" => {
                let residual = Some(self.graph.input(self.golden("r").unwrap().row()));
                let (scale, bias) = (self.vector("s"), self.vector("b"));
                let epilogue = Epilogue { residual, ..Default::default() };
                Op::PreactConv1x1 { scale, bias, weight: self.weight("w"), epilogue }
            }
            "conv_transpose2d" => {
                let epilogue = Epilogue { bias: Some(self.vector("b")), ..Default::default() };
                Op::ConvTranspose2x2 { weight: self.weight("w"), epilogue }
            }
            "gated_linear" => {
                let bias = Some(self.vector("b"));
                Op::GatedLinear { weight: self.weight("w"), bias, act: self.act() }
            }
            "affine" => {
                let (scale, bias) = (Some(self.vector("s")), Some(self.vector("b")));
                Op::Affine { scale, bias, act: self.act() }
            }
            "max_pool2d" => {
                Op::MaxPool { window: self.window(), ceil_mode: self.args["ceil_mode"] == true }
            }
            "avg_pool2d" => {
                let count_include_pad = self.args["count_include_pad"].as_bool().unwrap();
                Op::AvgPool { window: self.window(), count_include_pad }
            }
            "adaptive_avg_pool2d" => {
                let [h, w] = self.pair("size");
                Op::AdaptiveAvgPool { h, w }
            }
            "interpolate" => {
                let [h, w] = self.pair("size");
                let align_corners = self.args["align_corners"] == true;
                let mode = match self.args["mode"].as_str().unwrap() {
                    "nearest" => Interpolation::Nearest,
                    _ => Interpolation::Bilinear { align_corners },
                };
                Op::Upsample { h, w, mode }
            }
            "layer_norm" => {
                let beta = self.golden("b").map(|_| self.vector("b"));
                let (gamma, eps, groups) =
                    (self.vector("w"), self.float("eps"), self.int("groups"));
                Op::LayerNorm { gamma, beta, eps, groups }
            }
            "rms_norm" => {
                let (gamma, eps, groups) =
                    (self.vector("w"), self.float("eps"), self.int("groups"));
                Op::RmsNorm { gamma, eps, groups }
            }
            "attention" => {
                let queries = self.golden("q").map(|_| self.weight("q"));
                Op::Attention { heads: self.int("heads"), queries }
            }
            "embed" => {
                let prefix = self.golden("prefix").map(|_| self.vector("prefix"));
                Op::Embed { prefix, position: Some(self.vector("position")) }
            }
            "token_mean" => Op::TokenMean { start: self.int("start"), count: self.int("count") },
            "softmax" => Op::Softmax,
            "bag_reduce" => {
                let reduce = match self.args["reduce"].as_str().unwrap() {
                    "mean" => Reduce::Mean,
                    "max" => Reduce::Max,
                    _ => Reduce::Percentile(self.float("q")),
                };
                Op::BagReduce { reduce }
            }
            "patches" => {
                let (mean, std) = (self.floats("mean"), self.floats("std"));
                Op::Patches { mean, std, side: self.int("side") }
            }
            "batch_norm" => {
                let eps = self.float("eps");
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
    assert!(cases.len() >= 80, "{}", cases.len());
    let backend = CpuBackend::new(2, None).unwrap();
    for (name, args) in cases {
        let args = serde_json::from_str(args).unwrap();
        let mut case = Case { file: &file, name, args, graph: Graph::new(name.clone()) };
        let x = case.golden("x").unwrap();
        let (shape, rows) = match case.args["op"].as_str().unwrap() {
            "row_dot" => (Shape::Bag { r: x.shape[0], c: x.shape[1] }, 1),
            "normalize" | "patches" => (Shape::Pixels { h: x.shape[2], w: x.shape[3] }, x.shape[0]),
            _ => (x.row(), x.shape[0]),
        };
        let mut inputs: Vec<TensorId> = vec![case.graph.input(shape)];
        let op = case.op();
        let mut given = vec![x.channels_last()];
        given.extend(["r", "values"].iter().filter_map(|k| Some(case.golden(k)?.channels_last())));
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
                let bound = 1e-5 + backend.product_error() as f32;
                let close = (got - want).abs() <= bound * want.abs().max(1.0);
                assert!(close, "{name}: {who} {got}, PyTorch {want}");
            }
        }
    }
}
