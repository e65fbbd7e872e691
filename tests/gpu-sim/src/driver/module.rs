//! Modules, functions and launches. Functions are documented by the CUDA driver API manual.
#![allow(missing_docs, non_snake_case)]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use super::device::current_device;
use super::state::{Handle, State};
use super::stream::{Work, finish_all, stream};
use super::{Driven, HostRange, In, Out, Status, call, report, status};
use crate::decode::Kernel;
use crate::isa::Variable;
use crate::machine::{self, MAX_THREADS, Shape};
use crate::parse::parse;

/// A loaded module.
pub struct Image {
    device: usize,
    kernels: Vec<Kernel>,
    variables: Vec<Variable>,
}

/// A kernel of a module.
pub struct Function {
    image: Arc<Image>,
    index: usize,
    max_dynamic: AtomicI32,
}

impl Function {
    fn kernel(&self) -> &Kernel {
        &self.image.kernels[self.index]
    }

    fn max_threads(&self) -> u32 {
        self.kernel().max_threads.unwrap_or(MAX_THREADS).min(MAX_THREADS)
    }
}

/// A kernel launch with its arguments.
pub struct Launch {
    function: Arc<Function>,
    shape: Shape,
    params: Vec<u8>,
}

impl Launch {
    /// Runs the kernel; a fault is reported on stderr.
    pub fn run(&self, state: &State) -> Driven {
        let kernel = self.function.kernel();
        let started = std::time::Instant::now();
        if state.launch_fails() {
            report(format_args!("{}: fails because GPU_SIM_FAIL_LAUNCH asks for it", kernel.name));
            return Err(status::LAUNCH_FAILED);
        }
        let view = state.memory(self.function.image.device).view();
        match machine::launch(kernel, &self.params, &view, self.shape, state.config.options) {
            Ok(stats) => {
                if state.config.trace {
                    let Shape { grid, block, .. } = self.shape;
                    report(format_args!(
                        "{} grid {grid:?} block {block:?}: {} warp instructions, {:.1} ms",
                        kernel.name,
                        stats.warp_instructions,
                        started.elapsed().as_secs_f64() * 1e3
                    ));
                }
                Ok(())
            }
            Err(error) => {
                report(error);
                Err(status::LAUNCH_FAILED)
            }
        }
    }
}

fn load(image: In<c_char>) -> Driven<Handle> {
    let state = State::in_context()?;
    // Machine code starts with these bytes (ELF, fat binary); PTX is text.
    let first = image.get(0)? as u8;
    if first == 0x7f || first == 0x50 && image.get(1)? as u8 == 0xed {
        return Err(status::NO_BINARY_FOR_GPU);
    }
    load_text(state, image.text()?)
}

fn load_text(state: &State, text: &str) -> Driven<Handle> {
    let refuse = |message: String| {
        report(message);
        status::INVALID_PTX
    };
    let device = current_device();
    let memory = state.memory(device);
    let mut full = false;
    let mut place = |bytes: &[u8]| {
        let address = memory.allocate(bytes.len());
        full |= address.is_none();
        let address = address.unwrap_or(0);
        if let Ok((allocation, offset)) = memory.find(address, bytes.len()) {
            allocation.write(offset, bytes);
        }
        address
    };
    let module = parse(text, &mut place).map_err(refuse)?;
    if full {
        return Err(status::OUT_OF_MEMORY);
    }
    if module.version > state.config.newest_ptx() {
        let (major, minor) = module.version;
        report(format_args!("PTX {major}.{minor} is too new for the driver (see GPU_SIM_DRIVER)"));
        return Err(status::UNSUPPORTED_PTX_VERSION);
    }
    check_target(state, &module.target).map_err(refuse)?;
    let kernels = module.kernels.iter().map(Kernel::decode).collect::<Result<_, _>>();
    let kernels = kernels.map_err(refuse)?;
    Ok(state.modules.add(Image { device, kernels, variables: module.variables }))
}

