//! A lookup in rows that are at hand: no node is asked, and what becomes of the rows is what becomes of those that nodes
//! send. So vectors that are computed offline are those that a ranker is given, composite tables, default rows and what
//! counts as missing included; to the bit those of an exact lookup.

use tidepool_cluster::{ClusterMap, Placement, TableLayout};
use tidepool_types::TableSchema;

use crate::{
    error::ClientError,
    hand_on::hand_on,
    merge::merge,
    request::{LookupOutcome, LookupRequest},
    rows::{FeatureRows, Held},
    split::{Ahead, Ids, Split},
};

/// Says which row of a table is whose: called with the place of an id among those asked for, and its row as stored.
pub type PutRow<'a> = dyn FnMut(usize, &[u8]) + 'a;

/// Tables whose rows somebody here has.
#[derive(Debug)]
pub struct LocalTables {
    /// Their schemas, in the form that lookups are split by. Nothing is placed anywhere.
    map: ClusterMap,
}

impl LocalTables {
    /// Tables with these schemas, each version once.
    #[must_use]
    pub fn new(schemas: Vec<TableSchema>) -> Self {
        let layout = |schema| TableLayout { schema, placement: Placement::default() };
        Self {
            map: ClusterMap { layouts: schemas.into_iter().map(layout).collect(), ..ClusterMap::default() },
        }
    }

