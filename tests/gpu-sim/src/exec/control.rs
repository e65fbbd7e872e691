//! Branches, exits, barriers and fences.
//!
//! Fences, but for `fence.proxy.async`, change nothing here: accesses take effect in program order, and
//! the race check works on barriers alone.

use super::{Action, Barrier, Members, ReduceOp, Reduction};
use crate::block::Lanes;
use crate::decode::{Decoder, register};
use crate::fault::Outcome;
use crate::isa::Operand;

/// Decodes a control instruction.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    match d.opcode() {
        "bra" => {
            d.ignore(&["uni"]);
            Ok(Action::Branch(d.target(0)?))
        }
        "brx" => {
            d.ignore(&["idx", "uni"]);
            Ok(Action::BranchIndexed(d.source(0)?, d.target_list(1)?))
        }
        "ret" | "exit" => {
            d.ignore(&["uni"]);
            Ok(Action::Exit)
        }
        "trap" => Ok(Action::Trap),
        "bar" | "barrier" => barrier(d),
        "fence" | "membar" => fence(d),
        "griddepcontrol" => {
            d.ignore(&["launch_dependents", "wait"]);
            Ok(Action::Nop)
        }
        "nanosleep" => {
            d.ignore(&["u32"]);
            Ok(Action::Nop)
        }
        "discard" | "applypriority" => {
            d.ignore(&["global", "L2", "L2::evict_normal"]);
            Ok(Action::Nop)
        }
        _ => Err("instruction is not supported".into()),
    }
}

/// Fences order memory that takes effect at once here; the one between the proxies is tracked.
fn fence(d: &mut Decoder<'_>) -> Result<Action, String> {
    const ORDERS: [&str; 13] = [
        "acq_rel",
        "sc",
        "acquire",
        "release",
        "cta",
        "gpu",
        "sys",
        "cluster",
        "gl",
        "sync_restrict",
        "mbarrier_init",
        "shared::cluster",
        "shared::cta",
    ];
    if d.take("proxy") {
        let tracked = d.take("async");
        d.ignore(&["async::global", "async::generic", "alias", "tensormap::generic", "global"]);
        d.ignore(&ORDERS);
        return Ok(if tracked { Action::Access(Box::new(fence_proxy)) } else { Action::Nop });
    }
    d.ignore(&ORDERS);
    Ok(Action::Nop)
}

fn fence_proxy(lanes: &mut Lanes<'_>, _mask: u32) -> Outcome {
    let agent = lanes.agent();
    lanes.cluster.clocks.fence(agent);
    Ok(())
}

fn barrier(d: &mut Decoder<'_>) -> Result<Action, String> {
    d.ignore(&["cta", "aligned"]);
    if d.take("warp") {
        d.take("sync");
        let members = Members::Mask(d.source(0)?);
        return Ok(Action::Collective { members, effect: Box::new(sync_warp) });
    }
    if d.take("cluster") {
        return cluster_barrier(d);
    }
    let id = d.source(0);
    if d.take("sync") || d.take("arrive") {
        let wait = !d.mnemonic().contains("arrive");
        let threads = d.optional_source(1)?;
        return Ok(Action::Barrier(Barrier { id: id?, threads, wait, reduce: None }));
    }
    if !d.take("red") {
        return Err("barrier form is not supported".into());
    }
    let ops = [("popc", ReduceOp::Popc), ("and", ReduceOp::And), ("or", ReduceOp::Or)];
    let op = d.require("reduction", &ops)?;
    d.ty()?;
    let last = d.operands() - 1;
    let (pred, negate) = match d.operand(last)? {
        Operand::Not(reg) => (*reg, true),
        operand => (register(operand)?, false),
    };
    let threads = if last == 3 { Some(d.source(2)?) } else { None };
    let reduce = Some(Reduction { op, dest: d.dest(0)?, pred, negate });
    Ok(Action::Barrier(Barrier { id: d.source(1)?, threads, wait: true, reduce }))
}

/// `bar.warp.sync` orders the memory accesses of the lanes.
fn sync_warp(lanes: &mut Lanes<'_>, _mask: u32) -> Outcome {
    let agent = lanes.agent();
    lanes.cluster.clocks.sync_warp(agent);
    Ok(())
}

fn cluster_barrier(d: &mut Decoder<'_>) -> Result<Action, String> {
    d.ignore(&["acquire", "release", "relaxed"]);
    if d.take("arrive") {
        return Ok(Action::Collective { members: Members::Live, effect: Box::new(cluster_arrive) });
    }
    if !d.take("wait") {
        return Err("barrier form is not supported".into());
    }
    Ok(Action::Wait(Box::new(|lanes, _| {
        let agent = lanes.agent();
        let barrier = &lanes.cluster.barrier;
        let passed = barrier.phase >= lanes.warp.cluster_phase;
        if passed {
            lanes.cluster.clocks.acquire(agent, &barrier.released);
        }
        Ok(passed)
    })))
}

fn cluster_arrive(lanes: &mut Lanes<'_>, mask: u32) -> Outcome {
    let agent = lanes.agent();
    let cluster = &mut *lanes.cluster;
    lanes.warp.cluster_phase = cluster.barrier.phase + 1;
    cluster.barrier.arrived += mask.count_ones();
    cluster.clocks.release(agent, &mut cluster.barrier.gathering);
    cluster.settle_barrier();
    Ok(())
}
