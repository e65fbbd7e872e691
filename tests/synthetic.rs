//! The synthetic slide writer against an independent decoder, and the generator against its truth.
//!
//! `tests/oracles/synthetic.py` checks the same files with OpenSlide and tifffile.

use histokern::image::RgbImage;
use histokern::slide::synthetic::layout::{self, Aperio, Pyramid};
use histokern::slide::synthetic::{
    Chunks, Compression, Directory, Endian, Jpeg, NucleusClass, Part, Picture, Pixels, Samples,
    Sampling, Specimen, SpecimenSpec, TiffFile, label, luma, overview,
};
use std::io::Cursor;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;

/// A picture with runs, ramps and noise, so that every code path of every codec is taken.
fn picture(width: usize, height: usize) -> RgbImage {
    let mut data = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let noise = ((x * 7919 + y * 104_729) ^ (x * y)) as u8;
            data.extend(match (x / 40 + y / 40) % 3 {
                0 => [x as u8, y as u8, (x + y) as u8],
                1 => [250, 250, 250],
                _ => [noise, noise.wrapping_mul(3), x as u8],
            });
        }
    }
    RgbImage { width, height, data }
}

/// A smooth picture, which JPEG keeps closely.
fn smooth(width: usize, height: usize) -> RgbImage {
    let mut data = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let (u, v) = (x * 255 / width, y * 255 / height);
            data.extend([u as u8, v as u8, (255 - (u + v) / 2) as u8]);
        }
    }
    RgbImage { width, height, data }
}

fn gray(image: &RgbImage) -> Vec<u8> {
    image.data.chunks_exact(3).map(|p| luma([p[0], p[1], p[2]])).collect()
}

fn bytes(file: &TiffFile) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let length = file.write(&mut out).unwrap();
    assert_eq!(length, out.get_ref().len() as u64);
    out.into_inner()
}

fn classic(directories: Vec<Directory>) -> TiffFile {
    TiffFile { big: false, endian: Endian::Little, directories }
}

fn decoder(file: &[u8]) -> Decoder<Cursor<&[u8]>> {
    Decoder::new(Cursor::new(file)).unwrap().with_limits(Limits::unlimited())
}

fn decode(decoder: &mut Decoder<Cursor<&[u8]>>) -> (u32, u32, Vec<u8>) {
    let (width, height) = decoder.dimensions().unwrap();
    let DecodingResult::U8(data) = decoder.read_image().unwrap() else { panic!("8 bit") };
    (width, height, data)
}

/// JFIF 1.02; the decoder hands YCbCr out as it is stored.
fn ycbcr_to_rgb(pixel: &mut [u8]) {
    let [y, cb, cr] = [0, 1, 2].map(|c| f64::from(pixel[c]));
    let (cb, cr) = (cb - 128.0, cr - 128.0);
    let rgb = [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb];
    pixel.copy_from_slice(&rgb.map(|v| v.round().clamp(0.0, 255.0) as u8));
}

/// Box averages by the definition.
fn reduce(image: &RgbImage, factor: usize) -> RgbImage {
    let (width, height) = (image.width / factor, image.height / factor);
    let area = factor * factor;
    let mut data = Vec::new();
    for y in 0..height {
        for x in 0..width {
            for c in 0..3 {
                let sum: usize = (0..area)
                    .map(|k| {
                        let (yy, xx) = (y * factor + k / factor, x * factor + k % factor);
                        usize::from(image.data[(yy * image.width + xx) * 3 + c])
                    })
                    .sum();
                data.push(((2 * sum + area) / (2 * area)) as u8);
            }
        }
    }
    RgbImage { width, height, data }
}

const LOSSLESS: [Compression; 6] = [
    Compression::None,
    Compression::PackBits,
    Compression::Lzw { predictor: false },
    Compression::Lzw { predictor: true },
    Compression::Deflate { predictor: false },
    Compression::Deflate { predictor: true },
];

#[test]
fn lossless_layouts_decode_to_the_picture() {
    let picture = picture(333, 217);
    let gray = gray(&picture);
    let variants: Vec<_> = [Endian::Little, Endian::Big]
        .into_iter()
        .flat_map(|e| [(false, e, Samples::Rgb), (true, e, Samples::Rgb), (true, e, Samples::Gray)])
        .collect();
    for compression in LOSSLESS {
        for chunks in [Chunks::Tiles { width: 64, height: 48 }, Chunks::Strips { rows: 50 }] {
            // The decoder reads tiles row by row and then misses the end code of LZW.
            let tiles = matches!(chunks, Chunks::Tiles { .. });
            if tiles && matches!(compression, Compression::Lzw { .. }) {
                continue;
            }
            for &(big, endian, samples) in &variants {
                let base = Directory::new(Pixels::Picture(&picture), chunks, compression);
                let directories = vec![Directory { samples, ..base }];
                let file = bytes(&TiffFile { big, endian, directories });
                let (width, height, data) = decode(&mut decoder(&file));
                let what = format!("{compression:?} {chunks:?} {big} {endian:?} {samples:?}");
                assert_eq!((width, height), (333, 217), "{what}");
                let expected = if samples == Samples::Gray { &gray } else { &picture.data };
                assert!(&data == expected, "{what}: pixels differ");
            }
        }
    }
}

