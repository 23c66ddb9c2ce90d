//! Labels of metrics that are names of tables. Tables come and go: their series must not pile up.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tidepool_cluster::ClusterMap;
use tidepool_types::Name;

/// So many tables have a label of their own at one time; all others share [`OTHER`].
pub(crate) const MAX_TABLES: usize = 64;
const OTHER: &str = "other";

/// The tables that have a label of their own.
#[derive(Debug, Default)]
pub(crate) struct TableLabels(Mutex<BTreeSet<Name>>);

impl TableLabels {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<Name>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `make` make the series of `table` under its label.
    pub(crate) fn label<T>(&self, table: &Name, make: impl FnOnce(&str) -> T) -> T {
        // Locked until they are made: a series of a table that has lost its label would never be removed.
        let mut tables = self.lock();
        if tables.len() < MAX_TABLES {
            tables.insert(table.clone());
        }
        make(if tables.contains(table) { table.as_str() } else { OTHER })
    }

    /// Frees the labels of tables of which `map` has no version, and has `remove` remove their series. (What a
    /// lookup by an older map still counts for one of them goes with the next map.)
    pub(crate) fn follow(&self, map: &ClusterMap, mut remove: impl FnMut(&str)) {
        let there: HashSet<&Name> = map.layouts.iter().map(|l| &l.schema.table_version.table).collect();
        self.lock().retain(|table| {
            let stays = there.contains(table);
            if !stays {
                remove(table.as_str());
            }
            stays
        });
    }
}
