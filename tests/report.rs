//! Files for other tools: written here, read back here and, through `tests/oracles/h5.py`, by the
//! Python libraries those tools use.
//!
//! With `HISTOKERN_H5_OUT=<folder>` the first test leaves its files there for the oracle to read;
//! with `HISTOKERN_H5_IN=<folder>` the second reads the files h5py wrote there instead of the few
//! committed in `golden/report/peers`.

use histokern::image::RgbImage;
use histokern::report::csv::{self, Attention};
use histokern::report::features::{FeatureFile, Layout, Unit, read_features};
use histokern::report::geojson::{self, Contour, Measurement, ObjectType, Tiles};
use histokern::report::heatmap::{self, Canvas};
use histokern::report::{colormap, h5, png as picture, pt};
use std::path::{Path, PathBuf};

/// Small integers and halves: exact in f16 too.
fn values(n: usize, d: usize) -> Vec<f32> {
    (0..n * d).map(|i| ((i * 37) % 2048) as f32 * 0.5 - 300.0).collect()
}

fn grid(n: usize, step: i64) -> Vec<[i64; 2]> {
    (0..n as i64).map(|i| [(i % 100) * step, (i / 100) * step + 7]).collect()
}

fn geometry() -> h5::Geometry {
    h5::Geometry {
        tile_px: 256,
        overlap_px: 0,
        tile_level0: 512.0,
        mpp: Some(0.25),
        level0_width: 60_000,
        level0_height: 40_000,
    }
}

struct Case {
    name: &'static str,
    n: usize,
    d: usize,
    geometry: h5::Geometry,
}

/// `big` has several chunks, the last one partly filled.
fn cases() -> Vec<Case> {
    let case = |name, n, d, geometry| Case { name, n, d, geometry };
    let odd = h5::Geometry { tile_level0: 483.018_867_924_528_3, mpp: Some(0.265), ..geometry() };
    let unknown = h5::Geometry { tile_level0: 256.0, mpp: None, ..geometry() };
    vec![
        case("small", 10, 8, geometry()),
        case("empty", 0, 1024, geometry()),
        case("one", 1, 1, geometry()),
        case("big", 9_001, 24, geometry()),
        case("odd_mpp", 5, 3, odd),
        case("no_mpp", 5, 3, unknown),
    ]
}

fn write_all(folder: &Path) {
    for case in cases() {
        let (features, coords) = (values(case.n, case.d), grid(case.n, 512));
        let f = h5::Features {
            slide: case.name,
            encoder: "resnet50",
            recipe_id: "resnet50-layer3@0123abcd",
            features: &features,
            dim: case.d,
            coords: &coords,
            geometry: &case.geometry,
        };
        let path = |layout: &str, extension: &str| {
            let folder = folder.join(layout);
            std::fs::create_dir_all(&folder).unwrap();
            folder.join(format!("{}.{extension}", case.name))
        };
        h5::write_trident(&path("trident", "h5"), &f).unwrap();
        h5::write_clam(&path("clam", "h5"), &f).unwrap();
        let patches = h5::ClamPatches {
            slide: case.name,
            coords: &coords,
            patch_size: 256,
            patch_level: 1,
            downsample: [4.0, 4.000_1],
            level_dim: [15_000, 10_000],
        };
        h5::write_clam_patches(&path("clam_patches", "h5"), &patches).unwrap();
        pt::write(&path("pt", "pt"), &features, case.d).unwrap();
        let stamp = path("stamp", "h5");
        match case.geometry.mpp {
            Some(_) => {
                assert_eq!(h5::write_stamp(&stamp, &f).unwrap(), case.n > 0);
                assert_eq!(stamp.exists(), case.n > 0);
            }
            None => {
                let error = h5::write_stamp(&stamp, &f).unwrap_err().to_string();
                assert!(error.contains("no_mpp.h5") && error.contains("pixel size"), "{error}");
            }
        }
    }
}

