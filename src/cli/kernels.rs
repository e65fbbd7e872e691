//! `histokern kernels`: which CUDA kernels there are, what they cost and where they come from.

use super::{Global, Outcome, print_json};
use crate::cuda::cache::Cache;
use crate::cuda::compile::{self, Compiled, Compiler, Origin, Usage};
use crate::cuda::embedded::Archive;
use crate::cuda::kernels::{ARCHITECTURES, Arch, Instance, KERNELS, Kernel};
use crate::cuda::{self, ptx};
use crate::error::{Context, Error, Result};
use crate::report::atomic;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// List, compile and check the CUDA kernels; needs no GPU
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  histokern kernels list --arch sm_90
  histokern kernels compile --arch sm_80 --arch sm_90
  histokern kernels compile --out cubins.zip
  histokern kernels cache --clear")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Every kernel with its launch bounds, its cost where known, and where it would come from:
    /// embedded, cache, nvrtc (compiled when first used) or missing
    List {
        /// Architecture, such as sm_90, or all; may be repeated [default: that of the GPU, else sm_80]
        #[arg(long, value_name = "SM", value_parser = Archs::parse)]
        arch: Vec<Archs>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Compile into the cache, and fail on a spill or an exceeded register budget
    Compile {
        #[command(flatten)]
        choice: Choice,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Where compiled kernels are kept
    Cache {
        /// Delete them
        #[arg(long)]
        clear: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// What to compile.
#[derive(clap::Args, Debug)]
struct Choice {
    /// Architecture, such as sm_90, or all; may be repeated [default: all]
    #[arg(long, value_name = "SM", value_parser = Archs::parse)]
    arch: Vec<Archs>,
    /// Only kernels whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    kernel: String,
    /// Every activation and residual, not one of each kernel
    #[arg(long)]
    all: bool,
    /// Write an archive for a build with --features embed-cubins; implies --all
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Of N equal parts the I-th: how worker processes share the work
    #[arg(long, value_name = "I/N", hide = true, value_parser = parse_part)]
    part: Option<(usize, usize)>,
}

/// One architecture or all of them.
#[derive(Clone, Debug)]
struct Archs(Vec<Arch>);

impl Archs {
    fn parse(text: &str) -> Result<Archs, String> {
        if text == "all" {
            return Ok(Archs(ARCHITECTURES.to_vec()));
        }
        Arch::parse(text).map(|arch| Archs(vec![arch])).map_err(|e| e.to_string())
    }

    fn or(named: &[Archs], default: impl FnOnce() -> Vec<Arch>) -> Vec<Arch> {
        if named.is_empty() { default() } else { named.iter().flat_map(|a| a.0.clone()).collect() }
    }
}

fn parse_part(text: &str) -> Result<(usize, usize), String> {
    let parsed = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    parsed.filter(|(i, n)| i < n).ok_or_else(|| format!("{text:?} is not like 0/2"))
}

/// Runs the verb.
///
/// # Errors
/// [`crate::Kind::Device`] without a compiler, or when a kernel spills or exceeds its budget.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let compiler = Compiler::new();
    match &args.action {
        Action::List { arch, json } => list(&compiler, arch, *json, global)?,
        Action::Compile { choice, json } => match choice.part {
            Some(part) => compile_part(&compiler, choice, part)?,
            None => compile_all(compiler, choice, *json, global)?,
        },
        Action::Cache { clear, json } => cache(&compiler, *clear, *json)?,
    }
    Ok(Outcome::Done)
}

/// How many of the kernels of an architecture come from where; `missing` without a compiler.
///
/// # Errors
/// As [`Compiler::find`].
pub fn sources(compiler: &Compiler, arch: Arch) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    let choice = Choice { arch: vec![], kernel: String::new(), all: true, out: None, part: None };
    for (instance, arch) in choice.instances(&[arch], compiler)? {
        let found = compiler.find(&instance.request(arch))?;
        *counts.entry(source(compiler, found.as_ref())).or_default() += 1;
    }
    Ok(counts)
}

/// Where a kernel would come from if it were needed now.
fn source(compiler: &Compiler, found: Option<&Compiled>) -> String {
    match found {
        Some(compiled) => compiled.origin.to_string(),
        None if compiler.nvrtc().is_ok() => Origin::Nvrtc.to_string(),
        None => "missing".into(),
    }
}

impl Choice {
    /// Each thing to compile once: some kernels share a source with the same definitions.
    fn instances(&self, archs: &[Arch], compiler: &Compiler) -> Result<Vec<(Instance, Arch)>> {
        let (mut list, mut seen) = (Vec::new(), HashSet::new());
        for &arch in archs {
            let fits = |k: &&Kernel| k.runs_on(arch) && k.name.contains(&self.kernel);
            for kernel in KERNELS.iter().filter(fits) {
                let mut instances = kernel.instances();
                if !self.all && self.out.is_none() {
                    instances = instances.split_off(instances.len().saturating_sub(1));
                }
                for instance in instances {
                    let key = compiler.key(&instance.request(arch))?;
                    if seen.insert((key, kernel.entry)) {
                        list.push((instance, arch));
                    }
                }
            }
        }
        Ok(list)
    }
}

/// One line of the report.
struct Line {
    name: String,
    kernel: &'static Kernel,
    arch: Arch,
    /// Unknown until it is compiled.
    usage: Option<Usage>,
    cubin_bytes: Option<usize>,
    source: String,
}

impl Line {
    fn new(instance: &Instance, arch: Arch, compiled: Option<&Compiled>, source: String) -> Line {
        let kernel = instance.kernel;
        let mut name = kernel.name.to_string();
        if kernel.instances().len() > 1 {
            name += &format!(" {:?}", instance.act).to_lowercase();
            name += if instance.residual { " residual" } else { "" };
        }
        let usage = compiled.and_then(|c| {
            compile::usage(&c.output.log).into_iter().find(|u| u.entry == kernel.entry)
        });
        let cubin_bytes = compiled.map(|c| c.output.cubin.len());
        Line { name, kernel, arch, usage, cubin_bytes, source }
    }

    /// Dynamic and static shared memory of a block.
    fn shared_bytes(&self) -> u32 {
        let fixed = self.usage.as_ref().map_or(0, |u| u.static_shared_bytes);
        fixed + self.kernel.shared_bytes(self.arch, 1)
    }

    fn print_head() {
        println!(
            "{:40} {:6} {:>7} {:>9} {:>6} {:>6} {:>7} {:>7}  source",
            "kernel", "arch", "threads", "registers", "budget", "spills", "shared", "cubin"
        );
    }

    fn print(&self) {
        let known = |n: Option<u32>| n.map_or_else(|| "-".into(), |n| n.to_string());
        println!(
            "{:40} {:6} {:>7} {:>9} {:>6} {:>6} {:>7} {:>7}  {}",
            self.name,
            self.arch.name(),
            self.kernel.block.iter().product::<u32>(),
            known(self.usage.as_ref().map(|u| u.registers)),
            self.kernel.registers,
            known(self.usage.as_ref().map(|u| u.spill_bytes)),
            self.shared_bytes(),
            self.cubin_bytes.map_or_else(|| "-".into(), |n| n.to_string()),
            self.source
        );
    }

    fn json(&self) -> Value {
        let k = self.kernel;
        json!({
            "kernel": self.name, "row": k.name, "arch": self.arch.name(), "file": k.file,
            "entry": k.entry, "since": k.since.name(),
            "threads": k.block.iter().product::<u32>(),
            "registers": self.usage.as_ref().map(|u| u.registers), "register_budget": k.registers,
            "spill_bytes": self.usage.as_ref().map(|u| u.spill_bytes),
            "shared_bytes": self.shared_bytes(), "argument_bytes": k.argument_bytes,
            "tensor_cores": k.tensor_cores, "cubin_bytes": self.cubin_bytes, "source": self.source,
        })
    }
}

fn list(compiler: &Compiler, named: &[Archs], as_json: bool, global: &Global) -> Result<()> {
    let archs = Archs::or(named, || {
        let devices = cuda::driver().map(|driver| driver.devices).unwrap_or_default();
        let found = devices.iter().find_map(|d| Arch::of_device(d.compute_capability));
        vec![found.unwrap_or(Arch(80))]
    });
    let mut lines = Vec::new();
    for &arch in &archs {
        for kernel in KERNELS.iter().filter(|k| k.runs_on(arch)) {
            let Some(instance) = kernel.instances().pop() else { continue };
            let found = compiler.find(&instance.request(arch))?;
            let source = source(compiler, found.as_ref());
            let line = Line::new(&instance, arch, found.as_ref(), source);
            lines.push(Line { name: kernel.name.to_string(), ..line });
        }
    }
    if as_json {
        print_json(&lines.iter().map(Line::json).collect());
        return Ok(());
    }
    Line::print_head();
    lines.iter().for_each(Line::print);
    if named.is_empty() {
        let names: Vec<String> = ARCHITECTURES.iter().map(|a| a.name()).collect();
        global.say(&format!(
            "shown for {}; --arch names another of {}",
            archs[0].name(),
            names.join(", ")
        ));
    }
    Ok(())
}

/// A worker's share: everything goes into the cache, nothing is printed.
fn compile_part(compiler: &Compiler, choice: &Choice, (part, parts): (usize, usize)) -> Result<()> {
    let archs = Archs::or(&choice.arch, || ARCHITECTURES.to_vec());
    let instances = choice.instances(&archs, compiler)?;
    for (instance, arch) in instances.iter().skip(part).step_by(parts) {
        instance.compile(compiler, *arch)?;
    }
    Ok(())
}

/// Fills the cache from several processes: NVRTC compiles one program at a time in each. What they
/// leave out is compiled by the caller.
fn compile_in_workers(choice: &Choice, archs: &[Arch], workers: usize) {
    let Ok(program) = std::env::current_exe() else { return };
    let start = |part: usize| {
        let mut command = Command::new(&program);
        command.args(["kernels", "compile", "--kernel", &choice.kernel]);
        command.args(["--part", &format!("{part}/{workers}")]);
        for arch in archs {
            command.args(["--arch", &arch.name()]);
        }
        if choice.all || choice.out.is_some() {
            command.arg("--all");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
    };
    let running: Vec<_> = (0..workers).filter_map(start).collect();
    for mut worker in running {
        let _ = worker.wait();
    }
}

fn compile_all(
    mut compiler: Compiler,
    choice: &Choice,
    as_json: bool,
    global: &Global,
) -> Result<()> {
    let archs = Archs::or(&choice.arch, || ARCHITECTURES.to_vec());
    if choice.out.is_some() {
        // An archive linked into this program holds PTX for some kernels only.
        compiler = compiler.with_archive(None);
    }
    let instances = choice.instances(&archs, &compiler)?;
    let mut missing = 0;
    for (instance, arch) in &instances {
        missing += usize::from(compiler.find(&instance.request(*arch))?.is_none());
    }
    let workers = global.threads().min(missing / 4);
    if workers > 1 && compiler.cache().is_some() && compiler.nvrtc().is_ok() {
        global.say(&format!("compiling {missing} kernels in {workers} processes"));
        compile_in_workers(choice, &archs, workers);
    }
    let (mut lines, mut wrong, mut packed) = (Vec::new(), Vec::new(), Vec::new());
    if !as_json {
        Line::print_head();
    }
    for (instance, arch) in &instances {
        let compiled = instance.compile(&compiler, *arch)?;
        let line = Line::new(instance, *arch, Some(&compiled), compiled.origin.to_string());
        judge(&line, &compiled, &mut wrong);
        if !as_json {
            line.print();
        }
        lines.push(line);
        if choice.out.is_some() {
            packed.push(pack(&compiler, instance, *arch, compiled)?);
        }
    }
    if as_json {
        print_json(&lines.iter().map(Line::json).collect());
    }
    if let Some(problem) = compiler.cache().and_then(Cache::problem) {
        global.say(&format!("not kept for the next run: {problem}"));
    }
    if !wrong.is_empty() {
        return Err(Error::device(wrong.join("\n")));
    }
    if let Some(file) = &choice.out {
        atomic::write_bytes(file, &Archive::pack(&packed)?)?;
        global.say(&format!("{}: {} kernels", file.display(), packed.len()));
    }
    Ok(())
}

/// Notes what must not be.
fn judge(line: &Line, compiled: &Compiled, wrong: &mut Vec<String>) {
    let name = format!("{} {}", line.name, line.arch.name());
    let Some(usage) = &line.usage else {
        wrong.push(format!("{name}: no report from the assembler"));
        return;
    };
    let budget = line.kernel.registers;
    if usage.registers > budget || usage.spill_bytes > 0 {
        wrong.push(format!(
            "{name}: {} registers (budget {budget}), {} bytes spilled",
            usage.registers, usage.spill_bytes
        ));
    }
    wrong.extend(compile::complaints(&compiled.output.log).iter().map(|c| format!("{name}: {c}")));
}

/// An entry of the archive. PTX serves the architectures that come after it, so that of the oldest
/// one alike is enough.
fn pack(
    compiler: &Compiler,
    instance: &Instance,
    arch: Arch,
    compiled: Compiled,
) -> Result<(String, String, compile::Output)> {
    let mut output = compiled.output;
    output.ptx = if instance.oldest_alike(arch) == arch {
        ptx::lowered(&output.ptx).context(|| instance.kernel.name.to_string())?.into_bytes()
    } else {
        Vec::new()
    };
    Ok((compiler.key(&instance.request(arch))?, compiled.compiler, output))
}

fn cache(compiler: &Compiler, clear: bool, as_json: bool) -> Result<()> {
    let entries = compiler.cache().map(Cache::entries).unwrap_or_default();
    let bytes: u64 = entries.iter().map(|e| e.1).sum();
    let folder = compiler.cache().map(|cache| cache.folder().display().to_string());
    if let (true, Some(cache)) = (clear, compiler.cache()) {
        cache.clear().map_err(|e| Error::io(cache.folder().display().to_string(), e))?;
    }
    if as_json {
        let count = entries.len();
        print_json(
            &json!({ "folder": folder, "entries": count, "bytes": bytes, "cleared": clear }),
        );
        return Ok(());
    }
    let place = folder.unwrap_or_else(|| "nowhere: neither HISTOKERN_CACHE nor HOME is set".into());
    let done = if clear { ", deleted" } else { "" };
    println!("{place}: {} entries, {:.1} MiB{done}", entries.len(), bytes as f64 / 1048576.0);
    Ok(())
}