/// PTX runs on its own and newer architectures; with a letter after it, on its own alone.
fn check_target(state: &State, target: &str) -> Result<(), String> {
    let device = state.config.capability.0 * 10 + state.config.capability.1;
    let name = target.trim_start_matches("sm_").trim_end_matches(',');
    let digits = name.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let needs: i32 = digits.parse().map_err(|_| format!("PTX for {target:?}"))?;
    let exact = digits.len() != name.len();
    if needs > device || exact && needs != device {
        return Err(format!("PTX for {target} on a device of sm_{device} (see GPU_SIM_CC)"));
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleLoadData(module: Out<Handle>, image: In<c_char>) -> Status {
    call(|| module.set(load(image)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleLoadDataEx(
    module: Out<Handle>,
    image: In<c_char>,
    _count: c_uint,
    _options: In<c_int>,
    _values: In<usize>,
) -> Status {
    cuModuleLoadData(module, image)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleLoad(module: Out<Handle>, path: In<c_char>) -> Status {
    call(|| {
        let state = State::in_context()?;
        let text = std::fs::read_to_string(path.text()?).map_err(|_| status::NOT_FOUND)?;
        module.set(load_text(state, &text)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: Handle) -> Status {
    call(|| {
        let state = State::usable()?;
        finish_all(state)?;
        let image = state.modules.remove(module)?;
        for variable in &image.variables {
            state.memory(image.device).free(variable.address);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleGetFunction(
    function: Out<Handle>,
    module: Handle,
    name: In<c_char>,
) -> Status {
    call(|| {
        let state = State::usable()?;
        let (image, name) = (state.modules.get(module)?, name.text()?);
        let index = image.kernels.iter().position(|k| k.name == name).ok_or(status::NOT_FOUND)?;
        function.set(state.functions.add(Function {
            image,
            index,
            max_dynamic: AtomicI32::new(48 << 10),
        }))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleGetGlobal_v2(
    address: Out<u64>,
    bytes: Out<usize>,
    module: Handle,
    name: In<c_char>,
) -> Status {
    call(|| {
        let image = State::usable()?.modules.get(module)?;
        let name = name.text()?;
        let found = image.variables.iter().find(|v| v.name == name).ok_or(status::NOT_FOUND)?;
        bytes.set_optional(found.bytes.len());
        address.set(found.address)
    })
}

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: c_int = 8;

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncGetAttribute(value: Out<c_int>, which: c_int, function: Handle) -> Status {
    call(|| {
        let state = State::usable()?;
        let function = state.functions.get(function)?;
        let (major, minor) = state.config.capability;
        value.set(match which {
            0 => function.max_threads() as c_int,
            1 => function.kernel().static_shared as c_int,
            3 => function.kernel().local as c_int,
            // Registers are not allocated here; a figure that fits every block size.
            4 => 64,
            5 | 6 => major * 10 + minor,
            MAX_DYNAMIC_SHARED => function.max_dynamic.load(Relaxed),
            2 | 7 | 9..=16 => 0,
            _ => return Err(status::INVALID_VALUE),
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: Handle, which: c_int, value: c_int) -> Status {
    call(|| {
        let state = State::usable()?;
        let function = state.functions.get(function)?;
        if which == MAX_DYNAMIC_SHARED {
            let static_bytes = function.kernel().static_shared as c_int;
            if value < 0 || value > state.config.shared_limit() - static_bytes {
                return Err(status::INVALID_VALUE);
            }
            function.max_dynamic.store(value, Relaxed);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetCacheConfig(_function: Handle, _config: c_int) -> Status {
    status::SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    on: Handle,
    params: In<In<u8>>,
    extra: In<usize>,
) -> Status {
    let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
    call(|| launch(function, Shape::new(grid, block, shared as usize), on, params, extra))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchCooperativeKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    on: Handle,
    params: In<In<u8>>,
) -> Status {
    let _ = (function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, on, params);
    report("cooperative launches are not supported: blocks do not run at the same time");
    status::NOT_SUPPORTED
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: Handle,
    attributes: In<LaunchAttribute>,
    count: c_uint,
}

/// `CUlaunchAttribute`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchAttribute {
    id: c_uint,
    pad: c_uint,
    value: [c_uint; 16],
}

/// `CU_LAUNCH_ATTRIBUTE_IGNORE` and `CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`.
const IGNORE: c_uint = 0;
const CLUSTER_DIMENSION: c_uint = 4;

/// Most blocks of a cluster on every device that has clusters.
const PORTABLE_CLUSTER: u32 = 8;

#[unsafe(no_mangle)]
pub extern "C" fn cuLaunchKernelEx(
    config: In<LaunchConfig>,
    function: Handle,
    params: In<In<u8>>,
    extra: In<usize>,
) -> Status {
    call(|| {
        let config = config.get(0)?;
        let mut shape = Shape::new(config.grid, config.block, config.shared as usize);
        for attribute in config.attributes.list(config.count as usize)? {
            match attribute.id {
                IGNORE => {}
                CLUSTER_DIMENSION => {
                    shape.cluster = [attribute.value[0], attribute.value[1], attribute.value[2]];
                    check_cluster(shape)?;
                }
                other => {
                    report(format_args!("launch attribute {other} is not supported"));
                    return Err(status::NOT_SUPPORTED);
                }
            }
        }
        launch(function, shape, config.stream, params, extra)
    })
}

/// Clusters exist from compute capability 9.0 on and divide the grid.
fn check_cluster(shape: Shape) -> Driven {
    let state = State::usable()?;
    let Shape { grid, cluster, .. } = shape;
    if cluster.contains(&0) || (0..3).any(|i| !grid[i].is_multiple_of(cluster[i])) {
        report(format_args!("launch refused: clusters of {cluster:?} in a grid of {grid:?}"));
        return Err(status::INVALID_VALUE);
    }
    let blocks = cluster.iter().try_fold(1u32, |all, n| all.checked_mul(*n));
    let most = if state.config.capability.0 >= 9 { PORTABLE_CLUSTER } else { 1 };
    match blocks {
        Some(blocks) if blocks <= most => Ok(()),
        _ => {
            report(format_args!("launch refused: clusters of {cluster:?}, at most {most} blocks"));
            Err(status::INVALID_CLUSTER_SIZE)
        }
    }
}

fn launch(
    function: Handle,
    mut shape: Shape,
    on: Handle,
    params: In<In<u8>>,
    extra: In<usize>,
) -> Driven {
    let state = State::in_context()?;
    let function = state.functions.get(function)?;
    let threads: u64 = shape.block.iter().map(|n| u64::from(*n)).product();
    let limits = [i32::MAX as u32, 65_535, 65_535];
    let fits = shape.grid.iter().zip(limits).all(|(n, max)| (1..=max).contains(n));
    let dynamic = function.max_dynamic.load(Relaxed) as usize;
    if !fits || threads == 0 || threads > u64::from(function.max_threads()) {
        return Err(status::INVALID_VALUE);
    }
    if shape.dynamic_shared > dynamic {
        return Err(status::INVALID_VALUE);
    }
    if let Some(cluster) = function.kernel().cluster.filter(|_| shape.cluster == [1; 3]) {
        shape.cluster = cluster;
    }
    let params = arguments(function.kernel(), params, extra)?;
    let stream = stream(state, on)?;
    if stream.device != function.image.device {
        report(format_args!(
            "{}: of device {}, launched on a stream of device {}",
            function.kernel().name,
            function.image.device,
            stream.device
        ));
        return Err(status::INVALID_HANDLE);
    }
    stream.submit(Work::Launch(Launch { function, shape, params }))
}

/// The parameter block, from pointers to the parameters or from a packed buffer.
fn arguments(kernel: &Kernel, params: In<In<u8>>, extra: In<usize>) -> Driven<Vec<u8>> {
    if !params.is_null() || kernel.params.is_empty() {
        let mut block = vec![0; kernel.param_bytes()];
        for (i, param) in kernel.params.iter().enumerate() {
            let bytes = params.get(i)?.list(param.size)?;
            block[param.offset..param.offset + param.size].copy_from_slice(&bytes);
        }
        return Ok(block);
    }
    // CU_LAUNCH_PARAM_BUFFER_POINTER = 1, _SIZE = 2, _END = 0.
    let (mut buffer, mut size, mut at) = (0, 0, 0);
    loop {
        match extra.get(at)? {
            0 => break,
            1 => buffer = extra.get(at + 1)?,
            2 => {
                let place = HostRange { address: extra.get(at + 1)?, size: size_of::<usize>() };
                let bytes = place.read().try_into().map_err(|_| status::INVALID_VALUE)?;
                size = usize::from_le_bytes(bytes);
            }
            _ => return Err(status::INVALID_VALUE),
        }
        at += 2;
    }
    if buffer == 0 || size != kernel.param_bytes() {
        let wants = kernel.param_bytes();
        report(format_args!("{}: {size} bytes of parameters, not {wants}", kernel.name));
        return Err(status::INVALID_VALUE);
    }
    Ok(HostRange { address: buffer, size }.read())
}

fn blocks_per_multiprocessor(function: Handle, threads: c_int, dynamic: usize) -> Driven<c_int> {
    let state = State::usable()?;
    let function = state.functions.get(function)?;
    let threads = u32::try_from(threads).ok().filter(|n| *n > 0).ok_or(status::INVALID_VALUE)?;
    if threads > function.max_threads() {
        return Ok(0);
    }
    let shared = function.kernel().static_shared + dynamic + 1024;
    let by_shared = (state.config.shared_limit() as usize + 1024) / shared;
    Ok((1536 / threads.next_multiple_of(32)).min(16).min(by_shared as u32) as c_int)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: Out<c_int>,
    function: Handle,
    threads: c_int,
    dynamic: usize,
) -> Status {
    call(|| blocks.set(blocks_per_multiprocessor(function, threads, dynamic)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    blocks: Out<c_int>,
    function: Handle,
    threads: c_int,
    dynamic: usize,
    _flags: c_uint,
) -> Status {
    cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, dynamic)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: Out<c_int>,
    block: Out<c_int>,
    function: Handle,
    _shared_of_block: In<c_void>,
    _dynamic: usize,
    limit: c_int,
) -> Status {
    call(|| {
        let state = State::usable()?;
        let threads = state.functions.get(function)?.max_threads() as c_int;
        grid.set(state.config.multiprocessors)?;
        block.set(if limit > 0 { threads.min(limit) } else { threads })
    })
}
