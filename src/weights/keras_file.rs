//! Keras's HDF5 files of layers by name: `model.save("x.h5")`, `model.save_weights("x.h5")` up to
//! Keras 2, and the published `*_kernels*.h5`.
//!
//! A tensor is called by its layer and PyTorch's name of the part (`kernel` is `weight`, `gamma`
//! `weight`, `beta` `bias`, `moving_mean` `running_mean`), and has PyTorch's order of axes: a kernel
//! of `[R, S, C, K]`, or `[R, S, K, C]` of a transposed convolution, is seen as `[K, C, R, S]` and
//! `[C, K, R, S]`. Layers that Keras named itself are numbered through a whole session
//! (`conv2d_94` may be the first), so `conv2d_*` and `batch_normalization_*` get their rank, from 0.

use super::tensor::Dtype;
use super::{Contents, Entry};
use crate::error::{Context, Error, Result};
use hdf5_pure::{DType, File, Group};
use std::collections::BTreeMap;

/// Deepest group and most datasets looked at.
const MAX_DEPTH: usize = 12;
const MAX_TENSORS: usize = 1 << 16;
/// Names under which Keras numbers layers that have none.
const NUMBERED: [&str; 2] = ["conv2d", "batch_normalization"];

/// Whether the bytes begin like an HDF5 file.
pub fn is_hdf5(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x89HDF\r\n\x1a\n")
}

/// Reads a whole file; the numbers lie in the bytes returned beside the tensors.
pub fn read(bytes: &[u8]) -> Result<(Contents, Vec<u8>)> {
    let file = File::from_bytes(bytes.to_vec()).map_err(bad)?;
    let root = file.root();
    let groups = root.groups().map_err(bad)?;
    if groups.iter().any(|name| name == "layers" || name == "_layer_checkpoint_dependencies") {
        return Err(Error::unsupported(
            "Keras 3's own weights file, which numbers layers in another order; \
             write model.save(\"x.h5\") instead",
        ));
    }
    // A saved model has its weights beside the state of its optimiser.
    let saved = groups.iter().any(|name| name == "model_weights");
    let top = if saved { root.group("model_weights").map_err(bad)? } else { root };
    let mut walk =
        Walk { limit: bytes.len(), data: Vec::new(), found: BTreeMap::new(), datasets: 0 };
    for layer in top.groups().map_err(bad)? {
        let group = top.group(&layer).map_err(bad)?;
        walk.group(&group, &layer, 0).context(|| format!("layer {layer}"))?;
    }
    if walk.found.is_empty() {
        return Err(Error::malformed("no weights of Keras layers in this HDF5 file"));
    }
    let ranks = ranks(walk.found.keys().map(|(layer, _)| layer.as_str()));
    let mut contents = Contents::default();
    for ((layer, part), entry) in walk.found {
        let layer = ranks.get(&layer).unwrap_or(&layer);
        contents.entries.insert(format!("{layer}.{part}"), entry);
    }
    Ok((contents, walk.data))
}

fn bad(e: hdf5_pure::Error) -> Error {
    Error::malformed(format!("HDF5: {e}"))
}

/// Tensors found so far, by layer and part.
struct Walk {
    /// Bytes of the file, which its datasets cannot exceed: Keras does not compress them.
    limit: usize,
    data: Vec<u8>,
    found: BTreeMap<(String, String), Entry>,
    datasets: usize,
}

