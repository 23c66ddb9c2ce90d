//! Device memory, pinned memory, copies and memory sets.

use std::sync::Arc;

use super::{Driver, Held};
use crate::{
    error::Code,
    host::HostRange,
    memory::{Memory, Wrong},
    settings::Settings,
    state::{Answer, State},
    work::{Source, Work},
};

/// Counts a call towards the one that was asked to fail, and says whether it is this one.
pub(super) fn is_next(left: &mut Option<u64>) -> bool {
    if let Some(more) = left {
        *more = more.saturating_sub(1);
        if *more == 0 {
            *left = None;
            return true;
        }
    }
    false
}

impl State {
    /// Gives device memory, within the device's capacity.
    pub(crate) fn new_memory(&mut self, bytes: u64, context: u64) -> Answer<u64> {
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let size = Memory::rounded(bytes);
        let Settings { memory_bytes, fail_allocation, .. } = &mut self.settings;
        let full = self.counters.bytes_live.saturating_add(size) > *memory_bytes;
        if is_next(fail_allocation) || full {
            self.counters.allocations_refused += 1;
            return Err(Code::OUT_OF_MEMORY);
        }
        let address = self.memory.allocate(bytes, context).ok_or(Code::OUT_OF_MEMORY)?;
        self.counters.allocations += 1;
        self.counters.allocations_live += 1;
        self.counters.bytes_live += size;
        self.counters.bytes_peak = self.counters.bytes_peak.max(self.counters.bytes_live);
        Ok(address)
    }

    /// Counts a call towards the one with which the device is lost.
    pub(crate) fn may_be_lost(&mut self) -> Answer<()> {
        if is_next(&mut self.settings.lose_device) {
            self.lost = Some(Code::DEVICE_UNAVAILABLE);
            return Err(
                self.refuse(Code::DEVICE_UNAVAILABLE, "the device was asked to be lost with this call")
            );
        }
        Ok(())
    }

    pub(crate) fn not_memory(&mut self, wrong: &Wrong) -> Code {
        self.refuse(Code::INVALID_VALUE, wrong.to_string())
    }

    /// Where a copy from these bytes of the host takes them: pinned memory is read when the copy runs.
    fn source(&self, from: HostRange) -> Source {
        if self.pinned.holds(&from) {
            let fingerprint = (!self.host_in_use(&from, true)).then(|| from.fingerprint());
            Source::Pinned { range: from, fingerprint }
        } else {
            Source::Staged(Arc::from(from.read()))
        }
    }

    /// Poisons bytes that a copy will write, unless an operation before it still needs them.
    pub(crate) fn poison_host(&self, range: &HostRange) -> bool {
        let free = !range.is_empty() && !self.host_in_use(range, false);
        if free {
            range.poison();
        }
        free
    }
}

impl Driver {
    /// The answer of a call that waited: an error of the device that was found by then.
    pub(super) fn answer(&self, state: Held<'_>) -> Answer<()> {
        match state.lost.or(state.sticky) {
            Some(code) => Err(code),
            None => Ok(()),
        }
    }

    /// `cuMemAlloc`.
    pub fn allocate(&self, bytes: u64) -> Answer<u64> {
        let (mut state, context) = self.enter()?;
        state.unsafe_call("cuMemAlloc")?;
        state.new_memory(bytes, context)
    }

    /// `cuMemFree`, which waits for the device, as the real one does.
    pub fn free(&self, address: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        if address == 0 {
            return Ok(());
        }
        state.unsafe_call("cuMemFree")?;
        let mut state = self.drain(state, context);
        if let Some(code) = state.sticky {
            return Err(code);
        }
        state.release_memory(address).map_err(|wrong| state.not_memory(&wrong))?;
        state.memory.take_touched();
        Ok(())
    }

