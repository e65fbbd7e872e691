//! Stain normalisation against torchstain's numpy backend and scikit-image
//! (`tests/golden/stain/make.py`), and on slides through the pipeline.

use histokern::image::RgbImage;
use histokern::pipeline::decode::{Slot, Tally, TileReader, encoder_input};
use histokern::pipeline::{Job, Prepared};
use histokern::recipe::{LabTarget, MacenkoStain, Recipe, ReinhardStain, Stain, StainTarget};
use histokern::slide::synthetic::layout::{self, Pyramid};
use histokern::slide::synthetic::{Compression, Endian, Samples, Specimen, SpecimenSpec};
use histokern::slide::{OpenOptions, Region, Slide};
use histokern::stain::deconvolution::{Deconvolution, RUIFROK};
use histokern::stain::{StainNormalizer, macenko};
use histokern::{Kind, stain};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/stain").join(name)
}

fn values() -> Value {
    serde_json::from_slice(&std::fs::read(golden("values.json")).unwrap()).unwrap()
}

fn picture(name: &str) -> RgbImage {
    let slide = Slide::open(&golden(name), &OpenOptions::default()).unwrap();
    let level = &slide.levels()[0];
    let region = Region { x: 0, y: 0, level: 0, width: level.width, height: level.height };
    slide.read_region(&region).unwrap().image
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn three(value: &Value) -> [f64; 3] {
    numbers(value).try_into().unwrap()
}

fn close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= tolerance * w.abs().max(1.0), "{got:?} is not {want:?}");
    }
}

/// Torchstain drops fractions after a sum in f64 or f32: a value next to a whole number may fall
/// on either side of it, which must be rare.
fn equal_within_rounding(got: &[u8], want: &RgbImage) {
    assert_eq!(got.len(), want.data.len());
    let off = got.iter().zip(&want.data).filter(|(g, w)| g != w).count();
    let far = got.iter().zip(&want.data).map(|(g, w)| g.abs_diff(*w)).max();
    assert!(far <= Some(1), "a value is {far:?} off");
    assert!(off * 500 <= got.len(), "{off} of {} values differ", got.len());
}

fn stains(value: &Value) -> StainTarget {
    let max = numbers(&value["max"]).try_into().unwrap();
    StainTarget { haematoxylin: three(&value["haematoxylin"]), eosin: three(&value["eosin"]), max }
}

fn apply(rule: Stain, image: &RgbImage) -> Vec<u8> {
    let fitted = StainNormalizer::fit(&rule, &image.data).unwrap().unwrap();
    let mut out = image.data.clone();
    fitted.apply(&mut out);
    out
}

#[test]
fn macenko_equals_torchstain() {
    let values = values();
    let rule = MacenkoStain::default();
    for name in ["source", "target"] {
        let found = macenko::stains(&rule, &picture(&format!("{name}.png")).data).unwrap();
        let want = stains(&values["macenko"][name]);
        close(&found.haematoxylin, &want.haematoxylin, 1e-9);
        close(&found.eosin, &want.eosin, 1e-9);
        close(&found.max, &want.max, 1e-9);
    }
    let source = picture("source.png");
    equal_within_rounding(&apply(Stain::Macenko(rule), &source), &picture("macenko_default.png"));
    let target = stains(&values["macenko"]["target"]);
    let rule = Stain::Macenko(MacenkoStain { target, ..rule });
    equal_within_rounding(&apply(rule, &source), &picture("macenko_target.png"));
}

#[test]
fn reinhard_equals_torchstain() {
    let values = values();
    let lab = |name: &str| LabTarget {
        mean: three(&values["lab"][name]["mean"]),
        sd: three(&values["lab"][name]["sd"]),
    };
    let source = picture("source.png");
    let rule = Stain::Reinhard(ReinhardStain { target: lab("target") });
    let Some(StainNormalizer::Reinhard(fitted)) =
        StainNormalizer::fit(&rule, &source.data).unwrap()
    else {
        panic!("another method was fitted");
    };
    close(&fitted.source.mean, &lab("source").mean, 2e-6);
    close(&fitted.source.sd, &lab("source").sd, 2e-6);
    equal_within_rounding(&apply(rule, &source), &picture("reinhard_target.png"));
}

