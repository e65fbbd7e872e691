//! The picture of one TIFF directory: its size, its grid of tiles or strips, and how they decode.

use super::codec::{self, Buffers, Compression, JpegTables, Layout, Photometric, Shape, reduced};
use super::source::Source;
use super::tags;
use super::tiff::{MAX_TILES, MAX_VALUE_BYTES, View};
use crate::error::{Context, Error, Result};
use crate::image::RgbImage;
use std::sync::Arc;

/// Pixels of one tile or strip.
pub const MAX_CHUNK_PIXELS: u64 = 1 << 25;
/// Pixels of a picture that is decoded as a whole.
pub const MAX_PICTURE_PIXELS: u64 = 1 << 27;

/// Tiles whose headers are looked at to tell how far all can be halved.
const PROBES: usize = 16;
/// Bytes of a tile within which its header is expected.
const HEADER_BYTES: u64 = 4096;

/// Where the bytes of a tile or strip lie. Length 0: there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    offset: u64,
    length: u64,
}

/// A checked directory: nothing of its pixels has been read yet.
#[derive(Clone, Debug)]
pub struct Raster {
    /// The directory's name for messages.
    pub name: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Pixels of a tile, or the width of the picture for strips.
    pub chunk_width: u32,
    /// Rows of a tile or strip.
    pub chunk_height: u32,
    /// Tiles in a row.
    pub cols: u32,
    /// Rows of tiles or strips.
    pub rows: u32,
    /// Tiles, not strips.
    pub tiled: bool,
    /// How a chunk decodes.
    pub layout: Layout,
    chunks: Arc<[Chunk]>,
}

/// Whether a directory holds tiles rather than strips.
pub fn is_tiled(view: &View<'_>) -> bool {
    view.directory.has(tags::TILE_WIDTH) || view.directory.has(tags::TILE_OFFSETS)
}

impl Raster {
    /// Checks everything about a directory that can be checked without its pixels.
    ///
    /// `aperio`: the file was written by Aperio software, which decides how compression 33003
    /// and colour tags are understood.
    pub fn parse(view: &View<'_>, aperio: bool) -> Result<Raster> {
        let width = view.positive(tags::IMAGE_WIDTH)?;
        let height = view.positive(tags::IMAGE_LENGTH)?;
        let tiled = is_tiled(view);
        let (chunk_width, chunk_height) = if tiled {
            (view.positive(tags::TILE_WIDTH)?, view.positive(tags::TILE_LENGTH)?)
        } else {
            let rows = match view.integer(tags::ROWS_PER_STRIP)? {
                Some(0) => {
                    return Err(view.at(tags::ROWS_PER_STRIP, Error::malformed("zero")));
                }
                rows => rows.unwrap_or(height).min(height),
            };
            (width, rows)
        };
        let pixels = u64::from(chunk_width) * u64::from(chunk_height);
        let limit = if tiled { MAX_CHUNK_PIXELS } else { MAX_PICTURE_PIXELS };
        if pixels > limit {
            let message = format!("{chunk_width}x{chunk_height} pixels in one tile or strip");
            return Err(Error::limit(message).context(view.directory.name.clone()));
        }
        let (cols, rows) = (width.div_ceil(chunk_width), height.div_ceil(chunk_height));
        let count = u64::from(cols) * u64::from(rows);
        if count > MAX_TILES {
            let message = format!("{count} tiles, at most {MAX_TILES} are read");
            return Err(Error::limit(message).context(view.directory.name.clone()));
        }
        let (offsets, counts) = if tiled {
            (tags::TILE_OFFSETS, tags::TILE_BYTE_COUNTS)
        } else {
            (tags::STRIP_OFFSETS, tags::STRIP_BYTE_COUNTS)
        };
        let offsets = view.table(offsets, count)?;
        let lengths = view.table(counts, count)?;
        let chunks: Vec<Chunk> = offsets
            .into_iter()
            .zip(lengths)
            .map(|(offset, length)| Chunk { offset, length })
            .collect();
        let layout = layout(view, aperio, &chunks)?;
        let name = view.directory.name.clone();
        Ok(Raster {
            name,
            width,
            height,
            chunk_width,
            chunk_height,
            cols,
            rows,
            tiled,
            layout,
            chunks: chunks.into(),
        })
    }

