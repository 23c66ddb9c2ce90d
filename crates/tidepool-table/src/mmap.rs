//! Memory that lookups read: a mapped file, or a copy in huge pages. The only unsafe code of this crate.
//!
//! A published file is never changed, and is removed only by unlinking, which leaves the map whole.
//! Somebody who truncates one in place takes the pages away under the map, and the process that reads
//! them dies of SIGBUS: docs/table-format.md says so to operators.
//!
//! The kernel can put 2 MiB of a file behind one page table entry only where address and file offset are
//! both multiples of 2 MiB. So every region is reserved first, without memory and larger than needed, and
//! the file is put at such an address in it. What is left of the reservation keeps other memory away, so
//! that `/proc/self/smaps` shows a region apart from its neighbours.

use std::{
    fmt,
    fs::File,
    io,
    ops::{Deref, DerefMut, Range},
    os::fd::AsRawFd,
    slice,
    sync::Arc,
};

use libc::{
    MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE, c_int,
    c_void,
};
use memmap2::{Advice, MmapMut, MmapOptions, UncheckedAdvice};

/// What a huge page is on x86-64.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// No page is smaller.
const PAGE_BYTES: usize = 4096;

/// Address space with bytes in it; given back when dropped.
#[derive(Debug)]
struct Region {
    /// The whole of it. Only its address, its advice and its end are used: outside of the bytes nothing can
    /// be read.
    reserved: MmapMut,
    /// Where the bytes begin in it: the first multiple of 2 MiB.
    skip: usize,
    bytes: usize,
}

impl Region {
    /// `bytes` of a file, or of fresh memory.
    #[expect(unsafe_code, reason = "mprotect, and mmap at an address of ours")]
    fn map(bytes: usize, file: Option<&File>) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let needed = bytes.max(1).checked_next_multiple_of(PAGE_BYTES).ok_or_else(too_large)?;
        let reserved_bytes = needed.checked_add(HUGE_PAGE_BYTES + PAGE_BYTES).ok_or_else(too_large)?;
        // Unmapped from here on if anything fails.
        let mut reserved = MmapOptions::new().len(reserved_bytes).no_reserve_swap().map_anon()?;
        let address = reserved.as_mut_ptr();
        // SAFETY: the reservation is ours alone, and nothing has been put into it.
        done(unsafe { libc::mprotect(address.cast(), reserved_bytes, PROT_NONE) })?;
        let skip = address.addr().next_multiple_of(HUGE_PAGE_BYTES) - address.addr();
        let (protection, flags, fd) = match file {
            Some(file) => (PROT_READ, MAP_SHARED, file.as_raw_fd()),
            None => (PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1),
        };
        let start = address.wrapping_add(skip).cast();
        // SAFETY: the range lies inside the reservation, less than 2 MiB from its start, and nobody else
        // knows of it yet. It is unmapped with the reservation.
        let mapped = unsafe { libc::mmap(start, needed, protection, flags | MAP_FIXED, fd, 0) };
        if mapped == MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { reserved, skip, bytes })
    }

    fn start(&self) -> *const u8 {
        self.reserved.as_ptr().wrapping_add(self.skip)
    }

    #[expect(unsafe_code, reason = "the bytes are known by address")]
    fn as_slice(&self) -> &[u8] {
        // SAFETY: `bytes` bytes from `start` on are mapped readable until this is dropped. They do not
        // change while the slice lives: those of a file are never written to again once it is published
        // (and bytes are validated before anything is derived from them, with every access bounds-checked,
        // so even a changed file gives wrong values and not wrong memory), and those of memory only
        // through `&mut`.
        unsafe { slice::from_raw_parts(self.start(), self.bytes) }
    }

    /// Tells the kernel something about a range, which grows to whole pages.
    fn advise(&self, range: Range<usize>, advice: Advice) -> io::Result<()> {
        let (from, bytes) = self.pages(range);
        self.reserved.advise_range(advice, self.skip + from, bytes)
    }

    /// Keeps a range in memory until the region is dropped.
    #[expect(unsafe_code, reason = "mlock")]
    fn lock(&self, range: Range<usize>) -> io::Result<()> {
        let (from, bytes) = self.pages(range);
        let address: *const c_void = self.start().wrapping_add(from).cast();
        // SAFETY: the range is within the region; locking changes no byte.
        done(unsafe { libc::mlock(address, bytes) })
    }

    /// Takes the whole pages within a range out of the page tables.
    #[expect(unsafe_code, reason = "this advice would lose what was written to memory without a file")]
    fn unmap_pages(&self, range: Range<usize>) -> io::Result<()> {
        let from = range.start.next_multiple_of(PAGE_BYTES);
        let to = if range.end >= self.bytes { self.bytes } else { range.end / PAGE_BYTES * PAGE_BYTES };
        if from >= to {
            return Ok(());
        }
        // SAFETY: called for maps of files only, which nobody writes to: their bytes stay what they are.
        unsafe {
            self.reserved.unchecked_advise_range(UncheckedAdvice::DontNeed, self.skip + from, to - from)
        }
    }

    /// The pages that a range touches: where they begin in the region, and their bytes.
    fn pages(&self, range: Range<usize>) -> (usize, usize) {
        let end = range.end.min(self.bytes);
        let from = (range.start.min(end) / PAGE_BYTES) * PAGE_BYTES;
        (from, end - from)
    }

    /// Where a range lies, for smaps.
    fn addresses(&self, range: Range<usize>) -> Range<usize> {
        let start = self.start().addr();
        start + range.start.min(self.bytes)..start + range.end.min(self.bytes)
    }
}

