//! `tidepool cluster tables`.

use anyhow::Result;
use serde_json::{Value, json};

use super::view::{TableView, View};
use crate::{
    columns::{self, Columns},
    output::{Outcome, Output},
    remote::Remote,
};

pub(super) async fn run(remote: &Remote, output: Output) -> Result<Outcome> {
    let (view, _) = View::fetch(remote).await?;
    let tables = view.tables();
    if tables.is_empty() {
        output.line("no table is served: publish a release, or say `tidepool table serve TABLE@VERSION`");
    }
    let mut columns = Columns::new(&[
        "table",
        ">rows",
        ">dim",
        "format",
        "keying",
        ">parts",
        "ready in groups",
        ">bytes",
        "wanted by",
    ]);
    for table in &tables {
        let schema = &table.layout.schema;
        let partitions = schema.partitions.get();
        let groups = table.ready.iter().map(|(group, ready)| format!("{group} {ready}/{partitions}"));
        let groups: Vec<_> = groups.collect();
        columns.row([
            schema.table_version.to_string(),
            columns::grouped(schema.rows),
            schema.vector_dim().to_string(),
            schema.format.to_string(),
            schema.keying.to_string(),
            partitions.to_string(),
            if groups.is_empty() { "placed nowhere".into() } else { groups.join(", ") },
            columns::bytes(table.bytes),
            wanted_by(table),
        ]);
    }
    columns.print("", output);
    output
        .object(json!({ "epoch": view.map.epoch, "tables": tables.iter().map(object).collect::<Vec<_>>() }));
    Ok(Outcome::Done)
}

fn wanted_by(table: &TableView<'_>) -> String {
    let own = table.served.then(|| "table serve".to_owned());
    let words: Vec<_> = own.into_iter().chain(table.pinned_by.iter().cloned()).collect();
    if words.is_empty() { "nobody".into() } else { words.join(", ") }
}

pub(super) fn object(table: &TableView<'_>) -> Value {
    let schema = &table.layout.schema;
    let group = |(group, ready)| json!({ "group": group, "placed": schema.partitions, "ready": ready });
    json!({
        "table": schema.table_version.table,
        "version": schema.table_version.version,
        "rows": schema.rows,
        "dim": schema.vector_dim(),
        "row_format": schema.format.to_string(),
        "keying": schema.keying.to_string(),
        "composite": schema.composite.is_some(),
        "partitions": schema.partitions,
        "groups": table.ready.iter().map(group).collect::<Vec<_>>(),
        "replicas_placed": table.placed(),
        "replicas_ready": table.ready(),
        "file_bytes": table.bytes,
        "served": table.served,
        "pinned_by": table.pinned_by,
    })
}
