//! A graph readied on this backend: layers with packed weights, and one arena.

use super::aligned::Aligned;
use super::attention::Attention;
use super::bag::{AttentionPool, AttentionScore, RowDot};
use super::conv::Conv;
use super::copy::{Copy, Flatten, Normalize, Patches};
use super::kernels::Kernels;
use super::layer::{Layer, Scratch, Site};
use super::matmul::Block;
use super::memory::{Machine, Sink, View};
use super::norm::{Affine, BatchNorm};
use super::parts::{ConvTranspose2x2, GatedLinear};
use super::pool::Pool;
use super::reduce::BagReduce;
use super::team::Team;
use super::tokens::{Embed, GroupedNorm, Softmax, TokenMean};
use super::upsample::Upsample;
use super::{Algorithms, winograd};
use crate::backend::{Input, Session};
use crate::error::{Error, Result};
use crate::graph::plan::{Plan, extent};
use crate::graph::{Graph, Op, Shape, Step, TensorId, check_run};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Bytes of activations of the rows that go through a network together: they stay in the third-level
/// cache from one step to the next.
const TOGETHER: usize = 16 << 20;

/// A graph on the CPU.
pub(super) struct CpuSession {
    graph: Arc<Graph>,
    plan: Plan,
    layers: Vec<Box<dyn Layer>>,
    kernels: &'static Kernels,
    team: Arc<Team>,
    /// The one worker that a member of [`CpuSession::team`] is when it has rows of its own.
    alone: Team,
    /// One for each worker.
    scratch: Vec<Mutex<Scratch>>,
    row_scratch: Mutex<Aligned<f32>>,
    row_scratch_len: usize,
    arena: Aligned<u8>,
    bags: Aligned<u8>,
    max_rows: usize,
    /// The most rows that go through the network together.
    together: usize,
}

impl CpuSession {
    pub fn new(
        graph: Arc<Graph>,
        plan: Plan,
        algorithms: Algorithms,
        team: Arc<Team>,
        max_rows: usize,
    ) -> Result<CpuSession> {
        let Algorithms { kernels, .. } = algorithms;
        let layers: Vec<Box<dyn Layer>> =
            graph.steps.iter().map(|step| layer(&graph, step, algorithms)).collect();
        let hidden = layers.iter().map(|l| l.scratch()).max().unwrap_or(0);
        let scratch =
            || Mutex::new(Scratch { block: Block::new(), hidden: Aligned::zeros(hidden) });
        let row_scratch_len = (layers.iter().zip(&graph.steps))
            .map(|(layer, step)| layer.row_scratch(graph.shape(step.inputs[0]).channels()))
            .max()
            .unwrap_or(0);
        let mut session = CpuSession {
            alone: Team::new(1)?,
            scratch: (0..team.threads()).map(|_| scratch()).collect(),
            row_scratch: Mutex::new(Aligned::empty()),
            row_scratch_len,
            arena: Aligned::empty(),
            bags: Aligned::empty(),
            max_rows: 0,
            together: together(&graph, &plan, kernels, team.threads()),
            graph,
            plan,
            layers,
            kernels,
            team,
        };
        session.bags.grow(session.plan.bag_elements.checked_mul(kernels.precision.bytes()))?;
        session.reserve(max_rows)?;
        Ok(session)
    }
}

/// How many rows go through a network together: as many as the cache holds. All where those would be too
/// few to keep every thread busy and to make use of each weight that is read, and where an op is
/// defined over the whole run.
fn together(graph: &Graph, plan: &Plan, kernels: &Kernels, threads: usize) -> usize {
    let is_of_run = |step: &Step| matches!(step.op, Op::BatchNorm { .. });
    if graph.steps.iter().any(is_of_run) || graph.tensors.iter().any(|t| t.shape.is_bag()) {
        return usize::MAX;
    }
    let row = plan.row_elements.saturating_mul(kernels.precision.bytes()).max(1);
    let some = TOGETHER / row;
    if some < 2 * threads { usize::MAX } else { some }
}

/// What a run writes to.
struct Memory {
    /// The arena of rows and the arena of bags.
    bases: [*mut u8; 2],
    /// Graph outputs of all rows, in order.
    returned: Vec<*mut f32>,
}

// SAFETY: borrowed exclusively by a run, and frames that are in use at the same time have other rows and
// other parts of the arena.
unsafe impl Sync for Memory {}

