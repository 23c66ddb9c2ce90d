//! One ranking: pin a release, look its features up at once, run the model, take the best.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tidepool_client::{
    Client, FeatureLookup, FeatureVectors, LookupAccount, LookupOptions, LookupRequest, OnUnavailable,
};
use tidepool_cluster::{ScoreHistogram, Tally};
use tidepool_dense::DenseBatch;
use tidepool_runtime::pool::CpuPool;
use tidepool_types::{Epoch, InputSource, Name, Pooling, Side, TableVersion};
use tokio::time;

use crate::{
    RankError,
    choice::Choice,
    counters::Counters,
    finish::finish,
    loaded::LoadedRelease,
    recent::{Counts, Noting, Recent},
    releases::{Chosen, Releases},
    request::{self, Checked, InputRows, Limits, RankRequest},
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
    /// Rows asked of the tables, after deduplication.
    pub rows_looked_up: u32,
    /// Nodes that were asked.
    pub nodes_touched: u32,
    /// Time of the lookup.
    pub lookup_time: Duration,
    /// Time of the dense part: expansion, model, top-k; not the wait for a thread.
    pub dense_time: Duration,
}

/// With defaults for what is unavailable, a lookup leaves one part in so many of the time to the model.
const DENSE_SHARE: u32 = 4;

/// Answers rankings.
#[derive(Debug)]
pub(crate) struct Ranker {
    pub(crate) releases: Releases,
    pub(crate) client: Client,
    pub(crate) pool: CpuPool,
    pub(crate) limits: Limits,
    pub(crate) exact: bool,
    pub(crate) default_deadline: Duration,
    pub(crate) max_deadline: Duration,
    pub(crate) shadows: Shadows,
    pub(crate) recent: Recent,
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

/// What the lookup brought.
#[derive(Default)]
struct Looked {
    vectors: Vec<Option<FeatureVectors>>,
    counts: Counts,
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
        let ranked = self.answer_with((&chosen.release, chosen.epoch), request, arrived, noting).await;
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

    /// Ranks with a release, and counts nothing.
    pub(crate) async fn answer_with(
        &self,
        (release, epoch): (&Arc<LoadedRelease>, Epoch),
        request: RankRequest,
        arrived: Instant,
        noting: &mut Noting,
    ) -> Result<Ranked, RankError> {
        let budget = request.budget.unwrap_or(self.default_deadline).min(self.max_deadline);
        noting.note(|record| {
            (record.budget, record.counts.epoch) = (Some(budget), epoch);
            record.told = Some(release.told.clone());
        });
        let deadline = arrived + budget;
        let candidates = request.candidates;
        let request_id = request.request_id.clone();
        let traceparent = request.traceparent;
        let tenant = (!request.tenant.is_empty()).then(|| request.tenant.clone());
        let checked = request::check(request, &release.spec, release.dense.widths(), self.limits)?;
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
            lookup_time: Duration::ZERO,
            dense_time: Duration::ZERO,
        };
        if candidates == 0 {
            return Ok(Ranked { answer, ids, scores: ScoreHistogram::default() });
        }
        let begun = Instant::now();
        let options =
            LookupOptions { exact: self.exact, tenant, traceparent, ..self.client.default_options() };
        let asked =
            self.look_up(release, rows, (request_id, options), epoch, (deadline, budget), noting.account());
        let asked = asked.await;
        answer.lookup_time = begun.elapsed();
        noting.note(|record| record.lookup_took = Some(answer.lookup_time));
        let (looked, numbers) = asked?;
        let counts = looked.counts;
        noting.note(|record| record.counts = counts);
        answer.epoch = counts.epoch;
        answer.rows_looked_up = u32::try_from(counts.rows).unwrap_or(u32::MAX);
        answer.nodes_touched = counts.nodes;
        answer.missing_ids = counts.missing;
        answer.defaulted_bags = counts.defaulted;
        answer.unavailable_ids = counts.unavailable;

        let (vectors, release) = (looked.vectors, release.clone());
        let submitted = Instant::now();
        let run = self.pool.run(move || {
            let queued = submitted.elapsed();
            if Instant::now() >= deadline {
                return Err(RankError::DeadlineExceeded(budget));
            }
            let begun = Instant::now();
            let inputs = assemble(&release, candidates as usize, vectors, numbers)?;
            let rows = candidates as usize;
            let slices: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
            let request_of = vec![0; rows];
            let batch = DenseBatch { rows, requests: 1, request_of: &request_of, inputs: &slices };
            let outputs = release.dense.run(&batch)?;
            let finished = finish((&release.spec, &release.release), rows, &outputs, &finishing)?;
            Ok((finished, begun.elapsed(), queued))
        });
        let ran = time::timeout_at(deadline.into(), run).await;
        let (finished, queued);
        (finished, answer.dense_time, queued) = ran.map_err(|_| RankError::DeadlineExceeded(budget))???;
        (answer.ranked, answer.outputs) = (finished.ranked, finished.outputs);
        noting.note(|record| {
            (record.queued, record.dense_took) = (Some(queued), Some(answer.dense_time));
        });
        Ok(Ranked { answer, ids, scores: finished.scores })
    }

