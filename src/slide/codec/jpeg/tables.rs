//! Quantisation and Huffman tables, derived once and shared by all tiles of a directory.

use super::huffman::Huffman;
use super::segments::{Segments, put_segment};
use crate::error::{Error, Result};
use std::sync::Arc;

/// Position in a block, row by row, of each coefficient in the order of the stream (T.81,
/// figure 5). Runs may point behind the block; those go to the last place and are refused after.
pub const ZIGZAG: [u8; 128] = {
    let mut order = [63; 128];
    let (mut k, mut diagonal) = (0, 0);
    while diagonal < 15 {
        let mut i = 0;
        while i <= diagonal {
            let (x, y) = if diagonal % 2 == 0 { (i, diagonal - i) } else { (diagonal - i, i) };
            if x < 8 && y < 8 {
                order[k] = (y * 8 + x) as u8;
                k += 1;
            }
            i += 1;
        }
        diagonal += 1;
    }
    order
};

/// The tables in force at some place of a stream.
#[derive(Clone, Debug, Default)]
pub struct TableSet {
    /// Quantisation steps, row by row.
    pub quant: [Option<Arc<[i16; 64]>>; 4],
    pub dc: [Option<Arc<Huffman>>; 4],
    pub ac: [Option<Arc<Huffman>>; 4],
    /// Minimum coded units between restart markers, 0 for none.
    pub interval: u16,
}

impl TableSet {
    /// Takes over a DQT, DHT or DRI segment.
    pub fn read(&mut self, marker: u8, mut body: &[u8]) -> Result<()> {
        let name = match marker {
            0xdb => "quantisation table",
            0xc4 => "Huffman table",
            _ => "restart interval",
        };
        let bad = |what: &str| Error::malformed(format!("{name}: {what}"));
        if marker == 0xdd {
            let interval = body.try_into().map_err(|_| bad("length"))?;
            self.interval = u16::from_be_bytes(interval);
            return Ok(());
        }
        while let Some((&head, rest)) = body.split_first() {
            let (class, id) = (head >> 4, usize::from(head & 15));
            if class > 1 || id > 3 {
                return Err(bad(&format!("class {class}, number {id}")));
            }
            if marker == 0xdb {
                let size = 64 << class;
                let steps = rest.get(..size).ok_or_else(|| bad("too short"))?;
                self.quant[id] = Some(Arc::new(quantisation(steps, class == 1)));
                body = &rest[size..];
            } else {
                let (counts, rest) = rest.split_first_chunk().ok_or_else(|| bad("too short"))?;
                let total = check_code_lengths(counts).ok_or_else(|| bad("no prefix code"))?;
                let symbols = rest.get(..total).ok_or_else(|| bad("too short"))?;
                let table = Some(Arc::new(Huffman::new(counts, symbols)));
                if class == 0 {
                    self.dc[id] = table;
                } else {
                    self.ac[id] = table;
                }
                body = &rest[total..];
            }
        }
        Ok(())
    }
}

/// Steps of 16 bits wrap where libjpeg's do.
fn quantisation(steps: &[u8], wide: bool) -> [i16; 64] {
    let mut out = [0; 64];
    for (k, &place) in ZIGZAG[..64].iter().enumerate() {
        out[usize::from(place)] = match wide {
            true => i16::from_be_bytes([steps[2 * k], steps[2 * k + 1]]),
            false => i16::from(steps[k]),
        };
    }
    out
}

/// The number of codes, or `None` when the lengths do not make a prefix code that leaves the
/// code of all 1-bits free (T.81, C.2).
fn check_code_lengths(counts: &[u8; 16]) -> Option<usize> {
    let (mut code, mut total) = (0usize, 0usize);
    for (length, &count) in (1..).zip(counts) {
        code = code * 2 + usize::from(count);
        total += usize::from(count);
        if code >= 1 << length {
            return None;
        }
    }
    (1..=256).contains(&total).then_some(total)
}

/// Quantisation and Huffman tables shared by the tiles of a directory (tag 347).
#[derive(Clone, Debug, Default)]
pub struct Tables {
    pub(super) set: TableSet,
    /// The segments they came in.
    pub(super) segments: Vec<u8>,
    /// Why the tag cannot be used: an error of every tile that is read.
    fault: Option<String>,
}

impl Tables {
    /// Reads a tables-only stream.
    pub fn parse(bytes: &[u8]) -> Tables {
        let mut tables = Tables::default();
        if let Err(error) = tables.fill(bytes) {
            tables.fault = Some(format!("JPEGTables: {error}"));
        }
        tables
    }

    fn fill(&mut self, bytes: &[u8]) -> Result<()> {
        let mut reader = Segments::new(bytes)?;
        while let Some((marker, body)) = reader.next()? {
            match marker {
                0xd9 => break,
                0xdb | 0xc4 | 0xdd => {
                    self.set.read(marker, body)?;
                    put_segment(&mut self.segments, marker, body);
                }
                0xe0..=0xef | 0xfe => {}
                _ => return Err(Error::malformed(format!("marker {marker:#04x} among tables"))),
            }
        }
        Ok(())
    }

    /// The error that parsing met, if any.
    pub(super) fn usable(&self) -> Result<()> {
        self.fault.as_ref().map_or(Ok(()), |fault| Err(Error::malformed(fault.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a Huffman table with so many codes of lengths 1, 2 and 3 is taken.
    fn taken(counts: [u8; 3]) -> bool {
        let mut body = vec![0];
        body.extend(counts);
        body.resize(17, 0);
        body.resize(17 + counts.iter().map(|&n| usize::from(n)).sum::<usize>(), 1);
        TableSet::default().read(0xc4, &body).is_ok()
    }

    #[test]
    fn only_prefix_codes_that_leave_ones_alone_free_are_taken() {
        assert!(taken([1, 1, 1]) && taken([0, 3, 1]) && taken([0, 0, 7]));
        // All 1-bits is a code.
        assert!(!taken([2, 0, 0]) && !taken([1, 2, 0]) && !taken([0, 0, 8]));
        // More codes than there are, or none.
        assert!(!taken([3, 0, 0]) && !taken([1, 1, 3]) && !taken([0, 0, 0]));
    }
}
