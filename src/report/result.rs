//! `result.json`: what was predicted, from what, by what, and how.
//!
//! Keys keep the order of the structs. No absolute path and nothing of a slide's label is in it.

use super::atomic;
use super::segmentation::Segmentation;
use crate::error::{Context, Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Version of this file's layout.
pub const SCHEMA: u32 = 1;
/// Largest `result.json` read back.
const MAX_BYTES: u64 = 256 << 20;

/// The result of one slide.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct SlideResult {
    /// [`SCHEMA`].
    pub schema: u32,
    /// This program.
    pub program: Program,
    /// The slide.
    pub slide: Slide,
    /// The recipe and weights.
    pub package: Package,
    /// What computed it.
    pub device: Device,
    /// Number type of weights and activations: `f16`, `f32`.
    pub precision: String,
    /// Every option that can change a result, by its name on the command line.
    pub options: BTreeMap<String, serde_json::Value>,
    /// Which squares were looked at.
    pub tiles: Tiles,
    /// What was looked at: `2 tissue contours`, `3 annotated regions`, `whole slide`.
    pub regions: String,
    /// What the gate of the recipe let pass; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// What was done to the colours of the tiles: the method, what was fitted on the slide and the
    /// target. Absent when nothing was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stain: Option<serde_json::Value>,
    /// What was found in a picture and what of it was looked at. Absent for slides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<Segmentation>,
    /// Clinical inputs used, by column.
    pub clinical: BTreeMap<String, String>,
    /// One entry a head.
    pub predictions: Vec<Prediction>,
    /// What a reader should know before trusting it.
    pub warnings: Vec<String>,
    /// Wall-clock times.
    pub seconds: Seconds,
}

/// A program and its version.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Program {
    /// `histokern`.
    pub name: String,
    /// Of the crate.
    pub version: String,
}

impl Program {
    /// This build.
    pub fn this() -> Self {
        Program {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// The slide a result belongs to.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Slide {
    /// File name without folder.
    pub name: String,
    /// Of the file's bytes, 64 hexadecimal digits.
    pub sha256: String,
    /// `aperio-svs`, `generic-tiff`, ...
    pub format: String,
    /// Level-0 pixels.
    pub width: u64,
    /// Level-0 pixels.
    pub height: u64,
    /// Micrometres per level-0 pixel, when known.
    pub mpp: Option<Mpp>,
    /// Objective magnification, when known.
    pub objective_power: Option<f64>,
}

/// Micrometres per level-0 pixel.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Mpp {
    /// Horizontal.
    pub x: f64,
    /// Vertical.
    pub y: f64,
    /// Where it came from.
    pub source: String,
}

/// The recipe and weights a result was made with.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Package {
    /// Name in the recipe.
    pub name: String,
    /// Identity of recipe and weights together.
    pub recipe_id: String,
    /// What the recipe wants said with every result.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub notice: String,
    /// The packages of an ensemble, in the order given; `recipe_id` is then that of all together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Member>,
}

/// One package of an ensemble.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Member {
    /// Name in the recipe.
    pub name: String,
    /// Identity of recipe and weights together.
    pub recipe_id: String,
}

/// What a gate did.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Gate {
    /// What was let pass.
    pub class: String,
    /// Smallest probability that passed.
    pub threshold: f64,
    /// Tile classifiers whose mean was taken.
    pub classifiers: u64,
    /// Tiles that were looked at.
    pub looked_at: u64,
    /// Tiles that passed.
    pub passed: u64,
    /// Largest probability there was.
    pub highest: Option<f64>,
}

/// What computed a result.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Device {
    /// `cpu`, `cuda`.
    pub kind: String,
    /// In words: model and instruction set.
    pub name: String,
}

/// Which squares were looked at.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Tiles {
    /// Side of a tile in level-0 pixels, when tiles were cut from a slide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_level0: Option<f64>,
    /// Positions on the grid.
    pub grid: u64,
    /// Tiles that reached the encoder.
    pub kept: u64,
    /// Tiles left out, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Tiles whose pixels could not be read.
    pub unread: Vec<UnreadTile>,
}

/// A tile whose pixels could not be read.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct UnreadTile {
    /// Left edge in level-0 pixels.
    pub x: i64,
    /// Top edge in level-0 pixels.
    pub y: i64,
    /// Why.
    pub reason: String,
}

/// What one head said.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Prediction {
    /// Head name.
    pub head: String,
    /// Outputs before the last activation, `[C]` or `[1]`.
    pub logits: Vec<f32>,
    /// The answer.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The same for every bag, where a slide has several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bags: Vec<BagPrediction>,
    /// How far the packages of an ensemble agree; the answer is their mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ensemble: Option<Ensemble>,
}

