//! How the tiles of a slide are grouped before the heads.

use crate::recipe::Bag;

/// Groups of tile indices, in the order the heads see them.
///
/// Without a `[bag]` all tiles are one group. With one, tiles are shuffled when a seed is given,
/// split into groups of exactly `size`, and a remainder is dropped.
pub fn groups(tiles: usize, bag: Option<&Bag>) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..tiles).collect();
    let Some(bag) = bag else {
        return if tiles == 0 { Vec::new() } else { vec![order] };
    };
    if let Some(seed) = bag.shuffle_seed {
        shuffle(&mut order, seed);
    }
    order.chunks_exact(bag.size).map(<[usize]>::to_vec).collect()
}

/// Fisher-Yates with SplitMix64 (Steele, Lea and Flood 2014): the same order everywhere.
fn shuffle(order: &mut [usize], seed: u64) {
    let mut state = seed;
    for i in (1..order.len()).rev() {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        // The high half of the product is uniform on 0..=i to within 2^-64.
        let j = ((u128::from(z) * (i as u128 + 1)) >> 64) as usize;
        order.swap(i, j);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bag_is_one_group_of_all_tiles() {
        assert_eq!(groups(3, None), vec![vec![0, 1, 2]]);
        assert!(groups(0, None).is_empty());
    }

    #[test]
    fn a_remainder_is_dropped_and_every_tile_used_at_most_once() {
        let bag = Bag { size: 10, shuffle_seed: Some(8888) };
        let groups = groups(37, Some(&bag));
        assert_eq!(groups.len(), 3);
        let mut used: Vec<usize> = groups.concat();
        assert_ne!(used, (0..30).collect::<Vec<_>>(), "not shuffled");
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), 30);
        assert!(used.iter().all(|&i| i < 37));
    }

    #[test]
    fn without_a_seed_order_is_kept() {
        let bag = Bag { size: 2, shuffle_seed: None };
        assert_eq!(groups(5, Some(&bag)), vec![vec![0, 1], vec![2, 3]]);
    }
}
