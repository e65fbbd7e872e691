//! Runs one warp. Its lanes may be at different instructions; lanes that are at the same one form
//! a *split* and run together. The split with the lowest instruction goes first, so lanes that took
//! different ways meet again where the ways join; a split that has come to a collective
//! instruction waits there for the lanes that it needs.

use crate::block::{ClusterState, Lanes, Launch, WarpState};
use crate::exec::{Action, Barrier, Instruction, Members, Reduction};
use crate::fault::{FULL, Fault, LANES, Outcome, lanes};
use crate::isa::Source;

/// A set of lanes at one instruction.
#[derive(Clone, Copy, Debug)]
struct Split {
    pc: usize,
    mask: u32,
    park: Park,
}

/// Why a split does not run.
#[derive(Clone, Copy, Debug)]
enum Park {
    /// It can run.
    Ready,
    /// At a collective instruction, until more lanes come.
    Meeting,
    /// At an instruction that waits for memory.
    Waiting,
    /// Past a barrier instruction, until that generation of barrier `id` is complete.
    Barrier { id: usize, generation: u32, reduce: Option<Reduction> },
}

/// How a turn of a warp ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// All lanes have exited.
    Done,
    /// Some instruction was executed.
    Progress,
    /// Every split is parked.
    Stuck,
}

/// A fault and the instruction where it happened.
pub type Located = (usize, Fault);

/// Instructions in a turn before another split, and another warp, gets its turn.
const SLICE: u32 = 20_000;

/// A warp and where its lanes are.
pub struct Warp {
    /// Registers and the like.
    pub state: WarpState,
    splits: Vec<Split>,
    threads: u32,
    live: u32,
    /// A lane of the split that ended the last turn.
    spinning: Option<u32>,
    /// The same, during a turn.
    avoided: Option<u32>,
    /// Warp instructions executed.
    pub executed: u64,
}

/// What an instruction did to the split that ran it.
enum Step {
    Next,
    Jump(usize),
    Parked(Park),
    /// Lanes left the split or its ways part: choose again.
    Reschedule,
}

impl Warp {
    /// A warp whose first `threads` lanes exist.
    pub fn new(state: WarpState, threads: usize) -> Warp {
        let threads = if threads >= LANES { FULL } else { (1 << threads) - 1 };
        let mut warp = Warp {
            state,
            splits: Vec::new(),
            threads,
            live: threads,
            spinning: None,
            avoided: None,
            executed: 0,
        };
        warp.restart();
        warp
    }

    /// All lanes are at the first instruction.
    pub fn restart(&mut self) {
        self.live = self.threads;
        self.splits = vec![Split { pc: 0, mask: self.threads, park: Park::Ready }];
        self.executed = 0;
    }

    /// Lanes that exist.
    pub fn threads(&self) -> u32 {
        self.threads.count_ones()
    }

    /// The instructions where lanes are, for reports.
    pub fn positions(&self) -> impl Iterator<Item = (usize, u32)> {
        self.splits.iter().map(|s| (s.pc, s.mask))
    }

    /// Runs until every split is parked or the turn is over.
    pub fn turn(
        &mut self,
        cluster: &mut ClusterState,
        launch: &Launch<'_>,
    ) -> Result<Turn, Located> {
        let before = self.executed;
        let mut left = SLICE;
        // What the parked splits wait for may have come: each is tried once a turn.
        for split in &mut self.splits {
            if matches!(split.park, Park::Meeting | Park::Waiting) {
                split.park = Park::Ready;
            }
        }
        self.avoided = self.spinning.take();
        while left > 0 {
            self.release(cluster);
            self.merge();
            let Some(index) = self.choose() else { break };
            let lane = self.splits[index].mask.trailing_zeros();
            self.run_split(index, cluster, launch, &mut left)?;
            if left == 0 {
                self.spinning = Some(lane);
            }
        }
        // A warp that ends is progress too: others may have waited for what it did last.
        Ok(match (self.splits.is_empty(), self.executed > before) {
            (_, true) => Turn::Progress,
            (true, false) => Turn::Done,
            (false, false) => Turn::Stuck,
        })
    }

