//! The elements of a DICOM file (PS3.10, PS3.5): what a single-frame picture needs and no more.
//!
//! The file meta group is explicit little endian, the data set explicit or implicit little endian,
//! its pixel data plain or one encapsulated JPEG. Sequences are walked over. All lengths are
//! checked against the bytes there are; nothing is copied but the fragments of a JPEG.

use crate::error::{Context, Error, Result};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Bytes that tell a DICOM file.
pub const HEAD: usize = 132;

/// Length of what ends with a delimiter.
const UNDEFINED: u32 = u32::MAX;
/// Sequences within sequences that are walked.
const MAX_DEPTH: usize = 32;

/// Group and element.
pub type Tag = (u16, u16);

const TRANSFER_SYNTAX: Tag = (0x0002, 0x0010);
const PIXEL_DATA: Tag = (0x7fe0, 0x0010);
const ITEM: Tag = (0xfffe, 0xe000);
const ITEM_END: Tag = (0xfffe, 0xe00d);
const SEQUENCE_END: Tag = (0xfffe, 0xe0dd);

/// Names of the tags that messages mention.
const NAMES: &[(Tag, &str)] = &[
    (TRANSFER_SYNTAX, "TransferSyntaxUID"),
    ((0x0028, 0x0002), "SamplesPerPixel"),
    ((0x0028, 0x0004), "PhotometricInterpretation"),
    ((0x0028, 0x0006), "PlanarConfiguration"),
    ((0x0028, 0x0008), "NumberOfFrames"),
    ((0x0028, 0x0010), "Rows"),
    ((0x0028, 0x0011), "Columns"),
    ((0x0028, 0x0100), "BitsAllocated"),
    ((0x0028, 0x0101), "BitsStored"),
    ((0x0028, 0x0102), "HighBit"),
    ((0x0028, 0x0103), "PixelRepresentation"),
    ((0x0028, 0x1050), "WindowCenter"),
    ((0x0028, 0x1051), "WindowWidth"),
    ((0x0028, 0x1052), "RescaleIntercept"),
    ((0x0028, 0x1053), "RescaleSlope"),
    ((0x0028, 0x1056), "VOILUTFunction"),
    ((0x0028, 0x3000), "ModalityLUTSequence"),
    ((0x0028, 0x3010), "VOILUTSequence"),
    (PIXEL_DATA, "PixelData"),
];

/// `tag (0028,0010) Rows`.
pub fn named(tag: Tag) -> String {
    let name = NAMES.iter().find(|(t, _)| *t == tag).map_or("", |(_, name)| name);
    format!("tag ({:04x},{:04x}) {name}", tag.0, tag.1).trim_end().to_string()
}

/// How pixel data are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Samples as they are.
    Plain,
    /// One baseline JPEG.
    Jpeg,
}

/// The data set of a file.
#[derive(Debug)]
pub struct DataSet<'a> {
    elements: BTreeMap<Tag, &'a [u8]>,
    /// How `pixels` are stored.
    pub coding: Coding,
    /// The value of PixelData: samples, or the JPEG stream.
    pub pixels: Cow<'a, [u8]>,
}

/// Whether the first [`HEAD`] bytes are those of a DICOM file.
pub fn detect(head: &[u8]) -> bool {
    head.get(128..HEAD) == Some(b"DICM")
}

/// Reads the elements up to and with the pixel data.
///
/// # Errors
/// Naming the tag: [`crate::Kind::Malformed`] where the bytes contradict themselves,
/// [`crate::Kind::Unsupported`] for a transfer syntax that is not read.
pub fn parse(bytes: &[u8]) -> Result<DataSet<'_>> {
    if !detect(bytes) {
        return Err(Error::malformed("not a DICOM file: no DICM behind the preamble"));
    }
    let mut reader = Reader { bytes, at: HEAD, explicit: true };
    let mut elements = BTreeMap::new();
    while reader.peek_group() == Some(0x0002) {
        let Header { tag, length, .. } = reader.header()?;
        elements.insert(tag, reader.take(length).context(|| named(tag))?);
    }
    let syntax = text(elements.get(&TRANSFER_SYNTAX).copied().unwrap_or_default());
    let (explicit, coding) = match syntax.as_str() {
        "1.2.840.10008.1.2" => (false, Coding::Plain),
        "1.2.840.10008.1.2.1" => (true, Coding::Plain),
        "1.2.840.10008.1.2.4.50" => (true, Coding::Jpeg),
        "" => return Err(Error::malformed("is missing").context(named(TRANSFER_SYNTAX))),
        other => {
            return Err(Error::unsupported(format!(
                "{other}: plain little endian (1.2.840.10008.1.2 and .1.2.1) and JPEG baseline \
                 (.1.2.4.50) are read; dcmtk's dcmdjpeg or gdcmconv --raw makes it plain"
            ))
            .context(named(TRANSFER_SYNTAX)));
        }
    };
    reader.explicit = explicit;
    loop {
        if reader.at >= bytes.len() {
            return Err(Error::malformed("is missing").context(named(PIXEL_DATA)));
        }
        let header = reader.header()?;
        let tag = header.tag;
        if tag == PIXEL_DATA {
            let pixels = reader.pixels(coding, header.length).context(|| named(tag))?;
            return Ok(DataSet { elements, coding, pixels });
        }
        elements.insert(tag, reader.value(header, 0).context(|| named(tag))?);
    }
}

/// What stands before a value.
struct Header {
    tag: Tag,
    length: u32,
    /// Of a type the writer did not know: a sequence in it is implicit (PS3.5 6.2.2).
    unknown: bool,
}

