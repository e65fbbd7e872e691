//! Maps of numbers `[H, W]` brought to another size, as PyTorch's `interpolate` does.

use crate::recipe::Interpolation;

/// An `[H, W]` map of f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// W.
    pub width: usize,
    /// H.
    pub height: usize,
    /// `H * W` numbers, rows top to bottom.
    pub data: Vec<f32>,
}

/// Where an output sample falls among the input samples: two of them and the weight of the second.
type Tap = (usize, usize, f32);

impl Map {
    /// The map at `width x height`: bilinear between the middles of pixels without antialiasing
    /// (`align_corners=False`), or the nearest pixel (PyTorch's `nearest-exact`). Bicubic is taken
    /// for bilinear. A map without pixels gives zeros.
    pub fn resized(&self, width: usize, height: usize, how: Interpolation) -> Map {
        if (self.width, self.height) == (width, height) || self.data.is_empty() {
            let mut data = self.data.clone();
            data.resize(width * height, 0.0);
            return Map { width, height, data };
        }
        let columns = taps(self.width, width, how);
        let mut data = Vec::with_capacity(width * height);
        for (above, below, lower) in taps(self.height, height, how) {
            let row = |y: usize| &self.data[y * self.width..][..self.width];
            let (above, below) = (row(above), row(below));
            data.extend(columns.iter().map(|&(left, right, further)| {
                let across = |row: &[f32]| row[left] * (1.0 - further) + row[right] * further;
                across(above) * (1.0 - lower) + across(below) * lower
            }));
        }
        Map { width, height, data }
    }
}

fn taps(from: usize, to: usize, how: Interpolation) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    let last = from - 1;
    let tap = |i: usize| {
        let middle = (i as f64 + 0.5) * scale;
        if how == Interpolation::Nearest {
            let at = (middle as usize).min(last);
            return (at, at, 0.0);
        }
        let at = (middle - 0.5).max(0.0);
        let first = (at as usize).min(last);
        (first, (first + 1).min(last), (at - first as f64) as f32)
    };
    (0..to).map(tap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)` and
    /// `mode="nearest-exact"`, PyTorch 2.15.
    #[test]
    fn sizes_change_as_in_pytorch() {
        let map = Map { width: 3, height: 2, data: vec![0.0, 1.0, 4.0, 8.0, 2.0, 6.0] };
        let larger = map.resized(6, 3, Interpolation::Bilinear);
        let want = [
            0.0, 0.25, 0.75, 1.75, 3.25, 4.0, 4.0, 3.375, 2.125, 2.375, 4.125, 5.0, 8.0, 6.5, 3.5,
            3.0, 5.0, 6.0,
        ];
        assert_eq!(larger.data, want);
        let smaller = map.resized(2, 1, Interpolation::Nearest);
        assert_eq!(smaller.data, [8.0, 6.0]);
        assert_eq!(map.resized(3, 2, Interpolation::Bilinear), map);
    }
}