    /// The ready split with the lowest instruction; one that used up the last turn, and so may be
    /// spinning on another, only if there is no other.
    fn choose(&self) -> Option<usize> {
        (0..self.splits.len())
            .filter(|i| matches!(self.splits[*i].park, Park::Ready))
            .min_by_key(|i| (self.is_avoided(&self.splits[*i]), self.splits[*i].pc))
    }

    fn is_avoided(&self, split: &Split) -> bool {
        self.avoided.is_some_and(|lane| split.mask >> lane & 1 == 1)
    }

    fn release(&mut self, cluster: &mut ClusterState) {
        let agent = self.state.rank * cluster.warps_per_block + self.state.index;
        for split in &mut self.splits {
            let Park::Barrier { id, generation, reduce } = split.park else { continue };
            let barrier = &cluster.blocks[self.state.rank].barriers[id];
            if !barrier.passed(&mut cluster.clocks, agent, generation) {
                continue;
            }
            split.park = Park::Ready;
            if let Some(reduce) = reduce {
                let value = barrier.reduced(&reduce);
                self.state.registers.write(reduce.dest, split.mask, [value; LANES]);
            }
        }
    }

    /// Joins splits at the same instruction; a meeting that grew is looked at again.
    fn merge(&mut self) {
        let mut i = 0;
        while i < self.splits.len() {
            let mut j = i + 1;
            while j < self.splits.len() {
                let (a, b) = (self.splits[i], self.splits[j]);
                let parked = |s: Split| matches!(s.park, Park::Barrier { .. });
                if a.pc == b.pc && !parked(a) && !parked(b) {
                    self.splits[i].mask |= b.mask;
                    self.splits[i].park = Park::Ready;
                    self.splits.swap_remove(j);
                } else {
                    j += 1;
                }
            }
            i += 1;
        }
    }

    fn run_split(
        &mut self,
        index: usize,
        cluster: &mut ClusterState,
        launch: &Launch<'_>,
        left: &mut u32,
    ) -> Result<(), Located> {
        let code = &launch.kernel.code;
        let alone = self.splits.len() == 1;
        let Split { mut pc, mask, .. } = self.splits[index];
        self.splits[index].park = Park::Ready;
        while *left > 0 {
            *left -= 1;
            let Some(instruction) = code.get(pc) else {
                return Err((pc, Fault::warp("the code has no such instruction")));
            };
            let active = match instruction.guard {
                None => mask,
                Some(guard) => {
                    let pred = self.state.registers.pred(guard.reg);
                    mask & if guard.negate { !pred } else { pred }
                }
            };
            // Register arithmetic is the common case and needs no more than this.
            if let Action::Compute(run) = &instruction.action {
                self.executed += 1;
                if active != 0 {
                    run(&mut self.state.registers, active).map_err(|fault| (pc, fault))?;
                }
                pc += 1;
            } else {
                self.splits[index].pc = pc;
                let step = self
                    .step(index, instruction, active, cluster, launch)
                    .map_err(|fault| (pc, fault))?;
                if !matches!(step, Step::Parked(Park::Meeting | Park::Waiting)) {
                    self.executed += 1;
                }
                match step {
                    Step::Next => pc += 1,
                    Step::Jump(target) => pc = target,
                    Step::Parked(park) => {
                        self.splits[index].park = park;
                        if matches!(park, Park::Barrier { .. }) {
                            self.splits[index].pc = pc + 1;
                        }
                        return Ok(());
                    }
                    Step::Reschedule => return Ok(()),
                }
            }
            if !alone {
                self.splits[index].pc = pc;
                if self.must_yield(index) {
                    return Ok(());
                }
            }
        }
        self.splits[index].pc = pc;
        Ok(())
    }

