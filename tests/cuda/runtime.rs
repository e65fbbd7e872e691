//! The runtime around the kernels: overlapped batches, bounded memory, several devices, a device that
//! fails. What needs a driver of its own (two devices, little memory, a fault) runs the program as a
//! child under the `GPU_SIM_*` variables, and so only on the stand-in driver.

use super::backend;
use super::cases::{Case, Numbers, Values};
use histokern::Kind;
use histokern::backend::check::run_once;
use histokern::backend::{Backend, Batch, HostMemory, Input, Overlapped, Several, prepare_fitting};
use histokern::cuda::compile::{Compiler, SOURCES};
use histokern::cuda::{CudaBackend, Tuning};
use histokern::graph::{Epilogue, Graph, Op, Shape, Window};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, OnceLock};
use std::{env, fs};

/// Pixels to features: normalised, convolved, pooled.
pub(super) fn network() -> Case {
    let mut g = Graph::new("tiny");
    let pixels = g.input(Shape::Pixels { h: 9, w: 7 });
    let (mean, std) = ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]);
    let x = g.push(Op::Normalize { mean, std }, &[pixels]).unwrap();
    let data = (0..20 * 27).map(|i| half::f16::from_f32((i * 7 % 23) as f32 / 40.0 - 0.25));
    let weight = g.param_f16("w", &[20, 3, 3, 3], data.collect()).unwrap();
    let op = Op::Conv2d { weight, window: Window::square(3, 1, 1), epilogue: Epilogue::default() };
    let x = g.push(op, &[x]).unwrap();
    let x = g.push(Op::AdaptiveAvgPool { h: 2, w: 2 }, &[x]).unwrap();
    let features = g.push(Op::Flatten, &[x]).unwrap();
    g.output(features);
    Case { name: "tiny".into(), graph: Arc::new(g), rows: 4 }
}

pub(super) const WIDTH: usize = 80;

pub(super) fn pixels(case: &Case, first: usize, rows: usize) -> Vec<u8> {
    match case.inputs(Numbers::General, first, rows).remove(0) {
        Values::Pixels(pixels) => pixels,
        Values::F32(_) => unreachable!("the input is pixels"),
    }
}

/// Feeds batches of several sizes, as many under way as there are lanes, and compares with `want`.
fn feed(overlapped: &mut dyn Overlapped, case: &Case, want: &[f32], batches: &[(usize, usize)]) {
    let lanes = overlapped.lanes();
    let mut free: Vec<HostMemory> = (0..lanes).map(|_| overlapped.lend(4 * 189).unwrap()).collect();
    let mut under_way = Vec::new();
    let mut left = batches.iter();
    loop {
        if let Some(mut memory) = free.pop() {
            let Some(&(first, rows)) = left.next() else { break };
            memory.fill(0xAB);
            memory[..rows * 189].copy_from_slice(&pixels(case, first, rows));
            overlapped.submit(Batch::new(rows, memory)).unwrap();
            under_way.push((first, rows));
        } else {
            free.push(collect(overlapped, want, under_way.remove(0)));
        }
    }
    for batch in under_way {
        collect(overlapped, want, batch);
    }
}

fn collect(on: &mut dyn Overlapped, want: &[f32], (first, rows): (usize, usize)) -> HostMemory {
    let mut got = vec![f32::NAN; rows * WIDTH];
    let memory = on.collect(&mut [&mut got]).unwrap();
    let want = &want[first * WIDTH..][..rows * WIDTH];
    assert!(got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits()), "{rows} from {first}");
    memory
}

const BATCHES: &[(usize, usize)] = &[(0, 4), (4, 4), (8, 3), (1, 1), (11, 4), (3, 4), (7, 2)];

