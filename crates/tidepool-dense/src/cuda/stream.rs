//! Streams, the events behind what was asked of them, and graphs captured from them.
//!
//! **Trap:** cudarc's own streams and slices track events by themselves once a second stream exists, and such an event
//! inside a capture breaks it. They can be told not to, before the first stream; but here the layer that tracks is not
//! used at all: handles are the driver's, and who waits for what is said once, by [`Stream::fence`].
#![expect(unsafe_code, reason = "the driver's streams, events and graphs are called")]

use std::{
    fmt,
    marker::PhantomData,
    slice,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use cudarc::driver::{
    DriverError, result,
    sys::{self, CUresult},
};

use super::{
    CudaDevice, CudaError,
    device::Handle,
    memory::{DeviceBuffer, Pinned},
};

/// How long a wait asks again and again before it lets the core go in between.
const SPIN: Duration = Duration::from_micros(200);
/// How long it then lets it go.
const NAP: Duration = Duration::from_micros(50);
/// The most bytes that an upload takes at once.
const UPLOAD_CHUNK: usize = 16 << 20;
/// How long an upload or the end of a stream may take.
const UPLOAD_DEADLINE: Duration = Duration::from_secs(60);

/// A stream: what it is asked for is done in order, beside other streams.
pub(crate) struct Stream {
    device: Arc<CudaDevice>,
    raw: Handle<sys::CUstream>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a stream of cuda:{}", self.device.ordinal())
    }
}

impl Stream {
    /// A new one, which does not wait for the default stream.
    pub(crate) fn new(device: &Arc<CudaDevice>) -> Result<Self, CudaError> {
        device.bind()?;
        let kind = result::stream::StreamKind::NonBlocking;
        let raw = result::stream::create(kind).map_err(|e| device.failed("create a stream", e))?;
        Ok(Self { device: device.clone(), raw: Handle(raw) })
    }

