//! The demo's cluster: a controller, two nodes in each of two replica groups, and a ranker.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use tidepool_bench::cluster::{ClusterSpec, LocalCluster};
use tidepool_store::ArtifactStore;
use tidepool_types::ReleaseManifest;

use crate::{commands::control, remote::Remote};

/// Replica groups, and nodes in each.
const GROUPS: usize = 2;
const NODES_PER_GROUP: usize = 2;
/// How long the release may take until it is loaded everywhere.
const LOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The processes, with what the demo does to them.
pub(crate) struct Cluster(LocalCluster);

impl Cluster {
    /// Starts every process and waits until all of them know each other.
    pub(crate) async fn start(dir: &Path, store: &ArtifactStore) -> Result<Self> {
        let spec = ClusterSpec { rankers: 1, ..ClusterSpec::new(dir, store.root(), GROUPS, NODES_PER_GROUP) };
        Ok(Self(LocalCluster::start(spec).await?))
    }

    /// What runs, in one line.
    pub(crate) fn summary(&self) -> String {
        format!(
            "a controller, {} nodes in {GROUPS} replica groups and a ranker; logs in {}",
            self.0.nodes().len(),
            self.0.folder().display()
        )
    }

    /// Publishes the release, waits until it is loaded everywhere, and promotes it.
    pub(crate) async fn promote(&self, release: &ReleaseManifest) -> Result<()> {
        let mut control = Remote::plaintext(self.controller_address()).control().await?;
        control::publish(&mut control, &release.model, &release.release).await?;
        control::promote(&mut control, &release.model, &release.release, LOAD_TIMEOUT).await?;
        Ok(())
    }

    /// Kills the last node of the first group and says which it was.
    pub(crate) async fn kill_a_node(&mut self) -> Result<String> {
        let node = self.0.nodes_mut().get_mut(NODES_PER_GROUP - 1).context("there is no node to kill")?;
        node.kill().await?;
        Ok(node.label())
    }

    pub(crate) fn controller_address(&self) -> String {
        self.0.controller_address()
    }

    pub(crate) fn ranker_address(&self) -> String {
        self.0.rankers().first().map(|ranker| ranker.grpc_address().to_string()).unwrap_or_default()
    }

    /// Base URL of every process, for `/status` and `/metrics`.
    pub(crate) fn urls(&self) -> Vec<(String, String)> {
        self.0.processes().map(|p| (p.label(), format!("http://{}", p.http_address()))).collect()
    }

    /// Ends every process.
    pub(crate) async fn stop(self) -> Result<()> {
        Ok(self.0.stop().await?)
    }
}
