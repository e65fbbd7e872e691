//! Numbers as a session stores them, one after another, in any of its precisions.

use crate::backend::Precision;
use half::{bf16, f16};
use std::any::TypeId;
use std::ops::Range;

/// Stored numbers, one after another.
#[derive(Clone, Copy)]
pub(super) enum Stored<'a> {
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    F32(&'a [f32]),
}

/// Room for numbers, one after another.
pub(super) enum StoredMut<'a> {
    F16(&'a mut [f16]),
    Bf16(&'a mut [bf16]),
    F32(&'a mut [f32]),
}

impl<'a> Stored<'a> {
    /// The numbers of a session that stores them as `T`.
    pub fn of<T: bytemuck::Pod>(self) -> &'a [T] {
        match (self, stored_as::<T>()) {
            (Stored::F16(v), Some(Precision::F16)) => bytemuck::cast_slice(v),
            (Stored::Bf16(v), Some(Precision::Bf16)) => bytemuck::cast_slice(v),
            (Stored::F32(v), Some(Precision::F32)) => bytemuck::cast_slice(v),
            _ => unreachable!("one session stores all its activations in one way"),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Stored::F16(v) => v.len(),
            Stored::Bf16(v) => v.len(),
            Stored::F32(v) => v.len(),
        }
    }

    /// Some of the numbers.
    #[inline]
    pub fn part(self, range: Range<usize>) -> Stored<'a> {
        match self {
            Stored::F16(v) => Stored::F16(&v[range]),
            Stored::Bf16(v) => Stored::Bf16(&v[range]),
            Stored::F32(v) => Stored::F32(&v[range]),
        }
    }
}

impl<'a> StoredMut<'a> {
    /// Room for numbers that are multiplied as `T`.
    pub fn of<T: bytemuck::Pod>(self) -> &'a mut [T] {
        match (self, stored_as::<T>()) {
            (StoredMut::F16(v), Some(Precision::F16)) => bytemuck::cast_slice_mut(v),
            (StoredMut::Bf16(v), Some(Precision::Bf16)) => bytemuck::cast_slice_mut(v),
            (StoredMut::F32(v), Some(Precision::F32)) => bytemuck::cast_slice_mut(v),
            _ => unreachable!("one layer multiplies all its numbers in one way"),
        }
    }

    /// Room for some of the numbers.
    #[inline]
    pub fn part(&mut self, range: Range<usize>) -> StoredMut<'_> {
        match self {
            StoredMut::F16(v) => StoredMut::F16(&mut v[range]),
            StoredMut::Bf16(v) => StoredMut::Bf16(&mut v[range]),
            StoredMut::F32(v) => StoredMut::F32(&mut v[range]),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            StoredMut::F16(v) => v.len(),
            StoredMut::Bf16(v) => v.len(),
            StoredMut::F32(v) => v.len(),
        }
    }

    /// The first `n` and the rest.
    pub fn split_at(self, n: usize) -> (StoredMut<'a>, StoredMut<'a>) {
        match self {
            StoredMut::F16(v) => {
                let (a, b) = v.split_at_mut(n);
                (StoredMut::F16(a), StoredMut::F16(b))
            }
            StoredMut::Bf16(v) => {
                let (a, b) = v.split_at_mut(n);
                (StoredMut::Bf16(a), StoredMut::Bf16(b))
            }
            StoredMut::F32(v) => {
                let (a, b) = v.split_at_mut(n);
                (StoredMut::F32(a), StoredMut::F32(b))
            }
        }
    }

    pub fn fill_zero(self) {
        match self {
            StoredMut::F16(v) => v.fill(f16::ZERO),
            StoredMut::Bf16(v) => v.fill(bf16::ZERO),
            StoredMut::F32(v) => v.fill(0.0),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers as they are; both sides hold them in the same way.
    pub fn copy_from(self, from: Stored<'_>) {
        match (self, from) {
            (StoredMut::F16(to), Stored::F16(from)) => to.copy_from_slice(from),
            (StoredMut::Bf16(to), Stored::Bf16(from)) => to.copy_from_slice(from),
            (StoredMut::F32(to), Stored::F32(from)) => to.copy_from_slice(from),
            _ => unreachable!("one session stores all its activations in one way"),
        }
    }
}

/// The precision in which a kind of numbers is stored.
#[inline]
pub(super) fn stored_as<T: 'static>() -> Option<Precision> {
    let kind = TypeId::of::<T>();
    [
        (TypeId::of::<f16>(), Precision::F16),
        (TypeId::of::<bf16>(), Precision::Bf16),
        (TypeId::of::<f32>(), Precision::F32),
    ]
    .into_iter()
    .find_map(|(of, precision)| (of == kind).then_some(precision))
}
