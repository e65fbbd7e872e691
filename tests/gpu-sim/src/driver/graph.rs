//! Stream capture and graphs. Functions are documented by the CUDA driver API manual.
#![allow(missing_docs, non_snake_case)]

use std::ffi::c_int;

use super::state::{Handle, State};
use super::stream::{Work, stream};
use super::{Out, Status, call, status};

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(on: Handle, _mode: c_int) -> Status {
    call(|| {
        let state = State::in_context()?;
        if on <= 2 {
            // The null stream cannot be captured.
            return Err(status::STREAM_CAPTURE_UNSUPPORTED);
        }
        stream(state, on)?.begin_capture()
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamEndCapture(on: Handle, graph: Out<Handle>) -> Status {
    call(|| {
        let state = State::in_context()?;
        let captured = stream(state, on)?.end_capture(state)?;
        graph.set(state.graphs.add(captured))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamIsCapturing(on: Handle, answer: Out<c_int>) -> Status {
    call(|| answer.set(c_int::from(stream(State::in_context()?, on)?.is_capturing())))
}

/// A captured graph does not change, so an executable one shares it.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphInstantiateWithFlags(
    executable: Out<Handle>,
    graph: Handle,
    _flags: u64,
) -> Status {
    call(|| {
        let graphs = &State::in_context()?.graphs;
        executable.set(graphs.add_shared(graphs.get(graph)?))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphUpload(executable: Handle, _on: Handle) -> Status {
    call(|| State::in_context()?.graphs.get(executable).map(drop))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(executable: Handle, on: Handle) -> Status {
    call(|| {
        let state = State::in_context()?;
        stream(state, on)?.submit(Work::Graph(state.graphs.get(executable)?))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: Handle) -> Status {
    call(|| State::usable()?.graphs.remove(graph).map(drop))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(executable: Handle) -> Status {
    call(|| State::usable()?.graphs.remove(executable).map(drop))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphGetNodes(graph: Handle, _nodes: Out<Handle>, count: Out<usize>) -> Status {
    call(|| count.set(State::usable()?.graphs.get(graph)?.len()))
}
