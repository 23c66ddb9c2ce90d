//! A request is checked, its ids are deduplicated per table, and each unique id gets its partition.

use std::{borrow::Cow, ops::Range};

use tidepool_cluster::{ClusterMap, TableLayout};
use tidepool_types::{Composite, PartitionIndex, Pooling, TableSchema, mix64};

use crate::{
    cache::{Finding, Known, RowCache},
    compose::{self, Bags, Composed},
    error::ClientError,
    request::{FeatureLookup, LookupRequest},
    rows::Held,
};

/// A request by table and partition; nothing in it depends on which node serves what.
#[derive(Debug)]
pub(crate) struct Split<'a> {
    /// Each table version that the request uses, once.
    pub(crate) tables: Vec<TableSplit<'a>>,
    /// One per feature of the request, in its order.
    pub(crate) features: Vec<FeatureSplit<'a>>,
    /// Whether stored rows are asked for though sums may take fewer bytes: only rows can be kept in a cache.
    pub(crate) learns: bool,
}

/// What the ids of a request are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ids {
    /// Those that people ask for: of a composite table each has several rows.
    Asked,
    /// Of rows: of a composite table their numbers. Nobody waits for vectors of them, so the cache is none the wiser.
    Rows,
}

/// Who is asked ahead of the nodes. What they know is not asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ahead<'a> {
    /// Rows that whoever asks has. Asked first.
    pub(crate) held: Option<&'a dyn Held>,
    /// Rows that are kept here.
    pub(crate) cache: Option<&'a RowCache>,
}

impl Ahead<'_> {
    /// What is known of the unique ids of a table, of which `kind` says what they are.
    fn known(&self, schema: &TableSchema, ids: &[u64], kind: Ids) -> Known {
        let mut holdings = Vec::new();
        let holds = self.held.is_some_and(|held| held.hold(&schema.table_version, ids, &mut holdings));
        if !holds && self.cache.is_none() {
            return Known::default();
        }
        let mut found = Finding::nothing(schema.row_bytes(), ids.len());
        if holds {
            found.hold(&holdings);
        }
        match (self.cache, kind) {
            (Some(cache), Ids::Asked) => cache.read_rest(schema, ids, &mut found),
            (Some(cache), Ids::Rows) => cache.peek_rest(schema, ids, &mut found),
            (None, _) => {}
        }
        found.done()
    }
}

/// The ids of all features that use one table.
#[derive(Debug)]
pub(crate) struct TableSplit<'a> {
    /// The table and where its partitions are.
    pub(crate) layout: &'a TableLayout,
    /// The place of `layout` in its map.
    pub(crate) at: usize,
    /// Each id once, in the order of first use. Of a composite table: the numbers of its rows.
    pub(crate) ids: Vec<u64>,
    /// What was known of them ahead; the rest is asked for.
    pub(crate) known: Known,
    /// Per unique id: which of `partitions` it lives in, or [`NOT_ASKED`](Self::NOT_ASKED).
    pub(crate) slot_of: Vec<u32>,
    /// The partitions that are needed, in the order of first use. Their positions here are called slots:
    /// work is kept per slot, since a layout may have far more partitions than a request touches.
    pub(crate) partitions: Vec<PartitionIndex>,
}

/// One feature, its ids replaced by positions in its table's unique ids: the inverse index.
#[derive(Debug)]
pub(crate) struct FeatureSplit<'a> {
    /// Which of [`Split::tables`].
    pub(crate) table: usize,
    pub(crate) pooling: Pooling,
    /// One per id of the feature, in request order; of a composite table as [`Composed::expand`] has them.
    pub(crate) members: Vec<u32>,
    /// Members per bag; None: one each.
    lengths: Option<Cow<'a, [u32]>>,
    weights: Option<Cow<'a, [f32]>>,
    /// How to get back to ids, when the table is composite.
    pub(crate) composed: Option<Composed<'a>>,
}

