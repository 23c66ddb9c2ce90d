//! One request on its way through batches: its rows, cut into pieces that fit a batch; what has come back of them; and
//! who waits for the whole.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tidepool_client::TraceParent;
use tidepool_dense::{rows::RowsError, select::Selected};
use tidepool_runtime::pool::PoolError;
use tidepool_types::Side;
use tokio::{sync::oneshot, time};

use super::{
    model::{BatchInput, BatchModel, InputFrom},
    queue::{Limits, Size},
    share::Progress,
};
use crate::{Finishing, RankError, request::InputRows};

/// A request that is to be scored: its rows have been checked against the contract.
#[derive(Debug)]
pub struct Job {
    /// The release that answers.
    pub model: Arc<BatchModel>,
    /// Candidates, at least one.
    pub rows: u32,
    /// In the order of the contract: one row of each input of the user, `rows` of the others.
    pub inputs: Vec<InputRows>,
    /// What it wants of the outputs: a scorer that takes rows selects by it.
    pub finishing: Arc<Finishing>,
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

/// What the rows of a request have given.
#[derive(Clone, Debug, PartialEq)]
pub enum Results {
    /// Outputs, as the graph gives them.
    Outputs(Outputs),
    /// What was selected of them, by the [`Finishing`] of the request, where they were computed: of each of its pieces, in
    /// their order. A request that was not cut has one.
    Selected(Vec<SelectedPart>),
}

/// What was selected of some rows of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct SelectedPart {
    /// The first of them.
    pub first: u32,
    /// How many they are.
    pub rows: u32,
    /// The best of them, whose positions are counted from the first.
    pub selected: Selected,
}

impl Default for Results {
    fn default() -> Self {
        Self::Outputs(Outputs::new())
    }
}

impl Results {
    /// The outputs; `None`: something was selected of them, and they are gone.
    #[must_use]
    pub fn into_outputs(self) -> Option<Outputs> {
        match self {
            Self::Outputs(outputs) => Some(outputs),
            Self::Selected(_) => None,
        }
    }

    /// Puts those of a piece in their place among those of the `count` rows of a request. `is_first`: nothing is there yet.
    ///
    /// # Errors
    /// [`RankError::Selection`] when pieces of a request gave results of both kinds: a defect.
    fn put(
        &mut self,
        piece: Self,
        rows: &Range<usize>,
        count: usize,
        is_first: bool,
    ) -> Result<(), RankError> {
        match (piece, &mut *self) {
            (Self::Outputs(outputs), Self::Outputs(all)) => {
                all.resize_with(outputs.len(), Vec::new);
                for (whole, part) in all.iter_mut().zip(outputs) {
                    whole.resize(count, f32::NAN);
                    if let Some(place) = whole.get_mut(rows.clone())
                        && place.len() == part.len()
                    {
                        place.copy_from_slice(&part);
                    }
                }
            }
            (Self::Selected(parts), Self::Selected(all)) => {
                all.extend(parts);
                all.sort_unstable_by_key(|part| part.first);
            }
            (piece @ Self::Selected(_), all) if is_first => *all = piece,
            (Self::Selected(_), Self::Outputs(_)) | (Self::Outputs(_), Self::Selected(_)) => {
                return Err(RankError::Selection { what: "kinds of results", found: 2, expected: 1 });
            }
        }
        Ok(())
    }
}

/// Who waits for a request, whatever it is that is made of the outputs.
pub(super) trait Waiter: Send {
    /// Whether nobody waits any more.
    fn is_gone(&self) -> bool;
    /// Ready once nobody waits any more.
    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()>;
    /// There is an outcome.
    fn settle(self: Box<Self>, outcome: Result<Results, RankError>);
}

struct Finish<T, F> {
    sender: oneshot::Sender<Result<T, RankError>>,
    finish: F,
    progress: Arc<Progress>,
}

