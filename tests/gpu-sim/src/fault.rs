//! What goes wrong while a kernel runs.

use std::fmt;

/// Lanes of a warp.
pub const LANES: usize = 32;

/// All lanes of a warp.
pub const FULL: u32 = u32::MAX;

/// A misuse found while an instruction ran. Boxed so that the success path stays one word.
#[derive(Debug)]
pub struct Fault(Box<Detail>);

#[derive(Debug)]
struct Detail {
    lane: Option<usize>,
    message: String,
}

/// Result of running something on a warp.
pub type Outcome<T = ()> = Result<T, Fault>;

impl Fault {
    /// A fault of one lane.
    pub fn lane(lane: usize, message: impl Into<String>) -> Fault {
        Fault(Box::new(Detail { lane: Some(lane), message: message.into() }))
    }

    /// A fault of the warp as a whole.
    pub fn warp(message: impl Into<String>) -> Fault {
        Fault(Box::new(Detail { lane: None, message: message.into() }))
    }

    /// The lane at fault, where there is one.
    pub fn lane_index(&self) -> Option<usize> {
        self.0.lane
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

/// The set lanes of a mask, lowest first.
pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        (left != 0).then(|| {
            let lane = left.trailing_zeros() as usize;
            left &= left - 1;
            lane
        })
    })
}
