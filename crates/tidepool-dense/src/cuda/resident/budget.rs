//! Which rows fit into the memory that was set aside for them.

use tidepool_types::{RowFormat, TableVersion};

use super::KeyTable;

/// Rows of a table that are offered for residence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The table.
    pub table: TableVersion,
    /// How its rows are stored.
    pub format: RowFormat,
    /// Elements of a row.
    pub dim: u32,
    /// How many ids are offered, the most wanted first.
    pub ids: u64,
    /// Whether these are all ids of the table. It is resident whole or not at all, and an id that is not in it is
    /// missing without anybody being asked.
    pub whole: bool,
}

/// What became of an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fit {
    /// The table.
    pub table: TableVersion,
    /// Ids that were offered.
    pub offered: u64,
    /// Ids that are resident, the first of them.
    pub kept: u64,
    /// Bytes that they take, their part of the hash table included.
    pub bytes: u64,
}

/// How full the hash table is at most, unless said otherwise.
pub const LOAD: f64 = 0.6;

/// What a set takes beside its ids, at most: the slot that is always empty, and the ends of three allocations; and for
/// each table its entry in the head, and the end of its rows.
const FIXED_BYTES: u64 = 1024;
const TABLE_BYTES: u64 = 16 + 256;

/// Decides what of `offers` fits into `budget_bytes`, in their order: of a part of a table as many of the most wanted ids as
/// there is room for, of a whole one all or none. A later offer may still fit where an earlier one did not. The
/// set that is built of what is kept takes no more bytes of the device than the budget; while it takes the place of
/// another one, both are there.
#[must_use]
pub fn fit(offers: &[Offer], budget_bytes: u64, load: f64) -> Vec<Fit> {
    let mut left = budget_bytes.saturating_sub(fixed_bytes(offers.len()));
    let one = |offer: &Offer| {
        let per_id = bytes_per_id(offer.format, offer.dim, load);
        let room = left / per_id;
        let kept = if offer.ids <= room {
            offer.ids
        } else if offer.whole {
            0
        } else {
            room
        };
        left -= kept * per_id;
        Fit { table: offer.table.clone(), offered: offer.ids, kept, bytes: kept * per_id }
    };
    offers.iter().map(one).collect()
}

/// Bytes that a set of so many offers takes at most beside those of its ids: a budget of less holds nothing.
#[must_use]
pub fn fixed_bytes(offers: usize) -> u64 {
    FIXED_BYTES + TABLE_BYTES * offers as u64
}

/// Bytes of a row and of its part of a hash table of this load.
#[must_use]
pub fn bytes_per_id(format: RowFormat, dim: u32, load: f64) -> u64 {
    let slots_of_1000 = KeyTable::slots_for(1000, load) as u64;
    format.row_bytes(dim).next_multiple_of(4) as u64 + (16 * slots_of_1000).div_ceil(1000)
}

impl std::fmt::Display for Fit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { table, offered, kept, bytes } = self;
        write!(f, "{table}: {kept} of {offered} ids are resident, {bytes} bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(table: &str, ids: u64, whole: bool) -> Offer {
        let table = version(table);
        Offer { table, format: RowFormat::Int4, dim: 32, ids, whole }
    }

    fn version(table: &str) -> TableVersion {
        let name = |text: &str| tidepool_types::Name::new(text).unwrap();
        TableVersion { table: name(table), version: name("v1") }
    }

    #[test]
    fn what_fits_is_decided_in_order_and_told() {
        let per_id = bytes_per_id(RowFormat::Int4, 32, LOAD);
        assert_eq!(per_id, 20 + 27);
        let offers = [
            offer("small", 100, true),
            offer("large", 1000, true),
            offer("hot", 1000, false),
            offer("next", 5, false),
        ];
        let fixed = fixed_bytes(offers.len());
        let kept = |budget: u64| {
            fit(&offers, budget.saturating_add(fixed), LOAD).iter().map(|fit| fit.kept).collect::<Vec<_>>()
        };
        assert_eq!(fit(&offers, fixed, LOAD)[3].kept, 0);
        assert_eq!(kept(0), [0, 0, 0, 0]);
        assert_eq!(kept(99 * per_id), [0, 0, 99, 0]);
        assert_eq!(kept(600 * per_id + 46), [100, 0, 500, 0]);
        assert_eq!(kept(1103 * per_id), [100, 1000, 3, 0]);
        assert_eq!(kept(u64::MAX), [100, 1000, 1000, 5]);
        let fitted = fit(&offers, 600 * per_id + fixed, LOAD);
        assert_eq!(fitted[2].to_string(), "hot@v1: 500 of 1000 ids are resident, 23500 bytes");
        assert!(fitted.iter().map(|fit| fit.bytes).sum::<u64>() <= 600 * per_id);
    }
}