#[test]
fn lzw_tiles_decode_to_the_picture() {
    let picture = picture(100, 64);
    let chunks = Chunks::Tiles { width: 64, height: 64 };
    let compression = Compression::Lzw { predictor: false };
    let base = Directory::new(Pixels::Picture(&picture), chunks, compression);
    let file = bytes(&classic(vec![Directory { padding: [9, 8, 7], ..base }]));
    let mut tags = decoder(&file);
    let mut list = |tag| tags.get_tag_u64_vec(tag).unwrap();
    let (offsets, counts) = (list(Tag::TileOffsets), list(Tag::TileByteCounts));
    for tile in 0..2 {
        let start = offsets[tile] as usize;
        let stored = &file[start..start + counts[tile] as usize];
        let mut decoder = weezl::decode::Decoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
        let data = decoder.decode(stored).unwrap();
        assert_eq!(data.len(), 64 * 64 * 3);
        for (i, pixel) in data.chunks(3).enumerate() {
            let (x, y) = (tile * 64 + i % 64, i / 64);
            let at = (y * 100 + x) * 3;
            let expected = if x < 100 { &picture.data[at..at + 3] } else { &[9, 8, 7] };
            assert_eq!(pixel, expected, "tile {tile} at {x}, {y}");
        }
    }
}

#[test]
fn jpeg_streams_decode_close_to_the_picture() {
    let picture = smooth(200, 120);
    for chunks in [Chunks::Tiles { width: 64, height: 64 }, Chunks::Strips { rows: 32 }] {
        for (samples, sampling) in [
            (Samples::YCbCr, Sampling::S444),
            (Samples::YCbCr, Sampling::S422),
            (Samples::YCbCr, Sampling::S420),
            (Samples::Gray, Sampling::S444),
        ] {
            for shared_tables in [true, false] {
                let jpeg = Jpeg { quality: 95, sampling, shared_tables };
                let compression = Compression::Jpeg(jpeg);
                let base = Directory::new(Pixels::Picture(&picture), chunks, compression);
                let file = bytes(&classic(vec![Directory { samples, ..base }]));
                let (_, _, mut data) = decode(&mut decoder(&file));
                if samples == Samples::YCbCr {
                    data.chunks_exact_mut(3).for_each(ycbcr_to_rgb);
                }
                let expected = match samples {
                    Samples::Gray => gray(&picture),
                    _ => picture.data.clone(),
                };
                assert_eq!(data.len(), expected.len());
                // Beyond column 192 and row 112 a block also holds padding, which rings inwards.
                let row = data.len() / 120;
                let worst = (0..112 * row)
                    .filter(|i| i % row < row * 192 / 200)
                    .map(|i| data[i].abs_diff(expected[i]))
                    .max();
                assert!(worst < Some(14), "{jpeg:?} {samples:?} {chunks:?}: off by {worst:?}");
            }
        }
    }
}

#[test]
fn aperio_chain_holds_levels_thumbnail_label_and_macro() {
    let (picture, label) = (picture(517, 389), picture(90, 70));
    let pyramid = Pyramid { steps: vec![2, 2], ..Pyramid::new(&picture) };
    let extras = Aperio {
        label: Some(&label),
        overview: Some(&label),
        thumbnail: true,
        app_mag: Some(20.0),
        keys: vec![("Seed".into(), "7".into())],
    };
    let file = bytes(&layout::aperio(&pyramid, &extras));
    let mut decoder = decoder(&file);
    let half = reduce(&picture, 2);
    let quarter = reduce(&half, 2);
    let expected = [&picture, &quarter, &half, &quarter, &label, &label];
    for (i, image) in expected.iter().enumerate() {
        let (width, height, data) = decode(&mut decoder);
        assert_eq!((width as usize, height as usize), (image.width, image.height), "directory {i}");
        assert!(data == image.data, "directory {i}: pixels differ");
        let text = decoder.get_tag_ascii_string(Tag::ImageDescription).unwrap();
        assert!(text.starts_with("Aperio "), "{text}");
        let line = "\r\n517x389 [0,0 517x389] (64x64) ZIP|AppMag = 20|MPP = 0.5000|Seed = 7";
        assert!(i > 0 || text.ends_with(line), "{text}");
        assert_eq!(decoder.more_images(), i + 1 < expected.len());
        if decoder.more_images() {
            decoder.next_image().unwrap();
        }
    }
}

