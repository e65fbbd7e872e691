//! The folder of `histokern predict`.

use super::other::picture;
use super::{Args, add_csv, files, name_of};
use crate::cli::Global;
use crate::cli::table::Table;
use crate::error::{Context, Error, Result};
use crate::image::RgbImage;
use crate::image::resample::Resampler;
use crate::recipe::Interpolation;
use crate::report::html::{Cell, Page};
use crate::report::plot::measured::{Labels, histogram};
use crate::report::plot::number;
use crate::report::png;
use crate::report::result::{Outcome, SlideResult, sha256_file};
use crate::slide::{OpenOptions, Region, Slide};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Sides of the pictures of tiles, in pixels.
const THUMB: u32 = 128;
/// Tiles larger than this, in level-0 pixels, are not shown.
const MAX_TILE: f64 = 16_384.0;

/// Adds the folder: a table of all slides, then those with pictures.
pub fn add(args: &Args, folder: &Path, name: &str, page: &mut Page, global: &Global) -> Result<()> {
    let status = Table::read(&folder.join("status.csv"))?;
    let mut results = Vec::new();
    for slide in status.text("slide")? {
        let stem = Path::new(slide).file_stem().unwrap_or_default();
        let dir = folder.join(stem);
        // Names of a table must not lead out of the folder.
        let own = Path::new(stem).components().count() == 1 && stem != "..";
        if own && dir.join("result.json").is_file() {
            results.push((SlideResult::read(&dir.join("result.json"))?, dir));
        }
    }
    page.section(&format!("Predictions: {name}"));
    if let Some((first, _)) = results.first() {
        page.list(&[
            ("package".into(), first.package.name.clone()),
            ("recipe".into(), first.package.recipe_id.clone()),
            ("device".into(), first.device.name.clone()),
            ("program".into(), format!("{} {}", first.program.name, first.program.version)),
        ]);
        if !first.package.notice.is_empty() {
            page.note(&first.package.notice);
        }
    }
    let header = ["slide", "answer", "tiles", "unread", "seconds", "files"].map(String::from);
    let rows: Vec<Vec<Cell>> = results.iter().map(|(result, dir)| row(args, result, dir)).collect();
    page.table("Slides", &header, &rows);
    let failed = folder.join("status.csv");
    if status.text("status")?.iter().any(|s| *s != "done" && *s != "skipped") {
        add_csv(&failed, "How each slide ended", page)?;
    }
    if results.len() > args.most {
        page.paragraph(&format!("Pictures follow for the first {} slides.", args.most));
    }
    for (result, dir) in results.iter().take(args.most) {
        one(args, result, dir, page, global).context(|| dir.display().to_string())?;
    }
    Ok(())
}

