//! PyTorch checkpoints: the zip archive of PyTorch 1.6 and later, and the file of five pickles
//! before it. Only the state dict is read; see [`super::pickle`] for what is refused.

use super::pickle::{Global, Id, Pickle, Value};
use super::tensor::Dtype;
use super::{Contents, Entry};
use crate::error::{Context, Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Largest pickle read, bytes: it describes tensors and holds none.
const MAX_PICKLE: usize = 64 << 20;
/// Most members in an archive.
const MAX_MEMBERS: usize = 1 << 20;
/// Keys under which training scripts put the state dict.
const WRAPPERS: &[&str] = &["state_dict", "model_state_dict", "model"];
/// `0x1950a86a20f9469cfc6c` as a protocol-2 pickle, the start of a legacy file.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Whether the bytes begin like a zip archive.
pub fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06")
}

/// Whether the bytes begin like a checkpoint written before PyTorch 1.6.
pub fn is_legacy(bytes: &[u8]) -> bool {
    bytes.starts_with(LEGACY_MAGIC)
}

/// Reads a zip checkpoint.
pub fn read_zip(bytes: &[u8]) -> Result<Contents> {
    let members = zip_members(bytes)?;
    let mut pickles = members.keys().filter(|name| name.ends_with("/data.pkl"));
    let (Some(pickle_name), None) = (pickles.next(), pickles.next()) else {
        return Err(Error::malformed("a PyTorch archive has exactly one data.pkl"));
    };
    let root = pickle_name.trim_end_matches("data.pkl");
    if members.contains_key(&format!("{root}constants.pkl")) {
        return Err(Error::unsupported("a TorchScript archive; save its state_dict() instead"));
    }
    if let Some(order) = members.get(&format!("{root}byteorder"))
        && bytes[order.clone()] != *b"little"
    {
        return Err(Error::unsupported("a checkpoint in big-endian byte order"));
    }
    let text = &bytes[members[pickle_name].clone()];
    if text.len() > MAX_PICKLE {
        return Err(Error::limit(format!(
            "data.pkl of {} bytes, at most {MAX_PICKLE}",
            text.len()
        )));
    }
    let pickle = Pickle::read(text).context(|| "data.pkl".into())?;
    let storage = |key: &str| {
        members
            .get(&format!("{root}data/{key}"))
            .cloned()
            .ok_or_else(|| Error::malformed(format!("storage data/{key:?} is not in the archive")))
    };
    StateDict { pickle: &pickle, file_len: bytes.len(), storage: &storage }.read()
}

/// Names and byte ranges of the members, which PyTorch stores uncompressed.
fn zip_members(bytes: &[u8]) -> Result<BTreeMap<String, Range<usize>>> {
    let bad = |e: zip::result::ZipError| Error::malformed(format!("zip archive: {e}")).caused_by(e);
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(bytes)).map_err(bad)?;
    if archive.len() > MAX_MEMBERS {
        return Err(Error::limit(format!(
            "{} archive members, at most {MAX_MEMBERS}",
            archive.len()
        )));
    }
    let mut members = BTreeMap::new();
    for i in 0..archive.len() {
        let member = archive.by_index_raw(i).map_err(bad)?;
        let name = member.name().map_err(bad)?.into_owned();
        let fault = |what: &str| Error::malformed(format!("archive member {name:?} {what}"));
        if member.compression() != zip::CompressionMethod::Stored || member.encrypted() {
            return Err(fault("is compressed or encrypted, which PyTorch never does"));
        }
        let start = member.data_start().and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| {
            let end = start.checked_add(usize::try_from(member.size()).ok()?)?;
            (end <= bytes.len() && member.size() == member.compressed_size()).then_some(start..end)
        });
        let range = range.ok_or_else(|| fault("runs past the end of the file"))?;
        if members.insert(name.clone(), range).is_some() {
            return Err(fault("occurs twice"));
        }
    }
    Ok(members)
}

/// Reads a legacy checkpoint: magic, protocol, system, object and storage keys as pickles, then
/// each storage as a count of elements and its bytes.
pub fn read_legacy(bytes: &[u8]) -> Result<Contents> {
    let mut at = LEGACY_MAGIC.len();
    let mut next = |what: &str| -> Result<Pickle<'_>> {
        let rest = bytes.get(at..).unwrap_or_default();
        let pickle = Pickle::read(&rest[..rest.len().min(MAX_PICKLE)])
            .context(|| format!("{what} at byte {at}"))?;
        at += pickle.len;
        Ok(pickle)
    };
    let protocol = next("protocol")?;
    if !matches!(protocol.value(protocol.root), Value::Int(1001)) {
        return Err(Error::unsupported("a legacy checkpoint of another protocol than 1001"));
    }
    let system = next("system")?;
    let little = system.dict(system.root).and_then(|items| {
        let (_, value) =
            items.iter().find(|(key, _)| system.text(*key) == Some("little_endian"))?;
        Some(matches!(system.value(*value), Value::Bool(true)))
    });
    if little != Some(true) {
        return Err(Error::unsupported("a checkpoint not known to be little-endian"));
    }
    let object = next("object")?;
    let keys = next("storage keys")?;
    let ranges = legacy_storages(bytes, at, &object, &keys)?;
    let storage = |key: &str| {
        ranges
            .get(key)
            .cloned()
            .ok_or_else(|| Error::malformed(format!("storage {key:?} is not in the file")))
    };
    StateDict { pickle: &object, file_len: bytes.len(), storage: &storage }.read()
}

