//! One GPU: its context, its loaded modules, and memory that frees itself.

use super::compile::{Compiler, Request};
use super::kernels::{ARCHITECTURES, Arch, Instance};
use super::params::TensorMap;
use crate::error::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use cudarc::driver::{CudaContext, CudaStream};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

/// Dynamic shared memory a kernel may use without asking.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

/// A driver error with what was being done.
pub(super) fn failed(what: &str, error: DriverError) -> Error {
    Error::device(format!("{what}: {error}"))
}

/// A matrix on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub address: u64,
    pub rows: usize,
    pub columns: usize,
    /// Elements from one row to the next.
    pub pitch: usize,
}

/// One GPU.
pub(super) struct Gpu {
    pub context: Arc<CudaContext>,
    pub name: String,
    pub capability: (i32, i32),
    pub arch: Arch,
    pub multiprocessors: u32,
    /// Dynamic shared memory a block may ask for.
    shared_limit: u32,
    /// Whether the device is newer than every architecture there is machine code for.
    ptx_only: bool,
    compiler: Compiler,
    modules: Mutex<HashMap<Request, Arc<Module>>>,
}

impl Gpu {
    pub fn open(ordinal: usize, compiler: Compiler) -> Result<Gpu> {
        let context = CudaContext::new(ordinal).map_err(|e| failed("no CUDA context", e))?;
        // SAFETY: nothing has been allocated or recorded in this context; a session orders its work
        // on one stream and needs no events.
        unsafe { context.disable_event_tracking() };
        let ask = |which| context.attribute(which).map_err(|e| failed("no device attribute", e));
        let capability = (
            ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let (arch, ptx_only) = architecture(capability)?;
        Ok(Gpu {
            name: context.name().map_err(|e| failed("no device name", e))?,
            capability,
            arch,
            multiprocessors: ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            shared_limit: ask(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
                as u32,
            ptx_only,
            compiler,
            modules: Mutex::default(),
            context,
        })
    }

    /// Makes this GPU the calling thread's.
    pub fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| failed("the CUDA context is lost", e))
    }

    /// A kernel ready to launch; `branches` counts only for attention scores.
    pub fn function(&self, instance: &Instance, branches: u32) -> Result<Function> {
        let kernel = instance.kernel;
        let module = self.module(instance)?;
        let entry = CString::new(kernel.entry).map_err(|e| Error::usage(e.to_string()))?;
        // SAFETY: the module is loaded in this context, which is current, and outlives the function.
        let raw = unsafe { result::module::get_function(module.raw, entry) }
            .map_err(|e| failed(kernel.name, e))?;
        let shared = kernel.shared_bytes(self.arch, branches);
        if shared > self.shared_limit {
            let limit = self.shared_limit;
            return Err(Error::limit(format!(
                "{}: needs {shared} of {limit} bytes of shared memory",
                kernel.name
            )));
        }
        if shared > SHARED_WITHOUT_ASKING {
            let which =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: `raw` was just returned by the driver.
            unsafe { result::function::set_function_attribute(raw, which, shared as i32) }
                .map_err(|e| failed(kernel.name, e))?;
        }
        Ok(Function { raw, name: kernel.name, block: kernel.block, shared, _module: module })
    }

    /// Describes a `[rows, columns]` FP16 matrix to the copy engine, in boxes of 64 columns and
    /// `box_rows` rows in 128-byte swizzle. The address and the pitch are multiples of 16 bytes.
    pub fn tensor_map(&self, matrix: Matrix, box_rows: u32) -> Result<TensorMap> {
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let sizes = [matrix.columns as u64, matrix.rows as u64];
        let strides = [matrix.pitch as u64 * 2];
        // SAFETY: every array has the rank's length and outlives the call, which only writes `map`.
        let encoded = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                2,
                matrix.address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                [64, box_rows].as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        encoded.result().map_err(|e| failed("tensor map", e))?;
        Ok(map.opaque)
    }

    fn module(&self, instance: &Instance) -> Result<Arc<Module>> {
        let request = instance.request(self.arch);
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&request) {
            return Ok(module.clone());
        }
        self.bind()?;
        let output = self.compiler.compile(&request)?.output;
        let name = instance.kernel.name;
        let cubin = if self.ptx_only { None } else { Some(Module::load(self, &output.cubin)) };
        let module = match cubin {
            Some(Ok(module)) => module,
            // The driver knows the device but not this machine code: let it translate the PTX.
            Some(Err(e)) if e.0 != CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
                return Err(failed(name, e));
            }
            _ => {
                let mut text = output.ptx;
                text.push(0);
                Module::load(self, &text).map_err(|e| failed(name, e))?
            }
        };
        let module = Arc::new(module);
        modules.insert(request, module.clone());
        Ok(module)
    }

    /// Bytes free on the device, for messages; 0 when the driver does not say.
    fn free_bytes(&self) -> usize {
        result::mem_get_info().map_or(0, |(free, _)| free)
    }
}

