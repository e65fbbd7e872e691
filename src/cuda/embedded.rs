//! Compiled kernels inside the program: an archive made before the build and linked into it.
//!
//! The archive is a zip file. Each of its entries is named `<key>-<compiler>`, as in the disk cache,
//! and holds an entry of that cache; the PTX in it is there only where older kernels serve newer
//! devices, stated for the oldest driver. Because keys hold the hash of sources and options, an
//! archive of other kernels finds nothing; its comment names the kernels it was made from, so that
//! `build.rs` refuses it before that.

use super::cache;
use super::nvrtc::Output;
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::io::{Cursor, Read, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Names the kernels of this build: a hash over `kernels/` and the files of this module that decide
/// how they are compiled, made by `build.rs`.
pub const KERNELS: &str = env!("HISTOKERN_KERNELS");

/// Most bytes of one entry.
const MAX_ENTRY: u64 = 64 << 20;

#[cfg(feature = "embed-cubins")]
static BUILT_IN: Option<&[u8]> = Some(include_bytes!(concat!(env!("OUT_DIR"), "/cubins.zip")));
#[cfg(not(feature = "embed-cubins"))]
static BUILT_IN: Option<&[u8]> = None;

/// An archive of compiled kernels.
pub struct Archive {
    zip: ZipArchive<Cursor<&'static [u8]>>,
    /// Compiler of each key.
    entries: HashMap<String, String>,
    bytes: usize,
}

impl Archive {
    /// The archive this program was built with, if it was.
    pub fn built_in() -> Option<Archive> {
        Archive::open(BUILT_IN?).ok()
    }

    /// Reads an archive's table of contents.
    ///
    /// # Errors
    /// [`crate::Kind::Malformed`] when the bytes are not an archive.
    pub fn open(bytes: &'static [u8]) -> Result<Archive> {
        let zip = ZipArchive::new(Cursor::new(bytes))
            .map_err(|e| Error::malformed(format!("archive of kernels: {e}")))?;
        let split = |name: &str| {
            name.rsplit_once('-').map(|(key, compiler)| (key.to_string(), compiler.to_string()))
        };
        let names = zip.file_names().filter_map(Result::ok);
        let entries = names.filter_map(|name| split(&name)).collect();
        Ok(Archive { zip, entries, bytes: bytes.len() })
    }

    /// Packs entries, each with its key and the compiler that made it; kernels of one source and the
    /// same options share an entry.
    ///
    /// # Errors
    /// [`crate::Kind::Limit`] when they are more than an archive holds.
    pub fn pack(entries: &[(String, String, Output)]) -> Result<Vec<u8>> {
        let full = |e: &dyn std::fmt::Display| Error::limit(format!("archive of kernels: {e}"));
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        zip.set_comment(comment(KERNELS)).map_err(|e| full(&e))?;
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .last_modified_time(zip::DateTime::default());
        let mut packed = HashSet::new();
        for (key, compiler, output) in entries {
            let name = format!("{key}-{compiler}");
            if !packed.insert(name.clone()) {
                continue;
            }
            zip.start_file(name, options).map_err(|e| full(&e))?;
            zip.write_all(&cache::encode(output)).map_err(|e| full(&e))?;
        }
        Ok(zip.finish().map_err(|e| full(&e))?.into_inner())
    }

    /// The entry of a key with its compiler; `None` when it is absent or damaged.
    pub fn read(&self, key: &str) -> Option<(Output, String)> {
        let compiler = self.entries.get(key)?;
        let mut zip = self.zip.clone();
        let mut bytes = Vec::new();
        let entry = zip.by_name(&format!("{key}-{compiler}")).ok()?;
        entry.take(MAX_ENTRY).read_to_end(&mut bytes).ok()?;
        Some((cache::decode(&bytes)?, compiler.clone()))
    }

    /// Keys of its entries.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Bytes it takes in the program.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What `build.rs` looks for at the end of the file.
fn comment(kernels: &str) -> String {
    format!("histokern kernels {kernels}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed() -> Vec<u8> {
        let output = |byte: u8| Output { cubin: vec![byte; 5000], ptx: vec![], log: "x".into() };
        let entry = |key: &str, byte| (key.to_string(), "12.9.86".to_string(), output(byte));
        let gemm = entry("sm_90-gemm-1", 2);
        Archive::pack(&[entry("sm_80-gemm-0", 1), gemm.clone(), gemm]).unwrap()
    }

    #[test]
    fn what_was_packed_is_found_by_key() {
        let bytes = packed();
        assert!(bytes.ends_with(comment(KERNELS).as_bytes()) && bytes.len() < 5000);
        let archive = Archive::open(bytes.leak()).unwrap();
        let (output, compiler) = archive.read("sm_90-gemm-1").unwrap();
        assert_eq!((output.cubin, compiler.as_str()), (vec![2; 5000], "12.9.86"));
        assert!(archive.read("sm_90-gemm-0").is_none());
        assert_eq!(archive.keys().count(), 2);
    }

    #[test]
    fn a_damaged_archive_gives_no_entry() {
        assert!(Archive::open(b"PK").is_err());
        let whole = packed();
        for at in 40..100 {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            if let Ok(archive) = Archive::open(bytes.leak()) {
                let found = archive.read("sm_80-gemm-0");
                assert!(found.is_none_or(|(o, _)| o.cubin == vec![1; 5000]), "byte {at}");
            }
        }
    }
}
