//! Tables: attention of one slide, status and predictions of a cohort.
//!
//! RFC 4180 quoting, one header row, `\n` line ends, numbers in the shortest form that reads back
//! to the same value.

use super::atomic;
use super::result::{Ensemble, Outcome};
use crate::error::{Error, Result};
use serde::Serialize;
use std::fmt::Display;
use std::path::Path;

/// Attention of one branch of a head over the tiles of a slide.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Class of the branch; empty when the head has one branch.
    pub class: &'a str,
    /// `[N]` scores before the softmax.
    pub raw: &'a [f32],
    /// `[N]` weights after it.
    pub softmax: &'a [f32],
}

/// Writes `attention.csv`: `x`, `y` in level-0 pixels, then `raw` and `softmax`, or one such pair
/// a class.
///
/// # Errors
/// Naming the file: lengths that differ, or the system's.
pub fn write_attention(path: &Path, coords: &[[i64; 2]], branches: &[Attention]) -> Result<()> {
    let mut header = vec!["x".to_owned(), "y".to_owned()];
    for branch in branches {
        if branch.raw.len() != coords.len() || branch.softmax.len() != coords.len() {
            let [r, s, n] = [branch.raw.len(), branch.softmax.len(), coords.len()];
            let what = format!("{r} raw scores and {s} weights for {n} tiles");
            return Err(Error::usage(what).context(path.display().to_string()));
        }
        let suffix = if branch.class.is_empty() { "" } else { "_" };
        header.extend(["raw", "softmax"].map(|c| format!("{c}{suffix}{}", branch.class)));
    }
    let rows = coords.iter().enumerate().map(|(i, xy)| {
        let scores = branches.iter().flat_map(move |b| [number(b.raw[i]), number(b.softmax[i])]);
        xy.iter().map(i64::to_string).chain(scores).collect()
    });
    write(path, &header, rows)
}

/// Writes `tiles.csv`: `x`, `y` in level-0 pixels, then the named columns, each `[N]`; a cell stays
/// empty where there is no number (NaN).
///
/// # Errors
/// Naming the file: lengths that differ, or the system's.
pub fn write_tiles(path: &Path, coords: &[[i64; 2]], columns: &[(String, Vec<f64>)]) -> Result<()> {
    let mut header = vec!["x".to_owned(), "y".to_owned()];
    for (name, values) in columns {
        if values.len() != coords.len() {
            let what = format!("{} numbers of {name} for {} tiles", values.len(), coords.len());
            return Err(Error::usage(what).context(path.display().to_string()));
        }
        header.push(name.clone());
    }
    let rows = coords.iter().enumerate().map(|(i, xy)| {
        let cell = |v: f64| if v.is_nan() { String::new() } else { number(v) };
        let numbers = columns.iter().map(|(_, values)| cell(values[i]));
        xy.iter().map(i64::to_string).chain(numbers).collect()
    });
    write(path, &header, rows)
}

/// Reads places and one column of numbers of a table that [`write_tiles`] wrote. Rows whose cell in
/// that column is empty, as those of tiles without a prediction, are passed over.
///
/// # Errors
/// Naming the file, and row or column: it cannot be read, a column is missing, a cell is not a
/// finite number, or there is no row.
pub fn read_tiles(path: &Path, column: &str) -> Result<(Vec<[i64; 2]>, Vec<f64>)> {
    let name = || path.display().to_string();
    let failed = |e: csv::Error| match e.into_kind() {
        csv::ErrorKind::Io(e) => Error::io(name(), e),
        other => Error::malformed(format!("{}: {other:?}", name())),
    };
    let mut reader = csv::Reader::from_path(path).map_err(failed)?;
    let header = reader.headers().map_err(failed)?.clone();
    let find = |wanted: &str| {
        header.iter().position(|h| h == wanted).ok_or_else(|| {
            let there = header.iter().collect::<Vec<_>>().join(", ");
            Error::malformed(format!("{}: no column {wanted}; there are {there}", name()))
        })
    };
    let (x, y, value) = (find("x")?, find("y")?, find(column)?);
    let (mut places, mut values) = (Vec::new(), Vec::new());
    for (row, record) in reader.records().enumerate() {
        let record = record.map_err(failed)?;
        let cell = |at: usize| record.get(at).unwrap_or_default();
        let bad = |at: usize| {
            let text = cell(at);
            Error::malformed(format!("{}: row {}: {text:?} is not a number", name(), row + 2))
        };
        if cell(value).is_empty() {
            continue;
        }
        let whole = |at: usize| cell(at).parse::<i64>().map_err(|_| bad(at));
        places.push([whole(x)?, whole(y)?]);
        let number = cell(value).parse::<f64>().ok().filter(|v| v.is_finite());
        values.push(number.ok_or_else(|| bad(value))?);
    }
    if values.is_empty() {
        return Err(Error::malformed(format!("{}: no row", name())));
    }
    Ok((places, values))
}

