//! Tiles and tissue as a GeoJSON FeatureCollection for QuPath (File > Import objects).
//!
//! Coordinates are level-0 pixels, which is what QuPath draws in. Object types, `measurements` and
//! `classification` are QuPath's own properties. Rings are closed and turn as RFC 7946 asks.
//! Ids are UUIDs version 8 (RFC 9562, name-based SHA-256), so the same slide gives the same file.

use super::atomic;
use crate::error::{Context, Error, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::Path;

/// What QuPath makes of a tile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ObjectType {
    /// Measurement maps colour it; the lightest object with a shape.
    #[default]
    Tile,
    /// As a tile, also listed among detections.
    Detection,
}

/// One number for every tile.
#[derive(Clone, Copy, Debug)]
pub struct Measurement<'a> {
    /// Name in QuPath.
    pub name: &'a str,
    /// `[N]`.
    pub values: &'a [f64],
}

/// Square tiles of one size.
#[derive(Clone, Copy, Debug)]
pub struct Tiles<'a> {
    /// Kind of object.
    pub object: ObjectType,
    /// `[N]` top-left corners `x, y` in level-0 pixels.
    pub coords: &'a [[f64; 2]],
    /// Side in level-0 pixels.
    pub side: f64,
    /// Shown for each tile: raw score, attention percent rank, kept.
    pub measurements: &'a [Measurement<'a>],
}

/// One piece of tissue, in level-0 pixels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contour {
    /// Corners, first not repeated.
    pub outline: Vec<[f64; 2]>,
    /// Corners of each hole.
    pub holes: Vec<Vec<[f64; 2]>>,
}

/// Writes tissue as locked annotations and tiles as `tiles.object`.
///
/// `slide_sha256` enters the ids. Contours and holes of fewer than three corners are left out.
///
/// # Errors
/// Naming the file: a coordinate that is not finite, a measurement of another length, or the
/// system's.
pub fn write(path: &Path, slide_sha256: &str, tissue: &[Contour], tiles: &Tiles) -> Result<()> {
    check(tissue, tiles).context(|| path.display().to_string())?;
    atomic::write(path, |w| {
        w.write_all(b"{\"type\":\"FeatureCollection\",\"features\":[")
            .map_err(|e| Error::io("cannot write", e))?;
        let outlines = tissue.iter().filter(|c| c.outline.len() >= 3);
        let outlines = outlines.enumerate().map(|(i, c)| tissue_feature(slide_sha256, i, c));
        let squares = (0..tiles.coords.len()).map(|i| tile_feature(slide_sha256, tiles, i));
        for (i, feature) in outlines.chain(squares).enumerate() {
            let separator: &[u8] = if i == 0 { b"\n" } else { b",\n" };
            w.write_all(separator).map_err(|e| Error::io("cannot write", e))?;
            serde_json::to_writer(&mut *w, &feature)
                .map_err(|e| Error::io("cannot write", e.into()))?;
        }
        w.write_all(b"\n]}\n").map_err(|e| Error::io("cannot write", e))
    })
}

fn check(tissue: &[Contour], tiles: &Tiles) -> Result<()> {
    let finite = |ring: &[[f64; 2]]| ring.as_flattened().iter().all(|v| v.is_finite());
    let outlines = tissue.iter().all(|c| finite(&c.outline) && c.holes.iter().all(|h| finite(h)));
    if !outlines || !finite(tiles.coords) || !tiles.side.is_finite() {
        return Err(Error::usage("a coordinate is not a finite number"));
    }
    let n = tiles.coords.len();
    match tiles.measurements.iter().find(|m| m.values.len() != n) {
        Some(m) => {
            Err(Error::usage(format!("{} has {} values for {n} tiles", m.name, m.values.len())))
        }
        None => Ok(()),
    }
}

fn tile_feature(slide: &str, tiles: &Tiles, i: usize) -> Value {
    let [x, y] = tiles.coords[i];
    let (right, bottom) = (x + tiles.side, y + tiles.side);
    let kind = match tiles.object {
        ObjectType::Tile => "tile",
        ObjectType::Detection => "detection",
    };
    let measurements: Map<String, Value> =
        tiles.measurements.iter().map(|m| (m.name.to_owned(), number(m.values[i]))).collect();
    json!({
        "type": "Feature",
        "id": uuid(slide, &format!("tile {i} {x} {y} {}", tiles.side)),
        "geometry": {
            "type": "Polygon",
            "coordinates": [ring(&[[x, y], [right, y], [right, bottom], [x, bottom]], true)],
        },
        "properties": { "objectType": kind, "measurements": measurements },
    })
}

fn tissue_feature(slide: &str, i: usize, contour: &Contour) -> Value {
    let holes = contour.holes.iter().filter(|h| h.len() >= 3).map(|h| ring(h, false));
    let rings: Vec<Value> = std::iter::once(ring(&contour.outline, true)).chain(holes).collect();
    json!({
        "type": "Feature",
        "id": uuid(slide, &format!("tissue {i}")),
        "geometry": { "type": "Polygon", "coordinates": rings },
        "properties": {
            "objectType": "annotation",
            "classification": { "name": "Tissue", "color": [0, 160, 90] },
            "isLocked": true,
        },
    })
}

/// A closed ring; RFC 7946 section 3.1.6 has outlines of positive area and holes of negative.
pub(super) fn ring(corners: &[[f64; 2]], outline: bool) -> Value {
    let next = corners.iter().cycle().skip(1);
    let twice_area: f64 = corners.iter().zip(next).map(|(a, b)| a[0] * b[1] - b[0] * a[1]).sum();
    let mut ring: Vec<[Value; 2]> = corners.iter().map(|c| c.map(number)).collect();
    if (twice_area > 0.0) != outline {
        ring.reverse();
    }
    ring.extend(ring.first().cloned());
    json!(ring)
}

/// Whole numbers without a fraction; what JSON cannot say as QuPath writes it.
pub(super) fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        return Value::from(value as i64);
    }
    serde_json::Number::from_f64(value).map_or_else(|| Value::from(value.to_string()), Value::from)
}

pub(super) fn uuid(slide: &str, name: &str) -> String {
    let hash = Sha256::new().chain_update(slide).chain_update(" ").chain_update(name).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80; // version 8
    bytes[8] = bytes[8] & 0x3f | 0x80; // variant of RFC 9562
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
