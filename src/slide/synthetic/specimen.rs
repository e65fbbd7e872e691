//! A specimen and the truth about it: where tissue, tumour and every nucleus lie.
//!
//! Pieces of tissue are ellipses with a noisy edge; tumour nests are the upper quantile of a noise
//! field inside them, so that their share is as planned; a second field halves the tissue into a
//! dense and a sparse part. Nuclei are placed at random, no two much closer than their radii
//! allow. Each tumour nucleus is proliferating with the planted probability, independently.

use super::noise::{Lattice, Rng, smooth};
use super::terrain::{Place, grid};
use serde::Serialize;

/// What to make. Equal values make equal slides, bit for bit.
#[derive(Clone, Debug)]
pub struct SpecimenSpec {
    /// Decides everything that is not given here.
    pub seed: u64,
    /// Planted probability that a tumour nucleus proliferates, 0 to 1; `None` draws it from the
    /// seed, uniformly.
    pub fraction: Option<f64>,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Micrometres per pixel.
    pub mpp: f64,
}

/// What a nucleus is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NucleusClass {
    /// Tumour, resting.
    Tumour,
    /// Tumour, proliferating: large, dark, clumped chromatin, some in mitosis.
    Proliferating,
    /// Spindle-shaped, of the connective tissue.
    Stromal,
    /// Small, round, dark.
    Lymphocyte,
}

/// A nucleus: an ellipse with an irregular edge.
#[derive(Clone, Debug)]
pub struct Nucleus {
    /// Level-0 pixels of the centre.
    pub center: [f32; 2],
    /// Semi-axes in pixels.
    pub axes: [f32; 2],
    /// Unit vector along the first axis.
    pub direction: [f32; 2],
    /// What it is.
    pub class: NucleusClass,
    /// Condensed into a metaphase plate.
    pub mitotic: bool,
    /// Its own amount of haematoxylin, about 1.
    pub(super) tone: f32,
    /// Irregularity of the edge and place of the nucleolus.
    pub(super) shape: [f32; 3],
}

impl Nucleus {
    /// Radius in pixels beyond which it changes nothing.
    pub(super) fn reach(&self) -> f32 {
        self.axes[0].max(self.axes[1]) * if self.mitotic { 2.1 } else { 1.45 } + 1.0
    }

    /// Grows and darkens a resting tumour nucleus; some condense into a metaphase plate.
    fn proliferate(&mut self, rng: &mut Rng) {
        self.class = NucleusClass::Proliferating;
        self.mitotic = rng.chance(0.16);
        self.axes = self.axes.map(|a| a * 1.22);
        if self.mitotic {
            self.axes[1] = self.axes[0] * rng.uniform(0.28, 0.42);
        }
        self.tone *= 1.5;
    }
}

/// Nuclei by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Resting tumour nuclei.
    pub tumour: usize,
    /// Proliferating tumour nuclei.
    pub proliferating: usize,
    /// Stromal nuclei.
    pub stromal: usize,
    /// Lymphocytes.
    pub lymphocyte: usize,
}

impl Counts {
    fn add(&mut self, class: NucleusClass) {
        *match class {
            NucleusClass::Tumour => &mut self.tumour,
            NucleusClass::Proliferating => &mut self.proliferating,
            NucleusClass::Stromal => &mut self.stromal,
            NucleusClass::Lymphocyte => &mut self.lymphocyte,
        } += 1;
    }

    /// Proliferating share of the tumour nuclei; `None` without any.
    pub fn fraction(&self) -> Option<f64> {
        let all = self.tumour + self.proliferating;
        (all > 0).then(|| self.proliferating as f64 / all as f64)
    }
}

/// One of the two parts of the tissue that differ in how densely nuclei lie.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// `dense` or `sparse`.
    pub name: &'static str,
    /// Square millimetres of tissue.
    pub tissue_mm2: f64,
    /// Square millimetres of tumour nests.
    pub tumour_mm2: f64,
    /// Nuclei in it.
    pub nuclei: Counts,
}

