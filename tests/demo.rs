//! The demonstration package on slides it never saw: the same answers as PyTorch gives, and as good
//! as its README says.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Slides of `weights/demo/heldout.json` that are made again: enough to rank, few enough to wait for.
const SLIDES: usize = 14;

fn run(args: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_histokern")).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Spearman's rho without ties: 1 - 6 sum d^2 / (n (n^2 - 1)).
fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let rank = |values: &[f64]| -> Vec<f64> {
        values.iter().map(|v| values.iter().filter(|w| *w < v).count() as f64).collect()
    };
    let n = a.len() as f64;
    let d: f64 = rank(a).iter().zip(rank(b)).map(|(x, y)| (x - y).powi(2)).sum();
    1.0 - 6.0 * d / (n * (n * n - 1.0))
}

#[test]
fn held_out_slides_are_predicted_as_by_pytorch() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("weights/demo/heldout.json")).unwrap();
    let heldout: Value = serde_json::from_str(&text).unwrap();
    let rows = &heldout["slides"].as_array().unwrap()[..SLIDES];
    let dir = tempfile::tempdir().unwrap();
    let mut args = vec!["predict".to_string()];
    for row in rows {
        let path = dir.path().join(format!("{}.svs", row["seed"])).display().to_string();
        let seed = row["seed"].to_string();
        let side = ["--width", "3072", "--height", "3072", "--mpp", "0.5"];
        run(&[&["synth", "-o", &path, "--quiet", "--seed", &seed], &side[..]].concat());
        args.push(path);
    }
    let out = dir.path().join("out");
    let package = root.join("weights/demo").display().to_string();
    args.extend(["--package".into(), package, "--out".into(), out.display().to_string()]);
    run(&args.iter().map(String::as_str).collect::<Vec<_>>());

    let (mut planted, mut predicted) = (Vec::new(), Vec::new());
    for row in rows {
        let path = out.join(row["seed"].to_string()).join("result.json");
        let result: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let value = result["predictions"][0]["value"].as_f64().unwrap();
        assert_eq!(result["tiles"]["kept"], row["clam_tiles"], "tiles of seed {}", row["seed"]);
        let reference = row["clam"].as_f64().unwrap();
        assert!(
            (value - reference).abs() < 5e-3,
            "seed {}: {value}, PyTorch {reference}",
            row["seed"]
        );
        planted.push(row["planted"].as_f64().unwrap());
        predicted.push(value);
    }
    let rho = spearman(&planted, &predicted);
    assert!(rho > 0.93, "Spearman {rho} on held-out slides");
    eprintln!("Spearman {rho:.3} on {SLIDES} held-out slides");
}

#[test]
fn the_demo_shows_what_it_promises() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("demo");
    let output = Command::new(env!("CARGO_BIN_EXE_histokern"))
        .args(["demo", "--side", "2048", "--json", "--out", &out.display().to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("synthetic"));
    // The first of both slides says what both take.
    assert_eq!(said.matches("memory: ").count(), 1, "{said}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let slides = summary["slides"].as_array().unwrap();
    let share = |i: usize| slides[i]["predicted_share"].as_f64().unwrap();
    assert!(share(0) + 0.2 < share(1), "{summary:#}");
    for slide in slides {
        assert!(Path::new(slide["heatmap"].as_str().unwrap()).exists());
    }
    // A second demo in the same folder finds its results.
    run(&["demo", "--side", "2048", "--quiet", "--out", &out.display().to_string()]);
    let status = fs::read_to_string(out.join("results/status.csv")).unwrap();
    assert_eq!(status.matches(",skipped,").count(), 2, "{status}");
}

/// What a process said of its memory against what the system counted.
#[cfg(target_os = "linux")]
#[test]
#[allow(clippy::zombie_processes, reason = "waited for by a call that also counts its memory")]
fn a_run_takes_no_more_memory_than_it_said() {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let slide = path("a.svs");
    run(&["synth", "-o", &slide, "--quiet", "--width", "4096", "--height", "4096"]);
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo").display().to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_histokern"))
        .args(["features", &slide, "--package", &package, "--out", &path("out")])
        .args(["--device", "cpu", "--threads", "2"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    // SAFETY: numbers, of which 0 is one.
    let (mut status, mut usage) = (0, unsafe { std::mem::zeroed::<libc::rusage>() });
    // SAFETY: waits for a child of ours that nobody else waits for, and fills what is ours.
    let waited = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    assert_eq!((waited, status), (child.id() as i32, 0), "{said}");
    let peak = usage.ru_maxrss as f64 * 1024.0 / 1e6;
    let most = said.split("memory: up to ").nth(1).and_then(|rest| rest.split(' ').next());
    let most: f64 = most.unwrap().parse().unwrap();
    // Files are written after the last feature.
    eprintln!("{peak:.1} MB, said to be up to {most} MB");
    assert!(peak < 1.2 * most + 4.0 && most < 2.0 * peak, "{peak} MB, said to be up to {most} MB");
}

/// Runs where a driver answers, a GPU's or the stand-in of `scripts/gpu-sim`.
#[test]
fn cuda_predicts_as_the_cpu_does_in_any_batch() {
    match histokern::cuda::driver() {
        Ok(driver) if !driver.devices.is_empty() => {}
        _ => return eprintln!("no CUDA device, skipped"),
    }
    let dir = tempfile::tempdir().unwrap();
    let slide = dir.path().join("a.svs").display().to_string();
    run(&["synth", "-o", &slide, "--quiet", "--seed", "3", "--width", "2048", "--height", "2048"]);
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo").display().to_string();
    let predict = |device: &str, batch: &str| {
        let out = dir.path().join(format!("{device}-{batch}"));
        let args = ["predict", &slide, "--package", &package, "--device", device, "--batch", batch];
        run(&[&args[..], &["--out", &out.display().to_string()]].concat());
        let text = fs::read_to_string(out.join("a/result.json")).unwrap();
        let result: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(result["device"]["kind"], device);
        (
            result["predictions"][0]["value"].as_f64().unwrap(),
            fs::read(out.join("a/attention.csv")).unwrap(),
        )
    };
    let (cpu, cuda) = (predict("cpu", "16"), predict("cuda", "16"));
    assert!((cpu.0 - cuda.0).abs() < 1e-3, "CPU {}, CUDA {}", cpu.0, cuda.0);
    assert!(predict("cuda", "5") == cuda, "CUDA gives other bits in another batch");
}
