//! Keying: which ids a table may have, and in which partition an id lives.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{PartitionCount, PartitionIndex},
    mix::mix64,
};

/// Which ids a table may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keying {
    /// The ids 0..N, every one of them present; no index and no keys are stored.
    Dense,
    /// Any `u64`; a perfect hash finds the row and a fingerprint tells absent ids.
    Hashed,
}

/// Where an id lives within a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The partition.
    pub partition: PartitionIndex,
    /// What the partition is asked for: the row number (dense), or `mix64(id)` (hashed).
    pub key: u64,
}

impl Keying {
    /// Where `id` lives in a layout of `count` partitions: hashed `mix64(id) & (P-1)`, dense `id mod P`
    /// (row `id div P`). Ids that are not in the table have a place too: it is where they are missed.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "masked to at most 16 bits")]
    pub const fn locate(self, id: u64, count: PartitionCount) -> Location {
        let mask = count.get() as u64 - 1;
        let (spread, key) = match self {
            Self::Hashed => {
                let mixed = mix64(id);
                (mixed, mixed)
            }
            Self::Dense => (id, id >> count.get().trailing_zeros()),
        };
        Location { partition: PartitionIndex((spread & mask) as u32), key }
    }

    /// How many rows partition `partition` of a dense table of `rows` rows has.
    #[must_use]
    pub const fn dense_rows(rows: u64, partition: PartitionIndex, count: PartitionCount) -> u64 {
        let first = partition.0 as u64;
        if rows <= first { 0 } else { (rows - first).div_ceil(count.get() as u64) }
    }

    /// The number that stands for the keying in files and on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Dense => 1,
            Self::Hashed => 2,
        }
    }

    /// The keying whose [`code`](Self::code) this is.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Dense),
            2 => Some(Self::Hashed),
            _ => None,
        }
    }

    /// The word used in manifests and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Hashed => "hashed",
        }
    }
}

impl fmt::Display for Keying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for Keying {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "dense" => Ok(Self::Dense),
            "hashed" => Ok(Self::Hashed),
            _ => Err(format!("unknown keying {text:?}: dense or hashed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn dense_ids_fill_their_partitions_exactly(rows in 0u64..2000, log in 0u32..6) {
            let count = PartitionCount::new(1 << log).unwrap();
            let mut seen = vec![0u64; 1 << log];
            for id in 0..rows {
                let at = Keying::Dense.locate(id, count);
                prop_assert_eq!(at.key, seen[at.partition.0 as usize], "row numbers are consecutive");
                prop_assert_eq!(at.key * u64::from(count.get()) + u64::from(at.partition.0), id);
                seen[at.partition.0 as usize] += 1;
            }
            for p in count.indexes() {
                prop_assert_eq!(Keying::dense_rows(rows, p, count), seen[p.0 as usize]);
            }
        }

        #[test]
        fn a_split_keeps_each_id_within_its_old_partition(id in any::<u64>()) {
            let (four, eight) = (PartitionCount::new(4).unwrap(), PartitionCount::new(8).unwrap());
            for keying in [Keying::Dense, Keying::Hashed] {
                prop_assert_eq!(
                    keying.locate(id, eight).partition.0 % 4,
                    keying.locate(id, four).partition.0
                );
            }
        }
    }
}
