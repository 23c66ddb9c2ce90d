//! `tidepool demo`: the main job from end to end. Ratings become tables and a dense model, both become a
//! release, a cluster of real processes serves it, and every number that is printed came over the wire or
//! from the training run that made the release.

mod cluster;
pub(crate) mod data;
mod folder;
mod ranking;
mod release;
mod report;
mod sizes;

use std::{num::NonZeroUsize, path::PathBuf, time::Instant};

use anyhow::Result;
use tidepool_runtime::shutdown;

use crate::output::{Outcome, Output};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// movielens, synthetic, or a folder of RecBole atomic files; without it MovieLens if it can be had.
    #[arg(long, value_name = "movielens|synthetic|PATH")]
    data: Option<data::Choice>,
    /// Where releases and the cluster's files go.
    #[arg(long, value_name = "DIR", default_value = "data/demo")]
    dir: PathBuf,
    /// Train again, even if this data set's release is there already.
    #[arg(long)]
    fresh: bool,
    /// Train again, and write the tables with f32 rows into this artifact store too: what they were before
    /// quantization.
    #[arg(long, value_name = "DIR")]
    f32_store: Option<PathBuf>,
    /// Kill a node (SIGKILL) when half of the users are ranked.
    #[arg(long)]
    kill_one: bool,
    /// Leave the cluster running until Ctrl-C.
    #[arg(long)]
    stay: bool,
    /// Rank at most this many users.
    #[arg(long, value_name = "N")]
    users: Option<NonZeroUsize>,
    /// Seed of training, and of the synthetic data set.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) async fn run(args: Args, output: Output) -> Result<Outcome> {
    let began = Instant::now();
    let dataset = data::load(args.data.as_ref(), args.seed, output).await?;
    let dir = args.dir.join(&dataset.name);
    let prepared = release::prepare(&dir, dataset, &args, output).await?;

    let mut cluster = cluster::Cluster::start(&dir, &prepared.store).await?;
    output.line(format!("cluster: {}", cluster.summary()));
    let result = story(&args, &prepared, &mut cluster, began, output).await;
    if let (Ok(_), true) = (&result, args.stay) {
        output.line("the cluster stays up; end it with Ctrl-C");
        shutdown::signal()?.await;
    }
    let kept = result?;
    cluster.stop().await?;
    Ok(if kept { Outcome::Done } else { Outcome::PromiseBroken })
}

/// Everything that happens while the cluster runs; tells whether the promises were kept.
async fn story(
    args: &Args,
    prepared: &release::Prepared,
    cluster: &mut cluster::Cluster,
    began: Instant,
    output: Output,
) -> Result<bool> {
    cluster.promote(&prepared.manifest).await?;
    output.line(format!(
        "release {} {} is current: {}",
        prepared.manifest.model,
        prepared.manifest.release,
        prepared.manifest.tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    ));
    let mut requests = prepared.dataset.test_requests();
    requests.truncate(args.users.map_or(usize::MAX, NonZeroUsize::get));
    let ranked = ranking::rank_all(cluster, &prepared.manifest, &requests, args.kill_one, output).await?;
    let missing = ranking::rank_missing(cluster, &prepared.manifest, &requests).await?;
    let top = ranking::top_films(cluster, &prepared.manifest, &prepared.dataset).await?;
    let rate = ranking::lookup_rate(cluster, &prepared.manifest, &prepared.dataset).await?;
    let sizes = sizes::of_release(&prepared.store, &prepared.manifest)?;
    let report = report::Report::new(report::Measured {
        prepared,
        ranked: &ranked,
        missing: &missing,
        top,
        rate: &rate,
        sizes,
        urls: cluster.urls(),
        complete: args.users.is_none(),
        seconds: began.elapsed().as_secs_f64(),
    });
    report.print(output);
    Ok(report.promises_kept())
}
