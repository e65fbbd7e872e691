//! Where each activation lives: one arena per session, offsets chosen from lifetimes.
//!
//! A tensor is alive from the step that first writes it to the last step that reads it, residual
//! reads included; a channel slice lives inside its parent and keeps the whole parent alive.
//! Offsets are assigned largest tensor first, each at the lowest gap left by those already placed
//! whose lifetimes meet its own (greedy by size; Pisarchyk and Lee 2020, arXiv:2001.03288).
//!
//! All sizes are in f16 elements. Offsets of per-row tensors are per row: with `rows` rows the
//! tensor starts at `offset * rows`, so one plan serves every number of rows.

use super::{Graph, Shape, Step, TensorId};
use crate::error::{Error, Result};
use std::ops::Range;

/// Offsets are multiples of this many elements (128 bytes).
pub const ALIGN: usize = 64;

/// Where a tensor lies in the arena of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// First element of the storage it lies in: per row, or absolute for a bag tensor.
    pub offset: usize,
    /// Elements from one position to the next: the channels of the outermost parent.
    pub pitch: usize,
    /// First channel inside the storage; 0 unless it is a slice.
    pub channel: usize,
    /// Whether it lies in the bag arena, which does not grow with the rows.
    pub bag: bool,
}

impl Place {
    /// The element of the arena that holds channel 0 of position 0 of row 0 when a run has `rows`
    /// rows. Position `p` of row `r` follows at `(r * pixels + p) * pitch`.
    pub fn start(&self, rows: usize) -> usize {
        let storage = if self.bag { self.offset } else { self.offset * rows };
        storage + self.channel
    }
}

/// The arena of a graph.
#[derive(Clone, Debug)]
pub struct Plan {
    places: Vec<Option<Place>>,
    /// Elements of the arena for each row.
    pub row_elements: usize,
    /// Elements of the arena of bag tensors.
    pub bag_elements: usize,
    /// The most row elements alive at one step: no plan can need fewer than this.
    pub lower_bound: usize,
}

impl Plan {
    /// Checks the order of a graph and lays out its activations.
    ///
    /// # Errors
    /// [`crate::Kind::Weights`] when a step reads what no earlier step wrote or overwrites what it
    /// reads, or when an output is a graph input, is not written in full, is a part of what a step
    /// writes or shares storage with another output.
    pub fn new(graph: &Graph) -> Result<Plan> {
        check_order(graph)?;
        Ok(Plan::with_lifetimes(graph, &lifetimes(graph, |step| step.reads().collect())))
    }

    /// Lays tensors out by given lifetimes, indexed by tensor (only entries of storage roots
    /// count).
    pub(crate) fn with_lifetimes(graph: &Graph, lives: &[Option<Range<usize>>]) -> Plan {
        let (rows, row_elements) = assign(graph, lives, false);
        let (bags, bag_elements) = assign(graph, lives, true);
        let places = (0..graph.tensors.len())
            .map(|t| {
                let (root, channel) = root(graph, TensorId(t));
                let shape = graph.shape(root);
                let offset = if shape.is_bag() { bags[root.0] } else { rows[root.0] }?;
                Some(Place { offset, pitch: shape.channels(), channel, bag: shape.is_bag() })
            })
            .collect();
        let lower_bound = (0..graph.steps.len().max(1))
            .map(|step| {
                let alive = |t: &usize| lives[*t].as_ref().is_some_and(|l| l.contains(&step));
                let sized = (0..lives.len()).filter(alive).map(TensorId);
                sized.filter(|&t| !graph.shape(t).is_bag()).map(|t| size(graph, t)).sum()
            })
            .max()
            .unwrap_or(0);
        Plan { places, row_elements, bag_elements, lower_bound }
    }

    /// Where a tensor lies. `None` for [`Shape::Pixels`], which stay with the caller, and for
    /// outputs that no step reads, which are written straight to the caller.
    pub fn place(&self, id: TensorId) -> Option<Place> {
        self.places[id.0]
    }
}

/// The outermost tensor whose storage `id` lies in, and its first channel there.
pub fn root(graph: &Graph, id: TensorId) -> (TensorId, usize) {
    let (mut id, mut channel) = (id, 0);
    while let Some((parent, offset)) = graph.tensors[id.0].slice {
        channel += offset;
        id = parent;
    }
    (id, channel)
}

/// The storage a tensor occupies: its root and its channels there.
pub fn extent(graph: &Graph, id: TensorId) -> (TensorId, Range<usize>) {
    let (root, channel) = root(graph, id);
    (root, channel..channel + graph.shape(id).channels())
}

