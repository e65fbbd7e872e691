//! One batch on its way through the device: its pixels are copied in on one stream, its kernels run
//! on a second and its results are copied out on a third, each waiting for the one before by an
//! event. Two lanes keep all three streams busy: they share the arena of activations, which only the
//! second stream touches, and own their inputs and outputs.

use super::device::{Gpu, Pinned, failed};
use super::kept::{KeptRows, Place};
use super::launch::Launch;
use super::lower::Memory;
use super::preprocess::{Readied, Room};
use crate::backend::{HostMemory, Preparation};
use crate::error::{Error, Result};
use crate::graph::{Graph, Shape, TensorId};
use cudarc::driver::result;
use cudarc::driver::sys::{CUevent_flags_enum, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaEvent, CudaGraph, CudaStream};
use std::collections::HashMap;
use std::sync::Arc;

/// Most numbers of rows a lane keeps captured graphs for.
const MAX_GRAPHS: usize = 16;

/// Wakes who waits instead of letting him spin: the CPU has tiles to decode.
const SLEEPING: CUevent_flags_enum = CUevent_flags_enum::CU_EVENT_BLOCKING_SYNC;
/// Keeps the time.
const TIMED: CUevent_flags_enum = CUevent_flags_enum::CU_EVENT_DEFAULT;

/// The three streams of a session.
pub(super) struct Streams {
    pub copy_in: Arc<CudaStream>,
    pub compute: Arc<CudaStream>,
    pub copy_out: Arc<CudaStream>,
}

impl Streams {
    pub fn new(gpu: &Gpu) -> Result<Streams> {
        let stream = || gpu.context.new_stream().map_err(|e| failed("no stream", e));
        Ok(Streams { copy_in: stream()?, compute: stream()?, copy_out: stream()? })
    }

    /// Waits for everything, whatever became of it.
    pub fn settle(&self) {
        for stream in [&self.copy_in, &self.compute, &self.copy_out] {
            let _ = stream.synchronize();
        }
    }
}

/// The launches of a graph in order.
pub(super) struct Program {
    pub launches: Vec<Launch>,
    /// How many there are before the first step, and after each.
    pub marks: Vec<usize>,
}

impl Program {
    /// Queues the launches of a range.
    ///
    /// # Safety
    /// The addresses in the argument blocks are valid for `rows` rows.
    unsafe fn queue(
        &mut self,
        launches: std::ops::Range<usize>,
        stream: &CudaStream,
        rows: usize,
    ) -> Result<()> {
        for launch in &mut self.launches[launches] {
            // SAFETY: the caller's promise.
            unsafe { launch.queue(stream, rows) }?;
        }
        Ok(())
    }
}

/// How a number of rows was run before.
enum Recorded {
    Once,
    Graph(Graphed),
}

/// Captured launches.
struct Graphed(CudaGraph);

// SAFETY: a graph may be launched and freed from any thread, one at a time; the lane owns it.
unsafe impl Send for Graphed {}

/// An input as it is given.
pub(super) enum Source<'a> {
    /// Bytes on the host.
    Host(&'a [u8]),
    /// Rows on the device.
    Kept(&'a KeptRows, &'a [usize]),
}

/// What [`Lane::submit`] is given.
pub(super) struct Load {
    pub rows: usize,
    pub pixels: HostMemory,
    /// Those of the batch.
    pub bytes: usize,
    /// Where tiles go that the lane was readied for; the pixels are the network's input otherwise.
    pub tiles: Option<u64>,
    /// Where the results stay, which are those of one output; the host gets them otherwise.
    pub into: Option<Place>,
}

/// A batch under way, with everything that must outlive it.
struct UnderWay {
    rows: usize,
    pixels: Option<HostMemory>,
    into: Option<Place>,
}

/// A place for one batch.
pub(super) struct Lane {
    memory: Memory,
    program: Program,
    recorded: HashMap<usize, Recorded>,
    /// What was last done to tiles of this lane.
    readied: Option<Readied>,
    /// The outputs of the batch, laid out as on the device.
    results: Pinned,
    copied: CudaEvent,
    computed: CudaEvent,
    done: CudaEvent,
    batch: Option<UnderWay>,
}

impl Lane {
    /// A lane for `memory`, whose outputs take `result_bytes`.
    pub fn new(
        gpu: &Arc<Gpu>,
        memory: Memory,
        program: Program,
        result_bytes: usize,
    ) -> Result<Lane> {
        let event = || gpu.context.new_event(Some(SLEEPING)).map_err(|e| failed("no event", e));
        Ok(Lane {
            recorded: HashMap::new(),
            readied: None,
            results: Pinned::new(gpu, result_bytes)?,
            copied: event()?,
            computed: event()?,
            done: event()?,
            batch: None,
            memory,
            program,
        })
    }