/// Walks the storages that follow the pickles; the types are those the object gives them.
fn legacy_storages(
    bytes: &[u8],
    mut at: usize,
    object: &Pickle<'_>,
    keys: &Pickle<'_>,
) -> Result<BTreeMap<String, Range<usize>>> {
    let mut types = BTreeMap::new();
    for value in &object.values {
        if let Value::Persistent(id) = value {
            let storage = Storage::parse(object, *id)?;
            types.insert(storage.key, storage.dtype);
        }
    }
    let Value::List(keys_list) = keys.value(keys.root) else {
        return Err(Error::malformed("the storage keys are not a list"));
    };
    let mut ranges = BTreeMap::new();
    for key in keys_list {
        let key = keys.text(*key).ok_or_else(|| Error::malformed("a storage key is not text"))?;
        let fault = |what: &str| Error::malformed(format!("storage {key:?} {what}"));
        let dtype = types.get(key).ok_or_else(|| fault("belongs to no tensor"))?;
        let count: [u8; 8] = bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .ok_or_else(|| fault("runs past the end of the file"))?;
        let start = at + 8;
        let end = usize::try_from(i64::from_le_bytes(count))
            .ok()
            .and_then(|n| n.checked_mul(dtype.size()))
            .and_then(|n| n.checked_add(start))
            .filter(|&end| end <= bytes.len())
            .ok_or_else(|| fault("runs past the end of the file"))?;
        ranges.insert(key.to_string(), start..end);
        at = end;
    }
    Ok(ranges)
}

/// What a persistent id says: `('storage', class, key, location, elements[, view])`.
struct Storage<'a> {
    dtype: Dtype,
    key: &'a str,
    elements: usize,
}

impl<'a> Storage<'a> {
    fn parse(pickle: &Pickle<'a>, id: Id) -> Result<Storage<'a>> {
        let &[tag, class, key, _location, elements, ref view @ ..] = pickle.tuple(id) else {
            return Err(Error::malformed("a persistent id is not a storage"));
        };
        if pickle.text(tag) != Some("storage") {
            return Err(Error::malformed("a persistent id is not a storage"));
        }
        if !view.iter().all(|v| matches!(pickle.value(*v), Value::None)) {
            return Err(Error::unsupported("a view of another storage"));
        }
        let &Value::Global(Global::Storage(class)) = pickle.value(class) else {
            return Err(Error::malformed("a storage without a storage class"));
        };
        let dtype = match class {
            "DoubleStorage" => Dtype::F64,
            "FloatStorage" => Dtype::F32,
            "HalfStorage" => Dtype::F16,
            "BFloat16Storage" => Dtype::Bf16,
            "LongStorage" => Dtype::I64,
            "IntStorage" => Dtype::I32,
            "ShortStorage" => Dtype::I16,
            "CharStorage" => Dtype::I8,
            "BoolStorage" => Dtype::Bool,
            _ => Dtype::U8,
        };
        let key = pickle.text(key).ok_or_else(|| Error::malformed("a storage key is not text"))?;
        let elements =
            pickle.size(elements).ok_or_else(|| Error::malformed("a storage without a size"))?;
        Ok(Storage { dtype, key, elements })
    }
}

/// Finds the bytes of a storage by its key.
type FindStorage<'f> = dyn Fn(&str) -> Result<Range<usize>> + 'f;

/// From a checkpoint's root object to named tensors.
struct StateDict<'p, 'a> {
    pickle: &'p Pickle<'a>,
    file_len: usize,
    storage: &'p FindStorage<'p>,
}

impl<'a> StateDict<'_, 'a> {
    fn read(&self) -> Result<Contents> {
        let mut contents = Contents::default();
        let items = self.unwrap(&mut contents.ignored)?;
        let mut total = 0usize;
        for &(key, value) in items {
            let Some(name) = self.pickle.text(key) else {
                return Err(Error::malformed("a key of the state dict is not text"));
            };
            let Value::Tensor(arguments) = self.pickle.value(value) else {
                contents.ignored.push(format!("{name}: {}", self.describe(value)));
                continue;
            };
            let entry = self.entry(arguments).context(|| format!("tensor {name}"))?;
            // A view may show a storage again, as tied weights do, but not without end.
            let bytes = entry.shape.iter().product::<usize>().saturating_mul(entry.dtype.size());
            total = total.saturating_add(bytes);
            if total / 8 > self.file_len {
                return Err(Error::limit("tensors add up to over eight times the file's size"));
            }
            if contents.entries.insert(name.to_string(), entry).is_some() {
                return Err(Error::malformed(format!("tensor {name} occurs twice")));
            }
        }
        Ok(contents)
    }

