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
use super::memory::{Grid, GridMut, Rows, RowsMut};
use super::stored::{Stored, StoredMut};
#[cfg(target_arch = "x86_64")]
use super::vector;
use super::vector::{Vector, narrow_half, widen_half};
use super::{math, pairs};
use crate::graph::Act;
use half::{bf16, f16};

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

/// Finishes sums that are stored as numbers of one kind without a detour through memory: with `load`
/// and `keep`, which convert a register from and to such numbers. Says whether it did, which depends
/// on what is asked for.
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
unsafe fn emit_in_registers<V: Vector, T: bytemuck::Pod>(
    sums: &mut Finished<'_>,
    load: impl Fn(&[T]) -> V + Copy,
    keep: impl Fn(V, &mut [T]) + Copy,
) -> bool {
    if !sums.columns.is_multiple_of(V::LANES) || sums.returned {
        return false;
    }
    let rows = sums.sums.len().div_ceil(C_PITCH);
    let residual = match &sums.residual {
        None => None,
        Some(residual) => match residual.of::<T>(rows) {
            None => return false,
            some => some,
        },
    };
    let Some(to) = sums.to.of::<T>() else { return false };
    let with = &sums.with;
    let mut block = Rectangle { sums: sums.sums, rows, columns: sums.columns, with, residual, to };
    // SAFETY: the caller's.
    unsafe {
        match with.act {
            Act::None => block.emit::<V>(load, keep, |x| x),
            Act::Relu => block.emit::<V>(load, keep, |x| x.relu()),
            Act::Gelu => block.emit::<V>(load, keep, |x| lane_by_lane(x, math::gelu)),
            _ => return false,
        }
    }
    true
}

/// Sums whose finished numbers are of one kind.
struct Rectangle<'a, T> {
    sums: &'a [f32],
    rows: usize,
    columns: usize,
    with: &'a Finish<'a>,
    residual: Option<Grid<'a, T>>,
    to: GridMut<'a, T>,
}

impl<T> Rectangle<'_, T> {
    /// Keeps all numbers, two registers of columns at a time, whose scale and bias stay in registers.
    ///
    /// # Safety
    /// As [`Vector`].
    #[inline(always)]
    unsafe fn emit<V: Vector>(
        &mut self,
        load: impl Fn(&[T]) -> V + Copy,
        keep: impl Fn(V, &mut [T]) + Copy,
        act: impl Fn(V) -> V + Copy,
    ) {
        let double = 2 * V::LANES;
        for first in (0..self.columns / double).map(|pair| pair * double) {
            // SAFETY: the caller's.
            unsafe { self.emit_columns::<V, 2>(first, load, keep, act) };
        }
        if !self.columns.is_multiple_of(double) {
            // SAFETY: as above.
            unsafe { self.emit_columns::<V, 1>(self.columns - V::LANES, load, keep, act) };
        }
    }

    /// Some registers of columns, from `first` on.
    ///
    /// # Safety
    /// As [`Vector`].
    #[inline(always)]
    unsafe fn emit_columns<V: Vector, const N: usize>(
        &mut self,
        first: usize,
        load: impl Fn(&[T]) -> V + Copy,
        keep: impl Fn(V, &mut [T]) + Copy,
        act: impl Fn(V) -> V + Copy,
    ) {
        let lanes = first..first + N * V::LANES;
        // SAFETY: the caller's; every slice has the columns of these lanes.
        unsafe {
            let scale = registers::<V, N>(&self.with.scale[lanes.clone()]);
            let bias = registers::<V, N>(&self.with.bias[lanes.clone()]);
            for row in 0..self.rows {
                let mut x = registers::<V, N>(&self.sums[row * C_PITCH + first..]);
                for (x, (&scale, &bias)) in x.iter_mut().zip(scale.iter().zip(&bias)) {
                    *x = x.fma(scale, bias);
                }
                // The columns beside these are likely to be next.
                self.to.expect(row, lanes.end);
                if let Some(residual) = &self.residual {
                    residual.expect(row, lanes.end);
                    let residual = &residual.row(row)[lanes.clone()];
                    for (x, residual) in x.iter_mut().zip(residual.chunks_exact(V::LANES)) {
                        *x = x.add(load(residual));
                    }
                }
                let to = &mut self.to.row(row)[lanes.clone()];
                for (x, to) in x.iter().zip(to.chunks_exact_mut(V::LANES)) {
                    keep(act(*x), to);
                }
            }
        }
    }
}

