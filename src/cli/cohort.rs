//! Keeping count of a run over many slides: their jobs, `status.csv` and `predictions.csv`.

use super::{Global, Outcome};
use crate::error::{Error, Kind, Result};
use crate::pipeline::Job;
use crate::report::csv::{self, CohortRow, SlideStatus, Status};
use crate::report::result::SlideResult;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One job per path. Results are named by file names without extension, so two equal ones are an
/// error; `regions` is a file for a single slide or a folder of `<name>.json` or `.geojson`.
///
/// # Errors
/// [`crate::Kind::Usage`] naming the paths that clash or the regions that are missing.
pub fn jobs(paths: &[PathBuf], regions: Option<&Path>) -> Result<Vec<Job>> {
    let mut names: BTreeMap<String, &Path> = BTreeMap::new();
    let mut jobs = Vec::with_capacity(paths.len());
    for path in paths {
        let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        if name.is_empty() {
            return Err(Error::usage(format!("{}: not a file name", path.display())));
        }
        if let Some(other) = names.insert(name.clone(), path) {
            return Err(Error::usage(format!(
                "{} and {} would both write results named {name}: run them with two --out folders",
                other.display(),
                path.display()
            )));
        }
        let of_slide = |r| beside(r, &name, paths.len(), &["json", "geojson"], "regions");
        let regions = regions.map(of_slide).transpose()?;
        jobs.push(Job { name, path: path.clone(), regions, mask: None });
    }
    Ok(jobs)
}

/// What goes with the slide `name`: the file itself when there is one slide, or a file of that name
/// and one of the `extensions` in a folder.
///
/// # Errors
/// [`crate::Kind::Usage`] when it is missing, or one file is given for several slides.
pub fn beside(
    path: &Path,
    name: &str,
    slides: usize,
    extensions: &[&str],
    what: &str,
) -> Result<PathBuf> {
    if !path.is_dir() {
        return match slides {
            1 => Ok(path.to_path_buf()),
            n => Err(Error::usage(format!(
                "{}: one file ({what}) for {n} slides; give a folder of <slide>.{}",
                path.display(),
                extensions[0]
            ))),
        };
    }
    let names: Vec<String> = extensions.iter().map(|e| format!("{name}.{e}")).collect();
    let found = names.iter().map(|name| path.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| Error::usage(format!("{}: no {}", path.display(), names.join(" or "))))
}

/// The last part of a path.
pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A row of `status.csv` for a slide without a result.
pub fn failed_row(job: &Job, status: Status, reason: &dyn std::fmt::Display) -> SlideStatus {
    SlideStatus {
        slide: file_name(&job.path),
        status,
        reason: reason.to_string(),
        tiles_kept: 0,
        tiles_unread: 0,
        seconds: 0.0,
    }
}

/// The slides of a run so far.
pub struct Cohort {
    out: PathBuf,
    fail_fast: bool,
    /// Rows of `status.csv`.
    pub rows: Vec<SlideStatus>,
    predictions: Vec<CohortRow>,
}

impl Cohort {
    /// No slide yet.
    pub fn new(out: &Path, fail_fast: bool) -> Cohort {
        Cohort { out: out.into(), fail_fast, rows: Vec::new(), predictions: Vec::new() }
    }

    /// A slide with a result.
    pub fn done(&mut self, job: &Job, result: &SlideResult) {
        self.row(job, Status::Done, result);
    }

    /// A slide whose result was there already.
    pub fn skipped(&mut self, job: &Job, result: &SlideResult) {
        self.row(job, Status::Skipped, result);
    }

    fn row(&mut self, job: &Job, status: Status, result: &SlideResult) {
        self.rows.push(SlideStatus {
            slide: file_name(&job.path),
            status,
            reason: String::new(),
            tiles_kept: result.tiles.kept as usize,
            tiles_unread: result.tiles.unread.len(),
            seconds: result.seconds.total,
        });
        for prediction in &result.predictions {
            self.predictions.push(CohortRow {
                slide: job.name.clone(),
                head: prediction.head.clone(),
                outcome: prediction.outcome.clone(),
                ensemble: prediction.ensemble.clone(),
            });
        }
    }

    /// A slide without a tile to look at.
    pub fn empty(&mut self, job: &Job, why: &str, seconds: f64) {
        eprintln!("{}: empty: {why}", job.path.display());
        self.rows.push(SlideStatus { seconds, ..failed_row(job, Status::Empty, &why) });
    }

    /// A slide that failed: reported and counted, or with `--fail-fast` the end of the run. A device
    /// that failed does not come back, so that is always the end.
    ///
    /// # Errors
    /// The error itself with `--fail-fast` or when a device failed.
    pub fn failed(&mut self, job: &Job, error: Error) -> Result<()> {
        self.rows.push(failed_row(job, Status::Failed, &error));
        if self.fail_fast || error.kind() == Kind::Device {
            return Err(error);
        }
        let path = job.path.display().to_string();
        let text = error.to_string();
        let text = if text.contains(&path) { text } else { format!("{path}: {text}") };
        eprintln!("failed: {text}");
        Ok(())
    }

    fn write(&self) -> Result<()> {
        csv::write_status(&self.out.join("status.csv"), &self.rows)?;
        let predictions = self.out.join("predictions.csv");
        // A run that only makes features has none; an older table must not outlive its run.
        if self.predictions.is_empty() && !predictions.exists() {
            return Ok(());
        }
        csv::write_predictions(&predictions, &self.predictions)
    }

    /// Writes the tables and says how it went.
    ///
    /// # Errors
    /// Naming the file that cannot be written.
    pub fn outcome(&self, global: &Global) -> Result<Outcome> {
        self.write()?;
        let count = |status| self.rows.iter().filter(|r| r.status == status).count();
        let (done, skipped) = (count(Status::Done), count(Status::Skipped));
        let (empty, failed) = (count(Status::Empty), count(Status::Failed));
        let mut parts = vec![format!("{done} done")];
        let extra =
            [(skipped, "unchanged since an earlier run"), (empty, "empty"), (failed, "failed")];
        parts.extend(extra.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
        global.say(&format!("{}: {}", self.out.display(), parts.join(", ")));
        Ok(if empty + failed > 0 { Outcome::Partial } else { Outcome::Done })
    }
}
