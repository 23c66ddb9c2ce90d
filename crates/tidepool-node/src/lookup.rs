//! One lookup from request to answer: checked, bounded, then found and gathered or pooled. Pure: it knows
//! neither gRPC nor threads, so it runs wherever the service wants it to.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidepool_proto::v1;
use tidepool_table::{Gathered, LayoutView, LookupScratch, NotHeld, PartitionRows, Pooled};
use tidepool_types::NodeId;

use crate::{
    decode::{Feature, Form, decode},
    error::{LookupError, NotServed},
    partitions::Snapshot,
};

thread_local! {
    /// What the lookups of a thread work in, one after the other.
    static SCRATCH: RefCell<LookupScratch> = RefCell::default();
}

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

    fn passed(self) -> bool {
        self.0.is_some_and(|at| Instant::now() >= at)
    }
}

/// An answer, and what it was made of.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) response: v1::LookupResponse,
    /// Ids looked up.
    pub(crate) rows: u64,
    /// Ids that are in no table.
    pub(crate) missing: u64,
    /// Bytes of stored rows, and of sums with their counts.
    pub(crate) gather_bytes: u64,
    pub(crate) pool_bytes: u64,
}

/// Answers a request from one snapshot.
///
/// # Errors
/// [`LookupError`]; all of them but an unheld partition are found before the first row is touched.
pub(crate) fn answer<P: PartitionRows>(
    request: v1::LookupRequest,
    snapshot: &Snapshot<P>,
    node: &NodeId,
    limits: Limits,
    deadline: Deadline,
) -> Result<Answer, LookupError> {
    if deadline.passed() {
        return Err(LookupError::DeadlineExceeded);
    }
    let features = decode(request.features, limits.ids_per_request)?;
    let layouts = features
        .iter()
        .map(|f| {
            let layout = snapshot.layout(&f.table_version, f.partitions);
            layout.map_err(|reason| not_served(f, reason, snapshot))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let bytes = features.iter().zip(&layouts).map(|(f, l)| feature_bytes(f, l)).fold(0, u64::saturating_add);
    if bytes > limits.response_bytes {
        return Err(LookupError::AnswerTooLarge { bytes, limit: limits.response_bytes });
    }

    SCRATCH.with_borrow_mut(|scratch| {
        let mut answer = Answer::default();
        answer.response.features.reserve_exact(features.len());
        for (feature, layout) in features.into_iter().zip(layouts) {
            answer.add(&feature, layout, scratch).map_err(|NotHeld(partition)| {
                not_served(&feature, NotServed::Partition(partition), snapshot)
            })?;
            if let Some(last) = answer.response.features.last_mut() {
                last.table_version = Some(v1::TableVersion {
                    table: feature.table_version.table.into(),
                    version: feature.table_version.version.into(),
                });
            }
        }
        answer.response.epoch = snapshot.epoch.0;
        answer.response.node = node.to_string();
        Ok(answer)
    })
}

fn not_served<P>(feature: &Feature, reason: NotServed, snapshot: &Snapshot<P>) -> LookupError {
    LookupError::NotServed {
        feature: feature.index,
        table: feature.table_version.clone(),
        reason,
        epoch: snapshot.epoch,
    }
}

/// The bytes that the answer to a feature has at most.
fn feature_bytes<P>(feature: &Feature, layout: &LayoutView<P>) -> u64 {
    // Tags, lengths and counters: nine fields of at most eleven bytes.
    const FRAME: u64 = 99;
    let names = feature.table_version.table.len() + feature.table_version.version.len();
    let bitmap = feature.id_count().div_ceil(8);
    let payload = match &feature.form {
        Form::Gather => (feature.id_count() as u64).saturating_mul(layout.kernel().row_bytes() as u64),
        Form::Pool(bags) => {
            // Sum, count, and with weights their sum.
            let numbers = u64::from(layout.kernel().dim()) + 1 + u64::from(bags.weighted());
            (bags.bag_count() as u64).saturating_mul(numbers * size_of::<f32>() as u64)
        }
    };
    payload.saturating_add(FRAME + (names + bitmap) as u64)
}

impl Answer {
    fn add<P: PartitionRows>(
        &mut self,
        feature: &Feature,
        layout: &LayoutView<P>,
        scratch: &mut LookupScratch,
    ) -> Result<(), NotHeld> {
        let mut response = v1::FeatureResponse::default();
        let missing = match &feature.form {
            Form::Gather => {
                let mut gathered = Gathered::default();
                layout.gather(feature.ids(), scratch, &mut gathered)?;
                self.gather_bytes += gathered.rows.len() as u64;
                response.rows = gathered.rows.into();
                gathered.missing
            }
            Form::Pool(bags) => {
                let mut pooled = Pooled::default();
                layout.pool(feature.ids(), bags.packed(), scratch, &mut pooled)?;
                let bytes = pooled.sums.len() + pooled.counts.len() + pooled.weight_sums.len();
                self.pool_bytes += bytes as u64;
                response.sums = pooled.sums.into();
                response.counts = pooled.counts.into();
                response.weight_sums = pooled.weight_sums.into();
                pooled.missing
            }
        };
        response.missing = Bytes::from(missing.bits);
        response.missing_ids = missing.count;
        self.rows += feature.id_count() as u64;
        self.missing += u64::from(missing.count);
        self.response.features.push(response);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
