//! Requests whose meaning depends on the contract: which release answers says which contract that is, and the key
//! of a request, which may be made from what it means, says which release answers.

use std::sync::Arc;

use tidepool_cluster::{BUCKETS, bucket_of};
use tidepool_proto::v1;
use tidepool_types::ModelSpec;

use crate::{
    RankError,
    releases::{Chosen, Releases},
    request::RankRequest,
};

/// The release that answers a request, and what `read` makes of the request by its contract: the release that is
/// `named`, or the one that has the bucket of `key`. Where the ids of the user stand for the key, they are first read
/// by the contract of the current release.
///
/// Whoever read a request so must have it answered by that release: after a promotion another one may be chosen for
/// it, by whose contract it means something else.
pub(crate) fn by_contract<T>(
    releases: &Releases,
    model: &str,
    named: Option<&str>,
    key: &str,
    read: impl Fn(&ModelSpec) -> Result<(v1::RankRequest, T), RankError>,
) -> Result<(Chosen, v1::RankRequest, T), RankError> {
    // One picture for both choices.
    let snapshot = releases.snapshot();
    // No arm has the bucket after the last.
    let bucket = if key.is_empty() { BUCKETS } else { bucket_of(model, key) };
    let chosen = snapshot.choose(model, named, bucket)?;
    let (message, with) = read(&chosen.release.spec)?;
    if named.is_some() || !key.is_empty() || !snapshot.map.traffic.contains_key(model) {
        return Ok((chosen, message, with));
    }
    let routing_key = RankRequest::try_from(message.clone())?.implied_key();
    let arm = snapshot.choose(model, None, bucket_of(model, &routing_key))?;
    let (message, with) = match Arc::ptr_eq(&arm.release, &chosen.release) {
        true => (message, with),
        false => read(&arm.release.spec)?,
    };
    // By another contract the ids may be others: the key stays the one that the release was chosen by.
    Ok((arm, v1::RankRequest { routing_key, ..message }, with))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use prometheus::Registry;
    use tidepool_proto::pack::pack;
    use tidepool_runtime::auth::Caller;

    use super::*;
    use crate::{metrics::Metrics, overload_tests::ranker, rank::Ranker, service::RankService};

    #[tokio::test]
    async fn a_request_is_answered_by_the_release_that_it_was_read_by() {
        let ranker = ranker();
        let values = pack(&[1.0f32, 3.0]);
        let price = v1::Feature { name: "price".into(), values, ..v1::Feature::default() };
        let message = v1::RankRequest {
            model: "prices".into(),
            candidates: 2,
            candidate: vec![price],
            ..v1::RankRequest::default()
        };
        let read = |_: &ModelSpec| Ok((message.clone(), ()));
        let (chosen, message, ()) = by_contract(&ranker.releases, "prices", None, "", read).unwrap();
        // Meanwhile the release goes.
        let ranker = Ranker { releases: Releases::default(), ..ranker };
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let service = RankService { ranker: Arc::new(ranker), metrics };
        let caller = Caller::process("test");
        let answer = |chosen| service.answer(&caller, chosen, message.clone(), None, Instant::now());
        let answered = answer(Some(chosen)).await.unwrap();
        assert_eq!((answered.release.as_str(), answered.scores), ("p1", pack(&[6.0f32, 2.0])));
        let unanswered = answer(None).await.unwrap_err();
        assert!(matches!(unanswered.error, RankError::NoMap), "{unanswered:?}");
        assert!(unanswered.request_id.starts_with("auto-"), "{unanswered:?}");
    }
}
