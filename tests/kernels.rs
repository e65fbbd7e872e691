//! Every CUDA kernel compiled for every architecture, without a GPU: no spills, within its register
//! budget, its argument block as large as the host's, tensor cores used where promised.
//!
//! Needs NVRTC (`export HISTOKERN_NVRTC="$(scripts/nvrtc)"`) and says so when it is absent; reads the
//! machine code too where `nvdisasm` is on the path or named in `HISTOKERN_NVDISASM`.

use histokern::cuda::compile::{self, Compiled, Compiler, Request};
use histokern::cuda::kernels::{ARCHITECTURES, Arch, Instance, KERNELS};
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

/// Every kernel on every architecture with the most work after its sums, and every way to finish
/// them once.
fn instances() -> Vec<(Instance, Arch)> {
    let mut list = Vec::new();
    for arch in ARCHITECTURES {
        for kernel in KERNELS.iter().filter(|k| k.runs_on(arch)) {
            list.extend(kernel.instances().pop().map(|instance| (instance, arch)));
        }
    }
    let small = KERNELS.iter().filter(|k| k.name.ends_with("64x64") || k.file == "norm.cu");
    list.extend(small.flat_map(|k| k.instances()).map(|instance| (instance, Arch(80))));
    list
}

/// All of them compiled, each request once, or `None` without a compiler.
fn compiled() -> Option<&'static HashMap<Request, Compiled>> {
    static ALL: OnceLock<Option<HashMap<Request, Compiled>>> = OnceLock::new();
    ALL.get_or_init(|| {
        let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kernels");
        let compiler = Compiler::with_cache(Some(cache));
        if let Err(missing) = compiler.nvrtc() {
            eprintln!("skipped: {missing}");
            return None;
        }
        let mut requests: Vec<Request> = Vec::new();
        for request in instances().iter().map(|(instance, arch)| instance.request(*arch)) {
            if !requests.contains(&request) {
                requests.push(request);
            }
        }
        let (next, done) = (AtomicUsize::new(0), Mutex::new(HashMap::new()));
        let work = || {
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                let compiled =
                    compiler.compile(request).unwrap_or_else(|e| panic!("{request:?}: {e}"));
                done.lock().unwrap().insert(request.clone(), compiled);
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        Some(done.into_inner().unwrap())
    })
    .as_ref()
}

fn name(instance: &Instance, arch: Arch) -> String {
    let Instance { kernel, act, residual } = instance;
    format!("{} {act:?} residual {residual} {}", kernel.name, arch.name())
}