#[test]
fn feature_files_read_back() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("HISTOKERN_H5_OUT")
        .map_or_else(|| scratch.path().to_path_buf(), PathBuf::from);
    write_all(&folder);
    for case in cases() {
        let file = format!("{}.h5", case.name);
        let (features, coords) = (values(case.n, case.d), grid(case.n, 512));
        let expect = |got: FeatureFile, layout, scale: Option<f64>, side| {
            assert_eq!((got.layout, got.n, got.d), (layout, case.n, case.d), "{file}");
            assert_eq!(got.features, features, "{file}");
            let unit = if scale.is_some() { Unit::Micrometre } else { Unit::Level0Pixel };
            assert_eq!(got.coords_unit, unit);
            let expected = coords.iter().map(|c| match scale {
                Some(mpp) => c.map(|v| f64::from((v as f64 * mpp) as f32)),
                None => c.map(|v| v as f64),
            });
            assert_eq!(got.coords, Some(expected.collect()), "{file}");
            assert_eq!(got.tile_side, side, "{file}");
            assert_eq!(got.recipe_id.as_deref(), Some("resnet50-layer3@0123abcd"));
        };
        let g = &case.geometry;
        let trident = read_features(&folder.join("trident").join(&file)).unwrap();
        assert_eq!(trident.encoder.as_deref(), Some("resnet50"));
        expect(trident, Layout::Trident, None, Some(g.tile_level0));
        let clam = read_features(&folder.join("clam").join(&file)).unwrap();
        expect(clam, Layout::Clam, None, None);
        if let (Some(mpp), true) = (g.mpp, case.n > 0) {
            let stamp = read_features(&folder.join("stamp").join(&file)).unwrap();
            expect(stamp, Layout::Stamp, Some(mpp), Some(g.tile_level0 * mpp));
        }
    }
}

fn peers() -> PathBuf {
    std::env::var_os("HISTOKERN_H5_IN").map_or_else(|| golden("peers"), PathBuf::from)
}

#[test]
fn feature_files_of_the_peers() {
    let folder = peers();
    let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&expected).unwrap();
    assert!(expected.len() >= 17, "{}", expected.len());
    for (name, want) in &expected {
        let got = read_features(&folder.join(format!("{name}.h5")));
        if let Some(message) = want["error"].as_str() {
            let error = got.unwrap_err().to_string();
            assert!(error.contains(&format!("{name}.h5: ")), "{name}: {error}");
            assert!(error.contains(message), "{name}: {error}\nexpected {message}");
            continue;
        }
        let got = got.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(format!("{:?}", got.layout).to_lowercase(), want["layout"], "{name}");
        let unit = if got.coords_unit == Unit::Micrometre { "um" } else { "px" };
        assert_eq!(unit, want["unit"], "{name}");
        assert_eq!((got.n as u64, got.d as u64), (20, want["d"].as_u64().unwrap()), "{name}");
        let features: Vec<f32> = serde_json::from_value(want["features"].clone()).unwrap();
        assert_eq!(got.features, features, "{name}");
        let coords: Option<Vec<[f64; 2]>> = serde_json::from_value(want["coords"].clone()).unwrap();
        assert_eq!(got.coords, coords, "{name}");
        assert_eq!(got.tile_side, want["side"].as_f64(), "{name}");
        assert_eq!(got.encoder.as_deref(), want["encoder"].as_str(), "{name}");
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/report").join(name)
}

/// Pixels of a PNG, RGB or grey, one bit widened to 0 and 255.
fn read_png(name: &str) -> (usize, usize, Vec<u8>) {
    let file = std::io::BufReader::new(std::fs::File::open(golden(name)).unwrap());
    let mut decoder = png::Decoder::new(file);
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().unwrap();
    let mut data = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut data).unwrap();
    (info.width as usize, info.height as usize, data)
}

