//! The slide reader against pictures decoded by reference libraries, and against broken files.
//!
//! `tests/golden/slides` holds tiny slides of every kind with their pictures (`make.py` there
//! says where they come from). Real slides are looked for in the folder named by the environment
//! variable HISTOKERN_TEST_DATA, else in `../shared/data/slides`, and skipped when absent.

use histokern::error::Kind;
use histokern::image::RgbImage;
use histokern::slide::{
    Access, MppSource, OpenOptions, Region, Scratch, Slide, TileIndex, TilePass,
};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/slides").join(name)
}

fn data() -> Option<PathBuf> {
    let given = std::env::var_os("HISTOKERN_TEST_DATA").map(PathBuf::from);
    let folder =
        given.unwrap_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/slides"));
    let found = folder.join("CMU-1-Small-Region.svs").is_file();
    if !found {
        eprintln!("skipped: no test slides in {}", folder.display());
    }
    found.then_some(folder)
}

fn open(path: &Path) -> Slide {
    Slide::open(path, &OpenOptions::default()).unwrap()
}

fn whole(slide: &Slide, level: usize) -> RgbImage {
    let Level { width, height } = size(slide, level);
    slide.read_region(&Region { x: 0, y: 0, level, width, height }).unwrap().image
}

struct Level {
    width: u32,
    height: u32,
}

fn size(slide: &Slide, level: usize) -> Level {
    let level = &slide.levels()[level];
    Level { width: level.width, height: level.height }
}

fn png_picture(path: &Path) -> RgbImage {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut decoder = png::Decoder::new(file);
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().unwrap();
    let mut samples = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut samples).unwrap();
    let data = match frame.color_type {
        png::ColorType::Rgb => samples,
        png::ColorType::Rgba => samples.chunks(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        png::ColorType::Grayscale => samples.iter().flat_map(|&v| [v; 3]).collect(),
        other => panic!("{other:?}"),
    };
    RgbImage { width: frame.width as usize, height: frame.height as usize, data }
}

/// The largest and the mean difference of two pictures of one size.
fn difference(a: &RgbImage, b: &RgbImage) -> (u8, f64) {
    assert_eq!((a.width, a.height), (b.width, b.height));
    let differences = a.data.iter().zip(&b.data).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = differences.clone().map(u64::from).sum();
    (differences.max().unwrap(), sum as f64 / a.data.len() as f64)
}

fn expected() -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(golden("expected.json")).unwrap();
    match serde_json::from_str(&text).unwrap() {
        Value::Object(map) => map,
        other => panic!("{other}"),
    }
}

#[test]
fn sound_slides_give_the_pixels_of_the_reference_decoders() {
    let mut seen = 0;
    for (name, wanted) in expected() {
        let Some(truth) = wanted["truth"].as_str() else { continue };
        seen += 1;
        for access in [Access::Read, Access::Map] {
            let options = OpenOptions { access, ..OpenOptions::default() };
            let slide = Slide::open(&golden(&name), &options).unwrap();
            assert_eq!(slide.format(), wanted["format"], "{name}");
            let (most, _) = difference(&whole(&slide, 0), &png_picture(&golden(truth)));
            assert!(u64::from(most) <= wanted["most"].as_u64().unwrap(), "{name}: {most}");
            if let Some(truth) = wanted["truth1"].as_str() {
                let (most, _) = difference(&whole(&slide, 1), &png_picture(&golden(truth)));
                assert_eq!(most, 0, "{name} level 1");
            }
            if let Some(sizes) = wanted["levels"].as_array() {
                let found: Vec<_> = slide.levels().iter().map(|l| [l.width, l.height]).collect();
                assert_eq!(
                    serde_json::to_value(found).unwrap(),
                    Value::from(sizes.clone()),
                    "{name}"
                );
            }
            if let Some(images) = wanted["associated"].as_object() {
                assert_eq!(slide.associated_names(), images.keys().collect::<Vec<_>>(), "{name}");
                for (image, truth) in images {
                    let truth = png_picture(&golden(truth.as_str().unwrap()));
                    assert_eq!(slide.associated(image).unwrap(), truth, "{name} {image}");
                }
            }
            let mpp = slide.mpp();
            assert_eq!(mpp.map(|m| m.x), wanted["mpp"].as_f64(), "{name}");
            let y = wanted["mpp_y"].as_f64().or(wanted["mpp"].as_f64());
            assert_eq!(mpp.map(|m| m.y), y, "{name}");
            assert_eq!(slide.objective_power(), wanted["objective"].as_f64(), "{name}");
            for (level, key) in ["missing", "missing1"].into_iter().enumerate() {
                let Some(tiles) = wanted[key].as_array() else { continue };
                let Level { width, height } = size(&slide, level);
                let read = slide.read_region(&Region { x: 0, y: 0, level, width, height }).unwrap();
                let found: Vec<_> = read.missing.iter().map(|t| vec![t.col, t.row]).collect();
                assert_eq!(
                    serde_json::to_value(found).unwrap(),
                    Value::from(tiles.clone()),
                    "{name}"
                );
                // What stands for a missing tile of a coarse level was decoded from a finer one.
                let valid = read.valid.iter().filter(|v| **v).count();
                assert_eq!(valid, if level == 0 { 16 * 16 } else { 16 * 8 }, "{name}");
            }
        }
    }
    assert!(seen >= 14, "{seen}");
}