    /// Its device.
    pub(crate) fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw.0
    }

    /// Asks for a copy of the first `bytes` bytes of `from` to the beginning of `to`. Until a fence behind it is
    /// reached, `from` gives its bytes to nobody.
    pub(crate) fn copy_in(
        &self,
        from: &mut Pinned,
        to: &DeviceBuffer,
        bytes: usize,
    ) -> Result<(), CudaError> {
        self.copy_in_at(from, to, 0, bytes)
    }

    /// The same, to a place in `to`.
    pub(crate) fn copy_in_at(
        &self,
        from: &mut Pinned,
        to: &DeviceBuffer,
        at: usize,
        bytes: usize,
    ) -> Result<(), CudaError> {
        check_copy("into the device", from.bytes(), bytes)?;
        check_copy("into the device", to.bytes(), at.saturating_add(bytes))?;
        self.device.bind()?;
        let start = from.take_off()?;
        // SAFETY: so many bytes lie there, written when the memory was made at the latest.
        let source: &[u8] = unsafe { slice::from_raw_parts(start.as_ptr(), bytes) };
        // SAFETY: `to` has room for them; `from` is freed and written by nobody before a fence was reached; a stream
        // that drops `to` earlier waits for the copy in it.
        let asked = unsafe { result::memcpy_htod_async(to.address() + at as u64, source, self.raw.0) };
        asked.map_err(|e| self.refused("copy into the device", e, from))
    }

    /// Asks for a copy of `bytes` bytes from `at` on in `from` to the beginning of `to`, which gives its bytes to nobody
    /// until a fence behind it is reached.
    pub(crate) fn copy_out(
        &self,
        from: &DeviceBuffer,
        at: usize,
        to: &mut Pinned,
        bytes: usize,
    ) -> Result<(), CudaError> {
        check_copy("out of the device", to.bytes(), bytes)?;
        check_copy("out of the device", from.bytes(), at.saturating_add(bytes))?;
        self.device.bind()?;
        let start = to.take_off()?;
        // SAFETY: so many bytes lie there, and nobody else has them until a fence was reached.
        let target: &mut [u8] = unsafe { slice::from_raw_parts_mut(start.as_ptr(), bytes) };
        // SAFETY: `from` has so many bytes there; see `copy_in`.
        let asked = unsafe { result::memcpy_dtoh_async(target, from.address() + at as u64, self.raw.0) };
        asked.map_err(|e| self.refused("copy out of the device", e, to))
    }

    /// The error of a copy that was not taken: nothing of it is in flight, unless the device is lost over it.
    fn refused(&self, doing: &str, error: DriverError, memory: &mut Pinned) -> CudaError {
        let error = self.device.failed(doing, error);
        if !error.is_lost() {
            memory.put_back();
        }
        error
    }

    /// Asks for zeros throughout a buffer.
    pub(crate) fn zero(&self, buffer: &DeviceBuffer) -> Result<(), CudaError> {
        self.device.bind()?;
        // SAFETY: the buffer has so many bytes, and stays until the stream has done it (see `DeviceBuffer`).
        let asked = unsafe { result::memset_d8_async(buffer.address(), 0, buffer.bytes(), self.raw.0) };
        asked.map_err(|e| self.device.failed("write zeros", e))
    }

    /// Copies bytes to a place in a buffer, in pieces, and waits until they are there. For loading, not for requests.
    pub(crate) fn upload(&self, bytes: &[u8], to: &DeviceBuffer, at: usize) -> Result<(), CudaError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut staging = Pinned::new(&self.device, bytes.len().min(UPLOAD_CHUNK), "an upload")?;
        for (number, piece) in bytes.chunks(UPLOAD_CHUNK).enumerate() {
            staging.bytes_mut()?[..piece.len()].copy_from_slice(piece);
            self.copy_in_at(&mut staging, to, at + number * UPLOAD_CHUNK, piece.len())?;
            self.fence(&mut [&mut staging])?.wait(UPLOAD_DEADLINE)?;
        }
        Ok(())
    }

    /// Copies bytes out of a buffer and waits for them. For tests and checks, not for requests.
    pub(crate) fn download(
        &self,
        from: &DeviceBuffer,
        at: usize,
        bytes: usize,
    ) -> Result<Vec<u8>, CudaError> {
        let mut staging = Pinned::new(&self.device, bytes, "a download")?;
        self.copy_out(from, at, &mut staging, bytes)?;
        self.fence(&mut [&mut staging])?.wait(UPLOAD_DEADLINE)?;
        Ok(staging.bytes_mut()?[..bytes].to_vec())
    }

    /// An event behind everything that was asked for so far. Memory in flight learns that its copies end before it.
    pub(crate) fn fence(&self, memory: &mut [&mut Pinned]) -> Result<Arc<Event>, CudaError> {
        let event = Arc::new(Event::new(&self.device)?);
        self.record(&event, memory)?;
        Ok(event)
    }

    /// The same with an event that exists; what waited for its last use must be done with it.
    pub(crate) fn record(&self, event: &Arc<Event>, memory: &mut [&mut Pinned]) -> Result<(), CudaError> {
        self.device.bind()?;
        // SAFETY: both handles are alive as long as their owners, which are borrowed here.
        let recorded = unsafe { result::event::record(event.raw.0, self.raw.0) };
        recorded.map_err(|e| self.device.failed("record an event", e))?;
        memory.iter_mut().for_each(|memory| memory.until(event));
        Ok(())
    }

    /// Captures what `ask` asks of this stream as a graph, without doing it. Other threads may allocate meanwhile: the
    /// capture forbids that to this thread alone.
    pub(crate) fn capture(
        &self,
        ask: impl FnOnce(&Self) -> Result<(), CudaError>,
    ) -> Result<Graph, CudaError> {
        self.device.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        let begun = unsafe { result::stream::begin_capture(self.raw.0, mode) };
        begun.map_err(|e| self.device.failed("begin to capture a graph", e))?;
        let capture = Capture { stream: self, ended: false };
        ask(self)?;
        let captured = capture.end()?;
        // SAFETY: the graph comes from the capture.
        let exec = unsafe { result::graph::instantiate(captured.raw, sys::CUgraphInstantiate_flags(0)) };
        let exec = exec.map_err(|e| self.device.failed("instantiate a graph", e))?;
        let graph = Graph { device: self.device.clone(), exec, one_thread: PhantomData };
        drop(captured);
        // SAFETY: both are alive. Uploaded now, so that the first launch does not pay for it.
        let uploaded = unsafe { result::graph::upload(graph.exec, self.raw.0) };
        uploaded.map_err(|e| self.device.failed("upload a graph", e))?;
        Ok(graph)
    }

    /// Asks for a graph that was captured from this stream.
    pub(crate) fn launch(&self, graph: &Graph) -> Result<(), CudaError> {
        self.device.bind()?;
        // SAFETY: both are alive; the addresses in the graph belong to buffers that the graph's owner keeps with it.
        let asked = unsafe { result::graph::launch(graph.exec, self.raw.0) };
        asked.map_err(|e| self.device.failed("launch a graph", e))
    }
}

