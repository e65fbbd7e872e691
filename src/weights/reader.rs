//! From named tensors to graph parameters, with an account of which tensors were used.

use super::{Tensor, Tensors};
use crate::error::{Error, Result};
use crate::graph::{Dense, Graph, ParamId};
use half::f16;
use std::collections::BTreeSet;

/// Most names listed in one message.
const SHOWN: usize = 6;

/// Hands tensors to a builder and knows, at the end, whether any was left over.
pub struct Reader<'a> {
    tensors: &'a Tensors,
    used: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    /// A reader of `tensors`, none used yet.
    pub fn new(tensors: &'a Tensors) -> Self {
        Reader { tensors, used: BTreeSet::new() }
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains(name)
    }

    /// The first of `prefixes` under which a `weight` exists, for layers whose index depends on
    /// whether dropout was built in.
    ///
    /// # Errors
    /// [`crate::Kind::Weights`] naming the first when there is none.
    pub fn first_of<'n>(&self, prefixes: &[&'n str]) -> Result<&'n str> {
        let found = prefixes.iter().find(|prefix| self.has(&format!("{prefix}.weight")));
        match (found, prefixes) {
            (Some(prefix), _) => Ok(prefix),
            (None, [first, ..]) => {
                self.tensors.require(&format!("{first}.weight"))?;
                Ok(first)
            }
            (None, []) => Err(Error::weights("no name to look for")),
        }
    }

    /// A tensor, marked as used.
    ///
    /// # Errors
    /// [`crate::Kind::Weights`] when it is missing.
    pub fn take(&mut self, name: &str) -> Result<Tensor<'a>> {
        let tensor = self.tensors.require(name)?;
        self.used.insert(name.into());
        Ok(tensor)
    }

    /// A vector of f32: biases, batch-norm parameters and statistics.
    ///
    /// # Errors
    /// [`crate::Kind::Weights`] when it is missing or not a vector of finite numbers.
    pub fn vector(&mut self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.take(name)?;
        if tensor.shape.len() != 1 {
            return Err(self.misfit(&tensor, "a vector"));
        }
        tensor.to_f32().map_err(|e| self.locate(e))
    }

    /// [`Reader::vector`] as a graph parameter, if it is there.
    ///
    /// # Errors
    /// As [`Reader::vector`], but for its absence.
    pub fn optional_vector(&mut self, graph: &mut Graph, name: &str) -> Result<Option<ParamId>> {
        if !self.has(name) {
            return Ok(None);
        }
        let data = self.vector(name)?;
        graph.param_f32(name, &[data.len()], data).map(Some)
    }

    /// A convolution's weight: `[K, C, R, S]` in the file, `[K, R, S, C]` FP16 in the graph.
    ///
    /// # Errors
    /// [`crate::Kind::Weights`] when it is missing, has another kernel size, or FP16 cannot hold it.
    pub fn conv(&mut self, graph: &mut Graph, name: &str, kernel: [usize; 2]) -> Result<ParamId> {
        let tensor = self.take(name)?;
        let &[k, c, r, s] = tensor.shape else {
            return Err(self.misfit(&tensor, "[K, C, R, S]"));
        };
        if [r, s] != kernel {
            return Err(self.misfit(&tensor, &format!("a {} x {} kernel", kernel[0], kernel[1])));
        }
        let file = tensor.to_f16().map_err(|e| self.locate(e))?.data;
        let mut data = vec![f16::ZERO; file.len()];
        if !file.is_empty() {
            let filter = c * r * s;
            for (from, to) in file.chunks_exact(filter).zip(data.chunks_exact_mut(filter)) {
                for (i, &x) in from.iter().enumerate() {
                    let (channel, tap) = (i / (r * s), i % (r * s));
                    to[tap * c + channel] = x;
                }
            }
        }
        graph.param_f16(name, &[k, r, s, c], data)
    }

    /// A 1 x 1 convolution's weight: `[K, C, 1, 1]` in the file, `[K, C]` FP16 in the graph.
    ///
    /// # Errors
    /// As [`Reader::conv`].
    pub fn conv1x1(&mut self, graph: &mut Graph, name: &str) -> Result<ParamId> {
        let tensor = self.take(name)?;
        let &[k, c, 1, 1] = tensor.shape else {
            return Err(self.misfit(&tensor, "[K, C, 1, 1]"));
        };
        let data = tensor.to_f16().map_err(|e| self.locate(e))?.data;
        graph.param_f16(name, &[k, c], data)
    }

    /// The weight of a transposed convolution of kernel and stride 2: `[C, K, 2, 2]` in the file,
    /// `[K, 2, 2, C]` FP16 in the graph.
    ///
    /// # Errors
    /// As [`Reader::conv`].
    pub fn transposed2x2(&mut self, graph: &mut Graph, name: &str) -> Result<ParamId> {
        let tensor = self.take(name)?;
        let &[c, k, 2, 2] = tensor.shape else {
            return Err(self.misfit(&tensor, "[C, K, 2, 2]"));
        };
        let file = tensor.to_f16().map_err(|e| self.locate(e))?.data;
        let mut data = vec![f16::ZERO; file.len()];
        for (i, &x) in file.iter().enumerate() {
            data[i % (4 * k) * c + i / (4 * k)] = x;
        }
        graph.param_f16(name, &[k, 2, 2, c], data)
    }

    /// The filters of a convolution, K of `[K, C, R, S]`, without reading it.
    ///
    /// # Errors
    /// [`crate::Kind::Weights`] when it is missing or has no dimension.
    pub fn filters(&self, name: &str) -> Result<usize> {
        let tensor = self.tensors.require(name)?;
        tensor.shape.first().copied().ok_or_else(|| self.misfit(&tensor, "[K, C, R, S]"))
    }

    /// A linear layer's weight, `[K, C]` FP16.
    ///
    /// # Errors
    /// [`crate::Kind::Weights`] when it is missing, not a matrix, or FP16 cannot hold it.
    pub fn matrix(&mut self, graph: &mut Graph, name: &str) -> Result<ParamId> {
        let tensor = self.take(name)?;
        if tensor.shape.len() != 2 {
            return Err(self.misfit(&tensor, "[K, C]"));
        }
        let data = tensor.to_f16().map_err(|e| self.locate(e))?.data;
        graph.param_f16(name, tensor.shape, data)
    }

    /// `prefix.weight` and, if there is one, `prefix.bias`.
    ///
    /// # Errors
    /// As [`Reader::matrix`] and [`Reader::vector`].
    pub fn dense(&mut self, graph: &mut Graph, prefix: &str) -> Result<Dense> {
        let weight = self.matrix(graph, &format!("{prefix}.weight"))?;
        let bias = self.optional_vector(graph, &format!("{prefix}.bias"))?;
        Ok(Dense { weight, bias })
    }

    /// Ends the reading: every tensor must have been used or be one that `droppable` allows.
    ///
    /// # Errors
    /// [`crate::Kind::Weights`] naming what is left over.
    pub fn finish(&self, droppable: impl Fn(&str) -> bool) -> Result<()> {
        let left: Vec<&str> =
            self.tensors.names().filter(|n| !self.used.contains(*n) && !droppable(n)).collect();
        if left.is_empty() {
            return Ok(());
        }
        let more = if left.len() > SHOWN { ", ..." } else { "" };
        Err(Error::weights(format!(
            "{}: {} tensors have no place in the model: {}{more}",
            self.tensors.path().display(),
            left.len(),
            left[..left.len().min(SHOWN)].join(", ")
        )))
    }

    /// An error about a tensor that was read but does not suit.
    pub fn misfit(&self, tensor: &Tensor<'_>, needed: &str) -> Error {
        self.locate(Error::weights(format!(
            "tensor {} has shape {:?}, needed {needed}",
            tensor.name, tensor.shape
        )))
    }

    fn locate(&self, error: Error) -> Error {
        error.context(self.tensors.path().display().to_string())
    }
}
