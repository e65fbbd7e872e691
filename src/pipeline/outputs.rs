//! What is written for one slide: the tables and the pictures.

use super::gate::Verdict;
use super::overview::overview;
use super::predict::HeadResult;
use super::{Finished, Prepared};
use crate::error::{Error, Result};
use crate::heads::Scores;
use crate::image::RgbImage;
use crate::report::csv::{self, Attention};
use crate::report::geojson::{self, Measurement, ObjectType};
use crate::report::h5::ClamPatches;
use crate::report::heatmap::{self, Canvas};
use crate::report::{draw as drawing, png};
use crate::tissue;
use std::collections::BTreeMap;
use std::path::Path;

pub use super::summary::{blank_result, describe, predictions, why_empty};

/// Largest downsample of overlays and heatmaps, CLAM's own.
const VIS_DOWNSAMPLE: f64 = 32.0;

/// A slide too small for that gets a finer level, so that there is something to look at.
const VIS_SIDE: f64 = 1000.0;

/// Writes `mask.png`, `overlay.png` and returns the picture under them, so that heatmaps need not
/// read it again.
///
/// # Errors
/// Naming the file, or what reading the slide returns.
pub fn write_area(dir: &Path, prepared: &Prepared) -> Result<Picture> {
    let picture = Picture::new(prepared)?;
    png::write_mask(
        &dir.join("mask.png"),
        picture.image.width,
        picture.image.height,
        &picture.tissue,
    )?;
    let mut drawn = picture.image.clone();
    let grid = &prepared.grid;
    let coords: Vec<[f64; 2]> = grid.origins.iter().map(|o| o.map(|v| v as f64)).collect();
    drawing::overlay(
        &mut drawn,
        picture.downsample,
        &outlines(prepared),
        &coords,
        grid.size_level0,
    );
    png::write_rgb(&dir.join("overlay.png"), &drawn)?;
    Ok(picture)
}

/// A slide small enough to look at, and where its tissue is.
pub struct Picture {
    image: RgbImage,
    downsample: [f64; 2],
    tissue: Vec<bool>,
}

impl Picture {
    /// The overview of a slide with its mask; without contours all of it counts as tissue.
    ///
    /// # Errors
    /// What reading the slide returns.
    pub fn new(prepared: &Prepared) -> Result<Picture> {
        let base = &prepared.slide.levels()[0];
        let side = f64::from(base.width.max(base.height));
        let wanted = VIS_DOWNSAMPLE.min(side / VIS_SIDE);
        let (image, downsample) = overview(&prepared.slide, wanted)?;
        let contours = prepared.contours();
        let whole = prepared.tissue.is_none() && prepared.regions.is_empty();
        let tissue = if whole {
            vec![true; image.width * image.height]
        } else {
            let mask = tissue::rasterise(&contours, image.width, image.height, downsample);
            mask.data.iter().map(|&v| v != 0).collect()
        };
        Ok(Picture { image, downsample, tissue })
    }

    /// RGB of the pixels on tissue, row by row.
    pub fn tissue(&self) -> impl Iterator<Item = [u8; 3]> + Clone {
        let pixels = self.image.data.as_chunks::<3>().0.iter().zip(&self.tissue);
        pixels.filter(|(_, on)| **on).map(|(rgb, _)| *rgb)
    }
}

fn outlines(prepared: &Prepared) -> Vec<geojson::Contour> {
    let ring = |ring: &Vec<[i32; 2]>| ring.iter().map(|v| v.map(f64::from)).collect();
    prepared
        .contours()
        .iter()
        .map(|c| geojson::Contour {
            outline: ring(&c.outer),
            holes: c.holes.iter().map(ring).collect(),
        })
        .collect()
}

