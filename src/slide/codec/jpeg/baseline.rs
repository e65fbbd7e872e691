//! Sequential JPEG of 8 bits in one scan, to the bytes of libjpeg-turbo.
//!
//! Works through one row of minimum coded units at a time: coefficients, samples of each
//! component, then pixels straight into the output. What the triangle filter needs of the row
//! above is kept as one line of history; where it needs the row below, the last line of pixels
//! waits for the next row of units.

use super::Photometric;
use super::huffman::{Bits, Huffman};
use super::rows::Upsampling;
use super::scan::Coded;
use super::segments::{Frame, FrameComponent, Scan};
use super::simd::Isa;
use super::tables::TableSet;
use crate::error::{Error, Result};
use std::sync::Arc;

/// Rows of samples are padded to a multiple of this, the pixels one vector step handles.
pub const PAD: usize = 16;

/// What is reused from stream to stream.
#[derive(Debug, Default)]
pub struct Buffers {
    pub coded: Coded,
    planes: [Plane; 3],
    /// Rows of chroma at full size.
    full: [Vec<u8>; 2],
    sums: Vec<u16>,
}

/// The part of one component in the current row of units.
#[derive(Debug, Default)]
pub struct Plane {
    /// Coefficients, unit by unit.
    pub blocks: Vec<[i16; 64]>,
    /// The place of the last coefficient of each block in the order of the stream.
    pub last: Vec<u8>,
    /// One line of history, then `8 * v` lines of `stride` samples.
    pub samples: Vec<u8>,
}

/// One component of the frame.
#[derive(Debug)]
pub struct Component {
    /// Blocks of a unit, across and down.
    pub h: usize,
    pub v: usize,
    pub quant: Arc<[i16; 64]>,
    dc: Arc<Huffman>,
    ac: Arc<Huffman>,
    pub stride: usize,
    /// Samples that are not padding.
    width: usize,
    height: usize,
    upsampling: Upsampling,
    pub plane: Plane,
}

impl Component {
    /// The line `y` of the component, in `row` or just above.
    fn line(&self, row: usize, y: usize) -> &[u8] {
        let start = (y + 1 - row * 8 * self.v) * self.stride;
        &self.plane.samples[start..start + self.stride]
    }
}

/// Whether this decoder reads such a frame and scan.
pub fn decodes(frame: &Frame, scan: &Scan) -> bool {
    let (h, v) = frame.sampling();
    let near = |c: &FrameComponent| h / c.h <= 2 && v / c.v <= 2;
    !frame.progressive && scan.whole && frame.components.iter().all(near)
}

/// Decodes the data in `buffers.coded` to RGB of the size of the frame.
pub fn decode(
    isa: Isa,
    frame: &Frame,
    scan: &Scan,
    tables: &TableSet,
    colour: Photometric,
    buffers: &mut Buffers,
    out: &mut Vec<u8>,
) -> Result<()> {
    let (width, height) = (frame.width as usize, frame.height as usize);
    let (h, v) = if frame.components.len() == 1 { (1, 1) } else { frame.sampling() };
    let (across, down) = (8 * usize::from(h), 8 * usize::from(v));
    let (units, rows) = (width.div_ceil(across), height.div_ceil(down));
    let mut components = components(frame, scan, tables, units, &mut buffers.planes)?;
    let stride = components.iter().map(|c| c.stride).max().unwrap_or(0);
    buffers.full.iter_mut().for_each(|row| row.resize(2 * stride, 0));
    buffers.sums.resize(stride, 0);
    out.resize(width * height * 3, 0);

    let order: Vec<usize> = scan.components.iter().map(|&(index, _, _)| index).collect();
    let mut entropy = Entropy::new(&buffers.coded, tables.interval);
    // A line that is mixed with the one below it waits for the next row of units.
    let wait = usize::from(components.iter().any(|c| c.upsampling.down));
    let mut done = 0;
    for row in 0..rows {
        isa.coefficients(&mut entropy, &mut components, &order, units).map_err(Error::malformed)?;
        for component in &mut components {
            isa.samples(component, units);
        }
        let end = if row + 1 == rows { height } else { (row + 1) * down - wait };
        for y in done..end {
            let pixels = &mut out[y * width * 3..(y + 1) * width * 3];
            put_line(
                isa,
                &components,
                colour,
                row,
                y,
                &mut buffers.full,
                &mut buffers.sums,
                pixels,
            );
        }
        done = end;
        for Component { plane, stride, v, .. } in &mut components {
            plane.samples.copy_within(8 * *v * *stride.., 0);
        }
    }
    entropy.finish().map_err(Error::malformed)?;
    for (kept, component) in buffers.planes.iter_mut().zip(components) {
        *kept = component.plane;
    }
    Ok(())
}

