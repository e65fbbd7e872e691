//! Weights for a family when there are none: the shapes of the published network, numbers from a
//! seed. A network of random weights computes nothing of use, but it computes as long and as exactly
//! as a trained one.

use super::{Encoder, Family, Layout};
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::weights::Tensors;
use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;

/// Channels of the first stage in the published networks (Simonyan & Zisserman 2015, table 1; He et
/// al. 2016, table 1).
pub const PUBLISHED_WIDTH: usize = 64;

/// Weights of a family under torchvision's names. `width` is that of the first stage:
/// [`PUBLISHED_WIDTH`], or less for a small network of the same make.
///
/// # Errors
/// [`crate::Kind::Unsupported`] for a family whose shapes are not written down here.
pub fn weights(family: &Family, width: usize, seed: u64) -> Result<Tensors> {
    let mut made = Made { seed, tensors: Vec::new() };
    if let Layout::Vgg { convs, bn } = family.layout {
        made.vgg(&convs, bn, width);
    } else if let Layout::ResNet { blocks, bottleneck } = family.layout {
        made.resnet(&blocks, bottleneck, width);
    } else {
        let what = format!("{}: no random weights are made for this family", family.name);
        return Err(Error::unsupported(what));
    }
    made.file(family.name)
}

/// A whole encoder of square pixels with random weights.
///
/// # Errors
/// As [`weights`]; [`crate::Kind::Weights`] when pictures of `side` pixels are too small for it.
pub fn encoder(family: &Family, width: usize, side: usize, seed: u64) -> Result<Encoder> {
    let name = family.name;
    let recipe = Recipe::parse(&format!(
        "schema = 1\nname = \"random\"\ntitle = \"random weights\"\nlicence = \"none\"\n\
         source = \"none\"\n[tiles]\nsize_px = {side}\n[preprocess]\nmean = [0.485, 0.456, 0.406]\n\
         std = [0.229, 0.224, 0.225]\n[encoder]\nfamily = \"{name}\"\n"
    ))?;
    super::build(&recipe, &weights(family, width, seed)?)
}

enum Data {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

struct Made {
    seed: u64,
    tensors: Vec<(String, Vec<usize>, Data)>,
}

impl Made {
    fn vgg(&mut self, convs: &[usize; 5], bn: bool, width: usize) {
        let (mut c, mut index) = (3, 0);
        for (&count, k) in convs.iter().zip([1, 2, 4, 8, 8].map(|times| times * width)) {
            for _ in 0..count {
                self.conv(&format!("features.{index}"), [k, c, 3]);
                self.vector(&format!("features.{index}.bias"), k, 0.0, 0.1);
                if bn {
                    self.norm(&format!("features.{}", index + 1), k, 1.0);
                }
                index += if bn { 3 } else { 2 };
                c = k;
            }
            index += 1;
        }
    }

    fn resnet(&mut self, blocks: &[usize; 4], bottleneck: bool, width: usize) {
        self.conv("conv1", [width, 3, 7]);
        self.norm("bn1", width, 1.0);
        let mut c = width;
        for (stage, &count) in blocks.iter().enumerate() {
            let middle = width << stage;
            let out = if bottleneck { 4 * middle } else { middle };
            for block in 0..count {
                let name = format!("layer{}.{block}", stage + 1);
                if block == 0 && (stage > 0 || c != out) {
                    self.conv(&format!("{name}.downsample.0"), [out, c, 1]);
                    self.norm(&format!("{name}.downsample.1"), out, 1.0);
                }
                let shapes: &[[usize; 3]] = if bottleneck {
                    &[[middle, c, 1], [middle, middle, 3], [out, middle, 1]]
                } else {
                    &[[middle, c, 3], [out, middle, 3]]
                };
                for (i, &shape) in shapes.iter().enumerate() {
                    // A small last scale keeps the sum over many blocks within FP16.
                    let scale = if i + 1 == shapes.len() { 0.25 } else { 1.0 };
                    self.conv(&format!("{name}.conv{}", i + 1), shape);
                    self.norm(&format!("{name}.bn{}", i + 1), shape[0], scale);
                }
                c = out;
            }
        }
    }

