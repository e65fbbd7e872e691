//! Weights for a network when there are none: the shapes of the published network, numbers from a
//! seed. A network of random weights computes nothing of use, but it computes as long and as exactly
//! as a trained one, because its weights keep the variance of what passes through: activations stay
//! in range however deep it is.

mod convolutional;
mod inception;
mod segmenters;
mod transformers;

pub use transformers::{TRANSFORMERS, Transformer};

use super::segmenters::{SEGMENTERS, SegmenterFamily, build_segmenter, segmenter_family};
use super::{Encoder, FAMILIES, Family, Layout, family};
use crate::error::{Error, Kind, Result};
use crate::graph::Graph;
use crate::recipe::{MapOutput, Preprocess, Recipe, Segmenter};
use crate::weights::Tensors;
use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use std::sync::Arc;

/// Channels of the first stage in most published networks (Simonyan & Zisserman 2015, table 1; He et
/// al. 2016, table 1). Another width scales every layer by its share of this one.
pub const PUBLISHED_WIDTH: usize = 64;

/// The width of small networks.
const SMALL_WIDTH: usize = 8;
/// Pixels of a side of small networks.
const SMALL_SIDE: usize = 64;
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Something that random weights can be made for.
#[derive(Clone, Copy, Debug)]
enum Network {
    Convolutional(&'static Family),
    Transformer(&'static Transformer),
    Segmenter(&'static SegmenterFamily),
}

/// The names of all networks there are: encoder families, transformers by their size, segmenters.
pub fn names() -> impl Iterator<Item = &'static str> {
    let encoders = FAMILIES.iter().filter(|f| !matches!(f.layout, Layout::Vit)).map(|f| f.name);
    let transformers = TRANSFORMERS.iter().map(|t| t.name);
    encoders.chain(transformers).chain(SEGMENTERS.iter().map(|s| s.name))
}

fn network(name: &str) -> Result<Network> {
    let convolutional = family(name).ok().filter(|f| !matches!(f.layout, Layout::Vit));
    let transformer = || TRANSFORMERS.iter().find(|t| t.name == name).map(Network::Transformer);
    let segmenter = || segmenter_family(name).ok().map(Network::Segmenter);
    let found = convolutional.map(Network::Convolutional).or_else(transformer).or_else(segmenter);
    found.ok_or_else(|| {
        let names: Vec<&str> = names().collect();
        Error::usage(format!("no network {name:?}; there are {}", names.join(", ")))
    })
}

/// A network over square pictures of `side` pixels, as wide as published.
///
/// # Errors
/// [`crate::Kind::Usage`] for a name that is not among [`names`], or a side that does not suit it.
pub fn graph(name: &str, side: usize, seed: u64) -> Result<Arc<Graph>> {
    build(network(name)?, PUBLISHED_WIDTH, side, seed)
}

/// The same network with few channels, on the smallest pictures that pass through all of it.
///
/// # Errors
/// As [`graph`].
pub fn small(name: &str, seed: u64) -> Result<Arc<Graph>> {
    let network = network(name)?;
    let side = match network {
        // Smaller ones are used up before the last pool.
        Network::Convolutional(family) if matches!(family.layout, Layout::Inception { .. }) => 75,
        Network::Transformer(transformer) => SMALL_SIDE.next_multiple_of(transformer.patch),
        _ => SMALL_SIDE,
    };
    build(network, SMALL_WIDTH, side, seed)
}

fn build(network: Network, width: usize, side: usize, seed: u64) -> Result<Arc<Graph>> {
    let fits = |built: Result<Arc<Graph>>| {
        built.map_err(|error| match error.kind() {
            // The weights are ours: it is the side that does not fit.
            Kind::Weights => Error::usage(format!("pictures of {side} px: {error}")),
            _ => error,
        })
    };
    fits(match network {
        Network::Convolutional(family) => {
            encoder(family, width, side, seed).map(|encoder| encoder.graph)
        }
        Network::Transformer(transformer) => {
            let transformer = transformer.narrowed(width);
            let weights = Made::of_transformer(&transformer, seed).file(transformer.name)?;
            let recipe = recipe("vit", side, &transformer.recipe())?;
            super::build(&recipe, &weights).map(|encoder| renamed(encoder.graph, transformer.name))
        }
        Network::Segmenter(family) => {
            let weights = Made::of_segmenter(family, width, seed)?.file(family.name)?;
            let built = build_segmenter(&spec(family.name), [side; 2], &weights);
            built.map(|segmenter| segmenter.graph)
        }
    })
}

/// The graph under a name that says more than its family.
fn renamed(graph: Arc<Graph>, name: &str) -> Arc<Graph> {
    let mut graph = Arc::unwrap_or_clone(graph);
    graph.name = name.into();
    Arc::new(graph)
}

/// Weights of a convolutional family under torchvision's names. `width` is that of the first stage:
/// [`PUBLISHED_WIDTH`], or less for a small network of the same make.
///
/// # Errors
/// [`crate::Kind::Unsupported`] for vision transformers, which have sizes instead: see [`TRANSFORMERS`].
pub fn weights(family: &Family, width: usize, seed: u64) -> Result<Tensors> {
    Made::of_family(family, width, seed)?.file(family.name)
}

/// A convolutional encoder of square pixels with random weights.
///
/// # Errors
/// As [`weights`]; [`crate::Kind::Weights`] when pictures of `side` pixels are too small for it.
pub fn encoder(family: &Family, width: usize, side: usize, seed: u64) -> Result<Encoder> {
    let weights = weights(family, width, seed)?;
    super::build(&recipe(family.name, side, "")?, &weights)
}

/// The recipe of an encoder on its own; `more` follows its family.
fn recipe(family: &str, side: usize, more: &str) -> Result<Recipe> {
    Recipe::parse(&format!(
        "schema = 1\nname = \"random\"\ntitle = \"random weights\"\nlicence = \"none\"\n\
         source = \"none\"\n[tiles]\nsize_px = {side}\n[preprocess]\nmean = {MEAN:?}\n\
         std = {STD:?}\n[encoder]\nfamily = \"{family}\"\n{more}"
    ))
}

/// What a recipe says of a segmenter of one class.
fn spec(family: &str) -> Segmenter {
    let (resize, interpolation, crop) = (None, Default::default(), None);
    Segmenter {
        name: "random".into(),
        family: family.into(),
        weights: "none".into(),
        output: MapOutput::Logits,
        foreground: None,
        heads: Vec::new(),
        border: [0; 3],
        preprocess: Preprocess { resize, interpolation, crop, mean: MEAN, std: STD },
    }
}

/// What the numbers of a tensor are: uniform around `middle`, FP16 or f32.
struct Numbers {
    half: bool,
    middle: f32,
    spread: f32,
}

/// Tensors to be made.
struct Made {
    width: usize,
    seed: u64,
    tensors: Vec<(String, Vec<usize>, Numbers)>,
}

impl Made {
    fn new(width: usize, seed: u64) -> Made {
        Made { width, seed, tensors: Vec::new() }
    }

    fn of_family(family: &Family, width: usize, seed: u64) -> Result<Made> {
        let mut made = Made::new(width, seed);
        match family.layout {
            Layout::Vgg { convs, bn } => made.vgg(&convs, bn),
            Layout::ResNet { blocks, bottleneck } => {
                made.resnet("", &blocks, bottleneck);
            }
            Layout::AlexNet => made.alexnet(),
            Layout::DenseNet { layers, growth } => {
                made.densenet("", &layers, growth);
            }
            Layout::Inception { .. } => made.inception_v3(),
            Layout::GoogLeNet => made.googlenet(),
            Layout::Vit => {
                let names: Vec<&str> = TRANSFORMERS.iter().map(|t| t.name).collect();
                let what =
                    format!("{}: random weights need a size: {}", family.name, names.join(", "));
                return Err(Error::unsupported(what));
            }
        }
        Ok(made)
    }

    /// Channels that the published network has `published` of.
    fn scaled(&self, published: usize) -> usize {
        (published * self.width / PUBLISHED_WIDTH).max(1)
    }

    /// `[K, C, R, S]`, uniform with the variance that keeps activations of ReLU networks in range
    /// (He et al. 2015, arXiv:1502.01852).
    fn conv(&mut self, name: &str, [k, c]: [usize; 2], [r, s]: [usize; 2]) {
        self.uniform_f16(name, vec![k, c, r, s], 2.0 / (c * r * s) as f32);
    }

    /// `[K, C]`, with the variance that keeps that of normalised inputs (Glorot & Bengio 2010), and
    /// its bias.
    fn linear(&mut self, name: &str, [k, c]: [usize; 2]) {
        self.uniform_f16(name, vec![k, c], 1.0 / c as f32);
        self.bias(name, k);
    }

    fn uniform_f16(&mut self, name: &str, shape: Vec<usize>, variance: f32) {
        let numbers = Numbers { half: true, middle: 0.0, spread: (3.0 * variance).sqrt() };
        self.tensors.push((format!("{name}.weight"), shape, numbers));
    }

    fn bias(&mut self, name: &str, n: usize) {
        self.vector(&format!("{name}.bias"), n, 0.0, 0.1);
    }

    fn norm(&mut self, name: &str, n: usize, scale: f32) {
        self.vector(&format!("{name}.weight"), n, scale, 0.25 * scale);
        self.bias(name, n);
        self.vector(&format!("{name}.running_mean"), n, 0.0, 0.1);
        self.vector(&format!("{name}.running_var"), n, 1.0, 0.25);
    }

    fn vector(&mut self, name: &str, n: usize, middle: f32, spread: f32) {
        self.table(name, vec![n], middle, spread);
    }

    fn table(&mut self, name: &str, shape: Vec<usize>, middle: f32, spread: f32) {
        self.tensors.push((name.into(), shape, Numbers { half: false, middle, spread }));
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

    fn bytes(&self, (name, shape, numbers): &(String, Vec<usize>, Numbers)) -> Vec<u8> {
        let &Numbers { half, middle, spread } = numbers;
        let values = self.uniform(name, shape.iter().product()).map(|u| middle + spread * u);
        match half {
            true => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
            false => values.flat_map(f32::to_le_bytes).collect(),
        }
    }

    fn file(self, family: &str) -> Result<Tensors> {
        let bad = |e: safetensors::SafeTensorError| Error::weights(e.to_string());
        let data: Vec<Vec<u8>> = self.tensors.iter().map(|tensor| self.bytes(tensor)).collect();
        let views = self.tensors.iter().zip(&data).map(|((name, shape, numbers), bytes)| {
            let dtype = if numbers.half { Dtype::F16 } else { Dtype::F32 };
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
    use crate::graph::Input;
    use crate::graph::reference::{self, Rounding};
    use std::collections::{BTreeMap, BTreeSet};
    use std::io::Read;

    fn made(name: &str) -> BTreeMap<String, Vec<usize>> {
        let made = match network(name).unwrap() {
            Network::Convolutional(family) => Made::of_family(family, PUBLISHED_WIDTH, 1).unwrap(),
            Network::Transformer(transformer) => Made::of_transformer(transformer, 1),
            Network::Segmenter(family) => Made::of_segmenter(family, PUBLISHED_WIDTH, 1).unwrap(),
        };
        made.tensors.into_iter().map(|(name, shape, _)| (name, shape)).collect()
    }

    /// Names and shapes as the published networks have them: `tests/golden/models/shapes.py`.
    #[test]
    fn shapes_are_those_of_the_published_networks() {
        let packed: &[u8] = include_bytes!("../../tests/golden/models/shapes.tsv.gz");
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
        let mut networks: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
        for line in text.lines() {
            let [network, tensor, shape] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            networks.entry(network).or_default().insert(tensor, shape.into());
        }
        assert!(networks.len() >= 20, "{}", networks.len());
        for (name, published) in networks {
            let made = made(name);
            let mine: BTreeSet<&str> = made.keys().map(String::as_str).collect();
            let theirs: BTreeSet<&str> = published.keys().copied().collect();
            let apart: Vec<_> = mine.symmetric_difference(&theirs).collect();
            assert!(apart.is_empty(), "{name}: only in one of both: {apart:?}");
            for (tensor, want) in published {
                let shape: Vec<String> = made[tensor].iter().map(usize::to_string).collect();
                assert_eq!(shape.join(","), want, "{name}: {tensor}");
            }
        }
    }

    /// Two different pictures through every network: nothing dies out, nothing explodes, and what
    /// comes out depends on the picture.
    #[test]
    fn activations_stay_in_range() {
        for name in names() {
            let graph = small(name, 1).unwrap();
            let mut whole = (*graph).clone();
            // Every stored map is looked at.
            let steps: Vec<_> = whole.steps.iter().map(|s| s.output).collect();
            steps.into_iter().for_each(|id| whole.output(id));
            let bytes = whole.shape(whole.inputs[0]).len();
            let noise = Made::new(1, 7);
            let pixels: Vec<u8> =
                noise.uniform("pixels", 2 * bytes).map(|u| (127.5 + 127.5 * u) as u8).collect();
            let inputs = [Input::Pixels(&pixels)];
            let outputs = reference::run(&whole, 2, &inputs, Rounding::F16).unwrap();
            for (id, values) in whole.outputs.iter().zip(&outputs) {
                let square = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
                let rms = (square / values.len() as f64).sqrt();
                let most = values.iter().fold(0f32, |m, v| m.max(v.abs()));
                let what = format!("{name}, tensor {}: rms {rms:.2e}, largest {most:.2e}", id.0);
                assert!((0.02..50.0).contains(&rms) && most < 3e3, "{what}");
            }
            let (a, b) = outputs[0].split_at(outputs[0].len() / 2);
            let alive = outputs[0].iter().filter(|v| **v != 0.0).count();
            assert!(alive * 4 > outputs[0].len(), "{name}: {alive} of {}", outputs[0].len());
            let apart: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let norm: f64 = a.iter().map(|a| f64::from(*a).powi(2)).sum();
            assert!(apart > 1e-4 * norm, "{name}: the same for any picture, {apart:e} of {norm:e}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let wrong = |name: &str, side: usize| graph(name, side, 1).unwrap_err();
        for (error, words) in [
            (wrong("resnet51", 224), "resnet18"),
            (wrong("vit", 224), "vit_b16"),
            (wrong("vit_s16", 100), "whole patches of 16"),
            (wrong("inception_v3", 32), "32 px"),
            (wrong("smp-unet-resnet18", 100), "multiples of 32"),
        ] {
            assert_eq!(error.kind(), Kind::Usage, "{error}");
            assert!(error.to_string().contains(words), "{error} lacks {words}");
        }
        let error = weights(family("vit").unwrap(), 64, 1).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
    }
}
