//! Bulk asynchronous copies (`cp.async.bulk`): plain ones and those through a tensor map, tiled and
//! im2col (PTX ISA, "Asynchronous copy" and "Tensors").
//!
//! A copy happens when it is issued, as an access of the asynchronous engine: only a wait on its
//! mbarrier, or for its group, orders it before what touches the same bytes, so a missing wait shows as
//! a race. Groups belong to the thread that issued the copies.

use super::memory::HINTS;
use super::{Action, Effect, mbarrier};
use crate::block::{Lanes, RANK_SHIFT, Space, at_lane};
use crate::decode::{Decoder, value};
use crate::fault::{Fault, Outcome, lanes};
use crate::isa::{Operand, Source};
use crate::shared::{Accessor, Via};
use crate::tensor_map::{BYTES, Im2col, MAX_RANK, TensorMap};

/// Decodes a `cp.async.bulk` instruction.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    if d.take("commit_group") {
        return Ok(Action::Access(Box::new(|ctx, mask| {
            let agent = ctx.agent();
            let mark = ctx.cluster.clocks.commit_engine(agent);
            ctx.warp.stores.commit(mask, mark);
            Ok(())
        })));
    }
    if d.take("wait_group") {
        d.take("read");
        let keep = d.immediate(0)? as usize;
        return Ok(Action::Access(Box::new(move |ctx, mask| {
            let agent = ctx.agent();
            for lane in lanes(mask) {
                for mark in ctx.warp.stores.complete(lane, keep) {
                    ctx.cluster.clocks.wait_engine(agent, mark);
                }
            }
            Ok(())
        })));
    }
    if d.take("prefetch") {
        d.ignore_rest();
        return Ok(Action::Nop);
    }
    let to_shared = match first_of(&d.mnemonic(), ["shared", "global"]) {
        Some("shared") => true,
        Some(_) => false,
        None => return Err("no state space".into()),
    };
    d.ignore(&["shared::cluster", "shared::cta", "global"]);
    d.ignore(&["mbarrier::complete_tx::bytes", "bulk_group"]);
    let multicast = d.take("multicast::cluster");
    d.ignore(&HINTS);
    if d.take("tensor") {
        return tensor_copy(d, to_shared, multicast);
    }
    plain_copy(d, to_shared, multicast)
}

/// Bulk copies from shared to global memory of a warp's threads, in flight.
#[derive(Default)]
pub struct Stores {
    /// Lanes with copies that are in no group yet.
    open: u32,
    /// Lane and mark of each group.
    groups: Vec<(usize, u32)>,
}

impl Stores {
    fn issue(&mut self, lane: usize) {
        self.open |= 1 << lane;
    }

    fn commit(&mut self, mask: u32, mark: u32) {
        self.groups.extend(lanes(mask).map(|lane| (lane, mark)));
        self.open &= !mask;
    }

    /// Removes all but the last `keep` groups of a lane and returns their marks.
    fn complete(&mut self, lane: usize, keep: usize) -> Vec<u32> {
        let mut done = self.groups.iter().filter(|g| g.0 == lane).count().saturating_sub(keep);
        let mut marks = Vec::new();
        self.groups.retain(|(owner, mark)| {
            let taken = *owner == lane && done > 0;
            if taken {
                done -= 1;
                marks.push(*mark);
            }
            !taken
        });
        marks
    }

    /// Lanes whose copies may still read shared memory.
    pub fn lanes(&self) -> u32 {
        self.groups.iter().fold(self.open, |mask, (lane, _)| mask | 1 << lane)
    }
}

fn first_of<'w>(mnemonic: &str, words: [&'w str; 2]) -> Option<&'w str> {
    mnemonic.split('.').find_map(|part| words.into_iter().find(|w| part.starts_with(w)))
}

/// Where a copy to shared memory goes: the blocks, the place, and the mbarrier to tell.
struct Delivery {
    ranks: Vec<u32>,
    to: u32,
    barrier: u32,
}

