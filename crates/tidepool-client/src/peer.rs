//! What the client knows of one node, from map to map: its connection, the calls in flight, its latency and
//! its breaker.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    breaker::{Breaker, Status},
    config::BreakerConfig,
    latency::PeakEwma,
    transport::Connection,
};

/// What an `overloaded` counts as: enough for other groups to be chosen for a second or so.
const OVERLOADED_AS: Duration = Duration::from_millis(50);

/// A node, as this client has come to know it.
#[derive(Debug)]
pub(crate) struct Peer {
    /// `host:port`.
    pub(crate) address: String,
    /// The connection, made when it is first used; or why there cannot be one.
    pub(crate) connection: Result<Connection, String>,
    /// Whether a connection was made in advance.
    pub(crate) connected: AtomicBool,
    in_flight: AtomicU32,
    health: Mutex<Health>,
}

#[derive(Debug)]
struct Health {
    breaker: Breaker,
    latency: PeakEwma,
}

/// A look at a [`Peer`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) status: Status,
    /// See [`PeakEwma`].
    pub(crate) latency_nanos: f64,
    pub(crate) in_flight: u32,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With an answer.
    Answered,
    /// With a refusal that only a living node can give; it came faster than an answer would.
    Refused,
    /// Refused because a queue was full.
    Overloaded,
    /// In a way that concerns the whole node.
    Failed,
    /// In a way that says nothing of the node.
    Untold,
}

impl Peer {
    pub(crate) fn new(address: &str, connection: Result<Connection, String>, breaker: BreakerConfig) -> Self {
        let health = Health { breaker: Breaker::new(breaker), latency: PeakEwma::default() };
        Self {
            address: address.to_owned(),
            connection,
            connected: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            health: Mutex::new(health),
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn look(&self, now: Instant) -> Look {
        let health = self.health();
        Look {
            status: health.breaker.status(now),
            latency_nanos: health.latency.nanos(now),
            in_flight: self.in_flight.load(Ordering::Relaxed),
        }
    }

    /// A place for one more call, when the breaker lets it through.
    pub(crate) fn admit(&self, now: Instant) -> Option<Ticket<'_>> {
        let mut health = self.health();
        match health.breaker.status(now) {
            Status::Closed => Some(self.ticket(now, None)),
            Status::ProbeDue => Some(self.ticket(now, health.breaker.probe(now))),
            Status::Probing | Status::Open => None,
        }
    }

    /// A place for one more call, whatever the breaker says.
    pub(crate) fn insist(&self, now: Instant) -> Ticket<'_> {
        let probe = self.health().breaker.probe(now);
        self.ticket(now, probe)
    }

    fn ticket(&self, started: Instant, probe: Option<u64>) -> Ticket<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Ticket { peer: self, started, probe }
    }

    /// The node has news of itself: see [`Breaker::forgive`].
    pub(crate) fn forgive(&self, now: Instant) {
        self.health().breaker.forgive(now);
    }
}

/// A call in flight. Dropped before it has ended, it was cancelled, and says nothing of the node.
#[derive(Debug)]
pub(crate) struct Ticket<'p> {
    pub(crate) peer: &'p Peer,
    pub(crate) started: Instant,
    probe: Option<u64>,
}

impl Ticket<'_> {
    /// The call has ended.
    pub(crate) fn end(self, ending: Ending, now: Instant, jitter: f64) {
        let mut health = self.peer.health();
        let latency = now.saturating_duration_since(self.started);
        match ending {
            Ending::Answered => {
                health.breaker.answered(now);
                health.latency.observe(now, latency);
            }
            Ending::Refused => health.breaker.answered(now),
            Ending::Overloaded => {
                health.breaker.answered(now);
                health.latency.observe(now, latency.max(OVERLOADED_AS));
            }
            Ending::Failed => health.breaker.failed(now, jitter),
            Ending::Untold => {}
        }
    }

    /// The call is given up, for another node's answer or for want of time: see [`Breaker::lost`].
    pub(crate) fn lose(self, now: Instant, patience: Duration, jitter: f64) {
        let mut health = self.peer.health();
        health.breaker.lost(self.started, now, patience, jitter);
        health.latency.observe(now, now.saturating_duration_since(self.started));
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.peer.in_flight.fetch_sub(1, Ordering::Relaxed);
        if let Some(probe) = self.probe {
            self.peer.health().breaker.release(probe, self.started);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        let breaker = BreakerConfig { failures: 1, ..Default::default() };
        Peer::new("-", Err("none".into()), breaker)
    }

    #[test]
    fn calls_in_flight_are_counted_however_they_end() {
        let (peer, now) = (peer(), Instant::now());
        let tickets: Vec<_> = (0..4).map(|_| peer.admit(now).unwrap()).collect();
        assert_eq!(peer.look(now).in_flight, 4);
        for (ticket, ending) in tickets.into_iter().zip([Ending::Answered, Ending::Untold]) {
            ticket.end(ending, now, 0.5);
        }
        assert_eq!(peer.look(now).in_flight, 0, "two have ended, two were dropped");
        assert_eq!(peer.look(now).status, Status::Closed);
    }

    #[test]
    fn a_cancelled_probe_is_as_if_it_had_not_been() {
        let (peer, now) = (peer(), Instant::now());
        peer.admit(now).unwrap().end(Ending::Failed, now, 0.5);
        assert!(peer.admit(now).is_none());
        drop(peer.insist(now));
        let later = now + Duration::from_secs(60);
        let probe = peer.admit(later).unwrap();
        assert!(peer.admit(later).is_none(), "one probe at a time");
        drop(probe);
        peer.admit(later).unwrap().end(Ending::Answered, later, 0.5);
        assert_eq!(peer.look(later).status, Status::Closed);
    }

    #[test]
    fn an_overloaded_node_is_no_sick_one_but_seems_slow_for_a_moment() {
        let (peer, now) = (peer(), Instant::now());
        peer.admit(now).unwrap().end(Ending::Overloaded, now, 0.5);
        let look = peer.look(now);
        assert_eq!(look.status, Status::Closed);
        assert_eq!(look.latency_nanos, OVERLOADED_AS.as_secs_f64() * 1e9);
        assert!(peer.look(now + Duration::from_secs(20)).latency_nanos < 1.0);
    }
}
