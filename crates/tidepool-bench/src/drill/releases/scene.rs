//! How every drill of releases goes: two groups of two nodes, several rankers, a release that answers, load from
//! beginning to end, and transitions under it, each after a while in which nothing happens.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use tempfile::TempDir;
use tidepool_proto::{
    code_of,
    v1::{self, ranker_client::RankerClient, releases_client::ReleasesClient},
};
use tidepool_store::ArtifactStore;
use tidepool_types::TableVersion;
use tonic::transport::Channel;

use super::{
    Params, ReleaseDrill, Report,
    load::{Kind, Load, LoadSpec},
    operator::{Answer, Operator},
    oracle::Oracle,
    report::Facts,
    requests::Requests,
    tables::Kept,
    truth::{MODEL, Release, Table},
};
use crate::{
    BenchError,
    cluster::{ClusterSpec, LocalCluster},
    drill::site::metric,
    process::Process,
};

/// Replica groups, and nodes in each.
const GROUPS: usize = 2;
pub(super) const NODES_PER_GROUP: usize = 2;
/// How soon what could not be loaded is tried again, in milliseconds.
const LOAD_RETRY_MS: i64 = 500;
/// See [`short_grace`].
const GRACE_MS: i64 = 3000;
/// How long a release that is let go stays at least: the longest deadline of the load, several times.
const LEAST_GRACE: Duration = Duration::from_secs(1);
/// How long anything that is waited for may take.
const WAIT_TIMEOUT: Duration = Duration::from_secs(90);
/// How often a wait looks again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long load goes on before anything is compared with it, and between two pairs.
const SETTLE: Duration = Duration::from_secs(1);

/// What was counted of calls that were made again.
const RETRIES: &str = "tidepool_client_retries_total{outcome=\"sent\"}";

/// Told what happens.
pub(super) type Progress<'a> = &'a mut (dyn FnMut(&str) + Send);

/// What a drill needs beside the common.
#[derive(Debug)]
pub(super) struct Needs {
    /// Table versions: releases take them in turn.
    pub(super) versions: u64,
    /// Keys of the controller.
    pub(super) controller_config: toml::Table,
}

/// A drill that goes on.
pub(super) struct Scene<'a> {
    pub(super) params: &'a Params,
    progress: Progress<'a>,
    pub(super) cluster: LocalCluster,
    pub(super) operator: Operator,
    pub(super) report: crate::drill::Report,
    /// The release that answers.
    pub(super) current: Release,
    pub(super) load: Load,
    oracle: Oracle,
    folder: TempDir,
    versions: u64,
    /// Releases so far.
    releases: u64,
    /// When the present transition began, and how many calls had been made again by then.
    begun: Option<(Instant, f64)>,
    facts: Facts,
    began: Instant,
}

impl<'a> Scene<'a> {
    /// Builds what tables are missing, starts the cluster, has a first release answer, and begins the load.
    pub(super) async fn open(
        drill: ReleaseDrill,
        params: &'a Params,
        needs: Needs,
        progress: Progress<'a>,
    ) -> Result<Self, BenchError> {
        let (tables_built, build, kept) = build_tables(params, needs.versions, progress).await?;
        let began = Instant::now();
        let (folder, store) = lend_tables(drill, params, needs.versions, &kept)?;
        let mut spec = ClusterSpec::new(folder.path(), store.root(), GROUPS, NODES_PER_GROUP);
        spec.program.clone_from(&params.program);
        spec.rankers = params.rankers;
        spec.controller_config = needs.controller_config;
        // A release is let go over half a window of requests, and its tables over the other half: the last that began
        // with it is long over then.
        let grace = Duration::from_secs_f64(window(params) as f64 / params.rate / 2.0).max(LEAST_GRACE);
        spec.controller_config.insert("retire_grace_ms".to_owned(), (grace.as_millis() as i64).into());
        let retry = || toml::Table::from_iter([("load_retry_ms".to_owned(), LOAD_RETRY_MS.into())]);
        (spec.node_config, spec.ranker_config) = (retry(), retry());
        let program = spec.program()?;
        progress(&format!(
            "two tables of {} rows; {GROUPS} groups of {NODES_PER_GROUP} nodes, {} rankers",
            params.rows / 2,
            params.rankers
        ));
        let cluster = LocalCluster::start(spec).await?;
        let operator = Operator {
            program,
            controller: cluster.controller_address(),
            store: store.root().to_owned(),
            files: folder.path().to_owned(),
        };
        let current = Release::whole(1, 1)?;
        let mut oracle = Oracle::default();
        oracle.learn(&current);
        operator.publish(&current, &current.tables()?).await?;
        operator.promote(&current).await?;
        cluster.rest().await;
        let load = start_load(&cluster, params).await?;
        load.expect(Some(&current.name));
        let facts =
            Facts { transitions: Vec::new(), retries: 0.0, duration: Duration::ZERO, tables_built, build };
        let scene = Self {
            params,
            progress,
            cluster,
            operator,
            report: Report::begin(drill, params),
            current,
            load,
            oracle,
            folder,
            versions: needs.versions,
            releases: 1,
            begun: None,
            facts,
            began,
        };
        scene.settle().await?;
        Ok(scene)
    }

