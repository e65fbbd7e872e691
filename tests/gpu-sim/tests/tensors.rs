//! Tensor copies in im2col mode and back, multicast, `wgmma` with other operand forms.

#[macro_use]
mod common;

use common::{Device, fixture, integers, line};
use gpu_sim::machine::{LaunchError, Shape};
use gpu_sim::tensor_map::{Im2col, Swizzle, TensorMap};
use half::f16;

const C: usize = 64;

fn halves(values: &[i32]) -> Vec<f16> {
    values.iter().map(|v| f16::from_f32(*v as f32)).collect()
}

/// Unswizzles an image of 128-byte rows.
fn straighten(words: &[u16]) -> Vec<u16> {
    let at = |i: usize| Swizzle::B128.apply(2 * i as u32) as usize / 2;
    (0..words.len()).map(|i| words[at(i)]).collect()
}

#[test]
fn im2col_takes_the_pixels_of_a_filter_tap() {
    let device = Device::new("tensors");
    let (n, h, w, pad) = (3usize, 9usize, 7usize, 1i64);
    for stride in [1usize, 2] {
        let x = halves(&integers(n * h * w * C, -99, 99));
        let map = TensorMap {
            base: device.buffer(&x),
            rank: 4,
            dims: [C as u32, w as u32, h as u32, n as u32, 1],
            strides: [2 * C, 2 * C * w, 2 * C * w * h, 0].map(|s| s as u64),
            box_dims: [1; 5],
            element_strides: [1, stride as u8, stride as u8, 1, 1],
            element: 2,
            swizzle: Swizzle::B128,
            nan_fill: false,
            im2col: Some(Im2col {
                lower: [-1, -1, 0],
                upper: [-1, -1, 0],
                channels: 64,
                pixels: 64,
            }),
        };
        let (p, q) = ((h - 1) / stride + 1, (w - 1) / stride + 1);
        // Start in the middle of a row of outputs; run on into the next image and past the last.
        for (first, r, s) in
            [(0, 0, 0), (q + 3, 1, 2), (2 * p * q - 5, 2, 1), (3 * p * q - 9, 1, 1)]
        {
            let place = |pixel: usize| {
                let (image, row, column) = (pixel / (p * q), pixel / q % p, pixel % q);
                ((column * stride) as i64 - pad, (row * stride) as i64 - pad, image as i64)
            };
            let (x0, y0, n0) = place(first);
            let out = device.blank(8192);
            let numbers = [x0, y0, n0, s, r].map(|v| (v as i32).to_le_bytes().to_vec());
            let mut args = vec![map.to_bytes().to_vec(), out.to_le_bytes().to_vec()];
            args.extend(numbers);
            let shape = Shape::new([1; 3], [128, 1, 1], 8192 + 64);
            device.launch("im2col", shape, &args).unwrap();
            let got = straighten(&device.read::<u16>(out, 4096));
            for pixel in 0..64 {
                let (column, row, image) = place(first + pixel);
                let (column, row) = (column + s, row + r);
                let inside = (0..w as i64).contains(&column)
                    && (0..h as i64).contains(&row)
                    && image < n as i64;
                for c in 0..C {
                    let index =
                        ((image * h as i64 + row) * w as i64 + column) * C as i64 + c as i64;
                    let want = if inside { x[index as usize].to_bits() } else { 0 };
                    assert_eq!(
                        got[pixel * C + c],
                        want,
                        "stride {stride} pixel {pixel} channel {c}"
                    );
                }
            }
        }
    }
}

fn store(name: &str) -> Result<(), LaunchError> {
    store_on(&Device::new(name))
}

fn store_on(device: &Device) -> Result<(), LaunchError> {
    let x = halves(&integers(64 * 64, -99, 99));
    // The tensor ends before the second tile does.
    let rows = 50;
    let out = device.buffer(&vec![f16::ONE; 64 * 64]);
    let map = TensorMap {
        base: out,
        rank: 2,
        dims: [64, rows, 1, 1, 1],
        strides: [128, 0, 0, 0],
        box_dims: [64, 32, 1, 1, 1],
        element_strides: [1; 5],
        element: 2,
        swizzle: Swizzle::B128,
        nan_fill: false,
        im2col: None,
    };
    let args = [map.to_bytes().to_vec(), device.buffer(&x).to_le_bytes().to_vec()];
    device.launch("store", Shape::new([1; 3], [64, 1, 1], 4096), &args)?;
    let mut want = x;
    want[rows as usize * 64..].fill(f16::ONE);
    assert_eq!(device.read::<f16>(out, 64 * 64), want);
    Ok(())
}

#[test]
fn tensor_stores_stop_at_the_edge() {
    store("tensors").unwrap();
}

#[test]
fn a_missing_proxy_fence_is_found() {
    let error = store("tensors_no_proxy_fence").unwrap_err();
    assert!(error.message.contains("fence.proxy.async"), "{error}");
}

#[test]
fn a_buffer_reused_before_it_was_read_is_found() {
    let error = store("tensors_no_read_wait").unwrap_err();
    assert!(error.message.contains("bulk copy"), "{error}");
}

#[test]
fn a_in_registers_and_b_with_columns_contiguous() {
    let device = Device::new("tensors");
    let all = integers(64 * 16 + 16 * 64, -8, 8);
    let (a, b) = all.split_at(64 * 16);
    let out = device.blank(64 * 64 * 4);
    let args = args![device.buffer(&halves(a)), device.buffer(&halves(b)), out];
    device.launch("product", line(1, 128), args).unwrap();
    let want: Vec<f32> = (0..64 * 64)
        .map(|i| (0..16).map(|k| a[i / 64 * 16 + k] * b[k * 64 + i % 64]).sum::<i32>() as f32)
        .collect();
    assert_eq!(device.read::<f32>(out, 64 * 64), want);
}

#[test]
fn one_copy_feeds_a_cluster() {
    let device = Device::new("tensors");
    let x = integers(96, 0, 999);
    let out = device.blank(6 * 32 * 4);
    let shape = Shape { cluster: [2, 1, 1], ..line(6, 32) };
    device.launch("multicast", shape, args![device.buffer(&x), out]).unwrap();
    let want: Vec<i32> =
        (0..6 * 32).map(|i| x[i / 64 * 32 + i % 32] + (i as i32 / 32 % 2) * 1000).collect();
    assert_eq!(device.read::<i32>(out, 6 * 32), want);
}

#[test]
fn a_store_that_nobody_waits_for_is_found() {
    // Both tiles, the second with no wait before the thread ends.
    let text = fixture("tensors");
    let (before, after) = text.rsplit_once("cp.async.bulk.wait_group.read 0;").unwrap();
    let error = store_on(&Device::from_text(&format!("{before}{after}")).unwrap()).unwrap_err();
    assert!(error.message.contains("when its thread exits"), "{error}");
}
