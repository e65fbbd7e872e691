//! Warpgroup matrix multiply (`wgmma`, sm_90a; PTX ISA, "Asynchronous Warpgroup Level Matrix
//! Instructions").
//!
//! A product is computed when it is waited for: registers hold the old values and shared memory is
//! read late, so a missing wait shows. It belongs to the warpgroup: the first of the four warps to
//! wait reads the operands for all, and a warp's wait ends when all four have issued the product.
//! Warp w then forms rows 16 w to 16 w + 15. Sums are formed as in `mma` (`matrix.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use half::f16;

use super::matrix::{Half, RowsA, gather_a, read_row, uniform};
use super::{Action, Effect, Members};
use crate::block::Lanes;
use crate::decode::{Decoder, value};
use crate::fault::{FULL, Fault, LANES, Outcome};
use crate::isa::{Operand, Reg, Source, Type};
use crate::shared::{Snapshot, Via};
use crate::tensor_map::Swizzle;

/// Decodes a `wgmma` instruction.
pub fn decode(d: &mut Decoder<'_>) -> Result<Action, String> {
    if d.take("fence") {
        d.ignore(&["sync", "aligned"]);
        return Ok(Action::Access(Box::new(|ctx, _| {
            ctx.warp.products.fenced = true;
            Ok(())
        })));
    }
    if d.take("wait_group") {
        d.ignore(&["sync", "aligned"]);
        let keep = d.immediate(0)? as usize;
        return Ok(Action::Wait(Box::new(move |ctx, mask| wait(ctx, mask, keep))));
    }
    let effect: Effect = if d.take("commit_group") {
        Box::new(|ctx, _| {
            ctx.warp.products.commit();
            Ok(())
        })
    } else {
        multiply(d)?
    };
    d.ignore(&["sync", "aligned"]);
    Ok(Action::Collective { members: Members::All, effect })
}

/// Products of a warp in flight.
#[derive(Default)]
pub struct Queue {
    products: Vec<Product>,
    /// For each committed group, the number of products before its end.
    groups: Vec<usize>,
    issued: u64,
    /// Whether a `wgmma.fence` stands between the last use of the registers and the next product.
    fenced: bool,
}

impl Queue {
    /// Whether products have not been waited for.
    pub fn in_flight(&self) -> bool {
        !self.products.is_empty()
    }

    /// Products issued so far.
    pub fn issued(&self) -> u64 {
        self.issued
    }

    fn commit(&mut self) {
        self.groups.push(self.products.len());
    }

    /// How many products a wait completes that leaves the last `keep` groups alone.
    fn completes(&self, keep: usize) -> usize {
        match self.groups.len().saturating_sub(keep) {
            0 => 0,
            done => self.groups[done - 1],
        }
    }

    fn remove(&mut self, keep: usize) -> Vec<Product> {
        let count = self.completes(keep);
        let done = self.groups.len().saturating_sub(keep);
        self.groups.drain(..done);
        self.groups.iter_mut().for_each(|end| *end -= count);
        self.products.drain(..count).collect()
    }
}

/// What the four warps of a warpgroup share.
#[derive(Default)]
pub struct Warpgroup {
    /// Products that each warp has issued.
    issued: [u64; 4],
    /// Operands that some of the warps have still to use, by number of the product.
    operands: BTreeMap<u64, (Arc<Operands>, u32)>,
    /// Orders the reads of the operands before what follows a wait.
    done: Snapshot,
}

/// Operands of a product: A if it was in shared memory, B as 16 rows of n.
struct Operands {
    descriptors: (Option<u64>, u64),
    a: Option<Vec<[f32; 16]>>,
    b: Vec<f32>,
}

