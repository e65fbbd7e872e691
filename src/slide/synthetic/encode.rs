//! Compressing one strip or tile, and making JPEG streams the way slide scanners store them.
//!
//! A slide scanner's JPEG tile carries no JFIF or Adobe marker, and its quantisation and Huffman
//! tables lie once a directory in the JPEGTables tag (TIFF Technical Note 2). The colour space is
//! then known from the Photometric tag alone.

use crate::error::{Error, Result};
use flate2::{Compression as Level, write::ZlibEncoder};
use jpeg_encoder::{ColorType, Encoder, QuantizationTableType, SamplingFactor};
use std::io::Write;

/// How strips and tiles are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Samples as they are (1).
    None,
    /// Apple PackBits, every row on its own (32773).
    PackBits,
    /// LZW, most significant bit first, early code switch (5).
    Lzw {
        /// Horizontal differencing (Predictor 2) before compression.
        predictor: bool,
    },
    /// zlib (8).
    Deflate {
        /// Horizontal differencing (Predictor 2) before compression.
        predictor: bool,
    },
    /// Baseline JPEG (7).
    Jpeg(Jpeg),
}

/// Parameters of JPEG strips and tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jpeg {
    /// IJG quality, 1 to 100.
    pub quality: u8,
    /// Chroma resolution; only [`Samples::YCbCr`] may be subsampled.
    pub sampling: Sampling,
    /// Tables in the JPEGTables tag and abbreviated streams, instead of complete streams.
    pub shared_tables: bool,
}

impl Jpeg {
    /// Shared tables, full chroma resolution: the usual scanner file.
    pub fn new(quality: u8) -> Self {
        Jpeg { quality, sampling: Sampling::S444, shared_tables: true }
    }
}

/// Chroma resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// Full.
    S444,
    /// Halved horizontally.
    S422,
    /// Halved both ways.
    S420,
}

impl Sampling {
    /// Horizontal and vertical factors of the first component, as in tag 530.
    pub fn factors(self) -> [u16; 2] {
        match self {
            Sampling::S444 => [1, 1],
            Sampling::S422 => [2, 1],
            Sampling::S420 => [2, 2],
        }
    }
}

/// What a stored sample means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Samples {
    /// Red, green, blue: Photometric 2. With JPEG this is Aperio's `JPEG/RGB`.
    Rgb,
    /// BT.601 full range: Photometric 6, JPEG only.
    YCbCr,
    /// One channel: Photometric 1.
    Gray,
}

impl Samples {
    /// Samples per pixel.
    pub fn count(self) -> usize {
        if self == Samples::Gray { 1 } else { 3 }
    }
}

/// BT.601 luma in integers; a grey input comes out unchanged.
pub fn luma(rgb: [u8; 3]) -> u8 {
    let [r, g, b] = rgb.map(u32::from);
    ((77 * r + 150 * g + 29 * b + 128) >> 8) as u8
}

/// Compresses `[height, width, samples]` interleaved bytes.
///
/// # Errors
/// [`crate::Kind::Usage`] when the size is beyond JPEG's 65,535.
pub fn chunk(
    pixels: &mut [u8],
    width: usize,
    samples: Samples,
    compression: Compression,
) -> Result<Vec<u8>> {
    let row = width * samples.count();
    let predictor = matches!(
        compression,
        Compression::Lzw { predictor: true } | Compression::Deflate { predictor: true }
    );
    if predictor {
        pixels.chunks_mut(row).for_each(|r| difference(r, samples.count()));
    }
    match compression {
        Compression::None => Ok(pixels.to_vec()),
        Compression::PackBits => Ok(pixels.chunks(row).flat_map(pack_bits).collect()),
        Compression::Lzw { .. } => {
            weezl::encode::Encoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8)
                .encode(pixels)
                .map_err(|e| Error::malformed("LZW").caused_by(e))
        }
        Compression::Deflate { .. } => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Level::new(6));
            encoder
                .write_all(pixels)
                .and_then(|()| encoder.finish())
                .map_err(|e| Error::io("deflate", e))
        }
        Compression::Jpeg(jpeg) => {
            let stream = encode_jpeg(pixels, width, samples, jpeg)?;
            Ok(split(&stream, samples, jpeg.shared_tables)?.0)
        }
    }
}

/// The JPEGTables tag of a directory: SOI, DQT and DHT segments, EOI.
///
/// # Errors
/// None in practice; the encoder's own are passed on.
pub fn jpeg_tables(samples: Samples, jpeg: Jpeg) -> Result<Vec<u8>> {
    let block = vec![0; 16 * 16 * samples.count()];
    let stream = encode_jpeg(&block, 16, samples, jpeg)?;
    Ok(split(&stream, samples, true)?.1)
}

fn difference(row: &mut [u8], samples: usize) {
    for i in (samples..row.len()).rev() {
        row[i] = row[i].wrapping_sub(row[i - samples]);
    }
}

/// PackBits of one row: runs of three or more are repeats, the rest literals of at most 128.
fn pack_bits(row: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(row.len() + row.len() / 128 + 1);
    let run_at = |i: usize| row[i..].iter().take(128).take_while(|&&b| b == row[i]).count();
    let mut i = 0;
    while i < row.len() {
        let run = run_at(i);
        if run >= 3 {
            out.extend([(257 - run) as u8, row[i]]);
            i += run;
            continue;
        }
        let start = i;
        while i < row.len() && i - start < 128 && run_at(i) < 3 {
            i += 1;
        }
        out.push((i - start - 1) as u8);
        out.extend_from_slice(&row[start..i]);
    }
    out
}

