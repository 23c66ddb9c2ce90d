//! One ranking: pin a release, hold the request against its contract, have it scored in a batch, take the best.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tidepool_client::{Client, Stages};
use tidepool_cluster::{ScoreHistogram, Tally};
use tidepool_runtime::pool::CpuPool;
use tidepool_types::{Epoch, Name, TableVersion};

use crate::{
    RankError,
    audit_sample::AuditSample,
    batch::Job,
    choice::Choice,
    counters::Counters,
    finish::finish,
    loaded::LoadedRelease,
    recent::{Noting, Recent},
    releases::{Chosen, Releases},
    request::{self, Checked, InputRows, Limits, RankRequest},
    scenario::Scenarios,
    shadow::Shadows,
};

/// The answer to a [`RankRequest`].
#[derive(Clone, Debug, PartialEq)]
pub struct RankAnswer {
    /// The model.
    pub model: Name,
    /// The one release that the answer was made from.
    pub release: Name,
    /// Why this release and no other.
    pub choice: Choice,
    /// The bucket of the request.
    pub bucket: u32,
    /// The table versions that it pins.
    pub table_versions: Vec<TableVersion>,
    /// The epoch of the map that the lookup was routed by.
    pub epoch: Epoch,
    /// Candidates that were scored.
    pub candidates: u32,
    /// Position in the request and score, best first; equal scores in request order.
    pub ranked: Vec<(u32, f32)>,
    /// The outputs that were asked for, by name, calibrated, in the order of `ranked`.
    pub outputs: Vec<(String, Vec<f32>)>,
    /// Identity of the contract that the request was held against.
    pub schema_hash: u64,
    /// Features of the request that no input takes, as far as they are told.
    pub ignored_features: Vec<String>,
    /// Ids that no table had.
    pub missing_ids: u32,
    /// Bags that became a default row.
    pub defaulted_bags: u32,
    /// Ids whose partition nobody answered for: the scores are made from the others.
    pub unavailable_ids: u32,
    /// Rows asked of the tables by its batches, after deduplication.
    pub rows_looked_up: u32,
    /// Nodes that were asked.
    pub nodes_touched: u32,
    /// Requests in the batch that it was in; of a request that was cut, in the largest. Rows, nodes and times are those
    /// of its batches.
    pub batch_requests: u32,
    /// From its arrival at the batcher until its first batch left.
    pub batch_wait: Duration,
    /// Time of the lookup.
    pub lookup_time: Duration,
    /// The wait for a thread.
    pub queue_time: Duration,
    /// Time of the dense part: expansion, model, top-k; not the wait for a thread.
    pub dense_time: Duration,
    /// Where the rest went.
    pub stages: RankStages,
}

/// Times of a ranking beside those that [`RankAnswer`] has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankStages {
    /// From the request's arrival, read, until its answer was made.
    pub took: Duration,
    /// Until it was handed to its batcher: its release was chosen, and it was held against the contract.
    pub check: Duration,
    /// What its lookups were made of.
    pub lookup: Stages,
    /// What was made of the model's outputs, top-k included.
    pub finish: Duration,
}

/// Answers rankings.
#[derive(Debug)]
pub(crate) struct Ranker {
    pub(crate) releases: Releases,
    pub(crate) client: Client,
    pub(crate) pool: CpuPool,
    pub(crate) limits: Limits,
    pub(crate) scenarios: Scenarios,
    pub(crate) default_deadline: Duration,
    pub(crate) max_deadline: Duration,
    pub(crate) shadows: Shadows,
    pub(crate) recent: Recent,
    pub(crate) audit_sample: AuditSample,
}

/// An answer, and what is counted of it.
#[derive(Debug)]
pub(crate) struct Ranked {
    pub(crate) answer: RankAnswer,
    /// Ids that were looked up, repetitions included.
    ids: u64,
    /// Some of all scores, also of those that are not returned.
    scores: ScoreHistogram,
}

/// Counts a request as failed when it is dropped: whoever gives up waiting has no answer either, and a release that
/// hangs must not go unnoticed because of it.
struct Unanswered<'a>(Option<(&'a Counters, u64)>);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some((counters, key)) = self.0 {
            counters.count(&Tally { requests: 1, errors: 1, ..Tally::default() }, key);
        }
    }
}

impl Ranker {
    /// The release that answers `request`.
    pub(crate) fn choose(&self, request: &RankRequest) -> Result<Chosen, RankError> {
        self.releases.choose(&request.model, request.release.as_deref(), request.bucket())
    }

