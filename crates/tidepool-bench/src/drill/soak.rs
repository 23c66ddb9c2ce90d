//! A bounded number of lookups of random shapes over connections that break: no wrong answer, no error that a
//! caller cannot act on, and neither nodes nor the client go on growing.

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
    memory::{Growth, Resident},
    site::Site,
};
use crate::{
    BenchError, BenchTable, Skew,
    draw::Random,
    load::{Asked, BatchShape, Check, CheckRows, Verdict},
    proc,
    process::Process,
};

/// Lookups of one shape, all under way at once.
const AT_ONCE: u64 = 16;
/// Between two breaks, at most.
const LONGEST_PEACE: Duration = Duration::from_millis(60);
/// Rounds between two looks at whether the nodes' mapped files are in memory; they are when less than so many bytes
/// have come; and what share of the lookups that takes at most.
const WARM_UP_ROUNDS: u64 = 8;
const MAPPED_BYTES: u64 = 1 << 20;
const WARM_UP_SHARE: u64 = 4;
/// What the nodes together, and the process of the client, may grow by over the second half of the lookups, by a
/// line through the samples. Allocators keep and give back tens of MiB, and that line is off by some of it.
const MAX_GROWTH_BYTES: u64 = 32 << 20;

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

/// The lookups, one round of them after the other, and how they ended.
struct Soak {
    client: Client,
    table: BenchTable,
    random: Random,
    asked: u64,
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
    let nodes = site.cluster.nodes();
    site.cluster.rest().await;
    let (client, proxies) = site.proxied_client(ClientConfig::default()).await?;
    let random = Random::new(params.seed);
    let mut soak = Soak::new(client, site.table, random);
    let over = Arc::new(AtomicBool::new(false));
    let breaking = tokio::spawn(break_now_and_then(proxies, params.seed, Arc::clone(&over)));

    let warm_up = soak.until_mapped(nodes, params.lookups / WARM_UP_SHARE).await?;
    progress(&format!(
        "{} lookups over connections that break, after {warm_up} to warm up; seed {}",
        params.lookups, params.seed
    ));
    let (mut of_nodes, mut of_client) = (Growth::over(params.lookups), Growth::over(params.lookups));
    let mut file_bytes = Vec::new();
    while soak.asked - warm_up < params.lookups {
        soak.round().await?;
        let done = soak.asked - warm_up;
        if of_nodes.is_due(done) {
            let resident = Resident::of(nodes);
            of_nodes.sample(done, resident.anonymous_bytes);
            file_bytes.push(resident.file_bytes as f64);
            of_client.sample(done, proc::anonymous_bytes(std::process::id()).unwrap_or_default());
        }
    }
    over.store(true, Ordering::Relaxed);
    let breaks = breaking.await.map_err(|error| BenchError::io("breaking connections")(error.into()))?;

    soak.judge(&mut report);
    report.promise(breaks > 0, format!("connections were broken {breaks} times"));
    // A short soak sees buffers and caches fill.
    for (whose, growth) in [("the nodes", &of_nodes), ("the client's process", &of_client)] {
        report.promise_of_time(
            growth.over_half() <= MAX_GROWTH_BYTES as f64,
            format!(
                "anonymous memory of {whose} grows by {:.0} KiB over the second half of the lookups, {:.0} bytes a \
                 lookup; at most {} KiB",
                growth.over_half() / 1024.0,
                growth.bytes_per_work(),
                MAX_GROWTH_BYTES >> 10
            ),
        );
    }
    report.figure("lookups", params.lookups as f64);
    report.figure("warm_up_lookups", warm_up as f64);
    report.figure("breaks", breaks as f64);
    report.figure("nodes_growth_bytes_per_lookup", of_nodes.bytes_per_work());
    report.figure("nodes_growth_bytes_over_second_half", of_nodes.over_half());
    report.figure("client_growth_bytes_per_lookup", of_client.bytes_per_work());
    report.figure("client_growth_bytes_over_second_half", of_client.over_half());
    report.series("nodes_anonymous_bytes", of_nodes.bytes().map(|bytes| bytes as f64));
    report.series("nodes_file_bytes", file_bytes);
    report.series("client_anonymous_bytes", of_client.bytes().map(|bytes| bytes as f64));
    site.stop().await?;
    Ok(report)
}

impl Soak {
    fn new(client: Client, table: BenchTable, random: Random) -> Self {
        let (verdict, failed) = (Verdict::default(), BTreeMap::new());
        Self { client, table, random, asked: 0, answered: 0, verdict, failed }
    }

    /// Rounds until the nodes' mapped files are resident, or `most` lookups; says how many there were.
    async fn until_mapped(&mut self, nodes: &[Process], most: u64) -> Result<u64, BenchError> {
        let mut before = Resident::of(nodes).file_bytes;
        loop {
            for _ in 0..WARM_UP_ROUNDS {
                self.round().await?;
            }
            let now = Resident::of(nodes).file_bytes;
            if now.saturating_sub(before) <= MAPPED_BYTES || self.asked >= most {
                return Ok(self.asked);
            }
            before = now;
        }
    }

    /// Lookups of one shape, all at once.
    async fn round(&mut self) -> Result<(), BenchError> {
        let (asked, options) = draw(self.table, &mut self.random);
        let mut calls = JoinSet::new();
        for request in asked.requests()?.take(AT_ONCE as usize) {
            let (client, options) = (self.client.clone(), options.clone());
            calls.spawn(async move {
                let answer = client.lookup(&request, &options).await;
                answer.map(|outcome| CheckRows(asked.table).check(&request, &outcome)).map_err(|e| e.code())
            });
        }
        self.asked += AT_ONCE;
        while let Some(ended) = calls.join_next().await {
            match ended.map_err(|error| BenchError::io("looking up")(error.into()))? {
                Ok(verdict) => {
                    self.answered += 1;
                    self.verdict.checked += verdict.checked;
                    self.verdict.wrong += verdict.wrong;
                }
                Err(code) => *self.failed.entry(code.as_str()).or_default() += 1,
            }
        }
        Ok(())
    }

    /// What is promised of every lookup.
    fn judge(&self, report: &mut Report) {
        let Verdict { checked, wrong } = self.verdict;
        report.promise(wrong == 0 && checked > 0, format!("{wrong} of {checked} vectors wrong"));
        let known = [ErrorCode::Unavailable, ErrorCode::DeadlineExceeded].map(ErrorCode::as_str);
        let others = self.failed.iter().filter(|(code, _)| !known.contains(code));
        let untyped: u64 = others.map(|(_, count)| count).sum();
        let failed = self.asked - self.answered;
        report.promise(
            untyped == 0,
            format!("{failed} of {} lookups failed, {untyped} with other codes than {known:?}", self.asked),
        );
        report.figure("failed_lookups", failed as f64);
        report.figure("checked_vectors", checked as f64);
    }
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
