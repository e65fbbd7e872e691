//! WEEP: which tiles keep a slide above a threshold (Sharma et al. 2024, arXiv:2403.15238).

use crate::graph::Reduce;

/// One step of the explanation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Removal {
    /// Index of the tile that was taken away.
    pub tile: usize,
    /// Fraction of all tiles taken away so far, this one included.
    pub removed: f64,
    /// Percentile of the remaining tiles.
    pub score: f64,
    /// Whether the slide is still at or above the threshold.
    pub selected: bool,
}

/// Takes away the tile with the highest prediction again and again until the percentile `q` of the
/// rest falls below `threshold`; the tiles taken away before that are the explanation. The last
/// removal is the one that made it fall, if any did. Of equal predictions the earlier tile goes
/// first.
///
/// Predictions must be finite. An empty list of tiles, and a slide below the threshold from the
/// start, have no explanation.
pub fn explain(predictions: &[f64], q: f32, threshold: f64) -> Vec<Removal> {
    let mut order: Vec<usize> = (0..predictions.len()).collect();
    order.sort_by(|&a, &b| predictions[b].total_cmp(&predictions[a]));
    let mut removals = Vec::new();
    if order.is_empty() || percentile(predictions, &order, q) < threshold {
        return removals;
    }
    for (i, &tile) in order.iter().enumerate().take(predictions.len() - 1) {
        let score = percentile(predictions, &order[i + 1..], q);
        let selected = score >= threshold;
        let removed = (i + 1) as f64 / predictions.len() as f64;
        removals.push(Removal { tile, removed, score, selected });
        if !selected {
            break;
        }
    }
    removals
}

/// The score of the whole slide, which the explanation starts from: the percentile `q` of all
/// predictions. Not a number without any.
pub fn score(predictions: &[f64], q: f32) -> f64 {
    let mut order: Vec<usize> = (0..predictions.len()).collect();
    order.sort_by(|&a, &b| predictions[b].total_cmp(&predictions[a]));
    if order.is_empty() { f64::NAN } else { percentile(predictions, &order, q) }
}

/// The percentile of tiles in descending order, interpolated as pandas does.
fn percentile(predictions: &[f64], descending: &[usize], q: f32) -> f64 {
    let n = descending.len();
    let (at, fraction) = Reduce::rank(q, n);
    let value = |rank: usize| predictions[descending[n - 1 - rank]];
    let (below, above) = (value(at), value((at + 1).min(n - 1)));
    below + (above - below) * fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand, with `numpy.quantile(rest, 0.75)` for each score.
    #[test]
    fn tiles_are_taken_from_the_top_until_the_slide_falls() {
        let predictions = [0.1, 0.9, 0.4, 0.8, 0.6, 0.2];
        let removals = explain(&predictions, 0.75, 0.44);
        let tiles: Vec<usize> = removals.iter().map(|r| r.tile).collect();
        assert_eq!(tiles, [1, 3, 4]);
        let scores: Vec<f64> = removals.iter().map(|r| r.score).collect();
        for (got, want) in scores.iter().zip([0.6, 0.45, 0.3]) {
            assert!((got - want).abs() < 1e-12, "{scores:?}");
        }
        assert_eq!(removals.iter().filter(|r| r.selected).count(), 2);
        assert_eq!(removals[1].removed, 1.0 / 3.0);
    }

    #[test]
    fn a_slide_below_the_threshold_has_no_explanation() {
        assert!(explain(&[0.1, 0.2], 0.75, 0.5).is_empty());
        assert!(explain(&[], 0.75, 0.5).is_empty());
        // All tiles alike: none of them makes the difference, and one must remain.
        assert_eq!(explain(&[0.7; 5], 0.75, 0.5).len(), 4);
    }
}
