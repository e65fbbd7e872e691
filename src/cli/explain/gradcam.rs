//! `histokern explain gradcam`: where in a picture the classifier looked.

use super::said;
use crate::cli::common::{DeviceArgs, make_folder};
use crate::cli::{Global, Outcome, print_json};
use crate::error::{Context, Error, Result};
use crate::heads::Prediction;
use crate::image::{Rect, RgbImage};
use crate::picture;
use crate::pipeline::gradcam::{self, Activation};
use crate::pipeline::images::{self, Segmenters};
use crate::pipeline::{Engine, Parts, image_outputs};
use crate::recipe::{Head, Interpolation};
use crate::report::colormap::Colormap;
use crate::report::{csv, heatmap, png};
use serde_json::json;
use std::path::PathBuf;

/// Where in a picture the classifier looked (Grad-CAM)
///
/// For networks that end in global average pooling and one linear layer the gradient of Grad-CAM is
/// exact in closed form: the class's weights over the number of positions of the last map.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The picture: PNG, JPEG, TIFF or single-frame DICOM
    image: PathBuf,
    /// Package folder
    #[arg(long, value_name = "PKG")]
    package: PathBuf,
    /// Folder to write
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    /// Head whose class is explained [default: the first]
    #[arg(long, value_name = "NAME")]
    head: Option<String>,
    /// Class to explain [default: the last]
    #[arg(long, value_name = "NAME")]
    class: Option<String>,
    /// Colours of the map
    #[arg(long, value_enum, default_value_t = Colormap::Jet)]
    colormap: Colormap,
    /// Weight of the colours against the picture, 0 to 1
    #[arg(long, default_value_t = 0.4)]
    alpha: f64,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: DeviceArgs,
}

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    if !(0.0..=1.0).contains(&args.alpha) {
        return Err(Error::usage(format!("--alpha {}: 0 to 1", args.alpha)));
    }
    let backend = args.machine.open(global)?;
    let mut engine = Engine::open(&args.package, &*backend, Parts::All, 1)?;
    let [head, class] = chosen(args, &engine.recipe().heads)?;
    let mut segmenters = Segmenters::open(engine.package(), &*backend)?;
    let image = picture::open(&args.image)?.image;
    let crop = found(&mut segmenters, &image).context(|| args.image.display().to_string())?;
    let cut = image.cut(crop)?;
    let pixels = images::encoder_input(&cut, engine.recipe())?;
    let activation = gradcam::activation(engine.package(), &*backend, [head, class], &pixels)?;
    let clinical: Vec<Vec<f32>> = engine.heads().map(|h| vec![0.0; h.clinical]).collect();
    let said_of = images::predict(&mut engine, &cut, &clinical)?;
    let prediction = said_of.get(head).and_then(|head| head.bags.first());
    let seen = images::seen_part(crop, engine.recipe())?;

    make_folder(&args.out)?;
    draw(args, &image, crop, seen, &activation, global)?;
    table(args, seen, &activation, global)?;
    tell(args, &engine.recipe().heads[head], class, &activation, prediction);
    Ok(Outcome::Done)
}

/// Numbers of the head and the class.
fn chosen(args: &Args, heads: &[Head]) -> Result<[usize; 2]> {
    let at = match &args.head {
        None => 0,
        Some(name) => heads.iter().position(|h| h.name == *name).ok_or_else(|| {
            let there: Vec<&str> = heads.iter().map(|h| h.name.as_str()).collect();
            Error::usage(format!("no head {name:?}; there are {}", there.join(", ")))
        })?,
    };
    let classes = heads.get(at).map(|h| h.classes.as_slice()).unwrap_or_default();
    let class = match &args.class {
        None => classes.len().saturating_sub(1),
        Some(name) => classes.iter().position(|c| c == name).ok_or_else(|| {
            Error::usage(format!("no class {name:?}; there are {}", classes.join(", ")))
        })?,
    };
    Ok([at, class])
}

/// The part of the picture the classifier is given.
fn found(segmenters: &mut Segmenters<'_>, image: &RgbImage) -> Result<Rect> {
    if segmenters.is_empty() {
        return Ok(Rect { x: 0, y: 0, width: image.width, height: image.height });
    }
    let crop = segmenters.segment(image)?.crop;
    crop.ok_or_else(|| Error::usage("the fused mask is empty: there is nothing to explain"))
}

/// `gradcam.png`: the map over the part of the picture that was seen, and what was cut out.
fn draw(
    args: &Args,
    image: &RgbImage,
    crop: Rect,
    [x, y, width, height]: [f64; 4],
    activation: &Activation,
    global: &Global,
) -> Result<()> {
    let whole = |v: f64| v.round() as usize;
    let (left, top) = (whole(x), whole(y));
    let (w, h) = ((whole(x + width) - left).max(1), (whole(y + height) - top).max(1));
    let map = activation.normalised().resized(w, h, Interpolation::Bilinear);
    let mut shown = image.clone();
    heatmap::shade(&mut shown, [left, top], &map, args.colormap, args.alpha);
    image_outputs::rectangle(&mut shown, crop, [255; 3]);
    let high = activation.positive().data.into_iter().fold(0.0f32, f32::max);
    let ends = [0.0, high / 2.0, high].map(|v| format!("{v:.3}"));
    let labels = [ends[0].as_str(), ends[1].as_str(), ends[2].as_str()];
    let shown = heatmap::with_legend(&shown, args.colormap, labels, "Grad-CAM");
    let path = args.out.join("gradcam.png");
    png::write_rgb(&path, &shown)?;
    said(global, &path);
    Ok(())
}

/// `gradcam.csv`: every position of the map, its middle in pixels of the picture, and its values.
fn table(args: &Args, seen: [f64; 4], activation: &Activation, global: &Global) -> Result<()> {
    let signed = &activation.signed;
    let normalised = activation.normalised();
    let step = [seen[2] / signed.width as f64, seen[3] / signed.height as f64];
    let rows = (0..signed.data.len()).map(|i| {
        let (row, column) = (i / signed.width, i % signed.width);
        let x = seen[0] + (column as f64 + 0.5) * step[0];
        let y = seen[1] + (row as f64 + 0.5) * step[1];
        let values = [signed.data[i], signed.data[i].max(0.0), normalised.data[i]];
        let mut cells = vec![row.to_string(), column.to_string(), x.to_string(), y.to_string()];
        cells.extend(values.map(|v| v.to_string()));
        cells
    });
    let header = ["row", "column", "x", "y", "signed", "gradcam", "normalised"];
    let path = args.out.join("gradcam.csv");
    csv::write(&path, &header, rows)?;
    said(global, &path);
    Ok(())
}

fn tell(
    args: &Args,
    head: &Head,
    class: usize,
    activation: &Activation,
    prediction: Option<&Prediction>,
) {
    let probability = prediction.and_then(|p| p.probabilities.get(class).copied());
    let name = head.classes.get(class);
    if args.json {
        print_json(&json!({
            "head": head.name, "class": name, "layer": activation.layer,
            "rows": activation.signed.height, "columns": activation.signed.width,
            "logit": activation.logit, "probability": probability,
        }));
        return;
    }
    let class = name.map_or(String::new(), |class| format!(" {class}"));
    let probability = probability.map_or(String::new(), |p| format!(", probability {p:.4}"));
    let (h, w) = (activation.signed.height, activation.signed.width);
    println!(
        "{}{class}: logit {:.4}{probability}; {h} x {w} positions of {}",
        head.name, activation.logit, activation.layer
    );
}
