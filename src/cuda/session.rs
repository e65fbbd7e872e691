//! The CUDA backend: a graph readied on one GPU.

mod overlap;

use super::compile::Compiler;
use super::device::{Buffer, Gpu, failed};
use super::fuse::{self, Group};
use super::kept::KeptRows;
use super::kernels::{Arch, Tile};
use super::lane::{Lane, Program, Source, Streams, outside_bytes};
use super::lower::{Lowering, Memory};
use super::pack::{Packed, Packer, with_padded_tensors};
use super::preprocess::Room;
use super::product::Choice;
use super::trial::Trial;
use super::tune::Tuning;
use crate::backend::{Backend, Input, Overlapped, Session};
use crate::error::{Error, Result};
use crate::graph::plan::{Plan, extent, lifetimes};
use crate::graph::{Graph, Shape, TensorId, check_run};
use cudarc::driver::result;
use std::sync::Arc;

/// One GPU as a machine that runs graphs.
pub struct CudaBackend {
    pub(super) gpu: Arc<Gpu>,
    choice: Choice,
}

impl CudaBackend {
    /// Opens device `ordinal`, in the driver's order, with the default compile cache.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] that says what is missing; never a panic where CUDA is absent.
    pub fn new(ordinal: usize) -> Result<CudaBackend> {
        CudaBackend::with_compiler(ordinal, Compiler::new())
    }

    /// As [`CudaBackend::new`], with a given compiler.
    ///
    /// # Errors
    /// As [`CudaBackend::new`].
    pub fn with_compiler(ordinal: usize, compiler: Compiler) -> Result<CudaBackend> {
        let driver = super::driver().map_err(Error::device)?;
        let devices = driver.devices.len();
        if ordinal >= devices {
            return Err(Error::device(format!("no CUDA device {ordinal}: there are {devices}")));
        }
        Ok(CudaBackend {
            gpu: Arc::new(Gpu::open(ordinal, driver.version, compiler)?),
            choice: Choice::default(),
        })
    }

    /// Uses one tile for every product instead of choosing by shape. Results keep their bits.
    #[must_use]
    pub fn with_tile(mut self, tile: Tile) -> CudaBackend {
        self.choice.tile = Some(tile);
        self
    }

    /// Allocates no more than `bytes` of device memory, machine code not counted.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] once a graph was prepared.
    pub fn with_memory_limit(mut self, bytes: usize) -> Result<CudaBackend> {
        let in_use = || Error::usage("the memory limit comes before the first graph");
        Arc::get_mut(&mut self.gpu).ok_or_else(in_use)?.memory_limit = Some(bytes);
        Ok(self)
    }

    /// Chooses tiles in another way than the environment says. Results keep their bits.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] once a graph was prepared.
    pub fn with_tuning(mut self, tuning: Tuning) -> Result<CudaBackend> {
        let in_use = || Error::usage("how tiles are chosen is said before the first graph");
        Arc::get_mut(&mut self.gpu).ok_or_else(in_use)?.tuning = tuning;
        Ok(self)
    }

    /// Runs products on the warpgroup kernels of sm_90a. Their sums may be rounded otherwise than
    /// those of the portable kernels, so the two are never mixed for one kind of product; kinds that have no such kernel run on the
    /// portable ones.
    ///
    /// # Errors
    /// [`crate::Kind::Unsupported`] on any other architecture.
    pub fn with_warpgroups(mut self) -> Result<CudaBackend> {
        if !self.has_warpgroups() {
            return Err(Error::unsupported(format!("{}: no warpgroup products", self.name())));
        }
        self.choice.warpgroups = true;
        Ok(self)
    }

    /// Whether [`CudaBackend::with_warpgroups`] would succeed.
    pub fn has_warpgroups(&self) -> bool {
        self.gpu.arch == Arch(90)
    }

    /// Runs every warpgroup product in clusters of `blocks`, 1 or 2, instead of choosing by shape.
    /// Results keep their bits.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] for another number, or more than there are multiprocessors.
    pub fn with_cluster(mut self, blocks: u32) -> Result<CudaBackend> {
        if !(1..=2).contains(&blocks) || blocks > self.gpu.multiprocessors {
            return Err(Error::usage(format!("clusters of {blocks} blocks: 1 or 2 are possible")));
        }
        self.choice.cluster = Some(blocks);
        Ok(self)
    }

