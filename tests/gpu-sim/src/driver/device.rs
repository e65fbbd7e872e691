//! Initialisation, devices and contexts. Functions are documented by the CUDA driver API manual.
#![allow(missing_docs, non_snake_case)]

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint, c_void};

use super::state::{State, state};
use super::stream::finish_all;
use super::{Driven, In, Out, Status, call, status};

/// Primary contexts are this plus the ordinal.
const CONTEXT: usize = 0x100;

thread_local! {
    static CURRENT: Cell<Contexts> = const { Cell::new(Contexts { top: 0, below: 0 }) };
}

/// The current context and the one that it was pushed on.
#[derive(Clone, Copy)]
struct Contexts {
    top: usize,
    below: usize,
}

/// The context current in this thread, 0 for none.
pub fn current() -> usize {
    CURRENT.with(Cell::get).top
}

/// The ordinal of the current device, the first when there is no context.
pub fn current_device() -> usize {
    current().saturating_sub(CONTEXT)
}

fn device(ordinal: c_int) -> Driven<c_int> {
    let count = state().config.devices;
    if (0..count).contains(&ordinal) { Ok(ordinal) } else { Err(status::INVALID_DEVICE) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> Status {
    call(|| state().initialise())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDriverGetVersion(version: Out<c_int>) -> Status {
    let (major, minor) = state().config.driver;
    call(|| version.set(1000 * major + 10 * minor))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetCount(count: Out<c_int>) -> Status {
    call(|| count.set(State::usable()?.config.devices))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGet(out: Out<c_int>, ordinal: c_int) -> Status {
    call(|| {
        State::usable()?;
        out.set(device(ordinal)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetName(name: Out<c_char>, len: c_int, dev: c_int) -> Status {
    call(|| {
        device(dev)?;
        let room = usize::try_from(len).ok().filter(|n| *n > 0).ok_or(status::INVALID_VALUE)?;
        let text = b"gpu-sim PTX interpreter".iter().take(room - 1).chain(b"\0");
        name.set_all(text.map(|b| *b as c_char))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetUuid_v2(uuid: Out<u8>, dev: c_int) -> Status {
    call(|| {
        let last = device(dev)? as u8;
        uuid.set_all(b"gpu-sim-device-".iter().copied().chain([last]))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetUuid(uuid: Out<u8>, dev: c_int) -> Status {
    cuDeviceGetUuid_v2(uuid, dev)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, dev: c_int) -> Status {
    call(|| {
        let ordinal = device(dev)? as usize;
        bytes.set(state().memory(ordinal).info().1 as usize)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetAttribute(value: Out<c_int>, which: c_int, dev: c_int) -> Status {
    call(|| {
        device(dev)?;
        value.set(attribute(which).ok_or(status::INVALID_VALUE)?)
    })
}

/// `CUdevice_attribute`, the entries that programs ask for.
fn attribute(which: c_int) -> Option<c_int> {
    let config = &state().config;
    let (major, minor) = config.capability;
    Some(match which {
        1..=3 => 1024,
        4 => 64,
        5 => i32::MAX,
        6 | 7 => 65_535,
        8 => 48 << 10,
        9 => 64 << 10,
        10 => 32,
        12 | 82 => 65_536,
        13 | 36 => 1_000_000,
        14 => 512,
        15 | 19 | 31 | 41 | 78 | 79 | 83 | 90 | 91 | 95 | 115 => 1,
        16 => config.multiprocessors,
        37 => 256,
        38 => 32 << 20,
        39 => 1536,
        40 => 2,
        75 => major,
        76 => minor,
        81 => config.shared_limit() + 1024,
        97 => config.shared_limit(),
        106 => 16,
        111 => 1024,
        120 => c_int::from(major >= 9),
        0..=160 => 0,
        _ => return None,
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRetain(context: Out<usize>, dev: c_int) -> Status {
    call(|| {
        State::usable()?;
        context.set(CONTEXT + device(dev)? as usize)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(dev: c_int) -> Status {
    call(|| device(dev).map(drop))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxGetState(
    dev: c_int,
    flags: Out<c_uint>,
    active: Out<c_int>,
) -> Status {
    call(|| {
        device(dev)?;
        flags.set_optional(0);
        active.set(1)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: usize) -> Status {
    call(|| {
        let known =
            context == 0 || (context >= CONTEXT && device((context - CONTEXT) as c_int).is_ok());
        if !known {
            return Err(status::INVALID_CONTEXT);
        }
        CURRENT.with(|c| c.set(Contexts { top: context, ..c.get() }));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetCurrent(context: Out<usize>) -> Status {
    call(|| context.set(current()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxPushCurrent_v2(context: usize) -> Status {
    let below = current();
    let code = cuCtxSetCurrent(context);
    if code == status::SUCCESS {
        CURRENT.with(|c| c.set(Contexts { top: context, below }));
    }
    code
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxPopCurrent_v2(context: Out<usize>) -> Status {
    call(|| {
        let Contexts { top, below } = CURRENT.with(Cell::get);
        context.set_optional(top);
        CURRENT.with(|c| c.set(Contexts { top: below, below: 0 }));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetDevice(dev: Out<c_int>) -> Status {
    call(|| match current() {
        0 => Err(status::INVALID_CONTEXT),
        context => dev.set((context - CONTEXT) as c_int),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> Status {
    call(|| finish_all(State::in_context()?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetLimit(_limit: c_int, _value: usize) -> Status {
    call(|| State::in_context().map(drop))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetLimit(value: Out<usize>, _limit: c_int) -> Status {
    call(|| value.set(0))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCacheConfig(_config: c_int) -> Status {
    status::SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetCacheConfig(config: Out<c_int>) -> Status {
    call(|| config.set(0))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetFlags(_flags: c_uint) -> Status {
    status::SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetStreamPriorityRange(least: Out<c_int>, greatest: Out<c_int>) -> Status {
    call(|| {
        least.set_optional(0);
        greatest.set_optional(-5);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuProfilerStart() -> Status {
    status::SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuProfilerStop() -> Status {
    status::SUCCESS
}

/// Private tables of the real driver. NVRTC asks for one and lives without it.
#[unsafe(no_mangle)]
pub extern "C" fn cuGetExportTable(table: Out<*const c_void>, _id: In<u8>) -> Status {
    table.set_optional(std::ptr::null());
    status::NOT_FOUND
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetProcAddress_v2(
    _symbol: In<c_char>,
    function: Out<*const c_void>,
    _version: c_int,
    _flags: u64,
    found: Out<c_int>,
) -> Status {
    function.set_optional(std::ptr::null());
    found.set_optional(1);
    status::NOT_FOUND
}
