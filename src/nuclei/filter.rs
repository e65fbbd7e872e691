//! Neighbourhood filters on one f32 channel and on masks. Borders repeat the outermost pixel
//! (`mode="nearest"` of `scipy.ndimage`).

use super::{Mask, Plane};

/// Applies a filter of one row to all rows, then to all columns.
fn separable(plane: &Plane, filter: impl Fn(&[f32], &mut [f32])) -> Plane {
    let rows = |plane: &Plane| {
        let mut out = plane.clone();
        let width = plane.width.max(1);
        for (from, to) in plane.data.chunks(width).zip(out.data.chunks_mut(width)) {
            filter(from, to);
        }
        out
    };
    transpose(&rows(&transpose(&rows(plane))))
}

fn transpose(plane: &Plane) -> Plane {
    let (width, height) = (plane.width, plane.height);
    let mut data = vec![0.0; plane.data.len()];
    // Blocks keep both sides in the cache.
    const BLOCK: usize = 32;
    for y0 in (0..height).step_by(BLOCK) {
        for x0 in (0..width).step_by(BLOCK) {
            for y in y0..(y0 + BLOCK).min(height) {
                for x in x0..(x0 + BLOCK).min(width) {
                    data[x * height + y] = plane.data[y * width + x];
                }
            }
        }
    }
    Plane { width: height, height: width, data }
}

/// A row with `radius` repeated values at either end.
fn padded(row: &[f32], radius: usize, out: &mut Vec<f32>) {
    out.clear();
    let ends = [row.first(), row.last()].map(|v| v.copied().unwrap_or_default());
    out.resize(radius, ends[0]);
    out.extend_from_slice(row);
    out.resize(row.len() + 2 * radius, ends[1]);
}

/// Gaussian of standard deviation `sigma`, cut off at four of them.
pub fn gaussian(plane: &Plane, sigma: f64) -> Plane {
    let radius = (4.0 * sigma + 0.5) as usize;
    if radius == 0 {
        return plane.clone();
    }
    let weight = |k: usize| (-0.5 * (k as f64 / sigma).powi(2)).exp();
    let total: f64 = weight(0) + 2.0 * (1..=radius).map(weight).sum::<f64>();
    let weights: Vec<f32> = (0..=radius).map(|k| (weight(k) / total) as f32).collect();
    separable(plane, |from, to| {
        let mut source = Vec::new();
        padded(from, radius, &mut source);
        let n = to.len();
        for (out, v) in to.iter_mut().zip(&source[radius..]) {
            *out = weights[0] * v;
        }
        for (k, weight) in weights.iter().enumerate().skip(1) {
            let (left, right) = (&source[radius - k..][..n], &source[radius + k..][..n]);
            for (out, (a, b)) in to.iter_mut().zip(left.iter().zip(right)) {
                *out += weight * (a + b);
            }
        }
    })
}

/// Mean over a square of side `2 * radius + 1`.
pub fn mean(plane: &Plane, radius: usize) -> Plane {
    let side = (2 * radius + 1) as f64;
    separable(plane, |from, to| {
        let mut source = Vec::new();
        padded(from, radius, &mut source);
        let mut sum: f64 = source[..2 * radius].iter().map(|&v| f64::from(v)).sum();
        for (i, out) in to.iter_mut().enumerate() {
            sum += f64::from(source[i + 2 * radius]);
            *out = (sum / side) as f32;
            sum -= f64::from(source[i]);
        }
    })
}

/// Grey opening with a square of side `2 * radius + 1`: what is darker than its surroundings stays,
/// what is brighter and smaller than the square goes.
pub fn open(plane: &Plane, radius: usize) -> Plane {
    let lowest = separable(plane, |from, to| extreme(from, to, radius, f32::min));
    separable(&lowest, |from, to| extreme(from, to, radius, f32::max))
}

/// Running extreme over `2 * radius + 1` values (van Herk 1992, Gil and Werman 1993): the extreme of
/// a window is that of the end of one block and the beginning of the next.
fn extreme(from: &[f32], to: &mut [f32], radius: usize, pick: fn(f32, f32) -> f32) {
    let side = 2 * radius + 1;
    let mut source = Vec::new();
    padded(from, radius, &mut source);
    let (mut before, mut after) = (source.clone(), source.clone());
    for block in before.chunks_mut(side) {
        for i in 1..block.len() {
            block[i] = pick(block[i - 1], block[i]);
        }
    }
    for block in after.chunks_mut(side) {
        for i in (1..block.len()).rev() {
            block[i - 1] = pick(block[i - 1], block[i]);
        }
    }
    for (i, out) in to.iter_mut().enumerate() {
        *out = pick(after[i], before[i + side - 1]);
    }
}