fn components(
    frame: &Frame,
    scan: &Scan,
    tables: &TableSet,
    units: usize,
    planes: &mut [Plane; 3],
) -> Result<Vec<Component>> {
    let (h_max, v_max) = frame.sampling();
    let mut out = Vec::with_capacity(3);
    for (index, c) in frame.components.iter().enumerate() {
        let table = |what: &str, number: u8| {
            Error::malformed(format!("the JPEG stream has no {what} table {number}"))
        };
        let quant = tables.quant[usize::from(c.quant)].clone();
        let quant = quant.ok_or_else(|| table("quantisation", c.quant))?;
        let of_scan = scan.components.iter().find(|&&(other, _, _)| other == index);
        let &(_, dc, ac) = of_scan.ok_or_else(|| Error::malformed("JPEG scan header"))?;
        let (dc, ac) = match (&tables.dc[usize::from(dc)], &tables.ac[usize::from(ac)]) {
            (None, _) => return Err(table("Huffman DC", dc)),
            (_, None) => return Err(table("Huffman AC", ac)),
            (Some(dc), Some(ac)) => (dc.clone(), ac.clone()),
        };
        if dc.max_symbol > 15 {
            return Err(Error::malformed("Huffman table: a DC difference of more than 15 bits"));
        }
        let (h, v) = if frame.components.len() == 1 { (1, 1) } else { (c.h.into(), c.v.into()) };
        let share = |size: u32, own: u8, most: u8| (size * u32::from(own)).div_ceil(most.into());
        let width = share(frame.width, c.h, h_max) as usize;
        let (across, down) = (c.h < h_max, c.v < v_max);
        let stride = (units * h * 8).next_multiple_of(PAD);
        let mut plane = std::mem::take(&mut planes[index]);
        plane.blocks.resize(units * h * v, [0; 64]);
        plane.last.resize(units * h * v, 0);
        plane.samples.resize((1 + 8 * v) * stride, 0);
        out.push(Component {
            h,
            v,
            quant,
            dc,
            ac,
            stride,
            width,
            height: share(frame.height, c.v, v_max) as usize,
            upsampling: Upsampling { across, down, smooth: !across || width > 2 },
            plane,
        });
    }
    Ok(out)
}

/// Writes the pixels of line `y`, whose samples are in `row` or the line above it.
#[allow(clippy::too_many_arguments)]
fn put_line(
    isa: Isa,
    components: &[Component],
    colour: Photometric,
    row: usize,
    y: usize,
    full: &mut [Vec<u8>; 2],
    sums: &mut [u16],
    out: &mut [u8],
) {
    let luma = components[0].line(row, y);
    if components.len() < 3 {
        let flip = if colour == Photometric::MinIsWhite { 0xff } else { 0 };
        for (full, &value) in full[0].iter_mut().zip(luma) {
            *full = value ^ flip;
        }
        return isa.interleave(false, [&full[0]; 3], out);
    }
    let chroma = &components[1..3];
    for (component, full) in chroma.iter().zip(full.iter_mut()) {
        let how = component.upsampling;
        if how.none() {
            continue;
        }
        let (at, below) = if how.down { (y / 2, y % 2 == 1) } else { (y, false) };
        let beside = match (how.down, below) {
            (false, _) => at,
            (true, false) => at.saturating_sub(1),
            (true, true) => (at + 1).min(component.height - 1),
        };
        let line = |y| &component.line(row, y)[..component.width];
        isa.upsample(how, line(at), line(beside), below, sums, full);
    }
    let line = |i: usize| match chroma[i].upsampling.none() {
        true => chroma[i].line(row, y),
        false => &full[i],
    };
    isa.interleave(colour == Photometric::YCbCr, [luma, line(0), line(1)], out);
}

/// What is wrong with entropy-coded data.
type Fault = &'static str;
const CORRUPT: Fault = "corrupt JPEG data: no such Huffman code";
const SHORT: Fault = "the JPEG data end early";

/// Reads coefficients from part to part of a scan.
pub struct Entropy<'a> {
    coded: &'a Coded,
    bits: Bits<'a>,
    /// Number of the current part.
    part: usize,
    /// Units up to the next restart.
    left: usize,
    interval: usize,
    predicted: [i32; 3],
}

impl<'a> Entropy<'a> {
    fn new(coded: &'a Coded, interval: u16) -> Self {
        let interval = if interval == 0 { usize::MAX } else { interval.into() };
        let bits = Bits::new(&coded.bytes);
        Entropy { coded, bits, part: 0, left: interval, interval, predicted: [0; 3] }
    }

    /// The coefficients of a row of units.
    #[inline(always)]
    pub fn row(
        &mut self,
        components: &mut [Component],
        order: &[usize],
        units: usize,
    ) -> std::result::Result<(), Fault> {
        for unit in 0..units {
            if self.left == 0 {
                self.restart()?;
            }
            self.left -= 1;
            for &index in order {
                let Component { h, v, dc, ac, plane, .. } = &mut components[index];
                let range = unit * *h * *v..(unit + 1) * *h * *v;
                let blocks = plane.blocks[range.clone()].iter_mut();
                for (block, last) in blocks.zip(&mut plane.last[range]) {
                    *block = [0; 64];
                    let predicted = &mut self.predicted[index];
                    *last = self.bits.block(dc, ac, predicted, block).ok_or(CORRUPT)?;
                }
            }
        }
        Ok(())
    }

    #[cold]
    fn restart(&mut self) -> std::result::Result<(), Fault> {
        self.finish()?;
        self.part += 1;
        let part = self.coded.parts.get(self.part).ok_or(SHORT)?;
        self.bits = Bits::new(&self.coded.bytes[part.start..]);
        self.left = self.interval;
        self.predicted = [0; 3];
        Ok(())
    }

    /// Whether the current part held all bits that were taken.
    fn finish(&self) -> std::result::Result<(), Fault> {
        let part = self.coded.parts.get(self.part).ok_or(SHORT)?;
        if self.bits.taken() > part.len() * 8 { Err(SHORT) } else { Ok(()) }
    }
}