    /// Starts a batch whose inputs lie in memory of the caller; it ends with [`Lane::finish`].
    ///
    /// # Safety
    /// The inputs have the sizes of the graph's inputs for `rows` rows, within the capacity, and
    /// stay where they are until the batch has been waited for.
    pub unsafe fn start<'i>(
        &mut self,
        streams: &Streams,
        graph: &Graph,
        rows: usize,
        inputs: impl Iterator<Item = Source<'i>>,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.copy_in(streams, inputs) }?;
        self.compute(&streams.compute, rows)?;
        self.batch = Some(UnderWay { rows, pixels: None, into: None });
        self.copy_out(streams, graph)
    }

    /// Readies the lane for tiles of a preparation that come at `tiles`; no batch of it is under way.
    ///
    /// # Errors
    /// A driver call that failed, or no memory for the tables.
    pub fn ready(
        &mut self,
        gpu: &Arc<Gpu>,
        streams: &Streams,
        how: &Arc<Preparation>,
        tiles: u64,
        room: &Room,
    ) -> Result<()> {
        if !self.readied.as_ref().is_some_and(|readied| readied.is_of(how)) {
            let input = self.memory.inputs.first().copied().unwrap_or_default();
            self.readied = Some(Readied::new(gpu, &streams.copy_in, how, [tiles, input], room)?);
        }
        Ok(())
    }

    /// Starts a batch and has its pixels until it is finished.
    ///
    /// # Errors
    /// A driver call that failed; the streams must then settle before the lane is dropped.
    pub fn submit(&mut self, streams: &Streams, graph: &Graph, load: Load) -> Result<()> {
        let Load { rows, pixels, bytes, tiles, into } = load;
        // Stored before anything is queued: what a failing call leaves behind may still be copied.
        let batch = self.batch.insert(UnderWay { rows, pixels: Some(pixels), into });
        let Some(pixels) = &batch.pixels else { return Ok(()) };
        let (at, len) = (pixels.as_ptr(), bytes.min(pixels.len()));
        // SAFETY: the lane owns the memory, which does not move, until the batch is collected.
        let bytes = unsafe { std::slice::from_raw_parts(at, len) };
        match tiles {
            // SAFETY: as above.
            None => unsafe { self.copy_in(streams, std::iter::once(Source::Host(bytes))) }?,
            Some(address) => {
                let tiles = std::iter::once((Source::Host(bytes), address));
                // SAFETY: as above, and the room for tiles was made for at least this many bytes.
                unsafe { copy_in(streams, &self.copied, tiles) }?;
                streams.compute.wait(&self.copied).map_err(|e| failed("tiles", e))?;
                if let Some(readied) = &mut self.readied {
                    // SAFETY: the input and the room for tiles were laid out for this many rows.
                    unsafe { readied.queue(&streams.compute, rows) }?;
                }
            }
        }
        self.compute(&streams.compute, rows)?;
        self.copy_out(streams, graph)
    }

    /// As [`Lane::start`], adding to `seconds` what each step takes; waits for the kernels.
    ///
    /// # Safety
    /// As [`Lane::start`].
    pub unsafe fn start_timed<'i>(
        &mut self,
        streams: &Streams,
        graph: &Graph,
        rows: usize,
        inputs: impl Iterator<Item = Source<'i>>,
        seconds: &mut [f64],
    ) -> Result<()> {
        let stream = &streams.compute;
        let fail = |e| failed("timing", e);
        // SAFETY: the caller's promise.
        unsafe { self.copy_in(streams, inputs) }?;
        stream.wait(&self.copied).map_err(fail)?;
        let mut times = Vec::with_capacity(self.program.marks.len());
        let mut from = 0;
        for i in 0..self.program.marks.len() {
            let end = self.program.marks[i];
            // SAFETY: the arena was laid out for at least this many rows.
            unsafe { self.program.queue(from..end, stream, rows) }?;
            times.push(stream.record_event(Some(TIMED)).map_err(fail)?);
            from = end;
        }
        self.batch = Some(UnderWay { rows, pixels: None, into: None });
        self.copy_out(streams, graph)?;
        stream.synchronize().map_err(fail)?;
        for (pair, seconds) in times.windows(2).zip(seconds) {
            *seconds += f64::from(pair[0].elapsed_ms(&pair[1]).map_err(fail)?) * 1e-3;
        }
        Ok(())
    }

    /// Waits for the batch, hands its results to `outputs`, none if they stay, and gives its pixels
    /// back.
    pub fn finish(&mut self, outputs: &mut [&mut [f32]]) -> Result<Option<HostMemory>> {
        self.done.synchronize().map_err(|e| failed("the run failed", e))?;
        let base = self.memory.outputs.first().copied().unwrap_or_default();
        for (output, &address) in outputs.iter_mut().zip(&self.memory.outputs) {
            let bytes = &self.results[(address - base) as usize..][..size_of_val(*output)];
            bytemuck::cast_slice_mut::<f32, u8>(output).copy_from_slice(bytes);
        }
        Ok(self.batch.take().and_then(|batch| batch.pixels))
    }

    /// Rows of the batch under way.
    pub fn rows(&self) -> Option<usize> {
        self.batch.as_ref().map(|batch| batch.rows)
    }

    /// Whether the results of the batch under way stay on the device.
    pub fn keeps(&self) -> bool {
        self.batch.as_ref().is_some_and(|batch| batch.into.is_some())
    }

    /// # Safety
    /// As [`Lane::start`].
    unsafe fn copy_in<'i>(
        &mut self,
        streams: &Streams,
        inputs: impl Iterator<Item = Source<'i>>,
    ) -> Result<()> {
        let placed = inputs.zip(self.memory.inputs.iter().copied());
        // SAFETY: the layout gives the input this many bytes, and the caller keeps the source.
        unsafe { copy_in(streams, &self.copied, placed) }
    }

    fn compute(&mut self, stream: &Arc<CudaStream>, rows: usize) -> Result<()> {
        stream.wait(&self.copied).map_err(|e| failed("input", e))?;
        let all = 0..self.program.launches.len();
        // A number of rows that comes back is worth a graph; one that does not is queued once.
        match self.recorded.get(&rows) {
            Some(Recorded::Graph(graph)) => graph.0.launch().map_err(|e| failed("graph launch", e)),
            Some(Recorded::Once) => {
                // SAFETY: the arena was laid out for at least this many rows.
                let graph = capture(stream, || unsafe { self.program.queue(all, stream, rows) })?;
                graph.0.launch().map_err(|e| failed("graph launch", e))?;
                self.recorded.insert(rows, Recorded::Graph(graph));
                Ok(())
            }
            None => {
                // SAFETY: as above.
                unsafe { self.program.queue(all, stream, rows) }?;
                if self.recorded.len() < MAX_GRAPHS {
                    self.recorded.insert(rows, Recorded::Once);
                }
                Ok(())
            }
        }
    }

    /// The outputs of the batch: to the host, or to where they stay.
    fn copy_out(&mut self, streams: &Streams, graph: &Graph) -> Result<()> {
        let fail = |e| failed("output", e);
        let Some(batch) = &self.batch else { return Ok(()) };
        let stream = streams.copy_out.cu_stream();
        self.computed.record(&streams.compute).map_err(fail)?;
        streams.copy_out.wait(&self.computed).map_err(fail)?;
        let base = self.memory.outputs.first().copied().unwrap_or_default();
        for (&id, &address) in graph.outputs.iter().zip(&self.memory.outputs) {
            let bytes = outside_bytes(graph, id, batch.rows);
            let copied = match &batch.into {
                None => {
                    let to = &mut self.results[(address - base) as usize..][..bytes];
                    // SAFETY: the layout gives the output this many bytes on both sides, and the
                    // host side is not touched before `done` has been waited for.
                    unsafe { result::memcpy_dtoh_async(to, address, stream) }
                }
                Some(to) => {
                    let bytes = bytes.min(to.bytes);
                    // SAFETY: as above; the batch has the place until then.
                    unsafe { result::memcpy_dtod_async(to.address, address, bytes, stream) }
                }
            };
            copied.map_err(fail)?;
        }
        self.done.record(&streams.copy_out).map_err(fail)
    }
}

