//! The TIFF container: header, directories and typed tag values; classic and BigTIFF, both byte
//! orders (TIFF 6.0; BigTIFF as registered with libtiff).
//!
//! Only directories are read at open. A tag's value is fetched when asked for, through one
//! function that checks type, count, size and place, within the limits of this module.

use super::source::Source;
use super::tags::{self, field};
use crate::error::{Context, Error, Result};
use std::collections::HashSet;

/// Directories in one file, sub-directories included.
pub const MAX_DIRECTORIES: usize = 4096;
/// Entries of all directories together.
pub const MAX_ENTRIES: usize = 1 << 17;
/// Bytes of one tag value; tile tables and ICC profiles have limits of their own.
pub const MAX_VALUE_BYTES: u64 = 1 << 20;
/// Bytes of an ICC profile; real ones reach 13 MB.
pub const MAX_ICC_BYTES: u64 = 1 << 26;
/// Tiles of one directory.
pub const MAX_TILES: u64 = 1 << 24;

/// The byte order of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `II`.
    Little,
    /// `MM`.
    Big,
}

impl Order {
    fn int(self, bytes: &[u8]) -> u64 {
        let fold = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        match self {
            Order::Little => bytes.iter().rev().fold(0, fold),
            Order::Big => bytes.iter().fold(0, fold),
        }
    }
}

/// One entry of a directory: a tag whose value has not been read yet.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Tag number.
    pub tag: u16,
    /// Field type.
    pub kind: u16,
    /// Number of values.
    pub count: u64,
    value: [u8; 8],
}

/// One image file directory.
#[derive(Clone, Debug)]
pub struct Directory {
    /// `directory 2` or `directory 0, sub-directory 1`, for messages.
    pub name: String,
    entries: Vec<Entry>,
    /// The directories its SubIFDs tag points at; only read for the first of the chain.
    pub subs: Vec<Directory>,
}

impl Directory {
    /// Whether the tag is present.
    pub fn has(&self, tag: u16) -> bool {
        self.entries.iter().any(|entry| entry.tag == tag)
    }
}

/// The directories of a file.
#[derive(Clone, Debug)]
pub struct Tiff {
    order: Order,
    big: bool,
    /// The main chain, in file order.
    pub directories: Vec<Directory>,
}

impl Tiff {
    /// Whether the first bytes of a file are those of a TIFF in either byte order.
    pub fn detect(head: &[u8]) -> bool {
        matches!(head.get(..4), Some(b"II\x2a\0" | b"MM\0\x2a" | b"II\x2b\0" | b"MM\0\x2b"))
    }

    /// Reads the directory chain and the sub-directories of the first directory.
    pub fn read(source: &Source) -> Result<Tiff> {
        let head = source.read(0, 8).context(|| "TIFF header".into())?;
        let order = match &head[..2] {
            b"II" => Order::Little,
            b"MM" => Order::Big,
            _ => return Err(Error::malformed("not a TIFF: no byte-order mark")),
        };
        let (big, first) = match order.int(&head[2..4]) {
            42 => (false, order.int(&head[4..8])),
            43 => {
                let (size, zero) = (order.int(&head[4..6]), order.int(&head[6..8]));
                if size != 8 || zero != 0 {
                    return Err(Error::malformed(format!(
                        "BigTIFF header: offset size {size} and constant {zero}, expected 8 and 0"
                    )));
                }
                let first = source.read(8, 8).context(|| "BigTIFF header".into())?;
                (true, order.int(&first))
            }
            version => return Err(Error::malformed(format!("TIFF version {version}"))),
        };
        let mut walk = Walk { source, order, big, seen: HashSet::new(), entries: 0 };
        let mut tiff = Tiff { order, big, directories: Vec::new() };
        let mut offset = first;
        while offset != 0 {
            let name = format!("directory {}", tiff.directories.len());
            let (directory, next) = walk.directory(name, offset)?;
            tiff.directories.push(directory);
            offset = next;
        }
        if tiff.directories.is_empty() {
            return Err(Error::malformed("the TIFF has no directory"));
        }
        if tiff.directories[0].has(tags::SUB_IFDS) {
            let parent = tiff.view(source, &tiff.directories[0]);
            let offsets = parent.integers(tags::SUB_IFDS, MAX_VALUE_BYTES)?;
            let mut subs = Vec::new();
            for (k, &offset) in offsets.iter().enumerate() {
                let name = format!("directory 0, sub-directory {k}");
                subs.push(walk.directory(name, offset)?.0);
            }
            tiff.directories[0].subs = subs;
        }
        Ok(tiff)
    }

