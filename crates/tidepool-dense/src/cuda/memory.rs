//! Memory of the device, and pinned memory of the host that the device copies from and to.
#![expect(unsafe_code, reason = "memory of the driver is allocated, freed and looked at as bytes")]

use std::{fmt, ptr::NonNull, slice, sync::Arc};

use cudarc::driver::{result, sys};

use super::{CudaDevice, CudaError, device::Handle, stream::Event};

/// What regions of a buffer are aligned to, as allocations of the driver are.
pub(crate) const ALIGN: usize = 256;

/// Memory on the device. It is not written when it is made: whoever reads must have written.
pub(crate) struct DeviceBuffer {
    device: Arc<CudaDevice>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of cuda:{} at {:#x}", self.bytes, self.device.ordinal(), self.address)
    }
}

impl DeviceBuffer {
    /// So many bytes, for what `what` says, at a multiple of [`ALIGN`]; for none it has one. Allocations are made when
    /// a model is loaded, never in a run: **trap:** inside a capture they would become nodes of the graph.
    pub(crate) fn new(device: &Arc<CudaDevice>, bytes: usize, what: &str) -> Result<Self, CudaError> {
        device.bind()?;
        let bytes = bytes.max(1).next_multiple_of(ALIGN);
        // Not from the stream-ordered pool, which would tie it to a stream.
        // SAFETY: what lies there is not read before it is written; the address is freed once, by `drop`.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(|e| device.no_room(what, bytes, e))?;
        Ok(Self { device: device.clone(), address, bytes })
    }

    /// Where it begins.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Its size, as the driver counts it.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if !self.device.bind_for_drop() {
            return;
        }
        // Freeing waits for what the device still does, so nothing that was enqueued meets freed memory.
        // SAFETY: it was allocated by `new` and is freed here alone.
        self.device.note("free memory", unsafe { result::free_sync(self.address) });
    }
}

/// Whether the device may still copy from or to pinned memory.
enum Flight {
    /// No copy was asked for since the last one landed.
    None,
    /// A copy was asked for, and no event stands behind it yet.
    Unfenced,
    /// Until this event.
    Until(Arc<Event>),
}

/// Pinned memory of the host: the device copies from and to it without a detour. All zero at first.
///
/// **Traps:** `alloc_pinned` of cudarc is write-combined, from which the CPU reads a hundred times slower: flags are
/// 0 here. And with event tracking off (see `stream`), nothing of cudarc's waits for a copy in flight: here the memory
/// itself holds the event behind its last copy, and gives its bytes to nobody before that.
pub(crate) struct Pinned {
    device: Arc<CudaDevice>,
    start: Handle<NonNull<u8>>,
    bytes: usize,
    flight: Flight,
}

impl Pinned {
    /// So many bytes, for what `what` says, at a multiple of a page.
    pub(crate) fn new(device: &Arc<CudaDevice>, bytes: usize, what: &str) -> Result<Self, CudaError> {
        device.bind()?;
        let bytes = bytes.max(1).next_multiple_of(ALIGN);
        // SAFETY: the bytes are written below before anybody can read them.
        let start = unsafe { result::malloc_host(bytes, 0) };
        let start = start.map_err(|e| device.no_host_room(what, bytes, e))?;
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(|| CudaError::Driver {
            doing: format!("allocate pinned memory for {what}"),
            code: "none".into(),
            problem: "the driver gave no address".into(),
        })?;
        // SAFETY: the driver gave so many bytes from there on, and nobody else knows them.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { device: device.clone(), start: Handle(start), bytes, flight: Flight::None })
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its bytes, to read and to write.
    ///
    /// # Errors
    /// [`CudaError::InFlight`] while the device may still copy from or to it.
    pub(crate) fn bytes_mut(&mut self) -> Result<&mut [u8], CudaError> {
        self.landed()?;
        // SAFETY: `bytes` bytes from `start` on were allocated and written by `new`, no copy of the device is in
        // flight, and `self` is borrowed for as long as the slice is.
        Ok(unsafe { slice::from_raw_parts_mut(self.start.0.as_ptr(), self.bytes) })
    }

    /// Checks that no copy is in flight.
    fn landed(&mut self) -> Result<(), CudaError> {
        match &self.flight {
            Flight::None => Ok(()),
            Flight::Unfenced => Err(CudaError::InFlight),
            Flight::Until(event) => {
                if !event.is_done()? {
                    return Err(CudaError::InFlight);
                }
                self.flight = Flight::None;
                Ok(())
            }
        }
    }

    /// Where it begins, for a copy that is about to be asked for: from now on the bytes are the device's.
    pub(super) fn take_off(&mut self) -> Result<NonNull<u8>, CudaError> {
        self.landed()?;
        self.flight = Flight::Unfenced;
        Ok(self.start.0)
    }

    /// The copy was refused: the bytes are the host's again.
    pub(super) fn put_back(&mut self) {
        self.flight = Flight::None;
    }

    /// The copies that were asked for end before this event.
    pub(super) fn until(&mut self, event: &Arc<Event>) {
        if matches!(self.flight, Flight::Unfenced) {
            self.flight = Flight::Until(event.clone());
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A device that is lost, or did not finish in time, may still write here: the memory is left to it.
        if self.landed().is_err() || !self.device.bind_for_drop() {
            return;
        }
        // SAFETY: it was allocated by `new`, is freed here alone, and no copy is in flight.
        let freed = unsafe { result::free_host(self.start.0.as_ptr().cast()) };
        self.device.note("free pinned memory", freed);
    }
}

/// Regions one behind the other in a buffer, each at a multiple of [`ALIGN`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    bytes: usize,
}

impl Layout {
    /// Appends a region of so many bytes; where it begins.
    pub(crate) fn push(&mut self, bytes: usize) -> usize {
        let at = self.bytes;
        self.bytes += bytes.next_multiple_of(ALIGN);
        at
    }

    /// Bytes of all.
    pub(crate) fn bytes(self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_aligned_and_do_not_overlap() {
        let mut layout = Layout::default();
        assert_eq!([1, 256, 257, 0, 4].map(|bytes| layout.push(bytes)), [0, 256, 512, 1024, 1024]);
        assert_eq!(layout.bytes(), 1280);
    }
}
