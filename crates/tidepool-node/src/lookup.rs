//! One lookup from request to answer: checked, bounded, then found and gathered or pooled. Pure: it knows
//! neither gRPC nor threads, so it runs wherever the service wants it to.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tidepool_proto::v1;
use tidepool_table::{LayoutView, NotHeld, PartitionRows};
use tidepool_types::{Epoch, NodeId};

use crate::{
    cut::{Piece, cut},
    decode::{Feature, Form, decode},
    error::{LookupError, NotServed},
    metrics::TableSeries,
    part::{Done, Part},
    partitions::Snapshot,
};

/// What a request may ask for at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Ids in all features together; at most `u32::MAX`.
    pub(crate) ids_per_request: u64,
    pub(crate) response_bytes: u64,
}

/// The moment after which nobody waits for an answer any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// `budget_us` after `received`; 0, or more than a clock can hold, means never.
    pub(crate) fn new(received: Instant, budget_us: u64) -> Self {
        let after = (budget_us != 0).then(|| received.checked_add(Duration::from_micros(budget_us)));
        Self(after.flatten())
    }

    /// # Errors
    /// [`LookupError::DeadlineExceeded`] when it has passed.
    pub(crate) fn check(self) -> Result<(), LookupError> {
        let passed = self.0.is_some_and(|at| Instant::now() >= at);
        if passed { Err(LookupError::DeadlineExceeded) } else { Ok(()) }
    }
}

/// A request that was checked, with everything to answer it from: one snapshot.
pub(crate) struct Prepared<P> {
    pub(crate) features: Vec<Ready<P>>,
    epoch: Epoch,
    /// Of the rows, sums and counts of the answer.
    pub(crate) answer_bytes: u64,
}

/// A feature, and what it is looked up in.
pub(crate) struct Ready<P> {
    pub(crate) feature: Feature,
    pub(crate) layout: Arc<LayoutView<P>>,
    series: Arc<TableSeries>,
}

/// An answer, and what it was made of.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) response: v1::LookupResponse,
    /// Of each feature.
    pub(crate) shares: Vec<Share>,
    /// Bytes of stored rows, and of sums with their counts.
    pub(crate) gather_bytes: u64,
    pub(crate) pool_bytes: u64,
}

/// What a feature has of an answer.
#[derive(Debug)]
pub(crate) struct Share {
    /// Of its table.
    pub(crate) series: Arc<TableSeries>,
    /// Ids looked up.
    pub(crate) rows: u64,
    /// Those of them that are not in the table.
    pub(crate) missing: u64,
    /// On the threads that looked it up.
    pub(crate) took: Duration,
}

/// Checks a request against one snapshot. No row is touched.
///
/// # Errors
/// [`LookupError`]: all of them but an unheld partition are found here.
pub(crate) fn prepare<P: PartitionRows>(
    request: v1::LookupRequest,
    snapshot: &Snapshot<P>,
    limits: Limits,
    deadline: Deadline,
) -> Result<Prepared<P>, LookupError> {
    deadline.check()?;
    let features = decode(request.features, limits.ids_per_request)?;
    let ready = |feature: Feature| match snapshot.layout(&feature.table_version, feature.partitions) {
        Ok((layout, series)) => Ok(Ready { layout: layout.clone(), series: series.clone(), feature }),
        Err(reason) => Err(not_served(&feature, reason, snapshot.epoch)),
    };
    let features = features.into_iter().map(ready).collect::<Result<Vec<_>, _>>()?;
    let sum = |of: fn(&Ready<P>) -> u64| features.iter().map(of).fold(0, u64::saturating_add);
    let answer_bytes = sum(|ready| payload_bytes(&ready.feature, &ready.layout));
    let bytes = answer_bytes.saturating_add(sum(|ready| frame_bytes(&ready.feature)));
    if bytes > limits.response_bytes {
        return Err(LookupError::AnswerTooLarge { bytes, limit: limits.response_bytes });
    }
    Ok(Prepared { features, epoch: snapshot.epoch, answer_bytes })
}