fn done(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Bytes of a region that is kept for as long as they are. To read them costs no more than a slice does.
#[derive(Clone)]
pub(crate) struct Section {
    /// Of `region`, whatever the lifetime says: it never leaves this type longer than a borrow of it.
    bytes: &'static [u8],
    region: Arc<Region>,
    /// Where they begin in it.
    start: usize,
}

impl Section {
    #[expect(unsafe_code, reason = "a slice and its owner in one struct")]
    fn of(region: &Arc<Region>, range: Range<usize>) -> Self {
        let bytes: *const [u8] = &raw const region.as_slice()[range.clone()];
        // SAFETY: the region stands at one address until it is dropped, which `region` prevents for as long
        // as this value is there, and every borrow of the bytes ends with it. Nothing writes them.
        let bytes = unsafe { &*bytes };
        Self { bytes, region: region.clone(), start: range.start }
    }

    /// Where it lies in its region.
    fn range(&self) -> Range<usize> {
        self.start..self.start + self.bytes.len()
    }

    /// Where it lies in memory.
    pub(crate) fn addresses(&self) -> Range<usize> {
        self.region.addresses(self.range())
    }
}

/// Not the bytes: there may be gigabytes.
impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Section").field(&self.range()).finish()
    }
}

impl Deref for Section {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

/// The bytes of an immutable file.
#[derive(Debug)]
pub(crate) struct MappedFile(Arc<Region>);

impl MappedFile {
    /// Maps the first `bytes` of `file`, read-only. What is read has nothing read ahead beside it until
    /// [`read_ahead`](Self::read_ahead): around a header page that would be megabytes of rows, in small pages
    /// that stay small.
    pub(crate) fn map(file: &File, bytes: usize) -> io::Result<Self> {
        let map = Self(Arc::new(Region::map(bytes, Some(file))?));
        // A hint.
        let _ = map.0.advise(0..bytes, Advice::Random);
        Ok(map)
    }

    /// Reads ahead where somebody reads, from this byte of the file on.
    pub(crate) fn read_ahead(&self, from: usize) {
        let _ = self.0.advise(from..self.len(), Advice::Normal);
    }

    /// Begins to read a range.
    pub(crate) fn will_need(&self, range: Range<usize>) {
        let _ = self.0.advise(range, Advice::WillNeed);
    }

    /// Asks for huge pages in a range, which `/proc/self/smaps` then shows apart from the rest. A hint:
    /// where it is refused, pages are small.
    pub(crate) fn want_huge_pages(&self, range: Range<usize>) {
        let _ = self.0.advise(range, Advice::HugePage);
    }

    /// Reads a range into memory and puts it behind page tables, as far as it is not.
    pub(crate) fn populate(&self, range: Range<usize>) -> io::Result<()> {
        self.0.advise(range, Advice::PopulateRead)
    }

    /// Takes a range out of the page tables of this process, so that the page cache may let go of it; who
    /// reads it again has it back from the file. A hint.
    pub(crate) fn unmap_pages(&self, range: Range<usize>) {
        let _ = self.0.unmap_pages(range);
    }

    /// Keeps a range in memory.
    pub(crate) fn lock(&self, range: Range<usize>) -> io::Result<()> {
        self.0.lock(range)
    }

    /// A range of it.
    pub(crate) fn section(&self, range: Range<usize>) -> Section {
        Section::of(&self.0, range)
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

/// Memory on huge pages, if the kernel has any to give.
#[derive(Debug)]
pub(crate) struct HugeMemory(Region);

impl HugeMemory {
    /// `bytes` zeros.
    pub(crate) fn zeros(bytes: usize) -> io::Result<Self> {
        let region = Region::map(bytes, None)?;
        // A hint: where it is refused, pages are small.
        let _ = region.advise(0..bytes, Advice::HugePage);
        Ok(Self(region))
    }

    /// All of it, never to be written again.
    pub(crate) fn into_section(self) -> Section {
        let bytes = self.0.bytes;
        Section::of(&Arc::new(self.0), 0..bytes)
    }
}

impl Deref for HugeMemory {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl DerefMut for HugeMemory {
    #[expect(unsafe_code, reason = "the bytes are known by address")]
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.0.reserved.as_mut_ptr().wrapping_add(self.0.skip);
        // SAFETY: fresh memory of this value alone, mapped writable until it is dropped.
        unsafe { slice::from_raw_parts_mut(start, self.0.bytes) }
    }
}

/// How many bytes this process may lock; `None` for no limit.
#[expect(unsafe_code, reason = "getrlimit")]
pub(crate) fn lock_limit_bytes() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: it writes the limit into a struct of its own type, which lives long enough.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (result == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// How many bytes of a file are in the page cache, whoever brought them there.
#[cfg(test)]
#[expect(unsafe_code, reason = "mincore")]
pub(crate) fn cached_bytes(file: &File) -> usize {
    let bytes = file.metadata().unwrap().len() as usize;
    let map = MappedFile::map(file, bytes).unwrap();
    let mut pages = vec![0u8; bytes.div_ceil(PAGE_BYTES)];
    // SAFETY: the range is mapped while `map` lives, and there is a byte for each of its pages.
    let result = unsafe { libc::mincore(map.as_ptr().cast_mut().cast(), bytes, pages.as_mut_ptr()) };
    done(result).unwrap();
    pages.iter().filter(|&page| page & 1 == 1).count() * PAGE_BYTES
}
