//! The network between a caller and a node goes silent: nothing is closed, nothing arrives. The caller has to
//! notice by itself, and when the network heals, that too.

use super::{
    Drill, Params, Report,
    load::{steady, steady_until_asked},
    scene::{Links, Scene},
    site::answered_lookups,
};
use crate::BenchError;

pub(super) async fn run(
    params: &Params,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Report, BenchError> {
    let scene = Scene::open(Drill::Partition, params, Links::Proxied, progress).await?;
    let (client, table, proxy) = (&scene.client, scene.site.table, &scene.proxies[0]);
    progress("the link to one of four nodes goes silent");
    let cut = async {
        tokio::time::sleep(params.phase / 5).await;
        proxy.fall_silent();
    };
    let (during, ()) = tokio::join!(steady(client, table, params, 2 * params.phase, 2), cut);
    let during = during?;
    let asked = (scene.victim(), answered_lookups(scene.victim()).await?);
    progress("the link heals");
    proxy.heal();
    let (after, returned) = steady_until_asked(client, table, params, 2 * params.phase, 3, asked).await?;
    scene.close(&during, &after, returned).await
}
