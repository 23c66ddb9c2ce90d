//! One batch, from the moment it leaves: one lookup, one dense run, an answer each.

use std::{
    future::poll_fn,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use tidepool_client::{
    ClientError, FeatureRows, FeatureVectors, LookupAccount, LookupOptions, LookupOutcome, LookupRequest,
    OnUnavailable, Stages,
};
use tidepool_dense::{DenseBatch, DenseError, select::Selected};
use tidepool_runtime::pool::PoolError;
use tidepool_types::ErrorCode;
use tracing::debug;

use super::{
    Inner, Key,
    form::{self, Passenger, Seating, Vectors},
    metrics::ModelMetrics,
    model::{BatchModel, RowScorer},
    queue::Entry,
    rows::{self, Rows},
    share::Counts,
    work::{Outputs, Results, SelectedPart, Work},
};
use crate::RankError;

/// With defaults for what is unavailable, a lookup leaves one part in so many of the time to the model.
const DENSE_SHARE: u32 = 4;

/// A batch that has left.
pub(super) struct Batch {
    pub(super) inner: Arc<Inner>,
    pub(super) key: Key,
    pub(super) model: Arc<BatchModel>,
    /// At least one.
    pub(super) passengers: Vec<Passenger>,
    /// What is left of those that wait for the vectors of their user: of which passenger.
    pub(super) rests: Vec<(usize, Entry<Arc<Work>>)>,
}

/// What the lookup of a batch has brought, one per input; None where nothing is looked up.
enum Brought {
    Vectors(Vectors),
    /// Of a model whose scorer makes vectors of them.
    Rows(Vec<Option<Rows>>),
}

/// What the lookup was answered with.
enum Answer {
    Vectors(Vec<FeatureVectors>),
    Rows(Vec<FeatureRows>),
}

/// What the model has made of a batch.
enum Made {
    /// `[rows]` per output.
    Outputs(Outputs),
    /// One per passenger.
    Selected(Vec<Selected>),
}

/// The place of a batch among those of its model, and whether it has been fetched; when it is dropped, the next may leave.
struct Place(Arc<Inner>, bool);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.ended(self.1);
    }
}

impl Batch {
    /// Its whole life.
    pub(super) async fn run(mut self) {
        let begun = Instant::now();
        let mut place = Place(self.inner.clone(), false);
        let noted = self.passengers.iter().any(|p| p.work.job.noted);
        let account = noted.then(|| Arc::new(LookupAccount::default()));
        let size = (self.passengers.len(), self.rows());
        for Passenger { work, .. } in &self.passengers {
            work.progress.leaves(size, begun - work.since, account.clone());
        }
        self.inner.metrics.left(size, self.passengers.iter().map(|p| begun - p.work.since));
        let Some((seating, brought)) = self.look_up(account.as_deref()).await else { return };
        self.inner.fetched();
        place.1 = true;
        self.go_on();
        let model = self.model.clone();
        let inner = self.inner.clone();
        let works: Vec<_> = self.passengers.iter().map(|p| p.work.clone()).collect();
        let submitted = Instant::now();
        let passengers = std::mem::take(&mut self.passengers);
        let metrics = inner.clone();
        let score = move || {
            let who = (0..passengers.len()).collect();
            let looked_up =
                LookedUp { model: &model, passengers: &passengers, seating: &seating, brought: &brought };
            score(looked_up, who, submitted.elapsed(), &metrics.metrics);
        };
        let ran = inner.pool.run_at_cost(size.1, score).await;
        match ran {
            Ok(()) => inner.took(begun.elapsed()),
            Err(error) => works.iter().for_each(|work| work.fail(error.clone().into())),
        }
    }

    fn rows(&self) -> u64 {
        self.passengers.iter().map(|p| p.rows() as u64).sum()
    }

