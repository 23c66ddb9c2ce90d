//! Sends a plan: on its moments, or as fast as it goes with so many requests at once.

use std::{
    any::Any,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::FutureExt;
use tidepool_client::{Client, LookupOptions, LookupOutcome, LookupRequest};
use tidepool_types::ErrorCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::{
    answers::{Answers, Check, CheckRows, Keep},
    ask::Asked,
    pace::Pacer,
    prepare::{Plan, Planned},
    report::LoadReport,
};
use crate::BenchError;

/// Between the beginning of a load and its first moment.
const LEAD: Duration = Duration::from_millis(2);

/// How many requests there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// So many a second, arriving by chance (Poisson) whether others have been answered or not.
    PerSecond(f64),
    /// As many as are answered, with so many in flight: a closed loop.
    Max {
        /// Requests in flight.
        in_flight: usize,
    },
}

impl Rate {
    /// These `requests`, which have so many `ids` on average, sent at this rate for `time`, or until there are no
    /// more; arrivals are drawn from `seed`.
    ///
    /// # Errors
    /// [`BenchError::Parameters`]: a rate that is not above 0.
    pub fn plan(
        self,
        requests: impl Iterator<Item = LookupRequest> + Send + 'static,
        ids: usize,
        time: Duration,
        seed: u64,
        max_in_flight: usize,
    ) -> Result<(Plan, Pace), BenchError> {
        match self {
            Self::PerSecond(rate) if rate > 0.0 && rate.is_finite() => {
                Ok((Plan::poisson(requests, rate, time, ids, seed), Pace::Planned { max_in_flight }))
            }
            Self::PerSecond(_) => Err(BenchError::Parameters("a rate is above 0")),
            Self::Max { in_flight } => Ok((Plan::endless(requests, ids), Pace::Max { in_flight, time })),
        }
    }
}

/// A load on a bench table.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    /// What requests ask.
    pub asked: Asked,
    /// How many there are.
    pub rate: Rate,
    /// How long they are sent.
    pub time: Duration,
    /// Timeout, tenant, wire form.
    pub options: LookupOptions,
    /// Requests in flight at most; more are held back, and their latency runs.
    pub max_in_flight: usize,
    /// How answers are kept until they are checked.
    pub keep: Keep,
}

impl LoadSpec {
    /// Requests in flight at most, if nothing else is said.
    pub const MAX_IN_FLIGHT: usize = 4096;

    /// A load of that rate and time, with the default options.
    #[must_use]
    pub fn new(asked: Asked, rate: Rate, time: Duration) -> Self {
        let (options, keep) = (LookupOptions::default(), Keep::default());
        Self { asked, rate, time, options, max_in_flight: Self::MAX_IN_FLIGHT, keep }
    }
}

/// Sends the requests of `spec` through `client`, and has the answers checked.
///
/// # Errors
/// [`BenchError`]: requests that cannot be. Lookups that fail are counted in the report.
pub async fn run(client: &Client, spec: &LoadSpec) -> Result<LoadReport, BenchError> {
    let LoadSpec { asked, time, max_in_flight, .. } = *spec;
    let (plan, pace) = spec.rate.plan(asked.requests()?, asked.ids(), time, asked.seed, max_in_flight)?;
    let lookups = Lookups { client: client.clone(), options: spec.options.clone() };
    drive(Arc::new(lookups), plan, pace, Some((Arc::new(CheckRows(asked.table)), spec.keep))).await
}

/// When the requests of a plan are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At their moments, while no more than this many are in flight.
    Planned {
        /// Requests in flight at most.
        max_in_flight: usize,
    },
    /// Without regard to their moments, always so many at once, for so long.
    Max {
        /// Requests in flight.
        in_flight: usize,
        /// How long.
        time: Duration,
    },
}

/// Who answers requests.
pub trait Target: Send + Sync + 'static {
    /// Answers one.
    fn ask(&self, request: &LookupRequest) -> impl Future<Output = Result<LookupOutcome, Failure>> + Send;
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub code: ErrorCode,
    /// What people read.
    pub text: String,
}

/// A cluster, through the lookup client.
#[derive(Clone, Debug)]
pub struct Lookups {
    /// The client.
    pub client: Client,
    /// How it asks.
    pub options: LookupOptions,
}

impl Target for Lookups {
    async fn ask(&self, request: &LookupRequest) -> Result<LookupOutcome, Failure> {
        self.client.lookup(request, &self.options).await.map_err(|error| {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(next) = cause {
                text = format!("{text}: {next}");
                cause = next.source();
            }
            Failure { code: error.code(), text }
        })
    }
}

/// What the tasks of a load share.
struct Shared<T> {
    target: Arc<T>,
    report: Mutex<LoadReport>,
    answers: Option<Answers>,
    in_flight: Arc<Semaphore>,
    most: usize,
}

