//! Asking for memory before it is needed.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the prefetch instruction is an intrinsic over a raw pointer")
)]

/// What a CPU moves at once.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// Asks the CPU to bring every cache line of `bytes` into the first-level cache. A hint that never waits
/// for memory and never faults: call it for a row some tens of rows before [`RowKernel::accumulate`] wants
/// it, and far enough ahead the wait is gone.
///
/// [`RowKernel::accumulate`]: crate::RowKernel::accumulate
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn prefetch_read(bytes: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    let ask = |byte: &u8| {
        // SAFETY: the pointer comes from a live reference, a prefetch changes nothing that a program sees,
        // and SSE is part of x86_64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(byte).cast()) };
    };
    bytes.iter().step_by(LINE_BYTES).for_each(ask);
    // A slice that does not begin where a line does can end one line further on.
    if let Some(last) = bytes.last() {
        ask(last);
    }
}

/// On other architectures nothing: the CPU's own prefetchers must do.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub fn prefetch_read(_bytes: &[u8]) {}

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
