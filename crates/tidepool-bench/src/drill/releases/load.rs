//! The load of a drill of releases: ranking requests that arrive when they arrive, at several rankers in turn, from
//! the beginning of the drill to its end. It is cut into windows, and every answer is kept and checked.
//!
//! A request's time runs from the moment at which it was meant to be sent. Whoever has no answer in time has failed;
//! nobody asks again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tidepool_proto::{
    code_of,
    v1::{self, ranker_client::RankerClient},
};
use tidepool_types::ErrorCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;

use super::{
    oracle::{Oracle, Verdict},
    requests::Requests,
};
use crate::{
    BenchError,
    load::{Arrivals, Pacer, Times},
};

/// Requests in flight at most; more are held back, and their time runs.
const MAX_IN_FLIGHT: usize = 4096;
/// Answers that are kept for the check at most, of some 500 bytes each; a drill at its limit of time has far fewer.
const MAX_ANSWERS: usize = 1 << 20;
/// How often a wait looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long after its deadline a request may still be on its way out.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What a part of the load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing is compared with it: processes have just started, or the next pair is prepared.
    Between,
    /// Nothing happens.
    Before,
    /// The transition.
    During,
}

/// What came of a part of the load.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub(super) kind: Kind,
    pub(super) sent: u64,
    /// By the word of the error's code.
    pub(super) failed: BTreeMap<&'static str, u64>,
    /// Of all requests, those that failed as well.
    pub(super) latency: Times,
}

/// What checking found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Checked {
    pub(super) answers: u64,
    pub(super) mixed: u64,
    pub(super) wrong: u64,
    /// Answers by another release than the one that alone was to answer by then.
    pub(super) stale: u64,
    /// Of windows of a transition.
    pub(super) during: u64,
    /// What the first that was mixed or wrong looked like.
    pub(super) first_bad: Option<String>,
    /// The same of those that were stale.
    pub(super) first_stale: Option<String>,
}

/// The whole load.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) windows: Vec<Window>,
    /// What the first failure said.
    pub(super) first_failure: Option<String>,
    pub(super) checked: Checked,
    /// Answers that there was no room for.
    pub(super) unchecked: u64,
}

/// How load is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoadSpec {
    pub(super) requests: Requests,
    pub(super) per_second: f64,
    pub(super) deadline: Duration,
}

/// A load that goes on until it is ended.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    task: AbortOnDropHandle<Result<(), BenchError>>,
}

#[derive(Debug)]
struct Shared {
    rankers: Vec<RankerClient<Channel>>,
    spec: LoadSpec,
    state: Mutex<State>,
    end: AtomicBool,
    in_flight: Arc<Semaphore>,
}

#[derive(Debug)]
struct State {
    windows: Vec<Window>,
    next_number: u64,
    answers: Vec<Answer>,
    not_kept: u64,
    first_failure: Option<String>,
    /// From which request on which release alone answers; `None`: any that the oracle knows.
    expected: Vec<(u64, Option<String>)>,
    /// When the last request was sent that a release has answered.
    last_sent: BTreeMap<String, Instant>,
}

#[derive(Debug)]
struct Answer {
    number: u64,
    window: usize,
    response: v1::RankResponse,
}

impl Window {
    fn new(kind: Kind) -> Result<Self, BenchError> {
        Ok(Self { kind, sent: 0, failed: BTreeMap::new(), latency: Times::new()? })
    }
}

impl Load {
    /// Begins to ask these rankers.
    pub(super) fn start(rankers: Vec<RankerClient<Channel>>, spec: LoadSpec) -> Result<Self, BenchError> {
        let state = State {
            windows: vec![Window::new(Kind::Between)?],
            next_number: 0,
            answers: Vec::new(),
            not_kept: 0,
            first_failure: None,
            expected: Vec::new(),
            last_sent: BTreeMap::new(),
        };
        let shared = Arc::new(Shared {
            rankers,
            spec,
            state: Mutex::new(state),
            end: AtomicBool::new(false),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
        });
        let task = AbortOnDropHandle::new(tokio::spawn(send(Arc::clone(&shared))));
        Ok(Self { shared, task })
    }

    /// What is sent from here on belongs to another window.
    pub(super) fn window(&self, kind: Kind) -> Result<(), BenchError> {
        self.shared.lock().windows.push(Window::new(kind)?);
        Ok(())
    }

    /// Whatever is sent from here on must be answered by this release; by any, with `None`.
    pub(super) fn expect(&self, release: Option<&str>) {
        let mut state = self.shared.lock();
        let from = state.next_number;
        state.expected.push((from, release.map(str::to_owned)));
    }

    /// When the last request was sent that was answered by this release.
    pub(super) fn last_sent(&self, release: &str) -> Option<Instant> {
        self.shared.lock().last_sent.get(release).copied()
    }

    /// Requests of the present window so far.
    pub(super) fn sent(&self) -> u64 {
        self.shared.lock().windows.last().map_or(0, |window| window.sent)
    }

