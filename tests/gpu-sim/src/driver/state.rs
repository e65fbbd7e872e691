//! The driver's state: configuration, device memory and tables of handles. Handles are numbers that
//! are looked up, never pointers that are followed, so a stale one is an error and not a crash.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use super::module::{Function, Image};
use super::stream::{Event, Graph, Stream};
use super::{Driven, report, status};
use crate::block::Checks;
use crate::global::DeviceMemory;
use crate::machine::Options;

/// Everything.
pub struct State {
    pub config: Config,
    /// Of each device.
    memories: Vec<DeviceMemory>,
    pub modules: Table<Image>,
    pub functions: Table<Function>,
    pub streams: Table<Stream>,
    pub events: Table<Event>,
    pub graphs: Table<Graph>,
    /// Page-locked host memory: address and size.
    pub pinned: Mutex<BTreeMap<usize, usize>>,
    /// One operation runs at a time.
    pub running: Mutex<()>,
    initialised: AtomicI32,
    failed: AtomicI32,
    launches: AtomicU64,
    allocations: AtomicU64,
}

/// What the environment asks for.
pub struct Config {
    pub capability: (i32, i32),
    /// CUDA version to report, which bounds the PTX that is accepted.
    pub driver: (i32, i32),
    pub devices: i32,
    pub multiprocessors: i32,
    pub eager: bool,
    pub trace: bool,
    pub options: Options,
    memory: u64,
    fail_launch: u64,
    fail_alloc: u64,
}

impl Config {
    fn from_environment() -> Config {
        let text = |name: &str| std::env::var(name).ok();
        let number = |name: &str| {
            let value = text(name)?;
            let parsed = value.parse::<u64>().ok();
            if parsed.is_none() {
                report(format_args!("{name}={value:?} is not a number and is ignored"));
            }
            parsed
        };
        let flag = |name: &str| text(name).is_some_and(|v| v != "0" && !v.is_empty());
        let pair = |name: &str, default: (i32, i32)| {
            let Some(value) = text(name) else { return default };
            let parsed = value
                .split_once('.')
                .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
            parsed.unwrap_or_else(|| {
                let (major, minor) = default;
                report(format_args!("{name}={value:?} is not like {major}.{minor} and is ignored"));
                default
            })
        };
        let checked = text("GPU_SIM_CHECK").is_none_or(|v| v != "0");
        Config {
            capability: pair("GPU_SIM_CC", (8, 0)),
            driver: pair("GPU_SIM_DRIVER", (12, 9)),
            devices: number("GPU_SIM_DEVICES").unwrap_or(1).min(16) as i32,
            multiprocessors: number("GPU_SIM_SMS").unwrap_or(4).clamp(1, 1024) as i32,
            eager: flag("GPU_SIM_EAGER"),
            trace: flag("GPU_SIM_TRACE"),
            options: Options {
                workers: number("GPU_SIM_THREADS").unwrap_or(2).clamp(1, 64) as usize,
                checks: Checks { races: checked, unwritten: checked },
                ..Options::default()
            },
            memory: number("GPU_SIM_MEMORY").unwrap_or(16 << 30),
            fail_launch: number("GPU_SIM_FAIL_LAUNCH").unwrap_or(0),
            fail_alloc: number("GPU_SIM_FAIL_ALLOC").unwrap_or(0),
        }
    }

    /// Newest PTX ISA version of the driver: PTX ISA manual, release notes.
    pub fn newest_ptx(&self) -> (u32, u32) {
        let (major, minor) = (self.driver.0 as u32, self.driver.1 as u32);
        match major {
            12 if minor >= 6 => (8, minor - 1),
            _ => (major.saturating_sub(4), minor),
        }
    }

    /// Shared memory a block may ask for.
    pub fn shared_limit(&self) -> i32 {
        1024 * match self.capability {
            (7, 5) => 64,
            (8, 0 | 7) => 163,
            (9 | 10, _) => 227,
            _ => 99,
        }
    }
}