fn wait(ctx: &mut Lanes<'_>, mask: u32, keep: usize) -> Outcome<bool> {
    if mask != FULL {
        return Ok(false);
    }
    let count = ctx.warp.products.completes(keep) as u64;
    let first = ctx.warp.products.issued - ctx.warp.products.products.len() as u64;
    let everyone = group(ctx)?.issued.iter().all(|issued| *issued >= first + count);
    if !everyone {
        return Ok(false);
    }
    for (i, product) in ctx.warp.products.remove(keep).iter().enumerate() {
        product.run(ctx, first + i as u64)?;
    }
    // Nothing in flight: what follows may use the registers.
    ctx.warp.products.fenced &= ctx.warp.products.in_flight();
    let agent = ctx.agent();
    let (rank, index) = (ctx.warp.rank, ctx.warp.index / 4);
    let done = &mut ctx.cluster.blocks[rank].warpgroups[index].done;
    ctx.cluster.clocks.release(agent, done);
    ctx.cluster.clocks.acquire(agent, done);
    Ok(true)
}

fn group<'a>(ctx: &'a mut Lanes<'_>) -> Outcome<&'a mut Warpgroup> {
    let index = ctx.warp.index / 4;
    if (index + 1) * 4 > ctx.cluster.warps_per_block {
        return Err(Fault::warp("wgmma in a warpgroup of fewer than four warps"));
    }
    Ok(&mut ctx.cluster.blocks[ctx.warp.rank].warpgroups[index])
}

/// Matrix operand in shared memory.
#[derive(Clone, Copy)]
struct Descriptor {
    bits: u64,
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: Swizzle,
    /// The row (or column) index is the contiguous one, instead of k.
    transposed: bool,
}

impl Descriptor {
    fn new(bits: u64, transposed: bool) -> Result<Descriptor, String> {
        let field = |shift: u32| (bits >> shift & 0x3fff) as u32 * 16;
        if bits >> 49 & 7 != 0 {
            return Err("a base offset in a wgmma descriptor is not supported".into());
        }
        let swizzle = Swizzle::from_descriptor(bits >> 62);
        let (start, leading, stride) = (field(0), field(16), field(32));
        Ok(Descriptor { bits, start, leading, stride, swizzle, transposed })
    }

    /// Shared address of the eight contiguous elements that hold (`row`, `k`), both rounded down to
    /// the unit. The canonical layouts are those of the PTX manual.
    fn address(&self, row: u32, k: u32) -> u32 {
        let width = self.swizzle.row();
        let (leading, stride) = (self.leading, self.stride);
        let offset = match (self.swizzle, self.transposed) {
            (Swizzle::None, false) => row / 8 * stride + k / 8 * leading + row % 8 * 16,
            (Swizzle::None, true) => row / 8 * stride + k / 8 * leading + k % 8 * 16,
            (_, false) => row / 8 * stride + row % 8 * width + k * 2,
            (_, true) => {
                let columns = width / 2;
                let inner = row % columns * 2;
                row / columns * leading + k / 8 * stride + k % 8 * width + inner
            }
        };
        self.swizzle.apply(self.start + offset)
    }

    /// Elements (row, k) of `rows` rows and sixteen k, handed to `put`.
    fn read(
        &self,
        ctx: &mut Lanes<'_>,
        rows: u32,
        mut put: impl FnMut(usize, usize, u16),
    ) -> Outcome {
        let mut unit = 0;
        for outer in 0..if self.transposed { 16 } else { rows } {
            for inner in (0..if self.transposed { rows } else { 16 }).step_by(8) {
                let (row, k) = if self.transposed { (inner, outer) } else { (outer, inner) };
                let values = read_row(ctx, unit % LANES, self.address(row, k), Via::Product)?;
                unit += 1;
                for (i, bits) in values.into_iter().enumerate() {
                    match self.transposed {
                        true => put(row as usize + i, k as usize, bits),
                        false => put(row as usize, k as usize + i, bits),
                    }
                }
            }
        }
        Ok(())
    }
}

/// The A operand.
enum OperandA {
    Shared(Descriptor),
    Registers(Box<RowsA>),
}

/// One issued product.
struct Product {
    dst: Arc<[Reg]>,
    a: OperandA,
    b: Descriptor,
    shape: Shape,
    /// Adds to the destination instead of replacing it.
    adds: bool,
}

