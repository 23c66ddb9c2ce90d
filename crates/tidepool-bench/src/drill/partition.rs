//! The network between a caller and a node goes silent: nothing is closed, nothing arrives. The caller has to
//! notice by itself, and when the network heals, that too.

use tidepool_client::ClientConfig;

use super::{
    Drill, Params, Report,
    load::{nothing_failed, p99_ms, steady, steady_until_asked},
    site::{Site, answered_lookups},
};
use crate::BenchError;

pub(super) async fn run(
    params: &Params,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Report, BenchError> {
    let mut report = Report::new(Drill::Partition, params);
    let site = Site::start(params, (2, 2), toml::Table::new(), progress).await?;
    let (client, proxies) = site.proxied_client(ClientConfig::default()).await?;
    let (table, node, proxy) = (site.table, &site.cluster.nodes()[0], &proxies[0]);

    let before = steady(&client, table, params, params.phase, 1).await?;
    report.promise(
        answered_lookups(node).await? > 0.0,
        "the node behind the link that goes silent was asked before",
    );
    progress("the link to one of four nodes goes silent");
    let cut = async {
        tokio::time::sleep(params.phase / 5).await;
        proxy.fall_silent();
    };
    let (during, ()) = tokio::join!(steady(&client, table, params, 2 * params.phase, 2), cut);
    let answered = answered_lookups(node).await?;
    progress("the link heals");
    proxy.heal();
    let (during, asked) = (during?, (node, answered));
    let (after, returned) = steady_until_asked(&client, table, params, 2 * params.phase, 3, asked).await?;

    for (what, load) in [("before", &before), ("during", &during), ("after", &after)] {
        nothing_failed(&mut report, what, load);
    }
    report.promise(returned.is_some(), "the node is asked again, without anybody's help");
    report.figure("p99_before_ms", p99_ms(&before));
    report.figure("p99_during_ms", p99_ms(&during));
    report.figure("p99_after_ms", p99_ms(&after));
    report.figure("return_ms", returned.unwrap_or_default().as_secs_f64() * 1e3);
    site.stop().await?;
    Ok(report)
}
