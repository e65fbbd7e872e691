//! From embedded kernel source to machine code: NVRTC behind a cache on disk.
//!
//! An entry is named by a SHA-256 over everything that decides its bytes: compiler version,
//! architecture, options, the source and every header of ours it includes. It is written to a
//! temporary file, flushed and renamed, so that a reader sees a whole entry or none; a checksum in
//! front guards against what the disk does later, and an entry that fails it is compiled anew.

use super::nvrtc::{Nvrtc, Output};
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Every file under `kernels/`.
pub const SOURCES: &[(&str, &str)] = &[
    ("dev.cuh", include_str!("../../kernels/dev.cuh")),
    ("sink.cuh", include_str!("../../kernels/sink.cuh")),
    ("tile.cuh", include_str!("../../kernels/tile.cuh")),
    ("epilogue.cuh", include_str!("../../kernels/epilogue.cuh")),
    ("gemm.cu", include_str!("../../kernels/gemm.cu")),
    ("conv2d.cu", include_str!("../../kernels/conv2d.cu")),
    ("sm90/ring.cuh", include_str!("../../kernels/sm90/ring.cuh")),
    ("sm90/gemm.cu", include_str!("../../kernels/sm90/gemm.cu")),
    ("sm90/conv2d.cu", include_str!("../../kernels/sm90/conv2d.cu")),
    ("preprocess.cu", include_str!("../../kernels/preprocess.cu")),
    ("pool.cu", include_str!("../../kernels/pool.cu")),
    ("norm.cu", include_str!("../../kernels/norm.cu")),
    ("score.cu", include_str!("../../kernels/score.cu")),
    ("bag.cu", include_str!("../../kernels/bag.cu")),
    ("layout.cu", include_str!("../../kernels/layout.cu")),
];

/// Bytes in front of a cache entry; changes when the layout of entries does.
const MAGIC: &[u8; 8] = b"HKCUBIN1";

/// What is to be compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Key in [`SOURCES`].
    pub file: String,
    /// `sm_80`.
    pub arch: String,
    /// `-DNAME=VALUE`, in a fixed order.
    pub defines: Vec<String>,
}

/// Where machine code came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The cache on disk.
    Cache,
    /// Compiled now.
    Nvrtc,
}

/// A compiled source.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// What the compiler gave.
    pub output: Output,
    /// Where it came from.
    pub origin: Origin,
}

/// What the assembler reports about one entry point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Entry point.
    pub entry: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes a thread keeps in local memory.
    pub stack_bytes: u32,
    /// Bytes written to and read from local memory for want of registers.
    pub spill_bytes: u32,
    /// Bytes of statically declared shared memory.
    pub static_shared_bytes: u32,
}

/// The compiler with its cache. The compiler is opened only when an entry is missing, so a machine
/// whose cache is complete needs none.
pub struct Compiler {
    sources: Vec<(&'static str, Cow<'static, str>)>,
    folder: Option<PathBuf>,
    nvrtc: OnceLock<Result<Nvrtc, String>>,
    version: OnceLock<(i32, i32)>,
}

impl Compiler {
    /// With the cache in `HISTOKERN_CACHE`, else `$XDG_CACHE_HOME/histokern/kernels`, else
    /// `~/.cache/histokern/kernels`, else none.
    pub fn new() -> Compiler {
        Compiler::with_cache(default_folder())
    }

    /// With the cache in a given folder, or without one.
    pub fn with_cache(folder: Option<PathBuf>) -> Compiler {
        let sources = SOURCES.iter().map(|&(name, text)| (name, Cow::Borrowed(text))).collect();
        Compiler { sources, folder, nvrtc: OnceLock::new(), version: OnceLock::new() }
    }

