//! Pictures in, results out: every segmenter of a package on one picture, the mask they make
//! together, and the part of the picture that becomes the encoder's input.

use super::decode;
use super::{Engine, Features, predict};
use crate::backend::{Backend, Input, Session};
use crate::error::{Context, Error, Result};
use crate::image::mask::{bounding_box, clean, fuse};
use crate::image::pad::pad;
use crate::image::{GrayImage, Map, Rect, Resampler, RgbImage};
use crate::models::{self, build_segmenter};
use crate::recipe::{EmptyMask, Fit, Fusion, Image, MapOutput, Recipe};
use crate::recipe::{Interpolation, Segmenter as Spec};
use crate::report::segmentation::{Bounds, Mask, Segmentation};
use crate::weights::{Package, Tensors};
use std::borrow::Cow;
use std::path::Path;

/// Pixels of a cut-out whose short side was resized.
const MAX_RESIZED_PIXELS: usize = 1 << 26;

/// The segmenters of a package, readied on a backend.
pub struct Segmenters<'b> {
    backend: &'b dyn Backend,
    fusion: Fusion,
    image: Image,
    networks: Vec<Network>,
}

/// One segmenter. Its graph has the size of its input, so that of a network without `resize` is
/// built again for a picture of another size.
struct Network {
    spec: Spec,
    multiple: usize,
    weights: Tensors,
    ready: Option<(models::Segmenter, Box<dyn Session>)>,
}

/// A mask as it came from the maps, and as it was kept.
#[derive(Clone, Debug)]
pub struct Found {
    /// `fused`, or the segmenter's name.
    pub name: String,
    /// Where the rule holds.
    pub raw: GrayImage,
    /// The largest component, with holes filled, as far as the recipe asks for it.
    pub mask: GrayImage,
}

/// What the segmenters found in one picture.
#[derive(Clone, Debug)]
pub struct Segmented {
    /// By all together.
    pub fused: Found,
    /// By each alone.
    pub each: Vec<Found>,
    /// What is cut from the picture; none when nothing was found and the recipe takes nothing then.
    pub crop: Option<Rect>,
}

impl<'b> Segmenters<'b> {
    /// Opens the weights of every segmenter and checks that they fit their networks.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the package is for slides or a segmenter puts out no
    /// probabilities, and whatever keeps the weights from being used, naming the file.
    pub fn open(package: &Package, backend: &'b dyn Backend) -> Result<Segmenters<'b>> {
        let recipe = &package.recipe;
        let open = |spec: &Spec| -> Result<Network> {
            let multiple = models::segmenter_family(&spec.family)?.multiple;
            if spec.output == MapOutput::Logits {
                let what = "output = \"logits\": masks need probabilities, sigmoid or softmax";
                return Err(Error::usage(format!("segmenter {}: {what}", spec.name)));
            }
            let weights = package.weights(&spec.weights)?;
            let side = spec.preprocess.resize.map_or(2 * multiple, |px| px as usize);
            let mut network = Network { spec: spec.clone(), multiple, weights, ready: None };
            network.check([side.next_multiple_of(multiple); 2])?;
            Ok(network)
        };
        Ok(Segmenters {
            backend,
            fusion: recipe.fusion.clone(),
            image: recipe.picture()?.clone(),
            networks: recipe.segmenters.iter().map(open).collect::<Result<_>>()?,
        })
    }

    /// Number of segmenters.
    pub fn len(&self) -> usize {
        self.networks.len()
    }

    /// Whether the package has none: its classifier then sees whole pictures.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    /// Runs every segmenter on a picture and makes the masks.
    ///
    /// # Errors
    /// Naming the segmenter: [`crate::Kind::Limit`] when the picture is too large for the machine,
    /// [`crate::Kind::Device`] when that fails, [`crate::Kind::Weights`] for a probability that is
    /// not a number.
    pub fn segment(&mut self, image: &RgbImage) -> Result<Segmented> {
        let (fusion, backend) = (&self.fusion, self.backend);
        let mut maps = Vec::with_capacity(self.networks.len());
        for network in &mut self.networks {
            let map = network.run(image, backend);
            let map = map.context(|| format!("segmenter {}", network.spec.name))?;
            maps.push(map.resized(image.width, image.height, fusion.enlarge));
        }
        let found = |name: &str, maps: &[&[f32]]| {
            let raw = fuse(maps, image.width, fusion);
            Found { name: name.into(), mask: clean(&raw, fusion), raw }
        };
        let all: Vec<&[f32]> = maps.iter().map(|map| map.data.as_slice()).collect();
        let fused = found("fused", &all);
        let names = self.networks.iter().map(|network| &network.spec.name);
        let each = names.zip(&all).map(|(name, map)| found(name, &[map])).collect();
        let crop = crop(&self.image, &fused.mask);
        Ok(Segmented { fused, each, crop })
    }
}

impl Network {
    /// Builds the graph for an input of this size; the session follows with the first picture.
    fn check(&mut self, size: [usize; 2]) -> Result<models::Segmenter> {
        let network = build_segmenter(&self.spec, size, &self.weights)
            .context(|| self.weights.path().display().to_string())?;
        let foreground = self.foreground(network.channels);
        if foreground >= network.channels {
            return Err(Error::usage(format!(
                "segmenter {}: foreground {foreground}, its map has {} channels",
                self.spec.name, network.channels
            )));
        }
        Ok(network)
    }

