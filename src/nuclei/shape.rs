//! Size and shape of labelled regions, as `skimage.measure.regionprops` defines them.
//!
//! Sums of coordinates are exact integers, so a region's numbers do not depend on where it lies.

use std::f64::consts::{FRAC_PI_4, PI, SQRT_2};

/// A region number for every pixel; 0 is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// W.
    pub width: usize,
    /// H.
    pub height: usize,
    /// `H * W` numbers, rows top to bottom.
    pub data: Vec<u32>,
}

impl Labels {
    /// The number at a pixel, 0 outside.
    pub fn at(&self, x: i64, y: i64) -> u32 {
        let inside = |v: i64, n: usize| usize::try_from(v).ok().filter(|&v| v < n);
        match (inside(x, self.width), inside(y, self.height)) {
            (Some(x), Some(y)) => self.data[y * self.width + x],
            _ => 0,
        }
    }
}

/// A region, in pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Its number.
    pub label: u32,
    /// Left, top, and one past right and bottom.
    pub bounds: [usize; 4],
    /// Pixels.
    pub area: usize,
    /// Mean `x, y` of the pixels' centres, where the first pixel's is `0, 0`.
    pub centroid: [f64; 2],
    /// Length of the border by Benkrid and Crookes' estimator over the pixels that have one of the
    /// four neighbours outside.
    pub perimeter: f64,
    /// Axes of the ellipse with the same second moments, the longer first.
    pub axes: [f64; 2],
    /// Angle between the vertical and the longer axis, counter-clockwise, -pi/2 to pi/2.
    pub orientation: f64,
    /// Of that ellipse: 0 for a circle.
    pub eccentricity: f64,
    /// Pixels of the convex hull of the midpoints of all pixel edges, its border included.
    pub convex_area: usize,
    /// Mean of the channel measured.
    pub intensity: f64,
}

impl Shape {
    /// `4 pi area / perimeter^2`; about 1 for a disc, somewhat above for very small ones. None for a
    /// region too small to have a perimeter.
    pub fn circularity(&self) -> Option<f64> {
        (self.perimeter > 0.0).then(|| 4.0 * PI * self.area as f64 / self.perimeter.powi(2))
    }

    /// Area over that of the convex hull.
    pub fn solidity(&self) -> f64 {
        self.area as f64 / self.convex_area.max(1) as f64
    }
}

/// What is summed over a region in one pass.
#[derive(Clone, Copy)]
struct Sums {
    bounds: [usize; 4],
    n: i128,
    x: i128,
    y: i128,
    xx: i128,
    yy: i128,
    xy: i128,
    intensity: f64,
}

/// Measures all regions, in the order of their numbers; `intensity` has a value for every pixel.
pub fn measure(labels: &Labels, intensity: &[f32]) -> Vec<Shape> {
    let most = labels.data.iter().copied().max().unwrap_or(0) as usize;
    let empty = Sums {
        bounds: [usize::MAX, usize::MAX, 0, 0],
        n: 0,
        x: 0,
        y: 0,
        xx: 0,
        yy: 0,
        xy: 0,
        intensity: 0.0,
    };
    let mut sums = vec![empty; most];
    for (i, (&label, &value)) in labels.data.iter().zip(intensity).enumerate() {
        let Some(s) = (label as usize).checked_sub(1).map(|k| &mut sums[k]) else { continue };
        let (x, y) = (i % labels.width, i / labels.width);
        let [left, top, right, bottom] = s.bounds;
        s.bounds = [left.min(x), top.min(y), right.max(x + 1), bottom.max(y + 1)];
        let (x, y) = (x as i128, y as i128);
        s.n += 1;
        s.x += x;
        s.y += y;
        s.xx += x * x;
        s.yy += y * y;
        s.xy += x * y;
        s.intensity += f64::from(value);
    }
    let regions = sums.iter().enumerate().filter(|(_, s)| s.n > 0);
    regions.map(|(i, s)| shape(labels, i as u32 + 1, s)).collect()
}

fn shape(labels: &Labels, label: u32, s: &Sums) -> Shape {
    let n = s.n as f64;
    // Variances and covariance over n: exact numerators.
    let moment = |ab: i128, a: i128, b: i128| (s.n * ab - a * b) as f64 / (n * n);
    let (xx, yy, xy) = (moment(s.xx, s.x, s.x), moment(s.yy, s.y, s.y), moment(s.xy, s.x, s.y));
    let (middle, half) = (f64::midpoint(xx, yy), (xx - yy) / 2.0);
    let root = half.hypot(xy);
    let (large, small) = (middle + root, (middle - root).max(0.0));
    // A region as wide as high has its long axis, if any, on a diagonal.
    let orientation = match (xx == yy, xy > 0.0) {
        (true, true) => FRAC_PI_4,
        (true, false) => -FRAC_PI_4,
        (false, _) => 0.5 * (2.0 * xy).atan2(yy - xx),
    };
    Shape {
        label,
        bounds: s.bounds,
        area: s.n as usize,
        centroid: [s.x as f64 / n, s.y as f64 / n],
        perimeter: perimeter(labels, label, s.bounds),
        axes: [4.0 * large.sqrt(), 4.0 * small.sqrt()],
        orientation,
        eccentricity: if large > 0.0 { (1.0 - small / large).max(0.0).sqrt() } else { 0.0 },
        convex_area: convex_area(labels, label, s.bounds),
        intensity: s.intensity / n,
    }
}