    /// Compiles another text in place of one of [`SOURCES`]: for trying a change, and for tests that
    /// plant a fault and must see it found.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when there is no such source.
    pub fn with_source(mut self, file: &str, text: String) -> Result<Compiler> {
        let found = self.sources.iter_mut().find(|(name, _)| *name == file);
        let (_, source) = found.ok_or_else(|| Error::usage(format!("no kernel source {file}")))?;
        *source = Cow::Owned(text);
        Ok(self)
    }

    /// The cache folder, if there is one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The opened compiler.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when none is installed.
    pub fn nvrtc(&self) -> Result<&Nvrtc> {
        let opened = self.nvrtc.get_or_init(|| Nvrtc::open().map_err(|e| e.to_string()));
        opened.as_ref().map_err(|e| Error::device(e.clone()))
    }

    /// Compiles, or reads what an earlier run compiled.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when there is no compiler or it refuses the source.
    pub fn compile(&self, request: &Request) -> Result<Compiled> {
        let (source, headers) = gather(&self.sources, &request.file)?;
        let options = options(request);
        let name = entry_name(self.compiler_version()?, request, &options, source, &headers);
        let file = self.folder.as_ref().map(|folder| folder.join(&name));
        if let Some(output) = file.as_deref().and_then(read_entry) {
            return Ok(Compiled { output, origin: Origin::Cache });
        }
        let output = self.nvrtc()?.compile(&request.file, source, &headers, &options)?;
        if let Some(file) = &file {
            // A cache that cannot be written costs time on the next start and nothing else.
            let _ = write_entry(file, &output);
        }
        Ok(Compiled { output, origin: Origin::Nvrtc })
    }

    /// Bytes of the entries in the cache folder, by file name.
    pub fn entries(&self) -> Vec<(PathBuf, u64)> {
        let Some(listing) = self.folder.as_ref().and_then(|f| std::fs::read_dir(f).ok()) else {
            return Vec::new();
        };
        let mut entries: Vec<(PathBuf, u64)> = listing
            .filter_map(|entry| entry.ok())
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "cubin"))
            .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.len())))
            .collect();
        entries.sort();
        entries
    }

    /// The version that names cache entries: the installed compiler's, or, when none is installed,
    /// that of the compiler that wrote the newest entry.
    fn compiler_version(&self) -> Result<(i32, i32)> {
        if let Some(version) = self.version.get() {
            return Ok(*version);
        }
        let version = match self.nvrtc() {
            Ok(nvrtc) => nvrtc.version,
            Err(missing) => self.newest_version().ok_or(missing)?,
        };
        Ok(*self.version.get_or_init(|| version))
    }

    /// Entries are named `<major>.<minor>-<arch>-<source>-<hash>.cubin`.
    fn newest_version(&self) -> Option<(i32, i32)> {
        let version = |path: &Path| {
            let name = path.file_name()?.to_str()?;
            let (major, minor) = name.split('-').next()?.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        self.entries().iter().filter_map(|(path, _)| version(path)).max()
    }
}

impl Default for Compiler {
    fn default() -> Self {
        Compiler::new()
    }
}

fn default_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("HISTOKERN_CACHE").or_else(|| {
        let base = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
        Some(base.join("histokern/kernels"))
    })
}

/// A source and, recursively, every header of ours it includes.
fn gather<'a>(
    sources: &'a [(&'static str, Cow<'static, str>)],
    file: &str,
) -> Result<(&'a str, Vec<(&'a str, &'a str)>)> {
    let find = |name: &str| {
        let found = sources.iter().find(|(n, _)| *n == name);
        let found = found.ok_or_else(|| Error::usage(format!("no kernel source {name}")))?;
        Ok((found.0, &*found.1))
    };
    let (_, source) = find(file)?;
    let mut headers: Vec<(&str, &str)> = Vec::new();
    let mut pending: Vec<&str> = includes(source).collect();
    while let Some(name) = pending.pop() {
        if headers.iter().all(|(n, _)| *n != name) {
            let header = find(name)?;
            pending.extend(includes(header.1));
            headers.push(header);
        }
    }
    headers.sort();
    Ok((source, headers))
}

