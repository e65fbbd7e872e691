//! What a GPU can do at most, as its driver times it: copying its own memory.

use super::device::{Buffer, Gpu, failed};
use crate::error::Result;
use cudarc::driver::result;
use cudarc::driver::sys::CUevent_flags_enum::CU_EVENT_DEFAULT;
use std::sync::Arc;

/// First and largest number of bytes copied. Between them a copy grows until it takes long enough to
/// be timed well.
const BYTES: std::ops::RangeInclusive<usize> = 1 << 20..=1 << 30;
/// Seconds that are long enough.
const LONG_ENOUGH: f64 = 1e-3;
/// The best of this many measurements counts: what disturbs one only makes it slower.
const REPEATS: usize = 5;

/// Bytes per second read and written by a copy within device memory.
pub(super) fn bytes_per_second(gpu: &Arc<Gpu>) -> Result<f64> {
    gpu.bind()?;
    let stream = gpu.context.new_stream().map_err(|e| failed("no stream", e))?;
    let mut bytes = *BYTES.start();
    loop {
        let [from, to] = [(); 2].map(|()| Buffer::new(gpu, bytes, "a copy"));
        let (from, to) = (from?, to?);
        let fail = |e| failed("a copy", e);
        let mut shortest = f64::INFINITY;
        // The first, which also writes the source, does not count.
        for repeat in 0..=REPEATS {
            let start = stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(fail)?;
            // SAFETY: both buffers have this many bytes and live until the stream has passed.
            unsafe {
                if repeat == 0 {
                    result::memset_d8_async(from.address, 1, bytes, stream.cu_stream())
                } else {
                    let (to, from) = (to.address, from.address);
                    result::memcpy_dtod_async(to, from, bytes, stream.cu_stream())
                }
            }
            .map_err(fail)?;
            let end = stream.record_event(Some(CU_EVENT_DEFAULT)).map_err(fail)?;
            stream.synchronize().map_err(fail)?;
            if repeat > 0 {
                let ms = start.elapsed_ms(&end).map_err(fail)?;
                shortest = shortest.min(f64::from(ms) * 1e-3);
            }
        }
        if shortest >= LONG_ENOUGH
            || bytes >= *BYTES.end()
            || gpu.check_room(8 * bytes, "").is_err()
        {
            return Ok(2.0 * bytes as f64 / shortest.max(1e-9));
        }
        bytes *= 4;
    }
}
