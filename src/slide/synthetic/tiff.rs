//! A TIFF pyramid writer for tests and demonstrations: the file is data, the pixels stream.
//!
//! A [`TiffFile`] lists directories; [`TiffFile::write`] renders every [`Picture`] band by band
//! and passes the rows on to the directories reduced from it, so that no level is ever held
//! whole. Pixel data come first and directories last, as scanners write them. Reductions are
//! box averages rounded to nearest; a reduced size is floored, so that partial boxes at the right
//! and bottom edge are dropped and a level-0 width of 1001 has a quarter of 250.

use super::encode::{Compression, Samples, chunk, luma};
use super::tags::{Endian, Stored, directory_bytes, fields};
use crate::error::{Context, Error, Result};
use rayon::prelude::*;
use std::io::{Seek, SeekFrom, Write};

/// Pixels by rows of a fixed size; rendering the same rows twice gives the same bytes.
pub trait Picture: Sync {
    /// Width and height in pixels, neither 0.
    fn size(&self) -> [u32; 2];
    /// Fills `out`, `[rows, width, 3]` RGB, with the rows from `y` on.
    fn render(&self, y: u32, out: &mut [u8]);
}

impl Picture for crate::image::RgbImage {
    fn size(&self) -> [u32; 2] {
        [self.width as u32, self.height as u32]
    }
    fn render(&self, y: u32, out: &mut [u8]) {
        let start = y as usize * self.width * 3;
        out.copy_from_slice(&self.data[start..start + out.len()]);
    }
}

/// Where the pixels of a directory come from.
#[derive(Clone, Copy)]
pub enum Pixels<'a> {
    /// Rendered.
    Picture(&'a dyn Picture),
    /// Box averages of another directory of the same file.
    Reduced {
        /// Index in [`TiffFile::directories`].
        of: usize,
        /// Side of the box.
        factor: u32,
    },
}

/// How a directory is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunks {
    /// Tiles of one size; those at the edges are padded.
    Tiles {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// Strips of so many rows, the last one shorter.
    Strips {
        /// Rows.
        rows: u32,
    },
}

/// XResolution and YResolution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resolution {
    /// Pixels per unit, horizontally and vertically.
    pub per_unit: [f64; 2],
    /// ResolutionUnit: 1 none, 2 inch, 3 centimetre.
    pub unit: u16,
}

impl Resolution {
    /// The centimetre resolution of pixels of `mpp` micrometres.
    pub fn from_mpp(mpp: f64) -> Self {
        Resolution { per_unit: [10_000.0 / mpp; 2], unit: 3 }
    }
}

/// One image of the file.
#[derive(Clone)]
pub struct Directory<'a> {
    /// Where the pixels come from.
    pub pixels: Pixels<'a>,
    /// How they are cut.
    pub chunks: Chunks,
    /// How strips and tiles are compressed.
    pub compression: Compression,
    /// What a sample means.
    pub samples: Samples,
    /// NewSubfileType (254); absent when `None`.
    pub subfile_type: Option<u32>,
    /// ImageDescription (270).
    pub description: Option<String>,
    /// Resolution tags (282, 283, 296).
    pub resolution: Option<Resolution>,
    /// ICC profile (34675).
    pub icc_profile: Option<Vec<u8>>,
    /// Chunks, in row-major order, left out of the file: offset 0 and byte count 0.
    pub missing: Vec<u32>,
    /// Colour of the pixels that pad edge tiles.
    pub padding: [u8; 3],
    /// Listed in the SubIFDs (330) of this earlier directory instead of in the main chain.
    pub parent: Option<usize>,
}

impl<'a> Directory<'a> {
    /// RGB with no optional tag.
    pub fn new(pixels: Pixels<'a>, chunks: Chunks, compression: Compression) -> Self {
        Directory {
            pixels,
            chunks,
            compression,
            samples: Samples::Rgb,
            subfile_type: None,
            description: None,
            resolution: None,
            icc_profile: None,
            missing: Vec::new(),
            padding: [255; 3],
            parent: None,
        }
    }
}

