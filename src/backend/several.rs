//! Several machines as one: every batch goes to one of them, and results come back in order.

use super::{Backend, Batch, HostMemory, Input, Overlapped, Session};
use crate::error::{Error, Result};
use crate::graph::{Graph, Shape};
use std::collections::VecDeque;
use std::sync::Arc;

/// Several machines of one kind. A graph over pixels is readied on all of them and its batches are
/// shared out; any other graph runs on the first. Results of several machines meet on the host.
pub struct Several {
    machines: Vec<Box<dyn Backend>>,
}

impl Several {
    /// These machines as one.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] for no machine.
    pub fn new(machines: Vec<Box<dyn Backend>>) -> Result<Several> {
        match machines.is_empty() {
            true => Err(Error::usage("no device")),
            false => Ok(Several { machines }),
        }
    }
}

impl Backend for Several {
    fn name(&self) -> String {
        let names: Vec<String> = self.machines.iter().map(|m| m.name()).collect();
        // The kind stays in front: `cuda 2 x (NVIDIA H100, ..)`.
        match names[0].split_once(' ') {
            Some((kind, which)) if names[1..].iter().all(|name| *name == names[0]) => {
                format!("{kind} {} x {which}", names.len())
            }
            _ => names.join(" + "),
        }
    }

    fn prepare(&self, graph: Arc<Graph>, max_rows: usize) -> Result<Box<dyn Session>> {
        let pixels = |&id| matches!(graph.shape(id), Shape::Pixels { .. });
        let shared = graph.inputs.len() == 1 && graph.inputs.iter().all(pixels);
        let machines = if shared { &self.machines[..] } else { &self.machines[..1] };
        let mut sessions = Vec::with_capacity(machines.len());
        for (i, machine) in machines.iter().enumerate() {
            let session = machine.prepare(graph.clone(), max_rows);
            let session = session.map_err(|e| e.context(format!("device {} of those used", i + 1)));
            sessions.push(Member { session: session?, under_way: 0 });
        }
        Ok(match sessions.len() {
            1 => sessions.remove(0).session,
            _ => Box::new(Spread { members: sessions, order: VecDeque::new() }),
        })
    }
}

struct Member {
    session: Box<dyn Session>,
    under_way: usize,
}

impl Member {
    fn overlapped(&mut self) -> Result<&mut dyn Overlapped> {
        self.session.overlapped().ok_or_else(|| Error::usage("a device without overlapped batches"))
    }
}

/// One graph on several machines.
struct Spread {
    members: Vec<Member>,
    /// Which member has each batch under way, oldest first.
    order: VecDeque<usize>,
}

impl Session for Spread {
    fn max_rows(&self) -> usize {
        self.members.iter().map(|m| m.session.max_rows()).min().unwrap_or(0)
    }

    fn reserve(&mut self, rows: usize) -> Result<()> {
        self.members.iter_mut().try_for_each(|m| m.session.reserve(rows))
    }

    fn release(&mut self) {
        self.members.iter_mut().for_each(|m| m.session.release());
    }

    fn run(&mut self, rows: usize, inputs: &[Input<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
        self.members[0].session.run(rows, inputs, outputs)
    }

    fn run_timed(
        &mut self,
        rows: usize,
        inputs: &[Input<'_>],
        outputs: &mut [&mut [f32]],
        seconds: &mut [f64],
    ) -> Result<bool> {
        self.members[0].session.run_timed(rows, inputs, outputs, seconds)
    }

    fn overlapped(&mut self) -> Option<&mut dyn Overlapped> {
        let all = self.members.iter_mut().all(|m| m.session.overlapped().is_some());
        all.then_some(self)
    }
}

impl Overlapped for Spread {
    fn lanes(&mut self) -> usize {
        self.members.iter_mut().filter_map(|m| m.session.overlapped()).map(|o| o.lanes()).sum()
    }

    fn lend(&mut self, bytes: usize) -> Result<HostMemory> {
        self.members[0].overlapped()?.lend(bytes)
    }

    /// To the member with the fewest under way.
    fn submit(&mut self, batch: Batch) -> Result<()> {
        let free = (0..self.members.len()).min_by_key(|&i| self.members[i].under_way).unwrap_or(0);
        let member = &mut self.members[free];
        member.overlapped()?.submit(batch)?;
        member.under_way += 1;
        self.order.push_back(free);
        Ok(())
    }

    fn accept_tiles(&mut self, pixels: usize) -> Result<bool> {
        let mut all = true;
        for member in &mut self.members {
            all &= member.overlapped()?.accept_tiles(pixels)?;
        }
        Ok(all)
    }

    fn collect(&mut self, outputs: &mut [&mut [f32]]) -> Result<HostMemory> {
        let Some(oldest) = self.order.pop_front() else {
            return Err(Error::usage("no batch is under way"));
        };
        let member = &mut self.members[oldest];
        member.under_way -= 1;
        member.overlapped()?.collect(outputs)
    }
}
