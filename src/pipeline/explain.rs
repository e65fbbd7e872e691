//! Looking at one slide more closely than a prediction needs: overlapping tiles, and every head on
//! every tile alone.

use super::predict::with_room;
use super::{Engine, Features, Finished, Job, Observer, Options, Sink, queue};
use crate::backend::{Backend, Input};
use crate::error::{Error, Result};
use crate::heads;

/// Rows given to a head at a time.
const ROWS: usize = 4096;

/// Encodes one slide and hands it over, tiles and features together.
///
/// # Errors
/// What keeps the slide from being read or encoded; [`crate::Kind::Usage`] when it has no tile.
pub fn encode(
    engine: &mut Engine,
    job: &Job,
    options: &Options,
    observer: &dyn Observer,
) -> Result<Finished> {
    let mut keep = Keep(None);
    let jobs = std::slice::from_ref(job);
    queue::run(engine, jobs, options, observer, &|_, _| false, &mut keep)?;
    let name = || job.path.display().to_string();
    let slide = keep.0.ok_or_else(|| Error::device(format!("{}: not encoded", name())))?;
    if slide.tiles.is_empty() {
        return Err(Error::usage(format!("{}: no tile on {}", name(), slide.prepared.area)));
    }
    Ok(slide)
}

/// Keeps the one slide of a run.
struct Keep(Option<Finished>);

impl Sink for Keep {
    fn finished(&mut self, _: &mut Engine, _: &Job, slide: Finished) -> Result<()> {
        self.0 = Some(slide);
        Ok(())
    }

    fn failed(&mut self, _: &Job, error: Error) -> Result<()> {
        Err(error)
    }

    fn skipped(&mut self, _: &Job) {}
}

/// Raw attention of one head over all tiles as one bag, `[tiles, branches]`; nothing needs the features
/// after that.
///
/// # Errors
/// As [`Engine::predict`]; [`crate::Kind::Usage`] for a head without attention or with clinical
/// values, whose scores would need them.
pub fn attention(
    engine: &mut Engine,
    head: usize,
    mut features: Features,
    observer: &dyn Observer,
) -> Result<Vec<f32>> {
    let Some(of) = engine.heads().nth(head) else {
        return Err(Error::usage(format!("no head number {head}")));
    };
    if of.scores != heads::Scores::Attention {
        return Err(Error::usage(format!("head {} has no attention", of.name)));
    }
    // Clinical values come after the attention and do not change it.
    let clinical: Vec<Vec<f32>> = engine.heads().map(|h| vec![0.0; h.clinical]).collect();
    let all: Vec<usize> = (0..features.rows()).collect();
    let mut predictions = with_room(engine, &mut features, observer, |engine, features| {
        engine.predict(0, all.len(), &features.bag(&all), &clinical, &mut || {})
    })?;
    Ok(predictions.swap_remove(head).scores)
}

/// What each of the named heads says of every tile alone: `[heads][tiles]`, in the unit of its
/// prediction. Each must be a regression.
///
/// # Errors
/// [`crate::Kind::Usage`] for a name the package does not have or a head with classes,
/// [`crate::Kind::Unsupported`] for one that cannot be taken tile by tile.
pub fn tile_by_tile(
    engine: &Engine,
    backend: &dyn Backend,
    names: &[String],
    features: &[f32],
    n: usize,
) -> Result<Vec<Vec<f64>>> {
    let package = engine.package();
    let width = features.len() / n.max(1);
    let one = |name: &String| -> Result<Vec<f64>> {
        let of = package.recipe.heads.iter().find(|h| h.name == *name).ok_or_else(|| {
            Error::usage(format!("the package {} has no head {name}", package.recipe.name))
        })?;
        let head = heads::build_single(of, Some(width), &package.head(of)?)?;
        if !head.classes.is_empty() {
            return Err(Error::usage(format!("head {name} has classes: a regression is needed")));
        }
        let mut session = backend.prepare(head.graph.clone(), ROWS.min(n))?;
        let mut values = Vec::with_capacity(n);
        for chunk in features.chunks(ROWS * width) {
            let rows = chunk.len() / width;
            let mut outputs: Vec<Vec<f32>> = (head.graph.outputs.iter())
                .map(|&id| vec![0.0; rows * head.graph.shape(id).len()])
                .collect();
            let mut views: Vec<&mut [f32]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
            session.run(rows, &[Input::Values(chunk)], &mut views)?;
            values.extend(heads::tile_values(&head, &outputs[0])?.into_iter().map(f64::from));
        }
        Ok(values)
    };
    names.iter().map(one).collect()
}
