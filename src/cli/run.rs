//! `histokern run`: one network of a package on given numbers, for comparisons and experiments.

use super::common::RunArgs;
use super::{Global, Outcome, print_json};
use crate::backend::Backend;
use crate::backend::Input;
use crate::error::{Context, Error, Result};
use crate::graph::Graph;
use crate::image::RgbImage;
use crate::image::pad::pad;
use crate::pipeline::head::HeadSession;
use crate::recipe::{BnMode, Segmenter};
use crate::report::atomic;
use crate::weights::Package;
use crate::{heads, models};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Run one network of a package on tensors from a file
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Reads and writes safetensors files:
  encoder         pixels [N, H, W, 3] u8                    -> features [N, D] f32
  segmenter:NAME  pixels [N, H, W, 3] u8                    -> map [N, H, W, K] f32
  head:NAME       features [N, D] f32, clinical [C] f32     -> logits [K] f32, scores [N, A] f32
Pixels are the network's own input: nothing is resized. Clinical values are already standardised.
--device reference runs every op from its definition in plain loops: slow, but what the other
devices are judged by.

Examples:
  histokern run weights/demo --input tiles.safetensors -o features.safetensors
  histokern run us --part segmenter:unet --input pictures.safetensors -o maps.safetensors
  histokern run demo --input tiles.safetensors -o r.safetensors --device reference")]
pub struct Args {
    /// Package folder
    #[arg(value_name = "PKG")]
    package: PathBuf,
    /// encoder, segmenter:NAME or head:NAME
    #[arg(long, value_name = "PART", default_value = "encoder")]
    part: Part,
    /// Safetensors file with the inputs
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Safetensors file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunArgs,
}

/// A network of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Encoder,
    Segmenter(String),
    Head(String),
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Part, String> {
        match text.split_once(':') {
            None if text == "encoder" => Ok(Part::Encoder),
            Some(("segmenter", name)) => Ok(Part::Segmenter(name.into())),
            Some(("head", name)) => Ok(Part::Head(name.into())),
            _ => Err("expected encoder, segmenter:NAME or head:NAME".into()),
        }
    }
}

/// A tensor to be written.
struct Output {
    name: &'static str,
    shape: Vec<usize>,
    data: Vec<f32>,
}

/// Runs the verb.
///
/// # Errors
/// [`crate::Kind::Usage`] when an input is missing or of another shape than the network's, and
/// whatever keeps the package or the device from being used.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let bytes =
        std::fs::read(&args.input).map_err(|e| Error::io(args.input.display().to_string(), e))?;
    let backend = args.run.open(global)?;
    let package = Package::open(&args.package)?;
    let job = Job { package: &package, backend: &*backend, batch: args.run.batch.into() };
    let outputs = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::malformed(format!("not a valid safetensors file: {e}")))
        .and_then(|file| match &args.part {
            Part::Encoder => job.encoder(&file),
            Part::Segmenter(name) => job.segmenter(name, &file),
            Part::Head(name) => job.head(name, &file),
        })
        .context(|| args.input.display().to_string())?;
    write(&args.output, &outputs)?;
    if args.json {
        let list: Vec<_> = outputs
            .iter()
            .map(|o| serde_json::json!({ "name": o.name, "shape": o.shape }))
            .collect();
        print_json(&serde_json::json!({ "device": backend.name(), "outputs": list }));
    } else {
        for output in &outputs {
            let path = args.output.display();
            global.say(&format!("{path}: {} {:?}", output.name, output.shape));
        }
    }
    Ok(Outcome::Done)
}

struct Job<'a> {
    package: &'a Package,
    backend: &'a dyn Backend,
    batch: usize,
}

