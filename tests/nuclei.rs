//! Nuclei: shape features against scikit-image, filters against scipy
//! (`tests/golden/nuclei/make.py`), detection against the nuclei planted in synthetic slides, and
//! the verb as a user runs it.

use histokern::image::RgbImage;
use histokern::nuclei::basins::basins;
use histokern::nuclei::outline::outline;
use histokern::nuclei::shape::measure;
use histokern::nuclei::{Labels, Mask, Parameters, Plane, filter};
use histokern::pipeline::nuclei::{Nucleus, NucleusReader, strength};
use histokern::pipeline::{Job, Prepared, stain};
use histokern::recipe::{ClamTissue, MacenkoStain, Tiles, Tissue};
use histokern::report::csv::{Attention, write_attention};
use histokern::slide::synthetic::layout::{self, Pyramid};
use histokern::slide::synthetic::{Compression, Endian, Samples, Specimen, SpecimenSpec};
use histokern::slide::{OpenOptions, Region, Scratch};
use histokern::stain::{Deconvolution, macenko};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/nuclei").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

/// A 16-bit grey PNG.
fn numbers_of(name: &str) -> (usize, usize, Vec<u32>) {
    let file = std::io::BufReader::new(std::fs::File::open(golden(name)).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    assert_eq!(info.bit_depth, png::BitDepth::Sixteen);
    let data = bytes.chunks(2).map(|b| u32::from(u16::from_be_bytes([b[0], b[1]]))).collect();
    (info.width as usize, info.height as usize, data)
}

fn labels() -> Labels {
    let (width, height, data) = numbers_of("labels.png");
    Labels { width, height, data }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn rows(value: &Value) -> (usize, usize, Vec<f64>) {
    let rows: Vec<Vec<f64>> = value.as_array().unwrap().iter().map(numbers).collect();
    (rows[0].len(), rows.len(), rows.concat())
}

fn close(got: f64, want: f64, what: &str) {
    assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "{what}: {got}, want {want}");
}

#[test]
fn shapes_equal_regionprops() {
    let labels = labels();
    let intensity: Vec<f32> = (0..labels.data.len())
        .map(|i| (i % labels.width, i / labels.width))
        .map(|(x, y)| ((7 * x + 13 * y + x * y) % 101) as f32 / 10.0)
        .collect();
    let got = measure(&labels, &intensity);
    let want = json("shapes.json");
    let want = want.as_array().unwrap();
    assert_eq!(got.len(), want.len());
    assert!(want.len() > 60);
    for (got, want) in got.iter().zip(want) {
        let what = |name: &str| format!("label {} {name}", got.label);
        let number = |name: &str| want[name].as_f64().unwrap();
        assert_eq!(u64::from(got.label), want["label"].as_u64().unwrap());
        assert_eq!(got.area as u64, want["area"].as_u64().unwrap());
        assert_eq!(got.convex_area as u64, want["convex_area"].as_u64().unwrap(), "{}", got.label);
        for (k, axis) in numbers(&want["axes"]).into_iter().enumerate() {
            close(got.axes[k], axis, &what("axis"));
        }
        for (k, c) in numbers(&want["centroid"]).into_iter().enumerate() {
            close(got.centroid[k], c, &what("centroid"));
        }
        close(got.perimeter, number("perimeter"), &what("perimeter"));
        close(got.eccentricity, number("eccentricity"), &what("eccentricity"));
        close(got.solidity(), number("solidity"), &what("solidity"));
        close(got.intensity, number("intensity"), &what("intensity"));
        if let Some(angle) = want["orientation"].as_f64() {
            // The two ends of the range are one direction.
            let apart = (got.orientation - angle).abs();
            let apart = apart.min((std::f64::consts::PI - apart).abs());
            assert!(apart < 1e-6, "{}: {}, want {angle}", what("orientation"), got.orientation);
        }
        match got.circularity() {
            Some(c) => close(
                c,
                4.0 * std::f64::consts::PI * number("area") / number("perimeter").powi(2),
                &what("circularity"),
            ),
            None => assert_eq!(number("perimeter"), 0.0),
        }
    }
}

/// The outline holds exactly the pixels of its region's first 4-connected piece and its holes.
#[test]
fn outlines_follow_pixel_edges() {
    let labels = labels();
    let shapes = measure(&labels, &vec![0.0; labels.data.len()]);
    for shape in &shapes {
        let ring = outline(&labels, shape);
        let within = |x: f64, y: f64| {
            let edges = ring.iter().zip(ring.iter().cycle().skip(1));
            let crossed = edges.filter(|(a, b)| {
                let (low, high) = (a[1].min(b[1]), a[1].max(b[1]));
                f64::from(low) <= y && y < f64::from(high) && f64::from(a[0]) > x
            });
            crossed.count() % 2 == 1
        };
        // Flood from the first pixel.
        let [left, top, right, bottom] = shape.bounds;
        let first =
            (left..right).find(|&x| labels.at(x as i64, top as i64) == shape.label).unwrap();
        let mut piece = HashSet::from([[first as i64, top as i64]]);
        let mut open = vec![[first as i64, top as i64]];
        while let Some([x, y]) = open.pop() {
            for next in [[x - 1, y], [x + 1, y], [x, y - 1], [x, y + 1]] {
                if labels.at(next[0], next[1]) == shape.label && piece.insert(next) {
                    open.push(next);
                }
            }
        }
        for &[x, y] in &piece {
            assert!(within(x as f64 + 0.5, y as f64 + 0.5), "label {} at {x}, {y}", shape.label);
        }
        for y in top..bottom {
            for x in left..right {
                let at = [x as i64, y as i64];
                let enclosed = within(x as f64 + 0.5, y as f64 + 0.5) && !piece.contains(&at);
                // What is inside without belonging lies in a hole: no way out along it.
                assert!(!enclosed || in_hole(at, &piece, shape.bounds), "label {}", shape.label);
            }
        }
    }
}

fn in_hole(at: [i64; 2], piece: &HashSet<[i64; 2]>, bounds: [usize; 4]) -> bool {
    let [left, top, right, bottom] = bounds.map(|v| v as i64);
    let (mut seen, mut open) = (HashSet::from([at]), vec![at]);
    while let Some([x, y]) = open.pop() {
        if x < left || y < top || x >= right || y >= bottom {
            return false;
        }
        // Corners too: a piece is 4-connected, so its outside is 8-connected.
        for next in (-1..=1).flat_map(|dy| (-1..=1).map(move |dx| [x + dx, y + dy])) {
            if !piece.contains(&next) && seen.insert(next) {
                open.push(next);
            }
        }
    }
    true
}

#[test]
fn filters_equal_scipy() {
    let golden = json("filters.json");
    let (width, height, values) = rows(&golden["plane"]);
    let plane = Plane { width, height, data: values.iter().map(|&v| v as f32).collect() };
    for (got, key) in [
        (filter::gaussian(&plane, 1.3), "gaussian"),
        (filter::mean(&plane, 3), "mean"),
        (filter::open(&plane, 3), "open"),
    ] {
        for (got, want) in got.data.iter().zip(rows(&golden[key]).2) {
            assert!((f64::from(*got) - want).abs() < 2e-4, "{key}: {got}, want {want}");
        }
    }
    let bits = |key: &str| -> Mask {
        let rows: Vec<&str> =
            golden[key].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
        let data = rows.iter().flat_map(|r| r.bytes().map(|b| b - b'0')).collect();
        Mask { width: rows[0].len(), height: rows.len(), data }
    };
    let mask = bits("mask");
    assert_eq!(filter::open_mask(&mask, 2.3), bits("opened"));
    let (_, _, squared) = rows(&golden["distance_squared"]);
    for (got, want) in filter::distance(&mask).data.iter().zip(squared) {
        assert!((f64::from(*got) - want.sqrt()).abs() < 1e-5, "{got}, want root of {want}");
    }
}

#[test]
fn small_holes_are_filled_and_large_ones_stay() {
    let mut mask = Mask { width: 12, height: 9, data: vec![1; 108] };
    for (x, y) in [(2, 2), (3, 2), (7, 3), (8, 3), (7, 4), (8, 4)] {
        mask.data[y * 12 + x] = 0;
    }
    filter::fill_holes(&mut mask, 3.0);
    assert_eq!(mask.data.iter().filter(|&&v| v == 0).count(), 4);
    filter::fill_holes(&mut mask, 5.0);
    assert!(mask.data.iter().all(|&v| v == 1));
}

/// The basins of peaks that stand out are those of a watershed from scikit-image's h-maxima.
#[test]
fn basins_equal_a_watershed_from_h_maxima() {
    let (width, twice, data) = numbers_of("land.png");
    let height = twice / 2;
    let (land, want) = data.split_at(width * height);
    let land: Vec<f32> = land.iter().map(|&v| (v as f32 - 32768.0) / 32767.0).collect();
    let mask = land.iter().map(|&v| u8::from(v > -0.25)).collect();
    let golden = json("filters.json");
    let depth = golden["depth"].as_f64().unwrap() as f32;
    let plane = Plane { width, height, data: land };
    let got = basins(&plane, &Mask { width, height, data: mask }, depth);
    // Pieces of the mask that hold no such peak have no basin there.
    let mut shared: BTreeMap<u32, BTreeMap<u32, usize>> = BTreeMap::new();
    let pairs = want.iter().zip(&got.data).filter(|(w, _)| **w != 0);
    let total = pairs.clone().count();
    for (&want, &got) in pairs {
        assert_ne!(got, 0);
        *shared.entry(want).or_default().entry(got).or_default() += 1;
    }
    assert_eq!(shared.len() as u64, golden["seeds"].as_u64().unwrap());
    let best: Vec<(u32, usize)> = shared
        .values()
        .map(|counts| counts.iter().map(|(&g, &n)| (g, n)).max_by_key(|&(_, n)| n).unwrap())
        .collect();
    let distinct: HashSet<u32> = best.iter().map(|b| b.0).collect();
    assert_eq!(distinct.len(), shared.len(), "two basins became one");
    let all: HashSet<u32> = shared.values().flat_map(|c| c.keys().copied()).collect();
    assert_eq!(all.len(), shared.len(), "one basin became two");
    let agreed: usize = best.iter().map(|b| b.1).sum();
    assert!(agreed * 100 >= total * 98, "{agreed} of {total} pixels");
}

/// A synthetic slide in a file, and what was planted.
fn synthetic(folder: &Path, seed: u64, side: u32, mpp: f64, stated: bool) -> (PathBuf, Specimen) {
    let spec = SpecimenSpec { seed, fraction: None, width: side, height: side, mpp };
    let specimen = Specimen::new(&spec);
    let pyramid = Pyramid {
        picture: &specimen,
        steps: vec![4],
        tile: 256,
        compression: Compression::Deflate { predictor: true },
        samples: Samples::Rgb,
        mpp: stated.then_some(mpp),
        big: false,
        endian: Endian::Little,
    };
    let path = folder.join(format!("s{seed}.tif"));
    layout::generic(&pyramid).write(&mut std::fs::File::create(&path).unwrap()).unwrap();
    (path, specimen)
}

fn prepare(path: &Path) -> Prepared {
    let job = Job { name: "s".into(), path: path.into(), regions: None, mask: None };
    let tissue = Tissue::Clam(ClamTissue { min_area: 0.1, ..ClamTissue::default() });
    Prepared::with_rules(&job, 0, &tissue, &Tiles::of(256), &OpenOptions::default()).unwrap()
}

fn reader(prepared: &Prepared) -> NucleusReader<'_> {
    let pixels = stain::tissue_pixels(prepared).unwrap();
    let found = macenko::stains(&MacenkoStain::default(), &pixels).unwrap();
    let stains = Deconvolution::of_two(found.haematoxylin, found.eosin).unwrap();
    let strong = strength(&stains, &pixels).unwrap();
    NucleusReader::new(&prepared.slide, stains, strong, Parameters::default()).unwrap()
}

