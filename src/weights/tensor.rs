//! One tensor of a weights file: its type, its shape, and its numbers as f32 or FP16.

use crate::error::{Error, Result};
use half::{bf16, f16};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Dtype {
    F16,
    Bf16,
    F32,
    F64,
    Bool,
    U8,
    I8,
    I16,
    I32,
    I64,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::Bool | Dtype::U8 | Dtype::I8 => 1,
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 => 2,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F64 | Dtype::I64 => 8,
        }
    }

    /// Whether elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64)
    }
}

/// A tensor inside a [`super::Tensors`].
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// State-dict key.
    pub name: &'a str,
    /// Element type in the file.
    pub dtype: Dtype,
    /// Dimensions, slowest first.
    pub shape: &'a [usize],
    pub(super) strides: Option<&'a [usize]>,
    pub(super) bytes: &'a [u8],
}

/// A tensor rounded to FP16.
#[derive(Clone, Debug)]
pub struct Rounded {
    /// The numbers, row-major.
    pub data: Vec<f16>,
    /// How many numbers that were not zero became zero: they lay below half of FP16's smallest
    /// subnormal, 6e-8.
    pub flushed: usize,
}

impl Tensor<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers as f32, row-major. F64 is rounded.
    ///
    /// # Errors
    /// [`crate::Kind::Weights`] naming the tensor when it is not floating-point or holds numbers
    /// that are infinite or not a number (also: F64 beyond f32's range).
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let data: Vec<f32> = match self.dtype {
            Dtype::F16 => self.elements(|b| f16::from_le_bytes(b).to_f32()),
            Dtype::Bf16 => self.elements(|b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F32 => self.elements(f32::from_le_bytes),
            Dtype::F64 => self.elements(|b| f64::from_le_bytes(b) as f32),
            other => {
                return Err(Error::weights(format!(
                    "tensor {}: {other:?} elements, needed floating-point",
                    self.name
                )));
            }
        };
        match data.iter().filter(|x| !x.is_finite()).count() {
            0 => Ok(data),
            n => Err(Error::weights(format!(
                "tensor {}: {n} of {} numbers are infinite or not a number",
                self.name,
                data.len()
            ))),
        }
    }

    /// The numbers rounded to nearest-even FP16, row-major.
    ///
    /// # Errors
    /// As [`Tensor::to_f32`], and when numbers lie beyond FP16's range of 65504.
    pub fn to_f16(&self) -> Result<Rounded> {
        let wide = self.to_f32()?;
        let data: Vec<f16> = wide.iter().map(|&x| f16::from_f32(x)).collect();
        match data.iter().filter(|x| !x.is_finite()).count() {
            0 => {
                let flushed =
                    wide.iter().zip(&data).filter(|(w, h)| **w != 0.0 && h.to_f32() == 0.0).count();
                Ok(Rounded { data, flushed })
            }
            n => Err(Error::weights(format!(
                "tensor {}: {n} of {} numbers are beyond FP16's range of 65504",
                self.name,
                data.len()
            ))),
        }
    }

    /// Every element through `read`, in row-major order of the shape.
    fn elements<const SIZE: usize, T>(&self, read: impl Fn([u8; SIZE]) -> T) -> Vec<T> {
        let (chunks, _) = self.bytes.as_chunks::<SIZE>();
        let Some(strides) = self.strides else {
            return chunks.iter().map(|b| read(*b)).collect();
        };
        let mut out = Vec::with_capacity(self.len());
        let mut index = vec![0usize; self.shape.len()];
        let mut offset = 0;
        for _ in 0..self.len() {
            out.push(read(chunks[offset]));
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                offset += strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                offset -= strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor<'a>(
        dtype: Dtype,
        shape: &'a [usize],
        strides: Option<&'a [usize]>,
        bytes: &'a [u8],
    ) -> Tensor<'a> {
        Tensor { name: "w", dtype, shape, strides, bytes }
    }

    #[test]
    fn a_transposed_view_is_read_in_its_own_order() {
        let bytes: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let t = tensor(Dtype::F32, &[3, 2], Some(&[1, 3]), &bytes);
        assert_eq!(t.to_f32().unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }

    #[test]
    fn numbers_fp16_cannot_hold_are_counted_and_named() {
        let bytes: Vec<u8> =
            [65504.0f32, 65519.0, 65520.0, -1e9].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(tensor(Dtype::F32, &[2], None, &bytes[..8]).to_f16().unwrap().flushed, 0);
        let error = tensor(Dtype::F32, &[4], None, &bytes).to_f16().unwrap_err().to_string();
        assert_eq!(error, "tensor w: 2 of 4 numbers are beyond FP16's range of 65504");
        let tiny: Vec<u8> =
            [0.0f32, 6e-8, 2.9e-8, -1e-30].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(tensor(Dtype::F32, &[4], None, &tiny).to_f16().unwrap().flushed, 2);
    }

    #[test]
    fn infinite_numbers_and_integers_are_refused() {
        let bytes = f64::MAX.to_le_bytes();
        let error = tensor(Dtype::F64, &[1], None, &bytes).to_f32().unwrap_err().to_string();
        assert!(error.contains("1 of 1"), "{error}");
        assert!(tensor(Dtype::I64, &[1], None, &bytes).to_f32().is_err());
    }
}
