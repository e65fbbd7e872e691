//! Faults planted in the kernels, one at a time: each must be found by the op cases or by the checks
//! of the stand-in driver. A test that lets one pass would let a real one pass.
//!
//! Only on the stand-in driver: on a GPU some of these hang. Each fault runs in a process of its own,
//! because a device that failed stays failed.

use super::cases::{self, Case, Numbers};
use super::record::short;
use super::report::{Table, verdict};
use super::{backend, disagreement, stems, stored, tiles};
use histokern::Result;
use histokern::backend::Backend;
use histokern::cuda::CudaBackend;
use histokern::cuda::compile::{Compiler, SOURCES};
use histokern::cuda::kernels::KERNELS;
use histokern::graph::Op;
use std::path::PathBuf;
use std::process::Command;

/// One wrong line.
struct Fault {
    name: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
    /// Whether it concerns the warpgroup kernels of sm_90a.
    warpgroups: bool,
    /// Whether both multiplying warpgroups must share a tile for it to show.
    one_team: bool,
    /// Blocks of the clusters it must run in.
    cluster: u32,
}

const fn portable(
    name: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
) -> Fault {
    Fault { name, file, right, wrong, warpgroups: false, one_team: false, cluster: 1 }
}

const fn hopper(
    name: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
) -> Fault {
    Fault { warpgroups: true, ..portable(name, file, right, wrong) }
}

const fn one_team(
    name: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
) -> Fault {
    Fault { one_team: true, ..hopper(name, file, right, wrong) }
}

const fn clustered(
    name: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
) -> Fault {
    Fault { cluster: 2, ..hopper(name, file, right, wrong) }
}

