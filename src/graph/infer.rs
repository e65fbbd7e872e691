//! What each op accepts and what comes out of it.

use super::{Dense, Epilogue, Graph, Op, ParamData, ParamId, Reduce, Shape, TensorId, Window};
use crate::error::{Error, Result};

impl Graph {
    pub(super) fn infer(&self, op: &Op, inputs: &[TensorId]) -> Result<Shape> {
        let arity = if matches!(op, Op::AttentionPool) { 2 } else { 1 };
        if inputs.len() != arity {
            return Err(self.misfit(op, &format!("takes {arity} inputs, given {}", inputs.len())));
        }
        let input = self.shape(inputs[0]);
        match (*op, input) {
            (Op::Normalize { .. }, Shape::Pixels { h, w }) => Ok(Shape::Map { h, w, c: 3 }),
            (Op::Conv2d { weight, window, epilogue }, Shape::Map { h, w, c }) => {
                let k = self.check_weight(op, weight, &[window.kernel[0], window.kernel[1], c])?;
                let out = self.windowed(op, window, h, w, k)?;
                self.check_epilogue(op, &epilogue, out, k)?;
                Ok(out)
            }
            (Op::Patches { side, .. }, Shape::Pixels { h, w }) => {
                if side == 0 || !h.is_multiple_of(side) || !w.is_multiple_of(side) {
                    let what = format!("{h} x {w} pixels are not whole patches of {side}");
                    return Err(self.misfit(op, &what));
                }
                Ok(Shape::Map { h: h / side, w: w / side, c: 3 * side * side })
            }
            (Op::PreactConv1x1 { scale, bias, weight, epilogue }, Shape::Map { h, w, c }) => {
                self.check_vector(op, scale, c)?;
                self.check_vector(op, bias, c)?;
                let k = self.check_weight(op, weight, &[c])?;
                let out = Shape::Map { h, w, c: k };
                self.check_epilogue(op, &epilogue, out, k)?;
                Ok(out)
            }
            (Op::ConvTranspose2x2 { weight, epilogue }, Shape::Map { h, w, c }) => {
                let k = self.check_weight(op, weight, &[2, 2, c])?;
                let out = Shape::Map { h: 2 * h, w: 2 * w, c: k };
                self.check_epilogue(op, &epilogue, out, k)?;
                Ok(out)
            }
            (Op::Linear { weight, epilogue }, Shape::Tokens { .. } | Shape::Bag { .. }) => {
                let k = self.check_weight(op, weight, &[input.channels()])?;
                let out = match input {
                    Shape::Bag { r, .. } => Shape::Bag { r, c: k },
                    _ => Shape::Tokens { t: input.pixels(), c: k },
                };
                self.check_epilogue(op, &epilogue, out, k)?;
                Ok(out)
            }
            (Op::GatedLinear { weight, bias, .. }, Shape::Tokens { t, c }) => {
                let both = self.check_weight(op, weight, &[c])?;
                if !both.is_multiple_of(2) {
                    return Err(self.misfit(op, "needs as many gates as values"));
                }
                if let Some(bias) = bias {
                    self.check_vector(op, bias, both)?;
                }
                Ok(Shape::Tokens { t, c: both / 2 })
            }
            (Op::Affine { scale, bias, .. }, Shape::Map { c, .. } | Shape::Tokens { c, .. }) => {
                for id in [scale, bias].into_iter().flatten() {
                    self.check_vector(op, id, c)?;
                }
                Ok(input)
            }
            (Op::BatchNorm { gamma, beta, .. }, Shape::Map { c, .. }) => {
                self.check_vector(op, gamma, c)?;
                self.check_vector(op, beta, c)?;
                Ok(input)
            }
            (Op::MaxPool { window, ceil_mode }, Shape::Map { h, w, c }) => {
                self.check_pool_window(op, window)?;
                let floor = self.windowed(op, window, h, w, c)?;
                match (ceil_mode, window.output_ceil(0, h), window.output_ceil(1, w)) {
                    (true, Some(h), Some(w)) => Ok(Shape::Map { h, w, c }),
                    _ => Ok(floor),
                }
            }
            (Op::AvgPool { window, .. }, Shape::Map { h, w, c }) => {
                self.check_pool_window(op, window)?;
                self.windowed(op, window, h, w, c)
            }
            (Op::AdaptiveAvgPool { h, w }, Shape::Map { c, .. }) if h > 0 && w > 0 => {
                Ok(Shape::Map { h, w, c })
            }
            (Op::Upsample { h, w, .. }, Shape::Map { c, .. }) if h > 0 && w > 0 => {
                Ok(Shape::Map { h, w, c })
            }
            (Op::Embed { prefix, position }, Shape::Map { h, w, c }) => {
                let mut t = h * w;
                if let Some(position) = position {
                    self.check_table(op, position, Some(t), c)?;
                }
                if let Some(prefix) = prefix {
                    t += self.check_table(op, prefix, None, c)?;
                }
                Ok(Shape::Tokens { t, c })
            }
            (Op::LayerNorm { gamma, beta, groups, .. }, Shape::Tokens { c, .. }) => {
                let width = self.check_groups(op, c, groups)?;
                self.check_vector(op, gamma, width)?;
                if let Some(beta) = beta {
                    self.check_vector(op, beta, width)?;
                }
                Ok(input)
            }
            (Op::RmsNorm { gamma, groups, .. }, Shape::Tokens { c, .. }) => {
                let width = self.check_groups(op, c, groups)?;
                self.check_vector(op, gamma, width)?;
                Ok(input)
            }
            (Op::Attention { heads, queries: None }, Shape::Tokens { t, c }) => {
                if !c.is_multiple_of(3) {
                    return Err(self.misfit(op, "needs queries, keys and values side by side"));
                }
                self.check_groups(op, c / 3, heads)?;
                Ok(Shape::Tokens { t, c: c / 3 })
            }
            (Op::Attention { heads, queries: Some(queries) }, Shape::Tokens { c, .. }) => {
                if !c.is_multiple_of(2) {
                    return Err(self.misfit(op, "needs keys and values side by side"));
                }
                self.check_groups(op, c / 2, heads)?;
                Ok(Shape::Tokens { t: self.check_weight(op, queries, &[c / 2])?, c: c / 2 })
            }
            (Op::TokenMean { start, count }, Shape::Tokens { t, c }) => {
                if count == 0 || start.checked_add(count).is_none_or(|end| end > t) {
                    return Err(self.misfit(op, &format!("no tokens {start} + {count} of {t}")));
                }
                Ok(Shape::Tokens { t: 1, c })
            }
            (Op::Softmax, Shape::Map { .. } | Shape::Tokens { .. } | Shape::Bag { .. }) => {
                Ok(input)
            }
            (Op::BagReduce { reduce }, Shape::Tokens { t: 1, c }) => {
                if matches!(reduce, Reduce::Percentile(q) if !(0.0..=1.0).contains(&q)) {
                    return Err(self.misfit(op, "takes a fraction between 0 and 1"));
                }
                Ok(Shape::Bag { r: 1, c })
            }
            (Op::Flatten, Shape::Map { .. }) => Ok(Shape::Tokens { t: 1, c: input.len() }),
            (Op::AttentionScore { v, u, w }, Shape::Tokens { t: 1, c }) => {
                let d = self.check_dense(op, v, c)?;
                if let Some(u) = u
                    && self.check_dense(op, u, c)? != d
                {
                    return Err(self.misfit(op, "the gate is not as wide as the attention"));
                }
                Ok(Shape::Tokens { t: 1, c: self.check_dense(op, w, d)? })
            }
            (Op::AttentionPool, Shape::Tokens { t: 1, c: r }) => match self.shape(inputs[1]) {
                Shape::Tokens { t: 1, c } => Ok(Shape::Bag { r, c }),
                other => Err(self.misfit(op, &format!("cannot pool {other:?}"))),
            },
            (Op::RowDot { weight, bias }, Shape::Bag { r, c }) => {
                if self.check_weight(op, weight, &[c])? != r {
                    return Err(self.misfit(op, "needs one weight row per bag row"));
                }
                if let Some(bias) = bias {
                    self.check_vector(op, bias, r)?;
                }
                Ok(Shape::Bag { r: 1, c: r })
            }
            (Op::Copy, _) if !matches!(input, Shape::Pixels { .. }) => Ok(input),
            _ => Err(self.misfit(op, &format!("does not take {input:?}"))),
        }
    }