/// A place among bytes.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Whether elements say what they hold.
    explicit: bool,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: u32) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let value = rest.get(..length as usize).ok_or_else(|| {
            Error::malformed(format!("{length} bytes at {}, {} are left", self.at, rest.len()))
        })?;
        self.at += value.len();
        Ok(value)
    }

    fn u16(&mut self) -> Result<u16> {
        let b = self.take(2)?;
        Ok(u16::from_le_bytes([b[0], b[1]]))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from(self.u16()?) | u32::from(self.u16()?) << 16)
    }

    fn peek_group(&self) -> Option<u16> {
        let b = self.bytes.get(self.at..self.at.checked_add(2)?)?;
        Some(u16::from_le_bytes([b[0], b[1]]))
    }

    /// Tag and length of the next element.
    fn header(&mut self) -> Result<Header> {
        let tag = (self.u16()?, self.u16()?);
        // Items and delimiters have no type in either form.
        if !self.explicit || tag.0 == 0xfffe {
            let length = self.u32().context(|| named(tag))?;
            return Ok(Header { tag, length, unknown: false });
        }
        let kind = self.take(2).context(|| named(tag))?;
        if !kind.iter().all(u8::is_ascii_uppercase) {
            let what = format!("{kind:02x?} is no type of a value");
            return Err(Error::malformed(what).context(named(tag)));
        }
        const LONG: [&[u8]; 13] = [
            b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT",
            b"UV",
        ];
        let length = if LONG.contains(&kind) {
            self.u16().and_then(|_| self.u32())
        } else {
            self.u16().map(u32::from)
        };
        Ok(Header { tag, length: length.context(|| named(tag))?, unknown: kind == b"UN" })
    }

    /// The bytes of a value; none of a sequence, which is walked over when nothing else says where
    /// it ends.
    fn value(&mut self, header: Header, depth: usize) -> Result<&'a [u8]> {
        if header.length != UNDEFINED {
            return self.take(header.length);
        }
        let explicit = self.explicit;
        self.explicit = explicit && !header.unknown;
        self.skip_sequence(depth)?;
        self.explicit = explicit;
        Ok(&[])
    }

    /// Walks over a sequence of undefined length, to behind its delimiter.
    fn skip_sequence(&mut self, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::limit(format!("more than {MAX_DEPTH} sequences in each other")));
        }
        loop {
            match self.header()? {
                Header { tag: SEQUENCE_END, .. } => return Ok(()),
                Header { tag: ITEM, length: UNDEFINED, .. } => self.skip_item(depth)?,
                Header { tag: ITEM, length, .. } => drop(self.take(length)?),
                Header { tag, .. } => {
                    return Err(Error::malformed("within a sequence").context(named(tag)));
                }
            }
        }
    }

    fn skip_item(&mut self, depth: usize) -> Result<()> {
        loop {
            let header = self.header()?;
            if header.tag == ITEM_END {
                return Ok(());
            }
            self.value(header, depth + 1)?;
        }
    }

    /// The samples, or the JPEG put together from its fragments, the first of which is a table of
    /// offsets (PS3.5 A.4).
    fn pixels(&mut self, coding: Coding, length: u32) -> Result<Cow<'a, [u8]>> {
        match (coding, length) {
            (Coding::Plain, UNDEFINED) => {
                return Err(Error::malformed("encapsulated, though the transfer syntax is plain"));
            }
            (Coding::Plain, length) => return self.take(length).map(Cow::Borrowed),
            (Coding::Jpeg, UNDEFINED) => {}
            (Coding::Jpeg, _) => {
                let what = "of stated length, though the transfer syntax is JPEG";
                return Err(Error::malformed(what));
            }
        }
        let mut fragments = Vec::new();
        loop {
            match self.header()? {
                Header { tag: SEQUENCE_END, .. } => break,
                Header { tag: ITEM, length, .. } if length != UNDEFINED => {
                    fragments.push(self.take(length)?);
                }
                Header { tag, .. } => {
                    return Err(Error::malformed("among fragments").context(named(tag)));
                }
            }
        }
        Ok(match fragments.get(1..).unwrap_or_default() {
            [one] => Cow::Borrowed(*one),
            many => Cow::Owned(many.concat()),
        })
    }
}

/// A value as text, without the padding.
fn text(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_string()
}

impl DataSet<'_> {
    /// Whether the element is there.
    pub fn has(&self, tag: Tag) -> bool {
        self.elements.contains_key(&tag)
    }

    /// A text; empty when the element is missing.
    pub fn text(&self, tag: Tag) -> String {
        text(self.elements.get(&tag).copied().unwrap_or_default())
    }

    /// A 16-bit number.
    ///
    /// # Errors
    /// [`crate::Kind::Malformed`] naming the tag when it is missing or of another length.
    pub fn number(&self, tag: Tag) -> Result<u16> {
        let value = self.elements.get(&tag);
        let value = value.ok_or_else(|| Error::malformed("is missing").context(named(tag)))?;
        match **value {
            [low, high, ..] => Ok(u16::from_le_bytes([low, high])),
            _ => Err(Error::malformed("is no 16-bit number").context(named(tag))),
        }
    }

    /// The first of the decimal numbers of an element; none when it is missing or empty.
    ///
    /// # Errors
    /// [`crate::Kind::Malformed`] naming the tag when it is not a finite number.
    pub fn decimal(&self, tag: Tag) -> Result<Option<f64>> {
        let text = self.text(tag);
        let first = text.split('\\').next().unwrap_or_default().trim();
        if first.is_empty() {
            return Ok(None);
        }
        match first.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(Some(value)),
            _ => Err(Error::malformed(format!("{first:?} is no number")).context(named(tag))),
        }
    }
}