#[derive(Clone, Copy)]
struct Shape {
    n: usize,
    format: Half,
    half_result: bool,
    /// Signs of A and B.
    signs: [f32; 2],
}

impl Product {
    /// Product `number` of the warpgroup, this warp's rows.
    fn run(&self, ctx: &mut Lanes<'_>, number: u64) -> Outcome {
        let Shape { n, signs: [sign_a, _], .. } = self.shape;
        let operands = self.operands(ctx, number)?;
        let first = ctx.warp.index % 4 * 16;
        let mut a: RowsA = match (&self.a, &operands.a) {
            (OperandA::Registers(rows), _) => **rows,
            (_, Some(rows)) => std::array::from_fn(|row| rows[first + row]),
            _ => return Err(Fault::warp("the warps of a warpgroup issued different wgmma")),
        };
        a.iter_mut().flatten().for_each(|v| *v *= sign_a);
        let mut tile = if self.adds { self.accumulators(ctx) } else { vec![0.0; 16 * n] };
        for (sums, row) in tile.chunks_exact_mut(n).zip(&a) {
            for (a, column) in row.iter().zip(operands.b.chunks_exact(n)) {
                for (sum, b) in sums.iter_mut().zip(column) {
                    *sum += a * b;
                }
            }
        }
        self.write(ctx, &tile);
        Ok(())
    }

    /// The operands in shared memory, read once for the warpgroup.
    fn operands(&self, ctx: &mut Lanes<'_>, number: u64) -> Outcome<Arc<Operands>> {
        let descriptors = match &self.a {
            OperandA::Shared(a) => (Some(a.bits), self.b.bits),
            OperandA::Registers(_) => (None, self.b.bits),
        };
        let group_operands = &mut group(ctx)?.operands;
        let Some((operands, users)) = group_operands.get_mut(&number) else {
            let operands = Arc::new(self.read(ctx, descriptors)?);
            group(ctx)?.operands.insert(number, (Arc::clone(&operands), 1));
            return Ok(operands);
        };
        if operands.descriptors != descriptors {
            return Err(Fault::warp("wgmma descriptors differ between the warps of a warpgroup"));
        }
        *users += 1;
        let (operands, last) = (Arc::clone(operands), *users == 4);
        if last {
            group_operands.remove(&number);
        }
        Ok(operands)
    }

    fn read(&self, ctx: &mut Lanes<'_>, descriptors: (Option<u64>, u64)) -> Outcome<Operands> {
        let Shape { n, format, signs: [_, sign_b], .. } = self.shape;
        let a = match &self.a {
            OperandA::Registers(_) => None,
            OperandA::Shared(descriptor) => {
                let mut rows = vec![[0.0; 16]; 64];
                descriptor.read(ctx, 64, |row, k, bits| rows[row][k] = format.widen(bits))?;
                Some(rows)
            }
        };
        let mut b = vec![0.0; 16 * n];
        let put = |row: usize, k: usize, bits| b[k * n + row] = sign_b * format.widen(bits);
        self.b.read(ctx, n as u32, put)?;
        Ok(Operands { descriptors, a, b })
    }

    /// Row and column of value `i` of a lane's accumulators.
    fn place(lane: usize, i: usize) -> (usize, usize) {
        ((lane >> 2) + (i >> 1 & 1) * 8, (i >> 2) * 8 + (lane & 3) * 2 + (i & 1))
    }

    fn accumulators(&self, ctx: &Lanes<'_>) -> Vec<f32> {
        let n = self.shape.n;
        let mut tile = vec![0.0; 16 * n];
        for (i, reg) in self.dst.iter().enumerate() {
            let values = ctx.warp.registers.read::<u32>(Source::Reg(*reg));
            for (lane, bits) in values.into_iter().enumerate() {
                if self.shape.half_result {
                    for part in 0..2 {
                        let (row, col) = Product::place(lane, 2 * i + part);
                        tile[row * n + col] = Half::F16.widen((bits >> (16 * part)) as u16);
                    }
                } else {
                    let (row, col) = Product::place(lane, i);
                    tile[row * n + col] = f32::from_bits(bits);
                }
            }
        }
        tile
    }

