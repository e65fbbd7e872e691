//! What `histokern nuclei` writes: a row per nucleus, a row per tile, groups compared by tiles.

use super::tile_list::TileList;
use crate::error::Result;
use crate::nuclei::{Parameters, Shape};
use crate::pipeline::nuclei::{ASSUMED_MPP, Nucleus, TileNuclei};
use crate::report::atomic;
use crate::report::cells::{self, Cell, Field, Panel};
use crate::stats::LEVEL;
use crate::stats::compare::{hedges_g, mann_whitney, welch};
use serde_json::{Value, json};
use std::path::Path;

/// Pictures on the overlay sheet.
const PICTURES: usize = 16;

/// A tile, or why it could not be read.
pub type Measured = Result<TileNuclei>;

/// A property of a nucleus.
struct Feature {
    name: &'static str,
    /// Name in QuPath.
    label: &'static str,
    /// How often it scales with the pixel size.
    power: i32,
    get: fn(&Shape) -> Option<f64>,
}

const FEATURES: [Feature; 9] = [
    Feature { name: "area", label: "Area", power: 2, get: |s| Some(s.area as f64) },
    Feature { name: "perimeter", label: "Perimeter", power: 1, get: |s| Some(s.perimeter) },
    Feature { name: "circularity", label: "Circularity", power: 0, get: Shape::circularity },
    Feature { name: "major_axis", label: "Major axis", power: 1, get: |s| Some(s.axes[0]) },
    Feature { name: "minor_axis", label: "Minor axis", power: 1, get: |s| Some(s.axes[1]) },
    Feature {
        name: "orientation_deg",
        label: "Orientation deg",
        power: 0,
        get: |s| Some(s.orientation.to_degrees()),
    },
    Feature {
        name: "eccentricity",
        label: "Eccentricity",
        power: 0,
        get: |s| Some(s.eccentricity),
    },
    Feature { name: "solidity", label: "Solidity", power: 0, get: |s| Some(s.solidity()) },
    Feature {
        name: "haematoxylin_od",
        label: "Haematoxylin OD mean",
        power: 0,
        get: |s| Some(s.intensity),
    },
];

/// Everything about one run.
pub struct Report<'a> {
    /// File name.
    pub slide: String,
    /// Of its bytes.
    pub sha256: String,
    /// Micrometres per pixel of the level read; without it lengths are in those pixels.
    pub mpp: Option<f64>,
    /// Level read.
    pub level: usize,
    /// Level-0 pixels per pixel of it.
    pub downsample: f64,
    /// Colours of the stains.
    pub stain: Value,
    /// 99th percentile of haematoxylin.
    pub strong: f64,
    /// Of the segmentation.
    pub parameters: Parameters,
    /// Tiles chosen.
    pub list: &'a TileList,
    /// The same tiles measured.
    pub tiles: &'a [Measured],
    /// From opening the slide.
    pub warnings: Vec<String>,
}

/// Indices of the tiles shown on the sheet: the first of every group.
pub fn pictured(list: &TileList) -> Vec<usize> {
    let groups: Vec<&str> = ["top", "rest", "sample"]
        .into_iter()
        .filter(|g| list.tiles.iter().any(|t| t.group == *g))
        .collect();
    let each = PICTURES / groups.len().max(1);
    let of = |group| (0..list.tiles.len()).filter(move |&i| list.tiles[i].group == group);
    groups.into_iter().flat_map(|group| of(group).take(each)).collect()
}

/// Per-tile columns after the count: density, then a mean of every feature, then alignment.
fn columns(unit: &str, density: &str) -> Vec<String> {
    let mean = |f: &Feature| format!("mean_{}", feature_name(f, unit));
    let mut names = vec![density.to_owned()];
    names.extend(FEATURES.iter().map(mean));
    names.push("alignment".into());
    names
}

fn feature_name(feature: &Feature, unit: &str) -> String {
    match feature.power {
        0 => feature.name.into(),
        1 => format!("{}_{unit}", feature.name),
        power => format!("{}_{unit}{power}", feature.name),
    }
}

