//! A local cluster of real processes: a controller, nodes in replica groups, rankers if wanted.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use tempfile::TempDir;
use tidepool_client::{Client, ClientConfig};
use tidepool_proto::{
    code_of,
    v1::{self, control_client::ControlClient},
};
use tidepool_types::{ErrorCode, Name, TableVersion};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    BenchError,
    process::{Process, Start},
};

/// How long nodes and rankers may take to register, and a map to reach a client.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a wait asks again.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Nodes are at rest when they have run less than this of such a time; and how long that may take.
const REST: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));
const REST_TIMEOUT: Duration = Duration::from_secs(60);

/// What a local cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// The `tidepool` program; `None` for the one that runs this.
    pub program: Option<PathBuf>,
    /// A folder for configurations, logs and state is made in here. It is removed after a clean end.
    pub dir: PathBuf,
    /// The artifact store.
    pub store: PathBuf,
    /// Names of the replica groups; see [`group_names`].
    pub groups: Vec<String>,
    /// Nodes in each of them, called `<group>-1`, `<group>-2`, ...
    pub nodes_per_group: usize,
    /// How many rankers there are, called `ranker-1`, `ranker-2`, ...
    pub rankers: usize,
    /// Keys that are set over those that a local cluster needs.
    pub controller_config: toml::Table,
    /// The same, of every node.
    pub node_config: toml::Table,
    /// The same, of every ranker.
    pub ranker_config: toml::Table,
}

impl ClusterSpec {
    /// `groups` groups of `nodes_per_group` nodes and no ranker, as they are by default.
    pub fn new(
        dir: impl Into<PathBuf>,
        store: impl Into<PathBuf>,
        groups: usize,
        nodes_per_group: usize,
    ) -> Self {
        Self {
            program: None,
            dir: dir.into(),
            store: store.into(),
            groups: group_names(groups),
            nodes_per_group,
            rankers: 0,
            controller_config: toml::Table::new(),
            node_config: toml::Table::new(),
            ranker_config: toml::Table::new(),
        }
    }

    /// The program to start.
    pub(crate) fn program(&self) -> Result<PathBuf, BenchError> {
        match &self.program {
            Some(program) => Ok(program.clone()),
            None => std::env::current_exe().map_err(BenchError::io("finding this program")),
        }
    }
}

/// `a`, `b`, ... `z`, `g27`, `g28`, ...
#[must_use]
pub fn group_names(groups: usize) -> Vec<String> {
    let letters = ('a'..='z').map(String::from);
    letters.chain((27..).map(|n| format!("g{n}"))).take(groups).collect()
}

/// The processes, and the folder with their configurations, logs and state.
#[derive(Debug)]
pub struct LocalCluster {
    controller: Process,
    nodes: Vec<Process>,
    rankers: Vec<Process>,
    /// Removed when everything ended well; otherwise it stays, for its logs.
    folder: TempDir,
}

