//! How compiled kernels reach the driver: linked to nothing, from the archive, the cache, NVRTC or
//! lowered PTX, in this order; a cache that is deleted, damaged, full, read-only, shared or left by a
//! killed process never breaks the next run; and every refusal says what to install.
//!
//! What needs a driver runs in a child process on the stand-in driver that `cargo test --workspace`
//! builds (`cargo build --package gpu-sim` alone does too), and says so when that is absent.

use histokern::backend::check::run_once;
use histokern::cuda::cache::Cache;
use histokern::cuda::compile::{Compiler, Output, Request};
use histokern::cuda::embedded::Archive;
use histokern::cuda::{self, CudaBackend};
use histokern::graph::{Graph, Input, Op, Shape};
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_histokern");

/// A compiler that is not there.
const NOWHERE: &str = "/nonexistent/libnvrtc.so.12";

/// Whether NVRTC is installed; says so when it is not.
fn has_nvrtc() -> bool {
    let opened = Compiler::with_cache(None).nvrtc().map(|_| ());
    if let Err(missing) = &opened {
        eprintln!("skipped: {missing}");
    }
    opened.is_ok()
}

/// A folder with the stand-in driver under the names of the real one.
fn stand_in() -> Option<&'static Path> {
    static FOLDER: std::sync::OnceLock<Option<tempfile::TempDir>> = std::sync::OnceLock::new();
    let make = || {
        let library = Path::new(PROGRAM).with_file_name("libgpu_sim.so");
        if !library.exists() {
            eprintln!("skipped: no stand-in driver; cargo build --package gpu-sim makes it");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["libcuda.so", "libcuda.so.1"] {
            std::os::unix::fs::symlink(&library, folder.path().join(name)).unwrap();
        }
        Some(folder)
    };
    FOLDER.get_or_init(make).as_ref().map(tempfile::TempDir::path)
}

/// Runs a command to its end: whether it succeeded, and all it said.
fn finish(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// `histokern kernels compile` of one small kernel into a cache folder.
fn compile(cache: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(["kernels", "compile", "--arch", "sm_80", "--kernel", "copy", "--json"])
        .env("HISTOKERN_CACHE", cache);
    command
}

/// Where the one kernel of [`compile`] came from.
fn source(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let lines: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    lines[0]["source"].as_str().unwrap().to_string()
}

fn one_entry(cache: &Path) -> PathBuf {
    let entries = Cache::new(cache.into()).entries();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].0.clone()
}

// ---- What the program links

#[test]
fn the_program_links_no_cuda_library() {
    let beside = Path::new(PROGRAM).parent().unwrap();
    let builds = ["debug", "release"].map(|p| beside.with_file_name(p).join("histokern"));
    let mut seen = 0;
    for program in builds.iter().filter(|p| p.exists()) {
        let (ok, text) = finish(Command::new("ldd").arg(program));
        assert!(ok && text.contains("libc.so"), "{}: {text}", program.display());
        for name in ["cuda", "nvrtc", "nvidia", "cublas", "cudnn", "nvJitLink"] {
            assert!(!text.contains(name), "{} links {name}: {text}", program.display());
        }
        seen += 1;
    }
    assert!(seen > 0, "no program in {}", beside.display());
}

// ---- What is missing

/// `histokern encode --device cuda` in an environment.
fn encode(environment: &[(&str, &OsStr)]) -> (bool, String) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let picture = root.join("tests/golden/image/picture.png");
    let mut command = Command::new(PROGRAM);
    command.args(["encode", "--device", "cuda", "--package"]).arg(root.join("weights/demo"));
    command.arg(&picture).arg("--output").arg(folder.path().join("features.safetensors"));
    finish(command.env("HISTOKERN_CACHE", folder.path()).envs(environment.iter().copied()))
}

