//! One batch, from the moment it leaves: one lookup, one dense run, an answer each.

use std::{
    future::poll_fn,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use tidepool_client::{ClientError, LookupAccount, LookupOptions, LookupRequest, OnUnavailable};
use tidepool_dense::DenseBatch;
use tidepool_runtime::pool::PoolError;
use tidepool_types::ErrorCode;
use tracing::debug;

use super::{
    Inner, Key,
    form::{self, Brought, Passenger, Seating},
    model::BatchModel,
    queue::Entry,
    share::Counts,
    work::Work,
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
        let score = move || score(&model, &passengers, &seating, &brought, submitted);
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
        if features.is_empty() {
            let brought = self.model.inputs.iter().map(|_| None).collect();
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
            looked = self.inner.source.look_up(&request, &options, account) => looked,
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
        let outcome = match looked {
            Ok(outcome) => outcome,
            Err(error) => {
                self.failed(error);
                return None;
            }
        };
        let (of_batch, stages) = (Counts::of(&outcome), outcome.stages);
        match seating.take(&self.model, outcome.features) {
            Ok(brought) => {
                for (at, work) in works.iter().enumerate() {
                    let own = seating.counts(at, &brought);
                    let Counts { missing, defaulted, unavailable, .. } = own;
                    work.progress.counted(Counts { missing, defaulted, unavailable, ..of_batch }, stages);
                }
                for (at, rest) in &self.rests {
                    rest.item.keep_user(seating.user(*at, &self.model, &brought));
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

/// Runs the model on the rows of those who still wait, and lets each make an answer of what is its own.
fn score(
    model: &BatchModel,
    passengers: &[Passenger],
    seating: &Seating,
    brought: &Brought,
    submitted: Instant,
) {
    let (begun, queued) = (Instant::now(), submitted.elapsed());
    let mut who = Vec::with_capacity(passengers.len());
    for (at, Passenger { work, .. }) in passengers.iter().enumerate() {
        if work.job.deadline <= begun {
            work.fail(RankError::DeadlineExceeded(work.job.budget));
        } else if !work.is_over() {
            who.push(at);
        }
    }
    if who.is_empty() {
        return;
    }
    match run(model, passengers, &who, seating, brought) {
        Ok(outputs) => settle(passengers, &who, outputs, (begun, queued)),
        // What one request brought may be what the graph cannot take: each is tried alone.
        Err(_) if who.len() > 1 => {
            for at in who {
                let begun = Instant::now();
                match run(model, passengers, &[at], seating, brought) {
                    Ok(outputs) => settle(passengers, &[at], outputs, (begun, queued)),
                    Err(error) => passengers[at].work.fail(error),
                }
            }
        }
        Err(error) => passengers[who[0]].work.fail(error),
    }
}

/// The outputs of the passengers `who`, one after the other.
fn run(
    model: &BatchModel,
    passengers: &[Passenger],
    who: &[usize],
    seating: &Seating,
    brought: &Brought,
) -> Result<Vec<Vec<f32>>, RankError> {
    let inputs = seating.inputs(model, passengers, who, brought);
    let slices: Vec<&[f32]> = inputs.iter().map(AsRef::as_ref).collect();
    let mut request_of = Vec::new();
    for (request, at) in who.iter().enumerate() {
        let request = u32::try_from(request).unwrap_or(u32::MAX);
        request_of.resize(request_of.len() + passengers[*at].rows(), request);
    }
    let rows = request_of.len();
    let batch = DenseBatch { rows, requests: who.len(), request_of: &request_of, inputs: &slices };
    let outputs = model.scorer.run(&batch)?;
    match outputs.iter().position(|output| output.len() != rows) {
        Some(output) => Err(RankError::Outputs { output, found: outputs[output].len(), expected: rows }),
        None => Ok(outputs),
    }
}

/// Gives each of `who` its rows of the outputs.
fn settle(
    passengers: &[Passenger],
    who: &[usize],
    outputs: Vec<Vec<f32>>,
    (begun, queued): (Instant, Duration),
) {
    if let [only] = who {
        let Passenger { work, at, .. } = &passengers[*only];
        work.progress.ran(queued, begun.elapsed());
        work.ran(*at, outputs);
        return;
    }
    let mut from = 0;
    for passenger in who.iter().map(|at| &passengers[*at]) {
        let to = from + passenger.rows();
        let own = outputs.iter().map(|output| output[from..to].to_vec()).collect();
        passenger.work.progress.ran(queued, begun.elapsed());
        passenger.work.ran(passenger.at, own);
        from = to;
    }
}