/// All that is known about a specimen.
#[derive(Clone, Debug, Serialize)]
pub struct Truth {
    /// The seed.
    pub seed: u64,
    /// Pixels of level 0.
    pub width: u32,
    /// Pixels of level 0.
    pub height: u32,
    /// Micrometres per pixel.
    pub mpp: f64,
    /// Probability with which each tumour nucleus was made proliferating.
    pub planted_fraction: f64,
    /// Share of the tumour nuclei that are; `None` when the slide has none.
    pub counted_fraction: Option<f64>,
    /// Nuclei of the whole slide.
    pub nuclei: Counts,
    /// The dense and the sparse part.
    pub parts: [Part; 2],
    /// `[x, y]` of every nucleus in level-0 pixels, a list a class.
    pub centers: std::collections::BTreeMap<NucleusClass, Vec<[f32; 2]>>,
}

/// How one slide differs from the next, besides its tissue.
#[derive(Clone, Debug)]
pub(super) struct Stain {
    /// Amounts of haematoxylin and eosin, about 1.
    pub strength: [f32; 2],
    /// Optical density vectors (natural logarithm) of the two.
    pub vectors: [[f32; 3]; 2],
    /// Light of an empty place, 0 to 255.
    pub white: [f32; 3],
    /// Optical density of the marker's ink.
    pub ink: [f32; 3],
}

/// A planned specimen; [`super::Picture`] paints it.
pub struct Specimen {
    pub(super) spec: SpecimenSpec,
    pub(super) fraction: f64,
    /// Pixels between the points of `grid`.
    pub(super) step: u32,
    pub(super) grid_width: usize,
    pub(super) grid: Vec<Place>,
    pub(super) nuclei: Vec<Nucleus>,
    /// Indices of the nuclei that reach into each run of [`super::paint::BUCKET`] rows.
    pub(super) buckets: Vec<Vec<u32>>,
    pub(super) stain: Stain,
    pub(super) textures: super::paint::Textures,
}

impl Specimen {
    /// Plans a specimen; takes about 100 bytes a nucleus and 16 a grid point (8 x 8 px at 0.5 um).
    pub fn new(spec: &SpecimenSpec) -> Specimen {
        let mut rng = Rng::new(spec.seed, 1);
        let drawn = f64::from(rng.uniform(0.0, 1.0));
        let fraction = spec.fraction.unwrap_or(drawn).clamp(0.0, 1.0);
        let stain = Stain::draw(&mut Rng::new(spec.seed, 2));
        let step = ((4.0 / spec.mpp).round() as u32).clamp(2, 64);
        let grid_width = (spec.width / step) as usize + 2;
        let mut specimen = Specimen {
            spec: spec.clone(),
            fraction,
            step,
            grid_width,
            grid: grid(spec, step, grid_width),
            nuclei: Vec::new(),
            buckets: Vec::new(),
            stain,
            textures: super::paint::Textures::new(spec),
        };
        specimen.place_nuclei();
        specimen.fill_buckets();
        specimen
    }

    /// All nuclei.
    pub fn nuclei(&self) -> &[Nucleus] {
        &self.nuclei
    }

