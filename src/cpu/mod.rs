//! The CPU backend: every graph on any CPU, convolutions at the speed of its vector unit.
//!
//! **What is computed.** An output element of a convolution or linear layer is one chain of fused
//! multiply-adds in f32, starting from 0, over the reduction index in ascending order of
//! (r, s, c), padding taking part as zeros:
//!
//! ```text
//! acc = 0;  for k in 0..R*S*C { acc = fma(x[k], w[k], acc) }
//! y = act(fma(acc, scale, bias) + residual)          absent: scale 1, bias 0, no residual
//! ```
//!
//! In bf16 the links of a pair of neighbours take place in the order and with the rounding of the
//! instruction `vdpbf16ps`, which `pairs` also computes without it.
//!
//! Attention is two such products with a softmax between, in every precision all of it in f32:
//!
//! ```text
//! l[j] = q . k[j];  p[j] = exp((l[j] - max l) / sqrt(d));  y = (p . v) * (1 / sum p)
//! ```
//!
//! Blocking, tiles, threads and instruction sets decide when a link of a chain is computed, never
//! its order, so they cannot change a bit of the result. Sums along the channels of a position
//! (norms, softmax) run in f64 in 16 interleaved parts, whatever the registers; sums over a run
//! (batch norm, attention pooling, means over a bag) go in row order for each channel. Exponentials
//! are polynomials of `math`, within one unit in the last place; GELU is within six.
//!
//! From a step to the silicon: `session` turns each step into a layer (`conv`, `strips`, `parts`,
//! `attention`, `tokens`, `pool`, `upsample`, `norm`, `bag`, `reduce`, `copy`), a layer lets a
//! `team` of threads fill rectangles of its output (`memory`), `matmul` feeds the tiles of
//! `kernels`, of which there is one set for each [`Isa`] and precision, and `epilogue` turns their
//! sums into stored numbers.

mod attention;
mod bag;
pub mod ceiling;
mod conv;
mod copy;
mod epilogue;
mod kernels;
mod layer;
mod math;
mod matmul;
mod memory;
mod norm;
mod pairs;
mod parts;
mod pool;
mod reduce;
mod session;
mod strips;
mod team;
mod tokens;
mod upsample;
mod vector;

pub use kernels::Isa;

use crate::backend::{Backend, Precision, Session};
use crate::error::Result;
use crate::graph::Graph;
use crate::graph::plan::Plan;
use kernels::Kernels;
use std::sync::Arc;
use team::Team;

/// The processor this program runs on.
pub struct CpuBackend {
    kernels: &'static Kernels,
    team: Arc<Team>,
}

impl CpuBackend {
    /// A backend of `threads` threads. The instruction set is `isa`, else what the environment
    /// variable `HISTOKERN_CPU` names (`avx512`, `avx2`, `neon`, `portable`), else the widest one
    /// of this processor.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] for no threads, an unknown name or an instruction set this processor
    /// lacks; [`crate::Kind::Device`] when the threads cannot be started.
    pub fn new(threads: usize, isa: Option<Isa>) -> Result<CpuBackend> {
        let isa = match isa {
            Some(isa) => isa,
            None => Isa::from_env()?.unwrap_or_else(Isa::detect),
        };
        let kernels = Kernels::of(isa, Precision::default())?;
        Ok(CpuBackend { kernels, team: Arc::new(Team::new(threads)?) })
    }

    /// The same threads and instruction set with other numbers.
    ///
    /// # Errors
    /// As [`CpuBackend::new`].
    pub fn with_precision(self, precision: Precision) -> Result<CpuBackend> {
        let kernels = Kernels::of(self.isa(), precision)?;
        Ok(CpuBackend { kernels, ..self })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa
    }

    #[cfg(test)]
    fn prepare_planned(&self, graph: Arc<Graph>, plan: Plan, rows: usize) -> Box<dyn Session> {
        Box::new(
            session::CpuSession::new(graph, plan, self.kernels, self.team.clone(), rows).unwrap(),
        )
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> String {
        let threads = self.team.threads();
        let s = if threads == 1 { "" } else { "s" };
        format!("cpu ({}, {threads} thread{s})", self.kernels.name())
    }

    fn precision(&self) -> Precision {
        self.kernels.precision
    }

    fn prepare(&self, graph: Arc<Graph>, max_rows: usize) -> Result<Box<dyn Session>> {
        let plan = Plan::new(&graph)?;
        let team = self.team.clone();
        Ok(Box::new(session::CpuSession::new(graph, plan, self.kernels, team, max_rows)?))
    }
}