impl<P: PartitionRows> Prepared<P> {
    /// Answers it here and now.
    ///
    /// # Errors
    /// [`LookupError::NotServed`] for a partition that is not held.
    pub(crate) fn answer(&self, node: &NodeId) -> Result<Answer, LookupError> {
        let whole = |(at, r): (usize, &Ready<P>)| self.part(Part::whole(at, &r.feature, &r.layout));
        let done = self.features.iter().enumerate().map(whole).collect::<Result<Vec<_>, _>>()?;
        Ok(self.put_together(done, node))
    }

    /// Pieces of about `piece_rows` rows, to be answered in any order.
    pub(crate) fn pieces(&self, piece_rows: u64) -> Vec<Piece> {
        cut(self, piece_rows)
    }

    /// Answers a piece, unless nobody waits for it any more.
    ///
    /// # Errors
    /// [`LookupError::DeadlineExceeded`], or as [`answer`](Self::answer).
    pub(crate) fn piece(&self, piece: Piece, deadline: Deadline) -> Result<Vec<Done>, LookupError> {
        deadline.check()?;
        piece.parts.into_iter().map(|part| self.part(part)).collect()
    }

    fn part(&self, part: Part) -> Result<Done, LookupError> {
        let Ready { feature, layout, .. } = &self.features[part.feature];
        part.answer(feature, layout)
            .map_err(|NotHeld(partition)| not_served(feature, NotServed::Partition(partition), self.epoch))
    }

    /// Makes one answer of those to all parts, in their order.
    pub(crate) fn put_together(&self, done: impl IntoIterator<Item = Done>, node: &NodeId) -> Answer {
        let mut answer = Answer::default();
        answer.response.epoch = self.epoch.0;
        answer.response.node = node.to_string();
        answer.response.features.reserve_exact(self.features.len());
        answer.shares.reserve_exact(self.features.len());
        let mut done = done.into_iter().peekable();
        while let Some(mut first) = done.next() {
            let at = first.feature;
            let Ready { feature, series, .. } = &self.features[at];
            while let Some(next) = done.next_if(|next| next.feature == at) {
                first.join(next, feature.id_count());
            }
            answer.add(feature, series.clone(), first);
        }
        answer
    }
}

impl Answer {
    fn add(&mut self, feature: &Feature, series: Arc<TableSeries>, done: Done) {
        let bytes = done.room.len() as u64;
        match feature.form {
            Form::Gather => self.gather_bytes += bytes,
            Form::Pool(_) => self.pool_bytes += bytes,
        }
        let took = done.took;
        let response = done.response(feature);
        let (rows, missing) = (feature.id_count() as u64, u64::from(response.missing_ids));
        self.shares.push(Share { series, rows, missing, took });
        self.response.features.push(response);
    }
}

fn not_served(feature: &Feature, reason: NotServed, epoch: Epoch) -> LookupError {
    LookupError::NotServed { feature: feature.index, table: feature.table_version.clone(), reason, epoch }
}

/// The bytes of the rows, or sums and counts, that the answer to a feature has.
fn payload_bytes<P>(feature: &Feature, layout: &LayoutView<P>) -> u64 {
    match &feature.form {
        Form::Gather => (feature.id_count() as u64).saturating_mul(layout.kernel().row_bytes() as u64),
        Form::Pool(bags) => {
            // Sum, count, and with weights their sum.
            let numbers = u64::from(layout.kernel().dim()) + 1 + u64::from(bags.weighted());
            (bags.bag_count() as u64).saturating_mul(numbers * size_of::<f32>() as u64)
        }
    }
}

/// The bytes that the answer to a feature has besides, at most.
fn frame_bytes(feature: &Feature) -> u64 {
    // Tags, lengths and counters: nine fields of at most eleven bytes.
    const FIELDS: usize = 99;
    let names = feature.table_version.table.len() + feature.table_version.version.len();
    let bitmap = feature.id_count().div_ceil(8);
    (FIELDS + names + bitmap) as u64
}

#[cfg(test)]
pub(crate) mod tests;