    /// Answers `request`. `rows` is called once per table that it needs, with the table's place among the schemas and the
    /// ids that are wanted, each once (of a composite table: the numbers of its rows), and gives the rows that there are, or
    /// says why it cannot.
    ///
    /// # Errors
    /// [`ClientError::UnknownTable`], or [`ClientError::Invalid`] naming the feature; the latter also with what `rows` says.
    pub fn look_up(
        &self,
        request: &LookupRequest,
        rows: impl FnMut(usize, &[u64], &mut PutRow<'_>) -> Result<(), String>,
    ) -> Result<LookupOutcome, ClientError> {
        let (split, asked) = self.split(request, None, rows)?;
        let features = merge(&split, &[], &[]);
        Ok(LookupOutcome { features, rows_requested: asked, ..LookupOutcome::default() })
    }

    /// As [`look_up`](Self::look_up), but hands on stored rows, as [`Client::lookup_rows`](crate::Client::lookup_rows) does;
    /// `rows` is not asked for what is `held`.
    ///
    /// # Errors
    /// As [`look_up`](Self::look_up).
    pub fn look_up_rows(
        &self,
        request: &LookupRequest,
        held: Option<&dyn Held>,
        rows: impl FnMut(usize, &[u64], &mut PutRow<'_>) -> Result<(), String>,
    ) -> Result<LookupOutcome<FeatureRows>, ClientError> {
        let (mut split, asked) = self.split(request, held, rows)?;
        let features = hand_on(request, &mut split, &[]);
        let held_ids = split.held_ids();
        Ok(LookupOutcome { features, rows_requested: asked, held_ids, ..LookupOutcome::default() })
    }

    /// The request with all of its rows, and how many ids `rows` was asked for.
    fn split<'a>(
        &'a self,
        request: &'a LookupRequest,
        held: Option<&dyn Held>,
        mut rows: impl FnMut(usize, &[u64], &mut PutRow<'_>) -> Result<(), String>,
    ) -> Result<(Split<'a>, u64), ClientError> {
        // Who chooses ids here cannot keep anybody else waiting: the seed is no secret.
        let mut split = Split::with(request, &self.map, 0, Ahead { held, cache: None }, Ids::Asked)?;
        let mut asked = 0;
        for table in &mut split.tables {
            let row_bytes = table.layout.schema.row_bytes();
            let mut found = std::mem::take(&mut table.known).more(row_bytes, table.ids.len());
            let answered = match found.unknown() {
                None => {
                    asked += table.ids.len() as u64;
                    rows(table.at, &table.ids, &mut |at, row| found.put_bytes(at, row))
                }
                Some(places) => {
                    asked += places.len() as u64;
                    let ids: Vec<u64> = places.iter().map(|place| table.ids[*place as usize]).collect();
                    rows(table.at, &ids, &mut |at, row| {
                        if let Some(place) = places.get(at) {
                            found.put_bytes(*place as usize, row);
                        }
                    })
                }
            };
            answered.map_err(|problem| {
                let table = &table.layout.schema.table_version;
                let asks = request.features.iter().position(|feature| feature.table_version == *table);
                ClientError::Invalid { feature: asks.unwrap_or(0), table: table.clone(), problem }
            })?;
            table.known = found.whole();
        }
        Ok((split, asked))
    }
}

#[cfg(test)]
mod tests {
    use tidepool_types::{Pooling, TableVersion};

    use super::*;
    use crate::request::FeatureLookup;

    fn schema(table: &str, rest: &str) -> TableSchema {
        let text = format!(
            r#"{{"table_version": {{"table": "{table}", "version": "v"}}, "dim": 2, "format": "f32",
                "keying": "dense", "partitions": 4, "rows": 4{rest}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn feature(table: &str, pooling: Pooling, ids: &[u64], lengths: Option<&[u32]>) -> FeatureLookup {
        let text = format!(r#"{{"table": "{table}", "version": "v"}}"#);
        let table_version: TableVersion = serde_json::from_str(&text).unwrap();
        let lengths = lengths.map(<[u32]>::to_vec);
        FeatureLookup { table_version, pooling, ids: ids.to_vec(), lengths, weights: None }
    }

    /// The row of an id is the id and ten times the id; ids from 4 on have none.
    fn rows(_: usize, ids: &[u64], put: &mut PutRow<'_>) -> Result<(), String> {
        for (at, id) in ids.iter().enumerate().filter(|(_, id)| **id < 4) {
            let row: Vec<u8> = [*id as f32, *id as f32 * 10.0].iter().flat_map(|v| v.to_le_bytes()).collect();
            put(at, &row);
        }
        Ok(())
    }

    #[test]
    fn vectors_are_made_as_of_rows_that_nodes_sent() {
        let tables = LocalTables::new(vec![
            schema("a", r#", "default_row": [7.0, 8.0]"#),
            schema("b", r#", "composite": {"seeds": [1, 2], "combine": "concat"}"#),
        ]);
        let request = LookupRequest {
            request_id: String::new(),
            features: vec![
                feature("a", Pooling::Mean, &[1, 3, 9, 9, 2, 2], Some(&[3, 1, 2])),
                feature("b", Pooling::Sum, &[77], None),
                feature("a", Pooling::None, &[3, 4], None),
            ],
        };
        let mut asked = Vec::new();
        let outcome = tables
            .look_up(&request, |table, ids, put| {
                asked.push((table, ids.len()));
                rows(table, ids, put)
            })
            .unwrap();
        let [mean, composite, unpooled] = &outcome.features[..] else { panic!("{outcome:?}") };
        // A missing id is not divided by; a bag without any is the default row.
        assert_eq!(mean.values, [2.0, 20.0, 7.0, 8.0, 2.0, 20.0]);
        assert_eq!((mean.missing_ids, &mean.found[..], &mean.defaulted[..]), (2, &[2, 0, 2][..], &[1][..]));
        assert_eq!((composite.dim, composite.missing_ids, composite.values.len()), (4, 0, 4));
        assert_eq!(unpooled.values, [3.0, 30.0, 7.0, 8.0]);
        assert_eq!(asked[0], (0, 5), "each id once: 1, 3, 9, 2 and 4");
        assert_eq!((asked.len(), asked[1].0), (2, 1));
        // Rows that cannot be had are no missing ids.
        let said = tables.look_up(&request, |table, ids, put| match table {
            0 => rows(table, ids, put),
            _ => Err("gone".into()),
        });
        let said = said.unwrap_err();
        assert_eq!(said.to_string(), "feature 1 (b@v): gone");
        let other = LookupRequest { features: vec![feature("c", Pooling::Sum, &[1], None)], ..request };
        assert!(matches!(tables.look_up(&other, rows), Err(ClientError::UnknownTable { .. })));
    }
}
