//! Reading pixels: native tiles, regions, and what stands in for tiles without data.

use super::codec::Buffers;
use super::format::Pixels;
use super::raster::Raster;
use super::{Region, RegionImage, Slide, TileIndex, aperio};
use crate::error::{Context, Error, Result};
use crate::image::RgbImage;

/// Pixels of one region: 2^30 bytes of RGB.
pub const MAX_REGION_PIXELS: u64 = (1 << 30) / 3;
/// Pixels of the finer level that may be read to fill one missing tile.
const MAX_FILL_PIXELS: u64 = 1 << 25;

/// Buffers one thread reuses from tile to tile; belongs to no slide.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) buffers: Buffers,
    tile: Tile,
}

/// A decoded native tile, padding included.
#[derive(Debug, Default)]
pub(super) struct Tile {
    /// `[tile_height, tile_width, 3]`.
    pub rgb: Vec<u8>,
    /// The file holds no data for it.
    pub missing: bool,
    /// Where pixels of a missing tile could be taken from a finer level; `None`: everywhere if
    /// the tile is present, nowhere if it is missing.
    pub valid: Option<Vec<bool>>,
}

/// A rectangle in pixels of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub level: usize,
    pub x: i64,
    pub y: i64,
    pub width: u32,
    pub height: u32,
}

/// Where a region is written: RGB rows and, if asked for, one flag a pixel.
pub(super) struct Target<'a> {
    pub rgb: &'a mut [u8],
    pub valid: Option<&'a mut [bool]>,
}

impl Window {
    /// The columns and rows of native tiles of size `tile` in a level of size `level` it touches.
    fn span(start: i64, length: u32, level: u32, tile: u32) -> std::ops::Range<u32> {
        let clamp = |v: i64| v.clamp(0, i64::from(level)) as u32;
        let (start, end) = (clamp(start), clamp(start.saturating_add(i64::from(length))));
        if start >= end { 0..0 } else { start / tile..end.div_ceil(tile) }
    }
}

impl Slide {
    /// The factor between level-0 coordinates and pixels of a level.
    ///
    /// Level sizes are rounded to whole pixels, which makes the measured downsample 4.0001 where
    /// the scanner reduced by 4; within 0.5 % of a whole number that number is meant.
    pub fn nominal_downsample(&self, level: usize) -> Result<f64> {
        let level = self.levels.get(level).ok_or_else(|| {
            Error::usage(format!("level {level}, the slide has {}", self.levels.len()))
        })?;
        let (ds, whole) = (level.downsample, level.downsample.round());
        Ok(if (ds - whole).abs() / ds < 0.005 { whole } else { ds })
    }

    /// The pixel of `level` that belongs to a level-0 coordinate: the nearest, ties upwards. Of a
    /// reduced level it is the first sample that lies on or behind the nearest pixel of the level it
    /// is made from.
    pub fn to_level(&self, level: usize, coordinate: i64) -> Result<i64> {
        let (stored, halvings) = self.stored(level);
        let ratio = self.nominal_downsample(stored)?;
        // The bound keeps sums with widths from overflowing; it is far outside any slide.
        let bound = (1u64 << 40) as f64;
        let pixel = (coordinate as f64 / ratio + 0.5).floor().clamp(-bound, bound) as i64;
        Ok(-(-pixel).div_euclid(1 << halvings))
    }

    pub(super) fn window(&self, region: &Region) -> Result<Window> {
        let pixels = u64::from(region.width) * u64::from(region.height);
        if pixels > MAX_REGION_PIXELS {
            return Err(Error::limit(format!(
                "a region of {}x{} pixels is larger than 1 GiB",
                region.width, region.height
            )));
        }
        Ok(Window {
            level: region.level,
            x: self.to_level(region.level, region.x)?,
            y: self.to_level(region.level, region.y)?,
            width: region.width,
            height: region.height,
        })
    }

    /// Whole pixels of one level; a broken native tile is an error, a missing one is reported.
    ///
    /// The top left pixel is the one nearest to `x / nominal downsample`. Outside the slide it is
    /// white. A tile without data (byte count 0) is white, too, except in Aperio slides, where
    /// scanners lose tiles of coarse levels: there it is averaged from the next finer level.
    pub fn read_region(&self, region: &Region) -> Result<RegionImage> {
        self.read_region_with(region, &mut Scratch::default())
    }