    /// Says what happens.
    pub(super) fn tell(&mut self, what: &str) {
        (self.progress)(what);
    }

    /// Requests of a window.
    pub(super) const fn window(&self) -> u64 {
        window(self.params)
    }

    /// The number of the next release, and a table version that the current one does not have.
    fn next(&mut self) -> (u64, u64) {
        self.releases += 1;
        (self.releases, self.current.versions[0] % self.versions + 1)
    }

    /// A release to come, of a model with its tables.
    pub(super) fn next_release(&mut self) -> Result<Release, BenchError> {
        let (number, version) = self.next();
        self.known(Release::whole(number, version)?)
    }

    /// A release to come, of a model of the next version with the tables of the current release.
    pub(super) fn skewed_release(&mut self) -> Result<Release, BenchError> {
        let (number, version) = self.next();
        self.known(Release::skewed(number, version, self.current.versions[0])?)
    }

    fn known(&mut self, release: Release) -> Result<Release, BenchError> {
        self.oracle.learn(&release);
        Ok(release)
    }

    /// The tables that a release is published with: its own, unless versions are to be mixed.
    pub(super) fn published_tables(&self, release: &Release) -> Result<[TableVersion; 2], BenchError> {
        let mut tables = release.tables()?;
        if self.params.mix_versions {
            let items = Table::Items;
            tables[items as usize] = items.version(self.current.versions[items as usize])?;
        }
        Ok(tables)
    }

    /// Publishes a release.
    pub(super) async fn publish(&self, release: &Release) -> Result<(), BenchError> {
        self.operator.publish(release, &self.published_tables(release)?).await?;
        Ok(())
    }

    /// Promotes a release, after which it alone answers; gives the one before.
    pub(super) async fn promote(&mut self, release: Release) -> Result<Release, BenchError> {
        self.load.expect(None);
        self.operator.promote(&release).await?;
        self.load.expect(Some(&release.name));
        Ok(std::mem::replace(&mut self.current, release))
    }

    /// As [`promote`](Self::promote), by an operator whose controller has been away: he repeats himself. Rankers that
    /// come back to it one by one are waited for.
    pub(super) async fn promote_again(&mut self, release: Release) -> Result<Release, BenchError> {
        self.load.expect(None);
        let answer = self.until_done(&["release", "promote", MODEL, &release.name]).await?;
        self.heard(answer["epoch"].as_u64().unwrap_or_default()).await?;
        self.load.expect(Some(&release.name));
        Ok(std::mem::replace(&mut self.current, release))
    }

    /// Lets a while pass without anything happening.
    pub(super) async fn before(&mut self) -> Result<(), BenchError> {
        let pair = self.facts.transitions.len() + 1;
        self.tell(&format!("pair {pair} of {}: before", self.params.pairs));
        self.load.window(Kind::Before)?;
        self.load.until_sent(self.window()).await
    }

    /// A transition begins.
    pub(super) async fn begin(&mut self, what: &str) -> Result<(), BenchError> {
        self.tell(what);
        let retries = self.retries().await?;
        self.load.window(Kind::During)?;
        self.begun = Some((Instant::now(), retries));
        Ok(())
    }

