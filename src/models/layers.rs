//! Convolution with batch norm, the one layer all convolutional families are made of.

use crate::error::{Error, Result};
use crate::graph::{Act, Epilogue, Graph, Op, TensorId, Window};
use crate::weights::Reader;

/// PyTorch's default, which no torchvision VGG or ResNet changes.
const EPS: f32 = 1e-5;

/// A graph under construction and the weights it is built from.
pub struct Builder<'a> {
    pub graph: Graph,
    pub weights: Reader<'a>,
    /// Batch norm by the statistics of the run, not by the stored ones.
    pub batch_statistics: bool,
}

/// What follows a convolution.
#[derive(Clone, Copy)]
pub struct Then<'n> {
    /// Prefix of the batch norm's tensors. With no such tensors it was folded into the convolution.
    pub norm: Option<&'n str>,
    /// Added before the activation.
    pub residual: Option<TensorId>,
    pub act: Act,
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
        let weight =
            self.weights.conv(&mut self.graph, &format!("{name}.weight"), window.kernel)?;
        let has_norm = then.norm.is_some_and(|norm| self.weights.has(&format!("{norm}.weight")));
        let mut epilogue =
            Epilogue { residual: then.residual, act: then.act, ..Default::default() };
        match then.norm.filter(|_| has_norm) {
            Some(norm) if self.batch_statistics => {
                return self.conv_batch_norm(
                    x,
                    name,
                    norm,
                    Op::Conv2d { weight, window, epilogue },
                );
            }
            Some(norm) => {
                let filters = self.graph.param(weight).shape[0];
                let (scale, bias) = self.running_norm(name, norm, filters)?;
                epilogue.scale = Some(self.graph.param_f32(norm, &[filters], scale)?);
                epilogue.bias = Some(self.graph.param_f32(norm, &[filters], bias)?);
            }
            None => {
                if then.norm.is_some() && self.batch_statistics {
                    return Err(Error::weights(format!(
                        "bn_mode \"batch\" needs the batch norm of {name}, which was folded away"
                    )));
                }
                epilogue.bias = self.conv_bias(name)?;
                if then.norm.is_some() && epilogue.bias.is_none() {
                    return Err(Error::weights(format!(
                        "{name} has neither a batch norm nor a bias"
                    )));
                }
            }
        }
        self.graph.push(Op::Conv2d { weight, window, epilogue }, &[x])
    }

    /// The convolution with its bias alone, then batch norm over the run.
    fn conv_batch_norm(
        &mut self,
        x: TensorId,
        name: &str,
        norm: &str,
        conv: Op,
    ) -> Result<TensorId> {
        let Op::Conv2d { weight, window, epilogue: Epilogue { residual: None, act, .. } } = conv
        else {
            return Err(Error::unsupported(
                "bn_mode \"batch\" in a network with residual connections",
            ));
        };
        let epilogue = Epilogue { bias: self.conv_bias(name)?, ..Default::default() };
        let sum = self.graph.push(Op::Conv2d { weight, window, epilogue }, &[x])?;
        let [gamma, beta] = ["weight", "bias"].map(|part| -> Result<_> {
            let part = format!("{norm}.{part}");
            let data = self.weights.vector(&part)?;
            self.graph.param_f32(&part, &[data.len()], data)
        });
        for unused in ["running_mean", "running_var"] {
            let unused = format!("{norm}.{unused}");
            if self.weights.has(&unused) {
                self.weights.take(&unused)?;
            }
        }
        self.graph.push(Op::BatchNorm { gamma: gamma?, beta: beta?, eps: EPS, act }, &[sum])
    }

    fn conv_bias(&mut self, name: &str) -> Result<Option<crate::graph::ParamId>> {
        self.weights.optional_vector(&mut self.graph, &format!("{name}.bias"))
    }

    /// Scale and bias of a batch norm by its running statistics, the convolution's bias included.
    fn running_norm(
        &mut self,
        conv: &str,
        norm: &str,
        filters: usize,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let mut read = |name: String| -> Result<Vec<f32>> {
            let data = self.weights.vector(&name)?;
            if data.len() != filters {
                return Err(Error::weights(format!(
                    "tensor {name} has {} numbers for {filters} filters",
                    data.len()
                )));
            }
            Ok(data)
        };
        let gamma = read(format!("{norm}.weight"))?;
        let beta = read(format!("{norm}.bias"))?;
        let mean = read(format!("{norm}.running_mean"))?;
        let var = read(format!("{norm}.running_var"))?;
        let conv_bias = format!("{conv}.bias");
        let conv_bias = if self.weights.has(&conv_bias) {
            self.weights.vector(&conv_bias)?
        } else {
            vec![0.0; filters]
        };
        if conv_bias.len() != filters {
            return Err(Error::weights(format!("{conv}.bias is not {filters} numbers long")));
        }
        if let Some(k) = var.iter().position(|&v| v < 0.0) {
            return Err(Error::weights(format!("{norm}.running_var: variance {} < 0", var[k])));
        }
        let scale: Vec<f32> =
            gamma.iter().zip(&var).map(|(&gamma, &var)| gamma / (var + EPS).sqrt()).collect();
        let bias: Vec<f32> =
            (0..filters).map(|k| beta[k] + (conv_bias[k] - mean[k]) * scale[k]).collect();
        if scale.iter().chain(&bias).any(|x| !x.is_finite()) {
            return Err(Error::weights(format!("{norm}: scale or bias is not finite")));
        }
        Ok((scale, bias))
    }
}
