//! Aperio SVS: CS, AT2, GT 450 and Segue.
//!
//! A tiled directory is a level; a stripped one is the label (subfile type 1), the macro (9) or,
//! with neither type and second in the file, the thumbnail. Newer scanners leave out the
//! descriptions of label and macro, and de-identified files leave out the images, so neither text
//! nor position tells a label from a thumbnail.

use super::format::{
    Associated, Format, Parts, Probe, number, pyramid, resolution, tiff_properties, tiled_rasters,
};
use super::raster::is_tiled;
use super::tags;
use super::{Mpp, MppSource};
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// The row of [`super::format::FORMATS`].
pub const FORMAT: Format = Format { name: "aperio-svs", detect, open };

fn detect(probe: &Probe<'_>) -> bool {
    probe.is_tiled_tiff() && probe.description.starts_with("Aperio")
}

fn open(probe: &Probe<'_>) -> Result<Parts> {
    let tiff = probe.tiff()?;
    let first = probe.first().ok_or_else(|| Error::malformed("no directory"))?;
    let rasters = tiled_rasters(probe, true)?;
    let width = rasters.first().map_or(0, |base| base.width);
    if let Some(larger) = rasters.iter().find(|r| r.width > width) {
        let message = "larger than the first directory, which carries the metadata of level 0";
        return Err(Error::malformed(message).context(larger.name.clone()));
    }
    let mut parts = Parts { levels: pyramid(rasters)?, ..Parts::default() };
    for (position, directory) in tiff.directories.iter().enumerate() {
        let view = tiff.view(probe.source, directory);
        let subfile = view.integer(tags::NEW_SUBFILE_TYPE)?.unwrap_or(0);
        let name = match (subfile, position) {
            _ if is_tiled(&view) => continue,
            (1, _) => "label",
            (9, _) => "macro",
            (_, 1) => "thumbnail",
            _ => continue,
        };
        if parts.associated.iter().all(|other| other.name != name) {
            parts.associated.push(Associated { name, directory: directory.clone() });
        }
    }
    parts.properties = tiff_properties(&first)?;
    let keys = properties(probe.description);
    let value = |key: &str| keys.get(key).and_then(|text| number(text));
    if let Some(mpp) = value("MPP") {
        parts.mpp.push(Mpp { x: mpp, y: mpp, source: MppSource::ImageDescription });
    }
    parts.mpp.extend(resolution(&first)?);
    parts.objective_power = value("AppMag");
    parts.properties.extend(keys.into_iter().map(|(k, v)| (format!("aperio.{k}"), v)));
    Ok(parts)
}

/// The `Key = Value` pairs of an ImageDescription.
///
/// Pairs are separated by `|` behind one or more header lines; a saved region carries the header
/// of the region and, behind a `;`, the description of the slide it was cut from. The last of
/// equal keys wins; items without `=` are passed over.
pub fn properties(description: &str) -> BTreeMap<String, String> {
    let pairs = description.split('|').skip(1).filter_map(|item| item.split_once('='));
    let trimmed = pairs.map(|(key, value)| (key.trim().to_string(), value.trim().to_string()));
    trimmed.filter(|(key, _)| !key.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_of_several_scanners() {
        let region = "Aperio Image Library v11.2.1 \r\n46000x32914 [42673,5576 2220x2967] (240x240) \
            JPEG/RGB Q=30;Aperio Image Library v10.0.51\r\n46920x33014 [0,100 46000x32914] (256x256) \
            JPEG/RGB Q=30|AppMag = 20|StripeWidth = 2040|MPP = 0.4990|OriginalWidth = 46920|\
            OriginalWidth = 46000|Originalheight = 33014|Filtered = 5|Empty =|Flag|Title = a = b";
        let keys = properties(region);
        assert_eq!(keys["AppMag"], "20");
        assert_eq!(keys["OriginalWidth"], "46000");
        assert_eq!(keys["Originalheight"], "33014");
        assert_eq!(keys["Empty"], "");
        assert_eq!(keys["Title"], "a = b");
        assert!(!keys.contains_key("Flag"));
        let gt450 = "Aperio Leica Biosystems GT450 v1.0.1 \n152433x98960 [0,0,152433x98960] \
            (256x256) JPEG/YCC Q=91|AppMag = 40|MPP = 0,263592|Date = 11/25/2019";
        assert_eq!(number(&properties(gt450)["MPP"]), Some(0.263592));
        assert!(properties("Aperio").is_empty());
    }

    #[test]
    fn numbers_that_are_none() {
        for text in ["NaN", "inf", "-inf", "abc", "", "0.4990um", "0x1p-1", "1,2,3"] {
            assert_eq!(number(text), None, "{text}");
        }
    }
}
