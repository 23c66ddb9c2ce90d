//! Both copies of a partition are gone. What is asked of it fails with a typed error in time, or is answered
//! with what is left and says so, as the caller wants it.

use std::time::{Duration, Instant};

use tidepool_client::{Client, ClientConfig, ClientError, LookupOptions, LookupOutcome, OnUnavailable};
use tidepool_types::ErrorCode;

use super::{Drill, Params, Report, load::asked, site::Site};
use crate::BenchError;

/// Lookups of each kind.
const LOOKUPS: usize = 200;
/// What a lookup may take, all in all.
const TIMEOUT: Duration = Duration::from_millis(500);
/// What may be added by a machine that does other things too.
const GRACE: Duration = Duration::from_millis(250);

/// How the lookups of one kind ended.
#[derive(Default)]
struct Seen {
    answered: Vec<LookupOutcome>,
    errors: Vec<ClientError>,
    slowest: Duration,
}

pub(super) async fn run(
    params: &Params,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Report, BenchError> {
    let mut report = Report::new(Drill::Outage, params);
    let mut site = Site::start(params, (2, 2), toml::Table::new(), progress).await?;
    let client = site.client(ClientConfig::default()).await?;
    let doomed = copies_of_a_partition(&site, &client);
    let whole = look_up(&site, &client, OnUnavailable::Fail, 1).await?;
    report.promise(
        whole.errors.is_empty() && whole.answered.len() == LOOKUPS,
        format!("before: {} of {LOOKUPS} lookups failed", whole.errors.len()),
    );

    progress(&format!("SIGKILL to {}", doomed.join(" and ")));
    for node in site.cluster.nodes_mut() {
        if doomed.iter().any(|name| name == node.name()) {
            node.kill().await?;
        }
    }
    let failing = look_up(&site, &client, OnUnavailable::Fail, 2).await?;
    let typed = failing
        .errors
        .iter()
        .all(|error| matches!(error.code(), ErrorCode::Unavailable | ErrorCode::DeadlineExceeded));
    report.promise(
        typed && failing.answered.is_empty(),
        format!(
            "on_unavailable = fail: {} of {LOOKUPS} lookups failed, all typed unavailable or deadline_exceeded: {typed}",
            failing.errors.len()
        ),
    );
    let defaulting = look_up(&site, &client, OnUnavailable::Default, 3).await?;
    let flagged = defaulting.answered.iter().filter(|outcome| outcome.partial()).count();
    let first = defaulting.errors.first().map(|error| format!("; {error}")).unwrap_or_default();
    report.promise(
        flagged == LOOKUPS && defaulting.errors.is_empty(),
        format!(
            "on_unavailable = default: {flagged} of {LOOKUPS} lookups answered and flagged, {} failed{first}",
            defaulting.errors.len()
        ),
    );
    let counted = defaulting.answered.iter().all(counts_add_up);
    report.promise(counted, "found, missing and unavailable ids add up to those asked for");
    for (what, name, seen) in
        [("fail", "slowest_fail_ms", &failing), ("default", "slowest_default_ms", &defaulting)]
    {
        report.promise_of_time(
            seen.slowest <= TIMEOUT + GRACE,
            format!("{what}: none took longer than {TIMEOUT:?}; the slowest {:?}", seen.slowest),
        );
        report.figure(name, seen.slowest.as_secs_f64() * 1e3);
    }
    let missing: u64 = defaulting.answered.iter().map(LookupOutcome::unavailable_ids).sum();
    let asked = (LOOKUPS * asked(site.table, 0).ids()) as f64;
    report.figure("unavailable_share", missing as f64 / asked);
    site.stop().await?;
    Ok(report)
}

/// The nodes that hold the first partition, one in each group.
fn copies_of_a_partition(site: &Site, client: &Client) -> Vec<String> {
    let map = client.map();
    let layout = map.layout(&site.version);
    let groups = layout.into_iter().flat_map(|layout| layout.placement.groups.values());
    groups.filter_map(|nodes| Some(nodes.first()?.to_string())).collect()
}

fn counts_add_up(outcome: &LookupOutcome) -> bool {
    outcome.features.iter().all(|feature| {
        let by_bag: u64 = feature.unavailable.iter().map(|count| u64::from(*count)).sum();
        by_bag == u64::from(feature.unavailable_ids) && feature.values.iter().all(|value| value.is_finite())
    })
}

async fn look_up(
    site: &Site,
    client: &Client,
    on_unavailable: OnUnavailable,
    phase: u64,
) -> Result<Seen, BenchError> {
    let options = LookupOptions { timeout: TIMEOUT, on_unavailable, ..client.default_options() };
    let mut seen = Seen::default();
    for request in asked(site.table, phase).requests()?.take(LOOKUPS) {
        let began = Instant::now();
        match client.lookup(&request, &options).await {
            Ok(outcome) => seen.answered.push(outcome),
            Err(error) => seen.errors.push(error),
        }
        seen.slowest = seen.slowest.max(began.elapsed());
    }
    Ok(seen)
}
