//! Reads tile features written by TRIDENT, CLAM, STAMP or [`super::h5`].
//!
//! Accepts contiguous and chunked storage, gzip, LZF and shuffle, f16 to f64, every library
//! version h5py writes, and the `[1, N, D]` shape some extractors leave. Memory is bounded by the
//! size of the file, not by what the file declares.

use crate::error::{Context, Error, Result};
use hdf5_pure::{
    AttrValue, ChunkCacheConfig, DType, Dataset, Datatype, DatatypeByteOrder, File,
    FileAccessProperties, MetadataCacheConfig,
};
use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::path::Path;

/// A compressed dataset may be this many times larger than its file ...
const MAX_EXPANSION: u64 = 64;
/// ... or this many bytes, whichever is more.
const SMALL: u64 = 64 << 20;
/// Bytes of metadata kept at a time.
const METADATA_CACHE: usize = 16 << 20;

/// Whose conventions a feature file follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `features`, `coords` with attributes.
    Trident,
    /// `features`, `coords` without attributes.
    Clam,
    /// `feats` or `patch_embeddings`, `coords` in micrometres.
    Stamp,
}

/// What a coordinate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Level-0 pixels.
    Level0Pixel,
    /// Micrometres.
    Micrometre,
}

/// Tile features as read.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureFile {
    /// Whose conventions the file follows.
    pub layout: Layout,
    /// `[N, D]`, row-major, all finite.
    pub features: Vec<f32>,
    /// N.
    pub n: usize,
    /// D.
    pub d: usize,
    /// `[N]` top-left corners `x, y`, when the file has them.
    pub coords: Option<Vec<[f64; 2]>>,
    /// Unit of `coords` and `tile_side`.
    pub coords_unit: Unit,
    /// Side of a tile in that unit, when the file says.
    pub tile_side: Option<f64>,
    /// Encoder name, when the file says.
    pub encoder: Option<String>,
    /// `histokern_recipe_id`, in files of this program.
    pub recipe_id: Option<String>,
    /// All readable attributes as text, of the file, `features` and `coords`, the last one winning.
    pub attributes: BTreeMap<String, String>,
}

/// Reads the features of one slide.
///
/// # Errors
/// Naming the file: [`crate::Kind::Io`], [`crate::Kind::Malformed`] for damage, a missing dataset,
/// counts that disagree or a value that is not finite (naming its row),
/// [`crate::Kind::Unsupported`] for a type or shape no peer writes, [`crate::Kind::Limit`] for a
/// dataset that would grow beyond what its file can hold.
pub fn read_features(path: &Path) -> Result<FeatureFile> {
    // The HDF5 library is not ours: a panic on a damaged file becomes an error of that file.
    std::panic::catch_unwind(AssertUnwindSafe(|| read(path)))
        .unwrap_or_else(|_| Err(Error::malformed("damaged HDF5 structure")))
        .context(|| path.display().to_string())
}

fn read(path: &Path) -> Result<FeatureFile> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io("cannot open", e))?;
    if !metadata.is_file() {
        return Err(Error::usage("not a regular file"));
    }
    let access = FileAccessProperties::new()
        .with_metadata_cache(MetadataCacheConfig::new(METADATA_CACHE))
        .with_chunk_cache(ChunkCacheConfig::disabled());
    let file = File::open_streaming_with_options(path, access).map_err(damaged)?;
    let root = file.root();
    let names = root.datasets().map_err(damaged)?;
    let has = |name: &str| names.iter().any(|n| n == name);
    let Some(name) = ["features", "feats", "patch_embeddings"].into_iter().find(|n| has(n)) else {
        let found: Vec<_> = names.iter().take(8).map(String::as_str).collect();
        return Err(Error::malformed(format!(
            "no dataset features, feats or patch_embeddings, only [{}]",
            found.join(", ")
        )));
    };
    let table = open(&file, name, metadata.len())?;
    let features = read_floats(&table.dataset).map_err(damaged).context(|| name.into())?;
    let (n, d) = (table.n, table.width);
    check_values(name, &features, n, d)?;

    let mut attributes = root.attrs().map_err(damaged)?;
    attributes.extend(table.dataset.attrs().map_err(damaged).context(|| name.into())?);
    let coords = if has("coords") {
        let table = open(&file, "coords", metadata.len())?;
        attributes.extend(table.dataset.attrs().map_err(damaged).context(|| "coords".into())?);
        Some(read_coords(&table, name, n)?)
    } else {
        None
    };
    let attributes = Attributes(attributes);
    let mut out = FeatureFile {
        layout: Layout::Clam,
        features,
        n,
        d,
        coords,
        coords_unit: Unit::Level0Pixel,
        tile_side: None,
        encoder: attributes.text("encoder").or_else(|| attributes.text("extractor")),
        recipe_id: attributes.text("histokern_recipe_id"),
        attributes: attributes.0.iter().map(|(k, v)| (k.clone(), attribute_text(v))).collect(),
    };
    if name == "features" {
        if attributes.0.contains_key("patch_size") {
            out.layout = Layout::Trident;
            out.tile_side = attributes.trident_side();
        }
    } else {
        out.layout = Layout::Stamp;
        attributes.to_micrometres(&mut out)?;
    }
    Ok(out)
}

