//! mbarrier objects (PTX ISA, "Parallel Synchronization and Communication Instructions").

use super::Action;
use super::memory::HINTS;
use crate::block::{Lanes, at_lane};
use crate::decode::{Decoder, register};
use crate::fault::{Outcome, lanes};
use crate::isa::{Operand, Source};
use crate::shared::{Snapshot, Via};

/// An mbarrier object.
#[derive(Debug, Default)]
pub struct Mbarrier {
    /// Arrivals of each phase.
    count: u32,
    /// Arrivals missing in this phase.
    pending: u32,
    /// Bytes of this phase that transactions still have to bring.
    bytes: i64,
    /// Completed phases.
    phase: u64,
    gathering: Snapshot,
    released: Snapshot,
    /// Who initialised it, and when.
    maker: (usize, u32),
}

impl Mbarrier {
    fn settle(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.count;
            let done = std::mem::take(&mut self.gathering);
            join(&mut self.released, &done);
        }
    }

    /// Arrivals in a phase that is not complete, and how many it needs.
    pub fn partial(&self) -> Option<(u32, u32)> {
        let arrived = self.count.saturating_sub(self.pending);
        (self.pending != self.count || self.bytes != 0).then_some((arrived, self.count))
    }

    /// Whether the phase of that parity is complete.
    fn passed(&self, parity: u64) -> bool {
        self.phase & 1 != parity & 1
    }
}

/// Decodes an mbarrier instruction.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    d.ignore(&["shared", "shared::cta", "shared::cluster", "b64"]);
    if d.take("init") {
        let (address, count) = (d.address(0)?, d.source(1)?);
        return Ok(Action::Access(Box::new(move |ctx, mask| {
            lanes(mask).try_for_each(|lane| {
                let count = ctx.value(count, lane) as u32;
                init(ctx, lane, ctx.shared_address(address, lane), count)
            })
        })));
    }
    if d.take("inval") {
        let address = d.address(0)?;
        return Ok(Action::Access(Box::new(move |ctx, mask| {
            lanes(mask).try_for_each(|lane| {
                let at = ctx.shared_address(address, lane);
                with(ctx, lane, at, |_| Ok(()))?;
                let (rank, offset) = at_lane(lane, ctx.locate(at))?;
                ctx.cluster.blocks[rank].mbarriers.remove(&offset);
                Ok(())
            })
        })));
    }
    if d.take("try_wait") {
        return wait(d, true);
    }
    if d.take("test_wait") {
        return wait(d, false);
    }
    if d.take("arrive") {
        return arrival(d);
    }
    if d.take("expect_tx") || d.take("complete_tx") {
        let sign = if d.mnemonic().contains("expect") { 1 } else { -1 };
        d.ignore(&HINTS);
        let (address, bytes) = (d.address(0)?, d.source(1)?);
        return Ok(Action::Access(Box::new(move |ctx, mask| {
            lanes(mask).try_for_each(|lane| {
                let bytes = sign * i64::from(ctx.value(bytes, lane) as u32);
                let at = ctx.shared_address(address, lane);
                with(ctx, lane, at, |barrier| {
                    barrier.bytes += bytes;
                    barrier.settle();
                    Ok(())
                })
            })
        })));
    }
    Err("form is not supported".into())
}

fn init(ctx: &mut Lanes<'_>, lane: usize, address: u32, count: u32) -> Outcome {
    let agent = ctx.agent();
    let maker = (agent, ctx.cluster.clocks.now(agent));
    let (rank, offset) = at_lane(lane, ctx.locate(address))?;
    let block = &mut ctx.cluster.blocks[rank];
    let fits = offset as usize + 8 <= block.shared.size() && offset.is_multiple_of(8);
    let valid = fits && (1..1 << 20).contains(&count);
    let problem = format!("mbarrier of {count} arrivals at shared address {offset}");
    at_lane(lane, if valid { Ok(()) } else { Err(problem) })?;
    let barrier = Mbarrier { count, pending: count, maker, ..Mbarrier::default() };
    block.mbarriers.insert(offset, barrier);
    Ok(())
}

/// Runs `f` on the object at `address`, which must have been initialised, visibly to this warp.
fn with<T>(
    ctx: &mut Lanes<'_>,
    lane: usize,
    address: u32,
    f: impl FnOnce(&mut Mbarrier) -> Result<T, String>,
) -> Outcome<T> {
    let agent = ctx.agent();
    let (rank, offset) = at_lane(lane, ctx.locate(address))?;
    let clocks = &ctx.cluster.clocks;
    let barrier = ctx.cluster.blocks[rank].mbarriers.get_mut(&offset);
    let result = match barrier {
        None => Err(format!("no mbarrier at shared address {offset}")),
        Some(b) if !clocks.is_ordered(agent, b.maker.0, b.maker.1) => Err(format!(
            "race: mbarrier at shared address {offset}, initialised by warp {} with no barrier in \
             between",
            b.maker.0
        )),
        Some(b) => f(b).map_err(|e| format!("mbarrier at shared address {offset}: {e}")),
    };
    at_lane(lane, result)
}