impl Walk {
    fn group(&mut self, group: &Group, layer: &str, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::limit(format!("groups nested deeper than {MAX_DEPTH}")));
        }
        for name in group.datasets().map_err(bad)? {
            self.dataset(group, layer, &name).context(|| name.clone())?;
        }
        for name in group.groups().map_err(bad)? {
            let inner = group.group(&name).map_err(bad)?;
            self.group(&inner, layer, depth + 1)?;
        }
        Ok(())
    }

    fn dataset(&mut self, group: &Group, layer: &str, name: &str) -> Result<()> {
        self.datasets += 1;
        if self.datasets > MAX_TENSORS {
            return Err(Error::limit(format!("more than {MAX_TENSORS} datasets")));
        }
        let dataset = group.dataset(name).map_err(bad)?;
        let dtype = dataset.dtype().map_err(bad)?;
        if dtype != DType::F32 {
            return Err(Error::unsupported(format!("elements {dtype:?}, needed 32-bit floats")));
        }
        if dataset.is_chunked() {
            return Err(Error::unsupported("a chunked dataset, which Keras does not write"));
        }
        let shape: Option<Vec<usize>> =
            dataset.shape().map_err(bad)?.iter().map(|&d| usize::try_from(d).ok()).collect();
        let size = |shape: &Vec<usize>| {
            let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
            elements.checked_mul(4)?.checked_add(self.data.len())
        };
        let fits = |shape: &Vec<usize>| size(shape).is_some_and(|end| end <= self.limit);
        let Some(shape) = shape.filter(fits) else {
            return Err(Error::malformed("more numbers than the file has room for"));
        };
        let numbers = dataset.read_f32().map_err(bad)?;
        if numbers.len() != shape.iter().product::<usize>() {
            return Err(Error::malformed(format!("{} numbers for shape {shape:?}", numbers.len())));
        }
        let start = self.data.len();
        self.data.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        let (shape, strides) = transposed(&shape);
        let bytes = start..self.data.len();
        let entry = Entry { dtype: Dtype::F32, shape, strides, bytes };
        let part = part(name);
        match self.found.insert((layer.into(), part.into()), entry) {
            None => Ok(()),
            Some(_) => Err(Error::malformed(format!("{layer} has two tensors called {part}"))),
        }
    }
}

/// PyTorch's name of a part of a layer.
fn part(name: &str) -> &str {
    match name.split(':').next().unwrap_or_default() {
        "kernel" | "gamma" => "weight",
        "beta" => "bias",
        "moving_mean" => "running_mean",
        "moving_variance" => "running_var",
        other => other,
    }
}

/// Shape and strides of a kernel with its axes in PyTorch's order.
fn transposed(shape: &[usize]) -> (Vec<usize>, Option<Vec<usize>>) {
    match *shape {
        [r, s, c, k] => (vec![k, c, r, s], Some(vec![1, k, s * c * k, c * k])),
        [c, k] => (vec![k, c], Some(vec![1, k])),
        _ => (shape.to_vec(), None),
    }
}

/// The names of numbered layers and their names by rank.
fn ranks<'a>(layers: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    let mut numbers: BTreeMap<(&str, usize), &str> = BTreeMap::new();
    for layer in layers {
        for kind in NUMBERED {
            let Some(rest) = layer.strip_prefix(kind) else { continue };
            let number = if rest.is_empty() {
                Some(0)
            } else {
                rest.strip_prefix('_').and_then(|n| n.parse().ok())
            };
            if let Some(number) = number {
                numbers.insert((kind, number), layer);
            }
        }
    }
    let mut names = BTreeMap::new();
    let mut next: BTreeMap<&str, usize> = BTreeMap::new();
    for ((kind, _), layer) in numbers {
        let rank = next.entry(kind).or_default();
        names.insert(layer.to_string(), format!("{kind}_{rank}"));
        *rank += 1;
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_layers_get_their_rank() {
        let names = ranks(["conv2d_10", "conv2d_9", "batch_normalization", "conv2d_x"].into_iter());
        let of = |name: &str| names.get(name).map(String::as_str);
        assert_eq!(of("conv2d_9"), Some("conv2d_0"));
        assert_eq!(of("conv2d_10"), Some("conv2d_1"));
        assert_eq!(of("batch_normalization"), Some("batch_normalization_0"));
        assert_eq!(of("conv2d_x"), None);
    }
}
