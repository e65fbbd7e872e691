//! Painting a specimen: stain amounts a pixel, then light by the Beer-Lambert law.
//!
//! Rows are painted independently of each other. For each, the amounts of haematoxylin and eosin
//! of the ground substance come first (wavy collagen, granular tumour cytoplasm), nuclei replace
//! them, and the optical density they add up to dims the light of the empty slide.

use super::noise::{Decay, Lattice, Rng, hash, smooth};
use super::specimen::{Nucleus, NucleusClass, Specimen, SpecimenSpec};
use super::terrain::Place;
use super::tiff::Picture;

/// Rows that share a list of nuclei.
pub(super) const BUCKET: u32 = 32;

/// Optical density (natural logarithm) of one unit of stain amount.
const OPTICAL_DENSITY: f32 = 2.1;

/// The noise fields of the fine structure.
pub(super) struct Textures {
    /// Warps of the fibre direction: wide, middle.
    warp: [(Lattice, f32); 3],
    /// Direction along which fibre phase grows, per pixel.
    gradient: [f32; 2],
    /// One-dimensional noise over the phase.
    strands: Vec<f32>,
    /// Blotches of about 30 um, granules of about 3 um, chromatin of about 1 um.
    blotch: Lattice,
    granule: Lattice,
    chromatin: Lattice,
    /// Gaps between cells and fibres, about 9 um.
    gap: Lattice,
    decay: Decay,
    grain: u32,
}

impl Textures {
    pub(super) fn new(spec: &SpecimenSpec) -> Textures {
        let mut rng = Rng::new(spec.seed, 5);
        let per_um = 1.0 / spec.mpp as f32;
        let mut warp = |cell: f32, um: f32| (Lattice::new(&mut rng, cell * per_um), um);
        let warp = [warp(240.0, 75.0), warp(80.0, 22.0), warp(25.0, 4.5)];
        let [gx, gy] = rng.direction();
        let mut strands: Vec<f32> = (0..1024).map(|_| rng.uniform(-1.0, 1.0)).collect();
        strands.push(strands[0]);
        Textures {
            warp,
            gradient: [gx / per_um, gy / per_um],
            strands,
            blotch: Lattice::new(&mut rng, 34.0 * per_um),
            granule: Lattice::new(&mut rng, 2.6 * per_um),
            chromatin: Lattice::new(&mut rng, 1.1 * per_um),
            gap: Lattice::new(&mut rng, 9.0 * per_um),
            decay: Decay::new(),
            grain: rng.bits() as u32,
        }
    }

    /// Fibre phase in micrometres across the fibres.
    fn phase(&self, x: f32, y: f32) -> f32 {
        let (px, py) = (x.max(0.0) as u32, y.max(0.0) as u32);
        let warp: f32 = self.warp.iter().map(|(l, um)| l.at(px, py) * um).sum();
        x * self.gradient[0] + y * self.gradient[1] + warp
    }

    /// Unit vector along the fibres: across the gradient of the phase.
    pub(super) fn fibre_direction(&self, [x, y]: [f32; 2], rng: &mut Rng) -> [f32; 2] {
        const D: f32 = 6.0;
        let across = [
            self.phase(x + D, y) - self.phase((x - D).max(0.0), y),
            self.phase(x, y + D) - self.phase(x, (y - D).max(0.0)),
        ];
        let length = (across[0] * across[0] + across[1] * across[1]).sqrt();
        if length < 1e-3 { rng.direction() } else { [-across[1] / length, across[0] / length] }
    }

    /// Strand noise at a phase in units of `period`.
    #[inline]
    fn strand(&self, phase: f32) -> f32 {
        // An offset keeps the phase positive, so that the cast rounds down.
        let at = phase + 65_536.0;
        let cell = at as u32;
        let t = at - cell as f32;
        let i = (cell & 1023) as usize;
        let t = t * t * (3.0 - 2.0 * t);
        self.strands[i] + (self.strands[i + 1] - self.strands[i]) * t
    }
}

/// Scratch of one run of rows.
struct Row {
    places: Vec<Place>,
    haematoxylin: Vec<f32>,
    eosin: Vec<f32>,
    phase: Vec<f32>,
    blotch: Vec<f32>,
    granule: Vec<f32>,
    chromatin: Vec<f32>,
    gap: Vec<f32>,
}

impl Row {
    fn new(width: usize, grid_width: usize) -> Row {
        let zeros = || vec![0.0; width];
        Row {
            places: vec![Place::default(); grid_width],
            haematoxylin: zeros(),
            eosin: zeros(),
            phase: zeros(),
            blotch: zeros(),
            granule: zeros(),
            chromatin: zeros(),
            gap: zeros(),
        }
    }
}

impl Picture for Specimen {
    fn size(&self) -> [u32; 2] {
        [self.spec.width, self.spec.height]
    }

