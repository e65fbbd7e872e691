//! JPEG tiles (ITU-T T.81), including the abbreviated streams of TIFF technical note 2.
//!
//! Slides hold baseline JPEG; [`baseline`] decodes it to the bytes of libjpeg-turbo with its
//! default settings (accurate integer DCT, triangle upsampling). What else a TIFF or a flat
//! picture may hold (progressive, several scans, rare samplings) goes to `zune-jpeg` through
//! [`fallback`]. Both see only what [`stream`] checked, and a stream that ends early is an error:
//! most decoders fill the rest with grey and guess the colour space from markers, which would
//! falsify tissue.

mod baseline;
mod fallback;
mod huffman;
mod idct;
mod rows;
mod scan;
mod segments;
mod simd;
mod stream;
mod tables;

use super::{Layout, Photometric, Shape};
use crate::error::{Error, Result};
use crate::image::RgbImage;
use segments::{Frame, Segments};
use simd::Isa;
use stream::Stream;
pub use tables::Tables;

/// Pixels of a progressive picture, all of whose coefficients are held at once.
const MAX_PROGRESSIVE_PIXELS: u64 = 1 << 26;

/// Buffers one thread reuses from tile to tile.
#[derive(Debug)]
pub struct Buffers {
    isa: Isa,
    baseline: baseline::Buffers,
    /// A complete stream put together from tables and tile, for the fallback.
    stream: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Buffers { isa: Isa::best(), baseline: Default::default(), stream: Vec::new() }
    }
}

/// Decodes one tile or strip to RGB rows.
pub fn decode(
    layout: &Layout,
    shape: Shape,
    bytes: &[u8],
    buffers: &mut Buffers,
    out: &mut Vec<u8>,
) -> Result<()> {
    layout.jpeg_tables.usable()?;
    let accept = |frame: &Frame| {
        let rows_fit = frame.height == shape.rows || frame.height == shape.full_rows;
        if frame.width != shape.width || !rows_fit {
            return Err(Error::malformed(format!(
                "the JPEG is {}x{}, expected {}x{}",
                frame.width, frame.height, shape.width, shape.rows
            )));
        }
        if frame.components.len() != layout.samples {
            return Err(Error::malformed(format!(
                "the JPEG has {} components, expected {}",
                frame.components.len(),
                layout.samples
            )));
        }
        Ok(())
    };
    let colour = |_: &Frame, marker: Option<Photometric>| match marker {
        Some(colour) if !layout.aperio && layout.samples == 3 => colour,
        _ => layout.photometric,
    };
    decode_stream(&layout.jpeg_tables, bytes, accept, colour, buffers, out)?;
    Ok(())
}

/// Decodes a whole JPEG file; its own markers decide the colour space, YCbCr without any.
pub fn decode_picture(bytes: &[u8]) -> Result<RgbImage> {
    decode_picture_as(bytes, Photometric::YCbCr)
}

/// As [`decode_picture`]; three components of which the stream says nothing are `unmarked`.
pub fn decode_picture_as(bytes: &[u8], unmarked: Photometric) -> Result<RgbImage> {
    super::guarded("JPEG", || picture(bytes, unmarked, &mut Buffers::default()))
}

fn picture(bytes: &[u8], unmarked: Photometric, buffers: &mut Buffers) -> Result<RgbImage> {
    let accept = |frame: &Frame| {
        let pixels = u64::from(frame.width) * u64::from(frame.height);
        if frame.progressive && pixels > MAX_PROGRESSIVE_PIXELS {
            return Err(Error::limit(format!("{pixels} pixels in a progressive JPEG")));
        }
        Ok(())
    };
    let colour = |frame: &Frame, marker| {
        let letters = frame.components.iter().map(|c| c.id).eq(*b"RGB");
        match marker {
            _ if frame.components.len() == 1 => Photometric::Grey,
            Some(colour) => colour,
            None if letters => Photometric::Rgb,
            None => unmarked,
        }
    };
    let mut data = Vec::new();
    let tables = Tables::default();
    let (width, height) = decode_stream(&tables, bytes, accept, colour, buffers, &mut data)?;
    Ok(RgbImage { width: width as usize, height: height as usize, data })
}

/// Decodes a stream to RGB and returns its width and height.
///
/// `accept` sees the frame before anything depends on its size; `colour` gets the frame and what
/// a marker of the stream says about colour.
fn decode_stream(
    tables: &Tables,
    bytes: &[u8],
    accept: impl Fn(&Frame) -> Result<()>,
    colour: impl Fn(&Frame, Option<Photometric>) -> Photometric,
    buffers: &mut Buffers,
    out: &mut Vec<u8>,
) -> Result<(u32, u32)> {
    let mut stream = Stream::new(tables.set.clone(), bytes)?;
    let (frame, scan) = match stream.next_scan(&accept, None)? {
        Some(found) => found,
        None => return Err(Error::malformed("the JPEG stream has no scan")),
    };
    let size = (frame.width, frame.height);
    if size.0 == 0 || size.1 == 0 {
        return Err(Error::malformed("JPEG of zero size"));
    }
    if baseline::decodes(&frame, &scan) {
        let colour = colour(&frame, stream.colour);
        let data = &mut buffers.baseline;
        stream.entropy_coded(&frame, &mut data.coded)?;
        baseline::decode(buffers.isa, &frame, &scan, &stream.tables, colour, data, out)?;
    } else {
        let (frame, marker) = fallback::rewrite(tables, bytes, &mut buffers.stream, &accept)?;
        let colour = colour(&frame, marker);
        fallback::decode(&frame, colour, &mut buffers.stream, out)?;
    }
    Ok(size)
}

