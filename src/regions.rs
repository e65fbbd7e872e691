//! Annotated polygons: what a pathologist outlined, in level-0 pixels.
//!
//! Two layouts are read: the ASAP-derived JSON of BALNMP, `{"positive": [{"name", "vertices":
//! [[x, y], ..]}, ..], "negative": []}`, of which only `positive` is used, and GeoJSON (a
//! FeatureCollection, an array of Features or one Feature, as QuPath exports them) with Polygon and
//! MultiPolygon geometries. Coordinates are rounded to whole pixels.

use crate::error::{Error, Result};
use crate::image::{RgbImage, draw};
use crate::tissue::Contour;
use crate::tissue::contours::{Vertex, bounds};
use serde_json::Value;
use std::path::Path;

/// Largest annotation file that is read.
const MAX_BYTES: u64 = 64 << 20;

/// Largest coordinate, in level-0 pixels.
const MAX_COORDINATE: f64 = (1 << 30) as f64;

/// A rectangle in level-0 pixels; its right and bottom ends are excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bbox {
    /// Left.
    pub x: i64,
    /// Top.
    pub y: i64,
    /// Columns.
    pub width: i64,
    /// Rows.
    pub height: i64,
}

/// One annotated polygon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its name in the file, or its place in it.
    pub name: String,
    /// The outline, which may leave the slide.
    pub polygon: Contour,
    /// The outline's box from smallest to largest coordinate, cut at the slide's border; the row
    /// and column of the largest coordinate are not part of it, as in BALNMP.
    pub bbox: Bbox,
}

/// What an annotation file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Regions {
    /// Polygons that share at least one pixel with the slide.
    pub regions: Vec<Region>,
    /// Why others were left out, one sentence each.
    pub skipped: Vec<String>,
}

/// Reads the polygons of a slide of `width x height` level-0 pixels.
///
/// # Errors
/// Naming the file: [`crate::Kind::Io`] when it cannot be read, [`crate::Kind::Limit`] above
/// 64 MiB, [`crate::Kind::Malformed`] naming the feature when it is neither layout.
pub fn read(path: &Path, width: u32, height: u32) -> Result<Regions> {
    let name = || path.display().to_string();
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(name(), e))?;
    if !metadata.is_file() {
        return Err(Error::usage(format!("{}: not a regular file", name())));
    }
    let bytes = metadata.len();
    if bytes > MAX_BYTES {
        return Err(Error::limit(format!("{}: {bytes} bytes, more than {MAX_BYTES}", name())));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(name(), e))?;
    parse(&text, width, height).map_err(|e| e.context(name()))
}

/// Parses the text of an annotation file, see [`read`].
///
/// # Errors
/// [`crate::Kind::Malformed`] naming the feature.
pub fn parse(text: &str, width: u32, height: u32) -> Result<Regions> {
    let root: Value = serde_json::from_str(text)
        .map_err(|e| Error::malformed(format!("not JSON: {e}")).caused_by(e))?;
    let mut found = Regions::default();
    let slide = [i64::from(width), i64::from(height)];
    if let Some(positive) = root.get("positive") {
        for (i, item) in list(positive, "positive")?.iter().enumerate() {
            let place = format!("positive[{i}]");
            let name = item.get("name").and_then(Value::as_str).unwrap_or(&place).to_string();
            let outer = item
                .get("vertices")
                .ok_or_else(|| Error::malformed("no \"vertices\""))
                .and_then(ring)
                .map_err(|e| e.context(place))?;
            found.push(name, Contour { outer, holes: Vec::new() }, slide);
        }
        return Ok(found);
    }
    let features = match root.get("features") {
        Some(features) => list(features, "features")?,
        None => root.as_array().map_or(std::slice::from_ref(&root), Vec::as_slice),
    };
    for (i, feature) in features.iter().enumerate() {
        let place = format!("feature {i}");
        found.push_feature(feature, &place, slide).map_err(|e| e.context(place))?;
    }
    Ok(found)
}

