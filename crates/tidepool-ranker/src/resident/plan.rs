//! Which rows of which tables are to be resident, decided before anything is fetched: no more is asked of nodes than there is
//! room for.

use tidepool_dense::resident::{LOAD, Offer, bytes_per_id, fit, fixed_bytes};
use tidepool_types::{Keying, RowFormat, TableSchema, TableVersion};

/// What there is of a table to choose from.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) table: TableVersion,
    pub(crate) format: RowFormat,
    pub(crate) dim: u32,
    /// All row ids, 0 to this, where they are known beforehand and few enough.
    pub(crate) all: Option<u64>,
    /// The most wanted ids, those first.
    pub(crate) hot: Vec<u64>,
}

impl Candidate {
    /// Of a table with this schema, by its row ids. Ids that it cannot have are to be left out of `hot` by who gives them:
    /// see [`may_have`].
    pub(crate) fn new(schema: &TableSchema, whole_rows: u64, hot: Vec<u64>) -> Self {
        let all = (schema.keying == Keying::Dense && schema.rows <= whole_rows).then_some(schema.rows);
        let TableSchema { table_version, format, dim, .. } = schema;
        Self { table: table_version.clone(), format: *format, dim: *dim, all, hot }
    }

    fn offer(&self, whole: bool) -> Offer {
        let ids = if whole { self.all.unwrap_or(0) } else { self.hot.len() as u64 };
        Offer { table: self.table.clone(), format: self.format, dim: self.dim, ids, whole }
    }
}

/// Whether a table can have a row of this id. Of hashed ones nobody knows.
pub(crate) fn may_have(schema: &TableSchema, row_id: u64) -> bool {
    schema.keying == Keying::Hashed || row_id < schema.rows
}

/// Rows that are to be fetched for a table.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) table: TableVersion,
    pub(crate) format: RowFormat,
    pub(crate) dim: u32,
    pub(crate) whole: bool,
    /// How many ids there were to choose from.
    pub(crate) offered: u64,
    /// Which are taken; the first so many where the table is whole.
    pub(crate) ids: Vec<u64>,
}

/// Chooses what fits into `bytes`: whole tables first, the smallest first, then the most wanted ids of the others, by rank
/// ([`fit`]). A table that is not resident whole for want of room is taken by its most wanted ids.
pub(crate) fn plan(candidates: Vec<Candidate>, bytes: u64) -> Vec<Wanted> {
    let (mut whole, mut parts): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|c| c.all.is_some());
    let size =
        |c: &Candidate| u128::from(c.all.unwrap_or(0)) * u128::from(bytes_per_id(c.format, c.dim, LOAD));
    whole.sort_by_key(size);
    // What the others take beside their ids is set aside.
    let aside = fixed_bytes(whole.len() + parts.len()) - fixed_bytes(whole.len());
    let offers: Vec<_> = whole.iter().map(|candidate| candidate.offer(true)).collect();
    let fitted = fit(&offers, bytes.saturating_sub(aside), LOAD);
    let mut fitted = fitted.iter().map(|fit| fit.kept == fit.offered);
    let (whole, too_large): (Vec<_>, Vec<_>) = whole.into_iter().partition(|_| fitted.next() == Some(true));
    parts.splice(0..0, too_large);
    let offers: Vec<_> =
        whole.iter().map(|c| c.offer(true)).chain(parts.iter().map(|c| c.offer(false))).collect();
    let fits = fit(&offers, bytes, LOAD);
    let (whole_tables, all) = (whole.len(), whole.into_iter().chain(parts));
    let one = |(at, (candidate, fit)): (usize, (Candidate, tidepool_dense::resident::Fit))| {
        let Candidate { table, format, dim, mut hot, .. } = candidate;
        let whole = at < whole_tables && fit.kept == fit.offered;
        let ids = if at < whole_tables {
            (0..fit.kept).collect()
        } else {
            hot.truncate(usize::try_from(fit.kept).unwrap_or(usize::MAX));
            hot
        };
        Wanted { table, format, dim, whole, offered: fit.offered, ids }
    };
    all.zip(fits).enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use tidepool_types::{Name, PartitionCount};

    use super::*;

    fn schema(table: &str, keying: Keying, rows: u64, dim: u32) -> TableSchema {
        let name = |text: &str| Name::new(text).unwrap();
        TableSchema {
            table_version: TableVersion { table: name(table), version: name("v1") },
            dim,
            format: RowFormat::Int4,
            keying,
            partitions: PartitionCount::ONE,
            rows,
            default_row: Vec::new(),
            composite: None,
        }
    }

    fn planned(candidates: Vec<Candidate>, bytes: u64) -> Vec<(String, bool, usize)> {
        let wanted = plan(candidates, bytes);
        wanted.iter().map(|w| (w.table.table.to_string(), w.whole, w.ids.len())).collect()
    }

    fn candidates() -> Vec<Candidate> {
        let hot = |count: u64| (0..count).rev().collect::<Vec<_>>();
        let dense = |table, rows| schema(table, Keying::Dense, rows, 32);
        vec![
            Candidate::new(&schema("hashed", Keying::Hashed, 50, 32), 1000, hot(300)),
            Candidate::new(&dense("large", 900), 1000, hot(200)),
            Candidate::new(&dense("small", 100), 1000, hot(3)),
            Candidate::new(&dense("huge", 1001), 1000, hot(100)),
        ]
    }

    #[test]
    fn small_tables_are_whole_and_what_is_left_is_shared_by_rank() {
        let of = |words: &[(&str, bool, usize)]| {
            words.iter().map(|(table, whole, ids)| ((*table).to_owned(), *whole, *ids)).collect::<Vec<_>>()
        };
        let per_id = bytes_per_id(RowFormat::Int4, 32, LOAD);
        let room = |ids: u64| fixed_bytes(4) + ids * per_id;
        let everything =
            of(&[("small", true, 100), ("large", true, 900), ("hashed", false, 300), ("huge", false, 100)]);
        assert_eq!(planned(candidates(), 1 << 30), everything);
        let shared =
            of(&[("small", true, 100), ("large", true, 900), ("hashed", false, 10), ("huge", false, 10)]);
        assert_eq!(planned(candidates(), room(1020)), shared);
        // One that is too large is taken by its most wanted ids.
        let too_large =
            of(&[("small", true, 100), ("large", false, 50), ("hashed", false, 50), ("huge", false, 50)]);
        assert_eq!(planned(candidates(), room(250)), too_large);
        let nothing = planned(candidates(), 5);
        assert!(nothing.iter().all(|(_, whole, ids)| !whole && *ids == 0), "{nothing:?}");
        let wanted = plan(candidates(), room(250));
        assert_eq!((wanted[2].ids[..2].to_vec(), wanted[2].offered), (vec![299, 298], 300));
        assert_eq!(wanted[0].ids, (0..100).collect::<Vec<_>>());
        assert!(plan(Vec::new(), 1 << 20).is_empty());
    }

    #[test]
    fn a_table_of_no_rows_is_whole_and_ids_that_cannot_be_are_known() {
        let empty = Candidate::new(&schema("empty", Keying::Dense, 0, 8), 0, Vec::new());
        assert_eq!(planned(vec![empty], 1 << 20), [("empty".into(), true, 0)]);
        let dense = schema("dense", Keying::Dense, 10, 8);
        assert!(may_have(&dense, 9) && !may_have(&dense, 10));
        assert!(may_have(&schema("hashed", Keying::Hashed, 10, 8), u64::MAX));
    }
}
