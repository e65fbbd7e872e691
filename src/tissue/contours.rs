//! Borders of connected components in a mask, as `cv2.findContours(RETR_CCOMP,
//! CHAIN_APPROX_NONE)` returns them, and measures of closed contours.
//!
//! Border following after Suzuki and Abe, "Topological structural analysis of digitized binary
//! images by border following" (1985), with 8-connected components, 4-connected holes and a
//! two-level hierarchy: outer borders, and the holes of each. Points, start points, direction
//! and order are OpenCV's, since the order of contours is the order of tiles.

use crate::image::GrayImage;

/// A vertex `[x, y]` in pixels.
pub type Vertex = [i32; 2];

/// Neighbours in the order a border is followed: counter-clockwise on the screen from the right.
const STEPS: [[i32; 2]; 8] = [[1, 0], [1, -1], [0, -1], [-1, -1], [-1, 0], [-1, 1], [0, 1], [1, 1]];

/// An outer border and the borders of the holes directly inside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Component {
    /// Outermost pixels of the component.
    pub outer: Vec<Vertex>,
    /// For each hole the component's pixels around it.
    pub holes: Vec<Vec<Vertex>>,
}

/// Contours of the non-zero pixels of `mask`, last found first, holes likewise.
pub fn find_contours(mask: &GrayImage) -> Vec<Component> {
    let mut tracer = Tracer::new(mask);
    let mut components: Vec<Component> = Vec::new();
    // Component of border label `i + FIRST_LABEL`.
    let mut component_of: Vec<usize> = Vec::new();
    for y in 1..=mask.height {
        // The border met last on this row; a hole belongs to the component of that border.
        let mut last_label = 0;
        for x in 1..=mask.width {
            let at = y * tracer.stride + x;
            let (before, here) = (tracer.labels[at - 1], tracer.labels[at]);
            let label = component_of.len() as i32 + FIRST_LABEL;
            if before == 0 && here == 1 {
                component_of.push(components.len());
                components.push(Component { outer: tracer.follow(at, 4, label), holes: vec![] });
            } else if before >= 1
                && here == 0
                && let Some(&owner) = component_of.get((last_label - FIRST_LABEL) as usize)
            {
                component_of.push(owner);
                components[owner].holes.push(tracer.follow(at - 1, 0, label));
            }
            let now = tracer.labels[at].abs();
            if now > 1 {
                last_label = now;
            }
        }
    }
    components.reverse();
    components.iter_mut().for_each(|c| c.holes.reverse());
    components
}

/// Labels 0 and 1 are the mask's background and pixels not yet on a border.
const FIRST_LABEL: i32 = 2;

/// The mask with a background frame; border pixels carry the label of a border they lie on,
/// negative when the pixel to their right is outside of it.
struct Tracer {
    labels: Vec<i32>,
    stride: usize,
}

impl Tracer {
    fn new(mask: &GrayImage) -> Tracer {
        let stride = mask.width + 2;
        let mut labels = vec![0i32; stride * (mask.height + 2)];
        for (line, row) in labels.chunks_exact_mut(stride).skip(1).zip(mask.rows()) {
            for (label, &value) in line[1..].iter_mut().zip(row) {
                *label = i32::from(value != 0);
            }
        }
        Tracer { labels, stride }
    }

    fn neighbour(&self, at: usize, direction: usize) -> usize {
        let [dx, dy] = STEPS[direction];
        at.wrapping_add_signed(dy as isize * self.stride as isize + dx as isize)
    }

    fn vertex(&self, at: usize) -> Vertex {
        [(at % self.stride) as i32 - 1, (at / self.stride) as i32 - 1]
    }

    /// Follows the border through `start` whose outside lies in `direction` (4 for an outer
    /// border, 0 for a hole) and labels its pixels.
    fn follow(&mut self, start: usize, direction: usize, label: i32) -> Vec<Vertex> {
        let mut points = vec![self.vertex(start)];
        // Clockwise from the outside to the last pixel of the border.
        let clockwise = (1..8).map(|turn| (direction + 8 - turn) % 8);
        let Some(towards_last) =
            clockwise.into_iter().find(|&d| self.labels[self.neighbour(start, d)] != 0)
        else {
            self.labels[start] = -label;
            return points;
        };
        let last = self.neighbour(start, towards_last);
        let (mut at, mut back) = (start, towards_last);
        loop {
            // Counter-clockwise from where the border came to the next pixel; there is always
            // one, at worst the one it came from.
            let turns = (1..8).find(|t| self.labels[self.neighbour(at, (back + t) % 8)] != 0);
            let turns = turns.unwrap_or(8);
            let forward = (back + turns) % 8;
            // Was the neighbour to the right passed over, hence outside?
            if (1..turns).any(|t| (back + t) % 8 == 0) {
                self.labels[at] = -label;
            } else if self.labels[at] == 1 {
                self.labels[at] = label;
            }
            let next = self.neighbour(at, forward);
            if next == start && at == last {
                return points;
            }
            at = next;
            back = (forward + 4) % 8;
            points.push(self.vertex(at));
        }
    }
}

/// Area of the polygon through the vertices, in square pixels (`cv2.contourArea`, shoelace); a
/// border's own pixels count for half or less.
pub fn area(ring: &[Vertex]) -> f64 {
    let Some(&last) = ring.last() else { return 0.0 };
    let mut previous = last.map(i128::from);
    let mut twice = 0i128;
    for vertex in ring {
        let vertex = vertex.map(i128::from);
        twice += previous[0] * vertex[1] - previous[1] * vertex[0];
        previous = vertex;
    }
    twice.unsigned_abs() as f64 * 0.5
}

/// Smallest and largest x and y as `([x, y], [x, y])`, both inclusive; none for no vertices.
pub fn bounds(ring: &[Vertex]) -> Option<(Vertex, Vertex)> {
    let first = *ring.first()?;
    Some(ring.iter().fold((first, first), |(low, high), v| {
        ([low[0].min(v[0]), low[1].min(v[1])], [high[0].max(v[0]), high[1].max(v[1])])
    }))
}
