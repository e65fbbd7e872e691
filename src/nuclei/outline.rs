//! The outline of a region along the edges of its pixels.

use super::{Labels, Shape};

/// Steps to the right, down, left and up.
const STEPS: [[i64; 2]; 4] = [[1, 0], [0, 1], [-1, 0], [0, -1]];

/// Corners of the outer border of a 4-connected region, clockwise on the screen, in pixel corners:
/// the pixel `x, y` covers `x..x + 1` by `y..y + 1`. The polygon's area is that of the region with
/// its holes.
pub fn outline(labels: &Labels, shape: &Shape) -> Vec<[i32; 2]> {
    let inside = |x: i64, y: i64| labels.at(x, y) == shape.label;
    let [left, top, right, _] = shape.bounds.map(|v| v as i64);
    let Some(first) = (left..right).find(|&x| inside(x, top)) else { return Vec::new() };
    let start = [first, top];
    let (mut at, mut direction) = (start, 0);
    let mut corners = Vec::new();
    loop {
        let step = STEPS[direction];
        at = [at[0] + step[0], at[1] + step[1]];
        // The pixels ahead of the corner, on the right and on the left of the way.
        let side = STEPS[(direction + 1) % 4];
        let ahead = |sign: i64| {
            let pixel = |k: usize| at[k] + (step[k] + sign * side[k] - 1) / 2;
            inside(pixel(0), pixel(1))
        };
        let turn = match (ahead(1), ahead(-1)) {
            (false, _) => 1,
            (true, true) => 3,
            (true, false) => 0,
        };
        if turn != 0 {
            corners.push([at[0] as i32, at[1] as i32]);
            direction = (direction + turn) % 4;
        }
        if at == start && direction == 0 {
            return corners;
        }
    }
}
