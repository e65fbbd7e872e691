//! From the samples of a DICOM file to RGB: the grey-scale pipeline of PS3.3 C.11 and the colour
//! spaces of PS3.3 C.7.6.3.

use super::dicom::{Coding, DataSet, Tag, named};
use crate::error::{Context, Error, Result};
use crate::image::RgbImage;
use crate::slide::{self, MAX_PICTURE_PIXELS};

const SAMPLES: Tag = (0x0028, 0x0002);
const PHOTOMETRIC: Tag = (0x0028, 0x0004);
const PLANAR: Tag = (0x0028, 0x0006);
const FRAMES: Tag = (0x0028, 0x0008);
const ROWS: Tag = (0x0028, 0x0010);
const COLUMNS: Tag = (0x0028, 0x0011);
const BITS_ALLOCATED: Tag = (0x0028, 0x0100);
const BITS_STORED: Tag = (0x0028, 0x0101);
const HIGH_BIT: Tag = (0x0028, 0x0102);
const SIGNED: Tag = (0x0028, 0x0103);
const CENTER: Tag = (0x0028, 0x1050);
const WIDTH: Tag = (0x0028, 0x1051);
const INTERCEPT: Tag = (0x0028, 0x1052);
const SLOPE: Tag = (0x0028, 0x1053);
const FUNCTION: Tag = (0x0028, 0x1056);
const MODALITY_LUT: Tag = (0x0028, 0x3000);
const VOI_LUT: Tag = (0x0028, 0x3010);
const PIXEL_DATA: Tag = (0x7fe0, 0x0010);

/// What the samples mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Photometric {
    /// Grey, the least value white if so.
    Grey { inverted: bool },
    /// Red, green, blue.
    Rgb,
    /// Luminance and two chrominances, which two neighbours share if so.
    Ybr { shared: bool },
}

/// How the samples lie in the pixel data.
struct Layout {
    width: usize,
    height: usize,
    photometric: Photometric,
    /// 8 or 16.
    allocated: u32,
    stored: u32,
    signed: bool,
    /// A plane a channel instead of channel beside channel.
    planar: bool,
}

fn unsupported(tag: Tag, what: String) -> Error {
    Error::unsupported(what).context(named(tag))
}

impl Layout {
    fn read(data: &DataSet<'_>) -> Result<Layout> {
        if let Some(frames) = data.decimal(FRAMES)?.filter(|&n| n != 1.0) {
            let what = format!("{frames} frames: only one is read, save it as a file of its own");
            return Err(unsupported(FRAMES, what));
        }
        let photometric = match data.text(PHOTOMETRIC).as_str() {
            "MONOCHROME1" => Photometric::Grey { inverted: true },
            "MONOCHROME2" => Photometric::Grey { inverted: false },
            "RGB" => Photometric::Rgb,
            "YBR_FULL" => Photometric::Ybr { shared: false },
            "YBR_FULL_422" => Photometric::Ybr { shared: true },
            "" => return Err(Error::malformed("is missing").context(named(PHOTOMETRIC))),
            other => {
                let known = "MONOCHROME1, MONOCHROME2, RGB, YBR_FULL and YBR_FULL_422 are read";
                return Err(unsupported(PHOTOMETRIC, format!("{other}: {known}")));
            }
        };
        let grey = matches!(photometric, Photometric::Grey { .. });
        let samples = data.number(SAMPLES)?;
        if samples != if grey { 1 } else { 3 } {
            let what = format!("{samples} samples of {}", data.text(PHOTOMETRIC));
            return Err(Error::malformed(what).context(named(SAMPLES)));
        }
        let size = [data.number(COLUMNS)?, data.number(ROWS)?].map(usize::from);
        let pixels = size[0] as u64 * size[1] as u64;
        if pixels == 0 || pixels > MAX_PICTURE_PIXELS {
            let what = format!("{} x {}: 1 to {MAX_PICTURE_PIXELS} pixels", size[0], size[1]);
            return Err(Error::limit(what).context(named(ROWS)));
        }
        let (allocated, stored) = (data.number(BITS_ALLOCATED)?, data.number(BITS_STORED)?);
        if !(allocated == 8 || allocated == 16 && grey) {
            let what = format!("{allocated} bits: 8 are read, of grey pictures also 16");
            return Err(unsupported(BITS_ALLOCATED, what));
        }
        if stored == 0 || stored > allocated || !grey && stored != 8 {
            let what = format!("{stored} of {allocated} bits");
            return Err(Error::malformed(what).context(named(BITS_STORED)));
        }
        if data.has(HIGH_BIT) && data.number(HIGH_BIT)? != stored - 1 {
            let what = format!("{} for {stored} bits", data.number(HIGH_BIT)?);
            return Err(unsupported(HIGH_BIT, what));
        }
        let flag = |tag: Tag| match data.has(tag).then(|| data.number(tag)).transpose()? {
            None | Some(0) => Ok(false),
            Some(1) => Ok(true),
            Some(other) => Err(Error::malformed(format!("{other}: 0 or 1")).context(named(tag))),
        };
        Ok(Layout {
            width: size[0],
            height: size[1],
            photometric,
            allocated: allocated.into(),
            stored: stored.into(),
            signed: flag(SIGNED)?,
            planar: flag(PLANAR)?,
        })
    }

