//! Small synthetic slides for tests of whole programs.

use histokern::slide::synthetic::layout::{self, Aperio, Pyramid};
use histokern::slide::synthetic::{Compression, Jpeg, Specimen, SpecimenSpec};
use std::path::Path;

/// Writes an Aperio SVS of two levels.
pub fn write(path: &Path, spec: &SpecimenSpec) {
    let specimen = Specimen::new(spec);
    let compression = Compression::Jpeg(Jpeg::new(80));
    let pyramid = Pyramid { steps: vec![4], tile: 128, compression, ..Pyramid::new(&specimen) };
    let extras =
        Aperio { label: None, overview: None, thumbnail: true, app_mag: Some(20.0), keys: vec![] };
    let mut bytes = std::io::Cursor::new(Vec::new());
    layout::aperio(&pyramid, &extras).write(&mut bytes).unwrap();
    std::fs::write(path, bytes.into_inner()).unwrap();
}