impl Delivery {
    fn new(
        ctx: &Lanes<'_>,
        lane: usize,
        to: u32,
        barrier: u32,
        mask: Option<Source>,
    ) -> Outcome<Delivery> {
        let ranks = match mask {
            None => vec![at_lane(lane, ctx.locate(to))?.0 as u32],
            Some(mask) => {
                let mask = ctx.value(mask, lane) as u32 & 0xffff;
                let ranks: Vec<u32> = (0..16).filter(|r| mask >> r & 1 == 1).collect();
                let blocks = ctx.cluster.blocks.len() as u32;
                if ranks.is_empty() || ranks.iter().any(|r| *r >= blocks) {
                    let message = format!("multicast mask {mask:#x} in a cluster of {blocks}");
                    return Err(Fault::lane(lane, message));
                }
                ranks
            }
        };
        let low = (1 << RANK_SHIFT) - 1;
        Ok(Delivery { ranks, to: to & low, barrier: barrier & low })
    }

    fn write(&self, ctx: &mut Lanes<'_>, lane: usize, offset: u32, bytes: &[u8]) -> Outcome {
        let who = Accessor { via: Via::Engine, ..ctx.accessor(lane) };
        for rank in &self.ranks {
            ctx.reach(*rank as usize, Via::Engine);
            let shared = &mut ctx.cluster.blocks[*rank as usize].shared;
            at_lane(lane, shared.write(&ctx.cluster.clocks, who, offset, bytes))?;
        }
        Ok(())
    }

    fn finish(&self, ctx: &mut Lanes<'_>, lane: usize, bytes: i64) -> Outcome {
        self.ranks.iter().try_for_each(|rank| {
            let barrier = self.barrier | (rank + 1) << RANK_SHIFT;
            mbarrier::complete_bytes(ctx, lane, barrier, bytes)
        })
    }
}

fn plain_copy(d: &mut Decoder<'_>, to_shared: bool, multicast: bool) -> Result<Action, String> {
    let (to, from, size) = (d.address(0)?, d.address(1)?, d.source(2)?);
    let barrier = if to_shared { Some(d.address(3)?) } else { None };
    let mask = if multicast { Some(d.source(4)?) } else { None };
    let effect: Effect = Box::new(move |ctx, active| {
        for lane in lanes(active) {
            let size = ctx.value(size, lane) as u32;
            if !size.is_multiple_of(16) {
                return Err(Fault::lane(lane, format!("bulk copy of {size} bytes")));
            }
            let shared = if to_shared { to } else { from };
            let (at, global) =
                (ctx.shared_address(shared, lane), if to_shared { from } else { to });
            let global = ctx.address(global, lane);
            match barrier {
                Some(barrier) => {
                    let barrier = ctx.shared_address(barrier, lane);
                    let delivery = Delivery::new(ctx, lane, at, barrier, mask)?;
                    for i in (0..size).step_by(16) {
                        let bytes = read_global(ctx, lane, global + u64::from(i), 16)?;
                        delivery.write(ctx, lane, delivery.to + i, &bytes)?;
                    }
                    delivery.finish(ctx, lane, i64::from(size))?;
                }
                None => {
                    ctx.warp.stores.issue(lane);
                    for i in (0..size).step_by(16) {
                        let bytes = read_shared(ctx, lane, at + i, 16)?;
                        write_global(ctx, lane, global + u64::from(i), &bytes)?;
                    }
                }
            }
        }
        Ok(())
    });
    Ok(Action::Access(effect))
}

fn read_global(ctx: &mut Lanes<'_>, lane: usize, address: u64, size: usize) -> Outcome<[u8; 16]> {
    let (mut value, mut bytes) = ([0; 2], [0; 16]);
    if size == 16 {
        ctx.load(lane, Space::Global, address, 8, &mut value)?;
    } else {
        ctx.load(lane, Space::Global, address, size, &mut value[..1])?;
    }
    bytes[..8].copy_from_slice(&value[0].to_le_bytes());
    bytes[8..].copy_from_slice(&value[1].to_le_bytes());
    Ok(bytes)
}