    /// Bytes per second that the device reads and writes when it copies its own memory.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when the device fails.
    pub fn copy_rate(&self) -> Result<f64> {
        super::ceiling::bytes_per_second(&self.gpu)
    }

    /// The architecture whose kernels run.
    pub fn architecture(&self) -> Arch {
        self.gpu.arch
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> String {
        let (major, minor) = self.gpu.capability;
        format!(
            "cuda ({}, compute capability {major}.{minor}, {} kernels)",
            self.gpu.name,
            self.gpu.arch.name()
        )
    }

    fn prepare(&self, graph: Arc<Graph>, max_rows: usize) -> Result<Box<dyn Session>> {
        let name = graph.name.clone();
        let session = CudaSession::new(self.gpu.clone(), self.choice.clone(), graph, max_rows);
        Ok(Box::new(session.map_err(|e| e.context(name))?))
    }
}

/// A graph on a GPU: its parameters and its arena on the device, its lanes, three streams.
struct CudaSession {
    gpu: Arc<Gpu>,
    choice: Choice,
    graph: Arc<Graph>,
    /// Which steps each launch, or few, stand for.
    groups: Vec<Group>,
    plan: Plan,
    /// Of each group.
    packed: Vec<Packed>,
    parameters: Buffer,
    streams: Streams,
    arena: Option<Arena>,
    /// The first device error: the context may be lost, so nothing runs after it.
    broken: Option<String>,
}

/// Everything that depends on the capacity.
struct Arena {
    capacity: usize,
    lanes: Vec<Lane>,
    /// The lane of the oldest batch under way, and how many are.
    oldest: usize,
    under_way: usize,
    /// Where tiles are made into the network's input, if they are.
    room: Option<Room>,
    _device: Buffer,
}

/// Where everything lies, before there is a device address.
struct Layout {
    /// One for each lane; they differ in inputs and outputs.
    lanes: Vec<Memory>,
    /// Bytes of the outputs of one lane.
    results: usize,
    bytes: usize,
}

impl CudaSession {
    fn new(
        gpu: Arc<Gpu>,
        choice: Choice,
        graph: Arc<Graph>,
        max_rows: usize,
    ) -> Result<CudaSession> {
        // The order is checked on the graph itself, the layout made with padded channels.
        Plan::new(&graph)?;
        check_outputs(&graph)?;
        // The warpgroup kernels have no pooling epilogue.
        let groups = if choice.warpgroups { fuse::singles(&graph) } else { fuse::groups(&graph) };
        let wide = fuse::merged(&with_padded_tensors(&graph), &groups);
        let plan = Plan::with_lifetimes(&wide, &lifetimes(&wide, |step| step.reads().collect()));
        let mut packer = Packer::default();
        let packed: Vec<Packed> = groups.iter().map(|g| packer.group(&graph, g)).collect();
        gpu.bind()?;
        let streams = Streams::new(&gpu)?;
        let parameters = Buffer::new(&gpu, packer.bytes.len(), "weights")?;
        let stream = &streams.compute;
        // SAFETY: the buffer has the length of the bytes, which live until the copy is done.
        unsafe { result::memcpy_htod_async(parameters.address, &packer.bytes, stream.cu_stream()) }
            .and_then(|()| stream.synchronize())
            .map_err(|e| failed("weights", e))?;
        let mut session = CudaSession {
            gpu,
            choice,
            graph,
            groups,
            plan,
            packed,
            parameters,
            streams,
            arena: None,
            broken: None,
        };
        session.reserve(max_rows)?;
        Ok(session)
    }

    /// A network over pixels is fed batch after batch, any other sees one bag at a time.
    fn lane_count(&self) -> usize {
        let pixels = |&id| matches!(self.graph.shape(id), Shape::Pixels { .. });
        if self.graph.inputs.len() == 1 && self.graph.inputs.iter().all(pixels) { 2 } else { 1 }
    }

