//! Filled polygons that cover the same pixels as OpenCV's.
//!
//! Masks made with `cv2.fillPoly` decide which pixels are painted white and which count as
//! tissue, so its rule is kept: a polygon covers the pixels of its edges, drawn as Bresenham
//! lines, and in each row the pixels between one crossing and the next, in 16-bit fixed point
//! (even-odd over all rings; an edge crosses the rows `y0 <= y < y1`).
//! Everything is expressed as horizontal spans given to a sink, so that nothing is allocated per
//! pixel and a window of a larger canvas can be filled exactly as the whole canvas would be.

use super::GrayImage;
use std::ops::{Range, RangeInclusive};

/// A vertex: x to the right, y down, in whole pixels.
pub type Point = [i64; 2];

/// Fraction bits of a crossing (OpenCV `XY_SHIFT`).
const FRACTION: u32 = 16;

/// Added before dropping the fraction, to round up.
const ROUND_UP: i64 = (1 << FRACTION) - 1;

/// Coordinates beyond this are clamped, so that the fixed-point products cannot overflow.
const MAX_COORDINATE: i64 = 1 << 30;

/// Calls `span(y, x0..=x1)` for pixels covered by the polygon of `rings` on a canvas of
/// `[W, H]` pixels, in rows `rows` only. Spans lie within the canvas; they may overlap.
///
/// The canvas matters beyond clipping: OpenCV bends an edge that leaves it at the border, and so
/// does this.
pub fn fill_spans(
    canvas: [i64; 2],
    rings: &[&[Point]],
    rows: Range<i64>,
    mut span: impl FnMut(i64, RangeInclusive<i64>),
) {
    let rows = rows.start.max(0)..rows.end.min(canvas[1]);
    if canvas[0] <= 0 || rows.is_empty() {
        return;
    }
    let mut edges = Vec::new();
    for ring in rings {
        let Some(&last) = ring.last() else { continue };
        let mut from = clamp(last);
        for &to in *ring {
            let to = clamp(to);
            if from[1].max(to[1]) >= rows.start && from[1].min(to[1]) < rows.end {
                line(canvas, from, to, |x, y| {
                    if rows.contains(&y) {
                        span(y, x..=x);
                    }
                });
                edges.extend(Edge::new(canvas, from, to));
            }
            from = to;
        }
    }
    fill_between(canvas[0], &mut edges, rows, span);
}

fn clamp(point: Point) -> Point {
    point.map(|c| c.clamp(-MAX_COORDINATE, MAX_COORDINATE))
}

/// An edge that crosses rows `y0 <= y < y1`, at `x + (y - y0) * dx` in fixed point.
struct Edge {
    y0: i64,
    y1: i64,
    x: i64,
    dx: i64,
}

impl Edge {
    /// None for a horizontal edge, which crosses no row.
    fn new(canvas: [i64; 2], from: Point, to: Point) -> Option<Edge> {
        if from[1] == to[1] {
            return None;
        }
        // The points that define the slope: the clipped ones when the edge leaves the canvas.
        let (mut a, mut b) = ([from[0] << FRACTION, from[1]], [to[0] << FRACTION, to[1]]);
        if !contains(canvas, from) || !contains(canvas, to) {
            let (c, d, _) = clip(canvas, from, to);
            (a[0], b[0]) = (c[0] << FRACTION, d[0] << FRACTION);
            if c[1] != d[1] {
                (a[1], b[1]) = (c[1], d[1]);
            }
        }
        let dx = (b[0] - a[0]) / (b[1] - a[1]);
        let (start, top) = if from[1] < to[1] { (a, from[1]) } else { (b, to[1]) };
        Some(Edge { y0: top, y1: from[1].max(to[1]), x: start[0] + (top - start[1]) * dx, dx })
    }
}

/// Fills from each odd crossing of a row to the next even one.
fn fill_between(
    width: i64,
    edges: &mut [Edge],
    rows: Range<i64>,
    mut span: impl FnMut(i64, RangeInclusive<i64>),
) {
    edges.sort_unstable_by_key(|e| e.y0);
    let (mut active, mut next) = (Vec::<usize>::new(), 0);
    let mut crossings = Vec::new();
    for y in rows {
        while edges.get(next).is_some_and(|e| e.y0 <= y) {
            active.push(next);
            next += 1;
        }
        active.retain(|&i| edges[i].y1 > y);
        crossings.clear();
        crossings.extend(active.iter().map(|&i| edges[i].x + (y - edges[i].y0) * edges[i].dx));
        crossings.sort_unstable();
        for pair in crossings.as_chunks::<2>().0 {
            let (x0, x1) = ((pair[0] + ROUND_UP) >> FRACTION, pair[1] >> FRACTION);
            if x0.max(0) <= x1.min(width - 1) {
                span(y, x0.max(0)..=x1.min(width - 1));
            }
        }
    }
}

