//! Resampling, colour, filters and polygon filling against Pillow and OpenCV
//! (`tests/golden/image/make.py`).

use histokern::image::resample::Isa;
use histokern::image::{GrayImage, Resampler, RgbImage, colour, filter};
use histokern::recipe::Interpolation;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/image").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden(name)).unwrap()).unwrap()
}

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn picture() -> RgbImage {
    let file = std::io::BufReader::new(std::fs::File::open(golden("picture.png")).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut data = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut data).unwrap();
    assert_eq!(info.color_type, png::ColorType::Rgb);
    RgbImage { width: info.width as usize, height: info.height as usize, data }
}

/// `waves` of make.py.
fn waves(width: usize, height: usize) -> RgbImage {
    let mut data = Vec::new();
    for y in 0..height as u32 {
        for x in 0..width as u32 {
            for c in 0..3 {
                data.push((x * x * 3 + y * 7 + c * 91 + (x ^ (y * 5)) * (c + 3)) as u8);
            }
        }
    }
    RgbImage { width, height, data }
}

fn plane(image: &RgbImage, channel: usize) -> GrayImage {
    let data = image.data.iter().skip(channel).step_by(3).copied().collect();
    GrayImage { width: image.width, height: image.height, data }
}

#[test]
fn resize_equals_pillow_bit_for_bit() {
    let (values, picture) = (json("values.json"), picture());
    // One scratch for all: what an earlier call left in it must not matter.
    let mut scratch = Vec::new();
    let cases = values["resize"].as_array().unwrap();
    assert!(cases.len() > 40);
    for case in cases {
        let input = match case["input"].as_array() {
            Some(s) => waves(s[0].as_u64().unwrap() as usize, s[1].as_u64().unwrap() as usize),
            None => picture.clone(),
        };
        let size = [0, 1].map(|i| case["size"][i].as_u64().unwrap() as usize);
        let filter: Interpolation = serde_json::from_value(case["filter"].clone()).unwrap();
        let (w, h) = (input.width, input.height);
        let resampler = match case["box"].as_array() {
            None => Resampler::new(w, h, size[0], size[1], filter),
            Some(part) => {
                let part = [0, 1, 2, 3].map(|i| part[i].as_f64().unwrap() as f32);
                Resampler::with_box(w, h, part, size[0], size[1], filter)
            }
        };
        let resampler = resampler.unwrap();
        for isa in instruction_sets() {
            let resampler = resampler.clone().with_isa(isa).unwrap();
            let mut out = vec![77; size[0] * size[1] * 3];
            resampler.run(&input.data, &mut out, &mut scratch);
            assert_eq!(sha(&out), case["sha256"].as_str().unwrap(), "{isa}: {case}");
        }
    }
}

fn instruction_sets() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

/// First sample and weights, with 22 fraction bits, of each of `out` samples: Pillow's formula,
/// written a second time so that nothing is judged by itself.
fn weights(length: usize, out: usize, filter: Interpolation) -> Vec<(usize, Vec<i64>)> {
    let scale = length as f64 / out as f64;
    let (radius, curve): (f64, fn(f64) -> f64) = match filter {
        Interpolation::Bicubic => (2.0, |x| match x.abs() {
            x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            _ => 0.0,
        }),
        _ => (1.0, |x| (1.0 - x.abs()).max(0.0)),
    };
    let stretch = scale.max(1.0);
    let sample = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        let first = (center - radius * stretch + 0.5).max(0.0) as usize;
        let end = ((center + radius * stretch + 0.5) as usize).min(length);
        let at = |k: usize| curve((k as f64 - center + 0.5) * (1.0 / stretch));
        let total: f64 = (first..end).map(at).sum();
        let whole = |k| (at(k) / total * f64::from(1 << 22)).round() as i64;
        (first, (first..end).map(whole).collect())
    };
    (0..out).map(sample).collect()
}

/// The sum of `weights` and pixels `at(k)`, rounded and clipped.
fn pixel(weights: &[i64], at: impl Fn(usize) -> u8) -> u8 {
    let sum: i64 = weights.iter().enumerate().map(|(k, w)| w * i64::from(at(k))).sum();
    ((sum + (1 << 21)) >> 22).clamp(0, 255) as u8
}

