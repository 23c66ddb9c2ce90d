//! Which role a call needs: all calls of a ranker, over gRPC and over HTTP, in one table each.

use tidepool_runtime::auth::{
    Role::{Admin, Read, Tenant, Write},
    Table,
};

/// A call that is not here is open to nobody.
pub(crate) const CALLS: Table = &[
    ("/tidepool.v1.Ranker/Rank", &[Tenant]),
    // As on every role's HTTP port, whether it is alive and ready is no secret.
    ("/inference.GRPCInferenceService/ServerLive", &[]),
    ("/inference.GRPCInferenceService/ServerReady", &[]),
    ("/inference.GRPCInferenceService/ModelReady", &[Tenant, Read]),
    ("/inference.GRPCInferenceService/ServerMetadata", &[Tenant, Read]),
    ("/inference.GRPCInferenceService/ModelMetadata", &[Tenant, Read]),
    ("/inference.GRPCInferenceService/ModelInfer", &[Tenant]),
    ("/inference.GRPCInferenceService/RepositoryIndex", &[Tenant, Read]),
    ("/inference.GRPCInferenceService/RepositoryModelLoad", &[Write]),
    ("/inference.GRPCInferenceService/RepositoryModelUnload", &[Write]),
];

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
    ("/v2/health/live", &[]),
    ("/v2/health/ready", &[]),
    ("/v2", &[Tenant, Read]),
    ("/v2/models/{model}", &[Tenant, Read]),
    ("/v2/models/{model}/ready", &[Tenant, Read]),
    ("/v2/models/{model}/infer", &[Tenant]),
    ("/v2/models/{model}/versions/{version}", &[Tenant, Read]),
    ("/v2/models/{model}/versions/{version}/ready", &[Tenant, Read]),
    ("/v2/models/{model}/versions/{version}/infer", &[Tenant]),
    ("/v2/repository/index", &[Tenant, Read]),
    ("/v2/repository/models/{model}/load", &[Write]),
    ("/v2/repository/models/{model}/unload", &[Write]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_and_every_route_is_in_a_table() {
        let calls_of = |proto: &str, service: &str| {
            let calls = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split_once('('));
            calls.map(|(name, _)| format!("/{service}/{name}")).collect::<Vec<_>>()
        };
        let calls = [
            calls_of(include_str!("../../../proto/tidepool/v1/rank.proto"), "tidepool.v1.Ranker"),
            calls_of(
                include_str!("../../../proto/inference/service.proto"),
                "inference.GRPCInferenceService",
            ),
        ]
        .concat();
        let paths = |table: Table| table.iter().map(|(path, _)| *path).collect::<Vec<_>>();
        assert_eq!(paths(CALLS), calls, "the table and the proto files, in the same order");
        let sources = [
            include_str!("http.rs"),
            include_str!("trace.rs"),
            include_str!("hot_ids.rs"),
            include_str!("admin.rs"),
            include_str!("recent/http.rs"),
            include_str!("models.rs"),
            include_str!("oip/rest.rs"),
        ]
        .concat();
        let routes: Vec<_> =
            sources.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(paths(ROUTES), routes, "the table and the routers, in the same order");
        let open = CALLS.iter().chain(ROUTES).filter(|(_, needs)| needs.is_empty());
        let open: Vec<_> = open.map(|(call, _)| *call).collect();
        let health = [
            "/inference.GRPCInferenceService/ServerLive",
            "/inference.GRPCInferenceService/ServerReady",
            "/v2/health/live",
            "/v2/health/ready",
        ];
        assert_eq!(open, health, "nothing else is open to everyone");
    }
}