    /// `cuMemAllocAsync`.
    pub fn allocate_async(&self, bytes: u64, stream: u64) -> Answer<u64> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        let address = state.new_memory(bytes, context)?;
        let submitted = state.submit(stream, Work::Born(address), Vec::new());
        if let Err(code) = submitted {
            state.release_memory(address).map_err(|wrong| state.not_memory(&wrong))?;
            state.memory.take_touched();
            return Err(code);
        }
        Ok(address)
    }

    /// `cuMemFreeAsync`.
    pub fn free_async(&self, address: u64, stream: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        if let Err(wrong) = state.memory.allocation(address) {
            return Err(state.not_memory(&wrong));
        }
        state.submit(stream, Work::Free(address), Vec::new())
    }

    /// `cuMemHostAlloc`.
    pub fn allocate_pinned(&self, bytes: usize) -> Answer<HostRange> {
        let (mut state, _) = self.enter()?;
        state.unsafe_call("cuMemHostAlloc")?;
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        if is_next(&mut state.settings.fail_allocation) {
            state.counters.allocations_refused += 1;
            return Err(Code::OUT_OF_MEMORY);
        }
        let range = state.pinned.allocate(bytes).ok_or(Code::OUT_OF_MEMORY)?;
        state.counters.pinned_allocations += 1;
        state.counters.pinned_live += 1;
        state.counters.pinned_bytes_live += bytes as u64;
        Ok(range)
    }

    /// `cuMemFreeHost`, which waits for the device, as the real one does.
    pub fn free_pinned(&self, address: usize) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        state.unsafe_call("cuMemFreeHost")?;
        let mut state = self.drain(state, context);
        let Some(bytes) = state.pinned.free(address) else {
            let words = format!("{address:#x} is not the start of live pinned memory");
            return Err(state.refuse(Code::INVALID_VALUE, words));
        };
        state.counters.pinned_live -= 1;
        state.counters.pinned_bytes_live -= bytes as u64;
        Ok(())
    }

    /// `cuMemcpyHtoDAsync`.
    pub fn copy_in(&self, to: u64, from: HostRange, stream: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        state.may_be_lost()?;
        let bytes = from.len() as u64;
        if bytes == 0 {
            return Ok(());
        }
        let from = state.source(from);
        let captured = state.streams[&stream].capture.is_some();
        state.submit(stream, Work::ToDevice { from, to }, Vec::new())?;
        if !captured {
            state.counters.copies_in += 1;
            state.counters.bytes_in += bytes;
        }
        Ok(())
    }

    /// `cuMemcpyDtoHAsync`. Into pageable memory it waits, as the real one does.
    pub fn copy_out(&self, to: HostRange, from: u64, stream: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        state.may_be_lost()?;
        let bytes = to.len() as u64;
        if bytes == 0 {
            return Ok(());
        }
        let pinned = state.pinned.holds(&to);
        if let Some(capture) = state.streams[&stream].capture {
            if !pinned {
                state.invalidate(capture, "a copy to pageable memory cannot be captured");
                return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
            }
            return state.submit(stream, Work::ToHost { from, to, poisoned: false }, Vec::new());
        }
        let poisoned = state.poison_host(&to);
        state.submit(stream, Work::ToHost { from, to, poisoned }, Vec::new())?;
        state.counters.copies_out += 1;
        state.counters.bytes_out += bytes;
        if pinned {
            return Ok(());
        }
        self.wait(state, stream)
    }

    /// `cuMemcpyDtoDAsync`.
    pub fn copy_within(&self, to: u64, from: u64, bytes: u64, stream: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        state.may_be_lost()?;
        state.counters.copies_within += 1;
        state.submit(stream, Work::Within { from, to, bytes }, Vec::new())
    }

    /// `cuMemsetD8Async` and its wider kin: `count` times the pattern.
    pub fn fill(&self, to: u64, pattern: &[u8], count: u64, stream: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        if !to.is_multiple_of(pattern.len() as u64) {
            return Err(Code::INVALID_VALUE);
        }
        state.counters.fills += 1;
        if count == 0 {
            return Ok(());
        }
        state.submit(stream, Work::Fill { to, pattern: pattern.to_vec(), count }, Vec::new())
    }

    /// The copies and sets that wait: they run on the legacy stream, and are not for a time of capture.
    pub fn at_once(&self, what: &str, call: impl FnOnce(&Self) -> Answer<()>) -> Answer<()> {
        {
            let (mut state, context) = self.enter()?;
            let legacy = state.stream_of(context, 0)?;
            state.legacy_is_free(legacy)?;
            state.unsafe_call(what)?;
        }
        call(self)?;
        let (mut state, context) = self.enter()?;
        let legacy = state.stream_of(context, 0)?;
        self.wait(state, legacy)
    }

    /// Whether these bytes are one live allocation's.
    pub fn check(&self, address: u64, bytes: u64) -> Answer<()> {
        let (mut state, _) = self.enter()?;
        let checked = state.memory.check(address, bytes);
        checked.map_err(|wrong| state.not_memory(&wrong))
    }
}