#[test]
fn overlapped_batches_have_the_bits_of_single_ones() {
    let Some(backend) = backend() else { return };
    let case = network();
    let all = pixels(&case, 0, 16);
    let want = run_once(&backend, &case.graph, 16, &[Input::Pixels(&all)]).unwrap().remove(0);
    let mut session = backend.prepare(case.graph.clone(), 4).unwrap();
    feed(session.overlapped().unwrap(), &case, &want, BATCHES);
    // Again, now from captured graphs, and left with batches under way.
    let on = session.overlapped().unwrap();
    feed(on, &case, &want, BATCHES);
    let memory = on.lend(4 * 189).unwrap();
    on.submit(Batch::new(4, memory)).unwrap();
    drop(session);
}

#[test]
fn lanes_refuse_what_they_cannot_do() {
    let Some(backend) = backend() else { return };
    let case = network();
    let mut session = backend.prepare(case.graph.clone(), 2).unwrap();
    let on = session.overlapped().unwrap();
    let memory = |bytes: usize| -> HostMemory { Box::new(vec![0; bytes]) };
    let usage = |error: histokern::Error, says: &str| {
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    };
    let mut out = vec![0f32; WIDTH];
    usage(on.collect(&mut [&mut out]).err().unwrap(), "no batch");
    usage(on.submit(Batch::new(3, memory(3 * 189))).unwrap_err(), "room for 2");
    usage(on.submit(Batch::new(2, memory(189))).unwrap_err(), "189 bytes");
    usage(on.submit(Batch::new(0, memory(189))).unwrap_err(), "0 rows");
    for _ in 0..on.lanes() {
        on.submit(Batch::new(1, memory(189))).unwrap();
    }
    usage(on.submit(Batch::new(1, memory(189))).unwrap_err(), "every lane");
    usage(on.collect(&mut [&mut out[1..]]).err().unwrap(), "another size");
    let one = pixels(&case, 0, 1);
    let error = session.run(1, &[Input::Pixels(&one)], &mut [&mut out]).unwrap_err();
    usage(error, "under way");
    usage(session.reserve(4).unwrap_err(), "under way");
    let on = session.overlapped().unwrap();
    for _ in 0..on.lanes() {
        on.collect(&mut [&mut out]).unwrap();
    }
    session.run(1, &[Input::Pixels(&one)], &mut [&mut out]).unwrap();
}

/// Two sessions of one device stand for two devices: who computes a batch must not show.
#[test]
fn several_devices_share_the_batches_of_one_queue() {
    let Some(first) = backend() else { return };
    let case = network();
    let all = pixels(&case, 0, 16);
    let want = run_once(&first, &case.graph, 16, &[Input::Pixels(&all)]).unwrap().remove(0);
    let both: Vec<Box<dyn Backend>> = vec![Box::new(first), Box::new(backend().unwrap())];
    let several = Several::new(both).unwrap();
    assert!(several.name().contains("2 x "), "{}", several.name());
    let mut session = several.prepare(case.graph.clone(), 4).unwrap();
    assert_eq!((session.max_rows(), session.overlapped().unwrap().lanes()), (4, 4));
    feed(session.overlapped().unwrap(), &case, &want, BATCHES);
}

#[test]
fn a_memory_limit_makes_batches_smaller_and_says_so() {
    let Some(free) = backend() else { return };
    let case = network();
    let limited = CudaBackend::new(0).unwrap().with_memory_limit(256 << 10).unwrap();
    let error = limited.prepare(case.graph.clone(), 100_000).err().unwrap();
    assert_eq!(error.kind(), Kind::Limit);
    assert!(error.to_string().contains("limit of 0.2 MiB"), "{error}");
    let (session, note) = prepare_fitting(&limited, case.graph.clone(), 1000).unwrap();
    let note = note.unwrap();
    let rows = session.max_rows();
    assert!((2..500).contains(&rows), "{rows} rows");
    assert!(note.contains(&format!("batches of {rows} instead of 1000")), "{note}");
    drop(session);
    // What was given back counts as free again.
    assert_eq!(prepare_fitting(&limited, case.graph.clone(), 1000).unwrap().0.max_rows(), rows);
    assert!(prepare_fitting(&free, case.graph.clone(), 1000).unwrap().1.is_none());
    let tiny = CudaBackend::new(0).unwrap().with_memory_limit(3 << 10).unwrap();
    assert_eq!(prepare_fitting(&tiny, case.graph, 8).err().unwrap().kind(), Kind::Limit);
}

