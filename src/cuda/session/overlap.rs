//! Batches that overlap: each takes a lane, is copied in, made into the network's input where it is not
//! yet, computed and copied out.

use super::super::device::{Pinned, failed};
use super::super::kept::{KeptRows, Place};
use super::super::lane::{Load, outside_bytes};
use super::super::preprocess::Room;
use super::CudaSession;
use crate::backend::{Batch, HostMemory, Kept, Overlapped};
use crate::error::{Error, Kind, Result};
use crate::graph::Shape;
use std::sync::Arc;

impl CudaSession {
    /// Numbers in a row of the only output, if there is one and rows have their own.
    fn width(&self) -> Option<usize> {
        let &[output] = &self.graph.outputs[..] else { return None };
        Some(self.graph.shape(output)).filter(|shape| !shape.is_bag()).map(|shape| shape.len())
    }
}

impl Overlapped for CudaSession {
    fn lanes(&mut self) -> usize {
        self.lane_count()
    }

    fn lend(&mut self, bytes: usize) -> Result<HostMemory> {
        Ok(Box::new(Pinned::new(&self.gpu, bytes)?))
    }

    /// On the next lane.
    fn submit(&mut self, batch: Batch) -> Result<()> {
        let Batch { rows, pixels, how, into } = batch;
        self.check(rows, false)?;
        let width = self.width();
        let (name, given) = (&self.graph.name, pixels.len());
        let refused = |what: String| Err(Error::usage(format!("{name}: {what}")));
        let Some(arena) = &mut self.arena else { return Err(Error::usage("nothing reserved")) };
        let bytes = match &how {
            None => self.graph.inputs.iter().map(|&id| outside_bytes(&self.graph, id, rows)).sum(),
            Some(how) => {
                let inputs = self.graph.inputs.iter().map(|&id| self.graph.shape(id));
                let [h, w] = how.made();
                let room = arena.room.as_ref().map_or(0, |room| room.pixels);
                if !inputs.eq([Shape::Pixels { h, w }]) || how.most_pixels() > room {
                    let most = how.most_pixels();
                    return refused(format!("no room for tiles of {most} pixels made {h} x {w}"));
                }
                3 * rows * how.given().iter().product::<usize>()
            }
        };
        if rows == 0 || bytes > given {
            return refused(format!("{given} bytes of pixels for {rows} rows"));
        }
        if arena.under_way == arena.lanes.len() {
            return refused("every lane is taken".into());
        }
        let into = into.map(|at| Place::new(&self.gpu, at, rows, width.unwrap_or_default()));
        let into = into.transpose().map_err(|e| e.context(name.clone()))?;
        self.gpu.bind()?;
        let next = (arena.oldest + arena.under_way) % arena.lanes.len();
        arena.under_way += 1;
        let lane = &mut arena.lanes[next];
        let (gpu, streams) = (&self.gpu, &self.streams);
        let tiles =
            how.as_ref().zip(arena.room.as_ref()).map(|(how, room)| (how, room.tiles(next), room));
        let ready = match tiles {
            Some((how, tiles, room)) => lane.ready(gpu, streams, how, tiles, room),
            None => Ok(()),
        };
        let tiles = tiles.map(|(_, tiles, _)| tiles);
        let load = Load { rows, pixels, bytes, tiles, into };
        let submitted = ready.and_then(|()| lane.submit(streams, &self.graph, load));
        self.ended(submitted)
    }

    fn accept_tiles(&mut self, pixels: usize) -> Result<bool> {
        self.check(0, true)?;
        let Some(arena) = &mut self.arena else { return Ok(false) };
        self.gpu.bind()?;
        // The old room goes first: both together may not fit.
        arena.room = None;
        match Room::new(&self.gpu, arena.lanes.len(), arena.capacity, pixels) {
            Ok(room) => arena.room = Some(room),
            Err(error) if error.kind() == Kind::Limit => {}
            Err(error) => return Err(error),
        }
        Ok(arena.room.is_some())
    }

    fn keep(&mut self, rows: usize) -> Result<Option<Arc<dyn Kept>>> {
        self.check(0, false)?;
        let Some(width) = self.width() else { return Ok(None) };
        Ok(Some(Arc::new(KeptRows::new(&self.gpu, rows, width)?)))
    }

    fn collect(&mut self, outputs: &mut [&mut [f32]]) -> Result<HostMemory> {
        self.check(0, false)?;
        let idle = || Error::usage("no batch is under way");
        let arena = self.arena.as_mut().filter(|a| a.under_way > 0).ok_or_else(idle)?;
        let lane = &mut arena.lanes[arena.oldest];
        let rows = lane.rows().ok_or_else(idle)?;
        let given = if lane.keeps() { &[][..] } else { &self.graph.outputs };
        let wanted = given.iter().map(|&id| outside_bytes(&self.graph, id, rows));
        if !wanted.eq(outputs.iter().map(|o| size_of_val(*o))) {
            let name = &self.graph.name;
            return Err(Error::usage(format!("{name}: outputs of another size than {rows} rows")));
        }
        self.gpu.bind()?;
        let finished = lane.finish(outputs);
        arena.oldest = (arena.oldest + 1) % arena.lanes.len();
        arena.under_way -= 1;
        let finished = finished.and_then(|pixels| {
            self.gpu.context.check_err().map_err(|e| failed("the run failed", e))?;
            pixels.ok_or_else(idle)
        });
        self.ended(finished)
    }
}
