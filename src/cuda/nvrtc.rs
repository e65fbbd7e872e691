//! NVIDIA's run-time compiler, opened by full path when it is needed and never linked.
//!
//! The library is looked for in this order: `HISTOKERN_NVRTC` (a file or a folder), the names the
//! dynamic linker knows (`LD_LIBRARY_PATH`, `ld.so.cache`), the usual toolkit folders, and the
//! `site-packages` of an active Python environment, where the wheels `nvidia-cuda-nvrtc` and
//! `nvidia-cuda-nvrtc-cu12` put it. Its companion `libnvrtc-builtins` is opened first: some builds
//! carry no run path and would not find it themselves.

use crate::error::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Names the dynamic linker may know, newest compiler whose cubins most drivers still load first.
const NAMES: [&str; 3] = ["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"];

/// Folders of a toolkit or a Python environment, below one of [`roots`].
const FOLDERS: [&str; 5] = [
    "lib64",
    "targets/x86_64-linux/lib",
    "targets/sbsa-linux/lib",
    "nvidia/cuda_nvrtc/lib",
    "nvidia/cu13/lib",
];

/// Where sources and headers claim to lie. Line information holds absolute paths, and without one
/// the compiler puts the working directory there: the same source would give other bytes elsewhere.
pub const ROOT: &str = "/histokern/kernels/";

type Program = *mut c_void;
type Status = c_int;

/// What one compilation produced.
#[derive(Clone, Debug)]
pub struct Output {
    /// Machine code of the architecture asked for.
    pub cubin: Vec<u8>,
    /// PTX text, without the closing NUL.
    pub ptx: Vec<u8>,
    /// Everything the compiler and the assembler said.
    pub log: String,
}

/// The opened compiler.
pub struct Nvrtc {
    /// File it was opened from, or the name the dynamic linker resolved.
    pub path: PathBuf,
    /// `(12, 9)`.
    pub version: (i32, i32),
    build: OnceLock<String>,
    library: Library,
    _builtins: Option<Library>,
}