/// A capture that was begun on this thread. However it ends, a stream that is left capturing could never be used again.
struct Capture<'a> {
    stream: &'a Stream,
    ended: bool,
}

impl<'a> Capture<'a> {
    fn end(mut self) -> Result<Captured<'a>, CudaError> {
        self.ended = true;
        let device = &self.stream.device;
        // SAFETY: the stream is alive, and captures.
        let graph = unsafe { result::stream::end_capture(self.stream.raw.0) };
        let raw = graph.map_err(|e| device.failed("capture a graph", e))?;
        Ok(Captured { device, raw })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.ended || !self.stream.device.bind_for_drop() {
            return;
        }
        // SAFETY: as above.
        if let Ok(raw) = unsafe { result::stream::end_capture(self.stream.raw.0) } {
            drop(Captured { device: &self.stream.device, raw });
        }
    }
}

/// What was captured, of use until it is instantiated.
struct Captured<'a> {
    device: &'a CudaDevice,
    raw: sys::CUgraph,
}

impl Drop for Captured<'_> {
    fn drop(&mut self) {
        // A capture that broke gives no graph, and some drivers no error with it.
        if self.raw.is_null() || !self.device.bind_for_drop() {
            return;
        }
        // SAFETY: it comes from a capture and is destroyed here alone; what was instantiated of it does not need it.
        self.device.note("let a captured graph go", unsafe { result::graph::destroy(self.raw) });
    }
}

fn check_copy(what: &str, room: usize, bytes: usize) -> Result<(), CudaError> {
    if bytes <= room {
        return Ok(());
    }
    Err(CudaError::Options(format!("a copy {what} of {bytes} bytes goes beyond memory of {room}")))
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.device.bind_for_drop() {
            return;
        }
        // What was asked for is still done; the driver lets the stream go behind it.
        // SAFETY: it was created by `new` and is destroyed here alone.
        self.device.note("destroy a stream", unsafe { result::stream::destroy(self.raw.0) });
    }
}

/// A mark in a stream.
pub(crate) struct Event {
    device: Arc<CudaDevice>,
    raw: Handle<sys::CUevent>,
}

impl Event {
    pub(crate) fn new(device: &Arc<CudaDevice>) -> Result<Self, CudaError> {
        device.bind()?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let raw = result::event::create(flags).map_err(|e| device.failed("create an event", e))?;
        Ok(Self { device: device.clone(), raw: Handle(raw) })
    }

    /// Whether the stream is past it.
    ///
    /// # Errors
    /// What the device broke down over before it: errors of kernels show here.
    pub(crate) fn is_done(&self) -> Result<bool, CudaError> {
        self.device.bind()?;
        // SAFETY: the event is alive.
        match unsafe { result::event::query(self.raw.0) } {
            Ok(()) => Ok(true),
            Err(error) if error.0 == CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            Err(error) => Err(self.device.failed("finish what it was asked for", error)),
        }
    }

    /// Waits until the stream is past it, but not longer than `deadline`: a device that hangs must not hang the
    /// process, so it is asked again and again and never waited for inside the driver.
    ///
    /// # Errors
    /// What the device broke down over; [`CudaError::TimedOut`] after the deadline, with which the device is given up.
    pub(crate) fn wait(&self, deadline: Duration) -> Result<(), CudaError> {
        let begun = Instant::now();
        loop {
            if self.is_done()? {
                return Ok(());
            }
            let waited = begun.elapsed();
            if waited >= deadline {
                // What was promised, so that the same failure reads the same on any machine.
                return Err(self.device.hangs(deadline));
            }
            if waited < SPIN {
                std::hint::spin_loop();
            } else {
                thread::sleep(NAP);
            }
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.device.bind_for_drop() {
            return;
        }
        // SAFETY: it was created by `new` and is destroyed here alone.
        self.device.note("destroy an event", unsafe { result::event::destroy(self.raw.0) });
    }
}

/// A captured list of work, launched as one.
///
/// **Trap:** a graph must not be launched from two threads at once, so it is neither `Send` nor `Sync`: the thread that
/// captured it owns it, and others send that thread what is to be run.
pub(crate) struct Graph {
    device: Arc<CudaDevice>,
    exec: sys::CUgraphExec,
    one_thread: PhantomData<*const ()>,
}

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.device.bind_for_drop() {
            return;
        }
        // SAFETY: it was instantiated by `capture` and is destroyed here alone.
        self.device.note("destroy a graph", unsafe { result::graph::exec_destroy(self.exec) });
    }
}
