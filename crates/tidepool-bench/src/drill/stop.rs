//! A node stops answering without a word (SIGSTOP): its connections stay open. Hedging asks the other group
//! for what is late, until the node counts as sick; when it goes on, it is asked again.

use tidepool_client::ClientConfig;

use super::{
    Drill, Params, Report,
    load::{nothing_failed, p99_ms, steady, steady_until_asked},
    site::{Site, answered_lookups},
};
use crate::BenchError;

/// What p99 may be beside what it was.
const MAX_FACTOR: f64 = 3.0;

pub(super) async fn run(
    params: &Params,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Report, BenchError> {
    let mut report = Report::new(Drill::Stop, params);
    let site = Site::start(params, (2, 2), toml::Table::new(), progress).await?;
    let client = site.client(ClientConfig::default()).await?;
    let (table, node) = (site.table, &site.cluster.nodes()[0]);

    steady(&client, table, params, params.phase / 2, 0).await?;
    let before = steady(&client, table, params, params.phase, 1).await?;
    let answered = answered_lookups(node).await?;
    report.promise(answered > 0.0, format!("the node that will stop has answered {answered} lookups"));
    progress("SIGSTOP to one of four nodes");
    let stop = async {
        tokio::time::sleep(params.phase / 5).await;
        node.pause()
    };
    let (during, stopped) = tokio::join!(steady(&client, table, params, 2 * params.phase, 2), stop);
    let during = during?;
    stopped?;
    progress("SIGCONT");
    node.resume()?;
    let answered = answered_lookups(node).await?;
    let asked = (node, answered);
    let (after, returned) = steady_until_asked(&client, table, params, params.phase, 3, asked).await?;

    for (what, load) in [("before", &before), ("during", &during), ("after", &after)] {
        nothing_failed(&mut report, what, load);
    }
    let factor = p99_ms(&during) / p99_ms(&before);
    report.promise_of_time(
        factor <= MAX_FACTOR,
        format!("p99 while it is stopped is {factor:.2} times what it was; at most {MAX_FACTOR}"),
    );
    report.promise(returned.is_some(), "the node that goes on is asked again");
    report.figure("p99_before_ms", p99_ms(&before));
    report.figure("p99_during_ms", p99_ms(&during));
    report.figure("p99_after_ms", p99_ms(&after));
    report.figure("p99_factor", factor);
    report.figure("max_during_ms", during.latency.max_us() / 1e3);
    report.figure("return_ms", returned.unwrap_or_default().as_secs_f64() * 1e3);
    site.stop().await?;
    Ok(report)
}
