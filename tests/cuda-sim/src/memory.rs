//! Device memory: an address space of its own, in which every allocation stands alone.
//!
//! Addresses begin at [`BASE`], which is no address that a process can have, so a host pointer that is used as a
//! device pointer is found, and a device pointer that the host follows ends the process at once. Each allocation
//! has a slot of 4 GiB or more with unused addresses before and behind it, and no address is ever given twice:
//! reads and writes beside an allocation and after its end are found however far they are off.
//!
//! **Invariant.** A byte that nobody has written since the allocation is known to be such, and reads as poison.

use std::{
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
};

/// The first device address.
pub const BASE: u64 = 0x0100_0000_0000_0000;
/// What is read where nobody has written: as an f32 about -1e-9, as an index far outside of any table.
pub const POISON: u8 = 0xB0;

/// The addresses of a slot.
const SLOT_BITS: u32 = 32;
/// Unused addresses before an allocation: what lies a little before it is not the end of another one.
const LEAD: u64 = 1 << 20;
/// Slots that there are in all.
const MAX_SLOTS: usize = 1 << 22;
/// What the driver rounds sizes to.
const ROUNDING: u64 = 512;
/// Accesses are remembered in units of this many bytes.
const GRAIN: u64 = 4;
/// The most ranges that an operation's accesses to one allocation are told in; more are joined.
const MAX_RANGES: usize = 4096;

/// Why an access cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// No device memory is or was there.
    #[error("{address:#x} is no device address{}", if *.address < BASE { " (is it a host pointer?)" } else { "" })]
    Nowhere {
        /// The address.
        address: u64,
    },
    /// Beside an allocation.
    #[error(
        "{bytes} bytes at {address:#x} are not inside allocation {serial}, the {length} bytes at {start:#x}"
    )]
    Outside {
        /// First address of the access.
        address: u64,
        /// Its length.
        bytes: u64,
        /// Where the nearest allocation starts.
        start: u64,
        /// Its length.
        length: u64,
        /// Which one it is, counted from one.
        serial: u64,
    },
    /// Inside an allocation that has been freed.
    #[error(
        "{bytes} bytes at {address:#x} are in allocation {serial}, the {length} bytes at {start:#x} that have been freed"
    )]
    Freed {
        /// First address of the access.
        address: u64,
        /// Its length.
        bytes: u64,
        /// Where the allocation started.
        start: u64,
        /// Its length.
        length: u64,
        /// Which one it was, counted from one.
        serial: u64,
    },
    /// Nobody has written there.
    #[error(
        "the byte at {address:#x}, number {offset} of allocation {serial}, has not been written since the allocation"
    )]
    Unwritten {
        /// The first such byte.
        address: u64,
        /// Where it stands in its allocation.
        offset: u64,
        /// Which allocation it is.
        serial: u64,
    },
    /// The address is no multiple of the size.
    #[error("{address:#x} is no multiple of {bytes}, which the access needs")]
    Misaligned {
        /// The address.
        address: u64,
        /// Bytes of the access.
        bytes: u64,
    },
}

/// What the operations between two calls of [`Memory::take_touched`] read and wrote of one allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Touched {
    pub(crate) slot: u32,
    /// Offsets, in order, without overlap.
    pub(crate) reads: Vec<Range<u64>>,
    pub(crate) writes: Vec<Range<u64>>,
}

/// One bit per [`GRAIN`], and between which of them bits are set.
#[derive(Default)]
struct Marks {
    words: Box<[AtomicU64]>,
    low: AtomicU64,
    high: AtomicU64,
}

impl Marks {
    fn new(length: u64) -> Self {
        let words = (0..length.div_ceil(GRAIN * 64)).map(|_| AtomicU64::new(0)).collect();
        Self { words, low: AtomicU64::new(u64::MAX), high: AtomicU64::new(0) }
    }

    fn set(&self, offset: u64, bytes: u64) {
        let (first, last) = (offset / GRAIN, (offset + bytes - 1) / GRAIN);
        for word in first / 64..=last / 64 {
            let from = first.max(word * 64) - word * 64;
            let to = last.min(word * 64 + 63) - word * 64;
            let mask = (u64::MAX >> (63 - to)) & (u64::MAX << from);
            let word = &self.words[word as usize];
            if word.load(Relaxed) & mask != mask {
                word.fetch_or(mask, Relaxed);
            }
        }
        if self.low.load(Relaxed) > first {
            self.low.fetch_min(first, Relaxed);
        }
        if self.high.load(Relaxed) < last + 1 {
            self.high.fetch_max(last + 1, Relaxed);
        }
    }

