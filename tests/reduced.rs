//! JPEG 2000 slides read at reduced resolution, against OpenJPEG: levels, tiles, errors, and tiles of a
//! recipe end to end. `tests/golden/slides/make.py` says how slides and pictures were made.

use histokern::error::Kind;
use histokern::image::RgbImage;
use histokern::pipeline::decode::{Slot, Tally, TileReader, TileState};
use histokern::pipeline::{Job, outputs::clam_patches, prepare::Prepared};
use histokern::recipe::{Jpeg2000, Recipe, Select, Tiles};
use histokern::slide::{OpenOptions, Region, Scratch, Slide, TileIndex, TilePass};
use histokern::tiling;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/slides").join(name)
}

fn open(name: &str, reduced: bool) -> Slide {
    Slide::open(&golden(name), &OpenOptions { reduced, ..OpenOptions::default() }).unwrap()
}

fn whole(slide: &Slide, level: usize) -> RgbImage {
    let (width, height) = (slide.resolutions()[level].width, slide.resolutions()[level].height);
    slide.read_region(&Region { x: 0, y: 0, level, width, height }).unwrap().image
}

/// The cases of `make.py`: file, what is expected of it.
fn cases() -> Vec<(String, Value)> {
    let text = std::fs::read_to_string(golden("expected.json")).unwrap();
    let all: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    all.into_iter().filter(|(_, wanted)| wanted["reduced"].is_array()).collect()
}

#[test]
fn reduced_levels_have_the_pixels_of_openjpeg() {
    let mut pictures = 0;
    for (name, wanted) in cases() {
        let slide = open(&name, true);
        let sizes: Vec<_> = slide.resolutions().iter().map(|l| [l.width, l.height]).collect();
        let mut expected = vec![[39, 23]];
        expected.extend(serde_json::from_value::<Vec<[u32; 2]>>(wanted["sizes"].clone()).unwrap());
        assert_eq!(sizes, expected, "{name}");
        assert_eq!(slide.levels().len(), 1);
        for (i, truth) in wanted["reduced"].as_array().unwrap().iter().enumerate() {
            let factor = f64::from(2 << i);
            assert_eq!(slide.resolutions()[i + 1].downsample, factor, "{name}");
            let truth = whole(&open(truth.as_str().unwrap(), false), 0);
            let own = whole(&slide, i + 1);
            assert_eq!((own.width, own.height), (truth.width, truth.height));
            let most = own.data.iter().zip(&truth.data).map(|(a, b)| a.abs_diff(*b)).max();
            let bound = wanted["reduced_most"].as_u64().unwrap();
            assert!(u64::from(most.unwrap()) <= bound, "{name} 1/{factor}: {most:?}");
            pictures += 1;
        }
    }
    assert_eq!(pictures, 7);
}

#[test]
fn reduced_levels_are_offered_only_when_asked_for_and_where_the_file_has_none() {
    assert_eq!(open("j2k_reduced_rgb.svs", false).resolutions().len(), 1);
    assert_eq!(open("jpeg_420.svs", true).resolutions().len(), 1);
    // Not halved in the stream, so not here.
    assert_eq!(open("j2k_33003.svs", true).levels().len(), 1);
    let slide = open("j2k_reduced_rgb.svs", true);
    assert!(!slide.is_reduced(0) && slide.is_reduced(1));
    assert_eq!(slide.level_name(2), "level 0 at 1/4");
    assert_eq!(slide.best_level(4.0), 0);
    // A tile that holds less decides for all when its header is seen,
    assert_eq!(open("j2k_shallow_3.svs", true).resolutions().len(), 2);
    // and else does not keep the others from being halved, and is not made up.
    let slide = open("j2k_shallow_tile.svs", true);
    assert_eq!(slide.resolutions().len(), 3);
    let tile = |col| slide.read_tile(TileIndex { level: 2, col, row: 0 }, &mut Scratch::default());
    assert_eq!(tile(3).unwrap().image.data, vec![90; 4 * 4 * 3]);
    let error = tile(4).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    let text = error.to_string();
    for word in [
        "j2k_shallow_tile.svs",
        "level 0 at 1/4",
        "tile (4, 0)",
        "holds 1 wavelet decompositions",
        "jpeg2000 = \"full\"",
    ] {
        assert!(text.contains(word), "{text}: no {word}");
    }
}