/// Writes `attention.csv` for images instead of places: `image`, `bag`, then `raw` and `softmax`
/// for each of `branches` columns of `[N, branches]` scores.
///
/// # Errors
/// Naming the file.
pub fn write_image_attention<'a>(
    path: &Path,
    images: impl Iterator<Item = (&'a str, usize)>,
    raw: &[f32],
    softmax: &[f32],
    branches: usize,
) -> Result<()> {
    let mut header = vec!["image".to_owned(), "bag".to_owned()];
    for branch in 0..branches {
        let suffix = if branches == 1 { String::new() } else { format!("_{branch}") };
        header.extend(["raw", "softmax"].map(|c| format!("{c}{suffix}")));
    }
    let scores = raw.chunks(branches.max(1)).zip(softmax.chunks(branches.max(1)));
    let rows = images.zip(scores).map(|((image, bag), (raw, softmax))| {
        let pairs = raw.iter().zip(softmax).flat_map(|(&r, &s)| [number(r), number(s)]);
        [image.to_owned(), bag.to_string()].into_iter().chain(pairs).collect()
    });
    write(path, &header, rows)
}

/// How a slide of a cohort ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its results are complete.
    Done,
    /// It could not be processed.
    Failed,
    /// Its results were there already.
    Skipped,
    /// It has no tissue or no tile.
    Empty,
}

impl Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Status::Done => "done",
            Status::Failed => "failed",
            Status::Skipped => "skipped",
            Status::Empty => "empty",
        })
    }
}