    /// What was planted and what came of it.
    pub fn truth(&self) -> Truth {
        let mut all = Counts::default();
        let mut centers = std::collections::BTreeMap::<_, Vec<_>>::new();
        let area = (f64::from(self.step) * self.spec.mpp / 1000.0).powi(2);
        let mut parts = ["dense", "sparse"].map(|name| Part {
            name,
            tissue_mm2: 0.0,
            tumour_mm2: 0.0,
            nuclei: Counts::default(),
        });
        for place in self.grid.iter().filter(|p| p.tissue > 0.0) {
            let part = &mut parts[usize::from(place.dense <= 0.0)];
            part.tissue_mm2 += area;
            part.tumour_mm2 += if place.tumour > 0.0 { area } else { 0.0 };
        }
        for nucleus in &self.nuclei {
            let place = self.place(nucleus.center);
            all.add(nucleus.class);
            parts[usize::from(place.dense <= 0.0)].nuclei.add(nucleus.class);
            let round = |v: f32| (v * 10.0).round() / 10.0;
            centers.entry(nucleus.class).or_default().push(nucleus.center.map(round));
        }
        Truth {
            seed: self.spec.seed,
            width: self.spec.width,
            height: self.spec.height,
            mpp: self.spec.mpp,
            planted_fraction: self.fraction,
            counted_fraction: all.fraction(),
            nuclei: all,
            parts,
            centers,
        }
    }

    /// The grid, interpolated at a pixel inside the slide.
    pub(super) fn place(&self, at: [f32; 2]) -> Place {
        let at = at.map(|v| v.max(0.0) / self.step as f32);
        let (x, y) = (at[0] as usize, at[1] as usize);
        let (fx, fy) = (at[0] - x as f32, at[1] - y as f32);
        let get =
            |dx: usize, dy: usize| -> Place { self.grid[(y + dy) * self.grid_width + x + dx] };
        let row = |dy| get(0, dy).lerp(get(1, dy), fx);
        row(0).lerp(row(1), fy)
    }

    fn place_nuclei(&mut self) {
        let per_um = 1.0 / self.spec.mpp as f32;
        let mut rng = Rng::new(self.spec.seed, 3);
        // Slides differ in how large nuclei are and how many lymphocytes there are.
        let size = rng.uniform(0.88, 1.14) * per_um;
        let tone = rng.uniform(0.85, 1.15);
        let immune = rng.uniform(0.01, 0.12);
        let clusters = Lattice::new(&mut rng, 90.0 * per_um);
        let cell = 4.5 * per_um;
        let (columns, rows) =
            ((self.spec.width as f32 / cell) as usize, (self.spec.height as f32 / cell) as usize);
        let mut taken: Vec<u32> = vec![u32::MAX; columns * rows];
        for row in 0..rows {
            for column in 0..columns {
                let mut rng = Rng::new(self.spec.seed, 16 + (row * columns + column) as u64);
                let center = [
                    (column as f32 + rng.uniform(0.0, 1.0)) * cell,
                    (row as f32 + rng.uniform(0.0, 1.0)) * cell,
                ];
                let place = self.place(center);
                if place.tissue < 0.08 {
                    continue;
                }
                let crowd = clusters.at(center[0] as u32, center[1] as u32);
                let Some(class) = self.draw_class(&mut rng, place, immune, crowd) else { continue };
                let mut nucleus = self.draw_nucleus(&mut rng, class, center, size, tone);
                if self.has_room(&nucleus, &taken, columns, rows, [column, row]) {
                    // Only now, or else large nuclei would find room less often than planted.
                    if class == NucleusClass::Tumour
                        && f64::from(rng.uniform(0.0, 1.0)) < self.fraction
                    {
                        nucleus.proliferate(&mut rng);
                    }
                    taken[row * columns + column] = self.nuclei.len() as u32;
                    self.nuclei.push(nucleus);
                }
            }
        }
    }

    fn draw_class(
        &self,
        rng: &mut Rng,
        place: Place,
        immune: f32,
        crowd: f32,
    ) -> Option<NucleusClass> {
        // Twice as many nuclei in the dense part; the change takes about 50 um.
        let density = 0.42 + 0.58 * smooth(place.dense * 4.0 + 0.5);
        let lymphocytes = immune * (0.15 + 8.0 * smooth(crowd * 2.0 - 0.5)) * density;
        if place.tumour > 0.03 {
            if !rng.chance(0.8 * density) {
                return None;
            }
            if rng.chance(lymphocytes * 0.15) {
                return Some(NucleusClass::Lymphocyte);
            }
            return Some(NucleusClass::Tumour);
        }
        if rng.chance(lymphocytes) {
            return Some(NucleusClass::Lymphocyte);
        }
        rng.chance(0.05 * density).then_some(NucleusClass::Stromal)
    }

