//! Tiles made into the network's input on the device: the bytes of `image` and `stain`, which are those
//! of Pillow and of the host.

use super::backend;
use histokern::backend::check::run_once;
use histokern::backend::{Axis, Backend, Batch, HostMemory, Input, Preparation, Session, TileStep};
use histokern::graph::{Graph, Op, Shape};
use histokern::image::{FilterTable, Resampler};
use histokern::recipe::{Interpolation, MacenkoStain, ReinhardStain, Stain};
use histokern::stain::StainNormalizer;
use histokern::{Kind, Result};
use std::sync::Arc;

/// A network that hands its pixels back, as numbers.
fn identity([h, w]: [usize; 2]) -> Arc<Graph> {
    let mut g = Graph::new("pixels");
    let pixels = g.input(Shape::Pixels { h, w });
    let op = Op::Normalize { mean: [0.0; 3], std: [1.0 / 255.0; 3] };
    let y = g.push(op, &[pixels]).unwrap();
    g.output(y);
    Arc::new(g)
}

fn resample(host: &Resampler, kept: [std::ops::Range<usize>; 2]) -> TileStep {
    let axes = host.filters().map(|table| {
        let FilterTable { length, bounds, weights } = table;
        Axis { length, bounds, weights }
    });
    TileStep::Resample { axes, kept }
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

fn prepared(rows: usize, pixels: HostMemory, how: &Arc<Preparation>) -> Batch {
    Batch { how: Some(how.clone()), ..Batch::new(rows, pixels) }
}

/// Runs batches of tiles through a session and holds each to what the network says of `want`.
fn agree(how: Preparation, tiles: &[Vec<u8>], want: &[Vec<u8>], what: &str) {
    let Some(backend) = backend() else { return };
    assert_eq!(difference(&backend, how, tiles, want).unwrap(), None, "{what}");
}

/// What differs, in words.
fn difference(
    backend: &dyn Backend,
    how: Preparation,
    tiles: &[Vec<u8>],
    want: &[Vec<u8>],
) -> Result<Option<String>> {
    let graph = identity(how.made());
    let how = Arc::new(how);
    let mut session = backend.prepare(graph.clone(), tiles.len())?;
    let on = session.overlapped().unwrap();
    assert!(on.accept_tiles(how.most_pixels())?);
    for rows in [tiles.len(), 1, 2] {
        let input = want[..rows].concat();
        let want = run_once(backend, &graph, rows, &[Input::Pixels(&input)])?.remove(0);
        let mut memory = on.lend(tiles.len() * tiles[0].len())?;
        memory[..rows * tiles[0].len()].copy_from_slice(&tiles[..rows].concat());
        on.submit(prepared(rows, memory, &how))?;
        let mut got = vec![f32::NAN; want.len()];
        on.collect(&mut [&mut got])?;
        let wrong = got.iter().zip(&want).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        if wrong > 0 {
            return Ok(Some(format!("{rows} tiles: {wrong} of {} bytes", want.len())));
        }
    }
    Ok(None)
}

/// What a stain alone makes otherwise than the host, in words.
pub fn recoloured_otherwise(on: &dyn Backend) -> Result<Option<String>> {
    let side = 16;
    let (tile, stain) = (picture(side, side, 4), macenko(0));
    let mut want = tile.clone();
    stain.apply(&mut want);
    let recolour = TileStep::Recolour { exponents: stain.exponents().unwrap() };
    let how = Preparation::new([side; 2], vec![recolour])?;
    difference(on, how, &[tile.clone(), tile], &[want.clone(), want])
}

#[test]
fn a_resize_gives_the_bytes_of_the_host() {
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
        let [left, top] = [(to_w - crop[0]) / 2, (to_h - crop[1]) / 2];
        let kept = [top..top + crop[1], left..left + crop[0]];
        let tiles: Vec<Vec<u8>> = (0..3).map(|i| picture(w, h, i)).collect();
        let resized = |tile: &Vec<u8>| {
            let mut whole = vec![0; to_w * to_h * 3];
            host.run(tile, &mut whole, &mut Vec::new());
            let line = |line: usize| &whole[(line * to_w + left) * 3..][..crop[0] * 3];
            kept[0].clone().flat_map(line).copied().collect()
        };
        let want: Vec<Vec<u8>> = tiles.iter().map(resized).collect();
        let how = Preparation::new([h, w], vec![resample(&host, kept)]).unwrap();
        let what = format!("{w} x {h} to {to_w} x {to_h}, {crop:?}, {filter:?}");
        agree(how, &tiles, &want, &what);
    }
}

