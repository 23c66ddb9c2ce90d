//! What the demo asks of the running cluster: every test user's candidates, the same with ids that no table
//! has, one user's top films, and lookups as fast as they go.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tidepool_client::{Client, ClientConfig, FeatureLookup, LookupOptions, LookupRequest};
use tidepool_proto::{
    pack::{pack, unpack},
    v1::{self, ranker_client::RankerClient},
};
use tidepool_train::{Dataset, FeatureValue, Item, Quality, TestRequest};
use tidepool_types::{Name, Pooling, ReleaseManifest};

use super::{
    cluster::Cluster,
    report::{Film, TopFilms},
};
use crate::{
    commands::control,
    output::{Output, bar},
    remote::{Caller, Remote},
};

/// Added to every id: far beyond any id of the data, so that no table has it.
const MISSING_OFFSET: u64 = 1 << 40;
/// How long the lookup measurement runs, and with how many requests at once.
const LOOKUP_SECONDS: f64 = 2.0;
const LOOKUPS_IN_FLIGHT: usize = 2;
/// Ids of each table in one lookup of that measurement.
const IDS_PER_LOOKUP: usize = 2_000;
const TOP_K: u32 = 10;

/// What ranking every test user gave.
pub(crate) struct Ranked {
    /// Over all candidates of all users, from scores that came over the wire.
    pub(crate) quality: Quality,
    /// Microseconds of each call that was answered, ascending.
    pub(crate) call_us: Vec<u64>,
    pub(crate) candidates: usize,
    pub(crate) failed_requests: u64,
    /// Why the first of them failed.
    pub(crate) first_failure: Option<String>,
    /// Answers from another release or other table versions than the promoted one.
    pub(crate) mixed_versions: u64,
    /// The node that was killed midway.
    pub(crate) killed: Option<String>,
}

