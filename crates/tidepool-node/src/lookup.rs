//! One lookup from request to answer: checked, bounded, then found and gathered or pooled. Pure: it knows
//! neither gRPC nor threads, so it runs wherever the service wants it to.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tidepool_proto::v1;
use tidepool_types::{NodeId, PartitionIndex};

use crate::{
    decode::{Feature, Form, decode},
    error::{LookupError, NotServed},
    gather,
    partitions::{FindRows, LayoutSlots, Snapshot},
    pool,
    rows::{Finder, Missing},
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
pub(crate) fn answer<P: FindRows>(
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

    let mut answer = Answer::default();
    let mut finder = Finder::default();
    answer.response.features.reserve_exact(features.len());
    for (feature, layout) in features.into_iter().zip(layouts) {
        answer
            .add(&feature, layout, &mut finder)
            .map_err(|partition| not_served(&feature, NotServed::Partition(partition), snapshot))?;
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
fn feature_bytes<P>(feature: &Feature, layout: &LayoutSlots<P>) -> u64 {
    // Tags, lengths and counters: nine fields of at most eleven bytes.
    const FRAME: u64 = 99;
    let names = feature.table_version.table.len() + feature.table_version.version.len();
    let bitmap = feature.id_count().div_ceil(8);
    let payload = match &feature.form {
        Form::Gather => gather::answer_bytes(feature.id_count(), layout.kernel.row_bytes()),
        Form::Pool(bags) => pool::answer_bytes(bags.bag_count(), layout.kernel.dim(), bags.weighted()),
    };
    payload.saturating_add(FRAME + (names + bitmap) as u64)
}

impl Answer {
    fn add<'a, P: FindRows>(
        &mut self,
        feature: &Feature,
        layout: &'a LayoutSlots<P>,
        finder: &mut Finder<'a>,
    ) -> Result<(), PartitionIndex> {
        let mut response = v1::FeatureResponse::default();
        let missing: Missing;
        match &feature.form {
            Form::Gather => {
                let rows;
                (rows, missing) = gather::gather(layout, feature, finder)?;
                self.gather_bytes += rows.len() as u64;
                response.rows = rows.into();
            }
            Form::Pool(bags) => {
                let pooled;
                (pooled, missing) = pool::pool(layout, feature, bags, finder)?;
                let bytes = pooled.sums.len() + pooled.counts.len() + pooled.weight_sums.len();
                self.pool_bytes += bytes as u64;
                response.sums = pooled.sums.into();
                response.counts = pooled.counts.into();
                response.weight_sums = pooled.weight_sums.into();
            }
        }
        let (bits, count) = missing.finish();
        response.missing = Bytes::from(bits);
        response.missing_ids = count;
        self.rows += feature.id_count() as u64;
        self.missing += u64::from(count);
        self.response.features.push(response);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
