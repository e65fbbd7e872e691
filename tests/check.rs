//! The verbs that judge a machine: `check`, what it computes, and `bench`, how fast.

use histokern::Result;
use histokern::backend::suite::{self, Finding};
use histokern::backend::{Backend, Input, Oracle, Session, measure};
use histokern::cpu::CpuBackend;
use histokern::graph::Graph;
use histokern::graph::reference::Rounding;
use histokern::models::{family, random};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

fn program(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_histokern")).args(args).output().unwrap()
}

fn json(args: &[&str]) -> Value {
    let output = program(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn demo() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo").display().to_string()
}

/// The stand-in driver, or none.
fn stand_in() -> bool {
    let driver = histokern::cuda::driver();
    let found = driver.is_ok_and(|d| d.devices.iter().any(|d| d.name.contains("interpreter")));
    if !found {
        eprintln!("not on the stand-in driver, skipped");
    }
    found
}

// ---- check ------------------------------------------------------------------------------------

fn assert_all_passed(report: &Value, sections: &[&str]) {
    let findings = report["findings"].as_array().unwrap();
    for section in sections {
        let of_section: Vec<_> = findings.iter().filter(|f| f["section"] == *section).collect();
        assert!(!of_section.is_empty(), "nothing in {section}");
        for finding in of_section {
            assert_eq!(finding["passed"], true, "{finding:#}");
            assert!(finding["deviation"]["count"].as_u64().unwrap() > 0, "{finding:#}");
        }
    }
    assert_eq!(report["passed"], true);
}

#[test]
fn the_cpu_passes() {
    let sections = ["ops", "families", "package", "slide"];
    let report = json(&["check", "--device", "cpu", "--json", "--package", &demo()]);
    assert_all_passed(&report, &sections);
    let count = |section: &str| {
        report["findings"].as_array().unwrap().iter().filter(|f| f["section"] == section).count()
    };
    assert!(count("ops") >= suite::op_count().unwrap());
    assert_eq!(count("families"), random::names().count());
}

#[test]
fn the_stand_in_passes() {
    if stand_in() {
        let report = json(&["check", "--device", "cuda", "--against", "cpu", "--json"]);
        assert_all_passed(&report, &["ops", "families", "slide"]);
        assert!(report["device"].as_str().unwrap().starts_with("cuda"));
    }
}

/// A CPU that is off by a thousandth in the first number of every output.
struct Wrong(CpuBackend);

struct WrongSession(Box<dyn Session>);

impl Backend for Wrong {
    fn name(&self) -> String {
        "wrong".into()
    }

    fn prepare(&self, graph: Arc<Graph>, max_rows: usize) -> Result<Box<dyn Session>> {
        Ok(Box::new(WrongSession(self.0.prepare(graph, max_rows)?)))
    }
}

impl Session for WrongSession {
    fn max_rows(&self) -> usize {
        self.0.max_rows()
    }

    fn reserve(&mut self, rows: usize) -> Result<()> {
        self.0.reserve(rows)
    }

    fn run(&mut self, rows: usize, inputs: &[Input<'_>], outputs: &mut [&mut [f32]]) -> Result<()> {
        self.0.run(rows, inputs, outputs)?;
        let scale = |out: &mut &mut [f32]| {
            let norm = out.iter().map(|x| x * x).sum::<f32>().sqrt();
            out[0] += 1e-2 * norm.max(1e-3);
        };
        outputs.iter_mut().for_each(scale);
        Ok(())
    }
}

#[test]
fn a_wrong_backend_fails_everywhere() {
    let wrong = Wrong(CpuBackend::new(2, None).unwrap());
    let reference = Oracle(Rounding::F16);
    let mut passed = Vec::new();
    let mut each = |finding: Finding| {
        if finding.passed() {
            passed.push(finding.name);
        }
    };
    suite::ops(&wrong, &reference, &mut each).unwrap();
    let small = random::encoder(family("resnet18").unwrap(), 8, 32, 1).unwrap();
    suite::network("families", &wrong, &reference, &small.graph, 2, &mut each).unwrap();
    assert!(passed.is_empty(), "{passed:?}");
    // And no layer of its would be timed.
    let layers = measure::layers(&small.graph);
    let deviations = measure::verify(&wrong, &small.graph, &layers).unwrap();
    assert!(deviations.iter().all(|d| !d.within(5e-4)), "{deviations:?}");
}

#[test]
fn what_cannot_be_checked_is_said() {
    let output = program(&["check", "--device", "cuda:all:1"]);
    assert_eq!(output.status.code(), Some(2));
    let output = program(&["check", "--device", "cpu", "--package", "/nowhere"]);
    assert_ne!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere"));
}

// ---- bench ------------------------------------------------------------------------------------

#[test]
fn a_model_is_timed_layer_by_layer() {
    let args = ["bench", "--model", "resnet18", "--side", "64", "--batch", "1,3", "--seconds", "1"];
    let report = json(&[&args[..], &["--device", "cpu", "--threads", "1", "--json"]].concat());
    let peak = report["ceilings"]["flops_per_second"].as_f64().unwrap();
    assert!(peak > 1e8 && report["ceilings"]["bytes_per_second"].as_f64().unwrap() > 1e8);
    let batches = report["batches"].as_array().unwrap();
    assert_eq!(batches.iter().map(|b| b["rows"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3]);
    for batch in batches {
        let ms = batch["ms"]["median"].as_f64().unwrap();
        let rate = batch["images_per_second"].as_f64().unwrap();
        let rows = batch["rows"].as_f64().unwrap();
        assert!((rate - rows / ms * 1e3).abs() < 1e-6 * rate);
        let layers = batch["layers"].as_array().unwrap();
        let steps: u64 = layers.iter().map(|l| l["steps"].as_u64().unwrap()).sum();
        // 20 convolutions, a pool before and an average after, normalised before, flattened after.
        assert_eq!(steps, 24, "{layers:#?}");
        assert!(layers.len() < 24, "equal layers are told together");
        assert!(layers.iter().all(|l| l["matches_reference"] == true));
        let sum: f64 = layers.iter().map(|l| l["ms"]["median"].as_f64().unwrap()).sum();
        assert!(sum > 0.1 * ms && sum < 10.0 * ms, "{sum} of {ms} ms");
        // 3.6 GFLOP at 224 pixels, 64 x 64 / 224 x 224 of that here.
        let flops = batch["tflops"].as_f64().unwrap() * 1e12 * ms * 1e-3 / rows;
        assert!((flops / (3.63e9 * 4096.0 / 50176.0) - 1.0).abs() < 0.05, "{flops:e}");
    }
}

/// One of each kind of network beside the residual ones, as its family is named elsewhere.
#[test]
fn any_network_is_timed() {
    for (name, side) in [("densenet121", "32"), ("vit_s16", "32"), ("nested-unet", "16")] {
        let args = ["bench", "--family", name, "--side", side, "--batch", "1", "--seconds", "1"];
        let report = json(&[&args[..], &["--device", "cpu", "--json"]].concat());
        let layers = report["batches"][0]["layers"].as_array().unwrap();
        assert!(
            layers.len() > 5 && layers.iter().all(|l| l["matches_reference"] == true),
            "{name}"
        );
    }
}

#[test]
fn csv_has_a_row_for_every_batch_and_layer() {
    let args = ["bench", "--package", &demo(), "--batch", "2", "--seconds", "1", "--csv"];
    let output = program(&[&args[..], &["--device", "cpu"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut reader = csv::Reader::from_reader(&output.stdout[..]);
    let head = reader.headers().unwrap().clone();
    let column = |name: &str| head.iter().position(|h| h == name).unwrap();
    let rows: Vec<csv::StringRecord> = reader.records().map(|r| r.unwrap()).collect();
    assert_eq!(rows.iter().filter(|r| r[column("layer")].is_empty()).count(), 1);
    assert!(rows.len() > 5);
    for row in &rows {
        assert!(row[column("ms_median")].parse::<f64>().unwrap() > 0.0, "{row:?}");
        assert_eq!(&row[column("batch")], "2");
    }
}

#[test]
fn the_stages_of_a_slide_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let slide = folder.path().join("a.svs").display().to_string();
    let size = ["--width", "1024", "--height", "1024"];
    assert!(program(&[&["synth", "-o", &slide, "--quiet"], &size[..]].concat()).status.success());
    let args = ["bench", "--package", &demo(), "--slide", &slide, "--batch", "4", "--seconds", "1"];
    let report = json(&[&args[..], &["--device", "cpu", "--json"]].concat());
    let slide = &report["slide"];
    assert!(slide["tiles"].as_u64().unwrap() > 0, "{slide:#}");
    for stage in ["decode", "inference", "total", "prepare"] {
        assert!(slide[stage].as_f64().unwrap() > 0.0, "{stage}: {slide:#}");
    }
    assert!(slide["resample"].as_f64().unwrap() >= 0.0);
}

#[test]
fn the_stand_in_is_measured_too() {
    if !stand_in() {
        return;
    }
    let args = ["bench", "--package", &demo(), "--batch", "1", "--seconds", "1", "--json"];
    let report = json(&[&args[..], &["--device", "cuda"]].concat());
    assert!(report["ceilings"]["flops_by"].as_str().unwrap().contains("GEMM"));
    let batch = &report["batches"][0];
    assert!(batch["overlapped_images_per_second"].as_f64().unwrap() > 0.0);
    assert!(batch["layers"].as_array().unwrap().iter().all(|l| l["ms"]["median"].is_number()));
}

#[test]
fn wrong_questions_are_usage_errors() {
    for args in [
        &["bench"][..],
        &["bench", "--model", "resnet50", "--package", "x"],
        &["bench", "--model", "resnet51"],
        &["bench", "--model", "resnet18", "--batch", "0"],
        &["bench", "--model", "resnet18", "--slide", "a.svs"],
        &["bench", "--model", "resnet18", "--json", "--csv"],
    ] {
        let output = program(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    let output = program(&["bench", "--model", "resnet51"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("densenet121, ") && said.contains("vit_b16, "), "{said}");
}