#[test]
fn without_a_driver_the_program_says_what_to_install() {
    if cuda::driver().is_ok() {
        eprintln!("skipped: this machine has a CUDA driver");
        return;
    }
    let (ok, text) = encode(&[]);
    let told = ["--device cuda", "libcuda.so.1 was not found", "NVIDIA driver", "525"];
    assert!(!ok && told.iter().all(|t| text.contains(t)), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    let (ok, text) = finish(Command::new(PROGRAM).arg("doctor"));
    assert!(ok && text.contains("libcuda.so.1 was not found"), "{text}");
}

#[test]
fn a_driver_that_does_not_serve_is_described() {
    let Some(driver) = stand_in() else { return };
    for (variable, value, told) in [
        ("GPU_SIM_DEVICES", "0", &["shows no GPU", "CUDA_VISIBLE_DEVICES is \"7\""][..]),
        ("GPU_SIM_DRIVER", "11.8", &["too old", "CUDA 11.8", "12.0 is needed", "525"]),
        ("GPU_SIM_CC", "7.0", &["compute capability 7.0", "7.5 or newer"]),
        ("HISTOKERN_NVRTC", NOWHERE, &["NVRTC", "pip install", "nvidia-cuda-nvrtc-cu12", NOWHERE]),
    ] {
        let environment = [("LD_LIBRARY_PATH", driver.as_os_str()), (variable, OsStr::new(value))];
        let visible = ("CUDA_VISIBLE_DEVICES", OsStr::new("7"));
        let (ok, text) = encode(&[&environment[..], &[visible]].concat());
        assert!(!ok && told.iter().all(|t| text.contains(t)), "{variable}={value}: {text}");
        assert!(!text.contains("panicked"), "{variable}={value}: {text}");
    }
}

#[test]
fn the_verb_says_what_is_missing() {
    let cache = tempfile::tempdir().unwrap();
    let (ok, text) = finish(compile(cache.path()).env("HISTOKERN_NVRTC", NOWHERE));
    assert!(!ok && text.contains("nvidia-cuda-nvrtc-cu12") && text.contains(NOWHERE), "{text}");
    let (ok, text) = finish(compile(cache.path()).args(["--arch", "sm_70"]));
    assert!(!ok && text.contains("there are sm_75"), "{text}");
    let (_, text) = finish(
        Command::new(PROGRAM)
            .args(["kernels", "list", "--json"])
            .env("HISTOKERN_CACHE", cache.path())
            .env("HISTOKERN_NVRTC", NOWHERE),
    );
    assert!(text.contains("\"source\": \"missing\""), "{text}");
}

#[test]
fn the_verb_lists_and_clears() {
    let cache = tempfile::tempdir().unwrap();
    let list = |arguments: &[&str]| {
        let output = Command::new(PROGRAM)
            .args(["kernels", "list", "--json"])
            .args(arguments)
            .env("HISTOKERN_CACHE", cache.path())
            .output()
            .unwrap();
        let lines: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        lines.as_array().unwrap().clone()
    };
    let names: Vec<_> = list(&["--arch", "sm_90"]).iter().map(|k| k["row"].clone()).collect();
    let kernels = histokern::cuda::kernels::KERNELS;
    assert_eq!(names, kernels.iter().map(|k| k.name).collect::<Vec<_>>());

    if has_nvrtc() {
        assert_eq!(source(&mut compile(cache.path())), "nvrtc");
        let copy = list(&["--arch", "sm_80"]).into_iter().find(|k| k["row"] == "copy").unwrap();
        assert_eq!((&copy["source"], &copy["spill_bytes"]), (&"cache".into(), &0.into()));
        assert!(copy["registers"].as_u64().unwrap() > 0);
        let other = list(&["--arch", "sm_75"]).into_iter().find(|k| k["row"] == "copy").unwrap();
        assert_eq!((&other["source"], &other["registers"]), (&"nvrtc".into(), &().into()));
    }
    let before = Cache::new(cache.path().into()).entries().len();
    std::fs::write(cache.path().join("sm_80-gemm-0-12.9.86.cubin"), [0; 100]).unwrap();
    std::fs::write(cache.path().join("other"), "kept").unwrap();
    let mut clear = Command::new(PROGRAM);
    clear.args(["kernels", "cache", "--clear", "--json"]).env("HISTOKERN_CACHE", cache.path());
    let (ok, text) = finish(&mut clear);
    let state: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(ok && state["entries"] == before + 1, "{text}");
    let left: Vec<_> =
        std::fs::read_dir(cache.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["other"]);
}

// ---- The order, on the stand-in driver

/// Set for a child: how its compiler is made.
const ARCHIVE: &str = "HISTOKERN_TEST_ARCHIVE";
const FOLDER: &str = "HISTOKERN_TEST_FOLDER";

/// Runs one small graph and says what came of it. Started by [`on_the_stand_in`].
#[test]
#[ignore = "run in child processes"]
fn child_runs_a_graph() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let archive = std::env::var_os(ARCHIVE).map(|file| std::fs::read(file).unwrap().leak());
    let archive = archive.map(|bytes| Archive::open(bytes).unwrap());
    let folder = Some(folder).filter(|f| f.is_dir());
    let compiler = Compiler::with_cache(folder).with_archive(archive);
    let mut graph = Graph::new("copied");
    let x = graph.input(Shape::Map { h: 2, w: 3, c: 5 });
    let y = graph.push(Op::Copy, &[x]).unwrap();
    graph.outputs = vec![y];
    let input: Vec<f32> = (0..30).map(|i| i as f32).collect();
    let ran = CudaBackend::with_compiler(0, compiler)
        .and_then(|on| run_once(&on, &Arc::new(graph), 1, &[Input::Values(&input)]));
    match ran {
        Ok(outputs) => println!("RAN {}", outputs == [input]),
        Err(error) => println!("REFUSED {error}"),
    }
}