    /// The ranges that are set, which are then cleared.
    fn take(&self, length: u64) -> Vec<Range<u64>> {
        let (low, high) = (self.low.swap(u64::MAX, Relaxed), self.high.swap(0, Relaxed));
        let mut ranges: Vec<Range<u64>> = Vec::new();
        if low >= high {
            return ranges;
        }
        for index in low / 64..=(high - 1) / 64 {
            let mut word = self.words[index as usize].swap(0, Relaxed);
            while word != 0 {
                let from = word.trailing_zeros();
                let ones = (!(word >> from)).trailing_zeros().min(64 - from);
                word &= if from + ones == 64 { 0 } else { u64::MAX << (from + ones) };
                let start = (index * 64 + u64::from(from)) * GRAIN;
                let end = (start + u64::from(ones) * GRAIN).min(length);
                match ranges.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => ranges.push(start..end),
                }
            }
        }
        let mut gap = 2 * GRAIN;
        while ranges.len() > MAX_RANGES {
            ranges.dedup_by(|next, before| {
                let near = next.start - before.end <= gap;
                if near {
                    before.end = next.end;
                }
                near
            });
            gap *= 2;
        }
        ranges
    }
}

/// One allocation.
pub(crate) struct Allocation {
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) serial: u64,
    pub(crate) context: u64,
    freed: bool,
    bytes: Box<[AtomicU8]>,
    /// A bit per byte: whether it has been written.
    written: Box<[AtomicU8]>,
    reads: Marks,
    writes: Marks,
    touched: AtomicBool,
}

impl Allocation {
    fn first_unwritten(&self, offset: u64, bytes: u64) -> Option<u64> {
        let mut at = offset;
        while at < offset + bytes {
            let word = self.written[(at / 8) as usize].load(Relaxed);
            if at.is_multiple_of(8) && word == 0xff {
                at += 8;
            } else if word & (1 << (at % 8)) == 0 {
                return Some(at);
            } else {
                at += 1;
            }
        }
        None
    }

    fn mark_written(&self, offset: u64, bytes: u64, written: bool) {
        let mut at = offset;
        while at < offset + bytes {
            let count = (8 - at % 8).min(offset + bytes - at);
            let mask = (0xff_u8 >> (8 - count)) << (at % 8);
            let word = &self.written[(at / 8) as usize];
            if written {
                if word.load(Relaxed) & mask != mask {
                    word.fetch_or(mask, Relaxed);
                }
            } else {
                word.fetch_and(!mask, Relaxed);
            }
            at += count;
        }
    }
}

/// Bytes with what is known of them: `written[i]` is false where `bytes[i]` is poison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    pub(crate) written: Vec<bool>,
}

/// All device memory. Kernels reach it from many threads, so what is read and written is atomic bytes.
#[derive(Default)]
pub(crate) struct Memory {
    /// A slot holds an allocation, or continues that of the slot before.
    slots: Vec<Option<Box<Allocation>>>,
    touched: Mutex<Vec<u32>>,
    /// Read-modify-write operations of kernels, one at a time.
    atomics: Mutex<()>,
    serial: u64,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// What an allocation of this length costs.
    pub(crate) fn rounded(length: u64) -> u64 {
        length.div_ceil(ROUNDING) * ROUNDING
    }

    /// Gives memory of poison; `None` when there are no addresses left.
    pub(crate) fn allocate(&mut self, length: u64, context: u64) -> Option<u64> {
        let slots = 1 + ((LEAD + length + LEAD) >> SLOT_BITS) as usize;
        if self.slots.len() + slots > MAX_SLOTS {
            return None;
        }
        let start = BASE + ((self.slots.len() as u64) << SLOT_BITS) + LEAD;
        self.serial += 1;
        let atoms = |count: u64, value: u8| (0..count).map(|_| AtomicU8::new(value)).collect();
        self.slots.push(Some(Box::new(Allocation {
            start,
            length,
            serial: self.serial,
            context,
            freed: false,
            bytes: atoms(length, POISON),
            written: atoms(length.div_ceil(8), 0),
            reads: Marks::new(length),
            writes: Marks::new(length),
            touched: AtomicBool::new(false),
        })));
        self.slots.extend((1..slots).map(|_| None));
        Some(start)
    }