    /// Lays everything out for `rows` rows, with addresses that count from `base`.
    fn layout(&self, rows: usize, scratch_bytes: usize, base: u64) -> Result<Layout> {
        let too_many = || Error::limit(format!("{rows} rows do not fit any memory"));
        let mut end = 0usize;
        let mut take = |elements: usize, times: usize, bytes: usize| -> Result<u64> {
            let size = elements.checked_mul(times).and_then(|n| n.checked_mul(bytes));
            let next =
                size.and_then(|n| end.checked_add(n)).and_then(|n| n.checked_next_multiple_of(256));
            let start = end;
            end = next.filter(|&n| n <= isize::MAX as usize).ok_or_else(too_many)?;
            Ok(base + start as u64)
        };
        let graph = &self.graph;
        let times = |shape: Shape| if shape.is_bag() { 1 } else { rows };
        let bytes_of = |shape: Shape| if matches!(shape, Shape::Pixels { .. }) { 1 } else { 4 };
        let mut outside = |ids: &[TensorId]| -> Result<Vec<u64>> {
            let shapes = ids.iter().map(|&id| graph.shape(id));
            shapes.map(|s| take(s.len(), times(s), bytes_of(s))).collect()
        };
        let places: Vec<_> = (0..self.lane_count())
            .map(|_| Ok((outside(&graph.inputs)?, outside(&graph.outputs)?)))
            .collect::<Result<_>>()?;
        let shared = Memory {
            capacity: rows,
            parameters: self.parameters.address,
            rows: take(self.plan.row_elements, rows, 2)?,
            bags: take(self.plan.bag_elements, 1, 2)?,
            scratch: take(scratch_bytes, 1, 1)?,
            ..Memory::default()
        };
        let results = |&id| outside_bytes(graph, id, rows).next_multiple_of(256);
        Ok(Layout {
            lanes: places
                .into_iter()
                .map(|(inputs, outputs)| Memory { inputs, outputs, ..shared.clone() })
                .collect(),
            results: graph.outputs.iter().map(results).sum(),
            bytes: end,
        })
    }

    /// The launches of all steps, and the most work space one of them needs.
    fn lower(&self, memory: &Memory, choice: &Choice) -> Result<(Program, usize)> {
        let mut lowering = Lowering::new(&self.gpu, choice, &self.graph, &self.plan, memory);
        lowering.inputs()?;
        let mut marks = vec![lowering.launches.len(); self.graph.steps.len() + 1];
        for (group, &packed) in self.groups.iter().zip(&self.packed) {
            let lowered = lowering.group(group, packed);
            lowered.map_err(|e| e.context(format!("step {}", group.first)))?;
            // The first step of a group stands for all of it.
            marks[group.first + 1..].fill(lowering.launches.len());
        }
        Ok((Program { launches: lowering.launches, marks }, lowering.scratch_bytes))
    }