#[test]
fn deconvolution_equals_scikit_image() {
    let values = values();
    let rows = |key: &str| -> Vec<[f64; 3]> {
        values[key].as_array().unwrap().iter().map(three).collect()
    };
    let pixels: Vec<[u8; 3]> = rows("pixels").into_iter().map(|p| p.map(|v| v as u8)).collect();
    let default = MacenkoStain::default().target;
    let two = Deconvolution::of_two(default.haematoxylin, default.eosin).unwrap();
    for (separation, key) in [(Deconvolution::new(RUIFROK).unwrap(), "hed"), (two, "two")] {
        let flat = pixels.concat();
        let channels: [Vec<f32>; 3] = std::array::from_fn(|s| separation.channel(s, &flat));
        for (i, (pixel, want)) in pixels.iter().zip(rows(key)).enumerate() {
            close(&separation.amounts(*pixel), &want, 1e-12);
            close(&channels.each_ref().map(|c| f64::from(c[i])), &want, 1e-6);
        }
    }
    let hed = Deconvolution::new(RUIFROK).unwrap();
    for (pixel, want) in pixels.iter().zip(rows("hed_clipped")) {
        close(&hed.amounts(*pixel).map(|v| v.max(0.0)), &want, 1e-12);
    }
    assert!(hed.amounts([0, 0, 0]).iter().all(|v| v.is_finite()));
    assert!(hed.channel(0, &[0, 0, 0])[0].is_finite());
    let error = Deconvolution::of_two([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
}

#[test]
fn pixels_that_determine_no_stain_are_refused_with_the_reason() {
    let (macenko, reinhard) =
        (Stain::Macenko(MacenkoStain::default()), Stain::Reinhard(ReinhardStain::default()));
    let white = vec![255; 30_000];
    let pink = [[200, 90, 150]; 10_000].concat();
    let few = picture("source.png").data[..99 * 3].to_vec();
    // Shades of one dye: densities on a line through nothing.
    let shades: Vec<u8> = (0..3000)
        .flat_map(|i| {
            [0.6, 0.7, 0.3].map(|d| (240.0 * (-d * 2.0 * f64::from(i) / 3000.0).exp()) as u8)
        })
        .collect();
    for (rule, pixels, word) in [
        (&macenko, &white, "0 of 10000 pixels absorb light"),
        (&macenko, &pink, "one colour"),
        (&macenko, &few, "99 pixels of tissue"),
        (&reinhard, &white, "do not vary in L"),
        (&reinhard, &pink, "do not vary in L"),
        (&reinhard, &few, "99 pixels of tissue"),
    ] {
        let error = StainNormalizer::fit(rule, pixels).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains(word), "{error}");
    }
    // Whether shades of one dye hold two is a matter of rounding to u8: never a panic or NaN.
    if let Ok(Some(StainNormalizer::Macenko(m))) = StainNormalizer::fit(&macenko, &shades) {
        assert!(m.matrix.as_flattened().iter().all(|v| v.is_finite()));
    }
    assert!(StainNormalizer::fit(&Stain::None, &white).unwrap().is_none());
}

#[test]
fn every_colour_has_a_colour_wherever_it_stands() {
    let source = picture("source.png");
    // All corners and a lattice of the colour cube, white and black among them.
    let lattice = || (0..=255u8).step_by(15);
    let cube: Vec<u8> = lattice()
        .flat_map(|r| lattice().flat_map(move |g| lattice().flat_map(move |b| [r, g, b])))
        .collect();
    for rule in [Stain::Macenko(MacenkoStain::default()), Stain::Reinhard(ReinhardStain::default())]
    {
        let fitted = StainNormalizer::fit(&rule, &source.data).unwrap().unwrap();
        let mut whole = cube.clone();
        fitted.apply(&mut whole);
        for (pixel, want) in cube.chunks(3).zip(whole.chunks(3)) {
            let mut alone = pixel.to_vec();
            fitted.apply(&mut alone);
            assert_eq!(alone, want, "{pixel:?} depends on its neighbours");
        }
        let mut white = [255; 3];
        fitted.apply(&mut white);
        assert!(white.iter().all(|&v| v > 200), "{white:?}");
        let text = serde_json::to_string(&fitted).unwrap();
        assert_eq!(serde_json::from_str::<StainNormalizer>(&text).unwrap(), fitted);
    }
}

/// A small slide with a pen stroke, as every synthetic specimen has one.
fn slide(folder: &Path) -> PathBuf {
    let path = folder.join("s.tif");
    let spec = SpecimenSpec { seed: 18, fraction: None, width: 1024, height: 1024, mpp: 0.5 };
    let specimen = Specimen::new(&spec);
    let pyramid = Pyramid {
        picture: &specimen,
        steps: vec![4],
        tile: 256,
        compression: Compression::Deflate { predictor: true },
        samples: Samples::Rgb,
        mpp: Some(0.5),
        big: false,
        endian: Endian::Little,
    };
    let mut file = std::fs::File::create(&path).unwrap();
    layout::generic(&pyramid).write(&mut file).unwrap();
    path
}

fn recipe(stain: &str, preprocess: &str) -> Recipe {
    let text = format!(
        "schema = 1\nname = \"t\"\ntitle = \"t\"\nlicence = \"MIT\"\nsource = \"here\"\n[tissue]\n\
         method = \"clam\"\nmin_area = 0.1\n[tiles]\nsize_px = 128\n{stain}\n[preprocess]\n{preprocess}\n\
         mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n[encoder]\nfamily = \"resnet18\"\n"
    );
    Recipe::parse(&text).unwrap()
}

/// The first slot of a slide's tiles.
fn first_tiles(job: &Job, recipe: &Recipe, threads: usize) -> (Prepared, Vec<u8>, Vec<usize>) {
    let prepared = Prepared::new(job, 0, recipe, &OpenOptions::default()).unwrap();
    let (pixels, tiles) = {
        let reader = TileReader::new(&prepared, recipe, threads, 0).unwrap();
        let bytes = 3 * (recipe.input_px() as usize).pow(2);
        let mut slot = Slot::new(Box::new(vec![0; 8 * bytes]), 8);
        let mut tally = Tally::new(prepared.grid.origins.len());
        reader.fill(0, &mut slot, &mut tally);
        (slot.pixels(slot.tiles.len()).to_vec(), slot.tiles.clone())
    };
    (prepared, pixels, tiles)
}

#[test]
fn tiles_of_a_slide_are_normalised_after_the_filters_and_before_the_resize() {
    let folder = tempfile::tempdir().unwrap();
    let path = slide(folder.path());
    let job = Job { name: "s".into(), path, regions: None, mask: None };
    for preprocess in ["", "resize = 96"] {
        let (_, own, tiles) = first_tiles(&job, &recipe("", ""), 1);
        let with = recipe("[stain]\nmethod = \"macenko\"", preprocess);
        let (prepared, normalised, same) = first_tiles(&job, &with, 2);
        assert_eq!(tiles, same);
        assert_eq!(normalised, first_tiles(&job, &with, 1).1, "threads change pixels");
        let stain = prepared.stain.clone().expect("a fit");
        let bytes = 3 * 128 * 128;
        let mut want = Vec::new();
        for tile in own.chunks(bytes) {
            let mut tile = tile.to_vec();
            stain.apply(&mut tile);
            let image = RgbImage { width: 128, height: 128, data: tile };
            want.extend(encoder_input(&image, &recipe("", preprocess)).unwrap());
        }
        assert!(!want.is_empty() && normalised == want, "{preprocess:?}");
    }
}

/// The stains that were planted are found although there is a pen stroke on the tissue.
#[test]
fn a_pen_stroke_is_not_taken_for_a_stain() {
    let folder = tempfile::tempdir().unwrap();
    let job = Job { name: "s".into(), path: slide(folder.path()), regions: None, mask: None };
    let open = OpenOptions::default();
    let with = recipe("[stain]\nmethod = \"macenko\"", "");
    let prepared = Prepared::new(&job, 0, &with, &open).unwrap();
    let Some(StainNormalizer::Macenko(fit)) = prepared.stain.as_deref() else { panic!("no fit") };
    // Haematoxylin is planted near (0.640, 0.700, 0.310), eosin near (0.130, 0.880, 0.420).
    close(&fit.source.haematoxylin, &[0.64, 0.70, 0.31], 0.13);
    close(&fit.source.eosin, &[0.13, 0.88, 0.42], 0.13);
    // With the stroke, whose ink absorbs red and little green, it would be found instead.
    let pixels = stain_pixels_with_ink(&prepared);
    let naive = macenko::stains(&MacenkoStain::default(), &pixels).unwrap();
    assert!(naive.haematoxylin[0] > naive.haematoxylin[1] + 0.2, "{naive:?}: no stroke to resist");
}

fn stain_pixels_with_ink(prepared: &Prepared) -> Vec<u8> {
    let level = &prepared.slide.levels()[0];
    let region = Region { x: 0, y: 0, level: 0, width: level.width, height: level.height };
    prepared.slide.read_region(&region).unwrap().image.data
}

#[test]
fn a_slide_without_a_stain_fails_and_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pink.png");
    let image = RgbImage::filled(300, 300, [200, 90, 150]);
    histokern::report::png::write_rgb(&path, &image).unwrap();
    let job = Job { name: "pink".into(), path, regions: None, mask: None };
    let text = recipe("[stain]\nmethod = \"macenko\"", "");
    let whole = Recipe { tissue: histokern::recipe::Tissue::None, ..text };
    let error = Prepared::new(&job, 0, &whole, &OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("pink.png: stain: ") && error.contains("one colour"), "{error}");
    let error = encoder_input(&image, &whole).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert_eq!(stain::MIN_PIXELS, 100);
}