impl Regions {
    fn push_feature(&mut self, feature: &Value, place: &str, slide: [i64; 2]) -> Result<()> {
        if feature.get("type").and_then(Value::as_str) != Some("Feature") {
            return Err(Error::malformed(
                "neither a GeoJSON Feature nor an object with \"positive\" polygons",
            ));
        }
        let property = |pointer: &str| feature.pointer(pointer).and_then(Value::as_str);
        let name = property("/properties/name")
            .or_else(|| property("/properties/classification/name"))
            .unwrap_or(place);
        let kind = property("/geometry/type").unwrap_or("none");
        let polygons = || {
            let coordinates = feature.pointer("/geometry/coordinates");
            list(coordinates.unwrap_or(&Value::Null), "coordinates")
        };
        match kind {
            "Polygon" => self.push(name.to_string(), polygon(polygons()?)?, slide),
            "MultiPolygon" => {
                for (k, rings) in polygons()?.iter().enumerate() {
                    let part = list(rings, "it")
                        .and_then(polygon)
                        .map_err(|e| e.context(format!("polygon {k}")))?;
                    self.push(format!("{name} [{k}]"), part, slide);
                }
            }
            other => {
                self.skipped.push(format!("{place} {name:?}: geometry {other}, not a polygon"))
            }
        }
        Ok(())
    }

    fn push(&mut self, name: String, polygon: Contour, slide: [i64; 2]) {
        let Some((low, high)) = bounds(&polygon.outer) else {
            self.skipped.push(format!("{name}: no vertices"));
            return;
        };
        let cut = |axis: usize| {
            let start = i64::from(low[axis]).max(0);
            (start, i64::from(high[axis]).min(slide[axis]) - start)
        };
        let ((x, width), (y, height)) = (cut(0), cut(1));
        if low[0] == high[0] || low[1] == high[1] {
            self.skipped.push(format!("{name}: its outline has no area"));
        } else if width <= 0 || height <= 0 {
            self.skipped.push(format!(
                "{name}: x {}..{}, y {}..{} lies outside the slide of {} x {} px",
                low[0], high[0], low[1], high[1], slide[0], slide[1]
            ));
        } else {
            self.regions.push(Region { name, polygon, bbox: Bbox { x, y, width, height } });
        }
    }
}

fn list<'a>(value: &'a Value, what: &str) -> Result<&'a [Value]> {
    let items = value.as_array().map(Vec::as_slice);
    items.ok_or_else(|| Error::malformed(format!("{what} is not a list")))
}

/// The rings of a GeoJSON polygon: the outline, then its holes.
fn polygon(rings: &[Value]) -> Result<Contour> {
    let mut rings = rings.iter().map(ring).collect::<Result<Vec<_>>>()?.into_iter();
    Ok(Contour { outer: rings.next().unwrap_or_default(), holes: rings.collect() })
}

/// A list of positions; a last one that repeats the first is dropped.
fn ring(value: &Value) -> Result<Vec<Vertex>> {
    let positions = list(value, "ring")?.iter().enumerate();
    let mut ring = positions.map(|(i, p)| vertex(i, p)).collect::<Result<Vec<Vertex>>>()?;
    if ring.len() > 1 && ring.first() == ring.last() {
        ring.pop();
    }
    Ok(ring)
}

fn vertex(place: usize, value: &Value) -> Result<Vertex> {
    let number = |axis: usize| {
        let number = value.get(axis).and_then(Value::as_f64);
        number.filter(|n| n.abs() <= MAX_COORDINATE).map(|n| n.round() as i32)
    };
    match (number(0), number(1)) {
        (Some(x), Some(y)) => Ok([x, y]),
        _ => Err(Error::malformed(format!("vertex {place}: {value} is not a pixel position"))),
    }
}

