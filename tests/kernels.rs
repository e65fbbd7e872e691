//! Every CUDA kernel compiled for every architecture, without a GPU: no spills, within its register
//! budget, its argument block as large as the host's, tensor cores used where promised. One line per
//! kernel and architecture goes to `target/report/kernels-<compiler>.txt`.
//!
//! Needs NVRTC (`eval "$(scripts/nvrtc --env)"`) and says so when it is absent. A second compiler in
//! `HISTOKERN_NVRTC_13`, the disassembler in `HISTOKERN_NVDISASM` (or on the path) and the assembler
//! of the oldest supported driver in `HISTOKERN_PTXAS` are used where they are named.

#[path = "common/report.rs"]
mod report;

use histokern::cuda::compile::{self, Compiled, Compiler, Request};
use histokern::cuda::kernels::{ARCHITECTURES, Arch, Instance, KERNELS};
use histokern::cuda::ptx;
use report::{Table, verdict};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Every kernel on every architecture with the most work after its sums.
fn one_of_each() -> Vec<(Instance, Arch)> {
    let mut list = Vec::new();
    for arch in ARCHITECTURES {
        for kernel in KERNELS.iter().filter(|k| k.runs_on(arch)) {
            let mut instances = kernel.instances();
            list.extend(instances.pop().map(|instance| (instance, arch)));
            list.extend(instances.into_iter().rfind(|i| i.pool).map(|instance| (instance, arch)));
        }
    }
    list
}

/// Every way to finish, once, on kernels that differ in nothing else.
fn every_ending() -> Vec<(Instance, Arch)> {
    let small = KERNELS
        .iter()
        .filter(|k| k.name.ends_with("64x64") || ["norm.cu", "affine.cu"].contains(&k.file));
    small.flat_map(|k| k.instances()).map(|instance| (instance, Arch(80))).collect()
}

fn cache_folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels")
}

/// A compiler and what it made of some instances.
struct Built {
    name: String,
    /// Times the register budget it may use: budgets are those of the pinned compiler.
    slack: f64,
    by_request: HashMap<Request, Compiled>,
}

impl Built {
    fn of(&self, instance: &Instance, arch: Arch) -> &Compiled {
        &self.by_request[&instance.request(arch)]
    }
}

/// Compiles the instances, those of [`one_of_each`] in several processes of the program first: within
/// one, NVRTC compiles one program at a time.
fn build(compiler: &Compiler, library: &Path, slack: f64, instances: &[(Instance, Arch)]) -> Built {
    let warmed = Command::new(env!("CARGO_BIN_EXE_histokern"))
        .args(["kernels", "compile", "--json"])
        .env("HISTOKERN_CACHE", cache_folder())
        .env("HISTOKERN_NVRTC", library)
        .output()
        .unwrap();
    // A kernel over its budget fails there and is judged here.
    drop(warmed);
    let mut by_request = HashMap::new();
    for (instance, arch) in instances {
        by_request.entry(instance.request(*arch)).or_insert_with_key(|request| {
            compiler.compile(request).unwrap_or_else(|e| panic!("{request:?}: {e}"))
        });
    }
    let name = compiler.nvrtc().unwrap().build().to_string();
    Built { name, slack, by_request }
}

/// The pinned compiler's work, or `None` without one.
fn built() -> Option<&'static Built> {
    static BUILT: OnceLock<Option<Built>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let compiler = Compiler::with_cache(Some(cache_folder())).with_archive(None);
            let library = match compiler.nvrtc() {
                Ok(nvrtc) => nvrtc.path.clone(),
                Err(missing) => {
                    eprintln!("skipped: {missing}");
                    return None;
                }
            };
            Some(build(&compiler, &library, 1.0, &[one_of_each(), every_ending()].concat()))
        })
        .as_ref()
}

fn name(instance: &Instance, arch: Arch) -> String {
    let Instance { kernel, act, residual, pool } = instance;
    format!("{} {act:?} residual {residual} pool {pool} {}", kernel.name, arch.name())
}

/// What one kernel costs on one architecture, and what is wrong with it.
#[derive(Default)]
struct Finding {
    registers: u32,
    spill_bytes: u32,
    shared_bytes: u32,
    /// The instruction of its products and how often it stands there.
    products: String,
    wrong: Vec<String>,
}

impl Finding {
    fn of(
        instance: &Instance,
        arch: Arch,
        compiled: &Compiled,
        slack: f64,
        code: Option<&str>,
    ) -> Finding {
        let kernel = instance.kernel;
        let mut found = Finding::default();
        found.judge_report(instance, arch, slack, &compiled.output.log);
        found.judge_arguments(kernel.entry, kernel.argument_bytes, &compiled.output.ptx);
        found.products = "-".into();
        if let Some(code) = code {
            found.judge_code(instance, arch, code);
        }
        found
    }

