//! Load on one way of answering, and what it gave.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, task::yield_now};

use super::{
    Way,
    ask::{Ask, Took},
    interval::P99,
    stages::{Stage, StageCounts},
};
use crate::{
    BenchError,
    load::{Arrivals, Pacer, Rate, Times},
};

/// Requests in flight at most, of those that arrive when they arrive.
const MAX_IN_FLIGHT: usize = 4096;
/// Answers of a round that are compared.
const CHECKED: usize = 16;

/// What a load gave.
pub(super) struct Loaded {
    pub(super) latency: Times,
    pub(super) stages: StageCounts,
    sent: u64,
    failed: u64,
    first_failure: Option<String>,
    took: Took,
    elapsed: Duration,
    /// How long the sender looked at the clock.
    pub(super) spun: Duration,
    /// Answers that are to be compared.
    pub(super) kept: Vec<(u64, Vec<f32>)>,
}

impl Loaded {
    pub(super) fn new() -> Result<Self, BenchError> {
        Ok(Self {
            latency: Times::new()?,
            stages: StageCounts::default(),
            sent: 0,
            failed: 0,
            first_failure: None,
            took: Took::default(),
            elapsed: Duration::ZERO,
            spun: Duration::ZERO,
            kept: Vec::new(),
        })
    }

    /// Request `number` has ended, which was sent so much after its `moment`.
    fn record(
        &mut self,
        number: u64,
        (start, latency): (Duration, Duration),
        answer: Result<Took, String>,
    ) -> Result<(), BenchError> {
        self.sent += 1;
        match answer {
            Ok(took) => {
                self.latency.record(latency);
                self.took.lookup += took.lookup;
                self.took.dense += took.dense;
                self.took.queue += took.queue;
                self.took.batch_requests += took.batch_requests;
                self.took.rows += took.rows;
                if let Some((stages, in_all)) = took.stages {
                    let outside = latency.saturating_sub(start).saturating_sub(in_all);
                    let around = [(Stage::Start, start), (Stage::ClientAndWire, outside)];
                    for (stage, time) in around.into_iter().chain(stages) {
                        self.stages.record(stage, time)?;
                    }
                }
                if self.kept.len() < CHECKED {
                    self.kept.push((number, took.scores));
                }
            }
            Err(problem) => {
                self.failed += 1;
                self.first_failure.get_or_insert(problem);
            }
        }
        Ok(())
    }

    pub(super) fn merge(&mut self, more: &Self) {
        self.latency.merge(&more.latency);
        self.stages.merge(&more.stages);
        self.sent += more.sent;
        self.failed += more.failed;
        self.first_failure = self.first_failure.take().or_else(|| more.first_failure.clone());
        self.took.lookup += more.took.lookup;
        self.took.dense += more.took.dense;
        self.took.queue += more.took.queue;
        self.took.batch_requests += more.took.batch_requests;
        self.took.rows += more.took.rows;
        self.elapsed += more.elapsed;
        self.spun += more.spun;
    }

    pub(super) fn way(&self) -> Way {
        let answered = self.latency.count();
        let each = |sum: f64| sum / (answered.max(1) as f64);
        let micros = |sum: Duration| each(sum.as_secs_f64() * 1e6);
        let p99 = P99::of(&self.latency);
        Way {
            requests: self.sent,
            failed_requests: self.failed,
            first_failure: self.first_failure.clone(),
            requests_per_second: answered as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
            mean_us: self.latency.mean_us(),
            p50_us: self.latency.quantile_us(0.5),
            p99_us: p99.map(|p99| p99.us),
            p99,
            max_us: self.latency.max_us(),
            lookup_us: micros(self.took.lookup),
            dense_us: micros(self.took.dense),
            queue_us: micros(self.took.queue),
            batch_requests: each(self.took.batch_requests.into()),
            rows_looked_up: each(self.took.rows as f64),
        }
    }
}

/// Puts load on somebody for `time`; requests are numbered from `first` on. Each is made before its moment.
pub(super) async fn load<A: Ask>(
    who: &Arc<A>,
    rate: Rate,
    time: Duration,
    (first, seed): (u64, u64),
) -> Result<Loaded, BenchError> {
    let report = Arc::new(Mutex::new(Loaded::new()?));
    let most = match rate {
        Rate::PerSecond(_) => MAX_IN_FLIGHT,
        Rate::Max { in_flight } => in_flight.clamp(1, MAX_IN_FLIGHT),
    };
    let in_flight = Arc::new(Semaphore::new(most));
    let mut pacer = Pacer::new()?;
    let mut arrivals = match rate {
        Rate::PerSecond(per_second) => Some(Arrivals::new(per_second, seed)),
        Rate::Max { .. } => None,
    };
    let begin = Instant::now();
    for number in first.. {
        let asked = who.prepare(number);
        let moment = match arrivals.as_mut().and_then(Iterator::next) {
            Some(at) if at >= time => break,
            Some(at) => {
                pacer.until(begin + at, || in_flight.available_permits() < most).await?;
                Some(begin + at)
            }
            None if begin.elapsed() >= time => break,
            None => None,
        };
        let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else { break };
        let moment = moment.unwrap_or_else(Instant::now);
        let (who, report) = (Arc::clone(who), Arc::clone(&report));
        tokio::spawn(async move {
            let start = moment.elapsed();
            let answer = who.ask(asked).await;
            let latency = moment.elapsed();
            // The bounds of histograms are constants: one that cannot be made would have been noticed before.
            let _ = report.lock().unwrap_or_else(PoisonError::into_inner).record(
                number,
                (start, latency),
                answer,
            );
            drop(report);
            drop(permit);
        });
        // It is sent before the next is made.
        yield_now().await;
    }
    // When all permits are back, so are the answers.
    let _: Result<_, _> = in_flight.acquire_many(most as u32).await;
    let report = Arc::into_inner(report).ok_or(BenchError::Parameters("a request outlived its load"))?;
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    (report.elapsed, report.spun) = (begin.elapsed(), pacer.spun());
    Ok(report)
}