    /// A directory together with what is needed to read its values.
    pub fn view<'a>(&self, source: &'a Source, directory: &'a Directory) -> View<'a> {
        View { source, order: self.order, inline: if self.big { 8 } else { 4 }, directory }
    }
}

/// The state of one walk over all directories: what was visited, and the budget left.
struct Walk<'a> {
    source: &'a Source,
    order: Order,
    big: bool,
    seen: HashSet<u64>,
    entries: usize,
}

impl Walk<'_> {
    /// Reads the directory at `offset`; returns it and the offset of the next one.
    fn directory(&mut self, name: String, offset: u64) -> Result<(Directory, u64)> {
        if self.seen.len() >= MAX_DIRECTORIES {
            return Err(Error::limit(format!("more than {MAX_DIRECTORIES} directories")));
        }
        if !self.seen.insert(offset) {
            return Err(Error::malformed(format!(
                "the directories form a loop at offset {offset}"
            ))
            .context(name));
        }
        let read = self.entries_at(offset).context(|| name.clone());
        let (entries, next) = read?;
        Ok((Directory { name, entries, subs: Vec::new() }, next))
    }

    fn entries_at(&mut self, offset: u64) -> Result<(Vec<Entry>, u64)> {
        let (count_size, entry_size, pointer) = if self.big { (8, 20, 8) } else { (2, 12, 4) };
        let count = self.order.int(&self.source.read(offset, count_size)?);
        if count == 0 {
            return Err(Error::malformed("no entries"));
        }
        if count > (MAX_ENTRIES - self.entries) as u64 {
            return Err(Error::limit(format!(
                "{count} entries; all directories together may have {MAX_ENTRIES}"
            )));
        }
        self.entries += count as usize;
        let start = offset.saturating_add(count_size);
        let bytes = self.source.read(start, count * entry_size + pointer);
        let bytes = bytes.context(|| format!("{count} entries"))?;
        let (bytes, next) = bytes.split_at((count * entry_size) as usize);
        let entries = bytes.chunks_exact(entry_size as usize).map(|entry| {
            let (head, tail) = entry.split_at(entry.len() - pointer as usize);
            let mut value = [0; 8];
            value[..tail.len()].copy_from_slice(tail);
            Entry {
                tag: self.order.int(&head[..2]) as u16,
                kind: self.order.int(&head[2..4]) as u16,
                count: self.order.int(&head[4..]),
                value,
            }
        });
        Ok((entries.collect(), self.order.int(next)))
    }
}

/// A directory and the file it lies in: typed access to tag values.
///
/// Every error names the directory and the tag.
#[derive(Clone, Copy)]
pub struct View<'a> {
    source: &'a Source,
    order: Order,
    inline: u64,
    /// The directory.
    pub directory: &'a Directory,
}

