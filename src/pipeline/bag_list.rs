//! Bags of tile images given by file, as BALNMP published them: a JSON list of
//! `{"id": patient, "label": .., "patch_paths": [ten paths]}`. A patient has one or more bags.

use super::decode::encoder_input;
use super::{Engine, Features, Observer, images, predict};
use crate::error::{Context, Error, Kind, Result};
use crate::recipe::Input;
use crate::slide::{OpenOptions, Region, Slide};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Component, Path};

/// Largest bag list that is read.
const MAX_BYTES: u64 = 256 << 20;

#[derive(Deserialize)]
struct Entry {
    id: serde_json::Value,
    patch_paths: Vec<String>,
}

/// The bags of one patient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patient {
    /// As in the file.
    pub id: String,
    /// Paths relative to the folder of images, bag by bag.
    pub bags: Vec<Vec<String>>,
}

/// Reads a bag list. Patients are in the order of their first bag.
///
/// # Errors
/// Naming the file and the entry: [`crate::Kind::Malformed`] for another layout, a bag without
/// images or a path that leaves its folder; [`crate::Kind::Limit`] above 256 MiB.
pub fn read(path: &Path) -> Result<Vec<Patient>> {
    let io = |e| Error::io(path.display().to_string(), e);
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > MAX_BYTES {
        let what = format!("{}: {bytes} bytes, more than {MAX_BYTES}", path.display());
        return Err(Error::limit(what));
    }
    let text = std::fs::read_to_string(path).map_err(io)?;
    parse(&text).context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<Vec<Patient>> {
    let entries: Vec<Entry> = serde_json::from_str(text)
        .map_err(|e| Error::malformed(format!("not a list of bags: {e}")).caused_by(e))?;
    let mut order: BTreeMap<String, usize> = BTreeMap::new();
    let mut patients: Vec<Patient> = Vec::new();
    for (n, entry) in entries.into_iter().enumerate() {
        let id = match &entry.id {
            serde_json::Value::String(id) => id.clone(),
            other => other.to_string(),
        };
        let plain = !id.is_empty() && !id.contains(['/', '\\', '\0']) && !id.starts_with('.');
        if !plain {
            return Err(Error::malformed(format!("entry {n}: id {id:?} cannot name a folder")));
        }
        if entry.patch_paths.is_empty() {
            return Err(Error::malformed(format!("entry {n}: no patch_paths")));
        }
        for path in &entry.patch_paths {
            if !Path::new(path).components().all(|c| matches!(c, Component::Normal(_))) {
                return Err(Error::malformed(format!(
                    "entry {n}: {path:?} is not a path below the folder of images"
                )));
            }
        }
        let at = *order.entry(id.clone()).or_insert_with(|| {
            patients.push(Patient { id, bags: Vec::new() });
            patients.len() - 1
        });
        patients[at].bags.push(entry.patch_paths);
    }
    Ok(patients)
}

/// A patient's encoded images.
pub struct Encoded {
    /// `[images, D]`, in the order of the bags.
    pub features: Features,
    /// Rows of `features` per bag.
    pub bags: Vec<Vec<usize>>,
}

/// Encodes the images of a patient bag by bag.
///
/// # Errors
/// Naming the image that cannot be read or does not suit the recipe; [`crate::Kind::Usage`] when a
/// bag is not of the recipe's size.
pub fn encode(engine: &mut Engine, patient: &Patient, images: &Path) -> Result<Encoded> {
    if engine.gate().is_some() {
        let what = "bags of images hold the tiles they hold: a package with a gate is for slides";
        return Err(Error::usage(what));
    }
    let width = engine.feature_dim();
    let (mut features, mut bags) = (Vec::new(), Vec::with_capacity(patient.bags.len()));
    for paths in &patient.bags {
        if let Some(bag) = engine.recipe().bag.as_ref().filter(|b| b.size != paths.len()) {
            return Err(Error::new(
                Kind::Usage,
                format!("a bag of {} images, the recipe's are of {}", paths.len(), bag.size),
            ));
        }
        let first = features.len() / width.max(1);
        for batch in paths.chunks(engine.batch()) {
            let mut pixels = Vec::new();
            for path in batch {
                let path = images.join(path);
                pixels.extend(load(&path, engine).context(|| path.display().to_string())?);
            }
            let from = features.len();
            features.resize(from + batch.len() * width, 0.0);
            engine.encode(batch.len(), &pixels, &mut features[from..])?;
        }
        bags.push((first..first + paths.len()).collect());
    }
    Ok(Encoded { features: Features::host(width, features), bags })
}

/// One picture from disk as the encoder takes it.
///
/// # Errors
/// What opening the picture returns; [`crate::Kind::Usage`] when its size does not suit the recipe.
pub fn load(path: &Path, engine: &Engine) -> Result<Vec<u8>> {
    let slide = Slide::open(path, &OpenOptions::default())?;
    let level = &slide.levels()[0];
    let region = Region { x: 0, y: 0, level: 0, width: level.width, height: level.height };
    let image = slide.read_region(&region)?.image;
    match engine.recipe().input()? {
        Input::Slide(_) => encoder_input(&image, engine.recipe()),
        Input::Picture(_) => images::encoder_input(&image, engine.recipe()),
    }
}

/// As [`predict::predict`] over a patient's bags.
///
/// # Errors
/// As [`encode`] and [`predict::predict`].
pub fn predict_patient(
    engine: &mut Engine,
    patient: &Patient,
    images: &Path,
    clinical: &[Vec<f32>],
    observer: &dyn Observer,
) -> Result<(Encoded, Vec<predict::HeadResult>)> {
    let Encoded { mut features, bags } = encode(engine, patient, images)?;
    let heads = predict::predict(engine, &mut features, &bags, clinical, observer)?;
    Ok((Encoded { features, bags }, heads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bags_are_grouped_by_patient_in_order() {
        let patients = parse(
            r#"[{"id": "7", "label": "0", "patch_paths": ["a/1.jpg", "a/2.jpg"]},
                {"id": 3, "label": 1, "patch_paths": ["b/1.jpg"]},
                {"id": "7", "label": "0", "patch_paths": ["a/3.jpg"]}]"#,
        )
        .unwrap();
        let ids: Vec<&str> = patients.iter().map(|p| p.id.as_str()).collect();
        assert_eq!(ids, ["7", "3"]);
        assert_eq!(patients[0].bags, [vec!["a/1.jpg", "a/2.jpg"], vec!["a/3.jpg"]]);
    }

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        for (text, word) in [
            (r#"[{"id": "7", "patch_paths": ["../x.jpg"]}]"#, "../x.jpg"),
            (r#"[{"id": "7", "patch_paths": ["/etc/x.jpg"]}]"#, "entry 0"),
            (r#"[{"id": "../7", "patch_paths": ["x.jpg"]}]"#, "id"),
            (r#"[{"id": "7", "patch_paths": []}]"#, "no patch_paths"),
            (r#"{"id": "7"}"#, "not a list"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