    /// `[K, C, R, R]`, uniform with the variance that keeps activations of ReLU networks in range
    /// (He et al. 2015, arXiv:1502.01852).
    fn conv(&mut self, name: &str, [k, c, r]: [usize; 3]) {
        let name = format!("{name}.weight");
        let bound = (6.0 / (c * r * r) as f32).sqrt();
        let data = self.uniform(&name, k * c * r * r).map(|u| f16::from_f32(u * bound)).collect();
        self.tensors.push((name, vec![k, c, r, r], Data::F16(data)));
    }

    fn norm(&mut self, name: &str, n: usize, scale: f32) {
        self.vector(&format!("{name}.weight"), n, scale, 0.25 * scale);
        self.vector(&format!("{name}.bias"), n, 0.0, 0.1);
        self.vector(&format!("{name}.running_mean"), n, 0.0, 0.1);
        self.vector(&format!("{name}.running_var"), n, 1.0, 0.25);
    }

    fn vector(&mut self, name: &str, n: usize, middle: f32, spread: f32) {
        let data = self.uniform(name, n).map(|u| middle + spread * u).collect();
        self.tensors.push((name.into(), vec![n], Data::F32(data)));
    }

    /// Numbers in [-1, 1) that depend on seed, name and place alone: SplitMix64.
    fn uniform(&self, name: &str, n: usize) -> impl Iterator<Item = f32> + use<> {
        let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3);
        let start = name.bytes().fold(0xCBF2_9CE4_8422_2325 ^ self.seed, step);
        (1..=n as u64).map(move |i| {
            let z = start.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
    }

    fn file(self, family: &str) -> Result<Tensors> {
        let bad = |e: safetensors::SafeTensorError| Error::weights(e.to_string());
        let views = self.tensors.iter().map(|(name, shape, data)| {
            let (dtype, bytes): (_, &[u8]) = match data {
                Data::F16(v) => (Dtype::F16, bytemuck::cast_slice(v)),
                Data::F32(v) => (Dtype::F32, bytemuck::cast_slice(v)),
            };
            Ok((name.clone(), TensorView::new(dtype, shape.clone(), bytes).map_err(bad)?))
        });
        let views: Vec<(String, TensorView<'_>)> = views.collect::<Result<_>>()?;
        let bytes = safetensors::serialize(views, None).map_err(bad)?;
        Tensors::from_bytes(Path::new(&format!("{family} (random weights)")), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{FAMILIES, family};
    use std::collections::BTreeMap;

    /// Names and shapes as PyTorch's own networks have them, exported by `weights/export.py`.
    #[test]
    fn shapes_are_those_of_torchvision() {
        for (name, text) in [
            ("resnet18", include_str!("../../tests/golden/models/resnet18.tsv")),
            ("resnet50", include_str!("../../tests/golden/models/resnet50.tsv")),
            ("vgg16_bn", include_str!("../../tests/golden/models/vgg16_bn.tsv")),
        ] {
            let published: BTreeMap<&str, String> = text
                .lines()
                .filter_map(|line| line.split_once('\t'))
                .map(|(name, shape)| (name, shape.to_string()))
                .collect();
            let made = weights(family(name).unwrap(), PUBLISHED_WIDTH, 1).unwrap();
            for tensor in made.names().filter(|n| !n.contains("running_")) {
                let shape: Vec<String> =
                    made.get(tensor).unwrap().shape.iter().map(usize::to_string).collect();
                assert_eq!(published.get(tensor), Some(&shape.join(",")), "{name}: {tensor}");
            }
            let parts = published.keys().filter(|n| !n.contains("num_batches")).count();
            let mine = made.names().filter(|n| !n.contains("running_")).count();
            assert_eq!(parts, mine, "{name}");
        }
    }

    #[test]
    fn every_family_here_builds_at_any_width() {
        for family in FAMILIES {
            match encoder(family, 8, 32, 1) {
                Ok(encoder) => assert!(encoder.feature_dim >= 64, "{}", family.name),
                Err(error) => assert_eq!(error.kind(), crate::Kind::Unsupported, "{error}"),
            }
        }
    }
}