/// A slide's colours: a mixture of two stains and what no stain explains.
fn stained(n: usize, seed: u64) -> Vec<u8> {
    let noise = picture(n, 1, seed + 1);
    let pixel = |i: usize| {
        let amount = |k: usize| f64::from(noise[(3 * i + k * 7) % noise.len()]) / 160.0;
        let (h, e) = (amount(0), amount(1));
        [0.65 * h + 0.07 * e, 0.70 * h + 0.99 * e, 0.29 * h + 0.11 * e]
            .map(|density| (255.0 * (-density).exp()) as u8)
    };
    (0..n).flat_map(pixel).collect()
}

fn macenko(seed: u64) -> StainNormalizer {
    let rule = Stain::Macenko(MacenkoStain::default());
    StainNormalizer::fit(&rule, &stained(4000, seed)).unwrap().unwrap()
}

/// Every channel value, black and white among them, in many company; alone, between two resizes and
/// after them.
#[test]
fn a_stain_gives_the_bytes_of_the_host() {
    let side = 48;
    let tiles: Vec<Vec<u8>> = vec![
        picture(side, side, 4),
        stained(side * side, 9),
        (0..side * side * 3).map(|i| (i * 37 % 256) as u8).collect(),
    ];
    for seed in [0, 3] {
        let stain = macenko(seed);
        let recolour = || TileStep::Recolour { exponents: stain.exponents().unwrap() };
        let recoloured = |tile: &[u8]| {
            let mut tile = tile.to_vec();
            stain.apply(&mut tile);
            tile
        };
        let want: Vec<Vec<u8>> = tiles.iter().map(|t| recoloured(t)).collect();
        assert!(want[1] != tiles[1], "the stain changes nothing");
        let alone = Preparation::new([side; 2], vec![recolour()]).unwrap();
        agree(alone, &tiles, &want, "stain alone");

        let first = Resampler::new(side, side, 30, 30, Interpolation::Bilinear).unwrap();
        let second = Resampler::new(30, 30, 20, 20, Interpolation::Bicubic).unwrap();
        let run = |host: &Resampler, tile: &[u8]| {
            let [w, h] = host.out_size();
            let mut out = vec![0; w * h * 3];
            host.run(tile, &mut out, &mut Vec::new());
            out
        };
        let middle: Vec<Vec<u8>> =
            tiles.iter().map(|t| run(&second, &recoloured(&run(&first, t)))).collect();
        let [a, b] = [resample(&first, [0..30, 0..30]), resample(&second, [0..20, 0..20])];
        let steps = vec![a.clone(), recolour(), b.clone()];
        agree(Preparation::new([side; 2], steps).unwrap(), &tiles, &middle, "stain between");

        let last: Vec<Vec<u8>> =
            tiles.iter().map(|t| recoloured(&run(&second, &run(&first, t)))).collect();
        let steps = vec![a, b, recolour()];
        agree(Preparation::new([side; 2], steps).unwrap(), &tiles, &last, "stain last");
    }
}

/// The transfer of CIELAB has a cube root, which the device is not asked for.
#[test]
fn what_the_device_cannot_repeat_stays_on_the_host() {
    let rule = Stain::Reinhard(ReinhardStain::default());
    let stain = StainNormalizer::fit(&rule, &stained(4000, 0)).unwrap().unwrap();
    assert!(stain.exponents().is_none());
}

