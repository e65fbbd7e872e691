//! From kernel source to what a driver loads.
//!
//! Machine code is looked for in the archive linked into the program, then in the disk cache, then
//! made by NVRTC. A driver that has no use for it gets PTX instead: from the cache or NVRTC, else the
//! archive. Everything is known by a key, a SHA-256 over what decides the bytes: architecture,
//! options, the source and every header of ours it includes; the compiler's version stands beside it.

use super::cache::Cache;
use super::embedded::Archive;
pub use super::nvrtc::Output;
use super::nvrtc::{Nvrtc, ROOT};
use super::ptx;
use crate::error::{Context, Error, Result};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Every file under `kernels/`.
pub const SOURCES: &[(&str, &str)] = &[
    ("dev.cuh", include_str!("../../kernels/dev.cuh")),
    ("sink.cuh", include_str!("../../kernels/sink.cuh")),
    ("tile.cuh", include_str!("../../kernels/tile.cuh")),
    ("epilogue.cuh", include_str!("../../kernels/epilogue.cuh")),
    ("gemm.cu", include_str!("../../kernels/gemm.cu")),
    ("conv2d.cu", include_str!("../../kernels/conv2d.cu")),
    ("gated.cu", include_str!("../../kernels/gated.cu")),
    ("preact.cu", include_str!("../../kernels/preact.cu")),
    ("transposed.cu", include_str!("../../kernels/transposed.cu")),
    ("stem.cuh", include_str!("../../kernels/stem.cuh")),
    ("stem.cu", include_str!("../../kernels/stem.cu")),
    ("stem_pair.cu", include_str!("../../kernels/stem_pair.cu")),
    ("sm90/dev.cuh", include_str!("../../kernels/sm90/dev.cuh")),
    ("sm90/ring.cuh", include_str!("../../kernels/sm90/ring.cuh")),
    ("sm90/roles.cuh", include_str!("../../kernels/sm90/roles.cuh")),
    ("sm90/gemm.cu", include_str!("../../kernels/sm90/gemm.cu")),
    ("sm90/conv2d.cu", include_str!("../../kernels/sm90/conv2d.cu")),
    ("sm90/gather.cu", include_str!("../../kernels/sm90/gather.cu")),
    ("preprocess.cu", include_str!("../../kernels/preprocess.cu")),
    ("pool.cu", include_str!("../../kernels/pool.cu")),
    ("norm.cu", include_str!("../../kernels/norm.cu")),
    ("score.cu", include_str!("../../kernels/score.cu")),
    ("bag.cu", include_str!("../../kernels/bag.cu")),
    ("bag_reduce.cu", include_str!("../../kernels/bag_reduce.cu")),
    ("attention.cuh", include_str!("../../kernels/attention.cuh")),
    ("attention.cu", include_str!("../../kernels/attention.cu")),
    ("attention_online.cu", include_str!("../../kernels/attention_online.cu")),
    ("token_norm.cu", include_str!("../../kernels/token_norm.cu")),
    ("tokens.cu", include_str!("../../kernels/tokens.cu")),
    ("affine.cu", include_str!("../../kernels/affine.cu")),
    ("upsample.cu", include_str!("../../kernels/upsample.cu")),
    ("resize.cu", include_str!("../../kernels/resize.cu")),
    ("recolour.cu", include_str!("../../kernels/recolour.cu")),
    ("layout.cu", include_str!("../../kernels/layout.cu")),
];

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

/// Where a compiled kernel came from, in the order they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Machine code linked into the program.
    Embedded,
    /// The cache on disk.
    Cache,
    /// Compiled now.
    Nvrtc,
    /// PTX linked into the program, translated by the driver.
    EmbeddedPtx,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Origin::Embedded => "embedded",
            Origin::Cache => "cache",
            Origin::Nvrtc => "nvrtc",
            Origin::EmbeddedPtx => "embedded ptx",
        })
    }
}

/// A compiled source.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// What the compiler gave.
    pub output: Output,
    /// Where it came from.
    pub origin: Origin,
    /// Version of the compiler that made it, `12.9.86`.
    pub compiler: String,
}

impl Compiled {
    /// Oldest major CUDA version of a driver that loads the machine code: drivers load that of
    /// every compiler of their own major version (CUDA Compatibility, minor version compatibility).
    pub fn needs_driver(&self) -> i32 {
        self.compiler.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
    }
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

/// The compiler behind its archive and its cache. It is opened only when an entry is missing, so a
/// machine that has all entries needs none.
pub struct Compiler {
    sources: Vec<(&'static str, Cow<'static, str>)>,
    archive: Option<Archive>,
    cache: Option<Cache>,
    library: Option<PathBuf>,
    nvrtc: OnceLock<Result<Nvrtc, String>>,
}

impl Compiler {
    /// With the cache in its usual place: see [`Cache::default_folder`].
    pub fn new() -> Compiler {
        Compiler::with_cache(Cache::default_folder())
    }