#[test]
fn a_native_tile_is_the_region_it_covers() {
    let mut cropped = 0;
    let sound = |wanted: &Value| wanted["truth"].is_string() || wanted["sizes"].is_array();
    for (name, _) in expected().into_iter().filter(|(_, wanted)| sound(wanted)) {
        let slide = open(&golden(&name));
        for (level, found) in slide.levels().iter().enumerate() {
            let ratio = slide.nominal_downsample(level).unwrap() as i64;
            let (tw, th) = (found.tile_width, found.tile_height);
            for row in 0..found.height.div_ceil(th) {
                for col in 0..found.width.div_ceil(tw) {
                    let index = TileIndex { level, col, row };
                    let tile = slide.read_tile(index, &mut Scratch::default()).unwrap();
                    let [x, y] = [col * tw, row * th].map(|at| i64::from(at) * ratio);
                    let width = tw.min(found.width - col * tw);
                    let height = th.min(found.height - row * th);
                    let region = Region { x, y, level, width, height };
                    let region = slide.read_region(&region).unwrap();
                    assert_eq!(tile.image, region.image, "{name} {index:?}");
                    assert_eq!(tile.valid, region.valid, "{name} {index:?}");
                    assert_eq!(tile.missing, region.missing, "{name} {index:?}");
                    cropped += usize::from(width < tw);
                }
            }
        }
    }
    assert!(cropped > 5, "{cropped}");
}

#[test]
fn broken_slides_fail_with_the_place_and_the_cause() {
    let mut seen = 0;
    for (name, wanted) in expected() {
        let words = |key: &str| wanted[key].as_array().cloned();
        let (error, words) = if let Some(words) = words("open_error") {
            (Slide::open(&golden(&name), &OpenOptions::default()).unwrap_err(), words)
        } else if let Some(words) = words("tile_error") {
            let slide = open(&golden(&name));
            let region = Region { x: 0, y: 0, level: 0, width: 16, height: 16 };
            let first = slide.read_region(&region).unwrap_err();
            // The handle stays usable and says the same again.
            assert_eq!(first.to_string(), slide.read_region(&region).unwrap_err().to_string());
            (first, words)
        } else {
            continue;
        };
        seen += 1;
        let text = error.to_string();
        assert!(text.contains(&name), "{text}");
        for word in words {
            assert!(text.contains(word.as_str().unwrap()), "{name}: {text}: no {word}");
        }
    }
    assert!(seen >= 20, "{seen}");
}