    fn check_pool_window(&self, op: &Op, window: Window) -> Result<()> {
        let extent = |axis: usize| window.dilation[axis] * (window.kernel[axis].max(1) - 1);
        if (0..2).any(|axis| 2 * window.pad[axis] > extent(axis) + 1) {
            return Err(self.misfit(op, "pads more than half its window"));
        }
        Ok(())
    }

    fn windowed(&self, op: &Op, window: Window, h: usize, w: usize, c: usize) -> Result<Shape> {
        let zero =
            window.kernel.iter().chain(&window.stride).chain(&window.dilation).any(|&n| n == 0);
        match (zero, window.output(0, h), window.output(1, w)) {
            (false, Some(h), Some(w)) => Ok(Shape::Map { h, w, c }),
            _ => Err(self.misfit(op, &format!("window does not fit a {h} x {w} map"))),
        }
    }

    /// The leading dimension of an f16 weight whose other dimensions must be `rest`.
    fn check_weight(&self, op: &Op, id: ParamId, rest: &[usize]) -> Result<usize> {
        let param = self.param(id);
        if param.shape.get(1..) != Some(rest) || !matches!(param.data, ParamData::F16(_)) {
            return Err(self.misfit(
                op,
                &format!("{} has shape {:?}, needed [_, {rest:?}] in f16", param.name, param.shape),
            ));
        }
        Ok(param.shape[0])
    }

