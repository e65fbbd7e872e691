//! Slides in, results out: the only place where pixels meet graphs.
//!
//! [`queue::run`] is the whole path. A producer thread opens one slide after another, decides its
//! tiles ([`prepare`]) and lets decode workers fill the rows of batch slots ([`decode`]); the
//! calling thread encodes full slots on the [`Engine`], which keeps the [`Features`] of the slide on
//! its device where it can, and hands the finished bag to the caller. The ring of slots gives back-pressure, and the next
//! slide is decoded while the last batches of this one are computed.

pub mod bag_list;
pub mod bags;
pub mod decode;
pub mod engine;
pub mod ensemble;
pub mod explain;
pub mod features;
pub mod gate;
pub mod gradcam;
pub mod head;
pub mod image_outputs;
pub mod images;
pub mod mask;
pub mod nuclei;
pub mod outputs;
pub mod overview;
pub mod predict;
pub mod prepare;
pub mod queue;
pub mod stain;
pub mod summary;
pub mod way;

pub use engine::{Engine, Parts};
pub use features::Features;
pub use head::BagPrediction;
pub use prepare::Prepared;
pub use queue::{Finished, Seconds, Sink, run};

use crate::slide::OpenOptions;
use std::path::PathBuf;

/// One slide to run.
#[derive(Clone, Debug)]
pub struct Job {
    /// Name in results: the file name without folder and extension.
    pub name: String,
    /// The slide.
    pub path: PathBuf,
    /// Annotated polygons, for recipes that use them.
    pub regions: Option<PathBuf>,
    /// Where tiles must lie besides.
    pub mask: Option<mask::Mask>,
}

/// How slides are run; none of this changes a result but `open.mpp_override` and `stride_px`.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How slides are opened.
    pub open: OpenOptions,
    /// Threads that decode tiles.
    pub decode_threads: usize,
    /// Step between tiles in place of the recipe's, for maps finer than a prediction needs.
    pub stride_px: Option<u32>,
}

/// Told what is going on.
pub trait Observer: Sync {
    /// Something happened.
    fn event(&self, event: Event<'_>);
}

/// Nobody is told.
impl Observer for () {
    fn event(&self, _: Event<'_>) {}
}

/// What an [`Observer`] is told.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The tiles of a slide are known.
    SlideStarted {
        /// Name of the slide.
        name: &'a str,
        /// Grid positions that will be read.
        tiles: usize,
        /// The most host memory that its tiles, features and heads take, besides what is in use.
        bytes: usize,
    },
    /// Tiles of the current slide were encoded.
    Tiles {
        /// Grid positions done so far.
        done: usize,
        /// Over the slide so far.
        tiles_per_second: f64,
        /// Share of the time the encoder waited for tiles.
        decode_share: f64,
    },
    /// The heads of the current slide were asked.
    Heads {
        /// Heads done so far, over all bags and packages.
        done: usize,
        /// All of them.
        total: usize,
    },
    /// A slide is finished, well or badly.
    SlideDone,
    /// Something a person should know.
    Remark(&'a str),
}
