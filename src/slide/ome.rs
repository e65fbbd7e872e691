//! OME-TIFF: metadata as XML in the first ImageDescription, pyramid levels in the SubIFDs of the
//! first directory (OME-TIFF specification 6.0).
//!
//! One picture of interleaved RGB or grey samples is read. Files that spread channels, focal
//! planes or time points over several directories are refused: showing one of them as the slide
//! would be a guess.

use super::format::{Format, Parts, Probe, pyramid, resolution, same_aspect, tiff_properties};
use super::raster::{Raster, is_tiled};
use super::tags;
use super::{Mpp, MppSource};
use crate::error::{Error, Result};

/// The row of [`super::format::FORMATS`].
pub const FORMAT: Format = Format { name: "ome-tiff", detect, open };

fn detect(probe: &Probe<'_>) -> bool {
    probe.is_tiled_tiff() && Elements::new(probe.description).any(|e| e.name == "OME")
}

fn open(probe: &Probe<'_>) -> Result<Parts> {
    let tiff = probe.tiff()?;
    let first = probe.first().ok_or_else(|| Error::malformed("no directory"))?;
    let base = Raster::parse(&first, false)?;
    let metadata = Metadata::parse(probe.description);
    metadata.check(base.layout.samples as u64)?;

    let mut rasters = vec![base];
    for directory in &first.directory.subs {
        let view = tiff.view(probe.source, directory);
        rasters.push(Raster::parse(&view, false)?);
    }
    for directory in tiff.directories.iter().skip(1) {
        let view = tiff.view(probe.source, directory);
        let reduced = view.integer(tags::NEW_SUBFILE_TYPE)?.unwrap_or(0) & 1 == 1;
        if reduced && is_tiled(&view) {
            let raster = Raster::parse(&view, false)?;
            if same_aspect(&rasters[0], &raster) {
                rasters.push(raster);
            }
        }
    }
    let mut parts = Parts { levels: pyramid(rasters)?, ..Parts::default() };
    parts.mpp.extend(metadata.mpp());
    parts.mpp.extend(resolution(&first)?);
    parts.objective_power = metadata.magnification;
    parts.properties = tiff_properties(&first)?;
    Ok(parts)
}

/// What is used of the OME-XML of the first image.
#[derive(Debug, Default)]
struct Metadata {
    /// SizeC, SizeZ, SizeT; 1 where absent.
    channels: u64,
    planes: u64,
    times: u64,
    physical: [Option<f64>; 2],
    magnification: Option<f64>,
}

impl Metadata {
    fn parse(xml: &str) -> Metadata {
        let mut metadata = Metadata { channels: 1, planes: 1, times: 1, ..Metadata::default() };
        let mut seen_pixels = false;
        for element in Elements::new(xml) {
            let real = |name: &str| element.attribute(name).and_then(|v| v.parse::<f64>().ok());
            let size = |name| element.attribute(name).and_then(|v| v.parse().ok()).unwrap_or(1);
            match element.name {
                "Pixels" if !seen_pixels => {
                    seen_pixels = true;
                    metadata.channels = size("SizeC");
                    metadata.planes = size("SizeZ");
                    metadata.times = size("SizeT");
                    for (k, axis) in ["PhysicalSizeX", "PhysicalSizeY"].into_iter().enumerate() {
                        let unit = element.attribute(&format!("{axis}Unit"));
                        let scale = micrometres(unit.as_deref().unwrap_or("µm"));
                        metadata.physical[k] = real(axis).zip(scale).map(|(v, scale)| v * scale);
                    }
                }
                "Objective" if metadata.magnification.is_none() => {
                    metadata.magnification = real("NominalMagnification");
                }
                _ => {}
            }
        }
        metadata
    }

    /// Refuses what is not one picture of `samples` interleaved samples.
    fn check(&self, samples: u64) -> Result<()> {
        if self.planes > 1 || self.times > 1 || self.channels > samples {
            return Err(Error::unsupported(format!(
                "SizeC {}, SizeZ {}, SizeT {} with {samples} samples a pixel; only one picture of \
                 interleaved samples is read",
                self.channels, self.planes, self.times
            )));
        }
        Ok(())
    }

    fn mpp(&self) -> Option<Mpp> {
        let [x, y] = self.physical;
        Some(Mpp { x: x?, y: y?, source: MppSource::OmeXml })
    }
}

/// Micrometres in one of OME's units of length; `None` for units that are no length.
fn micrometres(unit: &str) -> Option<f64> {
    Some(match unit {
        "µm" | "μm" | "um" => 1.0,
        "nm" => 1e-3,
        "pm" => 1e-6,
        "Å" | "\u{212b}" => 1e-4,
        "mm" => 1e3,
        "cm" => 1e4,
        "m" => 1e6,
        "in" => 25_400.0,
        _ => return None,
    })
}

