//! Resampling, colour, filters and polygon filling against Pillow and OpenCV
//! (`tests/golden/image/make.py`).

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
        let mut out = vec![77; size[0] * size[1] * 3];
        resampler.unwrap().run(&input.data, &mut out, &mut scratch);
        assert_eq!(sha(&out), case["sha256"].as_str().unwrap(), "{case}");
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
