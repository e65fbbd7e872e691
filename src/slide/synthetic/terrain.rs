//! The lie of the land: where tissue, tumour nests, the dense part and marker ink are, on a coarse
//! grid that the rest interpolates.

use super::noise::{Lattice, Rng, smooth};
use super::specimen::SpecimenSpec;

/// What a coarse grid knows about a place.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// Above 0 in tissue; one unit is about 40 um.
    pub tissue: f32,
    /// Above 0 in tumour nests; one unit is about 100 um.
    pub tumour: f32,
    /// Above 0 in the dense part.
    pub dense: f32,
    /// Ink of a marker pen, 0 to 1.
    pub pen: f32,
}

impl Place {
    pub(super) fn lerp(self, other: Place, t: f32) -> Place {
        let mix = |a: f32, b: f32| a + (b - a) * t;
        Place {
            tissue: mix(self.tissue, other.tissue),
            tumour: mix(self.tumour, other.tumour),
            dense: mix(self.dense, other.dense),
            pen: mix(self.pen, other.pen),
        }
    }
}

/// The fields of the specimen on the coarse grid.
pub(super) fn grid(spec: &SpecimenSpec, step: u32, grid_width: usize) -> Vec<Place> {
    let mut rng = Rng::new(spec.seed, 4);
    let grid_height = (spec.height / step) as usize + 2;
    let per_um = 1.0 / (spec.mpp as f32 * step as f32);
    let pieces = pieces(&mut rng, grid_width as f32, grid_height as f32);
    let side = grid_width.min(grid_height) as f32;
    let mut layer = |cell: f32, amplitude: f32| (Lattice::new(&mut rng, cell), amplitude);
    let edge = [
        layer(side * 0.22, 0.42),
        layer(side * 0.09, 0.20),
        layer(60.0 * per_um, 0.06),
        layer(20.0 * per_um, 0.025),
    ];
    let nests = [
        layer(420.0 * per_um, 0.55),
        layer(150.0 * per_um, 0.55),
        layer(60.0 * per_um, 0.28),
        layer(22.0 * per_um, 0.08),
    ];
    let density = [layer(700.0 * per_um, 1.0), layer(220.0 * per_um, 0.4)];
    let mut grid = vec![Place::default(); grid_width * grid_height];
    let mut rows = [(); 3].map(|()| vec![0.0; grid_width]);
    for (y, places) in grid.chunks_mut(grid_width).enumerate() {
        for (row, layers) in rows.iter_mut().zip([&edge[..], &nests[..], &density[..]]) {
            row.fill(0.0);
            layers
                .iter()
                .for_each(|(lattice, amplitude)| lattice.add_row(y as u32, *amplitude, row));
        }
        for (x, place) in places.iter_mut().enumerate() {
            let inside = pieces.iter().map(|p| p.depth(x as f32, y as f32)).fold(-4.0, f32::max);
            // Depth 1 is the centre of a piece: make one unit about 40 um whatever its size.
            place.tissue = (inside + rows[0][x]) * side * 0.11 / (40.0 * per_um);
            place.tumour = rows[1][x];
            place.dense = rows[2][x];
        }
    }
    let share = rng.uniform(0.3, 0.65);
    shift_to_quantile(&mut grid, 1.0 - share, |p| &mut p.tumour);
    shift_to_quantile(&mut grid, rng.uniform(0.35, 0.65), |p| &mut p.dense);
    draw_pen(&mut rng, &mut grid, grid_width, per_um);
    grid
}

/// An ellipse of tissue.
struct Piece {
    center: [f32; 2],
    axes: [f32; 2],
    direction: [f32; 2],
}

impl Piece {
    /// 1 in the centre, 0 on the edge, falling as the square.
    fn depth(&self, x: f32, y: f32) -> f32 {
        let (dx, dy) = (x - self.center[0], y - self.center[1]);
        let [c, s] = self.direction;
        let (u, v) = ((c * dx + s * dy) / self.axes[0], (c * dy - s * dx) / self.axes[1]);
        1.0 - u * u - v * v
    }
}

/// Two to four pieces on a jittered 2 x 2 arrangement, the first always near the middle.
fn pieces(rng: &mut Rng, width: f32, height: f32) -> Vec<Piece> {
    let side = width.min(height);
    let count = 1 + (rng.bits() % 3) as usize;
    let mut pieces = vec![Piece {
        center: [width * rng.uniform(0.4, 0.6), height * rng.uniform(0.4, 0.6)],
        axes: [side * rng.uniform(0.28, 0.36), side * rng.uniform(0.2, 0.28)],
        direction: rng.direction(),
    }];
    for _ in 0..count {
        pieces.push(Piece {
            center: [width * rng.uniform(0.18, 0.82), height * rng.uniform(0.18, 0.82)],
            axes: [side * rng.uniform(0.12, 0.24), side * rng.uniform(0.09, 0.16)],
            direction: rng.direction(),
        });
    }
    pieces
}

/// Moves a field so that the given share of the tissue lies below 0.
fn shift_to_quantile(grid: &mut [Place], share: f32, field: impl Fn(&mut Place) -> &mut f32) {
    let mut values: Vec<f32> =
        grid.iter_mut().filter(|p| p.tissue > 0.0).map(|p| *field(p)).collect();
    if values.is_empty() {
        return;
    }
    let k = ((values.len() - 1) as f32 * share) as usize;
    let (_, quantile, _) = values.select_nth_unstable_by(k, f32::total_cmp);
    let quantile = *quantile;
    grid.iter_mut().for_each(|p| *field(p) -= quantile);
}

/// A marker stroke: a quadratic curve from one edge of a piece of glass to another place.
fn draw_pen(rng: &mut Rng, grid: &mut [Place], grid_width: usize, per_um: f32) {
    let height = (grid.len() / grid_width) as f32;
    let width = grid_width as f32;
    let mut point =
        |low: f32, high: f32| [width * rng.uniform(low, high), height * rng.uniform(0.04, 0.96)];
    let curve = [point(0.03, 0.12), point(0.0, 0.4), point(0.12, 0.4)];
    let radius = (45.0 * per_um).min(width.min(height) * 0.02).max(1.0);
    let steps = 400;
    for k in 0..=steps {
        let t = k as f32 / steps as f32;
        let at = [0, 1].map(|c| {
            let (a, b, d) = (curve[0][c], curve[1][c], curve[2][c]);
            a * (1.0 - t) * (1.0 - t) + 2.0 * b * t * (1.0 - t) + d * t * t
        });
        let reach = radius as i64 + 2;
        for y in at[1] as i64 - reach..=at[1] as i64 + reach {
            for x in at[0] as i64 - reach..=at[0] as i64 + reach {
                if x < 0 || y < 0 || x >= grid_width as i64 || y >= height as i64 {
                    continue;
                }
                let (dx, dy) = (x as f32 - at[0], y as f32 - at[1]);
                let ink = smooth((radius - (dx * dx + dy * dy).sqrt()) * 0.8 + 0.5);
                let place = &mut grid[y as usize * grid_width + x as usize];
                place.pen = place.pen.max(ink);
            }
        }
    }
}
