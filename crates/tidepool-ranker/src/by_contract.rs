//! Requests whose meaning depends on the contract: which release answers says which contract that is, and the key
//! of a request, which may be made from what it means, says which release answers.

use std::sync::Arc;

use tidepool_cluster::{BUCKETS, bucket_of};
use tidepool_proto::v1;
use tidepool_types::ModelSpec;

use crate::{RankError, releases::Releases, request::RankRequest};

/// The message that `read` makes of a request by the contract of the release that answers it: the one that is `named`,
/// or the one that has the bucket of `key`. Where the ids of the user stand for the key, they are first read by the
/// contract of the current release.
pub(crate) fn by_contract<T>(
    releases: &Releases,
    model: &str,
    named: Option<&str>,
    key: &str,
    read: impl Fn(&ModelSpec) -> Result<(v1::RankRequest, T), RankError>,
) -> Result<(v1::RankRequest, T), RankError> {
    // No arm has the bucket after the last.
    let bucket = if key.is_empty() { BUCKETS } else { bucket_of(model, key) };
    let chosen = releases.choose(model, named, bucket)?;
    let (message, with) = read(&chosen.release.spec)?;
    if named.is_some() || !key.is_empty() || !releases.snapshot().map.traffic.contains_key(model) {
        return Ok((message, with));
    }
    let routing_key = RankRequest::try_from(message.clone())?.implied_key();
    let arm = releases.choose(model, None, bucket_of(model, &routing_key))?;
    let (message, with) = match Arc::ptr_eq(&arm.release, &chosen.release) {
        true => (message, with),
        false => read(&arm.release.spec)?,
    };
    // By another contract the ids may be others: the key stays the one that the release was chosen by.
    Ok((v1::RankRequest { routing_key, ..message }, with))
}
