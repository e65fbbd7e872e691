//! Tile registers for processors that have none: a handler of SIGILL that decodes the instructions of AMX-TILE
//! and AMX-BF16 and carries them out as Intel's SDM (volume 2) defines them. What the manual forbids ends the
//! process with a message.

use libc::{c_int, c_void, siginfo_t, ucontext_t};
use std::cell::UnsafeCell;

/// The registers of a thread.
struct Tiles {
    is_configured: bool,
    rows: [u8; 8],
    row_bytes: [u16; 8],
    data: [[[u8; 64]; 16]; 8],
}

thread_local! {
    static TILES: UnsafeCell<Tiles> = const {
        UnsafeCell::new(Tiles {
            is_configured: false,
            rows: [0; 8],
            row_bytes: [0; 8],
            data: [[[0; 64]; 16]; 8],
        })
    };
}

/// Installs the handler for the whole process.
pub fn install() {
    // SAFETY: a handler of the right type; it touches nothing but the registers of its thread and what the
    // instructions address.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
    }
}

/// Ends the process: a handler may do no more.
fn refuse(why: &str) -> ! {
    let text = ["AMX: ", why, "\n"].concat();
    // SAFETY: writes bytes that are there.
    unsafe {
        libc::write(2, text.as_ptr().cast(), text.len());
        libc::abort()
    }
}

extern "C" fn handle(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives the state of this thread, and the bytes at its instruction pointer are code.
    unsafe {
        let state = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
        let code = state[libc::REG_RIP as usize] as *const u8;
        let length = TILES.with(|tiles| execute(&mut *tiles.get(), code, state));
        state[libc::REG_RIP as usize] += length as i64;
    }
}

/// Carries out one instruction and returns its length.
unsafe fn execute(tiles: &mut Tiles, code: *const u8, state: &[i64; 23]) -> usize {
    // SAFETY: the caller's.
    let byte = |i: usize| unsafe { *code.add(i) };
    // VEX.128.0F38.W0, three bytes, then the opcode and ModRM.
    if byte(0) != 0xc4 || byte(1) & 0x1f != 2 || byte(2) & 0x84 != 0 {
        refuse("an illegal instruction that is none of its own");
    }
    let (prefix, opcode, modrm) = (byte(2) & 3, byte(3), byte(4));
    let (is_register, reg, rm) = (modrm >> 6 == 3, (modrm >> 3 & 7) as usize, (modrm & 7) as usize);
    let third = (!(byte(2) >> 3) & 15) as usize;
    const NONE: u8 = 0;
    const P66: u8 = 1;
    const PF3: u8 = 2;
    const PF2: u8 = 3;
    if (prefix, opcode) == (NONE, 0x49) && !is_register {
        // SAFETY: the caller's.
        let (address, _, length) = unsafe { address(code, state) };
        // SAFETY: the instruction reads 64 bytes from there.
        tiles.configure(unsafe { &*(address as *const [u8; 64]) });
        return length;
    }
    if (prefix, opcode, modrm) == (NONE, 0x49, 0xc0) {
        tiles.is_configured = false;
        return 5;
    }
    if !tiles.is_configured {
        refuse("tiles are not configured");
    }
    match (prefix, opcode, is_register) {
        (PF2, 0x49, true) if rm == 0 => {
            tiles.data[reg] = [[0; 64]; 16];
            5
        }
        // TILELOADD, TILELOADDT1, TILESTORED; always with an index register, the stride.
        (PF2 | P66 | PF3, 0x4b, false) if rm == 4 => {
            // SAFETY: the caller's.
            let (address, stride, length) = unsafe { address(code, state) };
            let (rows, bytes) = (tiles.rows[reg] as usize, tiles.row_bytes[reg] as usize);
            if prefix != PF3 {
                tiles.data[reg] = [[0; 64]; 16];
            }
            for (i, row) in tiles.data[reg][..rows].iter_mut().enumerate() {
                let there = (address + i as i64 * stride) as *mut u8;
                // SAFETY: the instruction reads or writes these bytes.
                unsafe {
                    match prefix {
                        PF3 => there.copy_from_nonoverlapping(row.as_ptr(), bytes),
                        _ => row.as_mut_ptr().copy_from_nonoverlapping(there, bytes),
                    }
                }
            }
            length
        }
        (PF3, 0x5c, true) => {
            // SAFETY: who asks for tiles has these, too.
            unsafe { tiles.multiply([reg, rm, third]) };
            5
        }
        _ => refuse("an instruction it does not have"),
    }
}

