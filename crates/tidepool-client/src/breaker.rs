//! A circuit breaker: whether a node is worth asking, from how its last calls ended.
//!
//! *Closed* while it answers. *Open* after failures, for a time that doubles with each failed try; then one
//! call is let through as a *probe*, and its end decides. Time is passed in.

use std::time::{Duration, Instant};

use crate::config::BreakerConfig;

/// How long outcomes count, about: older ones count half, then a quarter.
const WINDOW: Duration = Duration::from_secs(10);
/// Below so many calls a failure rate says nothing.
const RATE_CALLS: u32 = 20;

/// What a breaker says of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It is asked.
    Closed,
    /// It has failed; the next call may be its probe.
    ProbeDue,
    /// It has failed, and a probe is on its way.
    Probing,
    /// It has failed a moment ago.
    Open,
}

/// The breaker of one node.
#[derive(Debug)]
pub(crate) struct Breaker {
    config: BreakerConfig,
    state: State,
    /// Failures since the last answer.
    failures: u32,
    /// Calls given up before they said anything, since the last answer, and when the first of them began.
    lost: u32,
    silent_since: Option<Instant>,
    /// Times it has opened since it was closed.
    opened: u32,
    window: Window,
    /// Probes let through so far; the number of each tells it from the ones before.
    probes: u64,
}

#[derive(Debug)]
enum State {
    Closed,
    Open { until: Instant },
    Probing { probe: u64 },
}

/// Calls and failures of about the last [`WINDOW`].
#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    calls: u32,
    failures: u32,
}

impl Window {
    fn count(&mut self, now: Instant, failed: bool) {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= WINDOW {
            *self = Self { since: Some(now), calls: self.calls / 2, failures: self.failures / 2 };
        }
        self.calls = self.calls.saturating_add(1);
        self.failures = self.failures.saturating_add(u32::from(failed));
    }

    fn rate(&self) -> f64 {
        if self.calls < RATE_CALLS { 0.0 } else { f64::from(self.failures) / f64::from(self.calls) }
    }
}

impl Breaker {
    pub(crate) fn new(config: BreakerConfig) -> Self {
        Self {
            config,
            state: State::Closed,
            failures: 0,
            lost: 0,
            silent_since: None,
            opened: 0,
            window: Window::default(),
            probes: 0,
        }
    }

    pub(crate) fn status(&self, now: Instant) -> Status {
        match self.state {
            State::Closed => Status::Closed,
            State::Open { until } if now < until => Status::Open,
            State::Open { .. } => Status::ProbeDue,
            State::Probing { .. } => Status::Probing,
        }
    }

    /// Lets one call through when a probe is due, and gives its number.
    pub(crate) fn probe(&mut self, now: Instant) -> Option<u64> {
        if self.status(now) != Status::ProbeDue {
            return None;
        }
        self.probes += 1;
        self.state = State::Probing { probe: self.probes };
        Some(self.probes)
    }

    /// A probe ended without saying anything of the node: the next call may be one.
    pub(crate) fn release(&mut self, probe: u64, now: Instant) {
        if matches!(self.state, State::Probing { probe: current } if current == probe) {
            self.state = State::Open { until: now };
        }
    }

    /// The node has answered, be it with a refusal.
    pub(crate) fn answered(&mut self, now: Instant) {
        if !matches!(self.state, State::Closed) {
            self.state = State::Closed;
            self.window = Window::default();
            self.opened = 0;
        }
        (self.failures, self.lost, self.silent_since) = (0, 0, None);
        self.window.count(now, false);
    }

    /// A call failed for a reason that concerns the whole node. `jitter`, from 0 to 1, spreads the clients.
    pub(crate) fn failed(&mut self, now: Instant, jitter: f64) {
        self.failures = self.failures.saturating_add(1);
        self.window.count(now, true);
        let enough = self.failures >= self.config.failures || self.window.rate() >= self.config.failure_rate;
        if enough || matches!(self.state, State::Probing { .. }) {
            self.open(now, jitter);
        }
    }

    /// A call that began at `started` was given up, because another node had answered or because its lookup had
    /// no more time. That happens to every node now and then; it is a failure of one that has answered nobody
    /// for `patience`.
    pub(crate) fn lost(&mut self, started: Instant, now: Instant, patience: Duration, jitter: f64) {
        self.lost = self.lost.saturating_add(1);
        let since = *self.silent_since.get_or_insert(started);
        let silent = now.saturating_duration_since(since) >= patience;
        if (self.lost >= self.config.failures && silent) || matches!(self.state, State::Probing { .. }) {
            self.window.count(now, true);
            self.open(now, jitter);
        }
    }

    /// The next call may be a probe: there is news of the node.
    pub(crate) fn forgive(&mut self, now: Instant) {
        if let State::Open { until } = &mut self.state {
            *until = now.min(*until);
        }
    }

