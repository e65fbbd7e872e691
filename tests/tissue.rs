//! Contours, segmentation, tile coordinates and region tiles against OpenCV and the oracle in
//! `tests/golden/tissue/tiling.py` (`make.py` beside it).

use histokern::image::{GrayImage, RgbImage, colour};
use histokern::recipe::{ClamTissue, Select, Tiles};
use histokern::slide::{Level, Mpp, MppSource, OpenOptions, Slide};
use histokern::tiling::{self, TileGrid};
use histokern::tissue::{self, Contour, Tissue, contours, ring};
use histokern::{Kind, regions};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tissue").join(name)
}

fn read_json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden(name)).unwrap()).unwrap()
}

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn read_png(path: &Path) -> RgbImage {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut data = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut data).unwrap();
    assert_eq!(info.color_type, png::ColorType::Rgb);
    RgbImage { width: info.width as usize, height: info.height as usize, data }
}

fn level(width: u32, height: u32, downsample: f64) -> Level {
    Level { width, height, downsample, tile_width: 256, tile_height: 256, compression: "none" }
}

fn tiles(size_px: u32, select: Select) -> Tiles {
    Tiles { select, ..Tiles::of(size_px) }
}

#[test]
fn contours_equal_opencv_in_points_and_order() {
    for case in read_json("contours.json")["contours"].as_array().unwrap() {
        let rows: Vec<&str> =
            case["mask"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
        let data = rows.concat().bytes().map(|b| u8::from(b == b'#') * 9).collect();
        let mask = GrayImage { width: rows[0].len(), height: rows.len(), data };
        let found: Vec<Vec<Vec<[i32; 2]>>> = contours::find_contours(&mask)
            .into_iter()
            .map(|c| std::iter::once(c.outer).chain(c.holes).collect())
            .collect();
        let areas: Vec<Vec<f64>> =
            found.iter().map(|c| c.iter().map(|r| contours::area(r)).collect()).collect();
        assert_eq!(json!(areas), case["areas"], "{rows:#?}");
        let written = serde_json::to_string(&found).unwrap();
        assert_eq!(sha(written.as_bytes()), case["sha256"].as_str().unwrap(), "{rows:#?}");
    }
}

#[test]
fn side_of_a_ring_equals_point_polygon_test() {
    for case in read_json("contours.json")["sides"].as_array().unwrap() {
        let vertices: Vec<[i32; 2]> = serde_json::from_value(case["ring"].clone()).unwrap();
        let ring = ring::Ring::new(&vertices);
        for (j, row) in case["sides"].as_array().unwrap().iter().enumerate() {
            for (i, expected) in row.as_str().unwrap().chars().enumerate() {
                let point = [i as f64 / 2.0 - 1.0, j as f64 / 2.0 - 1.0];
                let got = match ring.side(point) {
                    ring::Side::Outside => 'o',
                    ring::Side::Boundary => 'b',
                    ring::Side::Inside => 'i',
                };
                assert_eq!(got, expected, "{point:?} of {vertices:?}");
            }
        }
    }
}

/// Checks one case of `segmented` in make.py.
fn check(case: &Value, tissue: &Tissue, levels: &[Level]) {
    let [size, step] = ["size", "step"].map(|key| case[key].as_u64().unwrap() as u32);
    let place = format!("{} {} {size} {step}", case["params"], case["select"]);
    assert_eq!(json!(tissue.threshold), case["threshold"], "{place}");
    assert_eq!(sha(&tissue.mask.data), case["mask"].as_str().unwrap(), "{place}");
    let lengths: Vec<Vec<usize>> = tissue.contours.iter().map(lengths).collect();
    assert_eq!(json!(lengths), case["contours"], "{place}");
    let rings = tissue.contours.iter().flat_map(|c| std::iter::once(&c.outer).chain(&c.holes));
    let bytes: Vec<u8> = rings.flatten().flatten().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(sha(&bytes), case["vertices"].as_str().unwrap(), "{place}");

    let select: Select = serde_json::from_value(case["select"].clone()).unwrap();
    let spec = Tiles { stride_px: Some(step), ..tiles(size, select) };
    let grid = TileGrid::on_tissue(&spec, levels, None, tissue).unwrap();
    assert_eq!(json!(grid.origins), case["coords"], "{place}");
    assert_eq!(grid.sources.len(), grid.origins.len());
    let used: std::collections::BTreeSet<_> = grid.sources.iter().collect();
    assert_eq!(json!(tissue.contours.len() - used.len()), case["dropped"], "{place}");

    let size: [usize; 2] = serde_json::from_value(case["heatmap_size"].clone()).unwrap();
    let side = |full: u32, small: usize| f64::from(full) / small as f64;
    let downsample = [side(levels[0].width, size[0]), side(levels[0].height, size[1])];
    let mask = tissue::rasterise(&tissue.contours, size[0], size[1], downsample);
    assert_eq!(sha(&mask.data), case["heatmap"].as_str().unwrap(), "{place}");
}

fn lengths(contour: &Contour) -> Vec<usize> {
    std::iter::once(&contour.outer).chain(&contour.holes).map(Vec::len).collect()
}

#[test]
fn segmentation_and_coordinates_equal_the_oracle() {
    let image = read_png(&golden("slide.png"));
    for case in read_json("slide.json").as_array().unwrap() {
        let [w, h]: [u32; 2] = serde_json::from_value(case["level0"].clone()).unwrap();
        let levels = [level(w, h, 1.0), level(300, 220, 32.05)];
        let params: ClamTissue = serde_json::from_value(case["params"].clone()).unwrap();
        let tissue = tissue::segment_image(&image, &levels, 1, &params).unwrap();
        check(case, &tissue, &levels);
    }
}

#[test]
fn a_real_slide_gives_the_oracle_s_coordinates() {
    let folder = std::env::var_os("HISTOKERN_TEST_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/slides"),
        PathBuf::from,
    );
    let path = folder.join("CMU-1-Small-Region.svs");
    if !path.exists() {
        eprintln!("skipped: {} is absent (set HISTOKERN_TEST_DATA)", path.display());
        return;
    }
    let slide = Slide::open(&path, &OpenOptions::default()).unwrap();
    for case in read_json("cmu.json").as_array().unwrap() {
        let params: ClamTissue = serde_json::from_value(case["params"].clone()).unwrap();
        let tissue = tissue::segment(&slide, &params).unwrap();
        check(case, &tissue, slide.levels());
    }
}