    /// Waits until so many requests of the present window have been sent.
    pub(super) async fn until_sent(&self, requests: u64) -> Result<(), BenchError> {
        while self.sent() < requests {
            if self.task.is_finished() {
                return Err(BenchError::Parameters("the load has ended before the drill"));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Ends the load, waits for the last answer, and has all of them checked.
    pub(super) async fn end(self, oracle: Oracle) -> Result<Outcome, BenchError> {
        self.shared.end.store(true, Ordering::Relaxed);
        let ended = tokio::time::timeout(END_TIMEOUT + self.shared.spec.deadline, self.task).await;
        let ended = ended.map_err(|_| BenchError::Parameters("a request outlived its load"))?;
        ended.map_err(|error| BenchError::io("sending")(error.into()))??;
        let shared = Arc::into_inner(self.shared);
        let shared = shared.ok_or(BenchError::Parameters("a request outlived its load"))?;
        let Shared { spec, state, .. } = shared;
        let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let checking = tokio::task::spawn_blocking(move || {
            let checked = check(&state, spec.requests, &oracle);
            (state, checked)
        });
        let (state, checked) =
            checking.await.map_err(|error| BenchError::io("checking answers")(error.into()))?;
        let State { windows, first_failure, not_kept: unchecked, .. } = state;
        Ok(Outcome { windows, first_failure, checked, unchecked })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request is being sent: its window.
    fn sent(&self, number: u64) -> usize {
        let mut state = self.lock();
        state.next_number = number + 1;
        if let Some(window) = state.windows.last_mut() {
            window.sent += 1;
        }
        state.windows.len() - 1
    }
}

/// Sends until it is to end, then waits for the last answer.
async fn send(shared: Arc<Shared>) -> Result<(), BenchError> {
    let LoadSpec { requests, per_second, .. } = shared.spec;
    let mut pacer = Pacer::new()?;
    let begin = Instant::now();
    for (number, at) in (0..).zip(Arrivals::new(per_second, requests.seed)) {
        // Made before its moment comes.
        let request = requests.message(number);
        let is_busy = || shared.in_flight.available_permits() < MAX_IN_FLIGHT;
        pacer.until(begin + at, is_busy).await?;
        if shared.end.load(Ordering::Relaxed) {
            break;
        }
        let window = shared.sent(number);
        let permit = Arc::clone(&shared.in_flight).acquire_owned().await.ok();
        tokio::spawn(one(Arc::clone(&shared), request, (number, window), begin + at, permit));
    }
    // When all permits are back, so are the answers.
    let _: Result<_, _> = shared.in_flight.acquire_many(MAX_IN_FLIGHT as u32).await;
    Ok(())
}

async fn one(
    shared: Arc<Shared>,
    mut request: v1::RankRequest,
    (number, window): (u64, usize),
    moment: Instant,
    permit: Option<OwnedSemaphorePermit>,
) {
    let deadline = shared.spec.deadline;
    let left = deadline.saturating_sub(moment.elapsed());
    request.deadline_us = left.as_micros().max(1) as u64;
    let mut ranker = shared.rankers[number as usize % shared.rankers.len()].clone();
    let result = tokio::time::timeout(left, ranker.rank(request)).await;
    let latency = moment.elapsed();
    let result = match result {
        Ok(Ok(response)) if latency <= deadline => Ok(response.into_inner()),
        Ok(Err(status)) => Err((code_of(&status), format!("request {number}: {}", status.message()))),
        Ok(Ok(_)) | Err(_) => {
            Err((ErrorCode::DeadlineExceeded, format!("request {number}: no answer within {deadline:?}")))
        }
    };
    {
        let mut state = shared.lock();
        let state = &mut *state;
        let window_of = &mut state.windows[window];
        window_of.latency.record(latency);
        match result {
            Ok(response) => {
                let last = state.last_sent.entry(response.release.clone()).or_insert(moment);
                *last = (*last).max(moment);
                if state.answers.len() < MAX_ANSWERS {
                    state.answers.push(Answer { number, window, response });
                } else {
                    state.not_kept += 1;
                }
            }
            Err((code, text)) => {
                *window_of.failed.entry(code.as_str()).or_default() += 1;
                state.first_failure.get_or_insert(text);
            }
        }
    }
    // Before the permit, whose return says that nothing of this request is left.
    drop(shared);
    drop(permit);
}

fn check(state: &State, requests: Requests, oracle: &Oracle) -> Checked {
    let mut checked = Checked::default();
    for Answer { number, window, response } in &state.answers {
        let verdict = oracle.judge(&requests.asked(*number), response);
        let until = state.expected.partition_point(|(from, _)| from <= number);
        let expected = until.checked_sub(1).and_then(|at| state.expected[at].1.as_ref());
        let stale = expected.is_some_and(|release| *release != response.release);
        checked.answers += 1;
        checked.during += u64::from(state.windows[*window].kind == Kind::During);
        checked.mixed += u64::from(verdict == Verdict::Mixed);
        checked.wrong += u64::from(verdict == Verdict::Wrong);
        checked.stale += u64::from(stale);
        let tables = || {
            let words = response.table_versions.iter().map(|t| format!("{}@{}", t.table, t.version));
            words.collect::<Vec<_>>().join(" ")
        };
        let by = || format!("request {number} was answered by {} with {}", response.release, tables());
        if verdict != Verdict::Right {
            checked.first_bad.get_or_insert_with(|| format!("{}, and that is {verdict:?}", by()));
        }
        if let Some(expected) = expected.filter(|_| stale) {
            checked.first_stale.get_or_insert_with(|| format!("{}, when {expected} was to answer", by()));
        }
    }
    checked
}