const FAULTS: &[Fault] = &[
    portable(
        "missing barrier before a slice is used",
        "tile.cuh",
        "    barrier_block();\n    if (s + T::STAGES",
        "    if (s + T::STAGES",
    ),
    portable(
        "one slice too few waited for",
        "tile.cuh",
        "copy_wait<T::STAGES - 2>();",
        "copy_wait<T::STAGES - 1>();",
    ),
    portable(
        "ring position not advanced",
        "tile.cuh",
        "use = use + 1 == T::STAGES ? 0 : use + 1;",
        "use = use + 1 == T::STAGES ? 1 : use + 1;",
    ),
    portable(
        "swizzle of copies and reads differ",
        "tile.cuh",
        "copy_async16(slice + swizzled(row + i * T::PASS_ROWS, chunk)",
        "copy_async16(slice + swizzled(row + i * T::PASS_ROWS, chunk ^ 1)",
    ),
    portable(
        "last columns read beyond the matrix",
        "tile.cuh",
        "min(max(columns_left, 0), CHUNK) * 2",
        "CHUNK * 2",
    ),
    portable(
        "fragments of a swapped",
        "dev.cuh",
        "\"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3]), \"r\"(b0), \"r\"(b1)",
        "\"r\"(a[2]), \"r\"(a[1]), \"r\"(a[3]), \"r\"(b0), \"r\"(b1)",
    ),
    portable(
        "halves packed in the wrong order",
        "dev.cuh",
        "\"f\"(high), \"f\"(low)",
        "\"f\"(low), \"f\"(high)",
    ),
    portable(
        "padding on the right not masked",
        "conv2d.cu",
        "&& (u32)(left[i] + right) < (u32)p.w",
        "&& left[i] + right >= 0",
    ),
    portable(
        "channels beyond the last not masked",
        "conv2d.cu",
        "min(p.c - c, (i32)CHUNK) * 2",
        "(i32)CHUNK * 2",
    ),
    portable("dilation along the wrong axis", "conv2d.cu", "right = s * p.dilation_w", "right = s"),
    portable("one row too many stored", "epilogue.cuh", "m0 + row >= m_end", "m0 + row > m_end"),
    portable(
        "missing barrier before the tile is stored",
        "epilogue.cuh",
        "  T::sync();\n  if (e.out.half)",
        "  if (e.out.half)",
    ),
    portable("residual not waited for", "epilogue.cuh", "  copy_wait<0>();\n", ""),
    portable(
        "scale of the neighbouring filter",
        "epilogue.cuh",
        "scale1 = in1 ? e.scale[n + 1]",
        "scale1 = in1 ? e.scale[n]",
    ),
    portable("zero padding wins a maximum", "pool.cu", "__int_as_float(0xff800000)", "0.f"),
    portable(
        "padding not counted",
        "pool.cu",
        "a.count_pad ? a.kernel_h * a.kernel_w : inside",
        "inside",
    ),
    portable(
        "adaptive windows end early",
        "pool.cu",
        "((o.q + 1) * a.w + a.q - 1) / a.q",
        "(o.q + 1) * a.w / a.q",
    ),
    portable(
        "unbiased variance",
        "norm.cu",
        "squares / count + p.eps",
        "squares / (count - 1.f) + p.eps",
    ),
    portable(
        "missing barrier in a block sum",
        "norm.cu",
        "  barrier_block();\n  float sum = 0.f;",
        "  float sum = 0.f;",
    ),
    portable(
        "runs not rescaled",
        "bag.cu",
        "sum += part[i * step + 2 + c] * scale;",
        "sum += part[i * step + 2 + c];",
    ),
    portable("score of half a quad", "score.cu", "part[half] += shuffle_xor(part[half], 2);", ""),
    portable(
        "gate without its sigmoid",
        "score.cu",
        "v * activate<ACT_SIGMOID>(",
        "v * activate<ACT_NONE>(",
    ),
    portable(
        "positions fastest",
        "layout.cu",
        "c * p.positions + i, square",
        "i * p.c + c, square",
    ),
    portable("mean of the wrong channel", "preprocess.cu", "p.table[256 + x[1]]", "p.table[x[1]]"),
    portable(
        "keys beyond the last not masked",
        "attention.cuh",
        "lane % 4 * 2 + e % 2 >= keys_end",
        "lane % 4 * 2 + e % 2 > keys_end",
    ),
    portable(
        "keys and values not waited for",
        "attention.cu",
        "  copy_wait<0>();\n  barrier_block();",
        "  barrier_block();",
    ),
    portable(
        "missing barrier before a block of keys",
        "attention_online.cu",
        "    barrier_block();\n    if (b + 1",
        "    if (b + 1",
    ),
    portable(
        "weights in the wrong fragment",
        "attention.cuh",
        "pack_halves(s[2 * j][2], s[2 * j][3]),",
        "pack_halves(s[2 * j + 1][0], s[2 * j + 1][1]),",
    ),
    portable(
        "values not transposed",
        "attention.cuh",
        "load_matrix_x4_transposed(right",
        "load_matrix_x4(right",
    ),
    portable(
        "sum not scaled down to a larger score",
        "attention_online.cu",
        "      total[half] *= shrink;\n",
        "",
    ),
    portable(
        "queries of the first row for all",
        "attention.cuh",
        "p.q + blockIdx.x * p.query_row",
        "p.q + 0 * p.query_row",
    ),
    portable(
        "wrong stride of groups",
        "token_norm.cu",
        "start = i % p.groups * p.c;",
        "start = i % p.groups * 8;",
    ),
    portable(
        "channels beyond the group in its variance",
        "token_norm.cu",
        "const float d = e < count ? v[e] - center : 0.f;",
        "const float d = v[e] - center;",
    ),
    portable(
        "gate in place of the value",
        "epilogue.cuh",
        "gate * (sums[i][j][2 * half + 1] + value_bias)",
        "gate * (sums[i][j][2 * half] + value_bias)",
    ),
    portable(
        "slice activated before it has arrived",
        "tile.cuh",
        "    copy_wait<T::STAGES - 2>();\n    a.arrived(ring + use * T::STAGE_BYTES);\n",
        "    a.arrived(ring + use * T::STAGE_BYTES);\n    copy_wait<T::STAGES - 2>();\n",
    ),
    portable("pre-activation of the first slice", "preact.cu", "    bias += BK;\n", ""),
    portable(
        "taps of a transposed convolution swapped",
        "transposed.cu",
        "tap / 2) * (2 * w) + column * 2 + tap % 2",
        "tap % 2) * (2 * w) + column * 2 + tap / 2",
    ),
    portable("three of a square pooled", "epilogue.cuh", "row = 1; row < 4", "row = 1; row < 3"),
    portable("squares row by row", "conv2d.cu", "row * 2 + position % 4 / 2", "row * 2"),
    portable(
        "next in order taken for the same",
        "bag_reduce.cu",
        "rank + 1 < counts",
        "rank < counts",
    ),
    portable(
        "missing barrier after counting",
        "bag_reduce.cu",
        "    barrier_block();\n    if (leader) {",
        "    if (leader) {",
    ),
    portable("rows weighted like columns", "upsample.cu", "down.fraction", "across.fraction"),
    portable(
        "position of the class token counted",
        "tokens.cu",
        "p.position + (size_t)from",
        "p.position + (size_t)token",
    ),
    portable(
        "largest not taken off",
        "tokens.cu",
        "total += expf(half_to_float(x[c]) - largest)",
        "total += expf(half_to_float(x[c]))",
    ),
    portable(
        "GELU by tanh",
        "sink.cuh",
        "0.5f * x * (1.f + erff(x * 0.70710678f))",
        "0.5f * x * (1.f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)))",
    ),
    hopper("stage given back while it is read", "sm90/roles.cuh", "    wgmma_wait<1>();\n", ""),
    hopper("last products not waited for", "sm90/roles.cuh", "  wgmma_wait<0>();\n", ""),
    hopper("products not fenced", "sm90/roles.cuh", "    wgmma_fence();\n", ""),
    hopper("wrong parity", "sm90/roles.cuh", "turn.parity ^ 1", "turn.parity"),
    portable(
        "pixels beyond the right edge",
        "stem.cuh",
        "(u32)z < (u32)w && column",
        "z >= 0 && column",
    ),
    portable("tap not carried into the next row", "stem.cuh", "s -= R;\n      r++;", "s -= R;"),
    portable(
        "positions without their stride",
        "stem.cuh",
        "m % WIDTH * Pixels::STRIDE",
        "m % WIDTH",
    ),
    portable(
        "what lies outside the map wins",
        "stem.cuh",
        "if ((u32)(to.left + 2 * x + s) >= (u32)to.w) continue;",
        "",
    ),
    portable(
        "missing barrier before the staged map is pooled",
        "stem.cu",
        "  barrier_block();\n  const Pooling",
        "  const Pooling",
    ),
    portable("padding of the pool forgotten", "stem.cu", "top = 2 * p0 - a.pad", "top = 2 * p0"),
    portable(
        "padding of the second convolution not zero",
        "stem_pair.cu",
        "inside ? pack_halves(v0, v1) : 0",
        "pack_halves(v0, v1)",
    ),
    portable(
        "missing barrier before the first map is read",
        "stem_pair.cu",
        "nobody still reads v.\n  barrier_block();",
        "nobody still reads v.",
    ),
    portable(
        "first filters not waited for",
        "stem_pair.cu",
        "  copy_wait<0>();\n  barrier_block();\n  const FirstMap",
        "  barrier_block();\n  const FirstMap",
    ),
    portable(
        "swizzle of the map written and read differ",
        "stem_pair.cu",
        "map_offset(first[fragment] + r * HALO + s, chunk)",
        "map_offset(first[fragment] + r * HALO + s, chunk ^ 1)",
    ),
    portable(
        "channels carried into the next tap too late",
        "stem_pair.cu",
        "while (chunk >= chunks)",
        "while (chunk > chunks)",
    ),
    portable("table of another channel", "recolour.cu", "p.table + 1536", "p.table + 768"),
    portable(
        "no limit at 255",
        "recolour.cu",
        "fminf(power_of_two(add_rounded(add_rounded(r[e], g[e]), b[e])), 255.f)",
        "power_of_two(add_rounded(add_rounded(r[e], g[e]), b[e]))",
    ),
    portable("last pixel left as it is", "recolour.cu", "if (i >= (u32)", "if (i + 1 >= (u32)"),
    portable("one power of a series too few", "recolour.cu", "i32 k = 4;", "i32 k = 3;"),
    hopper(
        "fewer bytes expected than copied",
        "sm90/roles.cuh",
        "Left::BYTES + W::B_SLICE",
        "W::B_SLICE",
    ),
    hopper(
        "stage filled before it is empty",
        "sm90/roles.cuh",
        "        mbarrier_wait(ring.empty(turn.stage), turn.parity ^ 1);\n",
        "",
    ),
    hopper(
        "stage read before it is full",
        "sm90/roles.cuh",
        "    mbarrier_wait(ring.full(turn.stage), turn.parity);\n",
        "",
    ),
    hopper("teams out of step", "sm90/roles.cuh", "    turn.skip((W::TEAMS - 1) * slices);\n", ""),
    hopper(
        "team begins before the other",
        "sm90/roles.cuh",
        "    if (W::TEAMS == 2) mbarrier_wait(ring.begin(team), parity ^ 1 ^ team);\n",
        "",
    ),
    one_team(
        "stage emptied by one warpgroup of two",
        "sm90/ring.cuh",
        "W::TEAM_GROUPS * cluster_size()",
        "cluster_size()",
    ),
    one_team(
        "tile written by one thread too few",
        "sm90/ring.cuh",
        "mbarrier_init(written(team), W::TEAM_THREADS)",
        "mbarrier_init(written(team), W::TEAM_THREADS - 1)",
    ),
    hopper("staged tile not fenced", "sm90/roles.cuh", "    fence_async_proxy();\n", ""),
    hopper(
        "panels used before they are free",
        "sm90/roles.cuh",
        "    mbarrier_wait(ring.ready(team), parity);\n",
        "",
    ),
    hopper(
        "panels stored before they are written",
        "sm90/roles.cuh",
        "    mbarrier_wait(ring.written(team), parity);\n",
        "",
    ),
    hopper(
        "panels handed on while they are stored",
        "sm90/roles.cuh",
        "      store_wait_read();\n",
        "",
    ),
    hopper(
        "staged in another swizzle",
        "sm90/roles.cuh",
        "(((j ^ top) & 7) << 4)",
        "((j & 7) << 4)",
    ),
    hopper(
        "residual of the neighbouring filter",
        "sm90/roles.cuh",
        "half_to_float(residual[1])",
        "half_to_float(residual[0])",
    ),
    hopper("row groups of the descriptor", "sm90/dev.cuh", "(1024 >> 4) << 32", "(512 >> 4) << 32"),
    hopper(
        "rows and columns of a tap swapped",
        "sm90/conv2d.cu",
        "s * p.dilation_w, r * p.dilation_h",
        "r * p.dilation_h, s * p.dilation_w",
    ),
    hopper(
        "first pixel without its padding",
        "sm90/conv2d.cu",
        "m0 % p.q * p.stride_w - p.pad_w",
        "m0 % p.q * p.stride_w",
    ),
    hopper(
        "more registers than there are",
        "sm90/gemm.cu",
        "registers_shrink<40>",
        "registers_shrink<48>",
    ),
    clustered(
        "stage emptied by one block of two",
        "sm90/ring.cuh",
        "W::TEAM_GROUPS * cluster_size()",
        "W::TEAM_GROUPS",
    ),
    clustered(
        "filters copied to the own block alone",
        "sm90/roles.cuh",
        "(1 << tiles.peers) - 1",
        "1 << tiles.rank",
    ),
    clustered(
        "both halves of the filters in one place",
        "sm90/roles.cuh",
        "ring.b(turn.stage) + first * ROW_BYTES",
        "ring.b(turn.stage)",
    ),
    clustered("block ends before its cluster", "sm90/gemm.cu", "  barrier_cluster();\n}", "}"),
    hopper(
        "slices handed over too late",
        "sm90/gather.cu",
        "LAG = CFG_STAGES - 2 < 4 ? CFG_STAGES - 2 : 4",
        "LAG = CFG_STAGES - 1",
    ),
    hopper("gathered slice not fenced", "sm90/gather.cu", "  fence_async_proxy();\n", ""),
    hopper("gathered slice not waited for", "sm90/gather.cu", "        copy_wait<LAG>();\n", ""),
    hopper(
        "one arrival too many expected",
        "sm90/gather.cu",
        "ring.init(1 + GROUP);",
        "ring.init(2 + GROUP);",
    ),
    hopper(
        "one arrival too few expected",
        "sm90/gather.cu",
        "ring.init(1 + GROUP);",
        "ring.init(GROUP);",
    ),
];

