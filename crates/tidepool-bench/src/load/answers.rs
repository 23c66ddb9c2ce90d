//! Answers on their way to whoever checks them: kept within a bound, checked after the load, or beside it by
//! one thread of the lowest priority.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use tidepool_client::{FeatureLookup, FeatureVectors, LookupOutcome, LookupRequest};
use tidepool_types::Pooling;

use crate::{BenchError, BenchTable, Oracle, table::ROWS_VERSION};

/// The lowest priority there is.
const NICE: i32 = 19;

/// Of how many bags the answers were looked at, and how many of these were wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Looked at.
    pub checked: u64,
    /// Wrong.
    pub wrong: u64,
}

/// Knows what a request must be answered.
pub trait Check: Send + Sync + 'static {
    /// Looks at every bag of an answer.
    fn check(&self, request: &LookupRequest, outcome: &LookupOutcome) -> Verdict;
}

/// Checks answers about a bench table by the [`Oracle`]: values, which ids were found, how many are missing, and
/// the version they are of. Ids that the table does not have add nothing, and must be counted as missing.
#[derive(Clone, Copy, Debug)]
pub struct CheckRows(pub BenchTable);

impl Check for CheckRows {
    fn check(&self, request: &LookupRequest, outcome: &LookupOutcome) -> Verdict {
        let Self(table) = *self;
        let mut oracle = Oracle::new(table.format, table.dim, ROWS_VERSION);
        let mut verdict = Verdict::default();
        for (at, asked) in request.features.iter().enumerate() {
            let of_feature = wrong_bags(&mut oracle, table, asked, outcome.features.get(at));
            verdict.checked += of_feature.checked;
            verdict.wrong += of_feature.wrong;
        }
        verdict
    }
}

/// How many bags of `asked` there are, and how many of `answer` are not what they should be.
fn wrong_bags(
    oracle: &mut Oracle,
    table: BenchTable,
    asked: &FeatureLookup,
    answer: Option<&FeatureVectors>,
) -> Verdict {
    let dim = table.dim as usize;
    let single = vec![1; asked.ids.len()];
    let lengths = match (&asked.lengths, asked.pooling) {
        (Some(lengths), Pooling::Sum | Pooling::Mean) => lengths,
        _ => &single,
    };
    let bags = lengths.len();
    let all_wrong = Verdict { checked: bags as u64, wrong: bags as u64 };
    let Some(answer) = answer else { return all_wrong };
    let whole = answer.values.len() == bags * dim && answer.found.len() == bags;
    let missing = asked.ids.iter().filter(|id| !table.has(**id)).count();
    if !whole || answer.missing_ids as usize != missing || answer.table_version != asked.table_version {
        return all_wrong;
    }
    let weight = |place: usize| asked.weights.as_ref().map_or(1.0, |weights| weights[place]);
    let mut verdict = Verdict { checked: bags as u64, wrong: 0 };
    let mut first = 0;
    for (bag, &length) in lengths.iter().enumerate() {
        let members = first..first + length as usize;
        first = members.end;
        let present: Vec<(u64, f32)> =
            members.map(|place| (asked.ids[place], weight(place))).filter(|(id, _)| table.has(*id)).collect();
        let values = &answer.values[bag * dim..][..dim];
        let weight_sum: f64 = present.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let scaled: Vec<f32>;
        // A bag with nothing found is the default row, which is the sum of nothing: zeros.
        let sums = if asked.pooling == Pooling::Mean && !present.is_empty() {
            scaled = values.iter().map(|value| (f64::from(*value) * weight_sum) as f32).collect();
            &scaled
        } else {
            values
        };
        let right = answer.found[bag] as usize == present.len() && oracle.is_sum(present, sums);
        verdict.wrong += u64::from(!right);
    }
    verdict
}

/// How answers are kept until they are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Bytes of requests and answers that wait to be checked, at most. What comes on top is counted and not
    /// checked.
    pub bytes: usize,
    /// Whether checking begins while the load goes on, at the lowest priority. For loads that last.
    pub beside: bool,
}

impl Default for Keep {
    fn default() -> Self {
        Self { bytes: 1 << 30, beside: false }
    }
}

/// The queue of those who check, and these.
pub(super) struct Answers {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<Verdict>>,
}

struct Queue {
    check: Arc<dyn Check>,
    keep: Keep,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(LookupRequest, LookupOutcome)>,
    bytes: usize,
    not_kept: u64,
    ended: bool,
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, beside: bool) -> Verdict {
        // It counts for this thread alone. Where it is refused, checking is merely not last.
        let _ = rustix::process::nice(NICE);
        let mut verdict = Verdict::default();
        let mut state = self.lock();
        loop {
            let next = if beside || state.ended { state.waiting.pop_front() } else { None };
            if let Some((request, outcome)) = next {
                drop(state);
                let found = self.check.check(&request, &outcome);
                verdict.checked += found.checked;
                verdict.wrong += found.wrong;
                state = self.lock();
                state.bytes -= bytes(&request, &outcome);
            } else if state.ended {
                return verdict;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Answers {
    pub(super) fn new(check: Arc<dyn Check>, keep: Keep) -> Result<Self, BenchError> {
        let queue = Arc::new(Queue { check, keep, state: Mutex::default(), changed: Condvar::new() });
        let mut answers = Self { queue, threads: Vec::new() };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        for thread in 0..threads {
            let queue = Arc::clone(&answers.queue);
            let spawned = thread::Builder::new()
                .name("load-check".into())
                .spawn(move || queue.work(thread == 0 && queue.keep.beside));
            answers.threads.push(spawned.map_err(BenchError::io("starting a thread that checks"))?);
        }
        Ok(answers)
    }

    /// Keeps an answer, if there is room.
    pub(super) fn keep(&self, request: LookupRequest, outcome: LookupOutcome) {
        let bytes = bytes(&request, &outcome);
        let mut state = self.queue.lock();
        if state.bytes + bytes > self.queue.keep.bytes {
            state.not_kept += 1;
            return;
        }
        state.bytes += bytes;
        state.waiting.push_back((request, outcome));
        drop(state);
        if self.queue.keep.beside {
            self.queue.changed.notify_one();
        }
    }

    /// Has all that is kept checked; gives the verdict, and how many answers were not kept.
    pub(super) fn finish(mut self) -> (Verdict, u64) {
        self.end();
        let mut total = Verdict::default();
        for thread in self.threads.drain(..) {
            let verdict = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            total.checked += verdict.checked;
            total.wrong += verdict.wrong;
        }
        (total, self.queue.lock().not_kept)
    }

    fn end(&self) {
        self.queue.lock().ended = true;
        self.queue.changed.notify_all();
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        // A load that was given up: nobody wants the verdict.
        self.queue.lock().waiting.clear();
        self.end();
    }
}

fn bytes(request: &LookupRequest, outcome: &LookupOutcome) -> usize {
    let asked = request.features.iter().map(|f| {
        8 * f.ids.len()
            + 4 * f.weights.as_ref().map_or(0, Vec::len)
            + 4 * f.lengths.as_ref().map_or(0, Vec::len)
    });
    let answered = outcome.features.iter().map(|f| 4 * (f.values.len() + f.found.len()));
    // What structures and the allocator take besides.
    512 + asked.sum::<usize>() + answered.sum::<usize>()
}

#[cfg(test)]
mod tests;
