//! What a device does around a model's plan, from the model's contract and the schemas of its tables: which inputs are made
//! of stored rows there, and that the best candidates are taken there.

use tidepool_dense::{Around, RowFeed};
use tidepool_types::{Combine, InputSource, ModelSpec, Pooling, TableSchema};

use crate::counters::SCORES_COUNTED;

/// What is made of a contract.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) around: Around,
    /// Whose rows are staged: the tables of `around`, each version once.
    pub(super) tables: Vec<TableSchema>,
    /// Of each feed of `around`.
    pub(super) feeds: Vec<Feed>,
}

/// An input that is made of stored rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Feed {
    /// Which input of the contract.
    pub(super) input: usize,
    /// Which of the tables.
    pub(super) table: usize,
    /// Whether a bag has one vector, and not one for each id.
    pub(super) pooled: bool,
}

/// All inputs that are looked up come as rows, with room for `ids_per_bag` ids of each request or row; a sequence has room
/// for as many as it may have. `schemas` are those of the tables of the inputs, one per input.
pub(super) fn around(
    spec: &ModelSpec,
    schemas: &[Option<&TableSchema>],
    ids_per_bag: u32,
    resident: bool,
) -> Made {
    let mut tables: Vec<TableSchema> = Vec::new();
    let (mut feeds, mut of_plan) = (Vec::new(), Vec::new());
    for (input, (of, schema)) in spec.inputs.iter().zip(schemas).enumerate() {
        let (pooling, ids) = match of.source {
            InputSource::Pooled { pooling, .. } => (pooling, ids_per_bag),
            InputSource::Sequence { max_len, .. } => (Pooling::None, max_len),
            InputSource::Dense { .. } => continue,
        };
        // Of a model that was loaded each table has one.
        let Some(schema) = schema else { continue };
        let known = tables.iter().position(|table| table.table_version == schema.table_version);
        let table = known.unwrap_or_else(|| {
            tables.push((*schema).clone());
            tables.len() - 1
        });
        let (hashes, combine) = match &schema.composite {
            None => (1, Combine::Concat),
            Some(composite) => (u32::try_from(composite.hashes()).unwrap_or(u32::MAX), composite.combine),
        };
        let pooled = pooling != Pooling::None;
        feeds.push(Feed { input, table, pooled });
        of_plan.push(RowFeed {
            input,
            table,
            mean: pooling == Pooling::Mean,
            weighted: pooled,
            hashes,
            combine,
            default_row: schema.default_row.clone(),
            ids,
        });
    }
    let samples = u32::try_from(SCORES_COUNTED).unwrap_or(u32::MAX);
    let around = Around {
        tables: tables.iter().map(|table| (table.format, table.dim)).collect(),
        feeds: of_plan,
        resident,
        select: Some((spec.clone(), samples)),
    };
    Made { around, tables, feeds }
}

#[cfg(test)]
pub(super) mod tests {
    use tidepool_types::{Composite, RowFormat};

    use super::*;

    /// A table of version `v` with rows of INT4.
    pub(in crate::device) fn schema(table: &str, dim: u32, composite: Option<Composite>) -> TableSchema {
        let text = format!(
            r#"{{"table_version": {{"table": "{table}", "version": "v"}}, "dim": {dim}, "format": "int4",
                "keying": "dense", "partitions": 4, "rows": 40}}"#
        );
        TableSchema { composite, ..serde_json::from_str(&text).unwrap() }
    }

    /// Two inputs of one table, a number, a sequence of a table with two rows an id.
    pub(in crate::device) fn spec() -> ModelSpec {
        ModelSpec::from_toml(
            r#"schema_version = 1
            model = "ads"
            score = "ctr"
            inputs = [
                { name = "liked", side = "user", table = "item", pooling = "mean" },
                { name = "price", side = "candidate", width = 1 },
                { name = "item", side = "candidate", table = "item", pooling = "sum" },
                { name = "last", side = "user", table = "shop", sequence = 5, mask = "last_mask" },
            ]
            outputs = [{ name = "ctr" }]"#,
        )
        .unwrap()
    }

    #[test]
    fn every_input_that_is_looked_up_comes_as_rows() {
        let composite = Composite { seeds: vec![3, 4], combine: Combine::Sum };
        let (mut item, shop) = (schema("item", 8, None), schema("shop", 4, Some(composite)));
        item.default_row = vec![0.5; 8];
        let made = around(&spec(), &[Some(&item), None, Some(&item), Some(&shop)], 6, true);
        assert_eq!(made.tables, [item, shop]);
        assert_eq!(made.around.tables, [(RowFormat::Int4, 8), (RowFormat::Int4, 4)]);
        let feed = |input, table, pooled| Feed { input, table, pooled };
        assert_eq!(made.feeds, [feed(0, 0, true), feed(2, 0, true), feed(3, 1, false)]);
        let pooled = |input, mean| RowFeed {
            input,
            table: 0,
            mean,
            weighted: true,
            hashes: 1,
            combine: Combine::Concat,
            default_row: vec![0.5; 8],
            ids: 6,
        };
        let sequence = RowFeed {
            table: 1,
            weighted: false,
            hashes: 2,
            combine: Combine::Sum,
            default_row: Vec::new(),
            ids: 5,
            ..pooled(3, false)
        };
        assert_eq!(made.around.feeds, [pooled(0, true), pooled(2, false), sequence]);
        assert_eq!(made.around.select, Some((spec(), 16)));
        assert!(made.around.resident);
    }
}
