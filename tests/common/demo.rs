//! The demonstration package with an edited recipe, and slides for it.

use super::synthetic_slides;
use histokern::pipeline::Job;
use histokern::slide::synthetic::SpecimenSpec;
use std::fs;
use std::path::{Path, PathBuf};

/// The demonstration package with more lines before or after some of its recipe.
pub fn package(dir: &Path, name: &str, edits: &[(&str, &str)]) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo");
    let to = dir.join(name);
    fs::create_dir(&to).unwrap();
    for file in ["encoder.safetensors", "head.safetensors"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let mut recipe = fs::read_to_string(from.join("recipe.toml")).unwrap();
    for (line, more) in edits {
        assert!(recipe.contains(line), "{line}");
        // A new section comes before the one it is placed by.
        let both = match more.starts_with('[') {
            true => format!("{more}{line}"),
            false => format!("{line}{more}"),
        };
        recipe = recipe.replacen(line, &both, 1);
    }
    fs::write(to.join("recipe.toml"), recipe).unwrap();
    to
}

/// A slide of that seed.
pub fn slide(dir: &Path, seed: u64, mpp: f64) -> Job {
    let spec = SpecimenSpec { seed, fraction: None, width: 1280, height: 1024, mpp };
    let path = dir.join(format!("{seed}.svs"));
    synthetic_slides::write(&path, &spec);
    Job { name: seed.to_string(), path, regions: None, mask: None }
}
