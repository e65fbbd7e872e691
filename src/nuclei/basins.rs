//! Touching objects taken apart: every peak of a landscape that stands out has its own basin.

use super::filter::around;
use super::{Labels, Mask, Plane};

/// Divides `mask` into the basins of the peaks of `height` that rise by at least `depth` above the
/// pass to a higher one (their dynamics; the seeds are the h-maxima), by flooding from the top
/// down: a watershed without lines (Vincent and Soille 1991), in which basins whose peak is too
/// low are joined at the pass. Basins are 4-connected and numbered from 1 by their first pixel.
///
/// Equal heights are taken in raster order.
pub fn basins(height: &Plane, mask: &Mask, depth: f32) -> Labels {
    let (w, h) = (height.width, height.height);
    let values = &height.data;
    let mut order: Vec<u32> =
        (0..values.len() as u32).filter(|&i| mask.data[i as usize] != 0).collect();
    order.sort_unstable_by(|&a, &b| {
        values[b as usize].total_cmp(&values[a as usize]).then(a.cmp(&b))
    });
    let mut labels = vec![0u32; values.len()];
    // Basin `i + 1`: the basin it was joined to (itself if none) and the height of its peak.
    let mut parent: Vec<u32> = Vec::new();
    let mut peak: Vec<f32> = Vec::new();
    for at in order {
        let (at, value) = (at as usize, values[at as usize]);
        // The steepest neighbour decides; the highest basin swallows the others that are low.
        let mut steepest: Option<(f32, u32)> = None;
        let mut highest: Option<u32> = None;
        for next in around(at, w, h).filter(|&n| labels[n] != 0) {
            let root = find(&mut parent, labels[next] - 1);
            if steepest.is_none_or(|(v, _)| values[next] > v) {
                steepest = Some((values[next], root));
            }
            if highest.is_none_or(|b| peak[root as usize] > peak[b as usize]) {
                highest = Some(root);
            }
        }
        let (Some((_, own)), Some(highest)) = (steepest, highest) else {
            parent.push(parent.len() as u32);
            peak.push(value);
            labels[at] = parent.len() as u32;
            continue;
        };
        labels[at] = own + 1;
        for next in around(at, w, h).filter(|&n| labels[n] != 0) {
            let root = find(&mut parent, labels[next] - 1);
            if root != highest && peak[root as usize] - value < depth {
                parent[root as usize] = highest;
            }
        }
    }
    let mut number = vec![0u32; parent.len()];
    let mut count = 0;
    for label in labels.iter_mut().filter(|l| **l != 0) {
        let root = find(&mut parent, *label - 1) as usize;
        if number[root] == 0 {
            count += 1;
            number[root] = count;
        }
        *label = number[root];
    }
    Labels { width: w, height: h, data: labels }
}

fn find(parent: &mut [u32], mut i: u32) -> u32 {
    while parent[i as usize] != i {
        parent[i as usize] = parent[parent[i as usize] as usize];
        i = parent[i as usize];
    }
    i
}
