//! Names and texts of status codes.
#![allow(missing_docs, non_snake_case)]

use std::ffi::{CStr, c_char};

use super::{Out, Status, call, status};

fn describe(code: Status) -> Option<(&'static CStr, &'static CStr)> {
    Some(match code {
        status::SUCCESS => (c"CUDA_SUCCESS", c"no error"),
        status::INVALID_VALUE => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        status::OUT_OF_MEMORY => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        status::NOT_INITIALIZED => (c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
        status::NO_DEVICE => (c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected"),
        status::INVALID_DEVICE => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        status::INVALID_CONTEXT => (c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
        status::NO_BINARY_FOR_GPU => (
            c"CUDA_ERROR_NO_BINARY_FOR_GPU",
            c"no kernel image is available for execution on the device",
        ),
        status::INVALID_PTX => (c"CUDA_ERROR_INVALID_PTX", c"a PTX JIT compilation failed"),
        status::UNSUPPORTED_PTX_VERSION => (
            c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
            c"the PTX was made for a newer driver than this",
        ),
        status::INVALID_HANDLE => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
        status::NOT_FOUND => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
        status::NOT_READY => (c"CUDA_ERROR_NOT_READY", c"device not ready"),
        status::LAUNCH_FAILED => (
            c"CUDA_ERROR_LAUNCH_FAILED",
            c"a kernel failed; gpu-sim has printed where and why on stderr",
        ),
        status::NOT_SUPPORTED => (c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
        status::STREAM_CAPTURE_UNSUPPORTED => (
            c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
            c"operation not permitted when stream is capturing",
        ),
        status::STREAM_CAPTURE_UNMATCHED => {
            (c"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", c"the capture was not begun on this stream")
        }
        status::CAPTURED_EVENT => {
            (c"CUDA_ERROR_CAPTURED_EVENT", c"operation not permitted on an event of a capture")
        }
        status::INVALID_CLUSTER_SIZE => {
            (c"CUDA_ERROR_INVALID_CLUSTER_SIZE", c"no cluster of that size fits the device")
        }
        status::UNKNOWN => (c"CUDA_ERROR_UNKNOWN", c"unknown error"),
        _ => return None,
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorName(code: Status, name: Out<*const c_char>) -> Status {
    call(|| match describe(code) {
        Some((text, _)) => name.set(text.as_ptr()),
        None => Err(status::INVALID_VALUE),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorString(code: Status, text: Out<*const c_char>) -> Status {
    call(|| match describe(code) {
        Some((_, description)) => text.set(description.as_ptr()),
        None => Err(status::INVALID_VALUE),
    })
}
