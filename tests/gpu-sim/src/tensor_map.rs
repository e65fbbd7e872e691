//! Tensor maps: what `cuTensorMapEncodeTiled` and `cuTensorMapEncodeIm2col` pack into 128 bytes and
//! the bulk copy instructions read back. The real layout is not published; this one is our own.

/// Bytes of a tensor map.
pub const BYTES: usize = 128;

const MAGIC: u32 = 0x6d61_7047;

/// Most dimensions.
pub const MAX_RANK: usize = 5;

/// How 16-byte units are permuted in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    None,
    /// Within 32-byte rows.
    B32,
    /// Within 64-byte rows.
    B64,
    /// Within 128-byte rows.
    B128,
}

impl Swizzle {
    /// From the driver's enumeration.
    pub fn from_driver(value: u32) -> Option<Swizzle> {
        [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128].get(value as usize).copied()
    }

    /// From the layout field of a `wgmma` descriptor.
    pub fn from_descriptor(value: u64) -> Swizzle {
        [Swizzle::None, Swizzle::B128, Swizzle::B64, Swizzle::B32][(value & 3) as usize]
    }

    /// Bytes of a swizzled row.
    pub fn row(self) -> u32 {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }

    /// Where the byte at shared address `address` lies after the permutation: address bits 4.. are
    /// exclusive-or'ed with bits 7.. .
    pub fn apply(self, address: u32) -> u32 {
        let mask = self.row() / 16 - 1;
        address ^ (address >> 7 & mask) << 4
    }
}

/// A tensor map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Device address.
    pub base: u64,
    /// Dimensions in use.
    pub rank: usize,
    /// Elements along each dimension, innermost first.
    pub dims: [u32; MAX_RANK],
    /// Bytes between elements of dimension 1, 2, ..
    pub strides: [u64; MAX_RANK - 1],
    /// Elements along each dimension of a box (tiled mode).
    pub box_dims: [u16; MAX_RANK],
    /// Steps between the elements that are taken.
    pub element_strides: [u8; MAX_RANK],
    /// Bytes of an element.
    pub element: u8,
    /// Permutation in shared memory.
    pub swizzle: Swizzle,
    /// Out-of-bounds elements read as NaN instead of zero.
    pub nan_fill: bool,
    /// Convolution mode.
    pub im2col: Option<Im2col>,
}

/// Parameters of the convolution mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Im2col {
    /// First position of the bounding box, for dimensions 1 .. rank - 2.
    pub lower: [i16; 3],
    /// Last position relative to the last element, for dimensions 1 .. rank - 2.
    pub upper: [i16; 3],
    /// Channels that are loaded.
    pub channels: u16,
    /// Pixels that are loaded.
    pub pixels: u16,
}

impl TensorMap {
    /// Packs the map.
    pub fn to_bytes(&self) -> [u8; BYTES] {
        let mut w = Writer { bytes: [0; BYTES], at: 0 };
        w.put(&MAGIC.to_le_bytes());
        let flags = u8::from(self.nan_fill) | u8::from(self.im2col.is_some()) << 1;
        let swizzle = self.swizzle.row().trailing_zeros() as u8;
        w.put(&[self.rank as u8, self.element, swizzle, flags]);
        w.put(&self.base.to_le_bytes());
        self.dims.iter().for_each(|d| w.put(&d.to_le_bytes()));
        self.strides.iter().for_each(|s| w.put(&s.to_le_bytes()));
        self.box_dims.iter().for_each(|b| w.put(&b.to_le_bytes()));
        w.put(&self.element_strides);
        if let Some(conv) = self.im2col {
            conv.lower.iter().chain(&conv.upper).for_each(|c| w.put(&c.to_le_bytes()));
            w.put(&conv.channels.to_le_bytes());
            w.put(&conv.pixels.to_le_bytes());
        }
        w.bytes
    }

    /// Unpacks a map; `None` if these bytes are not one.
    pub fn from_bytes(bytes: &[u8; BYTES]) -> Option<TensorMap> {
        let mut r = Reader { bytes, at: 0 };
        if u32::from_le_bytes(r.take()) != MAGIC {
            return None;
        }
        let [rank, element, swizzle, flags] = r.take();
        let swizzles = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];
        let base = u64::from_le_bytes(r.take());
        let mut map = TensorMap {
            base,
            rank: usize::from(rank),
            dims: std::array::from_fn(|_| u32::from_le_bytes(r.take())),
            strides: std::array::from_fn(|_| u64::from_le_bytes(r.take())),
            box_dims: std::array::from_fn(|_| u16::from_le_bytes(r.take())),
            element_strides: r.take(),
            element,
            swizzle: *swizzles.get(usize::from(swizzle).checked_sub(4)?)?,
            nan_fill: flags & 1 == 1,
            im2col: None,
        };
        if flags & 2 == 2 {
            map.im2col = Some(Im2col {
                lower: std::array::from_fn(|_| i16::from_le_bytes(r.take())),
                upper: std::array::from_fn(|_| i16::from_le_bytes(r.take())),
                channels: u16::from_le_bytes(r.take()),
                pixels: u16::from_le_bytes(r.take()),
            });
        }
        (map.rank >= 1 && map.rank <= MAX_RANK).then_some(map)
    }

    /// Elements of a box that are taken along an axis (tiled mode).
    pub fn extent(&self, axis: usize) -> u32 {
        u32::from(self.box_dims[axis]).div_ceil(u32::from(self.element_strides[axis].max(1)))
    }

    /// Address of an element, or `None` outside the tensor.
    pub fn address(&self, at: &[i64]) -> Option<u64> {
        let inside = at.iter().zip(&self.dims).all(|(c, d)| *c >= 0 && *c < i64::from(*d));
        inside.then(|| {
            let outer: u64 = at[1..].iter().zip(&self.strides).map(|(c, s)| *c as u64 * s).sum();
            self.base + outer + at[0] as u64 * u64::from(self.element)
        })
    }
}

struct Writer {
    bytes: [u8; BYTES],
    at: usize,
}

impl Writer {
    fn put(&mut self, part: &[u8]) {
        self.bytes[self.at..self.at + part.len()].copy_from_slice(part);
        self.at += part.len();
    }
}

struct Reader<'a> {
    bytes: &'a [u8; BYTES],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let part = std::array::from_fn(|i| self.bytes[self.at + i]);
        self.at += N;
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_everything() {
        let map = TensorMap {
            base: 0x12_3456_7890,
            rank: 4,
            dims: [64, 56, 57, 8, 1],
            strides: [128, 7168, 1 << 38, 0],
            box_dims: [64, 8, 4, 2, 0],
            element_strides: [1, 2, 2, 1, 1],
            element: 2,
            swizzle: Swizzle::B64,
            nan_fill: true,
            im2col: Some(Im2col {
                lower: [-1, -1, 0],
                upper: [-2, 1, 0],
                channels: 64,
                pixels: 128,
            }),
        };
        assert_eq!(TensorMap::from_bytes(&map.to_bytes()), Some(map));
        assert_eq!(TensorMap::from_bytes(&[0; BYTES]), None);
    }

    #[test]
    fn swizzle_is_a_permutation_of_its_rows() {
        for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
            let mut seen: Vec<u32> = (0..1024).step_by(16).map(|a| swizzle.apply(a)).collect();
            assert!((0..1024).all(|a| swizzle.apply(a) / swizzle.row() == a / swizzle.row()));
            seen.sort_unstable();
            assert_eq!(seen, (0..1024).step_by(16).collect::<Vec<_>>());
        }
        assert_eq!(Swizzle::B128.apply(128 * 3 + 16), 128 * 3 + 32);
    }
}
