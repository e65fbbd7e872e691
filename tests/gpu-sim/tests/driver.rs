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
