//! `cp.async`: copies from global to shared memory that land only when they are waited for.

use super::memory::HINTS;
use super::{Action, mbarrier, tensor};
use crate::block::{Lanes, Space, at_lane};
use crate::decode::{Decoder, register};
use crate::fault::{Fault, LANES, Outcome, lanes};
use crate::isa::{Operand, Reg, Source};

/// Decodes a `cp` instruction.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    if !d.take("async") {
        return Err("only cp.async is supported".into());
    }
    if d.take("bulk") {
        return tensor::decode(d);
    }
    if d.take("commit_group") {
        return Ok(Action::Access(Box::new(|ctx, mask| {
            for lane in lanes(mask) {
                ctx.warp.copies.lanes[lane].commit();
            }
            Ok(())
        })));
    }
    if d.take("wait_group") {
        let keep = d.immediate(0)? as usize;
        return Ok(Action::Access(Box::new(move |ctx, mask| wait(ctx, mask, Some(keep)))));
    }
    if d.take("wait_all") {
        return Ok(Action::Access(Box::new(|ctx, mask| wait(ctx, mask, None))));
    }
    if d.take("mbarrier") {
        return arrive_when_done(d);
    }
    copy(d)
}

/// Copies in flight, per lane.
#[derive(Default)]
pub struct Copies {
    lanes: [Pending; LANES],
}

#[derive(Default)]
struct Pending {
    copies: Vec<Copy>,
    /// For each committed group, the number of copies before its end.
    groups: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Copy {
    from: u64,
    /// Bytes to read; the rest of `size` is zeros.
    read: usize,
    to: u32,
    size: usize,
}

impl Pending {
    fn commit(&mut self) {
        self.groups.push(self.copies.len());
    }