/// What a run is given for a graph input.
enum Given<'a> {
    Pixels(&'a [u8]),
    Values(Cow<'a, [f32]>),
}

impl<'a> Given<'a> {
    fn of(input: &Input<'a>) -> Result<Given<'a>> {
        Ok(match (*input, input.values()?) {
            (Input::Pixels(pixels), _) => Given::Pixels(pixels),
            (_, values) => Given::Values(values.unwrap_or_default()),
        })
    }
}

/// The tensors of some rows of a run.
struct Frame<'a> {
    session: &'a CpuSession,
    /// The first of the rows, and their number.
    first: usize,
    rows: usize,
    /// Rows of the arena that belong to others.
    before: usize,
    memory: &'a Memory,
}

impl Frame<'_> {
    /// Positions of a tensor, of all rows together.
    fn positions(&self, id: TensorId) -> usize {
        let shape = self.session.graph.shape(id);
        if shape.is_bag() { shape.pixels() } else { self.rows * shape.pixels() }
    }

    /// The first element of a tensor in its arena, and its pitch.
    fn locate(&self, id: TensorId) -> Option<(*mut u8, usize)> {
        let CpuSession { plan, graph, kernels, .. } = self.session;
        let place = plan.place(id)?;
        let start = place.start(self.rows);
        let length = (self.positions(id) - 1) * place.pitch + graph.shape(id).channels();
        let room = if place.bag { plan.bag_elements } else { plan.row_elements * self.rows };
        assert!(start + length <= room, "the plan does not fit the arena");
        let start = if place.bag { start } else { self.before * plan.row_elements + start };
        let base = self.memory.bases[usize::from(place.bag)];
        // SAFETY: inside the arena, by the line above and because `before + rows <= max_rows`.
        let base = unsafe { base.add(start * kernels.precision.bytes()) };
        Some((base, place.pitch))
    }

    /// A tensor to write: in the arena, in a graph output, or both.
    fn sink(&self, id: TensorId) -> Sink {
        let graph = &self.session.graph;
        let (root, channels) = extent(graph, id);
        let returned =
            graph.outputs.iter().zip(&self.memory.returned).find_map(|(&output, &base)| {
                let (of, range) = extent(graph, output);
                let inside =
                    of == root && range.start <= channels.start && channels.end <= range.end;
                inside.then(|| {
                    let start =
                        self.first * graph.shape(output).len() + channels.start - range.start;
                    // SAFETY: `check_run` saw that an output holds all channels of its positions.
                    (unsafe { base.add(start) }, range.len())
                })
            });
        // SAFETY: both destinations are inside memory that the run borrows exclusively. Steps run
        // one after another, a step does not read what it overwrites, and the plan keeps apart
        // what is alive together.
        unsafe {
            let precision = self.session.kernels.precision;
            Sink::new([self.positions(id), channels.len()], precision, self.locate(id), returned)
        }
    }

    /// What a whole run is given, cut to these rows.
    fn cut<'b, T>(&self, id: TensorId, all: &'b [T]) -> &'b [T] {
        let shape = self.session.graph.shape(id);
        let rows = if shape.is_bag() { 0..1 } else { self.first..self.first + self.rows };
        &all[rows.start * shape.len()..rows.end * shape.len()]
    }

    /// A tensor to read.
    fn view(&self, id: TensorId) -> Option<View> {
        let (base, pitch) = self.locate(id)?;
        let channels = self.session.graph.shape(id).channels();
        let precision = self.session.kernels.precision;
        // SAFETY: as above: nothing writes these elements while the step that reads them runs.
        Some(unsafe { View::new((base, pitch), precision, [self.positions(id), channels]) })
    }
}

