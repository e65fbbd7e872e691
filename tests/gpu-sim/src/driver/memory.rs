//! Memory: allocation, copies, fills. Functions are documented by the CUDA driver API manual.
#![allow(missing_docs, non_snake_case)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::{c_int, c_uint};

use super::device::current_device;
use super::state::{Handle, State, lock};
use super::stream::{Work, finish_all, finish_null, run, stream};
use super::{Driven, HostRange, In, Out, Status, call, status};

fn allocate(address: &Out<u64>, size: usize) -> Driven {
    let state = State::in_context()?;
    if size == 0 {
        return Err(status::INVALID_VALUE);
    }
    if state.allocation_fails() {
        return Err(status::OUT_OF_MEMORY);
    }
    let memory = state.memory(current_device());
    address.set(memory.allocate(size).ok_or(status::OUT_OF_MEMORY)?)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAlloc_v2(address: Out<u64>, size: usize) -> Status {
    call(|| allocate(&address, size))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocManaged(_address: Out<u64>, _size: usize, _flags: c_uint) -> Status {
    status::NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocAsync(address: Out<u64>, size: usize, on: Handle) -> Status {
    call(|| {
        if stream(State::usable()?, on)?.is_capturing() {
            return Err(status::STREAM_CAPTURE_UNSUPPORTED);
        }
        allocate(&address, size)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocFromPoolAsync(
    address: Out<u64>,
    size: usize,
    _pool: Handle,
    on: Handle,
) -> Status {
    cuMemAllocAsync(address, size, on)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> Status {
    call(|| {
        let state = State::in_context()?;
        if address == 0 {
            return Ok(());
        }
        finish_all(state)?;
        if state.memory(current_device()).free(address) {
            Ok(())
        } else {
            Err(status::INVALID_VALUE)
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: u64, on: Handle) -> Status {
    call(|| {
        let state = State::in_context()?;
        if address == 0 {
            return Ok(());
        }
        state.memory(current_device()).find(address, 0).map_err(|_| status::INVALID_VALUE)?;
        stream(state, on)?.submit(Work::Free { address })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> Status {
    call(|| {
        let (left, all) = State::in_context()?.memory(current_device()).info();
        free.set(left as usize)?;
        total.set(all as usize)
    })
}

/// Page-locked memory is aligned to pages.
const PAGE: usize = 4096;

fn host_layout(size: usize) -> Driven<Layout> {
    Layout::from_size_align(size.max(1), PAGE).map_err(|_| status::OUT_OF_MEMORY)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostAlloc(address: Out<usize>, size: usize, _flags: c_uint) -> Status {
    call(|| {
        let state = State::in_context()?;
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { alloc_zeroed(host_layout(size)?) } as usize;
        if memory == 0 {
            return Err(status::OUT_OF_MEMORY);
        }
        lock(&state.pinned).insert(memory, size);
        address.set(memory)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocHost_v2(address: Out<usize>, size: usize) -> Status {
    cuMemHostAlloc(address, size, 0)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(address: usize) -> Status {
    call(|| {
        let state = State::in_context()?;
        finish_all(state)?;
        let size = lock(&state.pinned).remove(&address).ok_or(status::INVALID_VALUE)?;
        // SAFETY: allocated with this layout by `cuMemHostAlloc`, and no longer in the table.
        unsafe { dealloc(address as *mut u8, host_layout(size)?) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoD_v2(to: u64, from: In<u8>, size: usize) -> Status {
    call(|| {
        let state = State::in_context()?;
        finish_null(state)?;
        run(
            state,
            current_device(),
            &Work::CopyIn { to, from: HostRange { address: from.address(), size } },
        )
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoH_v2(to: usize, from: u64, size: usize) -> Status {
    call(|| {
        let state = State::in_context()?;
        finish_null(state)?;
        run(state, current_device(), &Work::CopyOut { to: HostRange { address: to, size }, from })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, size: usize) -> Status {
    call(|| {
        let state = State::in_context()?;
        finish_null(state)?;
        run(state, current_device(), &Work::CopyWithin { to, from, size })
    })
}

/// Pageable memory is read before the call returns, page-locked memory when the copy runs.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: In<u8>, size: usize, on: Handle) -> Status {
    call(|| {
        let state = State::in_context()?;
        let stream = stream(state, on)?;
        let from = HostRange { address: from.address(), size };
        let late = state.is_pinned(from.address, size) || stream.is_capturing();
        stream.submit(if late {
            Work::CopyIn { to, from }
        } else {
            Work::Store { to, bytes: from.read() }
        })
    })
}

/// A copy to pageable memory is done when the call returns.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoHAsync_v2(to: usize, from: u64, size: usize, on: Handle) -> Status {
    call(|| {
        let state = State::in_context()?;
        let stream = stream(state, on)?;
        stream.submit(Work::CopyOut { to: HostRange { address: to, size }, from })?;
        if state.is_pinned(to, size) || stream.is_capturing() { Ok(()) } else { stream.finish() }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, size: usize, on: Handle) -> Status {
    call(|| {
        let state = State::in_context()?;
        stream(state, on)?.submit(Work::CopyWithin { to, from, size })
    })
}

fn fill(to: u64, element: &[u8], count: usize, on: Option<Handle>) -> Driven {
    let state = State::in_context()?;
    let work = Work::Fill { to, element: element.to_vec(), count };
    match on {
        Some(handle) => stream(state, handle)?.submit(work),
        None => {
            finish_null(state)?;
            run(state, current_device(), &work)
        }
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> Status {
    call(|| fill(to, &[value], count, None))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: u64, value: u8, count: usize, on: Handle) -> Status {
    call(|| fill(to, &[value], count, Some(on)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD16_v2(to: u64, value: u16, count: usize) -> Status {
    call(|| fill(to, &value.to_le_bytes(), count, None))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD16Async(to: u64, value: u16, count: usize, on: Handle) -> Status {
    call(|| fill(to, &value.to_le_bytes(), count, Some(on)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD32_v2(to: u64, value: u32, count: usize) -> Status {
    call(|| fill(to, &value.to_le_bytes(), count, None))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD32Async(to: u64, value: u32, count: usize, on: Handle) -> Status {
    call(|| fill(to, &value.to_le_bytes(), count, Some(on)))
}

/// The one pool there is.
const POOL: Handle = 0x7000_0000;

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetDefaultMemPool(pool: Out<Handle>, _dev: c_int) -> Status {
    call(|| pool.set(POOL))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetMemPool(pool: Out<Handle>, _dev: c_int) -> Status {
    call(|| pool.set(POOL))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceSetMemPool(_dev: c_int, _pool: Handle) -> Status {
    status::SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolSetAttribute(_pool: Handle, _which: c_int, _value: In<u64>) -> Status {
    status::SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolGetAttribute(_pool: Handle, which: c_int, value: Out<u64>) -> Status {
    // Attributes 1 to 3 are ints that say which reuse is allowed; 4 and up are 64-bit figures.
    call(|| if which >= 4 { value.set(0) } else { Err(status::NOT_SUPPORTED) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolTrimTo(_pool: Handle, _keep: usize) -> Status {
    status::SUCCESS
}
