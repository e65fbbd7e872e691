//! Compiled kernels on disk.
//!
//! An entry is a file `<key>-<compiler>.cubin`, where the key holds everything that decides the
//! bytes but the compiler. It is written to a temporary name, flushed and renamed, so that a reader
//! sees a whole entry or none, whoever is killed when; a checksum in front guards against what the
//! disk does later. An entry that is not whole is as good as absent.

use super::nvrtc::Output;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Bytes in front of an entry; changes when the layout of entries does.
const MAGIC: &[u8; 8] = b"HKCUBIN2";

/// Ending of an entry.
const ENTRY: &str = ".cubin";

/// Ending of an entry that is being written, or was when its writer died.
const UNFINISHED: &str = ".tmp";

/// A folder of compiled kernels.
pub struct Cache {
    folder: PathBuf,
    problem: OnceLock<String>,
}

impl Cache {
    /// The cache in a folder, which is made when the first entry is written.
    pub fn new(folder: PathBuf) -> Cache {
        Cache { folder, problem: OnceLock::new() }
    }

    /// In `HISTOKERN_CACHE`, else `$XDG_CACHE_HOME/histokern/kernels`, else
    /// `~/.cache/histokern/kernels`, else none.
    pub fn default_folder() -> Option<PathBuf> {
        let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        variable("HISTOKERN_CACHE").or_else(|| {
            let base =
                variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
            Some(base.join("histokern/kernels"))
        })
    }

    /// Where entries lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Why the first entry that could not be written was not.
    pub fn problem(&self) -> Option<&str> {
        self.problem.get().map(String::as_str)
    }

    /// Tries to write and says why it cannot be done.
    pub fn is_writable(&self) -> Result<(), String> {
        let tried = std::fs::create_dir_all(&self.folder).and_then(|()| self.temporary());
        tried.map(drop).map_err(|e| self.describe(&e))
    }

    /// The entry of a key as a compiler made it, or `None` when it is absent, cut short or damaged.
    pub fn read(&self, key: &str, compiler: &str) -> Option<Output> {
        decode(&std::fs::read(self.path(key, compiler)).ok()?)
    }

    /// The entry of a key by the newest compiler that left a whole one, and that compiler.
    pub fn newest(&self, key: &str) -> Option<(Output, String)> {
        let mut compilers: Vec<(Vec<u32>, String)> = self
            .entries()
            .iter()
            .filter_map(|(path, _)| compiler_in(path, key))
            .filter_map(|compiler| Some((numbers(&compiler)?, compiler)))
            .collect();
        compilers.sort();
        compilers.into_iter().rev().find_map(|(_, c)| Some((self.read(key, &c)?, c)))
    }

    /// Keeps an entry for later runs. One that cannot be written costs time on the next start and
    /// nothing else, so failure is only remembered: see [`Cache::problem`].
    pub fn write(&self, key: &str, compiler: &str, output: &Output) {
        if let Err(error) = self.try_write(&self.path(key, compiler), &encode(output)) {
            self.problem.get_or_init(|| self.describe(&error));
        }
    }

    /// Every entry and its bytes, by name.
    pub fn entries(&self) -> Vec<(PathBuf, u64)> {
        self.ending_in(ENTRY)
    }

    /// Deletes every entry, and what writers that were killed left behind.
    ///
    /// # Errors
    /// What the system says about the first file that stays.
    pub fn clear(&self) -> std::io::Result<()> {
        let files = self.entries().into_iter().chain(self.ending_in(UNFINISHED));
        for (path, _) in files {
            match std::fs::remove_file(&path) {
                // Another process cleared it or finished it under its own name.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    fn ending_in(&self, ending: &str) -> Vec<(PathBuf, u64)> {
        let Ok(listing) = std::fs::read_dir(&self.folder) else { return Vec::new() };
        let mut files: Vec<(PathBuf, u64)> = listing
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().as_encoded_bytes().ends_with(ending.as_bytes()))
            .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.len())))
            .collect();
        files.sort();
        files
    }

    fn path(&self, key: &str, compiler: &str) -> PathBuf {
        self.folder.join(format!("{key}-{compiler}{ENTRY}"))
    }

    fn temporary(&self) -> std::io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new().prefix(".").suffix(UNFINISHED).tempfile_in(&self.folder)
    }

    fn try_write(&self, file: &Path, bytes: &[u8]) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let mut temporary = self.temporary()?;
        temporary.write_all(bytes)?;
        temporary.as_file().sync_all()?;
        temporary.persist(file)?;
        Ok(())
    }

    fn describe(&self, error: &std::io::Error) -> String {
        format!("{}: cannot be written: {error}", self.folder.display())
    }
}

