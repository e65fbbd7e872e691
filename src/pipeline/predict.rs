//! From the features of a slide to what its heads say: bag by bag, then the mean over bags.

use super::{BagPrediction, Engine, Event, Features, Observer, ensemble};
use crate::error::{Error, Kind, Result};
use crate::heads::{self, Scores, clinical::Table};

/// What one head says of a slide.
#[derive(Clone, Debug)]
pub struct HeadResult {
    /// Name of the head.
    pub head: String,
    /// Class names in the order of the logits; empty for a regression.
    pub classes: Vec<String>,
    /// What `scores` are.
    pub kind: Scores,
    /// Score columns: attention branches, or one a class.
    pub branches: usize,
    /// Mean over bags of the logits.
    pub logits: Vec<f32>,
    /// Mean over bags of the probabilities; empty for a regression.
    pub probabilities: Vec<f64>,
    /// Mean over bags of the value of a regression.
    pub value: Option<f64>,
    /// One prediction per bag.
    pub bags: Vec<heads::Prediction>,
    /// Raw attention, or predictions of single tiles, `[tiles, branches]`; not a number for a tile
    /// that is in no bag.
    pub scores: Vec<f32>,
    /// Softmax of raw attention within its bag, likewise; empty for predictions.
    pub attention: Vec<f32>,
    /// What each package of an ensemble said of the slide, whose mean the rest is; empty for one.
    pub members: Vec<heads::Prediction>,
}

/// Clinical vectors of one patient from a table of raw cells: one per head of the first package, then
/// of the next.
///
/// # Errors
/// Naming patient and column: a head needs values and there is no table, or a cell is missing.
pub fn clinical(engine: &Engine, table: Option<&Table>, patient: &str) -> Result<Vec<Vec<f32>>> {
    let heads = engine.packages().map(|p| &p.recipe);
    heads
        .flat_map(|recipe| recipe.heads.iter().map(move |head| (recipe, head)))
        .map(|(recipe, head)| match (head.clinical.is_empty(), table) {
            (true, _) => Ok(Vec::new()),
            (false, Some(table)) => table.vector(patient, &head.clinical),
            (false, None) => Err(Error::usage(format!(
                "head {} of {} needs clinical values: --clinical FILE.csv",
                head.name, recipe.name
            ))),
        })
        .collect()
}

/// Asks heads about features. Those on a machine whose memory the heads need are brought to the host,
/// and the heads asked again.
///
/// # Errors
/// What `ask` returns, or as [`Features::bring`].
pub fn with_room<T>(
    engine: &mut Engine,
    features: &mut Features,
    observer: &dyn Observer,
    ask: impl Fn(&mut Engine, &Features) -> Result<T>,
) -> Result<T> {
    match ask(engine, features) {
        Err(error) if error.kind() == Kind::Limit && features.are_kept() => {
            features.bring()?;
            engine.keep_no_more();
            let what = format!("features go over the host from now on: {error}");
            observer.event(Event::Remark(&what));
            ask(engine, features)
        }
        said => said,
    }
}

/// Runs every head of the engine over the bags of a slide, and takes the mean over its packages.
/// `bags` hold rows of the features.
///
/// # Errors
/// As [`Engine::predict`]; [`crate::Kind::Usage`] when there is no bag.
pub fn predict(
    engine: &mut Engine,
    features: &mut Features,
    bags: &[Vec<usize>],
    clinical: &[Vec<f32>],
    observer: &dyn Observer,
) -> Result<Vec<HeadResult>> {
    if bags.is_empty() || features.rows() == 0 {
        return Err(Error::usage("there is no bag to predict from"));
    }
    with_room(engine, features, observer, |engine, features| {
        all(engine, features, bags, clinical, observer)
    })
}

/// What all packages say.
fn all(
    engine: &mut Engine,
    features: &Features,
    bags: &[Vec<usize>],
    clinical: &[Vec<f32>],
    observer: &dyn Observer,
) -> Result<Vec<HeadResult>> {
    let (heads, packages) = (engine.heads().count(), engine.packages().len());
    let (mut done, total) = (0, heads * packages * bags.len());
    let mut count = || {
        done += 1;
        observer.event(Event::Heads { done, total });
    };
    let mut members = Vec::with_capacity(packages);
    for member in 0..packages {
        let own = engine.features_of(member, features);
        let own = own.as_ref().unwrap_or(features);
        let clinical = clinical.get(member * heads..).unwrap_or_default();
        members.push(one(engine, (member, own), bags, clinical, &mut count)?);
    }
    Ok(ensemble::combine(members))
}

/// What one package says.
fn one(
    engine: &mut Engine,
    (member, features): (usize, &Features),
    bags: &[Vec<usize>],
    clinical: &[Vec<f32>],
    done: &mut dyn FnMut(),
) -> Result<Vec<HeadResult>> {
    let tiles = features.rows();
    let mut per_bag: Vec<Vec<BagPrediction>> = Vec::with_capacity(bags.len());
    for bag in bags {
        per_bag.push(engine.predict(member, bag.len(), &features.bag(bag), clinical, done)?);
    }
    let results = engine.heads_of(member).enumerate().map(|(i, head)| {
        let of_head: Vec<&BagPrediction> = per_bag.iter().map(|heads| &heads[i]).collect();
        let mut result = mean(&of_head, head.scores);
        result.head.clone_from(&head.name);
        result.classes.clone_from(&head.classes);
        result.branches = head.branches;
        let spread = |per_bag: Vec<Vec<f32>>| {
            let mut all = vec![f32::NAN; tiles * head.branches];
            for (bag, values) in bags.iter().zip(per_bag) {
                for (&row, value) in bag.iter().zip(values.chunks_exact(head.branches)) {
                    all[row * head.branches..][..head.branches].copy_from_slice(value);
                }
            }
            all
        };
        let raw = of_head.iter().map(|bag| bag.scores.clone());
        if head.scores == Scores::Prediction {
            let values = raw.map(|scores| heads::tile_values(head, &scores));
            result.scores = spread(values.collect::<Result<_>>()?);
        } else {
            result.scores = spread(raw.collect());
            let attention = of_head.iter().map(|b| heads::attention(&b.scores, head.branches));
            result.attention = spread(attention.collect());
        }
        Ok(result)
    });
    results.collect()
}

/// The mean over bags, summed in bag order.
fn mean(bags: &[&BagPrediction], kind: Scores) -> HeadResult {
    let n = bags.len() as f64;
    let column = |values: &dyn Fn(&heads::Prediction) -> Vec<f64>| -> Vec<f64> {
        let mut sums: Vec<f64> = Vec::new();
        for bag in bags {
            let values = values(&bag.prediction);
            sums.resize(values.len(), 0.0);
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        sums.into_iter().map(|sum| sum / n).collect()
    };
    let logits = column(&|p| p.logits.iter().map(|&x| f64::from(x)).collect());
    HeadResult {
        head: String::new(),
        classes: Vec::new(),
        kind,
        branches: 0,
        logits: logits.into_iter().map(|x| x as f32).collect(),
        probabilities: column(&|p| p.probabilities.clone()),
        value: column(&|p| p.value.into_iter().collect()).first().copied(),
        bags: bags.iter().map(|b| b.prediction.clone()).collect(),
        scores: Vec::new(),
        attention: Vec::new(),
        members: Vec::new(),
    }
}
