//! What is asked in a drill of releases: a request is a function of the seed and its number, so that whoever checks
//! its answer need not have kept it.

use tidepool_proto::{pack::pack, v1};
use tidepool_types::{Keying, mix64};

use super::truth::{FEATURES, MODEL, Table};
use crate::{draw::Random, rows::id_of};

/// Candidates of a request.
pub(super) const CANDIDATES: usize = 20;

/// Makes requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requests {
    /// Rows of either table.
    pub(super) rows: u64,
    pub(super) seed: u64,
}

/// The ids of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    user: Vec<u64>,
    items: Vec<u64>,
}

impl Asked {
    /// Its ids of a table, bag after bag.
    pub(super) fn ids(&self, table: Table) -> &[u64] {
        match table {
            Table::Users => &self.user,
            Table::Items => &self.items,
        }
    }
}

impl Requests {
    /// The ids of request `number`.
    pub(super) fn asked(&self, number: u64) -> Asked {
        let mut random = Random::new(mix64(self.seed).wrapping_add(number));
        let mut draw = |ids: usize| {
            (0..ids).map(|_| id_of(Keying::Hashed, random.below(self.rows))).collect::<Vec<u64>>()
        };
        Asked { user: draw(Table::Users.bag()), items: draw(CANDIDATES * Table::Items.bag()) }
    }

    /// Request `number`, but for what it may take. Its routing key is its own, so that shares are met.
    pub(super) fn message(&self, number: u64) -> v1::RankRequest {
        let asked = self.asked(number);
        let feature = |table: Table| {
            let ids = asked.ids(table);
            let lengths = vec![table.bag() as u32; ids.len() / table.bag()];
            v1::Feature {
                name: FEATURES[table as usize].into(),
                ids: pack(ids),
                lengths: pack(&lengths),
                ..v1::Feature::default()
            }
        };
        v1::RankRequest {
            request_id: format!("drill-{number}"),
            model: MODEL.into(),
            candidates: CANDIDATES as u32,
            user: vec![feature(Table::Users)],
            candidate: vec![feature(Table::Items)],
            routing_key: format!("user-{number}"),
            ..v1::RankRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_depends_on_seed_and_number_alone() {
        let requests = Requests { rows: 1000, seed: 1 };
        assert_eq!(requests.asked(5), requests.asked(5));
        assert_eq!(requests.message(5), requests.message(5));
        assert_ne!(requests.asked(5), requests.asked(6));
        assert_ne!(requests.asked(5), Requests { seed: 2, ..requests }.asked(5));
        assert_eq!(requests.asked(5).ids(Table::Items).len(), CANDIDATES * Table::Items.bag());
    }
}