impl FeatureSplit<'_> {
    /// How many bags the feature has.
    pub(crate) fn bags(&self) -> usize {
        self.lengths.as_ref().map_or(self.members.len(), |lengths| lengths.len())
    }

    /// The members of each bag as a range of [`members`](Self::members), in order.
    pub(crate) fn bag_ranges(&self) -> impl Iterator<Item = Range<usize>> {
        compose::bag_ranges(self.lengths.as_deref(), self.members.len())
    }

    /// One per member, when the feature has weights.
    pub(crate) fn weights(&self) -> Option<&[f32]> {
        self.weights.as_deref()
    }

    /// How many members stand for one id.
    pub(crate) fn members_per_id(&self) -> usize {
        self.composed.map_or(1, |composed| composed.hashes())
    }
}

impl<'a> Split<'a> {
    /// Every id has to be asked for.
    #[cfg(test)]
    pub(crate) fn new(
        request: &'a LookupRequest,
        map: &'a ClusterMap,
        seed: u64,
    ) -> Result<Self, ClientError> {
        Self::with(request, map, seed, Ahead::default(), Ids::Asked)
    }

    /// Splits `request` by the layouts of `map`, and asks those who are `ahead` what they know. `seed` spreads the ids
    /// in the deduplication table, so that nobody who chooses ids can make them collide; the result does not
    /// depend on it.
    ///
    /// # Errors
    /// [`ClientError::UnknownTable`], or [`ClientError::Invalid`] naming the feature.
    pub(crate) fn with(
        request: &'a LookupRequest,
        map: &'a ClusterMap,
        seed: u64,
        ahead: Ahead<'_>,
        ids: Ids,
    ) -> Result<Self, ClientError> {
        let mut tables: Vec<TableSplit<'a>> = Vec::new();
        let mut table_of = Vec::with_capacity(request.features.len());
        let mut ids_of_table: Vec<usize> = Vec::new();
        for (at, feature) in request.features.iter().enumerate() {
            check(at, feature)?;
            let table = tables.iter().position(|t| t.layout.schema.table_version == feature.table_version);
            let table = match table {
                Some(table) => table,
                None => {
                    let mut layouts = map.layouts.iter();
                    let at = layouts.position(|l| l.schema.table_version == feature.table_version);
                    let at = at.ok_or_else(|| ClientError::UnknownTable {
                        table: feature.table_version.clone(),
                        epoch: map.epoch,
                    })?;
                    tables.push(TableSplit {
                        layout: &map.layouts[at],
                        at,
                        ids: Vec::new(),
                        known: Known::default(),
                        slot_of: Vec::new(),
                        partitions: Vec::new(),
                    });
                    ids_of_table.push(0);
                    tables.len() - 1
                }
            };
            table_of.push(table);
            let per_id = tables[table].layout.schema.composite.as_ref().map_or(1, Composite::hashes);
            ids_of_table[table] =
                ids_of_table[table].saturating_add(feature.ids.len().saturating_mul(per_id));
            let bags = feature.lengths.as_ref().map_or(0, Vec::len).saturating_mul(per_id);
            if u32::try_from(ids_of_table[table]).is_err() || u32::try_from(bags).is_err() {
                let problem = "more than 2^32 - 1 ids of one table in a request, or rows of a composite one";
                return Err(invalid(at, feature, problem));
            }
        }
        let mut uniques: Vec<Unique> = ids_of_table.iter().map(|ids| Unique::new(*ids, seed)).collect();
        let features = request.features.iter().zip(table_of).map(|(feature, table)| {
            let schema = &tables[table].layout.schema;
            let composed = if ids == Ids::Asked { Composed::new(feature, schema) } else { None };
            let bags = composed.map_or_else(|| Bags::as_asked(feature), |composed| composed.expand());
            let ids = &mut tables[table].ids;
            FeatureSplit {
                table,
                pooling: feature.pooling,
                members: bags.ids.iter().map(|id| uniques[table].position(*id, ids)).collect(),
                lengths: bags.lengths,
                weights: bags.weights,
                composed,
            }
        });
        let features = features.collect();
        for table in &mut tables {
            table.known = ahead.known(&table.layout.schema, &table.ids, ids);
            table.locate();
        }
        Ok(Self { tables, features, learns: ids == Ids::Asked && ahead.cache.is_some_and(RowCache::learns) })
    }
}