#[test]
fn heatmaps_match_numpy_matplotlib_and_opencv() {
    #[derive(serde::Deserialize)]
    struct Golden {
        side: f64,
        downsample: [f64; 2],
        cases: std::collections::BTreeMap<String, Case>,
        ranks: Ranks,
    }
    #[derive(serde::Deserialize)]
    struct Case {
        options: heatmap::Options,
        coords: Vec<[f64; 2]>,
        scores: Vec<f64>,
    }
    #[derive(serde::Deserialize)]
    struct Ranks {
        reference: Vec<f64>,
        probes: Vec<f64>,
        percentiles: Vec<f64>,
        of_score: Vec<f64>,
    }
    let text = std::fs::read_to_string(golden("heatmap.json")).unwrap();
    let g: Golden = serde_json::from_str(&text).unwrap();
    let close = |a: &[f64], b: &[f64]| {
        assert_eq!(a.len(), b.len());
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?}\n{b:?}");
    };
    close(&heatmap::percentiles(&g.ranks.reference), &g.ranks.percentiles);
    close(&heatmap::percentiles_against(&g.ranks.probes, &g.ranks.reference), &g.ranks.of_score);

    let (width, height, data) = read_png("canvas.png");
    let image = RgbImage { width, height, data };
    let tissue: Vec<bool> = read_png("mask.png").2.iter().map(|&v| v > 0).collect();
    let canvas = Canvas { image: &image, downsample: g.downsample, tissue: &tissue };
    assert_eq!(g.cases.len(), 4);
    for (name, case) in &g.cases {
        let got = heatmap::render(&canvas, &case.coords, g.side, &case.scores, &case.options);
        let (got, expected) = (got.unwrap().data, read_png(&format!("heatmap_{name}.png")).2);
        assert_eq!(got.len(), expected.len());
        let differ = got.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0, "{name}: {differ} of {} values", got.len());
    }
}

#[test]
fn a_legend_lies_below_the_picture() {
    let image = RgbImage::filled(600, 40, [200, 100, 50]);
    let labels = ["0 %", "50 %", "100 %"];
    let map = colormap::Colormap::Coolwarm;
    let out = heatmap::with_legend(&image, map, labels, "attention percentile");
    assert_eq!(out.width, 600);
    assert_eq!(out.data.len(), out.width * out.height * 3);
    assert_eq!(out.data[..image.data.len()], image.data);
    let below = &out.data[image.data.len()..];
    let count = |rgb: [u8; 3]| below.chunks_exact(3).filter(|p| *p == rgb).count();
    assert!(count([0, 0, 0]) > 200 && count(map.color(0.0)) > 5 && count(map.color(1.0)) > 5);
    for width in [1, 2, 13] {
        heatmap::with_legend(&RgbImage::filled(width, 1, [0; 3]), map, labels, "x");
    }
}

fn tiles_geojson(path: &Path, side: f64) {
    let n = 200;
    let coords: Vec<[f64; 2]> = grid(n, 512).iter().map(|c| c.map(|v| v as f64 + 0.25)).collect();
    let score: Vec<f64> = (0..n).map(|i| i as f64 * 0.1 - 3.0).collect();
    let rank = heatmap::percentiles(&score);
    let mut kept = vec![1.0; n];
    kept[3] = f64::NAN;
    let column = |name, values| Measurement { name, values };
    let measurements =
        [column("score", &score[..]), column("percent rank", &rank), column("kept", &kept)];
    // Both outlines and the hole are given the wrong way round once.
    let square = |x: f64, s: f64| vec![[x, x], [x + s, x], [x + s, x + s], [x, x + s]];
    let backwards = |mut ring: Vec<[f64; 2]>| {
        ring.reverse();
        ring
    };
    let tissue = [
        Contour {
            outline: square(0.0, 900.0),
            holes: vec![
                square(100.0, 50.0),
                vec![[1.0, 1.0], [2.0, 2.0]],
                backwards(square(200.0, 50.0)),
            ],
        },
        Contour { outline: vec![[0.0, 0.0], [1.0, 1.0]], holes: Vec::new() },
        Contour { outline: backwards(square(1000.0, 900.5)), holes: Vec::new() },
    ];
    let tiles =
        Tiles { object: ObjectType::Tile, coords: &coords, side, measurements: &measurements };
    geojson::write(path, &"ab".repeat(32), &tissue, &tiles).unwrap();
}

