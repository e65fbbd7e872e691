//! Randomness and noise that come out the same on every machine: integer hashes, and f32 and f64
//! sums, products, quotients and square roots only, which IEEE 754 defines to the last bit.

/// Mixes a lattice point and a seed into 32 random bits (the finaliser of MurmurHash3).
#[inline]
pub fn hash(x: u32, y: u32, seed: u32) -> u32 {
    let mut h = x.wrapping_mul(0x85eb_ca6b) ^ y.wrapping_mul(0xc2b2_ae35) ^ seed;
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

/// Random bits as a number in -1..1.
#[inline]
fn signed(bits: u32) -> f32 {
    (bits >> 8) as f32 * (2.0 / 16_777_216.0) - 1.0
}

/// `3 t^2 - 2 t^3` on 0..1, clamped outside.
#[inline]
pub fn smooth(t: f32) -> f32 {
    let t = t.clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// A stream of random numbers: SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The stream number `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = Rng(seed ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03));
        rng.bits();
        rng
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `low..high`.
    pub fn uniform(&mut self, low: f32, high: f32) -> f32 {
        let unit = (self.bits() >> 40) as f32 * (1.0 / 16_777_216.0);
        low + (high - low) * unit
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f32) -> bool {
        self.uniform(0.0, 1.0) < probability
    }

    /// A unit vector in a random direction, by rejection from the unit disc.
    pub fn direction(&mut self) -> [f32; 2] {
        loop {
            let v = [self.uniform(-1.0, 1.0), self.uniform(-1.0, 1.0)];
            let square = v[0] * v[0] + v[1] * v[1];
            if (0.01..1.0).contains(&square) {
                let length = square.sqrt();
                return [v[0] / length, v[1] / length];
            }
        }
    }
}

/// Value noise: random numbers in -1..1 on a lattice, blended smoothly in between.
#[derive(Clone, Debug)]
pub struct Lattice {
    seed: u32,
    cell: u32,
    /// Blend weight of the right neighbour at each pixel of a cell.
    weights: Vec<f32>,
}

impl Lattice {
    /// Noise with lattice points `cell` pixels apart, at least 1.
    pub fn new(rng: &mut Rng, cell: f32) -> Self {
        let cell = (cell.round() as u32).max(1);
        let weights = (0..cell).map(|i| smooth(i as f32 / cell as f32)).collect();
        Lattice { seed: rng.bits() as u32, cell, weights }
    }

    /// The noise at one pixel.
    pub fn at(&self, x: u32, y: u32) -> f32 {
        let (ix, iy) = (x / self.cell, y / self.cell);
        let (wx, wy) =
            (self.weights[(x % self.cell) as usize], self.weights[(y % self.cell) as usize]);
        let left = self.edge(ix, iy, wy);
        left + (self.edge(ix + 1, iy, wy) - left) * wx
    }

    /// Adds `amplitude` times the noise of row `y` to `out`.
    pub fn add_row(&self, y: u32, amplitude: f32, out: &mut [f32]) {
        let (iy, wy) = (y / self.cell, self.weights[(y % self.cell) as usize]);
        let mut left = self.edge(0, iy, wy) * amplitude;
        for (ix, part) in out.chunks_mut(self.cell as usize).enumerate() {
            let right = self.edge(ix as u32 + 1, iy, wy) * amplitude;
            for (value, weight) in part.iter_mut().zip(&self.weights) {
                *value += left + (right - left) * weight;
            }
            left = right;
        }
    }

    fn edge(&self, ix: u32, iy: u32, wy: f32) -> f32 {
        let top = signed(hash(ix, iy, self.seed));
        top + (signed(hash(ix, iy + 1, self.seed)) - top) * wy
    }
}

/// `exp(-x)` for x in 0..8 by a table of steps of 1/256, made by multiplication.
pub struct Decay(Vec<f32>);

impl Decay {
    const STEPS: f32 = 256.0;

    /// Builds the table.
    pub fn new() -> Self {
        /// exp(-1/256).
        const RATIO: f64 = 0.996_101_369_470_117_5;
        let table = std::iter::successors(Some(1.0f64), |v| Some(v * RATIO));
        Decay(table.take(2049).map(|v| v as f32).collect())
    }

    /// `exp(-x)`; x below 0 counts as 0, above 8 as 8.
    #[inline]
    pub fn at(&self, x: f32) -> f32 {
        // A cast from float saturates.
        self.0[((x * Self::STEPS + 0.5) as usize).min(self.0.len() - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decay_is_the_exponential() {
        let decay = Decay::new();
        for i in 0..800 {
            let x = i as f32 / 100.0;
            assert!((decay.at(x) - (-x).exp()).abs() < 2.1e-3, "{x}");
        }
        assert_eq!(decay.at(-1.0), 1.0);
        assert!(decay.at(100.0) < 4e-4);
    }

    #[test]
    fn rows_equal_points_and_fill_the_range() {
        let lattice = Lattice::new(&mut Rng::new(3, 0), 7.0);
        let mut row = vec![0.0; 500];
        lattice.add_row(45, 2.0, &mut row);
        for (x, v) in row.iter().enumerate() {
            assert!((v - 2.0 * lattice.at(x as u32, 45)).abs() < 1e-5);
        }
        assert!(row.iter().any(|v| *v > 0.8) && row.iter().any(|v| *v < -0.8));
    }

    #[test]
    fn uniform_numbers_are_uniform() {
        let mut rng = Rng::new(1, 2);
        let n = 20_000;
        let values: Vec<f32> = (0..n).map(|_| rng.uniform(0.0, 1.0)).collect();
        let mean = values.iter().sum::<f32>() / n as f32;
        let below = values.iter().filter(|v| **v < 0.1).count();
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!((1850..2150).contains(&below), "{below}");
    }
}
