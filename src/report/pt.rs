//! A `[N, D]` float tensor as `torch.save` writes it: a zip of one pickle and the raw storage.
//!
//! CLAM trains from `pt_files/<slide>.pt`. The pickle names only what
//! `torch.load(weights_only=True)` allows.

use super::atomic;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Storages start at multiples of this, so that torch can map them.
const ALIGNMENT: u16 = 64;
/// The folder in the archive; torch accepts any and uses this one for unnamed streams.
const FOLDER: &str = "archive";

/// Writes `values`, `[N, D]` row-major, as a float32 CPU tensor.
///
/// # Errors
/// Naming the file: a length that is no multiple of `dim`, or the system's.
pub fn write(path: &Path, values: &[f32], dim: usize) -> Result<()> {
    if dim == 0 || !values.len().is_multiple_of(dim) {
        let what = format!("{} values are no rows of {dim}", values.len());
        return Err(Error::usage(what).context(path.display().to_string()));
    }
    atomic::write(path, |w| write_zip(w, values, dim))
}

fn write_zip(w: &mut BufWriter<File>, values: &[f32], dim: usize) -> Result<()> {
    let plain = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let storage = plain.with_alignment(ALIGNMENT).large_file(size_of_val(values) >= 1 << 31);
    let mut zip = ZipWriter::new(w);
    let zipped = |e: zip::result::ZipError| match e {
        zip::result::ZipError::Io(e) => Error::io("cannot write", e),
        other => Error::malformed(other.to_string()).caused_by(other),
    };
    let written = |e| Error::io("cannot write", e);
    let small: [(&str, &[u8]); 3] = [
        ("data.pkl", &pickle(values.len() / dim, dim)),
        ("byteorder", b"little"),
        ("version", b"3\n"),
    ];
    for (file, bytes) in small {
        zip.start_file(format!("{FOLDER}/{file}"), plain).map_err(zipped)?;
        zip.write_all(bytes).map_err(written)?;
    }
    zip.start_file(format!("{FOLDER}/data/0"), storage).map_err(zipped)?;
    let mut block = Vec::with_capacity(1 << 16);
    for part in values.chunks(1 << 14) {
        block.clear();
        block.extend(part.iter().flat_map(|v| v.to_le_bytes()));
        zip.write_all(&block).map_err(written)?;
    }
    zip.finish().map_err(zipped)?;
    Ok(())
}

/// Pickle protocol 2 of a contiguous `[n, dim]` float32 tensor whose storage is file `data/0`.
fn pickle(n: usize, dim: usize) -> Vec<u8> {
    const MARK: u8 = b'(';
    const TUPLE: u8 = b't';
    const REDUCE: u8 = b'R';
    const NEWFALSE: u8 = 0x89;
    let mut p = vec![0x80, 2];
    p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n");
    p.push(MARK);
    // The storage: a persistent id ('storage', type, key, device, number of elements).
    p.push(MARK);
    text(&mut p, "storage");
    p.extend(b"ctorch\nFloatStorage\n");
    text(&mut p, "0");
    text(&mut p, "cpu");
    integer(&mut p, n * dim);
    p.extend([TUPLE, b'Q']);
    integer(&mut p, 0); // storage offset
    for pair in [[n, dim], [dim, 1]] {
        p.push(MARK);
        integer(&mut p, pair[0]);
        integer(&mut p, pair[1]);
        p.push(TUPLE);
    }
    p.push(NEWFALSE); // requires_grad
    p.extend(b"ccollections\nOrderedDict\n"); // backward hooks: none
    p.extend([MARK, TUPLE, REDUCE, TUPLE, REDUCE, b'.']);
    p
}

/// BINUNICODE; all strings here are short.
fn text(p: &mut Vec<u8>, value: &str) {
    p.push(b'X');
    p.extend((value.len() as u32).to_le_bytes());
    p.extend(value.as_bytes());
}

/// LONG1 of nine bytes: the top one keeps the sign positive.
fn integer(p: &mut Vec<u8>, value: usize) {
    p.extend([0x8a, 9]);
    p.extend((value as u64).to_le_bytes());
    p.push(0);
}
