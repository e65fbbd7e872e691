//! Masks: made of probability maps, cleaned as `scipy.ndimage` does, measured.
//!
//! A mask is a [`GrayImage`] whose pixels are 0 outside and 255 inside.

use super::GrayImage;
use crate::recipe::{Connectivity, Fusion, FusionRule};

const INSIDE: u8 = 255;

/// A rectangle of whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// First column.
    pub x: usize,
    /// First row.
    pub y: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Rect {
    /// The rectangle with `dx` more columns on either side and `dy` more rows above and below, cut
    /// off at the edges of a picture of `width x height` pixels.
    pub fn grown(self, [dx, dy]: [usize; 2], width: usize, height: usize) -> Rect {
        let axis = |start: usize, length: usize, by: usize, limit: usize| {
            let end = start.saturating_add(length).saturating_add(by).min(limit);
            let start = start.saturating_sub(by).min(end);
            (start, end - start)
        };
        let (x, w) = axis(self.x, self.width, dx, width);
        let (y, h) = axis(self.y, self.height, dy, height);
        Rect { x, y, width: w, height: h }
    }
}

/// One mask of several probability maps `[H, W]` of the same size, by the recipe's rule. The mean is
/// taken in f64, in the order of the maps. No map gives an empty mask.
pub fn fuse(maps: &[&[f32]], width: usize, fusion: &Fusion) -> GrayImage {
    let n = maps.first().map_or(0, |map| map.len());
    let inside = |i: usize| {
        let values = maps.iter().map(|map| map.get(i).map_or(0.0, |&p| f64::from(p)));
        let votes = values.clone().filter(|&p| p >= fusion.threshold).count();
        match fusion.rule {
            FusionRule::Mean => values.sum::<f64>() / maps.len() as f64 >= fusion.threshold,
            FusionRule::Vote => 2 * votes > maps.len(),
            FusionRule::Union => votes > 0,
            FusionRule::Intersection => votes == maps.len(),
        }
    };
    let data = (0..n).map(|i| if inside(i) { INSIDE } else { 0 }).collect();
    GrayImage { width, height: n / width.max(1), data }
}

/// What the recipe keeps of a raw mask: its largest component, with holes filled.
pub fn clean(mask: &GrayImage, fusion: &Fusion) -> GrayImage {
    let kept = match fusion.largest {
        true => largest_component(mask, fusion.connectivity),
        false => mask.clone(),
    };
    if fusion.fill_holes { fill_holes(&kept) } else { kept }
}

/// The component with the most pixels; of equals the one whose first pixel comes first, row by row.
/// That is `argmax` over the labels of `scipy.ndimage.label`.
pub fn largest_component(mask: &GrayImage, connectivity: Connectivity) -> GrayImage {
    let mut seen = vec![false; mask.data.len()];
    let mut best: Vec<usize> = Vec::new();
    for start in 0..mask.data.len() {
        if mask.data[start] == 0 || seen[start] {
            continue;
        }
        let component = flood(mask, start, connectivity, &mut seen, |value| value != 0);
        if component.len() > best.len() {
            best = component;
        }
    }
    let mut out = GrayImage::filled(mask.width, mask.height, 0);
    best.into_iter().for_each(|at| out.data[at] = INSIDE);
    out
}

/// Background that cannot be reached from the border of the picture over shared edges becomes part
/// of the mask: `scipy.ndimage.binary_fill_holes`.
pub fn fill_holes(mask: &GrayImage) -> GrayImage {
    let (w, h) = (mask.width, mask.height);
    let mut outside = vec![false; mask.data.len()];
    let border = (0..w).flat_map(|x| [x, (h.max(1) - 1) * w + x]);
    let border = border.chain((0..h).flat_map(|y| [y * w, y * w + w - 1]));
    for start in border.filter(|_| w > 0 && h > 0) {
        if mask.data[start] == 0 && !outside[start] {
            flood(mask, start, Connectivity::Four, &mut outside, |value| value == 0);
        }
    }
    let data = outside.iter().map(|&outside| if outside { 0 } else { INSIDE }).collect();
    GrayImage { width: w, height: h, data }
}