/// The size of a JPEG file, from its frame.
pub fn picture_size(bytes: &[u8]) -> Result<(u32, u32)> {
    let mut reader = Segments::new(bytes)?;
    while let Some((marker, body)) = reader.next()? {
        if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
            let frame = Frame::parse(marker, body)?;
            if frame.width == 0 || frame.height == 0 {
                return Err(Error::malformed("JPEG of zero size"));
            }
            return Ok((frame.width, frame.height));
        }
    }
    Err(Error::malformed("the JPEG stream has no frame"))
}

#[cfg(test)]
mod tests {
    //! Against libjpeg-turbo: `tests/golden/jpeg/make.py` says how the streams were made.

    use super::segments::EOI;
    use super::*;
    use sha2::{Digest, Sha256};

    fn picture(bytes: &[u8], buffers: &mut Buffers) -> Result<RgbImage> {
        super::picture(bytes, Photometric::YCbCr, buffers)
    }

    struct Case {
        name: String,
        stream: Vec<u8>,
        size: (usize, usize),
        sha256: String,
    }

    fn cases() -> Vec<Case> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/jpeg");
        let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
        let list: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let bytes = std::fs::read(folder.join("streams.bin")).unwrap();
        let mut rest = &bytes[..];
        let cases = list.iter().map(|case| {
            let number = |key: &str| case[key].as_u64().unwrap() as usize;
            let (stream, behind) = rest.split_at(number("length"));
            rest = behind;
            Case {
                name: case["name"].as_str().unwrap().into(),
                stream: stream.to_vec(),
                size: (number("width"), number("height")),
                sha256: case["sha256"].as_str().unwrap().into(),
            }
        });
        cases.collect()
    }

    fn buffers(isa: Isa) -> Buffers {
        Buffers { isa, ..Buffers::default() }
    }

    #[test]
    fn pixels_are_those_of_libjpeg_turbo() {
        let cases = cases();
        assert!(cases.len() > 150, "{}", cases.len());
        for isa in [Isa::Portable, Isa::best()] {
            // Buffers used over and over, as by a thread that reads tile after tile.
            let mut buffers = buffers(isa);
            for case in &cases {
                let image = picture(&case.stream, &mut buffers).unwrap();
                assert_eq!((image.width, image.height), case.size, "{} {isa:?}", case.name);
                let digest: String =
                    Sha256::digest(&image.data).iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(digest, case.sha256, "{} {isa:?}", case.name);
            }
        }
    }

    /// The place of entropy-coded data in a stream of one scan.
    fn entropy_coded(stream: &[u8]) -> std::ops::Range<usize> {
        let at = stream.windows(2).position(|w| w == [0xff, 0xda]).unwrap();
        let header = usize::from(u16::from_be_bytes([stream[at + 2], stream[at + 3]]));
        let end = stream.windows(2).rposition(|w| w == EOI).unwrap();
        at + 2 + header..end
    }

    #[test]
    fn a_stream_cut_anywhere_is_an_error() {
        for case in cases().iter().filter(|case| case.stream.len() < 900) {
            let data = entropy_coded(&case.stream);
            for isa in [Isa::Portable, Isa::best()] {
                let mut buffers = buffers(isa);
                // The last byte may be padding alone, and what stands before the data is headers.
                for end in 2..data.end - 1 {
                    for tail in [&[][..], &EOI] {
                        let cut = [&case.stream[..end], tail].concat();
                        let read = picture(&cut, &mut buffers);
                        assert!(read.is_err(), "{} cut at {end} of {data:?}", case.name);
                    }
                }
            }
        }
    }

    #[test]
    fn damaged_streams_give_errors_or_the_same_pixels_in_both_forms() {
        let mut state = 1u64;
        let mut random = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        let (mut portable, mut best) = (buffers(Isa::Portable), buffers(Isa::best()));
        let mut sound = 0;
        for case in cases() {
            for _ in 0..20 {
                let mut stream = case.stream.clone();
                for _ in 0..1 + random(3) {
                    let at = random(stream.len());
                    stream[at] = random(256) as u8;
                }
                // A size out of a damaged header would only cost time.
                if picture_size(&stream).is_ok_and(|(w, h)| w * h > 1 << 16) {
                    continue;
                }
                match (picture(&stream, &mut portable), picture(&stream, &mut best)) {
                    (Ok(a), Ok(b)) => {
                        assert!(a == b, "{}", case.name);
                        sound += 1;
                    }
                    (Err(a), Err(b)) => assert_eq!(a.to_string(), b.to_string()),
                    (a, b) => panic!("{}: {:?} {:?}", case.name, a.is_ok(), b.is_ok()),
                }
            }
        }
        assert!(sound > 300, "{sound}");
    }

    #[test]
    fn missing_tables_are_named() {
        let case = cases().into_iter().find(|case| case.name.starts_with("444 16x1")).unwrap();
        for (marker, words) in [(0xdb, "quantisation table 0"), (0xc4, "Huffman DC table 0")] {
            let mut stream = case.stream.clone();
            while let Some(at) = stream.windows(2).position(|w| w == [0xff, marker]) {
                let length = usize::from(u16::from_be_bytes([stream[at + 2], stream[at + 3]]));
                stream.drain(at..at + 2 + length);
            }
            let error = picture(&stream, &mut Buffers::default()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
