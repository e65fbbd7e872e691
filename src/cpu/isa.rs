//! The instruction sets: what they are called and whether this processor has them.

use super::amx;
use crate::error::{Error, Result};
use std::fmt;

/// An instruction set with fused multiply-add on f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// x86-64 with AVX-512 and the tile registers of AMX-BF16. Alone among them it sums in another order.
    Amx,
    /// x86-64 with AVX-512 F, BW and VL.
    Avx512,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// aarch64.
    Neon,
    /// Any processor; without fused multiply-add in hardware it is slow.
    Portable,
}

impl Isa {
    /// Every instruction set, the widest first.
    pub const ALL: [Isa; 5] = [Isa::Amx, Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable];

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => super::ceiling::pairs_available(Isa::Avx512) && amx::available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => true,
            Isa::Portable => true,
            #[allow(unreachable_patterns, reason = "which sets remain depends on the target")]
            _ => false,
        }
    }

    /// The widest instruction set of this processor.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Portable)
    }

    /// Whether the order of its sums is that of all others: the bits of [`Precision::F16`] and
    /// [`Precision::Bf16`] are those of any other such set.
    pub fn sums_as_others(self) -> bool {
        self != Isa::Amx
    }

    /// Takes the instructions of [`Isa::Amx`] for available, whatever the processor says: for programs that
    /// emulate them.
    ///
    /// # Safety
    /// They work in every thread of this process from now on.
    pub unsafe fn assume_amx() {
        // SAFETY: the caller's.
        unsafe { amx::assume() };
    }

    /// The instruction set named by the environment variable `HISTOKERN_CPU`, if it is set.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] for an unknown name. Whether the processor has it is checked by
    /// [`super::CpuBackend::new`].
    pub fn from_env() -> Result<Option<Isa>> {
        match std::env::var_os("HISTOKERN_CPU") {
            None => Ok(None),
            Some(name) => Isa::named(&name.to_string_lossy()).map(Some),
        }
    }

    /// The instruction set of a name, as printed.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`] for an unknown name.
    pub fn named(name: &str) -> Result<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.to_string() == name).ok_or_else(|| {
            let known = Isa::ALL.map(|isa| isa.to_string()).join(", ");
            Error::usage(format!("HISTOKERN_CPU: no instruction set {name:?}; one of {known}"))
        })
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Amx => "amx",
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Neon => "neon",
            Isa::Portable => "portable",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for isa in Isa::ALL {
            assert_eq!(Isa::named(&isa.to_string()).unwrap(), isa);
        }
        assert!(Isa::named("sse").unwrap_err().to_string().contains("portable"));
    }
}
