//! The rows that a loaded release has on the GPU, as its lookups see them.

use std::sync::Arc;

use tidepool_client::{Held, Holding};
use tidepool_dense::resident::{Inventory, Place, ResidentSet};
use tidepool_types::{TableSchema, TableVersion};

use crate::device::LetGo;

/// The resident set of a release, which whoever runs batches with it holds until they are done.
#[derive(Debug)]
pub(crate) struct Residence {
    inventory: Arc<Inventory>,
    /// The tables of the release, among them those of the set.
    tables: Box<[TableSchema]>,
    /// None in tests.
    set: Option<LetGo<Arc<ResidentSet>>>,
}

impl Residence {
    pub(crate) fn new(set: ResidentSet, tables: &[TableSchema]) -> Self {
        let inventory = set.inventory().clone();
        Self { inventory, tables: tables.into(), set: Some(LetGo::new(Arc::new(set))) }
    }

    /// One without a device, of which a lookup sees the same.
    #[cfg(test)]
    pub(crate) fn of(inventory: Inventory, tables: &[TableSchema]) -> Self {
        Self { inventory: Arc::new(inventory), tables: tables.into(), set: None }
    }

    /// What is resident.
    pub(crate) fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The ids that are resident of a table, the most wanted first; `None`: it is not in the set, or it is there whole, for
    /// whatever reason any of its ids is wanted. It looks at all keys.
    pub(crate) fn wanted_ids(&self, table: &TableVersion) -> Option<Vec<u64>> {
        let number = self.inventory.number(table)?;
        (!self.inventory.is_whole(number)).then(|| self.inventory.ids(number))
    }

    /// What [`wanted_ids`](Self::wanted_ids) are of whatever version of the table `schema`, where the same ids mean the same there: those of
    /// composite tables are rows, and other seeds, or another number of rows, give an id others.
    pub(crate) fn wanted_in_another_version(&self, schema: &TableSchema) -> Option<Vec<u64>> {
        let means_the_same = |of: &TableSchema| {
            let is_table = of.table_version.table == schema.table_version.table;
            let is_plain = of.composite.is_none() && schema.composite.is_none();
            is_table && (is_plain || (of.composite == schema.composite && of.rows == schema.rows))
        };
        let mut versions = self.tables.iter().filter(|of| means_the_same(of));
        versions.find_map(|of| self.wanted_ids(&of.table_version))
    }

    /// The rows on the device, which a batch names.
    pub(crate) fn set(&self) -> Option<&Arc<ResidentSet>> {
        self.set.as_ref()?.get()
    }
}

impl Held for Residence {
    fn hold(&self, table: &TableVersion, ids: &[u64], into: &mut Vec<Holding>) -> bool {
        let Some(number) = self.inventory.number(table) else { return false };
        let mut places = Vec::with_capacity(ids.len());
        self.inventory.place(number, ids, &mut places);
        into.extend(places.into_iter().map(|place| match place {
            Place::Resident => Holding::Held,
            Place::Fetch => Holding::Ask,
            Place::Missing => Holding::Missing,
        }));
        true
    }
}

#[cfg(test)]
mod tests {
    use tidepool_dense::resident::{ResidentOptions, Segment};
    use tidepool_types::{Name, RowFormat};

    use super::*;

    fn version(table: &str) -> TableVersion {
        let name = |text: &str| Name::new(text).unwrap();
        TableVersion { table: name(table), version: name("v1") }
    }

    #[test]
    fn a_lookup_is_told_what_is_held_what_is_nowhere_and_what_to_ask_for() {
        let (whole, hot) = (version("whole"), version("hot"));
        let ids = [4, 2];
        let segment = |table, whole| Segment {
            table,
            format: RowFormat::F32,
            dim: 2,
            whole,
            ids: &ids,
            rows: &[0; 16],
        };
        let options = ResidentOptions::new(1 << 20, 9);
        let inventory = Inventory::new(&[segment(&whole, true), segment(&hot, false)], &options).unwrap();
        let residence = Residence::of(inventory, &[]);
        assert_eq!(
            [&whole, &hot, &version("other")].map(|table| residence.wanted_ids(table)),
            [None, Some(vec![4, 2]), None]
        );
        let mut holdings = vec![Holding::Ask];
        assert!(!residence.hold(&version("other"), &[4], &mut holdings));
        assert!(residence.hold(&whole, &[4, 3], &mut holdings));
        assert!(residence.hold(&hot, &[3, 2, 4], &mut holdings));
        use Holding::{Ask, Held, Missing};
        assert_eq!(holdings, [Ask, Held, Missing, Ask, Held, Held]);
        let hits: Vec<_> =
            residence.inventory().hits().iter().map(|hits| (hits.asked, hits.resident)).collect();
        assert_eq!(hits, [(2, 2), (3, 2)]);
    }
}
