//! Requests that are refused: with a code, a text that names the thing, and no effect on the next request.

use tidepool_proto::{code_of, epoch_of, v1};
use tidepool_ranker::{Config, StartError, start};
use tidepool_types::ErrorCode;
use tokio_util::sync::CancellationToken;

use crate::{Site, films_request, ids, ranked, site::raw_config, values};

#[tokio::test(flavor = "multi_thread")]
async fn every_malformed_request_is_refused_by_name() {
    let mut site = Site::start().await;
    type Change = fn(&mut v1::RankRequest);
    let cases: [(Change, ErrorCode, &str); 12] = [
        (|r| r.model = "books".into(), ErrorCode::NotFound, "model \"books\" has no current release"),
        (|r| r.release = "r9".into(), ErrorCode::NotFound, "no release \"r9\" of model \"films\""),
        (|r| r.model = "a/../b".into(), ErrorCode::NotFound, "a/../b"),
        (|r| r.user.truncate(1), ErrorCode::InvalidRequest, "user feature \"age\" is missing"),
        (|r| r.user.push(ids("zip", &[1], &[])), ErrorCode::InvalidRequest, "takes no user feature \"zip\""),
        (
            |r| r.candidate.push(values("age", &[1.0; 3])),
            ErrorCode::InvalidRequest,
            "\"age\" belongs to the user side",
        ),
        (
            |r| r.candidate[1] = ids("item", &[1, 2], &[]),
            ErrorCode::InvalidRequest,
            "\"item\": 2 ids without lengths, there must be 3",
        ),
        (
            |r| r.candidate[0] = ids("genres", &[1], &[u32::MAX, u32::MAX, 3]),
            ErrorCode::InvalidRequest,
            "the lengths add up to 8589934593, there are 1 ids",
        ),
        (
            |r| r.user[1] = values("age", &[f32::NAN]),
            ErrorCode::InvalidRequest,
            "feature \"age\": number 0 is NaN",
        ),
        (|r| r.user[0].ids = vec![0; 7].into(), ErrorCode::InvalidRequest, "feature \"user\": ids: 7 bytes"),
        (
            |r| r.candidates = u32::MAX,
            ErrorCode::InvalidRequest,
            "4294967295 candidates, a request may have 100",
        ),
        (|r| r.candidates = 4, ErrorCode::InvalidRequest, "there must be 4"),
    ];
    for (change, code, text) in cases {
        let mut request = films_request();
        change(&mut request);
        let status = site.ranker.rank(request).await.unwrap_err();
        assert_eq!(code_of(&status), code, "{status:?}");
        assert!(status.message().contains(text), "{:?} does not say {text:?}", status.message());
        assert_eq!(epoch_of(&status), None);
    }
    assert!(site.node.calls.lock().unwrap().is_empty(), "nothing was looked up for them");
    assert_eq!(ranked(&site.ranker.rank(films_request()).await.unwrap()).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let site = Site::start().await;
    let taken = site.ranker.running.grpc_address.to_string();
    let mut raw = raw_config(&site.store, site.controller.address, site.data.path().join("second"));
    raw.grpc_address = taken.clone();
    let error = start(Config::try_from(raw).unwrap(), CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, StartError::Net { .. }), "{error:?}");
    let text = tidepool_ranker::chain(&error);
    assert!(text.contains(&taken) && text.contains("taken") && text.contains("ranker-1"), "{text}");
}
