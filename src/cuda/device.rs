//! One GPU: its context, its loaded modules, and memory that frees itself.

use super::compile::{Compiler, Request};
use super::kernels::{ARCHITECTURES, Arch, Instance};
use super::tune::{Machine, Tuning};
use crate::error::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use cudarc::driver::{CudaContext, CudaStream};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Dynamic shared memory a kernel may use without asking.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

/// A driver error with what was being done.
pub(super) fn failed(what: &str, error: DriverError) -> Error {
    Error::device(format!("{what}: {error}"))
}

/// One GPU.
pub(super) struct Gpu {
    pub context: Arc<CudaContext>,
    pub name: String,
    pub capability: (i32, i32),
    pub arch: Arch,
    pub multiprocessors: u32,
    l2_bytes: u64,
    /// Dynamic shared memory a block may ask for.
    pub shared_limit: u32,
    /// Whether the device is newer than every architecture there is machine code for.
    ptx_only: bool,
    pub compiler: Compiler,
    modules: Mutex<HashMap<Request, Arc<Module>>>,
    /// Version of the driver.
    pub driver: (i32, i32),
    /// How tiles are chosen.
    pub tuning: Tuning,
    /// Most bytes that may be allocated, if there is a bound, and those that are.
    pub memory_limit: Option<usize>,
    allocated: AtomicUsize,
}

impl Gpu {
    pub fn open(ordinal: usize, driver: (i32, i32), compiler: Compiler) -> Result<Gpu> {
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
            l2_bytes: ask(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.max(0) as u64,
            shared_limit: ask(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
                as u32,
            ptx_only,
            compiler,
            modules: Mutex::default(),
            driver,
            tuning: Tuning::from_env(),
            memory_limit: None,
            allocated: AtomicUsize::new(0),
            context,
        })
    }

    /// What the ranking of tiles has to know.
    pub fn machine(&self) -> Machine {
        let (arch, multiprocessors, l2_bytes) = (self.arch, self.multiprocessors, self.l2_bytes);
        Machine { arch, multiprocessors, l2_bytes }
    }

    /// Makes this GPU the calling thread's.
    pub fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| failed("the CUDA context is lost", e))
    }

    /// A kernel ready to launch; `count` is what [`super::kernels::Kernel::shared_bytes`] asks for.
    pub fn function(&self, instance: &Instance, count: u32) -> Result<Function> {
        let kernel = instance.kernel;
        let module = self.module(instance)?;
        let entry = CString::new(kernel.entry).map_err(|e| Error::usage(e.to_string()))?;
        // SAFETY: the module is loaded in this context, which is current, and outlives the function.
        let raw = unsafe { result::module::get_function(module.raw, entry) }
            .map_err(|e| failed(kernel.name, e))?;
        let shared = kernel.shared_bytes(self.arch, count);
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

    fn module(&self, instance: &Instance) -> Result<Arc<Module>> {
        let request = instance.request(self.arch);
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&request) {
            return Ok(module.clone());
        }
        self.bind()?;
        let module = Arc::new(self.load(instance, &request)?);
        modules.insert(request, module.clone());
        Ok(module)
    }

    /// Loads machine code, or PTX for the driver to translate where there is no machine code that
    /// this device and this driver take.
    fn load(&self, instance: &Instance, request: &Request) -> Result<Module> {
        let name = instance.kernel.name;
        // Without machine code there may still be PTX; if not, that fails with the same message.
        let machine = if self.ptx_only { None } else { self.compiler.compile(request).ok() };
        if let Some(compiled) = machine.filter(|c| c.needs_driver() <= self.driver.0) {
            match Module::load(self, &compiled.output.cubin) {
                Err(e) if e.0 == CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {}
                outcome => return outcome.map_err(|e| failed(name, e)),
            }
        }
        let alike = instance.request(instance.oldest_alike(self.arch));
        let mut text = self.compiler.ptx(request, &alike)?.output.ptx;
        text.push(0);
        Module::load(self, &text).map_err(|e| failed(name, e))
    }

    /// Bytes that may still be allocated, on the device and within the limit; without bound when
    /// the driver does not say.
    pub fn free_bytes(&self) -> usize {
        let free = result::mem_get_info().map_or(usize::MAX, |(free, _)| free);
        let left = |limit: usize| limit.saturating_sub(self.allocated.load(Ordering::Relaxed));
        self.memory_limit.map_or(free, |limit| free.min(left(limit)))
    }

    /// Refuses what cannot be allocated.
    ///
    /// # Errors
    /// [`crate::Kind::Limit`] saying how much is needed and how much is left.
    pub fn check_room(&self, bytes: usize, what: &str) -> Result<()> {
        if bytes > self.free_bytes() { Err(self.no_room(bytes, what)) } else { Ok(()) }
    }

    /// That something cannot be allocated.
    pub fn no_room(&self, bytes: usize, what: &str) -> Error {
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        let within = self.memory_limit.map(|limit| format!(" of a limit of {:.1} MiB", mib(limit)));
        Error::limit(format!(
            "{what} need {:.1} MiB of GPU memory, {:.1} MiB{} are free",
            mib(bytes),
            mib(self.free_bytes()),
            within.unwrap_or_default()
        ))
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
    /// Queues the kernel, in clusters of `cluster` blocks along x.
    ///
    /// # Safety
    /// `arguments` is the kernel's argument block, and every address in it is valid for what the
    /// kernel does until the stream has passed this launch.
    pub unsafe fn launch(
        &self,
        stream: &CudaStream,
        grid: [u32; 3],
        cluster: u32,
        arguments: &mut [u64],
    ) -> Result<()> {
        let mut pointers = [arguments.as_mut_ptr().cast::<c_void>()];
        let [x, y, z] = self.block;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                    x: cluster,
                    y: 1,
                    z: 1,
                },
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: x,
            blockDimY: y,
            blockDimZ: z,
            sharedMemBytes: self.shared,
            hStream: stream.cu_stream(),
            attrs: &mut attribute,
            numAttrs: u32::from(cluster > 1),
        };
        // SAFETY: the function is loaded in the stream's context; the driver copies the arguments and
        // the attribute.
        let queued = unsafe {
            sys::cuLaunchKernelEx(&config, self.raw, pointers.as_mut_ptr(), std::ptr::null_mut())
        };
        queued.result().map_err(|e| failed(self.name, e))
    }
}

/// Device memory.
pub(super) struct Buffer {
    pub address: u64,
    pub bytes: usize,
    gpu: Arc<Gpu>,
}

impl Buffer {
    pub fn new(gpu: &Arc<Gpu>, bytes: usize, what: &str) -> Result<Buffer> {
        gpu.bind()?;
        let bytes = bytes.max(256);
        gpu.check_room(bytes, what)?;
        // SAFETY: the context is current; the size is not 0.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(|e| match e.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => gpu.no_room(bytes, what),
            _ => failed(what, e),
        })?;
        gpu.allocated.fetch_add(bytes, Ordering::Relaxed);
        Ok(Buffer { address, bytes, gpu: gpu.clone() })
    }

    /// The GPU it is on.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.gpu.allocated.fetch_sub(self.bytes, Ordering::Relaxed);
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
        // SAFETY: the context is current and the size is not 0.
        let start = unsafe { result::malloc_host(bytes.max(1), 0) }
            .map_err(|e| failed("no page-locked memory", e))?
            .cast::<u8>();
        // SAFETY: just allocated with at least this size; a slice must not see what was never
        // written.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Pinned { start, bytes, gpu: gpu.clone() })
    }
}

impl Deref for Pinned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: allocated with this size and initialised.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }
}

impl DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` makes the borrow unique.
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
