//! The rules of `ARCHITECTURE.md` that a machine can check: which module may use which, where
//! `unsafe` may stand, that every file says what it is for, and that links resolve.

use std::fs;
use std::path::{Path, PathBuf};

/// `(module, modules of ours it may use)`. `error` is below all and always allowed.
const MAY_USE: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("image", &["recipe"]),
    ("recipe", &[]),
    ("slide", &["image"]),
    ("picture", &["slide", "image"]),
    ("tissue", &["slide", "image", "recipe"]),
    ("regions", &["image", "tissue"]),
    ("tiling", &["slide", "image", "tissue", "recipe", "regions"]),
    ("graph", &[]),
    ("weights", &["graph", "recipe"]),
    ("models", &["graph", "weights", "recipe"]),
    ("heads", &["graph", "weights", "recipe"]),
    ("backend", &["graph"]),
    ("cpu", &["backend", "graph", "weights"]),
    ("cuda", &["backend", "graph", "weights"]),
    ("report", &["image", "recipe", "stats"]),
    ("stain", &["recipe"]),
    ("nuclei", &["image", "stain"]),
    ("stats", &[]),
    (
        "pipeline",
        &[
            "slide", "image", "tissue", "tiling", "regions", "graph", "weights", "models", "heads",
            "backend", "recipe", "report", "cpu", "cuda", "stain", "nuclei", "picture",
        ],
    ),
    (
        "cli",
        &[
            "slide", "image", "tissue", "tiling", "regions", "graph", "weights", "models", "heads",
            "backend", "recipe", "report", "cpu", "cuda", "pipeline", "stats", "stain", "nuclei",
            "picture",
        ],
    ),
];

/// Where `unsafe` may stand.
const UNSAFE: &[&str] = &[
    "src/cpu/",
    "src/cuda/",
    "src/weights/",
    "src/image/resample/simd.rs",
    "src/slide/source.rs",
    "src/slide/codec/jpeg/simd.rs",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, extension: &str, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            let name = entry.file_name().unwrap().to_string_lossy().into_owned();
            if entry.is_dir() && name != "target" && !name.starts_with('.') {
                walk(&entry, extension, out);
            } else if entry.extension().is_some_and(|e| e == extension) {
                out.push(entry);
            }
        }
    }
    let mut out = Vec::new();
    walk(&root().join(folder), extension, &mut out);
    out.sort();
    assert!(!out.is_empty(), "no .{extension} under {folder}");
    out
}

fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

/// The part of a source file before its unit tests.
fn product_code(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod ").next().unwrap()
}

fn module_of(path: &Path) -> String {
    let short = short(path);
    let first = short.strip_prefix("src/").unwrap().split('/').next().unwrap();
    first.trim_end_matches(".rs").to_string()
}

/// Modules named by `crate::name` or in a `use crate::{name, ..}` group.
fn uses(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for line in text.lines().filter(|l| !l.trim_start().starts_with("//")) {
        for part in line.split("crate::").skip(1) {
            let names = part.strip_prefix('{').unwrap_or(part);
            let grouped = part.starts_with('{');
            for name in names.split(',').take(if grouped { usize::MAX } else { 1 }) {
                let name: String =
                    name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if name.starts_with(|c: char| c.is_ascii_lowercase()) {
                    out.push(name);
                }
            }
        }
    }
    out
}

#[test]
fn modules_use_only_what_lies_below_them() {
    let mut wrong = Vec::new();
    for path in files("src", "rs") {
        let module = module_of(&path);
        if module == "lib" || module == "main" {
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(m, _)| *m == module) else {
            wrong.push(format!("{}: module {module} has no row in MAY_USE", short(&path)));
            continue;
        };
        for used in uses(product_code(&fs::read_to_string(&path).unwrap())) {
            let known = MAY_USE.iter().any(|(m, _)| *m == used);
            if known && used != module && used != "error" && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{} uses crate::{used}", short(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_only_where_allowed() {
    for path in files("src", "rs") {
        let name = short(&path);
        if UNSAFE.iter().any(|ok| name.starts_with(ok)) {
            continue;
        }
        for (n, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let code = line.split("//").next().unwrap();
            let word =
                code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe");
            assert!(!word, "{name}:{}: unsafe outside {UNSAFE:?}", n + 1);
        }
    }
}

#[test]
fn every_source_file_says_what_it_is_for() {
    for folder in ["src", "tests", "benches"] {
        for path in files(folder, "rs") {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//! "), "{}: no //! paragraph", short(&path));
        }
    }
}

#[test]
fn nothing_is_left_undone() {
    let marks = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("FIX", "ME")];
    for path in files("src", "rs") {
        let text = fs::read_to_string(&path).unwrap();
        for mark in marks {
            assert!(!text.contains(mark), "{} contains {mark}", short(&path));
        }
    }
}

#[test]
fn links_in_markdown_resolve() {
    for path in files(".", "md") {
        let text = fs::read_to_string(&path).unwrap();
        for part in text.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let there = path.parent().unwrap().join(target).exists();
            assert!(there, "{}: link to {target}", short(&path));
        }
    }
}
