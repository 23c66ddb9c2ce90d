//! A node stops answering without a word (SIGSTOP): its connections stay open. Hedging asks the other group
//! for what is late, until the node counts as sick; when it goes on, it is asked again.

use super::{
    Drill, Params, Report,
    load::{p99_ms, steady, steady_until_asked},
    scene::{Links, Scene},
    site::answered_lookups,
};
use crate::BenchError;

/// What p99 may be beside what it was.
const MAX_FACTOR: f64 = 3.0;

pub(super) async fn run(
    params: &Params,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<Report, BenchError> {
    let mut scene = Scene::open(Drill::Stop, params, Links::Direct, progress).await?;
    let (client, table) = (&scene.client, scene.site.table);
    progress("SIGSTOP to one of four nodes");
    let stop = async {
        tokio::time::sleep(params.phase / 5).await;
        scene.victim().pause()
    };
    let (during, stopped) = tokio::join!(steady(client, table, params, 2 * params.phase, 2), stop);
    let during = during?;
    stopped?;
    progress("SIGCONT");
    scene.victim().resume()?;
    let asked = (scene.victim(), answered_lookups(scene.victim()).await?);
    let (after, returned) = steady_until_asked(client, table, params, params.phase, 3, asked).await?;
    let factor = p99_ms(&during) / p99_ms(&scene.before);
    scene.report.promise_of_time(
        factor <= MAX_FACTOR,
        format!("p99 while it is stopped is {factor:.2} times what it was; at most {MAX_FACTOR}"),
    );
    scene.report.figure("p99_factor", factor);
    scene.close(&during, &after, returned).await
}
