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
//! In FP16 and bf16 a convolution of 3 x 3 taps at stride 1 with enough channels is computed by Winograd's
//! algorithm instead, a fixed sequence of f32 operations as well, whose sums are a few units in the
//! last place of f32 apart from those above: see `winograd`. The shape alone decides. The environment
//! variable `HISTOKERN_CONV=direct` turns that off.
//!
//! On tile registers (`amx`) a sum takes 32 products at a time, in FP16 as three products of bf16 terms: there
//! alone the last bits of f32 sums are others. Elsewhere in bf16 the links of a pair of neighbours take
//! place in the order and with the rounding of the instruction `vdpbf16ps`, which `pairs` also computes
//! without it.
//!
//! Attention is two such products with a softmax between, which is f32 in every precision; in bf16
//! `p` is rounded where it is multiplied, not where it is summed:
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
//! From a step to the silicon: `session` turns each step into a layer (`conv`, `winograd`, `strips`, `parts`,
//! `attention`, `tokens`, `pool`, `upsample`, `norm`, `bag`, `reduce`, `copy`), a layer lets a
//! `team` of threads fill rectangles of its output (`memory`), `matmul` feeds the tiles of
//! `kernels`, of which there is one set for each [`Isa`] and precision, and `epilogue` turns their
//! sums into stored numbers.

mod aligned;
mod amx;
mod attention;
mod bag;
pub mod ceiling;
mod conv;
mod copy;
mod cut;
mod epilogue;
mod isa;
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
mod stored;
mod strips;
mod team;
mod tokens;
mod transforms;
mod upsample;
mod vector;
mod winograd;

pub use isa::Isa;

use crate::backend::{Backend, Precision, Session};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::graph::plan::Plan;
use kernels::Kernels;
use std::sync::Arc;
use team::Team;

/// What computes the layers.
#[derive(Clone, Copy)]
struct Algorithms {
    kernels: &'static Kernels,
    /// Whether every convolution is computed by its definition.
    direct: bool,
}

impl Algorithms {
    /// Whether the environment variable `HISTOKERN_CONV` asks for convolutions by definition.
    fn direct_from_env() -> Result<bool> {
        match std::env::var_os("HISTOKERN_CONV") {
            None => Ok(false),
            Some(name) if name == "direct" => Ok(true),
            Some(name) if name == "fast" => Ok(false),
            Some(name) => Err(Error::usage(format!(
                "HISTOKERN_CONV: no algorithm {:?}; one of direct, fast",
                name.to_string_lossy()
            ))),
        }
    }
}

/// The processor this program runs on.
pub struct CpuBackend {
    kernels: &'static Kernels,
    team: Arc<Team>,
    direct: bool,
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
        let direct = Algorithms::direct_from_env()?;
        Ok(CpuBackend { kernels, team: Arc::new(Team::new(threads)?), direct })
    }

    /// The same threads and instruction set with other numbers.
    ///
    /// # Errors
    /// As [`CpuBackend::new`].
    pub fn with_precision(self, precision: Precision) -> Result<CpuBackend> {
        let kernels = Kernels::of(self.isa(), precision)?;
        Ok(CpuBackend { kernels, ..self })
    }

    /// The same with every convolution computed by its definition, none by Winograd's algorithm.
    pub fn direct(self) -> CpuBackend {
        CpuBackend { direct: true, ..self }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa
    }

    fn algorithms(&self) -> Algorithms {
        Algorithms { kernels: self.kernels, direct: self.direct }
    }

    #[cfg(test)]
    fn prepare_planned(&self, graph: Arc<Graph>, plan: Plan, rows: usize) -> Box<dyn Session> {
        Box::new(
            session::CpuSession::new(graph, plan, self.algorithms(), self.team.clone(), rows)
                .unwrap(),
        )
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> String {
        let threads = self.team.threads();
        let s = if threads == 1 { "" } else { "s" };
        let how = if self.direct { " direct" } else { "" };
        format!("cpu ({}{how}, {threads} thread{s})", self.kernels.name())
    }

    fn precision(&self) -> Precision {
        self.kernels.precision
    }

    fn transforms_convolutions(&self) -> bool {
        !self.direct && winograd::is_used_by(self.kernels)
    }

    fn product_error(&self) -> f64 {
        self.kernels.product_error()
    }

    fn prepare(&self, graph: Arc<Graph>, max_rows: usize) -> Result<Box<dyn Session>> {
        let plan = Plan::new(&graph)?;
        Ok(Box::new(session::CpuSession::new(
            graph,
            plan,
            self.algorithms(),
            self.team.clone(),
            max_rows,
        )?))
    }
}
