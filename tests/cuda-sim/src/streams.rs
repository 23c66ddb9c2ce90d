//! Streams and events: queues of work that runs when something needs it, and the order between them.
//!
//! An operation waits for the one before it in its stream and for the places of other streams in `after`. Nothing
//! runs when it is asked for: it runs when the host waits for it, or for what comes after it, or when the seeded
//! schedule draws it. So a missing wait shows.

use std::collections::VecDeque;

use crate::{
    error::Code,
    races::{Clock, Point},
    settings::Schedule,
    state::{Answer, State},
    work::Work,
};

/// How a stream orders itself with the legacy stream of its context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamKind {
    /// The stream of handle 0: it waits for all blocking streams, and they for it.
    Legacy,
    /// Made without `CU_STREAM_NON_BLOCKING`.
    Blocking,
    /// Made with it.
    NonBlocking,
}

pub(crate) struct Op {
    pub(crate) position: u64,
    pub(crate) after: Vec<Point>,
    pub(crate) clock: Clock,
    pub(crate) work: Work,
}

pub(crate) struct Stream {
    pub(crate) context: u64,
    pub(crate) kind: StreamKind,
    pub(crate) priority: i32,
    pub(crate) queue: VecDeque<Op>,
    /// The position of the last operation that was asked for, and of the last that is done.
    pub(crate) issued: u64,
    pub(crate) done: u64,
    /// An operation of it is running without the lock.
    pub(crate) busy: bool,
    /// What comes before an operation that is asked for now.
    pub(crate) tail: Clock,
    pub(crate) capture: Option<u32>,
}

impl Stream {
    pub(crate) fn new(context: u64, kind: StreamKind, priority: i32) -> Self {
        Self {
            context,
            kind,
            priority,
            queue: VecDeque::new(),
            issued: 0,
            done: 0,
            busy: false,
            tail: Clock::default(),
            capture: None,
        }
    }
}

/// What an event was last recorded in.
pub(crate) enum Recorded {
    Never,
    /// A place in a stream.
    At(Point, Clock),
    /// A capture, and the nodes that the recording stream had last.
    Captured(u32, Vec<usize>),
}

pub(crate) struct Event {
    pub(crate) recorded: Recorded,
    pub(crate) timing: bool,
}

/// The most operations that a stream holds. A real one blocks past some thousands; here that is an error, since a
/// program that waits for nothing is not what is being tried.
const MAX_QUEUED: usize = 65_536;

impl State {
    /// Asks for work on a stream: queues it, or captures it.
    pub(crate) fn submit(&mut self, stream: u32, work: Work, after: Vec<(Point, Clock)>) -> Answer<()> {
        if let Some(capture) = self.streams[&stream].capture {
            return self.capture_work(capture, stream, work);
        }
        if self.streams[&stream].kind == StreamKind::Legacy {
            self.legacy_is_free(stream)?;
        }
        self.push(stream, work, after)
    }

    /// Refuses the legacy stream while a stream that it would wait for is captured.
    pub(crate) fn legacy_is_free(&mut self, legacy: u32) -> Answer<()> {
        let context = self.streams[&legacy].context;
        let blocking = |s: &&Stream| s.context == context && s.kind == StreamKind::Blocking;
        let captured: Vec<u32> = self.streams.values().filter(blocking).filter_map(|s| s.capture).collect();
        if captured.is_empty() {
            return Ok(());
        }
        for capture in captured {
            self.invalidate(capture, "the legacy stream was used, which waits for the captured stream");
        }
        Err(Code::STREAM_CAPTURE_IMPLICIT)
    }

    /// Puts work at the end of a stream's queue.
    pub(crate) fn push(&mut self, stream: u32, work: Work, mut after: Vec<(Point, Clock)>) -> Answer<()> {
        let (context, kind) = (self.streams[&stream].context, self.streams[&stream].kind);
        for (other, of) in self.streams.iter().filter(|(id, of)| **id != stream && of.context == context) {
            let ordered = match kind {
                StreamKind::Legacy => of.kind == StreamKind::Blocking,
                StreamKind::Blocking => of.kind == StreamKind::Legacy,
                StreamKind::NonBlocking => false,
            };
            if ordered && of.issued > 0 {
                after.push(((*other, of.issued), of.tail.clone()));
            }
        }
        let host = self.host.clone();
        let Some(of) = self.streams.get_mut(&stream) else { return Err(Code::INVALID_HANDLE) };
        if of.queue.len() == MAX_QUEUED {
            return Err(self
                .refuse(Code::LAUNCH_OUT_OF_RESOURCES, format!("{MAX_QUEUED} operations wait in a stream")));
        }
        of.issued += 1;
        of.tail.join(&host);
        for (_, clock) in &after {
            of.tail.join(clock);
        }
        let before = of.tail.clone();
        of.tail.add((stream, of.issued));
        let after = after.into_iter().map(|(point, _)| point).collect();
        of.queue.push_back(Op { position: of.issued, after, clock: before, work });
        Ok(())
    }

