//! TIFF 6.0 and BigTIFF directories: which tags an image gets, and their bytes.

use super::encode::{Compression, Samples, jpeg_tables};
use super::tiff::{Chunks, Directory};
use crate::error::Result;

/// Byte order of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endian {
    /// `II`.
    Little,
    /// `MM`.
    Big,
}

impl Endian {
    fn u16(self, v: u16) -> [u8; 2] {
        if self == Endian::Little { v.to_le_bytes() } else { v.to_be_bytes() }
    }

    fn u32(self, v: u32) -> [u8; 4] {
        if self == Endian::Little { v.to_le_bytes() } else { v.to_be_bytes() }
    }

    fn u64(self, v: u64) -> [u8; 8] {
        if self == Endian::Little { v.to_le_bytes() } else { v.to_be_bytes() }
    }

    /// An offset: 4 bytes, or 8 in BigTIFF. The writer keeps classic files below 4 GiB.
    fn offset(self, v: u64, big: bool) -> Vec<u8> {
        if big { self.u64(v).to_vec() } else { self.u32(v as u32).to_vec() }
    }

    /// The first 16 bytes of a file whose first directory lies at `first`. A classic header is
    /// only 8 long; the rest stays 0, as in files of slide scanners.
    pub(super) fn header(self, big: bool, first: u64) -> Vec<u8> {
        let mut bytes = if self == Endian::Little { b"II".to_vec() } else { b"MM".to_vec() };
        if big {
            bytes.extend(self.u16(43));
            bytes.extend(self.u16(8));
            bytes.extend(self.u16(0));
        } else {
            bytes.extend(self.u16(42));
        }
        bytes.extend(self.offset(first, big));
        bytes.resize(16, 0);
        bytes
    }
}

/// The value of a field.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// SHORT.
    Short(Vec<u16>),
    /// LONG.
    Long(Vec<u32>),
    /// LONG, or LONG8 in BigTIFF.
    Offset(Vec<u64>),
    /// One RATIONAL, to six digits.
    Rational(f64),
    /// ASCII, ended by NUL here.
    Text(String),
    /// UNDEFINED.
    Undefined(Vec<u8>),
}

impl Value {
    /// TIFF type, count and bytes.
    fn encode(&self, endian: Endian, big: bool) -> (u16, u64, Vec<u8>) {
        match self {
            Value::Short(v) => (3, v.len() as u64, v.iter().flat_map(|&x| endian.u16(x)).collect()),
            Value::Long(v) => (4, v.len() as u64, v.iter().flat_map(|&x| endian.u32(x)).collect()),
            Value::Offset(v) => (
                if big { 16 } else { 4 },
                v.len() as u64,
                v.iter().flat_map(|&x| endian.offset(x, big)).collect(),
            ),
            Value::Rational(v) => {
                let mut denominator = 1_000_000u32;
                while v * f64::from(denominator) > f64::from(u32::MAX) && denominator > 1 {
                    denominator /= 10;
                }
                let numerator = (v * f64::from(denominator)).round() as u32;
                (5, 1, [endian.u32(numerator), endian.u32(denominator)].concat())
            }
            Value::Text(text) => {
                let bytes = [text.as_bytes(), &[0]].concat();
                (2, bytes.len() as u64, bytes)
            }
            Value::Undefined(bytes) => (7, bytes.len() as u64, bytes.clone()),
        }
    }
}

/// What is known of an image once its pixels are in the file.
pub(super) struct Stored<'a> {
    /// Width and height in pixels.
    pub size: [u32; 2],
    /// Of every strip or tile.
    pub offsets: &'a [u64],
    /// Bytes of every strip or tile.
    pub counts: &'a [u64],
    /// Offsets of the SubIFDs.
    pub children: Vec<u64>,
}

/// The tags of one directory in ascending order.
pub(super) fn fields(d: &Directory, stored: Stored) -> Result<Vec<(u16, Value)>> {
    use Value::{Long, Offset, Rational, Short, Text, Undefined};
    let mut fields = vec![
        (256, Long(vec![stored.size[0]])),
        (257, Long(vec![stored.size[1]])),
        (258, Short(vec![8; d.samples.count()])),
        (259, Short(vec![compression_code(d.compression)])),
        (262, Short(vec![photometric(d.samples)])),
        (277, Short(vec![d.samples.count() as u16])),
        (284, Short(vec![1])),
    ];
    match d.chunks {
        Chunks::Strips { rows } => fields.extend([
            (273, Offset(stored.offsets.to_vec())),
            (278, Long(vec![rows])),
            (279, Offset(stored.counts.to_vec())),
        ]),
        Chunks::Tiles { width, height } => fields.extend([
            (322, Long(vec![width])),
            (323, Long(vec![height])),
            (324, Offset(stored.offsets.to_vec())),
            (325, Offset(stored.counts.to_vec())),
        ]),
    }
    if let Some(resolution) = d.resolution {
        let [x, y] = resolution.per_unit.map(Rational);
        fields.extend([(282, x), (283, y), (296, Short(vec![resolution.unit]))]);
    }
    match d.compression {
        Compression::Lzw { predictor: true } | Compression::Deflate { predictor: true } => {
            fields.push((317, Short(vec![2])));
        }
        Compression::Jpeg(jpeg) => {
            if jpeg.shared_tables {
                fields.push((347, Undefined(jpeg_tables(d.samples, jpeg)?)));
            }
            if d.samples == Samples::YCbCr {
                fields.push((530, Short(jpeg.sampling.factors().to_vec())));
            }
        }
        _ => {}
    }
    fields.extend(d.subfile_type.map(|kind| (254, Long(vec![kind]))));
    fields.extend(d.description.clone().map(|text| (270, Text(text))));
    fields.extend(d.icc_profile.clone().map(|profile| (34_675, Undefined(profile))));
    if !stored.children.is_empty() {
        fields.push((330, Offset(stored.children)));
    }
    fields.sort_by_key(|(tag, _)| *tag);
    Ok(fields)
}

fn compression_code(compression: Compression) -> u16 {
    match compression {
        Compression::None => 1,
        Compression::Lzw { .. } => 5,
        Compression::Jpeg(_) => 7,
        Compression::Deflate { .. } => 8,
        Compression::PackBits => 32_773,
    }
}

fn photometric(samples: Samples) -> u16 {
    match samples {
        Samples::Gray => 1,
        Samples::Rgb => 2,
        Samples::YCbCr => 6,
    }
}

/// A directory at offset `at` followed by the values that do not fit into their entries.
pub(super) fn directory_bytes(
    fields: Vec<(u16, Value)>,
    at: u64,
    next: u64,
    endian: Endian,
    big: bool,
) -> Vec<u8> {
    let (count_bytes, entry_bytes, inline) = if big { (8, 20, 8) } else { (2, 12, 4) };
    let table = count_bytes + fields.len() * entry_bytes + inline;
    let mut values = Vec::new();
    let mut bytes = if big {
        endian.u64(fields.len() as u64).to_vec()
    } else {
        endian.u16(fields.len() as u16).to_vec()
    };
    for (tag, value) in fields {
        let (kind, count, mut data) = value.encode(endian, big);
        bytes.extend(endian.u16(tag));
        bytes.extend(endian.u16(kind));
        bytes.extend(endian.offset(count, big));
        if data.len() <= inline {
            data.resize(inline, 0);
            bytes.extend(data);
        } else {
            bytes.extend(endian.offset(at + (table + values.len()) as u64, big));
            data.resize(data.len().next_multiple_of(8), 0);
            values.extend(data);
        }
    }
    bytes.extend(endian.offset(next, big));
    bytes.extend(values);
    bytes
}