    /// Whether another split is at or before the instruction of this one.
    fn must_yield(&self, index: usize) -> bool {
        let pc = self.splits[index].pc;
        self.splits.iter().enumerate().any(|(i, other)| {
            i != index
                && match other.park {
                    Park::Ready if self.is_avoided(other) => other.pc == pc,
                    Park::Ready => other.pc <= pc,
                    Park::Meeting | Park::Waiting => other.pc == pc,
                    Park::Barrier { .. } => false,
                }
        })
    }

    fn step(
        &mut self,
        index: usize,
        instruction: &Instruction,
        active: u32,
        cluster: &mut ClusterState,
        launch: &Launch<'_>,
    ) -> Outcome<Step> {
        let mask = self.splits[index].mask;
        match &instruction.action {
            Action::Nop | Action::Compute(_) => Ok(Step::Next),
            Action::Access(effect) => {
                if active != 0 {
                    effect(&mut Lanes { warp: &mut self.state, cluster, launch }, active)?;
                }
                Ok(Step::Next)
            }
            Action::Collective { members, effect } => {
                let needed = self.needed(*members, active)?;
                if needed & !mask != 0 {
                    return self.meet(index, needed);
                }
                if active != 0 && needed & !active != 0 && *members != Members::Live {
                    return Err(Fault::warp(format!(
                        "collective instruction for lanes {needed:#010x}, executed by {active:#010x}"
                    )));
                }
                let mut lanes = Lanes { warp: &mut self.state, cluster, launch };
                if active != 0 {
                    effect(&mut lanes, active)?;
                }
                Ok(Step::Next)
            }
            Action::Wait(ready) => {
                let mut lanes = Lanes { warp: &mut self.state, cluster, launch };
                let goes_on = active == 0 || ready(&mut lanes, active)?;
                Ok(if goes_on { Step::Next } else { Step::Parked(Park::Waiting) })
            }
            Action::Branch(target) => Ok(self.branch(index, active, *target)),
            Action::BranchIndexed(source, targets) => self.branch_indexed(index, *source, targets),
            Action::Exit => self.exit(index, active, cluster),
            Action::Barrier(barrier) => self.barrier(index, barrier, active, cluster, launch),
            Action::Trap if active == 0 => Ok(Step::Next),
            Action::Trap => Err(Fault::lane(active.trailing_zeros() as usize, "trap")),
        }
    }

    /// The lanes that a collective instruction needs.
    fn needed(&self, members: Members, active: u32) -> Outcome<u32> {
        let mask = match members {
            Members::Live => return Ok(self.live),
            Members::All => FULL,
            Members::Mask(source) => match lanes(active).next() {
                Some(lane) => self.state.registers.lane(source, lane) as u32,
                None => return Ok(0),
            },
        };
        if mask & !self.live != 0 && active != 0 {
            return Err(Fault::warp(format!(
                "collective instruction for lanes {mask:#010x}, of which {:#010x} have exited",
                mask & !self.live
            )));
        }
        Ok(mask)
    }

    /// Waits for more lanes, if there are any that can still come.
    fn meet(&self, index: usize, needed: u32) -> Outcome<Step> {
        let here = self.splits[index].mask;
        let others = self.splits.iter().enumerate().filter(|(i, _)| *i != index);
        let elsewhere = others.fold(0, |mask, (_, s)| mask | s.mask);
        if needed & !here & !elsewhere != 0 {
            return Err(Fault::warp("collective instruction for lanes that do not exist"));
        }
        Ok(Step::Parked(Park::Meeting))
    }

    fn branch(&mut self, index: usize, taken: u32, target: usize) -> Step {
        let split = &mut self.splits[index];
        match (taken, split.mask & !taken) {
            (0, _) => Step::Next,
            (_, 0) => Step::Jump(target),
            (_, rest) => {
                split.mask = rest;
                split.pc += 1;
                self.splits.push(Split { pc: target, mask: taken, park: Park::Ready });
                Step::Reschedule
            }
        }
    }