impl Nvrtc {
    /// Opens the first usable compiler, or the one at `named`, a file or a folder.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] that says where it was looked for and how to install it.
    pub fn open(named: Option<&Path>) -> Result<Nvrtc> {
        let mut tried = Vec::new();
        for candidate in candidates(named) {
            match Nvrtc::open_at(&candidate) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(error) => tried.push(error.to_string()),
            }
        }
        Err(Error::device(format!(
            "NVRTC, the CUDA run-time compiler, was not found: `pip install \
             nvidia-cuda-nvrtc-cu12==12.9.86` or install a CUDA toolkit, or name the library or its \
             folder in HISTOKERN_NVRTC (tried: {})",
            tried.join("; ")
        )))
    }

    /// Opens the compiler at a path, or by a name that the dynamic linker resolves.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when it cannot be opened or lacks a function.
    pub fn open_at(path: &Path) -> Result<Nvrtc> {
        let builtins = builtins_beside(path).and_then(|file| {
            // SAFETY: the library has no initialisers of consequence; it holds compiler headers.
            unsafe { Library::new(file) }.ok()
        });
        // SAFETY: as above; the file is the compiler the user installed or named.
        let library = unsafe { Library::new(path) }
            .map_err(|e| Error::device(e.to_string()).context(path.display().to_string()))?;
        let mut nvrtc = Nvrtc {
            path: path.to_path_buf(),
            version: (0, 0),
            build: OnceLock::new(),
            library,
            _builtins: builtins,
        };
        let (mut major, mut minor) = (0, 0);
        nvrtc.call("nvrtcVersion", |f: Version| {
            // SAFETY: both integers outlive the call.
            unsafe { f(&mut major, &mut minor) }
        })?;
        nvrtc.version = (major, minor);
        Ok(nvrtc)
    }

    /// The full version, `12.9.86`: two builds of one minor version may give different code. Only
    /// the PTX it writes tells; [`Nvrtc::version`] where that does not.
    pub fn build(&self) -> &str {
        self.build.get_or_init(|| {
            let text = self.ptx_of_nothing().unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let stated = text.lines().find_map(|line| {
                line.strip_prefix("// Cuda compilation tools")?
                    .rsplit_once(", V")
                    .map(|found| found.1)
            });
            let (major, minor) = self.version;
            stated.map_or_else(|| format!("{major}.{minor}"), |build| build.trim().to_string())
        })
    }

    fn ptx_of_nothing(&self) -> Result<Vec<u8>> {
        let program = self.create("nothing.cu", "", &[])?;
        self.build_program(program.handle, &["--gpu-architecture=compute_80".into()])?;
        self.fetch(program.handle, "nvrtcGetPTXSize", "nvrtcGetPTX")
    }

    /// Whether it compiles for `sm_90` or `sm_90a`.
    ///
    /// # Errors
    /// As [`Nvrtc::architectures`].
    pub fn compiles_for(&self, arch: &str) -> Result<bool> {
        let digits = arch.trim_start_matches("sm_").trim_end_matches(char::is_alphabetic);
        let Ok(number) = digits.parse() else { return Ok(false) };
        Ok(self.architectures()?.contains(&number))
    }

    /// Architectures it can compile for, as `75` or `120`.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when the library refuses to say.
    pub fn architectures(&self) -> Result<Vec<u32>> {
        let mut count = 0;
        self.call("nvrtcGetNumSupportedArchs", |f: Count| {
            // SAFETY: `count` outlives the call.
            unsafe { f(&mut count) }
        })?;
        let mut list = vec![0; count.max(0) as usize];
        self.call("nvrtcGetSupportedArchs", |f: Count| {
            // SAFETY: the list has the length the library asked for.
            unsafe { f(list.as_mut_ptr()) }
        })?;
        Ok(list.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect())
    }

    /// Compiles one source with its headers, all in memory. The output depends on nothing but the
    /// arguments and the compiler.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] with the compiler's log.
    pub fn compile(
        &self,
        name: &str,
        source: &str,
        headers: &[(&str, &str)],
        options: &[String],
    ) -> Result<Output> {
        let program = self.create(name, source, headers)?;
        let built = self.build_program(program.handle, options);
        let log = self.fetch(program.handle, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog");
        let log = String::from_utf8_lossy(&log.unwrap_or_default()).into_owned();
        let lines = log.trim_end_matches('\0').trim().lines();
        let log: Vec<&str> = lines.filter(|line| !line.contains("Compile time =")).collect();
        let log = log.join("\n");
        built.map_err(|e| Error::device(format!("{e}\n{log}")).context(name.to_string()))?;
        let mut ptx = self.fetch(program.handle, "nvrtcGetPTXSize", "nvrtcGetPTX")?;
        while ptx.last() == Some(&0) {
            ptx.pop();
        }
        let cubin = self.fetch(program.handle, "nvrtcGetCUBINSize", "nvrtcGetCUBIN")?;
        Ok(Output { cubin, ptx, log })
    }

    fn create(&self, file: &str, source: &str, headers: &[(&str, &str)]) -> Result<Owned<'_>> {
        let name = |name: &str| c_text(&format!("{ROOT}{name}"));
        let text = |text: &str| c_text(&text.replace("#include \"", &format!("#include \"{ROOT}")));
        let names = headers.iter().map(|h| name(h.0)).collect::<Result<Vec<_>>>()?;
        let texts = headers.iter().map(|h| text(h.1)).collect::<Result<Vec<_>>>()?;
        let (name, source) = (name(file)?, text(source)?);
        let names: Vec<_> = names.iter().map(|s| s.as_ptr()).collect();
        let texts: Vec<_> = texts.iter().map(|s| s.as_ptr()).collect();
        let mut handle = std::ptr::null_mut();
        self.call("nvrtcCreateProgram", |f: Create| {
            // SAFETY: every pointer is a NUL-terminated text that outlives the call, and both
            // arrays have the length given; the library copies what it keeps.
            unsafe {
                f(
                    &mut handle,
                    source.as_ptr(),
                    name.as_ptr(),
                    names.len() as c_int,
                    texts.as_ptr(),
                    names.as_ptr(),
                )
            }
        })?;
        Ok(Owned { nvrtc: self, handle })
    }

    fn build_program(&self, program: Program, options: &[String]) -> Result<()> {
        let options = options.iter().map(|o| c_text(o)).collect::<Result<Vec<_>>>()?;
        let pointers: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
        self.call("nvrtcCompileProgram", |f: Compile| {
            // SAFETY: the handle is live and the array holds that many NUL-terminated texts.
            unsafe { f(program, pointers.len() as c_int, pointers.as_ptr()) }
        })
    }

    /// One of the results of a program: its size is asked first, then the bytes.
    fn fetch(&self, program: Program, size_of: &str, bytes_of: &str) -> Result<Vec<u8>> {
        let mut size = 0usize;
        self.call(size_of, |f: Size| {
            // SAFETY: the handle is live and `size` outlives the call.
            unsafe { f(program, &mut size) }
        })?;
        let mut bytes = vec![0u8; size];
        self.call(bytes_of, |f: Bytes| {
            // SAFETY: the buffer has the size the library asked for.
            unsafe { f(program, bytes.as_mut_ptr().cast()) }
        })?;
        Ok(bytes)
    }

    /// Looks a function up and turns its status into a `Result`.
    fn call<F: Copy>(&self, name: &str, run: impl FnOnce(F) -> Status) -> Result<()> {
        // SAFETY: each caller names a function together with the signature NVIDIA documents for it.
        let function = unsafe { self.library.get::<F>(name.as_bytes()) }
            .map_err(|e| Error::device(format!("{}: {name}: {e}", self.path.display())))?;
        match run(*function) {
            0 => Ok(()),
            status => Err(Error::device(format!("{name}: {}", self.status_text(status)))),
        }
    }

    fn status_text(&self, status: Status) -> String {
        type Text = unsafe extern "C" fn(Status) -> *const c_char;
        // SAFETY: the signature is the documented one, and it returns a static text.
        let text =
            unsafe { self.library.get::<Text>(b"nvrtcGetErrorString").ok().map(|f| f(status)) };
        let Some(text) = text.filter(|t| !t.is_null()) else { return format!("status {status}") };
        // SAFETY: non-null, static and NUL-terminated.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status;
type Count = unsafe extern "C" fn(*mut c_int) -> Status;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> Status;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status;
type Size = unsafe extern "C" fn(Program, *mut usize) -> Status;
type Bytes = unsafe extern "C" fn(Program, *mut c_char) -> Status;
type Destroy = unsafe extern "C" fn(*mut Program) -> Status;

/// A program that is destroyed when it goes out of scope.
struct Owned<'a> {
    nvrtc: &'a Nvrtc,
    handle: Program,
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        // A failure here leaks one program and loses nothing else.
        let _ = self.nvrtc.call("nvrtcDestroyProgram", |f: Destroy| {
            // SAFETY: the handle was created by this library and is destroyed once.
            unsafe { f(&mut self.handle) }
        });
    }
}