    /// Whether the operation at this place is done. Those of a stream that is gone are.
    pub(crate) fn is_done(&self, (stream, position): Point) -> bool {
        self.streams.get(&stream).is_none_or(|of| of.done >= position)
    }

    fn ready(&self, stream: u32) -> bool {
        let of = &self.streams[&stream];
        !of.busy && of.queue.front().is_some_and(|op| op.after.iter().all(|point| self.is_done(*point)))
    }

    /// The stream whose first operation should run now, for this place to be reached; `None` when that is not for
    /// this thread to do: an operation runs without the lock, or the device hangs.
    pub(crate) fn next_towards(&mut self, point: Point) -> Option<u32> {
        if self.hung {
            return None;
        }
        if let Schedule::Random(_) = self.settings.schedule {
            return self.any_ready(true);
        }
        let mut stream = point.0;
        loop {
            let of = self.streams.get(&stream)?;
            if of.busy {
                return None;
            }
            let waits = of.queue.front()?.after.iter().find(|point| !self.is_done(**point));
            match waits {
                Some((other, _)) => stream = *other,
                None => return Some(stream),
            }
        }
    }

    /// A stream, drawn, whose first operation can run; host functions only where they are wanted.
    pub(crate) fn any_ready(&mut self, host_calls: bool) -> Option<u32> {
        let ids: Vec<u32> = self.streams.keys().copied().filter(|id| self.ready(*id)).collect();
        let is_call =
            |id: &u32| matches!(self.streams[id].queue.front(), Some(Op { work: Work::HostCall(_), .. }));
        let ids: Vec<u32> = ids.into_iter().filter(|id| host_calls || !is_call(id)).collect();
        if ids.is_empty() { None } else { Some(ids[self.draw(ids.len())]) }
    }

    /// The first host function that waits in a queue.
    pub(crate) fn next_host_call(&self) -> Option<Point> {
        self.streams.iter().find_map(|(id, of)| {
            let call = of.queue.iter().find(|op| matches!(op.work, Work::HostCall(_)))?;
            Some((*id, call.position))
        })
    }

    /// The last places of all streams of a context.
    pub(crate) fn all_tails(&self, context: u64) -> Vec<Point> {
        let of_context = self.streams.iter().filter(|(_, of)| of.context == context);
        of_context.map(|(id, of)| (*id, of.issued)).collect()
    }

    /// Whether an operation that has not run yet reads or writes these bytes of the host, or writes them.
    pub(crate) fn host_in_use(&self, range: &crate::host::HostRange, writes_only: bool) -> bool {
        self.streams.values().flat_map(|s| &s.queue).any(|op| op.work.uses_host(range, writes_only))
    }

    /// Makes a stream wait for an event.
    pub(crate) fn wait_event(&mut self, stream: u32, event: u32) -> Answer<()> {
        let Some(event) = self.events.get(&event) else { return Err(self.unknown("event")) };
        let capturing = self.streams[&stream].capture;
        match (&event.recorded, capturing) {
            (Recorded::Never, _) => Ok(()),
            (Recorded::At(point, clock), None) => {
                let after = vec![(*point, clock.clone())];
                self.submit(stream, Work::Mark("wait for an event"), after)
            }
            (Recorded::At(..), Some(capture)) => {
                self.invalidate(
                    capture,
                    "a captured stream waits for an event that was recorded outside of the capture",
                );
                Err(Code::STREAM_CAPTURE_ISOLATION)
            }
            (Recorded::Captured(of, tails), _) => {
                let (of, tails) = (*of, tails.clone());
                self.join_capture(stream, of, &tails)
            }
        }
    }

    /// Records an event in a stream.
    pub(crate) fn record_event(&mut self, event: u32, stream: u32) -> Answer<()> {
        if !self.events.contains_key(&event) {
            return Err(self.unknown("event"));
        }
        let recorded = match self.streams[&stream].capture {
            Some(capture) => Recorded::Captured(capture, self.captured_tails(capture, stream)?),
            None => {
                self.submit(stream, Work::Mark("record of an event"), Vec::new())?;
                let of = &self.streams[&stream];
                Recorded::At((stream, of.issued), of.tail.clone())
            }
        };
        if let Some(event) = self.events.get_mut(&event) {
            event.recorded = recorded;
        }
        Ok(())
    }
}
