//! Samples stored as such or under LZW, Deflate or PackBits, with or without the horizontal
//! predictor (TIFF 6.0, sections 9, 13 and 14; Deflate is technical note 2).

use super::{Compression, Layout, Photometric, Shape, grey_to_rgb};
use crate::error::{Error, Result};

/// Decodes one tile or strip into `out` as RGB.
pub fn decode(
    layout: &Layout,
    shape: Shape,
    bytes: &[u8],
    samples: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<()> {
    let row = shape.width as usize * layout.samples;
    let (wanted, full) = (row * shape.rows as usize, row * shape.full_rows as usize);
    // One byte more than may come, so that a stream that decodes to too much is noticed.
    samples.resize(full + 1, 0);
    let produced = match layout.compression {
        Compression::None => copy(bytes, &mut samples[..wanted]),
        Compression::Lzw => lzw(bytes, samples)?,
        Compression::Deflate => deflate(bytes, samples)?,
        Compression::PackBits => packbits(bytes, samples)?,
        Compression::Jpeg | Compression::Jpeg2000 { .. } => {
            return Err(Error::unsupported("a JPEG stream among raw samples"));
        }
    };
    if produced != wanted && produced != full {
        let more = if produced > full { "at least " } else { "" };
        return Err(Error::malformed(format!("{more}{produced} bytes decoded, expected {wanted}")));
    }
    samples.truncate(wanted);
    if layout.differences {
        let add_up = match layout.samples {
            1 => add_up::<1>,
            3 => add_up::<3>,
            4 => add_up::<4>,
            n => return Err(Error::unsupported(format!("differences of {n} samples a pixel"))),
        };
        samples.chunks_exact_mut(row).for_each(add_up);
    }
    match layout.samples {
        1 => grey_to_rgb(samples, layout.photometric == Photometric::MinIsWhite, out),
        3 => std::mem::swap(samples, out),
        n => {
            out.clear();
            out.extend(samples.chunks_exact(n).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]));
        }
    }
    Ok(())
}

/// Stored samples; padding behind them is ignored.
fn copy(bytes: &[u8], out: &mut [u8]) -> usize {
    let n = bytes.len().min(out.len());
    out[..n].copy_from_slice(&bytes[..n]);
    n
}

fn lzw(bytes: &[u8], out: &mut [u8]) -> Result<usize> {
    let mut decoder = weezl::decode::Decoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
    let (mut read, mut written) = (0, 0);
    loop {
        let step = decoder.decode_bytes(&bytes[read..], &mut out[written..]);
        read += step.consumed_in;
        written += step.consumed_out;
        match step.status {
            Ok(weezl::LzwStatus::Done) => return Ok(written),
            // No end-of-information code: some writers stop after the last sample.
            Ok(weezl::LzwStatus::NoProgress) => return Ok(written),
            Ok(weezl::LzwStatus::Ok) if written == out.len() => return Ok(written),
            Ok(weezl::LzwStatus::Ok) => {}
            Err(e) => return Err(Error::malformed(format!("LZW: {e}")).caused_by(e)),
        }
    }
}

fn deflate(bytes: &[u8], out: &mut [u8]) -> Result<usize> {
    let mut decoder = fdeflate::Decompressor::new();
    let step = decoder.read(bytes, out, 0, true);
    let (_, produced) = step.map_err(|e| Error::malformed(format!("Deflate: {e:?}")))?;
    if !decoder.is_done() && produced < out.len() {
        return Err(Error::malformed(format!("Deflate stream ends after {produced} bytes")));
    }
    Ok(produced)
}

/// Undoes predictor 2 in a row of pixels of `N` samples.
fn add_up<const N: usize>(row: &mut [u8]) {
    let mut left = [0u8; N];
    for pixel in row.as_chunks_mut::<N>().0 {
        for (sample, left) in pixel.iter_mut().zip(&mut left) {
            *left = left.wrapping_add(*sample);
            *sample = *left;
        }
    }
}

fn packbits(mut bytes: &[u8], out: &mut [u8]) -> Result<usize> {
    let short = || Error::malformed("PackBits run passes the end of the data");
    let mut written = 0;
    while let Some((&head, rest)) = bytes.split_first() {
        bytes = rest;
        let room = &mut out[written..];
        match head as i8 {
            -128 => {}
            literal @ 0.. => {
                let n = literal as usize + 1;
                let run = bytes.get(..n).ok_or_else(short)?;
                bytes = &bytes[n..];
                written += copy(run, room);
            }
            repeat => {
                let (&value, rest) = bytes.split_first().ok_or_else(short)?;
                bytes = rest;
                let n = (1 - isize::from(repeat)) as usize;
                let n = n.min(room.len());
                room[..n].fill(value);
                written += n;
            }
        }
        if written == out.len() {
            break;
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packbits_decodes_the_example_of_the_specification() {
        let packed = [
            0xfe, 0xaa, 0x02, 0x80, 0x00, 0x2a, 0xfd, 0xaa, 0x03, 0x80, 0x00, 0x2a, 0x22, 0xf7,
            0xaa,
        ];
        let mut out = [0; 64];
        let n = packbits(&packed, &mut out).unwrap();
        let expected = "aaaaaa80002aaaaaaaaa80002a22aaaaaaaaaaaaaaaaaaaa";
        let hex: String = out[..n].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, expected);
        assert!(packbits(&packed[..4], &mut out).is_err());
        assert_eq!(packbits(&packed, &mut [0; 5]).unwrap(), 5);
    }

    #[test]
    fn a_stream_of_another_length_is_refused() {
        let layout = Layout {
            compression: Compression::Deflate,
            photometric: Photometric::Grey,
            samples: 1,
            differences: false,
            jpeg_tables: Default::default(),
            aperio: false,
        };
        let shape = Shape { width: 4, rows: 2, full_rows: 3 };
        for (length, good) in [(7, false), (8, true), (9, false), (12, true), (13, false)] {
            use std::io::Write;
            let mut z = flate2::write::ZlibEncoder::new(Vec::new(), Default::default());
            z.write_all(&vec![9; length]).unwrap();
            let bytes = z.finish().unwrap();
            let (mut samples, mut out) = (Vec::new(), Vec::new());
            let result = decode(&layout, shape, &bytes, &mut samples, &mut out);
            assert_eq!(result.is_ok(), good, "{length}");
            let cut = decode(&layout, shape, &bytes[..bytes.len() - 1], &mut samples, &mut out);
            assert!(cut.is_err(), "{length} without the last byte");
        }
    }
}
