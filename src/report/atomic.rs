//! Files that appear whole or not at all.
//!
//! The bytes go to a temporary name in the same folder; then fsync of the file, rename, fsync of
//! the folder. A crash at any point leaves the old file or the new one under the final name
//! (Pillai et al., OSDI 2014); at worst a `.name.XXXXXX.tmp` is left beside it.

use crate::error::{Context, Error, Result};
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;
use tempfile::NamedTempFile;

const BUFFER: usize = 1 << 18;

/// Writes `path` through `fill`; on any error nothing changes under `path`.
///
/// # Errors
/// Every error names `path`: [`crate::Kind::Io`] from the system,
/// [`crate::Kind::Usage`] when `path` exists and is not a regular file, or what `fill` returned.
pub fn write(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    write_named(path, |temporary| {
        let file = temporary.reopen().map_err(|e| Error::io("cannot open", e))?;
        let mut writer = BufWriter::with_capacity(BUFFER, file);
        fill(&mut writer)?;
        writer.flush().map_err(|e| Error::io("cannot write", e))
    })
}

/// As [`write`](fn@write), for libraries that open the file themselves: `fill` gets the temporary file, which
/// exists and is empty.
///
/// # Errors
/// As [`write`](fn@write).
pub fn write_named(path: &Path, fill: impl FnOnce(&NamedTempFile) -> Result<()>) -> Result<()> {
    replace(path, fill).context(|| path.display().to_string())
}

fn replace(path: &Path, fill: impl FnOnce(&NamedTempFile) -> Result<()>) -> Result<()> {
    let Some(name) = path.file_name() else {
        return Err(Error::usage("not the name of a file"));
    };
    // A rename over a device or a pipe would replace it instead of writing to it.
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return Err(Error::usage("exists and is not a regular file"));
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".tmp");
    #[cfg(unix)]
    {
        // The mode any other program would create the file with; the umask still applies.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let temporary = builder.tempfile_in(folder).map_err(|e| Error::io("cannot create", e))?;
    fill(&temporary)?;
    temporary.as_file().sync_all().map_err(|e| Error::io("cannot write to disk", e))?;
    temporary.persist(path).map_err(|e| Error::io("cannot rename into place", e.error))?;
    sync_folder(folder).map_err(|e| Error::io("cannot write the folder to disk", e))
}

/// Makes the rename itself survive a crash, where the system can.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        // Some network and user-space file systems have no such operation.
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        outcome => outcome,
    }
}

/// Writes `bytes` to `path`.
///
/// # Errors
/// As [`write`](fn@write).
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, |w| w.write_all(bytes).map_err(|e| Error::io("cannot write", e)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    fn names(folder: &Path) -> Vec<String> {
        std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn an_error_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        write_bytes(&path, b"old").unwrap();
        let error = write(&path, |w| {
            w.write_all(&[7; 1_000_000]).unwrap();
            Err(Error::malformed("row 3"))
        })
        .unwrap_err();
        assert!(error.to_string().ends_with("a.csv: row 3"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.csv"]);
        write_bytes(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["a.csv"]);
    }

    #[test]
    fn a_panic_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        let outcome = std::panic::catch_unwind(|| write(&path, |_| panic!("lost")));
        assert!(outcome.is_err());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn places_that_cannot_be_written_are_named() {
        let folder = tempfile::tempdir().unwrap();
        for (path, kind) in [
            (folder.path().join("absent/a.csv"), Kind::Io),
            (folder.path().to_path_buf(), Kind::Usage),
        ] {
            let error = write_bytes(&path, b"x").unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().starts_with(&path.display().to_string()), "{error}");
        }
        assert!(names(folder.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_not_replaced_and_modes_follow_the_umask() {
        use std::os::unix::fs::{FileTypeExt, PermissionsExt};
        let error = write_bytes(Path::new("/dev/full"), b"x").unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(std::fs::metadata("/dev/full").unwrap().file_type().is_char_device());
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("a"), folder.path().join("b"));
        write_bytes(&ours, b"x").unwrap();
        std::fs::write(&plain, b"x").unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }
}
