//! A package: a folder with `recipe.toml` and the safetensors files the recipe names.

use super::{Rounded, Tensor, Tensors};
use crate::error::{Context, Error, Result};
use crate::recipe::{BnMode, Head, NO_ENCODER, Recipe};
use half::f16;
use safetensors::tensor::View;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Name of the recipe inside a package.
const RECIPE: &str = "recipe.toml";

/// An open package.
#[derive(Clone, Debug)]
pub struct Package {
    /// The folder.
    pub dir: PathBuf,
    /// What the recipe says.
    pub recipe: Recipe,
    /// SHA-256 in hex of the recipe and of every weights file: two packages with the same id give
    /// the same results. Comments and the order of keys in the recipe do not count.
    pub recipe_id: String,
    /// As `recipe_id`, of what features and their tiles depend on: everything but heads, segmenters and,
    /// unless batch norm looks at them, bags.
    pub encoder_id: String,
    /// As `recipe_id`, of the gate alone; empty without one.
    pub gate_id: String,
}

impl Package {
    /// Opens a package and hashes its files. A weights file that is missing is an error only when
    /// it is asked for, so that a package without heads can encode.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the folder has no recipe, [`crate::Kind::Malformed`] naming the
    /// recipe's line, [`crate::Kind::Io`].
    pub fn open(dir: &Path) -> Result<Package> {
        let path = dir.join(RECIPE);
        if !path.is_file() {
            return Err(Error::usage(format!("{}: no {RECIPE} in this folder", dir.display())));
        }
        let recipe = Recipe::read(&path)?;
        let hash = |names: &[&str]| -> Result<Vec<String>> {
            names.iter().map(|name| file_hash(&dir.join(name))).collect()
        };
        let mut encoder = hash(&[&recipe.encoder.weights])?;
        // The gate decides which tiles have features at all.
        let gate = recipe.gate.iter().flat_map(|gate| &gate.classifiers);
        let gate = hash(&gate.map(|c| c.weights.as_str()).collect::<Vec<_>>())?;
        encoder.extend_from_slice(&gate);
        let segmenters = recipe.segmenters.iter().map(|s| s.weights.as_str());
        let heads = recipe.heads.iter().map(|h| h.weights.as_str());
        let others = hash(&segmenters.chain(heads).collect::<Vec<_>>())?;
        // Bags decide features only where batch norm looks at them.
        let bag = recipe.bag.clone().filter(|_| recipe.encoder.bn_mode == BnMode::Batch);
        let headless = Recipe { heads: Vec::new(), segmenters: Vec::new(), bag, ..recipe.clone() };
        Ok(Package {
            dir: dir.into(),
            recipe_id: id(&recipe, &[encoder.as_slice(), &others].concat())?,
            encoder_id: id(&headless, &encoder)?,
            gate_id: recipe.gate.as_ref().map_or(Ok(String::new()), |g| id(g, &gate))?,
            recipe,
        })
    }

    /// The encoder's weights.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the package has no encoder, [`crate::Kind::Weights`] when the
    /// file is missing, and as [`Tensors::open`].
    pub fn encoder(&self) -> Result<Tensors> {
        if self.recipe.encoder.family == NO_ENCODER {
            let what = format!("{}: the package has no encoder, it segments", self.dir.display());
            return Err(Error::usage(what));
        }
        self.weights(&self.recipe.encoder.weights)
    }

    /// A head's weights.
    ///
    /// # Errors
    /// As [`Package::encoder`].
    pub fn head(&self, head: &Head) -> Result<Tensors> {
        self.weights(&head.weights)
    }

    /// A weights file by its name in the recipe.
    ///
    /// # Errors
    /// As [`Package::encoder`].
    pub fn weights(&self, name: &str) -> Result<Tensors> {
        let path = self.dir.join(name);
        if !path.exists() {
            return Err(Error::weights(format!(
                "{}: no {name} in this package; `histokern import` puts one there",
                self.dir.display()
            )));
        }
        Tensors::open(&path)
    }
}