    fn expect(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.wrong.push(otherwise());
        }
    }

    /// What the assembler says: registers, stack, spills, and remarks such as C7508.
    fn judge_report(&mut self, instance: &Instance, arch: Arch, slack: f64, log: &str) {
        let kernel = instance.kernel;
        let reported = compile::usage(log).into_iter().find(|u| u.entry == kernel.entry);
        let Some(usage) = reported.filter(|u| u.registers > 0) else {
            self.wrong.push(format!("not in the log: {log}"));
            return;
        };
        (self.registers, self.spill_bytes) = (usage.registers, usage.spill_bytes);
        self.shared_bytes = usage.static_shared_bytes + kernel.shared_bytes(arch, 1);
        self.expect(usage.spill_bytes == 0 && usage.stack_bytes == 0, || format!("{usage:?}"));
        self.expect(f64::from(usage.registers) <= f64::from(kernel.registers) * slack, || {
            format!("{} registers, budget {}", usage.registers, kernel.registers)
        });
        // A block must fit the 65,536 registers of a multiprocessor.
        let threads: u32 = kernel.block.iter().product();
        self.expect(usage.registers.next_multiple_of(8) * threads <= 65536, || {
            format!("{} registers of {threads} threads", usage.registers)
        });
        self.wrong.extend(compile::complaints(log).iter().map(|c| c.to_string()));
    }

    /// One argument block, as large as the host's.
    fn judge_arguments(&mut self, entry: &str, bytes: usize, ptx: &[u8]) {
        let text = String::from_utf8_lossy(ptx);
        let stated = text
            .split_once(&format!("{entry}_param_0["))
            .and_then(|(_, rest)| rest.split(']').next()?.parse::<usize>().ok());
        self.expect(stated == Some(bytes), || format!("argument block {stated:?}, host {bytes}"));
        self.expect(!text.contains(&format!("{entry}_param_1")), || "a second argument".into());
    }

    /// The instructions: no local memory; tensor cores, the copy engine and asynchronous copies
    /// where the table promises them.
    fn judge_code(&mut self, instance: &Instance, arch: Arch, code: &str) {
        let kernel = instance.kernel;
        let has = |mnemonic: &str| code.contains(mnemonic);
        self.expect(has("EXIT"), || "no code".into());
        self.expect(!has("LDL") && !has("STL"), || "local memory".into());
        let products = if kernel.warpgroups {
            "HGMMA.64x"
        } else if !kernel.tensor_cores {
            return;
        } else if arch.0 >= 80 {
            "HMMA.16816.F32"
        } else {
            "HMMA.1688.F32"
        };
        let count = code.matches(products).count();
        self.products = format!("{} x{count}", products.trim_end_matches(".64x"));
        self.expect(count > 0, || format!("no {products}"));
        if kernel.warpgroups {
            let left = match kernel.entry {
                "gemm_sm90" => "UTMALDG.2D",
                "conv2d_sm90" => "UTMALDG.4D.IM2COL",
                _ => "LDGSTS",
            };
            for promised in [left, "UTMALDG.3D.MULTICAST", "UTMASTG.2D", "USETMAXREG"] {
                self.expect(has(promised), || format!("no {promised}"));
            }
        } else {
            self.expect(has("LDSM.16"), || "no LDSM".into());
            self.expect(has("LDGSTS") == (arch.0 >= 80), || "asynchronous copies".into());
        }
    }
}

/// Machine code of each entry point of a cubin, or `None` without a disassembler.
fn disassemble(cubin: &[u8]) -> Option<HashMap<String, String>> {
    let named = std::env::var("HISTOKERN_NVDISASM").ok();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, cubin).unwrap();
    let mut command = Command::new(named.as_deref().unwrap_or("nvdisasm"));
    let output = match command.arg("--print-code").arg(file.path()).output() {
        Ok(output) => output,
        Err(e) if named.is_some() => panic!("HISTOKERN_NVDISASM: {e}"),
        Err(_) => return None,
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let sections = text.split("\t.section\t.text.").skip(1);
    Some(sections.filter_map(|s| Some((s.split_once(',')?.0.to_string(), s.to_string()))).collect())
}

