//! Confusion matrices.

use super::figure::{Anchor, Figure, INK, TEXT, fitted};
use super::lettering;

const CELL: f64 = 92.0;

/// Counts `[truth][predicted]` of the classes, each cell with its share of the row.
pub fn confusion(title: &str, classes: &[String], counts: &[Vec<usize>]) -> Figure {
    let k = classes.len() as f64;
    let cell = if classes.len() > 5 { 62.0 } else { CELL };
    let names: Vec<String> = classes.iter().map(|c| fitted(c, TEXT, 140.0)).collect();
    let widest = names.iter().map(|n| lettering::width(n, TEXT)).fold(0.0, f64::max);
    let (left, top) = (widest + 70.0, 92.0);
    let width = (left + k * cell + 30.0).max(lettering::width(title, 16.0) + 36.0);
    let mut figure = Figure::new("confusion", title, width, top + k * cell + 28.0);
    figure.text([left + k * cell / 2.0, top - 32.0], "Predicted", Anchor::Middle);
    figure.text_upwards([24.0, top + k * cell / 2.0], "Truth");
    let mut desc = String::new();
    for (i, row) in counts.iter().enumerate() {
        let sum: usize = row.iter().sum();
        let y = top + i as f64 * cell;
        figure.text([left - 10.0, y + cell / 2.0 + 5.0], &names[i], Anchor::End);
        let head = fitted(&classes[i], TEXT, cell - 6.0);
        figure.text([left + (i as f64 + 0.5) * cell, top - 10.0], &head, Anchor::Middle);
        for (j, n) in row.iter().enumerate() {
            let share = if sum > 0 { *n as f64 / sum as f64 } else { 0.0 };
            let x = left + j as f64 * cell;
            let mix = |full: f64| (255.0 + share * (full - 255.0)) as u8;
            let shade = [mix(0.0), mix(90.0), mix(150.0)];
            figure.rectangle([x + 1.0, y + 1.0, cell - 2.0, cell - 2.0], shade, 1.0);
            let ink = if share > 0.5 { [255; 3] } else { INK };
            let middle = [x + cell / 2.0, y + cell / 2.0];
            figure.write_text(
                [middle[0], middle[1] + 2.0],
                &n.to_string(),
                16.0,
                Anchor::Middle,
                ink,
            );
            let percent = format!("{:.1} %", 100.0 * share);
            figure.write_text([middle[0], middle[1] + 20.0], &percent, 12.0, Anchor::Middle, ink);
            desc.push_str(&format!("Truth {}, predicted {}: {n}. ", classes[i], classes[j]));
        }
    }
    let (right, bottom) = (left + k * cell, top + k * cell);
    let frame = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]];
    figure.line(&frame, super::figure::Stroke::solid(INK, 1.2));
    figure.desc = desc;
    figure
}
