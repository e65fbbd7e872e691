//! 3x3 convolutions of stride 1 by Winograd's algorithm: a quarter of the products, for transforms of
//! the input and of the sums (`transforms`), all of it in f32 whether FP16 or bf16 numbers come in.
//!
//! ```text
//! v = Bt x B             x: an A x A tile of the input, tiles M apart, A = M + 2
//! u = G w Gt             when the weights are packed, in f64
//! m[i][j] = sum over c of v[i][j][c] u[i][j][c]     one chain of fused multiply-adds, c ascending
//! y = act(fma(At m A, scale, bias) + residual)
//! ```
//!
//! The grid of tiles begins at the top left of every map, so that neither batch nor threads can change
//! a bit. The tiles of a block and their sums stay close to the second-level cache; each element of a
//! tile is one matrix product by the microkernels of `kernels`.

use super::aligned::Aligned;
use super::conv::After;
use super::cut::Cut;
use super::kernels::{A_PITCH, C_PITCH, Kernels, MAX_COLUMNS, MAX_DEPTH};
use super::layer::{Layer, Site, weights};
use super::memory::{Part, View};
use super::transforms::{self, Four, LANES, Number, Scheme, Transforms};
use crate::backend::Precision;
use crate::graph::{Graph, Op, Shape, Step, Window};
use half::{bf16, f16};
use std::marker::PhantomData;
use std::ops::Range;

/// Channels in and out below which the transforms cost more than they save.
const MIN_CHANNELS: usize = 32;
/// Lines and columns of a map below which most of a tile is beyond it, or too few tiles share a weight.
const MIN_SIDE: usize = 7;
/// The same in bf16, where a processor that multiplies pairs has the definition in half the time; and
/// with more weights than a second-level cache holds, which the definition has in an eighth of the
/// bytes.
const MIN_SIDE_BF16: [usize; 2] = [14, 16];
/// The products of channels in and out from which on those are more weights than that.
const MANY_WEIGHTS: usize = 128 * 64;
/// The channels of a position beyond the edge.
static ZEROS: [u16; MAX_DEPTH] = [0; MAX_DEPTH];

/// Whether any convolution is computed so: not where f32 is the measure of the others, and not where tile
/// registers have the definition in less time.
pub(super) fn is_used_by(kernels: &Kernels) -> bool {
    kernels.precision != Precision::F32 && kernels.isa.sums_as_others()
}

/// The layer of a convolution, if its shape is one that gains.
pub(super) fn layer(
    graph: &Graph,
    step: &Step,
    kernels: &'static Kernels,
) -> Option<Box<dyn Layer>> {
    let Op::Conv2d { weight, window, ref epilogue } = step.op else { return None };
    let Shape::Map { h, w, c } = graph.shape(step.inputs[0]) else { return None };
    let Shape::Map { h: p, w: q, c: k } = graph.shape(step.output) else { return None };
    let Window { kernel, stride, pad, dilation } = window;
    let square = kernel == [3, 3] && stride == [1, 1] && dilation == [1, 1];
    let wide = c >= MIN_CHANNELS && k >= MIN_CHANNELS;
    let side = match kernels.precision {
        Precision::Bf16 => MIN_SIDE_BF16[usize::from(c * k >= MANY_WEIGHTS)],
        _ => MIN_SIDE,
    };
    if !is_used_by(kernels) || !square || !wide || p.min(q) < side {
        return None;
    }
    let map = Map { input: [h, w], output: [p, q], pad, channels: c, filters: k };
    let after = After::new(graph, epilogue, k);
    let transforms = Transforms::four(kernels);
    Some(Box::new(Winograd::<Four, 6, 4>::new(
        kernels,
        transforms,
        map,
        &weights(graph, weight, kernels),
        after,
    )))
}

/// What is convolved with what.
#[derive(Clone, Copy)]
struct Map {
    input: [usize; 2],
    output: [usize; 2],
    pad: [usize; 2],
    channels: usize,
    filters: usize,
}

struct Winograd<S, const A: usize, const M: usize> {
    kernels: &'static Kernels,
    transforms: &'static Transforms<A>,
    /// `[A, A]` times panels of `[C, columns]`.
    panels: Aligned<f32>,
    map: Map,
    /// Channels of each part of the reduction but the last: whole [`LANES`].
    depth: usize,
    /// Tiles of a block.
    tiles: usize,
    after: After,
    scheme: PhantomData<fn() -> S>,
}