/// Ranks every request's candidates, one call after the other; with `kill_one` a node dies midway.
pub(crate) async fn rank_all(
    cluster: &mut Cluster,
    release: &ReleaseManifest,
    requests: &[TestRequest],
    kill_one: bool,
    output: Output,
) -> Result<Ranked> {
    let mut ranker = connect(cluster).await?;
    let (mut scores, mut labels, mut call_us) = (Vec::new(), Vec::new(), Vec::with_capacity(requests.len()));
    let (mut failed_requests, mut mixed_versions) = (0, 0);
    let (mut first_failure, mut killed) = (None, None);
    let progress = bar("ranking users", Some(requests.len() as u64));
    for (at, request) in requests.iter().enumerate() {
        if kill_one && at == requests.len() / 2 {
            let label = cluster.kill_a_node().await?;
            output.line(format!("killed {label} after {at} of {} users; ranking goes on", requests.len()));
            killed = Some(label);
        }
        let message = message(&release.model, request, 0);
        let sent = Instant::now();
        match ranker.rank(message).await {
            Ok(answer) => {
                call_us.push(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX));
                let answer = answer.into_inner();
                mixed_versions += u64::from(!is_of(&answer, release));
                scores.extend(in_request_order(&answer, request.candidates.len())?);
                labels.extend(request.candidates.iter().map(|c| c.label));
            }
            Err(status) => {
                failed_requests += 1;
                first_failure.get_or_insert_with(|| control::refusal(&status).to_string());
            }
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    call_us.sort_unstable();
    if scores.is_empty() {
        bail!("no request was answered: {}", first_failure.unwrap_or_else(|| "there were none".into()));
    }
    let quality = Quality::of(&scores, &labels);
    Ok(Ranked {
        quality,
        call_us,
        candidates: scores.len(),
        failed_requests,
        first_failure,
        mixed_versions,
        killed,
    })
}

/// The same requests with ids that no table has: every bag becomes its table's default row.
pub(crate) async fn rank_missing(
    cluster: &Cluster,
    release: &ReleaseManifest,
    requests: &[TestRequest],
) -> Result<Quality> {
    let mut ranker = connect(cluster).await?;
    let (mut scores, mut labels) = (Vec::new(), Vec::new());
    for request in requests {
        let answer = ranker.rank(message(&release.model, request, MISSING_OFFSET)).await;
        let answer = answer.map_err(|s| control::refusal(&s)).context("ranking ids that no table has")?;
        scores.extend(in_request_order(&answer.into_inner(), request.candidates.len())?);
        labels.extend(request.candidates.iter().map(|c| c.label));
    }
    Ok(Quality::of(&scores, &labels))
}

/// The ten best films for one user, of all that they have not rated in training.
pub(crate) async fn top_films(
    cluster: &Cluster,
    release: &ReleaseManifest,
    data: &Dataset,
) -> Result<TopFilms> {
    let place = data.test.first().context("the data set has no test ratings")?.user;
    let user = &data.users[place as usize];
    let of_user = |events: &[tidepool_train::Event]| -> Vec<(u32, bool)> {
        events.iter().filter(|e| e.user == place).map(|e| (e.item, e.label)).collect()
    };
    let known: HashSet<u32> =
        of_user(&data.train).into_iter().chain(of_user(&data.validation)).map(|(item, _)| item).collect();
    let held_out = of_user(&data.test);
    let items: Vec<(u32, &Item)> = (0u32..).zip(&data.items).filter(|(at, _)| !known.contains(at)).collect();

    let mut ranker = connect(cluster).await?;
    let request = v1::RankRequest {
        request_id: "demo-top".into(),
        model: release.model.to_string(),
        candidates: u32::try_from(items.len())?,
        user: features(&[data.user_features(user)], 0),
        candidate: features(&items.iter().map(|(_, item)| data.item_features(item)).collect::<Vec<_>>(), 0),
        top_k: TOP_K,
        ..v1::RankRequest::default()
    };
    let answer = ranker.rank(request).await.map_err(|s| control::refusal(&s))?.into_inner();
    let films = numbers::<u32>(&answer.indexes)?.into_iter().zip(numbers::<f32>(&answer.scores)?).map(
        |(index, score)| {
            let (at, item) = items.get(index as usize).context("an index beyond the candidates")?;
            let liked = held_out.iter().find(|(item, _)| item == at).map(|(_, liked)| *liked);
            Ok(Film { item_id: item.id, title: item.title.clone(), year: item.year, score, liked })
        },
    );
    Ok(TopFilms { user_id: user.id, candidates: items.len(), films: films.collect::<Result<_>>()? })
}

/// Rows looked up per second, by one client straight from the nodes.
pub(crate) struct LookupRate {
    pub(crate) rows_per_second: f64,
    pub(crate) lookups: u64,
    pub(crate) nodes_touched: u32,
}

/// Looks up users and items in batches for a while, a few requests at once.
pub(crate) async fn lookup_rate(
    cluster: &Cluster,
    release: &ReleaseManifest,
    data: &Dataset,
) -> Result<LookupRate> {
    let config = ClientConfig { controllers: vec![cluster.controller_address()], ..ClientConfig::default() };
    let client = Client::start(config).await?;
    let map =
        client.wait_for_map(|map| map.layout(&release.tables[0]).is_some(), Duration::from_secs(5)).await?;
    anyhow::ensure!(map.current_release(&release.model).is_some(), "the release is not current");
    let ids = |table: &str| -> Vec<u64> {
        let all: Vec<u64> = match table {
            "user" => data.users.iter().map(|u| u.id).collect(),
            _ => data.items.iter().map(|i| i.id).collect(),
        };
        all.into_iter().take(IDS_PER_LOOKUP).collect()
    };
    let features = ["user", "item"].into_iter().map(|table| {
        let table_version =
            release.version_of(table).with_context(|| format!("the release has no table {table}"))?;
        Ok(FeatureLookup {
            table_version: table_version.clone(),
            pooling: Pooling::None,
            ids: ids(table),
            lengths: None,
            weights: None,
        })
    });
    let request =
        LookupRequest { request_id: "demo-rate".into(), features: features.collect::<Result<_>>()? };
    let options = LookupOptions::default();
    client.lookup(&request, &options).await.context("warming up")?;
    let began = Instant::now();
    let one_caller = || async {
        let (mut rows, mut lookups, mut nodes) = (0, 0, 0);
        while began.elapsed().as_secs_f64() < LOOKUP_SECONDS {
            let outcome = client.lookup(&request, &options).await?;
            rows += outcome.rows_requested;
            lookups += 1;
            nodes = outcome.nodes_touched.max(nodes);
        }
        Ok::<_, tidepool_client::ClientError>((rows, lookups, nodes))
    };
    let callers = (0..LOOKUPS_IN_FLIGHT).map(|_| one_caller());
    let done = futures::future::try_join_all(callers).await?;
    let seconds = began.elapsed().as_secs_f64();
    let rows: u64 = done.iter().map(|(rows, ..)| rows).sum();
    Ok(LookupRate {
        rows_per_second: rows as f64 / seconds,
        lookups: done.iter().map(|(_, lookups, _)| lookups).sum(),
        nodes_touched: done.iter().map(|(.., nodes)| *nodes).max().unwrap_or_default(),
    })
}

async fn connect(cluster: &Cluster) -> Result<RankerClient<Caller>> {
    let remote = Remote::plaintext(cluster.controller_address());
    Ok(RankerClient::new(remote.channel("ranker", &cluster.ranker_address()).await?))
}

/// The rank request of one test user, every id moved by `offset`.
fn message(model: &Name, request: &TestRequest, offset: u64) -> v1::RankRequest {
    let candidates: Vec<_> = request.candidates.iter().map(|c| c.features.clone()).collect();
    v1::RankRequest {
        request_id: format!("demo-{}", request.user_id),
        model: model.to_string(),
        candidates: u32::try_from(candidates.len()).unwrap_or(u32::MAX),
        user: features(std::slice::from_ref(&request.user_features), offset),
        candidate: features(&candidates, offset),
        ..v1::RankRequest::default()
    }
}

/// The features of some rows, a list per row, as the wire has them: a list per feature.
fn features(rows: &[Vec<(&'static str, FeatureValue)>], offset: u64) -> Vec<v1::Feature> {
    let names = rows.first().into_iter().flatten().map(|(name, _)| *name);
    names
        .enumerate()
        .map(|(at, name)| {
            let (mut ids, mut lengths, mut values) = (Vec::new(), Vec::new(), Vec::new());
            for row in rows {
                match &row[at].1 {
                    FeatureValue::Ids(of_row) => {
                        lengths.push(of_row.len() as u32);
                        ids.extend(of_row.iter().map(|id| id + offset));
                    }
                    FeatureValue::Numbers(of_row) => values.extend_from_slice(of_row),
                }
            }
            v1::Feature {
                name: name.to_owned(),
                ids: pack(&ids),
                lengths: pack(&lengths),
                values: pack(&values),
                ..v1::Feature::default()
            }
        })
        .collect()
}

/// Whether an answer was made from `release` and from nothing else.
fn is_of(answer: &v1::RankResponse, release: &ReleaseManifest) -> bool {
    let versions: HashSet<_> =
        answer.table_versions.iter().map(|t| (t.table.as_str(), t.version.as_str())).collect();
    let pinned: HashSet<_> = release.tables.iter().map(|t| (t.table.as_str(), t.version.as_str())).collect();
    answer.release == release.release.as_str() && versions == pinned
}

fn numbers<T: tidepool_proto::pack::Packed>(bytes: &[u8]) -> Result<Vec<T>> {
    Ok(unpack(bytes).context("the ranker's answer is cut off")?.collect())
}

/// The scores of an answer to a request for all candidates, back in the order of the request.
fn in_request_order(answer: &v1::RankResponse, candidates: usize) -> Result<Vec<f32>> {
    let mut scores = vec![None; candidates];
    for (index, score) in numbers::<u32>(&answer.indexes)?.into_iter().zip(numbers::<f32>(&answer.scores)?) {
        *scores.get_mut(index as usize).context("an index beyond the candidates")? = Some(score);
    }
    scores.into_iter().collect::<Option<_>>().context("a candidate without a score")
}