/// Steps during which each storage root must keep its contents; `None` where nothing is stored.
/// `reads` are the tensors a step reads.
pub(crate) fn lifetimes(
    graph: &Graph,
    reads: impl Fn(&Step) -> Vec<TensorId>,
) -> Vec<Option<Range<usize>>> {
    let mut lives: Vec<Option<Range<usize>>> = vec![None; graph.tensors.len()];
    let mut touch = |id: TensorId, step: usize| {
        let life = lives[root(graph, id).0.0].get_or_insert(step..step + 1);
        life.end = life.end.max(step + 1);
    };
    for &input in &graph.inputs {
        touch(input, 0);
    }
    let mut read = vec![false; graph.tensors.len()];
    for (index, step) in graph.steps.iter().enumerate() {
        touch(step.output, index);
        for id in reads(step) {
            touch(id, index);
            read[root(graph, id).0.0] = true;
        }
    }
    let handed_back: Vec<TensorId> = graph.outputs.iter().map(|&o| root(graph, o).0).collect();
    for (t, life) in lives.iter_mut().enumerate() {
        let id = TensorId(t);
        let unread_output = !read[t] && handed_back.contains(&id);
        if unread_output || matches!(graph.shape(id), Shape::Pixels { .. }) {
            *life = None;
        }
    }
    lives
}

fn size(graph: &Graph, id: TensorId) -> usize {
    graph.shape(id).len().next_multiple_of(ALIGN)
}

/// Offsets of the storage roots of one kind (bag or per row), and the elements they span.
fn assign(graph: &Graph, lives: &[Option<Range<usize>>], bag: bool) -> (Vec<Option<usize>>, usize) {
    struct Placed {
        space: Range<usize>,
        life: Range<usize>,
    }
    let mut order: Vec<(TensorId, Range<usize>)> = (lives.iter().enumerate())
        .filter_map(|(t, life)| Some((TensorId(t), life.clone()?)))
        .filter(|&(t, _)| graph.shape(t).is_bag() == bag)
        .collect();
    order.sort_by_key(|(t, _)| (std::cmp::Reverse(size(graph, *t)), *t));

    let mut offsets = vec![None; graph.tensors.len()];
    let mut placed: Vec<Placed> = Vec::new();
    for (id, life) in order {
        let need = size(graph, id);
        // `placed` is kept sorted by start, so the first gap that is wide enough is the lowest.
        let mut offset = 0;
        for other in placed.iter().filter(|p| p.life.start < life.end && life.start < p.life.end) {
            if offset + need <= other.space.start {
                break;
            }
            offset = offset.max(other.space.end);
        }
        offsets[id.0] = Some(offset);
        let at = placed.partition_point(|p| p.space.start <= offset);
        placed.insert(at, Placed { space: offset..offset + need, life });
    }
    (offsets, placed.iter().map(|p| p.space.end).max().unwrap_or(0))
}