impl LocalCluster {
    /// Starts every process, and waits until each of them listens and the controller knows them all: placement
    /// is made from the nodes that are there.
    ///
    /// # Errors
    /// [`BenchError`]: a process that does not start or register.
    pub async fn start(spec: ClusterSpec) -> Result<Self, BenchError> {
        if spec.groups.is_empty() || spec.nodes_per_group == 0 {
            return Err(BenchError::Parameters("a cluster has at least one group and one node in it"));
        }
        let store = canonical(&spec.store)?;
        let program = spec.program()?;
        fs::create_dir_all(&spec.dir).map_err(BenchError::io(format!("creating {}", spec.dir.display())))?;
        let folder = tempfile::Builder::new().prefix("cluster-").tempdir_in(&spec.dir);
        let mut folder = folder.map_err(BenchError::io("making the folder of a cluster"))?;
        // Logs outlive a failure; a clean end removes them.
        folder.disable_cleanup(true);
        let at = canonical(folder.path())?;
        let process = |role: &'static str, name: &str, keys: Vec<(&str, toml::Value)>, more: &toml::Table| {
            let text = |path: &Path| toml::Value::from(path.display().to_string());
            let mut config = toml::Table::from_iter([
                ("grpc_address".to_owned(), "127.0.0.1:0".into()),
                ("http_address".to_owned(), "127.0.0.1:0".into()),
                ("store".to_owned(), text(&store)),
                ("data_dir".to_owned(), text(&at.join(name))),
            ]);
            config.extend(keys.into_iter().map(|(key, value)| (key.to_owned(), value)));
            config.extend(more.clone());
            Start { program: program.clone(), dir: at.clone(), role, name: name.to_owned(), config }.run()
        };
        // Every node is awaited before anything is placed.
        let settled = vec![("group_settle_ms", 0.into())];
        let mut controller = process("controller", "controller", settled, &spec.controller_config).await?;
        // Everybody else is told of it once.
        controller.keep_addresses();
        let controllers = || toml::Value::from(vec![controller.grpc_address().to_string()]);
        let names = spec.groups.iter().flat_map(|group| {
            (1..=spec.nodes_per_group).map(move |number| (group.clone(), format!("{group}-{number}")))
        });
        // Nodes that stand for machines of their own share the cores of one.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / (spec.groups.len() * spec.nodes_per_group)).max(1) as i64;
        let nodes = try_join_all(names.map(|(group, name)| {
            let keys = vec![
                ("controllers", controllers()),
                ("node", name.as_str().into()),
                ("group", group.into()),
                ("io_threads", threads.into()),
                ("pool_threads", threads.into()),
            ];
            process("node", &name, keys, &spec.node_config)
        }))
        .await?;
        let rankers = try_join_all((1..=spec.rankers).map(|number| {
            let name = format!("ranker-{number}");
            let keys = vec![("controllers", controllers()), ("ranker", name.as_str().into())];
            process("ranker", &name, keys, &spec.ranker_config)
        }))
        .await?;
        let cluster = Self { controller, nodes, rankers, folder };
        cluster.wait_for_members().await?;
        Ok(cluster)
    }

    /// The controller.
    #[must_use]
    pub const fn controller(&self) -> &Process {
        &self.controller
    }

    /// The controller, to be killed, say.
    pub const fn controller_mut(&mut self) -> &mut Process {
        &mut self.controller
    }

    /// Every node, group by group.
    #[must_use]
    pub fn nodes(&self) -> &[Process] {
        &self.nodes
    }

    /// Every node, to be killed, say.
    pub fn nodes_mut(&mut self) -> &mut [Process] {
        &mut self.nodes
    }

    /// Every ranker.
    #[must_use]
    pub fn rankers(&self) -> &[Process] {
        &self.rankers
    }

    /// Where configurations, logs and state are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `host:port` of the controller.
    #[must_use]
    pub fn controller_address(&self) -> String {
        self.controller.grpc_address().to_string()
    }

    /// Every process: controller, nodes, rankers.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        std::iter::once(&self.controller).chain(&self.nodes).chain(&self.rankers)
    }

    /// How long the threads of all nodes that run have run.
    #[must_use]
    pub fn nodes_cpu_time(&self) -> Duration {
        self.nodes.iter().filter_map(Process::cpu_time).sum()
    }

    /// Waits until no node warms up or copies any more. That they go on working is no reason to give up.
    pub(crate) async fn rest(&self) {
        let (ran, of) = REST;
        let deadline = Instant::now() + REST_TIMEOUT;
        let mut before = self.nodes_cpu_time();
        while Instant::now() < deadline {
            tokio::time::sleep(of).await;
            let now = self.nodes_cpu_time();
            // Less than before: threads have ended that had work.
            if now >= before && now - before < ran * self.nodes.len() as u32 {
                return;
            }
            before = now;
        }
    }

    /// Has a table version of the store served, waits until every partition is ready, and gives the epoch.
    ///
    /// # Errors
    /// [`BenchError::Control`]: a refusal, or what is missing after `wait`.
    pub async fn serve_table(&self, table_version: &TableVersion, wait: Duration) -> Result<u64, BenchError> {
        let mut control = self.control().await?;
        let deadline = Instant::now() + wait;
        loop {
            let request = v1::ServeTableRequest { table_version: Some(table_version.into()), serve: true };
            let answer = control.serve_table(request).await.map_err(refusal)?.into_inner();
            if answer.waiting_for.is_empty() {
                return Ok(answer.epoch);
            }
            if Instant::now() >= deadline {
                let waiting = answer.waiting_for.join("; ");
                return Err(BenchError::Control(format!("{table_version} is not ready: {waiting}")));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// A client of this cluster that has a map in which `table_version` is served.
    ///
    /// # Errors
    /// [`BenchError::Client`].
    pub async fn client(
        &self,
        config: ClientConfig,
        table_version: &TableVersion,
    ) -> Result<Client, BenchError> {
        let client =
            Client::start(ClientConfig { controllers: vec![self.controller_address()], ..config }).await?;
        client.wait_for_map(|map| map.layout(table_version).is_some(), JOIN_TIMEOUT).await?;
        Ok(client)
    }

    /// Gives a tenant a quota of rows per second on each node.
    ///
    /// # Errors
    /// [`BenchError::Control`]: a refusal.
    pub async fn set_quota(&self, tenant: &Name, rows_per_second: u64) -> Result<(), BenchError> {
        let quota = v1::Quota { rows_per_second, bytes_per_second: 0 };
        let rule = v1::QuotaRule { tenant: tenant.to_string(), quota: Some(quota) };
        self.control().await?.set_quota(rule).await.map_err(refusal)?;
        Ok(())
    }

    pub(crate) async fn control(&self) -> Result<ControlClient<Channel>, BenchError> {
        Ok(ControlClient::new(self.controller_channel().await?))
    }

    /// A connection to the controller.
    pub(crate) async fn controller_channel(&self) -> Result<Channel, BenchError> {
        let failed = |error: tonic::transport::Error| BenchError::Control(format!("connecting: {error}"));
        let endpoint = Endpoint::from_shared(format!("http://{}", self.controller_address()));
        let endpoint = endpoint.map_err(failed)?.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
        endpoint.connect().await.map_err(failed)
    }

    async fn wait_for_members(&self) -> Result<(), BenchError> {
        let mut control = self.control().await?;
        let rankers = self.rankers.len();
        let deadline = Instant::now() + JOIN_TIMEOUT;
        loop {
            let answer = control.get_cluster(v1::GetClusterRequest {}).await;
            let report = match answer {
                // One that shares its metastore has to be elected first.
                Err(status) if code_of(&status) == ErrorCode::NotLeader => v1::ClusterReport::default(),
                answer => answer.map_err(refusal)?.into_inner(),
            };
            if report.nodes.len() == self.nodes.len() && report.rankers.len() == rankers {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(BenchError::Control(format!(
                    "{} of {} nodes and {} of {rankers} rankers registered in time",
                    report.nodes.len(),
                    self.nodes.len(),
                    report.rankers.len()
                )));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Ends every process in the order in which nobody misses the next, and removes the folder. Those that
    /// were killed before are left alone.
    ///
    /// # Errors
    /// [`BenchError`]: a process that does not end well; the others are ended with this value.
    pub async fn stop(self) -> Result<(), BenchError> {
        self.stop_keeping(false).await
    }

    /// As [`stop`](Self::stop); the folder stays where that is wanted.
    pub(crate) async fn stop_keeping(mut self, keep: bool) -> Result<(), BenchError> {
        for ranker in &mut self.rankers {
            stop_running(ranker).await?;
        }
        for node in &mut self.nodes {
            stop_running(node).await?;
        }
        stop_running(&mut self.controller).await?;
        let folder = self.folder.keep();
        if keep {
            return Ok(());
        }
        fs::remove_dir_all(&folder).map_err(BenchError::io(format!("removing {}", folder.display())))
    }
}

async fn stop_running(process: &mut Process) -> Result<(), BenchError> {
    if process.is_running() { process.stop().await } else { Ok(()) }
}

fn canonical(path: &Path) -> Result<PathBuf, BenchError> {
    fs::canonicalize(path).map_err(BenchError::io(format!("finding {}", path.display())))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refusal(status: Status) -> BenchError {
    BenchError::Control(format!("{}: {}", code_of(&status), status.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_letters_and_then_numbers() {
        assert_eq!(group_names(2), ["a", "b"]);
        assert_eq!(group_names(28)[24..], ["y", "z", "g27", "g28"]);
    }
}
