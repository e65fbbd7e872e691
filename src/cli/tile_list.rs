//! Which tiles are looked at closely: the top and the rest of an attention table, or a sample.

use super::table::Table;
use crate::error::{Context, Error, Result};
use crate::report::result::SlideResult;
use crate::slide::Slide;
use std::collections::HashSet;
use std::path::Path;

/// A square of a slide.
#[derive(Clone, Debug, PartialEq)]
pub struct Tile {
    /// Top-left corner in level-0 pixels.
    pub origin: [i64; 2],
    /// Its attention score, from a list.
    pub score: Option<f64>,
    /// `top`, `rest` or `sample`.
    pub group: &'static str,
}

/// Tiles of one size.
#[derive(Clone, Debug)]
pub struct TileList {
    /// Side in level-0 pixels.
    pub side: f64,
    /// Those to look at.
    pub tiles: Vec<Tile>,
    /// Tiles there were to choose from.
    pub available: usize,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// What to take from a list.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The table, as `predict` writes it.
    pub path: &'a Path,
    /// Column of scores.
    pub column: Option<&'a str>,
    /// Tiles with the highest scores.
    pub top: usize,
    /// Tiles out of the others, evenly over their ranks.
    pub rest: usize,
    /// Side in level-0 pixels, in place of what `result.json` beside the table says.
    pub side: Option<f64>,
}

impl TileList {
    /// Chooses from a table with columns `x`, `y` and a score.
    ///
    /// # Errors
    /// Naming the file and line: no such column, no number, a tile that does not touch the slide;
    /// [`crate::Kind::Usage`] when the table belongs to another slide or the side is not known.
    pub fn read(choice: &Choice<'_>, slide: &Slide, sha256: &str) -> Result<TileList> {
        let table = Table::read(choice.path)?;
        let mut notes = Vec::new();
        let side = side(choice, sha256, &mut notes)?;
        let [xs, ys] = [table.numbers("x")?, table.numbers("y")?];
        let scores = table.numbers(&score_column(&table, choice.column)?)?;
        let base = &slide.levels()[0];
        let size = [base.width, base.height].map(f64::from);
        let mut seen = HashSet::new();
        let mut all = Vec::with_capacity(scores.len());
        for (row, score) in scores.into_iter().enumerate() {
            let at = [xs[row], ys[row]];
            if (0..2).any(|k| at[k] >= size[k] || at[k] + side <= 0.0) {
                let [w, h] = size;
                let what = format!(
                    "a tile at {}, {} does not touch the slide of {w} x {h} px: is the list of \
                     another slide?",
                    at[0], at[1]
                );
                return Err(table.at(row, "x", &what));
            }
            let origin = at.map(|v| v.round() as i64);
            if seen.insert(origin) {
                all.push((score, origin));
            }
        }
        if seen.len() < table.len() {
            let n = table.len() - seen.len();
            notes.push(format!("{n} tiles stand in the list more than once and count once"));
        }
        // Equal scores keep the order of the list.
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let available = all.len();
        let rest = all.split_off(choice.top.min(all.len()));
        let tile = |group| {
            move |&(score, origin): &(f64, [i64; 2])| Tile { origin, score: Some(score), group }
        };
        let mut tiles: Vec<Tile> = all.iter().map(tile("top")).collect();
        tiles.extend(evenly(&rest, choice.rest).into_iter().map(tile("rest")));
        Ok(TileList { side, tiles, available, notes })
    }

    /// Takes `count` of the tiles of a grid, evenly.
    pub fn sample(origins: &[[i64; 2]], side: f64, count: usize) -> TileList {
        let tile = |&origin: &[i64; 2]| Tile { origin, score: None, group: "sample" };
        TileList {
            side,
            tiles: evenly(origins, count).into_iter().map(tile).collect(),
            available: origins.len(),
            notes: Vec::new(),
        }
    }
}

/// `count` items, each from the middle of one of `count` equal parts; all if there are no more.
fn evenly<T>(items: &[T], count: usize) -> Vec<&T> {
    if items.len() <= count {
        return items.iter().collect();
    }
    (0..count).filter_map(|i| items.get((2 * i + 1) * items.len() / (2 * count))).collect()
}

fn side(choice: &Choice<'_>, sha256: &str, notes: &mut Vec<String>) -> Result<f64> {
    let path = choice.path.with_file_name("result.json");
    let mut stated = None;
    if path.is_file() {
        let result = SlideResult::read(&path)?;
        if result.slide.sha256.is_empty() {
            notes.push("result.json beside the list does not say which slide it is of".into());
        } else if result.slide.sha256 != sha256 {
            return Err(Error::usage(format!(
                "the list beside {} is of {}, which has other bytes than this slide",
                path.display(),
                result.slide.name
            )));
        }
        stated = result.tiles.size_level0;
    } else {
        notes.push("no result.json beside the list says which slide it is of".into());
    }
    choice.side.or(stated).ok_or_else(|| {
        Error::usage(format!(
            "{}: the side of its tiles is not known (no result.json beside it says): give it in \
             level-0 pixels with --tile-px",
            choice.path.display()
        ))
    })
}

/// The column asked for, or the one column of raw scores.
fn score_column(table: &Table, asked: Option<&str>) -> Result<String> {
    if let Some(column) = asked {
        return table.text(column).map(|_| column.to_owned());
    }
    let raw: Vec<&String> =
        table.names().iter().filter(|n| *n == "raw" || n.starts_with("raw_")).collect();
    match raw[..] {
        [one] => Ok(one.clone()),
        [] => Err(table.blame(Error::usage("no column raw: name the scores with --column"))),
        _ => {
            let names: Vec<&str> = raw.iter().map(|s| s.as_str()).collect();
            let names = names.join(", ");
            Err(table.blame(Error::usage(format!("scores in {names}: name one with --column"))))
        }
    }
    .context(|| "--tiles".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_choice_covers_all_ranks() {
        let items: Vec<usize> = (0..100).collect();
        let chosen: Vec<usize> = evenly(&items, 4).into_iter().copied().collect();
        assert_eq!(chosen, [12, 37, 62, 87]);
        assert_eq!(evenly(&items, 100).len(), 100);
        assert_eq!(evenly(&items, 1000).len(), 100);
        assert!(evenly(&items, 0).is_empty());
    }
}