fn encode_jpeg(pixels: &[u8], width: usize, samples: Samples, jpeg: Jpeg) -> Result<Vec<u8>> {
    let height = pixels.len() / (width * samples.count());
    let side = |n: usize| {
        u16::try_from(n).map_err(|_| Error::usage(format!("JPEG of {n} px: at most 65535")))
    };
    let mut stream = Vec::new();
    let mut encoder = Encoder::new(&mut stream, jpeg.quality);
    encoder.set_sampling_factor(match jpeg.sampling {
        Sampling::S444 => SamplingFactor::F_1_1,
        Sampling::S422 => SamplingFactor::F_2_1,
        Sampling::S420 => SamplingFactor::F_2_2,
    });
    if samples == Samples::Rgb {
        // The chroma table would throw away most of green and blue.
        let luma = || QuantizationTableType::Custom(Box::new(luma_table(jpeg.quality)));
        encoder.set_quantization_tables(luma(), luma());
    }
    let color = match samples {
        Samples::Gray => ColorType::Luma,
        Samples::YCbCr => ColorType::Rgb,
        // "Already converted": the encoder leaves the three channels as they are.
        Samples::Rgb => ColorType::Ycbcr,
    };
    encoder
        .encode(pixels, side(width)?, side(height)?, color)
        .map_err(|e| Error::usage(format!("JPEG: {e}")).caused_by(e))?;
    Ok(stream)
}

/// The luminance table of ITU-T T.81 Annex K.1 scaled by the IJG quality, in row order.
fn luma_table(quality: u8) -> [u16; 64] {
    #[rustfmt::skip]
    const ANNEX_K: [u16; 64] = [
        16, 11, 10, 16,  24,  40,  51,  61,
        12, 12, 14, 19,  26,  58,  60,  55,
        14, 13, 16, 24,  40,  57,  69,  56,
        14, 17, 22, 29,  51,  87,  80,  62,
        18, 22, 37, 56,  68, 109, 103,  77,
        24, 35, 55, 64,  81, 104, 113,  92,
        49, 64, 78, 87, 103, 121, 120, 101,
        72, 92, 95, 98, 112, 100, 103,  99,
    ];
    let quality = u16::from(quality.clamp(1, 100));
    let scale = if quality < 50 { 5000 / quality } else { 200 - 2 * quality };
    ANNEX_K.map(|q| ((u32::from(q) * u32::from(scale) + 50) / 100).clamp(1, 255) as u16)
}

/// Splits a complete stream into an abbreviated one and its tables, without application markers.
/// With `share` false the first part keeps its tables.
fn split(stream: &[u8], samples: Samples, share: bool) -> Result<(Vec<u8>, Vec<u8>)> {
    let broken = || Error::malformed("JPEG encoder wrote no complete header");
    let (mut image, mut tables) = (vec![0xff, 0xd8], vec![0xff, 0xd8]);
    // libtiff numbers YCbCr components from 1, Aperio's RGB from 0, which is the encoder's habit.
    let first_id = u8::from(samples == Samples::YCbCr);
    let mut at = 2;
    loop {
        let head = stream.get(at..at + 4).ok_or_else(broken)?;
        let end = at + 2 + usize::from(u16::from_be_bytes([head[2], head[3]]));
        let mut segment = stream.get(at..end).ok_or_else(broken)?.to_vec();
        match head[1] {
            0xdb | 0xc4 if share => tables.append(&mut segment),
            0xe0..=0xef => {}
            0xc0 => {
                segment.iter_mut().skip(10).step_by(3).for_each(|id| *id += first_id);
                image.append(&mut segment);
            }
            0xda => {
                let ids = samples.count();
                segment.iter_mut().skip(5).step_by(2).take(ids).for_each(|id| *id += first_id);
                image.append(&mut segment);
                image.extend_from_slice(&stream[end..]);
                tables.extend([0xff, 0xd9]);
                return Ok((image, tables));
            }
            _ => image.append(&mut segment),
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decoder from the description in TIFF 6.0, section 9.
    fn unpack(mut packed: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some((&n, rest)) = packed.split_first() {
            match n as i8 {
                -128 => packed = rest,
                n @ 0.. => {
                    let n = n as usize + 1;
                    out.extend_from_slice(&rest[..n]);
                    packed = &rest[n..];
                }
                n => {
                    out.extend(std::iter::repeat_n(rest[0], (1 - isize::from(n)) as usize));
                    packed = &rest[1..];
                }
            }
        }
        out
    }

    #[test]
    fn pack_bits_round_trips_runs_and_literals() {
        let mut mixed: Vec<u8> = (0..=255).collect();
        mixed.extend([7; 300]);
        mixed.extend([1, 1, 2, 2, 2, 3]);
        for row in [&mixed[..], &[9], &[9; 128], &[9; 129], &[1, 2], &mixed[..129]] {
            let packed = pack_bits(row);
            assert_eq!(unpack(&packed), row);
        }
        assert_eq!(pack_bits(&[5; 128]), [129, 5]);
    }

    #[test]
    fn abbreviated_stream_has_no_tables_and_no_markers() {
        for (samples, id) in [(Samples::Rgb, 0), (Samples::YCbCr, 1)] {
            let mut pixels = vec![40; 32 * 16 * 3];
            let jpeg = Jpeg::new(80);
            let tile = chunk(&mut pixels, 32, samples, Compression::Jpeg(jpeg)).unwrap();
            assert_eq!(&tile[..4], [0xff, 0xd8, 0xff, 0xc0], "SOI then SOF0");
            assert_eq!([tile[12], tile[15], tile[18]], [id, id + 1, id + 2]);
            let tables = jpeg_tables(samples, jpeg).unwrap();
            assert_eq!(&tables[..4], [0xff, 0xd8, 0xff, 0xdb], "SOI then DQT");
            assert_eq!(tables.len(), 574, "two DQT and four DHT");
        }
    }
}
