//! Timing the tiles of a network's products where they will run: on its arena, at its capacity, with
//! its own argument blocks.

use super::cache::Cache;
use super::device::{Buffer, Gpu, failed};
use super::fuse::Group;
use super::kernels::Kernel;
use super::lane::Streams;
use super::launch::Launch;
use super::lower::{Lowering, Memory};
use super::pack::Packed;
use super::product::Choice;
use super::tune::{BUDGET, Memo, Picks, ProductShape, TIMED, Tuning, rank};
use crate::error::Result;
use crate::graph::plan::Plan;
use crate::graph::{Graph, Step};
use cudarc::driver::result;
use cudarc::driver::sys::CUevent_flags_enum::CU_EVENT_DEFAULT;
use half::f16;
use std::sync::Arc;
use std::time::Instant;

/// Timed launches of a candidate; the middle one counts.
const REPEATS: usize = 5;
/// Bytes of seeded numbers that the arena is filled with, over and over.
const SEEDED: usize = 1 << 20;
/// Rows on which the bits of candidates are compared.
const COMPARED_ROWS: usize = 2;

/// A network whose arena has been laid out and is not in use yet.
pub(super) struct Trial<'a> {
    pub gpu: &'a Arc<Gpu>,
    pub streams: &'a Streams,
    pub graph: &'a Graph,
    pub plan: &'a Plan,
    pub groups: &'a [Group],
    pub packed: &'a [Packed],
    pub choice: &'a Choice,
    pub memory: &'a Memory,
    pub device: &'a Buffer,
}

