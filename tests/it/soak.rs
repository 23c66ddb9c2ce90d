//! A soak of a bounded number of lookups, of random shapes, over connections that break at random moments: no
//! wrong answer, only errors that a caller can act on, and nothing left in any queue at the end.
//!
//! A failure prints its seed: set `TIDEPOOL_TEST_SEED` to it to see that failure again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tidepool_bench::{
    BenchTable, Skew,
    drill::Proxy,
    load::{Asked, BatchShape, Check, CheckRows},
};
use tidepool_client::{Client, ClientConfig, LookupOptions, WireForm};
use tidepool_tests::{DEADLINE, Sandbox, Shape};
use tidepool_types::{ErrorCode, Keying, PartitionCount, Pooling, RowFormat, mix64};
use tokio::{sync::watch, task::JoinSet};

const ROUNDS: u64 = 60;
const AT_ONCE: u64 = 12;

/// What is asked in a round, and how: drawn from the seed alone.
fn shape(table: BenchTable, seed: u64) -> (Asked, LookupOptions) {
    let pick = |salt: u64, of: u64| mix64(mix64(seed) ^ salt) % of;
    let pooling = [Pooling::Sum, Pooling::Mean, Pooling::None][pick(1, 3) as usize];
    let asked = Asked {
        table,
        batch: 1 + pick(2, 80) as usize,
        shape: [BatchShape::Fixed, BatchShape::HeavyTailed][pick(3, 2) as usize],
        bag: 1 + pick(4, 30) as usize,
        pooling,
        weighted: pooling != Pooling::None && pick(5, 2) == 0,
        skew: [Skew::Uniform, Skew::Zipf(1.1)][pick(6, 2) as usize],
        seed,
    };
    let options = LookupOptions {
        timeout: Duration::from_secs(10),
        exact: pick(7, 4) == 0,
        wire_form: [None, Some(WireForm::Gather), Some(WireForm::Pool)][pick(8, 3) as usize],
        ..LookupOptions::default()
    };
    (asked, options)
}

/// A client that reaches every node through a proxy.
async fn through_proxies(direct: &Client) -> Result<(Client, Vec<Proxy>)> {
    let mut map = (*direct.map()).clone();
    let mut proxies = Vec::new();
    for node in map.nodes.values_mut() {
        let target: SocketAddr = node.grpc_address.parse()?;
        let proxy = Proxy::start(target).await?;
        node.grpc_address = proxy.address().to_string();
        proxies.push(proxy);
    }
    let (_, maps) = watch::channel(Arc::new(map));
    Ok((Client::with_map(ClientConfig::default(), maps)?, proxies))
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_break_and_no_answer_is_wrong() -> Result<()> {
    let sandbox = Sandbox::start(Shape { groups: 2, nodes_per_group: 2 }).await?;
    let partitions = PartitionCount::new(8).context("a power of two")?;
    let table =
        BenchTable { rows: 5000, dim: 16, format: RowFormat::Int4, keying: Keying::Hashed, partitions };
    table.ensure(&sandbox.store, &mut |_, _, _| {})?;
    let version = table.table_version()?;
    sandbox.serve(&version).await?;
    let direct = sandbox.client().await?;
    direct.wait_for_map(|map| map.layout(&version).is_some(), DEADLINE).await?;
    let (client, proxies) = through_proxies(&direct).await?;
    let seeds = match std::env::var("TIDEPOOL_TEST_SEED") {
        Ok(seed) => vec![seed.parse()?],
        Err(_) => (0..ROUNDS).collect(),
    };
    let mut answered = 0;
    for seed in seeds {
        let (asked, options) = shape(table, seed);
        let mut calls = JoinSet::new();
        for request in asked.requests()?.take(AT_ONCE as usize) {
            let (client, options) = (client.clone(), options.clone());
            calls.spawn(async move {
                let answer = client.lookup(&request, &options).await;
                (request, answer)
            });
        }
        // One node's connections break while they are asked, some rounds of another one's too.
        for cut in 0..=seed % 3 {
            proxies[(mix64(seed ^ cut) % proxies.len() as u64) as usize].break_connections();
            tokio::task::yield_now().await;
        }
        while let Some(ended) = calls.join_next().await {
            let (request, answer) = ended?;
            match answer {
                Ok(outcome) => {
                    let verdict = CheckRows(table).check(&request, &outcome);
                    assert_eq!(verdict.wrong, 0, "seed {seed}: {asked:?}, {options:?}");
                    answered += 1;
                }
                Err(error) => {
                    let code = error.code();
                    let known = [ErrorCode::Unavailable, ErrorCode::DeadlineExceeded];
                    assert!(known.contains(&code), "seed {seed}: {code}: {error}");
                }
            }
        }
    }
    assert!(answered > 0, "nothing was answered");
    nothing_is_left(&sandbox).await?;
    sandbox.stop().await
}

/// Waits until no node has anything in flight, waiting or held.
async fn nothing_is_left(sandbox: &Sandbox) -> Result<()> {
    let gauges = ["_in_flight_rows", "_waiting_jobs", "_node_held_bytes"];
    let until = tokio::time::Instant::now() + DEADLINE;
    loop {
        let mut seen = 0;
        let mut left = Vec::new();
        for family in sandbox.registries().iter().flat_map(prometheus::Registry::gather) {
            let of_node = family.name().starts_with("tidepool_node_");
            if of_node && gauges.iter().any(|gauge| family.name().ends_with(gauge)) {
                seen += 1;
                let value: f64 =
                    family.get_metric().iter().map(|metric| metric.get_gauge().get_value()).sum();
                if value != 0.0 {
                    left.push((family.name().to_owned(), value));
                }
            }
        }
        assert!(seen >= 3 * 4, "four nodes have three such gauges each");
        if left.is_empty() {
            return Ok(());
        }
        assert!(tokio::time::Instant::now() < until, "{left:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
