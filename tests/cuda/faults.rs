//! Faults planted in the kernels, one at a time: each must be found by the op cases or by the checks
//! of the stand-in driver. A test that lets one pass would let a real one pass.
//!
//! Only on the stand-in driver: on a GPU some of these hang. Each fault runs in a process of its own,
//! because a device that failed stays failed.

use super::cases::{self, Case, Numbers};
use super::{backend, disagreement, stored};
use histokern::Result;
use histokern::backend::Backend;
use histokern::cuda::CudaBackend;
use histokern::cuda::compile::{Compiler, SOURCES};
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
}

const fn portable(
    name: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
) -> Fault {
    Fault { name, file, right, wrong, warpgroups: false }
}

const fn hopper(
    name: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
) -> Fault {
    Fault { name, file, right, wrong, warpgroups: true }
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
    hopper("stage given back while it is read", "sm90/ring.cuh", "    wgmma_wait<1>();\n", ""),
    hopper("last products not waited for", "sm90/ring.cuh", "  wgmma_wait<0>();\n", ""),
    hopper("wrong parity", "sm90/gemm.cu", "turn.parity ^ 1", "turn.parity"),
    hopper("fewer bytes expected than copied", "sm90/gemm.cu", "W::STAGE);", "W::A_SLICE);"),
    hopper(
        "stage not waited for",
        "sm90/gemm.cu",
        "      mbarrier_wait(ring.empty(turn.stage), turn.parity ^ 1);\n",
        "",
    ),
    hopper("row groups of the descriptor", "dev.cuh", "(1024 >> 4) << 32", "(512 >> 4) << 32"),
    hopper(
        "slices handed over too late",
        "sm90/conv2d.cu",
        "LAG = CFG_STAGES - 2",
        "LAG = CFG_STAGES - 1",
    ),
    hopper("gathered slice not fenced", "sm90/conv2d.cu", "  fence_async_proxy();\n", ""),
    hopper("gathered slice not waited for", "sm90/conv2d.cu", "        copy_wait<LAG>();\n", ""),
    hopper(
        "arrivals miscounted",
        "sm90/conv2d.cu",
        "ring.init(COPIERS + 1);",
        "ring.init(COPIERS + 2);",
    ),
];

/// Set for the processes that run with a fault: its index, or `none`.
const CHOSEN: &str = "HISTOKERN_PLANTED_FAULT";

fn on_the_stand_in() -> Option<CudaBackend> {
    let found = backend()?;
    let stand_in = found.name().contains("interpreter");
    if !stand_in {
        eprintln!("only on the stand-in driver, skipped: {}", found.name());
    }
    stand_in.then_some(found)
}

/// The op cases, alone and inside a network; the first disagreement or fault ends it.
fn first_finding(on: &dyn Backend, applies: impl Fn(&Case) -> bool) -> Result<Option<String>> {
    for numbers in [Numbers::Integer, Numbers::General] {
        for case in cases::all(numbers)?.iter().filter(|c| applies(c)) {
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
    let on = if warpgroups { on.with_warpgroups().unwrap() } else { on };
    let applies = |case: &Case| {
        !warpgroups || (case.graph.flops_per_row() > 0 && case.rows_are_independent())
    };
    match first_finding(&on, applies) {
        Ok(None) => {}
        Ok(Some(found)) => panic!("FOUND {found}"),
        Err(error) => panic!("FOUND {error}"),
    }
}

/// What a process with the fault found, or `None` when it saw nothing wrong.
fn found(fault: &str, capability: &str) -> Option<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "faults::with_a_planted_fault", "--ignored", "--nocapture"])
        .env(CHOSEN, fault)
        .env("GPU_SIM_CC", capability)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|l| l.contains("FOUND")).unwrap_or("died");
    (!output.status.success()).then(|| line.trim().to_string())
}

#[test]
fn planted_faults_are_found() {
    if on_the_stand_in().is_none() {
        return;
    }
    for fault in FAULTS {
        let text = SOURCES.iter().find(|(name, _)| *name == fault.file).unwrap().1;
        assert!(text.contains(fault.right), "{}: not in {}", fault.name, fault.file);
    }
    assert_eq!(found("none", "8.0"), None, "the kernels as they are");
    let mut passed = Vec::new();
    for (i, fault) in FAULTS.iter().enumerate() {
        let found = found(&i.to_string(), if fault.warpgroups { "9.0" } else { "8.0" });
        eprintln!("{:45} {}", fault.name, found.as_deref().unwrap_or("NOT FOUND"));
        if found.is_none() {
            passed.push(fault.name);
        }
    }
    assert!(passed.is_empty(), "not found: {}", passed.join(", "));
}
