//! The sandbox cluster: a controller, nodes and rankers in this process, on free loopback ports, over one
//! temporary folder. What runs is what the roles run; only the processes are missing.
//!
//! Read first: [`Sandbox`], [`Shape`].

use std::{future::Future, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use prometheus::Registry;
use serde_json::Value;
use tempfile::TempDir;
use tidepool_client::{Client, ClientConfig, Connector};
use tidepool_proto::v1::{self, control_client::ControlClient, ranker_client::RankerClient};
use tidepool_runtime::tls::Dial;
use tidepool_store::ArtifactStore;
use tidepool_types::{Name, TableVersion};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::locks::Locks;

pub mod locks;

/// How long anything in a sandbox may take before the test fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The audit log of the controller, in the sandbox's folder.
const AUDIT_LOG: &str = "audit.log";

/// How many of what a sandbox has.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Replica groups: `a`, `b` and so on.
    pub groups: usize,
    /// Nodes in each of them: `a-1`, `a-2` and so on.
    pub nodes_per_group: usize,
}

/// A cluster in this process.
pub struct Sandbox {
    /// Where tables and releases go.
    pub store: ArtifactStore,
    controller: Option<Role<tidepool_controller::Running>>,
    controller_address: String,
    nodes: Vec<(String, Option<Role<tidepool_node::Running>>)>,
    rankers: Vec<Role<tidepool_ranker::Running>>,
    shape: Shape,
    locks: Option<Locks>,
    folder: TempDir,
}

/// A role that runs, and what ends it.
struct Role<R> {
    running: R,
    token: CancellationToken,
}

impl Sandbox {
    /// Starts a controller and the nodes, and waits until all nodes have registered.
    ///
    /// # Errors
    /// What a role says when it cannot start.
    pub async fn start(shape: Shape) -> Result<Self> {
        Self::start_in(TempDir::new()?, shape, None).await
    }

    /// The same behind locks: TLS on every port, certificates of every role, and rules about who may do what.
    ///
    /// # Errors
    /// What a role says when it cannot start.
    pub async fn start_locked(shape: Shape) -> Result<Self> {
        let folder = TempDir::new()?;
        let locks = Locks::make(&folder.path().join("certs"))?;
        Self::start_in(folder, shape, Some(locks)).await
    }

    async fn start_in(folder: TempDir, shape: Shape, locks: Option<Locks>) -> Result<Self> {
        let store = ArtifactStore::open(folder.path().join("store"))?;
        let controller = start_controller(folder.path(), store.root(), "127.0.0.1:0", locks.as_ref()).await?;
        let controller_address = controller.running.grpc_address.to_string();
        let controller = Some(controller);
        let mut sandbox = Self {
            store,
            controller,
            controller_address,
            nodes: Vec::new(),
            rankers: Vec::new(),
            shape,
            locks,
            folder,
        };
        for (group, letter) in (0..shape.groups).zip('a'..='z') {
            for number in 1..=shape.nodes_per_group {
                sandbox.nodes.push((format!("{letter}-{number}"), None));
                sandbox.start_node(group * shape.nodes_per_group + number - 1).await?;
            }
        }
        let all = sandbox.nodes.len();
        sandbox.wait_for("every node to register", async |c| Ok(c.nodes.len() == all)).await?;
        Ok(sandbox)
    }

    /// Starts node number `at`, from 0 through all groups; its folder is that of its last life.
    ///
    /// # Errors
    /// What the node says when it cannot start.
    pub async fn start_node(&mut self, at: usize) -> Result<()> {
        let name = self.nodes[at].0.clone();
        let raw = tidepool_node::RawConfig {
            group: name.split('-').next().unwrap_or_default().to_owned(),
            controllers: vec![self.controller_address.clone()],
            grpc_address: "127.0.0.1:0".into(),
            http_address: "127.0.0.1:0".into(),
            store: path(self.store.root()),
            data_dir: path(&self.folder.path().join(&name)),
            report_interval_ms: 200,
            node: name,
            tls: self.locks.as_ref().map(|locks| locks.tls("node")).unwrap_or_default(),
            auth: self.locks.as_ref().map(Locks::auth).unwrap_or_default(),
            ..tidepool_node::RawConfig::default()
        };
        let token = CancellationToken::new();
        let running = tidepool_node::start(raw.try_into()?, token.clone()).await?;
        self.nodes[at].1 = Some(Role { running, token });
        Ok(())
    }

    /// Ends node number `at` and waits until it has.
    ///
    /// # Errors
    /// When it does not run, or ends badly.
    pub async fn stop_node(&mut self, at: usize) -> Result<()> {
        let role = self.nodes[at].1.take().with_context(|| format!("node {at} does not run"))?;
        role.token.cancel();
        Ok(role.running.wait().await?)
    }

    /// The lines of the controller's audit log.
    ///
    /// # Errors
    /// A line that is none.
    pub fn audit_log(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.folder.path().join(AUDIT_LOG))?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Ends the controller and waits until it has.
    ///
    /// # Errors
    /// When it does not run, or ends badly.
    pub async fn stop_controller(&mut self) -> Result<()> {
        let role = self.controller.take().context("the controller does not run")?;
        role.token.cancel();
        Ok(role.running.wait().await?)
    }

