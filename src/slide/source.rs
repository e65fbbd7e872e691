//! The bytes of a slide file: positioned reads or a memory map, bounds checked, change detected.
//!
//! The file is opened without blocking, so that a named pipe cannot hang the caller, and
//! anything but a regular file is refused. Positioned reads are the default because a file
//! truncated under a memory map kills the process with SIGBUS, while a short read is an error.

use super::Access;
use crate::error::{Context, Error, Result};
use std::fs::{File, Metadata, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What identifies one state of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let (device, inode) = {
            use std::os::unix::fs::MetadataExt;
            (metadata.dev(), metadata.ino())
        };
        #[cfg(not(unix))]
        let (device, inode) = (0, 0);
        Identity { device, inode, size: metadata.len(), modified: metadata.modified().ok() }
    }
}

#[derive(Debug)]
enum Bytes {
    File(File),
    Map(memmap2::Mmap, File),
}

/// An open regular file that any number of threads read at once.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    bytes: Bytes,
    identity: Identity,
}

impl Source {
    /// Opens `path`; errors when it is missing, unreadable or not a regular file.
    pub fn open(path: &Path, access: Access) -> Result<Source> {
        let file = open_without_blocking(path)?;
        let metadata = file.metadata().map_err(|e| Error::io("cannot stat", e))?;
        if !metadata.is_file() {
            return Err(Error::usage("not a regular file"));
        }
        let identity = Identity::of(&metadata);
        let bytes = match access {
            Access::Read => Bytes::File(file),
            Access::Map if identity.size == 0 => Bytes::File(file),
            Access::Map => {
                // SAFETY: the map is read-only and is only ever read as plain bytes. That nobody
                // truncates or rewrites the file meanwhile is what the caller asserts by
                // choosing `Access::Map`, as its documentation says.
                let map = unsafe { memmap2::Mmap::map(&file) };
                Bytes::Map(map.map_err(|e| Error::io("cannot map", e))?, file)
            }
        };
        Ok(Source { path: path.to_path_buf(), bytes, identity })
    }

    /// The path the file was opened under.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file when it was opened.
    pub fn size(&self) -> u64 {
        self.identity.size
    }

    /// Replaces the contents of `buffer` with `length` bytes from `offset`.
    ///
    /// Nothing is allocated before the range is known to lie inside the file.
    pub fn read_into(&self, offset: u64, length: u64, buffer: &mut Vec<u8>) -> Result<()> {
        let end = offset.checked_add(length).filter(|&end| end <= self.size());
        let (Some(_), Ok(length)) = (end, usize::try_from(length)) else {
            return Err(Error::malformed(format!(
                "{length} bytes at offset {offset} do not lie inside the file of {} bytes",
                self.size()
            )));
        };
        match &self.bytes {
            Bytes::File(file) => {
                buffer.resize(length, 0);
                read_exact_at(file, buffer, offset).map_err(|e| {
                    Error::io(format!("cannot read {length} bytes at offset {offset}"), e)
                })
            }
            Bytes::Map(map, _) => {
                buffer.clear();
                let start = offset as usize;
                let range = map.get(start..start + length);
                buffer.extend_from_slice(range.ok_or_else(|| Error::malformed("map is short"))?);
                Ok(())
            }
        }
    }

    /// Like [`read_into`](Self::read_into), into a new vector.
    pub fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let mut buffer = Vec::new();
        self.read_into(offset, length, &mut buffer)?;
        Ok(buffer)
    }

    /// Error when the file at the path, or the open file itself, is no longer what was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        let (Bytes::File(file) | Bytes::Map(_, file)) = &self.bytes;
        let open = file.metadata().map_err(|e| Error::io("cannot stat", e))?;
        let named = std::fs::metadata(&self.path).map_err(|e| Error::io("cannot stat", e));
        let named = named.context(|| "the file was moved or removed while open".into())?;
        for metadata in [open, named] {
            let now = Identity::of(&metadata);
            if now != self.identity {
                return Err(Error::new(
                    crate::error::Kind::Io,
                    format!(
                        "the file changed while it was open ({} bytes then, {} bytes now)",
                        self.identity.size, now.size
                    ),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
fn open_without_blocking(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const O_NONBLOCK: i32 = 0o4000;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const O_NONBLOCK: i32 = 0x4;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(O_NONBLOCK);
    options.open(path).map_err(|e| Error::io("cannot open", e))
}

#[cfg(not(unix))]
fn open_without_blocking(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).open(path).map_err(|e| Error::io("cannot open", e))
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buffer.is_empty() {
        match file.seek_read(buffer, offset)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn both_kinds_of_access_read_the_same_bytes_and_refuse_the_same_ranges() {
        let file = file(b"0123456789");
        for access in [Access::Read, Access::Map] {
            let source = Source::open(file.path(), access).unwrap();
            assert_eq!(source.read(3, 4).unwrap(), b"3456");
            assert_eq!(source.read(10, 0).unwrap(), b"");
            for (offset, length) in [(7, 4), (11, 0), (u64::MAX, 1), (1, u64::MAX), (0, 1 << 40)] {
                assert!(source.read(offset, length).is_err(), "{offset} {length}");
            }
        }
    }

    #[test]
    fn a_directory_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = Source::open(folder.path(), Access::Read).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_character_device_is_refused() {
        assert!(Source::open(Path::new("/dev/zero"), Access::Read).is_err());
    }

    #[test]
    fn a_change_is_noticed_and_a_truncated_file_is_an_error() {
        let file = file(&[7; 4096]);
        let source = Source::open(file.path(), Access::Read).unwrap();
        source.check_unchanged().unwrap();
        file.as_file().set_len(100).unwrap();
        assert!(source.check_unchanged().is_err());
        assert_eq!(source.read(50, 100).unwrap_err().kind(), crate::error::Kind::Io);
    }
}