/// Nuclei of all squares of a slide.
fn find(prepared: &Prepared, side: u32) -> Vec<Nucleus> {
    let reader = reader(prepared);
    let base = &prepared.slide.levels()[0];
    let steps = |n: u32| (0..n).step_by(side as usize).map(i64::from);
    let origins = steps(base.height).flat_map(|y| steps(base.width).map(move |x| [x, y]));
    let mut scratch = Scratch::default();
    origins
        .flat_map(|origin| reader.tile(origin, side.into(), &mut scratch).unwrap().nuclei)
        .collect()
}

/// Whether a place is within 24 px of marker ink, under which nothing can be told.
fn near_ink(prepared: &Prepared) -> impl Fn([f64; 2]) -> bool {
    let base = &prepared.slide.levels()[0];
    let region = Region { x: 0, y: 0, level: 0, width: base.width, height: base.height };
    let image: RgbImage = prepared.slide.read_region(&region).unwrap().image;
    let (columns, rows) = (image.width / 8, image.height / 8);
    let mut blocks = vec![0; columns * rows];
    for (i, &rgb) in image.data.as_chunks::<3>().0.iter().enumerate() {
        let (x, y) = (i % image.width / 8, i / image.width / 8);
        if x < columns && y < rows {
            blocks[y * columns + x] += usize::from(stain::is_ink(rgb));
        }
    }
    move |[x, y]| {
        let near = |v: f64, n: usize| {
            let k = (v / 8.0).max(0.0) as usize;
            k.saturating_sub(3)..(k + 4).min(n)
        };
        near(y, rows).any(|j| near(x, columns).any(|i| blocks[j * columns + i] > 38))
    }
}

