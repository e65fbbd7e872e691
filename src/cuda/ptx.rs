//! PTX for drivers older than the compiler that wrote it.
//!
//! A driver translates PTX only up to the ISA version of its own release, and a compiler states its
//! own version whatever the text uses. The kernels here use nothing newer than the oldest driver
//! this program runs on, so that their text may state the oldest version that knows its target.
//! Versions: PTX ISA manual, release notes and `.target`.

use crate::error::{Error, Result};

/// ISA version of CUDA 12.0, the oldest driver this program runs on.
const OLDEST: (u32, u32) = (8, 0);

/// Newer than [`OLDEST`], and a hint to debuggers only.
const HINTS: &str = ".pragma \"used_bytes_mask";

/// The text with the lowest `.version` that its target allows, never higher than it was.
///
/// # Errors
/// [`crate::Kind::Malformed`] when the text has no `.version` or `.target` line.
pub fn lowered(ptx: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(ptx).map_err(|_| Error::malformed("PTX that is not UTF-8"))?;
    let stated = version(text).ok_or_else(|| Error::malformed("PTX without a .version"))?;
    let target =
        directive(text, ".target").ok_or_else(|| Error::malformed("PTX without a .target"))?;
    let (major, minor) = needed(target).unwrap_or(stated).min(stated);
    let mut out = String::with_capacity(text.len());
    for line in text.lines().filter(|line| !line.trim_start().starts_with(HINTS)) {
        if line.starts_with(".version") {
            out += &format!(".version {major}.{minor}");
        } else {
            out += line;
        }
        out.push('\n');
    }
    Ok(out)
}

/// ISA version a text states, such as `(8, 8)`.
pub fn version(ptx: &str) -> Option<(u32, u32)> {
    let (major, minor) = directive(ptx, ".version")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// First word after a directive at the start of a line.
fn directive<'a>(ptx: &'a str, name: &str) -> Option<&'a str> {
    let rest = ptx.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split([' ', '\t', ',']).find(|word| !word.is_empty())
}

/// First ISA version that knows a target and [`OLDEST`]; `None` for one it has no row for.
fn needed(target: &str) -> Option<(u32, u32)> {
    let digits = target.strip_prefix("sm_")?.trim_end_matches(|c: char| c.is_ascii_lowercase());
    Some(match digits.parse::<u32>().ok()? {
        0..=90 => OLDEST,
        100 | 101 => (8, 6),
        120 => (8, 7),
        103 | 121 => (8, 8),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(version: &str, target: &str) -> String {
        format!(
            "// made\n.version {version}\n.target {target}, debug\n.address_size 64\n\
             .entry f()\n{{\n\t.pragma \"used_bytes_mask 15\";\n\tret;\n}}\n"
        )
    }

    #[test]
    fn the_version_falls_to_what_the_target_needs() {
        for (stated, target, want) in [
            ("8.8", "sm_75", (8, 0)),
            ("9.5", "sm_90a", (8, 0)),
            ("9.5", "sm_100", (8, 6)),
            ("9.5", "sm_120", (8, 7)),
            ("9.5", "sm_150", (9, 5)),
            ("7.4", "sm_80", (7, 4)),
        ] {
            let text = lowered(sample(stated, target).as_bytes()).unwrap();
            assert_eq!(version(&text), Some(want), "{stated} {target}");
            assert!(!text.contains("used_bytes_mask") && text.contains("\tret;\n}\n"));
        }
    }

    #[test]
    fn a_text_without_its_head_is_refused() {
        for text in ["", ".version 8.8\n", ".target sm_80\n", ".version x\n.target sm_80\n"] {
            assert!(lowered(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(lowered(&[0xff]).is_err());
    }
}