impl Split<'_> {
    /// Unique ids that the cache knew.
    pub(crate) fn cache_hits(&self) -> u64 {
        self.tables.iter().map(|table| table.known.hits()).sum()
    }

    /// Unique ids that nobody was asked for.
    pub(crate) fn held_ids(&self) -> u64 {
        self.tables.iter().map(|table| table.known.held()).sum()
    }
}

impl TableSplit<'_> {
    /// The slot of an id that is known already.
    pub(crate) const NOT_ASKED: u32 = u32::MAX;

    /// Finds the partition of each unique id that has to be asked for.
    fn locate(&mut self) {
        let (keying, count) = (self.layout.schema.keying, self.layout.schema.partitions);
        let mut slots = vec![u32::MAX; count.get() as usize];
        self.slot_of.reserve_exact(self.ids.len());
        for (at, id) in self.ids.iter().enumerate() {
            if !self.known.is_unknown(at) {
                self.slot_of.push(Self::NOT_ASKED);
                continue;
            }
            let partition = keying.locate(*id, count).partition;
            let slot = &mut slots[partition.0 as usize];
            if *slot == u32::MAX {
                *slot = as_u32(self.partitions.len());
                self.partitions.push(partition);
            }
            self.slot_of.push(*slot);
        }
    }
}

fn invalid(feature: usize, of: &FeatureLookup, problem: impl Into<String>) -> ClientError {
    ClientError::Invalid { feature, table: of.table_version.clone(), problem: problem.into() }
}

/// Refuses what no node could answer.
fn check(at: usize, feature: &FeatureLookup) -> Result<(), ClientError> {
    let ids = feature.ids.len();
    if let Some(lengths) = &feature.lengths {
        let total: u64 = lengths.iter().map(|l| u64::from(*l)).sum();
        if total != ids as u64 {
            return Err(invalid(at, feature, format!("the lengths add up to {total}, there are {ids} ids")));
        }
        if u32::try_from(lengths.len()).is_err() {
            return Err(invalid(at, feature, "more than 2^32 - 1 bags"));
        }
    }
    if let Some(weights) = &feature.weights {
        if feature.pooling == Pooling::None {
            return Err(invalid(at, feature, "weights go with sum or mean pooling"));
        }
        if weights.len() != ids {
            return Err(invalid(at, feature, format!("{} weights for {ids} ids", weights.len())));
        }
        if let Some(bad) = weights.iter().position(|w| !w.is_finite()) {
            return Err(invalid(at, feature, format!("weight {bad} is {}", weights[bad])));
        }
    }
    Ok(())
}

/// An open-addressing table from id to its position among the unique ids; one flat allocation, linear probes.
pub(crate) struct Unique {
    /// Position plus one; 0 is free.
    slots: Vec<u32>,
    seed: u64,
}

impl Unique {
    /// For so many ids at most.
    pub(crate) fn new(ids: usize, seed: u64) -> Self {
        Self { slots: vec![0; (ids * 2).next_power_of_two()], seed }
    }

    /// The position of `id` in `ids`, where it is put when it is new.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "masked to the table's length")]
    pub(crate) fn position(&mut self, id: u64, ids: &mut Vec<u64>) -> u32 {
        let mask = self.slots.len() - 1;
        let mut at = mix64(id ^ self.seed) as usize & mask;
        loop {
            match self.slots[at] {
                0 => {
                    ids.push(id);
                    self.slots[at] = as_u32(ids.len());
                    return self.slots[at] - 1;
                }
                taken if ids[taken as usize - 1] == id => return taken - 1,
                _ => at = (at + 1) & mask,
            }
        }
    }
}