/// Two slides' batches under way at once, each with its own preparation, and the network's own input
/// between them.
#[test]
fn batches_of_several_makes_take_turns() {
    let Some(backend) = backend() else { return };
    let graph = identity([16, 16]);
    let hosts = [24, 20, 32].map(|side| Resampler::new(side, side, 16, 16, Interpolation::Bicubic));
    let made: Vec<(Arc<Preparation>, Vec<u8>, Vec<u8>)> = hosts
        .into_iter()
        .enumerate()
        .map(|(i, host)| {
            let host = host.unwrap();
            let side = host.filters()[0].length;
            let how = Preparation::new([side; 2], vec![resample(&host, [0..16, 0..16])]).unwrap();
            let (tile, mut want) = (picture(side, side, i as u64), vec![0; 768]);
            host.run(&tile, &mut want, &mut Vec::new());
            (Arc::new(how), tile, want)
        })
        .collect();
    let mut session = backend.prepare(graph.clone(), 1).unwrap();
    let on = session.overlapped().unwrap();
    assert!(on.accept_tiles(32 * 32).unwrap());
    let mut under_way = std::collections::VecDeque::new();
    for i in [0, 1, 2, 0, 3, 0, 0, 3, 2, 1] {
        if under_way.len() == on.lanes() {
            collect(on, under_way.pop_front().unwrap());
        }
        let own = picture(16, 16, 7);
        match made.get(i) {
            Some((how, tile, want)) => {
                on.submit(prepared(1, Box::new(tile.clone()), how)).unwrap();
                under_way.push_back(want.clone());
            }
            None => {
                on.submit(Batch::new(1, Box::new(own.clone()))).unwrap();
                under_way.push_back(own);
            }
        }
    }
    under_way.into_iter().for_each(|want| collect(on, want));
}

fn collect(on: &mut dyn histokern::backend::Overlapped, want: Vec<u8>) {
    let mut got = vec![f32::NAN; want.len()];
    on.collect(&mut [&mut got]).unwrap();
    let bytes: Vec<u8> = got.iter().map(|v| v.round() as u8).collect();
    assert!(bytes == want, "other bytes");
}

#[test]
fn tiles_without_room_are_refused() {
    let Some(backend) = backend() else { return };
    let host = Resampler::new(8, 8, 4, 4, Interpolation::Bilinear).unwrap();
    let how = |kept: usize| {
        Arc::new(Preparation::new([8, 8], vec![resample(&host, [0..kept, 0..kept])]).unwrap())
    };
    let mut session = backend.prepare(identity([4, 4]), 2).unwrap();
    let tiles = |rows: usize| -> HostMemory { Box::new(vec![0; rows * 192]) };
    fn says(
        session: &mut dyn Session,
        rows: usize,
        given: HostMemory,
        how: &Arc<Preparation>,
        words: &str,
    ) {
        let on = session.overlapped().unwrap();
        let error = on.submit(prepared(rows, given, how)).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        assert!(error.to_string().contains(words), "{error} lacks {words}");
    }
    says(&mut *session, 1, tiles(1), &how(4), "no room");
    assert!(session.overlapped().unwrap().accept_tiles(64).unwrap());
    says(&mut *session, 1, tiles(1), &how(3), "3 x 3");
    says(&mut *session, 3, tiles(3), &how(4), "room for 2");
    says(&mut *session, 2, tiles(1), &how(4), "192 bytes");
    session.overlapped().unwrap().submit(prepared(2, tiles(2), &how(4))).unwrap();
    let error = session.overlapped().unwrap().accept_tiles(64).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage, "{error}");
    session.overlapped().unwrap().collect(&mut [&mut [0.0; 96]]).unwrap();
    // Room is no reason to fail, only to work otherwise.
    let limited = histokern::cuda::CudaBackend::new(0).unwrap().with_memory_limit(1 << 20).unwrap();
    let mut session = limited.prepare(identity([4, 4]), 2).unwrap();
    assert!(!session.overlapped().unwrap().accept_tiles(1 << 20).unwrap());
}
