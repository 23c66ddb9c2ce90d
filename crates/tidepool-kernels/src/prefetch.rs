//! Asking for memory before it is needed.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the prefetch instruction is an intrinsic over a raw pointer")
)]

/// What a CPU moves at once.
pub(crate) const LINE_BYTES: usize = 64;

/// Asks the CPU to bring every cache line of `bytes` into the second-level cache. A hint that never waits
/// for memory and never faults: ask for a row some tens of rows before it is read, and the wait is gone.
///
/// Not into the first level: there a core has few places for lines that are on their way (24 in Zen 4), and
/// when these are taken it stands still. The second level has more, and from there a row comes in a dozen
/// cycles, which a CPU that works out of order hides.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn prefetch_read(bytes: &[u8]) {
    if !bytes.is_empty() {
        prefetch_lines(bytes, bytes.len());
    }
}

/// As [`prefetch_read`] for a slice whose lines begin in its first `length` bytes, but for the last one. It costs
/// no branch where the length is known when this is compiled.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn prefetch_lines(bytes: &[u8], length: usize) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    let ask = |at: usize| {
        // SAFETY: a prefetch changes nothing that a program sees, and reads nothing: any address will do. SSE
        // is part of x86_64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(at).cast()) };
    };
    let mut at = 0;
    while at < length {
        ask(at);
        at += LINE_BYTES;
    }
    // A slice that does not begin where a line does can end one line further on.
    ask(bytes.len().wrapping_sub(1));
}

/// On other architectures nothing: the CPU's own prefetchers must do.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub fn prefetch_read(_bytes: &[u8]) {}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(crate) fn prefetch_lines(_bytes: &[u8], _length: usize) {}

#[cfg(test)]
mod tests {
    #[test]
    fn any_slice_may_be_asked_for() {
        let bytes = [7u8; 200];
        for length in 0..bytes.len() {
            super::prefetch_read(&bytes[..length]);
        }
    }
}