#[test]
fn stored_levels_go_before_reduced_ones_and_missing_tiles_stay_what_they_are() {
    let slide = open("j2k_pyramid.svs", true);
    let found: Vec<_> = (0..slide.resolutions().len())
        .map(|i| (slide.level_name(i), slide.resolutions()[i].downsample))
        .collect();
    let named = |name: &str, downsample| (name.to_string(), downsample);
    assert_eq!(
        found,
        [
            named("level 0", 1.0),
            named("level 1", 4.0),
            named("level 0 at 1/2", 2.0),
            named("level 1 at 1/2", 8.0),
            named("level 1 at 1/4", 16.0),
            named("level 1 at 1/8", 32.0),
        ]
    );
    assert_eq!(slide.levels().len(), 2);
    let read = |level, x, y| {
        let region = Region { x, y, level, width: 1, height: 1 };
        let read = slide.read_region(&region).unwrap();
        (read.image.data[0], read.valid[0], read.missing.len())
    };
    // What a coarse level has lost is taken from a finer one; level 0 has none.
    for (level, x, pixel) in [
        (0, 0, (120, true, 0)),
        (2, 0, (120, true, 0)),
        (0, 95, (255, false, 1)),
        (2, 94, (255, false, 1)),
        (2, 16, (255, false, 1)),
        (1, 64, (120, true, 1)),
        (3, 64, (120, true, 1)),
        (4, 64, (120, true, 1)),
    ] {
        let y = if x > 90 { 30 } else { 0 };
        assert_eq!(read(level, x, y), pixel, "{} at {x}", slide.level_name(level));
    }
}

/// Sample i of the low band lies on pixel 2^r i; a region gets the samples whose middle is nearest.
#[test]
fn regions_begin_at_the_nearest_sample() {
    let slide = open("j2k_reduced_rgb.svs", true);
    for (level, factor) in [(1, 2i64), (2, 4), (3, 8)] {
        for x in -17i64..40 {
            let chosen = slide.to_level(level, x).unwrap();
            // Middle of the first pixel wanted, against the middle of the pixel a sample lies on.
            let away = |i: i64| ((2 * x + factor) - (2 * factor * i + 1)).abs();
            assert!((-9..40).all(|i| away(chosen) <= away(i)), "{x} at 1/{factor}: {chosen}");
        }
        let region = Region { x: 3, y: -1, level, width: 3, height: 3 };
        let [x, y] = [3, -1].map(|c| slide.to_level(level, c).unwrap());
        let (read, all) = (slide.read_region(&region).unwrap(), whole(&slide, level));
        for (i, pixel) in read.image.data.chunks(3).enumerate() {
            let (column, row) = (x + i as i64 % 3, y + i as i64 / 3);
            assert!(row >= 0, "{row}");
            let at = row as usize * all.width + column as usize;
            let inside = column < all.width as i64 && row < all.height as i64;
            let expected = if inside { &all.data[at * 3..at * 3 + 3] } else { &[255; 3][..] };
            assert_eq!(pixel, expected, "1/{factor} ({column}, {row})");
        }
    }
}

#[test]
fn the_grid_takes_the_coarsest_resolution_that_is_fine_enough() {
    let slide = open("j2k_reduced_rgb.svs", true);
    let grid = |mpp| {
        let tiles = Tiles { mpp: Some(mpp), select: Select::All, ..Tiles::of(4) };
        let grid = tiling::on_all(&slide, &tiles).unwrap();
        (grid.level, grid.read_px)
    };
    // Level 0 has 0.25 micrometres a pixel; the streams hold three decompositions.
    for (mpp, expected) in [
        (0.25, (0, 4)),
        (0.49, (0, 8)),
        (0.5, (1, 4)),
        (0.75, (1, 6)),
        (1.0, (2, 4)),
        (2.0, (3, 4)),
        (4.0, (3, 8)),
    ] {
        assert_eq!(grid(mpp), expected, "{mpp}");
    }
}

fn recipe(tiles: &str) -> Result<Recipe, String> {
    let text = format!(
        "schema = 1\nname = \"t\"\ntitle = \"t\"\nlicence = \"MIT\"\nsource = \"here\"\n[tissue]\n\
         method = \"none\"\n[tiles]\nsize_px = 8\nselect = \"all\"\n{tiles}\n[preprocess]\n\
         mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n[encoder]\nfamily = \"resnet18\"\n"
    );
    Recipe::parse(&text).map_err(|error| error.to_string())
}

