//! histokern: from a whole-slide image to a prediction.
//!
//! The path of one tile, in module order: [`slide`] parses the file and decodes native tiles,
//! [`tissue`] or [`regions`] and [`tiling`] decide which squares to look at, [`image`] resamples
//! them exactly, a [`graph`] built by [`models`] and [`heads`] from [`weights`] runs on a
//! [`backend`] ([`cpu`] or [`cuda`]), [`pipeline`] joins these and [`report`] writes what came out.
//! [`picture`] reads what is no slide, such as an ultrasound image in DICOM;
//! [`stats`] judges predictions against what happened, [`stain`] and [`nuclei`] know the colours and
//! cells of H&E tissue.
//! `ARCHITECTURE.md` gives the rules that keep the modules apart.

pub mod backend;
pub mod cli;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod graph;
pub mod heads;
pub mod image;
pub mod models;
pub mod nuclei;
pub mod picture;
pub mod pipeline;
pub mod recipe;
pub mod regions;
pub mod report;
pub mod slide;
pub mod stain;
pub mod stats;
pub mod tiling;
pub mod tissue;
pub mod weights;

pub use error::{Error, Kind, Result};
