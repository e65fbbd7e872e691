//! What is written for people and other tools.
//!
//! Every file appears under its final name complete or not at all ([`atomic`]). The writers take
//! plain data and know nothing of slides, graphs or the pipeline:
//!
//! | file | module | read by |
//! | --- | --- | --- |
//! | `result.json` | [`result`] | services, resume |
//! | `attention.csv`, `predictions.csv`, `status.csv` | [`csv`] | spreadsheets, R, pandas |
//! | tile features `.h5`, `.pt` | [`h5`], [`pt`] | TRIDENT, CLAM, STAMP |
//! | `tiles.geojson` | [`geojson`] | QuPath |
//! | `heatmap.png`, thumbnails | [`heatmap`], [`draw`], [`png`] | people |
//!
//! [`features`] reads back feature files of the three peers, whoever made them.

pub mod atomic;
pub mod colormap;
pub mod csv;
pub mod draw;
pub mod features;
mod font;
pub mod geojson;
pub mod h5;
pub mod heatmap;
pub mod png;
pub mod pt;
pub mod result;