#[test]
fn the_key_is_part_of_the_recipe_only_when_it_changes_something() {
    let default = recipe("mpp = 0.5").unwrap();
    assert_eq!(default.slide_tiles().unwrap().jpeg2000, Jpeg2000::Full);
    assert!(!toml::to_string(&default).unwrap().contains("jpeg2000"));
    let full = recipe("mpp = 0.5\njpeg2000 = \"full\"").unwrap();
    assert_eq!(toml::to_string(&default).unwrap(), toml::to_string(&full).unwrap());
    let reduced = recipe("mpp = 0.5\njpeg2000 = \"reduced\"").unwrap();
    assert!(toml::to_string(&reduced).unwrap().contains("jpeg2000 = \"reduced\""));
    for (tiles, line, words) in [
        ("mpp = 0.5\njpeg2000 = \"half\"", 12, ["`half`", "`full` or `reduced`"]),
        ("jpeg2000 = \"reduced\"", 11, ["goes with mpp", "level-0 pixels"]),
    ] {
        let error = recipe(tiles).unwrap_err();
        assert!(error.starts_with(&format!("line {line}: ")), "{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

/// The tiles of a slide as its encoder gets them, and what became of them.
fn tiles_of(name: &str, recipe: &Recipe, threads: usize) -> (Prepared, Vec<u8>, Tally) {
    let job = Job { name: "s".into(), path: golden(name), regions: None, mask: None };
    let prepared = Prepared::new(&job, 0, recipe, &OpenOptions::default()).unwrap();
    let (pixels, tally) = {
        let reader = TileReader::new(&prepared, recipe, threads, 0).unwrap();
        let count = prepared.grid.origins.len();
        let mut slot = Slot::new(Box::new(vec![0; count * 3 * 8 * 8]), count);
        let mut tally = Tally::new(count);
        reader.fill(0, &mut slot, &mut tally);
        (slot.pixels(slot.tiles.len()).to_vec(), tally)
    };
    (prepared, pixels, tally)
}

#[test]
fn tiles_of_a_recipe_are_halved_by_the_wavelet_and_made_smaller_by_pillow() {
    let name = "j2k_reduced_ycbcr.svs";
    let reduced = recipe("mpp = 0.6\njpeg2000 = \"reduced\"").unwrap();
    let (prepared, pixels, _) = tiles_of(name, &reduced, 2);
    assert_eq!(prepared.grid.origins[..2], [[0, 0], [19, 0]]);
    let truth = whole(&open("j2k_reduced_tiles.png", false), 0);
    assert_eq!(pixels[..truth.data.len()], truth.data);
    assert_eq!(pixels, tiles_of(name, &reduced, 1).1);
    assert!(prepared.warnings.iter().any(|w| w.contains("level 0 at 1/2")));
    // CLAM's file knows the levels of the file only.
    let half = recipe("mpp = 0.5\njpeg2000 = \"reduced\"").unwrap();
    let (at_half, ..) = tiles_of(name, &half, 1);
    assert_eq!((at_half.grid.size_px, at_half.grid.read_px), (8, 8));
    assert!(clam_patches(&at_half, "s", &at_half.grid.origins).is_none());
    // The same places, other pixels.
    let full = recipe("mpp = 0.6").unwrap();
    let (whole, others, _) = tiles_of(name, &full, 1);
    assert_eq!(whole.grid.origins, prepared.grid.origins);
    assert!(whole.warnings.is_empty() && others.len() == pixels.len() && others != pixels);
    // A slide of another codec has nothing to be reduced.
    let [a, b] = [&reduced, &full].map(|recipe| tiles_of("jpeg_420.svs", recipe, 1));
    assert!(a.1 == b.1 && a.0.warnings.is_empty());
}

#[test]
fn a_tile_that_holds_too_little_fails_alone() {
    let reduced = recipe("mpp = 1.0\njpeg2000 = \"reduced\"").unwrap();
    let (prepared, _, tally) = tiles_of("j2k_shallow_tile.svs", &reduced, 2);
    let mut failed = 0;
    for (state, origin) in tally.states.iter().zip(&prepared.grid.origins) {
        match state {
            TileState::Unread(why) => {
                assert!(origin[0] >= 64 && origin[1] < 32, "{origin:?}");
                assert!(why.contains("holds 1 wavelet decompositions"), "{why}");
                failed += 1;
            }
            state => assert_eq!(*state, TileState::Kept),
        }
    }
    assert_eq!((failed, tally.states.len()), (1, 6));
}

#[test]
fn broken_streams_are_errors_at_every_resolution() {
    for name in ["bad_j2k_cut.svs", "bad_j2k_packets.svs"] {
        let slide = open(name, true);
        assert!(slide.resolutions().len() > 1, "{name}");
        for (level, found) in slide.resolutions().iter().enumerate() {
            let region = Region { x: 0, y: 0, level, width: found.width, height: found.height };
            let text = slide.read_region(&region).unwrap_err().to_string();
            for word in [name, slide.level_name(level).as_str(), "tile (0, 0)", "JPEG 2000"] {
                assert!(text.contains(word), "{text}: no {word}");
            }
        }
    }
}

#[test]
fn a_pass_over_a_reduced_level_decodes_every_tile_once() {
    let slide = open("j2k_reduced_rgb.svs", true);
    let all = whole(&slide, 1);
    let regions: Vec<Region> = (0..4)
        .map(|i| Region { x: 8 * (i % 2), y: 8 * (i / 2), level: 1, width: 8, height: 8 })
        .collect();
    let pass = TilePass::new(&slide, 1, &regions).unwrap();
    let mut out = vec![0; 8 * 8 * 3];
    for (i, region) in regions.iter().enumerate() {
        pass.read(i, &mut out, &mut Scratch::default()).unwrap();
        let (x, y) = (region.x as usize / 2, region.y as usize / 2);
        for (row, line) in out.chunks(8 * 3).enumerate() {
            let from = ((y + row) * all.width + x) * 3;
            assert_eq!(line, &all.data[from..from + 8 * 3], "region {i} row {row}");
        }
    }
    assert_eq!((pass.decoded_tiles(), pass.native_tiles()), (4, 4));
}
