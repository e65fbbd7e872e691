//! Questions about one closed ring: on which side a point lies, how much of a square it covers.

use super::contours::{Vertex, bounds};

/// Where a point lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Strictly outside.
    Outside,
    /// On an edge or a vertex.
    Boundary,
    /// Strictly inside, by the even-odd rule.
    Inside,
}

/// A ring with its edges sorted into bands of rows, so that a question about one row or a small
/// square looks at few of the many thousand edges of a traced contour.
#[derive(Clone, Debug)]
pub struct Ring<'a> {
    vertices: &'a [Vertex],
    low: Vertex,
    high: Vertex,
    band_height: i64,
    /// `edges[starts[b]..starts[b + 1]]` touch band `b`; edge `i` ends in vertex `i`.
    starts: Vec<usize>,
    edges: Vec<u32>,
}

impl<'a> Ring<'a> {
    /// Sorts the edges of the ring through `vertices`.
    pub fn new(vertices: &'a [Vertex]) -> Ring<'a> {
        let (low, high) = bounds(vertices).unwrap_or(([0; 2], [-1; 2]));
        let height = i64::from(high[1]) - i64::from(low[1]) + 1;
        let mut ring =
            Ring { vertices, low, high, band_height: 1, starts: vec![0], edges: Vec::new() };
        if vertices.is_empty() {
            return ring;
        }
        // As many bands as keep the lists proportional to the ring, however long its edges are.
        let mut bands = (vertices.len() as i64 / 4).clamp(1, height);
        loop {
            ring.band_height = (height as u64).div_ceil(bands as u64) as i64;
            let entries: i64 = (0..vertices.len()).map(|i| ring.bands_of(i).count() as i64).sum();
            if bands == 1 || entries <= 8 * vertices.len() as i64 {
                break;
            }
            bands /= 2;
        }
        let bands = (height as u64).div_ceil(ring.band_height as u64) as usize;
        let mut counts = vec![0usize; bands + 1];
        for i in 0..vertices.len() {
            ring.bands_of(i).for_each(|band| counts[band + 1] += 1);
        }
        for band in 0..bands {
            counts[band + 1] += counts[band];
        }
        ring.edges = vec![0; counts[bands]];
        let mut next = counts.clone();
        for i in 0..vertices.len() {
            for band in ring.bands_of(i) {
                ring.edges[next[band]] = i as u32;
                next[band] += 1;
            }
        }
        ring.starts = counts;
        ring
    }

    /// Smallest and largest x and y, inclusive.
    pub fn bounds(&self) -> (Vertex, Vertex) {
        (self.low, self.high)
    }

    fn edge(&self, i: usize) -> [Vertex; 2] {
        let from = if i == 0 { self.vertices.len() - 1 } else { i - 1 };
        [self.vertices[from], self.vertices[i]]
    }

    fn band(&self, y: i64) -> usize {
        ((y - i64::from(self.low[1])) / self.band_height) as usize
    }

    fn bands_of(&self, i: usize) -> std::ops::RangeInclusive<usize> {
        let [a, b] = self.edge(i);
        self.band(a[1].min(b[1]).into())..=self.band(a[1].max(b[1]).into())
    }

    /// On which side of the ring `[x, y]` lies: the sign of
    /// `cv2.pointPolygonTest(measureDist=False)`, exactly for coordinates in halves of a pixel.
    pub fn side(&self, [x, y]: [f64; 2]) -> Side {
        let within =
            |v: f64, axis: usize| f64::from(self.low[axis]) <= v && v <= f64::from(self.high[axis]);
        if self.edges.is_empty() || !within(x, 0) || !within(y, 1) {
            return Side::Outside;
        }
        let band = self.band(y.floor() as i64);
        let mut inside = false;
        for &i in &self.edges[self.starts[band]..self.starts[band + 1]] {
            let [a, b] = self.edge(i as usize).map(|v| v.map(f64::from));
            // How far the point lies to one side of the edge; zero on its line.
            let cross = (y - a[1]) * (b[0] - a[0]) - (x - a[0]) * (b[1] - a[1]);
            let spans =
                |axis: usize, v: f64| a[axis].min(b[axis]) <= v && v <= a[axis].max(b[axis]);
            if cross == 0.0 && spans(0, x) && spans(1, y) {
                return Side::Boundary;
            }
            let crosses_row = (a[1] <= y) != (b[1] <= y);
            if crosses_row && (cross > 0.0) == (b[1] > a[1]) {
                inside = !inside;
            }
        }
        if inside { Side::Inside } else { Side::Outside }
    }

    /// Area in square pixels that the ring shares with the square of side `size` at `corner`.
    ///
    /// Green's theorem on the ring clipped to the square: each edge contributes the integral of
    /// its x, clamped to the square, over the rows it spans. Exact up to rounding for a ring that
    /// does not cross itself.
    pub fn area_in_square(&self, corner: [f64; 2], size: f64) -> f64 {
        let [left, top] = corner;
        let bottom = top + size;
        if self.edges.is_empty() || bottom < f64::from(self.low[1]) || top > f64::from(self.high[1])
        {
            return 0.0;
        }
        let row = |y: f64| (y.floor() as i64).clamp(self.low[1].into(), self.high[1].into());
        let mut area = 0.0;
        for band in self.band(row(top))..=self.band(row(bottom)) {
            // An edge is in several lists: in each band it counts with its part in that band.
            let start = i64::from(self.low[1]) + band as i64 * self.band_height;
            let rows = [top.max(start as f64), bottom.min((start + self.band_height) as f64)];
            for &i in &self.edges[self.starts[band]..self.starts[band + 1]] {
                area += under_edge(self.edge(i as usize), rows, [left, left + size]);
            }
        }
        area.abs()
    }
}

/// Signed integral over the rows `y0..y1` that an edge spans of `clamp(x, x0, x1) - x0`.
fn under_edge(edge: [Vertex; 2], [y0, y1]: [f64; 2], [x0, x1]: [f64; 2]) -> f64 {
    let [a, b] = edge.map(|v| v.map(f64::from));
    let (top, bottom, sign) = if a[1] < b[1] { (a, b, 1.0) } else { (b, a, -1.0) };
    let (from, to) = (y0.max(top[1]), y1.min(bottom[1]));
    if from >= to {
        return 0.0;
    }
    let slope = (bottom[0] - top[0]) / (bottom[1] - top[1]);
    let x_at = |y: f64| top[0] + (y - top[1]) * slope;
    // The clamped edge is straight between the rows where it meets the square's sides.
    let meets = [x0, x1].map(|x| top[1] + (x - top[0]) / slope);
    let mut cuts = [from, to, to, to];
    for (cut, y) in cuts[1..3].iter_mut().zip(meets) {
        if y > from && y < to {
            *cut = y;
        }
    }
    cuts.sort_unstable_by(f64::total_cmp);
    let width = |y: f64| x_at(y).clamp(x0, x1) - x0;
    let parts = cuts.windows(2).map(|c| (c[1] - c[0]) * (width(c[0]) + width(c[1])) / 2.0);
    sign * parts.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A star whose edges are long and short, steep and flat.
    const STAR: [Vertex; 9] =
        [[0, 0], [40, 7], [90, -30], [61, 20], [80, 75], [33, 40], [30, 90], [12, 41], [-25, 38]];

    #[test]
    fn areas_of_a_tiling_add_up_to_the_shoelace_area() {
        let ring = Ring::new(&STAR);
        let expected = super::super::contours::area(&STAR);
        for size in [0.7, 3.0, 11.3, 200.0] {
            let steps = (130.0f64 / size).ceil() as i32;
            let mut total = 0.0;
            for (i, j) in (0..steps).flat_map(|i| (0..steps).map(move |j| (i, j))) {
                let corner = [-30.0 + f64::from(i) * size, -35.0 + f64::from(j) * size];
                total += ring.area_in_square(corner, size);
            }
            assert!((total - expected).abs() < 1e-6, "{size}: {total} {expected}");
        }
    }

    #[test]
    fn area_in_a_square_is_that_of_the_intersection() {
        let triangle = [[0, 0], [10, 0], [0, 10]];
        let ring = Ring::new(&triangle);
        for (corner, size, expected) in [
            ([0.0, 0.0], 10.0, 50.0),
            ([0.0, 0.0], 4.0, 16.0),
            ([4.0, 4.0], 4.0, 2.0),
            ([-3.0, 2.0], 4.0, 4.0),
            ([6.0, 6.0], 4.0, 0.0),
            ([5.0, -1.0], 2.0, 2.0),
            ([50.0, 50.0], 4.0, 0.0),
        ] {
            let got = ring.area_in_square(corner, size);
            assert!((got - expected).abs() < 1e-12, "{corner:?} {size}: {got}");
        }
    }

    #[test]
    fn bands_do_not_change_the_answer() {
        // Doubled vertices make many bands; a question per vertex and per edge's middle.
        let many: Vec<Vertex> = STAR.iter().flat_map(|&v| [v; 40]).collect();
        let (few, many) = (Ring::new(&STAR), Ring::new(&many));
        assert!(many.band_height < few.band_height);
        for y in -70..200 {
            for x in -60..200 {
                let point = [f64::from(x) / 2.0, f64::from(y) / 2.0];
                assert_eq!(few.side(point), many.side(point), "{point:?}");
            }
        }
    }

    #[test]
    fn rings_without_area_hold_nothing() {
        for vertices in [&[][..], &[[3, 3]], &[[1, 1], [1, 9]]] {
            let ring = Ring::new(vertices);
            assert_eq!(ring.side([2.0, 2.0]), Side::Outside);
            assert_eq!(ring.area_in_square([0.0, 0.0], 10.0), 0.0);
        }
        let far = [[i32::MIN, i32::MIN], [i32::MAX, i32::MAX], [i32::MIN, i32::MAX]];
        assert_eq!(Ring::new(&far).side([0.0, 1.0]), Side::Inside);
    }
}
