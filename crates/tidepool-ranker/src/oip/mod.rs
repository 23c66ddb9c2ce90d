//! The Open Inference Protocol, version 2, over gRPC (`grpc.rs`) and REST (`rest.rs`): what clients of Triton and
//! KServe speak. `docs/inference-protocol.md` is written for whoever calls it.
//!
//! A version is a release; a tensor is a feature of the request, or the lengths or weights of a bag; the rows of an
//! output stand in the order of the request. What comes is brought into the ranker's own message and goes the way of
//! a native `Rank` from there, so both are checked, batched, counted and recorded as one.
//!
//! **Invariant:** what is asked for and not served is refused by name, never passed over; nothing here knows how a
//! release is ranked.

mod answer;
mod body;
mod contract;
mod convert;
mod grpc;
mod inflate;
mod metadata;
mod parameters;
mod repository;
mod rest;
mod tensors;

use std::time::Instant;

use axum::Router;
use tidepool_client::TraceParent;
use tidepool_proto::{
    inference::grpc_inference_service_server::GrpcInferenceServiceServer as GrpcServer, v1,
};
use tidepool_runtime::{auth::Caller, health::Health};
use tidepool_types::{ModelSpec, Name};

pub(crate) use self::repository::{MAX_RETRIES, Retries, Retry, outcome};
use self::{answer::Inferred, contract::Contract, convert::convert, parameters::Parameters, tensors::Tensor};
use crate::{
    RankError,
    admin::Desk,
    by_contract::by_contract,
    service::{RankService, Unanswered},
};

/// What the protocol's paths begin with.
pub(crate) const PREFIX: &str = "/v2";

/// What answers the protocol.
#[derive(Clone)]
pub(crate) struct Inference {
    service: RankService,
    health: Health,
    desk: Desk,
    retries: Retries,
}

/// Why a request could not be read, and what is known of it all the same.
type NotRead = (RankError, Box<v1::RankRequest>);

/// A request for an inference, its elements raw.
#[derive(Clone, Debug, PartialEq)]
struct Infer {
    model: String,
    /// The release; empty: the one that has the bucket.
    version: String,
    id: String,
    parameters: Parameters,
    inputs: Vec<Tensor>,
    /// None: every output.
    outputs: Vec<String>,
}

impl Inference {
    pub(crate) fn new(service: RankService, health: Health, desk: Desk, retries: Retries) -> Self {
        Self { service, health, desk, retries }
    }

    /// The gRPC service.
    pub(crate) fn server(&self, max_request_bytes: usize) -> GrpcServer<Self> {
        GrpcServer::new(self.clone())
            .max_decoding_message_size(max_request_bytes)
            .max_encoding_message_size(usize::MAX)
    }

    /// The REST routes: those that are work, and those that answer to the end.
    pub(crate) fn routes(&self, max_request_bytes: usize) -> (Router, Router) {
        (rest::routes(self.clone(), max_request_bytes), rest::health_routes(self.clone()))
    }

    /// Answers a request for an inference, if it could be read.
    async fn infer(
        &self,
        caller: &Caller,
        asked: Result<Infer, NotRead>,
        traceparent: Option<TraceParent>,
        arrived: Instant,
    ) -> Result<Inferred, Unanswered> {
        let converted = asked.and_then(|infer| {
            let release = (!infer.version.is_empty()).then_some(infer.version.as_str());
            let (releases, key) = (&self.service.ranker.releases, &infer.parameters.routing_key);
            let read = |spec: &ModelSpec| convert(&infer, &Contract::of(spec));
            let made = check_names(&infer.model, &infer.version)
                .and_then(|()| by_contract(releases, &infer.model, release, key, read));
            made.map_err(|error| (error, Box::new(infer.named())))
        });
        let (chosen, message, answering) =
            converted.map_err(|(error, asked)| self.service.not_read(error, *asked, arrived))?;
        let response = self.service.answer(caller, Some(chosen), message, traceparent, arrived).await?;
        let request_id = response.request_id.clone();
        answering.answer(response).map_err(|error| Unanswered::new(error, &request_id))
    }
}

/// Refuses names that are longer than any: the others are looked up, and repeated, as they are.
fn check_names(model: &str, version: &str) -> Result<(), RankError> {
    for (what, name) in [("model", model), ("version", version)] {
        if name.len() > Name::MAX_BYTES {
            let problem = format!("a {what} of {} bytes: no name is so long", name.len());
            return Err(RankError::Invalid(problem));
        }
    }
    Ok(())
}

impl Infer {
    /// Who asks for what: what a record says of a request that is no ranking.
    fn named(&self) -> v1::RankRequest {
        v1::RankRequest {
            request_id: self.id.clone(),
            tenant: self.parameters.tenant.clone(),
            model: self.model.clone(),
            release: self.version.clone(),
            ..v1::RankRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_whole_or_refused() {
        let longest = "n".repeat(Name::MAX_BYTES);
        assert!(check_names(&longest, &longest).is_ok());
        let problem = |model: &str, version: &str| check_names(model, version).unwrap_err().to_string();
        let longer = format!("{longest}n");
        assert_eq!(problem(&longer, ""), "a model of 101 bytes: no name is so long");
        assert_eq!(problem(&longest, &longer), "a version of 101 bytes: no name is so long");
    }
}