/// Where a tile lies.
#[derive(Clone, Copy)]
struct Tile {
    image: usize,
    /// Row and column of its first output.
    p: usize,
    q: usize,
}

/// How the matrices of a block lie in one buffer: rows (tiles) at a pitch, several narrow matrices
/// side by side.
struct Matrices {
    width: usize,
    pitch: usize,
    rows: usize,
}

impl Matrices {
    /// The first number of a matrix.
    fn start(&self, index: usize) -> usize {
        let beside = self.pitch / self.width;
        index / beside * self.rows * self.pitch + index % beside * self.width
    }

    /// Numbers of so many matrices, and those a last row may be read beyond.
    fn len(&self, count: usize) -> usize {
        (count.div_ceil(self.pitch / self.width) * self.rows + 1) * self.pitch
    }
}

impl<S: Scheme<A, M>, const A: usize, const M: usize> Winograd<S, A, M> {
    fn new(
        kernels: &'static Kernels,
        transforms: &'static Transforms<A>,
        map: Map,
        weight: &[f32],
        after: After,
    ) -> Self {
        let panels = pack::<S, A, M>(kernels, weight, map);
        let parts = map.channels.div_ceil(MAX_DEPTH);
        let depth = map.channels.div_ceil(parts).next_multiple_of(LANES);
        let tiles = tiles(kernels, map);
        let scheme = PhantomData;
        Winograd { kernels, transforms, panels, map, depth, tiles, after, scheme }
    }

    /// Parts of the reduction.
    fn parts(&self) -> usize {
        self.map.channels.div_ceil(self.depth)
    }

    /// The transformed inputs of a block: a matrix for each element of a tile and part of the
    /// reduction.
    fn inputs(&self) -> Matrices {
        Matrices { width: self.depth, pitch: A_PITCH, rows: self.tiles }
    }

    /// The sums of a block: a matrix for each element of a tile.
    fn sums(&self, columns: usize) -> Matrices {
        let width = columns.next_multiple_of(self.kernels.columns.max(LANES));
        Matrices { width, pitch: C_PITCH, rows: self.tiles }
    }

    /// Tiles down and across a map.
    fn grid(&self) -> [usize; 2] {
        self.map.output.map(|n| n.div_ceil(M))
    }

    fn tile(&self, index: usize) -> Tile {
        let [down, across] = self.grid();
        let line = index / across;
        Tile { image: line / down, p: line % down * M, q: index % across * M }
    }

    /// The tiles of whole lines of tiles, or of whole maps.
    fn tiles_of(&self, positions: Range<usize>) -> Range<usize> {
        let ([down, across], [p, q]) = (self.grid(), self.map.output);
        let line = |position: usize| {
            position / (p * q) * down + (position % (p * q)).div_ceil(q).div_ceil(M)
        };
        line(positions.start) * across..line(positions.end) * across
    }

    /// Where the elements of a tile start in the matrices of a part of the reduction.
    fn places(&self, inputs: &Matrices, part: usize) -> [[usize; A]; A] {
        let start = |i, j| inputs.start((i * A + j) * self.parts() + part);
        std::array::from_fn(|i| std::array::from_fn(|j| start(i, j)))
    }

