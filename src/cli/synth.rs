//! `histokern synth`: writes a synthetic H&E-like slide and what is true about it.

use super::{Global, Outcome};
use crate::error::{Error, Result};
use crate::report::atomic;
use crate::slide::synthetic::layout::{self, Aperio, Pyramid};
use crate::slide::synthetic::{
    Compression, Endian, Jpeg, Samples, Sampling, Specimen, SpecimenSpec, Truth, label, overview,
};
use std::path::PathBuf;

/// Write a synthetic H&E-like slide, the same bytes for the same options
///
/// The slide shows no patient. Its tumour nuclei proliferate with a planted probability, which
/// the truth file states together with the place and class of every nucleus.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Share of proliferating tumour nuclei, 0 to 1 [default: drawn from the seed]
    #[arg(long, value_name = "P", value_parser = fraction)]
    fraction: Option<f64>,
    /// Width in pixels
    #[arg(long, default_value_t = 6144, value_parser = clap::value_parser!(u32).range(256..=200_000))]
    width: u32,
    /// Height in pixels
    #[arg(long, default_value_t = 6144, value_parser = clap::value_parser!(u32).range(256..=200_000))]
    height: u32,
    /// Micrometres per pixel
    #[arg(long, default_value_t = 0.5, value_parser = mpp)]
    mpp: f64,
    /// Also write what is true about the slide, as JSON
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// Container
    #[arg(long, value_enum, default_value_t = Layout::Aperio)]
    layout: Layout,
    /// Compression of the tiles
    #[arg(long, value_enum, default_value_t = Codec::JpegRgb)]
    codec: Codec,
    /// JPEG quality
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Side of the tiles, a multiple of 16
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=4096))]
    tile: u32,
    /// 64-bit offsets (needed above 4 GB)
    #[arg(long)]
    bigtiff: bool,
    /// Motorola byte order
    #[arg(long)]
    big_endian: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Layout {
    /// Aperio SVS with thumbnail, label and macro
    Aperio,
    /// Tiled TIFF pyramid
    Generic,
    /// OME-TIFF, levels in SubIFDs
    Ome,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Codec {
    /// RGB stored as it is, full resolution, as Aperio scanners do
    JpegRgb,
    /// YCbCr 4:4:4
    JpegYcc,
    /// YCbCr 4:2:2
    Jpeg422,
    /// YCbCr 4:2:0
    Jpeg420,
    /// One grey channel
    JpegGray,
    Deflate,
    DeflatePredictor,
    Lzw,
    LzwPredictor,
    Packbits,
    None,
}

impl Codec {
    fn parts(self, quality: u8) -> (Compression, Samples) {
        let jpeg = |sampling| Compression::Jpeg(Jpeg { sampling, ..Jpeg::new(quality) });
        match self {
            Codec::JpegRgb => (jpeg(Sampling::S444), Samples::Rgb),
            Codec::JpegYcc => (jpeg(Sampling::S444), Samples::YCbCr),
            Codec::Jpeg422 => (jpeg(Sampling::S422), Samples::YCbCr),
            Codec::Jpeg420 => (jpeg(Sampling::S420), Samples::YCbCr),
            Codec::JpegGray => (jpeg(Sampling::S444), Samples::Gray),
            Codec::Deflate => (Compression::Deflate { predictor: false }, Samples::Rgb),
            Codec::DeflatePredictor => (Compression::Deflate { predictor: true }, Samples::Rgb),
            Codec::Lzw => (Compression::Lzw { predictor: false }, Samples::Rgb),
            Codec::LzwPredictor => (Compression::Lzw { predictor: true }, Samples::Rgb),
            Codec::Packbits => (Compression::PackBits, Samples::Rgb),
            Codec::None => (Compression::None, Samples::Rgb),
        }
    }
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("a number from 0 to 1".into()),
    }
}