fn write_global(ctx: &mut Lanes<'_>, lane: usize, address: u64, bytes: &[u8]) -> Outcome {
    let mut values = [0u8; 16];
    values[..bytes.len()].copy_from_slice(bytes);
    let [low, high] = [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|i| values[at + i])));
    match bytes.len() {
        16 => ctx.store(lane, Space::Global, address, 8, &[low, high]),
        size => ctx.store(lane, Space::Global, address, size, &[low]),
    }
}

fn read_shared(ctx: &mut Lanes<'_>, lane: usize, address: u32, size: usize) -> Outcome<Vec<u8>> {
    let who = Accessor { via: Via::Engine, ..ctx.accessor(lane) };
    let shared = &mut ctx.cluster.blocks[ctx.warp.rank].shared;
    at_lane(lane, shared.read(&ctx.cluster.clocks, who, address, size).map(<[u8]>::to_vec))
}

/// The map address and the coordinates of a `[map, {c0, c1, ..}]` operand.
type MapOperand = ((Source, i64), Vec<Source>);

fn map_operand(d: &Decoder<'_>, index: usize) -> Result<MapOperand, String> {
    match d.operand(index)? {
        Operand::Address { base, offset, items } => match items.as_slice() {
            [Operand::Vector(coordinates)] => {
                let coordinates = coordinates.iter().map(value).collect::<Result<_, _>>()?;
                Ok(((*base, *offset), coordinates))
            }
            _ => Err("no coordinates".into()),
        },
        other => Err(format!("{other:?} is not a tensor operand")),
    }
}

fn tensor_copy(d: &mut Decoder<'_>, to_shared: bool, multicast: bool) -> Result<Action, String> {
    let ranks = [("1d", 1), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)];
    let rank: usize = d.require("dimension", &ranks)?;
    let im2col = d.take("im2col") || d.take("im2col_no_offs");
    d.ignore(&["tile"]);
    if !to_shared && im2col {
        return Err("stores in im2col mode are not supported".into());
    }
    let (map, coordinates) = map_operand(d, if to_shared { 1 } else { 0 })?;
    if coordinates.len() != rank {
        return Err(format!("{} coordinates", coordinates.len()));
    }
    if !to_shared {
        let from = d.address(1)?;
        return Ok(Action::Access(Box::new(move |ctx, active| {
            for lane in lanes(active) {
                let map = read_map(ctx, lane, map, rank, false)?;
                let start = start(ctx, lane, &coordinates);
                ctx.warp.stores.issue(lane);
                store_tile(ctx, lane, &map, start, ctx.shared_address(from, lane))?;
            }
            Ok(())
        })));
    }
    let (to, barrier) = (d.address(0)?, d.address(2)?);
    let offsets = if im2col && rank > 2 { d.sources(3)? } else { Vec::new() };
    let next = if offsets.is_empty() { 3 } else { 4 };
    let mask = if multicast { Some(d.source(next)?) } else { None };
    let effect: Effect = Box::new(move |ctx, active| {
        for lane in lanes(active) {
            let map = read_map(ctx, lane, map, rank, im2col)?;
            let start = start(ctx, lane, &coordinates);
            let to = ctx.shared_address(to, lane);
            let barrier = ctx.shared_address(barrier, lane);
            let delivery = Delivery::new(ctx, lane, to, barrier, mask)?;
            let mut taps = [0i64; MAX_RANK];
            for (tap, offset) in taps[1..].iter_mut().zip(&offsets) {
                *tap = i64::from(ctx.value(*offset, lane) as u16);
                // Sixteen bits are shared by the offsets.
                if *tap >= 1 << (16 / offsets.len()) {
                    return Err(Fault::lane(lane, format!("im2col offset {tap}")));
                }
            }
            match map.im2col {
                None => load_tile(ctx, lane, &map, start, &delivery)?,
                Some(conv) => load_im2col(ctx, lane, &map, &conv, (start, taps), &delivery)?,
            }
        }
        Ok(())
    });
    Ok(Action::Access(effect))
}

