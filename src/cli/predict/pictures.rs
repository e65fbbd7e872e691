//! Pictures instead of slides: segmented, cut out, predicted one by one.

use super::{Predictor, result_path};
use crate::backend::Backend;
use crate::cli::Global;
use crate::cli::common::{make_folder, picture_bar};
use crate::error::{Context, Error, Result};
use crate::image::{Rect, RgbImage};
use crate::picture;
use crate::pipeline::images::{self, Segmenters};
use crate::pipeline::{Engine, Job, Sink, image_outputs};
use crate::report::png;
use crate::report::result::{self, SlideResult};
use crate::report::segmentation::Segmentation;
use std::path::Path;
use std::time::Instant;

impl Predictor<'_> {
    /// Every picture, each of which may fail without the others.
    pub(super) fn pictures(
        &mut self,
        engine: &mut Engine,
        backend: &dyn Backend,
        jobs: &[Job],
        global: &Global,
    ) -> Result<()> {
        if self.args.regions.is_some() {
            return Err(Error::usage("--regions is for slides; this package looks at pictures"));
        }
        let mut segmenters = Segmenters::open(engine.package(), backend)?;
        let bar = picture_bar(jobs.len(), global);
        for job in jobs {
            bar.set_message(job.name.clone());
            let one = self.picture(engine, &mut segmenters, job);
            if let Err(error) = one.context(|| job.name.clone()) {
                bar.suspend(|| self.cohort.failed(job, error))?;
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn picture(
        &mut self,
        engine: &mut Engine,
        segmenters: &mut Segmenters<'_>,
        job: &Job,
    ) -> Result<()> {
        let start = Instant::now();
        let mut result = self.blank(engine, job, &result::sha256_file(&job.path)?);
        result.seconds.hash = start.elapsed().as_secs_f64();
        let earlier = SlideResult::read(&result_path(&self.args.out, job));
        if earlier.is_ok_and(|earlier| earlier.same_run(&result)) {
            self.skipped(job);
            return Ok(());
        }
        let decoding = Instant::now();
        let picture = picture::open(&job.path)?;
        let image = picture.image;
        result.slide.format = picture.format.into();
        (result.slide.width, result.slide.height) = (image.width as u64, image.height as u64);
        result.seconds.decode = decoding.elapsed().as_secs_f64();

        let dir = self.args.out.join(&job.name);
        make_folder(&dir)?;
        let preparing = Instant::now();
        let crop = self.find(engine, segmenters, &image, &dir, &mut result)?;
        result.seconds.prepare = preparing.elapsed().as_secs_f64();
        let Some(crop) = crop else {
            let why = "the fused mask is empty: nothing to look at ([image] empty_mask = \
                       \"whole-image\" in recipe.toml takes the whole picture then)";
            self.cohort.empty(job, why, start.elapsed().as_secs_f64());
            return Ok(());
        };
        let Rect { x, y, width, height } = crop;
        result.regions = format!("{width} x {height} px at ({x}, {y})");
        (result.tiles.grid, result.tiles.kept) = (1, 1);
        let cut = image.cut(crop)?;
        let predicting = Instant::now();
        let heads = images::predict(engine, &cut, &self.patients[&job.name].vectors)?;
        result.seconds.head = predicting.elapsed().as_secs_f64();
        png::write_rgb(&dir.join("crop.png"), &cut)?;
        result.seconds.total = start.elapsed().as_secs_f64();
        self.keep(job, result, &heads, &[vec![0]])
    }

    /// What is cut from the picture: what the segmenters found, or all of it when there are none.
    fn find(
        &self,
        engine: &Engine,
        segmenters: &mut Segmenters<'_>,
        image: &RgbImage,
        dir: &Path,
        result: &mut SlideResult,
    ) -> Result<Option<Rect>> {
        if segmenters.is_empty() {
            return Ok(Some(Rect { x: 0, y: 0, width: image.width, height: image.height }));
        }
        let segmented = segmenters.segment(image)?;
        image_outputs::write(dir, image, &segmented, None)?;
        let described: Segmentation = segmented.describe(&engine.recipe().fusion, None);
        if described.fused.area_px == 0 && described.crop.is_some() {
            result.warnings.push("the fused mask is empty: the whole picture was taken".into());
        }
        result.segmentation = Some(described);
        Ok(segmented.crop)
    }
}
