//! A node's answer is held against the question, whole, before any of it is used.

use bytes::Bytes;
use thiserror::Error;
use tidepool_proto::{pack, v1};
use tidepool_types::TableVersion;

use crate::{
    asks::{Ask, PoolAsk},
    split::Split,
};

/// An answer that contradicts itself or the question.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadAnswer {
    /// Not one answer per feature.
    #[error("{got} features answered, {asked} asked")]
    Features {
        /// Asked.
        asked: usize,
        /// Answered.
        got: usize,
    },
    /// Another table version than was asked for, or none.
    #[error("made from {got}, {asked} was asked for")]
    Version {
        /// Asked.
        asked: TableVersion,
        /// Answered, as it came.
        got: String,
    },
    /// A field of the wrong length.
    #[error("{table}: field {field} has {got} bytes, it should have {expected}")]
    Length {
        /// The table.
        table: TableVersion,
        /// The field.
        field: &'static str,
        /// What it should have.
        expected: usize,
        /// What it has.
        got: usize,
    },
    /// The number of missing ids is not what the bitmap says.
    #[error("{table}: {said} missing ids, {marked} are marked")]
    Missing {
        /// The table.
        table: TableVersion,
        /// By the number.
        said: u32,
        /// By the bitmap.
        marked: u32,
    },
    /// A row that a composite table has is marked missing, or one that it does not have is not.
    #[error(
        "{table}: {marked} of {asked} rows are marked missing, a composite table of {rows} rows has all of \
         those and no others"
    )]
    Composite {
        /// The table.
        table: TableVersion,
        /// Rows of the table.
        rows: u64,
        /// Rows asked for.
        asked: usize,
        /// By the bitmap.
        marked: u32,
    },
    /// A bag's count is not the number of its members that are not marked missing.
    #[error("{table}: bag {bag} counts {said} members found, {marked} are not marked missing")]
    Count {
        /// The table.
        table: TableVersion,
        /// The bag, of those sent.
        bag: usize,
        /// By the count.
        said: u32,
        /// By the bitmap.
        marked: u32,
    },
}

/// A question and its answer, whose lengths and counts fit each other.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) ask: Ask,
    pub(crate) sequence: u64,
    /// The bitmap as sent: empty when nothing is missing.
    missing: Bytes,
    /// Gather: rows. Pool: sums.
    pub(crate) body: Bytes,
    pub(crate) counts: Bytes,
    pub(crate) weight_sums: Bytes,
}

impl Answered {
    /// Whether the id at `at` of the question is not in the table.
    pub(crate) fn is_missing(&self, at: usize) -> bool {
        bit(&self.missing, at)
    }

    /// How many bytes of packed numbers and rows came.
    pub(crate) fn received_bytes(&self) -> usize {
        self.missing.len() + self.body.len() + self.counts.len() + self.weight_sums.len()
    }
}

fn bit(bitmap: &[u8], at: usize) -> bool {
    bitmap.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
}

/// Checks `response` against `asks`.
pub(crate) fn check(
    split: &Split<'_>,
    asks: Vec<Ask>,
    response: v1::LookupResponse,
) -> Result<Vec<Answered>, BadAnswer> {
    if response.features.len() != asks.len() {
        return Err(BadAnswer::Features { asked: asks.len(), got: response.features.len() });
    }
    asks.into_iter().zip(response.features).map(|(ask, answer)| check_one(split, ask, answer)).collect()
}