    /// One lookup for all features of all passengers; None: it was not answered, and everybody has been told.
    async fn look_up(&mut self, account: Option<&LookupAccount>) -> Option<(Seating, Brought)> {
        let (features, seating) = form::features(&self.model, &self.passengers);
        let model = self.model.clone();
        let by_rows = model.scorer.by_rows();
        if features.is_empty() {
            let brought = match by_rows {
                None => Brought::Vectors(model.inputs.iter().map(|_| None).collect()),
                Some(_) => Brought::Rows(model.inputs.iter().map(|_| None).collect()),
            };
            return Some((seating, brought));
        }
        let begun = Instant::now();
        let options = self.options(begun);
        let request = LookupRequest { request_id: self.request_id(), features };
        let works: Vec<_> = self.passengers.iter().map(|p| p.work.clone()).collect();
        let everybody_left = poll_fn(|context| {
            // Each is polled, so that each wakes this.
            let left = works.iter().filter(|work| work.poll_over(context).is_ready()).count();
            if left == works.len() { Poll::Ready(()) } else { Poll::Pending }
        });
        let looked = tokio::select! {
            biased;
            looked = self.ask(by_rows, &request, &options, account) => looked,
            () = everybody_left => {
                self.forget_rests();
                return None;
            }
        };
        let took = begun.elapsed();
        for work in &works {
            work.lookup_ends(false);
            work.progress.looked_up(took);
        }
        let (of_batch, stages, answer) = match looked {
            Ok(looked) => looked,
            Err(error) => {
                self.failed(error);
                return None;
            }
        };
        let brought = match answer {
            Answer::Vectors(vectors) => seating.take(&model, vectors).map(Brought::Vectors),
            Answer::Rows(rows) => seating.take_rows(&model, request.features, rows).map(Brought::Rows),
        };
        match brought {
            Ok(brought) => {
                for (at, passenger) in self.passengers.iter().enumerate() {
                    let own = match &brought {
                        Brought::Vectors(vectors) => seating.counts(at, vectors),
                        Brought::Rows(rows) => seating.counts_of_rows((at, passenger), &model, rows),
                    };
                    let Counts { missing, defaulted, unavailable, .. } = own;
                    let counts = Counts { missing, defaulted, unavailable, ..of_batch };
                    passenger.work.progress.counted(counts, stages);
                }
                if let Brought::Vectors(vectors) = &brought {
                    for (at, rest) in &self.rests {
                        rest.item.keep_user(seating.user(*at, &model, vectors));
                    }
                }
                Some((seating, brought))
            }
            Err(error) => {
                // A defect: each is told the same.
                for work in &works {
                    if let RankError::Vectors { input, found, expected } = &error {
                        let (input, found, expected) = (input.clone(), *found, *expected);
                        work.fail(RankError::Vectors { input, found, expected });
                    }
                }
                self.forget_rests();
                None
            }
        }
    }

    /// The lookup itself: of vectors, or of the rows for a scorer that takes them.
    async fn ask(
        &self,
        by_rows: Option<&dyn RowScorer>,
        request: &LookupRequest,
        options: &LookupOptions,
        account: Option<&LookupAccount>,
    ) -> Result<(Counts, Stages, Answer), ClientError> {
        fn answered<T>(outcome: LookupOutcome<T>, of: fn(Vec<T>) -> Answer) -> (Counts, Stages, Answer) {
            (Counts::of(&outcome), outcome.stages, of(outcome.features))
        }
        let source = &self.inner.source;
        match by_rows {
            None => Ok(answered(source.look_up(request, options, account).await?, Answer::Vectors)),
            Some(scorer) => {
                let looked = source.look_up_rows(request, options, scorer.held(), account).await?;
                Ok(answered(looked, Answer::Rows))
            }
        }
    }

    /// What the lookup may take. Where what is unavailable fails a request, it has until the last of the deadlines: who
    /// has less leaves before. Where defaults stand in, all have what the first has, less the share of the model; what
    /// they have left is of the same order ([`super::alike`]).
    fn options(&self, now: Instant) -> LookupOptions {
        let deadlines = || self.passengers.iter().map(|p| p.work.job.deadline);
        let defaults = self.inner.source.default_options();
        let first = deadlines().min().unwrap_or(now);
        let last = deadlines().max().unwrap_or(now);
        let timeout = if defaults.on_unavailable == OnUnavailable::Default {
            let timeout = first.saturating_duration_since(now);
            timeout - timeout / DENSE_SHARE
        } else {
            last.saturating_duration_since(now)
        };
        for Passenger { work, .. } in &self.passengers {
            work.lookup_ends(work.job.deadline == last);
        }
        let traceparent = match self.passengers.as_slice() {
            [only] => only.work.job.traceparent,
            _ => None,
        };
        LookupOptions {
            timeout: timeout.max(Duration::from_micros(1)),
            exact: self.inner.exact,
            tenant: self.key.tenant.clone(),
            traceparent,
            ..defaults
        }
    }

    /// What nodes are told: the request's own id, or that of the batch, which the log tells the requests of.
    fn request_id(&self) -> String {
        if let [only] = self.passengers.as_slice() {
            return only.work.job.request_id.clone();
        }
        let id = self.inner.next_id();
        debug!(
            batch = id,
            requests = ?self.passengers.iter().map(|p| p.work.job.request_id.as_str()).collect::<Vec<_>>(),
            "requests share a lookup"
        );
        id
    }

    /// The lookup has failed. Where one request may be to blame, because together they asked for more than a node takes in
    /// or their tenant has left, they are asked for again, in smaller parties.
    fn failed(&mut self, error: ClientError) {
        let together = matches!(error.code(), ErrorCode::InvalidRequest | ErrorCode::QuotaExceeded);
        if together && self.passengers.len() > 1 {
            let mut rests = std::mem::take(&mut self.rests);
            let passengers = std::mem::take(&mut self.passengers);
            let again = passengers.into_iter().enumerate().map(|(at, passenger)| {
                let rest = rests.iter().position(|(of, _)| *of == at).map(|of| rests.swap_remove(of).1);
                (passenger, rest)
            });
            self.inner.again(&self.key, &self.model, again.collect());
            return;
        }
        let error = Arc::new(error);
        self.passengers.iter().for_each(|p| p.work.fail(RankError::Lookup(error.clone())));
        self.forget_rests();
    }