/// A function of numbers on each lane, by plain code that becomes vector instructions again.
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
unsafe fn lane_by_lane<V: Vector>(x: V, act: impl Fn(f32) -> f32) -> V {
    let mut lanes = [0.0; MAX_LANES];
    // SAFETY: the caller's; no register has more lanes.
    unsafe {
        x.store(lanes.as_mut_ptr());
        lanes[..V::LANES].iter_mut().for_each(|x| *x = act(*x));
        V::load(lanes.as_ptr())
    }
}

/// Neighbouring registers.
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
unsafe fn registers<V: Vector, const N: usize>(from: &[f32]) -> [V; N] {
    let from = &from[..N * V::LANES];
    // SAFETY: the caller's; the slice is as long as the registers.
    unsafe {
        let mut to = [V::zero(); N];
        for (n, to) in to.iter_mut().enumerate() {
            *to = V::load(from.as_ptr().add(n * V::LANES));
        }
        to
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

/// `relu(fma(x, scale, bias))` of stored numbers, rounded as they are stored, to where it is multiplied:
/// any number of any kind. Plain code: compiled once for each instruction set.
#[inline(always)]
fn activate_slices(
    from: Stored<'_>,
    [scale, bias]: [&[f32]; 2],
    mut to: StoredMut<'_>,
    widen: impl Fn(Stored<'_>, &mut [f32]),
    narrow: impl Fn(&[f32], StoredMut<'_>),
) {
    /// Numbers that are converted together.
    const RUN: usize = 128;
    let mut x = [0.0; RUN];
    for start in (0..from.len()).step_by(RUN) {
        let lanes = start..(start + RUN).min(from.len());
        let (from, x) = (from.part(lanes.clone()), &mut x[..lanes.len()]);
        widen(from, x);
        for ((x, &scale), &bias) in
            x.iter_mut().zip(&scale[lanes.clone()]).zip(&bias[lanes.clone()])
        {
            let y = x.mul_add(scale, bias);
            // Written so that a NaN stays one.
            *x = if y < 0.0 { 0.0 } else { y };
        }
        match (from, to.part(lanes)) {
            (Stored::F16(_), StoredMut::F32(to)) => {
                let mut half = [f16::ZERO; RUN];
                let half = &mut half[..x.len()];
                narrow(x, StoredMut::F16(&mut *half));
                widen(Stored::F16(half), to);
            }
            (Stored::Bf16(_), StoredMut::F32(to)) => {
                let mut half = [bf16::ZERO; RUN];
                let half = &mut half[..x.len()];
                narrow(x, StoredMut::Bf16(&mut *half));
                widen(Stored::Bf16(half), to);
            }
            (_, to) => narrow(x, to),
        }
    }
}

/// As [`activate_slices`] for whole registers of numbers of one kind, with `load` and `keep` as in
/// [`emit_in_registers`]; `put` makes of what is kept what is multiplied.
///
/// # Safety
/// As [`Vector`].
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "see the module"))]
unsafe fn activate_in_registers<V: Vector, T: bytemuck::Zeroable + Copy, U>(
    from: &[T],
    [scale, bias]: [&[f32]; 2],
    to: &mut [U],
    load: impl Fn(&[T]) -> V + Copy,
    keep: impl Fn(V, &mut [T]) + Copy,
    put: impl Fn(&[T], &mut [U]) + Copy,
) {
    let with = scale.chunks_exact(V::LANES).zip(bias.chunks_exact(V::LANES));
    let numbers = from.chunks_exact(V::LANES).zip(to.chunks_exact_mut(V::LANES));
    for ((from, to), (scale, bias)) in numbers.zip(with) {
        let mut kept = [T::zeroed(); MAX_LANES];
        let kept = &mut kept[..V::LANES];
        // SAFETY: the caller's; every chunk has the lanes of a register.
        unsafe {
            let (scale, bias) = (V::load(scale.as_ptr()), V::load(bias.as_ptr()));
            keep(load(from).fma(scale, bias).relu(), kept);
        }
        put(kept, to);
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

/// Compiles the epilogue, and what is done to numbers before they are multiplied, for an instruction
/// set: how it converts slices of numbers and, where it pays, registers.
macro_rules! emit {
    ($([$features:literal])?, $name:ident, $activate:ident,
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
                // SAFETY: the features are enabled here.
                let is_done = unsafe {
                    emit_in_registers(
                        &mut sums,
                        |from: &[f16]| $load(Stored::F16(from)),
                        |x, to: &mut [f16]| $keep(x, StoredMut::F16(to), narrow),
                    ) || emit_in_registers(
                        &mut sums,
                        |from: &[bf16]| $load(Stored::Bf16(from)),
                        |x, to: &mut [bf16]| $keep(x, StoredMut::Bf16(to), narrow),
                    ) || emit_in_registers(
                        &mut sums,
                        |from: &[f32]| $load(Stored::F32(from)),
                        |x, to: &mut [f32]| $keep(x, StoredMut::F32(to), narrow),
                    )
                };
                if is_done {
                    return;
                }
            )?
            emit_slices(sums, |sums, with| $finish(sums, with), widen, narrow);
        }

        $(#[target_feature(enable = $features)])?
        pub(super) unsafe fn $activate(
            from: Stored<'_>,
            with: [&[f32]; 2],
            mut to: StoredMut<'_>,
        ) {
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
            let n = from.len();
            assert!(with[0].len() == n && with[1].len() == n && to.len() == n);
            #[allow(unused_variables, reason = "depends on the instruction set")]
            let whole = 0;
            $(
                let whole = n / MAX_LANES * MAX_LANES;
                let lanes = 0..whole;
                let head = with.map(|all| &all[..whole]);
                match (from.part(lanes.clone()), to.part(lanes)) {
                    // SAFETY: the features are enabled here.
                    (Stored::F16(from), StoredMut::F32(to)) => unsafe {
                        activate_in_registers(
                            from,
                            head,
                            to,
                            |from: &[f16]| $load(Stored::F16(from)),
                            |x, to: &mut [f16]| $keep(x, StoredMut::F16(to), narrow),
                            |from: &[f16], to: &mut [f32]| $widen(from, to),
                        );
                    },
                    // SAFETY: as above.
                    (Stored::Bf16(from), StoredMut::Bf16(to)) => unsafe {
                        activate_in_registers(
                            from,
                            head,
                            to,
                            |from: &[bf16]| $load(Stored::Bf16(from)),
                            |x, to: &mut [bf16]| $keep(x, StoredMut::Bf16(to), narrow),
                            |from: &[bf16], to: &mut [bf16]| to.copy_from_slice(from),
                        );
                    },
                    (from, to) => activate_slices(from, head, to, widen, narrow),
                }
            )?
            let tail = with.map(|all| &all[whole..]);
            activate_slices(from.part(whole..n), tail, to.part(whole..n), widen, narrow);
        }
    };
}

#[cfg(target_arch = "x86_64")]
emit!(
    ["avx512f,avx512bw,avx512vl,avx2,fma,f16c"],
    emit_avx512,
    activate_avx512,
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
    activate_avx512_bf16,
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
    activate_avx2,
    [finish_avx2, vector::x86::widen_avx2, vector::x86::narrow_avx2, pairs::widen, pairs::narrow],
    [vector::x86::load_avx2, vector::x86::keep_avx2]
);
#[cfg(target_arch = "aarch64")]
emit!(
    ["neon"],
    emit_neon,
    activate_neon,
    [finish_neon, widen_half, narrow_half, pairs::widen, pairs::narrow]
);
emit!(, emit_portable, activate_portable, [finish, widen_half, narrow_half, pairs::widen, pairs::narrow]);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::check::run_once;
    use crate::backend::{Input, Precision};
    use crate::cpu::kernels::Kernels;
    use crate::cpu::{CpuBackend, Isa};
    use crate::graph::{Epilogue, Graph, Op, Shape};
    use std::sync::Arc;

    fn numbers(n: usize, step: usize) -> Vec<f32> {
        (0..n).map(|i| (i * step % 61) as f32 / 23.0 - 1.3).collect()
    }

    /// `act(x w * scale + bias + residual)` of 9 tokens.
    fn linear(c: usize, k: usize, has_residual: bool, act: Act) -> Graph {
        let mut g = Graph::new("linear");
        let x = g.input(Shape::Tokens { t: 9, c });
        let data = numbers(k * c, 7).into_iter().map(f16::from_f32).collect();
        let weight = g.param_f16("w", &[k, c], data).unwrap();
        let residual = has_residual.then(|| g.input(Shape::Tokens { t: 9, c: k }));
        let [scale, bias] =
            [3, 5].map(|step| Some(g.param_f32("v", &[k], numbers(k, step)).unwrap()));
        let op = Op::Linear { weight, epilogue: Epilogue { scale, bias, residual, act } };
        let y = g.push(op, &[x]).unwrap();
        // The second step makes the first one store its numbers.
        let y = g.push(Op::Copy, &[y]).unwrap();
        g.output(y);
        g
    }

    /// Whole registers of columns, one alone and parts of one, with and without what is added.
    #[test]
    fn every_instruction_set_finishes_sums_to_the_same_bits() {
        for (k, has_residual) in
            [16, 32, 48, 40, 300].into_iter().flat_map(|k| [(k, false), (k, true)])
        {
            for act in [Act::None, Act::Relu, Act::Gelu] {
                let graph = Arc::new(linear(20, k, has_residual, act));
                let (x, r) = (numbers(2 * 9 * 20, 11), numbers(2 * 9 * k, 13));
                let inputs = [Input::Values(&x), Input::Values(&r)];
                let inputs = &inputs[..1 + usize::from(has_residual)];
                for precision in Precision::ALL {
                    let run = |isa| {
                        let on = CpuBackend::new(1, Some(isa)).unwrap();
                        let on = on.with_precision(precision).unwrap();
                        let y = run_once(&on, &graph, 2, inputs).unwrap().remove(0);
                        y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                    };
                    let want = run(Isa::Portable);
                    let sets = Isa::ALL.into_iter().filter(|isa| isa.is_available());
                    for isa in sets.filter(|isa| isa.sums_as_others()) {
                        assert!(run(isa) == want, "{k} {has_residual} {act:?} {precision} {isa}");
                    }
                }
            }
        }
    }

    /// Against the formula, number by number, for every length up to some registers.
    #[test]
    fn numbers_are_activated_as_they_are_stored() {
        let (x, scale, bias) = (numbers(100, 17), numbers(100, 3), numbers(100, 5));
        let want: Vec<f32> = (0..100)
            .map(|i| f16::from_f32(x[i]).to_f32().mul_add(scale[i], bias[i]).max(0.0))
            .collect();
        let stored: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
        let brain: Vec<bf16> = stored.iter().map(|&x| bf16::from_f32(x.to_f32())).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let [half, full] =
                [Precision::F16, Precision::F32].map(|p| Kernels::of(isa, p).unwrap());
            let both = [Kernels::of(isa, Precision::Bf16).unwrap(), Kernels::emulated(isa)];
            for n in 0..100 {
                let with = [&scale[..n], &bias[..n]];
                let mut to = vec![7.0; n + 1];
                half.activate(Stored::F16(&stored[..n]), with, StoredMut::F32(&mut to[..n]));
                let rounded = |x: &f32| f16::from_f32(*x).to_f32();
                assert!(to[..n].iter().eq(&want[..n].iter().map(rounded).collect::<Vec<_>>()));
                let mut kept = vec![f16::ONE; n + 1];
                half.activate(Stored::F16(&stored[..n]), with, StoredMut::F16(&mut kept[..n]));
                assert!(kept[..n].iter().zip(&to).all(|(kept, to)| kept.to_f32() == *to));
                assert_eq!(kept[n], f16::ONE);
                let wide: Vec<f32> = stored[..n].iter().map(|x| x.to_f32()).collect();
                full.activate(Stored::F32(&wide), with, StoredMut::F32(&mut to[..n]));
                assert_eq!((&to[..n], to[n]), (&want[..n], 7.0), "{isa} {n}");
                for kernels in both {
                    let mut to = vec![bf16::ONE; n + 1];
                    kernels.activate(
                        Stored::Bf16(&brain[..n]),
                        with,
                        StoredMut::Bf16(&mut to[..n]),
                    );
                    let want =
                        (0..n).map(|i| brain[i].to_f32().mul_add(scale[i], bias[i]).max(0.0));
                    assert!(to[..n].iter().copied().eq(want.map(bf16::from_f32)), "{isa} {n}");
                    assert_eq!(to[n], bf16::ONE);
                }
            }
        }
    }
}