#[test]
fn no_spills_and_no_more_registers_than_budgeted() {
    let Some(compiled) = compiled() else { return };
    let mut wrong = Vec::new();
    for (instance, arch) in instances() {
        let log = &compiled[&instance.request(arch)].output.log;
        let name = name(&instance, arch);
        let usage = compile::usage(log).into_iter().find(|u| u.entry == instance.kernel.entry);
        let usage = usage.unwrap_or_else(|| panic!("{name}: not in the log\n{log}"));
        assert!(usage.registers > 0, "{name}: {usage:?}");
        if usage.spill_bytes > 0 || usage.registers > instance.kernel.registers {
            wrong.push(format!("{name}: budget {}, {usage:?}", instance.kernel.registers));
        }
        wrong.extend(compile::complaints(log).iter().map(|c| format!("{name}: {c}")));
        // A block must fit the 65,536 registers of a multiprocessor.
        let threads: u32 = instance.kernel.block.iter().product();
        assert!(usage.registers.next_multiple_of(8) * threads <= 65536, "{name}: {usage:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn argument_blocks_are_as_large_as_the_compiler_says() {
    let Some(compiled) = compiled() else { return };
    for (instance, arch) in instances() {
        let ptx =
            String::from_utf8_lossy(&compiled[&instance.request(arch)].output.ptx).into_owned();
        let entry = instance.kernel.entry;
        let (_, rest) = ptx.split_once(&format!("{entry}_param_0[")).unwrap();
        let bytes: usize = rest.split(']').next().unwrap().parse().unwrap();
        assert_eq!(bytes, instance.kernel.argument_bytes, "{}", name(&instance, arch));
        assert!(!ptx.contains(&format!("{entry}_param_1")), "{}", name(&instance, arch));
    }
}

/// Machine code of each entry point of a cubin, or `None` without a disassembler.
fn disassemble(cubin: &[u8]) -> Option<HashMap<String, String>> {
    let tool = std::env::var("HISTOKERN_NVDISASM").unwrap_or_else(|_| "nvdisasm".into());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, cubin).unwrap();
    let output = Command::new(tool).arg("--print-code").arg(file.path()).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let sections = text.split("\t.section\t.text.").skip(1);
    Some(sections.filter_map(|s| Some((s.split_once(',')?.0.to_string(), s.to_string()))).collect())
}

#[test]
fn machine_code_uses_tensor_cores_and_no_local_memory() {
    let Some(compiled) = compiled() else { return };
    let mut sections: HashMap<Request, HashMap<String, String>> = HashMap::new();
    for (instance, arch) in instances() {
        let request = instance.request(arch);
        if !sections.contains_key(&request) {
            let Some(found) = disassemble(&compiled[&request].output.cubin) else {
                eprintln!("skipped: no nvdisasm; name it in HISTOKERN_NVDISASM");
                return;
            };
            sections.insert(request.clone(), found);
        }
        let name = name(&instance, arch);
        let code = &sections[&request][instance.kernel.entry];
        let has = |mnemonic: &str| code.contains(mnemonic);
        assert!(has("EXIT"), "{name}: no code");
        assert!(!has("LDL") && !has("STL"), "{name}: local memory");
        if instance.kernel.warpgroups {
            assert!(has("HGMMA.64x") && has("UTMALDG.2D") && has("USETMAXREG"), "{name}");
        } else if instance.kernel.tensor_cores {
            let product = if arch.0 >= 80 { "HMMA.16816.F32" } else { "HMMA.1688.F32" };
            assert!(has(product) && has("LDSM.16"), "{name}: no {product}");
            assert_eq!(has("LDGSTS"), arch.0 >= 80, "{name}: asynchronous copies");
        }
    }
}

fn histokern(arguments: &[&str], cache: &std::path::Path) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_histokern"))
        .args(arguments)
        .env("HISTOKERN_CACHE", cache)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn the_verb_lists_and_clears() {
    let cache = tempfile::tempdir().unwrap();
    let (ok, text) = histokern(&["kernels", "list", "--json"], cache.path());
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(ok);
    let names: Vec<&str> =
        list.as_array().unwrap().iter().map(|k| k["name"].as_str().unwrap()).collect();
    assert_eq!(names, KERNELS.iter().map(|k| k.name).collect::<Vec<_>>());

    std::fs::write(cache.path().join("12.9-sm_80-gemm-0.cubin"), [0; 100]).unwrap();
    std::fs::write(cache.path().join("other"), "kept").unwrap();
    let (ok, text) = histokern(&["kernels", "cache", "--clear", "--json"], cache.path());
    let state: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(ok && state["entries"] == 1 && state["bytes"] == 100, "{text}");
    let left: Vec<_> =
        std::fs::read_dir(cache.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["other"]);
}

#[test]
fn the_verb_says_what_is_missing() {
    let cache = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_histokern"))
        .args(["kernels", "compile", "--arch", "sm_80"])
        .env("HISTOKERN_CACHE", cache.path())
        .env("HISTOKERN_NVRTC", "/nonexistent/libnvrtc.so.12")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("nvidia-cuda-nvrtc-cu12") && text.contains("/nonexistent/"), "{text}");

    let (ok, text) = histokern(&["kernels", "compile", "--arch", "sm_70"], cache.path());
    assert!(!ok && text.contains("there are sm_75"), "{text}");
}