/// The cases that can show a fault.
fn cases_of(fault: Option<&Fault>, numbers: Numbers) -> Result<Vec<Case>> {
    Ok(match fault.map(|f| f.file) {
        Some("stem.cuh" | "stem.cu") => stems::stems(numbers, 0.0),
        Some("stem_pair.cu") => stems::pairs(numbers, 0.0),
        _ => cases::all(numbers)?,
    })
}

/// Whether an op may run a kernel of a file; true where any may.
fn concerns(file: &str, op: &Op) -> bool {
    match file {
        "attention.cuh" | "attention.cu" | "attention_online.cu" => {
            matches!(op, Op::Attention { .. })
        }
        "token_norm.cu" => matches!(op, Op::LayerNorm { .. } | Op::RmsNorm { .. }),
        "preact.cu" => matches!(op, Op::PreactConv1x1 { .. }),
        "transposed.cu" => matches!(op, Op::ConvTranspose2x2 { .. }),
        "bag_reduce.cu" => matches!(op, Op::BagReduce { .. }),
        "upsample.cu" => matches!(op, Op::Upsample { .. }),
        "tokens.cu" => matches!(op, Op::Embed { .. } | Op::TokenMean { .. } | Op::Softmax),
        _ => true,
    }
}

/// Set for the processes that run with a fault: its index, or `none`.
const CHOSEN: &str = "HISTOKERN_PLANTED_FAULT";

