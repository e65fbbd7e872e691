//! Tile features as HDF5, in the layouts TRIDENT, CLAM and STAMP read.
//!
//! | layout | datasets | coordinates |
//! | --- | --- | --- |
//! | TRIDENT | `features` f32 `[N, D]`, `coords` i64 `[N, 2]` | level-0 px |
//! | CLAM | `features` f32 `[N, D]`, `coords` i32 `[N, 2]`; patches: `coords` i64 | level-0 px |
//! | STAMP | `feats` f16 `[N, D]`, `coords` f32 `[N, 2]` | micrometres |
//!
//! A TRIDENT file also serves CLAM, which ignores attributes. The peers store one row a chunk;
//! here a chunk has up to 4096 rows, which none of their readers notices and all read faster.
//! Row counts can grow, as in the peers' own files.
//! Every file carries `histokern_recipe_id`: an encoder's name alone does not identify features.

use super::atomic;
use crate::error::{Context, Error, Result};
use hdf5_pure::{
    AttrValue, Datatype, DatatypeByteOrder, FileBuilder, FixedPointLayout, FloatingPointLayout,
    MaxExtent,
};
use sha2::{Digest, Sha256};
use std::path::Path;

type Attributes = Vec<(&'static str, AttrValue)>;

/// Most rows in one HDF5 chunk.
const CHUNK_ROWS: usize = 4096;
/// Most bytes in one HDF5 chunk: wide features get fewer rows.
const CHUNK_BYTES: usize = 8 << 20;

/// How tiles lie on the slide.
#[derive(Clone, Debug, PartialEq)]
pub struct Geometry {
    /// Side of a tile in pixels of the scale it was cut at.
    pub tile_px: u32,
    /// Pixels shared by neighbours, at that same scale.
    pub overlap_px: u32,
    /// Side of a tile in level-0 pixels.
    pub tile_level0: f64,
    /// Micrometres per level-0 pixel, when known.
    pub mpp: Option<f64>,
    /// Level-0 width in pixels.
    pub level0_width: u64,
    /// Level-0 height in pixels.
    pub level0_height: u64,
}

/// The features of one slide.
#[derive(Clone, Copy, Debug)]
pub struct Features<'a> {
    /// Slide name without folder and extension.
    pub slide: &'a str,
    /// Encoder name, `resnet50`.
    pub encoder: &'a str,
    /// Identity of everything that decided these numbers.
    pub recipe_id: &'a str,
    /// `[N, D]`, row-major.
    pub features: &'a [f32],
    /// D.
    pub dim: usize,
    /// `[N]` top-left corners `x, y` in level-0 pixels.
    pub coords: &'a [[i64; 2]],
    /// How the tiles lie.
    pub geometry: &'a Geometry,
}

impl Features<'_> {
    fn check(&self) -> Result<()> {
        let g = self.geometry;
        let positive = |v: f64| v.is_finite() && v > 0.0;
        if g.tile_px == 0 || !positive(g.tile_level0) || !g.mpp.is_none_or(positive) {
            return Err(Error::usage(format!("no tile geometry: {g:?}")));
        }
        let expected = self.coords.len().checked_mul(self.dim);
        if self.dim == 0 || expected != Some(self.features.len()) {
            return Err(Error::usage(format!(
                "{} feature values for {} tiles of {}",
                self.features.len(),
                self.coords.len(),
                self.dim
            )));
        }
        match self.features.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(Error::malformed(format!(
                "features: row {}, column {} is {}",
                at / self.dim,
                at % self.dim,
                self.features[at]
            ))),
            None => Ok(()),
        }
    }
}

/// Writes `features_<encoder>/<slide>.h5` as TRIDENT does.
///
/// With a known pixel size the two magnification attributes are `10 / mpp` of level 0 and of the
/// tile, unrounded: TRIDENT uses only their ratio, so it cuts exactly our physical tiles. Without
/// one they are absent and the CLAM attributes TRIDENT falls back to take their place.
///
/// # Errors
/// Naming the file: sizes that do not fit, a value that is not finite, or the system's.
pub fn write_trident(path: &Path, f: &Features) -> Result<()> {
    checked(path, f)?;
    let mut attributes = trident_attributes(f);
    attributes.push(("encoder", text(f.encoder)));
    let features = features_f32(f).with(attributes.clone());
    save(path, vec![features, coords_i64(f.coords).with(attributes)], Vec::new())
}