/// What [`child_runs_a_graph`] says with an archive, a cache folder and an environment.
fn on_the_stand_in(
    driver: &Path,
    archive: Option<&Path>,
    cache: &Path,
    environment: &[(&str, &str)],
) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_runs_a_graph", "--ignored", "--nocapture"]);
    command.env("LD_LIBRARY_PATH", driver).env(FOLDER, cache);
    command.envs(environment.iter().copied());
    if let Some(archive) = archive {
        command.env(ARCHIVE, archive);
    }
    let (_, text) = finish(&mut command);
    let line = text.lines().find(|l| l.contains("RAN ") || l.contains("REFUSED "));
    line.unwrap_or_else(|| panic!("{text}")).to_string()
}

#[test]
fn an_older_or_newer_device_gets_what_it_can_run() {
    let Some(driver) = stand_in().filter(|_| has_nvrtc()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("cubins.zip");
    let cache = folder.path().join("cache");
    let mut make = compile(&cache);
    let (ok, text) = finish(make.arg("--out").arg(&archive));
    assert!(ok, "{text}");
    let none = Path::new("/nonexistent");
    let without = ("HISTOKERN_NVRTC", NOWHERE);
    let ran = |archive, cache, environment: &[(&str, &str)]| {
        let said = on_the_stand_in(driver, archive, cache, environment);
        assert!(said.contains("RAN true"), "{environment:?}: {said}");
    };
    // The stand-in takes no machine code, so that all of these run PTX; what the compiler wrote
    // states the version of its own release, which the oldest driver refuses.
    ran(None, &cache, &[("GPU_SIM_DRIVER", "12.0")]);
    ran(None, &cache, &[("GPU_SIM_DRIVER", "12.0"), without]);
    ran(None, none, &[("GPU_SIM_DRIVER", "12.0"), ("GPU_SIM_CC", "9.0")]);
    // The archive alone: its own architecture, a later one, and one that no kernel was made for.
    for capability in ["8.0", "8.9", "9.0", "13.0"] {
        ran(
            Some(&archive),
            none,
            &[("GPU_SIM_DRIVER", "12.0"), ("GPU_SIM_CC", capability), without],
        );
    }
    let environment = [("GPU_SIM_CC", "7.5"), without];
    let said = on_the_stand_in(driver, Some(&archive), none, &environment);
    assert!(said.contains("REFUSED") && said.contains("pip install"), "{said}");
}

/// A compiler of a newer major version than the driver's: its machine code would not load.
#[test]
fn a_newer_compiler_than_the_driver_gives_ptx() {
    let Some(library) = std::env::var("HISTOKERN_NVRTC_13").ok() else {
        eprintln!("skipped: HISTOKERN_NVRTC_13 is not set");
        return;
    };
    let Some(driver) = stand_in() else { return };
    let environment = [("GPU_SIM_DRIVER", "12.0"), ("HISTOKERN_NVRTC", library.as_str())];
    let said = on_the_stand_in(driver, None, Path::new("/nonexistent"), &environment);
    assert!(said.contains("RAN true"), "{said}");
}

/// Only in a build with the feature: every entry linked in is one the program asks for.
#[cfg(feature = "embed-cubins")]
#[test]
fn embedded_kernels_are_found() {
    use histokern::cuda::compile::Origin;
    use histokern::cuda::kernels::{ARCHITECTURES, KERNELS};
    let compiler = Compiler::with_cache(None).with_nvrtc(NOWHERE.into());
    let mut keys: Vec<&str> = compiler.archive().unwrap().keys().collect();
    assert!(!keys.is_empty());
    for arch in ARCHITECTURES {
        for instance in KERNELS.iter().filter(|k| k.runs_on(arch)).flat_map(|k| k.instances()) {
            let request = instance.request(arch);
            let key = compiler.key(&request).unwrap();
            if let Some(found) = compiler.find(&request).unwrap() {
                assert_eq!(found.origin, Origin::Embedded);
                keys.retain(|k| *k != key);
            }
        }
    }
    assert!(keys.is_empty(), "linked in and never asked for: {keys:?}");
}

// ---- The cache, whatever happens to it

#[test]
fn deleted_cut_and_damaged_entries_are_made_again() {
    if !has_nvrtc() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("deep/cache");
    assert_eq!(source(&mut compile(&cache)), "nvrtc");
    assert_eq!(source(&mut compile(&cache)), "cache");
    let entry = one_entry(&cache);
    let whole = std::fs::read(&entry).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [&whole[..whole.len() / 2], &[], &flipped] {
        std::fs::write(&entry, damaged).unwrap();
        assert_eq!(source(&mut compile(&cache)), "nvrtc", "{} bytes", damaged.len());
        assert!(std::fs::read(one_entry(&cache)).unwrap() == whole, "other bytes than before");
    }
    std::fs::remove_file(&entry).unwrap();
    assert_eq!(source(&mut compile(&cache)), "nvrtc");
    std::fs::remove_dir_all(&cache).unwrap();
    assert_eq!(source(&mut compile(&cache)), "nvrtc");
    // Something else under the name of the entry, and of the folder.
    std::fs::remove_file(&entry).unwrap();
    std::fs::create_dir(&entry).unwrap();
    assert_eq!(source(&mut compile(&cache)), "nvrtc");
    std::fs::remove_dir_all(&cache).unwrap();
    std::fs::write(&cache, "a file").unwrap();
    assert_eq!(source(&mut compile(&cache)), "nvrtc");
}

#[test]
fn a_cache_that_cannot_be_written_is_said_and_harmless() {
    if !has_nvrtc() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let locked = folder.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o555)).unwrap();
    // For the superuser no permission is an obstacle; nobody can make a file in /proc.
    for cache in [locked.as_path(), Path::new("/proc/histokern")] {
        assert_eq!(source(&mut compile(cache)), "nvrtc");
        assert!(["nvrtc", "cache"].contains(&source(&mut compile(cache)).as_str()));
    }
    let (_, text) = finish(&mut compile(Path::new("/proc/histokern")));
    assert!(text.contains("not kept for the next run") && text.contains("/proc/"), "{text}");
    let mut doctor = Command::new(PROGRAM);
    let (_, text) = finish(doctor.arg("doctor").env("HISTOKERN_CACHE", "/proc/histokern"));
    assert!(text.contains("cannot be written"), "{text}");

    // A disk that fills up in the middle of an entry: writes beyond 8 blocks of 512 bytes fail.
    let full = folder.path().join("full");
    let shell = "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"";
    let limited = |command: &Command| {
        let mut shelled = Command::new("sh");
        shelled.args(["-c", shell, PROGRAM]).args(command.get_args());
        shelled.env("HISTOKERN_CACHE", &full);
        shelled
    };
    for _ in 0..2 {
        let (ok, text) = finish(&mut limited(&compile(&full)));
        assert!(ok && text.contains("not kept for the next run"), "{text}");
        assert_eq!(std::fs::read_dir(&full).unwrap().count(), 0, "half an entry stays");
    }
    assert_eq!(source(&mut compile(&full)), "nvrtc");
    assert_eq!(source(&mut compile(&full)), "cache");
}