fn includes(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        line.trim().strip_prefix("#include \"").and_then(|rest| rest.split('"').next())
    })
}

/// Division, square roots and FMA contraction stay IEEE: no fast-math.
fn options(request: &Request) -> Vec<String> {
    let mut options = vec![
        format!("--gpu-architecture={}", request.arch),
        "--std=c++17".into(),
        "--generate-line-info".into(),
        "--ptxas-options=-v".into(),
        "--ptxas-options=-warn-spills".into(),
    ];
    options.extend(request.defines.iter().cloned());
    options
}

fn entry_name(
    version: (i32, i32),
    request: &Request,
    options: &[String],
    source: &str,
    headers: &[(&str, &str)],
) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add(&format!("{}.{}", version.0, version.1));
    options.iter().for_each(|o| add(o));
    add(&request.file);
    add(source);
    for (name, text) in headers {
        add(name);
        add(text);
    }
    let digest = hex(&hash.finalize()[..16]);
    let stem = request.file.trim_end_matches(".cu").replace('/', "_");
    format!("{}.{}-{}-{stem}-{digest}.cubin", version.0, version.1, request.arch)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `MAGIC, sha256(body), body`; the body is three blocks, each behind its length as u64.
fn write_entry(file: &Path, output: &Output) -> std::io::Result<()> {
    let mut body = Vec::new();
    for block in [&output.cubin[..], &output.ptx, output.log.as_bytes()] {
        body.extend((block.len() as u64).to_le_bytes());
        body.extend(block);
    }
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(MAGIC)?;
    temporary.write_all(&Sha256::digest(&body))?;
    temporary.write_all(&body)?;
    temporary.as_file().sync_all()?;
    temporary.persist(file)?;
    Ok(())
}

/// The entry, or `None` when it is absent, cut short or damaged.
fn read_entry(file: &Path) -> Option<Output> {
    let bytes = std::fs::read(file).ok()?;
    let (checksum, mut body) = bytes.strip_prefix(MAGIC)?.split_at_checked(32)?;
    if Sha256::digest(body)[..] != *checksum {
        return None;
    }
    let mut block = || {
        let (length, rest) = body.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let (block, rest) = rest.split_at_checked(length)?;
        body = rest;
        Some(block.to_vec())
    };
    let (cubin, ptx, log) = (block()?, block()?, block()?);
    Some(Output { cubin, ptx, log: String::from_utf8(log).ok()? })
}

/// Reads the assembler's report out of a log.
pub fn usage(log: &str) -> Vec<Usage> {
    let mut list: Vec<Usage> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let entry = rest.split('\'').next().unwrap_or_default().to_string();
            list.push(Usage { entry, ..Default::default() });
        }
        let Some(current) = list.last_mut() else { continue };
        for part in line.split([',', ':']) {
            let part = part.trim().trim_start_matches("Used ");
            let (number, what) = part.split_once(' ').unwrap_or_default();
            let Ok(number) = number.parse::<u32>() else { continue };
            match what.trim() {
                "registers" => current.registers = number,
                "bytes stack frame" => current.stack_bytes = number,
                "bytes spill stores" | "bytes spill loads" => current.spill_bytes += number,
                "bytes smem" => current.static_shared_bytes = number,
                _ => {}
            }
        }
    }
    list
}