    fn foreground(&self, channels: usize) -> usize {
        self.spec.foreground.unwrap_or(usize::from(channels > 1))
    }

    /// The probabilities of the foreground, as large as the network's input without its border.
    fn run(&mut self, image: &RgbImage, backend: &dyn Backend) -> Result<Map> {
        let preprocess = &self.spec.preprocess;
        let seen = match preprocess.resize.map(|px| px as usize) {
            Some(side) => Cow::Owned(resized(image, [side; 2], preprocess.interpolation)?),
            None => Cow::Borrowed(image),
        };
        let padded = pad(&seen, self.multiple, self.spec.border)?;
        let size = [padded.image.height, padded.image.width];
        let (network, mut session) = match self.ready.take() {
            Some(ready) if ready.0.input_px == size => ready,
            _ => {
                let network = self.check(size)?;
                let session = backend.prepare(network.graph.clone(), 1)?;
                (network, session)
            }
        };
        let channels = network.channels;
        let mut map = vec![0.0; size[0] * size[1] * channels];
        session.run(1, &[Input::Pixels(&padded.image.data)], &mut [&mut map])?;
        self.ready = Some((network, session));
        let map = padded.crop(&map, channels)?;
        let data: Vec<f32> =
            map.into_iter().skip(self.foreground(channels)).step_by(channels).collect();
        if data.iter().any(|p| !p.is_finite()) {
            return Err(Error::weights("a probability that is not a number"));
        }
        Ok(Map { width: seen.width, height: seen.height, data })
    }
}

/// A picture at `[W, H]`, as Pillow resizes it.
fn resized(image: &RgbImage, [w, h]: [usize; 2], filter: Interpolation) -> Result<RgbImage> {
    let resampler = Resampler::new(image.width, image.height, w, h, filter)?;
    let mut out = RgbImage::filled(w, h, [0; 3]);
    resampler.run(&image.data, &mut out.data, &mut Vec::new());
    Ok(out)
}

/// The box of a mask with the recipe's margin, which a part of a pixel is rounded in.
fn crop(spec: &Image, mask: &GrayImage) -> Option<Rect> {
    let (width, height) = (mask.width, mask.height);
    let Some(bounds) = bounding_box(mask) else {
        let whole = Rect { x: 0, y: 0, width, height };
        return (spec.empty_mask == EmptyMask::WholeImage).then_some(whole);
    };
    let margin = |side: usize| {
        let part = (spec.margin_fraction * side as f64 + 0.5).floor() as usize;
        part + spec.margin_px as usize
    };
    Some(bounds.grown([margin(bounds.width), margin(bounds.height)], width, height))
}

impl Segmented {
    /// As results hold it. `truth` must have the size of the picture.
    pub fn describe(&self, fusion: &Fusion, truth: Option<&GrayImage>) -> Segmentation {
        let measure = |found: &Found| Mask::measure(&found.name, &found.raw, &found.mask, truth);
        Segmentation {
            rule: fusion.rule.name().into(),
            threshold: fusion.threshold,
            fused: measure(&self.fused),
            segmenters: self.each.iter().map(measure).collect(),
            crop: self.crop.map(Bounds::from),
        }
    }
}

/// A mask from a picture: inside is whatever is not black.
///
/// # Errors
/// Naming the file: it cannot be read, or is not of the size given.
pub fn read_mask(path: &Path, width: usize, height: usize) -> Result<GrayImage> {
    let image = crate::picture::open(path)?.image;
    if (image.width, image.height) != (width, height) {
        let (w, h) = (image.width, image.height);
        let what = format!("a mask of {w} x {h} px for a picture of {width} x {height}");
        return Err(Error::usage(what).context(path.display().to_string()));
    }
    let inside = |pixel: &[u8; 3]| if *pixel == [0; 3] { 0 } else { 255 };
    let data = image.data.as_chunks::<3>().0.iter().map(inside).collect();
    Ok(GrayImage { width, height, data })
}

/// Width and height of a cut-out once resized for the encoder.
fn resized_size(width: usize, height: usize, recipe: &Recipe) -> Result<[usize; 2]> {
    let side = recipe.preprocess.resize.unwrap_or(recipe.input_px()) as usize;
    Ok(match recipe.picture()?.fit {
        Fit::Squash => [side; 2],
        // torchvision cuts the fraction of the long side off.
        Fit::ShortSide => {
            let long = |long: usize, short: usize| {
                (side as f64 * long as f64 / short.max(1) as f64) as usize
            };
            match width <= height {
                true => [side, long(height, width)],
                false => [long(width, height), side],
            }
        }
    })
}

/// A cut-out as the encoder takes it, `[H, W, 3]`.
///
/// # Errors
/// [`crate::Kind::Usage`] for sides that cannot be resized.
pub fn encoder_input(cut: &RgbImage, recipe: &Recipe) -> Result<Vec<u8>> {
    if recipe.picture()?.fit == Fit::Squash {
        return decode::encoder_input(cut, recipe);
    }
    let size = resized_size(cut.width, cut.height, recipe)?;
    if size[0].saturating_mul(size[1]) > MAX_RESIZED_PIXELS {
        let (w, h) = (cut.width, cut.height);
        return Err(Error::limit(format!("{w} x {h} px: too long for fit = \"short-side\"")));
    }
    let resized = resized(cut, size, recipe.preprocess.interpolation)?;
    Ok(resized.center_crop(recipe.input_px() as usize)?.data)
}

/// The part of a picture that the encoder sees of a cut-out at `crop`, as `[x, y, width, height]`
/// in pixels: all of it, unless a centre crop follows the resize.
///
/// # Errors
/// As [`encoder_input`].
pub fn seen_part(crop: Rect, recipe: &Recipe) -> Result<[f64; 4]> {
    let side = recipe.input_px() as usize;
    let [w, h] = resized_size(crop.width, crop.height, recipe)?;
    let axis = |start: usize, length: usize, resized: usize| {
        let scale = length as f64 / resized.max(1) as f64;
        let corner = ((resized.saturating_sub(side)) as f64 / 2.0).round_ties_even();
        (start as f64 + corner * scale, side.min(resized) as f64 * scale)
    };
    let (x, width) = axis(crop.x, crop.width, w);
    let (y, height) = axis(crop.y, crop.height, h);
    Ok([x, y, width, height])
}

/// What every head says of a cut-out, which is a bag of one.
///
/// # Errors
/// As [`encoder_input`] and [`predict::predict`].
pub fn predict(
    engine: &mut Engine,
    cut: &RgbImage,
    clinical: &[Vec<f32>],
) -> Result<Vec<predict::HeadResult>> {
    let pixels = encoder_input(cut, engine.recipe())?;
    let mut features = vec![0.0; engine.feature_dim()];
    engine.encode(1, &pixels, &mut features)?;
    let mut features = Features::host(features.len(), features);
    predict::predict(engine, &mut features, &[vec![0]], clinical, &())
}