/// Writes `tiles.geojson` with the tissue and every given grid position.
///
/// # Errors
/// Naming the file.
pub fn write_geojson(
    path: &Path,
    prepared: &Prepared,
    tiles: &[usize],
    measurements: &[Measurement<'_>],
) -> Result<()> {
    let coords: Vec<[f64; 2]> =
        tiles.iter().map(|&i| prepared.grid.origins[i].map(|v| v as f64)).collect();
    let tiles = geojson::Tiles {
        object: ObjectType::Tile,
        coords: &coords,
        side: prepared.grid.size_level0,
        measurements,
    };
    geojson::write(path, &prepared.sha256, &outlines(prepared), &tiles)
}

/// Writes everything about the predictions of a slide but `result.json` into `dir`.
///
/// The first head's files are `attention.csv`, `heatmap.png` and `tiles.geojson`; those of further
/// heads carry their name. A head with several attention branches has one heatmap per class. Heads
/// that `mapped` does not name have no files of their own.
///
/// # Errors
/// Naming the file.
pub fn write_predictions(
    dir: &Path,
    slide: &Finished,
    heads: &[HeadResult],
    mapped: &dyn Fn(&str) -> bool,
) -> Result<()> {
    let picture = write_area(dir, &slide.prepared)?;
    let mut used: Vec<usize> = slide.bags.concat();
    used.sort_unstable();
    let tiles: Vec<usize> = used.iter().map(|&t| slide.tiles[t]).collect();
    let coords: Vec<[i64; 2]> = tiles.iter().map(|&i| slide.prepared.grid.origins[i]).collect();
    let mut measurements: Vec<(String, Vec<f64>)> = Vec::new();
    if let Some(verdict) = slide.verdict.as_ref() {
        let predicting = heads.iter().any(|h| h.kind == Scores::Prediction && mapped(&h.head));
        if !predicting {
            write_gated(&dir.join("tiles.csv"), slide, verdict, &[])?;
        }
    }
    for (i, head) in heads.iter().enumerate().filter(|(_, head)| mapped(&head.head)) {
        let suffix = suffix(i, head);
        let branches = branches(head, &used);
        match slide.verdict.as_ref().filter(|_| head.kind == Scores::Prediction) {
            None => write_scores(dir, i, head, &coords, &branches)?,
            Some(verdict) => {
                let columns = predictions_by_tile(&tiles, &branches);
                write_gated(&dir.join(format!("tiles{suffix}.csv")), slide, verdict, &columns)?;
            }
        }
        for branch in branches {
            let dash = if branch.class.is_empty() { "" } else { "-" };
            let path = dir.join(format!("heatmap{suffix}{dash}{}.png", branch.class));
            let raw: Vec<f64> = branch.raw.iter().map(|&v| v.into()).collect();
            let scale = match head.kind {
                Scores::Attention => Scale::Percentile,
                Scores::Prediction => Scale::of_values(&raw, !head.classes.is_empty()),
            };
            let side = slide.prepared.grid.size_level0;
            write_heatmap(&path, &picture, &coords, &raw, side, &scale)?;
            let of = match (heads.len(), branch.class.as_str()) {
                (1, "") => String::new(),
                (1, class) => format!("{class} "),
                (_, "") => format!("{} ", head.head),
                (_, class) => format!("{} {class} ", head.head),
            };
            if head.kind == Scores::Prediction {
                measurements.push((format!("{of}prediction"), raw));
                continue;
            }
            let softmax = branch.softmax.iter().map(|&v| v.into()).collect();
            measurements.push((format!("{of}attention percentile"), heatmap::percentiles(&raw)));
            measurements.push((format!("{of}attention score"), raw));
            measurements.push((format!("{of}attention weight"), softmax));
        }
    }
    let measurements: Vec<Measurement<'_>> =
        measurements.iter().map(|(name, values)| Measurement { name, values }).collect();
    write_geojson(&dir.join("tiles.geojson"), &slide.prepared, &tiles, &measurements)
}

/// Predictions by grid index, under the names of their columns.
type ByTile = (String, BTreeMap<usize, f64>);

fn predictions_by_tile(tiles: &[usize], branches: &[Branch]) -> Vec<ByTile> {
    let column = |b: &Branch| {
        let values = b.raw.iter().map(|&v| f64::from(v));
        (prediction_column(b), tiles.iter().copied().zip(values).collect())
    };
    branches.iter().map(column).collect()
}

fn prediction_column(branch: &Branch) -> String {
    let of = if branch.class.is_empty() { String::new() } else { format!("_{}", branch.class) };
    format!("prediction{of}")
}

/// `tiles.csv` behind a gate: every tile that the gate looked at, the predictions of those that have
/// one, the probability and whether it passed.
fn write_gated(path: &Path, slide: &Finished, verdict: &Verdict, said: &[ByTile]) -> Result<()> {
    let origins = &slide.prepared.grid.origins;
    let coords: Vec<[i64; 2]> = verdict.tiles.iter().map(|&(tile, _)| origins[tile]).collect();
    let mut columns: Vec<(String, Vec<f64>)> = said
        .iter()
        .map(|(name, values)| {
            let of = |&(tile, _): &(usize, f64)| values.get(&tile).copied().unwrap_or(f64::NAN);
            (name.clone(), verdict.tiles.iter().map(of).collect())
        })
        .collect();
    let probabilities = verdict.tiles.iter().map(|&(_, p)| p);
    let passed = |p: f64| f64::from(u8::from(verdict.passes(p)));
    columns.push((format!("p_{}", verdict.class), probabilities.clone().collect()));
    columns.push(("passed".into(), probabilities.map(passed).collect()));
    csv::write_tiles(path, &coords, &columns)
}

fn suffix(i: usize, head: &HeadResult) -> String {
    if i == 0 { String::new() } else { format!("-{}", head.head) }
}

/// `attention.csv` of a head with attention, `tiles.csv` of one that predicts tiles.
fn write_scores(
    dir: &Path,
    i: usize,
    head: &HeadResult,
    coords: &[[i64; 2]],
    branches: &[Branch],
) -> Result<()> {
    let suffix = suffix(i, head);
    if head.kind == Scores::Prediction {
        let column = |b: &Branch| (prediction_column(b), b.raw.iter().map(|&v| v.into()).collect());
        let columns: Vec<(String, Vec<f64>)> = branches.iter().map(column).collect();
        return csv::write_tiles(&dir.join(format!("tiles{suffix}.csv")), coords, &columns);
    }
    let tables: Vec<Attention<'_>> = branches
        .iter()
        .map(|b| Attention { class: &b.class, raw: &b.raw, softmax: &b.softmax })
        .collect();
    csv::write_attention(&dir.join(format!("attention{suffix}.csv")), coords, &tables)
}

/// One column of scores of a head over the tiles that are in a bag.
struct Branch {
    /// Empty when the head has one branch.
    class: String,
    raw: Vec<f32>,
    softmax: Vec<f32>,
}

fn branches(head: &HeadResult, used: &[usize]) -> Vec<Branch> {
    (0..head.branches)
        .map(|branch| {
            let column = |values: &[f32]| -> Vec<f32> {
                used.iter().map(|&t| values[t * head.branches + branch]).collect()
            };
            let class = head.classes.get(branch).filter(|_| head.branches > 1);
            Branch {
                class: class.cloned().unwrap_or_default(),
                raw: column(&head.scores),
                softmax: match head.kind {
                    Scores::Attention => column(&head.attention),
                    Scores::Prediction => Vec::new(),
                },
            }
        })
        .collect()
}

/// How the colours of a heatmap are to be read.
enum Scale {
    /// Scores are ranked; the colour is the rank.
    Percentile,
    /// Values from the first to the second number.
    Range([f64; 2]),
}

impl Scale {
    /// Probabilities from 0 to 1, other values from the smallest to the largest there is.
    fn of_values(values: &[f64], probabilities: bool) -> Scale {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match probabilities || low >= high {
            true => Scale::Range([0.0, 1.0]),
            false => Scale::Range([low, high]),
        }
    }
}

fn write_heatmap(
    path: &Path,
    picture: &Picture,
    coords: &[[i64; 2]],
    scores: &[f64],
    side: f64,
    scale: &Scale,
) -> Result<()> {
    let options =
        heatmap::Options { percentile: matches!(scale, Scale::Percentile), ..Default::default() };
    match *scale {
        Scale::Percentile => {
            let (ends, caption) = (["0", "50", "100"], "attention percentile");
            draw(path, picture, &Shown { coords, side, scores, ends, caption }, &options)
        }
        Scale::Range([low, high]) => {
            let share = |v: &f64| ((v - low) / (high - low) * 100.0).clamp(0.0, 100.0);
            let scores: Vec<f64> = scores.iter().map(share).collect();
            let ends = [low, (low + high) / 2.0, high].map(|v| format!("{v:.2}"));
            let (ends, caption) = ([&ends[0], &ends[1], &ends[2]], "prediction of the tile");
            let ends = ends.map(String::as_str);
            draw(path, picture, &Shown { coords, side, scores: &scores, ends, caption }, &options)
        }
    }
}

/// What a heatmap shows.
pub struct Shown<'a> {
    /// Corners of the tiles in level-0 pixels.
    pub coords: &'a [[i64; 2]],
    /// Their side in level-0 pixels.
    pub side: f64,
    /// `[N]`: any number with [`heatmap::Options::percentile`], otherwise 0 to 100.
    pub scores: &'a [f64],
    /// What stands below both ends and the middle of the legend.
    pub ends: [&'a str; 3],
    /// What the colours mean.
    pub caption: &'a str,
}

/// Draws scores of tiles over a slide, with a legend.
///
/// # Errors
/// Naming the file; [`crate::Kind::Usage`] for a score that is not finite or an option out of range.
pub fn draw(
    path: &Path,
    picture: &Picture,
    shown: &Shown<'_>,
    options: &heatmap::Options,
) -> Result<()> {
    let canvas =
        Canvas { image: &picture.image, downsample: picture.downsample, tissue: &picture.tissue };
    let coords: Vec<[f64; 2]> = shown.coords.iter().map(|c| c.map(|v| v as f64)).collect();
    let map = heatmap::render(&canvas, &coords, shown.side, shown.scores, options)?;
    let legend = heatmap::with_legend(&map, options.colormap, shown.ends, shown.caption);
    png::write_rgb(path, &legend)
}

/// The grid as CLAM's coordinates file, which can say only whole pixels of one level of the file;
/// none when tiles are resampled or of a reduced level.
pub fn clam_patches<'a>(
    prepared: &Prepared,
    slide: &'a str,
    coords: &'a [[i64; 2]],
) -> Option<ClamPatches<'a>> {
    let grid = &prepared.grid;
    let levels = prepared.slide.levels();
    let (base, level) = (levels.first()?, levels.get(grid.level)?);
    let level0_px = f64::from(grid.read_px) * level.downsample;
    let exact = grid.size_px == grid.read_px && (level0_px - grid.size_level0).abs() < 0.5;
    exact.then(|| ClamPatches {
        slide,
        coords,
        patch_size: grid.read_px,
        patch_level: grid.level as u32,
        downsample: [
            f64::from(base.width) / f64::from(level.width),
            f64::from(base.height) / f64::from(level.height),
        ],
        level_dim: [level.width.into(), level.height.into()],
    })
}

