//! What is written for people and other tools.
//!
//! Every file appears under its final name complete or not at all ([`atomic`]). The writers take
//! plain data (figures also those of `stats`) and know nothing of slides, graphs or the pipeline:
//!
//! | file | module | read by |
//! | --- | --- | --- |
//! | `result.json` | [`result`] | services, resume |
//! | `segmentation.json`, and part of `result.json` | [`segmentation`] | services |
//! | `attention.csv`, `predictions.csv`, `status.csv` | [`csv`] | spreadsheets, R, pandas |
//! | tile features `.h5`, `.pt` | [`h5`], [`pt`] | TRIDENT, CLAM, STAMP |
//! | `tiles.geojson` | [`geojson`] | QuPath |
//! | `nuclei.csv`, `nuclei.geojson`, `overlay.png` | [`cells`] | R, QuPath, people |
//! | `heatmap.png`, thumbnails | [`heatmap`], [`draw`], [`png`] | people |
//! | figures `.svg`, `.png` | [`plot`] | people, papers |
//! | `report.html` | [`html`] | browsers, screen readers, printers |
//!
//! [`features`] reads back feature files of the three peers, whoever made them.

pub mod atomic;
pub mod cells;
pub mod colormap;
pub mod csv;
pub mod draw;
pub mod features;
mod font;
pub mod geojson;
pub mod h5;
pub mod heatmap;
pub mod html;
pub mod plot;
pub mod png;
pub mod pt;
pub mod result;
pub mod segmentation;
