//! The stand-in driver through cudarc, unmodified: what a program must do works, and what it must not
//! forget is found out. Every test runs this file again as a child process, because a driver is one
//! for a process and a failed kernel makes it unusable.

#[path = "common/mod.rs"]
mod common;

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode as CaptureMode};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;

const CHILD: &str = "GPU_SIM_TEST_CHILD";

/// The cdylib that cargo built for this test.
fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folders = program.ancestors().skip(1).take(2);
    let found = folders.map(|f| f.join("libgpu_sim.so")).find(|f| f.exists());
    found.expect("cargo builds the cdylib beside the tests")
}

/// Runs `body` in a child that finds the stand-in driver; returns the child's stderr.
fn in_child(test: &str, environment: &[(&str, &str)], body: impl FnOnce()) -> Option<String> {
    if std::env::var_os(CHILD).is_some() {
        body();
        return None;
    }
    let folder = std::env::temp_dir().join(format!("gpu-sim-{}-{test}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        let link = folder.join(name);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(library(), link).unwrap();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("LD_LIBRARY_PATH", &folder)
        .env(CHILD, "1")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{test} in its child:\n{stdout}\n{stderr}");
    assert!(stdout.contains("1 passed"), "{test} did not run:\n{stdout}");
    Some(stderr)
}

struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
}

fn gpu(fixture: &str) -> Gpu {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: nothing has been allocated, and every test orders its own work.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let module = context.load_module(Ptx::from_src(common::fixture(fixture))).unwrap();
    Gpu { context, stream, module }
}

impl Gpu {
    fn function(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).unwrap()
    }
}

