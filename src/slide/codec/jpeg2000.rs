//! JPEG 2000 tiles (ITU-T T.800): raw codestreams, and JP2 files around one.
//!
//! The decoder is `hayro-jpeg2000`, which replicates subsampled chroma. YCbCr is converted here
//! (JFIF, BT.601 full range), except in JP2 files, which say what they hold. The codestream header
//! is checked first, which bounds the memory of the decoder, and every tile-part must be present:
//! a truncated stream decodes to a blurred picture otherwise.

use super::{Shape, grey_to_rgb};
use crate::error::{Error, Result};
use hayro_jpeg2000::{DecodeSettings, DecoderContext, Image};

/// Tiles inside one codestream.
const MAX_TILES: u64 = 4096;
const SOC_SIZ: [u8; 4] = [0xff, 0x4f, 0xff, 0x51];
const EOC: [u8; 2] = [0xff, 0xd9];

/// The fields of the SIZ marker segment that matter here.
struct Size {
    width: u32,
    height: u32,
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
            tiles: tiles?,
            components: components.map(|c| (c[0], c[1], c[2])).collect(),
        })
    }

    fn check(&self, samples: usize, shape: Shape) -> Result<()> {
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
        Ok(())
    }
}

/// The codestream: all of `bytes`, or the `jp2c` box of a JP2 file.
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
        let end = at.checked_add(length).filter(|&end| end <= bytes.len() && length >= head)?;
        if bytes.get(at + 4..at + 8)? == b"jp2c" {
            return bytes[at + head..end].starts_with(&SOC_SIZ).then_some((at + head, end));
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

/// Decodes one tile. `stream` is scratch.
pub fn decode(
    samples: usize,
    ycbcr: bool,
    shape: Shape,
    bytes: &[u8],
    stream: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<()> {
    let (start, end) =
        codestream(bytes).ok_or_else(|| Error::malformed("no JPEG 2000 codestream in the tile"))?;
    let code = &bytes[start..end];
    let size = Size::parse(code).ok_or_else(|| Error::malformed("JPEG 2000 SIZ segment"))?;
    size.check(samples, shape)?;
    let ended = check_tile_parts(code)?;
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
    let settings = DecodeSettings { strict: raw || ended, ..DecodeSettings::default() };
    let failed =
        |e| Error::malformed(format!("corrupt or cut-off JPEG 2000 data: {e}")).caused_by(e);
    let image = Image::new(bytes, &settings).map_err(failed)?;
    let mut context = DecoderContext::default();
    let decoded = image.decode(&mut context).map_err(failed)?;
    let planes = decoded.components();
    let pixels = size.width as usize * size.height as usize;
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