#[test]
fn region_tiles_equal_the_oracle() {
    let golden_tiles = read_json("regions.json");
    let slide = read_png(&golden("slide.png"));
    let text = json!({"positive": [{"name": "a", "vertices": golden_tiles["vertices"]}]});
    let found = regions::parse(&text.to_string(), 300, 220).unwrap();
    let levels = [level(300, 220, 1.0)];
    let side = golden_tiles["size"].as_u64().unwrap() as u32;
    let grid =
        TileGrid::on_regions(&tiles(side, Select::All), &levels, None, &found.regions).unwrap();
    let expected = golden_tiles["tiles"].as_array().unwrap();
    assert_eq!(grid.origins.len(), expected.len());
    for (&[x, y], expected) in grid.origins.iter().zip(expected) {
        assert_eq!((json!(x), json!(y)), (expected["x"].clone(), expected["y"].clone()));
        let mut tile = RgbImage::filled(side as usize, side as usize, [255; 3]);
        for (row, line) in tile.data.chunks_exact_mut(side as usize * 3).enumerate() {
            for (column, pixel) in line.as_chunks_mut::<3>().0.iter_mut().enumerate() {
                let (x, y) = (x as usize + column, y as usize + row);
                if x < slide.width && y < slide.height {
                    let at = (y * slide.width + x) * 3;
                    pixel.copy_from_slice(&slide.data[at..at + 3]);
                }
            }
        }
        found.regions[0].paint_outside(&mut tile, [x, y], 1.0);
        assert_eq!(sha(&tile.data), expected["tile"].as_str().unwrap(), "{x} {y}");
        let white = colour::white_fraction(&tile.data);
        assert_eq!(json!(white), expected["white"]);
        let max_white = golden_tiles["max_white"].as_f64().unwrap();
        assert_eq!(json!(white < max_white), expected["kept"]);
    }
}

fn mpp(x: f64, y: f64) -> Option<Mpp> {
    Some(Mpp { x, y, source: MppSource::ImageDescription })
}