    /// [`read_region`](Self::read_region) with buffers that the caller keeps.
    pub fn read_region_with(&self, region: &Region, scratch: &mut Scratch) -> Result<RegionImage> {
        let window = self.window(region);
        let read = window.and_then(|window| self.read_to_image(&window, scratch, false));
        read.context(|| self.path.display().to_string())
    }

    /// [`read_region`](Self::read_region) for pictures and masks: a native tile that cannot be
    /// decoded is white, invalid and listed in `broken` instead of failing the whole.
    pub fn read_overview(&self, region: &Region) -> Result<RegionImage> {
        let window = self.window(region);
        let read = window.and_then(|w| self.read_to_image(&w, &mut Scratch::default(), true));
        read.context(|| self.path.display().to_string())
    }

    /// Reads one native tile, without the padding at the right and bottom edge of the level.
    pub fn read_tile(&self, index: TileIndex, scratch: &mut Scratch) -> Result<RegionImage> {
        let level = self.levels.get(index.level).ok_or_else(|| Error::usage("no such level"))?;
        let (tw, th) = (level.tile_width, level.tile_height);
        let (x, y) = (i64::from(index.col) * i64::from(tw), i64::from(index.row) * i64::from(th));
        let width = (i64::from(level.width) - x).clamp(0, i64::from(tw)) as u32;
        let height = (i64::from(level.height) - y).clamp(0, i64::from(th)) as u32;
        let window = Window { level: index.level, x, y, width, height };
        let read = if self.flat(index.level).is_some() || width == 0 || height == 0 {
            self.read_to_image(&window, scratch, false)
        } else {
            self.crop_tile(index, [tw, width, height].map(|n| n as usize), scratch)
        };
        read.context(|| self.path.display().to_string())
    }

    /// The upper left `width x height` pixels of a native tile `stride` pixels wide, each written once.
    fn crop_tile(
        &self,
        index: TileIndex,
        [stride, width, height]: [usize; 3],
        scratch: &mut Scratch,
    ) -> Result<RegionImage> {
        let Scratch { buffers, tile } = scratch;
        self.decode_tile(index, buffers, tile)?;
        let mut data = Vec::with_capacity(width * height * 3);
        for line in tile.rgb.chunks_exact(stride * 3).take(height) {
            data.extend_from_slice(&line[..width * 3]);
        }
        let valid = match &tile.valid {
            Some(filled) => {
                let lines = filled.chunks_exact(stride).take(height);
                lines.flat_map(|line| &line[..width]).copied().collect()
            }
            None => vec![!tile.missing; width * height],
        };
        let missing = if tile.missing { vec![index] } else { Vec::new() };
        let image = RgbImage { width, height, data };
        Ok(RegionImage { image, valid, missing, broken: Vec::new() })
    }

    fn read_to_image(
        &self,
        window: &Window,
        scratch: &mut Scratch,
        tolerant: bool,
    ) -> Result<RegionImage> {
        let (width, height) = (window.width as usize, window.height as usize);
        let mut image = RgbImage { width, height, data: vec![255; width * height * 3] };
        let mut valid = vec![false; width * height];
        let mut broken = Vec::new();
        let target = Target { rgb: &mut image.data, valid: Some(&mut valid) };
        let missing = self.read_window(window, target, scratch, tolerant.then_some(&mut broken))?;
        Ok(RegionImage { image, valid, missing, broken })
    }

