//! Marker segments, and the frame and scan headers in them.

use crate::error::{Error, Result};

/// Start of image.
pub const SOI: [u8; 2] = [0xff, 0xd8];
/// End of image.
pub const EOI: [u8; 2] = [0xff, 0xd9];

/// The segments of a stream up to entropy-coded data.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    pub bytes: &'a [u8],
    /// Where the next marker is expected; never behind the end.
    pub position: usize,
}

impl<'a> Segments<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        if !bytes.starts_with(&SOI) {
            return Err(Error::malformed("no JPEG start-of-image marker"));
        }
        Ok(Segments { bytes, position: 2 })
    }

    /// The next marker and its body without the length; `None` at the end of the bytes.
    pub fn next(&mut self) -> Result<Option<(u8, &'a [u8])>> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let Some(&first) = rest.first() else { return Ok(None) };
        if first != 0xff {
            let message = format!("byte {first:#04x} where a marker is expected");
            return Err(Error::malformed(message));
        }
        let Some(fill) = rest.iter().position(|&byte| byte != 0xff) else { return Ok(None) };
        let marker = rest[fill];
        self.position += fill + 1;
        if matches!(marker, 0xd0..=0xd9 | 0x01) {
            return Ok(Some((marker, &[])));
        }
        let rest = &rest[fill + 1..];
        let length = match rest {
            [high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
            _ => 0,
        };
        let body = rest.get(2..length).ok_or_else(|| {
            let message = format!("segment {marker:#04x} of length {length} does not fit");
            Error::malformed(message)
        })?;
        self.position += length;
        Ok(Some((marker, body)))
    }
}

/// Appends a segment.
pub fn put_segment(out: &mut Vec<u8>, marker: u8, body: &[u8]) {
    out.extend([0xff, marker]);
    // A body comes from a segment, so its length fits.
    out.extend((body.len() as u16 + 2).to_be_bytes());
    out.extend(body);
}

/// One component of a frame.
#[derive(Clone, Copy, Debug)]
pub struct FrameComponent {
    pub id: u8,
    /// Horizontal sampling factor.
    pub h: u8,
    /// Vertical sampling factor.
    pub v: u8,
    /// Number of its quantisation table.
    pub quant: u8,
}

/// A validated start-of-frame segment.
#[derive(Clone, Debug)]
pub struct Frame {
    pub progressive: bool,
    pub width: u32,
    pub height: u32,
    pub components: Vec<FrameComponent>,
}

impl Frame {
    /// Whether components have different numbers of samples.
    pub fn subsampled(&self) -> bool {
        self.components.windows(2).any(|pair| (pair[0].h, pair[0].v) != (pair[1].h, pair[1].v))
    }

    pub fn parse(marker: u8, body: &[u8]) -> Result<Frame> {
        if !matches!(marker, 0xc0..=0xc2) {
            return Err(Error::unsupported(format!(
                "coding process {marker:#04x}, only sequential and progressive \
                 Huffman-coded DCT are read"
            )));
        }
        let bad = |what: String| Error::malformed(format!("JPEG frame: {what}"));
        let &[precision, h1, h0, w1, w0, count, ref rest @ ..] = body else {
            return Err(bad("too short".into()));
        };
        if precision != 8 {
            return Err(Error::unsupported(format!("JPEG of {precision} bits a sample")));
        }
        if rest.len() != 3 * usize::from(count) {
            return Err(bad(format!("{count} components in {} bytes", rest.len())));
        }
        if count != 1 && count != 3 {
            return Err(Error::unsupported(format!("JPEG of {count} components")));
        }
        let mut components: Vec<FrameComponent> = Vec::with_capacity(3);
        for c in rest.chunks_exact(3) {
            let (id, h, v, quant) = (c[0], c[1] >> 4, c[1] & 15, c[2]);
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) || quant > 3 {
                return Err(bad(format!("component {id}: sampling {h}x{v}, table {quant}")));
            }
            if components.iter().any(|other| other.id == id) {
                return Err(bad(format!("component {id} twice")));
            }
            components.push(FrameComponent { id, h, v, quant });
        }
        let frame = Frame {
            progressive: marker == 0xc2,
            width: u32::from(u16::from_be_bytes([w1, w0])),
            height: u32::from(u16::from_be_bytes([h1, h0])),
            components,
        };
        let (h_max, v_max) = frame.sampling();
        let fits = |c: &FrameComponent| h_max % c.h == 0 && v_max % c.v == 0;
        let blocks: u8 = frame.components.iter().map(|c| c.h * c.v).sum();
        // The first component carries the detail; T.81, B.2.3 allows ten blocks in a unit.
        let first = frame.components[0];
        let luma = (first.h, first.v) == (h_max, v_max);
        if count == 3 && (blocks > 10 || !luma || !frame.components.iter().all(fits)) {
            return Err(Error::unsupported("JPEG with unusual chroma sampling"));
        }
        Ok(frame)
    }

    /// The largest sampling factors, horizontal and vertical.
    pub fn sampling(&self) -> (u8, u8) {
        let max = |(h, v): (u8, u8), c: &FrameComponent| (h.max(c.h), v.max(c.v));
        self.components.iter().fold((1, 1), max)
    }

    /// Minimum coded units of a scan over all components.
    pub fn units(&self) -> u64 {
        let (h, v) = if self.components.len() == 1 { (1, 1) } else { self.sampling() };
        let across = self.width.div_ceil(8 * u32::from(h));
        let down = self.height.div_ceil(8 * u32::from(v));
        u64::from(across) * u64::from(down)
    }
}

/// A validated scan header.
#[derive(Clone, Debug)]
pub struct Scan {
    /// `(index in the frame, DC table, AC table)` in the order of the scan.
    pub components: Vec<(usize, u8, u8)>,
    /// The scan holds all components of the frame.
    pub whole: bool,
}

impl Scan {
    pub fn parse(frame: &Frame, body: &[u8]) -> Result<Scan> {
        let bad = || Error::malformed("JPEG scan header");
        let (&count, rest) = body.split_first().ok_or_else(bad)?;
        let count = usize::from(count);
        if !(1..=frame.components.len()).contains(&count) || rest.len() != 2 * count + 3 {
            return Err(bad());
        }
        let mut components: Vec<(usize, u8, u8)> = Vec::with_capacity(3);
        for pair in rest[..2 * count].chunks_exact(2) {
            let known = frame.components.iter().position(|c| c.id == pair[0]);
            let (dc, ac) = (pair[1] >> 4, pair[1] & 15);
            match known {
                Some(index)
                    if dc < 4
                        && ac < 4
                        && components.iter().all(|&(other, _, _)| other != index) =>
                {
                    components.push((index, dc, ac));
                }
                _ => return Err(bad()),
            }
        }
        let whole = count == frame.components.len();
        Ok(Scan { components, whole })
    }
}
