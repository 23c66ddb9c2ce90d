//! Whether an answer of a ranker is that of one release, whole: its scores are those which this release's model gives
//! on this release's rows. It computes them itself, in f64, with a decoder of its own.

use std::collections::BTreeMap;

use tidepool_proto::{pack::unpack, v1};

use super::{
    requests::{Asked, CANDIDATES},
    truth::{DIM, Dense, FORMAT, Release, Table, Weights, row_of},
};
use crate::oracle::{TOLERANCE, decode};

/// What an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// That of the release which it names.
    Right,
    /// Made of a model and tables that do not belong to the release which it names, or says that it is.
    Mixed,
    /// Anything else.
    Wrong,
}

/// A pooled vector, and the sum of the magnitudes that each of its elements was added up from.
struct Pooled {
    values: [f64; DIM],
    magnitudes: [f64; DIM],
}

/// Knows every release of a drill.
#[derive(Clone, Debug, Default)]
pub(super) struct Oracle {
    releases: Vec<(Release, Weights)>,
}

impl Oracle {
    /// Tells of a release, before anybody is answered by it.
    pub(super) fn learn(&mut self, release: &Release) {
        self.releases.push((release.clone(), release.dense.weights()));
    }

    /// Looks at every score of an answer.
    pub(super) fn judge(&self, asked: &Asked, answer: &v1::RankResponse) -> Verdict {
        let Some((release, weights)) = self.releases.iter().find(|(r, _)| r.name.as_str() == answer.release)
        else {
            return Verdict::Wrong;
        };
        let Some(scores) = scores(answer) else { return Verdict::Wrong };
        let mut rows = Rows::new(asked);
        let right = rows.explain(weights, release.versions, &scores).iter().all(|it| *it);
        if right {
            return if echoes(release, answer) { Verdict::Right } else { Verdict::Mixed };
        }
        // Whose is each score, then? Of any model on any versions, all the same or not.
        let mut explained = vec![false; CANDIDATES];
        for versions in self.crosses() {
            for (_, weights) in &self.releases {
                let found = rows.explain(weights, versions, &scores);
                explained.iter_mut().zip(found).for_each(|(any, this)| *any |= this);
            }
        }
        if explained.into_iter().all(|it| it) || !echoes(release, answer) {
            Verdict::Mixed
        } else {
            Verdict::Wrong
        }
    }

    /// Every pair of versions that a careless cluster could put together.
    fn crosses(&self) -> impl Iterator<Item = [u64; 2]> {
        let versions = |table: Table| self.releases.iter().map(move |(r, _)| r.versions[table as usize]);
        let trained = |dense: Dense, table: Table| dense.trained[table as usize];
        let all = |table: Table| -> std::collections::BTreeSet<u64> {
            versions(table).chain(self.releases.iter().map(|(r, _)| trained(r.dense, table))).collect()
        };
        let items = all(Table::Items);
        all(Table::Users)
            .into_iter()
            .flat_map(move |user| items.clone().into_iter().map(move |item| [user, item]))
    }
}

/// Whether an answer names the table versions of the release.
fn echoes(release: &Release, answer: &v1::RankResponse) -> bool {
    let Ok(tables) = release.tables() else { return false };
    let mut expected: Vec<v1::TableVersion> = tables.iter().map(Into::into).collect();
    let mut found = answer.table_versions.clone();
    let by_name = |t: &v1::TableVersion| (t.table.clone(), t.version.clone());
    expected.sort_by_key(by_name);
    found.sort_by_key(by_name);
    expected == found
}

/// The score of each candidate; `None` when one has none or two, or when the best do not come first.
fn scores(answer: &v1::RankResponse) -> Option<Vec<f32>> {
    let indexes: Vec<u32> = unpack(&answer.indexes)?.collect();
    let ranked: Vec<f32> = unpack(&answer.scores)?.collect();
    if indexes.len() != CANDIDATES || ranked.len() != CANDIDATES {
        return None;
    }
    let mut scores = vec![None; CANDIDATES];
    for (index, score) in indexes.iter().zip(&ranked) {
        let place = scores.get_mut(*index as usize)?;
        if place.replace(*score).is_some() {
            return None;
        }
    }
    let ordered = indexes.windows(2).zip(ranked.windows(2)).all(|(index, score)| {
        // Written so that NaN is wrong. Equal scores stand in the order of the request.
        score[0] > score[1] || score[0] == score[1] && index[0] < index[1]
    });
    let missing = answer.missing_ids > 0 || answer.defaulted_bags > 0 || answer.partial;
    if ordered && !missing { scores.into_iter().collect() } else { None }
}

/// The pooled rows of a request, version by version as they are asked for.
struct Rows<'a> {
    asked: &'a Asked,
    pooled: BTreeMap<(Table, u64), Vec<Pooled>>,
}

impl<'a> Rows<'a> {
    fn new(asked: &'a Asked) -> Self {
        Self { asked, pooled: BTreeMap::new() }
    }

    fn pool(&mut self, table: Table, version: u64) {
        let Self { asked, pooled } = self;
        pooled.entry((table, version)).or_insert_with(|| {
            let mut row = vec![0; FORMAT.row_bytes(DIM as u32)];
            let mut values = vec![0.0; DIM];
            let bags = asked.ids(table).chunks(table.bag());
            bags.map(|bag| {
                let mut pooled = Pooled { values: [0.0; DIM], magnitudes: [0.0; DIM] };
                for id in bag {
                    row_of(table, *id, version, &mut row);
                    decode(FORMAT, &row, &mut values);
                    for (column, value) in values.iter().enumerate() {
                        pooled.values[column] += value;
                        pooled.magnitudes[column] += value.abs();
                    }
                }
                pooled
            })
            .collect()
        });
    }

    /// Which scores are those of the model of these weights on rows of these versions.
    fn explain(&mut self, weights: &Weights, versions: [u64; 2], scores: &[f32]) -> Vec<bool> {
        let keys = [(Table::Users, versions[0]), (Table::Items, versions[1])];
        for (table, version) in keys {
            self.pool(table, version);
        }
        let [Some(users), Some(items)] = keys.map(|key| self.pooled.get(&key)) else {
            return vec![false; scores.len()];
        };
        let user = &users[0];
        let fits = |(item, score): (&Pooled, &f32)| {
            let (mut sum, mut magnitude) = (f64::from(weights.bias), f64::from(weights.bias).abs());
            for column in 0..DIM {
                let [of_user, of_item, of_both] =
                    [0, 1, 2].map(|part: usize| f64::from(weights.columns[part][column]));
                sum += of_user * user.values[column]
                    + of_item * item.values[column]
                    + of_both * user.values[column] * item.values[column];
                magnitude += of_user.abs() * user.magnitudes[column]
                    + of_item.abs() * item.magnitudes[column]
                    + of_both.abs() * user.magnitudes[column] * item.magnitudes[column];
            }
            let expected = 1.0 / (1.0 + (-sum).exp());
            // The sigmoid is nowhere steeper than a quarter. Written so that NaN is wrong.
            (f64::from(*score) - expected).abs() <= TOLERANCE * magnitude
        };
        items.iter().zip(scores).map(fits).collect()
    }
}

#[cfg(test)]
mod tests;