    fn render(&self, y: u32, out: &mut [u8]) {
        let width = self.spec.width as usize;
        let mut row = Row::new(width, self.grid_width);
        for (k, pixels) in out.chunks_mut(width * 3).enumerate() {
            let y = y + k as u32;
            self.ground(y, &mut row);
            for &i in &self.buckets[(y / BUCKET) as usize] {
                paint_nucleus(&self.nuclei[i as usize], y, &mut row);
            }
            self.develop(y, &row, pixels);
        }
    }
}

impl Specimen {
    /// Fills the row's noise and the stain amounts of everything but nuclei.
    fn ground(&self, y: u32, row: &mut Row) {
        let textures = &self.textures;
        for (buffer, lattice) in [
            (&mut row.blotch, &textures.blotch),
            (&mut row.granule, &textures.granule),
            (&mut row.chromatin, &textures.chromatin),
            (&mut row.gap, &textures.gap),
        ] {
            buffer.fill(0.0);
            lattice.add_row(y, 1.0, buffer);
        }
        row.phase.fill(y as f32 * textures.gradient[1]);
        textures.warp.iter().for_each(|(l, um)| l.add_row(y, *um, &mut row.phase));

        let step = self.step as usize;
        let (gy, fy) = (y as usize / step, (y as usize % step) as f32 / step as f32);
        let above = &self.grid[gy * self.grid_width..][..self.grid_width];
        let below = &self.grid[(gy + 1) * self.grid_width..][..self.grid_width];
        for (place, (a, b)) in row.places.iter_mut().zip(above.iter().zip(below)) {
            *place = a.lerp(*b, fy);
        }
        for cell in 0..self.grid_width - 1 {
            let (left, right) = (row.places[cell], row.places[cell + 1]);
            let end = ((cell + 1) * step).min(row.eosin.len());
            for x in cell * step..end {
                let t = (x - cell * step) as f32 / step as f32;
                let place = left.lerp(right, t);
                // Fibres fray the edge by some micrometres.
                let tissue = smooth((place.tissue + 0.05 * row.gap[x]) * 9.0);
                if tissue == 0.0 {
                    row.haematoxylin[x] = 0.0;
                    row.eosin[x] = 0.0;
                    continue;
                }
                let phase = row.phase[x] + x as f32 * textures.gradient[0];
                let [h, e] = self.ground_at(place, phase, row, x);
                row.haematoxylin[x] = h * tissue;
                row.eosin[x] = e * tissue;
            }
        }
    }

    /// Haematoxylin and eosin of stroma or tumour cytoplasm at one pixel.
    #[inline]
    fn ground_at(&self, place: Place, phase: f32, row: &Row, x: usize) -> [f32; 2] {
        let (blotch, granule, gap) = (row.blotch[x], row.granule[x], row.gap[x]);
        let nest = smooth((place.tumour + 0.05 * gap) * 14.0 + 0.5);
        let bundle = self.textures.strand(phase * (1.0 / 11.0));
        let fibril = self.textures.strand(phase * (1.0 / 2.7) + 300.0);
        // Where two strands are thin the bundles part and light comes through.
        let cleft = smooth((bundle * 0.8 + fibril * 0.3 + gap * 0.5 - 0.72) * 3.0);
        let stroma_e = (0.36 + 0.10 * bundle + 0.08 * fibril + 0.04 * granule + 0.06 * blotch)
            * (1.0 - 0.85 * cleft);
        let stroma_h = (0.055 + 0.02 * bundle + 0.015 * granule) * (1.0 - 0.7 * cleft);
        // A nest shrinks from its stroma, and its cells touch with thin pale seams.
        let split = smooth(1.0 - (place.tumour - 0.005).abs() * 45.0) * smooth(gap * 2.0 + 0.3);
        let seam = smooth((gap * 0.7 + granule * 0.5 - 0.62) * 3.0);
        let nest_e = (0.31 + 0.08 * granule + 0.05 * blotch) * (1.0 - 0.55 * seam);
        let nest_h = (0.17 + 0.05 * granule + 0.03 * blotch) * (1.0 - 0.5 * seam);
        let open = 1.0 - 0.75 * split;
        [
            (stroma_h + (nest_h - stroma_h) * nest) * open,
            (stroma_e + (nest_e - stroma_e) * nest) * open,
        ]
    }

    /// Colour of a place from afar, nuclei included on average.
    pub(super) fn mean_color(&self, at: [f32; 2]) -> [u8; 3] {
        let place = self.place(at);
        let tissue = smooth(place.tissue * 9.0);
        let nest = smooth(place.tumour * 14.0 + 0.5);
        let [hs, es] = self.stain.strength.map(|s| s * OPTICAL_DENSITY * tissue);
        let (h, e) = ((0.08 + 0.22 * nest) * hs, (0.33 - 0.06 * nest) * es);
        let mut color = [0; 3];
        for (c, value) in color.iter_mut().enumerate() {
            let density = h * self.stain.vectors[0][c]
                + e * self.stain.vectors[1][c]
                + place.pen * self.stain.ink[c];
            *value = (self.stain.white[c] * self.textures.decay.at(density)) as u8;
        }
        color
    }

