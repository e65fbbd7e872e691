//! The reference as a machine: what every other backend is held to, in plain f32 loops.

use super::{Backend, Input, Precision, Session};
use crate::error::Result;
use crate::graph::reference::{self, Rounding};
use crate::graph::{Graph, check_run};
use std::sync::Arc;

/// Runs graphs by [`reference::run`]: slow, and right by definition.
pub struct Oracle(pub Rounding);

impl Backend for Oracle {
    fn name(&self) -> String {
        match self.0 {
            Rounding::F16 => "reference (FP16 activations)".into(),
            Rounding::Bf16 => "reference (bf16 weights and activations)".into(),
            Rounding::None => "reference (f32)".into(),
        }
    }

    fn precision(&self) -> Precision {
        match self.0 {
            Rounding::F16 => Precision::F16,
            Rounding::Bf16 => Precision::Bf16,
            Rounding::None => Precision::F32,
        }
    }

    fn prepare(&self, graph: Arc<Graph>, max_rows: usize) -> Result<Box<dyn Session>> {
        Ok(Box::new(OracleSession { graph, rounding: self.0, max_rows }))
    }
}

struct OracleSession {
    graph: Arc<Graph>,
    rounding: Rounding,
    max_rows: usize,
}

impl Session for OracleSession {
    fn max_rows(&self) -> usize {
        self.max_rows
    }

    fn reserve(&mut self, rows: usize) -> Result<()> {
        self.max_rows = self.max_rows.max(rows);
        Ok(())
    }

    fn run(&mut self, rows: usize, inputs: &[Input<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
        check_run(&self.graph, rows, inputs, outputs)?;
        if rows == 0 {
            return Ok(());
        }
        let results = reference::run(&self.graph, rows, inputs, self.rounding)?;
        for (output, result) in outputs.iter_mut().zip(&results) {
            output.copy_from_slice(result);
        }
        Ok(())
    }
}
