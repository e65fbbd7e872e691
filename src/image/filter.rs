//! Neighbourhood filters and thresholds on one u8 channel, equal to OpenCV's.

use super::GrayImage;

/// Largest side whose window's pixels can be counted in a u8.
const SMALL: usize = 15;

/// Pixels of a row whose medians are searched together.
const LANES: usize = 32;

/// Median over a `size x size` square; pixels beyond the border repeat the border's
/// (`cv2.medianBlur`).
///
/// # Panics
/// When `size` is even or above 255.
pub fn median(image: &GrayImage, size: usize) -> GrayImage {
    assert!(size % 2 == 1 && size <= 255, "median of side {size}");
    let (width, height, radius) = (image.width, image.height, size / 2);
    let mut out = image.clone();
    if size == 1 || image.data.is_empty() {
        return out;
    }
    // The rows of the window with their ends repeated, so that the inner loops have no border
    // case, and room for whole lanes.
    let mut rows: Vec<Vec<u8>> = vec![vec![0; width + size + LANES]; size];
    let pad = |row: &mut Vec<u8>, y: isize| {
        let y = y.clamp(0, height as isize - 1) as usize;
        let source = &image.data[y * width..(y + 1) * width];
        row[..radius].fill(source[0]);
        row[radius..radius + width].copy_from_slice(source);
        row[radius + width..].fill(source[width - 1]);
    };
    for (i, row) in rows.iter_mut().enumerate() {
        pad(row, i as isize - radius as isize);
    }
    let median_row = if size <= SMALL { median_row_by_bits } else { median_row_by_histogram };
    for (y, line) in out.data.chunks_exact_mut(width).enumerate() {
        if y > 0 {
            pad(&mut rows[(y - 1) % size], (y + radius) as isize);
        }
        median_row(&rows, size, line);
    }
    out
}

/// Medians along one row for small windows: the largest value that more than half of the window
/// reaches, found bit by bit. `rows` are the padded rows of the window in any order.
fn median_row_by_bits(rows: &[Vec<u8>], size: usize, line: &mut [u8]) {
    let half = (size * size / 2) as u8;
    for (i, out) in line.chunks_mut(LANES).enumerate() {
        let mut medians = [0u8; LANES];
        for bit in (0..8).rev().map(|b| 1u8 << b) {
            let mut reached = [0u8; LANES];
            let candidates = medians.map(|m| m | bit);
            for row in rows {
                for values in row[i * LANES..].windows(LANES).take(size) {
                    let Some(values) = values.first_chunk::<LANES>() else { continue };
                    for lane in 0..LANES {
                        let reaches = u8::from(values[lane] >= candidates[lane]);
                        reached[lane] = reached[lane].wrapping_add(reaches);
                    }
                }
            }
            for lane in 0..LANES {
                medians[lane] |= if reached[lane] > half { bit } else { 0 };
            }
        }
        out.copy_from_slice(&medians[..out.len()]);
    }
}

/// Medians along one row for large windows: a histogram slides along and the median is followed
/// through it (Huang et al. 1979).
fn median_row_by_histogram(rows: &[Vec<u8>], size: usize, line: &mut [u8]) {
    let half = (size * size / 2) as u32;
    let mut histogram = [0u32; 256];
    for &value in rows.iter().flat_map(|row| &row[..size]) {
        histogram[usize::from(value)] += 1;
    }
    // `below` counts window values under `level`, the median so far.
    let (mut level, mut below) = (0usize, 0u32);
    for x in 0..line.len() {
        if x > 0 {
            for row in rows {
                let (old, new) = (usize::from(row[x - 1]), usize::from(row[x + size - 1]));
                histogram[old] -= 1;
                histogram[new] += 1;
                below = below + u32::from(new < level) - u32::from(old < level);
            }
        }
        while below > half {
            level -= 1;
            below -= histogram[level];
        }
        while below + histogram[level] <= half {
            below += histogram[level];
            level += 1;
        }
        line[x] = level as u8;
    }
}