/// Removes what a disc of `radius` pixels does not fit into. Outside the picture is empty.
pub fn open_mask(mask: &Mask, radius: f64) -> Mask {
    let reach = radius.floor() as isize;
    let disc: Vec<[isize; 2]> = (-reach..=reach)
        .flat_map(|y| (-reach..=reach).map(move |x| [x, y]))
        .filter(|[x, y]| ((x * x + y * y) as f64) <= radius * radius + 1e-9)
        .collect();
    let eroded = neighbours(mask, &disc, 1, |a, b| a & b);
    neighbours(&eroded, &disc, 0, |a, b| a | b)
}

/// Joins, for every pixel, the values at `offsets` from it.
fn neighbours(mask: &Mask, offsets: &[[isize; 2]], start: u8, join: fn(u8, u8) -> u8) -> Mask {
    let (width, height) = (mask.width, mask.height);
    let mut out = Mask { width, height, data: vec![start; mask.data.len()] };
    for (y, line) in out.data.chunks_mut(width.max(1)).enumerate() {
        for &[dx, dy] in offsets {
            let row = y.checked_add_signed(dy).filter(|&row| row < height);
            let Some(row) = row.map(|row| &mask.data[row * width..(row + 1) * width]) else {
                line.iter_mut().for_each(|v| *v = join(*v, 0));
                continue;
            };
            // Pixels that look beyond the left or right edge see nothing.
            let shift = dx.unsigned_abs().min(width);
            let (near, far) = if dx < 0 {
                let (edge, rest) = line.split_at_mut(shift);
                rest.iter_mut().zip(row).for_each(|(v, n)| *v = join(*v, *n));
                (edge, &mut [][..])
            } else {
                let (rest, edge) = line.split_at_mut(width - shift);
                rest.iter_mut().zip(&row[shift..]).for_each(|(v, n)| *v = join(*v, *n));
                (&mut [][..], edge)
            };
            near.iter_mut().chain(far).for_each(|v| *v = join(*v, 0));
        }
    }
    out
}

/// Fills holes (4-connected) of fewer than `size` pixels.
pub fn fill_holes(mask: &mut Mask, size: f64) {
    let (width, height) = (mask.width, mask.height);
    let mut seen: Vec<bool> = mask.data.iter().map(|&v| v != 0).collect();
    let mut hole = Vec::new();
    for start in 0..seen.len() {
        if seen[start] {
            continue;
        }
        hole.clear();
        hole.push(start);
        seen[start] = true;
        let mut next = 0;
        while next < hole.len() {
            for at in around(hole[next], width, height) {
                if !seen[at] {
                    seen[at] = true;
                    hole.push(at);
                }
            }
            next += 1;
        }
        if (hole.len() as f64) < size {
            hole.iter().for_each(|&at| mask.data[at] = 1);
        }
    }
}

/// The four neighbours of a pixel that exist: above, left, right, below.
pub fn around(at: usize, width: usize, height: usize) -> impl Iterator<Item = usize> {
    let (x, y) = (at % width, at / width);
    let above = (y > 0).then(|| at - width);
    let left = (x > 0).then(|| at - 1);
    let right = (x + 1 < width).then(|| at + 1);
    let below = (y + 1 < height).then(|| at + width);
    [above, left, right, below].into_iter().flatten()
}

/// Euclidean distance of every pixel to the nearest one that is 0, exact (Meijster, Roerdink and
/// Hesselink 2000). Without any such pixel the distance is the sum of both sides.
pub fn distance(mask: &Mask) -> Plane {
    let (width, height) = (mask.width, mask.height);
    let far = (width + height) as i64;
    // Distance along the column.
    let mut column = vec![0i64; mask.data.len()];
    for x in 0..width {
        let mut run = far;
        for y in 0..height {
            run = if mask.data[y * width + x] == 0 { 0 } else { (run + 1).min(far) };
            column[y * width + x] = run;
        }
        for y in (0..height).rev() {
            run = if mask.data[y * width + x] == 0 { 0 } else { (run + 1).min(far) };
            column[y * width + x] = column[y * width + x].min(run);
        }
    }
    let mut data = Vec::with_capacity(mask.data.len());
    for g in column.chunks(width.max(1)) {
        let square = |x: usize, at: usize| (x as i64 - at as i64).pow(2) + g[at] * g[at];
        // Parabolas of the lower envelope and where each begins.
        let mut hull: Vec<(usize, i64)> = Vec::new();
        for x in 0..width {
            while let Some(&(at, begin)) = hull.last()
                && square(begin as usize, at) > square(begin as usize, x)
            {
                hull.pop();
            }
            match hull.last() {
                None => hull.push((x, 0)),
                Some(&(at, _)) => {
                    let (i, u) = (at as i64, x as i64);
                    let cut = (u * u - i * i + g[x] * g[x] - g[at] * g[at]).div_euclid(2 * (u - i));
                    if cut + 1 < width as i64 {
                        hull.push((x, cut + 1));
                    }
                }
            }
        }
        let mut k = 0;
        for x in 0..width {
            while k + 1 < hull.len() && hull[k + 1].1 <= x as i64 {
                k += 1;
            }
            let squared = square(x, hull[k].0).min(far * far);
            data.push((squared as f64).sqrt() as f32);
        }
    }
    Plane { width, height, data }
}
