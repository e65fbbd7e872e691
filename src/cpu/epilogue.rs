//! Epilogues: what turns accumulated sums into stored numbers, `act(fma(sum, scale, bias) + residual)`,
//! in one pass over the sums of a block.
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "registers are converted on x86-64 alone")
)]

#[cfg(target_arch = "aarch64")]
use super::kernels::finish_neon;
use super::kernels::{C_PITCH, MAX_COLUMNS};
#[cfg(target_arch = "x86_64")]
use super::kernels::{finish_avx2, finish_avx512};
use super::memory::{Rows, RowsMut, Stored, StoredMut};
#[cfg(target_arch = "x86_64")]
use super::vector;
use super::vector::{Vector, narrow_half, widen_half};
use super::{math, pairs};
use crate::graph::Act;

/// The lanes of the widest register.
const MAX_LANES: usize = 16;

/// What turns accumulated sums into stored values, for consecutive channels of one position.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    pub scale: &'a [f32],
    pub bias: &'a [f32],
    pub residual: Option<&'a [f32]>,
    pub act: Act,
}

/// `act(fma(sum, scale, bias) + residual)` in place. Plain code: compiled once for each
/// instruction set, it becomes that set's vector instructions.
#[inline(always)]
pub(super) fn finish(sums: &mut [f32], with: &Finish<'_>) {
    match with.act {
        Act::None => each(sums, with, |x| x),
        // Written so that a NaN stays one.
        Act::Relu => each(sums, with, |x| if x < 0.0 { 0.0 } else { x }),
        Act::Tanh => each(sums, with, math::tanh),
        Act::Sigmoid => each(sums, with, math::sigmoid),
        Act::Gelu => each(sums, with, math::gelu),
        Act::Silu => each(sums, with, math::silu),
    }
}

/// One pass over the sums.
#[inline(always)]
fn each(sums: &mut [f32], with: &Finish<'_>, act: impl Fn(f32) -> f32) {
    let sums = sums.iter_mut().zip(with.scale).zip(with.bias);
    match with.residual {
        None => sums.for_each(|((x, &scale), &bias)| *x = act(x.mul_add(scale, bias))),
        Some(residual) => sums
            .zip(residual)
            .for_each(|(((x, &scale), &bias), &r)| *x = act(x.mul_add(scale, bias) + r)),
    }
}

/// Sums of consecutive positions, what they are finished with, and where they go.
pub(super) struct Finished<'a> {
    /// Rows of [`C_PITCH`], of which the first `columns` count.
    pub sums: &'a mut [f32],
    pub columns: usize,
    /// Its residual is absent: it stands beside it.
    pub with: Finish<'a>,
    pub residual: Option<Rows<'a>>,
    pub to: RowsMut<'a>,
    /// Whether the finished sums are wanted in place, too.
    pub returned: bool,
}