#[test]
fn geojson_for_qupath() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("HISTOKERN_H5_OUT")
        .map_or_else(|| scratch.path().to_path_buf(), PathBuf::from);
    let path = folder.join("tiles.geojson");
    tiles_geojson(&path, 512.0);
    let text = std::fs::read_to_string(&path).unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let features = document["features"].as_array().unwrap();
    assert_eq!(features.len(), 202);
    let tile = &features[2];
    assert_eq!(tile["properties"]["objectType"], "tile");
    assert_eq!(
        tile["geometry"]["coordinates"].to_string(),
        "[[[0.25,7.25],[512.25,7.25],[512.25,519.25],[0.25,519.25],[0.25,7.25]]]"
    );
    assert_eq!(tile["properties"]["measurements"]["score"], -3.0);
    assert_eq!(features[5]["properties"]["measurements"]["kept"], "NaN");
    assert_eq!(features[0]["geometry"]["coordinates"].as_array().unwrap().len(), 3);
    let mut ids: Vec<&str> = features.iter().map(|f| f["id"].as_str().unwrap()).collect();
    assert!(ids.iter().all(|id| id.len() == 36 && id.as_bytes()[14] == b'8'));
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 202);
    tiles_geojson(&folder.join("again.geojson"), 512.0);
    assert_eq!(std::fs::read_to_string(folder.join("again.geojson")).unwrap(), text);
}

/// What is asked of every damaged file: a value or an error naming it, no panic, soon.
fn survives(path: &Path, bytes: &[u8], what: &str) {
    std::fs::write(path, bytes).unwrap();
    let start = std::time::Instant::now();
    if let Err(error) = read_features(path) {
        let error = error.to_string();
        assert!(error.starts_with(&path.display().to_string()), "{what}: {error}");
        assert!(!error.contains("damaged HDF5 structure"), "{what}: the HDF5 library panicked");
    }
    assert!(start.elapsed().as_secs() < 5, "{what} took {:?}", start.elapsed());
}

#[test]
fn damaged_feature_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    write_all(folder.path());
    let path = folder.path().join("damaged.h5");
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut files: Vec<PathBuf> = ["trident/small.h5", "stamp/small.h5", "clam/empty.h5"]
        .map(|f| folder.path().join(f))
        .to_vec();
    let theirs = std::fs::read_dir(peers()).unwrap().map(|e| e.unwrap().path());
    files.extend(theirs.filter(|p| p.extension().is_some_and(|e| e == "h5")));
    files.sort();
    for file in &files {
        let valid = std::fs::read(file).unwrap();
        for round in 0..45 {
            let mut bytes = valid.clone();
            let what = format!("{} round {round}", file.display());
            match round % 3 {
                0 => bytes.truncate(random(valid.len())),
                1 => {
                    for _ in 0..1 + random(8) {
                        bytes[random(valid.len())] = random(256) as u8;
                    }
                }
                _ => {
                    // Counts and addresses: eight bytes of extreme values.
                    let at = random(valid.len().saturating_sub(8));
                    let value = [0, 1, u64::MAX, 1 << 40, valid.len() as u64, 1 << 63][random(6)];
                    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
            }
            survives(&path, &bytes, &what);
        }
    }
    for (bytes, what) in [(&b""[..], "nothing"), (b"not HDF5 at all", "text")] {
        std::fs::write(&path, bytes).unwrap();
        assert!(read_features(&path).is_err(), "{what}");
    }
    assert!(read_features(folder.path()).is_err());
    let absent = read_features(&folder.path().join("absent.h5")).unwrap_err();
    assert_eq!(absent.kind(), histokern::Kind::Io);
}