    fn branch_indexed(&mut self, index: usize, source: Source, targets: &[usize]) -> Outcome<Step> {
        let mask = self.splits[index].mask;
        let mut ways: Vec<(usize, u32)> = Vec::new();
        for lane in lanes(mask) {
            let which = self.state.registers.lane(source, lane) as u32 as usize;
            let target = *targets.get(which).ok_or_else(|| {
                Fault::lane(lane, format!("branch index {which} of {}", targets.len()))
            })?;
            match ways.iter_mut().find(|(pc, _)| *pc == target) {
                Some((_, lanes)) => *lanes |= 1 << lane,
                None => ways.push((target, 1 << lane)),
            }
        }
        self.splits.swap_remove(index);
        self.splits.extend(ways.into_iter().map(|(pc, mask)| Split {
            pc,
            mask,
            park: Park::Ready,
        }));
        Ok(Step::Reschedule)
    }

    fn exit(&mut self, index: usize, active: u32, cluster: &mut ClusterState) -> Outcome<Step> {
        if active & self.state.stores.lanes() != 0 {
            let message = "a bulk store may still read shared memory when its thread exits";
            return Err(Fault::lane(
                (active & self.state.stores.lanes()).trailing_zeros() as usize,
                message,
            ));
        }
        if self.state.products.in_flight() {
            return Err(Fault::warp("a wgmma is in flight when its warp exits"));
        }
        self.live &= !active;
        if self.live == 0 {
            let agent = self.state.rank * cluster.warps_per_block + self.state.index;
            cluster.clocks.release(agent, &mut cluster.blocks[self.state.rank].left);
        }
        cluster.live_threads -= active.count_ones();
        cluster.settle_barrier();
        let split = &mut self.splits[index];
        split.mask &= !active;
        split.pc += 1;
        if split.mask == 0 {
            self.splits.swap_remove(index);
        }
        Ok(Step::Reschedule)
    }

    /// All live lanes of the warp arrive together. Threads that have exited never arrive: CUDA
    /// calls a barrier that they should have reached undefined, and here it never opens.
    fn barrier(
        &mut self,
        index: usize,
        barrier: &Barrier,
        active: u32,
        cluster: &mut ClusterState,
        launch: &Launch<'_>,
    ) -> Outcome<Step> {
        let mask = self.splits[index].mask;
        if mask != self.live {
            return self.meet(index, self.live);
        }
        if active == 0 {
            return Ok(Step::Next);
        }
        if active != mask {
            return Err(Fault::warp("a barrier under a predicate that differs between lanes"));
        }
        let registers = &mut self.state.registers;
        let lane = mask.trailing_zeros() as usize;
        let id = registers.lane(barrier.id, lane) as u32 as usize;
        let all = launch.block.iter().product();
        let expected = barrier.threads.map_or(all, |s| registers.lane(s, lane) as u32);
        if id >= 16
            || !expected.is_multiple_of(LANES as u32) && barrier.threads.is_some()
            || expected == 0
        {
            return Err(Fault::warp(format!("barrier {id} of {expected} threads")));
        }
        let votes = barrier.reduce.map_or(0, |Reduction { pred, negate, .. }| {
            let pred = registers.pred(pred);
            (mask & if negate { !pred } else { pred }).count_ones()
        });
        let agent = self.state.rank * cluster.warps_per_block + self.state.index;
        let named = &mut cluster.blocks[self.state.rank].barriers[id];
        let threads = if barrier.threads.is_some() { LANES as u32 } else { mask.count_ones() };
        let generation = named
            .arrive(&mut cluster.clocks, agent, threads, expected, votes)
            .map_err(|e| Fault::warp(format!("barrier {id}: {e}")))?;
        let reduce = barrier.reduce;
        Ok(if barrier.wait {
            Step::Parked(Park::Barrier { id, generation, reduce })
        } else {
            Step::Next
        })
    }
}
