//! Which squares of a slide are looked at.
//!
//! A [`TileGrid`] lists the top-left corners of tiles in level-0 pixels, and says from which level
//! and how many pixels each is read. Sizes are exact: with `mpp` in the recipe a tile covers
//! `size_px * mpp` micrometres on every slide, whatever its levels; corners are rounded to the
//! nearest pixel one by one, so that no error adds up along a row. Tiles may overrun the slide;
//! what lies outside is white, or black as in CLAM and HistCode ([`crate::recipe::Outside`]).
//!
//! Letters: W, H pixels of level 0; x to the right, y down.

use crate::error::{Error, Result};
use crate::recipe::{Select, Tiles};
use crate::regions::{Bbox, Region};
use crate::slide::{Level, Mpp, Slide};
use crate::tissue::ring::{Ring, Side};
use crate::tissue::{Contour, Tissue};

/// How much coarser than asked a level may be and still be taken for it: level sizes are rounded
/// down, which inflates 4 to 4.0001.
const LEVEL_TOLERANCE: f64 = 0.01;

/// How far the pixel sizes of the two axes may differ.
const SQUARE_TOLERANCE: f64 = 0.01;

/// Largest side read from the slide for one tile, in pixels.
const MAX_READ_PX: f64 = 16_384.0;

/// Largest number of grid positions looked at in one slide.
const MAX_POSITIONS: u64 = 1 << 25;

/// The tiles of one slide.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TileGrid {
    /// Side of a tile as the recipe states it, in pixels at `mpp`; what is read is resampled to it.
    pub size_px: u32,
    /// Step between tiles in the same pixels.
    pub stride_px: u32,
    /// Micrometres per pixel of the tile; none when tiles are level-0 pixels of any size.
    pub mpp: Option<f64>,
    /// Side of a tile in level-0 pixels.
    pub size_level0: f64,
    /// Step between tiles in level-0 pixels.
    pub stride_level0: f64,
    /// Level to read from, of [`Slide::resolutions`]: the coarsest that is not coarser than the tile.
    pub level: usize,
    /// Side to read, in pixels of `level`; below `size_px` the slide is coarser than the recipe
    /// asks for and the tile is enlarged.
    pub read_px: u32,
    /// Top-left corners `[x, y]` in level-0 pixels; a tile may overrun the slide.
    pub origins: Vec<[i64; 2]>,
    /// For each origin the contour or region it was cut from.
    pub sources: Vec<u32>,
    /// Origins that occur more than once because contours overlap; they are kept, as in CLAM.
    pub duplicates: usize,
}

/// The step that makes neighbouring tiles share `overlap_px` pixels.
///
/// # Errors
/// [`crate::Kind::Usage`] when the overlap is as large as the tile.
pub fn stride_for_overlap(size_px: u32, overlap_px: u32) -> Result<u32> {
    match size_px.checked_sub(overlap_px) {
        Some(stride) if stride > 0 => Ok(stride),
        _ => Err(Error::usage(format!(
            "overlap of {overlap_px} px: must be smaller than the tile of {size_px} px"
        ))),
    }
}

impl TileGrid {
    /// Squares on tissue, by CLAM's rule.
    ///
    /// Each contour has its own grid from its bounding box's corner up to the box's end, x
    /// outermost, y innermost. What the recipe's `select` asks of a position: `four-point`, any of
    /// the points a quarter of the side away from the centre on both axes on or inside the
    /// contour; `center`, the centre; for both the centre must not be strictly inside a hole;
    /// `half`, half of the square's area; `all`, nothing. Contours that keep at most one square
    /// are left out.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] when the recipe states micrometres and the slide does not;
    /// [`crate::Kind::Limit`] when a tile or the grid is too large.
    pub fn on_tissue(
        tiles: &Tiles,
        levels: &[Level],
        mpp: Option<Mpp>,
        tissue: &Tissue,
    ) -> Result<TileGrid> {
        let mut grid = TileGrid::empty(tiles, levels, mpp)?;
        let mut budget = MAX_POSITIONS;
        for (source, contour) in tissue.contours.iter().enumerate() {
            let shape = Shape::new(contour);
            let (low, high) = shape.outer.bounds();
            // The box's end is its last pixel plus one; positions start before it.
            let count = |axis: usize| {
                let length = f64::from(high[axis]) - f64::from(low[axis]) + 1.0;
                (length / grid.stride_level0).ceil() as u64
            };
            let (columns, rows) = (count(0), count(1));
            spend(&mut budget, columns, rows)?;
            let corner = low.map(i64::from);
            let positions = (0..columns).flat_map(|i| (0..rows).map(move |j| [i, j]));
            let kept = grid.select(corner, positions, &shape, tiles.select);
            if kept.len() > 1 {
                grid.push(kept, source);
            }
        }
        grid.count_duplicates();
        Ok(grid)
    }