/// What the log says that must not pass unnoticed: spills, ignored register requests (C7508) and
/// serialised warpgroup products (C7510 and its neighbours).
pub fn complaints(log: &str) -> Vec<&str> {
    let bad = |line: &&str| line.contains("(C75") || line.contains("Registers are spilled");
    log.lines().filter(bad).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Output {
        Output { cubin: vec![1, 2, 3], ptx: b"// ptx".to_vec(), log: "said".into() }
    }

    #[test]
    fn the_report_of_the_assembler_is_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'conv2d' for 'sm_80'\n\
            ptxas info    : Function properties for conv2d\n    \
            16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 96 registers, used 1 barriers, 16 bytes cumulative stack size, \
            1024 bytes smem, 400 bytes cmem[0]\n";
        let want = Usage {
            entry: "conv2d".into(),
            registers: 96,
            stack_bytes: 16,
            spill_bytes: 20,
            static_shared_bytes: 1024,
        };
        assert_eq!(usage(log), [want]);
        assert_eq!(complaints("x\nptxas info (C7508) : setmaxnreg ignored\n").len(), 1);
    }

    #[test]
    fn a_damaged_entry_is_no_entry() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/12.9-sm_80-x-0.cubin");
        write_entry(&file, &sample()).unwrap();
        let back = read_entry(&file).unwrap();
        assert_eq!((back.cubin, back.log), (sample().cubin, sample().log));

        let whole = std::fs::read(&file).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&file, &whole[..cut]).unwrap();
            assert!(read_entry(&file).is_none(), "cut at {cut}");
        }
        for flipped in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[flipped] ^= 1;
            std::fs::write(&file, &bytes).unwrap();
            assert!(read_entry(&file).is_none(), "flipped at {flipped}");
        }
    }

    #[test]
    fn everything_that_decides_the_bytes_is_in_the_name() {
        let request =
            |arch: &str| Request { file: "gemm.cu".into(), arch: arch.into(), defines: vec![] };
        let name = |version, request: &Request, options: &[String], source, header| {
            entry_name(version, request, options, source, &[("dev.cuh", header)])
        };
        let base = name((12, 9), &request("sm_80"), &options(&request("sm_80")), "a", "b");
        let others = [
            name((13, 0), &request("sm_80"), &options(&request("sm_80")), "a", "b"),
            name((12, 9), &request("sm_90"), &options(&request("sm_90")), "a", "b"),
            name((12, 9), &request("sm_80"), &[], "a", "b"),
            name((12, 9), &request("sm_80"), &options(&request("sm_80")), "ab", ""),
            name((12, 9), &request("sm_80"), &options(&request("sm_80")), "a", "c"),
        ];
        assert!(others.iter().all(|other| *other != base));
    }

    #[test]
    fn headers_are_found_through_headers() {
        let compiler = Compiler::with_cache(None);
        let (_, headers) = gather(&compiler.sources, "conv2d.cu").unwrap();
        let names: Vec<&str> = headers.iter().map(|h| h.0).collect();
        assert_eq!(names, ["dev.cuh", "epilogue.cuh", "sink.cuh", "tile.cuh"]);
        assert!(gather(&compiler.sources, "none.cu").is_err());
        assert!(compiler.with_source("none.cu", String::new()).is_err());
    }

    #[test]
    fn a_cache_serves_the_second_run_and_survives_damage() {
        let folder = tempfile::tempdir().unwrap();
        let compiler = Compiler::with_cache(Some(folder.path().into()));
        if compiler.nvrtc().is_err() {
            eprintln!("NVRTC not installed: skipped");
            return;
        }
        let request = Request { file: "layout.cu".into(), arch: "sm_80".into(), defines: vec![] };
        let first = compiler.compile(&request).unwrap();
        assert_eq!(first.origin, Origin::Nvrtc);
        let second = compiler.compile(&request).unwrap();
        assert_eq!((second.origin, &second.output.cubin), (Origin::Cache, &first.output.cubin));

        let (entry, bytes) = compiler.entries().remove(0);
        let damaged = vec![0; bytes as usize];
        std::fs::write(&entry, damaged).unwrap();
        let third = compiler.compile(&request).unwrap();
        assert_eq!((third.origin, &third.output.cubin), (Origin::Nvrtc, &first.output.cubin));
        assert_eq!(compiler.compile(&request).unwrap().origin, Origin::Cache);
    }
}