/// The layer of a step.
fn layer(graph: &Graph, step: &Step, algorithms: Algorithms) -> Box<dyn Layer> {
    let Algorithms { kernels, direct } = algorithms;
    let fast = if direct { None } else { winograd::layer(graph, step, kernels) };
    if let Some(layer) = fast {
        return layer;
    }
    let (input, output) = (graph.shape(step.inputs[0]), graph.shape(step.output));
    match step.op {
        Op::Normalize { mean, std } => Box::new(Normalize::new(mean, std)),
        Op::Patches { mean, std, side } => {
            let Shape::Map { w: across, .. } = output else { unreachable!("inferred as a map") };
            Box::new(Patches { normalize: Normalize::new(mean, std), side, across })
        }
        Op::Conv2d { .. } | Op::Linear { .. } | Op::PreactConv1x1 { .. } => {
            Box::new(Conv::new(graph, step, kernels))
        }
        Op::ConvTranspose2x2 { weight, ref epilogue } => {
            Box::new(ConvTranspose2x2::new(graph, step, kernels, weight, epilogue))
        }
        Op::GatedLinear { weight, bias, act } => {
            Box::new(GatedLinear::new(graph, kernels, weight, bias, act))
        }
        Op::Affine { scale, bias, act } => {
            Box::new(Affine::new(graph, kernels, input.channels(), [scale, bias], act))
        }
        Op::BatchNorm { gamma, beta, eps, act } => {
            Box::new(BatchNorm::new(graph, kernels, [gamma, beta], eps, act))
        }
        Op::MaxPool { .. } | Op::AvgPool { .. } | Op::AdaptiveAvgPool { .. } => {
            Box::new(Pool::new(graph, step))
        }
        Op::Upsample { mode, .. } => Box::new(Upsample::new(input, output, mode)),
        Op::Flatten => Box::new(Flatten { area: input.pixels() }),
        Op::Embed { prefix, position } => {
            Box::new(Embed::new(graph, kernels, input, [prefix, position]))
        }
        Op::LayerNorm { gamma, beta, eps, groups: _ } => {
            Box::new(GroupedNorm::layer(graph, kernels, input, [Some(gamma), beta], eps))
        }
        Op::RmsNorm { gamma, eps, groups: _ } => {
            Box::new(GroupedNorm::rms(graph, kernels, input, gamma, eps))
        }
        Op::Attention { heads, queries } => {
            Box::new(Attention::new(graph, kernels, step.inputs[0], heads, queries))
        }
        Op::TokenMean { start, count } => {
            Box::new(TokenMean { kernels, tokens: input.pixels(), start, count })
        }
        Op::Softmax => Box::new(Softmax { kernels, channels: input.channels() }),
        Op::AttentionScore { v, u, w } => Box::new(AttentionScore::new(graph, kernels, v, u, w)),
        Op::AttentionPool => Box::new(AttentionPool { kernels }),
        Op::BagReduce { reduce } => Box::new(BagReduce { kernels, reduce }),
        Op::RowDot { weight, bias } => Box::new(RowDot::new(graph, kernels, weight, bias)),
        Op::Copy => Box::new(Copy),
    }
}

impl Session for CpuSession {
    fn max_rows(&self) -> usize {
        self.max_rows
    }

    fn reserve(&mut self, rows: usize) -> Result<()> {
        if rows <= self.max_rows {
            return Ok(());
        }
        let what = || format!("{}: {rows} rows", self.graph.name);
        let activations = self.plan.row_elements.checked_mul(rows.min(self.together));
        let bytes = activations.and_then(|n| n.checked_mul(self.kernels.precision.bytes()));
        let weights = self.row_scratch_len.checked_mul(rows);
        let row_scratch = self.row_scratch.get_mut().unwrap_or_else(|p| p.into_inner());
        self.arena.grow(bytes).map_err(|e| e.context(what()))?;
        row_scratch.grow(weights).map_err(|e| e.context(what()))?;
        self.max_rows = rows;
        Ok(())
    }

    fn row_bytes(&self) -> usize {
        let scratch = self.row_scratch_len * size_of::<f32>();
        self.plan.row_elements * self.kernels.precision.bytes() + scratch
    }

    fn release(&mut self) {
        self.arena = Aligned::empty();
        *self.row_scratch.get_mut().unwrap_or_else(|p| p.into_inner()) = Aligned::empty();
        self.max_rows = 0;
    }

    fn run(&mut self, rows: usize, inputs: &[Input<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
        self.execute(rows, inputs, outputs, None)
    }

    fn algorithm(&self, step: usize) -> Option<&'static str> {
        self.layers.get(step)?.algorithm()
    }

