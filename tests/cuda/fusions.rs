//! Steps that become one launch: the same bits as apart.

use super::cases::{Case, Numbers};
use super::{backend, bits, each_case, run};
use histokern::graph::Op;
use std::sync::Arc;

/// The case with what lies between its steps handed back too, so that they stay apart.
pub fn apart(case: &Case) -> Case {
    let mut graph = (*case.graph).clone();
    let between = graph.steps[..graph.steps.len() - 1].iter().map(|step| step.output);
    graph.outputs.extend(between);
    Case { name: case.name.clone(), graph: Arc::new(graph), rows: case.rows }
}

#[test]
fn a_pool_in_the_epilogue_keeps_every_bit() {
    let Some(backend) = backend() else { return };
    let pair = |case: &Case| {
        let ops: Vec<&Op> = case.graph.steps.iter().map(|s| &s.op).collect();
        matches!(ops[..], [Op::Conv2d { .. }, Op::MaxPool { .. }])
    };
    each_case(Numbers::General, pair, |case| {
        let joined = run(&backend, case, Numbers::General, 0, case.rows)?;
        let whole = run(&backend, &apart(case), Numbers::General, 0, case.rows)?;
        Ok((bits(&joined) != bits(&whole[..1])).then(|| "other bits than apart".into()))
    });
}