/// The compiler in the name of an entry of `key`.
fn compiler_in(path: &Path, key: &str) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    Some(name.strip_prefix(key)?.strip_prefix('-')?.strip_suffix(ENTRY)?.to_string())
}

/// `12.9.86` as numbers, for comparing.
fn numbers(version: &str) -> Option<Vec<u32>> {
    version.split('.').map(|part| part.parse().ok()).collect()
}

/// `MAGIC, sha256(body), body`; the body is three blocks, each behind its length as u64.
pub(super) fn encode(output: &Output) -> Vec<u8> {
    let mut body = Vec::new();
    for block in [&output.cubin[..], &output.ptx, output.log.as_bytes()] {
        body.extend((block.len() as u64).to_le_bytes());
        body.extend(block);
    }
    [&MAGIC[..], &Sha256::digest(&body), &body].concat()
}

/// The reverse of [`encode`], or `None` when anything is not as it was written.
pub(super) fn decode(bytes: &[u8]) -> Option<Output> {
    let (checksum, mut body) = bytes.strip_prefix(MAGIC)?.split_at_checked(32)?;
    if Sha256::digest(body)[..] != *checksum {
        return None;
    }
    let mut block = || {
        let (length, rest) = body.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let (block, rest) = rest.split_at_checked(length)?;
        body = rest;
        Some(block.to_vec())
    };
    let (cubin, ptx, log) = (block()?, block()?, block()?);
    Some(Output { cubin, ptx, log: String::from_utf8(log).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(cubin: &[u8]) -> Output {
        Output { cubin: cubin.to_vec(), ptx: b"// ptx".to_vec(), log: "said".into() }
    }

    #[test]
    fn a_damaged_entry_is_no_entry() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().join("deep"));
        assert!(cache.read("sm_80-x-0", "12.9.86").is_none());
        cache.write("sm_80-x-0", "12.9.86", &sample(&[1, 2, 3]));
        let back = cache.read("sm_80-x-0", "12.9.86").unwrap();
        assert_eq!((back.cubin, back.log), (vec![1, 2, 3], "said".into()));

        let (file, _) = cache.entries().remove(0);
        let whole = std::fs::read(&file).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&file, &whole[..cut]).unwrap();
            assert!(cache.read("sm_80-x-0", "12.9.86").is_none(), "cut at {cut}");
        }
        for flipped in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[flipped] ^= 1;
            std::fs::write(&file, &bytes).unwrap();
            assert!(cache.read("sm_80-x-0", "12.9.86").is_none(), "flipped at {flipped}");
        }
    }

    #[test]
    fn the_newest_whole_entry_serves_where_no_compiler_is() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().into());
        assert!(cache.newest("k").is_none());
        for (key, compiler, byte) in
            [("k", "12.9.86", 1), ("k", "12.10.3", 2), ("k", "9.9", 3), ("k2", "14.0.0", 4)]
        {
            cache.write(key, compiler, &sample(&[byte]));
        }
        assert_eq!(cache.newest("k").unwrap().1, "12.10.3");
        std::fs::write(cache.path("k", "12.10.3"), "cut").unwrap();
        let (output, compiler) = cache.newest("k").unwrap();
        assert_eq!((output.cubin, compiler.as_str()), (vec![1], "12.9.86"));
    }

    #[test]
    fn clearing_takes_entries_and_leftovers_only() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().into());
        cache.write("k", "12.9.86", &sample(&[1]));
        std::fs::write(folder.path().join(".abc.tmp"), "half").unwrap();
        std::fs::write(folder.path().join("notes"), "mine").unwrap();
        cache.clear().unwrap();
        let left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["notes"]);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_remembered_and_harmless() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let cache = Cache::new(file.join("below"));
        assert_eq!(cache.problem(), None);
        cache.write("k", "12.9.86", &sample(&[1]));
        assert!(cache.problem().unwrap().contains("cannot be written"));
        assert!(cache.is_writable().is_err() && cache.read("k", "12.9.86").is_none());
    }
}
