//! `histokern report`: results of other verbs as one HTML page.

mod evaluation;
mod model;
mod other;
mod slides;

use super::{Global, Outcome};
use crate::error::{Context, Error, Result};
use crate::report::atomic;
use crate::report::html::{Cell, Page};
use crate::report::plot::svg;
use std::path::{Path, PathBuf};

/// Put results on one self-contained HTML page
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Understands the folders of `predict` and `evaluate`, models of `fit` (MODEL.toml, or a \
                  folder that holds one) and, as tables\nand pictures, any folder with CSV, SVG or PNG \
                  files. Figures are SVG within the page, pictures data URIs; the page\nneeds no network. \
                  Links lead from where the page lies to GeoJSON and result files.\n\nExamples:\n  \
                  histokern report out eval combined.toml -o report.html\n  \
                  histokern report out --slides slides --title 'Biopsies of May'"
)]
pub struct Args {
    /// Folders of results, or model files
    #[arg(value_name = "DIR", required = true)]
    inputs: Vec<PathBuf>,
    /// File to write
    #[arg(long, short, default_value = "report.html", value_name = "FILE.html")]
    output: PathBuf,
    /// Heading of the page
    #[arg(long, default_value = "Report", value_name = "TEXT")]
    title: String,
    /// Folders in which the slides lie, for pictures of tiles
    #[arg(long, value_name = "DIR", num_args = 1..)]
    slides: Vec<PathBuf>,
    /// Tiles shown with the highest, and with the lowest, attention of each slide
    #[arg(long, default_value_t = 6, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=50))]
    tiles: u8,
    /// Slides shown with pictures; the others are in the table only
    #[arg(long, default_value_t = 20, value_name = "N")]
    most: usize,
}

impl Args {
    /// A page at `output` of these results.
    pub fn of(
        title: &str,
        inputs: Vec<PathBuf>,
        slides: PathBuf,
        most: usize,
        output: PathBuf,
    ) -> Args {
        Args { inputs, output, title: title.into(), slides: vec![slides], tiles: 6, most }
    }
}

/// Largest file taken into a page.
const MAX_BYTES: u64 = 64 << 20;
/// Rows of a table shown; the rest is in the file.
const MAX_ROWS: usize = 200;

/// Runs the verb.
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let mut page = Page::new(&args.title);
    for input in &args.inputs {
        add(args, input, &mut page, global).context(|| input.display().to_string())?;
    }
    let program = format!("Made by {} {}", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    atomic::write_bytes(&args.output, page.finish(&program).as_bytes())?;
    global.say(&format!("{}: written", args.output.display()));
    Ok(Outcome::Done)
}

fn add(args: &Args, input: &Path, page: &mut Page, global: &Global) -> Result<()> {
    let name = name_of(input);
    if input.is_file() {
        return model::add(input, &name, page);
    }
    if !input.is_dir() {
        return Err(Error::usage("no such folder or model"));
    }
    if input.join("metrics.json").is_file() {
        return evaluation::add(input, &name, page);
    }
    if input.join("status.csv").is_file() {
        return slides::add(args, input, &name, page, global);
    }
    let models = files(input, "toml")?;
    let models: Vec<&PathBuf> =
        models.iter().filter(|p| p.file_name().is_some_and(|n| n != "recipe.toml")).collect();
    for model in &models {
        model::add(model, &name_of(model), page).context(|| model.display().to_string())?;
    }
    match other::add(input, &name, page)? {
        false if models.is_empty() => Err(Error::usage(
            "nothing to show: expected metrics.json (evaluate), status.csv (predict), a model (fit), \
             or CSV, SVG or PNG files",
        )),
        _ => Ok(()),
    }
}

fn name_of(path: &Path) -> String {
    // `.` and `..` have no name of their own.
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    whole.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Files of a folder with this extension, by name.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let read = |e| Error::io("cannot list", e);
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path.extension().is_some_and(|e| e == extension) && path.is_file() {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let name = || path.display().to_string();
    let size = std::fs::metadata(path).map_err(|e| Error::io("read", e)).context(name)?.len();
    if size > MAX_BYTES {
        return Err(Error::limit(format!("{size} bytes, too large for a page")).context(name()));
    }
    std::fs::read(path).map_err(|e| Error::io("read", e)).context(name)
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|_| Error::malformed("not UTF-8").context(path.display().to_string()))
}

/// Adds the figures of a folder, those named in `first` before the others.
fn add_figures(folder: &Path, first: &[&str], page: &mut Page) -> Result<bool> {
    let mut figures = files(folder, "svg")?;
    let place = |p: &PathBuf| {
        let stem = p.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        first.iter().position(|n| *n == stem).unwrap_or(first.len())
    };
    figures.sort_by_key(place);
    for path in &figures {
        let text = read_text(path)?;
        let (_, desc) = svg::check(&text).context(|| path.display().to_string())?;
        page.figure(&text, &desc);
    }
    Ok(!figures.is_empty())
}

/// Adds a CSV file as a table.
fn add_csv(path: &Path, caption: &str, page: &mut Page) -> Result<()> {
    let wrong = |e: csv::Error| Error::malformed(e.to_string()).context(path.display().to_string());
    let bytes = read(path)?;
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(&bytes[..]);
    let header: Vec<String> = reader.headers().map_err(wrong)?.iter().map(String::from).collect();
    let mut rows = Vec::new();
    let mut count = 0usize;
    for record in reader.records() {
        let record = record.map_err(wrong)?;
        count += 1;
        if count <= MAX_ROWS {
            rows.push(header.iter().zip(&record).map(|(name, text)| shown(name, text)).collect());
        }
    }
    let caption = if count > MAX_ROWS {
        format!("{caption} (the first {MAX_ROWS} of {count} rows)")
    } else {
        caption.to_string()
    };
    page.table(&caption, &header, &rows);
    Ok(())
}

/// A cell with numbers cut to six digits, and p-values to three places.
fn shown(column: &str, text: &str) -> Cell {
    let p = column == "p" || column.ends_with("_p");
    match text.parse::<f64>() {
        Ok(v) if p && v < 0.001 => Cell::Number("< 0.001".into()),
        Ok(v) if p => Cell::Number(format!("{v:.3}")),
        Ok(v) if text.len() > 8 && v.is_finite() => {
            let rounded =
                if v != 0.0 && v.abs() < 1e-4 { format!("{v:.2e}") } else { format!("{v:.4}") };
            Cell::Number(rounded)
        }
        _ => Cell::of(text),
    }
}