/// Writes one large file of each kind into the folder; every error is printed.
fn write_large_files(folder: &Path) -> Vec<String> {
    let (n, d) = (2_000, 64);
    let (features, coords) = (values(n, d), grid(n, 512));
    let f = h5::Features {
        slide: "s",
        encoder: "resnet50",
        recipe_id: "r",
        features: &features,
        dim: d,
        coords: &coords,
        geometry: &geometry(),
    };
    let scores = &features[..n];
    let attention = [Attention { class: "", raw: scores, softmax: scores }];
    let floats: Vec<[f64; 2]> = coords.iter().map(|c| c.map(|v| v as f64)).collect();
    let tiles = Tiles { object: ObjectType::Tile, coords: &floats, side: 512.0, measurements: &[] };
    let mut state = 1u32;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    let image = RgbImage { width: 300, height: 300, data: noise.take(300 * 300 * 3).collect() };
    [
        h5::write_trident(&folder.join("trident.h5"), &f),
        h5::write_clam(&folder.join("clam.h5"), &f),
        h5::write_stamp(&folder.join("stamp.h5"), &f).map(drop),
        pt::write(&folder.join("features.pt"), &features, d),
        csv::write_attention(&folder.join("attention.csv"), &coords, &attention),
        geojson::write(&folder.join("tiles.geojson"), "ab", &[], &tiles),
        picture::write_rgb(&folder.join("heatmap.png"), &image),
    ]
    .into_iter()
    .filter_map(|outcome| outcome.err().map(|e| format!("{:?} {e}", e.kind())))
    .collect()
}

/// Not a test of its own: what the children of the next test run.
#[test]
#[ignore = "run by a_full_disk_leaves_no_partial_file"]
fn child_writes_large_files() {
    let Some(folder) = std::env::var_os("HISTOKERN_CHILD_OUT") else { return };
    for error in write_large_files(Path::new(&folder)) {
        println!("ERROR {error}");
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_partial_file() {
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    let run = |folder: &Path, shell: &str| {
        std::process::Command::new("sh")
            .args(["-c", &format!("{shell}; exec \"$0\" \"$@\"")])
            .arg(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "child_writes_large_files", "--nocapture"])
            .env("HISTOKERN_CHILD_OUT", folder)
            .output()
            .unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    assert!(run(folder.path(), "true").status.success());
    let mut all = names(folder.path());
    all.sort();
    assert_eq!(all.len(), 7, "{all:?}");

    // Files may grow to 16 KiB (32 blocks of 512 bytes): every write beyond fails with EFBIG.
    let limited = tempfile::tempdir().unwrap();
    let output = run(limited.path(), "trap '' XFSZ; ulimit -f 32");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for name in &all {
        let path = limited.path().join(name).display().to_string();
        assert!(text.contains(&format!("ERROR Io {path}: ")), "{name} is not reported:\n{text}");
    }
    assert!(names(limited.path()).is_empty(), "{:?}", names(limited.path()));

    // The same limit without the trap kills the process in the middle of a write.
    let killed = tempfile::tempdir().unwrap();
    assert!(!run(killed.path(), "ulimit -f 32").status.success());
    let left = names(killed.path());
    assert!(left.iter().all(|n| n.starts_with('.') && n.ends_with(".tmp")), "{left:?}");
    assert_eq!(left.len(), 1, "the kill came before the first write");
}

#[cfg(target_os = "linux")]
#[test]
fn folders_that_cannot_be_written_are_named() {
    // /proc refuses new files even to root.
    for folder in ["/proc", "/dev/null", "/absent/folder"] {
        let errors = write_large_files(Path::new(folder));
        assert_eq!(errors.len(), 7, "{errors:?}");
        assert!(errors.iter().all(|e| e.starts_with(&format!("Io {folder}/"))), "{errors:?}");
    }
}
