//! Shared memory of a block and the checks on it: never-written bytes, copies that were not waited
//! for, and races.
//!
//! Races are found with vector clocks, so the order in which warps happen to run does not matter.
//! An *agent* is a warp of the cluster, or the asynchronous engine on behalf of one. Every agent has a
//! clock that advances at each of its synchronisations; `seen[w][v]` is the newest clock of agent
//! `v` that is ordered before what warp `w` does now. An access is a race if a conflicting earlier
//! one is newer than that. Inside a warp, lanes are ordered by `bar.warp.sync` only.
//!
//! What threads write is visible to the asynchronous proxy (bulk copies, `wgmma`) only after a
//! `fence.proxy.async`: `fenced[w][v]` is the newest clock of `v` that such a fence, in `v` or on the
//! way to `w`, has covered.

/// Clocks of all agents of a cluster.
pub struct Clocks {
    warps: usize,
    now: Vec<u32>,
    seen: Vec<Vec<u32>>,
    fenced: Vec<Vec<u32>>,
}

/// What a synchronisation carries from one agent to another: seen, then fenced clocks.
pub type Snapshot = Vec<u32>;

impl Clocks {
    /// Clocks for `warps` warps that start above `base`: everything stamped up to `base` is past.
    pub fn new(warps: usize, base: u32) -> Clocks {
        let past = vec![vec![base; 2 * warps]; warps];
        Clocks { warps, now: vec![base + 1; 2 * warps], seen: past.clone(), fenced: past }
    }

    /// Newest clock in use.
    pub fn latest(&self) -> u32 {
        self.now.iter().copied().max().unwrap_or(0)
    }

    /// Orders the lanes of a warp among themselves.
    pub fn sync_warp(&mut self, warp: usize) {
        self.seen[warp][warp] = self.now[warp];
        self.now[warp] += 1;
    }

    /// Adds what a warp has done and seen to a snapshot.
    pub fn release(&mut self, warp: usize, into: &mut Snapshot) {
        into.resize(2 * self.now.len(), 0);
        for (slot, known) in into.iter_mut().zip(self.seen[warp].iter().chain(&self.fenced[warp])) {
            *slot = (*slot).max(*known);
        }
        into[warp] = into[warp].max(self.now[warp]);
        self.now[warp] += 1;
    }

    /// Adds what the asynchronous engine of a warp has done to a snapshot.
    pub fn release_engine(&mut self, warp: usize, into: &mut Snapshot) {
        into.resize(2 * self.now.len(), 0);
        let engine = self.warps + warp;
        into[engine] = into[engine].max(self.now[engine]);
        self.now[engine] += 1;
    }

    /// Orders everything in a snapshot before what the warp does next.
    pub fn acquire(&mut self, warp: usize, from: &Snapshot) {
        let known = self.seen[warp].iter_mut().chain(&mut self.fenced[warp]);
        for (known, slot) in known.zip(from) {
            *known = (*known).max(*slot);
        }
    }

    /// `fence.proxy.async`: what the warp has done and seen is visible to the asynchronous proxy.
    pub fn fence(&mut self, warp: usize) {
        self.fenced[warp].copy_from_slice(&self.seen[warp]);
        self.fenced[warp][warp] = self.now[warp];
        self.now[warp] += 1;
    }

    /// Closes a group of bulk copies and returns its mark.
    pub fn commit_engine(&mut self, warp: usize) -> u32 {
        self.now[self.warps + warp] += 1;
        self.now[self.warps + warp] - 1
    }

    /// Orders the bulk copies up to a mark before what the warp does next.
    pub fn wait_engine(&mut self, warp: usize, mark: u32) {
        let seen = &mut self.seen[warp][self.warps + warp];
        *seen = (*seen).max(mark);
    }

    /// Whether everything warp `other` had done when a snapshot of it was taken at `clock` is
    /// ordered before `warp`'s present.
    pub fn is_ordered(&self, warp: usize, other: usize, clock: u32) -> bool {
        warp == other || clock <= self.seen[warp][other]
    }

    /// An agent's own clock.
    pub fn now(&self, agent: usize) -> u32 {
        self.now[agent]
    }
}