#[test]
fn tiles_are_exact_micrometres_on_any_slide() {
    let levels = [level(100_000, 80_000, 1.0), level(25_000, 20_000, 4.000121)];
    let at = |wanted, size_px| Tiles { mpp: Some(wanted), ..tiles(size_px, Select::All) };
    // 256 px at 0.5 um on a slide of 0.2531 um: 505.7 px of level 0, every corner rounded alone.
    let grid = TileGrid::on_all(&at(0.5, 256), &levels, mpp(0.2531, 0.2531)).unwrap();
    assert_eq!((grid.level, grid.read_px), (0, 506));
    assert_eq!(grid.size_level0, 256.0 * 0.5 / 0.2531);
    assert_eq!(grid.origins[100], [(100.0 * 256.0 * 0.5 / 0.2531f64).round() as i64, 0]);
    // 4.000121 serves a ratio of 4, and 3.98 within the tolerance, but not 3.9.
    for (wanted, expected) in [(1.0, (1, 256)), (0.995, (1, 255)), (0.975, (0, 998))] {
        let grid = TileGrid::on_all(&at(wanted, 256), &levels, mpp(0.25, 0.25)).unwrap();
        assert_eq!((grid.level, grid.read_px), expected, "{wanted}");
    }
    // The last column and row overrun the slide: 100000 / 512 and 80000 / 512, rounded up.
    let grid = TileGrid::on_all(&at(0.5, 256), &levels, mpp(0.25, 0.25)).unwrap();
    assert_eq!(grid.origins.len(), 196 * 157);
    assert_eq!(grid.origins[196], [0, 512]);
    let overlapping = Tiles { stride_px: Some(192), ..at(0.5, 256) };
    let grid = TileGrid::on_all(&overlapping, &levels, mpp(0.25, 0.25)).unwrap();
    assert_eq!(grid.origins[1], [384, 0]);

    let no_size = TileGrid::on_all(&at(0.5, 256), &levels, None).unwrap_err();
    assert!(no_size.kind() == Kind::Usage && no_size.to_string().contains("--mpp-override"));
    let flat = TileGrid::on_all(&at(0.5, 256), &levels, mpp(0.25, 0.5)).unwrap_err();
    assert_eq!(flat.kind(), Kind::Unsupported);
    let tiny = TileGrid::on_all(&at(0.5, 256), &levels, mpp(1e-6, 1e-6)).unwrap_err();
    assert_eq!(tiny.kind(), Kind::Limit);
    let dense = Tiles { stride_px: Some(1), ..tiles(256, Select::All) };
    assert_eq!(TileGrid::on_all(&dense, &levels, None).unwrap_err().kind(), Kind::Limit);
    assert!(tiling::stride_for_overlap(256, 256).is_err());
    assert_eq!(tiling::stride_for_overlap(256, 64).unwrap(), 192);
}

#[test]
fn select_half_is_by_area_without_holes() {
    // A square of 1000 with a hole of 300: tiles of 200 from its corner.
    let square = |a: i32, b: i32| vec![[a, a], [b, a], [b, b], [a, b]];
    let contour = Contour { outer: square(100, 1100), holes: vec![square(350, 650)] };
    let tissue = Tissue { contours: vec![contour.clone(), contour], ..Tissue::default() };
    let levels = [level(2000, 2000, 1.0)];
    let grid = TileGrid::on_tissue(&tiles(200, Select::Half), &levels, None, &tissue).unwrap();
    // The box ends at 1100 inclusive, so a sixth row and column begin on it and hold no area.
    // Of the 25 others the one inside the hole and those three quarters in it go.
    let kept = |x: i64, y: i64| grid.origins.contains(&[x, y]);
    assert!(!kept(1100, 100) && kept(900, 900) && kept(300, 100));
    // 300..500 x 300..500: the hole covers 150 x 150 of it, more than half.
    assert!(!kept(300, 300) && kept(700, 300) && !kept(500, 500));
    // 500..700 x 100..300 is untouched; 500..700 x 300..500 loses 150 x 150.
    assert!(kept(500, 100) && !kept(500, 300));
    // The same contour twice: every tile twice, counted.
    assert_eq!(grid.duplicates * 2, grid.origins.len());
}

#[test]
fn tissue_inside_a_hole_survives_in_the_mask() {
    let square = |a: i32, b: i32| vec![[a, a], [b, a], [b, b], [a, b]];
    let island = Contour { outer: square(40, 60), holes: vec![] };
    let around = Contour { outer: square(0, 100), holes: vec![square(20, 80)] };
    let mask = tissue::rasterise(&[island, around], 11, 11, [10.0, 10.0]);
    let row =
        |y: usize| mask.data[y * 11..(y + 1) * 11].iter().map(|v| v / 255).collect::<Vec<_>>();
    assert_eq!(row(0), [1; 11]);
    // Hole edges are cleared, the outline's and the island's are not.
    assert_eq!(row(2), [1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    assert_eq!(row(5), [1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1]);
}

#[test]
fn the_segmented_level_follows_the_strict_rule_and_its_bound() {
    let levels = [level(90_000, 60_000, 1.0), level(1400, 900, 64.004), level(350, 220, 256.0)];
    let error = tissue::segmentation_level(&levels, 64.0).unwrap_err();
    assert!(error.kind() == Kind::Limit && error.to_string().contains("90000 x 60000"));
    assert_eq!(tissue::segmentation_level(&levels, 64.01).unwrap(), 1);
    assert_eq!(tissue::segmentation_level(&levels[..0], 64.0).unwrap_err().kind(), Kind::Usage);
}