fn shape(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// c = a + b of 1000 elements on a stream.
fn add(gpu: &Gpu, on: &Arc<CudaStream>, a: u64, b: u64, c: u64) -> Result<(), DriverError> {
    let (f, n) = (gpu.function("vector_add"), 1000i32);
    // SAFETY: the kernel takes three addresses and a count.
    unsafe { on.launch_builder(&f).arg(&a).arg(&b).arg(&c).arg(&n).launch(shape(8, 128)) }?;
    Ok(())
}

fn numbers(step: f32) -> Vec<f32> {
    (0..1000).map(|i| i as f32 * step).collect()
}

fn sum(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// Raw address of a slice.
macro_rules! address {
    ($slice:expr, $stream:expr) => {{
        use cudarc::driver::DevicePtr;
        $slice.device_ptr($stream).0
    }};
}

#[test]
fn copies_launches_and_properties() {
    in_child("copies_launches_and_properties", &[("GPU_SIM_CC", "8.6")], || {
        let gpu = gpu("basic");
        assert_eq!(gpu.context.compute_capability().unwrap(), (8, 6));
        assert!(gpu.context.name().unwrap().contains("gpu-sim"));
        let (a, b) = (numbers(0.5), numbers(2.0));
        let s = &gpu.stream;
        let (da, db) = (s.clone_htod(&a).unwrap(), s.clone_htod(&b).unwrap());
        let dc = s.alloc_zeros::<f32>(1000).unwrap();
        add(&gpu, s, address!(da, s), address!(db, s), address!(dc, s)).unwrap();
        assert_eq!(s.clone_dtoh(&dc).unwrap(), sum(&a, &b));
        let f = gpu.function("block_sum");
        assert_eq!(f.max_threads_per_block().unwrap(), 1024);
        assert!(f.shared_size_bytes().unwrap() >= 32);
        assert!(f.occupancy_max_active_blocks_per_multiprocessor(256, 0, None).unwrap() > 0);
        let missing = gpu.module.load_function("no_such_kernel").err().unwrap();
        assert_eq!(missing.0, CUresult::CUDA_ERROR_NOT_FOUND);
        let (free, total) = gpu.context.mem_get_info().unwrap();
        assert!(free < total && total == 16 << 30);
    });
}

#[test]
fn a_graph_is_captured_and_replayed() {
    in_child("a_graph_is_captured_and_replayed", &[], || {
        let gpu = gpu("basic");
        let s = &gpu.stream;
        let (a, b) = (numbers(1.0), numbers(0.25));
        let (da, db) = (s.clone_htod(&a).unwrap(), s.clone_htod(&b).unwrap());
        let mut dc = s.alloc_zeros::<f32>(1000).unwrap();
        s.synchronize().unwrap();
        s.begin_capture(CaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        add(&gpu, s, address!(da, s), address!(db, s), address!(dc, s)).unwrap();
        // b becomes the sum, so that a second replay gives something else.
        add(&gpu, s, address!(dc, s), address!(db, s), address!(db, s)).unwrap();
        let graph = s.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
        s.memset_zeros(&mut dc).unwrap();
        assert_eq!(s.clone_dtoh(&dc).unwrap(), [0.0; 1000], "capturing runs nothing");
        graph.launch().unwrap();
        assert_eq!(s.clone_dtoh(&dc).unwrap(), sum(&a, &b));
        graph.launch().unwrap();
        let twice = sum(&a, &sum(&sum(&a, &b), &b));
        assert_eq!(s.clone_dtoh(&dc).unwrap(), twice);
        let null = gpu.context.default_stream();
        assert!(null.begin_capture(CaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).is_err());
    });
}

/// Copies on one stream, adds on another, with or without an event between them.
fn two_streams(ordered: bool) -> Result<Vec<f32>, DriverError> {
    let gpu = gpu("basic");
    let (copies, work) = (gpu.context.new_stream()?, gpu.stream.clone());
    // SAFETY: written below, or found out by the driver under test.
    let (mut host, da) = unsafe { (gpu.context.alloc_pinned::<f32>(1000)?, work.alloc(1000)?) };
    let mut da: cudarc::driver::CudaSlice<f32> = da;
    host.as_mut_slice()?.copy_from_slice(&numbers(3.0));
    let db = work.clone_htod(&numbers(1.0))?;
    let dc = work.alloc_zeros::<f32>(1000)?;
    copies.memcpy_htod(&host, &mut da)?;
    if ordered {
        work.wait(&copies.record_event(None)?)?;
    }
    add(&gpu, &work, address!(da, &work), address!(db, &work), address!(dc, &work))?;
    work.clone_dtoh(&dc)
}

#[test]
fn an_event_orders_two_streams() {
    in_child("an_event_orders_two_streams", &[], || {
        assert_eq!(two_streams(true).unwrap(), sum(&numbers(3.0), &numbers(1.0)));
    });
}

#[test]
fn a_missing_event_is_found_out() {
    let stderr = in_child("a_missing_event_is_found_out", &[], || {
        assert_eq!(two_streams(false).unwrap_err().0, CUresult::CUDA_ERROR_LAUNCH_FAILED);
    });
    if let Some(stderr) = stderr {
        assert!(
            stderr.contains("kernel vector_add") && stderr.contains("never written"),
            "{stderr}"
        );
    }
}

#[test]
fn a_failed_kernel_is_reported_and_sticks() {
    let stderr = in_child("a_failed_kernel_is_reported_and_sticks", &[], || {
        let gpu = gpu("faults");
        let s = &gpu.stream;
        let x = s.alloc_zeros::<f32>(150).unwrap();
        let (f, n, p) = (gpu.function("off_by_one"), 150i32, address!(x, s));
        // SAFETY: the kernel takes an address and a count; what it does wrong is the test.
        unsafe { s.launch_builder(&f).arg(&p).arg(&n).launch(shape(3, 64)) }.unwrap();
        let failed = CUresult::CUDA_ERROR_LAUNCH_FAILED;
        assert_eq!(s.synchronize().unwrap_err().0, failed);
        assert_eq!(s.synchronize().unwrap_err().0, failed);
        assert_eq!(s.alloc_zeros::<f32>(1).unwrap_err().0, failed);
        std::mem::forget(x);
    });
    if let Some(stderr) = stderr {
        for part in ["kernel off_by_one", "block (2, 0, 0)", "thread (22, 0, 0)", "PTX line"] {
            assert!(stderr.contains(part), "{part} is not in: {stderr}");
        }
    }
}

#[test]
fn images_that_do_not_fit_the_device_are_refused() {
    in_child("images_that_do_not_fit_the_device_are_refused", &[("GPU_SIM_CC", "7.5")], || {
        let context = CudaContext::new(0).unwrap();
        let load = |image: Vec<u8>| context.load_module(Ptx::from_binary(image)).err().unwrap().0;
        let cubin = b"\x7fELF\x02\x01\x01".to_vec();
        assert_eq!(load(cubin), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        let newer = CString::new(common::fixture("basic")).unwrap().into_bytes_with_nul();
        assert_eq!(load(newer), CUresult::CUDA_ERROR_INVALID_PTX);
    });
}

#[test]
fn no_device_and_no_context() {
    in_child("no_device_and_no_context", &[("GPU_SIM_DEVICES", "0")], || {
        assert_eq!(CudaContext::new(0).err().unwrap().0, CUresult::CUDA_ERROR_NO_DEVICE);
    });
}

#[test]
fn memory_runs_out_and_comes_back() {
    in_child("memory_runs_out_and_comes_back", &[("GPU_SIM_MEMORY", "1000000")], || {
        let context = CudaContext::new(0).unwrap();
        let s = context.new_stream().unwrap();
        let half = s.alloc_zeros::<u8>(600_000).unwrap();
        let full = s.alloc_zeros::<u8>(600_000).unwrap_err();
        assert_eq!(full.0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        drop(half);
        s.synchronize().unwrap();
        s.alloc_zeros::<u8>(600_000).unwrap();
    });
}

#[test]
fn an_allocation_fails_on_demand() {
    in_child("an_allocation_fails_on_demand", &[("GPU_SIM_FAIL_ALLOC", "2")], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let _first = stream.alloc_zeros::<u8>(16).unwrap();
        let second = stream.alloc_zeros::<u8>(16).unwrap_err();
        assert_eq!(second.0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        stream.alloc_zeros::<u8>(16).unwrap();
    });
}

#[test]
fn memory_of_another_device_is_out_of_reach() {
    let two = [("GPU_SIM_DEVICES", "2")];
    let said = in_child("memory_of_another_device_is_out_of_reach", &two, || {
        let [a, b] = [0, 1].map(|ordinal| CudaContext::new(ordinal).unwrap());
        b.bind_to_thread().unwrap();
        // SAFETY: the context is current.
        let address = unsafe { cudarc::driver::result::malloc_sync(16) }.unwrap();
        // SAFETY: the buffer was just allocated with this size.
        let copy =
            |bytes: &[u8]| unsafe { cudarc::driver::result::memcpy_htod_sync(address, bytes) };
        copy(&[7; 16]).unwrap();
        a.bind_to_thread().unwrap();
        assert!(copy(&[7; 16]).is_err());
    });
    assert!(said.is_none_or(|text| text.contains("not device memory")));
}

#[test]
fn the_library_exports_what_programs_look_up() {
    let path: &Path = &library();
    // SAFETY: loading runs no code of its own.
    let library = unsafe { libloading::Library::new(path) }.unwrap();
    for name in ["cuInit", "cuGetExportTable", "cuLaunchKernelEx", "cuTensorMapEncodeIm2col"] {
        let symbol = CString::new(name).unwrap();
        // SAFETY: the symbol is only looked up, not called.
        let found = unsafe { library.get::<unsafe extern "C" fn()>(symbol.as_bytes_with_nul()) };
        assert!(found.is_ok(), "{name}");
    }
}

/// An FP16 image of 64 channels, 30 x 20 pixels, 2 images, as im2col; what differs is given.
fn image(
    pitch: u64,
    [lower, upper]: [[i32; 2]; 2],
    [channels, pixels]: [u32; 2],
    stride: u32,
) -> CUresult {
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: arrays of the lengths that rank 4 asks for, which outlive the call.
    unsafe {
        sys::cuTensorMapEncodeIm2col(
            &mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            4,
            0x10000 as *mut _,
            [64, 30, 20, 2].as_ptr(),
            [pitch, pitch * 30, pitch * 600].as_ptr(),
            lower.as_ptr(),
            upper.as_ptr(),
            channels,
            pixels,
            [1, stride, stride, 1].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
}

#[test]
fn tensor_maps_beyond_the_limits_are_refused() {
    let environment = [("GPU_SIM_CC", "9.0")];
    let said = in_child("tensor_maps_beyond_the_limits_are_refused", &environment, || {
        let _context = CudaContext::new(0).unwrap();
        let (good, bad) = (CUresult::CUDA_SUCCESS, CUresult::CUDA_ERROR_INVALID_VALUE);
        let corners = [[-1, -1], [-1, -1]];
        assert_eq!(image(128, corners, [64, 128], 2), good);
        assert_eq!(image(128, [[-128, 0], [127, 0]], [64, 1024], 8), good);
        assert_eq!(image(120, corners, [64, 128], 1), bad);
        assert_eq!(image(128, [[-129, 0], [0, 0]], [64, 128], 1), bad);
        assert_eq!(image(128, [[0, 0], [0, 128]], [64, 128], 1), bad);
        assert_eq!(image(128, [[0, 0], [-30, 0]], [64, 128], 1), bad);
        assert_eq!(image(128, corners, [128, 128], 1), bad);
        assert_eq!(image(128, corners, [0, 128], 1), bad);
        assert_eq!(image(128, corners, [64, 1025], 1), bad);
        assert_eq!(image(128, corners, [64, 128], 9), bad);
        assert_eq!(image(128, corners, [64, 128], 0), bad);
    });
    if let Some(said) = said {
        assert_eq!(said.matches("tensor map refused").count(), 9, "{said}");
    }
}

fn launch_in_clusters(stream: &CudaStream, grid: u32, cluster: [u32; 3]) -> CUresult {
    let text = CString::new(common::fixture("hopper")).unwrap();
    // SAFETY: the text ends in a NUL, and the function is used while the module is loaded.
    let function = unsafe {
        let module = cudarc::driver::result::module::load_data(text.as_ptr().cast()).unwrap();
        cudarc::driver::result::module::get_function(module, c"exchange".into())
    };
    let [x, y, z] = cluster;
    let mut attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z },
        },
    };
    let config = sys::CUlaunchConfig {
        gridDimX: grid,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream.cu_stream(),
        attrs: &mut attribute,
        numAttrs: 1,
    };
    let mut places = [0u64; 2];
    let mut arguments = [0, 1].map(|i| (&raw mut places[i]).cast());
    // SAFETY: as many arguments as the kernel takes; nothing waits for a launch that is refused.
    unsafe {
        sys::cuLaunchKernelEx(
            &config,
            function.unwrap(),
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    }
}

#[test]
fn clusters_must_divide_the_grid_and_fit() {
    in_child("clusters_must_divide_the_grid_and_fit", &[("GPU_SIM_CC", "9.0")], || {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        let bad = CUresult::CUDA_ERROR_INVALID_VALUE;
        assert_eq!(launch_in_clusters(&stream, 5, [2, 1, 1]), bad);
        assert_eq!(launch_in_clusters(&stream, 6, [0, 1, 1]), bad);
        assert_eq!(
            launch_in_clusters(&stream, 32, [16, 1, 1]),
            CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE
        );
    });
}
