//! The registers of a warp, kept as one vector of 32 lanes each, so that an instruction is one loop
//! over lanes that the compiler can vectorise.

use half::{bf16, f16};

use crate::fault::{FULL, LANES};
use crate::isa::{Class, Reg, Source, Special};

/// A lane value of some PTX type, as bits in a register.
pub trait Scalar: Copy + Send + Sync + 'static {
    /// Bits in a register that holds this type.
    const BITS: u32;
    /// Reads the low bits of a register.
    fn from_bits(bits: u64) -> Self;
    /// Bits for a register of any width (signed values are sign-extended).
    fn bits(self) -> u64;
}

macro_rules! integer_scalar {
    ($($ty:ty),*) => {$(
        impl Scalar for $ty {
            const BITS: u32 = <$ty>::BITS;
            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                bits as $ty
            }
            #[inline(always)]
            fn bits(self) -> u64 {
                self as i64 as u64
            }
        }
    )*};
}
integer_scalar!(i8, i16, i32, i64);

macro_rules! unsigned_scalar {
    ($($ty:ty),*) => {$(
        impl Scalar for $ty {
            const BITS: u32 = <$ty>::BITS;
            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                bits as $ty
            }
            #[inline(always)]
            fn bits(self) -> u64 {
                u64::from(self)
            }
        }
    )*};
}
unsigned_scalar!(u8, u16, u32, u64);

macro_rules! float_scalar {
    ($($ty:ty, $bits:ty);*) => {$(
        impl Scalar for $ty {
            const BITS: u32 = <$bits>::BITS;
            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                <$ty>::from_bits(bits as $bits)
            }
            #[inline(always)]
            fn bits(self) -> u64 {
                u64::from(self.to_bits())
            }
        }
    )*};
}
float_scalar!(f16, u16; bf16, u16; f32, u32; f64, u64);

/// Registers and special values of one warp.
pub struct Registers {
    pred: Vec<u32>,
    narrow: Vec<[u32; LANES]>,
    wide: Vec<[u64; LANES]>,
    special: [[u32; LANES]; Special::COUNT],
}

/// What an unwritten register holds: a quiet NaN as f32, an unmapped address as a pointer.
const POISON: u64 = 0x7fff_dead_7fff_dead;

impl Registers {
    /// Registers for a kernel, all poisoned.
    pub fn new(counts: [u32; 3]) -> Registers {
        Registers {
            pred: vec![0; counts[0] as usize],
            narrow: vec![[POISON as u32; LANES]; counts[1] as usize],
            wide: vec![[POISON; LANES]; counts[2] as usize],
            special: [[0; LANES]; Special::COUNT],
        }
    }

    /// Poisons all registers again, for the next block.
    pub fn reset(&mut self) {
        self.pred.fill(0);
        self.narrow.fill([POISON as u32; LANES]);
        self.wide.fill([POISON; LANES]);
    }

    /// Sets a special register.
    pub fn set_special(&mut self, which: Special, values: [u32; LANES]) {
        self.special[which.slot()] = values;
    }

    /// All lanes of a source as `T`.
    #[inline(always)]
    pub fn read<T: Scalar>(&self, source: Source) -> [T; LANES] {
        match source {
            Source::Reg(Reg { class: Class::Narrow, index }) => {
                self.narrow[index as usize].map(|v| T::from_bits(u64::from(v)))
            }
            Source::Reg(Reg { class: Class::Wide, index }) => {
                self.wide[index as usize].map(T::from_bits)
            }
            Source::Reg(Reg { class: Class::Pred, index }) => {
                let bits = self.pred[index as usize];
                std::array::from_fn(|lane| T::from_bits(u64::from(bits >> lane & 1)))
            }
            Source::Imm(value) => [T::from_bits(value); LANES],
            Source::Special(which) => {
                self.special[which.slot()].map(|v| T::from_bits(u64::from(v)))
            }
        }
    }

    /// One lane of a source.
    #[inline]
    pub fn lane(&self, source: Source, lane: usize) -> u64 {
        match source {
            Source::Reg(Reg { class: Class::Narrow, index }) => {
                u64::from(self.narrow[index as usize][lane])
            }
            Source::Reg(Reg { class: Class::Wide, index }) => self.wide[index as usize][lane],
            Source::Reg(Reg { class: Class::Pred, index }) => {
                u64::from(self.pred[index as usize] >> lane & 1)
            }
            Source::Imm(value) => value,
            Source::Special(which) => u64::from(self.special[which.slot()][lane]),
        }
    }

    /// Writes the lanes in `mask`.
    #[inline(always)]
    pub fn write<T: Scalar>(&mut self, reg: Reg, mask: u32, values: [T; LANES]) {
        match reg.class {
            Class::Narrow => {
                let row = &mut self.narrow[reg.index as usize];
                if mask == FULL {
                    *row = values.map(|v| v.bits() as u32);
                } else {
                    for lane in 0..LANES {
                        if mask >> lane & 1 == 1 {
                            row[lane] = values[lane].bits() as u32;
                        }
                    }
                }
            }
            Class::Wide => {
                let row = &mut self.wide[reg.index as usize];
                if mask == FULL {
                    *row = values.map(T::bits);
                } else {
                    for lane in 0..LANES {
                        if mask >> lane & 1 == 1 {
                            row[lane] = values[lane].bits();
                        }
                    }
                }
            }
            Class::Pred => {
                let bits = (0..LANES)
                    .fold(0, |bits, lane| bits | ((values[lane].bits() & 1) as u32) << lane);
                self.write_pred(reg, mask, bits);
            }
        }
    }

    /// Writes one lane.
    #[inline]
    pub fn write_lane(&mut self, reg: Reg, lane: usize, bits: u64) {
        match reg.class {
            Class::Narrow => self.narrow[reg.index as usize][lane] = bits as u32,
            Class::Wide => self.wide[reg.index as usize][lane] = bits,
            Class::Pred => self.write_pred(reg, 1 << lane, ((bits & 1) as u32) << lane),
        }
    }

    /// The lanes where a predicate is true.
    #[inline(always)]
    pub fn pred(&self, reg: Reg) -> u32 {
        self.pred[reg.index as usize]
    }

    /// Sets a predicate in the lanes of `mask`.
    #[inline(always)]
    pub fn write_pred(&mut self, reg: Reg, mask: u32, bits: u32) {
        let old = &mut self.pred[reg.index as usize];
        *old = *old & !mask | bits & mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_write_keeps_other_lanes_and_extends_signs() {
        let mut regs = Registers::new([1, 1, 1]);
        let narrow = Reg { class: Class::Narrow, index: 0 };
        let wide = Reg { class: Class::Wide, index: 0 };
        regs.write(narrow, FULL, [7u32; LANES]);
        regs.write(narrow, 0b10, [-1i16; LANES]);
        regs.write(wide, FULL, regs.read::<i16>(Source::Reg(narrow)));
        assert_eq!(regs.lane(Source::Reg(narrow), 0), 7);
        assert_eq!(regs.lane(Source::Reg(narrow), 1), 0xffff_ffff);
        assert_eq!(regs.lane(Source::Reg(wide), 1), u64::MAX);
    }

    #[test]
    fn predicates_are_lane_masks() {
        let mut regs = Registers::new([1, 0, 0]);
        let p = Reg { class: Class::Pred, index: 0 };
        regs.write_pred(p, 0xff, 0x55);
        regs.write_lane(p, 8, 1);
        assert_eq!(regs.pred(p), 0x155);
        assert_eq!(regs.read::<u32>(Source::Reg(p))[..4], [1, 0, 1, 0]);
    }
}