    /// Starts the controller again, where it was and from what it had written down.
    ///
    /// # Errors
    /// What the controller says when it cannot start.
    pub async fn restart_controller(&mut self) -> Result<()> {
        let address = self.controller_address.clone();
        let (folder, locks) = (self.folder.path(), self.locks.as_ref());
        self.controller = Some(start_controller(folder, self.store.root(), &address, locks).await?);
        Ok(())
    }

    /// Starts a ranker and gives its number; `exact` as in its configuration.
    ///
    /// # Errors
    /// What the ranker says when it cannot start.
    pub async fn start_ranker(&mut self, exact: bool) -> Result<usize> {
        self.start_ranker_with_cache(exact, 0).await
    }

    /// The same, with a cache of hot rows of so many bytes.
    ///
    /// # Errors
    /// What the ranker says when it cannot start.
    pub async fn start_ranker_with_cache(&mut self, exact: bool, cache_bytes: u64) -> Result<usize> {
        self.start_ranker_with(|raw| (raw.exact, raw.cache_bytes) = (exact, cache_bytes)).await
    }

    /// Starts a ranker whose configuration is changed so, and gives its number.
    ///
    /// # Errors
    /// What the ranker says when it cannot start.
    pub async fn start_ranker_with(
        &mut self,
        change: impl FnOnce(&mut tidepool_ranker::RawConfig),
    ) -> Result<usize> {
        let name = format!("ranker-{}", self.rankers.len());
        let mut raw = tidepool_ranker::RawConfig {
            controllers: vec![self.controller_address.clone()],
            grpc_address: "127.0.0.1:0".into(),
            http_address: "127.0.0.1:0".into(),
            store: path(self.store.root()),
            data_dir: path(&self.folder.path().join(&name)),
            ranker: name,
            tls: self.locks.as_ref().map(|locks| locks.tls("ranker")).unwrap_or_default(),
            auth: self.locks.as_ref().map(Locks::auth).unwrap_or_default(),
            default_deadline_ms: 10_000,
            ..tidepool_ranker::RawConfig::default()
        };
        change(&mut raw);
        let token = CancellationToken::new();
        let running = tidepool_ranker::start(raw.try_into()?, token.clone()).await?;
        self.rankers.push(Role { running, token });
        let all = self.rankers.len();
        self.wait_for("the ranker to register", async |c| Ok(c.rankers.len() == all)).await?;
        Ok(all - 1)
    }