/// How far the packages of an ensemble agree on one head. Lists have one number a class, in the order
/// of the classes, or one number for a regression.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Ensemble {
    /// Sample standard deviation.
    pub sd: Vec<f64>,
    /// Smallest.
    pub min: Vec<f64>,
    /// Largest.
    pub max: Vec<f64>,
    /// What each package said, in the order given.
    pub members: Vec<MemberPrediction>,
}

/// What one package of an ensemble said.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct MemberPrediction {
    /// `[C]` or `[1]`.
    pub logits: Vec<f32>,
    /// The answer.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Outcome {
    /// Probabilities, or the one value.
    pub fn numbers(&self) -> &[f64] {
        match self {
            Outcome::Classes { probabilities, .. } => probabilities,
            Outcome::Value { value } => std::slice::from_ref(value),
        }
    }
}

/// The answer of a head.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(untagged)]
pub enum Outcome {
    /// Of a classification.
    Classes {
        /// Names in the order of the logits.
        classes: Vec<String>,
        /// `[C]`, in the same order.
        probabilities: Vec<f64>,
    },
    /// Of a regression.
    Value {
        /// In the recipe's unit.
        value: f64,
    },
}

/// What a head said of one bag.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct BagPrediction {
    /// Tiles in the bag.
    pub tiles: u64,
    /// `[C]`.
    pub logits: Vec<f32>,
    /// The answer.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Wall-clock seconds of each stage; stages overlap, so they need not add up to `total`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq)]
pub struct Seconds {
    /// Hashing the file; for a feature file reading it.
    pub hash: f64,
    /// Opening the slide, finding tissue and tiles.
    pub prepare: f64,
    /// Reading, decoding and resampling tiles.
    pub decode: f64,
    /// From pixels to features.
    pub encode: f64,
    /// From features to predictions.
    pub head: f64,
    /// Writing files.
    pub write: f64,
    /// From start to end.
    pub total: f64,
}

impl SlideResult {
    /// Whether a run with the settings of `other` would give this very result: same program
    /// version, slide bytes, recipe, device kind, precision, clinical inputs and options, which hold
    /// the hash of a regions file.
    pub fn same_run(&self, other: &SlideResult) -> bool {
        self.schema == other.schema
            && self.program == other.program
            && self.slide.sha256 == other.slide.sha256
            && self.package.recipe_id == other.package.recipe_id
            && self.device.kind == other.device.kind
            && self.precision == other.precision
            && self.clinical == other.clinical
            && self.options == other.options
    }

    /// Writes the result, indented.
    ///
    /// # Errors
    /// Naming the file; [`crate::Kind::Malformed`] for a prediction that is not a finite number.
    pub fn write(&self, path: &Path) -> Result<()> {
        self.check().context(|| path.display().to_string())?;
        atomic::write(path, |w| {
            serde_json::to_writer_pretty(&mut *w, self)
                .map_err(|e| Error::io("cannot write", e.into()))?;
            std::io::Write::write_all(w, b"\n").map_err(|e| Error::io("cannot write", e))
        })
    }

    /// JSON has no NaN: it would be read back as a missing value.
    fn check(&self) -> Result<()> {
        let finite = |logits: &[f32], outcome: &Outcome| {
            logits.iter().all(|v| v.is_finite()) && outcome.numbers().iter().all(|v| v.is_finite())
        };
        for p in &self.predictions {
            let bags = p.bags.iter().all(|b| finite(&b.logits, &b.outcome));
            let mut members = p.ensemble.iter().flat_map(|e| &e.members);
            let members = members.all(|m| finite(&m.logits, &m.outcome));
            if !bags || !members || !finite(&p.logits, &p.outcome) {
                let what = format!("the prediction of head {} is not a finite number", p.head);
                return Err(Error::malformed(what));
            }
        }
        Ok(())
    }

    /// Reads a result written by [`SlideResult::write`].
    ///
    /// # Errors
    /// Naming the file: [`crate::Kind::Io`], or [`crate::Kind::Malformed`] with line and column.
    pub fn read(path: &Path) -> Result<SlideResult> {
        let read = || {
            let file = File::open(path).map_err(|e| Error::io("cannot open", e))?;
            let mut text = String::new();
            file.take(MAX_BYTES + 1)
                .read_to_string(&mut text)
                .map_err(|e| Error::io("cannot read", e))?;
            if text.len() as u64 > MAX_BYTES {
                return Err(Error::limit(format!("more than {MAX_BYTES} bytes")));
            }
            serde_json::from_str(&text).map_err(|e| Error::malformed(e.to_string()).caused_by(e))
        };
        read().context(|| path.display().to_string())
    }
}