    /// Turns the row's stain amounts into pixels.
    fn develop(&self, y: u32, row: &Row, pixels: &mut [u8]) {
        let stain = &self.stain;
        let [hs, es] = stain.strength.map(|s| s * OPTICAL_DENSITY);
        let step = self.step as usize;
        for (x, pixel) in pixels.chunks_exact_mut(3).enumerate() {
            let (h, e) = (row.haematoxylin[x] * hs, row.eosin[x] * es);
            let (a, b) = (row.places[x / step].pen, row.places[x / step + 1].pen);
            let pen = if a + b > 0.0 {
                let ink = a + (b - a) * ((x % step) as f32 / step as f32);
                ink * (0.85 + 0.1 * row.blotch[x] + 0.05 * row.granule[x])
            } else {
                0.0
            };
            let grain = hash(x as u32, y, self.textures.grain);
            for (c, value) in pixel.iter_mut().enumerate() {
                let density =
                    h * stain.vectors[0][c] + e * stain.vectors[1][c] + pen * stain.ink[c];
                let noise = ((grain >> (8 * c)) & 255) as f32 * (2.6 / 255.0) - 1.3;
                let light = stain.white[c] * self.textures.decay.at(density);
                *value = (light + noise + 0.5) as u8;
            }
        }
    }
}

/// Replaces the stain amounts of row `y` where the nucleus lies.
fn paint_nucleus(nucleus: &Nucleus, y: u32, row: &mut Row) {
    let [cx, cy] = nucleus.center;
    let dy = y as f32 - cy;
    let reach = nucleus.reach();
    if dy.abs() > reach {
        return;
    }
    let width = row.eosin.len();
    let (from, to) =
        ((cx - reach).max(0.0) as usize, ((cx + reach).max(0.0) as usize + 1).min(width));
    let [c, s] = nucleus.direction;
    let inverse = nucleus.axes.map(|a| 1.0 / a);
    // The edge softens over about one and a half pixels whatever the size.
    let sharpness = nucleus.axes[1] * 0.34;
    let [k1, k2, k3] = nucleus.shape;
    for x in from..to {
        let dx = x as f32 - cx;
        let (u, v) = ((c * dx + s * dy) * inverse[0], (c * dy - s * dx) * inverse[1]);
        let round = u * u + v * v;
        let lobes = k1 * u * (u * u - 3.0 * v * v) + k2 * u * v;
        let texture = row.chromatin[x] * 0.6 + row.granule[x] * 0.6;
        let ragged = if nucleus.mitotic { 0.5 * texture } else { 0.12 * row.granule[x] };
        let radius = round * (1.0 + lobes * 0.8) + ragged;
        if nucleus.mitotic {
            // The cell has rounded up and cleared around its chromosomes.
            let (du, dv) = (dx * inverse[0], dy * inverse[0]);
            let clear = smooth((3.2 - du * du - dv * dv) * 1.2) * 0.65;
            row.haematoxylin[x] *= 1.0 - 0.6 * clear;
            row.eosin[x] *= 1.0 - 0.5 * clear;
        }
        if round > 2.0 {
            // Far outside, where the lobes would bend back.
            continue;
        }
        let cover = ((1.0 - radius) * sharpness + 0.5).clamp(0.0, 1.0);
        if cover == 0.0 {
            continue;
        }
        let [h, e] = chromatin(nucleus, texture, radius, (u - k3) * (u - k3) + (v - k3) * (v - k3));
        row.haematoxylin[x] += (h - row.haematoxylin[x]) * cover;
        row.eosin[x] += (e - row.eosin[x]) * cover;
    }
}

/// Stain inside a nucleus: `texture` about -1..1, `radius` 0 in the middle and 1 on the edge,
/// `nucleolus` the squared distance from where a nucleolus would be.
#[inline]
fn chromatin(nucleus: &Nucleus, texture: f32, radius: f32, nucleolus: f32) -> [f32; 2] {
    let rim = smooth((radius - 0.45) * 2.2);
    let amount = match nucleus.class {
        NucleusClass::Tumour => {
            0.62 + 0.22 * texture + 0.34 * rim + 0.5 * smooth((0.09 - nucleolus) * 16.0)
        }
        NucleusClass::Proliferating if nucleus.mitotic => 1.45 + 0.2 * texture,
        NucleusClass::Proliferating => {
            let clumps = smooth(texture * 1.7 + 0.5);
            0.5 + 0.72 * clumps + 0.12 * rim
        }
        NucleusClass::Stromal => 0.8 + 0.2 * texture + 0.1 * rim,
        NucleusClass::Lymphocyte => 0.85 + 0.3 * smooth(texture * 2.0 + 0.5) + 0.05 * rim,
    };
    [amount * nucleus.tone, 0.16]
}