fn start(ctx: &Lanes<'_>, lane: usize, coordinates: &[Source]) -> [i64; MAX_RANK] {
    let mut at = [0; MAX_RANK];
    for (slot, source) in at.iter_mut().zip(coordinates) {
        *slot = i64::from(ctx.value(*source, lane) as i32);
    }
    at
}

fn read_map(
    ctx: &mut Lanes<'_>,
    lane: usize,
    map: (Source, i64),
    rank: usize,
    im2col: bool,
) -> Outcome<TensorMap> {
    let address = ctx.address(map, lane);
    if !address.is_multiple_of(64) {
        return Err(Fault::lane(lane, format!("tensor map at {address:#x}, no multiple of 64")));
    }
    let mut bytes = [0; BYTES];
    for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        let mut word = [0];
        ctx.load(lane, Space::Generic, address + 8 * i as u64, 8, &mut word)?;
        chunk.copy_from_slice(&word[0].to_le_bytes());
    }
    let map = TensorMap::from_bytes(&bytes)
        .ok_or_else(|| Fault::lane(lane, format!("no tensor map at {address:#x}")))?;
    if map.rank != rank || map.im2col.is_some() != im2col {
        let message = format!("the tensor map has rank {} and another mode", map.rank);
        return Err(Fault::lane(lane, message));
    }
    Ok(map)
}

/// Elements of one dimension-0 run of a box, as bytes in shared memory order.
fn copy_in(
    ctx: &mut Lanes<'_>,
    lane: usize,
    map: &TensorMap,
    at: [i64; MAX_RANK],
    delivery: &Delivery,
    place: (u32, u32),
) -> Outcome {
    let (offset, count) = place;
    let element = u32::from(map.element);
    let mut at = at;
    // Sixteen bytes, the unit of the permutation, at a time.
    let unit = 16 / element;
    for first in (0..count).step_by(unit as usize) {
        if let Some(address) = whole_unit(map, at, unit) {
            let bytes = read_global(ctx, lane, address, 16)?;
            let to = map.swizzle.apply(delivery.to + offset + first * element);
            delivery.write(ctx, lane, to, &bytes)?;
            at[0] += i64::from(unit);
            continue;
        }
        let mut bytes = [0; 16];
        for i in 0..unit.min(count - first) {
            let from = map.address(&at[..map.rank]);
            let value = match from {
                Some(address) => read_global(ctx, lane, address, element as usize)?,
                None => fill(map),
            };
            let slot = (i * element) as usize;
            bytes[slot..slot + element as usize].copy_from_slice(&value[..element as usize]);
            at[0] += i64::from(map.element_strides[0]);
        }
        let to = map.swizzle.apply(delivery.to + offset + first * element);
        let size = (unit.min(count - first) * element) as usize;
        delivery.write(ctx, lane, to, &bytes[..size])?;
    }
    Ok(())
}

/// Address of sixteen bytes that lie inside the tensor as a whole.
fn whole_unit(map: &TensorMap, at: [i64; MAX_RANK], unit: u32) -> Option<u64> {
    let mut last = at;
    last[0] += i64::from(unit) - 1;
    map.address(&last[..map.rank])?;
    map.address(&at[..map.rank]).filter(|a| map.element_strides[0] == 1 && a.is_multiple_of(16))
}

/// What lies outside the tensor.
fn fill(map: &TensorMap) -> [u8; 16] {
    if map.nan_fill { [0xff; 16] } else { [0; 16] }
}

fn check_place(lane: usize, map: &TensorMap, to: u32, row: u32) -> Outcome {
    if !to.is_multiple_of(128) || !(row * u32::from(map.element)).is_multiple_of(16) {
        let message = format!("bulk tensor copy to shared address {to}, not a multiple of 128");
        return Err(Fault::lane(lane, message));
    }
    Ok(())
}

