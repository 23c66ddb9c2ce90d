//! Composite tables: on the way in, the ids of a feature become rows of the table and their bags, so that the
//! one lookup per node carries them as it carries any others; on the way out, what is counted is ids again.
//!
//! - *Concat*: each bag becomes one bag per hash, in the order of the seeds. Their vectors `[bags * hashes, dim]`
//!   are the vectors `[bags, hashes * dim]`: nothing is moved.
//! - *Sum*: each id in a bag is followed by nothing but its own rows, in the order of the seeds.
//!
//! A composite table has rows for every id, or none at all (answers that say otherwise are refused), so what
//! was found, and the weights of it, is known from the request alone.

use std::{borrow::Cow, collections::HashSet, ops::Range};

use tidepool_types::{Combine, Composite, Pooling, TableSchema};

use crate::{request::FeatureLookup, split::as_u32};

/// The ids of a feature as its table is asked for them.
#[derive(Debug)]
pub(crate) struct Bags<'a> {
    /// Of all bags, one bag after the other.
    pub(crate) ids: Cow<'a, [u64]>,
    /// Ids per bag; None: one each.
    pub(crate) lengths: Option<Cow<'a, [u32]>>,
    /// One per id, when the feature has weights.
    pub(crate) weights: Option<Cow<'a, [f32]>>,
}

impl<'a> Bags<'a> {
    /// As the caller wrote them.
    pub(crate) fn as_asked(feature: &'a FeatureLookup) -> Self {
        Self {
            ids: Cow::Borrowed(&feature.ids),
            lengths: asked_lengths(feature).map(Cow::Borrowed),
            weights: feature.weights.as_deref().map(Cow::Borrowed),
        }
    }
}

/// A feature of a composite table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Composed<'a> {
    asked: &'a FeatureLookup,
    composite: &'a Composite,
    rows: u64,
}

impl<'a> Composed<'a> {
    /// None: the table is not composite.
    pub(crate) fn new(asked: &'a FeatureLookup, schema: &'a TableSchema) -> Option<Self> {
        let composite = schema.composite.as_ref()?;
        Some(Self { asked, composite, rows: schema.rows })
    }

    /// How many rows an id has.
    pub(crate) fn hashes(&self) -> usize {
        self.composite.hashes()
    }

    /// Whether an id is a bag of its own, which has no vector before its rows are added up.
    pub(crate) fn sums_rows(&self) -> bool {
        self.composite.combine == Combine::Sum
    }

    /// The id that the caller gave for the row at `at` of the expanded ids of an unpooled feature.
    pub(crate) fn id_of(&self, at: usize) -> u64 {
        self.asked.ids[at / self.hashes()]
    }

    /// Rows in the place of ids.
    pub(crate) fn expand(&self) -> Bags<'a> {
        let hashes = self.hashes();
        let lengths = asked_lengths(self.asked);
        let by_bag = match self.composite.combine {
            Combine::Concat => lengths,
            Combine::Sum => None,
        };
        let order = || {
            bag_ranges(by_bag, self.asked.ids.len()).flat_map(move |bag| {
                self.composite.seeds.iter().flat_map(move |seed| bag.clone().map(move |at| (at, *seed)))
            })
        };
        let mut ids = Vec::with_capacity(self.asked.ids.len() * hashes);
        ids.extend(order().map(|(at, seed)| Composite::row(self.asked.ids[at], seed, self.rows)));
        let weights = self.asked.weights.as_deref().map(|asked| {
            let mut weights = Vec::with_capacity(ids.len());
            weights.extend(order().map(|(at, _)| asked[at]));
            weights.into()
        });
        let lengths = match self.composite.combine {
            Combine::Concat => lengths
                .map(|asked| asked.iter().flat_map(|length| std::iter::repeat_n(*length, hashes)).collect()),
            Combine::Sum => {
                let bags = bag_ranges(lengths, self.asked.ids.len());
                Some(bags.map(|bag| as_u32(bag.len() * hashes)).collect())
            }
        };
        Bags { ids: ids.into(), lengths, weights }
    }

    /// Per bag of the caller: the ids found, and the sum of their weights (empty without weights).
    pub(crate) fn found(&self) -> (Vec<u32>, Vec<f32>) {
        let bags = || bag_ranges(asked_lengths(self.asked), self.asked.ids.len());
        let found = bags().map(|bag| if self.rows == 0 { 0 } else { as_u32(bag.len()) }).collect();
        let weights =
            self.asked.weights.as_deref().map(|weights| bags().map(|bag| weights[bag].iter().sum()));
        (found, weights.into_iter().flatten().collect())
    }

    /// Per bag of the caller: its ids with a row that `is_lost`, which is asked by the row's place among the
    /// expanded ids.
    pub(crate) fn lost(&self, is_lost: impl Fn(usize) -> bool) -> Vec<u32> {
        let bags = bag_ranges(asked_lengths(self.asked), self.asked.ids.len());
        bags.map(|bag| as_u32(self.of_bag(&bag, &is_lost).count())).collect()
    }

    /// The first `limit` different ids with a row that `is_wanted`, as [`lost`](Self::lost) asks for them.
    pub(crate) fn ids_with(&self, is_wanted: impl Fn(usize) -> bool, limit: usize) -> Vec<u64> {
        let (mut ids, mut seen) = (Vec::new(), HashSet::new());
        for bag in bag_ranges(asked_lengths(self.asked), self.asked.ids.len()) {
            for id in self.of_bag(&bag, &is_wanted).map(|id| self.asked.ids[bag.start + id]) {
                if ids.len() == limit {
                    return ids;
                }
                if seen.insert(id) {
                    ids.push(id);
                }
            }
        }
        ids
    }

    /// The places in a bag of its ids with a row that `is_wanted`.
    fn of_bag(&self, bag: &Range<usize>, is_wanted: &impl Fn(usize) -> bool) -> impl Iterator<Item = usize> {
        let (hashes, combine) = (self.hashes(), self.composite.combine);
        let (start, len) = (bag.start, bag.len());
        let row = move |id: usize, hash: usize| match combine {
            Combine::Concat => start * hashes + hash * len + id,
            Combine::Sum => (start + id) * hashes + hash,
        };
        (0..len).filter(move |id| (0..hashes).any(|hash| is_wanted(row(*id, hash))))
    }
}