fn mpp(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.1..=4.0).contains(&value) => Ok(value),
        _ => Err("a number from 0.1 to 4".into()),
    }
}

impl Args {
    /// A slide as scanners write it, with the verb's defaults.
    pub fn slide(output: PathBuf, spec: &SpecimenSpec) -> Args {
        Args {
            output,
            seed: spec.seed,
            fraction: spec.fraction,
            width: spec.width,
            height: spec.height,
            mpp: spec.mpp,
            truth: None,
            layout: Layout::Aperio,
            codec: Codec::JpegRgb,
            quality: 80,
            tile: 256,
            bigtiff: false,
            big_endian: false,
        }
    }
}

/// Runs the verb.
///
/// # Errors
/// As [`write`].
pub fn run(args: &Args, global: &Global) -> Result<Outcome> {
    let truth = write(args, global)?;
    if !global.quiet {
        let bytes = std::fs::metadata(&args.output).map_or(0, |m| m.len());
        println!(
            "{}: synthetic slide, {} x {} px at {} um, {:.1} MB; {}",
            args.output.display(),
            args.width,
            args.height,
            args.mpp,
            bytes as f64 / 1e6,
            summary(&truth),
        );
    }
    Ok(Outcome::Done)
}

/// Writes the slide, and the truth file if one is named.
///
/// # Errors
/// [`crate::Kind::Io`] naming the file that could not be written, [`crate::Kind::Limit`] for a
/// classic TIFF above 4 GB, [`crate::Kind::Usage`] for options that do not fit each other.
pub fn write(args: &Args, global: &Global) -> Result<Truth> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(global.threads())
        .build()
        .map_err(|e| Error::usage("threads").caused_by(e))?;
    pool.install(|| write_slide(args))
}

fn write_slide(args: &Args) -> Result<Truth> {
    let specimen = Specimen::new(&SpecimenSpec {
        seed: args.seed,
        fraction: args.fraction,
        width: args.width,
        height: args.height,
        mpp: args.mpp,
    });
    let truth = specimen.truth();
    let (compression, samples) = args.codec.parts(args.quality);
    let pyramid = Pyramid {
        picture: &specimen,
        steps: steps(args.width.min(args.height)),
        tile: args.tile,
        compression,
        samples,
        mpp: Some(args.mpp),
        big: args.bigtiff,
        endian: if args.big_endian { Endian::Big } else { Endian::Little },
    };
    let (label, overview) = (label(args.seed), overview(&specimen));
    let extras = Aperio {
        label: Some(&label),
        overview: Some(&overview),
        thumbnail: true,
        app_mag: Some((10.0 / args.mpp).round()),
        keys: vec![("Synthetic".into(), format!("seed {}, no patient", args.seed))],
    };
    let file = match args.layout {
        Layout::Aperio => layout::aperio(&pyramid, &extras),
        Layout::Generic => layout::generic(&pyramid),
        Layout::Ome => layout::ome(&pyramid),
    };
    atomic::write(&args.output, |out| file.write(out).map(drop))?;
    if let Some(path) = &args.truth {
        let mut text = serde_json::to_string(&truth)
            .map_err(|e| Error::io(path.display().to_string(), e.into()))?;
        text.push('\n');
        atomic::write_bytes(path, text.as_bytes())?;
    }
    Ok(truth)
}

fn summary(truth: &Truth) -> String {
    let planted = truth.planted_fraction;
    match truth.counted_fraction {
        Some(counted) => format!(
            "{} tumour nuclei, proliferating share {counted:.4} (planted {planted:.4})",
            truth.nuclei.tumour + truth.nuclei.proliferating
        ),
        None => format!("no tumour nuclei (planted share {planted:.4})"),
    }
}

/// Levels 4 times smaller each, while the shorter side keeps at least 128 pixels; at most two.
fn steps(side: u32) -> Vec<u32> {
    (1..=2).take_while(|&k| side >> (2 * k) >= 128).map(|_| 4).collect()
}
