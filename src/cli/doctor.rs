//! `histokern doctor`: what this machine offers, what is missing and how to get it.

use super::{Global, Outcome, kernels, print_json};
use crate::cpu::Isa;
use crate::cuda::cache::Cache;
use crate::cuda::compile::Compiler;
use crate::cuda::embedded::Archive;
use crate::cuda::kernels::Arch;
use crate::cuda::{self, Device};
use crate::error::Result;
use serde_json::{Value, json};

/// Say what this machine offers, what is missing and how to get it
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  histokern doctor --json")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let cpu = cpu_report(global);
    let driver = cuda::driver();
    let compiler = Compiler::new();
    let nvrtc = match compiler.nvrtc() {
        Ok(n) => Ok(format!("{} ({})", n.build(), n.path.display())),
        Err(error) => Err(error.to_string()),
    };
    if args.json {
        print_json(&json!({
            "program": { "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") },
            "cpu": cpu,
            "cuda": driver_json(&driver),
            "nvrtc": nvrtc.as_ref().ok(),
            "embedded": compiler.archive().map(|a| json!({
                "kernels": a.keys().count(), "bytes": a.bytes(),
            })),
            "cache": compiler.cache().map(cache_json),
            "sources": sources_json(&compiler, &driver)?,
        }));
        return Ok(Outcome::Done);
    }
    println!("histokern {}", env!("CARGO_PKG_VERSION"));
    println!(
        "  cpu      {} ({} threads)",
        cpu["model"].as_str().unwrap_or("unknown"),
        cpu["threads"]
    );
    println!("  kernels  {} chosen of {}", cpu["isa"].as_str().unwrap_or("?"), cpu["available"]);
    match cpu["memory_bytes"].as_u64() {
        Some(bytes) => println!("  memory   {:.1} GiB", bytes as f64 / f64::from(1 << 30)),
        None => println!("  memory   unknown"),
    }
    match &driver {
        Ok(driver) => {
            println!("  driver   CUDA {}.{}", driver.version.0, driver.version.1);
            for (n, d) in driver.devices.iter().enumerate() {
                println!(
                    "  cuda:{n}   {}, sm_{}{}, {:.1} GiB, {} multiprocessors",
                    d.name,
                    d.compute_capability.0,
                    d.compute_capability.1,
                    d.memory_bytes as f64 / f64::from(1 << 30),
                    d.multiprocessors
                );
                println!("           kernels: {}", sources_text(&compiler, d)?);
            }
        }
        Err(why) => println!("  driver   none: {why}"),
    }
    match nvrtc {
        Ok(found) => println!("  nvrtc    {found}"),
        Err(why) => println!("  nvrtc    none: {why}"),
    }
    println!(
        "  embedded {}",
        compiler.archive().map_or_else(|| "no kernels".into(), embedded_text)
    );
    println!(
        "  cache    {}",
        compiler
            .cache()
            .map_or_else(|| "none: neither HISTOKERN_CACHE nor HOME is set".into(), cache_text)
    );
    println!("  default  the CPU; --device cuda uses a GPU and is not yet proven on one");
    Ok(Outcome::Done)
}

fn embedded_text(archive: &Archive) -> String {
    let mib = archive.bytes() as f64 / 1048576.0;
    format!("{} kernels, {mib:.1} MiB", archive.keys().count())
}

fn cache_text(cache: &Cache) -> String {
    if let Err(why) = cache.is_writable() {
        return format!("{why}; kernels are compiled anew on every start");
    }
    let entries = cache.entries();
    let mib = entries.iter().map(|e| e.1).sum::<u64>() as f64 / 1048576.0;
    format!("{}: {} kernels, {mib:.1} MiB", cache.folder().display(), entries.len())
}

fn cache_json(cache: &Cache) -> Value {
    let entries = cache.entries();
    json!({
        "folder": cache.folder().display().to_string(), "entries": entries.len(),
        "bytes": entries.iter().map(|e| e.1).sum::<u64>(), "problem": cache.is_writable().err(),
    })
}

/// How many of the kernels for a device come from where.
fn sources_text(compiler: &Compiler, device: &Device) -> Result<String> {
    let Some(arch) = Arch::of_device(device.compute_capability) else {
        return Ok("no machine code for this architecture".into());
    };
    let counts = kernels::sources(compiler, arch)?;
    let parts: Vec<String> = counts.iter().map(|(from, n)| format!("{n} {from}")).collect();
    Ok(parts.join(", "))
}

fn sources_json(
    compiler: &Compiler,
    driver: &std::result::Result<cuda::Driver, String>,
) -> Result<Value> {
    let devices = driver.as_ref().map_or(&[][..], |d| &d.devices);
    let counts = devices.iter().map(|d| match Arch::of_device(d.compute_capability) {
        Some(arch) => Ok(json!(kernels::sources(compiler, arch)?)),
        None => Ok(Value::Null),
    });
    counts.collect()
}

fn cpu_report(global: &Global) -> Value {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map(|l| l.trim_start_matches([' ', '\t', ':']).to_string());
    let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let kib: u64 = text
            .lines()
            .find_map(|l| l.strip_prefix("MemTotal:"))?
            .split_whitespace()
            .next()?
            .parse()
            .ok()?;
        Some(kib * 1024)
    });
    let available: Vec<String> =
        Isa::ALL.iter().filter(|isa| isa.is_available()).map(Isa::to_string).collect();
    let chosen = match Isa::from_env() {
        Ok(named) => named.unwrap_or_else(Isa::detect).to_string(),
        Err(error) => error.to_string(),
    };
    json!({
        "model": model,
        "threads": global.threads(),
        "isa": chosen,
        "available": available.join(", "),
        "memory_bytes": memory,
    })
}

fn driver_json(driver: &std::result::Result<cuda::Driver, String>) -> Value {
    match driver {
        Err(why) => json!({ "driver": null, "reason": why, "devices": [] }),
        Ok(driver) => json!({
            "driver": format!("{}.{}", driver.version.0, driver.version.1),
            "devices": driver.devices.iter().map(|d| json!({
                "name": d.name,
                "compute_capability": format!("{}.{}", d.compute_capability.0, d.compute_capability.1),
                "memory_bytes": d.memory_bytes,
                "multiprocessors": d.multiprocessors,
            })).collect::<Vec<_>>(),
        }),
    }
}