    /// Some channels of the positions of a tile of the input, zeros beyond the map.
    fn gather<'a, T: Number + bytemuck::Pod>(
        &self,
        x: &'a View,
        tile: Tile,
        channels: &Range<usize>,
    ) -> [[&'a [T]; A]; A] {
        let ([h, w], [above, left], n) = (self.map.input, self.map.pad, channels.len());
        let mut d = [[bytemuck::cast_slice(&ZEROS[..n]); A]; A];
        let is_inside = left <= tile.q && tile.q + A <= w + left;
        for (i, row) in d.iter_mut().enumerate() {
            // Before the map this wraps around, to behind it.
            let y = (tile.p + i).wrapping_sub(above);
            if y >= h {
                continue;
            }
            let line = (tile.image * h + y) * w;
            if is_inside && x.is_dense() {
                let c = self.map.channels;
                let run = channels.start..channels.end + (A - 1) * c;
                let run = x.at(line + tile.q - left, run).of();
                row.iter_mut().enumerate().for_each(|(j, d)| *d = &run[j * c..][..n]);
                continue;
            }
            for (j, d) in row.iter_mut().enumerate() {
                let column = (tile.q + j).wrapping_sub(left);
                if column < w {
                    *d = x.at(line + column, channels.clone()).of();
                }
            }
        }
        d
    }

    /// Transforms some channels of a tile of the input.
    fn read<T: Number + bytemuck::Pod>(
        &self,
        x: &View,
        tile: Tile,
        channels: &Range<usize>,
        to: &mut [f32],
        at: &[[usize; A]; A],
    ) {
        T::transform(self.transforms, &self.gather(x, tile, channels), to, at);
    }

    /// Multiplies the rows of a block with some filters.
    fn multiply(
        &self,
        (inputs, v): (&Matrices, &[f32]),
        rows: usize,
        columns: Range<usize>,
        (sums, m): (&Matrices, &mut [f32]),
    ) {
        let (c, width) = (self.map.channels, self.kernels.columns);
        let panels = self.map.filters.div_ceil(width);
        for element in 0..A * A {
            for part in 0..self.parts() {
                let depths = part * self.depth..((part + 1) * self.depth).min(c);
                let a = &v[inputs.start(element * self.parts() + part)..];
                for column in columns.clone().step_by(width) {
                    let panel = (element * panels + column / width) * c;
                    let b = &self.panels[(panel + depths.start) * width..][..depths.len() * width];
                    let to = &mut m[sums.start(element) + column - columns.start..];
                    self.kernels.multiply(a, b, rows, to, part == 0);
                }
            }
        }
    }

    /// Writes the outputs of one tile.
    fn write(
        &self,
        residual: Option<&View>,
        tile: Tile,
        columns: &Range<usize>,
        values: &mut [f32],
        part: &mut Part<'_>,
    ) {
        let [p, q] = self.map.output;
        let across = M.min(q - tile.q);
        for (y, values) in (tile.p..p).zip(values.chunks_exact_mut(M * C_PITCH)) {
            let first = (tile.image * p + y) * q + tile.q;
            let with = self.after.finish(columns, None);
            part.finish(first..first + across, columns.clone(), values, with, residual);
        }
    }

    /// Fills a rectangle of whole lines of tiles, or of whole maps.
    fn fill(&self, x: &View, residual: Option<&View>, part: &mut Part<'_>, scratch: &mut [f32]) {
        let inputs = self.inputs();
        let (v, rest) = scratch.split_at_mut(inputs.len(A * A * self.parts()));
        let (values, m) = rest.split_at_mut(M * M * C_PITCH);
        let tiles = self.tiles_of(part.positions.clone());
        for first in tiles.clone().step_by(self.tiles) {
            let rows = self.tiles.min(tiles.end - first);
            for part in 0..self.parts() {
                let at = self.places(&inputs, part);
                let start = part * self.depth;
                let channels = start..(start + self.depth).min(self.map.channels);
                for row in 0..rows {
                    let (tile, to) = (self.tile(first + row), &mut v[row * A_PITCH..]);
                    match self.kernels.precision {
                        Precision::Bf16 => self.read::<bf16>(x, tile, &channels, to, &at),
                        _ => self.read::<f16>(x, tile, &channels, to, &at),
                    }
                }
            }
            for start in part.channels.clone().step_by(MAX_COLUMNS) {
                let columns = start..(start + MAX_COLUMNS).min(part.channels.end);
                let sums = self.sums(columns.len());
                self.multiply((&inputs, v), rows, columns.clone(), (&sums, m));
                let at: [[usize; A]; A] =
                    std::array::from_fn(|i| std::array::from_fn(|j| sums.start(i * A + j)));
                for row in 0..rows {
                    let shape = [columns.len(), C_PITCH];
                    self.transforms.output(&m[row * C_PITCH..], &at, values, shape);
                    self.write(residual, self.tile(first + row), &columns, values, part);
                }
            }
        }
    }

    /// How the output of all images, or of each, is cut for a team: into whole maps or whole lines of
    /// tiles, and channels. The estimate of the time decides, in numbers a core computes at once.
    fn cut(&self, images: usize, threads: usize) -> Cut {
        let ([down, across], [p, q]) = (self.grid(), self.map.output);
        let Map { channels: c, filters: k, .. } = self.map;
        let time = |tasks: usize, tiles: usize, columns: usize| {
            let blocks = tiles.div_ceil(self.tiles);
            let rows = tiles.next_multiple_of(4);
            let products = A * A * c * columns * rows / LANES;
            let transforms = tiles * A * A * (c + 2 * columns) / 4;
            let weights = blocks * A * A * c * columns / 4;
            tasks.div_ceil(threads) * (products + transforms + weights)
        };
        let lines = (1..=down).map(|n| (images * down.div_ceil(n), n * across, p * q, n * M * q));
        let maps = (2..=images.min(self.tiles / (down * across)))
            .map(|n| (images.div_ceil(n), n * down * across, images * p * q, n * p * q));
        let mut best = (usize::MAX, [0, 0], [0, 0]);
        for (tasks, tiles, row, positions) in lines.chain(maps) {
            let mut columns = k.next_multiple_of(self.kernels.columns);
            loop {
                let seconds = time(tasks * k.div_ceil(columns), tiles, columns);
                if seconds < best.0 {
                    best = (seconds, [row, k], [positions.min(row), columns]);
                }
                if columns < 2 * self.kernels.columns || threads == 1 {
                    break;
                }
                columns = (columns / 2).next_multiple_of(self.kernels.columns);
            }
        }
        Cut::blocks(best.1, best.2)
    }
}

