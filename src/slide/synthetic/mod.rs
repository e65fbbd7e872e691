//! Valid slides made from nothing: a TIFF pyramid writer and an H&E-like tissue generator.
//!
//! Nothing here reads a slide. Tests describe the file they need as a [`TiffFile`] or take one of
//! the layouts in [`layout`]; the demonstration draws a [`Specimen`] and knows the truth about it.

pub mod layout;

mod encode;
mod glass;
mod noise;
mod paint;
mod specimen;
mod tags;
mod terrain;
mod tiff;

pub use encode::{Compression, Jpeg, Samples, Sampling, luma};
pub use glass::{label, overview};
pub use specimen::{Counts, Nucleus, NucleusClass, Part, Specimen, SpecimenSpec, Truth};
pub use tags::Endian;
pub use tiff::{Chunks, Directory, Picture, Pixels, Resolution, TiffFile};