impl Report<'_> {
    fn unit(&self) -> &'static str {
        if self.mpp.is_some() { "um" } else { "px" }
    }

    fn value(&self, feature: &Feature, shape: &Shape) -> Option<f64> {
        (feature.get)(shape).map(|v| v * self.mpp.unwrap_or(1.0).powi(feature.power))
    }

    fn density(&self) -> &'static str {
        if self.mpp.is_some() { "nuclei_per_mm2" } else { "nuclei_per_megapixel" }
    }

    /// One value per column of [`columns`]. A tile without nuclei has a density only.
    fn values(&self, tile: &TileNuclei) -> Vec<Option<f64>> {
        // Level-0 pixels to square millimetres, or to a million pixels of the level read.
        let scale = self.mpp.unwrap_or(1.0) / self.downsample;
        let area = tile.area * scale * scale / 1e6;
        let n = tile.nuclei.len() as f64;
        let mut values = vec![(area > 0.0).then(|| n / area)];
        for feature in &FEATURES {
            let all: Vec<f64> =
                tile.nuclei.iter().filter_map(|c| self.value(feature, &c.shape)).collect();
            values.push((!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64));
        }
        values.push(alignment(&tile.nuclei));
        values
    }

    /// Writes all files and returns what stands in `comparison.json`.
    ///
    /// # Errors
    /// Naming the file.
    pub fn write(&self, out: &Path) -> Result<Value> {
        self.write_nuclei(&out.join("nuclei.csv"))?;
        self.write_tiles(&out.join("tiles.csv"))?;
        self.write_geojson(&out.join("nuclei.geojson"))?;
        self.write_sheet(&out.join("overlay.png"))?;
        let summary = self.summary()?;
        atomic::write_bytes(&out.join("comparison.json"), format!("{summary:#}\n").as_bytes())?;
        Ok(summary)
    }

    fn nuclei(&self) -> impl Iterator<Item = (usize, &Nucleus)> {
        let tiles = self.tiles.iter().enumerate();
        tiles.flat_map(|(i, tile)| {
            tile.iter().flat_map(move |t| t.nuclei.iter().map(move |n| (i, n)))
        })
    }

    fn write_nuclei(&self, path: &Path) -> Result<()> {
        let mut header = ["tile", "x", "y"].map(String::from).to_vec();
        header.extend(FEATURES.iter().map(|f| feature_name(f, self.unit())));
        let rows = self.nuclei().map(|(tile, nucleus)| {
            let mut row = vec![Field::Number(Some(tile as f64))];
            row.extend(nucleus.center.map(|v| Field::Number(Some(v))));
            row.extend(FEATURES.iter().map(|f| Field::Number(self.value(f, &nucleus.shape))));
            row
        });
        cells::write_table(path, &header, rows)
    }

    fn write_tiles(&self, path: &Path) -> Result<()> {
        let first = ["tile", "x", "y", "group", "score", "nuclei"];
        let mut header: Vec<String> = first.map(String::from).to_vec();
        let columns = columns(self.unit(), self.density());
        let last = ["ink", "missing", "error"];
        let empty = columns.len();
        header.extend(columns);
        header.extend(last.map(String::from));
        let rows =
            self.list.tiles.iter().zip(self.tiles).enumerate().map(|(i, (tile, measured))| {
                let count = measured.as_ref().ok().map(|t| t.nuclei.len() as f64);
                let values =
                    measured.as_ref().map_or_else(|_| vec![None; empty], |t| self.values(t));
                let mut row = vec![Field::Number(Some(i as f64))];
                row.extend(tile.origin.map(|v| Field::Number(Some(v as f64))));
                row.push(Field::Text(tile.group.into()));
                row.extend([tile.score, count].map(Field::Number));
                row.extend(values.into_iter().map(Field::Number));
                row.push(Field::Number(measured.as_ref().ok().map(|t| t.ink)));
                let missing = measured.as_ref().is_ok_and(|t| t.missing);
                row.push(Field::Text(missing.to_string()));
                row.push(Field::Text(
                    measured.as_ref().err().map_or(String::new(), |e| e.to_string()),
                ));
                row
            });
        cells::write_table(path, &header, rows)
    }

    fn write_geojson(&self, path: &Path) -> Result<()> {
        let unit = if self.mpp.is_some() { "um" } else { "px" };
        let name = |f: &Feature| match f.power {
            0 => format!("Nucleus: {}", f.label),
            1 => format!("Nucleus: {} {unit}", f.label),
            power => format!("Nucleus: {} {unit}^{power}", f.label),
        };
        let names: Vec<String> = FEATURES.iter().map(name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let cell = |(_, n): (usize, &Nucleus)| Cell {
            outline: n.outline.clone(),
            values: FEATURES.iter().map(|f| self.value(f, &n.shape)).collect(),
        };
        let cells: Vec<Cell> = self.nuclei().map(cell).collect();
        cells::write_geojson(path, &self.sha256, &names, &cells)
    }

    fn write_sheet(&self, path: &Path) -> Result<()> {
        let panel = |i: usize| {
            let tile = self.tiles[i].as_ref().ok()?;
            let (image, corner) = &tile.picture;
            let place = |p: &[f64; 2]| [0, 1].map(|k| (p[k] - corner[k]) / self.downsample);
            let [x, y] = self.list.tiles[i].origin;
            Some(Panel {
                caption: format!(
                    "{} {x} {y}: {} nuclei",
                    self.list.tiles[i].group,
                    tile.nuclei.len()
                ),
                image: image.clone(),
                outlines: tile
                    .nuclei
                    .iter()
                    .map(|n| n.outline.iter().map(place).collect())
                    .collect(),
            })
        };
        let panels: Vec<Panel> = pictured(self.list).into_iter().filter_map(panel).collect();
        if panels.is_empty() { Ok(()) } else { cells::write_sheet(path, &panels) }
    }

    fn summary(&self) -> Result<Value> {
        let names: Vec<&str> = ["top", "rest", "sample"]
            .into_iter()
            .filter(|g| self.list.tiles.iter().any(|t| t.group == *g))
            .collect();
        let groups: Vec<Vec<Vec<Option<f64>>>> =
            names.iter().map(|name| self.of(name).map(|t| self.values(t)).collect()).collect();
        let columns = columns(self.unit(), self.density());
        let mut features = serde_json::Map::new();
        for (i, column) in columns.iter().enumerate() {
            let values: Vec<Vec<f64>> =
                groups.iter().map(|g| g.iter().filter_map(|row| row[i]).collect()).collect();
            let mut entry = serde_json::Map::new();
            for (name, values) in names.iter().zip(&values) {
                entry.insert((*name).into(), describe(values));
            }
            if let [top, rest] = &values[..] {
                // Groups that are empty or do not vary have no test; values are finite.
                entry.insert("mann_whitney".into(), json!(mann_whitney(top, rest).ok()));
                entry.insert("welch".into(), json!(welch(top, rest, LEVEL).ok()));
                entry.insert("hedges_g".into(), json!(hedges_g(top, rest)));
            }
            features.insert(column.clone(), entry.into());
        }
        let group = |name: &&str| {
            let nuclei: usize = self.of(name).map(|t| t.nuclei.len()).sum();
            let counts = json!({
                "tiles": self.of(name).count(),
                "tiles_without_nuclei": self.of(name).filter(|t| t.nuclei.is_empty()).count(),
                "nuclei": nuclei,
            });
            ((*name).to_owned(), counts)
        };
        Ok(json!({
            "schema": 1,
            "program": crate::report::result::Program::this(),
            "slide": { "name": self.slide, "sha256": self.sha256 },
            "level": self.level,
            "mpp": self.mpp,
            "unit": self.unit(),
            "stain": self.stain,
            "haematoxylin_p99": self.strong,
            "parameters": self.parameters,
            "tile_side_level0": self.list.side,
            "tiles_available": self.list.available,
            "groups": names.iter().map(group).collect::<serde_json::Map<_, _>>(),
            "unit_of_comparison": "tile; p-values two-sided, not adjusted for the number of features",
            "features": features,
            "warnings": self.warnings(),
        }))
    }

    fn of(&self, group: &str) -> impl Iterator<Item = &TileNuclei> {
        let tiles = self.list.tiles.iter().zip(self.tiles);
        tiles.filter(move |(t, _)| t.group == group).filter_map(|(_, m)| m.as_ref().ok())
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = [&self.warnings[..], &self.list.notes].concat();
        if self.mpp.is_none() {
            warnings.push(format!(
                "the slide does not state its pixel size: nuclei are looked for as if a pixel were \
                 {ASSUMED_MPP} um, and lengths are in pixels; --mpp-override states it"
            ));
        }
        let count = |what: fn(&Measured) -> bool| self.tiles.iter().filter(|t| what(t)).count();
        for (n, what) in [
            (
                count(|t| t.is_err()),
                "could not be read and are left out: column error of tiles.csv",
            ),
            (
                count(|t| t.as_ref().is_ok_and(|t| t.ink > 0.05)),
                "show marker ink, under which nuclei cannot be told: column ink of tiles.csv",
            ),
            (
                count(|t| t.as_ref().is_ok_and(|t| t.missing)),
                "touch areas for which the slide holds no data",
            ),
        ] {
            if n > 0 {
                warnings.push(format!("{n} tiles {what}"));
            }
        }
        warnings
    }

    /// Prints what a person wants to know first.
    pub fn print(&self, summary: &Value) {
        println!(
            "{}: {} of {} tiles of {:.0} level-0 px, {} nuclei",
            self.slide,
            self.list.tiles.len(),
            self.list.available,
            self.list.side,
            self.nuclei().count()
        );
        for (name, entry) in summary["features"].as_object().into_iter().flatten() {
            let mean =
                |group: &str| entry[group]["mean"].as_f64().map(|m| format!("{group} {m:.4}"));
            let means: Vec<String> =
                ["top", "rest", "sample"].into_iter().filter_map(mean).collect();
            let test = &entry["mann_whitney"];
            let p = match (test["p"].as_f64(), test["rank_biserial"].as_f64()) {
                (Some(p), Some(r)) => format!("  Mann-Whitney p {p:.2e}, rank-biserial {r:+.3}"),
                _ => String::new(),
            };
            println!("  {name:<24} {}{p}", means.join("  "));
        }
        for warning in self.warnings() {
            println!("  note: {warning}");
        }
    }
}

fn describe(values: &[f64]) -> Value {
    let n = values.len() as f64;
    let mean = (n > 0.0).then(|| values.iter().sum::<f64>() / n);
    let sd = mean
        .filter(|_| n > 1.0)
        .map(|mean| (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt());
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = crate::stats::quantile_sorted(&sorted, 0.5);
    json!({ "tiles": values.len(), "mean": mean, "sd": sd, "median": median })
}

/// How much the nuclei of a tile point one way, 0 to 1: the length of the mean of unit vectors at
/// twice the orientation, each weighted by eccentricity squared, since a round nucleus points
/// nowhere. None without an elongated nucleus.
fn alignment(nuclei: &[Nucleus]) -> Option<f64> {
    let (mut x, mut y, mut total) = (0.0, 0.0, 0.0);
    for shape in nuclei.iter().map(|n| &n.shape) {
        let weight = shape.eccentricity * shape.eccentricity;
        let (sin, cos) = (2.0 * shape.orientation).sin_cos();
        x += weight * cos;
        y += weight * sin;
        total += weight;
    }
    (total > 0.0).then(|| f64::hypot(x, y) / total)
}