    /// Squares on annotated regions, by BALNMP's rule.
    ///
    /// Each region has a grid from its bounding box's corner, y outermost, that covers the box;
    /// the last squares of a row or column may overrun it and are painted white there
    /// ([`Region::paint_outside`]). `select` is applied to the polygon as in
    /// [`TileGrid::on_tissue`]; BALNMP takes `all` and drops white squares by their pixels.
    ///
    /// # Errors
    /// As [`TileGrid::on_tissue`].
    pub fn on_regions(
        tiles: &Tiles,
        levels: &[Level],
        mpp: Option<Mpp>,
        regions: &[Region],
    ) -> Result<TileGrid> {
        let mut grid = TileGrid::empty(tiles, levels, mpp)?;
        let mut budget = MAX_POSITIONS;
        for (source, region) in regions.iter().enumerate() {
            grid.cover(region.bbox, &region.polygon, source, tiles.select, &mut budget)?;
        }
        grid.count_duplicates();
        Ok(grid)
    }

    /// Squares that cover the whole slide, y outermost; the last of a row or column may overrun
    /// it. `select` is applied to the slide's rectangle.
    ///
    /// # Errors
    /// As [`TileGrid::on_tissue`].
    pub fn on_all(tiles: &Tiles, levels: &[Level], mpp: Option<Mpp>) -> Result<TileGrid> {
        let mut grid = TileGrid::empty(tiles, levels, mpp)?;
        let [w, h] = [levels[0].width, levels[0].height].map(|n| n.min(i32::MAX as u32));
        let (x, y) = (w as i32, h as i32);
        let whole = Contour { outer: vec![[0, 0], [x, 0], [x, y], [0, y]], holes: Vec::new() };
        let bbox = Bbox { x: 0, y: 0, width: x.into(), height: y.into() };
        grid.cover(bbox, &whole, 0, tiles.select, &mut { MAX_POSITIONS })?;
        Ok(grid)
    }

    /// A grid with its sizes and no tiles.
    fn empty(tiles: &Tiles, levels: &[Level], mpp: Option<Mpp>) -> Result<TileGrid> {
        let stride_px = tiles.stride_px.unwrap_or(tiles.size_px);
        if levels.is_empty() || tiles.size_px == 0 || stride_px == 0 {
            return Err(Error::usage("tiles: no levels, or a size or step of 0"));
        }
        // Level-0 pixels per pixel of the tile.
        let ratio = match tiles.mpp {
            None => 1.0,
            Some(wanted) => wanted / pixel_size(wanted, mpp)?,
        };
        let finest_first = levels.iter().enumerate();
        let level = finest_first
            .filter(|(_, l)| l.downsample <= ratio * (1.0 + LEVEL_TOLERANCE))
            .max_by(|(_, a), (_, b)| a.downsample.total_cmp(&b.downsample))
            .map_or(0, |(i, _)| i);
        let size_level0 = snap(f64::from(tiles.size_px) * ratio);
        let read_px = (size_level0 / levels[level].downsample).round().max(1.0);
        // Written so that a ratio that is not a number fails too.
        if !(size_level0 >= 1.0 && read_px <= MAX_READ_PX) {
            return Err(Error::limit(format!(
                "tiles: {} px of the recipe are {size_level0} px of level 0, {read_px} px of level \
                 {level}; at least 1 and at most {MAX_READ_PX}",
                tiles.size_px
            )));
        }
        Ok(TileGrid {
            size_px: tiles.size_px,
            stride_px,
            mpp: tiles.mpp,
            size_level0,
            stride_level0: snap(f64::from(stride_px) * ratio),
            level,
            read_px: read_px as u32,
            origins: Vec::new(),
            sources: Vec::new(),
            duplicates: 0,
        })
    }

    /// Adds the squares that cover a box, row by row.
    fn cover(
        &mut self,
        bbox: Bbox,
        polygon: &Contour,
        source: usize,
        select: Select,
        budget: &mut u64,
    ) -> Result<()> {
        let count = |length: i64| {
            let beyond_first = (length as f64 - self.size_level0).max(0.0);
            (beyond_first / self.stride_level0).ceil() as u64 + 1
        };
        let (columns, rows) = (count(bbox.width), count(bbox.height));
        spend(budget, columns, rows)?;
        let positions = (0..rows).flat_map(|j| (0..columns).map(move |i| [i, j]));
        let kept = self.select([bbox.x, bbox.y], positions, &Shape::new(polygon), select);
        self.push(kept, source);
        Ok(())
    }