    fn at(&self, address: u64) -> Result<(u32, &Allocation), Wrong> {
        let nowhere = || Wrong::Nowhere { address };
        let index = (address.checked_sub(BASE).ok_or_else(nowhere)? >> SLOT_BITS) as usize;
        // An allocation past 4 GiB has several slots, of which the first knows it.
        let first = (0..=index.min(self.slots.len().saturating_sub(1))).rev();
        if index >= self.slots.len() {
            return Err(nowhere());
        }
        for slot in first {
            if let Some(allocation) = &self.slots[slot] {
                return Ok((slot as u32, allocation));
            }
        }
        Err(nowhere())
    }

    /// The live allocation that holds these bytes, its slot, and where in it they start.
    fn find(&self, address: u64, bytes: u64) -> Result<(u32, &Allocation, u64), Wrong> {
        let (slot, allocation) = self.at(address)?;
        let Allocation { start, length, serial, freed, .. } = *allocation;
        let inside = address >= start && bytes <= length && address - start <= length - bytes;
        if !inside {
            return Err(Wrong::Outside { address, bytes, start, length, serial });
        }
        if freed {
            return Err(Wrong::Freed { address, bytes, start, length, serial });
        }
        Ok((slot, allocation, address - start))
    }

    /// Whether these bytes are inside one live allocation.
    pub(crate) fn check(&self, address: u64, bytes: u64) -> Result<(), Wrong> {
        self.find(address, bytes).map(|_| ())
    }

    /// The live allocation that starts at this address.
    pub(crate) fn allocation(&self, address: u64) -> Result<&Allocation, Wrong> {
        let (_, allocation, offset) = self.find(address, 0)?;
        if offset == 0 { Ok(allocation) } else { Err(Wrong::Nowhere { address }) }
    }

    /// The allocation of this slot, for words about it.
    pub(crate) fn in_slot(&self, slot: u32) -> Option<&Allocation> {
        self.slots.get(slot as usize)?.as_deref()
    }

    /// Ends an allocation and gives its length. Its addresses are never used again.
    pub(crate) fn free(&mut self, address: u64) -> Result<u64, Wrong> {
        let length = self.allocation(address)?.length;
        let (slot, _) = self.at(address)?;
        // A free is a write of everything, so that a free beside a use is a race.
        self.touch(slot, true, 0, length);
        if let Some(allocation) = &mut self.slots[slot as usize] {
            allocation.freed = true;
            allocation.bytes = Box::default();
            allocation.written = Box::default();
        }
        Ok(length)
    }

    /// The live allocations of a context.
    pub(crate) fn live(&self, context: u64) -> impl Iterator<Item = &Allocation> {
        self.slots.iter().flatten().map(|a| &**a).filter(move |a| !a.freed && a.context == context)
    }

    fn touch(&self, slot: u32, write: bool, offset: u64, bytes: u64) {
        let Some(allocation) = self.in_slot(slot) else { return };
        if bytes == 0 {
            return;
        }
        if !allocation.touched.swap(true, Relaxed) {
            held(&self.touched).push(slot);
        }
        if write { &allocation.writes } else { &allocation.reads }.set(offset, bytes);
    }

    fn mark(&self, slot: u32, allocation: &Allocation, write: bool, offset: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        if !allocation.touched.load(Relaxed) && !allocation.touched.swap(true, Relaxed) {
            held(&self.touched).push(slot);
        }
        if write { &allocation.writes } else { &allocation.reads }.set(offset, bytes);
    }

    /// What has been read and written since the last call.
    pub(crate) fn take_touched(&self) -> Vec<Touched> {
        let slots = std::mem::take(&mut *held(&self.touched));
        let mut found = Vec::with_capacity(slots.len());
        for slot in slots {
            let Some(allocation) = self.in_slot(slot) else { continue };
            allocation.touched.store(false, Relaxed);
            let reads = allocation.reads.take(allocation.length);
            let writes = allocation.writes.take(allocation.length);
            found.push(Touched { slot, reads, writes });
        }
        found
    }

