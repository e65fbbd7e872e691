//! Streams and events. Functions are documented by the CUDA driver API manual.
#![allow(missing_docs, non_snake_case)]

use std::ffi::{c_int, c_uint};
use std::sync::Arc;

use super::state::{Handle, State};
use super::stream::{Stream, Work, stream};
use super::{Out, Status, call, status};

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: c_uint = 1;

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreate(out: Out<Handle>, flags: c_uint) -> Status {
    call(|| {
        let state = State::in_context()?;
        let blocking = flags & NON_BLOCKING == 0;
        out.set(state.streams.add(Stream::new(blocking)))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreateWithPriority(
    out: Out<Handle>,
    flags: c_uint,
    _priority: c_int,
) -> Status {
    cuStreamCreate(out, flags)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(on: Handle) -> Status {
    call(|| {
        let state = State::usable()?;
        let stream = state.streams.remove(on)?;
        if stream.is_capturing() { Ok(()) } else { stream.finish() }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(on: Handle) -> Status {
    call(|| stream(State::in_context()?, on)?.finish())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamQuery(on: Handle) -> Status {
    call(|| {
        let stream = stream(State::in_context()?, on)?;
        // Somebody polls: the work has to come to an end.
        let idle = stream.is_idle();
        stream.finish()?;
        if idle { Ok(()) } else { Err(status::NOT_READY) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(on: Handle, event: Handle, _flags: c_uint) -> Status {
    call(|| {
        let state = State::in_context()?;
        stream(state, on)?.wait(&state.events.get(event)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamAttachMemAsync(_on: Handle, _p: u64, _n: usize, _f: c_uint) -> Status {
    status::NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchHostFunc(
    on: Handle,
    function: Option<extern "C" fn(usize)>,
    argument: usize,
) -> Status {
    call(|| {
        let function = function.ok_or(status::INVALID_VALUE)?;
        stream(State::in_context()?, on)?.submit(Work::Host { function, argument })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventCreate(out: Out<Handle>, _flags: c_uint) -> Status {
    call(|| out.set(State::in_context()?.events.add(Default::default())))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: Handle) -> Status {
    call(|| State::usable()?.events.remove(event).map(drop))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: Handle, on: Handle) -> Status {
    call(|| {
        let state = State::in_context()?;
        stream(state, on)?.record(&state.events.get(event)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: Handle) -> Status {
    call(|| State::usable()?.events.get(event)?.finish())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: Handle) -> Status {
    call(|| {
        let event = State::usable()?.events.get(event)?;
        let done = event.is_done();
        event.finish()?;
        if done { Ok(()) } else { Err(status::NOT_READY) }
    })
}

fn elapsed(ms: Out<f32>, from: Handle, to: Handle) -> Status {
    call(|| {
        let events = &State::usable()?.events;
        let [from, to]: [Arc<_>; 2] = [events.get(from)?, events.get(to)?];
        match (from.is_done(), to.is_done(), from.time(), to.time()) {
            (_, _, None, _) | (_, _, _, None) => Err(status::INVALID_HANDLE),
            (true, true, Some(from), Some(to)) => {
                ms.set(to.saturating_duration_since(from).as_secs_f32() * 1e3)
            }
            _ => Err(status::NOT_READY),
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventElapsedTime(ms: Out<f32>, from: Handle, to: Handle) -> Status {
    elapsed(ms, from, to)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventElapsedTime_v2(ms: Out<f32>, from: Handle, to: Handle) -> Status {
    elapsed(ms, from, to)
}