fn contains([width, height]: [i64; 2], [x, y]: Point) -> bool {
    (0..width).contains(&x) && (0..height).contains(&y)
}

/// The part of a segment on the canvas and whether there is one, with OpenCV's rounding
/// (`cv2.clipLine`: Cohen and Sutherland, first vertically, then horizontally).
fn clip([width, height]: [i64; 2], mut a: Point, mut b: Point) -> (Point, Point, bool) {
    let (right, bottom) = (width - 1, height - 1);
    let beside = |p: Point| i32::from(p[0] < 0) | i32::from(p[0] > right) << 1;
    let outside = |p: Point| beside(p) | i32::from(p[1] < 0) << 2 | i32::from(p[1] > bottom) << 3;
    let (mut ca, mut cb) = (outside(a), outside(b));
    if ca & cb == 0 && ca | cb != 0 {
        if ca & 12 != 0 {
            let y = if ca < 8 { 0 } else { bottom };
            a = [a[0] + cut(y, a, a, b, 1), y];
            ca = beside(a);
        }
        if cb & 12 != 0 {
            let y = if cb < 8 { 0 } else { bottom };
            b = [b[0] + cut(y, b, a, b, 1), y];
            cb = beside(b);
        }
        if ca & cb == 0 && ca | cb != 0 {
            if ca != 0 {
                let x = if ca == 1 { 0 } else { right };
                a = [x, a[1] + cut(x, a, a, b, 0)];
                ca = 0;
            }
            if cb != 0 {
                let x = if cb == 1 { 0 } else { right };
                b = [x, b[1] + cut(x, b, a, b, 0)];
                cb = 0;
            }
        }
    }
    (a, b, ca | cb == 0)
}

/// How far a cut at `at` along one axis moves `end` across it, on the segment `p` to `q` as the
/// cuts before left it.
fn cut(at: i64, end: Point, p: Point, q: Point, along: usize) -> i64 {
    let across = 1 - along;
    let rise = (q[across] - p[across]) as f64;
    ((at - end[along]) as f64 * rise / (q[along] - p[along]) as f64) as i64
}

/// Calls `pixel(x, y)` for the 8-connected Bresenham line on the canvas, drawn left to right as
/// OpenCV does.
pub fn line(canvas: [i64; 2], from: Point, to: Point, mut pixel: impl FnMut(i64, i64)) {
    let (mut a, mut b) = (clamp(from), clamp(to));
    if !contains(canvas, a) || !contains(canvas, b) {
        let visible;
        (a, b, visible) = clip(canvas, a, b);
        if !visible {
            return;
        }
    }
    if b[0] < a[0] {
        (a, b) = (b, a);
    }
    let (dx, dy) = (b[0] - a[0], (b[1] - a[1]).abs());
    let down = if b[1] < a[1] { -1 } else { 1 };
    // Along the longer axis every step, along the shorter when the error turns negative.
    let (long, short) = (dx.max(dy), dx.min(dy));
    let (major, minor) = if dy > dx { ([0, down], [1, 0]) } else { ([1, 0], [0, down]) };
    let mut error = long - 2 * short;
    let [mut x, mut y] = a;
    for _ in 0..=long {
        pixel(x, y);
        if error < 0 {
            error += 2 * long;
            x += minor[0];
            y += minor[1];
        }
        error -= 2 * short;
        x += major[0];
        y += major[1];
    }
}

impl GrayImage {
    /// Sets the pixels that `cv2.fillPoly(image, rings, value)` sets.
    pub fn fill_polygon(&mut self, rings: &[&[Point]], value: u8) {
        let (width, height) = (self.width as i64, self.height as i64);
        fill_spans([width, height], rings, 0..height, |y, x| {
            let row = y * width;
            self.data[(row + x.start()) as usize..=(row + x.end()) as usize].fill(value);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_vertices_neither_overflow_nor_take_long() {
        let mut mask = GrayImage::filled(9, 9, 0);
        let far = i64::MAX;
        mask.fill_polygon(&[&[[-far, -far], [far, -far], [far, far], [-far, far]]], 1);
        assert!(mask.data.iter().all(|&v| v == 1));
    }
}
