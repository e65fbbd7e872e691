//! Steps that only move numbers: normalised pixels, flattening, copies into slices.

use super::layer::{Layer, Site};
use half::f16;

/// Positions to a task.
const POSITIONS: usize = 4096;

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
}

impl Layer for Normalize {
    fn run(&self, site: &Site<'_>) {
        let (pixels, _) = site.pixels.as_chunks::<3>();
        site.sink.fill(&site.on, [POSITIONS, 3], |part, _| {
            for position in part.positions.clone() {
                let rgb = pixels[position].map(usize::from);
                let value: [f32; 3] = std::array::from_fn(|i| self.table[rgb[i]][i]);
                part.put(position, 0, &value);
            }
        });
    }
}

/// `[H, W, C]` to `[C, H, W]`.
pub(super) struct Flatten;

impl Layer for Flatten {
    fn run(&self, site: &Site<'_>) {
        let x = site.inputs[0];
        let area = site.sink.channels() / x.channels();
        // A task takes whole channels; what it gathers is written in runs.
        let block = [1, area * 8];
        site.sink.fill(&site.on, block, |part, _| {
            let mut run = [f16::ZERO; 256];
            let (row, end) = (part.positions.start, part.channels.end);
            for start in part.channels.clone().step_by(run.len()) {
                let run = &mut run[..(end - start).min(256)];
                for (i, to) in run.iter_mut().enumerate() {
                    let (channel, position) = ((start + i) / area, (start + i) % area);
                    *to = x.at(row * area + position, channel..channel + 1)[0];
                }
                part.put_f16(row, start, run);
            }
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
                part.put_f16(position, 0, x.at(position, 0..x.channels()));
            }
        });
    }
}