    /// Reads bytes that must have been written.
    pub(crate) fn load(&self, address: u64, into: &mut [u8]) -> Result<(), Wrong> {
        let (slot, allocation, offset) = self.find(address, into.len() as u64)?;
        if let Some(at) = allocation.first_unwritten(offset, into.len() as u64) {
            let (address, serial) = (allocation.start + at, allocation.serial);
            return Err(Wrong::Unwritten { address, offset: at, serial });
        }
        self.mark(slot, allocation, false, offset, into.len() as u64);
        for (to, from) in into.iter_mut().zip(&allocation.bytes[offset as usize..]) {
            *to = from.load(Relaxed);
        }
        Ok(())
    }

    /// Writes bytes.
    pub(crate) fn store(&self, address: u64, from: &[u8]) -> Result<(), Wrong> {
        let (slot, allocation, offset) = self.find(address, from.len() as u64)?;
        self.mark(slot, allocation, true, offset, from.len() as u64);
        for (to, from) in allocation.bytes[offset as usize..].iter().zip(from) {
            to.store(*from, Relaxed);
        }
        allocation.mark_written(offset, from.len() as u64, true);
        Ok(())
    }

    /// Replaces the little-endian number of `bytes` bytes by what `change` makes of it, and gives the old one.
    pub(crate) fn atomic(
        &self,
        address: u64,
        bytes: usize,
        change: &mut dyn FnMut(u64) -> u64,
    ) -> Result<u64, Wrong> {
        if bytes == 0 || bytes > 8 || !address.is_multiple_of(bytes as u64) {
            return Err(Wrong::Misaligned { address, bytes: bytes as u64 });
        }
        let _alone = held(&self.atomics);
        let mut number = [0; 8];
        self.load(address, &mut number[..bytes])?;
        let old = u64::from_le_bytes(number);
        self.store(address, &change(old).to_le_bytes()[..bytes])?;
        Ok(old)
    }

    /// Reads bytes whether or not they have been written.
    pub(crate) fn content(&self, address: u64, bytes: u64) -> Result<Content, Wrong> {
        let (slot, allocation, offset) = self.find(address, bytes)?;
        self.mark(slot, allocation, false, offset, bytes);
        let from = &allocation.bytes[offset as usize..(offset + bytes) as usize];
        let written = (offset..offset + bytes)
            .map(|at| allocation.written[(at / 8) as usize].load(Relaxed) & (1 << (at % 8)) != 0)
            .collect();
        Ok(Content { bytes: from.iter().map(|b| b.load(Relaxed)).collect(), written })
    }

    /// Writes what [`Self::content`] read; what was not written there counts as not written here.
    pub(crate) fn set_content(&self, address: u64, content: &Content) -> Result<(), Wrong> {
        let length = content.bytes.len() as u64;
        self.store(address, &content.bytes)?;
        let (_, allocation, offset) = self.find(address, length)?;
        let mut at = 0;
        for run in content.written.chunk_by(|a, b| a == b) {
            if !run[0] {
                allocation.mark_written(offset + at, run.len() as u64, false);
            }
            at += run.len() as u64;
        }
        Ok(())
    }