    /// How often every JPEG 2000 tile can be halved by decoding less of it so that the halves still
    /// lie side by side; 0 for tiles of another kind.
    ///
    /// It is decided by the headers of some tiles, from the first to the last. A tile elsewhere that
    /// holds less is an error when it is read, and so is one that cannot be read at all.
    pub fn halvings(&self, source: &Source) -> u32 {
        if !self.tiled || !matches!(self.layout.compression, Compression::Jpeg2000 { .. }) {
            return 0;
        }
        let even = self.chunk_width.trailing_zeros().min(self.chunk_height.trailing_zeros());
        let present: Vec<&Chunk> = self.chunks.iter().filter(|chunk| chunk.length > 0).collect();
        let last = present.len().saturating_sub(1);
        let looked_at = (0..PROBES).filter_map(|i| present.get(i * last / (PROBES - 1)));
        let held = looked_at.filter_map(|chunk| {
            let head = source.read(chunk.offset, chunk.length.min(HEADER_BYTES)).ok()?;
            codec::jpeg2000_decompositions(&head)
        });
        held.min().unwrap_or(0).min(even)
    }

    /// The raster of the same tiles, each halved so many times: at most [`Self::halvings`].
    #[must_use]
    pub fn halved(&self, halvings: u32) -> Raster {
        let mut raster = self.clone();
        if let Compression::Jpeg2000 { halvings: halved, .. } = &mut raster.layout.compression {
            *halved += halvings;
            raster.width = reduced(self.width, halvings);
            raster.height = reduced(self.height, halvings);
            raster.chunk_width = reduced(self.chunk_width, halvings);
            raster.chunk_height = reduced(self.chunk_height, halvings);
        }
        raster
    }

    /// Whether the file holds bytes for a tile.
    pub fn present(&self, col: u32, row: u32) -> bool {
        self.chunk(col, row).is_some_and(|chunk| chunk.length > 0)
    }

    fn chunk(&self, col: u32, row: u32) -> Option<Chunk> {
        let inside = col < self.cols && row < self.rows;
        let index = row as usize * self.cols as usize + col as usize;
        inside.then(|| self.chunks.get(index).copied()).flatten()
    }

    /// Decodes a tile to `[chunk_height, chunk_width, 3]`, or a strip to its own rows.
    ///
    /// A tile at the right or bottom edge is decoded whole, padding included.
    pub fn decode(
        &self,
        source: &Source,
        col: u32,
        row: u32,
        buffers: &mut Buffers,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let chunk = self.chunk(col, row).ok_or_else(|| Error::usage("no such tile"))?;
        if chunk.length == 0 {
            return Err(Error::malformed("the file holds no data for it"));
        }
        let rows = if self.tiled {
            self.chunk_height
        } else {
            self.chunk_height.min(self.height - row * self.chunk_height)
        };
        // Halved tiles are a fraction of what the streams say.
        let halvings = match self.layout.compression {
            Compression::Jpeg2000 { halvings, .. } => halvings,
            _ => 0,
        };
        let [width, rows, full_rows] =
            [self.chunk_width, rows, self.chunk_height].map(|side| side << halvings);
        let shape = Shape { width, rows, full_rows };
        // Compressed data can be larger than the pixels, but not by much.
        let limit = u64::from(shape.width) * u64::from(shape.full_rows) * 8 + (1 << 24);
        if chunk.length > limit && chunk.length <= source.size() {
            return Err(Error::limit(format!("{} compressed bytes", chunk.length)));
        }
        source.read_into(chunk.offset, chunk.length, &mut buffers.compressed)?;
        codec::decode(&self.layout, shape, buffers, out)
    }

    /// Decodes the whole picture.
    pub fn picture(&self, source: &Source) -> Result<RgbImage> {
        let pixels = u64::from(self.width) * u64::from(self.height);
        if pixels > MAX_PICTURE_PIXELS {
            let message = format!(
                "{}x{} pixels, at most {MAX_PICTURE_PIXELS} in all",
                self.width, self.height
            );
            return Err(Error::limit(message).context(self.name.clone()));
        }
        let (width, height) = (self.width as usize, self.height as usize);
        let mut image = RgbImage { width, height, data: Vec::new() };
        let mut buffers = Buffers::default();
        let mut chunk = Vec::new();
        for row in 0..self.rows {
            for col in 0..self.cols {
                let decoded = self.decode(source, col, row, &mut buffers, &mut chunk);
                decoded.context(|| self.chunk_name(col, row)).context(|| self.name.clone())?;
                // Only now: a directory that promises more than it holds costs no memory.
                image.data.resize(width * height * 3, 255);
                let (cw, ch) = (self.chunk_width as usize, self.chunk_height as usize);
                let (x, y) = (col as usize * cw, row as usize * ch);
                let n = cw.min(width - x) * 3;
                let lines = chunk.chunks_exact(cw * 3);
                for (line, target) in lines.zip(image.data.chunks_exact_mut(width * 3).skip(y)) {
                    target[x * 3..][..n].copy_from_slice(&line[..n]);
                }
            }
        }
        Ok(image)
    }

    /// `tile (3, 4)` or `strip 2`.
    pub fn chunk_name(&self, col: u32, row: u32) -> String {
        if self.tiled { format!("tile ({col}, {row})") } else { format!("strip {row}") }
    }
}

