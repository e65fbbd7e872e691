//! `histokern encode`: tile images to encoder features.

use super::common::{Progress, RunArgs};
use super::{Global, Outcome};
use crate::error::{Context, Error, Result};
use crate::pipeline::bag_list::load;
use crate::pipeline::{Engine, Event, Observer, Parts};
use crate::recipe::BnMode;
use crate::report::atomic;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Encode tile images (JPEG, PNG or TIFF) into features
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Writes a safetensors file with `features` [N, D] f32, rows in the order of \
                        the images, and the file names and recipe id in its metadata.\n\n\
                        Example:\n  histokern encode tiles/*.png --package weights/demo -o f.safetensors"
)]
pub struct Args {
    /// Tile images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Package folder
    #[arg(long, value_name = "PKG")]
    package: PathBuf,
    /// File to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    run: RunArgs,
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let backend = args.run.open(global)?;
    let mut engine = Engine::open(&args.package, &*backend, Parts::Encoder, args.run.batch.into())?;
    let dim = engine.encoder().map_or(0, |e| e.feature_dim);
    let batch = engine.batch();
    if engine.recipe().encoder.bn_mode == BnMode::Batch && !args.images.len().is_multiple_of(batch)
    {
        return Err(Error::usage(format!(
            "{} images: this package normalises over bags of {batch}, give a multiple of it",
            args.images.len()
        )));
    }
    let progress = Progress::new(1, global);
    progress.event(Event::SlideStarted { name: "images", tiles: args.images.len(), bytes: 0 });
    let start = Instant::now();
    let mut features = vec![0.0; args.images.len() * dim];
    let mut pixels = Vec::new();
    for (chunk, out) in args.images.chunks(batch).zip(features.chunks_mut(batch * dim)) {
        pixels.clear();
        for path in chunk {
            pixels.extend(load(path, &engine).context(|| path.display().to_string())?);
        }
        engine.encode(chunk.len(), &pixels, out)?;
        let done = progress.position() + chunk.len();
        let tiles_per_second = done as f64 / start.elapsed().as_secs_f64().max(1e-9);
        progress.event(Event::Tiles { done, tiles_per_second, decode_share: 0.0 });
    }
    progress.finish();
    write(&args.output, &features, dim, args, &engine)?;
    global.say(&format!("{}: {} x {dim} features", args.output.display(), args.images.len()));
    Ok(Outcome::Done)
}

fn write(path: &Path, features: &[f32], dim: usize, args: &Args, engine: &Engine) -> Result<()> {
    let bad = |e: safetensors::SafeTensorError| Error::usage(e.to_string());
    let shape = vec![args.images.len(), dim];
    let view = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(features)).map_err(bad)?;
    let names: Vec<String> = args
        .images
        .iter()
        .map(|p| p.file_name().unwrap_or_default().to_string_lossy().into_owned())
        .collect();
    let metadata = HashMap::from([
        ("encoder".to_string(), engine.recipe().encoder.family.clone()),
        ("recipe_id".to_string(), engine.package().encoder_id.clone()),
        ("images".to_string(), serde_json::json!(names).to_string()),
    ]);
    let bytes = safetensors::serialize([("features", view)], Some(metadata)).map_err(bad)?;
    atomic::write_bytes(path, &bytes)
}