struct Table {
    dataset: Dataset,
    n: usize,
    width: usize,
}

/// Opens a numeric dataset `[N, width]` or `[1, N, width]` and checks that its file can hold it.
fn open(file: &File, name: &str, file_bytes: u64) -> Result<Table> {
    let check = || {
        let dataset = file.dataset(name).map_err(damaged)?;
        let shape = dataset.shape().map_err(damaged)?;
        let (n, width) = match shape[..] {
            [n, width] | [1, n, width] if width > 0 => (n, width),
            _ => return Err(Error::unsupported(format!("shape {shape:?}, expected [N, width]"))),
        };
        let element = element_bytes(&dataset, name)?;
        let bytes = n.checked_mul(width).and_then(|c| c.checked_mul(element));
        let allowed = if dataset.filter_pipeline().is_empty() {
            file_bytes
        } else {
            file_bytes.saturating_mul(MAX_EXPANSION).max(SMALL)
        };
        if bytes.is_none_or(|b| b > allowed) {
            return Err(Error::limit(format!(
                "shape {shape:?} of {element}-byte values in a file of {file_bytes} bytes"
            )));
        }
        check_chunks(&dataset, element, allowed, file_bytes)?;
        let small = |v| usize::try_from(v).map_err(|_| Error::limit(format!("shape {shape:?}")));
        Ok(Table { n: small(n)?, width: small(width)?, dataset })
    };
    check().context(|| name.into())
}

/// A chunk is fetched and decompressed whole, however few of its rows the dataset has, and the
/// HDF5 library reserves the stored size its index declares before it reads.
fn check_chunks(dataset: &Dataset, element: u64, allowed: u64, file_bytes: u64) -> Result<()> {
    let Some(shape) = dataset.chunk_shape().map_err(damaged)? else { return Ok(()) };
    let bytes = shape.iter().try_fold(element, |a, &b| a.checked_mul(b));
    if bytes.is_none_or(|b| b > allowed.max(SMALL)) {
        return Err(Error::limit(format!("chunks of {shape:?} values")));
    }
    for chunk in dataset.chunks().map_err(damaged)? {
        let end = chunk.address.checked_add(chunk.storage_size);
        if end.is_none_or(|end| end > file_bytes) {
            return Err(Error::malformed(format!(
                "chunk {:?}: {} bytes at {} in a file of {file_bytes}",
                chunk.offset, chunk.storage_size, chunk.address
            )));
        }
    }
    Ok(())
}

fn element_bytes(dataset: &Dataset, name: &str) -> Result<u64> {
    let dtype = dataset.dtype().map_err(damaged)?;
    let float = matches!(dtype, DType::F32 | DType::F64) || half_order(&dtype).is_some();
    let integer = matches!(
        dtype,
        DType::I8
            | DType::I16
            | DType::I32
            | DType::I64
            | DType::U8
            | DType::U16
            | DType::U32
            | DType::U64
    );
    if float || (integer && name == "coords") {
        return dataset.element_size().map_err(damaged);
    }
    Err(Error::unsupported(format!("values of type {dtype}")))
}

/// The byte order of IEEE binary16, which the HDF5 library does not convert itself.
fn half_order(dtype: &DType) -> Option<DatatypeByteOrder> {
    let DType::Other(datatype) = dtype else { return None };
    match &**datatype {
        Datatype::FloatingPoint { size: 2, byte_order, layout }
            if layout.exponent_size == 5
                && layout.mantissa_size == 10
                && *byte_order != DatatypeByteOrder::Vax =>
        {
            Some(*byte_order)
        }
        _ => None,
    }
}

fn read_floats(dataset: &Dataset) -> std::result::Result<Vec<f32>, hdf5_pure::Error> {
    let from_bytes: fn([u8; 2]) -> half::f16 = match half_order(&dataset.dtype()?) {
        None => return dataset.read_f32(),
        Some(DatatypeByteOrder::BigEndian) => half::f16::from_be_bytes,
        Some(_) => half::f16::from_le_bytes,
    };
    let raw = dataset.read_raw()?;
    Ok(raw.as_chunks::<2>().0.iter().map(|&b| from_bytes(b).to_f32()).collect())
}

