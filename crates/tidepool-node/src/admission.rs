//! Which lookups the node takes on: as many as their rows allow, and no more rows per second than it should.
//! Decided from the lengths of a request's fields alone, before any of them is read.
//!
//! A lookup is answered when every node that it needs takes it on. Were each node to turn away whichever lookups come
//! at a bad moment, of those that two of them take a third of, a ninth would be answered, and the rest be work for
//! nothing. So where more is asked than the rate allows, lookups with small lots are taken on, and lots are the same
//! at all nodes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus::{PullingGauge, Registry};

use crate::{
    error::LookupError,
    rate::{Bucket, Rate},
};

/// How long a node at rest may exceed its rows per second.
const BURST: Duration = Duration::from_millis(100);

/// How often it is reckoned anew how much is asked for, and what the last such time counts in it.
const WINDOW: Duration = Duration::from_millis(100);
const WEIGHT: f64 = 0.25;
/// Of what the rate allows, what lots are given: the rest is for arrivals that come in bunches.
const FILL: f64 = 0.97;

/// The bounds, and what is taken on at the moment.
#[derive(Debug)]
pub(crate) struct Admission {
    max_rows: u64,
    in_flight: Arc<AtomicU64>,
    rate: Option<(Bucket, Demand)>,
    started: Instant,
}

/// What is asked for, and up to which lot it is taken on.
#[derive(Debug)]
struct Demand {
    /// Rows asked for in this window of [`WINDOW`], and which one it is.
    asked: AtomicU64,
    window: AtomicU64,
    /// Rows a second over the last windows, as the bits of a float.
    per_second: AtomicU64,
    /// The largest lot that is taken on.
    most: AtomicU64,
}

/// A lookup that was taken on; its rows are in flight until this is dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    rows: u64,
    in_flight: Arc<AtomicU64>,
}

impl Admission {
    /// At most `max_rows` in flight, and `rows_per_second` if that is bounded.
    pub(crate) fn new(max_rows: u64, rows_per_second: Option<u64>) -> Self {
        let rate = |per_second| (Bucket::new(Rate { per_second, burst: BURST }), Demand::none());
        Self { max_rows, in_flight: Arc::default(), rate: rows_per_second.map(rate), started: Instant::now() }
    }

    /// Takes a lookup of so many rows and with that lot on; 0 is none, and none is too large.
    ///
    /// # Errors
    /// [`LookupError::TooMuchWork`] when it could never be, [`LookupError::RowsInFlight`] and
    /// [`LookupError::RowsPerSecond`] when it cannot be now.
    pub(crate) fn admit(&self, rows: u64, lot: u64) -> Result<Admitted, LookupError> {
        if rows > self.max_rows {
            return Err(LookupError::TooMuchWork { rows, limit: self.max_rows });
        }
        let before = self.in_flight.fetch_add(rows, Ordering::Relaxed);
        // From here on, whatever happens gives the rows back.
        let admitted = Admitted { rows, in_flight: self.in_flight.clone() };
        if before.saturating_add(rows) > self.max_rows {
            return Err(LookupError::RowsInFlight { in_flight: before, rows, limit: self.max_rows });
        }
        if let Some((rate, demand)) = &self.rate {
            let (now, limit) = (self.started.elapsed(), rate.rate().per_second);
            let chosen = lot <= demand.count(rows, now, limit);
            if !chosen || rate.take(rows, now).is_err() {
                return Err(LookupError::RowsPerSecond { rows, limit });
            }
        }
        Ok(admitted)
    }

    /// Shows the rows in flight in `registry`.
    ///
    /// # Errors
    /// When it has a metric of such a name already.
    pub(crate) fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        let in_flight = self.in_flight.clone();
        let gauge = PullingGauge::new(
            "tidepool_node_in_flight_rows",
            "Rows of lookups that were taken on and not yet answered",
            Box::new(move || in_flight.load(Ordering::Relaxed) as f64),
        )?;
        registry.register(Box::new(gauge))
    }
}

impl Demand {
    const fn none() -> Self {
        Self {
            asked: AtomicU64::new(0),
            window: AtomicU64::new(0),
            per_second: AtomicU64::new(0),
            most: AtomicU64::new(u64::MAX),
        }
    }

