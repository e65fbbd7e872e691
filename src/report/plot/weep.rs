//! The running score of a slide while tiles are taken away from the highest down (WEEP).

use super::axes::{Axes, Scale};
use super::figure::{Figure, GREY, Stroke, colour};
use super::number;

/// Steps of at most this many tiles are shown one by one.
const DOTTED: usize = 60;

/// Percent of tiles taken away against the score of the rest: `points` are `(percent, score)` from
/// nothing taken away on, `selected` how many tiles could go before the score fell below `threshold`.
pub fn weep(points: &[[f64; 2]], selected: usize, threshold: f64) -> Figure {
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values.fold([f64::INFINITY, f64::NEG_INFINITY], |[a, b], v| [a.min(v), b.max(v)])
    };
    let [_, most] = ends(&mut points.iter().map(|p| p[0]));
    let [low, high] = ends(&mut points.iter().map(|p| p[1]).chain([threshold]));
    let x = Scale::nice(0.0, most.max(1.0), "Tiles taken away, highest first (%)");
    let y = Scale::nice(low, high, "Score of the slide");
    let (mut figure, axes) = Axes::figure("weep_curve", "WEEP", x, y, 2);
    let [left, right] = axes.x_ends();
    let cut = Stroke::dashed(GREY, 1.2);
    axes.line(&mut figure, &[[left, threshold], [right, threshold]], cut);
    let curve = Stroke::solid(colour(0), 2.0);
    axes.line(&mut figure, points, curve);
    if points.len() <= DOTTED {
        let places: Vec<[f64; 2]> = points.iter().map(|p| axes.at(p[0], p[1])).collect();
        figure.dots(&places, 3.0, colour(0), 1.0);
    }
    let labels = [
        (curve, "score of the tiles left".to_string()),
        (cut, format!("threshold {}", number(threshold))),
    ];
    figure.legend(axes.legend_at(), &labels);
    let first = points.first().map_or(f64::NAN, |p| p[1]);
    let share = points.get(selected).map_or(0.0, |p| p[0]);
    let mut remark = vec![format!("{selected} tiles ({} %) selected", number(share))];
    figure.desc = format!(
        "The slide has the score {}. {selected} tiles, {} percent, can be taken away before it falls \
         below {}.",
        number(first),
        number(share),
        number(threshold)
    );
    if let Some([_, score]) = points.get(selected + 1) {
        remark.push(format!("one more: {}", number(*score)));
        figure.desc.push_str(&format!(" One more leaves {}.", number(*score)));
    }
    axes.remark(&mut figure, &remark);
    figure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::plot::figure::Mark;

    #[test]
    fn the_curve_runs_through_the_scores_and_names_the_fall() {
        let points = [[0.0, 0.75], [25.0, 0.5], [50.0, 0.25]];
        let figure = weep(&points, 1, 0.4);
        let lines: Vec<&Vec<[f64; 2]>> = figure
            .marks
            .iter()
            .filter_map(|mark| match mark {
                Mark::Line { points, stroke } if stroke.rgb == colour(0) => Some(points),
                _ => None,
            })
            .collect();
        let curve = lines[0];
        assert_eq!(curve.len(), 3);
        // Even steps in both directions, to the right and down.
        let step = |i: usize| [curve[i + 1][0] - curve[i][0], curve[i + 1][1] - curve[i][1]];
        let ([a, b], [c, d]) = (step(0), step(1));
        assert!(a > 1.0 && b > 1.0 && (a - c).abs() < 1e-9 && (b - d).abs() < 1e-9);
        assert!(figure.desc.contains("1 tiles, 25 percent"), "{}", figure.desc);
        assert!(figure.desc.contains("One more leaves 0.25"), "{}", figure.desc);
    }
}
