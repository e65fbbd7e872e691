//! Steps that only move numbers: normalised pixels, patches, flattening, copies into slices.

use super::layer::{Layer, Site};

/// Positions to a task.
const POSITIONS: usize = 4096;
/// Channels that are flattened together.
const FLATTENED: usize = 8;

/// `(x / 255 - mean) / std` by table: 256 values for each colour.
pub(super) struct Normalize {
    table: Box<[[f32; 3]; 256]>,
}

impl Normalize {
    pub fn new(mean: [f32; 3], std: [f32; 3]) -> Normalize {
        let unit = |x: usize, i: usize| (x as f32 / 255.0 - mean[i]) / std[i];
        let table = std::array::from_fn(|x| std::array::from_fn(|i| unit(x, i)));
        Normalize { table: Box::new(table) }
    }

    /// The values of no more pixels than there is room for.
    fn pixels<'a>(&self, pixels: &[[u8; 3]], to: &'a mut [[f32; 3]]) -> &'a [f32] {
        for (to, rgb) in to.iter_mut().zip(pixels) {
            *to = std::array::from_fn(|i| self.table[usize::from(rgb[i])][i]);
        }
        to[..pixels.len()].as_flattened()
    }
}

impl Layer for Normalize {
    fn run(&self, site: &Site<'_>) {
        let (pixels, _) = site.pixels.as_chunks::<3>();
        site.sink.fill(&site.on, [POSITIONS, 3], |part, _| {
            let mut value = [[0f32; 3]; 64];
            for start in part.positions.clone().step_by(value.len()) {
                let run = &pixels[start..(start + value.len()).min(part.positions.end)];
                part.put_positions(start, self.pixels(run, &mut value));
            }
        });
    }
}

/// Normalised pixels, those of a square side by side.
pub(super) struct Patches {
    pub normalize: Normalize,
    pub side: usize,
    /// Patches to a line of the output.
    pub across: usize,
}

impl Layer for Patches {
    fn run(&self, site: &Site<'_>) {
        let (pixels, _) = site.pixels.as_chunks::<3>();
        let (side, across) = (self.side, self.across);
        site.sink.fill(&site.on, [64, 3 * side * side], |part, _| {
            for position in part.positions.clone() {
                // Lines of patches are counted through all images.
                let corner = (position / across * side * across + position % across) * side;
                for r in 0..side {
                    let line = &pixels[corner + r * side * across..][..side];
                    let mut value = [[0f32; 3]; 64];
                    for (i, run) in line.chunks(value.len()).enumerate() {
                        let channel = 3 * (r * side + i * value.len());
                        part.put(position, channel, self.normalize.pixels(run, &mut value));
                    }
                }
            }
        });
    }
}

/// `[H, W, C]` to `[C, H, W]`.
pub(super) struct Flatten {
    /// Positions of the map.
    pub area: usize,
}

impl Layer for Flatten {
    fn scratch(&self) -> usize {
        self.area * FLATTENED
    }

    fn run(&self, site: &Site<'_>) {
        let (x, area) = (site.inputs[0], self.area);
        // A task takes whole channels.
        site.sink.fill(&site.on, [1, area * FLATTENED], |part, scratch| {
            let (row, channels) = (part.positions.start, part.channels.clone());
            let (first, end) = (channels.start / area, channels.end / area);
            let to = &mut scratch.hidden[..channels.len()];
            let mut run = [0f32; FLATTENED];
            let run = &mut run[..end - first];
            for position in 0..area {
                site.on.kernels.widen(x.at(row * area + position, first..end), run);
                for (to, &value) in to[position..].iter_mut().step_by(area).zip(&*run) {
                    *to = value;
                }
            }
            part.put(row, channels.start, to);
        });
    }
}

/// The input as it is.
pub(super) struct Copy;

impl Layer for Copy {
    fn run(&self, site: &Site<'_>) {
        let x = site.inputs[0];
        site.sink.fill(&site.on, [POSITIONS, x.channels()], |part, _| {
            for position in part.positions.clone() {
                part.put_stored(position, 0, x.at(position, 0..x.channels()));
            }
        });
    }
}