fn check_one(split: &Split<'_>, ask: Ask, answer: v1::FeatureResponse) -> Result<Answered, BadAnswer> {
    let schema = &split.tables[ask.table(split)].layout.schema;
    let asked = &schema.table_version;
    let same = answer
        .table_version
        .as_ref()
        .is_some_and(|got| got.table == asked.table.as_str() && got.version == asked.version.as_str());
    if !same {
        let got = answer.table_version.map_or("nothing".to_owned(), |v| format!("{}@{}", v.table, v.version));
        return Err(BadAnswer::Version { asked: asked.clone(), got });
    }
    let length = |field, bytes: &Bytes, expected| {
        if bytes.len() == expected {
            Ok(())
        } else {
            Err(BadAnswer::Length { table: asked.clone(), field, expected, got: bytes.len() })
        }
    };
    let ids = ask.ids().len();
    if !answer.missing.is_empty() {
        length("missing", &answer.missing, ids.div_ceil(8))?;
    }
    let marked: u32 = answer.missing.iter().map(|byte| byte.count_ones()).sum();
    let stray = (ids..answer.missing.len() * 8).any(|at| bit(&answer.missing, at));
    if marked != answer.missing_ids || stray {
        return Err(BadAnswer::Missing { table: asked.clone(), said: answer.missing_ids, marked });
    }
    // What is found of a composite table is known beforehand, and is not counted again.
    if schema.composite.is_some() {
        let of_table = &split.tables[ask.table(split)].ids;
        let mut rows = ask.ids().iter().map(|id| of_table[*id as usize]).enumerate();
        if rows.any(|(at, row)| (row >= schema.rows) != bit(&answer.missing, at)) {
            let (table, rows) = (asked.clone(), schema.rows);
            return Err(BadAnswer::Composite { table, rows, asked: ids, marked });
        }
    }
    let (rows, sums, counts, weight_sums) = match &ask {
        Ask::Gather { .. } => (ids * schema.row_bytes(), 0, 0, 0),
        Ask::Pool(pool) => {
            let weighted = if pool.weights.is_empty() { 0 } else { pool.bags.len() * 4 };
            (0, pool.bags.len() * schema.dim as usize * 4, pool.bags.len() * 4, weighted)
        }
    };
    length("rows", &answer.rows, rows)?;
    length("sums", &answer.sums, sums)?;
    length("counts", &answer.counts, counts)?;
    length("weight_sums", &answer.weight_sums, weight_sums)?;
    if let Ask::Pool(pool) = &ask {
        check_counts(asked, pool, &answer.missing, &answer.counts)?;
    }
    let body = if matches!(ask, Ask::Pool(_)) { answer.sums } else { answer.rows };
    Ok(Answered {
        ask,
        sequence: answer.sequence,
        missing: answer.missing,
        body,
        counts: answer.counts,
        weight_sums: answer.weight_sums,
    })
}