    fn write(&self, ctx: &mut Lanes<'_>, tile: &[f32]) {
        let n = self.shape.n;
        let at = |lane, i| {
            let (row, col) = Product::place(lane, i);
            tile[row * n + col]
        };
        for (i, reg) in self.dst.iter().enumerate() {
            let values: [u32; LANES] = std::array::from_fn(|lane| {
                if !self.shape.half_result {
                    return at(lane, i).to_bits();
                }
                let half = |part| u32::from(f16::from_f32(at(lane, 2 * i + part)).to_bits());
                half(1) << 16 | half(0)
            });
            ctx.warp.registers.write(*reg, FULL, values);
        }
    }
}

fn multiply(d: &mut Decoder<'_>) -> Result<Effect, String> {
    if !d.take("mma_async") {
        return Err("form is not supported".into());
    }
    let shape = d.take_prefixed("m64n").ok_or("no shape")?;
    let n: usize = shape
        .strip_suffix("k16")
        .and_then(|n| n.parse().ok())
        .filter(|n| (8..=256).contains(n) && n % 8 == 0)
        .ok_or("the shape must be m64n(8..256)k16")?;
    let (result, a_type, b_type) = (d.ty()?, d.ty()?, d.ty()?);
    let half_result = match result {
        Type::F32 => false,
        Type::F16 => true,
        other => return Err(format!("type {other:?}")),
    };
    if a_type != b_type {
        return Err("mixed types are not supported".into());
    }
    let dst: Arc<[Reg]> = d.registers(0)?.into();
    let values = n / 2 / if half_result { 2 } else { 1 };
    if dst.len() != values {
        return Err(format!("{} registers for {values} values", dst.len()));
    }
    let from_registers = match d.operand(1)? {
        Operand::Vector(items) => Some(items.iter().map(value).collect::<Result<Vec<_>, _>>()?),
        _ => None,
    };
    let a = if from_registers.is_none() { Some(d.source(1)?) } else { None };
    let (b, adds) = (d.source(2)?, d.source(3)?);
    let sign = |i| match d.immediate(i)? as i64 {
        1 => Ok(1.0),
        -1 => Ok(-1.0),
        other => Err(format!("scale {other}")),
    };
    let signs = [sign(4)?, sign(5)?];
    let flag = |i: usize| if i < d.operands() { d.immediate(i).map(|v| v != 0) } else { Ok(false) };
    let (transpose_a, transpose_b) = match from_registers {
        None => (flag(6)?, flag(7)?),
        Some(_) => (false, flag(6)?),
    };
    let shape = Shape { n, format: Half::of(a_type)?, half_result, signs };
    Ok(Box::new(move |ctx, _| {
        let regs = &ctx.warp.registers;
        let descriptor = |source, transposed| {
            let bits = uniform(regs.read::<u64>(source), "wgmma descriptor")?;
            Descriptor::new(bits, transposed).map_err(Fault::warp)
        };
        let b = descriptor(b, transpose_b)?;
        let a = match (&from_registers, a) {
            (Some(sources), _) => {
                let fragments: Vec<_> = sources.iter().map(|s| regs.read::<u32>(*s)).collect();
                OperandA::Registers(Box::new(gather_a(&fragments, shape.format)))
            }
            (None, Some(source)) => OperandA::Shared(descriptor(source, transpose_a)?),
            (None, None) => return Err(Fault::warp("wgmma without an A operand")),
        };
        let adds = super::compute::pred_lanes(regs, adds) == FULL;
        if !ctx.warp.products.fenced {
            return Err(Fault::warp("wgmma without a wgmma.fence since its registers were free"));
        }
        let warp = ctx.warp.index % 4;
        group(ctx)?.issued[warp] += 1;
        ctx.warp.products.products.push(Product { dst: dst.clone(), a, b, shape, adds });
        ctx.warp.products.issued += 1;
        Ok(())
    }))
}
