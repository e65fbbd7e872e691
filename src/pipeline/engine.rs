//! A package readied on a backend: its encoder and its heads, each one session.

use crate::backend::{Backend, Input, Session};
use crate::error::{Context, Error, Result};
use crate::heads::{self, Head, Prediction};
use crate::models::{self, Encoder};
use crate::recipe::{BnMode, Recipe};
use crate::weights::Package;
use std::path::Path;

/// A package ready to run.
pub struct Engine {
    package: Package,
    device: String,
    encoder: Option<(Encoder, Box<dyn Session>)>,
    heads: Vec<(Head, Box<dyn Session>)>,
    batch: usize,
}

/// What one head says of one bag.
#[derive(Clone, Debug)]
pub struct BagPrediction {
    /// Logits, probabilities or value.
    pub prediction: Prediction,
    /// Raw attention scores, `[N, branches]`.
    pub scores: Vec<f32>,
}

/// Which parts of a package are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Pixels to features.
    Encoder,
    /// Features to predictions.
    Heads,
    /// Both.
    All,
}

impl Engine {
    /// Opens the package in `folder` and readies its parts for batches of up to `batch` tiles.
    ///
    /// # Errors
    /// Whatever keeps the recipe, the weights or the device from being used, naming the file.
    pub fn open(
        folder: &Path,
        backend: &dyn Backend,
        parts: Parts,
        batch: usize,
    ) -> Result<Engine> {
        let package = Package::open(folder)?;
        let recipe = &package.recipe;
        // Batch norm over the bag makes the bag the batch.
        let batch = match &recipe.bag {
            Some(bag) if recipe.encoder.bn_mode == BnMode::Batch => bag.size,
            _ => batch.max(1),
        };
        let encoder = match parts {
            Parts::Heads => None,
            Parts::Encoder | Parts::All => {
                let weights = package.encoder()?;
                let encoder = models::build(recipe, &weights)
                    .context(|| weights.path().display().to_string())?;
                let session = backend.prepare(encoder.graph.clone(), batch)?;
                Some((encoder, session))
            }
        };
        let mut loaded = Vec::new();
        if parts != Parts::Encoder {
            for spec in &recipe.heads {
                let weights = package.head(spec)?;
                let dim = encoder.as_ref().map(|(e, _)| e.feature_dim);
                let head = heads::build(spec, dim, &weights)
                    .context(|| weights.path().display().to_string())?;
                let session = backend.prepare(head.graph.clone(), 1)?;
                loaded.push((head, session));
            }
            if loaded.is_empty() {
                return Err(Error::usage(format!(
                    "{}: the package has no head: it makes features, not predictions \
                     (histokern features --package ...)",
                    folder.display()
                )));
            }
        }
        Ok(Engine { device: backend.name(), package, encoder, heads: loaded, batch })
    }

    /// The package.
    pub fn package(&self) -> &Package {
        &self.package
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.package.recipe
    }

    /// The device the sessions run on, as written into results.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Largest number of tiles in one batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The encoder, if it was loaded.
    pub fn encoder(&self) -> Option<&Encoder> {
        self.encoder.as_ref().map(|(encoder, _)| encoder)
    }

    /// The heads, if they were loaded.
    pub fn heads(&self) -> impl Iterator<Item = &Head> {
        self.heads.iter().map(|(head, _)| head)
    }

    /// `[rows, H, W, 3]` u8 to `[rows, D]` f32.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when the backend fails.
    pub fn encode(&mut self, rows: usize, pixels: &[u8], features: &mut [f32]) -> Result<()> {
        let (_, session) =
            self.encoder.as_mut().ok_or_else(|| Error::usage("no encoder loaded"))?;
        session.run(rows, &[Input::Pixels(pixels)], &mut [features])
    }

    /// Runs every head on one bag of `[n, D]` features. `clinical` holds one vector per head, empty
    /// for a head without clinical inputs.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the features have another width or a clinical input is missing.
    pub fn predict(
        &mut self,
        n: usize,
        features: &[f32],
        clinical: &[Vec<f32>],
    ) -> Result<Vec<BagPrediction>> {
        let mut out = Vec::with_capacity(self.heads.len());
        for (i, (head, session)) in self.heads.iter_mut().enumerate() {
            if features.len() != n * head.feature_dim {
                return Err(Error::usage(format!(
                    "head {}: {} features for {n} tiles, needed {} each",
                    head.name,
                    features.len(),
                    head.feature_dim
                )));
            }
            let clinical = clinical.get(i).map_or(&[][..], Vec::as_slice);
            if clinical.len() != head.clinical {
                return Err(Error::usage(format!(
                    "head {} needs {} clinical values, given {}: --clinical names their table",
                    head.name,
                    head.clinical,
                    clinical.len()
                )));
            }
            let mut inputs = vec![Input::Values(features)];
            if head.clinical > 0 {
                inputs.push(Input::Values(clinical));
            }
            let mut logits = vec![0.0; head.outputs];
            let mut scores = vec![0.0; n * head.branches];
            session.reserve(n)?;
            session.run(n, &inputs, &mut [&mut logits, &mut scores])?;
            out.push(BagPrediction { prediction: heads::predict(head, &logits)?, scores });
        }
        Ok(out)
    }
}