/// Reads how the samples are stored, and refuses what is not understood.
fn layout(view: &View<'_>, aperio: bool, chunks: &[Chunk]) -> Result<Layout> {
    let samples = view.integer(tags::SAMPLES_PER_PIXEL)?.unwrap_or(1);
    let compression = compression(view, aperio, chunks)?;
    let unsupported = |tag, what: String| Err(view.at(tag, Error::unsupported(what)));
    let small = [
        (tags::PLANAR_CONFIGURATION, 1, "samples must lie together (1)"),
        (tags::FILL_ORDER, 1, "only most significant bit first (1)"),
        (tags::IMAGE_DEPTH, 1, "only flat pictures (1)"),
    ];
    for (tag, expected, what) in small {
        let value = view.integer(tag)?.unwrap_or(expected);
        if value != expected && !(samples == 1 && tag == tags::PLANAR_CONFIGURATION) {
            return unsupported(tag, format!("{value}; {what}"));
        }
    }
    let bits = view.integers(tags::BITS_PER_SAMPLE, MAX_VALUE_BYTES)?;
    if bits.is_empty() || bits.iter().any(|&bits| bits != 8) {
        let first = bits.first().map_or("missing".into(), u64::to_string);
        return unsupported(tags::BITS_PER_SAMPLE, format!("{first}; only 8-bit samples are read"));
    }
    let formats = view.integers(tags::SAMPLE_FORMAT, MAX_VALUE_BYTES)?;
    if let Some(format) = formats.iter().find(|&&format| format != 1) {
        return unsupported(tags::SAMPLE_FORMAT, format!("{format}; only unsigned integers (1)"));
    }
    let differences = match view.integer(tags::PREDICTOR)?.unwrap_or(1) {
        1 => false,
        2 if matches!(compression, Compression::Lzw | Compression::Deflate) => true,
        n => return unsupported(tags::PREDICTOR, format!("{n} with {}", compression.name())),
    };
    let streams = matches!(compression, Compression::Jpeg | Compression::Jpeg2000 { .. });
    let photometric = match (view.integer(tags::PHOTOMETRIC)?, samples) {
        (Some(0), 1) => Photometric::MinIsWhite,
        (Some(1), 1) => Photometric::Grey,
        (Some(2), 3 | 4) => Photometric::Rgb,
        (Some(6), 3) if streams => Photometric::YCbCr,
        (Some(value), _) => {
            let what = format!("{value} with {samples} samples and {}", compression.name());
            return unsupported(tags::PHOTOMETRIC, what);
        }
        (None, _) => return Err(view.at(tags::PHOTOMETRIC, Error::malformed("missing"))),
    };
    let compression = match compression {
        Compression::Jpeg2000 { ycbcr, halvings } => {
            let ycbcr = ycbcr || photometric == Photometric::YCbCr;
            Compression::Jpeg2000 { ycbcr, halvings }
        }
        other => other,
    };
    let jpeg_tables = match compression {
        Compression::Jpeg => view.bytes(tags::JPEG_TABLES, MAX_VALUE_BYTES)?,
        _ => None,
    };
    let jpeg_tables =
        jpeg_tables.map_or_else(JpegTables::default, |bytes| JpegTables::parse(&bytes));
    let samples = samples as usize;
    Ok(Layout { compression, photometric, samples, differences, jpeg_tables, aperio })
}

/// The meaning of tag 259, where the registered numbers and what writers put there differ.
fn compression(view: &View<'_>, aperio: bool, chunks: &[Chunk]) -> Result<Compression> {
    let value = view.integer(tags::COMPRESSION)?.unwrap_or(1);
    Ok(match value {
        1 => Compression::None,
        5 => Compression::Lzw,
        7 => Compression::Jpeg,
        8 | 32946 => Compression::Deflate,
        32773 => Compression::PackBits,
        // Aperio stores YCbCr under 33003; Bio-Formats stores what the photometric tag says.
        33003 => Compression::Jpeg2000 { ycbcr: aperio, halvings: 0 },
        33005 | 34712 => Compression::Jpeg2000 { ycbcr: false, halvings: 0 },
        // Used for JPEG as well as for JPEG 2000: the first bytes decide.
        33004 | 33007 => {
            let first = chunks.iter().find(|chunk| chunk.length >= 2);
            let head = first.map(|chunk| view.source().read(chunk.offset, 2)).transpose();
            match head.map_err(|e| view.at(tags::COMPRESSION, e))?.as_deref() {
                Some([0xff, 0xd8]) => Compression::Jpeg,
                _ => Compression::Jpeg2000 { ycbcr: aperio && value == 33007, halvings: 0 },
            }
        }
        _ => {
            let error = Error::unsupported(format!("compression {value} is not supported"));
            return Err(view.at(tags::COMPRESSION, error));
        }
    })
}
