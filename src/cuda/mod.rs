//! The CUDA backend, and what this machine offers of CUDA, asked without ever needing it: the
//! libraries are opened at run time and their absence is an answer, not a failure.

pub mod cache;
mod ceiling;
pub mod compile;
mod device;
pub mod embedded;
mod fuse;
mod kept;
pub mod kernels;
mod lane;
mod launch;
mod lower;
mod maps;
pub mod nvrtc;
mod pack;
mod params;
mod preprocess;
mod product;
pub mod ptx;
mod session;
mod trial;
mod tune;
mod wide;

pub use session::CudaBackend;
pub use tune::Tuning;

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

/// Oldest CUDA version a driver must support, and the first driver that does. Older ones lack
/// functions this backend calls and do not know the architectures of its kernels.
const OLDEST_DRIVER: ((i32, i32), &str) = ((12, 0), "525");

/// Asks the driver what is there; the error says what is missing.
pub fn driver() -> Result<Driver, String> {
    let (oldest, release) = OLDEST_DRIVER;
    // SAFETY: only tries to open the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(format!(
            "no CUDA driver: libcuda.so.1 was not found; it comes with the NVIDIA driver, install \
             release {release} or newer (in a container, start it with access to the GPU)"
        ));
    }
    let describe = |what: &str, e: result::DriverError| format!("{what}: {e}");
    let version = driver_version().map_err(|e| describe("cuDriverGetVersion failed", e))?;
    if version < oldest {
        return Err(format!(
            "the NVIDIA driver is too old: it supports CUDA {}.{}, {}.{} is needed; install driver \
             release {release} or newer",
            version.0, version.1, oldest.0, oldest.1
        ));
    }
    result::init().map_err(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => no_device(),
        _ => describe("cuInit failed", e),
    })?;
    let count = result::device::get_count().map_err(|e| describe("no device count", e))?;
    let devices = (0..count)
        .map(|ordinal| device(ordinal).map_err(|e| describe(&format!("device {ordinal}"), e)))
        .collect::<Result<_, _>>()?;
    Ok(Driver { version, devices })
}

fn no_device() -> String {
    let hidden = std::env::var("CUDA_VISIBLE_DEVICES")
        .map(|list| format!("; CUDA_VISIBLE_DEVICES is {list:?}"))
        .unwrap_or_default();
    format!("the NVIDIA driver is installed but shows no GPU{hidden}")
}

/// CUDA version the driver supports; the library must be present.
fn driver_version() -> Result<(i32, i32), result::DriverError> {
    let mut version = 0;
    // SAFETY: callers have found the library, and `version` outlives the call, which needs no
    // initialisation.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok((version / 1000, version % 1000 / 10))
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
