//! Which steps become one launch: pairs that keep every bit, because the second only chooses among
//! the FP16 numbers the first would have stored.
//!
//! What lies between the two is never stored, so the arena is planned from the merged steps.

use crate::graph::plan::{extent, root};
use crate::graph::{Act, Graph, Op, Shape, Step, TensorId, Window};

/// One launch's worth of steps, by index; the same twice for a step on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub first: usize,
    pub last: usize,
}

/// Two steps that have a kernel of their own.
struct Pair {
    first: fn(&Graph, &Step) -> bool,
    second: fn(&Graph, &Step) -> bool,
}

const PAIRS: &[Pair] = &[
    // `conv2d.cu` with CFG_POOL.
    Pair { first: is_plain_convolution, second: halves_a_map },
];

/// Without what the pooling epilogue has no registers for.
fn is_plain_convolution(_: &Graph, step: &Step) -> bool {
    let Op::Conv2d { epilogue, .. } = step.op else { return false };
    epilogue.residual.is_none() && matches!(epilogue.act, Act::None | Act::Relu)
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
    let mut first: Vec<usize> = (0..graph.steps.len()).collect();
    let mut absorbed = vec![false; graph.steps.len()];
    for (last, step) in graph.steps.iter().enumerate() {
        let Some(writer) = only_use(graph, step.inputs[0], last) else { continue };
        let fits = |p: &Pair| (p.first)(graph, &graph.steps[writer]) && (p.second)(graph, step);
        if first[writer] == writer && PAIRS.iter().any(fits) {
            first[last] = writer;
            absorbed[writer] = true;
        }
    }
    let kept = (0..graph.steps.len()).filter(|&last| !absorbed[last]);
    kept.map(|last| Group { first: first[last], last }).collect()
}

/// Every step on its own.
pub(super) fn singles(graph: &Graph) -> Vec<Group> {
    (0..graph.steps.len()).map(|i| Group { first: i, last: i }).collect()
}

/// The step that writes a tensor, when `reader` is all that reads it and nothing else shares its
/// storage.
fn only_use(graph: &Graph, id: TensorId, reader: usize) -> Option<usize> {
    let storage = root(graph, id).0;
    let shares = |&t: &TensorId| extent(graph, t).0 == storage;
    let alone = (0..graph.tensors.len()).map(TensorId).filter(shares).count() == 1;
    let given = graph.inputs.iter().chain(&graph.outputs).any(shares);
    let mut readers = graph.steps.iter().enumerate().filter(|(_, s)| s.reads().any(|r| r == id));
    let read_once = readers.next().map(|(i, _)| i) == Some(reader) && readers.next().is_none();
    let writer = graph.steps.iter().position(|s| s.output == id);
    writer.filter(|_| alone && !given && read_once)
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
        let joined = [Group { first: 0, last: 1 }, Group { first: 2, last: 2 }];
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