    /// One lookup for every pooled input: user features once, candidate features per candidate. Gives, per
    /// input, its vectors or its numbers.
    async fn look_up(
        &self,
        release: &LoadedRelease,
        rows: Vec<InputRows>,
        (request_id, options): (String, LookupOptions),
        epoch: Epoch,
        (deadline, budget): (Instant, Duration),
        account: Option<&LookupAccount>,
    ) -> Result<(Looked, Vec<Vec<f32>>), RankError> {
        let mut features = Vec::new();
        let mut numbers = Vec::new();
        // Per input: whether the lookup brings it.
        let mut pooled = Vec::new();
        for ((row, input), table) in rows.into_iter().zip(&release.spec.inputs).zip(&release.table_of) {
            match (row, table) {
                (InputRows::Bags { ids, lengths, weights }, Some(table_version)) => {
                    let pooling = match &input.source {
                        InputSource::Pooled { pooling, .. } => *pooling,
                        InputSource::Sequence { .. } | InputSource::Dense { .. } => Pooling::Sum,
                    };
                    let table_version = table_version.clone();
                    features.push(FeatureLookup { table_version, pooling, ids, lengths, weights });
                    numbers.push(Vec::new());
                    pooled.push(true);
                }
                (InputRows::Numbers(values), _) => {
                    numbers.push(values);
                    pooled.push(false);
                }
                (InputRows::Bags { ids, .. }, None) => {
                    // The contract says which inputs are bags, and each of those has its table.
                    let (input, found) = (input.name.clone(), ids.len());
                    return Err(RankError::Vectors { input, found, expected: 0 });
                }
            }
        }
        if features.is_empty() {
            let vectors = pooled.iter().map(|_| None).collect();
            let counts = Counts { epoch, ..Counts::default() };
            return Ok((Looked { vectors, counts }, numbers));
        }
        let mut timeout = deadline.saturating_duration_since(Instant::now());
        if timeout.is_zero() {
            return Err(RankError::DeadlineExceeded(budget));
        }
        if options.on_unavailable == OnUnavailable::Default {
            // What has come by then is scored, which takes its time too.
            timeout -= timeout / DENSE_SHARE;
        }
        let request = LookupRequest { request_id, features };
        let options = LookupOptions { timeout, ..options };
        let outcome = self.client.lookup_noting(&request, &options, account).await?;
        let sum = |count: fn(&FeatureVectors) -> u32| {
            outcome.features.iter().fold(0u32, |sum, f| sum.saturating_add(count(f)))
        };
        let counts = Counts {
            epoch: outcome.epoch,
            rows: outcome.rows_requested,
            cache_hits: outcome.cache_hits,
            nodes: outcome.nodes_touched,
            retries: outcome.retries,
            hedges: outcome.hedges,
            hedges_won: outcome.hedges_won,
            missing: sum(|f| f.missing_ids),
            defaulted: sum(|f| f.defaulted_bags),
            unavailable: sum(|f| f.unavailable_ids),
        };
        let mut brought = outcome.features.into_iter();
        let vectors = pooled.into_iter().map(|pooled| if pooled { brought.next() } else { None }).collect();
        Ok((Looked { vectors, counts }, numbers))
    }
}

/// The model's inputs: `[1, width]` of the user, `[candidates, width]` of the candidates.
fn assemble(
    release: &LoadedRelease,
    candidates: usize,
    vectors: Vec<Option<FeatureVectors>>,
    numbers: Vec<Vec<f32>>,
) -> Result<Vec<Vec<f32>>, RankError> {
    let inputs = release.spec.inputs.iter().zip(release.dense.widths());
    let values = vectors.into_iter().zip(numbers).map(|(v, numbers)| v.map_or(numbers, |v| v.values));
    let assembled = inputs.zip(values).map(|((input, &width), values)| {
        let rows = if input.side == Side::User { 1 } else { candidates };
        let expected = rows.saturating_mul(width);
        if values.len() != expected {
            let (input, found) = (input.name.clone(), values.len());
            return Err(RankError::Vectors { input, found, expected });
        }
        Ok(values)
    });
    let assembled: Vec<_> = assembled.collect::<Result<_, _>>()?;
    match release.spec.inputs.get(assembled.len()) {
        // The lists were not as long as the contract: a defect, and the first input without values is named.
        Some(input) => Err(RankError::Vectors { input: input.name.clone(), found: 0, expected: candidates }),
        None => Ok(assembled),
    }
}