/// Counts here fit: a request has at most 2^32 - 1 ids per table, and a layout at most 2^16 partitions.
#[expect(clippy::cast_possible_truncation, reason = "bounded by the check in Split::new")]
pub(crate) const fn as_u32(count: usize) -> u32 {
    count as u32
}

#[cfg(test)]
mod tests {
    use tidepool_types::{ErrorCode, Name, TableVersion};

    use super::*;

    fn map() -> ClusterMap {
        serde_json::from_str(
            r#"{"epoch": 3, "nodes": {}, "releases": [], "layouts": [{"placement": {}, "schema": {
                "table_version": {"table": "t", "version": "v"}, "dim": 2, "format": "f32",
                "keying": "dense", "partitions": 4, "rows": 9}}]}"#,
        )
        .unwrap()
    }

    fn request(change: impl Fn(&mut FeatureLookup)) -> LookupRequest {
        let name = |text| Name::new(text).unwrap();
        let mut feature = FeatureLookup {
            table_version: TableVersion { table: name("t"), version: name("v") },
            pooling: Pooling::Sum,
            ids: vec![6, 1, 6, u64::MAX, 2],
            lengths: Some(vec![2, 0, 3]),
            weights: Some(vec![1.0; 5]),
        };
        change(&mut feature);
        LookupRequest { request_id: String::new(), features: vec![feature.clone(), feature] }
    }

    #[test]
    fn ids_are_sent_once_and_found_again() {
        let (map, request) = (map(), request(|_| {}));
        for seed in [0, u64::MAX] {
            let split = Split::new(&request, &map, seed).unwrap();
            assert_eq!(split.tables[0].ids, [6, 1, u64::MAX, 2], "in the order of first use");
            assert_eq!(split.tables[0].partitions.iter().map(|p| p.0).collect::<Vec<_>>(), [2, 1, 3]);
            assert_eq!(split.tables[0].slot_of, [0, 1, 2, 0]);
            assert_eq!(split.features[1].members, [0, 1, 0, 2, 3]);
            assert_eq!(split.features[1].bag_ranges().collect::<Vec<_>>(), [0..2, 2..2, 2..5]);
        }
    }

    #[test]
    fn malformed_requests_are_refused_and_the_feature_named() {
        let refused = |change: fn(&mut FeatureLookup)| Split::new(&request(change), &map(), 0).unwrap_err();
        type Change = fn(&mut FeatureLookup);
        let cases: [(Change, &str); 6] = [
            (|f| f.lengths = Some(vec![2, 2]), "the lengths add up to 4, there are 5 ids"),
            (|f| f.lengths = Some(vec![u32::MAX, u32::MAX, 7]), "the lengths add up to 8589934597"),
            (|f| f.weights = Some(vec![1.0; 4]), "4 weights for 5 ids"),
            (|f| f.weights = Some(vec![1.0, 1.0, f32::NAN, 1.0, 1.0]), "weight 2 is NaN"),
            (|f| f.weights = Some(vec![1.0, f32::INFINITY, 1.0, 1.0, 1.0]), "weight 1 is inf"),
            (|f| f.pooling = Pooling::None, "weights go with sum or mean"),
        ];
        for (change, words) in cases {
            let error = refused(change);
            assert_eq!(error.code(), ErrorCode::InvalidRequest);
            assert!(error.to_string().starts_with("feature 0 (t@v): "), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
        let unknown = refused(|f| f.table_version.version = Name::new("w").unwrap());
        assert_eq!(unknown.code(), ErrorCode::NotFound);
        assert!(unknown.to_string().contains("t@w"), "{unknown}");
    }
}