    /// Bytes of plain pixel data.
    fn bytes(&self) -> usize {
        let pixels = self.width * self.height;
        match self.photometric {
            Photometric::Grey { .. } => pixels * self.allocated as usize / 8,
            Photometric::Ybr { shared: true } => pixels * 2,
            Photometric::Rgb | Photometric::Ybr { shared: false } => pixels * 3,
        }
    }
}

/// The picture of a data set as 8-bit RGB.
///
/// # Errors
/// Naming the tag.
pub fn decode(data: &DataSet<'_>) -> Result<RgbImage> {
    let layout = Layout::read(data)?;
    let (width, height) = (layout.width, layout.height);
    let rgb = match data.coding {
        Coding::Jpeg => jpeg(data, &layout)?,
        Coding::Plain => {
            let expected = layout.bytes();
            let plain = data.pixels.get(..expected).ok_or_else(|| {
                let what = format!("{} bytes, {expected} needed", data.pixels.len());
                Error::malformed(what).context(named(PIXEL_DATA))
            })?;
            match layout.photometric {
                Photometric::Grey { .. } => grey(data, &layout, plain)?,
                Photometric::Rgb => interleaved(plain, layout.planar),
                Photometric::Ybr { shared: false } => {
                    let mut data = interleaved(plain, layout.planar);
                    data.as_chunks_mut::<3>()
                        .0
                        .iter_mut()
                        .for_each(|pixel| *pixel = from_ybr(*pixel));
                    data
                }
                Photometric::Ybr { shared: true } if layout.width % 2 == 0 => {
                    let pairs = plain.as_chunks::<4>().0.iter();
                    pairs
                        .flat_map(|&[a, b, cb, cr]| [from_ybr([a, cb, cr]), from_ybr([b, cb, cr])])
                        .flatten()
                        .collect()
                }
                Photometric::Ybr { shared: true } => {
                    let what = format!("{width}: YBR_FULL_422 needs an even number");
                    return Err(Error::malformed(what).context(named(COLUMNS)));
                }
            }
        }
    };
    Ok(RgbImage { width, height, data: rgb })
}

fn jpeg(data: &DataSet<'_>, layout: &Layout) -> Result<Vec<u8>> {
    let unmarked = match layout.photometric {
        Photometric::Rgb => slide::Photometric::Rgb,
        _ => slide::Photometric::YCbCr,
    };
    let decode = || {
        let (width, height) = slide::jpeg_picture_size(&data.pixels)?;
        if (width as usize, height as usize) != (layout.width, layout.height) {
            let what = format!("a JPEG of {width} x {height} in a picture of another size");
            return Err(Error::malformed(what));
        }
        slide::decode_jpeg_as(&data.pixels, unmarked)
    };
    let image = decode().context(|| named(PIXEL_DATA))?;
    if !matches!(layout.photometric, Photometric::Grey { .. }) {
        return Ok(image.data);
    }
    if layout.allocated != 8 {
        let what = format!("{} bits in a baseline JPEG", layout.allocated);
        return Err(Error::malformed(what).context(named(BITS_ALLOCATED)));
    }
    let samples: Vec<u8> = image.data.iter().step_by(3).copied().collect();
    grey(data, layout, &samples)
}

/// Channel beside channel.
fn interleaved(plain: &[u8], planar: bool) -> Vec<u8> {
    if !planar {
        return plain.to_vec();
    }
    let plane = plain.len() / 3;
    (0..plane).flat_map(|i| [plain[i], plain[plane + i], plain[2 * plane + i]]).collect()
}

