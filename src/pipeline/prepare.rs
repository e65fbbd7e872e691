//! From a slide's file to the list of its tiles.

use super::mask::Mask;
use super::{Job, stain};
use crate::error::{Context, Error, Result};
use crate::recipe::{Jpeg2000, Recipe, Tiles, Tissue as TissueRule};
use crate::regions::{self, Region};
use crate::slide::{OpenOptions, Slide};
use crate::stain::StainNormalizer;
use crate::tiling::{self, TileGrid};
use crate::tissue::{self, Contour, Tissue};
use std::sync::Arc;
use std::time::Instant;

/// A slide with its tiles decided.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Index of the job.
    pub job: usize,
    /// The open slide.
    pub slide: Arc<Slide>,
    /// SHA-256 of the file in hex; empty when it was not asked for.
    pub sha256: String,
    /// Segmented tissue, when the recipe segments.
    pub tissue: Option<Arc<Tissue>>,
    /// Annotated polygons, when there are any.
    pub regions: Arc<Vec<Region>>,
    /// Where the tiles came from, in words, as written into the result.
    pub area: String,
    /// The tiles.
    pub grid: Arc<TileGrid>,
    /// Positions left out because they do not lie on the mask.
    pub off_mask: usize,
    /// What is done to the colours of its tiles.
    pub stain: Option<Arc<StainNormalizer>>,
    /// What a reader of the result should know.
    pub warnings: Vec<String>,
    /// Seconds spent hashing.
    pub hash_seconds: f64,
    /// Seconds spent opening and deciding.
    pub seconds: f64,
}

impl Prepared {
    /// Opens the slide of a job, decides its tiles by the recipe and fits its stain.
    ///
    /// # Errors
    /// Naming the slide: whatever keeps it from being opened, segmented, tiled or fitted.
    pub fn new(job: &Job, index: usize, recipe: &Recipe, open: &OpenOptions) -> Result<Prepared> {
        let tiles = recipe.slide_tiles()?;
        let mut prepared = Prepared::with_rules(job, index, &recipe.tissue, tiles, open)?;
        let start = Instant::now();
        let fitted = stain::fit(&prepared, &recipe.stain);
        prepared.stain = fitted.context(|| job.path.display().to_string())?;
        prepared.seconds += start.elapsed().as_secs_f64();
        Ok(prepared)
    }

    /// As [`Prepared::new`], with the two parts of a recipe that decide tiles.
    ///
    /// # Errors
    /// As [`Prepared::new`].
    pub fn with_rules(
        job: &Job,
        index: usize,
        tissue: &TissueRule,
        tiles: &Tiles,
        open: &OpenOptions,
    ) -> Result<Prepared> {
        let start = Instant::now();
        let reduced = tiles.jpeg2000 == Jpeg2000::Reduced;
        let slide = Slide::open(&job.path, &OpenOptions { reduced, ..*open })?;
        let name = || job.path.display().to_string();
        let mut prepared = Prepared {
            job: index,
            slide: Arc::new(slide),
            sha256: String::new(),
            tissue: None,
            regions: Arc::default(),
            area: String::new(),
            grid: Arc::default(),
            off_mask: 0,
            stain: None,
            warnings: Vec::new(),
            hash_seconds: 0.0,
            seconds: 0.0,
        };
        prepared.decide(job, tissue, tiles).context(name)?;
        if let Some(mask) = &job.mask {
            prepared.keep_on(mask).context(name)?;
        }
        prepared.seconds = start.elapsed().as_secs_f64();
        Ok(prepared)
    }

    fn decide(&mut self, job: &Job, rule: &TissueRule, tiles: &Tiles) -> Result<()> {
        let slide = &self.slide;
        let grid = match (rule, &job.regions) {
            // Polygons given by the user decide where to look, whatever the recipe would segment.
            (_, Some(path)) => {
                let level = &slide.levels()[0];
                let read = regions::read(path, level.width, level.height)?;
                self.area = format!("{} annotated regions", read.regions.len());
                self.warnings.extend(read.skipped);
                let grid = tiling::on_regions(slide, tiles, &read.regions)?;
                self.regions = Arc::new(read.regions);
                grid
            }
            (TissueRule::Regions { required: true }, None) => {
                return Err(Error::usage(
                    "this recipe looks at annotated regions: name their file with --regions",
                ));
            }
            (TissueRule::Regions { required: false } | TissueRule::None, None) => {
                self.area = "whole slide".into();
                if *rule != TissueRule::None {
                    self.warnings.push(
                        "no annotated regions were given: the whole slide was looked at".into(),
                    );
                }
                tiling::on_all(slide, tiles)?
            }
            (TissueRule::Clam(params), None) => {
                let tissue = tissue::segment(slide, params)?;
                self.area = format!("{} tissue contours", tissue.contours.len());
                if tissue.contours.is_empty() {
                    self.warnings.push(format!(
                        "no tissue contour is as large as the recipe's min_area = {} (times 512 x \
                         512 level-0 pixels)",
                        params.min_area
                    ));
                }
                if let Some((_, why)) = tissue.broken.first() {
                    self.warnings.push(format!(
                        "{} tiles of the level that was segmented could not be decoded and count \
                         as background: {why}",
                        tissue.broken.len()
                    ));
                }
                let grid = tiling::on_tissue(slide, tiles, &tissue)?;
                self.tissue = Some(Arc::new(tissue));
                grid
            }
        };
        if grid.read_px < grid.size_px {
            self.warnings.push(format!(
                "the slide is coarser than the recipe asks for: tiles of {} px are enlarged from {} px",
                grid.size_px, grid.read_px
            ));
        }
        if slide.is_reduced(grid.level) {
            self.warnings.push(format!(
                "JPEG 2000 tiles were decoded at reduced resolution, as the recipe asks: {}",
                slide.level_name(grid.level)
            ));
        }
        self.grid = Arc::new(grid);
        Ok(())
    }

    /// Drops the tiles that do not lie on a mask.
    fn keep_on(&mut self, mask: &Mask) -> Result<()> {
        let level = &self.slide.levels()[0];
        let bitmap = mask.read(level.width, level.height)?;
        let grid = Arc::make_mut(&mut self.grid);
        let before = grid.origins.len();
        let side = grid.size_level0;
        let kept: Vec<bool> = grid.origins.iter().map(|&o| bitmap.holds(o, side)).collect();
        let mut at = kept.iter();
        grid.origins.retain(|_| at.next().is_some_and(|&kept| kept));
        let mut at = kept.iter();
        grid.sources.retain(|_| at.next().is_some_and(|&kept| kept));
        self.off_mask = before - grid.origins.len();
        self.area.push_str(" within the mask");
        Ok(())
    }

    /// Outlines of what was looked at, in level-0 pixels; empty for a whole slide.
    pub fn contours(&self) -> Vec<Contour> {
        match &self.tissue {
            Some(tissue) => tissue.contours.clone(),
            None => self.regions.iter().map(|r| r.polygon.clone()).collect(),
        }
    }
}