// ---- the choice of tiles ------------------------------------------------------------------

/// A clock by which the middle of the ranking is fastest.
fn pretended(kernel: &str) -> f64 {
    if kernel.ends_with("128x64") { 1.0 } else { 2.0 }
}

/// The features of 8 rows, and what the cache says of tiles.
fn tuned(folder: &Path, tuning: Tuning, edit: Option<[&str; 3]>) -> (Vec<u32>, serde_json::Value) {
    let case = network();
    let mut compiler = Compiler::with_cache(Some(folder.into()));
    if let Some([file, right, wrong]) = edit {
        let text = SOURCES.iter().find(|(name, _)| *name == file).unwrap().1;
        assert!(text.contains(right), "{file} has no {right}");
        compiler = compiler.with_source(file, text.replace(right, wrong)).unwrap();
    }
    let backend = CudaBackend::with_compiler(0, compiler).unwrap().with_tuning(tuning).unwrap();
    let all = pixels(&case, 0, 8);
    let features = run_once(&backend, &case.graph, 8, &[Input::Pixels(&all)]).unwrap().remove(0);
    let listing = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let memo = listing.filter(|p| p.extension().is_some_and(|e| e == "json")).collect::<Vec<_>>();
    let memo = match &memo[..] {
        [] => serde_json::Value::Null,
        [file] => serde_json::from_slice(&fs::read(file).unwrap()).unwrap(),
        more => panic!("{more:?}"),
    };
    (features.iter().map(|x| x.to_bits()).collect(), memo)
}

#[test]
fn timed_tiles_are_remembered_and_change_no_bit() {
    if backend().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (want, memo) = tuned(folder.path(), Tuning::Off, None);
    assert!(memo.is_null(), "{memo:#}");
    let (got, memo) = tuned(folder.path(), Tuning::Pretended(pretended), None);
    assert!(got == want, "other bits with a timed tile");
    let tiles: Vec<_> = memo["tiles"].as_object().unwrap().iter().collect();
    assert_eq!(tiles.len(), 1, "{memo:#}");
    assert!(tiles[0].0.starts_with("conv2d 504 x 20 x 72 kernel [3, 3]"), "{memo:#}");
    assert_eq!(tiles[0].1, "conv2d 128x64");
    assert_eq!(memo["dropped"].as_object().unwrap().len(), 0, "{memo:#}");
    // What is known is not timed again.
    let never = Tuning::Pretended(|kernel| panic!("{kernel} timed again"));
    assert!(tuned(folder.path(), never, None) == (want, memo));
}

#[test]
fn a_fast_tile_with_other_bits_is_dropped() {
    if backend().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let fault = [
        "tile.cuh",
        "sums[i][j][e] = 0.f;",
        "sums[i][j][e] = T::BM == 128 && T::BN == 64 ? 1e-3f : 0.f;",
    ];
    let (want, _) = tuned(folder.path(), Tuning::Off, Some(fault));
    let (got, memo) = tuned(folder.path(), Tuning::Pretended(pretended), Some(fault));
    assert!(got == want, "a wrong tile was used");
    let dropped: Vec<_> = memo["dropped"].as_object().unwrap().values().collect();
    assert_eq!(dropped, [&serde_json::json!(["conv2d 128x64"])], "{memo:#}");
}

