//! Streams, events, host functions and capture.

use std::sync::Arc;

use super::{Driver, Held};
use crate::{
    capture::CaptureMode,
    error::Code,
    races::Clock,
    state::{Answer, kinds},
    streams::{Event, Recorded, StreamKind},
    work::Work,
};

/// What `cuStreamIsCapturing` and `cuStreamGetCaptureInfo` say of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureStatus {
    /// It is not captured.
    None,
    /// It is, in the capture of this number.
    Active(u64),
    /// It is, and the capture is broken.
    Invalidated(u64),
}

impl Driver {
    /// Waits for a stream, which the host then knows to be done.
    pub(super) fn wait(&self, state: Held<'_>, stream: u32) -> Answer<()> {
        let (issued, tail) = {
            let of = &state.streams[&stream];
            (of.issued, of.tail.clone())
        };
        let mut state = self.finish(state, (stream, issued));
        state.host.join(&tail);
        self.answer(state)
    }

    /// `cuStreamCreateWithPriority`.
    pub fn create_stream(&self, non_blocking: bool, priority: i32) -> Answer<u64> {
        let (mut state, context) = self.enter()?;
        let kind = if non_blocking { StreamKind::NonBlocking } else { StreamKind::Blocking };
        // Outside of the range of `cuCtxGetStreamPriorityRange` it is brought inside.
        let stream = state.new_stream(context, kind, priority.clamp(-5, 0));
        state.counters.streams_live += 1;
        Ok(kinds::STREAM | u64::from(stream))
    }