/// SHA-256 of a file's bytes as 64 hexadecimal digits.
///
/// # Errors
/// [`crate::Kind::Io`] naming the file.
pub fn sha256_file(path: &Path) -> Result<String> {
    let hash = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => hasher.update(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(format!("{:x}", hasher.finalize()))
    };
    hash().map_err(|e| Error::io(path.display().to_string(), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SlideResult {
        SlideResult {
            schema: SCHEMA,
            program: Program::this(),
            slide: Slide {
                name: "a.svs".into(),
                sha256: "00".repeat(32),
                format: "aperio-svs".into(),
                width: 46_000,
                height: 32_914,
                mpp: Some(Mpp { x: 0.499, y: 0.499, source: "ImageDescription".into() }),
                objective_power: Some(20.0),
            },
            package: Package {
                name: "demo".into(),
                recipe_id: "demo@01".into(),
                notice: "not for diagnosis".into(),
                members: Vec::new(),
            },
            device: Device { kind: "cpu".into(), name: "AVX2".into() },
            precision: "f16".into(),
            options: BTreeMap::from([("stride".into(), 256.into())]),
            tiles: Tiles {
                size_level0: Some(256.0),
                grid: 12,
                kept: 9,
                dropped: BTreeMap::from([("white".into(), 2)]),
                unread: vec![UnreadTile { x: 512, y: 0, reason: "JPEG cut short".into() }],
            },
            regions: "tissue".into(),
            gate: None,
            stain: Some(serde_json::json!({ "method": "macenko" })),
            segmentation: None,
            clinical: BTreeMap::new(),
            predictions: vec![
                Prediction {
                    head: "metastasis".into(),
                    logits: vec![-0.1, 0.1],
                    outcome: Outcome::Classes {
                        classes: vec!["N0".into(), "N+".into()],
                        probabilities: vec![0.45, 0.55],
                    },
                    bags: Vec::new(),
                    ensemble: None,
                },
                Prediction {
                    head: "MKI67".into(),
                    logits: vec![1.1],
                    outcome: Outcome::Value { value: 3.0 },
                    bags: Vec::new(),
                    ensemble: None,
                },
            ],
            warnings: Vec::new(),
            seconds: Seconds::default(),
        }
    }

    #[test]
    fn reads_back_and_keeps_the_order_of_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        let result = sample();
        result.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(SlideResult::read(&path).unwrap(), result);
        let keys = ["schema", "program", "slide", "package", "device", "precision", "options"];
        let places = keys.map(|k| text.find(&format!("\n  \"{k}\": ")).unwrap());
        assert!(places.is_sorted(), "{text}");
        assert!(text.contains("\"logits\": [\n        -0.1,\n        0.1\n"), "{text}");
        assert!(text.ends_with("}\n"));
    }

    #[test]
    fn a_run_is_the_same_unless_something_that_decides_it_changed() {
        let a = sample();
        let mut timed = a.clone();
        timed.seconds.total = 9.0;
        timed.slide.name = "renamed.svs".into();
        assert!(a.same_run(&timed));
        let changes: [fn(&mut SlideResult); 7] = [
            |r| r.program.version.push('x'),
            |r| r.slide.sha256.replace_range(..1, "f"),
            |r| r.package.recipe_id.push('x'),
            |r| r.device.kind = "cuda".into(),
            |r| r.precision = "f32".into(),
            |r| drop(r.clinical.insert("age".into(), "61".into())),
            |r| drop(r.options.insert("stride".into(), 128.into())),
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut other = a.clone();
            change(&mut other);
            assert!(!a.same_run(&other), "change {i}");
        }
    }

    #[test]
    fn a_number_that_is_none_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        let mut result = sample();
        result.predictions[1].outcome = Outcome::Value { value: f64::NAN };
        let error = result.write(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("result.json: the prediction of head MKI67 is not a finite number")
        );
        assert!(!path.exists());
        std::fs::write(&path, "{\n\"schema\": 1,\n\"program\": 3}").unwrap();
        let error = SlideResult::read(&path).unwrap_err().to_string();
        assert!(error.contains("result.json: ") && error.contains("line 3"), "{error}");
    }

    #[test]
    fn sha256_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"abc").unwrap(); // FIPS 180-2, B.1
        assert_eq!(
            sha256_file(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        std::fs::write(&path, vec![b'a'; 1_000_000]).unwrap(); // FIPS 180-2, B.3
        assert_eq!(
            sha256_file(&path).unwrap(),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
        );
        let error = sha256_file(&folder.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
    }
}