/// Copies inputs to their addresses and records when that is done. Whoever used the lane before has been
/// waited for, so nothing still reads what lies there.
///
/// # Safety
/// There is room for the bytes, which stay where they are until the batch has been waited for. Kept
/// rows are there.
unsafe fn copy_in<'i>(
    streams: &Streams,
    copied: &CudaEvent,
    placed: impl Iterator<Item = (Source<'i>, u64)>,
) -> Result<()> {
    let (stream, fail) = (streams.copy_in.cu_stream(), |e| failed("input", e));
    for (source, mut to) in placed {
        match source {
            Source::Host(bytes) => {
                // SAFETY: the caller's promise.
                unsafe { result::memcpy_htod_async(to, bytes, stream) }.map_err(fail)?;
            }
            Source::Kept(from, rows) => {
                for (from, bytes) in from.pieces(rows) {
                    // SAFETY: as above.
                    unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }.map_err(fail)?;
                    to += bytes as u64;
                }
            }
        }
    }
    copied.record(&streams.copy_in).map_err(fail)
}

/// Bytes of a graph input or output of `rows` rows as the caller holds it: u8 pixels, else f32.
pub(super) fn outside_bytes(graph: &Graph, id: TensorId, rows: usize) -> usize {
    let shape = graph.shape(id);
    let number = if matches!(shape, Shape::Pixels { .. }) { 1 } else { 4 };
    shape.len() * if shape.is_bag() { 1 } else { rows } * number
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