    /// Ranks the candidates of `request`, which arrived at `arrived`, with the release that was chosen for it: from
    /// here on it has one, whatever is promoted meanwhile.
    pub(crate) async fn rank(
        &self,
        chosen: &Chosen,
        request: RankRequest,
        arrived: Instant,
        noting: &mut Noting,
    ) -> Result<RankAnswer, RankError> {
        let (bucket, key) = (request.bucket(), request.key_hash());
        noting.note(|record| (record.choice, record.bucket) = (Some(chosen.choice), Some(bucket)));
        // Who names a release tries it out: guards judge by those who do not.
        let counted = (chosen.choice != Choice::Named).then_some(&chosen.release.counters);
        let mut unanswered = Unanswered(counted.map(|counters| (counters, key)));
        let ranked =
            self.answer_with((&chosen.release, chosen.epoch), request, (arrived, false), noting).await;
        if let Some((counters, key)) = unanswered.0.take() {
            let tally = match &ranked {
                Ok(ranked) => Tally {
                    requests: 1,
                    ids: ranked.ids,
                    missing_ids: ranked.answer.missing_ids.into(),
                    scores: ranked.scores.clone(),
                    ..Tally::default()
                },
                Err(_) => Tally { requests: 1, errors: 1, ..Tally::default() },
            };
            counters.count(&tally, key);
        }
        Ok(RankAnswer { choice: chosen.choice, bucket, ..ranked?.answer })
    }

    /// Ranks with a release, and counts nothing. In the `background`, others go before it.
    pub(crate) async fn answer_with(
        &self,
        (release, epoch): (&Arc<LoadedRelease>, Epoch),
        request: RankRequest,
        (arrived, background): (Instant, bool),
        noting: &mut Noting,
    ) -> Result<Ranked, RankError> {
        let budget = request.budget.unwrap_or(self.default_deadline).min(self.max_deadline);
        noting.note(|record| {
            (record.budget, record.epoch) = (Some(budget), epoch);
            record.told = Some(release.told.clone());
        });
        let candidates = request.candidates;
        let request_id = request.request_id.clone();
        let traceparent = request.traceparent;
        let tenant = (!request.tenant.is_empty()).then(|| request.tenant.clone());
        let checked = request::check(request, &release.spec, self.limits)?;
        let Checked { rows, finishing, ignored_features } = checked;
        let of_row = |rows: &InputRows| match rows {
            InputRows::Bags { ids, .. } => ids.len() as u64,
            InputRows::Numbers(_) => 0,
        };
        let ids = rows.iter().map(of_row).sum();
        noting.note(|record| record.ids = ids);
        let mut answer = RankAnswer {
            model: release.model.clone(),
            release: release.release.clone(),
            choice: Choice::Named,
            bucket: 0,
            table_versions: release.table_versions.clone(),
            epoch,
            candidates,
            ranked: Vec::new(),
            outputs: Vec::new(),
            schema_hash: release.schema_hash,
            ignored_features,
            missing_ids: 0,
            defaulted_bags: 0,
            unavailable_ids: 0,
            rows_looked_up: 0,
            nodes_touched: 0,
            batch_requests: 0,
            batch_wait: Duration::ZERO,
            lookup_time: Duration::ZERO,
            queue_time: Duration::ZERO,
            dense_time: Duration::ZERO,
            stages: RankStages::default(),
        };
        if candidates == 0 {
            return Ok(Ranked { answer, ids, scores: ScoreHistogram::default() });
        }
        let finishing = Arc::new(finishing);
        let job = Job {
            model: release.batch_model.clone(),
            rows: candidates,
            inputs: rows,
            finishing: finishing.clone(),
            tenant,
            deadline: arrived + budget,
            budget,
            request_id,
            traceparent,
            background,
            noted: noting.is_on(),
        };
        let by = release.clone();
        let rows = candidates as usize;
        answer.stages.check = arrived.elapsed();
        let ticket = release
            .batcher
            .submit(job, move |results| finish((&by.spec, &by.release), rows, results, &finishing))?;
        let progress = ticket.progress().clone();
        noting.follow(&progress);
        let finished = ticket.wait().await?;
        let share = progress.share();
        let counts = share.counts;
        if counts.epoch != Epoch(0) {
            answer.epoch = counts.epoch;
        }
        answer.rows_looked_up = u32::try_from(counts.rows).unwrap_or(u32::MAX);
        answer.nodes_touched = counts.nodes;
        answer.missing_ids = counts.missing;
        answer.defaulted_bags = counts.defaulted;
        answer.unavailable_ids = counts.unavailable;
        answer.batch_requests = share.batch_requests;
        answer.batch_wait = share.waited.unwrap_or_default();
        answer.lookup_time = share.lookup.unwrap_or_default();
        answer.queue_time = share.queued.unwrap_or_default();
        answer.dense_time = share.dense.unwrap_or_default();
        answer.stages.lookup = share.stages;
        answer.stages.finish = share.finish.unwrap_or_default();
        answer.stages.took = arrived.elapsed();
        (answer.ranked, answer.outputs) = (finished.ranked, finished.outputs);
        Ok(Ranked { answer, ids, scores: finished.scores })
    }
}