    fn draw_nucleus(
        &self,
        rng: &mut Rng,
        class: NucleusClass,
        center: [f32; 2],
        size: f32,
        tone: f32,
    ) -> Nucleus {
        let (radius, aspect, darkness) = match class {
            NucleusClass::Stromal => (rng.uniform(5.0, 8.5), rng.uniform(0.18, 0.3), 0.85),
            NucleusClass::Lymphocyte => (rng.uniform(2.4, 3.1), rng.uniform(0.85, 1.0), 1.0),
            _ => (rng.uniform(3.2, 4.5), rng.uniform(0.65, 1.0), 0.62),
        };
        let direction = match class {
            NucleusClass::Stromal => self.textures.fibre_direction(center, rng),
            _ => rng.direction(),
        };
        let wobble = if class == NucleusClass::Lymphocyte { 0.08 } else { 0.22 };
        Nucleus {
            center,
            axes: [radius * size, radius * size * aspect],
            direction,
            class,
            mitotic: false,
            tone: tone * darkness * rng.uniform(0.8, 1.2),
            shape: [
                rng.uniform(-wobble, wobble),
                rng.uniform(-wobble, wobble),
                rng.uniform(-0.45, 0.45),
            ],
        }
    }

    /// Whether no earlier nucleus is closer than 0.85 of the sum of the mean radii.
    fn has_room(
        &self,
        nucleus: &Nucleus,
        taken: &[u32],
        columns: usize,
        rows: usize,
        [column, row]: [usize; 2],
    ) -> bool {
        let radius = |n: &Nucleus| (n.axes[0] + n.axes[1]) * 0.5;
        let reach = 3;
        for y in row.saturating_sub(reach)..(row + reach + 1).min(rows) {
            for x in column.saturating_sub(reach)..(column + reach + 1).min(columns) {
                let Some(other) = self.nuclei.get(taken[y * columns + x] as usize) else {
                    continue;
                };
                let [dx, dy] = [0, 1].map(|c| other.center[c] - nucleus.center[c]);
                let least = 0.85 * (radius(nucleus) + radius(other));
                if dx * dx + dy * dy < least * least {
                    return false;
                }
            }
        }
        true
    }

    fn fill_buckets(&mut self) {
        let rows = super::paint::BUCKET;
        let count = self.spec.height.div_ceil(rows) as usize;
        self.buckets = vec![Vec::new(); count];
        for (i, nucleus) in self.nuclei.iter().enumerate() {
            let bucket = |y: f32| (y.max(0.0) as usize / rows as usize).min(count - 1);
            let (y, reach) = (nucleus.center[1], nucleus.reach());
            for b in bucket(y - reach)..=bucket(y + reach) {
                self.buckets[b].push(i as u32);
            }
        }
    }
}

impl Stain {
    /// Vectors near those of Ruifrok and Johnston (2001), with the eosin that is usual in scans.
    fn draw(rng: &mut Rng) -> Stain {
        let mut jitter = |v: [f32; 3]| {
            let v = v.map(|x| x * rng.uniform(0.93, 1.07));
            let length = (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]).sqrt();
            v.map(|x| x / length)
        };
        let vectors = [jitter([0.640, 0.700, 0.310]), jitter([0.130, 0.880, 0.420])];
        let strength = [rng.uniform(0.68, 1.32), rng.uniform(0.65, 1.3)];
        let white =
            [rng.uniform(240.0, 247.0), rng.uniform(239.0, 245.0), rng.uniform(241.0, 248.0)];
        let ink = if rng.chance(0.5) { [2.3, 1.35, 0.35] } else { [1.9, 0.55, 1.25] };
        Stain { strength, vectors, white, ink }
    }
}