    /// Corners of the positions that `select` keeps.
    fn select(
        &self,
        corner: [i64; 2],
        positions: impl Iterator<Item = [u64; 2]>,
        shape: &Shape,
        select: Select,
    ) -> Vec<[i64; 2]> {
        let step = |k: u64| (k as f64 * self.stride_level0).round() as i64;
        positions
            .map(|[i, j]| [corner[0] + step(i), corner[1] + step(j)])
            .filter(|origin| shape.keeps(origin.map(|c| c as f64), self.size_level0, select))
            .collect()
    }

    fn push(&mut self, origins: Vec<[i64; 2]>, source: usize) {
        self.sources.resize(self.sources.len() + origins.len(), source as u32);
        self.origins.extend(origins);
    }

    fn count_duplicates(&mut self) {
        let mut sorted = self.origins.clone();
        sorted.sort_unstable();
        sorted.dedup();
        self.duplicates = self.origins.len() - sorted.len();
    }
}

/// [`TileGrid::on_tissue`] with what an open slide says about itself.
///
/// # Errors
/// As there.
pub fn on_tissue(slide: &Slide, tiles: &Tiles, tissue: &Tissue) -> Result<TileGrid> {
    TileGrid::on_tissue(tiles, slide.resolutions(), slide.mpp(), tissue)
}

/// [`TileGrid::on_regions`] with what an open slide says about itself.
///
/// # Errors
/// As there.
pub fn on_regions(slide: &Slide, tiles: &Tiles, regions: &[Region]) -> Result<TileGrid> {
    TileGrid::on_regions(tiles, slide.resolutions(), slide.mpp(), regions)
}

/// [`TileGrid::on_all`] with what an open slide says about itself.
///
/// # Errors
/// As there.
pub fn on_all(slide: &Slide, tiles: &Tiles) -> Result<TileGrid> {
    TileGrid::on_all(tiles, slide.resolutions(), slide.mpp())
}

/// Takes `columns * rows` positions from the budget.
fn spend(budget: &mut u64, columns: u64, rows: u64) -> Result<()> {
    let positions = columns.saturating_mul(rows);
    *budget = budget.checked_sub(positions).ok_or_else(|| {
        Error::limit(format!("tiles: more than {MAX_POSITIONS} positions; the step is too small"))
    })?;
    Ok(())
}

/// Micrometres per level-0 pixel of a slide whose pixels are square.
fn pixel_size(wanted: f64, mpp: Option<Mpp>) -> Result<f64> {
    let Some(Mpp { x, y, .. }) = mpp else {
        return Err(Error::usage(format!(
            "tiles: the recipe asks for {wanted} micrometres per pixel but the slide does not \
             state its pixel size; give it with --mpp-override"
        )));
    };
    if !(x.is_finite() && y.is_finite() && x > 0.0 && y > 0.0) {
        return Err(Error::usage(format!("tiles: pixel size of {x} x {y} micrometres")));
    }
    if (x - y).abs() > SQUARE_TOLERANCE * x.max(y) {
        return Err(Error::unsupported(format!(
            "tiles: pixels of {x} x {y} micrometres are not square"
        )));
    }
    Ok(f64::midpoint(x, y))
}

/// Takes the rounding of a division out of what is a whole number of pixels.
fn snap(pixels: f64) -> f64 {
    let whole = pixels.round();
    if (pixels - whole).abs() < 1e-6 { whole } else { pixels }
}

/// A contour made ready for many questions.
struct Shape<'a> {
    outer: Ring<'a>,
    holes: Vec<Ring<'a>>,
}

impl<'a> Shape<'a> {
    fn new(contour: &'a Contour) -> Shape<'a> {
        let holes = contour.holes.iter().map(|hole| Ring::new(hole)).collect();
        Shape { outer: Ring::new(&contour.outer), holes }
    }

    /// Whether the square of side `size` at `corner` counts as inside.
    fn keeps(&self, corner: [f64; 2], size: f64, select: Select) -> bool {
        // CLAM rounds the half and the shift down to whole pixels for the outline, not for holes.
        let half = (size / 2.0).floor();
        let near = |dx: f64, dy: f64| {
            let point = [corner[0] + half + dx, corner[1] + half + dy];
            self.outer.side(point) != Side::Outside
        };
        match select {
            Select::All => true,
            Select::Center => near(0.0, 0.0) && !self.in_hole(corner, size),
            Select::FourPoint => {
                let d = (half / 2.0).floor();
                let points = [(-d, -d), (d, d), (d, -d), (-d, d)];
                points.iter().any(|&(dx, dy)| near(dx, dy)) && !self.in_hole(corner, size)
            }
            Select::Half => {
                let holes: f64 = self.holes.iter().map(|h| h.area_in_square(corner, size)).sum();
                self.outer.area_in_square(corner, size) - holes >= size * size / 2.0
            }
        }
    }

    fn in_hole(&self, corner: [f64; 2], size: f64) -> bool {
        let center = corner.map(|c| c + size / 2.0);
        self.holes.iter().any(|hole| hole.side(center) == Side::Inside)
    }
}