/// True positives of one-to-one pairs no farther apart than `tolerance`, nearest first.
fn matches(found: &[[f64; 2]], truth: &[[f64; 2]], tolerance: f64) -> usize {
    let mut pairs = Vec::new();
    for (i, f) in found.iter().enumerate() {
        for (j, t) in truth.iter().enumerate() {
            let apart = (f[0] - t[0]).hypot(f[1] - t[1]);
            if apart <= tolerance {
                pairs.push((apart, i, j));
            }
        }
    }
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut used, mut met) = (HashSet::new(), HashSet::new());
    pairs
        .iter()
        .filter(|&&(_, i, j)| {
            let free = !used.contains(&i) && !met.contains(&j);
            free && used.insert(i) && met.insert(j)
        })
        .count()
}

/// Slides of different stain strength and nuclear size; what lies under the pen strokes does not
/// count. A nucleus is found when the centre of one region lies within 3 um of its own.
#[test]
fn planted_nuclei_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let (mut hits, mut found_all, mut truth_all) = (0, 0, 0);
    for seed in 11..=14 {
        let (path, specimen) = synthetic(folder.path(), seed, 1024, 0.5, true);
        let prepared = prepare(&path);
        let inked = near_ink(&prepared);
        let clear = |c: &[f64; 2]| !inked(*c);
        let found: Vec<[f64; 2]> =
            find(&prepared, 256).iter().map(|n| n.center).filter(clear).collect();
        let truth: Vec<[f64; 2]> =
            specimen.nuclei().iter().map(|n| n.center.map(f64::from)).filter(clear).collect();
        let hit = matches(&found, &truth, 6.0);
        let f1 = 2.0 * hit as f64 / (found.len() + truth.len()) as f64;
        eprintln!(
            "seed {seed}: {hit} of {} planted, {} found, F1 {f1:.3}",
            truth.len(),
            found.len()
        );
        assert!(f1 >= 0.85, "seed {seed}: F1 {f1}");
        hits += hit;
        found_all += found.len();
        truth_all += truth.len();
    }
    let f1 = 2.0 * f64::from(hits as u32) / f64::from((found_all + truth_all) as u32);
    eprintln!("all: F1 {f1:.4}");
    assert!(truth_all > 1000 && f1 >= 0.9, "F1 {f1} over {truth_all}");
}