/// One row of `status.csv`.
#[derive(Clone, Debug, PartialEq)]
pub struct SlideStatus {
    /// Slide name without folder.
    pub slide: String,
    /// How it ended.
    pub status: Status,
    /// Why, when not done.
    pub reason: String,
    /// Tiles that were encoded.
    pub tiles_kept: usize,
    /// Tiles that could not be read.
    pub tiles_unread: usize,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// Writes `status.csv`.
///
/// # Errors
/// Naming the file.
pub fn write_status(path: &Path, slides: &[SlideStatus]) -> Result<()> {
    let header = ["slide", "status", "reason", "tiles_kept", "tiles_unread", "seconds"];
    let rows = slides.iter().map(|s| {
        let counts = [s.tiles_kept, s.tiles_unread].map(|n| n.to_string());
        let mut row = vec![s.slide.clone(), s.status.to_string(), s.reason.clone()];
        row.extend(counts);
        row.push(format!("{:.3}", s.seconds));
        row
    });
    write(path, &header, rows)
}

/// The prediction of one head for one slide.
#[derive(Clone, Debug, PartialEq)]
pub struct CohortRow {
    /// Slide name without folder.
    pub slide: String,
    /// Head name.
    pub head: String,
    /// What it said.
    pub outcome: Outcome,
    /// How far the packages of an ensemble agree.
    pub ensemble: Option<Ensemble>,
}

/// Writes `predictions.csv`: one row a slide and head with its `value`, or the most probable class
/// (the first of equals) as `prediction` and one `p_<class>` column for every class of the cohort. An
/// ensemble adds `sd`, `min`, `max` and `member_<i>` of the value, or the same of each class with the
/// class behind.
/// Cells that do not apply are empty, columns that nothing applies to are left out.
///
/// # Errors
/// Naming the file.
pub fn write_predictions(path: &Path, rows: &[CohortRow]) -> Result<()> {
    let mut columns: Vec<&String> = Vec::new();
    let mut has_value = false;
    for row in rows {
        match &row.outcome {
            Outcome::Value { .. } => has_value = true,
            Outcome::Classes { classes, .. } => {
                for class in classes {
                    if !columns.contains(&class) {
                        columns.push(class);
                    }
                }
            }
        }
    }
    let mut header = vec!["slide".to_owned(), "head".to_owned()];
    header.extend(has_value.then(|| "value".to_owned()));
    header.extend((!columns.is_empty()).then(|| "prediction".to_owned()));
    header.extend(columns.iter().map(|class| format!("p_{class}")));
    let members = rows.iter().filter_map(|row| row.ensemble.as_ref()).map(|e| e.members.len());
    let spread = Spread { members: members.max().unwrap_or(0), columns: &columns, has_value };
    spread.header(&mut header);
    let table = rows.iter().map(|row| {
        let (value, list) = match &row.outcome {
            Outcome::Value { value } => (number(*value), Vec::new()),
            Outcome::Classes { classes, probabilities } => {
                (String::new(), classes.iter().zip(probabilities).collect())
            }
        };
        let mut cells = vec![row.slide.clone(), row.head.clone()];
        cells.extend(has_value.then_some(value));
        cells.extend((!columns.is_empty()).then(|| most_probable(&list)));
        cells.extend(columns.iter().map(|column| {
            let found = list.iter().find(|(class, _)| class == column);
            found.map_or(String::new(), |(_, p)| number(**p))
        }));
        spread.cells(row, &mut cells);
        cells
    });
    write(path, &header, table)
}

/// The columns that say how far the members of an ensemble agree; none without members.
struct Spread<'a> {
    members: usize,
    /// Classes of the cohort.
    columns: &'a [&'a String],
    has_value: bool,
}

impl Spread<'_> {
    /// Suffixes: nothing for a value, then one a class.
    fn suffixes(&self) -> Vec<String> {
        let value = self.has_value.then(String::new);
        value.into_iter().chain(self.columns.iter().map(|class| format!("_{class}"))).collect()
    }

    fn header(&self, header: &mut Vec<String>) {
        for suffix in self.suffixes().iter().filter(|_| self.members > 0) {
            header.extend(["sd", "min", "max"].map(|what| format!("{what}{suffix}")));
            header.extend((1..=self.members).map(|i| format!("member_{i}{suffix}")));
        }
    }

    fn cells(&self, row: &CohortRow, cells: &mut Vec<String>) {
        if self.members == 0 {
            return;
        }
        let blank = || vec![String::new(); 3 + self.members];
        // Which number of the answer a group of columns shows.
        let place = |class: Option<&String>| match (&row.outcome, class) {
            (Outcome::Value { .. }, None) => Some(0),
            (Outcome::Classes { classes, .. }, Some(class)) => {
                classes.iter().position(|c| c == class)
            }
            _ => None,
        };
        let groups = self.has_value.then_some(None).into_iter();
        for class in groups.chain(self.columns.iter().map(|class| Some(*class))) {
            let mut group = blank();
            if let (Some(i), Some(e)) = (place(class), &row.ensemble) {
                let members = e.members.iter().map(|m| m.outcome.numbers().get(i));
                let numbers = [e.sd.get(i), e.min.get(i), e.max.get(i)].into_iter().chain(members);
                for (cell, value) in group.iter_mut().zip(numbers) {
                    *cell = value.map_or(String::new(), |v| number(*v));
                }
            }
            cells.extend(group);
        }
    }
}

fn most_probable(list: &[(&String, &f64)]) -> String {
    let mut best: Option<(&String, &f64)> = None;
    for &(class, p) in list {
        if best.is_none_or(|best| p > best.1) {
            best = Some((class, p));
        }
    }
    best.map_or(String::new(), |(class, _)| class.clone())
}

