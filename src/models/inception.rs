//! Inception V3 (Szegedy et al. 2016, arXiv:1512.00567) and GoogLeNet (Szegedy et al. 2015,
//! arXiv:1409.4842) without classifiers, by torchvision's keys.
//!
//! Keras's Inception V3 is the same network with the padding of its average pools left out of the
//! mean and without scales in its batch norms; its package has torchvision's keys, which the
//! import gives it.

use super::layers::{Builder, concat, same};
use super::{global_average, whole};
use crate::error::{Context, Result};
use crate::graph::{Op, TensorId, Window};

/// What PyTorch's and Keras's versions add to a variance.
const EPS: f32 = 1e-3;

/// A convolution over one row or one column that keeps the size of the map.
fn along(r: usize, s: usize) -> Window {
    Window { kernel: [r, s], stride: [1; 2], pad: [r / 2, s / 2], dilation: [1; 2] }
}

/// A 3 x 3 window that halves the map, without padding.
fn halving() -> Window {
    Window::square(3, 2, 0)
}

fn max_pool(window: Window, ceil_mode: bool) -> Op {
    Op::MaxPool { window, ceil_mode }
}

/// Inception V3: 2048 features. `keras` leaves padding out of means and scales out of norms.
pub fn v3(
    builder: &mut Builder<'_>,
    input: TensorId,
    keras: bool,
    truncate: Option<&str>,
) -> Result<TensorId> {
    whole(truncate, "an Inception V3")?;
    (builder.eps, builder.unscaled) = (EPS, keras);
    let mut net =
        Inception { builder, average: Op::AvgPool { window: same(3), count_include_pad: !keras } };
    let mut x = input;
    for (name, window, pooled) in [
        ("Conv2d_1a_3x3", halving(), false),
        ("Conv2d_2a_3x3", Window::square(3, 1, 0), false),
        ("Conv2d_2b_3x3", same(3), true),
        ("Conv2d_3b_1x1", same(1), false),
        ("Conv2d_4a_3x3", Window::square(3, 1, 0), true),
    ] {
        x = net.builder.basic(x, name, window)?;
        if pooled {
            x = net.builder.graph.push(max_pool(halving(), false), &[x])?;
        }
    }
    for name in ["Mixed_5b", "Mixed_5c", "Mixed_5d"] {
        x = net.a(x, name)?;
    }
    x = net.b(x, "Mixed_6a")?;
    for name in ["Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"] {
        x = net.c(x, name)?;
    }
    x = net.d(x, "Mixed_7a")?;
    for name in ["Mixed_7b", "Mixed_7c"] {
        x = net.e(x, name)?;
    }
    global_average(&mut builder.graph, x)
}

/// The five kinds of modules of Inception V3.
struct Inception<'b, 'a> {
    builder: &'b mut Builder<'a>,
    average: Op,
}

impl Inception<'_, '_> {
    /// Branches of convolutions from the tensors they start at, and a pooling at the end.
    fn join(
        &mut self,
        name: &str,
        branches: &[(TensorId, &[(&str, Window)])],
        pool: Option<(Op, TensorId)>,
    ) -> Result<TensorId> {
        let mut steps = Vec::with_capacity(branches.len() + 1);
        for (start, convs) in branches {
            steps.push(self.builder.branch(*start, name, convs)?);
        }
        steps.extend(pool);
        concat(&mut self.builder.graph, &steps).context(|| name.into())
    }

    fn averaged(&mut self, x: TensorId) -> Result<TensorId> {
        self.builder.graph.push(self.average, &[x])
    }

    fn a(&mut self, x: TensorId, name: &str) -> Result<TensorId> {
        let pooled = self.averaged(x)?;
        let branches: [(TensorId, &[(&str, Window)]); 4] = [
            (x, &[("branch1x1", same(1))]),
            (x, &[("branch5x5_1", same(1)), ("branch5x5_2", same(5))]),
            (
                x,
                &[
                    ("branch3x3dbl_1", same(1)),
                    ("branch3x3dbl_2", same(3)),
                    ("branch3x3dbl_3", same(3)),
                ],
            ),
            (pooled, &[("branch_pool", same(1))]),
        ];
        self.join(name, &branches, None)
    }

    fn b(&mut self, x: TensorId, name: &str) -> Result<TensorId> {
        let branches: [(TensorId, &[(&str, Window)]); 2] = [
            (x, &[("branch3x3", halving())]),
            (
                x,
                &[
                    ("branch3x3dbl_1", same(1)),
                    ("branch3x3dbl_2", same(3)),
                    ("branch3x3dbl_3", halving()),
                ],
            ),
        ];
        self.join(name, &branches, Some((max_pool(halving(), false), x)))
    }

