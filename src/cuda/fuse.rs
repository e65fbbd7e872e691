//! Which steps become one launch: runs of steps that keep every bit, because each step is computed as it
//! would be alone, what it hands on is rounded to FP16 as if it were stored, and a pool only chooses
//! among such numbers.
//!
//! What lies between them is never stored, so the arena is planned from the merged steps.

use crate::graph::plan::{extent, root};
use crate::graph::{Act, Graph, Op, Shape, Step, TensorId, Window};

/// One launch's worth of steps, by index; the same twice for a step on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub first: usize,
    pub last: usize,
    pub joint: Joint,
}

/// The kernel that a group has of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joint {
    /// None: one step.
    Alone,
    /// `conv2d.cu` with CFG_POOL.
    Pool,
    /// `stem.cu`.
    Stem,
    /// `stem_pair.cu`: two convolutions, and a pool where `second` is not the last step.
    Pair { second: usize },
}

type Test = fn(&Graph, &Step) -> bool;

/// Steps that have a kernel of their own, each the only reader of the one before.
struct Run {
    steps: &'static [Test],
    joint: fn(&[usize]) -> Joint,
}

/// The longer before the shorter that begin alike.
const RUNS: &[Run] = &[
    Run { steps: &[is_first_3x3, is_second_3x3, halves_a_map], joint: pair },
    Run { steps: &[is_first_3x3, is_second_3x3_inside], joint: pair },
    Run { steps: &[is_first_7x7, overlaps], joint: |_| Joint::Stem },
    Run { steps: &[is_plain_convolution, halves_a_map], joint: |_| Joint::Pool },
];

fn pair(steps: &[usize]) -> Joint {
    Joint::Pair { second: steps[1] }
}

/// Channels of one chunk of 16 bytes, and filters of a tile of the stem kernels.
const STEM_CHANNELS: usize = 8;
const STEM_FILTERS: usize = 64;

/// Without what the pooling epilogue has no registers for.
fn is_plain_convolution(_: &Graph, step: &Step) -> bool {
    let Op::Conv2d { epilogue, .. } = step.op else { return false };
    epilogue.residual.is_none() && matches!(epilogue.act, Act::None | Act::Relu)
}

/// A convolution with a given window and ReLU whose filters fit one tile.
fn is_narrow(graph: &Graph, step: &Step, wanted: Window) -> bool {
    let Op::Conv2d { window, epilogue, .. } = step.op else { return false };
    let ending = epilogue.residual.is_none() && epilogue.act == Act::Relu;
    ending && window == wanted && graph.shape(step.output).channels() <= STEM_FILTERS
}

fn is_first(graph: &Graph, step: &Step, wanted: Window) -> bool {
    is_narrow(graph, step, wanted) && graph.shape(step.inputs[0]).channels() <= STEM_CHANNELS
}

fn is_first_7x7(graph: &Graph, step: &Step) -> bool {
    is_first(graph, step, Window::square(7, 2, 3))
}

fn is_first_3x3(graph: &Graph, step: &Step) -> bool {
    is_first(graph, step, Window::square(3, 1, 1))
}

fn is_second_3x3(graph: &Graph, step: &Step) -> bool {
    is_narrow(graph, step, Window::square(3, 1, 1))
}

/// One whose result is not handed back, as f32 that was never rounded.
fn is_second_3x3_inside(graph: &Graph, step: &Step) -> bool {
    let storage = root(graph, step.output).0;
    let given = graph.outputs.iter().any(|&id| root(graph, id).0 == storage);
    is_second_3x3(graph, step) && !given
}

/// A 3 x 3 max pool with stride 2.
fn overlaps(_: &Graph, step: &Step) -> bool {
    let Op::MaxPool { window, .. } = step.op else { return false };
    [0, 1].into_iter().any(|pad| window == Window::square(3, 2, pad))
}

/// A 2x2 max pool with stride 2 whose windows all lie inside the map.
fn halves_a_map(graph: &Graph, step: &Step) -> bool {
    let Op::MaxPool { window, ceil_mode } = step.op else { return false };
    let Shape::Map { h, w, .. } = graph.shape(step.inputs[0]) else { return false };
    let whole = !ceil_mode || (h.is_multiple_of(2) && w.is_multiple_of(2));
    window == Window::square(2, 2, 0) && whole
}

