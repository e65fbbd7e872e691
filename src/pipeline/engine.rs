//! A package readied on a backend: its encoder and its heads, each one session.

use crate::backend::{self, Backend, HostMemory, Input, Precision, Session};
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
    precision: Precision,
    encoder: Option<(Encoder, Box<dyn Session>)>,
    heads: Vec<(Head, Box<dyn Session>)>,
    batch: usize,
    notes: Vec<String>,
    /// The batch given to an encoder that works on one batch at a time: it runs when collected.
    waiting: Option<(usize, HostMemory)>,
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
    /// Opens the package in `folder` and readies its parts for batches of up to `batch` tiles, fewer
    /// if the device has no room for that many ([`Engine::notes`] then says so).
    ///
    /// # Errors
    /// Whatever keeps the recipe, the weights or the device from being used, naming the file.
    pub fn open(
        folder: &Path,
        backend: &dyn Backend,
        parts: Parts,
        batch: usize,
    ) -> Result<Engine> {
        let mut package = Package::open(folder)?;
        let recipe = &package.recipe;
        // Batch norm over the bag makes the bag the batch, and it is not to be cut.
        let (mut batch, whole) = match &recipe.bag {
            Some(bag) if recipe.encoder.bn_mode == BnMode::Batch => (bag.size, true),
            _ => (batch.max(1), false),
        };
        let mut notes = Vec::new();
        let encoder = match parts {
            Parts::Heads => None,
            Parts::Encoder | Parts::All => {
                let weights = package.encoder()?;
                let encoder = models::build(recipe, &weights)
                    .context(|| weights.path().display().to_string())?;
                let graph = encoder.graph.clone();
                let session = if whole {
                    backend.prepare(graph, batch)?
                } else {
                    let (session, note) = backend::prepare_fitting(backend, graph, batch)?;
                    notes.extend(note);
                    batch = session.max_rows().min(batch);
                    session
                };
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
        let (device, precision) = (backend.name(), backend.precision());
        if precision != Precision::F16 {
            // Other numbers make other features, which must not be taken for the usual ones.
            for id in [&mut package.recipe_id, &mut package.encoder_id] {
                *id = format!("{id}-{precision}");
            }
        }
        let heads = loaded;
        Ok(Engine { device, precision, package, encoder, heads, batch, notes, waiting: None })
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

    /// The numbers the sessions compute with, as written into results.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Largest number of tiles in one batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// What a user should know about how the package was readied.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The encoder, if it was loaded.
    pub fn encoder(&self) -> Option<&Encoder> {
        self.encoder.as_ref().map(|(encoder, _)| encoder)
    }

    /// The heads, if they were loaded.
    pub fn heads(&self) -> impl Iterator<Item = &Head> {
        self.heads.iter().map(|(head, _)| head)
    }

    fn encoder_session(&mut self) -> Result<(&Encoder, &mut dyn Session)> {
        let loaded = self.encoder.as_mut().ok_or_else(|| Error::usage("no encoder loaded"))?;
        Ok((&loaded.0, &mut *loaded.1))
    }

    /// `[rows, H, W, 3]` u8 to `[rows, D]` f32, while no batch is under way.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when the backend fails.
    pub fn encode(&mut self, rows: usize, pixels: &[u8], features: &mut [f32]) -> Result<()> {
        self.encoder_session()?.1.run(rows, &[Input::Pixels(pixels)], &mut [features])
    }

    /// Batches the encoder may have under way.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when no encoder was loaded.
    pub fn lanes(&mut self) -> Result<usize> {
        Ok(self.encoder_session()?.1.overlapped().map_or(1, |o| o.lanes()))
    }

    /// Memory for the pixels of one batch, of the kind the device copies from fastest.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when there is none left.
    pub fn lend(&mut self) -> Result<HostMemory> {
        let batch = self.batch;
        let (encoder, session) = self.encoder_session()?;
        let bytes = batch * 3 * encoder.input_px.iter().product::<usize>();
        match session.overlapped() {
            Some(overlapped) => overlapped.lend(bytes),
            None => Ok(Box::new(vec![0; bytes])),
        }
    }

    /// Starts to encode `rows` tiles; fewer than [`Engine::lanes`] batches are under way.
    ///
    /// # Errors
    /// As [`Engine::encode`].
    pub fn submit(&mut self, rows: usize, pixels: HostMemory) -> Result<()> {
        if let Some(overlapped) = self.encoder_session()?.1.overlapped() {
            return overlapped.submit(rows, pixels);
        }
        match self.waiting.replace((rows, pixels)) {
            None => Ok(()),
            Some(_) => Err(Error::usage("a batch is under way")),
        }
    }

    /// Waits for the oldest batch: its `[rows, D]` features and its memory.
    ///
    /// # Errors
    /// As [`Engine::encode`].
    pub fn collect(&mut self, features: &mut [f32]) -> Result<HostMemory> {
        if let Some((rows, pixels)) = self.waiting.take() {
            let (encoder, _) = self.encoder_session()?;
            let bytes = rows * 3 * encoder.input_px.iter().product::<usize>();
            self.encode(rows, &pixels[..bytes.min(pixels.len())], features)?;
            return Ok(pixels);
        }
        match self.encoder_session()?.1.overlapped() {
            Some(overlapped) => overlapped.collect(&mut [features]),
            None => Err(Error::usage("no batch is under way")),
        }
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