    /// Makes bytes poison again, which counts as a write.
    pub(crate) fn spoil(&self, address: u64, bytes: u64) -> Result<(), Wrong> {
        let content = Content { bytes: vec![POISON; bytes as usize], written: vec![false; bytes as usize] };
        self.set_content(address, &content)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges may have one")]
mod tests {
    use super::*;

    #[test]
    fn what_is_beside_an_allocation_or_freed_is_found() {
        let mut memory = Memory::default();
        let (a, b) = (memory.allocate(100, 1).unwrap(), memory.allocate(100, 1).unwrap());
        memory.store(a, &[1; 100]).unwrap();
        memory.load(a + 96, &mut [0; 4]).unwrap();
        let error = memory.load(a + 97, &mut [0; 4]).unwrap_err();
        assert!(matches!(error, Wrong::Outside { serial: 1, .. }), "{error}");
        assert!(matches!(memory.store(b - 1, &[0]), Err(Wrong::Outside { serial: 2, .. })));
        // As far off as a wrong row of a large table is.
        assert!(matches!(memory.load(a + (3 << 30), &mut [0]), Err(Wrong::Outside { serial: 1, .. })));
        assert!(matches!(memory.load(0x7fff_0000_1000, &mut [0]), Err(Wrong::Nowhere { .. })));
        assert_eq!(memory.free(a), Ok(100));
        assert!(matches!(memory.load(a, &mut [0]), Err(Wrong::Freed { serial: 1, .. })));
        assert!(matches!(memory.free(a), Err(Wrong::Freed { .. })));
        assert!(matches!(memory.free(b + 4), Err(Wrong::Nowhere { .. })));
        assert_eq!(memory.live(1).map(|a| a.serial).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn unwritten_bytes_are_known_and_travel() {
        let mut memory = Memory::default();
        let (a, b) = (memory.allocate(64, 1).unwrap(), memory.allocate(64, 1).unwrap());
        memory.store(a + 3, &[7; 10]).unwrap();
        memory.load(a + 3, &mut [0; 10]).unwrap();
        assert!(matches!(memory.load(a + 3, &mut [0; 11]), Err(Wrong::Unwritten { offset: 13, .. })));
        memory.store(b, &[1; 64]).unwrap();
        memory.set_content(b, &memory.content(a, 64).unwrap()).unwrap();
        assert!(matches!(memory.load(b, &mut [0; 4]), Err(Wrong::Unwritten { offset: 0, .. })));
        memory.load(b + 4, &mut [0; 8]).unwrap();
        assert_eq!(memory.content(b, 1).unwrap().bytes, [POISON]);
        memory.spoil(b + 4, 2).unwrap();
        assert!(memory.load(b + 4, &mut [0; 1]).is_err());
        memory.load(b + 6, &mut [0; 4]).unwrap();
    }

    #[test]
    fn numbers_change_as_one_and_only_where_they_are_aligned() {
        let mut memory = Memory::default();
        let a = memory.allocate(16, 1).unwrap();
        assert!(matches!(memory.atomic(a, 4, &mut |x| x), Err(Wrong::Unwritten { .. })));
        memory.store(a, &5_u32.to_le_bytes()).unwrap();
        assert_eq!(memory.atomic(a, 4, &mut |x| x + 1), Ok(5));
        assert_eq!(memory.atomic(a, 4, &mut |x| x), Ok(6));
        assert!(matches!(memory.atomic(a + 2, 4, &mut |x| x), Err(Wrong::Misaligned { .. })));
    }

    #[test]
    fn what_was_touched_is_told_in_ranges() {
        let mut memory = Memory::default();
        let a = memory.allocate(4096, 1).unwrap();
        memory.store(a, &[0; 4096]).unwrap();
        let all = Touched { slot: 0, reads: vec![], writes: vec![0..4096] };
        assert_eq!(memory.take_touched(), [all]);
        assert_eq!(memory.take_touched(), []);
        memory.load(a + 8, &mut [0; 4]).unwrap();
        memory.load(a + 12, &mut [0; 500]).unwrap();
        memory.load(a + 1024, &mut [0; 1]).unwrap();
        memory.store(a + 255, &[0; 2]).unwrap();
        let some = Touched { slot: 0, reads: vec![8..512, 1024..1028], writes: vec![252..260] };
        assert_eq!(memory.take_touched(), [some]);
    }

    #[test]
    fn too_many_ranges_are_joined() {
        let mut memory = Memory::default();
        let a = memory.allocate(80_000, 1).unwrap();
        memory.store(a, &[0; 80_000]).unwrap();
        memory.take_touched();
        for at in (0..80_000).step_by(8) {
            memory.load(a + at, &mut [0]).unwrap();
        }
        let touched = memory.take_touched();
        assert!(touched[0].reads.len() <= MAX_RANGES, "{}", touched[0].reads.len());
        assert_eq!(touched[0].reads[0].start, 0);
    }

    #[test]
    fn an_allocation_may_be_larger_than_a_slot() {
        // Only the table is tried: nobody has the memory for the bytes.
        let mut memory = Memory::default();
        let a = memory.allocate(16, 1).unwrap();
        memory.slots.push(None);
        let b = memory.allocate(16, 1).unwrap();
        assert_eq!(b - a, 2 << SLOT_BITS);
        assert!(matches!(memory.check(a + (1 << SLOT_BITS), 1), Err(Wrong::Outside { serial: 1, .. })));
    }
}
