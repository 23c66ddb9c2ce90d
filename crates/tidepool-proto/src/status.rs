//! Error codes to and from gRPC statuses: the one place that knows both.

use tidepool_types::{Epoch, ErrorCode};
use tonic::{Code, Status, metadata::MetadataValue};

use crate::v1;

/// Metadata key that holds the error code's word.
pub const CODE_HEADER: &str = "tidepool-code";
/// Metadata key that holds `host:port` of the controller that leads, with `not_leader`, where it is known.
pub const LEADER_HEADER: &str = "tidepool-leader";
/// Metadata key that holds the answering node's epoch, with `not_served`.
pub const EPOCH_HEADER: &str = "tidepool-epoch";
/// Metadata key, and HTTP header, that holds the id by which `tidepool why` knows a ranking that was not answered.
pub const REQUEST_ID_HEADER: &str = "tidepool-request-id";

/// The gRPC status of an error.
#[must_use]
pub fn status_of(code: ErrorCode, message: impl Into<String>, epoch: Option<Epoch>) -> Status {
    let grpc = match code {
        ErrorCode::InvalidRequest => Code::InvalidArgument,
        ErrorCode::Unauthenticated => Code::Unauthenticated,
        ErrorCode::Forbidden => Code::PermissionDenied,
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::NotServed | ErrorCode::NotLeader | ErrorCode::Conflict => Code::FailedPrecondition,
        ErrorCode::Overloaded | ErrorCode::QuotaExceeded => Code::ResourceExhausted,
        ErrorCode::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorCode::Unavailable => Code::Unavailable,
        ErrorCode::Corrupt => Code::DataLoss,
        ErrorCode::Internal => Code::Internal,
    };
    let mut status = Status::new(grpc, message);
    status.metadata_mut().insert(CODE_HEADER, MetadataValue::from_static(code.as_str()));
    if let Some(epoch) = epoch {
        status.metadata_mut().insert(EPOCH_HEADER, MetadataValue::from(epoch.0));
    }
    status
}

/// The error code of a status: from its metadata, or, when something between us and the peer made the
/// status (a proxy, the transport), from the gRPC code.
#[must_use]
pub fn code_of(status: &Status) -> ErrorCode {
    let word = status.metadata().get(CODE_HEADER).and_then(|v| v.to_str().ok());
    if let Some(code) = word.and_then(ErrorCode::from_word) {
        return code;
    }
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => ErrorCode::InvalidRequest,
        Code::Unauthenticated => ErrorCode::Unauthenticated,
        Code::PermissionDenied => ErrorCode::Forbidden,
        Code::NotFound => ErrorCode::NotFound,
        Code::FailedPrecondition | Code::AlreadyExists => ErrorCode::Conflict,
        Code::ResourceExhausted => ErrorCode::Overloaded,
        Code::DeadlineExceeded => ErrorCode::DeadlineExceeded,
        Code::DataLoss => ErrorCode::Corrupt,
        // The transport says Unknown or Cancelled when the peer goes away in mid-call.
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Aborted => ErrorCode::Unavailable,
        _ => ErrorCode::Internal,
    }
}

/// The status of a call that its caller may not make; `known` is whether it is known who that is.
#[must_use]
pub fn refusal(known: bool, message: impl Into<String>) -> Status {
    status_of(if known { ErrorCode::Forbidden } else { ErrorCode::Unauthenticated }, message, None)
}

/// The status of a request that another controller must be asked, `leader` if it is known.
#[must_use]
pub fn not_leader(message: impl Into<String>, leader: Option<&str>) -> Status {
    let mut status = status_of(ErrorCode::NotLeader, message, None);
    if let Some(leader) = leader.and_then(|leader| leader.parse().ok()) {
        status.metadata_mut().insert(LEADER_HEADER, leader);
    }
    status
}

/// The status of a ranking that was not answered. An id that metadata cannot hold was the caller's own, who knows it.
#[must_use]
pub fn with_request_id(mut status: Status, request_id: &str) -> Status {
    if request_id.is_ascii()
        && let Ok(request_id) = request_id.parse()
    {
        status.metadata_mut().insert(REQUEST_ID_HEADER, request_id);
    }
    status
}

/// `host:port` of the controller that a `not_leader` status names.
#[must_use]
pub fn leader_of(status: &Status) -> Option<&str> {
    (code_of(status) == ErrorCode::NotLeader)
        .then(|| status.metadata().get(LEADER_HEADER)?.to_str().ok())
        .flatten()
}

/// The epoch that came with a `not_served` status.
#[must_use]
pub fn epoch_of(status: &Status) -> Option<Epoch> {
    status.metadata().get(EPOCH_HEADER)?.to_str().ok()?.parse().ok().map(Epoch)
}

/// An error as a stream carries it, which goes on after it.
#[must_use]
pub fn failure_of(code: ErrorCode, message: impl Into<String>, epoch: Option<Epoch>) -> v1::Failure {
    v1::Failure { code: code.as_str().into(), message: message.into(), epoch: epoch.map(|epoch| epoch.0) }
}

/// The error code and the epoch of a failure. A word that we do not know is a defect of the peer's.
#[must_use]
pub fn code_of_failure(failure: &v1::Failure) -> (ErrorCode, Option<Epoch>) {
    (ErrorCode::from_word(&failure.code).unwrap_or(ErrorCode::Internal), failure.epoch.map(Epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for code in ErrorCode::ALL {
            let status = status_of(code, "text", Some(Epoch(7)));
            assert_eq!(code_of(&status), code);
            assert_eq!(epoch_of(&status), Some(Epoch(7)));
            assert_eq!(code_of_failure(&failure_of(code, "text", Some(Epoch(7)))), (code, Some(Epoch(7))));
            assert_eq!(code_of_failure(&failure_of(code, "text", None)), (code, None));
        }
    }

    #[test]
    fn a_follower_names_the_leader_if_it_knows_it() {
        let status = not_leader("another leads", Some("c-2:7400"));
        assert_eq!((code_of(&status), leader_of(&status)), (ErrorCode::NotLeader, Some("c-2:7400")));
        assert_eq!(leader_of(&not_leader("nobody leads", None)), None);
        assert_eq!(leader_of(&not_leader("a bad address", Some("c\n2"))), None);
        assert_eq!(leader_of(&Status::unavailable("refused")), None);
    }

    #[test]
    fn an_id_goes_with_a_status_where_metadata_can_hold_it() {
        let status = with_request_id(Status::unavailable("refused"), "auto-1");
        assert_eq!(status.metadata().get(REQUEST_ID_HEADER).unwrap(), "auto-1");
        for strange in ["a\nb", "für"] {
            let status = with_request_id(Status::unavailable("refused"), strange);
            assert!(status.metadata().get(REQUEST_ID_HEADER).is_none(), "{strange:?}");
        }
    }

    #[test]
    fn a_foreign_status_has_a_code_too() {
        assert_eq!(code_of_failure(&v1::Failure::default()), (ErrorCode::Internal, None));
        assert_eq!(code_of(&Status::unavailable("refused")), ErrorCode::Unavailable);
        assert_eq!(code_of(&Status::unknown("broken pipe")), ErrorCode::Unavailable);
        assert_eq!(epoch_of(&Status::unavailable("refused")), None);
    }
}