fn trident_attributes(f: &Features) -> Attributes {
    let g = f.geometry;
    let ratio = g.tile_level0 / f64::from(g.tile_px);
    let mut a = vec![
        ("patch_size", AttrValue::I64(g.tile_px.into())),
        ("patch_size_level0", whole_or_float(g.tile_level0)),
        ("overlap", AttrValue::I64(g.overlap_px.into())),
        ("name", text(f.slide)),
        ("savetodir", text("")),
        ("level0_width", AttrValue::I64(g.level0_width.cast_signed())),
        ("level0_height", AttrValue::I64(g.level0_height.cast_signed())),
        ("histokern_recipe_id", text(f.recipe_id)),
    ];
    match g.mpp {
        Some(mpp) => a.extend([
            ("level0_magnification", whole_or_float(10.0 / mpp)),
            ("target_magnification", whole_or_float(10.0 / (mpp * ratio))),
        ]),
        None => a.extend([
            ("patch_level", AttrValue::I64(0)),
            ("custom_downsample", whole_or_float(ratio)),
        ]),
    }
    a
}

/// Writes `h5_files/<slide>.h5` as CLAM does.
///
/// # Errors
/// Naming the file; also [`crate::Kind::Limit`] for a coordinate outside 32 bits.
pub fn write_clam(path: &Path, f: &Features) -> Result<()> {
    checked(path, f)?;
    let narrow = |c: &[i64; 2]| Some([i32::try_from(c[0]).ok()?, i32::try_from(c[1]).ok()?]);
    let coords: Option<Vec<[i32; 2]>> = f.coords.iter().map(narrow).collect();
    let coords = coords.ok_or_else(|| {
        Error::limit("a coordinate does not fit CLAM's 32 bits").context(path.display().to_string())
    })?;
    let recipe = vec![("histokern_recipe_id", text(f.recipe_id))];
    let coords =
        Table::new("coords", signed(4), coords.as_flattened(), 2, |v: &i32| v.to_le_bytes());
    save(path, vec![features_f32(f).with(recipe), coords], Vec::new())
}

/// The coordinates-only file CLAM cuts patches by.
#[derive(Clone, Debug)]
pub struct ClamPatches<'a> {
    /// Slide name without folder and extension.
    pub slide: &'a str,
    /// `[N]` top-left corners `x, y` in level-0 pixels.
    pub coords: &'a [[i64; 2]],
    /// Side of a tile in pixels of `patch_level`.
    pub patch_size: u32,
    /// Pyramid level the tiles are read from.
    pub patch_level: u32,
    /// Level-0 pixels per pixel of `patch_level`, x and y.
    pub downsample: [f64; 2],
    /// Width and height of `patch_level` in pixels.
    pub level_dim: [u64; 2],
}

/// Writes `patches/<slide>.h5` as CLAM does.
///
/// # Errors
/// Naming the file.
pub fn write_clam_patches(path: &Path, p: &ClamPatches) -> Result<()> {
    let dim = || AttrValue::I64Array(p.level_dim.map(u64::cast_signed).to_vec());
    let attributes = vec![
        ("patch_size", AttrValue::I64(p.patch_size.into())),
        ("patch_level", AttrValue::I64(p.patch_level.into())),
        ("downsample", AttrValue::F64Array(p.downsample.to_vec())),
        ("downsampled_level_dim", dim()),
        ("level_dim", dim()),
        ("name", text(p.slide)),
        ("save_path", text("")),
    ];
    save(path, vec![coords_i64(p.coords).with(attributes)], Vec::new())
}