/// A file to write.
#[derive(Clone)]
pub struct TiffFile<'a> {
    /// BigTIFF: 64-bit offsets.
    pub big: bool,
    /// Byte order of everything but compressed data.
    pub endian: Endian,
    /// In the order of the chain.
    pub directories: Vec<Directory<'a>>,
}

impl TiffFile<'_> {
    /// Writes the whole file from the sink's start and returns its length in bytes.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] naming the directory for a description that cannot be written (a
    /// size of 0, YCbCr without JPEG, a reference to a directory that does not exist),
    /// [`crate::Kind::Limit`] when a classic file would pass 4 GiB, [`crate::Kind::Io`].
    pub fn write(&self, sink: impl Write + Seek) -> Result<u64> {
        let mut images = self.plan()?;
        let mut out = Sink { sink, at: 0, big: self.big };
        out.put(&self.endian.header(self.big, 0))?;
        for i in 0..images.len() {
            if let Pixels::Picture(picture) = self.directories[i].pixels {
                self.render(i, picture, &mut images, &mut out)?;
            }
        }
        let first = self.write_directories(&images, &mut out)?;
        let length = out.at;
        out.sink.seek(SeekFrom::Start(0)).map_err(|e| Error::io("seek", e))?;
        out.put(&self.endian.header(self.big, first))?;
        out.sink.flush().map_err(|e| Error::io("write", e))?;
        Ok(length)
    }

    /// Checks every directory and works out its size.
    fn plan(&self) -> Result<Vec<Image>> {
        if self.directories.is_empty() || self.directories[0].parent.is_some() {
            return Err(Error::usage("a TIFF starts with a directory of the main chain"));
        }
        let place = |i: usize| move || format!("directory {i}");
        let mut images = Vec::with_capacity(self.directories.len());
        for (i, directory) in self.directories.iter().enumerate() {
            check(directory, i).context(place(i))?;
            images.push(Image::new(self.size(i).context(place(i))?, directory.chunks));
        }
        for (i, directory) in self.directories.iter().enumerate() {
            if let Pixels::Reduced { of, .. } = directory.pixels {
                images[of].children.push(i);
            }
        }
        Ok(images)
    }

    /// Follows the chain of reductions from directory `i` to its picture.
    fn size(&self, i: usize) -> Result<[u32; 2]> {
        let (mut at, mut factor) = (i, 1u32);
        for _ in 0..=self.directories.len() {
            match self.directories[at].pixels {
                Pixels::Picture(picture) => {
                    let size = picture.size().map(|n| n / factor);
                    return match size {
                        [0, _] | [_, 0] => Err(Error::usage("an image of 0 pixels")),
                        size => Ok(size),
                    };
                }
                Pixels::Reduced { of, factor: by } => {
                    if of >= self.directories.len() || by == 0 {
                        return Err(Error::usage(format!("reduced from {of} by {by}")));
                    }
                    factor = factor.saturating_mul(by);
                    at = of;
                }
            }
        }
        Err(Error::usage("reduced from itself"))
    }

    fn render<W: Write + Seek>(
        &self,
        i: usize,
        picture: &dyn Picture,
        images: &mut [Image],
        out: &mut Sink<W>,
    ) -> Result<()> {
        // Threads share a band by slices of rows; the bytes cannot depend on who renders them.
        const SLICE: usize = 32;
        let [width, height] = picture.size();
        let row = width as usize * 3;
        let band_rows = images[i].chunk[1].max(128);
        let mut y = 0;
        while y < height {
            let rows = band_rows.min(height - y);
            let mut band = vec![0; rows as usize * row];
            band.par_chunks_mut(SLICE * row)
                .enumerate()
                .for_each(|(k, slice)| picture.render(y + (k * SLICE) as u32, slice));
            self.feed(i, &band, images, out)?;
            y += rows;
        }
        Ok(())
    }

    /// Takes whole rows of directory `i`: stores every chunk row that is complete and passes
    /// averages on to the directories reduced from it.
    fn feed<W: Write + Seek>(
        &self,
        i: usize,
        rows: &[u8],
        images: &mut [Image],
        out: &mut Sink<W>,
    ) -> Result<()> {
        images[i].pending.extend_from_slice(rows);
        images[i].received += (rows.len() / images[i].row_bytes()) as u32;
        let last = images[i].received == images[i].size[1];
        while let Some(band) = images[i].take_chunk_row(last) {
            let stored =
                self.compress(i, &images[i], &band).context(|| format!("directory {i}"))?;
            for bytes in stored {
                let at = if bytes.is_empty() { 0 } else { out.at };
                images[i].offsets.push(at);
                images[i].counts.push(bytes.len() as u64);
                out.put(&bytes)?;
            }
        }
        for child in images[i].children.clone() {
            if let Pixels::Reduced { factor, .. } = self.directories[child].pixels {
                let width = images[i].size[0] as usize;
                let limit = images[child].size;
                let reduced = images[child].averager.take(rows, width, factor as usize, limit);
                if !reduced.is_empty() {
                    self.feed(child, &reduced, images, out)?;
                }
            }
        }
        Ok(())
    }

    /// Cuts one row of chunks out of `band` and compresses each; a missing one is empty.
    fn compress(&self, i: usize, image: &Image, band: &[u8]) -> Result<Vec<Vec<u8>>> {
        let directory = &self.directories[i];
        let first = image.offsets.len() as u32;
        let [chunk_width, chunk_height] = image.chunk;
        let rows = match directory.chunks {
            Chunks::Tiles { .. } => chunk_height as usize,
            Chunks::Strips { .. } => band.len() / image.row_bytes(),
        };
        (0..image.size[0].div_ceil(chunk_width))
            .into_par_iter()
            .map(|col| {
                if directory.missing.contains(&(first + col)) {
                    return Ok(Vec::new());
                }
                let left = (col * chunk_width) as usize;
                let width = chunk_width as usize;
                let mut cut = directory.padding.repeat(rows * width);
                let inside = width.min(image.size[0] as usize - left);
                for (to, from) in cut.chunks_mut(width * 3).zip(band.chunks(image.row_bytes())) {
                    to[..inside * 3].copy_from_slice(&from[left * 3..(left + inside) * 3]);
                }
                if directory.samples == Samples::Gray {
                    cut = cut.chunks_exact(3).map(|p| luma([p[0], p[1], p[2]])).collect();
                }
                chunk(&mut cut, width, directory.samples, directory.compression)
            })
            .collect()
    }

    /// Writes all directories, last first so that every link is known; returns the first's offset.
    fn write_directories<W: Write + Seek>(
        &self,
        images: &[Image],
        out: &mut Sink<W>,
    ) -> Result<u64> {
        let mut places = vec![0; images.len()];
        let mut next = 0;
        for i in (0..images.len()).rev() {
            let directory = &self.directories[i];
            let children: Vec<u64> = (0..images.len())
                .filter(|&c| self.directories[c].parent == Some(i))
                .map(|c| places[c])
                .collect();
            let stored = Stored {
                size: images[i].size,
                offsets: &images[i].offsets,
                counts: &images[i].counts,
                children,
            };
            let fields = fields(directory, stored)?;
            let pad = out.at % 2;
            out.put(&[0][..pad as usize])?;
            places[i] = out.at;
            let link = if directory.parent.is_some() { 0 } else { next };
            out.put(&directory_bytes(fields, out.at, link, self.endian, self.big))?;
            if directory.parent.is_none() {
                next = places[i];
            }
        }
        Ok(next)
    }
}