/// The steps of a graph in the order of their last, each once.
pub(super) fn groups(graph: &Graph) -> Vec<Group> {
    let mut taken = vec![false; graph.steps.len()];
    let mut groups = Vec::new();
    for first in 0..graph.steps.len() {
        if taken[first] {
            continue;
        }
        let found = RUNS.iter().find_map(|run| Some((run, matched(graph, run, first)?)));
        let (steps, joint) = match found {
            Some((run, steps)) => (steps.clone(), (run.joint)(&steps)),
            None => (vec![first], Joint::Alone),
        };
        steps.iter().for_each(|&i| taken[i] = true);
        groups.push(Group { first, last: steps[steps.len() - 1], joint });
    }
    groups.sort_by_key(|group| group.last);
    groups
}

/// The steps of a run that begins with step `first`.
fn matched(graph: &Graph, run: &Run, first: usize) -> Option<Vec<usize>> {
    let mut steps = vec![first];
    for (i, test) in run.steps.iter().enumerate() {
        if i > 0 {
            steps.push(only_reader(graph, steps[i - 1])?);
        }
        if !test(graph, &graph.steps[steps[i]]) {
            return None;
        }
    }
    Some(steps)
}

/// Every step on its own.
pub(super) fn singles(graph: &Graph) -> Vec<Group> {
    (0..graph.steps.len()).map(|i| Group { first: i, last: i, joint: Joint::Alone }).collect()
}

/// The step that takes what another writes as its first input, when nothing else reads that, writes
/// it or shares its storage.
fn only_reader(graph: &Graph, writer: usize) -> Option<usize> {
    let id = graph.steps[writer].output;
    let storage = root(graph, id).0;
    let shares = |&t: &TensorId| extent(graph, t).0 == storage;
    let alone = (0..graph.tensors.len()).map(TensorId).filter(shares).count() == 1;
    let given = graph.inputs.iter().chain(&graph.outputs).any(shares);
    let written_once = graph.steps.iter().filter(|s| s.output == id).count() == 1;
    let mut readers = graph.steps.iter().enumerate().filter(|(_, s)| s.reads().any(|r| r == id));
    let reader = readers.next().filter(|(_, s)| s.inputs[0] == id).map(|(i, _)| i);
    reader.filter(|_| alone && !given && written_once && readers.next().is_none())
}