/// Finishes sums and stores them, row by row: with `load` and `keep`, which convert a register from and
/// to stored numbers, where they do; says whether they did.
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
unsafe fn emit_in_registers<V: Vector>(
    sums: &mut Finished<'_>,
    load: impl Fn(Stored<'_>) -> V,
    keep: impl Fn(V, StoredMut<'_>),
) -> bool {
    match sums.with.act {
        _ if !sums.columns.is_multiple_of(V::LANES) || sums.returned => return false,
        // SAFETY: the caller's.
        Act::None => unsafe { emit_registers(sums, load, keep, |x: V| x) },
        // SAFETY: the caller's.
        Act::Relu => unsafe { emit_registers(sums, load, keep, |x: V| x.relu()) },
        _ => return false,
    }
    true
}

/// Numbers that do not leave their register before they are stored.
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
unsafe fn emit_registers<V: Vector>(
    sums: &mut Finished<'_>,
    load: impl Fn(Stored<'_>) -> V,
    keep: impl Fn(V, StoredMut<'_>),
    act: impl Fn(V) -> V,
) {
    let Finished { sums, columns, with, residual, to, .. } = sums;
    let columns = *columns;
    let (scale, bias) = (&with.scale[..columns], &with.bias[..columns]);
    for (i, row) in sums.chunks(C_PITCH).enumerate() {
        let (row, residual) = (&row[..columns], residual.as_ref().map(|rows| rows.row(i)));
        let Some(mut to) = to.row(i) else { continue };
        for first in (0..columns).step_by(V::LANES) {
            let lanes = first..first + V::LANES;
            // SAFETY: the caller's; every slice has the columns of these lanes.
            unsafe {
                let at = |slice: &[f32]| V::load(slice.as_ptr().add(first));
                let mut x = at(row).fma(at(scale), at(bias));
                if let Some(residual) = residual {
                    x = x.add(load(residual.part(lanes.clone())));
                }
                keep(act(x), to.part(lanes));
            }
        }
    }
}

/// Any number of columns and any activation; leaves the finished numbers in place of the sums.
#[inline(always)]
fn emit_slices(
    sums: Finished<'_>,
    finish: impl Fn(&mut [f32], &Finish<'_>),
    widen: impl Fn(Stored<'_>, &mut [f32]),
    narrow: impl Fn(&[f32], StoredMut<'_>),
) {
    let Finished { sums, columns, with, residual, mut to, .. } = sums;
    let mut added = [0.0; MAX_COLUMNS];
    for (i, row) in sums.chunks_mut(C_PITCH).enumerate() {
        let row = &mut row[..columns];
        let residual = residual.as_ref().map(|residual| {
            let added = &mut added[..columns];
            widen(residual.row(i), added);
            &*added
        });
        finish(row, &Finish { residual, ..with });
        if let Some(to) = to.row(i) {
            narrow(row, to);
        }
    }
}

/// A register as stored numbers, by way of memory.
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
pub(super) unsafe fn keep_row<V: Vector>(
    register: V,
    to: StoredMut<'_>,
    narrow: impl Fn(&[f32], StoredMut<'_>),
) {
    let mut row = [0.0; MAX_LANES];
    // SAFETY: the caller's; no register has more lanes.
    unsafe { register.store(row.as_mut_ptr()) };
    narrow(&row[..V::LANES], to);
}

/// Compiles the epilogue for an instruction set: how it converts slices of numbers and, where it
/// pays, registers.
macro_rules! emit {
    ($([$features:literal])?, $name:ident,
        [$finish:path, $widen:path, $narrow:path, $widen_bf16:path, $narrow_bf16:path]
        $(, [$load:path, $keep:path])?) => {
        $(#[target_feature(enable = $features)])?
        #[allow(unused_mut, reason = "depends on the instruction set")]
        pub(super) unsafe fn $name(mut sums: Finished<'_>) {
            let widen = |from: Stored<'_>, to: &mut [f32]| match from {
                Stored::F16(from) => $widen(from, to),
                Stored::Bf16(from) => $widen_bf16(from, to),
                Stored::F32(from) => to.copy_from_slice(from),
            };
            let narrow = |from: &[f32], to: StoredMut<'_>| match to {
                StoredMut::F16(to) => $narrow(from, to),
                StoredMut::Bf16(to) => $narrow_bf16(from, to),
                StoredMut::F32(to) => to.copy_from_slice(from),
            };
            $(
                let keep = |register, to: StoredMut<'_>| $keep(register, to, narrow);
                // SAFETY: the features are enabled here.
                if unsafe { emit_in_registers(&mut sums, |from| $load(from), keep) } {
                    return;
                }
            )?
            emit_slices(sums, |sums, with| $finish(sums, with), widen, narrow);
        }
    };
}

#[cfg(target_arch = "x86_64")]
emit!(
    ["avx512f,avx512bw,avx512vl,avx2,fma,f16c"],
    emit_avx512,
    [
        finish_avx512,
        vector::x86::widen_avx512,
        vector::x86::narrow_avx512,
        pairs::widen,
        pairs::narrow
    ],
    [vector::x86::load_avx512, vector::x86::keep_avx512]
);
#[cfg(target_arch = "x86_64")]
emit!(
    ["avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c"],
    emit_avx512_bf16,
    [
        finish_avx512,
        vector::x86::widen_avx512,
        vector::x86::narrow_avx512,
        pairs::widen,
        pairs::x86::narrow
    ],
    [vector::x86::load_avx512, pairs::x86::keep]
);
#[cfg(target_arch = "x86_64")]
emit!(
    ["avx2,fma,f16c"],
    emit_avx2,
    [finish_avx2, vector::x86::widen_avx2, vector::x86::narrow_avx2, pairs::widen, pairs::narrow]
);
#[cfg(target_arch = "aarch64")]
emit!(["neon"], emit_neon, [finish_neon, widen_half, narrow_half, pairs::widen, pairs::narrow]);
emit!(, emit_portable, [finish, widen_half, narrow_half, pairs::widen, pairs::narrow]);