impl<S: Scheme<A, M>, const A: usize, const M: usize> Layer for Winograd<S, A, M> {
    fn run(&self, site: &Site<'_>) {
        let [p, q] = self.map.output;
        let images = site.sink.positions() / (p * q);
        let cut = self.cut(images, site.on.team.threads());
        site.sink.fill_tasks(&site.on, &cut, |part, scratch| {
            self.fill(&site.inputs[0], site.residual.as_ref(), part, &mut scratch.hidden);
        });
    }

    fn algorithm(&self) -> Option<&'static str> {
        Some(S::NAME)
    }

    fn scratch(&self) -> usize {
        let columns = self.map.filters.min(MAX_COLUMNS);
        let (inputs, sums) = (self.inputs(), self.sums(columns));
        inputs.len(A * A * self.parts()) + sums.len(A * A) + M * M * C_PITCH
    }
}

/// The tiles of a block: as many as keep their numbers in the second-level cache, but enough to make
/// use of each weight that is read.
fn tiles(kernels: &Kernels, map: Map) -> usize {
    let rows = kernels.rows();
    let tiles = if map.channels * map.filters <= 128 * 128 { 28 } else { 56 };
    tiles / rows * rows
}

/// `G w Gt` of all filters `[K, R, S, C]`: `[A, A]` times panels of `[C, columns]`, the last one padded
/// with zeros.
fn pack<S: Scheme<A, M>, const A: usize, const M: usize>(
    kernels: &Kernels,
    weight: &[f32],
    map: Map,
) -> Aligned<f32> {
    let Map { channels: c, filters: k, .. } = map;
    let width = kernels.columns;
    let panels = k.div_ceil(width);
    let mut packed = Aligned::zeros(A * A * panels * c * width);
    // Few channels of one panel at a time: what they fill stays in the cache.
    for (panel, first) in (0..panels).flat_map(|p| (0..c).step_by(LANES).map(move |c| (p, c))) {
        for filter in panel * width..((panel + 1) * width).min(k) {
            for channel in first..(first + LANES).min(c) {
                let g = std::array::from_fn(|r| {
                    std::array::from_fn(|s| {
                        f64::from(weight[((filter * 3 + r) * 3 + s) * c + channel])
                    })
                });
                let u = transforms::weights::<S, A, M>(g);
                for (element, &u) in u.as_flattened().iter().enumerate() {
                    let row = (element * panels + panel) * c + channel;
                    packed[row * width + filter % width] = u as f32;
                }
            }
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::check::{Deviation, run_once};
    use crate::backend::{Backend, Input};
    use crate::cpu::{CpuBackend, Isa};
    use crate::graph::reference;
    use crate::graph::{Act, Epilogue, ParamId, Tensor, TensorId};
    use std::sync::Arc;

    /// What a backend may be away from the reference, relative L2. Rounding to FP16 alone moves
    /// numbers by 2e-4, and 2e-6 is the most that was seen, at 512 channels.
    const BOUND: f64 = 4e-6;

    /// Uniform in FP16.
    fn numbers(n: usize, gain: f32) -> Vec<f32> {
        let mut state = 12345u32;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f16::from_f32(((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * gain).to_f32()
        };
        (0..n).map(next).collect()
    }

    fn conv(g: &mut Graph, x: TensorId, k: usize, pad: usize, epilogue: Epilogue) -> Op {
        let c = g.shape(x).channels();
        let gain = (1.0 / (3 * c) as f32).sqrt();
        let data = numbers(k * 9 * c, gain).into_iter().map(f16::from_f32).collect();
        let weight = g.param_f16("w", &[k, 3, 3, c], data).unwrap();
        Op::Conv2d { weight, window: Window::square(3, 1, pad), epilogue }
    }

    fn vector(g: &mut Graph, n: usize, plus: f32) -> Option<ParamId> {
        let data = numbers(n, 0.5).into_iter().map(|x| x + plus).collect();
        Some(g.param_f32("v", &[n], data).unwrap())
    }

    /// One convolution with all of an epilogue.
    fn full([h, w, c, k]: [usize; 4], pad: usize, act: Act) -> Graph {
        let mut g = Graph::new("conv");
        let x = g.input(Shape::Map { h, w, c });
        let out = Shape::Map { h: h + 2 * pad - 2, w: w + 2 * pad - 2, c: k };
        let residual = Some(g.input(out));
        let (scale, bias) = (vector(&mut g, k, 1.0), vector(&mut g, k, 0.0));
        let op = conv(&mut g, x, k, pad, Epilogue { scale, bias, residual, act });
        let y = g.push(op, &[x]).unwrap();
        g.output(y);
        g
    }

    fn plain(shape: [usize; 4], pad: usize) -> Graph {
        let [h, w, c, k] = shape;
        let mut g = Graph::new("conv");
        let x = g.input(Shape::Map { h, w, c });
        let op = conv(&mut g, x, k, pad, Epilogue::default());
        let y = g.push(op, &[x]).unwrap();
        g.output(y);
        g
    }

    /// Reads channels 5.. of its input and writes channels 7.. of its output.
    fn slices() -> Graph {
        let mut g = Graph::new("slices");
        let x = g.input(Shape::Map { h: 9, w: 11, c: 50 });
        let part = TensorId(g.tensors.len());
        let shape = Shape::Map { h: 9, w: 11, c: 40 };
        g.tensors.push(Tensor { shape, slice: Some((x, 5)) });
        let all = g.tensor(Shape::Map { h: 9, w: 11, c: 7 + 45 });
        let head = TensorId(g.tensors.len());
        g.tensors.push(Tensor { shape: Shape::Map { h: 9, w: 11, c: 7 }, slice: Some((x, 30)) });
        g.push_into(Op::Copy, &[head], all, 0).unwrap();
        let op = conv(&mut g, part, 45, 1, Epilogue::default());
        g.push_into(op, &[part], all, 7).unwrap();
        g.output(all);
        g
    }

    /// Ragged maps, tiles that lie wholly beyond the map, lines of more tiles than a block has,
    /// channels that fill no register, reductions in parts, more filters than a block has columns.
    fn cases() -> Vec<Graph> {
        vec![
            full([7, 7, 64, 64], 1, Act::Relu),
            full([9, 10, 33, 35], 1, Act::Silu),
            full([8, 12, 300, 40], 1, Act::None),
            full([11, 9, 32, 300], 0, Act::Relu),
            full([13, 17, 48, 32], 2, Act::Relu),
            plain([7, 260, 32, 33], 1),
            plain([8, 8, 513, 32], 1),
            slices(),
        ]
    }

    fn inputs(g: &Graph, rows: usize) -> Vec<Vec<f32>> {
        g.inputs.iter().map(|&id| numbers(g.shape(id).len() * rows, 1.0)).collect()
    }

    /// Of rows `first..first + rows` of three.
    fn run(on: &CpuBackend, g: &Arc<Graph>, first: usize, rows: usize) -> Vec<f32> {
        let inputs = inputs(g, 3);
        let some: Vec<Input<'_>> = (inputs.iter())
            .map(|x| Input::Values(&x[x.len() / 3 * first..][..x.len() / 3 * rows]))
            .collect();
        run_once(on, g, rows, &some).unwrap().remove(0)
    }

    fn on(threads: usize, isa: Isa, precision: Precision) -> CpuBackend {
        CpuBackend::new(threads, Some(isa)).unwrap().with_precision(precision).unwrap()
    }

    /// The widest instruction set that computes convolutions so.
    fn widest() -> Isa {
        let mut sets = Isa::ALL.into_iter().filter(|i| i.sums_as_others() && i.is_available());
        sets.next().unwrap()
    }

    fn cases_and_precisions() -> Vec<(Graph, Precision)> {
        let mut all: Vec<_> = cases().into_iter().map(|g| (g, Precision::F16)).collect();
        all.push((full([16, 18, 33, 35], 1, Act::Relu), Precision::Bf16));
        all.push((plain([17, 16, 270, 40], 1), Precision::Bf16));
        all
    }

    fn is_fast(g: &Graph, backend: &CpuBackend) -> bool {
        let session = backend.prepare(Arc::new(g.clone()), 1).unwrap();
        let last = g.steps.len() - 1;
        session.algorithm(last) == Some("F(4x4, 3x3)")
    }

    #[test]
    fn agrees_with_the_reference_and_with_the_definition() {
        let (mut worst, isa) = (0f64, widest());
        for (g, precision) in cases_and_precisions() {
            let inputs = inputs(&g, 3);
            let inputs: Vec<Input<'_>> = inputs.iter().map(|x| Input::Values(x)).collect();
            let want = reference::run(&g, 3, &inputs, precision.rounding()).unwrap().remove(0);
            let (fast, direct) = (on(2, isa, precision), on(2, isa, precision).direct());
            assert!(is_fast(&g, &fast) && !is_fast(&g, &direct));
            let g = Arc::new(g);
            let (got, direct) = (run(&fast, &g, 0, 3), run(&direct, &g, 0, 3));
            assert!(got != direct, "both ways are one");
            for other in [want, direct] {
                let deviation = Deviation::between(&got, &other).unwrap();
                assert!(deviation.within(BOUND), "{:?} in {precision}: {deviation}", g.tensors);
                worst = worst.max(deviation.relative_l2);
            }
        }
        eprintln!("at most {worst:.1e} apart");
    }

    #[test]
    fn the_same_bits_for_every_batch_number_of_threads_and_instruction_set() {
        let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        for (g, precision) in cases_and_precisions() {
            let g = Arc::new(g);
            let want = bits(run(&on(1, widest(), precision), &g, 0, 3));
            let row = want.len() / 3;
            for isa in Isa::ALL.into_iter().filter(|i| i.sums_as_others() && i.is_available()) {
                for (threads, first, rows) in [(2, 0, 3), (5, 1, 2), (1, 2, 1), (3, 0, 1)] {
                    let got = bits(run(&on(threads, isa, precision), &g, first, rows));
                    let what = format!("{isa}, {threads} threads, {rows} rows: {:?}", g.tensors);
                    assert!(got == want[first * row..][..got.len()], "{what}");
                }
            }
        }
    }

    #[test]
    fn shape_and_precision_decide() {
        let backend = on(1, widest(), Precision::F16);
        assert!(is_fast(&plain([7, 7, 32, 32], 1), &backend));
        for (shape, pad) in
            [([6, 9, 32, 32], 1), ([8, 8, 32, 32], 0), ([7, 7, 31, 32], 1), ([7, 7, 32, 31], 1)]
        {
            assert!(!is_fast(&plain(shape, pad), &backend), "{shape:?}");
        }
        for (stride, dilation) in [(2, 1), (1, 2)] {
            let mut g = Graph::new("conv");
            let x = g.input(Shape::Map { h: 28, w: 28, c: 32 });
            let Op::Conv2d { weight, window, epilogue } =
                conv(&mut g, x, 32, 1, Epilogue::default())
            else {
                unreachable!()
            };
            let window = Window { stride: [stride; 2], dilation: [dilation; 2], ..window };
            let y = g.push(Op::Conv2d { weight, window, epilogue }, &[x]).unwrap();
            g.output(y);
            assert!(!is_fast(&g, &backend), "stride {stride}, dilation {dilation}");
        }
        for precision in Precision::ALL {
            let backend = on(1, widest(), precision);
            let fast = is_fast(&plain([28, 28, 64, 64], 1), &backend);
            assert_eq!(fast, precision != Precision::F32, "{precision}");
        }
        let backend = on(1, widest(), Precision::Bf16);
        for (side, c, fast) in
            [(14, 127, true), (13, 127, false), (14, 128, false), (16, 128, true)]
        {
            assert_eq!(is_fast(&plain([side, 20, c, 64], 1), &backend), fast, "{side} {c}");
        }
    }
}