/// Sends what is planned to `target`, waits for the last answer, and has all of them checked. What cannot be
/// sent on the timed path's own thread is prepared before; the load begins when enough of it is there.
///
/// # Errors
/// [`BenchError`]: threads or timers that cannot be had.
pub async fn drive<T: Target>(
    target: Arc<T>,
    plan: Plan,
    pace: Pace,
    check: Option<(Arc<dyn Check>, Keep)>,
) -> Result<LoadReport, BenchError> {
    let most = match pace {
        Pace::Planned { max_in_flight: most } | Pace::Max { in_flight: most, .. } => most,
    };
    let most = most.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
    let answers = check.map(|(check, keep)| Answers::new(check, keep)).transpose()?;
    let prepared = plan.prepare().await?;
    let shared = Arc::new(Shared {
        target,
        report: Mutex::new(LoadReport::new()?),
        answers,
        in_flight: Arc::new(Semaphore::new(most)),
        most,
    });
    // A task, so that requests begin on the thread that keeps the time, and not on one that must be woken.
    let sending = AbortOnDropHandle::new(tokio::spawn(send(Arc::clone(&shared), prepared, pace)));
    sending.await.map_err(|error| BenchError::io("sending")(error.into()))??;
    let shared = Arc::into_inner(shared).ok_or(BenchError::Parameters("a request outlived its load"))?;
    let mut report = shared.report.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(answers) = shared.answers {
        let checked = tokio::task::spawn_blocking(move || answers.finish()).await;
        (report.verdict, report.unchecked) =
            checked.map_err(|error| BenchError::io("checking answers")(error.into()))?;
    }
    Ok(report)
}

/// Sends every request and waits for the last answer.
async fn send<T: Target>(
    shared: Arc<Shared<T>>,
    mut prepared: mpsc::Receiver<Planned>,
    pace: Pace,
) -> Result<(), BenchError> {
    let mut pacer = Pacer::new()?;
    let begin = Instant::now() + LEAD;
    pacer.until(begin, || false).await?;
    let (mut unprepared, mut held_back) = (0, 0);
    loop {
        let next = match prepared.try_recv() {
            Err(mpsc::error::TryRecvError::Empty) => {
                unprepared += 1;
                prepared.recv().await
            }
            other => other.ok(),
        };
        let Some(Planned { at, request }) = next else { break };
        let is_busy = || shared.in_flight.available_permits() < shared.most;
        if let Pace::Planned { .. } = pace {
            pacer.until(begin + at, is_busy).await?;
        }
        let permit = match Arc::clone(&shared.in_flight).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => {
                held_back += 1;
                Arc::clone(&shared.in_flight).acquire_owned().await.ok()
            }
        };
        let moment = match pace {
            Pace::Planned { .. } => begin + at,
            Pace::Max { time, .. } => {
                let now = Instant::now();
                if now >= begin + time {
                    break;
                }
                now
            }
        };
        tokio::spawn(one(Arc::clone(&shared), request, moment, permit));
    }
    // When all permits are back, so are the answers.
    let _: Result<_, _> = shared.in_flight.acquire_many(shared.most as u32).await;
    let mut report = shared.report.lock().unwrap_or_else(PoisonError::into_inner);
    report.elapsed = begin.elapsed();
    report.unprepared = unprepared;
    report.held_back = if matches!(pace, Pace::Planned { .. }) { held_back } else { 0 };
    report.spun = pacer.spun();
    Ok(())
}

async fn one<T: Target>(
    shared: Arc<Shared<T>>,
    request: LookupRequest,
    moment: Instant,
    permit: Option<OwnedSemaphorePermit>,
) {
    let start_delay = moment.elapsed();
    // Nothing of a lookup that has panicked is used again, and the report has to say that there was one.
    let asked = AssertUnwindSafe(shared.target.ask(&request)).catch_unwind().await;
    let result = asked.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
    let latency = moment.elapsed();
    {
        let mut report = shared.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.record(&request, &result, start_delay, latency);
    }
    if let (Ok(outcome), Some(answers)) = (result, &shared.answers) {
        answers.keep(request, outcome);
    }
    // Before the permit, whose return says that nothing of this request is left.
    drop(shared);
    drop(permit);
}

/// What a panic is to whoever counts failures.
fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let said = panic.downcast_ref::<&str>().copied();
    let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Failure { code: ErrorCode::Internal, text: format!("the lookup panicked: {}", said.unwrap_or("?")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers, but panics for every third request.
    struct Fragile;

    impl Target for Fragile {
        async fn ask(&self, request: &LookupRequest) -> Result<LookupOutcome, Failure> {
            tokio::task::yield_now().await;
            let number: u32 = request.request_id.parse().unwrap();
            assert!(!number.is_multiple_of(3), "request {number} is one too many");
            Ok(LookupOutcome::default())
        }
    }

    #[tokio::test]
    async fn a_lookup_that_panics_has_failed() {
        let requests =
            (0..30).map(|n: u32| LookupRequest { request_id: n.to_string(), features: Vec::new() });
        for pace in
            [Pace::Planned { max_in_flight: 4 }, Pace::Max { in_flight: 4, time: Duration::from_secs(3600) }]
        {
            let plan = Plan::endless(requests.clone(), 1);
            let report = drive(Arc::new(Fragile), plan, pace, None).await.unwrap();
            assert_eq!((report.requests, report.answered), (30, 20), "{pace:?}");
            assert_eq!(report.failed, [("internal", 10)].into(), "{pace:?}");
            let first = report.first_failure.unwrap();
            assert!(first.contains("panicked: request") && first.contains("is one too many"), "{first}");
        }
    }
}