/// Address and stride of the memory operand, and the length of the instruction.
unsafe fn address(code: *const u8, state: &[i64; 23]) -> (i64, i64, usize) {
    use libc::*;
    // In the order in which instructions number them.
    const REGISTERS: [c_int; 16] = [
        REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9,
        REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
    ];
    // SAFETY: the caller's.
    let byte = |i: usize| unsafe { *code.add(i) };
    let register = |low: u8, high: u8| state[REGISTERS[(low | high << 3) as usize] as usize];
    let (index_high, base_high) = (!byte(1) >> 6 & 1, !byte(1) >> 5 & 1);
    let (mode, rm) = (byte(4) >> 6, byte(4) & 7);
    let (mut base, mut stride, mut at) = (rm, 0, 5);
    if rm == 4 {
        let sib = byte(5);
        let index = sib >> 3 & 7;
        base = sib & 7;
        if index | index_high << 3 != 4 {
            stride = register(index, index_high) << (sib >> 6);
        }
        at = 6;
    }
    if mode == 0 && base == 5 {
        refuse("an address without a base");
    }
    let (displacement, length) = match mode {
        0 => (0, at),
        1 => (i64::from(byte(at) as i8), at + 1),
        _ => {
            let bytes = [byte(at), byte(at + 1), byte(at + 2), byte(at + 3)];
            (i64::from(i32::from_le_bytes(bytes)), at + 4)
        }
    };
    (register(base, base_high) + displacement, stride, length)
}

impl Tiles {
    fn configure(&mut self, bytes: &[u8; 64]) {
        let (row_bytes, rows) = (&bytes[16..48], &bytes[48..64]);
        let wide = |i: usize| u16::from_le_bytes([row_bytes[2 * i], row_bytes[2 * i + 1]]);
        let reserved = bytes[2..16].iter().chain(&row_bytes[16..]).chain(&rows[8..]);
        if bytes[0] != 1 || bytes[1] != 0 || reserved.clone().any(|&b| b != 0) {
            refuse("LDTILECFG of a palette it does not have or of reserved bytes");
        }
        for (i, &rows) in rows[..8].iter().enumerate() {
            if rows > 16 || wide(i) > 64 || (rows == 0) != (wide(i) == 0) {
                refuse("LDTILECFG of a tile that is too large");
            }
            (self.rows[i], self.row_bytes[i]) = (rows, wide(i));
        }
        self.data = [[[0; 64]; 16]; 8];
        self.is_configured = true;
    }

    /// TDPBF16PS; fused multiply-adds are no calls, so that networks take seconds.
    #[target_feature(enable = "avx512f,avx2,fma")]
    fn multiply(&mut self, [c, a, b]: [usize; 3]) {
        if c == a || c == b || a == b || [c, a, b].iter().any(|&t| t > 7) {
            refuse("TDPBF16PS of a register twice");
        }
        let (rows, columns) = (self.rows[c] as usize, self.row_bytes[c] as usize / 4);
        let pairs = self.row_bytes[a] as usize / 4;
        if self.rows[a] as usize != rows
            || self.rows[b] as usize != pairs
            || self.row_bytes[b] as usize / 4 != columns
        {
            refuse("TDPBF16PS of tiles that do not fit");
        }
        let pair = |bytes: &[u8; 64], i: usize| -> [f32; 2] {
            [0, 2].map(|e| {
                let bits = u16::from_le_bytes([bytes[4 * i + e], bytes[4 * i + e + 1]]);
                flushed(f32::from_bits(u32::from(bits) << 16))
            })
        };
        let (x, w) = (self.data[a], self.data[b]);
        let wide: [[[f32; 2]; 16]; 16] = w.map(|row| std::array::from_fn(|j| pair(&row, j)));
        for (x, sums) in x.iter().zip(&mut self.data[c]).take(rows) {
            let mut partial = [[0f32; 2]; 16];
            for (p, w) in wide[..pairs].iter().enumerate() {
                let x = pair(x, p);
                for (partial, w) in partial.as_flattened_mut().chunks_exact_mut(2).zip(w) {
                    partial[0] = flushed(x[0].mul_add(w[0], partial[0]));
                    partial[1] = flushed(x[1].mul_add(w[1], partial[1]));
                }
            }
            for (sum, [even, odd]) in sums.as_chunks_mut::<4>().0.iter_mut().zip(partial) {
                let total = flushed(f32::from_le_bytes(*sum)) + flushed(even + odd);
                *sum = flushed(total).to_le_bytes();
            }
        }
    }
}

/// What is left of a number where those below the smallest normal one are taken for 0.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}
