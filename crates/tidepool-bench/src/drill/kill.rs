//! A node is killed under load. The other group stands in for it, within the same requests.

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
    let mut report = Report::new(Drill::Kill, params);
    let mut site = Site::start(params, (2, 2), toml::Table::new(), progress).await?;
    let client = site.client(ClientConfig::default()).await?;
    let table = site.table;

    steady(&client, table, params, params.phase / 4, 0).await?;
    let before = steady(&client, table, params, params.phase, 1).await?;
    progress("SIGKILL to one of four nodes");
    let victim = &mut site.cluster.nodes_mut()[0];
    let kill = async {
        tokio::time::sleep(params.phase / 5).await;
        victim.kill().await
    };
    let (during, killed) = tokio::join!(steady(&client, table, params, params.phase, 2), kill);
    let during = during?;
    killed?;
    let after = steady(&client, table, params, params.phase, 3).await?;
    progress("the node is started again");
    let victim = &mut site.cluster.nodes_mut()[0];
    victim.start_again().await?;
    let answered = answered_lookups(victim).await?;
    let victim = &site.cluster.nodes()[0];
    let asked = (victim, answered);
    let (back, returned) = steady_until_asked(&client, table, params, params.phase, 4, asked).await?;

    for (what, load) in [("before", &before), ("during", &during), ("after", &after), ("back", &back)] {
        nothing_failed(&mut report, what, load);
    }
    for (name, load) in [("p99_before_ms", &before), ("p99_during_ms", &during), ("p99_after_ms", &after)] {
        report.figure(name, p99_ms(load));
    }
    report.figure("max_during_ms", during.latency.max_us() / 1e3);
    report.figure("fallbacks", during.fallbacks as f64);
    report.promise(returned.is_some(), "the node that was started again is asked again");
    report.figure("return_ms", returned.unwrap_or_default().as_secs_f64() * 1e3);
    site.stop().await?;
    Ok(report)
}
