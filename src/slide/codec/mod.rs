//! From the bytes of one tile or strip to RGB.
//!
//! Every decoder is told the size it must produce and refuses anything else before it allocates,
//! so a corrupt stream costs no more memory than a sound one. Decoders are third-party code on
//! untrusted bytes: should one panic, the tile is an error and the process lives on.

mod jpeg;
mod jpeg2000;
mod raw;

use crate::error::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use jpeg::Tables as JpegTables;
pub use jpeg::{
    decode_picture as decode_jpeg_picture, decode_picture_as as decode_jpeg_as,
    picture_size as jpeg_picture_size,
};
pub use jpeg2000::decompositions as jpeg2000_decompositions;

/// How a tile or strip is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Tag value 1.
    None,
    /// 5, the TIFF variant (most significant bit first, early code switch).
    Lzw,
    /// 8 and 32946, zlib streams.
    Deflate,
    /// 32773.
    PackBits,
    /// 7, streams that may share their tables through tag 347.
    Jpeg,
    /// A JPEG 2000 codestream, or a JP2 file around one.
    Jpeg2000 {
        /// The three components are YCbCr even if the stream does not say so.
        ycbcr: bool,
        /// Wavelet decompositions left out: the picture is made at 1 / 2^n of its size.
        halvings: u32,
    },
}

/// A side of a JPEG 2000 picture without so many of its wavelet decompositions (T.800, B.5).
pub fn reduced(side: u32, halvings: u32) -> u32 {
    u32::try_from(u64::from(side).div_ceil(1 << halvings.min(63))).unwrap_or(side)
}

impl Compression {
    /// The name shown to users.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Lzw => "lzw",
            Compression::Deflate => "deflate",
            Compression::PackBits => "packbits",
            Compression::Jpeg => "jpeg",
            Compression::Jpeg2000 { .. } => "jpeg2000",
        }
    }
}

/// What the samples mean (TIFF tag 262).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Photometric {
    /// One sample, 0 is white.
    MinIsWhite,
    /// One sample, 0 is black.
    Grey,
    /// Three samples, or four with an alpha that is dropped.
    Rgb,
    /// Three samples; only inside JPEG and JPEG 2000 streams.
    YCbCr,
}

/// Everything a decoder must know that is the same for all tiles of a directory.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Compression.
    pub compression: Compression,
    /// Meaning of the samples.
    pub photometric: Photometric,
    /// Samples of a pixel: 1, 3 or 4.
    pub samples: usize,
    /// Whether each sample is stored as the difference from its left neighbour (predictor 2).
    pub differences: bool,
    /// Tables shared by the JPEG streams.
    pub jpeg_tables: JpegTables,
    /// The file was written by Aperio software: the colour tag wins over markers in the stream.
    pub aperio: bool,
}

/// The size a tile or strip must have, decoded as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Pixels.
    pub width: u32,
    /// Rows that are wanted.
    pub rows: u32,
    /// Rows the stream may hold: more than `rows` only in the last strip of a picture.
    pub full_rows: u32,
}

/// Buffers one thread reuses from tile to tile.
#[derive(Debug, Default)]
pub struct Buffers {
    /// Compressed bytes as they lie in the file.
    pub compressed: Vec<u8>,
    jpeg: jpeg::Buffers,
    /// A codestream put together from parts.
    stream: Vec<u8>,
    /// Samples before they become RGB.
    samples: Vec<u8>,
}

/// Decodes `buffers.compressed` into `out`, which becomes `[rows, width, 3]` RGB, of the
/// [`reduced`] sides where the layout asks for that.
pub fn decode(
    layout: &Layout,
    shape: Shape,
    buffers: &mut Buffers,
    out: &mut Vec<u8>,
) -> Result<()> {
    let bytes = std::mem::take(&mut buffers.compressed);
    let mut halved = 0;
    let decoded = match layout.compression {
        Compression::Jpeg => {
            guarded("JPEG", || jpeg::decode(layout, shape, &bytes, &mut buffers.jpeg, out))
        }
        Compression::Jpeg2000 { ycbcr, halvings } => guarded("JPEG 2000", || {
            halved = halvings;
            let wanted = jpeg2000::Wanted { samples: layout.samples, ycbcr, halvings };
            jpeg2000::decode(&wanted, shape, &bytes, &mut buffers.stream, out)
        }),
        _ => guarded("raw", || raw::decode(layout, shape, &bytes, &mut buffers.samples, out)),
    };
    buffers.compressed = bytes;
    decoded?;
    let [width, rows] = [shape.width, shape.rows].map(|side| reduced(side, halved) as usize);
    out.truncate(width * rows * 3);
    Ok(())
}

/// Turns a panic inside a decoder into an error. The buffers hold only bytes that the next call
/// overwrites, so nothing half-changed can be observed.
fn guarded<T>(name: &str, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| {
        Err(Error::malformed(format!("the {name} decoder gave up on this stream")))
    })
}

/// Grey to RGB, in place at the end of a decode.
fn grey_to_rgb(grey: &[u8], invert: bool, out: &mut Vec<u8>) {
    let flip = if invert { 0xff } else { 0 };
    out.clear();
    out.extend(grey.iter().flat_map(|&value| [value ^ flip; 3]));
}
