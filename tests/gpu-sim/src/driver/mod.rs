//! The stand-in driver: the CUDA driver API on the interpreter, exported with C names and the
//! meaning of the CUDA manual. What a real driver may do asynchronously happens as late as the
//! manual allows (see `stream.rs`), so that a program that forgets to synchronise is found out.
//!
//! Environment: `GPU_SIM_CC` compute capability (default `8.0`), `GPU_SIM_DRIVER` CUDA version (12.9),
//! `GPU_SIM_DEVICES` number of devices (1; 0 stands for none), `GPU_SIM_MEMORY` bytes of memory of each
//! device (16 GiB), `GPU_SIM_THREADS` worker threads (2), `GPU_SIM_SMS` multiprocessors to report (4),
//! `GPU_SIM_CHECK=0` no checks but bounds and alignment, `GPU_SIM_EAGER=1` every operation at once,
//! `GPU_SIM_TRACE=1` one line on stderr per launch and per copy, `GPU_SIM_FAIL_LAUNCH=n` the n-th launch
//! fails as a faulty kernel does, `GPU_SIM_FAIL_ALLOC=n` the n-th allocation finds no memory.
//!
//! A kernel that fails prints its report on stderr; that launch, and every call after it, returns
//! `CUDA_ERROR_LAUNCH_FAILED`, as on a device.

mod device;
mod errors;
mod graph;
mod memory;
mod module;
mod state;
mod stream;
mod streams;
mod tensor;

use std::ffi::{CStr, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A driver status code; 0 is success.
pub type Status = c_int;

/// Status codes of the driver API that this driver returns.
pub mod status {
    use super::Status;

    /// No error.
    pub const SUCCESS: Status = 0;
    /// An argument is out of range.
    pub const INVALID_VALUE: Status = 1;
    /// No device memory left.
    pub const OUT_OF_MEMORY: Status = 2;
    /// `cuInit` was not called.
    pub const NOT_INITIALIZED: Status = 3;
    /// No device.
    pub const NO_DEVICE: Status = 100;
    /// No such device.
    pub const INVALID_DEVICE: Status = 101;
    /// No current context.
    pub const INVALID_CONTEXT: Status = 201;
    /// The image holds no code for this device.
    pub const NO_BINARY_FOR_GPU: Status = 209;
    /// PTX that cannot be compiled.
    pub const INVALID_PTX: Status = 218;
    /// PTX of a newer ISA version than the driver knows.
    pub const UNSUPPORTED_PTX_VERSION: Status = 222;
    /// No such module, stream, event, ...
    pub const INVALID_HANDLE: Status = 400;
    /// No such name.
    pub const NOT_FOUND: Status = 500;
    /// Work has not completed.
    pub const NOT_READY: Status = 600;
    /// A kernel failed; the context is lost.
    pub const LAUNCH_FAILED: Status = 719;
    /// Not supported here.
    pub const NOT_SUPPORTED: Status = 801;
    /// No cluster of that size fits the device.
    pub const INVALID_CLUSTER_SIZE: Status = 912;
    /// The operation may not be captured.
    pub const STREAM_CAPTURE_UNSUPPORTED: Status = 900;
    /// A capture ended on another stream than it began on, or was not active.
    pub const STREAM_CAPTURE_UNMATCHED: Status = 903;
    /// An event of a capture used outside.
    pub const CAPTURED_EVENT: Status = 907;
    /// A fault of this driver.
    pub const UNKNOWN: Status = 999;
}

/// Result of a driver call before it becomes a status.
pub type Driven<T = ()> = Result<T, Status>;

/// Runs the body of an exported function: a panic becomes `CUDA_ERROR_UNKNOWN`.
fn call(body: impl FnOnce() -> Driven) -> Status {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => status::SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => status::UNKNOWN,
    }
}

/// Prints a message of the driver on stderr.
fn report(message: impl std::fmt::Display) {
    eprintln!("gpu-sim: {message}");
}

/// Where a C caller wants a result. Only a C caller can make one.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Stores the result; a null pointer is an error.
    fn set(&self, value: T) -> Driven {
        if self.0.is_null() {
            return Err(status::INVALID_VALUE);
        }
        // SAFETY: the caller of the C function promises that the pointer is null or valid.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Whether the place lies at a multiple of `bytes`.
    fn is_aligned(&self, bytes: usize) -> bool {
        (self.0 as usize).is_multiple_of(bytes)
    }

    /// Stores the result where one is wanted.
    fn set_optional(&self, value: T) {
        let _ = self.set(value);
    }

    /// Stores several results.
    fn set_all(&self, values: impl IntoIterator<Item = T>) -> Driven {
        if self.0.is_null() {
            return Err(status::INVALID_VALUE);
        }
        for (i, value) in values.into_iter().enumerate() {
            // SAFETY: as in `set`; the C contract gives room for this many.
            unsafe { self.0.add(i).write(value) };
        }
        Ok(())
    }
}

/// Where a C caller has values for this driver. Only a C caller can make one.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// Element `index`.
    fn get(&self, index: usize) -> Driven<T> {
        if self.0.is_null() {
            return Err(status::INVALID_VALUE);
        }
        // SAFETY: the caller of the C function promises that many values.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }

    /// The first `count` elements.
    fn list(&self, count: usize) -> Driven<Vec<T>> {
        (0..count).map(|i| self.get(i)).collect()
    }

    fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The address itself.
    fn address(&self) -> usize {
        self.0 as usize
    }
}

impl In<c_char> {
    /// A NUL-terminated text.
    fn text(&self) -> Driven<&str> {
        if self.0.is_null() {
            return Err(status::INVALID_VALUE);
        }
        // SAFETY: the caller of the C function promises a NUL-terminated string.
        unsafe { CStr::from_ptr(self.0) }.to_str().map_err(|_| status::INVALID_VALUE)
    }
}

/// Host memory of a copy, by address: it is the program's to keep it alive until the copy is done.
#[derive(Clone, Copy)]
struct HostRange {
    address: usize,
    size: usize,
}

impl HostRange {
    fn read(self) -> Vec<u8> {
        let mut bytes = vec![0; self.size];
        // SAFETY: the program promises `size` readable bytes there until the copy is done.
        unsafe {
            std::ptr::copy_nonoverlapping(self.address as *const u8, bytes.as_mut_ptr(), self.size);
        }
        bytes
    }

    fn write(self, bytes: &[u8]) {
        let size = self.size.min(bytes.len());
        // SAFETY: the program promises `size` writable bytes there until the copy is done.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address as *mut u8, size) };
    }
}
