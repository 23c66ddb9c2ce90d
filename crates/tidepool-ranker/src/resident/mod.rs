//! Rows that a release has on the GPU (docs/gpu-rows.md): tables that are small, whole, and of others the ids that are asked for
//! most. A release has one set of its own, since its table versions are its own: it is filled before the release serves, and
//! goes with it.
//!
//! What is to be there is chosen (`lists.rs`, `plan.rs`), fetched from nodes (`fetch.rs`) and built (`fill.rs`); lookups then leave
//! out what is held (`held.rs`). Nothing of this fails a release: what is not on the device is asked of nodes.

mod config;
mod fetch;
mod fill;
mod held;
mod lists;
mod plan;

use std::sync::Arc;

use serde_json::{Value, json};
use tidepool_dense::resident::Key;
use tidepool_types::TableVersion;

pub use self::config::{RawResident, ResidenceOptions};
pub(crate) use self::{fill::Filling, held::Residence, lists::merged};

/// Problems of lists that are kept; a folder may hold thousands of files that are none.
const LIST_PROBLEMS: usize = 8;

/// What a release has on the device, and what became of what it was to have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filled {
    pub(crate) residence: Option<Arc<Residence>>,
    /// What was offered of each table.
    tables: Vec<FilledTable>,
    /// Why something is not there.
    pub(crate) problems: Vec<String>,
}

/// What was offered of a table.
#[derive(Clone, Debug)]
struct FilledTable {
    table: TableVersion,
    /// How many ids there were to choose from.
    offered: u64,
    /// Ids that were asked for, and are in no row of the table.
    absent: u64,
}

/// A table of a release, and how much of it the device has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableUse {
    pub(crate) table: TableVersion,
    pub(crate) whole: bool,
    /// How many ids there were to choose from.
    pub(crate) offered: u64,
    /// Ids that were asked for, and are in no row of the table.
    pub(crate) absent: u64,
    /// Ids that are on the device.
    pub(crate) kept: u64,
    pub(crate) bytes: u64,
    /// Ids that lookups asked for, each once per lookup.
    pub(crate) asked: u64,
    /// Those of them that no node had to be asked for.
    pub(crate) resident: u64,
}

impl Filled {
    /// Takes out the ids whose rows are on the device. Of many ids it takes a while.
    pub(crate) fn leave_out_resident(&self, table: &TableVersion, ids: &mut Vec<u64>) {
        let Some(inventory) = self.residence.as_ref().map(|residence| residence.inventory()) else { return };
        let Some(table) = inventory.number(table) else { return };
        ids.retain(|&id| inventory.keys().find(Key { table, id }).is_none());
    }

    /// How much of each table the device has, and how often that was of use.
    pub(crate) fn tables(&self) -> Vec<TableUse> {
        let inventory = self.residence.as_ref().map(|residence| residence.inventory());
        let hits = inventory.map(|inventory| inventory.hits()).unwrap_or_default();
        let one = |of: &FilledTable| {
            let FilledTable { table, offered, absent } = of.clone();
            let number = inventory.and_then(|inventory| inventory.number(&table));
            let hits = number.and_then(|number| hits.get(number as usize));
            let fit = inventory.and_then(|inventory| inventory.told().iter().find(|fit| fit.table == table));
            TableUse {
                whole: number.is_some_and(|number| inventory.is_some_and(|all| all.is_whole(number))),
                kept: fit.map_or(0, |fit| fit.kept),
                bytes: fit.map_or(0, |fit| fit.bytes),
                asked: hits.map_or(0, |hits| hits.asked),
                resident: hits.map_or(0, |hits| hits.resident),
                table,
                offered,
                absent,
            }
        };
        self.tables.iter().map(one).collect()
    }

    /// Bytes of the device.
    pub(crate) fn bytes(&self) -> u64 {
        let set = self.residence.as_ref().and_then(|residence| residence.set());
        set.map_or(0, |set| set.bytes())
    }

    /// What `/status` shows.
    pub(crate) fn document(&self) -> Value {
        let line = |of: TableUse| {
            json!({
                "table": of.table,
                "whole": of.whole,
                "offered": of.offered,
                "absent": of.absent,
                "kept": of.kept,
                "bytes": of.bytes,
                "asked": of.asked,
                "resident": of.resident,
                "hit_rate": (of.asked > 0).then(|| of.resident as f64 / of.asked as f64),
            })
        };
        json!({
            "bytes": self.bytes(),
            "tables": self.tables().into_iter().map(line).collect::<Vec<_>>(),
            "problems": self.problems,
        })
    }

    /// Takes over what was wrong with lists: the first of it, and how much more there is. What else keeps rows from being there is
    /// never left out for it.
    fn list_problems(&mut self, mut problems: Vec<String>) {
        let more = problems.len().saturating_sub(LIST_PROBLEMS);
        problems.truncate(LIST_PROBLEMS);
        self.problems.extend(problems);
        if more > 0 {
            self.problems.push(format!("lists of hot ids: {more} more problems"));
        }
    }
}

#[cfg(test)]
mod tests {
    use tidepool_client::{Held, Holding};
    use tidepool_dense::resident::{Inventory, ResidentOptions, Segment};
    use tidepool_types::{Name, RowFormat};

    use super::*;

    #[test]
    fn what_is_resident_is_shown_table_by_table() {
        let name = |text: &str| Name::new(text).unwrap();
        let [items, users] = ["items", "users"].map(|t| TableVersion { table: name(t), version: name("v1") });
        let (format, dim) = (RowFormat::F32, 1);
        let segment = Segment { table: &items, format, dim, whole: false, ids: &[7, 9], rows: &[0; 8] };
        let inventory = Inventory::new(&[segment], &ResidentOptions::new(1 << 20, 1)).unwrap();
        let residence = Residence::of(inventory, &[]);
        residence.hold(&items, &[7, 8, 9, 10], &mut Vec::<Holding>::new());
        let of = |table: &TableVersion, offered| FilledTable { table: table.clone(), offered, absent: 3 };
        let mut filled = Filled {
            residence: Some(Arc::new(residence)),
            tables: vec![of(&items, 100), of(&users, 5)],
            problems: Vec::new(),
        };
        let left = |filled: &Filled, table| {
            let mut ids = vec![6, 7, 8, 9];
            filled.leave_out_resident(table, &mut ids);
            ids
        };
        assert_eq!((left(&filled, &items), left(&filled, &users)), (vec![6, 8], vec![6, 7, 8, 9]));
        assert_eq!(left(&Filled::default(), &items).len(), 4);
        filled.list_problems((0..100).map(|n| n.to_string()).collect());
        let document = filled.document();
        let expected = json!({
            "table": items, "whole": false, "offered": 100, "absent": 3, "kept": 2, "bytes": 62,
            "asked": 4, "resident": 2, "hit_rate": 0.5,
        });
        assert_eq!(document["tables"][0], expected);
        assert_eq!(
            (&document["tables"][1]["kept"], &document["tables"][1]["hit_rate"]),
            (&json!(0), &Value::Null)
        );
        let problems = document["problems"].as_array().unwrap();
        assert_eq!((problems.len(), &problems[7]), (LIST_PROBLEMS + 1, &json!("7")));
        assert!(problems[8].as_str().unwrap().contains("92 more"), "{problems:?}");
    }
}
