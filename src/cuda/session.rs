//! The CUDA backend: a graph readied on one GPU.

use super::compile::Compiler;
use super::device::{Buffer, Gpu, Pinned, failed};
use super::kernels::{Arch, Tile};
use super::launch::Launch;
use super::lower::{Lowering, Memory};
use super::pack::{Packed, Packer, with_padded_tensors};
use super::product::Choice;
use crate::backend::{Backend, Input, Session};
use crate::error::{Error, Result};
use crate::graph::plan::{Plan, extent, lifetimes};
use crate::graph::{Graph, Shape, check_run};
use cudarc::driver::result;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaStream};
use std::collections::HashMap;
use std::sync::Arc;

/// Most numbers of rows a session keeps captured graphs for.
const MAX_GRAPHS: usize = 16;

/// One GPU as a machine that runs graphs.
pub struct CudaBackend {
    gpu: Arc<Gpu>,
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
        Ok(CudaBackend { gpu: Arc::new(Gpu::open(ordinal, compiler)?), choice: Choice::default() })
    }

    /// Uses one tile for every product instead of choosing by shape. Results keep their bits.
    #[must_use]
    pub fn with_tile(mut self, tile: Tile) -> CudaBackend {
        self.choice.tile = Some(tile);
        self
    }

    /// Runs products on the warpgroup kernels of sm_90a. Their sums may be rounded otherwise than
    /// those of the portable kernels, so the two are never mixed in one session.
    ///
    /// # Errors
    /// [`crate::Kind::Unsupported`] on any other architecture.
    pub fn with_warpgroups(mut self) -> Result<CudaBackend> {
        if self.gpu.arch != Arch(90) {
            return Err(Error::unsupported(format!("{}: no warpgroup products", self.name())));
        }
        self.choice.warpgroups = true;
        Ok(self)
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
        let session = CudaSession::new(self.gpu.clone(), self.choice, graph, max_rows);
        Ok(Box::new(session.map_err(|e| e.context(name))?))
    }
}

/// A graph on a GPU: its parameters and its arena on the device, its launches, one stream.
struct CudaSession {
    gpu: Arc<Gpu>,
    choice: Choice,
    graph: Arc<Graph>,
    plan: Plan,
    packed: Vec<Packed>,
    parameters: Buffer,
    stream: Arc<CudaStream>,
    arena: Option<Arena>,
    /// The first device error: the context may be lost, so nothing runs after it.
    broken: Option<String>,
}

/// Everything that depends on the capacity.
struct Arena {
    memory: Memory,
    launches: Vec<Launch>,
    /// How each number of rows was run before.
    recorded: HashMap<usize, Recorded>,
    staging: Pinned,
    _device: Buffer,
}

enum Recorded {
    Once,
    Graph(Graphed),
}

/// A captured run: copies in, launches, copies out.
struct Graphed(CudaGraph);

// SAFETY: a graph may be launched and freed from any thread, one at a time; the session owns it.
unsafe impl Send for Graphed {}

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
        let wide = with_padded_tensors(&graph);
        let plan = Plan::with_lifetimes(&wide, &lifetimes(&wide, |step| step.reads().collect()));
        let mut packer = Packer::default();
        let packed: Vec<Packed> = graph.steps.iter().map(|s| packer.step(&graph, s)).collect();
        gpu.bind()?;
        let stream = gpu.context.new_stream().map_err(|e| failed("no stream", e))?;
        let parameters = Buffer::new(&gpu, packer.bytes.len(), "weights")?;
        // SAFETY: the buffer has the length of the bytes, which live until the copy is done.
        unsafe { result::memcpy_htod_async(parameters.address, &packer.bytes, stream.cu_stream()) }
            .and_then(|()| stream.synchronize())
            .map_err(|e| failed("weights", e))?;
        let mut session = CudaSession {
            gpu,
            choice,
            graph,
            plan,
            packed,
            parameters,
            stream,
            arena: None,
            broken: None,
        };
        session.reserve(max_rows)?;
        Ok(session)
    }

    /// Lays everything out for `rows` rows, with addresses that count from `base`.
    fn layout(&self, rows: usize, scratch_bytes: usize, base: u64) -> Result<(Memory, usize)> {
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
        let mut outside = |ids: &[crate::graph::TensorId]| -> Result<Vec<u64>> {
            let shapes = ids.iter().map(|&id| graph.shape(id));
            shapes.map(|s| take(s.len(), times(s), bytes_of(s))).collect()
        };
        // Inputs and outputs first, in the order of the staging memory.
        let (inputs, outputs) = (outside(&graph.inputs)?, outside(&graph.outputs)?);
        let memory = Memory {
            capacity: rows,
            parameters: self.parameters.address,
            inputs,
            outputs,
            rows: take(self.plan.row_elements, rows, 2)?,
            bags: take(self.plan.bag_elements, 1, 2)?,
            scratch: take(scratch_bytes, 1, 1)?,
        };
        Ok((memory, end))
    }

    fn lower<'a>(&'a self, memory: &'a Memory, measuring: bool) -> Result<Lowering<'a>> {
        let mut lowering =
            Lowering::new(&self.gpu, self.choice, &self.graph, &self.plan, memory, measuring);
        lowering.inputs()?;
        for (index, (step, &packed)) in self.graph.steps.iter().zip(&self.packed).enumerate() {
            lowering.step(step, packed).map_err(|e| e.context(format!("step {index}")))?;
        }
        Ok(lowering)
    }

    /// Runs and leaves the outputs in the staging memory.
    fn execute(&mut self, rows: usize, inputs: &[Input<'_>]) -> Result<()> {
        let Some(arena) = &mut self.arena else { return Err(Error::usage("nothing reserved")) };
        arena.stage(inputs);
        // A number of rows that comes back is worth a graph; one that does not is queued once.
        match arena.recorded.get(&rows) {
            Some(Recorded::Graph(graph)) => {
                graph.0.launch().map_err(|e| failed("graph launch", e))?;
            }
            Some(Recorded::Once) => {
                let graph = capture(&self.stream, || arena.queue(&self.graph, &self.stream, rows))?;
                graph.0.launch().map_err(|e| failed("graph launch", e))?;
                arena.recorded.insert(rows, Recorded::Graph(graph));
            }
            None => {
                arena.queue(&self.graph, &self.stream, rows)?;
                if arena.recorded.len() < MAX_GRAPHS {
                    arena.recorded.insert(rows, Recorded::Once);
                }
            }
        }
        self.stream.synchronize().map_err(|e| failed("the run failed", e))?;
        self.gpu.context.check_err().map_err(|e| failed("the run failed", e))
    }
}

