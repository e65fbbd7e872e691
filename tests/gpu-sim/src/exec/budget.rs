//! `setmaxnreg`: registers that the warpgroups of a block pass to one another (PTX ISA, sm_90a).
//!
//! A block starts with what `__launch_bounds__(threads, blocks)` leaves to each thread. Shrinking gives
//! to a pool of the block, growing waits until the pool has enough, so a sum that does not fit shows as a
//! deadlock.

use super::Action;
use crate::block::Lanes;
use crate::decode::{Decoder, Kernel};
use crate::fault::{FULL, Fault, LANES, Outcome};

/// Registers of a multiprocessor.
const REGISTERS: u32 = 65_536;
/// Most registers of a thread when a kernel starts.
const MOST: u32 = 255;

/// Registers of each thread when a kernel starts, if its launch bounds say so.
pub fn at_launch(kernel: &Kernel) -> Option<u32> {
    let threads = kernel.max_threads? * kernel.min_blocks?;
    // A warp takes whole units of 8 for each thread.
    Some((REGISTERS / threads.max(1)).min(MOST) & !7)
}

/// Decodes `setmaxnreg`.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    let grows = d.take("inc");
    if !grows && !d.take("dec") {
        return Err("neither inc nor dec".into());
    }
    d.ignore(&["sync", "aligned", "u32"]);
    let count = d.immediate(0)? as u32;
    if !(24..=256).contains(&count) || !count.is_multiple_of(8) {
        return Err(format!("{count} registers"));
    }
    Ok(Action::Wait(Box::new(move |ctx, mask| change(ctx, mask, grows, count))))
}

fn change(ctx: &mut Lanes<'_>, mask: u32, grows: bool, count: u32) -> Outcome<bool> {
    if mask != FULL {
        return Ok(false);
    }
    let Some(have) = ctx.warp.register_count else {
        return Err(Fault::warp(
            "setmaxnreg is ignored without __launch_bounds__(threads, blocks)",
        ));
    };
    if grows == (count < have) && count != have {
        let verb = if grows { "grows" } else { "shrinks" };
        return Err(Fault::warp(format!("setmaxnreg {verb} from {have} to {count} registers")));
    }
    let pool = &mut ctx.cluster.blocks[ctx.warp.rank].free_registers;
    let rest = i64::from(*pool) + (i64::from(have) - i64::from(count)) * LANES as i64;
    match u32::try_from(rest) {
        Err(_) => Ok(false),
        Ok(rest) => {
            *pool = rest;
            ctx.warp.register_count = Some(count);
            Ok(true)
        }
    }
}
