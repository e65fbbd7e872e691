//! How the output of a layer is cut into rectangles, the tasks of a team, and in which order they are
//! taken.

use super::team::Team;
use std::ops::Range;

/// Rectangles of `[positions, channels]`, nearly equal ones of whole tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    size: [usize; 2],
    tile: [usize; 2],
    /// Rectangles one below the other and side by side.
    counts: [usize; 2],
    /// Whether those one below the other follow each other.
    downwards: bool,
}

/// What the rectangles of a product may be.
pub(super) struct Limits {
    /// Positions and channels that are multiplied together.
    pub tile: [usize; 2],
    /// The most positions and channels of a rectangle.
    pub most: [usize; 2],
    /// Whether those one below the other follow each other, and so find the same weights in the cache.
    pub downwards: bool,
}

impl Cut {
    /// Rectangles of a size, the last ones smaller, side by side first.
    pub fn blocks(size: [usize; 2], tile: [usize; 2]) -> Cut {
        Cut { size, tile, counts: tiles(size, tile), downwards: false }
    }

    /// Large ones for the cache, and of those the ones with which the last of the threads is done first,
    /// several for each thread.
    pub fn product(size: [usize; 2], limits: &Limits, threads: usize) -> Cut {
        let Limits { tile, most, downwards } = *limits;
        let tiles = tiles(size, tile);
        let fewest = [0, 1].map(|i| tiles[i].div_ceil(most[i] / tile[i]).max(1));
        let cut = |counts| Cut { size, tile, counts, downwards };
        if threads == 1 || fewest[0] * fewest[1] >= 16 * threads {
            return cut(fewest);
        }
        let step = threads.div_ceil(4);
        let counts = |i: usize| {
            let more = (fewest[i] + 2 * threads).min(tiles[i].max(1));
            (fewest[i]..=more).step_by(step)
        };
        let cuts = counts(1).flat_map(|across| counts(0).map(move |down| cut([down, across])));
        let time = |cut: &Cut| {
            let few = cut.tasks() < 2 * threads;
            (cut.time(threads) << usize::from(few), cut.tasks())
        };
        cuts.min_by_key(time).expect("one at least")
    }

    /// Until the last of the threads is done, in products of one row and one column.
    fn time(&self, threads: usize) -> usize {
        /// What it takes to pack a row and to read a column of weights, in products.
        const PACK: usize = 8;
        const READ: usize = 4;
        Team::rehearse(self.tasks(), threads, |task| {
            let [positions, channels] = self.task(task);
            (positions.len() + READ) * (channels.len() + PACK)
        })
    }

    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Positions and channels of the largest rectangle.
    pub fn largest(&self) -> [usize; 2] {
        let tiles = tiles(self.size, self.tile);
        [0, 1].map(|i| (tiles[i].div_ceil(self.counts[i].max(1)) * self.tile[i]).min(self.size[i]))
    }

    pub fn tasks(&self) -> usize {
        self.counts[0] * self.counts[1]
    }

    /// Positions and channels of a task.
    pub fn task(&self, task: usize) -> [Range<usize>; 2] {
        let [down, across] = self.counts;
        let place = match self.downwards {
            true => [task % down, task / down],
            false => [task / across, task % across],
        };
        let tiles = tiles(self.size, self.tile);
        [0, 1].map(|i| {
            let edge = |n: usize| (n * tiles[i] / self.counts[i] * self.tile[i]).min(self.size[i]);
            edge(place[i])..edge(place[i] + 1)
        })
    }
}

/// Tiles one below the other and side by side, the last ones smaller.
fn tiles(size: [usize; 2], tile: [usize; 2]) -> [usize; 2] {
    [0, 1].map(|i| size[i].div_ceil(tile[i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuts() -> impl Iterator<Item = (Cut, usize, [usize; 2])> {
        const SIZES: [[usize; 2]; 8] = [
            [784, 128],
            [197, 384],
            [197, 1536],
            [49, 2048],
            [196, 256],
            [12544, 64],
            [1, 1000],
            [17, 8],
        ];
        let threads = [1, 2, 3, 4];
        SIZES
            .into_iter()
            .flat_map(move |size| threads.into_iter().map(move |t| (size, t)))
            .flat_map(|(size, threads)| {
                [false, true].into_iter().map(move |downwards| {
                    let limits = Limits { tile: [14, 32], most: [112, 256], downwards };
                    (Cut::product(size, &limits, threads), threads, limits.most)
                })
            })
    }

    #[test]
    fn every_element_is_in_one_task() {
        let blocks = Cut::blocks([100, 70], [30, 16]);
        assert_eq!((blocks.tasks(), blocks.largest()), (4 * 5, [30, 16]));
        for (cut, _, most) in cuts().chain([(blocks, 1, [30, 16])]) {
            let [positions, channels] = cut.size();
            let mut times = vec![0; positions * channels];
            for [rows, columns] in (0..cut.tasks()).map(|task| cut.task(task)) {
                assert!(rows.len() <= cut.largest()[0] && columns.len() <= cut.largest()[1]);
                assert!(cut.largest()[0] <= most[0] && cut.largest()[1] <= most[1], "{cut:?}");
                for row in rows {
                    times[row * channels..][columns.clone()].iter_mut().for_each(|n| *n += 1);
                }
            }
            assert!(times.iter().all(|&n| n == 1), "{cut:?}");
            if cut.counts.iter().all(|&n| n > 1) {
                let shared = [0, 1].map(|i| cut.task(0)[i] == cut.task(1)[i]);
                assert_eq!(shared, [!cut.downwards, cut.downwards], "{cut:?}");
            }
        }
        assert_eq!(Cut::blocks([0, 70], [30, 16]).tasks(), 0);
    }

    /// Rectangles as large as they go would leave threads idle: one of two for an eighth of the time with
    /// seven of 112 rows, one of two for a twentieth with the 197 tokens of a ViT.
    #[test]
    fn few_tasks_go_round() {
        for (cut, threads, _) in cuts().filter(|(cut, ..)| cut.size()[0] * cut.size()[1] > 10_000) {
            let area = |task: usize| cut.task(task).iter().map(Range::len).product::<usize>();
            let last = Team::rehearse(cut.tasks(), threads, area);
            let all: usize = cut.size().iter().product();
            let loss = (last * threads) as f64 / all as f64;
            assert!(threads == 1 || cut.tasks() >= 2 * threads, "{cut:?}");
            let most = if threads == 3 { 1.08 } else { 1.01 };
            assert!(loss < most, "{cut:?} on {threads}: {loss}");
        }
    }
}