/// What types do not rule out.
fn check(directory: &Directory, index: usize) -> Result<()> {
    let jpeg = match directory.compression {
        Compression::Jpeg(jpeg) => Some(jpeg),
        _ => None,
    };
    if directory.samples == Samples::YCbCr && jpeg.is_none() {
        return Err(Error::usage("YCbCr samples need JPEG"));
    }
    if jpeg.is_some_and(|j| j.sampling.factors() != [1, 1] && directory.samples != Samples::YCbCr) {
        return Err(Error::usage("only YCbCr may be subsampled"));
    }
    if let Chunks::Tiles { width, height } = directory.chunks
        && (width == 0 || height == 0 || width % 16 != 0 || height % 16 != 0)
    {
        return Err(Error::usage(format!("tiles of {width} x {height}: multiples of 16")));
    }
    if directory.chunks == (Chunks::Strips { rows: 0 }) {
        return Err(Error::usage("strips of 0 rows"));
    }
    if directory.parent.is_some_and(|parent| parent >= index) {
        return Err(Error::usage("a SubIFD follows its parent"));
    }
    Ok(())
}

/// A directory while its pixels pass through.
struct Image {
    size: [u32; 2],
    /// Width and height of a chunk in pixels.
    chunk: [u32; 2],
    children: Vec<usize>,
    /// Rows received and not yet stored.
    pending: Vec<u8>,
    received: u32,
    averager: Averager,
    offsets: Vec<u64>,
    counts: Vec<u64>,
}