/// `count` arrivals and `bytes` more to expect; returns the phase before.
pub fn arrive(
    ctx: &mut Lanes<'_>,
    lane: usize,
    address: u32,
    count: u32,
    bytes: i64,
) -> Outcome<u64> {
    let agent = ctx.agent();
    let mut done = Snapshot::new();
    ctx.cluster.clocks.release(agent, &mut done);
    let (rank, _) = at_lane(lane, ctx.locate(address))?;
    ctx.reach(rank, Via::Thread);
    with(ctx, lane, address, |barrier| {
        if count > barrier.pending {
            return Err(format!("{count} arrivals, but only {} are missing", barrier.pending));
        }
        let phase = barrier.phase;
        join(&mut barrier.gathering, &done);
        barrier.bytes += bytes;
        barrier.pending -= count;
        barrier.settle();
        Ok(phase)
    })
}

/// Raises the arrivals that the current phase needs.
pub fn expect_arrivals(ctx: &mut Lanes<'_>, lane: usize, address: u32, count: u32) -> Outcome {
    with(ctx, lane, address, |barrier| {
        barrier.pending += count;
        Ok(())
    })
}

/// The engine of the warp has brought `bytes`.
pub fn complete_bytes(ctx: &mut Lanes<'_>, lane: usize, address: u32, bytes: i64) -> Outcome {
    let agent = ctx.agent();
    let mut done = Snapshot::new();
    ctx.cluster.clocks.release_engine(agent, &mut done);
    with(ctx, lane, address, |barrier| {
        join(&mut barrier.gathering, &done);
        barrier.bytes -= bytes;
        barrier.settle();
        Ok(())
    })
}

fn join(into: &mut Snapshot, from: &Snapshot) {
    into.resize(from.len().max(into.len()), 0);
    for (slot, value) in into.iter_mut().zip(from) {
        *slot = (*slot).max(*value);
    }
}

fn arrival(d: &mut Decoder<'_>) -> Result<Action, String> {
    d.ignore(&HINTS);
    let expects = d.take("expect_tx");
    let dst = match d.operand(0)? {
        Operand::Sink => None,
        operand => Some(register(operand)?),
    };
    let address = d.address(1)?;
    let amount = d.optional_source(2)?;
    if expects && amount.is_none() {
        return Err("no transaction count".into());
    }
    Ok(Action::Access(Box::new(move |ctx, mask| {
        for lane in lanes(mask) {
            let amount = amount.map_or(1, |s: Source| ctx.value(s, lane) as u32);
            let (count, bytes) = if expects { (1, i64::from(amount)) } else { (amount, 0) };
            let at = ctx.shared_address(address, lane);
            let phase = arrive(ctx, lane, at, count, bytes)?;
            if let Some(dst) = dst {
                ctx.warp.registers.write_lane(dst, lane, phase);
            }
        }
        Ok(())
    })))
}

/// `try_wait` waits until the phase is complete (so it always answers true); `test_wait` answers.
/// The state that an arrival returns is the phase number, whose low bit is the parity.
fn wait(d: &mut Decoder<'_>, blocks: bool) -> Result<Action, String> {
    d.ignore(&["parity"]);
    d.ignore(&HINTS);
    let (dst, address, parity) = (d.dest(0)?, d.address(1)?, d.source(2)?);
    let poll = move |ctx: &mut Lanes<'_>, mask: u32| -> Outcome<bool> {
        let agent = ctx.agent();
        let (mut passed, mut released) = (0, Snapshot::new());
        for lane in lanes(mask) {
            let parity = ctx.value(parity, lane);
            let at = ctx.shared_address(address, lane);
            passed |= with(ctx, lane, at, |barrier| {
                if barrier.passed(parity) {
                    join(&mut released, &barrier.released);
                    return Ok(1u32 << lane);
                }
                Ok(0)
            })?;
        }
        if blocks && passed != mask {
            return Ok(false);
        }
        ctx.cluster.clocks.acquire(agent, &released);
        ctx.warp.registers.write_pred(dst, mask, passed);
        Ok(true)
    };
    Ok(Action::Wait(Box::new(poll)))
}

#[cfg(test)]
mod tests {
    use super::Mbarrier;

    #[test]
    fn a_phase_needs_arrivals_and_bytes() {
        let mut b = Mbarrier { count: 2, pending: 2, ..Mbarrier::default() };
        assert!(b.passed(1) && !b.passed(0));
        b.pending -= 1;
        b.bytes += 64;
        b.settle();
        b.pending -= 1;
        b.settle();
        assert!(!b.passed(0), "bytes are missing");
        b.bytes -= 64;
        b.settle();
        assert!(b.passed(0) && !b.passed(1));
        assert_eq!((b.phase, b.pending), (1, 2));
    }
}
