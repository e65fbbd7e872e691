//! The gate of a recipe: classifiers that look at every tile before the encoder does.
//!
//! Ekholm et al. 2024 regress only tiles of invasive cancer, which an ensemble of tile classifiers
//! finds. A tile passes when the mean over the classifiers of the probability of the gate's class
//! reaches its threshold.

use crate::backend::{self, Backend, Input, Session};
use crate::error::{Context, Error, Result};
use crate::heads::{self, Head};
use crate::models::{self, Encoder};
use crate::recipe::{self, Aggregate, BnMode, Recipe, Transform};
use crate::weights::{Package, Tensors};

/// A gate ready to run.
pub struct Gate {
    /// What the recipe says of it.
    pub spec: recipe::Gate,
    networks: Vec<Network>,
}

/// A tile classifier: features, then the logits of its classes.
struct Network {
    features: Box<dyn Session>,
    width: usize,
    last: Box<dyn Session>,
    head: Head,
}

/// What a gate said of the tiles of a slide.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What was let pass.
    pub class: String,
    /// Smallest probability that passed.
    pub threshold: f64,
    /// Classifiers whose mean was taken.
    pub classifiers: usize,
    /// Grid index and probability of every tile that was looked at, in the order of the grid.
    pub tiles: Vec<(usize, f64)>,
}

impl Verdict {
    /// Whether a tile of this probability passed.
    pub fn passes(&self, probability: f64) -> bool {
        probability >= self.threshold
    }
}

/// Names of the last layer, as the heads of linear layers know them.
const LAST: [&str; 3] = ["fc.", "head.", "classifier."];

/// Builds one classifier of a recipe's gate: its encoder, and its last layer on single tiles.
///
/// # Errors
/// As [`models::build`] and [`heads::build_single`], naming the file and the tensor.
pub fn build(
    recipe: &Recipe,
    gate: &recipe::Gate,
    classifier: &recipe::Classifier,
    weights: &Tensors,
) -> Result<(Encoder, Head)> {
    let is_last = |name: &str| LAST.iter().any(|last| name.starts_with(last));
    let body = weights.renamed(|name| (!is_last(name)).then(|| name.to_string()))?;
    let last = weights.renamed(|name| is_last(name).then(|| name.to_string()))?;
    let mut own = recipe.clone();
    own.encoder = recipe::Encoder {
        family: classifier.family.clone(),
        weights: classifier.weights.clone(),
        truncate: None,
        bn_mode: BnMode::Running,
        transform_input: classifier.transform_input,
        vit: None,
    };
    own.preprocess.mean = gate.mean.unwrap_or(recipe.preprocess.mean);
    own.preprocess.std = gate.std.unwrap_or(recipe.preprocess.std);
    let encoder = models::build(&own, &body)?;
    let transform = if gate.classes.is_empty() { Transform::Sigmoid } else { Transform::None };
    let head = recipe::Head {
        name: format!("of the gate, {}", gate.class),
        family: "tile-linear".into(),
        weights: classifier.weights.clone(),
        classes: gate.classes.clone(),
        transform,
        aggregate: Some(Aggregate::Mean),
        clinical: Vec::new(),
    };
    let head = heads::build_single(&head, Some(encoder.feature_dim), &last)?;
    Ok((encoder, head))
}

impl Gate {
    /// Readies the gate of a package, if it has one, for batches of up to `batch` tiles; the texts
    /// are what a user should know.
    ///
    /// # Errors
    /// As [`build`] and [`Backend::prepare`].
    pub fn open(
        package: &Package,
        backend: &dyn Backend,
        batch: usize,
        notes: &mut Vec<String>,
    ) -> Result<Option<Gate>> {
        let Some(spec) = &package.recipe.gate else { return Ok(None) };
        let mut networks = Vec::with_capacity(spec.classifiers.len());
        for classifier in &spec.classifiers {
            let weights = package.weights(&classifier.weights)?;
            let (encoder, head) = build(&package.recipe, spec, classifier, &weights)
                .context(|| format!("gate: {}", weights.path().display()))?;
            let (features, note) = backend::prepare_fitting(backend, encoder.graph, batch)?;
            notes.extend(note);
            let last = backend.prepare(head.graph.clone(), features.max_rows())?;
            networks.push(Network { features, width: encoder.feature_dim, last, head });
        }
        Ok(Some(Gate { spec: spec.clone(), networks }))
    }

    /// The mean over the classifiers of the probability of the gate's class, one number a tile of
    /// `[rows, H, W, 3]`.
    ///
    /// # Errors
    /// [`crate::Kind::Device`] when the backend fails, [`crate::Kind::Weights`] when a classifier
    /// says what is no number.
    pub fn probabilities(&mut self, rows: usize, pixels: &[u8]) -> Result<Vec<f64>> {
        let mut sums = vec![0.0; rows];
        for network in &mut self.networks {
            let said = network.run(rows, pixels, &self.spec)?;
            sums.iter_mut().zip(said).for_each(|(sum, p)| *sum += p);
        }
        let count = self.networks.len() as f64;
        Ok(sums.into_iter().map(|sum| sum / count).collect())
    }

    /// An empty verdict of this gate.
    pub fn verdict(&self) -> Verdict {
        Verdict {
            class: self.spec.class.clone(),
            threshold: self.spec.threshold,
            classifiers: self.networks.len(),
            tiles: Vec::new(),
        }
    }
}

impl Network {
    fn run(&mut self, rows: usize, pixels: &[u8], gate: &recipe::Gate) -> Result<Vec<f64>> {
        let most = self.features.max_rows().min(self.last.max_rows()).max(1);
        let row = pixels.len() / rows.max(1);
        let class = gate.classes.iter().position(|c| *c == gate.class).unwrap_or(0);
        let mut said = Vec::with_capacity(rows);
        for pixels in pixels.chunks(most * row) {
            let n = pixels.len() / row;
            let mut features = vec![0.0; n * self.width];
            let mut logits = vec![0.0; n * self.head.outputs];
            self.features.run(n, &[Input::Pixels(pixels)], &mut [&mut features])?;
            self.last.run(n, &[Input::Values(&features)], &mut [&mut logits])?;
            for logits in logits.chunks_exact(self.head.outputs) {
                let p = heads::predict(&self.head, logits)?;
                let p = p.probabilities.get(class).copied().or(p.value);
                said.push(p.ok_or_else(|| Error::weights("a gate without an answer"))?);
            }
        }
        Ok(said)
    }
}