#[test]
fn processes_that_fill_one_cache_at_once_agree() {
    if !has_nvrtc() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let start = || compile(folder.path()).stdout(Stdio::null()).spawn().unwrap();
    let running: Vec<Child> = (0..4).map(|_| start()).collect();
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    one_entry(folder.path());
    assert_eq!(source(&mut compile(folder.path())), "cache");
}

/// An entry whose bytes are all alike.
fn uniform(byte: u8) -> Output {
    Output { cubin: vec![byte; 4 << 20], ptx: vec![byte; 1 << 20], log: String::new() }
}

/// Writes entries without end. Started, and killed, by the test below.
#[test]
#[ignore = "run in child processes"]
fn child_writes_entries() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let cache = Cache::new(folder.into());
    for byte in (0..=255).cycle() {
        cache.write("sm_80-x-0", "12.9.86", &uniform(byte));
        assert_eq!(cache.problem(), None);
    }
}

#[test]
fn a_writer_killed_at_any_moment_leaves_a_whole_entry_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path().into());
    let (mut unfinished, mut whole) = (0, 0);
    for round in 0..24u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_writes_entries", "--ignored"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(20 + round * 37 % 101));
        child.kill().unwrap();
        child.wait().unwrap();
        if let Some((entry, _)) = cache.entries().first() {
            let read = cache.read("sm_80-x-0", "12.9.86");
            let read = read.unwrap_or_else(|| panic!("{}: not whole", entry.display()));
            assert!(read.cubin == uniform(read.cubin[0]).cubin);
            whole += 1;
        }
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        unfinished += usize::from(files > cache.entries().len());
        cache.clear().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "leftovers stay");
    }
    // Otherwise nobody was killed in the middle and nothing was shown.
    assert!(unfinished > 0 && whole > 0, "{unfinished} unfinished, {whole} whole");
    cache.write("sm_80-x-0", "12.9.86", &uniform(7));
    assert!(cache.read("sm_80-x-0", "12.9.86").is_some());
}

#[test]
fn the_program_killed_while_it_compiles_runs_again() {
    if !has_nvrtc() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for round in 0..8u64 {
        let mut child = compile(folder.path()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(15 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let request = Request { file: "layout.cu".into(), arch: "sm_80".into(), defines: vec![] };
        let compiler = Compiler::with_cache(Some(folder.path().into())).with_archive(None);
        assert!(!compiler.compile(&request).unwrap().output.cubin.is_empty());
        assert_eq!(source(&mut compile(folder.path())), "cache");
        compiler.cache().unwrap().clear().unwrap();
    }
}