impl Trial<'_> {
    /// The kernel of every product: from an earlier run, or timed now while the budget lasts.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when a candidate fails on the device.
    pub fn picks(&self) -> Result<Picks> {
        let mut picks = Picks::new();
        if matches!(self.gpu.tuning, Tuning::Off) || self.choice.tile.is_some() {
            return Ok(picks);
        }
        let Gpu { compiler, name, driver, arch, .. } = &**self.gpu;
        let mut memo = Memo::open(compiler.cache().map(Cache::folder), name, *driver, *arch);
        let start = Instant::now();
        for (group, &packed) in self.groups.iter().zip(self.packed) {
            let (_, products) = self.lower(group, packed, self.choice)?;
            for shape in products {
                let key = shape.to_string();
                if picks.contains_key(&key) {
                    continue;
                }
                if let Some(kernel) = memo.get(&shape, *arch) {
                    picks.insert(key, kernel);
                } else if start.elapsed().as_secs_f64() < BUDGET {
                    let (kernel, dropped) = self.best(group, packed, &shape)?;
                    if let Some(kernel) = kernel {
                        memo.set(&shape, kernel, &dropped);
                        picks.insert(key, kernel);
                    }
                }
            }
        }
        memo.save();
        Ok(picks)
    }

    /// The launches of a group of steps and the products among them.
    fn lower(
        &self,
        group: &Group,
        packed: Packed,
        choice: &Choice,
    ) -> Result<(Vec<Launch>, Vec<ProductShape>)> {
        let mut lowering = Lowering::new(self.gpu, choice, self.graph, self.plan, self.memory);
        lowering.group(group, packed)?;
        Ok((lowering.launches, lowering.products))
    }

    /// The fastest of the best candidates, and those whose bits were others than the first's.
    fn best(
        &self,
        group: &Group,
        packed: Packed,
        shape: &ProductShape,
    ) -> Result<(Option<&'static Kernel>, Vec<&'static Kernel>)> {
        let mut first: Option<Vec<u8>> = None;
        let mut best: Option<(f64, &'static Kernel)> = None;
        let mut dropped = Vec::new();
        for kernel in rank(shape, self.gpu.machine()).into_iter().take(TIMED) {
            let picks = Picks::from([(shape.to_string(), kernel)]);
            let choice = Choice { picks, ..self.choice.clone() };
            // A kernel that cannot be made here is no candidate.
            let Ok((mut launches, _)) = self.lower(group, packed, &choice) else { continue };
            let bits = self.bits(&self.graph.steps[group.last], &mut launches)?;
            if first.get_or_insert_with(|| bits.clone()) != &bits {
                dropped.push(kernel);
                continue;
            }
            let seconds = self.seconds(kernel, &mut launches)?;
            if best.is_none_or(|(least, _)| seconds < least) {
                best = Some((seconds, kernel));
            }
        }
        Ok((best.map(|(_, kernel)| kernel), dropped))
    }

    /// What the launches of a step write, as stored and as handed back, from seeded numbers.
    fn bits(&self, step: &Step, launches: &mut [Launch]) -> Result<Vec<u8>> {
        let rows = self.memory.capacity.min(COMPARED_ROWS);
        self.fill()?;
        self.run(launches, rows)?;
        self.streams.compute.synchronize().map_err(|e| failed("a trial", e))?;
        let choice = Choice::default();
        let lowering = Lowering::new(self.gpu, &choice, self.graph, self.plan, self.memory);
        let sink = lowering.sink(step.output);
        let shape = self.graph.shape(step.output);
        let positions = shape.pixels() * if shape.is_bag() { 1 } else { rows };
        let bytes = |pitch: i32, number: usize| {
            ((positions - 1) * pitch as usize + shape.channels()) * number
        };
        let mut all = Vec::new();
        for (address, pitch, number) in
            [(sink.half, sink.half_pitch, 2), (sink.full, sink.full_pitch, 4)]
        {
            if address != 0 {
                let start = all.len();
                all.resize(start + bytes(pitch, number), 0);
                // SAFETY: the plan gives the output this many bytes from its address on, and
                // nothing writes them any more.
                unsafe { result::memcpy_dtoh_sync(&mut all[start..], address) }
                    .map_err(|e| failed("a trial", e))?;
            }
        }
        Ok(all)
    }

    fn run(&self, launches: &mut [Launch], rows: usize) -> Result<()> {
        for launch in launches {
            // SAFETY: the addresses were laid out for the capacity, which `rows` does not exceed.
            unsafe { launch.queue(&self.streams.compute, rows) }?;
        }
        Ok(())
    }

    /// Seconds of the launches at the full capacity.
    fn seconds(&self, kernel: &Kernel, launches: &mut [Launch]) -> Result<f64> {
        if let Tuning::Pretended(seconds) = self.gpu.tuning {
            return Ok(seconds(kernel.name));
        }
        let fail = |e| failed("a trial", e);
        let stream = &self.streams.compute;
        let mut times = Vec::with_capacity(REPEATS);
        // The first warms up.
        for repeat in 0..=REPEATS {
            let start = stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(fail)?;
            self.run(launches, self.memory.capacity)?;
            let end = stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(fail)?;
            stream.synchronize().map_err(fail)?;
            if repeat > 0 {
                times.push(f64::from(start.elapsed_ms(&end).map_err(fail)?) * 1e-3);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }

    /// Fills the whole arena with numbers in [-1, 1) that are always the same, so that a candidate
    /// that does not write is found out too.
    fn fill(&self) -> Result<()> {
        let fail = |e| failed("a trial", e);
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            f16::from_f32((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
        };
        let length = SEEDED.min(self.device.bytes);
        let numbers: Vec<f16> = (0..length / 2).map(|_| next()).collect();
        let (base, stream) = (self.device.address, &self.streams.compute);
        // SAFETY: the buffer has at least this many bytes, and the numbers live until the end.
        unsafe { result::memcpy_htod_async(base, &numbers, stream.cu_stream()) }.map_err(fail)?;
        let mut filled = 2 * numbers.len();
        while filled < self.device.bytes {
            let more = filled.min(self.device.bytes - filled);
            // SAFETY: source and destination lie in the buffer and do not overlap.
            unsafe {
                result::memcpy_dtod_async(base + filled as u64, base, more, stream.cu_stream())
            }
            .map_err(fail)?;
            filled += more;
        }
        stream.synchronize().map_err(fail)
    }
}