/// The pixels that `wanted` holds for and that touch `start` through such pixels; marks them seen.
fn flood(
    mask: &GrayImage,
    start: usize,
    connectivity: Connectivity,
    seen: &mut [bool],
    wanted: impl Fn(u8) -> bool,
) -> Vec<usize> {
    let (w, h) = (mask.width, mask.height);
    let mut found = vec![start];
    seen[start] = true;
    let mut next = 0;
    while let Some(&at) = found.get(next) {
        next += 1;
        let (x, y) = (at % w, at / w);
        for ny in y.saturating_sub(1)..=(y + 1).min(h - 1) {
            for nx in x.saturating_sub(1)..=(x + 1).min(w - 1) {
                let edge = nx == x || ny == y;
                let there = ny * w + nx;
                let touches = edge || connectivity == Connectivity::Eight;
                if touches && !seen[there] && wanted(mask.data[there]) {
                    seen[there] = true;
                    found.push(there);
                }
            }
        }
    }
    found
}

/// Pixels inside.
pub fn area(mask: &GrayImage) -> usize {
    mask.data.iter().filter(|&&value| value != 0).count()
}

/// The smallest rectangle around the pixels inside; none for an empty mask.
pub fn bounding_box(mask: &GrayImage) -> Option<Rect> {
    let mut found: Option<[usize; 4]> = None;
    for (y, row) in mask.rows().enumerate() {
        let Some(left) = row.iter().position(|&value| value != 0) else { continue };
        let right = row.iter().rposition(|&value| value != 0).unwrap_or(left);
        found = Some(match found {
            None => [left, right, y, y],
            Some([l, r, top, _]) => [l.min(left), r.max(right), top, y],
        });
    }
    found.map(|[left, right, top, bottom]| Rect {
        x: left,
        y: top,
        width: right - left + 1,
        height: bottom - top + 1,
    })
}

/// `2 |A and B| / (|A| + |B|)` (Dice 1945); 1 for two empty masks. Both must have one size.
pub fn dice(a: &GrayImage, b: &GrayImage) -> f64 {
    let both = a.data.iter().zip(&b.data).filter(|(a, b)| **a != 0 && **b != 0).count();
    match area(a) + area(b) {
        0 => 1.0,
        sum => 2.0 * both as f64 / sum as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_differ_where_maps_do() {
        // Columns: all three, two of three, one of three with a high mean, none.
        let maps: [&[f32]; 3] =
            [&[0.9, 0.6, 1.0, 0.1], &[0.5, 0.5, 0.3, 0.2], &[0.7, 0.1, 0.3, 0.3]];
        let columns = |rule| {
            let fusion = Fusion { rule, ..Fusion::default() };
            fuse(&maps, 4, &fusion).data.iter().map(|&v| u8::from(v != 0)).collect::<Vec<_>>()
        };
        assert_eq!(columns(FusionRule::Mean), [1, 0, 1, 0]);
        assert_eq!(columns(FusionRule::Vote), [1, 1, 0, 0]);
        assert_eq!(columns(FusionRule::Union), [1, 1, 1, 0]);
        assert_eq!(columns(FusionRule::Intersection), [1, 0, 0, 0]);
    }

    #[test]
    fn two_maps_need_both_votes() {
        let fusion = Fusion { rule: FusionRule::Vote, ..Fusion::default() };
        assert_eq!(fuse(&[&[0.9, 0.9], &[0.1, 0.9]], 2, &fusion).data, [0, 255]);
    }

    #[test]
    fn dice_of_nothing_with_nothing_is_1() {
        let (empty, full) = (GrayImage::filled(3, 2, 0), GrayImage::filled(3, 2, 255));
        assert_eq!(dice(&empty, &empty), 1.0);
        assert_eq!(dice(&empty, &full), 0.0);
        assert_eq!(bounding_box(&empty), None);
        assert_eq!(area(&clean(&empty, &Fusion::default())), 0);
    }

    #[test]
    fn a_box_grows_up_to_the_edges() {
        let rect = Rect { x: 2, y: 5, width: 4, height: 3 };
        let grown = rect.grown([3, 1], 8, 20);
        assert_eq!(grown, Rect { x: 0, y: 4, width: 8, height: 5 });
        assert_eq!(rect.grown([0, 0], 8, 20), rect);
    }
}
