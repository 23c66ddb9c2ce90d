//! Which role a call needs: all calls of a ranker, over gRPC and over HTTP, in one table each.

use tidepool_runtime::auth::{
    Role::{Admin, Read, Tenant, Write},
    Table,
};

/// A call that is not here is open to nobody.
pub(crate) const CALLS: Table = &[("/tidepool.v1.Ranker/Rank", &[Tenant])];

/// The routes that a ranker adds to those of every role. Traces and hot ids tell of all tenants.
pub(crate) const ROUTES: Table = &[
    ("/v1/rank", &[Tenant]),
    ("/v1/trace", &[Admin]),
    ("/v1/hot-ids", &[Admin]),
    ("/v1/admin/rollback", &[Write]),
    // What became of requests, of all tenants: no more of them than some ids that were not found.
    ("/v1/requests", &[Read]),
    // What a request must say, for whoever may make one, and for those who look after them.
    ("/v1/models", &[Tenant, Read]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_and_every_route_is_in_a_table() {
        let proto = include_str!("../../../proto/tidepool/v1/rank.proto");
        let calls = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split_once('('));
        let calls: Vec<_> = calls.map(|(name, _)| format!("/tidepool.v1.Ranker/{name}")).collect();
        let paths = |table: Table| table.iter().map(|(path, _)| *path).collect::<Vec<_>>();
        assert_eq!(paths(CALLS), calls, "the table and rank.proto, in the same order");
        let sources = [
            include_str!("http.rs"),
            include_str!("trace.rs"),
            include_str!("hot_ids.rs"),
            include_str!("admin.rs"),
            include_str!("recent/http.rs"),
            include_str!("models.rs"),
        ]
        .concat();
        let routes: Vec<_> =
            sources.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(paths(ROUTES), routes, "the table and the routers, in the same order");
        assert!(CALLS.iter().chain(ROUTES).all(|(_, needs)| !needs.is_empty()), "none is open to everyone");
    }
}
