//! `histokern kernels`: which CUDA kernels there are, what they cost and where they come from.

use super::{Global, Outcome};
use crate::cuda::compile::{self, Compiler, Origin};
use crate::cuda::kernels::{ARCHITECTURES, Arch, Instance, KERNELS, Kernel};
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// List, compile and check the CUDA kernels; needs no GPU
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  histokern kernels list
  histokern kernels compile --arch sm_80 --arch sm_90
  histokern kernels cache --clear")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Every kernel with its source and launch bounds
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Compile, and fail on a spill or an exceeded register budget
    Compile {
        /// Architecture, such as sm_90; may be repeated [default: all]
        #[arg(long, value_name = "SM", value_parser = |s: &str| Arch::parse(s).map_err(|e| e.to_string()))]
        arch: Vec<Arch>,
        /// Every activation and residual, not one of each kernel
        #[arg(long)]
        all: bool,
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

/// Runs the verb.
///
/// # Errors
/// [`crate::Kind::Device`] without a compiler, or when a kernel spills or exceeds its budget.
pub fn run(args: &Args, _global: &Global) -> Result<Outcome> {
    let compiler = Compiler::new();
    match &args.action {
        Action::List { json } => list(*json),
        Action::Compile { arch, all, json } => {
            let archs = if arch.is_empty() { &ARCHITECTURES[..] } else { arch };
            compile_all(&compiler, archs, *all, *json)?;
        }
        Action::Cache { clear, json } => cache(&compiler, *clear, *json)?,
    }
    Ok(Outcome::Done)
}

fn print_json(value: &Value) {
    println!("{value:#}");
}

fn list(as_json: bool) {
    let row = |k: &Kernel| {
        json!({
            "name": k.name, "file": k.file, "entry": k.entry, "since": k.since.name(),
            "threads": k.block.iter().product::<u32>(), "register_budget": k.registers,
            "tensor_cores": k.tensor_cores, "argument_bytes": k.argument_bytes,
        })
    };
    if as_json {
        return print_json(&KERNELS.iter().map(row).collect());
    }
    println!(
        "{:24} {:14} {:6} {:>7} {:>9}  cores",
        "kernel", "source", "since", "threads", "registers"
    );
    for k in KERNELS {
        let threads: u32 = k.block.iter().product();
        let cores = if k.tensor_cores { "tensor" } else { "scalar" };
        println!(
            "{:24} {:14} {:6} {threads:>7} {:>9}  {cores}",
            k.name,
            k.file,
            k.since.name(),
            format!("<= {}", k.registers)
        );
    }
}

/// One line of the report.
struct Line {
    name: String,
    arch: Arch,
    registers: u32,
    budget: u32,
    spill_bytes: u32,
    shared_bytes: u32,
    cubin_bytes: usize,
    origin: Origin,
}

fn compile_all(compiler: &Compiler, archs: &[Arch], all: bool, as_json: bool) -> Result<()> {
    let mut lines = Vec::new();
    let mut wrong = Vec::new();
    if !as_json {
        println!(
            "{:40} {:6} {:>9} {:>6} {:>7} {:>7}  origin",
            "kernel", "arch", "registers", "spills", "shared", "cubin"
        );
    }
    for &arch in archs {
        for kernel in KERNELS.iter().filter(|k| k.runs_on(arch)) {
            let mut instances = kernel.instances();
            if !all {
                instances = instances.split_off(instances.len() - 1);
            }
            for instance in instances {
                let line = measure(compiler, &instance, arch, &mut wrong)?;
                if !as_json {
                    print_line(&line);
                }
                lines.push(line);
            }
        }
    }
    if as_json {
        print_json(&lines.iter().map(line_json).collect());
    }
    if wrong.is_empty() { Ok(()) } else { Err(Error::device(wrong.join("\n"))) }
}

/// Compiles one instance and notes in `wrong` what must not be.
fn measure(
    compiler: &Compiler,
    instance: &Instance,
    arch: Arch,
    wrong: &mut Vec<String>,
) -> Result<Line> {
    let kernel = instance.kernel;
    let compiled = instance.compile(compiler, arch)?;
    let log = &compiled.output.log;
    let mut name = kernel.name.to_string();
    if kernel.instances().len() > 1 {
        name += &format!(" {:?}", instance.act).to_lowercase();
        name += if instance.residual { " residual" } else { "" };
    }
    let usage = compile::usage(log).into_iter().find(|u| u.entry == kernel.entry);
    let Some(usage) = usage else {
        return Err(Error::device(format!("{name} {}: no report from the assembler", arch.name())));
    };
    wrong.extend(compile::complaints(log).iter().map(|c| format!("{name} {}: {c}", arch.name())));
    if usage.registers > kernel.registers || usage.spill_bytes > 0 {
        wrong.push(format!(
            "{name} {}: {} registers (budget {}), {} bytes spilled",
            arch.name(),
            usage.registers,
            kernel.registers,
            usage.spill_bytes
        ));
    }
    Ok(Line {
        name,
        arch,
        registers: usage.registers,
        budget: kernel.registers,
        spill_bytes: usage.spill_bytes,
        shared_bytes: usage.static_shared_bytes + kernel.shared_bytes(arch, 1),
        cubin_bytes: compiled.output.cubin.len(),
        origin: compiled.origin,
    })
}

fn origin(line: &Line) -> &'static str {
    match line.origin {
        Origin::Cache => "cache",
        Origin::Nvrtc => "nvrtc",
    }
}

fn print_line(line: &Line) {
    println!(
        "{:40} {:6} {:>9} {:>6} {:>7} {:>7}  {}",
        line.name,
        line.arch.name(),
        line.registers,
        line.spill_bytes,
        line.shared_bytes,
        line.cubin_bytes,
        origin(line)
    );
}

fn line_json(line: &Line) -> Value {
    json!({
        "kernel": line.name, "arch": line.arch.name(), "registers": line.registers,
        "register_budget": line.budget, "spill_bytes": line.spill_bytes,
        "shared_bytes": line.shared_bytes, "cubin_bytes": line.cubin_bytes, "origin": origin(line),
    })
}

fn cache(compiler: &Compiler, clear: bool, as_json: bool) -> Result<()> {
    let entries = compiler.entries();
    let bytes: u64 = entries.iter().map(|e| e.1).sum();
    if clear {
        for (path, _) in &entries {
            std::fs::remove_file(path).map_err(|e| Error::io(path.display().to_string(), e))?;
        }
    }
    let folder = compiler.folder().map(|f| f.display().to_string());
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