    fn run_timed(
        &mut self,
        rows: usize,
        inputs: &[Input<'_>],
        outputs: &mut [&mut [f32]],
        seconds: &mut [f64],
    ) -> Result<bool> {
        self.execute(rows, inputs, outputs, Some(seconds)).map(|()| true)
    }
}

impl CpuSession {
    /// Runs, and adds what each step took to `seconds`, if given: then all threads share each step.
    fn execute(
        &mut self,
        rows: usize,
        inputs: &[Input<'_>],
        outputs: &mut [&mut [f32]],
        mut seconds: Option<&mut [f64]>,
    ) -> Result<()> {
        check_run(&self.graph, rows, inputs, outputs)?;
        if rows > self.max_rows {
            let (name, room) = (&self.graph.name, self.max_rows);
            return Err(Error::usage(format!("{name}: {rows} rows, room for {room}")));
        }
        if rows == 0 {
            return Ok(());
        }
        let given: Vec<Given<'_>> = inputs.iter().map(Given::of).collect::<Result<_>>()?;
        let memory = Memory {
            bases: [self.arena.as_mut_ptr(), self.bags.as_mut_ptr()],
            returned: outputs.iter_mut().map(|o| o.as_mut_ptr()).collect(),
        };
        let (session, memory, team) = (&*self, &memory, &*self.team);
        let (turn, apart) = if seconds.is_none() { self.apart(rows) } else { (1, 0) };
        team.each(apart / turn, |worker, task| {
            let (first, before) = (task * turn, worker * turn);
            let frame = Frame { session, first, rows: turn, before, memory };
            frame.execute(&self.alone, &self.scratch[worker..=worker], &given, None);
        });
        for first in (apart..rows).step_by(self.together.min(rows)) {
            let rows = self.together.min(rows - first);
            let frame = Frame { session, first, rows, before: 0, memory };
            frame.execute(team, &self.scratch, &given, seconds.as_deref_mut());
        }
        Ok(())
    }

    /// How many rows a thread takes through the network alone, without waiting for others after every
    /// step, and how many rows are taken so: the same number by each thread, as many at a time as the cache
    /// has room for and two at least, to make use of each weight that is read.
    fn apart(&self, rows: usize) -> (usize, usize) {
        let threads = self.team.threads();
        let (most, share) = (self.together / threads, rows / threads);
        if threads == 1 || self.together == usize::MAX || most == 0 || share < 2 {
            return (1, 0);
        }
        let turn = share.div_ceil(share.div_ceil(most));
        (turn, share / turn * turn * threads)
    }
}

impl Frame<'_> {
    /// Runs all steps, and adds what each took to `seconds`, if given.
    fn execute(
        &self,
        team: &Team,
        scratch: &[Mutex<Scratch>],
        given: &[Given<'_>],
        mut seconds: Option<&mut [f64]>,
    ) {
        let CpuSession { graph, layers, kernels, .. } = self.session;
        let on = Machine { kernels, team, scratch };
        for (&id, given) in graph.inputs.iter().zip(given) {
            let Given::Values(values) = given else { continue };
            let (c, values) = (graph.shape(id).channels(), self.cut(id, values));
            self.sink(id).fill(&on, [4096, c], |part, _| {
                let Range { start, end } = part.positions;
                part.put_positions(start, &values[start * c..end * c]);
            });
        }
        for (i, (step, layer)) in graph.steps.iter().zip(layers).enumerate() {
            let start = seconds.is_some().then(Instant::now);
            let input = graph.inputs.iter().position(|&i| i == step.inputs[0]);
            let pixels = match input.map(|i| &given[i]) {
                Some(Given::Pixels(pixels)) => self.cut(step.inputs[0], pixels),
                _ => &[],
            };
            let first = self.view(step.inputs[0]).unwrap_or(View::EMPTY);
            let second = step.inputs.get(1).and_then(|&id| self.view(id)).unwrap_or(first);
            layer.run(&Site {
                on,
                pixels,
                inputs: [first, second],
                residual: step.reads().nth(step.inputs.len()).and_then(|id| self.view(id)),
                sink: self.sink(step.output),
                row_scratch: &self.session.row_scratch,
            });
            let spent = seconds.as_deref_mut().and_then(|seconds| seconds.get_mut(i));
            if let (Some(start), Some(spent)) = (start, spent) {
                *spent += start.elapsed().as_secs_f64();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CpuSession, together};
    use crate::backend::Session;
    use crate::cpu::CpuBackend;
    use crate::graph::plan::{Plan, lifetimes};
    use crate::graph::{Epilogue, Graph, Input, Op, Shape, Step, TensorId, Window};
    use half::f16;
    use std::sync::Arc;

    fn conv(g: &mut Graph, x: TensorId, k: usize, residual: Option<TensorId>) -> Op {
        let c = g.shape(x).channels();
        let data = (0..k * 9 * c).map(|i| f16::from_f32((i * 7 % 23) as f32 / 40.0 - 0.25));
        let weight = g.param_f16("w", &[k, 3, 3, c], data.collect()).unwrap();
        let epilogue = Epilogue { residual, ..Default::default() };
        Op::Conv2d { weight, window: Window::square(3, 1, 1), epilogue }
    }

    /// Residual blocks, then a dense block that grows inside one parent, then pooling over the bag.
    fn network() -> Graph {
        let mut g = Graph::new("tiny");
        let mut x = g.input(Shape::Map { h: 6, w: 5, c: 8 });
        for _ in 0..2 {
            let mut y = x;
            for residual in [None, None, Some(x)] {
                let op = conv(&mut g, y, 8, residual);
                y = g.push(op, &[y]).unwrap();
            }
            x = y;
        }
        let parent = g.tensor(Shape::Map { h: 6, w: 5, c: 20 });
        let mut last = g.push_into(Op::Copy, &[x], parent, 0).unwrap();
        for i in 0..3 {
            let op = conv(&mut g, last, 4, None);
            last = g.push_into(op, &[last], parent, 8 + 4 * i).unwrap();
        }
        let pooled = g.push(Op::AdaptiveAvgPool { h: 1, w: 1 }, &[parent]).unwrap();
        let values = g.push(Op::Flatten, &[pooled]).unwrap();
        let bag = g.push(Op::AttentionPool, &[values, values]).unwrap();
        g.output(bag);
        g
    }

    fn run(graph: &Arc<Graph>, plan: Plan) -> Vec<u32> {
        let backend = CpuBackend::new(2, None).unwrap();
        let mut session = backend.prepare_planned(graph.clone(), plan, 3);
        let input: Vec<f32> = (0..3 * 240).map(|i| (i * 11 % 31) as f32 / 31.0 - 0.4).collect();
        let mut output = vec![0f32; 400];
        session.run(3, &[Input::Values(&input)], &mut [&mut output]).unwrap();
        output.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn one_arena_gives_the_bits_of_private_buffers() {
        let graph = Arc::new(network());
        let forever = vec![Some(0..graph.steps.len()); graph.tensors.len()];
        let private = Plan::with_lifetimes(&graph, &forever);
        let shared = Plan::new(&graph).unwrap();
        let (planned, private_elements) = (shared.row_elements, private.row_elements);
        assert!(planned * 2 < private_elements, "{planned} of {private_elements}");
        let want = run(&graph, private);
        assert!(run(&graph, shared) == want);

        // The check bites: lifetimes that forget residuals let a step overwrite one.
        let without_residuals = |step: &Step| step.inputs.clone();
        let short = Plan::with_lifetimes(&graph, &lifetimes(&graph, without_residuals));
        assert!(run(&graph, short) != want);
    }

    /// Pixels and numbers in, two outputs; turns of as many rows as do and do not divide them, of one thread
    /// and of all.
    #[test]
    fn rows_that_take_turns_give_the_bits_of_all_together() {
        let mut g = Graph::new("turns");
        let pixels = g.input(Shape::Pixels { h: 6, w: 5 });
        let added = g.input(Shape::Map { h: 6, w: 5, c: 3 });
        let x = g.push(Op::Normalize { mean: [0.5; 3], std: [0.25; 3] }, &[pixels]).unwrap();
        let op = conv(&mut g, x, 3, Some(added));
        let all = g.tensor(Shape::Map { h: 6, w: 5, c: 6 });
        let y = g.push_into(op, &[x], all, 0).unwrap();
        let op = conv(&mut g, y, 3, None);
        g.push_into(op, &[y], all, 3).unwrap();
        let mean = g.push(Op::AdaptiveAvgPool { h: 1, w: 1 }, &[all]).unwrap();
        g.output(all);
        g.output(mean);
        let graph = Arc::new(g);
        let plan = Plan::new(&graph).unwrap();
        let backend = CpuBackend::new(2, None).unwrap();
        assert_eq!(together(&network(), &plan, backend.kernels, 2), usize::MAX, "it has a bag");
        assert!(together(&graph, &plan, backend.kernels, 2) > 1000);
        let input: Vec<u8> = (0..7 * 90).map(|i| (i * 11 % 251) as u8).collect();
        let values: Vec<f32> = (0..7 * 90).map(|i| (i * 7 % 31) as f32 / 31.0 - 0.4).collect();
        let run = |together: usize| {
            let (algorithms, team) = (backend.algorithms(), backend.team.clone());
            let mut session =
                CpuSession::new(graph.clone(), plan.clone(), algorithms, team, 0).unwrap();
            session.together = together;
            session.reserve(7).unwrap();
            let apart = match together {
                1 | usize::MAX => (1, 0),
                3 => (1, 6),
                _ => (3, 6),
            };
            assert_eq!(session.apart(7), apart, "one of seven is left for both threads");
            let (mut a, mut b) = (vec![0f32; 7 * 180], vec![0f32; 7 * 6]);
            let inputs = [Input::Pixels(&input), Input::Values(&values)];
            session.run(7, &inputs, &mut [&mut a, &mut b]).unwrap();
            (a.iter().chain(&b).map(|x| x.to_bits()).collect::<Vec<_>>(), session.arena.len())
        };
        let (want, all) = run(usize::MAX);
        for some in [1, 3, 6, 7] {
            let (got, room) = run(some);
            assert!(got == want, "{some} at a time");
            assert!(room <= all * some / 7 + 64, "{room} of {all} bytes for {some} of 7 rows");
        }
    }
}