/// Otsu's threshold (Otsu 1979) as `cv2.THRESH_OTSU` computes it: the first level that maximises
/// the between-class variance; 0 for a picture of one value.
pub fn otsu(image: &GrayImage) -> u8 {
    let mut histogram = [0u64; 256];
    for &value in &image.data {
        histogram[usize::from(value)] += 1;
    }
    let scale = 1.0 / image.data.len() as f64;
    let total = histogram.iter().enumerate().map(|(v, &n)| v as f64 * n as f64).sum::<f64>();
    let mean = total * scale;
    let (mut mean_below, mut weight_below) = (0.0, 0.0);
    let (mut best, mut threshold) = (0.0, 0);
    for (level, &count) in histogram.iter().enumerate() {
        let p = count as f64 * scale;
        mean_below *= weight_below;
        weight_below += p;
        let weight_above = 1.0 - weight_below;
        let epsilon = f64::from(f32::EPSILON);
        if weight_below.min(weight_above) < epsilon
            || weight_below.max(weight_above) > 1.0 - epsilon
        {
            continue;
        }
        mean_below = (mean_below + level as f64 * p) / weight_below;
        let mean_above = (mean - weight_below * mean_below) / weight_above;
        let gap = mean_below - mean_above;
        let variance = weight_below * weight_above * gap * gap;
        if variance > best {
            (best, threshold) = (variance, level as u8);
        }
    }
    threshold
}

/// 255 where the value is above `threshold`, 0 elsewhere (`cv2.THRESH_BINARY`).
pub fn binarise(image: &mut GrayImage, threshold: u8) {
    for value in &mut image.data {
        *value = if *value > threshold { 255 } else { 0 };
    }
}

/// Closing with a `size x size` square: dilation, then erosion
/// (`cv2.morphologyEx(MORPH_CLOSE, ones((size, size)))`).
///
/// OpenCV anchors the square at `size / 2` in both steps, so an even size moves shapes by one
/// pixel to the right and down. Pixels beyond the border take part in neither step. Sizes 0 and 1
/// change nothing.
pub fn close(image: &mut GrayImage, size: usize) {
    if size > 1 && !image.data.is_empty() {
        extreme(image, size, 0, u8::max);
        extreme(image, size, 255, u8::min);
    }
}

/// The extreme value over the square `-size / 2 .. size - size / 2` around each pixel; `neutral`
/// never is one.
fn extreme(image: &mut GrayImage, size: usize, neutral: u8, pick: impl Fn(u8, u8) -> u8 + Copy) {
    let (width, height) = (image.width, image.height);
    let (before, after) = (size / 2, size - size / 2);
    let merge = |out: &mut [u8], values: &[u8]| {
        for (out, &value) in out.iter_mut().zip(values) {
            *out = pick(*out, value);
        }
    };
    let mut along_rows = vec![neutral; image.data.len()];
    let mut padded = vec![neutral; width + size];
    for (line, row) in along_rows.chunks_exact_mut(width).zip(image.rows()) {
        padded[before..before + width].copy_from_slice(row);
        (0..size).for_each(|d| merge(line, &padded[d..d + width]));
    }
    for (y, line) in image.data.chunks_exact_mut(width).enumerate() {
        line.fill(neutral);
        for row in y.saturating_sub(before)..(y + after).min(height) {
            merge(line, &along_rows[row * width..(row + 1) * width]);
        }
    }
}

/// Population variance of the Laplacian, a measure of sharpness:
/// `cv2.Laplacian(gray, CV_64F).var()` with the border mirrored without repeating it.
///
/// The sum is exact in integers and so does not depend on order. 0 for an empty picture.
pub fn laplacian_variance(image: &GrayImage) -> f64 {
    let (width, height) = (image.width, image.height);
    if image.data.is_empty() {
        return 0.0;
    }
    let mirror = |i: isize, n: usize| match i {
        _ if n == 1 => 0,
        i if i < 0 => -i as usize,
        i if i as usize >= n => 2 * n - 2 - i as usize,
        i => i as usize,
    };
    let (mut sum, mut squares) = (0i64, 0i64);
    for y in 0..height {
        let row = |y: usize| &image.data[y * width..(y + 1) * width];
        let above = row(mirror(y as isize - 1, height));
        let here = row(y);
        let below = row(mirror(y as isize + 1, height));
        let at = |x: usize, left: usize, right: usize| {
            let around = [above[x], below[x], here[left], here[right]];
            around.iter().map(|&v| i64::from(v)).sum::<i64>() - 4 * i64::from(here[x])
        };
        for x in 0..width {
            let left = mirror(x as isize - 1, width);
            let right = mirror(x as isize + 1, width);
            let value = at(x, left, right);
            sum += value;
            squares += value * value;
        }
    }
    let n = image.data.len() as f64;
    let mean = sum as f64 / n;
    squares as f64 / n - mean * mean
}