#[test]
fn pixel_size_is_overridden_guessed_or_refused() {
    let path = golden("jpeg_420.svs");
    let with = |mpp| {
        Slide::open(&path, &OpenOptions { mpp_override: Some(mpp), ..OpenOptions::default() })
    };
    let mpp = with(0.5).unwrap().mpp().unwrap();
    assert_eq!((mpp.x, mpp.y, mpp.source), (0.5, 0.5, MppSource::Override));
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-3, 1e3] {
        assert_eq!(with(wrong).unwrap_err().kind(), Kind::Usage, "{wrong}");
    }
    // An implausible MPP is passed over; the objective gives a guess that says it is one.
    let bytes = std::fs::read(&path).unwrap();
    for (text, value, source) in [
        ("MPP = 0,00", 0.25, MppSource::ObjectivePower),
        ("MPP = 9999", 0.25, MppSource::ObjectivePower),
        ("MPP = nan ", 0.25, MppSource::ObjectivePower),
        ("MPP = 1.50", 1.5, MppSource::ImageDescription),
    ] {
        let file = changed(&bytes, b"MPP = 0,25", text.as_bytes(), ".svs");
        let mpp = open(file.path()).mpp().unwrap();
        assert_eq!((mpp.x, mpp.source), (value, source), "{text}");
    }
}

fn changed(bytes: &[u8], from: &[u8], to: &[u8], suffix: &str) -> tempfile::NamedTempFile {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    let mut bytes = bytes.to_vec();
    bytes[at..at + to.len()].copy_from_slice(to);
    file(&bytes, suffix)
}

