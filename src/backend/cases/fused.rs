//! Op cases of steps that a backend may run as one: the result must not show which.

use super::{BIAS_RELU, Builder, Case, FULL, Numbers, PLAIN, Parts};
use crate::error::Result;
use crate::graph::{Act, Op, Shape, Window};

/// A convolution and the max pool that alone reads it.
fn conv_and_pool(
    n: Numbers,
    [h, w, c, k]: [usize; 4],
    window: Window,
    ceil_mode: bool,
    parts: Parts,
) -> Result<Case> {
    let name = format!("{window:?} of {h}x{w}x{c} to {k}, {parts:?}, pooled, ceil {ceil_mode}");
    let mut b = Builder::new(&name, n);
    let x = b.graph.input(Shape::Map { h, w, c });
    let size = |axis, n| window.output(axis, n).expect("the window fits");
    let epilogue = b.epilogue(parts, Shape::Map { h: size(0, h), w: size(1, w), c: k }, k)?;
    let [r, s] = window.kernel;
    let weight = b.weight(&[k, r, s, c])?;
    let y = b.graph.push(Op::Conv2d { weight, window, epilogue }, &[x])?;
    let pool = Op::MaxPool { window: Window::square(2, 2, 0), ceil_mode };
    let z = b.graph.push(pool, &[y])?;
    Ok(b.done(z, 3))
}

/// Every case of this file.
pub fn fused(n: Numbers) -> Result<Vec<Case>> {
    let square = Window::square;
    let gelu = Parts { act: Act::Gelu, ..BIAS_RELU };
    Ok(vec![
        conv_and_pool(n, [8, 10, 64, 40], square(3, 1, 1), false, BIAS_RELU)?,
        conv_and_pool(n, [9, 7, 20, 33], square(3, 1, 1), false, BIAS_RELU)?,
        conv_and_pool(n, [12, 12, 3, 64], square(3, 1, 1), true, BIAS_RELU)?,
        conv_and_pool(n, [23, 21, 3, 64], square(7, 2, 3), false, BIAS_RELU)?,
        conv_and_pool(n, [2, 3, 8, 1], square(1, 1, 0), false, PLAIN)?,
        // These stay apart: an activation with a long formula, a residual, and a last window that
        // hangs over.
        conv_and_pool(n, [6, 5, 12, 16], square(3, 1, 1), false, gelu)?,
        conv_and_pool(n, [6, 4, 16, 24], square(3, 1, 1), false, FULL)?,
        conv_and_pool(n, [7, 5, 16, 24], square(3, 1, 1), true, BIAS_RELU)?,
    ])
}
