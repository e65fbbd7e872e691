//! Weights: named tensors of a safetensors, PyTorch or Keras file, and the packages made of them.
//!
//! [`Tensors`] reads a file through a memory map and knows nothing of models. [`Reader`] turns its
//! tensors into graph parameters and remembers which were used. [`Package`] is a folder with a
//! recipe and its weights, and [`import`] makes one from the checkpoint of a known system.

pub mod import;
mod inception;
mod keras_file;
mod package;
mod pickle;
mod reader;
mod safetensors_file;
pub mod snapshot;
mod tensor;
mod torch_file;

pub use package::{Array, ArrayData, Package, PackageWriter};
pub use reader::Reader;
pub use tensor::{Dtype, Rounded, Tensor};

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where one tensor's numbers lie in the file.
#[derive(Clone, Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Elements between neighbours along each axis; absent means dense and row-major.
    strides: Option<Vec<usize>>,
    /// Bytes of the file that hold the tensor, the first element at the start.
    bytes: Range<usize>,
}

/// What a format reader found in a file.
#[derive(Default)]
struct Contents {
    entries: BTreeMap<String, Entry>,
    /// What else the file holds, such as an optimiser's state, for the import's report.
    ignored: Vec<String>,
}

/// The bytes of a weights file.
enum Bytes {
    Map(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Map(map) => map,
            Bytes::Owned(vec) => vec,
        }
    }
}

/// The named tensors of one weights file. Cloning and renaming share the map.
#[derive(Clone)]
pub struct Tensors {
    path: PathBuf,
    bytes: Arc<Bytes>,
    entries: BTreeMap<String, Entry>,
    ignored: Vec<String>,
}

impl std::fmt::Debug for Tensors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensors({}, {} tensors)", self.path.display(), self.entries.len())
    }
}

impl Tensors {
    /// Opens a `.safetensors`, `.pth`, `.pt`, `.pth.tar` or Keras `.h5` file; what it is, is told by
    /// its bytes.
    ///
    /// The file is mapped and must not be changed while the value lives: on Linux truncating a
    /// mapped file kills its readers. Replacing it by a rename is safe.
    ///
    /// # Errors
    /// [`crate::Kind::Io`] when it cannot be read, [`crate::Kind::Malformed`],
    /// [`crate::Kind::Unsupported`] or [`crate::Kind::Limit`] for its contents; all name the file.
    pub fn open(path: &Path) -> Result<Tensors> {
        let name = path.display().to_string();
        let io = |e| Error::io(name.clone(), e);
        let metadata = std::fs::metadata(path).map_err(io)?;
        if !metadata.is_file() {
            return Err(Error::usage(format!("{name}: not a regular file")));
        }
        if metadata.len() == 0 {
            return Err(Error::malformed(format!("{name}: empty file")));
        }
        let file = std::fs::File::open(path).map_err(io)?;
        // SAFETY: the map is only read, and only as u8, so no value of its bytes is invalid. That
        // nobody truncates the file meanwhile is a documented duty of the caller.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Self::parse(path, Bytes::Map(map)).map_err(|e| e.context(name))
    }

    /// Reads a weights file that is already in memory; `path` only names it in messages.
    ///
    /// # Errors
    /// As [`Tensors::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Tensors> {
        Self::parse(path, Bytes::Owned(bytes)).map_err(|e| e.context(path.display().to_string()))
    }

    fn parse(path: &Path, bytes: Bytes) -> Result<Tensors> {
        if keras_file::is_hdf5(&bytes) {
            let (contents, data) = keras_file::read(&bytes)?;
            return Ok(Tensors::new(path, Bytes::Owned(data), contents));
        }
        let contents = if torch_file::is_zip(&bytes) {
            torch_file::read_zip(&bytes)?
        } else if torch_file::is_legacy(&bytes) {
            torch_file::read_legacy(&bytes)?
        } else {
            safetensors_file::read(&bytes)?
        };
        Ok(Tensors::new(path, bytes, contents))
    }

    fn new(path: &Path, bytes: Bytes, contents: Contents) -> Tensors {
        let Contents { entries, ignored } = contents;
        Tensors { path: path.into(), bytes: Arc::new(bytes), entries, ignored }
    }

    /// The file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries of a checkpoint that are no weights (epoch, optimiser state), with what they are.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// A tensor by its name.
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        self.entries.get_key_value(name).map(|(name, entry)| Tensor {
            name,
            dtype: entry.dtype,
            shape: &entry.shape,
            strides: entry.strides.as_deref(),
            bytes: self.bytes.get(entry.bytes.clone()).unwrap_or_default(),
        })
    }

    /// A tensor that must be there.
    ///
    /// # Errors
    /// [`crate::Kind::Weights`] naming the file and the tensor.
    pub fn require(&self, name: &str) -> Result<Tensor<'_>> {
        self.get(name).ok_or_else(|| {
            Error::weights(format!("{}: tensor {name} is missing", self.path.display()))
        })
    }

    /// The same tensors under other names; `None` leaves one out.
    ///
    /// # Errors
    /// [`crate::Kind::Weights`] when two tensors would get the same name.
    pub fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Result<Tensors> {
        let mut entries = BTreeMap::new();
        for (name, entry) in &self.entries {
            let Some(new) = rename(name) else { continue };
            if entries.insert(new.clone(), entry.clone()).is_some() {
                return Err(Error::weights(format!(
                    "{}: {name} and another tensor both stand for {new}",
                    self.path.display()
                )));
            }
        }
        Ok(Tensors { entries, ignored: Vec::new(), ..self.clone() })
    }
}