fn c_text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::usage(format!("{text:?} contains a NUL")))
}

/// Files and names to try, in order.
fn candidates(named: Option<&Path>) -> Vec<PathBuf> {
    let variable = || Some(PathBuf::from(std::env::var_os("HISTOKERN_NVRTC")?));
    if let Some(named) = named.map(Path::to_path_buf).or_else(variable) {
        let found = in_folder(&named);
        // Where a folder holds none, opening it says so.
        return if found.is_empty() { vec![named] } else { found };
    }
    let mut list: Vec<PathBuf> = NAMES.iter().map(PathBuf::from).collect();
    for root in roots() {
        list.extend(FOLDERS.iter().flat_map(|folder| in_folder(&root.join(folder))));
    }
    list
}

fn in_folder(folder: &Path) -> Vec<PathBuf> {
    NAMES.iter().map(|name| folder.join(name)).filter(|path| path.exists()).collect()
}

/// Toolkit folders, and `site-packages` of the active Python environment.
fn roots() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"]
        .iter()
        .filter_map(|name| std::env::var_os(name).map(PathBuf::from))
        .collect();
    roots.push("/usr/local/cuda".into());
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        let Some(prefix) = std::env::var_os(variable) else { continue };
        let Ok(entries) = std::fs::read_dir(Path::new(&prefix).join("lib")) else { continue };
        let mut python: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"python3"))
            })
            .map(|path| path.join("site-packages"))
            .collect();
        python.sort();
        roots.extend(python);
    }
    roots
}

/// `libnvrtc-builtins.so.X.Y` in the folder of a compiler given by path.
fn builtins_beside(path: &Path) -> Option<PathBuf> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty())?;
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|p| {
            p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"libnvrtc-builtins.so"))
        })
        .collect();
    found.sort();
    found.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_that_names_it() {
        let error = Nvrtc::open_at(Path::new("/nonexistent/libnvrtc.so.12")).err().unwrap();
        assert!(error.to_string().contains("/nonexistent/libnvrtc.so.12"), "{error}");
    }

    #[test]
    fn a_library_that_is_not_the_compiler_is_refused() {
        let error = Nvrtc::open_at(Path::new("libc.so.6")).err().unwrap();
        assert!(error.to_string().contains("nvrtcVersion"), "{error}");
    }

    #[test]
    fn the_output_does_not_depend_on_when_and_where() {
        let Ok(nvrtc) = Nvrtc::open(None) else {
            eprintln!("NVRTC not installed: skipped");
            return;
        };
        let options = ["--gpu-architecture=sm_80", "--generate-line-info", "--ptxas-options=-v"];
        let header = [("h.cuh", "__device__ float twice(float x) {\n  return 2 * x;\n}\n")];
        let source = "#include \"h.cuh\"\nextern \"C\" __global__ void f(float* x) {\n  \
                      *x = twice(*x);\n}\n";
        let compile =
            || nvrtc.compile("f.cu", source, &header, &options.map(String::from)).unwrap();
        let (one, two) = (compile(), compile());
        assert_eq!((&one.cubin, &one.ptx, &one.log), (&two.cubin, &two.ptx, &two.log));
        let here = std::env::current_dir().unwrap().display().to_string();
        for bytes in [&one.cubin, &one.ptx] {
            let text = String::from_utf8_lossy(bytes);
            assert!(text.contains(ROOT.trim_end_matches('/')) && !text.contains(&here));
        }
    }

    #[test]
    fn a_compile_error_carries_the_log() {
        let Ok(nvrtc) = Nvrtc::open(None) else {
            eprintln!("NVRTC not installed: skipped");
            return;
        };
        let options = ["--gpu-architecture=sm_80".to_string()];
        let error =
            nvrtc.compile("bad.cu", "#include \"h.cuh\"\nint x = y;", &[("h.cuh", "")], &options);
        let text = error.err().unwrap().to_string();
        assert!(text.contains("bad.cu(2)") && text.contains("\"y\" is undefined"), "{text}");
        assert!(nvrtc.compiles_for("sm_90a").unwrap() && !nvrtc.compiles_for("sm_10").unwrap());
        let (major, minor) = nvrtc.version;
        assert!(nvrtc.build().starts_with(&format!("{major}.{minor}.")), "{}", nvrtc.build());
    }
}
