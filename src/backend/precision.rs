//! How numbers are held between the steps of a network, and what its products multiply.

use crate::graph::reference::Rounding;
use std::fmt;
use std::str::FromStr;

/// The numbers of a network. Sums, epilogues, norms, softmax and outputs are f32 (or wider) in all of
/// them; weights come from the package, which holds them as FP16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// FP16 weights and activations: the arithmetic of every device.
    #[default]
    F16,
    /// bf16 weights and activations: 8 significant bits in place of 11, for throughput.
    Bf16,
    /// The FP16 weights as they are, activations not rounded: what rounding is judged by.
    F32,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 3] = [Precision::F16, Precision::Bf16, Precision::F32];

    /// What the reference does to compute with the same numbers.
    pub fn rounding(self) -> Rounding {
        match self {
            Precision::F16 => Rounding::F16,
            Precision::Bf16 => Rounding::Bf16,
            Precision::F32 => Rounding::None,
        }
    }

    /// Bytes of a stored activation.
    pub fn bytes(self) -> usize {
        match self {
            Precision::F16 | Precision::Bf16 => 2,
            Precision::F32 => 4,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
            Precision::F32 => "f32",
        })
    }
}

impl FromStr for Precision {
    type Err = crate::Error;

    fn from_str(text: &str) -> crate::Result<Precision> {
        match text {
            "fp16" | "f16" => Ok(Precision::F16),
            "bf16" => Ok(Precision::Bf16),
            "f32" | "fp32" => Ok(Precision::F32),
            _ => Err(crate::Error::usage(format!(
                "no precision {text:?}; there are fp16, bf16 and f32"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse::<Precision>().unwrap(), precision);
        }
        assert_eq!("fp16".parse::<Precision>().unwrap(), Precision::default());
        assert!("fp8".parse::<Precision>().unwrap_err().to_string().contains("bf16"));
    }
}