    /// With the cache in a given folder, or without one.
    pub fn with_cache(folder: Option<PathBuf>) -> Compiler {
        Compiler {
            sources: SOURCES.iter().map(|&(name, text)| (name, Cow::Borrowed(text))).collect(),
            archive: Archive::built_in(),
            cache: folder.map(Cache::new),
            library: None,
            nvrtc: OnceLock::new(),
        }
    }

    /// With another archive than the one linked into the program, or without one.
    #[must_use]
    pub fn with_archive(mut self, archive: Option<Archive>) -> Compiler {
        self.archive = archive;
        self
    }

    /// With the NVRTC at a path, a file or a folder, instead of the first one found.
    #[must_use]
    pub fn with_nvrtc(mut self, path: PathBuf) -> Compiler {
        self.library = Some(path);
        self
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

    /// The disk cache, if there is one.
    pub fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
    }

    /// The archive linked into the program, if there is one.
    pub fn archive(&self) -> Option<&Archive> {
        self.archive.as_ref()
    }

    /// The opened compiler.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when none is installed.
    pub fn nvrtc(&self) -> Result<&Nvrtc> {
        let open = || Nvrtc::open(self.library.as_deref()).map_err(|e| e.to_string());
        self.nvrtc.get_or_init(open).as_ref().map_err(|e| Error::device(e.clone()))
    }

    /// Names what decides the bytes of a request: `<arch>-<source>-<hash>`.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when there is no such source.
    pub fn key(&self, request: &Request) -> Result<String> {
        let (source, headers) = gather(&self.sources, &request.file)?;
        Ok(key(request, &options(request), source, &headers))
    }

    /// Machine code that is there already: from the archive or the cache.
    ///
    /// # Errors
    /// As [`Compiler::key`].
    pub fn find(&self, request: &Request) -> Result<Option<Compiled>> {
        let key = self.key(request)?;
        if let Some((output, compiler)) = self.archive.as_ref().and_then(|a| a.read(&key)) {
            return Ok(Some(Compiled { output, origin: Origin::Embedded, compiler }));
        }
        Ok(self.cached(&key))
    }

    /// Machine code: from the archive, the cache or NVRTC.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when it is in neither and there is no compiler, or the compiler
    /// refuses the architecture or the source.
    pub fn compile(&self, request: &Request) -> Result<Compiled> {
        match self.find(request)? {
            Some(found) => Ok(found),
            None => self.build(request),
        }
    }

    /// PTX that the oldest driver accepts, where machine code does not serve: that of the request
    /// from the cache or NVRTC, else the archive's of `alike`, the same kernel for an older
    /// architecture.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub fn ptx(&self, request: &Request, alike: &Request) -> Result<Compiled> {
        let own = self.cached(&self.key(request)?).map_or_else(|| self.build(request), Ok);
        let missing = match own {
            Ok(mut compiled) => {
                let text = ptx::lowered(&compiled.output.ptx);
                compiled.output.ptx = text.context(|| request.file.clone())?.into_bytes();
                return Ok(compiled);
            }
            Err(missing) => missing,
        };
        let key = self.key(alike)?;
        match self.archive.as_ref().and_then(|a| a.read(&key)) {
            Some((output, compiler)) if !output.ptx.is_empty() => {
                Ok(Compiled { output, origin: Origin::EmbeddedPtx, compiler })
            }
            _ => Err(missing),
        }
    }

    /// An entry of the cache: by the installed compiler, or, when none is installed, by any.
    fn cached(&self, key: &str) -> Option<Compiled> {
        let cache = self.cache.as_ref()?;
        let (output, compiler) = match self.nvrtc() {
            Ok(nvrtc) => (cache.read(key, nvrtc.build())?, nvrtc.build().to_string()),
            Err(_) => cache.newest(key)?,
        };
        Some(Compiled { output, origin: Origin::Cache, compiler })
    }

    fn build(&self, request: &Request) -> Result<Compiled> {
        let Request { file, arch, .. } = request;
        let nvrtc = self.nvrtc().context(|| format!("{file}: not yet compiled for {arch}"))?;
        if !nvrtc.compiles_for(arch)? {
            return Err(Error::device(format!(
                "{file}: NVRTC {} ({}) does not compile for {arch}: install a newer one, \
                 `pip install nvidia-cuda-nvrtc-cu12`",
                nvrtc.build(),
                nvrtc.path.display()
            )));
        }
        let (source, headers) = gather(&self.sources, file)?;
        let options = options(request);
        let output = nvrtc.compile(file, source, &headers, &options)?;
        if let Some(cache) = &self.cache {
            cache.write(&key(request, &options, source, &headers), nvrtc.build(), &output);
        }
        Ok(Compiled { output, origin: Origin::Nvrtc, compiler: nvrtc.build().to_string() })
    }
}