/// Tiles side by side see each nucleus once and whole: small ones and large ones agree.
#[test]
fn no_nucleus_is_counted_twice_or_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = synthetic(folder.path(), 18, 1024, 0.5, true);
    let prepared = prepare(&path);
    let sorted = |side| {
        let mut nuclei = find(&prepared, side);
        nuclei.sort_by(|a, b| {
            a.center[1].total_cmp(&b.center[1]).then(a.center[0].total_cmp(&b.center[0]))
        });
        nuclei
    };
    let (small, large) = (sorted(128), sorted(1024));
    assert!(large.len() > 300);
    // Centres are equal but for the rounding of sums over other corners.
    let key =
        |n: &Nucleus| (n.center.map(|v| (v * 1e4).round() as i64), n.shape.area, n.outline.len());
    let (a, b): (HashSet<_>, HashSet<_>) =
        (small.iter().map(key).collect(), large.iter().map(key).collect());
    assert_eq!(a.len(), small.len(), "a nucleus was counted twice");
    // A clump that reaches beyond the margin of a small tile may be divided otherwise there.
    let same = a.intersection(&b).count();
    assert!(same * 1000 >= large.len() * 995, "{same} of {} and {}", small.len(), large.len());
}

fn histokern(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_histokern")).args(args).output().unwrap()
}

