//! `histokern region`: a rectangle of a slide, or an associated image, as a PNG.

use super::{Global, Outcome};
use crate::error::{Context, Error, Result};
use crate::image::RgbImage;
use crate::slide::{self, OpenOptions, Slide};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

/// Write a rectangle of one level, or an associated image, as a PNG
#[derive(clap::Args, Clone, Debug)]
pub struct Region {
    /// The slide
    slide: PathBuf,
    /// The level to read
    #[arg(long, default_value_t = 0, conflicts_with = "associated")]
    level: usize,
    /// Left edge in level-0 pixels; may lie outside the slide
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, conflicts_with = "associated")]
    x: i64,
    /// Top edge in level-0 pixels; may lie outside the slide
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, conflicts_with = "associated")]
    y: i64,
    /// Width in pixels of the level
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), required_unless_present = "associated")]
    width: Option<u32>,
    /// Height in pixels of the level
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), required_unless_present = "associated")]
    height: Option<u32>,
    /// Write this associated image: label, macro or thumbnail
    #[arg(long, value_name = "NAME", conflicts_with_all = ["width", "height"])]
    associated: Option<String>,
    /// The PNG to write
    #[arg(long, short)]
    output: PathBuf,
}

/// Runs the verb.
pub fn run(args: &Region, global: &Global) -> Result<Outcome> {
    let slide = Slide::open(&args.slide, &OpenOptions::default())?;
    let image = match &args.associated {
        Some(name) => slide.associated(name)?,
        None => {
            let (width, height) = args
                .width
                .zip(args.height)
                .ok_or_else(|| Error::usage("--width and --height are needed"))?;
            let region = slide::Region { x: args.x, y: args.y, level: args.level, width, height };
            let read = slide.read_region(&region)?;
            if !read.missing.is_empty() && !global.quiet {
                eprintln!("{} native tiles hold no data in the file", read.missing.len());
            }
            read.image
        }
    };
    write_png(&image, &args.output).context(|| args.output.display().to_string())?;
    Ok(Outcome::Done)
}

/// Writes to a temporary file beside `path` and renames it, so that no half-written PNG is left.
fn write_png(image: &RgbImage, path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder);
    let mut file = file.map_err(|e| Error::io("cannot create a temporary file", e))?;
    let size = |n: usize| u32::try_from(n).map_err(|_| Error::limit("PNG side above 2^32"));
    let mut encoder =
        png::Encoder::new(BufWriter::new(&mut file), size(image.width)?, size(image.height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(&image.data)?;
        writer.finish()
    });
    written.map_err(|e| match e {
        png::EncodingError::IoError(e) => Error::io("cannot write", e),
        e => Error::malformed(e.to_string()).caused_by(e),
    })?;
    file.as_file().sync_all().map_err(|e| Error::io("cannot write", e))?;
    #[cfg(unix)]
    {
        // Temporary files are private; a result has the permissions of any new file.
        use std::os::unix::fs::PermissionsExt;
        let permissions = std::fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(permissions).map_err(|e| Error::io("cannot write", e))?;
    }
    file.persist(path).map_err(|e| Error::io("cannot rename", e.error))?;
    Ok(())
}
