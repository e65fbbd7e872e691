//! JPEG 2000 tiles (ITU-T T.800): raw codestreams, and JP2 files around one.
//!
//! The decoder is `hayro-jpeg2000`, which replicates subsampled chroma. YCbCr is converted here
//! (JFIF, BT.601 full range), except in JP2 files, which say what they hold. The codestream header
//! is checked first, which bounds the memory of the decoder, and every tile-part must be present:
//! a truncated stream decodes to a blurred picture otherwise.
//!
//! A stream of L wavelet decompositions can be decoded without the r <= L highest ones: the picture
//! at 1 / 2^r of its size, sides rounded up (B.5), whose sample (x, y) lies on sample (2^r x, 2^r y) of
//! the whole. The code blocks of the sub-bands left out are not decoded.

use super::{Shape, grey_to_rgb, reduced};
use crate::error::{Error, Result};
use hayro_jpeg2000::{DecodeSettings, DecoderContext, Image};

/// Tiles inside one codestream.
const MAX_TILES: u64 = 4096;
const SOC_SIZ: [u8; 4] = [0xff, 0x4f, 0xff, 0x51];
const EOC: [u8; 2] = [0xff, 0xd9];
const COD: usize = 0xff52;
const COC: usize = 0xff53;

/// What a tile must hold and how it is decoded.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Components.
    pub samples: usize,
    /// The three components are YCbCr even if the stream does not say so.
    pub ycbcr: bool,
    /// Wavelet decompositions to leave out.
    pub halvings: u32,
}

/// The fields of the SIZ marker segment that matter here.
struct Size {
    width: u32,
    height: u32,
    /// The upper left corner on the reference grid.
    corner: [u64; 2],
    tiles: u64,
    /// `(precision byte, horizontal, vertical subsampling)` of each component.
    components: Vec<(u8, u8, u8)>,
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

impl Size {
    fn parse(code: &[u8]) -> Option<Size> {
        let field = |k: usize| be32(code, 8 + 4 * k).map(u64::from);
        let (x1, y1, x0, y0) = (field(0)?, field(1)?, field(2)?, field(3)?);
        let (tw, th, tx, ty) = (field(4)?, field(5)?, field(6)?, field(7)?);
        let (width, height) = (x1.checked_sub(x0)?, y1.checked_sub(y0)?);
        if width == 0 || height == 0 || tw == 0 || th == 0 {
            return None;
        }
        let tiles = x1.checked_sub(tx)?.div_ceil(tw).checked_mul(y1.checked_sub(ty)?.div_ceil(th));
        let count = be16(code, 40)?;
        let components = code.get(42..42 + 3 * count)?.chunks_exact(3);
        Some(Size {
            width: u32::try_from(width).ok()?,
            height: u32::try_from(height).ok()?,
            corner: [x0, y0],
            tiles: tiles?,
            components: components.map(|c| (c[0], c[1], c[2])).collect(),
        })
    }

