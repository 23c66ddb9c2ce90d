//! The demo's cluster: a controller, two nodes in each of two replica groups, and a ranker.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tidepool_store::ArtifactStore;
use tidepool_types::ReleaseManifest;

use super::{GROUPS, NODES_PER_GROUP, processes::Process};
use crate::commands::control;

/// How long the release may take until it is loaded everywhere.
const LOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The processes, and the folder with their configurations, logs and state.
pub(crate) struct Cluster {
    controller: Process,
    nodes: Vec<Process>,
    ranker: Process,
    /// Removed when everything ended well; otherwise it stays, for its logs.
    folder: TempDir,
}

impl Cluster {
    /// Starts every process and waits until each of them listens.
    pub(crate) async fn start(dir: &Path, store: &ArtifactStore) -> Result<Self> {
        let store = fs::canonicalize(store.root()).context("finding the store")?;
        let mut folder =
            tempfile::Builder::new().prefix("cluster-").tempdir_in(dir).context("making a folder")?;
        // Logs outlive a failure; a clean end removes them.
        folder.disable_cleanup(true);
        let at = fs::canonicalize(folder.path()).context("finding the cluster's folder")?;
        let config = |name: &str| -> toml::Table {
            let data_dir = at.join(name).display().to_string();
            let any_port = || toml::Value::from("127.0.0.1:0");
            toml::Table::from_iter([
                ("grpc_address".to_owned(), any_port()),
                ("http_address".to_owned(), any_port()),
                ("store".to_owned(), store.display().to_string().into()),
                ("data_dir".to_owned(), data_dir.into()),
            ])
        };
        let mut table = config("controller");
        // Every node is awaited before the release is placed.
        table.insert("group_settle_ms".into(), 0.into());
        let controller = Process::start(&at, "controller", "controller", &table).await?;
        let member = |name: &str| {
            let mut table = config(name);
            table.insert("controllers".into(), vec![controller.grpc_address.to_string()].into());
            table
        };
        let mut nodes = Vec::new();
        for group in GROUPS {
            for number in 1..=NODES_PER_GROUP {
                let name = format!("{group}-{number}");
                let mut table = member(&name);
                table.insert("node".into(), name.as_str().into());
                table.insert("group".into(), group.into());
                nodes.push(Process::start(&at, "node", &name, &table).await?);
            }
        }
        let mut table = member("ranker");
        table.insert("ranker".into(), "ranker".into());
        let ranker = Process::start(&at, "ranker", "ranker", &table).await?;
        Ok(Self { controller, nodes, ranker, folder })
    }

    /// What runs, in one line.
    pub(crate) fn summary(&self) -> String {
        format!(
            "a controller, {} nodes in {} replica groups and a ranker; logs in {}",
            self.nodes.len(),
            GROUPS.len(),
            self.folder.path().display()
        )
    }

    /// Publishes the release, waits until it is loaded everywhere, and promotes it.
    pub(crate) async fn promote(&self, release: &ReleaseManifest) -> Result<()> {
        let mut control = control::connect(&self.controller_address()).await?;
        self.wait_for_members(&mut control).await?;
        control::publish(&mut control, &release.model, &release.release).await?;
        control::promote(&mut control, &release.model, &release.release, LOAD_TIMEOUT).await?;
        Ok(())
    }

    /// Placement is made from the nodes that are there when a release is published: all should be.
    async fn wait_for_members(
        &self,
        control: &mut tidepool_proto::v1::control_client::ControlClient<tonic::transport::Channel>,
    ) -> Result<()> {
        let all = async {
            loop {
                let cluster = control.get_cluster(tidepool_proto::v1::GetClusterRequest {}).await;
                let cluster = cluster.map_err(|s| control::refusal(&s))?.into_inner();
                if cluster.nodes.len() == self.nodes.len() && cluster.rankers.len() == 1 {
                    return Ok::<_, anyhow::Error>(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LOAD_TIMEOUT, all)
            .await
            .context("not every node and ranker registered in time")?
    }

    /// Kills the last node of the first group and says which it was.
    pub(crate) async fn kill_a_node(&mut self) -> Result<String> {
        let node = self.nodes.get_mut(NODES_PER_GROUP - 1).context("there is no node to kill")?;
        node.kill().await?;
        Ok(node.label.clone())
    }

    pub(crate) fn controller_address(&self) -> String {
        self.controller.grpc_address.to_string()
    }

    pub(crate) fn ranker_address(&self) -> String {
        self.ranker.grpc_address.to_string()
    }

    /// Base URL of every process, for `/status` and `/metrics`.
    pub(crate) fn urls(&self) -> Vec<(String, String)> {
        let all = std::iter::once(&self.controller).chain(&self.nodes).chain([&self.ranker]);
        all.map(|p| (p.label.clone(), format!("http://{}", p.http_address))).collect()
    }

    /// Ends every process in the order in which nobody misses the next, and removes the folder.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.ranker.stop().await?;
        for node in &mut self.nodes {
            if node.is_running() {
                node.stop().await?;
            }
        }
        self.controller.stop().await?;
        let folder: PathBuf = self.folder.keep();
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))
    }
}
