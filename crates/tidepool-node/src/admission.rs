//! Which lookups the node takes on: as many as their rows allow, and no more rows per second than it should.
//! Decided from the lengths of a request's fields alone, before any of them is read.

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

/// The bounds, and what is taken on at the moment.
#[derive(Debug)]
pub(crate) struct Admission {
    max_rows: u64,
    in_flight: Arc<AtomicU64>,
    rate: Option<Bucket>,
    started: Instant,
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
        let rate = |per_second| Bucket::new(Rate { per_second, burst: BURST });
        Self { max_rows, in_flight: Arc::default(), rate: rows_per_second.map(rate), started: Instant::now() }
    }

    /// Takes a lookup of so many rows on.
    ///
    /// # Errors
    /// [`LookupError::TooMuchWork`] when it could never be, [`LookupError::RowsInFlight`] and
    /// [`LookupError::RowsPerSecond`] when it cannot be now.
    pub(crate) fn admit(&self, rows: u64) -> Result<Admitted, LookupError> {
        if rows > self.max_rows {
            return Err(LookupError::TooMuchWork { rows, limit: self.max_rows });
        }
        let before = self.in_flight.fetch_add(rows, Ordering::Relaxed);
        // From here on, whatever happens gives the rows back.
        let admitted = Admitted { rows, in_flight: self.in_flight.clone() };
        if before.saturating_add(rows) > self.max_rows {
            return Err(LookupError::RowsInFlight { in_flight: before, rows, limit: self.max_rows });
        }
        if let Some(rate) = &self.rate {
            rate.take(rows, self.started.elapsed())
                .map_err(|_| LookupError::RowsPerSecond { rows, limit: rate.rate().per_second })?;
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

impl Drop for Admitted {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(self.rows, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_flight_are_bounded_and_come_back() {
        let admission = Admission::new(100, None);
        let first = admission.admit(60).unwrap();
        let second = admission.admit(40).unwrap();
        let refused = admission.admit(1).unwrap_err();
        assert_eq!(refused, LookupError::RowsInFlight { in_flight: 100, rows: 1, limit: 100 });
        drop(second);
        assert!(admission.admit(41).is_err(), "what was refused is not in flight");
        assert!(admission.admit(40).is_ok());
        drop(first);
        assert!(admission.admit(100).is_ok());
        assert_eq!(admission.in_flight.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_could_never_be_taken_on_is_the_callers_mistake() {
        let admission = Admission::new(100, None);
        let error = admission.admit(101).unwrap_err();
        assert_eq!(error, LookupError::TooMuchWork { rows: 101, limit: 100 });
        assert!(!error.code().retry_elsewhere());
        assert!(error.to_string().contains("admission_max_rows"), "{error}");
    }

    #[test]
    fn the_rate_holds_and_a_refusal_takes_nothing() {
        let admission = Admission::new(1000, Some(1));
        assert!(admission.admit(900).is_ok(), "more than the burst, after a rest");
        for _ in 0..10 {
            let refused = admission.admit(1000).unwrap_err();
            assert_eq!(refused, LookupError::RowsPerSecond { rows: 1000, limit: 1 });
        }
        assert_eq!(admission.in_flight.load(Ordering::Relaxed), 0);
    }
}