    /// Fills `target`, which is white and invalid, with the pixels of `window`. Tiles that cannot
    /// be decoded go to `broken`, or end the reading where there is no such list.
    fn read_window(
        &self,
        window: &Window,
        mut target: Target<'_>,
        scratch: &mut Scratch,
        mut broken: Option<&mut Vec<(TileIndex, String)>>,
    ) -> Result<Vec<TileIndex>> {
        if let Some(image) = self.flat(window.level) {
            blit_flat(image, window, &mut target);
            return Ok(Vec::new());
        }
        let mut missing = Vec::new();
        let mut tile = std::mem::take(&mut scratch.tile);
        for index in self.tiles(window) {
            match (self.decode_tile(index, &mut scratch.buffers, &mut tile), &mut broken) {
                (Ok(()), _) => self.blit(&tile, index, window, &mut target),
                (Err(error), Some(broken)) => {
                    broken.push((index, error.to_string()));
                    continue;
                }
                (Err(error), None) => return Err(error),
            }
            if tile.missing {
                missing.push(index);
            }
        }
        scratch.tile = tile;
        Ok(missing)
    }

    /// Whether a part of the window lies outside its level, where no tile is written.
    pub(super) fn overruns(&self, window: &Window) -> bool {
        let Some(level) = self.levels.get(window.level) else { return true };
        let beyond = |start: i64, length: u32, side: u32| {
            start < 0 || start + i64::from(length) > i64::from(side)
        };
        beyond(window.x, window.width, level.width) || beyond(window.y, window.height, level.height)
    }

    /// The picture of a level that is not tiled.
    pub(super) fn flat(&self, level: usize) -> Option<&RgbImage> {
        match self.pixels.get(level)? {
            Pixels::Flat { image, .. } => Some(image),
            Pixels::Tiles(_) => None,
        }
    }

    /// The native tiles a window touches, row by row; none for a flat picture.
    pub(super) fn tiles(&self, window: &Window) -> impl Iterator<Item = TileIndex> + use<> {
        let (cols, rows) = match self.pixels.get(window.level) {
            Some(Pixels::Tiles(r)) => (
                Window::span(window.x, window.width, r.width, r.chunk_width),
                Window::span(window.y, window.height, r.height, r.chunk_height),
            ),
            _ => (0..0, 0..0),
        };
        let level = window.level;
        rows.flat_map(move |row| cols.clone().map(move |col| TileIndex { level, col, row }))
    }

    /// Bytes of a decoded native tile of a level; 0 for a flat picture.
    pub(super) fn native_tile_bytes(&self, level: usize) -> usize {
        self.raster(level).map_or(0, |r| 3 * r.chunk_width as usize * r.chunk_height as usize)
    }

    fn raster(&self, level: usize) -> Result<&Raster> {
        match self.pixels.get(level) {
            Some(Pixels::Tiles(raster)) => Ok(raster),
            _ => Err(Error::usage(format!("level {level} is not tiled"))),
        }
    }

    /// Decodes one native tile, or makes what stands for a missing one.
    pub(super) fn decode_tile(
        &self,
        index: TileIndex,
        buffers: &mut Buffers,
        tile: &mut Tile,
    ) -> Result<()> {
        let raster = self.raster(index.level)?;
        tile.missing = !raster.present(index.col, index.row);
        tile.valid = None;
        if !tile.missing {
            let decoded = raster.decode(&self.source, index.col, index.row, buffers, &mut tile.rgb);
            return decoded
                .context(|| raster.chunk_name(index.col, index.row))
                .context(|| format!("{} ({})", self.level_name(index.level), raster.name));
        }
        let pixels = raster.chunk_width as usize * raster.chunk_height as usize;
        tile.rgb.clear();
        tile.rgb.resize(pixels * 3, 255);
        if self.format == aperio::FORMAT.name
            && let Some(finer) = self.stored(index.level).0.checked_sub(1)
        {
            self.fill_from_finer(index, finer, raster, tile)?;
        }
        Ok(())
    }

