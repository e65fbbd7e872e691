//! Which parts of a slide are tissue.
//!
//! [`segment`] is the segmentation of CLAM (Lu et al. 2021) as HistCode runs it: saturation of a
//! coarse level, median, threshold, closing, contours, area filters. Contours are in level-0
//! pixels and decide in [`crate::tiling`] which squares are cut.

pub mod contours;
pub mod ring;

use crate::error::{Context, Error, Result};
use crate::image::{GrayImage, RgbImage, colour, draw, filter};
use crate::recipe::ClamTissue;
use crate::slide::{Level, Region, Slide, TileIndex};
use contours::Vertex;

/// Largest level that is segmented, in pixels (CLAM's own bound).
const MAX_PIXELS: u64 = 100_000_000;

/// Side in level-0 pixels of the square that [`ClamTissue`]'s areas are multiples of.
const REFERENCE_SIDE: f64 = 512.0;

/// A closed outline with holes, in level-0 pixels. Boundary pixels belong to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contour {
    /// The outer ring; the last vertex joins the first.
    pub outer: Vec<Vertex>,
    /// Rings cut out of it.
    pub holes: Vec<Vec<Vertex>>,
}

/// Tissue of one slide.
#[derive(Clone, Debug, Default)]
pub struct Tissue {
    /// 255 where the segmented level was tissue, after closing and before the area filters.
    pub mask: GrayImage,
    /// Level that was segmented.
    pub level: usize,
    /// Level-0 pixels per pixel of `mask`, horizontally and vertically.
    pub downsample: [f64; 2],
    /// Saturation above which a pixel counts as tissue.
    pub threshold: u8,
    /// Tissue pieces, in the order of `cv2.findContours`.
    pub contours: Vec<Contour>,
    /// Native tiles of the segmented level that could not be decoded and counted as background.
    pub broken: Vec<(TileIndex, String)>,
}

/// Segments a slide at the level that `params.downsample` selects.
///
/// # Errors
/// [`crate::Kind::Limit`] when that level has more than 10^8 pixels; otherwise what reading it
/// returns.
pub fn segment(slide: &Slide, params: &ClamTissue) -> Result<Tissue> {
    let level = segmentation_level(slide.levels(), params.downsample)?;
    let Level { width, height, .. } = slide.levels()[level];
    let region = Region { x: 0, y: 0, level, width, height };
    let read = slide.read_overview(&region).context(|| format!("tissue: level {level}"))?;
    let tissue = segment_image(&read.image, slide.levels(), level, params)?;
    Ok(Tissue { broken: read.broken, ..tissue })
}

/// Segments the pixels of one level, already in memory.
///
/// # Errors
/// [`crate::Kind::Usage`] when `level` does not exist or `image` does not have its size.
pub fn segment_image(
    image: &RgbImage,
    levels: &[Level],
    level: usize,
    params: &ClamTissue,
) -> Result<Tissue> {
    let size = [image.width as u64, image.height as u64];
    let expected = levels.get(level).map(|l| [u64::from(l.width), u64::from(l.height)]);
    if expected != Some(size) {
        return Err(Error::usage(format!("tissue: {size:?} px is not level {level}")));
    }
    Ok(segment_saturation(&colour::saturation(image), levels, level, params))
}

/// The last level whose downsample is at most `downsample`, OpenSlide's strict rule: a level of
/// 64.004 is not taken for 64. Level 0 when there is none.
///
/// # Errors
/// [`crate::Kind::Limit`] when the level has more than 10^8 pixels.
pub fn segmentation_level(levels: &[Level], downsample: f64) -> Result<usize> {
    let level = levels.iter().skip(1).take_while(|l| l.downsample <= downsample).count();
    let Some(chosen) = levels.get(level) else {
        return Err(Error::usage("tissue: the slide has no levels"));
    };
    let pixels = u64::from(chosen.width) * u64::from(chosen.height);
    if pixels > MAX_PIXELS {
        return Err(Error::limit(format!(
            "tissue: level {level} is the coarsest with a downsample of at most {downsample} and \
             has {} x {} px, more than {MAX_PIXELS}; the slide lacks a small enough level",
            chosen.width, chosen.height
        )));
    }
    Ok(level)
}

