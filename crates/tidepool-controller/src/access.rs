//! Which role a call needs: all calls of the controller's services, in one table.

use tidepool_runtime::auth::{
    Role::{Admin, Node, Ranker, Read, Tenant, Write},
    Table,
};

/// A call that is not here is open to nobody.
pub(crate) const CALLS: Table = &[
    ("/tidepool.v1.Control/NodeSession", &[Node]),
    ("/tidepool.v1.Control/RankerSession", &[Ranker]),
    // Clients route by the map.
    ("/tidepool.v1.Control/WatchMap", &[Read, Tenant]),
    ("/tidepool.v1.Control/PublishRelease", &[Write]),
    ("/tidepool.v1.Control/PromoteRelease", &[Write]),
    ("/tidepool.v1.Control/GetRelease", &[Read]),
    ("/tidepool.v1.Control/ServeTable", &[Write]),
    ("/tidepool.v1.Control/DrainNode", &[Admin]),
    ("/tidepool.v1.Control/SetQuota", &[Admin]),
    ("/tidepool.v1.Control/RemoveQuota", &[Admin]),
    ("/tidepool.v1.Control/ListQuotas", &[Read]),
    ("/tidepool.v1.Control/GetCluster", &[Read]),
    // Whoever has any business here must find the one that leads.
    ("/tidepool.v1.Controllers/GetStanding", &[Read, Tenant, Node, Ranker]),
    ("/tidepool.v1.Controllers/Rebuild", &[Admin]),
    ("/tidepool.v1.Controllers/NoteCollection", &[Write]),
    ("/tidepool.v1.Releases/SetShares", &[Write]),
    ("/tidepool.v1.Releases/ShadowRelease", &[Write]),
    ("/tidepool.v1.Releases/Rollback", &[Write]),
    ("/tidepool.v1.Releases/RetireRelease", &[Write]),
    ("/tidepool.v1.Releases/PinRelease", &[Write]),
    ("/tidepool.v1.Releases/GetTraffic", &[Read]),
    ("/tidepool.v1.Releases/GetEvents", &[Read]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_in_the_table() {
        let mut calls = Vec::new();
        for proto in [
            include_str!("../../../proto/tidepool/v1/control.proto"),
            include_str!("../../../proto/tidepool/v1/controllers.proto"),
            include_str!("../../../proto/tidepool/v1/releases.proto"),
        ] {
            let mut service = "";
            for line in proto.lines().map(str::trim) {
                if let Some((name, _)) = line.strip_prefix("service ").and_then(|rest| rest.split_once(' ')) {
                    service = name;
                } else if let Some((call, _)) =
                    line.strip_prefix("rpc ").and_then(|rest| rest.split_once('('))
                {
                    calls.push(format!("/tidepool.v1.{service}/{call}"));
                }
            }
        }
        let table: Vec<_> = CALLS.iter().map(|(path, _)| *path).collect();
        assert_eq!(table, calls, "the table and the proto files, in the same order");
        assert!(CALLS.iter().all(|(_, needs)| !needs.is_empty()), "none is open to everyone");
    }
}