/// Ids per bag as the caller gave them; None: each id is a bag of its own, as without pooling.
pub(crate) fn asked_lengths(feature: &FeatureLookup) -> Option<&[u32]> {
    feature.lengths.as_deref().filter(|_| feature.pooling != Pooling::None)
}

/// The members of each bag as a range of all members, in order; without lengths each is a bag of its own.
pub(crate) fn bag_ranges(lengths: Option<&[u32]>, members: usize) -> impl Iterator<Item = Range<usize>> {
    let bags = lengths.map_or(members, <[u32]>::len);
    let mut start = 0;
    (0..bags).map(move |bag| {
        let end = start + lengths.map_or(1, |lengths| lengths[bag] as usize);
        std::mem::replace(&mut start, end)..end
    })
}

#[cfg(test)]
mod tests {
    use tidepool_types::TableVersion;

    use super::*;

    fn schema(combine: Combine, rows: u64) -> TableSchema {
        let mut schema: TableSchema = serde_json::from_str(
            r#"{"table_version": {"table": "t", "version": "v"}, "dim": 2, "format": "f32",
                "keying": "dense", "partitions": 4, "rows": 9}"#,
        )
        .unwrap();
        schema.rows = rows;
        schema.composite = Some(Composite { seeds: vec![5, 3], combine });
        schema
    }

    fn feature(pooling: Pooling, lengths: Option<Vec<u32>>) -> FeatureLookup {
        let version: TableVersion = serde_json::from_str(r#"{"table": "t", "version": "v"}"#).unwrap();
        let weights = (pooling != Pooling::None).then(|| vec![1.0, 2.0, 4.0]);
        FeatureLookup { table_version: version, pooling, ids: vec![70, 80, u64::MAX], lengths, weights }
    }

    /// The lengths, and per row the position of its id and the number of its hash.
    fn expanded(combine: Combine, feature: &FeatureLookup) -> (Option<Vec<u32>>, Vec<(usize, usize)>) {
        let schema = schema(combine, 1 << 40);
        let composed = Composed::new(feature, &schema).unwrap();
        let bags = composed.expand();
        let place = |row: &u64| {
            let hash =
                |at: usize| (0..2).find(|k| *row == Composite::row(feature.ids[at], [5, 3][*k], 1 << 40));
            (0..3).find_map(|at| Some((at, hash(at)?))).unwrap()
        };
        let places: Vec<_> = bags.ids.iter().map(place).collect();
        let weights =
            feature.weights.as_ref().map(|w| places.iter().map(|(at, _)| w[*at]).collect::<Vec<_>>());
        assert_eq!(bags.weights.map(Cow::into_owned), weights, "each row has the weight of its id");
        (bags.lengths.map(Cow::into_owned), places)
    }

    #[test]
    fn bags_become_bags_of_rows() {
        let by_id = vec![(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)];
        let bags = feature(Pooling::Sum, Some(vec![2, 0, 1]));
        let by_bag = vec![(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (2, 1)];
        assert_eq!(expanded(Combine::Concat, &bags), (Some(vec![2, 2, 0, 0, 1, 1]), by_bag));
        assert_eq!(expanded(Combine::Sum, &bags), (Some(vec![4, 0, 2]), by_id.clone()));
        let single = feature(Pooling::Mean, None);
        assert_eq!(expanded(Combine::Concat, &single), (None, by_id.clone()));
        assert_eq!(expanded(Combine::Sum, &single), (Some(vec![2, 2, 2]), by_id.clone()));
        // Without pooling lengths are without effect.
        let unpooled = feature(Pooling::None, Some(vec![2, 0, 1]));
        assert_eq!(expanded(Combine::Concat, &unpooled), (None, by_id.clone()));
        assert_eq!(expanded(Combine::Sum, &unpooled), (Some(vec![2, 2, 2]), by_id));
    }

    #[test]
    fn ids_are_found_and_weighed_once_however_many_rows_they_have() {
        let bags = feature(Pooling::Mean, Some(vec![2, 0, 1]));
        for combine in [Combine::Concat, Combine::Sum] {
            // The row of the last id by the last hash, and nothing else.
            let (_, places) = expanded(combine, &bags);
            let last = places.iter().position(|place| *place == (2, 1)).unwrap();
            let full = schema(combine, 9);
            assert_eq!(Composed::new(&bags, &full).unwrap().lost(|at| at == last), [0, 0, 1]);
            let first: Vec<_> = places.iter().map(|(id, _)| *id == 1).collect();
            assert_eq!(Composed::new(&bags, &full).unwrap().lost(|at| first[at]), [1, 0, 0]);
            let (full, empty) = (schema(combine, 9), schema(combine, 0));
            let found = |schema| Composed::new(&bags, schema).unwrap().found();
            assert_eq!(found(&full), (vec![2, 0, 1], vec![3.0, 0.0, 4.0]));
            assert_eq!(found(&empty).0, [0, 0, 0]);
        }
    }
}
