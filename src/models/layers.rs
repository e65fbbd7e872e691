//! Convolutions with batch norm and concatenations: what all convolutional families are made of.

use crate::error::{Context, Error, Result};
use crate::graph::{Act, Epilogue, Graph, Op, ParamId, TensorId, Window};
use crate::weights::Reader;
use half::f16;

/// PyTorch's default of what is added to a variance.
pub const EPS: f32 = 1e-5;

/// A graph under construction and the weights it is built from.
pub struct Builder<'a> {
    pub graph: Graph,
    pub weights: Reader<'a>,
    /// Batch norm by the statistics of the run, not by the stored ones.
    pub batch_statistics: bool,
    /// Added to variances.
    pub eps: f32,
    /// Batch norms have no scale (Keras's `scale=False`).
    pub unscaled: bool,
}

/// What follows a convolution.
#[derive(Clone, Copy, Default)]
pub struct Then<'n> {
    /// Prefix of the batch norm's tensors. With no such tensors it was folded into the convolution.
    pub norm: Option<&'n str>,
    /// Whether the convolution must have a bias; otherwise it may.
    pub bias: bool,
    /// Added before the activation.
    pub residual: Option<TensorId>,
    pub act: Act,
}

impl<'n> Then<'n> {
    /// A batch norm and an activation.
    pub fn norm(norm: &'n str, act: Act) -> Then<'n> {
        Then { norm: Some(norm), act, ..Default::default() }
    }

    /// A bias and an activation.
    pub fn bias(act: Act) -> Then<'n> {
        Then { bias: true, act, ..Default::default() }
    }
}

/// A step that is not yet in the graph: what it does and what it reads.
pub type Pending = (Op, TensorId);

/// A tensor that steps write side by side, channel after channel.
pub struct Concat {
    whole: TensorId,
    filled: usize,
}

impl Concat {
    /// Begins with a step and leaves room for `more` channels.
    pub fn begin(graph: &mut Graph, (op, input): Pending, more: usize) -> Result<Concat> {
        let shape = graph.shape_of(&op, &[input])?;
        let whole = graph.tensor(shape.with_channels(shape.channels() + more));
        let mut concat = Concat { whole, filled: 0 };
        concat.push(graph, (op, input))?;
        Ok(concat)
    }

    /// A step that writes the next channels.
    pub fn push(&mut self, graph: &mut Graph, (op, input): Pending) -> Result<()> {
        let part = graph.push_into(op, &[input], self.whole, self.filled)?;
        self.filled += graph.shape(part).channels();
        Ok(())
    }

    /// What was written so far, as a tensor that steps can read.
    pub fn so_far(&self, graph: &mut Graph) -> Result<TensorId> {
        if self.filled == graph.shape(self.whole).channels() {
            return Ok(self.whole);
        }
        graph.slice(self.whole, 0, self.filled)
    }
}

/// The results of steps side by side.
pub fn concat(graph: &mut Graph, steps: &[Pending]) -> Result<TensorId> {
    let Some((&first, rest)) = steps.split_first() else {
        return Err(Error::weights("nothing to lay side by side"));
    };
    let mut more = 0;
    for (op, input) in rest {
        more += graph.shape_of(op, &[*input])?.channels();
    }
    let mut concat = Concat::begin(graph, first, more)?;
    for &step in rest {
        concat.push(graph, step)?;
    }
    concat.so_far(graph)
}

/// A square convolution that keeps the size of the map; `kernel` is odd.
pub fn same(kernel: usize) -> Window {
    Window::square(kernel, 1, kernel / 2)
}