    /// Fills a missing tile with the mean of the pixels of a finer level.
    fn fill_from_finer(
        &self,
        index: TileIndex,
        finer: usize,
        raster: &Raster,
        tile: &mut Tile,
    ) -> Result<()> {
        let ratio = self.nominal_downsample(index.level)? / self.nominal_downsample(finer)?;
        let (tw, th) = (raster.chunk_width, raster.chunk_height);
        let edge = |v: u64| (v as f64 * ratio).round() as i64;
        let (x0, y0) = (u64::from(index.col) * u64::from(tw), u64::from(index.row) * u64::from(th));
        let width = u64::from(tw).min(u64::from(raster.width) - x0);
        let height = u64::from(th).min(u64::from(raster.height) - y0);
        let (left, top) = (edge(x0), edge(y0));
        let (w, h) = ((edge(x0 + width) - left) as u64, (edge(y0 + height) - top) as u64);
        if w * h > MAX_FILL_PIXELS {
            return Ok(());
        }
        let window = Window { level: finer, x: left, y: top, width: w as u32, height: h as u32 };
        let mut rgb = vec![255; (w * h * 3) as usize];
        let mut valid = vec![false; (w * h) as usize];
        let target = Target { rgb: &mut rgb, valid: Some(&mut valid) };
        self.read_window(&window, target, &mut Scratch::default(), None)?;

        let mut filled = vec![false; tw as usize * th as usize];
        for y in 0..height {
            let lines = (edge(y0 + y) - top) as usize..(edge(y0 + y + 1) - top) as usize;
            for x in 0..width {
                let columns = (edge(x0 + x) - left) as usize..(edge(x0 + x + 1) - left) as usize;
                let (mut sum, mut n) = ([0u64; 3], 0);
                for at in
                    lines.clone().flat_map(|l| columns.clone().map(move |c| l * w as usize + c))
                {
                    if valid[at] {
                        n += 1;
                        for (sum, &value) in sum.iter_mut().zip(&rgb[at * 3..at * 3 + 3]) {
                            *sum += u64::from(value);
                        }
                    }
                }
                let at = y as usize * tw as usize + x as usize;
                if n > 0 {
                    filled[at] = true;
                    let mean = sum.map(|sum| ((sum + n / 2) / n) as u8);
                    tile.rgb[at * 3..at * 3 + 3].copy_from_slice(&mean);
                }
            }
        }
        tile.valid = Some(filled);
        Ok(())
    }

    /// Copies the part of a tile that lies in the window and in the level.
    pub(super) fn blit(
        &self,
        tile: &Tile,
        index: TileIndex,
        window: &Window,
        target: &mut Target<'_>,
    ) {
        let Some(Pixels::Tiles(raster)) = self.pixels.get(index.level) else { return };
        let (tw, th) = (i64::from(raster.chunk_width), i64::from(raster.chunk_height));
        let (x0, y0) = (i64::from(index.col) * tw, i64::from(index.row) * th);
        let x = x0.max(window.x)
            ..(x0 + tw).min(i64::from(raster.width)).min(window.x + i64::from(window.width));
        let y = y0.max(window.y)
            ..(y0 + th).min(i64::from(raster.height)).min(window.y + i64::from(window.height));
        if x.is_empty() || y.is_empty() {
            return;
        }
        let n = (x.end - x.start) as usize;
        for line in y {
            let from = ((line - y0) * tw + x.start - x0) as usize;
            let to =
                (line - window.y) as usize * window.width as usize + (x.start - window.x) as usize;
            target.rgb[to * 3..(to + n) * 3].copy_from_slice(&tile.rgb[from * 3..(from + n) * 3]);
            if let Some(valid) = &mut target.valid {
                match &tile.valid {
                    Some(filled) => valid[to..to + n].copy_from_slice(&filled[from..from + n]),
                    None => valid[to..to + n].fill(!tile.missing),
                }
            }
        }
    }
}

/// Copies the part of a flat picture that lies in the window.
pub(super) fn blit_flat(image: &RgbImage, window: &Window, target: &mut Target<'_>) {
    let x = window.x.max(0)..(window.x + i64::from(window.width)).min(image.width as i64);
    let y = window.y.max(0)..(window.y + i64::from(window.height)).min(image.height as i64);
    if x.is_empty() || y.is_empty() {
        return;
    }
    let n = (x.end - x.start) as usize;
    for line in y {
        let from = line as usize * image.width + x.start as usize;
        let to = (line - window.y) as usize * window.width as usize + (x.start - window.x) as usize;
        target.rgb[to * 3..(to + n) * 3].copy_from_slice(&image.data[from * 3..(from + n) * 3]);
        if let Some(valid) = &mut target.valid {
            valid[to..to + n].fill(true);
        }
    }
}