fn ok(args: &[&str]) -> String {
    let output = histokern(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(args: &[&str], words: &str) {
    let output = histokern(args);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains(words), "{message}");
}

/// A table as `predict` writes it, over the grid of a slide.
fn attention(path: &Path, prepared: &Prepared) {
    let coords = &prepared.grid.origins;
    let raw: Vec<f32> = (0..coords.len()).map(|i| (i * 7 % 31) as f32 / 31.0).collect();
    write_attention(path, coords, &[Attention { class: "", raw: &raw, softmax: &raw }]).unwrap();
}

#[test]
fn the_verb_compares_top_tiles_with_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = synthetic(folder.path(), 18, 1024, 0.5, true);
    let list = folder.path().join("attention.csv");
    attention(&list, &prepare(&path));
    let [slide, list] = [&path, &list].map(|p| p.display().to_string());
    let out = |name: &str| folder.path().join(name);
    let run = |name: &str, threads: &str| {
        let dir = out(name).display().to_string();
        let args = ["nuclei", &slide, "--tiles", &list, "--top", "4", "--rest", "3", "--tile-px"];
        ok(&[&args[..], &["256", "--out", &dir, "--json", "--threads", threads, "-q"]].concat())
    };
    let summary: Value = serde_json::from_str(&run("a", "1")).unwrap();
    run("b", "2");
    for file in ["nuclei.csv", "tiles.csv", "nuclei.geojson", "comparison.json", "overlay.png"] {
        let [a, b] = ["a", "b"].map(|d| std::fs::read(out(d).join(file)).unwrap());
        assert!(a == b, "{file} depends on the number of threads");
    }
    let table = |file: &str| -> Vec<BTreeMap<String, String>> {
        csv::Reader::from_path(out("a").join(file))
            .unwrap()
            .deserialize()
            .map(Result::unwrap)
            .collect()
    };
    let (tiles, nuclei) = (table("tiles.csv"), table("nuclei.csv"));
    assert_eq!(tiles.iter().filter(|t| t["group"] == "top").count(), 4);
    assert_eq!(tiles.len(), 7);
    let least_top = tiles[..4].iter().map(|t| t["score"].parse::<f64>().unwrap());
    let most_rest = tiles[4..].iter().map(|t| t["score"].parse::<f64>().unwrap());
    assert!(least_top.fold(f64::MAX, f64::min) >= most_rest.fold(f64::MIN, f64::max));
    let number = |row: &BTreeMap<String, String>, name: &str| row[name].parse::<f64>().unwrap();
    let counted: f64 = tiles.iter().map(|t| number(t, "nuclei")).sum();
    assert_eq!(counted as usize, nuclei.len());
    assert!(nuclei.len() > 50);
    // Each nucleus lies in its tile; density and means follow from the rows.
    for (i, tile) in tiles.iter().enumerate() {
        let own: Vec<_> = nuclei.iter().filter(|n| number(n, "tile") == i as f64).collect();
        for nucleus in &own {
            for axis in ["x", "y"] {
                let inside = number(nucleus, axis) - number(tile, axis);
                assert!((0.0..256.0).contains(&inside));
            }
            assert!((8.0..=400.0).contains(&number(nucleus, "area_um2")));
        }
        if !own.is_empty() {
            let mean = own.iter().map(|n| number(n, "area_um2")).sum::<f64>() / own.len() as f64;
            close(number(tile, "mean_area_um2"), mean, "mean area");
        }
    }
    let full = |t: &&BTreeMap<String, String>| {
        ["x", "y"].iter().all(|a| (0.0..=768.0).contains(&number(t, a)))
    };
    for tile in tiles.iter().filter(full) {
        close(number(tile, "nuclei_per_mm2"), number(tile, "nuclei") / 0.128f64.powi(2), "density");
    }
    let density = &summary["features"]["nuclei_per_mm2"];
    assert_eq!(density["top"]["tiles"], 4);
    assert!(density["mann_whitney"]["p"].as_f64().is_some_and(|p| (0.0..=1.0).contains(&p)));
    assert!(density["welch"]["t"].is_number() && density["hedges_g"].is_number());
    let cells: Value =
        serde_json::from_slice(&std::fs::read(out("a").join("nuclei.geojson")).unwrap()).unwrap();
    let cells = cells["features"].as_array().unwrap();
    assert_eq!(cells.len(), nuclei.len());
    for (cell, row) in cells.iter().zip(&nuclei) {
        assert_eq!(cell["properties"]["objectType"], "detection");
        let area = cell["properties"]["measurements"]["Nucleus: Area um^2"].as_f64().unwrap();
        close(area, number(row, "area_um2"), "area");
        let ring = cell["geometry"]["coordinates"][0].as_array().unwrap();
        assert_eq!(ring.first(), ring.last());
        let mut twice = 0.0;
        for pair in ring.windows(2) {
            let [a, b] = [numbers(&pair[0]), numbers(&pair[1])];
            twice += a[0] * b[1] - b[0] * a[1];
        }
        // Half a micrometre a pixel; holes lie inside the outline.
        assert!(twice / 2.0 * 0.25 >= area - 1e-6, "{} {area}", twice / 8.0);
    }
}