fn file(bytes: &[u8], suffix: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(suffix).tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A little-endian TIFF of uncompressed RGB tiles with one level a directory, `pixel(level, x, y)`.
fn pyramid(sizes: &[(u32, u32)], tile: u32, pixel: impl Fn(usize, u32, u32) -> [u8; 3]) -> Vec<u8> {
    let mut out = b"II\x2a\0\0\0\0\0".to_vec();
    let mut link = 4;
    for (level, &(width, height)) in sizes.iter().enumerate() {
        let (cols, rows) = (width.div_ceil(tile), height.div_ceil(tile));
        let mut offsets = Vec::new();
        for at in (0..rows).flat_map(|row| (0..cols).map(move |col| (col * tile, row * tile))) {
            offsets.push(out.len() as u32);
            for (y, x) in (0..tile).flat_map(|y| (0..tile).map(move |x| (at.1 + y, at.0 + x))) {
                out.extend(pixel(level, x, y));
            }
        }
        let n = offsets.len() as u32;
        let mut table = |values: &mut dyn Iterator<Item = u32>| {
            let at = out.len() as u32;
            out.extend(values.flat_map(u32::to_le_bytes));
            if n == 1 { u32::from_le_bytes(out[at as usize..].try_into().unwrap()) } else { at }
        };
        let offsets = table(&mut offsets.iter().copied());
        let lengths = table(&mut (0..n).map(|_| tile * tile * 3));
        let bits = out.len() as u32;
        out.extend([8, 0, 8, 0, 8, 0]);
        let at = (out.len() as u32).to_le_bytes();
        out[link..link + 4].copy_from_slice(&at);
        let entries = [
            (254, 4, 1, u32::from(level > 0)),
            (256, 4, 1, width),
            (257, 4, 1, height),
            (258, 3, 3, bits),
            (259, 3, 1, 1),
            (262, 3, 1, 2),
            (277, 3, 1, 3),
            (322, 4, 1, tile),
            (323, 4, 1, tile),
            (324, 4, n, offsets),
            (325, 4, n, lengths),
        ];
        out.extend((entries.len() as u16).to_le_bytes());
        for (tag, kind, count, value) in entries {
            out.extend([tag, kind].iter().flat_map(|v: &u16| v.to_le_bytes()));
            out.extend([count, value].iter().flat_map(|v: &u32| v.to_le_bytes()));
        }
        link = out.len();
        out.extend([0; 4]);
    }
    out
}

/// A pixel that tells its level and place.
fn mark(level: usize, x: u32, y: u32) -> [u8; 3] {
    [x as u8, y as u8, (level as u8) << 6 | (x >> 8) as u8 | (y >> 8 << 3) as u8]
}

#[test]
fn regions_snap_to_whole_pixels_and_are_white_and_invalid_outside() {
    // 403 / 100 = 4.03 is not near enough to 4; 401 / 100 is.
    let sizes = [(401, 301), (200, 150), (100, 75)];
    let file = file(&pyramid(&sizes, 32, mark), ".tif");
    let slide = open(file.path());
    assert_eq!(slide.levels().len(), 3);
    let mut state = 1u64;
    let mut random = |n: i64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as i64 % n
    };
    for _ in 0..300 {
        let level = random(3) as usize;
        let (x, y) = (random(600) - 100, random(500) - 100);
        let (width, height) = (1 + random(120) as u32, 1 + random(120) as u32);
        let read = slide.read_region(&Region { x, y, level, width, height }).unwrap();
        let ratio = [1, 2, 4][level];
        // round(x / ratio), ties upwards, in integers.
        let snap = |v: i64| (2 * v + ratio).div_euclid(2 * ratio);
        let (w, h) = sizes[level];
        for (k, pixel) in read.image.data.chunks(3).enumerate() {
            let px = snap(x) + (k % width as usize) as i64;
            let py = snap(y) + (k / width as usize) as i64;
            let inside = (0..i64::from(w)).contains(&px) && (0..i64::from(h)).contains(&py);
            assert_eq!(read.valid[k], inside);
            let wanted = if inside { mark(level, px as u32, py as u32) } else { [255; 3] };
            assert_eq!(pixel, wanted, "level {level}, {px} {py}");
        }
    }
    for (x, y) in [(i64::MAX, i64::MIN), (i64::MIN, 5), (1 << 50, 1 << 50)] {
        let read = slide.read_region(&Region { x, y, level: 1, width: 3, height: 2 }).unwrap();
        assert!(read.image.data.iter().all(|&v| v == 255) && !read.valid.contains(&true));
    }
    let huge = Region { x: 0, y: 0, level: 0, width: u32::MAX, height: u32::MAX };
    assert_eq!(slide.read_region(&huge).unwrap_err().kind(), Kind::Limit);
    let none = Region { x: 0, y: 0, level: 3, width: 1, height: 1 };
    assert_eq!(slide.read_region(&none).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn directories_in_any_order_become_a_sorted_pyramid() {
    let sizes = [(50, 37), (401, 301), (64, 64), (100, 75), (100, 75)];
    let file = file(&pyramid(&sizes, 32, mark), ".tif");
    let slide = open(file.path());
    let found: Vec<_> = slide.levels().iter().map(|l| (l.width, l.height)).collect();
    // 64x64 is another picture, the second 100x75 another focal plane.
    assert_eq!(found, [(401, 301), (100, 75), (50, 37)]);
    assert_eq!(whole(&slide, 1).data[..3], mark(3, 0, 0));
}

#[test]
fn best_level_tolerates_rounded_sizes() {
    let file = file(&pyramid(&[(401, 301), (200, 150), (100, 75)], 32, mark), ".tif");
    let slide = open(file.path());
    // The downsamples are 2.006 and 4.012.
    let wanted = [(0.5, 0), (1.0, 0), (1.9, 0), (2.0, 1), (3.9, 1), (4.0, 2), (100.0, 2)];
    for (downsample, level) in wanted {
        assert_eq!(slide.best_level(downsample), level, "{downsample}");
    }
    assert_eq!(slide.best_level(f64::NAN), 0);
}

#[test]
fn a_pass_decodes_each_tile_once_and_gives_the_pixels_of_read_region() {
    let bytes = pyramid(&[(400, 300)], 32, mark);
    let file = file(&bytes, ".tif");
    let slide = open(file.path());
    let regions: Vec<Region> = (-1..8)
        .flat_map(|row| (-1..10).map(move |col| (col * 45, row * 45)))
        .map(|(x, y)| Region { x, y, level: 0, width: 60, height: 50 })
        .collect();
    let wanted: Vec<_> = regions.iter().map(|r| slide.read_region(r).unwrap().image.data).collect();
    for threads in [1, 2, 7] {
        let pass = TilePass::new(&slide, 0, &regions).unwrap();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let most = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut scratch = Scratch::default();
                    let mut out = vec![0; 60 * 50 * 3];
                    loop {
                        let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if i >= pass.len() {
                            break;
                        }
                        let missing = pass.read(i, &mut out, &mut scratch).unwrap();
                        assert!(missing.is_empty());
                        assert_eq!(out, wanted[i], "region {i}");
                        most.fetch_max(pass.held_tiles(), std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(pass.decoded_tiles(), 13 * 10, "{threads} threads");
        assert_eq!(pass.native_tiles(), 13 * 10);
        assert_eq!(pass.held_tiles(), 0);
        // A region is up to three tiles high, a row of tiles has 13.
        assert!(most.into_inner() <= 3 * 13 + 3 * threads);
        assert_eq!(
            pass.read(3, &mut [0; 9000], &mut Scratch::default()).unwrap_err().kind(),
            Kind::Usage
        );
    }
}

/// Held at a time are the tiles that some region has begun and this or a later one ends.
#[test]
fn a_pass_says_beforehand_how_much_it_holds() {
    let file = file(&pyramid(&[(400, 300)], 32, mark), ".tif");
    let slide = open(file.path());
    let regions: Vec<Region> = (-1..8)
        .flat_map(|row| (-1..10).map(move |col| (col * 45, row * 45)))
        .map(|(x, y)| Region { x, y, level: 0, width: 60, height: 50 })
        .collect();
    let pass = TilePass::new(&slide, 0, &regions).unwrap();
    let touches = |r: &Region, col: i64, row: i64| {
        let meets = |start: i64, length: u32, at: i64| {
            start < 32 * (at + 1) && 32 * at < start + i64::from(length)
        };
        meets(r.x, r.width, col) && meets(r.y, r.height, row)
    };
    for together in [1, 4, 1000] {
        let turns: Vec<&[Region]> = regions.chunks(together).collect();
        let held = |turn: usize| {
            let tiles = (0..13).flat_map(|col| (0..10).map(move |row| (col, row)));
            let any = |turns: &[&[Region]], col, row| {
                turns.iter().any(|t| t.iter().any(|r| touches(r, col, row)))
            };
            tiles.filter(|&(c, r)| any(&turns[..=turn], c, r) && any(&turns[turn..], c, r)).count()
        };
        let most = (0..turns.len()).map(held).max().unwrap();
        assert_eq!(pass.most_held(together), most * 32 * 32 * 3, "{together} at a time");
    }
    // A row of regions is up to three tiles high.
    assert!(pass.most_held(1) <= 3 * 13 * 32 * 32 * 3);
    assert_eq!(pass.most_held(1000), 13 * 10 * 32 * 32 * 3);
    assert_eq!(TilePass::new(&slide, 0, &[]).unwrap().most_held(1), 0);
}

#[test]
fn a_broken_tile_fails_the_regions_that_touch_it_and_no_others() {
    let mut bytes = pyramid(&[(96, 32)], 32, mark);
    // The second of three tile offsets points past the end.
    let table = 8 + 3 * 32 * 32 * 3;
    bytes[table + 4..table + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    let file = file(&bytes, ".tif");
    let slide = open(file.path());
    let regions: Vec<Region> =
        [0, 20, 40, 50, 64].map(|x| Region { x, y: 0, level: 0, width: 30, height: 32 }).to_vec();
    let pass = TilePass::new(&slide, 0, &regions).unwrap();
    let mut scratch = Scratch::default();
    let mut out = vec![0; 30 * 32 * 3];
    let failed: Vec<bool> = (0..5)
        .map(|i| match pass.read(i, &mut out, &mut scratch) {
            Ok(_) => false,
            Err(error) => {
                assert!(error.to_string().contains("tile (1, 0)"), "{error}");
                true
            }
        })
        .collect();
    assert_eq!(failed, [false, true, true, true, false]);
    assert_eq!(pass.decoded_tiles(), 3);
    assert_eq!(pass.held_tiles(), 0);
    let pass = TilePass::new(&slide, 0, &regions).unwrap();
    pass.read(0, &mut out, &mut scratch).unwrap();
    assert_eq!(pass.held_tiles(), 1);
    pass.skip(1).unwrap();
    assert_eq!(pass.held_tiles(), 0);
}

#[test]
fn a_pass_reports_missing_tiles_and_reads_flat_pictures() {
    let slide = open(&golden("missing_tile.svs"));
    let region = Region { x: 0, y: 0, level: 1, width: 16, height: 8 };
    let pass = TilePass::new(&slide, 1, &[region]).unwrap();
    let mut out = vec![0; 16 * 8 * 3];
    let missing = pass.read(0, &mut out, &mut Scratch::default()).unwrap();
    assert_eq!(missing, [TileIndex { level: 1, col: 0, row: 0 }]);
    assert_eq!(out, png_picture(&golden("exact_mean.png")).data);
    assert!(TilePass::new(&slide, 0, &[region]).is_err());

    let slide = open(&golden("exact_24x20.png"));
    let region = Region { x: -2, y: 3, level: 0, width: 10, height: 30 };
    let pass = TilePass::new(&slide, 0, &[region]).unwrap();
    let mut out = vec![0; 10 * 30 * 3];
    pass.read(0, &mut out, &mut Scratch::default()).unwrap();
    let whole = slide.read_region(&region).unwrap();
    assert_eq!(out, whole.image.data);
    // Beyond the edges, and only there, it is as dark as wanted.
    let pass = TilePass::new(&slide, 0, &[region]).unwrap().with_outside(0);
    pass.read(0, &mut out, &mut Scratch::default()).unwrap();
    for (i, (dark, rgb)) in out.chunks(3).zip(whole.image.data.chunks(3)).enumerate() {
        let inside = i % 10 >= 2 && i / 10 < 20 - 3;
        assert_eq!(dark, if inside { rgb } else { &[0; 3] }, "pixel {i}");
    }
}

#[test]
fn mutated_slides_never_panic() {
    let mut state = 0x9e3779b97f4a7c15u64;
    let mut random = move |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    };
    let sound = |wanted: &Value| wanted["truth"].is_string() || wanted["reduced"].is_array();
    let names: Vec<_> = expected().into_iter().filter(|(_, e)| sound(e)).collect();
    let seeds: Vec<_> =
        names.iter().map(|(name, _)| std::fs::read(golden(name)).unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mutant");
    let mut opened = 0;
    for round in 0..5000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..1 + random(4) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                2 => {
                    let end = (at + 4).min(bytes.len());
                    bytes[at..end].fill([0, 0xff][random(2)]);
                }
                _ => bytes.truncate(at.max(8)),
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        let options = OpenOptions { reduced: true, ..OpenOptions::default() };
        let Ok(slide) = Slide::open(&path, &options) else { continue };
        opened += 1;
        for (level, found) in slide.resolutions().iter().enumerate() {
            let (width, height) = (found.width.min(64), found.height.min(64));
            let region = Region { x: -3, y: 0, level, width, height };
            if let Ok(read) = slide.read_region(&region) {
                assert_eq!(read.image.data.len(), (width * height * 3) as usize);
            }
        }
        for name in slide.associated_names() {
            let _ = slide.associated(name);
        }
        let _ = (slide.icc_profile(), slide.mpp());
    }
    assert!(opened > 500, "{opened}");
}

#[test]
fn real_slides_match_their_truth() {
    let Some(folder) = data() else { return };
    let svs = open(&folder.join("CMU-1-Small-Region.svs"));
    let base = whole(&svs, 0);
    assert_eq!((base.width, base.height), (2220, 2967));
    assert_eq!(svs.associated_names(), ["label", "macro", "thumbnail"]);
    assert_eq!(svs.associated("label").unwrap().width, 387);
    // Copies under lossy codecs: near in the mean, so colours and places are right.
    for (name, most) in [("jp2", 4.0), ("jpeg", 8.0)] {
        let copy = open(&folder.join(format!("wsic/CMU-1-Small-Region.{name}.tiff")));
        assert!(copy.mpp().is_none(), "{name}");
        let (_, mean) = difference(&whole(&copy, 0), &base);
        assert!(mean < most, "{name}: {mean}");
    }
    let truth = png_picture(&folder.join("wsic/XYC.png"));
    assert_eq!(whole(&open(&folder.join("wsic/XYC.png")), 0), truth);
    let tail = "-tilex_128_-tiley_128_-pyramid-scale_2_-merge.ome.tiff";
    let zlib = open(&folder.join(format!("wsic/XYC_-compression_zlib_{tail}")));
    assert_eq!(whole(&zlib, 0), truth);
    let jp2 = open(&folder.join(format!("wsic/XYC_-compression_JPEG-2000_{tail}")));
    let (_, mean) = difference(&whole(&jp2, 0), &truth);
    assert!(mean < 8.0, "{mean}");
}

#[test]
fn the_tiff_crate_reads_the_same_pixels() {
    let Some(folder) = data() else { return };
    let path = folder.join("osp_boxes.tiff");
    let slide = open(&path);
    let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
    let mut decoder = tiff::decoder::Decoder::new(file).unwrap();
    for level in 0..slide.levels().len() {
        decoder.seek_to_image(level).unwrap();
        let tiff::decoder::DecodingResult::U8(samples) = decoder.read_image().unwrap() else {
            panic!("not 8-bit")
        };
        assert_eq!(whole(&slide, level).data, samples, "level {level}");
    }
    assert_eq!(slide.icc_profile().unwrap().unwrap().len(), 588);
}

#[test]
fn jpeg_2000_streams_match_openjpeg() {
    let Some(folder) = data() else { return };
    let cases = [
        ("rgb_mct", 33005),
        ("rgb_nomct", 33005),
        ("ycbcr_444", 33003),
        ("ycbcr_422", 33003),
        ("ycbcr_420", 33003),
    ];
    for (name, compression) in cases {
        let stream = std::fs::read(folder.join(format!("wsi_rs_jp2k/{name}.j2k"))).unwrap();
        let (width, height, truth) = ppm(&folder.join(format!("wsi_rs_jp2k/{name}.ppm")));
        let file = file(&one_tile(&stream, width, height, compression), ".svs");
        let image = whole(&open(file.path()), 0);
        let truth = RgbImage { width: width as usize, height: height as usize, data: truth };
        let (most, _) = difference(&image, &truth);
        eprintln!("{name}: {most}");
        assert!(most <= 1, "{name}: {most}");
    }
}

/// An Aperio slide of one tile.
fn one_tile(stream: &[u8], width: u32, height: u32, compression: u32) -> Vec<u8> {
    let mut out = b"II\x2a\0\0\0\0\0".to_vec();
    let tile = out.len() as u32;
    out.extend(stream);
    let bits = out.len() as u32;
    out.extend([8, 0, 8, 0, 8, 0]);
    let text = out.len() as u32;
    out.extend(b"Aperio \0");
    let at = (out.len() as u32).to_le_bytes();
    out[4..8].copy_from_slice(&at);
    let entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, bits),
        (259, 3, 1, compression),
        (262, 3, 1, 2),
        (270, 2, 8, text),
        (277, 3, 1, 3),
        (322, 4, 1, width),
        (323, 4, 1, height),
        (324, 4, 1, tile),
        (325, 4, 1, stream.len() as u32),
    ];
    out.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        out.extend([tag, kind].iter().flat_map(|v: &u16| v.to_le_bytes()));
        out.extend([count, value].iter().flat_map(|v: &u32| v.to_le_bytes()));
    }
    out.extend([0; 4]);
    out
}

/// Width, height and samples of a binary PPM of 8 bits.
fn ppm(path: &Path) -> (u32, u32, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    let mut fields = Vec::new();
    let mut at = 0;
    while fields.len() < 4 {
        let line = bytes[at..].iter().position(|&b| b == b'\n').unwrap();
        let text = std::str::from_utf8(&bytes[at..at + line]).unwrap();
        fields.extend(text.split('#').next().unwrap().split_whitespace().map(String::from));
        at += line + 1;
    }
    assert_eq!((&*fields[0], &*fields[3]), ("P6", "255"));
    (fields[1].parse().unwrap(), fields[2].parse().unwrap(), bytes[at..].to_vec())
}