    /// `cuStreamGetPriority`.
    pub fn stream_priority(&self, stream: u64) -> Answer<i32> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        Ok(state.streams[&stream].priority)
    }

    /// `cuStreamDestroy`: what has been asked of it is done all the same.
    pub fn destroy_stream(&self, handle: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        if handle <= 2 {
            return Err(Code::INVALID_HANDLE);
        }
        let stream = state.stream_of(context, handle)?;
        if let Some(capture) = state.streams[&stream].capture {
            state.invalidate(capture, "a stream of it is destroyed");
        }
        // The real driver lets the work go on; that it may go on for ever is no use to a test.
        let issued = state.streams[&stream].issued;
        let mut state = self.finish(state, (stream, issued));
        state.streams.remove(&stream);
        state.counters.streams_live -= 1;
        Ok(())
    }

    /// `cuStreamSynchronize`.
    pub fn synchronize_stream(&self, stream: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        state.not_capturing(stream, "synchronisation")?;
        state.counters.synchronizations += 1;
        self.wait(state, stream)
    }

    /// `cuStreamQuery`: each question lets the device do one more thing.
    pub fn query_stream(&self, stream: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        state.not_capturing(stream, "a query")?;
        let (point, tail) = {
            let of = &state.streams[&stream];
            ((stream, of.issued), of.tail.clone())
        };
        self.query(state, point, &tail)
    }

    fn query(&self, mut state: Held<'_>, point: crate::races::Point, tail: &Clock) -> Answer<()> {
        state.counters.queries += 1;
        if !state.is_done(point) {
            if let Some(next) = state.next_towards(point) {
                drop(self.run_next(state, next));
            }
            return Err(Code::NOT_READY);
        }
        state.host.join(tail);
        self.answer(state)
    }

    /// `cuEventCreate`.
    pub fn create_event(&self, timing: bool) -> Answer<u64> {
        let (mut state, _) = self.enter()?;
        let event = state.handle();
        state.events.insert(event, Event { recorded: Recorded::Never, timing });
        state.counters.events_live += 1;
        Ok(kinds::EVENT | u64::from(event))
    }

    /// `cuEventDestroy`.
    pub fn destroy_event(&self, event: u64) -> Answer<()> {
        let (mut state, _) = self.enter()?;
        let event = state.number(kinds::EVENT, event)?;
        if state.events.remove(&event).is_none() {
            return Err(state.unknown("event"));
        }
        state.counters.events_live -= 1;
        Ok(())
    }

    /// `cuEventRecord`.
    pub fn record(&self, event: u64, stream: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let event = state.number(kinds::EVENT, event)?;
        let stream = state.stream_of(context, stream)?;
        state.record_event(event, stream)
    }

    /// `cuStreamWaitEvent`.
    pub fn wait_for(&self, stream: u64, event: u64) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let event = state.number(kinds::EVENT, event)?;
        let stream = state.stream_of(context, stream)?;
        state.wait_event(stream, event)
    }

    /// `cuEventSynchronize`.
    pub fn synchronize_event(&self, event: u64) -> Answer<()> {
        let (state, recorded) = self.recorded(event, "a wait of the host for an event")?;
        let Some((point, tail)) = recorded else { return Ok(()) };
        let mut state = self.finish(state, point);
        state.counters.synchronizations += 1;
        state.host.join(&tail);
        self.answer(state)
    }

    /// `cuEventQuery`.
    pub fn query_event(&self, event: u64) -> Answer<()> {
        let (mut state, recorded) = self.recorded(event, "a query of an event")?;
        state.unsafe_call("cuEventQuery")?;
        let Some((point, tail)) = recorded else { return Ok(()) };
        self.query(state, point, &tail)
    }

    /// Where an event was recorded, if it was.
    #[allow(clippy::type_complexity, reason = "the lock goes along")]
    fn recorded(&self, event: u64, what: &str) -> Answer<(Held<'_>, Option<(crate::races::Point, Clock)>)> {
        let (mut state, _) = self.enter()?;
        let event = state.number(kinds::EVENT, event)?;
        let Some(of) = state.events.get(&event) else { return Err(state.unknown("event")) };
        let found = match &of.recorded {
            Recorded::Never => None,
            Recorded::At(point, clock) => Some((*point, clock.clone())),
            Recorded::Captured(capture, _) => {
                let capture = *capture;
                state.invalidate(capture, &format!("{what} that was recorded in it"));
                return Err(Code::CAPTURED_EVENT);
            }
        };
        Ok((state, found))
    }

    /// `cuEventElapsedTime`, in milliseconds. Time is not simulated: an operation counts as a microsecond.
    pub fn elapsed(&self, start: u64, end: u64) -> Answer<f32> {
        let (state, first) = self.recorded(start, "the time of an event")?;
        drop(state);
        let (mut state, second) = self.recorded(end, "the time of an event")?;
        for event in [start, end] {
            let event = state.number(kinds::EVENT, event)?;
            if !state.events[&event].timing {
                return Err(Code::INVALID_HANDLE);
            }
        }
        let (Some((a, _)), Some((b, _))) = (first, second) else { return Err(Code::INVALID_HANDLE) };
        if !state.is_done(a) || !state.is_done(b) {
            return Err(Code::NOT_READY);
        }
        Ok(b.1.saturating_sub(a.1) as f32 * 1e-3)
    }

    /// `cuLaunchHostFunc`.
    pub fn host_call(&self, stream: u64, call: Arc<dyn Fn() + Send + Sync>) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        state.submit(stream, Work::HostCall(call), Vec::new())?;
        self.changed.notify_all();
        Ok(())
    }

    /// `cuStreamBeginCapture`.
    pub fn begin_capture(&self, stream: u64, mode: CaptureMode) -> Answer<()> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        state.begin_capture(stream, mode)
    }

    /// `cuStreamEndCapture`: the handle of the graph.
    pub fn end_capture(&self, stream: u64) -> Answer<u64> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        Ok(kinds::GRAPH | u64::from(state.end_capture(stream)?))
    }

    /// `cuStreamGetCaptureInfo`. Asking it of the legacy stream while a stream is captured that it waits for is an
    /// error.
    pub fn capture_status(&self, stream: u64) -> Answer<CaptureStatus> {
        let (mut state, context) = self.enter()?;
        let stream = state.stream_of(context, stream)?;
        if state.streams[&stream].kind == StreamKind::Legacy {
            state.legacy_is_free(stream)?;
        }
        let capture = state.streams[&stream].capture;
        Ok(match capture.and_then(|id| Some((id, state.captures.get(&id)?))) {
            None => CaptureStatus::None,
            Some((id, of)) if of.invalid => CaptureStatus::Invalidated(u64::from(id)),
            Some((id, _)) => CaptureStatus::Active(u64::from(id)),
        })
    }

    /// `cuThreadExchangeStreamCaptureMode`: sets the thread's mode and gives the one before.
    pub fn exchange_mode(&self, mode: CaptureMode) -> CaptureMode {
        let before = self.held().thread_modes.insert(std::thread::current().id(), mode);
        before.unwrap_or(CaptureMode::Global)
    }
}