fn load_tile(
    ctx: &mut Lanes<'_>,
    lane: usize,
    map: &TensorMap,
    start: [i64; MAX_RANK],
    delivery: &Delivery,
) -> Outcome {
    let row = u32::from(map.box_dims[0]);
    check_place(lane, map, delivery.to, row)?;
    let rows = rows_of(map);
    for index in 0..rows {
        let at = tile_row(map, start, index);
        let offset = index * row * u32::from(map.element);
        copy_in(ctx, lane, map, at, delivery, (offset, row))?;
    }
    delivery.finish(ctx, lane, i64::from(rows * row) * i64::from(map.element))
}

fn rows_of(map: &TensorMap) -> u32 {
    (1..map.rank).map(|axis| map.extent(axis)).product()
}

/// Coordinates of row `index` of a box.
fn tile_row(map: &TensorMap, start: [i64; MAX_RANK], index: u32) -> [i64; MAX_RANK] {
    let (mut at, mut left) = (start, index);
    let axes = at.iter_mut().zip(map.element_strides).enumerate().take(map.rank).skip(1);
    for (axis, (coordinate, step)) in axes {
        let extent = map.extent(axis);
        *coordinate += i64::from(left % extent) * i64::from(step);
        left /= extent;
    }
    at
}

fn store_tile(
    ctx: &mut Lanes<'_>,
    lane: usize,
    map: &TensorMap,
    start: [i64; MAX_RANK],
    from: u32,
) -> Outcome {
    let row = u32::from(map.box_dims[0]);
    check_place(lane, map, from, row)?;
    let element = u32::from(map.element);
    for index in 0..rows_of(map) {
        let mut at = tile_row(map, start, index);
        let unit = 16 / element;
        let mut first = 0;
        while let Some(address) = whole_unit(map, at, unit).filter(|_| first + unit <= row) {
            let source = map.swizzle.apply(from + (index * row + first) * element);
            let bytes = read_shared(ctx, lane, source, 16)?;
            write_global(ctx, lane, address, &bytes)?;
            at[0] += i64::from(unit);
            first += unit;
        }
        for i in first..row {
            let source = map.swizzle.apply(from + (index * row + i) * element);
            let bytes = read_shared(ctx, lane, source, element as usize)?;
            if let Some(address) = map.address(&at[..map.rank]) {
                write_global(ctx, lane, address, &bytes)?;
            }
            at[0] += 1;
        }
    }
    Ok(())
}

/// Pixels are taken in order of W, H, (D,) N inside the bounding box, from the start position on;
/// the filter tap moves the place that is read, not the traversal.
fn load_im2col(
    ctx: &mut Lanes<'_>,
    lane: usize,
    map: &TensorMap,
    conv: &Im2col,
    (start, taps): ([i64; MAX_RANK], [i64; MAX_RANK]),
    delivery: &Delivery,
) -> Outcome {
    let row = u32::from(conv.channels);
    check_place(lane, map, delivery.to, row)?;
    let spatial = 1..map.rank - 1;
    let lower = |axis: usize| i64::from(conv.lower[axis - 1]);
    let end = |axis: usize| i64::from(map.dims[axis]) + i64::from(conv.upper[axis - 1]);
    let mut at = start;
    for pixel in 0..u32::from(conv.pixels) {
        let mut from = at;
        for axis in spatial.clone() {
            from[axis] += taps[axis];
        }
        let offset = pixel * row * u32::from(map.element);
        copy_in(ctx, lane, map, from, delivery, (offset, row))?;
        let mut axis = 1;
        loop {
            if axis == map.rank - 1 {
                at[axis] += 1;
                break;
            }
            at[axis] += i64::from(map.element_strides[axis]);
            if at[axis] < end(axis) {
                break;
            }
            at[axis] = lower(axis);
            axis += 1;
        }
    }
    let bytes = u32::from(conv.pixels) * row * u32::from(map.element);
    delivery.finish(ctx, lane, i64::from(bytes))
}