    fn open(&mut self, now: Instant, jitter: f64) {
        // Calls that were under way when it opened say nothing new.
        if matches!(self.state, State::Open { until } if now < until) {
            return;
        }
        let doubled = self.config.backoff.saturating_mul(1 << self.opened.min(16));
        let backoff = doubled.min(self.config.max_backoff).mul_f64(0.75 + jitter / 2.0);
        self.opened = self.opened.saturating_add(1);
        self.state = State::Open { until: now.checked_add(backoff).unwrap_or(now) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: BreakerConfig = BreakerConfig {
        failures: 3,
        failure_rate: 0.5,
        backoff: Duration::from_secs(1),
        max_backoff: Duration::from_secs(5),
    };
    /// A jitter that leaves a backoff as it is.
    const EVEN: f64 = 0.5;

    fn seconds(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_probe_closes_it() {
        let (mut breaker, start) = (Breaker::new(CONFIG), Instant::now());
        for _ in 0..2 {
            breaker.failed(start, EVEN);
        }
        breaker.answered(start);
        for _ in 0..2 {
            breaker.failed(start, EVEN);
        }
        assert_eq!(breaker.status(start), Status::Closed, "an answer in between begins anew");
        breaker.failed(start, EVEN);
        assert_eq!(breaker.status(start), Status::Open);
        assert_eq!(breaker.probe(start), None);
        let due = start + seconds(1.0);
        assert_eq!(breaker.status(due), Status::ProbeDue);
        assert!(breaker.probe(due).is_some());
        assert_eq!((breaker.status(due), breaker.probe(due)), (Status::Probing, None), "one at a time");
        breaker.answered(due);
        assert_eq!(breaker.status(due), Status::Closed);
        breaker.failed(due, EVEN);
        assert_eq!(breaker.status(due), Status::Closed, "the failures before are forgotten");
    }

    #[test]
    fn the_backoff_doubles_up_to_its_limit_and_is_spread() {
        let (mut breaker, mut now) = (Breaker::new(CONFIG), Instant::now());
        (0..3).for_each(|_| breaker.failed(now, EVEN));
        for backoff in [1.0, 2.0, 4.0, 5.0, 5.0] {
            assert_eq!(breaker.status(now + seconds(backoff - 0.01)), Status::Open, "{backoff}");
            // What else was under way fails too, and does not lengthen it.
            breaker.failed(now + seconds(backoff / 2.0), EVEN);
            now += seconds(backoff);
            assert!(breaker.probe(now).is_some(), "{backoff}");
            breaker.failed(now, EVEN);
        }
        for (jitter, backoff) in [(0.0, 0.75), (1.0, 1.25)] {
            let mut breaker = Breaker::new(CONFIG);
            (0..3).for_each(|_| breaker.failed(now, jitter));
            assert_eq!(breaker.status(now + seconds(backoff - 0.01)), Status::Open);
            assert_eq!(breaker.status(now + seconds(backoff + 0.01)), Status::ProbeDue);
        }
    }

    #[test]
    fn a_failure_rate_opens_it_once_there_are_calls_enough() {
        let (mut breaker, now) = (Breaker::new(CONFIG), Instant::now());
        for _ in 0..9 {
            breaker.answered(now);
            breaker.failed(now, EVEN);
        }
        assert_eq!(breaker.status(now), Status::Closed, "18 calls say nothing");
        breaker.answered(now);
        breaker.failed(now, EVEN);
        assert_eq!(breaker.status(now), Status::Open);
        let mut breaker = Breaker::new(CONFIG);
        (0..60).for_each(|_| breaker.answered(now));
        breaker.failed(now, EVEN);
        breaker.failed(now + 4 * WINDOW, EVEN);
        assert_eq!(breaker.status(now + 4 * WINDOW), Status::Closed);
    }

    #[test]
    fn a_probe_that_is_dropped_makes_room_for_the_next_and_only_its_own() {
        let (mut breaker, now) = (Breaker::new(CONFIG), Instant::now());
        (0..3).for_each(|_| breaker.failed(now, EVEN));
        let now = now + seconds(1.0);
        let first = breaker.probe(now).unwrap();
        breaker.release(first, now);
        let second = breaker.probe(now).unwrap();
        breaker.release(first, now);
        assert_eq!(breaker.status(now), Status::Probing);
        breaker.release(second, now);
        assert_eq!(breaker.status(now), Status::ProbeDue);
    }

    #[test]
    fn lost_calls_open_it_when_the_node_is_silent_for_long() {
        let patience = Duration::from_millis(20);
        let (mut breaker, start) = (Breaker::new(CONFIG), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        for n in 0..20 {
            breaker.lost(at(n), at(n + 2), patience, EVEN);
            if n % 2 == 1 {
                breaker.answered(at(n + 2));
            }
        }
        assert_eq!(breaker.status(at(22)), Status::Closed, "slow now and then");
        for n in 30..49 {
            assert_eq!(breaker.status(at(n)), Status::Closed, "{n}");
            breaker.lost(at(n), at(n + 2), patience, EVEN);
        }
        assert_eq!(breaker.status(at(50)), Status::Open, "silent for 20 ms");
        let due = at(50) + seconds(2.0);
        breaker.probe(due).unwrap();
        breaker.lost(due, due, patience, EVEN);
        assert_eq!(breaker.status(due + seconds(1.9)), Status::Open, "a lost probe is a failed one");
    }

    #[test]
    fn news_of_the_node_is_reason_to_probe_at_once() {
        let (mut breaker, now) = (Breaker::new(CONFIG), Instant::now());
        breaker.forgive(now);
        assert_eq!(breaker.status(now), Status::Closed);
        (0..3).for_each(|_| breaker.failed(now, EVEN));
        breaker.forgive(now);
        assert_eq!(breaker.status(now), Status::ProbeDue);
    }
}
