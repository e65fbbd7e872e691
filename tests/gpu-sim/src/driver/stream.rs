//! Streams as queues: an operation runs when the program waits for it, or for something after it.
//! A stream that nobody waits for does not move, so a missing event or synchronisation shows as
//! data that is not there yet. `GPU_SIM_EAGER=1` runs everything at once instead.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::device::current_device;
use super::module::Launch;
use super::state::{Handle, State, lock, state};
use super::{Driven, HostRange, report, status};

/// What a stream does.
pub enum Work {
    Launch(Launch),
    /// Bytes taken when the call was made (pageable memory).
    Store {
        to: u64,
        bytes: Vec<u8>,
    },
    CopyIn {
        to: u64,
        from: HostRange,
    },
    CopyOut {
        to: HostRange,
        from: u64,
    },
    CopyWithin {
        to: u64,
        from: u64,
        size: usize,
    },
    /// `count` elements of 1, 2 or 4 bytes.
    Fill {
        to: u64,
        element: Vec<u8>,
        count: usize,
    },
    Free {
        address: u64,
    },
    Record {
        event: Arc<Event>,
        ticket: u64,
    },
    Await {
        event: Arc<Event>,
        ticket: u64,
        stream: Arc<Stream>,
    },
    Graph(Arc<Graph>),
    Host {
        function: extern "C" fn(usize),
        argument: usize,
    },
}

/// An event: tickets count its records.
#[derive(Default)]
pub struct Event {
    /// Newest record: ticket and stream.
    pub recorded: Mutex<Option<(u64, Arc<Stream>)>>,
    tickets: AtomicU64,
    done: AtomicU64,
    time: Mutex<Option<Instant>>,
    /// The capture in which it was recorded last.
    capture: Mutex<Option<Arc<Capture>>>,
}

/// A capture in progress: the operations of all streams that joined it, in order.
#[derive(Default)]
pub struct Capture {
    work: Mutex<Vec<Arc<Work>>>,
}

/// A captured graph.
#[derive(Default)]
pub struct Graph {
    work: Vec<Arc<Work>>,
}

impl Graph {
    /// Number of operations.
    pub fn len(&self) -> usize {
        self.work.len()
    }
}

/// A stream.
#[derive(Default)]
pub struct Stream {
    queue: Mutex<VecDeque<Arc<Work>>>,
    /// Held while an operation is taken and run, so that who finds the queue empty knows that
    /// everything has run. Waits follow the order of submission, so they never go round.
    busy: Mutex<()>,
    capture: Mutex<Option<Arc<Capture>>>,
    /// Began the capture.
    origin: Mutex<bool>,
    /// Of the context it was made in.
    pub device: usize,
    /// Takes part in the synchronisation of the null stream.
    pub blocking: bool,
}

/// The stream of a handle; 0, 1 and 2 are the null stream of the current device.
pub fn stream(state: &State, handle: Handle) -> Driven<Arc<Stream>> {
    static NULL: Mutex<BTreeMap<usize, Arc<Stream>>> = Mutex::new(BTreeMap::new());
    match handle {
        0..=2 => {
            let mut streams = lock(&NULL);
            let null = streams.entry(current_device());
            Ok(Arc::clone(null.or_insert_with(|| Arc::new(Stream::new(true)))))
        }
        _ => state.streams.get(handle),
    }
}

impl Stream {
    /// A stream of the current device; a blocking one takes part in the synchronisation of the null
    /// stream.
    pub fn new(blocking: bool) -> Stream {
        Stream { blocking, device: current_device(), ..Stream::default() }
    }

    /// Queues work, or adds it to the capture of the stream.
    pub fn submit(&self, work: Work) -> Driven {
        if let Some(capture) = &*lock(&self.capture) {
            return match work {
                Work::Free { .. } => Err(status::STREAM_CAPTURE_UNSUPPORTED),
                work => {
                    lock(&capture.work).push(Arc::new(work));
                    Ok(())
                }
            };
        }
        lock(&self.queue).push_back(Arc::new(work));
        if state().config.eager { self.finish() } else { Ok(()) }
    }

    /// Whether a capture is going on.
    pub fn is_capturing(&self) -> bool {
        lock(&self.capture).is_some()
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        lock(&self.queue).is_empty()
    }

    /// Runs everything that is queued.
    pub fn finish(&self) -> Driven {
        if self.is_capturing() {
            return Err(status::STREAM_CAPTURE_UNSUPPORTED);
        }
        while self.step()? {}
        Ok(())
    }

    /// Runs the next operation; `false` if there is none.
    fn step(&self) -> Driven<bool> {
        let _busy = lock(&self.busy);
        let Some(work) = lock(&self.queue).pop_front() else { return Ok(false) };
        let state = State::usable()?;
        if let Work::Await { event, ticket, stream } = &*work {
            while event.done.load(SeqCst) < *ticket && stream.step()? {}
            return Ok(true);
        }
        let result = {
            let _one_at_a_time = lock(&state.running);
            run(state, self.device, &work)
        };
        if let Err(code) = result {
            state.fail(code);
            lock(&self.queue).clear();
        }
        result.map(|()| true)
    }

    /// Records an event here.
    pub fn record(self: &Arc<Self>, event: &Arc<Event>) -> Driven {
        if let Some(capture) = &*lock(&self.capture) {
            *lock(&event.capture) = Some(Arc::clone(capture));
            return Ok(());
        }
        *lock(&event.capture) = None;
        let ticket = event.tickets.fetch_add(1, SeqCst) + 1;
        *lock(&event.recorded) = Some((ticket, Arc::clone(self)));
        self.submit(Work::Record { event: Arc::clone(event), ticket })
    }