/// The start tags of an XML text, in order, without namespace prefixes.
///
/// Enough XML for attributes: comments, CDATA sections, declarations and processing instructions
/// are skipped, quoted values may hold `>`.
struct Elements<'a> {
    rest: &'a str,
}

struct Element<'a> {
    name: &'a str,
    attributes: &'a str,
}

impl<'a> Elements<'a> {
    fn new(xml: &'a str) -> Self {
        Elements { rest: xml }
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        loop {
            let start = self.rest.find('<')?;
            let inside = &self.rest[start + 1..];
            let skipped =
                [("!--", "-->"), ("![CDATA[", "]]>"), ("?", "?>"), ("!", ">"), ("/", ">")];
            if let Some((open, close)) = skipped.iter().find(|(open, _)| inside.starts_with(open)) {
                let body = &inside[open.len()..];
                self.rest = &body[body.find(close)? + close.len()..];
                continue;
            }
            let end = end_of_tag(inside)?;
            self.rest = &inside[end + 1..];
            let tag = inside[..end].trim_end_matches('/');
            let name_end = tag.find(|c: char| c.is_whitespace()).unwrap_or(tag.len());
            let (name, attributes) = tag.split_at(name_end);
            let name = name.rsplit(':').next().unwrap_or(name);
            return Some(Element { name, attributes });
        }
    }
}

/// The place of the `>` that ends a tag, outside quotes.
fn end_of_tag(text: &str) -> Option<usize> {
    let mut quote = None;
    text.char_indices().find_map(|(at, c)| match (quote, c) {
        (None, '>') => Some(at),
        (None, '"' | '\'') => {
            quote = Some(c);
            None
        }
        (Some(open), _) if open == c => {
            quote = None;
            None
        }
        _ => None,
    })
}

impl Element<'_> {
    /// The value of an attribute, character references resolved.
    fn attribute(&self, name: &str) -> Option<String> {
        let mut rest = self.attributes;
        loop {
            let (key, tail) = rest.split_once('=')?;
            let tail = tail.trim_start();
            let quote = tail.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            let (value, tail) = tail[1..].split_once(quote)?;
            if key.trim() == name {
                return Some(resolve(value));
            }
            rest = tail;
        }
    }
}

/// Resolves numeric character references and the five named ones.
fn resolve(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let (entity, tail) = after.split_once(';').unwrap_or((after, ""));
        let number = entity.strip_prefix('#').map(|digits| match digits.strip_prefix('x') {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => digits.parse(),
        });
        let character = match (number, entity) {
            (Some(code), _) => code.ok().and_then(char::from_u32),
            (_, "amp") => Some('&'),
            (_, "lt") => Some('<'),
            (_, "gt") => Some('>'),
            (_, "quot") => Some('"'),
            (_, "apos") => Some('\''),
            _ => None,
        };
        out.push(character.unwrap_or('\u{fffd}'));
        rest = tail;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = r#"<?xml version="1.0"?><!-- <Pixels PhysicalSizeX="9"/> -->
        <ome:OME xmlns:ome="http://www.openmicroscopy.org/Schemas/OME/2016-06" Creator="a > b">
        <ome:Instrument><ome:Objective NominalMagnification="40.0"/></ome:Instrument>
        <ome:Image ID="Image:0"><ome:Pixels PhysicalSizeX = '250' PhysicalSizeXUnit="nm"
          PhysicalSizeY="0.25" PhysicalSizeYUnit="&#181;m" SizeC="3" SizeZ="1"></ome:Pixels></ome:Image>
        <ome:Image ID="Image:1"><ome:Pixels PhysicalSizeX="7" SizeC="1"/></ome:Image></ome:OME>"#;

    #[test]
    fn the_first_image_is_read_with_units_prefixes_and_comments() {
        let metadata = Metadata::parse(XML);
        let mpp = metadata.mpp().unwrap();
        assert_eq!((mpp.x, mpp.y), (0.25, 0.25));
        assert_eq!(metadata.magnification, Some(40.0));
        metadata.check(3).unwrap();
        assert!(metadata.check(1).is_err());
        assert_eq!(Elements::new(XML).next().unwrap().name, "OME");
    }

    #[test]
    fn units_that_are_no_length_give_no_pixel_size() {
        let xml = r#"<OME><Pixels PhysicalSizeX="1" PhysicalSizeXUnit="pixel" PhysicalSizeY="1"/>"#;
        assert!(Metadata::parse(xml).mpp().is_none());
    }

    #[test]
    fn broken_xml_ends_without_a_panic() {
        for cut in 0..XML.len() {
            if let Some(part) = XML.get(..cut) {
                let metadata = Metadata::parse(part);
                let _ = (metadata.check(3), metadata.mpp());
            }
        }
        assert_eq!(resolve("a&#x41;&amp;&bogus;&#99999999999;&"), "aA&\u{fffd}\u{fffd}\u{fffd}");
    }
}
