//! JPEG that is not baseline in one scan, through `zune-jpeg`.
//!
//! The crate fills what a short stream does not give with grey and guesses the colour space from
//! markers. So the stream is rewritten for it: markers that steer colour are replaced by one that
//! says what is known, and 1-bits are put behind the entropy-coded data. No Huffman code consists
//! of 1-bits alone (T.81, C.2), so a decoder that needs more blocks than the stream has runs into
//! an invalid code instead of inventing zeros.

use super::scan::check_restarts;
use super::segments::{EOI, Frame, SOI, Segments, put_segment};
use super::stream::{MAX_SCANS, Stream};
use super::{Photometric, Tables};
use crate::error::{Error, Result};
use crate::slide::codec::grey_to_rgb;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// Stuffed 0xFF bytes behind entropy-coded data: more than the decoder reads ahead (8 bytes).
const GUARD: [u8; 32] = {
    let mut guard = [0; 32];
    let mut i = 0;
    while i < guard.len() {
        guard[i] = 0xff;
        i += 2;
    }
    guard
};

/// Checks `bytes` and writes the stream to decode to `out`, without colour markers. Returns the
/// frame and what a marker said about colour.
pub fn rewrite(
    tables: &Tables,
    bytes: &[u8],
    out: &mut Vec<u8>,
    accept: &impl Fn(&Frame) -> Result<()>,
) -> Result<(Frame, Option<Photometric>)> {
    out.clear();
    out.extend(&tables.segments);
    let mut stream = Stream::new(tables.set.clone(), bytes)?;
    let mut scans = 0;
    let mut last = None;
    while let Some((frame, scan)) = stream.next_scan(accept, Some(out))? {
        scans += 1;
        if !frame.progressive && !scan.whole && frame.subsampled() {
            // The crate places such blocks wrongly and does not say so.
            return Err(Error::unsupported(
                "a sequential JPEG with subsampled chroma in several scans",
            ));
        }
        // Where the decoder must meet a marker right behind the data (the first progressive
        // scan, scans of single components) no guard can be put.
        let guard = if frame.progressive { scans > 1 } else { scan.whole };
        let only = scan.whole && !frame.progressive;
        let units = only.then(|| frame.units());
        copy_scan(&mut stream.segments, stream.tables.interval, units, guard, out)?;
        last = Some(frame);
        if only {
            stream.end_of_image()?;
            break;
        }
    }
    out.extend(EOI);
    let frame = last.ok_or_else(|| Error::malformed("the JPEG stream holds no image"))?;
    Ok((frame, stream.colour))
}

/// Copies entropy-coded data, putting guard bits before every marker if `guard`.
///
/// `units` is the number of coded units where it is known; restart markers must then come in
/// order and be exactly as many as the interval asks for.
fn copy_scan(
    reader: &mut Segments<'_>,
    interval: u16,
    units: Option<u64>,
    guard: bool,
    out: &mut Vec<u8>,
) -> Result<()> {
    let mut restarts = 0u64;
    loop {
        let rest = &reader.bytes[reader.position..];
        let marker = rest.windows(2).position(|w| w[0] == 0xff && w[1] != 0 && w[1] != 0xff);
        let data = &rest[..marker.unwrap_or(rest.len())];
        // A lone 0xFF at the very end is half a marker or half a stuffed byte.
        out.extend(data.strip_suffix(&[0xff]).unwrap_or(data));
        reader.position += data.len();
        if guard {
            out.extend(GUARD);
        }
        match marker.map(|at| rest[at + 1]) {
            Some(marker @ 0xd0..=0xd7) => {
                if units.is_some() && u64::from(marker & 7) != restarts % 8 {
                    return Err(Error::malformed("JPEG restart markers out of order"));
                }
                restarts += 1;
                out.extend([0xff, marker]);
                reader.position += 2;
            }
            _ => break,
        }
    }
    units.map_or(Ok(()), |units| check_restarts(restarts, interval, units))
}

/// Decodes the rewritten stream as `colour` to RGB.
pub fn decode(
    frame: &Frame,
    colour: Photometric,
    stream: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<()> {
    let grey = frame.components.len() == 1;
    // Adobe's APP14 segment: transform 0 is RGB, 1 is YCbCr.
    let transform = u8::from(colour == Photometric::YCbCr);
    let mut start = Vec::with_capacity(18);
    start.extend(SOI);
    if !grey {
        put_segment(
            &mut start,
            0xee,
            &[b'A', b'd', b'o', b'b', b'e', 0, 100, 0, 0, 0, 0, transform],
        );
    }
    stream.splice(..0, start);
    let space = if grey { ColorSpace::Luma } else { ColorSpace::RGB };
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_max_scans(MAX_SCANS)
        .jpeg_set_out_colorspace(space);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&stream[..]), options);
    let pixels = frame.width as usize * frame.height as usize;
    out.resize(pixels * if grey { 1 } else { 3 }, 0);
    let decoded = decoder.decode_headers().and_then(|()| {
        if decoder.output_buffer_size() == Some(out.len()) {
            decoder.decode_into(out)
        } else {
            Err("another size in the stream than in its frame".into())
        }
    });
    decoded.map_err(|e| Error::malformed(format!("corrupt or cut-off JPEG data: {e:?}")))?;
    if grey {
        let samples = std::mem::take(out);
        grey_to_rgb(&samples, colour == Photometric::MinIsWhite, out);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sequential frame of three components, the first sampled `h x v`, then a scan of the first
    /// component alone.
    fn scans_apart(h: u8, v: u8) -> Vec<u8> {
        let mut bytes = SOI.to_vec();
        let sampling = h << 4 | v;
        let frame = [8, 0, 16, 0, 16, 3, 1, sampling, 0, 2, 0x11, 0, 3, 0x11, 0];
        put_segment(&mut bytes, 0xc0, &frame);
        put_segment(&mut bytes, 0xda, &[1, 1, 0, 0, 63, 0]);
        bytes.extend([0x55; 8]);
        bytes.extend(EOI);
        bytes
    }

    #[test]
    fn subsampled_scans_apart_are_refused() {
        let rewritten =
            |bytes: &[u8]| rewrite(&Tables::default(), bytes, &mut Vec::new(), &|_: &Frame| Ok(()));
        assert!(rewritten(&scans_apart(1, 1)).is_ok());
        for (h, v) in [(1, 2), (2, 1), (2, 2)] {
            let error = rewritten(&scans_apart(h, v)).unwrap_err();
            assert_eq!(error.kind(), crate::Kind::Unsupported);
            assert!(error.to_string().contains("several scans"), "{error}");
        }
    }
}
