//! Nuclei for people and other tools: outlines for QuPath, a sheet of tiles to look at, tables.
//!
//! Outlines are QuPath detections, which is what QuPath makes of nuclei whose cell border is not
//! known. Coordinates are level-0 pixels.

use super::geojson::{number, ring, uuid};
use super::{atomic, csv, draw, font, png};
use crate::error::{Context, Error, Result};
use crate::image::{Resampler, RgbImage};
use crate::recipe::Interpolation;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;

/// One nucleus.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Corners in level-0 pixels, first not repeated.
    pub outline: Vec<[f64; 2]>,
    /// One value for every name given beside it; those that do not exist are left out.
    pub values: Vec<Option<f64>>,
}

/// Writes nuclei as detections of class `Nucleus`.
///
/// # Errors
/// Naming the file: a coordinate that is not finite, or the system's.
pub fn write_geojson(
    path: &Path,
    slide_sha256: &str,
    names: &[&str],
    cells: &[Cell],
) -> Result<()> {
    let finite = |c: &Cell| c.outline.as_flattened().iter().all(|v| v.is_finite());
    if let Some(i) = cells.iter().position(|c| !finite(c) || c.outline.len() < 3) {
        let what = format!("nucleus {i} has no outline of finite coordinates");
        return Err(Error::usage(what)).context(|| path.display().to_string());
    }
    let failed = |e| Error::io("cannot write", e);
    atomic::write(path, |w| {
        w.write_all(b"{\"type\":\"FeatureCollection\",\"features\":[").map_err(failed)?;
        for (i, cell) in cells.iter().enumerate() {
            w.write_all(if i == 0 { b"\n" } else { b",\n" }).map_err(failed)?;
            serde_json::to_writer(&mut *w, &feature(slide_sha256, names, cell))
                .map_err(|e| failed(e.into()))?;
        }
        w.write_all(b"\n]}\n").map_err(failed)
    })
}

fn feature(slide: &str, names: &[&str], cell: &Cell) -> Value {
    let values = names.iter().zip(&cell.values);
    let measurements: Map<String, Value> =
        values.filter_map(|(name, v)| Some(((*name).to_owned(), number((*v)?)))).collect();
    json!({
        "type": "Feature",
        "id": uuid(slide, &format!("nucleus {:?}", cell.outline)),
        "geometry": { "type": "Polygon", "coordinates": [ring(&cell.outline, true)] },
        "properties": {
            "objectType": "detection",
            "classification": { "name": "Nucleus", "color": [30, 120, 255] },
            "measurements": measurements,
        },
    })
}

/// A cell of a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// Text as it is.
    Text(String),
    /// The shortest text that reads back to the same number; empty when there is none.
    Number(Option<f64>),
}

/// Writes a table.
///
/// # Errors
/// Naming the file.
pub fn write_table(
    path: &Path,
    header: &[String],
    rows: impl Iterator<Item = Vec<Field>>,
) -> Result<()> {
    let text = |field: Field| match field {
        Field::Text(text) => text,
        Field::Number(value) => value.map_or(String::new(), csv::number),
    };
    csv::write(path, header, rows.map(|row| row.into_iter().map(text).collect()))
}

/// One picture of a sheet.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Printed above.
    pub caption: String,
    /// The tile.
    pub image: RgbImage,
    /// Outlines in pixels of `image`.
    pub outlines: Vec<Vec<[f64; 2]>>,
}

/// Side of a panel, pixels between panels, and panels in a row.
const SIDE: usize = 480;
const GAP: usize = 24;
const COLUMNS: usize = 4;

/// Colour of nuclear outlines: far from both stains.
const OUTLINE: [u8; 3] = [0, 255, 90];

/// Writes tiles side by side with the outlines drawn over them.
///
/// # Errors
/// Naming the file; [`crate::Kind::Usage`] without panels.
pub fn write_sheet(path: &Path, panels: &[Panel]) -> Result<()> {
    let rows = panels.len().div_ceil(COLUMNS);
    let columns = panels.len().min(COLUMNS);
    let mut sheet =
        RgbImage::filled(columns * (SIDE + GAP) + GAP, rows * (SIDE + GAP) + GAP, [255; 3]);
    for (i, panel) in panels.iter().enumerate() {
        let corner = [i % COLUMNS, i / COLUMNS].map(|k| GAP + k * (SIDE + GAP));
        let drawn = draw_panel(panel).context(|| path.display().to_string())?;
        for (y, row) in drawn.data.chunks(SIDE * 3).enumerate() {
            let at = ((corner[1] + y) * sheet.width + corner[0]) * 3;
            sheet.data[at..at + row.len()].copy_from_slice(row);
        }
        font::text(&mut sheet, [corner[0], corner[1] - 18], 2, &panel.caption);
    }
    png::write_rgb(path, &sheet)
}

fn draw_panel(panel: &Panel) -> Result<RgbImage> {
    let (width, height) = (panel.image.width, panel.image.height);
    let resampler = Resampler::new(width, height, SIDE, SIDE, Interpolation::Bilinear)?;
    let mut drawn = RgbImage::filled(SIDE, SIDE, [255; 3]);
    resampler.run(&panel.image.data, &mut drawn.data, &mut Vec::new());
    let scale = [width, height].map(|n| SIDE as f64 / n as f64);
    for outline in &panel.outlines {
        let corners: Vec<[f64; 2]> =
            outline.iter().map(|p| [p[0] * scale[0] - 0.5, p[1] * scale[1] - 0.5]).collect();
        draw::polygon(&mut drawn, &corners, 1, OUTLINE);
    }
    Ok(drawn)
}