    /// Counts rows that are asked for, and gives the largest lot that is taken on of `limit` rows a second. Who comes
    /// first in a window reckons for all.
    fn count(&self, rows: u64, now: Duration, limit: u64) -> u64 {
        self.asked.fetch_add(rows, Ordering::Relaxed);
        let window = (now.as_nanos() / WINDOW.as_nanos()) as u64;
        let before = self.window.load(Ordering::Relaxed);
        let is_first = window > before
            && self.window.compare_exchange(before, window, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_first {
            let passed = (window - before) as f64;
            let asked = self.asked.swap(0, Ordering::Relaxed) as f64 / (passed * WINDOW.as_secs_f64());
            let known = f64::from_bits(self.per_second.load(Ordering::Relaxed));
            // What was asked in windows without anybody counts as often as they were.
            let per_second = asked + (known - asked) * (1.0 - WEIGHT).powf(passed);
            self.per_second.store(per_second.to_bits(), Ordering::Relaxed);
            let share = FILL * limit as f64 / per_second;
            let most = if share < 1.0 { (share * u64::MAX as f64) as u64 } else { u64::MAX };
            self.most.store(most, Ordering::Relaxed);
        }
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(self.rows, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tidepool_types::mix64;

    use super::*;

    #[test]
    fn rows_in_flight_are_bounded_and_come_back() {
        let admission = Admission::new(100, None);
        let first = admission.admit(60, 0).unwrap();
        let second = admission.admit(40, 0).unwrap();
        let refused = admission.admit(1, 0).unwrap_err();
        assert_eq!(refused, LookupError::RowsInFlight { in_flight: 100, rows: 1, limit: 100 });
        drop(second);
        assert!(admission.admit(41, 0).is_err(), "what was refused is not in flight");
        assert!(admission.admit(40, 0).is_ok());
        drop(first);
        assert!(admission.admit(100, 0).is_ok());
        assert_eq!(admission.in_flight.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_could_never_be_taken_on_is_the_callers_mistake() {
        let admission = Admission::new(100, None);
        let error = admission.admit(101, 0).unwrap_err();
        assert_eq!(error, LookupError::TooMuchWork { rows: 101, limit: 100 });
        assert!(!error.code().retry_elsewhere());
        assert!(error.to_string().contains("admission_max_rows"), "{error}");
    }

    #[test]
    fn the_rate_holds_and_a_refusal_takes_nothing() {
        let admission = Admission::new(1000, Some(1));
        assert!(admission.admit(900, 0).is_ok(), "more than the burst, after a rest");
        for _ in 0..10 {
            let refused = admission.admit(1000, 0).unwrap_err();
            assert_eq!(refused, LookupError::RowsPerSecond { rows: 1000, limit: 1 });
        }
        assert_eq!(admission.in_flight.load(Ordering::Relaxed), 0);
    }

    /// Two nodes, to each of which every lookup comes, at times of their own.
    #[test]
    fn nodes_that_are_asked_too_much_take_the_same_lookups_on() {
        const LIMIT: u64 = 200_000;
        let nodes =
            [(), ()].map(|()| (Bucket::new(Rate { per_second: LIMIT, burst: BURST }), Demand::none()));
        let (mut by_either, mut by_both, mut asked) = (0u64, 0u64, 0u64);
        for at in 0..60_000u64 {
            // 2400 lookups of 250 rows a second: three times what is taken on.
            let (now, lot) = (Duration::from_nanos(at * 1_000_000_000 / 2400), mix64(at) | 1);
            let taken = [0, 37].map(|late| {
                let (rate, demand) = &nodes[usize::from(late > 0)];
                let now = now + Duration::from_millis(late);
                lot <= demand.count(250, now, LIMIT) && rate.take(250, now).is_ok()
            });
            // The first second is that of who learns.
            if now > Duration::from_secs(1) {
                asked += 1;
                by_either += u64::from(taken[0] || taken[1]);
                by_both += u64::from(taken[0] && taken[1]);
            }
        }
        let share = |count: u64| count as f64 / asked as f64;
        assert!(share(by_both) > 0.9 / 3.0, "{} by both, {} by either", share(by_both), share(by_either));
        assert!(share(by_either) < 1.05 / 3.0, "{}", share(by_either));
    }

    #[test]
    fn a_node_that_is_asked_less_than_it_takes_on_looks_at_no_lot() {
        let demand = Demand::none();
        for at in 0..1000 {
            assert_eq!(demand.count(90, Duration::from_millis(at), 100_000), u64::MAX);
        }
        let most =
            (1000..3000).map(|at| demand.count(400, Duration::from_millis(at), 100_000)).last().unwrap();
        let share = most as f64 / u64::MAX as f64;
        assert!((share - FILL / 4.0).abs() < 0.01, "{share}");
        // After a rest nothing is left of that.
        assert_eq!(demand.count(1, Duration::from_secs(60), 100_000), u64::MAX);
    }
}
