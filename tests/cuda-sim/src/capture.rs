//! Stream capture, by the rules and with the error codes of CUDA's documentation.
//!
//! A capture begins in a stream, spreads to streams that wait for events recorded in it, and ends in the stream where
//! it began, when everything else has been joined to that. What is not allowed meanwhile invalidates it.

use std::{collections::BTreeMap, sync::Arc, thread::ThreadId};

use crate::{
    error::Code,
    graph::{Graph, Node},
    state::{Answer, State},
    streams::StreamKind,
    work::{Source, Work},
};

/// Which calls of other threads a capture forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureMode {
    /// Unsafe calls of all threads.
    Global,
    /// Unsafe calls of the thread that began it.
    ThreadLocal,
    /// None.
    Relaxed,
}

pub(crate) struct Capture {
    pub(crate) mode: CaptureMode,
    owner: ThreadId,
    origin: u32,
    nodes: Vec<Node>,
    /// The streams of the capture, and the nodes after which the next one of each comes.
    tails: BTreeMap<u32, Vec<usize>>,
    pub(crate) invalid: bool,
}

impl State {
    pub(crate) fn begin_capture(&mut self, stream: u32, mode: CaptureMode) -> Answer<()> {
        let of = &self.streams[&stream];
        if of.kind == StreamKind::Legacy {
            return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
        if of.capture.is_some() {
            return Err(Code::ILLEGAL_STATE);
        }
        let id = self.handle();
        let tails = BTreeMap::from([(stream, Vec::new())]);
        let owner = std::thread::current().id();
        let capture = Capture { mode, owner, origin: stream, nodes: Vec::new(), tails, invalid: false };
        self.captures.insert(id, capture);
        self.set_capture(stream, Some(id));
        Ok(())
    }

    fn set_capture(&mut self, stream: u32, capture: Option<u32>) {
        if let Some(of) = self.streams.get_mut(&stream) {
            of.capture = capture;
        }
    }

    /// Breaks a capture, and says why: the calls that follow only say that it is broken.
    pub(crate) fn invalidate(&mut self, capture: u32, why: &str) {
        let Some(of) = self.captures.get_mut(&capture) else { return };
        if !std::mem::replace(&mut of.invalid, true) {
            self.counters.captures_broken += 1;
            self.refuse(Code::STREAM_CAPTURE_INVALIDATED, format!("a capture is invalidated: {why}"));
        }
    }

    /// Adds a node after what the stream captured last.
    pub(crate) fn capture_work(&mut self, id: u32, stream: u32, work: Work) -> Answer<()> {
        let Some(capture) = self.captures.get_mut(&id) else { return Err(Code::ILLEGAL_STATE) };
        if capture.invalid {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        let refused = match &work {
            Work::ToDevice { from: Source::Staged(_), .. } => {
                Some("a copy from pageable memory cannot be captured")
            }
            Work::HostCall(_) => Some("the stand-in captures no host functions"),
            Work::Born(_) | Work::Free(_) => {
                Some("the stand-in makes no nodes that allocate: allocate before")
            }
            Work::Graph(_) => Some("the stand-in captures no launches of graphs"),
            _ => None,
        };
        if let Some(why) = refused {
            self.invalidate(id, why);
            return Err(Code::STREAM_CAPTURE_UNSUPPORTED);
        }
        let node = capture.nodes.len();
        let after = capture.tails.insert(stream, vec![node]).unwrap_or_default();
        capture.nodes.push(Node { work, after });
        Ok(())
    }

    /// Refuses what asks after work that is only being captured, and breaks the capture.
    pub(crate) fn not_capturing(&mut self, stream: u32, what: &str) -> Answer<()> {
        match self.streams[&stream].capture {
            None => Ok(()),
            Some(capture) => {
                self.invalidate(capture, &format!("{what} of a stream that is captured"));
                Err(Code::STREAM_CAPTURE_UNSUPPORTED)
            }
        }
    }

    /// Refuses calls that may wait for the device, or change what a capture cannot hold, where a capture forbids them.
    pub(crate) fn unsafe_call(&mut self, what: &str) -> Answer<()> {
        let thread = std::thread::current().id();
        let mode = self.thread_modes.get(&thread).copied().unwrap_or(CaptureMode::Global);
        if mode == CaptureMode::Relaxed {
            return Ok(());
        }
        let forbids = |capture: &Capture| match capture.mode {
            CaptureMode::Relaxed => false,
            CaptureMode::ThreadLocal => capture.owner == thread,
            CaptureMode::Global => capture.owner == thread || mode == CaptureMode::Global,
        };
        let broken: Vec<u32> = self.captures.iter().filter(|(_, c)| forbids(c)).map(|(id, _)| *id).collect();
        if broken.is_empty() {
            return Ok(());
        }
        for capture in broken {
            self.invalidate(capture, &format!("{what} is not allowed while a stream is captured"));
        }
        Err(Code::STREAM_CAPTURE_UNSUPPORTED)
    }

    /// The nodes that a stream of a capture has last.
    pub(crate) fn captured_tails(&mut self, id: u32, stream: u32) -> Answer<Vec<usize>> {
        let Some(capture) = self.captures.get(&id) else { return Err(Code::ILLEGAL_STATE) };
        if capture.invalid {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        Ok(capture.tails.get(&stream).cloned().unwrap_or_default())
    }

    /// A stream waits for an event of a capture, and by that becomes part of it.
    pub(crate) fn join_capture(&mut self, stream: u32, id: u32, after: &[usize]) -> Answer<()> {
        let own = self.streams[&stream].capture;
        let Some(capture) = self.captures.get_mut(&id) else { return Err(Code::CAPTURED_EVENT) };
        if let Some(own) = own
            && own != id
        {
            let why = "a stream of one capture waits for an event of another";
            self.invalidate(own, why);
            self.invalidate(id, why);
            return Err(Code::STREAM_CAPTURE_MERGE);
        }
        if capture.invalid {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        if self.streams[&stream].kind == StreamKind::Legacy {
            self.invalidate(id, "the legacy stream waits for an event of the capture");
            return Err(Code::STREAM_CAPTURE_IMPLICIT);
        }
        let tails = capture.tails.entry(stream).or_default();
        tails.extend(after);
        tails.sort_unstable();
        tails.dedup();
        self.set_capture(stream, Some(id));
        Ok(())
    }

    /// Ends the capture of a stream, and gives the number of its graph.
    pub(crate) fn end_capture(&mut self, stream: u32) -> Answer<u32> {
        let Some(id) = self.streams[&stream].capture else { return Err(Code::ILLEGAL_STATE) };
        let Some(capture) = self.captures.get(&id) else { return Err(Code::ILLEGAL_STATE) };
        if capture.origin != stream {
            self.invalidate(id, "it is ended in another stream than it began in");
            return Err(Code::STREAM_CAPTURE_UNMATCHED);
        }
        if capture.mode != CaptureMode::Relaxed && capture.owner != std::thread::current().id() {
            return Err(Code::STREAM_CAPTURE_WRONG_THREAD);
        }
        let Some(capture) = self.captures.remove(&id) else { return Err(Code::ILLEGAL_STATE) };
        for joined in capture.tails.keys() {
            self.set_capture(*joined, None);
        }
        if capture.invalid {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        let ends = capture.tails.get(&stream).cloned().unwrap_or_default();
        let graph = Graph::new(capture.nodes);
        if !graph.all_before(&ends) {
            self.counters.captures_broken += 1;
            let what = "a stream was forked from the capture and not joined to it before its end";
            return Err(self.refuse(Code::STREAM_CAPTURE_UNJOINED, what));
        }
        self.counters.captures += 1;
        self.counters.graphs_live += 1;
        let number = self.handle();
        self.graphs.insert(number, Arc::new(graph));
        Ok(number)
    }
}
