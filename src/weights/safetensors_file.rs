//! The safetensors format: a JSON header of names, types, shapes and byte ranges, then the bytes.
//!
//! The `safetensors` crate checks the header's length, the ranges (from 0, no hole, no overlap, up
//! to the end of the file) and the sizes. What it leaves open is refused here: a header that does
//! not begin with `{`, and a name that occurs twice, which readers resolve differently.

use super::tensor::Dtype;
use super::{Contents, Entry};
use crate::error::{Error, Result};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeSet;

/// Reads a whole file.
pub fn read(bytes: &[u8]) -> Result<Contents> {
    let (header_len, metadata) = safetensors::SafeTensors::read_metadata(bytes).map_err(|e| {
        Error::malformed(format!("neither a PyTorch nor a valid safetensors file: {e}"))
    })?;
    let data_start = 8 + header_len;
    let header = &bytes[8..data_start];
    if header.first() != Some(&b'{') {
        return Err(Error::malformed("safetensors header does not begin with '{'"));
    }
    refuse_repeated_names(header)?;

    let mut contents = Contents::default();
    for (name, info) in metadata.tensors() {
        let Some(dtype) = dtype(info.dtype) else {
            return Err(Error::unsupported(format!("tensor {name}: dtype {:?}", info.dtype)));
        };
        let (start, end) = info.data_offsets;
        let bytes = data_start + start..data_start + end;
        let entry = Entry { dtype, shape: info.shape.clone(), strides: None, bytes };
        contents.entries.insert(name, entry);
    }
    Ok(contents)
}

fn dtype(dtype: safetensors::Dtype) -> Option<Dtype> {
    use safetensors::Dtype as File;
    Some(match dtype {
        File::F16 => Dtype::F16,
        File::BF16 => Dtype::Bf16,
        File::F32 => Dtype::F32,
        File::F64 => Dtype::F64,
        File::BOOL => Dtype::Bool,
        File::U8 => Dtype::U8,
        File::I8 => Dtype::I8,
        File::I16 => Dtype::I16,
        File::I32 => Dtype::I32,
        File::I64 => Dtype::I64,
        _ => return None,
    })
}

fn refuse_repeated_names(header: &[u8]) -> Result<()> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = ();
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object of tensors")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut seen = BTreeSet::new();
            while let Some((name, IgnoredAny)) = map.next_entry::<String, _>()? {
                if let Some(name) = seen.replace(name) {
                    return Err(serde::de::Error::custom(format!("{name:?} occurs twice")));
                }
            }
            Ok(())
        }
    }
    serde_json::Deserializer::from_slice(header)
        .deserialize_map(Names)
        .map_err(|e| Error::malformed(format!("safetensors header: {e}")))
}
