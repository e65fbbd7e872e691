//! `histokern info`: what a slide file holds, and whether all of it can be read.

use super::{Global, Outcome};
use crate::error::{Error, Result};
use crate::slide::{OpenOptions, Scratch, Slide, TileIndex};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

/// Show what a slide holds: levels, pixel size, associated images, properties
#[derive(clap::Args, Clone, Debug)]
pub struct Info {
    /// The slide
    slide: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Micrometres per level-0 pixel, in place of what the file says
    #[arg(long, value_name = "UM")]
    mpp_override: Option<f64>,
    /// Decode every tile of every level and every associated image, and list what fails
    #[arg(long)]
    verify: bool,
    /// With --verify --json: add the SHA-256 of the pixels of every tile
    #[arg(long, requires_all = ["verify", "json"], hide = true)]
    digests: bool,
}

/// What decoding everything found.
#[derive(Default)]
struct Verified {
    tiles: usize,
    missing: Vec<TileIndex>,
    failed: Vec<(String, String)>,
    digests: Vec<Value>,
}

/// Runs the verb.
pub fn run(args: &Info, _global: &Global) -> Result<Outcome> {
    let options = OpenOptions { mpp_override: args.mpp_override, ..OpenOptions::default() };
    let slide = Slide::open(&args.slide, &options)?;
    let verified = args.verify.then(|| verify(&slide, args.digests)).transpose()?;
    let text = if args.json {
        let mut value = to_json(&slide);
        if let (Value::Object(map), Some(verified)) = (&mut value, &verified) {
            map.insert("verify".into(), verified.to_json(args.digests));
        }
        format!("{value:#}\n")
    } else {
        let verified = verified.as_ref().map(Verified::to_text);
        to_text(&slide) + &verified.unwrap_or_default()
    };
    print(&text)?;
    match verified {
        Some(v) if !v.failed.is_empty() => {
            let message = format!("{} parts cannot be decoded", v.failed.len());
            Err(Error::malformed(message).context(args.slide.display().to_string()))
        }
        _ => Ok(Outcome::Done),
    }
}

/// Writes to standard output; a reader that has seen enough is no error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("cannot write to standard output", e))
        }
        _ => Ok(()),
    }
}

fn to_json(slide: &Slide) -> Value {
    let levels = slide.levels().iter().map(|level| {
        json!({
            "width": level.width,
            "height": level.height,
            "downsample": level.downsample,
            "tile_width": level.tile_width,
            "tile_height": level.tile_height,
            "compression": level.compression,
        })
    });
    json!({
        "path": slide.path().display().to_string(),
        "format": slide.format(),
        "levels": levels.collect::<Vec<_>>(),
        "mpp": slide.mpp().map(|mpp| json!({ "x": mpp.x, "y": mpp.y, "source": mpp.source.name() })),
        "objective_power": slide.objective_power(),
        "associated": slide.associated_names(),
        "icc_profile_bytes": slide.icc_profile_bytes().unwrap_or(None),
        "properties": slide.properties(),
    })
}

fn to_text(slide: &Slide) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<16} {}", printable(&value));
    };
    line("path", slide.path().display().to_string());
    line("format", slide.format().into());
    match slide.mpp() {
        Some(mpp) => {
            let guess = if mpp.source == crate::slide::MppSource::ObjectivePower {
                ", a guess"
            } else {
                ""
            };
            let value = format!("{} x {} um/px ({}{guess})", mpp.x, mpp.y, mpp.source.name());
            line("pixel size", value);
        }
        None => line("pixel size", "unknown (give --mpp-override)".into()),
    }
    let power = slide.objective_power().map_or("unknown".into(), |power| format!("{power}x"));
    line("objective", power);
    let names = slide.associated_names();
    line("associated", if names.is_empty() { "none".into() } else { names.join(", ") });
    let profile = match slide.icc_profile_bytes() {
        Ok(Some(bytes)) => format!("{bytes} bytes"),
        Ok(None) => "none".into(),
        Err(error) => format!("unreadable: {error}"),
    };
    line("ICC profile", profile);
    let _ = writeln!(text, "\nlevel       width      height  downsample        tile  compression");
    for (k, level) in slide.levels().iter().enumerate() {
        let tile = format!("{}x{}", level.tile_width, level.tile_height);
        let _ = writeln!(
            text,
            "{k:>5}  {:>10}  {:>10}  {:>10.4}  {tile:>10}  {}",
            level.width, level.height, level.downsample, level.compression
        );
    }
    if !slide.properties().is_empty() {
        let _ = writeln!(text, "\nproperties");
    }
    for (key, value) in slide.properties() {
        let mut value = printable(value);
        if value.chars().count() > 200 {
            value = value.chars().take(200).chain("...".chars()).collect();
        }
        let _ = writeln!(text, "  {}: {value}", printable(key));
    }
    text
}

/// Text from a file as it may be shown on a terminal: control characters are escaped.
fn printable(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().collect() } else { vec![c] };
    text.chars().flat_map(escape).collect()
}

/// Decodes every native tile and every associated image.
fn verify(slide: &Slide, digests: bool) -> Result<Verified> {
    let mut verified = Verified::default();
    let mut scratch = Scratch::default();
    for (k, level) in slide.levels().iter().enumerate() {
        for row in 0..level.height.div_ceil(level.tile_height) {
            for col in 0..level.width.div_ceil(level.tile_width) {
                let index = TileIndex { level: k, col, row };
                verified.tiles += 1;
                let mut entry = json!({ "level": k, "col": col, "row": row });
                match slide.read_tile(index, &mut scratch) {
                    Ok(tile) => {
                        if !tile.missing.is_empty() {
                            verified.missing.push(index);
                            entry["missing"] = true.into();
                        }
                        if digests {
                            entry["sha256"] = hex(&tile.image.data).into();
                        }
                    }
                    Err(error) => {
                        let name = format!("level {k}, tile ({col}, {row})");
                        entry["error"] = error.to_string().into();
                        verified.failed.push((name, error.to_string()));
                    }
                }
                if digests {
                    verified.digests.push(entry);
                }
            }
        }
    }
    for name in slide.associated_names() {
        if let Err(error) = slide.associated(name) {
            verified.failed.push((name.into(), error.to_string()));
        }
    }
    slide.check_unchanged()?;
    Ok(verified)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Verified {
    fn to_json(&self, digests: bool) -> Value {
        let missing =
            self.missing.iter().map(|t| json!({ "level": t.level, "col": t.col, "row": t.row }));
        let failed =
            self.failed.iter().map(|(part, error)| json!({ "part": part, "error": error }));
        let mut map = Map::new();
        map.insert("tiles".into(), self.tiles.into());
        map.insert("missing".into(), missing.collect());
        map.insert("failed".into(), failed.collect());
        if digests {
            map.insert("digests".into(), self.digests.clone().into());
        }
        map.into()
    }

    fn to_text(&self) -> String {
        let mut text = format!("\n{} tiles read", self.tiles);
        let _ = writeln!(
            text,
            ", {} hold no data, {} parts fail",
            self.missing.len(),
            self.failed.len()
        );
        for (part, error) in &self.failed {
            let _ = writeln!(text, "  {part}: {}", printable(error));
        }
        text
    }
}