    /// Makes what follows wait for an event. An event of a capture draws the stream into it.
    pub fn wait(&self, event: &Arc<Event>) -> Driven {
        if let Some(capture) = &*lock(&event.capture) {
            let mut own = lock(&self.capture);
            return match &*own {
                Some(active) if !Arc::ptr_eq(active, capture) => Err(status::CAPTURED_EVENT),
                _ => {
                    *own = Some(Arc::clone(capture));
                    Ok(())
                }
            };
        }
        if self.is_capturing() {
            // An event from outside orders nothing inside a graph; the real driver refuses it.
            return Err(status::CAPTURED_EVENT);
        }
        match &*lock(&event.recorded) {
            None => Ok(()),
            Some((ticket, stream)) => {
                let (event, stream) = (Arc::clone(event), Arc::clone(stream));
                self.submit(Work::Await { event, ticket: *ticket, stream })
            }
        }
    }

    /// Starts a capture.
    pub fn begin_capture(&self) -> Driven {
        let mut capture = lock(&self.capture);
        if capture.is_some() {
            return Err(status::STREAM_CAPTURE_UNMATCHED);
        }
        *capture = Some(Arc::default());
        *lock(&self.origin) = true;
        Ok(())
    }

    /// Ends the capture that began here; all streams leave it.
    pub fn end_capture(&self, state: &State) -> Driven<Graph> {
        if !std::mem::take(&mut *lock(&self.origin)) {
            return Err(status::STREAM_CAPTURE_UNMATCHED);
        }
        let capture = lock(&self.capture).take().ok_or(status::STREAM_CAPTURE_UNMATCHED)?;
        for other in state.streams.all() {
            let mut theirs = lock(&other.capture);
            if theirs.as_ref().is_some_and(|c| Arc::ptr_eq(c, &capture)) {
                *theirs = None;
            }
        }
        let work = std::mem::take(&mut *lock(&capture.work));
        Ok(Graph { work })
    }
}

impl Event {
    /// Waits until the newest record has happened.
    pub fn finish(&self) -> Driven {
        let recorded = lock(&self.recorded).clone();
        let Some((ticket, stream)) = recorded else { return Ok(()) };
        while self.done.load(SeqCst) < ticket && stream.step()? {}
        Ok(())
    }

    /// Whether the newest record has happened.
    pub fn is_done(&self) -> bool {
        let recorded = lock(&self.recorded);
        recorded.as_ref().is_none_or(|(ticket, _)| self.done.load(SeqCst) >= *ticket)
    }

    /// When it last happened.
    pub fn time(&self) -> Option<Instant> {
        *lock(&self.time)
    }
}

/// Runs all streams of the current device to their end.
pub fn finish_all(state: &State) -> Driven {
    stream(state, 0)?.finish()?;
    for stream in state.streams.all() {
        if !stream.is_capturing() && stream.device == current_device() {
            stream.finish()?;
        }
    }
    Ok(())
}

/// What a synchronous operation of the null stream waits for: itself and all blocking streams.
pub fn finish_null(state: &State) -> Driven {
    stream(state, 0)?.finish()?;
    for stream in state.streams.all() {
        if stream.blocking && stream.device == current_device() {
            stream.finish()?;
        }
    }
    Ok(())
}

/// Runs one operation on a device.
pub fn run(state: &State, device: usize, work: &Work) -> Driven {
    let memory = state.memory(device);
    let find = |address: u64, size: usize| {
        memory.find(address, size).map_err(|e| {
            report(format_args!("memory operation on {e}"));
            status::LAUNCH_FAILED
        })
    };
    if state.config.trace {
        match work {
            Work::Store { bytes, .. } => report(format_args!("copy in, {} bytes", bytes.len())),
            Work::CopyIn { from, .. } => report(format_args!("copy in, {} bytes", from.size)),
            Work::CopyOut { to, .. } => report(format_args!("copy out, {} bytes", to.size)),
            Work::CopyWithin { size, .. } => report(format_args!("copy within, {size} bytes")),
            _ => {}
        }
    }
    match work {
        Work::Launch(launch) => launch.run(state),
        Work::Store { to, bytes } => {
            let (to, offset) = find(*to, bytes.len())?;
            to.write(offset, bytes);
            Ok(())
        }
        Work::CopyIn { to, from } => {
            let (to, offset) = find(*to, from.size)?;
            to.write(offset, &from.read());
            Ok(())
        }
        Work::CopyOut { to, from } => {
            let (from, offset) = find(*from, to.size)?;
            let mut bytes = vec![0; to.size];
            from.read(offset, &mut bytes);
            to.write(&bytes);
            Ok(())
        }
        Work::CopyWithin { to, from, size } => {
            let ((to, at), (from, start)) = (find(*to, *size)?, find(*from, *size)?);
            to.copy_from(at, &from, start, *size);
            Ok(())
        }
        Work::Fill { to, element, count } => {
            let (to, offset) = find(*to, element.len() * count)?;
            match element.as_slice() {
                [byte] => to.fill(offset, *count, *byte),
                element => to.write(offset, &element.repeat(*count)),
            }
            Ok(())
        }
        Work::Free { address } => match memory.free(*address) {
            true => Ok(()),
            false => Err(status::INVALID_VALUE),
        },
        Work::Record { event, ticket } => {
            *lock(&event.time) = Some(Instant::now());
            event.done.store(*ticket, SeqCst);
            Ok(())
        }
        // Waits are taken care of by the stream; inside a graph the order is the recorded one.
        Work::Await { .. } => Ok(()),
        Work::Graph(graph) => graph.work.iter().try_for_each(|work| run(state, device, work)),
        Work::Host { function, argument } => {
            function(*argument);
            Ok(())
        }
    }
}