    /// Everything of the transition has taken effect, and its window ends.
    pub(super) async fn took_effect(&mut self) -> Result<(), BenchError> {
        let Some((begun, retries)) = self.begun.take() else { return Ok(()) };
        self.facts.transitions.push(begun.elapsed());
        self.load.window(Kind::Between)?;
        self.facts.retries += self.retries().await? - retries;
        Ok(())
    }

    /// Waits until the current release is whole again, and a moment longer.
    pub(super) async fn settle(&self) -> Result<(), BenchError> {
        let name = self.current.name.as_str();
        self.wait_for("the current release is loaded everywhere", |cluster| {
            let entry = cluster
                .releases
                .iter()
                .find(|status| status.release.as_ref().is_some_and(|entry| entry.release == name));
            entry.is_some_and(|status| status.waiting_for.is_empty())
                && cluster.rankers.len() == self.params.rankers
        })
        .await?;
        self.load.window(Kind::Between)?;
        self.load.until_sent((self.params.rate * SETTLE.as_secs_f64()).ceil() as u64).await
    }

    /// Waits until the cluster is as it is `wanted`, as the controller sees it. While that does not answer, it is not.
    pub(super) async fn wait_for(
        &self,
        what: &'static str,
        wanted: impl Fn(&v1::ClusterReport) -> bool,
    ) -> Result<v1::ClusterReport, BenchError> {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let answer = match self.cluster.control().await {
                Ok(mut control) => control.get_cluster(v1::GetClusterRequest {}).await,
                Err(error) => Err(tonic::Status::unavailable(error.to_string())),
            };
            let problem = match answer.map(tonic::Response::into_inner) {
                Ok(cluster) if wanted(&cluster) => return Ok(cluster),
                Ok(_) => "it is not".to_owned(),
                Err(status) => format!("{}: {}", code_of(&status), status.message()),
            };
            if Instant::now() >= deadline {
                return Err(BenchError::Waited { what, problem, seconds: WAIT_TIMEOUT.as_secs() });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until every ranker goes by the map of this epoch.
    pub(super) async fn heard(&self, epoch: u64) -> Result<(), BenchError> {
        let rankers = self.params.rankers;
        self.wait_for("every ranker has heard of it", |cluster| {
            cluster.rankers.iter().filter(|ranker| ranker.epoch >= epoch).count() == rankers
        })
        .await?;
        Ok(())
    }

    /// Waits until nothing of a release is missing.
    pub(super) async fn loaded(&self, release: &Release) -> Result<(), BenchError> {
        let name = release.name.as_str();
        self.wait_for("the release is loaded everywhere", |cluster| {
            let of_release = |s: &&v1::ReleaseStatus| s.release.as_ref().is_some_and(|r| r.release == name);
            cluster.releases.iter().find(of_release).is_some_and(|status| status.waiting_for.is_empty())
        })
        .await?;
        Ok(())
    }

    /// Waits until the cluster has forgotten a release, and no node is to hold a table that no other release has.
    pub(super) async fn gone(&self, release: &Release) -> Result<(), BenchError> {
        let name = release.name.as_str();
        self.wait_for("the release that was retired is gone", |cluster| {
            let releases = || cluster.releases.iter().filter_map(|status| status.release.as_ref());
            let layouts = cluster.map.iter().flat_map(|map| &map.layouts);
            let mut tables = layouts.filter_map(|layout| layout.schema.as_ref()?.table_version.as_ref());
            releases().all(|entry| entry.release != name)
                && tables.all(|table| releases().any(|entry| entry.tables.contains(table)))
        })
        .await?;
        Ok(())
    }

    /// The traffic of the model, as the controller has it.
    pub(super) async fn traffic(&self) -> Result<v1::TrafficStatus, BenchError> {
        let mut releases = ReleasesClient::new(self.cluster.controller_channel().await?);
        let asked = releases.get_traffic(v1::GetTrafficRequest { model: MODEL.into() }).await;
        let answer = asked.map_err(|status| BenchError::Control(status.message().to_owned()))?;
        let model = answer.into_inner().models.into_iter().next();
        model.ok_or_else(|| BenchError::Control(format!("it knows no model {MODEL}")))
    }

    /// Runs a command again until it is not refused: what an operator does whose controller is away.
    pub(super) async fn until_done(&self, args: &[&str]) -> Result<serde_json::Value, BenchError> {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            match self.operator.ask(args).await? {
                Answer::Done(value) => return Ok(value),
                Answer::Refused(_) if Instant::now() < deadline => tokio::time::sleep(LOOK_AGAIN).await,
                Answer::Refused(problem) => {
                    let process = format!("tidepool {}", args.join(" "));
                    return Err(BenchError::Process { process, problem });
                }
            }
        }
    }

    async fn retries(&self) -> Result<f64, BenchError> {
        let mut total = 0.0;
        for ranker in self.cluster.rankers() {
            total += metric(ranker, RETRIES).await?;
        }
        Ok(total)
    }

    /// HTTP addresses of the rankers.
    pub(super) fn ranker_addresses(&self) -> Vec<String> {
        self.cluster.rankers().iter().map(|ranker| ranker.http_address().to_string()).collect()
    }

    /// Ends load and cluster, and gives what was found.
    pub(super) async fn close(mut self) -> Result<Report, BenchError> {
        self.tell("checking the answers");
        let outcome = self.load.end(self.oracle).await?;
        self.cluster.stop_keeping(self.params.keep).await?;
        if !self.params.keep {
            let folder = self.folder.keep();
            std::fs::remove_dir_all(&folder)
                .map_err(BenchError::io(format!("removing {}", folder.display())))?;
        }
        self.facts.duration = self.began.elapsed();
        Report::new(self.report, self.params, &outcome, self.facts)
    }
}

/// Keys of a controller that, when it begins again, does not wait long for those who have not reported yet: here they are
/// a few on one machine.
pub(super) fn short_grace() -> toml::Table {
    toml::Table::from_iter([("reconnect_grace_ms".to_owned(), GRACE_MS.into())])
}

/// Requests of a window: a transition lasts for as many, or for longer.
const fn window(params: &Params) -> u64 {
    params.requests_during.div_ceil(params.pairs as u64)
}

/// Tables built, the time it took, and where they are.
async fn build_tables(
    params: &Params,
    versions: u64,
    progress: &mut (dyn FnMut(&str) + Send),
) -> Result<(usize, Duration, Kept), BenchError> {
    let began = Instant::now();
    let kept = Kept::open(&params.dir, params.rows / 2, params.fresh)?;
    progress(&format!(
        "{versions} versions of two tables of {} rows, unless they are there",
        params.rows / 2
    ));
    let building = tokio::task::spawn_blocking(move || kept.ensure(1..=versions).map(|built| (built, kept)));
    let (built, kept) =
        building.await.map_err(|error| BenchError::io("building the tables")(error.into()))??;
    Ok((built, began.elapsed(), kept))
}

/// A folder for the drill, and in it a store with the tables.
fn lend_tables(
    drill: ReleaseDrill,
    params: &Params,
    versions: u64,
    kept: &Kept,
) -> Result<(TempDir, ArtifactStore), BenchError> {
    let dir = params.dir.join("drills");
    std::fs::create_dir_all(&dir).map_err(BenchError::io(format!("creating {}", dir.display())))?;
    let folder = tempfile::Builder::new().prefix(&format!("{drill}-")).tempdir_in(&dir);
    let mut folder = folder.map_err(BenchError::io("making the folder of a drill"))?;
    // Logs outlive a failure; a clean end removes them.
    folder.disable_cleanup(true);
    let store = ArtifactStore::open(folder.path().join("store"))?;
    kept.lend(1..=versions, &store)?;
    Ok((folder, store))
}

async fn start_load(cluster: &LocalCluster, params: &Params) -> Result<Load, BenchError> {
    let rankers = try_join_all(cluster.rankers().iter().map(connect)).await?;
    let requests = Requests { rows: params.rows / 2, seed: params.seed };
    Load::start(rankers, LoadSpec { requests, per_second: params.rate, deadline: params.deadline })
}

async fn connect(ranker: &Process) -> Result<RankerClient<Channel>, BenchError> {
    let failed = |error: tonic::transport::Error| {
        BenchError::io(format!("connecting to {}", ranker.label()))(std::io::Error::other(error))
    };
    let endpoint = Channel::from_shared(format!("http://{}", ranker.grpc_address()));
    let endpoint = endpoint.map_err(|error| BenchError::io("an address")(std::io::Error::other(error)))?;
    Ok(RankerClient::new(endpoint.tcp_nodelay(true).connect().await.map_err(failed)?))
}