/// The counts say nothing that the bitmap does not: so they are held against it.
fn check_counts(table: &TableVersion, ask: &PoolAsk, missing: &[u8], counts: &[u8]) -> Result<(), BadAnswer> {
    let mut members = ask.members.iter();
    let said = pack::unpack::<u32>(counts).into_iter().flatten();
    for (bag, (said, length)) in said.zip(&ask.lengths).enumerate() {
        let mut marked = 0;
        for member in members.by_ref().take(*length as usize) {
            marked += u32::from(!bit(missing, *member as usize));
        }
        if said != marked {
            return Err(BadAnswer::Count { table: table.clone(), bag, said, marked });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tidepool_cluster::ClusterMap;
    use tidepool_types::{Combine, Composite, Pooling, TableSchema};

    use super::*;
    use crate::{
        asks,
        request::{FeatureLookup, LookupOptions, LookupRequest, WireForm},
        route::Route,
        split::{Ahead, Ids},
        topology::NodeAt,
    };

    /// Asks for ids 1 and 2 (pooled: bags [1, 2] and [2]) and hands the good answer to `change` before it is
    /// checked. Id 2 is missing.
    fn answered(form: WireForm, change: impl Fn(&mut v1::LookupResponse)) -> Result<usize, BadAnswer> {
        answered_by(form, |_| {}, change)
    }

    /// The same, from a table that is first made another by `table`.
    fn answered_by(
        form: WireForm,
        table: impl Fn(&mut TableSchema),
        change: impl Fn(&mut v1::LookupResponse),
    ) -> Result<usize, BadAnswer> {
        answered_to(form, Ids::Asked, table, change)
    }

    /// The same, with `ids` as they are said to be.
    fn answered_to(
        form: WireForm,
        ids: Ids,
        table: impl Fn(&mut TableSchema),
        change: impl Fn(&mut v1::LookupResponse),
    ) -> Result<usize, BadAnswer> {
        let mut map: ClusterMap = serde_json::from_str(
            r#"{"epoch": 1, "nodes": {}, "releases": [], "layouts": [{"placement": {}, "schema": {
                "table_version": {"table": "t", "version": "v"}, "dim": 2, "format": "f32",
                "keying": "dense", "partitions": 1, "rows": 2}}]}"#,
        )
        .unwrap();
        table(&mut map.layouts[0].schema);
        let request = LookupRequest {
            request_id: String::new(),
            features: vec![FeatureLookup {
                table_version: map.layouts[0].schema.table_version.clone(),
                pooling: Pooling::Sum,
                ids: vec![1, 2, 2],
                lengths: Some(vec![2, 1]),
                weights: Some(vec![1.0, 2.0, 3.0]),
            }],
        };
        let split = Split::with(&request, &map, 0, Ahead::default(), ids).unwrap();
        let route = Route { nodes: vec![NodeAt(0)], node_of: vec![vec![0]], ..Default::default() };
        let options = LookupOptions { wire_form: Some(form), ..Default::default() };
        let ask = asks::build(&split, &route, &options).remove(0);
        let mut feature = v1::FeatureResponse {
            table_version: Some((&request.features[0].table_version).into()),
            missing_ids: 1,
            missing: vec![0b10].into(),
            ..Default::default()
        };
        match form {
            WireForm::Gather => feature.rows = vec![0; 16].into(),
            WireForm::Pool => {
                feature.sums = pack::pack(&[1.0f32; 4]);
                feature.counts = pack::pack(&[1u32, 0]);
                feature.weight_sums = pack::pack(&[1.0f32, 0.0]);
            }
        }
        let mut response =
            v1::LookupResponse { features: vec![feature], epoch: 1, node: "n".into(), ..Default::default() };
        change(&mut response);
        check(&split, ask.asks, response).map(|answered| answered.len())
    }

    #[test]
    fn each_lie_has_its_error() {
        for form in [WireForm::Gather, WireForm::Pool] {
            assert_eq!(answered(form, |_| {}), Ok(1));
            let lie = |change: fn(&mut v1::FeatureResponse)| {
                answered(form, |r| change(&mut r.features[0])).unwrap_err()
            };
            let wrong_length = |change, name| match lie(change) {
                BadAnswer::Length { field, .. } => assert_eq!(field, name),
                other => panic!("{other}"),
            };
            assert!(matches!(
                answered(form, |r| r.features.clear()),
                Err(BadAnswer::Features { asked: 1, got: 0 })
            ));
            assert!(matches!(lie(|f| f.table_version = None), BadAnswer::Version { .. }));
            let other: fn(&mut v1::FeatureResponse) = |f| {
                if let Some(version) = &mut f.table_version {
                    version.version = "w".into();
                }
            };
            assert!(lie(other).to_string().contains("t@w"));
            wrong_length(|f| f.missing = vec![2, 0].into(), "missing");
            assert!(matches!(lie(|f| f.missing_ids = 2), BadAnswer::Missing { said: 2, marked: 1, .. }));
            assert!(matches!(lie(|f| f.missing = vec![0b100].into()), BadAnswer::Missing { .. }));
            wrong_length(|f| f.rows = vec![0; 15].into(), "rows");
            wrong_length(|f| f.sums = vec![0; 12].into(), "sums");
            wrong_length(|f| f.counts = vec![0; 9].into(), "counts");
            wrong_length(|f| f.weight_sums = vec![0; 4].into(), "weight_sums");
        }
        let too_many =
            answered(WireForm::Pool, |r| r.features[0].counts = pack::pack(&[2u32, 0])).unwrap_err();
        assert!(matches!(too_many, BadAnswer::Count { bag: 0, said: 2, marked: 1, .. }), "{too_many}");
    }

    #[test]
    fn a_composite_table_has_all_rows_or_none() {
        // One hash, so that the good answer has the lengths that fit: of 3 rows the ids have different ones.
        let composite = |rows| {
            move |schema: &mut TableSchema| {
                schema.composite = Some(Composite { seeds: vec![1], combine: Combine::Concat });
                schema.rows = rows;
            }
        };
        let none_missing = |r: &mut v1::LookupResponse| {
            r.features[0].missing_ids = 0;
            r.features[0].missing.clear();
        };
        let gathered = |rows, change: &dyn Fn(&mut v1::LookupResponse)| {
            answered_by(WireForm::Gather, composite(rows), change)
        };
        assert_eq!(gathered(1 << 40, &none_missing), Ok(1));
        let some = gathered(1 << 40, &|_| {}).unwrap_err();
        assert!(matches!(some, BadAnswer::Composite { asked: 2, marked: 1, .. }), "{some}");
        // Of an empty table both ids are asked for as row 0.
        let one_row = |r: &mut v1::LookupResponse| r.features[0].rows = vec![0; 8].into();
        let missing = |r: &mut v1::LookupResponse| {
            one_row(r);
            r.features[0].missing = vec![1].into();
        };
        assert_eq!(gathered(0, &missing), Ok(1));
        let found = |r: &mut v1::LookupResponse| {
            one_row(r);
            none_missing(r);
        };
        assert!(matches!(gathered(0, &found), Err(BadAnswer::Composite { rows: 0, marked: 0, .. })));
    }

    #[test]
    fn numbers_of_rows_that_a_composite_table_does_not_have_are_missing() {
        // Row 1 is there, row 2 is not: they were those of another version.
        let composite = |schema: &mut TableSchema| {
            schema.composite = Some(Composite { seeds: vec![1], combine: Combine::Concat });
            schema.rows = 2;
        };
        let answered = |missing: u8| {
            answered_to(WireForm::Gather, Ids::Rows, composite, |r| {
                r.features[0].missing_ids = missing.count_ones();
                r.features[0].missing = vec![missing].into();
            })
        };
        assert_eq!(answered(0b10), Ok(1));
        for lie in [0b00, 0b01, 0b11] {
            assert!(matches!(answered(lie), Err(BadAnswer::Composite { rows: 2, .. })), "{lie:b}");
        }
    }
}