    fn check_vector(&self, op: &Op, id: ParamId, n: usize) -> Result<()> {
        let param = self.param(id);
        if param.shape != [n] || !matches!(param.data, ParamData::F32(_)) {
            return Err(self.misfit(
                op,
                &format!("{} has shape {:?}, needed [{n}] in f32", param.name, param.shape),
            ));
        }
        Ok(())
    }

    /// The rows of an f32 table `[rows, C]`.
    fn check_table(&self, op: &Op, id: ParamId, rows: Option<usize>, c: usize) -> Result<usize> {
        let param = self.param(id);
        match param.shape[..] {
            [n, width] if width == c && rows.is_none_or(|rows| rows == n) => {}
            _ => {
                let (name, shape) = (&param.name, &param.shape);
                let rows = rows.map_or("_".into(), |n| n.to_string());
                let what = format!("{name} has shape {shape:?}, needed [{rows}, {c}] in f32");
                return Err(self.misfit(op, &what));
            }
        }
        if !matches!(param.data, ParamData::F32(_)) {
            return Err(self.misfit(op, &format!("{} is not f32", param.name)));
        }
        Ok(param.shape[0])
    }

    /// The channels of one of `groups` groups.
    fn check_groups(&self, op: &Op, c: usize, groups: usize) -> Result<usize> {
        if groups == 0 || !c.is_multiple_of(groups) {
            return Err(self.misfit(op, &format!("cannot cut {c} channels into {groups}")));
        }
        Ok(c / groups)
    }

    fn check_dense(&self, op: &Op, dense: Dense, c: usize) -> Result<usize> {
        let k = self.check_weight(op, dense.weight, &[c])?;
        if let Some(bias) = dense.bias {
            self.check_vector(op, bias, k)?;
        }
        Ok(k)
    }

    fn check_epilogue(&self, op: &Op, epilogue: &Epilogue, out: Shape, k: usize) -> Result<()> {
        for id in [epilogue.scale, epilogue.bias].into_iter().flatten() {
            self.check_vector(op, id, k)?;
        }
        match epilogue.residual.map(|r| self.shape(r)) {
            Some(shape) if shape != out => {
                Err(self.misfit(op, &format!("residual {shape:?} added to {out:?}")))
            }
            _ => Ok(()),
        }
    }

    fn misfit(&self, op: &Op, what: &str) -> Error {
        let text = format!("{op:?}");
        let name = text.split([' ', '{']).next().unwrap_or_default();
        Error::weights(format!("{}: step {} {name}: {what}", self.name, self.steps.len()))
    }
}
