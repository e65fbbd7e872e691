//! Walks the markers of a stream from scan to scan and refuses what no sound stream has.

use super::Photometric;
use super::scan::{self, Coded};
use super::segments::{Frame, Scan, Segments, put_segment};
use super::tables::TableSet;
use crate::error::{Error, Result};

/// Scans of one image; more serve only to burn time.
pub const MAX_SCANS: usize = 100;

/// A stream between two scans.
pub struct Stream<'a> {
    pub segments: Segments<'a>,
    /// The tables in force here.
    pub tables: TableSet,
    /// What a marker said about colour: an Adobe transform, or JFIF (YCbCr).
    pub colour: Option<Photometric>,
    frame: Option<Frame>,
    scans: usize,
}

impl<'a> Stream<'a> {
    pub fn new(tables: TableSet, bytes: &'a [u8]) -> Result<Self> {
        let segments = Segments::new(bytes)?;
        Ok(Stream { segments, tables, colour: None, frame: None, scans: 0 })
    }

    /// Reads up to entropy-coded data; `None` at the end of the image.
    ///
    /// `accept` sees the frame before anything depends on its size. Segments a decoder needs are
    /// appended to `copy`, without those that steer colour.
    pub fn next_scan(
        &mut self,
        accept: &impl Fn(&Frame) -> Result<()>,
        copy: Option<&mut Vec<u8>>,
    ) -> Result<Option<(Frame, Scan)>> {
        let mut dropped = Vec::new();
        let copy = copy.unwrap_or(&mut dropped);
        loop {
            let Some((marker, body)) = self.segments.next()? else { return self.ends() };
            match marker {
                0xdb | 0xc4 | 0xdd => {
                    self.tables.read(marker, body)?;
                    put_segment(copy, marker, body);
                }
                0xc0..=0xcf => {
                    if self.frame.is_some() {
                        return Err(Error::malformed("two JPEG frames"));
                    }
                    let frame = Frame::parse(marker, body)?;
                    accept(&frame)?;
                    put_segment(copy, marker, body);
                    self.frame = Some(frame);
                }
                0xda => {
                    let frame =
                        self.frame.clone().ok_or_else(|| Error::malformed("scan before frame"))?;
                    self.scans += 1;
                    if self.scans > MAX_SCANS {
                        return Err(Error::limit(format!("more than {MAX_SCANS} JPEG scans")));
                    }
                    let scan = Scan::parse(&frame, body)?;
                    put_segment(copy, marker, body);
                    return Ok(Some((frame, scan)));
                }
                0xd9 => return Ok(None),
                0xe0 if body.starts_with(b"JFIF\0") => {
                    self.colour.get_or_insert(Photometric::YCbCr);
                }
                0xee if body.starts_with(b"Adobe") && body.len() >= 12 => {
                    let rgb = body[11] == 0;
                    self.colour = Some(if rgb { Photometric::Rgb } else { Photometric::YCbCr });
                }
                0xe0..=0xef | 0xfe => {}
                _ => {
                    return Err(Error::malformed(format!("unexpected JPEG marker {marker:#04x}")));
                }
            }
        }
    }

    /// Whether the bytes may end here, without an end marker.
    fn ends(&self) -> Result<Option<(Frame, Scan)>> {
        match &self.frame {
            // The data of a sequential scan prove themselves complete; progressive ones do not.
            Some(frame) if self.scans > 0 && !frame.progressive => Ok(None),
            Some(_) if self.scans > 0 => Err(Error::malformed("the JPEG stream has no end marker")),
            _ => Err(Error::malformed("the JPEG stream has no scan")),
        }
    }

    /// Collects the entropy-coded data of the only scan, which is sequential, and checks that
    /// behind it come the end marker, harmless segments, or nothing.
    pub fn entropy_coded(&mut self, frame: &Frame, coded: &mut Coded) -> Result<()> {
        let restarts = scan::collect(&mut self.segments, coded)?;
        scan::check_restarts(restarts, self.tables.interval, frame.units())?;
        self.end_of_image()
    }

    /// Behind the only scan there may be the end marker, harmless segments, or nothing.
    pub fn end_of_image(&mut self) -> Result<()> {
        while let Some((marker, _)) = self.segments.next()? {
            match marker {
                0xd9 => break,
                0xe0..=0xef | 0xfe => {}
                _ => {
                    return Err(Error::malformed(format!(
                        "JPEG marker {marker:#04x} in image data"
                    )));
                }
            }
        }
        Ok(())
    }
}