/// The device's own clock, where there is one: on the stand-in it is the interpreter's, but what it
/// chooses must be right all the same.
#[test]
fn tiles_timed_by_the_device_are_right() {
    if backend().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (want, _) = tuned(folder.path(), Tuning::Off, None);
    let (got, memo) = tuned(folder.path(), Tuning::On, None);
    assert!(got == want, "other bits with a timed tile");
    assert_eq!(memo["tiles"].as_object().unwrap().len(), 1, "{memo:#}");
}

// ---- the program on a driver of its own -----------------------------------------------------

/// A slide and where results go; `None` where the driver is not the stand-in.
fn slides() -> Option<&'static Path> {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let found = backend()?;
    if !found.name().contains("interpreter") {
        eprintln!("only on the stand-in driver, skipped: {}", found.name());
        return None;
    }
    Some(FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("runtime");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        for (name, seed) in [("a", "3"), ("b", "4")] {
            let slide = folder.join(format!("{name}.svs")).display().to_string();
            let size = ["--width", "1024", "--height", "1024"];
            let args = ["synth", "-o", &slide, "--quiet", "--seed", seed];
            let made = program(&[&args[..], &size[..]].concat(), &[]);
            assert!(made.status.success(), "{}", errors(&made));
        }
        folder
    }))
}