fn segment_saturation(
    saturation: &GrayImage,
    levels: &[Level],
    level: usize,
    params: &ClamTissue,
) -> Tissue {
    let mut mask = filter::median(saturation, params.median);
    let threshold = params.threshold.unwrap_or_else(|| filter::otsu(&mask));
    filter::binarise(&mut mask, threshold);
    filter::close(&mut mask, params.close);
    let downsample = [
        f64::from(levels[0].width) / f64::from(levels[level].width),
        f64::from(levels[0].height) / f64::from(levels[level].height),
    ];
    let contours = keep_large(contours::find_contours(&mask), downsample, params)
        .into_iter()
        .map(|contour| contour.scaled(downsample))
        .collect();
    Tissue { mask, level, downsample, threshold, contours, broken: Vec::new() }
}

/// CLAM's area filters, in pixels of the segmented level.
fn keep_large(
    components: Vec<contours::Component>,
    downsample: [f64; 2],
    params: &ClamTissue,
) -> Vec<Contour> {
    // CLAM truncates the reference square to whole pixels.
    let unit = (REFERENCE_SIDE * REFERENCE_SIDE / (downsample[0] * downsample[1])).trunc();
    let mut kept = Vec::new();
    for contours::Component { outer, mut holes } in components {
        let hole_area: f64 = holes.iter().map(|h| contours::area(h)).sum();
        let area = contours::area(&outer) - hole_area;
        if area == 0.0 || area <= params.min_area * unit {
            continue;
        }
        holes.sort_by(|a, b| contours::area(b).total_cmp(&contours::area(a)));
        holes.truncate(params.max_holes);
        holes.retain(|hole| contours::area(hole) > params.min_hole * unit);
        kept.push(Contour { outer, holes });
    }
    kept
}

impl Contour {
    /// The contour with both axes multiplied and truncated to whole pixels.
    #[must_use]
    pub fn scaled(&self, factor: [f64; 2]) -> Contour {
        let vertex = |v: &Vertex| {
            [(f64::from(v[0]) * factor[0]) as i32, (f64::from(v[1]) * factor[1]) as i32]
        };
        let ring = |ring: &Vec<Vertex>| ring.iter().map(vertex).collect();
        Contour { outer: ring(&self.outer), holes: self.holes.iter().map(ring).collect() }
    }

    /// Whether a point lies on or inside the outer ring (`cv2.pointPolygonTest >= 0`) and not
    /// strictly inside a hole. For many points make [`ring::Ring`]s once instead.
    pub fn contains(&self, point: [f64; 2]) -> bool {
        let side = |ring: &[Vertex]| ring::Ring::new(ring).side(point);
        side(&self.outer) != ring::Side::Outside
            && self.holes.iter().all(|hole| side(hole) != ring::Side::Inside)
    }
}

/// The contours as a mask of `width x height` pixels, each `downsample` level-0 pixels wide and
/// high: 255 on and inside outer rings, 0 on and inside holes, as CLAM fills it for heatmaps
/// (larger contours first, so that tissue inside a hole survives).
pub fn rasterise(
    contours: &[Contour],
    width: usize,
    height: usize,
    downsample: [f64; 2],
) -> GrayImage {
    let mut scaled: Vec<Contour> =
        contours.iter().map(|c| c.scaled(downsample.map(|d| 1.0 / d))).collect();
    scaled.sort_by(|a, b| contours::area(&b.outer).total_cmp(&contours::area(&a.outer)));
    let mut mask = GrayImage::filled(width, height, 0);
    let points =
        |ring: &Vec<Vertex>| ring.iter().map(|v| v.map(i64::from)).collect::<Vec<draw::Point>>();
    for contour in &scaled {
        mask.fill_polygon(&[&points(&contour.outer)], 255);
        let holes: Vec<_> = contour.holes.iter().map(points).collect();
        let holes: Vec<&[draw::Point]> = holes.iter().map(Vec::as_slice).collect();
        mask.fill_polygon(&holes, 0);
    }
    mask
}
