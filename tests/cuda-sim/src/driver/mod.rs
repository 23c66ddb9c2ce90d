//! The calls of the driver, without pointers: what `ffi` makes of C arguments, and what unit tests call.
//!
//! Every call takes the one lock. Work runs under it, but for host functions; a call that waits gives it back.

mod device;
mod graphs;
mod memory;
mod modules;
mod streams;
#[cfg(test)]
mod tests;

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

pub use modules::LaunchShape;
pub use streams::CaptureStatus;

use crate::{
    counters::Counters,
    error::Code,
    races::Point,
    settings::{Schedule, Settings},
    state::{Answer, State},
    work::Work,
};

pub(crate) type Held<'a> = MutexGuard<'a, State>;

/// A driver. A process that loads the library has one; tests have as many as they like.
#[derive(Default)]
pub struct Driver {
    state: Mutex<State>,
    /// Something is done, or may be done again.
    changed: Condvar,
}

impl Driver {
    /// A driver that plays this device.
    pub fn new(settings: Settings) -> Self {
        let draws = if let Schedule::Random(seed) = settings.schedule { seed } else { 0 };
        let state = State { settings, draws, ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The state, as it is also after a panic in a test.
    pub(crate) fn held(&self) -> Held<'_> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock for a call that needs a context: gives that too. Here an error of the device is returned
    /// again, and here the random schedule runs some of the work.
    pub(crate) fn enter(&self) -> Answer<(Held<'_>, u64)> {
        let mut state = self.held();
        if !state.initialized {
            return Err(Code::NOT_INITIALIZED);
        }
        if state.follow_orders() {
            self.changed.notify_all();
        }
        if let Some(lost) = state.lost {
            return Err(lost);
        }
        let context = state.context()?;
        if let Schedule::Random(_) = state.settings.schedule
            && !state.hung
        {
            for _ in 0..state.draw(4) {
                let Some(stream) = state.any_ready(false) else { break };
                state = self.run_next(state, stream);
            }
        }
        match state.sticky {
            Some(code) => Err(code),
            None => Ok((state, context)),
        }
    }

    /// Runs the first operation of a stream.
    fn run_next<'a>(&'a self, mut state: Held<'a>, stream: u32) -> Held<'a> {
        let Some(of) = state.streams.get_mut(&stream) else { return state };
        let Some(op) = of.queue.pop_front() else { return state };
        of.busy = true;
        if let Work::HostCall(call) = &op.work {
            if state.sticky.is_none() && state.lost.is_none() {
                state.counters.host_calls += 1;
                drop(state);
                call();
                state = self.held();
            }
        } else {
            state.execute(stream, &op);
        }
        if let Some(of) = state.streams.get_mut(&stream) {
            of.busy = false;
            of.done = op.position;
        }
        self.changed.notify_all();
        state
    }

    /// Runs what is needed for an operation to be done.
    pub(crate) fn finish<'a>(&'a self, mut state: Held<'a>, point: Point) -> Held<'a> {
        while !state.is_done(point) {
            state = match state.next_towards(point) {
                Some(stream) => self.run_next(state, stream),
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        state
    }

    /// Runs everything that a context has been asked for.
    pub(crate) fn drain<'a>(&'a self, mut state: Held<'a>, context: u64) -> Held<'a> {
        for point in state.all_tails(context) {
            state = self.finish(state, point);
            let tail = state.streams.get(&point.0).map(|of| of.tail.clone());
            state.host.join(&tail.unwrap_or_default());
        }
        state
    }

    /// Runs host functions as they are asked for: a real device needs no call of the host to come to them. Never
    /// returns; the library starts it on a thread of its own with the first such function.
    pub fn pump(&self) -> ! {
        let mut state = self.held();
        loop {
            state = match state.next_host_call() {
                Some(point) => self.finish(state, point),
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// What has been counted.
    pub fn counters(&self) -> Counters {
        self.held().counters.clone()
    }

    /// The last finding in words; empty if there was none.
    pub fn last_fault(&self) -> String {
        self.held().last_fault.clone()
    }

    /// Forgets faults, injected and found, and starts the counters again. What is live stays, and what is queued
    /// runs on: between two tests of one process.
    pub fn reset(&self) {
        let mut state = self.held();
        state.settings.fail_allocation = None;
        state.settings.fail_launch = None;
        state.settings.refuse_launch = None;
        state.settings.lose_device = None;
        state.sticky = None;
        state.lost = None;
        state.hung = false;
        state.last_fault.clear();
        state.counters.restart();
        self.changed.notify_all();
    }

    /// Changes the device or the driver, or asks for faults.
    pub fn change(&self, change: impl FnOnce(&mut Settings)) {
        self.held().change(change);
    }

    /// Takes the device away: from now on every call returns this.
    pub fn lose(&self, code: Code) {
        self.held().lose(code);
        self.changed.notify_all();
    }

    /// Lets the device hang: nothing runs, and who waits waits, until it is told otherwise.
    pub fn hang(&self, hung: bool) {
        self.held().hung = hung;
        self.changed.notify_all();
    }
}