#[test]
fn missing_tiles_have_offset_and_count_zero() {
    let picture = picture(200, 130);
    let chunks = Chunks::Tiles { width: 64, height: 64 };
    let mut base = Directory::new(Pixels::Picture(&picture), chunks, Compression::None);
    base.missing = vec![5, 11];
    let file = bytes(&classic(vec![base]));
    let mut decoder = decoder(&file);
    let mut list = |tag| decoder.get_tag_u64_vec(tag).unwrap();
    let (offsets, counts) = (list(Tag::TileOffsets), list(Tag::TileByteCounts));
    assert_eq!(offsets.len(), 12);
    for i in 0..12 {
        assert_eq!(offsets[i] == 0, [5, 11].contains(&i), "offset of tile {i}");
        assert_eq!(counts[i], if [5, 11].contains(&i) { 0 } else { 64 * 64 * 3 });
    }
}

#[test]
fn impossible_files_are_refused() {
    let picture = picture(20, 20);
    let tiles = Chunks::Tiles { width: 16, height: 16 };
    let good = Directory::new(Pixels::Picture(&picture), tiles, Compression::None);
    let refuse = |directories: Vec<Directory>, word: &str| {
        let error = classic(directories).write(Cursor::new(Vec::new())).unwrap_err();
        assert_eq!(error.kind(), histokern::Kind::Usage);
        assert!(error.to_string().contains(word), "{error}");
    };
    refuse(vec![], "main chain");
    refuse(vec![Directory { samples: Samples::YCbCr, ..good.clone() }], "directory 0: YCbCr");
    let odd = Chunks::Tiles { width: 20, height: 16 };
    refuse(vec![Directory { chunks: odd, ..good.clone() }], "multiples of 16");
    let reduced = |of, factor| Pixels::Reduced { of, factor };
    refuse(vec![good.clone(), Directory { pixels: reduced(0, 21), ..good.clone() }], "0 pixels");
    refuse(vec![good.clone(), Directory { pixels: reduced(1, 2), ..good.clone() }], "itself");
    refuse(vec![good.clone(), Directory { pixels: reduced(9, 2), ..good.clone() }], "from 9");
    let orphan = Directory { parent: Some(1), ..good.clone() };
    refuse(vec![good, orphan], "follows its parent");
}

#[test]
fn a_picture_larger_than_a_band_is_seamless() {
    struct Rows;
    impl Picture for Rows {
        fn size(&self) -> [u32; 2] {
            [48, 1000]
        }
        fn render(&self, y: u32, out: &mut [u8]) {
            for (k, row) in out.chunks_mut(48 * 3).enumerate() {
                row.fill((y as usize + k) as u8);
            }
        }
    }
    let pyramid = Pyramid { steps: vec![], tile: 80, ..Pyramid::new(&Rows) };
    let file = bytes(&layout::generic(&pyramid));
    let (_, _, data) = decode(&mut decoder(&file));
    for (y, row) in data.chunks(48 * 3).enumerate() {
        assert!(row.iter().all(|&v| v == y as u8), "row {y}");
    }
}

fn specimen(seed: u64, fraction: f64, side: u32) -> Specimen {
    let fraction = Some(fraction);
    Specimen::new(&SpecimenSpec { seed, fraction, width: side, height: side, mpp: 0.5 })
}

#[test]
fn same_seed_same_bytes_whatever_the_threads() {
    let write = |threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let specimen = specimen(seed, 0.3, 700);
            let compression = Compression::Jpeg(Jpeg::new(80));
            let pyramid = Pyramid { compression, steps: vec![4], ..Pyramid::new(&specimen) };
            let (label, overview) = (label(seed), overview(&specimen));
            let extras = Aperio {
                label: Some(&label),
                overview: Some(&overview),
                thumbnail: true,
                ..Aperio::default()
            };
            bytes(&layout::aperio(&pyramid, &extras))
        })
    };
    let one = write(1, 11);
    assert!(one == write(2, 11), "1 and 2 threads differ");
    assert!(one == write(3, 11), "1 and 3 threads differ");
    assert!(one != write(1, 12), "the seed has no effect");
}

