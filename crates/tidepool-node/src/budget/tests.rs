//! What fits and what does not, by the numbers.

use std::{path::PathBuf, sync::Arc};

use tidepool_types::{Keying, Name, PartitionCount, PartitionIndex, RowFormat, TableSchema, TableVersion};

use super::*;

fn wanted() -> Wanted {
    let name = |text| Name::new(text).unwrap();
    let schema = TableSchema {
        table_version: TableVersion { table: name("pin"), version: name("v2") },
        dim: 8,
        format: RowFormat::Int4,
        keying: Keying::Dense,
        partitions: PartitionCount::ONE,
        rows: 10,
        default_row: Vec::new(),
        composite: None,
    };
    Wanted { schema: Arc::new(schema), partition: PartitionIndex(0), path: PathBuf::from("/v2/part") }
}

fn tally(residency: Residency, budget: u64, held: HeldMemory) -> Tally {
    Tally {
        capacity_bytes: None,
        residency,
        memory: Some(MemoryBudget { bytes: budget, source: "memory_capacity_bytes".into() }),
        lockable: None,
        held,
        files_bytes: 0,
        disk: None,
        coming: 0,
        beside: 0,
    }
}

#[test]
fn what_is_served_and_what_comes_share_the_budget() {
    let held = HeldMemory { mapped: 4000, ..HeldMemory::default() };
    for (residency, most) in [(Residency::Mapped, 6000), (Residency::Auto, 6000), (Residency::Locked, 6000)] {
        let mut tally = tally(residency, 10_000, held);
        tally.take(&wanted(), most - 1000, 0).unwrap();
        assert!(tally.take(&wanted(), 1001, 0).is_err(), "{residency}: refused, and nothing is taken");
        tally.take(&wanted(), 1000, 0).unwrap();
    }
    // One at a time lies in memory twice, so the largest counts once more.
    let mut copied = tally(Residency::Copied, 10_000, held);
    copied.take(&wanted(), 2000, 0).unwrap();
    assert!(copied.take(&wanted(), 2001, 0).is_err());
    copied.take(&wanted(), 2000, 0).unwrap();
    assert!(copied.take(&wanted(), 1, 0).is_err());
}

#[test]
fn a_refusal_has_every_number_and_says_what_to_do() {
    let held = HeldMemory { locked: 11, copied: 22, mapped: 4000 };
    let mut tally = tally(Residency::Copied, 10_000, held);
    tally.take(&wanted(), 500, 0).unwrap();
    let refused = tally.take(&wanted(), 7123, 0).unwrap_err().to_string();
    let parts = [
        "/v2/part does not fit in memory",
        "needs 7123 bytes (residency copied)",
        "of 10000 bytes (memory_capacity_bytes)",
        "11 locked, 22 copied, 4000 mapped",
        "500 for others",
        "7123 for a copy",
        "retire a release",
    ];
    for part in parts {
        assert!(refused.contains(part), "{part}: {refused}");
    }
}

#[test]
fn a_limit_on_locks_is_kept_beside_the_budget() {
    let held = HeldMemory { locked: 3000, ..HeldMemory::default() };
    let mut tally = tally(Residency::Locked, 100_000, held);
    tally.lockable = Some(8192);
    tally.take(&wanted(), 5000, 0).unwrap();
    let refused = tally.take(&wanted(), 200, 0).unwrap_err().to_string();
    for part in ["needs 200 bytes", "8000 are locked", "8192 (RLIMIT_MEMLOCK)", "LimitMEMLOCK"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
}

#[test]
fn a_budget_is_what_was_given_or_what_there_is_less_a_reserve() {
    let budgets = |memory_capacity_bytes| Budgets {
        capacity_bytes: None,
        memory_capacity_bytes,
        residency: Residency::Mapped,
    };
    let given = budgets(Some(5)).memory().unwrap();
    assert_eq!((given.bytes, given.source.as_str()), (5, "memory_capacity_bytes"));
    let limit = memory_limit().unwrap();
    let found = budgets(None).memory().unwrap();
    assert!(found.bytes < limit.bytes && found.bytes >= limit.bytes / 4 * 3, "{found:?} of {limit:?}");
    for part in [limit.said_by, limit.bytes.to_string(), (limit.bytes - found.bytes).to_string()] {
        assert!(found.source.contains(&part), "{found:?}");
    }
}