/// Every read finds written channels, no step overwrites what it reads, and outputs are whole,
/// written by steps and apart from each other.
fn check_order(graph: &Graph) -> Result<()> {
    let mut written: Vec<Vec<bool>> =
        graph.tensors.iter().map(|t| vec![false; t.shape.channels()]).collect();
    let fail = |what: String| Err(Error::weights(format!("{}: {what}", graph.name)));
    for &input in &graph.inputs {
        let (root, channels) = extent(graph, input);
        written[root.0][channels].fill(true);
    }
    for (index, step) in graph.steps.iter().enumerate() {
        let (to, out) = extent(graph, step.output);
        for id in step.reads() {
            let (from, channels) = extent(graph, id);
            if !written[from.0][channels.clone()].iter().all(|&w| w) {
                return fail(format!("step {index} reads tensor {} before it is written", id.0));
            }
            if from == to && channels.start < out.end && out.start < channels.end {
                return fail(format!("step {index} overwrites tensor {}, which it reads", id.0));
            }
        }
        written[to.0][out].fill(true);
    }
    for (i, &output) in graph.outputs.iter().enumerate() {
        let (root, channels) = extent(graph, output);
        let given = graph.inputs.iter().any(|&input| extent(graph, input).0 == root);
        if given || !written[root.0][channels.clone()].iter().all(|&w| w) {
            return fail(format!("output {i} is not written by any step"));
        }
        let overlaps = |&other: &TensorId| {
            let (other, range) = extent(graph, other);
            other == root && range.start < channels.end && channels.start < range.end
        };
        if graph.outputs[..i].iter().any(overlaps) {
            return fail(format!("output {i} shares storage with an earlier output"));
        }
        // A step writes an output directly, so all of what it writes must belong there.
        let cut = graph.steps.iter().position(|step| {
            let (to, out) = extent(graph, step.output);
            let inside = channels.start <= out.start && out.end <= channels.end;
            let apart = out.end <= channels.start || channels.end <= out.start;
            to == root && !inside && !apart
        });
        if let Some(step) = cut {
            return fail(format!("output {i} is only a part of what step {step} writes"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Epilogue, Op, Tensor};
    use half::f16;

    fn linear(g: &mut Graph, x: TensorId, k: usize, residual: Option<TensorId>) -> TensorId {
        let c = g.shape(x).channels();
        let weight = g.param_f16("w", &[k, c], vec![f16::ONE; k * c]).unwrap();
        let epilogue = Epilogue { residual, ..Default::default() };
        g.push(Op::Linear { weight, epilogue }, &[x]).unwrap()
    }

    /// No two tensors alive at the same step may share an element.
    fn assert_disjoint(graph: &Graph, plan: &Plan) {
        let lives = lifetimes(graph, |step| step.reads().collect());
        for a in 0..lives.len() {
            for b in 0..a {
                let (Some(la), Some(lb)) = (&lives[a], &lives[b]) else { continue };
                let (pa, pb) = (plan.places[a].unwrap(), plan.places[b].unwrap());
                let apart = pa.bag != pb.bag
                    || pa.offset + size(graph, TensorId(a)) <= pb.offset
                    || pb.offset + size(graph, TensorId(b)) <= pa.offset;
                let meet = la.start < lb.end && lb.start < la.end;
                assert!(!meet || apart, "tensors {a} and {b} overlap");
            }
        }
    }

    #[test]
    fn a_chain_needs_two_tensors_and_a_residual_three() {
        let mut chain = Graph::new("chain");
        let mut x = chain.input(Shape::Tokens { t: 1, c: 64 });
        for _ in 0..4 {
            x = linear(&mut chain, x, 64, None);
        }
        chain.output(x);
        let plan = Plan::new(&chain).unwrap();
        assert_eq!((plan.row_elements, plan.lower_bound), (128, 128));
        assert_eq!(plan.place(x), None);
        assert_disjoint(&chain, &plan);

        let mut block = Graph::new("residual");
        let x = block.input(Shape::Tokens { t: 1, c: 64 });
        let a = linear(&mut block, x, 64, None);
        let b = linear(&mut block, a, 64, None);
        let y = linear(&mut block, b, 64, Some(x));
        let z = linear(&mut block, y, 64, None);
        block.output(z);
        let plan = Plan::new(&block).unwrap();
        assert_eq!((plan.row_elements, plan.lower_bound), (192, 192));
        assert_disjoint(&block, &plan);
    }

    #[test]
    fn a_slice_keeps_its_parent_alive() {
        let mut g = Graph::new("concat");
        let x = g.input(Shape::Tokens { t: 2, c: 64 });
        let parent = g.tensor(Shape::Tokens { t: 2, c: 96 });
        let left = g.push_into(Op::Copy, &[x], parent, 0).unwrap();
        let y = linear(&mut g, x, 32, None);
        let right = g.push_into(Op::Copy, &[y], parent, 64).unwrap();
        let z = linear(&mut g, parent, 8, None);
        g.output(z);
        let plan = Plan::new(&g).unwrap();
        let (l, r) = (plan.place(left).unwrap(), plan.place(right).unwrap());
        assert_eq!((l.offset, l.pitch, l.channel), (r.offset, 96, 0));
        assert_eq!((r.pitch, r.channel), (96, 64));
        assert_eq!(r.start(3), r.offset * 3 + 64);
        assert_disjoint(&g, &plan);
    }

    #[test]
    fn bad_orders_are_refused() {
        let mut unwritten = Graph::new("g");
        unwritten.input(Shape::Tokens { t: 1, c: 4 });
        let hole = unwritten.tensor(Shape::Tokens { t: 1, c: 4 });
        let y = linear(&mut unwritten, hole, 4, None);
        unwritten.output(y);
        let error = Plan::new(&unwritten).unwrap_err();
        assert!(error.to_string().contains("before it is written"), "{error}");

        let mut half_written = Graph::new("g");
        let x = half_written.input(Shape::Tokens { t: 1, c: 4 });
        let parent = half_written.tensor(Shape::Tokens { t: 1, c: 8 });
        half_written.push_into(Op::Copy, &[x], parent, 0).unwrap();
        half_written.output(parent);
        let error = Plan::new(&half_written).unwrap_err();
        assert!(error.to_string().contains("not written"), "{error}");

        let mut input_back = Graph::new("g");
        let x = input_back.input(Shape::Tokens { t: 1, c: 4 });
        input_back.output(x);
        assert!(Plan::new(&input_back).is_err());

        let mut twice = Graph::new("g");
        let x = twice.input(Shape::Tokens { t: 1, c: 4 });
        let y = linear(&mut twice, x, 4, None);
        twice.output(y);
        twice.output(y);
        let error = Plan::new(&twice).unwrap_err();
        assert!(error.to_string().contains("shares storage"), "{error}");

        let mut part = Graph::new("g");
        let x = part.input(Shape::Tokens { t: 1, c: 4 });
        let y = linear(&mut part, x, 4, None);
        part.tensors.push(Tensor { shape: Shape::Tokens { t: 1, c: 2 }, slice: Some((y, 1)) });
        part.output(TensorId(y.0 + 1));
        let error = Plan::new(&part).unwrap_err();
        assert!(error.to_string().contains("only a part"), "{error}");
    }
}
