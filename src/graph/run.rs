//! What a run of a graph is given, and whether it fits.

use super::{Graph, Shape};
use crate::error::{Error, Result};
use std::any::Any;
use std::borrow::Cow;
use std::fmt::Debug;

/// Rows of numbers `[N, C]` in f32 that a machine made and holds until somebody asks for them.
pub trait Kept: Any + Debug + Send + Sync {
    /// N there is room for.
    fn rows(&self) -> usize;

    /// C.
    fn width(&self) -> usize;

    /// Copies rows to the host, `[rows, C]` in the order asked for. What they hold is defined once
    /// the batches that make them were collected.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] for a row that is not there or numbers of another length,
    /// [`crate::Kind::Device`] when the machine fails.
    fn read(&self, rows: &[usize], numbers: &mut [f32]) -> Result<()>;
}

/// One input of a run.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// `[B, H, W, 3]` u8 RGB for a [`Shape::Pixels`] input.
    Pixels(&'a [u8]),
    /// Row-major f32 for any other input, `[rows, ..shape]`, or `[..shape]` for a bag. Rounded to
    /// FP16 before use, as every activation is.
    Values(&'a [f32]),
    /// As [`Input::Values`], rows that a machine holds, in this order.
    Kept(&'a dyn Kept, &'a [usize]),
}

impl<'a> Input<'a> {
    /// The f32 numbers, on the host; none of pixels.
    ///
    /// # Errors
    /// As [`Kept::read`].
    pub fn values(&self) -> Result<Option<Cow<'a, [f32]>>> {
        Ok(match *self {
            Input::Pixels(_) => None,
            Input::Values(values) => Some(Cow::Borrowed(values)),
            Input::Kept(from, rows) => {
                let mut values = vec![0.0; rows.len() * from.width()];
                from.read(rows, &mut values)?;
                Some(Cow::Owned(values))
            }
        })
    }
}

/// Checks the arguments of a run against its graph, for the reference and every backend alike.
///
/// # Errors
/// [`crate::Kind::Usage`] when a count, kind or length is wrong, or when a run without rows has
/// bag tensors, which would then be undefined.
pub fn check_run(
    graph: &Graph,
    rows: usize,
    inputs: &[Input<'_>],
    outputs: &[&mut [f32]],
) -> Result<()> {
    let fail = |what: String| Err(Error::usage(format!("{}: {what}", graph.name)));
    if rows == 0 && graph.tensors.iter().any(|t| t.shape.is_bag()) {
        return fail("a bag needs at least one row".into());
    }
    if inputs.len() != graph.inputs.len() || outputs.len() != graph.outputs.len() {
        return fail(format!(
            "takes {} inputs and {} outputs, given {} and {}",
            graph.inputs.len(),
            graph.outputs.len(),
            inputs.len(),
            outputs.len()
        ));
    }
    let elements = |shape: Shape| shape.len().checked_mul(if shape.is_bag() { 1 } else { rows });
    for (i, (input, &id)) in inputs.iter().zip(&graph.inputs).enumerate() {
        let shape = graph.shape(id);
        let (given, pixels) = match input {
            Input::Pixels(v) => (v.len(), true),
            Input::Values(v) => (v.len(), false),
            Input::Kept(from, rows) => {
                if let Some(row) = rows.iter().find(|&&row| row >= from.rows()) {
                    return fail(format!("input {i}: row {row} of {}", from.rows()));
                }
                (rows.len() * from.width(), false)
            }
        };
        if pixels != matches!(shape, Shape::Pixels { .. }) {
            return fail(format!("input {i} is {shape:?}, given the other kind of numbers"));
        }
        if elements(shape) != Some(given) {
            return fail(format!("input {i} has {given} numbers for {rows} rows of {shape:?}"));
        }
    }
    for (i, (output, &id)) in outputs.iter().zip(&graph.outputs).enumerate() {
        let shape = graph.shape(id);
        if elements(shape) != Some(output.len()) {
            let given = output.len();
            return fail(format!("output {i} has room for {given}, {rows} rows of {shape:?}"));
        }
    }
    Ok(())
}