/// Whether this process runs kernels with a fault in them.
pub fn is_planted() -> bool {
    std::env::var_os(CHOSEN).is_some()
}

fn on_the_stand_in() -> Option<CudaBackend> {
    let found = backend()?;
    let stand_in = found.name().contains("interpreter");
    if !stand_in {
        eprintln!("only on the stand-in driver, skipped: {}", found.name());
    }
    stand_in.then_some(found)
}

/// The op cases, alone and inside a network; the first disagreement or fault ends it.
fn first_finding(
    on: &dyn Backend,
    fault: Option<&Fault>,
    applies: impl Fn(&Case) -> bool,
) -> Result<Option<String>> {
    if fault.is_some_and(|f| f.file == "recolour.cu") {
        return tiles::recoloured_otherwise(on);
    }
    for numbers in [Numbers::Integer, Numbers::General] {
        for case in cases_of(fault, numbers)?.iter().filter(|c| applies(c)) {
            for case in
                [stored(case), Case { graph: case.graph.clone(), name: case.name.clone(), ..*case }]
            {
                if let Some(found) = disagreement(on, &case, numbers)? {
                    return Ok(Some(format!("{}: {found}", case.name)));
                }
            }
        }
    }
    Ok(None)
}

/// Runs with the chosen fault and fails when it is found. Started by the test below.
#[test]
#[ignore = "run by planted_faults_are_found"]
fn with_a_planted_fault() {
    let Ok(chosen) = std::env::var(CHOSEN) else { return };
    let fault = chosen.parse::<usize>().ok().map(|i| &FAULTS[i]);
    let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("faults");
    let mut compiler = Compiler::with_cache(Some(cache));
    if let Some(Fault { file, right, wrong, .. }) = fault {
        let text = SOURCES.iter().find(|(name, _)| name == file).unwrap().1;
        compiler = compiler.with_source(file, text.replacen(right, wrong, 1)).unwrap();
    }
    let on = CudaBackend::with_compiler(0, compiler).unwrap();
    let warpgroups = fault.is_some_and(|f| f.warpgroups);
    let on = match fault.filter(|f| f.warpgroups) {
        Some(fault) => on.with_warpgroups().unwrap().with_cluster(fault.cluster).unwrap(),
        None => on,
    };
    let whole = KERNELS.iter().filter(|k| k.warpgroups).filter_map(|k| k.tile).find(|t| t.n > 128);
    let on = match whole.filter(|_| fault.is_some_and(|f| f.one_team)) {
        Some(tile) => on.with_tile(tile),
        None => on,
    };
    let applies = |case: &Case| {
        let product = case.graph.flops_per_row() > 0 && case.rows_are_independent();
        let runs = |f: &Fault| case.graph.steps.iter().any(|s| concerns(f.file, &s.op));
        (!warpgroups || product) && fault.is_none_or(runs)
    };
    match first_finding(&on, fault, applies) {
        Ok(None) => {}
        Ok(Some(found)) => panic!("FOUND {found}"),
        Err(error) => panic!("FOUND {error}"),
    }
}