#[test]
fn rows_do_not_depend_on_the_rows_asked_with_them() {
    let specimen = specimen(4, 0.5, 640);
    let mut whole = vec![0; 640 * 640 * 3];
    specimen.render(0, &mut whole);
    for (y, rows) in [(0, 1), (31, 2), (333, 47), (639, 1)] {
        let mut part = vec![0; rows * 640 * 3];
        specimen.render(y as u32, &mut part);
        assert!(part == whole[y * 640 * 3..][..part.len()], "rows {y} and {rows} more");
    }
}

#[test]
fn counted_share_is_the_planted_one_within_sampling_error() {
    for (seed, fraction) in [(1, 0.0), (2, 0.12), (3, 0.5), (4, 0.85), (5, 1.0)] {
        let truth = specimen(seed, fraction, 4096).truth();
        let n = (truth.nuclei.tumour + truth.nuclei.proliferating) as f64;
        assert!(n > 2000.0, "seed {seed}: only {n} tumour nuclei");
        let sd = (fraction * (1.0 - fraction) / n).sqrt();
        let counted = truth.counted_fraction.unwrap();
        assert!((counted - fraction).abs() <= 3.5 * sd, "seed {seed}: {counted} for {fraction}");
        assert_eq!(truth.planted_fraction, fraction);
    }
}

#[test]
fn truth_agrees_with_itself_and_with_the_pixels() {
    let specimen = specimen(8, 0.4, 2048);
    let truth = specimen.truth();
    let listed = |class| truth.centers.get(&class).map_or(0, Vec::len);
    assert_eq!(listed(NucleusClass::Tumour), truth.nuclei.tumour);
    assert_eq!(listed(NucleusClass::Proliferating), truth.nuclei.proliferating);
    assert_eq!(listed(NucleusClass::Stromal), truth.nuclei.stromal);
    assert_eq!(listed(NucleusClass::Lymphocyte), truth.nuclei.lymphocyte);
    let [dense, sparse] = &truth.parts;
    assert_eq!(dense.nuclei.tumour + sparse.nuclei.tumour, truth.nuclei.tumour);
    let density = |p: &Part| (p.nuclei.tumour + p.nuclei.proliferating) as f64 / p.tumour_mm2;
    assert!(density(dense) > 1.4 * density(sparse), "{} {}", density(dense), density(sparse));

    // Red light falls in a nucleus far below what surrounds it.
    let mut pixels = vec![0; 2048 * 2048 * 3];
    specimen.render(0, &mut pixels);
    let red = |x: f32, y: f32| {
        let at = |v: f32| (v.round() as usize).min(2047);
        f64::from(pixels[(at(y) * 2048 + at(x)) * 3])
    };
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let lymphocytes = &truth.centers[&NucleusClass::Lymphocyte];
    let inside: Vec<f64> = lymphocytes.iter().map(|&[x, y]| red(x, y)).collect();
    let around: Vec<f64> = lymphocytes.iter().map(|&[x, y]| red(x + 9.0, y)).collect();
    assert!(mean(&inside) + 40.0 < mean(&around), "{} {}", mean(&inside), mean(&around));
}

#[test]
fn the_demonstration_recipe_is_valid() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/demo");
    let recipe = histokern::recipe::Recipe::read(&folder.join("recipe.toml")).unwrap();
    assert_eq!(recipe.input_px(), 128);
    assert_eq!(recipe.heads[0].transform, histokern::recipe::Transform::Sigmoid);
    assert!(recipe.notice.contains("synthetic"));
}

#[test]
fn aperio_rgb_jpeg_is_rgb_once_a_decoder_is_told() {
    let picture = smooth(64, 64);
    let chunks = Chunks::Tiles { width: 64, height: 64 };
    let compression = Compression::Jpeg(Jpeg::new(90));
    let base = Directory::new(Pixels::Picture(&picture), chunks, compression);
    let file = bytes(&classic(vec![base]));
    let mut tags = decoder(&file);
    let start = tags.get_tag_u64_vec(Tag::TileOffsets).unwrap()[0] as usize;
    let length = tags.get_tag_u64_vec(Tag::TileByteCounts).unwrap()[0] as usize;
    let tables = tags.get_tag_u8_vec(Tag::JPEGTables).unwrap();
    let worst = |marker: &[u8]| {
        let mut stream = tables[..2].to_vec();
        stream.extend(marker);
        stream.extend(&tables[2..tables.len() - 2]);
        stream.extend(&file[start + 2..start + length]);
        let data = jpeg_decoder::Decoder::new(&stream[..]).decode().unwrap();
        data.iter().zip(&picture.data).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    };
    // Adobe's marker with transform 0 says that nothing was transformed.
    let adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00";
    assert!(worst(adobe) < 16, "off by {}", worst(adobe));
    assert!(
        worst(b"") > 100,
        "without the marker decoders take it for YCbCr, as with a real slide"
    );
}