    /// Removes and returns what a wait completes: all but the last `keep` groups, or everything.
    fn complete(&mut self, keep: Option<usize>) -> Vec<Copy> {
        let Some(keep) = keep else {
            self.groups.clear();
            return std::mem::take(&mut self.copies);
        };
        let done = self.groups.len().saturating_sub(keep);
        let count = if done == 0 { 0 } else { self.groups[done - 1] };
        self.groups.drain(..done);
        self.groups.iter_mut().for_each(|end| *end -= count);
        self.copies.drain(..count).collect()
    }
}

/// Whether the source is left out.
#[derive(Clone, Copy)]
enum Ignore {
    Never,
    If(Reg, bool),
}

fn copy(d: &mut Decoder<'_>) -> Result<Action, String> {
    d.ignore(&["shared", "shared::cta", "global"]);
    let bypass = d.take("cg");
    let hinted = d.mnemonic().contains("cache_hint");
    d.ignore(&HINTS);
    let (to, from) = (d.address(0)?, d.address(1)?);
    let size = d.immediate(2)? as usize;
    if !matches!((bypass, size), (true, 16) | (false, 4 | 8 | 16)) {
        return Err(format!("a copy of {size} bytes"));
    }
    let extra = d.operands() - usize::from(hinted);
    let (mut read, mut ignore) = (Source::Imm(size as u64), Ignore::Never);
    if extra > 3 {
        match d.operand(3)? {
            Operand::Not(reg) => ignore = Ignore::If(*reg, true),
            operand => match register(operand) {
                Ok(reg) if reg.class == crate::isa::Class::Pred => ignore = Ignore::If(reg, false),
                _ => read = d.source(3)?,
            },
        }
    }
    Ok(Action::Access(Box::new(move |ctx, mask| {
        let ignored = match ignore {
            Ignore::Never => 0,
            Ignore::If(reg, negate) => {
                ctx.warp.registers.pred(reg) ^ if negate { u32::MAX } else { 0 }
            }
        };
        for lane in lanes(mask) {
            let read =
                if ignored >> lane & 1 == 1 { 0 } else { ctx.value(read, lane) as u32 as usize };
            let (_, from) = Lanes::resolve(Space::Generic, ctx.address(from, lane));
            let copy = Copy { from, read, to: ctx.shared_address(to, lane), size };
            issue(ctx, lane, copy)?;
        }
        Ok(())
    })))
}

fn issue(ctx: &mut Lanes<'_>, lane: usize, copy: Copy) -> Outcome {
    let Copy { from, read, to, size } = copy;
    if read > size {
        return Err(Fault::lane(lane, format!("cp.async reads {read} bytes of {size}")));
    }
    if !from.is_multiple_of(size as u64) {
        let message = format!("misaligned: address {from:#x} is not a multiple of {size}");
        return Err(Fault::lane(lane, message));
    }
    if read > 0 {
        at_lane(lane, ctx.launch.memory.find(from, read).map(drop))?;
    }
    let who = ctx.accessor(lane);
    let shared = &mut ctx.cluster.blocks[ctx.warp.rank].shared;
    at_lane(lane, shared.begin_copy(&ctx.cluster.clocks, who, to, size))?;
    ctx.warp.copies.lanes[lane].copies.push(copy);
    Ok(())
}

fn wait(ctx: &mut Lanes<'_>, mask: u32, keep: Option<usize>) -> Outcome {
    for lane in lanes(mask) {
        for copy in ctx.warp.copies.lanes[lane].complete(keep) {
            land(ctx, lane, copy)?;
        }
    }
    Ok(())
}

fn land(ctx: &mut Lanes<'_>, lane: usize, copy: Copy) -> Outcome {
    let mut bytes = [0; 16];
    for at in (0..copy.read).step_by(4) {
        let size = if copy.read - at >= 4 { 4 } else { 1 };
        for at in (at..copy.read.min(at + 4)).step_by(size) {
            let mut value = [0];
            ctx.load(lane, Space::Global, copy.from + at as u64, size, &mut value)?;
            bytes[at..at + size].copy_from_slice(&value[0].to_le_bytes()[..size]);
        }
    }
    let who = ctx.accessor(lane);
    let shared = &mut ctx.cluster.blocks[ctx.warp.rank].shared;
    at_lane(lane, shared.end_copy(&ctx.cluster.clocks, who, copy.to, &bytes[..copy.size]))
}

/// `cp.async.mbarrier.arrive`: the copies land now, then the lanes arrive.
fn arrive_when_done(d: &mut Decoder<'_>) -> Result<Action, String> {
    if !d.take("arrive") {
        return Err("form is not supported".into());
    }
    let counted = d.take("noinc");
    d.ignore(&["shared", "shared::cta", "b64"]);
    let address = d.address(0)?;
    Ok(Action::Access(Box::new(move |ctx, mask| {
        wait(ctx, mask, None)?;
        for lane in lanes(mask) {
            let at = ctx.shared_address(address, lane);
            if !counted {
                mbarrier::expect_arrivals(ctx, lane, at, 1)?;
            }
            mbarrier::arrive(ctx, lane, at, 1, 0)?;
        }
        Ok(())
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(groups: &[usize]) -> Pending {
        let mut pending = Pending::default();
        for (group, count) in groups.iter().enumerate() {
            for _ in 0..*count {
                let to = group as u32;
                pending.copies.push(Copy { from: 0, read: 16, to, size: 16 });
            }
            pending.commit();
        }
        pending
    }

    #[test]
    fn a_wait_keeps_the_newest_groups() {
        let mut p = pending(&[2, 0, 1, 3]);
        let done: Vec<u32> = p.complete(Some(2)).iter().map(|c| c.to).collect();
        assert_eq!(done, [0, 0]);
        let done: Vec<u32> = p.complete(Some(1)).iter().map(|c| c.to).collect();
        assert_eq!(done, [2]);
        assert!(p.complete(Some(1)).is_empty());
        assert_eq!(p.complete(Some(0)).len(), 3);
    }

    #[test]
    fn an_uncommitted_copy_needs_wait_all() {
        let mut p = pending(&[1]);
        p.copies.push(Copy { from: 0, read: 16, to: 9, size: 16 });
        assert_eq!(p.complete(Some(0)).len(), 1);
        assert_eq!(p.complete(None).len(), 1);
    }
}