impl Arena {
    /// Copies the inputs of a run into the staging memory.
    fn stage(&mut self, inputs: &[Input<'_>]) {
        let base = self.memory.start();
        for (input, &address) in inputs.iter().zip(&self.memory.inputs) {
            let from: &[u8] = match input {
                Input::Pixels(v) => v,
                Input::Values(v) => bytemuck::cast_slice(v),
            };
            self.staging.bytes()[(address - base) as usize..][..from.len()].copy_from_slice(from);
        }
    }

    /// Queues the copies in, the launches and the copies out. `rows` is at least 1 and at most the
    /// capacity.
    fn queue(&mut self, graph: &Graph, stream: &CudaStream, rows: usize) -> Result<()> {
        let base = self.memory.start();
        let bytes = |id| {
            let shape: Shape = graph.shape(id);
            let number = if matches!(shape, Shape::Pixels { .. }) { 1 } else { 4 };
            shape.len() * if shape.is_bag() { 1 } else { rows } * number
        };
        for (&id, &address) in graph.inputs.iter().zip(&self.memory.inputs) {
            let slot = &self.staging.bytes()[(address - base) as usize..][..bytes(id)];
            // SAFETY: the layout gives the input this many bytes on both sides, and the staging
            // memory is not touched before the stream has passed.
            unsafe { result::memcpy_htod_async(address, slot, stream.cu_stream()) }
                .map_err(|e| failed("input", e))?;
        }
        for launch in &mut self.launches {
            // SAFETY: `rows` is within the capacity the addresses were laid out for.
            unsafe { launch.queue(stream, rows) }?;
        }
        for (&id, &address) in graph.outputs.iter().zip(&self.memory.outputs) {
            let slot = &mut self.staging.bytes()[(address - base) as usize..][..bytes(id)];
            // SAFETY: as above.
            unsafe { result::memcpy_dtoh_async(slot, address, stream.cu_stream()) }
                .map_err(|e| failed("output", e))?;
        }
        Ok(())
    }
}

/// Records what `queue` puts on the stream instead of running it.
fn capture(stream: &Arc<CudaStream>, queue: impl FnOnce() -> Result<()>) -> Result<Graphed> {
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).map_err(|e| failed("graph capture", e))?;
    let queued = queue();
    let graph = stream.end_capture(CUgraphInstantiate_flags(0));
    queued?;
    let graph = graph.map_err(|e| failed("graph capture", e))?;
    graph.map(Graphed).ok_or_else(|| Error::device("graph capture gave no graph"))
}

impl Session for CudaSession {
    fn max_rows(&self) -> usize {
        self.arena.as_ref().map_or(0, |a| a.memory.capacity)
    }

    fn reserve(&mut self, rows: usize) -> Result<()> {
        if rows <= self.max_rows() && self.arena.is_some() {
            return Ok(());
        }
        self.gpu.bind()?;
        // Once for the work space, once more with it.
        let (memory, _) = self.layout(rows, 0, 0)?;
        let scratch_bytes = self.lower(&memory, true)?.scratch_bytes;
        let (_, bytes) = self.layout(rows, scratch_bytes, 0)?;
        // The old arena goes first: both together may not fit.
        self.arena = None;
        let device = Buffer::new(&self.gpu, bytes, &format!("activations of {rows} rows"))?;
        let (memory, _) = self.layout(rows, scratch_bytes, device.address)?;
        let outside = (memory.rows - device.address) as usize;
        let staging = Pinned::new(&self.gpu, outside)?;
        let launches = self.lower(&memory, false)?.launches;
        self.arena =
            Some(Arena { memory, launches, recorded: HashMap::new(), staging, _device: device });
        Ok(())
    }

    fn run(&mut self, rows: usize, inputs: &[Input<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
        if let Some(why) = &self.broken {
            return Err(Error::device(format!("{}: failed before: {why}", self.graph.name)));
        }
        check_run(&self.graph, rows, inputs, outputs)?;
        if rows > self.max_rows() {
            let (name, room) = (&self.graph.name, self.max_rows());
            return Err(Error::usage(format!("{name}: {rows} rows, room for {room}")));
        }
        if rows == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        if let Err(error) = self.execute(rows, inputs) {
            // Nothing may still be writing to the staging memory when it is freed.
            let _ = self.stream.synchronize();
            self.broken = Some(error.to_string());
            return Err(error.context(self.graph.name.clone()));
        }
        let Some(Arena { memory, staging, .. }) = &mut self.arena else { return Ok(()) };
        let base = memory.start();
        for (output, &address) in outputs.iter_mut().zip(&memory.outputs) {
            let bytes = &staging.bytes()[(address - base) as usize..][..size_of_val(*output)];
            bytemuck::cast_slice_mut::<f32, u8>(output).copy_from_slice(bytes);
        }
        Ok(())
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
