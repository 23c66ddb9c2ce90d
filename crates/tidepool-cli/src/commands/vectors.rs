//! How an id of a table is shown: its stored row, or its rows, and the vector that they make. The same for
//! rows from a file and from a cluster.

use serde_json::{Value, json};
use tidepool_kernels::RowKernel;
use tidepool_types::{NodeId, PartitionIndex, TableSchema};

use crate::output::Output;

/// Elements of a vector that people are shown.
const SHOWN: usize = 8;

/// One stored row, and where it was read.
pub(crate) struct Row<'a> {
    /// Its id in the table.
    pub(crate) row_id: u64,
    pub(crate) partition: PartitionIndex,
    /// The node that answered; None: it was read from a file.
    pub(crate) node: Option<&'a NodeId>,
    /// None: the table has no such row.
    pub(crate) stored: Option<&'a [u8]>,
}

/// The ids of one table version.
pub(crate) struct Vectors<'a> {
    schema: &'a TableSchema,
    kernel: RowKernel,
}

impl<'a> Vectors<'a> {
    pub(crate) fn new(schema: &'a TableSchema) -> Self {
        Self { schema, kernel: RowKernel::new(schema.format, schema.dim) }
    }

    /// How many rows an id has.
    pub(crate) fn rows_per_id(&self) -> usize {
        self.schema.composite.as_ref().map_or(1, |composite| composite.hashes())
    }

    /// Shows `id`, whose rows these are, and gives what machines are told of it.
    pub(crate) fn show(&self, id: u64, rows: &[Row<'_>], output: Output) -> Value {
        let values = self.values(rows);
        let vector = values.as_deref().map_or_else(|| "not in the table".to_owned(), shown);
        match (&self.schema.composite, rows) {
            (None, [row]) => {
                let stored = row.stored.map_or_else(String::new, |stored| format!("{} | ", hex(stored)));
                output.line(format!("id {id} | {} | {stored}{vector}", place(row)));
                let mut object = object(row);
                object["id"] = id.into();
                object["found"] = values.is_some().into();
                object["values"] = json!(values);
                object
            }
            (composite, rows) => {
                let combine = composite.as_ref().map_or("", |composite| composite.combine.as_str());
                output.line(format!("id {id} | {combine} of {} rows | {vector}", rows.len()));
                for row in rows {
                    let stored = row.stored.map_or_else(|| "not in the table".to_owned(), hex);
                    output.line(format!("  row {} | {} | {stored}", row.row_id, place(row)));
                }
                let rows = rows.iter().map(|row| {
                    let mut object = object(row);
                    object["row"] = row.row_id.into();
                    object
                });
                let rows: Vec<_> = rows.collect();
                json!({ "id": id, "found": values.is_some(), "values": values, "rows": rows })
            }
        }
    }

    /// The vector that the rows make; None: one of them is missing.
    fn values(&self, rows: &[Row<'_>]) -> Option<Vec<f32>> {
        let dim = self.schema.dim as usize;
        let mut values = vec![0.0; rows.len() * dim];
        for (row, values) in rows.iter().zip(values.chunks_exact_mut(dim)) {
            self.kernel.dequantize(row.stored?, values);
        }
        Some(match &self.schema.composite {
            Some(composite) => composite.compose(values),
            None => values,
        })
    }
}

fn place(row: &Row<'_>) -> String {
    let node = row.node.map_or_else(String::new, |node| format!(" on {node}"));
    format!("partition {}{node}", row.partition)
}

fn object(row: &Row<'_>) -> Value {
    let mut object = json!({ "partition": row.partition, "stored_row": row.stored.map(hex) });
    if let Some(node) = row.node {
        object["node"] = json!(node);
    }
    object
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shown(values: &[f32]) -> String {
    let mut shown: Vec<_> = values.iter().take(SHOWN).map(|value| format!("{value:.4}")).collect();
    if values.len() > SHOWN {
        shown.push(format!("... ({} in all, --json has them)", values.len()));
    }
    shown.join(" ")
}