    fn check(&self, wanted: &Wanted, shape: Shape) -> Result<()> {
        let samples = wanted.samples;
        let rows_fit = self.height == shape.rows || self.height == shape.full_rows;
        if self.width != shape.width || !rows_fit {
            return Err(Error::malformed(format!(
                "the JPEG 2000 image is {}x{}, expected {}x{}",
                self.width, self.height, shape.width, shape.rows
            )));
        }
        if self.components.len() != samples {
            return Err(Error::malformed(format!(
                "the JPEG 2000 image has {} components, expected {samples}",
                self.components.len()
            )));
        }
        if self.tiles > MAX_TILES {
            return Err(Error::limit(format!("{} tiles in one JPEG 2000 image", self.tiles)));
        }
        for (k, &(precision, h, v)) in self.components.iter().enumerate() {
            if precision != 7 {
                return Err(Error::unsupported(format!(
                    "JPEG 2000 component {k} is not of 8 unsigned bits"
                )));
            }
            let most = if k == 0 || k == 3 { 1 } else { 2 };
            if !(1..=most).contains(&h) || !(1..=most).contains(&v) {
                return Err(Error::unsupported(format!("JPEG 2000 component {k}: {h}x{v}")));
            }
        }
        // Samples of the low band would lie beside the grid that other tiles are on.
        if self.corner.iter().any(|&at| at % (1 << wanted.halvings) != 0) {
            let [x, y] = self.corner;
            return Err(unreduced(wanted, format!("begins at ({x}, {y}) of its grid")));
        }
        Ok(())
    }
}

/// A picture that cannot be had at less than its size, and why.
fn unreduced(wanted: &Wanted, why: String) -> Error {
    let factor = 1u64 << wanted.halvings;
    Error::unsupported(format!(
        "the JPEG 2000 image {why} and cannot be read at 1/{factor} of its size: jpeg2000 = \"full\" in \
         the recipe's [tiles] reads it"
    ))
}

/// The marker segments of the main header before the first tile-part: marker and content. It ends
/// early where one is cut off.
fn main_header(code: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 2;
    std::iter::from_fn(move || {
        let marker = be16(code, at).filter(|marker| (0xff01..0xff90).contains(marker))?;
        let length = be16(code, at + 2).filter(|&length| length >= 2)?;
        let content = code.get(at + 4..at + 2 + length)?;
        at += 2 + length;
        Some((marker, content))
    })
}

/// The wavelet decompositions of the component that has the fewest, from the first bytes of a tile.
/// `None` when they do not show a sound header.
pub fn decompositions(bytes: &[u8]) -> Option<u32> {
    let (start, _) = codestream(bytes)?;
    let code = bytes.get(start..).filter(|code| code.starts_with(&SOC_SIZ))?;
    let mut style = None;
    let mut own = vec![None; Size::parse(code)?.components.len()];
    for (marker, content) in main_header(code) {
        match marker {
            COD => style = Some(*content.get(5)?),
            // The number of a component takes two bytes where there are more than 256.
            COC if own.len() <= 256 => {
                *own.get_mut(usize::from(*content.first()?))? = Some(*content.get(2)?);
            }
            COC => return None,
            _ => {}
        }
    }
    let style = style?;
    own.iter().map(|own| u32::from(own.unwrap_or(style))).min()
}

/// Where the codestream lies: all of `bytes`, or the `jp2c` box of a JP2 file, which may end beyond
/// `bytes`.
fn codestream(bytes: &[u8]) -> Option<(usize, usize)> {
    if bytes.starts_with(&SOC_SIZ) {
        return Some((0, bytes.len()));
    }
    let mut at = 0usize;
    while let Some(length) = be32(bytes, at) {
        let (head, length) = match length {
            0 => (8, bytes.len() - at),
            1 => (
                16,
                usize::try_from(
                    (u64::from(be32(bytes, at + 8)?) << 32) | u64::from(be32(bytes, at + 12)?),
                )
                .ok()?,
            ),
            n => (8, n as usize),
        };
        let end = at.checked_add(length).filter(|_| length >= head)?;
        if bytes.get(at + 4..at + 8)? == b"jp2c" {
            return Some((at + head, end));
        }
        at = end;
    }
    None
}

/// Walks the marker segments and tile-parts. Errors when one is cut off; returns whether the
/// end-of-codestream marker is there, which some writers forget.
fn check_tile_parts(code: &[u8]) -> Result<bool> {
    let cut = || Error::malformed("the JPEG 2000 codestream is cut off");
    let mut at = 2;
    let mut parts = 0u64;
    loop {
        let Some(marker) = be16(code, at) else {
            return if at >= code.len() && parts > 0 { Ok(false) } else { Err(cut()) };
        };
        match marker {
            0xff90 => {
                let length = be32(code, at + 6).ok_or_else(cut)? as usize;
                parts += 1;
                if length == 0 {
                    // The last tile-part may leave its length open; only the end marker then
                    // tells that it is whole.
                    return if code.ends_with(&EOC) { Ok(true) } else { Err(cut()) };
                }
                at = at.checked_add(length.max(12)).filter(|&e| e <= code.len()).ok_or_else(cut)?;
            }
            0xffd9 => return Ok(true),
            0xff00..=0xffff if parts == 0 => {
                let length = be16(code, at + 2).ok_or_else(cut)?.max(2);
                at += 2 + length;
            }
            // Padding behind the last tile-part.
            _ => return Ok(false),
        }
    }
}

/// Writes the boxes that make a JP2 file of the codestream of `length` bytes that follows, and
/// call its components RGB: the decoder then leaves them alone. It would convert subsampled ones
/// before they are rounded and clipped to the range of a sample.
fn put_rgb_header(size: &Size, length: usize, out: &mut Vec<u8>) {
    out.extend(b"\0\0\0\x0cjP  \r\n\x87\n");
    out.extend(b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 ");
    out.extend(b"\0\0\0\x2djp2h\0\0\0\x16ihdr");
    out.extend(size.height.to_be_bytes());
    out.extend(size.width.to_be_bytes());
    out.extend((size.components.len() as u16).to_be_bytes());
    out.extend([7, 7, 0, 0]);
    out.extend(b"\0\0\0\x0fcolr\x01\0\0\0\0\0\x10");
    // Tiles are bounded to far less than 4 GiB.
    out.extend((length as u32 + 8).to_be_bytes());
    out.extend(b"jp2c");
}

/// Decodes one tile of the size `shape`, or a reduced picture of it. `stream` is scratch.
pub fn decode(
    wanted: &Wanted,
    shape: Shape,
    bytes: &[u8],
    stream: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<()> {
    let Wanted { samples, ycbcr, halvings } = *wanted;
    let (start, code) = codestream(bytes)
        .and_then(|(start, end)| Some((start, bytes.get(start..end)?)))
        .filter(|(_, code)| code.starts_with(&SOC_SIZ))
        .ok_or_else(|| Error::malformed("no JPEG 2000 codestream in the tile"))?;
    let size = Size::parse(code).ok_or_else(|| Error::malformed("JPEG 2000 SIZ segment"))?;
    size.check(wanted, shape)?;
    let ended = check_tile_parts(code)?;
    if halvings > 0 {
        let levels =
            decompositions(code).ok_or_else(|| Error::malformed("JPEG 2000 main header"))?;
        if levels < halvings {
            return Err(unreduced(wanted, format!("holds {levels} wavelet decompositions")));
        }
        if size.width.min(size.height) >> halvings == 0 {
            return Err(unreduced(wanted, format!("is {}x{}", size.width, size.height)));
        }
    }
    let raw = start == 0;
    let full_size = size.components.iter().all(|&(_, h, v)| (h, v) == (1, 1));
    stream.clear();
    let bytes = if raw && (!ended || !full_size) {
        if !full_size {
            put_rgb_header(&size, code.len() + EOC.len(), stream);
        }
        stream.extend(code);
        // A second end marker does no harm.
        stream.extend(EOC);
        &stream[..]
    } else {
        bytes
    };
    // The decoder leaves out as many decompositions as keep the picture at least this large.
    let target = (halvings > 0).then_some((size.width >> halvings, size.height >> halvings));
    let settings = DecodeSettings {
        strict: raw || ended,
        target_resolution: target,
        ..DecodeSettings::default()
    };
    let failed =
        |e| Error::malformed(format!("corrupt or cut-off JPEG 2000 data: {e}")).caused_by(e);
    let image = Image::new(bytes, &settings).map_err(failed)?;
    let mut context = DecoderContext::default();
    let decoded = image.decode(&mut context).map_err(failed)?;
    let planes = decoded.components();
    let [width, height] = [size.width, size.height].map(|side| reduced(side, halvings));
    let pixels = width as usize * height as usize;
    if planes.len() != samples || planes.iter().any(|plane| plane.samples().len() != pixels) {
        return Err(Error::malformed("the JPEG 2000 image holds other components than it says"));
    }
    match planes {
        [grey] => {
            let grey: Vec<u8> = grey.samples().iter().map(|&value| to_u8(value)).collect();
            grey_to_rgb(&grey, false, out);
        }
        [y, cb, cr, ..] => {
            // Only YCbCr is ever stored with smaller chroma; a JP2 file says what it holds, and the
            // decoder has heeded that.
            let convert = samples == 3 && if full_size { ycbcr } else { raw };
            out.resize(pixels * 3, 0);
            let planes = y.samples().iter().zip(cb.samples()).zip(cr.samples());
            for (rgb, ((&y, &cb), &cr)) in out.chunks_exact_mut(3).zip(planes) {
                let pixel = if convert { to_rgb(y, cb, cr) } else { [y, cb, cr] };
                rgb.copy_from_slice(&pixel.map(to_u8));
            }
        }
        _ => return Err(Error::unsupported(format!("JPEG 2000 of {} components", planes.len()))),
    }
    Ok(())
}

fn to_u8(value: f32) -> u8 {
    // The cast saturates.
    (value + 0.5) as u8
}

/// The conversion of JFIF. Components are whole numbers in range first, as every reader of the
/// format stores them before it converts: lossy streams leave the range.
fn to_rgb(y: f32, cb: f32, cr: f32) -> [f32; 3] {
    let [y, cb, cr] = [y, cb, cr].map(|value| f32::from(to_u8(value)));
    let (cb, cr) = (cb - 128.0, cr - 128.0);
    [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb]
}

#[cfg(test)]
mod tests {
    //! Against OpenJPEG: `tests/golden/slides/make.py` says how the streams were made.

    use super::*;
    use crate::slide::{OpenOptions, Region, Slide};
    use std::path::PathBuf;

    const SHAPE: Shape = Shape { width: 37, rows: 21, full_rows: 21 };

    fn golden(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/slides").join(name)
    }

    fn odd() -> Vec<u8> {
        std::fs::read(golden("odd_37x21.j2k")).unwrap()
    }

    fn decoded(bytes: &[u8], halvings: u32) -> Result<Vec<u8>> {
        let wanted = Wanted { samples: 3, ycbcr: false, halvings };
        let mut out = Vec::new();
        decode(&wanted, SHAPE, bytes, &mut Vec::new(), &mut out).map(|()| out)
    }

    fn refused(bytes: &[u8], halvings: u32, words: &[&str]) {
        let error = decoded(bytes, halvings).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{error}: no {word}");
        }
    }

    #[test]
    fn odd_sides_are_rounded_up_when_halved() {
        for halvings in 1..=3 {
            let name = format!("odd_37x21_{}.png", 1 << halvings);
            let truth = Slide::open(&golden(&name), &OpenOptions::default()).unwrap();
            let [width, height] = [37, 21].map(|side| reduced(side, halvings));
            assert_eq!((truth.levels()[0].width, truth.levels()[0].height), (width, height));
            let whole = truth.read_region(&Region { x: 0, y: 0, level: 0, width, height });
            assert_eq!(decoded(&odd(), halvings).unwrap(), whole.unwrap().image.data, "{name}");
        }
    }

    #[test]
    fn the_component_with_the_fewest_decompositions_counts() {
        let stream = odd();
        assert_eq!(decompositions(&stream), Some(3));
        // A COC segment before the first tile-part: component 2 has one decomposition.
        let at = stream.windows(2).position(|m| m == [0xff, 0x90]).unwrap();
        let own = [0xff, 0x53, 0, 9, 2, 0, 1, 4, 4, 0, 1];
        let mixed = [&stream[..at], &own, &stream[at..]].concat();
        assert_eq!(decompositions(&mixed), Some(1));
        refused(&mixed, 2, &["holds 1 wavelet decompositions", "1/4"]);
        let nobody = [&stream[..at], &[0xff, 0x53, 0, 9, 3, 0, 1, 4, 4, 0, 1], &stream[at..]];
        assert_eq!(decompositions(&nobody.concat()), None);
        // The header is enough, also inside a JP2 file; half of it is not.
        let boxed = [b"\0\0\0\x0cjP  \r\n\x87\n\0\0\x10\0jp2c".as_slice(), &stream[..at]].concat();
        assert_eq!(decompositions(&boxed), Some(3));
        assert_eq!(decompositions(&stream[..60]), None);
    }

    #[test]
    fn what_cannot_be_halved_is_an_error_that_says_how_to_read_it() {
        let hint = "jpeg2000 = \"full\"";
        refused(&odd(), 4, &["holds 3 wavelet decompositions", "1/16", hint]);
        // The picture begins at x = 1 of its grid and is as wide as before.
        let mut shifted = odd();
        for (at, value) in [(8, 38u32), (16, 1), (24, 38)] {
            shifted[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        refused(&shifted, 1, &["begins at (1, 0) of its grid", "1/2", hint]);
    }

    #[test]
    fn a_stream_cut_off_anywhere_is_an_error_at_every_size() {
        let stream = odd();
        for halvings in 0..=3 {
            for length in 0..stream.len() - 2 {
                assert!(decoded(&stream[..length], halvings).is_err(), "{length} at {halvings}");
            }
        }
    }
}
