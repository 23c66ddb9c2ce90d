//! `tidepool lookup`: ids of a served table, each with the node that answered, its stored row (or rows) and its values.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tidepool_client::{Client, StoredRow};
use tidepool_cluster::ClusterMap;
use tidepool_types::{TableSchema, TableVersion};

use super::{
    control,
    vectors::{Row, Vectors},
};
use crate::{
    output::{Outcome, Output},
    remote::Remote,
};

const WAIT_FOR_MAP: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// TABLE@VERSION; TABLE alone when only one version of it is served.
    table: String,
    /// The ids.
    #[arg(required = true)]
    ids: Vec<u64>,
    /// Give up after this.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 1000)]
    timeout_ms: u64,
}

pub(crate) async fn run(args: Args, remote: &Remote, output: Output) -> Result<Outcome> {
    let config = remote.client_config()?;
    let client = Client::start(config).await?;
    let map = client
        .wait_for_map(|map| map.epoch.0 > 0, WAIT_FOR_MAP)
        .await
        .with_context(|| format!("no cluster map from a controller at {}", remote.controller))?;
    let schema = find(&map, &args.table)?;
    let timeout = Duration::from_millis(args.timeout_ms);
    let rows = client.stored_rows(&schema.table_version, &args.ids, timeout).await?;
    let vectors = Vectors::new(schema);
    let of_ids = args.ids.iter().zip(rows.chunks(vectors.rows_per_id()));
    let objects: Vec<_> = of_ids
        .map(|(id, rows)| vectors.show(*id, &rows.iter().map(read).collect::<Vec<_>>(), output))
        .collect();
    output.object(json!({
        "table_version": schema.table_version, "format": schema.format, "dim": schema.dim,
        "vector_dim": schema.vector_dim(), "epoch": map.epoch, "rows": objects,
    }));
    Ok(Outcome::Done)
}

fn read(row: &StoredRow) -> Row<'_> {
    let StoredRow { row_id, partition, node, row, .. } = row;
    Row { row_id: *row_id, partition: *partition, node: Some(node), stored: row.as_deref() }
}

/// The served table version that `text` names.
fn find<'a>(map: &'a ClusterMap, text: &str) -> Result<&'a TableSchema> {
    let served = || map.layouts.iter().map(|l| &l.schema);
    let names = |schemas: Vec<&TableSchema>| {
        schemas.iter().map(|s| s.table_version.to_string()).collect::<Vec<_>>().join(", ")
    };
    let matching: Vec<_> = match text.split_once('@') {
        Some(_) => {
            let wanted: TableVersion = control::table_version(text).map_err(anyhow::Error::msg)?;
            served().filter(|s| s.table_version == wanted).collect()
        }
        None => served().filter(|s| s.table_version.table.as_str() == text).collect(),
    };
    match matching[..] {
        [one] => Ok(one),
        [] => bail!("table {text} is not served; served are: {}", names(served().collect())),
        _ => bail!("several versions of {text} are served, name one: {}", names(matching)),
    }
}
