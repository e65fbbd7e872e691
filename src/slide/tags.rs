//! TIFF tag numbers, their names for messages, and the sizes of the field types.
//!
//! Numbers are those of TIFF 6.0, its technical notes, and the registered private tags.

macro_rules! tags {
    ($($constant:ident = $number:literal, $name:literal;)*) => {
        $(#[doc = concat!("Tag ", stringify!($number), ", ", $name, ".")]
        pub const $constant: u16 = $number;)*

        /// The name of a tag, or an empty text for a tag that is not used here.
        pub fn name(tag: u16) -> &'static str {
            match tag {
                $($number => $name,)*
                _ => "",
            }
        }
    };
}

tags! {
    NEW_SUBFILE_TYPE = 254, "NewSubfileType";
    IMAGE_WIDTH = 256, "ImageWidth";
    IMAGE_LENGTH = 257, "ImageLength";
    BITS_PER_SAMPLE = 258, "BitsPerSample";
    COMPRESSION = 259, "Compression";
    PHOTOMETRIC = 262, "PhotometricInterpretation";
    FILL_ORDER = 266, "FillOrder";
    DOCUMENT_NAME = 269, "DocumentName";
    IMAGE_DESCRIPTION = 270, "ImageDescription";
    MAKE = 271, "Make";
    MODEL = 272, "Model";
    STRIP_OFFSETS = 273, "StripOffsets";
    SAMPLES_PER_PIXEL = 277, "SamplesPerPixel";
    ROWS_PER_STRIP = 278, "RowsPerStrip";
    STRIP_BYTE_COUNTS = 279, "StripByteCounts";
    X_RESOLUTION = 282, "XResolution";
    Y_RESOLUTION = 283, "YResolution";
    PLANAR_CONFIGURATION = 284, "PlanarConfiguration";
    RESOLUTION_UNIT = 296, "ResolutionUnit";
    SOFTWARE = 305, "Software";
    DATE_TIME = 306, "DateTime";
    ARTIST = 315, "Artist";
    HOST_COMPUTER = 316, "HostComputer";
    PREDICTOR = 317, "Predictor";
    TILE_WIDTH = 322, "TileWidth";
    TILE_LENGTH = 323, "TileLength";
    TILE_OFFSETS = 324, "TileOffsets";
    TILE_BYTE_COUNTS = 325, "TileByteCounts";
    SUB_IFDS = 330, "SubIFDs";
    SAMPLE_FORMAT = 339, "SampleFormat";
    JPEG_TABLES = 347, "JPEGTables";
    IMAGE_DEPTH = 32997, "ImageDepth";
    COPYRIGHT = 33432, "Copyright";
    ICC_PROFILE = 34675, "ICCProfile";
}

/// Field types.
pub mod field {
    /// Unsigned 8-bit.
    pub const BYTE: u16 = 1;
    /// 7-bit text ending in NUL.
    pub const ASCII: u16 = 2;
    /// Unsigned 16-bit.
    pub const SHORT: u16 = 3;
    /// Unsigned 32-bit.
    pub const LONG: u16 = 4;
    /// Two LONG: numerator, denominator.
    pub const RATIONAL: u16 = 5;
    /// Bytes of any meaning.
    pub const UNDEFINED: u16 = 7;
    /// 32-bit float.
    pub const FLOAT: u16 = 11;
    /// 64-bit float.
    pub const DOUBLE: u16 = 12;
    /// 32-bit offset of a directory.
    pub const IFD: u16 = 13;
    /// BigTIFF: unsigned 64-bit.
    pub const LONG8: u16 = 16;
    /// BigTIFF: 64-bit offset of a directory.
    pub const IFD8: u16 = 18;

    /// Bytes of one value, or `None` for an unknown type.
    pub fn size(kind: u16) -> Option<u64> {
        match kind {
            1 | 2 | 6 | 7 => Some(1),
            3 | 8 => Some(2),
            4 | 9 | 11 | 13 => Some(4),
            5 | 10 | 12 | 16 | 17 | 18 => Some(8),
            _ => None,
        }
    }
}
