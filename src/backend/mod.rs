//! The seam between a network and the machine that runs it: one virtual call per batch, or two when
//! a machine works on several batches at once.

pub mod cases;
pub mod check;
pub mod measure;
mod oracle;
mod precision;
mod several;
pub mod suite;
mod tiles;

pub use crate::graph::{Input, Kept};
pub use oracle::Oracle;
pub use precision::Precision;
pub use several::Several;
pub use tiles::{Axis, Exponents, Preparation, TileStep};

use crate::error::{Error, Kind, Result};
use crate::graph::Graph;
use std::ops::DerefMut;
use std::sync::Arc;

/// A machine that can run graphs.
pub trait Backend: Send + Sync {
    /// What it is, as written into results: `cpu (avx512, 2 threads)`.
    fn name(&self) -> String;

    /// The numbers it computes with, as written into results.
    fn precision(&self) -> Precision {
        Precision::F16
    }

    /// Whether it computes convolutions by transforms whose rounding shows even where sums of small
    /// integers are exact.
    fn transforms_convolutions(&self) -> bool {
        false
    }

    /// How far a sum of products may lie from that of exact products, relative to a sum in which much
    /// cancels, where it is more than the order of f32 sums.
    fn product_error(&self) -> f64 {
        0.0
    }

    /// Readies a graph: packs its weights and plans its arena for up to `max_rows` rows. With 0 rows
    /// only the weights are readied, and [`Session::reserve`] makes room.
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
    /// As [`Backend::prepare`]; after [`crate::Kind::Limit`] a smaller number may still fit.
    fn reserve(&mut self, rows: usize) -> Result<()>;

    /// Bytes of host memory that [`Session::reserve`] takes for a row.
    fn row_bytes(&self) -> usize {
        0
    }

    /// Gives the arena back until the next [`Session::reserve`]; the weights stay readied.
    fn release(&mut self) {}

    /// Runs `rows` rows and fills `outputs`, one slice per graph output in f32, `[rows, ..shape]`
    /// or `[..shape]` for a bag. The bits of a row depend neither on `rows` nor on its place,
    /// except through ops that are defined over the whole run (attention pooling, batch norm).
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when a slice has the wrong length, [`crate::Kind::Device`] when the
    /// machine fails.
    fn run(&mut self, rows: usize, inputs: &[Input<'_>], outputs: &mut [&mut [f32]]) -> Result<()>;

    /// As [`Session::run`], and adds to `seconds`, one number per step of the graph, what each step
    /// took. `false` when this session cannot tell, and nothing has run.
    ///
    /// # Errors
    /// As [`Session::run`].
    fn run_timed(
        &mut self,
        _rows: usize,
        _inputs: &[Input<'_>],
        _outputs: &mut [&mut [f32]],
        _seconds: &mut [f64],
    ) -> Result<bool> {
        Ok(false)
    }

    /// How a step of the graph is computed, where that is not by its definition: `F(4x4, 3x3)`.
    fn algorithm(&self, _step: usize) -> Option<&'static str> {
        None
    }

    /// The session as one that overlaps batches, for graphs whose only input is pixels on machines
    /// that copy and compute at the same time.
    fn overlapped(&mut self) -> Option<&mut dyn Overlapped> {
        None
    }
}

/// Host memory for the pixels of a batch.
pub type HostMemory = Box<dyn DerefMut<Target = [u8]> + Send>;

/// What is done in one go by a session that overlaps batches.
pub struct Batch {
    /// B.
    pub rows: usize,
    /// Tiles `[rows, H, W, 3]` at its front; the memory comes back with the results.
    pub pixels: HostMemory,
    /// What the machine makes the network's input by, with the bytes that the host would make; none
    /// for tiles that are that input.
    pub how: Option<Arc<Preparation>>,
    /// Where the results stay, made by [`Overlapped::keep`] of the same session, and the first of the
    /// rows that are theirs; none if the host gets them.
    pub into: Option<(Arc<dyn Kept>, usize)>,
}

impl Batch {
    /// The network's own input, its results for the host.
    pub fn new(rows: usize, pixels: HostMemory) -> Batch {
        Batch { rows, pixels, how: None, into: None }
    }
}

/// A session that works on several batches at once: one is copied in while another is computed and
/// the results of a third are copied out. The bits are those of [`Session::run`].
pub trait Overlapped {
    /// Batches that may be under way: submitted and not yet collected.
    fn lanes(&mut self) -> usize;

    /// Host memory that this machine copies from without help of the CPU. Any other host memory may
    /// be submitted too.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when there is none left.
    fn lend(&mut self, bytes: usize) -> Result<HostMemory>;

    /// Starts a batch, and has its host memory until it is collected.
    ///
    /// # Errors
    /// As [`Session::run`]; [`crate::Kind::Usage`] when every lane is taken, or for tiles or a place
    /// that this machine did not make room for.
    fn submit(&mut self, batch: Batch) -> Result<()>;

    /// Makes room for batches of tiles of up to `pixels` pixels each that the machine makes into the
    /// network's input by itself, in place of the room made before. `false` when it does not do that
    /// or has no memory for it: then it takes nothing but the network's own input.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when the machine fails; [`crate::Kind::Usage`] with batches under way.
    fn accept_tiles(&mut self, _pixels: usize) -> Result<bool> {
        Ok(false)
    }

    /// Makes room for `rows` rows of results, `[rows, C]` of the only output, that stay on the
    /// machine for other sessions of its backend to read. None when it does not do that.
    ///
    /// # Errors
    /// [`crate::Kind::Limit`] when there is no room to spare: then they go over the host.
    fn keep(&mut self, _rows: usize) -> Result<Option<Arc<dyn Kept>>> {
        Ok(None)
    }

    /// Waits for the oldest batch, fills `outputs` as [`Session::run`] does, none if its results stay
    /// where they are, and gives the memory of the pixels back.
    ///
    /// # Errors
    /// As [`Session::run`]; [`crate::Kind::Usage`] when no batch is under way.
    fn collect(&mut self, outputs: &mut [&mut [f32]]) -> Result<HostMemory>;
}

/// Readies a graph for `rows` rows, or for half as many, or half of that, until it fits the machine.
/// The text says so when it came to that. Only for graphs whose rows do not depend on each other.
///
/// # Errors
/// As [`Backend::prepare`], when not even one row fits.
pub fn prepare_fitting(
    backend: &dyn Backend,
    graph: Arc<Graph>,
    rows: usize,
) -> Result<(Box<dyn Session>, Option<String>)> {
    let name = graph.name.clone();
    let mut session = backend.prepare(graph, 0)?;
    let mut fitting = rows.max(1);
    let mut first: Option<Error> = None;
    loop {
        match session.reserve(fitting) {
            Ok(()) => break,
            Err(error) if error.kind() == Kind::Limit && fitting > 1 => {
                first.get_or_insert(error);
                fitting /= 2;
            }
            Err(error) => return Err(error.context(name)),
        }
    }
    let note = first.map(|why| format!("{name}: batches of {fitting} instead of {rows}: {why}"));
    Ok((session, note))
}
