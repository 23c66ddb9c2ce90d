//! One request on its way through batches: its rows, cut into pieces that fit a batch; what has come back of them; and
//! who waits for the whole.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tidepool_client::TraceParent;
use tidepool_runtime::pool::PoolError;
use tidepool_types::Side;
use tokio::{sync::oneshot, time};

use super::{
    model::BatchModel,
    queue::{Limits, Size},
    share::Progress,
};
use crate::{RankError, request::InputRows};

/// A request that is to be scored: its rows have been checked against the contract.
#[derive(Debug)]
pub struct Job {
    /// The release that answers.
    pub model: Arc<BatchModel>,
    /// Candidates, at least one.
    pub rows: u32,
    /// In the order of the contract: one row of each input of the user, `rows` of the others.
    pub inputs: Vec<InputRows>,
    /// In whose name the lookup is made; None: the ranker's own.
    pub tenant: Option<String>,
    /// When the answer is worth nothing any more.
    pub deadline: Instant,
    /// The time that there was for it in all.
    pub budget: Duration,
    /// What nodes are told, while it is alone in its batch.
    pub request_id: String,
    /// Likewise.
    pub traceparent: Option<TraceParent>,
    /// It is taken only while nobody else waits.
    pub background: bool,
    /// Whether it is noted what becomes of its lookups.
    pub noted: bool,
}

/// The outputs of a request: `[rows]` each, in the order of the contract.
pub type Outputs = Vec<Vec<f32>>;

/// Who waits for a request, whatever it is that is made of the outputs.
pub(super) trait Waiter: Send {
    /// Whether nobody waits any more.
    fn is_gone(&self) -> bool;
    /// Ready once nobody waits any more.
    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()>;
    /// There is an outcome.
    fn settle(self: Box<Self>, outcome: Result<Outputs, RankError>);
}

struct Finish<T, F> {
    sender: oneshot::Sender<Result<T, RankError>>,
    finish: F,
    progress: Arc<Progress>,
}

impl<T, F> Waiter for Finish<T, F>
where
    T: Send,
    F: FnOnce(Outputs) -> Result<T, RankError> + Send,
{
    fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }

    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.sender.poll_closed(context)
    }

    fn settle(self: Box<Self>, outcome: Result<Outputs, RankError>) {
        let Self { sender, finish, progress } = *self;
        let finished = outcome.and_then(|outputs| {
            let begun = Instant::now();
            let finished = finish(outputs);
            progress.finished(begun.elapsed());
            finished
        });
        // Who waited may have left meanwhile; then nobody misses the outcome.
        let _ = sender.send(finished);
    }
}

/// A place in the batches of a model, until the answer comes. Dropped, the request is not worked on any more.
#[derive(Debug)]
pub struct Ticket<T> {
    result: oneshot::Receiver<Result<T, RankError>>,
    progress: Arc<Progress>,
    work: Arc<Work>,
}

/// How long a lookup whose time is up may take to say so itself, which says more than that the time is up.
const LAST_WORDS: Duration = Duration::from_millis(20);

impl<T> Ticket<T> {
    /// How far the request is.
    #[must_use]
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Waits for the answer, until the deadline of the request.
    ///
    /// # Errors
    /// [`RankError`]; `DeadlineExceeded` for this request alone, whatever becomes of the others in its batch.
    pub async fn wait(mut self) -> Result<T, RankError> {
        let mut result = time::timeout_at(self.work.job.deadline.into(), &mut self.result).await;
        if result.is_err() && self.work.lookup_ends_with_it() {
            let last = self.work.job.deadline + LAST_WORDS;
            result = time::timeout_at(last.into(), &mut self.result).await;
        }
        match result {
            Ok(Ok(result)) => result,
            // The batch was lost with the runtime that it was on.
            Ok(Err(_)) => Err(PoolError::Gone.into()),
            Err(_) => Err(RankError::DeadlineExceeded(self.work.job.budget)),
        }
    }
}

/// A request between its arrival and its answer.
pub(super) struct Work {
    pub(super) job: Job,
    /// Since when it waits.
    pub(super) since: Instant,
    pub(super) pieces: Box<[Piece]>,
    pub(super) progress: Arc<Progress>,
    state: Mutex<State>,
}

/// Rows of a request that go into one batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) rows: Range<usize>,
    /// Per input: the ids of those rows; of inputs of the user, and of numbers, all there are.
    pub(super) ids: Vec<Range<usize>>,
}

#[derive(Default)]
struct State {
    waiter: Option<Box<dyn Waiter>>,
    /// What has come, of a request with several pieces: `[rows]` per output, holes where a piece is missing.
    outputs: Outputs,
    missing: usize,
    /// Per input: what was looked up for the user, once it is there, for the pieces after the first.
    user: Option<Arc<Vec<Vec<f32>>>>,
    lookup_ends_with_it: bool,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("request_id", &self.job.request_id).finish_non_exhaustive()
    }
}