fn architecture(capability: (i32, i32)) -> Result<(Arch, bool)> {
    if let Some(arch) = Arch::of_device(capability) {
        return Ok((arch, false));
    }
    let device = capability.0 * 10 + capability.1;
    let older = ARCHITECTURES.iter().filter(|a| i64::from(a.0) <= i64::from(device)).max();
    older.map(|&arch| (arch, true)).ok_or_else(|| {
        let (major, minor) = capability;
        Error::unsupported(format!("compute capability {major}.{minor}: kernels need 7.5 or newer"))
    })
}

/// Machine code loaded into a context.
struct Module {
    raw: sys::CUmodule,
    context: Arc<CudaContext>,
}

// SAFETY: a module handle may be used from any thread whose current context is its own.
unsafe impl Send for Module {}
// SAFETY: as above; the driver synchronises concurrent use.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin, or PTX that ends in a NUL.
    fn load(gpu: &Gpu, image: &[u8]) -> Result<Module, DriverError> {
        // SAFETY: the image is a whole cubin or NUL-terminated text, and the context is current.
        let raw = unsafe { result::module::load_data(image.as_ptr().cast()) }?;
        Ok(Module { raw, context: gpu.context.clone() })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // A context that cannot be bound is gone, and its modules with it.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: loaded once, unloaded once, and no function outlives its `Arc`.
            let _ = unsafe { result::module::unload(self.raw) };
        }
    }
}

/// A kernel with its launch bounds.
pub(super) struct Function {
    raw: sys::CUfunction,
    pub name: &'static str,
    block: [u32; 3],
    shared: u32,
    _module: Arc<Module>,
}

// SAFETY: as for `Module`.
unsafe impl Send for Function {}

impl Function {
    /// Queues the kernel.
    ///
    /// # Safety
    /// `arguments` is the kernel's argument block, and every address in it is valid for what the
    /// kernel does until the stream has passed this launch.
    pub unsafe fn launch(
        &self,
        stream: &CudaStream,
        grid: [u32; 3],
        arguments: &mut [u64],
    ) -> Result<()> {
        let mut pointers = [arguments.as_mut_ptr().cast::<c_void>()];
        let [x, y, z] = self.block;
        // SAFETY: the function is loaded in the stream's context; the driver copies the arguments.
        let queued = unsafe {
            result::launch_kernel(
                self.raw,
                (grid[0], grid[1], grid[2]),
                (x, y, z),
                self.shared,
                stream.cu_stream(),
                &mut pointers,
            )
        };
        queued.map_err(|e| failed(self.name, e))
    }
}

/// Device memory.
pub(super) struct Buffer {
    pub address: u64,
    gpu: Arc<Gpu>,
}

impl Buffer {
    pub fn new(gpu: &Arc<Gpu>, bytes: usize, what: &str) -> Result<Buffer> {
        gpu.bind()?;
        // SAFETY: the context is current; the size is not 0.
        let address = unsafe { result::malloc_sync(bytes.max(256)) }.map_err(|e| match e.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::limit(format!(
                "{what} need {} MiB of GPU memory, {} MiB are free",
                bytes >> 20,
                gpu.free_bytes() >> 20
            )),
            _ => failed(what, e),
        })?;
        Ok(Buffer { address, gpu: gpu.clone() })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: allocated once, freed once; freeing waits for the work that uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Page-locked host memory that the GPU copies from and to by itself. Not write-combined: results
/// are read back from it.
pub(super) struct Pinned {
    start: *mut u8,
    bytes: usize,
    gpu: Arc<Gpu>,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    pub fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Pinned> {
        gpu.bind()?;
        let bytes = bytes.max(256);
        // SAFETY: the context is current and the size is not 0.
        let start = unsafe { result::malloc_host(bytes, 0) }
            .map_err(|e| failed("no page-locked memory", e))?
            .cast::<u8>();
        // SAFETY: just allocated with this size; a slice must not see what was never written.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Pinned { start, bytes, gpu: gpu.clone() })
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated with this size and initialised; `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: allocated once, freed once.
            let _ = unsafe { result::free_host(self.start.cast()) };
        }
    }
}