impl Builder<'_> {
    /// `act(norm(conv(x)) + residual)`.
    ///
    /// With running statistics, `norm(a + b) = a * scale + bias` where
    /// `scale = gamma / sqrt(var + eps)` and `bias = beta + (b - mean) * scale`: the weights stay
    /// those of the checkpoint, and scale and bias are applied to the f32 sum.
    pub fn conv(
        &mut self,
        x: TensorId,
        name: &str,
        window: Window,
        then: Then<'_>,
    ) -> Result<TensorId> {
        let (op, input) = self.conv_step(x, name, window, then)?;
        self.graph.push(op, &[input]).context(|| name.into())
    }

    /// [`Builder::conv`] but for its last step, which is returned: for a concatenation.
    pub fn conv_step(
        &mut self,
        x: TensorId,
        name: &str,
        window: Window,
        then: Then<'_>,
    ) -> Result<Pending> {
        let file_name = format!("{name}.weight");
        let weight = self.weights.conv(&mut self.graph, &file_name, window.kernel)?;
        if self.batch_statistics && then.norm.is_some() {
            let epilogue =
                Epilogue { bias: self.conv_bias(name, then.bias)?, ..Default::default() };
            let conv = Op::Conv2d { weight, window, epilogue };
            let sum = self.graph.push(conv, &[x]).context(|| name.into())?;
            return self.batch_norm_step(sum, name, then);
        }
        let filters = self.graph.param(weight).shape[0];
        let epilogue = self.epilogue(name, filters, then)?;
        Ok((Op::Conv2d { weight, window, epilogue }, x))
    }

    /// `act(norm2(conv(relu(norm1(x)))))` with a 1 x 1 convolution.
    pub fn preact_conv(
        &mut self,
        x: TensorId,
        norm1: &str,
        name: &str,
        then: Then<'_>,
    ) -> Result<TensorId> {
        if self.batch_statistics {
            let y = self.norm(x, norm1, Act::Relu)?;
            return self.conv(y, name, same(1), then);
        }
        let c = self.graph.shape(x).channels();
        let (scale, bias) = self.running_norm(norm1, c, None, false)?;
        let weight = self.weights.conv1x1(&mut self.graph, &format!("{name}.weight"))?;
        let filters = self.graph.param(weight).shape[0];
        let epilogue = self.epilogue(name, filters, then)?;
        let op = Op::PreactConv1x1 { scale, bias, weight, epilogue };
        self.graph.push(op, &[x]).context(|| name.into())
    }

    /// A transposed convolution that doubles the map, for a concatenation.
    pub fn double_step(&mut self, x: TensorId, name: &str) -> Result<Pending> {
        let weight = self.weights.transposed2x2(&mut self.graph, &format!("{name}.weight"))?;
        let epilogue = Epilogue { bias: self.conv_bias(name, true)?, ..Default::default() };
        Ok((Op::ConvTranspose2x2 { weight, epilogue }, x))
    }

    /// `act(norm(x))` on its own.
    pub fn norm(&mut self, x: TensorId, norm: &str, act: Act) -> Result<TensorId> {
        let op = if self.batch_statistics {
            self.batch_norm(norm, act)?
        } else {
            let c = self.graph.shape(x).channels();
            let (scale, bias) = self.running_norm(norm, c, None, false)?;
            Op::Affine { scale: Some(scale), bias: Some(bias), act }
        };
        self.graph.push(op, &[x]).context(|| norm.into())
    }

    /// `relu(bn(conv(x)))` one after the other but for the last step, which is returned. Each
    /// convolution is called `<name>.<part>.conv` and its norm `<name>.<part>.bn`, as in the
    /// Inception families.
    pub fn branch(&mut self, x: TensorId, name: &str, convs: &[(&str, Window)]) -> Result<Pending> {
        let Some(((part, window), first)) = convs.split_last() else {
            return Ok((Op::Copy, x));
        };
        let mut x = x;
        for (part, window) in first {
            x = self.basic(x, &format!("{name}.{part}"), *window)?;
        }
        let (conv, norm) = (format!("{name}.{part}.conv"), format!("{name}.{part}.bn"));
        let then = Then::norm(&norm, Act::Relu);
        self.conv_step(x, &conv, *window, then)
    }

    /// `relu(bn(conv(x)))` of the tensors `<name>.conv` and `<name>.bn`.
    pub fn basic(&mut self, x: TensorId, name: &str, window: Window) -> Result<TensorId> {
        let (conv, norm) = (format!("{name}.conv"), format!("{name}.bn"));
        self.conv(x, &conv, window, Then::norm(&norm, Act::Relu))
    }

    fn epilogue(&mut self, name: &str, filters: usize, then: Then<'_>) -> Result<Epilogue> {
        let mut epilogue =
            Epilogue { residual: then.residual, act: then.act, ..Epilogue::default() };
        match then.norm.filter(|norm| self.has_norm(norm)) {
            Some(norm) => {
                let (scale, bias) = self.running_norm(norm, filters, Some(name), then.bias)?;
                (epilogue.scale, epilogue.bias) = (Some(scale), Some(bias));
            }
            None => {
                epilogue.bias = self.conv_bias(name, then.bias)?;
                if then.norm.is_some() && epilogue.bias.is_none() {
                    let what = format!("{name} has neither a batch norm nor a bias");
                    return Err(Error::weights(what));
                }
            }
        }
        Ok(epilogue)
    }

    /// Batch norm over the run with its activation, and the residual where there is one.
    fn batch_norm_step(&mut self, sum: TensorId, name: &str, then: Then<'_>) -> Result<Pending> {
        let Some(norm) = then.norm.filter(|norm| self.has_norm(norm)) else {
            return Err(Error::weights(format!(
                "bn_mode \"batch\" needs the batch norm of {name}, which was folded away"
            )));
        };
        let Some(residual) = then.residual else {
            return Ok((self.batch_norm(norm, then.act)?, sum));
        };
        let op = self.batch_norm(norm, Act::None)?;
        let normed = self.graph.push(op, &[sum]).context(|| norm.into())?;
        // Statistics come after the convolution, so its epilogue cannot add the residual. That of
        // a convolution with the identity does, exactly.
        let c = self.graph.shape(normed).channels();
        let mut identity = vec![f16::ZERO; c * c];
        identity.iter_mut().step_by(c + 1).for_each(|x| *x = f16::ONE);
        let weight = self.graph.param_f16("identity", &[c, 1, 1, c], identity)?;
        let epilogue = Epilogue { residual: Some(residual), act: then.act, ..Epilogue::default() };
        Ok((Op::Conv2d { weight, window: same(1), epilogue }, normed))
    }

    fn batch_norm(&mut self, norm: &str, act: Act) -> Result<Op> {
        let beta = self.weights.vector(&format!("{norm}.bias"))?;
        let channels = beta.len();
        let gamma = self.gamma(norm, channels)?;
        for unused in ["running_mean", "running_var"] {
            let unused = format!("{norm}.{unused}");
            if self.weights.has(&unused) {
                self.weights.take(&unused)?;
            }
        }
        let gamma = self.graph.param_f32(&format!("{norm}.weight"), &[gamma.len()], gamma)?;
        let beta = self.graph.param_f32(&format!("{norm}.bias"), &[channels], beta)?;
        Ok(Op::BatchNorm { gamma, beta, eps: self.eps, act })
    }

    fn has_norm(&self, norm: &str) -> bool {
        let has = |part: &str| self.weights.has(&format!("{norm}.{part}"));
        ["weight", "bias", "running_mean", "running_var"].into_iter().any(has)
    }

    fn conv_bias(&mut self, name: &str, needed: bool) -> Result<Option<ParamId>> {
        let name = format!("{name}.bias");
        if needed {
            let data = self.weights.vector(&name)?;
            return self.graph.param_f32(&name, &[data.len()], data).map(Some);
        }
        self.weights.optional_vector(&mut self.graph, &name)
    }

    fn gamma(&mut self, norm: &str, channels: usize) -> Result<Vec<f32>> {
        let name = format!("{norm}.weight");
        if self.unscaled && !self.weights.has(&name) {
            return Ok(vec![1.0; channels]);
        }
        self.weights.vector(&name)
    }

    /// Scale and bias of a batch norm by its running statistics, the bias of the convolution
    /// before it included, which must be there if `bias` says so.
    fn running_norm(
        &mut self,
        norm: &str,
        channels: usize,
        conv: Option<&str>,
        bias: bool,
    ) -> Result<(ParamId, ParamId)> {
        let whose = match conv {
            Some(conv) => format!("the {channels} filters of {conv}"),
            None => format!("{channels} channels"),
        };
        let sized = |name: String, data: Vec<f32>| match data.len() {
            n if n == channels => Ok(data),
            n => Err(Error::weights(format!("tensor {name} has {n} numbers for {whose}"))),
        };
        let gamma = self.gamma(norm, channels)?;
        let gamma = sized(format!("{norm}.weight"), gamma)?;
        let mut read = |name: String| -> Result<Vec<f32>> {
            let data = self.weights.vector(&name)?;
            sized(name, data)
        };
        let beta = read(format!("{norm}.bias"))?;
        let mean = read(format!("{norm}.running_mean"))?;
        let var = read(format!("{norm}.running_var"))?;
        let conv_bias = match conv.map(|conv| format!("{conv}.bias")) {
            Some(name) if bias || self.weights.has(&name) => {
                let data = self.weights.vector(&name)?;
                sized(name, data)?
            }
            _ => vec![0.0; channels],
        };
        if let Some(k) = var.iter().position(|&v| v < 0.0) {
            return Err(Error::weights(format!("{norm}.running_var: variance {} < 0", var[k])));
        }
        let scale: Vec<f32> =
            gamma.iter().zip(&var).map(|(&gamma, &var)| gamma / (var + self.eps).sqrt()).collect();
        let bias: Vec<f32> =
            (0..channels).map(|k| beta[k] + (conv_bias[k] - mean[k]) * scale[k]).collect();
        if scale.iter().chain(&bias).any(|x| !x.is_finite()) {
            return Err(Error::weights(format!("{norm}: scale or bias is not finite")));
        }
        let scale = self.graph.param_f32(norm, &[channels], scale)?;
        let bias = self.graph.param_f32(norm, &[channels], bias)?;
        Ok((scale, bias))
    }
}
