//! What the op cases found, a line each: `target/report/ops-<architecture>.txt`. A case runs with
//! integers and with general numbers, alone and inside a network.

use super::cases::{Case, Numbers};
use super::faults;
use super::report::{Table, verdict};
use histokern::backend::Backend;
use histokern::backend::check::Deviation;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Ending of the name of a case inside a network.
pub const STORED: &str = ", stored";

/// Columns, in the order of the table.
const WAYS: [(Numbers, bool, &str); 4] = [
    (Numbers::Integer, false, "integers"),
    (Numbers::Integer, true, "integers inside"),
    (Numbers::General, false, "general"),
    (Numbers::General, true, "general inside"),
];

/// The worst relative L2 distance of each way, over outputs and tiles.
#[derive(Default)]
struct Row {
    worst: [Option<f64>; 4],
    wrong: bool,
}

/// Notes one output of a run.
pub fn case(on: &dyn Backend, case: &Case, numbers: Numbers, found: &Deviation, bound: f64) {
    static FOUND: Mutex<BTreeMap<String, Row>> = Mutex::new(BTreeMap::new());
    // Kernels with a planted fault say nothing about the kernels.
    if faults::is_planted() {
        return;
    }
    let bare = case.name.strip_suffix(STORED);
    let way = WAYS.iter().position(|w| (w.0, w.1) == (numbers, bare.is_some())).unwrap();
    let mut all = FOUND.lock().unwrap();
    let row = all.entry(short(bare.unwrap_or(&case.name))).or_default();
    let worst = row.worst[way].get_or_insert(0.0);
    *worst = worst.max(found.relative_l2);
    row.wrong |= !found.within(bound);

    let mut table =
        Table::new(&["case: relative L2", WAYS[0].2, WAYS[1].2, WAYS[2].2, WAYS[3].2, ""]);
    for (name, row) in &*all {
        let cell = |worst: Option<f64>| match worst {
            None => "-".into(),
            Some(0.0) => "exact".into(),
            Some(distance) => format!("{distance:.1e}"),
        };
        let mut cells = vec![name.clone()];
        cells.extend(row.worst.map(cell));
        cells.push(verdict(!row.wrong));
        table.row(cells);
    }
    let name = on.name();
    let arch = name.split([' ', ',']).find(|word| word.starts_with("sm_")).unwrap_or("device");
    table.save(&format!("ops-{arch}.txt"));
}

/// A name without the parts that say what is usual.
pub fn short(name: &str) -> String {
    let mut name = name.to_string();
    for (long, short) in [
        ("Window { kernel: ", ""),
        ("Parts { ", ""),
        (": [", " ["),
        ("scale: false, ", ""),
        ("bias: false, ", ""),
        ("residual: false, ", ""),
        (": true", ""),
        ("act: ", ""),
        ("stride [1, 1]", ""),
        ("pad [0, 0]", ""),
        ("dilation [1, 1]", ""),
        (" }", ""),
        (" { ", " "),
        (", , ", ", "),
        (", ,", ","),
    ] {
        name = name.replace(long, short);
    }
    name.split_whitespace().collect::<Vec<_>>().join(" ")
}
