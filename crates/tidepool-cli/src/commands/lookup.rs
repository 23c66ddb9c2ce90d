//! `tidepool lookup`: ids of a served table, each with the node that answered, its stored row and its values.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tidepool_client::{Client, ClientConfig, StoredRow};
use tidepool_cluster::ClusterMap;
use tidepool_kernels::RowKernel;
use tidepool_types::{TableSchema, TableVersion};

use super::control;
use crate::output::{Outcome, Output};

const WAIT_FOR_MAP: Duration = Duration::from_secs(5);
/// Elements of a vector that people are shown.
const SHOWN: usize = 8;

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

pub(crate) async fn run(args: Args, controller: &str, output: Output) -> Result<Outcome> {
    let config = ClientConfig { controllers: vec![controller.to_owned()], ..ClientConfig::default() };
    let client = Client::start(config).await?;
    let map = client
        .wait_for_map(|map| map.epoch.0 > 0, WAIT_FOR_MAP)
        .await
        .with_context(|| format!("no cluster map from a controller at {controller}"))?;
    let schema = find(&map, &args.table)?;
    let timeout = Duration::from_millis(args.timeout_ms);
    let rows = client.stored_rows(&schema.table_version, &args.ids, timeout).await?;
    let kernel = RowKernel::new(schema.format, schema.dim);
    let mut objects = Vec::with_capacity(rows.len());
    for row in &rows {
        let values = row.row.as_deref().map(|stored| {
            let mut values = vec![0.0; schema.dim as usize];
            kernel.dequantize(stored, &mut values);
            values
        });
        output.line(sentence(row, values.as_deref()));
        objects.push(object(row, values));
    }
    output.object(json!({
        "table_version": schema.table_version, "format": schema.format, "dim": schema.dim,
        "epoch": map.epoch, "rows": objects,
    }));
    Ok(Outcome::Done)
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sentence(row: &StoredRow, values: Option<&[f32]>) -> String {
    let place = format!("id {} | partition {} on {}", row.id, row.partition, row.node);
    let (Some(stored), Some(values)) = (row.row.as_deref(), values) else {
        return format!("{place} | not in the table");
    };
    let mut shown: Vec<_> = values.iter().take(SHOWN).map(|v| format!("{v:.4}")).collect();
    if values.len() > SHOWN {
        shown.push(format!("... ({} in all, --json has them)", values.len()));
    }
    format!("{place} | {} | {}", hex(stored), shown.join(" "))
}

fn object(row: &StoredRow, values: Option<Vec<f32>>) -> Value {
    json!({
        "id": row.id, "found": row.row.is_some(), "partition": row.partition, "node": row.node,
        "stored_row": row.row.as_deref().map(hex), "values": values,
    })
}