/// The driver's state, made at the first call.
pub fn state() -> &'static State {
    static STATE: OnceLock<State> = OnceLock::new();
    STATE.get_or_init(|| {
        let config = Config::from_environment();
        State {
            memories: (0..config.devices.max(1) as usize)
                .map(|device| DeviceMemory::new(config.memory, device))
                .collect(),
            launches: AtomicU64::new(0),
            allocations: AtomicU64::new(0),
            config,
            modules: Table::new(0x1000_0000),
            functions: Table::new(0x2000_0000),
            streams: Table::new(0x3000_0000),
            events: Table::new(0x4000_0000),
            graphs: Table::new(0x5000_0000),
            pinned: Mutex::default(),
            running: Mutex::default(),
            initialised: AtomicI32::new(0),
            failed: AtomicI32::new(status::SUCCESS),
        }
    })
}

impl State {
    /// `cuInit` was called.
    pub fn initialise(&self) -> Driven {
        self.initialised.store(1, Relaxed);
        if self.config.devices == 0 { Err(status::NO_DEVICE) } else { Ok(()) }
    }

    /// The state, unless the driver is not initialised or has failed.
    pub fn usable() -> Driven<&'static State> {
        let state = state();
        match (state.initialised.load(Relaxed), state.failed.load(Relaxed)) {
            (0, _) => Err(status::NOT_INITIALIZED),
            (_, status::SUCCESS) => Ok(state),
            (_, code) => Err(code),
        }
    }

    /// As [`State::usable`], with a context current in this thread.
    pub fn in_context() -> Driven<&'static State> {
        let state = State::usable()?;
        match super::device::current() {
            0 => Err(status::INVALID_CONTEXT),
            _ => Ok(state),
        }
    }

    /// The memory of a device.
    pub fn memory(&self, device: usize) -> &DeviceMemory {
        &self.memories[device.min(self.memories.len() - 1)]
    }

    /// Counts a launch that is about to run; whether it is the one that shall fail.
    pub fn launch_fails(&self) -> bool {
        self.launches.fetch_add(1, Relaxed) + 1 == self.config.fail_launch
    }

    /// Counts an allocation; whether it is the one that shall fail.
    pub fn allocation_fails(&self) -> bool {
        self.allocations.fetch_add(1, Relaxed) + 1 == self.config.fail_alloc
    }

    /// The context is lost: every later call returns this.
    pub fn fail(&self, code: i32) {
        self.failed.store(code, Relaxed);
    }

    /// Whether host memory is page-locked.
    pub fn is_pinned(&self, address: usize, size: usize) -> bool {
        let pinned = lock(&self.pinned);
        pinned
            .range(..=address)
            .next_back()
            .is_some_and(|(start, len)| address + size <= start + len)
    }
}

/// A mutex whose holder panicked still guards consistent data here.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Objects by handle.
pub struct Table<T> {
    next: AtomicUsize,
    items: Mutex<HashMap<usize, Arc<T>>>,
}

/// A handle as C code holds it.
pub type Handle = usize;

impl<T> Table<T> {
    fn new(first: usize) -> Table<T> {
        Table { next: AtomicUsize::new(first), items: Mutex::default() }
    }

    pub fn add(&self, item: T) -> Handle {
        self.add_shared(Arc::new(item))
    }

    pub fn add_shared(&self, item: Arc<T>) -> Handle {
        let handle = self.next.fetch_add(16, Relaxed);
        lock(&self.items).insert(handle, item);
        handle
    }

    pub fn get(&self, handle: Handle) -> Driven<Arc<T>> {
        lock(&self.items).get(&handle).cloned().ok_or(status::INVALID_HANDLE)
    }

    pub fn remove(&self, handle: Handle) -> Driven<Arc<T>> {
        lock(&self.items).remove(&handle).ok_or(status::INVALID_HANDLE)
    }

    pub fn all(&self) -> Vec<Arc<T>> {
        let mut items: Vec<_> =
            lock(&self.items).iter().map(|(h, i)| (*h, Arc::clone(i))).collect();
        items.sort_by_key(|(handle, _)| *handle);
        items.into_iter().map(|(_, item)| item).collect()
    }
}