    /// Descends through `{'state_dict': {...}}` and the like to the dictionary of tensors.
    fn unwrap(&self, ignored: &mut Vec<String>) -> Result<&[(Id, Id)]> {
        let mut id = self.pickle.root;
        let mut seen = BTreeSet::new();
        loop {
            let Some(items) = self.pickle.dict(id).filter(|_| seen.insert(id)) else {
                return Err(Error::unsupported(format!(
                    "the checkpoint is {}, not a dictionary of tensors",
                    self.describe(id)
                )));
            };
            let inner = WRAPPERS.iter().find_map(|wrapper| {
                items.iter().find(|(key, value)| {
                    self.pickle.text(*key) == Some(wrapper) && self.pickle.dict(*value).is_some()
                })
            });
            let Some(&(chosen, value)) = inner else { return Ok(items) };
            for &(key, value) in items.iter().filter(|(key, _)| *key != chosen) {
                let name = self.pickle.text(key).unwrap_or("(no name)");
                ignored.push(format!("{name}: {}", self.describe(value)));
            }
            id = value;
        }
    }

    fn describe(&self, id: Id) -> &'static str {
        match self.pickle.value(id) {
            Value::None => "none",
            Value::Bool(_) => "a truth value",
            Value::Int(_) | Value::Float => "a number",
            Value::Str(_) | Value::Bytes => "text",
            Value::Tuple(_) | Value::List(_) => "a list",
            Value::Dict(_) => "a dictionary",
            Value::Tensor(_) => "a tensor",
            Value::Global(_) | Value::Persistent(_) | Value::Opaque => "an object",
        }
    }

    /// `(storage, offset, size, stride, ...)`, offset and strides in elements.
    fn entry(&self, arguments: &[Id]) -> Result<Entry> {
        let &[storage, offset, size, stride, ..] = arguments else {
            return Err(Error::malformed("a tensor needs storage, offset, size and stride"));
        };
        let &Value::Persistent(storage) = self.pickle.value(storage) else {
            return Err(Error::malformed("a tensor without a storage"));
        };
        let Storage { dtype, key, elements } = Storage::parse(self.pickle, storage)?;
        let range = (self.storage)(key)?;
        let available = (range.len() / dtype.size()).min(elements);
        if available < elements {
            return Err(Error::malformed(format!(
                "storage {key:?} holds {available} elements, {elements} announced"
            )));
        }
        let offset =
            self.pickle.size(offset).ok_or_else(|| Error::malformed("a negative offset"))?;
        let shape = self.sizes(size, "size")?;
        let strides = self.sizes(stride, "stride")?;
        let needed = span(&shape, &strides)
            .and_then(|span| span.checked_add(offset))
            .filter(|&end| end <= elements)
            .ok_or_else(|| {
                Error::malformed(format!(
                    "size {} stride {} offset {offset} lie outside its storage of {elements} elements",
                    shorten(&shape), shorten(&strides)
                ))
            })?;
        let bytes = range.start + offset * dtype.size()..range.start + needed * dtype.size();
        let dense = strides == row_major(&shape);
        Ok(Entry { dtype, shape, strides: (!dense).then_some(strides), bytes })
    }

    fn sizes(&self, id: Id, what: &str) -> Result<Vec<usize>> {
        let sizes = self.pickle.tuple(id);
        if sizes.len() > 16 {
            return Err(Error::limit(format!("{what} of {} dimensions, at most 16", sizes.len())));
        }
        let size = |&id: &Id| {
            self.pickle.size(id).ok_or_else(|| Error::malformed(format!("a negative {what}")))
        };
        sizes.iter().map(size).collect()
    }
}

/// Elements of storage a strided tensor spans. `None` when sizes overflow, do not match, or the
/// tensor shows more elements than it spans (an expanded view).
fn span(shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.len() != strides.len() {
        return None;
    }
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    if elements == 0 {
        return Some(0);
    }
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(0usize, |sum, (&d, &stride)| sum.checked_add(stride.checked_mul(d - 1)?))?;
    let span = last.checked_add(1)?;
    (elements <= span).then_some(span)
}

/// The strides of a dense tensor. The shape's product is known not to overflow.
fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

fn shorten(sizes: &[usize]) -> String {
    let text = format!("{sizes:?}");
    if text.len() <= 60 { text } else { format!("of {} dimensions", sizes.len()) }
}
