//! Several times what nodes take on is asked of them. They go on with as much as before, refuse the rest at
//! once, and do not grow. What they take on is set low, so that the machine has room for whoever asks.

use std::time::Duration;

use tidepool_client::{Client, ClientConfig, HedgeConfig, LookupOptions, RetryConfig};
use tidepool_types::Pooling;

use super::{
    Drill, Params, Report,
    load::{TIMEOUT, nothing_wrong},
    memory::Resident,
    site::{Site, metric},
};
use crate::{
    BenchError, Skew,
    load::{Asked, BatchShape, LoadReport, LoadSpec, Rate, run as load},
};

/// Nodes that share the table: a request is answered when all of them take it on.
const NODES: u32 = 2;
/// Rows that a node takes on in a second.
const ROWS_PER_SECOND: u32 = 200_000;
/// Ids of a request; each is a row to its node, and to each node the feature is one more.
const IDS: u32 = 248;
/// What is offered, as multiples of what the nodes take on.
const STEPS: [f64; 6] = [0.5, 0.75, 1.0, 1.5, 2.0, 3.0];
/// What of the best goodput must be left at the last step.
const LEAST_GOODPUT: f64 = 0.9;
/// What the nodes may grow by, together, from the first step to the last.
const MAX_GROWTH_BYTES: u64 = 64 << 20;

pub(super) async fn run(
    params: &Params,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Report, BenchError> {
    let mut report = Report::new(Drill::Overload, params);
    let keys = [("admission_rows_per_second".to_owned(), i64::from(ROWS_PER_SECOND).into())];
    let site = Site::start(params, (1, NODES as usize), toml::Table::from_iter(keys), progress).await?;
    // A caller that asks again what was refused would offer more than it is told to.
    let config = ClientConfig {
        hedge: HedgeConfig { budget: 0.0, burst: 0, ..HedgeConfig::default() },
        retry: RetryConfig { budget: 0.0, min_per_second: 0 },
        ..ClientConfig::default()
    };
    let client = site.client(config).await?;
    let full = f64::from(ROWS_PER_SECOND) / f64::from(IDS / NODES + 1);
    offer(&site, &client, params, 0.5 * full, params.phase / 2, 0).await?;

    let nodes = site.cluster.nodes();
    let before = Resident::of(nodes).anonymous_bytes;
    let mut goodput = Vec::new();
    let mut untyped = 0;
    for (step, multiple) in STEPS.into_iter().enumerate() {
        let refused_before = overloaded(&site).await?;
        let load = offer(&site, &client, params, multiple * full, params.phase, step as u64 + 1).await?;
        let refused = overloaded(&site).await? - refused_before;
        let share = load.answered as f64 / load.elapsed.as_secs_f64() / full;
        progress(&format!(
            "{multiple:.2}x offered: {share:.3}x answered, {} refused, p99 {:.2} ms",
            load.failed_requests(),
            load.latency.quantile_us(0.99) / 1e3
        ));
        untyped += load.failed.iter().filter(|(code, _)| **code != "overloaded").map(|(_, n)| n).sum::<u64>();
        nothing_wrong(&mut report, &format!("{multiple:.2}x"), &load);
        if multiple > 1.5 {
            report.promise(
                refused > 0.0 && load.failed_requests() > 0,
                format!(
                    "{multiple:.2}x: the nodes refused {refused}, callers saw {}",
                    load.failed_requests()
                ),
            );
        }
        goodput.push(share);
    }
    let peak = goodput.iter().copied().fold(0.0, f64::max);
    let last = goodput.last().copied().unwrap_or(0.0);
    report.promise(untyped == 0, format!("{untyped} refusals were not typed overloaded"));
    report.promise_of_time(
        last >= LEAST_GOODPUT * peak,
        format!(
            "at {}x what the nodes take on, goodput is {:.1} % of the peak; at least {:.0} %",
            STEPS[STEPS.len() - 1],
            100.0 * last / peak,
            100.0 * LEAST_GOODPUT
        ),
    );
    let grown = Resident::of(nodes).anonymous_bytes.saturating_sub(before);
    report.promise(
        grown <= MAX_GROWTH_BYTES,
        format!("the nodes have grown by {} KiB; at most {}", grown >> 10, MAX_GROWTH_BYTES >> 10),
    );
    report.figure("peak_goodput_share", peak);
    report.figure("last_goodput_share", last);
    report.figure("grown_bytes", grown as f64);
    site.stop().await?;
    Ok(report)
}

/// Lookups that nodes have refused because they had enough to do.
async fn overloaded(site: &Site) -> Result<f64, BenchError> {
    let mut refused = 0.0;
    for node in site.cluster.nodes() {
        refused += metric(node, "tidepool_node_lookups_total{code=\"overloaded\"}").await?;
    }
    Ok(refused)
}

async fn offer(
    site: &Site,
    client: &Client,
    params: &Params,
    rate: f64,
    time: Duration,
    phase: u64,
) -> Result<LoadReport, BenchError> {
    let asked = Asked {
        table: site.table,
        batch: IDS as usize,
        shape: BatchShape::Fixed,
        bag: 1,
        pooling: Pooling::None,
        weighted: false,
        skew: Skew::Uniform,
        seed: params.seed.wrapping_mul(1000).wrapping_add(phase),
    };
    let mut spec = LoadSpec::new(asked, Rate::PerSecond(rate), time);
    spec.options = LookupOptions { timeout: TIMEOUT, ..client.default_options() };
    load(client, &spec).await
}