/// Judges some instances, writes a line for each of `listed` and fails for all that are wrong.
fn judge(built: &Built, instances: &[(Instance, Arch)], listed: usize) {
    let mut code: HashMap<Request, Option<HashMap<String, String>>> = HashMap::new();
    let mut table =
        Table::new(&["kernel", "arch", "registers", "budget", "shared", "spills", "products", ""]);
    let mut wrong = Vec::new();
    for (i, (instance, arch)) in instances.iter().enumerate() {
        let compiled = built.of(instance, *arch);
        let sections = code
            .entry(instance.request(*arch))
            .or_insert_with(|| disassemble(&compiled.output.cubin));
        let kernel = instance.kernel;
        let section = sections.as_ref().map(|s| s.get(kernel.entry).map_or("", String::as_str));
        let found = Finding::of(instance, *arch, compiled, built.slack, section);
        if i < listed {
            table.row(vec![
                kernel.name.into(),
                arch.name(),
                found.registers.to_string(),
                kernel.registers.to_string(),
                found.shared_bytes.to_string(),
                found.spill_bytes.to_string(),
                found.products.clone(),
                verdict(found.wrong.is_empty()),
            ]);
        }
        wrong.extend(found.wrong.iter().map(|w| format!("{}: {w}", name(instance, *arch))));
    }
    if code.values().any(Option::is_none) {
        eprintln!("no nvdisasm, machine code not read; name it in HISTOKERN_NVDISASM");
    }
    table.save(&format!("kernels-{}.txt", built.name));
    assert!(wrong.is_empty(), "NVRTC {}\n{}", built.name, wrong.join("\n"));
}

#[test]
fn every_kernel_keeps_its_promises_on_every_architecture() {
    let Some(built) = built() else { return };
    let one_of_each = one_of_each();
    judge(built, &[one_of_each.clone(), every_ending()].concat(), one_of_each.len());
}

#[test]
fn the_next_major_compiler_keeps_them_too() {
    let Some(library) = std::env::var_os("HISTOKERN_NVRTC_13").map(PathBuf::from) else {
        eprintln!("skipped: HISTOKERN_NVRTC_13 is not set");
        return;
    };
    // One after the other: two compilers at once would only slow each other.
    let _ = built();
    let cache = Some(cache_folder());
    let compiler = Compiler::with_cache(cache).with_archive(None).with_nvrtc(library.clone());
    assert_eq!(compiler.nvrtc().unwrap().version.0, 13);
    let instances = one_of_each();
    judge(&build(&compiler, &library, 1.5, &instances), &instances, instances.len());
}

/// The planted wrongs that a judge must see: it would be no test otherwise.
#[test]
fn what_breaks_a_promise_is_seen() {
    let Some(built) = built() else { return };
    let (instance, arch) =
        one_of_each().into_iter().find(|(i, _)| i.kernel.tile.is_some()).unwrap();
    let compiled = built.of(&instance, arch);
    let good = "EXIT HMMA.1688.F32 LDSM.16";
    let wrong = |log: &str, code: &str| {
        let mut changed = compiled.clone();
        changed.output.log = compiled.output.log.clone() + log;
        Finding::of(&instance, arch, &changed, 1.0, Some(code)).wrong.join("; ")
    };
    let entry = instance.kernel.entry;
    let again = |rest: &str| format!("\nptxas info : Compiling entry function '{entry}'\n{rest}");
    assert_eq!(wrong("", good), "");
    assert!(wrong("\nptxas info (C7508) : setmaxnreg ignored", good).contains("C7508"));
    assert!(wrong("", "EXIT LDSM.16").contains("no HMMA"));
    assert!(wrong("", &format!("{good} STL.64")).contains("local memory"));
    assert!(wrong("", &format!("{good} LDGSTS.E")).contains("asynchronous"));
    let mut greedy = compiled.clone();
    greedy.output.log = again("8 bytes stack frame, 4 bytes spill stores\nUsed 256 registers");
    let found = Finding::of(&instance, arch, &greedy, 1.0, None).wrong.join("; ");
    assert!(found.contains("spill_bytes: 4") && found.contains("256 registers, budget"), "{found}");
}

/// The text an old driver translates, by the assembler of that driver's release.
#[test]
fn lowered_ptx_is_accepted_by_the_oldest_driver() {
    let Some(built) = built() else { return };
    let Some(ptxas) = std::env::var_os("HISTOKERN_PTXAS") else {
        eprintln!("skipped: HISTOKERN_PTXAS is not set");
        return;
    };
    // What was accepted before need not be asked again.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lowered");
    std::fs::create_dir_all(&folder).unwrap();
    let mut wrong = Vec::new();
    for (instance, arch) in one_of_each() {
        if instance.oldest_alike(arch) != arch {
            continue;
        }
        let text = ptx::lowered(&built.of(&instance, arch).output.ptx).unwrap();
        assert_eq!(ptx::version(&text), Some((8, 0)), "{}", name(&instance, arch));
        let file = folder.join(format!("{:x}.ptx", Sha256::digest(&text)));
        if file.exists() {
            continue;
        }
        let mut temporary = tempfile::NamedTempFile::new_in(&folder).unwrap();
        std::io::Write::write_all(&mut temporary, text.as_bytes()).unwrap();
        let target = instance.request(arch).arch;
        let mut command = Command::new(&ptxas);
        command.args(["--opt-level", "0", "--output-file", "/dev/null", "--gpu-name", &target]);
        let output = command.arg(temporary.path()).output().unwrap();
        if output.status.success() {
            temporary.persist(file).unwrap();
        } else {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            wrong.push(format!("{}: {said}", name(&instance, arch)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
