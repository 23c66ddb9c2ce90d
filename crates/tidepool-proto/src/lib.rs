//! The wire: gRPC generated from `proto/`, and its conversions to the types of the other crates.
//!
//! **Invariant:** no logic. What comes in is either converted whole or refused with an error that names
//! the field; a defaulted field never slips through as a value. Decoding a message takes memory in
//! proportion to its bytes: how many fields it may have is bounded ([`MAX_FIELDS`]).
//!
//! Read first: [`v1`], [`status_of`], [`WireError`].

mod codec;
mod convert;
mod inference_codec;
pub mod pack;
mod status;
mod stream;
mod traffic;

pub use codec::{BoundedCodec, BoundedDecoder, MAX_FIELDS, ReservingEncoder, decode_bounded};
pub use convert::{WireError, node_to_wire, quota_rules, quota_tenant, quotas, release_state};
pub use inference_codec::{InferenceCodec, InferenceDecoder, MAX_NUMBERS};
pub use status::{
    CODE_HEADER, EPOCH_HEADER, LEADER_HEADER, REQUEST_ID_HEADER, code_of, code_of_failure, epoch_of,
    failure_of, leader_of, not_leader, refusal, status_of, with_request_id,
};
pub use stream::{StandIn, answer_stream};

/// Package `tidepool.v1`, generated.
#[expect(
    missing_docs,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated; proto/tidepool/v1 is its documentation"
)]
pub mod v1 {
    tonic::include_proto!("tidepool.v1");
}

/// Package `inference`, generated: the Open Inference Protocol.
#[expect(
    missing_docs,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated; proto/inference is its documentation"
)]
pub mod inference {
    tonic::include_proto!("inference");
}