/// Rows, then columns.
fn plain_resize(image: &RgbImage, size: [usize; 2], filter: Interpolation) -> Vec<u8> {
    let (across, down) =
        (weights(image.width, size[0], filter), weights(image.height, size[1], filter));
    let mut between = Vec::new();
    for row in image.data.chunks_exact(image.width * 3) {
        for (first, weights) in &across {
            between.extend([0, 1, 2].map(|c| pixel(weights, |k| row[(first + k) * 3 + c])));
        }
    }
    let len = size[0] * 3;
    let sums = |(first, weights): &(usize, Vec<i64>)| -> Vec<u8> {
        (0..len).map(|i| pixel(weights, |k| between[(first + k) * len + i])).collect()
    };
    down.iter().flat_map(sums).collect()
}

/// xorshift64.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Samples that sums find hard. Windows that do not overlap are filled so that their sum lies as close
/// to where rounding changes as some tries find, or with 255 where weights are positive and 0 where
/// they are negative, which gives the largest sums.
fn hard(length: usize, weights: &[(usize, Vec<i64>)], state: &mut u64) -> Vec<u8> {
    let mut out: Vec<u8> = (0..length).map(|_| random(state) as u8).collect();
    let mut done = 0;
    for (i, (first, weights)) in weights.iter().enumerate().filter(|(_, w)| !w.1.is_empty()) {
        if *first < done {
            continue;
        }
        done = first + weights.len();
        let window = &mut out[*first..done];
        if i % 5 == 0 {
            window.iter_mut().zip(weights).for_each(|(p, &w)| *p = if w > 0 { 255 } else { 0 });
            continue;
        }
        let tries = (0..100).map(|_| weights.iter().map(|_| random(state) as u8).collect());
        let distance = |pixels: &Vec<u8>| {
            let sum: i64 = weights.iter().zip(pixels).map(|(w, &p)| w * i64::from(p)).sum();
            let above = (sum + (1 << 21)).rem_euclid(1 << 22);
            above.min((1 << 22) - 1 - above)
        };
        window.copy_from_slice(&tries.min_by_key(distance).unwrap());
    }
    out
}

#[test]
fn resize_is_the_exact_sum_on_every_instruction_set() {
    let (mut state, mut scratch) = (9, Vec::new());
    let sizes = [
        [512, 40, 256, 20],
        [40, 512, 20, 256],
        [448, 19, 224, 23],
        [598, 21, 299, 10],
        [512, 30, 224, 13],
        [256, 8, 224, 7],
        [271, 17, 299, 19],
        [13, 271, 15, 299],
        [1000, 12, 333, 4],
        [9, 1000, 7, 333],
        [1024, 16, 256, 4],
        [2000, 9, 31, 5],
        [5, 2000, 3, 31],
        [65, 7, 64, 5],
        [3, 2, 50, 31],
        [2, 3, 1, 1],
        [21, 21, 22, 22],
    ];
    for ([w, h, to_w, to_h], filter) in sizes
        .into_iter()
        .flat_map(|size| [(size, Interpolation::Bilinear), (size, Interpolation::Bicubic)])
    {
        let row = hard(w, &weights(w, to_w, filter), &mut state);
        let row: Vec<u8> = row.into_iter().flat_map(|value| [value; 3]).collect();
        let column = hard(h, &weights(h, to_h, filter), &mut state);
        let mut any = |_: usize| random(&mut state) as u8;
        let pictures: [(&str, Vec<u8>); 5] = [
            ("random", (0..w * h * 3).map(&mut any).collect()),
            ("black and white", (0..w * h * 3).map(|i| any(i) / 128 * 255).collect()),
            ("stripes", (0..w * h * 3).map(|i| (i / 3 % 2) as u8 * 255).collect()),
            ("hard rows", row.repeat(h)),
            ("hard columns", column.iter().flat_map(|&value| vec![value; w * 3]).collect()),
        ];
        let resampler = Resampler::new(w, h, to_w, to_h, filter).unwrap();
        for (name, data) in pictures {
            let image = RgbImage { width: w, height: h, data };
            let expected = plain_resize(&image, [to_w, to_h], filter);
            for isa in instruction_sets() {
                let resampler = resampler.clone().with_isa(isa).unwrap();
                let mut out = vec![77; to_w * to_h * 3];
                resampler.run(&image.data, &mut out, &mut scratch);
                let wrong = out.iter().zip(&expected).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "{isa} {filter:?} {w}x{h} to {to_w}x{to_h}, {name}");
            }
        }
    }
}

