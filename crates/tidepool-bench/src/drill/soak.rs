//! A bounded number of lookups of random shapes over connections that break: no wrong answer, no error that a
//! caller cannot act on, and nodes that are as large at the end as after half of them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidepool_client::{Client, ClientConfig, LookupOptions, WireForm};
use tidepool_types::{ErrorCode, Pooling};
use tokio::task::JoinSet;

use super::{
    Drill, Params, Proxy, Report,
    load::TIMEOUT,
    site::{Site, anonymous_bytes},
};
use crate::{
    BenchError, BenchTable, Skew,
    draw::Random,
    load::{Asked, BatchShape, Check, CheckRows, Verdict},
};

/// Lookups of one shape, all under way at once.
const AT_ONCE: u64 = 16;
/// Between two breaks, at most.
const LONGEST_PEACE: Duration = Duration::from_millis(60);
/// What the nodes may grow by, together, over the second half of the lookups. Allocators keep what they had.
const MAX_GROWTH_BYTES: u64 = 64 << 20;

/// What is asked in a round, and how.
fn draw(table: BenchTable, random: &mut Random) -> (Asked, LookupOptions) {
    let pooling = [Pooling::Sum, Pooling::Mean, Pooling::None][random.below(3) as usize];
    let asked = Asked {
        table,
        batch: 1 + random.below(200) as usize,
        shape: [BatchShape::Fixed, BatchShape::HeavyTailed][random.below(2) as usize],
        bag: 1 + random.below(40) as usize,
        pooling,
        weighted: pooling != Pooling::None && random.below(2) == 0,
        skew: [Skew::Uniform, Skew::Zipf(1.1)][random.below(2) as usize],
        seed: random.next(),
    };
    let options = LookupOptions {
        timeout: TIMEOUT,
        exact: random.below(4) == 0,
        wire_form: [None, Some(WireForm::Gather), Some(WireForm::Pool)][random.below(3) as usize],
        ..LookupOptions::default()
    };
    (asked, options)
}

/// How a part of the lookups ended.
#[derive(Default)]
struct Seen {
    answered: u64,
    verdict: Verdict,
    failed: BTreeMap<&'static str, u64>,
}

pub(super) async fn run(
    params: &Params,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Report, BenchError> {
    let mut report = Report::new(Drill::Soak, params);
    let site = Site::start(params, (2, 2), toml::Table::new(), progress).await?;
    let (client, proxies) = site.proxied_client(ClientConfig::default()).await?;
    progress(&format!("{} lookups over connections that break, seed {}", params.lookups, params.seed));
    let mut random = Random::new(params.seed);
    let over = Arc::new(AtomicBool::new(false));
    let breaking = tokio::spawn(break_now_and_then(proxies, params.seed, Arc::clone(&over)));

    let mut seen = Seen::default();
    let mut after_half = None;
    let mut asked = 0;
    while asked < params.lookups {
        let (shape, options) = draw(site.table, &mut random);
        round(&client, shape, &options, &mut seen).await?;
        asked += AT_ONCE;
        if after_half.is_none() && asked >= params.lookups / 2 {
            after_half = Some(anonymous_bytes(site.cluster.nodes()));
        }
    }
    over.store(true, Ordering::Relaxed);
    let breaks = breaking.await.map_err(|error| BenchError::io("breaking connections")(error.into()))?;
    let nodes = site.cluster.nodes();
    let grown = anonymous_bytes(nodes).saturating_sub(after_half.unwrap_or(0));

    let Verdict { checked, wrong } = seen.verdict;
    report.promise(wrong == 0 && checked > 0, format!("{wrong} of {checked} vectors wrong"));
    let known = [ErrorCode::Unavailable, ErrorCode::DeadlineExceeded].map(ErrorCode::as_str);
    let untyped: u64 =
        seen.failed.iter().filter(|(code, _)| !known.contains(code)).map(|(_, count)| count).sum();
    let failed: u64 = seen.failed.values().sum();
    report.promise(
        untyped == 0,
        format!("{failed} of {asked} lookups failed, {untyped} with other codes than {known:?}"),
    );
    // A short soak sees buffers and caches fill.
    report.promise_of_time(
        grown <= MAX_GROWTH_BYTES,
        format!(
            "the nodes have grown by {} KiB over the second half; at most {}",
            grown >> 10,
            MAX_GROWTH_BYTES >> 10
        ),
    );
    report.promise(breaks > 0, format!("connections were broken {breaks} times"));
    report.figure("lookups", asked as f64);
    report.figure("failed_lookups", failed as f64);
    report.figure("checked_vectors", checked as f64);
    report.figure("breaks", breaks as f64);
    report.figure("grown_bytes", grown as f64);
    report.figure("nodes_anonymous_bytes", anonymous_bytes(nodes) as f64);
    site.stop().await?;
    Ok(report)
}

async fn round(
    client: &Client,
    asked: Asked,
    options: &LookupOptions,
    seen: &mut Seen,
) -> Result<(), BenchError> {
    let mut calls = JoinSet::new();
    for request in asked.requests()?.take(AT_ONCE as usize) {
        let (client, options) = (client.clone(), options.clone());
        calls.spawn(async move {
            let answer = client.lookup(&request, &options).await;
            answer.map(|outcome| CheckRows(asked.table).check(&request, &outcome)).map_err(|e| e.code())
        });
    }
    while let Some(ended) = calls.join_next().await {
        match ended.map_err(|error| BenchError::io("looking up")(error.into()))? {
            Ok(verdict) => {
                seen.answered += 1;
                seen.verdict.checked += verdict.checked;
                seen.verdict.wrong += verdict.wrong;
            }
            Err(code) => *seen.failed.entry(code.as_str()).or_default() += 1,
        }
    }
    Ok(())
}

/// Breaks the connections of one node after the other, at random moments, and says how often.
async fn break_now_and_then(proxies: Vec<Proxy>, seed: u64, over: Arc<AtomicBool>) -> u64 {
    let mut random = Random::new(seed ^ 0xb4ea);
    let mut breaks = 0;
    while !over.load(Ordering::Relaxed) {
        tokio::time::sleep(LONGEST_PEACE.mul_f64(random.unit())).await;
        proxies[random.below(proxies.len() as u64) as usize].break_connections();
        breaks += 1;
    }
    breaks
}
