//! Maps at another size: nearest and bilinear.

use super::layer::{Layer, Site};
use crate::graph::{Interpolation, Shape, Taps};

/// Channels handled at a time.
const CHANNELS: usize = 256;

/// Each output between two rows and two columns of the input.
pub(super) struct Upsample {
    /// By output row and by output column.
    taps: [Vec<Taps>; 2],
    /// Rows and columns of an input map.
    from: [usize; 2],
    mode: Interpolation,
}

impl Upsample {
    pub fn new(input: Shape, output: Shape, mode: Interpolation) -> Upsample {
        let (Shape::Map { h, w, .. }, Shape::Map { h: oh, w: ow, .. }) = (input, output) else {
            unreachable!("inferred as maps")
        };
        let taps = |n, m| (0..m).map(|o| mode.taps(o, n, m)).collect();
        Upsample { taps: [taps(h, oh), taps(w, ow)], from: [h, w], mode }
    }
}

impl Layer for Upsample {
    fn run(&self, site: &Site<'_>) {
        let (x, [height, width]) = (site.inputs[0], self.from);
        let [rows, columns] = [self.taps[0].len(), self.taps[1].len()];
        site.sink.fill(&site.on, [columns.max(16), CHANNELS], |part, _| {
            let channels = part.channels.clone();
            let mut values = [[0f32; CHANNELS]; 4];
            for to in part.positions.clone() {
                let (v, h) = (self.taps[0][to / columns % rows], self.taps[1][to % columns]);
                let image = to / (rows * columns) * height;
                let at = |i: usize, j: usize| x.at((image + i) * width + j, channels.clone());
                if self.mode == Interpolation::Nearest {
                    part.put_stored(to, channels.start, at(v.first, h.first));
                    continue;
                }
                let corners = [
                    at(v.first, h.first),
                    at(v.first, h.second),
                    at(v.second, h.first),
                    at(v.second, h.second),
                ];
                for (value, corner) in values.iter_mut().zip(corners) {
                    site.on.kernels.widen(corner, &mut value[..channels.len()]);
                }
                let value = blend(&mut values, v.fraction, h.fraction, channels.len());
                part.put(to, channels.start, value);
            }
        });
    }
}

/// Between the columns of both rows, then between the rows; into the first corner.
fn blend(corners: &mut [[f32; CHANNELS]; 4], down: f32, across: f32, channels: usize) -> &[f32] {
    let [a, b, c, d] = corners;
    for (((a, b), c), d) in a[..channels].iter_mut().zip(b).zip(c).zip(d) {
        let (top, bottom) = (*a + (*b - *a) * across, *c + (*d - *c) * across);
        *a = top + (bottom - top) * down;
    }
    &a[..channels]
}