/// Writes the attention tables of a slide known by its features only. Without coordinates in the
/// file there is nothing to place them by, and none is written.
///
/// # Errors
/// Naming the file.
pub fn write_feature_attention(
    dir: &Path,
    coords: Option<&[[f64; 2]]>,
    bags: &[Vec<usize>],
    heads: &[HeadResult],
    mapped: &dyn Fn(&str) -> bool,
) -> Result<()> {
    let Some(coords) = coords else { return Ok(()) };
    let mut used: Vec<usize> = bags.concat();
    used.sort_unstable();
    let coords: Vec<[i64; 2]> = used.iter().map(|&t| coords[t].map(|v| v.round() as i64)).collect();
    for (i, head) in heads.iter().enumerate().filter(|(_, head)| mapped(&head.head)) {
        let branches = branches(head, &used);
        write_scores(dir, i, head, &coords, &branches)?;
    }
    Ok(())
}

/// Writes `attention.csv` of a patient known by images: the image, its bag, its score and weight.
///
/// # Errors
/// Naming the file.
pub fn write_image_attention(dir: &Path, bags: &[Vec<String>], heads: &[HeadResult]) -> Result<()> {
    for (i, head) in heads.iter().enumerate() {
        if head.kind == Scores::Prediction {
            let what = "bags of images are for heads with attention";
            return Err(Error::unsupported(format!("head {}: {what}", head.head)));
        }
        let path = dir.join(format!("attention{}.csv", suffix(i, head)));
        let images = bags
            .iter()
            .enumerate()
            .flat_map(|(bag, images)| images.iter().map(move |image| (image.as_str(), bag)));
        csv::write_image_attention(&path, images, &head.scores, &head.attention, head.branches)?;
    }
    Ok(())
}
