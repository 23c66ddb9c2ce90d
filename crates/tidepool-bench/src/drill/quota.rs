//! One tenant asks for several times its quota, another for the same as ever. The first is refused what is
//! over its quota, by each of the nodes that share the table; the second does not notice.

use std::time::Duration;

use tidepool_client::{Client, ClientConfig, HedgeConfig, LookupOptions, RetryConfig};
use tidepool_types::{ErrorCode, Name};

use super::{
    Drill, Params, Report,
    load::{TIMEOUT, asked, nothing_failed, nothing_wrong, p99_ms},
    site::{LOOK_AGAIN, RETURN_TIMEOUT, Site, metric},
};
use crate::{
    BenchError, Spread,
    load::{Asked, BatchShape, LoadReport, LoadSpec, Rate, run as load},
    process::Process,
};

/// Who asks for too much, and who does not.
const OFFENDER: &str = "offender";
const NEIGHBOUR: &str = "neighbour";
/// Nodes that share the table: a request is an offence on each of them.
const NODES: usize = 2;
/// Rows that the offender may ask each node for in a second.
const ROWS_PER_SECOND: u64 = 25_000;
/// What a node counts of such refusals.
const REFUSED: &str = "tidepool_node_lookups_total{code=\"quota_exceeded\"}";
/// How many times that it asks for, at least.
const OFFENCE: f64 = 4.0;
/// What the neighbour's p99 may move by.
const MAX_FACTOR: f64 = 1.2;
/// Slices with the offence, and as many without it, in turn.
const PAIRS: u64 = 5;

pub(super) async fn run(
    params: &Params,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Report, BenchError> {
    let mut report = Report::new(Drill::Quota, params);
    let site = Site::start(params, (1, NODES), toml::Table::new(), progress).await?;
    let config = |tenant: &str| ClientConfig {
        tenant: tenant.to_owned(),
        hedge: HedgeConfig { budget: 0.0, burst: 0, ..HedgeConfig::default() },
        retry: RetryConfig { budget: 0.0, min_per_second: 0 },
        ..ClientConfig::default()
    };
    let (offender, neighbour) = (site.client(config(OFFENDER)).await?, site.client(config(NEIGHBOUR)).await?);
    site.cluster.set_quota(&Name::new(OFFENDER)?, ROWS_PER_SECOND).await?;
    let slice = params.phase / 2;
    slice_of(&site, &neighbour, params.rate, params.seed, slice).await?;
    wait_for_refusals(&site, &offender, params).await?;

    // In the rows of a node: its share of the ids, at least, and one feature.
    let rows_per_request = (asked(site.table, 0).ids() / NODES + 1) as f64;
    let offence = OFFENCE * ROWS_PER_SECOND as f64 / rows_per_request;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let (mut refused, mut asked_for, mut untyped) = (0, 0, 0);
    for pair in 0..PAIRS {
        let seed = params.seed + 10 * (pair + 1);
        let quiet = slice_of(&site, &neighbour, params.rate, seed, slice).await?;
        let (loud, offending) = tokio::join!(
            slice_of(&site, &neighbour, params.rate, seed + 1, slice),
            slice_of(&site, &offender, offence, seed + 2, slice),
        );
        let (loud, offending) = (loud?, offending?);
        nothing_failed(&mut report, &format!("{NEIGHBOUR}, alone, slice {pair}"), &quiet);
        nothing_failed(&mut report, &format!("{NEIGHBOUR}, beside, slice {pair}"), &loud);
        nothing_wrong(&mut report, &format!("{OFFENDER}, slice {pair}"), &offending);
        refused += offending.failed_requests();
        asked_for += offending.requests;
        let typed = offending.failed.get("quota_exceeded").copied().unwrap_or(0);
        untyped += offending.failed_requests() - typed;
        progress(&format!(
            "p99 of {NEIGHBOUR} alone {:.2} ms, beside the offence {:.2} ms; {typed} of {} refused",
            p99_ms(&quiet),
            p99_ms(&loud),
            offending.requests
        ));
        alone.push(p99_ms(&quiet));
        beside.push(p99_ms(&loud));
    }
    report.promise(
        refused > 0 && untyped == 0,
        format!("{OFFENDER}: {refused} of {asked_for} requests refused, {untyped} not typed quota_exceeded"),
    );
    let [alone, beside] = [alone, beside].map(|of| Spread::of(of).median);
    report.promise_of_time(
        beside <= MAX_FACTOR * alone,
        format!("p99 of {NEIGHBOUR} is {:.2} times what it is alone; at most {MAX_FACTOR}", beside / alone),
    );
    report.figure("p99_alone_ms", alone);
    report.figure("p99_beside_ms", beside);
    report.figure("p99_factor", beside / alone);
    report.figure("refused_share", refused as f64 / asked_for.max(1) as f64);
    site.stop().await?;
    Ok(report)
}

async fn slice_of(
    site: &Site,
    client: &Client,
    rate: f64,
    seed: u64,
    time: Duration,
) -> Result<LoadReport, BenchError> {
    let asked = Asked { shape: BatchShape::Fixed, ..asked(site.table, seed) };
    let mut spec = LoadSpec::new(asked, Rate::PerSecond(rate), time);
    spec.options = LookupOptions { timeout: TIMEOUT, ..client.default_options() };
    load(client, &spec).await
}

/// A rule reaches nodes a moment after the controller has taken it: asks until each of them has refused something.
async fn wait_for_refusals(site: &Site, offender: &Client, params: &Params) -> Result<(), BenchError> {
    let deadline = tokio::time::Instant::now() + RETURN_TIMEOUT;
    let options = LookupOptions { timeout: TIMEOUT, ..offender.default_options() };
    let mut waiting: Vec<&Process> = site.cluster.nodes().iter().collect();
    for request in asked(site.table, params.seed).requests()? {
        match offender.lookup(&request, &options).await {
            Err(error) if error.code() == ErrorCode::QuotaExceeded => {
                for at in (0..waiting.len()).rev() {
                    if metric(waiting[at], REFUSED).await? > 0.0 {
                        waiting.remove(at);
                    }
                }
                if waiting.is_empty() {
                    return Ok(());
                }
            }
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        if tokio::time::Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN / 100).await;
    }
    let names: Vec<_> = waiting.iter().map(|node| node.name()).collect();
    Err(BenchError::Control(format!("the quota did not reach {} in time", names.join(" and "))))
}