/// Who accesses shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accessor {
    /// Warp in the cluster, counted over its blocks.
    pub warp: usize,
    /// Lane in the warp.
    pub lane: usize,
    /// How it gets there.
    pub via: Via,
}

/// Ways into shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// An instruction of the thread.
    Thread,
    /// `wgmma`: the asynchronous proxy, in the order of the warp that waits for it.
    Product,
    /// A bulk copy: the asynchronous proxy, in an order of its own.
    Engine,
}

impl Accessor {
    /// Number of the agent that the access counts as.
    pub fn agent(self, clocks: &Clocks) -> usize {
        if self.via == Via::Engine { clocks.warps + self.warp } else { self.warp }
    }
}

/// State of a byte.
const NEVER: u8 = 0;
const VALID: u8 = 1;
const PENDING: u8 = 2;

/// Lane number of a record that stands for several lanes.
const SEVERAL: u8 = 63;

/// Shared memory of one block.
pub struct Shared {
    bytes: Vec<u8>,
    state: Vec<u8>,
    /// The last write of each word.
    writes: Vec<Access>,
    /// The last read of each word by each agent, agent after agent.
    reads: Vec<Access>,
    /// Some bulk copy has read.
    engine_reads: bool,
    words: usize,
    check_races: bool,
}

/// The last access of some kind to a word.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Access {
    clock: u32,
    agent: u16,
    lane: u8,
    /// Bytes of the word that it touched. Those that an older access touched alone are forgotten.
    mask: u8,
}

impl Access {
    /// Takes in another access. Those of one lane at one time add up; where several lanes touched
    /// the same bytes, these are kept as theirs; otherwise the new one is all that is remembered.
    fn join(&mut self, new: Access) {
        let together = (self.clock, self.agent) == (new.clock, new.agent);
        *self = match (together, self.lane == new.lane, self.mask & new.mask) {
            (true, true, _) => Access { mask: self.mask | new.mask, ..new },
            (true, false, common) if common != 0 => Access { lane: SEVERAL, mask: common, ..new },
            _ => new,
        };
    }

    /// Whether it is not ordered before what `who` does to the bytes of `mask` now.
    #[inline]
    fn conflicts(&self, clocks: &Clocks, who: Accessor, mask: u8) -> bool {
        self.clock > clocks.seen[who.warp][usize::from(self.agent)]
            && self.mask & mask != 0
            && !(usize::from(self.agent) == who.warp && usize::from(self.lane) == who.lane)
    }
}

impl Shared {
    /// Memory for blocks of a kernel; `warps` counts those of the cluster.
    pub fn new(size: usize, warps: usize, check_races: bool) -> Shared {
        let words = size.div_ceil(4);
        let tracked = if check_races { words } else { 0 };
        Shared {
            bytes: vec![0xff; words * 4],
            state: vec![NEVER; words * 4],
            writes: vec![Access::default(); tracked],
            reads: vec![Access::default(); tracked * warps * 2],
            engine_reads: false,
            words: tracked,
            check_races,
        }
    }

