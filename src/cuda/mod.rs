//! The CUDA backend, and what this machine offers of CUDA, asked without ever needing it: the
//! libraries are opened at run time and their absence is an answer, not a failure.

pub mod compile;
mod device;
pub mod kernels;
mod launch;
mod lower;
pub mod nvrtc;
mod pack;
mod params;
mod product;
mod session;

pub use session::CudaBackend;

use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use cudarc::driver::{result, sys};

/// One GPU as its driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Marketing name.
    pub name: String,
    /// Compute capability, `(9, 0)` for an H100.
    pub compute_capability: (i32, i32),
    /// Bytes of device memory.
    pub memory_bytes: usize,
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
}

/// The driver and the devices behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// CUDA version the driver supports, `(12, 9)`.
    pub version: (i32, i32),
    /// Devices in driver order.
    pub devices: Vec<Device>,
}

/// Asks the driver what is there; the error says what is missing.
pub fn driver() -> Result<Driver, String> {
    // SAFETY: only tries to open the library.
    if !unsafe { sys::is_culib_present() } {
        return Err("libcuda.so.1 is not installed (it comes with the NVIDIA driver)".into());
    }
    let describe = |what: &str, e: result::DriverError| format!("{what}: {e}");
    result::init().map_err(|e| describe("cuInit failed", e))?;
    let mut version = 0;
    // SAFETY: the library is present and initialised, and `version` outlives the call.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|e| describe("cuDriverGetVersion failed", e))?;
    let count = result::device::get_count().map_err(|e| describe("no device count", e))?;
    let devices = (0..count)
        .map(|ordinal| device(ordinal).map_err(|e| describe(&format!("device {ordinal}"), e)))
        .collect::<Result<_, _>>()?;
    Ok(Driver { version: (version / 1000, version % 1000 / 10), devices })
}

fn device(ordinal: i32) -> Result<Device, result::DriverError> {
    let device = result::device::get(ordinal)?;
    // SAFETY: `device` was just returned by the driver.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    Ok(Device {
        name: result::device::get_name(device)?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }?,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}