/// Writes `<slide>.h5` as STAMP does; `false` and no file when there are no tiles, as STAMP has it.
///
/// `stamp_version` is left out, which STAMP allows: this program is not STAMP.
///
/// # Errors
/// Naming the file; also [`crate::Kind::Usage`] without a pixel size and [`crate::Kind::Limit`]
/// for a feature beyond the range of f16.
pub fn write_stamp(path: &Path, f: &Features) -> Result<bool> {
    checked(path, f)?;
    let named = |e: Error| e.context(path.display().to_string());
    let mpp = f.geometry.mpp.ok_or_else(|| {
        named(Error::usage("STAMP features are in micrometres and the pixel size is unknown"))
    })?;
    if f.coords.is_empty() {
        return Ok(false);
    }
    if let Some(at) = f.features.iter().position(|&v| half::f16::from_f32(v).is_infinite()) {
        let (row, value) = (at / f.dim, f.features[at]);
        return Err(named(Error::limit(format!("features: row {row}: {value} overflows f16"))));
    }
    let hash = Sha256::digest(f.recipe_id.as_bytes());
    let code_hash: String = hash[..4].iter().map(|b| format!("{b:02x}")).collect();
    let root = vec![
        ("extractor", text(f.encoder)),
        ("unit", text("um")),
        ("tile_size_um", AttrValue::F64(f.geometry.tile_level0 * mpp)),
        ("tile_size_px", AttrValue::I64(f.geometry.tile_px.into())),
        ("code_hash", text(&code_hash)),
        ("feat_type", text("tile")),
        ("histokern_recipe_id", text(f.recipe_id)),
    ];
    let half = |v: &f32| half::f16::from_f32(*v).to_le_bytes();
    let micrometres = |px: &i64| ((*px as f64 * mpp) as f32).to_le_bytes();
    let features = Table::new("feats", float(2), f.features, f.dim, half);
    let coords = Table::new("coords", float(4), f.coords.as_flattened(), 2, micrometres);
    save(path, vec![features, coords], root)?;
    Ok(true)
}

fn checked(path: &Path, f: &Features) -> Result<()> {
    f.check().context(|| path.display().to_string())
}

/// h5py turns only a variable-length string into `str`.
fn text(value: &str) -> AttrValue {
    AttrValue::VarLenString(value.to_owned())
}

/// An integer where TRIDENT has one, as Python's arithmetic on whole magnifications gives.
fn whole_or_float(value: f64) -> AttrValue {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        AttrValue::I64(value as i64)
    } else {
        AttrValue::F64(value)
    }
}

/// One `[N, width]` dataset, its elements encoded little-endian.
struct Table {
    name: &'static str,
    datatype: Datatype,
    n: usize,
    width: usize,
    bytes: Vec<u8>,
    attributes: Attributes,
}

impl Table {
    /// `values` is `[N, width]`; `encode` gives one element's K bytes.
    fn new<T, const K: usize>(
        name: &'static str,
        datatype: Datatype,
        values: &[T],
        width: usize,
        encode: impl Fn(&T) -> [u8; K],
    ) -> Self {
        let mut bytes = Vec::with_capacity(values.len() * K);
        for value in values {
            bytes.extend_from_slice(&encode(value));
        }
        let n = values.len() / width;
        Table { name, datatype, n, width, bytes, attributes: Vec::new() }
    }

    fn with(mut self, attributes: Attributes) -> Self {
        self.attributes = attributes;
        self
    }

    /// At least 1, as an empty dataset needs a chunk too.
    fn chunk_rows(&self) -> usize {
        let row_bytes = self.width.saturating_mul(self.datatype.type_size() as usize).max(1);
        self.n.min(CHUNK_ROWS).min(CHUNK_BYTES / row_bytes).max(1)
    }
}

fn features_f32(f: &Features) -> Table {
    Table::new("features", float(4), f.features, f.dim, |v| v.to_le_bytes())
}

fn coords_i64(coords: &[[i64; 2]]) -> Table {
    Table::new("coords", signed(8), coords.as_flattened(), 2, |v| v.to_le_bytes())
}

fn float(size: u32) -> Datatype {
    let (exponent_size, mantissa_size) = if size == 2 { (5, 10) } else { (8, 23) };
    Datatype::FloatingPoint {
        size,
        byte_order: DatatypeByteOrder::LittleEndian,
        layout: FloatingPointLayout {
            bit_offset: 0,
            bit_precision: (size * 8) as u16,
            exponent_location: mantissa_size,
            exponent_size,
            mantissa_location: 0,
            mantissa_size,
            exponent_bias: (1 << (exponent_size - 1)) - 1,
        },
    }
}

