//! Where lookups are sent: a cluster that is started here, or one that runs.

use std::{path::PathBuf, time::Duration};

use tidepool_client::{Client, ClientConfig, ClusterMap};
use tidepool_store::ArtifactStore;
use tidepool_types::{TableSchema, TableVersion};

use super::{CLIENT_THREADS, Params, Place, Progress, echo::EchoServers, figures::Cpu};
use crate::{
    BenchError, BenchTable,
    cluster::{ClusterSpec, LocalCluster},
    proc,
};

/// How long the nodes may take to load a table.
const LOAD_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a running cluster's map may take to come.
const MAP_TIMEOUT: Duration = Duration::from_secs(10);

/// A cluster that serves a bench table, and a client of it.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) client: Client,
    pub(super) table: BenchTable,
    pub(super) table_version: TableVersion,
    pub(super) nodes: usize,
    pub(super) groups: usize,
    pub(super) built: bool,
    /// What is started here.
    pub(super) local: Option<Local>,
}

#[derive(Debug)]
pub(super) struct Local {
    cluster: LocalCluster,
    program: PathBuf,
    pub(super) store: ArtifactStore,
}

impl Site {
    /// Builds the table if it is not there, starts the cluster if it is to be, and waits until its nodes are
    /// at rest.
    pub(super) async fn open(
        params: &Params,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Self, BenchError> {
        match &params.place {
            Place::Running { table } => Self::running(table.as_ref(), &params.client).await,
            Place::Local { program, nodes, groups, dir, node_config } => {
                let table = params.asked.table;
                let store = ArtifactStore::open(dir)?;
                let built =
                    table.ensure(&store, &mut |step, done, of| progress(Progress::Table(step, done, of)))?;
                progress(Progress::Starting);
                let mut spec = ClusterSpec::new(dir, dir, *groups, *nodes);
                spec.program.clone_from(program);
                spec.node_config.clone_from(node_config);
                let program = spec.program()?;
                let cluster = LocalCluster::start(spec).await?;
                let table_version = table.table_version()?;
                cluster.serve_table(&table_version, LOAD_TIMEOUT).await?;
                let client = cluster.client(params.client.clone(), &table_version).await?;
                cluster.rest().await;
                let local = Some(Local { cluster, program, store });
                Ok(Self { client, table, table_version, nodes: *nodes, groups: *groups, built, local })
            }
        }
    }

    async fn running(wanted: Option<&TableVersion>, config: &ClientConfig) -> Result<Self, BenchError> {
        let client = Client::start(config.clone()).await?;
        let map = client.wait_for_map(|map| map.epoch.0 > 0, MAP_TIMEOUT).await?;
        let schema = find(&map, wanted)?;
        let table = BenchTable::of_schema(&schema).ok_or_else(|| {
            BenchError::Table(format!("{} is no bench table: nobody knows its rows", schema.table_version))
        })?;
        let groups = map.layout(&schema.table_version).map_or(0, |layout| layout.placement.groups.len());
        let nodes = map.nodes.len() / groups.max(1);
        let table_version = schema.table_version;
        Ok(Self { client, table, table_version, nodes, groups, built: false, local: None })
    }

    /// Servers of bare bytes, as many as a request touches nodes.
    pub(super) async fn echo_servers(&self) -> Result<Option<EchoServers>, BenchError> {
        let Some(local) = &self.local else { return Ok(None) };
        EchoServers::start(&local.program, local.cluster.folder(), self.nodes).await.map(Some)
    }

    /// CPU time of both sides so far.
    pub(super) fn cpu(&self) -> Cpu {
        let nodes = self.local.as_ref().map(|local| local.cluster.nodes_cpu_time());
        Cpu { nodes, client: Some(client_cpu()) }
    }

    /// Ends what was started here.
    pub(super) async fn close(self) -> Result<(), BenchError> {
        match self.local {
            Some(local) => local.cluster.stop().await,
            None => Ok(()),
        }
    }
}

/// How long the client's threads have run.
pub(super) fn client_cpu() -> Duration {
    proc::cpu_time(std::process::id(), CLIENT_THREADS).unwrap_or_default()
}

/// The served table version that is wanted, or the one bench table there is.
fn find(map: &ClusterMap, wanted: Option<&TableVersion>) -> Result<TableSchema, BenchError> {
    let served = map.layouts.iter().map(|layout| &layout.schema);
    let matching: Vec<_> = served
        .filter(|schema| match wanted {
            Some(wanted) => schema.table_version == *wanted,
            None => BenchTable::of_schema(schema).is_some(),
        })
        .collect();
    match (matching[..].len(), matching.first()) {
        (1, Some(schema)) => Ok((*schema).clone()),
        (0, _) => Err(BenchError::Table(match wanted {
            Some(wanted) => format!("{wanted} is not served"),
            None => "no bench table is served: build one with `tidepool bench table`, and serve it".into(),
        })),
        _ => Err(BenchError::Table(format!(
            "several bench tables are served, name one: {}",
            matching.iter().map(|schema| schema.table_version.to_string()).collect::<Vec<_>>().join(", ")
        ))),
    }
}