impl Default for Compiler {
    fn default() -> Self {
        Compiler::new()
    }
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

fn key(request: &Request, options: &[String], source: &str, headers: &[(&str, &str)]) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    options.iter().for_each(|o| add(o));
    add(ROOT);
    add(&request.file);
    add(source);
    for (name, text) in headers {
        add(name);
        add(text);
    }
    let digest: String = hash.finalize()[..16].iter().map(|b| format!("{b:02x}")).collect();
    let stem = request.file.trim_end_matches(".cu").replace('/', "_");
    format!("{}-{stem}-{digest}", request.arch)
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
    fn everything_that_decides_the_bytes_is_in_the_key() {
        let request =
            |arch: &str| Request { file: "gemm.cu".into(), arch: arch.into(), defines: vec![] };
        let name = |request: &Request, options: &[String], source, header| {
            key(request, options, source, &[("dev.cuh", header)])
        };
        let sm_80 = options(&request("sm_80"));
        let defined = Request { defines: vec!["-DCFG_ACT=1".into()], ..request("sm_80") };
        let other_file = Request { file: "conv2d.cu".into(), ..request("sm_80") };
        let base = name(&request("sm_80"), &sm_80, "a", "b");
        let others = [
            name(&request("sm_90"), &options(&request("sm_90")), "a", "b"),
            name(&defined, &options(&defined), "a", "b"),
            name(&other_file, &sm_80, "a", "b"),
            name(&request("sm_80"), &[], "a", "b"),
            name(&request("sm_80"), &sm_80, "ab", ""),
            name(&request("sm_80"), &sm_80, "a", "c"),
        ];
        assert!(others.iter().all(|other| *other != base));
        assert!(base.starts_with("sm_80-gemm-"));
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

    fn request() -> Request {
        Request { file: "layout.cu".into(), arch: "sm_80".into(), defines: vec![] }
    }

    /// A machine without NVRTC.
    fn without(compiler: Compiler) -> Compiler {
        compiler.with_nvrtc("/nonexistent/libnvrtc.so.12".into())
    }

    #[test]
    fn each_place_is_asked_in_its_turn() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Compiler::with_cache(Some(folder.path().into())).with_archive(None);
        let missing = without(open()).compile(&request()).unwrap_err().to_string();
        assert!(missing.contains("not yet compiled for sm_80: NVRTC"), "{missing}");
        if let Err(why) = open().nvrtc() {
            eprintln!("skipped: {why}");
            return;
        }
        let first = open().compile(&request()).unwrap();
        assert_eq!(first.origin, Origin::Nvrtc);
        let made_by = |compiler: &str| Compiled { compiler: compiler.into(), ..first.clone() };
        assert_eq!(
            (made_by("12.9.86").needs_driver(), made_by("13.5.37").needs_driver()),
            (12, 13)
        );
        for compiler in [open(), without(open())] {
            let again = compiler.compile(&request()).unwrap();
            assert_eq!((again.origin, &again.compiler), (Origin::Cache, &first.compiler));
            assert_eq!(again.output.cubin, first.output.cubin);
        }

        let packed = |ptx: &[u8]| {
            let output = Output { ptx: ptx.to_vec(), ..first.output.clone() };
            let key = open().key(&request()).unwrap();
            let bytes = Archive::pack(&[(key, "12.9.86".into(), output)]).unwrap();
            Some(Archive::open(bytes.leak()).unwrap())
        };
        let embedded = open().with_archive(packed(b"")).compile(&request()).unwrap();
        assert_eq!(embedded.origin, Origin::Embedded);
        let changed = open().with_archive(packed(b""));
        let changed = changed.with_source("dev.cuh", SOURCES[0].1.to_string() + "\n").unwrap();
        assert_eq!(changed.compile(&request()).unwrap().origin, Origin::Nvrtc, "stale archive");

        let newer = Request { arch: "sm_90".into(), ..request() };
        let bare = || without(Compiler::with_cache(None));
        let text = bare().with_archive(packed(b"// text")).ptx(&newer, &request()).unwrap();
        assert_eq!((text.origin, &text.output.ptx[..]), (Origin::EmbeddedPtx, &b"// text"[..]));
        assert!(bare().with_archive(packed(b"")).ptx(&newer, &request()).is_err());
        let text = open().with_archive(packed(b"// text")).ptx(&newer, &request()).unwrap();
        assert_eq!(text.origin, Origin::Nvrtc, "the device's own PTX comes first");
        assert_eq!(ptx::version(str::from_utf8(&text.output.ptx).unwrap()), Some((8, 0)));
    }

    #[test]
    fn an_architecture_the_compiler_does_not_know_is_named() {
        let compiler = Compiler::with_cache(None).with_archive(None);
        if let Err(why) = compiler.nvrtc() {
            eprintln!("skipped: {why}");
            return;
        }
        let strange = Request { arch: "sm_199".into(), ..request() };
        let error = compiler.compile(&strange).unwrap_err().to_string();
        assert!(error.contains("does not compile for sm_199"), "{error}");
    }
}