    fn c(&mut self, x: TensorId, name: &str) -> Result<TensorId> {
        let pooled = self.averaged(x)?;
        let (row, column) = (along(1, 7), along(7, 1));
        let branches: [(TensorId, &[(&str, Window)]); 4] = [
            (x, &[("branch1x1", same(1))]),
            (x, &[("branch7x7_1", same(1)), ("branch7x7_2", row), ("branch7x7_3", column)]),
            (
                x,
                &[
                    ("branch7x7dbl_1", same(1)),
                    ("branch7x7dbl_2", column),
                    ("branch7x7dbl_3", row),
                    ("branch7x7dbl_4", column),
                    ("branch7x7dbl_5", row),
                ],
            ),
            (pooled, &[("branch_pool", same(1))]),
        ];
        self.join(name, &branches, None)
    }

    fn d(&mut self, x: TensorId, name: &str) -> Result<TensorId> {
        let branches: [(TensorId, &[(&str, Window)]); 2] = [
            (x, &[("branch3x3_1", same(1)), ("branch3x3_2", halving())]),
            (
                x,
                &[
                    ("branch7x7x3_1", same(1)),
                    ("branch7x7x3_2", along(1, 7)),
                    ("branch7x7x3_3", along(7, 1)),
                    ("branch7x7x3_4", halving()),
                ],
            ),
        ];
        self.join(name, &branches, Some((max_pool(halving(), false), x)))
    }

    fn e(&mut self, x: TensorId, name: &str) -> Result<TensorId> {
        let pooled = self.averaged(x)?;
        let single = self.builder.basic(x, &format!("{name}.branch3x3_1"), same(1))?;
        let double = self.builder.basic(x, &format!("{name}.branch3x3dbl_1"), same(1))?;
        let double = self.builder.basic(double, &format!("{name}.branch3x3dbl_2"), same(3))?;
        let (row, column) = (along(1, 3), along(3, 1));
        let branches: [(TensorId, &[(&str, Window)]); 6] = [
            (x, &[("branch1x1", same(1))]),
            (single, &[("branch3x3_2a", row)]),
            (single, &[("branch3x3_2b", column)]),
            (double, &[("branch3x3dbl_3a", row)]),
            (double, &[("branch3x3dbl_3b", column)]),
            (pooled, &[("branch_pool", same(1))]),
        ];
        self.join(name, &branches, None)
    }
}

/// GoogLeNet: 1024 features. The branch called 5 x 5 in the paper is 3 x 3, as in torchvision.
pub fn googlenet(
    builder: &mut Builder<'_>,
    input: TensorId,
    truncate: Option<&str>,
) -> Result<TensorId> {
    whole(truncate, "a GoogLeNet")?;
    builder.eps = EPS;
    let shrink = max_pool(halving(), true);
    let mut x = builder.basic(input, "conv1", Window::square(7, 2, 3))?;
    x = builder.graph.push(shrink, &[x])?;
    x = builder.basic(x, "conv2", same(1))?;
    x = builder.basic(x, "conv3", same(3))?;
    x = builder.graph.push(shrink, &[x])?;
    for (name, shrunk) in [
        ("inception3a", None),
        ("inception3b", Some(shrink)),
        ("inception4a", None),
        ("inception4b", None),
        ("inception4c", None),
        ("inception4d", None),
        ("inception4e", Some(max_pool(Window::square(2, 2, 0), true))),
        ("inception5a", None),
        ("inception5b", None),
    ] {
        let pooled = builder.graph.push(max_pool(same(3), true), &[x])?;
        let branches: [(TensorId, &[(&str, Window)]); 4] = [
            (x, &[("branch1", same(1))]),
            (x, &[("branch2.0", same(1)), ("branch2.1", same(3))]),
            (x, &[("branch3.0", same(1)), ("branch3.1", same(3))]),
            (pooled, &[("branch4.1", same(1))]),
        ];
        let mut steps = Vec::with_capacity(branches.len());
        for (start, convs) in branches {
            steps.push(builder.branch(start, name, convs)?);
        }
        x = concat(&mut builder.graph, &steps).context(|| name.into())?;
        if let Some(pool) = shrunk {
            x = builder.graph.push(pool, &[x])?;
        }
    }
    global_average(&mut builder.graph, x)
}