/// The shortest text that reads back to the same value, with an exponent where that is shorter.
pub(super) fn number(value: impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Writes any table, cells as they are.
///
/// # Errors
/// Naming the file.
pub fn write<H: AsRef<[u8]>>(
    path: &Path,
    header: &[H],
    rows: impl Iterator<Item = Vec<String>>,
) -> Result<()> {
    atomic::write(path, |w| {
        let mut writer = csv::Writer::from_writer(w);
        let failed = |e: csv::Error| match e.into_kind() {
            csv::ErrorKind::Io(e) => Error::io("cannot write", e),
            other => Error::malformed(format!("{other:?}")),
        };
        writer.write_record(header).map_err(failed)?;
        for row in rows {
            writer.write_record(&row).map_err(failed)?;
        }
        writer.flush().map_err(|e| Error::io("cannot write", e))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&Path) -> Result<()>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        write(&path).unwrap();
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn attention_has_one_pair_of_columns_a_class() {
        let coords = [[0, 7], [512, -3]];
        let one = Attention { class: "", raw: &[0.1, -2.0], softmax: &[1e-30, 1.0] };
        let text = written(|p| write_attention(p, &coords, &[one]));
        assert_eq!(text, "x,y,raw,softmax\n0,7,0.1,1e-30\n512,-3,-2,1\n");
        let two = [Attention { class: "a", ..one }, Attention { class: "b, c", ..one }];
        let text = written(|p| write_attention(p, &coords, &two));
        assert!(
            text.starts_with("x,y,raw_a,softmax_a,\"raw_b, c\",\"softmax_b, c\"\n0,7,"),
            "{text}"
        );
        let short = Attention { raw: &[0.0], ..one };
        let error = write_attention(Path::new("/tmp/a.csv"), &coords, &[short]).unwrap_err();
        assert!(error.to_string().starts_with("/tmp/a.csv: 1 raw scores"), "{error}");
    }

    #[test]
    fn every_float_reads_back_to_its_bits() {
        let mut bits = 0x9e37_79b9u32;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(bits);
            if value.is_finite() {
                let text = number(value);
                assert_eq!(text.parse::<f32>().unwrap().to_bits(), bits, "{text}");
                assert!(text.len() <= 17, "{text}");
            }
        }
    }

    #[test]
    fn status_quotes_what_needs_it() {
        let row = SlideStatus {
            slide: "a \"b\".svs".into(),
            status: Status::Failed,
            reason: "directory 2: tag 324,\ncut short".into(),
            tiles_kept: 0,
            tiles_unread: 3,
            seconds: 1.25,
        };
        let text = written(|p| write_status(p, &[row]));
        assert_eq!(
            text,
            "slide,status,reason,tiles_kept,tiles_unread,seconds\n\
             \"a \"\"b\"\".svs\",failed,\"directory 2: tag 324,\ncut short\",0,3,1.250\n"
        );
    }

    #[test]
    fn predictions_of_unlike_heads_share_a_table() {
        let row = |slide: &str, head: &str, outcome| CohortRow {
            slide: slide.into(),
            head: head.into(),
            outcome,
            ensemble: None,
        };
        let classes = |p: [f64; 2]| Outcome::Classes {
            classes: vec!["N0".into(), "N+".into()],
            probabilities: p.to_vec(),
        };
        let rows = [
            row("a", "metastasis", classes([0.25, 0.75])),
            row("a", "MKI67", Outcome::Value { value: 3.5 }),
            row("b", "metastasis", classes([0.5, 0.5])),
        ];
        let text = written(|p| write_predictions(p, &rows));
        assert_eq!(
            text,
            "slide,head,value,prediction,p_N0,p_N+\n\
             a,metastasis,,N+,0.25,0.75\n\
             a,MKI67,3.5,,,\n\
             b,metastasis,,N0,0.5,0.5\n"
        );
        let text = written(|p| write_predictions(p, &rows[1..2]));
        assert_eq!(text, "slide,head,value\na,MKI67,3.5\n");
    }
}