    /// The users are known: what is left of their requests lines up again.
    fn go_on(&mut self) {
        let rests = std::mem::take(&mut self.rests);
        self.inner.put_back(&self.key, &self.model, rests.into_iter().map(|(_, rest)| rest).collect());
    }

    fn forget_rests(&mut self) {
        let rests = std::mem::take(&mut self.rests);
        self.inner.forget(&self.key, rests.iter().map(|(_, rest)| rest));
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // Only a batch that did not come to its end has some left: its task ended with the runtime, or panicked.
        self.forget_rests();
        self.passengers.iter().for_each(|p| p.work.fail(PoolError::Gone.into()));
    }
}

/// A batch that was looked up.
#[derive(Clone, Copy)]
struct LookedUp<'a> {
    model: &'a BatchModel,
    passengers: &'a [Passenger],
    seating: &'a Seating,
    brought: &'a Brought,
}

/// Runs the model on the rows of those of `who` that still wait, and lets each make an answer of what is its own.
fn score(batch: LookedUp<'_>, mut who: Vec<usize>, queued: Duration, metrics: &ModelMetrics) {
    let begun = Instant::now();
    who.retain(|at| {
        let work = &batch.passengers[*at].work;
        let is_late = work.job.deadline <= begun;
        if is_late {
            work.fail(RankError::DeadlineExceeded(work.job.budget));
        }
        !is_late && !work.is_over()
    });
    let Some(first) = who.first() else { return };
    match run(batch, &who) {
        Ok(made) => settle(batch.passengers, &who, made, (begun, queued)),
        // No request is to blame, and the next run would meet the same, maybe after as long a wait.
        Err(RankError::Dense(DenseError::Device(error))) => {
            let of_each = || DenseError::Device(error.clone()).into();
            who.iter().for_each(|at| batch.passengers[*at].work.fail(of_each()));
        }
        Err(error) if who.len() == 1 => batch.passengers[*first].work.fail(error),
        // What one request brought may be what the graph cannot take, or what is too much together: they are run in halves,
        // and at last whoever is to blame alone. In the time that takes some may have left.
        Err(error) => {
            metrics.taken_apart();
            debug!(
                model = %batch.model.model,
                requests = who.len(),
                error = &error as &dyn std::error::Error,
                "a batch that cannot be run is run in halves"
            );
            let rest = who.split_off(who.len() / 2);
            score(batch, who, queued, metrics);
            score(batch, rest, queued, metrics);
        }
    }
}

/// What the model makes of the passengers `who`, one after the other.
fn run(batch: LookedUp<'_>, who: &[usize]) -> Result<Made, RankError> {
    let LookedUp { model, passengers, seating, brought } = batch;
    let vectors = match (brought, model.scorer.by_rows()) {
        (Brought::Vectors(vectors), _) => vectors,
        (Brought::Rows(rows), Some(scorer)) => {
            return rows::select((model, scorer), passengers, who, seating, rows).map(Made::Selected);
        }
        (Brought::Rows(_), None) => {
            let problem = "the model took stored rows when its batch was looked up, and takes none".into();
            return Err(DenseError::Input { input: "list".into(), problem }.into());
        }
    };
    let inputs = seating.inputs(model, passengers, who, vectors);
    let slices: Vec<&[f32]> = inputs.iter().map(AsRef::as_ref).collect();
    let request_of = form::request_of(passengers, who);
    let rows = request_of.len();
    let batch = DenseBatch { rows, requests: who.len(), request_of: &request_of, inputs: &slices };
    let outputs = model.scorer.run(&batch)?;
    match outputs.iter().position(|output| output.len() != rows) {
        Some(output) => Err(RankError::Outputs { output, found: outputs[output].len(), expected: rows }),
        None => Ok(Made::Outputs(outputs)),
    }
}

/// Gives each of `who` what is its own.
fn settle(passengers: &[Passenger], who: &[usize], made: Made, (begun, queued): (Instant, Duration)) {
    let outputs = match (who, made) {
        ([only], Made::Outputs(outputs)) => {
            let Passenger { work, at, .. } = &passengers[*only];
            work.progress.ran(queued, begun.elapsed());
            work.ran(*at, Results::Outputs(outputs));
            return;
        }
        (_, Made::Outputs(outputs)) => outputs,
        (_, Made::Selected(selected)) => {
            for (passenger, selected) in who.iter().map(|at| &passengers[*at]).zip(selected) {
                let rows = &passenger.piece().rows;
                let count = |rows: usize| u32::try_from(rows).unwrap_or(u32::MAX);
                let part = SelectedPart { first: count(rows.start), rows: count(rows.len()), selected };
                passenger.work.progress.ran(queued, begun.elapsed());
                passenger.work.ran(passenger.at, Results::Selected(vec![part]));
            }
            return;
        }
    };
    let mut from = 0;
    for passenger in who.iter().map(|at| &passengers[*at]) {
        let to = from + passenger.rows();
        let own = outputs.iter().map(|output| output[from..to].to_vec()).collect();
        passenger.work.progress.ran(queued, begun.elapsed());
        passenger.work.ran(passenger.at, Results::Outputs(own));
        from = to;
    }
}
