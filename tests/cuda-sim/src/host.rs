//! Host memory as the driver sees it: the pinned ranges that it has given out, and the bytes of callers.
//!
//! This is the only place where bytes of the host are read and written by address. A [`HostRange`] is made where a
//! C caller hands over a pointer, and holds the promise that CUDA asks for: the memory stays until the copy is done.
#![expect(unsafe_code, reason = "bytes of the host are reached by address")]

use std::{
    alloc::{Layout, alloc, dealloc},
    collections::BTreeMap,
    hash::{DefaultHasher, Hasher},
};

/// What the host finds where the device has yet to write, and in pinned memory that nobody has written.
pub const HOST_POISON: u8 = 0xB7;

const PAGE: usize = 4096;

/// Bytes of the host, which the driver may read or write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRange {
    address: usize,
    bytes: usize,
}

impl HostRange {
    /// The `bytes` bytes at `address`.
    ///
    /// # Safety
    /// They stay readable, and writable where the driver is asked to write them, until the last operation that was
    /// given this range is done. (Whether the host reads or writes them meanwhile is what the driver checks.)
    pub unsafe fn new(address: *const u8, bytes: usize) -> Self {
        Self { address: address as usize, bytes }
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(crate) fn overlaps(&self, other: &HostRange) -> bool {
        self.address < other.address + other.bytes && other.address < self.address + self.bytes
    }

    /// The bytes as they are now.
    pub(crate) fn read(&self) -> Vec<u8> {
        if self.bytes == 0 {
            return Vec::new();
        }
        // SAFETY: whoever made the range promised that it is readable now.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.bytes) }.to_vec()
    }

    /// Writes the bytes; `from` is as long as the range.
    pub(crate) fn write(&self, from: &[u8]) {
        assert_eq!(from.len(), self.bytes, "a copy to the host has the length of its range");
        // SAFETY: whoever made the range promised that it is writable now; `from` is as long, and is ours.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.address as *mut u8, self.bytes) }
    }

    /// A number that changes when the bytes do.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.read());
        hasher.finish()
    }

    /// Whether every byte is what [`Self::poison`] wrote.
    pub(crate) fn is_poison(&self) -> bool {
        self.read().iter().all(|b| *b == HOST_POISON)
    }

    /// Overwrites the bytes with what nobody should read.
    pub(crate) fn poison(&self) {
        self.write(&vec![HOST_POISON; self.bytes]);
    }
}

struct Range {
    bytes: usize,
    layout: Layout,
}

/// The pinned memory that has been given out.
#[derive(Default)]
pub(crate) struct Pinned {
    ranges: BTreeMap<usize, Range>,
}

impl Pinned {
    /// Gives pinned memory, full of poison; `None` when the host has none.
    pub(crate) fn allocate(&mut self, bytes: usize) -> Option<HostRange> {
        let layout = Layout::from_size_align(bytes.checked_next_multiple_of(PAGE)?.max(PAGE), PAGE).ok()?;
        // SAFETY: the layout is not empty.
        let address = unsafe { alloc(layout) };
        if address.is_null() {
            return None;
        }
        let range = HostRange { address: address as usize, bytes };
        range.poison();
        self.ranges.insert(range.address, Range { bytes, layout });
        Some(range)
    }

    /// Takes pinned memory back, and gives its length; `None` for an address that is not the start of any.
    pub(crate) fn free(&mut self, address: usize) -> Option<usize> {
        let range = self.ranges.remove(&address)?;
        // SAFETY: the address came from `alloc` with this layout, and has just left the table.
        unsafe { dealloc(address as *mut u8, range.layout) };
        Some(range.bytes)
    }

    /// Whether all of these bytes are pinned.
    pub(crate) fn holds(&self, range: &HostRange) -> bool {
        let before = self.ranges.range(..=range.address).next_back();
        before.is_some_and(|(start, of)| range.address + range.bytes <= start + of.bytes)
    }

    /// Forgets everything, which the device can reach no more. The bytes are left where they are: their users may not
    /// know yet.
    pub(crate) fn forget(&mut self) {
        self.ranges.clear();
    }

    /// Lengths of what is live.
    pub(crate) fn live(&self) -> impl Iterator<Item = usize> {
        self.ranges.values().map(|range| range.bytes)
    }
}

impl HostRange {
    /// Where it starts.
    pub fn address(&self) -> usize {
        self.address
    }
}

#[cfg(test)]
impl HostRange {
    /// The bytes of a test, which outlive what it does with them.
    pub(crate) fn of(bytes: &[std::sync::atomic::AtomicU8]) -> Self {
        Self { address: bytes.as_ptr() as usize, bytes: bytes.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_memory_is_known_by_its_range() {
        let mut pinned = Pinned::default();
        let range = pinned.allocate(100).unwrap();
        assert!(range.is_poison());
        let print = range.fingerprint();
        let part = HostRange { address: range.address + 90, bytes: 10 };
        assert!(pinned.holds(&range) && pinned.holds(&part) && part.overlaps(&range));
        assert!(!pinned.holds(&HostRange { address: range.address + 90, bytes: 11 }));
        part.write(&[1; 10]);
        assert_eq!(range.read()[89..91], [HOST_POISON, 1]);
        assert!(!range.is_poison() && range.fingerprint() != print);
        assert_eq!(pinned.live().collect::<Vec<_>>(), [100]);
        assert_eq!(pinned.free(range.address), Some(100));
        assert_eq!(pinned.free(range.address), None);
    }
}