#[test]
fn bad_lists_and_slides_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = synthetic(folder.path(), 18, 1024, 0.5, true);
    let slide = path.display().to_string();
    let out = folder.path().join("out").display().to_string();
    let list = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let with = |list: &str, more: &[&str], words: &str| {
        refused(&[&["nuclei", &slide, "--tiles", list, "--out", &out][..], more].concat(), words);
    };
    let px = ["--tile-px", "256"];
    with(&list("a.csv", "x,y,raw\n0,0,0.5\n"), &[], "--tile-px");
    with(&list("b.csv", "x,y\n0,0\n"), &px, "name the scores with --column");
    with(&list("c.csv", "x,y,raw_a,raw_b\n0,0,1,2\n"), &px, "raw_a, raw_b");
    with(&list("d.csv", "x,y,raw\n0,0,1\n9000,0,2\n"), &px, "line 3: x: a tile at 9000, 0");
    with(&list("e.csv", "x,y,raw\n0,0,NaN\n"), &px, "line 2: raw");
    with(&list("f.csv", "x,y,raw\n"), &px, "no rows");
    with(
        &list("g.csv", "x,y,raw\n0,0,1\n"),
        &["--tile-px", "256", "--column", "no"],
        "no column no",
    );
    // A result beside the list that is of another slide.
    let other = include_str!("golden/nuclei/other_result.json");
    std::fs::create_dir(folder.path().join("other")).unwrap();
    list("other/result.json", other);
    with(&list("other/attention.csv", "x,y,raw\n0,0,1\n"), &[], "other.svs, which has other bytes");
    let glass = folder.path().join("glass.png");
    histokern::report::png::write_rgb(&glass, &RgbImage::filled(600, 600, [245; 3])).unwrap();
    refused(
        &["nuclei", &glass.display().to_string(), "--out", &out],
        "no tile on 0 tissue contours",
    );
    refused(
        &["nuclei", &slide, "--mpp-override", "2", "--out", &out],
        "pixels of 2.00 micrometres do not show nuclei",
    );
}

#[test]
fn without_a_pixel_size_lengths_are_pixels_and_it_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = synthetic(folder.path(), 18, 1024, 0.5, false);
    let (slide, out) = (path.display().to_string(), folder.path().join("out"));
    let dir = out.display().to_string();
    let args = ["nuclei", &slide, "--sample", "2", "--tile-px", "256", "--out", &dir];
    let shown = ok(&args);
    assert!(shown.contains("does not state its pixel size"), "{shown}");
    let header = std::fs::read_to_string(out.join("nuclei.csv")).unwrap();
    assert!(header.starts_with("tile,x,y,area_px2,perimeter_px,"), "{header:.80}");
    // Whole pixels, and 8 um2 at the assumed size are 32 of them.
    let areas = header.lines().skip(1).map(|row| row.split(',').nth(3).unwrap().parse::<f64>());
    assert!(areas.clone().count() > 10);
    assert!(areas.map(Result::unwrap).all(|area| area.fract() == 0.0 && area >= 32.0));
    let tiles = std::fs::read_to_string(out.join("tiles.csv")).unwrap();
    assert!(tiles.contains("nuclei_per_megapixel") && tiles.lines().count() == 3);
}