impl Job<'_> {
    fn encoder(&self, file: &SafeTensors<'_>) -> Result<Vec<Output>> {
        let recipe = &self.package.recipe;
        let encoder = models::build(recipe, &self.package.encoder()?)?;
        let ([n, h, w], pixels) = pixels(file)?;
        if [h, w] != encoder.input_px {
            let [eh, ew] = encoder.input_px;
            return Err(Error::usage(format!(
                "pixels of {h} x {w}, the encoder takes {eh} x {ew}"
            )));
        }
        // Batch norm over the run makes all of the file one run.
        let batch = if recipe.encoder.bn_mode == BnMode::Batch { n } else { self.batch };
        let data = self.rows(encoder.graph, n, batch, pixels)?;
        Ok(vec![Output { name: "features", shape: vec![n, encoder.feature_dim], data }])
    }

    fn segmenter(&self, name: &str, file: &SafeTensors<'_>) -> Result<Vec<Output>> {
        let spec = self.package.recipe.segmenters.iter().find(|s| s.name == name);
        let spec: &Segmenter = spec.ok_or_else(|| {
            Error::usage(format!("{}: no segmenter {name:?}", self.package.dir.display()))
        })?;
        let multiple = models::segmenter_family(&spec.family)?.multiple;
        let ([n, height, width], pixels) = pixels(file)?;
        let mut padded = Vec::with_capacity(n);
        for data in pixels.chunks_exact(height * width * 3) {
            let image = RgbImage { width, height, data: data.to_vec() };
            padded.push(pad(&image, multiple, spec.border)?);
        }
        let [first, ..] = &padded[..] else { return Err(Error::usage("pixels of no picture")) };
        let size = [first.image.height, first.image.width];
        let weights = self.package.weights(&spec.weights)?;
        let segmenter = models::build_segmenter(spec, size, &weights)
            .context(|| weights.path().display().to_string())?;
        let all: Vec<u8> = padded.iter().flat_map(|p| &p.image.data).copied().collect();
        let maps = self.rows(segmenter.graph, n, self.batch, &all)?;
        let mut data = Vec::with_capacity(n * height * width * segmenter.channels);
        for (padded, map) in padded.iter().zip(maps.chunks_exact(maps.len() / n)) {
            data.extend(padded.crop(map, segmenter.channels)?);
        }
        let shape = vec![n, height, width, segmenter.channels];
        Ok(vec![Output { name: "map", shape, data }])
    }

    fn head(&self, name: &str, file: &SafeTensors<'_>) -> Result<Vec<Output>> {
        let spec = self.package.recipe.heads.iter().find(|h| h.name == name);
        let spec = spec.ok_or_else(|| {
            Error::usage(format!("{}: no head {name:?}", self.package.dir.display()))
        })?;
        let head = heads::build(spec, None, &self.package.head(spec)?)?;
        let (shape, features) = values(file, "features")?;
        let &[n, d] = &shape[..] else {
            return Err(Error::usage(format!("features have shape {shape:?}, needed [N, D]")));
        };
        if d != head.feature_dim || n == 0 {
            let what = format!("features {n} x {d}, the head takes rows of {}", head.feature_dim);
            return Err(Error::usage(what));
        }
        let clinical = if head.clinical > 0 { values(file, "clinical")?.1 } else { Vec::new() };
        let (outputs, branches) = (head.outputs, head.branches);
        let said = HeadSession::new(head, self.backend)?.run(n, &features[..].into(), &clinical)?;
        Ok(vec![
            Output { name: "logits", shape: vec![outputs], data: said.prediction.logits },
            Output { name: "scores", shape: vec![n, branches], data: said.scores },
        ])
    }

    /// Runs a network of one pixel input and one output on `n` rows, some at a time.
    fn rows(&self, graph: Arc<Graph>, n: usize, batch: usize, pixels: &[u8]) -> Result<Vec<f32>> {
        let batch = batch.clamp(1, n);
        let width = graph.outputs.first().map_or(0, |&output| graph.shape(output).len());
        let mut session = self.backend.prepare(graph, batch)?;
        let mut data = vec![0.0; n * width];
        let row = pixels.len() / n;
        for (pixels, out) in pixels.chunks(batch * row).zip(data.chunks_mut(batch * width)) {
            session.run(pixels.len() / row, &[Input::Pixels(pixels)], &mut [out])?;
        }
        Ok(data)
    }
}

/// `[N, H, W, 3]` u8, none of them 0, as N, H and W.
fn pixels<'f>(file: &'f SafeTensors<'_>) -> Result<([usize; 3], &'f [u8])> {
    let tensor = tensor(file, "pixels", Dtype::U8)?;
    match *tensor.shape() {
        [n, h, w, 3] if n * h * w > 0 => Ok(([n, h, w], tensor.data())),
        ref other => Err(Error::usage(format!("pixels have shape {other:?}, needed [N, H, W, 3]"))),
    }
}

fn values(file: &SafeTensors<'_>, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
    let tensor = tensor(file, name, Dtype::F32)?;
    let (numbers, _) = tensor.data().as_chunks::<4>();
    Ok((tensor.shape().to_vec(), numbers.iter().map(|&b| f32::from_le_bytes(b)).collect()))
}

fn tensor<'f>(file: &'f SafeTensors<'_>, name: &str, dtype: Dtype) -> Result<TensorView<'f>> {
    let tensor = file.tensor(name).map_err(|_| {
        Error::usage(format!("no tensor {name}; there are {}", file.names().join(", ")))
    })?;
    if tensor.dtype() != dtype {
        return Err(Error::usage(format!("{name} is {:?}, needed {dtype:?}", tensor.dtype())));
    }
    Ok(tensor)
}

fn write(path: &Path, outputs: &[Output]) -> Result<()> {
    let bad = |e: safetensors::SafeTensorError| Error::usage(e.to_string());
    let mut views = Vec::new();
    for output in outputs {
        let data = bytemuck::cast_slice(&output.data);
        let view = TensorView::new(Dtype::F32, output.shape.clone(), data).map_err(bad)?;
        views.push((output.name, view));
    }
    atomic::write_bytes(path, &safetensors::serialize(views, None).map_err(bad)?)
}