impl Work {
    /// A request, cut by what a batch may have, and what its caller waits with. `finish` runs on a thread of the CPU
    /// pool, when all outputs are there.
    pub(super) fn new<T, F>(job: Job, limits: Limits, finish: F) -> (Arc<Self>, Ticket<T>)
    where
        T: Send + 'static,
        F: FnOnce(Outputs) -> Result<T, RankError> + Send + 'static,
    {
        let (sender, result) = oneshot::channel();
        let pieces = cut(&job, usize::try_from(limits.rows).unwrap_or(usize::MAX));
        let progress = Arc::<Progress>::default();
        let state = State {
            waiter: Some(Box::new(Finish { sender, finish, progress: progress.clone() })),
            missing: pieces.len(),
            ..State::default()
        };
        let work = Arc::new(Self {
            job,
            since: Instant::now(),
            pieces,
            progress: progress.clone(),
            state: Mutex::new(state),
        });
        (work.clone(), Ticket { result, progress, work })
    }

    /// What each piece takes of a batch.
    pub(super) fn sizes(&self) -> Arc<[Size]> {
        let size = |piece: &Piece| Size {
            rows: piece.rows.len() as u64,
            ids: piece.ids.iter().map(|ids| ids.len() as u64).sum(),
        };
        self.pieces.iter().map(size).collect()
    }

    /// What its inputs take in memory.
    pub(super) fn bytes(&self) -> u64 {
        let of = |rows: &InputRows| match rows {
            InputRows::Numbers(values) => size_of_val(values.as_slice()),
            InputRows::Bags { ids, lengths, weights } => {
                let lengths = lengths.as_ref().map_or(0, |lengths| size_of_val(lengths.as_slice()));
                let weights = weights.as_ref().map_or(0, |weights| size_of_val(weights.as_slice()));
                size_of_val(ids.as_slice()) + lengths + weights
            }
        };
        self.job.inputs.iter().map(|rows| of(rows) as u64).sum()
    }

    /// Whether it has an outcome, or nobody waits for one.
    pub(super) fn is_over(&self) -> bool {
        self.lock().waiter.as_ref().is_none_or(|waiter| waiter.is_gone())
    }

    /// Ready once nobody waits for it any more.
    pub(super) fn poll_over(&self, context: &mut Context<'_>) -> Poll<()> {
        self.lock().waiter.as_mut().map_or(Poll::Ready(()), |waiter| waiter.poll_gone(context))
    }

    /// It fails, unless it has an outcome already.
    pub(super) fn fail(&self, error: RankError) {
        let waiter = self.lock().waiter.take();
        if let Some(waiter) = waiter {
            waiter.settle(Err(error));
        }
    }

    /// Takes what the model made of a piece. With the last one, what is to be made of all of them is made, here and now.
    pub(super) fn ran(&self, piece: usize, outputs: Outputs) {
        let done = {
            let mut state = self.lock();
            state.missing = state.missing.saturating_sub(1);
            if self.pieces.len() == 1 {
                state.outputs = outputs;
            } else {
                let rows = self.job.rows as usize;
                state.outputs.resize_with(outputs.len(), Vec::new);
                for (whole, part) in state.outputs.iter_mut().zip(outputs) {
                    whole.resize(rows, f32::NAN);
                    if let Some(place) = whole.get_mut(self.pieces[piece].rows.clone())
                        && place.len() == part.len()
                    {
                        place.copy_from_slice(&part);
                    }
                }
            }
            if state.missing > 0 {
                return;
            }
            state.waiter.take().map(|waiter| (waiter, std::mem::take(&mut state.outputs)))
        };
        if let Some((waiter, outputs)) = done {
            waiter.settle(Ok(outputs));
        }
    }

    /// What was looked up for the user, if it was already.
    pub(super) fn user(&self) -> Option<Arc<Vec<Vec<f32>>>> {
        self.lock().user.clone()
    }

    /// The vectors of the user, per input.
    pub(super) fn keep_user(&self, vectors: Vec<Vec<f32>>) {
        self.lock().user = Some(Arc::new(vectors));
    }

    /// The time of the lookup that it is in is its own.
    pub(super) fn lookup_ends(&self, with_it: bool) {
        self.lock().lookup_ends_with_it = with_it;
    }

    fn lookup_ends_with_it(&self) -> bool {
        self.lock().lookup_ends_with_it
    }

    /// Nothing panics while it is held, so a poisoned lock guards a good state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pieces of at most so many rows.
fn cut(job: &Job, most: usize) -> Box<[Piece]> {
    let rows = job.rows as usize;
    let most = most.clamp(1, rows.max(1));
    // Per input: where the ids of the next piece begin.
    let mut begin = vec![0; job.inputs.len()];
    let mut pieces = Vec::with_capacity(rows.div_ceil(most));
    for from in (0..rows).step_by(most) {
        let piece = from..(from + most).min(rows);
        let inputs = job.inputs.iter().zip(&job.model.inputs).zip(&mut begin);
        let ids = inputs.map(|((rows_of, input), begin)| match rows_of {
            InputRows::Numbers(_) => 0..0,
            InputRows::Bags { ids, .. } if input.side == Side::User => 0..ids.len(),
            InputRows::Bags { lengths: None, .. } => piece.clone(),
            InputRows::Bags { lengths: Some(lengths), .. } => {
                let count: usize = lengths.iter().take(piece.end).skip(from).map(|len| *len as usize).sum();
                let ids = *begin..*begin + count;
                *begin = ids.end;
                ids
            }
        });
        let ids = ids.collect();
        pieces.push(Piece { rows: piece, ids });
    }
    pieces.into()
}
