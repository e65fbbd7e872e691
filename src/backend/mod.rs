//! The seam between a network and the machine that runs it: one virtual call per batch.

pub mod check;

pub use crate::graph::Input;

use crate::error::Result;
use crate::graph::Graph;
use std::sync::Arc;

/// A machine that can run graphs.
pub trait Backend: Send + Sync {
    /// What it is, as written into results: `cpu (avx512, 2 threads)`.
    fn name(&self) -> String;

    /// Readies a graph: packs its weights and plans its arena for up to `max_rows` rows.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] or [`crate::Kind::Limit`] when it does not fit the machine.
    fn prepare(&self, graph: Arc<Graph>, max_rows: usize) -> Result<Box<dyn Session>>;
}

/// A graph readied on a backend.
pub trait Session: Send {
    /// Rows that fit the arena now.
    fn max_rows(&self) -> usize;

    /// Grows the arena to at least `rows`; weights stay as they are.
    ///
    /// # Errors
    /// As [`Backend::prepare`].
    fn reserve(&mut self, rows: usize) -> Result<()>;

    /// Runs `rows` rows and fills `outputs`, one slice per graph output in f32, `[rows, ..shape]`
    /// or `[..shape]` for a bag. The bits of a row depend neither on `rows` nor on its place,
    /// except through ops that are defined over the whole run (attention pooling, batch norm).
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when a slice has the wrong length, [`crate::Kind::Device`] when the
    /// machine fails.
    fn run(&mut self, rows: usize, inputs: &[Input<'_>], outputs: &mut [&mut [f32]]) -> Result<()>;
}
