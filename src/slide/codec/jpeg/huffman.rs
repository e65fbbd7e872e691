//! Huffman codes and the coefficients of one block (T.81, annexes C and F).

use super::tables::ZIGZAG;

/// Bits of the first lookup; nearly all codes of a picture are shorter.
const LOOKUP: u32 = 10;

/// A Huffman code ready for decoding.
///
/// What a code says is packed into 32 bits: the length of the code and of the value that follows
/// it in bits 0 to 4, the length of the value in bits 5 to 8, the run of zeros in bits 9 to 12.
/// Where the lookup holds the value, too, it is in bits 16 to 31; a value that is sent is not 0.
#[derive(Clone)]
pub struct Huffman {
    /// By the next bits; 0 where the code is longer than the lookup, or none.
    short: [i32; 1 << LOOKUP],
    /// For each longer length, where codes of up to that length end, aligned to 16 bits.
    ends: [u32; 17],
    /// For each longer length, what to add to a code to get the place of its symbol.
    offsets: [i32; 17],
    symbols: [u8; 256],
    /// The largest symbol: as a DC difference, its size in bits.
    pub max_symbol: u8,
}

impl std::fmt::Debug for Huffman {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Huffman")
    }
}

const fn pack(length: u32, symbol: u8) -> i32 {
    let (run, size) = ((symbol >> 4) as i32, (symbol & 15) as i32);
    (length as i32 + size) | size << 5 | run << 9
}

/// Length of code and value, length of the value, run.
#[inline(always)]
const fn unpack(found: i32) -> (u32, u32, usize) {
    (found as u32 & 31, found as u32 >> 5 & 15, found as usize >> 9 & 15)
}

/// The value of `size` (1 to 15) bits at the top of `bits` (T.81, F.2.2.1).
#[inline(always)]
const fn value(bits: u64, size: u32) -> i32 {
    let low = (bits >> (64 - size)) as i32;
    // A leading 0 bit marks a negative value.
    let negative = !((bits as i64) >> 63) as i32;
    low + (negative & ((-1 << size) + 1))
}

impl Huffman {
    /// `counts` must make a prefix code of `symbols.len()` codes.
    pub fn new(counts: &[u8; 16], symbols: &[u8]) -> Huffman {
        let mut table = Huffman {
            short: [0; 1 << LOOKUP],
            ends: [0; 17],
            offsets: [0; 17],
            symbols: [0; 256],
            max_symbol: symbols.iter().copied().max().unwrap_or(0),
        };
        table.symbols[..symbols.len()].copy_from_slice(symbols);
        let (mut code, mut place) = (0u32, 0usize);
        for (length, &count) in (1u32..).zip(counts) {
            code <<= 1;
            table.offsets[length as usize] = place as i32 - code as i32;
            for &symbol in &symbols[place..place + usize::from(count)] {
                if length <= LOOKUP {
                    let free = LOOKUP - length;
                    let from = (code << free) as usize;
                    table.short[from..from + (1 << free)].fill(pack(length, symbol));
                }
                code += 1;
            }
            place += usize::from(count);
            table.ends[length as usize] = code << (16 - length);
        }
        for (next, found) in (0u64..).zip(&mut table.short) {
            let (total, size, _) = unpack(*found);
            if size > 0 && total <= LOOKUP {
                *found |= value(next << (64 - LOOKUP + total - size), size) << 16;
            }
        }
        table
    }

    /// What the next bits say; 0 if they need a longer look.
    #[inline(always)]
    fn look(&self, bits: u64) -> i32 {
        self.short[(bits >> (64 - LOOKUP)) as usize]
    }

    /// What a code longer than the lookup says, without its value; 0 if it is no code.
    #[cold]
    fn find_long(&self, bits: u64) -> i32 {
        let code = (bits >> 48) as u32;
        for length in LOOKUP + 1..=16 {
            if code < self.ends[length as usize] {
                let place = (code >> (16 - length)) as i32 + self.offsets[length as usize];
                return pack(length, self.symbols[place as usize & 255]);
            }
        }
        0
    }
}

/// Bits of one part of a scan, which must be followed by a guard of 1-bits.
#[derive(Clone, Debug)]
pub struct Bits<'a> {
    data: &'a [u8],
    position: usize,
    /// The next bits, from the top.
    bits: u64,
    /// How many of them are spoken for; those below repeat bytes that will be read again.
    count: u32,
}

impl<'a> Bits<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Bits { data, position: 0, bits: 0, count: 0 }
    }

    /// Bits taken so far.
    pub fn taken(&self) -> usize {
        self.position * 8 - self.count as usize
    }

    /// Makes at least 32 bits available, one code and its value (16 + 15).
    #[inline(always)]
    fn fill(&mut self) {
        if self.count < 32 {
            let next = self.data.get(self.position..).and_then(|rest| rest.first_chunk());
            self.bits |= next.map_or(u64::MAX, |next| u64::from_be_bytes(*next)) >> self.count;
            self.position += (63 - self.count as usize) >> 3;
            self.count |= 56;
        }
    }

    #[inline(always)]
    fn skip(&mut self, n: u32) {
        self.bits <<= n;
        self.count -= n;
    }

    /// Decodes one block of zeros to its coefficients, row by row. Returns the place of the last
    /// one in the order of the stream, or `None` at a code that does not exist or a run past the
    /// end of the block.
    #[inline(always)]
    pub fn block(
        &mut self,
        dc: &Huffman,
        ac: &Huffman,
        predicted: &mut i32,
        block: &mut [i16; 64],
    ) -> Option<u8> {
        self.fill();
        let mut found = dc.look(self.bits);
        if found == 0 {
            found = dc.find_long(self.bits);
        }
        let (total, size, _) = unpack(found);
        if total == 0 {
            return None;
        }
        if size > 0 {
            let difference = value(self.bits << (total - size), size);
            *predicted = predicted.wrapping_add(difference);
        }
        self.skip(total);
        block[0] = *predicted as i16;
        let (mut k, mut last) = (1, 0);
        while k < 64 {
            self.fill();
            let mut found = ac.look(self.bits);
            let mut sent = found >> 16;
            if sent == 0 {
                if found == 0 {
                    found = ac.find_long(self.bits);
                }
                let (total, size, run) = unpack(found);
                if size == 0 {
                    if total == 0 {
                        return None;
                    }
                    self.skip(total);
                    if run < 15 {
                        return Some(last);
                    }
                    k += 16;
                    continue;
                }
                sent = value(self.bits << (total - size), size);
            }
            let (total, _, run) = unpack(found);
            self.skip(total);
            k += run;
            block[usize::from(ZIGZAG[k & 127] & 63)] = sent as i16;
            last = k as u8;
            k += 1;
        }
        (k == 64).then_some(last)
    }
}