fn program(args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_histokern"));
    command.args(args).envs(environment.iter().copied()).output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs `predict` on both slides and returns what it wrote for the first.
fn predict(
    folder: &Path,
    out: &str,
    args: &[&str],
    environment: &[(&str, &str)],
) -> (Output, PathBuf) {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo").display().to_string();
    let [a, b] = ["a.svs", "b.svs"].map(|name| folder.join(name).display().to_string());
    let out = folder.join(out);
    let path = out.display().to_string();
    let all = ["predict", &a, &b, "--package", &package, "--out", &path];
    (program(&[&all[..], args].concat(), environment), out)
}

/// What was said of both slides: the scores of their tiles and the predictions.
fn said(out: &Path) -> [(String, serde_json::Value); 2] {
    ["a", "b"].map(|name| {
        let read = |file: &str| fs::read_to_string(out.join(name).join(file)).unwrap();
        let result: serde_json::Value = serde_json::from_str(&read("result.json")).unwrap();
        assert!(result["predictions"][0]["logits"][0].is_number(), "{result:#}");
        (read("attention.csv"), result["predictions"].clone())
    })
}

/// Bytes that left the device during a traced run.
fn copied_out(run: &Output) -> usize {
    let text = errors(run);
    let copies = text.lines().filter_map(|line| line.split_once("copy out, "));
    copies.map(|(_, bytes)| bytes.split(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

#[test]
fn two_devices_and_little_memory_change_no_bit() {
    let Some(folder) = slides() else { return };
    let trace = ("GPU_SIM_TRACE", "1");
    let (one, out) = predict(folder, "one", &["--device", "cuda", "--batch", "5"], &[trace]);
    assert!(one.status.success(), "{}", errors(&one));
    let want = said(&out);
    assert!(want[0].0.len() > 100 && want[0] != want[1]);
    // What leaves the device is what the head says: a logit, and a score of every tile.
    let lines: usize = want.iter().map(|(scores, _)| scores.lines().count()).sum();
    let (tiles, heads) = (lines - want.len(), want.len());
    assert_eq!(copied_out(&one), 4 * (heads + tiles), "features were copied out");

    // Features that several devices make meet on the host.
    let two = [("GPU_SIM_DEVICES", "2"), trace];
    for (i, device) in ["cuda:all", "cuda:1,0", "cuda:1"].into_iter().enumerate() {
        let args = ["--device", device, "--batch", "3"];
        let (run, out) = predict(folder, &format!("two-{i}"), &args, &two);
        assert!(run.status.success(), "{device}: {}", errors(&run));
        assert!(said(&out) == want, "other bits on {device}");
        assert_eq!(copied_out(&run) > 20 * tiles, device != "cuda:1");
        let result = fs::read_to_string(out.join("a/result.json")).unwrap();
        assert_eq!(result.contains("2 x "), device != "cuda:1", "{result}");
        assert!(result.contains("\"kind\": \"cuda\""), "{result}");
    }

    let args = ["--device", "cuda", "--batch", "64", "--gpu-memory", "6MiB"];
    let (limited, out) = predict(folder, "limited", &args, &[]);
    assert!(limited.status.success(), "{}", errors(&limited));
    assert!(errors(&limited).contains("instead of 64"), "{}", errors(&limited));
    assert!(
        errors(&limited).contains("MiB of a limit of 6.0 MiB are free"),
        "{}",
        errors(&limited)
    );
    assert!(said(&out) == want, "other bits within a limit");

    // The sixth allocation is for features, after weights and arenas of encoder and head, and tiles.
    let args = ["--device", "cuda", "--batch", "5"];
    let fail = ("GPU_SIM_FAIL_ALLOC", "6");
    let (over_host, out) = predict(folder, "over-host", &args, &[trace, fail]);
    assert!(over_host.status.success(), "{}", errors(&over_host));
    assert!(errors(&over_host).contains("features go over the host"), "{}", errors(&over_host));
    assert!(copied_out(&over_host) > 20 * tiles);
    assert!(said(&out) == want, "other bits over the host");

    // The second allocation is the arena: the device has no room after all.
    let args = ["--device", "cuda", "--batch", "8"];
    let (full, out) = predict(folder, "full", &args, &[("GPU_SIM_FAIL_ALLOC", "2")]);
    assert!(full.status.success(), "{}", errors(&full));
    assert!(errors(&full).contains("batches of 4 instead of 8"), "{}", errors(&full));
    assert!(said(&out) == want, "other bits after running out of memory");
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let Some(folder) = slides() else { return };
    let two = [("GPU_SIM_DEVICES", "2")];
    for device in ["cuda:2", "cuda:0,7"] {
        let (run, _) = predict(folder, "absent", &["--device", device], &two);
        assert_eq!(run.status.code(), Some(1));
        assert!(errors(&run).contains("there are 2"), "{}", errors(&run));
    }
    let (run, _) = predict(folder, "absent", &["--device", "cuda:0,0"], &two);
    assert_eq!(run.status.code(), Some(2));
    let (run, _) =
        predict(folder, "absent", &["--device", "cuda:all"], &[("GPU_SIM_DEVICES", "0")]);
    assert_eq!(run.status.code(), Some(1));
    assert!(errors(&run).contains("shows no GPU"), "{}", errors(&run));
}

/// A kernel that fails loses the context: the run ends with a message, nothing is tried again, and
/// what was finished stays.
#[test]
fn a_failed_kernel_ends_the_run() {
    let Some(folder) = slides() else { return };
    for (launch, done) in [("7", 0), ("150", 1)] {
        let environment = [("GPU_SIM_FAIL_LAUNCH", launch), ("GPU_SIM_TRACE", "1")];
        let args = ["--device", "cuda", "--batch", "2"];
        let (run, out) = predict(folder, &format!("fault-{launch}"), &args, &environment);
        let text = errors(&run);
        assert_eq!(run.status.code(), Some(1), "{text}");
        assert!(
            text.contains("histokern: ") && text.contains("CUDA_ERROR_LAUNCH_FAILED"),
            "{text}"
        );
        let after = text.split("GPU_SIM_FAIL_LAUNCH asks for it").nth(1).unwrap_or_default();
        assert!(!after.contains("warp instructions"), "launched after the failure: {after}");
        let status = fs::read_to_string(out.join("status.csv")).unwrap();
        assert_eq!(status.matches(",done,").count(), done, "{status}");
        assert_eq!(status.matches(",failed,").count(), 1, "{status}");
        assert_eq!(out.join("a/result.json").exists(), done == 1);
    }
}