/// What a process with the fault saw.
struct Finding {
    /// The checks of the stand-in driver, the numbers, or nothing.
    by: &'static str,
    how: String,
}

/// Runs a process with the fault; `None` when it saw nothing wrong.
fn found(fault: &str, capability: &str) -> Option<Finding> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "faults::with_a_planted_fault", "--ignored", "--nocapture"])
        .env(CHOSEN, fault)
        .env("GPU_SIM_CC", capability)
        .output()
        .unwrap();
    if output.status.success() {
        return None;
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = |mark: &str| text.lines().find_map(|l| Some(l.split_once(mark)?.1.trim()));
    let (by, how) = match (line("gpu-sim:"), line("FOUND ")) {
        (Some(report), _) => ("checks", without_place(report)),
        (None, Some(numbers)) => ("numbers", short(numbers)),
        (None, None) => panic!("fault {fault}: died without a finding\n{text}"),
    };
    let how: String = how.chars().take(MAX_HOW).collect();
    Some(Finding { by, how })
}

/// `kernel conv2d, block (0, 0, 0), .., PTX line 1025 (source file 3 line 152): race` without all
/// but the kernel.
fn without_place(report: &str) -> String {
    let kernel = report.split_once("kernel ").and_then(|(_, rest)| rest.split(',').next());
    let what = report.split_once("PTX line ").and_then(|(_, rest)| Some(rest.split_once(": ")?.1));
    match (kernel, what) {
        (Some(kernel), Some(what)) => format!("{kernel}: {what}"),
        _ => report.to_string(),
    }
}

/// Characters of a finding in the table.
const MAX_HOW: usize = 90;

#[test]
fn planted_faults_are_found() {
    if on_the_stand_in().is_none() {
        return;
    }
    for fault in FAULTS {
        let text = SOURCES.iter().find(|(name, _)| *name == fault.file).unwrap().1;
        assert!(text.contains(fault.right), "{}: not in {}", fault.name, fault.file);
    }
    if let Some(Finding { how, .. }) = found("none", "8.0") {
        panic!("the kernels as they are: {how}");
    }
    let mut table = Table::new(&["planted fault", "file", "found by", "", "how"]);
    let mut passed = Vec::new();
    for (i, fault) in FAULTS.iter().enumerate() {
        let found = found(&i.to_string(), if fault.warpgroups { "9.0" } else { "8.0" });
        let ok = verdict(found.is_some());
        if found.is_none() {
            passed.push(fault.name);
        }
        let Finding { by, how } = found.unwrap_or(Finding { by: "-", how: String::new() });
        table.row(vec![fault.name.into(), fault.file.into(), by.into(), ok, how]);
        table.save("faults.txt");
    }
    assert!(passed.is_empty(), "not found: {}", passed.join(", "));
}
