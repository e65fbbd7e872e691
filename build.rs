//! Names the kernels of this build and, with `--features embed-cubins`, links their machine code in.
//!
//! `HISTOKERN_CUBINS` names the archive that `histokern kernels compile --out FILE` wrote;
//! `scripts/embed-cubins` does both steps. An archive of other kernels is refused.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

/// What decides the machine code, beside the compiler: the sources, the table and the options.
const DECISIVE: [&str; 4] =
    ["kernels", "src/cuda/compile.rs", "src/cuda/kernels.rs", "src/cuda/ptx.rs"];

fn main() {
    let mut files = Vec::new();
    for path in DECISIVE {
        println!("cargo::rerun-if-changed={path}");
        collect(Path::new(path), &mut files);
    }
    files.sort();
    let name = format!("{:016x}", digest(&files));
    println!("cargo::rustc-env=HISTOKERN_KERNELS={name}");
    println!("cargo::rerun-if-env-changed=HISTOKERN_CUBINS");
    if env::var_os("CARGO_FEATURE_EMBED_CUBINS").is_some()
        && let Err(why) = embed(&name)
    {
        println!(
            "cargo::error=embed-cubins: {why}; scripts/embed-cubins makes the archive and builds with it"
        );
        process::exit(1);
    }
}

/// Every file at or below a path.
fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().for_each(|entry| collect(&entry.path(), files)),
        Err(_) => files.push(path.to_path_buf()),
    }
}

/// FNV-1a over names and contents: it guards against forgetting, not against malice.
fn digest(files: &[PathBuf]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes.iter().chain(&(bytes.len() as u64).to_le_bytes()) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for file in files {
        add(file.as_os_str().as_encoded_bytes());
        add(&fs::read(file).unwrap_or_default());
    }
    hash
}

fn embed(kernels: &str) -> Result<(), String> {
    let file = env::var("HISTOKERN_CUBINS").map_err(|_| "HISTOKERN_CUBINS names no archive")?;
    println!("cargo::rerun-if-changed={file}");
    let archive = fs::read(&file).map_err(|e| format!("{file}: {e}"))?;
    if !archive.ends_with(format!("histokern kernels {kernels}").as_bytes()) {
        return Err(format!("{file} was made from other kernels"));
    }
    let out = env::var("OUT_DIR").map_err(|e| e.to_string())?;
    fs::write(Path::new(&out).join("cubins.zip"), archive).map_err(|e| e.to_string())
}