    fn trial<'a>(&'a self, memory: &'a Memory, device: &'a Buffer) -> Trial<'a> {
        Trial {
            gpu: &self.gpu,
            streams: &self.streams,
            graph: &self.graph,
            plan: &self.plan,
            groups: &self.groups,
            packed: &self.packed,
            choice: &self.choice,
            memory,
            device,
        }
    }

    /// Makes an arena for `rows` rows.
    fn arena(&self, rows: usize) -> Result<Arena> {
        let what = format!("activations of {rows} rows");
        // Once for the work space, once more with it. What cannot fit is refused before any kernel
        // is compiled for it.
        let layout = self.layout(rows, 0, 0)?;
        self.gpu.check_room(layout.bytes, &what)?;
        let (_, scratch_bytes) = self.lower(&layout.lanes[0], &self.choice)?;
        let device = Buffer::new(&self.gpu, self.layout(rows, scratch_bytes, 0)?.bytes, &what)?;
        let layout = self.layout(rows, scratch_bytes, device.address)?;
        let mut choice = self.choice.clone();
        // A bag has another size every time: nothing learnt from one helps the next.
        if layout.lanes.len() > 1 {
            choice.picks = self.trial(&layout.lanes[0], &device).picks()?;
        }
        let lanes = layout.lanes.into_iter().map(|memory| {
            let (program, _) = self.lower(&memory, &choice)?;
            Lane::new(&self.gpu, memory, program, layout.results)
        });
        let lanes = lanes.collect::<Result<_>>()?;
        Ok(Arena { capacity: rows, lanes, oldest: 0, under_way: 0, room: None, _device: device })
    }

    /// Refuses to work after a device error, and work for which there is no room.
    fn check(&self, rows: usize, free_lanes: bool) -> Result<()> {
        let name = &self.graph.name;
        if let Some(why) = &self.broken {
            return Err(Error::device(format!("{name}: failed before: {why}")));
        }
        let room = self.max_rows();
        if rows > room {
            return Err(Error::usage(format!("{name}: {rows} rows, room for {room}")));
        }
        let under_way = self.arena.as_ref().map_or(0, |a| a.under_way);
        if free_lanes && under_way > 0 {
            return Err(Error::usage(format!("{name}: {under_way} batches are under way")));
        }
        Ok(())
    }

    /// Ends the session after an error of the device.
    fn ended<T>(&mut self, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|error| {
            // Nothing may still be copying from or to host memory when it is freed.
            self.streams.settle();
            self.broken = Some(error.to_string());
            error.context(self.graph.name.clone())
        })
    }

    /// One batch from start to end on the first lane.
    fn execute(
        &mut self,
        rows: usize,
        inputs: &[Input<'_>],
        outputs: &mut [&mut [f32]],
        seconds: Option<&mut [f64]>,
    ) -> Result<()> {
        check_run(&self.graph, rows, inputs, outputs)?;
        self.check(rows, true)?;
        let Some(arena) = self.arena.as_mut().filter(|_| rows > 0) else { return Ok(()) };
        self.gpu.bind()?;
        let sources = inputs.iter().map(|input| match *input {
            Input::Pixels(v) => Ok(Source::Host(v)),
            Input::Values(v) => Ok(Source::Host(bytemuck::cast_slice(v))),
            Input::Kept(from, rows) => Ok(Source::Kept(KeptRows::of(from, &self.gpu)?, rows)),
        });
        let sources = sources.collect::<Result<Vec<_>>>()?.into_iter();
        let (lane, graph, streams) = (&mut arena.lanes[0], &self.graph, &self.streams);
        let started = match seconds {
            // SAFETY: the sizes were checked, and the caller's slices are borrowed until this
            // returns; after an error the streams settle first.
            None => unsafe { lane.start(streams, graph, rows, sources) },
            // SAFETY: as above.
            Some(s) => unsafe { lane.start_timed(streams, graph, rows, sources, s) },
        };
        let finished = started.and_then(|()| lane.finish(outputs).map(drop));
        let finished = finished
            .and_then(|()| self.gpu.context.check_err().map_err(|e| failed("the run failed", e)));
        self.ended(finished)
    }
}

impl Drop for CudaSession {
    fn drop(&mut self) {
        if self.arena.as_ref().is_some_and(|a| a.under_way > 0) && self.gpu.bind().is_ok() {
            self.streams.settle();
        }
    }
}

impl Session for CudaSession {
    fn max_rows(&self) -> usize {
        self.arena.as_ref().map_or(0, |a| a.capacity)
    }

    fn reserve(&mut self, rows: usize) -> Result<()> {
        if rows <= self.max_rows() {
            return Ok(());
        }
        self.check(0, true)?;
        self.gpu.bind()?;
        // The old arena goes first: both together may not fit.
        self.arena = None;
        self.arena = Some(self.arena(rows)?);
        Ok(())
    }

    fn release(&mut self) {
        let idle = self.arena.as_ref().is_some_and(|a| a.under_way == 0);
        if idle && self.gpu.bind().is_ok() {
            self.arena = None;
        }
    }

    fn run(&mut self, rows: usize, inputs: &[Input<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
        self.execute(rows, inputs, outputs, None)
    }

    fn run_timed(
        &mut self,
        rows: usize,
        inputs: &[Input<'_>],
        outputs: &mut [&mut [f32]],
        seconds: &mut [f64],
    ) -> Result<bool> {
        self.execute(rows, inputs, outputs, Some(seconds)).map(|()| true)
    }

    fn overlapped(&mut self) -> Option<&mut dyn Overlapped> {
        (self.lane_count() > 1).then_some(self)
    }
}

/// An output must be made of whole step results: no kernel writes part of its result as f32.
fn check_outputs(graph: &Graph) -> Result<()> {
    for (i, &output) in graph.outputs.iter().enumerate() {
        let (root, range) = extent(graph, output);
        for step in &graph.steps {
            let (of, channels) = extent(graph, step.output);
            let apart = of != root || channels.end <= range.start || range.end <= channels.start;
            let inside = range.start <= channels.start && channels.end <= range.end;
            if !apart && !inside {
                return Err(Error::unsupported(format!("output {i} is a part of a step's result")));
            }
        }
    }
    Ok(())
}