    /// Forgets the contents for the next block; `restart` also forgets all stamps.
    pub fn reset(&mut self, restart: bool) {
        self.bytes.fill(0xff);
        self.state.fill(NEVER);
        if restart {
            self.writes.fill(Access::default());
            self.reads.fill(Access::default());
        }
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    fn range(
        &self,
        address: u32,
        size: usize,
        align: usize,
    ) -> Result<std::ops::Range<usize>, String> {
        let at = address as usize;
        if at + size > self.bytes.len() {
            let have = self.bytes.len();
            return Err(format!("{size} bytes at shared address {at} of {have} bytes"));
        }
        if !at.is_multiple_of(align) {
            return Err(format!("shared address {at} is not a multiple of {align}"));
        }
        Ok(at..at + size)
    }

    /// Reads `size` bytes.
    pub fn read(
        &mut self,
        clocks: &Clocks,
        who: Accessor,
        address: u32,
        size: usize,
    ) -> Result<&[u8], String> {
        let range = self.range(address, size, size)?;
        if !self.state[range.clone()].iter().all(|s| *s == VALID) {
            return Err(self.unreadable(address, &self.state[range]));
        }
        if self.check_races {
            self.race_read(clocks, who, &range)?;
        }
        Ok(&self.bytes[range])
    }

    fn unreadable(&self, address: u32, state: &[u8]) -> String {
        match state.contains(&PENDING) {
            true => format!("shared address {address}: cp.async has not been waited for"),
            false => format!("shared address {address}: read, but never written"),
        }
    }

    /// Writes bytes.
    pub fn write(
        &mut self,
        clocks: &Clocks,
        who: Accessor,
        address: u32,
        bytes: &[u8],
    ) -> Result<(), String> {
        let range = self.range(address, bytes.len(), bytes.len().min(16))?;
        if self.state[range.clone()].contains(&PENDING) {
            return Err(format!("shared address {address}: a cp.async to it is still in flight"));
        }
        if self.check_races {
            let same = self.bytes[range.clone()] == *bytes;
            self.race_write(clocks, who, &range, same)?;
        }
        self.bytes[range.clone()].copy_from_slice(bytes);
        self.state[range].fill(VALID);
        Ok(())
    }

    /// Replaces a value and returns the old one. Atomics do not race with one another; one that
    /// meets a plain write that is not ordered before it does.
    pub fn atomic(
        &mut self,
        clocks: &Clocks,
        who: Accessor,
        address: u32,
        size: usize,
        change: impl FnOnce(u64) -> u64,
    ) -> Result<u64, String> {
        let range = self.range(address, size, size)?;
        if !self.state[range.clone()].iter().all(|s| *s == VALID) {
            return Err(self.unreadable(address, &self.state[range]));
        }
        for word in range.start / 4..(range.end.div_ceil(4)).min(self.words) {
            let written = self.writes[word];
            if written.conflicts(clocks, who, byte_mask(word, &range)) {
                return Err(race(clocks, who, "atomically changes", word, &written, "written"));
            }
        }
        let mut old = [0; 8];
        old[..size].copy_from_slice(&self.bytes[range.clone()]);
        let old = u64::from_le_bytes(old);
        self.bytes[range].copy_from_slice(&change(old).to_le_bytes()[..size]);
        Ok(old)
    }

    /// A `cp.async` to this place has been issued.
    pub fn begin_copy(
        &mut self,
        clocks: &Clocks,
        who: Accessor,
        address: u32,
        size: usize,
    ) -> Result<(), String> {
        let range = self.range(address, size, size)?;
        if self.state[range.clone()].contains(&PENDING) {
            return Err(format!("shared address {address}: a cp.async to it is still in flight"));
        }
        if self.check_races {
            self.race_write(clocks, who, &range, false)?;
        }
        self.state[range].fill(PENDING);
        Ok(())
    }

    /// The bytes of a `cp.async` arrive.
    pub fn end_copy(
        &mut self,
        clocks: &Clocks,
        who: Accessor,
        address: u32,
        bytes: &[u8],
    ) -> Result<(), String> {
        let range = self.range(address, bytes.len(), 1)?;
        self.state[range].fill(VALID);
        self.write(clocks, who, address, bytes)
    }

    fn race_read(
        &mut self,
        clocks: &Clocks,
        who: Accessor,
        range: &std::ops::Range<usize>,
    ) -> Result<(), String> {
        let agent = who.agent(clocks);
        self.engine_reads |= who.via == Via::Engine;
        for word in range.start / 4..range.end.div_ceil(4) {
            let mask = byte_mask(word, range);
            let written = self.writes[word];
            if written.conflicts(clocks, who, mask) {
                return Err(race(clocks, who, "reads", word, &written, "written"));
            }
            let writer = usize::from(written.agent);
            let by_thread = writer < clocks.warps && written.mask & mask != 0;
            if who.via != Via::Thread
                && by_thread
                && written.clock > clocks.fenced[who.warp][writer]
            {
                return Err(race(clocks, who, "asynchronously reads", word, &written, "written"));
            }
            let clock = clocks.now[agent];
            let access = Access { clock, agent: agent as u16, lane: who.lane as u8, mask };
            self.reads[agent * self.words + word].join(access);
        }
        Ok(())
    }

    /// Writing the bytes that are there already conflicts with nothing.
    fn race_write(
        &mut self,
        clocks: &Clocks,
        who: Accessor,
        range: &std::ops::Range<usize>,
        same_bytes: bool,
    ) -> Result<(), String> {
        let agent = who.agent(clocks);
        let readers = if self.engine_reads { 2 * clocks.warps } else { clocks.warps };
        for word in range.start / 4..range.end.div_ceil(4) {
            let mask = byte_mask(word, range);
            if !same_bytes {
                let written = self.writes[word];
                if written.conflicts(clocks, who, mask) {
                    return Err(race(clocks, who, "writes", word, &written, "written"));
                }
                for reader in 0..readers {
                    let read = self.reads[reader * self.words + word];
                    if read.conflicts(clocks, who, mask) {
                        return Err(race(clocks, who, "writes", word, &read, "read"));
                    }
                }
            }
            let clock = clocks.now[agent];
            let access = Access { clock, agent: agent as u16, lane: who.lane as u8, mask };
            self.writes[word].join(access);
        }
        Ok(())
    }
}

/// Which bytes of a word a range touches.
fn byte_mask(word: usize, range: &std::ops::Range<usize>) -> u8 {
    let first = range.start.saturating_sub(word * 4).min(4);
    let last = (range.end - word * 4).min(4);
    (0xf << first) & (0xf >> (4 - last))
}

fn race(
    clocks: &Clocks,
    who: Accessor,
    does: &str,
    word: usize,
    other: &Access,
    was: &str,
) -> String {
    let agent = usize::from(other.agent);
    let by = match (agent >= clocks.warps, other.lane) {
        (true, _) => format!("by a bulk copy that warp {} issued", agent - clocks.warps),
        (false, SEVERAL) => format!("by several lanes of warp {agent}"),
        (false, lane) => format!("by lane {lane} of warp {agent}"),
    };
    let cure = if does.starts_with("async") {
        "fence.proxy.async"
    } else if agent == who.warp {
        "__syncwarp or barrier"
    } else {
        "barrier"
    };
    format!(
        "race: lane {} of warp {} {does} shared address {}, {was} {by}, with no {cure} in between",
        who.lane,
        who.warp,
        word * 4
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(warp: usize, lane: usize) -> Accessor {
        Accessor { warp, lane, via: Via::Thread }
    }

    fn block() -> (Shared, Clocks) {
        (Shared::new(64, 2, true), Clocks::new(2, 0))
    }

    fn barrier(clocks: &mut Clocks) {
        let mut snapshot = Vec::new();
        clocks.release(0, &mut snapshot);
        clocks.release(1, &mut snapshot);
        clocks.acquire(0, &snapshot);
        clocks.acquire(1, &snapshot);
    }

    #[test]
    fn a_barrier_orders_write_and_read() {
        let (mut shared, mut clocks) = block();
        shared.write(&clocks, thread(0, 3), 8, &[1; 4]).unwrap();
        assert!(shared.read(&clocks, thread(1, 0), 8, 4).unwrap_err().contains("race"));
        barrier(&mut clocks);
        assert_eq!(shared.read(&clocks, thread(1, 0), 8, 4).unwrap(), [1; 4]);
        // The next write needs another barrier.
        assert!(shared.write(&clocks, thread(0, 3), 8, &[2; 4]).unwrap_err().contains("race"));
        barrier(&mut clocks);
        shared.write(&clocks, thread(0, 3), 8, &[2; 4]).unwrap();
    }

    #[test]
    fn lanes_of_a_warp_need_a_warp_barrier() {
        let (mut shared, mut clocks) = block();
        shared.write(&clocks, thread(0, 3), 8, &[1; 4]).unwrap();
        shared.read(&clocks, thread(0, 3), 8, 4).unwrap();
        assert!(shared.read(&clocks, thread(0, 4), 8, 4).unwrap_err().contains("__syncwarp"));
        clocks.sync_warp(0);
        shared.read(&clocks, thread(0, 4), 8, 4).unwrap();
    }

    #[test]
    fn neighbouring_bytes_are_no_conflict() {
        let (mut shared, clocks) = block();
        shared.write(&clocks, thread(0, 0), 8, &[1; 2]).unwrap();
        shared.write(&clocks, thread(1, 0), 10, &[2; 2]).unwrap();
        assert!(shared.write(&clocks, thread(1, 0), 11, &[3]).is_ok());
        assert!(shared.write(&clocks, thread(0, 0), 10, &[3; 2]).is_err());
        // Halves of a word, each a lane's own.
        for lane in [0, 1] {
            shared.write(&clocks, thread(0, lane), 16 + 2 * lane as u32, &[1; 2]).unwrap();
        }
        for lane in [0, 1] {
            shared.read(&clocks, thread(0, lane), 16 + 2 * lane as u32, 2).unwrap();
        }
        shared.write(&clocks, thread(0, 0), 16, &[4; 2]).unwrap();
        // A byte that two lanes have read is neither's to write.
        shared.write(&clocks, thread(0, 7), 20, &[1; 2]).unwrap();
        shared.read(&clocks, thread(0, 7), 20, 2).unwrap();
        assert!(shared.read(&clocks, thread(0, 8), 20, 1).is_err());
    }

    #[test]
    fn state_of_bytes() {
        let (mut shared, clocks) = block();
        let who = thread(0, 0);
        assert!(shared.read(&clocks, who, 0, 4).unwrap_err().contains("never written"));
        shared.begin_copy(&clocks, who, 0, 16).unwrap();
        assert!(shared.read(&clocks, who, 0, 4).unwrap_err().contains("waited"));
        shared.end_copy(&clocks, who, 0, &[5; 16]).unwrap();
        assert_eq!(shared.read(&clocks, who, 0, 4).unwrap(), [5; 4]);
        assert!(shared.read(&clocks, who, 62, 4).unwrap_err().contains("of 64 bytes"));
        assert!(shared.read(&clocks, who, 2, 4).unwrap_err().contains("multiple of 4"));
    }

    #[test]
    fn engine_writes_are_ordered_by_their_barrier_only() {
        let (mut shared, mut clocks) = block();
        let engine = Accessor { warp: 0, lane: 0, via: Via::Engine };
        shared.write(&clocks, engine, 16, &[1; 16]).unwrap();
        assert!(shared.read(&clocks, thread(0, 0), 16, 4).unwrap_err().contains("bulk copy"));
        let mut snapshot = Vec::new();
        clocks.release_engine(0, &mut snapshot);
        clocks.acquire(1, &snapshot);
        shared.read(&clocks, thread(1, 0), 16, 4).unwrap();
        assert!(shared.read(&clocks, thread(0, 0), 16, 4).is_err());
    }

    #[test]
    fn asynchronous_reads_need_a_proxy_fence() {
        let (mut shared, mut clocks) = block();
        let engine = Accessor { via: Via::Engine, ..thread(1, 0) };
        let product = Accessor { via: Via::Product, ..thread(1, 0) };
        shared.write(&clocks, thread(0, 0), 0, &[1; 16]).unwrap();
        barrier(&mut clocks);
        for who in [engine, product] {
            let error = shared.read(&clocks, who, 0, 16).unwrap_err();
            assert!(error.contains("fence.proxy.async"), "{error}");
        }
        // The writer's fence counts once a barrier carries it on.
        clocks.fence(0);
        assert!(shared.read(&clocks, engine, 0, 16).is_err());
        barrier(&mut clocks);
        shared.read(&clocks, engine, 0, 16).unwrap();
        shared.read(&clocks, product, 0, 16).unwrap();
    }

    #[test]
    fn memory_that_a_bulk_copy_reads_is_free_after_its_group() {
        let (mut shared, mut clocks) = block();
        let engine = Accessor { via: Via::Engine, ..thread(0, 0) };
        shared.write(&clocks, thread(0, 0), 0, &[1; 16]).unwrap();
        clocks.fence(0);
        shared.read(&clocks, engine, 0, 16).unwrap();
        let mark = clocks.commit_engine(0);
        assert!(shared.write(&clocks, thread(0, 0), 0, &[2; 16]).unwrap_err().contains("race"));
        clocks.wait_engine(0, mark);
        shared.write(&clocks, thread(0, 0), 0, &[2; 16]).unwrap();
    }
}