fn signed(size: u32) -> Datatype {
    Datatype::FixedPoint {
        size,
        byte_order: DatatypeByteOrder::LittleEndian,
        layout: FixedPointLayout { signed: true, bit_offset: 0, bit_precision: (size * 8) as u16 },
    }
}

fn save(path: &Path, tables: Vec<Table>, root: Attributes) -> Result<()> {
    let mut builder = FileBuilder::new();
    for (name, value) in root {
        builder.set_attr(name, value);
    }
    for table in tables {
        let (n, width, chunk) = (table.n as u64, table.width as u64, table.chunk_rows() as u64);
        let dataset = builder.create_dataset(table.name);
        dataset
            .with_raw_data(table.datatype, table.bytes, n * width)
            .with_shape(&[n, width])
            .with_chunks(&[chunk, width])
            .with_maxshape(&[MaxExtent::Unlimited, MaxExtent::Fixed(width)]);
        for (name, value) in table.attributes {
            dataset.set_attr(name, value);
        }
    }
    atomic::write(path, |w| builder.finish_to(w).map_err(failed))
}

fn failed(error: hdf5_pure::Error) -> Error {
    match error {
        hdf5_pure::Error::Io(e) => Error::io("cannot write", e),
        other => Error::malformed(format!("cannot be written as HDF5: {other}")).caused_by(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    const GEOMETRY: Geometry = Geometry {
        tile_px: 256,
        overlap_px: 0,
        tile_level0: 512.0,
        mpp: Some(0.25),
        level0_width: 1000,
        level0_height: 1000,
    };

    fn features<'a>(values: &'a [f32], coords: &'a [[i64; 2]]) -> Features<'a> {
        Features {
            slide: "s",
            encoder: "e",
            recipe_id: "r",
            features: values,
            dim: 2,
            coords,
            geometry: &GEOMETRY,
        }
    }

    #[test]
    fn what_a_layout_cannot_hold_is_refused_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.h5");
        let coords = [[0, 0], [512, 1 << 40]];
        let stamp = |p: &Path, f: &Features| write_stamp(p, f).map(drop);
        type Write<'a> = &'a dyn Fn(&Path, &Features) -> Result<()>;
        let cases: [(Write, &[f32], Kind, &str); 6] = [
            (&write_trident, &[1.0, 2.0, 3.0], Kind::Usage, "3 feature values for 2 tiles of 2"),
            (&write_trident, &[1.0, 2.0, f32::NAN, 0.0], Kind::Malformed, "row 1, column 0 is NaN"),
            (&write_clam, &[0.0, 0.0, 0.0, f32::INFINITY], Kind::Malformed, "row 1, column 1"),
            (&write_clam, &[0.0; 4], Kind::Limit, "32 bits"),
            (&stamp, &[0.0, 0.0, 65_520.0, 0.0], Kind::Limit, "row 1: 65520 overflows f16"),
            (&stamp, &[0.0, 0.0, 0.0, f32::NAN], Kind::Malformed, "row 1"),
        ];
        for (write, values, kind, message) in cases {
            let error = write(&path, &features(values, &coords)).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            let text = error.to_string();
            assert!(text.contains("s.h5: ") && text.contains(message), "{text}");
            assert!(!path.exists());
        }
        write_stamp(&path, &features(&[0.0, 0.0, 65_504.0, 0.0], &coords)).unwrap();
    }

    #[test]
    fn a_geometry_that_is_none_is_refused() {
        for broken in [
            Geometry { tile_px: 0, ..GEOMETRY },
            Geometry { tile_level0: f64::NAN, ..GEOMETRY },
            Geometry { mpp: Some(0.0), ..GEOMETRY },
        ] {
            let f = Features { geometry: &broken, ..features(&[1.0, 2.0], &[[3, 4]]) };
            let error = write_trident(Path::new("/absent/s.h5"), &f).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{error}");
        }
    }

    #[test]
    fn the_same_features_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.h5");
        let bytes = || {
            write_trident(&path, &features(&[1.0, 2.0], &[[3, 4]])).unwrap();
            std::fs::read(&path).unwrap()
        };
        assert_eq!(bytes(), bytes());
    }
}