/// PS3.3 C.7.6.3.1.2, the inverse of the definition of YBR_FULL, rounded.
fn from_ybr([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f64::from(y), f64::from(cb) - 128.0, f64::from(cr) - 128.0);
    let green = y - 0.114 * 1.772 / 0.587 * cb - 0.299 * 1.402 / 0.587 * cr;
    let channels = [y + 1.402 * cr, green, y + 1.772 * cb];
    channels.map(|v| (v + 0.5).floor().clamp(0.0, 255.0) as u8)
}

/// Stored values through rescale slope and intercept, the first window if there is one, else the
/// whole range that the stored bits can hold, to 0..255.
fn grey(data: &DataSet<'_>, layout: &Layout, plain: &[u8]) -> Result<Vec<u8>> {
    let window = Window::read(data)?;
    for tag in [MODALITY_LUT, VOI_LUT] {
        let instead = tag == VOI_LUT && window.is_some();
        if data.has(tag) && !instead {
            return Err(unsupported(tag, "a table of values, which is not read".into()));
        }
    }
    let inverted = layout.photometric == Photometric::Grey { inverted: true };
    let slope = data.decimal(SLOPE)?.unwrap_or(1.0);
    let intercept = data.decimal(INTERCEPT)?.unwrap_or(0.0);
    let rescaled = |stored: f64| stored * slope + intercept;
    let values = 1usize << layout.stored;
    let (least, most) = match layout.signed {
        true => (-((values / 2) as f64), (values / 2) as f64 - 1.0),
        false => (0.0, values as f64 - 1.0),
    };
    let ends = [rescaled(least), rescaled(most)];
    let (low, high) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
    let table: Vec<u8> = (0..values)
        .map(|bits| {
            let below = layout.signed && bits >= values / 2;
            let stored = bits as f64 - if below { values as f64 } else { 0.0 };
            let share = match &window {
                Some(window) => window.share(rescaled(stored)),
                None if high > low => (rescaled(stored) - low) / (high - low),
                None => 0.0,
            };
            let value = (share * 255.0 + 0.5).floor().clamp(0.0, 255.0) as u8;
            if inverted { 255 - value } else { value }
        })
        .collect();
    // Bits above those stored may hold anything.
    let look_up = |bits: usize| table[bits % values];
    let grey: Vec<u8> = match layout.allocated {
        8 => plain.iter().map(|&v| look_up(v.into())).collect(),
        _ => {
            let pairs = plain.as_chunks::<2>().0.iter();
            pairs.map(|&pair| look_up(u16::from_le_bytes(pair).into())).collect()
        }
    };
    Ok(grey.iter().flat_map(|&v| [v; 3]).collect())
}

/// A window of values that are told apart (PS3.3 C.11.2.1.2 and C.11.2.1.3).
struct Window {
    center: f64,
    width: f64,
    function: Function,
}

enum Function {
    Linear,
    LinearExact,
    Sigmoid,
}

impl Window {
    fn read(data: &DataSet<'_>) -> Result<Option<Window>> {
        let Some(center) = data.decimal(CENTER)? else { return Ok(None) };
        let width = data
            .decimal(WIDTH)?
            .ok_or_else(|| Error::malformed("is missing").context(named(WIDTH)))?;
        let function = match data.text(FUNCTION).as_str() {
            "" | "LINEAR" => Function::Linear,
            "LINEAR_EXACT" => Function::LinearExact,
            "SIGMOID" => Function::Sigmoid,
            other => return Err(unsupported(FUNCTION, other.into())),
        };
        let least = if matches!(function, Function::Linear) { 1.0 } else { f64::MIN_POSITIVE };
        if width < least {
            return Err(Error::malformed(format!("{width} is too narrow")).context(named(WIDTH)));
        }
        Ok(Some(Window { center, width, function }))
    }

    /// Where a value lies between black, 0, and white, 1.
    fn share(&self, value: f64) -> f64 {
        let (center, width) = match self.function {
            Function::Linear => (self.center - 0.5, self.width - 1.0),
            Function::LinearExact => (self.center, self.width),
            Function::Sigmoid => {
                return 1.0 / (1.0 + (-4.0 * (value - self.center) / self.width).exp());
            }
        };
        if value <= center - width / 2.0 {
            0.0
        } else if value > center + width / 2.0 {
            1.0
        } else {
            (value - center) / width + 0.5
        }
    }
}