impl<T, F> Waiter for Finish<T, F>
where
    T: Send,
    F: FnOnce(Results) -> Result<T, RankError> + Send,
{
    fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }

    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.sender.poll_closed(context)
    }

    fn settle(self: Box<Self>, outcome: Result<Results, RankError>) {
        let Self { sender, finish, progress } = *self;
        let finished = outcome.and_then(|results| {
            let begun = Instant::now();
            let finished = finish(results);
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
    /// Per input, as far as there is not room for any number of ids: those that vectors are made of. It is fewer where a
    /// sequence is longer than the input takes.
    wanted: Vec<u64>,
}

#[derive(Default)]
struct State {
    waiter: Option<Box<dyn Waiter>>,
    /// What has come, of a request with several pieces: `[rows]` per output, holes where a piece is missing, or the parts of
    /// those that have come.
    results: Results,
    missing: usize,
    /// Per input: what was looked up for the user, once it is there, for the pieces after the first.
    user: Option<Arc<Vec<Vec<f32>>>>,
    /// Ids of the user that were counted as unavailable.
    user_unavailable: u32,
    lookup_ends_with_it: bool,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("request_id", &self.job.request_id).finish_non_exhaustive()
    }
}

impl Work {
    /// A request, cut by what a batch may have, and what its caller waits with. `finish` runs on a thread of the CPU
    /// pool, when the results of all its pieces are there.
    ///
    /// # Errors
    /// [`RankError::TooManyIds`] when a batch cannot have even one of its rows.
    pub(super) fn new<T, F>(job: Job, limits: &Limits, finish: F) -> Result<(Arc<Self>, Ticket<T>), RankError>
    where
        T: Send + 'static,
        F: FnOnce(Results) -> Result<T, RankError> + Send + 'static,
    {
        let (sender, result) = oneshot::channel();
        let pieces = cut(&job, limits)?;
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
        Ok((work.clone(), Ticket { result, progress, work }))
    }

    /// What each piece takes of a batch.
    pub(super) fn sizes(&self) -> Arc<[Size]> {
        let size = |piece: &Piece| Size {
            rows: piece.rows.len() as u64,
            ids: piece.ids.iter().map(|ids| ids.len() as u64).sum(),
            of_inputs: piece.wanted.clone(),
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
    pub(super) fn ran(&self, piece: usize, results: Results) {
        let (waiter, outcome) = {
            let mut state = self.lock();
            let is_first = state.missing == self.pieces.len();
            state.missing = state.missing.saturating_sub(1);
            let put = if self.pieces.len() == 1 {
                state.results = results;
                Ok(())
            } else {
                state.results.put(results, &self.pieces[piece].rows, self.job.rows as usize, is_first)
            };
            if put.is_ok() && state.missing > 0 {
                return;
            }
            (state.waiter.take(), put.map(|()| std::mem::take(&mut state.results)))
        };
        if let Some(waiter) = waiter {
            waiter.settle(outcome);
        }
    }

    /// A piece found so many ids of the user unavailable: how many more that is than any piece before it found. Pieces that look
    /// the user up each by itself may each lose others of its rows, and one answer tells the most.
    pub(super) fn more_of_user_unavailable(&self, found: u32) -> u32 {
        let mut state = self.lock();
        let more = found.saturating_sub(state.user_unavailable);
        state.user_unavailable += more;
        more
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

/// Pieces of what a batch may have at most: of rows, and of the ids of each input that there is room for.
///
/// # Errors
/// [`RankError::TooManyIds`] when the user's ids alone, or those of one candidate, are more than that.
fn cut(job: &Job, limits: &Limits) -> Result<Box<[Piece]>, RankError> {
    let rows = job.rows as usize;
    let most = usize::try_from(limits.rows).unwrap_or(usize::MAX).clamp(1, rows.max(1));
    let inputs: Vec<_> = job.inputs.iter().zip(&job.model.inputs).collect();
    let bounded = inputs.len().min(limits.room.len());
    // The ids that vectors are made of, in one row of an input.
    let wanted = |input: usize, row: usize| {
        let len = match inputs[input].0 {
            InputRows::Numbers(_) => 0,
            InputRows::Bags { lengths: None, .. } => 1,
            InputRows::Bags { lengths: Some(lengths), .. } => lengths.get(row).map_or(0, |len| *len as usize),
        };
        match inputs[input].1.from {
            InputFrom::Sequence { max_len, .. } => len.min(max_len) as u64,
            InputFrom::Bags(..) | InputFrom::Request => len as u64,
        }
    };
    let is_of_user = |input: usize| inputs[input].1.side == Side::User;
    let check = |input: usize, ids: u64, whose: &str| {
        if ids <= limits.room[input] {
            return Ok(());
        }
        let what = format!("input {:?} with {ids} ids of {whose}", inputs[input].1.name);
        let room = u32::try_from(limits.room[input]).unwrap_or(u32::MAX);
        Err(RankError::TooManyIds { rows: RowsError::TooMany { what, of: "ids", room } })
    };
    // Each piece has its user.
    let of_user: Vec<u64> =
        (0..bounded).map(|input| if is_of_user(input) { wanted(input, 0) } else { 0 }).collect();
    (0..bounded).try_for_each(|input| check(input, of_user[input], "the user"))?;
    // Per input: where the ids of the next piece begin.
    let mut begin = vec![0; inputs.len()];
    let mut pieces = Vec::with_capacity(rows.div_ceil(most));
    let (mut from, mut sums) = (0, of_user.clone());
    for row in 0..rows {
        let own: Vec<u64> =
            (0..bounded).map(|input| if is_of_user(input) { 0 } else { wanted(input, row) }).collect();
        let fits = (0..bounded).all(|input| sums[input] + own[input] <= limits.room[input]);
        if row > from && (row - from == most || !fits) {
            let wanted = std::mem::replace(&mut sums, of_user.clone());
            pieces.push(piece(&inputs, &mut begin, from..row, wanted));
            from = row;
        }
        (0..bounded).try_for_each(|input| check(input, own[input], &format!("candidate {row}")))?;
        sums.iter_mut().zip(&own).for_each(|(sum, own)| *sum += own);
    }
    pieces.push(piece(&inputs, &mut begin, from..rows, sums));
    Ok(pieces.into())
}

/// The piece of these rows, which follow those that end where `begin` says.
fn piece(
    inputs: &[(&InputRows, &BatchInput)],
    begin: &mut [usize],
    rows: Range<usize>,
    wanted: Vec<u64>,
) -> Piece {
    let ids = inputs.iter().zip(begin).map(|((rows_of, input), begin)| match rows_of {
        InputRows::Numbers(_) => 0..0,
        InputRows::Bags { ids, .. } if input.side == Side::User => 0..ids.len(),
        InputRows::Bags { lengths: None, .. } => rows.clone(),
        InputRows::Bags { lengths: Some(lengths), .. } => {
            let count: usize = lengths.iter().take(rows.end).skip(rows.start).map(|len| *len as usize).sum();
            let ids = *begin..*begin + count;
            *begin = ids.end;
            ids
        }
    });
    let ids = ids.collect();
    Piece { rows, ids, wanted }
}
