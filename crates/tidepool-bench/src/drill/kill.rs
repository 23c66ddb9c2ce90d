//! A node is killed under load. The other group stands in for it, within the same requests.

use super::{
    Drill, Params, Report,
    load::{nothing_failed, steady, steady_until_asked},
    scene::{Links, Scene},
    site::answered_lookups,
};
use crate::BenchError;

pub(super) async fn run(
    params: &Params,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Report, BenchError> {
    let mut scene = Scene::open(Drill::Kill, params, Links::Direct, progress).await?;
    let (client, table) = (scene.client.clone(), scene.site.table);
    progress("SIGKILL to one of four nodes");
    let victim = &mut scene.site.cluster.nodes_mut()[0];
    let kill = async {
        tokio::time::sleep(params.phase / 5).await;
        victim.kill().await
    };
    let (during, killed) = tokio::join!(steady(&client, table, params, params.phase, 2), kill);
    let during = during?;
    killed?;
    let after = steady(&client, table, params, params.phase, 3).await?;
    progress("the node is started again");
    scene.site.cluster.nodes_mut()[0].start_again().await?;
    let asked = (scene.victim(), answered_lookups(scene.victim()).await?);
    let (back, returned) = steady_until_asked(&client, table, params, params.phase, 4, asked).await?;
    nothing_failed(&mut scene.report, "back", &back);
    scene.report.figure("fallbacks", during.fallbacks as f64);
    scene.close(&during, &after, returned).await
}