impl Region {
    /// Paints white what lies outside the polygon, or outside the slide or the region's box, in a
    /// tile whose first pixel is `origin` (level-0 pixels) and whose pixels are `scale` level-0
    /// pixels wide.
    ///
    /// With `scale` 1 the same pixels stay as when BALNMP fills the whole cropped region with
    /// `cv2.fillPoly` and cuts the tile out of it; edge pixels stay. Otherwise vertices are
    /// rounded to the tile's pixels first. Holes are painted, their edges stay.
    pub fn paint_outside(&self, tile: &mut RgbImage, origin: [i64; 2], scale: f64) {
        let corner = [self.bbox.x, self.bbox.y];
        let length = |pixels: i64| (pixels as f64 / scale).round() as i64;
        let place = |point: [i64; 2]| [length(point[0] - corner[0]), length(point[1] - corner[1])];
        let points = |ring: &Vec<Vertex>| {
            ring.iter().map(|v| place(v.map(i64::from))).collect::<Vec<draw::Point>>()
        };
        let rings: Vec<_> =
            std::iter::once(&self.polygon.outer).chain(&self.polygon.holes).map(points).collect();
        let rings: Vec<&[draw::Point]> = rings.iter().map(Vec::as_slice).collect();
        let [left, top] = place(origin);
        let (width, height) = (tile.width as i64, tile.height as i64);
        let mut keep = vec![false; tile.width * tile.height];
        let canvas = [length(self.bbox.width).max(1), length(self.bbox.height).max(1)];
        draw::fill_spans(canvas, &rings, top..top + height, |y, x| {
            let (from, to) = ((x.start() - left).max(0), (x.end() - left + 1).min(width));
            if from < to {
                let row = (y - top) * width;
                keep[(row + from) as usize..(row + to) as usize].fill(true);
            }
        });
        for (pixel, keep) in tile.data.as_chunks_mut::<3>().0.iter_mut().zip(keep) {
            if !keep {
                *pixel = [255; 3];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asap_json_takes_the_positive_polygons() {
        let text = r#"{"positive": [
            {"name": "a", "vertices": [[10, 20], [110, 20], [60, 220], [10, 20]]},
            {"vertices": [[-50, -40], [30, -40], [30, 60]]}],
            "negative": [{"name": "n", "vertices": [[0, 0], [9, 0], [9, 9]]}]}"#;
        let found = parse(text, 100, 200).unwrap();
        assert_eq!(found.skipped, [""; 0]);
        let [a, b] = &found.regions[..] else { panic!("{found:?}") };
        assert_eq!(a.polygon.outer, [[10, 20], [110, 20], [60, 220]]);
        // Cut at the slide's 100 x 200 px; otherwise the largest coordinate is excluded.
        assert_eq!(a.bbox, Bbox { x: 10, y: 20, width: 90, height: 180 });
        assert_eq!(b.name, "positive[1]");
        assert_eq!(b.bbox, Bbox { x: 0, y: 0, width: 30, height: 60 });
    }

    #[test]
    fn geojson_keeps_holes_parts_and_names() {
        let polygon = "[[[0,0],[10.4,0],[10,9.6],[0,0]],[[2,1],[4,1],[4,2],[2,1]]]";
        let feature = |name: &str, geometry: &str| {
            format!(r#"{{"type":"Feature","properties":{name},"geometry":{geometry}}}"#)
        };
        let one = format!(r#"{{"type":"Polygon","coordinates":{polygon}}}"#);
        let two = format!(r#"{{"type":"MultiPolygon","coordinates":[{polygon},{polygon}]}}"#);
        let features = [
            feature(r#"{"name":"core"}"#, &one),
            feature(r#"{"classification":{"name":"Tumor"}}"#, &two),
            feature("null", r#"{"type":"Point","coordinates":[1,2]}"#),
            feature("{}", "null"),
        ];
        let array = format!("[{}]", features.join(","));
        let collection = format!(r#"{{"type":"FeatureCollection","features":{array}}}"#);
        for text in [&array, &collection] {
            let found = parse(text, 100, 100).unwrap();
            let names: Vec<_> = found.regions.iter().map(|r| r.name.as_str()).collect();
            assert_eq!(names, ["core", "Tumor [0]", "Tumor [1]"]);
            assert_eq!(found.regions[2].polygon.outer, [[0, 0], [10, 0], [10, 10]]);
            assert_eq!(found.regions[2].polygon.holes, [[[2, 1], [4, 1], [4, 2]]]);
            assert_eq!(found.skipped.len(), 2);
            assert!(found.skipped[0].contains("Point") && found.skipped[1].contains("none"));
        }
        assert_eq!(parse(&features[0], 100, 100).unwrap().regions.len(), 1);
    }

    #[test]
    fn polygons_off_the_slide_are_reported() {
        let text = r#"{"positive": [
            {"name": "right", "vertices": [[100, 0], [120, 0], [120, 9]]},
            {"name": "above", "vertices": [[0, -9], [20, -9], [20, 0]]},
            {"name": "line", "vertices": [[5, 5], [5, 50]]},
            {"name": "none", "vertices": []}]}"#;
        let found = parse(text, 100, 100).unwrap();
        assert!(found.regions.is_empty());
        for (name, sentence) in ["right", "above", "line", "none"].iter().zip(&found.skipped) {
            assert!(sentence.starts_with(name), "{sentence}");
        }
    }

    #[test]
    fn errors_name_the_place() {
        for (text, words) in [
            ("{", &["not JSON"][..]),
            ("[3]", &["feature 0", "neither"]),
            (r#"{"positive": 3}"#, &["positive is not a list"]),
            (r#"{"positive": [{"name": "a"}]}"#, &["positive[0]", "vertices"]),
            (r#"{"positive": [{"vertices": [[1, 2], [3]]}]}"#, &["positive[0]", "vertex 1", "[3]"]),
            (r#"{"positive": [{"vertices": [[1, 1e300]]}]}"#, &["vertex 0"]),
            (r#"{"features": {}}"#, &["features is not a list"]),
            (
                r#"[{"type":"Feature","geometry":{"type":"MultiPolygon","coordinates":[7]}}]"#,
                &["feature 0", "polygon 0: it is not a list"],
            ),
            (
                r#"[{"type":"Feature","geometry":{"type":"Polygon"}}]"#,
                &["feature 0", "coordinates is not a list"],
            ),
        ] {
            let error = parse(text, 9, 9).unwrap_err();
            assert_eq!(error.kind(), crate::Kind::Malformed);
            for word in words {
                assert!(error.to_string().contains(word), "{text}: {error}");
            }
        }
        let error = read(Path::new("/no/such/file.json"), 9, 9).unwrap_err().to_string();
        assert!(error.contains("/no/such/file.json"), "{error}");
        let folder = read(&std::env::temp_dir(), 9, 9).unwrap_err();
        assert_eq!(folder.kind(), crate::Kind::Usage);
    }

    #[test]
    fn painting_scales_the_polygon_and_cuts_holes() {
        let square = |a: i32, b: i32| vec![[a, a], [b, a], [b, b], [a, b]];
        let polygon = Contour { outer: square(8, 40), holes: vec![square(16, 32)] };
        let bbox = Bbox { x: 8, y: 8, width: 32, height: 32 };
        let region = Region { name: String::new(), polygon, bbox };
        // One pixel is four: the outline covers 0..8, the hole's inside 3..=5.
        let mut tile = RgbImage::filled(10, 10, [7; 3]);
        region.paint_outside(&mut tile, [4, 4], 4.0);
        let row = |y: usize| {
            let pixels = tile.data.as_chunks::<3>().0[y * 10..(y + 1) * 10].iter();
            pixels.map(|p| if p[0] == 7 { '#' } else { '.' }).collect::<String>()
        };
        assert_eq!(row(0), "..........");
        assert_eq!(row(1), ".########.");
        assert_eq!(row(5), ".###...##.");
        assert_eq!(row(9), "..........");
    }
}