    /// A client of ranker number `at`.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn ranker(&self, at: usize) -> Result<RankerClient<Channel>> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.rankers[at].running.grpc_address))?;
        Ok(RankerClient::new(self.dial()?.connect(endpoint).await?))
    }

    /// `host:port` of the HTTP side of ranker number `at`.
    #[must_use]
    pub fn ranker_http(&self, at: usize) -> std::net::SocketAddr {
        self.rankers[at].running.http_address
    }

    /// A client of the controller.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn control(&self) -> Result<ControlClient<Channel>> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.controller_address))?;
        Ok(ControlClient::new(self.dial()?.connect(endpoint).await?))
    }

    /// What opens the doors of this sandbox to an administrator.
    ///
    /// # Errors
    /// What is wrong with the certificates.
    pub fn dial(&self) -> Result<Dial> {
        self.locks.as_ref().map_or_else(|| Ok(Dial::default()), |locks| locks.dial("client"))
    }

    /// The locks of one that was started with them.
    #[must_use]
    pub const fn locks(&self) -> Option<&Locks> {
        self.locks.as_ref()
    }

    /// `host:port` of the controller.
    #[must_use]
    pub fn controller_address(&self) -> &str {
        &self.controller_address
    }

    /// The nodes that run.
    pub fn nodes(&self) -> impl Iterator<Item = &tidepool_node::Running> {
        self.nodes.iter().filter_map(|(_, role)| Some(&role.as_ref()?.running))
    }

    /// A lookup client that has a map.
    ///
    /// # Errors
    /// When no map comes.
    pub async fn client(&self) -> Result<Client> {
        let dial = self.dial()?;
        let config = ClientConfig {
            controllers: vec![self.controller_address.clone()],
            connector: dial.is_tls().then(|| Connector::new(move |endpoint| dial.channel(endpoint))),
            default_timeout: DEADLINE,
            ..ClientConfig::default()
        };
        let client = Client::start(config).await?;
        client.wait_for_map(|map| map.epoch.0 > 0, DEADLINE).await?;
        Ok(client)
    }

    /// Has a table version served and waits until every partition is ready.
    ///
    /// # Errors
    /// What the controller says, or what is missing at the deadline.
    pub async fn serve(&self, table_version: &TableVersion) -> Result<u64> {
        let mut control = self.control().await?;
        let until = tokio::time::Instant::now() + DEADLINE;
        loop {
            let request = v1::ServeTableRequest { table_version: Some(table_version.into()), serve: true };
            let answer = control.serve_table(request).await?.into_inner();
            if answer.waiting_for.is_empty() {
                return Ok(answer.epoch);
            }
            if tokio::time::Instant::now() > until {
                bail!("{table_version} is not ready: {}", answer.waiting_for.join("; "));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Publishes a release that is in the store, waits until it is loaded, promotes it, and waits until
    /// every ranker has heard of that.
    ///
    /// # Errors
    /// What the controller says, or what is missing at the deadline.
    pub async fn promote(&self, model: &Name, release: &Name) -> Result<()> {
        let mut control = self.control().await?;
        let (model, release) = (model.to_string(), release.to_string());
        let request = v1::PublishReleaseRequest { model: model.clone(), release: release.clone() };
        control.publish_release(request).await?;
        self.wait_for("the release to be loaded", async |cluster| {
            let of_release = |s: &&v1::ReleaseStatus| {
                s.release.as_ref().is_some_and(|r| r.model == model && r.release == release)
            };
            Ok(cluster.releases.iter().find(of_release).is_some_and(|s| s.waiting_for.is_empty()))
        })
        .await?;
        let request =
            v1::PromoteReleaseRequest { model: model.clone(), release: release.clone(), dry_run: false };
        let epoch = control.promote_release(request).await?.into_inner().epoch;
        self.wait_for("every ranker to hear of it", async |c| Ok(c.rankers.iter().all(|r| r.epoch >= epoch)))
            .await
    }

    /// Asks the controller until `ok`, for at most [`DEADLINE`].
    ///
    /// # Errors
    /// What `ok` says, or that the deadline passed, with what the controller last said.
    pub async fn wait_for(
        &self,
        what: &str,
        mut ok: impl AsyncFnMut(&v1::ClusterReport) -> Result<bool>,
    ) -> Result<()> {
        let mut control = self.control().await?;
        let until = tokio::time::Instant::now() + DEADLINE;
        loop {
            let cluster = control.get_cluster(v1::GetClusterRequest {}).await?.into_inner();
            if ok(&cluster).await? {
                return Ok(());
            }
            if tokio::time::Instant::now() > until {
                bail!("waiting for {what}: {cluster:#?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until what `/status` of node number `at` shows is as `ok` wants it, without the controller.
    ///
    /// # Errors
    /// The last status at the deadline.
    pub async fn wait_for_node_status(&self, at: usize, ok: impl Fn(&Value) -> bool) -> Result<Value> {
        let node = self.nodes[at].1.as_ref().with_context(|| format!("node {at} does not run"))?;
        let until = tokio::time::Instant::now() + DEADLINE;
        loop {
            let status = node.running.status();
            if ok(&status) {
                return Ok(status);
            }
            if tokio::time::Instant::now() > until {
                bail!("node {at}: {status:#}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What the processes show under `/metrics`: of the controller, the nodes and the rankers that run.
    #[must_use]
    pub fn registries(&self) -> Vec<Registry> {
        let controller = self.controller.iter().map(|role| &role.running.registry);
        let nodes = self.nodes.iter().filter_map(|(_, role)| Some(&role.as_ref()?.running.registry));
        let rankers = self.rankers.iter().map(|role| &role.running.registry);
        controller.chain(nodes).chain(rankers).cloned().collect()
    }

    /// Nodes in each group.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// Ends everything in good order; an error in any role's end fails the test.
    ///
    /// # Errors
    /// What the first role that ended badly says.
    pub async fn stop(mut self) -> Result<()> {
        for role in self.rankers.drain(..) {
            role.token.cancel();
            within("a ranker", role.running.wait()).await?;
        }
        for (name, role) in self.nodes.drain(..) {
            if let Some(role) = role {
                role.token.cancel();
                within(&name, role.running.wait()).await?;
            }
        }
        if let Some(role) = self.controller.take() {
            role.token.cancel();
            within("the controller", role.running.wait()).await?;
        }
        Ok(())
    }
}

async fn within<E: std::error::Error + Send + Sync + 'static>(
    what: &str,
    end: impl Future<Output = Result<(), E>>,
) -> Result<()> {
    Ok(tokio::time::timeout(DEADLINE, end).await.with_context(|| format!("{what} did not end"))??)
}

async fn start_controller(
    folder: &Path,
    store: &Path,
    grpc_address: &str,
    locks: Option<&Locks>,
) -> Result<Role<tidepool_controller::Running>> {
    let raw = tidepool_controller::RawConfig {
        grpc_address: grpc_address.into(),
        http_address: "127.0.0.1:0".into(),
        store: path(store),
        data_dir: path(&folder.join("controller")),
        // Every node is awaited before anything is placed.
        group_settle_ms: 0,
        reconnect_grace_ms: 2000,
        retire_grace_ms: 500,
        tls: locks.map(|locks| locks.tls("controller")).unwrap_or_default(),
        auth: locks.map(Locks::auth).unwrap_or_default(),
        audit_log: path(&folder.join(AUDIT_LOG)),
        ..tidepool_controller::RawConfig::default()
    };
    let token = CancellationToken::new();
    let running = tidepool_controller::start(raw.try_into()?, token.clone()).await?;
    Ok(Role { running, token })
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
