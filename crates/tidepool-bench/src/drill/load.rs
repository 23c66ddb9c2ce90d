//! The load of drills, and the promises that every load makes.

use std::{pin::pin, time::Duration};

use tidepool_client::{Client, LookupOptions};
use tidepool_types::Pooling;

use super::{Params, report::Report, site::traffic_returns};
use crate::{
    BenchError, BenchTable, Skew,
    load::{Asked, BatchShape, Keep, LoadReport, LoadSpec, Rate, run},
    process::Process,
};

/// How long a request may take in a drill that breaks something.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);

/// What a ranking request is like, in small.
pub(super) const fn asked(table: BenchTable, seed: u64) -> Asked {
    Asked {
        table,
        batch: 20,
        shape: BatchShape::HeavyTailed,
        bag: 10,
        pooling: Pooling::Sum,
        weighted: true,
        skew: Skew::Uniform,
        seed,
    }
}

/// `params.rate` requests a second for `time`; `phase` makes their ids others than those of other phases.
pub(super) async fn steady(
    client: &Client,
    table: BenchTable,
    params: &Params,
    time: Duration,
    phase: u64,
) -> Result<LoadReport, BenchError> {
    let asked = asked(table, params.seed.wrapping_mul(1000).wrapping_add(phase));
    let mut spec = LoadSpec::new(asked, Rate::PerSecond(params.rate), time);
    spec.options = LookupOptions { timeout: TIMEOUT, ..client.default_options() };
    spec.keep = Keep { beside: false, ..Keep::default() };
    run(client, &spec).await
}

/// As [`steady`], for `time` and as often again until `node`, which has answered `before` lookups so far, is asked
/// again; how long that took, if it was in time.
pub(super) async fn steady_until_asked(
    client: &Client,
    table: BenchTable,
    params: &Params,
    time: Duration,
    phase: u64,
    (node, before): (&Process, f64),
) -> Result<(LoadReport, Option<Duration>), BenchError> {
    let mut returns = pin!(traffic_returns(node, before));
    let (mut returned, mut all) = (None, LoadReport::new()?);
    for again in 0.. {
        let mut load = pin!(steady(client, table, params, time, phase + 100 * again));
        let load = loop {
            tokio::select! {
                load = &mut load => break load?,
                found = &mut returns, if returned.is_none() => returned = Some(found?),
            }
        };
        all.merge(&load);
        if returned.is_some() {
            break;
        }
    }
    Ok((all, returned.flatten()))
}

/// A load in which no request may fail and no answer may be wrong.
pub(super) fn nothing_failed(report: &mut Report, what: &str, load: &LoadReport) {
    let failed = load.failed_requests();
    let why = load.first_failure.as_deref().map(|text| format!(", the first: {text}")).unwrap_or_default();
    report.promise(failed == 0, format!("{what}: {failed} of {} requests failed{why}", load.requests));
    nothing_wrong(report, what, load);
}

/// A load in which no answer may be wrong, whatever failed.
pub(super) fn nothing_wrong(report: &mut Report, what: &str, load: &LoadReport) {
    let (wrong, checked) = (load.verdict.wrong, load.verdict.checked);
    let all = load.unchecked == 0 && (checked > 0 || load.answered == 0);
    report.promise(wrong == 0 && all, format!("{what}: {wrong} of {checked} vectors wrong"));
}

/// The 99th percentile in milliseconds.
pub(super) fn p99_ms(load: &LoadReport) -> f64 {
    load.latency.quantile_us(0.99) / 1e3
}