fn check_values(name: &str, values: &[f32], n: usize, d: usize) -> Result<()> {
    if Some(values.len()) != n.checked_mul(d) {
        let what = format!("{name}: {} values for shape [{n}, {d}]", values.len());
        return Err(Error::malformed(what));
    }
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(Error::malformed(format!(
            "{name}: row {}, column {} is {}",
            at / d,
            at % d,
            values[at]
        ))),
        None => Ok(()),
    }
}

fn read_coords(table: &Table, features: &str, n: usize) -> Result<Vec<[f64; 2]>> {
    if (table.n, table.width) != (n, 2) {
        return Err(Error::malformed(format!(
            "coords: shape [{}, {}], but {features} has {n} rows",
            table.n, table.width
        )));
    }
    let values = table.dataset.read_f64().map_err(damaged).context(|| "coords".into())?;
    let (pairs, rest) = values.as_chunks::<2>();
    if pairs.len() != n || !rest.is_empty() {
        return Err(Error::malformed(format!("coords: {} values for {n} rows", values.len())));
    }
    match pairs.iter().position(|p| p.iter().any(|v| !v.is_finite())) {
        Some(row) => Err(Error::malformed(format!("coords: row {row} is {:?}", pairs[row]))),
        None => Ok(pairs.to_vec()),
    }
}

struct Attributes(HashMap<String, AttrValue>);

impl Attributes {
    fn text(&self, name: &str) -> Option<String> {
        self.0.get(name)?.as_str().map(str::to_owned)
    }

    fn number(&self, name: &str) -> Option<f64> {
        let value = self.0.get(name)?;
        let number = value.as_f64().or_else(|| value.as_i64().map(|i| i as f64));
        number.filter(|v| v.is_finite() && *v > 0.0)
    }

    /// Level-0 pixels, from what TRIDENT writes or what it falls back to (files made from CLAM's).
    fn trident_side(&self) -> Option<f64> {
        let patch = self.number("patch_size");
        let ratio =
            || Some(self.number("level0_magnification")? / self.number("target_magnification")?);
        self.number("patch_size_level0")
            .or_else(|| Some(patch? * ratio()?))
            .or_else(|| Some(patch? * self.number("custom_downsample")?))
    }

    /// STAMP's four ways of saying what a coordinate means, tried in its own order.
    fn to_micrometres(&self, file: &mut FeatureFile) -> Result<()> {
        file.coords_unit = Unit::Micrometre;
        let in_micrometres = self.text("unit").as_deref() == Some("um");
        let side = self.number("tile_size").filter(|_| in_micrometres);
        if let Some(side) = side.or_else(|| self.number("tile_size_um")) {
            file.tile_side = Some(side);
            return Ok(());
        }
        let Some(coords) = &mut file.coords else { return Ok(()) };
        // The historic unit: pixels of tiles of 224 px and 256 um.
        let stride = self.number("tile_size").or_else(|| stride(coords));
        if stride.is_none_or(|s| s.round() != 224.0) {
            return Err(Error::malformed(format!(
                "no attribute tile_size_um, and a tile step of {} instead of the historic 224",
                stride.map_or("unknown size".into(), |s| s.to_string())
            )));
        }
        for value in coords.as_flattened_mut() {
            *value *= 256.0 / 224.0;
        }
        file.tile_side = Some(256.0);
        Ok(())
    }
}

/// The smallest step between distinct coordinates of one axis, as STAMP guesses a stride.
fn stride(coords: &[[f64; 2]]) -> Option<f64> {
    let step = |axis: usize| {
        let mut values: Vec<f64> = coords.iter().map(|c| c[axis]).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        values.array_windows().map(|[a, b]| b - a).min_by(f64::total_cmp)
    };
    [step(0), step(1)].into_iter().flatten().min_by(f64::total_cmp)
}

fn attribute_text(value: &AttrValue) -> String {
    if let Some(text) = value.as_str() {
        return text.to_owned();
    }
    if let Some(number) = value.as_i64() {
        return number.to_string();
    }
    value.as_f64().map_or_else(|| value.to_string(), |v| v.to_string())
}

fn damaged(error: hdf5_pure::Error) -> Error {
    match error {
        hdf5_pure::Error::Io(e) => Error::io("cannot read", e),
        other => Error::malformed(other.to_string()).caused_by(other),
    }
}
