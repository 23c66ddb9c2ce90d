//! A file mapped for reading, and prefetching from it: the only unsafe code of this crate.
//!
//! A published file is never changed, and is removed only by unlinking, which leaves the map whole.
//! Somebody who truncates one in place takes the pages away under the map, and the process that reads
//! them dies of SIGBUS: docs/table-format.md says so to operators.

use std::{fs::File, io, ops::Deref};

use memmap2::Mmap;

/// The bytes of an immutable file.
#[derive(Debug)]
pub(crate) struct MappedFile(Mmap);

impl MappedFile {
    /// Maps the whole of `file`, read-only.
    #[expect(unsafe_code, reason = "a file map is unsafe because others may change the file")]
    pub(crate) fn map(file: &File) -> io::Result<Self> {
        // SAFETY: the map is private to this value and read-only. What it shows could change only if the
        // file were written to, and files of ours are written under a temporary name, published by a
        // rename, and never opened for writing again. Bytes are validated before anything is derived
        // from them, and every access to them is bounds-checked, so even a changed file gives wrong
        // values and not wrong memory.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self(map))
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Asks the CPU to bring the cache line of `bytes[at]` closer. A hint: an `at` past the end is ignored.
#[cfg(target_arch = "x86_64")]
#[inline]
#[expect(unsafe_code, reason = "the prefetch instruction is an intrinsic over a raw pointer")]
pub(crate) fn prefetch(bytes: &[u8], at: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    if let Some(byte) = bytes.get(at) {
        // SAFETY: the pointer comes from a live reference; a prefetch reads nothing that a program sees
        // and SSE is part of x86_64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(byte).cast()) }
    }
}

/// Elsewhere the CPU's own prefetchers must do.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(crate) fn prefetch(_bytes: &[u8], _at: usize) {}

/// Asks the CPU to bring every cache line of `bytes` closer. A hint: nothing is read.
#[inline]
pub fn prefetch_all(bytes: &[u8]) {
    const LINE_BYTES: usize = 64;
    for at in (0..bytes.len()).step_by(LINE_BYTES) {
        prefetch(bytes, at);
    }
    prefetch(bytes, bytes.len().wrapping_sub(1));
}