/// The graph with each group as one step, for planning: what is between two steps has no life.
pub(super) fn merged(graph: &Graph, groups: &[Group]) -> Graph {
    let step = |g: &Group| {
        let (first, last) = (&graph.steps[g.first], &graph.steps[g.last]);
        Step { op: first.op, inputs: first.inputs.clone(), output: last.output }
    };
    Graph { steps: groups.iter().map(step).collect(), ..graph.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Epilogue;
    use half::f16;

    /// Two convolutions of 6 x 7 maps, the first followed by a max pool.
    fn graph(window: Window, ceil_mode: bool) -> (Graph, TensorId) {
        let mut g = Graph::new("g");
        let x = g.input(Shape::Map { h: 6, w: 7, c: 1 });
        let weight = g.param_f16("w", &[1, 1, 1, 1], vec![f16::ONE]).unwrap();
        let epilogue = Epilogue::default();
        let conv = Op::Conv2d { weight, window: Window::square(1, 1, 0), epilogue };
        let between = g.push(conv, &[x]).unwrap();
        let pool = g.push(Op::MaxPool { window, ceil_mode }, &[between]).unwrap();
        let y = g.push(conv, &[pool]).unwrap();
        g.output(y);
        (g, between)
    }

    #[test]
    fn a_pool_joins_the_convolution_that_only_it_reads() {
        let square = Window::square(2, 2, 0);
        let (mut g, between) = graph(square, false);
        let joined = [
            Group { first: 0, last: 1, joint: Joint::Pool },
            Group { first: 2, last: 2, joint: Joint::Alone },
        ];
        assert_eq!(groups(&g), joined);
        let plan = merged(&g, &joined);
        assert_eq!(plan.steps.len(), 2);
        assert!(plan.steps.iter().all(|s| s.output != between));

        // Somebody else needs the map.
        g.output(between);
        assert_eq!(groups(&g), singles(&g));
        g.outputs.pop();
        g.push(Op::Copy, &[between]).unwrap();
        assert_eq!(groups(&g), singles(&g));
        // It is a part of something.
        let (mut g, between) = graph(square, false);
        g.slice(between, 0, 1).unwrap();
        assert_eq!(groups(&g), singles(&g));
    }

    /// ReLU convolutions of a map, `(filters, window)` each, and a pool; the tensors, the input first.
    fn chain(
        [h, w, c]: [usize; 3],
        convs: &[(usize, Window)],
        pool: Option<(Window, bool)>,
    ) -> (Graph, Vec<TensorId>) {
        let mut g = Graph::new("g");
        let mut tensors = vec![g.input(Shape::Map { h, w, c })];
        for &(k, window) in convs {
            let x = tensors[tensors.len() - 1];
            let shape = [k, window.kernel[0], window.kernel[1], g.shape(x).channels()];
            let zeros = vec![f16::ZERO; shape.iter().product()];
            let weight = g.param_f16("w", &shape, zeros).unwrap();
            let epilogue = Epilogue { act: Act::Relu, ..Epilogue::default() };
            tensors.push(g.push(Op::Conv2d { weight, window, epilogue }, &[x]).unwrap());
        }
        if let Some((window, ceil_mode)) = pool {
            let x = tensors[tensors.len() - 1];
            tensors.push(g.push(Op::MaxPool { window, ceil_mode }, &[x]).unwrap());
        }
        let x = tensors[tensors.len() - 1];
        let y = g.push(Op::Flatten, &[x]).unwrap();
        g.output(y);
        (g, tensors)
    }

    fn joints(graph: &Graph) -> Vec<Joint> {
        groups(graph).iter().map(|g| g.joint).collect()
    }

    #[test]
    fn a_7x7_joins_the_overlapping_pool_behind_it() {
        let seven = Window::square(7, 2, 3);
        let stem = |c, k, pool| joints(&chain([20, 22, c], &[(k, seven)], Some(pool)).0)[0];
        // Residual and dense networks, and GoogLeNet.
        assert_eq!(stem(3, 64, (Window::square(3, 2, 1), false)), Joint::Stem);
        assert_eq!(stem(3, 64, (Window::square(3, 2, 0), true)), Joint::Stem);
        assert_eq!(stem(3, 64, (Window::square(2, 2, 0), false)), Joint::Pool);
        // Too many channels for a chunk, too many filters for a tile, another pool.
        assert_eq!(stem(9, 64, (Window::square(3, 2, 1), false)), Joint::Alone);
        assert_eq!(stem(3, 65, (Window::square(3, 2, 1), false)), Joint::Alone);
        assert_eq!(stem(3, 64, (Window::square(3, 1, 1), false)), Joint::Alone);
    }

    #[test]
    fn two_first_3x3_join_with_and_without_a_pool() {
        let (three, halving) = (Window::square(3, 1, 1), Window::square(2, 2, 0));
        let map = [6, 8, 3];
        let both = [(64, three), (64, three)];
        let pair = Joint::Pair { second: 1 };
        let (g, _) = chain(map, &both, Some((halving, false)));
        assert_eq!(groups(&g)[0], Group { first: 0, last: 2, joint: pair });
        assert_eq!(merged(&g, &groups(&g)).steps.len(), 2);

        // A skip connection reads what is pooled.
        let (mut g, tensors) = chain(map, &both, Some((halving, false)));
        g.push(Op::Copy, &[tensors[2]]).unwrap();
        assert_eq!(joints(&g)[..2], [pair, Joint::Alone]);
        // It is handed back, not rounded.
        g.output(tensors[2]);
        assert_eq!(joints(&g)[..2], [Joint::Alone; 2]);
        // Somebody needs what lies between.
        let (mut g, tensors) = chain(map, &both, Some((halving, false)));
        g.output(tensors[1]);
        assert_eq!(joints(&g)[..2], [Joint::Alone, Joint::Pool]);
        // A third stays alone; too many filters, and the pool keeps to its own convolution.
        let (g, _) = chain(map, &[(64, three); 3], None);
        assert_eq!(joints(&g)[..2], [pair, Joint::Alone]);
        let (g, _) = chain(map, &[(64, three), (72, three)], Some((halving, false)));
        assert_eq!(joints(&g)[..2], [Joint::Alone, Joint::Pool]);
        let (g, _) = chain([6, 8, 9], &both, None);
        assert_eq!(joints(&g)[..2], [Joint::Alone; 2]);
    }

    #[test]
    fn other_windows_stay_apart() {
        for window in [Window::square(3, 2, 1), Window::square(2, 1, 0)] {
            let (g, _) = graph(window, false);
            assert_eq!(groups(&g), singles(&g));
        }
        // The last window of an odd map hangs over.
        let (g, _) = graph(Window::square(2, 2, 0), true);
        assert_eq!(groups(&g), singles(&g));
    }
}