impl View<'_> {
    /// Puts the directory's name and the tag in front of an error.
    pub fn at(&self, tag: u16, error: Error) -> Error {
        error.context(format!("tag {tag} {}", tags::name(tag))).context(self.directory.name.clone())
    }

    /// The file.
    pub fn source(&self) -> &Source {
        self.source
    }

    fn entry(&self, tag: u16) -> Result<Option<&Entry>> {
        let mut entries = self.directory.entries.iter().filter(|entry| entry.tag == tag);
        let first = entries.next();
        if entries.next().is_some() {
            return Err(self.at(tag, Error::malformed("given more than once")));
        }
        Ok(first)
    }

    /// The number of bytes of a value and where it starts, or `None` when it is inside the entry.
    fn place(&self, entry: &Entry) -> Result<(u64, Option<u64>)> {
        let size = field::size(entry.kind)
            .ok_or_else(|| Error::malformed(format!("unknown field type {}", entry.kind)))?;
        let bytes = entry
            .count
            .checked_mul(size)
            .ok_or_else(|| Error::malformed(format!("count {}", entry.count)))?;
        let offset = self.order.int(&entry.value[..self.inline as usize]);
        Ok((bytes, (bytes > self.inline).then_some(offset)))
    }

    fn bytes_of(&self, entry: &Entry, limit: u64) -> Result<Vec<u8>> {
        let (bytes, offset) = self.place(entry)?;
        if bytes > limit {
            return Err(Error::limit(format!("{bytes} bytes, at most {limit} are read")));
        }
        match offset {
            Some(offset) => self.source.read(offset, bytes),
            None => Ok(entry.value[..bytes as usize].to_vec()),
        }
    }

    fn integers_of(&self, entry: &Entry, limit: u64) -> Result<Vec<u64>> {
        let size = match entry.kind {
            field::BYTE => 1,
            field::SHORT => 2,
            field::LONG | field::IFD => 4,
            field::LONG8 | field::IFD8 => 8,
            kind => {
                let message = format!("field type {kind} where an unsigned integer is expected");
                return Err(Error::malformed(message));
            }
        };
        let bytes = self.bytes_of(entry, limit)?;
        Ok(bytes.chunks_exact(size).map(|value| self.order.int(value)).collect())
    }

    /// All values of an integer tag of at most `limit` bytes; empty when it is absent.
    pub fn integers(&self, tag: u16, limit: u64) -> Result<Vec<u64>> {
        let Some(entry) = self.entry(tag)? else { return Ok(Vec::new()) };
        self.integers_of(entry, limit).map_err(|e| self.at(tag, e))
    }

    /// The single value of an integer tag.
    pub fn integer(&self, tag: u16) -> Result<Option<u32>> {
        let Some(entry) = self.entry(tag)? else { return Ok(None) };
        let read = || {
            if entry.count != 1 {
                return Err(Error::malformed(format!("{} values, expected 1", entry.count)));
            }
            let value = self.integers_of(entry, MAX_VALUE_BYTES)?[0];
            u32::try_from(value).map(Some).map_err(|_| Error::limit(format!("value {value}")))
        };
        read().map_err(|e| self.at(tag, e))
    }

    /// The single value of an integer tag that must be present and positive.
    pub fn positive(&self, tag: u16) -> Result<u32> {
        match self.integer(tag)? {
            Some(0) => Err(self.at(tag, Error::malformed("zero"))),
            Some(value) => Ok(value),
            None => Err(self.at(tag, Error::malformed("missing"))),
        }
    }

    /// A table of exactly `count` integers, one a tile or strip.
    pub fn table(&self, tag: u16, count: u64) -> Result<Vec<u64>> {
        let Some(entry) = self.entry(tag)? else {
            return Err(self.at(tag, Error::malformed("missing")));
        };
        if entry.count != count {
            let message = format!("{} values, expected {count}", entry.count);
            return Err(self.at(tag, Error::malformed(message)));
        }
        self.integers_of(entry, MAX_TILES * 8).map_err(|e| self.at(tag, e))
    }

    /// Uninterpreted bytes (types BYTE and UNDEFINED).
    pub fn bytes(&self, tag: u16, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(entry) = self.entry(tag)? else { return Ok(None) };
        let read = match entry.kind {
            field::BYTE | field::UNDEFINED => self.bytes_of(entry, limit).map(Some),
            kind => Err(Error::malformed(format!("field type {kind} where bytes are expected"))),
        };
        read.map_err(|e| self.at(tag, e))
    }

    /// The declared size of a byte tag and whether it lies inside the file.
    pub fn byte_count(&self, tag: u16) -> Result<Option<u64>> {
        let Some(entry) = self.entry(tag)? else { return Ok(None) };
        let (bytes, offset) = self.place(entry).map_err(|e| self.at(tag, e))?;
        let end = offset.unwrap_or(0).checked_add(bytes);
        if end.is_none_or(|end| end > self.source.size()) {
            let error = Error::malformed(format!("{bytes} bytes do not lie inside the file"));
            return Err(self.at(tag, error));
        }
        Ok(Some(bytes))
    }

    /// Text up to the first NUL; bytes that are not UTF-8 become replacement characters.
    pub fn text(&self, tag: u16) -> Result<Option<String>> {
        let Some(entry) = self.entry(tag)? else { return Ok(None) };
        let read = match entry.kind {
            field::ASCII | field::BYTE => self.bytes_of(entry, MAX_VALUE_BYTES),
            kind => Err(Error::malformed(format!("field type {kind} where text is expected"))),
        };
        let bytes = read.map_err(|e| self.at(tag, e))?;
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(Some(String::from_utf8_lossy(text).into_owned()))
    }

    /// The single value of a RATIONAL, FLOAT or DOUBLE tag; may be infinite or not a number.
    pub fn real(&self, tag: u16) -> Result<Option<f64>> {
        let Some(entry) = self.entry(tag)? else { return Ok(None) };
        let read = || {
            if entry.count != 1 {
                return Err(Error::malformed(format!("{} values, expected 1", entry.count)));
            }
            let bytes = self.bytes_of(entry, MAX_VALUE_BYTES)?;
            match entry.kind {
                field::RATIONAL => {
                    let (above, below) = bytes.split_at(4);
                    Ok(self.order.int(above) as f64 / self.order.int(below) as f64)
                }
                field::FLOAT => Ok(f64::from(f32::from_bits(self.order.int(&bytes) as u32))),
                field::DOUBLE => Ok(f64::from_bits(self.order.int(&bytes))),
                kind => {
                    let message = format!("field type {kind} where a real number is expected");
                    Err(Error::malformed(message))
                }
            }
        };
        read().map(Some).map_err(|e| self.at(tag, e))
    }
}
