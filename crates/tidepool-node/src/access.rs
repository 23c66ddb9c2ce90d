//! Which role a call needs: all calls of the Embedding service, in one table.

use tidepool_runtime::auth::{Role::Tenant, Table};

/// A call that is not here is open to nobody.
pub(crate) const CALLS: Table =
    &[("/tidepool.v1.Embedding/Lookup", &[Tenant]), ("/tidepool.v1.Embedding/LookupStream", &[Tenant])];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_in_the_table() {
        let proto = include_str!("../../../proto/tidepool/v1/lookup.proto");
        let calls = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split_once('('));
        let calls: Vec<_> = calls.map(|(name, _)| format!("/tidepool.v1.Embedding/{name}")).collect();
        let table: Vec<_> = CALLS.iter().map(|(path, _)| *path).collect();
        assert_eq!(table, calls, "the table and lookup.proto, in the same order");
        assert!(CALLS.iter().all(|(_, needs)| !needs.is_empty()), "none is open to everyone");
    }
}