impl Image {
    fn new(size: [u32; 2], chunks: Chunks) -> Self {
        let chunk = match chunks {
            Chunks::Tiles { width, height } => [width, height],
            Chunks::Strips { rows } => [size[0], rows],
        };
        Image {
            size,
            chunk,
            children: Vec::new(),
            pending: Vec::new(),
            received: 0,
            averager: Averager::default(),
            offsets: Vec::new(),
            counts: Vec::new(),
        }
    }

    fn row_bytes(&self) -> usize {
        self.size[0] as usize * 3
    }

    /// The rows of the next row of chunks, fewer only at the end of the image.
    fn take_chunk_row(&mut self, last: bool) -> Option<Vec<u8>> {
        let whole = self.row_bytes() * self.chunk[1] as usize;
        if self.pending.len() >= whole {
            let rest = self.pending.split_off(whole);
            return Some(std::mem::replace(&mut self.pending, rest));
        }
        (last && !self.pending.is_empty()).then(|| std::mem::take(&mut self.pending))
    }
}

/// Sums of the rows of the box row under way.
#[derive(Default)]
struct Averager {
    sums: Vec<u32>,
    rows: usize,
    finished: u32,
}

impl Averager {
    /// Adds whole rows of the source and returns the rows of averages that became complete, up to
    /// `limit` = width and height of the result.
    fn take(&mut self, rows: &[u8], width: usize, factor: usize, limit: [u32; 2]) -> Vec<u8> {
        let columns = limit[0] as usize;
        self.sums.resize(columns * 3, 0);
        let mut out = Vec::new();
        let area = (factor * factor) as u32;
        for row in rows.chunks_exact(width * 3) {
            for (sum, boxed) in self.sums.chunks_exact_mut(3).zip(row.chunks_exact(factor * 3)) {
                for pixel in boxed.chunks_exact(3) {
                    for c in 0..3 {
                        sum[c] += u32::from(pixel[c]);
                    }
                }
            }
            self.rows += 1;
            if self.rows == factor {
                if self.finished < limit[1] {
                    out.extend(self.sums.iter().map(|&s| ((s + area / 2) / area) as u8));
                    self.finished += 1;
                }
                self.sums.fill(0);
                self.rows = 0;
            }
        }
        out
    }
}

/// The output with its position and the limit of its offsets.
struct Sink<W> {
    sink: W,
    at: u64,
    big: bool,
}

impl<W: Write> Sink<W> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.sink.write_all(bytes).map_err(|e| Error::io("write", e))?;
        self.at += bytes.len() as u64;
        if !self.big && self.at > u64::from(u32::MAX) {
            return Err(Error::limit("a classic TIFF ends at 4 GiB; write BigTIFF"));
        }
        Ok(())
    }
}