fn id(section: &impl serde::Serialize, hashes: &[String]) -> Result<String> {
    let text = toml::to_string(section).map_err(|e| Error::malformed(format!("recipe: {e}")))?;
    let mut hasher = Sha256::new();
    for part in std::iter::once(&text).chain(hashes) {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    Ok(hex(&hasher.finalize()))
}

/// SHA-256 of a file in hex; `absent` when there is none.
fn file_hash(path: &Path) -> Result<String> {
    let io = |e| Error::io(path.display().to_string(), e);
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok("absent".into()),
        Err(e) => return Err(io(e)),
    };
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).map_err(io)?;
    Ok(hex(&hasher.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct Array {
    /// State-dict key.
    pub name: String,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
    /// The numbers, row-major.
    pub data: ArrayData,
}

/// The numbers of an [`Array`].
#[derive(Clone, Debug)]
pub enum ArrayData {
    /// Convolution and linear weights.
    F16(Vec<f16>),
    /// Biases, batch-norm parameters and statistics.
    F32(Vec<f32>),
}

impl Array {
    /// A tensor as packages store it: FP16 for two dimensions and more, f32 for vectors. Also
    /// returns how many numbers FP16 flushed to zero.
    ///
    /// # Errors
    /// As [`Tensor::to_f16`].
    pub fn from_tensor(tensor: &Tensor<'_>) -> Result<(Array, usize)> {
        let (data, flushed) = if tensor.shape.len() >= 2 {
            let Rounded { data, flushed } = tensor.to_f16()?;
            (ArrayData::F16(data), flushed)
        } else {
            (ArrayData::F32(tensor.to_f32()?), 0)
        };
        Ok((Array { name: tensor.name.into(), shape: tensor.shape.to_vec(), data }, flushed))
    }
}

impl View for &Array {
    fn dtype(&self) -> safetensors::Dtype {
        match self.data {
            ArrayData::F16(_) => safetensors::Dtype::F16,
            ArrayData::F32(_) => safetensors::Dtype::F32,
        }
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        match &self.data {
            ArrayData::F16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ArrayData::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }
    fn data_len(&self) -> usize {
        match &self.data {
            ArrayData::F16(v) => v.len() * 2,
            ArrayData::F32(v) => v.len() * 4,
        }
    }
}

/// Writes a package: everything goes into a temporary folder beside the target, which is renamed
/// at the end, so that a package is there whole or not at all. Replacing one takes two renames.
pub struct PackageWriter {
    target: PathBuf,
    temporary: tempfile::TempDir,
    files: BTreeMap<String, PathBuf>,
}

impl PackageWriter {
    /// Begins a package that will be the folder `target`, carrying over the files of `base`
    /// other than its recipe. `target` may exist only if it is `base`, which is then replaced.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when `target` exists, [`crate::Kind::Io`].
    pub fn create(target: &Path, base: Option<&Path>) -> Result<PackageWriter> {
        let io = |e| Error::io(target.display().to_string(), e);
        let same = |base: &Path| match (base.canonicalize(), target.canonicalize()) {
            (Ok(base), Ok(target)) => base == target,
            _ => false,
        };
        if target.exists() && !base.is_some_and(same) {
            return Err(Error::usage(format!("{}: already exists", target.display())));
        }
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(parent).map_err(io)?;
        let temporary =
            tempfile::Builder::new().prefix(".package-").tempdir_in(parent).map_err(io)?;
        let mut writer = PackageWriter { target: target.into(), temporary, files: BTreeMap::new() };
        if let Some(base) = base {
            writer.carry_over(base).context(|| base.display().to_string())?;
        }
        Ok(writer)
    }

    fn carry_over(&mut self, base: &Path) -> Result<()> {
        let io = |e| Error::io("reading the package", e);
        for entry in std::fs::read_dir(base).map_err(io)? {
            let from = entry.map_err(io)?.path();
            let Some(name) = from.file_name().and_then(|n| n.to_str()) else { continue };
            if !from.is_file() {
                return Err(Error::usage(format!(
                    "{name} is not a file: a package has only files"
                )));
            }
            if name != RECIPE {
                let to = self.temporary.path().join(name);
                std::fs::copy(&from, &to).map_err(|e| Error::io(name, e))?;
                self.files.insert(name.into(), to);
            }
        }
        Ok(())
    }

    /// Writes one weights file, in place of one carried over.
    ///
    /// # Errors
    /// [`crate::Kind::Io`].
    pub fn weights(&mut self, name: &str, arrays: &[Array]) -> Result<()> {
        let path = self.temporary.path().join(name);
        let _ = std::fs::remove_file(&path);
        let named = arrays.iter().map(|array| (array.name.as_str(), array));
        safetensors::serialize_to_file(named, None, &path)
            .map_err(|e| Error::io(name, std::io::Error::other(e.to_string())))?;
        self.files.insert(name.into(), path);
        Ok(())
    }

    /// Writes the recipe and puts the package in its place.
    ///
    /// # Errors
    /// [`crate::Kind::Malformed`] when the recipe is not valid, [`crate::Kind::Io`].
    pub fn finish(self, recipe: &str) -> Result<()> {
        Recipe::parse(recipe).context(|| RECIPE.into())?;
        let io = |e| Error::io(self.target.display().to_string(), e);
        let path = self.temporary.path().join(RECIPE);
        std::fs::write(&path, recipe).map_err(io)?;
        for file in self.files.values().chain([&path]) {
            std::fs::File::open(file).and_then(|f| f.sync_all()).map_err(io)?;
        }
        allow_reading(self.temporary.path()).map_err(io)?;
        sync_dir(self.temporary.path()).map_err(io)?;
        let fresh = self.temporary.keep();
        put_in_place(&fresh, &self.target).map_err(|e| {
            let _ = std::fs::remove_dir_all(&fresh);
            io(e)
        })
    }
}

/// Renames `fresh` to `target`, out of whose way an older package goes first.
fn put_in_place(fresh: &Path, target: &Path) -> std::io::Result<()> {
    let parent = fresh.parent().unwrap_or(Path::new("."));
    if !target.exists() {
        std::fs::rename(fresh, target)?;
        return sync_dir(parent);
    }
    let old = fresh.with_extension("old");
    std::fs::rename(target, &old)?;
    if let Err(e) = std::fs::rename(fresh, target) {
        let _ = std::fs::rename(&old, target);
        return Err(e);
    }
    sync_dir(parent)?;
    std::fs::remove_dir_all(&old)
}

/// Makes the names in a folder durable.
fn sync_dir(dir: &Path) -> std::io::Result<()> {
    if cfg!(unix) { std::fs::File::open(dir)?.sync_all() } else { Ok(()) }
}

/// Temporary folders are private to their owner; a package is as readable as any folder.
#[cfg(unix)]
fn allow_reading(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let open =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    for entry in std::fs::read_dir(dir)? {
        open(&entry?.path(), 0o644)?;
    }
    open(dir, 0o755)
}

#[cfg(not(unix))]
fn allow_reading(_: &Path) -> std::io::Result<()> {
    Ok(())
}
