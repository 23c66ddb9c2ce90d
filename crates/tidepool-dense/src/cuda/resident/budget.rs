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
    /// How many ids are offered, the most wanted first; their places are their ranks.
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

/// Decides what of `offers` fits into `budget_bytes`. Whole tables come first, in their order, each whole or not at all: a
/// later one may still fit where an earlier one did not. What is left the parts of tables share by rank: the most wanted id of
/// each, then the second of each, and so on, as many as there is room for, so that none starves the others and a short list is
/// kept whole before a long one goes on. The set that is built of what is kept takes no more bytes of the device than the
/// budget; while it takes the place of another one, both are there.
#[must_use]
pub fn fit(offers: &[Offer], budget_bytes: u64, load: f64) -> Vec<Fit> {
    let mut left = budget_bytes.saturating_sub(fixed_bytes(offers.len()));
    let per_id: Vec<u64> = offers.iter().map(|o| bytes_per_id(o.format, o.dim, load)).collect();
    let mut kept = vec![0; offers.len()];
    for (at, offer) in offers.iter().enumerate().filter(|(_, offer)| offer.whole) {
        if offer.ids <= left / per_id[at] {
            kept[at] = offer.ids;
            left -= offer.ids * per_id[at];
        }
    }
    // The shortest first: when it is at its end, the others go on without it.
    let mut parts: Vec<usize> = (0..offers.len()).filter(|at| !offers[*at].whole).collect();
    parts.sort_by_key(|at| offers[*at].ids);
    let mut bytes_of_a_rank: u64 = parts.iter().map(|at| per_id[*at]).sum();
    let mut rank = 0;
    for at in parts {
        let ranks = (left / bytes_of_a_rank).min(offers[at].ids - rank);
        rank += ranks;
        left -= ranks * bytes_of_a_rank;
        bytes_of_a_rank -= per_id[at];
        kept[at] = rank;
    }
    let one = |((offer, kept), per_id): ((&Offer, u64), u64)| {
        let Offer { table, ids, .. } = offer;
        Fit { table: table.clone(), offered: *ids, kept, bytes: kept * per_id }
    };
    offers.iter().zip(kept).zip(per_id).map(one).collect()
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
        assert_eq!(kept(99 * per_id), [0, 0, 94, 5]);
        assert_eq!(kept(600 * per_id + 46), [100, 0, 495, 5]);
        assert_eq!(kept(1103 * per_id), [100, 1000, 2, 1]);
        assert_eq!(kept(u64::MAX), [100, 1000, 1000, 5]);
        let fitted = fit(&offers, 600 * per_id + fixed, LOAD);
        assert_eq!(fitted[2].to_string(), "hot@v1: 495 of 1000 ids are resident, 23265 bytes");
        assert!(fitted.iter().map(|fit| fit.bytes).sum::<u64>() <= 600 * per_id);
    }
    #[test]
    fn parts_share_what_is_left_by_rank() {
        let wide = Offer { dim: 128, ..offer("wide", 1000, false) };
        let offers = [offer("long", 5000, false), wide, offer("short", 10, false)];
        let per_id: Vec<_> = offers.iter().map(|o| bytes_per_id(o.format, o.dim, LOAD)).collect();
        let all: u64 = per_id.iter().sum();
        let kept = |budget: u64| {
            let fitted = fit(&offers, budget + fixed_bytes(3), LOAD);
            assert!(fitted.iter().map(|fit| fit.bytes).sum::<u64>() <= budget);
            fitted.iter().map(|fit| fit.kept).collect::<Vec<_>>()
        };
        assert_eq!(kept(7 * all), [7, 7, 7]);
        assert_eq!(kept(10 * all), [10, 10, 10]);
        assert_eq!(kept(10 * all + 90 * (per_id[0] + per_id[1])), [100, 100, 10], "the short one is whole");
        assert_eq!(
            kept(10 * all + 90 * (per_id[0] + per_id[1]) + per_id[0]),
            [101, 100, 10],
            "no room is left"
        );
        assert_eq!(kept(1 << 40), [5000, 1000, 10]);
        // However much room there is: one goes on alone only when the next of the other would not fit.
        for budget in (0..40_000).step_by(97) {
            let kept = kept(budget);
            assert!(kept[2] == 10 || (kept[2] <= kept[1] && kept[1] <= kept[0]), "{kept:?}");
            assert!(kept[0].abs_diff(kept[1]) * per_id[0] < per_id[0] + per_id[1], "{kept:?}");
        }
    }
}
