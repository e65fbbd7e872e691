//! Entropy-coded data: found, freed of stuffed bytes and cut at restart markers.

use super::segments::Segments;
use crate::error::{Error, Result};
use std::ops::Range;

/// Bytes of 1-bits behind every part. No Huffman code consists of 1-bits alone (T.81, C.2), so a
/// decoder that runs into them stops at once; it may have read 8 bytes ahead.
pub const GUARD: [u8; 32] = [0xff; 32];

/// Entropy-coded data without stuffing, each part followed by [`GUARD`].
#[derive(Debug, Default)]
pub struct Coded {
    pub bytes: Vec<u8>,
    /// The data between restart markers, without guards.
    pub parts: Vec<Range<usize>>,
}

/// Collects the data up to the next marker that is no restart; returns the number of restarts.
pub fn collect(segments: &mut Segments<'_>, coded: &mut Coded) -> Result<u64> {
    coded.bytes.clear();
    coded.parts.clear();
    let mut rest = segments.bytes.get(segments.position..).unwrap_or_default();
    coded.bytes.reserve(rest.len() + GUARD.len());
    let (mut start, mut restarts) = (0, 0u64);
    loop {
        let run = find_ff(rest);
        coded.bytes.extend_from_slice(&rest[..run]);
        rest = &rest[run..];
        let marker = rest.iter().position(|&byte| byte != 0xff);
        if let Some(0) = marker.map(|at| rest[at]) {
            coded.bytes.push(0xff);
            rest = &rest[marker.unwrap_or(0) + 1..];
            continue;
        }
        coded.parts.push(start..coded.bytes.len());
        coded.bytes.extend_from_slice(&GUARD);
        start = coded.bytes.len();
        // Bytes 0xFF at the very end are half a marker or half a stuffed byte.
        let Some(at) = marker else { break };
        let code = rest[at];
        if !(0xd0..=0xd7).contains(&code) {
            break;
        }
        if u64::from(code & 7) != restarts % 8 {
            return Err(Error::malformed("JPEG restart markers out of order"));
        }
        restarts += 1;
        rest = &rest[at + 1..];
    }
    segments.position = segments.bytes.len() - rest.len();
    Ok(restarts)
}

/// The place of the first 0xFF, or the length.
fn find_ff(bytes: &[u8]) -> usize {
    const N: usize = 32;
    let none = |chunk: &&[u8; N]| !chunk.iter().fold(false, |any, &byte| any | (byte == 0xff));
    let (chunks, _) = bytes.as_chunks::<N>();
    let skip = chunks.iter().take_while(none).count() * N;
    let tail = &bytes[skip..];
    skip + tail.iter().position(|&byte| byte == 0xff).unwrap_or(tail.len())
}

/// Restart markers must be exactly as many as the interval asks for.
pub fn check_restarts(restarts: u64, interval: u16, units: u64) -> Result<()> {
    let expected = match interval {
        0 => 0,
        n => units.div_ceil(u64::from(n)).saturating_sub(1),
    };
    // One more than needed, before the end of the image, is harmless and does occur.
    if restarts != expected && !(interval > 0 && restarts == expected + 1) {
        let message = format!("{restarts} JPEG restart markers, expected {expected}");
        return Err(Error::malformed(message));
    }
    Ok(())
}