#[test]
fn resize_refuses_sizes_that_cannot_be() {
    let filter = Interpolation::Bilinear;
    assert!(Resampler::new(0, 4, 4, 4, filter).is_err());
    assert!(Resampler::new(4, 4, 4, 0, filter).is_err());
    assert!(Resampler::new(4, 4, usize::MAX, 4, filter).is_err());
    for part in [[0.0, 0.0, 4.5, 4.0], [2.0, 0.0, 2.0, 4.0], [f32::NAN, 0.0, 4.0, 4.0]] {
        assert!(Resampler::with_box(4, 4, part, 2, 2, filter).is_err(), "{part:?}");
    }
}

#[test]
fn colour_equals_opencv_and_pillow() {
    let (values, picture, noise) = (json("values.json"), picture(), waves(256, 256));
    let mut every = RgbImage::filled(256, 256, [0; 3]);
    for (i, pixel) in every.data.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let (top, span) = (i / 256, i % 256);
        let low = top.saturating_sub(span) as u8;
        *pixel = [top as u8, low, low];
    }
    for (name, got) in [
        ("saturation", colour::saturation(&picture)),
        ("saturation_every", colour::saturation(&every)),
        ("gray", colour::gray(&picture)),
        ("gray_noise", colour::gray(&noise)),
        ("pil", colour::gray_pil(&picture)),
        ("pil_noise", colour::gray_pil(&noise)),
    ] {
        assert_eq!(sha(&got.data), values[name].as_str().unwrap(), "{name}");
    }
    let white = colour::white_fraction(&picture.data);
    assert!(white > 0.01);
    assert_eq!(white, values["white_fraction"].as_f64().unwrap());
}

#[test]
fn filters_equal_opencv() {
    let (values, picture) = (json("values.json"), picture());
    let (gray, saturation) = (colour::gray(&picture), colour::saturation(&picture));
    for (size, expected) in values["median"].as_object().unwrap() {
        let got = filter::median(&gray, size.parse().unwrap());
        assert_eq!(sha(&got.data), expected.as_str().unwrap(), "median {size}");
    }
    for (name, image) in
        [("saturation", &saturation), ("gray", &gray), ("noise", &plane(&waves(256, 256), 0))]
    {
        assert_eq!(
            u64::from(filter::otsu(image)),
            values["otsu"][name].as_u64().unwrap(),
            "{name}"
        );
    }
    let mut mask = saturation.clone();
    filter::binarise(&mut mask, filter::otsu(&saturation));
    for (size, expected) in values["close"].as_object().unwrap() {
        for (image, expected) in [&mask, &gray].into_iter().zip(expected.as_array().unwrap()) {
            let mut image = image.clone();
            filter::close(&mut image, size.parse().unwrap());
            assert_eq!(sha(&image.data), expected.as_str().unwrap(), "close {size}");
        }
    }
    let row = GrayImage { width: gray.width, height: 1, data: gray.data[..gray.width].to_vec() };
    let column = gray.data.iter().step_by(gray.width).copied().collect();
    let column = GrayImage { width: 1, height: gray.height, data: column };
    for (name, image) in [("picture", &gray), ("row", &row), ("column", &column)] {
        let expected = values["laplacian_variance"][name].as_f64().unwrap();
        let got = filter::laplacian_variance(image);
        assert!((got - expected).abs() <= 1e-12 * expected, "{name}: {got} {expected}");
    }
}

#[test]
fn filled_polygons_equal_opencv() {
    let cases = json("polygons.json");
    for case in cases.as_array().unwrap() {
        let size: [usize; 2] = serde_json::from_value(case["size"].clone()).unwrap();
        let rings: Vec<Vec<[i64; 2]>> = serde_json::from_value(case["rings"].clone()).unwrap();
        let mut mask = GrayImage::filled(size[0], size[1], 0);
        let rings: Vec<&[[i64; 2]]> = rings.iter().map(Vec::as_slice).collect();
        mask.fill_polygon(&rings, 255);
        assert_eq!(sha(&mask.data)[..16], *case["sha256"].as_str().unwrap(), "{case}");
    }
}