/// Benkrid and Crookes, "Design and FPGA implementation of a perimeter estimator" (2000): a border
/// pixel counts by how many border pixels touch it along edges and at corners.
fn perimeter(labels: &Labels, label: u32, [left, top, right, bottom]: [usize; 4]) -> f64 {
    // The region's own pixels with a frame of two around them.
    let (width, height) = (right - left + 4, bottom - top + 4);
    let at = |x: usize, y: usize| y * width + x;
    let mut inside = vec![false; width * height];
    for y in top..bottom {
        for x in left..right {
            inside[at(x - left + 2, y - top + 2)] = labels.data[y * labels.width + x] == label;
        }
    }
    let mut border = vec![false; width * height];
    for y in 2..height - 2 {
        for x in 2..width - 2 {
            let around = [at(x - 1, y), at(x + 1, y), at(x, y - 1), at(x, y + 1)];
            border[at(x, y)] = inside[at(x, y)] && !around.iter().all(|&i| inside[i]);
        }
    }
    let mut counts = [0usize; 3];
    for y in 2..height - 2 {
        for x in (2..width - 2).filter(|&x| border[at(x, y)]) {
            let count = |list: [usize; 4]| list.iter().filter(|&&i| border[i]).count();
            let edges = count([at(x - 1, y), at(x + 1, y), at(x, y - 1), at(x, y + 1)]);
            let corners =
                count([at(x - 1, y - 1), at(x + 1, y - 1), at(x - 1, y + 1), at(x + 1, y + 1)]);
            match (edges, corners) {
                (2 | 3, 0) | (2 | 3, 1) | (2 | 3, 2) => counts[0] += 1,
                (0, 2) | (1, 3) => counts[1] += 1,
                (1, 1) | (1, 2) => counts[2] += 1,
                _ => {}
            }
        }
    }
    counts[0] as f64 + counts[1] as f64 * SQRT_2 + counts[2] as f64 * (1.0 + SQRT_2) / 2.0
}

/// Pixels whose centre lies in the convex hull of the region's pixel-edge midpoints, border
/// included. Coordinates are doubled, so that all of them are whole.
fn convex_area(labels: &Labels, label: u32, [left, top, right, bottom]: [usize; 4]) -> usize {
    let mut points = Vec::new();
    for y in top..bottom {
        let row = &labels.data[y * labels.width + left..y * labels.width + right];
        let ends = [row.iter().position(|&l| l == label), row.iter().rposition(|&l| l == label)];
        for x in ends.into_iter().flatten() {
            let (x, y) = (2 * x as i64, 2 * (y - top) as i64);
            points.extend([[x - 1, y], [x + 1, y], [x, y - 1], [x, y + 1]]);
        }
    }
    let hull = convex_hull(points);
    let mut area = 0;
    for y in (0..bottom - top).map(|y| 2 * y as i64) {
        let (mut low, mut high) = (i64::MAX, i64::MIN);
        for (a, b) in hull.iter().zip(hull.iter().cycle().skip(1)) {
            let (a, b) = if a[1] <= b[1] { (a, b) } else { (b, a) };
            if y < a[1] || y > b[1] || a[1] == b[1] {
                continue;
            }
            // x = number / divisor where the edge crosses the row; pixels stand at even x.
            let divisor = b[1] - a[1];
            let number = a[0] * divisor + (y - a[1]) * (b[0] - a[0]);
            low = low.min(-(-number).div_euclid(2 * divisor));
            high = high.max(number.div_euclid(2 * divisor));
        }
        area += usize::try_from(high - low + 1).unwrap_or(0);
    }
    area
}

/// Andrew's monotone chain (1979), without points on the edges.
fn convex_hull(mut points: Vec<[i64; 2]>) -> Vec<[i64; 2]> {
    points.sort_unstable();
    points.dedup();
    let turn = |o: [i64; 2], a: [i64; 2], b: [i64; 2]| {
        (a[0] - o[0]) * (b[1] - o[1]) - (a[1] - o[1]) * (b[0] - o[0])
    };
    let chain = |points: &mut dyn Iterator<Item = [i64; 2]>| {
        let mut chain: Vec<[i64; 2]> = Vec::new();
        for p in points {
            while let [.., o, a] = chain[..]
                && turn(o, a, p) <= 0
            {
                chain.pop();
            }
            chain.push(p);
        }
        chain.pop();
        chain
    };
    let mut hull = chain(&mut points.iter().copied());
    hull.extend(chain(&mut points.iter().rev().copied()));
    hull
}