fn answer(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Value { value } => number(*value),
        Outcome::Classes { classes, probabilities } => classes
            .iter()
            .zip(probabilities)
            .map(|(class, p)| format!("{class} {p:.3}"))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn answers(result: &SlideResult) -> String {
    let one = |p: &crate::report::result::Prediction| format!("{}: {}", p.head, answer(&p.outcome));
    result.predictions.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn row(args: &Args, result: &SlideResult, dir: &Path) -> Vec<Cell> {
    let result_file = dir.join("result.json");
    let link = relative(&args.output, &result_file)
        .map_or(Cell::Text(String::new()), |to| Cell::Link("result.json".into(), to));
    vec![
        Cell::Text(result.slide.name.clone()),
        Cell::Text(answers(result)),
        Cell::Number(result.tiles.kept.to_string()),
        Cell::Number(result.tiles.unread.len().to_string()),
        Cell::Number(format!("{:.1}", result.seconds.total)),
        link,
    ]
}

/// The path from the folder of `page` to `file`; `None` when they share no root.
fn relative(page: &Path, file: &Path) -> Option<String> {
    let folder = page.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (from, to) = (folder.canonicalize().ok()?, file.canonicalize().ok()?);
    let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().count() - shared;
    let mut parts = vec!["..".to_string(); up];
    for part in to.components().skip(shared) {
        parts.push(part.as_os_str().to_str()?.to_string());
    }
    Some(parts.join("/"))
}

fn one(
    args: &Args,
    result: &SlideResult,
    dir: &Path,
    page: &mut Page,
    global: &Global,
) -> Result<()> {
    page.heading(&format!("{} \u{2013} {}", result.slide.name, answers(result)));
    let size = format!("{} x {} px", result.slide.width, result.slide.height);
    let mpp = result.slide.mpp.as_ref().map_or("unknown".into(), |m| number(m.x));
    page.list(&[
        ("size".into(), size),
        ("\u{b5}m per pixel".into(), mpp),
        ("looked at".into(), result.regions.clone()),
        ("tiles".into(), format!("{} of {}", result.tiles.kept, result.tiles.grid)),
    ]);
    for warning in &result.warnings {
        page.note(warning);
    }
    let mut links = Vec::new();
    let mut pictures = Vec::new();
    for path in files(dir, "geojson")? {
        let to = relative(&args.output, &path);
        links.extend(
            to.map(|to| (format!("{} (QuPath: File > Import objects)", name_of(&path)), to)),
        );
    }
    for path in files(dir, "png")? {
        let file = name_of(&path);
        let Some(head) = file.strip_prefix("heatmap").and_then(|f| f.strip_suffix(".png")) else {
            continue;
        };
        let what = format!("Attention heatmap{} of {}", head.replace('-', " "), result.slide.name);
        pictures.push((picture(&path)?, what.clone(), what));
    }
    if !pictures.is_empty() {
        page.pictures(&pictures);
    }
    let attention = dir.join("attention.csv");
    if attention.is_file() {
        tiles(args, result, dir, &Table::read(&attention)?, page, global)?;
    }
    if !links.is_empty() {
        page.links(&links);
    }
    Ok(())
}

/// The spread of attention, and the tiles at its ends.
fn tiles(
    args: &Args,
    result: &SlideResult,
    dir: &Path,
    table: &Table,
    page: &mut Page,
    global: &Global,
) -> Result<()> {
    let Some(column) = table.names().iter().find(|n| n.starts_with("raw")).cloned() else {
        return Ok(());
    };
    let scores = table.numbers(&column)?;
    let labels = Labels {
        name: "attention",
        title: &format!("Attention scores of {}", result.slide.name),
        x: "Attention score before the softmax",
        y: "Tiles",
    };
    let figure = histogram(&labels, &scores);
    page.figure(&figure.svg(), &figure.desc);
    if args.tiles == 0 || !table.has("x") || !table.has("y") {
        return Ok(());
    }
    let Some(slide) = find_slide(args, result, dir)? else {
        global.say(&format!(
            "{}: slide not found or changed, tiles are not shown (--slides DIR)",
            result.slide.name
        ));
        return Ok(());
    };
    let Some(side) = tile_side(&dir.join("tiles.geojson"))? else { return Ok(()) };
    let (x, y) = (table.numbers("x")?, table.numbers("y")?);
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let n = usize::from(args.tiles).min(order.len() / 2);
    let ends = [("highest", &order[..n]), ("lowest", &order[order.len() - n..])];
    for (which, rows) in ends.into_iter().filter(|(_, rows)| !rows.is_empty()) {
        let mut pictures = Vec::new();
        for &i in rows {
            let image = tile(&slide, [x[i], y[i]], side)?;
            let mut bytes = Vec::new();
            png::encode_rgb(&mut bytes, &image)?;
            let score = number(scores[i]);
            let alt = format!("Tile at {}, {} with the {which} attention, {score}", x[i], y[i]);
            pictures.push((bytes, alt, format!("{score} at {}, {}", x[i], y[i])));
        }
        page.heading(&format!("Tiles with the {which} attention"));
        page.pictures(&pictures);
    }
    Ok(())
}

/// The slide a result was made from, if it can be found and has not changed.
fn find_slide(args: &Args, result: &SlideResult, dir: &Path) -> Result<Option<Slide>> {
    let name = Path::new(&result.slide.name);
    if name.components().count() != 1 || result.slide.sha256.is_empty() {
        return Ok(None);
    }
    let near = [dir.parent(), dir.parent().and_then(Path::parent)];
    let near = near.into_iter().flatten().map(PathBuf::from);
    let mut places = args.slides.iter().cloned().chain(near).map(|folder| folder.join(name));
    let Some(path) = places.find(|p| p.is_file()) else { return Ok(None) };
    if sha256_file(&path)? != result.slide.sha256 {
        return Ok(None);
    }
    // A slide that no longer opens takes its pictures with it, not the whole page.
    Ok(Slide::open(&path, &OpenOptions::default()).ok())
}

/// Side of the tiles in level-0 pixels, from the first tile of a GeoJSON of this program, which
/// holds one feature a line.
fn tile_side(path: &Path) -> Result<Option<f64>> {
    let Ok(file) = std::fs::File::open(path) else { return Ok(None) };
    for line in BufReader::new(file.take(super::MAX_BYTES)).lines() {
        let line = line.map_err(|e| Error::io(path.display().to_string(), e))?;
        if !line.contains("\"objectType\":\"tile\"") {
            continue;
        }
        let feature: Option<Value> = serde_json::from_str(line.trim_end_matches(',')).ok();
        let corner = |f: &Value, i: usize| f["geometry"]["coordinates"][0][i][0].as_f64();
        let xs: Option<Vec<f64>> = feature.and_then(|f| (0..4).map(|i| corner(&f, i)).collect());
        let side = xs.map(|xs| {
            xs.iter().copied().fold(f64::NEG_INFINITY, f64::max)
                - xs.iter().copied().fold(f64::INFINITY, f64::min)
        });
        return Ok(side.filter(|s| (1.0..=MAX_TILE).contains(s)));
    }
    Ok(None)
}

/// A tile as a small picture, from the level that is just fine enough.
fn tile(slide: &Slide, [x, y]: [f64; 2], side: f64) -> Result<RgbImage> {
    let level = slide.best_level(side / f64::from(THUMB));
    let pixels = (side / slide.levels()[level].downsample).round().max(1.0) as u32;
    let region = Region { x: x as i64, y: y as i64, level, width: pixels, height: pixels };
    let image = slide.read_region(&region)?.image;
    let (w, h) = (image.width, image.height);
    let resampler = Resampler::new(w, h, THUMB as usize, THUMB as usize, Interpolation::Bilinear)?;
    let mut out = RgbImage::filled(THUMB as usize, THUMB as usize, [255; 3]);
    resampler.run(&image.data, &mut out.data, &mut Vec::new());
    Ok(out)
}
