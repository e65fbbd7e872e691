//! Resizing on the device: the bytes of `image`, which are those of Pillow.

use super::backend;
use histokern::Kind;
use histokern::cuda::preprocess::Axis;
use histokern::image::{FilterTable, Resampler};
use histokern::recipe::Interpolation;

fn axis(table: &FilterTable) -> Axis {
    let FilterTable { length, bounds, weights } = table.clone();
    Axis { length, bounds, weights }
}

/// Edges, noise and plain areas.
fn picture(w: usize, h: usize, seed: u64) -> Vec<u8> {
    let pixel = |i: usize| {
        let mut z = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed << 40);
        z = (z ^ (z >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        match (i / 3 % w / 5 + i / 3 / w / 3 + seed as usize) % 3 {
            0 => (z >> 56) as u8,
            1 => 255,
            _ => (i % 3 * 90) as u8,
        }
    };
    (0..w * h * 3).map(pixel).collect()
}

#[test]
fn a_resize_gives_the_bytes_of_the_host() {
    let Some(backend) = backend() else { return };
    use Interpolation::{Bicubic, Bilinear};
    for ([w, h], [to_w, to_h], crop, filter) in [
        ([40, 40], [28, 28], [28, 28], Bicubic),
        ([40, 40], [28, 28], [24, 24], Bicubic),
        ([33, 47], [16, 20], [11, 14], Bilinear),
        ([21, 18], [50, 41], [50, 41], Bicubic),
        ([64, 48], [3, 2], [3, 2], Bilinear),
        // A pass that would copy.
        ([20, 31], [20, 10], [20, 7], Bicubic),
        ([9, 9], [9, 9], [5, 5], Bilinear),
    ] {
        let host = Resampler::new(w, h, to_w, to_h, filter).unwrap();
        let [down, across] = host.filters().each_ref().map(axis);
        let [left, top] = [(to_w - crop[0]) / 2, (to_h - crop[1]) / 2];
        let kept = [top..top + crop[1], left..left + crop[0]];
        let mut device = backend.resize([&down, &across], kept.clone(), 3).unwrap();
        for rows in [3, 1] {
            let tiles: Vec<Vec<u8>> = (0..rows).map(|i| picture(w, h, i as u64)).collect();
            let mut want: Vec<u8> = Vec::new();
            for tile in &tiles {
                let mut whole = vec![0; to_w * to_h * 3];
                host.run(tile, &mut whole, &mut Vec::new());
                for line in kept[0].clone() {
                    want.extend(&whole[(line * to_w + left) * 3..][..crop[0] * 3]);
                }
            }
            let mut got = vec![0; want.len()];
            device.run(rows, &tiles.concat(), &mut got).unwrap();
            assert!(
                got == want,
                "{w} x {h} to {to_w} x {to_h}, {crop:?}, {filter:?}, {rows} tiles"
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let Some(backend) = backend() else { return };
    let host = Resampler::new(8, 8, 4, 4, Interpolation::Bilinear).unwrap();
    let [down, across] = host.filters().each_ref().map(axis);
    let kind = |down: &Axis, kept: [std::ops::Range<usize>; 2], capacity| {
        backend.resize([down, &across], kept, capacity).err().map(|e| e.kind())
    };
    assert_eq!(kind(&down, [0..4, 0..4], 2), None);
    assert_eq!(kind(&down, [0..5, 0..4], 2), Some(Kind::Usage));
    assert_eq!(kind(&down, [2..2, 0..4], 2), Some(Kind::Usage));
    assert_eq!(kind(&down, [0..4, 0..4], usize::MAX), Some(Kind::Limit));
    let beyond = Axis { length: 7, ..down.clone() };
    assert_eq!(kind(&beyond, [0..4, 0..4], 2), Some(Kind::Usage));
    let mut ready = backend.resize([&down, &across], [0..4, 0..4], 2).unwrap();
    let mut out = vec![0; 3 * 48];
    assert!(ready.run(3, &[0; 3 * 192], &mut out).is_err());
    assert!(ready.run(1, &[0; 191], &mut out[..48]).is_err());
    ready.run(0, &[], &mut []).unwrap();
}
